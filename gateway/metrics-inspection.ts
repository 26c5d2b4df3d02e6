/**
 * Metrics of inspection: what threads decided, and how the queues and the threads at them are. The latter are read when
 * Prometheus asks. Labels are words of ours, so series are bounded.
 */
import { Counter, Gauge, type Registry } from 'prom-client';
import { untaughtReasons } from './inspect/conversations.ts';
import type { DecidedFlow } from './inspect/messages.ts';
import { inspectReasons } from './inspect/reasons.ts';
import type { QueueState, QueueStatus } from './inspect/workers.ts';

export interface InspectionSource {
  status(): QueueStatus[];
  counts(): Record<string, number>;
  readonly degraded: string | undefined;
}

const states: readonly QueueState[] = ['starting', 'serving', 'waiting', 'closed'];

/** What is given is called for each flow that a thread decided. */
export function inspectionMetrics(
  registry: Registry,
  inspection: InspectionSource,
  readings: { size: number },
): (flow: DecidedFlow) => void {
  const registers = [registry];
  const decided = new Counter({
    name: 'sluice_inspection_decided_total',
    help: 'Flows, and of flows that are read for life requests that were denied, by what they are and what was decided',
    labelNames: ['application', 'verdict'],
    registers,
  });
  const denied = new Counter({
    name: 'sluice_inspection_denied_total',
    help: 'Of these, those that were denied, by reason: of policy or of inspection itself',
    labelNames: ['reason'],
    registers,
  });
  const sum = (name: string, help: string, read: (status: QueueStatus) => number): void => {
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(inspection.status().reduce((total, status) => total + read(status), 0));
      },
    });
  };
  const now = (name: string, help: string, read: (status: QueueStatus) => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(inspection.status().reduce((total, status) => total + read(status), 0));
      },
    });
  };
  const counted = (name: string, help: string, label: string, words: Record<string, string>): void => {
    new Counter({
      name,
      help,
      labelNames: [label],
      registers,
      collect() {
        this.reset();
        const counts = inspection.counts();
        for (const [word, count] of Object.entries(words)) this.inc({ [label]: word }, counts[count] ?? 0);
      },
    });
  };
  counted(
    'sluice_inspection_ended_total',
    'Flows, packets and requests that inspection itself ended, dropped or refused, by reason',
    'reason',
    Object.fromEntries(Object.keys(inspectReasons).map((reason) => [reason, `reason_${reason}`])),
  );
  counted('sluice_inspection_requests_total', 'Flows, requests and questions that were decided', 'verdict', {
    permitted: 'permitted',
    denied: 'denied',
  });
  counted('sluice_inspection_names_total', 'Names that threads asked for and answers that taught some', 'result', {
    resolved: 'resolved',
    unresolved: 'unresolved',
    taught: 'taught',
    late: 'taught_late',
  });
  counted(
    'sluice_inspection_untaught_total',
    'Connections of TCP to resolvers whose answers teach nothing any more, by reason',
    'reason',
    Object.fromEntries(Object.keys(untaughtReasons).map((reason) => [reason, `untaught_${reason}`])),
  );
  new Gauge({
    name: 'sluice_inspection_queues',
    help: 'Queues of inspection by what becomes of them',
    labelNames: ['state'],
    registers,
    collect() {
      const found = inspection.status();
      for (const state of states) this.set({ state }, found.filter((status) => status.state === state).length);
    },
  });
  new Gauge({
    name: 'sluice_inspection_degraded',
    help: '1 while inspection is not as it should be; readiness says what is missing',
    registers,
    collect() {
      this.set(inspection.degraded === undefined ? 0 : 1);
    },
  });
  new Gauge({
    name: 'sluice_inspection_readings',
    help: 'Flows whose reading is kept',
    registers,
    collect() {
      this.set(readings.size);
    },
  });
  sum('sluice_inspection_packets_total', 'Packets that came to a thread', ({ counters }) => counters.packets);
  sum('sluice_inspection_dropped_packets_total', 'Of these, those that it dropped', ({ counters }) => counters.dropped);
  sum(
    'sluice_inspection_overload_total',
    'Packets that could not be read for want of room or time, and went as onOverload says',
    ({ counters, kernel }) => counters.expired + counters.overHeld + kernel.dropped + kernel.overruns,
  );
  sum(
    'sluice_inspection_faults_total',
    'Packets over which a thread failed, or that the kernel told of in a way that it does not know',
    ({ counters }) => counters.faults + counters.malformed,
  );
  sum('sluice_inspection_worker_ends_total', 'Threads that ended without being asked to', ({ ends }) => ends);
  now('sluice_inspection_holding', 'Packets that wait for more of their flow', ({ counters }) => counters.holding);
  now('sluice_inspection_waiting', 'Packets that wait for a thread', ({ counters, kernel }) =>
    Math.max(0, kernel.waiting - counters.holding),
  );
  return ({ decision, reason, reading }) => {
    const verdict = decision?.verdict ?? 'drop';
    const shown = decision?.wouldHave === undefined ? verdict : 'audit';
    decided.inc({ application: reading.application ?? 'none', verdict: shown });
    if (verdict !== 'accept') denied.inc({ reason: decision?.reason ?? reason ?? 'unread' });
  };
}
