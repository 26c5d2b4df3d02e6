/**
 * What is wrong with a set of manifests taken together (`sluice lint`): what the planner says of each object, rules
 * whose place in the walk makes them useless (policy/analysis/), and objects that speak of nobody. Pure. Only what is
 * certain is said: where there are no pods among the manifests, nothing is said of who is selected.
 * A schedule does not matter: what is wrong with a manifest must not depend on the hour.
 */
import { type AnyObject, type EgressIP, type GatewayPool, objectKey } from '../api/kinds.ts';
import { families, type GatewayPlan } from '../api/plan.ts';
import { beginsExchange, icmpProtocol, portEntry, typeOfIcmp } from '../api/ports.ts';
import {
  type Judgement,
  judgeRules,
  objectKeyOfRule,
  type RuleCode,
  type RuleFinding,
} from '../policy/analysis/rules.ts';
import { certainGroups, type ScopedRule } from '../policy/analysis/scope.ts';
import type { AnyRule } from '../policy/applies.ts';
import type { Binding } from '../policy/bind.ts';
import { compileEgress } from '../policy/egress.ts';
import { isSource } from '../policy/endpoints.ts';
import { type KnownLists, unreadLists } from '../policy/external-service.ts';
import { qualifiedName } from '../policy/order.ts';
import { serviceName } from '../policy/reference.ts';
import { matches } from '../policy/selector.ts';
import { hasAddress } from './plan/egress.ts';
import { emptyMemory } from './plan/memory.ts';
import { noPeers } from './plan/peers.ts';
import { type PlanResult, plan } from './plan/plan.ts';
import { labelsOf } from './plan/pools.ts';
import { ofKind, type Snapshot } from './plan/snapshot.ts';

export interface ObjectFinding {
  /** Its key. */
  object: string;
  severity: 'error' | 'warning';
  /** A rule's code, one of `analysisCodes`, or the reason of a condition of the object's status. */
  code: string;
  /** What is the matter, and what to do. */
  message: string;
}

/** Beside those of rules (ruleCodes) and of status. */
export const analysisCodes = {
  NotJudged: 'rules that there is too much to compare with, of which one is named',
  SelectsNoPod: 'a rule whose selectors match no pod',
  UnknownServiceAccount: 'a rule that names a service account that no pod has',
  ServesNoPod: 'an EgressIP that no pod leaves with',
  NoSuchNamespace: 'a namespace that does not exist: an EgressIP lists it, or it has rules',
  NotCarried: 'a namespace with rules that no GatewayPool selects: they have no effect',
  NoEgressIP: 'a namespace with rules whose pods have no EgressIP',
  BeginsNothing: 'a port of an ExternalService with types of ICMP that begin no flow, so that no rule matches by it',
} as const;

/** `lists`: what is known of `addressesFrom`; `most`: as judgeRules has it. */
export function analyse(objects: Snapshot, lists: KnownLists = new Map(), most?: number): ObjectFinding[] {
  const soft = new Set<string>();
  const snapshot = new Map<string, AnyObject>();
  for (const [key, object] of objects) {
    const always = isRule(object) ? withoutSchedule(object) : object;
    if (always !== object && isRule(object)) soft.add(idOf(object));
    snapshot.set(key, always);
  }
  const unread = new Set(
    ofKind(snapshot, 'ExternalService').flatMap((service) => {
      const name = qualifiedName(service.metadata);
      return unreadLists(service, lists.get(name)).length > 0 ? [name] : [];
    }),
  );
  const result = plan(snapshot, emptyMemory(), noPeers(), 0, lists);
  const findings = [...statusFindings(snapshot, result)];
  const rest = [
    ...unknownAccounts(snapshot),
    ...egressIPFindings(snapshot, result),
    ...selectingNoPod(snapshot, result.binding),
    ...namespaceFindings(snapshot, result),
    ...beginningNothing(snapshot),
  ];
  const said = new Set([...findings, ...rest].map(({ object, code }) => `${object} ${code}`));
  const { findings: judged, undecided } = judge(snapshot, result, soft, unread, most);
  const [first] = undecided;
  if (first !== undefined) {
    const others = undecided.length === 1 ? 'this rule is' : `this rule and ${undecided.length - 1} others are`;
    const message = `there is too much to compare it with: whether ${others} ever reached, and may permit anything, is not known; look at one namespace at a time`;
    findings.push({ object: objectKeyOfRule(first), severity: 'warning', code: 'NotJudged', message });
  }
  for (const finding of judged) {
    const object = objectKeyOfRule(finding.rule);
    if (finding.code === 'MatchesNothing' && said.has(`${object} ExternalServiceNotFound`)) continue;
    findings.push({ object, severity: 'warning', code: finding.code, message: ruleMessage(finding, result.binding) });
  }
  const isVague = ({ code }: ObjectFinding): boolean => code === 'SelectsNoPod' || code === 'ServesNoPod';
  const isKnown = ({ object }: ObjectFinding): boolean => betterReasons.some((code) => said.has(`${object} ${code}`));
  return [...findings, ...rest.filter((finding) => !isVague(finding) || !isKnown(finding))];
}

