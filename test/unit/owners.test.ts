/**
 * EgressIPs with `allocation: PerNamespace` and `PerPod`: whose each address is, from manifests to what gateways and nodes are
 * told and what people read; who comes when none is left; what a controller that forgot learns from gateways. Any history:
 * test/property/owners.test.ts; with packets: test/netns/owners.test.ts.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { stringify } from 'yaml';
import { type AnyObject, type EgressIPPool, objectKey, parseObject } from '../../api/kinds.ts';
import type { GatewayPlan, NodePlan } from '../../api/plan.ts';
import { diffPlan } from '../../api/plan-delta.ts';
import { holdsMessages, parseClientMessage } from '../../api/plan-stream.ts';
import { analyse } from '../../controller/analyse.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { emptyMemory, type PlannerMemory, readMemory } from '../../controller/plan/memory.ts';
import { noPeers, type Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { heldAddresses, withResting } from '../../controller/plan/resting.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { stateOf } from '../../kernel/nft.ts';
import { compileCarriage } from '../../policy/carriage.ts';
import { sluice } from '../sluice.ts';

type Fields = Record<string, unknown>;
const NOW = Date.parse('2026-01-01T00:00:00Z');
const QUARANTINE = 60_000;
let age = 0;
const written = new Map<string, unknown>();
/** Objects come out as old as they were made: the first is the oldest. */
function object(kind: string, name: string, fields: Fields, meta: Fields = {}): AnyObject {
  const core = ['Namespace', 'Pod', 'Node'].includes(kind);
  const creationTimestamp = new Date(NOW - 1e9 + ++age * 1000).toISOString().replace('.000Z', 'Z');
  const apiVersion = core ? 'v1' : 'sluice.dev/v1alpha1';
  const input = { apiVersion, kind, metadata: { name, creationTimestamp, ...meta }, ...fields };
  const parsed = parseObject(input);
  if (!parsed.ok) throw new Error(`${kind} ${name}: ${JSON.stringify(parsed.errors)}`);
  written.set(objectKey(parsed.value), input);
  return parsed.value;
}
const node = object('Node', 'n1', { status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] } });
const gatewayPool = object('GatewayPool', 'p', {
  spec: {
    namespaceSelector: {},
    gateways: [1, 2].map((n) => ({ name: `g${n}`, internalAddress: `10.0.0.${n}` })),
    interfaces: { internal: 'in', external: { name: 'out' } },
    nextHops: { v4: ['10.0.0.64-10.0.0.67'], v6: ['fd00:10::64-fd00:10::67'] },
    steering: { mode: 'VXLAN', vni: 1 },
    defaultAction: 'Accept',
  },
});
const drawPool = (spec: Fields = {}) =>
  object('EgressIPPool', 'd', {
    spec: {
      gatewayPool: 'p',
      ranges: ['192.0.2.1-192.0.2.99', '2001:db8::1-2001:db8::99'],
      namespaceSelector: {},
      quarantineSeconds: QUARANTINE / 1000,
      ...spec,
    },
  });
const pool = drawPool();
const [a, b, c] = ['a', 'b', 'c'].map((name) => object('Namespace', name, {}));
const all = [a, b, c] as AnyObject[];
const pod = (namespace: string, name: string, host: number, more: { anew?: number; phase?: string; ip?: false } = {}) =>
  object(
    'Pod',
    name,
    {
      spec: { nodeName: 'n1' },
      status: {
        phase: more.phase ?? 'Running',
        ...(more.ip !== false && { podIPs: [{ ip: `10.1.0.${host}` }, { ip: `fd01::${host}` }] }),
      },
    },
    { namespace, uid: `${namespace}-${name}-${more.anew ?? 0}` },
  );
const egressIP = (name: string, spec: Fields) =>
  object('EgressIP', name, {
    spec: {
      pool: 'd',
      ...('addresses' in spec ? {} : { count: 3 }),
      ...('namespaces' in spec ? {} : { namespaceSelector: {} }),
      ...spec,
    },
  });
