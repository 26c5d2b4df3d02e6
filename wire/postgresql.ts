/**
 * How a connection to PostgreSQL begins (PostgreSQL documentation, "Message Flow" and "Message Formats"; protocol 3.0 to
 * 3.2): the client speaks first, with a startup message, a cancel request, or a request for TLS or GSSAPI encryption. The
 * server answers those with one byte, upon which TLS, or a startup message after all, follows at `end`: the reader is asked
 * again with the bytes from there on. TLS from the first byte (sslnegotiation=direct) is TLS, with ALPN "postgresql".
 */
import { u16, u32 } from './bytes.ts';
import { type GreetingReading, shown, TEXT_MAX } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

const VERSION_2 = 2;
const VERSION_3 = 3;
/** A major version that stands for requests. */
const REQUESTS = 1234;
const CANCEL = 5678;
const SSL = 5679;
const GSS = 5680;

/** The server's (MAX_STARTUP_PACKET_LENGTH). */
const STARTUP_MAX = 10_000;
/** With the longest key of version 3.2. */
const CANCEL_MAX = 12 + 256;
const PARAMETERS_MAX = 64;

export function readPostgresqlClient(bytes: Uint8Array): GreetingReading {
  // The length has four bytes; none is as long as to need the first two.
  if ((bytes[0] ?? 0) !== 0 || (bytes[1] ?? 0) !== 0) return refused('other-protocol');
  if (bytes.length < 4) return MORE;
  const end = u32(bytes, 0);
  if (end < 8 || end > STARTUP_MAX) return refused('other-protocol');
  if (bytes.length < 6) return MORE;
  const major = u16(bytes, 4);
  if (major === VERSION_2) return refused('old-version');
  if (major !== VERSION_3 && major !== REQUESTS) return refused('other-protocol');
  if (bytes.length < 8) return MORE;
  const minor = u16(bytes, 6);
  if (major === VERSION_3) return readStartup(bytes, end, `3.${minor}`);
  if (minor === SSL || minor === GSS) {
    if (end !== 8) return refused('bad-length');
    return minor === SSL
      ? read({ protocol: 'postgresql', message: 'ssl-request', end, tls: true })
      : read({ protocol: 'postgresql', message: 'gss-request', end });
  }
  if (minor !== CANCEL) return refused('other-protocol');
  if (end < 16 || end > CANCEL_MAX) return refused('bad-length');
  return read({ protocol: 'postgresql', message: 'cancel-request', end });
}

/** Names and values, each up to a NUL; one NUL more ends the list, and the message. */
function readStartup(bytes: Uint8Array, end: number, version: string): GreetingReading {
  const found = new Map<string, string>();
  let at = 8;
  for (let count = 0; ; count++) {
    if (at >= end) return refused('bad-length');
    if (at >= bytes.length) return MORE;
    if (bytes[at] === 0) break;
    if (count === PARAMETERS_MAX) return refused('too-many');
    const nameEnd = bytes.indexOf(0, at);
    if (nameEnd < 0 || nameEnd >= end) return bytes.length < end ? MORE : refused('bad-length');
    const valueEnd = bytes.indexOf(0, nameEnd + 1);
    if (valueEnd < 0 || valueEnd >= end) return bytes.length < end ? MORE : refused('bad-length');
    if (nameEnd - at > TEXT_MAX) return refused('too-long');
    const name = shown(bytes, at, nameEnd);
    if (name === 'user' || name === 'database') {
      if (found.has(name)) return refused('repeated-field');
      if (valueEnd - nameEnd - 1 > TEXT_MAX) return refused('too-long');
      found.set(name, shown(bytes, nameEnd + 1, valueEnd));
    }
    at = valueEnd + 1;
  }
  if (at !== end - 1) return refused('bad-length');
  const user = found.get('user');
  if (user === undefined || user === '') return refused('no-user');
  // Without one, the server takes the user's name.
  const database = found.get('database') || user;
  return read({ protocol: 'postgresql', message: 'startup', end, version, user, database });
}

/**
 * The server's first bytes, for one who knows that the client spoke before: one byte to a request, else that it wants a
 * password, has an error, or speaks an older version.
 */
export function readPostgresqlServer(bytes: Uint8Array): GreetingReading {
  const kind = bytes[0];
  if (kind === undefined) return MORE;
  switch (String.fromCharCode(kind)) {
    case 'S':
      return read({ protocol: 'postgresql', message: 'answer', end: 1, tls: true });
    case 'N':
    case 'G':
      return read({ protocol: 'postgresql', message: 'answer', end: 1 });
    case 'R':
    case 'v':
    case 'E': {
      if (bytes[1] !== undefined && bytes[1] !== 0) return refused('other-protocol');
      if (bytes.length < 5) return MORE;
      const end = 1 + u32(bytes, 1);
      if (end < 6 || end > 1 + 0xffff) return refused('bad-length');
      const message = kind === 0x45 ? 'refusal' : 'greeting';
      return read({ protocol: 'postgresql', message, end });
    }
    default:
      return refused('other-protocol');
  }
}
