/**
 * A thread that decides the packets of one queue (nfnetlink_queue): receives batches, asks the decider about each
 * packet, sends the verdicts back in one call. It knows nothing of protocols. No event loop, no timers of Node's: it
 * sleeps in poll(), for as long as no held packet and no alarm of the decider is due. Nothing is allocated per packet.
 *
 * Order: packets that pass leave in the order in which their verdicts were given. One verdict stands for many packets
 * (VERDICT_BATCH) only while none waits: it would decide those as well.
 */

import { PacketReader, QueuePacket, VerdictWriter } from '../wire/nfqueue.ts';
import { messageErrno, messageLength, messageType, NLMSG_DONE, NLMSG_ERROR, NLMSG_HEADER } from '../wire/nlattr.ts';
import * as libc from './libc.ts';
import { BEAT, counterAt, LAST_ID, type QueueMemory, STOP, WOKEN } from './queue-memory.ts';
import { ReceiveBatch } from './queue-receive.ts';

export const DROP = 0;
export const ACCEPT = 1;
/** The packet waits in the kernel; the verdict comes by QueueControl.verdict. */
export const HOLD = 2;
export type Decision = typeof DROP | typeof ACCEPT | typeof HOLD;

/** Times are milliseconds of performance.now(). */
export interface Decider {
  /** The packet is valid until this returns. It goes on with `packet.mark`. */
  decide(packet: QueuePacket, now: number): Decision;
  /** The time of a held packet is over; it has got the verdict of overload. */
  expired?(id: number): void;
  /** What QueueControl.wakeAt asked for. */
  alarm?(now: number): void;
  /** From the main thread, between batches. */
  message?(value: unknown): void;
  /** The thread is told to end; verdicts given now still count. What waits after that is dropped, or passes by overload. */
  close?(): void;
}

/** What a decider may do at any time. */
export interface QueueControl {
  /** On a packet that waits; with a mark it goes on with that. False: it does not wait (any more). */
  verdict(id: number, decision: typeof DROP | typeof ACCEPT, mark?: number): boolean;
  /** The same, and another packet goes on in its place (QueuePacket.replacement). */
  replace(id: number, replacement: Uint8Array, mark: number): boolean;
  /** Reads what the main thread has posted by now, rather than after the batch: the decider's `message` is called. */
  readMessages(): void;
  /** One alarm: the earliest time that was asked for since the last. */
  wakeAt(time: number): void;
  /** To the main thread; structured clone. */
  post(value: unknown): void;
}

export interface QueueLoopOptions {
  fd: number;
  /** Eventfd that ends the sleep. */
  wake: number;
  queue: number;
  memory: QueueMemory;
  /** Bytes of a packet that the kernel was asked for. */
  copyRange: number;
  /** What becomes of packets that cannot be decided. */
  overload: typeof DROP | typeof ACCEPT;
  /** Packets that may wait at once: each takes one of the kernel queue's places, and each verdict is looked up among them. */
  maxHeld: number;
  /** Milliseconds that one may wait. */
  holdMs: number;
  /** The next message of the main thread; undefined: none. */
  nextMessage(): unknown;
  post(value: unknown): void;
  /** The decider threw; the first of a row. */
  onFault(error: unknown): void;
}

/** Packets a system call. More gain nothing measurable, and are decided later. */
const BATCH = 64;
/** Netlink and nfnetlink header and all attributes of a packet but its bytes. */
const MESSAGE_OVERHEAD = 512;
/** Longest sleep, and so the slowest heartbeat. */
export const BEAT_MS = 200;
/** So many packets in a row over which the decider throws, and it is broken rather than the packets odd. */
const FAULTS_MAX = 64;

const at = {
  packets: counterAt('packets'),
  bytes: counterAt('bytes'),
  accepted: counterAt('accepted'),
  dropped: counterAt('dropped'),
  held: counterAt('held'),
  expired: counterAt('expired'),
  overHeld: counterAt('overHeld'),
  malformed: counterAt('malformed'),
  faults: counterAt('faults'),
  refused: counterAt('refused'),
  batches: counterAt('batches'),
  holding: counterAt('holding'),
};

