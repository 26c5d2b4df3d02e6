/**
 * What a shard's master tells of its flows (design §7), as a state without clock or socket: the table, and for each receiver
 * a feed. A feed begins with a pass through the whole table, among which go the changes of meanwhile, and goes on with
 * changes alone. Of a flow that changes twice before it is told only the newest is told; a receiver that is so slow that too
 * many changes wait for it, that lost something, or that connects anew gets another pass instead. What it holds is never
 * emptied for that: a pass ends with the receiver's forgetting what was not said again.
 */
import { type Batch, MAX_RECORDS, markRecord, type Place, type ReplicaRecord } from './replica-codec.ts';
import { difference, withMark } from './replica-record.ts';

/** Batches that are not acknowledged: 32,768 flows. */
const WINDOW = 64;
/** Changes that wait: about what a receiver is behind that was away for ten seconds at 5,000 new flows a second. */
const CHANGES_MAX = 65_536;

export interface FeedLimits {
  records: number;
  window: number;
  changes: number;
}

export const feedLimits: FeedLimits = { records: MAX_RECORDS, window: WINDOW, changes: CHANGES_MAX };

/** A number that no pass of this process had, above theirs and above 0. */
export type NextSync = () => number;

export class SentShard {
  readonly shard: string;
  readonly epoch: number;
  readonly flows: Map<string, string>;
  readonly feeds = new Map<string, Feed>();
  readonly #nextSync: NextSync;
  readonly #limits: FeedLimits;

  /** `flows`: what was received of them before this gateway became master; they are its own from now on. */
  constructor(
    shard: string,
    epoch: number,
    nextSync: NextSync,
    flows = new Map<string, string>(),
    limits: FeedLimits = feedLimits,
  ) {
    this.shard = shard;
    this.epoch = epoch;
    this.flows = flows;
    this.#nextSync = nextSync;
    this.#limits = limits;
  }

  put(key: string, body: string): void {
    const before = this.flows.get(key);
    if (before === body) return;
    this.flows.set(key, body);
    this.#changed(key, before !== undefined && difference(before, body) === 'mark');
  }

  /** A flow that is not known has no mark. */
  mark(key: string, mark: number): void {
    const body = this.flows.get(key);
    if (body !== undefined) this.put(key, withMark(body, mark));
  }

  end(key: string): void {
    if (this.flows.delete(key)) this.#changed(key, false);
  }

  /** The table is this: events were lost, or it was read to be sure. Not of those flows: events told of them meanwhile. */
  replace(flows: ReadonlyMap<string, string>, told: ReadonlySet<string>): void {
    for (const key of this.flows.keys()) if (!flows.has(key) && !told.has(key)) this.end(key);
    for (const [key, body] of flows) if (!told.has(key)) this.put(key, body);
  }

  /** Those are the receivers now. */
  receivers(names: Iterable<string>): void {
    const wanted = new Set(names);
    for (const name of this.feeds.keys()) if (!wanted.has(name)) this.feeds.delete(name);
    for (const name of wanted) {
      if (!this.feeds.has(name)) this.feeds.set(name, new Feed(this, this.#nextSync, this.#limits));
    }
  }

  #changed(key: string, mark: boolean): void {
    for (const feed of this.feeds.values()) feed.changed(key, mark);
  }
}

/** Of one receiver. */
export class Feed {
  /** How often a pass was begun, and how often because too many changes waited. */
  passes = 0;
  overflows = 0;
  readonly #of: SentShard;
  readonly #nextSync: NextSync;
  readonly #limits: FeedLimits;
  /** Flows to be told of; true: only the mark changed. */
  readonly #changes = new Map<string, boolean>();
  /** Of a pass that has not ended. */
  #keys: IterableIterator<string> | undefined;
  #left = 0;
  #begins = true;
  #sync = 0;
  #seq = 0;
  #acked = 0;
  /** Where the pass ended. */
  #endedAt = Number.POSITIVE_INFINITY;
  #ackedBefore = 0;

