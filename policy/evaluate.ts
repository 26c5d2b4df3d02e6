/**
 * What a policy means for a flow (design §4.1–4.4, §4.7 redirect, §4.9): the one evaluator. `explain`, the re-check of established
 * flows and the tests' oracle call it, and the nftables compiler must agree with it on every packet.
 * The verdict is what becomes of the flow: under audit that is accept, and beside it stands what would have become.
 * decide and explain are one walk; explain only writes down what the walk saw.
 * Left out: what the data path does beside policy (hairpin, spoofing, cluster destinations), names, and whether a limit is
 * exceeded: a decision says which must hold.
 */

import { formatAddress, parseAddress } from '../api/address.ts';
import type { Context, Policy, ServiceEntry, WorkloadEntry } from '../api/plan.ts';
import { contexts } from '../api/plan.ts';
import { must } from '../api/result.ts';
import type { AuditHit, CompiledRule, ContextOutcome, Decision, Explanation, Flow, Step } from './decision.ts';
import type { Destination } from './destination.ts';
import { compileService, portOf } from './destination.ts';
import { describeContext, describeDecision, describeMatch } from './explain.ts';
import type { CompiledRedirect } from './redirect.ts';
import { canRedirect, compileRedirect, redirectContexts, redirected, sendsElsewhere } from './redirect.ts';

export type { AuditHit, ContextOutcome, Decision, Explanation, Flow, RedirectTarget, Step } from './decision.ts';

export interface Evaluator {
  decide(flow: Flow): Decision;
  explain(flow: Flow): Explanation;
}

/** What the walk saw of one rule; `service` is the index of the one that matched, `asked` what was asked for. */
type Seen = (rule: CompiledRule, matched: boolean, service: number, asked: Destination) => void;

interface Source {
  key: string;
  workload: WorkloadEntry;
  rules: Record<Context, CompiledRule[]>;
  /** Its whole policy is in audit. */
  audit: boolean;
}

const ANY = 0;
const NONE = -1;

/** `workloadOf`: of the policy's workloads, by address; absent: they are looked through. */
export function compilePolicy(policy: Policy, workloadOf = workloadsByAddress(policy)): Evaluator {
  const defaultAction = 'pool' in policy.settings ? policy.settings.pool.defaultAction : 'Drop';
  const sourceOf = sourcesOf(policy, workloadOf);
  /** Why nothing may go there in the name of the rule that redirects. */
  const forbiddenBy = ({ wouldRedirect }: Decision): string | undefined =>
    wouldRedirect && policy.rules[wouldRedirect.by]?.redirect?.forbidden;

  function walk(source: Source | undefined, destination: Destination, seen?: Seen): Decision {
    if (source === undefined) return { verdict: 'drop', reason: 'unknown-source' };
    const audited: AuditHit[] = [];
    const { redirect, ...enforced } = walkContexts(source.rules, destination, audited, seen);
    const { verdict } = enforced;
    return {
      ...enforced,
      ...(source.audit && verdict !== 'accept' && { verdict: 'accept', wouldHave: verdict }),
      ...(audited.length > 0 && { audited }),
      ...(redirect && (source.audit ? { wouldRedirect: redirect } : { redirect })),
    };
  }

  function walkContexts(rules: Source['rules'], destination: Destination, audited: AuditHit[], seen?: Seen): Decision {
    const limits: string[] = [];
    const ports: Record<string, number> = {};
    const decision = walkRules(rules, destination, audited, { limits, ports }, seen);
    return {
      ...decision,
      ...(limits.length > 0 && { limits }),
      ...(Object.keys(ports).length > 0 && { ports }),
    };
  }

  /** Limits count a flow by the destination that the pod asked for: what a second walk matches is not among them. */
  function walkRules(
    rules: Source['rules'],
    destination: Destination,
    audited: AuditHit[],
    { limits, ports }: Required<Pick<Decision, 'limits' | 'ports'>>,
    seen?: Seen,
  ): Decision {
    for (const context of contexts) {
      const rule = firstMatch(rules[context], destination, audited, seen);
      if (rule === undefined) continue;
      const { action } = rule.entry;
      if (rule.entry.limits !== undefined) limits.push(rule.id);
      for (const { name, bandwidth, test } of rule.ports) if (test(destination) === 'match') ports[name] = bandwidth;
      // Only in the service context does an accept permit; above it, it hands on.
      if (action === 'accept' && context !== 'service') continue;
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
      if (where.forbidden !== undefined) return { ...permitted, ...refused };
      for (const context of redirectContexts) {
        const hits: AuditHit[] = [];
        const rule = firstMatch(rules[context], to, hits, seen);
        // Of a second walk only what forbids is a hit: the flow has been counted once.
        audited.push(...hits.filter(({ action }) => action === 'drop' || action === 'reject'));
        if (rule === undefined) continue;
        const { action } = rule.entry;
        if (action === 'accept') continue;
        const named = { context, rule: rule.id };
        if (action !== 'accept-decisively') {
          return { verdict: action, reason: 'rule', ...named, wouldRedirect: target };
        }
        if (sendsElsewhere(rule.redirect, to)) return { ...refused, ...named };
        break;
      }
      return { ...permitted, redirect: target };
    }
  }

  return {
    decide: (flow) => walk(sourceOf(flow.source), destinationOf(flow)),
    explain(flow) {
      const source = sourceOf(flow.source);
      const destination = destinationOf(flow);
      const steps: Step[] = [];
      const again: Step[] = [];
      const decision = walk(source, destination, (rule, matched, service, asked) => {
        const { context, action, mode } = rule.entry;
        const audit = mode === 'Audit' && ({ audit: true } as const);
        const why = describeMatch(rule, asked, service);
        (asked === destination ? steps : again).push({ context, rule: rule.id, action, matched, ...audit, why });
      });
      const outcomes = contexts.map((context) => outcomeOf(context, steps, decision));
      return {
        decision,
        steps,
        contexts: outcomes,
        ...(again.length > 0 && { again }),
        summary: describeDecision(decision, outcomes, defaultAction, flow, source?.workload, {
          rules: policy.rules,
          audit: source?.audit === true,
          forbidden: forbiddenBy(decision),
        }),
        ...(source && { workload: source.key }),
      };
    },
  };
}

