/**
 * What a node counts, for Prometheus (design §8). Drops are the kernel's named counters, read when somebody asks, plus
 * what the hold queue dropped; the label `reason` has the words of api/reasons.ts.
 */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { NFT_TABLE_NODE } from '../api/names.ts';
import { counterName } from '../api/reasons.ts';
import type { Nft } from '../kernel/nft.ts';
import type { HoldEvents } from './hold-queue.ts';
import { nodeDropReasons } from './ruleset.ts';

export interface NodeMetrics {
  hold: HoldEvents;
  workloads(count: number): void;
  generation(generation: number): void;
  applied(ok: boolean): void;
  endedFlows(count: number): void;
}

export function createNodeMetrics(registry: Registry, nft: Nft): NodeMetrics {
  const registers = [registry];
  let droppedByHold = 0;
  new Counter({
    name: 'sluice_node_drops_total',
    help: 'Packets dropped on this node, by reason',
    labelNames: ['reason'],
    registers,
    async collect() {
      const counters = await nft.counters(NFT_TABLE_NODE);
      this.reset();
      for (const reason of nodeDropReasons) {
        const held = reason === 'unknown-source' ? droppedByHold : 0;
        this.inc({ reason }, (counters[counterName(reason)]?.packets ?? 0) + held);
      }
    },
  });
  const held = new Counter({
    name: 'sluice_node_held_packets_total',
    help: 'Packets of unknown sources that were held',
    registers,
  });
  const released = new Counter({
    name: 'sluice_node_released_packets_total',
    help: 'Held packets that went on once their source was known',
    registers,
  });
  const expired = new Counter({
    name: 'sluice_node_expired_packets_total',
    help: 'Packets of unknown sources that were dropped: held in vain (expired, or their interface is gone), or over a limit',
    labelNames: ['why'],
    registers,
  });
  const seconds = new Histogram({
    name: 'sluice_node_hold_seconds',
    help: 'How long released packets were held',
    buckets: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2],
    registers,
  });
  const workloads = new Gauge({ name: 'sluice_node_workloads', help: 'Workloads of the plan in force', registers });
  const generation = new Gauge({ name: 'sluice_node_generation', help: 'Generation of the plan in force', registers });
  const applies = new Counter({
    name: 'sluice_node_applies_total',
    help: 'Plans brought into force, or not',
    labelNames: ['result'],
    registers,
  });
  const ended = new Counter({
    name: 'sluice_node_ended_flows_total',
    help: 'Flows ended because their workload was withdrawn or newly assigned',
    registers,
  });
  return {
    hold: {
      held: () => held.inc(),
      released: (milliseconds) => {
        released.inc();
        seconds.observe(milliseconds / 1000);
      },
      dropped: (why) => {
        droppedByHold++;
        expired.inc({ why });
      },
    },
    workloads: (count) => workloads.set(count),
    generation: (value) => generation.set(value),
    applied: (ok) => applies.inc({ result: ok ? 'applied' : 'failed' }),
    endedFlows: (count) => ended.inc(count),
  };
}
