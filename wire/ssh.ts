/**
 * The identification strings of SSH (RFC 4253 §4.2). Both sides send theirs at once, so either may be the first; before its
 * own the server may send other lines. Leaves out the key exchange that follows: no other protocol begins with such a string, an
 * honest end hangs up on what is no SSH behind it, and two that have agreed on a string can agree on a packet, or on anything
 * within SSH.
 */
import { beginsWith, type GreetingReading, readLine, shown } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

/** The specification's, with CR and LF. */
const IDENTIFICATION_MAX = 255;
/** Ours, of lines before it: OpenSSH takes 1,024 of 8 KiB. */
const LINES_MAX = 64;
const LINES_BYTES_MAX = 8192;

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