/** Rules in audit that match on the way are added to `audited`. */
function firstMatch(
  rules: CompiledRule[],
  destination: Destination,
  audited: AuditHit[],
  seen?: Seen,
): CompiledRule | undefined {
  for (const rule of rules) {
    const service = matchingService(rule, destination);
    seen?.(rule, service !== NONE, service, destination);
    if (service === NONE) continue;
    const { context, action, mode } = rule.entry;
    if (mode !== 'Audit') return rule;
    audited.push({ context, rule: rule.id, action });
  }
  return undefined;
}

function matchingService(rule: CompiledRule, destination: Destination): number {
  if (rule.redirect !== undefined && !canRedirect(rule.redirect, destination)) return NONE;
  if (rule.entry.services === '*') return ANY;
  return rule.services.findIndex(({ test }) => test?.(destination) === 'match');
}

function outcomeOf(context: Context, steps: Step[], decision: Decision): ContextOutcome {
  const matched = steps.find((step) => step.context === context && step.matched && step.audit !== true);
  const last = steps.findLast((step) => step.matched && step.audit !== true);
  const ended = last?.action === 'accept' ? undefined : last?.context;
  const beyond = ended !== undefined && contexts.indexOf(context) > contexts.indexOf(ended);
  const reached = !beyond && decision.reason !== 'unknown-source';
  const outcome = !reached
    ? 'not-reached'
    : !matched
      ? 'no-match'
      : matched.action === 'accept'
        ? 'accepted'
        : 'decided';
  const considered = steps.filter((step) => step.context === context);
  const why = describeContext(context, outcome, matched, considered, ended);
  return { context, outcome, ...(matched && { rule: matched.rule }), why };
}

/**
 * Who sends from an address and which rules can apply to it. Of a policy of 100,000 rules a few are asked for: each is
 * made ready when it is needed first.
 */
function sourcesOf(policy: Policy, workloadOf: (address: string) => WorkloadEntry | undefined) {
  const service = once((name: string) => {
    const entry = own(policy.services, name);
    return { name, test: entry && compileService(entry) };
  });
  const rule = once((id: string): CompiledRule => {
    const entry = own(policy.rules, id) ?? missing('rule', id);
    const redirect = entry.redirect && { redirect: compileRedirect(entry.redirect) };
    const names = entry.services === '*' ? [] : entry.services;
    // What lets nothing through has nothing to limit.
    const accepts = entry.action === 'accept' || entry.action === 'accept-decisively';
    const ports = accepts ? names.flatMap((name) => portsOf(name, own(policy.services, name))) : [];
    return { id, entry, services: names.map(service), ports, ...redirect };
  });
  const group = once((key: string) => {
    const { rules, audit } = own(policy.groups, key) ?? missing('group', key);
    const { cluster, namespace, service: last } = rules;
    const compiled = { cluster: cluster.map(rule), namespace: namespace.map(rule), service: last.map(rule) };
    return { rules: compiled, audit: audit === true };
  });
  return (address: string): Source | undefined => {
    const workload = workloadOf(address);
    return workload && { key: workload.uid, workload, ...group(workload.group) };
  };
}

const own = <T>(collection: Record<string, T>, key: string): T | undefined =>
  Object.hasOwn(collection, key) ? collection[key] : undefined;

function once<T>(make: (key: string) => T): (key: string) => T {
  const made = new Map<string, T>();
  return (key) => {
    let known = made.get(key);
    if (known === undefined) {
      known = make(key);
      made.set(key, known);
    }
    return known;
  };
}

/** Who sends from an address; nobody, should two claim it (gateway/sources.ts). */
export function workloadsByAddress({
  workloads,
}: Pick<Policy, 'workloads'>): (address: string) => WorkloadEntry | undefined {
  const found = new Map<string, WorkloadEntry | undefined>();
  for (const workload of Object.values(workloads))
    for (const address of workload.addresses) found.set(address, found.has(address) ? undefined : workload);
  return (address) => found.get(address);
}

/** Ports of a service that have a limit. */
function portsOf(service: string, entry: ServiceEntry | undefined): CompiledRule['ports'] {
  if (entry === undefined) return [];
  return (entry.limits ?? []).map((limit) => ({
    name: `port ${limit.name} of ${service}`,
    bandwidth: limit.bandwidth,
    test: compileService({ ...entry, ports: [limit] }),
  }));
}

/** A plan that names what it does not hold must not come into force: half a policy may permit what all of it forbids. */
function missing(what: string, name: string): never {
  throw new TypeError(`policy: no ${what} ${JSON.stringify(name)}`);
}

function destinationOf(flow: Flow): Destination {
  const source = must(parseAddress(flow.source));
  const address = must(parseAddress(flow.destination));
  if (source.family !== address.family)
    throw new TypeError(`flow of two families: ${flow.source}, ${flow.destination}`);
  const port = portOf(address, flow);
  return { address, protocol: flow.protocol, ...(port !== undefined && { port }) };
}
