/**
 * Ethernet II frames: header and payload. Leaves out 802.1Q tags (they read as an ether type) and the frame check
 * sequence, which the device appends.
 */

import { macBytes, macText } from './address-text.ts';
import { bytesOfU16, type Decoded, join, malformed, u16 } from './bytes.ts';

export const ETHERNET_HEADER = 14;
export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_IPV6 = 0x86dd;
export const MAC_BROADCAST = 'ff:ff:ff:ff:ff:ff';

export interface Frame {
  destination: string;
  source: string;
  etherType: number;
  /** A view when parsed. */
  payload: Uint8Array;
}

export function buildFrame(frame: Frame): Uint8Array {
  return join([macBytes(frame.destination), macBytes(frame.source), bytesOfU16(frame.etherType), frame.payload]);
}

export function parseFrame(bytes: Uint8Array): Decoded<Frame> {
  if (bytes.length < ETHERNET_HEADER) return malformed('truncated');
  return {
    ok: true,
    value: {
      destination: macText(bytes, 0),
      source: macText(bytes, 6),
      etherType: u16(bytes, 12),
      payload: bytes.subarray(ETHERNET_HEADER),
    },
  };
}
