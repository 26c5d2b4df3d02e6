/**
 * Brings a gateway from what is in force to a plan: one nft transaction; list → diff → apply for links, addresses,
 * routes, rules; flows that the plan ends, and then a lighter guard at the last hook. The nft rules come first, so that no packet is forwarded without them; a node
 * releases a workload only when all of it is acknowledged. Applying the same plan twice changes nothing, and the
 * first apply after a start compares with the kernel, so that a restart flushes nothing.
 */
import { NFT_TABLE_GATEWAY } from '../api/names.ts';
import type { GatewayPlan, WorkloadEntry } from '../api/plan.ts';
import type { PlanDelta } from '../api/plan-delta.ts';
import {
  type DeviceAddress,
  diffNet,
  emptyNetState,
  type Ip,
  type NetScope,
  type NetState,
  type Route,
} from '../kernel/iproute.ts';
import { changeSize, diffRuleset, type Nft, type Ruleset, type TableChange } from '../kernel/nft.ts';
import type { Tc } from '../kernel/tc.ts';
import type { Known } from '../policy/decision.ts';
import type { ConntrackView } from '../wire/conntrack.ts';
import { type Changed, type CompilerOptions, GatewayCompiler, type Machine } from './compile.ts';
import {
  compileNet,
  deviceSysctls,
  electedAddresses,
  gatewayScope,
  heldShards,
  isTunnelled,
  sysctls,
  workloadRoutes,
} from './compile-net.ts';
import { EarlyAddresses } from './early-addresses.ts';
import type { Numbers } from './marks.ts';
import { byDevice, OwnedAddresses, textOf, withoutElected } from './owned-addresses.ts';
import { departures, type Judgement, judgedBy, retranslates, touchesFlows, type WorkloadOf } from './recheck.ts';
import { desiredClasses, Shaping, type Unshaped } from './shaping.ts';

export interface GatewayKernel {
  nft: Nft;
  ip: Ip;
  sysctl(desired: Record<string, string>): Promise<unknown>;
  mtu(device: string): Promise<number>;
  /** Whether `rp_filter` is on for a device: the higher of its own value and that of `all`. */
  reversePathFilter(device: string): Promise<boolean>;
  announce(device: string, addresses: string[]): void;
  tc: Tc;
  endFlows(match: (flow: ConntrackView) => boolean): Promise<number>;
}

export interface Applied {
  flowsEnded: number;
  /** Interfaces on which limits of bandwidth are kept by dropping alone. */
  unshaped: Unshaped[];
  /** changeSize() of what nftables was asked for. */
  nftChanges: number;
  /** Numbers of rules that came, went, or do something else now; undefined: all may. */
  numbers: ReadonlySet<number> | undefined;
}

/** Whoever reads flows about which the policy asks (flow-reading.ts). */
export interface FlowReaders {
  /** Before the kernel's rules are those of the plan. `delta` and `changed` as of PolicyShare. */
  before(
    plan: GatewayPlan,
    delta: PlanDelta | undefined,
    numbers: Pick<Numbers, 'get' | 'nameOf'>,
    changed: ReadonlySet<number> | undefined,
  ): Promise<void>;
  /** That plan did not come into force. */
  undo(): void;
  /** Resolves when flows are decided by it. */
  inForce(): Promise<void>;
  /** Looks through the flows that are read; resolves to how many `judge` has ended. */
  review(
    judge: (flow: ConntrackView) => Judgement,
    workloadOf: WorkloadOf,
    numbers: Pick<Numbers, 'get'>,
  ): Promise<number>;
  /** Flows have been looked at: what the plan does not ask for goes. */
  after(plan: GatewayPlan): Promise<void>;
  known(flow: ConntrackView): Known | undefined;
}

/** Who must know before numbers of rules change their meaning; undefined: all may. */
export interface NumbersWatch {
  before(numbers: ReadonlySet<number> | undefined): Promise<void>;
}

export interface ApplyOptions extends CompilerOptions {
  watch?: NumbersWatch;
  readers?: FlowReaders;
  /**
   * Told when a plan only took workloads away: endDeparted() is to be called within a second, and ends their flows. To look
   * through the connection table costs more than the rest of such a plan, and where pods go by the dozen once is enough.
   * Absent: each plan does it.
   */
  onDeparted?(): void;
  /** Shards for which this gateway is elected now; whoever changes them calls apply(). */
  elected?(): ReadonlySet<string>;
}

