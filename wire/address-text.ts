/**
 * Addresses between packets and text: bytes → canonical text (RFC 5952; a v4-mapped IPv6 address keeps its hex groups,
 * as in api/address.ts), text → bytes for what Sluice itself builds, and MAC addresses.
 * The reading side runs once per event, hence without the bigint that api/address.ts calculates with.
 */

import { isIPv4, isIPv6 } from 'node:net';
import { putU16, u8, u16 } from './bytes.ts';

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
