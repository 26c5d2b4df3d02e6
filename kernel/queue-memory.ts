/**
 * Memory that a queue's thread shares with the main one: words of control, and counters that are read without a message.
 * Each thread has its own, so that one that was given up and runs on disturbs nothing.
 */

/** Words of control. The main thread asks to stop; */
export const STOP = 0;
/** says that a message waits (and signals the eventfd); */
export const WOKEN = 1;
/** the thread counts its turns, a few a second even when nothing comes; */
export const BEAT = 2;
/** and says which packet it saw last. */
export const LAST_ID = 3;
const WORDS = 4;

export const queueCounters = [
  'packets',
  'bytes',
  'accepted',
  'dropped',
  /** Packets that were told to wait. */
  'held',
  /** Of them: nobody decided in time. */
  'expired',
  /** Were to wait, but too many did already. */
  'overHeld',
  /** Messages that are no packet of the queue. */
  'malformed',
  /** Packets over which the decider threw. */
  'faults',
  /** Verdicts that the kernel refused: the packet was gone, with its interface. */
  'refused',
  /** System calls that brought packets. */
  'batches',
  /** Packets that wait now: the one that falls, too. */
  'holding',
] as const;
export type QueueCounter = (typeof queueCounters)[number];

export class QueueMemory {
  readonly buffer: SharedArrayBuffer;
  readonly control: Int32Array;
  /**
   * One writer, many readers: a plain store of eight aligned bytes is whole on x86-64 and arm64, and unlike Atomics on
   * bigints costs no allocation. Exact up to 2⁵³.
   */
  readonly counters: Float64Array;

  constructor(buffer = new SharedArrayBuffer(4 * WORDS + 8 * queueCounters.length)) {
    this.buffer = buffer;
    this.control = new Int32Array(buffer, 0, WORDS);
    this.counters = new Float64Array(buffer, 4 * WORDS);
  }

  read(): Record<QueueCounter, number> {
    const values = {} as Record<QueueCounter, number>;
    for (const [index, name] of queueCounters.entries()) values[name] = this.counters[index] ?? 0;
    return values;
  }
}

/** Where a counter stands, for who counts. */
export const counterAt = (name: QueueCounter): number => queueCounters.indexOf(name);
