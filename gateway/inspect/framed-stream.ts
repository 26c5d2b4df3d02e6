/**
 * One direction of a connection of DNS over TCP (RFC 7766 §8): messages, each behind two bytes of its length, put together from
 * segments in any order. It only listens: nothing waits for it, and nothing is refused. What must be right is where a
 * message begins, else a text within an answer could pose as an answer: so the first byte's place is the caller's to know,
 * and after a gap that is not closed nothing is read any more. Of two bytes for one place the first counts. Pure.
 */
import { u16 } from '../../wire/bytes.ts';

export const framedFaults = {
  gap: 'a segment further ahead of what is missing than is waited for',
  pieces: 'more separate pieces out of order than are kept',
} as const;
export type FramedFault = keyof typeof framedFaults;

export interface FramedLimits {
  /** Of a message: longer ones are passed over. */
  message: number;
  /** Bytes from the first that is missing to the end of what is kept. */
  gap: number;
  pieces: number;
}

interface Piece {
  sequence: number;
  bytes: Uint8Array;
}

const LENGTH = 2;

export class FramedStream {
  readonly start: number;
  /** Sequence number of the first byte that is missing. */
  #next: number;
  /** The message at hand with its length before it; until that is known, only the length. */
  #message = new Uint8Array(LENGTH);
  #filled = 0;
  #skip = 0;
  #ahead: Piece[] = [];
  #aheadBytes = 0;
  readonly #limits: FramedLimits;

  /** `start`: sequence number of the first byte. */
  constructor(start: number, limits: FramedLimits) {
    this.start = this.#next = start | 0;
    this.#limits = limits;
  }

  /** Bytes that are kept. */
  get memory(): number {
    return this.#message.length + this.#aheadBytes;
  }

  /**
   * A segment's bytes, from `from` up to `to`; `each` is called for every message that is whole by them, with its length
   * before it. A fault: the stream cannot be read any more.
   */
  take(
    sequence: number,
    bytes: Uint8Array,
    from: number,
    to: number,
    each: (message: Uint8Array) => void,
  ): FramedFault | undefined {
    const at = (sequence - this.#next) | 0;
    if (at > 0) return this.#keep(sequence, bytes.slice(from, to), at);
    this.#advance(bytes, from - at, to, each);
    for (;;) {
      const index = this.#ahead.findIndex((piece) => ((piece.sequence - this.#next) | 0) <= 0);
      const piece = this.#ahead[index];
      if (piece === undefined) return undefined;
      this.#ahead.splice(index, 1);
      this.#aheadBytes -= piece.bytes.length;
      this.#advance(piece.bytes, (this.#next - piece.sequence) | 0, piece.bytes.length, each);
    }
  }

  #keep(sequence: number, bytes: Uint8Array, at: number): FramedFault | undefined {
    const { gap, pieces } = this.#limits;
    if (bytes.length === 0) return undefined;
    if (at + bytes.length > gap) return 'gap';
    const same = this.#ahead.find((piece) => piece.sequence === sequence);
    if (same !== undefined && same.bytes.length >= bytes.length) return undefined;
    if (this.#ahead.length === pieces) return 'pieces';
    this.#ahead.push({ sequence, bytes });
    this.#aheadBytes += bytes.length;
    return undefined;
  }

  /** What comes next; nothing if all of it was there before. */
  #advance(bytes: Uint8Array, from: number, to: number, each: (message: Uint8Array) => void): void {
    if (from >= to) return;
    this.#next = (this.#next + to - from) | 0;
    for (let at = from; at < to; ) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, to - at);
        this.#skip -= skipped;
        at += skipped;
        continue;
      }
      const message = this.#message;
      const taken = Math.min(message.length - this.#filled, to - at);
      message.set(bytes.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled < message.length) return;
      if (message.length > LENGTH) {
        this.#begin(new Uint8Array(LENGTH), 0);
        each(message);
        continue;
      }
      const size = u16(message, 0);
      if (size === 0 || size > this.#limits.message) {
        this.#skip = size;
        this.#begin(message, 0);
        continue;
      }
      const whole = new Uint8Array(LENGTH + size);
      whole.set(message);
      this.#begin(whole, LENGTH);
    }
  }

  #begin(message: Uint8Array<ArrayBuffer>, filled: number): void {
    this.#message = message;
    this.#filled = filled;
  }
}
