/**
 * One direction of one TCP connection (RFC 9293 §3.10.7.4), put together from packets that wait in a queue until a reader
 * has read enough of it. Pure: packets, ids and time come from the caller, who alone gives verdicts.
 *
 * What the receiver's stack will take must be what the reader saw (Ptacek and Newsham, 1998). Receivers differ in which of
 * two bytes for one place they keep, so there is never a choice here: the first is kept, and a second that differs ends the
 * flow, whether it comes in order or not. It holds too for the tricks by which the receiver never gets the first (a short
 * TTL, an old timestamp, a window that is full): its substitute is compared with what was held. Nothing of a stream is let on
 * before the verdict, except what carries no byte of it, or only bytes that were let on before.
 *
 * The place of the first byte must be known, else a second segment that comes first could pose as the beginning. A SYN tells
 * it; so does a caller who queues no SYNs and has it from the kernel: the SYN+ACK's `ackseq` goes into a set together with the
 * tuple, and a packet whose tuple and sequence number are in the set begins the stream. (`meta mark set @th,64,32`, then
 * `update @s { ip daddr . tcp dport . ip saddr . tcp sport . meta mark }`; a set of `tcp sequence` itself makes nft 1.0.6 abort
 * when it lists it.) What comes before the first is dropped, and sent again.
 *
 * Leaves out what comes after the verdict: from then on the kernel carries the flow, and a sender that has raw sockets may
 * send other bytes for those that were read, in the hope that the receiver never got the first. Closed in part by rules: a
 * fixed TTL for what leaves, no segment with a wrong checksum or out of the window (conntrack).
 */
import { TCP_FIN, TCP_RST, TCP_SYN } from '../../wire/ip.ts';
import type { BufferPool } from './buffers.ts';
import { type Segment, type SegmentFault, segmentFaults, TCP_URG } from './segment.ts';

/** Why a packet is not let on, or a flow comes to its end before its verdict. */
export const assemblyReasons = {
  ...segmentFaults,
  'bad-checksum': 'a packet whose checksum is wrong: the receiver will not take it',
  'no-start': 'a packet of a stream whose first byte has not come yet',
  'before-start': 'bytes from before the first byte of the stream',
  'start-conflict': 'a second beginning of the stream, with another sequence number',
  overlap: 'other bytes for a place in the stream that had some already',
  'fin-conflict': 'bytes after the end of the stream, or a second end',
  urgent: 'urgent data: receivers differ in whether its byte is part of the stream',
  duplicate: 'a packet of which every byte is held already',
  'keep-alive': 'one old byte that is not the one sent before: a probe that means nothing',
  gap: 'a packet further ahead of what is missing than is waited for',
  pieces: 'more separate pieces out of order than are kept',
  packets: 'more packets than are held for one flow',
  bytes: 'more bytes than are read for one flow, and still not enough',
  time: 'not enough within the time that a flow may be held',
  flows: 'the oldest undecided flow, when there is room for no more',
  idle: 'a flow that is read for life and has said nothing for long',
  replaced: 'another connection with the same addresses and ports, while the one before was read for life',
  memory: 'the oldest undecided flow, when all that is kept of streams takes more memory than it may',
  ended: 'the stream ended before there was enough',
  reset: 'the sender gave the connection up',
} as const satisfies Record<SegmentFault | string, string>;
export type AssemblyReason = keyof typeof assemblyReasons;

/**
 * What to do with a packet. `pass`: let it on, it carries nothing of the stream, or nothing new. `drop`: this packet only.
 * `held`: keep it. `ready`: keep it, and ask the reader, there is more to read or the end is known. `refused`: an end of the
 * whole flow, this packet and all that are held; after `reset` the packet itself may go on. `decided`: back to the kernel
 * without a verdict, whose mark on the connection says what was decided. `followed`: the caller reads it, the verdict was given.
 */
export type Outcome = 'pass' | 'drop' | 'held' | 'ready' | 'refused' | 'decided' | 'followed';

export interface StreamLimits {
  /** Bytes that are kept, and read, of a stream; what a packet has beyond is let on with it, unread. */
  bytes: number;
  packets: number;
  /** Separate pieces beyond what is missing. */
  pieces: number;
  /** Bytes from the first that is missing to the first of a packet. */
  gap: number;
}

const EMPTY = new Uint8Array(0);

