/**
 * What people see of their objects: Accepted (understood and used), Conflicted (another object has what it asks for,
 * named), Programmed (in force on the gateways that matter), and a few facts. Pure; without times.
 */
import { hitsIdOfObject } from '../../api/hits.ts';
import { type AnyObject, type EgressIP, type EgressRule, type GatewayPool, objectKey } from '../../api/kinds.ts';
import { families, type GatewayPlan } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { qualifiedName } from '../../policy/order.ts';
import { type ScheduleState, timeText } from '../../policy/schedule.ts';
import type { AllocationResult } from './allocate.ts';
import type { Assigner } from './assign.ts';
import type { CarriedNamespace } from './carried.ts';
import type { Condition, Findings, Status } from './condition.ts';
import { limitFacts } from './limits.ts';
import { listFacts, listProblem } from './list-status.ts';
import { type Part, sameItems } from './memo.ts';
import type { Objects } from './objects.ts';
import type { Peers } from './peers.ts';
import type { Pool } from './pools.ts';
import type { PlannedWebhooks } from './webhooks.ts';

export interface StatusInput {
  objects: Objects;
  lists: KnownLists;
  pools: readonly Pool[];
  plans: ReadonlyMap<string, GatewayPlan>;
  peers: Peers;
  allocation: AllocationResult;
  shardOf: ReadonlyMap<string, string>;
  gatewayPoolOf(egressIP: EgressIP): Pool | undefined;
  assign: Assigner;
  cluster: AdmittedRules;
  namespaces: readonly CarriedNamespace[];
  webhooks: PlannedWebhooks;
  /** Rule id of the cluster → `pool/shard` over which its limits are divided. */
  limitShards: ReadonlyMap<string, string[]>;
  findings: Pick<Findings, 'of'>;
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

/** Statuses of what belongs to one namespace, and what they were made from. */
export type NamespaceStatuses = Map<string, { from: readonly unknown[]; statuses: ReadonlyMap<string, Status> }>;

/** `known`: of the last time; it is brought up to date. */
export function statusesOf(input: StatusInput, known: NamespaceStatuses): Map<string, Status> {
  const statuses = new Map<string, Status>();
  const behind = gatewaysBehind(input);
  const policy = policyProgrammed(input, behind);
  const { GatewayPool, EgressIPPool, EgressIP, ClusterEgressRule } = input.objects;
  for (const object of GatewayPool) {
    const conditions = [...basic(object), poolProgrammed(object.metadata.name, behind)];
    add(object, conditions, poolFacts(object, input));
  }
  for (const object of EgressIPPool) {
    const missing = !input.pools.some(({ name }) => name === object.spec.gatewayPool);
    const message = `GatewayPool ${object.spec.gatewayPool} does not exist or is not accepted`;
    const inUse = Object.values(input.allocation.allocations).filter(
      ({ pool, releasedAt }) => pool === object.metadata.name && releasedAt === undefined,
    ).length;
    const [accepted, conflicted] = basic(object);
    add(object, [missing ? no('Accepted', 'NoSuchPool', message) : accepted, conflicted], { inUse });
  }
  for (const object of EgressIP) {
    const { programmed, ...facts } = egressIPFacts(object, input);
    const found = input.findings.of(objectKey(object)).find(({ type }) => type === 'Programmed');
    add(object, [...basic(object), found ?? programmed], facts);
  }
  addRules(statuses, input, ClusterEgressRule, input.cluster, Object.fromEntries(input.limitShards), policy);
  for (const carried of input.namespaces) {
    const { state, binding, limitShards } = carried;
    const { name, externalServices, namespaceRules, serviceRules } = state.objects;
    const lists = externalServices.flatMap((service) =>
      service.spec.addressesFrom === undefined ? [] : [input.lists.get(qualifiedName(service.metadata))],
    );
    const refused = [...namespaceRules, ...serviceRules].flatMap((rule) =>
      rule.spec.webhook === undefined ? [] : [input.webhooks.refused.get(objectKey(rule))],
    );
    const from = [externalServices, binding.own, limitShards, policy.reason, policy.message, ...lists.flatMap(flat)];
    const all = [...from, ...refused.map((condition) => condition?.message)];
    let made = known.get(name);
    if (made === undefined || !sameItems(made.from, all)) {
      const own = new Map<string, Status>();
      addRules(own, input, namespaceRules, binding.own.namespace, limitShards, policy);
      addRules(own, input, serviceRules, binding.own.service, limitShards, policy);
      for (const object of externalServices) {
        const known = input.lists.get(qualifiedName(object.metadata));
        const conditions = [listProblem(object, known) ?? accepting];
        own.set(objectKey(object), statusOf(object, conditions, listFacts(object, known)));
      }
      for (const [key, status] of own) {
        const before = made?.statuses.get(key);
        if (before !== undefined && sameJson(before, status)) own.set(key, before);
      }
      made = { from: all, statuses: own };
      known.set(name, made);
    }
    for (const [key, status] of made.statuses) statuses.set(key, status);
  }
  if (known.size > input.namespaces.length) {
    const names = new Set(input.namespaces.map(({ state }) => state.objects.name));
    for (const name of known.keys()) if (!names.has(name)) known.delete(name);
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

const accepting = yes('Accepted', 'Accepted', 'understood and in use');
/** What a status says of lists, item by item: the lists of a service are put together anew each time. */
const flat = (lists: KnownLists extends ReadonlyMap<string, infer L> ? L | undefined : never): unknown[] =>
  (lists ?? []).flatMap(({ addresses, problem }) => [addresses, problem?.reason, problem?.message]);

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
  policy: Condition,
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
    conditions.push(about?.status === 'False' ? no('Programmed', 'NotAccepted', 'the rule is not in force') : policy);
    conditions.push(...[webhooks.refused.get(key) ?? []].flat());
    statuses.set(key, statusOf(rule, conditions, facts));
  }
}

/** By pool: the gateways that do not have its plan in force, with the reason. */
function gatewaysBehind({ pools, plans, peers }: StatusInput): Map<string, string[]> {
  const behind = new Map<string, string[]>();
  for (const { name, gateways } of pools) {
    const wanted = plans.get(name);
    // Gateways of a pool mostly share one plan object: compare it once.
    const compared = new Map<GatewayPlan, boolean>();
    const list: string[] = [];
    for (const gateway of Object.keys(gateways)) {
      const peer = peers.gateways.get(gateway);
      if (peer?.connected !== true) list.push(`${gateway} is not connected`);
      else if (peer.error !== undefined) list.push(`${gateway}: ${peer.error}`);
      else if (peer.inForce === undefined) list.push(`${gateway} has not acknowledged a plan yet`);
      else {
        const same = compared.get(peer.inForce) ?? sameJson(peer.inForce, wanted);
        compared.set(peer.inForce, same);
        if (!same) list.push(`${gateway} has an older plan`);
      }
    }
    behind.set(name, list);
  }
  return behind;
}

function poolProgrammed(name: string, behind: ReadonlyMap<string, string[]>): Condition {
  const list = behind.get(name);
  if (list === undefined) return no('Programmed', 'NotAccepted', 'the pool is not in use');
  if (list.length === 0) return yes('Programmed', 'Programmed', 'every gateway has the plan in force');
  return no('Programmed', 'GatewaysBehind', list.join('; '));
}

function policyProgrammed({ pools }: StatusInput, behind: ReadonlyMap<string, string[]>): Condition {
  if (pools.length === 0) return no('Programmed', 'NoGatewayPool', 'there is no GatewayPool');
  const list = pools.flatMap(({ name }) => behind.get(name) ?? []);
  if (list.length === 0) return yes('Programmed', 'Programmed', 'every gateway has the plan in force');
  return no('Programmed', 'GatewaysBehind', list.join('; '));
}

function poolFacts({ metadata, spec }: GatewayPool, { pools, plans, peers }: StatusInput): Record<string, unknown> {
  const pool = pools.find(({ name }) => name === metadata.name);
  return {
    shards: Object.keys(pool?.shards ?? {}).length,
    namespaces: pool?.namespaces.length ?? 0,
    auditedNamespaces: pool?.audited.length ?? 0,
    workloads: Object.keys(plans.get(metadata.name)?.workloads ?? {}).length,
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

function egressIPFacts(
  object: EgressIP,
  { allocation, shardOf, gatewayPoolOf, peers, assign }: StatusInput,
): { programmed: Condition; addresses: string[]; assignments: unknown[]; namespaces: number } {
  const { name } = object.metadata;
  const perFamily = allocation.addresses.get(name) ?? {};
  const addresses = families.flatMap((family) => perFamily[family] ?? []);
  const pool = gatewayPoolOf(object);
  const waiting: string[] = [];
  const assignments = addresses.flatMap((address) => {
    const shard = shardOf.get(address);
    if (shard === undefined) return [];
    const gateway = pool?.shards[shard]?.order[0];
    const inForce = gateway === undefined ? undefined : peers.gateways.get(gateway)?.inForce;
    if (inForce?.shards[shard]?.egressIPs.includes(address) !== true) waiting.push(`${address} on ${gateway}`);
    return [{ address, shard, ...(gateway === undefined ? {} : { gateway }) }];
  });
  const namespaces = assign.namespaces(name);
  const key = objectKey(object);
  const programmed =
    addresses.length === 0
      ? no('Programmed', 'NoAddress', `${key} has no address`)
      : assignments.length === 0
        ? no('Programmed', 'NoGatewayPool', 'its EgressIPPool names no GatewayPool in use')
        : waiting.length > 0
          ? no('Programmed', 'NotAcknowledged', `waits for ${waiting.join(', ')}`)
          : yes('Programmed', 'Programmed', 'its gateways have it in force');
  return { programmed, addresses, assignments, namespaces };
}
