/**
 * Rules as lines of a chain: for each way in which a packet may match one, the match and what becomes of the packet
 * (verdict.ts), with its redirect (redirect.ts), its limits, and audit. Many in a row become maps (rule-run.ts). What is
 * open until a flow is read matches nothing here: ask-lines.ts.
 */
import type { GroupEntry, RuleEntry } from '../api/plan.ts';
import { markText } from '../kernel/nft.ts';
import { limitsConnections } from '../policy/limits.ts';
import { compileRedirect } from '../policy/redirect.ts';
import {
  DestinationSets,
  type Destinations,
  type Found,
  type Match,
  type PolicyView,
  setsOf,
} from './destination-sets.ts';
import type { VerdictsFor } from './logging.ts';
import { DEFAULT_ACTION, type Numbers, ruleMark } from './marks.ts';
import { matchesOf, matchLines } from './match-lines.ts';
import { Redirects, type RedirectVerdicts } from './redirect.ts';
import { runLines } from './rule-run.ts';
import type { Scope } from './table.ts';
import { tailGuard } from './tail-guard.ts';
import { auditLines, decide, decideRedirected, letPass, verdictOf, withLimits } from './verdict.ts';

export interface RuleLinesOptions {
  verdictsFor: VerdictsFor;
  defaultAction: 'Drop' | 'Accept';
  /** Of rules one after another: matches that are compared one by one. More become maps. */
  compared: number;
}

interface Row {
  id: string;
  rule: RuleEntry;
  /** undefined: any destination. */
  found: Found | undefined;
  /** Of both families. */
  sets: Destinations['sets'];
  matches: Match[];
}

/** What a look-up among ranges costs a packet, in comparisons. */
const LOOK_UP = 9;
/** Of the rules that are looked up together: ranges in sets of their own, of which the maps have a copy. */
const COPIED = 1_024;

/** It leaves the walk going. */
const standsAlone = ({ rule }: Row): boolean => rule.mode === 'Audit' || rule.redirect !== undefined;

/** What it costs a packet by itself. */
const costOf = ({ matches, sets }: Row): number => matches.length + sets.length * (LOOK_UP - 1);

/** Rules that could be looked up together. */
function inRuns(rows: readonly Row[]): Row[][] {
  const runs: Row[][] = [];
  let open: Row[] | undefined;
  let room = COPIED;
  for (const row of rows) {
    const ranges = row.sets.reduce((sum, [, { elements }]) => sum + elements.size, 0);
    const alone = standsAlone(row) || ranges > COPIED;
    if (!alone && open !== undefined && ranges <= room) open.push(row);
    else {
      runs.push([row]);
      room = COPIED;
    }
    room -= ranges;
    open = alone ? undefined : runs.at(-1);
  }
  return runs;
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

  /** The rules of a list, in their order. `name`: of what is the list's own. `asked`: some come from ask-lines.ts. */
  of(name: string, ids: readonly string[], group: GroupEntry, scope: Scope, asked = false): string[] {
    const redirects = new Redirects(this.#policy, scope, asked);
    const rows = ids.map((id): Row => {
      const rule = this.#policy.rules.get(id);
      if (rule === undefined) throw new TypeError(`a group names rule ${id}, which the plan does not hold`);
      const found = rule.services === '*' ? undefined : this.#destinations.find(rule.services);
      return { id, rule, found, sets: setsOf(found), matches: matchesOf(found) };
    });
    // Of the rules at the end that stand as lines: where what none of them is about may leave.
    const ends: Row[] = [];
    const made = inRuns(rows).map((run, at) => {
      const cost = run.reduce((sum, row) => sum + costOf(row), 0);
      // A list by itself has its sets.
      const single = run.length === 1 && run[0] !== undefined && run[0].sets.length > 0;
      const many = !single && !run.some(standsAlone) && cost > this.#options.compared;
      const mapped = many ? this.#run(`${name}_${at}`, run, group, scope, redirects) : undefined;
      if (mapped === undefined) ends.push(...run);
      else ends.length = 0;
      return mapped ?? run;
    });
    const guard = tailGuard(ends.map(({ found }) => found));
    const first = guard === undefined ? undefined : ends[guard.at];
    return made.flatMap((lines) =>
      lines.flatMap((line) => {
        if (typeof line === 'string') return line;
        const own = this.#lines(line, group, scope, redirects);
        return line === first ? [...(guard?.lines ?? []), ...own] : own;
      }),
    );
  }

  #run(
    name: string,
    rows: readonly Row[],
    group: GroupEntry,
    scope: Scope,
    redirects: Redirects,
  ): string[] | undefined {
    const rules = rows.map((row) => ({
      services: row.found === undefined ? ('*' as const) : row.found.parts,
      chain: scope.add('verdict', [this.#verdict(row, group, scope, redirects)]),
    }));
    return runLines(scope, name, rules);
  }

  #lines(row: Row, group: GroupEntry, scope: Scope, redirects: Redirects): string[] {
    const { id, rule, found } = row;
    const redirect = rule.redirect && compileRedirect(rule.redirect);
    const guard = redirect === undefined ? '' : redirects.guard(redirect);
    const family = redirect?.address.family;
    for (const [name, set] of family === undefined ? row.sets : setsOf(found, family)) scope.set(name, set);
    const matches = family === undefined ? row.matches : matchesOf(found, family);
    if (rule.mode === 'Audit') {
      const texts = matches.map(({ address, ports }) => `${guard}${address}${ports}`);
      return auditLines(texts, this.#numberOf(id), rule.limits, this.#options.verdictsFor(undefined), scope);
    }
    const verdict = this.#verdict(row, group, scope, redirects);
    // What passes on goes back to where the list was asked, which a chain within the list could not; and a redirect's
    // last chain may have no verdict.
    const ends = rule.redirect === undefined && !(rule.action === 'accept' && rule.context !== 'service');
    return matchLines(matches, verdict, ends, scope).map((line) => `${guard}${line}`);
  }

  /** What becomes of a packet that the rule matches. */
  #verdict({ id, rule }: Row, group: GroupEntry, scope: Scope, redirects: Redirects): string {
    const redirect = rule.redirect && compileRedirect(rule.redirect);
    const permits = rule.action === 'accept-decisively' || (rule.action === 'accept' && rule.context === 'service');
    const unlimited =
      redirect !== undefined && permits
        ? redirects.verdict(id, redirect, group, this.#redirectVerdicts(group, scope))
        : this.#denied(id, rule, group, scope);
    if (!limitsConnections(rule.limits)) return unlimited;
    const verdicts = this.#options.verdictsFor(rule);
    return withLimits(rule.limits, this.#numberOf(id), unlimited, verdicts, scope, group.audit === true);
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
