/**
 * A plan that would take most of a pool's workloads away (design §2): what counts as a loss, and what of a pool stays in
 * the nodes' plans and in the memory while it is held. Workloads are counted by namespace, so that pods which others of
 * their namespace replace (a rollout) are no loss. Pure.
 */
import { createHash } from 'node:crypto';
import { families, type GatewayPlan, type NodePlan, type NodeWorkloadEntry } from '../../api/plan.ts';
import type { PlannerMemory, Shared } from './memory.ts';
import { sharedOf } from './release-shared.ts';

/** Namespace → workloads that have an egress IP. */
export type Served = ReadonlyMap<string, number>;

export interface Loss {
  pool: string;
  /** Namespace → how many fewer. */
  lost: Readonly<Record<string, number>>;
  /** Of how many in all. */
  of: number;
  /** Names this loss: what a person confirms. */
  digest: string;
}

/** In a pool that serves fewer, half is soon gone for a good reason. */
export const LEAST_SERVED = 10;

/** What a namespace tells of itself (carried.ts). */
interface ServedNamespace {
  state: { pool: string | undefined; objects: { name: string } };
  served: number;
}

/** Pool → what it serves, kept up to date: to look through 100,000 workloads takes a while. */
export class ServedIndex {
  readonly #pools = new Map<string, Map<string, number>>();
  /** Those that nobody has seen yet. */
  readonly #fresh = new Set<string>();

  replace(before: ServedNamespace | undefined, now: ServedNamespace | undefined): void {
    const moved = before?.state.pool !== now?.state.pool;
    if (!moved && before?.served === now?.served) return;
    if (before !== undefined && (moved || now === undefined)) this.#set(before, 0);
    if (now !== undefined) this.#set(now, now.served);
  }

  #set({ state: { pool, objects } }: ServedNamespace, count: number): void {
    if (pool === undefined) return;
    let served = this.#pools.get(pool);
    if (served === undefined || !this.#fresh.has(pool)) served = new Map(served);
    this.#pools.set(pool, served);
    this.#fresh.add(pool);
    if (count > 0) served.set(objects.name, count);
    else served.delete(objects.name);
    if (served.size === 0) this.#pools.delete(pool);
  }

