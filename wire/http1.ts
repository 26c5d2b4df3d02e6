/**
 * The head of an HTTP/1.x request (RFC 9112 §2, §3, §5, §6; RFC 9110 §5, §7.2, §8.6): method, target, host, and where the
 * body ends. Stricter than RFC 9112 lets a recipient be wherever two recipients are known to disagree: what a server might
 * read in another way than we do (request smuggling) is refused, each shape by its own name. One pass from the left, each
 * byte judged by those before it: more bytes never change an answer.
 * Leaves out: responses, the meaning of all fields but Host, Content-Length, Transfer-Encoding, Expect, Upgrade; fields by which an
 * application lets the method or path be overridden (X-HTTP-Method-Override). The body is http1-body.ts's.
 */

import {
  badFieldByte,
  COLON,
  CR,
  DELETE,
  isBlank,
  LF,
  LOWER,
  octetClass,
  readContentLength,
  SPACE,
  TAB,
  TOKEN,
} from './http1-field.ts';
import { type Host, readHost } from './http1-host.ts';
import {
  type BodyAmbiguity,
  REQUEST_LIMITS,
  type RequestHead,
  type RequestLimits,
  type RequestReason,
} from './http1-request.ts';
import { type Path, readTarget, type TargetForm } from './http1-target.ts';
import { MORE, type Reading, read, refused } from './reading.ts';

export * from './http1-request.ts';

/** Registered methods have at most 17 (RFC 9110 §16.1.1). */
const METHOD_MAX = 32;

/** From the first byte of a request on: of a stream, or of what follows the body before it. */
export function readRequestHead(
  bytes: Uint8Array,
  limits: RequestLimits = REQUEST_LIMITS,
): Reading<RequestHead, RequestReason> {
  const reader = new HeadReader(bytes, limits);
  const state = reader.requestLine() && reader.fields();
  if (state) return read(reader.head());
  return reader.reason === undefined ? MORE : refused(reader.reason);
}

/** Of one call. Each step answers whether it went to its end; else `reason` says why not, or there are too few bytes. */
class HeadReader {
  reason: RequestReason | undefined;
  readonly #bytes: Uint8Array;
  readonly #buffer: Buffer;
  readonly #limits: RequestLimits;
  #at = 0;
  #method = '';
  #target = '';
  #form: TargetForm = 'origin';
  #path: Path | undefined;
  #minor: 0 | 1 = 1;
  #targetHost: Host | undefined;
  #targetPort: number | undefined;
  /** Of a Host field that has no port. */
  #impliedPort: number | undefined;
  #host: Host | undefined;
  #contentLength = -1;
  #chunked = false;
  #upgrade = '';
  #expects = false;

  constructor(bytes: Uint8Array, limits: RequestLimits) {
    this.#bytes = bytes;
    this.#limits = limits;
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  #text(from: number, to: number): string {
    // A call into the engine costs more than a method or a short value.
    if (to - from > 8) return this.#buffer.toString('latin1', from, to);
    let text = '';
    for (let at = from; at < to; at++) text += String.fromCharCode(this.#bytes[at]!);
    return text;
  }

  #refuse(reason: RequestReason): false {
    this.reason = reason;
    return false;
  }

