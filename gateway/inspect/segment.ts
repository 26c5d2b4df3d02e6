/**
 * Where things lie in a packet of TCP (RFC 9293) in IPv4 (RFC 791) or IPv6 (RFC 8200): numbers and offsets into the bytes
 * at hand, in one object that is used again for every packet. `wire/ip.ts` makes texts of addresses and an object of each
 * packet, which is right for a record and too slow for a queue.
 * What the kernel has done before a packet comes to a queue behind conntrack, and is not done again here: checksums of IP
 * and TCP (nf_conntrack_checksum; where that is off, checksumHolds() says it), fragments put together (nf_defrag; one that comes all the same is refused), windows
 * (nf_conntrack_tcp_be_liberal=0), segments of no connection (nf_conntrack_tcp_loose=0), impossible flags.
 * Leaves out TCP's options. A receiver drops what has an old timestamp (RFC 7323 §5) or a wrong signature (RFC 5925): such
 * a segment is held here like others, and the one that is to replace it must have the same bytes.
 */
import { PROTOCOL_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../../wire/ip.ts';

export const TCP_URG = 0x20;

const IPV4_HEADER = 20;
const IPV6_HEADER = 40;
const TCP_HEADER = 20;
const HOP_BY_HOP = 0;
const ROUTING = 43;
const FRAGMENT = 44;
const AUTHENTICATION = 51;
const DESTINATION = 60;
/** More in a row than any honest packet has. */
const EXTENSIONS_MAX = 8;

/** Words of a key: source and destination, four words each, and both ports in one. */
export const KEY_WORDS = 9;

/** Why a packet is no segment that can be read. */
export const segmentFaults = {
  'not-tcp': 'a packet that is not TCP in IPv4 or IPv6',
  fragment: 'a fragment: the kernel puts them together before a queue sees them, so this one went round it',
  'cut-packet': 'a packet of which not all bytes were copied to us',
  'bad-header':
    'a length in the headers of IP or TCP that cannot be, or more extension headers than honest packets have',
  'routing-header': 'an IPv6 packet that is not yet on its way to its last destination',
  'bad-flags': 'flags of TCP that no receiver takes: without ACK, with SYN and FIN or RST, or a reset with payload',
} as const;
export type SegmentFault = keyof typeof segmentFaults;

export class Segment {
  version = 0;
  /** As 32 signed bits, like all words here: it is only ever subtracted. */
  sequence = 0;
  acknowledgement = 0;
  flags = 0;
  /** Where the header of TCP begins. */
  start = 0;
  /** Payload: from its first byte to the one after its last. */
  payload = 0;
  end = 0;
  /** Who sends to whom; of IPv4 one word of each four. */
  readonly key = new Int32Array(KEY_WORDS);

  /** Reads the packet at `from` up to `to`. On a fault the fields mean nothing. */
  read(bytes: Uint8Array, from: number, to: number): SegmentFault | undefined {
    const available = to - from;
    if (available < 1 || to > bytes.length) return 'cut-packet';
    this.version = bytes[from]! >>> 4;
    if (this.version === 4) return this.readIPv4(bytes, from, available);
    if (this.version === 6) return this.readIPv6(bytes, from, available);
    return 'not-tcp';
  }

  /** Whether its checksum is right: of the packet that was read, which lies where it lay. */
  checksumHolds(bytes: Uint8Array): boolean {
    const { key } = this;
    const start = this.start;
    let sum = PROTOCOL_TCP + this.end - start;
    for (let index = 0; index < 8; index++) sum += (key[index]! >>> 16) + (key[index]! & 0xffff);
    let at = start;
    for (; at + 1 < this.end; at += 2) sum += (bytes[at]! << 8) | bytes[at + 1]!;
    if (at < this.end) sum += bytes[at]! << 8;
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
    return sum === 0xffff;
  }

  private readIPv4(bytes: Uint8Array, from: number, available: number): SegmentFault | undefined {
    if (available < IPV4_HEADER) return 'cut-packet';
    const header = (bytes[from]! & 0x0f) * 4;
    const length = (bytes[from + 2]! << 8) | bytes[from + 3]!;
    if (header < IPV4_HEADER || length < header) return 'bad-header';
    if (length > available) return 'cut-packet';
    // The offset, or the flag that more of them follow.
    if (((bytes[from + 6]! & 0x3f) | bytes[from + 7]!) !== 0) return 'fragment';
    if (bytes[from + 9] !== PROTOCOL_TCP) return 'not-tcp';
    const key = this.key;
    key[0] = word(bytes, from + 12);
    key[1] = key[2] = key[3] = 0;
    key[4] = word(bytes, from + 16);
    key[5] = key[6] = key[7] = 0;
    return this.readTcp(bytes, from + header, from + length);
  }

  private readIPv6(bytes: Uint8Array, from: number, available: number): SegmentFault | undefined {
    if (available < IPV6_HEADER) return 'cut-packet';
    const length = IPV6_HEADER + ((bytes[from + 4]! << 8) | bytes[from + 5]!);
    if (length > available) return 'cut-packet';
    const end = from + length;
    let next = bytes[from + 6]!;
    let at = from + IPV6_HEADER;
    for (let extensions = 0; next !== PROTOCOL_TCP; extensions++) {
      const known =
        next === HOP_BY_HOP || next === ROUTING || next === FRAGMENT || next === AUTHENTICATION || next === DESTINATION;
      if (!known) return 'not-tcp';
      if (extensions === EXTENSIONS_MAX || at + 8 > end) return 'bad-header';
      // A whole packet may say that it is its own only fragment (RFC 6946): hosts take it as it is.
      if (next === FRAGMENT && (((bytes[at + 2]! << 8) | bytes[at + 3]!) & 0xfff9) !== 0) return 'fragment';
      if (next === ROUTING && bytes[at + 3] !== 0) return 'routing-header';
      const units = bytes[at + 1]!;
      const size = next === FRAGMENT ? 8 : next === AUTHENTICATION ? (units + 2) * 4 : (units + 1) * 8;
      if (at + size > end) return 'bad-header';
      next = bytes[at]!;
      at += size;
    }
    for (let index = 0; index < 8; index++) this.key[index] = word(bytes, from + 8 + index * 4);
    return this.readTcp(bytes, at, end);
  }

  private readTcp(bytes: Uint8Array, at: number, end: number): SegmentFault | undefined {
    if (at + TCP_HEADER > end) return 'bad-header';
    const header = (bytes[at + 12]! >>> 4) * 4;
    if (header < TCP_HEADER || at + header > end) return 'bad-header';
    this.start = at;
    this.key[8] = word(bytes, at);
    this.sequence = word(bytes, at + 4);
    this.acknowledgement = word(bytes, at + 8);
    this.payload = at + header;
    this.end = end;
    const flags = bytes[at + 13]!;
    this.flags = flags;
    // Of conntrack's table of valid flags what matters here, so that a test without a kernel has it too.
    if ((flags & (TCP_SYN | TCP_ACK | TCP_RST)) === 0) return 'bad-flags';
    if ((flags & TCP_SYN) !== 0 && (flags & (TCP_FIN | TCP_RST)) !== 0) return 'bad-flags';
    if ((flags & TCP_RST) !== 0 && ((flags & TCP_FIN) !== 0 || this.payload !== end)) return 'bad-flags';
    return undefined;
  }
}

/** The other direction's ends, into `back`. */
export function turn({ key, version }: Segment, back: { version: number; key: Int32Array }): void {
  back.version = version;
  for (let at = 0; at < 4; at++) {
    back.key[at] = key[at + 4]!;
    back.key[at + 4] = key[at]!;
  }
  back.key[8] = (key[8]! << 16) | (key[8]! >>> 16);
}

/** Signed, since a number above 2^31 is no small integer to V8. */
function word(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!;
}
