/**
 * The name of a group (bind.ts): what of its pods matters to the selectors of their rules, not the rules themselves. So
 * a rule that comes or goes changes what the group's entry lists, and neither the group's name nor any pod, unless it
 * asks for a label that no rule asked for before. The same on every machine and in every order, across restarts too.
 */
import { digest } from '../api/digest.ts';
import type { LabelSelector, Pod } from '../api/kinds.ts';
import type { AnyRule } from './applies.ts';
import { sourcesNamed } from './applies.ts';
import type { ServiceEndpoints } from './endpoints.ts';
import { podKey } from './endpoints.ts';

/** What the rules of one namespace, and the cluster's that select it, ask of a pod. */
export interface Asked {
  /** Label keys of which the value is asked, sorted. */
  values: string[];
  /** Label keys of which only the presence is asked: a name of every single pod would else make a group of each. */
  presence: string[];
  account: boolean;
  /** Services that are sources, by which of their endpoints; sorted. */
  sources: { service: string; endpoints: 'All' | 'Ready' }[];
}

/** Of all rules, those out of their schedule too: its edges rename nothing. */
export function askedBy(rules: Iterable<AnyRule>): Asked {
  const values = new Set<string>();
  const presence = new Set<string>();
  const sources = new Map<string, Asked['sources'][number]>();
  let account = false;
  for (const rule of rules) {
    ask(rule.spec.podSelector);
    account ||= rule.spec.serviceAccounts !== undefined;
    if (rule.kind === 'ServiceEgressRule') {
      const { service, endpoints } = rule.spec;
      sources.set(`${service} ${endpoints}`, { service, endpoints });
    }
  }
  function ask(selector: LabelSelector | undefined): void {
    for (const key of Object.keys(selector?.matchLabels ?? {})) values.add(key);
    for (const { key, operator } of selector?.matchExpressions ?? []) {
      (operator === 'In' || operator === 'NotIn' ? values : presence).add(key);
    }
  }
  return {
    values: [...values].sort(),
    presence: [...presence].filter((key) => !values.has(key)).sort(),
    account,
    sources: [...sources].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, source]) => source),
  };
}

/** `namespace/hash`. Pods with one key are selected by the same of the rules, whatever these say otherwise. */
export function groupKey(asked: Asked, pod: Pod, endpoints: ReadonlyMap<string, ServiceEndpoints>): string {
  const { labels = {}, namespace = '' } = pod.metadata;
  const key = podKey(pod);
  // What a pod does not have is not listed, so that a new question changes only the names of those who answer it.
  const content = JSON.stringify([
    asked.values.flatMap((name) => (Object.hasOwn(labels, name) ? [[name, labels[name]]] : [])),
    asked.presence.filter((name) => Object.hasOwn(labels, name)),
    asked.account ? [pod.spec.serviceAccountName] : [],
    asked.sources.filter((source) => sourcesNamed(namespace, source, endpoints)?.has(key) === true),
  ]);
  return `${namespace}/${digest(content)}`;
}
