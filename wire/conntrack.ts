/**
 * ctnetlink (<linux/netfilter/nfnetlink_conntrack.h>): decode events and dumps of the connection table; encode the
 * dump, and the deletion of one entry or another mark for it. Absent attributes read as zero: the kernel leaves out a mark, counters
 * (`nf_conntrack_acct`) or timestamps (`nf_conntrack_timestamp`) that are unset.
 * Leaves out: expectations, helpers, labels, sequence adjustment; entries for another kernel (conntrack-flow.ts).
 */

import { type AddressText, rememberedText } from './address-text.ts';
import { bytesOfU32, counter, type Decoded, type Malformed, malformed, u16, u32, u64 } from './bytes.ts';
import { type PerDirection, type ProtocolTracking, readTracking } from './conntrack-protocol.ts';
import { type Tuple, TupleReader, type TupleView, writeTuple } from './conntrack-tuple.ts';
import {
  AttributeCursor,
  attribute,
  messageFlags,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_CTNETLINK,
  NLA_HEADER,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_REQUEST,
  NLMSG_HEADER,
  nfnlMessage,
} from './nlattr.ts';
import type { NetlinkWriter } from './nlwriter.ts';

export type { PerDirection, ProtocolTracking } from './conntrack-protocol.ts';
export type { Tuple, TupleView } from './conntrack-tuple.ts';

const IPCTNL_MSG_CT_NEW = 0;
const IPCTNL_MSG_CT_GET = 1;
const IPCTNL_MSG_CT_DELETE = 2;
const CT_NEW = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW;
const CT_DELETE = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_DELETE;

const AF_INET = 2;
const AF_INET6 = 10;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_STATUS = 3;
const CTA_PROTOINFO = 4;
const CTA_TIMEOUT = 7;
const CTA_MARK = 8;
const CTA_COUNTERS_ORIG = 9;
const CTA_COUNTERS_REPLY = 10;
const CTA_ID = 12;
const CTA_ZONE = 18;
const CTA_TIMESTAMP = 20;
const CTA_MARK_MASK = 21;
/** Of those that are read: one more than the last. */
const ATTRIBUTES = CTA_TIMESTAMP + 1;
/** What names an entry: its tuple, its identity, its zone. */
const naming = [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] as const;

const CTA_COUNTERS_PACKETS = 1;
const CTA_COUNTERS_BYTES = 2;
const CTA_TIMESTAMP_START = 1;
const CTA_TIMESTAMP_STOP = 2;

/** Bits of `status` (enum ip_conntrack_status). */
export const IPS_SEEN_REPLY = 0x2;
export const IPS_ASSURED = 0x4;
export const IPS_CONFIRMED = 0x8;
export const IPS_SRC_NAT = 0x10;

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

/** Names a flow of a protocol with ports by its first packet. `id`: only the entry that has it, if it is known. */
export interface FlowTuple {
  protocol: number;
  /** Canonical text. */
  source: string;
  destination: string;
  sourcePort: number;
  destinationPort: number;
  id?: number;
}

/** What decides whether an entry goes on. */
export type ConntrackView = Readonly<Pick<ConntrackEntry, 'id' | 'protocol' | 'mark'>> & {
  readonly original: TupleView;
  readonly reply: TupleView;
};

/**
 * Reads messages of ctnetlink one after the other where they lie: a walk through 100,000 entries copies none. What it
 * says is about the message that was read last, while the bytes are there.
 */
export class ConntrackReader implements ConntrackView {
  readonly original: TupleReader;
  readonly reply: TupleReader;
  #bytes: Uint8Array = new Uint8Array();
  #from = 0;
  /** Where the contents of an attribute are, by its type. */
  readonly #start = new Uint32Array(ATTRIBUTES);
  /** One past their last byte; 0: not there. */
  readonly #end = new Uint32Array(ATTRIBUTES);
  readonly #cursor = new AttributeCursor();
  readonly #fields = new AttributeCursor();

