/**
 * Flows that go on through another gateway, with the kernel's own connection tables: entries that are put by hand read back
 * as they were; flows of real sockets are read on one gateway, put into the kernel of another, and packets go there from then
 * on; and the same with two replicators that tell each other over TLS what the kernel's events tell them. Topology:
 * replication-rig.ts. Root.
 */
import t from 'tap';
import { families } from '../../api/plan.ts';
import { silentLog } from '../../daemon/log.ts';
import { GatewayReplication } from '../../gateway/replication.ts';
import { listFlows, walk } from '../../kernel/conntrack.ts';
import { FlowInjector } from '../../kernel/conntrack-inject.ts';
import { startEventSocket } from '../../kernel/event-socket.ts';
import { type ConntrackEntry, decodeConntrack, IPS_ASSURED, IPS_SEEN_REPLY } from '../../wire/conntrack.ts';
import { type TrackedFlow, trackedFlow } from '../../wire/conntrack-flow.ts';
import { TCP_ESTABLISHED, TCP_LIBERAL, TCP_SCALES } from '../../wire/conntrack-protocol.ts';
import { createWorld, planOf, until } from '../unit/names-world.ts';
import { type Caller, CLIENT, EGRESS, MARK, PORT, ReplicationRig, SERVER, type Side } from './replication-rig.ts';

t.setTimeout(300_000);
const rig = await ReplicationRig.create();
t.teardown(() => rig.close());
const kinds = ['tcp', 'udp'] as const;

async function flowsOf(side: Side): Promise<TrackedFlow[]> {
  const flows: TrackedFlow[] = [];
  await walk({ namespace: rig.namespace(side) }, (reader) => {
    const flow = trackedFlow(reader.entry(), reader.tracking());
    if (flow !== undefined) flows.push(flow);
  });
  return flows;
}

const isOurs = ({ original }: Pick<TrackedFlow, 'original'>): boolean =>
  original.destinationPort === PORT && Object.values(CLIENT).includes(original.source as '10.88.0.5');
/** More than a window that was never scaled would let on. */
const long = (line: string, kind: 'tcp' | 'udp'): string => (kind === 'tcp' ? line.padEnd(500_000, 'x') : line);
const clear = async (): Promise<void> => {
  for (const side of ['a', 'b'] as const) await rig.in(side, 'conntrack -F');
};

async function callers(): Promise<{ kind: 'tcp' | 'udp'; caller: Caller; port: string }[]> {
  const made = [];
  for (const family of families) {
    for (const kind of kinds) {
      const caller = await rig.call(kind, family);
      const answer = await caller.ask(`first-${kind}-${family}`, kind === 'udp');
      made.push({ kind, caller, port: answer.split(' ')[1] ?? '' });
    }
  }
  return made;
}

