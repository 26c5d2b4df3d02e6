/**
 * What people see of their objects: Accepted (understood and used), Conflicted (another object has what it asks for,
 * named), Programmed (in force on the gateways that matter), and a few facts. Pure; without times.
 */
import { hitsIdOfObject } from '../../api/hits.ts';
import { type AnyObject, type EgressIP, type EgressRule, type GatewayPool, objectKey } from '../../api/kinds.ts';
import { families, type ShardEntry } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { qualifiedName } from '../../policy/order.ts';
import { type ScheduleState, timeText } from '../../policy/schedule.ts';
import type { AllocationResult } from './allocate.ts';
import type { Assigner } from './assign.ts';
import { type ClusterRanges, rangesFacts } from './cluster-ranges.ts';
import type { Condition, Findings, Status } from './condition.ts';
import { egressFacts, type LimitShards, limitFacts, portFacts, portsKey } from './limits.ts';
import { listFacts, listProblem } from './list-status.ts';
import { type Part, sameItems } from './memo.ts';
import { knowsNames, nameProblem } from './name-status.ts';
import type { Objects } from './objects.ts';
import type { Given, PlannedOwners } from './owners.ts';
import { holdersOf } from './peers.ts';
import type { Pool } from './pools.ts';
import { type ProgrammedInput, ProgrammedRules } from './programmed.ts';
import { compareText } from './snapshot.ts';
import type { PlannedWebhooks } from './webhooks.ts';

export interface StatusInput extends ProgrammedInput {
  objects: Objects;
  lists: KnownLists;
  allocation: AllocationResult;
  given: PlannedOwners['given'];
  shardOf: ReadonlyMap<string, string>;
  gatewayPoolOf(egressIP: EgressIP): Pool | undefined;
  assign: Assigner;
  webhooks: PlannedWebhooks;
  /** Of rules of the cluster, and of ports. */
  limitShards: LimitShards;
  findings: Pick<Findings, 'of'>;
  /** For pools that do not list them. */
  ranges: ClusterRanges | undefined;
}

const yes = (type: Condition['type'], reason: string, message: string): Condition => ({
  type,
  status: 'True',
  reason,
  message,
});
const no = (type: Condition['type'], reason: string, message: string): Condition => ({
  ...yes(type, reason, message),
  status: 'False',
});

/** Of the last time. */
export interface KnownStatuses {
  /** Of what belongs to no namespace. */
  cluster?: ReadonlyMap<string, Status>;
  /** Of what belongs to one, and what they were made from. */
  namespaces: Map<string, { from: readonly unknown[]; statuses: ReadonlyMap<string, Status> }>;
}

