/**
 * The first bytes of a TCP stream that should carry TLS: the client's hello, over as many records as it was cut into (RFC
 * 8446 §5.1), and whether the server answers as one of TLS. A hello in one record is read where it lies; one over several
 * is put together once it is whole, the only copy there is. Strict where servers are lax: whatever a server might take for
 * something else than we do has a reason of its own. Left out: decryption and DTLS. Hellos of SSL 2 are told apart and refused:
 * they have no extensions, hence no name. A server that asks for another hello (HelloRetryRequest) is said to, and where that
 * hello begins: it is in clear too (RFC 8446 §4.1.4), and servers take the name that it has.
 */

import { createHash } from 'node:crypto';
import { u8, u16 } from './bytes.ts';
import { MORE, type Reading, read, refused } from './reading.ts';
import {
  CLIENT_HELLO,
  type ClientHello,
  EXTENSION_SUPPORTED_VERSIONS,
  HANDSHAKE_HEADER,
  type HelloLimits,
  helloLimits,
  helloReasons,
  readHelloBody,
} from './tls-hello.ts';

export const tlsReasons = {
  ...helloReasons,
  'not-tls': 'the first bytes are no record of TLS with a handshake',
  'sslv2-hello': 'a hello in the form of SSL 2 (RFC 5246 appendix E.2), which names no server',
  'other-record': 'a record of another type within the hello',
  'bad-record': 'a record within the hello of no version of SSL 3 or TLS',
  'empty-record': 'a record of the handshake without a byte',
  'record-too-long': 'a record of more than 16,384 bytes',
  'too-many-records': 'a hello over more records than are read',
} as const;
export type TlsReason = keyof typeof tlsReasons;

export interface TlsLimits extends HelloLimits {
  /** Records that a hello may be spread over. */
  readonly records: number;
}

/** A hello of 4,096 bytes may come in records of one. */
export const tlsLimits: TlsLimits = { ...helloLimits, records: 4096 };

const RECORD_HEADER = 5;
const RECORD_MAX = 16_384;
const RECORD_CHANGE_CIPHER_SPEC = 20;
const RECORD_ALERT = 21;
const RECORD_HANDSHAKE = 22;
const RECORD_APPLICATION_DATA = 23;
const SERVER_HELLO = 2;
/** Version, random, an empty session id, cipher suite and compression. */
const SERVER_HELLO_MIN = 38;
/** Message header, version and random: as much of the server's first record as is read. */
const SERVER_HELLO_HEAD = HANDSHAKE_HEADER + 2 + 32;
/** The random of a HelloRetryRequest (RFC 8446 §4.1.3), which is a ServerHello otherwise. */
const RETRY_RANDOM = createHash('sha256').update('HelloRetryRequest').digest();

/** What the client says first. Bytes after the hello's last record are not looked at: early data, if it announces some. */
export function readClientHello(bytes: Uint8Array, limits: TlsLimits = tlsLimits): Reading<ClientHello, TlsReason> {
  let at = 0;
  /** Bytes of the message in the records before `at`. */
  let got = 0;
  /** Of the body, and of the whole message once its header is there. */
  let body = 0;
  let whole = -1;
  for (let records = 1; ; records++) {
    if (records > limits.records) return refused('too-many-records');
    const size = records === 1 ? firstRecord(bytes) : laterRecord(bytes, at);
    if (typeof size === 'string') return size === 'more' ? MORE : refused(size);
    const start = at + RECORD_HEADER;
    const end = start + size;
    for (let i = got; i < HANDSHAKE_HEADER && i < got + size && start + i - got < bytes.length; i++) {
      const octet = u8(bytes, start + i - got);
      if (i > 0) body = (body << 8) | octet;
      else if (octet !== CLIENT_HELLO) return refused('not-client-hello');
      if (i < HANDSHAKE_HEADER - 1) continue;
      if (body > limits.helloBytes) return refused('hello-too-long');
      whole = HANDSHAKE_HEADER + body;
    }
    // Said before the rest is there: the answer is the same for any cut.
    if (whole >= 0 && got + size > whole) return refused('bytes-after-hello');
    if (end > bytes.length) return MORE;
    at = end;
    got += size;
    if (got !== whole) continue;
    if (records === 1) return readHelloBody(bytes, start + HANDSHAKE_HEADER, end, end, limits);
    return readHelloBody(joinRecords(bytes, whole), HANDSHAKE_HEADER, whole, end, limits);
  }
}

/**
 * Where a second hello begins that a server asked for, behind the first: what may come before is skipped (a compatibility
 * message of TLS 1.2, early data of which the server takes nothing). `more`: it has not come; `other`: nor will it.
 */
export function secondHelloAt(bytes: Uint8Array, behind: number): number | 'more' | 'other' {
  for (let at = behind; ; ) {
    if (at >= bytes.length) return 'more';
    const type = u8(bytes, at);
    if (type === RECORD_HANDSHAKE) return at;
    if (type !== RECORD_CHANGE_CIPHER_SPEC && type !== RECORD_APPLICATION_DATA) return 'other';
    if (at + RECORD_HEADER > bytes.length) return 'more';
    at += RECORD_HEADER + u16(bytes, at + 3);
  }
}

