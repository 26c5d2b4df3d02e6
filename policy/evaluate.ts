/**
 * What a policy means for a flow (design §4.1–4.6, §4.7 redirect, §4.9): the one evaluator. `explain`, the workers, the re-check
 * of established flows and the tests' oracle call it, and the nftables compiler must agree with it on every packet.
 * The verdict is what becomes of the flow: under audit that is accept, and beside it stands what would have become.
 * decide and explain are one walk; explain only writes down what the walk saw. Of a flow that may have to be read first
 * there is another walk before it (provisional.ts).
 * Left out: what the data path does beside policy (hairpin, spoofing, cluster destinations), and whether a limit is
 * exceeded: a decision says which must hold.
 */

import { formatAddress, parseAddress } from '../api/address.ts';
import type { Context, Policy } from '../api/plan.ts';
import { contexts } from '../api/plan.ts';
import { must } from '../api/result.ts';
import type {
  AuditHit,
  CompiledRule,
  ContextOutcome,
  Decision,
  Explanation,
  Flow,
  Known,
  Reads,
  Step,
} from './decision.ts';
import type { Destination } from './destination.ts';
import { portOf } from './destination.ts';
import { describeContext, describeDecision, describeOpen } from './explain.ts';
import { describeMatch } from './explain-match.ts';
import { provisional, readsOf } from './provisional.ts';
import type { CompiledRedirect } from './redirect.ts';
import { redirectContexts, redirected, sendsElsewhere } from './redirect.ts';
import { denies, matchOf, NONE, OPEN, type Seen, type Source, sourcesOf, workloadsByAddress } from './sources.ts';

export type {
  AuditHit,
  ContextOutcome,
  Decision,
  Explanation,
  Flow,
  Known,
  Reads,
  RedirectTarget,
  Step,
} from './decision.ts';
export { workloadsByAddress } from './sources.ts';

export interface Evaluator {
  /** `known`: with a reading the decision is for good; without one it may be that the flow is to be read. */
  decide(flow: Flow, known?: Known): Decision;
  explain(flow: Flow, known?: Known): Explanation;
  /** What is to be read of the flow, should it be asked for. */
  reads(flow: Flow): Reads;
}

/** What a walk finds beside its end. */
interface Found {
  audited: AuditHit[];
  passed: string[];
  limits: string[];
  ports: Record<string, number>;
  unconforming: string[];
  questionsPerSecond: Record<string, number>;
  /** A rule that is enforced is open: had it been read, another could have decided. */
  open: boolean;
}

