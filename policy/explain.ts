/**
 * The evaluator's walk in plain words (design §4.4, §9): what became of a context, and the decision in a sentence; why a
 * rule matched is explain-match.ts's. Wording only; evaluate.ts decides. `why` texts start in lower case and have no full stop.
 */

import type { Context, Policy, RuleEntry, WorkloadEntry } from '../api/plan.ts';
import type { CompiledRule, ContextOutcome, Decision, Flow, Known, RedirectTarget, Step } from './decision.ts';
import type { Destination } from './destination.ts';
import { openFor } from './explain-match.ts';
import { bandwidthsText, connectionLimitsText } from './limits.ts';

/** `ended`: the context in which a rule ended the walk. */
export function describeContext(
  context: Context,
  outcome: ContextOutcome['outcome'],
  matched: Step | undefined,
  considered: readonly Step[],
  ended: Context | undefined,
): string {
  switch (outcome) {
    case 'not-reached':
      return ended ? `the walk ended in the ${ended} context` : 'the source is no workload, so no rule applies to it';
    case 'no-match':
      if (considered.length === 0) return `no rule of the ${context} context applies to this workload`;
      if (considered.some((step) => step.matched)) return 'only rules in audit match, which are skipped';
      if (considered.some((step) => step.open))
        return 'no rule matches without its bytes being read, which would change nothing';
      return considered.length === 1
        ? 'its only rule does not match'
        : `none of its ${considered.length} rules matches`;
    case 'open': {
      const open = considered.filter((step) => step.open && step.audit !== true).map(({ rule }) => rule);
      const end = matched === undefined ? '' : `; if none does, ${matched.rule} says ${matched.action}`;
      return `what its first bytes say decides whether ${listed(open)} match${open.length === 1 ? 'es' : ''}${end}`;
    }
    case 'accepted':
      return context === 'service'
        ? `${matched?.rule} accepts, which permits the flow`
        : `${matched?.rule} accepts, which hands on to the next context and permits nothing by itself`;
    case 'decided':
      return `${matched?.rule} says ${matched?.action}, which ends the walk`;
  }
}

/** What the words of a decision are about. */
export interface About {
  defaultAction: 'Drop' | 'Accept';
  flow: Flow;
  workload: WorkloadEntry | undefined;
  rules: Policy['rules'];
  /** Of the whole policy of the source. */
  audit: boolean;
}

/** Of a flow that is to be read: what would decide, and `otherwise`, what becomes of it if none of that is read. */
export function describeOpen(
  open: readonly CompiledRule[],
  destination: Destination,
  known: Known | undefined,
  otherwise: string,
): string {
  const rules = open.map((rule) => {
    const audit = rule.entry.mode === 'Audit' ? ', in audit' : '';
    return `${rule.id} (${rule.entry.action}${audit}): ${openFor(rule, destination, known)}`;
  });
  return `Its first bytes decide, so it may begin and is read. Open are ${rules.join('; ')}. If none of these matches: ${lowered(otherwise)}`;
}

const lowered = (text: string): string => text.charAt(0).toLowerCase() + text.slice(1);

export function describeDecision(
  decision: Decision,
  outcomes: ContextOutcome[],
  { defaultAction, flow, workload, rules, audit }: About,
): string {
  const { wouldHave, audited = [], ...rest } = decision;
  const enforced = { ...rest, verdict: wouldHave ?? rest.verdict };
  const end =
    describeRedirect(enforced, workload, rules) ?? describeEnd(enforced, outcomes, defaultAction, flow, workload);
  const whole =
    wouldHave === undefined
      ? end
      : `Accepted, since the policy of namespace ${workload?.namespace} is in audit (by its label or its GatewayPool); else: ${lowered(end)}`;
  const beyond = audit ? 'counted and logged' : 'dropped (limit)';
  const { verdict, limits = [], ports = {}, unconforming = [], questionsPerSecond = {} } = decision;
  const connections = connectionLimitsText(limits, rules);
  // In audit of the whole policy nothing waits.
  const bandwidths = audit ? '' : bandwidthsText(limits, ports, rules);
  const bounded =
    verdict !== 'accept'
      ? whole
      : [
          whole,
          ...(connections === '' ? [] : [`Limited by ${connections}: what is beyond is ${beyond}.`]),
          ...(bandwidths === '' ? [] : [`Bandwidth of ${bandwidths}: what is beyond waits.`]),
          ...Object.entries(questionsPerSecond).map(
            ([name, rate]) =>
              `Of one source ${rate} questions a second (external service ${name}): what is beyond is ${beyond}.`,
          ),
          ...(unconforming.length === 0
            ? []
            : [
                `Not the protocol that is asked for, which is counted (conformance: Audit): ${unconforming.join(', ')}.`,
              ]),
        ].join(' ');
  if (audited.length === 0) return bounded;
  const skipped = new Set(audited.map(({ rule, action }) => `${rule} (${action})`));
  return `${bounded} In audit, so skipped: ${[...skipped].join(', ')}.`;
}

