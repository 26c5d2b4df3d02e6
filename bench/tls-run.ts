/**
 * TLS by name in the harness: each subject that reads names has to let the allowed one pass and no other before it is measured;
 * then connections are opened as many at a time as would fill the machine, and one at a time for how long an answer takes.
 * Topology, subjects and load are those of bench/inspection.ts.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Family } from '../api/plan.ts';
import { createServerCertificate } from '../lab/servers/certificate.ts';
import { CpuMeter } from './cpu.ts';
import type { Made, Task } from './hello-connector.ts';
import { ALLOWED_NAME, inspectionPlan, inspectionPods, OTHER_NAME, RESOLVER } from './inspection-plan.ts';
import { Subjects } from './inspection-subjects.ts';
import { SERVER } from './plan.ts';
import { closedOnce, type Measure, type Run, type Stand } from './run-scenario.ts';
import type { TlsScenario } from './scenarios.ts';
import { type TlsSubject, tlsSubjects } from './subjects.ts';
import { Talk } from './talk.ts';
import { Topology } from './topology.ts';

const [PODS, QUEUES, CONCURRENCY] = [25, 2, 64];
const SINGLE_SECONDS = 0.4;
const TRIES = 20;
const ALLOWED_MS = 20_000;

export async function standTls(run: Run): Promise<Stand<TlsScenario>> {
  const state = await mkdtemp(join(tmpdir(), 'sluice-bench-tls-'));
  const meter = new CpuMeter(`sluice-bench-${process.pid}-tls`);
  const children: ChildProcess[] = [];
  const connectors = new Map<Family, Talk<Made | 'ready'>>();
  let topology: Topology | undefined;
  let subjects: Subjects | undefined;
  const close = closedOnce(run, async () => {
    await subjects?.close();
    for (const child of children) await end(child);
    await topology?.close();
    meter.close();
    await rm(state, { recursive: true, force: true });
  });
  try {
    const pods = inspectionPods(PODS);
    topology = await Topology.create(inspectionPlan('addresses', PODS, QUEUES), [...pods[4], ...pods[6]], state);
    await createServerCertificate(join(state, 'server'), [ALLOWED_NAME], Date.now());
    subjects = await Subjects.create(topology, { state, queues: QUEUES, pods: PODS });
    const [within, of] = [topology, subjects];
    children.push(startResolver(within));
    const connector = async (family: Family): Promise<Talk<Made | 'ready'>> => {
      const known = connectors.get(family);
      if (known !== undefined) return known;
      const program = fileURLToPath(new URL('./hello-connector.js', import.meta.url));
      const ends = [within.namespace('client'), within.namespace('server'), join(state, 'server')];
      const to = [SERVER[family], ALLOWED_NAME, OTHER_NAME, ...pods[family]];
      const counted = ['-c', 'echo $$ > "$0" && exec "$@"', meter.procs, process.execPath, program, ...ends, ...to];
      const child = spawn('sh', counted, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
      children.push(child);
      const talk = new Talk<Made | 'ready'>(child);
      await talk.heard((said) => said === 'ready', 20_000);
      connectors.set(family, talk);
      return talk;
    };
    return {
      close,
      measure: ({ family }) => measureOf(of, meter, () => connector(family)),
    };
  } catch (error) {
    console.error(subjects?.lastWords());
    await close();
    throw error;
  }
}

function measureOf(subjects: Subjects, meter: CpuMeter, connector: () => Promise<Talk<Made | 'ready'>>): Measure {
  return async (id, round, seconds) => {
    const subject = tlsSubjects.find((one) => one.id === id);
    if (subject === undefined) throw new TypeError(`no subject ${id}`);
    const talk = await connector();
    try {
      await subjects.become(subject.of);
      if (reads(subject)) await mustRead(subject, talk, round < 0);
    } catch (error) {
      const said = subjects.wordsOf(subject.of);
      throw new Error(`${error instanceof Error ? error.message : error}${said === '' ? '' : `; it says: ${said}`}`);
    }
    await task(talk, { seconds: subject.warmSeconds, concurrency: CONCURRENCY });
    const single = await task(talk, { seconds: SINGLE_SECONDS, concurrency: 1 });
    const [before, programBefore] = [meter.seconds(), subjects.cpuSeconds()];
    const made = await task(talk, { seconds, concurrency: CONCURRENCY });
    const program = subjects.cpuSeconds() - programBefore;
    const cpu = meter.seconds() - before + program;
    const tried = made.answered + made.refused + made.silent;
    return {
      perCpuSecond: made.answered / cpu,
      perSecond: made.answered / made.seconds,
      lost: tried === 0 ? 100 : (100 * (tried - made.answered)) / tried,
      p50: single.p50,
      p99: single.p99,
      programCpus: program / made.seconds,
    };
  };
}

const reads = ({ of }: TlsSubject): boolean => of !== 'snat' && of !== 'by address';

/** The allowed name passes, and of another not a byte comes to the server. */
async function mustRead(subject: TlsSubject, talk: Talk<Made | 'ready'>, withOther: boolean): Promise<void> {
  const until = performance.now() + ALLOWED_MS;
  for (;;) {
    const own = await task(talk, { seconds: 2, concurrency: 1, most: TRIES });
    if (own.answered === TRIES) break;
    // A gateway first asks which addresses the name has.
    if (performance.now() > until)
      throw new Error(`the allowed name does not pass: ${own.answered} of ${TRIES} answered, ${own.refused} refused`);
    await sleep(200);
  }
  if (!withOther) return;
  const other = await task(talk, { seconds: 5, concurrency: TRIES, most: TRIES, other: true });
  if (other.answered !== 0 || other.arrived !== 0)
    throw new Error(`${subject.id}: another name passes: ${other.answered} answered, ${other.arrived} arrived`);
}

async function task(talk: Talk<Made | 'ready'>, what: Task): Promise<Made> {
  // One that is gone is missed by whoever waits for its answer.
  talk.child.send(what, () => undefined);
  return talk.heard((said) => said !== 'ready' && said, 1000 * what.seconds + 20_000);
}

/** Whom the gateway asks which addresses the server's names have: both names have the same. */
function startResolver(within: Topology): ChildProcess {
  const records = [ALLOWED_NAME, OTHER_NAME].map((name) => `--host-record=${name},${SERVER[4]},${SERVER[6]}`);
  const quiet = '--keep-in-foreground --user=root --conf-file=/dev/null --pid-file= --log-facility=/dev/null'.split(
    ' ',
  );
  const listens = [`--listen-address=${RESOLVER}`, '--bind-interfaces', '--no-hosts', '--no-resolv', '--local-ttl=30'];
  const command = ['netns', 'exec', within.namespace('server'), 'dnsmasq', ...quiet, ...listens, ...records];
  return spawn('ip', command, { stdio: ['ignore', 'ignore', 'inherit'] });
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGKILL');
  await once(child, 'exit');
}
