/**
 * Work that others wait for while it is done, and that the newest of its kind makes up for: where it is short it is done at
 * once, unless it is asked for without end (rhythm.ts), and else not before twenty times as long as it took has passed.
 * (Statuses of 200,000 objects take a tenth of a second; a change has not to wait for those of the change before.)
 */
import { Rhythm, statusTurns } from './rhythm.ts';

const SHARE = 20;
/** Shorter work is done at once. */
const SHORT_MS = 5;

export class Pace {
  #next: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #notBefore = 0;
  readonly #rhythm = new Rhythm(statusTurns);
  readonly #onError: (error: unknown) => void;

  /** `onError`: of work that was done later, and so not in its caller's turn. */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Does it now, or later, unless there is newer work by then. */
  run(work: () => void): void {
    this.#next = work;
    if (this.#timer !== undefined) return;
    const now = performance.now();
    const wait = Math.max(this.#notBefore - now, this.#rhythm.next(now));
    if (wait <= 0) this.#work();
    else this.#timer = setTimeout(() => this.#later(), wait);
  }

  /** What waits is done now. */
  close(): void {
    this.#work();
  }

  #later(): void {
    try {
      this.#work();
    } catch (error) {
      this.#onError(error);
    }
  }

  #work(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const work = this.#next;
    if (work === undefined) return;
    this.#next = undefined;
    const began = performance.now();
    work();
    const took = performance.now() - began;
    this.#notBefore = took < SHORT_MS ? 0 : performance.now() + SHARE * took;
  }
}
