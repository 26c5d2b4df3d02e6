/**
 * The thread of the election: hears advertisements, keeps the timers, takes over and gives up (elections.ts), all on its
 * own, so that neither a collection of garbage nor a plan that is made delays it. No event loop, no timers of Node's: it
 * sleeps in poll() until a frame comes or something is due. Addresses are another thread's (address-worker.ts).
 *
 * Whether the rest of the program lives is told by a count that the main thread increments; time in which this thread
 * did not run itself is no silence of that one.
 */

import { receiveMessageOnPort, workerData } from 'node:worker_threads';
import * as libc from '../kernel/libc.ts';
import type { LinkAddress } from '../wire/rtaddress.ts';
import { parseAdvertFrame } from '../wire/vrrp.ts';
import {
  type AddressAnswer,
  type AddressRequest,
  BEAT,
  BUSY,
  type ElectionCounts,
  type ElectionWorkerData,
  LEAVE,
  STOP,
  type ThreadReport,
} from './election-messages.ts';
import { type LinkSocket, openLink } from './election-socket.ts';
import { type ElectionConfig, Elections } from './elections.ts';
import type { HeldAddress } from './holding.ts';

/** The main thread is taken for hung when its count has not moved for so long. */
export const TRUST_MS = 1_000;
/** And of work that may take it long (a plan for very many pods, which all gateways have at once). */
export const BUSY_MS = 20_000;
const CHECK_MS = 1_000;
/** Longest sleep. */
const SLEEP_MS = 200;
/** Frames of one link, before timers have their turn. */
const FRAMES_MAX = 256;
const NICE = -15;
const THREAD_NAME = 'election';

