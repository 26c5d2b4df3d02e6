/**
 * What a Tc must do, be it the kernel (test/netns/kernel.test.ts) or the fake (test/unit/kernel.test.ts): every row of the
 * table is led to from every other, or where that would take long there and back in their order. The interface `eth0` has nothing at
 * its root, `peer` another program's qdisc.
 */
import type { Test } from 'tap';
import { diffTc, isForeign, shapedBits, type Tc, type TcClass } from '../kernel/tc.ts';

const klass = (minor: number, bits: number, parent?: number, leaf = true): TcClass => ({
  minor,
  bits,
  ...(parent !== undefined && { parent }),
  leaf,
});
const tree = [klass(1, 100e6, undefined, false), klass(0xfffe, 100e6, 1), klass(3, 50e6, 1), klass(4, 10e6)];

export const tcStates: [name: string, classes: TcClass[]][] = [
  ['none', []],
  ['a tree', tree],
  ['another rate', tree.map((one) => (one.minor === 3 ? klass(3, 33_333_333, 1) : one))],
  ['rates of all sizes', [1, 8e3, 999_999_999, 1e9, 3_333_333_333, 100e9].map((bits, at) => klass(at + 1, bits))],
  ['a leaf that becomes a parent', [klass(4, 10e6, undefined, false), klass(3, 9e6, 4)]],
  ['a parent that becomes a leaf', [klass(1, 100e6), klass(4, 10e6)]],
  ['other parents', [klass(1, 100e6, undefined, false), klass(4, 10e6, 1), klass(3, 5e6)]],
];

const sorted = (classes: readonly TcClass[]): TcClass[] =>
  classes.map((one) => ({ ...one, bits: shapedBits(one.bits) })).sort((a, b) => a.minor - b.minor);

export async function tcSuite(t: Test, tc: Tc, fromEvery: boolean): Promise<void> {
  const apply = async (classes: TcClass[]): Promise<number> => {
    const everywhere = new Map(['eth0', 'peer', 'gone'].map((dev) => [dev, classes]));
    const lines = diffTc(await tc.list(), everywhere);
    await tc.apply(lines);
    return lines.length;
  };
  const forth = tcStates.map(([to, classes]) => ({ to, classes }));
  const path = fromEvery
    ? forth.flatMap((from) => forth.flatMap((to) => [from, to]))
    : [...forth, ...forth.toReversed()];
  for (const { to, classes: after } of path) {
    await apply(after);
    const state = await tc.list();
    const { root, classes = [] } = state.get('eth0') ?? {};
    t.same([root, sorted(classes)], [after.length > 0 ? 'ours' : 'free', sorted(after)], to);
    t.equal(await apply(after), 0, `${to}: applied twice changes nothing`);
    const peer = state.get('peer')?.root;
    t.ok(peer !== undefined && isForeign(peer), 'nothing of others');
  }
  const last = tcStates.find(([, classes]) => classes.length > 0)?.[1] ?? [];
  await apply(last);
  t.same(await tc.dropped(), { eth0: 0 });
  await t.rejects(tc.apply(['class change dev eth0 parent 1e6e:0 classid 1e6e:9 htb rate 1000bit ceil 1000bit']));
}