export class Stream {
  /** Of the last packet that was dropped or refused. */
  reason: AssemblyReason | undefined;
  /** The first `heldCount` are ids of packets, in the order in which they came. */
  readonly held: Uint32Array;
  heldCount = 0;
  /** Bytes from the first on, without a gap. */
  length = 0;
  private readonly heldEnds: Int32Array;
  private startKnown = false;
  private start = 0;
  /** Where the stream ends; -1: not known. */
  private finAt = -1;
  /** The furthest that any packet reached. */
  private furthest = 0;
  /** What is before it was let on, without a verdict on the rest. */
  private passed = 0;
  private buffer: Uint8Array<ArrayBuffer> = EMPTY;
  /** Beyond `length`: pairs of first and end, ascending, apart from each other. */
  private readonly pieces: Int32Array;
  private pieceCount = 0;
  private refused = false;
  private readonly limits: StreamLimits;
  private readonly pool: BufferPool;

  constructor(limits: StreamLimits, pool: BufferPool) {
    this.limits = limits;
    this.pool = pool;
    this.held = new Uint32Array(limits.packets);
    this.heldEnds = new Int32Array(limits.packets);
    this.pieces = new Int32Array(limits.pieces * 2);
  }

  /**
   * A packet of the stream; `first`: its first byte is known to be that of the stream. The very first has to be so, or a SYN:
   * the table sees to it. Never throws.
   */
  add(segment: Segment, bytes: Uint8Array, id: number, first: boolean): Outcome {
    if (this.refused) return 'refused';
    const { flags } = segment;
    // A receiver takes only one with the very next sequence number, others it asks about (RFC 5961 §3). One that it does not
    // take only means that the stream is held anew, from its first byte on.
    if ((flags & TCP_RST) !== 0) return this.refuse('reset');
    if ((flags & TCP_URG) !== 0) return this.refuse('urgent');
    const sequence = (segment.sequence + ((flags & TCP_SYN) !== 0 ? 1 : 0)) | 0;
    if ((flags & TCP_SYN) !== 0 || first) {
      if (this.startKnown && sequence !== this.start) return this.refuse('start-conflict');
      this.start = sequence;
      this.startKnown = true;
    }
    const size = segment.end - segment.payload;
    const fin = (flags & TCP_FIN) !== 0;
    if (size === 0 && !fin) return 'pass';

    // Sequence numbers wrap; places in the stream do not, for none is further ahead than the gap allows.
    const at = (sequence - this.start) | 0;
    const end = at + size;
    // A keep-alive may carry one byte that was sent before (RFC 1122 §4.2.3.6), here the one that the SYN stood for.
    if (at < 0) return at === -1 && size === 1 && !fin ? 'pass' : this.drop('before-start');
    if (at - this.length > this.limits.gap) return this.drop('gap');
    if (this.finAt >= 0 ? end > this.finAt || (fin && end !== this.finAt) : fin && end < this.furthest) {
      return this.refuse('fin-conflict');
    }
    if (at >= this.limits.bytes && end > this.limits.bytes) {
      return this.length < this.limits.bytes ? this.drop('gap') : this.refuse('bytes');
    }
    return this.keep(segment, bytes, id, at, fin);
  }

  private keep(segment: Segment, bytes: Uint8Array, id: number, at: number, fin: boolean): Outcome {
    const end = at + segment.end - segment.payload;
    const stop = Math.min(end, this.limits.bytes);
    const news = fin && this.finAt < 0;
    const before = this.length;
    const fresh = this.compare(bytes, segment.payload, at, stop);
    if (fresh === DIFFERENT) {
      // A keep-alive's byte may be anything. It is not let on: a receiver that lost the first one would take it.
      if (end - at === 1 && end === this.furthest && !fin) return this.drop('keep-alive');
      return this.refuse('overlap');
    }
    if (fresh === SAME && !news) return end + (fin ? 1 : 0) <= this.passed ? 'pass' : this.drop('duplicate');
    if (this.heldCount === this.limits.packets) return this.refuse('packets');
    if (fresh === FRESH) {
      if (!this.note(at, stop)) return this.refuse('pieces');
      this.copy(bytes, segment.payload, at, stop);
    }
    if (fin) this.finAt = end;
    if (end > this.furthest) this.furthest = end;
    this.held[this.heldCount] = id;
    this.heldEnds[this.heldCount++] = end + (fin ? 1 : 0);
    return this.length > before || (news && this.ended) ? 'ready' : 'held';
  }

  /** The stream from its first byte on, as far as there is no gap: a view, good until the next packet. */
  view(): Uint8Array {
    return this.buffer.subarray(0, this.length);
  }

  /** Whether that is the sequence number of its first byte. */
  beginsAt(sequence: number): boolean {
    return this.startKnown && sequence === this.start;
  }

  /** The sequence number of a place in it. */
  sequenceOf(place: number): number {
    return (this.start + place) | 0;
  }

  /** Up to which place a held packet carries bytes, its FIN among them. */
  heldEnd(index: number): number {
    return this.heldEnds[index] ?? 0;
  }

  /** Whether no more bytes will come. */
  get ended(): boolean {
    return this.finAt === this.length;
  }

