/**
 * The planner with what it kept from the plans before, over random sequences of changes: the result is the one that it
 * gives without, and what did not change is the same object.
 */
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import type { GatewayPlan, NodePlan } from '../../api/plan.ts';
import { diffPlan, type PlanDelta, sameJson } from '../../api/plan-delta.ts';
import { differenceOf } from '../../api/plan-difference.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import type { Peer, Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import type { KnownLists } from '../../policy/external-service.ts';

t.setTimeout(570_000);
const NOW = Date.parse('2026-06-01T00:00:00Z');
const NAMESPACES = ['a', 'b', 'sluice-system'] as const;
const GATEWAYS = ['g1', 'g2'] as const;
const CREATED = ['2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z'] as const;

/** One of each place may be there, in one of some forms; the same place and form is the same object. */
const places: Record<string, (form: number) => object | undefined> = {};
const place = (name: string, ...forms: object[]): void => {
  places[name] = (form) => forms[form % (forms.length + 1)];
};

for (const name of NAMESPACES) {
  const meta = (more: object = {}) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name, ...more } });
  place(
    `namespace ${name}`,
    meta(),
    meta({ labels: { 'sluice.dev/mode': 'Audit', team: 'x' } }),
    meta({ labels: { 'sluice.dev/trusted-services': 'true' } }),
  );
  place(`egress ${name}`, ...egressIPs(name));
  for (const service of ['web', 'feed']) {
    const spec = { metadata: { name: service, namespace: name }, kind: 'ExternalService' };
    place(
      `external ${name}/${service}`,
      { ...spec, spec: { addresses: ['198.51.100.80'] } },
      { ...spec, spec: { addresses: ['198.51.100.0/24'], ports: [{ name: 'x', protocol: 'TCP', port: '443' }] } },
      {
        ...spec,
        spec: {
          addresses: ['198.51.100.80'],
          ports: [{ name: 'x', protocol: 'TCP', port: '443', bandwidth: '9Mbit' }],
        },
      },
      { ...spec, spec: { addressesFrom: [{ configMapRef: { name: 'list' }, format: 'Text' }] } },
      { ...spec, spec: { addresses: ['198.51.100.80', '**.example.com'] } },
    );
  }
  for (const n of [1, 2, 3]) place(`pod ${name}/${n}`, ...pods(name, n));
  place(`slice ${name}`, slice(name, ['10.1.0.1', '10.1.0.2']), slice(name, ['10.1.0.2', '10.1.0.3', '192.0.2.1']));
  for (const n of [1, 2]) {
    place(`rule ${name}/${n}`, ...rules('NamespaceEgressRule', name, n));
    place(`app ${name}/${n}`, ...rules('ServiceEgressRule', name, n));
  }
}
for (const n of [1, 2]) place(`cluster ${n}`, ...rules('ClusterEgressRule', undefined, n));
for (const n of [1, 2]) {
  const node = (cidr: string) => ({
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: `n${n}` },
    spec: { podCIDRs: [cidr] },
    status: { addresses: [{ type: 'InternalIP', address: `10.0.0.2${n}` }] },
  });
  place(`node ${n}`, node(`10.1.${n}.0/24`), node(`10.2.${n}.0/24`));
}
place('service', {
  apiVersion: 'v1',
  kind: 'Service',
  metadata: { name: 's', namespace: 'a' },
  spec: { clusterIPs: ['192.0.2.9'] },
});
place(
  'pool p',
  gatewayPool('p', {}),
  gatewayPool('p', { unassigned: 'Drop', mode: 'Audit', dns: { resolvers: ['198.51.100.53'] } }, ['g1']),
);
place('pool q', gatewayPool('q', { namespaceSelector: { matchLabels: { team: 'x' } } }, ['g3']));
const draw = (ranges: string[], quarantineSeconds = 60) => ({
  kind: 'EgressIPPool',
  metadata: { name: 'd' },
  spec: { gatewayPool: 'p', ranges, namespaceSelector: {}, quarantineSeconds },
});
place('draw', draw(['203.0.113.1-203.0.113.4']), draw(['203.0.113.1-203.0.113.9', '2001:db8::1-2001:db8::9']));

