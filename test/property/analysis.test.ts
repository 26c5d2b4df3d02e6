/**
 * `lint` and `simulate` against the evaluator, over small clusters drawn at random: what lint calls useless never
 * matches or decides at any time, and its removal changes nothing; what simulate calls changed is all that changes. Few
 * addresses and ports, all tried, so that each cell is met and lint is also held to find what there is to find.
 */

import fc from 'fast-check';
import t from 'tap';
import { parseAddress } from '../../api/address.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import type { GatewayPlan, WorkloadEntry } from '../../api/plan.ts';
import { icmpProtocol } from '../../api/ports.ts';
import { analyse } from '../../controller/analyse.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { type PodChange, simulate } from '../../controller/simulate.ts';
import { objectKeyOfRule, ruleCodes } from '../../policy/analysis/rules.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { compilePolicy, type Decision, type Evaluator, type Flow, type Known } from '../../policy/evaluate.ts';
import { assertUntilMet } from '../draws.ts';

const sluice = 'sluice.dev/v1alpha1';
const spaces = ['a', 'b'];
const apps = ['x', 'y'];
const names = ['one', 'two', 'three', 'gone'];

const parsed = (input: unknown): AnyObject => {
  const result = parseObject(input);
  if (!result.ok) throw new Error(JSON.stringify(result.errors));
  return result.value;
};

const addressText = fc.constantFrom(
  '198.51.100.1',
  '198.51.100.2-198.51.100.4',
  '198.51.100.0/29',
  '198.51.100.4/30',
  '2001:db8::1',
  '2001:db8::/126',
  '0.0.0.0/0',
  '::/0',
);
const port = fc.constantFrom(
  { protocol: 'TCP' },
  { protocol: 'TCP', port: '443' },
  { protocol: 'TCP', port: '80,440-450' },
  { protocol: 'UDP', port: '1-65535' },
  { protocol: 'UDP', port: '53' },
  { protocol: 'ICMP' },
  { protocol: 'ICMP', port: '8' },
  { protocol: 'ICMPv6', port: '128,1/4' },
  { protocol: 47 },
);
const externalService = fc.record({
  addresses: fc.uniqueArray(addressText, { minLength: 1, maxLength: 3 }),
  ports: fc.option(fc.uniqueArray(port, { minLength: 1, maxLength: 3 })),
  /** Where a cluster has names, a service has these instead of its first address, and this in place of its first port. */
  names: fc.subarray(['a.test', '*.a.test', '**.b.test'], { maxLength: 2 }),
  checked: fc.constantFrom(
    undefined,
    { protocol: 'TCP', port: '443', appProtocol: 'TLS' },
    { protocol: 'TCP', port: '443', appProtocol: 'TLS', tls: { serverNames: ['a.test'] } },
    { protocol: 'TCP', port: '80', appProtocol: 'HTTP', http: { methods: ['GET'] } },
    { protocol: 'UDP', port: '53', appProtocol: 'DNS', conformance: 'Audit' },
  ),
});
const podSelector = fc.constantFrom(
  undefined,
  undefined,
  {},
  { matchLabels: { app: 'x' } },
  { matchLabels: { app: 'y' } },
);
const schedule = [{ days: ['Mon'], from: '10:00', to: '12:00', timezone: 'UTC' }];
const kinds = ['ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule'] as const;
const drawnRule = fc.record({
  kind: fc.constantFrom(...kinds),
  space: fc.constantFrom(...spaces),
  action: fc.constantFrom('accept', 'accept', 'accept-decisively', 'drop', 'reject'),
  externalServices: fc.oneof(
    { weight: 4, arbitrary: fc.subarray(names, { minLength: 1 }) },
    { weight: 1, arbitrary: fc.constant(['*']) },
  ),
  priority: fc.integer({ min: 0, max: 3 }),
  podSelector,
  namespaceSelector: fc.constantFrom(undefined, undefined, { matchLabels: { 'kubernetes.io/metadata.name': 'a' } }),
  endpoints: fc.constantFrom('All', 'Ready'),
  softly: fc.constantFrom('schedule', 'audit', undefined, undefined),
  logging: fc.constantFrom(undefined, undefined, 'All', 'None'),
  limit: fc.constantFrom(
    undefined,
    undefined,
    { maxConnections: 4 },
    { connectionsPerSecond: 4 },
    { bandwidth: '1Mbit' },
  ),
  redirect: fc.option(
    fc.record({
      address: fc.constantFrom('198.51.100.2', '198.51.100.5', '2001:db8::2', '10.244.0.1'),
      port: fc.constantFrom(undefined, 80, 443),
    }),
    { freq: 3, nil: undefined },
  ),
});
const drawnCluster = fc.record({
  services: fc.tuple(externalService, externalService, externalService),
  rules: fc.array(drawnRule, { minLength: 1, maxLength: 7 }),
  /** Rules with a schedule or in audit. */
  withSoft: fc.boolean(),
  /** Services with names and checks. */
  named: fc.boolean(),
  auditB: fc.constantFrom(false, false, true),
  defaultAction: fc.constantFrom('Drop', 'Drop', 'Accept'),
  egress: fc.subarray(spaces),
  unassigned: fc.constantFrom('Drop', 'Bypass'),
  /** Of rules with one priority the last is the oldest. */
  reversed: fc.boolean(),
});
type Drawn = typeof drawnCluster extends fc.Arbitrary<infer T> ? T : never;