/** Returns when it is told to stop. Throws what the decider throws, but over single packets. */
export function runQueue(options: QueueLoopOptions, createDecider: (control: QueueControl) => Decider): void {
  new QueueLoop(options, createDecider).run();
}

class QueueLoop implements QueueControl {
  readonly #options: QueueLoopOptions;
  readonly #decider: Decider;
  readonly #counters: Float64Array;
  readonly #control: Int32Array;
  readonly #batch: ReceiveBatch;
  readonly #poll: libc.PollSet;
  readonly #reader = new PacketReader();
  readonly #packet = new QueuePacket();
  readonly #verdicts: VerdictWriter;
  /** Packet → when its time is over; in the order of both. */
  readonly #held = new Map<number, number>();
  /** Not later than the first of them. */
  #expiry = Number.POSITIVE_INFINITY;
  #alarm = Number.POSITIVE_INFINITY;
  /** A message that told of no packet: one may wait in the kernel that nobody here knows. */
  #unknown = false;
  #faultsInRow = 0;

  constructor(options: QueueLoopOptions, createDecider: (control: QueueControl) => Decider) {
    this.#options = options;
    this.#counters = options.memory.counters;
    this.#control = options.memory.control;
    this.#batch = new ReceiveBatch(BATCH, options.copyRange + MESSAGE_OVERHEAD);
    this.#verdicts = new VerdictWriter(options.queue, BATCH);
    this.#poll = new libc.PollSet([options.fd, options.wake]);
    this.#decider = createDecider(this);
  }

