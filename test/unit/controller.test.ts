/**
 * The controller by parts (documents, directory, allocation, assignment, pods, release, status files) and whole: the
 * real program against real plan-stream clients over loopback, from a manifest on disk to a node's release.
 */
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type AnyObject, type EgressIP, objectKey, parseObject } from '../../api/kinds.ts';
import { emptyGatewayPlan, type GatewayPlan, type NodePlan } from '../../api/plan.ts';
import { runController } from '../../controller/main.ts';
import { loadDirectory, watchDirectory } from '../../controller/observe/directory.ts';
import { readDocuments } from '../../controller/observe/document.ts';
import type { Observation } from '../../controller/observe/source.ts';
import { emptyMemory, type PlannerMemory, readMemory } from '../../controller/plan/memory.ts';
import { noPeers, type Peer, type Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { StatusDirectory, withErrors } from '../../controller/publish/status.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';

type Fields = Record<string, unknown>;
const NOW = Date.parse('2026-01-01T00:00:00Z');
/** Directories are looked at so often, whatever is heard of them. */
const POLL_MS = 5_000;
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
const namespace = (name: string, labels: Fields = {}) => object('Namespace', name, {}, { labels });
const node = (name: string, address: string) =>
  object('Node', name, {
    spec: { podCIDRs: ['10.1.0.0/16'] },
    status: { addresses: [{ type: 'InternalIP', address }] },
  });
const pod = (ns: string, name: string, ips: string[], more: { labels?: Fields; spec?: Fields; status?: Fields } = {}) =>
  object(
    'Pod',
    name,
    {
      spec: { nodeName: 'n1', ...more.spec },
      status: { phase: 'Running', podIPs: ips.map((ip) => ({ ip })), ...more.status },
    },
    { namespace: ns, uid: `uid-${name}`, labels: more.labels ?? {} },
  );
const gatewayPool = (name: string, spec: Fields = {}) =>
  object('GatewayPool', name, {
    spec: {
      namespaceSelector: {},
      gateways: [
        { name: 'g1', internalAddress: '10.0.0.1' },
        { name: 'g2', internalAddress: '10.0.0.2' },
      ],
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: ['10.0.0.64-10.0.0.67'] },
      steering: { mode: 'VXLAN', vni: 1 },
      ...spec,
    },
  });
const drawPool = (name: string, spec: Fields = {}) =>
  object('EgressIPPool', name, {
    spec: {
      gatewayPool: 'p',
      ranges: ['192.0.2.1-192.0.2.9', '2001:db8::1-2001:db8::9'],
      namespaceSelector: {},
      ...spec,
    },
  });
const egressIP = (name: string, spec: Fields) =>
  object('EgressIP', name, {
    spec: { pool: 'd', ...('namespaceSelector' in spec ? {} : { namespaces: [name] }), ...spec },
  });
const snapshotOf = (...objects: AnyObject[]) => new Map(objects.map((o) => [objectKey(o), o]));

const run = (objects: AnyObject[], memory: PlannerMemory = emptyMemory(), peers: Peers = noPeers(), now = NOW) =>
  plan(snapshotOf(...objects), memory, peers, now);
const owners = (result: PlanResult) =>
  Object.fromEntries(
    Object.entries(result.memory.allocations).map(([a, { owner, releasedAt }]) => [
      a,
      releasedAt === undefined ? owner : `(${owner})`,
    ]),
  );
const condition = (result: PlanResult, key: string, type: string) =>
  result.statuses.get(key)?.conditions.find((c) => c.type === type);
/** Both gateways have this plan in force. */
const acknowledged = (result: PlanResult): Peers => {
  const inForce = result.pools.get('p') as GatewayPlan;
  const peer = { connected: true, addresses: [], generation: 1, inForce };
  return { gateways: new Map([...result.gateways.keys()].map((name) => [name, peer])), nodes: new Map() };
};

const yaml = (name: string, value = 'x') =>
  `{apiVersion: v1, kind: ConfigMap, metadata: {name: ${name}, namespace: a}, data: {k: ${value}}}\n`;
const invalid = (name: string) =>
  `{apiVersion: v1, kind: ConfigMap, metadata: {name: ${name}, namespace: a}, data: 5}\n`;
const dataOf = (o: AnyObject | undefined) => (o?.kind === 'ConfigMap' ? o.data?.k : undefined);

