/**
 * The bytes that CRYPTO frames carry (RFC 9000 §19.6), which come in any order and more than once, put in their places up to
 * a bound. The first bytes at a place count; others there later are refused, since which of them a server reads is its own
 * affair. A hello in one frame is not copied.
 */

export const streamReasons = {
  'crypto-too-long': 'CRYPTO frames beyond the longest hello that is read',
  'conflicting-overlap': 'other bytes for a place of the handshake that has some',
} as const;
export type StreamReason = keyof typeof streamReasons;

interface Range {
  start: number;
  end: number;
}

/** The header of a handshake message goes on top of the bound. */
const HEADER = 4;
/** Enough for most hellos at once; doubled as need be. */
const FIRST_BYTES = 4096;

export class CryptoStream {
  readonly #max: number;
  #bytes: Uint8Array = new Uint8Array(0);
  /** What is there, in order and with gaps between. As many as frames at most, and those are counted. */
  #ranges: Range[] = [];

  /** `max`: bytes of a message without its header. */
  constructor(max: number) {
    this.#max = max + HEADER;
  }

  /** What is there from the first byte on. A view, until the next `put`. */
  get prefix(): Uint8Array {
    const first = this.#ranges[0];
    return this.#bytes.subarray(0, first?.start === 0 ? first.end : 0);
  }

  /** Past the last byte that is there. */
  get end(): number {
    return this.#ranges.at(-1)?.end ?? 0;
  }

  /** Lets go of the bytes. */
  clear(): void {
    this.#bytes = new Uint8Array(0);
    this.#ranges = [];
  }

  /** `data` may be kept, and must not change afterwards. */
  put(offset: number, data: Uint8Array): StreamReason | undefined {
    const merged = { start: offset, end: offset + data.length };
    if (merged.end > this.#max) return 'crypto-too-long';
    if (data.length === 0) return undefined;
    if (offset === 0 && this.#ranges.length === 0) {
      this.#bytes = data;
      this.#ranges.push(merged);
      return undefined;
    }

    const ranges = this.#ranges;
    let before = 0;
    while (before < ranges.length && (ranges[before]?.end ?? 0) < offset) before++;
    let after = before;
    for (; after < ranges.length; after++) {
      const range = ranges[after];
      if (range === undefined || range.start > offset + data.length) break;
      const end = Math.min(range.end, offset + data.length);
      for (let at = Math.max(range.start, offset); at < end; at++) {
        if (this.#bytes[at] !== data[at - offset]) return 'conflicting-overlap';
      }
      merged.start = Math.min(merged.start, range.start);
      merged.end = Math.max(merged.end, range.end);
    }
    this.#grow(offset + data.length);
    this.#bytes.set(data, offset);
    ranges.splice(before, after - before, merged);
    return undefined;
  }

  #grow(needed: number): void {
    // Bytes of a frame that was kept are all there: what comes for their places is the same, or was refused.
    if (needed <= this.#bytes.length) return;
    const bytes = new Uint8Array(Math.min(Math.max(FIRST_BYTES, needed, 2 * this.#bytes.length), this.#max));
    bytes.set(this.#bytes);
    this.#bytes = bytes;
  }
}
