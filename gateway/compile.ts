/**
 * GatewayPlan → the gateway's nftables table, kept up to date: it takes in what of a plan has changed, and the table
 * (table.ts) says what in the kernel is to change for it. Parts: the chains that every packet may meet (frame.ts), sets
 * of who is there (membership.ts), sources (source-nat.ts), the policy (compile-policy.ts), bandwidths
 * (bandwidth-part.ts). Other settings of the pool make all of it anew.
 * Which shards this machine holds changes addresses (compile-net.ts), and of the rules only its share of their limits.
 */
import { NFT_TABLE_GATEWAY } from '../api/names.ts';
import {
  emptyGatewayPlan,
  type GatewayPlan,
  type NodeEntry,
  type PoolSettings,
  type RuleEntry,
  type WorkloadEntry,
} from '../api/plan.ts';
import { diffPlan, type PlanDelta, sameJson } from '../api/plan-delta.ts';
import { auditCounterName, auditReasons, countedReasons, counterName } from '../api/reasons.ts';
import type { Ruleset } from '../kernel/nft.ts';
import type { Bandwidths } from './bandwidth.ts';
import { BandwidthPart } from './bandwidth-part.ts';
import { GROUPS_SET, PolicyCompiler } from './compile-policy.ts';
import { compileFrame, type Frame, LAST_HOOK, outerFamilies } from './frame.ts';
import { limitHeads } from './limits.ts';
import { type Numbers, noEgressMark, ruleNumbers } from './marks.ts';
import { movedNodes, newHairpins, placeSets, type Sender, workloadElements, workloadSets } from './membership.ts';
import { type Changes, changesOf, isTouched, type PolicyChanges, policyChanges } from './plan-changes.ts';
import { type EgressDifference, SourceNat, WORKLOADS_MAX } from './source-nat.ts';
import { Sources } from './sources.ts';
import { type EachElement, Scope, Table } from './table.ts';
import { HITS_SET, hitsHead } from './verdict.ts';

export interface Machine {
  /** Whether the kernel filters what comes from the external interface so (`rp_filter`). Absent: it does. */
  reversePathFilter?: boolean;
  /** Shards that it holds; absent: all. */
  heldShards?: readonly string[];
}

/** What of a plan's change is not in the table, or is more than it. */
export interface Changed {
  /** Groups for which the policy may say something else; undefined: all. */
  groups: ReadonlySet<string> | undefined;
  /** Each workload that came, went, is another or may leave with other addresses; undefined: all are new. */
  workloads: [before: WorkloadEntry | undefined, after: WorkloadEntry | undefined][] | undefined;
  /** Settings, gateways, nodes or shards are others. */
  places: boolean;
  /** Addresses that no workload may reach any more; of other settings, not all. */
  refused: ReadonlySet<string>;
  /** Numbers of rules that came, went, or do something else now; undefined: all. */
  numbers: ReadonlySet<number> | undefined;
}

interface Held {
  entry: WorkloadEntry;
  mark: string;
}

interface Pool {
  settings: PoolSettings;
  reversePathFilter: boolean;
  outer: string;
  heldShards: string;
  held: ReadonlySet<string>;
  frame: Frame;
  frameScope: Scope;
  readScope: Scope;
  nat: SourceNat;
  natScope: Scope;
  policy: PolicyCompiler;
  bandwidth: BandwidthPart;
}

/** Of workloads that are the same, what makes their elements others: their group's mark, their node, their EgressIPs. */
interface Remade {
  marked: ReadonlySet<string>;
  moved: ReadonlySet<string>;
  egress: EgressDifference | undefined;
}

const natOf = (plan: GatewayPlan, { settings, held }: Pick<Pool, 'settings' | 'held'>): SourceNat =>
  new SourceNat(plan, settings.pool, (shard) => held.has(shard));

const placeParts = ['settings', 'gateways', 'nodes', 'shards'] as const;
type Places = Pick<GatewayPlan, (typeof placeParts)[number]>;
const placesOf = ({ settings, gateways, nodes, shards }: Places): Places => ({
  settings,
  gateways: { ...gateways },
  nodes: { ...nodes },
  shards: { ...shards },
});

export class GatewayCompiler {
  readonly table = new Table(NFT_TABLE_GATEWAY);
  /** By uid; `mark`: of the group, as its elements in the table have it. */
  readonly #workloads = new Map<string, Held>();
  readonly #sources = new Sources();
  readonly #compared: number;
  readonly #most: number;
  #places: Places = placesOf(emptyGatewayPlan());
  #pool: Pool | undefined;
  #settled = false;

