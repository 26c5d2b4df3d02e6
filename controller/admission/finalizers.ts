/**
 * Which ExternalServices must stay until a rule is gone (design §3): those that a drop or reject rule names, since a veto
 * that lost its list would forbid nothing. In audit too: what is counted must not change unseen. A rule of the cluster
 * holds what it may name, so a namespace that does not lend its services keeps the say over them. Pure; who writes
 * them to the API server reads `finalizersOf` after every change, and writes what `withFinalizers` returns.
 */
import { objectKey } from '../../api/kinds.ts';
import { CONTROLLER_NAMESPACE, FINALIZER_FORBIDDING_RULE } from '../../api/names.ts';
import { isVeto, namedService } from '../../policy/reference.ts';
import { isLender } from '../plan/cluster-rules.ts';
import { type Objects, serviceNamed } from '../plan/objects.ts';

/** Key of an ExternalService that exists → keys of the rules that hold it. */
export function heldServices(objects: Objects): Map<string, string[]> {
  const held = new Map<string, string[]>();
  const rules = [...objects.namespaces.values()].flatMap(({ namespaceRules, serviceRules }) => [
    ...namespaceRules,
    ...serviceRules,
  ]);
  for (const rule of [...objects.ClusterEgressRule, ...rules]) {
    if (!isVeto(rule.spec.action)) continue;
    for (const name of rule.spec.externalServices) {
      const key = namedService(name, rule.metadata.namespace, CONTROLLER_NAMESPACE);
      const lender = key.slice(0, key.indexOf('/'));
      const lends =
        rule.kind !== 'ClusterEgressRule' || lender === CONTROLLER_NAMESPACE || isLender(objects.namespaces, lender);
      const service = name === '*' || !lends ? undefined : serviceNamed(objects.namespaces, key);
      if (service === undefined) continue;
      const holders = held.get(objectKey(service)) ?? [];
      held.set(objectKey(service), holders);
      holders.push(objectKey(rule));
    }
  }
  return held;
}

/** Key of an object → finalizers of ours that it must have. All others must have none of ours. */
export const finalizersOf = (objects: Objects): Map<string, readonly string[]> =>
  new Map([...heldServices(objects).keys()].map((key) => [key, ours] as const));

const ours: readonly string[] = [FINALIZER_FORBIDDING_RULE];

/**
 * What `metadata.finalizers` of an object must become; undefined: it is right. Others' stay where they are. To one that
 * is being deleted none can be added.
 */
export function withFinalizers(
  now: readonly string[],
  wanted: readonly string[],
  isBeingDeleted: boolean,
): string[] | undefined {
  const kept = now.filter((name) => !ours.includes(name) || wanted.includes(name));
  const missing = isBeingDeleted ? [] : wanted.filter((name) => !now.includes(name));
  return kept.length === now.length && missing.length === 0 ? undefined : [...kept, ...missing];
}
