/**
 * MQTT's CONNECT (3.1, 3.1.1 §3.1, 5.0 §3.1): the client speaks first, and with nothing else. Read up to the user's name;
 * the will and its message are skipped, the password is not looked at. Leaves out MQTT-SN and MQTT over WebSocket.
 */
import { u8, u16 } from './bytes.ts';
import { type Greeting, type GreetingReading, shown, TEXT_MAX } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

const CONNECT = 0x10;
/** Mosquitto's bridges set it. */
const BRIDGE = 0x80;

const FLAG_RESERVED = 0x01;
const FLAG_WILL = 0x04;
const FLAG_WILL_QOS = 0x18;
const FLAG_WILL_RETAIN = 0x20;
const FLAG_PASSWORD = 0x40;
const FLAG_USER = 0x80;

/** Ours: a will may be long. */
const CONNECT_MAX = 0xffff;

/** By protocol name and level. */
const versions: Record<string, string> = { MQIsdp3: '3.1', MQTT4: '3.1.1', MQTT5: '5.0' };

export function readMqttClient(bytes: Uint8Array): GreetingReading {
  if (bytes.length > 0 && bytes[0] !== CONNECT) return refused('other-protocol');
  const remaining = readVariable(bytes, 1);
  if (typeof remaining !== 'object' || 'state' in remaining) return remaining;
  const { value: length, next } = remaining;
  if (length > CONNECT_MAX) return refused('too-long');
  const end = next + length;
  if (length < 12) return refused('bad-length');
  // The name's length, and the name.
  for (let at = 0; next + at < bytes.length && at < 2; at++) {
    if (at === 0 ? bytes[next] !== 0 : bytes[next + 1] !== 4 && bytes[next + 1] !== 6) return refused('other-protocol');
  }
  if (bytes.length < next + 2) return MORE;
  const nameEnd = next + 2 + bytes[next + 1]!;
  const wanted = bytes[next + 1] === 4 ? 'MQTT' : 'MQIsdp';
  for (let at = next + 2; at < Math.min(bytes.length, nameEnd); at++) {
    if (bytes[at] !== wanted.charCodeAt(at - next - 2)) return refused('other-protocol');
  }
  // Level, flags, keep alive.
  if (bytes.length < nameEnd + 4) return MORE;
  const version = versions[`${wanted}${u8(bytes, nameEnd) & ~BRIDGE}`];
  if (version === undefined) return refused('bad-field');
  const flags = u8(bytes, nameEnd + 1);
  if ((flags & FLAG_RESERVED) !== 0) return refused('bad-field');
  if ((flags & FLAG_WILL) === 0 && (flags & (FLAG_WILL_QOS | FLAG_WILL_RETAIN)) !== 0) return refused('bad-field');
  if ((flags & FLAG_WILL_QOS) === FLAG_WILL_QOS) return refused('bad-field');
  // Until 5.0 a password needs a user.
  if (version !== '5.0' && (flags & (FLAG_PASSWORD | FLAG_USER)) === FLAG_PASSWORD) return refused('bad-field');

  const cursor = new Cursor(bytes, nameEnd + 4, end);
  if (version === '5.0') cursor.skipProperties();
  const clientId = cursor.field(TEXT_MAX);
  if ((flags & FLAG_WILL) !== 0) {
    if (version === '5.0') cursor.skipProperties();
    cursor.field(CONNECT_MAX);
    cursor.field(CONNECT_MAX);
  }
  const user = (flags & FLAG_USER) !== 0 ? cursor.field(TEXT_MAX) : undefined;
  if (cursor.stopped !== undefined) return cursor.stopped;
  const value: Greeting = { protocol: 'mqtt', message: 'connect', end, version };
  if (clientId !== undefined) value.clientId = shown(bytes, clientId.from, clientId.to);
  if (user !== undefined) value.user = shown(bytes, user.from, user.to);
  return read(value);
}

type Stopped = ReturnType<typeof refused<'bad-length' | 'too-long'>> | typeof MORE;

/** One to four bytes of seven bits, the lowest first (5.0 §1.5.5). */
function readVariable(bytes: Uint8Array, from: number): { value: number; next: number } | Stopped {
  let value = 0;
  for (let index = 0; index < 4; index++) {
    const byte = bytes[from + index];
    if (byte === undefined) return MORE;
    value += (byte & 0x7f) * 2 ** (7 * index);
    if ((byte & 0x80) === 0) return { value, next: from + index + 1 };
  }
  return refused('bad-length');
}

/** Goes over fields with a length of two bytes; stops where the bytes, or the message, end. */
class Cursor {
  stopped: Stopped | undefined;
  private readonly bytes: Uint8Array;
  private at: number;
  private readonly end: number;

  constructor(bytes: Uint8Array, at: number, end: number) {
    this.bytes = bytes;
    this.at = at;
    this.end = end;
  }

  field(max: number): { from: number; to: number } | undefined {
    if (!this.there(2)) return undefined;
    const length = u16(this.bytes, this.at);
    if (length > max) this.stopped = refused('too-long');
    else if (this.there(2 + length)) {
      const from = this.at + 2;
      this.at = from + length;
      return { from, to: this.at };
    }
    return undefined;
  }

  skipProperties(): void {
    if (this.stopped !== undefined) return;
    const length = readVariable(this.bytes.subarray(0, this.end), this.at);
    if ('state' in length) this.stopped = this.bytes.length >= this.end ? refused('bad-length') : length;
    else if (length.next + length.value > this.end) this.stopped = refused('bad-length');
    else this.at = length.next + length.value;
  }

  private there(length: number): boolean {
    if (this.stopped === undefined) {
      if (this.at + length > this.end) this.stopped = refused('bad-length');
      else if (this.at + length > this.bytes.length) this.stopped = MORE;
    }
    return this.stopped === undefined;
  }
}
