/**
 * IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792) and ICMPv6 (RFC 4443): read the
 * headers of a packet that may be cut short (nflog's snaplen, nfqueue's copy range), build whole packets for
 * announcements and tests. Reading does not verify checksums: the kernel has done so, or offloads them.
 * Leaves out: IPv4 options and TCP options on the building side, reassembly, SCTP chunks (its ports are read).
 */

import { addressBytes, ipv4Text, ipv6Text } from './address-text.ts';
import { bytesOfU16, bytesOfU32, type Decoded, join, malformed, putU16, u8, u16, u32 } from './bytes.ts';

export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_ICMPV6 = 58;
export const PROTOCOL_SCTP = 132;
const PROTOCOL_UDPLITE = 136;
const PROTOCOL_DCCP = 33;

const EXTENSION_HOP_BY_HOP = 0;
const EXTENSION_ROUTING = 43;
const EXTENSION_FRAGMENT = 44;
const EXTENSION_AUTHENTICATION = 51;
const EXTENSION_DESTINATION = 60;
/** Types with an identifier and a sequence number (RFC 792, 950, 4443). */
const icmpQueries: Record<typeof PROTOCOL_ICMP | typeof PROTOCOL_ICMPV6, ReadonlySet<number>> = {
  [PROTOCOL_ICMP]: new Set([0, 8, 13, 14, 15, 16, 17, 18]),
  [PROTOCOL_ICMPV6]: new Set([128, 129]),
};

/** More in a row than any honest packet has. */
const EXTENSIONS_MAX = 8;

export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_PSH = 0x08;
export const TCP_ACK = 0x10;

export interface Packet {
  family: 4 | 6;
  source: string;
  destination: string;
  /** The protocol after all IPv6 extension headers. */
  protocol: number;
  /** TTL or hop limit. */
  hopLimit: number;
  /** Length by the IP header: more than the bytes at hand if the capture is cut. */
  length: number;
  /** Not the first fragment: there is no transport header in it. */
  laterFragment: boolean;
  moreFragments: boolean;
  /** Ports of TCP, UDP, UDP-Lite, SCTP and DCCP. */
  sourcePort?: number;
  destinationPort?: number;
  tcpFlags?: number;
  sequence?: number;
  acknowledgement?: number;
  icmpType?: number;
  icmpCode?: number;
  /** Of queries and their answers: echo; timestamp, information and address mask of IPv4. */
  icmpId?: number;
  icmpSequence?: number;
  /** Where the transport header starts. */
  transportOffset: number;
  /** Where the transport's payload starts; never past the end of the bytes. */
  payloadOffset: number;
  /** Where it ends: the IP length, or the end of the bytes. */
  end: number;
}

/** Reads the headers as far as they are there: a transport header that is cut off leaves its fields undefined. */
export function parsePacket(bytes: Uint8Array): Decoded<Packet> {
  const version = u8(bytes, 0) >>> 4;
  if (bytes.length < 20) return malformed('truncated');
  if (version === 4) return parseIPv4(bytes);
  if (version === 6) return parseIPv6(bytes);
  return malformed('bad-version');
}

function parseIPv4(bytes: Uint8Array): Decoded<Packet> {
  const headerLength = (u8(bytes, 0) & 0x0f) * 4;
  const length = u16(bytes, 2);
  if (headerLength < 20 || length < headerLength) return malformed('bad-length');
  if (bytes.length < headerLength) return malformed('truncated');
  const fragment = u16(bytes, 6);
  const packet: Packet = {
    family: 4,
    source: ipv4Text(bytes, 12),
    destination: ipv4Text(bytes, 16),
    protocol: u8(bytes, 9),
    hopLimit: u8(bytes, 8),
    length,
    laterFragment: (fragment & 0x1fff) !== 0,
    moreFragments: (fragment & 0x2000) !== 0,
    transportOffset: headerLength,
    payloadOffset: headerLength,
    end: Math.min(length, bytes.length),
  };
  readTransport(bytes, packet);
  return { ok: true, value: packet };
}

