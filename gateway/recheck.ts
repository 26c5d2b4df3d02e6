/**
 * Which established flows a new plan ends (design §4.8): those of a source that is no workload any more, those
 * translated to an address with which the workload does not leave for that destination now, those to where no workload
 * may go, those that the policy no longer permits, and those that it would now send elsewhere. The evaluator walks the
 * flow's original tuple again, with what was read of it; nothing else is disturbed. After it the last hook may trust a
 * decided flow's translation.
 * A flow of which nothing is known any more stays as long as some reading would permit it.
 */
import { parseAddress } from '../api/address.ts';
import { type Egress, families, type GatewayPlan, type WorkloadEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { must } from '../api/result.ts';
import { compileEgress } from '../policy/egress.ts';
import { compilePolicy, type Decision, type Flow, type Known, workloadsByAddress } from '../policy/evaluate.ts';
import { isRead } from '../policy/external-service.ts';
import type { ConntrackView, TupleView } from '../wire/conntrack.ts';
import type { Changed } from './compile.ts';
import { clusterRanges, hairpinAddresses } from './membership.ts';

/** Who sends from an address. */
export type WorkloadOf = (address: string) => WorkloadEntry | undefined;

/**
 * What was read of a flow, and the names of its destination. What was true when the flow was decided is to be true here
 * still: that a name has expired since ends no flow. undefined: nothing is known of it any more.
 */
export type KnownOf = (flow: ConntrackView) => Known | undefined;

/** What becomes of a flow: the decision by which it goes on, unless the plan says nothing new of it. */
export type Judgement = Decision | 'ended' | 'untouched';
type Judge = (flow: ConntrackView) => Judgement;
const dropped: Decision = { verdict: 'drop', reason: 'cluster-destination' };

export function endedBy(...about: Parameters<typeof judgedBy>): (flow: ConntrackView) => boolean {
  const judge = judgedBy(...about);
  return (flow) => judge(flow) === 'ended';
}

/**
 * `workloadOf`: of the plan's workloads; `changed`: flows that it does not touch are not asked about. For one walk through
 * the table: what is found out about a source or a destination is kept, so that a flow more costs a few look-ups. Of
 * flows that may have been read `knownOf` is asked, and each is walked by itself.
 */
export function judgedBy(
  plan: GatewayPlan,
  workloadOf: WorkloadOf = workloadsByAddress(plan),
  changed?: Changed,
  knownOf: KnownOf = () => undefined,
): Judge {
  const evaluator = compilePolicy({ ...plan, settings: lenient(plan.settings) }, workloadOf);
  const readGroups = new Map<string, boolean>();
  const egress = compileEgress(plan);
  let refused: ReturnType<typeof refusedBy> | undefined;
  const touched = changed === undefined ? () => true : touchedBy(changed);
  const sources = new Map<string, Judge>();
  /** A group's workloads have one policy, and many flows go to few places: by what is asked for, then by destination. */
  const decisions = new Map<string, Map<number, Map<string, Decision>>>();

  /** Whether it is with an address of the workload's that a flow to a destination leaves. */
  function leavesWith(workload: WorkloadEntry): (address: string, destination: string) => boolean {
    if (workload.destinations !== undefined) {
      const towards = new Map<string, string[]>();
      const ask = (destination: string): string[] =>
        addressesOf(egress.towards(workload, must(parseAddress(destination))).addresses);
      return (address, destination) => known(towards, destination, ask).includes(address);
    }
    if (workload.egressIP !== undefined) {
      const any = addressesOf(families.flatMap((family) => egress.everything(workload, family)));
      return (address) => any.includes(address);
    }
    // Nearly all.
    const own = [workload.egress[4]?.address, workload.egress[6]?.address];
    return (address) => address === own[0] || address === own[1];
  }

  function decide({ protocol, original }: ConntrackView, told?: Known): Decision {
    // Of many changes no flow comes to this.
    refused ??= refusedBy(plan);
    return refused(original.destination) ? dropped : evaluator.decide(flowOf(protocol, original), told);
  }

  function judgeOf(source: string): Judge {
    const workload = workloadOf(source);
    if (workload === undefined) return () => 'ended';
    if (!touched(workload)) {
      return ({ original }) => (changed?.refused.has(original.destination) === true ? 'ended' : 'untouched');
    }
    const leaves = leavesWith(workload);
    const kinds = known(decisions, workload.group, () => new Map<number, Map<string, Decision>>());
    const mayBeRead = known(readGroups, workload.group, (group) => reads(plan, group));
    return (flow) => {
      const { protocol, original, reply } = flow;
      const { destination, destinationPort } = original;
      if (!leaves(reply.destination, destination)) return 'ended';
      const decided = known(kinds, kindOf(protocol, original), () => new Map<string, Decision>());
      const told = mayBeRead ? knownOf(flow) : undefined;
      const decision = told === undefined ? known(decided, destination, () => decide(flow)) : decide(flow, told);
      const { verdict, redirect } = decision;
      if (verdict !== 'accept') return 'ended';
      // Who answers is where the flow went.
      const port = redirect === undefined ? destinationPort : redirect.port;
      const elsewhere =
        reply.source !== (redirect?.address ?? destination) || (port !== undefined && reply.sourcePort !== port);
      return elsewhere ? 'ended' : decision;
    };
  }

  return (flow) => known(sources, flow.original.source, judgeOf)(flow);
}

/** Who is known by no name at its first packet is refused there, and nowhere later. */
function lenient(settings: GatewayPlan['settings']): GatewayPlan['settings'] {
  if (!('pool' in settings) || settings.pool.dns?.strict === undefined) return settings;
  const { strict: _, ...dns } = settings.pool.dns;
  return { pool: { ...settings.pool, dns } };
}

/** Whether any rule of a group names what addresses and ports do not show. */
function reads({ groups, rules, services }: GatewayPlan, group: string): boolean {
  const isRule = (id: string): boolean => {
    const named = rules[id]?.services ?? [];
    return named !== '*' && named.some((name) => services[name] !== undefined && isRead(services[name]));
  };
  return Object.values(groups[group]?.rules ?? {}).some((ids) => ids.some(isRule));
}

/**
 * Destinations that no policy is asked about. Where a rule sends a flow instead is not among them: that is the policy's
 * (policy/redirect.ts).
 */
function refusedBy({ settings, shards, gateways }: GatewayPlan): (destination: string) => boolean {
  if (!('pool' in settings)) return () => false;
  const hairpin = hairpinAddresses({ shards, gateways });
  const cluster = clusterRanges(settings.pool);
  return (destination) => hairpin.has(destination) || cluster.has(must(parseAddress(destination)));
}

const addressesOf = (egress: readonly Egress[]): string[] => egress.map(({ address }) => address);

function known<Key, Value>(map: Map<Key, Value>, key: Key, make: (key: Key) => Value): Value {
  let found = map.get(key);
  if (found === undefined) {
    found = make(key);
    map.set(key, found);
  }
  return found;
}

/** Beside 65,536 ports. */
const NO_PORT = 0x10000;

/** One number of what a policy asks for beside addresses. */
function kindOf(protocol: number, { destinationPort, icmpType, icmpCode }: TupleView): number {
  const type = icmpType === undefined || icmpCode === undefined ? NO_PORT : (icmpType << 8) | icmpCode;
  return (protocol << 17) | (destinationPort ?? type);
}

/** As its first packet showed it. */
function flowOf(protocol: number, { source, destination, destinationPort, icmpType, icmpCode }: TupleView): Flow {
  return {
    source,
    destination,
    protocol,
    ...(destinationPort !== undefined && { destinationPort }),
    ...(icmpType !== undefined && { icmpType }),
    ...(icmpCode !== undefined && { icmpCode }),
  };
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
 * The addresses of workloads that went, if nothing else of the change could end a flow, and nobody has such an address now;
 * undefined: something else could.
 */
export function departures({ groups, workloads, refused }: Changed): string[] | undefined {
  if (groups === undefined || workloads === undefined || groups.size > 0 || refused.size > 0) return undefined;
  if (workloads.some(([before, after]) => before !== undefined && after !== undefined)) return undefined;
  const gone = workloads.flatMap(([before]) => before?.addresses ?? []);
  const come = new Set(workloads.flatMap(([, after]) => after?.addresses ?? []));
  return gone.some((address) => come.has(address)) ? undefined : gone;
}

/**
 * Whether a flow could end by the change: a policy that says something else, a workload that is gone or is another, or
 * a destination that nobody may reach now. Workloads that are merely new have no flows yet: until now their packets
 * were dropped.
 */
export function touchesFlows({ groups, workloads, refused }: Changed): boolean {
  if (groups === undefined || workloads === undefined) return true;
  return groups.size > 0 || refused.size > 0 || workloads.some(([before]) => before !== undefined);
}
