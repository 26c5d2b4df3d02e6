/** stub, see the next commit */
import type { PlanOf, PlanRole } from '../api/plan.ts';
import type { Listen } from './listen.ts';
import type { Logger } from './log.ts';

/** A gateway or node that is connected, as it said in its hello. */
export interface PlanPeer {
  role: PlanRole;
  name: string;
  /** The machine's own addresses, canonical text. */
  addresses: string[];
  /** Generation and content hash of the plan that it has in force; 0 and '' if none. */
  generation: number;
  hash: string;
}

export interface PlanServerOptions {
  listen: Listen;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  log: Logger;
  onHello(client: PlanPeer): void;
  /** A plan is in force (no error), or could not be applied. */
  onAck(client: PlanPeer, generation: number, error?: string): void;
  onGone(client: PlanPeer): void;
}

export interface PlanServer {
  port: number;
  /** Makes this the plan of (role, name); sent at once if connected, else as soon as it is. */
  publish<R extends PlanRole>(role: R, name: string, plan: PlanOf[R], generation: number): void;
  close(): Promise<void>;
}

export function startPlanServer(options: PlanServerOptions): Promise<PlanServer> {
  throw new Error(`not built yet: ${options.listen.host}`);
}