export class GatewayApply {
  readonly #self: string;
  readonly #kernel: GatewayKernel;
  readonly #owned: OwnedAddresses;
  readonly #early: EarlyAddresses;
  readonly #shaping: Shaping;
  readonly #options: ApplyOptions;
  #compiler: GatewayCompiler;
  /** The compiler has taken in the plan that apply() was given last. */
  #compiled = false;
  /** Whoever reads flows has taken in the plan before. */
  #readersKnow = false;
  /** It has, and the kernel's rules are not of that plan yet. */
  #told = false;
  /** The kernel's table is as the compiler's was when it was taken last. */
  #tableKnown = false;
  /** What is in force as last applied, but for #routes; undefined: ask the kernel. */
  #net: NetState | undefined;
  /** Routes of single workloads, by uid. */
  readonly #routes = new Map<string, Route[]>();
  #routesOf: (workload: WorkloadEntry) => Route[] = () => [];
  #reversePathFilter = true;
  /** Addresses of workloads that went, whose flows were not looked for yet. */
  readonly #departed = new Set<string>();
  #plan: GatewayPlan | undefined;
  /** Settings of devices, as last written. */
  #settled = '';
  #netChanges = 0;
  /** What look() found, unless something was changed since. */
  #ahead: NetState | undefined;

  constructor(self: string, kernel: GatewayKernel, stateDirectory: string, options: ApplyOptions = {}) {
    this.#self = self;
    this.#kernel = kernel;
    this.#shaping = new Shaping(kernel.tc);
    this.#owned = new OwnedAddresses(stateDirectory);
    this.#early = new EarlyAddresses(kernel.nft, kernel.ip);
    this.#options = options;
    this.#compiler = new GatewayCompiler(options);
  }

  /** Who is there and what is numbered how, of the plan that was applied last. */
  get compiled(): Pick<GatewayCompiler, 'workloads' | 'workloadOf' | 'contested' | 'numbers' | 'rule'> {
    return this.#compiler;
  }