const base: unknown[] = [
  ...[...spaces, 'sluice-system'].map((name) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name } })),
  ...spaces.flatMap((namespace, n) =>
    apps.map((app, i) => ({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: app, namespace, uid: `${namespace}-${app}`, labels: { app } },
      spec: { nodeName: 'node' },
      status: { phase: 'Running', podIPs: [{ ip: `10.244.${n}.${i + 1}` }, { ip: `fd00:${n}::${i + 1}` }] },
    })),
  ),
  ...spaces.map((namespace, n) => ({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'app', namespace, labels: { 'kubernetes.io/service-name': 'app' } },
    addressType: 'IPv4',
    endpoints: [
      { addresses: [`10.244.${n}.1`], conditions: { ready: true } },
      { addresses: [`10.244.${n}.2`], conditions: { ready: false } },
    ],
  })),
  {
    apiVersion: sluice,
    kind: 'EgressIPPool',
    metadata: { name: 'pool' },
    spec: { gatewayPool: 'main', ranges: ['203.0.113.0/28', '2001:db8:113::/124'], namespaceSelector: {} },
  },
];

function snapshotOf(drawn: Drawn, pods = true) {
  const { services, rules, withSoft, named, auditB, defaultAction, egress, unassigned, reversed } = drawn;
  const objects: unknown[] = base
    .filter((object) => pods || (object as AnyObject).kind !== 'Pod')
    .map((object) => {
      const { kind, metadata } = object as AnyObject;
      if (!auditB || kind !== 'Namespace' || metadata.name !== 'b') return object;
      return { ...(object as AnyObject), metadata: { name: 'b', labels: { 'sluice.dev/mode': 'Audit' } } };
    });
  objects.push({
    apiVersion: sluice,
    kind: 'GatewayPool',
    metadata: { name: 'main' },
    spec: {
      namespaceSelector: {},
      gateways: [{ name: 'gw', internalAddress: '10.0.0.31' }],
      interfaces: { internal: 'in0', external: { name: 'out0' } },
      nextHops: { v4: ['10.0.0.64'] },
      steering: { mode: 'Direct', vni: 100 },
      defaultAction,
      unassigned,
      ...(named && { dns: { resolvers: ['198.51.100.8'] } }),
    },
  });
  for (const name of egress) {
    const metadata = { name };
    objects.push({
      apiVersion: sluice,
      kind: 'EgressIP',
      metadata,
      spec: { pool: 'pool', count: 1, namespaces: [name] },
    });
  }
  services.forEach((service, index) => {
    const { names: own, checked } = service;
    const isOpen = named && own.length > 0;
    const addresses = isOpen ? [...own, ...service.addresses.slice(1)] : service.addresses;
    const ports = named && checked ? [checked, ...(service.ports ?? []).slice(1)] : service.ports;
    const entries = ports?.map((entry, i) => ({ name: `p${i}`, ...entry }));
    for (const namespace of [...spaces, 'sluice-system']) {
      const metadata = { name: names[index], namespace };
      const spec = { addresses, ...(entries && { ports: entries }) };
      objects.push({ apiVersion: sluice, kind: 'ExternalService', metadata, spec });
    }
  });
  rules.forEach(({ kind, space, action, externalServices, priority, softly, ...rest }, index) => {
    const spec: Record<string, unknown> = { action, externalServices, priority };
    if (rest.podSelector !== undefined) spec.podSelector = rest.podSelector;
    if (kind === 'ClusterEgressRule' && rest.namespaceSelector) spec.namespaceSelector = rest.namespaceSelector;
    if (kind === 'ServiceEgressRule') Object.assign(spec, { service: 'app', endpoints: rest.endpoints });
    if (withSoft && softly === 'schedule') spec.schedule = schedule;
    if (withSoft && softly === 'audit') spec.mode = 'Audit';
    const permits = action === 'accept-decisively' || (action === 'accept' && kind === 'ServiceEgressRule');
    if (rest.redirect && permits) spec.redirect = rest.redirect;
    if (rest.logging) spec.logging = rest.logging;
    if (action.startsWith('accept')) Object.assign(spec, rest.limit);
    const metadata = {
      name: `r${index}`,
      ...(kind === 'ClusterEgressRule' ? {} : { namespace: space }),
      creationTimestamp: `2026-01-01T00:00:${reversed ? 20 - index : 20 + index}Z`,
    };
    objects.push({ apiVersion: sluice, kind, metadata, spec });
  });
  return new Map(objects.map(parsed).map((object) => [objectKey(object), object]));
}

