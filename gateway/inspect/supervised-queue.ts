/**
 * One queue and whoever serves it: a socket, a thread, shared memory; how the thread is found to be dead, stalled or deaf,
 * and what then becomes of the queue. workers.ts keeps as many as there are queues and gives them their ticks.
 */
import { MessageChannel, type MessagePort, Worker, type WorkerOptions } from 'node:worker_threads';
import type { Logger } from '../../daemon/log.ts';
import * as libc from '../../kernel/libc.ts';
import { ACCEPT, DROP } from '../../kernel/queue-loop.ts';
import {
  BEAT,
  LAST_ID,
  type QueueCounter,
  QueueMemory,
  queueCounters,
  STOP,
  WOKEN,
} from '../../kernel/queue-memory.ts';
import { type KernelQueue, listQueues, QueueSocket } from '../../kernel/queue-socket.ts';
import { COPY_RANGE_MAX } from '../../wire/nfqueue.ts';
import type { WorkerData, WorkerReport } from './worker.ts';

export interface InspectionOptions {
  /** Queue numbers `first` to `first + count - 1`. */
  queues: { first: number; count: number };
  decider: {
    /** URL of a module that exports `createDecider` (worker.ts). */
    module: string;
    /** What it begins with, asked at each start of a thread; structured clone. */
    data?(): unknown;
  };
  onOverload: 'Drop' | 'Accept';
  log: Logger;
  /** What a decider has posted. */
  onMessage?(queue: number, value: unknown): void;
  /** Network namespace `/run/netns/NAME`; absent: the process's own. */
  namespace?: string;
  limits?: Partial<InspectionLimits>;
  startWorker?(file: URL, options: WorkerOptions): Worker;
}

export interface InspectionLimits {
  /** Packets that wait in the kernel for one thread. */
  queueLength: number;
  /** Bytes of messages about them; a message takes some 1,300 and a packet's own. */
  receiveBuffer: number;
  /** Bytes of a packet that a decider sees: all, since a large send comes as one packet. */
  copyRange: number;
  /** Packets that a decider may have waiting. */
  held: number;
  holdMs: number;
  /** Without a heartbeat for so many ticks, or with packets untouched, a thread is given up. */
  stallTicks: number;
  /** The same while it loads its module. */
  startTicks: number;
  /** Megabytes of a thread's heap: one that needs more ends, and not the process. */
  heap: number;
}

export const defaultLimits: InspectionLimits = {
  queueLength: 16_384,
  receiveBuffer: 16 << 20,
  copyRange: COPY_RANGE_MAX,
  held: 1_024,
  holdMs: 2_000,
  stallTicks: 8,
  startTicks: 80,
  heap: 512,
};

export type QueueState =
  /** The queue is held, its thread is not ready yet. */
  | 'starting'
  | 'serving'
  /** Nobody holds the queue until the next try. */
  | 'waiting'
  | 'closed';
export type EndReason =
  /** Another socket holds the queue, or it could not be opened. */
  | 'refused'
  /** The thread threw. */
  | 'failed'
  /** It ended for no reason that it gave. */
  | 'exited'
  /** No heartbeat. */
  | 'stalled'
  /** Packets wait, and it takes none. */
  | 'deaf';

export interface QueueStatus {
  queue: number;
  state: QueueState;
  /** Threads that ended without being asked to. */
  ends: number;
  lastEnd?: { reason: EndReason; message: string };
  /** Since the start, over all threads. */
  counters: Record<QueueCounter, number>;
  /** What the kernel says: packets without verdict now; dropped (or passed) unseen since the start, for want of room. */
  kernel: { waiting: number; dropped: number; overruns: number };
}

/** Ticks are counted, not seconds: a process that was itself stopped or busy must not blame its threads. */
export const TICK_MS = 250;
/** At once after the first end, then 100 ms, doubled each time. */
const BACK_OFF_MS = 100;
const BACK_OFF_MAX_MS = 5_000;
/** Ticks of service after which an end is a first one again. */
const HEALTHY_TICKS = 40;

/** A thread and what it was given. */
interface Incarnation {
  worker: Worker;
  socket: QueueSocket;
  wake: number;
  port: MessagePort;
  memory: QueueMemory;
  failure?: Error;
  exited: Promise<void>;
}

