/**
 * The evaluator's walk in plain words (design §4.4, §9): why a rule matched or not, what became of a context, and the
 * decision in a sentence. Wording only; evaluate.ts decides. `why` texts start in lower case and have no full stop.
 */

import { formatAddress } from '../api/address.ts';
import { icmpText, isIcmp } from '../api/kinds.ts';
import type { Context, Policy, WorkloadEntry } from '../api/plan.ts';
import type { CompiledRule, ContextOutcome, Decision, Flow, RedirectTarget, Step } from './decision.ts';
import type { Destination } from './destination.ts';
import { protocolName } from './destination.ts';
import { bandwidthsText, connectionLimitsText } from './limits.ts';
import { canRedirect } from './redirect.ts';

/** `service`: index of the external service that matched, negative if none did. */
export function describeMatch(rule: CompiledRule, destination: Destination, service: number): string {
  const flow = { destination: formatAddress(destination.address) };
  if (rule.redirect !== undefined && !canRedirect(rule.redirect, destination)) {
    return `it redirects to ${formatAddress(rule.redirect.address)}, so it matches only TCP, UDP and SCTP of IPv${rule.redirect.address.family}`;
  }
  if (rule.entry.services === '*') return 'the rule names any destination';
  const matched = rule.services[service];
  if (matched) return `${traffic(destination)} to ${flow.destination} is in external service ${matched.name}`;
  if (rule.services.length === 0) return 'none of the external services that the rule names exists';

  const reasons: string[] = [];
  const elsewhere: string[] = [];
  for (const { name, test } of rule.services) {
    if (test === undefined) {
      reasons.push(`external service ${name} does not exist`);
      continue;
    }
    const probe = test(destination);
    if (probe === 'address') elsewhere.push(name);
    else if (probe === 'protocol') {
      reasons.push(
        `${flow.destination} is in external service ${name}, but not with ${protocolName(destination.protocol)}`,
      );
    } else reasons.push(`${flow.destination} is in external service ${name}, but not with ${traffic(destination)}`);
  }
  const [only] = elsewhere;
  if (only !== undefined) {
    const which =
      elsewhere.length === 1
        ? `not in external service ${only}`
        : `in none of the ${elsewhere.length}${reasons.length > 0 ? ' other' : ''} external services`;
    reasons.push(`destination ${flow.destination} is ${which}`);
  }
  return reasons.join('; ');
}

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
      return considered.length === 1
        ? 'its only rule does not match'
        : `none of its ${considered.length} rules matches`;
    case 'accepted':
      return context === 'service'
        ? `${matched?.rule} accepts, which permits the flow`
        : `${matched?.rule} accepts, which hands on to the next context and permits nothing by itself`;
    case 'decided':
      return `${matched?.rule} says ${matched?.action}, which ends the walk`;
  }
}

export function describeDecision(
  decision: Decision,
  outcomes: ContextOutcome[],
  defaultAction: 'Drop' | 'Accept',
  flow: Flow,
  workload: WorkloadEntry | undefined,
  { rules, audit, forbidden }: { rules: Policy['rules']; audit: boolean; forbidden: string | undefined },
): string {
  const { wouldHave, audited = [], ...rest } = decision;
  const enforced = { ...rest, verdict: wouldHave ?? rest.verdict };
  const end =
    describeRedirect(enforced, workload, forbidden) ?? describeEnd(enforced, outcomes, defaultAction, flow, workload);
  const whole =
    wouldHave === undefined
      ? end
      : `Accepted, since the policy of namespace ${workload?.namespace} is in audit (by its label or its GatewayPool); else: ${end.charAt(0).toLowerCase()}${end.slice(1)}`;
  const beyond = audit ? 'counted and logged' : 'dropped (limit)';
  const { verdict, limits = [], ports = {} } = decision;
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
        ].join(' ');
  if (audited.length === 0) return bounded;
  const skipped = new Set(audited.map(({ rule, action }) => `${rule} (${action})`));
  return `${bounded} In audit, so skipped: ${[...skipped].join(', ')}.`;
}

/** `forbidden`: why the redirect is, whatever the rules say. */
function describeRedirect(
  { verdict, reason, context, rule, redirect, wouldRedirect }: Decision,
  workload: WorkloadEntry | undefined,
  forbidden: string | undefined,
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
  if (forbidden !== undefined) return `Dropped: ${wish}, which is forbidden: ${forbidden}.`;
  return `Dropped: ${wish}, but what goes there ${rule} would redirect again; a flow is redirected once.`;
}

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

const verdicts = { accept: 'Accepted', drop: 'Dropped', reject: 'Rejected' } as const;

function traffic({ protocol, port }: Destination): string {
  const name = protocolName(protocol);
  if (port === undefined) return name;
  return isIcmp(protocol) ? `${name} type ${icmpText(port)}` : `${name} port ${port}`;
}
