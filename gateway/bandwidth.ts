/**
 * The bandwidths that a gateway has to keep (design §4.7), out of its plan: which limits there are, this gateway's share of
 * each, which of them each group of workloads may meet, and the classes in which its packets wait.
 *
 * Every limit is kept by a bucket of bytes in nftables, for each direction: that is exact whatever a flow meets, since a
 * packet asks all of them. So that a flow does not live from what is dropped, it also waits in one HTB class, that of the
 * last limit that it meets (the most particular), as a child of its EgressIP's; the class is slower than the bucket, by
 * the headers that a bucket does not see. Where there can be no class, the buckets do it alone.
 */
import { SCRATCH_MAJOR, TC_MAJOR } from '../api/names.ts';
import { contexts, type GatewayPlan, type GroupEntry, type RuleEntry } from '../api/plan.ts';
import { classText } from '../kernel/nft.ts';
import { divideLimit } from '../policy/limits.ts';
import { Numbers } from './marks.ts';

export const directions = ['out', 'in'] as const;
/** As seen from the pool: to the outside, and back. */
export type Direction = (typeof directions)[number];

/** Bits per second that this gateway may let through; absent: as much as comes. */
export type Shares = Partial<Record<Direction, number>>;

export interface Limit {
  /** What stands for it in a packet's priority while its class is looked for. */
  key: string;
  shares: Shares;
}

/** A class of one direction. */
export interface ShapingClass {
  direction: Direction;
  /** Of TC_MAJOR. */
  minor: number;
  parent?: number;
  bits: number;
  /** Whether packets wait in it, and not only in its children. */
  leaf: boolean;
}

export interface Bandwidths {
  /** By name: egressName(), ruleName(), portName(). */
  limits: Map<string, Limit>;
  /** Address outside → name of the limit of its EgressIP. */
  egress: Map<string, string>;
  /** Groups that may meet a limit of a rule or a port → those. */
  groups: Map<string, string[]>;
  /** Limit of an EgressIP → those that workloads which leave with it may meet; '': none of them. */
  below: Map<string, Set<string>>;
  /** By name of the limit, and of both where it is met below an EgressIP's: pairName(). */
  classes: Map<string, ShapingClass[]>;
}

export const egressName = (egressIP: string): string => `egress ${egressIP}`;
export const ruleName = (id: string): string => `rule ${id}`;
export const portName = (service: string, port: string): string => `port ${service} ${port}`;
/** `name` absent: what meets no other limit than the EgressIP's. */
export const pairName = (egress: string, name = ''): string => `${egress} > ${name}`;

type Plan = Pick<
  GatewayPlan,
  'settings' | 'workloads' | 'egressIPs' | 'destinations' | 'groups' | 'rules' | 'services'
>;

/** undefined: the plan limits no bandwidth. `heldShards`: of this gateway. */
export function bandwidthsOf(plan: Plan, heldShards: readonly string[]): Bandwidths | undefined {
  const { settings, rules, services, egressIPs } = plan;
  const pool = 'pool' in settings ? settings.pool.pool : '';
  const held = new Set(heldShards.map((shard) => `${pool}/${shard}`));
  const shares = new Map<string, Shares>();
  const share = (limit: number | undefined, shards: readonly string[] | undefined): number | undefined =>
    limit === undefined || shards === undefined ? limit : bandwidthShare(limit, shards, (shard) => held.has(shard));
  const bothWays = (limit: number, shards: readonly string[] | undefined): Shares => {
    const bits = share(limit, shards) ?? limit;
    return { out: bits, in: bits };
  };
  const egress = new Map<string, string>();
  for (const [name, { bandwidth }] of Object.entries(egressIPs)) {
    if (bandwidth === undefined) continue;
    const [out, back] = [share(bandwidth.egress, bandwidth.shards), share(bandwidth.ingress, bandwidth.shards)];
    shares.set(egressName(name), { ...(out !== undefined && { out }), ...(back !== undefined && { in: back }) });
    for (const address of bandwidth.addresses) egress.set(address, egressName(name));
  }
  for (const [id, { limits }] of Object.entries(rules)) {
    if (limits?.bandwidth !== undefined) shares.set(ruleName(id), bothWays(limits.bandwidth, limits.shards));
  }
  for (const [key, { limits }] of Object.entries(services)) {
    for (const { name, bandwidth, shards } of limits ?? [])
      shares.set(portName(key, name), bothWays(bandwidth, shards));
  }
  if (shares.size === 0) return undefined;
  const numbers = scratchNumbers(shares.keys());
  const limits = new Map<string, Limit>();
  for (const [name, of] of shares) limits.set(name, { key: scratchText(numbers.get(name) ?? 0), shares: of });
  const groups = new Map<string, string[]>();
  for (const [key, group] of Object.entries(plan.groups)) {
    const names = limitsOfGroup(group, plan);
    if (names.length > 0) groups.set(key, names);
  }
  const below = met(plan, egress, groups);
  return { limits, egress, groups, below, classes: classesOf(limits, below) };
}

