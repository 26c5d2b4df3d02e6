/**
 * Hit counters in the controller: reports of gateways → sums on disk (DIR/hits.json) → statuses, at the pace that
 * publish/hits.ts allows, and webhooks. What those were told is saved with the sums, so that both are of one moment.
 * Lost with a crash is at most what the next report tells again.
 */
import { hitsIdOfObject, noHits } from '../api/hits.ts';
import type { HitsMessage } from '../api/plan-stream.ts';
import type { Logger } from '../daemon/log.ts';
import type { Status } from './plan/condition.ts';
import type { WebhookTarget } from './plan/webhooks.ts';
import { HitSums, readSums, tuples } from './publish/hits.ts';
import { readJson, writeJson } from './state-file.ts';
import type { Webhooks } from './webhooks.ts';

export const HITS_FILE = 'hits.json';
const TICK_MS = 1_000;
/** After each save so many times as long as it took, and at least so many milliseconds. */
const SAVE_SHARE = 20;
const SAVE_MS = 10_000;

export interface ControllerHitsOptions {
  state: string;
  /** Writes some statuses, without a new planning. */
  patch(statuses: ReadonlyMap<string, Status>): void;
  webhooks: Webhooks;
  log: Logger;
  now(): number;
}

export class ControllerHits {
  readonly #options: ControllerHitsOptions;
  readonly #sums: HitSums;
  /** Counted objects as they were published last, without counters; by the id of what is counted. */
  #published = new Map<string, { key: string; status: Status }>();
  readonly #timer: NodeJS.Timeout;
  #saving: Promise<void> = Promise.resolve();
  #isSaving = false;
  #savedAt: number;
  #pause = SAVE_MS;

  private constructor(options: ControllerHitsOptions, sums: HitSums) {
    this.#options = options;
    this.#sums = sums;
    this.#savedAt = options.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS).unref();
  }

  static async open(options: ControllerHitsOptions): Promise<ControllerHits> {
    const saved = await readJson(options.state, HITS_FILE);
    options.webhooks.restore(readSums(saved, 'webhooks'));
    return new ControllerHits(options, HitSums.restore(saved));
  }

  report(gateway: string, { epoch, rules }: HitsMessage): void {
    this.#options.webhooks.grown(this.#sums.report(gateway, epoch, rules));
  }

  /** The statuses with the counters that they may show; who is in them is counted from now on. */
  publish(
    statuses: ReadonlyMap<string, Status>,
    webhooks: ReadonlyMap<string, WebhookTarget> = new Map(),
  ): Map<string, Status> {
    const result = new Map(statuses);
    this.#published = new Map();
    for (const [key, status] of statuses) {
      const id = hitsIdOfObject(key);
      if (id !== undefined) this.#published.set(id, { key, status });
    }
    this.#sums.use(this.#published, this.#options.now());
    this.#options.webhooks.use(webhooks, (id) => this.#sums.sums.get(id) ?? noHits());
    for (const [id, { key, status }] of this.#published) {
      const shown = this.#with(id, status);
      if (shown !== status) result.set(key, shown);
    }
    return result;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#saving;
    await this.#save();
  }

  #tick(): void {
    const now = this.#options.now();
    const patches = new Map<string, Status>();
    for (const id of [...this.#sums.due(now), ...this.#options.webhooks.due()]) {
      const published = this.#published.get(id);
      if (published !== undefined) patches.set(published.key, this.#with(id, published.status));
    }
    if (patches.size > 0) this.#options.patch(patches);
    // A clock that was set back puts nothing off.
    if (this.#isSaving || (now >= this.#savedAt && now - this.#savedAt < this.#pause)) return;
    this.#isSaving = true;
    const began = performance.now();
    this.#saving = this.#save().finally(() => {
      this.#isSaving = false;
      this.#savedAt = this.#options.now();
      this.#pause = Math.max(SAVE_MS, SAVE_SHARE * (performance.now() - began));
    });
  }

  #with(id: string, status: Status): Status {
    return this.#options.webhooks.with(id, this.#sums.with(id, status));
  }

  async #save(): Promise<void> {
    const { webhooks } = this.#options;
    if (!webhooks.changed() && !this.#sums.dirty) return;
    this.#sums.dirty = false;
    const content = { ...this.#sums.save(), webhooks: tuples(webhooks.told) };
    await writeJson(this.#options.state, HITS_FILE, content).catch((error: unknown) => {
      this.#sums.dirty = true;
      this.#options.log.error({ reason: String(error) }, 'cannot save the hit counters');
    });
  }
}
