/**
 * `npm run test:cluster`: the chart on a real cluster (cluster.ts) with kubelets and pods, gateways as namespaces beside the
 * nodes. Pods of three namespaces leave with their addresses, from their first packet on; everything is restarted while pods
 * download; it is removed again. By hand, not in `npm test`: it takes minutes, and build.sh more.
 *   node dist/test/cluster/run.js [--keep]      --keep: nothing is taken down; `sluice lab down --name cluster` does it
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { CONTROLLER_NAMESPACE } from '../../api/names.ts';
import { type Family, families } from '../../api/plan.ts';
import { besideSources } from '../../bench/topology.ts';
import { checksOf, explainExpectation, firewallView, judge } from '../../lab/checks.ts';
import { firewallIsContent, formatFirewall, formatResults } from '../../lab/demo.ts';
import { contentHash } from '../../lab/servers/content.ts';
import { allowList, serverAddresses } from '../../lab/topology.ts';
import { defaultValues, type Json, renderChart, withValues } from '../chart.ts';
import { Cluster, takeDown, until } from './cluster.ts';
import { GATEWAYS, NODE_PORT, nodes } from './topology.ts';

const LAB = 'cluster';
const began = performance.now();
t.setTimeout(0);
t.teardown(async () => {
  if (!process.argv.includes('--keep')) await takeDown(LAB);
});
const seconds = (since: number): string => ((performance.now() - since) / 1000).toFixed(1);
const say = (text: string): void => t.comment(`${seconds(began)} s  ${text.trim()}`);

/** Of each pod that checksOf speaks of. */
const namespaceOf: Record<string, string> = {
  'pay-1': 'billing',
  'pay-2': 'billing',
  'rev-1': 'reviews',
  'job-1': 'batch',
};
const inOurs = ['-n', CONTROLLER_NAMESPACE];
const workloads = ['deployment/sluice-controller', 'daemonset/sluice-node'];
const senders = ['billing/pay-1', 'billing/pay-2', 'reviews/rev-1'];

const url = (family: Family, path: string): string =>
  family === 4 ? `http://${serverAddresses.web[4]}${path}` : `http://[${serverAddresses.web[6]}]${path}`;
/** The answer is the address that it came from. */
const asks = (family: Family): string[] => ['curl', '-sS', '-m', '5', url(family, '/ip')];
const egressOf = (pod: string, family: Family): string[] => allowList[pod.split('/')[0] ?? '']?.[family] ?? [];

/** As helm would with these values; an API server before 1.21 has PodDisruptionBudgets under an older name only. */
function chart(more: Json = {}): string {
  const folder = besideSources('deploy/chart');
  const ours = {
    namespace: { create: true },
    controller: { service: { type: 'NodePort', nodePort: NODE_PORT } },
  };
  const values = withValues(withValues(defaultValues(folder), ours), more);
  const files = renderChart(folder, { name: 'sluice', namespace: CONTROLLER_NAMESPACE, values });
  return [...files.values()].join('---\n').replaceAll('policy/v1\n', 'policy/v1beta1\n');
}

const cluster = await Cluster.up(LAB, say);
say('nodes are Ready');

async function rolledOut(): Promise<void> {
  for (const what of workloads) await cluster.kubectl(['rollout', 'status', '--timeout=240s', what, ...inOurs]);
}

async function noneStartedTwice(t: Test): Promise<void> {
  const path = 'jsonpath={.items[*].status.containerStatuses[*].restartCount}';
  t.match(
    await cluster.kubectl(['get', 'pods', ...inOurs, '-o', path]),
    /^0( 0)*$/,
    'no pod of ours was started twice',
  );
}

async function contentFirewall(t: Test): Promise<void> {
  const view = await firewallView(LAB);
  t.comment(formatFirewall(view));
  t.ok(firewallIsContent(view), 'no packet with a foreign source');
}

