/**
 * Nodes: which pods are released (release.ts), namespace by namespace, and a plan for each node, from those of before
 * where nothing changed.
 */
import type { NodeEntry, NodePlan } from '../../api/plan.ts';
import { stable } from '../../policy/admit.ts';
import type { PlanParts } from './cache.ts';
import { type Part, sameItems, sameRecord } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import type { Peers } from './peers.ts';
import type { Pool } from './pools.ts';
import { type NodeSurroundings, nodePlanFor, nodeSurroundings, releases } from './release.ts';
import { type SharedInput, sameShared, sharedBy } from './release-shared.ts';

const nothing: readonly never[] = [];

/** `names`: namespaces that may not be what they were. Returns how many pods wait. */
export function releaseAll(
  parts: PlanParts,
  names: ReadonlySet<string>,
  pools: readonly Pool[],
  { released }: PlannerMemory,
  sharing: SharedInput,
): number {
  const poolByName = new Map(pools.map((pool) => [pool.name, pool]));
  // Where nobody waits, and what is remembered is what came out last, no gateway has anything to say.
  const remembered = released === parts.released;
  const looked = remembered ? new Set([...names, ...parts.waiting.keys()]) : parts.carried.keys();
  for (const name of looked) {
    const carried = parts.carried.get(name);
    if (carried === undefined) {
      parts.waiting.delete(name);
      continue;
    }
    const { state, workloads, assigned } = carried;
    const pods = state.pods.counted;
    const pool = poolByName.get(state.pool ?? '');
    // Where addresses are spread over, it is their families that a workload does not tell.
    const from = [pods, workloads, assigned, pool?.name, pool?.settings.unassigned, state.serving];
    const last = parts.releases.get(name);
    if (remembered && last?.releases.held === 0 && sameItems(last.from, from)) continue;
    const made = releases({ ...sharing, pods, pool, assigned, workloads, released });
    const now = { ...made, released: sameRecord(last?.releases.released, made.released) };
    parts.nodes.replace(last?.releases, now);
    parts.releases.set(name, { from, releases: now });
    if (now.held > 0) parts.waiting.set(name, now.held);
    else parts.waiting.delete(name);
  }
  let held = 0;
  for (const pods of parts.waiting.values()) held += pods;
  return held;
}

export function nodePlans(
  parts: PlanParts,
  entries: Part<NodeEntry>,
  pools: readonly Pool[],
  peers: Peers,
  shared: PlannerMemory['shared'],
): Map<string, NodePlan> {
  const around = parts.nodeSurroundings.get([pools], (last) => sameSurroundings(last, nodeSurroundings(pools)));
  const plans = new Map<string, NodePlan>();
  for (const node of new Set([...Object.keys(entries), ...parts.podsOfNode.keys(), ...peers.nodes.keys()])) {
    const [podCIDRs, workloads] = [entries[node]?.podCIDRs ?? nothing, parts.nodes.workloads(node)];
    const from = [around, podCIDRs, workloads, shared];
    const last = parts.nodePlans.get(node);
    let plan = last?.plan;
    if (plan === undefined || !sameItems(last?.from ?? [], from)) {
      const own = sameShared(plan, sharedBy(workloads, shared));
      const made = nodePlanFor(node, [...podCIDRs], around, workloads, own);
      made.settings = stable(plan?.settings, made.settings);
      if (plan === undefined || !sameItems(Object.values(plan), Object.values(made))) plan = made;
    }
    parts.nodePlans.set(node, { from, plan });
    plans.set(node, plan);
  }
  for (const node of parts.nodePlans.keys()) if (!plans.has(node)) parts.nodePlans.delete(node);
  return plans;
}

function sameSurroundings(last: NodeSurroundings | undefined, now: NodeSurroundings): NodeSurroundings {
  if (last === undefined) return now;
  const gateways = sameRecord(last.gateways, now.gateways);
  const shards = sameRecord(last.shards, now.shards);
  const settings = stable(last.settings, now.settings);
  return gateways === last.gateways && shards === last.shards && settings === last.settings
    ? last
    : { gateways, shards, settings };
}
