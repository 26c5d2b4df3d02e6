/**
 * The bandwidths' part of the gateway's table (bandwidth-chains.ts), kept up to date. While a plan limits nothing it costs no
 * more than a look at what changed; where it limits something, each change makes the part anew, of which the table finds
 * what is different.
 */
import type { EgressIPEntry, GatewayPlan, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { counterName } from '../api/reasons.ts';
import { type Bandwidths, bandwidthsOf } from './bandwidth.ts';
import { bandwidthTable } from './bandwidth-chains.ts';
import type { PolicyChanges } from './plan-changes.ts';
import { Scope, type Table } from './table.ts';

export class BandwidthPart {
  readonly #table: Table;
  readonly #numberOf: (id: string) => number;
  #scope: Scope;
  /** Rules and services that limit something, by `rule` or `service` and their key. */
  readonly #limiting = new Set<string>();
  /** What is limited now. */
  bandwidths: Bandwidths | undefined;
  /** The chain that every packet is to pass. */
  entry: string | undefined;

  /** `numberOf`: of a rule in ct marks. */
  constructor(table: Table, numberOf: (id: string) => number) {
    this.#table = table;
    this.#numberOf = numberOf;
    this.#scope = new Scope(table);
  }

  /** `changes` lead to the plan from the one before. */
  update(plan: GatewayPlan, changes: Pick<PolicyChanges, 'rules' | 'services'>, heldShards: readonly string[]): void {
    for (const id of changes.rules.delete) this.#limiting.delete(`rule ${id}`);
    for (const [id, rule] of changes.rules.set) this.#note(`rule ${id}`, limitsOf(rule));
    for (const key of changes.services.delete) this.#limiting.delete(`service ${key}`);
    for (const [key, service] of changes.services.set) this.#note(`service ${key}`, limitsOf(service));
    const limits = this.#limiting.size > 0 || Object.values(plan.egressIPs).some(limitsOf);
    if (!limits && this.entry === undefined) return;
    const before = this.#scope;
    this.#scope = new Scope(this.#table);
    this.bandwidths = limits ? bandwidthsOf(plan, heldShards) : undefined;
    this.entry = this.bandwidths && this.#add(plan, this.bandwidths);
    // What both want stays as it is.
    before.release();
  }

  #note(name: string, limits: boolean): void {
    if (limits) this.#limiting.add(name);
    // Most plans limit nothing, and a first load comes by here with every rule and service.
    else if (this.#limiting.size > 0) this.#limiting.delete(name);
  }

  #add(plan: GatewayPlan, bandwidths: Bandwidths): string {
    const over = 'drop_bandwidth';
    this.#scope.chain(over, { rules: [`counter name ${counterName('bandwidth')}`, 'drop'] });
    const { sets, chains, entry } = bandwidthTable(plan, bandwidths, over, this.#numberOf);
    for (const [name, set] of Object.entries(sets)) this.#scope.set(name, set);
    for (const [name, chain] of Object.entries(chains)) this.#scope.chain(name, chain);
    return entry;
  }
}

const limitsOf = (entry: EgressIPEntry | RuleEntry | ServiceEntry): boolean => {
  if ('addresses' in entry) return entry.limits !== undefined;
  return 'action' in entry ? entry.limits?.bandwidth !== undefined : entry.bandwidth !== undefined;
};