/** `known` is brought up to date. */
export function statusesOf(input: StatusInput, known: KnownStatuses): Map<string, Status> {
  const statuses = new Map<string, Status>();
  const programmed = new ProgrammedRules(input);
  const { GatewayPool, EgressIPPool, EgressIP, ClusterEgressRule } = input.objects;
  for (const object of GatewayPool) {
    const conditions = [...basic(object), programmed.ofPool(object.metadata.name)];
    add(object, conditions, poolFacts(object, input));
  }
  for (const object of EgressIPPool) {
    const inUse = Object.values(input.allocation.allocations).filter(
      ({ pool, releasedAt }) => pool === object.metadata.name && releasedAt === undefined,
    ).length;
    add(object, basic(object), { inUse });
  }
  for (const object of EgressIP) {
    const { programmed, ...facts } = egressIPFacts(object, input);
    const found = input.findings.of(objectKey(object)).find(({ type }) => type === 'Programmed');
    const plan = input.plans.get(input.gatewayPoolOf(object)?.name ?? '');
    const limits = egressFacts(plan?.egressIPs[object.metadata.name]);
    add(object, [...basic(object), found ?? programmed], { ...facts, ...limits });
  }
  addRules(statuses, input, ClusterEgressRule, input.cluster, Object.fromEntries(input.limitShards), (id) =>
    programmed.ofRule(id),
  );
  keepEqual(statuses, known.cluster);
  known.cluster = new Map(statuses);
  for (const carried of input.namespaces) {
    const { state, binding, limitShards } = carried;
    const { name, externalServices, namespaceRules, serviceRules } = state.objects;
    const lists = externalServices.flatMap((service) =>
      service.spec.addressesFrom === undefined ? [] : [input.lists.get(qualifiedName(service.metadata))],
    );
    const refused = [...namespaceRules, ...serviceRules].flatMap((rule) =>
      rule.spec.webhook === undefined ? [] : [input.webhooks.refused.get(objectKey(rule))],
    );
    // Of most rules nothing is said but that they are in force.
    const behind = new Map<string, Condition>();
    for (const { id } of [...binding.own.namespace.bound, ...binding.own.service.bound]) {
      const condition = programmed.ofRule(id, state.pool);
      if (condition.status === 'False') behind.set(id, condition);
    }
    const shardsOfPorts = externalServices.map(({ metadata }) =>
      input.limitShards.get(portsKey(qualifiedName(metadata))),
    );
    const resolves = knowsNames(state.objects.namespace, state.pool, input.pools);
    const from = [externalServices, binding.own, limitShards, resolves, ...lists.flatMap(flat)];
    const all = [
      ...from,
      ...refused.map((condition) => condition?.message),
      ...texts(behind),
      ...shardsOfPorts.map(String),
    ];
    const programmedOf = (id: string): Condition => behind.get(id) ?? programmed.ofRule(id, state.pool);
    let made = known.namespaces.get(name);
    if (made === undefined || !sameItems(made.from, all)) {
      const own = new Map<string, Status>();
      addRules(own, input, namespaceRules, binding.own.namespace, limitShards, programmedOf);
      addRules(own, input, serviceRules, binding.own.service, limitShards, programmedOf);
      for (const [at, object] of externalServices.entries()) {
        const known = input.lists.get(qualifiedName(object.metadata));
        const conditions = [listProblem(object, known) ?? nameProblem(object, resolves) ?? accepting];
        const facts = { ...listFacts(object, known), ...portFacts(object, shardsOfPorts[at]) };
        own.set(objectKey(object), statusOf(object, conditions, facts));
      }
      keepEqual(own, made?.statuses);
      made = { from: all, statuses: own };
      known.namespaces.set(name, made);
    }
    for (const [key, status] of made.statuses) statuses.set(key, status);
  }
  if (known.namespaces.size > input.namespaces.length) {
    const names = new Set(input.namespaces.map(({ state }) => state.objects.name));
    for (const name of known.namespaces.keys()) if (!names.has(name)) known.namespaces.delete(name);
  }
  return statuses;

  function basic(object: AnyObject): [Condition, Condition] {
    const found = input.findings.of(objectKey(object));
    return [
      found.find(({ type }) => type === 'Accepted') ?? accepting,
      found.find(({ type }) => type === 'Conflicted') ??
        no('Conflicted', 'NoConflict', 'no other object has what this one asks for'),
    ];
  }
  function add(object: AnyObject, conditions: Condition[], facts: Record<string, unknown>): void {
    statuses.set(objectKey(object), statusOf(object, conditions, facts));
  }
}

/** Those that are equal to what they were are the same. */
function keepEqual(statuses: Map<string, Status>, before: ReadonlyMap<string, Status> | undefined): void {
  for (const [key, status] of statuses) {
    const was = before?.get(key);
    if (was !== undefined && sameJson(was, status)) statuses.set(key, was);
  }
}

const accepting = yes('Accepted', 'Accepted', 'understood and in use');
/** What a status says of lists, item by item: the lists of a service are put together anew each time. */
const flat = (lists: KnownLists extends ReadonlyMap<string, infer L> ? L | undefined : never): unknown[] =>
  (lists ?? []).flatMap(({ addresses, problem }) => [addresses, problem?.reason, problem?.message]);

const texts = (behind: ReadonlyMap<string, Condition>): string[] =>
  [...behind].flatMap(([id, { reason, message }]) => [id, reason, message]);

function statusOf(object: AnyObject, conditions: Condition[], facts: Record<string, unknown>): Status {
  const { generation } = object.metadata;
  return { ...(generation === undefined ? {} : { observedGeneration: generation }), conditions, ...facts };
}

function addRules(
  statuses: Map<string, Status>,
  { webhooks }: StatusInput,
  rules: readonly EgressRule[],
  admitted: AdmittedRules,
  shardsOfLimits: Part<string[]>,
  programmed: (id: string) => Condition,
): void {
  // Of one rule each, in the same order.
  for (const [at, rule] of rules.entries()) {
    const key = objectKey(rule);
    const about = admitted.conditions[at];
    const facts: Record<string, unknown> = {};
    const conditions: Condition[] = [];
    if (about === undefined) conditions.push(accepting);
    else conditions.push({ type: about.type, status: about.status, reason: about.reason, message: about.message });
    if (about?.schedule !== undefined) Object.assign(facts, scheduleFacts(about.schedule));
    const id = hitsIdOfObject(key) ?? '';
    Object.assign(facts, limitFacts(admitted.rules[id], shardsOfLimits[id]));
    conditions.push(
      about?.status === 'False' ? no('Programmed', 'NotAccepted', 'the rule is not in force') : programmed(id),
    );
    conditions.push(...[webhooks.refused.get(key) ?? []].flat());
    statuses.set(key, statusOf(rule, conditions, facts));
  }
}

