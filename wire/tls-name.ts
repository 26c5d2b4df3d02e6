/**
 * The host name in a server_name extension (RFC 6066 §3): ASCII, A-labels (RFC 5890), no address, in the one form that names
 * have in policy (api/host-name.ts). What a policy cannot name is refused and never passed on as "no name": servers differ
 * in what they make of it (RFC 6066 lets a server that does not know the name go on with its default).
 */

import { isIP } from 'node:net';
import { NAME_MAX_LENGTH, parseHostName } from '../api/host-name.ts';
import { type Reading, read, refused } from './reading.ts';
import { remembered } from './remembered.ts';

export const nameReasons = {
  'name-too-long': 'a server name of more than 253 octets',
  'bad-name': 'a server name that is no host name: empty, an empty or long label, NUL, a space, other than ASCII',
  'address-as-name': 'an IP address as server name (RFC 6066 forbids it), or what could be read as one',
} as const;
export type NameReason = keyof typeof nameReasons;

const DOT = 0x2e;
const LAST_ASCII = 0x7f;
/** Digits, or `0x` and hexadecimal digits or none (WHATWG URL, "ends in a number"). */
const number = /(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$/i;

/** The whole of `bytes` from `start` to `end` is the name. */
export const readServerName = remembered((bytes, start, end): Reading<string, NameReason> => {
  const root = bytes[end - 1] === DOT ? 1 : 0;
  if (end - start - root > NAME_MAX_LENGTH) return refused('name-too-long');
  const text = latin1(bytes, start, end);
  const name = isAscii(bytes, start, end) ? parseHostName(text) : undefined;
  if (name?.ok) return read(name.value);
  return refused(number.test(text) || isIP(text.replace(/^\[(.*)\]$/, '$1')) !== 0 ? 'address-as-name' : 'bad-name');
});

function isAscii(bytes: Uint8Array, start: number, end: number): boolean {
  for (let at = start; at < end; at++) if ((bytes[at] ?? 0) > LAST_ASCII) return false;
  return true;
}

/** One character an octet. */
export function latin1(bytes: Uint8Array, start: number, end: number): string {
  let text = '';
  for (let at = start; at < end; at++) text += String.fromCharCode(bytes[at] ?? 0);
  return text;
}
