/**
 * From what people wrote to what is walked: rules, the external services they name, and for every pod the ordered
 * rules of each context that can apply to it (design §3 rule, §4.1–4.2). Pods that are the same to every selector share
 * a *group*, so that a pod coming or going changes no rule. Pure: the same objects in any order give the same binding.
 * Each namespace is bound by itself (bind-namespace.ts). Left out: which pods a pool carries, and egress IPs (controller/).
 */

import type {
  ClusterEgressRule,
  EndpointSlice,
  ExternalService,
  Namespace,
  NamespaceEgressRule,
  Pod,
  ServiceEgressRule,
} from '../api/kinds.ts';
import type { Context, GroupEntry, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { type AdmittedRules, admit, type BoundRule, type RuleCondition } from './admit.ts';
import { selectsNamespace } from './applies.ts';
import { bindNamespace, type NamespaceBinding, type Surroundings } from './bind-namespace.ts';
import type { KnownLists } from './external-service.ts';
import { lendsServices, type ServiceCatalog, serviceCatalog } from './reference.ts';

export type { RuleCondition } from './admit.ts';

export interface BindInput {
  namespaces: Namespace[];
  pods: Pod[];
  endpointSlices: EndpointSlice[];
  externalServices: ExternalService[];
  clusterRules: ClusterEgressRule[];
  namespaceRules: NamespaceEgressRule[];
  serviceRules: ServiceEgressRule[];
  controllerNamespace: string;
  /** Whose whole policy is in audit. */
  auditedNamespaces: ReadonlySet<string>;
  /** Lists that were in force last, for drop and reject rules whose ExternalService is gone. */
  lastServices: Record<string, ServiceEntry>;
  /** What `addressesFrom` of the external services lists; absent: nothing is known. */
  lists?: KnownLists;
  /** Why no redirect of a context's rules may lead there; absent: none is forbidden. */
  forbids?: (address: string, context: Context) => string | undefined;
  /** For schedules; milliseconds since the epoch. */
  now: number;
}

export interface Binding {
  rules: Record<string, RuleEntry>;
  services: Record<string, ServiceEntry>;
  groups: Record<string, GroupEntry>;
  /** Pod key (its uid; podKey) → key into `groups`; pods that can never be a source are absent. */
  groupOf: Map<string, string>;
  /** Pod key → names of the Services that list it, ready or not. */
  servicesOf: Map<string, string[]>;
  /** One per rule object: the cluster's, then those of each namespace, by name. */
  conditions: RuleCondition[];
  /** The next edge of any rule's schedule; milliseconds since the epoch. */
  nextChange?: number;
}

export function bind(input: BindInput): Binding {
  const around = { known: input, forbids: input.forbids, now: input.now };
  const services = new Map(input.externalServices.map((o) => [`${o.metadata.namespace ?? ''}/${o.metadata.name}`, o]));
  const lenders = new Set(input.namespaces.filter(lendsServices).map(({ metadata }) => metadata.name));
  const catalog = serviceCatalog({
    find: (key) => services.get(key),
    trusts: (namespace) => lenders.has(namespace),
    controllerNamespace: input.controllerNamespace,
    known: input,
  });
  const cluster = bindCluster(input.clusterRules, catalog, around);
  const labels = new Map(input.namespaces.map(({ metadata }) => [metadata.name, metadata.labels]));
  const lists = {
    pods: byNamespace(input.pods),
    endpointSlices: byNamespace(input.endpointSlices),
    externalServices: byNamespace(input.externalServices),
    namespaceRules: byNamespace(input.namespaceRules),
    serviceRules: byNamespace(input.serviceRules),
  };
  const names = new Set(Object.values(lists).flatMap((list) => [...list.keys()]));
  const namespaces = [...names].sort().map((name) =>
    bindNamespace(
      {
        name,
        pods: lists.pods.get(name) ?? [],
        endpointSlices: lists.endpointSlices.get(name) ?? [],
        externalServices: lists.externalServices.get(name) ?? [],
        namespaceRules: lists.namespaceRules.get(name) ?? [],
        serviceRules: lists.serviceRules.get(name) ?? [],
        clusterRules: cluster.bound.filter((bound) => selects(bound, name, labels.get(name))),
        audit: input.auditedNamespaces.has(name),
      },
      around,
    ),
  );
  return joinBindings(cluster, namespaces);
}

/** The rules of the cluster, which have no endpoints. */
export const bindCluster = (
  rules: readonly ClusterEgressRule[],
  catalog: ServiceCatalog,
  { forbids, now }: Surroundings,
  last?: AdmittedRules,
): AdmittedRules => admit({ context: 'cluster', rules, catalog, endpoints: new Map(), forbids, now }, last);

export const selects = (
  { rule }: BoundRule,
  namespace: string,
  labels: Readonly<Record<string, string>> | undefined,
): boolean => rule.kind === 'ClusterEgressRule' && selectsNamespace(rule, namespace, labels);

/** `namespaces` in order of name. */
export function joinBindings(cluster: AdmittedRules, namespaces: readonly NamespaceBinding[]): Binding {
  const result: Binding = {
    rules: {},
    services: {},
    groups: {},
    groupOf: new Map(),
    servicesOf: new Map(),
    conditions: [],
  };
  let next = Number.POSITIVE_INFINITY;
  const join = ({ rules, services, conditions, schedules }: AdmittedRules): void => {
    Object.assign(result.rules, rules);
    Object.assign(result.services, services);
    for (const condition of conditions) result.conditions.push(condition);
    for (const [, state] of schedules) next = Math.min(next, state?.nextChange ?? next);
  };
  join(cluster);
  for (const { own, groups, groupOf, servicesOf } of namespaces) {
    join(own.namespace);
    join(own.service);
    Object.assign(result.groups, groups);
    for (const [pod, group] of groupOf) result.groupOf.set(pod, group);
    for (const [pod, services] of servicesOf) result.servicesOf.set(pod, services);
  }
  return { ...result, ...(next < Number.POSITIVE_INFINITY && { nextChange: next }) };
}

/** Keeps the order. */
function byNamespace<O extends { metadata: { namespace?: string } }>(objects: readonly O[]): Map<string, O[]> {
  const namespaces = new Map<string, O[]>();
  for (const object of objects) {
    const namespace = object.metadata.namespace ?? '';
    const list = namespaces.get(namespace);
    if (list === undefined) namespaces.set(namespace, [object]);
    else list.push(object);
  }
  return namespaces;
}
