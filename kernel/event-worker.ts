/**
 * The thread of an event socket: sleeps in poll() over the netlink socket and an eventfd, reads what is there, cuts it
 * into netlink messages and transfers them in batches. No timers, no event loop: it returns from its module when told
 * to stop. Descriptors belong to the thread that started it.
 */

import { parentPort, workerData } from 'node:worker_threads';
import { messageBounds, messageErrno, messageType, NFNL_HEADER, NLMSG_DONE, NLMSG_ERROR } from '../wire/nlattr.ts';
import * as libc from './libc.ts';

export interface EventWorkerData {
  fd: number;
  wake: number;
  /** Milliseconds, as EventSocketOptions say. */
  gatherMs: number;
  /** [0]: 1 asks to stop. [1]: bytes posted and not yet taken in. */
  control: Int32Array;
}

export type EventWorkerReport =
  | { kind: 'batch'; buffer: ArrayBuffer; bounds: number[]; limit: number }
  | { kind: 'overrun' }
  | { kind: 'refused'; errno: number };

/** Largest datagram: the kernel builds none above 64 KiB for these subsystems. */
const DATAGRAM_MAX = 64 * 1024;
const BATCH_BYTES = 256 * 1024;
/** Who reads as much at once need not wait for more. */
const BUSY_BYTES = 64 * 1024;
/** Bytes that may wait for the receiver before this thread stops reading. */
const WAITING_MAX = 32 << 20;

function run(
  { fd, wake, gatherMs, control }: EventWorkerData,
  post: (report: EventWorkerReport, transfer: ArrayBuffer[]) => void,
) {
  const space = new Uint8Array(BATCH_BYTES + DATAGRAM_MAX);
  const expected = [libc.EAGAIN, libc.EINTR, libc.ENOBUFS];
  // The kernel says it once and goes on losing messages until the last that waits was read (NETLINK_S_CONGESTED of
  // net/netlink/af_netlink.c): whoever is told before looks at its tables too early.
  let overrun = false;
  let used = 0;
  while (Atomics.load(control, 0) === 0) {
    const full = Atomics.load(control, 1) >= WAITING_MAX;
    let [woken] = libc.poll(full ? [wake] : [wake, fd]);
    if (!woken && !full && gatherMs > 0 && used < BUSY_BYTES) [woken] = libc.poll([wake], gatherMs);
    if (woken) libc.drainEvent(wake);
    if (full || Atomics.load(control, 0) !== 0) continue;

    used = 0;
    let drained = false;
    const bounds: number[] = [];
    const refused = new Set<number>();
    while (used < BATCH_BYTES) {
      const length = libc.receive(fd, space.subarray(used, used + DATAGRAM_MAX), libc.MSG_DONTWAIT, expected);
      if (length === -libc.EINTR) continue;
      if (length === -libc.ENOBUFS) {
        overrun = true;
        continue;
      }
      if (length <= 0) {
        drained = true;
        break;
      }
      const inside = messageBounds(space, used, used + length);
      for (let i = 0; i + 1 < inside.length; i += 2) {
        const start = inside[i] as number;
        const end = inside[i + 1] as number;
        const message = space.subarray(start, end);
        const type = messageType(message);
        if (type === NLMSG_ERROR) refused.add(messageErrno(message) ?? 0);
        else if (type !== NLMSG_DONE && message.length >= NFNL_HEADER) bounds.push(start, end);
      }
      used += (length + 3) & ~3;
    }
    for (const errno of refused) {
      // An acknowledgement; or a verdict on a packet that is gone (its device went away): nobody's fault.
      if (errno !== 0 && errno !== libc.ENOENT) post({ kind: 'refused', errno }, []);
    }
    if (bounds.length > 0) {
      const buffer = space.slice(0, used).buffer;
      Atomics.add(control, 1, used);
      post({ kind: 'batch', buffer, bounds, limit: WAITING_MAX }, [buffer]);
    }
    if (overrun && drained) {
      overrun = false;
      post({ kind: 'overrun' }, []);
    }
  }
}

const port = parentPort;
if (port === null) throw new Error('event-worker.js is a worker thread');
run(workerData as EventWorkerData, (report, transfer) => port.postMessage(report, transfer));
