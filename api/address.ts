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
  if (text.includes(':')) {
    const value = parse6(text);
    if (value !== null) return ok({ family: 6, value });
  } else {
    const value = parse4(text);
    if (value >= 0) return ok({ family: 4, value: BigInt(value) });
  }
  if (text.includes('%')) return fail(`'${text}' has a zone id`);
  if (/^\d+\.\d+\.\d+\.\d+$/.test(text) && /(^|\.)0\d/.test(text))
    return fail(`'${text}' has an octet with leading zero`);
  return fail(`${show(text)} is no IPv4 or IPv6 address`);
}

/** An error's text never repeats hostile input at length or with control characters. */
const show = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);

/** Four decimal octets without leading zeros, and nothing else from `from` on; -1: they are none. */
function parse4(text: string, from = 0): number {
  let value = 0;
  let dots = 0;
  let octet = -1;
  for (let at = from; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === DOT) {
      if (octet < 0 || dots === 3) return -1;
      value = value * 256 + octet;
      octet = -1;
      dots++;
      continue;
    }
    const digit = code - ZERO;
    if (digit < 0 || digit > 9 || octet === 0) return -1;
    octet = octet < 0 ? digit : octet * 10 + digit;
    if (octet > 255) return -1;
  }
  return dots === 3 && octet >= 0 ? value * 256 + octet : -1;
}

const [DOT, ZERO, COLON] = [0x2e, 0x30, 0x3a];

/** The eight groups that are being read or printed; two steps of bigints make a value of them. */
const bytes = new DataView(new ArrayBuffer(16));

function parse6(text: string): bigint | null {
  let count = 0;
  /** Groups before `::`. */
  let gap = -1;
  let at = 0;
  if (text.startsWith('::')) {
    gap = 0;
    at = 2;
  }
  while (at < text.length) {
    const start = at;
    let group = 0;
    let code = text.charCodeAt(at);
    for (let digit = hexDigit(code); digit >= 0; digit = hexDigit(code)) {
      group = group * 16 + digit;
      code = text.charCodeAt(++at);
    }
    // A dotted IPv4 tail may only end the whole address.
    if (code === DOT) {
      const tail = parse4(text, start);
      if (tail < 0 || count > 6) return null;
      bytes.setUint32(2 * count, tail);
      count += 2;
      break;
    }
    if (at === start || at - start > 4 || count === 8) return null;
    bytes.setUint16(2 * count++, group);
    if (at === text.length) break;
    if (code !== COLON || ++at === text.length) return null;
    if (text.charCodeAt(at) !== COLON) continue;
    if (gap >= 0) return null;
    gap = count;
    at++;
  }
  // `::` stands for at least one group (RFC 4291 allows "one or more").
  if (gap < 0 ? count !== 8 : count === 8) return null;
  const missing = 8 - count;
  for (let group = 7; missing > 0 && group >= gap; group--) {
    bytes.setUint16(2 * group, group - missing >= gap ? bytes.getUint16(2 * (group - missing)) : 0);
  }
  return (bytes.getBigUint64(0) << 64n) | bytes.getBigUint64(8);
}

/** -1: no hexadecimal digit, as is NaN, the code behind a text's end. */
function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const letter = code | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : -1;
}

/** RFC 5952; an IPv4-mapped address is printed as groups like every other, since the kernel's tools differ there. */
export function formatAddress(a: Address): string {
  if (a.family === 4) {
    const v = Number(a.value);
    return `${(v >>> 24) & 255}.${(v >>> 16) & 255}.${(v >>> 8) & 255}.${v & 255}`;
  }
  bytes.setBigUint64(0, a.value >> 64n);
  bytes.setBigUint64(8, a.value);
  // The first longest run of two or more zero groups becomes `::` (§4.2.2, §4.2.3).
  let start = 8;
  let length = 1;
  for (let i = 0; i < 8; i++) {
    let j = i;
    while (j < 8 && bytes.getUint16(2 * j) === 0) j++;
    if (j - i > length) {
      start = i;
      length = j - i;
    }
    if (j > i) i = j;
  }
  let text = '';
  for (let i = 0; i < 8; i++) {
    if (i === start) {
      text += '::';
      i += length - 1;
    } else text += `${i > 0 && i !== start + length ? ':' : ''}${bytes.getUint16(2 * i).toString(16)}`;
  }
  return text;
}

/** `ADDRESS/LENGTH`. Bits after the length must be zero: a prefix with host bits is more often a slip than a wish. */
export function parsePrefix(text: string): Result<Prefix> {
  if (typeof text !== 'string' || text.length > maxText) return fail('a prefix is ADDRESS/LENGTH');
  const slash = text.indexOf('/');
  if (slash < 0) return fail(`${show(text)} is no prefix: '/LENGTH' is missing`);
  const address = parseAddress(text.slice(0, slash));
  if (!address.ok) return address;
  const { family, value } = address.value;
  const length = parseLength(text, slash + 1);
  if (length < 0 || length > addressBits(family)) {
    return fail(`${show(text)}: the length must be 0 to ${addressBits(family)}`);
  }
  const prefix = { family, value, length };
  const network = value & ~hostMask(prefix);
  if (network !== value) {
    return fail(
      `${show(text)} has bits after the prefix length; the prefix is ${formatPrefix({ ...prefix, value: network })}`,
    );
  }
  return ok(prefix);
}

/** One to three digits, without leading zeros, from `from` on; -1: there are none. */
function parseLength(text: string, from: number): number {
  const digits = text.length - from;
  if (digits < 1 || digits > 3 || (digits > 1 && text.charCodeAt(from) === ZERO)) return -1;
  let length = 0;
  for (let at = from; at < text.length; at++) {
    const digit = text.charCodeAt(at) - ZERO;
    if (digit < 0 || digit > 9) return -1;
    length = length * 10 + digit;
  }
  return length;
}

export function formatPrefix(p: Prefix): string {
  return `${formatAddress(p)}/${p.length}`;
}

const hostMask = ({ family, length }: { family: Family; length: number }): bigint =>
  length === addressBits(family) ? 0n : (1n << BigInt(addressBits(family) - length)) - 1n;

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

/** The smallest range that covers all, which are of one family; undefined: there are none. */
export function hullOf(ranges: readonly Range[]): Range | undefined {
  let hull: Range | undefined;
  for (const { family, first, last } of ranges) {
    hull ??= { family, first, last };
    if (first < hull.first) hull.first = first;
    if (last > hull.last) hull.last = last;
  }
  return hull;
}

/** The longest prefix that all of them lie in; undefined: there are none. */
export function coverOf(ranges: readonly Range[]): Prefix | undefined {
  const hull = hullOf(ranges);
  if (hull === undefined) return undefined;
  const { family, first, last } = hull;
  const differing = first === last ? 0 : (first ^ last).toString(2).length;
  const host = BigInt(differing);
  return { family, value: (first >> host) << host, length: addressBits(family) - differing };
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