  constructor(text: AddressText) {
    this.original = new TupleReader(text);
    this.reply = new TupleReader(text);
  }

  get protocol(): number {
    return this.original.protocol;
  }

  get id(): number {
    return this.#u32(CTA_ID) ?? 0;
  }

  get mark(): number {
    return this.#u32(CTA_MARK) ?? 0;
  }

  /** What is kept of its protocol; to keep. Not part of entry(): few ask. */
  tracking(): ProtocolTracking | undefined {
    return readTracking(this.#bytes, this.#inside(CTA_PROTOINFO), this.#fields);
  }

  /** What is wrong with the message between two offsets; undefined: nothing. */
  read(bytes: Uint8Array, from = 0, to = bytes.length): Malformed | undefined {
    this.#bytes = bytes;
    this.#from = from;
    this.#end.fill(0);
    if (to - from < NFNL_HEADER) return 'truncated';
    const kind = messageType(bytes, from);
    if (kind !== CT_NEW && kind !== CT_DELETE) return 'bad-type';
    const cursor = this.#cursor.over(bytes, from + NFNL_HEADER, to);
    while (cursor.next()) {
      const { type } = cursor;
      if (type >= ATTRIBUTES) continue;
      if (type === CTA_TUPLE_ORIG && !this.original.read(bytes, cursor)) return this.#refuse('no-tuple');
      if (type === CTA_TUPLE_REPLY && !this.reply.read(bytes, cursor)) return this.#refuse('no-tuple');
      this.#start[type] = cursor.start;
      this.#end[type] = cursor.end;
    }
    if (cursor.malformed) return this.#refuse('bad-attribute');
    return this.#has(CTA_TUPLE_ORIG) && this.#has(CTA_TUPLE_REPLY) ? undefined : this.#refuse('no-tuple');
  }

  /** One to keep; an entry of a dump reads as 'update'. */
  event(): ConntrackEvent {
    const destroyed = messageType(this.#bytes, this.#from) === CT_DELETE;
    const created = (messageFlags(this.#bytes, this.#from) & NLM_F_CREATE) !== 0;
    // Not a copy of the entry: that would take nearly as long again.
    const event = this.entry() as ConntrackEvent;
    event.type = destroyed ? 'destroy' : created ? 'new' : 'update';
    return event;
  }

  /** One to keep. */
  entry(): ConntrackEntry {
    const { original, reply } = this;
    // One object, filled: of 100,000 entries a copy of each costs as much as the reading.
    const entry: ConntrackEntry = {
      family: original.family,
      id: this.id,
      protocol: original.protocol,
      original: original.tuple(),
      reply: reply.tuple(),
      mark: this.mark,
      status: this.#u32(CTA_STATUS) ?? 0,
      packets: { original: 0, reply: 0 },
      bytes: { original: 0, reply: 0 },
      zone: this.#has(CTA_ZONE, 2) ? u16(this.#bytes, this.#start[CTA_ZONE] ?? 0) : 0,
    };
    const timeout = this.#u32(CTA_TIMEOUT);
    if (timeout !== undefined) entry.timeout = timeout;
    if (original.zone !== undefined) entry.originalZone = original.zone;
    this.#readCounters(CTA_COUNTERS_ORIG, 'original', entry);
    this.#readCounters(CTA_COUNTERS_REPLY, 'reply', entry);
    this.#readTimestamps(entry);
    return entry;
  }

  /**
   * Writes the deletion of the entry, which it names in the kernel's own bytes. The id makes sure that a flow which reused
   * the tuple meanwhile is left alone (ENOENT). Throws if there is no tuple: without one the kernel would flush the whole
   * table. The kernel answers only if it fails, unless NLM_F_ACK is added.
   */
  writeDeletion(writer: NetlinkWriter, sequence: number): void {
    this.#begin(IPCTNL_MSG_CT_DELETE, writer, sequence);
    writer.endMessage();
  }

  /**
   * Writes that the entry has the mark from now on. Of a change the kernel does not compare the id: whoever has the tuple
   * by then gets it. Throws and is answered as a deletion.
   */
  writeMark(writer: NetlinkWriter, sequence: number, mark: number): void {
    this.#begin(IPCTNL_MSG_CT_NEW, writer, sequence);
    writer.putU32(CTA_MARK, mark);
    writer.endMessage();
  }

  #begin(message: number, writer: NetlinkWriter, sequence: number): void {
    if (!this.#has(CTA_TUPLE_ORIG)) throw new TypeError('a conntrack entry without a tuple');
    const family = this.#bytes[this.#from + NLMSG_HEADER] ?? 0;
    writer.beginMessage({ subsystem: NFNL_SUBSYS_CTNETLINK, message, flags: NLM_F_REQUEST, sequence, family });
    for (const type of naming) if (this.#has(type)) this.#copy(type, writer);
  }

  /** An attribute with its header. */
  #copy(type: number, writer: NetlinkWriter): void {
    const bytes = this.#bytes;
    const from = (this.#start[type] ?? 0) - NLA_HEADER;
    const length = (this.#end[type] ?? 0) - from;
    const at = writer.append((length + 3) & ~3);
    const { buffer } = writer;
    for (let index = 0; index < length; index++) buffer[at + index] = bytes[from + index] ?? 0;
  }

  #refuse(why: Malformed): Malformed {
    this.#end.fill(0);
    return why;
  }

  #has(type: number, length = 0): boolean {
    const end = this.#end[type] ?? 0;
    return end !== 0 && end - (this.#start[type] ?? 0) >= length;
  }

  #u32(type: number): number | undefined {
    return this.#has(type, 4) ? u32(this.#bytes, this.#start[type] ?? 0) : undefined;
  }

  /** What is in a nested attribute; nothing if it is not there. */
  #inside(type: number): AttributeCursor {
    return this.#cursor.over(this.#bytes, this.#start[type] ?? 0, this.#end[type] ?? 0);
  }

  #readCounters(type: number, direction: keyof PerDirection, into: ConntrackEntry): void {
    const cursor = this.#inside(type);
    while (cursor.next()) {
      if (cursor.length < 8) continue;
      if (cursor.type === CTA_COUNTERS_PACKETS) into.packets[direction] = counter(this.#bytes, cursor.start);
      else if (cursor.type === CTA_COUNTERS_BYTES) into.bytes[direction] = counter(this.#bytes, cursor.start);
    }
  }

  #readTimestamps(into: ConntrackEntry): void {
    const cursor = this.#inside(CTA_TIMESTAMP);
    while (cursor.next()) {
      if (cursor.length < 8) continue;
      if (cursor.type === CTA_TIMESTAMP_START) into.startNs = u64(this.#bytes, cursor.start);
      else if (cursor.type === CTA_TIMESTAMP_STOP) into.stopNs = u64(this.#bytes, cursor.start);
    }
  }
}

/** Everything is read at once, so one does for all; made by who needs it, since what it remembers takes 2 MB. */
let reader: ConntrackReader | undefined;

/** One netlink message of ctnetlink. */
export function decodeConntrack(message: Uint8Array): Decoded<ConntrackEvent> {
  reader ??= new ConntrackReader(rememberedText());
  const fault = reader.read(message);
  return fault === undefined ? { ok: true, value: reader.event() } : malformed(fault);
}

/** Writes the deletion of whatever entry has the tuple; answered as writeDeletion(). Of TCP, UDP and SCTP. */
export function writeTupleDeletion(writer: NetlinkWriter, sequence: number, flow: FlowTuple): void {
  const message = IPCTNL_MSG_CT_DELETE;
  const family = flow.source.includes(':') ? AF_INET6 : AF_INET;
  writer.beginMessage({ subsystem: NFNL_SUBSYS_CTNETLINK, message, flags: NLM_F_REQUEST, sequence, family });
  writeTuple(writer, CTA_TUPLE_ORIG, flow, flow.protocol);
  if (flow.id !== undefined) writer.putU32(CTA_ID, flow.id);
  writer.endMessage();
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