t.test('pools of both modes: one port for all tunnels, of which a Direct pool has none', async (t) => {
  const nextHops = (from: number) => ({ v4: [`10.0.0.${from}-10.0.0.${from + 1}`] });
  const gateways = (n: number) => ({ gateways: [{ name: `g${n}`, internalAddress: `10.0.0.${n}` }] });
  const pools = [
    gatewayPool('p', { ...gateways(1), nextHops: nextHops(64), steering: { mode: 'Direct', port: 4000, mtu: 1300 } }),
    gatewayPool('q', { ...gateways(2), nextHops: nextHops(66), steering: { mode: 'VXLAN', vni: 7, port: 5000 } }),
    gatewayPool('r', { ...gateways(3), nextHops: nextHops(68), steering: { mode: 'VXLAN', vni: 8, port: 6000 } }),
  ];
  const result = run([...pools, node('n1', '10.0.0.21')]);
  const nodePlan = result.nodes.get('n1');
  t.match(nodePlan?.settings, { node: { port: 5000, mtu: null } });
  t.same(
    Object.entries(nodePlan?.shards ?? {}).map(([key, { mode }]) => `${key.split('/')[0]} ${mode}`),
    ['p Direct', 'p Direct', 'q VXLAN', 'q VXLAN', 'r VXLAN', 'r VXLAN'],
  );
  t.match(condition(result, 'GatewayPool/r', 'Conflicted'), { status: 'True', message: /steering.port is 5000/ });
  t.not(condition(result, 'GatewayPool/q', 'Conflicted')?.status, 'True', 'the Direct pool’s port is nobody’s');
});

t.test('readDocuments: what is bad leaves what was', async (t) => {
  const nothing = () => undefined;
  const before = readDocuments('f', `${yaml('one', 'old')}---\n${yaml('two', 'old')}`, new Map(), nothing).objects;
  const rows: [string, string, Record<string, string>, string[]][] = [
    ['two documents', `${yaml('one')}---\n${yaml('two')}`, { one: 'x', two: 'x' }, []],
    ['one of them removed', yaml('two'), { two: 'x' }, []],
    ['empty documents', `---\n---\n${yaml('one')}---\n`, { one: 'x' }, []],
    [
      'a List',
      `{apiVersion: v1, kind: List, items: [${yaml('one').trim()}, ${yaml('six').trim()}]}`,
      { one: 'x', six: 'x' },
      [],
    ],
    [
      'an invalid document that says whose it is',
      `${invalid('one')}---\n${yaml('three')}`,
      { three: 'x', one: 'old' },
      ['Invalid'],
    ],
    ['an invalid document of something new', `${yaml('one')}---\n${invalid('nine')}`, { one: 'x' }, ['Invalid']],
    ['a document that does not say', `${yaml('one')}---\nhello\n`, { one: 'x', two: 'old' }, ['Invalid']],
    ['a syntax error keeps all of the file', `${yaml('one')}---\n{a: [\n`, { one: 'old', two: 'old' }, ['BadYAML']],
    [
      'the same object twice: the first',
      `${yaml('one', 'first')}---\n${yaml('one', 'second')}`,
      { one: 'first' },
      ['Duplicate'],
    ],
    [
      'an alias bomb',
      `a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n`,
      { one: 'old', two: 'old' },
      ['BadYAML'],
    ],
  ];
  for (const [title, text, expected, reasons] of rows) {
    const { objects, errors } = readDocuments('f', text, before, nothing);
    const found = Object.fromEntries([...objects].map(([key, o]) => [key.split('/')[2], dataOf(o)]));
    t.same(found, expected, title);
    t.same(
      errors.map(({ reason }) => reason),
      reasons,
      `${title}: errors`,
    );
  }
});

t.test('the directory source: what is beyond its bounds is said, and nothing counts as deleted', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-d-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const deep = join(root, ...Array(17).fill('d'));
  await mkdir(deep, { recursive: true });
  await writeFile(join(deep, 'a.yaml'), yaml('deep'));
  t.match((await loadDirectory(root)).errors, [
    { file: `${Array(17).fill('d').join('/')}/`, reason: 'Unreadable', details: ['deeper than 16 directories'] },
  ]);
  await rm(join(root, 'd'), { recursive: true });
  await writeFile(join(root, 'b.yaml'), yaml('kept'));
  let looks = 0;
  const onLook = () => looks++;
  const source = await watchDirectory({ path: root, log: silentLog(), onChange: () => undefined, onLook, maxFiles: 3 });
  t.teardown(() => source.close());
  for (const name of ['c', 'd', 'e']) await writeFile(join(root, `${name}.yaml`), '');
  const until = async (check: () => boolean) => {
    const since = performance.now();
    while (!check() && performance.now() - since < 60_000) await new Promise((done) => setTimeout(done, 10));
  };
  await until(() => source.current().errors.some(({ file }) => file === '*'));
  t.match(source.current().errors, [{ reason: 'Unreadable', details: [/^more than 3 files/] }]);
  await writeFile(join(root, 'f.yaml'), '');
  await rm(join(root, 'b.yaml'));
  const before = looks;
  await until(() => looks > before);
  t.same([...source.current().snapshot.keys()], ['ConfigMap/a/kept']);
});

