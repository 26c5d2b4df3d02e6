/**
 * Throughput through Sluice's gateway beside a hand-written single-rule SNAT (baseline.nft), in one topology in which the nft
 * table of one or the other is in force (topology.ts), in interleaved rounds: each round measures both, every second in
 * reverse order; of udp and connect in slices, taken in turn, since what else the machine does changes within a second.
 * Printed: medians, and the ratio of medians per CPU second and per second, with a bootstrap interval.
 *   node dist/bench/forwarding.js [--rounds 9] [--most-rounds 25] [--seconds 1] [--plan small|scale] [--namespaces 1000] [--pods 5]
 *                                 [--flows 64] [--sources 25] [--slices 5] [--families 4,6]
 *                                 [--loads udp,tcp,tcp-packets,connect] [--floor]
 * Needs root, and iperf3, ethtool, nft, iproute2. Docs: docs/bench.md.
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Family } from '../api/plan.ts';
import { CpuMeter } from './cpu.ts';
import { type Load, LoadGenerator, type Sample, sampleOf, sliced, unitOf } from './load.ts';
import { generatePlan, PODS_PER_NODE, podAddresses } from './plan.ts';
import { inRounds } from './rounds.ts';
import { generateScalePlan, issueSize } from './scale-plan.ts';
import { isNarrow, median, type Ratio, ratioOfMedians } from './statistics.ts';
import { type Subject, subjects, Topology } from './topology.ts';

interface Row {
  load: Load;
  family: Family;
  medians: Partial<Record<Subject, Sample>>;
  perCpuSecond: Ratio;
  perSecond: Ratio;
  /** Of the gateway and server alone: the floor's cost a packet taken off. Only with --floor, only for udp. */
  gatewayOnly?: { sluiceNs: number; baselineNs: number; ratio: number };
  /** The slices of each round. */
  samples: Partial<Record<Subject, Sample[][]>>;
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '9' },
    /** More than `rounds`, until the interval is narrow; if it never is, the result is undecided. */
    'most-rounds': { type: 'string', default: '25' },
    seconds: { type: 'string', default: '1' },
    plan: { type: 'string', default: 'small' },
    namespaces: { type: 'string' },
    pods: { type: 'string' },
    /** Pods that the load comes from, of the first node; by default five namespaces of five. */
    sources: { type: 'string', default: '25' },
    flows: { type: 'string', default: '64' },
    slices: { type: 'string', default: '5' },
    families: { type: 'string', default: '4,6' },
    loads: { type: 'string', default: 'udp,tcp,tcp-packets,connect' },
    floor: { type: 'boolean', default: false },
    output: { type: 'string' },
  },
});
if (values.plan !== 'small' && values.plan !== 'scale') throw new Error('--plan: expected small or scale');
const large = values.plan === 'scale';
const output = values.output ?? `bench/results/forwarding${large ? '-scale' : ''}.json`;
const options = {
  rounds: Number(values.rounds),
  mostRounds: Math.max(Number(values.rounds), Number(values['most-rounds'])),
  seconds: Number(values.seconds),
  plan: values.plan,
  namespaces: Number(values.namespaces ?? (large ? issueSize.namespaces : 1000)),
  pods: Number(values.pods ?? (large ? issueSize.pods : 5)),
  sources: Number(values.sources),
  flows: Number(values.flows),
  slices: Number(values.slices),
};
const familiesAsked = values.families.split(',').map((text) => Number(text) as Family);
const loads = values.loads.split(',') as Load[];
const asked = subjects.filter((subject) => subject !== 'floor' || values.floor);

/** The kernel goes through the whole of a table that takes another's place: caches are cold, of either. */
const WARM_SECONDS = 0.05;
const state = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
const meter = new CpuMeter(`sluice-bench-${process.pid}`);
let topology: Topology | undefined;
let generator: LoadGenerator | undefined;
try {
  const plan = large ? generateScalePlan({ ...issueSize, ...options }) : generatePlan(options);
  const length = Math.min(options.sources, PODS_PER_NODE, options.namespaces * options.pods);
  const places = Array.from({ length }, (_, at) => podAddresses(at));
  const pods = { 4: places.map((of) => of[4]), 6: places.map((of) => of[6]) };
  topology = await Topology.create(plan, [...pods[4], ...pods[6]], state);
  generator = new LoadGenerator(topology, meter, pods);
  await generator.start(familiesAsked, options.flows);
  console.log(
    `${options.namespaces} namespaces of ${options.pods} pods; ${options.rounds} rounds of ${options.seconds} s`,
  );
  const rows: Row[] = [];
  for (const family of familiesAsked)
    for (const load of loads) rows.push(await compare(topology, generator, load, family));
  await mkdir(join(output, '..'), { recursive: true });
  const machine = { kernel: release(), cpu: cpus()[0]?.model, cpus: cpus().length, load: loadavg() };
  await writeFile(output, `${JSON.stringify({ date: new Date().toISOString(), machine, options, rows }, null, 2)}\n`);
  console.log(`written: ${output}`);
} finally {
  await generator?.close();
  await topology?.close();
  meter.close();
  await rm(state, { recursive: true });
}

