/**
 * The connection phase of MySQL and MariaDB (MySQL Internals "Connection Phase", MariaDB "Connecting"): the server's initial
 * handshake or its refusal, and the client's answer: a request for TLS, which follows at once, or a login. The server speaks
 * first. Leaves out the X protocol (port 33060), logins of before 4.1 (2004), and what authenticates: it is skipped.
 */
import { type GreetingReading, shown, TEXT_MAX } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

const HEADER = 4;
const PROTOCOL_10 = 10;
const ERROR = 0xff;

const CONNECT_WITH_DATABASE = 0x8;
const PROTOCOL_41 = 0x200;
const SSL = 0x800;
const SECURE_CONNECTION = 0x8000;
const AUTH_LENGTH_ENCODED = 0x200000;

/** Ours. */
const HANDSHAKE_MAX = 1024;
const VERSION_MAX = 96;
/** A login carries attributes of the client, up to 64 KiB. */
const LOGIN_MAX = 0x1ffff;
const AUTH_MAX = 4096;

/** Capabilities, packet size, character set, and 23 bytes of which 19 are zero for both. */
const LOGIN_HEAD = 32;

export function readMysqlServer(bytes: Uint8Array): GreetingReading {
  const size = packetSize(bytes, 0, HANDSHAKE_MAX);
  if (size === undefined) return refused('other-protocol');
  const kind = bytes[HEADER];
  if (kind === undefined) return MORE;
  if (kind === 9) return refused('old-version');
  if (kind !== PROTOCOL_10 && kind !== ERROR) return refused('other-protocol');
  const end = HEADER + size;
  if (kind === PROTOCOL_10) {
    const version = textUpToNul(bytes, HEADER + 1, Math.min(bytes.length, end), VERSION_MAX);
    if (typeof version !== 'number' && version.state === 'refused') return version;
  }
  if (bytes.length < end) return MORE;
  if (kind === ERROR) {
    if (size < 3) return refused('bad-length');
    const software = shown(bytes, HEADER + 3, Math.min(end, HEADER + 3 + TEXT_MAX));
    return read({ protocol: 'mysql', message: 'refusal', end, software });
  }
  const nul = bytes.indexOf(0, HEADER + 1);
  // Thread, eight bytes to authenticate, a zero, capabilities, character set, status, more capabilities, a length, ten bytes.
  const rest = nul + 1;
  if (nul < 0 || rest + 31 > end) return refused('bad-length');
  if (bytes[rest + 12] !== 0) return refused('bad-field');
  const capabilities = bytes[rest + 13]! | (bytes[rest + 14]! << 8);
  if ((capabilities & PROTOCOL_41) === 0) return refused('old-version');
  for (let at = rest + 21; at < rest + 27; at++) if (bytes[at] !== 0) return refused('bad-field');
  const text = shown(bytes, HEADER + 1, nul);
  // MariaDB puts this before its own, for replicas that compare versions.
  const software = text.includes('MariaDB') ? text.replace(/^5\.5\.5-/, '') : text;
  const version = /^\d+(?:\.\d+)*/.exec(software)?.[0];
  if (version === undefined) return refused('bad-field');
  return read({ protocol: 'mysql', message: 'greeting', end, version, software, tls: (capabilities & SSL) !== 0 });
}

export function readMysqlClient(bytes: Uint8Array): GreetingReading {
  const size = packetSize(bytes, 1, LOGIN_MAX);
  if (size === undefined) return refused('other-protocol');
  if (bytes.length < HEADER + 2) return MORE;
  const capabilities = bytes[HEADER]! | (bytes[HEADER + 1]! << 8) | ((bytes[HEADER + 2] ?? 0) << 16);
  if ((capabilities & PROTOCOL_41) === 0) return refused('old-version');
  const end = HEADER + size;
  if (size < LOGIN_HEAD) return refused('bad-length');
  const head = HEADER + LOGIN_HEAD;
  for (let at = HEADER + 9; at < Math.min(bytes.length, HEADER + 28); at++) {
    if (bytes[at] !== 0) return refused('bad-field');
  }
  if (bytes.length < head) return MORE;
  if (size === LOGIN_HEAD) {
    return (capabilities & SSL) === 0
      ? refused('no-user')
      : read({ protocol: 'mysql', message: 'ssl-request', end, tls: true });
  }
  const limit = Math.min(bytes.length, end);
  const whole = bytes.length >= end;
  const userEnd = textUpToNul(bytes, head, limit, TEXT_MAX, whole);
  if (typeof userEnd !== 'number') return userEnd;
  const user = shown(bytes, head, userEnd);
  let at = userEnd + 1;
  if ((capabilities & CONNECT_WITH_DATABASE) === 0) return read({ protocol: 'mysql', message: 'login', end, user });

  // What authenticates lies between: skipped.
  if ((capabilities & (AUTH_LENGTH_ENCODED | SECURE_CONNECTION)) === 0) {
    const nul = bytes.subarray(0, limit).indexOf(0, at);
    if (nul < 0) return whole || limit - at > AUTH_MAX ? refused('bad-length') : MORE;
    at = nul + 1;
  } else {
    if (at + 3 > limit) return whole ? refused('bad-length') : MORE;
    let length = bytes[at]!;
    let own = 1;
    // Length-encoded: up to 250 as it is, 0xfc and two bytes; longer ones no client has.
    if ((capabilities & AUTH_LENGTH_ENCODED) !== 0 && length > 250) {
      if (length !== 0xfc) return refused('too-long');
      length = bytes[at + 1]! | (bytes[at + 2]! << 8);
      own = 3;
    }
    if (length > AUTH_MAX) return refused('too-long');
    at += own + length;
  }
  const databaseEnd = textUpToNul(bytes, at, limit, TEXT_MAX, whole);
  if (typeof databaseEnd !== 'number') return databaseEnd;
  return read({ protocol: 'mysql', message: 'login', end, user, database: shown(bytes, at, databaseEnd) });
}

/** Of a packet with this sequence number; undefined: these bytes begin none. Zero while its head is not whole. */
function packetSize(bytes: Uint8Array, sequence: number, max: number): number | undefined {
  if (bytes.length >= 4 && bytes[3] !== sequence) return undefined;
  if (bytes.length < 3) return max;
  const size = bytes[0]! | (bytes[1]! << 8) | (bytes[2]! << 16);
  return size === 0 || size > max ? undefined : size;
}

/** Where its NUL is. */
function textUpToNul(bytes: Uint8Array, from: number, limit: number, max: number, whole = false) {
  for (let at = from; at < limit; at++) {
    if (bytes[at] === 0) return at;
    if (at - from >= max) return refused('too-long');
    if (bytes[at]! < 0x20 || bytes[at] === 0x7f) return refused('control-byte');
  }
  return whole ? refused('bad-length') : MORE;
}
