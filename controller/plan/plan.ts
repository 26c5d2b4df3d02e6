/**
 * The planner: a pure function from the objects in force, what was remembered and what the gateways acknowledged, to a
 * plan per gateway and node, the objects' status, and what to remember. The same input gives the same result in any
 * order; running it on its own result changes nothing. Parts: pools, pods, allocate, assign, release, status.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import { type EgressIP, type Node, objectKey } from '../../api/kinds.ts';
import { CONTROLLER_NAMESPACE, LABEL_MODE } from '../../api/names.ts';
import {
  contexts,
  emptyGatewayPlan,
  families,
  type GatewayPlan,
  type NodeEntry,
  type NodePlan,
  type ServiceEntry,
  type WorkloadEntry,
} from '../../api/plan.ts';
import { type Binding, bind } from '../../policy/bind.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { serviceName } from '../../policy/reference.ts';
import { allocate, freeSet } from './allocate.ts';
import { assigner, egressOf } from './assign.ts';
import { Findings, type Status } from './condition.ts';
import { redirectBan } from './forbidden.ts';
import { divided, limitShards } from './limits.ts';
import { type Served, ServedByPool } from './loss.ts';
import type { PlannerMemory } from './memory.ts';
import { ownAddressesOf, type Peers } from './peers.ts';
import { type CountedPod, countedPods } from './pods.ts';
import { modeOf, type Pool, poolsOf } from './pools.ts';
import { nodePlanFor, releases } from './release.ts';
import { rendezvousPick } from './rendezvous.ts';
import { ofKind, type Snapshot } from './snapshot.ts';
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
  statuses: Map<string, Status>;
  warnings: Warning[];
  memory: PlannerMemory;
  /** The rules of all pods, carried or not. */
  binding: Binding;
  /** By id of the rule. */
  webhooks: ReadonlyMap<string, WebhookTarget>;
  /** Pods that wait for an acknowledgement. */
  held: number;
  /** When time alone changes the result next (a quarantine ends, a schedule's edge); milliseconds since the epoch. */
  wakeAt?: number;
}

