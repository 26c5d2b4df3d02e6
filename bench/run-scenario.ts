/** One scenario measured in rounds, whatever it is of: what stands gives a figure for a subject's turn, and this keeps them. */
import type { Progress } from './progress.ts';
import { type Figures, isDecided, type Metric, metrics, type ScenarioResult, type SubjectResult } from './result.ts';
import { inRounds, type Samples } from './rounds.ts';
import { type ControlScenario, roundsOf, type Scenario } from './scenarios.ts';
import { median } from './statistics.ts';
import type { Absent } from './subjects.ts';

/** A subject's turn: it is put in force and measured for so many seconds. Round -1 is not counted. */
export type Measure = (subject: string, round: number, seconds: number) => Promise<Figures>;

/** What stands while scenarios are measured. */
export interface Stand<S extends Scenario> {
  measure(scenario: S): Measure;
  close(): Promise<void>;
}

export interface Run {
  progress: Progress;
  rounds: number;
  mostRounds: number;
  /** Of a figure. */
  seconds: number;
  /** Seconds after which no round begins, since the start. */
  budget: number;
  /** Who takes part in a scenario of this run. */
  subjectsOf(scenario: Scenario): string[];
  titleOf(subject: string): string;
  besideOf(subject: string): string | undefined;
  /** What takes down all that stands, for whoever interrupts; any number of times. */
  closing: Set<() => Promise<void>>;
  /** Somebody interrupted: what fails from now on fails for that, and nothing begins any more. */
  interrupted(): boolean;
  /** Why a subject cannot be measured here; undefined: it can. */
  absent(subject: string): Absent | undefined;
}

/** Seconds of a round that is not counted. */
const WARM_SECONDS = 0.3;

export async function runScenario(
  scenario: Exclude<Scenario, ControlScenario>,
  measure: Measure,
  run: Run,
  place: { at: number; of: number },
): Promise<ScenarioResult> {
  const asked = run.subjectsOf(scenario);
  const absent = asked.flatMap((subject) => run.absent(subject) ?? []);
  const subjects = asked.filter((subject) => run.absent(subject) === undefined);
  const figures = (samples: Samples<string, Figures>): ScenarioResult => asResult(scenario, samples, absent, run);
  const samples = await inRounds<string, Figures>({
    subjects,
    rounds: run.rounds,
    mostRounds: run.mostRounds,
    roundsOf,
    decided: (so) => isDecided(figures(so)),
    late: () => run.progress.seconds > run.budget,
    onFailure(subject, error) {
      const reason = error instanceof Error ? error.message : String(error);
      run.progress.say(`${scenario.id}: ${subject} is left out: ${reason}`);
      absent.push({ subject: run.titleOf(subject), reason });
    },
    async measure({ subject, round }) {
      const [step, { at, of }] = [{ title: scenario.id, round, rounds: run.rounds, subject }, place];
      run.progress.step({ ...step, scenario: at, scenarios: of });
      const found = await unlessInterrupted(run, () => measure(subject, round, round < 0 ? WARM_SECONDS : run.seconds));
      const main = found[scenario.main];
      if (main !== undefined)
        run.progress.step({
          ...step,
          scenario: at,
          scenarios: of,
          figure: figureText(main, scenario.main, scenario.unit),
        });
      return found;
    },
  });
  const result = figures(samples);
  const line = result.subjects.flatMap(({ id, samples: of }) => {
    const main = of[scenario.main];
    return main === undefined ? [] : [`${id} ${median(main.flat()).toPrecision(4)}`];
  });
  run.progress.say(`${scenario.id} (${metrics[scenario.main].unit(scenario.unit)}): ${line.join(', ')}`);
  return result;
}

/** While everything is taken down nobody goes on: the process ends when that is done. */
async function unlessInterrupted<T>(run: Run, work: () => Promise<T>): Promise<T> {
  const never = new Promise<T>(() => undefined);
  if (run.interrupted()) return never;
  try {
    return await work();
  } catch (error) {
    if (run.interrupted()) return never;
    throw error;
  }
}

export const figureText = (value: number, metric: Metric, unit: string): string =>
  `${value.toPrecision(4)} ${metrics[metric].unit(unit)}`;

function asResult(scenario: Scenario, samples: Samples<string, Figures>, absent: Absent[], run: Run): ScenarioResult {
  const subjects = scenario.subjects.flatMap((id): SubjectResult[] => {
    const rounds = samples[id];
    if (rounds === undefined) return [];
    const beside = run.besideOf(id);
    return [
      {
        id,
        title: run.titleOf(id),
        own: isOwn(id),
        ...(beside !== undefined && { beside }),
        samples: byMetric(rounds),
      },
    ];
  });
  const { id, title, group, unit, main, references, bars, limits } = scenario;
  const measured = references.filter((reference) => subjects.some((subject) => subject.id === reference));
  return { id, title, group, unit, main, references: measured, bars, limits, subjects, absent };
}

/** What a comparison of two reports watches: Sluice, not its peers. */
const isOwn = (id: string): boolean => id.startsWith('sluice') || id.startsWith('by-');

function byMetric(rounds: Figures[][]): SubjectResult['samples'] {
  const found: SubjectResult['samples'] = {};
  for (const metric of Object.keys(metrics) as Metric[]) {
    const list = rounds.map((slices) => slices.flatMap((slice) => slice[metric] ?? []));
    if (list.every((slices) => slices.length > 0) && list.length > 0) found[metric] = list;
  }
  return found;
}

/** A `close` that does its work once, whoever asks, and that an interrupted run calls as well. */
export function closedOnce(run: Run, work: () => Promise<void>): () => Promise<void> {
  let done: Promise<void> | undefined;
  const close = (): Promise<void> => {
    done ??= work().finally(() => run.closing.delete(close));
    return done;
  };
  run.closing.add(close);
  return close;
}
