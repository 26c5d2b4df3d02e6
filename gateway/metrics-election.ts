/** Metrics of who has a shard, and of what the next ones know of its connections (succession.ts). */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { Succession } from './succession.ts';

export function electionMetrics(registry: Registry, succession: Pick<Succession, 'mastership' | 'replicated'>): void {
  const { mastership } = succession;
  const registers = [registry];
  new Counter({
    name: 'sluice_gateway_elections_total',
    help: 'Times that this gateway became Active, Backup, Waking or Initialize in the election of a shard, by cause',
    labelNames: ['state', 'cause'],
    registers,
    collect() {
      this.reset();
      for (const { state, cause, count } of mastership.counts.values()) this.inc({ state, cause }, count);
    },
  });
  const took = new Histogram({
    name: 'sluice_gateway_takeover_seconds',
    help: 'From when another gateway was heard last of a shard until all its addresses were here and announced, by cause',
    labelNames: ['cause'],
    buckets: [0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5],
    registers,
  });
  mastership.onTakeover = ({ cause, tookMs }) => took.observe({ cause }, tookMs / 1000);
  const gauge = (name: string, help: string, value: () => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  };
  gauge(
    'sluice_gateway_replication_gateways_connected',
    'Other gateways with which connection state is shared now',
    () => succession.replicated.connected,
  );
  gauge(
    'sluice_gateway_replication_flows',
    "Flows of other gateways' shards in this one's connection table",
    () => succession.replicated.flows,
  );
  gauge(
    'sluice_gateway_replication_incomplete_shards',
    'Shards of other gateways of which not all flows are known here, though this gateway is one of the next',
    () => succession.replicated.incomplete,
  );
}
