/**
 * `host[:port]` of a Host field, of an absolute target and of CONNECT (RFC 9110 §4.2, §7.2, RFC 3986 §3.2) in one form:
 * names in lower case without a trailing dot, IDN as the A-labels that they are on the wire, addresses apart from names and in
 * canonical text. What two readers could take for different hosts is refused: percent-encoding, bytes beyond ASCII,
 * user information, `0x7f.1` and `2130706433`, which many take for an address.
 * Leaves out: whether an A-label is good Punycode, public suffixes, IPv6 zones and IPvFuture (refused).
 */

import { isIPv4, isIPv6 } from 'node:net';
import { parseHostName } from '../api/host-name.ts';
import { addressBytes, ipv6Text } from './address-text.ts';

export interface Host {
  readonly kind: 'name' | 'ipv4' | 'ipv6';
  /** Lower case, no trailing dot, IPv6 without brackets. */
  readonly text: string;
  /** As written; undefined if there is none. */
  readonly port: number | undefined;
}

export type HostReason =
  | 'empty-host'
  /** A byte that no DNS name has: percent-encoding, UTF-8, a comma. */
  | 'bad-host-byte'
  | 'user-information'
  /** An empty label, one of more than 63 bytes or with a hyphen at an end, or more than 253 in all. */
  | 'bad-host-label'
  /** Digits that many read as an IPv4 address, and are none as RFC 3986 writes it. */
  | 'ambiguous-address'
  | 'bad-ipv6-host'
  | 'bad-port';

const COLON = 0x3a;
/** Letters, digits, hyphen, the dots between; underscore, which hosts have though they should not. */
const nameBytes = /^[a-zA-Z0-9._-]+$/;
/**
 * The last label is decimal or `0x…`: no top-level domain is, and address parsers of the inet_aton() kind take it. With a
 * trailing dot it is a name to some and an address to others.
 */
const endsInNumber = /(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$/i;

/** A reason is a text, a host an object. */
export function readHost(text: string): Host | HostReason {
  if (text === '') return 'empty-host';
  if (text.charCodeAt(0) === 0x5b) return readIpv6(text);
  const colon = text.indexOf(':');
  const host = colon < 0 ? text : text.slice(0, colon);
  if (text.includes('@')) return 'user-information';
  if (host === '') return 'empty-host';
  if (!nameBytes.test(host)) return 'bad-host-byte';
  const port = readPort(text, host.length);
  if (port === BAD_PORT) return 'bad-port';
  if (isIPv4(host)) return { kind: 'ipv4', text: host, port };
  const name = parseHostName(host);
  if (name.ok) return { kind: 'name', text: name.value, port };
  return endsInNumber.test(host) ? 'ambiguous-address' : 'bad-host-label';
}

function readIpv6(text: string): Host | HostReason {
  const end = text.indexOf(']');
  const inner = text.slice(1, end < 0 ? undefined : end);
  if (end < 0 || !isIPv6(inner) || inner.includes('%')) return 'bad-ipv6-host';
  const port = readPort(text, end + 1);
  if (port === BAD_PORT) return 'bad-port';
  return { kind: 'ipv6', text: ipv6Text(addressBytes(inner.toLowerCase()), 0), port };
}

const BAD_PORT = -1;

/** `:` without digits is no port (RFC 3986 §3.2.3); port 0 is none that a connection has. */
function readPort(text: string, at: number): number | undefined {
  if (at === text.length) return undefined;
  if (text.charCodeAt(at) !== COLON || text.length - at > 6) return BAD_PORT;
  let port = 0;
  for (let i = at + 1; i < text.length; i++) {
    const digit = text.charCodeAt(i) - 0x30;
    if (digit < 0 || digit > 9) return BAD_PORT;
    port = 10 * port + digit;
  }
  if (at + 1 === text.length) return undefined;
  return port === 0 || port > 0xffff ? BAD_PORT : port;
}
