/**
 * Leader election: the candidate's rules (candidate.ts) with a clock, requests and timers. Who leads asks `isLeader()`
 * before it acts: it is false from the moment on at which the lease could be another's, also in a process that just woke
 * and has not heard of it. A release at the end lets the next one lead at its next look.
 */
import { uptime } from 'node:os';
import type { KubeConfig } from '@kubernetes/client-node';
import type { Logger } from '../../daemon/log.ts';
import { Candidate, defaultLeaseTimes, type LeaseTimes } from './candidate.ts';
import { type Answer, type Api, apiOf, type Json } from './requests.ts';

const RELEASE_TIMEOUT_MS = 1_500;

export interface LeaseOptions {
  config: KubeConfig;
  name: string;
  namespace: string;
  /** Another for each process: host name and a random part. */
  identity: string;
  log: Logger;
  onStarted(): void;
  /** What was begun is to be ended; not called by `close`. */
  onStopped(): void;
  /** Milliseconds of a clock that nobody sets, and that goes on while the machine sleeps (default: such a one). */
  now?: () => number;
  times?: LeaseTimes;
  /** Default: one of its own for `config`. */
  api?: Api;
}

export interface Lease {
  isLeader(): boolean;
  /** Who holds it, as far as this process knows. */
  holder(): string | undefined;
  /** Leads no more, and gives the lease back: whatever it protects is ended before. */
  close(): Promise<void>;
}

/** The monotonic clock, and the time since boot, which counts what a machine slept. */
function bootClock(): () => number {
  const [fine, coarse] = [performance.now(), uptime() * 1000];
  return () => Math.max(performance.now() - fine, uptime() * 1000 - coarse);
}

export function startLease(options: LeaseOptions): Lease {
  const { name, namespace, identity, log, now = bootClock(), times = defaultLeaseTimes } = options;
  const api = options.api ?? apiOf(options.config);
  const candidate = new Candidate({ namespace, name, identity, times, wallClock: Date.now, random: Math.random });
  const place = `/apis/coordination.k8s.io/v1/namespaces/${encodeURIComponent(namespace)}/leases`;
  const path = `${place}/${encodeURIComponent(name)}`;
  const stop = new AbortController();
  let leading = false;
  let holder: string | undefined;
  let failing = false;
  let deadline: NodeJS.Timeout | undefined;

  /** Tells what changed, and comes again when there is something to tell by then. */
  function look(): void {
    clearTimeout(deadline);
    if (stop.signal.aborted) return;
    const leads = candidate.isLeader(now());
    if (leads) deadline = setTimeout(look, candidate.leadsUntil - now() + 1).unref();
    if (candidate.holder !== holder) {
      holder = candidate.holder;
      if (holder !== identity) log.info({ lease: name, holder: holder ?? 'nobody' }, 'the lease is held');
    }
    if (leads === leading) return;
    leading = leads;
    log.info({ lease: name, identity }, leads ? 'leads' : 'leads no more');
    try {
      if (leads) options.onStarted();
      else options.onStopped();
    } catch (error) {
      log.error({ reason: String(error) }, leads ? 'cannot begin to lead' : 'cannot end to lead');
    }
  }

  const write = (create: boolean, body: Json, timeoutMs: number): Promise<Answer> =>
    create
      ? api.ask({ method: 'POST', path: place, body, timeoutMs })
      : api.ask({ method: 'PUT', path, body, timeoutMs });

  async function run(): Promise<void> {
    while (!stop.signal.aborted) {
      const sentAt = now();
      const step = candidate.next(sentAt);
      if (step.do === 'wait') {
        await pause(step.until - sentAt, stop.signal);
        continue;
      }
      // Twice within the time that is left to a leader.
      const timeoutMs = times.renewMs / 2;
      const asked =
        step.do === 'read' ? api.ask({ method: 'GET', path, timeoutMs }) : write(step.create, step.lease, timeoutMs);
      const answer = await asked;
      candidate.answered(step, sentAt, now(), answer);
      // 404 and 409 are part of it.
      const failed = answer.status === 0 || answer.status >= 500 || [401, 403, 422, 429].includes(answer.status);
      if (failed && !failing) log.warn({ lease: name, code: answer.status, reason: answer.message }, 'no lease');
      failing = failed || (failing && step.do === 'read');
      look();
    }
  }

  async function release(): Promise<void> {
    const lease = candidate.resign();
    if (lease === undefined) return;
    const { status, message } = await write(false, lease, RELEASE_TIMEOUT_MS);
    if (status !== 200) log.warn({ lease: name, code: status, reason: message }, 'cannot give the lease back');
  }

  const running = run();
  return {
    isLeader: () => !stop.signal.aborted && candidate.isLeader(now()),
    holder: () => candidate.holder,
    async close() {
      if (stop.signal.aborted) return;
      stop.abort();
      clearTimeout(deadline);
      // At most one request, which has its time: its version is needed to give the lease back.
      await running;
      await release();
      if (options.api === undefined) api.close();
    },
  };
}

/** Ends early when there is nothing to wait for any more. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, Math.max(1, Math.ceil(ms)));
    signal.addEventListener('abort', end);
  });
}