const MONDAY = Date.UTC(2026, 10, 23, 11);
const TUESDAY = MONDAY + 86_400_000;
const planned = (snapshot: ReadonlyMap<string, AnyObject>, now: number): PlanResult =>
  plan(snapshot, emptyMemory(), noPeers(), now);
const mainPlan = ({ pools }: PlanResult): GatewayPlan => pools.get('main') as GatewayPlan;

/** Each side of every boundary that the draws can have. */
const destinations = [0, 1, 2, 3, 4, 5, 7, 8].flatMap((n) => [`198.51.100.${n}`, `2001:db8::${n}`]);
/** Never steered. */
const local = ['127.0.0.1', '169.254.169.254', 'fe80::1'];
const traffic: Omit<Flow, 'source' | 'destination'>[] = [
  ...[0, 80, 439, 440, 443, 450, 451, 65535].map((destinationPort) => ({ protocol: 6, destinationPort })),
  ...[0, 1, 52, 53, 54, 65535].map((destinationPort) => ({ protocol: 17, destinationPort })),
  { protocol: 6 },
  ...[1, 58].flatMap((protocol) => [
    { protocol, icmpType: 8, icmpCode: 0 },
    { protocol, icmpType: 128, icmpCode: 9 },
    { protocol, icmpType: 1, icmpCode: 4 },
    { protocol, icmpType: 1, icmpCode: 5 },
  ]),
  { protocol: 47 },
  { protocol: 132, destinationPort: 443 },
];
/** Where flows say many things, to fewer places. */
function* flowsFrom({ addresses }: WorkloadEntry, { named }: Pick<Drawn, 'named'>): Generator<Flow> {
  const places = named ? destinations.filter((_, at) => at % 5 === 0) : [...destinations, ...local];
  const kinds = named
    ? traffic.filter(({ destinationPort = 9 }) => [9, 53, 80, 443].includes(destinationPort))
    : traffic;
  for (const destination of places) {
    const source = addresses.find((text) => text.includes(':') === destination.includes(':'));
    if (source !== undefined) for (const kind of kinds) yield { source, destination, ...kind };
  }
}

