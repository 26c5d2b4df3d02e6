/**
 * Policy → nftables. A packet's source has become a mark (its group); per context one map leads from the mark to a
 * chain that holds the group's rules of that context, in order. Groups with the same rules share the chain. A rule's
 * destinations are up to three interval sets per family (boxes.ts), shared by all rules that name the same services.
 * So the cost of a flow's first packet depends on the rules that apply to it, not on namespaces or pods.
 */

import { createHash } from 'node:crypto';
import { formatAddress } from '../api/address.ts';
import { CT_DECIDED, GATEWAY_CT_MASK } from '../api/names.ts';
import { type Context, contexts, type Family, families, type GatewayPlan, type RuleEntry } from '../api/plan.ts';
import { concat, markText, type NftSet, portsText, protocolText, rangeText } from '../kernel/nft.ts';
import { boxesOf } from '../policy/boxes.ts';
import type { Chains } from './chains.ts';
import { DEFAULT_ACTION, groupNumbers, ruleMark, ruleNumbers } from './marks.ts';

export const addressType = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;
export const header = { 4: 'ip', 6: 'ip6' } as const;
/** Map of a context: group's mark → the chain of its rules. */
const contextMap = (context: Context): string => `rules_${context}`;

export interface CompiledPolicy {
  sets: Record<string, NftSet>;
  /** Rules that walk the contexts; the packet mark carries the group. They end in a verdict. */
  walk: string[];
  /** Group key → packet mark. */
  groupMarks: Map<string, number>;
  /** Rule id or DEFAULT_ACTION → number in ct marks and in the marks of logged denials. */
  ruleNumbers: Map<string, number>;
}

/** Statements that make a flow a decided one, in the name of a rule. */
export function decide(number: number): string {
  const keep = markText(~GATEWAY_CT_MASK);
  return `meta mark set 0x00000000 ct mark set ct mark and ${keep} or ${markText(CT_DECIDED | ruleMark(number))} accept`;
}

/** Chains that end a flow. */
export interface Endings {
  drop: string;
  reject: string;
  /** The drop of the pool's default action, made if it is needed. */
  byDefault(): string;
}

export function compilePolicy(plan: GatewayPlan, chains: Chains, endings: Endings): CompiledPolicy {
  const sets: Record<string, NftSet> = {};
  const numbers = ruleNumbers(Object.keys(plan.rules));
  const groupMarks = groupNumbers(Object.keys(plan.groups));
  const destinations = new DestinationSets(plan, sets);

  function ruleLines(id: string, rule: RuleEntry): string[] {
    const number = numbers.get(id) ?? 0;
    const verdict = verdictOf(rule, number, endings);
    return destinations.matches(rule.services).map((match) => `${match}${verdict}`.trim());
  }

  for (const context of contexts) {
    const elements = new Map<string, string>();
    for (const [key, group] of Object.entries(plan.groups)) {
      const lines = group.rules[context].flatMap((id) => {
        const rule = plan.rules[id];
        // Half a policy could permit what the whole one forbids.
        if (rule === undefined) throw new TypeError(`group ${key} names rule ${id}, which the plan does not hold`);
        return ruleLines(id, rule);
      });
      if (lines.length === 0) continue;
      elements.set(markText(groupMarks.get(key) ?? 0), `jump ${chains.add(context, lines)}`);
    }
    sets[contextMap(context)] = { type: 'mark', value: 'verdict', elements };
  }
  const number = numbers.get(DEFAULT_ACTION) ?? 0;
  const permits = 'pool' in plan.settings && plan.settings.pool.defaultAction === 'Accept';
  const last = permits ? decide(number) : `meta mark set ${markText(ruleMark(number))} goto ${endings.byDefault()}`;
  return {
    sets,
    walk: [...contexts.map((context) => `meta mark vmap @${contextMap(context)}`), last],
    groupMarks,
    ruleNumbers: numbers,
  };
}

/** What a matching rule does. `accept` above the service context only ends its own context: back to the walk. */
function verdictOf(rule: RuleEntry, number: number, { drop, reject }: Endings): string {
  switch (rule.action) {
    case 'accept':
      return rule.context === 'service' ? decide(number) : 'return';
    case 'accept-decisively':
      return decide(number);
    case 'drop':
      return `meta mark set ${markText(ruleMark(number))} goto ${drop}`;
    case 'reject':
      return `meta mark set ${markText(ruleMark(number))} goto ${reject}`;
  }
}

/** Interval sets for lists of external services, made once per distinct list. */
class DestinationSets {
  readonly #plan: GatewayPlan;
  readonly #sets: Record<string, NftSet>;
  readonly #made = new Map<string, string[]>();

  constructor(plan: GatewayPlan, sets: Record<string, NftSet>) {
    this.#plan = plan;
    this.#sets = sets;
  }

  /** One match per set that is not empty; a rule matches if any of them does. */
  matches(services: string[] | '*'): string[] {
    if (services === '*') return [''];
    const key = [...services].sort().join(',');
    let made = this.#made.get(key);
    if (made === undefined) {
      made = families.flatMap((family) => this.#make(key, services, family));
      this.#made.set(key, made);
    }
    return made;
  }

  #make(key: string, services: string[], family: Family): string[] {
    const entries = services.flatMap((name) => this.#plan.services[name] ?? []);
    const boxes = boxesOf(entries, family);
    const base = `to_${createHash('sha256').update(key).digest('hex').slice(0, 12)}`;
    const address = addressType[family];
    const daddr = `${header[family]} daddr`;
    const span = (range: { family: Family; first: bigint; last: bigint }): string =>
      rangeText(formatAddress({ family, value: range.first }), formatAddress({ family, value: range.last }));
    const matches: string[] = [];
    const make = (suffix: string, type: string, match: string, keys: string[]): void => {
      if (keys.length === 0) return;
      const name = `${base}_${suffix}${family}`;
      this.#sets[name] = { type, interval: true, elements: new Map(keys.map((text) => [text, ''])) };
      matches.push(`${match} @${name} `);
    };
    // Not a plain interval set: before it touches anything, nft reads the elements of every one of those in the table.
    make(
      'all',
      `${address} . inet_proto`,
      `${daddr} . meta l4proto`,
      boxes.addresses.map((range) => concat(span(range), '0-255')),
    );
    make(
      'protocols',
      `${address} . inet_proto`,
      `${daddr} . meta l4proto`,
      boxes.protocols.map(({ range, protocol }) => concat(span(range), protocolText(protocol))),
    );
    make(
      'ports',
      `${address} . inet_proto . inet_service`,
      `${daddr} . meta l4proto . th dport`,
      boxes.ports.map(({ range, protocol, first, last }) =>
        concat(span(range), protocolText(protocol), portsText(first, last)),
      ),
    );
    return matches;
  }
}
