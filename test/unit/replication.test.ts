/**
 * Gateways that tell each other of flows over real connections (mutual TLS on loopback), each with a connection table of the
 * test's: who is listened to, what becomes of masters that were not heard of, of a table that is slow and of one that fails.
 * The same with kernels: test/netns/replication.test.ts.
 */
import { connect } from 'node:tls';
import t from 'tap';
import { tlsOptions } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { type Roles, rolesOf } from '../../gateway/replication.ts';
import type { ReplicaKernel } from '../../ha/replica-table.ts';
import { settledTimeout } from '../../ha/replica-timeouts.ts';
import { Replicator, type ReplicatorOptions } from '../../ha/replicator.ts';
import type { FlowChange, Injected } from '../../kernel/conntrack-inject.ts';
import { rememberedText } from '../../wire/address-text.ts';
import { type ConntrackEntry, ConntrackReader } from '../../wire/conntrack.ts';
import type { TrackedFlow } from '../../wire/conntrack-flow.ts';
import { writeTuple } from '../../wire/conntrack-tuple.ts';
import { NFNL_SUBSYS_CTNETLINK } from '../../wire/nlattr.ts';
import { NetlinkWriter } from '../../wire/nlwriter.ts';
import { createWorld, until, type World } from './names-world.ts';

const SHARD = 'main/0';
const MARK = 0x80000100;
/** More than may wait for a receiver. */
const FLOWS = 66_000;

t.setTimeout(240_000);

/** As strict as the kernel: who is in the way of what is put is said, and who is not there to be changed. */
class FakeKernel implements ReplicaKernel {
  readonly entries = new Map<string, TrackedFlow & { timeout: number }>();
  /** Resolves before anything is done. */
  gate: Promise<void> = Promise.resolve();
  fails = false;
  failures = 0;
  walks = 0;

  async apply<C extends FlowChange>(changes: readonly C[]): Promise<Injected<C>> {
    await this.gate;
    if (this.fails) {
      this.failures++;
      throw new Error('the kernel fails');
    }
    const done: Injected<C> = { displaced: 0, missing: [], refused: [] };
    for (const change of changes) {
      const key = JSON.stringify(change.flow.original);
      const there = this.entries.get(key);
      if (change.op === 'put') {
        if (there !== undefined && !change.replaces) done.displaced++;
        this.entries.set(key, { ...change.flow, timeout: change.timeout });
      } else if (change.op === 'end') this.entries.delete(key);
      else if (there === undefined) done.missing.push(change);
      else {
        const { mark = there.mark, timeout = there.timeout } = change;
        this.entries.set(key, { ...there, mark, timeout });
      }
    }
    return done;
  }

  /** What is there beside, as messages of the kernel. */
  listed: ConntrackEntry[] = [];
  /** Between entries. */
  meanwhile = () => {};

  async walk(visit: (entry: ConntrackReader) => void): Promise<void> {
    this.walks++;
    const reader = new ConntrackReader(rememberedText());
    for (const { original, reply, protocol, mark } of this.listed) {
      const writer = new NetlinkWriter();
      writer.beginMessage({ subsystem: NFNL_SUBSYS_CTNETLINK, message: 0, flags: 0, family: 2 });
      writeTuple(writer, 1, original, protocol);
      writeTuple(writer, 2, reply, protocol);
      writer.putU32(8, mark);
      writer.endMessage();
      if (reader.read(writer.written()) === undefined) visit(reader);
      await new Promise((resolve) => setImmediate(resolve));
      this.meanwhile();
    }
  }

  ports(): number[] {
    return [...this.entries.values()].map(({ original }) => original.sourcePort ?? 0).sort((a, b) => a - b);
  }
}

/** Of so many workloads as there have to be. */
function entry(n: number, more: Partial<ConntrackEntry> = {}): ConntrackEntry {
  const [source, sourcePort] = [`10.0.${n >> 14}.1`, n & 0x3fff];
  const zero = { original: 0, reply: 0 };
  return {
    family: 4,
    id: n,
    protocol: 17,
    original: { source, destination: '198.51.100.80', sourcePort, destinationPort: 53 },
    reply: {
      source: '198.51.100.80',
      destination: '203.0.113.7',
      sourcePort: 53,
      destinationPort: 40_000 + sourcePort,
    },
    mark: MARK,
    status: 0,
    packets: zero,
    bytes: zero,
    zone: 0,
    ...more,
  };
}

