/**
 * The controller's end of bench/inspection.ts, in the gateway's network namespace: a real plan server. By IPC it is told
 * which of its plans to publish, and tells what the gateway answers.
 *   node inspection-publisher.js CERTS PODS WORKERS
 */
import { silentLog } from '../daemon/log.ts';
import { startPlanServer } from '../daemon/stream-server.ts';
import { inspectionPlan, type Way } from './inspection-plan.ts';

export interface Order {
  publish: Way;
}
export type Told = { listening: number } | { answered: number; error?: string } | { published: number };

const [certs = '', pods = '', workers = ''] = process.argv.slice(2);
const tell = (told: Told): void => void process.send?.(told);
let generation = 0;
const server = await startPlanServer({
  listen: { host: '127.0.0.1', port: 0 },
  certs,
  log: silentLog(),
  onHello: () => undefined,
  onAck: (_client, answered, error) => tell({ answered, ...(error !== undefined && { error }) }),
  onGone: () => undefined,
});
process.on('message', ({ publish }: Order) => {
  server.publish('gateway', 'gw-a', inspectionPlan(publish, Number(pods), Number(workers)), ++generation);
  tell({ published: generation });
});
process.on('disconnect', () => process.exit(0));
tell({ listening: server.port });