/** Codes that say why a rule or EgressIP has no pod. */
const betterReasons = [
  'NoEndpoints',
  'UnknownServiceAccount',
  'NamespaceTaken',
  'NamespaceNotAllowed',
  'NoSuchNamespace',
];

const isRule = (object: AnyObject): object is AnyRule => object.kind.endsWith('EgressRule');

function withoutSchedule(rule: AnyRule): AnyRule {
  const { schedule, ...spec } = rule.spec;
  return schedule === undefined ? rule : ({ ...rule, spec } as AnyRule);
}

const contextOf = {
  ClusterEgressRule: 'cluster',
  NamespaceEgressRule: 'namespace',
  ServiceEgressRule: 'service',
} as const;

/** As bind.ts makes it. */
function idOf({ kind, metadata }: AnyRule): string {
  const { namespace, name } = metadata;
  return namespace === undefined ? `${contextOf[kind]}/${name}` : `${contextOf[kind]}/${namespace}/${name}`;
}

/** Reasons of a refusal that another manifest, not among these, may well put right. */
const warningReasons = new Set([
  'NoEndpoints',
  'ForeignEndpoint',
  'ConfigMapNotFound',
  'FileNotFound',
  'NotFetched',
  'HostNotAllowed',
  'ListNotRead',
]);

/** Of what hinders an EgressIP, that which the manifests alone decide. */
const programReasons = new Set(['NamespaceNotAllowed', 'PoolExhausted', 'AddressesExhausted']);

/** In the order of the manifests. */
function* statusFindings(snapshot: Snapshot, { statuses, warnings }: PlanResult): Generator<ObjectFinding> {
  for (const object of snapshot.keys()) {
    for (const { type, status, reason: code, message } of statuses.get(object)?.conditions ?? []) {
      const warning = { object, severity: 'warning', code, message } as const;
      if (type === 'Conflicted' && status === 'True') yield warning;
      if (type === 'Programmed' && programReasons.has(code)) yield warning;
      if (type === 'WebhookFailing' && status === 'True') yield warning;
      if (type !== 'Accepted') continue;
      if (status === 'False' && !warningReasons.has(code)) yield { ...warning, severity: 'error' };
      // Accepted, but with a word about a part of it.
      else if (code !== 'Accepted') yield warning;
    }
  }
  for (const { object, reason, message } of warnings) {
    yield { object, severity: 'warning', code: reason, message };
  }
}

