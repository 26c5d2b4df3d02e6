/**
 * What the gateways have in force: of a pool all of its plan, of a rule what is said of that rule. So a change shows on
 * the rules that it changed, until the gateways have it, and not on every rule there is. A gateway that is not
 * connected keeps what it had.
 */
import { contexts, type GatewayPlan } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import type { CarriedNamespace } from './carried.ts';
import type { Condition } from './condition.ts';
import { undivided } from './limits.ts';
import type { Peers } from './peers.ts';
import type { Pool } from './pools.ts';

/** When plans were made and namespaces changed, as far as that is remembered, in runs of the planner. */
export interface PlanHistory {
  madeAt(plan: GatewayPlan): number | undefined;
  changedAt(namespace: string): number;
}

export interface ProgrammedInput {
  pools: readonly Pool[];
  plans: ReadonlyMap<string, GatewayPlan>;
  peers: Peers;
  cluster: AdmittedRules;
  namespaces: readonly CarriedNamespace[];
  history: PlanHistory;
}

interface Behind {
  text: string;
  /** What it has instead; absent: that is not known. */
  inForce?: GatewayPlan | undefined;
}

interface BehindRules extends Behind {
  /** Ids of the rules that are others there; absent: that is not known. */
  changed?: ReadonlySet<string>;
}

const programmed = (message: string): Condition => ({
  type: 'Programmed',
  status: 'True',
  reason: 'Programmed',
  message,
});
const notProgrammed = (reason: string, message: string): Condition => ({
  type: 'Programmed',
  status: 'False',
  reason,
  message,
});
const everywhere = programmed('every gateway has it in force');

export class ProgrammedRules {
  readonly #pools: readonly Pool[];
  /** By pool. */
  readonly #behind = new Map<string, BehindRules[]>();

  constructor(input: ProgrammedInput) {
    this.#pools = input.pools;
    for (const [pool, list] of gatewaysBehind(input)) {
      const wanted = input.plans.get(pool);
      const known = new Map<GatewayPlan, ReadonlySet<string>>();
      const behind = list.map((one): BehindRules => {
        const { inForce } = one;
        if (wanted === undefined || inForce === undefined) return one;
        const changed = known.get(inForce) ?? changedRules(input, pool, inForce, wanted);
        known.set(inForce, changed);
        return { ...one, changed };
      });
      this.#behind.set(pool, behind);
    }
  }

  ofPool(name: string): Condition {
    const list = this.#behind.get(name);
    if (list === undefined) return notProgrammed('NotAccepted', 'the pool is not in use');
    if (list.length === 0) return programmed('every gateway has the plan in force');
    return notProgrammed('GatewaysBehind', list.map(({ text }) => text).join('; '));
  }

  /** `pool`: that carries its namespace; absent: none, or it is a rule of the cluster. */
  ofRule(id: string, pool?: string): Condition {
    if (this.#pools.length === 0) return notProgrammed('NoGatewayPool', 'there is no GatewayPool');
    // Asked for every rule.
    if (pool !== undefined && this.#behind.get(pool)?.length === 0) return everywhere;
    const lists = pool === undefined ? [...this.#behind.values()] : [this.#behind.get(pool) ?? []];
    const concerns = ({ changed }: BehindRules): boolean => changed === undefined || changed.has(id);
    if (!lists.some((list) => list.some(concerns))) return everywhere;
    const texts = lists.flatMap((list) => list.filter(concerns).map(({ text }) => text));
    return notProgrammed('GatewaysBehind', texts.join('; '));
  }
}

/** By pool: the gateways that do not have its plan in force, with the reason. */
function gatewaysBehind({ pools, plans, peers }: ProgrammedInput): Map<string, Behind[]> {
  return new Map(
    pools.map(({ name, gateways }) => {
      const wanted = plans.get(name);
      // Gateways of a pool mostly share one plan object: compare it once.
      const compared = new Map<GatewayPlan, boolean>();
      const list = Object.keys(gateways).flatMap((gateway): Behind[] => {
        const peer = peers.gateways.get(gateway);
        const inForce = peer?.inForce;
        if (peer?.connected !== true) return [{ text: `${gateway} is not connected`, inForce }];
        if (peer.error !== undefined) return [{ text: `${gateway}: ${peer.error}`, inForce }];
        if (inForce === undefined) return [{ text: `${gateway} has not acknowledged a plan yet` }];
        const same = compared.get(inForce) ?? sameJson(inForce, wanted);
        compared.set(inForce, same);
        return same ? [] : [{ text: `${gateway} has an older plan`, inForce }];
      });
      return [name, list];
    }),
  );
}

/** Rules that are not what they were, and those that a group of pods has now or had before. */
function changedRules(
  { cluster, namespaces, history }: ProgrammedInput,
  pool: string,
  before: GatewayPlan,
  now: GatewayPlan,
): Set<string> {
  const changed = new Set<string>();
  const since = history.madeAt(before);
  const compare = (ids: Iterable<string>): void => {
    for (const id of ids) if (!sameRule(id, before, now)) changed.add(id);
  };
  compare(cluster.bound.map(({ id }) => id));
  for (const { state, binding, groups } of namespaces) {
    if (state.pool !== pool || (since !== undefined && history.changedAt(state.objects.name) <= since)) continue;
    compare(binding.own.namespace.bound.map(({ id }) => id));
    compare(binding.own.service.bound.map(({ id }) => id));
    for (const [key, group] of Object.entries(groups)) {
      const was = before.groups[key];
      if (was === undefined || was === group) continue;
      for (const context of contexts) {
        const [had, has] = [new Set(was.rules[context]), new Set(group.rules[context])];
        for (const id of [...had, ...has]) if (!had.has(id) || !has.has(id)) changed.add(id);
      }
    }
  }
  return changed;
}

function sameRule(id: string, before: GatewayPlan, now: GatewayPlan): boolean {
  const [was, is] = [before.rules[id], now.rules[id]];
  if (was !== is && !sameJson(was, is)) return false;
  if (is === undefined || is.services === '*') return true;
  return is.services.every((key) => {
    const [had, has] = [before.services[key], now.services[key]];
    return had === has || sameJson(undivided(had), undivided(has));
  });
}
