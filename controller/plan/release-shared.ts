/**
 * What released pods share on nodes: the shards over which an EgressIP spreads, its destinations, tables of those. A
 * change reaches the nodes once the gateways of all its shards have acknowledged it, as a pod does (release.ts); until
 * then nodes keep what they had. It is remembered for as long as a pod is released by it.
 */
import { families, type GatewayPlan, type NodeEgressIPEntry, type NodeWorkloadEntry } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { type Part, sameRecord } from './memo.ts';
import type { Shared } from './memory.ts';
import { holdersOf, type Peers } from './peers.ts';

export interface SharedInput {
  plans: ReadonlyMap<string, GatewayPlan>;
  /** `pool/shard` of every pool. */
  shards: ReadonlySet<string>;
  /** Shards of an EgressIP's addresses, in the pool that gives them. */
  shardsOf(egressIP: string): readonly string[];
  peers: Peers;
  shared: Shared;
}

export const emptyShared = (): Shared => ({ egressIPs: {}, destinations: {} });

/** Of what pod entries name, all that `from` has. */
export function sharedOf(entries: Iterable<NodeWorkloadEntry>, from: Shared): Shared {
  const shared = emptyShared();
  const put = (name: string): void => {
    const entry = from.egressIPs[name];
    if (entry !== undefined) shared.egressIPs[name] = entry;
  };
  for (const { steer, destinations: key } of entries) {
    for (const family of families) {
      const way = steer[family];
      if (typeof way === 'object' && 'spread' in way) put(way.spread);
    }
    const table = key === undefined || shared.destinations[key] !== undefined ? undefined : from.destinations[key];
    if (key === undefined || table === undefined) continue;
    shared.destinations[key] = table;
    for (const name of table.egressIPs) put(name);
  }
  return shared;
}

/** Whether nodes can still do as a pod's entry says. */
export function standsOn(
  entry: NodeWorkloadEntry,
  { shared, shards }: Pick<SharedInput, 'shared' | 'shards'>,
): boolean {
  const { steer, destinations: key, elsewhere = {} } = entry;
  const table = key === undefined ? { egressIPs: [] } : shared.destinations[key];
  return (
    table?.egressIPs.every((name) => shared.egressIPs[name] !== undefined) === true &&
    [steer, ...Object.values(elsewhere)].every((ways) =>
      families.every((family) => {
        const way = ways[family];
        if (typeof way !== 'object') return true;
        return 'shard' in way ? shards.has(way.shard) : shared.egressIPs[way.spread] !== undefined;
      }),
    ) &&
    Object.values(sharedOf([entry], shared).egressIPs).every((known) => leadsSomewhere(known, shards))
  );
}

const leadsSomewhere = ({ spread = {} }: NodeEgressIPEntry, shards: ReadonlySet<string>): boolean =>
  families.every((family) => (spread[family] ?? []).every((shard) => shards.has(shard)));

/** All that a released pod may name: what nodes have of it, or what they may have now. */
export function releasedShared(input: SharedInput): Shared {
  const before = input.shared;
  const shared: Shared = { egressIPs: { ...before.egressIPs }, destinations: { ...before.destinations } };
  for (const [pool, { egressIPs, destinations }] of input.plans) {
    Object.assign(shared.destinations, destinations);
    for (const [name, { spread, destinations: prefixes }] of Object.entries(egressIPs)) {
      const entry: NodeEgressIPEntry = {};
      if (spread !== undefined) {
        entry.spread = {};
        for (const family of families) {
          const shards = spread[family]?.map(({ shard }) => `${pool}/${shard}`);
          if (shards !== undefined) entry.spread[family] = shards;
        }
      }
      if (prefixes !== undefined) entry.destinations = prefixes;
      const had = before.egressIPs[name];
      const waits =
        had !== undefined &&
        !sameJson(had, entry) &&
        leadsSomewhere(had, input.shards) &&
        !acknowledgedEgressIP(pool, name, input);
      if (!waits) shared.egressIPs[name] = entry;
    }
  }
  return shared;
}

/** Whether the gateways of all its shards have in force what the plan says of it. */
export function acknowledgedEgressIP(
  pool: string,
  name: string,
  { plans, peers, shardsOf }: Pick<SharedInput, 'plans' | 'peers' | 'shardsOf'>,
): boolean {
  const plan = plans.get(pool);
  return shardsOf(name).every((shard) => {
    const holders = plan === undefined ? [] : holdersOf(plan, shard, peers);
    return (
      holders.length > 0 &&
      holders.every((holder) => {
        const inForce = peers.gateways.get(holder)?.inForce;
        return inForce !== undefined && sameJson(inForce.egressIPs[name], plan?.egressIPs[name]);
      })
    );
  });
}

/** Entries of one node are one object for as long as none changes. */
const usedBy = new WeakMap<object, { egressIPs: Set<string>; destinations: Set<string> }>();

/** Of `all`, what one node's pods name. */
export function sharedBy(workloads: Part<NodeWorkloadEntry>, all: Shared): Shared {
  let used = usedBy.get(workloads);
  if (used === undefined) {
    used = { egressIPs: new Set(), destinations: new Set() };
    for (const { steer, destinations } of Object.values(workloads)) {
      for (const family of families) {
        const way = steer[family];
        if (typeof way === 'object' && 'spread' in way) used.egressIPs.add(way.spread);
      }
      if (destinations !== undefined) used.destinations.add(destinations);
    }
    usedBy.set(workloads, used);
  }
  const shared = emptyShared();
  for (const key of used.destinations) {
    const table = all.destinations[key];
    if (table === undefined) continue;
    shared.destinations[key] = table;
    for (const name of table.egressIPs) {
      const entry = all.egressIPs[name];
      if (entry !== undefined) shared.egressIPs[name] = entry;
    }
  }
  for (const name of used.egressIPs) {
    const entry = all.egressIPs[name];
    if (entry !== undefined) shared.egressIPs[name] = entry;
  }
  return shared;
}

/** Of `all`, what released pods of any node name. */
export function sharedByAll(
  nodes: { names(): Iterable<string>; workloads(node: string): Part<NodeWorkloadEntry> },
  all: Shared,
): Shared {
  const used = emptyShared();
  for (const node of nodes.names()) {
    const { egressIPs, destinations } = sharedBy(nodes.workloads(node), all);
    Object.assign(used.egressIPs, egressIPs);
    Object.assign(used.destinations, destinations);
  }
  return used;
}

/** Of before where that is equal. */
export function sameShared(before: Shared | undefined, now: Shared): Shared {
  if (before === undefined) return now;
  const egressIPs = sameRecord(before.egressIPs, now.egressIPs);
  const destinations = sameRecord(before.destinations, now.destinations);
  return egressIPs === before.egressIPs && destinations === before.destinations ? before : { egressIPs, destinations };
}