t.test('the directory source: watched, robust, remembered', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-d-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const path = join(root, 'manifests');
  const state = join(root, 'state');
  await mkdir(join(path, 'sub'), { recursive: true });
  await writeFile(join(path, 'b.yaml'), `${yaml('one', 'b')}---\n${yaml('two', 'b')}`);
  await writeFile(join(path, 'a.yml'), yaml('one', 'a'));
  let changes = 0;
  let stopped: number | undefined;
  const now = () => stopped ?? Date.now();
  const open = () => watchDirectory({ path, state, log: silentLog(), onChange: () => changes++, now });
  let source = await open();
  const shown = ({ snapshot }: Observation) =>
    Object.fromEntries([...snapshot].map(([key, o]) => [key.split('/')[2], dataOf(o)]));
  const until = async (title: string, check: () => boolean) => {
    const start = performance.now();
    while (!check() && performance.now() - start < 60_000) await new Promise((done) => setTimeout(done, 2));
    t.ok(check(), title);
    return performance.now() - start;
  };
  t.same(shown(source.current()), { one: 'a', two: 'b' }, 'an object in two files: the first by name');
  t.match(source.current().errors, [{ file: 'b.yaml', reason: 'Duplicate', object: 'ConfigMap/a/one' }]);

  await writeFile(join(path, 'a.yml'), yaml('one', 'a2'));
  const took = await until('written in place', () => shown(source.current()).one === 'a2');
  t.ok(took < POLL_MS, `seen before it is looked for (${took.toFixed(0)} ms)`);
  await writeFile(join(path, '.a.swp'), yaml('one', 'a3'));
  await rename(join(path, '.a.swp'), join(path, 'a.yml'));
  await until('renamed over', () => shown(source.current()).one === 'a3');
  await mkdir(join(path, 'new'));
  await writeFile(join(path, 'new', 'c.yaml'), yaml('three'));
  await until('a new folder', () => shown(source.current()).three === 'x');
  await writeFile(join(path, 'new', 'c.yaml'), yaml('three', 'y'));
  await until('written in the new folder', () => shown(source.current()).three === 'y');
  const { creationTimestamp, uid } = source.current().snapshot.get('ConfigMap/a/three')?.metadata ?? {};
  t.match(uid, /^[0-9a-f-]{36}$/, 'a uid is made up');

  stopped = Date.now();
  await writeFile(join(path, 'new', 'c.yaml'), '');
  await writeFile(join(path, 'a.yml'), yaml('one', 'a4'));
  await until('a later change is seen', () => shown(source.current()).one === 'a4');
  t.equal(shown(source.current()).three, 'y', 'a file that is empty for a moment has lost nothing');
  stopped = undefined;
  await until('but is believed in the end', () => shown(source.current()).three === undefined);
  await writeFile(join(path, 'new', 'c.yaml'), yaml('three', 'z'));
  await until('and comes back', () => shown(source.current()).three === 'z');
  t.not(source.current().snapshot.get('ConfigMap/a/three')?.metadata.uid, uid, 'as another object');
  const age = source.current().snapshot.get('ConfigMap/a/two')?.metadata.creationTimestamp;

  await writeFile(join(path, 'b.yaml'), '{');
  await until('a syntax error is reported', () => source.current().errors.some(({ reason }) => reason === 'BadYAML'));
  t.equal(shown(source.current()).two, 'b', 'and the file stays in force');
  await source.close();
  source = await open();
  t.equal(shown(source.current()).two, 'b', 'across a restart too');
  t.equal(source.current().snapshot.get('ConfigMap/a/two')?.metadata.creationTimestamp, age, 'as old as before');
  t.not(creationTimestamp, undefined);
  await rm(join(path, 'b.yaml'));
  await until('a removed file is gone', () => shown(source.current()).two === undefined);
  const quiet = changes;
  await mkdir(join(path, '.status'));
  await writeFile(join(path, '.status', 'x.yaml'), yaml('four'));
  await writeFile(join(path, 'sub', 'notes.txt'), 'hello');
  await new Promise((done) => setTimeout(done, 100));
  t.equal(changes, quiet, 'other files and our own status wake nobody');
  await source.close();
  await t.rejects(watchDirectory({ path: join(root, 'none'), log: silentLog(), onChange: () => undefined }));
});

