/**
 * EgressIPs beyond one address for all: precedence and conflicts, destinations, spread over connections, limits; from
 * manifests through planner and release to what nodes and gateways make of it, and what people are told.
 * What kernels make of it: test/netns/egress.test.ts.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { formatPrefix, type Prefix, parseAddress, parsePrefix, prefixRange } from '../../api/address.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { GATEWAY_TUNNEL_MARK } from '../../api/names.ts';
import { type Egress, families, type GatewayPlan, type NodePlan } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { analyse } from '../../controller/analyse.ts';
import { emptyMemory, type PlannerMemory, readMemory } from '../../controller/plan/memory.ts';
import { noPeers, type Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { simulate } from '../../controller/simulate.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleNumbers } from '../../gateway/marks.ts';
import { endedBy } from '../../gateway/recheck.ts';
import { denyRecord, EGRESS_LIMIT, startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { egressMarks } from '../../gateway/source-nat.ts';
import { emptyState, type NftState, stateOf } from '../../kernel/nft.ts';
import { endingsOf, endsWith } from '../../node/apply.ts';
import { compileNode, settingsOf } from '../../node/compile.ts';
import { localDestinations } from '../../node/ruleset.ts';
import { compileEgress, servedRanges } from '../../policy/egress.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';
import { sluice } from '../sluice.ts';
import { touches } from '../touches.ts';

type Fields = Record<string, unknown>;
const NOW = Date.parse('2026-01-01T00:00:00Z');
let age = 0;
/** Objects come out as old as they were made: the first is the oldest. */
function object(kind: string, name: string, fields: Fields, meta: Fields = {}): AnyObject {
  const core = ['Namespace', 'Pod', 'Node'].includes(kind);
  const creationTimestamp = new Date(NOW - 1e9 + ++age * 1000).toISOString().replace('.000Z', 'Z');
  const parsed = parseObject({
    apiVersion: core ? 'v1' : 'sluice.dev/v1alpha1',
    kind,
    metadata: { name, creationTimestamp, ...meta },
    ...fields,
  });
  if (!parsed.ok) throw new Error(`${kind} ${name}: ${JSON.stringify(parsed.errors)}`);
  return parsed.value;
}
const node = object('Node', 'n1', {
  spec: { podCIDRs: ['10.1.0.0/16', 'fd01::/64'] },
  status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] },
});
const gatewayPool = (spec: Fields = {}) =>
  object('GatewayPool', 'p', {
    spec: {
      namespaceSelector: {},
      gateways: [1, 2, 3].map((n) => ({ name: `g${n}`, internalAddress: `10.0.0.${n}` })),
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: ['10.0.0.64-10.0.0.69'], v6: ['fd00:10::64-fd00:10::69'] },
      steering: { mode: 'VXLAN', vni: 1 },
      unassigned: 'Drop',
      ...spec,
    },
  });
const drawPool = object('EgressIPPool', 'd', {
  spec: { gatewayPool: 'p', ranges: ['192.0.2.1-192.0.2.99', '2001:db8::1-2001:db8::99'], namespaceSelector: {} },
});
const a = object('Namespace', 'a', {}, { labels: { team: 'x' } });
const b = object('Namespace', 'b', {}, { labels: { team: 'x' } });
const pod = (name: string, host: number, labels: Fields = {}, namespace = 'a') =>
  object(
    'Pod',
    name,
    {
      spec: { nodeName: 'n1' },
      status: { phase: 'Running', podIPs: [{ ip: `10.1.0.${host}` }, { ip: `fd01::${host}` }] },
    },
    { namespace, uid: `uid-${name}`, labels },
  );
const egressIP = (name: string, spec: Fields) =>
  object('EgressIP', name, { spec: { pool: 'd', ...('addresses' in spec ? {} : { count: 1 }), ...spec } });
const external = (name: string, spec: Fields, namespace = 'sluice-system') =>
  object('ExternalService', name, { spec }, { namespace });
const base = [node, gatewayPool(), drawPool, a, b];

interface Given {
  memory?: PlannerMemory;
  peers?: Peers;
  lists?: KnownLists;
}
const run = (objects: AnyObject[], { memory = emptyMemory(), peers = noPeers(), lists = new Map() }: Given = {}) =>
  plan(new Map([...base, ...objects].map((o) => [objectKey(o), o])), memory, peers, NOW, lists);
