/**
 * Limits of a rule (design §4.7), which hold for all its sources together: how they are divided over the shards that
 * these use, since gateways count apart; and in words.
 */

import type { Policy, RuleLimits } from '../api/plan.ts';

export const limitFields = ['connectionsPerSecond', 'maxConnections'] as const;
export type LimitField = (typeof limitFields)[number];

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

/** Of a decision. */
export const limitsText = (ids: readonly string[], rules: Policy['rules']): string =>
  ids.map((id) => `${id} (${describeLimits(rules[id]?.limits ?? {})})`).join(', ');

function describeLimits({ connectionsPerSecond, maxConnections }: RuleLimits): string {
  return [
    ...(connectionsPerSecond === undefined ? [] : [`${connectionsPerSecond} new connections a second`]),
    ...(maxConnections === undefined ? [] : [`${maxConnections} connections at once`]),
  ].join(' and ');
}
