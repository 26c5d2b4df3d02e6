/**
 * One resource of an API server, listed and then watched for ever (Kubernetes API concepts: pages, resource versions,
 * bookmarks). What was read stays in force whatever fails: a list counts only when it is whole, a watch is resumed where
 * it ended, and what the server no longer keeps (410) is listed again. Each failure has a code (failure.ts) and a pause
 * that grows with the number of them. Left out: what objects mean, and what is kept of them (objects-in-force.ts).
 */
import { setTimeout as pause } from 'node:timers/promises';
import { isRecord } from '../../api/plan-delta.ts';
import type { ApiServer, Bounds, Query } from './api-server.ts';
import { ApiFailure, type FailureCode } from './failure.ts';

export interface Tuning {
  /** Objects a page. */
  pageSize: number;
  /** A watch is asked to end after so long, half as much again at most: one that has not by then is half-open. */
  watchMs: number;
  graceMs: number;
  /** Until an answer begins, and between two parts of it. */
  idleMs: number;
  /** For one page. */
  pageMs: number;
  /** The first pause after a failure; each one after it is twice as long, up to the greatest. */
  backoffMs: number;
  /** The greatest if the server is away or starts: that is not helped by long pauses, and much waits for it. */
  maxAwayMs: number;
  maxBackoffMs: number;
  maxObjects: number;
  maxPageBytes: number;
  maxEventBytes: number;
}

export const defaultTuning: Tuning = {
  pageSize: 500,
  watchMs: 30_000,
  graceMs: 10_000,
  idleMs: 30_000,
  pageMs: 120_000,
  backoffMs: 250,
  maxAwayMs: 5_000,
  maxBackoffMs: 30_000,
  maxObjects: 1_000_000,
  maxPageBytes: 256 * 1024 * 1024,
  // etcd's limit is 1.5 MiB an object, in a form that is at most a few times shorter than JSON.
  maxEventBytes: 16 * 1024 * 1024,
};

/** What an informer tells of the objects that it reads. */
export interface Reader<Reading> {
  /** One object, not in force yet; undefined: it does not say which object it is. */
  read(item: Record<string, unknown>): { key: string; reading: Reading } | undefined;
  /** A whole list: what is not in it is gone. */
  replace(readings: ReadonlyMap<string, Reading>): void;
  put(key: string, reading: Reading): void;
  remove(key: string): void;
}

export interface InformerOptions<Reading> {
  api: ApiServer;
  /** The same resource in several versions, the best first: the first that the server has. */
  paths: readonly string[];
  query?: Query;
  reader: Reader<Reading>;
  tuning: Tuning;
  /** Listed every so often instead of watched; asked before each pause. */
  pollMs?: (() => number) | undefined;
  onList(): void;
  onEvent(): void;
  /** `usual`: nothing to worry about if it passes, as it should. */
  onFailure(failure: ApiFailure, attempt: number, usual: boolean): void;
  /** It is read again. */
  onRecovery(): void;
}

/** Failures that may pass by themselves, and how often the same page is asked for after one. */
const passes: ReadonlySet<FailureCode> = new Set(['Unreachable', 'TooManyRequests', 'ServerError', 'Silent']);
const PAGE_TRIES = 3;
/** Watches in a row that told nothing at all, not even a bookmark; or that ended at once. */
const MAX_UNHEARD = 5;
/** Failures of a watch in a row, of a server that answers: perhaps it cannot go on from there. */
const MAX_STUCK = 3;
const MAX_PAGE_SIZE = 10_000;
const MAX_CONTINUE = 16_384;
/** What a version looks like that can be compared with another. */
const NUMBER = /^[0-9]{1,20}$/;

export class Informer<Reading> {
  readonly #options: InformerOptions<Reading>;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  #path = 0;
  /** Where a watch goes on; undefined: list first. */
  #version: string | undefined;
  #pageSize: number;
  /** Of one code in a row; of any since the last progress, if the server answered. */
  #failures = 0;
  #answered = 0;
  #lastCode: FailureCode | undefined;
  #unheard = 0;
  /** The server was away, and may have come back with another history. */
  #doubtful = false;
  #listed = false;
  /** On the clock of performance.now(): when it was last known that nothing is missing. */
  #heardAt = performance.now();
  #failure: ApiFailure | undefined;

  constructor(options: InformerOptions<Reading>) {
    this.#options = options;
    this.#pageSize = options.tuning.pageSize;
    this.#running = this.#run();
  }

  /** Read once at least. */
  get listed(): boolean {
    return this.#listed;
  }

  get polled(): boolean {
    return this.#options.pollMs !== undefined;
  }

  /** Why it is not read at present. */
  get failure(): ApiFailure | undefined {
    return this.#failure;
  }

