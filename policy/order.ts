/**
 * The order in which rules of one context are walked (design §4.2): priority (lower first), then the oldest
 * creationTimestamp, then `namespace/name`. A rule without a timestamp counts as the newest, so that writing a
 * manifest without one never overtakes a rule that is in force.
 */

import type { ObjectMeta } from '../api/kinds.ts';

export interface Ordered {
  metadata: ObjectMeta;
  spec: { priority: number };
}

export function compareRules(a: Ordered, b: Ordered): number {
  return (
    a.spec.priority - b.spec.priority || compareAge(a.metadata, b.metadata) || compareNames(a.metadata, b.metadata)
  );
}

/** Oldest first. */
export function compareAge(a: ObjectMeta, b: ObjectMeta): number {
  const [first, second] = [createdAt(a), createdAt(b)];
  // Not a subtraction: two absent timestamps would give NaN.
  return first === second ? 0 : first < second ? -1 : 1;
}

/** By code unit, since every machine must find the same order whatever its locale. */
export function compareNames(a: ObjectMeta, b: ObjectMeta): number {
  const [first, second] = [qualifiedName(a), qualifiedName(b)];
  return first === second ? 0 : first < second ? -1 : 1;
}

export function qualifiedName(meta: ObjectMeta): string {
  return meta.namespace === undefined ? meta.name : `${meta.namespace}/${meta.name}`;
}

function createdAt(meta: ObjectMeta): number {
  const at = Date.parse(meta.creationTimestamp ?? '');
  return Number.isNaN(at) ? Number.POSITIVE_INFINITY : at;
}