  /** At the end of what there is, or of what may be read. A line's own bound comes first. */
  #beyond(at: number, lineStart: number): boolean {
    if (at - lineStart > this.#limits.lineBytes) return !this.#refuse('line-too-long');
    if (at >= this.#limits.headBytes) return !this.#refuse('head-too-long');
    return at >= this.#bytes.length;
  }

  /** Behind CR. The line's end is none of its bytes. */
  #lineFeed(at: number): boolean {
    if (this.#beyond(at, at)) return false;
    if (this.#bytes[at] !== LF) return this.#refuse('bare-carriage-return');
    this.#at = at + 1;
    return true;
  }

  requestLine(): boolean {
    const bytes = this.#bytes;
    // RFC 9112 §2.2: one empty line, which old clients send behind a body.
    if (bytes[0] === CR) {
      if (!this.#lineFeed(1)) return false;
      if (bytes[2] === CR) return this.#refuse('blank-lines');
    }
    const start = this.#at;
    let at = start;
    for (; ; at++) {
      if (this.#beyond(at, start)) return false;
      const byte = bytes[at]!;
      if (byte === SPACE && at > start) break;
      const kind = octetClass[byte]!;
      if ((kind & LOWER) !== 0) return this.#refuse('lower-case-method');
      if ((kind & TOKEN) === 0) return this.#refuse(afterMethod(byte, at > start));
      if (at - start === METHOD_MAX) return this.#refuse('bad-method');
    }
    this.#method = this.#text(start, at);
    const targetStart = ++at;
    for (; ; at++) {
      if (this.#beyond(at, start)) return false;
      const byte = bytes[at]!;
      if (byte > SPACE && byte < DELETE) continue;
      if (byte === SPACE || byte === CR) break;
      return this.#refuse(byte === TAB ? 'bad-request-line' : (badFieldByte(byte) ?? 'bad-target'));
    }
    if (at === targetStart) return this.#refuse('bad-request-line');
    this.#target = this.#text(targetStart, at);
    if (bytes[at] === CR) {
      // Two words are a request of HTTP/0.9 (RFC 1945 §4.1), which has GET only.
      return this.#refuse(this.#method === 'GET' ? 'http-0.9' : 'bad-request-line');
    }
    return this.#version(at + 1, start) && this.#readTarget();
  }

  /** `HTTP/1.1`, and the end of the line. */
  #version(start: number, lineStart: number): boolean {
    const bytes = this.#bytes;
    for (let i = 0; i < VERSION.length; i++) {
      if (this.#beyond(start + i, lineStart)) return false;
      const byte = bytes[start + i]!;
      if (byte === VERSION[i]) continue;
      if (i === 5 && byte === 0x32 && this.#method === 'PRI') return this.#refuse('http2-preface');
      if (i < 4 && (byte | 0x20) !== (VERSION[i]! | 0x20)) return this.#refuse('bad-request-line');
      if (i !== 7 || byte !== 0x30) return this.#refuse('bad-version');
      this.#minor = 0;
    }
    const end = start + VERSION.length;
    if (this.#beyond(end, lineStart)) return false;
    if (bytes[end] === LF) return this.#refuse('bare-line-feed');
    if (bytes[end] !== CR) {
      return this.#refuse(isBlank(bytes[end]!) ? 'bad-request-line' : 'bad-version');
    }
    return this.#lineFeed(end + 1);
  }

  #readTarget(): boolean {
    const target = readTarget(this.#method, this.#target);
    if (typeof target === 'string') return this.#refuse(target);
    this.#form = target.form;
    this.#path = target.path;
    this.#targetHost = target.host;
    const standard = target.scheme === 'https' ? 443 : 80;
    this.#targetPort = target.host?.port ?? standard;
    this.#impliedPort = target.form === 'authority' ? this.#targetPort : standard;
    return true;
  }

  fields(): boolean {
    for (let count = 0; ; count++) {
      const start = this.#at;
      if (this.#beyond(start, start)) return false;
      if (this.#bytes[start] === CR) return this.#lineFeed(start + 1) && this.#end();
      if (count === this.#limits.fields) return this.#refuse('too-many-fields');
      if (!this.#field(start)) return false;
    }
  }

  #field(start: number): boolean {
    const bytes = this.#bytes;
    let at = start;
    for (; ; at++) {
      if (this.#beyond(at, start)) return false;
      const byte = bytes[at]!;
      if ((octetClass[byte]! & TOKEN) !== 0) continue;
      if (byte === COLON) break;
      return this.#badName(at, start);
    }
    if (at === start) return this.#refuse('bad-name');
    const nameEnd = at;
    // The hot loop: most bytes of a head are those of values.
    const last = Math.min(bytes.length, this.#limits.headBytes, start + this.#limits.lineBytes + 1);
    for (at++; at < last; at++) {
      const byte = bytes[at]!;
      if (byte >= SPACE ? byte !== DELETE : byte === TAB) continue;
      if (byte !== CR) return this.#refuse(badFieldByte(byte) ?? 'control-byte');
      break;
    }
    if (at >= last) {
      this.#beyond(at, start);
      return false;
    }
    if (!this.#lineFeed(at + 1)) return false;
    return this.#meaning(start, nameEnd, at);
  }

  #badName(at: number, start: number): boolean {
    const byte = this.#bytes[at]!;
    if (byte === CR) return this.#refuse('missing-colon');
    if (!isBlank(byte)) return this.#refuse(badFieldByte(byte) ?? 'bad-name');
    if (at === start) return this.#refuse('obs-fold');
    let next = at;
    for (; ; next++) {
      if (this.#beyond(next, start)) return false;
      const after = this.#bytes[next]!;
      if (after === COLON) return this.#refuse('space-before-colon');
      if (!isBlank(after)) return this.#refuse('space-in-name');
    }
  }

  /** Of the fields that say where a request goes and where it ends. */
  #meaning(start: number, nameEnd: number, lineEnd: number): boolean {
    const length = nameEnd - start;
    if (length === 4 && this.#named(start, 'host')) return this.#hostField(this.#value(nameEnd, lineEnd));
    if (length === 6 && this.#named(start, 'expect')) {
      // RFC 9110 §10.1.1: there is no other.
      this.#expects = this.#value(nameEnd, lineEnd).toLowerCase() === '100-continue';
      return this.#expects || this.#refuse('unknown-expectation');
    }
    if (length === 7 && this.#named(start, 'upgrade')) {
      const value = this.#value(nameEnd, lineEnd).toLowerCase();
      this.#upgrade = this.#upgrade === '' ? value : `${this.#upgrade}, ${value}`;
      return true;
    }
    if (length === 14 && this.#named(start, 'content-length')) return this.#lengthField(this.#value(nameEnd, lineEnd));
    if (length === 17 && this.#named(start, 'transfer-encoding')) {
      return this.#codingField(this.#value(nameEnd, lineEnd));
    }
    return true;
  }

  #named(at: number, name: string): boolean {
    // Token bytes only: the bit makes letters lower, and of other token bytes none becomes a letter or a hyphen.
    for (let i = 0; i < name.length; i++) if ((this.#bytes[at + i]! | 0x20) !== name.charCodeAt(i)) return false;
    return true;
  }

  /** Without the white space around it. */
  #value(nameEnd: number, lineEnd: number): string {
    let from = nameEnd + 1;
    let to = lineEnd;
    while (from < to && isBlank(this.#bytes[from]!)) from++;
    while (to > from && isBlank(this.#bytes[to - 1]!)) to--;
    return this.#text(from, to);
  }

  #hostField(value: string): boolean {
    if (this.#host !== undefined) return this.#refuse('duplicate-host');
    const host = readHost(value);
    if (typeof host === 'string') return this.#refuse(host);
    this.#host = host;
    return true;
  }

  #lengthField(value: string): boolean {
    const length = readContentLength(value);
    if (typeof length === 'string') return this.#refuse(length);
    if (this.#contentLength >= 0) {
      return this.#refuse(length === this.#contentLength ? 'repeated-content-length' : 'differing-content-lengths');
    }
    this.#contentLength = length;
    return true;
  }

  /** RFC 9112 §6.1: only chunked, and alone: servers differ on lists, and on what looks like it. */
  #codingField(value: string): boolean {
    if (this.#chunked) return this.#refuse('repeated-transfer-encoding');
    if (value.toLowerCase() !== 'chunked') return this.#refuse('bad-transfer-coding');
    this.#chunked = true;
    return true;
  }

  /** The whole head is there: what its parts are to each other. */
  #end(): boolean {
    const named = this.#targetHost;
    const host = this.#host;
    if (host === undefined && this.#minor === 1) return this.#refuse('missing-host');
    if (named !== undefined && host !== undefined) {
      const same = host.kind === named.kind && host.text === named.text;
      if (!same || (host.port ?? this.#impliedPort) !== this.#targetPort) return this.#refuse('conflicting-host');
    }
    if (this.#chunked) {
      if (this.#contentLength >= 0) return this.#refuse('content-length-with-transfer-encoding');
      if (this.#minor === 0) return this.#refuse('transfer-encoding-in-http-1.0');
    }
    const body = this.#chunked || this.#contentLength > 0;
    return !(body && (this.#method === 'CONNECT' || this.#method === 'TRACE')) || this.#refuse('forbidden-body');
  }

  #bodyAmbiguous(): readonly BodyAmbiguity[] {
    const meaningless = this.#method === 'GET' || this.#method === 'HEAD' || this.#method === 'DELETE';
    if (!meaningless && !this.#expects) return NOT_AMBIGUOUS;
    const found: BodyAmbiguity[] = this.#expects ? ['expects-continue'] : [];
    return meaningless ? [...found, 'body-without-meaning'] : found;
  }

  head(): RequestHead {
    const contentLength = this.#chunked ? 0 : Math.max(0, this.#contentLength);
    return {
      method: this.#method,
      form: this.#form,
      target: this.#target,
      path: this.#path,
      version: this.#minor === 1 ? '1.1' : '1.0',
      host: this.#targetHost ?? this.#host,
      framing: this.#chunked ? 'chunked' : contentLength > 0 ? 'length' : 'none',
      contentLength,
      bodyAmbiguous: this.#chunked || contentLength > 0 ? this.#bodyAmbiguous() : NOT_AMBIGUOUS,
      following: this.#method === 'CONNECT' ? 'tunnel' : this.#upgrade === '' ? 'request' : 'upgrade',
      upgrade: this.#upgrade,
      length: this.#at,
    };
  }
}

const NOT_AMBIGUOUS: readonly BodyAmbiguity[] = Object.freeze([]);
const VERSION = Uint8Array.from(Buffer.from('HTTP/1.1'));
function afterMethod(byte: number, begun: boolean): RequestReason {
  if (byte === LF) return 'bare-line-feed';
  return begun && (byte === CR || byte === TAB) ? 'bad-request-line' : 'bad-method';
}
