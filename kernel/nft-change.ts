/**
 * What leads from one state of a table to another, as a value that an Nft runs as one transaction.
 * The fields stand in the order in which they are done. What goes first goes out (old chains are emptied before any is
 * deleted, so that no jump to a deleted one remains; then elements, which may name old chains; then chains, sets,
 * counters), what comes in follows. Packets see none of the order, only before and after; deleting first lets a set
 * change its shape under its own name.
 */
import type { NftChain, NftSet } from './nft.ts';
import { isCountedShape, isLimitShape, isMapShape, rulesOf, shapeOf } from './nft-state.ts';

export type NftElement = [key: string, value: string];

export interface ElementsChange {
  set: string;
  /** shapeOf() the set, which says how the texts are to be read. */
  shape: string;
  elements: NftElement[];
}

/** Elements of a new table's sets in parts that are made when they are taken, once: there are too many to hold. */
export interface LaterElements extends Iterable<ElementsChange[]> {
  /** Of those that were taken. */
  size: number;
}

export interface TableChange {
  family: 'inet';
  table: string;
  create: boolean;
  /** Chains that go, or get other rules in place: no packet sees them empty. */
  flushed: string[];
  elementsOut: ElementsChange[];
  /** Maps of verdicts that go: each holds its chains until then. Emptied first, those can go before it. */
  flushedMaps: string[];
  chainsOut: string[];
  setsOut: { name: string; shape: string }[];
  countersOut: string[];
  counters: string[];
  sets: { name: string; shape: string }[];
  chains: { name: string; hook?: string }[];
  /** Added behind those that the chain has, in this order. */
  rules: [chain: string, text: string][];
  elementsIn: ElementsChange[];
  /** And after these. Only with `create`. */
  later?: LaterElements;
}

/** A change that changes nothing yet. */
export const emptyChange = (family: 'inet', table: string): TableChange => ({
  family,
  table,
  create: false,
  flushed: [],
  elementsOut: [],
  flushedMaps: [],
  chainsOut: [],
  setsOut: [],
  countersOut: [],
  counters: [],
  sets: [],
  chains: [],
  rules: [],
  elementsIn: [],
});

/** How much it is: elements, rules, chains and what else comes, goes or is emptied. 0: nothing to do. */
export function changeSize(change: TableChange): number {
  const { create, elementsOut, elementsIn, later } = change;
  const elements = [...elementsOut, ...elementsIn].reduce((sum, { elements }) => sum + elements.length, 0);
  const { flushed, flushedMaps, chainsOut, setsOut, countersOut, counters, sets, chains, rules } = change;
  const lists = [flushed, flushedMaps, chainsOut, setsOut, countersOut, counters, sets, chains, rules];
  return lists.reduce((sum, { length }) => sum + length, elements) + (later?.size ?? 0) + Number(create);
}

/** Collects a change, in any order. */
export class ChangeBuilder {
  readonly #change: TableChange;
  readonly #out = new Map<string, ElementsChange>();
  readonly #in = new Map<string, ElementsChange>();

  /** `create`: there is no such table. */
  constructor(table: string, create = false) {
    this.#change = { ...emptyChange('inet', table), create };
  }

  addCounter(name: string): void {
    this.#change.counters.push(name);
  }

  deleteCounter(name: string): void {
    this.#change.countersOut.push(name);
  }

  addChain(name: string, chain: NftChain): void {
    this.#change.chains.push(chain.hook === undefined ? { name } : { name, hook: chain.hook });
    for (const rule of rulesOf(name, chain)) this.#change.rules.push(rule);
  }

  rewriteChain(name: string, chain: NftChain): void {
    this.#change.flushed.push(name);
    for (const rule of rulesOf(name, chain)) this.#change.rules.push(rule);
  }

  deleteChain(name: string): void {
    this.#change.flushed.push(name);
    this.#change.chainsOut.push(name);
  }

  addSet(name: string, set: NftSet): void {
    const shape = shapeOf(set);
    this.#change.sets.push({ name, shape });
    if (set.elements.size > 0) this.#in.set(name, { set: name, shape, elements: [...set.elements] });
  }