  constructor(of: SentShard, nextSync: NextSync, limits: FeedLimits) {
    this.#of = of;
    this.#nextSync = nextSync;
    this.#limits = limits;
  }

  /** The receiver holds the table as it was a moment ago: what it lacks is waiting() or on its way. */
  get synced(): boolean {
    return !this.#begins && this.#acked >= this.#endedAt;
  }

  get waiting(): number {
    return this.#changes.size;
  }

  get underway(): number {
    return this.#seq - this.#acked;
  }

  changed(key: string, mark: boolean): void {
    // The pass to come says it.
    if (this.#begins) return;
    if (mark && this.#changes.get(key) !== false) this.#changes.set(key, true);
    else this.#changes.set(key, false);
    if (this.#changes.size <= this.#limits.changes) return;
    this.overflows++;
    this.again();
  }

  /** The receiver has to be told everything, from the beginning. Nothing waits for it until next(). */
  again(): void {
    this.#begins = true;
    this.#changes.clear();
    this.#keys = undefined;
  }

  /** The receiver says that something of a pass is missing; `sync` 0: of whatever it was sent. */
  asked({ epoch, sync }: Omit<Place, 'seq'>): void {
    if (sync === 0 || (epoch === this.#of.epoch && sync === this.#sync)) this.again();
  }

  acknowledged({ epoch, sync, seq }: Place): void {
    if (epoch === this.#of.epoch && sync === this.#sync && seq <= this.#seq && seq > this.#acked) this.#acked = seq;
  }

  /** To be called now and then: whoever has acknowledged nothing since is told anew. */
  stalled(): boolean {
    const stalls = this.#seq > this.#acked && this.#acked === this.#ackedBefore && !this.#begins;
    this.#ackedBefore = this.#acked;
    if (stalls) this.again();
    return stalls;
  }

  /** What to send next; undefined: nothing, now. */
  next(): Batch | undefined {
    const begins = this.#begins;
    if (begins) this.#begin();
    else if (this.underway >= this.#limits.window) return undefined;
    const records: ReplicaRecord[] = [];
    const { records: most } = this.#limits;
    // Neither waits for the other: a pass takes seconds, and changes may never end.
    this.#tellChanges(records, this.#keys === undefined ? most : Math.ceil(most / 2));
    const ends = this.#keys !== undefined && this.#tellTable(this.#keys, records, most);
    if (records.length === 0 && !begins && !ends) return undefined;
    this.#seq++;
    if (ends) this.#endedAt = this.#seq;
    const { shard, epoch } = this.#of;
    return { shard, epoch, sync: this.#sync, seq: this.#seq, begins, ends, records };
  }

  #begin(): void {
    this.passes++;
    this.#begins = false;
    this.#sync = this.#nextSync();
    this.#seq = 0;
    this.#acked = 0;
    this.#ackedBefore = 0;
    this.#endedAt = Number.POSITIVE_INFINITY;
    this.#keys = this.#of.flows.keys();
    // Those that come later stand behind these, and among the changes.
    this.#left = this.#of.flows.size;
  }

  #tellChanges(into: ReplicaRecord[], most: number): void {
    for (const [key, mark] of this.#changes) {
      if (into.length >= most) return;
      this.#changes.delete(key);
      const body = this.#of.flows.get(key);
      if (body === undefined) into.push({ op: 'end', key });
      else into.push(mark ? markRecord(key, body) : { op: 'put', key, body });
    }
  }

  /** True: that was the rest of it. */
  #tellTable(keys: IterableIterator<string>, into: ReplicaRecord[], most: number): boolean {
    while (this.#left > 0) {
      if (into.length >= most) return false;
      const { value: key, done } = keys.next();
      if (done) break;
      this.#left--;
      const body = this.#of.flows.get(key);
      if (body !== undefined) into.push({ op: 'put', key, body });
    }
    this.#keys = undefined;
    return true;
  }
}