t.test('allocation', async (t) => {
  const base = [gatewayPool('p'), drawPool('d')];
  const two = [...base, egressIP('a', { count: 2 }), egressIP('b', { addresses: ['192.0.2.5', '2001:db8::5'] })];
  const first = run(two);
  t.same(
    owners(first),
    {
      '192.0.2.1': 'a',
      '192.0.2.2': 'a',
      '2001:db8::1': 'a',
      '2001:db8::2': 'a',
      '192.0.2.5': 'b',
      '2001:db8::5': 'b',
    },
    'counts per family from the pool, explicit as written',
  );
  t.same(run(two, first.memory).memory, first.memory, 'again changes nothing');
  const { gatewayAddresses: _, ...later } = run(
    [...two, egressIP('c', { addresses: ['192.0.2.1'] })],
    first.memory,
  ).memory;
  t.equal(later.allocations['192.0.2.1']?.owner, 'a', 'what an older one drew is not taken by a younger claim');

  const rows: [string, AnyObject[], string, string, RegExp][] = [
    [
      'the older of two claims wins',
      [...base, egressIP('x', { addresses: ['192.0.2.3'] }), egressIP('y', { addresses: ['192.0.2.3'] })],
      'EgressIP/y',
      'Conflicted',
      /EgressIP x/,
    ],
    [
      'outside the pool',
      [...base, egressIP('x', { addresses: ['198.51.100.1'] })],
      'EgressIP/x',
      'Accepted',
      /not in EgressIPPool d/,
    ],
    [
      'excluded',
      [gatewayPool('p'), drawPool('d', { exclude: ['192.0.2.3'] }), egressIP('x', { addresses: ['192.0.2.3'] })],
      'EgressIP/x',
      'Accepted',
      /not in/,
    ],
    [
      'no such pool',
      [...base, egressIP('x', { pool: 'z', count: 1 })],
      'EgressIP/x',
      'Accepted',
      /EgressIPPool z does not exist/,
    ],
    [
      'exhausted',
      [...base, egressIP('x', { count: 10 })],
      'EgressIP/x',
      'Programmed',
      /no free IPv4 address \(1 missing\)/,
    ],
    [
      'a next hop',
      [gatewayPool('p'), drawPool('d', { ranges: ['10.0.0.0/24'] }), egressIP('x', { addresses: ['10.0.0.64'] })],
      'EgressIP/x',
      'Accepted',
      /next hop/,
    ],
    [
      'who may not draw',
      [
        namespace('x'),
        gatewayPool('p'),
        drawPool('d', { namespaceSelector: { matchLabels: { team: 'q' } } }),
        egressIP('x', { count: 1 }),
      ],
      'EgressIP/x',
      'Programmed',
      /does not let namespace x/,
    ],
  ];
  for (const [title, objects, key, type, message] of rows) {
    const found = condition(run(objects), key, type);
    t.match(found?.message, message, title);
    t.equal(found?.status, type === 'Conflicted' ? 'True' : 'False', title);
  }

  const shrunk = [gatewayPool('p'), drawPool('d', { ranges: ['192.0.2.9'] }), egressIP('a', { count: 1 })];
  const before = run([gatewayPool('p'), drawPool('d', { ranges: ['192.0.2.1'] }), egressIP('a', { count: 1 })]);
  const kept = run(shrunk, before.memory);
  t.same(owners(kept), { '192.0.2.1': 'a' }, 'a shrunken pool takes nothing away');
  t.equal(condition(kept, 'EgressIP/a', 'Accepted')?.reason, 'OutOfPool');

  const small = [gatewayPool('p'), drawPool('d', { ranges: ['192.0.2.1'], quarantineSeconds: 60 })];
  const held = run([...small, egressIP('a', { count: 1 })]);
  const b = egressIP('b', { count: 1 });
  const waiting = run([...small, b], held.memory);
  t.same(owners(waiting), { '192.0.2.1': '(a)' }, 'a returned address is in quarantine');
  t.equal(waiting.wakeAt, NOW + 60_000, 'and the planner says when to look again');
  t.same(owners(run([...small, b], waiting.memory, noPeers(), NOW + 59_000)), { '192.0.2.1': '(a)' });
  t.same(owners(run([...small, b], waiting.memory, noPeers(), NOW + 60_000)), { '192.0.2.1': 'b' });
  t.same(
    owners(run([...small, egressIP('a', { count: 1 })], waiting.memory)),
    { '192.0.2.1': 'a' },
    'but not for its old owner',
  );
  t.same(
    owners(run([...small, egressIP('c', { addresses: ['192.0.2.1'] })], waiting.memory)),
    { '192.0.2.1': 'c' },
    'nor for an explicit claim',
  );
});

