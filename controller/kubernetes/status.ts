/**
 * Status on the objects themselves: server-side apply on the status subresource of our seven kinds. What the API server
 * has is read once before anything is written (and again whoever else may have written meanwhile), so that a restart
 * writes nothing that is there, and `lastTransitionTime` moves only when a condition's status does. Only what differs
 * is sent: conditions first and at once, counters alone at the pace of design §8. What cannot be written is logged and
 * tried again where that may help. Who may not write (a standby) keeps the newest and writes it when it may.
 */
import { kindScopes, sluiceKinds } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import type { SourceError } from '../observe/document.ts';
import type { Condition, Status } from '../plan/condition.ts';
import type { Snapshot } from '../plan/snapshot.ts';
import type { StatusSink } from '../publish/sink.ts';
import { type Answer, APPLY, type Api, backOff, type Json, recordOf } from './requests.ts';
import { type Lane, type Outcome, WorkQueue } from './work-queue.ts';

export const FIELD_MANAGER = 'sluice-controller';
const PAGE = 500;
const TIMEOUT_MS = 10_000;
const LOOK_MS = 500;
const FLUSH_MS = 3_000;
/** Ends of texts that the CRDs would refuse (api/crd.ts). */
const MESSAGE_LENGTH = 32_768;
const counters: ReadonlySet<string> = new Set(['counters', 'defaultActionCounters']);

/** What an event is about, as the API server has it. */
export interface WrittenObject {
  kind: string;
  namespace?: string;
  name: string;
  uid?: string;
}
export interface ConditionListener {
  /** A status was written. `before` is empty for an object that had none. */
  changed(object: WrittenObject, before: readonly Condition[], after: readonly Condition[]): void;
}

export interface KubernetesStatusOptions {
  api: Api;
  log: Logger;
  /** Asked before each request (a lease's isLeader); absent: always. */
  mayWrite?: () => boolean;
  events?: ConditionListener;
  /** The wall clock. */
  now?: () => number;
  parallel?: number;
  /** Of all statuses, and of those in which nothing but counters changed. */
  writesPerSecond?: number;
  counterWritesPerSecond?: number;
  retryMs?: { from: number; to: number };
}

type TimedCondition = Condition & { lastTransitionTime: string };
type TimedStatus = Status & { conditions: TimedCondition[] };
interface Written {
  uid: string | undefined;
  /** What it was made of; absent: it was read. */
  source?: Status;
  status: Json;
}
interface Planned {
  source: Status;
  uid: string | undefined;
  status: TimedStatus;
}

const plurals = new Map<string, string>(sluiceKinds.map(({ kind, plural }) => [kind, plural]));

/** `Kind/[NAMESPACE/]NAME` → what it names; undefined: none of our kinds. */
export function namedBy(key: string): WrittenObject | undefined {
  const [kind = '', ...names] = key.split('/');
  const namespaced = kindScopes[kind as keyof typeof kindScopes] === 'namespaced';
  if (!plurals.has(kind) || names.length !== (namespaced ? 2 : 1) || names.includes('')) return undefined;
  const [name = '', namespace] = names.reverse();
  return { kind, name, ...(namespace === undefined ? {} : { namespace }) };
}

function pathOf({ kind, namespace, name }: WrittenObject): string {
  const place = namespace === undefined ? '' : `/namespaces/${encodeURIComponent(namespace)}`;
  const query = `fieldManager=${FIELD_MANAGER}&force=true`;
  return `/apis/${API_VERSION}${place}/${plurals.get(kind)}/${encodeURIComponent(name)}/status?${query}`;
}

export class KubernetesStatus implements StatusSink {
  readonly #options: KubernetesStatusOptions;
  readonly #now: () => number;
  readonly #queue: WorkQueue;
  readonly #timer: NodeJS.Timeout;
  #statuses: ReadonlyMap<string, Status> = new Map();
  #objects: Snapshot = new Map();
  readonly #patches = new Map<string, Status>();
  /** What the API server has, as far as is known. */
  #written = new Map<string, Written>();
  /** What is to be sent. */
  readonly #planned = new Map<string, Planned>();
  #known = false;
  #reading: Promise<void> | undefined;
  #readFailures = 0;
  #readNotBefore = 0;
  #unwell = false;
  #closed = false;

