/**
 * Which plan a stage has, by its number of namespaces: up to 1,000 of plan.ts (five pods each, or 25 of a single one), and
 * from 10,000 that of the large cluster, ten pods and ten rules each (scale-plan.ts).
 */
import type { GatewayPlan, PoolSettings, SteeringMode } from '../api/plan.ts';
import { generatePlan, NEXT_HOP } from './plan.ts';
import { generateScalePlan, issueSize } from './scale-plan.ts';

export const LARGE = 10_000;
/** Of the load, at most: the first node's. */
export const sourcesOf = (namespaces: number): number => (namespaces >= LARGE ? 250 : 25);

export function plannedFor({ namespaces, steering }: { namespaces: number; steering: SteeringMode }): GatewayPlan {
  const plan =
    namespaces >= LARGE
      ? generateScalePlan({ ...issueSize, namespaces, egressIPs: namespaces })
      : generatePlan({ namespaces, pods: namespaces === 1 ? 25 : 5 });
  const { pool } = plan.settings as { pool: PoolSettings };
  pool.steering = { ...pool.steering, mode: steering };
  if (plan.shards.s0 !== undefined) plan.shards.s0.nextHops = { 4: NEXT_HOP };
  return plan;
}

export const podsOf = (namespaces: number): number =>
  namespaces === 1 ? 25 : namespaces * (namespaces >= LARGE ? 10 : 5);