/** `workloadOf`: of the policy's workloads, by address; absent: they are looked through. */
export function compilePolicy(policy: Policy, workloadOf = workloadsByAddress(policy)): Evaluator {
  const defaultAction = 'pool' in policy.settings ? policy.settings.pool.defaultAction : 'Drop';
  const sourceOf = sourcesOf(policy, workloadOf);

  function decide(source: Source | undefined, destination: Destination, known?: Known): Decision {
    return isAsked(source, destination, known) ? unread : walk(source, destination, known);
  }

  const isAsked = (source: Source | undefined, destination: Destination, known?: Known): boolean =>
    source?.opens === true &&
    known?.reading === undefined &&
    provisional(source, destination, known, defaultAction).asks;

  function walk(source: Source | undefined, destination: Destination, known?: Known, seen?: Seen): Decision {
    if (source === undefined) return { verdict: 'drop', reason: 'unknown-source' };
    const found: Found = {
      audited: [],
      passed: [],
      limits: [],
      ports: {},
      unconforming: [],
      questionsPerSecond: {},
      open: false,
    };
    const { redirect, ...enforced } = walkRules(source, destination, found, known, seen);
    const { verdict } = enforced;
    const { audited, passed, limits, ports, unconforming, questionsPerSecond } = found;
    return {
      ...enforced,
      ...(source.audit && verdict !== 'accept' && { verdict: 'accept', wouldHave: verdict }),
      ...(limits.length > 0 && { limits }),
      ...(notEmpty(ports) && { ports }),
      ...(verdict === 'accept' && unconforming.length > 0 && { unconforming }),
      ...(notEmpty(questionsPerSecond) && { questionsPerSecond }),
      ...(known !== undefined && passed.length > 0 && { passed }),
      ...(audited.length > 0 && { audited }),
      ...(redirect && (source.audit ? { wouldRedirect: redirect } : { redirect })),
    };
  }

  /** Limits count a flow by the destination that the pod asked for: what a second walk matches is not among them. */
  function walkRules(
    source: Source,
    destination: Destination,
    found: Found,
    known: Known | undefined,
    seen: Seen | undefined,
  ): Decision {
    const { rules } = source;
    for (const context of contexts) {
      const rule = firstMatch(rules[context], destination, found, known, seen);
      if (rule === undefined) continue;
      const { action } = rule.entry;
      note(rule, destination, found, known);
      // Only in the service context does an accept permit; above it, it hands on.
      if (action === 'accept' && context !== 'service') {
        found.passed.push(rule.id);
        continue;
      }
      const named = { context, rule: rule.id };
      if (action === 'drop' || action === 'reject') return { verdict: action, reason: 'rule', ...named };
      const permitted: Decision = {
        verdict: 'accept',
        reason: action === 'accept' ? 'service-accept' : 'rule',
        ...named,
      };
      return rule.redirect === undefined ? permitted : redirect(rule, rule.redirect, permitted);
    }
    return { verdict: defaultAction === 'Accept' ? 'accept' : 'drop', reason: 'default-action' };

    /** The contexts above are asked again for the new destination. Who permitted need not permit it again. */
    function redirect(by: CompiledRule, where: CompiledRedirect, permitted: Decision): Decision {
      const to = redirected(where, destination);
      const { port } = to;
      const target = { by: by.id, address: formatAddress(to.address), ...(port !== undefined && { port }) };
      const refused = { verdict: 'drop', reason: 'redirect', wouldRedirect: target } as const;
      // A flow that is read goes where its handshake went; what should have been read may not go elsewhere unread.
      const read = known !== undefined && (known.reading !== undefined || isAsked(source, destination));
      if (where.forbidden !== undefined || found.open || read) return { ...permitted, ...refused };
      for (const context of redirectContexts) {
        const hits: Found = { ...found, audited: [] };
        const rule = firstMatch(rules[context], to, hits, undefined, seen, denies);
        // Of a second walk only what forbids is a hit: the flow has been counted once.
        found.audited.push(...hits.audited.filter(({ action }) => action === 'drop' || action === 'reject'));
        if (rule === undefined) continue;
        const { action } = rule.entry;
        if (action === 'accept') continue;
        const named = { context, rule: rule.id };
        if (action !== 'accept-decisively') {
          const said = rule.opens && matchOf(rule, to, undefined) === OPEN ? refused : undefined;
          return { verdict: action, reason: 'rule', ...named, wouldRedirect: target, ...said };
        }
        if (sendsElsewhere(rule.redirect, to)) return { ...refused, ...named };
        break;
      }
      return { ...permitted, redirect: target };
    }
  }

  return {
    decide: (flow, known) => decide(sourceOf(flow.source), destinationOf(flow), known),
    reads: (flow) => readsOf(sourceOf(flow.source), destinationOf(flow), defaultAction),
    explain(flow, known) {
      const source = sourceOf(flow.source);
      const destination = destinationOf(flow);
      const plain = traced(destination, known, (seen) => walk(source, destination, known, seen));
      const last = plain.steps.findLast((step) => step.matched && step.audit !== true);
      const ended = last?.action === 'accept' ? undefined : last?.context;
      const outcomes = outcomesOf(plain.steps, source !== undefined, ended);
      const { rules } = policy;
      const audit = source?.audit === true;
      const about = { defaultAction, flow, workload: source?.workload, rules, audit };
      const said: Explanation = {
        decision: plain.result,
        steps: plain.steps,
        contexts: outcomes,
        ...(plain.again.length > 0 && { again: plain.again }),
        summary: describeDecision(plain.result, outcomes, about),
        ...(source && { workload: source.key }),
      };
      if (source === undefined || !isAsked(source, destination, known)) return said;
      const { again: _, ...rest } = said;
      const open = traced(destination, known, (seen) => provisional(source, destination, known, defaultAction, seen));
      return {
        ...rest,
        decision: unread,
        steps: open.steps,
        contexts: outcomesOf(open.steps, true, open.result.ended, true),
        summary: describeOpen(open.open, destination, known, said.summary),
      };
    },
  };
}