/** What flows say where the draws have names and checks: nothing yet, and then these, to an address of the name and not. */
const saying = (
  [
    [{}, 'a.test'],
    [{ application: 'TLS', name: 'a.test' }, 'a.test'],
    [{ application: 'TLS', name: 'a.test' }, undefined],
    [{ application: 'TLS', name: 'y.x.a.test' }, 'y.x.a.test'],
    [{ application: 'TLS', name: 'z.b.test' }, 'z.b.test'],
    [{ application: 'HTTP', name: 'x.a.test', http: { method: 'PUT', path: '/' } }, 'x.a.test'],
  ] as [ApplicationReading, string | undefined][]
).map(
  ([reading, has]): Known => ({
    reading,
    gives: (name) => name === has,
    namesOf: () => (has === undefined ? [] : [has]),
  }),
);
const knownIn = ({ named }: Drawn): (Known | undefined)[] => (named ? [undefined, ...saying] : [undefined]);

const text = (decision: Decision): string => JSON.stringify(decision, Object.keys(decision).sort());
const neverMatches = new Set(Object.keys(ruleCodes).filter((code) => code !== 'PermitsNothing'));

t.test('lint: what never matches never matches, and nothing changes without it', async (t) => {
  const met = new Set<string>();
  const property = fc.property(drawnCluster, (drawn) => {
    const snapshot = snapshotOf(drawn);
    const findings = analyse(snapshot);
    const codes = new Map<string, string>();
    for (const { object, code } of findings) if (Object.hasOwn(ruleCodes, code)) codes.set(object, code);
    // Said by another name.
    for (const { object, code } of findings) {
      if (['SelectsNoPod', 'NoEndpoints', 'ExternalServiceNotFound'].includes(code) && !codes.has(object)) {
        codes.set(object, code);
      }
    }
    const useless = [...codes].filter(([, code]) => neverMatches.has(code)).map(([object]) => object);
    const without = new Map([...snapshot].filter(([key]) => !useless.includes(key)));
    const matched = new Set<string>();
    for (const now of drawn.withSoft ? [MONDAY, TUESDAY] : [MONDAY]) {
      const policy = mainPlan(planned(snapshot, now));
      const [all, fewer] = [compilePolicy(policy), compilePolicy(mainPlan(planned(without, now)))];
      for (const workload of Object.values(policy.workloads)) {
        for (const flow of flowsFrom(workload, drawn)) {
          for (const known of knownIn(drawn)) {
            const { steps, again = [], decision } = all.explain(flow, known);
            if (text(decision) !== text(fewer.decide(flow, known)))
              throw new Error(`${useless} decide ${JSON.stringify([flow, known])}`);
            for (const { rule, matched: did, audit } of [...steps, ...again]) {
              if (!did) continue;
              const object = objectKeyOfRule(rule);
              matched.add(object);
              const code = codes.get(object) ?? '';
              if (neverMatches.has(code)) throw new Error(`${code} ${object} matches ${JSON.stringify([flow, known])}`);
              // What a rule in audit would not permit, a later one of its context may.
              if (audit || code !== 'PermitsNothing' || decision.provisional) continue;
              if (decision.verdict === 'accept' && !decision.wouldHave) {
                throw new Error(`${object} is part of accepting ${JSON.stringify(flow)}`);
              }
            }
          }
        }
      }
    }
    for (const code of codes.values()) met.add(code);
    // Where every rule is firm, nothing is overlooked; of what is open only what is certain is said.
    if (drawn.withSoft || drawn.named) return;
    for (const [key, { kind }] of snapshot) {
      if (!kind.endsWith('EgressRule') || matched.has(key) || codes.has(key)) continue;
      if (findings.some(({ object, severity }) => object === key && severity === 'error')) continue;
      throw new Error(`${key} never matches, and lint is silent`);
    }
  });
  await assertUntilMet(property, () => met.size > 3, { numRuns: 35 });
  t.ok(met.size > 3, `the draws reach ${[...met].join(', ')} (unit/analysis.test.ts reaches every code)`);
});

