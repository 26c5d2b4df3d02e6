/**
 * New TLS connections per second through a gateway that reads names, beside the same gateway with a rule by address (which
 * reads nothing), beside Suricata in IPS mode and nginx's ssl_preread behind one SNAT rule, and that rule alone; in one
 * topology, in interleaved rounds, each with the same number of queues or processes (inspection-subjects.ts). Before a figure is
 * taken each subject that reads must let the allowed name pass and no other. Printed: connections per CPU second
 * and per second, as ratios of medians with a bootstrap interval; how long a hello takes to its answer, one at a time; verdicts
 * per CPU second of Sluice's threads.
 *   node dist/bench/inspection.js [--rounds 9] [--most-rounds 25] [--seconds 2] [--queues 2] [--concurrency 64] [--pods 25] [--families 4,6]
 *                                 [--subjects 'by address,by name,snat,suricata,nginx'] [--cpu-prof DIR]
 * Needs root, nft, iptables, iproute2, dnsmasq; suricata and nginx with its stream module for these two. Docs: docs/bench.md.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { Family } from '../api/plan.ts';
import { holdCpuLatency } from '../kernel/cpu-latency.ts';
import { createServerCertificate } from '../lab/servers/certificate.ts';
import { CpuMeter } from './cpu.ts';
import type { Made, Task } from './hello-connector.ts';
import { ALLOWED_NAME, inspectionPlan, inspectionPods, OTHER_NAME, RESOLVER } from './inspection-plan.ts';
import { type Subject, Subjects, subjects } from './inspection-subjects.ts';
import { SERVER } from './plan.ts';
import { inRounds, type Samples as Taken } from './rounds.ts';
import { isNarrow, median, type Ratio, ratioOfMedians } from './statistics.ts';
import { Talk } from './talk.ts';
import { besideSources, Topology } from './topology.ts';

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '9' },
    /** More than `rounds`, until the interval of `by name` to `by address` is narrow; if it never is, that is undecided. */
    'most-rounds': { type: 'string', default: '25' },
    seconds: { type: 'string', default: '2' },
    queues: { type: 'string', default: '2' },
    concurrency: { type: 'string', default: '64' },
    pods: { type: 'string', default: '25' },
    families: { type: 'string', default: '4,6' },
    subjects: { type: 'string', default: subjects.join(',') },
    'cpu-prof': { type: 'string' },
    output: { type: 'string', default: 'bench/results/inspection.json' },
  },
});
const [rounds, seconds, queues] = [Number(values.rounds), Number(values.seconds), Number(values.queues)];
const mostRounds = Math.max(rounds, Number(values['most-rounds']));
const [concurrency, pods] = [Number(values.concurrency), Number(values.pods)];
const families = values.families.split(',').map((text) => Number(text) as Family);
const asked: Subject[] = subjects.filter((subject) => values.subjects.split(',').includes(subject));
/** For each in its own words: what it is compared with. */
const without: Partial<Record<Subject, Subject>> = { 'by name': 'by address', suricata: 'snat', nginx: 'snat' };
const reads = (subject: Subject): boolean => without[subject] !== undefined;
/** One at a time, for how long a hello takes; all connections of a turn have ports of their own. */
const SINGLE_SECONDS = 0.5;
/**
 * Who reads begins anew with each turn, and V8 has its code to compile, which takes some ten thousand connections; what is
 * measured is how it goes on.
 */
const WARM_SECONDS = { reads: 8, otherwise: 2 };
const REFUSED_TRIES = 20;
/** Names of threads: of Sluice (worker.ts), of Suricata. */
const HOLDS_QUEUE = /^(inspect-|W-)/;