  /** Why to wait for more would be in vain; the caller asks when the reader wants more. */
  get exhausted(): 'ended' | 'bytes' | undefined {
    if (this.ended) return 'ended';
    return this.length >= this.limits.bytes ? 'bytes' : undefined;
  }

  /**
   * Packets that carry nothing from `place` on are held no longer: their ids go into `ids`, and the caller lets them on. For
   * protocols in which the peer must answer before there is more to read. Bytes past what was read stay. From then on the
   * stream must not begin anew: whatever ends the flow before a verdict has to end the connection in the kernel (its conntrack
   * entry; with tcp_loose=0 nothing of it passes then), for a fresh stream would not know what the receiver has.
   */
  passUpTo(place: number, ids: number[]): void {
    const stop = Math.min(place, this.length);
    let kept = 0;
    for (let index = 0; index < this.heldCount; index++) {
      const end = this.heldEnds[index]!;
      if (end <= stop || (this.ended && stop === this.length)) ids.push(this.held[index]!);
      else {
        this.held[kept] = this.held[index]!;
        this.heldEnds[kept++] = end;
      }
    }
    this.heldCount = kept;
    if (stop > this.passed) this.passed = stop;
    if (this.ended && stop === this.length) this.passed = stop + 1;
  }

  /** Nothing is held or kept any more; the buffer goes back. */
  settle(): void {
    if (this.buffer !== EMPTY) this.pool.give(this.buffer);
    this.buffer = EMPTY;
    this.heldCount = 0;
    this.length = 0;
    this.pieceCount = 0;
  }

  /** As it was made, for another connection. */
  clear(): void {
    this.settle();
    this.reason = undefined;
    this.startKnown = false;
    this.start = 0;
    this.finAt = -1;
    this.furthest = 0;
    this.passed = 0;
    this.refused = false;
  }

  /** The bytes that are kept already against those that come again, place by place. */
  private compare(bytes: Uint8Array, from: number, at: number, stop: number): Comparison {
    let place = at;
    let fresh: Comparison = SAME;
    for (let index = -1; index < this.pieceCount && place < stop; index++) {
      const first = index < 0 ? 0 : this.pieces[index * 2]!;
      const end = index < 0 ? this.length : this.pieces[index * 2 + 1]!;
      if (end <= place) continue;
      if (first > place) fresh = FRESH;
      for (place = Math.max(place, first); place < Math.min(end, stop); place++) {
        if (this.buffer[place] !== bytes[from + place - at]) return DIFFERENT;
      }
    }
    return place < stop ? FRESH : fresh;
  }

  /** What is kept from now on; false: it would be in more pieces than there may be. */
  private note(at: number, stop: number): boolean {
    const { pieces } = this;
    let first = at;
    let end = stop;
    // Pieces that it touches or covers become one with it.
    let from = 0;
    while (from < this.pieceCount && pieces[from * 2 + 1]! < at) from++;
    let to = from;
    while (to < this.pieceCount && pieces[to * 2]! <= stop) {
      first = Math.min(first, pieces[to * 2]!);
      end = Math.max(end, pieces[to * 2 + 1]!);
      to++;
    }
    if (first <= this.length) {
      this.length = Math.max(this.length, end);
      // All before it lie below the length, so there are none.
      pieces.copyWithin(0, to * 2, this.pieceCount * 2);
      this.pieceCount -= to;
      return true;
    }
    const count = this.pieceCount - (to - from) + 1;
    if (count * 2 > pieces.length) return false;
    pieces.copyWithin((from + 1) * 2, to * 2, this.pieceCount * 2);
    pieces[from * 2] = first;
    pieces[from * 2 + 1] = end;
    this.pieceCount = count;
    return true;
  }

  /** Bytes that were kept before are written again as they are: they were compared. */
  private copy(bytes: Uint8Array, from: number, at: number, stop: number): void {
    if (this.buffer.length < stop) {
      const larger = this.pool.take(stop);
      if (this.buffer !== EMPTY) {
        larger.set(this.buffer);
        this.pool.give(this.buffer);
      }
      this.buffer = larger;
    }
    const size = stop - at;
    const { buffer } = this;
    // A view of the source costs more than the copy of a few bytes.
    if (size > SHORT) buffer.set(bytes.subarray(from, from + size), at);
    else for (let index = 0; index < size; index++) buffer[at + index] = bytes[from + index]!;
  }

  private drop(reason: AssemblyReason): 'drop' {
    this.reason = reason;
    return 'drop';
  }

  private refuse(reason: AssemblyReason): 'refused' {
    this.reason = reason;
    this.refused = true;
    return 'refused';
  }
}

const SHORT = 64;
const SAME = 0;
const FRESH = 1;
const DIFFERENT = 2;
type Comparison = typeof SAME | typeof FRESH | typeof DIFFERENT;
