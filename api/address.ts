/**
 * IPv4 and IPv6 addresses, prefixes and ranges as values: a family and a bigint. Text is parsed strictly (RFC 4291 §2.2
 * for IPv6, four decimal octets for IPv4) and printed canonically (RFC 5952). Left out on purpose: octal, hex and short
 * IPv4 forms, which other tools read as other addresses (`010.0.0.1` is 8.0.0.1 to some), zone ids, and white space.
 */

import type { Family } from './plan.ts';
import { fail, ok, type Result } from './result.ts';

/** value < 2^32 or 2^128. */
export interface Address {
  family: Family;
  value: bigint;
}
/** The bits after `length` are zero. */
export interface Prefix {
  family: Family;
  value: bigint;
  length: number;
}
/** Both ends belong to it. */
export interface Range {
  family: Family;
  first: bigint;
  last: bigint;
}

/** Longest text of a range: two IPv6 addresses with a dotted tail, and a hyphen. Longer input is refused unread. */
const maxText = 2 * 45 + 1;

export const addressBits = (family: Family): 32 | 128 => (family === 4 ? 32 : 128);

export function parseAddress(text: string): Result<Address> {
  if (typeof text !== 'string') return fail('an IP address must be text');
  if (text.length > 45) return fail('too long for an IP address');
  const value = text.includes(':') ? parse6(text) : parse4(text);
  if (value !== null) return ok({ family: text.includes(':') ? 6 : 4, value });
  if (text.includes('%')) return fail(`'${text}' has a zone id`);
  if (/^\d+\.\d+\.\d+\.\d+$/.test(text) && /(^|\.)0\d/.test(text))
    return fail(`'${text}' has an octet with leading zero`);
  return fail(`${show(text)} is no IPv4 or IPv6 address`);
}

/** An error's text never repeats hostile input at length or with control characters. */
const show = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);

function parse4(text: string): bigint | null {
  const octets = text.split('.', 5);
  if (octets.length !== 4) return null;
  let value = 0;
  for (const octet of octets) {
    if (!/^(0|[1-9][0-9]{0,2})$/.test(octet)) return null;
    const number = Number(octet);
    if (number > 255) return null;
    value = value * 256 + number;
  }
  return BigInt(value);
}

function parse6(text: string): bigint | null {
  const halves = text.split('::', 3);
  if (halves.length > 2) return null;
  const head = groups(halves[0] ?? '', halves.length === 1);
  const tail = halves.length === 2 ? groups(halves[1] ?? '', true) : [];
  if (head === null || tail === null) return null;
  const missing = 8 - head.length - tail.length;
  // `::` stands for at least one group (RFC 4291 allows "one or more").
  if (halves.length === 2 ? missing < 1 : missing !== 0) return null;
  const at = (index: number): number => head[index] ?? tail[index - head.length - missing] ?? 0;
  // 48 bits are exact in a number, and few steps of bigints are fast.
  const part = (index: number): number => (at(index) * 0x1_0000 + at(index + 1)) * 0x1_0000 + at(index + 2);
  return (BigInt(part(0)) << 80n) | (BigInt(part(3)) << 32n) | BigInt(at(6) * 0x1_0000 + at(7));
}

/** Groups of one side of `::`. A dotted IPv4 tail may only end the whole address. */
function groups(text: string, ends: boolean): number[] | null {
  if (text === '') return [];
  const list: number[] = [];
  const parts = text.split(':', 9);
  for (const [i, part] of parts.entries()) {
    if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      list.push(Number.parseInt(part, 16));
      continue;
    }
    const dotted = ends && i === parts.length - 1 && part.includes('.') ? parse4(part) : null;
    if (dotted === null) return null;
    list.push(Number(dotted >> 16n), Number(dotted & 0xffffn));
  }
  return list;
}

/** RFC 5952; an IPv4-mapped address is printed as groups like every other, since the kernel's tools differ there. */
export function formatAddress(a: Address): string {
  if (a.family === 4) {
    const v = Number(a.value);
    return `${(v >>> 24) & 255}.${(v >>> 16) & 255}.${(v >>> 8) & 255}.${v & 255}`;
  }
  const list: number[] = [];
  for (let shift = 112n; shift >= 0n; shift -= 16n) list.push(Number((a.value >> shift) & 0xffffn));
  // The first longest run of two or more zero groups becomes `::` (§4.2.2, §4.2.3).
  let start = 0;
  let length = 1;
  for (let i = 0; i < 8; i++) {
    let j = i;
    while (j < 8 && list[j] === 0) j++;
    if (j - i > length) {
      start = i;
      length = j - i;
    }
    if (j > i) i = j;
  }
  const hex = (part: number[]) => part.map((group) => group.toString(16)).join(':');
  return length < 2 ? hex(list) : `${hex(list.slice(0, start))}::${hex(list.slice(start + length))}`;
}