await t.test('installed as docs/kubernetes.md says', async (t) => {
  // The rules of CRDs are in CEL, which 1.20 does not know.
  await cluster.kubectl(['apply', '--validate=false', '-f', besideSources('deploy/crds')]);
  await cluster.kubectl(['create', 'namespace', CONTROLLER_NAMESPACE]);
  const certs = ['ca.crt', 'tls.crt', 'tls.key'].map(
    (file) => `--from-file=${join(cluster.place.certs('controller'), file)}`,
  );
  await cluster.kubectl(['create', 'secret', 'generic', 'sluice-controller-certs', ...inOurs, ...certs]);
  await cluster.kubectl(['apply', '-f', '-'], chart());
  const service = ['get', 'service', 'sluice-controller', ...inOurs, '-o', 'jsonpath={.spec.clusterIP}'];
  const pods = await readFile(besideSources('test/cluster/manifests.yaml'), 'utf8');
  await cluster.kubectl(['apply', '-f', '-'], pods.replace('CLUSTER_IP', await cluster.kubectl(service)));
  const ours = besideSources('lab/manifests');
  const files = (await readdir(ours)).filter((file) => /^[123]/.test(file)).sort();
  for (const file of files) await cluster.kubectl(['apply', '-f', join(ours, file)]);
  for (const gateway of GATEWAYS) cluster.startGateway(gateway);
  await rolledOut();
  say('controller and nodes are rolled out');
  await cluster.kubectl(['wait', '--for=condition=Programmed', '--timeout=120s', 'eip', '--all']);
  say('every EgressIP is Programmed');
  await cluster.kubectl(['wait', '--for=condition=Ready', '--timeout=120s', 'pods', '-A', '--all']);
  t.comment(await cluster.kubectl(['get', 'pods', '-A', '-o', 'wide']));
  t.comment(await cluster.kubectl(['get', 'eip,eipp,gwp']));
  await noneStartedTwice(t);
});

await t.test('pods leave with the addresses of their namespaces, and are refused what is not theirs', async (t) => {
  const results = await Promise.all(
    families.flatMap(checksOf).map(async (check) => {
      const outcome = await cluster.exec(`${namespaceOf[check.host]}/${check.host}`, check.argv);
      return { check, ...judge(check.expected, outcome) };
    }),
  );
  t.comment(formatResults(results));
  for (const { check, seen, ok } of results)
    t.ok(ok, `IPv${check.family} ${check.who} → ${check.what}: ${explainExpectation(check)}`, { seen });
  await contentFirewall(t);
});

await t.test('a pod that sends as soon as it is started', async (t) => {
  const pods = nodes.flatMap(({ name }) =>
    families.map((family) => ({ name: `new-${name}-${family}`, node: name, family })),
  );
  const items = pods.map(({ name, node, family }) => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: 'reviews' },
    spec: {
      nodeName: node,
      restartPolicy: 'Never',
      containers: [
        {
          name: 'pod',
          image: 'pods:1',
          imagePullPolicy: 'Never',
          command: ['curl', '-sS', '-m', '20', '-w', '%{time_connect}\n', url(family, '/ip')],
        },
      ],
    },
  }));
  await cluster.kubectl(['apply', '-f', '-'], JSON.stringify({ apiVersion: 'v1', kind: 'List', items }));
  const inReviews = ['-n', 'reviews'];
  for (const { name, family } of pods) {
    const phase = ['get', 'pod', name, ...inReviews, '-o', 'jsonpath={.status.phase}'];
    await until(`${name} is done`, 60_000, async () => /Succeeded|Failed/.test(await cluster.kubectl(phase)));
    const [seen = '', took] = (await cluster.kubectl(['logs', name, ...inReviews])).split('\n');
    t.ok(egressOf('reviews/', family).includes(seen), `${name}: connected after ${took} s`, { seen });
  }
  await contentFirewall(t);
});