t.test('which EgressIP serves a pod, and which pool a namespace', async (t) => {
  const base = [namespace('a', { team: 'red' }), node('n1', '10.0.0.21'), gatewayPool('p'), drawPool('d')];
  const web = pod('a', 'web', ['10.1.0.1'], { labels: { app: 'web' } });
  const all = egressIP('all', { addresses: ['192.0.2.1'], namespaceSelector: {} });
  const red = egressIP('red', {
    addresses: ['192.0.2.2'],
    namespaceSelector: { matchLabels: { team: 'red' } },
    priority: 5,
  });
  const listed = egressIP('listed', { addresses: ['192.0.2.3'], namespaces: ['a'], priority: 9000 });
  const later = egressIP('later', { addresses: ['192.0.2.4'], namespaces: ['a'], priority: 9000 });
  const some = egressIP('some', {
    addresses: ['192.0.2.5'],
    namespaces: ['a'],
    podSelector: { matchLabels: { app: 'web' } },
  });
  const other = egressIP('other', {
    addresses: ['192.0.2.6'],
    namespaces: ['a'],
    podSelector: { matchLabels: { app: 'db' } },
  });
  const rows: [string, AnyObject[], string | undefined][] = [
    ['a fallback', [all], '192.0.2.1'],
    ['priority among selectors', [all, red], '192.0.2.2'],
    ['a listed namespace before any selector', [all, red, listed], '192.0.2.3'],
    ['the older of two equals', [later, listed], '192.0.2.3'],
    ['a podSelector that matches before all', [all, red, listed, some, other], '192.0.2.5'],
    ['a podSelector that does not', [other, red], '192.0.2.2'],
    ['none', [other], undefined],
  ];
  for (const [title, ips, expected] of rows) {
    const result = run([...base, web, ...ips]);
    t.equal(result.pools.get('p')?.workloads['uid-web']?.egress[4]?.address, expected, title);
  }
  const conflict = run([...base, web, listed, later]);
  t.match(condition(conflict, 'EgressIP/later', 'Conflicted'), { status: 'True', message: /EgressIP listed/ });
  t.match(condition(conflict, 'EgressIP/listed', 'Conflicted'), { status: 'False' });

  const q = gatewayPool('q', {
    gateways: [
      { name: 'g2', internalAddress: '10.0.0.2' },
      { name: 'g3', internalAddress: '10.0.0.3' },
    ],
  });
  const pools = run([...base, q, web, all]);
  t.match(condition(pools, 'GatewayPool/q', 'Conflicted'), { status: 'True', message: /GatewayPool p/ });
  t.same(
    [...pools.gateways],
    [
      ['g1', 'p'],
      ['g2', 'p'],
      ['g3', 'q'],
    ],
    'a gateway belongs to the oldest pool',
  );
  t.same(Object.keys(pools.pools.get('q')?.workloads ?? {}), [], 'and so does a namespace');
  const indices = Object.values(pools.memory.shardIndices);
  t.equal(new Set(indices).size, 8, 'shard numbers are unique over pools');

  const spread = run([
    ...base,
    web,
    ...Array.from({ length: 30 }, (_, i) => pod('a', `w${i}`, [`10.1.1.${i}`])),
    egressIP('wide', { addresses: ['192.0.2.1', '192.0.2.2', '192.0.2.3'], namespaces: ['a'] }),
  ]);
  const used = new Set(Object.values(spread.pools.get('p')?.workloads ?? {}).map(({ egress }) => egress[4]?.address));
  t.equal(used.size, 3, 'pods are spread over the addresses');
});

t.test('release: where gateways elect who has a shard, all that are there must know', async (t) => {
  const eip = egressIP('a', { addresses: ['192.0.2.1'] });
  const elects = gatewayPool('p', { vrrp: {} });
  const objects = [namespace('a'), node('n1', '10.0.0.21'), elects, drawPool('d'), eip, pod('a', 'web', ['10.1.0.1'])];
  const start = run(objects);
  t.match(start.pools.get('p')?.settings, {
    pool: { vrrp: { baseId: 1, advertIntervalMs: 40, failback: 'Immediate', failbackDelayMs: 0 } },
  });
  const { shards = {}, workloads = {} } = start.pools.get('p') ?? {};
  const [one = '', two = ''] = shards[workloads['uid-web']?.egress[4]?.shard ?? '']?.order ?? [];
  const there = acknowledged(start).gateways.get(one)!;
  const ignorant = { ...there, inForce: emptyGatewayPlan() };
  const rows: [what: string, gateways: Record<string, Peer<GatewayPlan>>, released: boolean][] = [
    ['none is there', {}, false],
    ['both know', { [one]: there, [two]: there }, true],
    ['the second does not know', { [one]: there, [two]: ignorant }, false],
    ['the second is away', { [one]: there, [two]: { ...ignorant, connected: false } }, true],
    ['only the second is there', { [two]: there }, true],
    ['both are away: what the first knew', { [one]: { ...there, connected: false } }, true],
  ];
  for (const [what, gateways, released] of rows) {
    const peers: Peers = { gateways: new Map(Object.entries(gateways)), nodes: new Map() };
    const result = run(objects, start.memory, peers);
    t.equal(result.nodes.get('n1')?.workloads['uid-web'] !== undefined, released, what);
    t.equal(condition(result, 'EgressIP/a', 'Programmed')?.status, released ? 'True' : 'False', `${what}: status`);
  }
});

