/**
 * An external service as its first packet shows it (design §4.5): what matches by address and port alone, and what is open
 * until bytes are read or a name is found for the address. Each part is a service without names and checks, so that
 * boxes and tests of those take it. Exact, but for packets of TCP, UDP and SCTP without a port, which no flow begins with.
 * Left out: what a reading says of the open parts (destination.ts).
 */

import type { PortEntry, ServiceEntry } from '../api/plan.ts';
import { hasPorts, portRangesOf } from './destination.ts';

/** Addresses × (ports − checks); absent: nothing matches without a reading. */
export function unreadPart(entry: ServiceEntry): ServiceEntry | undefined {
  if (entry.addresses.length === 0) return undefined;
  if (entry.names === undefined && entry.checks === undefined) return entry;
  const ports = uncheckedPorts(entry);
  return ports?.length === 0 ? undefined : { addresses: entry.addresses, ports };
}

export interface OpenPart {
  boxes: ServiceEntry;
  /** Whether the name table decides it, which is asked at the first packet already; else bytes do. */
  first: boolean;
}

/** Every destination; where a name decides, any address may be its own. */
const everywhere: string[] = ['0.0.0.0/0', '::/0'];

/** Disjoint by their ports. What unreadPart has may lie in the part of names too: it matches all the same. */
export function openParts(entry: ServiceEntry): OpenPart[] {
  const { addresses, names = [], checks = [] } = entry;
  const parts: OpenPart[] = [];
  const where = names.length > 0 ? everywhere : addresses;
  if (checks.length > 0 && where.length > 0) {
    parts.push({ boxes: { addresses: where, ports: byProtocol(checks) }, first: false });
  }
  if (names.length > 0) {
    const ports = uncheckedPorts(entry);
    if (ports?.length !== 0) parts.push({ boxes: { addresses: everywhere, ports }, first: true });
  }
  return parts;
}

const LAST_PROTOCOL = 255;
const LAST_PORT = 65_535;

/** The ports where nothing is read: the address alone decides there, or a name that the table gives it. */
export function uncheckedPorts({ ports, checks = [] }: ServiceEntry): PortEntry[] | null {
  if (checks.length === 0) return ports;
  const checked = new Map(byProtocol(checks).map((entry) => [entry.protocol, portRangesOf(entry)]));
  const all = ports ?? Array.from({ length: LAST_PROTOCOL + 1 }, (_, protocol) => ({ protocol, ports: null }));
  return all.flatMap((entry): PortEntry[] => {
    const { protocol } = entry;
    const without = checked.get(protocol);
    if (without === undefined) return [entry];
    // A check of all of the protocol; or of one without ports, which is the same.
    if (without === null || !hasPorts(protocol)) return [];
    const left = (portRangesOf(entry) ?? [[0, LAST_PORT] as [number, number]]).flatMap((range) =>
      minus(range, without),
    );
    return left.length === 0 ? [] : [{ protocol, ports: left }];
  });
}

/** One entry per protocol, ranges sorted. */
function byProtocol(entries: readonly PortEntry[]): PortEntry[] {
  const found = new Map<number, PortEntry['ports']>();
  for (const entry of entries) {
    const { protocol } = entry;
    const ranges = portRangesOf(entry);
    const known = found.get(protocol) ?? (found.has(protocol) ? null : []);
    found.set(protocol, ranges === null || known === null ? null : [...known, ...ranges]);
  }
  return [...found]
    .sort((a, b) => a[0] - b[0])
    .map(([protocol, ports]) => ({ protocol, ports: ports?.sort((a, b) => a[0] - b[0] || a[1] - b[1]) ?? null }));
}

/** `without`: sorted by their beginning; they may overlap. */
function minus([first, last]: [number, number], without: readonly [number, number][]): [number, number][] {
  const left: [number, number][] = [];
  let from = first;
  for (const [begin, end] of without) {
    if (begin > last) break;
    if (begin > from) left.push([from, begin - 1]);
    from = Math.max(from, end + 1);
  }
  if (from <= last) left.push([from, last]);
  return left;
}
