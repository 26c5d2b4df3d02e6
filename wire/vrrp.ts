/**
 * VRRPv3 advertisements (RFC 9568) over IPv4 and IPv6, as whole packets and frames. Reading checks what §7.1 asks of a
 * receiver, and the checksum of the IPv4 header too: who reads below the kernel's IP reads what nobody has checked.
 * The checksum over IPv4: RFC 5798 was read by most as with a pseudo header (keepalived, FRR, Wireshark), RFC 9568 §1.1
 * says without. Both are right on receipt; ours has one unless it is asked for without.
 * Leaves out: version 2, authentication.
 */

import { addressBytes, ipv4Text, ipv6Text } from './address-text.ts';
import { type Malformed, putU16, u8, u16 } from './bytes.ts';
import { buildFrame, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6 } from './ethernet.ts';
import { buildIp, checksum, parsePacket, transportChecksum } from './ip.ts';

export const PROTOCOL_VRRP = 112;
export const VRRP_GROUP = { 4: '224.0.0.18', 6: 'ff02::12' } as const;
export const VRRP_GROUP_MAC = { 4: '01:00:5e:00:00:12', 6: '33:33:00:00:00:12' } as const;
/** Of a router that ends or gives up, and of one that owns the addresses. */
export const PRIORITY_RESIGNS = 0;
export const PRIORITY_OWNER = 255;
/** Centiseconds, in 12 bits. */
export const INTERVAL_MAX = 0xfff;
/** So many fit into a packet of 1,500 bytes (or into the count). */
export const ADVERT_ADDRESSES_MAX = { 4: 255, 6: 90 } as const;

const VERSION_AND_TYPE = 0x31;
const VRRP_HEADER = 8;
const HOP_LIMIT = 255;
/** Traffic class of routing protocols (CS6). */
const INTERNETWORK_CONTROL = 0xc0;
const sizes = { 4: 4, 6: 16 } as const;
const etherTypes = { 4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6 } as const;

export interface Advert {
  family: 4 | 6;
  /** Primary address of who sends it; of IPv6 a link-local one. */
  source: string;
  /** Virtual router, 1 to 255. */
  vrid: number;
  priority: number;
  /** Max Advertise Interval in centiseconds, 1 to 4095. */
  interval: number;
  /** Of its family; of IPv6 the first should be link-local. */
  addresses: string[];
  /** IPv4: the checksum is without a pseudo header. */
  plainChecksum?: boolean;
}

/** Why a packet is no advertisement that counts. */
export type AdvertFault =
  | Malformed
  | 'not-vrrp'
  | 'fragment'
  | 'hop-limit'
  | 'destination'
  | 'version'
  | 'type'
  | 'checksum'
  | 'vrid'
  | 'interval'
  | 'no-addresses';
export type DecodedAdvert = { ok: true; value: Advert } | { ok: false; reason: AdvertFault };

const fault = (reason: AdvertFault): { ok: false; reason: AdvertFault } => ({ ok: false, reason });

/** An IP packet. What cannot be said is a programmer's mistake. */
export function buildAdvert(advert: Advert): Uint8Array {
  const { family, source, vrid, priority, interval, addresses } = advert;
  const size = sizes[family];
  within('VRID', vrid, 1, 255);
  within('priority', priority, 0, 255);
  within('advertise interval', interval, 1, INTERVAL_MAX);
  within('count of addresses', addresses.length, 1, ADVERT_ADDRESSES_MAX[family]);
  const message = new Uint8Array(VRRP_HEADER + size * addresses.length);
  message.set([VERSION_AND_TYPE, vrid, priority, addresses.length, interval >>> 8, interval]);
  for (const [index, address] of addresses.entries()) {
    const bytes = addressBytes(address);
    if (bytes.length !== size) throw new TypeError(`advertisement of IPv${family} with ${address}`);
    message.set(bytes, VRRP_HEADER + size * index);
  }
  const ends = { source, destination: VRRP_GROUP[family], hopLimit: HOP_LIMIT };
  const plain = family === 4 && advert.plainChecksum === true;
  putU16(message, 6, plain ? checksum(message) : transportChecksum(ends, PROTOCOL_VRRP, message));
  const packet = buildIp(ends, PROTOCOL_VRRP, message);
  if (family === 6) putU16(packet, 0, 0x6000 | (INTERNETWORK_CONTROL << 4));
  else {
    packet[1] = INTERNETWORK_CONTROL;
    putU16(packet, 10, 0);
    putU16(packet, 10, checksum(packet.subarray(0, 20)));
  }
  return packet;
}

