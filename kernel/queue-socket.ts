/**
 * A socket that holds one queue (nfnetlink_queue), and what the kernel says of all queues. The thread that opens it
 * need not be the one that reads it: a descriptor is the process's. While no socket holds a queue the kernel drops what
 * a rule sends there, unless the rule says bypass.
 */
import { readFileSync } from 'node:fs';
import { encodeQueueBind, encodeQueueUnbind, encodeVerdictBatch, type QueueSettings } from '../wire/nfqueue.ts';
import { KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';

export interface QueueSocketOptions extends QueueSettings {
  /** Bytes of messages that wait for the thread; what finds no room is dropped (or passes, with failOpen). */
  receiveBuffer: number;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** Ids are compared modulo 2³²: from the last one seen, so far ahead is still "later". */
const IDS_AHEAD = 0x3fffffff;

export class QueueSocket {
  readonly queue: number;
  readonly #socket: NetlinkSocket;
  #bound = true;

  private constructor(queue: number, socket: NetlinkSocket) {
    this.queue = queue;
    this.#socket = socket;
  }

  /** Throws KernelError: EBUSY if another socket holds the queue. Packets come from now on. */
  static open(options: QueueSocketOptions): QueueSocket {
    const { queue, receiveBuffer, namespace } = options;
    const where = namespace === undefined ? {} : { namespace };
    const op = `bind queue ${queue}`;
    const socket = NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      receiveBuffer,
      noEnobufs: true,
      ...where,
    });
    try {
      const { bind, show } = encodeQueueBind(options, 1);
      // Only between the two may something be read that is no packet: see encodeQueueBind.
      socket.request(op, bind);
      socket.send(show);
      return new QueueSocket(queue, socket);
    } catch (error) {
      socket.close();
      const holder = holderOf(queue, namespace);
      if (holder === undefined) throw KernelError.from(op, error);
      const who = `netlink port ${holder}, often its process's id`;
      throw new KernelError(op, 'EBUSY', `another socket holds it (${who}): is another gateway running?`, error);
    }
  }

  get fd(): number {
    return this.#socket.fd;
  }

  /**
   * Gives the queue back, without closing the descriptor, which a thread may still use. What waits is dropped; or passes
   * if `pass`, given the id of the last packet that the thread saw.
   */
  unbind(pass: { lastId: number } | undefined): void {
    if (!this.#bound) return;
    this.#bound = false;
    if (pass !== undefined) {
      this.#socket.send(encodeVerdictBatch(this.queue, (pass.lastId + IDS_AHEAD) >>> 0, 'accept'));
    }
    this.#socket.send(encodeQueueUnbind(this.queue));
  }

  /** When no thread uses it any more: another socket might get its number. */
  close(): void {
    this.#socket.close();
  }
}

export interface KernelQueue {
  queue: number;
  /** Netlink port of the socket that holds it. */
  port: number;
  /** Packets without a verdict yet. */
  waiting: number;
  /** Since it was bound: dropped because too many waited. */
  dropped: number;
  /** Dropped because the socket had no room for the message. */
  overruns: number;
}

/** Lines of /proc/net/netfilter/nfnetlink_queue: number, port, waiting, copy mode, copy range, two drops, last id, 1. */
export function parseQueues(text: string): KernelQueue[] {
  const queues: KernelQueue[] = [];
  for (const line of text.split('\n')) {
    const [queue, port, waiting, , , dropped, overruns] = line.trim().split(/\s+/).map(Number);
    if (line.trim() === '' || overruns === undefined || ![queue, port, waiting, dropped].every(Number.isInteger))
      continue;
    queues.push({ queue, port, waiting, dropped, overruns } as KernelQueue);
  }
  return queues;
}

/** Queues that somebody holds, as the kernel of this namespace has them. Empty also if it cannot be read. */
export function listQueues(namespace?: string): KernelQueue[] {
  // Below /proc/net is the process's namespace; below thread-self the one that this thread is in now.
  const read = () => readFileSync('/proc/thread-self/net/netfilter/nfnetlink_queue', 'utf8');
  try {
    return parseQueues(namespace === undefined ? read() : libc.withNamespace(namespace, read));
  } catch {
    return [];
  }
}

function holderOf(queue: number, namespace: string | undefined): number | undefined {
  return listQueues(namespace).find((held) => held.queue === queue)?.port;
}