function judge(
  snapshot: Snapshot,
  { binding, pools }: PlanResult,
  soft: ReadonlySet<string>,
  unread: ReadonlySet<string>,
  most: number | undefined,
): Judgement {
  const defaults = new Map<string, 'Drop' | 'Accept'>();
  for (const { settings, workloads } of pools.values()) {
    if (!('pool' in settings)) continue;
    for (const { group } of Object.values(workloads)) defaults.set(group, settings.pool.defaultAction);
  }
  const groups = Object.entries(binding.groups).map(([key, group]) => {
    const defaultAction = defaults.get(key);
    return { ...group, ...(defaultAction !== undefined && { defaultAction }) };
  });
  const used = usedRules(binding);
  const scoped = rulesOf(snapshot).flatMap((rule): ScopedRule[] => {
    const id = idOf(rule);
    return binding.rules[id] === undefined ? [] : [{ id, context: contextOf[rule.kind], rule }];
  });
  const lonely = new Set(scoped.flatMap(({ id }) => (used.has(id) ? [] : [id])));
  const labels = new Map(ofKind(snapshot, 'Namespace').map(({ metadata }) => [metadata.name, metadata.labels]));
  const { rules, services } = binding;
  const open = new Set(
    Object.entries(rules).flatMap(([id, { services: keys }]) =>
      keys !== '*' && keys.some((key) => unread.has(serviceName(key))) ? [id] : [],
    ),
  );
  return judgeRules({
    rules,
    services,
    groups: [...groups, ...certainGroups(scoped, lonely, labels)],
    soft,
    open,
    most,
  });
}

const rulesOf = (snapshot: Snapshot): AnyRule[] => [
  ...ofKind(snapshot, 'ClusterEgressRule'),
  ...ofKind(snapshot, 'NamespaceEgressRule'),
  ...ofKind(snapshot, 'ServiceEgressRule'),
];

const usedRules = ({ groups }: Binding): Set<string> =>
  new Set(Object.values(groups).flatMap(({ rules }) => Object.values(rules).flat()));

/** Of a rule that names some destination, or none. */
function nothingText({ rules, services }: Binding, id: string): string {
  const { services: keys = [], redirect } = rules[id] ?? {};
  if (redirect !== undefined) {
    const family = redirect.address.includes(':') ? 6 : 4;
    return `its redirect takes TCP, UDP and SCTP over IPv${family} only, and its ExternalServices have nothing of that; name others, or take the redirect out`;
  }
  const holds = (key: string): boolean =>
    (services[key]?.addresses.length ?? 0) > 0 || (services[key]?.names ?? []).length > 0;
  return keys !== '*' && keys.some(holds)
    ? 'of its ExternalServices the ports are ICMP of one IP version and the addresses of the other; correct them, name others, or remove the rule'
    : 'none of its ExternalServices holds an address or a name; fill their lists, name others, or remove the rule';
}

function ruleMessage({ rule, code, blockers }: RuleFinding, binding: Binding): string {
  const shown =
    blockers.length > 3 ? `${blockers.slice(0, 3).join(', ')} and ${blockers.length - 3} more` : blockers.join(', ');
  const first = `${shown} ${blockers.length === 1 ? 'comes' : 'come'} first and`;
  const messages: Record<RuleCode, string> = {
    MatchesNothing: `matches nothing: ${nothingText(binding, rule)}`,
    Shadowed: `is never reached: ${first} matches all that it names; give it a lower priority, or remove it`,
    Contradicted: `can never permit: ${shown} in a context above forbids all that it names; ask the owner of that rule, or remove this one`,
    Overruled: `can never forbid: ${shown} in a context above accepts decisively all that it names; make that an accept, or remove this one`,
    NeverReached: `is never reached: ${first} decides all that it names; remove it, or change those`,
    PermitsNothing: `can never permit: accept in the ${rule.slice(0, rule.indexOf('/'))} context only hands on, and no rule after it accepts in the service context or decisively what it names; add such a rule, or make this one accept-decisively`,
  };
  return messages[code];
}

