/**
 * The client's bytes of a connection that is read for life, behind its first verdict: each unit (units.ts) is judged before
 * its first byte is let on. Packets are let on whole and in order; one that ends within a unit's beginning waits for the
 * rest. Pure: packets, ids and sequence numbers come from the caller, who alone gives verdicts.
 *
 * What was let on may come again, and must be the same where it matters: heads and what frames bodies are kept for a while
 * and compared, content may be anything, since where it ends does not depend on it. Out of order a packet is kept within bounds;
 * what is beyond them is dropped, and sent again. Sequence numbers are compared by their distance from the next byte, so
 * a connection may be as long as it likes.
 */
import type { RequestBody } from '../../wire/http1-body.ts';
import { CR, isTokenByte, LF } from '../../wire/http1-field.ts';
import type { InspectReason } from './reasons.ts';
import type { ReadUnit, Unit } from './units.ts';

export interface FollowLimits {
  /** Packets that wait of one connection, and their bytes. */
  packets: number;
  bytes: number;
  /** Bytes of heads and framing that are kept of what was let on, and in how many pieces. */
  kept: number;
  pieces: number;
  /** Bytes behind the next one from which on nothing that comes again is known. */
  window: number;
}

export const followLimits: FollowLimits = { packets: 48, bytes: 65_536, kept: 32_768, pieces: 1_024, window: 1 << 26 };

/** `wait`: ask again by resume(). */
export type UnitVerdict = 'permit' | 'deny' | 'wait';
export type JudgeUnit = (unit: Unit, again: boolean) => UnitVerdict;

/**
 * What becomes of a packet. `pass`: let it on. `held`: it waits. `settled`: ids in `released` may go on, it may be among
 * them. `refused`: the connection is at its end, after those in `released`.
 */
export type FollowOutcome = 'pass' | 'drop' | 'held' | 'settled' | 'refused';

interface Piece {
  sequence: number;
  bytes: Uint8Array;
}

interface Waiting {
  id: number;
  /** Sequence number behind its last byte. */
  end: number;
}

/** Whether a request, or an empty line before one, may begin with it. */
const mayBegin = (byte: number): boolean => isTokenByte(byte) || byte === CR || byte === LF;

export class Followed {
  reason: InspectReason | undefined;
  detail: string | undefined;
  /** To be let on, in order; the caller empties it. */
  readonly released: number[] = [];
  /** What is held; the caller drops it when the connection ends. */
  held: Waiting[] = [];
  /** Whether all that comes may pass: it cannot be followed, and policy permits it. */
  finished = false;
  /** A unit was denied by policy. */
  denied = false;
  /** Sequence number behind the last byte that was let on: the receiver expects no other. */
  edge: number;
  /** Of the first byte that was not judged yet. */
  #next: number;
  /** What came from there on without a gap. */
  #pending: Uint8Array = new Uint8Array(0);
  #waits = false;
  #again = false;
  /** The last request asked for another protocol, or a tunnel. */
  #open = false;
  #body: RequestBody | undefined;
  #ahead: Piece[] = [];
  #aheadBytes = 0;
  /** Of what was let on: heads and framing, in order. */
  #kept: Piece[] = [];
  #keptBytes = 0;
  /** From here on what was let on is known: all that is not among `#kept` was content. */
  #floor: number;
  readonly #read: ReadUnit;
  readonly #judge: JudgeUnit;
  readonly #limits: FollowLimits;

  constructor(start: number, read: ReadUnit, judge: JudgeUnit, limits: FollowLimits = followLimits) {
    this.#next = this.edge = this.#floor = start;
    this.#read = read;
    this.#judge = judge;
    this.#limits = limits;
  }

  /** Bytes that are kept. */
  get memory(): number {
    return this.#pending.length + this.#aheadBytes + this.#keptBytes;
  }

  /** Forgets what was let on: if that comes again it is not known, and dropped. */
  forget(): void {
    this.#kept = [];
    this.#keptBytes = 0;
    this.#floor = this.#next;
  }

  /** With what was held of the connection until now: its bytes without a gap, and packets that end within them. */
  begin(bytes: Uint8Array, held: Waiting[]): FollowOutcome {
    this.#pending = new Uint8Array(bytes);
    this.held = held;
    return this.#advance();
  }

