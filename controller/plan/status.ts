/**
 * What people see of their objects: Accepted (understood and used), Conflicted (another object has what it asks for,
 * named), Programmed (in force on the gateways that matter), and a few facts. Pure; without times.
 */
import { hitsIdOfObject } from '../../api/hits.ts';
import { type EgressIP, type GatewayPool, objectKey } from '../../api/kinds.ts';
import { families, type GatewayPlan } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { Binding } from '../../policy/bind.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { type ScheduleState, timeText } from '../../policy/schedule.ts';
import type { AllocationResult } from './allocate.ts';
import type { Assigner } from './assign.ts';
import type { Condition, Findings, Status } from './condition.ts';
import { limitFacts } from './limits.ts';
import { listFacts, listProblem } from './list-status.ts';
import type { Peers } from './peers.ts';
import type { Pool } from './pools.ts';
import type { Snapshot } from './snapshot.ts';
import type { PlannedWebhooks } from './webhooks.ts';

export interface StatusInput {
  snapshot: Snapshot;
  lists: KnownLists;
  pools: readonly Pool[];
  plans: ReadonlyMap<string, GatewayPlan>;
  peers: Peers;
  allocation: AllocationResult;
  shardOf: ReadonlyMap<string, string>;
  gatewayPoolOf(egressIP: EgressIP): Pool | undefined;
  assign: Assigner;
  binding: Binding;
  webhooks: PlannedWebhooks;
  /** Rule id → `pool/shard` over which its limits are divided. */
  shardsOfLimits: ReadonlyMap<string, string[]>;
  findings: Findings;
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

export function statusesOf(input: StatusInput): Map<string, Status> {
  const statuses = new Map<string, Status>();
  const rules = new Map(input.binding.conditions.map((condition) => [condition.objectKey, condition]));
  const behind = gatewaysBehind(input);
  const policy = policyProgrammed(input, behind);
  for (const [key, object] of input.snapshot) {
    const found = input.findings.of(key);
    const generation = object.metadata.generation;
    const facts: Record<string, unknown> = {};
    const conditions: Condition[] = [];
    switch (object.kind) {
      case 'GatewayPool':
        Object.assign(facts, poolFacts(object, input));
        conditions.push(accepted(), conflicted(), poolProgrammed(object.metadata.name, behind));
        break;
      case 'EgressIPPool': {
        const missing = !input.pools.some(({ name }) => name === object.spec.gatewayPool);
        const message = `GatewayPool ${object.spec.gatewayPool} does not exist or is not accepted`;
        facts.inUse = Object.values(input.allocation.allocations).filter(
          ({ pool, releasedAt }) => pool === object.metadata.name && releasedAt === undefined,
        ).length;
        conditions.push(missing ? no('Accepted', 'NoSuchPool', message) : accepted(), conflicted());
        break;
      }
      case 'EgressIP': {
        const { programmed, ...rest } = egressIPFacts(object, input);
        Object.assign(facts, rest);
        conditions.push(accepted(), conflicted(), find('Programmed') ?? programmed);
        break;
      }
      case 'ClusterEgressRule':
      case 'NamespaceEgressRule':
      case 'ServiceEgressRule': {
        const rule = rules.get(key);
        if (rule === undefined) conditions.push(accepted());
        else conditions.push({ type: rule.type, status: rule.status, reason: rule.reason, message: rule.message });
        if (rule?.schedule !== undefined) Object.assign(facts, scheduleFacts(rule.schedule));
        const id = hitsIdOfObject(key) ?? '';
        Object.assign(facts, limitFacts(input.binding.rules[id], input.shardsOfLimits.get(id)));
        conditions.push(
          rule?.status === 'False' ? no('Programmed', 'NotAccepted', 'the rule is not in force') : policy,
        );
        conditions.push(...[input.webhooks.refused.get(key) ?? []].flat());
        break;
      }
      case 'ExternalService': {
        const lists = input.lists.get(key.slice('ExternalService/'.length));
        Object.assign(facts, listFacts(object, lists));
        conditions.push(listProblem(object, lists) ?? accepted());
        break;
      }
      default:
        continue;
    }
    statuses.set(key, {
      ...(generation === undefined ? {} : { observedGeneration: generation }),
      conditions,
      ...facts,
    });

    function find(type: Condition['type']): Condition | undefined {
      return found.find((condition) => condition.type === type);
    }
    function accepted(): Condition {
      return find('Accepted') ?? yes('Accepted', 'Accepted', 'understood and in use');
    }
    function conflicted(): Condition {
      return find('Conflicted') ?? no('Conflicted', 'NoConflict', 'no other object has what this one asks for');
    }
  }
  return statuses;
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