export class SupervisedQueue {
  readonly number: number;
  /** The first thread serves the queue, or has ended. */
  readonly begun: Promise<void>;
  #begin: () => void = () => {};
  readonly #options: InspectionOptions;
  readonly #limits: InspectionLimits;
  #state: QueueState = 'starting';
  #current: Incarnation | undefined;
  /** Threads that were given up and have not ended yet. */
  readonly #leaving = new Set<Incarnation>();
  #retry: NodeJS.Timeout | undefined;
  #ends = 0;
  #endsInRow = 0;
  #lastEnd: QueueStatus['lastEnd'];
  /** Of the threads before this one, and of what the kernel counted while they held the queue. */
  readonly #before = new QueueMemory().read();
  readonly #kernelBefore = { dropped: 0, overruns: 0 };
  #beat = 0;
  #packets = 0;
  #quietTicks = 0;
  #deafTicks = 0;
  #healthyTicks = 0;

  constructor(number: number, options: InspectionOptions, limits: InspectionLimits) {
    this.number = number;
    this.#options = options;
    this.#limits = limits;
    this.begun = new Promise((resolve) => {
      this.#begin = resolve;
    });
    this.#start();
  }

  #start(): void {
    const { namespace, onOverload, decider, startWorker } = this.#options;
    const { queueLength, receiveBuffer, copyRange, held, holdMs, heap } = this.#limits;
    const memory = new QueueMemory();
    this.#packets = this.#beat = this.#quietTicks = this.#deafTicks = this.#healthyTicks = 0;
    const socket = QueueSocket.open({
      queue: this.number,
      maxLength: queueLength,
      copyRange,
      failOpen: onOverload === 'Accept',
      receiveBuffer,
      ...(namespace === undefined ? {} : { namespace }),
    });
    let wake: number | undefined;
    try {
      wake = libc.eventfd();
      const { port1, port2 } = new MessageChannel();
      const workerData: WorkerData = {
        fd: socket.fd,
        wake,
        queue: this.number,
        copyRange,
        overload: onOverload === 'Accept' ? ACCEPT : DROP,
        memory: memory.buffer,
        maxHeld: held,
        holdMs,
        port: port2,
        module: decider.module,
        data: decider.data?.(),
      };
      const file = new URL('./worker.js', import.meta.url);
      const workerOptions: WorkerOptions = {
        workerData,
        transferList: [port2],
        execArgv: [],
        resourceLimits: { maxOldGenerationSizeMb: heap },
      };
      const worker = startWorker?.(file, workerOptions) ?? new Worker(file, workerOptions);
      this.#supervise({ worker, socket, wake, port: port1, memory });
    } catch (error) {
      if (wake !== undefined) libc.close(wake);
      socket.close();
      throw error;
    }
  }

  #supervise(parts: Omit<Incarnation, 'exited'>): void {
    const { worker, port, wake, socket } = parts;
    const incarnation: Incarnation = { ...parts, exited: Promise.resolve() };
    this.#current = incarnation;
    this.#state = 'starting';
    port.on('message', (report: WorkerReport) => this.#hear(incarnation, report));
    worker.on('error', (error) => {
      incarnation.failure = error;
    });
    incarnation.exited = new Promise((resolve) => {
      worker.on('exit', (code) => {
        const { failure } = incarnation;
        if (failure !== undefined) this.#end(incarnation, 'failed', failure.stack ?? failure.message);
        else this.#end(incarnation, 'exited', `exit code ${code}`);
        // Not earlier: while a thread runs, its descriptors must not become somebody else's.
        this.#leaving.delete(incarnation);
        port.close();
        libc.close(wake);
        socket.close();
        resolve();
      });
    });
  }

  #hear(incarnation: Incarnation, report: WorkerReport): void {
    if (incarnation !== this.#current) return;
    const { log, onMessage } = this.#options;
    switch (report.kind) {
      case 'ready':
        if (this.#state !== 'starting') return;
        this.#state = 'serving';
        this.#begin();
        log[this.#ends === 0 ? 'debug' : 'info']({ queue: this.number }, 'inspection queue is served');
        return;
      case 'fault':
        log.error({ queue: this.number, error: report.message }, 'a packet could not be decided');
        return;
      case 'message':
        onMessage?.(this.number, report.value);
    }
  }

  /** The queue is free afterwards, whatever the thread still does. */
  #end(incarnation: Incarnation, reason: EndReason, message: string): void {
    if (incarnation !== this.#current) return;
    this.#begin();
    this.#remember(incarnation.memory);
    this.#leave(incarnation);
    if (this.#state !== 'closed') this.#again(reason, message);
  }

  #leave(incarnation: Incarnation): void {
    this.#current = undefined;
    this.#leaving.add(incarnation);
    Atomics.store(incarnation.memory.control, STOP, 1);
    try {
      const lastId = Atomics.load(incarnation.memory.control, LAST_ID) >>> 0;
      incarnation.socket.unbind(this.#options.onOverload === 'Accept' ? { lastId } : undefined);
    } catch (error) {
      this.#options.log.error({ queue: this.number, error: (error as Error).message }, 'a queue cannot be given back');
    }
    void incarnation.worker.terminate();
  }

  #again(reason: EndReason, message: string): void {
    const { log } = this.#options;
    this.#state = 'waiting';
    this.#ends++;
    this.#lastEnd = { reason, message };
    const delay = this.#endsInRow === 0 ? 0 : Math.min(BACK_OFF_MAX_MS, BACK_OFF_MS * 2 ** (this.#endsInRow - 1));
    this.#endsInRow++;
    log.error(
      { queue: this.number, reason, error: message, againMs: delay },
      'the thread of an inspection queue ended',
    );
    const start = () => {
      try {
        this.#start();
      } catch (error) {
        this.#again('refused', (error as Error).message);
      }
    };
    if (delay === 0 && reason !== 'refused') start();
    else this.#retry = setTimeout(start, Math.max(delay, BACK_OFF_MS));
  }

  tick(kernel: readonly KernelQueue[]): void {
    const current = this.#current;
    if (current === undefined || this.#state === 'closed') return;
    const beat = Atomics.load(current.memory.control, BEAT);
    const { packets, holding } = current.memory.read();
    this.#quietTicks = beat === this.#beat ? this.#quietTicks + 1 : 0;
    const waiting = kernel.find(({ queue }) => queue === this.number)?.waiting ?? 0;
    const untouched = this.#state === 'serving' && waiting > holding && packets === this.#packets;
    this.#deafTicks = untouched && this.#quietTicks === 0 ? this.#deafTicks + 1 : 0;
    this.#beat = beat;
    this.#packets = packets;
    const { stallTicks, startTicks } = this.#limits;
    if (this.#quietTicks >= (this.#state === 'serving' ? stallTicks : startTicks)) {
      this.#end(current, 'stalled', `no heartbeat for ${this.#quietTicks * TICK_MS} ms`);
    } else if (this.#deafTicks >= stallTicks) {
      this.#end(current, 'deaf', `${waiting} packets wait, of which it knows ${holding}`);
    } else if (this.#state === 'serving' && ++this.#healthyTicks === HEALTHY_TICKS) this.#endsInRow = 0;
  }

  post(value: unknown): boolean {
    if (this.#current === undefined) return false;
    this.#current.port.postMessage(value);
    Atomics.store(this.#current.memory.control, WOKEN, 1);
    libc.signal(this.#current.wake);
    return true;
  }

  status(kernel: readonly KernelQueue[]): QueueStatus {
    const now = this.#current === undefined ? undefined : kernel.find(({ queue }) => queue === this.number);
    const counters = this.#current?.memory.read() ?? new QueueMemory().read();
    for (const name of queueCounters) counters[name] += this.#before[name];
    return {
      queue: this.number,
      state: this.#state,
      ends: this.#ends,
      ...(this.#lastEnd === undefined ? {} : { lastEnd: this.#lastEnd }),
      counters,
      kernel: {
        waiting: now?.waiting ?? 0,
        dropped: this.#kernelBefore.dropped + (now?.dropped ?? 0),
        overruns: this.#kernelBefore.overruns + (now?.overruns ?? 0),
      },
    };
  }

  #remember(memory: QueueMemory): void {
    const counters = memory.read();
    for (const name of queueCounters) if (name !== 'holding') this.#before[name] += counters[name];
    const last = listQueues(this.#options.namespace).find(({ queue }) => queue === this.number);
    this.#kernelBefore.dropped += last?.dropped ?? 0;
    this.#kernelBefore.overruns += last?.overruns ?? 0;
  }

  /** The thread ends its turn and returns. */
  stop(): void {
    if (this.#current === undefined) return;
    Atomics.store(this.#current.memory.control, STOP, 1);
    libc.signal(this.#current.wake);
  }

  /** Gives the queue back at once; the thread ends when it can. */
  abandon(): void {
    this.#state = 'closed';
    if (this.#current !== undefined) this.#end(this.#current, 'exited', 'abandoned');
  }

  /** The thread ends by itself, and then gives the queue back. */
  async close(): Promise<void> {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    clearTimeout(this.#retry);
    const current = this.#current;
    if (current !== undefined) {
      this.stop();
      // Verdicts that the decider gives at the end still count; one that hangs does not hold us up for ever.
      const timer = setTimeout(() => this.#end(current, 'stalled', 'closing'), this.#limits.stallTicks * TICK_MS);
      await current.exited;
      clearTimeout(timer);
    }
    await Promise.all([...this.#leaving].map(({ exited }) => exited));
  }
}
