/**
 * Limits of rules as nftables sets: an element for each rule's mark, with a limit of its own (kernel/nft.ts). It knows
 * what has passed for as long as it stays, whatever becomes of the chains that ask it; a change of the limit, or of this
 * gateway's share of it, makes that one element anew. It then counts from 0: the kernel can change no limit in place,
 * and adds a connection to a count only when its first packet comes by. Connections from before are beside the limit
 * for as long as they last (docs/rules.md, limits).
 */
import type { RuleLimits } from '../api/plan.ts';
import { connectionLimitText, markText, rateLimitText } from '../kernel/nft.ts';
import { limitFields, shareOf } from '../policy/limits.ts';
import { ruleMark } from './marks.ts';
import type { SetHead } from './table.ts';

const kinds = {
  connectionsPerSecond: { set: 'rate_limits', limited: 'rate', text: rateLimitText },
  maxConnections: { set: 'connection_limits', limited: 'connections', text: connectionLimitText },
} as const;

export const limitHeads: Record<string, SetHead> = Object.fromEntries(
  Object.values(kinds).map(({ set, limited }) => [set, { type: 'mark', limited }]),
);

/** The elements of one rule. `isHeld`: whether this gateway holds `pool/shard`. */
export function limitElements(
  limits: RuleLimits,
  number: number,
  isHeld: (shard: string) => boolean,
): [set: string, key: string, value: string][] {
  return limitFields.flatMap((field) => {
    const limit = limits[field];
    if (limit === undefined) return [];
    const { set, text } = kinds[field];
    const share = limits.shards === undefined ? limit : shareOf(limit, limits.shards, isHeld);
    return [[set, markText(ruleMark(number)), text(share)]];
  });
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
