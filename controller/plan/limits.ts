/**
/**
 * Limits: over which shards each is divided, and what status tells of that. A limit counts the sources of a rule or of a
 * port together, wherever their egress IPs are; a gateway sees those of the shards that it holds.
 */
import { parseBandwidth } from '../../api/bandwidth.ts';
import type { EgressIP, ExternalService } from '../../api/kinds.ts';
import {
  contexts,
  type EgressBandwidth,
  type EgressIPEntry,
  families,
  type GatewayPlan,
  type RuleEntry,
  type ServiceEntry,
} from '../../api/plan.ts';
import { compileEgress } from '../../policy/egress.ts';
import { allLimitFields, divideLimit } from '../../policy/limits.ts';
import type { Part } from './memo.ts';

/** `pool/shard` of all that the sources of a limit use, sorted: by id of a rule with limits, or portsKey() of a service with some. */
export type LimitShards = ReadonlyMap<string, string[]>;

export function limitShards(
  plans: ReadonlyMap<string, Pick<GatewayPlan, 'workloads' | 'egressIPs' | 'destinations'>>,
  { rules, groups, services }: Pick<GatewayPlan, 'rules' | 'groups' | 'services'>,
): LimitShards {
  const found = new Map<string, Set<string>>();
  const limitedRules = new Map<string, Set<string>[]>();
  const ofGroup = (key: string): Set<string>[] => {
    let sets = limitedRules.get(key);
    if (sets === undefined) {
      const ids = contexts.flatMap((context) => groups[key]?.rules[context] ?? []);
      sets = ids.flatMap(limitsOf).map((name) => {
        const set = found.get(name) ?? new Set<string>();
        found.set(name, set);
        return set;
      });
      limitedRules.set(key, sets);
    }
    return sets;
  };
  function limitsOf(id: string): string[] {
    const rule = rules[id];
    if (rule === undefined) return [];
    return [...(rule.limits === undefined ? [] : [id]), ...limitedServices(rule, services).map(portsKey)];
  }
  for (const [pool, gatewayPlan] of plans) {
    const egress = compileEgress(gatewayPlan);
    for (const workload of Object.values(gatewayPlan.workloads)) {
      const sets = ofGroup(workload.group);
      if (sets.length === 0) continue;
      const used = families.flatMap((family) => egress.everything(workload, family));
      for (const set of sets) {
        for (const { shard } of used) {
          set.add(`${pool}/${shard}`);
        }
      }
    }
  }
  return new Map([...found].map(([id, shards]) => [id, [...shards].sort()]));
}

/** The rule as a plan has it. */
export function divided(id: string, rule: RuleEntry, shards: LimitShards): RuleEntry {
  if (rule.limits === undefined) return rule;
  return { ...rule, limits: { ...rule.limits, shards: shards.get(id) ?? [] } };
}

/** Services with limits of ports by which a rule accepts. */
function limitedServices(rule: RuleEntry, services: Part<ServiceEntry>): string[] {
  const accepts = rule.action === 'accept' || rule.action === 'accept-decisively';
  if (!accepts || rule.mode === 'Audit' || rule.services === '*') return [];
  return rule.services.filter((key) => services[key]?.limits !== undefined);
}

/** Whether a rule limits anything, by itself or by a port. */
export const hasLimits = (rule: RuleEntry, services: Part<ServiceEntry>): boolean =>
  rule.limits !== undefined || limitedServices(rule, services).length > 0;

/** Services as a plan has them: with the division of their ports' limits. What is not limited stays the same object. */
export function dividedPorts(
  services: Record<string, ServiceEntry>,
  shards: LimitShards,
): Record<string, ServiceEntry> {
  const divided: Record<string, ServiceEntry> = {};
  for (const [name, used] of shards) {
    if (!name.startsWith(PORTS_OF)) continue;
    const key = name.slice(PORTS_OF.length);
    const service = services[key];
    if (service?.limits === undefined) continue;
    divided[key] = { ...service, limits: service.limits.map((limit) => ({ ...limit, shards: used })) };
  }
  return Object.keys(divided).length === 0 ? services : { ...services, ...divided };
}