  /** `delta` leads to the plan from the one that apply() was given last; absent: it is found. */
  async apply(plan: GatewayPlan, delta?: PlanDelta): Promise<Applied> {
    try {
      return await this.#apply(plan, delta);
    } catch (error) {
      if (this.#told) this.#options.readers?.undo();
      this.#told = false;
      this.#readersKnow = false;
      this.forget();
      throw error;
    }
  }

  /**
   * The next apply() lists the kernel's state anew, and so undoes what others changed of ours; the nftables table, and
   * with it the flows, only if `table`.
   */
  forget(table = true): void {
    if (table) this.#tableKnown = false;
    this.#net = undefined;
    this.#shaping.forget();
  }

  /** Lists what apply() would after forget(false), while others call apply(): they do not wait for the commands. */
  async look(): Promise<void> {
    const changes = this.#netChanges;
    const plan = this.#plan;
    if (this.#net === undefined || plan === undefined) return;
    const [net] = await Promise.all([this.#kernel.ip.list(await this.#scope(plan, [])), this.#shaping.look()]);
    if (changes === this.#netChanges) this.#ahead = net;
  }

  async #apply(plan: GatewayPlan, delta: PlanDelta | undefined): Promise<Applied> {
    const { readers } = this.#options;
    const readersKnow = this.#readersKnow;
    this.#readersKnow = false;
    const tableListed = !this.#tableKnown;
    const listed = tableListed || this.#net === undefined;
    const changed = this.#compile(plan, delta, {
      reversePathFilter: await this.#filtersReversePath(plan, listed),
      heldShards: heldShards(plan, this.#self, this.#options.elected?.()),
    });
    const returns = this.#returns(changed);
    const touches = tableListed || returns || touchesFlows(changed);
    // To ask every packet costs two rules, for each of which the kernel looks through all chains.
    const asked = tableListed || returns || this.#retranslates(plan, changed);
    const numbers = tableListed ? undefined : changed.numbers;
    await this.#options.watch?.before(numbers);
    const told = readersKnow ? ([delta, changed.numbers] as const) : [undefined, undefined];
    this.#told = true;
    await readers?.before(plan, told[0], this.#compiler.numbers, told[1]);
    this.#readersKnow = true;
    let nftChanges = 0;
    const rules = async (): Promise<void> => {
      nftChanges = await this.#applyRules(plan, !asked);
      this.#told = false;
    };
    const net = (): Promise<void> => this.#applyNet(plan, changed, listed);
    // A machine that forwards what comes from workloads must never be without the rules, at either end of its service.
    const serves = 'pool' in plan.settings;
    if (!serves) await net();
    await rules();
    // Whatever keeps a route or an address from coming keeps no flow alive that the rules forbid.
    const failure = serves ? await net().catch((error: unknown) => ({ error })) : undefined;
    this.#plan = plan;
    const later = touches && !asked && this.#putOff(changed);
    const ended = touches && !later ? await this.#endFlows(plan, tableListed ? undefined : changed) : 0;
    await readers?.after(plan);
    if (failure !== undefined) throw failure.error;
    // Every flow that is left now, or was made since, has its own translation.
    if (asked) nftChanges += await this.#applyRules(plan, true);
    const unshaped = await this.#shaping.apply(desiredClasses(plan, this.#compiler.bandwidths));
    return { flowsEnded: ended, unshaped, nftChanges, numbers };
  }

  #compile(plan: GatewayPlan, delta: PlanDelta | undefined, machine: Machine): Changed {
    const known = this.#compiled ? delta : undefined;
    this.#compiled = false;
    try {
      const changed = this.#compiler.update(plan, known, machine);
      this.#compiled = true;
      return changed;
    } catch (error) {
      this.#compiler = new GatewayCompiler(this.#options);
      throw error;
    }
  }

  #retranslates({ settings }: GatewayPlan, changed: Changed): boolean {
    const tunnelled = 'pool' in settings && isTunnelled(settings.pool);
    return retranslates(changed, (address) => this.#compiler.workloadOf(address), tunnelled);
  }

  /** Whether somebody has an address from now on of which there may still be flows of who had it before. */
  #returns({ workloads }: Changed): boolean {
    if (this.#departed.size === 0) return false;
    return workloads?.some(([, after]) => after?.addresses.some((address) => this.#departed.has(address))) !== false;
  }

  /** Whether what it ends may be ended later. */
  #putOff(changed: Changed): boolean {
    const { onDeparted } = this.#options;
    const gone = onDeparted && departures(changed);
    if (gone === undefined) return false;
    for (const address of gone) this.#departed.add(address);
    onDeparted?.();
    return true;
  }

  /** Ends the flows of workloads that went (onDeparted); says how many. Not while apply() runs. */
  async endDeparted(): Promise<number> {
    if (this.#departed.size === 0 || this.#plan === undefined) return 0;
    return this.#endFlows(this.#plan, nothingElse);
  }

  async #endFlows(plan: GatewayPlan, changed: Changed | undefined): Promise<number> {
    const { readers } = this.#options;
    const workloadOf = this.#compiler.workloadOf.bind(this.#compiler);
    // Else a flow could be permitted by the old policy after it was looked at.
    await readers?.inForce();
    const judge = judgedBy(plan, workloadOf, changed, readers && ((flow) => readers.known(flow)));
    const departed = [...this.#departed];
    // Both at once: it is one walk through the table.
    const [ended, reviewed = 0] = await Promise.all([
      this.#kernel.endFlows((flow) => judge(flow) === 'ended'),
      readers?.review(judge, workloadOf, this.#compiler.numbers),
    ]);
    for (const address of departed) this.#departed.delete(address);
    return ended + reviewed;
  }

  /** Asked anew whenever the kernel is listed: a packet should not pay for a filter that is off. */
  async #filtersReversePath(plan: GatewayPlan, listed: boolean): Promise<boolean> {
    if (listed && 'pool' in plan.settings) {
      this.#reversePathFilter = await this.#kernel.reversePathFilter(plan.settings.pool.externalInterface);
    }
    return this.#reversePathFilter;
  }

  async #applyRules(plan: GatewayPlan, settled: boolean): Promise<number> {
    const { nft } = this.#kernel;
    const { table } = this.#compiler;
    this.#compiler.guard(settled);
    let change: TableChange;
    if (this.#tableKnown) change = table.take();
    else {
      let wanted: Ruleset | undefined;
      const ruleset = (): Ruleset => (wanted ??= table.ruleset());
      const state = await nft.list('inet', NFT_TABLE_GATEWAY, ruleset);
      change = state.exists ? diffRuleset(state, ruleset()) : table.takeWhole();
      table.taken();
      if (!state.exists) await this.#addEarly(plan);
    }
    const known = this.#tableKnown;
    this.#tableKnown = false;
    await nft.run(change);
    this.#tableKnown = true;
    if (!known) await this.#early.end();
    return changeSize(change);
  }

  async #addEarly(plan: GatewayPlan): Promise<void> {
    const { addresses } = await this.#desired(plan);
    await this.#early.begin(plan, addresses, await this.#scope(plan, addresses));
  }

  async #applyNet(plan: GatewayPlan, changed: Changed, listed: boolean): Promise<void> {
    if (listed || changed.places || changed.workloads === undefined) await this.#applyPlaces(plan, listed);
    else await this.#applyRoutes(changed.workloads);
  }

  /** Of workloads alone: some routes at most. */
  async #applyRoutes(workloads: NonNullable<Changed['workloads']>): Promise<void> {
    const gone = emptyNetState();
    const wanted = emptyNetState();
    for (const [before, after] of workloads) {
      const uid = (after ?? before)?.uid ?? '';
      gone.routes.push(...(this.#routes.get(uid) ?? []));
      wanted.routes.push(...this.#setRoutes(uid, after));
    }
    const lines = diffNet(gone, wanted);
    await this.#change(lines);
  }

  async #change(lines: string[]): Promise<void> {
    if (lines.length === 0) return;
    this.#netChanges++;
    this.#ahead = undefined;
    await this.#kernel.ip.apply(lines);
  }

  #setRoutes(uid: string, workload: WorkloadEntry | undefined): Route[] {
    const routes = workload === undefined ? [] : this.#routesOf(workload);
    if (routes.length > 0) this.#routes.set(uid, routes);
    else this.#routes.delete(uid);
    return routes;
  }

  async #applyPlaces(plan: GatewayPlan, listed: boolean): Promise<void> {
    const { ip, sysctl, announce } = this.#kernel;
    const places = await this.#desired(plan);
    if (listed && 'pool' in plan.settings) await sysctl(sysctls);
    const scope = await this.#scope(plan, places.addresses);
    const elected = electedAddresses(plan);
    const withRoutes = (net: NetState): NetState => ({
      ...net,
      routes: [...net.routes, ...[...this.#routes.values()].flat()],
    });
    const known = this.#net === undefined ? (this.#ahead ?? (await ip.list(scope))) : withRoutes(this.#net);
    const current = withoutElected(known, elected);
    this.#ahead = undefined;
    this.#routesOf = workloadRoutes(plan, this.#self);
    this.#routes.clear();
    for (const workload of Object.values(plan.workloads)) this.#setRoutes(workload.uid, workload);
    const lines = diffNet(current, withRoutes(places));
    await this.#change(lines);
    const settings = 'pool' in plan.settings ? deviceSysctls(plan.settings.pool) : {};
    const settled = JSON.stringify(settings);
    // A device that was made just now has none of them.
    const renewed = listed || settled !== this.#settled || lines.some((line) => line.includes(' link add '));
    if (renewed && 'pool' in plan.settings) await sysctl(settings);
    this.#settled = settled;
    this.#net = places;
    await this.#owned.write([...places.addresses, ...elected]);
    const here = new Set(current.addresses.map(textOf));
    for (const address of this.#early.take()) here.delete(address);
    const added = places.addresses.filter((address) => !here.has(textOf(address)));
    for (const [device, addresses] of byDevice(added)) announce(device, addresses);
  }

  async #desired(plan: GatewayPlan): Promise<NetState> {
    const mtu = 'pool' in plan.settings ? await this.#kernel.mtu(plan.settings.pool.internalInterface) : 1500;
    return compileNet(plan, this.#self, mtu);
  }

  async #scope(plan: GatewayPlan, desired: DeviceAddress[]): Promise<NetScope> {
    const ours = await this.#owned.add([...desired, ...electedAddresses(plan)]);
    return gatewayScope((address) => ours.has(textOf(address)));
  }
}

/** A look that is for flows of sources that are no workloads. */
const nothingElse: Changed = {
  groups: new Set(),
  workloads: [],
  places: false,
  refused: new Set(),
  numbers: new Set(),
};
