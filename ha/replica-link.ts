/**
 * One connection to another gateway, after TLS, on which both tell of flows: hello, then frames both ways
 * (replica-codec.ts). Who sends asks first whether there is room: nothing gathers here for a peer that reads slowly. Whoever
 * says nothing for some seconds is given up.
 * Left out: who may connect, and who connects anew (daemon/peers.ts); what is told (replicator.ts).
 */
import type { Duplex } from 'node:stream';
import type { PeerLink, PeerLinkEvents } from '../daemon/peers.ts';
import { decodeFrame, encodeFrame, type Frame, FrameReader, REPLICA_VERSION } from './replica-codec.ts';

/** Bytes on their way to a peer, above which no batch is added. */
const ROOM = 256 * 1024;
/** Answers are added all the same, up to here. */
const MAX_WAITING = 4 * 1024 * 1024;
const TICK_MS = 1_000;
/** Ticks are counted, not seconds: a program that was itself busy or stopped must not blame its peer. */
const TICKS_LOST = 4;
const HELLO_MS = 2_000;

export interface ReplicaLinkEvents extends PeerLinkEvents<ReplicaLink> {
  onFrame(link: ReplicaLink, frame: Frame): void;
  /** There is room again. */
  onRoom(link: ReplicaLink): void;
}

export class ReplicaLink implements PeerLink {
  name: string | undefined;
  readonly #stream: Duplex;
  readonly #events: ReplicaLinkEvents;
  readonly #reader = new FrameReader();
  #quiet = 0;
  #closed = false;
  readonly #ticking: NodeJS.Timeout;
  readonly #helloTimer: NodeJS.Timeout;

  /** `own`: this gateway's name. */
  constructor(stream: Duplex, own: string, events: ReplicaLinkEvents) {
    this.#stream = stream;
    this.#events = events;
    stream.on('data', (chunk: Uint8Array) => this.#read(chunk));
    stream.on('drain', () => {
      if (this.name !== undefined && !this.#closed) events.onRoom(this);
    });
    stream.on('error', (error) => this.close(error.message));
    stream.once('end', () => this.close('closed'));
    stream.once('close', () => this.close('closed'));
    this.#helloTimer = setTimeout(() => this.close('no hello'), HELLO_MS);
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    this.send({ type: 'hello', version: REPLICA_VERSION, name: own });
  }

  get hasRoom(): boolean {
    return this.name !== undefined && !this.#closed && this.#stream.writableLength < ROOM;
  }

  send(frame: Frame): void {
    if (this.#closed || this.#stream.destroyed) return;
    if (this.#stream.writableLength > MAX_WAITING) this.close('does not read what it is sent');
    else this.#stream.write(encodeFrame(frame));
  }

  #read(chunk: Uint8Array): void {
    if (this.#closed) return;
    this.#quiet = 0;
    const frames = this.#reader.push(chunk);
    if (frames === undefined) this.close('a frame that is too long');
    for (const bytes of frames ?? []) {
      if (this.#closed) return;
      const frame = decodeFrame(bytes);
      if (frame.ok) this.#receive(frame.value);
      else this.close(`a frame: ${frame.reason}`);
    }
  }

  #receive(frame: Frame): void {
    if (frame.type === 'hello') {
      const reason = this.name === undefined ? this.#events.onHello(this, frame.name) : 'a second hello';
      if (reason !== undefined) {
        this.close(reason);
        return;
      }
      clearTimeout(this.#helloTimer);
      this.name = frame.name;
      this.#events.onOpen(this, frame.name);
    } else if (this.name === undefined) this.close('expected a hello first');
    else if (frame.type !== 'ping') this.#events.onFrame(this, frame);
  }

  #tick(): void {
    if (++this.#quiet > TICKS_LOST) this.close('says nothing any more');
    else if (this.name !== undefined) this.send({ type: 'ping' });
  }

  close(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#helloTimer);
    clearInterval(this.#ticking);
    this.#stream.destroy();
    this.#events.onClose(this, reason);
  }
}