/** `lists`: what is known of the ExternalServices' `addressesFrom`. */
export function plan(
  snapshot: Snapshot,
  memory: PlannerMemory,
  peers: Peers,
  now: number,
  lists: KnownLists = new Map(),
): PlanResult {
  const findings = new Findings();
  const warnings: Warning[] = [];
  const namespaces = ofKind(snapshot, 'Namespace');
  const allPods = ofKind(snapshot, 'Pod');
  const drawPools = ofKind(snapshot, 'EgressIPPool');
  const egressIPs = ofKind(snapshot, 'EgressIP');
  const { pools, poolOfNamespace, indices } = poolsOf(
    ofKind(snapshot, 'GatewayPool'),
    namespaces,
    memory.shardIndices,
    findings,
  );
  for (const namespace of namespaces) {
    if (modeOf(namespace) !== undefined) continue;
    const message = `its label ${LABEL_MODE} is neither Enforce nor Audit: its policy is enforced unless its pool says Audit`;
    warnings.push({ object: objectKey(namespace), reason: 'UnknownMode', message });
  }

  // Addresses: whose they are, and on which shard.
  const nextHops = new Set(
    pools.flatMap(({ shards }) => Object.values(shards).flatMap((s) => Object.values(s.nextHops))),
  );
  const drawable = drawPools.map(freeSet);
  const own = ownAddressesOf(memory.gatewayAddresses, peers, (address) => {
    const parsed = parseAddress(address);
    return (
      nextHops.has(address) ||
      Object.hasOwn(memory.allocations, address) ||
      (parsed.ok && drawable.some((set) => set.has(parsed.value)))
    );
  });
  const gatewayAddresses: Record<string, string[]> = {};
  for (const { gateways } of pools) {
    for (const [name, gateway] of Object.entries(gateways)) {
      const reported = own[name];
      if (reported !== undefined) gatewayAddresses[name] = reported;
      gateway.addresses = [...new Set([gateway.internalAddress, ...(reported ?? [])])];
    }
  }
  const reserved = new Set([
    ...nextHops,
    ...pools.flatMap(({ gateways }) => Object.values(gateways).flatMap(({ addresses }) => addresses)),
  ]);
  const allocation = allocate({ pools: drawPools, egressIPs, previous: memory.allocations, now, reserved }, findings);
  const drawPoolOf = new Map(drawPools.map((pool) => [pool.metadata.name, pool]));
  const poolByName = new Map(pools.map((pool) => [pool.name, pool]));
  const gatewayPoolOf = (egressIP: EgressIP): Pool | undefined =>
    poolByName.get(drawPoolOf.get(egressIP.spec.pool)?.spec.gatewayPool ?? '');
  const shardOf = new Map<string, string>();
  for (const egressIP of egressIPs) {
    const shards = gatewayPoolOf(egressIP)?.shards ?? {};
    const addresses = allocation.addresses.get(egressIP.metadata.name) ?? {};
    for (const address of families.flatMap((family) => addresses[family] ?? [])) {
      const shard = rendezvousPick(address, Object.keys(shards));
      if (shard === undefined) continue;
      shardOf.set(address, shard);
      shards[shard]?.egressIPs.push(address);
    }
  }
  for (const { shards } of pools) for (const shard of Object.values(shards)) shard.egressIPs.sort();

  // Pods: what applies to each.
  const pods = countedPods(allPods, warnings);
  const hostNetwork = allPods.filter(({ spec }) => spec?.hostNetwork === true);
  const binding = bind({
    namespaces,
    pods: [...pods.map(({ pod }) => pod), ...hostNetwork],
    endpointSlices: ofKind(snapshot, 'EndpointSlice'),
    externalServices: ofKind(snapshot, 'ExternalService'),
    clusterRules: ofKind(snapshot, 'ClusterEgressRule'),
    namespaceRules: ofKind(snapshot, 'NamespaceEgressRule'),
    serviceRules: ofKind(snapshot, 'ServiceEgressRule'),
    controllerNamespace: CONTROLLER_NAMESPACE,
    auditedNamespaces: new Set(pools.flatMap(({ audited }) => audited)),
    lastServices: memory.lastServices,
    forbids: redirectBan(snapshot, pools),
    lists,
    now,
  });
  const assign = assigner(egressIPs, drawPoolOf, namespaces, poolOfNamespace, findings);
  const nodeObjects = ofKind(snapshot, 'Node');
  const nodeEntries = nodesOf(nodeObjects);
  const plans = new Map<string, GatewayPlan>();
  for (const { name, settings, gateways, shards } of pools) {
    plans.set(name, { ...emptyGatewayPlan(), settings: { pool: settings }, gateways, shards, nodes: nodeEntries });
  }
  const served = new ServedByPool();
  const assigned = new Set<string>();
  for (const counted of pods) {
    const pool = poolOfNamespace.get(counted.namespace);
    const gatewayPlan = pool === undefined ? undefined : plans.get(pool.name);
    const group = binding.groupOf.get(counted.uid);
    if (pool === undefined || gatewayPlan === undefined || group === undefined) continue;
    const egressIP = assign.egressIPOf(counted);
    if (egressIP !== undefined) assigned.add(counted.uid);
    const addresses = egressIP === undefined ? undefined : allocation.addresses.get(egressIP.metadata.name);
    const workload: WorkloadEntry = {
      namespace: counted.namespace,
      name: counted.pod.metadata.name,
      uid: counted.uid,
      node: counted.node,
      services: [...(binding.servicesOf.get(counted.uid) ?? [])],
      addresses: counted.addresses,
      group,
      egress: egressOf(counted, addresses, (address) => shardOf.get(address)),
    };
    gatewayPlan.workloads[counted.uid] = workload;
    served.add(pool.name, workload);
    if (nodeEntries[counted.node] === undefined) {
      const message = `runs on ${counted.node}, of which there is no Node object: gateways take no packet from it`;
      warnings.push({ object: counted.key, reason: 'NoNode', message });
    }
  }
  const shardsOfLimits = limitShards(plans, binding);
  for (const gatewayPlan of plans.values()) addPolicy(gatewayPlan, binding, shardsOfLimits);

  // Nodes: what is released.
  const allShards = pools.flatMap(({ name, shards }) => Object.keys(shards).map((shard) => `${name}/${shard}`));
  const release = releases({
    pods,
    poolOf: (counted: CountedPod) => poolOfNamespace.get(counted.namespace),
    assigned,
    plans,
    shards: new Set(allShards),
    peers,
    released: memory.released,
  });
  const nodes = new Map<string, NodePlan>();
  const nodeNames = new Set([...Object.keys(nodeEntries), ...pods.map(({ node }) => node), ...peers.nodes.keys()]);
  for (const node of nodeNames) {
    const podCIDRs = nodeEntries[node]?.podCIDRs ?? [];
    nodes.set(node, nodePlanFor(node, podCIDRs, pools, release.nodes.get(node) ?? {}));
  }
  const next: PlannerMemory = {
    allocations: allocation.allocations,
    shardIndices: indices,
    released: release.released,
    lastServices: vetoLists(binding),
    gatewayAddresses,
  };
  const gateways = new Map(
    pools.flatMap((pool) => Object.keys(pool.gateways).map((name) => [name, pool.name] as const)),
  );
  const webhooks = webhooksOf(snapshot);
  const wakeAt = Math.min(
    allocation.wakeAt ?? Number.POSITIVE_INFINITY,
    binding.nextChange ?? Number.POSITIVE_INFINITY,
  );
  return {
    pools: plans,
    gateways,
    served: served.pools,
    nodes,
    statuses: statusesOf({
      snapshot,
      lists,
      pools,
      plans,
      peers,
      allocation,
      shardOf,
      gatewayPoolOf,
      assign,
      binding,
      webhooks,
      shardsOfLimits,
      findings,
    }),
    warnings,
    memory: next,
    binding,
    webhooks: webhooks.targets,
    held: release.held,
    ...(wakeAt === Number.POSITIVE_INFINITY ? {} : { wakeAt }),
  };
}

/** Groups of the plan's workloads, the rules that those name, the services that these name: nothing of other pools. */
function addPolicy(gatewayPlan: GatewayPlan, binding: Binding, shardsOfLimits: ReadonlyMap<string, string[]>): void {
  for (const { group } of Object.values(gatewayPlan.workloads)) {
    const entry = binding.groups[group];
    if (entry === undefined || gatewayPlan.groups[group] !== undefined) continue;
    gatewayPlan.groups[group] = entry;
    for (const id of contexts.flatMap((context) => entry.rules[context])) {
      const rule = binding.rules[id];
      if (rule === undefined) continue;
      gatewayPlan.rules[id] = divided(id, rule, shardsOfLimits);
      for (const key of rule.services === '*' ? [] : rule.services) {
        const service = binding.services[key];
        if (service !== undefined) gatewayPlan.services[key] = service;
      }
    }
  }
}

/** The lists that drop and reject rules enforce now: what stays in force when their object is deleted. */
function vetoLists({ rules, services }: Binding): Record<string, ServiceEntry> {
  const lists: Record<string, ServiceEntry> = {};
  for (const { action, services: names } of Object.values(rules)) {
    if ((action !== 'drop' && action !== 'reject') || names === '*') continue;
    for (const name of names) {
      const service = services[name];
      if (service !== undefined) lists[serviceName(name)] = service;
    }
  }
  return lists;
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
