/**
 * Medians and a bootstrap of their ratio. Rounds are drawn with replacement, whole and as pairs, since what disturbs a round
 * disturbs all of its slices and both of its subjects; the interval is the middle 95 % of the ratios so found (percentile
 * bootstrap of clusters).
 */

export interface Ratio {
  ratio: number;
  low: number;
  high: number;
}

export function median(values: readonly number[]): number {
  if (values.length === 0) throw new TypeError('median of nothing');
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  const upper = sorted[half] ?? 0;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] ?? 0) + upper) / 2;
}

/** Slices by round. */
export type Rounds = readonly (readonly number[])[];

/** Ratio of medians over all slices, subject to baseline; `values[i]` of both are the slices of the same round. */
export function ratioOfMedians(subject: Rounds, baseline: Rounds, draws = 4_000): Ratio {
  if (subject.length !== baseline.length) throw new TypeError('rounds do not pair up');
  return bootstrap(draws, 0.05, (drawn) => {
    const rounds = drawn(subject.length);
    return medianOf(subject, rounds) / medianOf(baseline, rounds);
  });
}

/** A median, or a ratio of medians if there is a baseline. */
export interface Measured {
  subject: Rounds;
  baseline?: Rounds;
}

/** Newer to older, each with its own noise; `level` is the share of draws outside of the interval. */
export function quotient(newer: Measured, older: Measured, level: number, draws = 4_000): Ratio {
  return bootstrap(draws, level, (drawn) => measured(newer, drawn) / measured(older, drawn));
}

/** Numbers of rounds, drawn with replacement, or each once. */
type Drawn = (count: number) => number[];

function measured({ subject, baseline }: Measured, drawn: Drawn): number {
  if (baseline === undefined) return medianOf(subject, drawn(subject.length));
  const rounds = drawn(Math.min(subject.length, baseline.length));
  return medianOf(subject, rounds) / medianOf(baseline, rounds);
}

const medianOf = (values: Rounds, rounds: readonly number[]): number =>
  median(rounds.flatMap((at) => values[at] ?? []));

function bootstrap(draws: number, level: number, value: (drawn: Drawn) => number): Ratio {
  const random = seeded(42);
  const found = Array.from({ length: draws }, () =>
    value((count) => Array.from({ length: count }, () => Math.floor(random() * count))),
  ).sort((a, b) => a - b);
  const quantile = (share: number): number => found[Math.min(draws - 1, Math.floor(share * draws))] ?? 0;
  return {
    ratio: value((count) => Array.from({ length: count }, (_, at) => at)),
    low: quantile(level / 2),
    high: quantile(1 - level / 2),
  };
}

/** mulberry32: the same figures give the same interval. */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** A ratio is known when 95 % of the bootstrap lie within so much of it. */
const NARROW = 0.05;

export function isNarrow({ ratio, low, high }: Ratio): boolean {
  return Math.max(high - ratio, ratio - low) < NARROW * ratio;
}