function egressIPs(name: string): object[] {
  const egressIP = (spec: object) => ({ kind: 'EgressIP', metadata: { name }, spec: { pool: 'd', ...spec } });
  return [
    egressIP({ count: 1, namespaces: [name] }),
    egressIP({ count: 2, namespaceSelector: {}, priority: 5, bandwidth: { egress: '7Mbit' } }),
    egressIP({ addresses: ['203.0.113.2'], namespaces: [name], podSelector: { matchLabels: { app: 'x' } } }),
    egressIP({ count: 2, namespaceSelector: {}, spread: 'Connection', maxConnections: 9 }),
    egressIP({ count: 1, namespaceSelector: {}, destinations: ['198.51.100.0/24', 'a/web', 'b/feed'] }),
    egressIP({
      count: 2,
      namespaces: [name],
      podSelector: { matchLabels: { app: 'z' } },
      destinations: ['198.51.100.80/32', '2001:db8:5::/48'],
      spread: 'Connection',
    }),
    egressIP({ count: 2, namespaceSelector: {}, allocation: 'PerNamespace', bandwidth: { egress: '7Mbit' } }),
    egressIP({ count: 3, namespaceSelector: {}, allocation: 'PerPod' }),
    egressIP({
      addresses: ['203.0.113.3', '203.0.113.4'],
      namespaces: [name],
      allocation: 'PerPod',
      maxConnections: 9,
    }),
    egressIP({ count: 1, namespaceSelector: {}, allocation: 'PerPod', destinations: ['198.51.100.0/24', 'a/web'] }),
  ];
}

function pods(namespace: string, n: number): object[] {
  const pod = (ip: string, more: { app?: string; phase?: string; uid?: string; hostNetwork?: boolean } = {}) => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: `p${n}`,
      namespace,
      uid: more.uid ?? `${namespace}-${n}-${ip}`,
      labels: { app: more.app ?? 'x', [`only-${n}`]: 'y' },
      creationTimestamp: CREATED[n % 2],
    },
    spec: { nodeName: `n${n}`, ...(more.hostNetwork && { hostNetwork: true }) },
    status: { phase: more.phase ?? 'Running', podIPs: [{ ip }, { ip: `fd01::${ip.split('.').at(-1)}` }] },
  });
  // Addresses and uids that several claim.
  return [
    pod(`10.1.0.${n}`),
    pod(`10.1.0.${n}`, { app: 'z' }),
    pod('10.1.0.1', { uid: `one-${n % 2}` }),
    pod(`10.1.0.${n}`, { phase: 'Succeeded' }),
    pod('10.0.0.21', { hostNetwork: true }),
  ];
}

function slice(namespace: string, addresses: string[]): object {
  return {
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 's', namespace, labels: { 'kubernetes.io/service-name': 'web' } },
    addressType: 'IPv4',
    endpoints: addresses.map((address, at) => ({ addresses: [address], conditions: { ready: at === 0 } })),
  };
}

function rules(kind: string, namespace: string | undefined, n: number): object[] {
  const rule = (spec: object) => ({
    kind,
    metadata: { name: `r${n}`, ...(namespace && { namespace }), creationTimestamp: CREATED[n % 2] },
    spec: {
      action: 'accept',
      externalServices: ['web'],
      ...(kind === 'ServiceEgressRule' && { service: 'web' }),
      ...(kind === 'ClusterEgressRule' && { namespaceSelector: n === 1 ? {} : { matchLabels: { team: 'x' } } }),
      ...spec,
    },
  });
  return [
    rule({ connectionsPerSecond: 5, ...(n === 1 && { bandwidth: '5Mbit' }) }),
    rule({ action: 'drop', externalServices: ['feed', ...(namespace === undefined ? ['a/web'] : [])] }),
    rule({ podSelector: { matchLabels: { app: 'x' } }, schedule: [{ from: '00:01', to: '12:00', timezone: 'UTC' }] }),
    rule({ podSelector: { matchExpressions: [{ key: 'only-1', operator: 'Exists' }] }, serviceAccounts: ['default'] }),
    rule({ action: 'accept-decisively', redirect: { address: n === 1 ? '10.1.0.1' : '203.0.113.2' } }),
    rule({ action: 'drop', externalServices: ['feed', 'web'], maxConnections: undefined }),
    rule({ action: 'accept-decisively', webhook: { url: 'https://hook.example.test/' } }),
  ];
}

