/**
 * With which addresses a workload's flows leave (design §3, EgressIP): of the EgressIPs whose `destinations` have the
 * flow's, the one with the longest prefix; else the one that serves the rest. Explain, the re-check of established flows
 * and the tests ask here, and what nodes and gateways have in the kernel is made of the same ranges.
 * Left out: which of several addresses a flow gets where an EgressIP spreads by connection: the kernel's hash says.
 */
import { type Address, parsePrefix, prefixRange, type Range } from '../api/address.ts';
import type { Egress, Family, GatewayPlan, WorkloadEntry } from '../api/plan.ts';
import { must } from '../api/result.ts';

/** Addresses that one EgressIP serves. */
export interface ServedRange extends Range {
  egressIP: string;
  /** Of which this is all or a part. */
  prefix: string;
}

type EgressIPs = Readonly<Record<string, { destinations?: string[] }>>;

/**
 * The destinations of EgressIPs, cut so that each address belongs to one: sorted, disjoint. `names` in order of
 * precedence: of one prefix the first has it, of nested ones the longest.
 */
export function servedRanges(names: readonly string[], egressIPs: EgressIPs, family: Family): ServedRange[] {
  const winners = new Map<string, ServedRange>();
  for (const egressIP of names) {
    for (const text of egressIPs[egressIP]?.destinations ?? []) {
      if (winners.has(text) || text.includes(':') !== (family === 6)) continue;
      winners.set(text, { ...prefixRange(must(parsePrefix(text))), egressIP, prefix: text });
    }
  }
  const prefixes = [...winners.values()].sort((a, b) => compare(a.first, b.first) || compare(b.last, a.last));
  const ranges: ServedRange[] = [];
  const put = (first: bigint, last: bigint, of: ServedRange): void => {
    if (first <= last) ranges.push({ ...of, first, last });
  };
  // Those that are open hold one another, the innermost last.
  const open: ServedRange[] = [];
  let at = 0n;
  const closeBefore = (end: bigint | undefined): void => {
    for (let inner = open.at(-1); inner !== undefined; inner = open.at(-1)) {
      if (end !== undefined && inner.last >= end) {
        put(at, end - 1n, inner);
        return;
      }
      put(at, inner.last, inner);
      at = inner.last + 1n;
      open.pop();
    }
  };
  for (const prefix of prefixes) {
    closeBefore(prefix.first);
    at = prefix.first;
    open.push(prefix);
  }
  closeBefore(undefined);
  return ranges;
}

const compare = (a: bigint, b: bigint): number => (a < b ? -1 : a > b ? 1 : 0);

export interface EgressChoice {
  /** The EgressIP, if the plan has an entry of it. */
  egressIP?: string;
  /** Of one that was chosen by destination: the longest prefix of its that has it. */
  prefix?: string;
  /** Any of these; none: nothing may leave. */
  addresses: readonly Egress[];
  /** Whether an EgressIP selects the workload for this at all, with addresses of the family or not. */
  assigned: boolean;
}

export interface EgressMap {
  towards(workload: WorkloadEntry, destination: Address): EgressChoice;
  /** Where no EgressIP of its destinations says otherwise, then by each of these. */
  choices(workload: WorkloadEntry, family: Family): EgressChoice[];
  /** With any of these, by whatever destination. */
  everything(workload: WorkloadEntry, family: Family): readonly Egress[];
  /** Prefixes and parts of prefixes that have an EgressIP of their own. */
  ranges(workload: WorkloadEntry, family: Family): readonly ServedRange[];
}

export function compileEgress({ egressIPs, destinations }: Pick<GatewayPlan, 'egressIPs' | 'destinations'>): EgressMap {
  const made = new Map<string, readonly ServedRange[]>();

  function ranges({ destinations: table }: WorkloadEntry, family: Family): readonly ServedRange[] {
    if (table === undefined) return [];
    const key = `${family} ${table}`;
    let found = made.get(key);
    if (found === undefined) {
      found = servedRanges(namesOf(table), egressIPs, family);
      made.set(key, found);
    }
    return found;
  }

  function namesOf(table: string): string[] {
    const entry = destinations[table];
    if (entry === undefined) throw new TypeError(`plan: no table of destinations ${JSON.stringify(table)}`);
    return entry.egressIPs;
  }

  function by(workload: WorkloadEntry, egressIP: string, family: Family): EgressChoice {
    const { spread } = egressIPs[egressIP] ?? missing(egressIP);
    const own = workload.elsewhere?.[egressIP]?.[family];
    return { egressIP, addresses: spread?.[family] ?? (own === undefined ? [] : [own]), assigned: true };
  }

  function otherwise({ egressIP, egress }: WorkloadEntry, family: Family): EgressChoice {
    const entry = egressIP === undefined ? {} : (egressIPs[egressIP] ?? missing(egressIP));
    const own = egress[family];
    return {
      ...(egressIP !== undefined && { egressIP }),
      addresses: entry.spread?.[family] ?? (own === undefined ? [] : [own]),
      assigned: egressIP !== undefined || Object.keys(egress).length > 0,
    };
  }

  function choices(workload: WorkloadEntry, family: Family): EgressChoice[] {
    const { destinations: table } = workload;
    const others = table === undefined ? [] : namesOf(table).map((name) => by(workload, name, family));
    return [otherwise(workload, family), ...others];
  }

  return {
    ranges,
    choices,
    everything: (workload, family) => choices(workload, family).flatMap(({ addresses }) => addresses),
    towards(workload, { family, value }) {
      const found = rangeWith(ranges(workload, family), value);
      if (found === undefined) return otherwise(workload, family);
      return { ...by(workload, found.egressIP, family), prefix: found.prefix };
    },
  };
}

/** A plan that names what it does not hold must not come into force: a flow could leave with an address of another. */
function missing(egressIP: string): never {
  throw new TypeError(`plan: no EgressIP ${JSON.stringify(egressIP)}`);
}

function rangeWith(ranges: readonly ServedRange[], value: bigint): ServedRange | undefined {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ranges[middle] as ServedRange).first <= value) low = middle + 1;
    else high = middle;
  }
  const range = ranges[low - 1];
  return range !== undefined && value <= range.last ? range : undefined;
}