t.test('release: only what a gateway has acknowledged, and never less than before', async (t) => {
  const base = [
    namespace('a'),
    namespace('plain'),
    node('n1', '10.0.0.21'),
    gatewayPool('p', { namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'a' } } }),
    drawPool('d'),
  ];
  const eip = egressIP('a', { addresses: ['192.0.2.1'] }) as EgressIP;
  const objects = [...base, eip, pod('a', 'web', ['10.1.0.1', 'fd01::1']), pod('plain', 'x', ['10.1.0.9'])];
  const steer = (result: PlanResult, uid: string) => (result.nodes.get('n1') as NodePlan).workloads[uid]?.steer;

  const start = run(objects);
  t.equal(steer(start, 'uid-web'), undefined, 'not acknowledged: held');
  t.equal(start.held, 1);
  t.same(steer(start, 'uid-x'), { 4: 'bypass', 6: 'bypass' }, 'of no pool: bypass');
  const shard = start.pools.get('p')?.workloads['uid-web']?.egress[4]?.shard ?? '';
  const holder = start.pools.get('p')?.shards[shard]?.order[0] ?? '';
  const peers = acknowledged(start);
  const others = { ...peers, gateways: new Map([...peers.gateways].filter(([name]) => name !== holder)) };
  t.equal(
    steer(run(objects, start.memory, others), 'uid-web'),
    undefined,
    'acknowledged by another gateway only: held',
  );
  const released = run(objects, start.memory, peers);
  t.same(
    steer(released, 'uid-web'),
    { 4: { shard: `p/${shard}` }, 6: 'drop' },
    'acknowledged: steered; a family without address: dropped',
  );
  t.equal(condition(released, 'EgressIP/a', 'Programmed')?.status, 'True');
  t.equal(condition(released, 'GatewayPool/p', 'Programmed')?.status, 'True');

  const since = '2026-01-01T00:00:00Z';
  const ready = (lastTransitionTime: string, status = 'True') => ({
    status: { conditions: [{ type: 'PodReadyToStartContainers', status, lastTransitionTime }] },
  });
  const networked = (...more: Parameters<typeof ready>) => {
    const again = run([...base, eip, pod('a', 'web', ['10.1.0.1', 'fd01::1'], ready(...more))], released.memory, peers);
    return again.nodes.get('n1')?.workloads['uid-web']?.networked;
  };
  t.same(
    [networked(since), networked(since, 'False')],
    [since, undefined],
    'when its network was made, if it is there',
  );

  const memory = readMemory(JSON.parse(JSON.stringify(released.memory))) as PlannerMemory;
  t.same(
    run(objects, memory).nodes.get('n1')?.workloads,
    released.nodes.get('n1')?.workloads,
    'a restart without gateways withdraws nothing',
  );

  const candidates = ['192.0.2.2', '192.0.2.3', '192.0.2.4', '192.0.2.5', '192.0.2.6'];
  const move = (address: string) => [
    ...base,
    { ...eip, spec: { ...eip.spec, addresses: [address] } },
    ...objects.slice(6),
  ];
  const moved = candidates
    .map((address) => run(move(address), memory, peers))
    .find((r) => r.pools.get('p')?.workloads['uid-web']?.egress[4]?.shard !== shard) as PlanResult;
  t.same(
    steer(moved, 'uid-web'),
    { 4: { shard: `p/${shard}` }, 6: 'drop' },
    'another shard, not acknowledged: the old way',
  );
  const address = moved.pools.get('p')?.workloads['uid-web']?.egress[4]?.address ?? '';
  const after = run(move(address), moved.memory, acknowledged(moved));
  t.same(
    steer(after, 'uid-web'),
    { 4: { shard: `p/${moved.pools.get('p')?.workloads['uid-web']?.egress[4]?.shard}` }, 6: 'drop' },
    'then the new one',
  );

  const taken = run([...base, ...objects.slice(6)], memory);
  t.same(steer(taken, 'uid-web'), { 4: 'bypass', 6: 'bypass' }, 'unassigned: Bypass needs no acknowledgement');
  const anew = pod('a', 'web2', ['10.1.0.1']);
  const reused = run([...objects, anew], memory, peers);
  t.equal(steer(reused, 'uid-web'), undefined, 'an address that a newer pod claims is withdrawn from the older');
  t.equal(steer(reused, 'uid-web2'), undefined, 'and the newer waits');
  t.match(reused.warnings, [{ object: 'Pod/a/web', reason: 'AddressTaken' }]);
  const rows: [string, Parameters<typeof pod>[3]][] = [
    ['host network', { spec: { hostNetwork: true } }],
    ['succeeded', { status: { phase: 'Succeeded' } }],
    ['failed', { status: { phase: 'Failed' } }],
    ['no address yet', { status: { podIPs: [] } }],
  ];
  for (const [title, more] of rows) {
    const result = run([...base, eip, pod('a', 'odd', ['10.1.0.7'], more)], emptyMemory(), peers);
    t.same(Object.keys(result.pools.get('p')?.workloads ?? {}), [], `does not count: ${title}`);
  }
  const strict = gatewayPool('p', { unassigned: 'Drop' });
  const dropped = run([namespace('a'), node('n1', '10.0.0.21'), strict, pod('a', 'web', ['10.1.0.1'])]);
  t.same(steer(dropped, 'uid-web'), { 4: 'drop', 6: 'drop' }, 'unassigned: Drop');
  t.equal(readMemory({ allocations: {} }), undefined, 'a damaged state file is not believed');
});

