/**
 * Packets in the middle of connections whose beginning was seen by a thread that is no more. One that is only late is sent again
 * before its connection is given up.
 */

/** So many of one connection, and for how long they come, after which it is ended. */
const STRAYS_MAX = 4;
const STRAYS_AFTER_MS = 3_000;
const STRAYS = 4_096;
const STRAY_MS = 30_000;

export class Strays {
  readonly #strays = new Map<string, { count: number; since: number }>();

  /** One more; true: its connection is to be ended. */
  isLast(key: string, now: number): boolean {
    const stray = this.#strays.get(key) ?? { count: 0, since: now };
    stray.count++;
    if (this.#strays.size < STRAYS) this.#strays.set(key, stray);
    if (stray.count < STRAYS_MAX || now - stray.since < STRAYS_AFTER_MS) return false;
    this.#strays.delete(key);
    return true;
  }

  expire(now: number): void {
    for (const [key, { since }] of this.#strays) {
      if (since + STRAY_MS > now) break;
      this.#strays.delete(key);
    }
  }
}
