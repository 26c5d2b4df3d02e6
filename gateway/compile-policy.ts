/**
 * Policy → nftables. A packet's source has become a mark (its group); one map leads from the mark to the group's chain,
 * which jumps to a chain for each context that has rules for it, in order, and ends with the default action. Groups
 * with the same rules share the chains. More than one look-up would be one too many: a change between two of them
 * could show a packet half of the old policy and half of the new.
 * So the cost of a flow's first packet depends on the rules that apply to it, not on namespaces or pods.
 */
import { type Context, contexts, type GatewayPlan, type GroupEntry, type RuleEntry } from '../api/plan.ts';
import { markText, type NftSet } from '../kernel/nft.ts';
import { compileRedirect } from '../policy/redirect.ts';
import type { Chains } from './chains.ts';
import { DestinationSets } from './destination-sets.ts';
import { limitSets } from './limits.ts';
import { type Logged, verdictsByLogging } from './logging.ts';
import { DEFAULT_ACTION, groupNumbers, ruleMark, ruleNumbers } from './marks.ts';
import { Redirects, type RedirectVerdicts } from './redirect.ts';
import { auditLines, decide, decideRedirected, HITS_SET, hitsSet, letPass, verdictOf, withLimits } from './verdict.ts';

export interface CompiledPolicy {
  sets: Record<string, NftSet>;
  /** The rule that walks the contexts; the packet mark carries the group. It ends in a verdict. */
  walk: string;
  /** Group key → packet mark. */
  groupMarks: Map<string, number>;
  /** Rule id or DEFAULT_ACTION → number in ct marks and in the marks of logged denials. */
  ruleNumbers: Map<string, number>;
}

/** `heldShards`: of this gateway, for its share of limits. */
export function compilePolicy(
  plan: GatewayPlan,
  heldShards: readonly string[],
  chains: Chains,
  logged: Logged,
): CompiledPolicy {
  const sets: Record<string, NftSet> = {};
  const numbers = ruleNumbers(Object.keys(plan.rules));
  const verdictsFor = verdictsByLogging(chains, logged);
  const verdicts = verdictsFor(undefined);
  const groupMarks = groupNumbers(Object.keys(plan.groups));
  const destinations = new DestinationSets(plan, sets);

  const redirects = new Redirects(plan, sets, chains);
  const numberOf = (id: string): number => numbers.get(id) ?? 0;

  function ruleLines(id: string, rule: RuleEntry, group: GroupEntry): string[] {
    const number = numberOf(id);
    const redirect = rule.redirect && compileRedirect(rule.redirect);
    const guard = redirect === undefined ? '' : redirects.guard(redirect);
    const matches = destinations.matches(rule.services, redirect?.address.family).map((match) => `${guard}${match}`);
    if (rule.mode === 'Audit') return auditLines(matches, number, rule.limits, verdicts, chains);
    const permits = rule.action === 'accept-decisively' || (rule.action === 'accept' && rule.context === 'service');
    const unlimited =
      redirect !== undefined && permits
        ? redirects.verdict(id, redirect, group, redirectVerdicts(group))
        : denied(id, rule, group);
    const verdict =
      rule.limits === undefined
        ? unlimited
        : withLimits(rule.limits, number, unlimited, verdictsFor(rule), chains, group.audit === true);
    return matches.map((match) => `${match}${verdict}`.trim());
  }

  /** Of a rule that denies; of others what they do anyway. */
  function denied(id: string, rule: RuleEntry, { audit }: GroupEntry): string {
    const denies = rule.action === 'drop' || rule.action === 'reject';
    if (audit && denies) return letPass('rule', numberOf(id), verdicts, chains);
    return verdictOf(rule, numberOf(id), verdictsFor(rule));
  }

  /** Where the whole policy is in audit, nothing is redirected either. */
  const redirectVerdicts = (group: GroupEntry): RedirectVerdicts => ({
    audited: (match, id) => auditLines([match], numberOf(id), undefined, verdicts, chains),
    denied: (id, rule) => denied(id, rule, group),
    forbidden: (id) =>
      group.audit
        ? letPass('rule', numberOf(id), verdicts, chains)
        : `meta mark set ${markText(ruleMark(numberOf(id)))} goto ${verdictsFor(plan.rules[id]).redirect()}`,
    permitted: (id, translate) =>
      group.audit ? decide(numberOf(id), verdicts) : decideRedirected(numberOf(id), translate, chains),
  });

  const number = numbers.get(DEFAULT_ACTION) ?? 0;
  const permits = 'pool' in plan.settings && plan.settings.pool.defaultAction === 'Accept';

  function lastRule({ audit }: GroupEntry): string {
    if (permits) return decide(number, verdicts);
    if (audit) return letPass('default-action', number, verdicts, chains);
    return `meta mark set ${markText(ruleMark(number))} goto ${verdicts.byDefault()}`;
  }

  function contextChain(context: Context, key: string, group: GroupEntry): string[] {
    const lines = group.rules[context].flatMap((id) => {
      const rule = plan.rules[id];
      // Half a policy could permit what the whole one forbids.
      if (rule === undefined) throw new TypeError(`group ${key} names rule ${id}, which the plan does not hold`);
      return ruleLines(id, rule, group);
    });
    return lines.length === 0 ? [] : [`jump ${chains.add(context, lines)}`];
  }

  const elements = new Map<string, string>();
  for (const [key, group] of Object.entries(plan.groups)) {
    const rules = [...contexts.flatMap((context) => contextChain(context, key, group)), lastRule(group)];
    elements.set(markText(groupMarks.get(key) ?? 0), `goto ${chains.add('group', rules)}`);
  }
  sets.groups = { type: 'mark', value: 'verdict', elements };
  sets[HITS_SET] = hitsSet(numbers.values());
  Object.assign(sets, limitSets(plan, numbers, heldShards));
  return { sets, walk: 'meta mark vmap @groups', groupMarks, ruleNumbers: numbers };
}
