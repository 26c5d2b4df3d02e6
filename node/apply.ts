/**
 * Brings a node's plan into force: list → diff → apply (design §6). Order: what a packet may need next (device, routes,
 * rules) is there before nftables sends anything that way, and goes only after; a source counts as known, so that its
 * held packets may go, only when all of it is there. If the first half fails, what the plan *forbids* is still done.
 * The kernel's state is listed at start, after every failure and at each reconciliation; between, the last one applied
 * is taken as it is. Nothing is ever flushed: established flows do not notice a restart.
 */

import { parseAddress } from '../api/address.ts';
import { NFT_TABLE_NODE, NODE_MARK_MASK } from '../api/names.ts';
import { type Family, families, type NodePlan, type NodeWorkloadEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import type { ConntrackView } from '../kernel/conntrack.ts';
import { diffNet, type NetState } from '../kernel/iproute.ts';
import { diffRuleset, type NftState, type Ruleset, stateOf } from '../kernel/nft.ts';
import { servedRanges } from '../policy/egress.ts';
import {
  compileNode,
  directNextHops,
  isTunnelled,
  nodeScope,
  outerFamily,
  outerNextHop,
  settingsOf,
} from './compile.ts';
import type { NodeKernel } from './kernel.ts';
import { Places } from './places.ts';
import { leavingIn, localDestinations, placesIn } from './ruleset.ts';
import { destinationSetOf, isWaySet, steeringOf } from './ways.ts';

export interface Applied {
  /** Sources that are in force. */
  known: ReadonlySet<string>;
  workloads: number;
  endedFlows: number;
}

/** Addresses whose flows must not go on as they are. */
export interface Endings {
  /** No longer this owner's, or no longer steered: every flow from and to it. */
  withdrawn: Set<string>;
  /** Newly steered: flows that were translated on this node before (a gateway would see the node's address). */
  assigned: Set<string>;
  /** The same of sources that are steered to some destinations only: of flows to these. */
  partly: Map<string, PrefixSet>;
}

interface Facts {
  about: string;
  value: Awaited<ReturnType<NodeKernel['facts']>>;
}

export interface SteeringOptions {
  /** Told who has which address; of what nobody is behind any more, nothing is steered. */
  places?: Places;
  /**
   * Told when an apply() only took workloads away: endLeft() is to be called within a second, and ends their flows. To look
   * through the connection table costs more than the rest of it, even of an empty one, and where pods go by the dozen once is
   * enough; until then packets of those flows are dropped. Absent: each apply() ends them.
   */
  onLeft?(): void;
}

export class Steering {
  readonly #kernel: NodeKernel;
  readonly #workloadInterfaces: readonly string[];
  readonly #places: Places;
  readonly #onLeft: (() => void) | undefined;
  /** Addresses of workloads that went, of which there may still be flows. */
  readonly #leaving = new Set<string>();
  /** #places has been told of a plan. */
  #placed = false;
  #nft: NftState | undefined;
  #net: NetState | undefined;
  #facts: Facts | undefined;
  /** As last written. */
  #sysctls = '';
  /** How often links, routes and rules were changed. */
  #netChanges = 0;
  /** What look() found. */
  #ahead: { facts: Facts; net: NetState; changes: number } | undefined;
  #holding: Promise<void> = Promise.resolve();
  #plan: NodePlan | undefined;

  constructor(kernel: NodeKernel, workloadInterfaces: readonly string[], options: SteeringOptions = {}) {
    this.#kernel = kernel;
    this.#workloadInterfaces = workloadInterfaces;
    this.#places = options.places ?? new Places();
    this.#onLeft = options.onLeft;
  }

  /** The plan in force. */
  get plan(): NodePlan | undefined {
    return this.#plan;
  }

  /** What was in force before this program began, so that an address that changed hands meanwhile is noticed. */
  resume(plan: NodePlan): void {
    this.#plan ??= plan;
  }

  /** One at a time: the caller waits for the last. Throws if the plan is not wholly in force. */
  async apply(plan: NodePlan): Promise<Applied> {
    try {
      return await this.#apply(plan);
    } catch (error) {
      this.forget();
      throw error;
    }
  }

  /** Ends the flows of workloads that went (onLeft); says how many. Not while apply() runs. */
  async endLeft(): Promise<number> {
    const plan = this.#plan;
    const settings = plan && settingsOf(plan);
    if (plan === undefined || settings === undefined) return 0;
    const ended = await this.#end({ withdrawn: new Set(this.#leaving), ...nothingElse }, settings);
    // Nobody asks packets about them any more.
    if (this.#nft === undefined || leavingIn(this.#nft).length > 0) await this.apply(plan);
    return ended;
  }

  /** Lists what apply() would after forget(false). While others call apply(): they do not wait for it. */
  async look(): Promise<void> {
    this.#ahead = undefined;
    if (this.#plan === undefined || settingsOf(this.#plan) === undefined) return;
    const changes = this.#netChanges;
    const { about, tunnelTo, direct } = asked(this.#plan);
    const [value, net] = await Promise.all([
      this.#kernel.facts(tunnelTo, direct),
      this.#kernel.ip.list(nodeScope),
      this.#holdRule(),
    ]);
    this.#ahead = { facts: { about, value }, net, changes };
  }

  /** The next apply() lists the kernel's state anew, unless look() just has; the nftables table only if `table`. */
  forget(table = true): void {
    const ahead = this.#ahead?.changes === this.#netChanges ? this.#ahead : undefined;
    this.#ahead = undefined;
    if (table) this.#nft = undefined;
    this.#net = ahead?.net;
    this.#facts = ahead?.facts;
    this.#sysctls = '';
  }

  /** One after the other: of two at once each would add it. */
  #holdRule(): Promise<void> {
    this.#holding = this.#holding.catch(() => undefined).then(() => this.#kernel.holdRule());
    return this.#holding;
  }

  async #apply(plan: NodePlan): Promise<Applied> {
    const settings = settingsOf(plan);
    if (settings === undefined) {
      if (this.#plan !== undefined && settingsOf(this.#plan) !== undefined) {
        throw new Error('the plan knows nothing of this node; what is in force stays');
      }
      return { known: new Set(), workloads: 0, endedFlows: 0 };
    }
    const { about, tunnelTo, direct } = asked(plan);
    if (this.#facts?.about !== about) this.#facts = { about, value: await this.#kernel.facts(tunnelTo, direct) };
    const listed = this.#nft === undefined || this.#net === undefined;
    const nftNow = this.#nft ?? (await this.#kernel.nft.list('inet', NFT_TABLE_NODE));
    const netNow = this.#net ?? (await this.#kernel.ip.list(nodeScope));
    if (this.#nft === undefined) for (const address of leavingIn(nftNow)) this.#leaving.add(address);
    this.#nft = nftNow;
    const places = this.#places;
    if (!this.#placed && this.#plan !== undefined) places.own(this.#plan, placesIn(nftNow));
    this.#placed = true;
    places.own(plan);
    const known = this.#knownBy(plan);
    const left = leavingIn(nftNow);
    // Of an address that somebody has again: while packets are still asked.
    const ended = left.some((address) => known.has(address))
      ? await this.#end({ withdrawn: new Set(left), ...nothingElse }, settings)
      : 0;
    const leaving = this.#whoLeave(nftNow, known);
    const { ruleset, net, sysctls } = compileNode(plan, settings, {
      ...this.#facts.value,
      workloadInterfaces: this.#workloadInterfaces,
      places: { seen: places.seen(), gone: (address) => places.gone(address) },
      leaving,
    });
    const endings = endingsOf(nftNow, ruleset, this.#plan, plan);
    const { assigned, partly } = endings;
    const onlyLeave = [...endings.withdrawn].every((address) => leaving.has(address));
    const later = leaving.size > 0 && onlyLeave && assigned.size + partly.size === 0;
    for (const address of this.#leaving) endings.withdrawn.add(address);
    if (leaving.size > 0) this.#onLeft?.();

    // Nearly always; a diff of the two costs more.
    const grown = sameJson(netNow, net) ? netNow : keepOthers(netNow, net);
    try {
      if (listed) await this.#holdRule();
      await this.#applyNet(netNow, grown);
      // A plan may bring the tunnel device, which has settings of its own.
      const settled = JSON.stringify(sysctls);
      if (listed || settled !== this.#sysctls) await this.#kernel.sysctls(sysctls);
      this.#sysctls = settled;
    } catch (error) {
      await this.#kernel.nft.run(diffRuleset(nftNow, onlyForbidding(nftNow, ruleset)));
      await this.#end(endings, settings);
      throw error;
    }
    await this.#kernel.nft.run(diffRuleset(nftNow, ruleset));
    this.#nft = stateOf(ruleset);
    // The kernel does not tell a second time which flows these are.
    const endedFlows = ended + (later ? 0 : await this.#end(endings, settings));
    if (grown !== netNow) await this.#applyNet(grown, net);
    this.#net = net;
    this.#plan = plan;
    return { known: knownOf(ruleset), workloads: Object.keys(plan.workloads).length, endedFlows };
  }

  async #applyNet(current: NetState, desired: NetState): Promise<void> {
    const lines = current === desired ? [] : diffNet(current, desired);
    if (lines.length === 0) return;
    this.#netChanges++;
    await this.#kernel.ip.apply(lines);
  }

  #knownBy({ workloads }: NodePlan): ReadonlySet<string> {
    const addresses = Object.values(workloads).flatMap((workload) => workload.addresses);
    return new Set(addresses.filter((address) => !this.#places.gone(address)));
  }

  /** Addresses of which flows may end later: nobody has them from now on. None, if somebody has one of them again. */
  #whoLeave(now: NftState, known: ReadonlySet<string>): ReadonlySet<string> {
    for (const family of families) {
      for (const address of now.sets.get(`known${family}`)?.elements.keys() ?? [])
        if (!known.has(address)) this.#leaving.add(address);
    }
    const later = this.#onLeft !== undefined && [...this.#leaving].every((address) => !known.has(address));
    return new Set(later ? this.#leaving : []);
  }

  /** Only now: with the elements gone, no packet makes such an entry again. */
  async #end(endings: Endings, settings: Parameters<typeof localDestinations>[0]): Promise<number> {
    if (Object.values(endings).every(({ size }) => size === 0)) return 0;
    const local = localDestinations(settings);
    const ended = await this.#kernel.endFlows((entry) => endsWith(entry, endings, local));
    for (const address of endings.withdrawn) this.#leaving.delete(address);
    return ended;
  }
}

/** What of the machine is asked for a plan. */
function asked(plan: NodePlan): { about: string; tunnelTo: string | undefined; direct: string[] } {
  const outer = outerFamily(plan);
  const tunnelTo = Object.values(plan.shards)
    .filter(isTunnelled)
    .map((shard) => outerNextHop(shard, outer))
    .find((hop) => hop !== undefined);
  const direct = directNextHops(plan);
  return { about: [tunnelTo, ...direct].join(' '), tunnelTo, direct };
}

const nothingElse: Pick<Endings, 'assigned' | 'partly'> = { assigned: new Set(), partly: new Map() };

export function endsWith(
  { original, reply, mark }: Pick<ConntrackView, 'original' | 'reply' | 'mark'>,
  { withdrawn, assigned, partly }: Endings,
  local: PrefixSet,
): boolean {
  if (withdrawn.has(original.source) || withdrawn.has(original.destination) || withdrawn.has(reply.source)) return true;
  const only = partly.get(original.source);
  if ((only === undefined && !assigned.has(original.source)) || ((mark ?? 0) & NODE_MARK_MASK) !== 0) return false;
  if (reply.destination === original.source) return false;
  const destination = parseAddress(reply.source);
  return destination.ok && !local.has(destination.value) && only?.has(destination.value) !== false;
}

/** Compares what the kernel has with what it will have, and the owners of addresses in two plans. */
export function endingsOf(now: NftState, next: Ruleset, before: NodePlan | undefined, after: NodePlan): Endings {
  const withdrawn = new Set<string>();
  const assigned = new Set<string>();
  const partly = new Map<string, PrefixSet>();
  const served = new ServedDestinations(now, next, after);
  for (const family of families) {
    const known = next.sets[`known${family}`]?.elements;
    for (const address of now.sets.get(`known${family}`)?.elements.keys() ?? []) {
      if (known?.has(address) !== true) withdrawn.add(address);
    }
    const steeredNow = now.sets.get(`steer${family}`)?.elements;
    for (const [address, verdict] of next.sets[`steer${family}`]?.elements ?? []) {
      const was = steeredNow?.get(address);
      const [before, after] = [steeringOf(was), steeringOf(verdict)];
      if (before !== undefined && after !== before && after !== 'whole') withdrawn.add(address);
      // An address that was unknown while our table stood had its packets held: it has no translated flows.
      const newly = after !== undefined && after !== before && (was !== undefined || !now.exists);
      if (newly && after === 'whole') assigned.add(address);
      if (after === 'part' && (newly || served.changed(address, family)))
        partly.set(address, served.of(address, family));
    }
  }
  const owners = new Map<string, string>();
  for (const { uid, addresses } of Object.values(after.workloads)) {
    for (const address of addresses) owners.set(address, uid);
  }
  // Of one that is not known its flows were ended, or are the next owner's already.
  const known = (address: string): boolean =>
    !now.exists || families.some((family) => now.sets.get(`known${family}`)?.elements.has(address));
  for (const { uid, addresses } of Object.values(before?.workloads ?? {})) {
    for (const address of addresses) if (owners.get(address) !== uid && known(address)) withdrawn.add(address);
  }
  return { withdrawn, assigned, partly };
}

/** Destinations of workloads that are steered to these only. */
class ServedDestinations {
  readonly #now: NftState;
  readonly #next: Ruleset;
  readonly #plan: NodePlan;
  readonly #workloads: Map<string, NodeWorkloadEntry>;
  readonly #sets = new Map<string, PrefixSet>();
  readonly #changed = new Map<string, boolean>();

  constructor(now: NftState, next: Ruleset, plan: NodePlan) {
    this.#now = now;
    this.#next = next;
    this.#plan = plan;
    this.#workloads = new Map(
      Object.values(plan.workloads).flatMap((workload) =>
        workload.destinations === undefined ? [] : workload.addresses.map((address) => [address, workload] as const),
      ),
    );
  }

  changed(address: string, family: Family): boolean {
    const workload = this.#workloads.get(address);
    const name = workload === undefined ? undefined : destinationSetOf(workload, family);
    if (name === undefined) return false;
    let changed = this.#changed.get(name);
    if (changed === undefined) {
      const was = this.#now.sets.get(name)?.elements;
      const is = this.#next.sets[name]?.elements ?? new Map<string, string>();
      changed = was !== undefined && [...is.keys()].some((key) => !was.has(key));
      this.#changed.set(name, changed);
    }
    return changed;
  }

  of(address: string, family: Family): PrefixSet {
    const key = this.#workloads.get(address)?.destinations ?? '';
    let set = this.#sets.get(`${family} ${key}`);
    if (set === undefined) {
      set = PrefixSet.of(servedRanges(this.#plan.destinations[key]?.egressIPs ?? [], this.#plan.egressIPs, family));
      this.#sets.set(`${family} ${key}`, set);
    }
    return set;
  }
}

function knownOf(ruleset: Ruleset): Set<string> {
  return new Set(families.flatMap((family) => [...(ruleset.sets[`known${family}`]?.elements.keys() ?? [])]));
}

/** What is wanted, and of what is there everything that does not stand in its way: the state between the halves. */
function keepOthers(current: NetState, desired: NetState): NetState {
  const merge = <T>(have: T[], want: T[], key: (item: T) => string): T[] => {
    const taken = new Set(want.map(key));
    return [...want, ...have.filter((item) => !taken.has(key(item)))];
  };
  return {
    links: merge(current.links, desired.links, ({ name }) => name),
    addresses: merge(current.addresses, desired.addresses, ({ dev, address }) => `${dev} ${address}`),
    routes: merge(current.routes, desired.routes, (route) =>
      [route.family, route.table, route.destination, route.metric ?? 0].join(' '),
    ),
    rules: merge(current.rules, desired.rules, ({ family, priority }) => `${family} ${priority}`),
    neighbours: merge(current.neighbours, desired.neighbours, ({ dev, address }) => `${dev} ${address}`),
  };
}

/** The ruleset without any source that is not in force already just so: nothing new is let out. */
function onlyForbidding(now: NftState, next: Ruleset): Ruleset {
  const sets = { ...next.sets };
  const names = families.flatMap((family) => [`known${family}`, `steer${family}`]);
  for (const name of [...names, ...Object.keys(sets).filter(isWaySet)]) {
    const set = next.sets[name];
    const have = now.sets.get(name)?.elements;
    if (set === undefined) continue;
    sets[name] = { ...set, elements: new Map([...set.elements].filter(([key, value]) => have?.get(key) === value)) };
  }
  return { ...next, sets };
}
