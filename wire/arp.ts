/**
 * ARP for IPv4 over Ethernet (RFC 826), and the gratuitous announcements of RFC 5227 §3: a request and a reply, both
 * with our address as sender and target, since switches and hosts differ in which of the two they learn from.
 */

import { addressBytes, ipv4Text, macBytes, macText } from './address-text.ts';
import { bytesOfU16, type Decoded, join, malformed, u16, u32 } from './bytes.ts';
import { buildFrame, ETHERTYPE_ARP, ETHERTYPE_IPV4, MAC_BROADCAST } from './ethernet.ts';

export const ARP_REQUEST = 1;
export const ARP_REPLY = 2;
const ARP_LENGTH = 28;
/** Hardware type Ethernet, protocol IPv4, address lengths 6 and 4. */
const ARP_HEAD = join([bytesOfU16(1), bytesOfU16(ETHERTYPE_IPV4), Uint8Array.of(6, 4)]);

export interface Arp {
  operation: number;
  senderMac: string;
  senderAddress: string;
  targetMac: string;
  targetAddress: string;
}

export function buildArp(arp: Arp): Uint8Array {
  return join([
    ARP_HEAD,
    bytesOfU16(arp.operation),
    macBytes(arp.senderMac),
    ipv4Bytes(arp.senderAddress),
    macBytes(arp.targetMac),
    ipv4Bytes(arp.targetAddress),
  ]);
}

function ipv4Bytes(address: string): Uint8Array {
  const bytes = addressBytes(address);
  if (bytes.length !== 4) throw new TypeError(`ARP for ${address}`);
  return bytes;
}

export function parseArp(bytes: Uint8Array): Decoded<Arp> {
  if (bytes.length < ARP_LENGTH) return malformed('truncated');
  if (u32(bytes, 0) !== u32(ARP_HEAD, 0) || u16(bytes, 4) !== u16(ARP_HEAD, 4)) return malformed('bad-type');
  return {
    ok: true,
    value: {
      operation: u16(bytes, 6),
      senderMac: macText(bytes, 8),
      senderAddress: ipv4Text(bytes, 14),
      targetMac: macText(bytes, 18),
      targetAddress: ipv4Text(bytes, 24),
    },
  };
}

/** Broadcast frames that say: `address` is at `mac`. */
export function gratuitousArp(mac: string, address: string): Uint8Array[] {
  return [ARP_REQUEST, ARP_REPLY].map((operation) =>
    buildFrame({
      destination: MAC_BROADCAST,
      source: mac,
      etherType: ETHERTYPE_ARP,
      payload: buildArp({
        operation,
        senderMac: mac,
        senderAddress: address,
        targetMac: operation === ARP_REQUEST ? '00:00:00:00:00:00' : MAC_BROADCAST,
        targetAddress: address,
      }),
    }),
  );
}
