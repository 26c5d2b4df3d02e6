/**
 * Rules with limits: over which shards each is divided, and what its status tells of that. A limit counts a rule's
 * sources together, wherever their egress IPs are; a gateway sees those of the shards that it holds.
 */
import { contexts, families, type GatewayPlan, type RuleEntry } from '../../api/plan.ts';
import { divideLimit, limitFields } from '../../policy/limits.ts';

/** Rule id → `pool/shard` of all that its sources use, sorted; of rules with limits. */
export function limitShards(
  plans: ReadonlyMap<string, Pick<GatewayPlan, 'workloads'>>,
  { rules, groups }: Pick<GatewayPlan, 'rules' | 'groups'>,
): Map<string, string[]> {
  const found = new Map<string, Set<string>>();
  const limitedRules = new Map<string, Set<string>[]>();
  const ofGroup = (key: string): Set<string>[] => {
    let sets = limitedRules.get(key);
    if (sets === undefined) {
      const ids = contexts.flatMap((context) => groups[key]?.rules[context] ?? []);
      sets = ids.flatMap((id) => {
        if (rules[id]?.limits === undefined) return [];
        const set = found.get(id) ?? new Set<string>();
        found.set(id, set);
        return [set];
      });
      limitedRules.set(key, sets);
    }
    return sets;
  };
  for (const [pool, { workloads }] of plans) {
    for (const { group, egress } of Object.values(workloads)) {
      for (const set of ofGroup(group)) {
        for (const family of families) {
          const shard = egress[family]?.shard;
          if (shard !== undefined) set.add(`${pool}/${shard}`);
        }
      }
    }
  }
  return new Map([...found].map(([id, shards]) => [id, [...shards].sort()]));
}

/** The rule as a plan has it. */
export function divided(id: string, rule: RuleEntry, shards: ReadonlyMap<string, string[]>): RuleEntry {
  if (rule.limits === undefined) return rule;
  return { ...rule, limits: { ...rule.limits, shards: shards.get(id) ?? [] } };
}

/** `status.limits`; empty while no source uses a shard. */
export function limitFacts(rule: RuleEntry | undefined, shards: readonly string[] = []): Record<string, unknown> {
  const { limits } = rule ?? {};
  if (limits === undefined) return {};
  const facts = shards.map((name): Record<string, string | number> => {
    const slash = name.indexOf('/');
    return { pool: name.slice(0, slash), shard: name.slice(slash + 1) };
  });
  for (const field of limitFields) {
    const limit = limits[field];
    if (limit === undefined) continue;
    for (const [at, share] of [...divideLimit(limit, shards).values()].entries()) {
      const fact = facts[at];
      if (fact !== undefined) fact[field] = share;
    }
  }
  return { limits: facts };
}
