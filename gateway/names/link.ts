/**
 * One connection to another gateway, after TLS: hello, then pairs both ways with numbers and cumulative acknowledgements
 * (frame.ts). What is learned now goes at once; a whole table goes in pages, few of which are on their way at a time, so
 * that what is learned meanwhile does not wait behind it. Whoever says nothing for some seconds is given up.
 * Left out: who may connect, and who connects anew (daemon/peers.ts).
 */
import type { Duplex } from 'node:stream';
import { LineReader } from '../../api/plan-stream.ts';
import type { PeerLinkEvents } from '../../daemon/peers.ts';
import type { NamedAddress } from '../inspect/name-table.ts';
import {
  formatAck,
  formatHello,
  formatPairs,
  formatPing,
  MAX_LINE,
  MAX_PAIRS,
  type ParsedPair,
  parsePeerMessage,
} from './frame.ts';

/** Pages of a table that are not acknowledged yet. */
const PAGES_UNDERWAY = 4;
/** Bytes that wait for a peer that does not read: it is given up, and gets the whole table when it comes back. */
const MAX_WAITING = 4 * 1024 * 1024;
const TICK_MS = 1_000;
/** Ticks are counted, not seconds: a program that was itself busy or stopped must not blame its peer. */
const TICKS_LOST = 4;
const HELLO_MS = 2_000;

export interface LinkEvents extends PeerLinkEvents<Link> {
  /** When it returns the pairs are in the table. */
  onPairs(link: Link, pairs: ParsedPair[]): void;
  /** `acked` has grown. */
  onAck(link: Link): void;
}

export class Link {
  /** The peer's, once it has said hello and was believed. */
  name: string | undefined;
  /** Last number sent, and the last one that the peer has. */
  sent = 0;
  acked = 0;
  /** It let an answer wait for its whole time, and has not caught up since. */
  silent = false;
  readonly #stream: Duplex;
  readonly #events: LinkEvents;
  readonly #now: () => number;
  readonly #reader = new LineReader(MAX_LINE);
  /** Of a table that is being sent; from #page on it is not yet. */
  #table: readonly NamedAddress[] = [];
  #page = 0;
  /** Numbers of pages that are not acknowledged. */
  #underway: number[] = [];
  #received = 0;
  #quiet = 0;
  #closed = false;
  readonly #ticking: NodeJS.Timeout;
  readonly #helloTimer: NodeJS.Timeout;

  /** `own`: this gateway's name. */
  constructor(stream: Duplex, own: string, events: LinkEvents, now: () => number) {
    this.#stream = stream;
    this.#events = events;
    this.#now = now;
    stream.on('data', (chunk: Uint8Array) => this.#read(chunk));
    stream.on('error', (error) => this.close(error.message));
    stream.once('end', () => this.close('closed'));
    stream.once('close', () => this.close('closed'));
    this.#helloTimer = setTimeout(() => this.close('no hello'), HELLO_MS);
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    this.#write(formatHello(own));
  }

  /** A table is on its way: the peer may not have yet what is known here for long. */
  get exchanging(): boolean {
    return this.#page < this.#table.length;
  }

  /** The last of them is `sent` when it returns. */
  send(pairs: readonly NamedAddress[]): void {
    const now = this.#now();
    for (let at = 0; at < pairs.length && !this.#closed; at += MAX_PAIRS) {
      this.#write(formatPairs(++this.sent, pairs.slice(at, at + MAX_PAIRS), now));
    }
  }

  /** Sends all of it, little by little. The list must not change. */
  exchange(table: readonly NamedAddress[]): void {
    this.#table = table;
    this.#page = 0;
    this.#sendPages();
  }

  #sendPages(): void {
    while (this.exchanging && this.#underway.length < PAGES_UNDERWAY && !this.#closed) {
      const now = this.#now();
      const page = this.#table.slice(this.#page, this.#page + MAX_PAIRS).filter(({ until }) => until > now);
      this.#page += MAX_PAIRS;
      if (page.length === 0) continue;
      this.send(page);
      this.#underway.push(this.sent);
    }
    if (!this.exchanging) this.#table = [];
  }

  #read(chunk: Uint8Array): void {
    if (this.#closed) return;
    this.#quiet = 0;
    const lines = this.#reader.push(chunk);
    if (!lines.ok) {
      this.close(lines.error);
      return;
    }
    const before = this.#received;
    for (const line of lines.value) {
      const reason = this.#receive(line);
      if (reason !== undefined) this.close(reason);
      if (this.#closed) return;
    }
    // One for all that came at once.
    if (this.#received > before) this.#write(formatAck(this.#received));
  }

  /** Why the peer is not listened to any more. */
  #receive(line: string): string | undefined {
    const parsed = parsePeerMessage(line, this.#now());
    if (!parsed.ok) return `a message ${parsed.error}`;
    const message = parsed.value;
    if (message.type === 'hello') {
      if (this.name !== undefined) return 'a second hello';
      const reason = this.#events.onHello(this, message.name);
      if (reason !== undefined) return reason;
      clearTimeout(this.#helloTimer);
      this.name = message.name;
      this.#events.onOpen(this, message.name);
      return undefined;
    }
    if (this.name === undefined) return 'expected a hello first';
    switch (message.type) {
      case 'pairs':
        if (message.seq !== this.#received + 1) return `expected pairs ${this.#received + 1}, not ${message.seq}`;
        this.#events.onPairs(this, message.pairs);
        this.#received = message.seq;
        return undefined;
      case 'ack':
        if (message.seq > this.sent) return 'acknowledges what was not sent';
        if (message.seq <= this.acked) return undefined;
        this.acked = message.seq;
        if (this.acked === this.sent) this.silent = false;
        while (this.#underway[0] !== undefined && this.#underway[0] <= this.acked) this.#underway.shift();
        this.#events.onAck(this);
        this.#sendPages();
        return undefined;
      case 'ping':
        return undefined;
    }
  }

  #write(text: string): void {
    if (this.#closed || this.#stream.destroyed) return;
    if (this.#stream.writableLength > MAX_WAITING) this.close('does not read what it is sent');
    else this.#stream.write(text);
  }

  #tick(): void {
    if (++this.#quiet > TICKS_LOST) this.close('says nothing any more');
    else if (this.name !== undefined) this.#write(formatPing());
  }

  close(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#helloTimer);
    clearInterval(this.#ticking);
    this.#table = [];
    this.#stream.destroy();
    this.#events.onClose(this, reason);
  }
}
