/**
 * Limits (design §4.7), which hold for all sources of a rule, an EgressIP or a port together: how they are divided over
 * the shards that these use, since gateways count apart; and in words.
 */

import { formatBandwidth } from '../api/bandwidth.ts';
import type { GatewayPlan, Policy, RuleLimits } from '../api/plan.ts';
import type { EgressChoice } from './egress.ts';

/** Those that a flow must keep to when it begins. */
export const limitFields = ['connectionsPerSecond', 'maxConnections'] as const;
export const allLimitFields = [...limitFields, 'bandwidth'] as const;

/** Whether a flow may be over one of them when it begins. */
export const limitsConnections = (limits: RuleLimits | undefined): limits is RuleLimits =>
  limits !== undefined && limitFields.some((field) => limits[field] !== undefined);

/**
 * The share of each shard, which sum up to the limit. They differ by one at most, the first in order having more; none
 * is less than one, so that more shards than the limit make it as many.
 */
export function divideLimit(limit: number, shards: readonly string[]): Map<string, number> {
  const [each, rest] = [Math.floor(limit / shards.length), limit % shards.length];
  return new Map([...shards].sort().map((shard, at) => [shard, Math.max(1, each + (at < rest ? 1 : 0))]));
}

/** What one gateway may let through; at least one, as of a shard that it is only about to hold. */
export function shareOf(limit: number, shards: readonly string[], isHeld: (shard: string) => boolean): number {
  let share = 0;
  for (const [shard, part] of divideLimit(limit, shards)) if (isHeld(shard)) share += part;
  return Math.max(1, share);
}

/** What bounds how many connections a decision's rules let begin; '' if nothing does. */
export function connectionLimitsText(ids: readonly string[], rules: Policy['rules']): string {
  return ids
    .flatMap((id) => {
      const { connectionsPerSecond, maxConnections } = rules[id]?.limits ?? {};
      const parts = [
        ...(connectionsPerSecond === undefined ? [] : [`${connectionsPerSecond} new connections a second`]),
        ...(maxConnections === undefined ? [] : [`${maxConnections} connections at once`]),
      ];
      return parts.length === 0 ? [] : [`${id} (${parts.join(' and ')})`];
    })
    .join(', ');
}

/** What bounds how much flows; '' if nothing does. `ports` as in a decision. */
export function bandwidthsText(ids: readonly string[], ports: Record<string, number>, rules: Policy['rules']): string {
  const ofRules = ids.flatMap((id): [string, number][] => {
    const bandwidth = rules[id]?.limits?.bandwidth;
    return bandwidth === undefined ? [] : [[id, bandwidth]];
  });
  return [...ofRules, ...Object.entries(ports)].map(([name, bits]) => `${name} (${bandwidthText(bits)})`).join(', ');
}

/** What an EgressIP bounds of flows that leave with these of its addresses; '' if it bounds nothing. */
export function egressLimitsText(
  { egressIP, addresses }: Pick<EgressChoice, 'egressIP' | 'addresses'>,
  egressIPs: GatewayPlan['egressIPs'],
  withBandwidth: boolean,
): string {
  const own = egressIP === undefined ? undefined : egressIPs[egressIP]?.limits;
  const connections = own === undefined ? [] : [`EgressIP ${egressIP} (${own.maxConnections} connections at once)`];
  const leaving = new Set(addresses.map(({ address }) => address));
  const bandwidths = Object.entries(withBandwidth ? egressIPs : {}).flatMap(([name, { bandwidth }]) => {
    if (bandwidth?.addresses.some((address) => leaving.has(address)) !== true) return [];
    const { egress, ingress } = bandwidth;
    const ways = [
      ...(egress === undefined ? [] : [`${formatBandwidth(egress)} to the outside`]),
      ...(ingress === undefined ? [] : [`${formatBandwidth(ingress)} back`]),
    ];
    return [`EgressIP ${name} (${ways.join(', ')})`];
  });
  return [...connections, ...bandwidths].join(', ');
}

/** Of a limit that holds for each direction. */
export const bandwidthText = (bits: number): string => `${formatBandwidth(bits)} each way`;