const poolPlan = (result: PlanResult): GatewayPlan => result.pools.get('p') as GatewayPlan;
const nodePlan = (result: PlanResult): NodePlan => result.nodes.get('n1') as NodePlan;
const condition = (result: PlanResult, name: string, type: string) =>
  result.statuses.get(`EgressIP/${name}`)?.conditions.find((c) => c.type === type);
/** These gateways have this plan in force; absent: all of them. */
const acknowledged = (result: PlanResult, names = ['g1', 'g2', 'g3'], before?: PlanResult): Peers => ({
  gateways: new Map(
    ['g1', 'g2', 'g3'].flatMap((name) => {
      const from = names.includes(name) ? result : before;
      return from === undefined
        ? []
        : [[name, { connected: true, addresses: [], generation: 1, inForce: poolPlan(from) }]];
    }),
  ),
  nodes: new Map(),
});

/** EgressIP of the address with which the pod leaves to there. */
function serves(result: PlanResult, uid: string, destination: string): string[] {
  const gatewayPlan = poolPlan(result);
  const workload = gatewayPlan.workloads[uid];
  if (workload === undefined) throw new Error(`no ${uid}`);
  const { addresses } = compileEgress(gatewayPlan).towards(workload, must(parseAddress(destination)));
  return [...new Set(addresses.map(({ address }) => result.memory.allocations[address]?.owner ?? '?'))];
}

t.test('precedence: of two EgressIPs the one that comes first by the first that tells them apart', async (t) => {
  const listed = { namespaces: ['a'] };
  const selected = { namespaceSelector: { matchLabels: { team: 'x' } } };
  const podded = { podSelector: { matchLabels: { app: 'pay' } } };
  const to = (...destinations: string[]) => ({ destinations });
  const rows: [what: string, winner: Fields, loser: Fields, conflict: boolean][] = [
    [
      'destinations before none',
      { ...selected, ...to('198.51.100.0/24'), priority: 9 },
      { ...listed, ...podded },
      false,
    ],
    [
      'the longer prefix, whatever else',
      { ...selected, ...to('198.51.100.80/32'), priority: 9 },
      { ...listed, ...podded, ...to('198.51.100.0/24', '2001:db8:100::/64'), priority: 1 },
      false,
    ],
    [
      'a podSelector before a listed namespace',
      { ...selected, ...podded, priority: 9 },
      { ...listed, priority: 1 },
      false,
    ],
    ['a listed namespace before a selected one', { ...listed, priority: 9 }, { ...selected, priority: 1 }, false],
    [
      'that too of two with podSelectors',
      { ...listed, ...podded, priority: 9 },
      { ...selected, ...podded, priority: 1 },
      false,
    ],
    ['the lower priority', { ...listed, priority: 1 }, { ...listed, priority: 2 }, true],
    ['the lower priority, selected', { ...selected, priority: 1 }, { ...selected, priority: 2 }, true],
    ['the lower priority of podSelectors', { ...listed, ...podded, priority: 1 }, { ...listed, ...podded }, true],
    [
      'of one prefix a podSelector',
      { ...selected, ...podded, ...to('198.51.100.0/24') },
      { ...listed, ...to('198.51.100.0/24') },
      false,
    ],
    [
      'of one prefix the lower priority',
      { ...listed, ...to('198.51.100.0/24'), priority: 1 },
      { ...listed, ...to('198.51.100.0/24', '192.0.2.0/24'), priority: 2 },
      true,
    ],
    ['the older', { ...listed }, { ...listed }, true],
  ];
  for (const [what, winner, loser, conflicts] of rows) {
    // The loser is older, unless age tells.
    const pair = what === 'the older' ? [egressIP('win', winner), egressIP('lose', loser)] : undefined;
    const [lose, win] = pair?.reverse() ?? [egressIP('lose', loser), egressIP('win', winner)];
    for (const objects of [
      [lose, win],
      [win, lose],
    ] as AnyObject[][]) {
      const result = run([...objects, pod('pay', 5, { app: 'pay' })]);
      t.same(serves(result, 'uid-pay', '198.51.100.80'), ['win'], what);
      t.equal(condition(result, 'win', 'Conflicted')?.status, 'False', `${what}: the winner has no conflict`);
      const found = condition(result, 'lose', 'Conflicted');
      t.equal(found?.status, conflicts ? 'True' : 'False', `${what}: ${found?.message}`);
      if (conflicts) t.match(found?.message, /EgressIP win$/, 'it names the winner');
    }
  }
  const names = ['one', 'two'].map((name) => {
    const made = egressIP(name, listed);
    made.metadata.creationTimestamp = '2025-01-01T00:00:00Z';
    return made;
  });
  t.same(serves(run([...names.reverse(), pod('pay', 5)]), 'uid-pay', '198.51.100.80'), ['one'], 'the name');
});

