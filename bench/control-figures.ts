/**
 * What the programs of the control plane write, as subjects of the one report: a row is what was done, a sample how long it took.
 * Pure.
 */
import type { Figures, Metric, SubjectResult } from './result.ts';

const times = (samples: readonly number[]): number[][] => samples.map((value) => [value]);

function row(id: string, samples: Partial<Record<Metric, readonly number[]>>): SubjectResult {
  const found: SubjectResult['samples'] = {};
  for (const [metric, list] of Object.entries(samples)) if (list.length > 0) found[metric as Metric] = times(list);
  return { id, title: id, own: true, samples: found };
}

interface Cost {
  what: string;
  milliseconds: number;
  samples?: number[];
}

export interface ScaleReport {
  firstLoad: { readyMs: number; acknowledgedMs: number; cpuSeconds: number };
  rows: { change: string; inForceMs: { samples: number[] }; acknowledgedMs: { samples: number[] } }[];
  memoryAfterLoad: { residentMB: number; mostResidentMB: number };
  memoryAfterChanges: { residentMB: number; mostResidentMB: number };
  restart: { readyMs: number; acknowledgedMs: number; mostResidentMB: number };
}

/** By the program's name (scenarios.ts): from its JSON. */
export const readers: Record<string, (report: never) => SubjectResult[]> = {
  scale: ({ firstLoad, rows, memoryAfterLoad, memoryAfterChanges, restart }: ScaleReport) => [
    row('first load, until ready', { milliseconds: [firstLoad.readyMs] }),
    row('first load, until acknowledged', { milliseconds: [firstLoad.acknowledgedMs] }),
    row('first load, CPU', { cpuMicroseconds: [1e6 * firstLoad.cpuSeconds] }),
    ...rows.map(({ change, inForceMs }) => row(`${change}, in force`, { milliseconds: inForceMs.samples })),
    ...rows.map(({ change, acknowledgedMs }) =>
      row(`${change}, acknowledged`, { milliseconds: acknowledgedMs.samples }),
    ),
    row('restart with nothing to do, until ready', { milliseconds: [restart.readyMs] }),
    row('gateway, resident after the first load', { megabytes: [memoryAfterLoad.residentMB] }),
    row('gateway, resident after the changes', { megabytes: [memoryAfterChanges.residentMB] }),
    row('gateway, resident at most', {
      megabytes: [Math.max(memoryAfterChanges.mostResidentMB, restart.mostResidentMB)],
    }),
  ],
  planner: ({ costs, residentMiB }: { costs: Cost[]; residentMiB: number }) => [
    ...costs.map(ofCost),
    row('planner, resident', { megabytes: [Math.round(residentMiB * 1.048576)] }),
  ],
  'plan-load': ({ costs }: { costs: Cost[] }) => costs.map(ofCost),
  recheck: ({ costs }: { costs: (Cost & { rounds?: Record<string, number>[] })[] }) =>
    costs.flatMap(({ what, rounds = [] }) => {
      const of = (key: string): number[] => rounds.map((round) => round[key] ?? Number.NaN);
      return [
        row(`${what}: the whole change`, { milliseconds: of('milliseconds') }),
        row(`${what}: of it the flows`, {
          milliseconds: of('flowsMilliseconds'),
          cpuMicroseconds: of('flowsCpuMilliseconds').map((value) => 1000 * value),
        }),
      ];
    }),
  queue: ({ samples, delays }: QueueReport) => [
    ...Object.entries(samples).map(([name, list]) =>
      row(name, { perCpuSecond: list.map(({ perCpu }) => perCpu), perSecond: list.map(({ perSecond }) => perSecond) }),
    ),
    ...Object.entries(delays).map(([name, list]) =>
      row(`a single packet: ${name}`, { p50: list.map(({ p50 }) => p50), p99: list.map(({ p99 }) => p99) }),
    ),
  ],
  replication: ({ bulk, bulkCpuMicroseconds, stream, streamCpuMicroseconds }: ReplicationReport) => [
    row('the whole table to one that comes late', { milliseconds: [bulk.milliseconds] }),
    row('the whole table: sender, each flow', { cpuMicroseconds: [bulkCpuMicroseconds.sender] }),
    row('the whole table: receiver, each flow', { cpuMicroseconds: [bulkCpuMicroseconds.receiver] }),
    row('flows that begin and end, in the kernel there', { milliseconds: stream.waits }),
    row('flows that begin and end: sender, each', { cpuMicroseconds: [streamCpuMicroseconds.sender] }),
    row('flows that begin and end: receiver, each', { cpuMicroseconds: [streamCpuMicroseconds.receiver] }),
  ],
};

interface QueueReport {
  samples: Record<string, { perCpu: number; perSecond: number }[]>;
  delays: Record<string, Required<Pick<Figures, 'p50' | 'p99'>>[]>;
}
interface ReplicationReport {
  bulk: { milliseconds: number };
  bulkCpuMicroseconds: { sender: number; receiver: number };
  stream: { waits: number[] };
  streamCpuMicroseconds: { sender: number; receiver: number };
}

function ofCost({ what, milliseconds, samples }: Cost): SubjectResult {
  return row(what, { milliseconds: samples ?? [milliseconds] });
}