/** The size of the first record, `more`, or what is wrong with its header. */
function firstRecord(bytes: Uint8Array): number | 'more' | TlsReason {
  if (bytes.length === 0) return 'more';
  if (u8(bytes, 0) !== RECORD_HANDSHAKE) return u8(bytes, 0) & 0x80 ? sslv2(bytes) : 'not-tls';
  if (bytes.length > 1 && u8(bytes, 1) !== 3) return 'not-tls';
  return recordSize(bytes, 0);
}

/** Two bytes of length with the highest bit set, the message's type (1), its version (2.0 or 3.x). */
function sslv2(bytes: Uint8Array): 'more' | TlsReason {
  if (bytes.length > 2 && u8(bytes, 2) !== CLIENT_HELLO) return 'not-tls';
  if (bytes.length < 5) return 'more';
  return u16(bytes, 3) === 0x0002 || u8(bytes, 3) === 3 ? 'sslv2-hello' : 'not-tls';
}

function laterRecord(bytes: Uint8Array, at: number): number | 'more' | TlsReason {
  if (bytes.length > at && u8(bytes, at) !== RECORD_HANDSHAKE) return 'other-record';
  if (bytes.length > at + 1 && u8(bytes, at + 1) !== 3) return 'bad-record';
  return recordSize(bytes, at);
}

function recordSize(bytes: Uint8Array, at: number): number | 'more' | TlsReason {
  if (bytes.length < at + RECORD_HEADER) return 'more';
  const size = u16(bytes, at + 3);
  return size === 0 ? 'empty-record' : size > RECORD_MAX ? 'record-too-long' : size;
}

/** The message that records carry; all of them are there. */
function joinRecords(bytes: Uint8Array, whole: number): Uint8Array {
  const message = new Uint8Array(whole);
  for (let at = 0, got = 0; got < whole; ) {
    const start = at + RECORD_HEADER;
    at = start + u16(bytes, at + 3);
    message.set(bytes.subarray(start, at), got);
    got += at - start;
  }
  return message;
}

export const serverReasons = {
  'not-tls': tlsReasons['not-tls'],
  'not-server-hello': 'a handshake that begins with another message than a ServerHello of SSL 3 or TLS',
} as const;
export type ServerReason = keyof typeof serverReasons;

export type ServerAnswer =
  | { readonly message: 'server-hello' | 'hello-retry-request' }
  | { readonly message: 'alert'; readonly code: number };

/**
 * What the server says first: enough to tell that it speaks TLS. An honest server puts its hello into one record; one that
 * cuts it before the random ends is refused.
 */
export function readServerTls(bytes: Uint8Array): Reading<ServerAnswer, ServerReason> {
  if (bytes.length === 0) return MORE;
  const type = u8(bytes, 0);
  if (type !== RECORD_HANDSHAKE && type !== RECORD_ALERT) return refused('not-tls');
  if (bytes.length > 1 && u8(bytes, 1) !== 3) return refused('not-tls');
  if (bytes.length < RECORD_HEADER) return MORE;
  const size = u16(bytes, 3);
  const message = RECORD_HEADER;
  if (type === RECORD_ALERT) {
    if (size !== 2) return refused('not-tls');
    // Warning or fatal (RFC 8446 §6).
    if (bytes.length > message && ((u8(bytes, message) - 1) & 0xfe) !== 0) return refused('not-tls');
    return bytes.length < message + 2 ? MORE : read({ message: 'alert', code: u8(bytes, message + 1) });
  }
  if (size < SERVER_HELLO_HEAD || size > RECORD_MAX) return refused('not-tls');
  if (bytes.length > message && u8(bytes, message) !== SERVER_HELLO) return refused('not-server-hello');
  const version = message + HANDSHAKE_HEADER;
  if (bytes.length > version) {
    const short = u8(bytes, message + 1) === 0 && u16(bytes, message + 2) < SERVER_HELLO_MIN;
    if (short || u8(bytes, version) !== 3) return refused('not-server-hello');
  }
  if (bytes.length < message + SERVER_HELLO_HEAD) return MORE;
  const retry = RETRY_RANDOM.every((octet, i) => octet === bytes[version + 2 + i]);
  return read({ message: retry ? 'hello-retry-request' : 'server-hello' });
}

/** Of a server whose first message is a ServerHello: the version that it chose, as on the wire. The message must be in one record. */
export function readChosenVersion(bytes: Uint8Array): Reading<number, ServerReason> {
  const message = RECORD_HEADER;
  const version = message + HANDSHAKE_HEADER;
  if (bytes.length < version) return MORE;
  const end = version + ((u8(bytes, message + 1) << 16) | u16(bytes, message + 2));
  if (end > RECORD_HEADER + u16(bytes, 3)) return refused('not-server-hello');
  if (bytes.length < end) return MORE;
  const sessionId = version + 2 + 32;
  // Behind it: a cipher suite, a compression method.
  const extensions = sessionId < end ? sessionId + 1 + u8(bytes, sessionId) + 3 : end + 1;
  if (extensions === end) return read(u16(bytes, version));
  if (extensions + 2 > end || extensions + 2 + u16(bytes, extensions) !== end) return refused('not-server-hello');
  for (let at = extensions + 2; at + 4 <= end; at += 4 + u16(bytes, at + 2)) {
    if (u16(bytes, at) === EXTENSION_SUPPORTED_VERSIONS && at + 6 <= end) return read(u16(bytes, at + 4));
  }
  return read(u16(bytes, version));
}
