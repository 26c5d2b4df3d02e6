/**
 * What `explain` says of lists that it does not know, or not as they are now (ExternalService `addressesFrom`): only
 * the controller fetches URLs, so that without its state an answer may differ from what is in force.
 */

import { CONTROLLER_NAMESPACE } from '../api/names.ts';
import type { PlanResult } from '../controller/plan/plan.ts';
import { ofKind, type Snapshot } from '../controller/plan/snapshot.ts';

/** Of ExternalServices that a rule of the cluster, or of the namespace, names. */
export function listNotes(snapshot: Snapshot, { statuses }: PlanResult, namespace: string): string[] {
  const named = new Set<string>();
  for (const { spec } of ofKind(snapshot, 'ClusterEgressRule')) {
    for (const name of spec.externalServices) named.add(name.includes('/') ? name : `${CONTROLLER_NAMESPACE}/${name}`);
  }
  for (const kind of ['NamespaceEgressRule', 'ServiceEgressRule'] as const) {
    for (const { metadata, spec } of ofKind(snapshot, kind)) {
      if (metadata.namespace === namespace) for (const name of spec.externalServices) named.add(`${namespace}/${name}`);
    }
  }
  return [...named].sort().flatMap((name) => {
    const key = `ExternalService/${name}`;
    const object = snapshot.get(key);
    if (object?.kind !== 'ExternalService' || object.spec.addressesFrom === undefined) return [];
    const accepted = statuses.get(key)?.conditions.find(({ type }) => type === 'Accepted');
    return accepted === undefined || accepted.reason === 'Accepted' ? [] : [`${name}: ${accepted.message}`];
  });
}