const unread: Readonly<Decision> = Object.freeze({ provisional: true, verdict: 'accept', reason: 'unread' });

const notEmpty = (record: object): boolean => {
  for (const _ in record) return true;
  return false;
};

/**
 * Rules in audit that match on the way are added to `found`; what is open does not match, unless it is one of those
 * that `stops` an unread flow all the same.
 */
function firstMatch(
  rules: CompiledRule[],
  destination: Destination,
  found: Found,
  known: Known | undefined,
  seen?: Seen,
  stops?: (rule: CompiledRule) => boolean,
): CompiledRule | undefined {
  for (const rule of rules) {
    const service = matchOf(rule, destination, known);
    seen?.(rule, service, destination);
    if (service === NONE) continue;
    const { context, action, mode } = rule.entry;
    if (service === OPEN) {
      if (mode === 'Audit') continue;
      found.open = true;
      if (stops?.(rule) === true) return rule;
    } else if (mode !== 'Audit') return rule;
    else found.audited.push({ context, rule: rule.id, action });
  }
  return undefined;
}

/** What a rule that decides its context says beside its action. */
function note(rule: CompiledRule, destination: Destination, found: Found, known: Known | undefined): void {
  if (rule.entry.limits !== undefined) found.limits.push(rule.id);
  for (const { name, bandwidth, test } of rule.ports)
    if (test(destination, known) === 'match' || test(destination, known) === 'unconforming')
      found.ports[name] = bandwidth;
  if (!rule.opens || denies(rule)) return;
  const { name, test, match } = rule.services[matchOf(rule, destination, known)] ?? {};
  if (name === undefined || match === undefined) return;
  if (test?.(destination, known) === 'unconforming' && !found.unconforming.includes(name))
    found.unconforming.push(name);
  const questions = known?.reading && match.questionsPerSecond(destination, known.reading);
  if (questions !== undefined) found.questionsPerSecond[name] = questions;
}

/** What a walk saw, as steps. */
function traced<T>(destination: Destination, known: Known | undefined, run: (seen: Seen) => T) {
  const steps: Step[] = [];
  const again: Step[] = [];
  const open: CompiledRule[] = [];
  const result = run((rule, service, asked) => {
    const { context, action, mode } = rule.entry;
    const first = asked === destination;
    const isOpen = service === OPEN;
    if (isOpen && first) open.push(rule);
    (first ? steps : again).push({
      context,
      rule: rule.id,
      action,
      matched: service !== NONE && !isOpen,
      ...(isOpen && { open: true }),
      ...(mode === 'Audit' && { audit: true }),
      why: describeMatch(rule, asked, service, first ? known : undefined),
    });
  });
  return { result, steps, again, open };
}

/** `ended`: the context in which the walk did; `reached`: there was a walk; `asked`: what is open decides. */
function outcomesOf(steps: Step[], reached: boolean, ended: Context | undefined, asked = false): ContextOutcome[] {
  return contexts.map((context): ContextOutcome => {
    const considered = steps.filter((step) => step.context === context);
    const beyond = ended !== undefined && contexts.indexOf(context) > contexts.indexOf(ended);
    const matched = considered.find((step) => step.matched && step.audit !== true);
    const outcome = outcomeOf();
    const why = describeContext(context, outcome, matched, considered, ended);
    return { context, outcome, ...(matched && { rule: matched.rule }), why };

    function outcomeOf(): ContextOutcome['outcome'] {
      if (beyond || !reached) return 'not-reached';
      if (asked && considered.some(({ open, audit }) => open === true && audit !== true)) return 'open';
      if (matched === undefined) return 'no-match';
      return matched.action === 'accept' ? 'accepted' : 'decided';
    }
  });
}

function destinationOf(flow: Flow): Destination {
  const source = must(parseAddress(flow.source));
  const address = must(parseAddress(flow.destination));
  if (source.family !== address.family)
    throw new TypeError(`flow of two families: ${flow.source}, ${flow.destination}`);
  const port = portOf(address, flow);
  return { address, protocol: flow.protocol, ...(port !== undefined && { port }) };
}
