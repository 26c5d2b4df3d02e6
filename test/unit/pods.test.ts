/** Which pods have which addresses, in each state a pod goes through; and what a GatewayPool finds of the cluster by itself. */
import t from 'tap';
import { parseAllDocuments } from 'yaml';
import {
  type AnyObject,
  type EndpointSlice,
  type Node,
  objectKey,
  type Pod,
  parseObject,
  type Service,
} from '../../api/kinds.ts';
import { clusterRanges, NODE_PREFIXES_MAX } from '../../controller/plan/cluster-ranges.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import type { NamespaceObjects } from '../../controller/plan/objects.ts';
import { noPeers, type Peers } from '../../controller/plan/peers.ts';
import type { Warning } from '../../controller/plan/plan.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { countedPods, PodIndex } from '../../controller/plan/pods.ts';
import { smallCluster } from './small-cluster.ts';

type Fields = Record<string, unknown>;

function parsed(input: Fields): AnyObject {
  const result = parseObject(input);
  if (!result.ok) throw new Error(JSON.stringify(result.errors));
  return result.value;
}
const documents = (text: string): unknown[] => parseAllDocuments(text).map((document) => document.toJS());
const second = (n: number): string => new Date(Date.UTC(2026, 0, 1) + n * 1000).toISOString().replace('.000Z', 'Z');

interface Made {
  ips?: string[];
  ip?: string;
  created?: number;
  deleted?: boolean;
  phase?: string;
  host?: boolean;
  node?: string | null;
  uid?: string;
}
function pod(name: string, { ips, ip, created = 1, deleted, phase, host, node, uid }: Made): Pod {
  const at = { creationTimestamp: second(created), ...(deleted && { deletionTimestamp: second(100) }) };
  return parsed({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: 'a', uid: uid ?? `uid-${name}`, ...at },
    spec: { ...(node !== null && { nodeName: node ?? 'n' }), ...(host && { hostNetwork: true }) },
    status: {
      phase: phase ?? 'Running',
      ...(ip && { podIP: ip }),
      ...(ips && { podIPs: ips.map((each) => ({ ip: each })) }),
    },
  }) as Pod;
}

t.test('which pods count, and whose an address is', async (t) => {
  const [four, six] = ['10.1.0.1', 'fd01::1'];
  const both = [four, six];
  const rows: [title: string, pods: Pod[], counted: Record<string, string[]>, warned?: RegExp][] = [
    ['it runs', [pod('p', { ips: both })], { p: both }],
    ['one family', [pod('p', { ips: [six] })], { p: [six] }],
    ['only podIP', [pod('p', { ip: four })], { p: [four] }],
    ['written otherwise, and twice', [pod('p', { ips: ['FD01:0::1', 'fd01::1'] })], { p: [six] }],
    ['its init containers run', [pod('p', { ips: both, phase: 'Pending' })], { p: both }],
    ['no address yet', [pod('p', { ips: [], phase: 'Pending' })], {}],
    ['no node yet', [pod('p', { ips: both, node: null })], {}],
    ['on the node’s network', [pod('p', { ips: ['10.0.0.21'], host: true })], {}],
    ['being deleted: it sends until it ends', [pod('p', { ips: both, deleted: true })], { p: both }],
    ['finished', [pod('p', { ips: both, phase: 'Succeeded' })], {}],
    ['failed, or evicted', [pod('p', { ips: both, phase: 'Failed' })], {}],
    ['deleted and finished', [pod('p', { ips: both, phase: 'Failed', deleted: true })], {}],
    [
      'the address of a finished one is free',
      [pod('new', { ips: both }), pod('old', { ips: both, phase: 'Succeeded', created: 9 })],
      { new: both },
    ],
    [
      'the newer has it',
      [pod('old', { ips: both }), pod('new', { ips: both, created: 2 })],
      { new: both },
      /^Pod\/a\/old claims an address of Pod\/a\/new, which is newer; it is ignored$/,
    ],
    [
      'one of two is enough to lose both',
      [pod('old', { ips: both }), pod('new', { ips: [four, 'fd01::2'], created: 2 })],
      { new: [four, 'fd01::2'] },
      /Pod\/a\/old claims an address/,
    ],
    [
      'of two of one second that is not being deleted',
      [pod('a', { ips: both }), pod('b', { ips: both, deleted: true })],
      { a: both },
      /^Pod\/a\/b claims an address of Pod\/a\/a, and is being deleted; it is ignored$/,
    ],
    [
      'one that waited for a node for long, and was given that of a younger which is being deleted',
      [pod('waited', { ips: both, created: 1 }), pod('gone', { ips: both, created: 50, deleted: true })],
      { waited: both },
      /Pod\/a\/gone claims .* and is being deleted/,
    ],
    [
      'two that are being deleted',
      [pod('old', { ips: both, deleted: true }), pod('new', { ips: both, created: 2, deleted: true })],
      { new: both },
      /Pod\/a\/old claims .* which is newer/,
    ],
    [
      'who is on the node’s network claims nothing',
      [pod('p', { ips: both }), pod('host', { ips: both, host: true, created: 2 })],
      { p: both },
    ],
    [
      'a manifest that was copied',
      [pod('p', { ips: [four], uid: 'u' }), pod('copy', { ips: ['10.1.0.2'], uid: 'u', created: 2 })],
      { copy: ['10.1.0.2'] },
      /Pod\/a\/p has the uid of Pod\/a\/copy/,
    ],
  ];
  for (const [title, pods, expected, warned] of rows) {
    for (const order of [pods, pods.toReversed()]) {
      const warnings: Warning[] = [];
      const counted = countedPods(order, warnings);
      t.same(
        Object.fromEntries(counted.map(({ pod: { metadata }, addresses }) => [metadata.name, addresses])),
        expected,
        title,
      );
      const said = warnings.map(({ object, message }) => `${object} ${message}`);
      t.equal(said.length, warned === undefined ? 0 : 1, `${title}: ${said.join()}`);
      if (warned !== undefined) t.match(said[0], warned, title);
    }
    // From one state to the next, whatever was before.
    const index = new PodIndex();
    const look = (list: Pod[]) => {
      const place = { name: 'a', pods: list } as unknown as NamespaceObjects;
      index.look(new Map([['a', place]]), new Set(['a']), []);
      return Object.fromEntries(
        index.of('a').counted.map(({ pod: { metadata }, addresses }) => [metadata.name, addresses]),
      );
    };
    look([pod('p', { ips: ['10.1.0.77'] }), pod('gone', { ips: both, created: 99 })]);
    look(pods.slice(0, 1));
    t.same(look(pods), expected, `${title}, step by step`);
  }
});

