/**
 * External services as disjoint boxes, the form in which nftables takes them: a concatenated interval set (pipapo)
 * refuses elements that overlap in part, so the union of all services of a rule is cut into boxes that do not.
 * Three lists: any protocol (address), all of a protocol (address, protocol), ports (address, protocol, port, or type
 * and code of ICMP). Each list is disjoint in itself and neighbours are merged; the union of the three is exactly the services'.
 * Left out: boxes of one list are not taken away from another's, since three lookups do not mind overlap.
 */

import type { Range } from '../api/address.ts';
import { parseRange } from '../api/address.ts';
import type { Family, ServiceEntry } from '../api/plan.ts';
import { must } from '../api/result.ts';
import { portRangesOf } from './destination.ts';

export interface ProtocolBox {
  range: Range;
  protocol: number;
}

export interface PortBox {
  range: Range;
  protocol: number;
  /** Numbers as in PortEntry.ports. */
  first: number;
  last: number;
}

export interface Boxes {
  /** Every protocol. */
  addresses: Range[];
  /** Every port, type and code of a protocol. */
  protocols: ProtocolBox[];
  ports: PortBox[];
}

type Interval = [first: bigint, last: bigint];
/** Addresses (disjoint, sorted) with any of `ports`. */
interface Slab {
  protocol: number;
  intervals: Interval[];
  ports: [number, number][];
}

export function boxesOf(services: ServiceEntry[], family: Family): Boxes {
  const everything: Interval[] = [];
  const wholeProtocols: { protocol: number; intervals: Interval[] }[] = [];
  const slabs: Slab[] = [];
  for (const service of services) {
    const intervals = merge(intervalsOf(service, family));
    if (intervals.length === 0) continue;
    if (service.ports === null) {
      everything.push(...intervals);
      continue;
    }
    for (const entry of service.ports) {
      const { protocol } = entry;
      const ports = portRangesOf(entry);
      if (ports === null) wholeProtocols.push({ protocol, intervals });
      else {
        const before = slabs.at(-1);
        // Of one service: names for parts of what is one list.
        if (before?.intervals === intervals && before.protocol === protocol) before.ports = [...before.ports, ...ports];
        else slabs.push({ protocol, intervals, ports });
      }
    }
  }
  const range = ([first, last]: Interval): Range => ({ family, first, last });
  const boxes: Boxes = { addresses: merge(everything).map(range), protocols: [], ports: [] };
  for (const { protocol, of } of byProtocol(wholeProtocols)) {
    const intervals = of.length === 1 ? (of[0]?.intervals ?? []) : merge(of.flatMap((one) => one.intervals));
    for (const interval of intervals) boxes.protocols.push({ range: range(interval), protocol });
  }
  for (const { protocol, of } of byProtocol(slabs)) {
    for (const { interval, first, last } of union(of)) {
      boxes.ports.push({ range: range(interval), protocol, first, last });
    }
  }
  return boxes;
}

function intervalsOf(service: ServiceEntry, family: Family): Interval[] {
  const intervals: Interval[] = [];
  for (const text of service.addresses) {
    if (text.includes(':') !== (family === 6)) continue;
    // A plan holds canonical text (plan.ts): anything else is our own mistake, and throws.
    const range = must(parseRange(text));
    intervals.push([range.first, range.last]);
  }
  return intervals;
}

/** Sorted, disjoint, neighbours merged. */
function merge(intervals: Interval[]): Interval[] {
  if (intervals.length < 2) return intervals;
  const merged: Interval[] = [];
  for (const [first, last] of intervals.toSorted((a, b) => compare(a[0], b[0]))) {
    const open = merged.at(-1);
    if (open !== undefined && first <= open[1] + 1n) {
      if (last > open[1]) open[1] = last;
    } else merged.push([first, last]);
  }
  return merged;
}

function union(slabs: Slab[]): { interval: Interval; first: number; last: number }[] {
  const [only] = slabs;
  return only !== undefined && slabs.length === 1 ? crossed(only) : sweep(slabs);
}

