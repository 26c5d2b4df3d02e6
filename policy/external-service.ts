/**
 * An ExternalService as the plan carries it (design §3 → api/plan.ts): canonical addresses, protocols as numbers,
 * ports as ranges, sorted, so that two ways to write one thing give one plan.
 * Lists that are kept elsewhere (`addressesFrom`) are read by the controller and come in as they are known.
 * Left out: names and application checks, which validation refuses.
 */

import { formatRange, parseRange } from '../api/address.ts';
import { parseBandwidth } from '../api/bandwidth.ts';
import { type ExternalService, portEntry, type ServicePort } from '../api/kinds.ts';
import type { PortEntry, PortLimit, ServiceEntry } from '../api/plan.ts';
import { must } from '../api/result.ts';

/** One list of `addressesFrom`, as it is known. */
export interface KnownList {
  /** The last good one: canonical, sorted. Absent: it was never read. */
  addresses?: readonly string[];
  /** Why it is not known, or not the newest. */
  problem?: { reason: string; message: string };
}
/** `namespace/name` of an ExternalService → its lists, in the order of `addressesFrom`. */
export type KnownLists = ReadonlyMap<string, readonly KnownList[]>;

/** Places in `addressesFrom` whose list was never read: the service's destinations are not all known. */
export function unreadLists(service: ExternalService, lists: readonly KnownList[] = []): number[] {
  return (service.spec.addressesFrom ?? []).flatMap((_, i) => (lists[i]?.addresses === undefined ? [i] : []));
}

/** Plans are made far more often than an object or a list changes. */
const made = new WeakMap<ExternalService, { from: (readonly string[] | undefined)[]; entry: ServiceEntry }>();

export function serviceEntryOf(service: ExternalService, lists: readonly KnownList[] = []): ServiceEntry {
  const from = (service.spec.addressesFrom ?? []).map((_, i) => lists[i]?.addresses);
  const known = made.get(service);
  if (known?.from.every((list, i) => list === from[i])) return known.entry;
  const entry = makeEntry(service, lists);
  made.set(service, { from, entry });
  return entry;
}

/** The object has passed validation; what cannot be read here is our own mistake and throws. */
function makeEntry(service: ExternalService, lists: readonly KnownList[]): ServiceEntry {
  const { addresses = [], addressesFrom = [], ports } = service.spec;
  const own = addresses.map((text) => formatRange(must(parseRange(text))));
  const listed = addressesFrom.flatMap((_, i) => lists[i]?.addresses ?? []);
  return {
    addresses: [...new Set([...own, ...listed])].sort(),
    ports: ports === undefined || ports.length === 0 ? null : portEntriesOf(ports),
    ...limitsOf(ports ?? []),
  };
}

/** Of the ports that have a bandwidth, by name. */
function limitsOf(specs: ServicePort[]): Pick<ServiceEntry, 'limits'> {
  const limits = specs.flatMap(({ name, protocol, port, bandwidth }): PortLimit[] =>
    bandwidth === undefined
      ? []
      : [
          {
            name,
            ...portEntry({ protocol, ...(port !== undefined && { port }) }),
            bandwidth: parseBandwidth(bandwidth),
          },
        ],
  );
  return limits.length === 0 ? {} : { limits: limits.sort((a, b) => (a.name < b.name ? -1 : 1)) };
}

/** One entry per protocol, ascending. */
function portEntriesOf(specs: ServicePort[]): PortEntry[] {
  const byProtocol = new Map<number, PortEntry['ports']>();
  for (const spec of specs) {
    const { protocol, port } = spec;
    const { protocol: number, ports } = portEntry({ protocol, ...(port !== undefined && { port }) });
    const known = byProtocol.get(number) ?? (byProtocol.has(number) ? null : []);
    byProtocol.set(number, ports === null || known === null ? null : [...known, ...ports]);
  }
  return [...byProtocol]
    .sort((a, b) => a[0] - b[0])
    .map(([protocol, ports]) => ({ protocol, ports: ports?.sort((a, b) => a[0] - b[0] || a[1] - b[1]) ?? null }));
}
