/**
 * nfnetlink_queue (<linux/netfilter/nfnetlink_queue.h>): packets that a queue holds, verdicts on them, and the
 * messages that bind a socket to a queue. A held packet goes on only with a verdict from the socket that holds the
 * queue; when that closes, packets are dropped, and when the queue is full too, unless it was asked to fail open.
 * Twice: values that are made anew (hold queue, tests), and a reader and a writer for streams that allocate nothing.
 * Leaves out: conntrack attached to the packet (this needs NETFILTER_NETLINK_GLUE_CT).
 */

import { bytesOfU32, type Decoded, join, type Malformed, malformed, putU16, putU32, u8, u16, u32 } from './bytes.ts';
import {
  AttributeCursor,
  attribute,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_QUEUE,
  NLM_F_ACK,
  NLM_F_REQUEST,
  NLMSG_HEADER,
  nfnlMessage,
} from './nlattr.ts';

const NFQNL_MSG_PACKET = 0;
const NFQNL_MSG_VERDICT = 1;
const NFQNL_MSG_CONFIG = 2;
const NFQNL_MSG_VERDICT_BATCH = 3;
const NFQA_PACKET_HDR = 1;
const NFQA_VERDICT_HDR = 2;
const NFQA_MARK = 3;
const NFQA_IFINDEX_INDEV = 5;
const NFQA_IFINDEX_OUTDEV = 6;
const NFQA_HWADDR = 9;
const NFQA_PAYLOAD = 10;
const NFQA_CAP_LEN = 13;
const NFQA_SKB_INFO = 14;
const NFQA_CFG_CMD = 1;
const NFQA_CFG_PARAMS = 2;
const NFQA_CFG_QUEUE_MAXLEN = 3;
const NFQA_CFG_MASK = 4;
const NFQA_CFG_FLAGS = 5;
const NFQNL_CFG_CMD_BIND = 1;
const NFQNL_CFG_CMD_UNBIND = 2;
const NFQNL_COPY_PACKET = 2;
/** A full queue, or a full socket, lets packets pass. */
const NFQA_CFG_F_FAIL_OPEN = 1;
/** A large send is held as one packet, not cut into segments. */
const NFQA_CFG_F_GSO = 4;
/** Bits of QueuePacket.info: the checksum is yet to be filled in by a device; a large send; nobody checked the checksum. */
export const INFO_CHECKSUM_NOT_READY = 1;
export const INFO_GSO = 2;
export const INFO_CHECKSUM_NOT_VERIFIED = 4;
/** Largest payload of an attribute: the most that the kernel shows of one packet. */
export const COPY_RANGE_MAX = 0xffff - 4;

export type Verdict = 'accept' | 'drop' | 'repeat';
const verdicts: Record<Verdict, number> = { drop: 0, accept: 1, repeat: 4 };

export interface QueuedPacket {
  queue: number;
  /** Names the packet in the verdict; ascending per queue. */
  id: number;
  mark: number;
  hook: number;
  protocol: number;
  /** From the IP header on, at most the copy range. A view, not a copy. */
  payload: Uint8Array;
  inDevice: number;
  outDevice: number;
  /** Of the sender, on Ethernet: 6 bytes, a view; else empty. */
  mac: Uint8Array;
}

export function decodeNfqueue(message: Uint8Array): Decoded<QueuedPacket> {
  if (message.length < NFNL_HEADER) return malformed('truncated');
  if (messageType(message) !== ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET)) return malformed('bad-type');
  let header = false;
  const value: QueuedPacket = {
    queue: u16(message, 18),
    id: 0,
    mark: 0,
    hook: 0,
    protocol: 0,
    payload: message.subarray(0, 0),
    inDevice: 0,
    outDevice: 0,
    mac: message.subarray(0, 0),
  };
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    const { start, length } = cursor;
    if (cursor.type === NFQA_PACKET_HDR && length >= 7) {
      header = true;
      value.id = u32(message, start);
      value.protocol = u16(message, start + 4);
      value.hook = u8(message, start + 6);
    } else if (cursor.type === NFQA_PAYLOAD) value.payload = cursor.bytes();
    else if (cursor.type === NFQA_HWADDR && length >= 10 && u16(message, start) === 6)
      value.mac = message.subarray(start + 4, start + 10);
    else if (length < 4) continue;
    else if (cursor.type === NFQA_MARK) value.mark = u32(message, start);
    else if (cursor.type === NFQA_IFINDEX_INDEV) value.inDevice = u32(message, start);
    else if (cursor.type === NFQA_IFINDEX_OUTDEV) value.outDevice = u32(message, start);
  }
  if (cursor.malformed) return malformed('bad-attribute');
  return header ? { ok: true, value } : malformed('no-header');
}

