/**
 * States of one nftables table: the empty one, and the one that a ruleset leads to.
 */
import { hash } from 'node:crypto';
import type { NftChain, NftSet, NftState, Ruleset } from './nft.ts';

export const emptyState = (): NftState => ({
  exists: false,
  counters: new Set(),
  sets: new Map(),
  chains: new Map(),
});

/** Values as `typeof` wants them written. */
const valueExpression = {
  mark: 'meta mark',
  verdict: 'verdict',
  classid: 'meta priority',
  ipv4_addr: 'ip saddr',
  ipv6_addr: 'ip6 saddr',
};

/** What a set's elements have is told by an example; no element is made by a packet. */
const limitExample = {
  rate: 'limit rate over 1/second',
  bytes: 'limit rate over 1 bytes/second',
  connections: 'ct count over 1',
};

/** The body of `add set` / `add map`, which is also the text by which two shapes are compared. */
export function shapeOf(set: Omit<NftSet, 'elements'>): string {
  const named = typeof set.type === 'string';
  const key = typeof set.type === 'string' ? `type ${set.type}` : `typeof ${set.type.typeof}`;
  const value = set.value === undefined ? '' : ` : ${named ? set.value : valueExpression[set.value]}`;
  // No element ever times out. But only where one could may be said how often the kernel walks the whole set to see; it
  // does so of each dynamic set, otherwise every second.
  const counting = ' flags dynamic,timeout; gc-interval 1d; counter;';
  const counted = set.counted === undefined ? '' : counting;
  // Not dynamic: of such a set the kernel takes away elements that count no connection.
  const limited = set.limited === undefined ? '' : ` ${limitExample[set.limited]};`;
  const size = set.size === undefined ? '' : ` size ${set.size};`;
  return `${key}${value};${size}${set.interval ? ' flags interval;' : ''}${counted}${limited}`;
}

export const isMapShape = (shape: string): boolean => shape.includes(' : ');
export const isCountedShape = (shape: string): boolean => shape.includes(' flags dynamic');
export const isLimitShape = (shape: string): boolean =>
  Object.values(limitExample).some((text) => shape.includes(text));

/** By which two chains of one name are compared; '' for one without rules. It ends with how many rules there are. */
export function digestOf({ rules }: Pick<NftChain, 'rules'>): string {
  return rules.length === 0 ? '' : `${hash('sha256', rules.join('\n')).slice(0, 12)}${countText(rules.length)}`;
}

const countText = (rules: number): string => (rules & 0xffff).toString(16).padStart(4, '0');

/** What a listed chain's digest says, if it has as many rules as that says: somebody may have added or deleted one. */
export const digestIfWhole = (digest: string | undefined, rules: number): string | undefined =>
  digest?.endsWith(countText(rules)) ? digest : undefined;

/** The kernel keeps a chain's digest as the comment of its first rule: rules and comment come and go together. */
export function rulesOf(name: string, chain: NftChain): [chain: string, rule: string][] {
  return chain.rules.map((rule, index) => [name, index === 0 ? `${rule} comment "${digestOf(chain)}"` : rule]);
}

/** A rule as it was written, and the digest that stands with it. */
export function withoutDigest(rule: string): [rule: string, digest: string | undefined] {
  const [, text = rule, digest] = /^(.*) comment "([0-9a-f]{16})"$/.exec(rule) ?? [];
  return [text, digest];
}

/** The state in which the kernel is once this ruleset is in force. */
export function stateOf(ruleset: Ruleset): NftState {
  const state: NftState = { ...emptyState(), exists: true, counters: new Set(ruleset.counters) };
  for (const [name, set] of Object.entries(ruleset.sets)) {
    state.sets.set(name, { shape: shapeOf(set), elements: set.elements });
  }
  for (const [name, chain] of Object.entries(ruleset.chains)) {
    state.chains.set(name, digestOf(chain));
  }
  return state;
}