  deleteSet(name: string, set: NftSet): void {
    this.#change.setsOut.push({ name, shape: shapeOf(set) });
    if (set.value === 'verdict' && set.elements.size > 0) this.#change.flushedMaps.push(name);
  }

  addElement(name: string, set: Omit<NftSet, 'elements'>, element: NftElement): void {
    elementsOf(this.#in, name, set).push(element);
  }

  addParts(first: ElementsChange[], later: LaterElements): void {
    for (const elements of first) this.#in.set(elements.set, elements);
    this.#change.later = later;
  }

  deleteElement(name: string, set: Omit<NftSet, 'elements'>, element: NftElement): void {
    elementsOf(this.#out, name, set).push(element);
  }

  build(): TableChange {
    return { ...this.#change, elementsOut: [...this.#out.values()], elementsIn: [...this.#in.values()] };
  }
}

function elementsOf(changes: Map<string, ElementsChange>, set: string, head: Omit<NftSet, 'elements'>): NftElement[] {
  let change = changes.get(set);
  if (change === undefined) {
    change = { set, shape: shapeOf(head), elements: [] };
    changes.set(set, change);
  }
  return change.elements;
}

export const isEmptyChange = (change: TableChange): boolean => changeSize(change) === 0;

/**
 * The same as one or two changes: elements that count packets come before the rules that name them. While the kernel works
 * through a transaction, a packet that meets its rules does not find what came with them (nft_rhash_update() looks past
 * what is not active in both generations) and adds another element of the same key. Of the two one counts, and the other
 * may be the one that is read.
 */
export function countersFirst(change: TableChange): TableChange[] {
  const made = new Set(change.sets.map(({ name }) => name));
  const counts = ({ set, shape }: ElementsChange): boolean => isCountedShape(shape) && !made.has(set);
  const counting = change.elementsIn.filter(counts);
  const rest = { ...change, elementsIn: change.elementsIn.filter((elements) => !counts(elements)) };
  if (counting.length === 0 || isEmptyChange(rest)) return [change];
  return [{ ...emptyChange(change.family, change.table), elementsIn: counting }, rest];
}

/** Elements on one line: long lists stay readable in logs, short enough for an error to point at. */
const LINE_ELEMENTS = 256;

/** The change as text for `nft -f`; '' if there is nothing to do. */
export function scriptOf(change: TableChange): string {
  const at = `${change.family} ${change.table}`;
  const kind = (shape: string): string => (isMapShape(shape) ? 'map' : 'set');
  const out: string[] = [];
  if (change.create) out.push(`add table ${at}`);
  for (const name of change.flushed) out.push(`flush chain ${at} ${name}`);
  for (const elements of change.elementsOut) elementLines(out, 'delete', at, elements);
  for (const name of change.flushedMaps) out.push(`flush map ${at} ${name}`);
  for (const name of change.chainsOut) out.push(`delete chain ${at} ${name}`);
  for (const { name, shape } of change.setsOut) out.push(`delete ${kind(shape)} ${at} ${name}`);
  for (const name of change.countersOut) out.push(`delete counter ${at} ${name}`);
  for (const name of change.counters) out.push(`add counter ${at} ${name}`);
  for (const { name, shape } of change.sets) out.push(`add ${kind(shape)} ${at} ${name} { ${shape} }`);
  for (const { name, hook } of change.chains) {
    out.push(`add chain ${at} ${name}${hook === undefined ? '' : ` { ${hook} }`}`);
  }
  for (const [chain, rule] of change.rules) out.push(`add rule ${at} ${chain} ${rule}`);
  for (const part of [change.elementsIn, ...(change.later ?? [])]) {
    for (const elements of part) elementLines(out, 'add', at, elements);
  }
  return out.length === 0 ? '' : `${out.join('\n')}\n`;
}

function elementLines(out: string[], verb: 'add' | 'delete', at: string, { set, shape, elements }: ElementsChange) {
  const between = isLimitShape(shape) ? ' ' : ' : ';
  for (let start = 0; start < elements.length; start += LINE_ELEMENTS) {
    const texts = elements
      .slice(start, start + LINE_ELEMENTS)
      .map(([key, value]) => (value === '' ? key : `${key}${between}${value}`));
    out.push(`${verb} element ${at} ${set} { ${texts.join(', ')} }`);
  }
}
