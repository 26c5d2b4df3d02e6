/**
 * An ExternalService as the plan carries it (design §3 → api/plan.ts): canonical addresses, protocols as numbers,
 * ports as ranges, sorted, so that two ways to write one thing give one plan.
 * Left out: names, lists from elsewhere and application checks, which validation refuses.
 */

import { formatRange, parseRange } from '../api/address.ts';
import { type ExternalService, portEntry, type ServicePort } from '../api/kinds.ts';
import type { PortEntry, ServiceEntry } from '../api/plan.ts';
import { must } from '../api/result.ts';

/** The object has passed validation; what cannot be read here is our own mistake and throws. */
export function serviceEntryOf(service: ExternalService): ServiceEntry {
  const { addresses, ports } = service.spec;
  return {
    addresses: [...new Set(addresses.map((text) => formatRange(must(parseRange(text)))))].sort(),
    ports: ports === undefined || ports.length === 0 ? null : portEntriesOf(ports),
  };
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
