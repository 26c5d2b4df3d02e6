/**
 * What becomes of a flow that a rule matches, as nftables statements: the rule puts its number into a mark and goes to
 * a chain that it shares with all others of the same verdict. That chain counts the packet for the rule: each number has
 * an element with a counter in one set. (A named counter per rule would be read by `nft` before every change to
 * anything, some 1.4 s for 100,000 of them; a counter in the rule itself would start anew with its chain.)
 */
import { CT_RULE_MASK, GATEWAY_CHECKED_MARK, GATEWAY_CT_MASK } from '../api/names.ts';
import type { RuleEntry, RuleLimits } from '../api/plan.ts';
import type { AuditReason } from '../api/reasons.ts';
import { markText } from '../kernel/nft.ts';
import { limitsConnections } from '../policy/limits.ts';
import { limitLines } from './limits.ts';
import { REFUSED, refusedMark, ruleMark } from './marks.ts';
import type { Scope, SetHead } from './table.ts';

/** Set of the rules' marks. */
export const HITS_SET = 'rule_hits';
/** The kernel makes a hash table of this size at once, 4 MiB. */
export const HITS_SIZE = 1 << 18;

/** Rules past the set's size are in force like all others, but not counted. */
export const hitsHead: SetHead = { type: 'mark', size: HITS_SIZE, counted: true };

/** Chains that end a flow. They log what they end, or do not. */
export interface Denials {
  drop: string;
  reject: string;
  /** The drop of the pool's default action. */
  byDefault: string;
  /** The drop of what a rule redirects to where it may not go. */
  redirect: string;
  /** The drop of what is over a limit. */
  overLimit: string;
  /** Each counts and logs a hit of audit, then goes back to where it was jumped to from. */
  audit: Record<AuditReason, string>;
}

/** Chains that count a packet for the rule of its mark, and then do what the rule says. */
export interface Verdicts extends Denials {
  permit: string;
  /** Back to the walk. */
  passOn: string;
  /** A hit of a rule in audit, and back to the walk. */
  audited: string;
  /** The same of what would be over its limit. */
  auditedOverLimit: string;
}

/** Marks under which a rule is counted. */
export const hitMarks = (number: number, rule: Refusing = {}): number[] =>
  refuses(rule) ? [ruleMark(number), refusedMark(number)] : [ruleMark(number)];

type Refusing = Pick<Partial<RuleEntry>, 'limits' | 'redirect'>;

/** Whether it may refuse what it would else let on. */
export const refuses = ({ limits, redirect }: Refusing): boolean => limitsConnections(limits) || redirect !== undefined;

/** Where a flow is permitted, its mark carries the rule. */
const countOfFlow = `update @${HITS_SET} { ct mark and ${markText(CT_RULE_MASK)} }`;
const checked = `meta mark set ${markText(GATEWAY_CHECKED_MARK)}`;

/** `chain` makes a chain of these rules. `onPass`: statements for what is handed on to the next context. */
export function countedVerdicts(
  chain: (name: string, rules: string[]) => string,
  denials: Denials,
  onPass: string[] = [],
): Verdicts {
  const { drop, reject, byDefault, redirect, overLimit, audit } = denials;
  // If the set were full, the statement would end its rule: so it stands alone.
  const count = `update @${HITS_SET} { meta mark }`;
  const countRefused = [`meta mark set meta mark or ${markText(REFUSED)}`, count];
  return {
    drop: chain('rule_drop', [count, `goto ${drop}`]),
    reject: chain('rule_reject', [count, `goto ${reject}`]),
    byDefault: chain('rule_default', [count, `goto ${byDefault}`]),
    redirect: chain('rule_redirect', [...countRefused, `goto ${redirect}`]),
    overLimit: chain('rule_over_limit', [...countRefused, `goto ${overLimit}`]),
    // Its mark is the flow's by now.
    permit: chain('rule_permit', [countOfFlow, `${checked} accept`]),
    passOn: chain('rule_pass', [count, ...onPass, 'return']),
    audit,
    audited: chain('rule_audited', [count, `goto ${audit.rule}`]),
    auditedOverLimit: chain('rule_audited_limit', [...countRefused, `goto ${audit.limit}`]),
  };
}

/** Statements that permit a flow in the name of a rule. It is decided when its first packet leaves: lastHook(). */
export function decide(number: number, { permit }: Pick<Verdicts, 'permit'>): string {
  return `${inTheNameOf(number)} goto ${permit}`;
}

const inTheNameOf = (number: number): string =>
  `ct mark set ct mark and ${markText(~GATEWAY_CT_MASK)} or ${markText(ruleMark(number))}`;

/** The same, and the packet's destination is translated: rules of which one matches and ends the walk. */
export function decideRedirected(number: number, translate: string[], scope: Scope): string {
  const chain = scope.add('redirected', [countOfFlow, ...translate.map((rule) => `${checked} ${rule}`)]);
  return `${inTheNameOf(number)} goto ${chain}`;
}

/** What a matching rule does. `accept` above the service context only ends its own context. */
export function verdictOf(rule: RuleEntry, number: number, verdicts: Verdicts): string {
  const marked = (chain: string): string => `meta mark set ${markText(ruleMark(number))} goto ${chain}`;
  switch (rule.action) {
    case 'accept':
      return rule.context === 'service' ? decide(number, verdicts) : marked(verdicts.passOn);
    case 'accept-decisively':
      return decide(number, verdicts);
    case 'drop':
      return marked(verdicts.drop);
    case 'reject':
      return marked(verdicts.reject);
  }
}

/**
 * A rule with limits does as `verdict` says while none is exceeded. Where the whole policy is in audit it does so beyond
 * them too, after a hit.
 */
export function withLimits(
  limits: RuleLimits,
  number: number,
  verdict: string,
  verdicts: Verdicts,
  scope: Scope,
  audit: boolean,
): string {
  const hit = (): string => `jump ${scope.add('limit_audit', limitLines(limits, verdicts.audit.limit))}`;
  const ask = audit ? [hit()] : limitLines(limits, verdicts.overLimit);
  return `meta mark set ${markText(ruleMark(number))} goto ${scope.add('limited', [...ask, verdict])}`;
}

/** A rule in audit: what its destinations match is counted and logged, once, and the walk goes on. */
export function auditLines(
  matches: string[],
  number: number,
  limits: RuleLimits | undefined,
  { audited, auditedOverLimit }: Verdicts,
  scope: Scope,
): string[] {
  const mark = `meta mark set ${markText(ruleMark(number))}`;
  const hit = limitsConnections(limits)
    ? scope.add('limited', [...limitLines(limits, auditedOverLimit), `goto ${audited}`])
    : audited;
  if (matches.length < 2) return matches.map((match) => `${match}${mark} jump ${hit}`);
  // A packet may lie in two sets.
  const lines = matches.map((match) => `${match}${mark} goto ${hit}`);
  return [`jump ${scope.add('audited', lines)}`];
}

/** Instead of a denial, where the whole policy is in audit: permitted in the name of what would have denied. */
export function letPass(reason: AuditReason, number: number, verdicts: Verdicts, scope: Scope): string {
  const hit = `meta mark set ${markText(ruleMark(number))} jump ${verdicts.audit[reason]}`;
  return `goto ${scope.add('let_pass', [hit, decide(number, verdicts)])}`;
}
