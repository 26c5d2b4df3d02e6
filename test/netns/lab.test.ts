/**
 * The lab itself, and in it the demo's table: the default topology is brought up with the real programs in it, every
 * check of lab/checks.ts must hold, with a tunnel and, after an edit of the pool, with Direct steering; and down must
 * leave nothing, also when lab.json is lost or up fails half-way.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { families } from '../../api/plan.ts';
import { decidedMark } from '../../gateway/marks.ts';
import { endFlows } from '../../kernel/conntrack.ts';
import { checksOf, type Expectation, explainExpectation, firewallView, judge, runChecks } from '../../lab/checks.ts';
import { firewallIsContent, formatFirewall, formatResults } from '../../lab/demo.ts';
import { down } from '../../lab/down.ts';
import { fail, heal } from '../../lab/fault.ts';
import { flowFiles, formatRecord, readFlows } from '../../lab/flows.ts';
import { inNamespace, listNamespaces, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { awaitReady } from '../../lab/ready.ts';
import { contentBytes } from '../../lab/servers/content.ts';
import { formatStatus, status } from '../../lab/status.ts';
import { defaultTopology, serverAddresses } from '../../lab/topology.ts';
import { up } from '../../lab/up.ts';

t.setTimeout(570_000);
const name = `t${process.pid}`;
const second = `u${process.pid}`;

/** Whatever a lab may leave on a machine, by name. */
async function leftovers(lab: string): Promise<string[]> {
  const place = placeOf(lab);
  const configured = existsSync('/etc/netns') ? readdirSync('/etc/netns') : [];
  const commands = readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((pid) => {
      try {
        return [`${pid} ${readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')}`];
      } catch {
        return [];
      }
    });
  return [
    ...(await listNamespaces(place.prefix)),
    ...configured.filter((entry) => entry.startsWith(place.prefix)),
    ...(existsSync(place.dir) ? [place.dir] : []),
    ...commands.filter((command) => command.includes(`${place.dir}/`)),
  ];
}

t.test('the judgement of an outcome', async (t) => {
  const from: Expectation = { from: ['203.0.113.101'] };
  const outcome = (code: number | null, stdout = '', stderr = '') => ({ code, stdout, stderr });
  const rows = [
    ['its own address', from, outcome(0, '203.0.113.101\n'), true],
    ["another namespace's address", from, outcome(0, '203.0.113.102\n'), false],
    ['an address of which the right one is a part', from, outcome(0, '203.0.113.1011\n'), false],
    ['no answer', from, outcome(28), false],
    [
      'a reset is a rejection',
      'rejected',
      outcome(7, '', '* connect to 198.51.100.90 port 8080 failed: Connection refused\ncurl: (7) no'),
      true,
    ],
    [
      'no route is no rejection',
      'rejected',
      outcome(7, '', '* connect to 198.51.100.90 port 8080 failed: No route to host\ncurl: (7) no'),
      false,
    ],
    [
      'a reset of what asked for a name is a rejection',
      'rejected',
      outcome(35, '', 'SSL_connect: Connection reset by peer'),
      true,
    ],
    ['TLS that fails otherwise is none', 'rejected', outcome(35, '', 'wrong version number'), false],
    ['silence is no rejection', 'rejected', outcome(28), false],
    ['silence is a drop', 'dropped', outcome(28), true],
    [
      'a rejection is no drop',
      'dropped',
      outcome(7, '', '* connect to 198.51.100.90 port 8080 failed: Connection refused\ncurl: (7) no'),
      false,
    ],
    [
      'no route is no drop',
      'dropped',
      outcome(7, '', '* connect to 198.51.100.90 port 8080 failed: Network is unreachable\ncurl: (7) no'),
      false,
    ],
    ['a deadline of ours is no drop', 'dropped', outcome(null), false],
    ['what got through was not dropped', 'dropped', outcome(0, '10.244.2.12\n'), false],
    ['printed', { prints: 'hello' }, outcome(0, 'hello\n'), true],
    ['printed and failed', { prints: 'hello' }, outcome(1, 'hello\n'), false],
  ] as const;
  for (const [what, expected, out, ok] of rows) t.equal(judge(expected as Expectation, out).ok, ok, what);
  t.same(
    checksOf(6).map((c) => [c.host, c.what]),
    checksOf(4).map((c) => [c.host, c.what]),
    'families are checked alike',
  );
  t.same([...contentBytes(65_536 * 4, 8)], [0, 0, 0, 0, 0, 0, 0x80, 0], 'a word is the number of its place');
});