  /** A packet's bytes, from `from` up to `to`. */
  take(sequence: number, bytes: Uint8Array, from: number, to: number, id: number): FollowOutcome {
    const size = to - from;
    const at = (sequence - this.#next) | 0;
    const length = this.#pending.length;
    // The end of the stream and no more: behind what was let on it is, and within a unit there is no more to come.
    if (size === 0) return at <= 0 ? 'pass' : at === length && !this.#waits ? this.#refuse('ended') : 'drop';
    if (at > length) return this.#keepAhead(sequence, bytes, from, to, id);
    const end = (sequence + size) | 0;
    let start = from;
    if (at < 0) {
      const old = Math.min(-at, size);
      if (-at > this.#limits.window || ((sequence - this.#floor) | 0) < 0) return 'drop';
      // A keep-alive's byte may be anything (RFC 1122 §4.2.3.6).
      if (!this.#same(sequence, bytes, from, old)) {
        return at === -1 && size === 1 ? 'drop' : this.#refuse('changed-bytes');
      }
      // Of a packet that waits for its end, part may have been judged: it is not let on by a copy that is shorter.
      if (old === size) return ((end - this.edge) | 0) <= 0 ? 'pass' : 'drop';
      start += old;
    }
    const into = Math.max(at, 0);
    const again = Math.min(length - into, to - start);
    for (let index = 0; index < again; index++) {
      if (this.#pending[into + index] !== bytes[start + index]) return this.#refuse('overlap');
    }
    start += again;
    if (start === to) return 'drop';
    if (length === 0 && !this.#waits && this.#ahead.length === 0 && this.held.length === 0) {
      const taken = this.#walk(bytes, start, to);
      if (this.reason !== undefined || this.denied) return 'refused';
      if (taken === to) {
        this.edge = end;
        return 'pass';
      }
      start = taken;
    }
    if (this.#pending.length + to - start > this.#limits.bytes || this.held.length >= this.#limits.packets)
      return 'drop';
    this.#append(bytes, start, to);
    this.held.push({ id, end });
    return this.#advance();
  }

  /** The unit that waits is judged again. */
  resume(): FollowOutcome {
    if (!this.#waits) return 'held';
    this.#waits = false;
    this.#again = true;
    return this.#advance();
  }

  #advance(): FollowOutcome {
    for (;;) {
      if (!this.#waits && this.#pending.length > 0) {
        const taken = this.#walk(this.#pending, 0, this.#pending.length);
        this.#pending = this.#pending.subarray(taken);
      }
      if (this.reason !== undefined || this.denied || this.#waits || !this.#joinAhead()) break;
    }
    // Only from the first on: a packet that waits keeps those behind it.
    let count = 0;
    this.held.sort((a, b) => (a.end - b.end) | 0);
    while (count < this.held.length && ((this.held[count]!.end - this.#next) | 0) <= 0) count++;
    for (const { id, end } of this.held.splice(0, count)) {
      this.released.push(id);
      this.edge = end;
    }
    if (this.reason !== undefined || this.denied) return 'refused';
    return count > 0 ? 'settled' : 'held';
  }

  /** Judges what lies there; answers the offset of the first byte that it did not get past. */
  #walk(bytes: Uint8Array, from: number, to: number): number {
    let at = from;
    while (at < to) {
      if (this.finished) return this.#step(at, to, to);
      const body = this.#body;
      if (body !== undefined) {
        at = this.#takeBody(body, bytes, at, to);
        if (this.reason !== undefined) return at;
        continue;
      }
      // The server may have agreed to something else; that it has is seen by bytes that no request begins with.
      if (this.#open && !mayBegin(bytes[at]!)) {
        this.finished = true;
        continue;
      }
      const rest = bytes.subarray(at, to);
      const unit = this.#read(rest);
      if (unit === undefined) return at;
      if (unit.refused !== undefined) {
        this.detail = unit.refused.detail;
        this.#refuse(unit.refused.reason);
        return at;
      }
      const verdict = this.#judge(unit, this.#again);
      if (verdict === 'wait') {
        this.#waits = true;
        return at;
      }
      this.#again = false;
      if (verdict === 'deny') {
        this.denied = true;
        return at;
      }
      this.#keep(bytes, at, at + unit.length);
      at = this.#step(at, at + unit.length, to);
      this.#open = unit.body !== undefined && unit.last === true;
      if (unit.last === true && unit.body === undefined) this.finished = true;
      else if (unit.body?.state === 'body') this.#body = unit.body;
    }
    return at;
  }

  #takeBody(body: RequestBody, bytes: Uint8Array, from: number, to: number): number {
    let at = from;
    while (at < to && body.state === 'body') {
      const { content } = body;
      const stop = content > 0 ? Math.min(to, at + content) : at + 1;
      const taken = body.take(bytes.subarray(at, stop));
      if (content === 0) this.#keep(bytes, at, at + taken);
      at = this.#step(at, at + taken, to);
      if (taken === 0) break;
    }
    if (body.state === 'refused') {
      this.detail = body.reason;
      this.#refuse('bad-body');
    } else if (body.state !== 'body') {
      this.#body = undefined;
    }
    return at;
  }

  #step(from: number, to: number, limit: number): number {
    const at = Math.min(to, limit);
    this.#next = (this.#next + at - from) | 0;
    return at;
  }

  /** Of the sequence number at hand. */
  #keep(bytes: Uint8Array, from: number, to: number): void {
    if (from === to) return;
    const last = this.#kept.at(-1);
    // Framing comes byte by byte: one piece for what is behind the other.
    if (last !== undefined && to - from === 1 && ((last.sequence + last.bytes.length - this.#next) | 0) === 0) {
      const joined = new Uint8Array(last.bytes.length + 1);
      joined.set(last.bytes);
      joined[last.bytes.length] = bytes[from]!;
      last.bytes = joined;
    } else this.#kept.push({ sequence: this.#next, bytes: new Uint8Array(bytes.subarray(from, to)) });
    this.#keptBytes += to - from;
    while (this.#keptBytes > this.#limits.kept || this.#kept.length > this.#limits.pieces) {
      const first = this.#kept.shift();
      if (first === undefined) break;
      this.#keptBytes -= first.bytes.length;
      this.#floor = (first.sequence + first.bytes.length) | 0;
    }
    const oldest = (this.#next - this.#limits.window) | 0;
    if (((this.#floor - oldest) | 0) < 0) this.#floor = oldest;
  }

  #same(sequence: number, bytes: Uint8Array, from: number, size: number): boolean {
    for (let index = this.#kept.length - 1; index >= 0; index--) {
      const piece = this.#kept[index]!;
      const at = (piece.sequence - sequence) | 0;
      if (at + piece.bytes.length <= 0) break;
      const last = Math.min(size, at + piece.bytes.length);
      for (let place = Math.max(at, 0); place < last; place++) {
        if (bytes[from + place] !== piece.bytes[place - at]) return false;
      }
    }
    return true;
  }

  #append(bytes: Uint8Array, from: number, to: number): void {
    const joined = new Uint8Array(this.#pending.length + to - from);
    joined.set(this.#pending);
    joined.set(bytes.subarray(from, to), this.#pending.length);
    this.#pending = joined;
  }

  #keepAhead(sequence: number, bytes: Uint8Array, from: number, to: number, id: number): FollowOutcome {
    const { packets, bytes: most } = this.#limits;
    const size = to - from;
    const full = this.held.length >= packets || this.#aheadBytes + this.#pending.length + size > most;
    if (full || ((sequence - this.#next) | 0) > most || this.#ahead.some((piece) => piece.sequence === sequence)) {
      return 'drop';
    }
    this.#ahead.push({ sequence, bytes: new Uint8Array(bytes.subarray(from, to)) });
    this.#aheadBytes += size;
    this.held.push({ id, end: (sequence + size) | 0 });
    return 'held';
  }

  /** What came ahead and is due now goes behind what is pending. False: nothing is. */
  #joinAhead(): boolean {
    const index = this.#ahead.findIndex(({ sequence }) => ((sequence - this.#next) | 0) <= this.#pending.length);
    const piece = this.#ahead[index];
    if (piece === undefined) return false;
    this.#ahead.splice(index, 1);
    this.#aheadBytes -= piece.bytes.length;
    const at = (piece.sequence - this.#next) | 0;
    const old = Math.min(Math.max(-at, 0), piece.bytes.length);
    if (!this.#same(piece.sequence, piece.bytes, 0, old)) {
      this.#refuse('changed-bytes');
      return false;
    }
    const again = Math.min(this.#pending.length - Math.max(at, 0), piece.bytes.length - old);
    for (let place = 0; place < again; place++) {
      if (this.#pending[Math.max(at, 0) + place] === piece.bytes[old + place]) continue;
      this.#refuse('overlap');
      return false;
    }
    if (old + again < piece.bytes.length) this.#append(piece.bytes, old + again, piece.bytes.length);
    return true;
  }

  #refuse(reason: InspectReason): 'refused' {
    this.reason = reason;
    return 'refused';
  }
}
