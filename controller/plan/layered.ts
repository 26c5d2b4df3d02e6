/**
 * A snapshot of very many objects of which few change at a time: what it was once (shared with the snapshots before and
 * after) and what changed since. A value like any other snapshot, but made from the one before, and compared with it, at
 * the cost of the changes: copying a map of 120,000 entries takes 40 ms or more, walking two of them some. Once in a while
 * the changes are laid into a new base, and the comparison across that is a walk.
 */
import type { AnyObject } from '../../api/kinds.ts';
import type { Snapshot } from './snapshot.ts';

/** Keys beyond which a new base is made: large enough that this is rare, small enough to be copied with each snapshot. */
const MAX_CHANGES = 1_000;

/** By key; undefined: it is gone. */
export type Changes = ReadonlyMap<string, AnyObject | undefined>;

export class LayeredSnapshot implements ReadonlyMap<string, AnyObject> {
  readonly #base: ReadonlyMap<string, AnyObject>;
  readonly #changed: Changes;
  readonly size: number;

  constructor(base: ReadonlyMap<string, AnyObject> = new Map(), changed: Changes = new Map()) {
    this.#base = base;
    this.#changed = changed;
    let size = base.size;
    for (const [key, object] of changed) size += Number(object !== undefined) - Number(base.has(key));
    this.size = size;
  }

  with(changes: Changes): LayeredSnapshot {
    const changed = new Map(this.#changed);
    for (const [key, object] of changes) {
      // What is as in the base again is no change any more.
      if (this.#base.get(key) === object) changed.delete(key);
      else changed.set(key, object);
    }
    const next = new LayeredSnapshot(this.#base, changed);
    return changed.size > MAX_CHANGES ? new LayeredSnapshot(new Map(next)) : next;
  }

  /** Keys of which the two may differ; undefined: only a walk over both can tell. */
  static keysBetween(a: Snapshot, b: Snapshot): Iterable<string> | undefined {
    if (!(a instanceof LayeredSnapshot && b instanceof LayeredSnapshot) || a.#base !== b.#base) return undefined;
    return new Set([...a.#changed.keys(), ...b.#changed.keys()]);
  }

  get(key: string): AnyObject | undefined {
    return this.#changed.has(key) ? this.#changed.get(key) : this.#base.get(key);
  }

  has(key: string): boolean {
    return this.get(key) !== undefined;
  }

  *entries(): Generator<[string, AnyObject], undefined> {
    for (const entry of this.#base) {
      if (!this.#changed.has(entry[0])) yield entry;
    }
    for (const [key, object] of this.#changed) if (object !== undefined) yield [key, object];
    return undefined;
  }

  *keys(): Generator<string, undefined> {
    for (const [key] of this.entries()) yield key;
    return undefined;
  }

  *values(): Generator<AnyObject, undefined> {
    for (const [, object] of this.entries()) yield object;
    return undefined;
  }

  [Symbol.iterator](): Generator<[string, AnyObject], undefined> {
    return this.entries();
  }

  forEach(each: (object: AnyObject, key: string, map: ReadonlyMap<string, AnyObject>) => void): void {
    for (const [key, object] of this.entries()) each(object, key, this);
  }
}
