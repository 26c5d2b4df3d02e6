/**
 * The controller's end of the harness, in a gateway's network namespace: a real plan server with a generated plan. By IPC it
 * is told to publish, and to change the plan for as long as that is wanted: in each tick some rules' destinations, and some
 * pods that come or go, none of them of the namespaces that the load comes from.
 *   node plan-publisher.js CERTS PLAN(JSON)
 */
import type { GatewayPlan, ServiceEntry, SteeringMode, WorkloadEntry } from '../api/plan.ts';
import { silentLog } from '../daemon/log.ts';
import { startPlanServer } from '../daemon/stream-server.ts';
import { plannedFor } from './planned.ts';

export interface Planned {
  namespaces: number;
  steering: SteeringMode;
}
export interface Churn {
  rules: number;
  pods: number;
  everyMs: number;
}
export type Order = { publish: true } | { churn: Churn } | { calm: true };
export type Told =
  | { listening: number }
  | { published: number }
  | { answered: number; error?: string }
  /** Since churn began: plans published, and those of them that are in force (the gateway's last answer). */
  | { calm: { published: number; answered: number } };

/** Namespaces of the load's pods, which stay as they are. */
const QUIET = 50;

const [certs = '', planned = '{}'] = process.argv.slice(2);
const tell = (told: Told): void => void process.send?.(told);
let plan: GatewayPlan = plannedFor(JSON.parse(planned) as Planned);
let generation = 0;
let [first, last] = [0, 0];
let timer: NodeJS.Timeout | undefined;
const server = await startPlanServer({
  listen: { host: '127.0.0.1', port: 0 },
  certs,
  log: silentLog(),
  onHello: () => undefined,
  onAck: (_client, answered, error) => {
    last = answered;
    tell({ answered, ...(error !== undefined && { error }) });
  },
  onGone: () => undefined,
});

const publish = (): void => server.publish('gateway', 'gw-a', plan, ++generation);

/** Service keys of rules, and pods, that may change; both in an order in which neighbours are of different namespaces. */
const outside = (name: string): boolean => Number(/^team-(\d+)/.exec(name)?.[1] ?? 0) >= QUIET;
const services = Object.keys(plan.services).filter(outside);
const pods = Object.entries(plan.workloads).filter(([, { namespace }]) => outside(namespace));
const STRIDE = 7_919;
const away = new Map<string, WorkloadEntry>();
let [service, pod] = [0, 0];

function change({ rules, pods: many }: Churn): void {
  const changed = { ...plan, services: { ...plan.services }, workloads: { ...plan.workloads } };
  for (let at = 0; at < rules && services.length > 0; at++) {
    const key = services[(service++ * STRIDE) % services.length] ?? '';
    const before = changed.services[key] as ServiceEntry;
    const other = `192.88.99.${service % 250}/32`;
    const kept = before.addresses.filter((address) => !address.startsWith('192.88.99.'));
    changed.services[key] = { ...before, addresses: kept.length < before.addresses.length ? kept : [...kept, other] };
  }
  for (let at = 0; at < many && pods.length > 0; at++) {
    const [uid, workload] = pods[(pod++ * STRIDE) % pods.length] as [string, WorkloadEntry];
    if (uid in changed.workloads) {
      delete changed.workloads[uid];
      away.set(uid, workload);
    } else {
      changed.workloads[uid] = workload;
      away.delete(uid);
    }
  }
  plan = changed;
  publish();
}

process.on('message', (order: Order) => {
  if ('publish' in order) {
    publish();
    tell({ published: generation });
  } else if ('churn' in order) {
    first = generation;
    timer ??= setInterval(() => change(order.churn), order.churn.everyMs);
  } else {
    clearInterval(timer);
    timer = undefined;
    tell({ calm: { published: generation - first, answered: Math.max(0, last - first) } });
  }
});
process.on('disconnect', () => process.exit(0));
tell({ listening: server.port });
