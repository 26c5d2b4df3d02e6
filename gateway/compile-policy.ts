/**
 * Policy → nftables. A packet's source has become a mark (its group); per context one map leads from the mark to a
 * chain that holds the group's rules of that context, in order. Groups with the same rules share the chain.
 * So the cost of a flow's first packet depends on the rules that apply to it, not on namespaces or pods.
 */
import { type Context, contexts, type GatewayPlan, type RuleEntry } from '../api/plan.ts';
import { markText, type NftSet } from '../kernel/nft.ts';
import type { Chains } from './chains.ts';
import { DestinationSets } from './destination-sets.ts';
import { DEFAULT_ACTION, groupNumbers, ruleMark, ruleNumbers } from './marks.ts';
import { decide, type Endings, verdictOf } from './verdict.ts';

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
