/**
 * Starts of flows that wait a moment to be written, for what a sample of their first bytes may say: else only the end of a
 * flow would tell, which of one that lives for days is too late. Pure; bounded, so that where many begin the oldest wait
 * less.
 */
import type { FlowRecord } from './flow-record.ts';

/** A round trip to the server, and what the kernel gathers copies for (a tenth of a second). */
const WAIT_MS = 300;
const MOST = 4_096;

export class HeldStarts {
  /** By the flow's id; the longest waiting first. */
  readonly #held = new Map<number, { record: FlowRecord; until: number }>();

  get size(): number {
    return this.#held.size;
  }

  /** Whose time is over, or whose place is needed. */
  hold(id: number, record: FlowRecord, now: number): FlowRecord[] {
    this.#held.set(id, { record, until: now + WAIT_MS });
    return this.due(now);
  }

  /** It waits no longer; undefined: it did not. */
  take(id: number): FlowRecord | undefined {
    const held = this.#held.get(id);
    this.#held.delete(id);
    return held?.record;
  }

  due(now: number): FlowRecord[] {
    const records: FlowRecord[] = [];
    for (const [id, { record, until }] of this.#held) {
      if (until > now && this.#held.size <= MOST) break;
      this.#held.delete(id);
      records.push(record);
    }
    return records;
  }
}
