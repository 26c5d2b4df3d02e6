/**
 * Where to, as a person writes it: an address, with a port or with a type of ICMP; or a name and a port, at an address
 * that is said beside it.
 */
import { canonicalAddress, parseAddress } from '../api/address.ts';
import { parseHostName } from '../api/host-name.ts';
import type { Family } from '../api/plan.ts';
import { icmpProtocol, portProtocols } from '../api/ports.ts';
import { Exit } from './output.ts';

export interface Target {
  address: string;
  /** The host that is meant there; canonical. */
  name?: string;
  family: Family;
  port?: number;
  /** ICMP of the address's family. */
  icmp?: { type: number; code: number };
}

export const targetForms =
  'ADDRESS, ADDRESS:PORT, [IPV6]:PORT, ADDRESS:icmp/TYPE or ADDRESS:icmp/TYPE/CODE, or NAME:PORT with --address ADDRESS';

/**
 * `198.51.100.80`, `198.51.100.80:443`, `2001:db8::80`, `[2001:db8::80]`, `[2001:db8::80]:443`; of ICMP
 * `198.51.100.80:icmp/13`, `[2001:db8::80]:icmpv6/128/0`.
 */
export function parseTarget(text: string): Target | undefined {
  const bracket = /^\[([^\]]*)\](?::(.+))?$/.exec(text);
  const v4 = /^(\d+\.[\d.]+):(.+)$/.exec(text);
  const host = bracket?.[1] ?? v4?.[1] ?? text;
  const what = bracket?.[2] ?? v4?.[2];
  const address = parseAddress(host);
  const canonical = canonicalAddress(host);
  if (!address.ok || !canonical.ok || (bracket !== null && address.value.family !== 6)) return undefined;
  const target = { address: canonical.value, family: address.value.family };
  if (what === undefined) return target;
  const icmp = icmpOf(what, target.family);
  if (icmp !== undefined) return { ...target, icmp };
  const port = /^\d{1,5}$/.test(what) ? Number(what) : 0;
  return port === 0 || port > 65_535 ? undefined : { ...target, port };
}

/** `api.example.com:443`; canonical. */
export function parseNamedTarget(text: string): { name: string; port: number } | undefined {
  const [, host = '', digits = ''] = /^(.+):(\d{1,5})$/.exec(text) ?? [];
  const name = parseHostName(host);
  const port = Number(digits);
  return !name.ok || port === 0 || port > 65_535 ? undefined : { name: name.value, port };
}

/** Without a code it is 0, as in every query. */
function icmpOf(text: string, family: Family): Target['icmp'] {
  const match = /^icmp(v6)?\/(\d{1,3})(?:\/(\d{1,3}))?$/i.exec(text);
  const [type, code] = [Number(match?.[2]), Number(match?.[3] ?? 0)];
  if (match === null || (match[1] !== undefined && family !== 6) || type > 255 || code > 255) return undefined;
  return { type, code };
}

/** With a port TCP, without one ICMP of the address's family, unless said otherwise. */
export function protocolOf(word: string | undefined, { family, port, icmp }: Target): number {
  const own = icmpProtocol[family];
  const names: Record<string, number> = { tcp: 6, udp: 17, sctp: 132, icmp: own, icmpv6: 58 };
  const name = word?.toLowerCase() ?? (port === undefined ? 'icmp' : 'tcp');
  const number = Object.hasOwn(names, name) ? names[name] : /^\d{1,3}$/.test(name) ? Number(name) : undefined;
  if (number === undefined || number > 255) throw new Exit(2, `--protocol: expected tcp, udp, sctp, icmp or a number`);
  if (icmp !== undefined && number !== own) throw new Exit(2, '--protocol: expected icmp, as --to says');
  const hasPorts = portProtocols.has(number);
  if (hasPorts && port === undefined) throw new Exit(2, '--to: expected ADDRESS:PORT ([ADDRESS]:PORT for IPv6)');
  if (!hasPorts && port !== undefined) throw new Exit(2, `--to: protocol ${number} has no ports`);
  return number;
}

/** Of ICMP of which no type is said: a ping, which is an echo request. */
export function icmpTypeOf({ family, icmp }: Target, protocol: number): { icmpType?: number; icmpCode?: number } {
  if (protocol !== icmpProtocol[family]) return {};
  const { type, code } = icmp ?? { type: family === 4 ? 8 : 128, code: 0 };
  return { icmpType: type, icmpCode: code };
}
