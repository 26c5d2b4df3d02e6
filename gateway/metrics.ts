/**
 * Metrics of a gateway (design §8). Drops are read from the kernel's named counters when Prometheus asks; nothing is
 * counted per packet here.
 */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { NFT_TABLE_GATEWAY } from '../api/names.ts';
import { auditCounterName, auditReasons, countedReasons, counterName } from '../api/reasons.ts';
import type { Nft } from '../kernel/nft.ts';
import type { FlowLog } from './record/flow-log.ts';
import type { FlowRecord } from './record/flow-record.ts';
import type { Recorder } from './record/recorder.ts';

export interface GatewayMetrics {
  record(record: FlowRecord): void;
  applied(seconds: number, generation: number, workloads: number, shards: number): void;
  flowsEnded(count: number): void;
  refused(): void;
  connected(yes: boolean): void;
}

export function gatewayMetrics(
  registry: Registry,
  nft: Nft,
  recorder: () => Recorder,
  flowLog: FlowLog | undefined,
): GatewayMetrics {
  const registers = [registry];
  const gauge = (name: string, help: string): Gauge => new Gauge({ name, help, registers });
  const counter = (name: string, help: string, labelNames: string[] = []): Counter =>
    new Counter({ name, help, labelNames, registers });

  new Counter({
    name: 'sluice_gateway_drops_total',
    help: 'Packets dropped or rejected by the data path, by reason; from the kernel, whose counters start with the table',
    labelNames: ['reason'],
    registers,
    async collect() {
      const values = await nft.counters(NFT_TABLE_GATEWAY);
      this.reset();
      for (const reason of countedReasons) this.inc({ reason }, values[counterName(reason)]?.packets ?? 0);
    },
  });
  new Counter({
    name: 'sluice_gateway_audit_hits_total',
    help: 'Packets that a rule or policy in audit would have decided, by reason; from the kernel, whose counters start with the table',
    labelNames: ['reason'],
    registers,
    async collect() {
      const values = await nft.counters(NFT_TABLE_GATEWAY);
      this.reset();
      for (const reason of auditReasons) this.inc({ reason }, values[auditCounterName(reason)]?.packets ?? 0);
    },
  });
  new Gauge({
    name: 'sluice_gateway_flows',
    help: 'Decided flows in the connection table that the recorder knows',
    registers,
    collect() {
      this.set(recorder().flows);
    },
  });
  new Gauge({
    name: 'sluice_gateway_event_overruns',
    help: 'Times that kernel events were lost because they came faster than they were read',
    registers,
    collect() {
      this.set(recorder().overruns);
    },
  });
  new Gauge({
    name: 'sluice_gateway_records_lost',
    help: 'Flow records that could not be written',
    registers,
    collect() {
      this.set(flowLog?.lost ?? 0);
    },
  });
  const records = counter('sluice_gateway_records_total', 'Flow records by event, verdict and reason', [
    'event',
    'verdict',
    'reason',
  ]);
  const generation = gauge('sluice_gateway_generation', 'Generation of the plan in force');
  const workloads = gauge('sluice_gateway_workloads', 'Workloads of the plan in force');
  const shards = gauge('sluice_gateway_shards_held', 'Shards that this gateway holds');
  const connected = gauge('sluice_gateway_controller_connected', '1 while the plan stream is up');
  const refused = counter('sluice_gateway_plans_refused_total', 'Plans that could not be applied');
  const ended = counter('sluice_gateway_flows_ended_total', 'Established flows that a plan ended');
  const seconds = new Histogram({
    name: 'sluice_gateway_apply_seconds',
    help: 'Time from a plan to its being in force',
    buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
    registers,
  });
  return {
    record: ({ event, verdict, reason }) => records.inc({ event, verdict, reason }),
    applied(took, number, workloadCount, shardCount) {
      seconds.observe(took);
      generation.set(number);
      workloads.set(workloadCount);
      shards.set(shardCount);
    },
    flowsEnded: (count) => ended.inc(count),
    refused: () => refused.inc(),
    connected: (yes) => connected.set(yes ? 1 : 0),
  };
}