/** Judged where there are pods that it might have meant: of its namespace, or any for a cluster rule. */
function* selectingNoPod(snapshot: Snapshot, binding: Binding): Generator<ObjectFinding> {
  const pods = ofKind(snapshot, 'Pod').filter(isSource);
  const populated = new Set(pods.map(({ metadata }) => metadata.namespace ?? ''));
  const used = usedRules(binding);
  for (const rule of rulesOf(snapshot)) {
    const id = idOf(rule);
    if (binding.rules[id] === undefined || used.has(id)) continue;
    const { namespace } = rule.metadata;
    if (namespace === undefined ? pods.length === 0 : !populated.has(namespace)) continue;
    const where = namespace === undefined ? '' : ` of namespace ${namespace}`;
    const message = `applies to no pod${where}: compare its selectors with the pods' labels`;
    yield { object: objectKey(rule), severity: 'warning', code: 'SelectsNoPod', message };
  }
}

/** A misspelt name in a drop rule would forbid nothing. */
function* unknownAccounts(snapshot: Snapshot): Generator<ObjectFinding> {
  const accounts = new Map<string, Set<string>>();
  for (const { metadata, spec } of ofKind(snapshot, 'Pod')) {
    const namespace = metadata.namespace ?? '';
    accounts.set(namespace, (accounts.get(namespace) ?? new Set()).add(spec.serviceAccountName));
  }
  for (const rule of rulesOf(snapshot)) {
    for (const account of rule.spec.serviceAccounts ?? []) {
      const [name = '', before] = account.split('/').reverse();
      const namespace = before ?? rule.metadata.namespace;
      const there = namespace === undefined ? [...accounts.values()] : [accounts.get(namespace) ?? new Set()];
      if (there.every(({ size }) => size === 0) || there.some((names) => names.has(name))) continue;
      const where = namespace === undefined ? '' : ` of namespace ${namespace}`;
      const message = `no pod${where} has the service account ${name}: correct the name, or take it out`;
      yield { object: objectKey(rule), severity: 'warning', code: 'UnknownServiceAccount', message };
    }
  }
}

/** Habits of packet filters that know no flows: unreachable, time exceeded, echo reply. */
function* beginningNothing(snapshot: Snapshot): Generator<ObjectFinding> {
  for (const service of ofKind(snapshot, 'ExternalService')) {
    for (const port of service.spec.ports ?? []) {
      const { protocol, ports } = portEntry(port);
      const family = families.find((one) => icmpProtocol[one] === protocol);
      if (family === undefined || ports === null) continue;
      const types = ports.flatMap(([first, last]) => [typeOfIcmp(first), typeOfIcmp(last)]);
      if (types.some((type) => beginsExchange(family, type))) continue;
      const message = `ports ${port.name}: ${port.protocol} ${port.port} begins no flow, so no rule matches by it; replies and errors need no rule: take it out`;
      yield { object: objectKey(service), severity: 'warning', code: 'BeginsNothing', message };
    }
  }
}

function* egressIPFindings(snapshot: Snapshot, result: PlanResult): Generator<ObjectFinding> {
  const egressIPs = ofKind(snapshot, 'EgressIP');
  const namespaces = new Set(ofKind(snapshot, 'Namespace').map(({ metadata }) => metadata.name));
  const workloads = workloadsOf(result);
  const { addresses: inUse, egressIPs: winners } = leftWith(result);
  for (const egressIP of egressIPs) {
    const object = objectKey(egressIP);
    for (const name of namespaces.size === 0 ? [] : (egressIP.spec.namespaces ?? [])) {
      if (namespaces.has(name)) continue;
      const message = `there is no namespace ${name}: correct the name, or take it out of spec.namespaces`;
      yield { object, severity: 'warning', code: 'NoSuchNamespace', message };
    }
    // Every pod that an EgressIP with an address serves leaves with one of its addresses.
    const addresses = assignedAddresses(egressIP, result);
    if (workloads.length === 0 || addresses.length === 0 || winners.has(egressIP.metadata.name)) continue;
    if (addresses.some((address) => inUse.has(address))) continue;
    const what = egressIP.spec.destinations === undefined ? '' : ', and its destinations with those of others';
    const message = `no pod leaves with it: compare its namespaces and podSelector with the pods${what}, or remove it`;
    yield { object, severity: 'warning', code: 'ServesNoPod', message };
  }
}

