/**
 * What answers of the pool's resolvers teach (design §4.6): an answer counts only if the question was seen that it answers,
 * from the same client with the same id. It waits until whoever has to know of it does, or its time is over. Names of the answer are
 * the question's and all that it is an alias of.
 * Left out: a message over TCP that comes in several segments teaches nothing.
 */
import { DnsQueryReader } from '../../wire/dns.ts';
import { DnsAnswerReader } from '../../wire/dns-answer.ts';
import { Aged } from './aged.ts';
import { type Desk, PASSED } from './desk.ts';
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

  constructor(desk: Desk) {
    this.#desk = desk;
    this.#waits = new Waits(desk.limits.teachMs, (time) => desk.wakeAt(time));
  }

  isResolver(address: string): boolean {
    return this.#desk.judge.resolvers().includes(address);
  }

  asked(payload: Uint8Array, asking: Asking, now: number): void {
    const query = asking.stream ? this.#queries.stream(payload) : this.#queries.datagram(payload);
    if (query.state !== 'read') return;
    const { id, name, type } = query.value;
    const key = keyOf(asking, id);
    this.#questions.put(key, { name, type, until: now + QUESTION_MS });
    if (this.#questions.size > QUESTIONS_MAX) this.#questions.deleteOldest();
  }

  /** True: the packet waits, if there is one that may; else nothing is to be learned from it. */
  answered(payload: Uint8Array, asking: Asking, packet: number | undefined, now: number): boolean {
    const answer = asking.stream ? this.#answers.stream(payload) : this.#answers.datagram(payload);
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
      if (packet !== undefined) desk.accept(packet, PASSED);
    }, now);
    desk.post({
      kind: 'teach',
      id: wait ?? 0,
      resolver: asking.resolver,
      names: [name, ...aliases.map((alias) => alias.name)],
      addresses: addresses.map(({ address, ttl }) => ({ address, ttlSeconds: ttl })),
    });
    return packet !== undefined;
  }

  release(id: number, now: number): void {
    this.#waits.end(id, now);
  }

  expire(now: number): void {
    this.#waits.expire(now);
    while ((this.#questions.oldest?.until ?? now + 1) <= now) this.#questions.deleteOldest();
  }
}

const keyOf = ({ client, port, resolver, stream }: Asking, id: number): string =>
  `${client} ${port} ${resolver} ${stream} ${id}`;
