/**
 * The flows of one queue that are undecided, or were decided just now: a table of streams, found by the packet's addresses
 * and ports as numbers, bounded in number, memory and time. Records and buffers are used again: a packet makes no object, but for
 * the view of its bytes. Pure: the clock's time comes with every call, in milliseconds, and from one clock.
 *
 * Three queues by age make both what is too old and what must give way a look at their heads: flows that said nothing yet
 * (a SYN was seen; they may wait as long as there is room), flows that spoke, and flows that were decided. The latter stay
 * for a moment, since packets that were queued before the kernel knew of the verdict still come here. Those go back to the
 * kernel, to pass by what the connection's mark says, and not on: the sender may have reset the connection, and opened another with the same ports and sequence numbers,
 * which only the kernel can tell from the one that was decided. What comes back each time is bounded: then it is unknown.
 *
 * Two connections with the same tuple, in two conntrack zones, would be taken for one: Sluice uses no zones.
 */
import { TCP_FIN, TCP_RST, TCP_SYN } from '../../wire/ip.ts';
import { BufferPool } from './buffers.ts';
import { KEY_WORDS, Segment, TCP_URG } from './segment.ts';
import { type AssemblyReason, type Outcome, Stream, type StreamLimits } from './stream.ts';

export interface FlowLimits extends StreamLimits {
  /** Flows in the table, decided ones among them. */
  flows: number;
  /** Milliseconds from a flow's first byte to its verdict. */
  time: number;
  /** Milliseconds for which a decided flow is remembered. */
  linger: number;
  /** Milliseconds after which one that is followed and says nothing is lost. */
  idle: number;
  /** Bytes that are kept of all streams together. */
  memory: number;
}

/**
 * The longest that honest clients begin with: an HTTP head of 16 KiB, a ClientHello of 2 in segments of 536 bytes. A sender
 * gets no answer while its packets are held, so it sends its first window and no more: ten segments (RFC 6928), however
 * small. What is cut finer than that is never whole, and lost by time; `packets` is for senders with a larger window.
 */
export const defaultLimits: FlowLimits = {
  bytes: 16_384,
  packets: 64,
  pieces: 16,
  gap: 16_384,
  flows: 8_192,
  time: 5_000,
  linger: 1_000,
  idle: 7_200_000,
  memory: 32 * 1024 * 1024,
};

/** The packet's first byte is the stream's: the kernel says so (stream.ts). */
export const FIRST_OF_STREAM = 1;
/** The packet's checksum is wrong (NFQA_SKB_INFO, or a sum of the caller's). */
export const BAD_CHECKSUM = 2;

type Age = 'silent' | 'speaking' | 'decided' | 'followed' | 'free';

export class Flow<Context> extends Stream {
  /** The caller's: what it knows of the flow, and what it decided. */
  context: Context | undefined;
  version = 0;
  /** Of its age: since when it is what it is. */
  since = 0;
  age: Age = 'free';
  readonly key = new Int32Array(KEY_WORDS);
  /** Packets that came after the decision. */
  late = 0;
  bucket = 0;
  chained: Flow<Context> | undefined;
  older: Flow<Context> | undefined;
  newer: Flow<Context> | undefined;
}

/** A flow lost its place before it was decided: its held packets want a verdict. The flow is the caller's until it returns. */
export type Lost<Context> = (flow: Flow<Context>, reason: LostReason) => void;
/** `idle` and `replaced`: of those that are followed. */
export type LostReason = 'time' | 'flows' | 'memory' | 'idle' | 'replaced';

export class FlowTable<Context = unknown> {
  /** Of the last packet; undefined: of none that is known. */
  flow: Flow<Context> | undefined;
  /** Why the last packet was dropped or refused. */
  reason: AssemblyReason | undefined;
  private count = 0;
  /** The last packet. */
  readonly segment = new Segment();
  private readonly pool = new BufferPool();
  private readonly buckets: (Flow<Context> | undefined)[];
  private readonly free: Flow<Context>[] = [];
  private readonly ages = {
    silent: new Queue<Context>(),
    speaking: new Queue<Context>(),
    decided: new Queue<Context>(),
    followed: new Queue<Context>(),
  };
  private readonly limits: FlowLimits;
  private readonly seed: number;
  private readonly lost: Lost<Context>;

  /** `seed`: 32 random bits, so that nobody can choose ports that all fall into one bucket. */
  constructor(seed: number, lost: Lost<Context>, limits: FlowLimits = defaultLimits) {
    this.seed = seed | 0;
    this.lost = lost;
    this.limits = limits;
    let size = 16;
    while (size < limits.flows * 2) size *= 2;
    this.buckets = new Array<Flow<Context> | undefined>(size).fill(undefined);
  }

