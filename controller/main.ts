/** stub, see the next commit */
import type { Listen } from '../daemon/listen.ts';
import type { Logger } from '../daemon/log.ts';

export interface ControllerOptions {
  /** `directory:PATH` */
  source: string;
  state: string;
  listen: Listen;
  certs: string;
  metrics?: Listen;
  log: Logger;
}

export interface Controller {
  /** Ports in use, for port 0. */
  port: number;
  metricsPort?: number;
  close(): Promise<void>;
}

export function runController(options: ControllerOptions): Promise<Controller> {
  throw new Error(`not built yet: ${options.source}`);
}
