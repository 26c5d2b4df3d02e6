/**
 * What the gateway's table must hold, changed in place: the compiler says what is wanted, and takes what is different
 * from the last time as one change of the kernel's table, of the size of the difference. What several parts want (a
 * chain that groups share, a set of destinations) is held by each and goes with the last of them.
 */
import { digest } from '../api/digest.ts';
import {
  ChangeBuilder,
  type ElementsChange,
  type NftChain,
  type NftSet,
  type Ruleset,
  shapeOf,
  type TableChange,
} from '../kernel/nft.ts';

export type SetHead = Omit<NftSet, 'elements'>;
export type EachElement = (set: string, key: string, value: string) => void;

/** Sets of which the elements are not kept, since there are too many: they are told when they are needed. */
interface Derived {
  heads: Record<string, SetHead>;
  /** In steps, after each of which whoever asked may do something else. */
  tell(each: EachElement): Iterable<unknown>;
}

/** Elements of derived sets that are told at once: about a part of those in which a table is created (nft-create.ts). */
const PART = 16_000;

const sameChain = (a: NftChain, b: NftChain): boolean =>
  a.hook === b.hook && a.rules.length === b.rules.length && a.rules.every((rule, index) => rule === b.rules[index]);

/** undefined: it was not there. */
type Before<T> = Map<string, T | undefined>;

function remember<T>(before: Before<T>, key: string, value: T | undefined): void {
  if (!before.has(key)) before.set(key, value);
}

export class Table {
  readonly #name: string;
  #counters: readonly string[] = [];
  #countersBefore: readonly string[] | undefined;
  readonly #chains = new Map<string, NftChain>();
  readonly #sets = new Map<string, NftSet>();
  /** By how many parts a name is held. */
  readonly #holders = new Map<string, number>();
  #chainsBefore: Before<NftChain> = new Map();
  #setsBefore: Before<NftSet> = new Map();
  #elementsBefore = new Map<string, Before<string>>();
  #derived: Derived = { heads: {}, tell: () => [] };
  /** Of derived sets that were there before: what has changed. */
  #derivedChanges = new Map<string, Map<string, { before?: string; after?: string }>>();

  constructor(name: string) {
    this.#name = name;
  }

  setCounters(names: readonly string[]): void {
    this.#countersBefore ??= this.#counters;
    this.#counters = names;
  }

