/**
 * Rules as lines of a chain: for each way in which a packet may match one, the match and what becomes of the packet
 * (verdict.ts), with its redirect (redirect.ts), its limits, and audit.
 */
import type { GroupEntry, RuleEntry } from '../api/plan.ts';
import { markText } from '../kernel/nft.ts';
import { limitsConnections } from '../policy/limits.ts';
import { compileRedirect } from '../policy/redirect.ts';
import { DestinationSets, type PolicyView } from './destination-sets.ts';
import type { VerdictsFor } from './logging.ts';
import { DEFAULT_ACTION, type Numbers, ruleMark } from './marks.ts';
import type { Redirects, RedirectVerdicts } from './redirect.ts';
import type { Scope } from './table.ts';
import { auditLines, decide, decideRedirected, letPass, verdictOf, withLimits } from './verdict.ts';

export interface RuleLinesOptions {
  verdictsFor: VerdictsFor;
  defaultAction: 'Drop' | 'Accept';
}

export class RuleLines {
  readonly #policy: PolicyView & { numbers: Numbers };
  readonly #options: RuleLinesOptions;
  readonly #destinations: DestinationSets;

  constructor(policy: PolicyView & { numbers: Numbers }, options: RuleLinesOptions) {
    this.#policy = policy;
    this.#options = options;
    this.#destinations = new DestinationSets(policy);
  }

  /** What a rule does to a packet of a group that has come to it. */
  of(id: string, rule: RuleEntry, group: GroupEntry, scope: Scope, redirects: Redirects): string[] {
    const { verdictsFor } = this.#options;
    const number = this.#numberOf(id);
    const redirect = rule.redirect && compileRedirect(rule.redirect);
    const guard = redirect === undefined ? '' : redirects.guard(redirect);
    const family = redirect?.address.family;
    const matches = this.#destinations.matches(scope, rule.services, family).map((match) => `${guard}${match}`);
    if (rule.mode === 'Audit') return auditLines(matches, number, rule.limits, verdictsFor(undefined), scope);
    const permits = rule.action === 'accept-decisively' || (rule.action === 'accept' && rule.context === 'service');
    const unlimited =
      redirect !== undefined && permits
        ? redirects.verdict(id, redirect, group, this.#redirectVerdicts(group, scope))
        : this.#denied(id, rule, group, scope);
    const verdict = !limitsConnections(rule.limits)
      ? unlimited
      : withLimits(rule.limits, number, unlimited, verdictsFor(rule), scope, group.audit === true);
    return matches.map((match) => `${match}${verdict}`.trim());
  }

  /** Of a rule that denies; of others what they do anyway. */
  #denied(id: string, rule: RuleEntry, { audit }: GroupEntry, scope: Scope): string {
    const { verdictsFor } = this.#options;
    const denies = rule.action === 'drop' || rule.action === 'reject';
    const number = this.#numberOf(id);
    if (audit && denies) return letPass('rule', number, verdictsFor(undefined), scope);
    return verdictOf(rule, number, verdictsFor(rule));
  }

  /** Where the whole policy is in audit, nothing is redirected either. */
  #redirectVerdicts(group: GroupEntry, scope: Scope): RedirectVerdicts {
    const { verdictsFor } = this.#options;
    const verdicts = verdictsFor(undefined);
    const numberOf = this.#numberOf.bind(this);
    return {
      audited: (match, id) => auditLines([match], numberOf(id), undefined, verdicts, scope),
      denied: (id, rule) => this.#denied(id, rule, group, scope),
      forbidden: (id) =>
        group.audit
          ? letPass('rule', numberOf(id), verdicts, scope)
          : `meta mark set ${markText(ruleMark(numberOf(id)))} goto ${verdictsFor(this.#policy.rules.get(id)).redirect}`,
      permitted: (id, translate) =>
        group.audit ? decide(numberOf(id), verdicts) : decideRedirected(numberOf(id), translate, scope),
    };
  }

  /** The default action. */
  last({ audit }: GroupEntry, scope: Scope): string {
    const { verdictsFor, defaultAction } = this.#options;
    const verdicts = verdictsFor(undefined);
    const number = this.#numberOf(DEFAULT_ACTION);
    if (defaultAction === 'Accept') return decide(number, verdicts);
    if (audit) return letPass('default-action', number, verdicts, scope);
    return `meta mark set ${markText(ruleMark(number))} goto ${verdicts.byDefault}`;
  }

  #numberOf(id: string): number {
    return this.#policy.numbers.get(id) ?? 0;
  }
}
