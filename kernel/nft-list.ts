/**
 * What one table holds, as the kernel lists it (own codec, wire/nft-*.ts): some hundred thousand elements or rules a
 * second, and no more memory than the state itself takes. A long listing yields to the event loop between datagrams. One
 * that somebody changed the table in is begun anew, a part of it that a change of another table interrupted is done again.
 * Rules are listed chain by chain: the kernel answers in parts of 32 KiB, and for each it counts from the first of what
 * was asked for (`s_idx` of __nf_tables_dump_rules()), which for all rules of a big table takes minutes. A chain it finds
 * by its name. Elements it counts so too, but in one set.
 */
import type { Decoded } from '../wire/bytes.ts';
import { ElementReader } from '../wire/nft-elements.ts';
import {
  encodeGetGeneration,
  encodeGetTable,
  encodeListing,
  type Listing,
  readChain,
  readComment,
  readCounter,
  readGeneration,
} from '../wire/nft-listing.ts';
import { readSet, type SetLayout } from '../wire/nft-shape.ts';
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
import type { CounterValue, NftState, Ruleset } from './nft.ts';
import { Commits } from './nft-commits.ts';
import { digestIfWhole, emptyState } from './nft-state.ts';

const RECEIVE_SIZE = 64 * 1024;
/** For so long others wait for this thread. */
const TURN_MS = 10;
const ATTEMPTS = 20;
/** The kernel moves a hundred thousand elements in some milliseconds. */
const ROOM_MS = 20;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

interface Where {
  namespace?: string;
}

/** Thrown and caught in this file: something changed meanwhile. */
class Changed extends Error {}

async function unbroken<T>(list: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await list();
    } catch (error) {
      if (!(error instanceof Changed) || attempt === ATTEMPTS) throw error;
    }
  }
}

async function withLister<T>(op: string, where: Where, list: (lister: Lister) => Promise<T>): Promise<T> {
  const lister = new Lister(where);
  try {
    return await list(lister);
  } catch (error) {
    if (error instanceof Changed) throw new KernelError(op, 'EBUSY', 'the table changes all the time');
    throw KernelError.from(op, error);
  } finally {
    lister.close();
  }
}

/** `like`: what the table may hold, asked for if there is one; of a set that has its elements the state has the very map of `like`. */
export const listTable = (table: string, where: Where = {}, like?: () => Ruleset): Promise<NftState> =>
  withLister('nft list', where, async (lister) => {
    const commits = new Commits(where);
    try {
      return await unbroken(() => lister.state(table, commits, like));
    } finally {
      commits.close();
    }
  });

export const listCounters = (table: string, where: Where = {}): Promise<Record<string, CounterValue>> =>
  withLister('nft counters', where, async (lister) => {
    const counters: Record<string, CounterValue> = {};
    for (const { name, packets, bytes } of await lister.list('objects', table, readCounter)) {
      counters[name] = { packets, bytes };
    }
    return counters;
  });

/** Rules that somebody else wrote have another comment, or none. */
const digestIn = (comment: string | undefined): string | undefined =>
  comment !== undefined && /^[0-9a-f]{16}$/.test(comment) ? comment : undefined;

function read<T>(decoded: Decoded<T>): T {
  if (!decoded.ok) throw new KernelError('nft list', 'bad-answer', decoded.reason);
  return decoded.value;
}

function isSame(elements: Map<string, string>, wanted: Map<string, string>): boolean {
  if (elements.size !== wanted.size) return false;
  for (const [key, value] of elements) if (wanted.get(key) !== value) return false;
  return true;
}

class Lister {
  readonly #socket: NetlinkSocket;
  readonly #buffer = new Uint8Array(RECEIVE_SIZE);
  #sequence = 0;
  #turned = performance.now();

  constructor(where: Where) {
    this.#socket = NetlinkSocket.open({ protocol: NETLINK_NETFILTER, receiveBuffer: 1 << 20, ...where });
  }

  close(): void {
    this.#socket.close();
  }

  async state(table: string, commits: Commits, like?: () => Ruleset): Promise<NftState> {
    const state = emptyState();
    const generation = this.#generation();
    // However short the listing, whoever lists in a loop lets others have their turn.
    await turn();
    if (this.#ask(encodeGetTable(++this.#sequence, table)) === undefined) return state;
    state.exists = true;
    for (const { name } of await this.list('objects', table, readCounter)) state.counters.add(name);
    // The kernel lists the chains of every table.
    for (const chain of await this.list('chains', table, readChain)) {
      if (chain.table === table) state.chains.set(chain.name, await this.#digest(table, chain.name));
    }
    for (const { name, shape, layout, count } of await this.list('sets', table, readSet)) {
      // Of a shape that is not understood: it is none of ours.
      const elements = layout === undefined ? new Map() : await this.#elements(table, name, layout, count ?? 0);
      const wanted = like?.().sets[name]?.elements;
      state.sets.set(name, { shape, elements: wanted !== undefined && isSame(elements, wanted) ? wanted : elements });
    }
    const last = this.#generation();
    if (last !== generation && commits.touched(table, last)) throw new Changed();
    return state;
  }

  async #digest(table: string, chain: string): Promise<string | undefined> {
    const comments = await this.list('rules', table, readComment, chain);
    return comments.length === 0 ? '' : digestIfWhole(digestIn(comments[0]), comments.length);
  }

  /**
   * While the kernel gives a set that has grown more room, a listing misses some of its elements and has others twice.
   * But two may have one key for good (nft-change.ts, countersFirst()): so two listings alike are believed.
   */
  #elements(table: string, set: string, layout: SetLayout, count: number): Promise<Map<string, string>> {
    let before = -1;
    return unbroken(async () => {
      const reader = new ElementReader(layout);
      await this.#dump('elements', table, (message) => read(reader.read(message)), set);
      const elements = reader.finish();
      if (elements.size >= count || elements.size === before) return elements;
      before = elements.size;
      await new Promise((resolve) => setTimeout(resolve, ROOM_MS));
      throw new Changed();
    });
  }

  /** What a reader makes of each message, but for nothing. `within`: of which chain the rules. */
  list<T>(
    of: Listing,
    table: string,
    reader: (message: Uint8Array) => Decoded<T | undefined>,
    within?: string,
  ): Promise<T[]> {
    return unbroken(async () => {
      const found: T[] = [];
      const each = (message: Uint8Array): void => {
        const value = read(reader(message));
        if (value !== undefined) found.push(value);
      };
      await this.#dump(of, table, each, within);
      return found;
    });
  }

  async #dump(of: Listing, table: string, each: (message: Uint8Array) => void, within?: string): Promise<void> {
    const sequence = ++this.#sequence;
    this.#socket.send(encodeListing(of, sequence, table, within));
    for (;;) {
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
      if (performance.now() - this.#turned > TURN_MS) {
        await turn();
        this.#turned = performance.now();
      }
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
