/**
 * What rules say of the gateways (plan/programmed.ts): a change shows on the rules that it changed, and on no other, until
 * the gateways have it in force.
 */
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers, type Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';

const NOW = Date.parse('2026-06-01T12:00:00Z');

function object(kind: string, name: string, rest: object): AnyObject {
  const [own = '', namespace] = name.split('/').reverse();
  const metadata = { name: own, ...(namespace && { namespace }), creationTimestamp: '2026-01-01T00:00:00Z' };
  const apiVersion = ['Namespace', 'Pod', 'Node'].includes(kind) ? 'v1' : 'sluice.dev/v1alpha1';
  const parsed = parseObject({ apiVersion, kind, metadata, ...rest });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
  return parsed.value;
}
const pod = (name: string, ip: string, labels = {}): AnyObject => {
  const made = object('Pod', name, { spec: { nodeName: 'n' }, status: { phase: 'Running', podIPs: [{ ip }] } });
  return { ...made, metadata: { ...made.metadata, uid: name, labels } } as AnyObject;
};
const rule = (name: string, spec: object = {}) =>
  object('NamespaceEgressRule', name, { spec: { action: 'accept', externalServices: ['web'], ...spec } });
const trusted = ((made: AnyObject) => ({
  ...made,
  metadata: { ...made.metadata, labels: { 'sluice.dev/trusted-services': 'true' } },
}))(object('Namespace', 'a', {})) as AnyObject;
const web = (namespace: string, address: string) =>
  object('ExternalService', `${namespace}/web`, { spec: { addresses: [address] } });
const clusterRule = (priority: number) =>
  object('ClusterEgressRule', 'c', { spec: { action: 'drop', externalServices: ['a/web'], priority } });

const world = [
  object('Node', 'n', { spec: { podCIDRs: ['10.1.0.0/24'] }, status: { addresses: [] } }),
  trusted,
  object('Namespace', 'b', {}),
  pod('a/one', '10.1.0.1', { app: 'x' }),
  pod('b/one', '10.1.0.2'),
  web('a', '198.51.100.80'),
  web('b', '198.51.100.80'),
  rule('a/r'),
  rule('a/other', { action: 'accept-decisively', externalServices: ['*'] }),
  rule('b/r'),
  object('GatewayPool', 'p', {
    spec: {
      namespaceSelector: {},
      gateways: [
        { name: 'g1', internalAddress: '10.0.0.1' },
        { name: 'g2', internalAddress: '10.0.0.2' },
      ],
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: ['10.0.0.64'] },
    },
  }),
];

const snapshotOf = (objects: readonly AnyObject[]) => new Map(objects.map((o) => [objectKey(o), o]));
const without = (key: string): AnyObject[] => world.filter((o) => objectKey(o) !== key);
const instead = (other: AnyObject): AnyObject[] => [...without(objectKey(other)), other];
/** `g2` may be away. */
function peersWith(result: PlanResult, away = false): Peers {
  const inForce = result.pools.get('p') as GatewayPlan;
  const peer = (connected: boolean) => ({ connected, addresses: [], generation: 1, inForce });
  return {
    gateways: new Map([
      ['g1', peer(true)],
      ['g2', peer(!away)],
    ]),
    nodes: new Map(),
  };
}
/** Rules that are not in force everywhere, with the reason. */
const behind = ({ statuses }: PlanResult): Record<string, string> =>
  Object.fromEntries(
    [...statuses].flatMap(([key, { conditions }]) => {
      const found = conditions.find(({ type }) => type === 'Programmed');
      return key.includes('EgressRule/') && found?.status === 'False'
        ? [[key, `${found.reason}: ${found.message}`]]
        : [];
    }),
  );

t.test('rules: programmed where the gateways have what they say', async (t) => {
  const older = 'GatewaysBehind: g1 has an older plan; g2 has an older plan';
  const rows: [name: string, objects: AnyObject[], expected: Record<string, string>][] = [
    ['nothing', world, {}],
    ['another pod', [...world, pod('a/two', '10.1.0.3', { app: 'x' })], {}],
    ['a rule that came', [...world, rule('b/new')], { 'NamespaceEgressRule/b/new': older }],
    ['another action', instead(rule('a/r', { action: 'drop' })), { 'NamespaceEgressRule/a/r': older }],
    ['other destinations', instead(web('b', '192.0.2.1')), { 'NamespaceEgressRule/b/r': older }],
    [
      'destinations that a rule of the cluster names too',
      [...instead(web('a', '192.0.2.1')), clusterRule(5)],
      { 'NamespaceEgressRule/a/r': older, 'ClusterEgressRule/c': older },
    ],
    [
      'a rule that leaves pods',
      instead(rule('a/r', { podSelector: { matchLabels: { none: 'x' } } })),
      {
        'NamespaceEgressRule/a/r': older,
      },
    ],
    [
      'a rule out of its schedule',
      instead(rule('b/r', { schedule: [{ from: '01:00', to: '02:00', timezone: 'UTC' }] })),
      {
        'NamespaceEgressRule/b/r': older,
      },
    ],
    ['a rule that is gone', without('NamespaceEgressRule/b/r'), {}],
  ];
  for (const [name, objects, expected] of rows) {
    for (const cached of [true, false]) {
      const cache = cached ? new PlanCache() : undefined;
      const before = plan(snapshotOf(world), emptyMemory(), noPeers(), NOW, new Map(), cache);
      const peers = peersWith(before);
      const after = plan(snapshotOf(objects), before.memory, peers, NOW, new Map(), cache);
      t.same(behind(after), expected, `${name}, ${cached ? 'with' : 'without'} what was kept`);
      const done = plan(snapshotOf(objects), after.memory, peersWith(after), NOW, new Map(), cache);
      t.same(behind(done), {}, `${name}: until the gateways have it`);
    }
  }
});

t.test('rules: gateways that are away, refuse, or are not known', async (t) => {
  const before = plan(snapshotOf(world), emptyMemory(), noPeers(), NOW);
  t.same(Object.keys(behind(before)).length, 3, 'before anybody has a plan no rule is programmed');
  const away = peersWith(before, true);
  t.same(behind(plan(snapshotOf(world), before.memory, away, NOW)), {}, 'who is away keeps what it had');
  const changed = [...world, rule('b/new')];
  const after = plan(snapshotOf(changed), before.memory, away, NOW);
  t.same(behind(after), {
    'NamespaceEgressRule/b/new': 'GatewaysBehind: g1 has an older plan; g2 is not connected',
  });
  t.match(
    after.statuses.get('GatewayPool/p')?.conditions.find(({ type }) => type === 'Programmed'),
    { status: 'False', message: 'g1 has an older plan; g2 is not connected' },
    'of the pool all is said',
  );
  const [g1] = [...away.gateways.values()];
  const refused: Peers = { ...away, gateways: new Map([['g1', { ...g1, error: 'no' } as never]]) };
  t.same(
    behind(plan(snapshotOf(changed), before.memory, refused, NOW))['NamespaceEgressRule/b/new'],
    'GatewaysBehind: g1: no; g2 is not connected',
  );
});