t.test('entries that are put read back', async (t) => {
  const injector = FlowInjector.open(rig.namespace('b'));
  const liberal = { original: TCP_LIBERAL, reply: TCP_LIBERAL };
  const scales = { original: TCP_LIBERAL | TCP_SCALES, reply: TCP_LIBERAL | TCP_SCALES };
  const seen = IPS_SEEN_REPLY | IPS_ASSURED;
  const flows: TrackedFlow[] = families.flatMap((family) => {
    const ends = { source: CLIENT[family], destination: SERVER[family] };
    const original = { ...ends, sourcePort: 5_000, destinationPort: 443 };
    const source = { address: EGRESS[family], port: 33_000 };
    const elsewhere = { address: family === 4 ? '198.51.100.99' : '2001:db8:100::99', port: 8_443 };
    const base = { mark: MARK, zone: 0 };
    const established = {
      protocol: 6 as const,
      state: TCP_ESTABLISHED,
      flags: liberal,
      scale: { original: 0, reply: 0 },
    };
    const ping = { icmpType: family === 4 ? 8 : 128, icmpCode: 0, icmpId: 77 };
    return [
      { ...base, protocol: 6, original, source, status: seen, tracking: established },
      {
        ...base,
        protocol: 6,
        original: { ...original, sourcePort: 5_001 },
        source: { ...source, port: 33_001 },
        destination: elsewhere,
        status: seen,
        tracking: { ...established, state: 4, flags: scales, scale: { original: 7, reply: 9 } },
      },
      { ...base, protocol: 17, original, source, status: 0 },
      { ...base, protocol: 17, original: { ...original, sourcePort: 5_001 }, status: IPS_SEEN_REPLY, zone: 5 },
      { ...base, protocol: family === 4 ? 1 : 58, original: { ...ends, ...ping }, source, status: 0 },
      {
        ...base,
        protocol: 132,
        original,
        source,
        status: seen,
        tracking: { protocol: 132, state: 4, tags: { original: 0xdeadbeef, reply: 1 } },
      },
      { ...base, protocol: 50, original: ends, source: { address: EGRESS[family] }, status: 0 },
    ] satisfies TrackedFlow[];
  });
  const put = flows.map((flow) => ({ op: 'put' as const, flow, timeout: 3_000 }));
  t.match(await injector.apply(put), { displaced: 0, missing: [], refused: [] });
  const sorted = (list: TrackedFlow[]) => list.map((flow) => JSON.stringify(flow, Object.keys(flow).sort())).sort();
  const there = (await flowsOf('b')).filter(({ mark }) => mark === MARK);
  for (const flow of flows) {
    const { protocol, original, zone } = flow;
    const found = there.find((one) => {
      return (
        one.protocol === protocol && one.zone === zone && JSON.stringify(one.original) === JSON.stringify(original)
      );
    });
    t.same(found, flow, `protocol ${protocol} from ${original.source} ${original.sourcePort ?? ''}`);
  }
  t.equal(there.length, flows.length, sorted(there).join('\n'));

  // Again, and with another port: the new ones take their places.
  const other = flows.map((flow): TrackedFlow => {
    const port = flow.source?.port;
    return port === undefined ? flow : { ...flow, source: { address: flow.source?.address ?? '', port: port + 100 } };
  });
  const again = await injector.apply(other.map((flow) => ({ op: 'put' as const, flow, timeout: 3_000 })));
  t.match(again, { displaced: flows.length, missing: [], refused: [] });
  const after = (await flowsOf('b')).filter(({ mark }) => mark === MARK);
  t.equal(after.length, flows.length);
  t.ok(after.every(({ source }) => source?.port === undefined || source.port >= 33_100));

  // Another flow has the port that is wanted.
  const [first] = other as [TrackedFlow];
  const thief = { ...first, original: { ...first.original, sourcePort: 6_000 } };
  t.match(await injector.apply([{ op: 'put', flow: thief, timeout: 60 }]), { displaced: 1, refused: [] });
  const last = (await flowsOf('b')).filter(({ protocol, original }) => protocol === 6 && original.source === CLIENT[4]);
  t.same(
    last.map(({ original }) => original.sourcePort).sort(),
    [5_001, 6_000],
    'whoever had it is gone, since one of them can have it only',
  );

  const marked = await injector.apply([
    { op: 'change', flow: thief, mark: 7, timeout: 99 },
    { op: 'change', flow: first, mark: 7 },
    { op: 'end', flow: first },
  ]);
  t.match(marked, { displaced: 0, missing: [{ op: 'change', flow: first }], refused: [] });
  const entry = (await listFlows({ namespace: rig.namespace('b') })).find(({ mark }) => mark === 7);
  t.equal(entry?.original.sourcePort, 6_000);
  t.ok((entry?.timeout ?? 0) > 60 && (entry?.timeout ?? 0) < 100);
  t.match(await injector.apply([{ op: 'end', flow: thief }]), { refused: [] });
  await injector.close();
});

t.test('flows of sockets go on through the other gateway', async (t) => {
  await clear();
  await rig.way('a');
  const all = await callers();
  const flows = (await flowsOf('a')).filter(isOurs);
  t.equal(flows.length, 4);
  for (const { protocol, mark, source, tracking } of flows) {
    t.equal(mark, MARK);
    t.ok(source?.port);
    if (protocol === 6) t.match(tracking, { protocol: 6, state: TCP_ESTABLISHED });
  }
  const injector = FlowInjector.open(rig.namespace('b'));
  const put = flows.map((flow) => {
    const { tracking } = flow;
    if (tracking?.protocol !== 6) return { op: 'put' as const, flow, timeout: 600 };
    const flags = { original: tracking.flags.original | TCP_LIBERAL, reply: tracking.flags.reply | TCP_LIBERAL };
    return { op: 'put' as const, flow: { ...flow, tracking: { ...tracking, flags } }, timeout: 600 };
  });
  t.match(await injector.apply(put), { displaced: 0, missing: [], refused: [] });
  await injector.close();
  await rig.way('b');
  for (const { kind, caller, port } of all) {
    const answer = await caller.ask(long(`second-${kind}`, kind), kind === 'udp');
    if (kind === 'udp') t.equal(answer.split(' ')[1], port, 'its translated port is the same');
    t.notOk(caller.lines.some((line) => line.startsWith('error')));
    caller.end();
  }
  const there = (await listFlows({ namespace: rig.namespace('b') })).filter(isOurs);
  t.equal(there.length, 4);
  t.ok(
    there.every(({ packets }) => packets.original > 0 && packets.reply > 0),
    'and its packets went there',
  );
});

