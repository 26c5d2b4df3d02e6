/**
 * What one table holds, as the kernel lists it (own codec, wire/nft-*.ts): some hundred thousand elements a second, and
 * no more memory than the state itself takes. A long listing yields to the event loop between datagrams. One that somebody
 * changed the table in is begun anew.
 */
import type { Decoded } from '../wire/bytes.ts';
import { ElementReader } from '../wire/nft-elements.ts';
import {
  encodeGetGeneration,
  encodeGetTable,
  encodeListing,
  type Listing,
  readChain,
  readCounter,
  readGeneration,
  readRule,
} from '../wire/nft-listing.ts';
import { type ListedSet, readSet, type SetLayout } from '../wire/nft-shape.ts';
import {
  messageErrno,
  messageFlags,
  messageSequence,
  messageType,
  NLM_F_DUMP_INTR,
  NLMSG_DONE,
  NLMSG_ERROR,
  splitMessages,
} from '../wire/nlattr.ts';
import { KernelError } from './errors.ts';
import { EINTR, ENOENT, errnoName } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';
import type { CounterValue, NftState } from './nft.ts';
import { digestIfWhole, emptyState } from './nft-state.ts';

const RECEIVE_SIZE = 64 * 1024;
const DATAGRAMS_PER_TURN = 16;
const ATTEMPTS = 20;
/** The kernel moves a hundred thousand elements in some milliseconds. */
const ROOM_MS = 20;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

interface Where {
  namespace?: string;
}

/** Thrown and caught in this file: the table changed meanwhile. */
class Changed extends Error {}

export async function listTable(table: string, where: Where = {}): Promise<NftState> {
  const lister = new Lister(where);
  try {
    for (let attempt = 1; ; attempt++) {
      try {
        return await lister.state(table);
      } catch (error) {
        if (!(error instanceof Changed)) throw error;
        if (attempt === ATTEMPTS) throw new KernelError('nft list', 'EBUSY', `table ${table} changes all the time`);
      }
    }
  } catch (error) {
    throw KernelError.from('nft list', error);
  } finally {
    lister.close();
  }
}

export async function listCounters(table: string, where: Where = {}): Promise<Record<string, CounterValue>> {
  const lister = new Lister(where);
  const counters: Record<string, CounterValue> = {};
  try {
    // What is changed meanwhile is another counter.
    await lister.dump('objects', table, (message) => {
      const counter = read(readCounter(message));
      if (counter !== undefined) counters[counter.name] = { packets: counter.packets, bytes: counter.bytes };
    });
    return counters;
  } catch (error) {
    if (error instanceof Changed) return counters;
    throw KernelError.from('nft counters', error);
  } finally {
    lister.close();
  }
}

/** Rules that somebody else wrote have another comment, or none. */
const digestIn = (comment: string | undefined): string | undefined =>
  comment !== undefined && /^[0-9a-f]{16}$/.test(comment) ? comment : undefined;

function read<T>(decoded: Decoded<T>): T {
  if (!decoded.ok) throw new KernelError('nft list', 'bad-answer', decoded.reason);
  return decoded.value;
}

class Lister {
  readonly #socket: NetlinkSocket;
  readonly #buffer = new Uint8Array(RECEIVE_SIZE);
  #sequence = 0;

