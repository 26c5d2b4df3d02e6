/**
 * Neighbour advertisements (RFC 4861 §4.4, §7.2.6): the unsolicited one, with the override flag, by which neighbours
 * replace the link-layer address that they hold for ours. Reading checks what §7.1.2 asks of a receiver.
 * Leaves out: solicitations, router messages, secure neighbour discovery.
 */

import { addressBytes, ipv6Text, macBytes, macText } from './address-text.ts';
import { type Decoded, join, malformed, putU16, u8 } from './bytes.ts';
import { buildFrame, ETHERTYPE_IPV6 } from './ethernet.ts';
import { buildIp, PROTOCOL_ICMPV6, parsePacket, transportChecksum } from './ip.ts';

const NEIGHBOUR_ADVERTISEMENT = 136;
const OPTION_TARGET_MAC = 2;
const FLAG_ROUTER = 0x80;
const FLAG_SOLICITED = 0x40;
const FLAG_OVERRIDE = 0x20;
const ALL_NODES = 'ff02::1';
const ALL_NODES_MAC = '33:33:00:00:00:01';

export interface NeighbourAdvertisement {
  source: string;
  destination: string;
  target: string;
  router: boolean;
  solicited: boolean;
  override: boolean;
  targetMac?: string;
}

/** Frame to all nodes of the link: `address` is at `mac`. A gateway is a router, and losing that flag costs routes. */
export function unsolicitedAdvertisement(mac: string, address: string, router = true): Uint8Array {
  const ends = { source: address, destination: ALL_NODES, hopLimit: 255 };
  const transport = join([
    Uint8Array.of(NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, FLAG_OVERRIDE | (router ? FLAG_ROUTER : 0), 0, 0, 0),
    addressBytes(address),
    Uint8Array.of(OPTION_TARGET_MAC, 1),
    macBytes(mac),
  ]);
  putU16(transport, 2, transportChecksum(ends, PROTOCOL_ICMPV6, transport));
  return buildFrame({
    destination: ALL_NODES_MAC,
    source: mac,
    etherType: ETHERTYPE_IPV6,
    payload: buildIp(ends, PROTOCOL_ICMPV6, transport),
  });
}

/** From an IPv6 packet. */
export function parseNeighbourAdvertisement(bytes: Uint8Array): Decoded<NeighbourAdvertisement> {
  const parsed = parsePacket(bytes);
  if (!parsed.ok) return parsed;
  const packet = parsed.value;
  const at = packet.transportOffset;
  if (packet.family !== 6 || packet.protocol !== PROTOCOL_ICMPV6 || packet.icmpType !== NEIGHBOUR_ADVERTISEMENT) {
    return malformed('bad-type');
  }
  if (packet.hopLimit !== 255 || packet.icmpCode !== 0) return malformed('bad-header');
  if (packet.end < packet.length || at + 24 > packet.end) return malformed('truncated');
  const transport = bytes.subarray(at, packet.end);
  if (transportChecksum(packet, PROTOCOL_ICMPV6, transport) !== 0) return malformed('bad-header');
  const flags = u8(transport, 4);
  let targetMac: string | undefined;
  for (let option = 24; option < transport.length; ) {
    const size = u8(transport, option + 1) * 8;
    if (size === 0 || option + size > transport.length) return malformed('bad-length');
    if (u8(transport, option) === OPTION_TARGET_MAC) targetMac = macText(transport, option + 2);
    option += size;
  }
  return {
    ok: true,
    value: {
      source: packet.source,
      destination: packet.destination,
      target: ipv6Text(transport, 8),
      router: (flags & FLAG_ROUTER) !== 0,
      solicited: (flags & FLAG_SOLICITED) !== 0,
      override: (flags & FLAG_OVERRIDE) !== 0,
      ...(targetMac === undefined ? {} : { targetMac }),
    },
  };
}