  /** `compared`: of rules one after another, matches that are compared one by one. */
  constructor({ compared = COMPARED, most = WORKLOADS_MAX }: CompilerOptions = {}) {
    this.#compared = compared;
    this.#most = most;
  }

  get workloads(): number {
    return this.#workloads.size;
  }

  /** Who sends from an address (canonical text). */
  workloadOf(address: string): WorkloadEntry | undefined {
    return this.#sources.ownerOf(address);
  }

  /** Addresses that are nobody's, since several workloads claim them. */
  get contested(): ReturnType<Sources['contested']> {
    return this.#sources.contested();
  }

  /** Rule ids, or DEFAULT_ACTION, and their numbers. */
  get numbers(): Numbers {
    return this.#pool?.policy.numbers ?? ruleNumbers();
  }

  rule(id: string): RuleEntry | undefined {
    return this.#pool?.policy.rules.get(id);
  }

  get bandwidths(): Bandwidths | undefined {
    return this.#pool?.bandwidth.bandwidths;
  }

  /** Chooses the last hook: `settled`: no flow is left that is translated otherwise than the plan says. */
  guard(settled: boolean): void {
    if (this.#pool === undefined) return;
    const { frame, bandwidth, policy } = this.#pool;
    this.#settled = settled;
    this.table.setChain(LAST_HOOK, frame.lastHook(settled, bandwidth.entry, policy.asks));
  }

  /**
   * Takes in a plan; `delta` leads to it from the plan that was taken in last (absent: it is found). Throws on a plan
   * that names what it does not hold: this compiler is of no use after that.
   */
  update(plan: GatewayPlan, delta: PlanDelta | undefined, machine: Machine = {}): Changed {
    const { reversePathFilter = true, heldShards = Object.keys(plan.shards) } = machine;
    const { settings } = plan;
    const places = placeParts.some((part) =>
      delta === undefined ? !sameJson(this.#places[part], plan[part]) : isTouched(delta, part),
    );
    const before = this.#places;
    const pool = 'pool' in settings && sameJson(this.#pool?.settings, settings.pool) ? this.#pool : undefined;
    if (pool === undefined) this.#leave();
    if (places) this.#places = placesOf(plan);
    if (pool === undefined) {
      if ('pool' in settings) this.#enter(plan, settings.pool, reversePathFilter, heldShards);
      return { groups: undefined, workloads: undefined, places: true, refused: new Set(), numbers: undefined };
    }
    if (places) this.#setPlaces(plan, pool.settings);
    const refused = places ? newHairpins(before, plan) : new Set<string>();
    this.#reframe(pool, plan, reversePathFilter);
    const reshared = this.#reshare(pool, heldShards);
    const { nat: natBefore } = pool;
    const egress = this.#changeEgress(pool, plan, delta, reshared);
    const changes = delta ?? this.#difference(plan, pool);
    const policy = policyChanges(changes);
    const changed = pool.policy.change(policy);
    this.#follow(pool, plan, policy, heldShards);
    const moved = places ? movedNodes(before.nodes, plan.nodes) : new Set<string>();
    const was = { nodes: before.nodes, nat: natBefore };
    const others = { marked: changed.marked, moved, egress };
    const workloads = this.#changeWorkloads(changesOf(changes, 'workloads'), was, others, pool);
    return { groups: changed.groups, workloads, places, refused, numbers: changed.numbers };
  }

  #difference(plan: GatewayPlan, { policy }: Pool): PlanDelta {
    const { rules, services, groups } = policy;
    const workloads = new Map([...this.#workloads].map(([uid, { entry }]) => [uid, entry]));
    const was = { rules, services, groups, workloads };
    return diffPlan(Object.fromEntries(Object.entries(was).map(([part, map]) => [part, Object.fromEntries(map)])), {
      rules: plan.rules,
      services: plan.services,
      groups: plan.groups,
      workloads: plan.workloads,
    });
  }

  #leave(): void {
    this.table.clear();
    this.#pool = undefined;
    this.#workloads.clear();
    this.#sources.clear();
  }

  #enter(plan: GatewayPlan, settings: PoolSettings, reversePathFilter: boolean, heldShards: readonly string[]): void {
    const { table } = this;
    const held = new Set(heldShards.map((shard) => `${settings.pool}/${shard}`));
    const nat = natOf(plan, { settings, held });
    table.setCounters([...countedReasons.map(counterName), ...auditReasons.map(auditCounterName)]);
    table.derive(workloadSets(settings), (each) => this.#tell(settings, this.#pool?.nat ?? nat, each));
    const heads = { ...limitHeads, [HITS_SET]: hitsHead };
    for (const [name, head] of Object.entries(heads)) table.setSet(name, { ...head, elements: new Map() });
    this.#setPlaces(plan, settings);
    const frameScope = new Scope(table);
    const frame = compileFrame(frameScope, plan.nodes, settings, reversePathFilter);
    const noEgress = new Map([[noEgressMark, `goto ${frame.refusals.noAddress}`]]);
    table.setSet(GROUPS_SET, { type: 'mark', value: 'verdict', elements: noEgress });
    const natScope = new Scope(table);
    nat.compile(natScope, frame.refusals);
    const pool: Pool = {
      settings,
      reversePathFilter,
      outer: outerFamilies(plan.nodes).join(),
      heldShards: heldShards.join(),
      held,
      frame,
      frameScope,
      readScope: new Scope(table),
      bandwidth: new BandwidthPart(table, (id) => pool.policy.numbers.get(id) ?? 0),
      nat,
      natScope,
      policy: new PolicyCompiler({
        table,
        verdictsFor: frame.verdictsFor,
        defaultAction: settings.defaultAction,
        compared: this.#compared,
        isHeld: (shard) => pool.held.has(shard),
        strict: settings.dns?.strict === true,
      }),
    };
    this.#pool = pool;
    this.#settled = false;
    const all = <T>(collection: Record<string, T>): Changes<T> => ({ set: Object.entries(collection), delete: [] });
    const { rules, services, groups } = plan;
    const policy = { rules: all(rules), services: all(services), groups: all(groups) };
    pool.policy.change(policy);
    this.#follow(pool, plan, policy, heldShards);
    // Their elements the table asks for.
    for (const [uid, entry] of Object.entries(plan.workloads)) this.#hold(uid, entry, pool.policy);
  }

  *#tell(settings: PoolSettings, nat: SourceNat, each: EachElement): Generator<void> {
    const elements = workloadElements(settings, nat);
    const { nodes } = this.#places;
    for (const held of this.#workloads.values()) {
      elements(this.#sender(held, nodes), each);
      yield;
    }
  }

  #sender({ entry, mark }: Held, nodes: GatewayPlan['nodes']): Sender {
    return { workload: entry, addresses: this.#sources.addressesOf(entry), mark, outer: outerOf(nodes, entry) };
  }

  /** What follows from the policy. */
  #follow(pool: Pool, plan: GatewayPlan, changes: PolicyChanges, heldShards: readonly string[]): void {
    pool.bandwidth.update(plan, changes, heldShards);
    const reading = new Scope(this.table);
    if (pool.policy.asks) pool.frame.readChains(reading);
    pool.readScope.release();
    pool.readScope = reading;
    this.guard(this.#settled);
  }

  #setPlaces(plan: GatewayPlan, settings: PoolSettings): void {
    for (const [name, set] of Object.entries(placeSets(plan, settings))) this.table.setSet(name, set);
  }

  #reframe(pool: Pool, { nodes }: GatewayPlan, reversePathFilter: boolean): void {
    const outer = outerFamilies(nodes).join();
    if (outer === pool.outer && reversePathFilter === pool.reversePathFilter) return;
    const scope = new Scope(this.table);
    // Its chains keep their names, to which the policy's go.
    pool.frame = compileFrame(scope, nodes, pool.settings, reversePathFilter);
    pool.frameScope.release();
    Object.assign(pool, { outer, reversePathFilter, frameScope: scope });
  }

  /** undefined: EgressIPs are as they were, for all workloads. */
  #changeEgress(
    pool: Pool,
    plan: GatewayPlan,
    delta: PlanDelta | undefined,
    reshared: boolean,
  ): EgressDifference | undefined {
    const changed =
      delta === undefined ? !pool.nat.isOf(plan) : isTouched(delta, 'egressIPs') || isTouched(delta, 'destinations');
    if (!changed && !reshared) return undefined;
    const before = pool.nat;
    pool.nat = natOf(plan, pool);
    const scope = new Scope(this.table);
    pool.nat.compile(scope, pool.frame.refusals);
    pool.natScope.release();
    pool.natScope = scope;
    return changed ? pool.nat.differenceFrom(before) : undefined;
  }

