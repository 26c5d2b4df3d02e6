/**
 * A queue of keys, each worked on by one at a time: what is added while it waits is one piece of work, what is added
 * while it is worked on is done once more. Two lanes: what is urgent, and what may be late and has a pace of its own.
 * What failed waits alone, longer each time, or all wait when nobody would fare better.
 */
import { backOff } from './requests.ts';

export type Lane = 'urgent' | 'late';
/** `retry`: this key, or every one (for so long as the server asks for). */
export type Outcome = { done: true } | { retry: 'key' | 'all'; afterMs?: number | undefined };

export interface WorkQueueOptions {
  work(key: string): Promise<Outcome>;
  parallel: number;
  /** Of both lanes together, and of the late one. */
  perSecond: number;
  latePerSecond: number;
  retryMs?: undefined | { from: number; to: number };
}

class Bucket {
  readonly #rate: number;
  #tokens: number;
  #at = performance.now();

  constructor(perSecond: number) {
    this.#rate = perSecond;
    this.#tokens = perSecond;
  }

  /** Milliseconds until there is a token; 0: there is. */
  wait(): number {
    const now = performance.now();
    this.#tokens = Math.min(this.#rate, this.#tokens + ((now - this.#at) / 1000) * this.#rate);
    this.#at = now;
    return this.#tokens >= 1 ? 0 : ((1 - this.#tokens) / this.#rate) * 1000;
  }

  take(): void {
    this.#tokens--;
  }
}

export class WorkQueue {
  readonly #options: WorkQueueOptions;
  readonly #retryMs: { from: number; to: number };
  readonly #waiting = { urgent: new Set<string>(), late: new Set<string>() };
  readonly #busy = new Set<string>();
  /** Keys that failed: how often, and until when they rest, if they do. */
  readonly #failed = new Map<string, { times: number; until: number }>();
  readonly #resting = new Map<string, { lane: Lane; until: number }>();
  readonly #all: Bucket;
  readonly #late: Bucket;
  #paused = true;
  #closed = false;
  #allFailed = 0;
  #notBefore = 0;
  #timer: NodeJS.Timeout | undefined;
  #onIdle: (() => void) | undefined;

  /** Nothing is done before `resume`. */
  constructor(options: WorkQueueOptions) {
    this.#options = options;
    this.#retryMs = options.retryMs ?? { from: 500, to: 60_000 };
    this.#all = new Bucket(options.perSecond);
    this.#late = new Bucket(options.latePerSecond);
  }

  add(key: string, lane: Lane): void {
    const failed = this.#failed.get(key);
    const until = failed?.until ?? 0;
    if (until > performance.now()) {
      const before = this.#resting.get(key)?.lane;
      this.#resting.set(key, { lane: before === 'urgent' ? before : lane, until });
    } else if (lane === 'urgent') {
      this.#waiting.late.delete(key);
      this.#waiting.urgent.add(key);
    } else if (!this.#waiting.urgent.has(key)) this.#waiting.late.add(key);
    this.#pump();
  }

  forget(key: string): void {
    this.#waiting.urgent.delete(key);
    this.#waiting.late.delete(key);
    this.#resting.delete(key);
    this.#failed.delete(key);
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#pump();
  }

  /** What is urgent is done, within so many milliseconds; what is late is left. */
  async close(withinMs: number): Promise<void> {
    this.#waiting.late.clear();
    if (!this.#paused && withinMs > 0 && !this.#idle()) {
      const timeout = AbortSignal.timeout(withinMs);
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
        timeout.addEventListener('abort', () => resolve());
      });
    }
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #idle(): boolean {
    const resting = [...this.#resting.values()].some(({ lane }) => lane === 'urgent');
    return this.#waiting.urgent.size === 0 && this.#busy.size === 0 && !resting;
  }

  #pump(): void {
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const now = performance.now();
    const waits: number[] = [];
    for (const [key, { lane, until }] of this.#resting) {
      if (until > now) {
        waits.push(until - now);
        continue;
      }
      this.#resting.delete(key);
      this.#waiting[lane].add(key);
    }
    while (!this.#paused && this.#busy.size < this.#options.parallel) {
      const wait = Math.max(this.#notBefore - performance.now(), this.#all.wait());
      const [key, lane] = this.#next();
      if (key === undefined || lane === undefined) break;
      const late = lane === 'late' ? Math.max(wait, this.#late.wait()) : wait;
      if (late > 0) {
        waits.push(late);
        break;
      }
      this.#waiting[lane].delete(key);
      this.#all.take();
      if (lane === 'late') this.#late.take();
      void this.#run(key, lane);
    }
    const soonest = waits.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
    if (soonest < Number.POSITIVE_INFINITY) this.#timer = setTimeout(() => this.#pump(), Math.ceil(soonest));
    if (this.#onIdle !== undefined && this.#idle()) this.#onIdle();
  }

  #next(): [string, Lane] | [] {
    for (const lane of ['urgent', 'late'] as const) {
      for (const key of this.#waiting[lane]) if (!this.#busy.has(key)) return [key, lane];
    }
    return [];
  }

  async #run(key: string, lane: Lane): Promise<void> {
    this.#busy.add(key);
    // Whoever has work that throws has it tried again.
    const outcome = await this.#options.work(key).catch((): Outcome => ({ retry: 'key' }));
    this.#busy.delete(key);
    const { from, to } = this.#retryMs;
    const now = performance.now();
    if ('done' in outcome) {
      this.#failed.delete(key);
      this.#allFailed = 0;
    } else if (outcome.retry === 'all') {
      // Several under way fail together.
      if (this.#notBefore <= now) {
        this.#allFailed++;
        this.#notBefore = now + (outcome.afterMs ?? backOff(this.#allFailed, from, to / 6));
      }
      this.#waiting[lane].add(key);
    } else {
      const times = (this.#failed.get(key)?.times ?? 0) + 1;
      const until = now + (outcome.afterMs ?? backOff(times, from, to));
      this.#failed.set(key, { times, until });
      const again = this.#waiting.urgent.delete(key) ? 'urgent' : lane;
      this.#waiting.late.delete(key);
      this.#resting.set(key, { lane: again, until });
    }
    this.#pump();
  }
}