function parseIPv6(bytes: Uint8Array): Decoded<Packet> {
  if (bytes.length < 40) return malformed('truncated');
  const length = 40 + u16(bytes, 4);
  const end = Math.min(length, bytes.length);
  const packet: Packet = {
    family: 6,
    source: ipv6Text(bytes, 8),
    destination: ipv6Text(bytes, 24),
    protocol: u8(bytes, 6),
    hopLimit: u8(bytes, 7),
    length,
    laterFragment: false,
    moreFragments: false,
    transportOffset: 40,
    payloadOffset: 40,
    end,
  };
  for (let extensions = 0; isExtension(packet.protocol); extensions++) {
    if (extensions === EXTENSIONS_MAX) return malformed('bad-header');
    const at = packet.transportOffset;
    if (at + 8 > end) return malformed('truncated');
    if (packet.protocol === EXTENSION_FRAGMENT) {
      packet.laterFragment = (u16(bytes, at + 2) & 0xfff8) !== 0;
      packet.moreFragments = (u8(bytes, at + 3) & 1) !== 0;
    }
    const units = u8(bytes, at + 1);
    const size =
      packet.protocol === EXTENSION_FRAGMENT
        ? 8
        : packet.protocol === EXTENSION_AUTHENTICATION
          ? (units + 2) * 4
          : (units + 1) * 8;
    if (at + size > end) return malformed('truncated');
    packet.protocol = u8(bytes, at);
    packet.transportOffset = at + size;
    packet.payloadOffset = at + size;
    // What follows a later fragment's header is data, whatever its first bytes look like.
    if (packet.laterFragment) break;
  }
  readTransport(bytes, packet);
  return { ok: true, value: packet };
}

function isExtension(protocol: number): boolean {
  return (
    protocol === EXTENSION_HOP_BY_HOP ||
    protocol === EXTENSION_ROUTING ||
    protocol === EXTENSION_FRAGMENT ||
    protocol === EXTENSION_AUTHENTICATION ||
    protocol === EXTENSION_DESTINATION
  );
}

function readTransport(bytes: Uint8Array, packet: Packet): void {
  const { protocol, transportOffset: at, end } = packet;
  if (packet.laterFragment) return;
  switch (protocol) {
    case PROTOCOL_TCP:
    case PROTOCOL_UDP:
    case PROTOCOL_UDPLITE:
    case PROTOCOL_SCTP:
    case PROTOCOL_DCCP: {
      if (at + 4 > end) return;
      packet.sourcePort = u16(bytes, at);
      packet.destinationPort = u16(bytes, at + 2);
      let size = protocol === PROTOCOL_SCTP || protocol === PROTOCOL_DCCP ? 12 : 8;
      if (protocol === PROTOCOL_TCP) {
        if (at + 14 > end) return;
        packet.sequence = u32(bytes, at + 4);
        packet.acknowledgement = u32(bytes, at + 8);
        packet.tcpFlags = u8(bytes, at + 13);
        size = Math.max(20, (u8(bytes, at + 12) >>> 4) * 4);
      }
      packet.payloadOffset = Math.min(at + size, end);
      return;
    }
    case PROTOCOL_ICMP:
    case PROTOCOL_ICMPV6: {
      if (at + 2 > end) return;
      const type = u8(bytes, at);
      packet.icmpType = type;
      packet.icmpCode = u8(bytes, at + 1);
      if (icmpQueries[protocol].has(type) && at + 8 <= end) {
        packet.icmpId = u16(bytes, at + 4);
        packet.icmpSequence = u16(bytes, at + 6);
      }
      packet.payloadOffset = Math.min(at + 8, end);
    }
  }
}

/** One's complement sum of RFC 1071 over parts that are each of even length (the last may be odd). */
export function checksum(...parts: readonly Uint8Array[]): number {
  let sum = 0;
  for (const part of parts) for (let at = 0; at < part.length; at += 2) sum += u16(part, at);
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return ~sum & 0xffff;
}

export interface Endpoints {
  source: string;
  destination: string;
  /** Default 64. */
  hopLimit?: number;
}

