/**
 * The election as the rest of the program sees it: what is wanted goes to its threads (election-worker.ts,
 * address-worker.ts), what has happened comes back. The thread neither waits for this one nor ends with it: it is told to.
 */

import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import * as libc from '../kernel/libc.ts';
import { addressBytes } from '../wire/address-text.ts';
import { buildAdvert } from '../wire/vrrp.ts';
import {
  type AddressWorkerData,
  BEAT,
  BUSY,
  type ElectionWorkerData,
  GIVE_UP,
  LEAVE,
  type Links,
  STOP,
  type ThreadReport,
} from './election-messages.ts';
import type { ElectionConfig } from './elections.ts';

export interface ElectionThreadOptions {
  links: Links;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
  onReport(report: ThreadReport): void;
  /** The thread has ended without close(): nobody keeps the addresses any more. */
  onEnd(error: Error): void;
}

export interface ElectionThread {
  /**
   * All that it shall take part in, in place of what was said before. What cannot be is refused here (RangeError, TypeError):
   * two that would be one, or what no advertisement can say. Resolves when it was taken in and whoever is active has all its
   * addresses; or when the thread has ended.
   */
  configure(configs: readonly ElectionConfig[]): Promise<void>;
  /** Whether this thread has work to do that may take it long without a break. */
  busy(yes: boolean): void;
  /** Gives up what it holds, and says so; or, with `leave`, goes without a word. No report follows. */
  close(leave?: boolean): Promise<void>;
}

/** How often this thread shows that it lives. */
const BEAT_MS = 200;

export function startElectionThread(options: ElectionThreadOptions): ElectionThread {
  const { links, namespace, onReport, onEnd } = options;
  const where = namespace === undefined ? {} : { namespace };
  const [control, addressControl] = [
    new Int32Array(new SharedArrayBuffer(12)),
    new Int32Array(new SharedArrayBuffer(8)),
  ];
  const [wake, addressWake] = [libc.eventfd(), libc.eventfd()];
  const { port1, port2 } = new MessageChannel();
  const between = new MessageChannel();
  const start = <T>(file: URL, workerData: T, transferList: MessagePort[]): Worker =>
    new Worker(file, { workerData, transferList, execArgv: [] });
  const addressWorker = start<AddressWorkerData>(
    new URL('./address-worker.js', import.meta.url),
    { wake: addressWake, asker: wake, port: between.port1, control: addressControl, ...where },
    [between.port1],
  );
  const addresses = { port: between.port2, wake: addressWake };
  const worker = start<ElectionWorkerData>(
    new URL('./election-worker.js', import.meta.url),
    { links, wake, port: port2, control, addresses, ...where },
    [port2, between.port2],
  );
  let closing = false;
  let failure: Error | undefined;

  const stop = (how: number): void => {
    Atomics.store(control, STOP, how);
    libc.signal(wake);
  };
  const stopAddresses = (): void => {
    Atomics.store(addressControl, STOP, 1);
    libc.signal(addressWake);
  };
  // A thread that sleeps in poll() cannot be terminated: process.exit() would wait for it for ever.
  const leave = (): void => {
    stop(LEAVE);
    stopAddresses();
  };
  process.on('exit', leave);
  const beat = setInterval(() => Atomics.add(control, BEAT, 1), BEAT_MS);
  beat.unref();
  let configured = 0;
  const waiting: { configured: number; resolve: () => void }[] = [];
  const settled = (upTo: number): void => {
    while (waiting[0] !== undefined && waiting[0].configured <= upTo) waiting.shift()?.resolve();
  };
  port1.on('message', (report: ThreadReport) => {
    if (report.kind === 'settled') settled(report.configured);
    if (!closing) onReport(report);
  });
  for (const one of [worker, addressWorker]) {
    one.on('error', (error) => {
      failure ??= error;
    });
  }
  // Without the other neither is of use. That of addresses ends last, and does before what it was asked for.
  worker.on('exit', stopAddresses);
  addressWorker.on('exit', () => stop(LEAVE));
  const exits = [worker, addressWorker].map((one) => new Promise<void>((resolve) => one.on('exit', () => resolve())));
  const exited = Promise.all(exits).then(() => {
    process.off('exit', leave);
    clearInterval(beat);
    port1.close();
    libc.close(wake);
    libc.close(addressWake);
    settled(Number.POSITIVE_INFINITY);
    if (closing) return;
    closing = true;
    onEnd(failure ?? new Error('the thread of the election has ended'));
  });

  return {
    configure(configs) {
      check(configs);
      if (closing) return Promise.resolve();
      port1.postMessage(configs);
      libc.signal(wake);
      const number = ++configured;
      return new Promise((resolve) => waiting.push({ configured: number, resolve }));
    },
    busy(yes) {
      Atomics.store(control, BUSY, yes ? 1 : 0);
    },
    close(leave = false) {
      if (!closing) {
        closing = true;
        stop(leave ? LEAVE : GIVE_UP);
      }
      return exited;
    },
  };
}

function check(configs: readonly ElectionConfig[]): void {
  const seen = new Set<string>();
  for (const { id, vrid, priority, intervalMs, channels, held } of configs) {
    for (const key of [id, ...channels.map(({ link, family }) => `VRID ${vrid} of IPv${family} on ${link}`)]) {
      if (seen.has(key)) throw new RangeError(`two elections: ${key}`);
      seen.add(key);
    }
    // The thread would end over what these throw.
    for (const { family, source, addresses } of channels) {
      buildAdvert({ family, source, vrid, priority, interval: intervalMs / 10, addresses });
    }
    for (const { address } of held) addressBytes(address);
  }
}
