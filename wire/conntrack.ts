/**
 * ctnetlink (<linux/netfilter/nfnetlink_conntrack.h>): decode events and dumps of the connection table; encode the
 * dump and the deletion of one entry. Absent attributes read as zero: the kernel leaves out a mark, counters
 * (`nf_conntrack_acct`) or timestamps (`nf_conntrack_timestamp`) that are unset.
 * Leaves out: expectations, helpers, labels, sequence adjustment, TCP state, creating entries.
 */

import { ipv4Text, ipv6Text } from './address-text.ts';
import { bytesOfU32, counter, type Decoded, malformed, u8, u16, u32, u64 } from './bytes.ts';
import {
  AttributeCursor,
  attribute,
  messageFlags,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_CTNETLINK,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_REQUEST,
  NLMSG_HEADER,
  nfnlMessage,
} from './nlattr.ts';

const IPCTNL_MSG_CT_NEW = 0;
const IPCTNL_MSG_CT_GET = 1;
const IPCTNL_MSG_CT_DELETE = 2;

const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_STATUS = 3;
const CTA_TIMEOUT = 7;
const CTA_MARK = 8;
const CTA_COUNTERS_ORIG = 9;
const CTA_COUNTERS_REPLY = 10;
const CTA_ID = 12;
const CTA_ZONE = 18;
const CTA_TIMESTAMP = 20;
const CTA_MARK_MASK = 21;

const CTA_TUPLE_IP = 1;
const CTA_TUPLE_PROTO = 2;
const CTA_TUPLE_ZONE = 3;
const CTA_IP_V4_SRC = 1;
const CTA_IP_V4_DST = 2;
const CTA_IP_V6_SRC = 3;
const CTA_IP_V6_DST = 4;
const CTA_PROTO_NUM = 1;
const CTA_PROTO_SRC_PORT = 2;
const CTA_PROTO_DST_PORT = 3;
const CTA_PROTO_ICMP_ID = 4;
const CTA_PROTO_ICMP_TYPE = 5;
const CTA_PROTO_ICMP_CODE = 6;
const CTA_PROTO_ICMPV6_ID = 7;
const CTA_PROTO_ICMPV6_TYPE = 8;
const CTA_PROTO_ICMPV6_CODE = 9;
const CTA_COUNTERS_PACKETS = 1;
const CTA_COUNTERS_BYTES = 2;
const CTA_TIMESTAMP_START = 1;
const CTA_TIMESTAMP_STOP = 2;

/** Bits of `status` (enum ip_conntrack_status). */
export const IPS_SEEN_REPLY = 0x2;
export const IPS_ASSURED = 0x4;
export const IPS_CONFIRMED = 0x8;
export const IPS_SRC_NAT = 0x10;

export interface Tuple {
  /** Canonical text. */
  source: string;
  destination: string;
  sourcePort?: number;
  destinationPort?: number;
  icmpType?: number;
  icmpCode?: number;
  icmpId?: number;
}

export interface PerDirection {
  original: number;
  reply: number;
}

export interface ConntrackEntry {
  family: 4 | 6;
  /** The kernel's identity of the entry: a reused tuple has another one. */
  id: number;
  protocol: number;
  original: Tuple;
  reply: Tuple;
  mark: number;
  status: number;
  /** Zero unless accounting is on; events other than 'destroy' carry none. */
  packets: PerDirection;
  bytes: PerDirection;
  /** Seconds until it expires; absent in 'destroy'. */
  timeout?: number;
  /** Nanoseconds since 1970. */
  startNs?: bigint;
  stopNs?: bigint;
  zone: number;
  /** Zone of one direction only (`ct original zone set`); needed to name the entry again. */
  originalZone?: number;
}

export interface ConntrackEvent extends ConntrackEntry {
  type: 'new' | 'update' | 'destroy';
}