t.test('status files', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-d-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const file = join(root, 'EgressIP', 'a.yaml');
  let now = NOW;
  const status = (value: 'True' | 'False') =>
    new Map([
      [
        'EgressIP/a',
        { conditions: [{ type: 'Programmed' as const, status: value, reason: 'R', message: String(now) }] },
      ],
    ]);
  let objects = new Map<string, AnyObject>();
  const put = async (statuses: Parameters<StatusDirectory['publish']>[0]) => {
    const directory = new StatusDirectory(root, silentLog(), () => now);
    directory.publish(statuses, [], objects);
    await directory.close();
    return readFile(file, 'utf8').catch(() => undefined);
  };
  t.match(await put(status('True')), /lastTransitionTime: 2026-01-01T00:00:00.000Z/);
  now += 1000;
  t.match(
    await put(status('True')),
    /lastTransitionTime: 2026-01-01T00:00:00.000Z/,
    'the same status: the old time, in a new process too',
  );
  t.match(await put(status('False')), /lastTransitionTime: 2026-01-01T00:00:01.000Z/);
  const aged = egressIP('a', { addresses: ['192.0.2.1'] });
  objects = new Map([
    ['EgressIP/a', { ...aged, metadata: { ...aged.metadata, creationTimestamp: '2025-01-01T00:00:00Z' } }],
  ]);
  t.match(await put(status('False')), /^metadata:\n {2}name: a\n {2}creationTimestamp: 2025-01-01T00:00:00Z\n/m);
  const again = new StatusDirectory(root, silentLog(), () => now);
  const same = status('False');
  for (const creationTimestamp of ['2025-01-01T00:00:00Z', '2025-02-02T00:00:00Z']) {
    again.publish(same, [], new Map([['EgressIP/a', { ...aged, metadata: { ...aged.metadata, creationTimestamp } }]]));
    await again.close();
    t.match(await readFile(file, 'utf8'), `creationTimestamp: ${creationTimestamp}`, 'made anew, with the same status');
  }
  t.equal(await put(new Map()), undefined, 'an object that is gone has no status');
  const errors = [{ file: 'f', object: 'EgressIP/a', reason: 'Invalid' as const, details: ['spec: no'] }];
  const merged = withErrors(status('True'), errors).get('EgressIP/a');
  t.match(merged?.conditions[0], { type: 'Accepted', status: 'False', message: /f: spec: no \(the last good/ });
  t.equal(merged?.conditions.length, 2);
  const evil = withErrors(new Map(), [
    { ...errors[0], file: 'f', object: 'EgressIP/../../../x', reason: 'Invalid', details: [] },
  ]);
  await put(evil);
  t.same(
    await readFile(join(root, '..', 'x.yaml'), 'utf8').catch(() => 'none'),
    'none',
    'names do not leave the directory',
  );
});

