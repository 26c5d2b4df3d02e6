/**
 * An ExternalService as the plan carries it (design §3 → api/plan.ts): canonical addresses, protocols as numbers,
 * ports as ranges, sorted, so that two ways to write one thing give one plan.
 * Left out: names, lists from elsewhere and application checks, which validation refuses.
 */

import type { Range } from '../api/address.ts';
import { formatPrefix, formatRange, parseRange, rangeToPrefixes } from '../api/address.ts';
import type { ExternalService } from '../api/kinds.ts';
import type { PortEntry, ServiceEntry } from '../api/plan.ts';
import { protocolNames } from './destination.ts';

type PortSpec = NonNullable<ExternalService['spec']['ports']>[number];

/** The object has passed validation; what cannot be read here is our own mistake and throws. */
export function serviceEntryOf(service: ExternalService): ServiceEntry {
  const { addresses, ports } = service.spec;
  return {
    addresses: [...new Set(addresses.map(canonicalRange))].sort(),
    ports: ports === undefined || ports.length === 0 ? null : portEntriesOf(ports),
  };
}

function canonicalRange(text: string): string {
  const parsed = parseRange(text);
  if (!parsed.ok) throw new TypeError(`address ${JSON.stringify(text)}: ${parsed.error}`);
  return rangeText(parsed.value);
}

/** One prefix where the range is one, else `first-last`. */
function rangeText(range: Range): string {
  const [prefix, ...more] = rangeToPrefixes(range);
  return prefix !== undefined && more.length === 0 ? formatPrefix(prefix) : formatRange(range);
}

/** One entry per protocol, ascending. */
function portEntriesOf(specs: PortSpec[]): PortEntry[] {
  const byProtocol = new Map<number, [number, number][] | null>();
  for (const spec of specs) {
    const protocol = protocolNumber(spec.protocol);
    const known = byProtocol.get(protocol);
    if (spec.port === undefined || known === null) byProtocol.set(protocol, null);
    else byProtocol.set(protocol, [...(known ?? []), ...portRanges(spec.port)]);
  }
  return [...byProtocol]
    .sort((a, b) => a[0] - b[0])
    .map(([protocol, ports]) => ({ protocol, ports: ports?.sort((a, b) => a[0] - b[0] || a[1] - b[1]) ?? null }));
}

const numbers = new Map(Object.entries(protocolNames).map(([number, name]) => [name, Number(number)]));

function protocolNumber(protocol: string | number): number {
  const number = numbers.get(String(protocol)) ?? Number(protocol);
  if (!Number.isInteger(number) || number < 0 || number > 255) throw new TypeError(`protocol ${protocol}`);
  return number;
}

/** `443,8000-8100` */
function portRanges(text: string | number): [number, number][] {
  return String(text)
    .split(',')
    .map((part) => {
      const [first, last = first] = part.trim().split('-').map(Number);
      if (first === undefined || last === undefined || !(first <= last)) throw new TypeError(`port ${part}`);
      return [first, last];
    });
}
