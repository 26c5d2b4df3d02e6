/**
 * From what people wrote to what is walked: rules, the external services they name, and for every pod the ordered
 * rules of each context that can apply to it (design §3 rule, §4.1–4.2). Pods with the same lists share a *group*, so
 * that a pod coming or going changes no rule. Pure: the same objects in any order give the same binding.
 * Left out: which pods a pool carries, and egress IPs (controller/).
 */

import { createHash } from 'node:crypto';
import type {
  ClusterEgressRule,
  EndpointSlice,
  ExternalService,
  Namespace,
  NamespaceEgressRule,
  Pod,
  Service,
  ServiceEgressRule,
} from '../api/kinds.ts';
import { objectKey } from '../api/kinds.ts';
import type { Context, GroupEntry, RuleEntry, ServiceEntry } from '../api/plan.ts';
import type { AnyRule } from './applies.ts';
import { excludes, selectsNamespace, sourcesOf } from './applies.ts';
import type { ServiceEndpoints } from './endpoints.ts';
import { endpointsOf, isSource, podKey } from './endpoints.ts';
import type { KnownLists } from './external-service.ts';
import { compareRules, qualifiedName } from './order.ts';
import type { RefusalReason, Resolution } from './reference.ts';
import { serviceCatalog } from './reference.ts';
import type { ScheduleState } from './schedule.ts';
import { describeSchedule, scheduleState } from './schedule.ts';

export interface BindInput {
  namespaces: Namespace[];
  pods: Pod[];
  services: Service[];
  endpointSlices: EndpointSlice[];
  externalServices: ExternalService[];
  clusterRules: ClusterEgressRule[];
  namespaceRules: NamespaceEgressRule[];
  serviceRules: ServiceEgressRule[];
  controllerNamespace: string;
  /** Whose whole policy is in audit. */
  auditedNamespaces: ReadonlySet<string>;
  /** Lists that were in force last, for drop and reject rules whose ExternalService is gone. */
  lastServices: Record<string, ServiceEntry>;
  /** What `addressesFrom` of the external services lists; absent: nothing is known. */
  lists?: KnownLists;
  /** Why no redirect of a context's rules may lead there; absent: none is forbidden. */
  forbids?: (address: string, context: Context) => string | undefined;
  /** For schedules; milliseconds since the epoch. */
  now: number;
}

export interface RuleCondition {
  objectKey: string;
  type: 'Accepted';
  status: 'True' | 'False';
  reason: 'Accepted' | 'OutOfSchedule' | 'NoEndpoints' | 'ForeignEndpoint' | 'RedirectForbidden' | RefusalReason;
  message: string;
  /** Of a rule that has one. */
  schedule?: ScheduleState;
}

export interface Binding {
  rules: Record<string, RuleEntry>;
  services: Record<string, ServiceEntry>;
  groups: Record<string, GroupEntry>;
  /** Pod key (its uid; podKey) → key into `groups`; pods that can never be a source are absent. */
  groupOf: Map<string, string>;
  /** Pod key → names of the Services that list it, ready or not. */
  servicesOf: Map<string, string[]>;
  /** One per rule object, in the order of the input. */
  conditions: RuleCondition[];
  /** The next edge of any rule's schedule; milliseconds since the epoch. */
  nextChange?: number;
}

interface BoundRule<R extends AnyRule> {
  id: string;
  rule: R;
}

