/**
 * Disjoint boxes against a walk along the rules: every point is in the box of the first rule that covers it, and in no
 * other; nothing is covered that no rule covers.
 */
import fc from 'fast-check';
import t from 'tap';
import { firstBoxes, type OrderedBox } from '../../policy/first-box.ts';

const SIDE = 12;
const span = fc.tuple(fc.nat(SIDE - 1), fc.nat(SIDE - 1)).map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const);
const boxes = fc.array(fc.tuple(span, span, fc.nat(5)), { maxLength: 14 }).map((list) =>
  list.map(
    ([[from, to], [first, last], rule]): OrderedBox => ({
      rule,
      range: { family: 4, first: BigInt(from), last: BigInt(to) },
      first,
      last,
    }),
  ),
);
const covers = ({ range, first, last }: OrderedBox, address: number, number: number): boolean =>
  range.first <= BigInt(address) && BigInt(address) <= range.last && first <= number && number <= last;

t.test('the first rule that covers a point is the one whose box it is in', async (t) => {
  fc.assert(
    fc.property(boxes, (list) => {
      const found = firstBoxes(list, 1_000);
      if (found === undefined) throw new Error('too many');
      for (let address = 0; address < SIDE; address++) {
        for (let number = 0; number < SIDE; number++) {
          const first = list.filter((box) => covers(box, address, number)).map(({ rule }) => rule);
          const there = found.filter((box) => covers(box, address, number)).map(({ rule }) => rule);
          const expected = first.length === 0 ? [] : [Math.min(...first)];
          if (String(there) !== String(expected)) throw new Error(`${address}, ${number}: ${there}, not ${expected}`);
        }
      }
    }),
    { numRuns: 500 },
  );
  t.pass();
});

t.test('neighbours are merged, and what grows too much is not made', async (t) => {
  const box = (rule: number, from: number, to: number, first: number, last: number): OrderedBox => ({
    rule,
    range: { family: 6, first: BigInt(from), last: BigInt(to) },
    first,
    last,
  });
  t.same(firstBoxes([box(1, 0, 4, 1, 5), box(1, 5, 9, 1, 5), box(1, 3, 7, 2, 3)], 9), [box(1, 0, 9, 1, 5)]);
  t.same(firstBoxes([], 0), []);
  const last = 2n ** 128n - 1n;
  const all: OrderedBox = { rule: 3, range: { family: 6, first: 0n, last }, first: 0, last: 65_535 };
  t.same(firstBoxes([all], 1), [all], 'up to the last address');
  const apart = Array.from({ length: 30 }, (_, at) => box(at, 2 * at, 2 * at, 0, 9));
  t.equal(firstBoxes(apart, 30)?.length, 30);
  t.equal(firstBoxes(apart, 29), undefined);
});
