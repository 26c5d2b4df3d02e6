/**
 * RDP's connection request (MS-RDPBCGR §2.2.1.1): TPKT (RFC 1006 §6), X.224 class 0 (RFC 905 §13.3), then a routing token or
 * cookie, and a negotiation request. The client speaks first; TLS follows once the server has confirmed it. A request that
 * asks for nothing is refused: other protocols begin so (S7 on port 102), and clients of before 2003.
 */
import { u16 } from './bytes.ts';
import { type Greeting, type GreetingReading, shown, TEXT_MAX } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

const TPKT_VERSION = 3;
const HEADER = 11;
const CONNECTION_REQUEST = 0xe0;
const NEGOTIATION_REQUEST = 1;
const CORRELATION_INFO = 6;
const CORRELATION_SIZE = 36;
const NEGOTIATION_SIZE = 8;
const FLAG_CORRELATION = 0x08;
/** Ours: X.224's length has one byte, so this is the longest there is. */
const REQUEST_MAX = 5 + 254;

/** Of the protocols asked for, the lowest bit first (§2.2.1.1.1). */
const PROTOCOLS = 0x1f;

export function readRdpClient(bytes: Uint8Array): GreetingReading {
  // Version and a reserved zero; the length's first byte follows.
  if (bytes.length > 0 && bytes[0] !== TPKT_VERSION) return refused('other-protocol');
  if (bytes.length > 1 && bytes[1] !== 0) return refused('other-protocol');
  if (bytes.length < 4) return MORE;
  const end = u16(bytes, 2);
  if (end > REQUEST_MAX) return refused('too-long');
  if (end < HEADER) return refused('bad-length');
  // X.224 counts what follows its own length.
  if (bytes.length > 4 && bytes[4] !== end - 5) return refused('bad-length');
  if (bytes.length > 5 && bytes[5] !== CONNECTION_REQUEST) return refused('other-protocol');
  if (bytes.length < end) return MORE;
  // Destination reference and class are zero.
  if (u16(bytes, 6) !== 0 || bytes[10] !== 0) return refused('bad-field');

  const value: Greeting = { protocol: 'rdp', message: 'connect', end };
  let at = HEADER;
  if (bytes[at] === 'C'.charCodeAt(0)) {
    const cookieEnd = bytes.subarray(0, end).indexOf(0x0d, at);
    if (cookieEnd < 0 || cookieEnd + 1 >= end || bytes[cookieEnd + 1] !== 0x0a) return refused('bad-line-end');
    const [, name, user = ''] = /^Cookie: (mstshash|msts)=(.*)$/.exec(shown(bytes, at, cookieEnd)) ?? [];
    if (name === undefined) return refused('bad-field');
    if (user.length > TEXT_MAX) return refused('too-long');
    // The other is a token for a load balancer.
    if (name === 'mstshash') value.user = user;
    at = cookieEnd + 2;
  }
  if (at === end) return at === HEADER ? refused('no-negotiation') : read(value);
  if (bytes[at] !== NEGOTIATION_REQUEST) return refused('no-negotiation');
  if (at + NEGOTIATION_SIZE > end || u16le(bytes, at + 2) !== NEGOTIATION_SIZE) return refused('bad-length');
  const flags = bytes[at + 1]!;
  const asked = u16le(bytes, at + 4) | (u16le(bytes, at + 6) << 16);
  if ((asked & ~PROTOCOLS) !== 0) return refused('bad-field');
  at += NEGOTIATION_SIZE;
  if ((flags & FLAG_CORRELATION) !== 0) {
    if (at + CORRELATION_SIZE > end || u16le(bytes, at + 2) !== CORRELATION_SIZE) return refused('bad-length');
    if (bytes[at] !== CORRELATION_INFO) return refused('bad-field');
    at += CORRELATION_SIZE;
  }
  if (at !== end) return refused('bad-length');
  value.tls = asked !== 0;
  return read(value);
}

function u16le(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}
