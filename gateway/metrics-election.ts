/** Metrics of the election (mastership.ts). */
import { Counter, type Registry } from 'prom-client';
import type { Mastership } from './mastership.ts';

export function electionMetrics(registry: Registry, { counts }: Pick<Mastership, 'counts'>): void {
  new Counter({
    name: 'sluice_gateway_elections_total',
    help: 'Times that this gateway became Active, Backup, Waking or Initialize in the election of a shard, by cause',
    labelNames: ['state', 'cause'],
    registers: [registry],
    collect() {
      this.reset();
      for (const { state, cause, count } of counts.values()) this.inc({ state, cause }, count);
    },
  });
}
