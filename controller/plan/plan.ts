/**
 * The planner: a pure function from the objects in force, what was remembered and what the gateways acknowledged, to a
 * plan per gateway and node, the objects' status, and what to remember. The same input gives the same result in any
 * order; running it on its own result changes nothing. Parts: pools, addresses, pods, assign, carried (a namespace),
 * pool-plan, release, status. Of a change in one namespace that one is planned again, and the rest is looked over.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import { type EgressIP, type Node, objectKey } from '../../api/kinds.ts';
import { LABEL_MODE } from '../../api/names.ts';
import type { GatewayPlan, NodeEntry, NodePlan } from '../../api/plan.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import { type Binding, bindCluster, joinBindings } from '../../policy/bind.ts';
import type { Surroundings } from '../../policy/bind-namespace.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { servingsOf } from './assign.ts';
import { PlanCache, type PlanParts } from './cache.ts';
import { type CarriedNamespace, carryNamespace, podFindings, vetoesOf } from './carried.ts';
import { clusterCatalog } from './cluster-rules.ts';
import { Findings, type Status } from './condition.ts';
import { egressEntries, shardsOf } from './egress.ts';
import { clusterLimitShards, hasLimits } from './limits.ts';
import type { Served } from './loss.ts';
import { changedKeys, type Part, sameItems, sameList, sameRecord } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import { nodePlans, releaseAll } from './node-plans.ts';
import type { Objects } from './objects.ts';
import type { Peers } from './peers.ts';
import { PoolPlan } from './pool-plan.ts';
import { modeOf } from './pools.ts';
import { releasedShared, type SharedInput, sameShared, sharedByAll } from './release-shared.ts';
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
  const ranges = parts.clusterRanges.look(objects);
  const { Namespace: namespaces, EgressIP: egressIPs } = objects;
  const {
    found,
    addresses,
    destinations,
    assign,
    owners,
    findings: stated,
  } = parts.layout.look(objects, memory, peers, now, lists, ranges?.prefixes);
  const { poolOfNamespace } = found;
  const { pools, allocation, shardOf, placed, gatewayPoolOf } = addresses;
  const { given } = owners;
  const poolOf = (egressIP: EgressIP): string => gatewayPoolOf(egressIP)?.name ?? '';
  const entries = egressEntries(egressIPs, placed, given, destinations, poolOf);
  const servings = parts.servings.get([assign, placed, given, namespaces], (last) =>
    servingsOf(assign, placed, given, namespaces, last),
  );

  // Namespaces: what applies to each pod, and what a gateway's plan has of it.
  const touched = changedKeys(parts.namespaces, objects.namespaces);
  parts.namespaces = objects.namespaces;
  const withPods = parts.pods.look(objects.namespaces, touched, warnings);
  const around = { known: { lastServices: memory.lastServices, lists }, forbids: parts.bans.look(objects, pools), now };
  const cluster = clusterRules(parts, objects, around);
  const withRules = parts.clusterRules.look(cluster.bound, objects.namespaces, touched);
  const limited = Object.entries(cluster.rules).filter(([, rule]) => hasLimits(rule, cluster.services));
  parts.limited = sameRecord(parts.limited, Object.fromEntries(limited));
  const lent = Object.entries(cluster.services).filter(([, { limits }]) => limits !== undefined);
  parts.limitedServices = sameRecord(parts.limitedServices, Object.fromEntries(lent));
  const { audited } = found;
  for (const { name } of pools) if (!parts.poolPlans.has(name)) parts.poolPlans.set(name, new PoolPlan());
  // Beside what changed by namespace: what all are made of, and what some ask of the time, of lists and of addresses.
  const everywhere = [found, parts.limited, parts.limitedServices];
  const all = !sameItems(parts.everywhere, everywhere);
  parts.everywhere = everywhere;
  const served = changedKeys(parts.lastServings, servings);
  parts.lastServings = servings;
  const names = new Set([...touched, ...withPods, ...withRules, ...served, ...parts.asking]);
  if (all) for (const name of objects.namespaces.keys()) names.add(name);
  for (const name of names) {
    const place = objects.namespaces.get(name);
    const last = parts.carried.get(name);
    if (place === undefined) {
      parts.carried.delete(name);
      replaceNamespace(parts, last, undefined);
      continue;
    }
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
  const held = releaseAll(parts, names, pools, memory, sharing);
  parts.released = parts.nodes.released();
  parts.shared = sameShared(memory.shared, sharedByAll(parts.nodes, releasedShared(sharing)));
  const nodes = nodePlans(parts, nodeEntries, pools, peers, parts.shared);

  const vetoes = vetoesOf([cluster], parts.clusterVetoes);
  parts.vetoes.replace(parts.clusterVetoes, vetoes);
  parts.clusterVetoes = vetoes;
  const webhooks = parts.webhooks.get([objects.webhookRules, objects.GatewayPool], () => webhooksOf(objects));
  const wakeAt = Math.min(allocation.wakeAt ?? Number.POSITIVE_INFINITY, owners.wakeAt, nextEdge(parts, cluster));
  let statuses: Map<string, Status> | undefined;
  let binding: Binding | undefined;
  return {
    pools: plans,
    gateways: new Map(pools.flatMap((pool) => Object.keys(pool.gateways).map((name) => [name, pool.name] as const))),
    served: parts.served.look(),
    nodes,
    get statuses() {
      const findings = Findings.join([...stated, podFindings(assign, carried)]);
      const where = { allocation, given, shardOf, gatewayPoolOf, assign };
      const input = { objects, lists, pools, plans, peers, ...where, cluster, ranges };
      const more = { namespaces: carried, webhooks, limitShards, findings, history: parts.history };
      statuses ??= statusesOf({ ...input, ...more }, parts.statuses);
      return statuses;
    },
    warnings,
    memory: {
      allocations: allocation.allocations,
      owners: owners.owners,
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
  const made = bindCluster(rules, clusterCatalog(namespaces, around.known), around, parts.cluster);
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
  ask(parts, last, next);
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

/** Whether a namespace is to be looked at though nothing in it changed. */
function ask({ asking }: PlanParts, last: CarriedNamespace | undefined, next: CarriedNamespace | undefined): void {
  const name = (next ?? last)?.state.objects.name ?? '';
  const { namespace, service } = next?.binding.own ?? {};
  const asks = [namespace, service].some(
    (own) => own !== undefined && own.schedules.length + own.redirects.length + own.watched.length > 0,
  );
  if (asks) asking.add(name);
  else asking.delete(name);
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

function nextEdge(parts: PlanParts, cluster: AdmittedRules): number {
  let next = Number.POSITIVE_INFINITY;
  const look = ({ schedules }: AdmittedRules): void => {
    for (const [, state] of schedules) next = Math.min(next, state?.nextChange ?? next);
  };
  look(cluster);
  for (const name of parts.asking) {
    const own = parts.carried.get(name)?.binding.own;
    if (own === undefined) continue;
    look(own.namespace);
    look(own.service);
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