await t.test('everything is restarted while pods download', async (t) => {
  const bytes = 200_000_000;
  for (const pod of senders) await cluster.exec(pod, ['touch', '/tmp/slow']);
  // Slow as long as that file is there, so that they last as long as it takes.
  const slowly = '{ while [ -e /tmp/slow ]; do head -c 32768; sleep 0.1; done; cat; } | sha256sum';
  const again = (family: Family): string =>
    `while [ -e /tmp/slow ]; do ${asks(family).join(' ')} 2>&1 || date -u '+failed %T'; sleep 0.2; done`;
  /** In every pod, over both families. */
  const everywhere = (script: (family: Family) => string) =>
    Promise.all(
      senders.flatMap((pod) =>
        families.map(async (family) => {
          const { stdout } = await cluster.exec(pod, ['sh', '-c', script(family)], 900_000);
          return { pod, family, said: stdout.trim().split('\n') };
        }),
      ),
    );
  const downloads = everywhere((family) => `curl -sS '${url(family, `/bytes/${bytes}`)}' | ${slowly}`);
  const connections = everywhere(again);
  await sleep(3_000);
  for (const what of workloads) {
    const from = performance.now();
    await cluster.kubectl(['rollout', 'restart', what, ...inOurs]);
    await cluster.kubectl(['rollout', 'status', '--timeout=240s', what, ...inOurs]);
    say(`${what} is another after ${seconds(from)} s`);
  }
  for (const gateway of GATEWAYS) {
    const from = performance.now();
    await cluster.restartGateway(gateway);
    say(`${gateway} is another after ${seconds(from)} s`);
  }
  await sleep(3_000);
  for (const pod of senders) await cluster.exec(pod, ['rm', '/tmp/slow']);
  const whole = `${contentHash(bytes)}  -`;
  for (const { pod, family, said } of await downloads)
    t.same(said, [whole], `${pod}, IPv${family}: the download is whole`);
  for (const { pod, family, said } of await connections) {
    const others = said.filter((line) => !egressOf(pod, family).includes(line));
    t.same(others, [], `${pod}, IPv${family}: ${said.length} connections that began meanwhile`);
  }
  await contentFirewall(t);
  await noneStartedTwice(t);
});

await t.test('nodes have their certificates out of a Secret', async (t) => {
  const files = nodes.flatMap(({ name }) =>
    ['crt', 'key'].map((end) => `--from-file=${name}.${end}=${join(cluster.place.certs(name), `tls.${end}`)}`),
  );
  const ca = `--from-file=${join(cluster.place.certs('controller'), 'ca.crt')}`;
  await cluster.kubectl(['create', 'secret', 'generic', 'sluice-node-certs', ...inOurs, ca, ...files]);
  await cluster.kubectl(['apply', '-f', '-'], chart({ node: { certs: { secret: 'sluice-node-certs' } } }));
  await rolledOut();
  for (const pod of senders) {
    for (const family of families) {
      const { stdout } = await cluster.exec(pod, asks(family));
      t.ok(egressOf(pod, family).includes(stdout.trim()), `${pod}, IPv${family}`, { stdout });
    }
  }
  await noneStartedTwice(t);
  await contentFirewall(t);
});

await t.test('it is removed', async (t) => {
  await cluster.kubectl(['apply', '-f', '-'], chart({ node: { cleanup: true } }));
  await rolledOut();
  for (const { name } of nodes) {
    const there = await cluster.on(
      name,
      'nft list tables; for f in -4 -6; do ip $f rule; ip $f route show table all proto 177; done; ip -o link; iptables-save; ip6tables-save',
    );
    const ours = there.split('\n').filter((line) => /sluice_node|sluice-vx|lookup 78|table 78|NFQUEUE/.test(line));
    t.same(ours, [], `${name} has nothing of ours`);
  }
  t.equal((await cluster.exec('billing/pay-1', asks(4))).code, 28, 'what leaves now does not pass the firewall');
  const foreign = [`${nodes[0]?.addresses[0]} → ${serverAddresses.web[4]}`];
  t.same((await firewallView(LAB)).foreign, foreign, 'which sees the address of the node');
  const objects = ['cgr,nsgr,svcgr,exsvc', '-A', '--all', '--timeout=60s'];
  await cluster.kubectl(['delete', ...objects]);
  await cluster.kubectl(['delete', '--timeout=120s', '-f', besideSources('deploy/crds')]);
  await cluster.kubectl(['delete', '--timeout=120s', '--ignore-not-found', '-f', '-'], chart());
  const left = await cluster.kubectl([
    'get',
    'namespaces,clusterroles,clusterrolebindings,priorityclasses,crds',
    '-o',
    'name',
  ]);
  t.notMatch(left, /sluice/);
});
