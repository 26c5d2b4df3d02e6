/**
 * States of one nftables table: the empty one, and the one that a ruleset leads to.
 */
import type { NftSet, NftState, Ruleset } from './nft.ts';

export const emptyState = (): NftState => ({
  exists: false,
  counters: new Set(),
  sets: new Map(),
  chains: new Set(),
  jumps: new Map(),
});

/** Values as `typeof` wants them written. */
const valueExpression = { mark: 'meta mark', verdict: 'verdict', ipv4_addr: 'ip saddr', ipv6_addr: 'ip6 saddr' };

/** What a set's elements have is told by an example; no element is made by a packet. */
const limitExample = { rate: 'limit rate over 1/second', connections: 'ct count over 1' };

/** The body of `add set` / `add map`, which is also the text by which two shapes are compared. */
export function shapeOf(set: Pick<NftSet, 'type' | 'value' | 'interval' | 'counted' | 'limited'>): string {
  const named = typeof set.type === 'string';
  const key = typeof set.type === 'string' ? `type ${set.type}` : `typeof ${set.type.typeof}`;
  const value = set.value === undefined ? '' : ` : ${named ? set.value : valueExpression[set.value]}`;
  const counted = set.counted === undefined ? '' : ` size ${set.counted}; flags dynamic; counter;`;
  // Not dynamic: of such a set the kernel takes away elements that count no connection.
  const limited = set.limited === undefined ? '' : ` ${limitExample[set.limited]};`;
  return `${key}${value};${set.interval ? ' flags interval;' : ''}${counted}${limited}`;
}

export const isMapShape = (shape: string): boolean => shape.includes(' : ');
export const isLimitShape = (shape: string): boolean =>
  Object.values(limitExample).some((text) => shape.includes(text));

/** The targets of those rules of a chain that are nothing but `jump NAME`; undefined if there are none. */
export function jumpsOf(rules: readonly string[]): string[] | undefined {
  const targets = rules.flatMap((rule) => /^jump ([A-Za-z_][\w]*)$/.exec(rule)?.[1] ?? []);
  return targets.length > 0 ? targets : undefined;
}

/** The state in which the kernel is once this ruleset is in force. */
export function stateOf(ruleset: Ruleset): NftState {
  const state: NftState = { ...emptyState(), exists: true, counters: new Set(ruleset.counters) };
  for (const [name, set] of Object.entries(ruleset.sets)) {
    state.sets.set(name, { shape: shapeOf(set), elements: set.elements });
  }
  for (const [name, chain] of Object.entries(ruleset.chains)) {
    state.chains.add(name);
    const targets = jumpsOf(chain.rules);
    if (targets !== undefined) state.jumps.set(name, targets);
  }
  return state;
}
