/**
 * Work that others wait for while it is done, and that the newest of its kind makes up for: it is done at once where it
 * is short, and else not before twenty times as long as it took has passed. (Statuses of 200,000 objects take a tenth
 * of a second; a change has not to wait for those of the change before.)
 */
const SHARE = 20;
/** Shorter work has no pace. */
const SHORT_MS = 5;

export class Pace {
  #next: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #notBefore = 0;
  readonly #onError: (error: unknown) => void;

  /** `onError`: of work that was done later, and so not in its caller's turn. */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Does it now, or later, unless there is newer work by then. */
  run(work: () => void): void {
    this.#next = work;
    const wait = this.#notBefore - performance.now();
    if (wait <= 0) this.#work();
    else this.#timer ??= setTimeout(() => this.#later(), wait);
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