/** `ADDRESS/LENGTH`. Bits after the length must be zero: a prefix with host bits is more often a slip than a wish. */
export function parsePrefix(text: string): Result<Prefix> {
  if (typeof text !== 'string' || text.length > maxText) return fail('a prefix is ADDRESS/LENGTH');
  const slash = text.indexOf('/');
  if (slash < 0) return fail(`${show(text)} is no prefix: '/LENGTH' is missing`);
  const address = parseAddress(text.slice(0, slash));
  if (!address.ok) return address;
  const digits = text.slice(slash + 1);
  const { family, value } = address.value;
  if (!/^(0|[1-9][0-9]{0,2})$/.test(digits) || Number(digits) > addressBits(family)) {
    return fail(`${show(text)}: the length must be 0 to ${addressBits(family)}`);
  }
  const prefix = { family, value, length: Number(digits) };
  const network = value & ~hostMask(prefix);
  if (network !== value) {
    return fail(
      `${show(text)} has bits after the prefix length; the prefix is ${formatPrefix({ ...prefix, value: network })}`,
    );
  }
  return ok(prefix);
}

export function formatPrefix(p: Prefix): string {
  return `${formatAddress(p)}/${p.length}`;
}

const hostMask = (p: { family: Family; length: number }): bigint =>
  (1n << BigInt(addressBits(p.family) - p.length)) - 1n;

export function prefixRange(p: Prefix): Range {
  return { family: p.family, first: p.value, last: p.value | hostMask(p) };
}

export const addressRange = (a: Address): Range => ({ family: a.family, first: a.value, last: a.value });

/** `FIRST-LAST`, a prefix or a single address. */
export function parseRange(text: string): Result<Range> {
  if (typeof text !== 'string' || text.length > maxText) return fail('an address, a prefix or FIRST-LAST');
  const hyphen = text.indexOf('-');
  if (hyphen < 0) {
    if (text.includes('/')) {
      const prefix = parsePrefix(text);
      return prefix.ok ? ok(prefixRange(prefix.value)) : prefix;
    }
    const address = parseAddress(text);
    return address.ok ? ok(addressRange(address.value)) : address;
  }
  const first = parseAddress(text.slice(0, hyphen));
  if (!first.ok) return first;
  const last = parseAddress(text.slice(hyphen + 1));
  if (!last.ok) return last;
  if (first.value.family !== last.value.family) return fail(`${show(text)} begins and ends in different families`);
  if (first.value.value > last.value.value) return fail(`${show(text)} ends before it begins`);
  return ok({ family: first.value.family, first: first.value.value, last: last.value.value });
}

/** A prefix where the range is one (`10.0.0.1/32` for a single address), otherwise `FIRST-LAST`. */
export function formatRange(r: Range): string {
  const prefixes = rangeToPrefixes(r, 2);
  if (prefixes.length === 1 && prefixes[0]) return formatPrefix(prefixes[0]);
  return `${formatAddress({ family: r.family, value: r.first })}-${formatAddress({ family: r.family, value: r.last })}`;
}

/** The fewest prefixes that cover exactly the range, in order: at most 2 × bits. */
export function rangeToPrefixes(r: Range, limit = Number.POSITIVE_INFINITY): Prefix[] {
  const list: Prefix[] = [];
  const bits = addressBits(r.family);
  let value = r.first;
  while (value <= r.last && list.length < limit) {
    let length = bits;
    // Widen while the prefix still begins here and does not end past the range.
    while (length > 0) {
      const mask = (1n << BigInt(bits - length + 1)) - 1n;
      if ((value & mask) !== 0n || (value | mask) > r.last) break;
      length--;
    }
    list.push({ family: r.family, value, length });
    value += 1n << BigInt(bits - length);
  }
  return list;
}

/** Canonical text of an address, or why it is none. */
export function canonicalAddress(text: string): Result<string> {
  const address = parseAddress(text);
  return address.ok ? ok(formatAddress(address.value)) : address;
}

/** Order by family, then by value. */
export function compareAddresses(a: Address, b: Address): number {
  return a.family - b.family || (a.value < b.value ? -1 : a.value > b.value ? 1 : 0);
}
