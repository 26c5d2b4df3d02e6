/**
 * Rules that no pod has now, judged for the pods that are to come: which others are certain to apply wherever one of
 * them does, and which may. Certain is what no label can undo: the other rule has no selector, or the very same one.
 */

import type { Context } from '../../api/plan.ts';
import type { AnyRule } from '../applies.ts';
import { selectsNamespace } from '../applies.ts';
import { compareRules } from '../order.ts';
import type { JudgedGroup } from './rules.ts';

export interface ScopedRule {
  id: string;
  context: Context;
  rule: AnyRule;
}

/** A group for each of `lonely`: the rule itself, what certainly applies with it, and softly what may. */
export function certainGroups(
  rules: readonly ScopedRule[],
  lonely: ReadonlySet<string>,
  namespaceLabels: ReadonlyMap<string, Record<string, string> | undefined>,
): JudgedGroup[] {
  const ordered = rules.toSorted((a, b) => compareRules(a.rule, b.rule));
  const byNamespace = new Map<string, ScopedRule[]>();
  for (const scoped of ordered) {
    const namespace = scoped.rule.metadata.namespace ?? '';
    const list = byNamespace.get(namespace);
    if (list === undefined) byNamespace.set(namespace, [scoped]);
    else list.push(scoped);
  }
  const cluster = ordered.filter(({ context }) => context === 'cluster');
  return rules.flatMap((scoped): JudgedGroup[] => {
    if (!lonely.has(scoped.id)) return [];
    const namespace = scoped.rule.metadata.namespace ?? '';
    const near = scoped.context === 'cluster' ? cluster : [...cluster, ...(byNamespace.get(namespace) ?? [])];
    const uncertain = near.filter((other) => other !== scoped && !certain(other.rule, scoped.rule, namespaceLabels));
    const ids = (context: Context): string[] => near.filter((other) => other.context === context).map(({ id }) => id);
    const group = { cluster: ids('cluster'), namespace: ids('namespace'), service: ids('service') };
    return [{ namespace, rules: group, soft: new Set(uncertain.map(({ id }) => id)), only: scoped.id }];
  });
}

/** Whether `other` applies to every pod to which `rule` does. `other` is a cluster rule, or of the same namespace. */
function certain(
  other: AnyRule,
  rule: AnyRule,
  namespaceLabels: ReadonlyMap<string, Record<string, string> | undefined>,
): boolean {
  const { podSelector, serviceAccounts } = other.spec;
  if (!isOpen(podSelector) && !same(podSelector, rule.spec.podSelector)) return false;
  if (serviceAccounts !== undefined && !same(serviceAccounts, rule.spec.serviceAccounts)) return false;
  if (other.kind === 'ClusterEgressRule') {
    const { namespaceSelector } = other.spec;
    if (isOpen(namespaceSelector)) return true;
    if (rule.kind === 'ClusterEgressRule') return same(namespaceSelector, rule.spec.namespaceSelector);
    const name = rule.metadata.namespace ?? '';
    return namespaceLabels.has(name) && selectsNamespace(other, name, namespaceLabels.get(name));
  }
  if (other.kind !== 'ServiceEgressRule') return true;
  return (
    rule.kind === 'ServiceEgressRule' &&
    other.spec.service === rule.spec.service &&
    (other.spec.endpoints !== 'Ready' || rule.spec.endpoints === 'Ready')
  );
}

/** Selects everything. */
function isOpen(selector: AnyRule['spec']['podSelector']): boolean {
  return (
    selector === undefined ||
    (Object.keys(selector.matchLabels ?? {}).length === 0 && (selector.matchExpressions ?? []).length === 0)
  );
}

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);