t.test('two gateways tell each other', async (t) => {
  await clear();
  await rig.way('a');
  const world = await createWorld(t, 86, ['gw-a', 'gw-b']);
  const plan = planOf({ gateways: world.addresses, egressIPs: Object.values(EGRESS) });
  const start = (side: Side) => {
    const namespace = rig.namespace(side);
    const injector = FlowInjector.open(namespace);
    const name = `gw-${side}`;
    const certs = world.certs(name);
    const gateway = new GatewayReplication({ name, certs, namespace, port: world.port, log: silentLog() });
    const { replicator } = gateway;
    /** Of other flows than those that this gateway carries: as its records would have them. */
    const heard: ConntrackEntry[] = [];
    const events = startEventSocket({
      kind: 'conntrack',
      groups: ['new', 'destroy'],
      namespace,
      onBatch(messages) {
        for (const message of messages) {
          const event = decodeConntrack(message);
          if (event.ok && gateway.heard(message, event.value)) heard.push(event.value);
        }
      },
    });
    gateway.plan(plan);
    const close = async (): Promise<void> => {
      await events.close();
      await gateway.close();
      await injector.close();
    };
    return { gateway, replicator, injector, heard, close };
  };
  const a = start('a');
  const b = start('b');
  t.teardown(async () => {
    await a.close();
    await b.close();
  });
  const mine = new Set(['main/0']);
  const nothing = new Set<string>();
  await a.gateway.masters(mine);
  const early = await callers();
  await until(() => a.replicator.sending('main/0').get('gw-b')?.synced === true, 'the whole table is with the other');
  const late = await callers();
  const all = [...early, ...late];
  const portsOf = (entries: ConntrackEntry[]) =>
    entries
      .filter(isOurs)
      .map(({ protocol, reply }) => `${protocol} ${reply.destination} ${reply.destinationPort}`)
      .sort();
  const onA = portsOf(await listFlows({ namespace: rig.namespace('a') }));
  t.equal(onA.length, 8);
  const same = async () => portsOf(await listFlows({ namespace: rig.namespace('b') })).join() === onA.join();
  await until(same, 'the other kernel has them, with their ports');

  await t.test('comparing finds what is not as it was told', async (t) => {
    t.same(await b.replicator.compare(), { corrected: 0 });
    const [first, second] = [...(await flowsOf('b'))].filter(isOurs) as [TrackedFlow, TrackedFlow];
    const wrong = { ...second, source: { address: second.source?.address ?? '', port: 999 } };
    const stray = {
      ...wrong,
      original: { ...wrong.original, sourcePort: 998 },
      source: { ...wrong.source, port: 997 },
    };
    await b.injector.apply([
      { op: 'end', flow: first },
      { op: 'put', flow: wrong, timeout: 60 },
      { op: 'put', flow: stray, timeout: 60 },
    ]);
    t.notOk(await same());
    t.same(await b.replicator.compare(), { corrected: 3 });
    t.ok(await same());
    t.same(await b.replicator.compare(), { corrected: 0 });
    t.same(await a.replicator.compare(), { corrected: 0 });
  });

  await t.test('the other becomes master, and back', async (t) => {
    for (const [from, to, side] of [
      [a, b, 'b'],
      [b, a, 'a'],
    ] as const) {
      await to.gateway.masters(mine);
      await rig.way(side);
      await from.gateway.masters(nothing);
      for (const { kind, caller, port } of all) {
        const answer = await caller.ask(long(`${side}-${kind}`, kind), kind === 'udp');
        if (kind === 'udp') t.equal(answer.split(' ')[1], port, 'its translated port is the same');
        t.notOk(caller.lines.some((line) => line.startsWith('error')));
      }
      await until(() => from.replicator.held('main/0')?.whole === true, 'the old master stands behind the new one');
      t.equal(from.replicator.held('main/0')?.flows.size, 8);
      t.same(await from.replicator.compare(), { corrected: 0 });
      t.ok(await same(), 'nothing has moved');
    }
  });

  await t.test('what ends is taken away', async (t) => {
    await rig.in('a', 'conntrack -D -p udp');
    await until(async () => {
      return portsOf(await listFlows({ namespace: rig.namespace('b') })).every((port) => port.startsWith('6 '));
    }, 'UDP is gone there too');
    t.same(a.replicator.counts.refused, {});
    t.same(b.replicator.counts.refused, {});
  });
  t.same(b.heard, [], 'no flow of another is taken for its own');
  t.equal(a.heard.length, 12, 'those that began and those that ended there');
  for (const { caller } of all) caller.end();
});