t.test('a pod whose addresses change is let out with the new ones only when its gateway has them', async (t) => {
  const text = `${smallCluster('')}
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIPPool
metadata: { name: d }
spec: { gatewayPool: p, ranges: [203.0.113.96/27, "2001:db8::/64"], namespaceSelector: {} }
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIP
metadata: { name: e }
spec: { pool: d, addresses: [203.0.113.101, "2001:db8::101"], namespaces: [a] }`;
  const base = documents(text).map((each) => parsed(each as Fields));
  const with_ = (...pods: Pod[]) =>
    new Map([...base.filter(({ kind }) => kind !== 'Pod'), ...pods].map((object) => [objectKey(object), object]));
  const gatewayWith = (result: PlanResult): Peers =>
    ({
      gateways: new Map([['g1', { connected: true, generation: 1, addresses: [], inForce: result.pools.get('p') }]]),
      nodes: new Map(),
    }) as unknown as Peers;
  const onNode = (result: PlanResult) => result.nodes.get('n')?.workloads ?? {};

  const before = with_(pod('one', { ips: ['10.1.0.1', 'fd01::1'] }));
  const first = plan(before, emptyMemory(), noPeers(), 0);
  t.same(onNode(first), {}, 'nobody has it yet');
  const second = plan(before, first.memory, gatewayWith(first), 0);
  t.same(onNode(second)['uid-one']?.addresses, ['10.1.0.1', 'fd01::1']);

  // Its sandbox was made anew.
  const after = with_(pod('one', { ips: ['10.1.0.9', 'fd01::9'] }));
  const third = plan(after, second.memory, gatewayWith(second), 0);
  t.same(onNode(third), {}, 'the old addresses may be another’s at once, the new ones are not known to its gateway');
  t.same(third.pools.get('p')?.workloads['uid-one']?.addresses, ['10.1.0.9', 'fd01::9']);
  const fourth = plan(after, third.memory, gatewayWith(third), 0);
  t.same(onNode(fourth)['uid-one']?.addresses, ['10.1.0.9', 'fd01::9']);

  // It ends, and a new one has its addresses in the same moment.
  const reused = with_(
    pod('one', { ips: ['10.1.0.9', 'fd01::9'], phase: 'Succeeded', deleted: true }),
    pod('two', { ips: ['10.1.0.9', 'fd01::9'], created: 2 }),
  );
  const fifth = plan(reused, fourth.memory, gatewayWith(fourth), 0);
  t.same(onNode(fifth), {}, 'the gateway has them as another pod’s');
  t.same(Object.keys(onNode(plan(reused, fifth.memory, gatewayWith(fifth), 0))), ['uid-two']);
});

const node = (name: string, podCIDRs: string[], ...addresses: string[]): Node =>
  parsed({
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name },
    spec: { podCIDRs },
    status: {
      addresses: [
        { type: 'Hostname', address: name },
        ...addresses.map((address) => ({ type: 'InternalIP', address })),
        { type: 'ExternalIP', address: '192.0.2.1' },
      ],
    },
  }) as Node;
const service = (name: string, ...clusterIPs: string[]): Service =>
  parsed({ apiVersion: 'v1', kind: 'Service', metadata: { name, namespace: 'a' }, spec: { clusterIPs } }) as Service;
const apiServers = (...addresses: string[]): EndpointSlice =>
  parsed({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'kubernetes', namespace: 'default', labels: { 'kubernetes.io/service-name': 'kubernetes' } },
    addressType: 'IPv4',
    endpoints: [{ addresses }],
  }) as EndpointSlice;

