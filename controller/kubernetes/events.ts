/**
 * Events on the objects (core/v1, which every kubectl shows) when a condition turns bad and when it is well again.
 * What repeats is one event with a count; an object has a budget, and all have one together: what is beyond is counted
 * and told in the log. Waiting for a gateway's word is usual for a moment after every change, and so no news before it
 * has lasted; what was not told as bad is not told as well again. Events are news and no record: one that cannot be
 * written is lost.
 */
import { hostname } from 'node:os';
import { API_VERSION } from '../../api/names.ts';
import type { Logger } from '../../daemon/log.ts';
import type { Condition } from '../plan/condition.ts';
import { type Api, type Json, MERGE } from './requests.ts';
import type { ConditionListener, WrittenObject } from './status.ts';

const COMPONENT = 'sluice-controller';
/** Within this time the same reason on the same object is the same event (the API server keeps events for an hour). */
const SAME_MS = 600_000;
/** Of an object: so many at once, and one more each minute. */
const OBJECT_BURST = 10;
const OBJECT_MS = 60_000;
const ALL_PER_SECOND = 10;
const ALL_BURST = 100;
const SETTLE_MS = 10_000;
const TIMEOUT_MS = 5_000;
const MAX_QUEUE = 1_000;
const MESSAGE_LENGTH = 1024;

export interface KubernetesEventsOptions {
  api: Api;
  log: Logger;
  mayWrite?: () => boolean;
  now?: () => number;
  /** How long a condition waits for gateways before that is news. */
  settleMs?: number;
}

interface Told {
  name: string;
  count: number;
  first: string;
  at: number;
}
interface News {
  object: WrittenObject;
  type: 'Normal' | 'Warning';
  condition: Condition;
}
/** Of one object. */
interface Known {
  /** Types of conditions that were told as bad. */
  bad: Set<string>;
  /** By type: what is news unless it passes. */
  settling: Map<string, NodeJS.Timeout>;
  /** By type and reason. */
  told: Map<string, Told>;
  tokens: number;
  at: number;
}

const isBad = ({ type, status }: Condition): boolean =>
  (status === 'True') === (type === 'Conflicted' || type === 'WebhookFailing');

export class KubernetesEvents implements ConditionListener {
  readonly #options: KubernetesEventsOptions;
  readonly #now: () => number;
  readonly #known = new Map<string, Known>();
  readonly #queue: News[] = [];
  #sending: Promise<void> | undefined;
  #tokens = ALL_BURST;
  #at = 0;
  #lost = 0;
  #lostSaid = 0;
  #number = 0;
  #sweptAt = 0;
  #closed = false;

  constructor(options: KubernetesEventsOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
  }

  changed(object: WrittenObject, before: readonly Condition[], after: readonly Condition[]): void {
    if (this.#closed) return;
    for (const condition of after) {
      const { type } = condition;
      const past = before.find((one) => one.type === type);
      // Of most there is nothing to remember.
      if (!isBad(condition) && !this.#known.has(keyOf(object)) && (past === undefined || !isBad(past))) continue;
      const known = this.#of(object);
      clearTimeout(known.settling.get(type));
      known.settling.delete(type);
      if (!isBad(condition)) {
        // Known to be bad from an earlier run, too.
        const was = known.bad.delete(type) || (past !== undefined && isBad(past) && !settles(past));
        if (was) this.#tell(object, 'Normal', condition);
      } else if (settles(condition)) {
        if (known.bad.has(type)) continue;
        const wait = this.#options.settleMs ?? SETTLE_MS;
        const timer = setTimeout(() => {
          known.settling.delete(type);
          known.bad.add(type);
          this.#tell(object, 'Warning', condition);
        }, wait).unref();
        known.settling.set(type, timer);
      } else {
        const same = past !== undefined && isBad(past) && past.reason === condition.reason;
        known.bad.add(type);
        if (!same) this.#tell(object, 'Warning', condition);
      }
    }
    this.#sweep();
  }

  /** What is under way is finished; what waits to be told is not. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#queue.length = 0;
    for (const { settling } of this.#known.values()) for (const timer of settling.values()) clearTimeout(timer);
    await this.#sending;
  }

  #of(object: WrittenObject): Known {
    const key = keyOf(object);
    let known = this.#known.get(key);
    if (known === undefined) {
      known = { bad: new Set(), settling: new Map(), told: new Map(), tokens: OBJECT_BURST, at: this.#now() };
      this.#known.set(key, known);
    }
    return known;
  }

  /** Nothing is kept of objects of which there is nothing to say. */
  #sweep(): void {
    const now = this.#now();
    if (this.#known.size <= MAX_QUEUE || Math.abs(now - this.#sweptAt) < OBJECT_MS) return;
    this.#sweptAt = now;
    for (const [key, { bad, settling, at, told }] of this.#known) {
      const quiet = bad.size === 0 && settling.size === 0;
      if (quiet && (told.size === 0 || Math.abs(now - at) > SAME_MS)) this.#known.delete(key);
    }
  }

  #tell(object: WrittenObject, type: News['type'], condition: Condition): void {
    if (this.#closed || this.#options.mayWrite?.() === false) return;
    const now = this.#now();
    // A clock that is set back gives nothing and takes nothing.
    this.#tokens = Math.min(ALL_BURST, this.#tokens + (Math.max(0, now - this.#at) / 1000) * ALL_PER_SECOND);
    this.#at = now;
    const known = this.#of(object);
    known.tokens = Math.min(OBJECT_BURST, known.tokens + Math.max(0, now - known.at) / OBJECT_MS);
    known.at = now;
    if (this.#tokens < 1 || known.tokens < 1 || this.#queue.length >= MAX_QUEUE) {
      this.#lost++;
      this.#sayLost(now);
      return;
    }
    this.#tokens--;
    known.tokens--;
    this.#queue.push({ object, type, condition });
    this.#sending ??= this.#send().finally(() => {
      this.#sending = undefined;
    });
  }