function within(what: string, value: number, from: number, to: number): void {
  if (!Number.isInteger(value) || value < from || value > to) throw new RangeError(`${what} ${value}`);
}

/** The packet as a frame to the group. `mac`: of the interface, which is where neighbours are told the addresses are. */
export function buildAdvertFrame(mac: string, advert: Advert): Uint8Array {
  const { family } = advert;
  return buildFrame({
    destination: VRRP_GROUP_MAC[family],
    source: mac,
    etherType: etherTypes[family],
    payload: buildAdvert(advert),
  });
}

/** From an IP packet. Bytes behind the addresses are borne, as §7.1 does, if the checksum covers them. */
export function parseAdvert(bytes: Uint8Array): DecodedAdvert {
  const parsed = parsePacket(bytes);
  if (!parsed.ok) return parsed;
  const packet = parsed.value;
  const { family, transportOffset: at, end } = packet;
  if (packet.protocol !== PROTOCOL_VRRP) return fault('not-vrrp');
  if (packet.laterFragment || packet.moreFragments) return fault('fragment');
  if (end < packet.length || at + VRRP_HEADER > end) return fault('truncated');
  if (family === 4 && checksum(bytes.subarray(0, at)) !== 0) return fault('checksum');
  if (packet.hopLimit !== HOP_LIMIT) return fault('hop-limit');
  if (packet.destination !== VRRP_GROUP[family]) return fault('destination');
  const first = u8(bytes, at);
  if (first >>> 4 !== VERSION_AND_TYPE >>> 4) return fault('version');
  if ((first & 0x0f) !== (VERSION_AND_TYPE & 0x0f)) return fault('type');
  const count = u8(bytes, at + 3);
  if (at + VRRP_HEADER + count * sizes[family] > end) return fault('bad-length');
  const message = bytes.subarray(at, end);
  const plainChecksum = transportChecksum(packet, PROTOCOL_VRRP, message) !== 0;
  if (plainChecksum && (family === 6 || checksum(message) !== 0)) return fault('checksum');
  const vrid = u8(bytes, at + 1);
  if (vrid === 0) return fault('vrid');
  // The four bits before it are reserved, and mean nothing on receipt.
  const interval = u16(bytes, at + 4) & INTERVAL_MAX;
  if (interval === 0) return fault('interval');
  if (count === 0) return fault('no-addresses');
  const text = family === 4 ? ipv4Text : ipv6Text;
  const addresses = Array.from({ length: count }, (_, index) => text(bytes, at + VRRP_HEADER + index * sizes[family]));
  const advert: Advert = { family, source: packet.source, vrid, priority: u8(bytes, at + 2), interval, addresses };
  return { ok: true, value: plainChecksum ? { ...advert, plainChecksum } : advert };
}

/** From an Ethernet frame, whatever its addresses: the group's own may come to a port that hears all. */
export function parseAdvertFrame(frame: Uint8Array): DecodedAdvert {
  if (frame.length < ETHERNET_HEADER) return fault('truncated');
  const etherType = u16(frame, 12);
  if (etherType !== ETHERTYPE_IPV4 && etherType !== ETHERTYPE_IPV6) return fault('not-vrrp');
  const decoded = parseAdvert(frame.subarray(ETHERNET_HEADER));
  return decoded.ok && etherTypes[decoded.value.family] !== etherType ? fault('bad-version') : decoded;
}
