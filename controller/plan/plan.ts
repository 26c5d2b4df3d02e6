/**
 * The planner: a pure function from the objects in force, what was remembered and what the gateways acknowledged, to a
 * plan per gateway and node, the objects' status, and what to remember. The same input gives the same result in any
 * order; running it on its own result changes nothing. Parts: pools, addresses, pods, assign, carried (a namespace),
 * pool-plan, release, status. Of a change in one namespace that one is planned again, and the rest is looked over.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import { type Node, objectKey } from '../../api/kinds.ts';
import { CONTROLLER_NAMESPACE, LABEL_MODE } from '../../api/names.ts';
import type { GatewayPlan, NodeEntry, NodePlan } from '../../api/plan.ts';
import { type AdmittedRules, stable } from '../../policy/admit.ts';
import { type Binding, bindCluster, joinBindings } from '../../policy/bind.ts';
import type { Surroundings } from '../../policy/bind-namespace.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { lendsServices, serviceCatalog } from '../../policy/reference.ts';
import { assigner, servingsOf } from './assign.ts';
import { PlanCache, type PlanParts } from './cache.ts';
import { type CarriedNamespace, carryNamespace, podFindings, vetoesOf } from './carried.ts';
import { Findings, type Status } from './condition.ts';
import { egressEntries, shardsOf } from './egress.ts';
import { clusterLimitShards, hasLimits } from './limits.ts';
import type { Served } from './loss.ts';
import { type Part, sameItems, sameList, sameRecord } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import { type Objects, serviceNamed } from './objects.ts';
import type { Peers } from './peers.ts';
import { PoolPlan } from './pool-plan.ts';
import { modeOf, type Pool, poolsOf } from './pools.ts';
import { type NodeSurroundings, nodePlanFor, nodeSurroundings, releases } from './release.ts';
import { releasedShared, type SharedInput, sameShared, sharedBy, sharedByAll } from './release-shared.ts';
import { compareText, type Snapshot } from './snapshot.ts';
import { statusesOf } from './status.ts';
import { type WebhookTarget, webhooksOf } from './webhooks.ts';

export interface Warning {
  object: string;
  reason: string;
  message: string;
}

export interface PlanResult {
  /** By GatewayPool name; the same plan for every gateway of the pool. */
  pools: Map<string, GatewayPlan>;
  /** Gateway → its pool. */
  gateways: Map<string, string>;
  /** GatewayPool → how many workloads of each namespace it gives an egress IP. */
  served: ReadonlyMap<string, Served>;
  /** By node name. */
  nodes: Map<string, NodePlan>;
  /** Made when it is asked for. */
  readonly statuses: ReadonlyMap<string, Status>;
  warnings: Warning[];
  memory: PlannerMemory;
  /** The rules of all pods, carried or not. Made when it is asked for. */
  readonly binding: Binding;
  /** By id of the rule. */
  webhooks: ReadonlyMap<string, WebhookTarget>;
  /** Pods that wait for an acknowledgement. */
  held: number;
  /** When time alone changes the result next (a quarantine ends, a schedule's edge); milliseconds since the epoch. */
  wakeAt?: number;
}

/**
 * `lists`: what is known of the ExternalServices' `addressesFrom`. `cache`: of the plans before, to save work; without it
 * the result is equal, and shares nothing with theirs.
 */
export function plan(
  snapshot: Snapshot,
  memory: PlannerMemory,
  peers: Peers,
  now: number,
  lists: KnownLists = new Map(),
  cache: PlanCache = new PlanCache(),
): PlanResult {
  const objects = cache.look(snapshot);
  try {
    return planned(cache.parts, objects, memory, peers, now, lists);
  } catch (error) {
    cache.clear();
    throw error;
  }
}

