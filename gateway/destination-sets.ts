/**
 * A rule's destinations as nftables matches. Few boxes (boxes.ts) are comparisons in the rule itself: most rules name
 * one or two, and a set of its own for each would make every change slow (the kernel finds sets by walking a list of
 * their names). Many are up to four interval sets per family, shared by all rules that name the same services. Ports and
 * types of ICMP need one each, since they stand in different places of a header.
 */
import { formatAddress, formatPrefix, hullOf, type Range, rangeToPrefixes } from '../api/address.ts';
import { digest } from '../api/digest.ts';
import { type Family, families, type RuleEntry, type ServiceEntry } from '../api/plan.ts';
import { icmpProtocol, portProtocols } from '../api/ports.ts';
import { concat, type NftSet, portsText, protocolText, rangeText } from '../kernel/nft.ts';
import { type Boxes, boxesOf, type PortBox, type ProtocolBox } from '../policy/boxes.ts';
import { openParts, unreadPart } from '../policy/parts.ts';
import { factored } from './factors.ts';

export const addressType = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;
export const header = { 4: 'ip', 6: 'ip6' } as const;
export const icmpHeader = { 4: 'icmp', 6: 'icmpv6' } as const;
export const perFamily = <T>(of: (family: Family) => T): Record<Family, T> => ({ 4: of(4), 6: of(6) });

/** The rules and services of a plan, as they are now. */
export interface PolicyView {
  rules: ReadonlyMap<string, RuleEntry>;
  services: ReadonlyMap<string, ServiceEntry>;
}

/** Boxes of one family that are compared one after another: as long as that costs a packet less than a look-up. */
const COMPARED = 8;
/** Lists whose matches are remembered. */
const REMEMBERED = 1_000;

/** Both match, as nftables text with a space behind it, or are '' where all does. */
export interface Match {
  address: string;
  /** Protocol, and ports or types. */
  ports: string;
}

export interface Destinations {
  /** A packet goes to one of them if any of these matches. */
  matches: Match[];
  /** Sets that these ask. */
  sets: [name: string, set: NftSet][];
  /** From the first address that matches to the last; undefined: none does. */
  span?: Range;
}

/** By family; `entries`: what was found under the names; `parts`: what of that is meant. */
export interface Found extends Record<Family, Destinations> {
  entries: (ServiceEntry | undefined)[];
  parts: ServiceEntry[];
}

/**
 * Parts of services (policy/parts.ts): what matches by address and port; what is open until bytes are read; what is open
 * until the name table was asked.
 */
export type Part = 'unread' | 'bytes' | 'first';
const partsOf = (entry: ServiceEntry, part: Part): ServiceEntry[] => {
  // Nearly all.
  if (entry.names === undefined && entry.checks === undefined) return part === 'unread' ? [entry] : [];
  const known = parted.get(entry) ?? partedOf(entry);
  parted.set(entry, known);
  return known[part];
};
/** An entry is asked for each rule that names it, and more than once. */
const parted = new WeakMap<ServiceEntry, Record<Part, ServiceEntry[]>>();
function partedOf(entry: ServiceEntry): Record<Part, ServiceEntry[]> {
  const open = openParts(entry);
  const of = (first: boolean): ServiceEntry[] => open.filter((one) => one.first === first).map(({ boxes }) => boxes);
  return { unread: [unreadPart(entry) ?? []].flat(), bytes: of(false), first: of(true) };
}

export class DestinationSets {
  readonly #policy: PolicyView;
  /** A long list that many rules name is cut into boxes once. */
  readonly #made = new Map<string, Found>();

  constructor(policy: PolicyView) {
    this.#policy = policy;
  }

