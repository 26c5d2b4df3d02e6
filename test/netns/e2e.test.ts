/**
 * The whole way, in the lab's default topology with the real programs: manifests change, programs are killed, bad input
 * comes, pods come and go, while a long TCP transfer of reviews/rev-1 (v4 and v6) runs from the first test to the last
 * and must never notice. The upstream firewall is the witness that no packet left with a foreign source.
 */
import { spawn } from 'node:child_process';
import { readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { NFT_TABLE_GATEWAY, NFT_TABLE_NODE } from '../../api/names.ts';
import { type Family, families } from '../../api/plan.ts';
import { type ConntrackEntry, listFlows } from '../../kernel/conntrack.ts';
import { firewallView } from '../../lab/checks.ts';
import { down } from '../../lab/down.ts';
import { fail, heal } from '../../lab/fault.ts';
import { flowFiles, readFlows } from '../../lab/flows.ts';
import { inNamespace, must, type Outcome, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { awaitReady } from '../../lab/ready.ts';
import { contentHash } from '../../lab/servers/content.ts';
import { allowList, defaultTopology, serverAddresses } from '../../lab/topology.ts';
import { up } from '../../lab/up.ts';

t.setTimeout(570_000);
const lab = `e${process.pid}`;
const place = placeOf(lab);
const LONG_PORT = { 4: 5301, 6: 5302 } as const;
const CLOSED_PORT = 9999;
/** For what comes in the end; for what is the matter of a moment, on a slow machine; when TCP tries again. */
const [WAIT_MS, SOON_MS, SYN_AGAIN_MS] = [60_000, 5_000, 1_000];

const at = (host: string, argv: string[], timeoutMs = 60_000): Promise<Outcome> =>
  run(inNamespace(place.namespace(host), argv), { timeoutMs });
const url = (family: Family, path: string, port = 80): string => {
  const address = serverAddresses.web[family];
  return `http://${family === 6 ? `[${address}]` : address}:${port}${path}`;
};
const curl = (host: string, family: Family, seconds = 10): Promise<Outcome> =>
  at(host, ['curl', '-sS', '-m', String(seconds), url(family, '/ip')]);

interface IperfReport {
  error?: string;
  intervals: { sum: { bytes: number; bits_per_second: number } }[];
}

async function manifest(name: string, text: string): Promise<void> {
  await writeFile(join(place.manifests, name), text);
}
const withdraw = (name: string): Promise<void> => rm(join(place.manifests, name), { force: true });

/** Milliseconds until `condition` holds; throws after `limitMs`. */
async function within(limitMs: number, condition: () => Promise<boolean>): Promise<number> {
  const began = performance.now();
  for (;;) {
    if (await condition()) return performance.now() - began;
    if (performance.now() - began > limitMs) throw new Error(`not within ${limitMs} ms`);
    await sleep(10);
  }
}

await t.test('the lab comes up', async () => {
  const world = await up({ name: lab });
  await awaitReady(world);
  await manifest(
    '90-test.yaml',
    `apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata: { name: long, namespace: reviews }
spec:
  addresses: [${serverAddresses.web[4]}, "${serverAddresses.web[6]}"]
  ports:
    - { name: long, protocol: TCP, port: "${LONG_PORT[4]},${LONG_PORT[6]}" }
    - { name: closed, protocol: UDP, port: "${CLOSED_PORT}" }
---
apiVersion: sluice.dev/v1alpha1
kind: NamespaceEgressRule
metadata: { name: long, namespace: reviews }
spec: { action: accept-decisively, externalServices: [long] }
`,
  );
});
t.teardown(async () => {
  await down(lab);
});

/** Seconds without a byte of a long transfer, on a machine that has its pauses. */
const QUIET_MOST = 5;

/** iperf3 from rev-1 through the gateway; ended by the last test. */
const long = families.map((family) => {
  const port = String(LONG_PORT[family]);
  const server = spawn('ip', [
    'netns',
    'exec',
    place.namespace('web'),
    'timeout',
    '900',
    'iperf3',
    '-s',
    '-1',
    '-p',
    port,
  ]);
  return { family, port, server };
});
await within(WAIT_MS, async () => {
  const { stdout } = await at('web', ['ss', '-Hltn']);
  return long.every(({ port }) => stdout.includes(`:${port} `));
});
const clients = long.map(({ family, port }) => {
  const argv = ['iperf3', '-J', '-c', serverAddresses.web[family], '-p', port, '-b', '20M', '-t', '800', '-C', 'cubic'];
  const client = spawn('ip', ['netns', 'exec', place.namespace('rev-1'), 'timeout', '-s', 'INT', '850', ...argv]);
  const output: Buffer[] = [];
  client.stdout.on('data', (chunk: Buffer) => output.push(chunk));
  const ended = new Promise<string>((resolve) => client.on('close', () => resolve(Buffer.concat(output).toString())));
  return { family, client, ended };
});
t.teardown(() => {
  for (const { client } of clients) client.kill('SIGKILL');
  for (const { server } of long) server.kill('SIGKILL');
});

/** The long transfers' connections on the gateways (two a family: control and data). */
async function longFlows(): Promise<string[]> {
  const found: string[] = [];
  for (const gateway of ['gw-a', 'gw-b', 'gw-c']) {
    for (const flow of await listFlows({ namespace: place.namespace(gateway) })) {
      if (isLong(flow)) found.push(`${gateway} ${flow.id} ${flow.original.source}:${flow.original.sourcePort}`);
    }
  }
  return found.sort();
}
const isLong = ({ original }: ConntrackEntry): boolean =>
  Object.values(LONG_PORT).includes(original.destinationPort as never);

t.test('a manifest takes effect soon, and only on whom it names', async (t) => {
  await within(WAIT_MS, async () => (await longFlows()).length === 4);
  const before = await longFlows();
  for (const family of families) {
    t.equal(
      (await curl('pay-1', family)).stdout.trim(),
      allowList.billing?.[family][0],
      `v${family}: billing gets out`,
    );
  }
  await manifest(
    '91-veto.yaml',
    `apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata: { name: web, namespace: sluice-system }
spec: { addresses: [${serverAddresses.web[4]}, "${serverAddresses.web[6]}"] }
---
apiVersion: sluice.dev/v1alpha1
kind: ClusterEgressRule
metadata: { name: veto }
spec:
  action: reject
  priority: 1
  namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: billing } }
  externalServices: [web]
`,
  );
  const rejected = await within(SOON_MS, async () => (await curl('pay-1', 4)).code === 7);
  t.comment(`rejected ${Math.round(rejected)} ms after the manifest was written`);
  await within(SOON_MS, async () => (await curl('pay-2', 6)).code === 7);
  t.pass('v6, from the other node: rejected too');
  t.equal((await curl('rev-1', 4)).code, 0, 'reviews goes on');
  await withdraw('91-veto.yaml');
  const permitted = await within(SOON_MS, async () => (await curl('pay-1', 4)).code === 0);
  t.comment(`permitted ${Math.round(permitted)} ms after it was withdrawn`);
  t.strictSame(await longFlows(), before, 'the long transfers are the same connections');
});

t.test('logging of rules: what is in the gateways’ files of flow records', async (t) => {
  const files = flowFiles(lab, defaultTopology);
  /** Of new flows of rev-1 to the web, until one of them is written. */
  const recordsOf = async (family: Family): Promise<string[]> => {
    const began = new Date().toISOString();
    t.equal((await curl('rev-1', family)).code, 0, `v${family}: reviews gets out`);
    const found = async () =>
      (await readFlows(files)).filter(
        (r) => r.time >= began && r.pod === 'rev-1' && r.destination === serverAddresses.web[family],
      );
    await within(WAIT_MS, async () => (await found()).length > 0);
    // A start would be written with it, and an end when the connection is closed.
    await sleep(200);
    return [...new Set((await found()).filter((r) => r.destinationPort === 80).map((r) => `${r.event} ${r.rule}`))];
  };
  await manifest(
    '94-logging.yaml',
    `apiVersion: sluice.dev/v1alpha1
kind: ClusterEgressRule
metadata: { name: watch }
spec:
  action: accept
  logging: All
  priority: 1
  namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: reviews } }
  externalServices: ["*"]
---
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata: { name: quiet, namespace: reviews }
spec:
  addresses: [${serverAddresses.web[4]}, "${serverAddresses.web[6]}"]
  ports: [{ name: http, protocol: TCP, port: "80" }]
---
apiVersion: sluice.dev/v1alpha1
kind: NamespaceEgressRule
metadata: { name: quiet, namespace: reviews }
spec: { action: accept-decisively, logging: None, priority: 1, externalServices: [quiet] }
`,
  );
  // Each family may have its own gateway.
  for (const family of families) await within(WAIT_MS, async () => (await recordsOf(family)).join() === 'match watch');
  for (const family of families) t.same(await recordsOf(family), ['match watch'], `v${family}: and nothing by quiet`);
  await withdraw('94-logging.yaml');
  for (const family of families) {
    await within(WAIT_MS, async () => (await recordsOf(family)).includes('start reviews/web'));
    t.notOk((await recordsOf(family)).includes('match watch'), `v${family}: withdrawn`);
  }
});

t.test('bad manifests: a clear error, and everything in force stays', async (t) => {
  const before = await longFlows();
  await manifest('31-reviews.yaml.bad.yaml', 'kind: [broken');
  await manifest(
    '92-bad.yaml',
    `apiVersion: sluice.dev/v1alpha1
kind: NamespaceEgressRule
metadata: { name: bad, namespace: reviews }
spec: { action: permit, externalServices: [web] }
`,
  );
  await within(WAIT_MS, async () => {
    const errors = await readFile(join(place.manifests, '.status', 'errors.yaml'), 'utf8').catch(() => '');
    return errors.includes('spec.action') && errors.includes('31-reviews.yaml.bad.yaml');
  });
  const cli = join(import.meta.dirname, '..', '..', 'cli', 'main.js');
  const lint = await run([process.execPath, cli, 'lint', join(place.manifests, '92-bad.yaml')]);
  t.equal(lint.code, 1, 'lint refuses it');
  t.match(
    `${lint.stdout}${lint.stderr}`,
    /spec\.action.*accept.*permit/s,
    'and says where, what was expected and what came',
  );
  for (const family of families) t.equal((await curl('rev-1', family)).code, 0, `v${family}: reviews still gets out`);
  await withdraw('31-reviews.yaml.bad.yaml');
  await withdraw('92-bad.yaml');
  t.strictSame(await longFlows(), before);
});

t.test('kill -9 of each program: traffic goes on, and a restart resets nothing', async (t) => {
  const before = await longFlows();
  const holders = [...new Set(before.map((flow) => flow.split(' ')[0] ?? ''))];
  for (const host of ['ctl', ...holders, 'node-a']) {
    t.ok((await fail(lab, host, 'process')).length > 0, `${host}: killed`);
    for (const family of families)
      t.equal((await curl('pay-1', family)).code, 0, `${host} dead, v${family}: billing gets out`);
    t.strictSame(await longFlows(), before, `${host} dead: the same connections`);
    t.ok((await heal(lab, host, 'process')).length > 0, `${host}: started again`);
    await sleep(1_500);
    for (const family of families)
      t.equal((await curl('rev-1', family)).code, 0, `${host} back, v${family}: reviews gets out`);
    t.strictSame(await longFlows(), before, `${host} back: the same connections`);
  }
});

/** Milliseconds until billing gets out again after somebody deleted a table of ours. */
async function mendedAfterLoss(host: string, table: string): Promise<number> {
  await must(inNamespace(place.namespace(host), ['nft', 'delete', 'table', 'inet', table]));
  return within(WAIT_MS, async () => (await curl('pay-1', 4, 1)).code === 0);
}

/** A gateway that was started again brings its saved plan into force, and then the controller's; until it has no more to say. */
async function settled(host: string): Promise<void> {
  const log = join(place.dir, 'logs', `${host}.gateway.log`);
  await within(WAIT_MS, async () => {
    const text = await readFile(log, 'utf8');
    const quiet = Date.now() - (await stat(log)).mtimeMs > 1_500;
    return quiet && text.lastIndexOf('plan in force') > text.lastIndexOf('starting with the saved plan');
  });
}

t.test('nft flush ruleset on a gateway by somebody else: mended at once, no connection lost', async (t) => {
  const before = await longFlows();
  const host = before[0]?.split(' ')[0] ?? '';
  await settled(host);
  // Servers go on sending meanwhile, and must not be told that there is nobody.
  const bytes = 30_000_000;
  const downloads = families.map((family) => {
    const fetch = `curl -sS -m 60 --limit-rate 10M '${url(family, `/bytes/${bytes}`)}' | sha256sum`;
    return at('rev-1', ['sh', '-c', fetch], 65_000);
  });
  await sleep(500);
  t.comment(`${host}: ${Math.round(await mendedAfterLoss(host, NFT_TABLE_GATEWAY))} ms until billing gets out again`);
  for (const download of downloads) t.match((await download).stdout, contentHash(bytes), 'a download goes on');
  t.strictSame(await longFlows(), before, 'the same connections');
});

t.test('100 MB through the tunnel, every byte right', async (t) => {
  const bytes = 100_000_000;
  const expected = contentHash(bytes);
  for (const family of families) {
    const script = `curl -sS -m 60 '${url(family, `/bytes/${bytes}`)}' | sha256sum`;
    t.match((await at('pay-2', ['sh', '-c', script], 65_000)).stdout, expected, `v${family}`);
  }
});

t.test('a pod that sends before it is known: held, released when named, withdrawn when gone', async (t) => {
  const pod = place.namespace('late-1');
  const node = place.namespace('node-a');
  const addresses = { 4: '10.244.1.77', 6: 'fd00:244:1::77' } as const;
  for (const command of [
    ['ip', 'netns', 'add', pod],
    [
      'ip',
      '-n',
      node,
      'link',
      'add',
      'late',
      'address',
      'fe:ff:ff:ff:ff:77',
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      pod,
    ],
    ['ip', '-n', node, 'link', 'set', 'late', 'master', 'cni0', 'up'],
    ['ip', '-n', pod, 'link', 'set', 'eth0', 'up'],
    ['ip', '-n', pod, 'addr', 'add', `${addresses[4]}/24`, 'dev', 'eth0'],
    ['ip', '-n', pod, 'addr', 'add', `${addresses[6]}/64`, 'dev', 'eth0', 'nodad'],
    ['ip', '-n', pod, 'route', 'add', 'default', 'via', '10.244.1.1'],
    ['ip', '-n', pod, '-6', 'route', 'add', 'default', 'via', 'fd00:244:1::1'],
  ]) {
    await must(command);
  }
  // Neighbours first, so that what is measured is the release.
  await at('late-1', ['ping', '-c', '1', '-W', '1', '10.244.1.1']);
  await at('late-1', ['ping', '-6', '-c', '1', '-W', '1', 'fd00:244:1::1']);
  const tries = families.map(async (family) => {
    const outcome = await at('late-1', ['curl', '-sS', '-m', '20', url(family, '/ip')]);
    return { family, outcome, ended: performance.now() };
  });
  await sleep(300);
  const named = performance.now();
  await manifest(
    '93-late.yaml',
    `apiVersion: v1
kind: Pod
metadata: { name: late-1, namespace: reviews, uid: 00000000-0000-4000-8000-000000000077, labels: { app: reviews } }
spec: { nodeName: node-a }
status: { phase: Running, podIP: ${addresses[4]}, podIPs: [{ ip: ${addresses[4]} }, { ip: "${addresses[6]}" }] }
`,
  );
  for (const { family, outcome, ended } of await Promise.all(tries)) {
    t.ok(allowList.reviews?.[family].includes(outcome.stdout.trim()), `v${family}: leaves with an address of reviews`);
    t.comment(`v${family}: ${Math.round(ended - named)} ms after it was named`);
    t.ok(ended - named < SYN_AGAIN_MS, `v${family}: by the SYN that was held, not by another`);
  }
  await withdraw('93-late.yaml');
  for (const family of families) {
    await within(WAIT_MS, async () => (await curl('late-1', family, 2)).code !== 0);
    t.pass(`v${family}: gone, it gets out no more`);
  }
});

t.test('nobody noticed, and no foreign source was seen', async (t) => {
  const expected = await longFlows();
  t.equal(expected.length, 4, 'the long transfers are still there');
  for (const { client } of clients) {
    // The child of ip, which execs timeout, which passes it on to iperf3: it ends and reports.
    client.kill('SIGINT');
  }
  for (const { family, ended } of clients) {
    const report = JSON.parse(await ended) as IperfReport;
    t.match(report.error, /interrupt/, `v${family}: ended by us`);
    const quiet = report.intervals.filter(({ sum }) => sum.bytes === 0);
    t.comment(
      `v${family}: Mbit/s by second: ${report.intervals.map(({ sum }) => (sum.bits_per_second / 1e6).toFixed(0)).join(' ')}`,
    );
    // While the table was gone nothing went on; a lost window is sent again after a time that doubles. Without a watch on the table
    // it would be up to half a minute.
    t.ok(quiet.length <= QUIET_MOST, `v${family}: bytes in every second but ${quiet.length}`);
  }
  const { foreign, passed } = await firewallView(lab);
  t.strictSame(foreign, [], 'the firewall saw no foreign source');
  const silent = passed.filter(({ namespace, packets }) => namespace !== 'kube-system' && packets === 0);
  t.strictSame(silent, [], 'and traffic of billing and of reviews, v4 and v6');
});

// Here, since until it is mended nothing is steered, which a transfer may notice.
t.test('nft flush ruleset on a node by somebody else: mended at once', async (t) => {
  t.comment(`node-a: ${Math.round(await mendedAfterLoss('node-a', NFT_TABLE_NODE))} ms until billing gets out again`);
  for (const family of families) t.equal((await curl('rev-1', family)).code, 0, `v${family}: reviews too`);
});

// Last: it makes the path of the long transfers narrower, which is no fault of the gateway's that they should outlive.
t.test('ICMP errors and path MTU discovery through NAT and tunnel', async (t) => {
  const script = (address: string): string =>
    `exec 3<>/dev/udp/${address}/${CLOSED_PORT}; for n in $(seq 100); do echo $n >&3 || { echo refused; break; }; sleep 0.1; done`;
  for (const family of families) {
    const outcome = await at('rev-1', ['bash', '-c', script(serverAddresses.web[family])]);
    t.match(`${outcome.stdout}${outcome.stderr}`, /refused/i, `v${family}: port unreachable reaches the pod`);
  }
  const servers = (
    await must(inNamespace(place.namespace('fw'), ['ip', '-o', '-4', 'route', 'get', serverAddresses.web[4]]))
  )
    .split(' dev ')[1]
    ?.split(' ')[0];
  await must(inNamespace(place.namespace('fw'), ['ip', 'link', 'set', servers ?? '', 'mtu', '1300']));
  for (const family of families) {
    const ping = [
      'ping',
      `-${family}`,
      '-M',
      'do',
      '-s',
      '1360',
      '-c',
      '3',
      '-i',
      '0.3',
      '-W',
      '1',
      serverAddresses.web[family],
    ];
    const outcome = await at('rev-1', ping);
    t.match(`${outcome.stdout}${outcome.stderr}`, /mtu[ :=]+1300/i, `v${family}: the pod learns the path's MTU`);
  }
  await must(inNamespace(place.namespace('fw'), ['ip', 'link', 'set', servers ?? '', 'mtu', '1500']));
});