function gatewayPool(name: string, spec: object, gateways: readonly string[] = GATEWAYS): object {
  return {
    kind: 'GatewayPool',
    metadata: { name },
    spec: {
      namespaceSelector: {},
      gateways: gateways.map((gateway) => ({ name: gateway, internalAddress: `10.0.0.3${gateway.slice(1)}` })),
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: [`10.0.${name === 'p' ? 0 : 9}.64-10.0.${name === 'p' ? 0 : 9}.66`] },
      steering: { mode: 'VXLAN', vni: name === 'p' ? 1 : 2 },
      ...spec,
    },
  };
}

const objects = new Map<string, AnyObject | undefined>();
function objectAt(name: string, form: number): AnyObject | undefined {
  const key = `${name} ${form}`;
  if (!objects.has(key)) {
    const input = places[name]?.(form);
    const parsed = input && parseObject({ apiVersion: 'sluice.dev/v1alpha1', ...input });
    if (parsed && !parsed.ok) throw new Error(JSON.stringify(parsed.errors));
    const value = parsed?.value;
    const age = { creationTimestamp: CREATED[0], ...value?.metadata };
    objects.set(key, value && ({ ...value, metadata: age } as AnyObject));
  }
  return objects.get(key);
}

const names = Object.keys(places);
const steps = fc.record({
  /** What is there at first. */
  start: fc.array(fc.nat(10), { minLength: names.length, maxLength: names.length }),
  steps: fc.array(
    fc.record({
      edits: fc.array(fc.tuple(fc.constantFrom(...names), fc.nat(10)), { maxLength: 3 }),
      seconds: fc.constantFrom(0, 0, 30, 90, 50_000),
      acknowledge: fc.subarray([...GATEWAYS]),
      list: fc.nat(2),
      order: fc.integer(),
      restart: fc.nat(7),
    }),
    { minLength: 3, maxLength: 9 },
  ),
});

const lists: KnownLists[] = [
  new Map(),
  new Map([['a/feed', [{ addresses: ['192.0.2.0/24'] }]]]),
  new Map([
    ['a/feed', [{ addresses: ['192.0.2.0/24', '198.51.100.7/32'], problem: { reason: 'Old', message: 'old' } }]],
    ['sluice-system/feed', [{ addresses: ['192.0.2.7/32'] }]],
  ]),
];

const asData = ({ pools, nodes, statuses, gateways, served, webhooks, binding, ...rest }: PlanResult): unknown => ({
  ...rest,
  pools: Object.fromEntries(pools),
  nodes: Object.fromEntries(nodes),
  statuses: Object.fromEntries(statuses),
  gateways: Object.fromEntries(gateways),
  served: Object.fromEntries([...served].map(([pool, counts]) => [pool, Object.fromEntries(counts)])),
  webhooks: Object.fromEntries(webhooks),
  binding: {
    ...binding,
    groupOf: Object.fromEntries(binding.groupOf),
    servicesOf: Object.fromEntries(binding.servicesOf),
  },
});

const sorted = (delta: PlanDelta): PlanDelta => ({
  ...delta,
  delete: Object.fromEntries(Object.entries(delta.delete).map(([name, keys]) => [name, keys.toSorted()])),
});

/** What is equal and not the same, as paths. */
function copies(before: object, now: object, path: string): string[] {
  return Object.entries(now).flatMap(([name, collection]: [string, Record<string, unknown>]) => {
    const was = (before as Record<string, Record<string, unknown>>)[name];
    if (was === undefined || was === collection) return [];
    if (sameJson(was, collection)) return [`${path} ${name}`];
    return Object.keys(collection).flatMap((key) =>
      was[key] !== collection[key] && sameJson(was[key], collection[key]) ? [`${path} ${name} ${key}`] : [],
    );
  });
}