  /** Milliseconds since it was known to be current. */
  get staleMs(): number {
    return performance.now() - this.#heardAt;
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    const { pollMs } = this.#options;
    while (!signal.aborted) {
      try {
        if (pollMs !== undefined) {
          await this.#list();
          await pause(spread(pollMs()), undefined, { signal });
        } else if (this.#version === undefined) await this.#list();
        else await this.#watch(this.#version);
      } catch (error) {
        if (signal.aborted) return;
        await this.#failed(ApiFailure.from(error)).catch(() => undefined);
      }
    }
  }

  async #failed(failure: ApiFailure): Promise<void> {
    const { code } = failure;
    const { paths, onFailure } = this.#options;
    this.#failures = code === this.#lastCode ? this.#failures + 1 : 1;
    this.#lastCode = code;
    if (code !== 'Unreachable') this.#answered++;
    if (code === 'Unreachable' || code === 'ServerError' || code === 'Silent') this.#doubtful = true;
    const watching = this.#version !== undefined;
    if (code === 'NotFound') this.#path = (this.#path + 1) % paths.length;
    if (watching && mustList(code, this.#answered)) this.#version = undefined;
    // What is usual while a server goes on is told only when it does not pass.
    const usual = watching && (code === 'Expired' || code === 'Silent') && this.#failures === 1;
    if (!usual) this.#failure = failure;
    onFailure(failure, this.#failures, usual);
    // So is the other version tried.
    const atOnce = usual || (code === 'NotFound' && this.#failures < paths.length);
    // Failures of many kinds in turn are no better than one.
    await this.#pause(failure, atOnce ? 0 : Math.max(this.#failures, this.#answered >> 2));
  }

  /** After so many failures in a row; 0: at once. */
  async #pause({ code, retryAfterMs }: ApiFailure, failures: number): Promise<void> {
    const { backoffMs, maxBackoffMs, maxAwayMs } = this.#options.tuning;
    const max = code === 'Unreachable' || code === 'ServerError' ? maxAwayMs : maxBackoffMs;
    const wait = failures === 0 ? 0 : Math.min(max, backoffMs * 2 ** Math.min(failures - 1, 16));
    // Whoever says how long is obeyed, and not met by all at the same moment.
    const ms = retryAfterMs === undefined ? spread(wait) : retryAfterMs * (1 + 0.1 * Math.random());
    await pause(ms, undefined, { signal: this.#stop.signal });
  }

  #progress(): void {
    this.#failures = 0;
    this.#answered = 0;
    this.#lastCode = undefined;
  }

  async #list(): Promise<void> {
    const { api, paths, query, reader, tuning } = this.#options;
    const readings = new Map<string, Reading>();
    let next = '';
    let version = '';
    let empty = 0;
    let again = 0;
    do {
      const asked = { ...query, limit: String(this.#pageSize), ...(next === '' ? {} : { continue: next }) };
      let list: unknown;
      try {
        list = await api.get(paths[this.#path] ?? '', asked, this.#pageBounds());
      } catch (error) {
        const failure = ApiFailure.from(error);
        const { code } = failure;
        // What was read so far is not read again because of one page.
        if (next !== '' && passes.has(code) && again < PAGE_TRIES && !this.#stop.signal.aborted) {
          await this.#pause(failure, ++again);
          continue;
        }
        // Reading all took longer than the server keeps a version: fewer, larger pages. Or a page was too large.
        if (code === 'Expired' && next !== '') this.#pageSize = Math.min(2 * this.#pageSize, MAX_PAGE_SIZE);
        if (code === 'TooLarge') this.#pageSize = Math.max(1, this.#pageSize >> 1);
        throw error;
      }
      again = 0;
      const page = pageOf(list);
      for (const item of page.items) {
        const named = isRecord(item) ? reader.read(item) : undefined;
        if (named === undefined) throw new ApiFailure('BadAnswer', 'an item without a name');
        readings.set(named.key, named.reading);
      }
      empty = page.items.length === 0 ? empty + 1 : 0;
      if (readings.size > tuning.maxObjects || empty > 100) {
        throw new ApiFailure('TooLarge', `more than ${tuning.maxObjects} objects, or pages without end`);
      }
      ({ next, version } = page);
    } while (next !== '');
    // What nobody asks for any more must not come back.
    this.#stop.signal.throwIfAborted();
    this.#version = version;
    this.#unheard = 0;
    this.#doubtful = false;
    this.#listed = true;
    // Failures are counted until a watch goes well: else one that never does would list without a pause.
    if (this.#options.pollMs !== undefined) this.#progress();
    this.#heard();
    reader.replace(readings);
    this.#options.onList();
  }

  #pageBounds(): Bounds {
    const { idleMs, pageMs: totalMs, maxPageBytes: maxBytes } = this.#options.tuning;
    return { signal: this.#stop.signal, idleMs, totalMs, maxBytes };
  }

  /**
   * After a restore of etcd versions begin anew below ours. A watch would be silent until they have caught up, and then go
   * on as if nothing had been before.
   */
  async #doubt(version: string): Promise<void> {
    const { api, paths, query } = this.#options;
    const asked = { ...query, limit: '1' };
    const { version: now } = pageOf(await api.get(paths[this.#path] ?? '', asked, this.#pageBounds()));
    if (isOlder(now, version)) throw new ApiFailure('Expired', `version ${now} after ${version}`);
    this.#doubtful = false;
  }

  async #watch(version: string): Promise<void> {
    const { api, paths, query, tuning } = this.#options;
    if (this.#doubtful) await this.#doubt(version);
    const watchMs = tuning.watchMs * (1 + 0.5 * Math.random());
    const began = performance.now();
    let heard = false;
    const asked = {
      ...query,
      watch: 'true',
      allowWatchBookmarks: 'true',
      resourceVersion: version,
      timeoutSeconds: String(Math.max(1, Math.round(watchMs / 1000))),
    };
    const bounds = {
      signal: this.#stop.signal,
      idleMs: tuning.idleMs,
      totalMs: watchMs + tuning.graceMs,
      maxBytes: tuning.maxEventBytes,
    };
    try {
      await api.lines(
        paths[this.#path] ?? '',
        asked,
        bounds,
        () => this.#heard(),
        (line) => {
          this.#stop.signal.throwIfAborted();
          this.#event(line);
          heard = true;
          this.#progress();
          this.#heard();
        },
      );
    } finally {
      this.#unheard = heard ? 0 : this.#unheard + 1;
      // Whatever it is that the server waits for, a list tells what there is.
      if (this.#unheard >= MAX_UNHEARD) {
        this.#version = undefined;
        this.#unheard = 0;
      }
    }
    if (!heard && performance.now() - began < Math.min(1000, tuning.watchMs / 2)) {
      throw new ApiFailure('BadAnswer', 'a watch that ended at once');
    }
    this.#progress();
    this.#heard();
  }

  #event(line: string): void {
    const { reader, onEvent } = this.#options;
    const event = parse(line);
    if (!isRecord(event) || !isRecord(event.object))
      throw new ApiFailure('BadAnswer', `no event: ${line.slice(0, 60)}`);
    const { type, object } = event;
    if (type === 'ERROR') {
      const code = typeof object.code === 'number' ? object.code : 500;
      throw ApiFailure.ofStatus(code, object);
    }
    const version = versionOf(object);
    if (version === '') throw new ApiFailure('BadAnswer', 'an event without a version');
    if (type !== 'DELETED' && isOlder(version, this.#version)) {
      // Another history than ours.
      throw new ApiFailure('Expired', `version ${version} after ${this.#version}`);
    }
    if (type === 'ADDED' || type === 'MODIFIED' || type === 'DELETED') {
      const named = reader.read(object);
      if (named === undefined) throw new ApiFailure('BadAnswer', 'an event of an object without a name');
      if (type === 'DELETED') reader.remove(named.key);
      else reader.put(named.key, named.reading);
      onEvent();
    } else if (type !== 'BOOKMARK') throw new ApiFailure('BadAnswer', `an event of type ${String(type).slice(0, 60)}`);
    this.#version = version;
  }

  /** What is known of the resource is what the server has, as far as anybody can tell. */
  #heard(): void {
    this.#heardAt = performance.now();
    if (this.#failure === undefined) return;
    this.#failure = undefined;
    this.#options.onRecovery();
  }
}

/** Whether a watch that failed cannot be resumed. */
function mustList(code: FailureCode, failures: number): boolean {
  switch (code) {
    case 'Expired':
    case 'Refused':
    case 'NotFound':
      return true;
    case 'BadAnswer':
    case 'TooLarge':
    case 'ServerError':
      return failures % MAX_STUCK === 0;
    default:
      return false;
  }
}

function pageOf(list: unknown): { items: unknown[]; next: string; version: string } {
  if (!isRecord(list) || !isRecord(list.metadata)) throw new ApiFailure('BadAnswer', 'an answer that is no list');
  const { items } = list;
  // Go writes an empty list as null.
  if (!Array.isArray(items) && items !== null) throw new ApiFailure('BadAnswer', 'a list without items');
  const next = list.metadata.continue ?? '';
  const version = versionOf(list);
  if (typeof next !== 'string' || next.length > MAX_CONTINUE || version === '') {
    throw new ApiFailure('BadAnswer', 'a list without a version');
  }
  return { items: items ?? [], next, version };
}

/** '': it has none. */
function versionOf({ metadata }: Record<string, unknown>): string {
  const version = isRecord(metadata) ? metadata.resourceVersion : undefined;
  return typeof version === 'string' && version.length <= 128 ? version : '';
}

const isOlder = (version: string, than: string | undefined): boolean =>
  than !== undefined && NUMBER.test(version) && NUMBER.test(than) && BigInt(version) < BigInt(than);

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

/** Half as long to half as long again: so that many do not meet. */
const spread = (ms: number): number => ms * (0.5 + Math.random());