export function bind(input: BindInput): Binding {
  const catalog = serviceCatalog(input);
  const endpoints = endpointsOf(input.pods, input.endpointSlices);
  const rules: Record<string, RuleEntry> = {};
  const conditions: RuleCondition[] = [];
  const edges: number[] = [];

  /** Resolves, reports and records; returns the rules that are in force, in walking order. */
  function admit<R extends AnyRule>(context: Context, objects: R[]): BoundRule<R>[] {
    const bound: BoundRule<R>[] = [];
    for (const rule of objects) {
      const { metadata, spec } = rule;
      const tenant = context === 'cluster' ? {} : { namespace: metadata.namespace ?? '' };
      const resolution = catalog.resolve({ ...tenant, action: spec.action, names: spec.externalServices });
      const schedule = scheduleState(spec.schedule, input.now);
      if (schedule?.nextChange !== undefined) edges.push(schedule.nextChange);
      const forbidden = spec.redirect && input.forbids?.(spec.redirect.address, context);
      conditions.push(conditionOf(rule, resolution, endpoints, schedule, forbidden));
      if (!resolution.ok) continue;
      const id = `${context}/${qualifiedName(metadata)}`;
      const { action, priority, mode, logging } = spec;
      const { services } = resolution;
      const audit = mode === 'Audit' && { mode };
      const redirect = spec.redirect && { redirect: { ...spec.redirect, ...(forbidden && { forbidden }) } };
      const more = { ...(logging !== 'Decisions' && { logging }), ...redirect, ...limitsOf(spec) };
      rules[id] = { context, ...tenant, name: metadata.name, action, ...audit, priority, services, ...more };
      // Out of its schedule it is in no group; its lists are still kept for the time when it is again.
      if (schedule?.open !== false) bound.push({ id, rule });
    }
    return bound.sort((a, b) => compareRules(a.rule, b.rule));
  }

  const clusterRules = admit('cluster', input.clusterRules);
  const namespaceRules = byNamespace(admit('namespace', input.namespaceRules));
  const serviceRules = byNamespace(admit('service', input.serviceRules));

  const namespaceLabels = new Map(input.namespaces.map(({ metadata }) => [metadata.name, metadata.labels]));
  const clusterRulesOf = new Map<string, BoundRule<ClusterEgressRule>[]>();
  const groups: Record<string, GroupEntry> = {};
  const groupOf = new Map<string, string>();
  for (const pod of input.pods) {
    if (!isSource(pod)) continue;
    const namespace = pod.metadata.namespace ?? '';
    let cluster = clusterRulesOf.get(namespace);
    if (cluster === undefined) {
      const labels = namespaceLabels.get(namespace);
      cluster = clusterRules.filter(({ rule }) => selectsNamespace(rule, namespace, labels));
      clusterRulesOf.set(namespace, cluster);
    }
    const selects = ({ rule }: BoundRule<AnyRule>): boolean => excludes(rule, pod, endpoints) === undefined;
    const entry: GroupEntry = {
      namespace,
      ...(input.auditedNamespaces.has(namespace) && { audit: true }),
      rules: {
        cluster: cluster.filter(selects).map(idOf),
        namespace: (namespaceRules.get(namespace) ?? []).filter(selects).map(idOf),
        service: (serviceRules.get(namespace) ?? []).filter(selects).map(idOf),
      },
    };
    const key = groupKey(entry);
    groups[key] ??= entry;
    groupOf.set(podKey(pod), key);
  }
  return {
    rules,
    services: catalog.used,
    groups,
    groupOf,
    servicesOf: servicesByPod(endpoints),
    conditions,
    ...(edges.length > 0 && { nextChange: edges.reduce((first, edge) => Math.min(first, edge)) }),
  };
}

function conditionOf(
  rule: AnyRule,
  resolution: Resolution,
  endpoints: Map<string, ServiceEndpoints>,
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

function limitsOf({ connectionsPerSecond, maxConnections }: AnyRule['spec']): Pick<RuleEntry, 'limits'> {
  if (connectionsPerSecond === undefined && maxConnections === undefined) return {};
  return {
    limits: {
      ...(connectionsPerSecond !== undefined && { connectionsPerSecond }),
      ...(maxConnections !== undefined && { maxConnections }),
    },
  };
}

function inForce({ spec }: AnyRule, schedule: ScheduleState | undefined): string {
  const state =
    spec.mode === 'Audit' ? 'the rule is in audit: what it matches is counted and logged' : 'the rule is in force';
  return schedule === undefined ? state : `${state}; ${describeSchedule(schedule)}`;
}

/** Content in the key: a group whose rules change is another group, and the data path can add it before it moves pods. */
function groupKey({ namespace, rules, audit }: GroupEntry): string {
  const content = JSON.stringify([rules.cluster, rules.namespace, rules.service, ...(audit ? ['audit'] : [])]);
  return `${namespace}/${createHash('sha256').update(content).digest('hex').slice(0, 12)}`;
}

function servicesByPod(endpoints: Map<string, ServiceEndpoints>): Map<string, string[]> {
  const services = new Map<string, string[]>();
  for (const [key, { all }] of [...endpoints].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const name = key.slice(key.indexOf('/') + 1);
    for (const pod of all) services.set(pod, [...(services.get(pod) ?? []), name]);
  }
  return services;
}

function idOf({ id }: BoundRule<AnyRule>): string {
  return id;
}

/** Keeps the order. */
function byNamespace<R extends AnyRule>(bound: BoundRule<R>[]): Map<string, BoundRule<R>[]> {
  const namespaces = new Map<string, BoundRule<R>[]>();
  for (const item of bound) {
    const namespace = item.rule.metadata.namespace ?? '';
    const list = namespaces.get(namespace);
    if (list === undefined) namespaces.set(namespace, [item]);
    else list.push(item);
  }
  return namespaces;
}
