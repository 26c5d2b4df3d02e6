/**
 * Connection state among gateways at random. First what is packed and framed reads back. Then two gateways that may be
 * master of a shard, two that stand behind it, and between them a transport that loses, doubles and turns round what it is
 * given, connections that break, masters that begin anew or come and go, events in any order, receivers that are slow: when
 * it has been quiet for a moment, each receiver has its master's table, and its kernel (a strict one: it refuses what makes
 * no sense) has the same.
 */
import { deepStrictEqual, equal } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { type Batch, decodeFrame, encodeFrame, type Frame, FrameReader } from '../../ha/replica-codec.ts';
import { ReplicaReceiver } from '../../ha/replica-receiver.ts';
import { difference, packFlow, packKey, unpackFlow } from '../../ha/replica-record.ts';
import { SentShard } from '../../ha/replica-sender.ts';
import { rememberedText } from '../../wire/address-text.ts';
import { ConntrackReader, IPS_ASSURED, IPS_SEEN_REPLY } from '../../wire/conntrack.ts';
import { type TrackedFlow, writeFlow } from '../../wire/conntrack-flow.ts';
import { TCP_LIBERAL } from '../../wire/conntrack-protocol.ts';
import { NetlinkWriter } from '../../wire/nlwriter.ts';

const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 500);
const SHARD = 'main/0';

const port = fc.nat(0xffff);
const addresses = {
  4: fc.constantFrom('10.244.1.5', '198.51.100.80', '203.0.113.7', '0.0.0.0'),
  6: fc.constantFrom('fd00:244:1::5', '2001:db8:100::80', '::', '2001:db8:113::7'),
};
const u32 = fc.nat(0xffffffff);
const liberal = { original: TCP_LIBERAL, reply: TCP_LIBERAL };

/** As a flow is after it was packed: what is not kept is what it will be. */
const flow = fc.constantFrom(4 as const, 6 as const).chain((family) => {
  const address = addresses[family];
  const icmp = fc.record({ icmpType: fc.nat(255), icmpCode: fc.nat(255), icmpId: port });
  const ports = fc.record({ sourcePort: port, destinationPort: port });
  const translated = fc.record({ address, port });
  const ends = fc.record({ source: address, destination: address });
  const rest = { mark: u32, zone: fc.constantFrom(0, 0, 7), status: fc.constantFrom(0, IPS_SEEN_REPLY) };
  const tcpState = fc.constantFrom(3, 4, 5);
  const tcp = fc
    .record({ ends, ports, source: translated, destination: fc.option(translated), state: tcpState, ...rest })
    .map(({ ends, ports, source, destination, state, ...rest }) => ({
      protocol: 6,
      original: { ...ends, ...ports },
      source,
      ...(destination !== null && { destination }),
      ...rest,
      status: IPS_SEEN_REPLY | IPS_ASSURED,
      tracking: { protocol: 6 as const, state, flags: liberal, scale: { original: 0, reply: 0 } },
    }));
  const udp = fc
    .record({ ends, ports, source: fc.option(translated), protocol: fc.constantFrom(17, 136, 47), ...rest })
    .map(({ ends, ports, source, ...rest }) => ({
      original: { ...ends, ...ports },
      ...(source !== null && { source }),
      ...rest,
    }));
  const sctp = fc.record({ ends, ports, source: translated, tags: fc.tuple(u32, u32), ...rest }).map(
    ({ ends, ports, source, tags: [original, reply], ...rest }): TrackedFlow => ({
      protocol: 132,
      original: { ...ends, ...ports },
      source,
      ...rest,
      tracking: { protocol: 132, state: 4, tags: { original, reply } },
    }),
  );
  const ping = fc.record({ ends, icmp, source: translated, ...rest }).map(({ ends, icmp, source, ...rest }) => ({
    protocol: family === 4 ? 1 : 58,
    original: { ...ends, ...icmp },
    source,
    ...rest,
  }));
  const other = fc
    .record({ original: ends, at: fc.option(address), protocol: fc.constantFrom(50, 89), ...rest })
    .map(({ at, ...rest }) => ({ ...(at !== null && { source: { address: at } }), ...rest }));
  return fc.oneof(tcp, udp, sctp, ping, other) as fc.Arbitrary<TrackedFlow>;
});