  #reshare(pool: Pool, heldShards: readonly string[]): boolean {
    if (heldShards.join() === pool.heldShards) return false;
    pool.heldShards = heldShards.join();
    pool.held = new Set(heldShards.map((shard) => `${pool.settings.pool}/${shard}`));
    pool.policy.reshare();
    return true;
  }

  /** `before`: by which the elements that are there were made. `others`: what made of them is made anew. */
  #changeWorkloads(
    changes: Changes<WorkloadEntry>,
    before: { nodes: Record<string, NodeEntry>; nat: SourceNat },
    { marked, moved, egress }: Remade,
    pool: Pool,
  ): [WorkloadEntry | undefined, WorkloadEntry | undefined][] {
    const changed = new Map<string, WorkloadEntry | undefined>();
    for (const uid of changes.delete) changed.set(uid, undefined);
    for (const [uid, entry] of changes.set) changed.set(uid, entry);
    const found: [WorkloadEntry | undefined, WorkloadEntry | undefined][] = [];
    for (const [uid, after] of changed) found.push([this.#workloads.get(uid)?.entry, after]);
    for (const rival of this.#sources.rivalsOf(found.flat())) {
      if (changed.has(rival.uid)) continue;
      changed.set(rival.uid, rival);
      found.push([rival, rival]);
    }
    // What is the same is made anew where what it is made of is another.
    if (marked.size > 0 || moved.size > 0 || egress !== undefined) {
      for (const [uid, { entry }] of this.#workloads) {
        if (changed.has(uid)) continue;
        if (egress?.touched(entry)) found.push([entry, entry]);
        if (marked.has(entry.group) || moved.has(entry.node) || egress?.remade(entry)) changed.set(uid, entry);
      }
    }
    const { table } = this;
    const elementsBefore = workloadElements(pool.settings, before.nat);
    const go: EachElement = (set, key, value) => table.go(set, key, value);
    const gone = [...changed.keys()].flatMap((uid) => this.#workloads.get(uid) ?? []);
    for (const held of gone) elementsBefore(this.#sender(held, before.nodes), go);
    for (const { entry } of gone) this.#sources.remove(entry);
    for (const uid of changed.keys()) this.#workloads.delete(uid);
    const elements = workloadElements(pool.settings, pool.nat);
    const come: EachElement = (set, key, value) => table.come(set, key, value);
    const { nodes } = this.#places;
    const here = [...changed].flatMap(([uid, entry]) =>
      entry === undefined ? [] : this.#hold(uid, entry, pool.policy),
    );
    for (const held of here) elements(this.#sender(held, nodes), come);
    return found;
  }

  #hold(uid: string, entry: WorkloadEntry, policy: PolicyCompiler): Held {
    const held = { entry, mark: policy.groupMark(entry.group) };
    this.#sources.add(entry);
    this.#workloads.set(uid, held);
    if (this.#workloads.size > this.#most)
      throw new RangeError(`a gateway takes ${this.#most} workloads, this is more`);
    return held;
  }
}

const outerOf = (nodes: Record<string, NodeEntry>, { node }: WorkloadEntry): readonly string[] =>
  nodes[node]?.addresses ?? [];

export interface CompilerOptions {
  compared?: number;
  /** Workloads that a plan may have. */
  most?: number;
}

/**
 * About as many comparisons cost a packet what the look-ups cost that stand for any number of them: measured here, 75 ns
 * each of its own family and 16 of the other, against 1.5 µs.
 */
const COMPARED = 32;

export interface CompiledGateway {
  /** Asks every packet for its source. */
  ruleset: Ruleset;
  /** Asks the first packet of a flow: for when no flow is left that is translated otherwise than the plan says. */
  settled: Ruleset;
  ruleNumbers: Numbers;
}

/** The whole of one plan. */
export function compileGateway(
  plan: GatewayPlan,
  machine: Machine = {},
  options: CompilerOptions = {},
): CompiledGateway {
  const compiler = new GatewayCompiler(options);
  compiler.update(plan, undefined, machine);
  const ruleset = compiler.table.ruleset();
  compiler.guard(true);
  return { ruleset, settled: compiler.table.ruleset(), ruleNumbers: compiler.numbers };
}
