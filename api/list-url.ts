/**
 * Where a list may be fetched from (ExternalService `addressesFrom[].url`, GatewayPool `fetch.allowedHosts`). Only plain
 * URLs: https, no user or password, no fragment, ASCII, a host that is written in the one form that every reader takes
 * for the same (four decimal octets, a bracketed IPv6 address without zone, or a DNS name without trailing dot; an
 * internationalised name in its `xn--` form). Upper case is folded. A host is allowed with one port: `host` is port 443.
 */

import { formatAddress, parseAddress } from './address.ts';
import { fail, ok, type Result } from './result.ts';

export const URL_MAX_LENGTH = 2048;
export const HTTPS_PORT = 443;

export interface ListUrl {
  href: string;
  /** DNS name in lower case, or canonical address without brackets. */
  host: string;
  port: number;
}

/** No white space (URL parsers drop tabs and newlines), no control characters, no backslash (some take it for /). */
const plainText = /^[\x21-\x5b\x5d-\x7e]+$/;
const dnsName = /^(?=.{1,253}$)([a-z0-9]([-a-z0-9_]{0,61}[a-z0-9])?\.)*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;

export function parseListUrl(text: string): Result<ListUrl> {
  if (text.length > URL_MAX_LENGTH) return fail(`a URL of at most ${URL_MAX_LENGTH} characters`);
  if (!plainText.test(text)) return fail('a URL of printable ASCII without spaces and backslashes');
  // Read by hand before a parser is asked, since parsers forgive: `https:host`, `https:///host`, `0x7f.1`.
  const parts = /^https:\/\/([^/?#]+)([/?][^#]*)?$/.exec(text);
  if (parts === null) {
    return fail(text.includes('#') ? 'a URL without fragment (#…)' : 'a URL that begins with https:// and a host');
  }
  const [, authority = '', rest = ''] = parts;
  if (authority.includes('@')) return fail('a URL without user and password');
  const place = parseAuthority(authority);
  if (!place.ok) return place;
  const { host, port } = place.value;
  try {
    const { href } = new URL(`https://${formatAuthority(host, port)}${rest}`);
    return ok({ href, host, port });
  } catch {
    return fail('a URL');
  }
}

/** `host` or `host:port`, an IPv6 address in brackets; for one URL as for the list of what is allowed. */
export function parseAuthority(text: string): Result<{ host: string; port: number }> {
  const parts = /^(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?$/.exec(text);
  if (parts === null) return fail('HOST or HOST:PORT');
  const [, name = '', digits] = parts;
  const port = digits === undefined ? HTTPS_PORT : Number(digits);
  if (port < 1 || port > 65_535 || digits?.startsWith('0')) return fail('a port from 1 to 65535');
  const host = name.startsWith('[') ? bracketed(name.slice(1, -1)) : plainHost(name.toLowerCase());
  return host.ok ? ok({ host: host.value, port }) : host;
}

function bracketed(text: string): Result<string> {
  const address = parseAddress(text);
  if (!address.ok || address.value.family !== 6) return fail('an IPv6 address without zone in the brackets');
  return ok(formatAddress(address.value));
}

function plainHost(name: string): Result<string> {
  if (name.endsWith('.')) return fail('a host without trailing dot');
  // What ends in a number is an IPv4 address to a URL parser, in decimal, octal, hex, and with fewer parts.
  if (/(^|\.)(0x[0-9a-f]*|[0-9]+)$/.test(name)) {
    const address = parseAddress(name);
    return address.ok ? ok(name) : fail('an IPv4 address of four decimal numbers');
  }
  return dnsName.test(name) ? ok(name) : fail('a DNS name (ASCII, letters, digits, - and .)');
}

/** The form in which allowed hosts are compared and shown: port 443 is left out. */
export function formatAuthority(host: string, port: number): string {
  const name = host.includes(':') ? `[${host}]` : host;
  return port === HTTPS_PORT ? name : `${name}:${port}`;
}
