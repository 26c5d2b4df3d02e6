/**
 * Addresses between packets and text: bytes → canonical text (RFC 5952; a v4-mapped IPv6 address keeps its hex groups,
 * as in api/address.ts), text → bytes for what Sluice itself builds, and MAC addresses.
 * The reading side runs once per event, hence without the bigint that api/address.ts calculates with.
 */

import { isIPv4, isIPv6 } from 'node:net';
import { putU16, u8, u16, u32 } from './bytes.ts';

export function ipv4Text(bytes: Uint8Array, at: number): string {
  return `${u8(bytes, at)}.${u8(bytes, at + 1)}.${u8(bytes, at + 2)}.${u8(bytes, at + 3)}`;
}

/** RFC 5952 §4: lower case, no leading zeros, `::` for the first of the longest runs of at least two zero groups. */
export function ipv6Text(bytes: Uint8Array, at: number): string {
  let runStart = -1;
  let runLength = 1;
  for (let group = 0; group < 8; group++) {
    let length = 0;
    while (group + length < 8 && u16(bytes, at + 2 * (group + length)) === 0) length++;
    if (length > runLength) {
      runStart = group;
      runLength = length;
    }
    group += length;
  }
  let text = '';
  for (let group = 0; group < 8; group++) {
    if (group === runStart) {
      text += '::';
      group += runLength - 1;
      continue;
    }
    if (text !== '' && !text.endsWith('::')) text += ':';
    text += u16(bytes, at + 2 * group).toString(16);
  }
  return text;
}

/** The text of the 4 or 16 bytes at an offset. */
export type AddressText = (bytes: Uint8Array, at: number, family: 4 | 6) => string;

export const plainText: AddressText = (bytes, at, family) => (family === 4 ? ipv4Text(bytes, at) : ipv6Text(bytes, at));

/** So many addresses of each family are remembered at most. */
const SLOTS_BITS = 16;

/**
 * The same for addresses that come again and again, as in the connection table: the text is made once, and whoever
 * looks it up in a Map finds its hash made. Each address has one slot, in which the last of its slot's is remembered: no
 * choice of addresses costs more than to make the text, or takes more memory.
 */
export function rememberedText(): AddressText {
  const known = { 4: remembered(1, ipv4Text), 6: remembered(4, ipv6Text) };
  return (bytes, at, family) => known[family](bytes, at);
}

function remembered(words: 1 | 4, text: (bytes: Uint8Array, at: number) => string) {
  const keys = new Uint32Array(words << SLOTS_BITS);
  const texts = new Array<string>(1 << SLOTS_BITS).fill('');
  return (bytes: Uint8Array, at: number): string => {
    let hash = 0;
    for (let word = 0; word < words; word++) {
      hash = Math.imul(hash ^ u32(bytes, at + 4 * word), 0x9e3779b1);
      hash ^= hash >>> 15;
    }
    const slot = hash >>> (32 - SLOTS_BITS);
    const last = texts[slot] ?? '';
    let same = last !== '';
    for (let word = 0; same && word < words; word++) same = keys[slot * words + word] === u32(bytes, at + 4 * word);
    if (same) return last;
    for (let word = 0; word < words; word++) keys[slot * words + word] = u32(bytes, at + 4 * word);
    const made = text(bytes, at);
    texts[slot] = made;
    return made;
  };
}

/** 4 or 16 bytes. Text that is no address is a programmer's mistake here: plans hold only canonical addresses. */
export function addressBytes(text: string): Uint8Array {
  if (isIPv4(text)) return Uint8Array.from(text.split('.'), Number);
  if (!isIPv6(text) || text.includes('%')) throw new TypeError(`not an IP address: ${JSON.stringify(text)}`);
  const dotted = text.lastIndexOf('.') < 0 ? undefined : text.slice(text.lastIndexOf(':') + 1);
  const [head = '', tail] = (dotted === undefined ? text : text.slice(0, -dotted.length) + dottedGroups(dotted)).split(
    '::',
  );
  const before = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const bytes = new Uint8Array(16);
  for (const [index, group] of before.entries()) putU16(bytes, 2 * index, Number.parseInt(group, 16));
  for (const [index, group] of after.entries()) {
    putU16(bytes, 16 - 2 * (after.length - index), Number.parseInt(group, 16));
  }
  return bytes;
}

function dottedGroups(dotted: string): string {
  const bytes = Uint8Array.from(dotted.split('.'), Number);
  return `${u16(bytes, 0).toString(16)}:${u16(bytes, 2).toString(16)}`;
}

export function macText(bytes: Uint8Array, at: number): string {
  return Array.from(bytes.subarray(at, at + 6), (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

export function macBytes(text: string): Uint8Array {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) throw new TypeError(`not a MAC address: ${JSON.stringify(text)}`);
  return Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
}
