/**
 * What becomes of a packet to any of some destinations, as lines of a chain. Where several addresses are meant with the
 * same ports, the addresses are compared in the list and the ports in a chain of their own, once: a packet to elsewhere
 * pays for the addresses alone, and the kernel, which takes some microseconds for each expression of each rule, has
 * fewer of them to take in.
 */
import { type Family, families } from '../api/plan.ts';
import { type Found, type Match, ofFamily } from './destination-sets.ts';
import type { Scope } from './table.ts';

const anything: Match = { address: '', ports: '' };

/** What a packet may match; `found`: undefined: any destination. `only`: of one family. */
export function matchesOf(found: Found | undefined, only?: Family): Match[] {
  if (found === undefined) return [anything];
  if (only !== undefined) return found[only].matches;
  const of = (family: Family): string[] =>
    found[family].matches.flatMap(({ address, ports }) => (address === ofFamily(family) ? [ports] : []));
  const [four, six] = [of(4), of(6)];
  // Of nearly no rule: it is asked of each.
  if (four.length === 0 || six.length === 0) return [...found[4].matches, ...found[6].matches];
  const ofBoth = four.filter((ports) => six.includes(ports));
  const ofOne = (family: Family): Match[] =>
    found[family].matches.filter(({ address, ports }) => address !== ofFamily(family) || !ofBoth.includes(ports));
  return [...ofBoth.map((ports) => ({ address: '', ports })), ...families.flatMap(ofOne)];
}

/** A line for each match. `ends`: the verdict ends the walk, or leads to where it is ended. */
export function matchLines(matches: readonly Match[], verdict: string, ends: boolean, scope: Scope): string[] {
  const flat = (): string[] => matches.map(({ address, ports }) => `${address}${ports}${verdict}`);
  // Two are not worth a chain, whatever they have in common.
  if (!ends || matches.length < 3) return flat();
  const portsOf = new Map<string, string[]>();
  for (const { address, ports } of matches) portsOf.set(address, [...(portsOf.get(address) ?? []), ports]);
  const addressesOf = new Map<string, { addresses: string[]; ports: string[] }>();
  for (const [address, ports] of portsOf) {
    const same = addressesOf.get(ports.join());
    if (same === undefined) addressesOf.set(ports.join(), { addresses: [address], ports });
    else same.addresses.push(address);
  }
  return [...addressesOf.values()].flatMap(({ addresses, ports }) => {
    const lines = ports.map((text) => `${text}${verdict}`);
    if (!isWorthAChain(addresses.length, ports))
      return addresses.flatMap((address) => lines.map((line) => address + line));
    const chain = scope.add('ports', lines);
    return addresses.map((address) => `${address}jump ${chain}`);
  });
}

/** About how many expressions a comparison of an address, one of ports and a verdict are, and what a chain costs as much as. */
const [ADDRESS, PORTS, VERDICT, CHAIN] = [4, 4, 4, 6];

function isWorthAChain(addresses: number, ports: readonly string[]): boolean {
  if (ports.includes('')) return false;
  const within = ports.length * (PORTS + VERDICT);
  return addresses * (ADDRESS + 1) + CHAIN + within < addresses * (ports.length * ADDRESS + within);
}
