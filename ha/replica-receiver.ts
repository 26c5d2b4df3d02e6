/**
 * What other gateways tell of the flows of their shards (design §7), as a state without clock or socket: of each shard the
 * table as its master has it, and what has to be done to the kernel for it. Whatever order batches come in, however often,
 * and whichever of them never come: what is applied is applied in its order or asked for anew, and after an undisturbed pass
 * the table is the sender's. A pass (sync) marks and sweeps: nothing is removed before its end but what the sender ended.
 */
import type { Batch, Place, ReplicaRecord } from './replica-codec.ts';
import { difference, markOf, withMark } from './replica-record.ts';

/** For the kernel, in this order. */
export type Change =
  | { op: 'put'; key: string; body: string; replaces: boolean }
  | { op: 'end'; key: string }
  | { op: 'mark'; key: string; mark: number };

/** Why a batch was not applied. */
export const ignoredReasons = {
  'older-master': 'its shard has a master with a higher epoch, or had one',
  'older-pass': 'a later pass has begun',
  repeated: 'it was applied before',
  'not-received': 'this gateway does not receive the shard',
} as const;
export type IgnoredReason = keyof typeof ignoredReasons;

export type Reception =
  | { kind: 'applied'; changes: Change[]; ack: Place }
  /** Something before it is missing. */
  | { kind: 'missing'; ask: Omit<Place, 'seq'> }
  | { kind: 'ignored'; reason: Exclude<IgnoredReason, 'older-master'> }
  /** Whoever is master all the same has to have an epoch above that one. */
  | { kind: 'ignored'; reason: 'older-master'; epoch: number };

interface Held {
  from: string;
  epoch: number;
  sync: number;
  seq: number;
  /** Something of the pass is missing. */
  broken: boolean;
  /** A pass of this epoch came to its end, and nothing has been missing since. */
  whole: boolean;
  flows: Map<string, string>;
  /** While a pass goes on: what it has not said. */
  stale: Set<string> | undefined;
}

/** Of one shard, as others may see it. */
export type HeldShard = Readonly<Pick<Held, 'from' | 'epoch' | 'whole'>> & { flows: ReadonlyMap<string, string> };

/** Entries of a gateway's table; more than that and it is the kernel that has no room. */
const FLOWS_MAX = 2_000_000;

export class ReplicaReceiver {
  /** Flows that had no room. */
  refused = 0;
  readonly #most: number;
  readonly #held = new Map<string, Held>();
  /** Whom this gateway stands behind; of others' shards nothing is taken. */
  #wanted: ReadonlySet<string> = new Set();
  /** Highest epoch of a shard that was heard of. */
  readonly #epochs = new Map<string, number>();
  /** Under which this gateway was its master. */
  readonly #own = new Map<string, number>();
  #size = 0;

  constructor(most = FLOWS_MAX) {
    this.#most = most;
  }

  get size(): number {
    return this.#size;
  }

  shards(): IterableIterator<string> {
    return this.#held.keys();
  }

  held(shard: string): HeldShard | undefined {
    return this.#held.get(shard);
  }

