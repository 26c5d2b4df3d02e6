/**
 * What webhooks are to be told, and when: per URL the rules that have permitted flows since the last delivery, one
 * batch that is on its way or is to be tried again, and the back-off. Pure; clock and randomness are passed in.
 * Nothing is queued: what a rule has to tell is the difference of two totals, however long it waits. So memory is one
 * set of totals a rule, and one batch a URL (plan/webhooks.ts bounds these).
 * Delivered at least once: what was told counts as told when the answer came. A batch that fails too often is dropped.
 */
import { noHits, type RuleHits } from '../../api/hits.ts';
import { idempotencyKey, type WebhookEvent, webhookEvent } from '../../api/webhook.ts';
import type { Condition } from '../plan/condition.ts';
import { failing, type WebhookTarget } from '../plan/webhooks.ts';

export interface WebhookLimits {
  /** Between the end of a request and the next one to the same URL. */
  urlIntervalMs: number;
  /** Between the beginnings of two requests to the same host. */
  hostIntervalMs: number;
  /** Requests under way. Of one host fewer, so that a slow one does not hold up the others. */
  atOnce: number;
  hostAtOnce: number;
  eventsPerRequest: number;
  /** Of one batch, the first included. */
  attempts: number;
  /** The wait after the first failure; it doubles with each, up to the longest. */
  firstRetryMs: number;
  longestRetryMs: number;
  /** Between two changes of what the statuses of a URL's rules say. */
  statusMs: number;
  /** Statuses in one call of `due`. */
  statusesAtOnce: number;
}

/** 12 attempts in some 15 minutes. */
export const webhookLimits: WebhookLimits = {
  urlIntervalMs: 1_000,
  hostIntervalMs: 200,
  atOnce: 16,
  hostAtOnce: 2,
  eventsPerRequest: 100,
  attempts: 12,
  firstRetryMs: 1_000,
  longestRetryMs: 300_000,
  statusMs: 60_000,
  statusesAtOnce: 10,
};

export interface Delivery {
  url: string;
  host: string;
  key: string;
  events: WebhookEvent[];
  /** 1 is the first. */
  attempt: number;
}

export type DeliveryOutcome = { ok: true } | { ok: false; reason: string; message: string };

interface Batch {
  key: string;
  events: WebhookEvent[];
  /** What the rules have told once it is delivered. */
  told: Map<string, RuleHits>;
  attempts: number;
}

interface Channel {
  url: string;
  host: string;
  rules: Set<string>;
  /** Rules with something to tell, the longest waiting first. */
  waiting: Set<string>;
  batch?: Batch | undefined;
  /** Under way. */
  sending?: Delivery | undefined;
  /** Requests in a row that failed. */
  failures: number;
  readyAt: number;
  problem?: { reason: string; message: string } | undefined;
  /** What statuses say. */
  shown?: Channel['problem'];
  shownAt: number;
}

/** Times are milliseconds of one clock that does not jump. */
export class WebhookQueue {
  /** What was told is to be saved. */
  dirty = false;
  readonly #limits: WebhookLimits;
  readonly #random: () => number;
  #targets: ReadonlyMap<string, WebhookTarget> = new Map();
  #totals: (rule: string) => RuleHits = noHits;
  readonly #channels = new Map<string, Channel>();
  readonly #told: Map<string, RuleHits>;
  readonly #hosts = new Map<string, { active: number; readyAt: number }>();
  #active = 0;
  /** Rules whose status does not say yet what it should. */
  readonly #unshown = new Set<string>();

  /** `told`: as saved, by rule. `random`: from 0 to 1. */
  constructor(limits: WebhookLimits, random: () => number, told: ReadonlyMap<string, RuleHits> = new Map()) {
    this.#limits = limits;
    this.#random = random;
    this.#told = new Map(told);
  }

  get told(): ReadonlyMap<string, RuleHits> {
    return this.#told;
  }