/**
 * A line swept over the addresses. Port numbers are cut at every bound that occurs; each segment counts the slabs
 * that cover it where the line stands. Where the covered runs of ports change, boxes whose run ended are closed and
 * new ones opened; a run that stays keeps its box, which is what merges neighbours.
 */
function sweep(slabs: Slab[]): { interval: Interval; first: number; last: number }[] {
  const cuts = [...new Set(slabs.flatMap(({ ports }) => ports.flatMap(([first, last]) => [first, last + 1])))];
  cuts.sort((a, b) => a - b);
  const indexOf = new Map(cuts.map((cut, index) => [cut, index]));
  const events: { at: bigint; slab: Slab; step: 1 | -1 }[] = [];
  for (const slab of slabs) {
    for (const [first, last] of slab.intervals) {
      events.push({ at: first, slab, step: 1 }, { at: last + 1n, slab, step: -1 });
    }
  }
  events.sort((a, b) => compare(a.at, b.at));

  const cover = new Int32Array(cuts.length);
  const touched = new Map<number, boolean>();
  let open = new Map<string, { from: bigint; first: number; last: number }>();
  const boxes: { interval: Interval; first: number; last: number }[] = [];
  for (let i = 0; i < events.length; ) {
    const at = events[i]?.at ?? 0n;
    touched.clear();
    for (let event = events[i]; event !== undefined && event.at === at; event = events[++i]) {
      for (const [first, last] of event.slab.ports) {
        const end = indexOf.get(last + 1) ?? 0;
        for (let segment = indexOf.get(first) ?? 0; segment < end; segment++) {
          const before = cover[segment] ?? 0;
          if (!touched.has(segment)) touched.set(segment, before > 0);
          cover[segment] = before + event.step;
        }
      }
    }
    // Most events of a big list (an address ends where its neighbour begins) change nothing.
    if (![...touched].some(([segment, covered]) => (cover[segment] ?? 0) > 0 !== covered)) continue;
    const next: typeof open = new Map();
    for (const [first, last] of coveredRuns(cuts, cover)) {
      const key = `${first}-${last}`;
      next.set(key, open.get(key) ?? { from: at, first, last });
      open.delete(key);
    }
    for (const { from, first, last } of open.values()) boxes.push({ interval: [from, at - 1n], first, last });
    open = next;
  }
  return boxes.sort((a, b) => compare(a.interval[0], b.interval[0]) || a.first - b.first);
}

/** Of one slab, which is most of them: nothing lies over anything. */
function crossed({ intervals, ports }: Slab): { interval: Interval; first: number; last: number }[] {
  const runs: [number, number][] = [];
  for (const [first, last] of ports.length < 2 ? ports : ports.toSorted((a, b) => a[0] - b[0])) {
    const open = runs.at(-1);
    if (open === undefined || first > open[1] + 1) runs.push([first, last]);
    else if (last > open[1]) open[1] = last;
  }
  const boxes: { interval: Interval; first: number; last: number }[] = [];
  for (const interval of intervals) for (const [first, last] of runs) boxes.push({ interval, first, last });
  return boxes;
}

function coveredRuns(cuts: number[], cover: Int32Array): [number, number][] {
  const runs: [number, number][] = [];
  for (let segment = 0; segment + 1 < cuts.length; segment++) {
    if ((cover[segment] ?? 0) === 0) continue;
    const first = cuts[segment] ?? 0;
    const last = (cuts[segment + 1] ?? 0) - 1;
    const open = runs.at(-1);
    if (open !== undefined && open[1] + 1 === first) open[1] = last;
    else runs.push([first, last]);
  }
  return runs;
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** In the order of their numbers. */
function byProtocol<T extends { protocol: number }>(list: T[]): { protocol: number; of: T[] }[] {
  const groups: { protocol: number; of: T[] }[] = [];
  for (const one of list.length < 2 ? list : list.toSorted((a, b) => a.protocol - b.protocol)) {
    const open = groups.at(-1);
    if (open?.protocol === one.protocol) open.of.push(one);
    else groups.push({ protocol: one.protocol, of: [one] });
  }
  return groups;
}