const perNamespace = (spec: Fields = {}) => egressIP('each', { allocation: 'PerNamespace', ...spec });
const perPod = (spec: Fields = {}) => egressIP('each', { allocation: 'PerPod', ...spec });

interface Given {
  memory?: PlannerMemory;
  peers?: Peers;
  at?: number;
  cache?: PlanCache;
}
const run = (
  objects: readonly AnyObject[],
  { memory = emptyMemory(), peers = noPeers(), at = 0, cache }: Given = {},
) => {
  const there = [node, gatewayPool, ...(objects.some(({ kind }) => kind === 'EgressIPPool') ? [] : [pool]), ...objects];
  return plan(new Map(there.map((o) => [objectKey(o), o])), memory, peers, NOW + at, new Map(), cache);
};
const poolPlan = (result: PlanResult): GatewayPlan => result.pools.get('p') as GatewayPlan;
/** Last number of the v4 address of each pod; of v6 too, since both are given alike. */
const leaves = (result: PlanResult): Record<string, string> =>
  Object.fromEntries(
    Object.values(poolPlan(result).workloads).map(({ namespace, name, egress }) => [
      `${namespace}/${name}`,
      `${egress[4]?.address.split('.').at(-1) ?? '-'} ${egress[6]?.address.split(':').at(-1) ?? '-'}`,
    ]),
  );
const acknowledged = (result: PlanResult): Peers => ({
  gateways: new Map(
    ['g1', 'g2'].map((name) => [name, { connected: true, addresses: [], generation: 1, inForce: poolPlan(result) }]),
  ),
  nodes: new Map(),
});
const programmed = (result: PlanResult) =>
  result.statuses.get('EgressIP/each')?.conditions.find(({ type }) => type === 'Programmed');

t.test('each namespace, or each pod, has an address to itself', async (t) => {
  const pods = [pod('a', 'x-0', 1), pod('a', 'x-1', 2), pod('b', 'y-0', 3)];
  t.same(leaves(run([...all, ...pods, perNamespace()])), { 'a/x-0': '1 1', 'a/x-1': '1 1', 'b/y-0': '2 2' });
  t.same(leaves(run([...all, ...pods, perPod()])), { 'a/x-0': '1 1', 'a/x-1': '2 2', 'b/y-0': '3 3' });
  const listed = ['192.0.2.7', '192.0.2.5', '2001:db8::5', '2001:db8::7'];
  t.same(leaves(run([...all, ...pods, perNamespace({ addresses: listed })])), {
    'a/x-0': '5 5',
    'a/x-1': '5 5',
    'b/y-0': '7 7',
  });
  const partner = { destinations: ['198.51.100.0/24'], podSelector: {} };
  const away = run([...all, ...pods, perPod(partner), egressIP('rest', { count: 1 })]);
  t.same(leaves(away)['a/x-1'], '4 4', 'the rest as all others');
  t.match(
    poolPlan(away).workloads['a-x-1-0']?.elsewhere,
    { each: { 4: { address: '192.0.2.2' }, 6: { address: '2001:db8::2' } } },
    'by destination too',
  );
  const fallback = run([...all, ...pods, perNamespace({ count: 1 }), egressIP('own', { namespaces: ['a'], count: 1 })]);
  t.same(leaves(fallback)['b/y-0'], '1 1', 'a namespace that another EgressIP serves takes none');
});

t.test(
  'who was there keeps it: by name, whatever uid and address; a pod without an address yet has it too',
  async (t) => {
    const first = run([...all, pod('a', 'x-0', 1), pod('a', 'x-1', 2), perPod()]);
    const later = [
      ...all,
      pod('a', 'x-1', 9, { anew: 1 }),
      pod('a', 'w', 4),
      pod('a', 'x-0', 7, { anew: 1 }),
      perPod(),
    ];
    t.same(leaves(run(later, first)), { 'a/x-0': '1 1', 'a/x-1': '2 2', 'a/w': '3 3' });
    const pending = run([...all, pod('b', 'z', 1, { ip: false }), pod('a', 'x-0', 2), perPod()]);
    t.match(Object.values(pending.memory.owners)[0], { owner: 'b/z' }, 'the older pod, which has none yet');
    const finished = run([...all, pod('a', 'x-0', 1), pod('a', 'job', 3, { phase: 'Succeeded' }), perPod()], first);
    t.equal(
      Object.values(finished.memory.owners).filter(({ goneAt }) => goneAt === undefined).length,
      2,
      'not a finished one',
    );
    t.same(run(later, first).memory.owners, readMemory(JSON.parse(JSON.stringify(run(later, first).memory)))?.owners);
    t.equal(readMemory({ ...emptyMemory(), owners: { '192.0.2.1': { owner: 7 } } }), undefined, 'a damaged file');
    t.same(readMemory({ ...emptyMemory(), owners: undefined })?.owners, {}, 'one of before there were any');
  },
);

