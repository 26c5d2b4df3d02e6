/** stub, see the next commit */
import type { GatewayPlan, NodePlan } from '../../api/plan.ts';
import type { Status } from './condition.ts';
import type { PlannerMemory } from './memory.ts';
import type { Peers } from './peers.ts';
import type { Snapshot } from './snapshot.ts';

export interface Warning {
  object: string;
  reason: string;
  message: string;
}

export interface PlanResult {
  /** By GatewayPool name; the same plan for every gateway of the pool. */
  pools: Map<string, GatewayPlan>;
  /** Gateway → its pool. */
  gateways: Map<string, string>;
  /** By node name. */
  nodes: Map<string, NodePlan>;
  statuses: Map<string, Status>;
  warnings: Warning[];
  memory: PlannerMemory;
  /** Pods that wait for an acknowledgement. */
  held: number;
}

export function plan(snapshot: Snapshot, memory: PlannerMemory, peers: Peers, now: number): PlanResult {
  throw new Error(`not built yet: ${snapshot.size} ${memory} ${peers} ${now}`);
}
