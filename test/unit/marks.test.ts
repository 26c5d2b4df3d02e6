/** Numbers for names: gateway/marks.ts. */
import t from 'tap';
import { CT_DECIDED, GATEWAY_CT_MASK } from '../../api/names.ts';
import {
  DEFAULT_ACTION,
  groupNumbers,
  isDecided,
  Numbers,
  ruleMark,
  ruleNumberOf,
  ruleNumbers,
} from '../../gateway/marks.ts';

t.test('marks: numbers for names', async (t) => {
  const names = Array.from({ length: 2000 }, (_, i) => `cluster/one-${i}`);
  const numbers = ruleNumbers(names);
  t.equal(
    new Set([...numbers].map(([, number]) => number)).size,
    names.length + 1,
    'each name has its own, the default action too',
  );
  const sorted = (made: Numbers): [string, number][] => [...made].sort(([a], [b]) => (a < b ? -1 : 1));
  t.same(sorted(ruleNumbers([...names].reverse())), sorted(numbers), 'the order does not matter');
  const fewer = ruleNumbers(names.slice(0, 1000));
  t.ok(
    [...fewer].every(([name, number]) => numbers.get(name) === number),
    'other names that come or go do not matter',
  );
  t.equal(numbers.get(DEFAULT_ACTION), ruleNumbers([]).get(DEFAULT_ACTION));

  const tight = new Numbers(50, names.slice(0, 50));
  t.same(
    [...tight].map(([, number]) => number).sort((a, b) => a - b),
    Array.from({ length: 50 }, (_, i) => i + 1),
    'with as many numbers as names, collisions find every free one',
  );
  t.same(
    sorted(new Numbers(50, names.slice(0, 50).reverse())),
    sorted(tight),
    'collisions too are settled by name, not by order',
  );
  // Whoever comes or goes: the numbers are those of the names that are there, and each move is told.
  const walked = new Numbers(50);
  const there = new Set<string>();
  for (let step = 0; step < 600; step++) {
    const name = names[(step * 7919) % 60] ?? '';
    const before = new Map(walked);
    const moved = there.has(name) ? walked.delete(name) : there.size < 50 ? walked.add(name) : [];
    if (!there.delete(name) && there.size < 50) there.add(name);
    const others = [...walked].filter(([other, number]) => other !== name && before.get(other) !== number);
    t.same(new Map(moved), new Map(others.map(([other]) => [other, before.get(other)])), 'who moved, and from where');
    if (step % 20 === 0) t.same(sorted(walked), sorted(new Numbers(50, there)), 'as if they had come in another order');
  }
  for (const number of [1, 0x3fffff, ...[...numbers].slice(0, 50).map(([, number]) => number)]) {
    const mark = ruleMark(number);
    t.ok(mark > 0 && (mark & ~GATEWAY_CT_MASK) === 0, 'a mark stays in our bits');
    t.notOk(isDecided(mark), 'and says nothing of decided');
    t.equal(ruleNumberOf((mark | CT_DECIDED | 0x55) >>> 0), number, 'and is read from a decided flow of others');
  }
  t.ok(isDecided(CT_DECIDED | ruleMark(1)));
  t.notOk(
    [...groupNumbers(names)].some(([, number]) => number === 0),
    'a group is never 0, which means unknown',
  );
});
