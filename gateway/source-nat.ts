/**
 * With which address a flow leaves a gateway (design §5, §6), in the hook that only a flow's first packet runs. Most
 * workloads have one address, which one map gives. Else the packet mark carries, step by step: the table of the
 * source's destinations; the EgressIP that this table, or the source alone, leads to; and, of an EgressIP that spreads by
 * connection, the place of an address by the flow's hash, as the node found the shard by it (kernel/flow-hash.ts). The
 * destination is the one that the pod asked for, wherever a rule sends the flow instead: the node knew no other.
 * What is led to no address is dropped. Each step is one look-up, whatever the number of pods, EgressIPs and prefixes.
 */
import { formatAddress } from '../api/address.ts';
import { GATEWAY_EGRESS_MARK, GATEWAY_SLOT_BITS } from '../api/names.ts';
import { type Egress, type Family, families, type GatewayPlan, type WorkloadEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { flowHash } from '../kernel/flow-hash.ts';
import { concat, connectionLimitText, markText, type NftSet, rangeText } from '../kernel/nft.ts';
import { compileEgress, type EgressMap, servedRanges } from '../policy/egress.ts';
import { shareOf } from '../policy/limits.ts';
import { addressType, header, perFamily } from './destination-sets.ts';
import { Numbers } from './marks.ts';
import type { Scope, SetHead } from './table.ts';

type Plan = Pick<GatewayPlan, 'egressIPs' | 'destinations'>;

const NUMBERS = 2 ** (31 - GATEWAY_SLOT_BITS) - 1;
const marksOf = (names: Iterable<string>): Map<string, number> =>
  new Map(
    [...new Numbers(NUMBERS, names)].map(([name, number]) => [
      name,
      (GATEWAY_EGRESS_MARK | (number << GATEWAY_SLOT_BITS)) >>> 0,
    ]),
  );

/** EgressIP name → packet mark; of those of which the plan says something that a flow's first packet asks for. */
export const egressMarks = ({ egressIPs }: Pick<GatewayPlan, 'egressIPs'>): Map<string, number> =>
  marksOf(
    Object.entries(egressIPs).flatMap(([name, { bandwidth, allocation, ...more }]) =>
      (bandwidth ?? allocation) !== undefined && Object.keys(more).length === 0 ? [] : name,
    ),
  );

/**
 * Workloads that a gateway takes, and addresses of each family: the length of the kernel's tables, of 2 MB each, in which
 * every new flow is looked up. It cannot grow.
 */
export const WORKLOADS_MAX = 262_144;

/** Sets of sources: what a workload's addresses are in. `noegress`, `partly`: nodes steer none of it, or not all. */
const sourceSets = ['noegress', 'partly', 'snat', 'own', 'egressip', 'table', 'pick'] as const;
type SourceSet = (typeof sourceSets)[number];
/** Made once, since there are so many elements. */
const nameOf = perFamily(
  (family) => Object.fromEntries(sourceSets.map((set) => [set, `${set}${family}`])) as Record<SourceSet, string>,
);

export function sourceHeads(): Record<string, SetHead> {
  const heads: Record<string, SetHead> = {};
  for (const family of families) {
    const type = addressType[family];
    const of: Record<SourceSet, SetHead> = {
      noegress: { type, size: WORKLOADS_MAX },
      partly: { type },
      snat: { type, value: type, size: WORKLOADS_MAX },
      own: { type: `${type} . ${type}`, size: WORKLOADS_MAX },
      egressip: { type, value: 'mark' },
      table: { type, value: 'mark' },
      pick: { type: `${type} . mark`, value: type },
    };
    for (const set of sourceSets) heads[nameOf[family][set]] = of[set];
  }
  return heads;
}

/** Chains to which a flow goes that may not leave. */
export interface Refusals {
  noAddress: string;
  overLimit: string;
}

/** Workloads for which one plan's EgressIPs say something else than another's. */
export interface EgressDifference {
  /** Their elements are others. */
  remade(workload: WorkloadEntry): boolean;
  /** Their flows may leave with other addresses. */
  touched(workload: WorkloadEntry): boolean;
}

/** Of one plan's EgressIPs, which it copies: a plan is changed in place. */
export class SourceNat {
  readonly #plan: Plan;
  readonly #pool: string;
  readonly #isHeld: (shard: string) => boolean;
  readonly #egress: EgressMap;
  readonly #egressMarks: Map<string, number>;
  readonly #tableMarks: Map<string, number>;

  /** `isHeld`: whether this gateway holds `pool/shard`. */
  constructor({ egressIPs, destinations }: Plan, pool: string, isHeld: (shard: string) => boolean) {
    this.#plan = { egressIPs: { ...egressIPs }, destinations: { ...destinations } };
    this.#pool = pool;
    this.#isHeld = isHeld;
    this.#egress = compileEgress(this.#plan);
    this.#egressMarks = egressMarks(this.#plan);
    this.#tableMarks = marksOf(Object.keys(destinations));
  }

  isOf({ egressIPs, destinations }: Plan): boolean {
    return sameJson(egressIPs, this.#plan.egressIPs) && sameJson(destinations, this.#plan.destinations);
  }

  /** Elements that a workload brings by one of its addresses. Returns whether it has an egress IP of the family at all. */
  elementsOf(
    workload: WorkloadEntry,
    address: string,
    family: Family,
    each: (set: string, key: string, value: string) => void,
  ): boolean {
    const names = nameOf[family];
    const { egressIP, egress, destinations, elsewhere = {} } = workload;
    const own = egress[family];
    // Nearly every workload.
    if (egressIP === undefined && destinations === undefined) {
      if (own === undefined) each(names.noegress, address, '');
      else {
        each(names.snat, address, own.address);
        each(names.own, concat(address, own.address), '');
      }
      return own !== undefined;
    }
    const put = (set: SourceSet, value: string, also?: string): void =>
      each(names[set], also === undefined ? address : concat(address, also), value);
    const everything = this.#egress.everything(workload, family);
    const leaves = everything.length > 0;
    if (!leaves) put('noegress', '');
    for (const text of new Set(everything.map((one) => one.address))) put('own', '', text);
    if (egressIP !== undefined) {
      const mark = this.#mark(egressIP);
      put('egressip', mark);
      if (own !== undefined) put('pick', own.address, mark);
    } else if (own !== undefined) put('snat', own.address);
    if (destinations === undefined) return leaves;
    put('table', markText(this.#tableMarks.get(destinations) ?? 0));
    const [otherwise] = this.#egress.choices(workload, family);
    if (otherwise?.addresses.length === 0 && leaves) put('partly', '');
    for (const [name, { [family]: there }] of Object.entries(elsewhere)) {
      if (there !== undefined && (name !== egressIP || own === undefined)) put('pick', there.address, this.#mark(name));
    }
    return leaves;
  }

  #mark(egressIP: string): string {
    return markText(this.#egressMarks.get(egressIP) ?? 0);
  }

  /** Against another, earlier one. Limits and what is held make no difference. */
  differenceFrom(before: SourceNat): EgressDifference {
    const remade = new Set<string>();
    const touched = new Set<string>();
    const names = new Set([...Object.keys(before.#plan.egressIPs), ...Object.keys(this.#plan.egressIPs)]);
    for (const name of names) {
      const [was, is] = [before.#plan.egressIPs[name], this.#plan.egressIPs[name]];
      const moved = before.#egressMarks.get(name) !== this.#egressMarks.get(name);
      if (moved || !sameJson(was?.spread, is?.spread)) remade.add(name);
      if (!sameJson(was?.spread, is?.spread) || !sameJson(was?.destinations, is?.destinations)) touched.add(name);
    }
    const remadeTables = new Set<string>();
    const touchedTables = new Set<string>();
    for (const key of new Set([...Object.keys(before.#plan.destinations), ...Object.keys(this.#plan.destinations)])) {
      const [was, is] = [before.#plan.destinations[key], this.#plan.destinations[key]];
      const other = !sameJson(was, is);
      const moved = before.#tableMarks.get(key) !== this.#tableMarks.get(key);
      if (other || moved || is?.egressIPs.some((name) => remade.has(name))) remadeTables.add(key);
      if (other || is?.egressIPs.some((name) => touched.has(name))) touchedTables.add(key);
    }
    const among =
      (egressIPs: ReadonlySet<string>, tables: ReadonlySet<string>) =>
      ({ egressIP, destinations, elsewhere }: WorkloadEntry): boolean =>
        (egressIP !== undefined && egressIPs.has(egressIP)) ||
        (destinations !== undefined && tables.has(destinations)) ||
        (elsewhere !== undefined && Object.keys(elsewhere).some((name) => egressIPs.has(name)));
    return { remade: among(remade, remadeTables), touched: among(touched, touchedTables) };
  }

  /** The hook's chain, and the sets of EgressIPs that it asks, which `scope` holds. */
  compile(scope: Scope, refusals: Refusals): void {
    const rules = families.flatMap((family) => this.#familyRules(scope, family, refusals));
    const limits = this.#limits();
    if (limits.size > 0) scope.set('egress_limits', { type: 'mark', limited: 'connections', elements: limits });
    scope.chain('nat', { hook: 'type nat hook postrouting priority srcnat; policy accept;', rules });
  }

  #familyRules(scope: Scope, family: Family, { noAddress, overLimit }: Refusals): string[] {
    const ip = header[family];
    const type = addressType[family];
    const plain = `snat ${ip} to ${ip} saddr map @snat${family}`;
    if (this.#egressMarks.size === 0) return [plain];
    const chain = (noun: string, rules: string[]): string => {
      scope.chain(`${noun}${family}`, { rules });
      return `${noun}${family}`;
    };
    const limited = Object.values(this.#plan.egressIPs).some(({ limits }) => limits !== undefined);
    const spreads = this.#spreads(family);
    if (spreads.size > 0) {
      const set = (name: string, value: NftSet['value'] & string, elements: Map<string, string>): void =>
        scope.set(`${name}${family}`, { type: 'mark', value, elements });
      set('spread', type, spreads);
      const chosen = chain('by_flow', [`snat ${ip} to meta mark map @spread${family}`, `goto ${noAddress}`]);
      set('spreads', 'verdict', this.#spreadChains(scope, family, chosen));
    }
    const by = chain('by_egressip', [
      ...(limited ? [`meta mark @egress_limits goto ${overLimit}`] : []),
      ...(spreads.size > 0 ? [`meta mark vmap @spreads${family}`] : []),
      `snat ${ip} to ${ip} saddr . meta mark map @pick${family}`,
      `goto ${noAddress}`,
    ]);
    const otherwise = [`meta mark set ${ip} saddr map @egressip${family} goto ${by}`, plain];
    if (this.#tableMarks.size === 0) return otherwise;
    scope.set(`dest${family}`, {
      type: `mark . ${type} . inet_proto`,
      value: 'mark',
      interval: true,
      elements: this.#tables(family),
    });
    const to = chain('by_destination', [
      `meta mark set meta mark . ct original ${ip} daddr . meta l4proto map @dest${family} goto ${by}`,
      ...otherwise,
      `goto ${noAddress}`,
    ]);
    return [`meta mark set ${ip} saddr map @table${family} goto ${to}`, ...otherwise];
  }

  #limits(): Map<string, string> {
    const elements = new Map<string, string>();
    for (const [name, { limits }] of Object.entries(this.#plan.egressIPs)) {
      if (limits === undefined) continue;
      elements.set(this.#mark(name), connectionLimitText(shareOf(limits.maxConnections, limits.shards, this.#isHeld)));
    }
    return elements;
  }

  /**
   * By place. A flow may come here as one of another gateway's shard, while node and gateway have different plans: it gets
   * an address of a shard that is held here, since the answers come to that one's gateway.
   */
  #spreads(family: Family): Map<string, string> {
    const elements = new Map<string, string>();
    const isHeld = ({ shard }: Egress): boolean => this.#isHeld(`${this.#pool}/${shard}`);
    for (const [name, { spread }] of Object.entries(this.#plan.egressIPs)) {
      const all = spread?.[family] ?? [];
      const here = all.filter(isHeld);
      for (const [slot, own] of all.entries()) {
        const used = isHeld(own) ? own : (here[slot % here.length] ?? own);
        elements.set(markText((this.#egressMarks.get(name) ?? 0) + slot), used.address);
      }
    }
    return elements;
  }

  #spreadChains(scope: Scope, family: Family, chosen: string): Map<string, string> {
    const verdicts = new Map<string, string>();
    for (const [name, { spread }] of Object.entries(this.#plan.egressIPs)) {
      const count = spread?.[family]?.length ?? 0;
      if (count === 0) continue;
      const offset = this.#egressMarks.get(name) ?? 0;
      const hashes = flowHash(family, count, { asSent: true, offset });
      const chain = scope.add(
        'spread',
        hashes.map((hash) => `meta mark set ${hash} goto ${chosen}`),
      );
      verdicts.set(markText(offset), `goto ${chain}`);
    }
    return verdicts;
  }

  /** With every protocol: nft 1.0.6 cannot delete an element with a mark that has no range. */
  #tables(family: Family): Map<string, string> {
    const elements = new Map<string, string>();
    for (const [key, { egressIPs }] of Object.entries(this.#plan.destinations)) {
      const table = markText(this.#tableMarks.get(key) ?? 0);
      for (const { first, last, egressIP } of servedRanges(egressIPs, this.#plan.egressIPs, family)) {
        const span = rangeText(formatAddress({ family, value: first }), formatAddress({ family, value: last }));
        elements.set(concat(table, span, '0-255'), this.#mark(egressIP));
      }
    }
    return elements;
  }
}
