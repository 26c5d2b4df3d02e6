/**
 * Which pods a rule speaks of (design §3): one reading, so that what binds a rule to a pod (bind.ts) and what tells why
 * a rule is not the pod's (explain) cannot differ. Left out: whether the rule is accepted at all (reference.ts).
 */

import type { ClusterEgressRule, NamespaceEgressRule, Pod, ServiceEgressRule } from '../api/kinds.ts';
import { LABEL_NAMESPACE_NAME } from '../api/names.ts';
import type { ServiceEndpoints } from './endpoints.ts';
import { podKey } from './endpoints.ts';
import { matches } from './selector.ts';

export type AnyRule = ClusterEgressRule | NamespaceEgressRule | ServiceEgressRule;

/** The field of a rule that leaves a pod out. */
export type Exclusion = 'namespaceSelector' | 'podSelector' | 'serviceAccounts' | 'service';

/** Whether a cluster rule speaks of a namespace. */
export function selectsNamespace(
  rule: ClusterEgressRule,
  name: string,
  labels: Record<string, string> | undefined,
): boolean {
  // The API server puts the name there and lets nobody change it; a manifest on disk may lack or forge it.
  return matches(rule.spec.namespaceSelector, { ...labels, [LABEL_NAMESPACE_NAME]: name });
}

/** Of a pod in the rule's namespace, or in one that a cluster rule selects; undefined: the rule is the pod's. */
export function excludes(
  rule: AnyRule,
  pod: Pod,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
): Exclusion | undefined {
  if (!matches(rule.spec.podSelector, pod.metadata.labels)) return 'podSelector';
  const { serviceAccounts } = rule.spec;
  if (serviceAccounts !== undefined && !names(serviceAccounts, pod)) return 'serviceAccounts';
  if (rule.kind === 'ServiceEgressRule' && sourcesOf(rule, endpoints)?.has(podKey(pod)) !== true) return 'service';
  return undefined;
}

/** `namespace/name` (cluster rules only) is that account; a plain name one of the pod's own namespace. */
function names(accounts: readonly string[], { metadata, spec }: Pod): boolean {
  const name = spec.serviceAccountName;
  return accounts.includes(name) || accounts.includes(`${metadata.namespace ?? ''}/${name}`);
}

/** The pods that a service rule speaks of; undefined: its Service lists none. */
export function sourcesOf(
  rule: ServiceEgressRule,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
): Set<string> | undefined {
  return sourcesNamed(rule.metadata.namespace ?? '', rule.spec, endpoints);
}

export function sourcesNamed(
  namespace: string,
  { service: name, endpoints: which }: Pick<ServiceEgressRule['spec'], 'service' | 'endpoints'>,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
): Set<string> | undefined {
  const service = endpoints.get(`${namespace}/${name}`);
  return which === 'Ready' ? service?.ready : service?.all;
}

/** In words, for a person who asks why. */
export function describeExclusion(rule: AnyRule, pod: Pod, exclusion: Exclusion): string {
  switch (exclusion) {
    case 'namespaceSelector':
      return `its namespaceSelector does not select namespace ${pod.metadata.namespace}`;
    case 'podSelector':
      return "its podSelector does not match the pod's labels";
    case 'serviceAccounts':
      return `the pod's service account ${pod.spec.serviceAccountName} is none of its ${listed(rule.spec.serviceAccounts ?? [])}`;
    case 'service':
      return rule.kind === 'ServiceEgressRule'
        ? `service ${rule.spec.service} does not list the pod as ${rule.spec.endpoints === 'Ready' ? 'a ready' : 'an'} endpoint`
        : 'it has no service';
  }
}

function listed(accounts: readonly string[]): string {
  return accounts.length > 5
    ? `${accounts.slice(0, 5).join(', ')} and ${accounts.length - 5} more`
    : accounts.join(', ');
}