function copiesIn<P extends GatewayPlan | NodePlan>(
  before: ReadonlyMap<string, P>,
  now: ReadonlyMap<string, P>,
): string[] {
  return [...now].flatMap(([name, is]) => {
    const was = before.get(name);
    if (was === undefined || was === is) return [];
    return sameJson(was, is) ? [name] : copies(was, is, name);
  });
}

t.test('planner: what it keeps changes nothing but the identity of what stays', async (t) => {
  const seen = {
    owned: 0,
    gone: 0,
    without: 0,
    workloads: 0,
    limits: 0,
    ports: 0,
    egressIPs: 0,
    forbidden: 0,
    held: 0,
    kept: 0,
  };
  fc.assert(
    fc.property(steps, ({ start, steps: list }) => {
      const forms = new Map(names.map((name, at) => [name, start[at] ?? 0]));
      const cache = new PlanCache();
      const gateways = new Map<string, Peer<GatewayPlan>>();
      let memory = emptyMemory();
      let now = NOW;
      let last: PlanResult | undefined;
      for (const { edits, seconds, acknowledge, list: known, order, restart } of list) {
        for (const [name, form] of edits) forms.set(name, form);
        now += seconds * 1000;
        for (const name of acknowledge) {
          const inForce = last?.pools.get(last.gateways.get(name) ?? '');
          if (inForce) gateways.set(name, { connected: true, addresses: ['10.0.0.77'], generation: 1, inForce });
        }
        if (restart === 0) memory = JSON.parse(JSON.stringify(memory));
        const there = [...forms].flatMap(([name, form]) => objectAt(name, form) ?? []);
        if (order % 2 === 0)
          there.sort(
            (a, b) => ((a.metadata.name.charCodeAt(0) * order) % 7) - ((b.metadata.name.charCodeAt(0) * order) % 7),
          );
        const snapshot = new Map(there.map((object) => [objectKey(object), object]));
        const peers: Peers = { gateways, nodes: new Map() };
        const fresh = asData(plan(snapshot, memory, peers, now, lists[known]));
        const result = plan(snapshot, memory, peers, now, lists[known], cache);
        if (!sameJson(asData(result), fresh)) {
          t.same(asData(result), fresh);
          throw new Error('the cache changes the result');
        }
        if (last !== undefined) {
          for (const [name, is] of result.pools) {
            const was = last.pools.get(name);
            if (was === undefined || was === is) continue;
            // Of the same values, as the stream sends it.
            if (!sameJson(sorted(differenceOf(was, is).delta), sorted(diffPlan(was, is))))
              throw new Error('difference');
          }
          const found = [...copiesIn(last.pools, result.pools), ...copiesIn(last.nodes, result.nodes)];
          if (found.length > 0) throw new Error(`copied though it is the same: ${found.join(', ')}`);
          for (const [key, status] of result.statuses) {
            const was = last.statuses.get(key);
            if (was === status) seen.kept++;
            else if (sameJson(was, status)) throw new Error(`a status that did not change is another: ${key}`);
          }
        }
        for (const { workloads, rules, services, egressIPs } of result.pools.values()) {
          seen.egressIPs += Object.keys(egressIPs).length;
          for (const { limits = [] } of Object.values(services)) {
            seen.ports += limits.filter(({ shards = [] }) => shards.length > 0).length;
          }
          seen.workloads += Object.keys(workloads).length;
          for (const rule of Object.values(rules)) {
            if ((rule.limits?.shards?.length ?? 0) > 0) seen.limits++;
            if (rule.redirect?.forbidden !== undefined) seen.forbidden++;
          }
        }
        for (const { goneAt } of Object.values(result.memory.owners)) seen[goneAt === undefined ? 'owned' : 'gone']++;
        for (const { conditions } of result.statuses.values())
          if (conditions.some(({ reason }) => reason === 'AddressesExhausted')) seen.without++;
        seen.held += result.held;
        memory = result.memory;
        last = result;
      }
    }),
    { numRuns: 60 },
  );
  for (const [what, count] of Object.entries(seen)) t.ok(count > 5, `the worlds were not empty: ${count} ${what}`);
});