  /** Flows at hand, decided ones among them. */
  get size(): number {
    return this.count;
  }

  /** The packet that lies in `bytes` from `from` up to `to`, with its id in the queue. Never throws. */
  take(bytes: Uint8Array, from: number, to: number, id: number, now: number, notes = 0): Outcome {
    return this.read(bytes, from, to) ? this.add(bytes, id, now, notes) : 'drop';
  }

  /** The first half of take(): where things lie in the packet. False: it is to be dropped, for `reason`. */
  read(bytes: Uint8Array, from: number, to: number): boolean {
    this.flow = undefined;
    this.reason = this.segment.read(bytes, from, to);
    return this.reason === undefined;
  }

  /** The second: of the packet that was read. */
  add(bytes: Uint8Array, id: number, now: number, notes = 0): Outcome {
    const { segment } = this;
    this.flow = undefined;
    // Before anything is learnt from it: a receiver drops it too.
    if ((notes & BAD_CHECKSUM) !== 0) return this.drop('bad-checksum');
    const { flags } = segment;
    const first = (notes & FIRST_OF_STREAM) !== 0;
    const bucket = this.bucketOf(segment);
    let flow = this.find(bucket, segment);
    if (flow?.age === 'followed') {
      const begins = (flags & TCP_SYN) !== 0 || (first && !flow.beginsAt(segment.sequence));
      if (!begins) {
        this.move(flow, 'followed', now);
        this.flow = flow;
        return 'followed';
      }
      // Another connection with the same ports.
      this.lose(flow, 'replaced');
      flow = undefined;
    }
    if (flow?.age === 'decided') {
      // Another beginning is read again.
      const begins = (flags & TCP_SYN) !== 0 || (first && !flow.beginsAt(segment.sequence));
      if (!begins && flow.late < this.limits.packets) {
        flow.late++;
        this.flow = flow;
        return 'decided';
      }
      this.forget(flow);
      flow = undefined;
    }
    if (flow === undefined) {
      if ((flags & TCP_RST) !== 0) return 'pass';
      const begins = (flags & TCP_SYN) !== 0 || first;
      if (!begins) {
        if ((flags & TCP_URG) !== 0) return this.drop('urgent');
        return segment.payload === segment.end && (flags & TCP_FIN) === 0 ? 'pass' : this.drop('no-start');
      }
      flow = this.open(bucket, segment, now);
    }
    this.flow = flow;
    const outcome = flow.add(segment, bytes, id, first);
    this.reason = flow.reason;
    if (flow.age === 'silent' && flow.heldCount > 0) this.move(flow, 'speaking', now);
    if (this.pool.lent > this.limits.memory) this.saveMemory(flow);
    return outcome;
  }

  /** The verdict is given: what comes late of this flow is `decided`. Its held packets are the caller's to have seen to. */
  decide(flow: Flow<Context>, now: number): void {
    if (flow.age === 'free') return;
    flow.settle();
    this.move(flow, 'decided', now);
  }

  /** The verdict is given, and its packets go on coming: they are `followed`, and the caller's to read. */
  follow(flow: Flow<Context>, now: number): void {
    if (flow.age === 'free') return;
    flow.settle();
    this.move(flow, 'followed', now);
  }

  /** The one of a direction; undefined: none. */
  streamOf(ends: Pick<Segment, 'key' | 'version'>): Flow<Context> | undefined {
    return this.find(this.bucketOf(ends), ends);
  }

  /** Those that are followed, the longest silent first. */
  *followed(): Generator<Flow<Context>> {
    for (let flow = this.ages.followed.oldest; flow !== undefined; ) {
      const next = flow.newer;
      yield flow;
      flow = next;
    }
  }

  /** The undecided one that holds a packet. The longest undecided are looked at first. */
  holderOf(id: number): Flow<Context> | undefined {
    for (let flow = this.ages.speaking.oldest; flow !== undefined; flow = flow.newer) {
      if (flow.held.subarray(0, flow.heldCount).includes(id >>> 0)) return flow;
    }
    return undefined;
  }

  /** As if it had never been there. */
  forget(flow: Flow<Context>): void {
    if (flow.age === 'free') return;
    this.ages[flow.age].remove(flow);
    const head = this.buckets[flow.bucket];
    if (head === flow) this.buckets[flow.bucket] = flow.chained;
    else {
      let before = head;
      while (before !== undefined && before.chained !== flow) before = before.chained;
      if (before !== undefined) before.chained = flow.chained;
    }
    flow.chained = undefined;
    flow.age = 'free';
    flow.context = undefined;
    flow.late = 0;
    flow.clear();
    this.free.push(flow);
    this.count--;
    if (this.flow === flow) this.flow = undefined;
  }