  async #send(): Promise<void> {
    for (let news = this.#queue.shift(); news !== undefined; news = this.#queue.shift()) {
      const { status, message } = await this.#write(news);
      if (status >= 200 && status < 300) continue;
      this.#options.log.debug({ object: keyOf(news.object), code: status, reason: message }, 'an event is lost');
      this.#lost++;
    }
  }

  async #write({ object, type, condition }: News): Promise<{ status: number; message: string }> {
    const { api } = this.#options;
    const { told } = this.#of(object);
    const now = this.#now();
    const time = `${new Date(now).toISOString().slice(0, 19)}Z`;
    // Those of cluster-wide objects are kept in `default`.
    const namespace = object.namespace ?? 'default';
    const place = `/api/v1/namespaces/${encodeURIComponent(namespace)}/events`;
    const message = condition.message.slice(0, MESSAGE_LENGTH);
    // Made anew with the same name it is another object.
    const series = `${object.uid} ${type} ${condition.type} ${condition.reason}`;
    const known = told.get(series);
    if (known !== undefined && Math.abs(now - known.at) < SAME_MS) {
      const count = known.count + 1;
      const answer = await api.ask({
        method: 'PATCH',
        path: `${place}/${known.name}`,
        body: { count, message, lastTimestamp: time },
        contentType: MERGE,
        timeoutMs: TIMEOUT_MS,
      });
      if (answer.status === 200) told.set(series, { ...known, count, at: now });
      // 404: the API server has forgotten it.
      if (answer.status !== 404) return answer;
    }
    const name = `${object.name.slice(0, 220)}.${now.toString(16)}${(this.#number++ & 0xffff).toString(16).padStart(4, '0')}`;
    const { uid } = object;
    const involvedObject: Json = {
      apiVersion: API_VERSION,
      kind: object.kind,
      name: object.name,
      ...(object.namespace === undefined ? {} : { namespace }),
      ...(uid === undefined ? {} : { uid }),
    };
    const body: Json = {
      apiVersion: 'v1',
      kind: 'Event',
      metadata: { name, namespace },
      involvedObject,
      type,
      reason: condition.reason,
      message,
      count: 1,
      firstTimestamp: time,
      lastTimestamp: time,
      source: { component: COMPONENT },
      reportingComponent: COMPONENT,
      reportingInstance: hostname().slice(0, 128),
    };
    const answer = await api.ask({ method: 'POST', path: place, body, timeoutMs: TIMEOUT_MS });
    if (answer.status === 201) told.set(series, { name, count: 1, first: time, at: now });
    return answer;
  }

  #sayLost(now: number): void {
    if (Math.abs(now - this.#lostSaid) < OBJECT_MS) return;
    this.#lostSaid = now;
    this.#options.log.warn({ events: this.#lost }, 'more events than may be told');
  }
}

const keyOf = ({ kind, namespace, name }: WrittenObject): string => `${kind}/${namespace ?? ''}/${name}`;

/** It passes by itself as a rule. */
const settles = ({ type, reason }: Condition): boolean => type === 'Programmed' && reason === 'NotAcknowledged';
