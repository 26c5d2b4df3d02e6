/**
 * Node plans. A pod's presence there is its release (design §6): steered to a shard only once the gateways that
 * hold the shards it may be led to have acknowledged a plan with exactly this entry. Until then a new pod is absent (the node holds its
 * packets), and a pod that was steered before keeps its old steering, except that a family which may no longer leave
 * is dropped at once. A release is remembered, so that a restart of the controller withdraws nothing.
 */
import {
  type Egress,
  families,
  type NodePlan,
  type NodeSettings,
  type NodeWorkloadEntry,
  type PerFamily,
  type Steer,
  type WorkloadEntry,
} from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { compileEgress } from '../../policy/egress.ts';
import { sameRecord } from './memo.ts';
import type { PlannerMemory, Release, Shared } from './memory.ts';
import { holdersOf, knowsToHold } from './peers.ts';
import type { CountedPod } from './pods.ts';
import { type Pool, tunnelled } from './pools.ts';
import { acknowledgedEgressIP, type SharedInput, standsOn } from './release-shared.ts';

export interface ReleaseInput extends SharedInput {
  pods: readonly CountedPod[];
  /** That carries them. */
  pool: Pool | undefined;
  /** Whether an EgressIP selects the pod, with an address or not. */
  assigned: ReadonlySet<string>;
  /** Of the pool's plan. */
  workloads: Readonly<Record<string, WorkloadEntry>>;
  released: PlannerMemory['released'];
}

/** Pods of one namespace. */
export interface Releases {
  /** By uid. */
  released: Record<string, Release>;
  /** Those that wait, whatever their node does with them meanwhile. None: nothing that a gateway says changes this. */
  held: number;
}

export function releases(input: ReleaseInput): Releases {
  const { pool } = input;
  const released: Record<string, Release> = {};
  let held = 0;
  for (const counted of input.pods) {
    const { uid, node, pod } = counted;
    const networked = pod.status?.conditions?.[0]?.lastTransitionTime;
    const workload = pool === undefined ? undefined : input.workloads[uid];
    const entry: NodeWorkloadEntry = {
      namespace: counted.namespace,
      name: pod.metadata.name,
      uid,
      ...(networked !== undefined && { networked }),
      addresses: counted.addresses,
      ...waysOf(pool, workload, input.assigned.has(uid), input.plans),
    };
    const fingerprint = fingerprintOf(pool, workload, entry);
    const known = releaseOf(input.released, node, uid);
    // Another pod may have had the uid, where manifests give it.
    const before = known?.entry.namespace === entry.namespace && known.entry.name === entry.name ? known : undefined;
    let next: NodeWorkloadEntry | undefined;
    let fingerprintNow = fingerprint;
    if (before?.fingerprint === fingerprint || acknowledged(pool, workload, entry, input)) {
      next = entry;
    } else {
      held++;
      // Steering by other addresses than the pod has now would be worth nothing.
      if (before !== undefined && sameJson(before.entry.addresses, entry.addresses) && standsOn(before.entry, input)) {
        next = { ...before.entry, steer: { ...before.entry.steer, ...dropsOf(entry) } };
        fingerprintNow = before.fingerprint;
      }
    }
    if (next === undefined) continue;
    const release = { fingerprint: fingerprintNow, node, entry: next };
    released[uid] = before !== undefined && sameJson(before, release) ? before : release;
  }
  return { released, held };
}

/** Names of nodes and uids are anybody's text. */
function releaseOf(released: PlannerMemory['released'], node: string, uid: string): Release | undefined {
  const ofNode = Object.hasOwn(released, node) ? released[node] : undefined;
  return ofNode !== undefined && Object.hasOwn(ofNode, uid) ? ofNode[uid] : undefined;
}

/** Releases by node, put together from those of namespaces; what nothing changed for is the same object. */
export class NodeIndex {
  readonly #nodes = new Map<string, Map<string, Release>>();
  readonly #changed = new Set<string>();
  #released: PlannerMemory['released'] = {};
  readonly #workloads = new Map<string, Record<string, NodeWorkloadEntry>>();