  constructor(options: KubernetesStatusOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#queue = new WorkQueue({
      work: (key) => this.#write(key),
      parallel: options.parallel ?? 8,
      perSecond: options.writesPerSecond ?? 100,
      latePerSecond: options.counterWritesPerSecond ?? 20,
      retryMs: options.retryMs,
    });
    this.#timer = setInterval(() => this.#look(), Math.min(LOOK_MS, options.retryMs?.from ?? LOOK_MS)).unref();
  }

  publish(statuses: ReadonlyMap<string, Status>, _errors: readonly SourceError[], objects: Snapshot): void {
    this.#statuses = statuses;
    this.#objects = objects;
    this.#patches.clear();
    this.#look();
    if (this.#known) this.#considerAll();
  }

  patch(statuses: ReadonlyMap<string, Status>): void {
    for (const [key, status] of statuses) {
      this.#patches.set(key, status);
      if (this.#known) this.#consider(key, status);
    }
  }

  /** Conditions that wait are written still, if the API server is quick; counters are not. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    const may = this.#mayWrite() && this.#known;
    await this.#queue.close(may ? FLUSH_MS : 0);
    this.#closed = true;
  }

  #mayWrite(): boolean {
    return !this.#closed && (this.#options.mayWrite?.() ?? true);
  }

  /** Reads what there is before the first is written, and after a time in which another may have written. */
  #look(): void {
    if (!this.#mayWrite()) {
      this.#queue.pause();
      this.#known = false;
    } else if (!this.#known && performance.now() >= this.#readNotBefore) {
      this.#reading ??= this.#read().finally(() => {
        this.#reading = undefined;
      });
    }
  }

  async #read(): Promise<void> {
    const written = new Map<string, Written>();
    for (const { kind, plural } of sluiceKinds) {
      const problem = await this.#readKind(kind, plural, written);
      if (problem === undefined) continue;
      this.#readFailures++;
      const { from, to } = this.#options.retryMs ?? { from: 500, to: 30_000 };
      this.#readNotBefore = performance.now() + backOff(this.#readFailures, from, to);
      this.#notWell(`${plural}: ${problem.status} ${problem.message}`);
      return;
    }
    if (!this.#mayWrite()) return;
    this.#readFailures = 0;
    this.#written = written;
    this.#planned.clear();
    this.#known = true;
    this.#considerAll();
    this.#queue.resume();
  }

  async #readKind(kind: string, plural: string, written: Map<string, Written>): Promise<Answer | undefined> {
    let from = '';
    do {
      const path = `/apis/${API_VERSION}/${plural}?limit=${PAGE}${from}`;
      const answer = await this.#options.api.ask({ method: 'GET', path, timeoutMs: 3 * TIMEOUT_MS });
      // Without the CRD there is no object either.
      if (answer.status === 404) return undefined;
      // Too old to go on with (410): from the start.
      if (answer.status !== 200) return answer;
      for (const item of Array.isArray(answer.body.items) ? answer.body.items : []) {
        const { metadata, status } = recordOf(item);
        const { name, namespace, uid } = recordOf(metadata);
        const key = [kind, ...(typeof namespace === 'string' ? [namespace] : []), String(name)].join('/');
        if (isRecord(status)) written.set(key, { uid: String(uid), status });
      }
      const next = recordOf(answer.body.metadata).continue;
      from = typeof next === 'string' && next !== '' ? `&continue=${encodeURIComponent(next)}` : '';
    } while (from !== '');
    return undefined;
  }

  #considerAll(): void {
    for (const [key, status] of this.#statuses) this.#consider(key, this.#patches.get(key) ?? status);
    for (const map of [this.#written, this.#planned]) {
      for (const key of map.keys()) {
        if (this.#statuses.has(key)) continue;
        map.delete(key);
        this.#queue.forget(key);
      }
    }
  }

  /** Plans what is to be sent of an object, if anything. */
  #consider(key: string, source: Status): void {
    const uid = this.#objects.get(key)?.metadata.uid;
    let written = this.#written.get(key);
    // Made anew with the same name: it has no status.
    if (written !== undefined && uid !== undefined && written.uid !== undefined && written.uid !== uid) {
      this.#written.delete(key);
      this.#planned.delete(key);
      written = undefined;
    }
    const planned = this.#planned.get(key);
    if ((planned ?? written)?.source === source) return;
    if (namedBy(key) === undefined) return;
    const status = this.#timed(source, [written?.status.conditions, planned?.status.conditions]);
    if (written !== undefined && sameJson(written.status, status)) {
      written.source = source;
      this.#planned.delete(key);
      this.#queue.forget(key);
      return;
    }
    this.#planned.set(key, { source, uid, status });
    this.#queue.add(key, laneOf(written?.status, status));
  }

  #timed(source: Status, known: readonly unknown[]): TimedStatus {
    const now = `${new Date(this.#now()).toISOString().slice(0, 19)}Z`;
    const conditions = source.conditions.map(({ type, status, reason, message }): TimedCondition => {
      const before = known
        .flatMap((list) => (Array.isArray(list) ? list : []))
        .find((one) => isRecord(one) && one.type === type && one.status === status);
      const lastTransitionTime = String(before?.lastTransitionTime ?? now);
      return { type, status, reason, message: message.slice(0, MESSAGE_LENGTH), lastTransitionTime };
    });
    // What is undefined is not sent, so it is no difference either.
    const fields = Object.entries(source).filter(([, value]) => value !== undefined);
    return { ...Object.fromEntries(fields), conditions };
  }

  async #write(key: string): Promise<Outcome> {
    const planned = this.#planned.get(key);
    const object = namedBy(key);
    if (planned === undefined || object === undefined) return { done: true };
    if (!this.#mayWrite()) {
      this.#look();
      return { retry: 'all', afterMs: LOOK_MS };
    }
    const { kind, name, namespace } = object;
    const uid = planned.uid === undefined ? {} : { uid: planned.uid };
    const metadata = { name, ...(namespace === undefined ? {} : { namespace }), ...uid };
    const answer = await this.#options.api.ask({
      method: 'PATCH',
      path: pathOf(object),
      body: { apiVersion: API_VERSION, kind, metadata, status: planned.status },
      contentType: APPLY,
      timeoutMs: TIMEOUT_MS,
    });
    return this.#settle(key, object, planned, answer);
  }

  #settle(key: string, object: WrittenObject, planned: Planned, answer: Answer): Outcome {
    const { log } = this.#options;
    const { status: code, message, retryAfterMs } = answer;
    const { source, status } = planned;
    const next = this.#planned.get(key);
    const newest = next === planned;
    if (code === 200 || code === 201) {
      this.#well();
      const given = recordOf(answer.body.metadata).uid;
      const uid = typeof given === 'string' ? given : planned.uid;
      const before = this.#written.get(key)?.status.conditions;
      // What was planned meanwhile may be the same.
      const same = next !== undefined && sameJson(next.status, status);
      if (same) this.#planned.delete(key);
      this.#written.set(key, { uid, source: same ? next.source : source, status });
      const known = Array.isArray(before) ? (before as Condition[]) : [];
      this.#options.events?.changed({ ...object, ...(uid === undefined ? {} : { uid }) }, known, status.conditions);
      return { done: true };
    }
    if (code === 0 || code === 429 || code === 401 || (code > 501 && code < 600)) {
      this.#notWell(`${code} ${message}`);
      return { retry: 'all', afterMs: retryAfterMs ?? (code === 429 ? 1_000 : undefined) };
    }
    if (code === 404) {
      log.debug({ object: key }, 'no status written: the object is gone');
      this.#written.delete(key);
      if (newest) this.#planned.delete(key);
      return { done: true };
    }
    if (code === 400 || code === 413 || code === 422) {
      log.error({ object: key, code, reason: message }, 'the API server refuses a status');
      // Not again, until there is another.
      if (newest) this.#planned.delete(key);
      this.#written.set(key, { ...(this.#written.get(key) ?? { uid: planned.uid, status: {} }), source });
      return { done: true };
    }
    log.warn({ object: key, code, reason: message }, 'cannot write a status; it is tried again');
    return { retry: 'key' };
  }

  #notWell(reason: string): void {
    if (!this.#unwell) this.#options.log.warn({ reason }, 'cannot read or write statuses; it is tried again');
    this.#unwell = true;
  }

  #well(): void {
    if (this.#unwell) this.#options.log.info('statuses are written again');
    this.#unwell = false;
  }
}

/** Only counters changed: it can wait. */
function laneOf(before: Json | undefined, after: Json): Lane {
  if (before === undefined) return 'urgent';
  const fields = new Set([...Object.keys(before), ...Object.keys(after)]);
  return [...fields].every((field) => counters.has(field) || sameJson(before[field], after[field])) ? 'late' : 'urgent';
}