t.test('the default topology', async (t) => {
  t.teardown(async () => {
    await down(name);
    await down(second);
  });
  const started = Date.now();
  const world = await up({ name });
  await awaitReady(world);
  t.comment(`up and ready after ${Date.now() - started} ms`);

  const results = await runChecks(name);
  const firewall = await firewallView(name);
  t.comment(`\n${formatResults(results)}\n${formatFirewall(firewall)}`);
  t.equal(results.length, families.length * checksOf(4).length);
  for (const { check, seen, ok } of results) {
    t.ok(ok, `IPv${check.family} ${check.who} → ${check.what}: ${explainExpectation(check)}`, { seen });
  }
  t.ok(firewallIsContent(firewall), 'the firewall passed every namespace and no foreign source', { firewall });

  const records = await readFlows(flowFiles(name, world.topology));
  for (const family of families) {
    const ofFamily = records.filter((r) => r.source.includes(':') === (family === 6));
    t.ok(
      ofFamily.some((r) => r.event === 'start' && r.pod === 'pay-1' && r.verdict === 'accept'),
      `IPv${family}: a record of a permitted flow`,
    );
    t.ok(
      ofFamily.some((r) => r.event === 'deny' && r.verdict === 'reject'),
      `IPv${family}: a record of a rejected one`,
    );
  }
  for (const record of records) t.match(formatRecord(record), / → /);

  await t.test('the ends of flows say what they spoke, though no rule asks', async (t) => {
    const spoken = async (): Promise<string[]> =>
      (await readFlows(flowFiles(name, world.topology))).flatMap(({ event, application, sampled, protocol, ...r }) =>
        event === 'end' && sampled === true ? [`${protocol} ${application} ${r.destinationName}`] : [],
      );
    const curl = ['curl', '-sk', '-m', '5', 'https://web.example.test/ip'];
    t.equal((await run(inNamespace(placeOf(name).namespace('pay-1'), curl))).code, 0);
    // The kernel gathers samples for a tenth of a second; a flow that ends before is not among those that were read.
    await sleep(1_000);
    let found: string[] = [];
    for (let i = 0; i < 50 && !found.some((one) => one.includes('TLS')); i++) {
      for (const { name: host, programs } of world.topology.hosts) {
        if (!programs?.some(({ kind }) => kind === 'gateway')) continue;
        await endFlows(() => true, { namespace: placeOf(name).namespace(host), mark: decidedMark });
      }
      await sleep(100);
      found = await spoken();
    }
    for (const one of ['tcp HTTP web.example.test', 'tcp TLS web.example.test', 'udp DNS web.example.test']) {
      t.ok(found.includes(one), one, { found: [...new Set(found)] });
    }
  });

  await t.test('a second lab beside it, without the programs', async (t) => {
    await up({ name: second, sluice: false });
    const ping = ['ping', '-c', '1', '-W', '2'];
    for (const address of ['198.51.100.80', '2001:db8:100::80']) {
      const { code } = await run(inNamespace(placeOf(second).namespace('fw'), [...ping, address]));
      t.equal(code, 0, `its firewall reaches ${address}`);
    }
    const asFw = (argv: string[]) => run(inNamespace(placeOf(second).namespace('fw'), argv));
    for (const [host, version] of [
      ['198.51.100.80', '--http1.1'],
      ['[2001:db8:100::80]', '--http2'],
      ['198.51.100.191', '--http2'],
      ['[2001:db8:100::1:3f]', '--http1.1'],
    ] as const) {
      const { stdout } = await asFw(['curl', '-gsk', version, '-w', '%{http_version}', `https://${host}/ip`]);
      t.match(stdout, version === '--http2' ? /\n2$/ : /\n1\.1$/, `web answers ${version} over TLS as ${host}`);
    }
    for (const port of ['22', '443']) {
      const { stdout } = await asFw(['nc', '-w', '2', serverAddresses.odd[4], port]);
      t.match(stdout, /^SSH-2\.0-/, `odd speaks SSH on ${port}`);
    }
    await t.rejects(up({ name: second }), /there already/, 'the same name twice is refused');
    await rm(placeOf(second).file);
    t.equal(await down(second), true, 'down works without lab.json');
    t.same(await leftovers(second), [], 'and leaves nothing');
    t.equal(await down(second), false, 'a second time there is nothing to do');
  });

  await t.test('the pool is changed to Direct steering: the same table, without a tunnel', async (t) => {
    const place = placeOf(name);
    const file = join(place.manifests, '10-network-team.yaml');
    const text = await readFile(file, 'utf8');
    const edited = text.replace('steering: { mode: VXLAN, vni: 7790 }', 'steering: { mode: Direct }');
    t.not(edited, text, 'the manifest says VXLAN');
    await writeFile(file, edited);
    const hosts = world.topology.hosts.map((host) => host.name).filter((host) => /^(gw|node)-/.test(host));
    const withTunnel = async (): Promise<string[]> => {
      const shown = await Promise.all(
        hosts.map((host) => run(inNamespace(place.namespace(host), ['ip', 'link', 'show', 'sluice-vx']))),
      );
      return hosts.filter((_, at) => shown[at]?.code === 0);
    };
    const until = Date.now() + 60_000;
    let left = await withTunnel();
    for (; left.length > 0 && Date.now() < until; left = await withTunnel()) await sleep(100);
    t.same(left, [], 'no tunnel device is left on a gateway or node');
    const results = await runChecks(name);
    const after = await firewallView(name);
    for (const { check, seen, ok } of results) {
      t.ok(ok, `IPv${check.family} ${check.who} → ${check.what}: ${explainExpectation(check)}`, { seen });
    }
    t.same(after.foreign, [], 'the firewall saw no foreign source');
    t.ok(
      // What kube-system asked for is in its cache.
      after.passed.every(
        ({ namespace, packets }, at) =>
          namespace === 'kube-system' || packets > (firewall.passed[at]?.packets ?? Number.POSITIVE_INFINITY),
      ),
      'and passed every namespace again',
      { after },
    );
  });

  await t.test('faults are seen and mended', async (t) => {
    await fail(name, 'ctl', 'process');
    await fail(name, 'web2', 'link');
    const seen = await status(name);
    t.equal(seen.hosts.find((h) => h.host === 'ctl')?.programs[0]?.pid, null, 'the controller is down');
    t.match(formatStatus(seen), /controller DOWN/);
    const ping = (count = 1) => {
      const argv = ['ping', '-c', String(count), '-i', '0.2', '-W', '1', '198.51.100.90'];
      return run(inNamespace(placeOf(name).namespace('fw'), argv));
    };
    t.not((await ping()).code, 0, 'a cut link carries nothing');
    await heal(name, 'ctl', 'process');
    await heal(name, 'web2', 'link');
    // The neighbour is asked for once a second.
    t.equal((await ping(50)).code, 0, 'a mended one does');
    t.ok((await status(name)).hosts.find((h) => h.host === 'ctl')?.programs[0]?.pid, 'the controller runs again');
  });

  t.equal(await down(name), true);
  t.same(await leftovers(name), [], 'down leaves nothing');
});

t.test('an up that fails half-way leaves nothing', async (t) => {
  const [first, ...rest] = defaultTopology.hosts;
  const broken = { ...defaultTopology, hosts: [{ ...first, name: 'sw', about: '', routes: ['nonsense'] }, ...rest] };
  await t.rejects(up({ name, topology: broken, sluice: false }), /ip -n .*exit code 1/);
  t.same(await leftovers(name), []);
  t.throws(() => placeOf('a-b'), /small letters/);
  t.throws(() => placeOf('../x'), /small letters/);
});