  /** What is returned stays as it is. */
  look(): Map<string, Served> {
    this.#fresh.clear();
    return new Map(this.#pools);
  }
}

function sumOfServed(served: Served): number {
  let sum = 0;
  for (const count of served.values()) sum += count;
  return sum;
}

/** The most that each namespace has in either. */
export function peakOf(a: Served, b: Served): Served {
  if (b.size === 0) return a;
  const peak = new Map(a);
  for (const [namespace, count] of b) if (count > (peak.get(namespace) ?? 0)) peak.set(namespace, count);
  return peak;
}

/** More than half of what was served. */
export function lossOf(pool: string, before: Served, after: Served): Loss | undefined {
  const of = sumOfServed(before);
  if (of < LEAST_SERVED) return undefined;
  let sum = 0;
  const fewer: [namespace: string, count: number][] = [];
  for (const [namespace, count] of before) {
    const less = count - (after.get(namespace) ?? 0);
    if (less <= 0) continue;
    sum += less;
    fewer.push([namespace, less]);
  }
  if (sum * 2 <= of) return undefined;
  const lost = Object.fromEntries(fewer.sort(([a], [b]) => (a < b ? -1 : 1)));
  const digest = createHash('sha256')
    .update(JSON.stringify([pool, lost, of]))
    .digest('hex')
    .slice(0, 12);
  return { pool, lost, of, digest };
}

/** What was confirmed is this, or more than this. */
export function covers(confirmed: Pick<Loss, 'pool' | 'lost'>, { pool, lost }: Loss): boolean {
  return (
    confirmed.pool === pool &&
    Object.entries(lost).every(([namespace, count]) => count <= (confirmed.lost[namespace] ?? 0))
  );
}

/** As many as a person reads. */
const MAX_SHOWN = 5;

export const sumOf = (lost: Loss['lost']): number => Object.values(lost).reduce((sum, count) => sum + count, 0);

/** `12 of 14 workloads (billing 8, reviews 4)` */
export function describeLoss({ lost, of }: Pick<Loss, 'lost' | 'of'>): string {
  const namespaces = Object.entries(lost).sort(([, a], [, b]) => b - a);
  const shown = namespaces.slice(0, MAX_SHOWN).map(([namespace, count]) => `${namespace} ${count}`);
  const more = namespaces.length - shown.length;
  return `${sumOf(lost)} of ${of} workloads (${shown.join(', ')}${more > 0 ? ` and ${more} more namespaces` : ''})`;
}

/** A pool as it was when its plan was last let through. */
export interface InForce {
  pool: string;
  served: Served;
  /** What its gateways were given last; absent after a restart. */
  plan?: GatewayPlan;
  /** EgressIPPools that its egress IPs are from. */
  egressIPPools: readonly string[];
}

/** Whether a node's entry is one of the pool's. Of a plan that is not known, those that are steered to its shards. */
export function isOf(
  { pool, plan }: Pick<InForce, 'pool' | 'plan'>,
  uid: string,
  entry: NodeWorkloadEntry,
  shared: Shared,
): boolean {
  if (plan?.workloads[uid] !== undefined) return true;
  const ways = [entry.steer, ...Object.values(entry.elsewhere ?? {})].flatMap((perFamily) => Object.values(perFamily));
  const single = ways.flatMap((way) => (typeof way === 'object' && 'shard' in way ? way.shard : []));
  const spread = Object.values(sharedOf([entry], shared).egressIPs).flatMap(({ spread: perFamily = {} }) =>
    families.flatMap((family) => perFamily[family] ?? []),
  );
  return [...single, ...spread].some((shard) => shard.startsWith(`${pool}/`));
}

/**
 * A node's plan with all of the pool as it was. Its pods that came since are left out: no gateway will acknowledge them,
 * and they must not leave past the gateways. A pod whose address another one has now is gone.
 */
export function keepInNode(was: NodePlan | undefined, next: NodePlan, pool: InForce): NodePlan {
  const workloads: NodePlan['workloads'] = {};
  const taken = new Set<string>();
  for (const [uid, entry] of Object.entries(next.workloads)) {
    if (was?.workloads[uid] !== undefined && isOf(pool, uid, was.workloads[uid], was)) continue;
    if (was?.workloads[uid] === undefined && (pool.served.get(entry.namespace) ?? 0) > 0) continue;
    workloads[uid] = entry;
    for (const address of entry.addresses) taken.add(address);
  }
  if (was === undefined) return { ...next, workloads };
  const kept: NodePlan['workloads'] = {};
  for (const [uid, entry] of Object.entries(was.workloads)) {
    if (isOf(pool, uid, entry, was) && !entry.addresses.some((address) => taken.has(address))) kept[uid] = entry;
  }
  Object.assign(workloads, kept);
  const shards = { ...next.shards };
  for (const [key, shard] of Object.entries(was.shards)) if (key.startsWith(`${pool.pool}/`)) shards[key] = shard;
  return {
    settings: settingsOf(was.settings, next.settings),
    shards,
    gateways: { ...next.gateways, ...(pool.plan?.gateways ?? was.gateways) },
    workloads,
    ...keepShared(was, next, Object.values(kept)),
  };
}

/** What the entries that are kept name, as it was. */
function keepShared(was: Shared, next: Shared, kept: NodeWorkloadEntry[]): Shared {
  const { egressIPs, destinations } = sharedOf(kept, was);
  return {
    egressIPs: { ...next.egressIPs, ...egressIPs },
    destinations: { ...next.destinations, ...destinations },
  };
}

function settingsOf(was: NodePlan['settings'], next: NodePlan['settings']): NodePlan['settings'] {
  if (!('node' in was) || !('node' in next)) return 'node' in was ? was : next;
  const both = (pick: 'clusterCIDRs' | 'excludedCIDRs'): string[] => [
    ...new Set([...was.node[pick], ...next.node[pick]]),
  ];
  return { node: { ...was.node, clusterCIDRs: both('clusterCIDRs'), excludedCIDRs: both('excludedCIDRs') } };
}

/** Nothing that the pool has in force is given to somebody else, or forgotten. */
export function keepInMemory(was: PlannerMemory, next: PlannerMemory, pool: InForce): PlannerMemory {
  const kept = <T>(part: Readonly<Record<string, T>>, keep: (key: string, value: T) => boolean): Record<string, T> =>
    Object.fromEntries(Object.entries(part).filter(([key, value]) => keep(key, value)));
  const inUse = kept(
    was.allocations,
    (_, { pool: from, releasedAt }) => releasedAt === undefined && pool.egressIPPools.includes(from),
  );
  const owners = kept(was.owners, (address) => Object.hasOwn(inUse, address));
  const released = Object.entries(was.released).flatMap(([node, pods]) => {
    const own = kept(pods, (uid, { entry }) => isOf(pool, uid, entry, was.shared));
    return Object.keys(own).length === 0 ? [] : [[node, { ...next.released[node], ...own }] as const];
  });
  return {
    allocations: { ...next.allocations, ...inUse },
    owners: { ...next.owners, ...owners },
    shardIndices: next.shardIndices,
    released: { ...next.released, ...Object.fromEntries(released) },
    shared: keepShared(
      was.shared,
      next.shared,
      released.flatMap(([, pods]) => Object.values(pods).map(({ entry }) => entry)),
    ),
    lastServices: { ...was.lastServices, ...next.lastServices },
    gatewayAddresses: { ...was.gatewayAddresses, ...next.gatewayAddresses },
  };
}