  /** Shards that are received from now on. Gives what has to be done about the flows of those that are no longer. */
  receives(shards: Iterable<string>): Change[] {
    this.#wanted = new Set(shards);
    const changes: Change[] = [];
    for (const [shard, { flows }] of this.#held) {
      if (this.#wanted.has(shard)) continue;
      for (const key of flows.keys()) changes.push({ op: 'end', key });
      this.#forget(shard);
    }
    return changes;
  }

  /**
   * This gateway becomes master of the shard: gives its flows, which are its own from now on, and the epoch to tell others of
   * them. `now`: milliseconds since the epoch of clocks, so that a gateway that knows of no other's is later all the same.
   */
  take(shard: string, now: number): { flows: Map<string, string>; epoch: number } {
    const flows = this.#held.get(shard)?.flows ?? new Map<string, string>();
    this.#forget(shard);
    const epoch = Math.max(now, (this.#epochs.get(shard) ?? 0) + 1);
    this.#epochs.set(shard, epoch);
    this.#own.set(shard, epoch);
    return { flows, epoch };
  }

  /** Somebody knows a master of that epoch, though this gateway is it now: gives the epoch to go on with. */
  outdo(shard: string, epoch: number): number {
    const higher = Math.max(epoch, this.#epochs.get(shard) ?? 0) + 1;
    this.#epochs.set(shard, higher);
    this.#own.set(shard, higher);
    return higher;
  }

  receive(from: string, batch: Batch): Reception {
    const { shard, epoch, sync, seq, begins } = batch;
    if (!this.#wanted.has(shard)) return { kind: 'ignored', reason: 'not-received' };
    let held = this.#held.get(shard);
    const known = this.#epochs.get(shard) ?? 0;
    const other = held !== undefined && (epoch !== held.epoch || from !== held.from);
    // Of two that took a shard in the same millisecond the one with the later name is it.
    const loses = epoch === known && (held === undefined ? this.#own.get(shard) === epoch : from < held.from);
    if (epoch < known || loses) return { kind: 'ignored', reason: 'older-master', epoch: known };
    if (held === undefined || other || sync > held.sync) {
      if (!begins || seq !== 1) return { kind: 'missing', ask: { shard, epoch, sync } };
      held = this.#begin(from, batch, held);
    } else {
      if (sync < held.sync) return { kind: 'ignored', reason: 'older-pass' };
      if (held.broken) return { kind: 'missing', ask: { shard, epoch, sync } };
      if (seq <= held.seq) return { kind: 'ignored', reason: 'repeated' };
      if (seq > held.seq + 1) {
        held.broken = true;
        held.whole = false;
        return { kind: 'missing', ask: { shard, epoch, sync } };
      }
      held.seq = seq;
    }
    const changes = this.#apply(held, batch);
    return { kind: 'applied', changes, ack: { shard, epoch, sync, seq } };
  }

  /** What was held stays until the pass has ended: the new master carries most of it on. */
  #begin(from: string, { shard, epoch, sync, seq }: Batch, before: Held | undefined): Held {
    const flows = before?.flows ?? new Map<string, string>();
    const stale = new Set(flows.keys());
    const whole = before?.whole === true && before.epoch === epoch && before.from === from;
    const held: Held = { from, epoch, sync, seq, broken: false, whole, flows, stale };
    this.#held.set(shard, held);
    this.#epochs.set(shard, epoch);
    return held;
  }

  #apply(held: Held, { records, ends }: Batch): Change[] {
    const changes: Change[] = [];
    for (const record of records) {
      const change = this.#change(held, record);
      if (change !== undefined) changes.push(change);
    }
    if (!ends) return changes;
    for (const key of held.stale ?? []) {
      if (held.flows.delete(key)) this.#size--;
      changes.push({ op: 'end', key });
    }
    held.stale = undefined;
    held.whole = true;
    return changes;
  }

  #change({ flows, stale }: Held, record: ReplicaRecord): Change | undefined {
    const { key } = record;
    const before = flows.get(key);
    switch (record.op) {
      case 'end':
        stale?.delete(key);
        if (before === undefined) return undefined;
        flows.delete(key);
        this.#size--;
        return { op: 'end', key };
      case 'mark': {
        // Else the pass will say all of it.
        if (before === undefined || markOf(before) === record.mark) return undefined;
        flows.set(key, withMark(before, record.mark));
        return record;
      }
      case 'put': {
        stale?.delete(key);
        const { body } = record;
        if (before === undefined) {
          if (this.#size >= this.#most) {
            this.refused++;
            return undefined;
          }
          this.#size++;
        }
        flows.set(key, body);
        const what = before === undefined ? 'other' : difference(before, body);
        if (what === 'none') return undefined;
        if (what === 'mark') return { op: 'mark', key, mark: markOf(body) };
        return { op: 'put', key, body, replaces: before !== undefined };
      }
    }
  }

  #forget(shard: string): void {
    this.#size -= this.#held.get(shard)?.flows.size ?? 0;
    this.#held.delete(shard);
  }
}
