/**
 * Stream assembly against naive oracles: a map from place to byte for what a reader sees; receivers of either habit (the
 * first byte for a place wins, or the last) for what a server makes of the packets that a verdict lets on. And packets of
 * any bytes: nothing throws, no bound is passed, nothing of an undecided stream is let on.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { BAD_CHECKSUM, defaultLimits, FIRST_OF_STREAM, FlowTable } from '../../gateway/inspect/flows.ts';
import { Segment } from '../../gateway/inspect/segment.ts';
import { buildTcp, parsePacket, TCP_ACK, TCP_FIN, TCP_PSH, TCP_SYN } from '../../wire/ip.ts';

const ends = [
  { source: '10.244.1.7', destination: '198.51.100.80' },
  { source: 'fd00:244:1::7', destination: '2001:db8:100::80' },
];
// Numbers begin anew within the stream in one case of three, signed ones in another.
const back = fc.nat(300);
const isn = fc.oneof(
  fc.nat(0xffffffff),
  back.map((places) => 0xffffffff - places),
  back.map((places) => 0x7fffffff - places),
);
const u8 = fc.nat(255);

interface Piece {
  at: number;
  payload: Uint8Array;
}

const roomy = { ...defaultLimits, packets: 400, pieces: 400 };
const unlost = (): never => {
  throw new Error('no flow is lost here');
};

function segment(port: number, start: number, { at, payload }: Piece, flags = TCP_ACK | TCP_PSH): Uint8Array {
  const sequence = (start + 1 + at) >>> 0;
  return buildTcp({ ...ends[port % 2]!, sourcePort: port, destinationPort: 443, flags, sequence, payload });
}

/** Pieces of a stream that cover it, and others that repeat parts of it, in any order. */
const cut = fc.uint8Array({ minLength: 1, maxLength: 300 }).chain((stream) =>
  fc
    .record({
      cuts: fc.array(fc.nat(stream.length), { maxLength: 30 }),
      repeats: fc.array(fc.tuple(fc.nat(stream.length - 1), fc.nat(60)), { maxLength: 20 }),
    })
    .chain(({ cuts, repeats }) => {
      const edges = [...new Set([0, ...cuts, stream.length])].sort((a, b) => a - b);
      const pieces: Piece[] = edges
        .slice(1)
        .map((end, index) => ({ at: edges[index]!, payload: stream.subarray(edges[index], end) }));
      for (const [at, size] of repeats)
        pieces.push({ at, payload: stream.subarray(at, Math.min(stream.length, at + size + 1)) });
      return fc
        .shuffledSubarray(pieces, { minLength: pieces.length })
        .map((shuffled) => ({ stream, pieces: shuffled }));
    }),
);

/** First wins; what differs is a conflict. */
class Oracle {
  readonly bytes = new Map<number, number>();

  get length(): number {
    let length = 0;
    while (this.bytes.has(length)) length++;
    return length;
  }

  conflicts({ at, payload }: Piece): boolean {
    return payload.some((byte, index) => (this.bytes.get(at + index) ?? byte) !== byte);
  }

  brings({ at, payload }: Piece): boolean {
    return payload.some((_, index) => !this.bytes.has(at + index));
  }

  add({ at, payload }: Piece): void {
    payload.forEach((byte, index) => {
      if (!this.bytes.has(at + index)) this.bytes.set(at + index, byte);
    });
  }
}

t.test('segments in any order, cut anywhere, repeated and overlapping: exactly the stream', (t) => {
  fc.assert(
    fc.property(fc.array(fc.tuple(cut, isn), { minLength: 1, maxLength: 4 }), fc.nat(), (streams, mix) => {
      // Several connections at once, of both families, one packet of each in turn.
      const table = new FlowTable<number>(mix, unlost, roomy);
      const flows = streams.map(([{ stream, pieces }, start], port) => ({
        stream,
        pieces,
        start,
        port,
        oracle: new Oracle(),
        held: [] as number[],
      }));
      let id = 0;
      for (const { port, start } of flows) {
        const packet = segment(port, start - 1, { at: 0, payload: new Uint8Array(0) }, TCP_SYN);
        equal(table.take(packet, 0, packet.length, id++, 0), 'pass');
      }
      for (let turn = 0; flows.some(({ pieces }) => turn < pieces.length); turn++) {
        for (const { pieces, start, port, oracle, held } of flows) {
          const piece = pieces[turn];
          if (piece === undefined) continue;
          const packet = segment(port, start, piece);
          const before = oracle.length;
          const brings = oracle.brings(piece);
          oracle.add(piece);
          const outcome = table.take(packet, 0, packet.length, id, 0);
          equal(outcome, !brings ? 'drop' : oracle.length > before ? 'ready' : 'held');
          if (brings) held.push(id);
          else equal(table.reason, 'duplicate');
          id++;
          const flow = table.flow!;
          equal(flow.length, oracle.length);
          deepStrictEqual(
            [...flow.view()],
            Array.from({ length: oracle.length }, (_, at) => oracle.bytes.get(at)),
          );
          deepStrictEqual([...flow.held.subarray(0, flow.heldCount)], held);
        }
      }
      for (const { stream, start, port } of flows) {
        const packet = segment(port, start, { at: stream.length, payload: new Uint8Array(0) }, TCP_ACK | TCP_FIN);
        equal(table.take(packet, 0, packet.length, id++, 0), 'ready');
        deepStrictEqual([...table.flow!.view()], [...stream]);
        equal(table.flow!.exhausted, 'ended');
        table.forget(table.flow!);
      }
      equal(table.size, 0);
    }),
    { numRuns: 300 },
  );
  t.end();
});

