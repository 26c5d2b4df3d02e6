/**
 * Big-endian numbers and joins on plain `Uint8Array`s, and what a decoder gives back.
 * Network headers and nfnetlink attributes are big-endian; netlink's own headers are host order (little-endian on
 * every machine that Sluice runs on) and are read in nlattr.ts.
 * Readers do no bounds check of their own: the caller has compared offset and end before.
 */

/** Why bytes were not understood. */
export type Malformed =
  | 'truncated'
  | 'bad-length'
  | 'bad-version'
  | 'bad-type'
  | 'bad-attribute'
  | 'bad-header'
  | 'no-tuple'
  | 'no-header';
export type Decoded<T> = { ok: true; value: T } | { ok: false; reason: Malformed };

export function malformed(reason: Malformed): { ok: false; reason: Malformed } {
  return { ok: false, reason };
}

export function u8(bytes: Uint8Array, at: number): number {
  return bytes[at] ?? 0;
}

export function u16(bytes: Uint8Array, at: number): number {
  return (u8(bytes, at) << 8) | u8(bytes, at + 1);
}

export function u32(bytes: Uint8Array, at: number): number {
  return ((u8(bytes, at) << 24) | (u8(bytes, at + 1) << 16) | (u8(bytes, at + 2) << 8) | u8(bytes, at + 3)) >>> 0;
}

export function u64(bytes: Uint8Array, at: number): bigint {
  return (BigInt(u32(bytes, at)) << 32n) | BigInt(u32(bytes, at + 4));
}

/** A 64-bit counter as a number: exact below 2^53, which a packet or byte counter of one flow does not pass. */
export function counter(bytes: Uint8Array, at: number): number {
  return u32(bytes, at) * 0x1_0000_0000 + u32(bytes, at + 4);
}

export function putU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

export function bytesOfU8(value: number): Uint8Array {
  return Uint8Array.of(value);
}

export function bytesOfU16(value: number): Uint8Array {
  return Uint8Array.of(value >>> 8, value);
}

export function bytesOfU32(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

export function join(parts: readonly Uint8Array[]): Uint8Array {
  let length = 0;
  for (const part of parts) length += part.length;
  const joined = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}
