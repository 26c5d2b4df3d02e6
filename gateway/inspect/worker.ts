/**
 * The thread of one queue: loads the module that decides, then runs the loop of kernel/queue-loop.ts until it is told to
 * stop. Descriptors and shared memory are the main thread's, which also closes them: a thread that is terminated runs
 * no code of its own any more, and its descriptors would stay open.
 */
import { type MessagePort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import * as libc from '../../kernel/libc.ts';
import { type Decider, DROP, type QueueControl, type QueueLoopOptions, runQueue } from '../../kernel/queue-loop.ts';
import { QueueMemory } from '../../kernel/queue-memory.ts';

export interface WorkerData extends Pick<QueueLoopOptions, 'fd' | 'wake' | 'queue' | 'copyRange' | 'overload'> {
  memory: SharedArrayBuffer;
  maxHeld: number;
  holdMs: number;
  port: MessagePort;
  /** URL of the module whose `createDecider` decides. */
  module: string;
  /** For `createDecider`. */
  data: unknown;
}

/** `data` is what the main thread gave for this start. */
export type CreateDecider = (control: QueueControl, data: unknown) => Decider | Promise<Decider>;

export type WorkerReport =
  | { kind: 'ready' }
  /** What the decider threw over a packet. */
  | { kind: 'fault'; message: string }
  /** What the decider has posted. */
  | { kind: 'message'; value: unknown };

/** What its thread is called, with the queue's number behind it. */
const THREAD_NAME = 'inspect-';

/** Faults told a second; all are counted. */
const FAULT_REPORT_MS = 1_000;

const data = workerData as WorkerData;
libc.setThreadName(`${THREAD_NAME}${data.queue}`);
const { port } = data;
const report = (message: WorkerReport): void => port.postMessage(message);
let faultTold = Number.NEGATIVE_INFINITY;

const { createDecider } = (await import(data.module)) as { createDecider: CreateDecider };

/** Stands for the decider's verdicts before there is a loop: nothing waits yet. */
let control: QueueControl = {
  verdict: () => false,
  replace: () => false,
  readMessages: () => {},
  wakeAt: () => {},
  post: (value) => report({ kind: 'message', value }),
};
const decider = await createDecider(
  {
    verdict: (id, decision, mark) => control.verdict(id, decision, mark),
    replace: (id, replacement, mark) => control.replace(id, replacement, mark),
    readMessages: () => control.readMessages(),
    wakeAt: (time) => control.wakeAt(time),
    post: (value) => control.post(value),
  },
  data.data,
);

runQueue(
  {
    fd: data.fd,
    wake: data.wake,
    queue: data.queue,
    memory: new QueueMemory(data.memory),
    copyRange: data.copyRange,
    overload: data.overload ?? DROP,
    maxHeld: data.maxHeld,
    holdMs: data.holdMs,
    nextMessage: () => receiveMessageOnPort(port)?.message,
    post: (value) => report({ kind: 'message', value }),
    onFault(error) {
      const now = performance.now();
      if (now - faultTold < FAULT_REPORT_MS) return;
      faultTold = now;
      report({ kind: 'fault', message: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    },
  },
  (loop) => {
    control = loop;
    report({ kind: 'ready' });
    return decider;
  },
);
port.close();