function planned(
  parts: PlanParts,
  objects: Objects,
  memory: PlannerMemory,
  peers: Peers,
  now: number,
  lists: KnownLists,
): PlanResult {
  parts.history.begin();
  const warnings: Warning[] = [...parts.warnings.get([objects.Namespace], () => unknownModes(objects))];
  const { Namespace: namespaces, EgressIPPool: drawPools, EgressIP: egressIPs } = objects;
  const found = parts.pools.get([objects.GatewayPool, namespaces, memory.shardIndices], () => {
    const findings = new Findings();
    return { ...poolsOf(objects.GatewayPool, namespaces, memory.shardIndices, findings), findings };
  });
  const { poolOfNamespace } = found;
  const addresses = parts.addresses.look(objects, found.pools, memory, peers, now);
  const { pools, allocation, shardOf, placed, gatewayPoolOf } = addresses;
  const { destinations, findings: destinationFindings } = parts.destinations.look(objects, lists);
  const entries = egressEntries(egressIPs, placed, destinations, (egressIP) => gatewayPoolOf(egressIP)?.name ?? '');
  const assigned = parts.assigner.get([egressIPs, drawPools, namespaces, poolOfNamespace, destinations], () => {
    const findings = new Findings();
    const drawPoolOf = new Map(drawPools.map((pool) => [pool.metadata.name, pool]));
    return { assign: assigner(egressIPs, drawPoolOf, namespaces, poolOfNamespace, destinations, findings), findings };
  });
  const { assign } = assigned;
  const servings = parts.servings.get([assign, placed, namespaces], (last) =>
    servingsOf(assign, placed, namespaces, last),
  );

  // Namespaces: what applies to each pod, and what a gateway's plan has of it.
  parts.pods.look(objects.namespaces, warnings);
  const around = { known: { lastServices: memory.lastServices, lists }, forbids: parts.bans.look(objects, pools), now };
  const cluster = clusterRules(parts, objects, around);
  parts.clusterRules.look(cluster.bound, objects.namespaces);
  const limited = Object.entries(cluster.rules).filter(([, rule]) => hasLimits(rule, cluster.services));
  parts.limited = sameRecord(parts.limited, Object.fromEntries(limited));
  const lent = Object.entries(cluster.services).filter(([, { limits }]) => limits !== undefined);
  parts.limitedServices = sameRecord(parts.limitedServices, Object.fromEntries(lent));
  const audited = new Set(pools.flatMap((pool) => pool.audited));
  for (const { name } of pools) if (!parts.poolPlans.has(name)) parts.poolPlans.set(name, new PoolPlan());
  for (const [name, last] of parts.carried) {
    if (objects.namespaces.has(name)) continue;
    replaceNamespace(parts, last, undefined);
    parts.carried.delete(name);
  }
  for (const [name, place] of objects.namespaces) {
    const state = {
      objects: place,
      pods: parts.pods.of(name),
      clusterRules: parts.clusterRules.of(name),
      audit: audited.has(name),
      pool: poolOfNamespace.get(name)?.name,
      serving: servings.get(name) ?? nothing,
      limited: parts.limited,
      limitedServices: parts.limitedServices,
    };
    const last = parts.carried.get(name);
    const next = carryNamespace(state, around, last);
    if (next === last) continue;
    parts.carried.set(name, next);
    replaceNamespace(parts, last, next);
  }
  const carried = [...parts.carried.values()];

  // Pools.
  const limitShards = clusterLimitShards(carried, parts.limited);
  const nodeEntries = parts.nodeEntries.get([objects.Node], (last) => sameRecord(last, nodesOf(objects.Node)));
  const plans = new Map<string, GatewayPlan>();
  for (const { name, settings, gateways, shards } of pools) {
    const fixed = {
      settings: { pool: settings },
      gateways,
      nodes: nodeEntries,
      shards,
      egressIPs: entries.get(name) ?? {},
    };
    const made = parts.poolPlans.get(name)?.plan(fixed, cluster, limitShards);
    if (made === undefined) continue;
    plans.set(name, made);
    parts.history.made(made);
  }
  for (const name of parts.poolPlans.keys()) if (!plans.has(name)) parts.poolPlans.delete(name);
  warnings.push(...withoutNode(parts, carried, nodeEntries));

  // Nodes: what is released.
  const sharing: SharedInput = {
    plans,
    shards: new Set(pools.flatMap(({ name, shards }) => Object.keys(shards).map((shard) => `${name}/${shard}`))),
    shardsOf: (egressIP) => shardsOf(placed.get(egressIP)),
    peers,
    shared: memory.shared,
  };
  const held = releaseAll(parts, carried, pools, memory, sharing);
  parts.released = parts.nodes.released();
  parts.shared = sameShared(memory.shared, sharedByAll(parts.nodes, releasedShared(sharing)));
  const nodes = nodePlans(parts, nodeEntries, pools, peers, parts.shared);

  const vetoes = vetoesOf([cluster], parts.clusterVetoes);
  parts.vetoes.replace(parts.clusterVetoes, vetoes);
  parts.clusterVetoes = vetoes;
  const webhooks = parts.webhooks.get([objects.webhookRules, objects.GatewayPool], () => webhooksOf(objects));
  const wakeAt = Math.min(allocation.wakeAt ?? Number.POSITIVE_INFINITY, nextEdge(cluster, carried));
  let statuses: Map<string, Status> | undefined;
  let binding: Binding | undefined;
  return {
    pools: plans,
    gateways: new Map(pools.flatMap((pool) => Object.keys(pool.gateways).map((name) => [name, pool.name] as const))),
    served: parts.served.look(),
    nodes,
    get statuses() {
      const contested = podFindings(assign, carried);
      const all = [found.findings, addresses.findings, destinationFindings, assigned.findings, contested];
      const findings = Findings.join(all);
      const where = { allocation, shardOf, gatewayPoolOf, assign };
      const input = { objects, lists, pools, plans, peers, ...where, cluster };
      const more = { namespaces: carried, webhooks, limitShards, findings, history: parts.history };
      statuses ??= statusesOf({ ...input, ...more }, parts.statuses);
      return statuses;
    },
    warnings,
    memory: {
      allocations: allocation.allocations,
      shardIndices: sameRecord(memory.shardIndices, found.indices),
      released: parts.released,
      shared: parts.shared,
      lastServices: parts.vetoes.record,
      gatewayAddresses: addresses.gatewayAddresses,
    },
    get binding() {
      binding ??= joinBindings(
        cluster,
        carried.map((namespace) => namespace.binding).sort((a, b) => compareText(a.input.name, b.input.name)),
      );
      return binding;
    },
    webhooks: webhooks.targets,
    held,
    ...(wakeAt === Number.POSITIVE_INFINITY ? {} : { wakeAt }),
  };
}

