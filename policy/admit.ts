/**
 * One rule as it is written → as it is walked, and what its owner is told of it: resolved names, schedule, redirect,
 * limits. Pure. Left out: which pods it speaks of (bind-namespace.ts).
 */

import { parseBandwidth } from '../api/bandwidth.ts';
import { objectKey } from '../api/kinds.ts';
import { LABEL_TRUSTED_SERVICES } from '../api/names.ts';
import type { Context, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import type { AnyRule } from './applies.ts';
import { sourcesOf } from './applies.ts';
import type { ServiceEndpoints } from './endpoints.ts';
import { isRead } from './external-service.ts';
import { compareRules, qualifiedName } from './order.ts';
import type { KnownServices, RefusalReason, Resolution, ServiceCatalog, Watched } from './reference.ts';
import { isUnchanged, serviceName } from './reference.ts';
import type { ScheduleState } from './schedule.ts';
import { describeSchedule, scheduleState } from './schedule.ts';

export interface RuleCondition {
  objectKey: string;
  type: 'Accepted';
  status: 'True' | 'False';
  reason:
    | 'Accepted'
    | 'OutOfSchedule'
    | 'NoEndpoints'
    | 'ForeignEndpoint'
    | 'RedirectForbidden'
    | 'RedirectNeedsAddresses'
    | 'LimitNeedsAddresses'
    | RefusalReason;
  message: string;
  /** Of a rule that has one. */
  schedule?: ScheduleState;
}

/** A rule among others of its context. */
export interface BoundRule {
  id: string;
  rule: AnyRule;
  /** Accepted, and within its schedule. */
  inForce: boolean;
}

/** Rules of one context, of one namespace or of the cluster. */
export interface AdmittedRules {
  /** Accepted ones, within their schedule or not: their lists are kept for the time when they are again. */
  rules: Record<string, RuleEntry>;
  /** That `rules` name. */
  services: Record<string, ServiceEntry>;
  /** One a rule, in the order in which they were given. */
  conditions: RuleCondition[];
  /** All, in walking order. */
  bound: BoundRule[];
  /** What of the surroundings this was made of, beside the objects: see `stillHold`. */
  schedules: [schedule: NonNullable<AnyRule['spec']['schedule']>, state: ScheduleState | undefined][];
  redirects: [address: string, forbidden: string | undefined][];
  watched: readonly Watched[];
}

export interface AdmitInput {
  context: Context;
  rules: readonly AnyRule[];
  catalog: ServiceCatalog;
  endpoints: ReadonlyMap<string, ServiceEndpoints>;
  forbids?: ((address: string, context: Context) => string | undefined) | undefined;
  now: number;
}

/** `before`: what was made last of these or other rules; entries that are equal are taken from it. */
export function admit(input: AdmitInput, before?: AdmittedRules): AdmittedRules {
  const { context, catalog, endpoints } = input;
  const result: AdmittedRules = {
    rules: {},
    services: {},
    conditions: [],
    bound: [],
    schedules: [],
    redirects: [],
    watched: [],
  };
  const known = new Map(before?.conditions.map((condition) => [condition.objectKey, condition]));
  const boundBefore = new Map(before?.bound.map((bound) => [bound.id, bound]));
  for (const rule of input.rules) {
    const { metadata, spec } = rule;
    const tenant = context === 'cluster' ? {} : { namespace: metadata.namespace ?? '' };
    const resolution = catalog.resolve({ ...tenant, action: spec.action, names: spec.externalServices });
    const schedule = scheduleState(spec.schedule, input.now);
    if (spec.schedule !== undefined) result.schedules.push([spec.schedule, schedule]);
    const forbidden = spec.redirect && input.forbids?.(spec.redirect.address, context);
    if (spec.redirect !== undefined) result.redirects.push([spec.redirect.address, forbidden]);
    const tooLate = resolution.ok ? needsAddresses(rule, context, resolution.services, catalog) : undefined;
    const condition = tooLate ?? conditionOf(rule, resolution, endpoints, schedule, forbidden);
    result.conditions.push(stable(known.get(condition.objectKey), condition));
    const id = `${context}/${qualifiedName(metadata)}`;
    const inForce = resolution.ok && tooLate === undefined && schedule?.open !== false;
    const was = boundBefore.get(id);
    result.bound.push(was?.rule === rule && was.inForce === inForce ? was : { id, rule, inForce });
    if (!resolution.ok || tooLate !== undefined) continue;
    const { action, priority, mode, logging } = spec;
    const { services } = resolution;
    const audit = mode === 'Audit' && { mode };
    const redirect = spec.redirect && { redirect: { ...spec.redirect, ...(forbidden && { forbidden }) } };
    const more = { ...(logging !== 'Decisions' && { logging }), ...redirect, ...limitsOf(spec) };
    const entry = { context, ...tenant, name: metadata.name, action, ...audit, priority, services, ...more };
    result.rules[id] = stable(before?.rules[id], entry);
    for (const key of services === '*' ? [] : services) {
      const service = catalog.entry(key);
      result.services[key] = stable(before?.services[key], service);
    }
  }
  result.bound.sort((a, b) => compareRules(a.rule, b.rule));
  return { ...result, watched: catalog.watched() };
}

/** Whether the same objects would give the same now. */
export function stillHold(
  { schedules, redirects, watched }: AdmittedRules,
  context: Context,
  { forbids, now, known }: Pick<AdmitInput, 'forbids' | 'now'> & { known: KnownServices },
): boolean {
  // Of most rules there is nothing to ask, and there are many.
  return (
    (watched.length === 0 || watched.every((one) => isUnchanged(one, known))) &&
    (schedules.length === 0 || schedules.every(([schedule, state]) => sameJson(scheduleState(schedule, now), state))) &&
    (redirects.length === 0 || redirects.every(([address, forbidden]) => forbids?.(address, context) === forbidden))
  );
}

/** The value that there was before, if the new one is equal: whoever compares finds it by identity. */
export const stable = <T>(before: T | undefined, now: T): T =>
  before !== undefined && sameJson(before, now) ? before : now;

/**
 * What a rule asks that must be known of a flow at its first packet, where names or bytes decide whether it matches: where
 * it goes, and what it has used up of limits that are not the deciding rule's (that one counts what it was decided to be).
 * Nor does the kernel count among living connections (nf_conncount) one that it has seen before.
 */
function needsAddresses(
  rule: AnyRule,
  context: Context,
  services: string[] | '*',
  catalog: ServiceCatalog,
): RuleCondition | undefined {
  const { redirect, mode, action } = rule.spec;
  const audit = mode === 'Audit';
  const handsOn = action === 'accept' && context !== 'service';
  const limits = (['connectionsPerSecond', 'maxConnections', 'bandwidth'] as const).filter(
    // In audit no bandwidth is limited.
    (field) =>
      rule.spec[field] !== undefined && (field === 'maxConnections' || (audit ? field !== 'bandwidth' : handsOn)),
  );
  if (services === '*') return undefined;
  const read = services.filter((key) => isRead(catalog.entry(key)));
  if (read.length === 0) return undefined;
  const permits = !handsOn && !audit && (action === 'accept' || action === 'accept-decisively');
  const shared = permits && read.length > 1 ? read.filter((key) => isNamedAndLimited(catalog.entry(key))) : [];
  if (redirect === undefined && limits.length === 0 && shared.length === 0) return undefined;
  const which = `external service ${read.map(serviceName).join(', ')} has names or appProtocol`;
  const condition = { objectKey: objectKey(rule), type: 'Accepted', status: 'False' } as const;
  if (redirect !== undefined) {
    const message = `redirect: ${which}, and where a flow goes must be known at its first packet; name services of addresses and ports alone`;
    return { ...condition, reason: 'RedirectNeedsAddresses', message };
  }
  if (limits.length === 0) {
    const message = `bandwidth of a port of ${shared.map(serviceName).join(', ')}: ${which}, and of a flow only the rule is kept that permitted it; give each of these external services a rule of its own`;
    return { ...condition, reason: 'LimitNeedsAddresses', message };
  }
  const decides = audit || handsOn ? '' : 'connections are counted at their first packet';
  const why = decides || (audit ? 'the rule is in audit' : 'the rule hands on, and decides nothing');
  const instead = handsOn ? ', or put the limit on the rule that permits' : '';
  const message = `${limits.join(', ')}: ${which}, and ${why}: name services of addresses and ports alone${instead}`;
  return { ...condition, reason: 'LimitNeedsAddresses', message };
}

/** By address it would be known whose flow it is. */
const isNamedAndLimited = ({ names, limits }: ServiceEntry): boolean => names !== undefined && limits !== undefined;

function conditionOf(
  rule: AnyRule,
  resolution: Resolution,
  endpoints: ReadonlyMap<string, ServiceEndpoints>,
  schedule: ScheduleState | undefined,
  forbidden: string | undefined,
): RuleCondition {
  const condition = { objectKey: objectKey(rule), type: 'Accepted', ...(schedule && { schedule }) } as const;
  if (!resolution.ok) return { ...condition, status: 'False', reason: resolution.reason, message: resolution.message };

  if (forbidden !== undefined) {
    const message = `redirect.address ${rule.spec.redirect?.address}: ${forbidden}; what the rule would permit is dropped`;
    return { ...condition, status: 'False', reason: 'RedirectForbidden', message };
  }
  const remarks: { reason: RuleCondition['reason']; message: string }[] = [];
  if (schedule?.open === false) remarks.push({ reason: 'OutOfSchedule', message: describeSchedule(schedule) });
  if (resolution.missing.length > 0) {
    const { action } = rule.spec;
    const effect = action === 'drop' || action === 'reject' ? 'the last list stays in force' : 'it matches nothing';
    const message = `external service ${resolution.missing.join(', ')} not found: ${effect}`;
    remarks.push({ reason: 'ExternalServiceNotFound', message });
  }
  if (resolution.unread.length > 0) {
    const { action } = rule.spec;
    const effect = action === 'drop' || action === 'reject' ? 'what was in force stays' : 'it matches the rest';
    const message = `a list of external service ${resolution.unread.join(', ')} was never read: ${effect}`;
    remarks.push({ reason: 'ListNotRead', message });
  }
  if (resolution.withdrawn.length > 0) {
    const message = `external service ${resolution.withdrawn.join(', ')}: its namespace is not labelled ${LABEL_TRUSTED_SERVICES}: "true": the last list stays in force`;
    remarks.push({ reason: 'UntrustedNamespace', message });
  }
  if (rule.kind === 'ServiceEgressRule') {
    const { service } = rule.spec;
    const foreign = [...(endpoints.get(`${rule.metadata.namespace ?? ''}/${service}`)?.foreign ?? [])].sort();
    if (foreign.length > 0) {
      const shown =
        foreign.length > 5 ? `${foreign.slice(0, 5).join(', ')} and ${foreign.length - 5} more` : foreign.join(', ');
      remarks.push({ reason: 'ForeignEndpoint', message: `no pod of the namespace, ignored: ${shown}` });
    }
    if ((sourcesOf(rule, endpoints)?.size ?? 0) === 0) {
      remarks.push({ reason: 'NoEndpoints', message: `service ${service} lists no pod, so the rule has no source` });
    }
  }
  return {
    ...condition,
    status: 'True',
    reason: remarks[0]?.reason ?? 'Accepted',
    message: remarks.map(({ message }) => message).join('; ') || inForce(rule, schedule),
  };
}

function limitsOf({ connectionsPerSecond, maxConnections, bandwidth }: AnyRule['spec']): Pick<RuleEntry, 'limits'> {
  if (connectionsPerSecond === undefined && maxConnections === undefined && bandwidth === undefined) return {};
  return {
    limits: {
      ...(connectionsPerSecond !== undefined && { connectionsPerSecond }),
      ...(maxConnections !== undefined && { maxConnections }),
      ...(bandwidth !== undefined && { bandwidth: parseBandwidth(bandwidth) }),
    },
  };
}

function inForce({ spec }: AnyRule, schedule: ScheduleState | undefined): string {
  const state =
    spec.mode === 'Audit' ? 'the rule is in audit: what it matches is counted and logged' : 'the rule is in force';
  return schedule === undefined ? state : `${state}; ${describeSchedule(schedule)}`;
}
