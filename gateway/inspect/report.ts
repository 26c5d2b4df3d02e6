/**
 * Flows that were decided, told to the main thread in batches: when one is full, or a moment later; at the end of the turn of the
 * queue's loop if something is to be done about one.
 */
import type { Decision } from '../../policy/decision.ts';
import type { DecidedFlow, FromDecider } from './messages.ts';
import { FlowPacker } from './packed-flows.ts';
import type { Tally } from './tally.ts';

const BATCH = 256;
const LATER_MS = 20;

/** It permits, and there is nothing to count beside it. */
export const isPlain = ({ verdict, wouldHave, audited, unconforming }: Decision): boolean =>
  verdict === 'accept' && wouldHave === undefined && audited === undefined && unconforming === undefined;

export class Report {
  readonly #flows = new FlowPacker();
  readonly #post: (message: FromDecider) => void;
  readonly #tally: Tally;
  readonly #wakeAt: (time: number) => void;

  constructor(post: (message: FromDecider) => void, tally: Tally, wakeAt: (time: number) => void) {
    this.#post = post;
    this.#tally = tally;
    this.#wakeAt = wakeAt;
  }

  add(flow: DecidedFlow, now: number): void {
    const { decision, reason } = flow;
    this.#tally.count(decision?.verdict === 'accept' ? 'permitted' : 'denied');
    if (reason !== undefined) this.#tally.count(`reason_${reason}`);
    this.#flows.add(flow);
    if (flow.delete === true) this.#wakeAt(now);
    else if (this.#flows.count === 1) this.#wakeAt(now + LATER_MS);
    if (this.#flows.count >= BATCH) this.flush();
  }

  flush(): void {
    if (this.#flows.count === 0) return;
    this.#post({ kind: 'decided', packed: this.#flows.take() });
  }
}
