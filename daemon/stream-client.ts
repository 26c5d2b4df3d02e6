/** stub, see the next commit */
import type { PlanOf, PlanRole } from '../api/plan.ts';
import type { Logger } from './log.ts';

export interface PlanClientOptions<R extends PlanRole> {
  role: R;
  name: string;
  /** `https://10.0.0.10:7790` */
  url: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** The machine's own addresses, canonical; the controller puts them into other plans. */
  addresses: string[];
  saved?: { generation: number; hash: string; plan: PlanOf[R] };
  /** Called for one plan at a time; plans that arrive meanwhile are coalesced to the newest. Throwing is a nack. */
  onPlan(plan: PlanOf[R], generation: number): Promise<void>;
  onState?(state: 'connected' | 'disconnected'): void;
  log: Logger;
}

export interface PlanClient {
  close(): Promise<void>;
}

export function startPlanClient<R extends PlanRole>(options: PlanClientOptions<R>): PlanClient {
  throw new Error(`not built yet: ${options.name}`);
}