/** Verdict on one packet; with a mark, the packet goes on with it. No acknowledgement is asked for. */
export function encodeVerdict(queue: number, id: number, verdict: Verdict, mark?: number): Uint8Array {
  return verdictMessage(NFQNL_MSG_VERDICT, queue, id, verdict, mark);
}

/** Verdict on every packet of the queue whose id is at most `id`. */
export function encodeVerdictBatch(queue: number, id: number, verdict: Verdict, mark?: number): Uint8Array {
  return verdictMessage(NFQNL_MSG_VERDICT_BATCH, queue, id, verdict, mark);
}

function verdictMessage(message: number, queue: number, id: number, verdict: Verdict, mark?: number): Uint8Array {
  return nfnlMessage(
    { subsystem: NFNL_SUBSYS_QUEUE, message, flags: NLM_F_REQUEST, resource: queue },
    attribute(NFQA_VERDICT_HDR, join([bytesOfU32(verdicts[verdict]), bytesOfU32(id)])),
    ...(mark === undefined ? [] : [attribute(NFQA_MARK, bytesOfU32(mark))]),
  );
}

export interface QueueSettings {
  queue: number;
  /** Packets that the queue holds before it drops. */
  maxLength: number;
  /** Bytes of each packet that we see. */
  copyRange: number;
  /** When the queue is full packets pass, with the mark that they came with. */
  failOpen?: boolean;
}

/** Binds the socket to a queue: three messages, acknowledged under `sequence` and the two after it. */
export function encodeQueueConfig(settings: QueueSettings, sequence: number): Uint8Array[] {
  const config = (offset: number, ...attributes: Uint8Array[]) =>
    nfnlMessage(
      {
        subsystem: NFNL_SUBSYS_QUEUE,
        message: NFQNL_MSG_CONFIG,
        flags: NLM_F_REQUEST | NLM_F_ACK,
        sequence: sequence + offset,
        resource: settings.queue,
      },
      ...attributes,
    );
  return [
    config(0, attribute(NFQA_CFG_CMD, Uint8Array.of(NFQNL_CFG_CMD_BIND, 0, 0, 0))),
    config(
      1,
      attribute(NFQA_CFG_PARAMS, join([bytesOfU32(settings.copyRange), Uint8Array.of(NFQNL_COPY_PACKET)])),
      attribute(NFQA_CFG_QUEUE_MAXLEN, bytesOfU32(settings.maxLength)),
    ),
    config(2, ...flags(settings)),
  ];
}

function flags({ failOpen = false }: QueueSettings): Uint8Array[] {
  const bits = bytesOfU32(NFQA_CFG_F_GSO | (failOpen ? NFQA_CFG_F_FAIL_OPEN : 0));
  return [attribute(NFQA_CFG_FLAGS, bits), attribute(NFQA_CFG_MASK, bits)];
}

/**
 * The same in two messages, for who must not lose a packet while waiting for an acknowledgement: after `bind` (which
 * asks for one) the queue drops; with `show` (which does not) the first packet may come.
 */
