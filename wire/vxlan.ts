/**
 * VXLAN (RFC 7348 §5): the eight bytes between UDP and the inner Ethernet frame. The kernel's device does this for
 * traffic; this codec is for tests and diagnosis. Leaves out the group policy and generic protocol extensions, whose
 * flag bits make a header malformed here.
 */

import { type Decoded, join, malformed, u8, u32 } from './bytes.ts';
import { ETHERNET_HEADER, type Frame, parseFrame } from './ethernet.ts';

export const VXLAN_HEADER = 8;
/** The I flag: the VNI is valid. */
const FLAG_VNI = 0x08;

/** UDP payload around a finished Ethernet frame. */
export function encapVxlan(vni: number, frame: Uint8Array): Uint8Array {
  if (!Number.isInteger(vni) || vni < 0 || vni > 0xffffff) throw new RangeError(`VNI ${vni}`);
  return join([Uint8Array.of(FLAG_VNI, 0, 0, 0, vni >>> 16, vni >>> 8, vni, 0), frame]);
}

export interface VxlanFrame {
  vni: number;
  frame: Frame;
}

export function decapVxlan(bytes: Uint8Array): Decoded<VxlanFrame> {
  if (bytes.length < VXLAN_HEADER + ETHERNET_HEADER) return malformed('truncated');
  if (u8(bytes, 0) !== FLAG_VNI) return malformed('bad-header');
  const frame = parseFrame(bytes.subarray(VXLAN_HEADER));
  return frame.ok ? { ok: true, value: { vni: u32(bytes, 4) >>> 8, frame: frame.value } } : frame;
}