t.test('what is found of the cluster', async (t) => {
  const rows: [title: string, nodes: Node[], services: Service[], slices: EndpointSlice[], prefixes: string[]][] = [
    ['nothing', [], [], [], []],
    [
      'pod ranges that adjoin are one; addresses of nodes inside, not outside',
      [
        node('n1', ['10.244.0.0/24', 'fd00:244::/64'], '10.0.0.21', 'fd00:10::21'),
        node('n2', ['10.244.1.0/24'], '10.0.0.22'),
      ],
      [],
      [],
      ['10.0.0.21/32', '10.0.0.22/32', '10.244.0.0/23', 'fd00:10::21/128', 'fd00:244::/64'],
    ],
    ['one Service', [], [service('one', '10.96.0.1')], [], ['10.96.0.1/32']],
    [
      'the smallest prefix that holds all Services',
      [],
      [service('a', '10.96.0.1', 'fd00:96::1'), service('b', '10.96.0.10'), service('c', '10.99.3.4', 'fd00:96::ffff')],
      [],
      ['10.96.0.0/14', 'fd00:96::/112'],
    ],
    [
      'two ranges of Services',
      [],
      [service('a', '10.96.0.1'), service('b', '172.20.0.1')],
      [],
      ['10.96.0.1/32', '172.20.0.1/32'],
    ],
    ['headless, or none', [], [service('a', 'None'), service('b'), service('c', '')], [], []],
    ['API servers that are no Nodes', [], [], [apiServers('10.0.9.1', '10.0.9.2')], ['10.0.9.1/32', '10.0.9.2/32']],
    [
      'what overlaps is said once',
      [node('n', ['10.0.0.0/16'], '10.0.0.21')],
      [service('a', '10.0.1.1')],
      [],
      ['10.0.0.0/16'],
    ],
  ];
  for (const [title, nodes, services, slices, prefixes] of rows)
    t.same(clusterRanges(nodes, services, slices).prefixes, prefixes, title);

  // Never beyond the real range, however Services come: 10.96.0.0/12 has these neighbours.
  for (const edge of ['10.96.0.1', '10.111.255.254']) {
    const { prefixes } = clusterRanges([], [service('a', edge), service('b', '10.100.7.7')], []);
    t.ok(
      prefixes.every((prefix) => Number(prefix.split('/')[1]) >= 12),
      prefixes.join(),
    );
  }
  const apart = Array.from({ length: NODE_PREFIXES_MAX + 1 }, (_, n) =>
    node(`n${n}`, [], `10.${n >> 7}.${(n & 127) * 2}.1`),
  );
  const many = clusterRanges(apart, [], []);
  t.same(
    [many.prefixes, many.nodesLeftOut, many.unranged.length],
    [[], true, apart.length],
    'too many to tell everybody',
  );
});

t.test('a pool that lists its clusterCIDRs keeps to them; else what was found is in force, and said', async (t) => {
  const text = `${smallCluster('')}
---
{ apiVersion: v1, kind: Service, metadata: { name: kubernetes, namespace: default }, spec: { clusterIPs: [10.96.0.1] } }`;
  const found = ['10.0.0.21/32', '10.1.0.0/24', '10.96.0.1/32'];
  const rows: [title: string, listed: string[] | undefined, inForce: string[]][] = [
    ['absent', undefined, found],
    ['none', [], []],
    ['some', ['10.0.0.0/8'], ['10.0.0.0/8']],
  ];
  for (const [title, listed, inForce] of rows) {
    const objects = documents(text).map((each) => {
      const object = structuredClone(each) as Fields & { spec: Fields };
      if (object.kind === 'GatewayPool' && listed !== undefined) object.spec.clusterCIDRs = listed;
      return parsed(object);
    });
    const result = plan(new Map(objects.map((object) => [objectKey(object), object])), emptyMemory(), noPeers(), 0);
    t.match(result.pools.get('p')?.settings, { pool: { clusterCIDRs: inForce } }, `${title}: gateways`);
    t.same(result.nodes.get('n')?.settings.node?.clusterCIDRs, inForce, `${title}: nodes`);
    const { clusterCIDRs, clusterCIDRsFound } = (result.statuses.get('GatewayPool/p') ?? {}) as unknown as Fields;
    t.same(clusterCIDRs, listed === undefined ? found : undefined, `${title}: status`);
    t.equal(clusterCIDRsFound, listed === undefined ? '1 of pods, 1 of Services, 1 of nodes' : undefined);
  }
  const bare = documents(text).filter((each) => !['Node', 'Service'].includes(String((each as Fields).kind)));
  const none = plan(
    new Map(bare.map((each) => parsed(each as Fields)).map((o) => [objectKey(o), o])),
    emptyMemory(),
    noPeers(),
    0,
  );
  t.match(none.statuses.get('GatewayPool/p'), {
    clusterCIDRsFound: /nothing is known of the cluster: traffic inside it is steered/,
  });
});
