/**
 * The Kubernetes source: what a directory source gives, of an API server. Every resource has an informer; what they read
 * is one snapshot, given out when it has been quiet for a moment. Nothing that fails takes away what is in force: a
 * resource that cannot be read is alarmed when it has been stale for a while, in the log, as a metric and as an error of
 * the observation. A CRD that is not installed is waited for, at the start too.
 */

import { setTimeout as pause } from 'node:timers/promises';
import type { KubeConfig } from '@kubernetes/client-node';
import { Counter, Gauge, Registry } from 'prom-client';
import type { KindName } from '../../api/kinds.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import type { SourceError } from '../observe/document.ts';
import type { ObjectSource, Observation } from '../observe/source.ts';
import { ApiServer } from './api-server.ts';
import type { KubernetesTarget } from './client.ts';
import { ReferredConfigMaps } from './config-maps.ts';
import type { ApiFailure } from './failure.ts';
import { defaultTuning, Informer, type InformerOptions, type Tuning } from './informer.ts';
import { LastGoodFile, ObjectsInForce, recallLastGood } from './objects-in-force.ts';
import { API_SERVER, type Reading, type Resource, resources } from './resources.ts';

export interface KubernetesOptions {
  target: KubernetesTarget;
  /** Remembers the last good version of own objects that are bad; absent: nothing is remembered. */
  state?: string;
  log: Logger;
  registry?: Registry;
  /** Not before the promise is resolved. */
  onChange(observation: Observation): void;
  /** Gives up waiting for the first lists. */
  signal?: AbortSignal;
  /** For tests: shorter times. */
  tuning?: Partial<Tuning & SourceTuning>;
}

export interface KubernetesSource extends ObjectSource {
  /** For who writes: status, leases, events. */
  config: KubeConfig;
}

export interface SourceTuning {
  /** Not known to be current for so long: an alarm. Longer than any watch is quiet. */
  staleMs: number;
  /** ConfigMaps of tenants hold up the start no longer than this. */
  configMapsMs: number;
}

const defaultSourceTuning: SourceTuning = { staleMs: 120_000, configMapsMs: 30_000 };

/** Quiet time after the last event, as in the directory source. */
const DEBOUNCE_MS = 10;
const MAX_DELAY_MS = 100;
/** What fails again and again is logged so often, unless it fails in another way. */
const LOG_EVERY_MS = 60_000;
/** Refused objects that are logged one by one, of those that come at once. */
const MAX_LINES = 20;
const WAITING_LOG_MS = 10_000;

/** Resolves when everything was read once; rejects if nothing says where an API server is, or on `signal`. */
export async function watchKubernetes(options: KubernetesOptions): Promise<KubernetesSource> {
  const { log, state } = options;
  const recalled = state === undefined ? [] : await recallLastGood(state);
  const file = state === undefined ? undefined : new LastGoodFile(state, log, recalled);
  const api = await ApiServer.open(options.target);
  log.info({ server: api.url }, 'reading the API server');
  const source = new Source(options, api, new ObjectsInForce(recalled), file);
  const close = async (): Promise<void> => {
    await source.close();
    await file?.close();
    await api.close();
  };
  try {
    await source.ready();
  } catch (error) {
    await close();
    throw error;
  }
  return { config: api.config, current: () => source.observation, close };
}

class Source {
  observation: Observation = { snapshot: new Map(), errors: [] };
  readonly #options: KubernetesOptions;
  readonly #tuning: Tuning & SourceTuning;
  readonly #api: ApiServer;
  readonly #objects: ObjectsInForce;
  readonly #file: LastGoodFile | undefined;
  readonly #metrics: Metrics;
  readonly #informers = new Map<Resource, Informer<Reading>>();
  readonly #services = resources.find(({ kind }) => kind === 'ExternalService') as Resource;
  readonly #configMaps: ReferredConfigMaps;
  readonly #watchdog: NodeJS.Timeout;
  #servicesChanged = false;
  #configMapsSince = 0;
  /** Stale kinds and why. */
  #stale = new Map<KindName, string>();
  #reported = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #firstEvent = 0;
  #ready = false;
  #closed = false;