interface Sample extends Made {
  perSecond: number;
  perCpuSecond: number;
  cpuSeconds: number;
  /** Of these the subject's program. */
  programSeconds: number;
  /** Of its main thread. */
  mainSeconds: number;
  /** Of the threads that hold the queues. */
  threadSeconds: number;
  /** Of `by name`: what its threads were asked. */
  packets: number;
  single: { p50: number; p99: number };
  /** The same with CPUs that do not sleep, as with `sluice gateway --cpu-latency 0`. */
  awake: { p50: number; p99: number };
}
type Samples = Partial<Record<Subject, Sample[]>>;

const state = await mkdtemp(join(tmpdir(), 'sluice-inspection-'));
const meter = new CpuMeter(`sluice-bench-${process.pid}`);
const children: ChildProcess[] = [];
let topology: Topology | undefined;
let gateway: Subjects | undefined;
try {
  const plan = inspectionPlan('addresses', pods, queues);
  const sources = inspectionPods(pods);
  topology = await Topology.create(plan, [...sources[4], ...sources[6]], state);
  const profiles = values['cpu-prof'];
  gateway = await Subjects.create(topology, { state, queues, pods, ...(profiles !== undefined && { profiles }) });
  await createServerCertificate(join(state, 'server'), [ALLOWED_NAME], Date.now());
  startResolver(topology);
  const results: Record<string, Samples> = {};
  for (const family of families) {
    const talk = startConnector(topology, family, sources[family]);
    await talk.heard((said) => said === 'ready', 20_000);
    results[`IPv${family}`] = await compare(gateway, talk, family);
    await end(talk.child);
  }
  await report(results);
} catch (error) {
  console.error(gateway?.lastWords());
  throw error;
} finally {
  await gateway?.close();
  for (const child of children) await end(child);
  await topology?.close();
  meter.close();
  await rm(state, { recursive: true });
}

async function compare(of: Subjects, talk: Talk<Made | 'ready'>, family: Family): Promise<Samples> {
  const flat = (taken: Taken<Subject, Sample>): Samples =>
    Object.fromEntries(Object.entries(taken).map(([subject, list]) => [subject, list.flat()]));
  const taken = await inRounds<Subject, Sample>({
    subjects: asked,
    rounds,
    mostRounds,
    decided: (so) => decided(flat(so)),
    async measure({ subject, round }) {
      await of.become(subject);
      if (reads(subject)) await mustRead(subject, talk, round < 0);
      await task(talk, { seconds: WARM_SECONDS[reads(subject) ? 'reads' : 'otherwise'], concurrency });
      return measure(of, talk, round < 0 ? Math.min(1, seconds) : seconds);
    },
  });
  const samples = flat(taken);
  print(samples, family);
  return samples;
}

/** By pairs of rounds. */
function ratioOf(samples: Samples, subject: Subject, beside: Subject, of: (sample: Sample) => number): Ratio {
  const slices = (subject: Subject): number[][] => (samples[subject] ?? []).map((sample) => [of(sample)]);
  return ratioOfMedians(slices(subject), slices(beside));
}

function decided(samples: Samples): boolean {
  if (!asked.includes('by name') || !asked.includes('by address')) return true;
  return isNarrow(ratioOf(samples, 'by name', 'by address', (sample) => sample.perCpuSecond));
}

/** The allowed name passes, and, if that is asked, of another not a byte comes to the server. */
async function mustRead(subject: Subject, talk: Talk<Made | 'ready'>, withOther: boolean): Promise<void> {
  const until = performance.now() + 20_000;
  for (;;) {
    const own = await task(talk, { seconds: 2, concurrency: 1, most: REFUSED_TRIES });
    if (own.answered === REFUSED_TRIES) break;
    // A gateway first asks which addresses the name has.
    if (performance.now() > until)
      throw new Error(`${subject}: the allowed name does not pass: ${JSON.stringify(own)}`);
    await sleep(200);
  }
  if (!withOther) return;
  const other = await task(talk, { seconds: 5, concurrency: REFUSED_TRIES, most: REFUSED_TRIES, other: true });
  if (other.answered !== 0 || other.arrived !== 0)
    throw new Error(`${subject}: another name passes: ${JSON.stringify(other)}`);
}