const reader = new ConntrackReader(rememberedText());
const only = ({ original, protocol, mark, zone }: TrackedFlow) => ({ original, protocol, mark, zone });

t.test('what is packed reads back, alone, in frames and as the kernel is told it', async (t) => {
  fc.assert(
    fc.property(flow, (value) => {
      const packed = packFlow(value);
      if (packed === undefined) throw new Error('not packed');
      deepStrictEqual(unpackFlow(packed.key, packed.body), structuredClone(value));
      equal(packKey(value), packed.key);
      const other = packFlow({ ...value, mark: (value.mark + 1) >>> 0 });
      equal(difference(packed.body, other?.body ?? ''), 'mark');

      const writer = new NetlinkWriter();
      writeFlow(writer, 1, value, 60);
      equal(reader.read(writer.written()), undefined);
      const { original, protocol, mark, zone, timeout } = reader.entry();
      deepStrictEqual({ original, protocol, mark, zone, timeout }, structuredClone({ ...only(value), timeout: 60 }));
      deepStrictEqual(reader.tracking(), structuredClone(value.tracking));
    }),
    { numRuns: 2_000 },
  );
  const record = flow.chain((value) => {
    const { key = '', body = '' } = packFlow(value) ?? {};
    return fc.oneof(
      fc.constant({ op: 'put' as const, key, body }),
      fc.constant({ op: 'end' as const, key }),
      u32.map((mark) => ({ op: 'mark' as const, key, mark })),
    );
  });
  const place = { shard: fc.constantFrom(SHARD, 's0'), epoch: fc.maxSafeNat().map((n) => n % 2 ** 48), sync: u32 };
  const batch = fc.record({ ...place, seq: u32, begins: fc.boolean(), ends: fc.boolean(), records: fc.array(record) });
  const frame = fc.oneof(
    batch.map((batch): Frame => ({ type: 'batch', batch })),
    fc.record({ ...place, seq: u32 }).map((place): Frame => ({ type: 'ack', place })),
    fc.record(place).map((place): Frame => ({ type: 'resync', place })),
    fc.record({ shard: place.shard, epoch: place.epoch }).map((of): Frame => ({ type: 'outdone', ...of })),
    fc.constantFrom<Frame>({ type: 'ping' }, { type: 'hello', version: 1, name: 'gw-b' }),
  );
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 6 }), fc.array(fc.integer({ min: 1, max: 400 })), (frames, cuts) => {
      const stream = Buffer.concat(frames.map(encodeFrame));
      const reader = new FrameReader();
      const read: Frame[] = [];
      for (let at = 0, n = 0; at < stream.length; n++) {
        const end = at + (cuts[n % cuts.length] ?? 64);
        for (const bytes of reader.push(stream.subarray(at, end)) ?? []) {
          const decoded = decodeFrame(bytes);
          if (!decoded.ok) throw new Error(decoded.reason);
          read.push(structuredClone(decoded.value));
        }
        at = end;
      }
      deepStrictEqual(read, structuredClone(frames));
    }),
    { numRuns: 500 },
  );
  const { key = '', body = '' } =
    packFlow({
      protocol: 6,
      original: { source: '10.0.0.1', destination: '10.0.0.2', sourcePort: 1, destinationPort: 2 },
      mark: 0,
      zone: 0,
      status: 0,
    }) ?? {};
  const bytes = encodeFrame({
    type: 'batch',
    batch: { shard: SHARD, epoch: 1, sync: 1, seq: 1, begins: true, ends: false, records: [{ op: 'put', key, body }] },
  }).subarray(4);
  for (let length = 0; length < bytes.length; length++) {
    t.equal(decodeFrame(bytes.subarray(0, length)).ok, false, `${length} bytes of it`);
  }
  t.same(decodeFrame(Uint8Array.of(...bytes, 0)), { ok: false, reason: 'trailing' });
});

/** Refuses what makes no sense. */
class StrictKernel {
  readonly entries = new Map<string, string>();

  take(receiver: ReplicaReceiver, from: string, batch: Batch): ReturnType<ReplicaReceiver['receive']> {
    const reception = receiver.receive(from, batch);
    if (reception.kind === 'applied') this.apply(reception.changes);
    return reception;
  }

