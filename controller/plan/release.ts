/**
 * Node plans. A pod's presence there is its release (design §6): steered to a shard only once the gateway that holds
 * the shard has acknowledged a plan with exactly this entry. Until then a new pod is absent (the node holds its
 * packets), and a pod that was steered before keeps its old steering, except that a family which may no longer leave
 * is dropped at once. A release is remembered, so that a restart of the controller withdraws nothing.
 */
import {
  emptyNodePlan,
  families,
  type GatewayPlan,
  type NodePlan,
  type NodeWorkloadEntry,
  type PerFamily,
  type Steer,
  type WorkloadEntry,
} from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { Release } from './memory.ts';
import type { Peers } from './peers.ts';
import type { CountedPod } from './pods.ts';
import { type Pool, tunnelled } from './pools.ts';

export interface ReleaseInput {
  pods: readonly CountedPod[];
  poolOf(pod: CountedPod): Pool | undefined;
  /** Whether an EgressIP selects the pod, with an address or not. */
  assigned: ReadonlySet<string>;
  plans: ReadonlyMap<string, GatewayPlan>;
  /** `pool/shard` of every pool. */
  shards: ReadonlySet<string>;
  peers: Peers;
  released: Readonly<Record<string, Release>>;
}

export interface Releases {
  /** Pod entries by node. */
  nodes: Map<string, Record<string, NodeWorkloadEntry>>;
  released: Record<string, Release>;
  held: number;
}

export function releases(input: ReleaseInput): Releases {
  const nodes = new Map<string, Record<string, NodeWorkloadEntry>>();
  const released: Record<string, Release> = {};
  let held = 0;
  for (const counted of input.pods) {
    const { uid, node } = counted;
    const pool = input.poolOf(counted);
    const workload = pool === undefined ? undefined : input.plans.get(pool.name)?.workloads[uid];
    const entry: NodeWorkloadEntry = {
      namespace: counted.namespace,
      name: counted.pod.metadata.name,
      uid,
      addresses: counted.addresses,
      steer: steerOf(pool, workload, input.assigned.has(uid)),
    };
    const fingerprint = fingerprintOf(pool, workload, entry);
    const before = input.released[uid];
    const known = before !== undefined && before.node === node;
    let next: NodeWorkloadEntry | undefined;
    let fingerprintNow = fingerprint;
    if ((known && before.fingerprint === fingerprint) || acknowledged(pool, workload, entry, input.peers)) {
      next = entry;
    } else {
      held++;
      // Steering by other addresses than the pod has now would be worth nothing.
      if (known && sameJson(before.entry.addresses, entry.addresses) && exists(before.entry, input.shards)) {
        next = { ...before.entry, steer: { ...before.entry.steer, ...dropsOf(entry) } };
        fingerprintNow = before.fingerprint;
      }
    }
    if (next === undefined) continue;
    const workloads = nodes.get(node) ?? {};
    workloads[uid] = next;
    nodes.set(node, workloads);
    released[uid] = { fingerprint: fingerprintNow, node, entry: next };
  }
  return { nodes, released, held };
}

function steerOf(pool: Pool | undefined, workload: WorkloadEntry | undefined, assigned: boolean): PerFamily<Steer> {
  const steer: PerFamily<Steer> = {};
  for (const family of families) {
    const egress = workload?.egress[family];
    if (pool === undefined) steer[family] = 'bypass';
    else if (!assigned) steer[family] = pool.settings.unassigned === 'Drop' ? 'drop' : 'bypass';
    else steer[family] = egress === undefined ? 'drop' : { shard: `${pool.name}/${egress.shard}` };
  }
  return steer;
}

function dropsOf(entry: NodeWorkloadEntry): PerFamily<Steer> {
  const drops: PerFamily<Steer> = {};
  for (const family of families) if (entry.steer[family] === 'drop') drops[family] = 'drop';
  return drops;
}

function exists({ steer }: NodeWorkloadEntry, shards: ReadonlySet<string>): boolean {
  return families.every((family) => {
    const way = steer[family];
    return typeof way !== 'object' || shards.has(way.shard);
  });
}

/**
 * What a release is of: the pod's addresses, and per family the pool, shard and source address. All are made here in
 * one order of keys, so plain JSON text is the same for the same content.
 */
function fingerprintOf(pool: Pool | undefined, workload: WorkloadEntry | undefined, entry: NodeWorkloadEntry): string {
  return JSON.stringify([entry.addresses, entry.steer, pool?.name ?? null, workload?.egress ?? null]);
}

function acknowledged(
  pool: Pool | undefined,
  workload: WorkloadEntry | undefined,
  entry: NodeWorkloadEntry,
  peers: Peers,
): boolean {
  return families.every((family) => {
    const steer = entry.steer[family];
    const egress = workload?.egress[family];
    if (typeof steer !== 'object' || egress === undefined) return true;
    const holder = pool?.shards[egress.shard]?.order[0];
    const inForce = holder === undefined ? undefined : peers.gateways.get(holder)?.inForce;
    const theirs = inForce?.workloads[entry.uid];
    return (
      theirs !== undefined &&
      workload !== undefined &&
      sameJson(theirs.addresses, workload.addresses) &&
      sameJson(theirs.egress, workload.egress) &&
      // The holder must have the address under this shard and hold the shard by its own plan.
      inForce?.shards[egress.shard]?.order[0] === holder
    );
  });
}

/** Everything of a node's plan but the pods, which differ by node. */
export function nodePlanFor(
  node: string,
  podCIDRs: string[],
  pools: readonly Pool[],
  workloads: Record<string, NodeWorkloadEntry>,
): NodePlan {
  const result = emptyNodePlan();
  const [first] = pools;
  if (first === undefined) return { ...result, workloads };
  const tunnels = pools.filter(({ settings }) => tunnelled(settings));
  const mtus = tunnels.flatMap(({ settings }) => settings.steering.mtu ?? []);
  const union = (pick: (pool: Pool) => string[]): string[] => [...new Set(pools.flatMap(pick))];
  result.settings = {
    node: {
      node,
      podCIDRs,
      port: (tunnels[0] ?? first).settings.steering.port,
      mtu: mtus.length > 0 ? Math.min(...mtus) : null,
      clusterCIDRs: union(({ settings }) => settings.clusterCIDRs),
      excludedCIDRs: union(({ settings }) => settings.excludedCIDRs),
    },
  };
  for (const { name, settings, shards, gateways } of pools) {
    Object.assign(result.gateways, gateways);
    const { mode, vni } = settings.steering;
    for (const [shard, { index, nextHops }] of Object.entries(shards)) {
      result.shards[`${name}/${shard}`] = { index, mode, vni, nextHops };
    }
  }
  return { ...result, workloads };
}
