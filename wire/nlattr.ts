/**
 * Netlink messages and attributes (RFC 3549; <linux/netlink.h>, <linux/netfilter/nfnetlink.h>): split a datagram,
 * walk attributes within bounds, build requests. Headers and attribute lengths are little-endian (host order of
 * x86-64 and arm64); what nfnetlink puts into attributes is big-endian.
 * Leaves out: generic netlink, extended ACK text.
 */

import { join } from './bytes.ts';

export const NLMSG_HEADER = 16;
/** Netlink header plus nfgenmsg (family, version, resource id). */
export const NFNL_HEADER = 20;
/** Length and type, before the contents of an attribute. */
export const NLA_HEADER = 4;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const NLM_F_REQUEST = 0x1;
export const NLM_F_MULTI = 0x2;
export const NLM_F_ACK = 0x4;
export const NLM_F_DUMP_INTR = 0x10;
export const NLM_F_EXCL = 0x200;
export const NLM_F_DUMP = 0x300;
export const NLM_F_CREATE = 0x400;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;

/** nfnetlink subsystems: the upper byte of the message type. */
export const NFNL_SUBSYS_CTNETLINK = 1;
export const NFNL_SUBSYS_QUEUE = 3;
export const NFNL_SUBSYS_ULOG = 4;
export const NFNL_SUBSYS_NFTABLES = 10;

function le16(bytes: Uint8Array, at: number): number {
  return (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8);
}

function le32(bytes: Uint8Array, at: number): number {
  return (le16(bytes, at) | (le16(bytes, at + 2) << 16)) >>> 0;
}

export function messageLength(message: Uint8Array): number {
  return le32(message, 0);
}
export function messageType(message: Uint8Array, at = 0): number {
  return le16(message, at + 4);
}
export function messageFlags(message: Uint8Array, at = 0): number {
  return le16(message, at + 6);
}
export function messageSequence(message: Uint8Array, at = 0): number {
  return le32(message, at + 8);
}
/** Of a message from the kernel: the netlink port whose request it answers or tells of; 0: the kernel's own doing. */
export function messagePort(message: Uint8Array): number {
  return le32(message, 12);
}
/** Positive errno of an NLMSG_ERROR (0: an acknowledgement) or an NLMSG_DONE; undefined if too short to say. */
export function messageErrno(message: Uint8Array): number | undefined {
  return message.length < NLMSG_HEADER + 4 ? undefined : Math.abs(le32(message, NLMSG_HEADER) | 0);
}

/** Start and end of each message in one datagram, flat: start, end, start, end. A rest that is malformed is left out. */
export function messageBounds(datagram: Uint8Array, from = 0, to = datagram.length): number[] {
  const bounds: number[] = [];
  let at = from;
  while (at + NLMSG_HEADER <= to) {
    const length = le32(datagram, at);
    if (length < NLMSG_HEADER || at + length > to) break;
    bounds.push(at, at + length);
    at += (length + 3) & ~3;
  }
  return bounds;
}

export function splitMessages(datagram: Uint8Array): Uint8Array[] {
  const bounds = messageBounds(datagram);
  const messages: Uint8Array[] = [];
  for (let i = 0; i + 1 < bounds.length; i += 2) messages.push(datagram.subarray(bounds[i], bounds[i + 1]));
  return messages;
}

const nothing: Uint8Array = new Uint8Array();

/**
 * Walks the attributes between two offsets. One object per level and no slices: decoders run once per event.
 * `while (cursor.next()) …` ends at the end or at the first attribute that does not fit, which sets `malformed`.
 */
export class AttributeCursor {
  type = 0;
  /** First byte of the payload. */
  start = 0;
  /** One past its last byte. */
  end = 0;
  malformed = false;
  #bytes: Uint8Array = nothing;
  #limit = 0;
  #at = 0;

  constructor(bytes = nothing, from = 0, to = bytes.length) {
    this.over(bytes, from, to);
  }

  /** Begins anew, elsewhere. */
  over(bytes: Uint8Array, from: number, to: number): this {
    this.#bytes = bytes;
    this.#limit = Math.min(to, bytes.length);
    this.#at = from;
    this.malformed = false;
    return this;
  }

  next(): boolean {
    const at = this.#at;
    // Fewer than four bytes left is padding, as in the kernel's nla_ok().
    if (at + 4 > this.#limit) return false;
    const length = le16(this.#bytes, at);
    if (length < 4 || at + length > this.#limit) {
      this.malformed = true;
      return false;
    }
    this.type = le16(this.#bytes, at + 2) & NLA_TYPE_MASK;
    this.start = at + 4;
    this.end = at + length;
    this.#at = at + ((length + 3) & ~3);
    return true;
  }

  get length(): number {
    return this.end - this.start;
  }

  /** A cursor over the attributes inside the current one: a new one, or one that is used again. */
  inside(cursor = new AttributeCursor()): AttributeCursor {
    return cursor.over(this.#bytes, this.start, this.end);
  }

  bytes(): Uint8Array {
    return this.#bytes.subarray(this.start, this.end);
  }
}

export function attribute(type: number, payload: Uint8Array): Uint8Array {
  const length = 4 + payload.length;
  if (length > 0xffff) throw new RangeError(`netlink attribute of ${length} bytes`);
  const bytes = new Uint8Array((length + 3) & ~3);
  bytes[0] = length;
  bytes[1] = length >>> 8;
  bytes[2] = type;
  bytes[3] = type >>> 8;
  bytes.set(payload, 4);
  return bytes;
}

export function nested(type: number, ...attributes: Uint8Array[]): Uint8Array {
  return attribute(type | NLA_F_NESTED, join(attributes));
}

export interface NfnlRequest {
  subsystem: number;
  message: number;
  flags: number;
  sequence?: number;
  /** AF_INET 2, AF_INET6 10, AF_UNSPEC 0. */
  family?: number;
  /** Queue or group number. */
  resource?: number;
}

export function nfnlMessage(request: NfnlRequest, ...attributes: Uint8Array[]): Uint8Array {
  const head = new Uint8Array(NFNL_HEADER);
  const bytes = join([head, ...attributes]);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, (request.subsystem << 8) | request.message, true);
  view.setUint16(6, request.flags, true);
  view.setUint32(8, request.sequence ?? 0, true);
  bytes[16] = request.family ?? 0;
  view.setUint16(18, request.resource ?? 0, false);
  return bytes;
}