  constructor(options: KubernetesOptions, api: ApiServer, objects: ObjectsInForce, file: LastGoodFile | undefined) {
    this.#options = options;
    this.#tuning = { ...defaultTuning, ...defaultSourceTuning, ...options.tuning };
    this.#api = api;
    this.#objects = objects;
    this.#file = file;
    this.#metrics = sourceMetrics(options.registry, () => this.#staleMs());
    this.#configMaps = new ReferredConfigMaps({
      start: (resource, parts) => this.#start(resource, parts),
      drop: (resource) => {
        this.#objects.drop(resource);
        this.#changed('ConfigMap');
      },
    });
    for (const resource of resources) this.#informers.set(resource, this.#start(resource));
    this.#watchdog = setInterval(() => this.#watch(), Math.min(1000, this.#tuning.staleMs / 4));
  }

  async ready(): Promise<void> {
    const { log, signal } = this.#options;
    let logAt = performance.now() + WAITING_LOG_MS;
    let listedAt: number | undefined;
    for (;;) {
      const waiting = [...this.#informers].flatMap(([{ kind }, informer]) => (informer.listed ? [] : [kind as string]));
      this.#lookForConfigMaps();
      const now = performance.now();
      if (waiting.length === 0) {
        listedAt ??= now;
        const unread = this.#configMaps.unread;
        if (unread.length === 0) break;
        if (now - listedAt > this.#tuning.configMapsMs) {
          log.error({ configMaps: unread.slice(0, 20) }, 'these ConfigMaps cannot be read; starting without them');
          break;
        }
      }
      if (now > logAt) {
        logAt = now + WAITING_LOG_MS;
        log.warn({ waiting: waiting.length === 0 ? ['ConfigMap'] : waiting }, 'waiting for the first lists');
      }
      await pause(10, undefined, signal === undefined ? {} : { signal });
    }
    this.#take();
    this.#ready = true;
    log.info({ objects: this.observation.snapshot.size }, 'the API server is read');
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#watchdog);
    await Promise.all([...this.#informers.values()].map((informer) => informer.close()));
    await this.#configMaps.close();
  }

  #start(resource: Resource, parts: Pick<InformerOptions<Reading>, 'query' | 'pollMs'> = {}): Informer<Reading> {
    const { log } = this.#options;
    const { kind, crd, paths } = resource;
    const what = { kind, ...(parts.query === undefined ? {} : { path: paths[0], ...parts.query }) };
    let logged: { code: string; at: number } | undefined;
    return new Informer<Reading>({
      ...parts,
      api: this.#api,
      paths,
      tuning: this.#tuning,
      reader: this.#objects.reader(resource),
      onList: () => {
        this.#metrics.lists.inc({ kind });
        this.#changed(kind);
      },
      onEvent: () => {
        this.#metrics.events.inc({ kind });
        this.#changed(kind);
      },
      onFailure: ({ code, message }, attempt, usual) => {
        this.#metrics.failures.inc({ kind, reason: code });
        const now = performance.now();
        if (usual || (logged?.code === code && now - logged.at < LOG_EVERY_MS)) return;
        logged = { code, at: now };
        const said = { ...what, reason: code, message, attempt };
        if (code === 'NotFound' && crd !== undefined)
          log.warn({ ...said, crd }, `${notInstalled(crd)}; it is waited for`);
        else log.warn(said, 'cannot read objects; what was in force stays');
      },
      onRecovery: () => {
        if (logged !== undefined) log.info(what, 'objects are read again');
        logged = undefined;
      },
    });
  }

  #changed(kind: KindName): void {
    if (kind === 'ExternalService') this.#servicesChanged = true;
    // Most of what happens to a pod or a node is nothing to us.
    if (this.#objects.changed) this.#schedule();
  }

  #schedule(): void {
    if (!this.#ready || this.#closed) return;
    const now = performance.now();
    if (this.#timer === undefined) this.#firstEvent = now;
    // Someone who writes without a pause must not put off everybody else.
    else if (now - this.#firstEvent > MAX_DELAY_MS) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#flush(), DEBOUNCE_MS);
  }

  #flush(): void {
    this.#timer = undefined;
    this.#lookForConfigMaps();
    // An ExternalService comes with its lists, if that takes no longer than a change may.
    if (this.#configMaps.unread.length > 0 && performance.now() - this.#configMapsSince < MAX_DELAY_MS) {
      this.#timer = setTimeout(() => this.#flush(), DEBOUNCE_MS);
    } else if (this.#take()) this.#options.onChange(this.observation);
  }

  #lookForConfigMaps(): void {
    if (!this.#servicesChanged) return;
    this.#servicesChanged = false;
    const before = this.#configMaps.unread.length;
    this.#configMaps.want(this.#objects.of(this.#services));
    if (this.#configMaps.unread.length > before) this.#configMapsSince = performance.now();
  }

  /** Whether it is another observation. */
  #take(): boolean {
    const { snapshot, errors: refused } = this.#objects.take();
    const stale = [...this.#stale].map(
      ([kind, why]): SourceError => ({ file: API_SERVER, reason: 'Unreadable', details: [`${kind}: ${why}`] }),
    );
    const errors = [...stale, ...refused];
    const before = this.observation;
    const sameErrors = sameJson(errors, before.errors);
    if (snapshot === before.snapshot && sameErrors) return false;
    this.observation = { snapshot, errors: sameErrors ? before.errors : errors };
    this.#file?.keep(this.#objects.lastGood());
    if (!sameErrors) this.#report();
    return true;
  }

  #report(): void {
    const { log } = this.#options;
    const now = new Set<string>();
    let fresh = 0;
    for (const error of this.observation.errors) {
      // What is stale has a line of its own.
      if (error.reason === 'Unreadable') continue;
      const text = JSON.stringify(error);
      now.add(text);
      if (this.#reported.has(text)) continue;
      if (fresh++ < MAX_LINES) log.error(error, 'an object was refused; what was in force stays');
    }
    if (fresh > MAX_LINES) log.error({ objects: fresh - MAX_LINES }, 'more objects were refused at once');
    this.#reported = now;
  }

  /** By kind: since when it is not known to be current; of ConfigMaps the worst. */
  #staleMs(): Map<KindName, number> {
    const stale = new Map<KindName, number>();
    for (const [{ kind }, { staleMs }] of this.#informers) stale.set(kind, staleMs);
    // Others are not read as often.
    const watched = this.#configMaps.informers.filter(({ polled }) => !polled);
    if (watched.length > 0) stale.set('ConfigMap', Math.max(...watched.map(({ staleMs }) => staleMs)));
    return stale;
  }

  #watch(): void {
    // Until then there is nothing in force, and it is said what is waited for.
    if (!this.#ready) return;
    let changed = false;
    const now = this.#staleMs();
    for (const [kind, ms] of now) {
      if (ms < this.#tuning.staleMs || this.#stale.has(kind)) continue;
      const why = this.#why(kind);
      this.#options.log.error(
        { kind, seconds: Math.round(ms / 1000), reason: why },
        'stale: what is in force may be old',
      );
      this.#stale.set(kind, why);
      changed = true;
    }
    for (const kind of this.#stale.keys()) {
      if ((now.get(kind) ?? 0) >= this.#tuning.staleMs) continue;
      this.#options.log.info({ kind }, 'not stale any more');
      this.#stale.delete(kind);
      changed = true;
    }
    if (changed) this.#schedule();
  }

  #why(kind: KindName): string {
    for (const [{ kind: of, crd }, { failure }] of this.#informers) {
      if (of === kind && failure !== undefined) return whyOf(failure, crd);
    }
    const [failed] = this.#configMaps.informers.filter(({ failure }) => failure !== undefined);
    if (kind === 'ConfigMap' && failed?.failure !== undefined) return whyOf(failed.failure);
    return 'the server says nothing, or takes its time';
  }
}

const notInstalled = (crd: string): string => `the CustomResourceDefinition ${crd} is not installed`;
const whyOf = ({ code, message }: ApiFailure, crd?: string): string =>
  code === 'NotFound' && crd !== undefined ? notInstalled(crd) : `${code}: ${message}`;

interface Metrics {
  lists: Counter<'kind'>;
  events: Counter<'kind'>;
  failures: Counter<'kind' | 'reason'>;
}

function sourceMetrics(registry = new Registry(), staleMs: () => Map<KindName, number>): Metrics {
  const registers = [registry];
  const counter = <L extends string>(name: string, help: string, ...labelNames: L[]): Counter<L> =>
    new Counter({ name, help, labelNames, registers });
  new Gauge({
    name: 'sluice_controller_source_stale_seconds',
    help: 'Since when it is not known that nothing is missing, by kind; up to 45 in good health',
    labelNames: ['kind'],
    registers,
    collect() {
      this.reset();
      for (const [kind, ms] of staleMs()) this.set({ kind }, ms / 1000);
    },
  });
  return {
    lists: counter('sluice_controller_source_lists_total', 'Whole lists that were read of the API server', 'kind'),
    events: counter('sluice_controller_source_events_total', 'Objects that a watch told of', 'kind'),
    failures: counter('sluice_controller_source_failures_total', 'Lists and watches that failed', 'kind', 'reason'),
  };
}
