/**
 * The policy of one namespace: its own rules, those of the cluster that select it, its pods in groups. Nothing here
 * depends on another namespace, so that a change in one costs as much as that one is large: with what was made last
 * at hand, only those steps are made again that something changed for, and what comes out equal is the same object.
 * Pure: the result does not depend on what was made before.
 */

import type { EndpointSlice, ExternalService, NamespaceEgressRule, Pod, ServiceEgressRule } from '../api/kinds.ts';
import type { Context, GroupEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { type AdmittedRules, admit, type BoundRule, stable, stillHold } from './admit.ts';
import { excludes } from './applies.ts';
import { endpointsOf, isSource, podKey, type ServiceEndpoints, sameEndpoints } from './endpoints.ts';
import { type Asked, askedBy, groupKey } from './group-key.ts';
import { type KnownServices, serviceCatalog } from './reference.ts';

/** Of one namespace, in any order. Lists are values: one with other objects is another list. */
export interface NamespaceInput {
  name: string;
  pods: readonly Pod[];
  endpointSlices: readonly EndpointSlice[];
  externalServices: readonly ExternalService[];
  namespaceRules: readonly NamespaceEgressRule[];
  serviceRules: readonly ServiceEgressRule[];
  /** Those that select the namespace, in walking order. */
  clusterRules: readonly BoundRule[];
  /** Its whole policy is in audit. */
  audit: boolean;
}

/** What is the same for all namespaces. */
export interface Surroundings {
  known: KnownServices;
  /** Why no redirect of a context's rules may lead there; absent: none is forbidden. */
  forbids?: ((address: string, context: Context) => string | undefined) | undefined;
  /** For schedules; milliseconds since the epoch. */
  now: number;
}

export interface NamespaceBinding {
  input: NamespaceInput;
  endpoints: Map<string, ServiceEndpoints>;
  own: Record<'namespace' | 'service', AdmittedRules>;
  asked: Asked;
  /** Pod key → key into `groups`; pods that can never be a source are absent. */
  groupOf: ReadonlyMap<string, string>;
  groups: Readonly<Record<string, GroupEntry>>;
  /** Pod key → names of the Services that list it, ready or not. */
  servicesOf: ReadonlyMap<string, string[]>;
}

export function bindNamespace(input: NamespaceInput, around: Surroundings, last?: NamespaceBinding): NamespaceBinding {
  const same = (...parts: (keyof NamespaceInput)[]): boolean =>
    last !== undefined && parts.every((part) => last.input[part] === input[part]);

  const endpoints = made(same('pods', 'endpointSlices'), last?.endpoints, sameEndpoints, () =>
    endpointsOf(input.pods, input.endpointSlices),
  );
  const sameRules = same('namespaceRules', 'serviceRules', 'externalServices') && endpoints === last?.endpoints;
  const own =
    sameRules && last !== undefined && bindingHolds(last, around)
      ? last.own
      : ownRules(input, endpoints, around, last?.own);
  const asked = made(same('namespaceRules', 'serviceRules') && same('clusterRules'), last?.asked, sameJson, () =>
    askedBy([...input.namespaceRules, ...input.serviceRules, ...input.clusterRules.map(({ rule }) => rule)]),
  );
  const groupOf = made(
    same('pods') && asked === last?.asked && endpoints === last?.endpoints,
    last?.groupOf,
    sameMap,
    () => groupsOfPods(input.pods, asked, endpoints),
  );
  const groups =
    last !== undefined &&
    same('pods', 'clusterRules', 'audit') &&
    own === last.own &&
    groupOf === last.groupOf &&
    endpoints === last.endpoints
      ? last.groups
      : stable(last?.groups, groupEntries(input, endpoints, own, groupOf, last?.groups));
  const servicesOf = made(endpoints === last?.endpoints, last?.servicesOf, sameMap, () =>
    servicesByPod(endpoints, last?.servicesOf),
  );
  return { input, endpoints, own, asked, groupOf, groups, servicesOf };
}

/** Whether the same input would give the same now. */
export const bindingHolds = ({ own }: NamespaceBinding, around: Surroundings): boolean =>
  stillHold(own.namespace, 'namespace', around) && stillHold(own.service, 'service', around);

/** The last one if nothing that it is made of changed, or if it comes out equal. */
function made<T>(unchanged: boolean, last: T | undefined, equal: (a: T, b: T) => boolean, make: () => T): T {
  if (unchanged && last !== undefined) return last;
  const now = make();
  return last !== undefined && equal(last, now) ? last : now;
}

const sameMap = <V>(a: ReadonlyMap<string, V>, b: ReadonlyMap<string, V>): boolean =>
  a.size === b.size && [...a].every(([key, value]) => b.get(key) === value);

function ownRules(
  { name, namespaceRules, serviceRules, externalServices }: NamespaceInput,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
  { known, forbids, now }: Surroundings,
  last: NamespaceBinding['own'] | undefined,
): NamespaceBinding['own'] {
  const objects = new Map(externalServices.map((object) => [`${name}/${object.metadata.name}`, object]));
  // Whom a namespace trusts does not matter to rules that cannot name another's services.
  const catalog = () =>
    serviceCatalog({ find: (key) => objects.get(key), trusts: () => false, controllerNamespace: '', known });
  const input = { endpoints, forbids, now };
  return {
    namespace: admit({ ...input, context: 'namespace', rules: namespaceRules, catalog: catalog() }, last?.namespace),
    service: admit({ ...input, context: 'service', rules: serviceRules, catalog: catalog() }, last?.service),
  };
}

function groupsOfPods(
  pods: readonly Pod[],
  asked: Asked,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
): Map<string, string> {
  return new Map(pods.filter(isSource).map((pod) => [podKey(pod), groupKey(asked, pod, endpoints)]));
}

function groupEntries(
  { name, pods, clusterRules, audit }: NamespaceInput,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
  own: NamespaceBinding['own'],
  groupOf: ReadonlyMap<string, string>,
  last: NamespaceBinding['groups'] = {},
): Record<string, GroupEntry> {
  const groups: Record<string, GroupEntry> = {};
  for (const pod of pods) {
    const key = groupOf.get(podKey(pod));
    if (key === undefined || groups[key] !== undefined) continue;
    // What selects one of its pods selects them all: that is what the key is made of.
    const ids = (rules: readonly BoundRule[]): string[] =>
      rules.flatMap(({ id, rule, inForce }) => (inForce && excludes(rule, pod, endpoints) === undefined ? [id] : []));
    groups[key] = stable(last[key], {
      namespace: name,
      ...(audit && { audit }),
      rules: { cluster: ids(clusterRules), namespace: ids(own.namespace.bound), service: ids(own.service.bound) },
    });
  }
  return groups;
}

function servicesByPod(
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
  last: ReadonlyMap<string, string[]> | undefined,
): Map<string, string[]> {
  const services = new Map<string, string[]>();
  for (const [key, { all }] of [...endpoints].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const name = key.slice(key.indexOf('/') + 1);
    for (const pod of all) {
      const list = services.get(pod);
      if (list === undefined) services.set(pod, [name]);
      else list.push(name);
    }
  }
  return new Map([...services].map(([pod, names]) => [pod, stable(last?.get(pod), names)]));
}
