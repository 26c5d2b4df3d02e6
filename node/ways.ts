/**
 * Where a workload's packets go on a node, beyond one shard for all of them (design §6): over the shards of an EgressIP
 * of spread Connection, by the flow's hash; to others by destination. Asked for a flow's first packet only, in steps that do
 * not grow with pods: the source leads to its chain, the destination in one interval map per table to the chain
 * of an EgressIP, and that by a map of sources, or the hash, to a shard's.
 */
import { createHash } from 'node:crypto';
import { formatAddress } from '../api/address.ts';
import { type Family, families, type NodePlan, type NodeWorkloadEntry, type Steer } from '../api/plan.ts';
import { counterName } from '../api/reasons.ts';
import { flowHash } from '../kernel/flow-hash.ts';
import { concat, type NftSet, rangeText } from '../kernel/nft.ts';
import { servedRanges } from '../policy/egress.ts';
import { type Chains, words } from './chains.ts';

/** Nouns of chains that lead a workload to shards, whatever the destination; and only for some destinations. */
const whole = /^goto (s\d+|spread|to)_/;
const part = /^goto part_/;
/** Of an element of `steer4`, `steer6`. */
export const steeringOf = (verdict: string | undefined): 'whole' | 'part' | undefined =>
  verdict === undefined ? undefined : whole.test(verdict) ? 'whole' : part.test(verdict) ? 'part' : undefined;

/** Sets whose elements let flows out: by table of destinations, and by EgressIP. */
export const isWaySet = (name: string): boolean => /^(to|by)[46]_/.test(name);

const idOf = (name: string): string => createHash('sha256').update(name).digest('hex').slice(0, 12);
const destinationSet = (family: Family, table: string): string => `to${family}_${idOf(table)}`;

/** The set of a workload's destinations. */
export const destinationSetOf = (workload: NodeWorkloadEntry, family: Family): string | undefined =>
  workload.destinations === undefined ? undefined : destinationSet(family, workload.destinations);

type Single = Exclude<Steer, { spread: string }> | undefined;

export class Ways {
  readonly #plan: NodePlan;
  readonly #chains: Chains;
  readonly #sets: Record<string, NftSet>;
  readonly #single: (steer: Single) => string | undefined;

  /** `single`: the chain of a shard, or of none; undefined: there is no such shard. */
  constructor(
    plan: NodePlan,
    chains: Chains,
    sets: Record<string, NftSet>,
    single: (steer: Single) => string | undefined,
  ) {
    this.#plan = plan;
    this.#chains = chains;
    this.#sets = sets;
    this.#single = single;
    for (const [key, { egressIPs }] of Object.entries(plan.destinations)) {
      for (const family of families) this.#makeTable(key, egressIPs, family);
    }
  }

  /** The chain of a workload's packets from one of its addresses. */
  of(workload: NodeWorkloadEntry, address: string, family: Family): string {
    const { destinations, elsewhere = {}, steer } = workload;
    const otherwise = this.#chainOf(steer[family], family);
    if (destinations === undefined) return otherwise;
    const table = destinationSet(family, destinations);
    if (this.#sets[table] === undefined) throw new TypeError(`plan: no table of destinations ${destinations}`);
    for (const [name, { [family]: way }] of Object.entries(elsewhere)) {
      if (typeof way !== 'object') continue;
      this.#sets[`by${family}_${idOf(name)}`]?.elements.set(address, `goto ${this.#chainOf(way, family)}`);
    }
    const steered = typeof steer[family] === 'object' ? 'to' : 'part';
    return this.#chains.add(steered, [`${words[family].ip} daddr . meta l4proto vmap @${table}`, `goto ${otherwise}`]);
  }

  #chainOf(steer: Steer | undefined, family: Family): string {
    const chain =
      typeof steer === 'object' && 'spread' in steer ? this.#spread(steer.spread, family) : this.#single(steer);
    if (chain === undefined) throw new TypeError('plan: a workload names a shard that is not there');
    return chain;
  }

  /** Slots are told apart only where neighbours lead to different shards. */
  #spread(egressIP: string, family: Family): string {
    const shards = this.#plan.egressIPs[egressIP]?.spread?.[family] ?? [];
    const targets = shards.map((shard) => this.#chainOf({ shard }, family));
    const [first] = targets;
    if (first === undefined) return this.#chainOf(undefined, family);
    if (targets.every((target) => target === first)) return first;
    const spans: { from: number; to: number; target: string }[] = [];
    for (const [slot, target] of targets.entries()) {
      const last = spans.at(-1);
      if (last?.target === target) last.to = slot;
      else spans.push({ from: slot, to: slot, target });
    }
    const verdicts = spans.map(({ from, to, target }) => `${rangeText(`${from}`, `${to}`)} : goto ${target}`);
    return this.#chains.add(
      'spread',
      flowHash(family, targets.length).map((hash) => `${hash} vmap { ${verdicts.join(', ')} }`),
    );
  }

  /** Not a plain interval set: before it touches anything, nft reads the elements of every one of those in the table. */
  #makeTable(key: string, egressIPs: string[], family: Family): void {
    const elements = new Map<string, string>();
    const chains = new Map(egressIPs.map((name) => [name, this.#chainFor(name, family)]));
    for (const { first, last, egressIP } of servedRanges(egressIPs, this.#plan.egressIPs, family)) {
      const span = rangeText(formatAddress({ family, value: first }), formatAddress({ family, value: last }));
      elements.set(concat(span, '0-255'), `goto ${chains.get(egressIP)}`);
    }
    this.#sets[destinationSet(family, key)] = {
      type: `${words[family].type} . inet_proto`,
      value: 'verdict',
      interval: true,
      elements,
    };
  }

  /** The chain of an EgressIP for whichever of its workloads. */
  #chainFor(egressIP: string, family: Family): string {
    const entry = this.#plan.egressIPs[egressIP];
    if (entry === undefined) throw new TypeError(`plan: no EgressIP ${egressIP}`);
    if (entry.spread !== undefined) return this.#chainOf({ spread: egressIP }, family);
    const set = `by${family}_${idOf(egressIP)}`;
    this.#sets[set] ??= { type: words[family].type, value: 'verdict', elements: new Map() };
    // Of this EgressIP the workload has no address of the family.
    return this.#chains.add('by', [
      `${words[family].ip} saddr vmap @${set}`,
      `counter name ${counterName('no-egress-ip')} drop`,
    ]);
  }
}