async function compare(place: Topology, load: LoadGenerator, what: Load, family: Family): Promise<Row> {
  const samples = await inRounds<Subject, Sample>({
    subjects: asked.filter((subject) => subject !== 'floor' || what === 'udp'),
    rounds: options.rounds,
    mostRounds: options.mostRounds,
    slices: sliced.includes(what) ? options.slices : 1,
    decided: (taken) => isNarrow(summary(what, family, taken).perCpuSecond),
    async measure({ subject, round, slices }) {
      await place.become(subject);
      // Of a slice the first packet of each flow is no part, nor caches that are the other's.
      if (slices > 1) await load.measure(what, family, WARM_SECONDS);
      return sampleOf(await load.measure(what, family, (round < 0 ? 0.3 : options.seconds) / slices));
    },
  });
  const row = summary(what, family, samples);
  print(row);
  return row;
}

function summary(load: Load, family: Family, samples: Row['samples']): Row {
  const pick = (subject: Subject, key: keyof Sample): number[][] =>
    (samples[subject] ?? []).map((slices) => slices.map((sample) => sample[key]));
  const mid = (subject: Subject): Sample => ({
    perSecond: median(pick(subject, 'perSecond').flat()),
    perCpuSecond: median(pick(subject, 'perCpuSecond').flat()),
    lost: median(pick(subject, 'lost').flat()),
  });
  const row: Row = {
    load,
    family,
    medians: { sluice: mid('sluice'), baseline: mid('baseline') },
    perCpuSecond: ratioOfMedians(pick('sluice', 'perCpuSecond'), pick('baseline', 'perCpuSecond')),
    perSecond: ratioOfMedians(pick('sluice', 'perSecond'), pick('baseline', 'perSecond')),
    samples,
  };
  if (samples.floor !== undefined) {
    row.medians.floor = mid('floor');
    const cost = (subject: Subject): number => 1e6 / mid(subject).perCpuSecond - 1e6 / mid('floor').perCpuSecond;
    const [sluiceNs, baselineNs] = [cost('sluice'), cost('baseline')];
    row.gatewayOnly = { sluiceNs, baselineNs, ratio: baselineNs / sluiceNs };
  }
  return row;
}

function print(row: Row): void {
  const unit = unitOf[row.load];
  const figure = (value: number | undefined): string => (value ?? 0).toPrecision(4);
  const text = ({ ratio, low, high }: Ratio): string => `${ratio.toFixed(3)} [${low.toFixed(3)}..${high.toFixed(3)}]`;
  console.log(`${row.load}, IPv${row.family}`);
  for (const [subject, sample] of Object.entries(row.medians)) {
    const lost = row.load === 'udp' ? `, lost ${(100 * sample.lost).toFixed(1)} %` : '';
    const rates = `${figure(sample.perCpuSecond)} ${unit} per CPU second, ${figure(sample.perSecond)} ${unit}/s`;
    console.log(`  ${subject.padEnd(9)} ${rates}${lost}`);
  }
  const rounds = `${row.samples.sluice?.length} rounds${isNarrow(row.perCpuSecond) ? '' : ', undecided'}`;
  console.log(`  ratio per CPU second ${text(row.perCpuSecond)}   per second ${text(row.perSecond)}   (${rounds})`);
  if (row.gatewayOnly === undefined) return;
  const { sluiceNs, baselineNs, ratio } = row.gatewayOnly;
  console.log(
    `  gateway and server alone: sluice ${sluiceNs.toFixed(0)} ns, baseline ${baselineNs.toFixed(0)} ns, ratio ${ratio.toFixed(3)}`,
  );
}
