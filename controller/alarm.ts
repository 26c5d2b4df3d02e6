/**
 * One timer for a result that is right from one instant until another (a plan: until the next edge of a schedule or the
 * end of a quarantine). Timers run on a clock that nobody sets and that may stand still while a machine sleeps; edges
 * are on the wall clock. So the wall clock is looked at again at least every minute, in both directions; which also
 * keeps every wait below what setTimeout takes (2³¹ ms).
 */

/** The most by which a clock that was set makes an edge late. */
const RECHECK_MS = 60_000;

export class Alarm {
  readonly #ring: () => void;
  readonly #now: () => number;
  readonly #recheckMs: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(ring: () => void, now: () => number, recheckMs = RECHECK_MS) {
    this.#ring = ring;
    this.#now = now;
    this.#recheckMs = recheckMs;
  }

  /** Milliseconds since the epoch; `until` undefined: for ever, whatever the clock says. Replaces what was set before. */
  set(from: number, until: number | undefined): void {
    this.close();
    if (until !== undefined) this.#check(from, until);
  }

  #check(from: number, until: number): void {
    const now = this.#now();
    const due = now < from || now >= until;
    // Never from within set(): who sets is not done yet.
    const wait = due ? 0 : Math.min(until - now, this.#recheckMs);
    this.#timer = setTimeout(() => {
      if (due) this.#ring();
      else this.#check(from, until);
    }, wait);
  }

  close(): void {
    clearTimeout(this.#timer);
  }
}
