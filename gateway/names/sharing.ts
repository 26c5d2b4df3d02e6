/**
 * Telling the other gateways of the pool what is learned, and waiting for them (design §4.6): an answer of a resolver is let
 * on when everybody has what it says, so that the flow that follows it may leave by any gateway. Nobody is waited for
 * longer than ACK_MS; whoever was silent so long is not waited for again until it has caught up, nor is one without a link.
 * Left out: connections (daemon/peers.ts), and what is told (names.ts).
 */
import type { NamedAddress } from '../inspect/name-table.ts';
import type { Link } from './link.ts';

export const ACK_MS = 250;

/** Why an answer was let on although a gateway may not know what it says. */
export const skipReasons = {
  down: 'there is no connection to it',
  silent: 'it was silent when it was last waited for',
  late: 'it did not acknowledge in time',
  lost: 'the connection to it ended meanwhile',
} as const;
export type SkipReason = keyof typeof skipReasons;

export interface SharingEvents {
  /** An answer did not wait for this gateway, or not to the end. */
  onSkip(gateway: string, reason: SkipReason): void;
  /** All that could be waited for have it. */
  onShared(milliseconds: number): void;
}

interface Wait {
  done(): void;
  began: number;
  /** Who is still waited for. */
  links: Set<Link>;
  timer: NodeJS.Timeout;
}

/** In the order of `seq`. */
type Queue = { seq: number; wait: Wait }[];

export class Sharing {
  readonly #events: SharingEvents;
  /** Of the plan, without ourselves. */
  #gateways: readonly string[] = [];
  readonly #links = new Map<string, Link>();
  readonly #queues = new Map<Link, Queue>();
  readonly #waits = new Set<Wait>();

  constructor(events: SharingEvents) {
    this.#events = events;
  }

  /** The others of the plan. */
  expect(gateways: readonly string[]): void {
    this.#gateways = gateways;
  }

  get connected(): number {
    return this.#links.size;
  }

  /** A link is open; `table`: all that it has to be told. */
  open(name: string, link: Link, table: readonly NamedAddress[]): void {
    this.#links.set(name, link);
    this.#queues.set(link, []);
    link.exchange(table);
  }

  closed(link: Link): void {
    if (link.name !== undefined && this.#links.get(link.name) === link) this.#links.delete(link.name);
    const queue = this.#queues.get(link);
    this.#queues.delete(link);
    for (const { wait } of queue ?? []) if (wait.links.has(link)) this.#pass(wait, link, 'lost');
  }

  acknowledged(link: Link): void {
    const queue = this.#queues.get(link) ?? [];
    let had = 0;
    for (; had < queue.length; had++) {
      const { seq, wait } = queue[had] as Queue[number];
      if (seq > link.acked) break;
      if (wait.links.has(link)) this.#pass(wait, link);
    }
    if (had > 0) queue.splice(0, had);
  }

  /** Tells all gateways. */
  tell(pairs: readonly NamedAddress[]): void {
    if (pairs.length > 0) for (const link of this.#links.values()) link.send(pairs);
  }

  /**
   * Tells them what an answer taught: `news`, and to one that is still being sent the whole table all that the answer
   * says. Then `done`, as soon as everybody has that, and all that was said before: the same may have been learned a moment ago.
   */
  share(news: readonly NamedAddress[], all: () => readonly NamedAddress[], done: () => void): void {
    const links = new Set<Link>();
    for (const name of this.#gateways) {
      const link = this.#links.get(name);
      if (link === undefined) {
        this.#events.onSkip(name, 'down');
        continue;
      }
      const pairs = link.exchanging ? all() : news;
      if (pairs.length > 0) link.send(pairs);
      if (link.silent) this.#events.onSkip(name, 'silent');
      // It may have been closed over what it was sent.
      else if (link.acked < link.sent && this.#queues.has(link)) links.add(link);
    }
    if (links.size === 0) {
      done();
      return;
    }
    const wait: Wait = { done, began: performance.now(), links, timer: setTimeout(() => this.#late(wait), ACK_MS) };
    this.#waits.add(wait);
    for (const link of links) this.#queues.get(link)?.push({ seq: link.sent, wait });
  }

  /** Who has acknowledged already must not be blamed because we were busy: what has come is read before. */
  #late(wait: Wait): void {
    setImmediate(() => {
      for (const link of wait.links) {
        link.silent = true;
        this.#pass(wait, link, 'late');
      }
    });
  }

  #pass(wait: Wait, link: Link, reason?: SkipReason): void {
    wait.links.delete(link);
    if (reason !== undefined && link.name !== undefined) this.#events.onSkip(link.name, reason);
    if (wait.links.size > 0) return;
    clearTimeout(wait.timer);
    this.#waits.delete(wait);
    this.#events.onShared(performance.now() - wait.began);
    wait.done();
  }

  /** Nothing is held any more. */
  close(): void {
    for (const wait of this.#waits) {
      clearTimeout(wait.timer);
      wait.links.clear();
      wait.done();
    }
    this.#waits.clear();
    this.#queues.clear();
    this.#links.clear();
  }
}
