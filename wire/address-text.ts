/**
 * Addresses between packets and text: bytes → canonical text (RFC 5952; a v4-mapped IPv6 address keeps its hex groups,
 * as in api/address.ts), text → bytes for what Sluice itself builds, and MAC addresses. putIpv4() and putIpv6() go by hand:
 * a plan has some hundred thousand addresses.
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

/** So many addresses of each family are remembered at most. */
const SLOTS_BITS = 16;

/**
 * For addresses that come again and again, as in the connection table: the text is made once, kept once by all who keep
 * it, and whoever looks it up in a Map finds its hash made. Each address has one slot, in which the last of its slot's is remembered: no
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

const DOT = 0x2e;
const COLON = 0x3a;

/** Of a character's code; -1 if it is no hexadecimal digit in lower case. */
export function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  return code >= 0x61 && code <= 0x66 ? code - 0x57 : -1;
}

/** Writes four bytes; false if the text is not an address as ipv4Text() writes one. */
export function putIpv4(text: string, into: Uint8Array, at: number): boolean {
  let dots = 0;
  let part = 0;
  let digits = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === DOT) {
      if (digits === 0 || dots === 3) return false;
      into[at + dots++] = part;
      part = 0;
      digits = 0;
      continue;
    }
    const zeroBefore = digits > 0 && part === 0;
    if (code < 0x30 || code > 0x39 || zeroBefore) return false;
    part = 10 * part + code - 0x30;
    digits++;
    if (part > 255) return false;
  }
  into[at + 3] = part;
  return dots === 3 && digits > 0;
}

/** Writes sixteen bytes; false if the text is not an address in hexadecimal groups, in lower case. */
export function putIpv6(text: string, into: Uint8Array, at: number): boolean {
  let groups = 0;
  /** How many groups stand before `::`. */
  let gap = text.startsWith('::') ? 0 : -1;
  for (let i = gap === 0 ? 2 : 0; i < text.length; ) {
    const start = i;
    let group = 0;
    for (; i < text.length; i++) {
      const digit = hexDigit(text.charCodeAt(i));
      if (digit < 0) break;
      group = 16 * group + digit;
    }
    if (i === start || i - start > 4 || groups === 8) return false;
    putU16(into, at + 2 * groups++, group);
    if (i === text.length) break;
    if (text.charCodeAt(i++) !== COLON || i === text.length) return false;
    if (text.charCodeAt(i) !== COLON) continue;
    if (gap >= 0) return false;
    gap = groups;
    i++;
  }
  if (gap < 0 || groups === 8) return gap < 0 && groups === 8;
  const behind = 2 * (groups - gap);
  into.copyWithin(at + 16 - behind, at + 2 * gap, at + 2 * groups);
  into.fill(0, at + 2 * gap, at + 16 - behind);
  return true;
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