t.test('what was given back rests, then goes to another, last of all to one that nobody waits for', async (t) => {
  const two = { count: 2 };
  const first = run([...all, pod('a', 'x', 1), pod('a', 'y', 2), perPod(two)]);
  const others = [...all, pod('a', 'x', 1), pod('a', 'z', 3)];
  const gone = run([...others, perPod(two)], { ...first, at: 1_000 });
  t.same(leaves(gone), { 'a/x': '1 1', 'a/z': '- -' });
  t.equal(gone.wakeAt, NOW + 1_000 + QUARANTINE, 'and the planner says when to look again');
  t.match(programmed(gone), {
    status: 'False',
    reason: 'AddressesExhausted',
    message: /^pod a\/z: no IPv4 address is left \(2 in all/,
  });
  const before = run([...others, perPod(two)], { ...gone, at: QUARANTINE + 999 });
  t.same(leaves(before), { 'a/x': '1 1', 'a/z': '- -' });
  t.same(leaves(run([...others, perPod(two)], { ...before, at: QUARANTINE + 1_000 })), { 'a/x': '1 1', 'a/z': '2 2' });
  const back = run([...others, pod('a', 'y', 4, { anew: 1 }), perPod(two)], { ...before, at: QUARANTINE + 999 });
  t.same(leaves(back), { 'a/x': '1 1', 'a/z': '- -', 'a/y': '2 2' }, 'who had it does not wait');
  const long = run([...all, pod('a', 'x', 1), perPod(two)], { ...gone, at: 9 * QUARANTINE });
  t.same(leaves(run([...all, pod('a', 'y', 4), perPod(two)], { ...long, at: 10 * QUARANTINE })), { 'a/y': '2 2' });
  const three = run([...others, perPod({ count: 3 })], { ...gone, at: 2_000 });
  t.same(leaves(three), { 'a/x': '1 1', 'a/z': '3 3' }, 'one that nobody had is given at once');
});

t.test(
  'an EgressIP that shrinks keeps what is used; a pool that shrinks takes from nobody and gives none of it',
  async (t) => {
    const used = { '192.0.2.3': 'a/z', '2001:db8::3': 'a/z' };
    const first = run([...all, pod('a', 'x', 1), pod('a', 'y', 2), pod('a', 'z', 3), perPod()]);
    const left = run([...all, pod('a', 'z', 3), perPod()], first);
    const shrunk = run([...all, pod('a', 'z', 3), perPod({ count: 1 })], left);
    t.same(leaves(shrunk), { 'a/z': '3 3' });
    const held = Object.entries(shrunk.memory.owners).filter(([, { goneAt }]) => goneAt === undefined);
    t.same(Object.fromEntries(held.map(([address, { owner }]) => [address, owner])), used);
    const small = drawPool({ ranges: ['192.0.2.10-192.0.2.12', '2001:db8::10-2001:db8::12'] });
    const moved = run([small, ...all, pod('a', 'z', 3), pod('a', 'v', 4), perPod()], { ...left, at: 2 * QUARANTINE });
    t.same(leaves(moved), { 'a/z': '3 3', 'a/v': '10 10' });
    t.match(moved.statuses.get('EgressIP/each')?.conditions[0], { reason: 'OutOfPool', status: 'True' });
    const away = run([small, ...all, pod('a', 'v', 4), perPod()], { ...moved, at: 2 * QUARANTINE + 1 });
    const back = run([small, ...all, pod('a', 'v', 4), pod('a', 'z', 5), perPod()], { ...away, at: 3 * QUARANTINE });
    t.same(leaves(back), { 'a/v': '10 10', 'a/z': '3 3' }, 'still resting: its own');
    const over = run([small, ...all, pod('a', 'v', 4), perPod()], { ...away, at: 3 * QUARANTINE + 1 });
    t.notOk(poolPlan(over).shards.s0?.egressIPs.includes('192.0.2.3'));
    const late = run([small, ...all, pod('a', 'v', 4), pod('a', 'z', 5), perPod()], {
      ...over,
      at: 3 * QUARANTINE + 1,
    });
    t.same(leaves(late), { 'a/v': '10 10', 'a/z': '11 11' });
  },
);

t.test('who has none is let out nowhere, whatever the pool says of those that no EgressIP serves', async (t) => {
  const objects = [...all, pod('a', 'x', 1), pod('b', 'y', 2), perNamespace({ count: 1 })];
  const first = run(objects);
  t.same(leaves(first), { 'a/x': '1 1', 'b/y': '- -' });
  t.match(programmed(first), { message: /^namespaces b, c: no IPv4 address is left \(1 in all/ });
  const result = run(objects, { ...first, peers: acknowledged(first) });
  const entries = (result.nodes.get('n1') as NodePlan).workloads;
  t.match(entries['a-x-0']?.steer, { 4: { shard: /^p\/s/ }, 6: { shard: /^p\/s/ } });
  t.same(entries['b-y-0']?.steer, { 4: 'drop', 6: 'drop' });
  const without = poolPlan(result).workloads['b-y-0'];
  const carriage = compileCarriage(poolPlan(result));
  const destination = { address: { family: 4 as const, value: 0xc6336450n }, protocol: 6, port: 443 };
  t.match(without && carriage.decide(without, destination), { verdict: 'drop', reason: 'no-egress-ip' });
  const nft = JSON.stringify(stateOf(compileGateway(poolPlan(result)).ruleset), (_, value) =>
    value instanceof Map ? Object.fromEntries(value) : value,
  );
  t.match(nft, /"noegress4":\{[^}]*"10\.1\.0\.2"/, 'and the gateway drops what comes nevertheless');
  t.match(analyse(new Map([node, gatewayPool, pool, ...objects].map((o) => [objectKey(o), o]))), [
    { object: 'EgressIP/each', code: 'AddressesExhausted', severity: 'warning' },
  ]);
});

t.test('status: how many, and to whom', async (t) => {
  const result = run([...all, pod('a', 'x-0', 1), pod('b', 'y', 2), perPod({ count: 4 })]);
  const status = result.statuses.get('EgressIP/each');
  t.match(status, {
    given: '2/4',
    owners: [
      { owner: 'a/x-0', addresses: ['192.0.2.1', '2001:db8::1'] },
      { owner: 'b/y', addresses: ['192.0.2.2', '2001:db8::2'] },
    ],
    namespaces: 3,
  });
  t.notOk('addresses' in (status ?? {}), 'a column of a thousand addresses is read by nobody');
  const limited = { count: 4, bandwidth: { egress: '8Mbit' }, maxConnections: 100 };
  const shards = poolPlan(run([...all, pod('a', 'x-0', 1), perPod(limited)])).egressIPs.each?.limits?.shards;
  t.ok((shards?.length ?? 9) <= 2, 'a limit is divided over the shards that are used');
});

t.test('one more pod is a small delta, however many there are', async (t) => {
  const cache = new PlanCache();
  const pods = Array.from({ length: 60 }, (_, at) => pod(['a', 'b', 'c'][at % 3] ?? '', `x-${at}`, at + 1));
  const eip = perPod({ count: 90 });
  const given = (objects: AnyObject[], last: PlanResult) =>
    run(objects, { memory: last.memory, peers: acknowledged(last), cache });
  let before = run([...all, ...pods, eip], { cache });
  before = given([...all, ...pods, eip], before);
  const after = given([...all, ...pods, pod('a', 'new', 99), eip], before);
  const delta = diffPlan(poolPlan(before), poolPlan(after));
  t.same(
    Object.keys(delta.set),
    ['workloads', 'groups'].filter((name) => delta.set[name] !== undefined),
  );
  t.same(Object.keys(delta.set.workloads ?? {}), ['a-new-0'], 'one entry');
  t.equal(after.memory.allocations, before.memory.allocations);
});

t.test(
  'a controller that forgot learns from gateways who had what, and gives it to nobody else meanwhile',
  async (t) => {
    const objects = (...pods: AnyObject[]) => [...all, ...pods, perPod({ count: 2 })];
    const first = run(objects(pod('a', 'x', 1), pod('b', 'y', 2)));
    const messages = holdsMessages(poolPlan(first)).map((message) => parseClientMessage(JSON.stringify(message)));
    const heard = Object.assign(
      {},
      ...messages.map((one) => (one.ok && 'addresses' in one.value ? one.value.addresses : {})),
    );
    t.same(heard, {
      '192.0.2.1': 'each/a/x',
      '2001:db8::1': 'each/a/x',
      '192.0.2.2': 'each/b/y',
      '2001:db8::2': 'each/b/y',
    });
    const spaces = run([...all, pod('a', 'x', 1), perNamespace({ count: 1 })]);
    t.same(holdsMessages(poolPlan(spaces))[0]?.addresses, { '192.0.2.1': 'each/a', '2001:db8::1': 'each/a' });
    const held = heldAddresses(heard, [pool as EgressIPPool]);
    const again = run(objects(pod('c', 'older', 3), pod('b', 'y', 5)), {
      memory: withResting(emptyMemory(), held, NOW),
    });
    t.same(leaves(again), { 'b/y': '2 2', 'c/older': '- -' });
    const known = { ...emptyMemory(), allocations: first.memory.allocations };
    const older = run(objects(pod('c', 'older', 3), pod('b', 'y', 5)), { memory: withResting(known, held, NOW) });
    t.same(leaves(older), { 'b/y': '2 2', 'c/older': '- -' }, 'of addresses that it knows of too');
    for (const bad of ['a/b/c/d', 'a/', '/', 'a/B'])
      t.notOk(
        parseClientMessage(JSON.stringify({ type: 'holds', addresses: { '192.0.2.1': bad }, more: false })).ok,
        bad,
      );
  },
);

t.test('the verbs: explain says whose it is and why there is none; get shows how many', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'sluice-owners-'));
  t.teardown(() => rmSync(root, { recursive: true, force: true }));
  const objects = [node, gatewayPool, pool, ...all, pod('a', 'x-0', 1), pod('b', 'y', 2), perPod({ count: 1 })];
  writeFileSync(join(root, 'all.yaml'), objects.map((one) => stringify(written.get(objectKey(one)))).join('---\n'));
  const status = run(objects).statuses.get('EgressIP/each');
  mkdirSync(join(root, '.status', 'EgressIP'), { recursive: true });
  const file = { apiVersion: 'sluice.dev/v1alpha1', kind: 'EgressIP', metadata: { name: 'each' } };
  const shown = { ...status, owners: [{ owner: 'b/y', addresses: ['192.0.2.1', '2001:db8::1'] }] };
  writeFileSync(join(root, '.status', 'EgressIP', 'each.yaml'), stringify({ ...file, status: shown }));
  const explain = (from: string) =>
    sluice('explain', '--source', `directory:${root}`, '--from', from, '--to', '198.51.100.80:443');
  const mine = await explain('b/y');
  t.match(mine.out, /Leaves as 192\.0\.2\.1/, 'as the controller gave it, which says so in its status');
  t.match(mine.out, /EgressIP each gives this address to pod b\/y alone\./);
  t.match((await explain('a/x-0')).out, /EgressIP each gives each pod an address of its own, and none is left/);
  const table = await sluice('get', 'eip', '-o', 'wide', '--source', `directory:${root}`);
  t.match(table.out, /1\/1/);
  t.match(table.out, /PerPod/);
});
