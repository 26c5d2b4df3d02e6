/**
 * What a pool's data path does with a workload's flow, in the order in which a packet meets node, gateway and policy:
 * not steered at all, refused whatever the rules say, or judged by them. `explain` and `simulate` read it here.
 * Left out: what depends on the packet or the path (spoofed sources, strays), and limits.
 */

import type { Address } from '../api/address.ts';
import { formatAddress, formatRange, parseRange } from '../api/address.ts';
import { neverSteered } from '../api/never-steered.ts';
import type { GatewayPlan, ServiceEntry, WorkloadEntry } from '../api/plan.ts';
import { families } from '../api/plan.ts';
import { isIcmp } from '../api/ports.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { must } from '../api/result.ts';
import type { Decision, Flow, Known } from './decision.ts';
import type { Destination } from './destination.ts';
import type { EgressChoice, EgressMap } from './egress.ts';
import { compileEgress } from './egress.ts';
import type { Evaluator } from './evaluate.ts';
import { compilePolicy } from './evaluate.ts';
import { egressLimitsText } from './limits.ts';

/** Settled before any rule is asked. */
export type Settled =
  | { verdict: 'bypass'; reason: 'clusterCIDRs' | 'excludedCIDRs' | 'never-steered' | 'unassigned' }
  | { verdict: 'drop'; reason: 'tunnel-port' | 'no-egress-ip' | 'unassigned' }
  | { verdict: 'reject'; reason: 'hairpin' };

export interface Carriage {
  plan: GatewayPlan;
  evaluator: Evaluator;
  /** undefined: the rules decide. */
  settled(workload: WorkloadEntry, destination: Destination): Settled | undefined;
  egress: EgressMap;
  /** In words: what EgressIPs bound of the workload's flows that leave so. */
  egressLimits(workload: WorkloadEntry, choice: EgressChoice): string;
  /**
   * undefined: the workload has no address of the destination's family. `egress`: the flow leaves with one of these.
   * With `known` what becomes of a flow in the end: it counts only as far as the flow would be read.
   */
  decide(
    workload: WorkloadEntry,
    destination: Destination,
    known?: Known,
  ): Settled | (Decision & { egress?: EgressChoice }) | undefined;
  /** What `settled` tells apart, in the form of destinations; for any workload, and beyond that for this one. */
  boundaries: ServiceEntry[];
  boundariesOf(workload: WorkloadEntry): ServiceEntry[];
}