function poolFacts(
  { metadata, spec }: GatewayPool,
  { pools, plans, peers, ranges }: StatusInput,
): Record<string, unknown> {
  const pool = pools.find(({ name }) => name === metadata.name);
  const connected = spec.gateways.filter(({ name }) => peers.gateways.get(name)?.connected === true).length;
  return {
    connected: `${connected}/${spec.gateways.length}`,
    shards: Object.keys(pool?.shards ?? {}).length,
    namespaces: pool?.namespaces.length ?? 0,
    auditedNamespaces: pool?.audited.length ?? 0,
    workloads: Object.keys(plans.get(metadata.name)?.workloads ?? {}).length,
    ...(spec.clusterCIDRs === undefined && ranges !== undefined && rangesFacts(ranges)),
    gateways: spec.gateways.map(({ name }) => {
      const peer = peers.gateways.get(name);
      return {
        name,
        connected: peer?.connected ?? false,
        generation: peer?.generation ?? 0,
        ...(peer?.error === undefined ? {} : { error: peer.error }),
      };
    }),
  };
}

function scheduleFacts({ open, nextChange }: ScheduleState): Record<string, unknown> {
  return {
    schedule: open ? 'Open' : 'Closed',
    ...(nextChange === undefined ? {} : { nextChange: timeText(nextChange) }),
  };
}

/** Of lists in plans, which are long, and nobody changes. */
const addressSets = new WeakMap<readonly string[], ReadonlySet<string>>();

function holdsAddress(shard: ShardEntry | undefined, address: string): boolean {
  if (shard === undefined) return false;
  const known = addressSets.get(shard.egressIPs) ?? new Set(shard.egressIPs);
  addressSets.set(shard.egressIPs, known);
  return known.has(address);
}

/** As many as a person reads. */
const MAX_WAITING = 8;

/** To whom each address is given; of many, none that is free. */
function ownerFacts({ addresses, room }: Given): { given: string; owners: { owner: string; addresses: string[] }[] } {
  const owners = [...addresses]
    .sort(([a], [b]) => compareText(a, b))
    .map(([owner, own]) => ({ owner, addresses: families.flatMap((family) => own[family] ?? []) }));
  return { given: `${owners.length}/${room}`, owners };
}

function egressIPFacts(
  object: EgressIP,
  { plans, allocation, given, shardOf, gatewayPoolOf, peers, assign }: StatusInput,
): { programmed: Condition; gateways: string[]; assignments: unknown[]; namespaces: number } & Record<string, unknown> {
  const { name } = object.metadata;
  const perFamily = allocation.addresses.get(name) ?? {};
  const addresses = families.flatMap((family) => perFamily[family] ?? []);
  const pool = gatewayPoolOf(object);
  const plan = plans.get(pool?.name ?? '');
  const entry = plan?.egressIPs[name];
  const waiting: string[] = [];
  const assignments = addresses.flatMap((address) => {
    const shard = shardOf.get(address);
    if (shard === undefined) return [];
    const gateway = pool?.shards[shard]?.order[0];
    const holders = plan === undefined ? [] : holdersOf(plan, shard, peers);
    if (holders.length === 0) waiting.push(`${address} on no gateway`);
    for (const holder of holders) {
      const inForce = peers.gateways.get(holder)?.inForce;
      const there = inForce !== undefined && holdsAddress(inForce.shards[shard], address);
      if (!there || !sameJson(inForce.egressIPs[name], entry)) waiting.push(`${address} on ${holder}`);
    }
    return [{ address, shard, ...(gateway === undefined ? {} : { gateway }) }];
  });
  const namespaces = assign.served(name).length;
  const more = waiting.length - MAX_WAITING;
  const shown = waiting.slice(0, MAX_WAITING).join(', ') + (more > 0 ? ` and ${more} more` : '');
  const key = objectKey(object);
  const programmed =
    addresses.length === 0
      ? no('Programmed', 'NoAddress', `${key} has no address`)
      : assignments.length === 0
        ? no('Programmed', 'NoGatewayPool', 'its EgressIPPool names no GatewayPool in use')
        : waiting.length > 0
          ? no('Programmed', 'NotAcknowledged', `waits for ${shown}`)
          : yes('Programmed', 'Programmed', 'its gateways have it in force');
  const gateways = [...new Set(assignments.flatMap(({ gateway }) => gateway ?? []))];
  const perOwner = given.get(name);
  const who = perOwner === undefined ? { addresses } : ownerFacts(perOwner);
  return { programmed, ...who, gateways, assignments, namespaces };
}
