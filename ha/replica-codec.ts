/**
 * What gateways say to each other about flows: frames on one stream (replica-link.ts), big-endian, each a length and a type.
 * A batch belongs to a shard, whose master sends it under an epoch (who was master later has a higher one), in one of its
 * passes through the whole table (`sync`), numbered from 1 in each. Records name flows as replica-record.ts packs them.
 *
 *   frame   length u32, of what follows · type u8 · …
 *   hello   version u8 · name
 *   batch   shard · epoch u48 · sync u32 · seq u32 · bits u8 · count u16 · records: op u8 · key · [body | mark u32]
 *   ack     shard · epoch u48 · sync u32 · seq u32: all up to it are in the kernel
 *   resync  shard · epoch u48 · sync u32: something of that pass is missing; 0, 0: of all
 *   outdone shard · epoch u48: the shard has, or had, a master of that epoch
 *   ping
 *
 * Readers are bounded, copy nothing but the records, and return a reason.
 */
import { isPeerName } from '../api/plan-stream.ts';
import { putU16, putU32, u8, u16, u32 } from '../wire/bytes.ts';
import { BODY_MAX, bodyEnd, KEY_MAX, keyEnd, markOf } from './replica-record.ts';

export const REPLICA_VERSION = 1;
export const MAX_RECORDS = 512;
const NAME_MAX = 255;
const LENGTH = 4;
const HEAD_MAX = 1 + 1 + NAME_MAX + 6 + 4 + 4 + 1 + 2;
/** Longest frame, without its length. */
export const MAX_FRAME = HEAD_MAX + MAX_RECORDS * (1 + KEY_MAX + BODY_MAX);

const HELLO = 1;
const BATCH = 2;
const ACK = 3;
const RESYNC = 4;
const PING = 5;
const OUTDONE = 6;
const PUT = 1;
const END = 2;
const MARK = 3;
const BIT_BEGINS = 1;
const BIT_ENDS = 2;

/** Where in what a shard's master has sent. */
export interface Place {
  shard: string;
  epoch: number;
  sync: number;
  seq: number;
}

export type ReplicaRecord =
  | { op: 'put'; key: string; body: string }
  | { op: 'end'; key: string }
  /** Only the mark is another. */
  | { op: 'mark'; key: string; mark: number };

export interface Batch extends Place {
  /** The first of a pass through the table: what is not said again before its end is no more. */
  begins: boolean;
  /** The table has been passed through. */
  ends: boolean;
  records: ReplicaRecord[];
}

export type Frame =
  | { type: 'hello'; version: number; name: string }
  | { type: 'batch'; batch: Batch }
  | { type: 'ack'; place: Place }
  | { type: 'resync'; place: Omit<Place, 'seq'> }
  | { type: 'outdone'; shard: string; epoch: number }
  | { type: 'ping' };

export type BadFrame = 'too-long' | 'truncated' | 'bad-type' | 'bad-version' | 'bad-name' | 'bad-record' | 'trailing';
export type DecodedFrame = { ok: true; value: Frame } | { ok: false; reason: BadFrame };

const bad = (reason: BadFrame): { ok: false; reason: BadFrame } => ({ ok: false, reason });

const types = { hello: HELLO, batch: BATCH, ack: ACK, resync: RESYNC, ping: PING, outdone: OUTDONE };
const space = Buffer.alloc(LENGTH + MAX_FRAME);

/** A frame of ours, with its length before it. */
export function encodeFrame(frame: Frame): Uint8Array {
  space[LENGTH] = types[frame.type];
  let at = LENGTH + 1;
  switch (frame.type) {
    case 'hello':
      space[at++] = frame.version;
      at = putName(frame.name, at);
      break;
    case 'batch':
      at = putBatch(frame.batch, at);
      break;
    case 'ack':
      at = putPlace(frame.place, at);
      putU32(space, at, frame.place.seq);
      at += 4;
      break;
    case 'resync':
      at = putPlace(frame.place, at);
      break;
    case 'outdone':
      at = putName(frame.shard, at);
      at = space.writeUIntBE(frame.epoch, at, 6);
      break;
    case 'ping':
      break;
  }
  putU32(space, 0, at - LENGTH);
  return new Uint8Array(space.subarray(0, at));
}

function putBatch(batch: Batch, from: number): number {
  const { seq, begins, ends, records } = batch;
  if (records.length > MAX_RECORDS) throw new RangeError(`${records.length} records in a batch`);
  let at = putPlace(batch, from);
  putU32(space, at, seq);
  space[at + 4] = (begins ? BIT_BEGINS : 0) | (ends ? BIT_ENDS : 0);
  putU16(space, at + 5, records.length);
  at += 7;
  for (const record of records) {
    space[at++] = record.op === 'put' ? PUT : record.op === 'end' ? END : MARK;
    at += space.write(record.key, at, 'latin1');
    if (record.op === 'put') at += space.write(record.body, at, 'latin1');
    else if (record.op === 'mark') {
      putU32(space, at, record.mark);
      at += 4;
    }
  }
  return at;
}

function putName(name: string, at: number): number {
  if (name.length > NAME_MAX) throw new RangeError(`a name of ${name.length} characters`);
  space[at] = name.length;
  return at + 1 + space.write(name, at + 1, 'latin1');
}

