/**
 * What waits for the main thread, and for how long at most: flows for the addresses of a name, answers for their release.
 * Each ends once: by a message, or by its time.
 */

interface Wait {
  /** Name that it is for; absent: of its own. */
  name?: string;
  until: number;
  /** `late`: nobody answered in time. */
  resume: ((late: boolean, now: number) => void)[];
}

export class Waits {
  readonly #byId = new Map<number, Wait>();
  readonly #byName = new Map<string, number>();
  readonly #milliseconds: number;
  readonly #wakeAt: (time: number) => void;
  #next = 1;

  constructor(milliseconds: number, wakeAt: (time: number) => void) {
    this.#milliseconds = milliseconds;
    this.#wakeAt = wakeAt;
  }

  get size(): number {
    return this.#byId.size;
  }

  /** Its id, to be told the main thread; undefined: for that name one waits already, and this waits with it. */
  add(resume: (late: boolean, now: number) => void, now: number, name?: string): number | undefined {
    const known = name === undefined ? undefined : this.#byName.get(name);
    if (known !== undefined) {
      this.#byId.get(known)?.resume.push(resume);
      return undefined;
    }
    const id = this.#next;
    this.#next = id === 0x7fffffff ? 1 : id + 1;
    const until = now + this.#milliseconds;
    this.#byId.set(id, { until, resume: [resume], ...(name !== undefined && { name }) });
    if (name !== undefined) this.#byName.set(name, id);
    this.#wakeAt(until);
    return id;
  }

  end(id: number, now: number, late = false): void {
    const wait = this.#byId.get(id);
    if (wait === undefined) return;
    this.#byId.delete(id);
    if (wait.name !== undefined) this.#byName.delete(wait.name);
    for (const resume of wait.resume) resume(late, now);
  }

  /** Ends those whose time is over. */
  expire(now: number): void {
    // All wait equally long: the first is the one that is due first.
    for (const [id, { until }] of this.#byId) {
      if (until > now) {
        this.#wakeAt(until);
        return;
      }
      this.end(id, now, true);
    }
  }
}
