/**
 * The tuple of one direction of a flow in a message of ctnetlink, read where it lies: a walk through the whole table
 * makes no object of any, and text of those addresses only that are asked for. The message around it: conntrack.ts.
 */
import { type AddressText, addressBytes, putIpv4, putIpv6 } from './address-text.ts';
import { u8, u16 } from './bytes.ts';
import { AttributeCursor } from './nlattr.ts';
import type { NetlinkWriter } from './nlwriter.ts';

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
const NONE = -1;

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

/** A tuple to look at, in the kernel's bytes or out of them. */
export type TupleView = Readonly<Pick<Tuple, 'source' | 'destination'>> & {
  readonly [Field in Exclude<keyof Tuple, 'source' | 'destination'>]?: number | undefined;
};

/** Says what the tuple says that was read last, while its bytes are there. */
export class TupleReader implements TupleView {
  family: 4 | 6 = 4;
  protocol = NONE;
  sourcePort: number | undefined;
  destinationPort: number | undefined;
  icmpType: number | undefined;
  icmpCode: number | undefined;
  icmpId: number | undefined;
  /** Of this direction only. */
  zone: number | undefined;
  #bytes: Uint8Array = new Uint8Array();
  /** Offsets of the addresses; 0: not there. */
  #source = 0;
  #destination = 0;
  readonly #text: AddressText;
  readonly #parts = new AttributeCursor();
  readonly #fields = new AttributeCursor();

  constructor(text: AddressText) {
    this.#text = text;
  }

  get source(): string {
    return this.#text(this.#bytes, this.#source, this.family);
  }

  get destination(): string {
    return this.#text(this.#bytes, this.#destination, this.family);
  }

  /** The tuple inside an attribute of these bytes; false: there is no whole one. */
  read(bytes: Uint8Array, { start, end }: AttributeCursor): boolean {
    this.#clear(bytes);
    const parts = this.#parts.over(bytes, start, end);
    while (parts.next()) {
      if (parts.type === CTA_TUPLE_IP) this.#readAddresses(parts.inside(this.#fields));
      else if (parts.type === CTA_TUPLE_PROTO) this.#readProtocol(parts.inside(this.#fields));
      else if (parts.type === CTA_TUPLE_ZONE && parts.length >= 2) this.zone = u16(bytes, parts.start);
    }
    return !parts.malformed && this.protocol !== NONE && this.#source !== 0 && this.#destination !== 0;
  }

  /** One to keep. */
  tuple(): Tuple {
    const tuple: Tuple = { source: this.source, destination: this.destination };
    if (this.sourcePort !== undefined) tuple.sourcePort = this.sourcePort;
    if (this.destinationPort !== undefined) tuple.destinationPort = this.destinationPort;
    if (this.icmpType !== undefined) tuple.icmpType = this.icmpType;
    if (this.icmpCode !== undefined) tuple.icmpCode = this.icmpCode;
    if (this.icmpId !== undefined) tuple.icmpId = this.icmpId;
    return tuple;
  }

  #clear(bytes: Uint8Array): void {
    this.#bytes = bytes;
    this.#source = 0;
    this.#destination = 0;
    this.protocol = NONE;
    this.sourcePort = undefined;
    this.destinationPort = undefined;
    this.icmpType = undefined;
    this.icmpCode = undefined;
    this.icmpId = undefined;
    this.zone = undefined;
  }

  #readAddresses(ip: AttributeCursor): void {
    while (ip.next()) {
      const { type, length } = ip;
      const family = type === CTA_IP_V4_SRC || type === CTA_IP_V4_DST ? 4 : 6;
      if (type < CTA_IP_V4_SRC || type > CTA_IP_V6_DST || length !== (family === 4 ? 4 : 16)) continue;
      // Both are of one family: four bytes must never be read as sixteen.
      if (family !== this.family) {
        this.#source = 0;
        this.#destination = 0;
      }
      this.family = family;
      if (type === CTA_IP_V4_SRC || type === CTA_IP_V6_SRC) this.#source = ip.start;
      else this.#destination = ip.start;
    }
  }

  #readProtocol(proto: AttributeCursor): void {
    const bytes = this.#bytes;
    while (proto.next()) {
      const { start, length } = proto;
      if (length < 1) continue;
      const value = length >= 2 ? u16(bytes, start) : u8(bytes, start);
      switch (proto.type) {
        case CTA_PROTO_NUM:
          this.protocol = u8(bytes, start);
          break;
        case CTA_PROTO_SRC_PORT:
          this.sourcePort = value;
          break;
        case CTA_PROTO_DST_PORT:
          this.destinationPort = value;
          break;
        case CTA_PROTO_ICMP_ID:
        case CTA_PROTO_ICMPV6_ID:
          this.icmpId = value;
          break;
        case CTA_PROTO_ICMP_TYPE:
        case CTA_PROTO_ICMPV6_TYPE:
          this.icmpType = u8(bytes, start);
          break;
        case CTA_PROTO_ICMP_CODE:
        case CTA_PROTO_ICMPV6_CODE:
          this.icmpCode = u8(bytes, start);
          break;
      }
    }
  }
}

/** The tuple as an attribute of that type. Throws if its addresses are none. */
export function writeTuple(writer: NetlinkWriter, type: number, tuple: TupleView, protocol: number): void {
  const { source, destination, sourcePort, destinationPort, icmpType, icmpCode, icmpId } = tuple;
  const six = source.includes(':');
  const [from, to] = six ? [CTA_IP_V6_SRC, CTA_IP_V6_DST] : [CTA_IP_V4_SRC, CTA_IP_V4_DST];
  const whole = writer.open(type);
  const ip = writer.open(CTA_TUPLE_IP);
  writeAddress(writer, from, source);
  writeAddress(writer, to, destination);
  writer.close(ip);
  const proto = writer.open(CTA_TUPLE_PROTO);
  putU8(writer, CTA_PROTO_NUM, protocol);
  if (sourcePort !== undefined) writer.putU16(CTA_PROTO_SRC_PORT, sourcePort);
  if (destinationPort !== undefined) writer.putU16(CTA_PROTO_DST_PORT, destinationPort);
  if (icmpId !== undefined) writer.putU16(six ? CTA_PROTO_ICMPV6_ID : CTA_PROTO_ICMP_ID, icmpId);
  if (icmpType !== undefined) putU8(writer, six ? CTA_PROTO_ICMPV6_TYPE : CTA_PROTO_ICMP_TYPE, icmpType);
  if (icmpCode !== undefined) putU8(writer, six ? CTA_PROTO_ICMPV6_CODE : CTA_PROTO_ICMP_CODE, icmpCode);
  writer.close(proto);
  writer.close(whole);
}

/** An address as an attribute of that type; canonical text by hand, since there are thousands a second. */
export function writeAddress(writer: NetlinkWriter, type: number, address: string): void {
  const six = address.includes(':');
  const at = writer.attribute(type, six ? 16 : 4);
  if (!(six ? putIpv6 : putIpv4)(address, writer.buffer, at)) writer.buffer.set(addressBytes(address), at);
}

export function putU8(writer: NetlinkWriter, type: number, value: number): void {
  const at = writer.attribute(type, 1);
  writer.buffer[at] = value;
}