/** A packet of any protocol around a finished transport header and payload. */
export function buildIp(ends: Endpoints, protocol: number, transport: Uint8Array): Uint8Array {
  const source = addressBytes(ends.source);
  const destination = addressBytes(ends.destination);
  if (source.length !== destination.length) throw new TypeError(`${ends.source} and ${ends.destination}: two families`);
  const hopLimit = ends.hopLimit ?? 64;
  if (source.length === 16) {
    const head = Uint8Array.of(0x60, 0, 0, 0, transport.length >>> 8, transport.length, protocol, hopLimit);
    return join([head, source, destination, transport]);
  }
  const length = 20 + transport.length;
  const head = join([
    Uint8Array.of(0x45, 0, length >>> 8, length, 0, 0, 0x40, 0, hopLimit, protocol, 0, 0),
    source,
    destination,
  ]);
  putU16(head, 10, checksum(head));
  return join([head, transport]);
}

/** Checksum with the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). */
export function transportChecksum(ends: Endpoints, protocol: number, transport: Uint8Array): number {
  const pseudo = join([bytesOfU32(transport.length), bytesOfU32(protocol)]);
  return checksum(addressBytes(ends.source), addressBytes(ends.destination), pseudo, transport);
}

export interface TcpSegment extends Endpoints {
  sourcePort: number;
  destinationPort: number;
  /** TCP_SYN, TCP_ACK …, or-ed. */
  flags: number;
  sequence?: number;
  acknowledgement?: number;
  window?: number;
  payload?: Uint8Array;
}

export function buildTcp(segment: TcpSegment): Uint8Array {
  const transport = join([
    bytesOfU16(segment.sourcePort),
    bytesOfU16(segment.destinationPort),
    bytesOfU32(segment.sequence ?? 0),
    bytesOfU32(segment.acknowledgement ?? 0),
    Uint8Array.of(0x50, segment.flags),
    bytesOfU16(segment.window ?? 0xffff),
    new Uint8Array(4),
    segment.payload ?? new Uint8Array(0),
  ]);
  putU16(transport, 16, transportChecksum(segment, PROTOCOL_TCP, transport));
  return buildIp(segment, PROTOCOL_TCP, transport);
}

export interface UdpDatagram extends Endpoints {
  sourcePort: number;
  destinationPort: number;
  payload?: Uint8Array;
}

export function buildUdp(datagram: UdpDatagram): Uint8Array {
  const payload = datagram.payload ?? new Uint8Array(0);
  const transport = join([
    bytesOfU16(datagram.sourcePort),
    bytesOfU16(datagram.destinationPort),
    bytesOfU16(8 + payload.length),
    new Uint8Array(2),
    payload,
  ]);
  // A sum of zero goes out as all ones: zero would mean "no checksum".
  putU16(transport, 6, transportChecksum(datagram, PROTOCOL_UDP, transport) || 0xffff);
  return buildIp(datagram, PROTOCOL_UDP, transport);
}

export interface IcmpQuery extends Endpoints {
  id: number;
  sequence: number;
  payload?: Uint8Array;
}

export interface IcmpEcho extends IcmpQuery {
  /** An echo reply rather than a request. */
  reply?: boolean;
}

/** ICMP or ICMPv6, by the family of the addresses. */
export function buildIcmpEcho(echo: IcmpEcho): Uint8Array {
  const v6 = echo.source.includes(':');
  return buildIcmp({ ...echo, type: v6 ? (echo.reply ? 129 : 128) : echo.reply ? 0 : 8, code: 0 });
}

/** A message of any type that has an identifier and a sequence number. */
export function buildIcmp(query: IcmpQuery & { type: number; code: number }): Uint8Array {
  const v6 = query.source.includes(':');
  const transport = join([
    Uint8Array.of(query.type, query.code, 0, 0),
    bytesOfU16(query.id),
    bytesOfU16(query.sequence),
    query.payload ?? new Uint8Array(0),
  ]);
  const protocol = v6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP;
  putU16(transport, 2, v6 ? transportChecksum(query, protocol, transport) : checksum(transport));
  return buildIp(query, protocol, transport);
}
