/**
 * What the harness writes, and what follows from it: medians, ratios to a reference with the interval that their rounds
 * give, and whether a bar is met. Pure. Samples are kept by round and slice, so that everything can be computed again.
 */
import { isNarrow, median, type Ratio, ratioOfMedians } from './statistics.ts';
import type { Absent } from './subjects.ts';

interface MetricEntry {
  title: string;
  better: 'more' | 'less';
  /** `of`: the scenario's own unit. */
  unit(of: string): string;
}
export const metrics = {
  perCpuSecond: { title: 'per CPU second', better: 'more', unit: (of) => `${of} per CPU second` },
  perSecond: { title: 'per second', better: 'more', unit: (of) => `${of}/s` },
  lost: { title: 'lost', better: 'less', unit: () => '%' },
  p50: { title: 'p50', better: 'less', unit: () => 'µs' },
  p99: { title: 'p99', better: 'less', unit: () => 'µs' },
  programCpus: { title: 'processors that its program took', better: 'less', unit: () => 'CPUs' },
  endMicroseconds: { title: 'its program, for each flow that ended', better: 'less', unit: () => 'µs an end' },
  plansPerSecond: { title: 'plans in force', better: 'more', unit: () => 'plans/s' },
  milliseconds: { title: 'time', better: 'less', unit: () => 'ms' },
  cpuMicroseconds: { title: 'CPU time', better: 'less', unit: () => 'µs' },
  megabytes: { title: 'memory', better: 'less', unit: () => 'MB' },
} as const satisfies Record<string, MetricEntry>;
export type Metric = keyof typeof metrics;
export type Figures = Partial<Record<Metric, number>>;

export const GROUPS = {
  forwarding: 'Forwarding',
  latency: 'Request and response',
  churn: 'Traffic while policy changes',
  tls: 'TLS by name',
  control: 'Control plane',
} as const;
export type Group = keyof typeof GROUPS;

/** What is asked of a subject: at least so many times the other's figure, or (alike) no difference that can be seen. */
export interface Bar {
  subject: string;
  beside: string;
  metric: Metric;
  least: number | 'alike';
}

/** An upper bound of a figure by itself. */
export interface Limit {
  subject: string;
  metric: Metric;
  most: number;
}

export interface SubjectResult {
  id: string;
  title: string;
  /** Sluice itself: what a comparison of two reports is about. */
  own: boolean;
  /** Its reference, where it is not the scenario's. */
  beside?: string;
  samples: Partial<Record<Metric, number[][]>>;
}

export interface ScenarioResult {
  id: string;
  title: string;
  group: Group;
  /** What is counted: Gbit, thousand packets. */
  unit: string;
  /** By which subjects are compared; the others stand beside. */
  main: Metric;
  /** Subjects with which others are compared, those that were measured. */
  references: string[];
  bars: Bar[];
  limits: Limit[];
  subjects: SubjectResult[];
  absent: Absent[];
}

export interface Machine {
  kernel: string;
  cpu: string;
  cpus: number;
  memoryGB: number;
  loadBefore: number[];
  loadAfter: number[];
  versions: Record<string, string>;
}

export interface Result {
  version: 1;
  date: string;
  commit: string;
  /** Words after `npm run bench --`. */
  command: string;
  seconds: number;
  machine: Machine;
  /** Of the subjects that were asked for. */
  configurations: Record<string, string>;
  absent: Absent[];
  scenarios: ScenarioResult[];
}

export interface Summary {
  median: number;
  least: number;
  most: number;
  rounds: number;
}

export function summaryOf(samples: readonly (readonly number[])[]): Summary {
  const all = samples.flat();
  return { median: median(all), least: Math.min(...all), most: Math.max(...all), rounds: samples.length };
}

export const subjectOf = (scenario: ScenarioResult, id: string): SubjectResult | undefined =>
  scenario.subjects.find((subject) => subject.id === id);

/** By pairs of rounds, those that both have; undefined: one of them was not measured so. */
export function ratioOf(scenario: ScenarioResult, subject: string, beside: string, metric: Metric): Ratio | undefined {
  const [mine, others] = [subject, beside].map((id) => subjectOf(scenario, id)?.samples[metric]);
  if (mine === undefined || others === undefined) return undefined;
  const rounds = Math.min(mine.length, others.length);
  if (rounds === 0 || median(others.flat()) === 0) return undefined;
  return ratioOfMedians(mine.slice(0, rounds), others.slice(0, rounds));
}

/** With which subjects this one is compared. */
export function referencesOf(scenario: ScenarioResult, { id, beside }: SubjectResult): string[] {
  const own = beside === undefined ? scenario.references : [beside, ...scenario.references];
  return [...new Set(own)].filter((reference) => reference !== id && subjectOf(scenario, reference) !== undefined);
}

/** Fewer rounds than these decide nothing. */
export const LEAST_ROUNDS = 9;
export type Verdict = 'met' | 'missed' | 'undecided' | 'not measured';
export interface Judged {
  ratio?: Ratio;
  verdict: Verdict;
}

export function judge(scenario: ScenarioResult, bar: Bar): Judged {
  const ratio = ratioOf(scenario, bar.subject, bar.beside, bar.metric);
  if (ratio === undefined) return { verdict: 'not measured' };
  const rounds = subjectOf(scenario, bar.subject)?.samples[bar.metric]?.length ?? 0;
  if (rounds < LEAST_ROUNDS) return { ratio, verdict: 'undecided' };
  const more = metrics[bar.metric].better === 'more';
  if (bar.least === 'alike') {
    // Nobody is worse for being better; a wide interval must not make everything alike.
    const worse = more ? ratio.high < 1 : ratio.low > 1;
    if (worse) return { ratio, verdict: 'missed' };
    return { ratio, verdict: isNarrow(ratio) ? 'met' : 'undecided' };
  }
  if (!isNarrow(ratio)) return { ratio, verdict: 'undecided' };
  return { ratio, verdict: (more ? ratio.ratio >= bar.least : ratio.ratio <= bar.least) ? 'met' : 'missed' };
}

/** By the median of its rounds. */
export function judgeLimit(scenario: ScenarioResult, { subject, metric, most }: Limit): Verdict {
  const samples = subjectOf(scenario, subject)?.samples[metric];
  if (samples === undefined) return 'not measured';
  return summaryOf(samples).median <= most ? 'met' : 'missed';
}

/** Whether more rounds would tell more: a bar whose interval is too wide. */
export const isDecided = (scenario: ScenarioResult): boolean =>
  scenario.bars.every((bar) => {
    const ratio = ratioOf(scenario, bar.subject, bar.beside, bar.metric);
    return ratio === undefined || isNarrow(ratio);
  });
