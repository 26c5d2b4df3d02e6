/** Metrics of the controller: what it has, what it is busy with, who is connected. */
import { Counter, Gauge, Histogram } from 'prom-client';
import type { PlanRole } from '../api/plan.ts';
import { createRegistry } from '../daemon/http.ts';
import type { Lists } from './observe/lists.ts';

export function controllerMetrics() {
  const registry = createRegistry('controller');
  const registers = [registry];
  const gauge = (name: string, help: string, ...labelNames: string[]) =>
    new Gauge({ name: `sluice_controller_${name}`, help, labelNames, registers });
  const objects = gauge('objects', 'Objects in force, by kind', 'kind');
  const rejected = gauge('rejected_documents', 'Documents that are refused at present');
  const leads = gauge('leads', 'Whether this controller leads; one that does not stands by');
  const current = gauge('generation', 'Generation of the newest plan');
  const held = gauge('held_workloads', 'Pods that wait for a gateway to acknowledge them');
  const lists = gauge('lists', 'Lists of addressesFrom: the newest in force, an older one, or none', 'state');
  const heldPools = gauge('held_pools', 'Pools whose plan is held until it is confirmed');
  let clientsOf: (role: PlanRole) => number = () => 0;
  new Gauge({
    name: 'sluice_controller_clients',
    help: 'Gateways and nodes that are connected',
    labelNames: ['role'],
    registers,
    collect() {
      for (const role of ['gateway', 'node'] as const) this.set({ role }, clientsOf(role));
    },
  });
  const plans = new Counter({ name: 'sluice_controller_plans_total', help: 'Plans computed', registers });
  const duration = new Histogram({
    name: 'sluice_controller_plan_duration_seconds',
    help: 'Time to compute a plan',
    buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3],
    registers,
  });
  return {
    registry,
    duration,
    heldPools,
    leads,
    /** Asked when metrics are. */
    countClients(count: typeof clientsOf): void {
      clientsOf = count;
    },
    observe(
      counts: ReadonlyMap<string, number>,
      errors: number,
      generation: number,
      waiting: number,
      known: Pick<Lists, 'counts'>,
    ): void {
      plans.inc();
      objects.reset();
      for (const [kind, count] of counts) if (count > 0) objects.set({ kind }, count);
      rejected.set(errors);
      current.set(generation);
      held.set(waiting);
      for (const [state, count] of Object.entries(known.counts())) lists.set({ state }, count);
    },
  };
}
