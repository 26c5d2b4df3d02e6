/** What of a gateway's plan has changed, as its compilers take it: by collections, keys that are set and keys that are gone. */
import type { GroupEntry, RuleEntry, ServiceEntry } from '../api/plan.ts';
import type { PlanDelta } from '../api/plan-delta.ts';

/** Keys to set and keys to delete, of one collection of a plan. */
export interface Changes<T> {
  set: [key: string, entry: T][];
  delete: string[];
}

export interface PolicyChanges {
  rules: Changes<RuleEntry>;
  services: Changes<ServiceEntry>;
  groups: Changes<GroupEntry>;
}

export const isTouched = (delta: PlanDelta, part: string): boolean =>
  delta.set[part] !== undefined || delta.delete[part] !== undefined;

export function changesOf<T>(delta: PlanDelta, part: string): Changes<T> {
  return { set: Object.entries(delta.set[part] ?? {}) as [string, T][], delete: delta.delete[part] ?? [] };
}

export const policyChanges = (delta: PlanDelta): PolicyChanges => ({
  rules: changesOf(delta, 'rules'),
  services: changesOf(delta, 'services'),
  groups: changesOf(delta, 'groups'),
});
