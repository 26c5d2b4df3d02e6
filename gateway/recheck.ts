/**
 * Which established flows a new plan ends (design §4.8): those of a source that is no workload any more, those
 * translated to an address with which the workload does not leave for that destination now, those that the policy no
 * longer permits, and those that it would now send elsewhere. The evaluator walks the flow's original tuple again; nothing else is disturbed. After it
 * the last hook may trust a decided flow's translation.
 */
import { parseAddress } from '../api/address.ts';
import type { GatewayPlan, WorkloadEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { must } from '../api/result.ts';
import { compileEgress } from '../policy/egress.ts';
import { compilePolicy, type Decision, workloadsByAddress } from '../policy/evaluate.ts';
import type { ConntrackEntry, Tuple } from '../wire/conntrack.ts';
import type { Changed } from './compile.ts';

/** Who sends from an address. */
export type WorkloadOf = (address: string) => WorkloadEntry | undefined;

/** `workloadOf`: of the plan's workloads; `changed`: flows that it does not touch are not asked about. */
export function endedBy(
  plan: GatewayPlan,
  workloadOf: WorkloadOf = workloadsByAddress(plan),
  changed?: Changed,
): (flow: ConntrackEntry) => boolean {
  const evaluator = compilePolicy(plan, workloadOf);
  /** A group's workloads have one policy, and many flows go to few places. As many as the table has flows, and as long. */
  const decisions = new Map<string, Pick<Decision, 'verdict' | 'redirect'>>();
  const egress = compileEgress(plan);
  /** Nearly all have one address, wherever they send. */
  const leavesWith = (workload: WorkloadEntry, destination: string, source: string): boolean =>
    workload.egressIP === undefined && workload.destinations === undefined
      ? workload.egress[4]?.address === source || workload.egress[6]?.address === source
      : egress.towards(workload, must(parseAddress(destination))).addresses.some(({ address }) => address === source);
  const touched = changed === undefined ? () => true : touchedBy(changed);
  return ({ original, reply, protocol }) => {
    const workload = workloadOf(original.source);
    if (workload === undefined) return true;
    if (!touched(workload)) return false;
    if (!leavesWith(workload, original.destination, reply.destination)) return true;
    const { destination, destinationPort, icmpType, icmpCode } = original;
    const key = `${workload.group} ${destination} ${protocol} ${destinationPort ?? `${icmpType}/${icmpCode}`}`;
    let decision = decisions.get(key);
    if (decision === undefined) {
      decision = evaluator.decide({ ...original, protocol });
      decisions.set(key, decision);
    }
    const { verdict, redirect } = decision;
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

function touchedBy({ groups, workloads }: Changed): (workload: WorkloadEntry) => boolean {
  if (groups === undefined || workloads === undefined) return () => true;
  const others = new Set(workloads.map(([, after]) => after?.uid));
  return ({ uid, group }) => groups.has(group) || others.has(uid);
}

/**
 * Whether a packet of a flow that is there may carry a source that is not its workload's own any more: somebody leaves with
 * another address, or has one that was another's. Of a workload that only went nothing comes through the tunnel; where
 * there is none, it may.
 */
export function retranslates({ groups, workloads }: Changed, workloadOf: WorkloadOf, tunnelled: boolean): boolean {
  if (groups === undefined || workloads === undefined) return true;
  return workloads.some(([before, after]) => {
    if (before === undefined) return false;
    if (after === undefined) return !tunnelled || before.addresses.some((address) => workloadOf(address) !== undefined);
    return before === after || !sameWay(before, after) || !sameJson(before.addresses, after.addresses);
  });
}

function sameWay(a: WorkloadEntry, b: WorkloadEntry): boolean {
  const of = ({ egress, egressIP, destinations, elsewhere }: WorkloadEntry) => [
    egress,
    egressIP,
    destinations,
    elsewhere,
  ];
  return sameJson(of(a), of(b));
}

/**
 * Whether a flow could end by the change: a policy that says something else, or a workload that is gone or is another.
 * Workloads that are merely new have no flows yet: until now their packets were dropped.
 */
export function touchesFlows({ groups, workloads }: Changed): boolean {
  if (groups === undefined || workloads === undefined) return true;
  return groups.size > 0 || workloads.some(([before]) => before !== undefined);
}
