/**
 * What answers of the pool's resolvers teach (design §4.6): an answer counts only if the question was seen that it answers,
 * from the same client with the same id. It waits until whoever has to know of it does, or its time is over. Names of the answer are
 * the question's and all that it is an alias of.
 * Over TCP messages come in segments as they like (framed-stream.ts): the segment that makes an answer whole waits, those
 * before it went on, for the resolver sends only so much without an acknowledgement.
 */
import { type DnsQuery, DnsQueryReader } from '../../wire/dns.ts';
import { type DnsAnswer, DnsAnswerReader } from '../../wire/dns-answer.ts';
import { TCP_SYN } from '../../wire/ip.ts';
import type { Reading } from '../../wire/reading.ts';
import { Aged } from './aged.ts';
import { Conversations } from './conversations.ts';
import { type Desk, PASSED } from './desk.ts';
import type { Segment } from './segment.ts';
import { Waits } from './waits.ts';

/** A client and the resolver that it asks. */
export interface Asking {
  client: string;
  port: number | undefined;
  resolver: string;
  stream: boolean;
}

interface Question {
  name: string;
  type: number;
  until: number;
}

const QUESTION_MS = 10_000;
const QUESTIONS_MAX = 16_384;

export class Teaching {
  readonly #desk: Desk;
  readonly #waits: Waits;
  /** The oldest first. */
  readonly #questions = new Aged<Question>();
  readonly #queries = new DnsQueryReader();
  readonly #answers = new DnsAnswerReader();
  readonly #conversations: Conversations;

  constructor(desk: Desk) {
    this.#desk = desk;
    this.#conversations = new Conversations((reason) => desk.tally.count(`untaught_${reason}`));
    this.#waits = new Waits(desk.limits.teachMs, (time) => desk.wakeAt(time));
  }

  isResolver(address: string): boolean {
    return this.#desk.judge.resolvers().includes(address);
  }

  asked(payload: Uint8Array, asking: Asking, now: number): void {
    this.#ask(this.#queries.datagram(payload), asking, now);
  }

  /** True: the packet waits; else nothing is to be learned from it. */
  answered(payload: Uint8Array, asking: Asking, packet: number, now: number): boolean {
    return this.#answer(this.#answers.datagram(payload), asking, () => this.#desk.accept(packet, PASSED), now);
  }

  /** A segment that lies in `bytes`; `reply`: of the resolver. True: the packet is seen to. */
  heard(segment: Segment, bytes: Uint8Array, asking: Asking, reply: boolean, packet: number, now: number): boolean {
    const { sequence, payload, end, flags } = segment;
    const key = keyOf(asking, 0);
    const begins = (flags & TCP_SYN) !== 0;
    if (begins && reply) this.#conversations.begin(key, segment.acknowledgement, sequence + 1, now);
    const conversation = begins ? undefined : this.#conversations.get(key);
    if (conversation === undefined || payload === end) return false;
    const waiting = { from: sequence, to: (sequence + end - payload) | 0 };
    if (reply && conversation.waitsFor(waiting.from, waiting.to)) {
      this.#desk.drop(packet);
      return true;
    }
    let left = 0;
    const release = (): void => {
      if (--left > 0) return;
      conversation.waiting.delete(waiting);
      this.#desk.accept(packet, PASSED);
    };
    const fault = (reply ? conversation.resolver : conversation.client).take(
      sequence,
      bytes,
      payload,
      end,
      (message) => {
        if (!reply) this.#ask(this.#queries.stream(message), asking, now);
        else if (this.#answer(this.#answers.stream(message), asking, release, now)) left++;
      },
    );
    if (fault === undefined) this.#conversations.settle(conversation, now);
    else this.#conversations.lose(conversation, fault);
    if (left > 0) conversation.waiting.add(waiting);
    return left > 0;
  }

  #ask(query: Reading<DnsQuery, string>, asking: Asking, now: number): void {
    if (query.state !== 'read') return;
    const { id, name, type } = query.value;
    this.#questions.put(keyOf(asking, id), { name, type, until: now + QUESTION_MS });
    if (this.#questions.size > QUESTIONS_MAX) this.#questions.deleteOldest();
  }

  /** True: `release` is called when it may go on. */
  #answer(answer: Reading<DnsAnswer, string>, asking: Asking, release: () => void, now: number): boolean {
    if (answer.state !== 'read') return false;
    const { id, name, type, aliases, addresses } = answer.value;
    const key = keyOf(asking, id);
    const question = this.#questions.get(key);
    if (question === undefined || question.until <= now) return false;
    if (question.name !== name || question.type !== type) return false;
    this.#questions.delete(key);
    if (addresses.length === 0) return false;
    const desk = this.#desk;
    desk.tally.count('taught');
    const wait = this.#waits.add((late) => {
      if (late) desk.tally.count('taught_late');
      release();
    }, now);
    desk.post({
      kind: 'teach',
      id: wait ?? 0,
      resolver: asking.resolver,
      names: [name, ...aliases.map((alias) => alias.name)],
      addresses: addresses.map(({ address, ttl }) => ({ address, ttlSeconds: ttl })),
    });
    return true;
  }

  release(id: number, now: number): void {
    this.#waits.end(id, now);
  }

  expire(now: number): void {
    this.#waits.expire(now);
    this.#conversations.expire(now);
    while ((this.#questions.oldest?.until ?? now + 1) <= now) this.#questions.deleteOldest();
  }
}

const keyOf = ({ client, port, resolver, stream }: Asking, id: number): string =>
  `${client} ${port} ${resolver} ${stream} ${id}`;