  /** Nothing is wanted any more, and nobody holds anything. */
  clear(): void {
    this.setCounters([]);
    for (const name of [...this.#chains.keys()]) this.deleteChain(name);
    for (const name of [...this.#sets.keys()]) this.deleteSet(name);
    for (const [name, set] of this.#derivedSets()) remember(this.#setsBefore, name, set);
    this.#derived = { heads: {}, tell: () => [] };
    this.#derivedChanges.clear();
    this.#holders.clear();
  }

  /** After clear(). `tell` says all elements of these sets, each once, as they are when it is called. */
  derive(heads: Record<string, SetHead>, tell: Derived['tell']): void {
    this.#derived = { heads, tell };
    for (const name of Object.keys(heads)) remember(this.#setsBefore, name, undefined);
  }

  /** An element of a derived set comes; one that goes was told with this value. */
  come(set: string, key: string, value: string): void {
    if (this.#setsBefore.has(set)) return;
    const changes = this.#changesOf(set);
    changes.set(key, { ...changes.get(key), after: value });
  }

  go(set: string, key: string, value: string): void {
    if (this.#setsBefore.has(set)) return;
    const changes = this.#changesOf(set);
    const known = changes.get(key);
    if (known === undefined) changes.set(key, { before: value });
    else delete known.after;
  }

  /** Adds it, or gives it other rules in place. */
  setChain(name: string, chain: NftChain): void {
    const known = this.#chains.get(name);
    if (known !== undefined && sameChain(known, chain)) return;
    remember(this.#chainsBefore, name, known);
    this.#chains.set(name, chain);
  }

  deleteChain(name: string): void {
    const known = this.#chains.get(name);
    if (known === undefined) return;
    remember(this.#chainsBefore, name, known);
    this.#chains.delete(name);
  }

  /** Adds it, or gives it other elements; one of another shape takes its place. */
  setSet(name: string, set: NftSet): void {
    const known = this.#sets.get(name);
    if (known !== undefined && shapeOf(known) === shapeOf(set)) {
      if (known.elements === set.elements) return;
      for (const key of [...known.elements.keys()]) if (!set.elements.has(key)) this.deleteElement(name, key);
      for (const [key, value] of set.elements) this.setElement(name, key, value);
      return;
    }
    this.deleteSet(name);
    remember(this.#setsBefore, name, undefined);
    this.#sets.set(name, { ...set, elements: new Map(set.elements) });
  }

  deleteSet(name: string): void {
    const known = this.#sets.get(name);
    if (known === undefined) return;
    const before = this.#elementsBefore.get(name);
    if (!this.#setsBefore.has(name)) this.#setsBefore.set(name, { ...known, elements: withBefore(known, before) });
    this.#elementsBefore.delete(name);
    this.#sets.delete(name);
  }

  /** Returns whether there was none of this key. */
  setElement(set: string, key: string, value: string): boolean {
    const known = this.#elements(set);
    const was = known.get(key);
    if (was === value) return false;
    this.#touch(set, key, was);
    known.set(key, value);
    return was === undefined;
  }

  /** Returns whether there was one. */
  deleteElement(set: string, key: string): boolean {
    const known = this.#elements(set);
    const was = known.get(key);
    if (was === undefined) return false;
    this.#touch(set, key, was);
    return known.delete(key);
  }

  hold(name: string): void {
    this.#holders.set(name, (this.#holders.get(name) ?? 0) + 1);
  }

  /** The last holder's release deletes it. */
  release(name: string): void {
    const holders = (this.#holders.get(name) ?? 1) - 1;
    if (holders > 0) {
      this.#holders.set(name, holders);
      return;
    }
    this.#holders.delete(name);
    this.deleteChain(name);
    this.deleteSet(name);
  }

  /** All of it. It is not to be changed, and changes with the table. */
  ruleset(): Ruleset {
    return {
      family: 'inet',
      table: this.#name,
      counters: [...this.#counters],
      sets: Object.fromEntries([...this.#derivedSets(), ...this.#sets]),
      chains: Object.fromEntries(this.#chains),
    };
  }

  /** What leads from no table to ruleset(), without the cost of making that first. To be used before the table changes. */
  takeWhole(): TableChange {
    const change = new ChangeBuilder(this.#name, true);
    for (const name of this.#counters) change.addCounter(name);
    const { heads } = this.#derived;
    for (const [name, head] of Object.entries(heads)) change.addSet(name, { ...head, elements: new Map() });
    const later = { size: 0, [Symbol.iterator]: () => parts };
    const parts = this.#derivedParts(later);
    const first = parts.next();
    if (!first.done) change.addParts(first.value, later);
    later.size = 0;
    for (const [name, set] of this.#sets) change.addSet(name, set);
    for (const [name, chain] of this.#chains) change.addChain(name, chain);
    this.taken();
    return change.build();
  }

  /** What leads from what was taken last to what is wanted now. */
  take(): TableChange {
    const change = new ChangeBuilder(this.#name);
    const countersBefore = this.#countersBefore ?? this.#counters;
    for (const name of countersBefore) if (!this.#counters.includes(name)) change.deleteCounter(name);
    for (const name of this.#counters) if (!countersBefore.includes(name)) change.addCounter(name);
    for (const [name, before] of this.#chainsBefore) {
      const chain = this.#chains.get(name);
      if (chain === undefined) {
        if (before !== undefined) change.deleteChain(name);
      } else if (before === undefined) change.addChain(name, chain);
      else if (!sameChain(before, chain)) change.rewriteChain(name, chain);
    }
    const isDerived = [...this.#setsBefore.keys()].some((name) => this.#derived.heads[name] !== undefined);
    const derived = isDerived ? this.#derivedSets() : undefined;
    for (const [name, before] of this.#setsBefore) {
      const set = this.#sets.get(name) ?? derived?.get(name);
      if (before !== undefined && set !== undefined && shapeOf(before) === shapeOf(set)) {
        for (const element of before.elements) {
          if (set.elements.get(element[0]) !== element[1]) change.deleteElement(name, set, element);
        }
        for (const element of set.elements) {
          if (before.elements.get(element[0]) !== element[1]) change.addElement(name, set, element);
        }
        continue;
      }
      if (before !== undefined) change.deleteSet(name, before);
      if (set !== undefined) change.addSet(name, set);
    }
    for (const [name, elements] of this.#elementsBefore) {
      const set = this.#sets.get(name);
      if (set === undefined) continue;
      for (const [key, before] of elements) {
        const value = set.elements.get(key);
        if (before === value) continue;
        if (before !== undefined) change.deleteElement(name, set, [key, before]);
        if (value !== undefined) change.addElement(name, set, [key, value]);
      }
    }
    for (const [name, changes] of this.#derivedChanges) {
      const head = this.#derived.heads[name] as SetHead;
      for (const [key, { before, after }] of changes) {
        if (before === after) continue;
        if (before !== undefined) change.deleteElement(name, head, [key, before]);
        if (after !== undefined) change.addElement(name, head, [key, after]);
      }
    }
    this.taken();
    return change.build();
  }

  /** What is different from now on counts: the kernel was brought to ruleset(). */
  taken(): void {
    this.#countersBefore = undefined;
    this.#chainsBefore = new Map();
    this.#setsBefore = new Map();
    this.#elementsBefore = new Map();
    this.#derivedChanges = new Map();
  }

  #derivedSets(): Map<string, NftSet> {
    const { heads, tell } = this.#derived;
    const sets = new Map(Object.entries(heads).map(([name, head]) => [name, { ...head, elements: new Map() }]));
    for (const _step of tell((set, key, value) => sets.get(set)?.elements.set(key, value)));
    return sets;
  }

  *#derivedParts(told: { size: number }): Generator<ElementsChange[]> {
    const { heads, tell } = this.#derived;
    const shapes = new Map(Object.entries(heads).map(([name, head]) => [name, shapeOf(head)]));
    let part = new Map<string, ElementsChange>();
    let size = 0;
    const each: EachElement = (set, key, value) => {
      let change = part.get(set);
      if (change === undefined) {
        change = { set, shape: shapes.get(set) ?? '', elements: [] };
        part.set(set, change);
      }
      change.elements.push([key, value]);
      size++;
    };
    const take = (): ElementsChange[] => {
      told.size += size;
      const taken = [...part.values()];
      [part, size] = [new Map(), 0];
      return taken;
    };
    for (const _step of tell(each)) if (size >= PART) yield take();
    if (size > 0) yield take();
  }

  #changesOf(set: string): Map<string, { before?: string; after?: string }> {
    let changes = this.#derivedChanges.get(set);
    if (changes === undefined) {
      changes = new Map();
      this.#derivedChanges.set(set, changes);
    }
    return changes;
  }

  #elements(set: string): Map<string, string> {
    const known = this.#sets.get(set)?.elements;
    if (known === undefined) throw new TypeError(`the table has no set ${set}`);
    return known;
  }

  #touch(set: string, key: string, was: string | undefined): void {
    // A new set brings its elements.
    if (this.#setsBefore.has(set)) return;
    let before = this.#elementsBefore.get(set);
    if (before === undefined) {
      before = new Map();
      this.#elementsBefore.set(set, before);
    }
    remember(before, key, was);
  }
}

function withBefore({ elements }: NftSet, before: Before<string> | undefined): Map<string, string> {
  const all = new Map(elements);
  for (const [key, value] of before ?? []) {
    if (value === undefined) all.delete(key);
    else all.set(key, value);
  }
  return all;
}

/** What one part wants of what is shared; the names tell what they hold, so that equal things are one. */
export class Scope {
  readonly #table: Table;
  readonly #held = new Set<string>();

  constructor(table: Table) {
    this.#table = table;
  }

  /** A chain of these rules, named by them. */
  add(noun: string, rules: string[]): string {
    const name = `${noun}_${digest(rules.join('\n'))}`;
    this.chain(name, { rules });
    return name;
  }

  chain(name: string, chain: NftChain): void {
    this.#hold(name);
    this.#table.setChain(name, chain);
  }

  set(name: string, set: NftSet): void {
    this.#hold(name);
    this.#table.setSet(name, set);
  }

  release(): void {
    for (const name of this.#held) this.#table.release(name);
    this.#held.clear();
  }

  #hold(name: string): void {
    if (this.#held.has(name)) return;
    this.#held.add(name);
    this.#table.hold(name);
  }
}
