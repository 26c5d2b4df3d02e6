/**
 * Metrics of limited bandwidth beside the drops of its buckets (metrics.ts, reason `bandwidth`): what found a queue full, and
 * where nothing can be queued.
 */
import { Counter, Gauge, type Registry } from 'prom-client';
import type { Tc } from '../kernel/tc.ts';
import type { Unshaped } from './shaping.ts';

export function bandwidthMetrics(registry: Registry, tc: Tc): (unshaped: readonly Unshaped[]) => void {
  const registers = [registry];
  const labelNames = ['interface'];
  new Counter({
    name: 'sluice_gateway_queue_drops_total',
    help: 'Packets of limited bandwidth that found the queue of their class full, by interface; from the kernel, whose counters start with the qdisc',
    labelNames,
    registers,
    async collect() {
      const dropped = await tc.dropped();
      this.reset();
      for (const [name, packets] of Object.entries(dropped)) this.inc({ interface: name }, packets);
    },
  });
  const gauge = new Gauge({
    name: 'sluice_gateway_unshaped',
    help: '1 for an interface on which limits of bandwidth are kept by dropping alone, since nothing can be queued there',
    labelNames,
    registers,
  });
  return (unshaped) => {
    gauge.reset();
    for (const { device } of unshaped) gauge.set({ interface: device }, 1);
  };
}