const nothing: readonly never[] = [];

function unknownModes({ Namespace: namespaces }: Objects): Warning[] {
  const message = `its label ${LABEL_MODE} is neither Enforce nor Audit: its policy is enforced unless its pool says Audit`;
  return namespaces.flatMap((namespace) =>
    modeOf(namespace) === undefined ? [{ object: objectKey(namespace), reason: 'UnknownMode', message }] : [],
  );
}

function clusterRules(parts: PlanParts, { ClusterEgressRule: rules, namespaces }: Objects, around: Surroundings) {
  const catalog = serviceCatalog({
    find: (key) => serviceNamed(namespaces, key),
    trusts: (name) => {
      const object = namespaces.get(name)?.namespace;
      return object !== undefined && lendsServices(object);
    },
    controllerNamespace: CONTROLLER_NAMESPACE,
    known: around.known,
  });
  const made = bindCluster(rules, catalog, around, parts.cluster);
  parts.cluster = { ...made, bound: sameList(parts.cluster?.bound, made.bound) };
  return parts.cluster;
}

/** Everything that is put together from namespaces. */
function replaceNamespace(parts: PlanParts, last: CarriedNamespace | undefined, next: CarriedNamespace | undefined) {
  const [from, to] = [last?.state.pool, next?.state.pool];
  if (from !== to) parts.poolPlans.get(from ?? '')?.replace(last, undefined);
  parts.poolPlans.get(to ?? '')?.replace(from === to ? last : undefined, next);
  parts.vetoes.replace(last?.vetoes, next?.vetoes);
  parts.served.replace(last, next);
  parts.history.replace(last, next);
  const [before, now] = [last?.state.pods.counted ?? nothing, next?.state.pods.counted ?? nothing];
  if (before !== now) {
    for (const { node } of before) count(parts.podsOfNode, node, -1);
    for (const { node } of now) count(parts.podsOfNode, node, 1);
  }
  if (next !== undefined || last === undefined) return;
  const { name } = last.state.objects;
  parts.nodes.replace(parts.releases.get(name)?.releases, undefined);
  parts.releases.delete(name);
}

