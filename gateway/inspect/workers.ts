/**
 * Keeps one thread at each of N queues: starts it, notices that it died, hangs or has gone deaf, and puts another in its
 * place. The transport of inspection: what decides is a module that the threads load (worker.ts).
 *
 * Plain threads and no pool: each has one task that never ends, so a pool's queue of tasks would only stand between a
 * thread's death and whoever has to know of it (and piscina's default way to wait stops the thread's event loop).
 *
 * This side opens and closes the sockets: that a queue is taken is an exception here, and what a dead thread leaves
 * open is known. Between two threads the new socket is bound before the new thread runs, so packets wait for it. A queue
 * that keeps failing is left alone for a while: then nobody holds it, and the kernel drops, or with `Accept` and a rule
 * that says bypass lets pass.
 */
import { listQueues } from '../../kernel/queue-socket.ts';
import {
  defaultLimits,
  type InspectionOptions,
  type QueueStatus,
  SupervisedQueue,
  TICK_MS,
} from './supervised-queue.ts';

export {
  defaultLimits,
  type InspectionLimits,
  type InspectionOptions,
  type QueueState,
  type QueueStatus,
} from './supervised-queue.ts';

export interface Inspection {
  /** To the decider of one queue, or of all; false: no thread is there to read it. A later thread begins with `data()`. */
  post(value: unknown, queue?: number): boolean;
  status(): QueueStatus[];
  /** Every queue was served once, or its first thread has ended. */
  begun: Promise<unknown>;
  /** Stops the threads and gives the queues back. The rule that feeds them is the caller's. */
  close(): Promise<void>;
}

/** Throws KernelError, EBUSY if somebody else holds one of the queues; then none is held. */
export function startInspection(options: InspectionOptions): Inspection {
  const { first, count } = options.queues;
  const limits = { ...defaultLimits, ...options.limits };
  const queues: SupervisedQueue[] = [];
  const stop = () => {
    for (const queue of queues) queue.stop();
  };
  try {
    for (let at = 0; at < count; at++) queues.push(new SupervisedQueue(first + at, options, limits));
  } catch (error) {
    for (const queue of queues) queue.abandon();
    throw error;
  }
  const ticking = setInterval(() => {
    const kernel = listQueues(options.namespace);
    for (const queue of queues) queue.tick(kernel);
  }, TICK_MS);
  // process.exit() waits for threads; one that polls would not hear of it.
  process.on('exit', stop);

  return {
    post(value, queue) {
      const to = queues.filter(({ number }) => queue === undefined || queue === number);
      return to.map((each) => each.post(value)).includes(true);
    },
    status() {
      const kernel = listQueues(options.namespace);
      return queues.map((queue) => queue.status(kernel));
    },
    begun: Promise.all(queues.map((queue) => queue.begun)),
    async close() {
      clearInterval(ticking);
      await Promise.all(queues.map((queue) => queue.close()));
      process.off('exit', stop);
    },
  };
}
