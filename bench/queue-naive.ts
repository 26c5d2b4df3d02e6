/**
 * What the queue loop is compared with: one receive, one decoded message, one verdict, one send per packet. A thread
 * that counts packets in `counts[0]` until `counts[1]` says stop.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { EAGAIN, EINTR, receive, send } from '../kernel/libc.ts';
import { u32 } from '../wire/bytes.ts';
import { decodeNfqueue, encodeVerdict } from '../wire/nfqueue.ts';
import { sourceTable, threadPath } from './queue-decider.ts';

export interface NaiveData {
  /** Gives up waiting now and then. */
  fd: number;
  queue: number;
  counts: Int32Array;
}

const { fd, queue, counts } = workerData as NaiveData;
const sources = sourceTable();
const buffer = new Uint8Array(70_000);
let turn = 0;
parentPort?.postMessage(threadPath());
while (Atomics.load(counts, 1) === 0) {
  const length = receive(fd, buffer, 0, [EAGAIN, EINTR]);
  if (length <= 0) continue;
  const decoded = decodeNfqueue(buffer.subarray(0, length));
  if (!decoded.ok) continue;
  const { id, payload } = decoded.value;
  const mark = sources.get(u32(payload, 12));
  turn ^= 1;
  send(
    fd,
    encodeVerdict(queue, id, mark === undefined ? 'drop' : 'accept', mark === undefined ? undefined : mark + turn),
  );
  Atomics.add(counts, 0, 1);
}
