/**
 * The preface by which a client opens HTTP/2 without being asked (RFC 9113 §3.4, "prior knowledge", h2c): 24 bytes, behind
 * which frames follow. Asked before http1.ts, which refuses it by name.
 * Leaves out: frames and HPACK; what goes over such a connection is not read.
 */

import { MORE, type Reading, read, refused } from './reading.ts';

export interface Http2Preface {
  /** Bytes before the first frame. */
  readonly length: 24;
}

const PREFACE = Uint8Array.from(Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'));
const READ = read<Http2Preface>({ length: 24 });
const REFUSED = refused('not-http2');

/** Of the first bytes of a stream. `more`: those there are its beginning, as those of PROPFIND are for two bytes. */
export function readHttp2Preface(bytes: Uint8Array): Reading<Http2Preface, 'not-http2'> {
  const end = Math.min(bytes.length, PREFACE.length);
  for (let at = 0; at < end; at++) if (bytes[at] !== PREFACE[at]) return REFUSED;
  return end === PREFACE.length ? READ : MORE;
}
