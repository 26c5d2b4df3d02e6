/**
 * A pool's plan, put together from what its namespaces add, with the rules of the cluster that these use and the services
 * that those name. What nothing changed for is the same object from plan to plan, the whole plan too.
 */
import type {
  DestinationTable,
  GatewayPlan,
  GroupEntry,
  RuleEntry,
  ServiceEntry,
  WorkloadEntry,
} from '../../api/plan.ts';
import { diffPlan } from '../../api/plan-delta.ts';
import { knowDifference } from '../../api/plan-difference.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import { stable } from '../../policy/admit.ts';
import { type CarriedNamespace, servicesOf } from './carried.ts';
import { divided, dividedPorts, type LimitShards } from './limits.ts';
import { type Part, sameItems, sameRecord, Union } from './memo.ts';

const nothing = { workloads: {}, groups: {}, rules: {}, services: {} };

export class PoolPlan {
  readonly #workloads = new Union<WorkloadEntry>();
  readonly #groups = new Union<GroupEntry>();
  readonly #rules = new Union<RuleEntry>();
  readonly #services = new Union<ServiceEntry>();
  readonly #tables = new Union<DestinationTable>();
  /** Id of a rule of the cluster → how many namespaces use it. */
  readonly #uses = new Map<string, number>();
  #cluster: { rules: Part<RuleEntry>; services: Part<ServiceEntry> } | undefined;
  #plan: GatewayPlan | undefined;

  /** Of one namespace, if this pool carries it. */
  replace(before: CarriedNamespace | undefined, now: CarriedNamespace | undefined): void {
    this.#workloads.replace(before?.workloads, now?.workloads);
    this.#groups.replace(before?.groups, now?.groups);
    this.#rules.replace(before?.rules, now?.rules);
    this.#services.replace(before?.services, now?.services);
    this.#tables.replace(before?.tables, now?.tables);
    if (before?.usedClusterRules === now?.usedClusterRules) return;
    for (const id of before?.usedClusterRules ?? []) use(this.#uses, id, -1);
    for (const id of now?.usedClusterRules ?? []) use(this.#uses, id, 1);
  }

  /** After all replacements. `fixed`: what is the same whatever the namespaces are. */
  plan(
    fixed: Pick<GatewayPlan, 'settings' | 'gateways' | 'nodes' | 'shards' | 'egressIPs'>,
    cluster: AdmittedRules,
    shardsOfLimits: LimitShards,
  ): GatewayPlan {
    const entries = [...this.#uses.keys()].flatMap((id) => {
      const rule = cluster.rules[id];
      return rule === undefined ? [] : [[id, divided(id, rule, shardsOfLimits)] as const];
    });
    const now = {
      rules: sameRecord(this.#cluster?.rules, Object.fromEntries(entries)),
      services: sameRecord(this.#cluster?.services, servicesOf(entries, cluster.services)),
    };
    this.#rules.replace(this.#cluster?.rules, now.rules);
    this.#services.replace(this.#cluster?.services, now.services);
    this.#cluster = now;
    const plan: GatewayPlan = {
      ...fixed,
      settings: stable(this.#plan?.settings, fixed.settings),
      egressIPs: sameRecord(this.#plan?.egressIPs, fixed.egressIPs),
      workloads: this.#workloads.record,
      destinations: this.#tables.record,
      groups: this.#groups.record,
      rules: this.#rules.record,
      services: this.#divided(this.#services.record, shardsOfLimits),
    };
    if (this.#plan !== undefined) {
      if (sameItems(Object.values(this.#plan), Object.values(plan))) return this.#plan;
      this.#tellDifference(this.#plan, plan);
    }
    this.#plan = plan;
    return this.#plan;
  }

  /** To the plan stream, which would else compare all entries of both. */
  #tellDifference(from: GatewayPlan, to: GatewayPlan): void {
    const unions: Record<keyof typeof nothing, Union<unknown>> = {
      workloads: this.#workloads,
      groups: this.#groups,
      rules: this.#rules,
      services: this.#services,
    };
    // What is long is left out here.
    const delta = diffPlan({ ...from, ...nothing }, { ...to, ...nothing });
    for (const name of Object.keys(unions) as (keyof typeof unions)[]) {
      if (from[name] === to[name]) continue;
      const changes = to[name] === unions[name].record ? unions[name].changesFrom(from[name]) : undefined;
      if (changes === undefined) return;
      if (Object.keys(changes.set).length > 0) delta.set[name] = changes.set;
      if (changes.gone.length > 0) delta.delete[name] = changes.gone;
    }
    knowDifference(from, to, delta);
  }

  #divided(services: Record<string, ServiceEntry>, shards: LimitShards): Record<string, ServiceEntry> {
    const divided = dividedPorts(services, shards);
    return divided === services ? services : sameRecord(this.#plan?.services, divided);
  }
}

function use(uses: Map<string, number>, key: string, by: number): void {
  const now = (uses.get(key) ?? 0) + by;
  if (now === 0) uses.delete(key);
  else uses.set(key, now);
}
