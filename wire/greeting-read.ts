/**
 * What the readers of first bytes have in common (ssh.ts, mail.ts, mysql.ts, postgresql.ts, redis.ts, mqtt.ts, rdp.ts):
 * what they find, why they refuse, and how they read lines and texts. A text that is shown is printable ASCII, whatever the
 * bytes are, and two that differ are shown differently. Passwords and tokens are never read.
 */
import { MORE, type Reading, refused } from './reading.ts';

export type GreetingProtocol = 'ssh' | 'smtp' | 'imap' | 'pop3' | 'mysql' | 'postgresql' | 'redis' | 'mqtt' | 'rdp';

export const greetingReasons = {
  'other-protocol': 'bytes with which this protocol does not begin',
  'old-version': 'a version of the protocol that is too old to be spoken',
  'too-long': 'a field, a line or a message that is longer than any honest one',
  'too-many': 'more lines or fields than any honest greeting has',
  'control-byte': 'a control byte in what must be text',
  'bad-line-end': 'a line that does not end as the protocol wants it',
  'bad-length': 'a length that does not fit what it counts',
  'bad-field': 'a field with a value that the protocol forbids',
  'repeated-field': 'a field twice: programs differ in which one they take',
  'unknown-command': 'a command with which no client begins',
  'no-user': 'a login without a user',
  'no-negotiation': 'a connection request of another protocol over TPKT: it asks for nothing that RDP does',
} as const;
export type GreetingReason = keyof typeof greetingReasons;

export interface Greeting {
  protocol: GreetingProtocol;
  /** What was said. `refusal`: a server that will not serve, in its own words. */
  message:
    | 'identification'
    | 'greeting'
    | 'refusal'
    | 'command'
    | 'login'
    | 'startup'
    | 'ssl-request'
    | 'gss-request'
    | 'cancel-request'
    | 'answer'
    | 'connect';
  /** Bytes that it takes, the whole message, of which not all may be there yet. What follows is the next thing. */
  end: number;
  /**
   * Of a client: TLS is what it wants next: at `end`, or once the server has said yes. Of a server: it offers TLS, or says
   * yes to it.
   */
  tls?: boolean;
  /** Of the protocol; of MySQL's server, of the program. */
  version?: string;
  /** What the program calls itself. */
  software?: string;
  /** The name that a mail server or its client gives itself. */
  host?: string;
  command?: string;
  user?: string;
  database?: string;
  clientId?: string;
}

export type GreetingReading = Reading<Greeting, GreetingReason>;
export type GreetingReader = (bytes: Uint8Array) => GreetingReading;

/** Bytes of a text that is kept. Longer ones are refused, not cut: policy may ask for what was cut off. */
export const TEXT_MAX = 256;

const BACKSLASH = 0x5c;
const CR = 0x0d;
const LF = 0x0a;
const TAB = 0x09;

/** Bytes as printable ASCII: others, and the backslash, are written `\xNN`. */
export function shown(bytes: Uint8Array, from: number, to: number): string {
  let text = '';
  for (let at = from; at < to; at++) {
    const byte = bytes[at]!;
    text +=
      byte >= 0x20 && byte < 0x7f && byte !== BACKSLASH
        ? String.fromCharCode(byte)
        : `\\x${byte.toString(16).padStart(2, '0')}`;
  }
  return text;
}

/** Whether the bytes begin with a text, as far as they have come: an early no spares the wait. */
export function beginsWith(bytes: Uint8Array, text: string, from = 0): 'yes' | 'more' | 'no' {
  for (let index = 0; index < text.length; index++) {
    const byte = bytes[from + index];
    if (byte === undefined) return 'more';
    if (byte !== text.charCodeAt(index)) return 'no';
  }
  return 'yes';
}

/** A line of text: `end` is where its text ends, `next` where the next line begins. */
export interface Line {
  end: number;
  next: number;
}

/**
 * The line that begins at `from`, of at most `max` bytes with its end. `bare`: a line feed alone ends it too. Bytes above
 * ASCII are let through, control bytes but the tab are not: this is what keeps TLS and the like out of a line.
 */
export function readLine(
  bytes: Uint8Array,
  from: number,
  max: number,
  bare = false,
): Line | { state: 'more' } | { state: 'refused'; reason: GreetingReason } {
  for (let at = from; at < bytes.length; at++) {
    if (at - from >= max) return refused('too-long');
    const byte = bytes[at]!;
    if (byte === LF) {
      const carriage = at > from && bytes[at - 1] === CR;
      return carriage || bare ? { end: carriage ? at - 1 : at, next: at + 1 } : refused('bad-line-end');
    }
    if (at > from && bytes[at - 1] === CR) return refused('bad-line-end');
    if ((byte < 0x20 && byte !== TAB && byte !== CR) || byte === 0x7f) return refused('control-byte');
  }
  return bytes.length - from >= max ? refused('too-long') : MORE;
}

/** Whether any word of a text could begin with these bytes: to refuse before its line is whole. */
export function couldBegin(words: readonly string[], bytes: Uint8Array, from = 0): boolean {
  return words.some((word) => {
    for (let index = 0; index < word.length; index++) {
      const byte = bytes[from + index];
      if (byte === undefined) return true;
      // Letters of either case.
      const upper = byte >= 0x61 && byte <= 0x7a ? byte - 0x20 : byte;
      if (upper !== word.charCodeAt(index)) return false;
    }
    return true;
  });
}
