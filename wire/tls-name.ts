/**
 * The host name in a server_name extension (RFC 6066 §3): ASCII, A-labels (RFC 5890), no address. One form of each: lower
 * case, without a trailing dot. The rules are those of names in policy: labels of letters, digits, `-` and `_` with no hyphen
 * at an end, 63 octets a label, 253 in all, and no number as the last label, which URL parsers take for an IPv4 address.
 * What a policy cannot name is refused and never passed on as "no name": servers differ in what they make of it (RFC 6066
 * lets a server that does not know the name go on with its default).
 */

import { isIP } from 'node:net';
import { type Reading, read, refused } from './reading.ts';

export const nameReasons = {
  'name-too-long': 'a server name of more than 253 octets',
  'bad-name': 'a server name that is no host name: empty, an empty or long label, NUL, a space, other than ASCII',
  'address-as-name': 'an IP address as server name (RFC 6066 forbids it), or what could be read as one',
} as const;
export type NameReason = keyof typeof nameReasons;

/** Octets of a name without its trailing dot (RFC 1035 §2.3.4: 255 with lengths and root). */
const NAME_MAX = 253;
const LABEL_MAX = 63;
const DOT = 0x2e;
const HYPHEN = 0x2d;

/** The whole of `bytes` from `start` to `end` is the name. */
export function readServerName(bytes: Uint8Array, start: number, end: number): Reading<string, NameReason> {
  const stop = end > start && bytes[end - 1] === DOT ? end - 1 : end;
  if (stop - start > NAME_MAX) return refused('name-too-long');
  let label = start;
  let capitals = false;
  for (let at = start; at <= stop; at++) {
    const octet = at === stop ? DOT : (bytes[at] ?? 0);
    if (octet === DOT) {
      const size = at - label;
      if (size === 0 || size > LABEL_MAX || bytes[label] === HYPHEN || bytes[at - 1] === HYPHEN)
        return refused('bad-name');
      if (at === stop && isNumber(bytes, label, stop)) return refused('address-as-name');
      label = at + 1;
    } else if (octet >= 0x41 && octet <= 0x5a) capitals = true;
    else if (!isNameOctet(octet)) return refused(isAddress(bytes, start, end) ? 'address-as-name' : 'bad-name');
  }
  const name = latin1(bytes, start, stop);
  return read(capitals ? name.toLowerCase() : name);
}

/** Of lower case. */
function isNameOctet(octet: number): boolean {
  return (octet >= 0x61 && octet <= 0x7a) || isDigit(octet) || octet === HYPHEN || octet === 0x5f;
}

function isDigit(octet: number): boolean {
  return octet >= 0x30 && octet <= 0x39;
}

/** Digits, or `0x` and hexadecimal digits or none (WHATWG URL, "ends in a number"). */
function isNumber(bytes: Uint8Array, start: number, end: number): boolean {
  const hexadecimal = end - start >= 2 && bytes[start] === 0x30 && ((bytes[start + 1] ?? 0) | 0x20) === 0x78;
  for (let at = hexadecimal ? start + 2 : start; at < end; at++) {
    const octet = bytes[at] ?? 0;
    const lower = octet | 0x20;
    if (!isDigit(octet) && !(hexadecimal && lower >= 0x61 && lower <= 0x66)) return false;
  }
  return true;
}

/** IPv6, with brackets or without; only asked for what is no name. */
function isAddress(bytes: Uint8Array, start: number, end: number): boolean {
  return isIP(latin1(bytes, start, end).replace(/^\[(.*)\]$/, '$1')) !== 0;
}

/** One character an octet. */
export function latin1(bytes: Uint8Array, start: number, end: number): string {
  let text = '';
  for (let at = start; at < end; at++) text += String.fromCharCode(bytes[at] ?? 0);
  return text;
}