function run({ links, namespace, wake, port, control, addresses }: ElectionWorkerData): void {
  const now = (): number => performance.now();
  const epoch = (time: number): number => performance.timeOrigin + time;
  const post = (report: ThreadReport): void => port.postMessage(report);
  const open = new Map<string, LinkSocket>();
  const counts: ElectionCounts = { sent: 0, unsent: {}, heard: 0, refused: {}, late: 0 };
  let counted = 0;
  const told = new Map<string, string>();

  /** What the thread of addresses has not answered yet. */
  const asked: ((errors: string[]) => void)[] = [];
  const ask = (
    op: 'add' | 'remove',
    held: readonly HeldAddress[],
    done: (errors: string[]) => void,
    valid?: number,
  ) => {
    const there = held.flatMap(({ link, address, prefixLength }): LinkAddress[] => {
      const index = open.get(link)?.index;
      return index === undefined ? [] : [{ index, address, prefixLength }];
    });
    const absent = op === 'add' && there.length < held.length ? ['ENODEV'] : [];
    const request: AddressRequest = { op, addresses: there, ...(valid === undefined ? {} : { validSeconds: valid }) };
    addresses.port.postMessage(request);
    libc.signal(addresses.wake);
    asked.push((errors) => done([...errors, ...absent]));
  };
  const hearAnswers = (): void => {
    for (let next = receiveMessageOnPort(addresses.port); next; next = receiveMessageOnPort(addresses.port)) {
      asked.shift()?.(next.message as AddressAnswer);
    }
  };

  const elections = new Elections({
    now,
    mac: (link) => open.get(link)?.mac,
    send(link, frame) {
      const error = open.get(link)?.send(frame);
      if (error === undefined) counts.sent++;
      else counts.unsent[error] = (counts.unsent[error] ?? 0) + 1;
    },
    add: (held, validSeconds, done) => ask('add', held, done, validSeconds),
    remove: (held, done) => ask('remove', held, done),
    idle: () => asked.length === 0,
    report(report) {
      if (report.kind === 'fault') post(report);
      else if (report.kind === 'held') post({ ...report, at: epoch(report.at) });
      else {
        const { at, heardAt } = report;
        post({ ...report, at: epoch(at), heardAt: heardAt === undefined ? undefined : epoch(heardAt) });
      }
    },
  });

  const openAbsent = (): boolean => {
    let changed = false;
    for (const [link, device] of Object.entries(links)) {
      const socket = open.get(link);
      if (socket?.isSame()) continue;
      changed = true;
      socket?.close();
      open.delete(link);
      let error: string | undefined;
      try {
        open.set(link, openLink(device, namespace));
      } catch (caught) {
        error = String((caught as libc.SystemError).code ?? caught);
      }
      const state = error ?? 'open';
      if (told.get(link) === state && socket === undefined) continue;
      told.set(link, state);
      post({ kind: 'link', link, ...(error === undefined ? {} : { error }) });
    }
    return changed;
  };
  const pollSet = (): libc.PollSet => new libc.PollSet([wake, ...[...open.values()].flatMap(({ fds }) => fds)]);

  openAbsent();
  let poll = pollSet();
  post({ kind: 'ready' });

  const hearLinks = (): void => {
    for (const [link, socket] of open) {
      for (let frames = 0; frames < FRAMES_MAX; frames++) {
        const frame = socket.take();
        if (frame === undefined) break;
        const advert = parseAdvertFrame(frame);
        const reason = !advert.ok ? advert.reason : elections.hear(link, advert.value) ? undefined : 'other-router';
        if (reason === undefined) counts.heard++;
        else counts.refused[reason] = (counts.refused[reason] ?? 0) + 1;
      }
    }
  };

  let [beat, silent, trusted] = [Atomics.load(control, BEAT), 0, true];
  const checkTrust = (passed: number): void => {
    const count = Atomics.load(control, BEAT);
    silent = count === beat ? silent + passed : 0;
    beat = count;
    const limit = Atomics.load(control, BUSY) === 0 ? TRUST_MS : BUSY_MS;
    if (trusted === silent < limit) return;
    trusted = !trusted;
    elections.trust(trusted);
    post({ kind: 'trust', trusted });
  };

  let cut: ReadonlySet<string> = new Set();
  const checkCarriers = (): void => {
    const now = new Set<string>();
    for (const link of Object.keys(links)) if (!open.get(link)?.isRunning()) now.add(link);
    const changed = Object.keys(links).filter((link) => now.has(link) !== cut.has(link));
    if (changed.length === 0) return;
    cut = now;
    elections.cut(cut);
    for (const link of changed) post({ kind: 'carrier', link, up: !cut.has(link) });
  };

  let [configured, settled] = [0, 0];
  let before = now();
  let checkAt = before + CHECK_MS;
  const turn = (): void => {
    const due = Math.min(elections.due, checkAt);
    poll.wait(Math.min(SLEEP_MS, Math.max(0, Math.ceil(due - now()))));
    if (poll.ready(0)) libc.drainEvent(wake);
    if (Atomics.load(control, STOP) !== 0) return;
    // First what was said while this thread slept or was stopped: it tells whether another is active by now.
    hearLinks();
    hearAnswers();
    for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) {
      elections.configure(next.message as ElectionConfig[]);
      configured++;
    }
    checkCarriers();
    const time = now();
    counts.late = Math.max(counts.late, time - elections.timerDue);
    elections.tick();
    if (settled < configured && elections.settled) {
      settled = configured;
      post({ kind: 'settled', configured });
    }
    checkTrust(Math.min(time - before, SLEEP_MS));
    before = time;
    if (time < checkAt) return;
    checkAt = time + CHECK_MS;
    if (openAbsent()) {
      poll = pollSet();
      elections.rebuild();
    }
    const rare = [...Object.values(counts.refused), ...Object.values(counts.unsent)];
    const all = rare.reduce((sum, count) => sum + count, counts.sent + counts.heard);
    if (all !== counted) post({ kind: 'counts', counts });
    counted = all;
    counts.late = 0;
  };
  try {
    while (Atomics.load(control, STOP) === 0) turn();
    elections.close(Atomics.load(control, STOP) === LEAVE);
  } finally {
    for (const socket of open.values()) socket.close();
    addresses.port.close();
    port.close();
  }
}

libc.setThreadName(THREAD_NAME);
libc.setThreadNice(NICE);
run(workerData as ElectionWorkerData);
