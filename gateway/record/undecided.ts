/**
 * Flows whose start waits for what is read of them: the kernel tells of a flow when its first packet leaves, a thread tells
 * what it decided, and either may come first. Both ends are kept until the other comes; bounded in number and time. Pure: the
 * time comes with every call, in milliseconds.
 */
import type { ConntrackEntry } from '../../wire/conntrack.ts';
import type { DecidedFlow } from '../inspect/messages.ts';
import { keyOf } from '../inspect/readings.ts';

/** For the batch in which a thread tells of a flow that the kernel has told of as decided, or the other way round. */
const WAIT_MS = 500;
const MOST = 65_536;

export interface Waiting {
  flow: ConntrackEntry;
  /** It has passed: it starts then, whatever was read. Undefined: it is undecided, and may never start. */
  due?: number;
}

export class Undecided {
  readonly #flows = new Map<string, Waiting>();
  readonly #decided = new Map<string, { decided: DecidedFlow; until: number }>();

  get size(): number {
    return this.#flows.size;
  }

  /**
   * The kernel tells of a flow. Gives what was decided, if that is known; else the flow waits: `passed`: for a moment, since
   * its first packet has left.
   */
  begin(flow: ConntrackEntry, passed: boolean, now: number): DecidedFlow | undefined {
    const key = keyOf({ protocol: flow.protocol, ...flow.original });
    const { decided } = this.#decided.get(key) ?? {};
    this.#decided.delete(key);
    if (decided !== undefined) return decided;
    bounded(this.#flows);
    this.#flows.set(key, { flow, ...(passed && { due: now + WAIT_MS }) });
    return undefined;
  }

  /** A thread permitted a flow: gives it, if the kernel has told of it. */
  permit(decided: DecidedFlow, now: number, key = keyOf(decided)): ConntrackEntry | undefined {
    const waiting = this.#flows.get(key);
    if (waiting === undefined) {
      bounded(this.#decided);
      this.#decided.set(key, { decided, until: now + WAIT_MS });
    }
    this.#flows.delete(key);
    return waiting?.flow;
  }

  /** A thread denied a flow, or it has ended: gives what is known of it. */
  end(key: string): Waiting | undefined {
    const waiting = this.#flows.get(key);
    this.#flows.delete(key);
    return waiting;
  }

  /** Flows that have waited long enough. */
  due(now: number): ConntrackEntry[] {
    for (const [key, { until }] of this.#decided) if (until <= now) this.#decided.delete(key);
    const found: ConntrackEntry[] = [];
    for (const [key, { flow, due = Number.POSITIVE_INFINITY }] of this.#flows) {
      if (due > now) continue;
      this.#flows.delete(key);
      found.push(flow);
    }
    return found;
  }

  /** Of those that wait, only these live. */
  keep(living: ReadonlySet<string>): void {
    for (const key of this.#flows.keys()) if (!living.has(key)) this.#flows.delete(key);
  }
}

/** Whoever is here longest gives way. */
function bounded(map: Map<string, unknown>): void {
  const [oldest] = map.size >= MOST ? map.keys() : [];
  if (oldest !== undefined) map.delete(oldest);
}