async function measure(of: Subjects, talk: Talk<Made | 'ready'>, seconds: number): Promise<Sample> {
  const single = await task(talk, { seconds: SINGLE_SECONDS, concurrency: 1 });
  // To wake a halted CPU of a virtual machine takes longer than to read a hello.
  const release = holdCpuLatency(0);
  const awake = await task(talk, { seconds: SINGLE_SECONDS, concurrency: 1 }).finally(release);
  const [packetsBefore, threadsBefore] = [await of.packets(), threadSeconds(of.pid)];
  const [before, programBefore] = [meter.seconds(), of.cpuSeconds()];
  const made = await task(talk, { seconds, concurrency });
  const programSeconds = of.cpuSeconds() - programBefore;
  const cpuSeconds = meter.seconds() - before + programSeconds;
  const spent = threadSeconds(of.pid).map((thread) => ({
    ...thread,
    seconds: thread.seconds - (threadsBefore.find(({ id }) => id === thread.id)?.seconds ?? 0),
  }));
  const sum = (which: (thread: Thread) => boolean): number =>
    spent.filter(which).reduce((total, { seconds }) => total + seconds, 0);
  return {
    ...made,
    perSecond: made.answered / made.seconds,
    perCpuSecond: made.answered / cpuSeconds,
    cpuSeconds,
    programSeconds,
    mainSeconds: sum(({ id }) => id === String(of.pid)),
    packets: (await of.packets()) - packetsBefore,
    threadSeconds: sum(({ name }) => HOLDS_QUEUE.test(name)),
    single: { p50: single.p50, p99: single.p99 },
    awake: { p50: awake.p50, p99: awake.p99 },
  };
}

async function task(talk: Talk<Made | 'ready'>, what: Task): Promise<Made> {
  talk.child.send(what);
  return talk.heard((said) => said !== 'ready' && said, 1000 * what.seconds + 20_000);
}

interface Thread {
  id: string;
  name: string;
  seconds: number;
}

/** CPU seconds so far. */
function threadSeconds(pid: number | undefined): Thread[] {
  if (pid === undefined) return [];
  const folder = `/proc/${pid}/task`;
  return readdirSync(folder).map((id) => ({
    id,
    name: readFileSync(`${folder}/${id}/comm`, 'utf8').trim(),
    seconds: Number(readFileSync(`${folder}/${id}/schedstat`, 'utf8').split(' ')[0]) / 1e9,
  }));
}

function startConnector(within: Topology, family: Family, from: string[]): Talk<Made | 'ready'> {
  const program = fileURLToPath(new URL('./hello-connector.js', import.meta.url));
  const ends = [within.namespace('client'), within.namespace('server'), join(state, 'server')];
  const counted = ['sh', '-c', 'echo $$ > "$0" && exec "$@"', meter.procs];
  const argv = [...counted, process.execPath, program, ...ends, SERVER[family], ALLOWED_NAME, OTHER_NAME, ...from];
  return new Talk(start(argv, true));
}

/** Whom the gateway asks which addresses the server's names have: both names have the same. */
function startResolver(within: Topology): void {
  const records = [ALLOWED_NAME, OTHER_NAME].map((name) => `--host-record=${name},${SERVER[4]},${SERVER[6]}`);
  const quiet = [
    '--keep-in-foreground',
    '--user=root',
    '--conf-file=/dev/null',
    '--pid-file=',
    '--log-facility=/dev/null',
  ];
  const argv = ['dnsmasq', ...quiet, '--no-hosts', '--no-resolv', `--listen-address=${RESOLVER}`, '--local-ttl=30'];
  start(['ip', 'netns', 'exec', within.namespace('server'), ...argv, '--bind-interfaces', ...records], false);
}

function start([command = '', ...args]: string[], ipc: boolean): ChildProcess {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit', ...(ipc ? (['ipc'] as const) : [])] });
  children.push(child);
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGKILL');
  await once(child, 'exit');
}