interface Gateway {
  replicator: Replicator;
  kernel: FakeKernel;
  close(): Promise<void>;
}

const names = ['gw-a', 'gw-b', 'gw-c'];

function start(t: Tap, world: World, name: string, options: Partial<ReplicatorOptions> = {}): Gateway {
  const kernel = new FakeKernel();
  const replicator = new Replicator({
    name,
    certs: world.certs(name),
    port: world.port,
    log: silentLog(),
    kernel,
    shardOf: (address) => (address === '203.0.113.7' ? SHARD : undefined),
    isDecided: (mark) => mark === MARK || mark === MARK + 256,
    ...options,
  });
  let open = true;
  const close = async (): Promise<void> => {
    if (open) await replicator.close();
    open = false;
  };
  t.teardown(close);
  return { replicator, kernel, close };
}

type Tap = Parameters<typeof createWorld>[0];

const place = (world: World, name: string, among = names) => ({
  address: world.addresses[name],
  others: new Map(Object.entries(world.addresses).filter(([other]) => other !== name && among.includes(other))),
});

t.test('what begins, changes and ends at the master does so behind it', async (t) => {
  const world = await createWorld(t, 84, names);
  const [a, b, c] = names.map((name) => start(t, world, name)) as [Gateway, Gateway, Gateway];
  for (const [index, { replicator }] of [a, b, c].entries()) replicator.place(place(world, names[index] ?? ''));
  await a.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  await b.replicator.shards(new Map(), [SHARD]);
  await c.replicator.shards(new Map(), []);
  a.replicator.began(entry(1));
  a.replicator.began(entry(2, { mark: 1 }));
  a.replicator.began(entry(3, { reply: { ...entry(3).reply, destination: '203.0.113.8' } }));
  a.replicator.began(entry(4));
  await until(() => b.kernel.entries.size === 2, 'two flows');
  t.same(b.kernel.ports(), [1, 4], 'those that are decided, of the shard');
  t.match([...b.kernel.entries.values()][0], {
    original: entry(1).original,
    source: { address: '203.0.113.7', port: 40_001 },
    mark: MARK,
    timeout: 432_000,
  });
  a.replicator.marked(entry(2), MARK);
  a.replicator.marked(entry(1), MARK + 256);
  a.replicator.ended(entry(4));
  await until(() => b.kernel.ports().join() === '1,2', 'one that was decided later, and not one that ended');
  await until(() => [...b.kernel.entries.values()][0]?.mark === MARK + 256, 'another mark');
  // The same tuple with another port, as of a SYN that is sent again.
  a.replicator.began(entry(1, { reply: { ...entry(1).reply, destinationPort: 9 } }));
  await until(() => [...b.kernel.entries.values()].some(({ source }) => source?.port === 9), 'another port');
  b.kernel.entries.clear();
  a.replicator.marked(entry(1), MARK + 256);
  await until(() => b.kernel.ports().join() === '1', 'what the kernel gave up is put anew when it changes');
  t.equal(c.kernel.entries.size, 0, 'nobody else is told');
  t.same(b.replicator.counts.refused, {});
});