export function encodeQueueBind(settings: QueueSettings, sequence: number): { bind: Uint8Array; show: Uint8Array } {
  const { queue, maxLength, copyRange } = settings;
  const request = { subsystem: NFNL_SUBSYS_QUEUE, message: NFQNL_MSG_CONFIG, resource: queue };
  return {
    bind: nfnlMessage(
      { ...request, flags: NLM_F_REQUEST | NLM_F_ACK, sequence },
      attribute(NFQA_CFG_CMD, Uint8Array.of(NFQNL_CFG_CMD_BIND, 0, 0, 0)),
      attribute(NFQA_CFG_QUEUE_MAXLEN, bytesOfU32(maxLength)),
      ...flags(settings),
    ),
    show: nfnlMessage(
      { ...request, flags: NLM_F_REQUEST, sequence: sequence + 1 },
      attribute(NFQA_CFG_PARAMS, join([bytesOfU32(copyRange), Uint8Array.of(NFQNL_COPY_PACKET)])),
    ),
  };
}

/** Gives the queue back; packets in it are dropped. */
export function encodeQueueUnbind(queue: number): Uint8Array {
  return nfnlMessage(
    { subsystem: NFNL_SUBSYS_QUEUE, message: NFQNL_MSG_CONFIG, flags: NLM_F_REQUEST, resource: queue },
    attribute(NFQA_CFG_CMD, Uint8Array.of(NFQNL_CFG_CMD_UNBIND, 0, 0, 0)),
  );
}

/** What PacketReader fills, and whoever decides reads: one object for all packets of a thread. */
export class QueuePacket {
  /** Names the packet in the verdict; ascending per queue, modulo 2³². */
  id = 0;
  /** Comes in with the packet, and goes on with it as it is left here. */
  mark = 0;
  hook = 0;
  /** Ethernet type: 0x0800, 0x86dd. */
  protocol = 0;
  inDevice = 0;
  outDevice = 0;
  /** INFO_ bits. */
  info = 0;
  /** Bytes that the packet has, where that is more than the copy range; else 0. */
  cutFrom = 0;
  /** Whoever decides may let another packet go on in its place: the same addresses, whole from the IP header on. */
  replacement: Uint8Array | undefined;
  /** The packet, from the IP header on, lies in here from `start` to `end`, until the next one is read. */
  bytes: Uint8Array = new Uint8Array();
  start = 0;
  end = 0;

  /** A view, made anew at each call. */
  payload(): Uint8Array {
    return this.bytes.subarray(this.start, this.end);
  }
}

/** Reads packet messages where they lie; allocates nothing. */
export class PacketReader {
  readonly #cursor = new AttributeCursor();

  /** The message lies in `bytes` from `from` to `to`. Undefined: a packet was read. `packet.id` may be known even if not. */
  read(bytes: Uint8Array, from: number, to: number, packet: QueuePacket): Malformed | undefined {
    packet.id = packet.mark = packet.inDevice = packet.outDevice = packet.info = packet.cutFrom = 0;
    packet.bytes = bytes;
    packet.start = packet.end = to;
    packet.replacement = undefined;
    if (to > bytes.length || to - from < NFNL_HEADER) return 'truncated';
    if (messageType(bytes, from) !== ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET)) return 'bad-type';
    let header = false;
    const cursor = this.#cursor.over(bytes, from + NFNL_HEADER, to);
    while (cursor.next()) {
      const start = cursor.start;
      const length = cursor.end - start;
      switch (cursor.type) {
        case NFQA_PACKET_HDR:
          if (length < 7) break;
          header = true;
          packet.id = u32(bytes, start);
          packet.protocol = u16(bytes, start + 4);
          packet.hook = u8(bytes, start + 6);
          break;
        case NFQA_PAYLOAD:
          packet.start = start;
          packet.end = cursor.end;
          break;
        case NFQA_MARK:
          if (length >= 4) packet.mark = u32(bytes, start);
          break;
        case NFQA_IFINDEX_INDEV:
          if (length >= 4) packet.inDevice = u32(bytes, start);
          break;
        case NFQA_IFINDEX_OUTDEV:
          if (length >= 4) packet.outDevice = u32(bytes, start);
          break;
        case NFQA_CAP_LEN:
          if (length >= 4) packet.cutFrom = u32(bytes, start);
          break;
        case NFQA_SKB_INFO:
          if (length >= 4) packet.info = u32(bytes, start);
          break;
        default:
      }
    }
    if (cursor.malformed) return 'bad-attribute';
    return header ? undefined : 'no-header';
  }
}

