/**
 * The space of destinations (address, protocol, port) cut into cells within which every external service gives the
 * same answer, so that one sample speaks for a whole cell and an analysis is exact (lint, simulate). A cell is a class
 * of addresses times a class of traffic; a class is all that no service tells apart, however many pieces it has: a
 * list of thousands of addresses is two classes. Where a service has names or checks, the answer may be that it is open.
 * Left out: what a reading says there (said.ts).
 */

import type { Address, Range } from '../../api/address.ts';
import { addressBits, formatAddress, parseRange } from '../../api/address.ts';
import type { Family, PortEntry, ServiceEntry } from '../../api/plan.ts';
import { icmpProtocol, isIcmp } from '../../api/ports.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import type { Destination } from '../destination.ts';
import { compileService, hasPorts, portRangesOf } from '../destination.ts';

export interface AddressClass {
  sample: Address;
  /** Sorted, disjoint. */
  ranges: Range[];
}

/** Protocols from `first` to `last`, with all their ports; or ports (ICMP: types and codes) of one protocol. */
export interface Span {
  first: number;
  last: number;
  /** Inclusive, numbered as in PortEntry; null: all, or the protocol has none. */
  ports: [number, number] | null;
}

export interface TrafficClass {
  protocol: number;
  /** Absent where the protocol has no ports, or the packet shows none (then `spans` is empty). */
  port?: number;
  spans: Span[];
}

export interface Cells {
  family: Family;
  addresses: AddressClass[];
  traffic: TrafficClass[];
}

/** Thrown where an exact answer would take too long; the message says of what there is too much. */
export class TooLarge extends Error {}

/** Steps that one cutting may take: seconds. */
const MAX_STEPS = 20_000_000;
const LAST_PROTOCOL = 255;
const LAST_PORT = 65_535;

export function cellsOf(services: readonly ServiceEntry[], family: Family): Cells {
  return { family, addresses: addressClasses(services, family), traffic: trafficClasses(services, family) };
}

/** A flow that lies in the cell, for the tests of services and rules. */
export function sampleOf({ sample }: AddressClass, { protocol, port }: TrafficClass): Destination {
  return { address: sample, protocol, ...(port !== undefined && { port }) };
}

/** Lists with more boundaries than this are mostly shared by many groups of pods (a cluster rule's): cut once. */
const LONG = 128;

function addressClasses(services: readonly ServiceEntry[], family: Family): AddressClass[] {
  const lists = [...new Set(services.map(({ addresses }) => readList(addresses)))];
  const long = lists.filter((list) => list[family].length > LONG);
  const short = partition(
    lists.filter((list) => list[family].length <= LONG),
    family,
  );
  const [first] = long;
  if (first === undefined) return short;
  const key = `${family} ${long.map(({ id }) => id).join()}`;
  const cut = first.cut.get(key) ?? partition(long, family);
  first.cut.set(key, cut);
  return cut.flatMap((one) =>
    short.flatMap((other): AddressClass[] => {
      const ranges = intersect(one.ranges, other.ranges);
      return ranges[0] === undefined ? [] : [{ sample: { family, value: ranges[0].first }, ranges }];
    }),
  );
}

/** Both sorted and disjoint; so is the result. */
function intersect(a: readonly Range[], b: readonly Range[]): Range[] {
  const both: Range[] = [];
  for (let i = 0, j = 0; ; ) {
    const [left, right] = [a[i], b[j]];
    if (left === undefined || right === undefined) return both;
    if (left.last < right.first) i++;
    else if (right.last < left.first) j++;
    else {
      // Most lie wholly in the other, and are taken as they are.
      if (right.first <= left.first && left.last <= right.last) both.push(left);
      else if (left.first <= right.first && right.last <= left.last) both.push(right);
      else {
        // Neither holds the other: the one that begins later ends later.
        const [first, last] = left.first > right.first ? [left.first, right.last] : [right.first, left.last];
        both.push({ family: left.family, first, last });
      }
      if (left.last < right.last) i++;
      else j++;
    }
  }
}

function partition(lists: readonly ReadList[], family: Family): AddressClass[] {
  const top = (1n << BigInt(addressBits(family))) - 1n;
  // Where a list begins or ends; each list's own are in order, which is what makes the sort quick.
  const bounds = lists.flatMap((list, index) => list[family].map((at) => ({ at, index })));
  bounds.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
  const active = new Set<number>();
  const classes = new Map<string, AddressClass>();
  let first = 0n;
  let steps = 0;
  const close = (last: bigint): void => {
    steps += active.size;
    if (steps > MAX_STEPS) throw new TooLarge(`${bounds.length} address boundaries of ${lists.length} lists`);
    const key = [...active].sort((a, b) => a - b).join();
    const known = classes.get(key);
    if (known === undefined) {
      classes.set(key, { sample: { family, value: first }, ranges: [{ family, first, last }] });
    } else known.ranges.push({ family, first, last });
  };
  for (const { at, index } of bounds) {
    if (at > first) close(at - 1n);
    first = at;
    if (!active.delete(index)) active.add(index);
  }
  if (first <= top) close(top);
  return [...classes.values()];
}

