/**
 * Metrics of a gateway's rules: read when Prometheus asks. A series costs Prometheus memory for ever, so only rules
 * that were hit have any, and of those the first MAX_RULES; how many are left out is a metric.
 */
import { Counter, Gauge, type Registry } from 'prom-client';
import type { RuleHits } from '../api/hits.ts';

const MAX_RULES = 5_000;

export interface HitsSource {
  totals: ReadonlyMap<string, RuleHits>;
  /** Totals are as of now when it returns, or were a moment ago. */
  fresh(): Promise<void>;
}

export function hitsMetrics(registry: Registry, hits: HitsSource, most = MAX_RULES): void {
  const counter = (name: string, help: string, field: keyof RuleHits): void => {
    new Counter({
      name,
      help,
      labelNames: ['context', 'namespace', 'rule'],
      registers: [registry],
      async collect() {
        await hits.fresh();
        this.reset();
        let shown = 0;
        for (const [id, totals] of hits.totals) {
          if (shown++ === most) break;
          this.inc(labelsOf(id), totals[field]);
        }
      },
    });
  };
  counter(
    'sluice_rule_hits_total',
    'Flows that a rule permitted or let on, and packets that it, its limit or its redirect denied',
    'hits',
  );
  counter('sluice_rule_flows_total', 'Flows that a rule permitted or let on', 'flows');
  counter('sluice_rule_packets_total', 'Packets of flows that a rule permitted, and packets that it denied', 'packets');
  counter('sluice_rule_bytes_total', 'Bytes of flows that a rule permitted, and of packets that it denied', 'bytes');
  new Gauge({
    name: 'sluice_rule_series_left_out',
    help: 'Rules that were hit and have no series of their own',
    registers: [registry],
    collect() {
      this.set(Math.max(0, hits.totals.size - most));
    },
  });
}

/** `namespace/billing/partners` → context, namespace, rule; of a default action the pool's name is the rule's. */
function labelsOf(id: string): { context: string; namespace: string; rule: string } {
  const [context = '', ...names] = id.split('/');
  return { context, namespace: names.length > 1 ? (names[0] ?? '') : '', rule: names.at(-1) ?? '' };
}