t.test('whoever becomes master tells all of it, whatever its clock says', async (t) => {
  const world = await createWorld(t, 85, names);
  const late = { now: () => 1_000 };
  const [a, b, c] = [
    start(t, world, 'gw-a', { now: () => 9_000 }),
    start(t, world, 'gw-b'),
    start(t, world, 'gw-c', late),
  ] as [Gateway, Gateway, Gateway];
  for (const [index, { replicator }] of [a, b, c].entries()) replicator.place(place(world, names[index] ?? ''));
  await b.replicator.shards(new Map(), [SHARD]);
  await a.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  a.replicator.began(entry(1));
  a.replicator.began(entry(2));
  await until(() => b.kernel.entries.size === 2, 'the first master is heard');
  // It stood behind nobody, and its clock is behind.
  await c.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  c.replicator.began(entry(2));
  c.replicator.began(entry(3));
  await until(() => b.replicator.held(SHARD)?.from === 'gw-c', 'the second is heard');
  await until(() => b.kernel.ports().join() === '2,3', 'what only the first had is swept away');
  t.equal(b.replicator.counts.ignored['older-master'], 1);

  // Then it is master itself: what was received is its own, and lives no longer than others.
  t.equal(b.kernel.entries.get(JSON.stringify(entry(2).original))?.timeout, 432_000);
  await b.replicator.shards(new Map([[SHARD, ['gw-c']]]), []);
  await c.replicator.shards(new Map(), [SHARD]);
  await until(() => c.kernel.ports().join() === '2,3', 'the one before is told');
  await until(() => [...b.kernel.entries.values()].every(({ timeout }) => timeout === 120), 'their lifetimes');
  t.equal(settledTimeout({ ...entry(1), protocol: 6, tracking: tcp(3) }), undefined);
  t.equal(settledTimeout({ ...entry(1), protocol: 6, tracking: tcp(4) }), 120);

  // Out of the plan.
  await c.replicator.shards(new Map(), []);
  await until(() => c.kernel.entries.size === 0, 'whoever stands behind nobody has nothing');
});

const none = { original: 0, reply: 0 };
const tcp = (state: number) => ({ protocol: 6 as const, state, flags: none, scale: none });