export function compileCarriage(plan: GatewayPlan): Carriage {
  if (!('pool' in plan.settings)) throw new TypeError('carriage: the plan has no settings');
  const settings = plan.settings.pool;
  const evaluator = compilePolicy(plan);
  const egress = compileEgress(plan);
  const guarded = [
    ...Object.values(plan.shards).flatMap(({ nextHops }) => families.flatMap((family) => nextHops[family] ?? [])),
    ...Object.values(plan.gateways).flatMap(({ internalAddress, addresses }) => [internalAddress, ...addresses]),
  ];
  const egressIPs = Object.values(plan.shards).flatMap((shard) => shard.egressIPs);
  const sets = {
    guarded: setOf(guarded),
    cluster: setOf(settings.clusterCIDRs),
    excluded: setOf(settings.excludedCIDRs),
    never: setOf(neverSteered),
    egress: setOf(egressIPs),
  };
  const tunnel = settings.steering.mode === 'VXLAN' ? settings.steering.port : undefined;

  function settled(workload: WorkloadEntry, destination: Destination): Settled | undefined {
    const { address, protocol, port } = destination;
    const tunnelled = tunnel !== undefined && protocol === UDP && port === tunnel;
    if (tunnelled || sets.guarded.has(address)) return { verdict: 'drop', reason: 'tunnel-port' };
    if (sets.cluster.has(address)) return { verdict: 'bypass', reason: 'clusterCIDRs' };
    if (sets.excluded.has(address)) return { verdict: 'bypass', reason: 'excludedCIDRs' };
    if (sets.never.has(address)) return { verdict: 'bypass', reason: 'never-steered' };
    const choice = egress.towards(workload, address);
    if (choice.addresses.length === 0) {
      if (choice.assigned) return { verdict: 'drop', reason: 'no-egress-ip' };
      return { verdict: settings.unassigned === 'Drop' ? 'drop' : 'bypass', reason: 'unassigned' };
    }
    return sets.egress.has(address) ? { verdict: 'reject', reason: 'hairpin' } : undefined;
  }

  const served = new Map<string, ServiceEntry[]>();
  function boundariesOf(workload: WorkloadEntry): ServiceEntry[] {
    const key = workload.destinations;
    if (key === undefined) return [];
    let found = served.get(key);
    if (found === undefined) {
      const lists = new Map<string, string[]>();
      for (const range of families.flatMap((family) => egress.ranges(workload, family))) {
        const list = lists.get(range.egressIP) ?? [];
        lists.set(range.egressIP, list);
        list.push(formatRange(range));
      }
      found = [...lists.values()].map((addresses) => ({ addresses, ports: null }));
      served.set(key, found);
    }
    return found;
  }

  /** Few have limits, and many ask. */
  const limited = Object.fromEntries(
    Object.entries(plan.egressIPs).filter(([, entry]) => (entry.limits ?? entry.bandwidth) !== undefined),
  );
  const limits = new Map<string, string>();
  function egressLimits({ group }: WorkloadEntry, choice: EgressChoice): string {
    const audit = plan.groups[group]?.audit === true;
    const key = JSON.stringify([choice.egressIP, choice.addresses, audit]);
    const text = limits.get(key) ?? egressLimitsText(choice, limited, !audit);
    limits.set(key, text);
    return text;
  }

  return {
    plan,
    evaluator,
    egress,
    egressLimits,
    settled,
    boundariesOf,
    decide(workload, destination, known) {
      const source = sourceOf(workload, destination.address);
      if (source === undefined) return undefined;
      const early = settled(workload, destination);
      if (early !== undefined) return early;
      const decision = inTheEnd(evaluator, flowOf(source, destination), known);
      const choice = egress.towards(workload, destination.address);
      return { ...decision, ...(decision.verdict === 'accept' && { egress: choice }) };
    },
    boundaries: [
      ...[guarded, settings.clusterCIDRs, settings.excludedCIDRs, [...neverSteered], egressIPs].map((addresses) => ({
        addresses,
        ports: null,
      })),
      ...(tunnel === undefined
        ? []
        : [
            {
              addresses: ['0.0.0.0/0', '::/0'],
              ports: [{ protocol: UDP, ports: [[tunnel, tunnel]] as [number, number][] }],
            },
          ]),
    ],
  };
}

const UDP = 17;

/** A flow is read only if that decides; with the name table at hand it is asked at the first packet. */
function inTheEnd(evaluator: Evaluator, flow: Flow, known: Known | undefined): Decision {
  const first = evaluator.decide(flow);
  if (first.provisional === undefined || known === undefined) return first;
  const { reading, ...table } = known;
  const second = evaluator.decide(flow, table);
  return second.provisional === undefined || reading === undefined ? second : evaluator.decide(flow, known);
}

export function sourceOf(workload: WorkloadEntry, { family }: Address): string | undefined {
  return workload.addresses.find((text) => text.includes(':') === (family === 6));
}

/** `port` as portOf (destination.ts) reads it out of a flow. */
export function flowOf(source: string, { address, protocol, port }: Destination): Flow {
  const flow = { source, destination: formatAddress(address), protocol };
  if (port === undefined) return flow;
  return isIcmp(protocol)
    ? { ...flow, icmpType: port >>> 8, icmpCode: port & 0xff }
    : { ...flow, destinationPort: port };
}

/** A plan holds canonical text; what cannot be read is our own mistake, and throws. */
function setOf(texts: readonly string[]): PrefixSet {
  return PrefixSet.of(texts.map((text) => must(parseRange(text))));
}
