/**
 * nftables as a value: a Ruleset is what one table must hold; diffRuleset() (nft-diff.ts) turns the difference to
 * what the kernel holds into one script, which is one transaction (nft-host.ts; nft-fake.ts for tests).
 *
 * Chains without a hook are immutable and named by their content, so a diff only adds and deletes them. A chain with
 * a hook may do the same; better, it keeps a fixed name and holds nothing but `jump NAME` rules: then it is rewritten
 * in place, which is atomic for every packet (two base chains, one appearing and one vanishing, are not: a packet
 * between the two while the transaction commits meets the new one still empty and the old one already empty).
 * For the same reason a hook's policy must be accept: an empty chain's policy is all that it does.
 */

export interface NftSet {
  /** `ipv4_addr . inet_proto`, or an expression where a key has no type name: `ip saddr . @th,336,32`. */
  type: string | { typeof: string };
  /** Present: a map. */
  value?: 'mark' | 'verdict' | 'ipv4_addr' | 'ipv6_addr';
  interval?: boolean;
  /** Key text → value text ('' for a plain set), in the forms of nft-element.ts. */
  elements: Map<string, string>;
}

export interface NftChain {
  /** `type filter hook forward priority filter; policy accept;` */
  hook?: string;
  rules: string[];
}

export interface Ruleset {
  family: 'inet';
  table: string;
  counters: string[];
  sets: Record<string, NftSet>;
  chains: Record<string, NftChain>;
}

export interface SetState {
  /** Type, value and flags in one canonical text: shapeOf(). */
  shape: string;
  elements: Map<string, string>;
}

export interface NftState {
  exists: boolean;
  counters: Set<string>;
  sets: Map<string, SetState>;
  chains: Set<string>;
  /** Chains with a hook whose every rule is `jump NAME`: those names. They can be rewritten in place. */
  jumps: Map<string, string[]>;
}

export interface CounterValue {
  packets: number;
  bytes: number;
}

export interface Nft {
  /** Runs one script: all of it or nothing. '' does nothing. */
  run(script: string): Promise<void>;
  list(family: 'inet', table: string): Promise<NftState>;
  /** Named counters of a table; empty if there is no table. */
  counters(table: string): Promise<Record<string, CounterValue>>;
  /** Deletes the table; nothing if there is none. */
  drop(table: string): Promise<void>;
}

export const emptyState = (): NftState => ({
  exists: false,
  counters: new Set(),
  sets: new Map(),
  chains: new Set(),
  jumps: new Map(),
});

/** Values as `typeof` wants them written. */
const valueExpression = { mark: 'meta mark', verdict: 'verdict', ipv4_addr: 'ip saddr', ipv6_addr: 'ip6 saddr' };

/** The body of `add set` / `add map`, which is also the text by which two shapes are compared. */
export function shapeOf(set: Pick<NftSet, 'type' | 'value' | 'interval'>): string {
  const named = typeof set.type === 'string';
  const key = typeof set.type === 'string' ? `type ${set.type}` : `typeof ${set.type.typeof}`;
  const value = set.value === undefined ? '' : ` : ${named ? set.value : valueExpression[set.value]}`;
  return `${key}${value};${set.interval ? ' flags interval;' : ''}`;
}

export const isMapShape = (shape: string): boolean => shape.includes(' : ');

/** The targets, if every rule of a chain is `jump NAME`. */
export function jumpsOf(rules: readonly string[]): string[] | undefined {
  const targets = rules.map((rule) => /^jump ([A-Za-z_][\w]*)$/.exec(rule)?.[1]);
  return targets.every((target) => target !== undefined) ? targets : undefined;
}

/** The state in which the kernel is once this ruleset is in force. */
export function stateOf(ruleset: Ruleset): NftState {
  const state: NftState = { ...emptyState(), exists: true, counters: new Set(ruleset.counters) };
  for (const [name, set] of Object.entries(ruleset.sets)) {
    state.sets.set(name, { shape: shapeOf(set), elements: new Map(set.elements) });
  }
  for (const [name, chain] of Object.entries(ruleset.chains)) {
    state.chains.add(name);
    const targets = chain.hook === undefined ? undefined : jumpsOf(chain.rules);
    if (targets !== undefined) state.jumps.set(name, targets);
  }
  return state;
}

export { diffRuleset } from './nft-diff.ts';
export { addressText, concat, markText, portsText, protocolText, rangeText, rawText } from './nft-element.ts';
