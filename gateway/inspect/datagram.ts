/**
 * Where things lie in a packet of any protocol but TCP (segment.ts): addresses, ports of UDP (RFC 768), UDP-Lite and SCTP, type and code of ICMP,
 * the payload of UDP. One object for all packets. A fragment is refused: the kernel puts them together before a queue sees them.
 */
import {
  type Packet,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_SCTP,
  PROTOCOL_UDP,
  parsePacket,
} from '../../wire/ip.ts';
import type { SegmentFault } from './segment.ts';

export class Datagram {
  family: 4 | 6 = 4;
  protocol = 0;
  sourcePort: number | undefined;
  destinationPort: number | undefined;
  icmpType: number | undefined;
  icmpCode: number | undefined;
  /** Payload of UDP: from its first byte to the one after its last. */
  payload = 0;
  end = 0;

  /** Reads the packet at `from` up to `to`. On a fault the fields mean nothing. */
  read(bytes: Uint8Array, from: number, to: number): SegmentFault | undefined {
    if (to > bytes.length || from >= to) return 'cut-packet';
    if (!this.#plain(bytes, from, to)) {
      // Options and extension headers: rare, and read at leisure.
      const parsed = parsePacket(bytes.subarray(from, to));
      if (!parsed.ok) return 'bad-header';
      const { value } = parsed;
      if (value.laterFragment || value.moreFragments) return 'fragment';
      if (value.length > to - from) return 'cut-packet';
      this.family = value.family;
      this.protocol = value.protocol;
      return this.#transport(bytes, from + value.transportOffset, from + value.end, value);
    }
    return this.#transport(bytes, this.payload, this.end);
  }

  /** A header without options. */
  #plain(bytes: Uint8Array, from: number, to: number): boolean {
    const first = bytes[from]!;
    if (first === 0x45) {
      const length = (bytes[from + 2]! << 8) | bytes[from + 3]!;
      if (to - from < 20 || length < 20 || length > to - from) return false;
      if (((bytes[from + 6]! & 0x3f) | bytes[from + 7]!) !== 0) return false;
      this.family = 4;
      this.protocol = bytes[from + 9]!;
      this.payload = from + 20;
      this.end = from + length;
      return true;
    }
    if (first >>> 4 !== 6 || to - from < 40) return false;
    const length = (bytes[from + 4]! << 8) | bytes[from + 5]!;
    this.protocol = bytes[from + 6]!;
    if (40 + length > to - from || (this.protocol !== PROTOCOL_UDP && this.protocol !== PROTOCOL_ICMPV6)) return false;
    this.family = 6;
    this.payload = from + 40;
    this.end = this.payload + length;
    return true;
  }

  #transport(bytes: Uint8Array, at: number, end: number, packet?: Packet): SegmentFault | undefined {
    this.sourcePort = this.destinationPort = this.icmpType = this.icmpCode = undefined;
    this.payload = this.end = end;
    const { protocol } = this;
    if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) {
      if (at + 2 > end) return 'bad-header';
      this.icmpType = bytes[at]!;
      this.icmpCode = bytes[at + 1]!;
      return undefined;
    }
    if (protocol !== PROTOCOL_UDP && protocol !== PROTOCOL_SCTP) {
      this.sourcePort = packet?.sourcePort;
      this.destinationPort = packet?.destinationPort;
      return undefined;
    }
    if (at + 8 > end) return 'bad-header';
    this.sourcePort = (bytes[at]! << 8) | bytes[at + 1]!;
    this.destinationPort = (bytes[at + 2]! << 8) | bytes[at + 3]!;
    if (protocol !== PROTOCOL_UDP) return undefined;
    const length = (bytes[at + 4]! << 8) | bytes[at + 5]!;
    if (length < 8 || at + length > end) return 'bad-header';
    // What lies behind is no payload to a receiver.
    this.payload = at + 8;
    this.end = at + length;
    return undefined;
  }
}