  apply(changes: readonly { op: string; key: string; body?: string; replaces?: boolean; mark?: number }[]): void {
    for (const { op, key, body, replaces, mark } of changes) {
      const there = this.entries.get(key);
      if (op === 'put') {
        if ((there !== undefined) !== replaces) throw new Error(`put: there ${there !== undefined}, said ${replaces}`);
        this.entries.set(key, body ?? '');
      } else if (there === undefined) throw new Error(`${op} of what is not there`);
      else if (op === 'end') this.entries.delete(key);
      else {
        const { source, ...rest } = unpackFlow(key, there);
        const packed = packFlow({ ...rest, ...(source && { source }), mark: mark ?? 0 });
        this.entries.set(key, packed?.body ?? '');
      }
    }
  }
}

const flowOf = (n: number, egress: number, mark: number): { key: string; body: string } => {
  const packed = packFlow({
    protocol: n % 2 === 0 ? 6 : 17,
    original: { source: '10.0.0.1', destination: '198.51.100.9', sourcePort: n, destinationPort: 443 },
    source: { address: '203.0.113.7', port: 1_000 + egress },
    mark,
    zone: 0,
    status: egress % 2 === 0 ? 0 : IPS_SEEN_REPLY,
  });
  if (packed === undefined) throw new Error('not packed');
  return packed;
};

const who = fc.nat(1);
const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ do: fc.constant('put' as const), n: fc.nat(9), egress: fc.nat(2), mark: fc.nat(1) }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constantFrom('end' as const, 'mark' as const), n: fc.nat(9) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant('send' as const), to: who }) },
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constant('move' as const),
      at: fc.nat(),
      how: fc.constantFrom(
        'deliver' as const,
        'deliver' as const,
        'deliver' as const,
        'double' as const,
        'lose' as const,
      ),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('cut' as const, 'stall' as const), to: who }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constantFrom('restart' as const, 'failover' as const), clock: fc.nat(3) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('away' as const), to: who }) },
);

type Message =
  | { kind: 'batch'; from: string; to: number; batch: Batch }
  | { kind: 'ack' | 'resync'; from: number; place: { shard: string; epoch: number; sync: number; seq: number } }
  | { kind: 'outdone'; from: number; epoch: number };