t.test('runController: from a manifest on disk to a node', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-d-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const manifests = join(root, 'manifests');
  const certs = (name: string) => join(root, 'certs', name);
  await mkdir(manifests);
  await createCa(certs('ca'));
  await issueCertificate({
    caDir: certs('ca'),
    outDir: certs('ctl'),
    role: 'controller',
    name: 'c',
    addresses: ['127.0.0.1'],
  });
  for (const name of ['g1', 'g2']) {
    await issueCertificate({ caDir: certs('ca'), outDir: certs(name), role: 'gateway', name, addresses: [] });
  }
  await issueCertificate({ caDir: certs('ca'), outDir: certs('n1'), role: 'node', name: 'n1', addresses: [] });
  const write = (file: string, ...objects: AnyObject[]) =>
    writeFile(join(manifests, file), objects.map((o) => JSON.stringify(o)).join('\n---\n'));
  await write(
    'cluster.yaml',
    namespace('a'),
    node('n1', '10.0.0.21'),
    gatewayPool('p'),
    drawPool('d'),
    egressIP('a', { addresses: ['192.0.2.1', '2001:db8::1'] }),
  );
  await write('pods.yaml', pod('a', 'one', ['10.1.0.1', 'fd01::1']));

  const start = (port: number) =>
    runController({
      source: `directory:${manifests}`,
      state: join(root, 'state'),
      listen: { host: '127.0.0.1', port },
      certs: certs('ctl'),
      metrics: { host: '127.0.0.1', port: 0 },
      log: silentLog(),
    });
  let controller = await start(0);
  const { port } = controller;
  const closing: { close(): Promise<void> }[] = [];
  t.teardown(async () => {
    for (const item of closing) await item.close();
    await controller.close();
  });
  const url = `https://127.0.0.1:${port}`;
  const events: string[] = [];
  let nodePlan: NodePlan | undefined;
  let generation = 0;
  let block: Promise<void> = Promise.resolve();
  const gateway = (name: string) =>
    startPlanClient({
      role: 'gateway',
      name,
      url,
      certs: certs(name),
      addresses: name === 'g1' ? ['203.0.113.31', '192.0.2.1', '10.0.0.64'] : [],
      log: silentLog(),
      async onPlan(next: GatewayPlan) {
        await block;
        events.push(...Object.keys(next.workloads).map((uid) => `${name} ${uid}`));
      },
    });
  closing.push(
    startPlanClient({
      role: 'node',
      name: 'n1',
      url,
      certs: certs('n1'),
      addresses: [],
      log: silentLog(),
      async onPlan(next: NodePlan, at) {
        nodePlan = next;
        generation = at;
        events.push(...Object.keys(next.workloads).map((uid) => `n1 ${uid}`));
      },
    }),
  );
  const until = async (title: string, check: () => boolean | undefined | Promise<boolean>) => {
    const since = performance.now();
    while (!(await check()) && performance.now() - since < 60_000) await new Promise((done) => setTimeout(done, 1));
    t.ok(await check(), title);
    return performance.now() - since;
  };
  await until('the node has a plan', () => generation > 0);
  t.same(nodePlan?.workloads, {}, 'without gateways nothing is released');
  closing.push(gateway('g1'), gateway('g2'));
  await until('released once they are there', () => nodePlan?.workloads['uid-one'] !== undefined);
  await until('the hello tells addresses, less those that the plan puts there', () => {
    const own = nodePlan?.gateways.g1?.addresses;
    return own?.join() === '10.0.0.1,203.0.113.31';
  });

  const times: number[] = [];
  for (let i = 2; i < 7; i++) {
    const since = performance.now();
    await write(
      'pods.yaml',
      pod('a', 'one', ['10.1.0.1', 'fd01::1']),
      ...Array.from({ length: i - 1 }, (_, n) => pod('a', `p${n + 2}`, [`10.1.0.${n + 2}`])),
    );
    await until(`pod ${i} is released`, () => nodePlan?.workloads[`uid-p${i}`] !== undefined);
    times.push(performance.now() - since);
    const shard = nodePlan?.workloads[`uid-p${i}`]?.steer[4];
    t.equal(typeof shard, 'object');
    t.ok(
      events.indexOf(`n1 uid-p${i}`) > events.findIndex((event) => /^g. /.test(event) && event.endsWith(` uid-p${i}`)),
      'after a gateway had it',
    );
  }
  t.ok(Math.min(...times) < POLL_MS, 'not only when directories are looked at anyway');
  t.comment(`from file to release: ${times.map((ms) => ms.toFixed(0)).join(', ')} ms`);

  let unblock = () => {};
  block = new Promise((done) => {
    unblock = done;
  });
  await write('pods.yaml', pod('a', 'one', ['10.1.0.1', 'fd01::1']), pod('a', 'slow', ['10.1.0.8']));
  await until('deleted pods are withdrawn', () => nodePlan?.workloads['uid-p2'] === undefined);
  await new Promise((done) => setTimeout(done, 100));
  t.equal(nodePlan?.workloads['uid-slow'], undefined, 'a gateway that has not applied holds the release');
  unblock();
  await until('until it has', () => nodePlan?.workloads['uid-slow'] !== undefined);

  const statusFile = join(manifests, '.status', 'EgressIP', 'a.yaml');
  const status = () => readFile(statusFile, 'utf8').catch(() => '');
  await until('its status says Programmed', async () => /type: Programmed\s+status: "True"/.test(await status()));
  const metricsText = await (await fetch(`http://127.0.0.1:${controller.metricsPort}/metrics`)).text();
  t.match(metricsText, /sluice_controller_objects\{kind="Pod".*\} 2/);
  t.match(metricsText, /sluice_controller_clients\{role="gateway".*\} 2/);

  await writeFile(
    join(manifests, 'bad.yaml'),
    '{apiVersion: sluice.dev/v1alpha1, kind: EgressIP, metadata: {name: a}, spec: {pool: 5}}',
  );
  await until('a bad manifest shows in status', async () => /reason: Invalid/.test(await status()));
  t.match(await readFile(join(manifests, '.status', 'errors.yaml'), 'utf8'), /file: bad.yaml/);
  await rm(join(manifests, 'bad.yaml'));

  const before = { generation, workloads: nodePlan?.workloads };
  for (const item of closing.splice(1)) await item.close();
  await controller.close();
  controller = await start(port);
  await write(
    'cluster.yaml',
    namespace('a'),
    node('n1', '10.0.0.21'),
    gatewayPool('p', { clusterCIDRs: ['10.0.0.0/8'] }),
    drawPool('d'),
    egressIP('a', { addresses: ['192.0.2.1', '2001:db8::1'] }),
  );
  await until('a plan after the restart', () => nodePlan?.settings.node?.clusterCIDRs.length === 1);
  t.same(nodePlan?.workloads, before.workloads, 'nothing is withdrawn while no gateway is connected');
  t.ok(generation > before.generation, 'and generations go on');
});