t.test('a table that is slow, and one that fails', async (t) => {
  const world = await createWorld(t, 86, names);
  const [a, b] = [start(t, world, 'gw-a', { stallMs: 2_000 }), start(t, world, 'gw-b', { stallMs: 2_000 })];
  for (const [name, { replicator }] of [
    ['gw-a', a],
    ['gw-b', b],
  ] as const) {
    replicator.place(place(world, name));
  }
  await b.replicator.shards(new Map(), [SHARD]);
  await a.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  let go = () => {};
  b.kernel.gate = new Promise((resolve) => {
    go = resolve;
  });
  const feed = () => a.replicator.sending(SHARD).get('gw-b');
  await until(() => a.replicator.connected === 1, 'a connection');
  // More than may be on their way and wait; of each flow one thing only.
  for (let round = 0; round < 4; round++) {
    for (let n = 0; n < FLOWS; n++) a.replicator.began(entry(n, { mark: round % 2 === 0 ? MARK : MARK + 256 }));
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.ok((feed()?.underway ?? 0) <= 64);
  t.ok((feed()?.waiting ?? 0) <= 65_536);
  t.ok((feed()?.overflows ?? 0) > 0, 'there were too many to wait');
  t.notOk(feed()?.synced, 'nothing is acknowledged that is not in the kernel');
  go();
  await until(
    () => feed()?.synced === true && feed()?.waiting === 0 && feed()?.underway === 0,
    'it has caught up',
    60_000,
  );
  t.equal(b.kernel.entries.size, FLOWS);
  t.ok(
    [...b.kernel.entries.values()].every(({ mark }) => mark === MARK + 256),
    'the newest of each',
  );

  const passes = feed()?.passes ?? 0;
  b.kernel.fails = true;
  a.replicator.ended(entry(1));
  await until(() => b.kernel.failures > 0, 'it is told');
  b.kernel.fails = false;
  await until(() => (feed()?.passes ?? 0) > passes && feed()?.synced === true, 'what failed is told anew');
  await until(() => b.kernel.walks > 0, 'and whether it is as it should be is looked at');
});

t.test('whoever is no gateway of the plan is not listened to', async (t) => {
  const world = await createWorld(t, 87, names);
  const [a, b] = [start(t, world, 'gw-a'), start(t, world, 'gw-b')];
  b.replicator.place(place(world, 'gw-b', ['gw-b', 'gw-c']));
  await b.replicator.shards(new Map(), [SHARD]);
  a.replicator.place(place(world, 'gw-a'));
  await a.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  a.replicator.began(entry(1));
  /** What becomes of a connection that says something. */
  const say = (bytes: Uint8Array, certs: string | undefined): Promise<string> =>
    new Promise((resolve) => {
      const options = certs === undefined ? { rejectUnauthorized: false } : tlsOptions(world.certs(certs));
      const socket = connect({
        ...options,
        host: world.addresses['gw-b'] ?? '',
        port: world.port,
        checkServerIdentity: () => undefined,
      });
      socket.on('secureConnect', () => socket.write(bytes));
      socket.on('data', () => undefined);
      socket.on('error', () => undefined);
      socket.once('close', () => resolve('closed'));
    });
  const hello = (name: string) =>
    Buffer.concat([Buffer.from([0, 0, 0, 3 + name.length, 1, 1, name.length]), Buffer.from(name)]);
  t.equal(await say(hello('gw-a'), undefined), 'closed', 'without a certificate');
  t.equal(await say(hello('gw-a'), 'gw-a'), 'closed', 'of the pool, but not of the plan');
  t.equal(await say(hello('gw-c'), 'gw-a'), 'closed', 'in the name of another');
  t.equal(await say(Buffer.from('GET / HTTP/1.1\r\n\r\n'), 'gw-c'), 'closed', 'another protocol');
  t.equal(b.replicator.connected, 0);
  t.equal(b.kernel.entries.size, 0);
  b.replicator.place(place(world, 'gw-b'));
  await until(() => b.kernel.ports().join() === '1', 'once the plan has it');
});

t.test('after an overrun the table is read, and what events tell meanwhile holds', async (t) => {
  const world = await createWorld(t, 88, names);
  const a = start(t, world, 'gw-a');
  a.kernel.listed = [entry(3)];
  await a.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  // What was there before; when this look has ended, the one that becoming master began has.
  await a.replicator.compare();
  const { walks } = a.kernel;
  for (const n of [1, 2]) a.replicator.began(entry(n));
  // The end of 1 and the beginning of 4 were lost; 2 ends and 5 begins when they have been read, or not.
  a.kernel.listed = [entry(2), entry(3), entry(4), { ...entry(6), mark: 1 }];
  a.kernel.meanwhile = () => {
    a.kernel.meanwhile = () => {};
    a.replicator.ended(entry(2));
    a.replicator.began(entry(5));
  };
  a.replicator.overrun();
  const b = start(t, world, 'gw-b');
  await until(() => a.kernel.walks > walks, 'a look at the table');
  await b.replicator.shards(new Map(), [SHARD]);
  b.replicator.place(place(world, 'gw-b'));
  a.replicator.place(place(world, 'gw-a'));
  await until(() => b.kernel.ports().join() === '3,4,5', 'those that live');
});

t.test('who stands behind whom', async (t) => {
  const shards = Object.fromEntries(
    [
      ['p/0', 'a b c d'],
      ['p/1', 'b c d a'],
      ['p/2', 'c a'],
      ['p/3', 'd c b a'],
    ].map(([name = '', order = '']) => [name, { index: 1, nextHops: {}, order: order.split(' '), egressIPs: [] }]),
  );
  const leads = (roles: Roles) => Object.fromEntries(roles.leads);
  const first = rolesOf({ shards }, 'a', new Set(['p/0']));
  t.same(leads(first), { 'p/0': ['b', 'c'] });
  t.same(first.follows, ['p/2'], 'the fourth of an order stands behind nobody');
  const second = rolesOf({ shards }, 'a', new Set(['p/0', 'p/1', 'p/9']));
  t.same(leads(second), { 'p/0': ['b', 'c'], 'p/1': ['b', 'c'] }, 'who became master tells those before it');
  t.same(rolesOf({ shards }, 'c', new Set(['p/0'])).follows, ['p/1', 'p/2', 'p/3']);
  t.same(leads(rolesOf({ shards }, 'c', new Set(['p/0']))), { 'p/0': ['a', 'b'] });
});

t.test('a program that begins anew tells what its kernel has', async (t) => {
  const world = await createWorld(t, 89, names);
  const [a, b] = [start(t, world, 'gw-a'), start(t, world, 'gw-b')];
  a.kernel.listed = [entry(3), entry(4)];
  await a.replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
  await b.replicator.shards(new Map(), [SHARD]);
  a.replicator.place(place(world, 'gw-a'));
  b.replicator.place(place(world, 'gw-b'));
  await until(() => b.kernel.ports().join() === '3,4', 'flows from before');
});
