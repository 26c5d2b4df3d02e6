/**
 * Webhooks, put together: what rules have permitted (hits.ts) → queue (publish/webhook-queue.ts) → POST. Nothing waits
 * for a webhook: requests run beside everything else, and what they may take of memory and connections is bounded.
 */
import { Counter, Gauge, type Registry } from 'prom-client';
import type { RuleHits } from '../api/hits.ts';
import { webhookBody } from '../api/webhook.ts';
import type { Logger } from '../daemon/log.ts';
import type { Status } from './plan/condition.ts';
import type { WebhookTarget } from './plan/webhooks.ts';
import { type Delivery, type DeliveryOutcome, WebhookQueue, webhookLimits } from './publish/webhook-queue.ts';

export interface WebhooksOptions {
  post(request: { url: string; body: string; key: string }, stop: AbortSignal): Promise<DeliveryOutcome>;
  log: Logger;
  registry: Registry;
  /** The wall clock, for what is told. */
  now(): number;
  /** Of a second, for tests. */
  secondMs?: number | undefined;
}

export class Webhooks {
  readonly #options: WebhooksOptions;
  #queue: WebhookQueue;
  readonly #sending = new Map<Delivery, { stop: AbortController; done: Promise<void> }>();
  /** Bodies of batches that were not delivered yet: every attempt sends the same. */
  readonly #bodies = new WeakMap<Delivery['events'], string>();
  /** URLs that failed last time. */
  readonly #failing = new Set<string>();
  readonly #requests: Counter;
  readonly #events: Counter;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: WebhooksOptions) {
    this.#options = options;
    this.#queue = this.#newQueue();
    const registers = [options.registry];
    this.#requests = new Counter({
      name: 'sluice_controller_webhook_requests_total',
      help: 'Requests to webhooks, by result: delivered, failed',
      labelNames: ['result'],
      registers,
    });
    this.#events = new Counter({
      name: 'sluice_controller_webhook_events_total',
      help: 'Events of webhooks, by result: delivered, or dropped after too many failures',
      labelNames: ['result'],
      registers,
    });
    new Gauge({
      name: 'sluice_controller_webhooks_failing',
      help: 'Webhook URLs to which the last request failed',
      registers,
      collect: this.#collector(({ failing }) => failing),
    });
    new Gauge({
      name: 'sluice_controller_webhook_pending_events',
      help: 'Events that wait to be delivered',
      registers,
      collect: this.#collector(({ waitingRules, batchedEvents }) => waitingRules + batchedEvents),
    });
  }

  /** As saved. Before anything else. */
  restore(told: ReadonlyMap<string, RuleHits>): void {
    this.#queue = this.#newQueue(told);
  }

  get told(): ReadonlyMap<string, RuleHits> {
    return this.#queue.told;
  }

  /** Whether `told` changed since this was asked last. */
  changed(): boolean {
    const { dirty } = this.#queue;
    this.#queue.dirty = false;
    return dirty;
  }

  use(targets: ReadonlyMap<string, WebhookTarget>, totals: (rule: string) => RuleHits): void {
    this.#queue.use(targets, totals);
    for (const [delivery, { stop }] of this.#sending) if (!this.#queue.wants(delivery)) stop.abort();
    const urls = new Set([...targets.values()].map(({ url }) => url));
    for (const url of this.#failing) if (!urls.has(url)) this.#failing.delete(url);
    this.#work();
  }

  grown(rules: readonly string[]): void {
    for (const id of rules) this.#queue.grown(id);
    if (rules.length > 0) this.#work();
  }

  /** Rules whose status is to be written now. */
  due(): string[] {
    return this.#queue.due(performance.now());
  }

  with(id: string, status: Status): Status {
    const condition = this.#queue.condition(id);
    return condition === undefined ? status : { ...status, conditions: [...status.conditions, condition] };
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    const sending = [...this.#sending.values()];
    for (const { stop } of sending) stop.abort();
    await Promise.all(sending.map(({ done }) => done));
  }

  #newQueue(told?: ReadonlyMap<string, RuleHits>): WebhookQueue {
    const scale = (this.#options.secondMs ?? 1000) / 1000;
    const entries = Object.entries(webhookLimits).map(([name, value]) => [
      name,
      name.endsWith('Ms') ? value * scale : value,
    ]);
    return new WebhookQueue(Object.fromEntries(entries), Math.random, told);
  }

  #collector(value: (counts: ReturnType<WebhookQueue['counts']>) => number): (this: Gauge) => void {
    const counts = () => this.#queue.counts();
    return function (this: Gauge) {
      this.set(value(counts()));
    };
  }

  #work(): void {
    if (this.#closed) return;
    for (const delivery of this.#queue.take(performance.now())) {
      const stop = new AbortController();
      this.#sending.set(delivery, { stop, done: this.#send(delivery, stop.signal) });
    }
    clearTimeout(this.#timer);
    const next = this.#queue.nextAt();
    if (next === undefined) return;
    this.#timer = setTimeout(() => this.#work(), Math.max(1, next - performance.now()));
    this.#timer.unref();
  }

  async #send(delivery: Delivery, stop: AbortSignal): Promise<void> {
    const { url, key, events } = delivery;
    const body = this.#bodies.get(events) ?? JSON.stringify(webhookBody(events, this.#options.now()));
    this.#bodies.set(events, body);
    const outcome = await this.#options.post({ url, body, key }, stop);
    this.#sending.delete(delivery);
    const { delivered, dropped } = this.#queue.settle(delivery, outcome, performance.now());
    if (!stop.aborted) {
      this.#requests.inc({ result: outcome.ok ? 'delivered' : 'failed' });
      if (delivered > 0) this.#events.inc({ result: 'delivered' }, delivered);
      if (dropped > 0) this.#events.inc({ result: 'dropped' }, dropped);
      this.#log(delivery, outcome, dropped);
    }
    this.#work();
  }

  /** Once when it begins to fail, and for what is lost; neither URL nor body, which may hold secrets. */
  #log({ url, host }: Delivery, outcome: DeliveryOutcome, dropped: number): void {
    const { log } = this.#options;
    if (outcome.ok) {
      if (this.#failing.delete(url)) log.info({ host }, 'a webhook is delivered to again');
      return;
    }
    const { reason, message } = outcome;
    if (!this.#failing.has(url))
      log.warn({ host, reason, message }, 'a webhook cannot be delivered; it is tried again');
    this.#failing.add(url);
    if (dropped > 0) log.warn({ host, reason, message, events: dropped }, 'events of a webhook are dropped');
  }
}
