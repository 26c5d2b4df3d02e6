/** The services that rules of the cluster name, and which of them select which namespace, from what it was before. */
import type { Namespace } from '../../api/kinds.ts';
import { CONTROLLER_NAMESPACE } from '../../api/names.ts';
import type { BoundRule } from '../../policy/admit.ts';
import { selects } from '../../policy/bind.ts';
import { type KnownServices, lendsServices, type ServiceCatalog, serviceCatalog } from '../../policy/reference.ts';
import { sameList } from './memo.ts';
import { type Objects, serviceNamed } from './objects.ts';

type Rules = readonly BoundRule[];

export const clusterCatalog = (namespaces: Objects['namespaces'], known: KnownServices): ServiceCatalog =>
  serviceCatalog({
    find: (key) => serviceNamed(namespaces, key),
    trusts: (name) => isLender(namespaces, name),
    controllerNamespace: CONTROLLER_NAMESPACE,
    known,
  });

/** Whether rules of the cluster, and destinations of EgressIPs, may name its services as it is labelled now. */
export function isLender(namespaces: Objects['namespaces'], name: string): boolean {
  const object = namespaces.get(name)?.namespace;
  return object !== undefined && lendsServices(object);
}

export class ClusterRuleIndex {
  #bound: Rules = [];
  readonly #namespaces = new Map<string, { object: Namespace | undefined; rules: Rules }>();

  /**
   * `bound`: all, in walking order; one that did not change is the same object. `touched`: namespaces that are not what
   * they were. Returns those whose rules are not.
   */
  look(bound: Rules, objects: Objects['namespaces'], touched: ReadonlySet<string>): ReadonlySet<string> {
    const changed = new Set<string>();
    const place = new Map(bound.map((rule, at) => [rule, at]));
    const known = new Set(this.#bound);
    const come = bound.filter((rule) => !known.has(rule));
    const unchanged = come.length === 0 && this.#bound.length === bound.length;
    /** Most namespaces have the same rules, and then the same list. */
    const made = new Map<Rules, Map<string, Rules>>();
    const all: Rules = [];
    for (const name of unchanged ? touched : new Set([...objects.keys(), ...touched])) {
      if (!objects.has(name)) {
        this.#namespaces.delete(name);
        continue;
      }
      const object = objects.get(name)?.namespace;
      const last = this.#namespaces.get(name);
      const stays = last !== undefined && last.object === object;
      if (stays && unchanged) continue;
      const labels = object?.metadata.labels;
      const picked = (stays ? come : bound).filter((rule) => selects(rule, name, labels));
      const before = stays ? last.rules : all;
      const key = picked.map((rule) => place.get(rule)).join();
      const alike = made.get(before) ?? new Map<string, Rules>();
      made.set(before, alike);
      let rules = alike.get(key);
      if (rules === undefined) {
        const left = before.filter((rule) => place.has(rule));
        rules = sameList(
          before,
          [...left, ...picked].sort((a, b) => (place.get(a) ?? 0) - (place.get(b) ?? 0)),
        );
        alike.set(key, rules);
      }
      rules = sameList(last?.rules, rules);
      if (rules !== last?.rules) changed.add(name);
      this.#namespaces.set(name, { object, rules });
    }
    this.#bound = bound;
    return changed;
  }

  of(namespace: string): Rules {
    return this.#namespaces.get(namespace)?.rules ?? [];
  }
}