t.test('lint: without pods, what is said holds for the pods that come', async (t) => {
  let said = 0;
  const property = fc.property(drawnCluster, (drawn) => {
    const silent = analyse(snapshotOf(drawn, false));
    const useless = silent.filter(({ code }) => neverMatches.has(code)).map(({ object }) => object);
    said += useless.length;
    if (silent.some(({ code }) => code === 'PermitsNothing' || code === 'SelectsNoPod')) throw new Error('a guess');
    const policy = mainPlan(planned(snapshotOf(drawn), MONDAY));
    const evaluator = compilePolicy(policy);
    for (const workload of Object.values(policy.workloads)) {
      for (const flow of flowsFrom(workload, drawn)) {
        for (const known of knownIn(drawn)) {
          const step = evaluator
            .explain(flow, known)
            .steps.find(({ rule, matched }) => matched && useless.includes(objectKeyOfRule(rule)));
          if (step !== undefined) throw new Error(`${step.rule} matches ${JSON.stringify([flow, known])}`);
        }
      }
    }
  });
  await assertUntilMet(property, () => said > 5, { numRuns: 40 });
  t.ok(said > 5, `${said} rules were called useless`);
});

/** The change that speaks of the flow; two would be a contradiction. */
function changeOf(changes: readonly PodChange[], workload: WorkloadEntry, flow: Flow): PodChange | undefined {
  const found = changesAt(changes, workload, flow);
  if (found.length > 1) throw new Error(`${found.length} changes for ${JSON.stringify(flow)}`);
  return found[0];
}

function changesAt(changes: readonly PodChange[], { namespace, name }: WorkloadEntry, flow: Flow): PodChange[] {
  const address = parseAddress(flow.destination);
  if (!address.ok) throw new Error(address.error);
  const { family, value } = address.value;
  const own = flow.protocol === icmpProtocol[family];
  const icmp = own ? (flow.icmpType ?? 0) * 256 + (flow.icmpCode ?? 0) : undefined;
  const number = flow.destinationPort ?? icmp;
  return changes.filter(
    (change) =>
      change.namespace === namespace &&
      change.pods.includes(name) &&
      change.ranges.some((range) => range.family === family && range.first <= value && value <= range.last) &&
      change.spans.some(
        ({ first, last, ports }) =>
          first <= flow.protocol &&
          flow.protocol <= last &&
          (ports === null || (number !== undefined && ports[0] <= number && number <= ports[1])),
      ),
  );
}

/** What becomes of a flow that says that, should it be read. */
function inTheEnd(evaluator: Evaluator, flow: Flow, known?: Known): Decision {
  const first = evaluator.decide(flow);
  if (known === undefined || !first.provisional) return first;
  const { reading: _, ...table } = known;
  const second = evaluator.decide(flow, table);
  return second.provisional ? evaluator.decide(flow, known) : second;
}