t.test('an EgressIP of another gateway pool serves only what that pool carries', async (t) => {
  const only = (name: string) => ({ namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': name } } });
  const other = object('GatewayPool', 'q', {
    spec: {
      ...only('b'),
      gateways: [{ name: 'h1', internalAddress: '10.0.1.1' }],
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: ['10.0.1.64'] },
      steering: { mode: 'VXLAN', vni: 2 },
    },
  });
  const elsewhere = object('EgressIPPool', 'e', {
    spec: { gatewayPool: 'q', ranges: ['203.0.113.1-203.0.113.9'], namespaceSelector: {} },
  });
  const far = egressIP('far', { pool: 'e', addresses: ['203.0.113.5'], namespaces: ['a', 'b'] });
  const world = [gatewayPool(only('a')), other, elsewhere, far, pod('one', 1), pod('two', 2, {}, 'b')];
  const alone = run(world);
  t.same(serves(alone, 'uid-one', '198.51.100.1'), [], 'a pod of another pool has nothing of it');
  t.match(alone.pools.get('q')?.workloads, { 'uid-two': { egress: { 4: { address: '203.0.113.5' } } } });
  const both = run([...world, egressIP('near', { addresses: ['192.0.2.9'], ...only('a') })]);
  t.same(serves(both, 'uid-one', '198.51.100.1'), ['near'], 'nor is it in the way of one that is of its pool');
  t.not(condition(both, 'near', 'Conflicted')?.status, 'True');
});

t.test('conflicts: of what, and with whom', async (t) => {
  const same = { namespaces: ['a'], destinations: ['198.51.100.0/24', '2001:db8:100::/64'] };
  const result = run([
    egressIP('fallback', { namespaces: ['a'] }),
    egressIP('one', { ...same, destinations: ['2001:db8:100::/64'] }),
    egressIP('two', same),
    egressIP('within', { namespaces: ['a'], destinations: ['198.51.100.0/25'] }),
    egressIP('elsewhere', { ...same, namespaces: ['b'] }),
    egressIP('p1', { namespaces: ['b'], podSelector: { matchLabels: { app: 'x' } } }),
    egressIP('p2', { namespaces: ['b'], podSelector: { matchLabels: { tier: 'y' } } }),
    pod('both', 6, { app: 'x', tier: 'y' }, 'b'),
  ]);
  const conflicts = ['fallback', 'one', 'two', 'within', 'elsewhere', 'p1', 'p2'].flatMap((name) => {
    const { status, reason, message } = condition(result, name, 'Conflicted') ?? {};
    return status === 'True' ? [`${name} ${reason}: ${message}`] : [];
  });
  t.same(conflicts, [
    'two DestinationTaken: destination 2001:db8:100::/64 of namespace a is served by EgressIP one',
    'p2 PodTaken: pod b/both is served by EgressIP p1',
  ]);
});

t.test('servedRanges: each address belongs to the longest prefix, by order where that is the same', async (t) => {
  const prefix = fc
    .tuple(fc.nat(7), fc.integer({ min: 29, max: 32 }))
    .map(([host, length]) => `203.0.113.${host & ~((1 << (32 - length)) - 1)}/${length}`);
  const lists = fc.array(fc.uniqueArray(prefix, { maxLength: 5 }), { minLength: 1, maxLength: 4 });
  const parse = (text: string): Prefix => must(parsePrefix(text));
  fc.assert(
    fc.property(lists, (made) => {
      const names = made.map((_, at) => `e${at}`);
      const egressIPs = Object.fromEntries(names.map((name, at) => [name, { destinations: made[at] ?? [] }]));
      const ranges = servedRanges(names, egressIPs, 4);
      for (let host = 0; host < 10; host++) {
        const { value } = must(parseAddress(`203.0.113.${host}`));
        const candidates = names.flatMap((name, at) =>
          (made[at] ?? [])
            .map((text) => ({ name, at, ...parse(text) }))
            .filter((p) => {
              const range = prefixRange(p);
              return range.first <= value && value <= range.last;
            }),
        );
        candidates.sort((x, y) => y.length - x.length || x.at - y.at);
        const found = ranges.filter(({ first, last }) => first <= value && value <= last);
        if (found.length > 1) throw new Error('not disjoint');
        if (found[0]?.egressIP !== candidates[0]?.name) throw new Error(`${host}: ${found[0]?.egressIP}`);
        const [best] = candidates;
        if (best !== undefined && found[0]?.prefix !== formatPrefix(best)) throw new Error(`${host}: prefix`);
      }
      return ranges.every(({ first }, at) => at === 0 || first > (ranges[at - 1]?.last ?? 0n));
    }),
    { numRuns: 100 },
  );
  t.same(servedRanges(['x'], { x: { destinations: ['0.0.0.0/0', '::/0'] } }, 6).length, 1, 'the other family is apart');
});

t.test('destinations: what an ExternalService gives, and what is refused', async (t) => {
  const services = [
    external('partner', {
      addresses: ['198.51.100.4-198.51.100.7', '198.51.100.9'],
      ports: [{ name: 's', protocol: 'TCP', port: '22' }],
    }),
    external('listed', { addressesFrom: [{ file: 'x.txt' }] }),
    external('private', { addresses: ['198.51.100.4'] }, 'a'),
  ];
  const named = (...destinations: string[]) => [
    ...services,
    egressIP('e', { namespaces: ['a'], destinations }),
    pod('one', 5),
  ];
  const destinations = (result: PlanResult) => poolPlan(result).egressIPs.e?.destinations;
  const partner = run(named('sluice-system/partner', '203.0.113.0/24'));
  t.same(
    destinations(partner),
    ['198.51.100.4/30', '198.51.100.9/32', '203.0.113.0/24'],
    'ranges as prefixes; ports do not count',
  );
  t.equal(condition(partner, 'e', 'Accepted')?.reason, 'Accepted');

  const missing = run(named('sluice-system/nobody', '203.0.113.0/24'));
  t.same(destinations(missing), ['203.0.113.0/24'], 'the rest holds');
  t.match(condition(missing, 'e', 'Accepted'), {
    status: 'True',
    reason: 'ExternalServiceNotFound',
    message: /sluice-system\/nobody not found.*does not exist, or was refused/,
  });

  const unread = run(named('sluice-system/listed'));
  t.same(destinations(unread), []);
  t.match(condition(unread, 'e', 'Accepted'), {
    status: 'True',
    reason: 'ListNotRead',
    message: /listed \(addressesFrom\[0\]\)/,
  });
  const lists = new Map([['sluice-system/listed', [{ addresses: ['198.51.100.64/26', '2001:db8:9::/48'] }]]]);
  t.same(destinations(run(named('sluice-system/listed'), { lists })), ['198.51.100.64/26', '2001:db8:9::/48']);

  const foreign = run(named('a/private'));
  t.match(condition(foreign, 'e', 'Accepted'), {
    status: 'False',
    reason: 'UntrustedNamespace',
    message: /namespace a is not labelled/,
  });
  t.same(poolPlan(foreign).egressIPs, {}, 'the owners of a namespace draw nobody to an address');
  const trusting = object('Namespace', 'a', {}, { labels: { 'sluice.dev/trusted-services': 'true' } });
  t.same(destinations(run([trusting, ...named('a/private')])), ['198.51.100.4/32'], 'unless it is trusted');

  const long = Array.from({ length: 32_768 }, (_, at) => `10.${at >> 8}.${at & 255}.1/32`);
  const many = new Map([['sluice-system/listed', [{ addresses: long }]]]);
  const three = ['e', 'f', 'g'].map((name) =>
    egressIP(name, { namespaces: ['a'], destinations: ['sluice-system/listed'] }),
  );
  const tooMany = run([...services, ...three, pod('one', 5)], { lists: many });
  t.equal(condition(tooMany, 'f', 'Accepted')?.status, 'True');
  t.match(condition(tooMany, 'g', 'Accepted'), { status: 'False', reason: 'TooManyDestinations', message: /65536/ });
});

t.test('plans: what workloads share stands once; one address and no more is as it ever was', async (t) => {
  const pods = [pod('one', 5, { app: 'x' }), pod('two', 6), pod('other', 7, {}, 'b')];
  const result = run([
    egressIP('plain', { namespaces: ['b'] }),
    egressIP('many', { namespaces: ['a'], count: 8, spread: 'Connection', maxConnections: 100 }),
    egressIP('partner', { namespaceSelector: {}, destinations: ['198.51.100.0/24'] }),
    egressIP('web', {
      namespaces: ['a'],
      podSelector: { matchLabels: { app: 'x' } },
      destinations: ['198.51.100.80/32'],
      count: 2,
      spread: 'Connection',
    }),
    ...pods,
  ]);
  const { workloads, egressIPs, destinations, shards } = poolPlan(result);
  t.same(Object.keys(egressIPs).sort(), ['many', 'partner', 'web']);
  t.equal(egressIPs.many?.spread?.[4]?.length, 8);
  t.same(
    new Set(egressIPs.many?.limits?.shards),
    new Set(families.flatMap((f) => egressIPs.many?.spread?.[f]?.map(({ shard }) => `p/${shard}`) ?? [])),
  );
  t.same(egressIPs.partner, { destinations: ['198.51.100.0/24'] });
  const [one, two, other] = ['one', 'two', 'other'].map((name) => workloads[`uid-${name}`]);
  t.match(one, { egress: {}, egressIP: 'many' });
  t.same(one?.egress, {});
  t.same(destinations[one?.destinations ?? ''], { egressIPs: ['web', 'partner'] });
  t.same(Object.keys(one?.elsewhere ?? {}), ['partner'], 'of what is spread no pod has one of its own');
  t.equal(two?.destinations, other?.destinations, 'the same table');
  t.equal(Object.keys(destinations).length, 2);
  t.equal(other?.egressIP, undefined);
  t.ok(other?.egress[4]?.address);
  for (const { address, shard } of families.flatMap((f) => egressIPs.many?.spread?.[f] ?? [])) {
    t.ok(shards[shard]?.egressIPs.includes(address));
  }
  const status = result.statuses.get('EgressIP/many');
  const parts = status?.limits as { pool: string; shard: string; maxConnections: number }[];
  t.equal(
    parts.reduce((sum, { maxConnections }) => sum + maxConnections, 0),
    100,
    'status shows the division',
  );
  t.equal(status?.namespaces, 1);
  t.equal(result.statuses.get('EgressIP/partner')?.namespaces, 2);

  const plain = poolPlan(run([egressIP('plain', { namespaces: ['b'] }), ...pods]));
  t.same([plain.egressIPs, plain.destinations], [{}, {}]);
  t.same(Object.keys(plain.workloads['uid-other'] ?? {}).sort(), [
    'addresses',
    'egress',
    'group',
    'name',
    'namespace',
    'node',
    'services',
    'uid',
  ]);
});

t.test('release: a pod waits for the gateways of all its shards, a change of what pods share does too', async (t) => {
  const objects = (count: number) => [
    egressIP('mine', { namespaces: ['a'], addresses: ['192.0.2.1', '2001:db8::1'] }),
    egressIP('partner', {
      namespaces: ['a'],
      destinations: ['198.51.100.0/24'],
      addresses: Array.from({ length: count }, (_, at) => `192.0.2.${at + 10}`),
      spread: 'Connection',
    }),
    pod('one', 5),
  ];
  const first = run(objects(4));
  t.equal(first.held, 1);
  t.same(nodePlan(first).workloads, {});
  const { shards, egressIPs } = poolPlan(first);
  const holders = (list: Egress[] = []) => new Set(list.map(({ shard }) => shards[shard]?.order[0] ?? ''));
  const needed = [
    ...holders([
      ...(egressIPs.partner?.spread?.[4] ?? []),
      ...Object.values(poolPlan(first).workloads['uid-one']?.egress ?? {}),
    ]),
  ];
  t.ok(needed.length > 1, 'several gateways');
  for (const missing of needed) {
    const some = run(objects(4), {
      memory: first.memory,
      peers: acknowledged(
        first,
        needed.filter((name) => name !== missing),
      ),
    });
    t.equal(some.held, 1, `not without ${missing}`);
  }
  const released = run(objects(4), { memory: first.memory, peers: acknowledged(first) });
  t.equal(released.held, 0);
  const there = nodePlan(released);
  t.same(there.egressIPs.partner?.spread?.[4]?.length, 4);
  t.same(there.egressIPs.partner?.destinations, ['198.51.100.0/24']);
  t.same(Object.values(there.destinations), [{ egressIPs: ['partner'] }]);

  const kept = readMemory(JSON.parse(JSON.stringify(released.memory)));
  t.ok(kept);
  const grown = run(objects(5), { memory: released.memory, peers: acknowledged(released) });
  t.equal(grown.held, 0, 'the pod itself stays');
  t.same(nodePlan(grown).egressIPs.partner?.spread?.[4]?.length, 4, 'nodes keep four until the gateways have five');
  const restarted = run(objects(5), { memory: kept ?? emptyMemory() });
  t.same(nodePlan(restarted).egressIPs, there.egressIPs, 'across a restart too');
  const whole = run(objects(5), { memory: grown.memory, peers: acknowledged(grown) });
  t.same(nodePlan(whole).egressIPs.partner?.spread?.[4]?.length, 5);
  t.same(
    run([pod('one', 5)], { memory: whole.memory }).memory.shared,
    { egressIPs: {}, destinations: {} },
    'and nothing is kept for nobody',
  );

  t.equal(condition(run(objects(5), { peers: acknowledged(grown) }), 'partner', 'Programmed')?.status, 'True');
  const moved = objects(5).map((o) =>
    o.kind === 'EgressIP' && o.metadata.name === 'partner'
      ? { ...o, spec: { ...o.spec, destinations: ['203.0.113.0/24'] } }
      : o,
  );
  const waiting = condition(run(moved, { peers: acknowledged(grown) }), 'partner', 'Programmed');
  t.match(waiting, { status: 'False', reason: 'NotAcknowledged' }, 'other destinations are not there yet');

  const { shared: _, ...older } = JSON.parse(JSON.stringify(released.memory)) as PlannerMemory;
  t.same(readMemory(older)?.shared, { egressIPs: {}, destinations: {} }, 'the memory of an older version is read');
});

const facts = { workloadInterfaces: ['cni0'], underlayMtu: 1500, rpFilterAll: 0, underlays: {} };
const compiled = (made: NodePlan) => {
  const settings = settingsOf(made);
  if (settings === undefined) throw new Error('no settings');
  return compileNode(made, settings, facts).ruleset;
};
/** The node's plan once everything is acknowledged. */
function settled(objects: AnyObject[], lists: KnownLists = new Map()): NodePlan {
  const first = run(objects, { lists });
  return nodePlan(run(objects, { memory: first.memory, peers: acknowledged(first), lists }));
}

t.test(
  'a node whose pods are served for some destinations only: what it steers, and whose flows it ends',
  async (t) => {
    const pool = gatewayPool({ unassigned: 'Bypass' });
    const partner = egressIP('partner', { namespaces: ['a'], destinations: ['198.51.100.0/24'] });
    const wider = egressIP('partner', { namespaces: ['a'], destinations: ['198.51.100.0/24', '203.0.113.0/24'] });
    const rest = egressIP('rest', { namespaces: ['a'] });
    const one = pod('one', 5);
    const [none, part, more, whole] = [[], [partner], [wider], [partner, rest]].map((list) =>
      settled([pool, ...list, one]),
    );
    if (!none || !part || !more || !whole) return;
    t.same(part.workloads['uid-one']?.steer, { 4: 'bypass', 6: 'bypass' });
    const flow = (destination: string, mark = 0) => ({
      original: { source: '10.1.0.5', destination },
      reply: { source: destination, destination: '10.0.0.21' },
      mark,
    });
    const local = localDestinations({ clusterCIDRs: [], excludedCIDRs: [] });
    const ends = (before: NodePlan | undefined, after: NodePlan) => {
      const now: NftState = before === undefined ? emptyState() : stateOf(compiled(before));
      const endings = endingsOf(now, compiled(after), before, after);
      return ['198.51.100.1', '203.0.113.1', '192.0.2.200'].filter((to) => endsWith(flow(to), endings, local));
    };
    const rows: [string, NodePlan | undefined, NodePlan, string[]][] = [
      ['nothing was there', undefined, part, ['198.51.100.1']],
      ['assigned for some', none, part, ['198.51.100.1']],
      ['the same again', part, part, []],
      ['a list that grew', part, more, ['198.51.100.1', '203.0.113.1']],
      ['assigned for all', part, whole, ['198.51.100.1', '203.0.113.1', '192.0.2.200']],
      ['for some again', whole, part, ['198.51.100.1', '203.0.113.1', '192.0.2.200']],
      ['assigned no more', part, none, ['198.51.100.1', '203.0.113.1', '192.0.2.200']],
    ];
    for (const [what, before, after, expected] of rows) t.same(ends(before, after), expected, what);
    t.throws(() => compiled({ ...part, egressIPs: {} }), /no EgressIP partner/);
    t.throws(() => compiled({ ...part, destinations: {} }), /no table of destinations/);
  },
);

t.test('gateways: marks that nothing else has; flows that end, and changes that end none', async (t) => {
  const objects = (extra: AnyObject[] = []) => [
    egressIP('mine', { namespaces: ['a'], addresses: ['192.0.2.1'], maxConnections: 5 }),
    egressIP('partner', {
      namespaces: ['a'],
      destinations: ['198.51.100.0/24'],
      addresses: ['192.0.2.10', '192.0.2.11'],
      spread: 'Connection',
    }),
    pod('one', 5),
    ...extra,
  ];
  const made = poolPlan(run(objects()));
  const marks = egressMarks(made);
  t.equal(new Set(marks.values()).size, 2);
  for (const mark of marks.values()) {
    t.notOk(mark <= GATEWAY_TUNNEL_MARK && GATEWAY_TUNNEL_MARK < mark + 64);
    t.equal(mark % 64, 0, 'room for 64 addresses');
  }
  const flow = (destination: string, translated: string) =>
    ({
      family: 4,
      protocol: 17,
      original: { source: '10.1.0.5', destination },
      reply: { source: destination, destination: translated },
    }) as unknown as ConntrackEntry;
  const accepting = {
    ...made,
    settings: {
      pool: { ...('pool' in made.settings ? made.settings.pool : ({} as never)), defaultAction: 'Accept' as const },
    },
  };
  const ended = endedBy(accepting);
  for (const [what, destination, translated, expected] of [
    ['its own address', '203.0.113.9', '192.0.2.1', false],
    ['one of several', '198.51.100.1', '192.0.2.10', false],
    ['another of these', '198.51.100.1', '192.0.2.11', false],
    ['of its own, but not for there', '198.51.100.1', '192.0.2.1', true],
    ['the other way round', '203.0.113.9', '192.0.2.10', true],
    ['of nobody', '203.0.113.9', '192.0.2.77', true],
  ] as const) {
    t.equal(ended(flow(destination, translated)), expected, what);
  }
  const changed = (change: (copy: GatewayPlan) => void) => {
    const copy = structuredClone(made);
    change(copy);
    return touches(made, copy);
  };
  const entry = (copy: GatewayPlan, name: string) => copy.egressIPs[name] ?? {};
  t.notOk(changed(() => undefined));
  t.notOk(
    changed((copy) => {
      entry(copy, 'mine').limits = { maxConnections: 6, shards: [] };
    }),
    'a limit',
  );
  t.ok(
    changed((copy) => {
      entry(copy, 'partner').destinations = [];
    }),
    'destinations',
  );
  t.ok(
    changed((copy) => {
      entry(copy, 'partner').spread = {};
    }),
    'addresses',
  );
  t.ok(
    changed((copy) => {
      copy.destinations[copy.workloads['uid-one']?.destinations ?? ''] = { egressIPs: [] };
    }),
    'tables',
  );
  const compiledPlan = compileGateway(made);
  t.ok(compiledPlan.ruleset.sets.egress_limits);
  const plain = compileGateway(poolPlan(run([egressIP('plain', { namespaces: ['a'] }), pod('one', 5)])));
  t.same(
    plain.ruleset.chains.nat?.rules,
    ['snat ip to ip saddr map @snat4', 'snat ip6 to ip6 saddr map @snat6'],
    'a plan without any of it pays nothing',
  );

  const view = viewOf('g1', made, ruleNumbers());
  const packet = {
    prefix: EGRESS_LIMIT,
    mark: marks.get('mine') ?? 0,
    protocol: 17,
    source: '10.1.0.5',
    destination: '203.0.113.9',
  };
  t.match(denyRecord(packet, view, new Date(0)), { reason: 'limit', verdict: 'drop', limitedBy: 'mine', pod: 'one' });
  const shardOf = (address: string) =>
    Object.entries(made.shards).find(([, { egressIPs }]) => egressIPs.includes(address))?.[0];
  for (const address of ['192.0.2.1', '192.0.2.10', '192.0.2.11']) {
    t.equal(
      startRecord({ ...flow('198.51.100.1', address), mark: 0 }, view, new Date(0)).shard,
      shardOf(address),
      'the shard of the address',
    );
  }
});

t.test('lint: an EgressIP with which no pod leaves, by its destinations too', async (t) => {
  const findings = (...objects: AnyObject[]) =>
    analyse(new Map([...base, ...objects].map((o) => [objectKey(o), o])))
      .filter(({ code }) => code === 'ServesNoPod' || code === 'NoEgressIP')
      .map(({ object: key, code }) => `${key} ${code}`);
  const partner = { namespaces: ['a'], destinations: ['198.51.100.0/24'] };
  const rule = object(
    'NamespaceEgressRule',
    'all',
    { spec: { action: 'accept-decisively', externalServices: ['*'] } },
    { namespace: 'a' },
  );
  const one = pod('one', 5);
  t.same(findings(egressIP('partner', partner), rule, one), []);
  t.same(findings(egressIP('many', { namespaces: ['a'], count: 2, spread: 'Connection' }), rule, one), []);
  t.same(findings(egressIP('partner', partner), egressIP('late', partner), one), ['EgressIP/late ServesNoPod']);
  t.same(findings(rule, one), ['Namespace/a NoEgressIP']);
});

t.test('explain and simulate say which address for which destination', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'sluice-egress-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const rule = object(
    'NamespaceEgressRule',
    'all',
    { spec: { action: 'accept-decisively', externalServices: ['*'] } },
    { namespace: 'a' },
  );
  const one = pod('one', 5);
  const mine = egressIP('mine', { namespaces: ['a'], addresses: ['192.0.2.1'], maxConnections: 5 });
  const partner = egressIP('partner', {
    namespaces: ['a'],
    destinations: ['198.51.100.0/24'],
    addresses: ['192.0.2.10', '192.0.2.11'],
    spread: 'Connection',
  });
  const objects = [...base, rule, one, mine, partner];
  writeFileSync(join(directory, 'all.yaml'), JSON.stringify({ apiVersion: 'v1', kind: 'List', items: objects }));
  const explained = async (to: string, ...more: string[]) =>
    (await sluice('explain', '--source', `directory:${directory}`, '--from', 'a/one', '--to', to, ...more)).out;
  t.match(
    await explained('203.0.113.9:53'),
    /Leaves as 192\.0\.2\.1: shard s\d of pool p, gateway g\d\.\nBy EgressIP mine; 5 connections at once/,
  );
  t.match(
    await explained('198.51.100.1:53'),
    /Leaves as one of these, by connection:\n {2}192\.0\.2\.10: shard.*\n {2}192\.0\.2\.11: .*\nBy EgressIP partner, which serves 198\.51\.100\.0\/24\.\n/,
  );
  t.match(JSON.parse(await explained('198.51.100.1:53', '-o', 'json')), {
    spread: [{ address: '192.0.2.10' }, {}],
    egressIP: { name: 'partner', destination: '198.51.100.0/24' },
  });
  t.match(await explained('[2001:db8:5::1]:53'), /drop.*\n?.*no egress IP/i);

  const state = (list: AnyObject[]) => {
    const snapshot = new Map([...base, rule, one, ...list].map((o) => [objectKey(o), o]));
    return { snapshot, result: plan(snapshot, emptyMemory(), noPeers(), NOW) };
  };
  const { changes, egress } = simulate(state([mine]), state([mine, partner]));
  t.same(egress, [], 'where none names the destination nothing changes');
  t.same(
    changes.flatMap(({ before, after }) => (after.egress === undefined ? [] : [[before.egress, after.egress]])),
    [['192.0.2.1', '192.0.2.10 or 192.0.2.11']],
  );
  const narrower = egressIP('partner', { ...(partner as { spec: Fields }).spec, destinations: ['198.51.100.0/25'] });
  t.same(
    simulate(state([mine, partner]), state([mine, narrower])).changes.map(({ before, after }) => [
      before.egress,
      after.egress,
    ]),
    [['192.0.2.10 or 192.0.2.11', '192.0.2.1']],
  );
  t.same(simulate(state([mine, partner]), state([mine, partner])).changes, []);
});