/** One netlink message of ctnetlink. Entries of a dump read as 'update'. */
export function decodeConntrack(message: Uint8Array): Decoded<ConntrackEvent> {
  if (message.length < NFNL_HEADER) return malformed('truncated');
  const messageKind = messageType(message);
  if (messageKind >>> 8 !== NFNL_SUBSYS_CTNETLINK) return malformed('bad-type');
  const kind = messageKind & 0xff;
  if (kind !== IPCTNL_MSG_CT_NEW && kind !== IPCTNL_MSG_CT_DELETE) return malformed('bad-type');
  const type = kind === IPCTNL_MSG_CT_DELETE ? 'destroy' : messageFlags(message) & NLM_F_CREATE ? 'new' : 'update';

  let original: ReadTuple | undefined;
  let reply: ReadTuple | undefined;
  // One object, filled as it is read: at 100,000 entries a copy of each costs as much as the reading.
  const event: ConntrackEvent = {
    type,
    family: 4,
    id: 0,
    protocol: 0,
    original: noTuple,
    reply: noTuple,
    mark: 0,
    status: 0,
    packets: { original: 0, reply: 0 },
    bytes: { original: 0, reply: 0 },
    zone: 0,
  };
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    const { type: name, start, length } = cursor;
    switch (name) {
      case CTA_TUPLE_ORIG:
      case CTA_TUPLE_REPLY: {
        const tuple = readTuple(message, cursor.inside());
        if (tuple === undefined) return malformed('no-tuple');
        if (name === CTA_TUPLE_ORIG) original = tuple;
        else reply = tuple;
        break;
      }
      case CTA_COUNTERS_ORIG:
      case CTA_COUNTERS_REPLY:
        readCounters(message, cursor.inside(), name === CTA_COUNTERS_ORIG ? 'original' : 'reply', event);
        break;
      case CTA_TIMESTAMP:
        readTimestamps(message, cursor.inside(), event);
        break;
      case CTA_ZONE:
        if (length >= 2) event.zone = u16(message, start);
        break;
      case CTA_STATUS:
        if (length >= 4) event.status = u32(message, start);
        break;
      case CTA_TIMEOUT:
        if (length >= 4) event.timeout = u32(message, start);
        break;
      case CTA_MARK:
        if (length >= 4) event.mark = u32(message, start);
        break;
      case CTA_ID:
        if (length >= 4) event.id = u32(message, start);
        break;
    }
  }
  if (cursor.malformed) return malformed('bad-attribute');
  if (original === undefined || reply === undefined) return malformed('no-tuple');
  event.family = original.family;
  event.protocol = original.protocol;
  event.original = original.tuple;
  event.reply = reply.tuple;
  if (original.zone !== undefined) event.originalZone = original.zone;
  return { ok: true, value: event };
}

const noTuple: Tuple = { source: '', destination: '' };

interface ReadTuple {
  family: 4 | 6;
  protocol: number;
  tuple: Tuple;
  zone?: number;
}

function readTuple(message: Uint8Array, cursor: AttributeCursor): ReadTuple | undefined {
  let family: 4 | 6 = 4;
  let protocol: number | undefined;
  const tuple: Tuple = { source: '', destination: '' };
  let zone: number | undefined;
  while (cursor.next()) {
    if (cursor.type === CTA_TUPLE_IP) {
      const ip = cursor.inside();
      while (ip.next()) {
        if ((ip.type === CTA_IP_V4_SRC || ip.type === CTA_IP_V4_DST) && ip.length === 4) {
          family = 4;
          if (ip.type === CTA_IP_V4_SRC) tuple.source = ipv4Text(message, ip.start);
          else tuple.destination = ipv4Text(message, ip.start);
        } else if ((ip.type === CTA_IP_V6_SRC || ip.type === CTA_IP_V6_DST) && ip.length === 16) {
          family = 6;
          if (ip.type === CTA_IP_V6_SRC) tuple.source = ipv6Text(message, ip.start);
          else tuple.destination = ipv6Text(message, ip.start);
        }
      }
    } else if (cursor.type === CTA_TUPLE_PROTO) {
      const proto = cursor.inside();
      while (proto.next()) {
        const { start, length } = proto;
        if (length < 1) continue;
        const value = length >= 2 ? u16(message, start) : u8(message, start);
        switch (proto.type) {
          case CTA_PROTO_NUM:
            protocol = u8(message, start);
            break;
          case CTA_PROTO_SRC_PORT:
            tuple.sourcePort = value;
            break;
          case CTA_PROTO_DST_PORT:
            tuple.destinationPort = value;
            break;
          case CTA_PROTO_ICMP_ID:
          case CTA_PROTO_ICMPV6_ID:
            tuple.icmpId = value;
            break;
          case CTA_PROTO_ICMP_TYPE:
          case CTA_PROTO_ICMPV6_TYPE:
            tuple.icmpType = u8(message, start);
            break;
          case CTA_PROTO_ICMP_CODE:
          case CTA_PROTO_ICMPV6_CODE:
            tuple.icmpCode = u8(message, start);
            break;
        }
      }
    } else if (cursor.type === CTA_TUPLE_ZONE && cursor.length >= 2) zone = u16(message, cursor.start);
  }
  if (cursor.malformed || protocol === undefined || tuple.source === '' || tuple.destination === '') return undefined;
  const read: ReadTuple = { family, protocol, tuple };
  if (zone !== undefined) read.zone = zone;
  return read;
}

