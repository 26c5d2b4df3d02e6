/**
 * Does a destination lie in an external service? The one test that decide, explain and boxes build on: an address of
 * the flow's own family, and one of the ports (design §3, ExternalService). TCP, UDP and SCTP have ports; every other
 * protocol is known by its number alone. Left out: names and application checks.
 */

import type { Address, Range } from '../api/address.ts';
import { parseRange } from '../api/address.ts';
import type { PortEntry, ServiceEntry } from '../api/plan.ts';
import { PrefixSet } from '../api/prefix-set.ts';

export const protocolNames: Readonly<Record<number, string>> = {
  1: 'ICMP',
  6: 'TCP',
  17: 'UDP',
  58: 'ICMPv6',
  132: 'SCTP',
};

export function hasPorts(protocol: number): boolean {
  return protocol === 6 || protocol === 17 || protocol === 132;
}

/** The port ranges of an entry; null: all of the protocol. */
export function portRangesOf(entry: PortEntry): [number, number][] | null {
  return hasPorts(entry.protocol) ? entry.ports : null;
}

export interface Destination {
  address: Address;
  protocol: number;
  /** Absent where the protocol has none, or the packet does not show it: then no list of ports matches. */
  port?: number;
}

/** 'match', or the first thing that is not among the service's. */
export type Probe = 'match' | 'address' | 'protocol' | 'port';

export type ServiceTest = (destination: Destination) => Probe;

export function compileService(entry: ServiceEntry): ServiceTest {
  const addresses = PrefixSet.of(entry.addresses.map(rangeOf));
  const { ports } = entry;
  return ({ address, protocol, port }) => {
    if (!addresses.has(address)) return 'address';
    if (ports === null) return 'match';
    let probe: Probe = 'protocol';
    for (const candidate of ports) {
      if (candidate.protocol !== protocol) continue;
      const ranges = portRangesOf(candidate);
      if (ranges === null) return 'match';
      if (port !== undefined && ranges.some(([first, last]) => first <= port && port <= last)) return 'match';
      probe = 'port';
    }
    return probe;
  };
}

function rangeOf(text: string): Range {
  const parsed = parseRange(text);
  // A plan holds canonical text (plan.ts): anything else is our own mistake.
  if (!parsed.ok) throw new TypeError(`service address ${JSON.stringify(text)}: ${parsed.error}`);
  return parsed.value;
}