function putPlace({ shard, epoch, sync }: Omit<Place, 'seq'>, from: number): number {
  const at = space.writeUIntBE(epoch, putName(shard, from), 6);
  putU32(space, at, sync);
  return at + 4;
}

/** The frame without its length. */
export function decodeFrame(bytes: Uint8Array): DecodedFrame {
  if (bytes.length > MAX_FRAME) return bad('too-long');
  if (bytes.length === 0) return bad('truncated');
  const type = u8(bytes, 0);
  if (type === PING) return bytes.length === 1 ? { ok: true, value: { type: 'ping' } } : bad('trailing');
  if (type === HELLO) return decodeHello(bytes);
  if (type !== BATCH && type !== ACK && type !== RESYNC && type !== OUTDONE) return bad('bad-type');

  const nameEnd = 2 + u8(bytes, 1);
  const rest = { [BATCH]: 17, [ACK]: 14, [RESYNC]: 10, [OUTDONE]: 6 }[type];
  if (bytes.length < 2 || nameEnd + rest > bytes.length) return bad('truncated');
  const shard = textOf(bytes, 2, nameEnd);
  if (!isShardName(shard)) return bad('bad-name');
  const epoch = u16(bytes, nameEnd) * 0x1_0000_0000 + u32(bytes, nameEnd + 2);
  if (type !== BATCH && nameEnd + rest < bytes.length) return bad('trailing');
  if (type === OUTDONE) return { ok: true, value: { type: 'outdone', shard, epoch } };
  const place = { shard, epoch, sync: u32(bytes, nameEnd + 6) };
  if (type === RESYNC) return { ok: true, value: { type: 'resync', place } };
  const seq = u32(bytes, nameEnd + 10);
  if (type === ACK) return { ok: true, value: { type: 'ack', place: { ...place, seq } } };
  const bits = u8(bytes, nameEnd + 14);
  const count = u16(bytes, nameEnd + 15);
  if ((bits & ~(BIT_BEGINS | BIT_ENDS)) !== 0 || count > MAX_RECORDS) return bad('bad-record');
  const records = decodeRecords(bytes, nameEnd + 17, count);
  if (typeof records === 'string') return bad(records);
  const batch = { ...place, seq, begins: (bits & BIT_BEGINS) !== 0, ends: (bits & BIT_ENDS) !== 0, records };
  return { ok: true, value: { type: 'batch', batch } };
}

function decodeHello(bytes: Uint8Array): DecodedFrame {
  if (bytes.length < 3) return bad('truncated');
  const version = u8(bytes, 1);
  if (version !== REPLICA_VERSION) return bad('bad-version');
  const end = 3 + u8(bytes, 2);
  if (end > bytes.length) return bad('truncated');
  if (end < bytes.length) return bad('trailing');
  const name = textOf(bytes, 3, end);
  return isPeerName(name) ? { ok: true, value: { type: 'hello', version, name } } : bad('bad-name');
}

function decodeRecords(bytes: Uint8Array, from: number, count: number): ReplicaRecord[] | BadFrame {
  const records: ReplicaRecord[] = [];
  let at = from;
  for (let n = 0; n < count; n++) {
    const op = u8(bytes, at);
    const end = keyEnd(bytes, at + 1);
    if (end === undefined) return 'bad-record';
    const key = textOf(bytes, at + 1, end);
    if (op === PUT) {
      const whole = bodyEnd(bytes, end, u8(bytes, at + 1), u8(bytes, at + 2));
      if (whole === undefined) return 'bad-record';
      records.push({ op: 'put', key, body: textOf(bytes, end, whole) });
      at = whole;
    } else if (op === END) {
      records.push({ op: 'end', key });
      at = end;
    } else if (op === MARK && end + 4 <= bytes.length) {
      records.push({ op: 'mark', key, mark: u32(bytes, end) });
      at = end + 4;
    } else return 'bad-record';
  }
  return at === bytes.length ? records : 'trailing';
}

function textOf(bytes: Uint8Array, from: number, to: number): string {
  const buffer = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return buffer.toString('latin1', from, to);
}

/** As plans name them: `POOL/NUMBER`. */
const isShardName = (name: string): boolean => /^[a-z0-9.-]{1,240}(\/[a-z0-9.-]{1,13})?$/.test(name);

/** The mark of a body, as a record. */
export const markRecord = (key: string, body: string): ReplicaRecord => ({ op: 'mark', key, mark: markOf(body) });

/** Cuts a stream into frames; what is longer than any frame ends it. */
export class FrameReader {
  #rest: Uint8Array = new Uint8Array();

  /** Frames without their lengths, views on what was pushed; undefined: it is no stream of ours. */
  push(chunk: Uint8Array): Uint8Array[] | undefined {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const frames: Uint8Array[] = [];
    let at = 0;
    while (at + LENGTH <= bytes.length) {
      const length = u32(bytes, at);
      if (length > MAX_FRAME) return undefined;
      if (at + LENGTH + length > bytes.length) break;
      frames.push(bytes.subarray(at + LENGTH, at + LENGTH + length));
      at += LENGTH + length;
    }
    // A copy, so that a few bytes do not keep a whole chunk; and at most one frame.
    this.#rest = Uint8Array.from(bytes.subarray(at));
    return frames;
  }
}