  run(): void {
    const control = this.#control;
    try {
      while (Atomics.load(control, STOP) === 0) {
        Atomics.add(control, BEAT, 1);
        if (Atomics.exchange(control, WOKEN, 0) !== 0) this.#messages();
        let now = performance.now();
        const received = this.#batch.receive(this.#options.fd);
        if (received > 0) {
          this.#decideAll(received, now);
          // What the decider has to tell others is less urgent.
          this.#flush();
        }
        now = performance.now();
        if (now >= this.#expiry) this.#expire(now);
        if (now >= this.#alarm) {
          this.#alarm = Number.POSITIVE_INFINITY;
          this.#decider.alarm?.(now);
        }
        this.#flush();
        // A batch that was not full has emptied the socket; what came since makes poll return at once.
        if (received < BATCH) this.#sleep(now);
      }
    } finally {
      this.#decider.close?.();
      this.#flush();
    }
  }

  verdict(id: number, decision: typeof DROP | typeof ACCEPT, mark = -1): boolean {
    if (!this.#held.delete(id)) return false;
    this.#counters[at.holding] = this.#held.size;
    this.#put(id, decision, mark, false);
    return true;
  }

  replace(id: number, replacement: Uint8Array, mark: number): boolean {
    if (!this.#held.delete(id)) return false;
    this.#counters[at.holding] = this.#held.size;
    this.#replace(id, replacement, mark);
    return true;
  }

  readMessages(): void {
    this.#messages();
  }

  wakeAt(time: number): void {
    if (time < this.#alarm) this.#alarm = time;
  }

  post(value: unknown): void {
    this.#options.post(value);
  }

  #messages(): void {
    for (;;) {
      const message = this.#options.nextMessage();
      if (message === undefined) return;
      this.#decider.message?.(message);
    }
  }

  #sleep(now: number): void {
    const due = Math.min(this.#expiry, this.#alarm) - now;
    this.#poll.wait(due < BEAT_MS ? Math.max(0, Math.ceil(due)) : BEAT_MS);
    // The word comes before the signal, and may have been read by now: so the signal is taken back here, not there.
    if (this.#poll.ready(1)) libc.drainEvent(this.#options.wake);
  }

  #decideAll(received: number, now: number): void {
    this.#count(at.batches);
    for (let slot = 0; slot < received; slot++) {
      const start = this.#batch.start(slot);
      const length = this.#batch.length(slot);
      if (length >= NLMSG_HEADER && messageType(this.#batch.bytes, start) <= NLMSG_DONE) this.#answer(start, length);
      else this.#decide(slot, start, length, now);
    }
  }

  #decide(slot: number, start: number, length: number, now: number): void {
    const packet = this.#packet;
    const reason = this.#reader.read(this.#batch.bytes, start, start + length, packet);
    if (reason !== undefined || this.#batch.cut(slot)) {
      this.#count(at.malformed);
      if (packet.id === 0) this.#unknown = true;
      else this.#put(packet.id, DROP, -1, false);
      return;
    }
    const { id, mark } = packet;
    Atomics.store(this.#control, LAST_ID, id | 0);
    this.#count(at.packets);
    this.#counters[at.bytes] = (this.#counters[at.bytes] ?? 0) + packet.end - packet.start;
    let decision: Decision;
    try {
      decision = this.#decider.decide(packet, now);
      this.#faultsInRow = 0;
    } catch (error) {
      decision = this.#fault(error);
      packet.mark = mark;
      packet.replacement = undefined;
    }
    if (decision === HOLD) {
      if (this.#held.size < this.#options.maxHeld) {
        this.#hold(id, now);
        return;
      }
      this.#count(at.overHeld);
      this.#decider.expired?.(id);
      decision = this.#options.overload;
    }
    if (decision === ACCEPT && packet.replacement !== undefined) {
      this.#replace(id, packet.replacement, packet.mark);
      return;
    }
    // Most packets keep no other waiting: a verdict like the one before needs no message of its own.
    const widen = this.#held.size === 0 && !this.#unknown;
    this.#put(id, decision, decision === ACCEPT && packet.mark !== mark ? packet.mark : -1, widen);
  }

  #hold(id: number, now: number): void {
    const until = now + this.#options.holdMs;
    this.#held.set(id, until);
    if (until < this.#expiry) this.#expiry = until;
    this.#count(at.held);
    this.#counters[at.holding] = this.#held.size;
  }

  /** The packet gets its verdict all the same, so that it is not what the next thread meets first. */
  #fault(error: unknown): Decision {
    this.#count(at.faults);
    if (++this.#faultsInRow === 1) this.#options.onFault(error);
    if (this.#faultsInRow >= FAULTS_MAX) throw error;
    return this.#options.overload;
  }

  #expire(now: number): void {
    this.#expiry = Number.POSITIVE_INFINITY;
    for (const [id, until] of this.#held) {
      if (until > now) {
        this.#expiry = until;
        return;
      }
      this.#count(at.expired);
      this.verdict(id, this.#options.overload);
      this.#decider.expired?.(id);
    }
  }

  #replace(id: number, replacement: Uint8Array, mark: number): void {
    if (!this.#verdicts.fits(replacement.length)) this.#flush();
    this.#verdicts.replace(id, mark, replacement);
    this.#count(at.accepted);
  }

  #put(id: number, decision: typeof DROP | typeof ACCEPT, mark: number, widen: boolean): void {
    if (this.#verdicts.full) this.#flush();
    this.#verdicts.add(id, decision === ACCEPT, mark, widen);
    this.#count(decision === ACCEPT ? at.accepted : at.dropped);
  }

  #flush(): void {
    const { length } = this.#verdicts;
    if (length === 0) return;
    libc.send(this.#options.fd, this.#verdicts.bytes, 0, length);
    this.#verdicts.clear();
  }

  /** The kernel's own word: an acknowledgement, or that a verdict came too late. */
  #answer(start: number, length: number): void {
    const message = this.#batch.bytes.subarray(start, start + length);
    if (messageType(message) !== NLMSG_ERROR || messageLength(message) > length) this.#count(at.malformed);
    else if (messageErrno(message) !== 0) this.#count(at.refused);
  }

  #count(index: number): void {
    this.#counters[index] = (this.#counters[index] ?? 0) + 1;
  }
}