  constructor({ namespace }: Where) {
    this.#socket = NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      receiveBuffer: 1 << 20,
      ...(namespace === undefined ? {} : { namespace }),
    });
  }

  close(): void {
    this.#socket.close();
  }

  async state(table: string): Promise<NftState> {
    const state = emptyState();
    const generation = this.#generation();
    // However short the listing, whoever lists in a loop lets others have their turn.
    await turn();
    if (this.#ask(encodeGetTable(++this.#sequence, table)) === undefined) return state;
    state.exists = true;
    await this.dump('objects', table, (message) => {
      const counter = read(readCounter(message));
      if (counter !== undefined) state.counters.add(counter.name);
    });
    await this.dump('chains', table, (message) => {
      const chain = read(readChain(message));
      if (chain.table === table) state.chains.set(chain.name, '');
    });
    const rules = new Map<string, number>();
    await this.dump('rules', table, (message) => {
      const { chain, comment } = read(readRule(message));
      // Its first one: without rules it has an empty digest.
      if (state.chains.get(chain) === '') state.chains.set(chain, digestIn(comment));
      rules.set(chain, (rules.get(chain) ?? 0) + 1);
    });
    for (const [chain, count] of rules) state.chains.set(chain, digestIfWhole(state.chains.get(chain), count));
    const sets: ListedSet[] = [];
    await this.dump('sets', table, (message) => {
      const set = read(readSet(message));
      if (set !== undefined) sets.push(set);
    });
    for (const set of sets) {
      const { name, shape, layout } = set;
      // Of a shape that is not understood: it is none of ours.
      const elements = layout === undefined ? new Map() : await this.#elements(table, name, layout, set.count ?? 0);
      state.sets.set(name, { shape, elements });
    }
    if (this.#generation() !== generation) throw new Changed();
    return state;
  }

  /** While the kernel gives a set that has grown more room, a listing misses some of its elements. */
  async #elements(table: string, set: string, layout: SetLayout, count: number): Promise<Map<string, string>> {
    for (let attempt = 1; ; attempt++) {
      const reader = new ElementReader(layout);
      await this.dump('elements', table, (message) => read(reader.read(message)), set);
      const elements = reader.finish();
      if (elements.size >= count) return elements;
      if (attempt === ATTEMPTS) throw new Changed();
      await new Promise((resolve) => setTimeout(resolve, ROOM_MS));
    }
  }

  async dump(of: Listing, table: string, each: (message: Uint8Array) => void, set?: string): Promise<void> {
    const sequence = ++this.#sequence;
    this.#socket.send(encodeListing(of, sequence, table, set));
    for (let datagrams = 1; ; datagrams++) {
      const messages = this.#receive(sequence);
      if (messages.some((message) => (messageFlags(message) & NLM_F_DUMP_INTR) !== 0)) {
        throw this.#drained(sequence, messages);
      }
      for (const message of messages) {
        const type = messageType(message);
        if (type !== NLMSG_DONE && type !== NLMSG_ERROR) {
          each(message);
          continue;
        }
        const errno = messageErrno(message) ?? 0;
        // A table or a set that is not there has nothing.
        if (errno === 0 || errno === ENOENT) return;
        if (errno === EINTR) throw new Changed();
        throw new KernelError('nft list', 'failed', `${of} of ${table}: ${errnoName(errno)}`);
      }
      if (datagrams % DATAGRAMS_PER_TURN === 0) await turn();
    }
  }

  /** The rest of the listing is taken out of the socket, so that the next one can be asked for. */
  #drained(sequence: number, first: Uint8Array[]): Changed {
    const ends = (message: Uint8Array): boolean => [NLMSG_DONE, NLMSG_ERROR].includes(messageType(message));
    for (let messages = first; !messages.some(ends); ) messages = this.#receive(sequence);
    return new Changed();
  }

  #generation(): number {
    const answer = this.#ask(encodeGetGeneration(++this.#sequence));
    if (answer === undefined) throw new KernelError('nft list', 'bad-answer', 'no generation');
    return read(readGeneration(answer));
  }

  /** The one message of an answer; undefined: there is no such thing. */
  #ask(request: Uint8Array): Uint8Array | undefined {
    this.#socket.send(request);
    for (;;) {
      for (const message of this.#receive(messageSequence(request))) {
        if (messageType(message) !== NLMSG_ERROR) return message;
        const errno = messageErrno(message) ?? 0;
        if (errno === ENOENT) return undefined;
        throw new KernelError('nft list', 'failed', errnoName(errno));
      }
    }
  }

  #receive(sequence: number): Uint8Array[] {
    const length = this.#socket.receive(this.#buffer);
    return splitMessages(this.#buffer.subarray(0, length)).filter((message) => messageSequence(message) === sequence);
  }
}