t.test('simulate: what it calls changed is all that changes', async (t) => {
  const seen = new Set<string>();
  /** What the data path does, said anew. */
  const outcome = (policy: GatewayPlan, workload: WorkloadEntry, flow: Flow, known?: Known): object => {
    if (local.includes(flow.destination)) return { verdict: 'bypass', reason: 'never-steered' };
    const family = flow.destination.includes(':') ? 6 : 4;
    const unassigned = 'pool' in policy.settings ? policy.settings.pool.unassigned : 'Drop';
    const egress = workload.egress[family]?.address;
    if (egress === undefined) return { verdict: unassigned === 'Drop' ? 'drop' : 'bypass', reason: 'unassigned' };
    const { verdict, reason, rule, wouldHave, redirect, limits = [] } = inTheEnd(compiled(policy), flow, known);
    const where = redirect && `${redirect.address} ${redirect.port}`;
    const under = limits.map((id) => [id, { ...policy.rules[id]?.limits, shards: undefined }]);
    return { verdict, reason, rule, wouldHave, where, ...(verdict === 'accept' && { egress, under }) };
  };
  const evaluators = new WeakMap<GatewayPlan, ReturnType<typeof compilePolicy>>();
  const compiled = (policy: GatewayPlan) => {
    const evaluator = evaluators.get(policy) ?? compilePolicy(policy);
    evaluators.set(policy, evaluator);
    return evaluator;
  };
  const draft = fc.tuple(
    drawnCluster,
    drawnCluster,
    fc.constantFrom('all', 'rules', 'nothing', 'services', 'egress', 'audit', 'order'),
  );
  const property = fc.property(draft, ([first, second, what]) => {
    const next: Drawn =
      what === 'all'
        ? second
        : what === 'rules'
          ? { ...first, rules: [...first.rules.slice(1), ...second.rules.slice(0, 2)] }
          : what === 'services'
            ? { ...first, services: [second.services[0], first.services[1], first.services[2]] }
            : what === 'egress'
              ? { ...first, egress: second.egress, unassigned: second.unassigned, auditB: second.auditB }
              : what === 'audit'
                ? { ...first, auditB: !first.auditB }
                : what === 'order'
                  ? { ...first, reversed: !first.reversed }
                  : first;
    const [before, after] = [snapshotOf(first), snapshotOf(next)];
    const was = planned(before, MONDAY);
    const is = plan(after, was.memory, noPeers(), MONDAY);
    const { changes, egress } = simulate({ snapshot: before, result: was }, { snapshot: after, result: is });
    if (what === 'nothing' && changes.length + egress.length > 0) throw new Error('a change out of nothing');
    for (const workload of Object.values(mainPlan(was).workloads)) {
      const other = mainPlan(is).workloads[workload.uid] as WorkloadEntry;
      for (const family of [4, 6] as const) {
        const [from, to] = [workload, other].map((one) => one.egress[family]?.address);
        const told = egress.some(
          (change) =>
            change.namespace === workload.namespace && change.pods.includes(workload.name) && change.family === family,
        );
        if (told !== (from !== to)) throw new Error(`egress IP of ${workload.name}`);
      }
      for (const flow of flowsFrom(workload, first)) {
        if (flow.protocol === 6 && flow.destinationPort === undefined) continue;
        const pair = (known?: Known) =>
          [outcome(mainPlan(was), workload, flow, known), outcome(mainPlan(is), other, flow, known)] as const;
        const [old, now] = pair();
        if ([old, now].some((one) => (one as Decision).reason === 'unread')) {
          // Of what is read samples are compared: each difference there is told, at least by one of them.
          const told = changesAt(changes, workload, flow);
          const differing = saying.filter((known) => JSON.stringify(pair(known)[0]) !== JSON.stringify(pair(known)[1]));
          if (differing.length > 0 && told.length === 0) throw new Error(JSON.stringify([flow, differing]));
          if (told.some(({ before, after }) => JSON.stringify(before) === JSON.stringify(after)))
            throw new Error('the same');
          if (told.length > 0 && differing.length > 0) seen.add('by what is said');
          if (told.some(({ said }) => said === undefined) && differing.length < saying.length)
            throw new Error(`not whatever is said: ${JSON.stringify(flow)}`);
          continue;
        }
        const change = changeOf(changes, workload, flow);
        const differ = JSON.stringify(old) !== JSON.stringify(now);
        if (differ !== (change !== undefined)) throw new Error(`${JSON.stringify([flow, old, now, change?.spans])}`);
        if (change === undefined) continue;
        for (const [told, real] of [
          [change.before, old],
          [change.after, now],
        ] as const) {
          const { verdict, reason, rule, wouldHave } = real as Decision;
          const { where = '', under = [] } = real as { where?: string; under?: [string, object][] };
          if ((told.limits === undefined) !== (under.length === 0)) throw new Error('other limits');
          if (under.some(([id]) => told.limits?.includes(id) === false)) throw new Error('another limit');
          // The rule says a port, or the flow keeps its own.
          const [address = '', port = String(flow.destinationPort)] = (told.redirect ?? '').split(' port ');
          if ((told.redirect === undefined ? '' : `${address} ${port}`) !== where) throw new Error('another redirect');
          if (told.wouldHave !== wouldHave) throw new Error('another audit');
          if (told.verdict !== verdict || told.reason !== reason || told.rule !== rule)
            throw new Error('another outcome');
        }
        seen.add(`${change.before.verdict} ${change.after.verdict}`);
      }
    }
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 90 }));
  t.ok(seen.size > 4 && seen.has('by what is said'), `the draws reach ${[...seen].join(', ')}`);
});
