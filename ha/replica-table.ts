/**
 * The kernel's connection table behind a master: what the receiver's state asks for is done there, in its order, and what is
 * there is compared with that state.
 * Left out: how (kernel/conntrack-inject.ts).
 */
import type { Logger } from '../daemon/log.ts';
import type { FlowChange, Injected } from '../kernel/conntrack-inject.ts';
import type { ConntrackReader } from '../wire/conntrack.ts';
import type { Change, HeldShard, ReplicaReceiver } from './replica-receiver.ts';
import { difference, unpackFlow, unpackKey } from './replica-record.ts';
import { REPLICA_TIMEOUT, settledTimeout } from './replica-timeouts.ts';

/** As of this machine; of tests: of a namespace. */
export interface ReplicaKernel {
  apply<C extends FlowChange>(changes: readonly C[]): Promise<Injected<C>>;
  /** Every entry, there for the call. */
  walk(visit: (entry: ConntrackReader) => void): Promise<void>;
}

export interface KernelCounts {
  /** Changes, entries that had to go for them, and what the kernel refused, by errno's name. */
  applied: number;
  displaced: number;
  refused: Record<string, number>;
}

/** Entries of shards that others are master of; the body is empty of one that nobody would tell of. */
export type Foreign = Map<string, { shard: string; body: string }>;

type KernelChange = FlowChange & { key: string };

const CHANGES_AT_ONCE = 4_096;

export class ReplicaTable {
  readonly #kernel: ReplicaKernel;
  readonly #receiver: ReplicaReceiver;
  readonly #counts: KernelCounts;
  readonly #log: Logger;
  /** What the kernel still has to do. */
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(kernel: ReplicaKernel, receiver: ReplicaReceiver, counts: KernelCounts, log: Logger) {
    this.#kernel = kernel;
    this.#receiver = receiver;
    this.#counts = counts;
    this.#log = log;
  }

  /** In the order of the calls; true: all of it is done, as far as the kernel would have it. Never rejects. */
  apply(changes: readonly Change[]): Promise<boolean> {
    return this.#queue(async () => {
      if (changes.length > 0) await this.#apply(changes.map(forKernel));
    });
  }

  async idle(): Promise<void> {
    await this.#last;
  }

  /** Entries of a shard that came to this gateway live as long as all others do. */
  async settle(flows: readonly [key: string, body: string][]): Promise<void> {
    for (let at = 0; at < flows.length && !this.#closed; at += CHANGES_AT_ONCE) {
      const changes = flows.slice(at, at + CHANGES_AT_ONCE).flatMap(([key, body]): FlowChange[] => {
        const flow = unpackFlow(key, body);
        const timeout = settledTimeout(flow);
        return timeout === undefined ? [] : [{ op: 'change', flow, timeout }];
      });
      await this.#queue(() => this.#kernel.apply(changes));
    }
  }

  /** What has to be done so that the kernel has what the receiver holds, and nothing beside. */
  corrections(foreign: Foreign): Change[] {
    const changes: Change[] = [];
    const shards = new Map<string, HeldShard>();
    for (const shard of this.#receiver.shards()) {
      const held = this.#receiver.held(shard);
      if (held !== undefined) shards.set(shard, held);
    }
    for (const [key, { shard }] of foreign) {
      const held = shards.get(shard);
      // While its master has not said everything, what is there may be right.
      if (held?.whole && !held.flows.has(key)) changes.push({ op: 'end', key });
    }
    for (const { flows } of shards.values()) {
      for (const [key, body] of flows) {
        const there = foreign.get(key)?.body;
        if (there !== undefined && difference(there, body) === 'none') continue;
        changes.push({ op: 'put', key, body, replaces: there !== undefined });
      }
    }
    return changes;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#last;
  }

  /** What waits here are two strings for each flow, not what is written of it. */
  #queue(work: () => Promise<unknown>): Promise<boolean> {
    const done = this.#last.then(work).then(
      () => true,
      (error: unknown) => {
        this.#log.error({ err: error }, 'replication: the connection table');
        return false;
      },
    );
    this.#last = done;
    return done;
  }

  async #apply(changes: readonly KernelChange[]): Promise<void> {
    const done = await this.#kernel.apply(changes);
    this.#counts.applied += changes.length;
    this.#counts.displaced += done.displaced;
    for (const { code } of done.refused) this.#counts.refused[code] = (this.#counts.refused[code] ?? 0) + 1;
    // The kernel had given them up.
    const whole = done.missing.flatMap(({ key }) => this.#held(key));
    if (whole.length > 0) await this.#apply(whole);
  }

  #held(key: string): KernelChange[] {
    for (const shard of this.#receiver.shards()) {
      const body = this.#receiver.held(shard)?.flows.get(key);
      if (body !== undefined) return [forKernel({ op: 'put', key, body, replaces: false })];
    }
    return [];
  }
}

function forKernel(change: Change): KernelChange {
  const { op, key } = change;
  if (op === 'put') {
    const flow = unpackFlow(key, change.body);
    return { op, key, flow, timeout: REPLICA_TIMEOUT, replaces: change.replaces };
  }
  const flow = unpackKey(key);
  return op === 'end' ? { op, key, flow } : { op: 'change', key, flow, mark: change.mark };
}
