/**
 * Names in DNS messages (RFC 1035 §3.1, §4.1.4, RFC 4343): labels and compression pointers → lower-case text without the
 * last dot, and the measures by which a name that carries data is known. A pointer goes strictly backwards, so that no name
 * is a circle; and there are at most as many as a name has labels.
 * Leaves out: escapes (`\.`, `\032`). A byte that is no letter, digit, hyphen or underscore makes the name an odd one: no host
 * has it, and text could not say which label it is in.
 */

import { u8, u16 } from './bytes.ts';

export type NameReason =
  /** The message ends within. */
  | 'cut-short'
  /** RFC 1035 leaves two of four kinds open, and RFC 6891 §5 closed them. */
  | 'bad-label-type'
  /** Not to before where it stands, or into the header. */
  | 'bad-pointer'
  | 'too-many-pointers'
  /** More than 255 bytes. */
  | 'name-too-long'
  | 'odd-name-byte';

/** Of labels that chance or people made up little says more than 4 bits per character in 20 characters; base32 does. */
export interface NameMeasures {
  /** Characters of the name, dots included. */
  readonly length: number;
  readonly longestLabel: number;
  readonly labels: number;
  /** Shannon's, in bits per character, of the labels below the last two; 0 where there are none. */
  readonly entropy: number;
  /** Characters that it was taken of. */
  readonly entropyOf: number;
}

export const DNS_HEADER = 12;
/** RFC 1035 §3.1: with the lengths and the root's. */
const NAME_MAX = 255;
const POINTERS_MAX = 127;

const DOT = 0x2e;

/** Of each byte: itself in lower case, or 0 for one that no host's name has. */
const LOWER = new Uint8Array(256);
for (const character of 'abcdefghijklmnopqrstuvwxyz0123456789-_') {
  LOWER[character.charCodeAt(0)] = character.charCodeAt(0);
  LOWER[character.toUpperCase().charCodeAt(0)] = character.charCodeAt(0);
}

/** n·log₂ n, for as many as a name has characters. */
const N_LOG_N = Float64Array.from({ length: NAME_MAX + 1 }, (_, n) => (n === 0 ? 0 : n * Math.log2(n)));

/** Reads one name after another; what it says of one is gone with the next. Only text() allocates. */
export class NameReader {
  reason: NameReason | undefined;
  /** The offset behind the name, or behind its first pointer. */
  end = 0;
  /** Of a name that was skipped: whether it ends in a pointer. */
  compressed = false;
  labels = 0;
  longestLabel = 0;
  /** Characters of the text. */
  length = 0;
  readonly #text = Buffer.alloc(NAME_MAX + 1);
  readonly #counts = new Uint8Array(128);
  /** Where the last two labels begin in the text. */
  #last = 0;
  #lastButOne = 0;

  /** The name at an offset of the message [base, limit). After `odd-name-byte`, `end` stands nevertheless. */
  read(bytes: Uint8Array, at: number, base: number, limit: number): boolean {
    this.reason = undefined;
    this.end = -1;
    this.labels = 0;
    this.longestLabel = 0;
    this.#last = 0;
    this.#lastButOne = 0;
    const text = this.#text;
    let length = 0;
    let odd = false;
    let pointers = 0;
    let segment = at;
    for (let next = at; ; ) {
      if (next >= limit) return this.#refuse('cut-short');
      const size = bytes[next]!;
      if (size === 0) {
        if (this.end < 0) this.end = next + 1;
        break;
      }
      if (size >= 0xc0) {
        if (next + 2 > limit) return this.#refuse('cut-short');
        if (this.end < 0) this.end = next + 2;
        if (++pointers > POINTERS_MAX) return this.#refuse('too-many-pointers');
        next = base + (u16(bytes, next) & 0x3fff);
        if (next >= segment || next < base + DNS_HEADER) return this.#refuse('bad-pointer');
        segment = next;
        continue;
      }
      if (size > 0x3f) return this.#refuse('bad-label-type');
      if (next + 1 + size > limit) return this.#refuse('cut-short');
      // One byte of length for each label, one for the root; the text has one dot less than labels.
      if (length + (this.labels > 0 ? 1 : 0) + size + 2 > NAME_MAX) return this.#refuse('name-too-long');
      if (this.labels++ > 0) text[length++] = DOT;
      this.#lastButOne = this.#last;
      this.#last = length;
      if (size > this.longestLabel) this.longestLabel = size;
      for (const end = next + 1 + size; ++next < end; ) {
        const byte = LOWER[bytes[next]!]!;
        if (byte === 0) odd = true;
        text[length++] = byte;
      }
    }
    this.length = length;
    return odd ? this.#refuse('odd-name-byte') : true;
  }

  /** Where the name ends, without a look at where its pointer leads. */
  skip(bytes: Uint8Array, at: number, limit: number): boolean {
    for (let next = at; next < limit; ) {
      const size = u8(bytes, next);
      if (size === 0 || size >= 0xc0) {
        this.compressed = size !== 0;
        this.end = next + (size === 0 ? 1 : 2);
        return this.end <= limit || this.#refuse('cut-short');
      }
      if (size > 0x3f) return this.#refuse('bad-label-type');
      next += 1 + size;
      if (next - at >= NAME_MAX) return this.#refuse('name-too-long');
    }
    return this.#refuse('cut-short');
  }

  /** Of the name that was read; the root is `.`. */
  text(): string {
    return this.length === 0 ? '.' : this.#text.toString('latin1', 0, this.length);
  }

  /** Characters below the last two labels, dots not counted: what entropy() is taken of. */
  get entropyOf(): number {
    // With each of them goes a dot.
    return this.labels > 2 ? this.#lastButOne - (this.labels - 2) : 0;
  }

  entropy(): number {
    const count = this.entropyOf;
    if (count === 0) return 0;
    const counts = this.#counts;
    for (let i = 0; i < this.#lastButOne; i++) counts[this.#text[i]!]!++;
    counts[DOT] = 0;
    let sum = 0;
    for (let i = 0; i < this.#lastButOne; i++) {
      const byte = this.#text[i]!;
      sum += N_LOG_N[counts[byte]!]!;
      counts[byte] = 0;
    }
    return (N_LOG_N[count]! - sum) / count;
  }

  #refuse(reason: NameReason): false {
    this.reason = reason;
    return false;
  }
}
