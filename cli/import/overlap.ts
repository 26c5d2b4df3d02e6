/**
 * Rules of one context that can match the same packet and say different things of it: then their order decides.
 * A line is swept over the addresses, so that ten thousand rules that do not touch cost no more than their sorting; the
 * work on those that do is bounded, and the answer says whether all were compared. Pure.
 */
import type { Range } from '../../api/address.ts';
import { type Family, families, type PortEntry } from '../../api/plan.ts';

export interface Destinations {
  ranges: Range[];
  /** null: every protocol. */
  ports: PortEntry[] | null;
}

export interface Candidate {
  /** Rules of one group can meet in one packet: same context, namespace and Service. */
  group: string;
  name: string;
  action: string;
  destinations: Destinations[];
}

export interface Overlap {
  first: Candidate;
  second: Candidate;
}

/** Comparisons in all, and overlaps that are kept. */
const MAX_COMPARISONS = 2_000_000;
const MAX_OVERLAPS = 1_000;

interface Item {
  range: Range;
  ports: PortEntry[] | null;
  candidate: Candidate;
}

export function overlapsOf(candidates: readonly Candidate[]): { overlaps: Overlap[]; complete: boolean } {
  const groups = new Map<string, Candidate[]>();
  for (const candidate of candidates) {
    const group = groups.get(candidate.group);
    if (group === undefined) groups.set(candidate.group, [candidate]);
    else group.push(candidate);
  }
  const overlaps: Overlap[] = [];
  let comparisons = 0;
  for (const group of groups.values()) {
    if (new Set(group.map(({ action }) => action)).size < 2) continue;
    const pairs = new Set<string>();
    for (const family of families) {
      /** By action: only rules that say something else are compared. */
      const active = new Map<string, Item[]>();
      for (const item of itemsOf(group, family)) {
        const { range, candidate, ports } = item;
        for (const [action, list] of active) {
          if (action === candidate.action) continue;
          const open = list.filter((one) => one.range.last >= range.first);
          active.set(action, open);
          comparisons += list.length;
          if (comparisons > MAX_COMPARISONS) return { overlaps, complete: false };
          for (const one of open) {
            const pair = [one.candidate.name, candidate.name].sort().join('\n');
            if (pairs.has(pair) || !portsMeet(one.ports, ports)) continue;
            if (overlaps.length >= MAX_OVERLAPS) return { overlaps, complete: false };
            pairs.add(pair);
            const [first, second] =
              one.candidate.name < candidate.name ? [one.candidate, candidate] : [candidate, one.candidate];
            overlaps.push({ first, second });
          }
        }
        const same = active.get(candidate.action);
        if (same === undefined) active.set(candidate.action, [item]);
        else same.push(item);
      }
    }
  }
  return { overlaps, complete: true };
}

function itemsOf(group: readonly Candidate[], family: Family): Item[] {
  return group
    .flatMap((candidate) =>
      candidate.destinations.flatMap(({ ranges, ports }) =>
        ranges.filter((range) => range.family === family).map((range) => ({ range, ports, candidate })),
      ),
    )
    .sort((a, b) => (a.range.first < b.range.first ? -1 : a.range.first > b.range.first ? 1 : 0));
}

function portsMeet(a: PortEntry[] | null, b: PortEntry[] | null): boolean {
  if (a === null || b === null) return true;
  return a.some((one) =>
    b.some(
      (other) =>
        one.protocol === other.protocol &&
        (one.ports === null ||
          other.ports === null ||
          one.ports.some(([first, last]) => other.ports?.some(([from, to]) => first <= to && from <= last) === true)),
    ),
  );
}
