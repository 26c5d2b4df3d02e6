/**
 * Rules in order as disjoint boxes, each with the first rule that covers it, or with what all that cover it say together:
 * one look-up in a set of them finds what a walk along the rules would. A box is a range of addresses and a range of
 * numbers (ports, protocols, or ICMP's types and codes). Neighbours that say the same are merged. Pure.
 */
import type { Range } from '../api/address.ts';

/** What a rule covers; rules are numbered in their order, and one may cover several boxes. */
export interface OrderedBox {
  rule: number;
  range: Range;
  first: number;
  last: number;
}

/** What is said where these boxes lie, in the order of their rules; undefined: nothing. */
type Said = (inOrder: readonly OrderedBox[], number: number) => number | undefined;

const covers = ({ first, last }: OrderedBox, number: number): boolean => first <= number && number <= last;

const firstRule: Said = (inOrder, number) => inOrder.find((box) => covers(box, number))?.rule;

/** `undefined`: it would be more than `most` boxes, or cost as much. */
export function firstBoxes(boxes: readonly OrderedBox[], most: number): OrderedBox[] | undefined {
  return boxesSaying(boxes, most, firstRule);
}

/** The same, with what `fold` makes of the numbers of all rules that cover a box, in their order, in place of the first. */
export function foldedBoxes(
  boxes: readonly OrderedBox[],
  most: number,
  fold: (rules: readonly number[]) => number | undefined,
): OrderedBox[] | undefined {
  return boxesSaying(boxes, most, (inOrder, number) => {
    const covering = inOrder.filter((box) => covers(box, number)).map(({ rule }) => rule);
    return covering.length === 0 ? undefined : fold(covering);
  });
}

function boxesSaying(boxes: readonly OrderedBox[], most: number, said: Said): OrderedBox[] | undefined {
  const opening = boxes.toSorted((a, b) => compare(a.range.first, b.range.first));
  const bounds = [...new Set(boxes.flatMap(({ range }) => [range.first, range.last + 1n]))].sort(compare);
  const found: OrderedBox[] = [];
  let active: OrderedBox[] = [];
  let next = 0;
  let work = 0;
  /** Runs of numbers that go on, by what they are: where they began. */
  let open = new Map<string, OrderedBox>();
  for (const [at, from] of bounds.entries()) {
    active = active.filter(({ range }) => range.last >= from);
    for (let box = opening[next]; box !== undefined && box.range.first === from; box = opening[++next])
      active.push(box);
    work += active.length;
    const to = (bounds[at + 1] ?? from) - 1n;
    const going = new Map<string, OrderedBox>();
    for (const { rule, first, last } of runsOf(active, said)) {
      const key = `${rule} ${first} ${last}`;
      const began = open.get(key);
      const family = active[0]?.range.family ?? 4;
      const range = { family, first: began?.range.first ?? from, last: to };
      going.set(key, { rule, range, first, last });
    }
    for (const [key, box] of open) if (!going.has(key)) found.push(box);
    open = going;
    if (found.length + open.size > most || work > WORK * most) return undefined;
  }
  return [...found, ...open.values()];
}

/** Steps for each box that may come out. */
const WORK = 100;

/** The numbers that boxes cover at one address, each with what is said there; neighbours that say the same are one run. */
function runsOf(active: readonly OrderedBox[], said: Said): { rule: number; first: number; last: number }[] {
  if (active.length === 1 && said === firstRule) return [...active];
  const bounds = [...new Set(active.flatMap(({ first, last }) => [first, last + 1]))].sort((a, b) => a - b);
  const inOrder = active.toSorted((a, b) => a.rule - b.rule);
  const runs: { rule: number; first: number; last: number }[] = [];
  for (const [at, first] of bounds.entries()) {
    const last = (bounds[at + 1] ?? first) - 1;
    const rule = first <= last ? said(inOrder, first) : undefined;
    if (rule === undefined) continue;
    const before = runs.at(-1);
    if (before?.rule === rule && before.last + 1 === first) before.last = last;
    else runs.push({ rule, first, last });
  }
  return runs;
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
