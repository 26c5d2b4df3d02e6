/**
 * Does a destination lie in an external service? The one test that decide, explain and boxes build on: an address of
 * the flow's own family, and one of the ports (design §3, ExternalService). TCP, UDP and SCTP have ports, ICMP has
 * types and codes; every other protocol is known by its number alone. Left out: names and application checks (match.ts).
 */

import type { Address } from '../api/address.ts';
import { parseRange } from '../api/address.ts';
import type { PortEntry, ServiceEntry } from '../api/plan.ts';
import { icmpNumber, icmpProtocol, isIcmp, portProtocols, protocolNumbers } from '../api/ports.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { must } from '../api/result.ts';

export function protocolName(protocol: number): string {
  const name = Object.keys(protocolNumbers).find((candidate) => protocolNumbers[candidate] === protocol);
  return name ?? `protocol ${protocol}`;
}

/** Whether PortEntry.ports says something of the protocol: ports, or types and codes of ICMP, numbered alike. */
export function hasPorts(protocol: number): boolean {
  return portProtocols.has(protocol) || isIcmp(protocol);
}

/** The ranges of an entry; null: all of the protocol. */
export function portRangesOf(entry: PortEntry): [number, number][] | null {
  return hasPorts(entry.protocol) ? entry.ports : null;
}

/**
 * What of a flow to an address those ranges are about; undefined: nothing, or the packet does not show it. Of ICMP only
 * the family's own has types: the connection table, by which established flows are judged again, knows no others.
 */
export function portOf(
  address: Address,
  flow: { protocol: number; destinationPort?: number; icmpType?: number; icmpCode?: number },
): number | undefined {
  const { protocol, destinationPort, icmpType, icmpCode } = flow;
  if (portProtocols.has(protocol)) return destinationPort;
  if (protocol !== icmpProtocol[address.family] || icmpType === undefined || icmpCode === undefined) return undefined;
  return icmpNumber(icmpType, icmpCode);
}

export interface Destination {
  address: Address;
  protocol: number;
  /** portOf(). Absent: no list of ports matches. */
  port?: number;
}

/** 'match', or the first thing that is not among the service's. */
export type Probe = 'match' | 'address' | 'protocol' | 'port';

export type ServiceTest = (destination: Destination) => Probe;

/** A plan holds canonical text; an address that cannot be read is our own mistake and throws. */
export function compileService({ addresses, ports }: Pick<ServiceEntry, 'addresses' | 'ports'>): ServiceTest {
  const set = PrefixSet.of(addresses.map((text) => must(parseRange(text))));
  const covers = compilePorts(ports);
  return (destination) => (set.has(destination.address) ? covers(destination) : 'address');
}

/** Wherever it is. */
export function compilePorts(
  ports: readonly PortEntry[] | null,
): (destination: Destination) => Exclude<Probe, 'address'> {
  return ({ protocol, port }) => {
    if (ports === null) return 'match';
    let probe: 'protocol' | 'port' = 'protocol';
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
