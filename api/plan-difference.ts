/**
 * What is known of published plans, which nobody changes any more: their hashes, and the difference between two of
 * them, found once whoever asks (Versions, and the plan stream for every gateway of a pool). Held as long as the plans.
 */
import { diffPlan, isEmptyDelta, type PlanDelta } from './plan-delta.ts';
import { hashAfter, hashPlan } from './plan-hash.ts';

export interface Difference {
  delta: PlanDelta;
  empty: boolean;
}

const hashes = new WeakMap<object, string>();
/** By the older plan: what leads to the newer. The newest pair of each. */
const differences = new WeakMap<object, { to: WeakRef<object>; difference: Difference }>();

/** A first look at 200,000 entries takes a second or two; of a plan that a known difference led to, nothing. */
export function hashOf(plan: object): string {
  const hash = hashes.get(plan) ?? hashPlan(plan);
  hashes.set(plan, hash);
  return hash;
}

export function differenceOf<P extends object>(from: P, to: P): Difference {
  const known = differences.get(from);
  if (known?.to.deref() === to) return known.difference;
  return knowDifference(from, to, diffPlan(from, to));
}

/** Of who made one plan from the other and kept count: to find it again is to look at every entry of both. */
export function knowDifference(from: object, to: object, delta: PlanDelta): Difference {
  const difference = { delta, empty: isEmptyDelta(delta) };
  differences.set(from, { to: new WeakRef(to), difference });
  const hash = hashes.get(from);
  if (hash !== undefined && !hashes.has(to)) hashes.set(to, hashAfter(hash, from, delta));
  return difference;
}
