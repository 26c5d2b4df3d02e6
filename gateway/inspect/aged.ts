/**
 * A map whose oldest entry is at hand: the one that was put longest ago. (A Map keeps that order too, but who asks it for the
 * first entry again and again, and deletes it, goes over all that were deleted before.)
 */

interface Entry<Value> {
  key: string;
  value: Value;
  older: Entry<Value> | undefined;
  newer: Entry<Value> | undefined;
}

export class Aged<Value> {
  readonly #entries = new Map<string, Entry<Value>>();
  #oldest: Entry<Value> | undefined;
  #newest: Entry<Value> | undefined;

  get size(): number {
    return this.#entries.size;
  }

  get oldest(): Value | undefined {
    return this.#oldest?.value;
  }

  get(key: string): Value | undefined {
    return this.#entries.get(key)?.value;
  }

  /** It is the newest now. */
  put(key: string, value: Value): void {
    const known = this.#entries.get(key);
    if (known !== undefined) this.#unlink(known);
    const entry = known ?? { key, value, older: undefined, newer: undefined };
    entry.value = value;
    entry.older = this.#newest;
    entry.newer = undefined;
    if (this.#newest === undefined) this.#oldest = entry;
    else this.#newest.newer = entry;
    this.#newest = entry;
    if (known === undefined) this.#entries.set(key, entry);
  }

  delete(key: string): boolean {
    const entry = this.#entries.get(key);
    if (entry === undefined) return false;
    this.#unlink(entry);
    return this.#entries.delete(key);
  }

  deleteOldest(): void {
    if (this.#oldest !== undefined) this.delete(this.#oldest.key);
  }

  /** The oldest first; what is at hand may be deleted. */
  *values(): Generator<Value> {
    for (let entry = this.#oldest; entry !== undefined; ) {
      const { newer, value } = entry;
      yield value;
      entry = newer;
    }
  }

  #unlink(entry: Entry<Value>): void {
    if (entry.older === undefined) this.#oldest = entry.newer;
    else entry.older.newer = entry.newer;
    if (entry.newer === undefined) this.#newest = entry.older;
    else entry.newer.older = entry.older;
  }
}
