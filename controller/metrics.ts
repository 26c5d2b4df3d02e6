/** Metrics of the controller: what it has, what it is busy with, who is connected. */
import { Counter, Gauge, Histogram } from 'prom-client';
import { createRegistry } from '../daemon/http.ts';
import type { Lists } from './observe/lists.ts';
import type { Versions } from './publish/versions.ts';

export function controllerMetrics() {
  const registry = createRegistry('controller');
  const registers = [registry];
  const gauge = (name: string, help: string, ...labelNames: string[]) =>
    new Gauge({ name: `sluice_controller_${name}`, help, labelNames, registers });
  const objects = gauge('objects', 'Objects in force, by kind', 'kind');
  const rejected = gauge('rejected_documents', 'Documents that are refused at present');
  const clients = gauge('clients', 'Gateways and nodes that are connected', 'role');
  const current = gauge('generation', 'Generation of the newest plan');
  const held = gauge('held_workloads', 'Pods that wait for a gateway to acknowledge them');
  const lists = gauge('lists', 'Lists of addressesFrom: the newest in force, an older one, or none', 'state');
  const heldPools = gauge('held_pools', 'Pools whose plan is held until it is confirmed');
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
    observe(
      counts: ReadonlyMap<string, number>,
      errors: number,
      versions: Versions,
      generation: number,
      waiting: number,
      known: Lists,
    ): void {
      plans.inc();
      objects.reset();
      for (const [kind, count] of counts) if (count > 0) objects.set({ kind }, count);
      rejected.set(errors);
      for (const role of ['gateway', 'node'] as const) clients.set({ role }, versions.connected(role));
      current.set(generation);
      held.set(waiting);
      for (const [state, count] of Object.entries(known.counts())) lists.set({ state }, count);
    },
  };
}