function print(samples: Samples, family: Family): void {
  const pick = (subject: Subject, of: (sample: Sample) => number): number[] => (samples[subject] ?? []).map(of);
  const mid = (subject: Subject, of: (sample: Sample) => number): number => median(pick(subject, of));
  console.log(`IPv${family}, ${queues} queues or processes, ${concurrency} connections at a time`);
  for (const subject of asked) {
    const lost = mid(subject, ({ refused, silent }) => refused + silent);
    console.log(
      `  ${subject.padEnd(11)} ${mid(subject, (s) => s.perCpuSecond).toFixed(0)} connections per CPU second, ` +
        `${mid(subject, (s) => s.perSecond).toFixed(0)}/s, ${lost} not answered; ` +
        `one at a time p50 ${mid(subject, (s) => s.single.p50).toFixed(0)} us, p99 ${mid(subject, (s) => s.single.p99).toFixed(0)} us; ` +
        `with CPUs awake p50 ${mid(subject, (s) => s.awake.p50).toFixed(0)} us, p99 ${mid(subject, (s) => s.awake.p99).toFixed(0)} us`,
    );
    const each = (of: (sample: Sample) => number): string =>
      mid(subject, (sample) => (1e6 * of(sample)) / sample.answered).toFixed(0);
    if (subject !== 'snat') {
      const threads =
        subject === 'nginx'
          ? ''
          : ` (main thread ${each((s) => s.mainSeconds)}, queues ${each((s) => s.threadSeconds)})`;
      const outside = each((s) => s.cpuSeconds - s.programSeconds);
      console.log(
        `    CPU us of each: ${outside} outside the program, ${each((s) => s.programSeconds)} in it${threads}`,
      );
    }
    const beside = without[subject];
    if (beside === undefined || samples[beside] === undefined) continue;
    const ratio = (of: (sample: Sample) => number): string => {
      const found = ratioOf(samples, subject, beside, of);
      return `${found.ratio.toFixed(3)} [${found.low.toFixed(3)}..${found.high.toFixed(3)}]`;
    };
    const added = (of: (sample: Sample) => number): string => (mid(subject, of) - mid(beside, of)).toFixed(0);
    const rounds = `${samples[subject]?.length} rounds${isNarrow(ratioOf(samples, subject, beside, (s) => s.perCpuSecond)) ? '' : ', undecided'}`;
    console.log(
      `    to ${beside}: per CPU second ${ratio((s) => s.perCpuSecond)} (${rounds}), per second ${ratio((s) => s.perSecond)}; ` +
        `added p50 ${added((s) => s.single.p50)} us, with CPUs awake ${added((s) => s.awake.p50)} us`,
    );
    // nginx is processes.
    if (subject === 'nginx') continue;
    const [connections, packets] = [(s: Sample) => s.answered, (s: Sample) => s.packets].map((amount) =>
      mid(subject, (sample) => amount(sample) / sample.threadSeconds).toFixed(0),
    );
    const verdicts = subject === 'by name' ? `, ${packets} verdicts` : '';
    console.log(`    per CPU second of its ${queues} threads: ${connections} connections${verdicts}`);
  }
}

async function report(results: Record<string, Samples>): Promise<void> {
  const machine = { kernel: release(), cpu: cpus()[0]?.model, cpus: cpus().length, load: loadavg() };
  const options = { rounds, seconds, queues, concurrency, pods };
  const files = ['suricata.yaml', 'sni.rules', 'suricata.nft', 'nginx.conf', 'nginx.nft'];
  const peers = Object.fromEntries(
    files.map((file) => [file, readFileSync(besideSources(join('bench/peers', file)), 'utf8')]),
  );
  await mkdir(join(values.output, '..'), { recursive: true });
  const content = { date: new Date().toISOString(), machine, options, results, peers };
  await writeFile(values.output, `${JSON.stringify(content, null, 2)}\n`);
  console.log(`written: ${values.output}`);
}