  /** Flows that were held too long are lost; decided ones are forgotten. Costs what is too old, not what is there. */
  expire(now: number): void {
    const { speaking, decided, followed } = this.ages;
    for (
      let flow = followed.oldest;
      flow !== undefined && now - flow.since >= this.limits.idle;
      flow = followed.oldest
    ) {
      this.lose(flow, 'idle');
    }
    for (
      let flow = speaking.oldest;
      flow !== undefined && now - flow.since >= this.limits.time;
      flow = speaking.oldest
    ) {
      this.lose(flow, 'time');
    }
    for (
      let flow = decided.oldest;
      flow !== undefined && now - flow.since >= this.limits.linger;
      flow = decided.oldest
    ) {
      this.forget(flow);
    }
  }

  private lose(flow: Flow<Context>, reason: LostReason): void {
    this.lost(flow, reason);
    this.forget(flow);
  }

  private makeRoom(): void {
    const { silent, speaking, decided, followed } = this.ages;
    if (decided.oldest !== undefined) {
      this.forget(decided.oldest);
      return;
    }
    const quiet = silent.oldest;
    const loud = speaking.oldest;
    const oldest = quiet === undefined || (loud !== undefined && loud.since < quiet.since) ? loud : quiet;
    if (oldest !== undefined) this.lose(oldest, 'flows');
    else if (followed.oldest !== undefined) this.lose(followed.oldest, 'flows');
  }

  /** All but the one at hand, which is small beside the bound. */
  private saveMemory(flow: Flow<Context>): void {
    const { speaking } = this.ages;
    while (this.pool.lent > this.limits.memory) {
      const oldest = speaking.oldest === flow ? flow.newer : speaking.oldest;
      if (oldest === undefined) return;
      this.lose(oldest, 'memory');
    }
  }

  private open(bucket: number, segment: Segment, now: number): Flow<Context> {
    if (this.count >= this.limits.flows) this.makeRoom();
    const flow = this.free.pop() ?? new Flow<Context>(this.limits, this.pool);
    flow.version = segment.version;
    flow.key.set(segment.key);
    flow.bucket = bucket;
    flow.chained = this.buckets[bucket];
    this.buckets[bucket] = flow;
    flow.since = now;
    flow.age = 'silent';
    this.ages.silent.push(flow);
    this.count++;
    return flow;
  }

  private move(flow: Flow<Context>, age: Exclude<Age, 'free'>, now: number): void {
    if (flow.age !== 'free') this.ages[flow.age].remove(flow);
    flow.age = age;
    flow.since = now;
    this.ages[age].push(flow);
  }

  private bucketOf({ key, version }: Pick<Segment, 'key' | 'version'>): number {
    let hash = this.seed;
    if (version === 4) hash = mix(mix(mix(hash, key[0]!), key[4]!), key[8]!);
    else for (let index = 0; index < KEY_WORDS; index++) hash = mix(hash, key[index]!);
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    return (hash ^ (hash >>> 13)) & (this.buckets.length - 1);
  }

  private find(bucket: number, { key, version }: Pick<Segment, 'key' | 'version'>): Flow<Context> | undefined {
    for (let flow = this.buckets[bucket]; flow !== undefined; flow = flow.chained) {
      const own = flow.key;
      if (own[8] !== key[8] || own[0] !== key[0] || own[4] !== key[4] || flow.version !== version) continue;
      if (version === 4) return flow;
      if (own[7] !== key[7] || own[3] !== key[3] || own[6] !== key[6] || own[2] !== key[2]) continue;
      if (own[5] === key[5] && own[1] === key[1]) return flow;
    }
    return undefined;
  }

  private drop(reason: AssemblyReason): 'drop' {
    this.reason = reason;
    return 'drop';
  }
}

function mix(hash: number, word: number): number {
  const mixed = Math.imul(hash ^ word, 0x9e3779b1);
  return (mixed << 13) | (mixed >>> 19);
}

/** By age, the oldest first; a flow is in one at a time. */
class Queue<Context> {
  oldest: Flow<Context> | undefined;
  private newest: Flow<Context> | undefined;

  push(flow: Flow<Context>): void {
    flow.older = this.newest;
    flow.newer = undefined;
    if (this.newest === undefined) this.oldest = flow;
    else this.newest.newer = flow;
    this.newest = flow;
  }

  remove(flow: Flow<Context>): void {
    if (flow.older === undefined) this.oldest = flow.newer;
    else flow.older.newer = flow.newer;
    if (flow.newer === undefined) this.newest = flow.older;
    else flow.newer.older = flow.older;
    flow.older = flow.newer = undefined;
  }
}