function count(counts: Map<string, number>, key: string, by: number): void {
  const now = (counts.get(key) ?? 0) + by;
  if (now === 0) counts.delete(key);
  else counts.set(key, now);
}

function withoutNode(parts: PlanParts, carried: readonly CarriedNamespace[], nodes: Part<NodeEntry>): Warning[] {
  const missing = new Set([...parts.podsOfNode.keys()].filter((node) => !Object.hasOwn(nodes, node)));
  if (missing.size === 0) return [];
  const warnings = carried.flatMap(({ state, workloads }) =>
    state.pods.counted.flatMap(({ key, uid, node }): Warning[] => {
      if (!missing.has(node) || !Object.hasOwn(workloads, uid)) return [];
      const message = `runs on ${node}, of which there is no Node object: gateways take no packet from it`;
      return [{ object: key, reason: 'NoNode', message }];
    }),
  );
  return warnings.sort((a, b) => compareText(a.object, b.object));
}

/** Returns how many pods wait. */
function releaseAll(
  parts: PlanParts,
  carried: readonly CarriedNamespace[],
  pools: readonly Pool[],
  { released }: PlannerMemory,
  sharing: SharedInput,
): number {
  const poolByName = new Map(pools.map((pool) => [pool.name, pool]));
  let held = 0;
  for (const { state, workloads, assigned } of carried) {
    const { name } = state.objects;
    const pods = state.pods.counted;
    const pool = poolByName.get(state.pool ?? '');
    // Where addresses are spread over, it is their families that a workload does not tell.
    const from = [pods, workloads, assigned, pool?.name, pool?.settings.unassigned, state.serving];
    const last = parts.releases.get(name);
    // Where nobody waits, and what is remembered is what came out last, no gateway has anything to say.
    const settled = released === parts.released && last?.releases.held === 0 && sameItems(last.from, from);
    if (settled) continue;
    const made = releases({ ...sharing, pods, pool, assigned, workloads, released });
    const now = { ...made, released: sameRecord(last?.releases.released, made.released) };
    held += now.held;
    parts.nodes.replace(last?.releases, now);
    parts.releases.set(name, { from, releases: now });
  }
  return held;
}

function nodePlans(
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

function nextEdge(cluster: AdmittedRules, carried: readonly CarriedNamespace[]): number {
  let next = Number.POSITIVE_INFINITY;
  const look = ({ schedules }: AdmittedRules): void => {
    for (const [, state] of schedules) next = Math.min(next, state?.nextChange ?? next);
  };
  look(cluster);
  for (const { binding } of carried) {
    look(binding.own.namespace);
    look(binding.own.service);
  }
  return next;
}

function nodesOf(objects: readonly Node[]): Record<string, NodeEntry> {
  const nodes: Record<string, NodeEntry> = {};
  for (const { metadata, spec, status } of objects) {
    const addresses = (status?.addresses ?? []).flatMap(({ type, address }) => {
      const parsed = parseAddress(address);
      return type === 'InternalIP' && parsed.ok ? [formatAddress(parsed.value)] : [];
    });
    const podCIDRs = spec?.podCIDRs ?? (spec?.podCIDR === undefined ? [] : [spec.podCIDR]);
    nodes[metadata.name] = { addresses, podCIDRs: [...podCIDRs] };
  }
  return nodes;
}