  replace(before: Releases | undefined, now: Releases | undefined): void {
    const [old, next] = [before?.released ?? {}, now?.released ?? {}];
    if (old === next) return;
    for (const [uid, release] of Object.entries(old)) {
      const { node } = release;
      if (Object.hasOwn(next, uid) && next[uid]?.node === node) continue;
      const pods = this.#nodes.get(node);
      // Another namespace may have a pod of this uid now, and may have been looked at before.
      if (pods?.get(uid) !== release) continue;
      pods.delete(uid);
      this.#changed.add(node);
    }
    for (const [uid, release] of Object.entries(next)) {
      if (Object.hasOwn(old, uid) && old[uid] === release) continue;
      const pods = this.#nodes.get(release.node) ?? new Map<string, Release>();
      this.#nodes.set(release.node, pods);
      pods.set(uid, release);
      this.#changed.add(release.node);
    }
  }

  /** After all replacements. */
  released(): PlannerMemory['released'] {
    if (this.#changed.size === 0) return this.#released;
    for (const node of this.#changed) {
      const pods = this.#nodes.get(node) ?? new Map<string, Release>();
      if (pods.size === 0) this.#nodes.delete(node);
      const workloads = Object.fromEntries([...pods].map(([uid, { entry }]) => [uid, entry]));
      this.#workloads.set(node, sameRecord(this.#workloads.get(node), workloads));
    }
    const released = Object.entries(this.#released).filter(([node]) => !this.#changed.has(node));
    const changed = [...this.#changed].flatMap((node) => {
      const pods = this.#nodes.get(node);
      return pods === undefined ? [] : [[node, Object.fromEntries(pods)] as const];
    });
    this.#released = Object.fromEntries([...released, ...changed]);
    this.#changed.clear();
    return this.#released;
  }

  /** Nodes with pods that are released. */
  names(): Iterable<string> {
    return this.#nodes.keys();
  }

  workloads(node: string): Record<string, NodeWorkloadEntry> {
    return this.#workloads.get(node) ?? nobody;
  }
}

const nobody: Record<string, NodeWorkloadEntry> = {};

function waysOf(
  pool: Pool | undefined,
  workload: WorkloadEntry | undefined,
  assigned: boolean,
  plans: ReleaseInput['plans'],
): Pick<NodeWorkloadEntry, 'steer' | 'destinations' | 'elsewhere'> {
  const { egressIP, destinations, elsewhere } = workload ?? {};
  const spread = egressIP === undefined ? undefined : plans.get(pool?.name ?? '')?.egressIPs[egressIP]?.spread;
  const shardOf = (egress: Egress | undefined): Steer =>
    egress === undefined ? 'drop' : { shard: `${pool?.name}/${egress.shard}` };
  const steer: PerFamily<Steer> = {};
  for (const family of families) {
    if (pool === undefined) steer[family] = 'bypass';
    else if (!assigned) steer[family] = pool.settings.unassigned === 'Drop' ? 'drop' : 'bypass';
    else if (egressIP !== undefined && spread?.[family] !== undefined) steer[family] = { spread: egressIP };
    else steer[family] = shardOf(workload?.egress[family]);
  }
  if (destinations === undefined) return { steer };
  const ways = Object.entries(elsewhere ?? {}).map(
    ([name, egress]) => [name, { 4: shardOf(egress[4]), 6: shardOf(egress[6]) }] as const,
  );
  return { steer, destinations, ...(ways.length > 0 && { elsewhere: Object.fromEntries(ways) }) };
}

function dropsOf(entry: NodeWorkloadEntry): PerFamily<Steer> {
  const drops: PerFamily<Steer> = {};
  for (const family of families) if (entry.steer[family] === 'drop') drops[family] = 'drop';
  return drops;
}

/**
 * What a release is of: the pod's addresses, and per family the pool, shard and source address, of each EgressIP that serves
 * it. All are made here in one order of keys, so plain JSON text is the same for the same content.
 */
function fingerprintOf(pool: Pool | undefined, workload: WorkloadEntry | undefined, entry: NodeWorkloadEntry): string {
  const { egress, ...more } = egressFields(workload);
  const parts = [entry.addresses, entry.steer, pool?.name ?? null, egress ?? null];
  return JSON.stringify(Object.values(more).some((field) => field !== undefined) ? [...parts, more] : parts);
}

const egressFields = ({ egress, egressIP, destinations, elsewhere }: Partial<WorkloadEntry> = {}) => ({
  egress,
  egressIP,
  destinations,
  elsewhere,
});

function acknowledged(
  pool: Pool | undefined,
  workload: WorkloadEntry | undefined,
  entry: NodeWorkloadEntry,
  input: ReleaseInput,
): boolean {
  const plan = pool === undefined ? undefined : input.plans.get(pool.name);
  if (pool === undefined || plan === undefined || workload === undefined) return true;
  const map = compileEgress(plan);
  const itsShards = families.flatMap((family) => map.everything(workload, family).map(({ shard }) => shard));
  const wanted = egressFields(workload);
  const names = [workload.egressIP ?? [], plan.destinations[workload.destinations ?? '']?.egressIPs ?? []].flat();
  return (
    [...new Set(itsShards)].every((shard) => {
      const holders = holdersOf(plan, shard, input.peers);
      return (
        holders.length > 0 &&
        holders.every((holder) => {
          const inForce = input.peers.gateways.get(holder)?.inForce;
          const theirs = inForce?.workloads[entry.uid];
          return (
            inForce !== undefined &&
            theirs !== undefined &&
            sameJson(theirs.addresses, workload.addresses) &&
            sameJson(egressFields(theirs), wanted) &&
            // The holder must have the address under this shard and hold the shard by its own plan.
            knowsToHold(inForce, shard, holder)
          );
        })
      );
    }) && names.every((name) => acknowledgedEgressIP(pool.name, name, input))
  );
}

/** What all nodes have, whatever pods run there. */
export type NodeSurroundings = Pick<NodePlan, 'gateways' | 'shards'> & {
  settings: Omit<NodeSettings, 'node' | 'podCIDRs'> | undefined;
};

export function nodeSurroundings(pools: readonly Pool[]): NodeSurroundings {
  const result: NodeSurroundings = { gateways: {}, shards: {}, settings: undefined };
  const [first] = pools;
  if (first === undefined) return result;
  const tunnels = pools.filter(({ settings }) => tunnelled(settings));
  const mtus = tunnels.flatMap(({ settings }) => settings.steering.mtu ?? []);
  const union = (pick: (pool: Pool) => string[]): string[] => [...new Set(pools.flatMap(pick))];
  result.settings = {
    port: (tunnels[0] ?? first).settings.steering.port,
    mtu: mtus.length > 0 ? Math.min(...mtus) : null,
    clusterCIDRs: union(({ settings }) => settings.clusterCIDRs),
    excludedCIDRs: union(({ settings }) => settings.excludedCIDRs),
  };
  for (const { name, settings, shards, gateways } of pools) {
    Object.assign(result.gateways, gateways);
    const { mode, vni } = settings.steering;
    for (const [shard, { index, nextHops }] of Object.entries(shards)) {
      result.shards[`${name}/${shard}`] = { index, mode, vni, nextHops };
    }
  }
  return result;
}

export function nodePlanFor(
  node: string,
  podCIDRs: string[],
  { settings, gateways, shards }: NodeSurroundings,
  workloads: Record<string, NodeWorkloadEntry>,
  { egressIPs, destinations }: Shared,
): NodePlan {
  return {
    settings: settings === undefined ? {} : { node: { node, podCIDRs, ...settings } },
    gateways,
    shards,
    workloads,
    egressIPs,
    destinations,
  };
}