function readCounters(
  message: Uint8Array,
  cursor: AttributeCursor,
  direction: keyof PerDirection,
  into: Pick<ConntrackEntry, 'packets' | 'bytes'>,
): void {
  while (cursor.next()) {
    if (cursor.length < 8) continue;
    if (cursor.type === CTA_COUNTERS_PACKETS) into.packets[direction] = counter(message, cursor.start);
    else if (cursor.type === CTA_COUNTERS_BYTES) into.bytes[direction] = counter(message, cursor.start);
  }
}

function readTimestamps(
  message: Uint8Array,
  cursor: AttributeCursor,
  into: Pick<ConntrackEntry, 'startNs' | 'stopNs'>,
): void {
  while (cursor.next()) {
    if (cursor.length < 8) continue;
    if (cursor.type === CTA_TIMESTAMP_START) into.startNs = u64(message, cursor.start);
    else if (cursor.type === CTA_TIMESTAMP_STOP) into.stopNs = u64(message, cursor.start);
  }
}

/** Asks for the whole table (both families: each dump walks all of the kernel's buckets, some 10 ms), or for the entries with `(mark & mask) === value`. */
export function encodeConntrackDump(sequence: number, mark?: { value: number; mask: number }): Uint8Array {
  const filter =
    mark === undefined
      ? []
      : [attribute(CTA_MARK, bytesOfU32(mark.value)), attribute(CTA_MARK_MASK, bytesOfU32(mark.mask))];
  return nfnlMessage(
    {
      subsystem: NFNL_SUBSYS_CTNETLINK,
      message: IPCTNL_MSG_CT_GET,
      flags: NLM_F_REQUEST | NLM_F_DUMP,
      sequence,
    },
    ...filter,
  );
}

/** What names an entry: its tuple, its identity, its zone. */
const naming = new Set([CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE]);

/**
 * Deletes the entry that a message of a dump is about, which names it in the kernel's own bytes. The id makes sure that a
 * flow which reused the tuple meanwhile is left alone (ENOENT). Throws if there is no tuple in it: without one the kernel
 * would flush the whole table. Without `acknowledge` the kernel answers only if it fails.
 */
export function encodeConntrackDelete(dumped: Uint8Array, sequence: number, acknowledge = true): Uint8Array {
  const parts: Uint8Array[] = [];
  let named = false;
  const cursor = new AttributeCursor(dumped, NFNL_HEADER, dumped.length);
  while (cursor.next()) {
    if (!naming.has(cursor.type)) continue;
    named ||= cursor.type === CTA_TUPLE_ORIG;
    // With its own header and padding.
    parts.push(dumped.subarray(cursor.start - 4, (cursor.end + 3) & ~3));
  }
  if (!named || cursor.malformed) throw new TypeError('a conntrack entry without a tuple');
  return nfnlMessage(
    {
      subsystem: NFNL_SUBSYS_CTNETLINK,
      message: IPCTNL_MSG_CT_DELETE,
      flags: NLM_F_REQUEST | (acknowledge ? NLM_F_ACK : 0),
      sequence,
      family: dumped[NLMSG_HEADER] ?? 0,
    },
    ...parts,
  );
}
