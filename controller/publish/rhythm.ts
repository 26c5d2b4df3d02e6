/**
 * When work that many changes ask for is done: the first times after a rest at once; where changes come without end, in turns of
 * a fixed length. Of what a plan costs, here, on each gateway and on each node, most is the same for one change and for
 * several. Pure: the clock is the caller's.
 */
export interface Turns {
  /** After a rest, without waiting. */
  atOnce: number;
  everyMs: number;
}

/**
 * A pod that comes or goes leads to a plan for the gateways, and to another when they acknowledge it; its first connection waits for
 * both. Each costs controller, node and gateways some 10 ms of a processor each, for one pod or for ten.
 */
export const planTurns: Turns = { atOnce: 12, everyMs: 80 };
/**
 * Each plan makes a status or two others until it is in force, and then again what they were: two requests, each of which costs an
 * API server more than to make a pod.
 */
export const statusTurns: Turns = { atOnce: 8, everyMs: 1_000 };

export class Rhythm {
  readonly #turns: Turns;
  #left: number;
  #at = Number.NEGATIVE_INFINITY;

  constructor(turns: Turns) {
    this.#turns = turns;
    this.#left = turns.atOnce;
  }

  /** It is to be done once more; says for how many milliseconds it is to wait. `now`: of a monotonic clock. */
  next(now: number): number {
    const { atOnce, everyMs } = this.#turns;
    this.#left = Math.min(atOnce, this.#left + (now - this.#at) / everyMs) - 1;
    this.#at = now;
    return this.#left >= 0 ? 0 : Math.ceil(-this.#left * everyMs);
  }
}
