/** When plans are made: bursts at once, and what does not end in turns of its own length. */
import t from 'tap';
import { planTurns, Rhythm } from '../../controller/publish/rhythm.ts';

t.test('rhythm of plans', async (t) => {
  const rhythm = new Rhythm(planTurns);
  const burst = Array.from({ length: 12 }, () => rhythm.next(1_000));
  t.same(new Set(burst), new Set([0]), 'after a rest at once');
  t.equal(rhythm.next(1_000), 80);
  t.equal(rhythm.next(1_080), 80, 'and then one after the other');
  t.equal(rhythm.next(1_200), 40, 'whoever was busy meanwhile waits for less');
  t.equal(rhythm.next(1_400), 0);

  const busy = new Rhythm(planTurns);
  let [now, plans] = [0, 0];
  for (; now < 10_000; plans++) now += busy.next(now) + 3;
  t.ok(plans <= 125 + 12, 'no more than 12.5 in a second');
  t.ok(plans >= 120);
  t.equal(busy.next(now + 60_000), 0);
  t.equal(
    Array.from({ length: 20 }, () => busy.next(now + 60_000)).filter((wait) => wait === 0).length,
    11,
    'a rest saves up no more than that',
  );
});