/** With what pods leave where no EgressIP names the destination, and the EgressIPs that serve some by their destinations. */
function leftWith({ pools }: PlanResult): { addresses: Set<string>; egressIPs: Set<string> } {
  const addresses = new Set<string>();
  const egressIPs = new Set<string>();
  for (const plan of pools.values()) {
    const map = compileEgress(plan);
    const tables = new Set<string>();
    for (const workload of Object.values(plan.workloads)) {
      const { destinations } = workload;
      const seen = destinations === undefined || tables.has(destinations);
      if (destinations !== undefined) tables.add(destinations);
      for (const family of families) {
        for (const { address } of map.choices(workload, family)[0]?.addresses ?? []) addresses.add(address);
        if (!seen) for (const { egressIP } of map.ranges(workload, family)) egressIPs.add(egressIP);
      }
    }
  }
  return { addresses, egressIPs };
}

/** Addresses that are on a shard. */
function assignedAddresses(egressIP: EgressIP, { statuses }: PlanResult): string[] {
  const assignments = statuses.get(objectKey(egressIP))?.assignments;
  return Array.isArray(assignments) ? assignments.map(({ address }: { address: string }) => address) : [];
}

const workloadsOf = ({ pools }: PlanResult): GatewayPlan['workloads'][string][] =>
  [...pools.values()].flatMap(({ workloads }) => Object.values(workloads));

/** Rules that a namespace's own people wrote and that do not hold for its pods. Judged where there is a GatewayPool. */
function* namespaceFindings(snapshot: Snapshot, result: PlanResult): Generator<ObjectFinding> {
  if (result.pools.size === 0) return;
  const ruled = new Map<string, AnyRule>();
  for (const rule of rulesOf(snapshot)) {
    const { namespace } = rule.metadata;
    if (namespace !== undefined && !ruled.has(namespace)) ruled.set(namespace, rule);
  }
  const namespaces = new Map(ofKind(snapshot, 'Namespace').map((namespace) => [namespace.metadata.name, namespace]));
  const pools = ofKind(snapshot, 'GatewayPool').filter(({ metadata }) => result.pools.has(metadata.name));
  const workloads = workloadsOf(result);
  for (const [name, rule] of ruled) {
    const namespace = namespaces.get(name);
    const object = namespace === undefined ? objectKey(rule) : objectKey(namespace);
    if (namespace === undefined && namespaces.size > 0) {
      const message = `there is no namespace ${name}, so its rules have no effect: correct the name, or add the Namespace`;
      yield { object, severity: 'warning', code: 'NoSuchNamespace', message };
      continue;
    }
    const selected = ({ spec }: GatewayPool): boolean =>
      namespace !== undefined && matches(spec.namespaceSelector, labelsOf(namespace));
    if (namespace !== undefined && !pools.some(selected)) {
      const message = `no GatewayPool selects it, so the rules of namespace ${name} have no effect: select it in a GatewayPool, or remove them`;
      yield { object, severity: 'warning', code: 'NotCarried', message };
      continue;
    }
    const own = workloads.filter((workload) => workload.namespace === name);
    const [pool] = [...result.pools.values()].filter((one) => Object.hasOwn(one.workloads, own[0]?.uid ?? ''));
    // Of one that an EgressIP serves, which has none to give, that one says so.
    const without = own.filter(
      (workload) => pool !== undefined && workload.egressIP === undefined && !hasAddress(workload, pool),
    );
    if (without.length === 0) continue;
    const who = without.length === own.length ? 'its pods' : `${without.length} of its ${own.length} pods`;
    const drops = pool !== undefined && 'pool' in pool.settings && pool.settings.pool.unassigned === 'Drop';
    const effect = drops ? 'are let out nowhere' : 'leave as if Sluice were absent, whatever the rules say';
    const message = `${who} have no EgressIP and ${effect}: give namespace ${name} an EgressIP`;
    yield { object, severity: 'warning', code: 'NoEgressIP', message };
  }
}
