/**
 * The controller's end of bench/scale.ts, in the gateway's network namespace: a real plan server with the plan of
 * scale-plan.ts. By IPC: the parent asks for the first plan, has the next one made ready (its difference found, as the
 * controller finds it before it publishes) and then published; every answer of the gateway is told, with its time.
 *   node scale-publisher.js CERTS SIZE(JSON)
 */
import type { GatewayPlan } from '../api/plan.ts';
import { differenceOf } from '../api/plan-difference.ts';
import { silentLog } from '../daemon/log.ts';
import { startPlanServer } from '../daemon/stream-server.ts';
import { changes } from './scale-changes.ts';
import { generateScalePlan, type ScaleSize } from './scale-plan.ts';

export type Order =
  /** Index into `changes`; undefined: the plan without any. */
  { prepare: number | undefined } | { publish: true };

/** Times are nanoseconds of the machine's monotonic clock, which all of its processes share. */
export type Told =
  | { listening: number; generateMs: number }
  | { prepared: number }
  | { published: string; generation: number }
  | { answered: string; generation: number; error?: string }
  | { gone: true };

const [certs = '', size = '{}'] = process.argv.slice(2);
const tell = (told: Told): void => void process.send?.(told);
const now = (): string => String(process.hrtime.bigint());

const began = performance.now();
const base: GatewayPlan = generateScalePlan(JSON.parse(size) as ScaleSize);
const generateMs = performance.now() - began;
let current = base;
let next = base;
let generation = 0;
const server = await startPlanServer({
  listen: { host: '127.0.0.1', port: 0 },
  certs,
  log: silentLog(),
  onHello: () => undefined,
  onAck: (_client, acknowledged, error) =>
    tell({ answered: now(), generation: acknowledged, ...(error !== undefined && { error }) }),
  onGone: () => tell({ gone: true }),
});

process.on('message', (order: Order) => {
  if ('publish' in order) {
    const published = now();
    generation++;
    server.publish('gateway', 'gw-a', next, generation);
    current = next;
    tell({ published, generation });
    return;
  }
  next = order.prepare === undefined ? base : (changes[order.prepare]?.make(base) ?? base);
  const start = performance.now();
  differenceOf(current, next);
  tell({ prepared: performance.now() - start });
});
process.on('disconnect', () => process.exit(0));
tell({ listening: server.port, generateMs });
