/**
 * The forwarding, latency and churn scenarios of the harness, stage by stage: a stage with all of its gateways is built
 * once, and its scenarios are measured in it. Before a scenario's rounds each subject has to show whose address the server sees.
 */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { families } from '../api/plan.ts';
import { CpuMeter } from './cpu.ts';
import { Gateways } from './gateways.ts';
import { isStream, type Load, LoadGenerator } from './load.ts';
import { podAddresses } from './plan.ts';
import { podsOf, sourcesOf } from './planned.ts';
import type { Figures } from './result.ts';
import { closedOnce, type Measure, type Run, type Stand } from './run-scenario.ts';
import type { ForwardingScenario } from './scenarios.ts';
import { Stage } from './stage.ts';
import { type ForwardingSubject, forwardingSubjects } from './subjects.ts';

/** Load before what is counted, of loads that go on: the turn's first packets find neighbours, routes and cold caches. */
const WARM_SECONDS = 0.2;
const CHURN = { rules: 20, pods: 40, everyMs: 200 };
const CHURN_WARM_SECONDS = 1;
/** Seconds of new connections before the first round, of a program. */
const COMPILE_SECONDS = 4;
/** Fewer flows that end cost less than is measured of a program that is idle. */
const ENDS_LEAST = 1_000;
const FLOWS = 64;
const LEAVE_MS = 200;

/** Scenarios of the same stage. */
export const stageOf = ({ steering, namespaces }: ForwardingScenario): string =>
  `${steering === 'VXLAN' ? 'tunnel' : 'direct'}-${namespaces}`;

const subjectNamed = (id: string): ForwardingSubject => {
  const found = forwardingSubjects.find((subject) => subject.id === id);
  if (found === undefined) throw new TypeError(`no subject ${id}`);
  return found;
};

/** Builds the stage, and gives what measures a scenario in it. */
export async function standForwarding(scenarios: ForwardingScenario[], run: Run): Promise<Stand<ForwardingScenario>> {
  const [first] = scenarios;
  if (first === undefined) throw new TypeError('no scenario');
  const state = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  await mkdir(state, { recursive: true });
  const { steering, namespaces } = first;
  const meter = new CpuMeter(`sluice-bench-${process.pid}-${stageOf(first)}`);
  let stage: Stage | undefined;
  let gateways: Gateways | undefined;
  let generator: LoadGenerator | undefined;
  const close = closedOnce(run, async () => {
    await generator?.close();
    await gateways?.close();
    await stage?.close();
    // Who was killed has left the group a moment later.
    await sleep(LEAVE_MS);
    meter.close();
    await rm(state, { recursive: true, force: true });
  });
  try {
    const count = Math.min(sourcesOf(namespaces), podsOf(namespaces));
    const places = Array.from({ length: count }, (_, at) => podAddresses(at));
    const pods = { 4: places.map((of) => of[4]), 6: places.map((of) => of[6]) };
    stage = await Stage.create(steering, [...pods[4], ...pods[6]], stageOf(first));
    gateways = await Gateways.create(stage, state, { namespaces, steering });
    const asked = new Set(scenarios.flatMap((scenario) => run.subjectsOf(scenario)));
    const needed = forwardingSubjects.filter(({ id, churnOf }) => asked.has(id) || (churnOf && asked.has(churnOf)));
    for (const subject of forwardingSubjects.filter(
      ({ id }) => asked.has(id) || needed.some((of) => of.churnOf === id),
    )) {
      run.progress.say(`${stageOf(first)}: ${subject.title}`);
      await gateways.add(subject);
    }
    const used = families.filter((family) => scenarios.some((scenario) => scenario.family === family));
    const loads: Load[] = scenarios.map(({ load }) => load);
    let now: ForwardingSubject | undefined;
    const [built, standing] = [stage, gateways];
    const counted = {
      procs: meter.procs,
      seconds: () => meter.seconds() + (now === undefined ? 0 : standing.programSeconds(now)),
    };
    generator = new LoadGenerator(stage, counted, pods);
    await generator.start(used, FLOWS, loads);
    const load = generator;
    return {
      close,
      measure: (scenario) =>
        measureOf(scenario, built, standing, load, (subject) => {
          now = subject;
        }),
    };
  } catch (error) {
    // What failed is what is to be said.
    await close().catch((closing: unknown) => run.progress.say(String(closing)));
    throw error;
  }
}

function measureOf(
  { load, family }: ForwardingScenario,
  stage: Stage,
  gateways: Gateways,
  generator: LoadGenerator,
  turnOf: (subject: ForwardingSubject) => void,
): Measure {
  return async (id, round, seconds): Promise<Figures> => {
    const subject = subjectNamed(id);
    turnOf(subject);
    const idle = gateways.programSeconds(subject);
    const ended = await stage.become(subject.churnOf ?? subject.id);
    await gateways.settle(subject);
    // Flows of its last turn: their records are written now, which is no part of what is counted below.
    const end = ended < ENDS_LEAST ? undefined : (1e6 * (gateways.programSeconds(subject) - idle)) / ended;
    if (round < 0) {
      await mustTranslate(subject);
      // V8 compiles what is used some ten thousand times.
      if (subject.table === 'sluice' && load === 'connect') await generator.measure(load, family, COMPILE_SECONDS);
    }
    if (subject.churnOf !== undefined) {
      gateways.churn(subject, CHURN);
      await generator.measure(load, family, CHURN_WARM_SECONDS);
    } else if (!isStream(load)) await generator.measure(load, family, WARM_SECONDS);
    const [before, began] = [gateways.programSeconds(subject), performance.now()];
    const count = await generator.measure(load, family, seconds);
    const wall = (performance.now() - began) / 1000;
    const cpu = gateways.programSeconds(subject) - before;
    const churned = subject.churnOf === undefined ? undefined : await gateways.calm(subject);
    const { amount, lost } = count;
    return {
      perCpuSecond: amount / count.cpuSeconds,
      perSecond: amount / count.seconds,
      ...((load === 'udp' || load === 'frames') && { lost: (100 * lost) / (amount + lost) }),
      ...(count.p50 !== undefined && count.p99 !== undefined && { p50: count.p50, p99: count.p99 }),
      ...(subject.table === 'sluice' && { programCpus: cpu / wall }),
      ...(subject.table === 'sluice' && end !== undefined && { endMicroseconds: end }),
      ...(churned !== undefined && { plansPerSecond: churned.answered / (wall + CHURN_WARM_SECONDS) }),
    };
  };

  async function mustTranslate(subject: ForwardingSubject): Promise<void> {
    const seen = await stage.sourcesDuring(family, () => generator.measure('udp', family, 0.05));
    if (seen.length !== 1 || seen[0] !== subject.source)
      throw new Error(`${subject.id}: the server is to see ${subject.source}, and sees ${seen.join(', ') || 'nobody'}`);
  }
}