/** What may be accepted by it is limited. */
export function limitsOfRule(id: string, rule: RuleEntry, { services }: Pick<GatewayPlan, 'services'>): string[] {
  const accepts = rule.action === 'accept' || rule.action === 'accept-decisively';
  if (!accepts || rule.mode === 'Audit') return [];
  const named = rule.services === '*' ? [] : rule.services;
  return [
    ...named.flatMap((key) => (services[key]?.limits ?? []).map(({ name }) => portName(key, name))),
    ...(rule.limits?.bandwidth === undefined ? [] : [ruleName(id)]),
  ];
}

function limitsOfGroup({ audit, rules: ids }: GroupEntry, plan: Plan): string[] {
  if (audit) return [];
  const names = new Set<string>();
  for (const id of contexts.flatMap((context) => ids[context])) {
    const rule = plan.rules[id];
    // As the compiler of the policy does: half a policy could permit what the whole one forbids.
    if (rule === undefined) throw new TypeError(`a group names rule ${id}, which the plan does not hold`);
    for (const name of limitsOfRule(id, rule, plan)) names.add(name);
  }
  return [...names];
}

/** The share of a gateway; of one that holds none of the shards, that of a shard that it is only about to hold. */
function bandwidthShare(limit: number, shards: readonly string[], isHeld: (shard: string) => boolean): number {
  const division = divideLimit(limit, shards);
  let share = 0;
  for (const [shard, part] of division) if (isHeld(shard)) share += part;
  return share === 0 ? Math.max(1, Math.floor(limit / Math.max(1, shards.length))) : share;
}

/** Limit of an EgressIP → the other limits that workloads which leave with it may meet; '': none of them. */
function met(
  { workloads, destinations }: Plan,
  egress: ReadonlyMap<string, string>,
  groups: ReadonlyMap<string, string[]>,
): Map<string, Set<string>> {
  const below = new Map<string, Set<string>>();
  for (const name of egress.values()) below.set(name, new Set(['']));
  if (below.size === 0 || groups.size === 0) return below;
  for (const { group, egress: own, egressIP, destinations: table = '' } of Object.values(workloads)) {
    const names = groups.get(group);
    if (names === undefined) continue;
    const addresses = [own[4]?.address, own[6]?.address].map((address) => egress.get(address ?? '') ?? '');
    const others = [egressIP ?? '', ...(destinations[table]?.egressIPs ?? [])].map(egressName);
    for (const serving of new Set([...addresses, ...others])) {
      const set = below.get(serving);
      if (set !== undefined) for (const name of names) set.add(name);
    }
  }
  return below;
}

/** Numbers of classes: more than these have none, and are kept by the buckets alone. */
const CLASS_NUMBERS = 0xfffe;

function classesOf(limits: ReadonlyMap<string, Limit>, below: ReadonlyMap<string, Set<string>>): Bandwidths['classes'] {
  type Wanted = { name: string; direction: Direction; bits: number; parent?: string; leaf: boolean };
  const wanted: Wanted[] = [];
  for (const direction of directions) {
    for (const [name, { shares }] of limits) {
      const bits = shares[direction];
      if (bits === undefined) continue;
      const children = below.get(name);
      wanted.push({ name, direction, bits, leaf: children === undefined });
      for (const child of children ?? []) {
        // A child of its own for what meets no other limit: a class that has children holds no packets.
        const own = limits.get(child)?.shares[direction] ?? bits;
        wanted.push({ name: pairName(name, child), direction, bits: Math.min(own, bits), parent: name, leaf: true });
      }
    }
  }
  const keyOf = (name: string, direction: Direction): string => `${direction} ${name}`;
  // Parents come before their children here, so none is cut off.
  const kept = wanted.slice(0, CLASS_NUMBERS);
  const names = kept.map(({ name, direction }) => keyOf(name, direction));
  const numbers = new Numbers(CLASS_NUMBERS, names);
  const classes: Bandwidths['classes'] = new Map();
  for (const { name, direction, bits, parent, leaf } of kept) {
    const minor = numbers.get(keyOf(name, direction)) ?? 0;
    const above = parent === undefined ? undefined : numbers.get(keyOf(parent, direction));
    const made = { direction, minor, ...(above !== undefined && { parent: above }), bits, leaf };
    const list = classes.get(name);
    if (list === undefined) classes.set(name, [made]);
    else list.push(made);
  }
  return classes;
}

const SCRATCH_NUMBERS = 0xffffff;

/** Of a number of 24 bits; neither half is 0, of which nft would write something else. */
export const scratchText = (number: number): string => classText(SCRATCH_MAJOR + (number >>> 12), 1 + (number & 0xfff));
export const scratchNumbers = (names: Iterable<string>): Numbers => new Numbers(SCRATCH_NUMBERS, names);

/** The class of a limit, or of both, as packets get it. */
export function classOf({ classes }: Bandwidths, name: string, direction: Direction): string | undefined {
  const found = classes.get(name)?.find((one) => one.direction === direction && one.leaf);
  return found === undefined ? undefined : classText(TC_MAJOR, found.minor);
}