  /** Of a list of external services. */
  find(services: string[], part: Part = 'unread'): Found {
    const names = services.length < 2 ? services : services.toSorted();
    // No name has a space.
    const key = part === 'unread' ? names.join(',') : `${part} ${names.join(',')}`;
    const entries = names.map((name) => this.#policy.services.get(name));
    const known = this.#made.get(key);
    if (known?.entries.every((entry, index) => entry === entries[index])) return known;
    const parts = entries.flatMap((entry) => (entry === undefined ? [] : partsOf(entry, part)));
    const made = { entries, parts, 4: destinations(key, parts, 4), 6: destinations(key, parts, 6) };
    if (families.every((family) => made[family].sets.length === 0)) return made;
    if (this.#made.size >= REMEMBERED) this.#made.clear();
    this.#made.set(key, made);
    return made;
  }
}

/** Sets that a rule asks. */
export const setsOf = (found: Found | undefined, only?: Family): Destinations['sets'] =>
  found === undefined ? [] : (only === undefined ? families : [only]).flatMap((family) => found[family].sets);

function destinations(key: string, entries: ServiceEntry[], family: Family): Destinations {
  const { multiplied, factors } = factored(entries);
  const made = boxed(key, multiplied, family);
  for (const [at, [where, how]] of factors.entries()) {
    // No list's key ends so.
    const [there, so] = [boxed(`${key} ${at} where`, [where], family), boxed(`${key} ${at} how`, [how], family)];
    if (there.matches.length === 0) continue;
    const span = hullOf([made.span, there.span].flatMap((one) => one ?? []));
    if (span !== undefined) made.span = span;
    made.sets.push(...there.sets, ...so.sets);
    for (const first of there.matches) {
      for (const { address, ports } of so.matches) made.matches.push({ ...first, ports: `${address}${ports}` });
    }
  }
  return made;
}

function boxed(key: string, entries: ServiceEntry[], family: Family): Destinations {
  const boxes = boxesOf(entries, family);
  const count = boxes.addresses.length + protocolRuns(boxes.protocols).length + boxes.ports.length;
  const made = count <= COMPARED ? { matches: comparisons(boxes, family), sets: [] } : madeSets(key, boxes, family);
  const span = spanOf(boxes);
  return span === undefined ? made : { ...made, span };
}

/** Of most there is one box. */
function spanOf({ addresses, protocols, ports }: Boxes): Range | undefined {
  if (addresses.length + protocols.length + ports.length === 1)
    return addresses[0] ?? (protocols[0] ?? ports[0])?.range;
  return hullOf([...addresses, ...protocols.map(({ range }) => range), ...ports.map(({ range }) => range)]);
}

function span({ family, first, last }: Range): string {
  const text = formatAddress({ family, value: first });
  return first === last ? text : rangeText(text, formatAddress({ family, value: last }));
}

function comparisons(boxes: Boxes, family: Family): Match[] {
  const match = (range: Range, ports: string): Match => ({
    address: isWhole(range) ? ofFamily(family) : `${header[family]} daddr ${compared(range)} `,
    ports,
  });
  const matches = boxes.addresses.map((range) => match(range, ''));
  for (const { range, first, last } of protocolRuns(boxes.protocols)) {
    matches.push(match(range, `meta l4proto ${portsText(first, last)} `));
  }
  for (const { range, protocol, first, last } of boxes.ports) {
    if (!portProtocols.has(protocol)) continue;
    matches.push(match(range, `meta l4proto ${protocolText(protocol)} th dport ${portsText(first, last)} `));
  }
  const icmp = icmpHeader[family];
  for (const { range, types, codes } of typesOf(boxes.ports, family)) {
    matches.push(match(range, `${icmp} type ${portsText(...types)} ${icmp} code ${portsText(...codes)} `));
  }
  return matches;
}

/** Matches all addresses of a family. */
export const ofFamily = (family: Family): string => `meta nfproto ipv${family} `;

/** A prefix is one comparison, which the kernel does in line; a range is two calls. */
function compared(range: Range): string {
  if (range.first === range.last) return span(range);
  const [prefix, more] = rangeToPrefixes(range, 2);
  return prefix === undefined || more !== undefined ? span(range) : formatPrefix(prefix);
}

const highest = { 4: 2n ** 32n - 1n, 6: 2n ** 128n - 1n } as const;
const isWhole = ({ family, first, last }: Range): boolean => first === 0n && last === highest[family];

function madeSets(key: string, boxes: Boxes, family: Family): Destinations {
  const base = `to_${digest(key)}`;
  const address = addressType[family];
  const daddr = `${header[family]} daddr`;
  const icmp = icmpHeader[family];
  const made: Destinations = { matches: [], sets: [] };
  const make = (suffix: string, type: string, match: string, keys: string[]): void => {
    if (keys.length === 0) return;
    const name = `${base}_${suffix}${family}`;
    made.sets.push([name, { type, interval: true, elements: new Map(keys.map((text) => [text, ''])) }]);
    made.matches.push({ address: `${match} @${name} `, ports: '' });
  };
  // Not a plain interval set: before it touches anything, nft reads the elements of every one of those in the table.
  make(
    'all',
    `${address} . inet_proto`,
    `${daddr} . meta l4proto`,
    boxes.addresses.map((range) => concat(span(range), '0-255')),
  );
  make(
    'protocols',
    `${address} . inet_proto`,
    `${daddr} . meta l4proto`,
    protocolRuns(boxes.protocols).map(({ range, first, last }) => concat(span(range), portsText(first, last))),
  );
  make(
    'ports',
    `${address} . inet_proto . inet_service`,
    `${daddr} . meta l4proto . th dport`,
    boxes.ports
      .filter(({ protocol }) => portProtocols.has(protocol))
      .map(({ range, protocol, first, last }) => concat(span(range), protocolText(protocol), portsText(first, last))),
  );
  // nft asks for the protocol by itself.
  make(
    'types',
    `${address} . ${icmp}_type . ${icmp}_code`,
    `${daddr} . ${icmp} type . ${icmp} code`,
    typesOf(boxes.ports, family).map(({ range, types, codes }) =>
      concat(span(range), portsText(...types), portsText(...codes)),
    ),
  );
  return made;
}

interface ProtocolRun {
  range: Range;
  first: number;
  last: number;
}

/**
 * Protocols one after another of the same addresses as one: all but a few are what is left of every protocol (policy/parts.ts).
 * The boxes are in the order of their protocols and then of their addresses, as boxesOf() makes them.
 */
export function protocolRuns(boxes: readonly ProtocolBox[]): ProtocolRun[] {
  if (boxes.length === 0) return [];
  const runs: ProtocolRun[] = [];
  /** Of the protocol before, and of this one. */
  let before: ProtocolRun[] = [];
  let now: ProtocolRun[] = [];
  let at = 0;
  for (const { range, protocol } of boxes) {
    if (now[0] !== undefined && now[0].last !== protocol) {
      before = now[0].last + 1 === protocol ? now : [];
      now = [];
      at = 0;
    }
    while (before[at] !== undefined && (before[at] as ProtocolRun).range.first < range.first) at++;
    const open = before[at];
    if (open !== undefined && open.range.first === range.first && open.range.last === range.last) {
      open.last = protocol;
      now.push(open);
    } else {
      const run = { range, first: protocol, last: protocol };
      runs.push(run);
      now.push(run);
    }
  }
  return runs;
}

interface Block {
  types: [first: number, last: number];
  codes: [first: number, last: number];
}

/** Of the other family's ICMP no packet has a type (policy/destination.ts). */
function typesOf(ports: PortBox[], family: Family): (Block & { range: Range })[] {
  return ports
    .filter(({ protocol }) => protocol === icmpProtocol[family])
    .flatMap(({ range, first, last }) => typeBlocks(first, last).map((block) => ({ range, ...block })));
}

/** A range of type * 256 + code as nft takes it, with types and codes apart: types in part, and those with every code. */
export function typeBlocks(first: number, last: number): Block[] {
  const [type, code] = [first >>> 8, first & 0xff];
  const [lastType, lastCode] = [last >>> 8, last & 0xff];
  if (type === lastType || (code === 0 && lastCode === 0xff))
    return [{ types: [type, lastType], codes: [code, lastCode] }];
  if (code !== 0) return [...typeBlocks(first, first | 0xff), ...typeBlocks((type + 1) << 8, last)];
  return [...typeBlocks(first, (lastType << 8) - 1), ...typeBlocks(lastType << 8, last)];
}