/** By family: first addresses of the list's ranges, and those that follow them, in order. */
interface ReadList extends Record<Family, bigint[]> {
  id: number;
  /** Of long lists: classes by family and the lists that were cut with it. */
  cut: Map<string, AddressClass[]>;
}
let lastId = 0;
/** A list of thousands is cut for every group of pods, and read once. */
const read = new WeakMap<readonly string[], ReadList>();

function readList(addresses: readonly string[]): ReadList {
  const known = read.get(addresses);
  if (known !== undefined) return known;
  const set = PrefixSet.of(addresses.map((text) => must(parseRange(text))));
  const of = (family: Family): bigint[] => set.ranges(family).flatMap(({ first, last }) => [first, last + 1n]);
  const list = { 4: of(4), 6: of(6), id: ++lastId, cut: new Map() };
  read.set(addresses, list);
  return list;
}

function trafficClasses(services: readonly ServiceEntry[], family: Family): TrafficClass[] {
  const all = services.flatMap(({ ports, checks = [] }) => [
    ports,
    ...checks.map(({ protocol, ports: checked }): PortEntry[] => [{ protocol, ports: checked }]),
  ]);
  const lists = [...new Map(all.map((ports) => [JSON.stringify(ports), ports])).values()];
  const cuts = new Map<number, Set<number>>();
  for (const entry of lists.flatMap((ports) => ports ?? [])) {
    const bounds = cuts.get(entry.protocol) ?? new Set([0]);
    cuts.set(entry.protocol, bounds);
    for (const [first, last] of portRangesOf(entry) ?? []) bounds.add(first).add(last + 1);
  }
  // The one test of policy/destination.ts, over an address that all have.
  const address: Address = { family, value: 0n };
  const tests = lists.map((ports) => compileService({ addresses: [formatAddress(address)], ports }));
  // ICMP has types in packets of its own family only (destination.ts).
  const numbered = (protocol: number): boolean =>
    hasPorts(protocol) && (!isIcmp(protocol) || protocol === icmpProtocol[family]);
  const classes = new Map<string, TrafficClass>();
  let steps = 0;
  const add = (sample: { protocol: number; port?: number }, spans: Span[]): void => {
    steps += tests.length;
    if (steps > MAX_STEPS) throw new TooLarge(`${lists.length} lists of ports`);
    const answers = tests.map((test) => (test({ address, ...sample }) === 'match' ? '1' : '0')).join('');
    // Traffic that shows no port is a class of its own, since it has no extent.
    const key = `${spans.length === 0} ${answers}`;
    const known = classes.get(key);
    if (known === undefined) classes.set(key, { ...sample, spans });
    else known.spans.push(...spans);
  };
  const unnamed: Span[] = [];
  for (let protocol = 0; protocol <= LAST_PROTOCOL; protocol++) {
    const bounds = cuts.get(protocol);
    if (bounds === undefined) {
      unnamed.push({ first: protocol, last: protocol, ports: null });
      continue;
    }
    if (!numbered(protocol)) {
      add({ protocol }, [{ first: protocol, last: protocol, ports: null }]);
      continue;
    }
    const sorted = [...bounds].filter((bound) => bound <= LAST_PORT).sort((a, b) => a - b);
    sorted.forEach((port, index) => {
      const ports: [number, number] = [port, (sorted[index + 1] ?? LAST_PORT + 1) - 1];
      add({ protocol, port }, [{ first: protocol, last: protocol, ports }]);
    });
    add({ protocol }, []);
  }
  const other = unnamed[0]?.first;
  if (other !== undefined) add({ protocol: other, ...(numbered(other) && { port: 0 }) }, unnamed);
  return [...classes.values()];
}

/** The same spans, sorted and as few as can be. */
export function mergeSpans(spans: readonly Span[]): Span[] {
  const merged: Span[] = [];
  const start = ({ ports }: Span): number => ports?.[0] ?? 0;
  for (const { first, last, ports } of spans.toSorted((a, b) => a.first - b.first || start(a) - start(b))) {
    const open = merged.at(-1);
    if (open?.first === first && open.ports !== null && ports !== null && ports[0] <= open.ports[1] + 1) {
      open.ports = [open.ports[0], Math.max(open.ports[1], ports[1])];
    } else merged.push({ first, last, ports: ports === null ? null : [...ports] });
  }
  const whole: Span[] = [];
  for (const span of merged) {
    const all = span.ports === null || (span.ports[0] === 0 && span.ports[1] === LAST_PORT);
    const open = whole.at(-1);
    if (all && open?.ports === null && open.last + 1 === span.first) open.last = span.last;
    else whole.push(all ? { ...span, ports: null } : span);
  }
  return whole;
}
