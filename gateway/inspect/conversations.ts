/**
 * Connections of TCP with resolvers whose answers are believed, as they are listened to (teaching.ts): both directions, from the
 * SYN+ACK on, which alone says where either begins; of one that had begun before nothing is learned. Bounded in number, time
 * and memory: who has been silent longest gives way, and teaches nothing any more.
 */
import { DNS_QUERY_MAX } from '../../wire/dns.ts';
import { ANSWER_LIMITS } from '../../wire/dns-answer.ts';
import { Aged } from './aged.ts';
import { type FramedFault, FramedStream, framedFaults } from './framed-stream.ts';

/** Why a connection teaches nothing any more. (One that is silent for IDLE_MS has ended, as far as can be told.) */
export const untaughtReasons = {
  ...framedFaults,
  flows: 'the one that was silent longest, when there is room for no more',
  memory: 'the same, when all that is kept of messages takes more memory than it may',
} as const satisfies Record<FramedFault | string, string>;
export type UntaughtReason = keyof typeof untaughtReasons;

export interface ConversationLimits {
  connections: number;
  /** Bytes that are kept of all together. */
  memory: number;
}

export const conversationLimits: ConversationLimits = { connections: 8_192, memory: 8 * 1024 * 1024 };

/** Resolvers and their clients keep connections for 10 to 150 seconds without a word. */
const IDLE_MS = 300_000;
/** A whole window of the longest message. */
const AHEAD = { gap: 131_072, pieces: 128 };
const questions = { message: DNS_QUERY_MAX, ...AHEAD };
const answers = { message: ANSWER_LIMITS.bytes, ...AHEAD };

/** Bytes of the resolver that wait, by sequence numbers. */
interface Waiting {
  from: number;
  to: number;
}

export class Conversation {
  readonly key: string;
  readonly client: FramedStream;
  readonly resolver: FramedStream;
  readonly waiting = new Set<Waiting>();
  until = 0;
  /** As it is counted. */
  memory = 0;

  constructor(key: string, client: number, resolver: number) {
    this.key = key;
    this.client = new FramedStream(client, questions);
    this.resolver = new FramedStream(resolver, answers);
  }

  /** Whether any of these bytes of the resolver wait: sent again they would be there before their time. */
  waitsFor(from: number, to: number): boolean {
    for (const one of this.waiting) if (((from - one.to) | 0) < 0 && ((to - one.from) | 0) > 0) return true;
    return false;
  }
}

export class Conversations {
  /** The longest silent first. */
  readonly #all = new Aged<Conversation>();
  readonly #limits: ConversationLimits;
  readonly #lost: (reason: UntaughtReason) => void;
  #memory = 0;

  constructor(lost: (reason: UntaughtReason) => void, limits: ConversationLimits = conversationLimits) {
    this.#lost = lost;
    this.#limits = limits;
  }

  get size(): number {
    return this.#all.size;
  }

  /** Bytes that are kept of all. */
  get memory(): number {
    return this.#memory;
  }

  /** Sequence numbers of the first byte of either; the same again change nothing. */
  begin(key: string, client: number, resolver: number, now: number): void {
    const known = this.#all.get(key);
    if (known?.client.start === (client | 0) && known.resolver.start === (resolver | 0)) return;
    if (known !== undefined) this.#delete(known);
    this.settle(new Conversation(key, client, resolver), now);
    if (this.#all.size > this.#limits.connections) this.#loseOldest('flows');
  }

  get(key: string): Conversation | undefined {
    return this.#all.get(key);
  }

  /** After it has taken bytes. */
  settle(of: Conversation, now: number): void {
    of.until = now + IDLE_MS;
    this.#all.put(of.key, of);
    const memory = of.client.memory + of.resolver.memory;
    this.#memory += memory - of.memory;
    of.memory = memory;
    while (this.#memory > this.#limits.memory && this.#all.oldest !== of) this.#loseOldest('memory');
  }

  lose(of: Conversation, reason: UntaughtReason): void {
    this.#delete(of);
    this.#lost(reason);
  }

  expire(now: number): void {
    for (let { oldest } = this.#all; oldest !== undefined && oldest.until <= now; { oldest } = this.#all) {
      this.#delete(oldest);
    }
  }

  #loseOldest(reason: UntaughtReason): void {
    const { oldest } = this.#all;
    if (oldest !== undefined) this.lose(oldest, reason);
  }

  #delete(of: Conversation): void {
    this.#all.delete(of.key);
    this.#memory -= of.memory;
    of.memory = 0;
  }
}
