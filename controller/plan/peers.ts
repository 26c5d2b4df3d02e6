/** What is known of the gateways and nodes: connected or not, and the plan that each said it has in force. */
import type { GatewayPlan, NodePlan } from '../../api/plan.ts';

export interface Peer<P> {
  connected: boolean;
  /** The machine's own addresses, as its hello named them. */
  addresses: string[];
  /** Generation that was acknowledged last; 0: none that we know. */
  generation: number;
  /** The plan of that generation; absent if the controller no longer has it (restart). */
  inForce?: P;
  /** Why the newest plan could not be applied. */
  error?: string;
}

export interface Peers {
  gateways: ReadonlyMap<string, Peer<GatewayPlan>>;
  nodes: ReadonlyMap<string, Peer<NodePlan>>;
}

export const noPeers = (): Peers => ({ gateways: new Map(), nodes: new Map() });
