/**
 * Past the body of an HTTP/1.x request to where the next one begins (RFC 9112 §6, §7.1): by Content-Length, or by chunks with
 * extensions and trailers. The state of one direction of a connection, a few numbers however long the body is; bytes come in
 * any cuts. As strict as http1.ts: a chunk that two servers could end in different places is refused by name.
 * Leaves out: the bytes themselves, transfer codings other than chunked (they need no decoding to be passed), chunk
 * extensions' meaning, responses.
 */

import type { Following, RequestHead } from './http1.ts';
import { badFieldByte, COLON, CR, isTokenByte, LF } from './http1-field.ts';

export type BodyReason =
  /** Not hexadecimal digits and then `;` or the line's end: white space, a sign, `0x`. */
  | 'bad-chunk-size'
  | 'chunk-too-large'
  | 'chunk-line-too-long'
  /** A control byte in an extension, or CR and LF apart. */
  | 'bad-chunk-extension'
  /** The chunk goes on where it should end. */
  | 'bad-chunk-end'
  | 'bad-trailer'
  /** One that, merged into the head, would change where the request goes or ends (RFC 9110 §6.5.1). */
  | 'forbidden-trailer'
  | 'trailers-too-long';

export interface BodyLimits {
  /** Of a chunk's first line without its end. */
  readonly chunkLineBytes: number;
  /** Of all trailers of a body, line ends included. */
  readonly trailerBytes: number;
}

export const BODY_LIMITS: BodyLimits = { chunkLineBytes: 1024, trailerBytes: 8192 };

/** 2^52: sums of such sizes stay exact; the 13 digits before it are more than any body has. */
const SIZE_DIGITS = 13;

const FORBIDDEN: ReadonlySet<string> = new Set(['content-length', 'host', 'transfer-encoding', 'upgrade']);
const LONGEST_FORBIDDEN = 17;

const SEMICOLON = 0x3b;

/** What the next byte is of. */
type At =
  | 'length'
  | 'size'
  | 'extension'
  | 'size-end'
  | 'data'
  | 'data-cr'
  | 'data-lf'
  | 'trailer-start'
  | 'trailer-name'
  | 'trailer-value'
  | 'trailer-lf'
  | 'last-lf'
  | 'done'
  | 'refused';

export class RequestBody {
  /** Why it was refused: the bytes from there on must not pass. */
  reason: BodyReason | undefined;
  readonly #following: Following;
  readonly #limits: BodyLimits;
  #at: At;
  /** Bytes to come of the body, or of the chunk. */
  #left: number;
  /** Digits of the size, bytes of the line, bytes of the trailers: as far as they have come. */
  #digits = 0;
  #line = 0;
  #trailers = 0;
  /** As far as it may be a forbidden one; lower case. */
  #name = '';

  constructor(head: RequestHead, limits: BodyLimits = BODY_LIMITS) {
    this.#following = head.following;
    this.#limits = limits;
    this.#left = head.contentLength;
    this.#at = head.framing === 'chunked' ? 'size' : head.framing === 'length' ? 'length' : 'done';
  }

  /**
   * Where the connection is: in the body; behind it, where the next request's head, another protocol or a tunnel begins, of
   * which nothing was taken; or nowhere.
   */
  get state(): 'body' | Following | 'refused' {
    return this.#at === 'done' ? this.#following : this.#at === 'refused' ? 'refused' : 'body';
  }

  /** Of the bytes that come next so many are content: where the body ends does not depend on what they are. */
  get content(): number {
    return this.#at === 'length' || this.#at === 'data' ? this.#left : 0;
  }

  /**
   * Takes bytes from an offset on, and answers the offset of the first that it did not take. Those taken are of the body and
   * may pass; the others are to be read in another way, or, where it is refused, by nobody.
   */
  take(bytes: Uint8Array, from = 0): number {
    let at = from;
    while (at < bytes.length && this.#at !== 'done' && this.#at !== 'refused') {
      if (this.#at === 'length' || this.#at === 'data') {
        const step = Math.min(this.#left, bytes.length - at);
        this.#left -= step;
        at += step;
        if (this.#left === 0) this.#at = this.#at === 'length' ? 'done' : 'data-cr';
      } else if (this.#byte(bytes[at]!)) at++;
    }
    return at;
  }

  #refuse(reason: BodyReason): false {
    this.reason = reason;
    this.#at = 'refused';
    return false;
  }

  #expect(byte: number, expected: number, next: At, reason: BodyReason): boolean {
    if (byte !== expected) return this.#refuse(reason);
    this.#at = next;
    return true;
  }

  /** One byte of what frames the chunks; false if it was not taken. */
  #byte(byte: number): boolean {
    switch (this.#at) {
      case 'size':
        return this.#size(byte);
      case 'extension':
        if (this.#line++ >= this.#limits.chunkLineBytes && byte !== CR) return this.#refuse('chunk-line-too-long');
        if (byte === CR) this.#at = 'size-end';
        else if (badFieldByte(byte) !== undefined) return this.#refuse('bad-chunk-extension');
        return true;
      case 'size-end':
        if (byte !== LF) return this.#refuse(this.#line > this.#digits + 1 ? 'bad-chunk-extension' : 'bad-chunk-size');
        this.#at = this.#left > 0 ? 'data' : 'trailer-start';
        this.#digits = 0;
        this.#line = 0;
        return true;
      case 'data-cr':
        return this.#expect(byte, CR, 'data-lf', 'bad-chunk-end');
      case 'data-lf':
        return this.#expect(byte, LF, 'size', 'bad-chunk-end');
      default:
        return this.#trailer(byte);
    }
  }

  #size(byte: number): boolean {
    const digit = hexValue(byte);
    if (digit >= 0) {
      if (++this.#digits > SIZE_DIGITS) return this.#refuse('chunk-too-large');
      this.#left = 16 * this.#left + digit;
      this.#line++;
      return true;
    }
    if (this.#digits === 0 || (byte !== SEMICOLON && byte !== CR)) return this.#refuse('bad-chunk-size');
    this.#line++;
    this.#at = byte === CR ? 'size-end' : 'extension';
    return true;
  }

  #trailer(byte: number): boolean {
    if (++this.#trailers > this.#limits.trailerBytes) return this.#refuse('trailers-too-long');
    switch (this.#at) {
      case 'trailer-start':
        if (byte === CR) {
          this.#at = 'last-lf';
          return true;
        }
        if (!isTokenByte(byte)) return this.#refuse('bad-trailer');
        this.#name = String.fromCharCode(byte);
        this.#at = 'trailer-name';
        return true;
      case 'trailer-name':
        if (byte === COLON) {
          if (FORBIDDEN.has(this.#name.toLowerCase())) return this.#refuse('forbidden-trailer');
          this.#at = 'trailer-value';
          return true;
        }
        if (!isTokenByte(byte)) return this.#refuse('bad-trailer');
        if (this.#name.length <= LONGEST_FORBIDDEN) this.#name += String.fromCharCode(byte);
        return true;
      case 'trailer-value':
        if (byte === CR) this.#at = 'trailer-lf';
        else if (badFieldByte(byte) !== undefined) return this.#refuse('bad-trailer');
        return true;
      default:
        return this.#expect(byte, LF, this.#at === 'last-lf' ? 'done' : 'trailer-start', 'bad-trailer');
    }
  }
}

/** -1 if it is no hexadecimal digit, in either case. */
function hexValue(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const lower = byte | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}