function describeRedirect(
  { verdict, reason, context, rule, redirect, wouldRedirect }: Decision,
  workload: WorkloadEntry | undefined,
  rules: Policy['rules'],
): string | undefined {
  const by = `by ${rule} in the ${context} context`;
  if (redirect !== undefined) return `Accepted ${by}, and redirected to ${targetText(redirect)}.`;
  if (wouldRedirect === undefined) return undefined;
  const to = targetText(wouldRedirect);
  if (verdict === 'accept') {
    return `Accepted ${by}, and not redirected to ${to}, since the policy of namespace ${workload?.namespace} is in audit (by its label or its GatewayPool).`;
  }
  const wish = `${wouldRedirect.by} redirects it to ${to}`;
  if (reason === 'rule') return `${verdicts[verdict]} ${by}, which is asked again: ${wish}.`;
  const forbidden = rules[wouldRedirect.by]?.redirect?.forbidden;
  if (forbidden !== undefined) return `Dropped: ${wish}, which is forbidden: ${forbidden}.`;
  if (rule === wouldRedirect.by)
    return `Dropped: ${wish}, but a flow whose first bytes decide is read, and cannot be redirected.`;
  if (isVeto(rules[rule ?? ''])) {
    return `Dropped: ${wish}, but whether ${rule} forbids that its first bytes decide, and what is redirected is not read.`;
  }
  return `Dropped: ${wish}, but what goes there ${rule} would redirect again; a flow is redirected once.`;
}

const isVeto = (rule: RuleEntry | undefined): boolean => rule?.action === 'drop' || rule?.action === 'reject';

const targetText = ({ address, port }: RedirectTarget): string =>
  port === undefined ? address : `${address} port ${port}`;

function describeEnd(
  decision: Decision,
  outcomes: ContextOutcome[],
  defaultAction: 'Drop' | 'Accept',
  flow: Flow,
  workload: WorkloadEntry | undefined,
): string {
  switch (decision.reason) {
    case 'rule':
    case 'service-accept':
      return `${verdicts[decision.verdict]} by ${decision.rule} in the ${decision.context} context.`;
    case 'default-action':
      break;
    default:
      return `Dropped: ${flow.source} is an address of no workload.`;
  }
  const end = `${verdicts[decision.verdict]} by the pool's default action (${defaultAction})`;
  const handedOn = outcomes.filter(({ outcome }) => outcome === 'accepted').map(({ context }) => context);
  if (handedOn.length === 0) return `${end}: no rule of any context matches.`;
  const remedy =
    workload?.services.length === 0
      ? ' The workload is in no Service, so no service rule can accept it; an accept-decisively rule could.'
      : '';
  const where = handedOn.length === 2 ? 'cluster and namespace contexts' : `${handedOn[0]} context`;
  return `${end}: accept in the ${where} alone permits nothing, and no service rule accepts.${remedy}`;
}

/** `a`, `a and b`, `a, b and c`. */
const listed = (list: readonly string[]): string =>
  list.length < 2 ? list.join('') : `${list.slice(0, -1).join(', ')} and ${list.at(-1)}`;

const verdicts = { accept: 'Accepted', drop: 'Dropped', reject: 'Rejected' } as const;
