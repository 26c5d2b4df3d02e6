/**
 * One namespace as its pool carries it: its policy (policy/bind-namespace.ts), its pods with their egress addresses, and
 * what of that a gateway's plan has. Nothing here depends on another namespace. With the last result at hand only what
 * something changed for is made again, and what comes out equal is the same object.
 */
import {
  contexts,
  type DestinationTable,
  type EgressIPEntry,
  type GroupEntry,
  type RuleEntry,
  type ServiceEntry,
  type WorkloadEntry,
} from '../../api/plan.ts';
import type { AdmittedRules, BoundRule } from '../../policy/admit.ts';
import { bindingHolds, bindNamespace, type NamespaceBinding, type Surroundings } from '../../policy/bind-namespace.ts';
import { vetoKey } from '../../policy/reference.ts';
import { type Assigner, assignmentOf, podConflicts, type Serving } from './assign.ts';
import { Findings } from './condition.ts';
import { leaves, NamespaceEgress } from './egress.ts';
import { divided, hasLimits, limitShards } from './limits.ts';
import { type Part, sameList, sameRecord } from './memo.ts';
import type { NamespaceObjects } from './objects.ts';
import type { NamespacePods } from './pods.ts';

export interface NamespaceState {
  objects: NamespaceObjects;
  pods: NamespacePods;
  /** Those that select the namespace, in walking order. */
  clusterRules: readonly BoundRule[];
  audit: boolean;
  /** Name of the gateway pool; absent: none carries it. */
  pool: string | undefined;
  /** EgressIPs that serve it, in order of precedence. */
  serving: readonly Serving[];
  /** Rules of the cluster that have limits. */
  limited: Part<RuleEntry>;
  /** Services that these name and that have limits. */
  limitedServices: Part<ServiceEntry>;
}

export interface CarriedNamespace {
  state: NamespaceState;
  binding: NamespaceBinding;
  /** Pods that an EgressIP selects, with an address or not. */
  assigned: ReadonlySet<string>;
  /** What the pool's plan has of the namespace; nothing if no pool carries it. */
  workloads: Part<WorkloadEntry>;
  /** Those of them that have an egress IP. */
  served: number;
  tables: Part<DestinationTable>;
  groups: Part<GroupEntry>;
  rules: Part<RuleEntry>;
  services: Part<ServiceEntry>;
  /** Of the cluster, by id. */
  usedClusterRules: readonly string[];
  /** By name of a limit (limits.ts): `pool/shard` that its sources in this namespace use. */
  limitShards: Part<string[]>;
  /** What drop and reject rules enforce. */
  vetoes: Part<ServiceEntry>;
}

export function carryNamespace(
  state: NamespaceState,
  around: Surroundings,
  last: CarriedNamespace | undefined,
): CarriedNamespace {
  if (last !== undefined && sameState(last.state, state) && bindingHolds(last.binding, around)) return last;
  const { objects, pods, clusterRules, audit } = state;
  const { name, endpointSlices, externalServices, namespaceRules, serviceRules } = objects;
  const input = { name, pods: pods.bound, endpointSlices, externalServices, namespaceRules, serviceRules };
  const binding = bindNamespace({ ...input, clusterRules, audit }, around, last?.binding);
  const same = (...parts: (keyof NamespaceState)[]): boolean =>
    last !== undefined && parts.every((part) => last.state[part] === state[part]);
  const sameWorkloads =
    same('pods', 'pool', 'serving') &&
    binding.groupOf === last?.binding.groupOf &&
    binding.servicesOf === last.binding.servicesOf;
  const egress = sameWorkloads ? last : workloadsOf(state, binding, last);
  const { workloads, assigned, served, tables } = egress;
  const own = binding.own;
  if (
    last !== undefined &&
    // Of addresses that are spread over, a workload says nothing.
    same('pool', 'limited', 'limitedServices', 'serving') &&
    workloads === last.workloads &&
    binding.groups === last.binding.groups &&
    own === last.binding.own
  ) {
    return { ...last, state, binding, assigned, served, tables };
  }
  const groups = state.pool === undefined ? {} : binding.groups;
  const rules = { ...own.namespace.rules, ...own.service.rules };
  const services = { ...own.namespace.services, ...own.service.services };
  const named = { ...services, ...state.limitedServices };
  const shards = limitsIn(state, { ...rules, ...state.limited }, named, workloads, groups, tables);
  const used = new Set(Object.values(groups).flatMap((group) => contexts.flatMap((context) => group.rules[context])));
  const [ownRules, clusterIds] = [Object.keys(rules).filter((id) => used.has(id)), [] as string[]];
  for (const id of used) if (!Object.hasOwn(rules, id)) clusterIds.push(id);
  const entries = ownRules.map((id) => [id, divided(id, rules[id] as RuleEntry, shards)] as const);
  return {
    state,
    binding,
    assigned,
    workloads,
    served,
    tables,
    groups,
    rules: sameRecord(last?.rules, Object.fromEntries(entries)),
    services: sameRecord(last?.services, servicesOf(entries, services)),
    usedClusterRules: sameList(last?.usedClusterRules, clusterIds.sort()),
    limitShards: sameRecord(last?.limitShards, Object.fromEntries(shards)),
    vetoes: own === last?.binding.own ? last.vetoes : vetoesOf([own.namespace, own.service], last?.vetoes),
  };
}

