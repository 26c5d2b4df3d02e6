/** How the benchmarks take turns, and what their statistics make of it. */
import t from 'tap';
import { inRounds, type Turn } from '../../bench/rounds.ts';
import { isNarrow, median, quotient, ratioOfMedians } from '../../bench/statistics.ts';

type Subject = 'a' | 'b' | 'c';
const order = (turns: Turn<Subject>[]): string =>
  turns.map(({ subject, round, slice }) => `${subject}${round}.${slice}`).join(' ');

t.test('each round takes all subjects, every second in reverse order', async (t) => {
  const turns: Turn<Subject>[] = [];
  const samples = await inRounds<Subject, number>({
    subjects: ['a', 'b', 'c'],
    rounds: 2,
    mostRounds: 2,
    decided: () => true,
    measure: async (turn) => turns.push(turn),
  });
  t.equal(order(turns), 'c-1.0 b-1.0 a-1.0 a0.0 b0.0 c0.0 c1.0 b1.0 a1.0');
  t.same(samples, { a: [[4], [9]], b: [[5], [8]], c: [[6], [7]] }, 'the round before the first is not counted');
});

t.test('slices of a round are taken in turn', async (t) => {
  const turns: Turn<Subject>[] = [];
  const samples = await inRounds<Subject, number>({
    subjects: ['a', 'b'],
    rounds: 1,
    mostRounds: 1,
    slices: 3,
    decided: () => true,
    measure: async (turn) => turns.push(turn),
  });
  t.equal(order(turns), 'b-1.0 a-1.0 a0.0 b0.0 b0.1 a0.1 a0.2 b0.2', 'the one before the first is whole');
  t.same(samples, { a: [[3, 6, 7]], b: [[4, 5, 8]] });
});

t.test('there are more rounds until it is decided, at most so many, and none when it is late', async (t) => {
  const taken = async (
    decidedAfter: number,
    mostRounds: number,
    lateAfter = Number.POSITIVE_INFINITY,
  ): Promise<number | undefined> => {
    const samples = await inRounds<Subject, number>({
      subjects: ['a'],
      rounds: 3,
      mostRounds,
      decided: ({ a }) => (a?.length ?? 0) >= decidedAfter,
      late: () => --lateAfter < 0,
      measure: async () => 1,
    });
    return samples.a?.length;
  };
  t.equal(await taken(0, 9), 3, 'never fewer than asked for');
  t.equal(await taken(5, 9), 5);
  t.equal(await taken(99, 9), 9);
  t.equal(await taken(99, 9, 1), 2, 'late: there is one round, and what the time allows');
  t.equal(await taken(99, 9, 0), 1);
});

t.test('who is only to be seen has fewer rounds; who fails has none, and stops nobody', async (t) => {
  const failures: string[] = [];
  let calls = 0;
  const samples = await inRounds<Subject, number>({
    subjects: ['a', 'b', 'c'],
    rounds: 4,
    mostRounds: 4,
    roundsOf: (subject) => (subject === 'a' ? 2 : Number.POSITIVE_INFINITY),
    decided: () => true,
    onFailure: (subject, error) => failures.push(`${subject}: ${(error as Error).message}`),
    measure: async ({ subject, round }) => {
      if (subject !== 'b') return 1;
      calls++;
      if (round === 1) throw new Error('it ended');
      return 1;
    },
  });
  t.equal(samples.a?.length, 2);
  t.equal(samples.c?.length, 4);
  t.equal(samples.b, undefined);
  t.equal(calls, 3, 'no turn after the failure');
  t.same(failures, ['b: it ended']);
  await t.rejects(
    inRounds<Subject, number>({
      subjects: ['a'],
      rounds: 1,
      mostRounds: 1,
      decided: () => true,
      measure: async () => {
        throw new Error('it ended');
      },
    }),
    /it ended/,
    'where nobody asks for failures, one is everybody’s',
  );
});

t.test('ratios of medians, with the interval of their rounds', async (t) => {
  t.equal(median([3, 1, 2]), 2);
  t.equal(median([4, 1, 2, 3]), 2.5);
  t.throws(() => median([]), TypeError);
  const rounds = (values: number[]): number[][] => values.map((value) => [value]);
  const same = ratioOfMedians(rounds([10, 10, 10]), rounds([20, 20, 20]));
  t.same(same, { ratio: 0.5, low: 0.5, high: 0.5 });
  t.ok(isNarrow(same));
  // What disturbs a round disturbs both: pairs are drawn, so the ratio stays known.
  const disturbed = ratioOfMedians(rounds([9, 45, 90, 18, 27]), rounds([10, 50, 100, 20, 30]));
  t.ok(Math.abs(disturbed.low - 0.9) < 1e-9 && Math.abs(disturbed.high - 0.9) < 1e-9, 'rounds are drawn as pairs');
  const noisy = ratioOfMedians(rounds([8, 10, 12, 9, 11]), rounds([10, 10, 10, 10, 10]));
  t.equal(noisy.ratio, 1);
  t.ok(noisy.low < 0.95 && noisy.high > 1.05);
  t.notOk(isNarrow(noisy));
  t.throws(() => ratioOfMedians(rounds([1]), rounds([1, 2])), TypeError);
});

t.test('newer to older, each with its noise', async (t) => {
  const rounds = (values: number[]): number[][] => values.map((value) => [value]);
  const base = rounds([100, 102, 98, 101, 99, 100, 103, 97, 100]);
  const ninth = (by: number): number[][] => base.map(([value = 0]) => [value * by]);
  const slower = quotient({ subject: ninth(0.9) }, { subject: base }, 0.05);
  t.ok(slower.high < 1, 'a tenth less, of figures that vary by three per cent');
  t.ok(Math.abs(slower.ratio - 0.9) < 1e-9);
  const hour = quotient({ subject: ninth(0.45), baseline: ninth(0.5) }, { subject: ninth(0.9), baseline: base }, 0.05);
  t.ok(Math.abs(hour.ratio - 1) < 1e-9, 'half as fast a machine, and the same ratio');
  const wider = quotient({ subject: ninth(0.99) }, { subject: base }, 0.001);
  const narrow = quotient({ subject: ninth(0.99) }, { subject: base }, 0.05);
  t.ok(wider.low <= narrow.low && wider.high >= narrow.high, 'the level is of what lies outside');
});
