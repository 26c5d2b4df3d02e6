/**
 * Ports of an ExternalService from what other products write: merged where they overlap, each entry with a name of its
 * own, and as few entries as our schema takes. Pure.
 */
import type { ServicePort } from '../../api/kinds.ts';
import { chunks } from './rewrite.ts';

/** Entries of one service (api/schema/external-service.ts), and ranges whose text stays below its 512 characters. */
const MAX_ENTRIES = 64;
const MAX_RANGES = 40;

export type PortProtocol = 'TCP' | 'UDP' | 'SCTP';
export type Ranges = [number, number][];
export type Port = ServicePort;

export interface Entry {
  /** As its author called it, if at all. */
  name?: string;
  protocol: PortProtocol;
  /** null: every port. */
  ranges: Ranges | null;
  bandwidth?: string;
}

/** Sorted and disjoint. Ports side by side stay apart, as they were written. */
export function mergeRanges(ranges: Ranges): Ranges {
  const merged: Ranges = [];
  for (const [first, last] of ranges.toSorted((a, b) => a[0] - b[0])) {
    const open = merged.at(-1);
    if (open !== undefined && first <= open[1]) open[1] = Math.max(open[1], last);
    else merged.push([first, last]);
  }
  return merged;
}

/** `merged`: several entries became one; `renamed`: how many names are ours. */
export function portsOf(entries: readonly Entry[]): { ports: Port[]; merged: boolean; renamed: number } {
  const own = entries.flatMap(inChunks);
  const fitting = own.length <= MAX_ENTRIES ? own : mergeEntries(entries).flatMap(inChunks);
  const used = new Set<string>();
  let renamed = 0;
  const ports = fitting.map(({ name = '', protocol, ranges, bandwidth }, i): Port => {
    let free = name;
    if (used.has(free) || free.length > 63 || !/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/.test(free)) {
      free = `${protocol.toLowerCase()}-${i}`;
      for (let n = 2; used.has(free); n++) free = `${protocol.toLowerCase()}-${i}-${n}`;
      renamed++;
    }
    used.add(free);
    const port = ranges?.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(',');
    return {
      name: free,
      protocol,
      ...(port === undefined ? {} : { port }),
      ...(bandwidth === undefined ? {} : { bandwidth }),
    };
  });
  return { ports, merged: ports.length < entries.length, renamed };
}

const inChunks = (entry: Entry): Entry[] =>
  entry.ranges === null ? [entry] : chunks(entry.ranges, MAX_RANGES).map((ranges) => ({ ...entry, ranges }));

/** The ports of one protocol and bandwidth together. */
function mergeEntries(entries: readonly Entry[]): Entry[] {
  const together = new Map<string, Entry>();
  for (const { protocol, bandwidth, ranges } of entries) {
    const key = `${protocol} ${bandwidth ?? ''}`;
    const known = together.get(key);
    if (known === undefined) together.set(key, { protocol, ...(bandwidth !== undefined && { bandwidth }), ranges });
    else known.ranges = ranges === null || known.ranges === null ? null : [...known.ranges, ...ranges];
  }
  return [...together.values()].map((entry) => ({
    ...entry,
    ranges: entry.ranges === null ? null : mergeRanges(entry.ranges),
  }));
}
