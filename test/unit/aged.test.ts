/** Aged against the plainest list that does the same. */
import { deepStrictEqual, equal } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { Aged } from '../../gateway/inspect/aged.ts';

t.test('any puts and deletions', async () => {
  const step = fc.tuple(fc.constantFrom('put', 'delete', 'oldest'), fc.nat(6));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const aged = new Aged<number>();
      let list: { key: string; value: number }[] = [];
      for (const [at, [what, number]] of steps.entries()) {
        const key = `k${number}`;
        if (what === 'put') {
          aged.put(key, at);
          list = [...list.filter((one) => one.key !== key), { key, value: at }];
        } else if (what === 'delete') {
          equal(
            aged.delete(key),
            list.some((one) => one.key === key),
          );
          list = list.filter((one) => one.key !== key);
        } else {
          aged.deleteOldest();
          list = list.slice(1);
        }
        equal(aged.size, list.length);
        equal(aged.oldest, list[0]?.value);
        equal(aged.get(key), list.find((one) => one.key === key)?.value);
        deepStrictEqual(
          [...aged.values()],
          list.map(({ value }) => value),
        );
      }
    }),
  );
});
