/**
 * nftables as a value: a Ruleset is what one table must hold; diffRuleset() (nft-diff.ts) makes of the difference to
 * what the kernel holds a TableChange (nft-change.ts), which is one transaction (nft-host.ts; nft-fake.ts for tests).
 *
 * A chain that gets other rules keeps its name and is rewritten in place: a packet that has entered a base chain walks all
 * chains of one generation, the old rules or the new ones (nft_do_chain() reads the generation once). What a chain
 * holds is told by a digest in the comment of its first rule. Of a chain that is there, the hook's own text is not
 * compared: another hook or priority needs another name. Of two base chains that took turns in a transaction each would be
 * empty for a moment, and nothing promises that no packet meets both so.
 */

import type { TableChange } from './nft-change.ts';

export interface NftSet {
  /** `ipv4_addr . inet_proto`, or an expression where a key has no type name: `ip saddr . @th,336,32`. */
  type: string | { typeof: string };
  /** Present: a map. */
  value?: 'mark' | 'verdict' | 'classid' | 'ipv4_addr' | 'ipv6_addr';
  interval?: boolean;
  /**
   * The most elements that it takes. For a set without ranges the kernel then makes a table of that length at once, 8 bytes
   * each, instead of one that grows: a look-up is cheaper (nft_set_hash.c).
   */
  size?: number;
  /** Each element counts the packets that `update @SET { KEY }` names it for. Has a size. */
  counted?: true;
  /**
   * Each element has a limit, its value text (rateLimitText, bytesLimitText, connectionLimitText), and what the limit has seen so far. A
   * look-up of the element matches what is over it. An element with another text starts anew, the others go on.
   */
  limited?: 'rate' | 'bytes' | 'connections';
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
  /** Name → digestOf() its rules; undefined: nobody knows, some other program's. */
  chains: Map<string, string | undefined>;
}

export interface CounterValue {
  packets: number;
  bytes: number;
}

export interface Nft {
  /** Makes one change: all of it or nothing. */
  run(change: TableChange): Promise<void>;
  /** `like`: what the table may hold already, if there is one; it saves memory, and diffRuleset() time. */
  list(family: 'inet', table: string, like?: () => Ruleset): Promise<NftState>;
  /** Named counters of a table; empty if there is no table. */
  counters(table: string): Promise<Record<string, CounterValue>>;
  /** Deletes the table; nothing if there is none. */
  drop(table: string): Promise<void>;
}

export {
  ChangeBuilder,
  changeSize,
  type ElementsChange,
  emptyChange,
  isEmptyChange,
  type NftElement,
  scriptOf,
  type TableChange,
} from './nft-change.ts';
export { diffRuleset } from './nft-diff.ts';
export {
  addressText,
  bytesLimitText,
  classText,
  concat,
  connectionLimitText,
  markText,
  portsText,
  protocolText,
  rangeText,
  rateLimitText,
  rawText,
} from './nft-element.ts';
export { emptyState, shapeOf, stateOf } from './nft-state.ts';