const VERDICT_LENGTH = NFNL_HEADER + 12;
const VERDICT_MARK_LENGTH = VERDICT_LENGTH + 8;
const AT_MESSAGE = 4;
const AT_VERDICT = NFNL_HEADER + 4;
const AT_ID = NFNL_HEADER + 8;
const AT_MARK = VERDICT_LENGTH + 4;

/**
 * Verdicts for one send, written one behind the other into memory that is there already. What is like the one before it
 * widens that into a verdict on all up to it, where the caller says that this means the same: nothing else of the queue
 * up to it may be undecided.
 */
export class VerdictWriter {
  readonly bytes: Uint8Array;
  length = 0;
  /** Messages; packets may be more. */
  messages = 0;
  readonly #queue: number;
  #last = -1;
  #lastAccept = false;
  /** -1: none. */
  #lastMark = -1;

  /** Room for so many messages. */
  constructor(queue: number, capacity: number) {
    this.#queue = queue;
    this.bytes = new Uint8Array(capacity * VERDICT_MARK_LENGTH);
  }

  /** There is no room for one more. */
  get full(): boolean {
    return !this.fits(-4);
  }

  /** There is room for one with a replacement of so many bytes. */
  fits(replacement: number): boolean {
    return this.length + VERDICT_MARK_LENGTH + align(4 + replacement) <= this.bytes.length;
  }

  /** `mark`: the packet goes on with it; -1: with the one that it has. Not while `full`. */
  add(id: number, accept: boolean, mark: number, widen: boolean): void {
    const { bytes } = this;
    if (widen && this.#last >= 0 && this.#lastAccept === accept && this.#lastMark === mark) {
      bytes[this.#last + AT_MESSAGE] = NFQNL_MSG_VERDICT_BATCH;
      putU32(bytes, this.#last + AT_ID, id);
      return;
    }
    const at = this.length;
    const marked = mark >= 0;
    const length = marked ? VERDICT_MARK_LENGTH : VERDICT_LENGTH;
    bytes.fill(0, at, at + length);
    bytes[at] = length;
    bytes[at + AT_MESSAGE] = NFQNL_MSG_VERDICT;
    bytes[at + AT_MESSAGE + 1] = NFNL_SUBSYS_QUEUE;
    bytes[at + 6] = NLM_F_REQUEST;
    putU16(bytes, at + NLMSG_HEADER + 2, this.#queue);
    bytes[at + NFNL_HEADER] = 12;
    bytes[at + NFNL_HEADER + 2] = NFQA_VERDICT_HDR;
    putU32(bytes, at + AT_VERDICT, accept ? verdicts.accept : verdicts.drop);
    putU32(bytes, at + AT_ID, id);
    if (marked) {
      bytes[at + VERDICT_LENGTH] = 8;
      bytes[at + VERDICT_LENGTH + 2] = NFQA_MARK;
      putU32(bytes, at + AT_MARK, mark);
    }
    this.#last = at;
    this.#lastAccept = accept;
    this.#lastMark = mark;
    this.length += length;
    this.messages++;
  }

  /** In the packet's place another goes on, whose checksums are right. Only if it `fits`. */
  replace(id: number, mark: number, replacement: Uint8Array): void {
    const { bytes } = this;
    this.#last = -1;
    this.add(id, true, mark, false);
    const at = this.length;
    const start = at - (mark >= 0 ? VERDICT_MARK_LENGTH : VERDICT_LENGTH);
    const size = 4 + replacement.length;
    bytes.fill(0, at, at + align(size));
    bytes[at] = size;
    bytes[at + 1] = size >>> 8;
    bytes[at + 2] = NFQA_PAYLOAD;
    bytes.set(replacement, at + 4);
    this.length = at + align(size);
    const length = this.length - start;
    bytes[start] = length;
    bytes[start + 1] = length >>> 8;
    // Nothing widens it.
    this.#last = -1;
  }

  clear(): void {
    this.length = this.messages = 0;
    this.#last = -1;
  }
}

/** Attributes begin at multiples of four. */
const align = (length: number): number => (length + 3) & ~3;
