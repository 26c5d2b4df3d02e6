/**
 * `port` of an ExternalService, text to inclusive ranges: of ports (`443,8000-8100`), or of types and codes of ICMP
 * (`8,3/4`) as PortEntry has them; and a port entry to the plan's form.
 */

import type { Family, PortEntry } from './plan.ts';
import { fail, ok, type Result } from './result.ts';

/** Protocols that may be written by name. A number is taken as text or integer. */
export const protocolNumbers: Readonly<Record<string, number>> = { TCP: 6, UDP: 17, SCTP: 132, ICMP: 1, ICMPv6: 58 };
/** The protocols that have ports. */
export const portProtocols: ReadonlySet<number> = new Set([6, 17, 132]);
/** ICMP of each family, which has types and codes. */
export const icmpProtocol = { 4: 1, 6: 58 } as const;

const maxRanges = 128;
const icmpProtocols: ReadonlySet<number> = new Set(Object.values(icmpProtocol));

export const isIcmp = (protocol: number): boolean => icmpProtocols.has(protocol);
/** The number by which PortEntry knows a type and code of ICMP. */
export const icmpNumber = (type: number, code: number): number => type * 256 + code;
export const typeOfIcmp = (number: number): number => number >>> 8;
/** `8/0`. */
export const icmpText = (number: number): string => `${typeOfIcmp(number)}/${number & 0xff}`;

/** Types of ICMP to which Linux's connection tracking opens an entry: all others, by themselves, are invalid to it. */
const beginning: Record<Family, ReadonlySet<number>> = { 4: new Set([8, 13, 15, 17]), 6: new Set([128, 139]) };
export const beginsExchange = (family: Family, icmpType: number): boolean => beginning[family].has(icmpType);

/** What `port` of this protocol says; a failure says what was expected. */
export function parsePortsOf(protocol: number, text: string): Result<[number, number][]> {
  if (portProtocols.has(protocol)) return parsePorts(text);
  if (isIcmp(protocol)) return parseIcmpTypes(text);
  return fail(`absent: only TCP, UDP, SCTP, ICMP and ICMPv6 have it, not protocol ${protocol}`);
}

/** Sorted inclusive ranges within 1 to 65535. Ranges that overlap are refused: one of them is a slip. */
export function parsePorts(text: string): Result<[number, number][]> {
  const parts = text.split(',', maxRanges + 1);
  if (parts.length > maxRanges) return fail(`at most ${maxRanges} ports and ranges`);
  const ranges: [number, number][] = [];
  for (const part of parts) {
    const match = /^([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?$/.exec(part);
    if (match === null) return fail(`ports from 1 to 65535 as in 443,8000-8100`);
    const first = Number(match[1]);
    const last = match[2] === undefined ? first : Number(match[2]);
    if (last > 65_535 || first > 65_535) return fail('ports from 1 to 65535');
    if (first > last) return fail(`a range that ends after it begins, not ${part}`);
    ranges.push([first, last]);
  }
  const twice = sortedOverlap(ranges);
  return twice === undefined ? ok(ranges) : fail(`each port once, not ${twice} twice`);
}

/** Sorted inclusive ranges of type * 256 + code: `8` is every code of type 8. */
export function parseIcmpTypes(text: string): Result<[number, number][]> {
  const parts = text.split(',', maxRanges + 1);
  if (parts.length > maxRanges) return fail(`at most ${maxRanges} types and codes`);
  const ranges: [number, number][] = [];
  for (const part of parts) {
    const match = /^(0|[1-9][0-9]{0,2})(?:\/(0|[1-9][0-9]{0,2}))?$/.exec(part);
    if (match === null) return fail('types and codes of ICMP from 0 to 255 as in 8,3/4');
    const type = Number(match[1]);
    const code = match[2] === undefined ? undefined : Number(match[2]);
    if (type > 255 || (code ?? 0) > 255) return fail('types and codes of ICMP from 0 to 255');
    ranges.push([icmpNumber(type, code ?? 0), icmpNumber(type, code ?? 255)]);
  }
  const twice = sortedOverlap(ranges);
  return twice === undefined ? ok(ranges) : fail(`each type and code once, not ${icmpText(twice)} twice`);
}

/** Sorts the ranges in place; the first number that two of them have. */
function sortedOverlap(ranges: [number, number][]): number | undefined {
  ranges.sort((a, b) => a[0] - b[0]);
  return ranges.find(([first], i) => first <= (ranges[i - 1]?.[1] ?? -1))?.[0];
}

/** The number of a protocol that the schema let pass. */
export function protocolNumber(protocol: string | number): number {
  return typeof protocol === 'number' ? protocol : (protocolNumbers[protocol] ?? Number(protocol));
}

/** As the plan has it. Only for a port of a parsed ExternalService: anything else is a programmer's mistake. */
export function portEntry(port: { protocol: string | number; port?: string }): PortEntry {
  const protocol = protocolNumber(port.protocol);
  if (port.port === undefined) return { protocol, ports: null };
  const ports = parsePortsOf(protocol, port.port);
  if (!ports.ok) throw new Error(`not a parsed port: ${JSON.stringify(port)}`);
  return { protocol, ports: ports.value };
}
