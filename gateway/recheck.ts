/**
 * Which established flows a new plan ends (design §4.8): those of a source that is no workload any more, those
 * translated to an address that is not the workload's own now, those that the policy no longer permits, and those that
 * it would now send elsewhere. The evaluator walks the flow's original tuple again; nothing else is disturbed. After it
 * the last hook may trust a decided flow's translation.
 */
import { isDeepStrictEqual } from 'node:util';
import type { GatewayPlan, RuleEntry, WorkloadEntry } from '../api/plan.ts';
import { compilePolicy } from '../policy/evaluate.ts';
import type { ConntrackEntry, Tuple } from '../wire/conntrack.ts';

export function endedBy(plan: GatewayPlan): (flow: ConntrackEntry) => boolean {
  const evaluator = compilePolicy(plan);
  const workloads = workloadsByAddress(plan);
  return ({ family, original, reply, protocol }) => {
    const workload = workloads.get(original.source);
    if (workload === undefined) return true;
    if (workload.egress[family]?.address !== reply.destination) return true;
    const { verdict, redirect } = evaluator.decide({ ...original, protocol });
    return verdict !== 'accept' || !goesTo(redirect ?? destinationOf(original), reply);
  };
}

/** Who answers is where the flow went. */
function goesTo({ address, port }: { address: string; port?: number }, { source, sourcePort }: Tuple): boolean {
  return source === address && (port === undefined || sourcePort === port);
}

function destinationOf({ destination, destinationPort }: Tuple): { address: string; port?: number } {
  return { address: destination, ...(destinationPort !== undefined && { port: destinationPort }) };
}

export function workloadsByAddress(plan: Pick<GatewayPlan, 'workloads'>): Map<string, WorkloadEntry> {
  const found = new Map<string, WorkloadEntry>();
  for (const workload of Object.values(plan.workloads)) {
    for (const address of workload.addresses) found.set(address, workload);
  }
  return found;
}

/**
 * Whether a flow could end by the change: a policy that says something else, or a workload that is gone or is another.
 * Workloads that are merely new have no flows yet: until now their packets were dropped. Limits and logging end none.
 */
export function touchesFlows(before: GatewayPlan, after: GatewayPlan): boolean {
  const changed = <T>(was: Record<string, T>, is: Record<string, T>): boolean =>
    Object.entries(was).some(([key, value]) => !isDeepStrictEqual(value, is[key]));
  return (
    (['settings', 'workloads', 'groups', 'services'] as const).some((part) =>
      changed<unknown>(before[part], after[part]),
    ) ||
    changedRules(before.rules, after.rules) ||
    Object.keys(before.services).length !== Object.keys(after.services).length
  );
}

function changedRules(was: GatewayPlan['rules'], is: GatewayPlan['rules']): boolean {
  const unlimited = ({ limits: _, logging: __, ...rule }: RuleEntry): object => rule;
  return Object.entries(was).some(([id, rule]) => {
    const other = is[id];
    if (other === undefined) return true;
    return !isDeepStrictEqual(rule, other) && !isDeepStrictEqual(unlimited(rule), unlimited(other));
  });
}
