/**
 * Limits of rules as nftables sets: an element for each rule's mark, with a limit of its own (kernel/nft.ts). It knows
 * what has passed for as long as it stays, whatever becomes of the chains that ask it; a change of the limit, or of this
 * gateway's share of it, makes that one element anew.
 */
import type { GatewayPlan, RuleLimits } from '../api/plan.ts';
import { connectionLimitText, markText, type NftSet, rateLimitText } from '../kernel/nft.ts';
import { limitFields, shareOf } from '../policy/limits.ts';
import { ruleMark } from './marks.ts';

const kinds = {
  connectionsPerSecond: { set: 'rate_limits', limited: 'rate', text: rateLimitText },
  maxConnections: { set: 'connection_limits', limited: 'connections', text: connectionLimitText },
} as const;

/** Sets of the limits that there are. `heldShards`: of this gateway. */
export function limitSets(
  { settings, rules }: Pick<GatewayPlan, 'settings' | 'rules'>,
  numbers: ReadonlyMap<string, number>,
  heldShards: readonly string[],
): Record<string, NftSet> {
  const sets: Record<string, NftSet> = {};
  const pool = 'pool' in settings ? settings.pool.pool : '';
  const held = new Set(heldShards.map((shard) => `${pool}/${shard}`));
  for (const [id, { limits }] of Object.entries(rules)) {
    if (limits === undefined) continue;
    for (const field of limitFields) {
      const limit = limits[field];
      if (limit === undefined) continue;
      const { set, limited, text } = kinds[field];
      sets[set] ??= { type: 'mark', limited, elements: new Map() };
      const share = limits.shards === undefined ? limit : shareOf(limit, limits.shards, (shard) => held.has(shard));
      sets[set].elements.set(markText(ruleMark(numbers.get(id) ?? 0)), text(share));
    }
  }
  return sets;
}

/**
 * Rules that lead a packet that is over a limit of the rule of its mark elsewhere. The rate comes first: what it stops
 * costs no look through the connections.
 */
export function limitLines(limits: RuleLimits, over: string): string[] {
  return limitFields.flatMap((field) =>
    limits[field] === undefined ? [] : [`meta mark @${kinds[field].set} goto ${over}`],
  );
}
