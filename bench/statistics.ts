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

/** Ratio of medians over all slices, subject to baseline; `values[i]` of both are the slices of the same round. */
export function ratioOfMedians(
  subject: readonly (readonly number[])[],
  baseline: readonly (readonly number[])[],
  draws = 4_000,
): Ratio {
  if (subject.length !== baseline.length) throw new TypeError('rounds do not pair up');
  const random = seeded(42);
  const of = (values: readonly (readonly number[])[], rounds: readonly number[]): number =>
    median(rounds.flatMap((at) => values[at] ?? []));
  const ratioOf = (rounds: readonly number[]): number => of(subject, rounds) / of(baseline, rounds);
  const ratios: number[] = [];
  for (let draw = 0; draw < draws; draw++) {
    ratios.push(ratioOf(subject.map(() => Math.floor(random() * subject.length))));
  }
  ratios.sort((a, b) => a - b);
  const quantile = (share: number): number => ratios[Math.min(draws - 1, Math.floor(share * draws))] ?? 0;
  return { ratio: ratioOf([...subject.keys()]), low: quantile(0.025), high: quantile(0.975) };
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