/** Asked for every namespace, every time. */
const sameState = (a: NamespaceState, b: NamespaceState): boolean =>
  a.objects === b.objects &&
  a.pods === b.pods &&
  a.clusterRules === b.clusterRules &&
  a.audit === b.audit &&
  a.pool === b.pool &&
  a.serving === b.serving &&
  a.limited === b.limited &&
  a.limitedServices === b.limitedServices;

function workloadsOf(
  { pods, pool, serving }: NamespaceState,
  binding: NamespaceBinding,
  last: CarriedNamespace | undefined,
): Pick<CarriedNamespace, 'workloads' | 'assigned' | 'served' | 'tables'> {
  const egress = new NamespaceEgress();
  const workloads: Record<string, WorkloadEntry> = {};
  const assigned = new Set<string>();
  let served = 0;
  for (const counted of pool === undefined ? [] : pods.counted) {
    const { uid, namespace, node, addresses } = counted;
    const group = binding.groupOf.get(uid);
    if (group === undefined) continue;
    const assignment = assignmentOf(serving, counted);
    if (assignment.otherwise !== undefined) assigned.add(uid);
    if (leaves(assignment)) served++;
    workloads[uid] = {
      namespace,
      name: counted.pod.metadata.name,
      uid,
      node,
      services: binding.servicesOf.get(uid) ?? [],
      addresses,
      group,
      ...egress.fieldsOf(counted, assignment),
    };
  }
  const unchanged =
    last !== undefined && last.assigned.size === assigned.size && [...assigned].every((uid) => last.assigned.has(uid));
  return {
    workloads: sameRecord(last?.workloads, workloads),
    assigned: unchanged ? last.assigned : assigned,
    served,
    tables: sameRecord(last?.tables, egress.tables),
  };
}

function limitsIn(
  { pool, serving }: NamespaceState,
  rules: Part<RuleEntry>,
  services: Part<ServiceEntry>,
  workloads: Part<WorkloadEntry>,
  groups: Part<GroupEntry>,
  destinations: Part<DestinationTable>,
): Map<string, string[]> {
  if (pool === undefined || !Object.values(rules).some((rule) => hasLimits(rule, services))) return new Map();
  const egressIPs = serving.map(({ egressIP: { metadata, spec }, addresses = {} }): [string, EgressIPEntry] => [
    metadata.name,
    spec.spread === 'Connection' ? { spread: addresses } : {},
  ]);
  const plan = { workloads, destinations, egressIPs: Object.fromEntries(egressIPs) };
  return new Map(limitShards(new Map([[pool, plan]]), { rules, groups, services }));
}

/** Of the rules that a plan has, the services that it has. */
export function servicesOf(
  rules: readonly (readonly [id: string, rule: RuleEntry])[],
  services: Part<ServiceEntry>,
): Record<string, ServiceEntry> {
  const used: Record<string, ServiceEntry> = {};
  for (const [, rule] of rules) {
    for (const key of rule.services === '*' ? [] : rule.services) {
      const service = services[key];
      if (service !== undefined) used[key] = service;
    }
  }
  return used;
}

/** The lists that drop and reject rules enforce now: what stays in force when their object is deleted. */
export function vetoesOf(
  admitted: readonly Pick<AdmittedRules, 'rules' | 'services'>[],
  last: Part<ServiceEntry> | undefined,
): Part<ServiceEntry> {
  const vetoes: Record<string, ServiceEntry> = {};
  for (const { rules, services } of admitted) {
    for (const { action, services: names } of Object.values(rules)) {
      if ((action !== 'drop' && action !== 'reject') || names === '*') continue;
      for (const name of names) {
        const service = services[name];
        if (service !== undefined) vetoes[vetoKey(name)] = service;
      }
    }
  }
  return sameRecord(last, vetoes);
}

/** Conflicts of EgressIPs that only pods tell. */
export function podFindings(assign: Assigner, carried: readonly CarriedNamespace[]): Findings {
  const findings = new Findings();
  for (const { state } of carried) {
    const conflicts = podConflicts(assign.candidates(state.objects.name), state.pods.counted);
    for (const { object, reason, message } of conflicts) findings.conflict(object, reason, message);
  }
  return findings;
}
