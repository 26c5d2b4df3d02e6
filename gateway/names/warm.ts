/**
 * When each exact name that policy speaks of is asked for again: shortly before the TTL of its answer is over, so that its
 * addresses are known before a flow comes. Spread by chance, and so many a second at most; where there are more names than
 * that allows all are asked for more seldom, in turn. Pure but for chance, which is passed in.
 */
import type { Outcome } from './resolver.ts';

/** Names that are kept warm; others are asked for when a flow comes. */
export const MAX_WARM = 10_000;
/** No name is asked for more often than that, whatever its TTL; the table keeps addresses for longer. Milliseconds. */
const LEAST_MS = 20_000;
const MOST_MS = 3_600_000;
const NONE_MS = 30_000;
const FAILED_FIRST_MS = 2_000;
const FAILED_LAST_MS = 60_000;

interface Name {
  due: number;
  /** In a row. */
  failures: number;
  asking: boolean;
}

export class WarmNames {
  readonly #random: () => number;
  /** That which was asked for last is the last. */
  readonly #names = new Map<string, Name>();
  /** Names that there was no room for. */
  leftOut = 0;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  get size(): number {
    return this.#names.size;
  }

  /** Those that are new are due. */
  keep(names: ReadonlySet<string>, now: number): void {
    for (const name of this.#names.keys()) if (!names.has(name)) this.#names.delete(name);
    this.leftOut = 0;
    for (const name of names) {
      if (this.#names.has(name)) continue;
      if (this.#names.size < MAX_WARM) this.#names.set(name, { due: now, failures: 0, asking: false });
      else this.leftOut++;
    }
  }

  /** All are due, since there are other resolvers; what the last ones are being asked for wants no answered() any more. */
  restart(now: number): void {
    for (const name of this.#names.values()) Object.assign(name, { due: now, failures: 0, asking: false });
  }

  /** At most so many that are due, that which was asked for longest ago first. Each wants an answered(). */
  take(most: number, now: number): string[] {
    const taken: string[] = [];
    for (const [text, name] of this.#names) {
      if (taken.length === most) break;
      // A clock that was set back must not make a name wait.
      if (name.asking || (name.due > now && name.due <= now + MOST_MS)) continue;
      name.asking = true;
      taken.push(text);
    }
    for (const text of taken) {
      const name = this.#names.get(text) as Name;
      this.#names.delete(text);
      this.#names.set(text, name);
    }
    return taken;
  }

  /** `ttlSeconds`: the least of the answer. */
  answered(text: string, outcome: Outcome, ttlSeconds: number, now: number): void {
    const name = this.#names.get(text);
    if (name === undefined) return;
    name.asking = false;
    name.failures = outcome === 'failed' ? name.failures + 1 : 0;
    const wait = {
      found: Math.min(Math.max(ttlSeconds * 1000, LEAST_MS), MOST_MS),
      none: NONE_MS,
      failed: Math.min(FAILED_FIRST_MS * 2 ** Math.min(name.failures - 1, 10), FAILED_LAST_MS),
    }[outcome];
    // Up to a fifth earlier: what was asked for at one moment is not asked for at one moment for ever.
    name.due = now + wait * (0.8 + 0.15 * this.#random());
  }
}