t.test('any order, loss and doubling of records converges', async (t) => {
  let passes = 0;
  let overflows = 0;
  let missing = 0;
  fc.assert(
    fc.property(fc.array(step, { minLength: 20, maxLength: 200, size: 'max' }), (steps) => {
      const limits = { records: 3, window: 3, changes: 4 };
      /** What each master would know of what others had: it stood behind them. */
      const masters = ['gw-a', 'gw-z'].map((name) => ({ name, side: new ReplicaReceiver() }));
      const receivers = [0, 1].map(() => ({ side: new ReplicaReceiver(), kernel: new StrictKernel() }));
      for (const { side } of receivers) side.receives([SHARD]);
      let syncs = 0;
      let clock = 5;
      let at = 0;
      const table = new Map<string, string>();
      const begin = (flows: Map<string, string>, epoch: number): SentShard => {
        const sent = new SentShard(SHARD, epoch, () => ++syncs, flows, limits);
        sent.receivers(['0', '1']);
        return sent;
      };
      const claim = (): SentShard => begin(new Map(table), masters[at]?.side.take(SHARD, clock).epoch ?? 0);
      let sent = claim();
      const feed = (to: number) => sent.feeds.get(String(to));
      let network: Message[] = [];
      const deliver = (message: Message): void => {
        switch (message.kind) {
          case 'batch': {
            const { side, kernel } = receivers[message.to] ?? {};
            if (side === undefined || kernel === undefined) return;
            const epoch = side.held(SHARD)?.epoch ?? 0;
            const got = kernel.take(side, message.from, message.batch);
            if ((side.held(SHARD)?.epoch ?? 0) < epoch) throw new Error('an older master is believed');
            if (got.kind === 'applied') network.push({ kind: 'ack', from: message.to, place: got.ack });
            else if (got.kind === 'missing') {
              missing++;
              network.push({ kind: 'resync', from: message.to, place: { ...got.ask, seq: 0 } });
            } else if (got.reason === 'older-master') {
              network.push({ kind: 'outdone', from: message.to, epoch: got.epoch });
            }
            return;
          }
          case 'ack':
            feed(message.from)?.acknowledged(message.place);
            return;
          case 'resync':
            feed(message.from)?.asked(message.place);
            return;
          case 'outdone':
            if (message.epoch >= sent.epoch) {
              sent = begin(sent.flows, masters[at]?.side.outdo(SHARD, message.epoch) ?? 0);
            }
        }
      };
      const send = (to: number): boolean => {
        const batch = feed(to)?.next();
        const from = masters[at]?.name ?? '';
        if (batch !== undefined) network.push({ kind: 'batch', from, to, batch: structuredClone(batch) });
        return batch !== undefined;
      };
      for (const each of steps) {
        switch (each.do) {
          case 'put': {
            const { key, body } = flowOf(each.n, each.egress, each.mark);
            table.set(key, body);
            sent.put(key, body);
            break;
          }
          case 'end':
          case 'mark': {
            const { key } = flowOf(each.n, 0, 0);
            if (each.do === 'end') {
              table.delete(key);
              sent.end(key);
            } else {
              sent.mark(key, 77);
              const body = sent.flows.get(key);
              if (body !== undefined) table.set(key, body);
            }
            break;
          }
          case 'send':
            send(each.to);
            break;
          case 'move': {
            if (network.length === 0) break;
            const [message] = network.splice(each.at % network.length, 1);
            if (message === undefined || each.how === 'lose') break;
            if (each.how === 'double') network.push(message);
            deliver(message);
            break;
          }
          case 'cut':
            network = network.filter((m) => (m.kind === 'batch' ? m.to : m.from) !== each.to);
            feed(each.to)?.again();
            break;
          case 'stall':
            feed(each.to)?.stalled();
            break;
          case 'restart':
            // It knows nothing of before but the time, and reads its table from the kernel.
            masters[at] = { name: masters[at]?.name ?? '', side: new ReplicaReceiver() };
            clock += each.clock;
            sent = claim();
            break;
          case 'failover':
            // What the old one has sent is still on its way; clocks may be behind.
            at = 1 - at;
            clock += each.clock - 1;
            sent = claim();
            break;
          case 'away': {
            const { side, kernel } = receivers[each.to] ?? {};
            kernel?.apply(side?.receives([]) ?? []);
            equal(kernel?.entries.size, 0, 'nothing is left of what is received no more');
            side?.receives([SHARD]);
            // The plan takes it out and puts it in again.
            sent.receivers([String(1 - each.to)]);
            sent.receivers(['0', '1']);
            break;
          }
        }
        for (const to of [0, 1]) {
          if ((feed(to)?.waiting ?? 0) > limits.changes) throw new Error('more waits than may');
        }
      }
      // Quiet: all that is sent arrives, in its order; whoever waits is told anew.
      let rounds = 0;
      for (let done = false; !done; ) {
        if (++rounds > 60) throw new Error('never comes to an end');
        for (let moved = true; moved; ) {
          moved = send(0) || send(1) || network.length > 0;
          for (let message = network.shift(); message !== undefined; message = network.shift()) deliver(message);
        }
        done = [0, 1].every((to) => feed(to)?.synced && feed(to)?.underway === 0 && feed(to)?.waiting === 0);
        for (const to of [0, 1]) {
          feed(to)?.stalled();
          feed(to)?.stalled();
        }
      }
      for (const { side, kernel } of receivers) {
        const held = side.held(SHARD);
        deepStrictEqual(new Map([...(held?.flows ?? [])].sort()), new Map([...table].sort()));
        equal(held?.whole, true);
        equal(side.size, table.size);
        deepStrictEqual([...kernel.entries.keys()].sort(), [...table.keys()].sort());
        for (const [key, body] of kernel.entries) equal(difference(body, table.get(key) ?? ''), 'none');
      }
      for (const one of sent.feeds.values()) {
        passes += one.passes;
        overflows += one.overflows;
      }
    }),
    { numRuns: RUNS },
  );
  t.comment(`${passes} passes, ${overflows} overflows, ${missing} times something was missing`);
  t.ok(passes > 0 && overflows > 0 && missing > 0, 'there was trouble');
});