t.test('segments that lie: the flow is refused by name, or every receiver makes of it what the reader saw', (t) => {
  const liar = fc.array(
    fc.record({ at: fc.nat(40), payload: fc.array(fc.constantFrom(97, 97, 97, 98), { minLength: 1, maxLength: 20 }) }),
    { minLength: 1, maxLength: 30 },
  );
  let refusals = 0;
  let whole = 0;
  fc.assert(
    fc.property(liar, isn, (said, start) => {
      const table = new FlowTable(1, unlost, roomy);
      const oracle = new Oracle();
      const pieces = said.map(({ at, payload }) => ({ at, payload: Uint8Array.from(payload) }));
      const opening = { at: 0, payload: Uint8Array.of(97) };
      [opening, ...pieces].every((piece, id) => {
        const packet = segment(7, start, piece);
        const outcome = table.take(packet, 0, packet.length, id, 0, id === 0 ? FIRST_OF_STREAM : 0);
        const furthest = Math.max(0, ...oracle.bytes.keys());
        if (oracle.conflicts(piece)) {
          const probe = piece.payload.length === 1 && piece.at === furthest;
          equal(`${outcome} ${table.reason}`, probe ? 'drop keep-alive' : 'refused overlap');
          if (!probe) refusals++;
          return probe;
        }
        ok(outcome !== 'refused' && outcome !== 'pass');
        oracle.add(piece);
        return true;
      });
      const flow = table.flow!;
      const seen = [...flow.view()];
      const firstWins: number[] = [];
      const lastWins: number[] = [];
      for (const id of flow.held.subarray(0, flow.heldCount)) {
        const { at, payload } = id === 0 ? opening : pieces[id - 1]!;
        payload.forEach((byte, index) => {
          firstWins[at + index] ??= byte;
          lastWins[at + index] = byte;
        });
      }
      deepStrictEqual(firstWins.slice(0, seen.length), seen);
      deepStrictEqual(lastWins.slice(0, seen.length), seen);
      if (flow.heldCount > 3) whole++;
    }),
    { numRuns: 1500 },
  );
  ok(refusals > 50 && whole > 50, `${refusals} refused, ${whole} not at once: both were tried`);
  t.end();
});

t.test('packets of any bytes: nothing throws, bounds hold, nothing of an undecided stream is let on', (t) => {
  const limits = {
    ...defaultLimits,
    flows: 4,
    packets: 5,
    pieces: 3,
    bytes: 64,
    gap: 60,
    time: 50,
    linger: 20,
    memory: 3 * 2048,
  };
  const step = fc.record({
    port: fc.nat(6),
    at: fc.integer({ min: -3, max: 80 }),
    size: fc.nat(30),
    byte: fc.constantFrom(97, 98),
    flags: fc.constantFrom(TCP_ACK, TCP_ACK, TCP_ACK, TCP_SYN, TCP_ACK | TCP_FIN, 0x04, 0x14, 0x38, 0, 0xff),
    notes: fc.constantFrom(0, 0, FIRST_OF_STREAM, FIRST_OF_STREAM, BAD_CHECKSUM),
    edits: fc.array(fc.tuple(fc.nat(90), u8), { maxLength: 2 }),
    mutate: fc.nat(5),
    cut: fc.nat(400),
    time: fc.nat(8),
    decide: fc.nat(9),
  });
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 60 }), (steps) => {
      const table = new FlowTable<string>(3, (flow) => ok(flow.heldCount <= limits.packets), limits);
      const reader = new Segment();
      let now = 0;
      steps.forEach(({ port, at, size, byte, flags, notes, edits, mutate, cut: keep, time, decide }, id) => {
        now += time;
        const whole = segment(port, 0xfffffff0, { at, payload: new Uint8Array(size).fill(byte) }, flags);
        const packet = mutate === 0 ? whole.slice(0, keep) : whole;
        if (mutate === 0) for (const [place, value] of edits) if (place < packet.length) packet[place] = value;
        const before = packet.slice();
        const outcome = table.take(packet, 0, packet.length, id, now, notes);
        deepStrictEqual(packet, before, 'a packet is only read');
        const { flow } = table;
        ok(table.size <= limits.flows);
        if (flow !== undefined) {
          ok(flow.heldCount <= limits.packets && flow.length <= limits.bytes);
          equal(flow.view().length, flow.length);
          if (outcome === 'held' || outcome === 'ready') equal(flow.held[flow.heldCount - 1], id);
        }
        // The same packet by the reader that makes texts.
        const parsed = parsePacket(packet);
        const fault = reader.read(packet, 0, packet.length);
        if (fault === undefined) {
          ok(parsed.ok);
          const { payloadOffset, end, sequence, tcpFlags } = parsed.value;
          deepStrictEqual(
            [reader.payload, reader.end, reader.sequence >>> 0, reader.flags],
            [payloadOffset, end, sequence, tcpFlags],
          );
          if (outcome === 'pass') ok(end - payloadOffset === 0 || end - payloadOffset === 1, 'a probe at most');
        } else {
          equal(outcome, 'drop');
          equal(table.reason, fault);
        }
        if (flow !== undefined && (decide === 0 || outcome === 'refused')) {
          if (id % 2 === 0) table.decide(flow, now);
          else table.forget(flow);
        }
        if (decide === 1) table.expire(now);
      });
      table.expire(now + 1000);
      ok(table.size <= limits.flows);
    }),
    { numRuns: 1500 },
  );
  t.end();
});
