/**
 * What the planner saves work with: results that hold as long as what they were made from is the same, and collections
 * of which most stays from plan to plan. Nothing here changes a result; it only makes the same one sooner.
 */
import { sameJson } from '../../api/plan-delta.ts';

/** A result, and what it was made from. */
export class Memo<T> {
  #from: readonly unknown[] | undefined;
  #value: T | undefined;

  /** Made anew unless `from` is the same, item by item. `make` is given what there was before. */
  get(from: readonly unknown[], make: (before: T | undefined) => T): T {
    if (this.#value === undefined || this.#from === undefined || !sameItems(this.#from, from)) {
      this.#value = make(this.#value);
      this.#from = from;
    }
    return this.#value;
  }
}

export const sameItems = (a: readonly unknown[], b: readonly unknown[]): boolean =>
  a.length === b.length && a.every((item, at) => item === b[at]);

/** The list that there was before, if the new one has the same items. */
export const sameList = <T extends readonly unknown[]>(before: T | undefined, now: T): T =>
  before !== undefined && sameItems(before, now) ? before : now;

/** The record of before if the new one has the same values; else the new one, with the values of before that are equal. */
export function sameRecord<V>(
  before: Readonly<Record<string, V>> | undefined,
  now: Record<string, V>,
): Record<string, V> {
  if (before === undefined) return now;
  let same = Object.keys(before).length === Object.keys(now).length;
  for (const key of Object.keys(now)) {
    const [was, is] = [Object.hasOwn(before, key) ? before[key] : undefined, now[key] as V];
    if (was !== undefined && sameJson(was, is)) now[key] = was;
    else same = false;
  }
  return same ? before : now;
}

/** Keys of either whose values are not the same object. */
export function changedKeys<V>(before: ReadonlyMap<string, V>, now: ReadonlyMap<string, V>): Set<string> {
  const changed = new Set<string>();
  if (before === now) return changed;
  for (const [key, value] of now) if (before.get(key) !== value) changed.add(key);
  for (const key of before.keys()) if (!now.has(key)) changed.add(key);
  return changed;
}

/** What one namespace, or the cluster, adds to a collection. */
export type Part<V> = Readonly<Record<string, V>>;
const nothing: Part<never> = {};

/**
 * A collection put together from parts. Where two parts have one key they have equal values. The record is another one
 * after a change, since plans that were published hold it; copying it is what a change of a large one costs.
 */
export class Union<V> {
  readonly #entries = new Map<string, { value: V; parts: number }>();
  #record: Record<string, V> = {};
  #last: { from: WeakRef<Record<string, V>>; set: Record<string, V>; gone: string[] } | undefined;
  /** Keys that were touched since the record was made. */
  readonly #touched = new Set<string>();

  replace(before: Part<V> | undefined, now: Part<V> | undefined): void {
    if (before === now) return;
    const [old, next] = [before ?? nothing, now ?? nothing];
    for (const key of Object.keys(next)) {
      const value = next[key] as V;
      const entry = this.#entries.get(key);
      if (entry === undefined) this.#entries.set(key, { value, parts: 1 });
      else if (!Object.hasOwn(old, key)) entry.parts++;
      if (entry?.value === value) continue;
      if (entry !== undefined) entry.value = value;
      this.#touched.add(key);
    }
    for (const key of Object.keys(old)) {
      if (Object.hasOwn(next, key)) continue;
      const entry = this.#entries.get(key);
      if (entry === undefined || --entry.parts > 0) continue;
      this.#entries.delete(key);
      this.#touched.add(key);
    }
  }

  /** After all replacements. */
  get record(): Record<string, V> {
    const set: Record<string, V> = {};
    const gone: string[] = [];
    let changed = false;
    for (const key of this.#touched) {
      const entry = this.#entries.get(key);
      const was = Object.hasOwn(this.#record, key) ? this.#record[key] : undefined;
      if (entry !== undefined && was !== undefined && sameJson(was, entry.value)) entry.value = was;
      else if (entry !== undefined) set[key] = entry.value;
      else if (was !== undefined) gone.push(key);
      changed ||= entry?.value !== was;
    }
    this.#touched.clear();
    if (changed) {
      // A loop over known entries: spreading a record of 100,000 keys takes four times as long.
      const record: Record<string, V> = {};
      for (const [key, { value }] of this.#entries) record[key] = value;
      this.#last = { from: new WeakRef(this.#record), set, gone };
      this.#record = record;
    }
    return this.#record;
  }

  /** What led to the record from the one before; undefined: that was another. */
  changesFrom(record: Readonly<Record<string, V>>): { set: Record<string, V>; gone: string[] } | undefined {
    if (record === this.#record) return { set: {}, gone: [] };
    return this.#last?.from.deref() === record ? this.#last : undefined;
  }
}
