/**
 * Bytes that anybody can compute: 8-byte big-endian words, each the number of its own place (word n is n), so that a
 * byte lost, doubled, swapped or taken from elsewhere is seen whatever its distance. `/bytes/N` sends them.
 */
import { createHash } from 'node:crypto';

export const chunkSize = 65_536;

/** Bytes `offset` to `offset + length`; `offset` is a multiple of 8. */
export function contentBytes(offset: number, length: number): Buffer {
  if (offset % 8 !== 0) throw new Error(`offset ${offset} is not a multiple of 8`);
  const words = Math.ceil(length / 8);
  const bytes = Buffer.allocUnsafe(words * 8);
  const first = offset / 8;
  for (let i = 0; i < words; i++) {
    const word = first + i;
    bytes.writeUInt32BE(Math.floor(word / 0x1_0000_0000), i * 8);
    bytes.writeUInt32BE(word >>> 0, i * 8 + 4);
  }
  return bytes.subarray(0, length);
}

/** SHA-256, in hexadecimal, of the first `length` bytes. */
export function contentHash(length: number): string {
  const hash = createHash('sha256');
  for (let offset = 0; offset < length; offset += chunkSize) {
    hash.update(contentBytes(offset, Math.min(chunkSize, length - offset)));
  }
  return hash.digest('hex');
}
