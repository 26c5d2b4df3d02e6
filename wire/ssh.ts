/**
 * The identification strings of SSH (RFC 4253 §4.2). Both sides send theirs at once, so either may be the first; before its
 * own the server may send other lines. And the first packet that follows (§6, §7.1): programs send it only when they have the
 * other's string, so it cannot be waited for before that is let on; with it, it is certain that SSH is spoken. Leaves out
 * what is negotiated.
 */
import { u32 } from './bytes.ts';
import { beginsWith, type GreetingReading, readLine, shown } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

/** The specification's, with CR and LF. */
const IDENTIFICATION_MAX = 255;
/** Ours, of lines before it: OpenSSH takes 1,024 of 8 KiB. */
const LINES_MAX = 64;
const LINES_BYTES_MAX = 8192;

/** A packet's length without itself: the specification's bounds, of what everyone must take and of what there can be. */
const PACKET_MAX = 35_000;
const PACKET_MIN = 12;
const PADDING_MIN = 4;
const DISCONNECT = 1;
const KEXINIT = 20;
const COOKIE = 16;
/** Ours: of the names of all algorithms for the key exchange. */
const NAMES_MAX = 4096;

const DASH = 0x2d;
const SPACE = 0x20;

export function readSshClient(bytes: Uint8Array): GreetingReading {
  const begins = beginsWith(bytes, 'SSH-');
  if (begins === 'no') return refused('other-protocol');
  return begins === 'more' ? MORE : readIdentification(bytes, 0);
}

export function readSshServer(bytes: Uint8Array): GreetingReading {
  let from = 0;
  for (let lines = 0; ; lines++) {
    const begins = beginsWith(bytes, 'SSH-', from);
    if (begins === 'yes') return readIdentification(bytes, from);
    if (begins === 'more') return MORE;
    if (lines === LINES_MAX) return refused('too-many');
    // No line that an SSH server has reason to send.
    if (beginsWith(bytes, 'HTTP/', from) === 'yes') return refused('other-protocol');
    const line = readLine(bytes, from, LINES_BYTES_MAX - from, true);
    if ('state' in line) return line;
    from = line.next;
  }
}

function readIdentification(bytes: Uint8Array, from: number): GreetingReading {
  // A line feed alone is allowed for old programs' sake.
  const line = readLine(bytes, from, IDENTIFICATION_MAX, true);
  if ('state' in line) return line;
  const dash = bytes.indexOf(DASH, from + 4);
  if (dash < 0 || dash >= line.end) return refused('bad-field');
  const version = shown(bytes, from + 4, dash);
  // 1.99 is a server that speaks 2.0 and older ones (§5.1).
  if (version !== '2.0' && version !== '1.99') return refused(/^1\.\d+$/.test(version) ? 'old-version' : 'bad-field');
  let end = dash + 1;
  while (end < line.end && bytes[end]! !== SPACE) {
    // Printable ASCII; a minus is forbidden and common.
    if (bytes[end]! < 0x21 || bytes[end]! > 0x7e) return refused('bad-field');
    end++;
  }
  if (end === dash + 1) return refused('bad-field');
  // With the comment, in which programs say on what system they run.
  const software = shown(bytes, dash + 1, line.end);
  return read({ protocol: 'ssh', message: 'identification', end: line.next, version, software });
}

/** What must follow either side's identification: asked with the bytes from its `end` on. */
export function readSshKeyExchange(bytes: Uint8Array): GreetingReading {
  // The length's first two bytes are zero, for it is never as long; nor is a text's first.
  if ((bytes[0] ?? 0) !== 0 || (bytes[1] ?? 0) !== 0) return refused('other-protocol');
  if (bytes.length < 4) return MORE;
  const length = u32(bytes, 0);
  if (length < PACKET_MIN || length > PACKET_MAX) return refused('bad-length');
  if (bytes.length < 6) return MORE;
  const padding = bytes[4]!;
  if (padding < PADDING_MIN || padding + 2 > length) return refused('bad-length');
  const end = 4 + length;
  // A server that has enough of clients says so at once.
  if (bytes[5] === DISCONNECT) return read({ protocol: 'ssh', message: 'refusal', end });
  if (bytes[5] !== KEXINIT) return refused('other-protocol');
  const names = 6 + COOKIE + 4;
  if (names + padding > end) return refused('bad-length');
  if (bytes.length < names) return MORE;
  const size = u32(bytes, names - 4);
  if (size === 0 || names + size + padding > end) return refused('bad-length');
  if (size > NAMES_MAX) return refused('too-long');
  for (let at = names; at < Math.min(bytes.length, names + size); at++) {
    if (bytes[at]! < 0x21 || bytes[at]! > 0x7e) return refused('bad-field');
  }
  return bytes.length < names + size ? MORE : read({ protocol: 'ssh', message: 'key-exchange', end });
}
