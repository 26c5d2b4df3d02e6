/**
 * The first command of a Redis client (Redis serialization protocol, RESP2 and RESP3): an array of bulk strings, whose first
 * is the command; or the command as a line, by hand or from a probe. A line is taken only with a command with which such a
 * connection begins: any text is one to Redis, a request of HTTP too. User names of AUTH and HELLO are read, passwords not.
 */
import { type Greeting, type GreetingReading, readLine, shown, TEXT_MAX } from './greeting-read.ts';
import { MORE, type Reading, read, refused } from './reading.ts';

/** Redis' own bound. */
const ARGUMENTS_MAX = 1024 * 1024;
/** Ours: a line of Redis' may have 64 KiB; no command has a name as long. */
const INLINE_MAX = 1024;
const COMMAND_MAX = 32;
const HEAD_MAX = 16;

const inlineCommands = new Set([
  'PING',
  'AUTH',
  'HELLO',
  'SELECT',
  'INFO',
  'QUIT',
  'COMMAND',
  'CLIENT',
  'ECHO',
  'ROLE',
]);
const INLINE_COMMAND_MAX = 8;

export function readRedisClient(bytes: Uint8Array): GreetingReading {
  if (bytes.length === 0) return MORE;
  return bytes[0] === 0x2a ? readArray(bytes) : readInline(bytes);
}

type Part<Value> = Reading<Value, 'other-protocol' | 'bad-length' | 'too-long' | 'bad-line-end'>;

/** `*3` or `$4` and a line's end: where it ends, and the number. */
function readCount(bytes: Uint8Array, from: number, mark: number): Part<{ count: number; next: number }> {
  if (from < bytes.length && bytes[from] !== mark) return refused('other-protocol');
  let count = 0;
  for (let at = from + 1; at < bytes.length; at++) {
    const byte = bytes[at]!;
    if (byte === 0x0d) {
      if (at === from + 1) return refused('bad-length');
      if (at + 1 === bytes.length) return MORE;
      return bytes[at + 1] === 0x0a ? read({ count, next: at + 2 }) : refused('bad-line-end');
    }
    if (byte < 0x30 || byte > 0x39) return refused('bad-length');
    if (at - from > HEAD_MAX) return refused('too-long');
    count = count * 10 + byte - 0x30;
  }
  return MORE;
}

function readBulk(bytes: Uint8Array, from: number, max: number): Part<{ text: string; next: number }> {
  const head = readCount(bytes, from, 0x24);
  if (head.state !== 'read') return head;
  const { count, next } = head.value;
  if (count > max) return refused('too-long');
  const end = next + count;
  if (bytes.length > end && bytes[end] !== 0x0d) return refused('bad-length');
  if (bytes.length < end + 2) return MORE;
  return bytes[end + 1] === 0x0a ? read({ text: shown(bytes, next, end), next: end + 2 }) : refused('bad-length');
}

function readArray(bytes: Uint8Array): GreetingReading {
  const head = readCount(bytes, 0, 0x2a);
  if (head.state !== 'read') return head;
  const { count } = head.value;
  // Redis ignores an empty one and waits; no client begins so.
  if (count === 0) return refused('bad-length');
  if (count > ARGUMENTS_MAX) return refused('too-many');
  const first = readBulk(bytes, head.value.next, COMMAND_MAX);
  if (first.state !== 'read') return first;
  const command = first.value.text.toUpperCase();
  if (!/^[A-Z][A-Z0-9._-]*$/.test(command)) return refused('bad-field');
  const value: Greeting = { protocol: 'redis', message: 'command', end: first.value.next, command };
  // HELLO version AUTH user password, AUTH user password, SELECT number.
  const wanted = command === 'HELLO' ? Math.min(count - 1, 3) : command === 'AUTH' && count === 3 ? 1 : 0;
  const found: string[] = [];
  while (found.length < wanted) {
    // HELLO may go on with SETNAME instead.
    if (command === 'HELLO' && found.length === 2 && found[1]?.toUpperCase() !== 'AUTH') break;
    const part = readBulk(bytes, value.end, TEXT_MAX);
    if (part.state !== 'read') return part;
    found.push(part.value.text);
    value.end = part.value.next;
  }
  return finish(value, found);
}

/** `end` is past what was read: further arguments follow, for anyone to skip who wants to. */
function finish(value: Greeting, found: readonly string[]): GreetingReading {
  if (value.command === 'AUTH' && found[0] !== undefined) value.user = found[0];
  if (value.command === 'HELLO' && found[0] !== undefined) {
    if (!/^\d{1,9}$/.test(found[0])) return refused('bad-field');
    value.version = found[0];
    if (found[1]?.toUpperCase() === 'AUTH' && found[2] !== undefined) value.user = found[2];
  }
  return read(value);
}

function readInline(bytes: Uint8Array): GreetingReading {
  const head = /^[^ \\]*/.exec(shown(bytes, 0, Math.min(bytes.length, INLINE_COMMAND_MAX)))?.[0].toUpperCase() ?? '';
  if (head === '' || ![...inlineCommands].some((name) => name.startsWith(head))) return refused('other-protocol');
  const line = readLine(bytes, 0, INLINE_MAX, true);
  if ('state' in line) return line;
  if (!inlineCommands.has(head)) return refused('unknown-command');
  const [, ...rest] = shown(bytes, 0, line.end).trimEnd().split(/ +/);
  const value: Greeting = { protocol: 'redis', message: 'command', end: line.next, command: head };
  const found = head === 'HELLO' ? rest.slice(0, 3) : head === 'AUTH' && rest.length === 2 ? rest.slice(0, 1) : [];
  return found.some((text) => text.length > TEXT_MAX) ? refused('too-long') : finish(value, found);
}
