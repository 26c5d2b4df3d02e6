/**
 * What is said of an HTTP/1.x request: its head's value, the reasons for which one is refused, the bounds. http1.ts reads it.
 */

import type { FieldReason } from './http1-field.ts';
import type { Host } from './http1-host.ts';
import type { Path, TargetForm, TargetReason } from './http1-target.ts';

/** What comes behind the body, or at once. */
export type Following =
  | 'request'
  /** The server may answer 101: from there on another protocol, which cannot be read. */
  | 'upgrade'
  /** CONNECT: from a 2xx answer on anything. */
  | 'tunnel';

/** Why a server may take the body for the next request. Who permits by method or path cannot let such a body pass. */
export type BodyAmbiguity =
  /** `Expect: 100-continue` (RFC 9110 §10.1.1): it may answer at once, and the client leave the body out. */
  | 'expects-continue'
  /** GET, HEAD, DELETE (§9.3): there are servers that do not read it. */
  | 'body-without-meaning';

export interface RequestHead {
  /** A token; letters in upper case. */
  readonly method: string;
  readonly form: TargetForm;
  /** As sent. */
  readonly target: string;
  /** Of the origin and the absolute form. */
  readonly path: Path | undefined;
  readonly version: '1.0' | '1.1';
  /** Of the target where it has one, else of the Host field; they agree. Undefined: HTTP/1.0 without either. */
  readonly host: Host | undefined;
  readonly framing: 'none' | 'length' | 'chunked';
  /** Bytes of the body; 0 where it is chunked. */
  readonly contentLength: number;
  /** None twice; empty without a body, and where all agree on whose the bytes behind the head are. */
  readonly bodyAmbiguous: readonly BodyAmbiguity[];
  readonly following: Following;
  /** The protocols that Upgrade asks for, in lower case as written; empty without. */
  readonly upgrade: string;
  /** Bytes of the head, with the empty line behind it (and one before it). */
  readonly length: number;
}

export type RequestReason =
  | TargetReason
  | FieldReason
  // Bounds.
  | 'head-too-long'
  | 'line-too-long'
  | 'too-many-fields'
  // The request line.
  | 'blank-lines'
  | 'bad-method'
  /** Servers differ on whether `get` is GET. */
  | 'lower-case-method'
  | 'bad-request-line'
  | 'http-0.9'
  | 'bad-version'
  | 'http2-preface'
  // Bytes and lines.
  | 'bare-carriage-return'
  /** A line that begins with white space: the rest of the one before it, to some. */
  | 'obs-fold'
  | 'missing-colon'
  | 'space-before-colon'
  | 'space-in-name'
  | 'bad-name'
  // Host.
  | 'missing-host'
  | 'duplicate-host'
  /** The target names another host than the Host field. */
  | 'conflicting-host'
  // Framing.
  | 'repeated-content-length'
  | 'differing-content-lengths'
  | 'content-length-with-transfer-encoding'
  | 'bad-transfer-coding'
  | 'repeated-transfer-encoding'
  | 'transfer-encoding-in-http-1.0'
  /** CONNECT and TRACE (RFC 9110 §9.3.6, §9.3.8). */
  | 'forbidden-body'
  /** Other than `100-continue`. */
  | 'unknown-expectation';

export interface RequestLimits {
  /** Bytes from the first to the end of the empty line. */
  readonly headBytes: number;
  /** Bytes of one line without its end. */
  readonly lineBytes: number;
  readonly fields: number;
}

/** What common servers take at most (nginx 4 × 8 KiB, Apache 100 fields of 8 KiB, Node 16 KiB), or somewhat more. */
export const REQUEST_LIMITS: RequestLimits = { headBytes: 32_768, lineBytes: 16_384, fields: 128 };
