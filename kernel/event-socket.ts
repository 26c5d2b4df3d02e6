/**
 * A stream of raw netlink messages from the kernel: conntrack, nftables or rtnetlink events, logged or held packets. A worker thread
 * (event-worker.ts) sleeps in poll() and posts batches; this side opens and configures the socket, so that a refusal
 * is an exception of `startEventSocket`, and sends on it directly (netlink carries a send out in the caller).
 * When the receiver is slow, batches are bounded: the worker stops reading, the kernel's buffer overruns, and
 * `onOverrun` says so. Decoding is the caller's (wire/).
 */

import { Worker } from 'node:worker_threads';
import { encodeNflogConfig } from '../wire/nflog.ts';
import { encodeQueueConfig } from '../wire/nfqueue.ts';
import { PLACE_GROUPS } from '../wire/rtnetlink.ts';
import type { EventWorkerData, EventWorkerReport } from './event-worker.ts';
import * as libc from './libc.ts';
import { NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket, NFTABLES_BIT, NFTABLES_GROUP } from './netlink-socket.ts';

export type ConntrackGroup = 'new' | 'update' | 'destroy';
/** NFNLGRP_CONNTRACK_*, as bits. */
const groupBits: Record<ConntrackGroup, number> = { new: 1, update: 2, destroy: 4 };

export type EventSource =
  | { kind: 'conntrack'; groups: readonly ConntrackGroup[] }
  | { kind: 'nftables' }
  | { kind: 'places' }
  | { kind: 'nflog'; group: number; copyRange?: number }
  | { kind: 'nfqueue'; queue: number; maxLength: number; copyRange: number };

export type EventSocketOptions = EventSource & {
  /** Views on one buffer that the batch owns: they may be kept, at the price of the whole batch. */
  onBatch(messages: Uint8Array[]): void;
  /** Messages were lost. For conntrack and places: dump the tables again; for nfqueue: packets were dropped. */
  onOverrun?(): void;
  /** The kernel refused a message that was sent, or (`fatal`) the stream has ended without `close()`. */
  onError?(error: Error, fatal: boolean): void;
  /** Milliseconds for which messages gather behind the first, so that many cost one waking of two threads; absent: none. */
  gatherMs?: number;
  /** Bytes of the kernel's receive buffer. */
  receiveBuffer?: number;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
};

export interface EventSocket {
  /** Sends netlink messages (verdicts) now. */
  send(bytes: Uint8Array): void;
  /** Of nftables: whether the kernel tells of changes. It does not even write down what nobody hears. */
  hear(on: boolean): void;
  /** Stops the worker and closes the descriptors; a second call does nothing. No callback follows it. */
  close(): Promise<void>;
}

export function startEventSocket(options: EventSocketOptions): EventSocket {
  const socket = NetlinkSocket.open({
    protocol: options.kind === 'places' ? NETLINK_ROUTE : NETLINK_NETFILTER,
    groups: groupsOf(options),
    receiveBuffer: options.receiveBuffer ?? 8 << 20,
    ...(options.namespace === undefined ? {} : { namespace: options.namespace }),
  });
  let wake: number | undefined;
  try {
    for (const message of configuration(options)) socket.request(`bind ${options.kind}`, message);
    wake = libc.eventfd();
    return run(socket, wake, options);
  } catch (error) {
    if (wake !== undefined) libc.close(wake);
    socket.close();
    throw error;
  }
}

function groupsOf(source: EventSource): number {
  if (source.kind === 'nftables') return NFTABLES_BIT;
  if (source.kind === 'places') return PLACE_GROUPS;
  return source.kind === 'conntrack' ? source.groups.reduce((bits, group) => bits | groupBits[group], 0) : 0;
}

function configuration(source: EventSource): Uint8Array[] {
  switch (source.kind) {
    case 'conntrack':
    case 'nftables':
    case 'places':
      return [];
    case 'nflog':
      return encodeNflogConfig(source.group, source.copyRange ?? 256, 1);
    case 'nfqueue':
      return encodeQueueConfig(source, 1);
  }
}

function run(socket: NetlinkSocket, wake: number, options: EventSocketOptions): EventSocket {
  const control = new Int32Array(new SharedArrayBuffer(8));
  const workerData: EventWorkerData = { fd: socket.fd, wake, gatherMs: options.gatherMs ?? 0, control };
  const worker = new Worker(new URL('./event-worker.js', import.meta.url), { workerData, execArgv: [] });
  let closing: Promise<void> | undefined;
  let failure: Error | undefined;

  const stop = () => {
    Atomics.store(control, 0, 1);
    libc.signal(wake);
  };
  // A thread that sleeps in poll() cannot be terminated: process.exit() would wait for it for ever.
  process.on('exit', stop);

  worker.on('message', (report: EventWorkerReport) => {
    if (report.kind === 'batch') {
      const whole = new Uint8Array(report.buffer);
      // Accounted for before the callback, so that a throwing callback does not stall the worker.
      const before = Atomics.sub(control, 1, whole.length);
      if (before >= report.limit && before - whole.length < report.limit) libc.signal(wake);
      if (closing !== undefined) return;
      const messages: Uint8Array[] = [];
      const { bounds } = report;
      for (let i = 0; i + 1 < bounds.length; i += 2) messages.push(whole.subarray(bounds[i], bounds[i + 1]));
      options.onBatch(messages);
    } else if (closing !== undefined) return;
    else if (report.kind === 'overrun') options.onOverrun?.();
    else options.onError?.(new libc.SystemError(`${options.kind} message`, report.errno), false);
  });
  worker.on('error', (error) => {
    failure = error;
  });
  const exited = new Promise<void>((resolve) => {
    worker.on('exit', () => {
      process.off('exit', stop);
      libc.close(wake);
      socket.close();
      resolve();
      if (closing === undefined) {
        closing = exited;
        options.onError?.(failure ?? new Error(`${options.kind} worker ended`), true);
      }
    });
  });

  return {
    send(bytes) {
      if (closing === undefined) socket.send(bytes);
    },
    hear(on) {
      if (closing === undefined) socket.hear(NFTABLES_GROUP, on);
    },
    close() {
      if (closing === undefined) {
        closing = exited;
        stop();
      }
      return closing;
    },
  };
}