  /** The webhooks that there are, and what their rules have permitted. A new one begins with what comes from now on. */
  use(targets: ReadonlyMap<string, WebhookTarget>, totals: (rule: string) => RuleHits): void {
    this.#targets = targets;
    this.#totals = totals;
    for (const channel of this.#channels.values()) channel.rules.clear();
    for (const [id, { url, host }] of targets) this.#channel(url, host).rules.add(id);
    for (const channel of this.#channels.values()) {
      if (channel.rules.size === 0) this.#channels.delete(channel.url);
      for (const id of channel.waiting) if (!channel.rules.has(id)) channel.waiting.delete(id);
    }
    for (const id of this.#told.keys()) {
      if (targets.has(id)) continue;
      this.#told.delete(id);
      this.dirty = true;
    }
    for (const id of this.#unshown) if (!targets.has(id)) this.#unshown.delete(id);
    for (const id of targets.keys()) {
      const total = totals(id);
      const told = this.#told.get(id);
      if (told === undefined || told.flows > total.flows) {
        this.#told.set(id, { ...total });
        this.dirty = true;
      } else this.grown(id);
    }
  }

  /** The rule may have permitted more. */
  grown(id: string): void {
    const channel = this.#channels.get(this.#targets.get(id)?.url ?? '');
    if (channel === undefined || this.#hasTold(id, channel)) return;
    channel.waiting.add(id);
  }

  /** Requests that are to be sent now; each is to be settled. */
  take(now: number): Delivery[] {
    const deliveries: Delivery[] = [];
    for (const channel of [...this.#channels.values()].sort((a, b) => a.readyAt - b.readyAt)) {
      if (this.#active >= this.#limits.atOnce) break;
      if (this.#readyAt(channel) > now) continue;
      const batch = channel.batch ?? this.#collect(channel);
      if (batch === undefined) continue;
      channel.batch = batch;
      batch.attempts++;
      this.#active++;
      const host = this.#host(channel.host);
      host.active++;
      host.readyAt = now + this.#limits.hostIntervalMs;
      const { key, events, attempts } = batch;
      channel.sending = { url: channel.url, host: channel.host, key, events, attempt: attempts };
      deliveries.push(channel.sending);
    }
    return deliveries;
  }

  /** When `take` may have something next, if nothing else happens; undefined: not before. */
  nextAt(): number | undefined {
    if (this.#active >= this.#limits.atOnce) return undefined;
    const next = Math.min(...[...this.#channels.values()].map((channel) => this.#readyAt(channel)));
    return next === Number.POSITIVE_INFINITY ? undefined : next;
  }

  /** Whether somebody still wants it. */
  wants(delivery: Delivery): boolean {
    return this.#channels.get(delivery.url)?.sending === delivery;
  }

  /** Returns how many events were delivered or dropped by this; the others are tried again. */
  settle(delivery: Delivery, outcome: DeliveryOutcome, now: number): { delivered: number; dropped: number } {
    this.#active--;
    this.#host(delivery.host).active--;
    this.#sweepHosts(now);
    const channel = this.#channels.get(delivery.url);
    const batch = channel?.batch;
    // Nobody wants it any more, or again, with another one under way.
    if (channel === undefined || batch === undefined || channel.sending !== delivery) {
      return { delivered: 0, dropped: 0 };
    }
    channel.sending = undefined;
    channel.failures = outcome.ok ? 0 : channel.failures + 1;
    channel.problem = outcome.ok ? undefined : { reason: outcome.reason, message: outcome.message };
    channel.readyAt = now + (outcome.ok ? this.#limits.urlIntervalMs : this.#backOff(channel.failures));
    const last = batch.attempts >= this.#limits.attempts;
    if (outcome.ok || last) this.#finish(channel, batch);
    const events = batch.events.length;
    return { delivered: outcome.ok ? events : 0, dropped: !outcome.ok && last ? events : 0 };
  }

  /** Of a rule with a webhook. */
  condition(id: string): Condition | undefined {
    const channel = this.#channels.get(this.#targets.get(id)?.url ?? '');
    if (channel === undefined) return undefined;
    if (channel.shown !== undefined) return failing(channel.shown.reason, channel.shown.message);
    const message = 'the last delivery succeeded, or there was none yet';
    return { type: 'WebhookFailing', status: 'False', reason: 'NotFailing', message };
  }

  /** Rules whose status is to be written now, since their condition changed. */
  due(now: number): string[] {
    for (const channel of this.#channels.values()) {
      const { problem, shown } = channel;
      const same = problem?.reason === shown?.reason && problem?.message === shown?.message;
      if (same || now - channel.shownAt < this.#limits.statusMs) continue;
      channel.shown = problem;
      channel.shownAt = now;
      for (const id of channel.rules) this.#unshown.add(id);
    }
    const due = [...this.#unshown].slice(0, this.#limits.statusesAtOnce);
    for (const id of due) this.#unshown.delete(id);
    return due;
  }

  /** For metrics, and for the bound of memory. */
  counts(): { failing: number; waitingRules: number; batchedEvents: number } {
    const counts = { failing: 0, waitingRules: 0, batchedEvents: 0 };
    for (const { problem, waiting, batch } of this.#channels.values()) {
      if (problem !== undefined) counts.failing++;
      counts.waitingRules += waiting.size;
      counts.batchedEvents += batch?.events.length ?? 0;
    }
    return counts;
  }

  #channel(url: string, host: string): Channel {
    const known = this.#channels.get(url);
    if (known !== undefined) return known;
    const channel: Channel = {
      url,
      host,
      rules: new Set(),
      waiting: new Set(),
      failures: 0,
      readyAt: Number.NEGATIVE_INFINITY,
      shownAt: Number.NEGATIVE_INFINITY,
    };
    this.#channels.set(url, channel);
    return channel;
  }

  #host(host: string): { active: number; readyAt: number } {
    const state = this.#hosts.get(host) ?? { active: 0, readyAt: Number.NEGATIVE_INFINITY };
    this.#hosts.set(host, state);
    return state;
  }

  #sweepHosts(now: number): void {
    for (const [host, { active, readyAt }] of this.#hosts) {
      if (active === 0 && readyAt <= now) this.#hosts.delete(host);
    }
  }

  #readyAt(channel: Channel): number {
    const host = this.#hosts.get(channel.host);
    const idle = channel.batch === undefined && channel.waiting.size === 0;
    if (channel.sending !== undefined || idle || (host?.active ?? 0) >= this.#limits.hostAtOnce)
      return Number.POSITIVE_INFINITY;
    return Math.max(channel.readyAt, host?.readyAt ?? Number.NEGATIVE_INFINITY);
  }

  /** Nothing new beyond what was told, or is in the batch under way. */
  #hasTold(id: string, { batch }: Channel): boolean {
    const told = batch?.told.get(id) ?? this.#told.get(id);
    return told === undefined || this.#totals(id).flows <= told.flows;
  }

  #collect(channel: Channel): Batch | undefined {
    const events: WebhookEvent[] = [];
    const told: Batch['told'] = new Map();
    for (const id of channel.waiting) {
      if (events.length >= this.#limits.eventsPerRequest) break;
      channel.waiting.delete(id);
      const target = this.#targets.get(id);
      const from = this.#told.get(id);
      const to = { ...this.#totals(id) };
      if (target === undefined || from === undefined || to.flows <= from.flows) continue;
      events.push(webhookEvent(target.rule, from, to));
      told.set(id, to);
    }
    if (events.length === 0) return undefined;
    return { key: idempotencyKey(channel.url, events), events, told, attempts: 0 };
  }

  #finish(channel: Channel, batch: Batch): void {
    channel.batch = undefined;
    for (const [id, to] of batch.told) {
      const before = this.#told.get(id);
      // Not of a rule that is away, went elsewhere, or began anew meanwhile.
      if (!channel.rules.has(id) || before === undefined || before.flows > to.flows) continue;
      this.#told.set(id, to);
      this.dirty = true;
    }
  }

  /** Half of it certain, half of it drawn, so that many who failed at once do not come again at once. */
  #backOff(failures: number): number {
    const { firstRetryMs, longestRetryMs } = this.#limits;
    const whole = Math.min(longestRetryMs, firstRetryMs * 2 ** Math.min(failures - 1, 30));
    return whole * (0.5 + 0.5 * this.#random());
  }
}