/** Without the division of its ports' limits, in which other namespaces have a part. */
export function undivided(service: ServiceEntry | undefined): ServiceEntry | undefined {
  if (service?.limits === undefined) return service;
  return { ...service, limits: service.limits.map(({ shards: _, ...limit }) => limit) };
}

const PORTS_OF = 'ports of ';
/** No id of a rule has a space. */
export const portsKey = (service: string): string => `${PORTS_OF}${service}`;

/** Over all namespaces: of what more than one may use. `limited`: rules of the cluster. */
export function clusterLimitShards(
  namespaces: readonly { limitShards: Part<string[]> }[],
  limited: Part<RuleEntry>,
): Map<string, string[]> {
  const shards = new Map<string, Set<string>>();
  for (const { limitShards } of namespaces) {
    for (const [name, used] of Object.entries(limitShards)) {
      if (!Object.hasOwn(limited, name) && !name.startsWith(PORTS_OF)) continue;
      const set = shards.get(name) ?? new Set<string>();
      shards.set(name, set);
      for (const shard of used) set.add(shard);
    }
  }
  return new Map([...shards].map(([name, set]) => [name, [...set].sort()]));
}

/** What a plan says of an EgressIP's bandwidth; undefined: nothing. `shards`: `pool/shard` of its addresses. */
export function egressBandwidthOf(
  { spec }: EgressIP,
  addresses: readonly string[],
  shards: string[],
): EgressBandwidth | undefined {
  const { egress, ingress } = spec.bandwidth ?? {};
  if (egress === undefined && ingress === undefined) return undefined;
  return {
    ...(egress !== undefined && { egress: parseBandwidth(egress) }),
    ...(ingress !== undefined && { ingress: parseBandwidth(ingress) }),
    addresses: [...addresses].sort(),
    shards,
  };
}

/** `status.limits` of a rule; empty while no source uses a shard. */
export function limitFacts(rule: RuleEntry | undefined, shards: readonly string[] = []): Record<string, unknown> {
  const { limits } = rule ?? {};
  return limits === undefined ? {} : { limits: divisionOf(limits, allLimitFields, shards) };
}

/** `status.limits` of an external service: of each port that has one. `shards`: of portsKey(). */
export function portFacts({ spec }: ExternalService, shards: readonly string[] = []): Record<string, unknown> {
  const limited = (spec.ports ?? []).filter(({ bandwidth }) => bandwidth !== undefined);
  if (limited.length === 0) return {};
  const facts = limited.flatMap(({ name, bandwidth = '' }) =>
    divisionOf({ bandwidth: parseBandwidth(bandwidth) }, ['bandwidth'], shards).map((fact) => ({
      port: name,
      ...fact,
    })),
  );
  // As many as the object's schema takes.
  return { limits: facts.slice(0, 1024) };
}

/** `status.limits` of an EgressIP. */
export function egressFacts({ bandwidth, limits }: EgressIPEntry = {}): Record<string, unknown> {
  const shards = (limits ?? bandwidth)?.shards;
  if (shards === undefined) return {};
  return { limits: divisionOf({ ...limits, ...bandwidth }, ['maxConnections', 'egress', 'ingress'], shards) };
}

function divisionOf<Field extends string>(
  limits: Partial<Record<Field, number>>,
  fields: readonly Field[],
  shards: readonly string[],
): Record<string, string | number>[] {
  const facts = shards.map((name): Record<string, string | number> => {
    const slash = name.indexOf('/');
    return { pool: name.slice(0, slash), shard: name.slice(slash + 1) };
  });
  for (const field of fields) {
    const limit = limits[field];
    if (limit === undefined) continue;
    for (const [at, share] of [...divideLimit(limit, shards).values()].entries()) {
      const fact = facts[at];
      if (fact !== undefined) fact[field] = share;
    }
  }
  return facts;
}
