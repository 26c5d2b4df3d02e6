/**
 * Two reports beside one another: is Sluice slower than it was, beyond the noise that both of them measured? What has a
 * reference is compared as its ratio to that, so that the machine's hour does not count; what has none by itself, and
 * only if the machine is the same. Pure.
 */
import {
  type Metric,
  metrics,
  type Result,
  ratioOf,
  referencesOf,
  type ScenarioResult,
  type SubjectResult,
  subjectOf,
} from './result.ts';
import { quotient, type Ratio, type Rounds } from './statistics.ts';

export type Comparison = 'slower' | 'faster' | 'same' | 'unknown';

export interface Compared {
  scenario: string;
  subject: string;
  metric: Metric;
  /** Absent: the figure by itself. */
  beside?: string;
  /** The new figure, or ratio, to the old. */
  change?: Ratio;
  /** Of the change: what two places with the same table differ by, in the worse of both reports. */
  place: number;
  verdict: Comparison;
  why?: string;
}

/** Fewer rounds in either report have no noise that could be told from a change. */
const LEAST = 3;
/** Of all comparisons together: that one of them cries although nothing has changed. */
const LEVEL = 0.05;
const TWINS = ['nft-twin', 'nft'] as const;
/** What places differ by where no twin was measured: two rows with the same table did, by so much (docs/bench.md). */
const PLACES = 0.03;

export function compare(old: Result, now: Result): Compared[] {
  const sameMachine = old.machine.cpu === now.machine.cpu && old.machine.cpus === now.machine.cpus;
  const pairs = now.scenarios.flatMap((scenario) => {
    const before = old.scenarios.find(({ id }) => id === scenario.id);
    return before === undefined ? [] : scenario.subjects.flatMap((subject) => pairOf(before, scenario, subject));
  });
  return pairs.map((pair) => judged(pair, sameMachine, LEVEL / Math.max(1, pairs.length)));
}

interface Pair {
  before: ScenarioResult;
  after: ScenarioResult;
  subject: string;
  metric: Metric;
  beside?: string;
}

function pairOf(before: ScenarioResult, after: ScenarioResult, subject: SubjectResult): Pair[] {
  const earlier = subjectOf(before, subject.id);
  if (!subject.own || earlier === undefined) return [];
  // Of the control plane's rows each has one figure of its own.
  const [metric] = subject.samples[after.main] ? [after.main] : (Object.keys(subject.samples) as Metric[]);
  if (metric === undefined || earlier.samples[metric] === undefined) return [];
  // The reference that lies nearest: its own, or the last, which is what Sluice is asked to be beside.
  const references = referencesOf(after, subject);
  const own = references.filter((id) => id === subject.beside);
  const beside = [...references, ...own].findLast((id) => subjectOf(before, id)?.samples[metric] !== undefined);
  return [{ before, after, subject: subject.id, metric, ...(beside !== undefined && { beside }) }];
}

function judged({ before, after, subject, metric, beside }: Pair, sameMachine: boolean, level: number): Compared {
  const twice = beside !== undefined && inPlaces(after);
  const place = twice ? Math.max(...[before, after].map((of) => placeNoise(of, metric))) : 0;
  const found: Compared = {
    scenario: after.id,
    subject,
    metric,
    place,
    verdict: 'unknown',
    ...(beside !== undefined && { beside }),
  };
  if (beside === undefined && !sameMachine) return { ...found, why: 'another machine, and nothing to compare it with' };
  const side = (of: ScenarioResult): { subject: Rounds; baseline?: Rounds } => {
    const samples = (id: string): Rounds => subjectOf(of, id)?.samples[metric] ?? [];
    return { subject: samples(subject), ...(beside !== undefined && { baseline: samples(beside) }) };
  };
  const sides = [side(after), side(before)] as const;
  const rounds = Math.min(...sides.flatMap((of) => [of.subject.length, of.baseline?.length ?? of.subject.length]));
  if (rounds < LEAST) return { ...found, why: `fewer than ${LEAST} rounds` };
  const change = quotient(...sides, level);
  const more = metrics[metric].better === 'more';
  const [worse, better] = more
    ? [change.high < 1 - place, change.low > 1 + place]
    : [change.low > 1 + place, change.high < 1 - place];
  return { ...found, change, verdict: worse ? 'slower' : better ? 'faster' : 'same' };
}

/** Whether subjects have gateways of their own; in the others one takes the other's place. */
const inPlaces = ({ group }: ScenarioResult): boolean => group === 'forwarding' || group === 'latency';

function placeNoise(scenario: ScenarioResult, metric: Metric): number {
  const twins = ratioOf(scenario, ...TWINS, metric);
  return twins === undefined ? PLACES : Math.abs(twins.ratio - 1);
}

export function comparedText(list: readonly Compared[]): string {
  if (list.length === 0) return 'nothing that both reports have measured';
  const text = (of: Compared): string => {
    const { change, place } = of;
    const figure =
      change === undefined
        ? (of.why ?? '')
        : `${change.ratio.toFixed(3)} [${change.low.toFixed(3)}..${change.high.toFixed(3)}]`;
    const beside = of.beside === undefined ? '' : ` to ${of.beside}`;
    const margin = place === 0 ? '' : `, places differ by ${(100 * place).toFixed(1)} %`;
    return `${of.verdict.padEnd(8)} ${of.scenario}: ${of.subject}, ${metrics[of.metric].title}${beside}: ${figure}${margin}`;
  };
  const slower = list.filter(({ verdict }) => verdict === 'slower').length;
  return `${list.map(text).join('\n')}\n${slower === 0 ? 'no regression' : `${slower} slower, beyond the noise`}`;
}
