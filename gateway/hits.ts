/**
 * Hit counters of a gateway's rules, put together: the kernel's counters and the flows' traffic are read every ten
 * seconds and before the rules change, saved (DIR/hits.json), and only then reported, so that no report says more than
 * a crash would leave. Living flows are looked at once a minute. Whatever takes long is done more seldom, so that all
 * of it costs at most a twentieth of the time.
 */
import { randomUUID } from 'node:crypto';
import { open, readFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { defaultActionId, type RuleHits } from '../api/hits.ts';
import type { GatewayPlan } from '../api/plan.ts';
import { isRecord } from '../api/plan-delta.ts';
import { MAX_HITS_RULES } from '../api/plan-stream.ts';
import type { CounterValue } from '../kernel/nft.ts';
import { type Numbers, refusedMark, ruleMark } from './marks.ts';
import type { FlowRecord } from './record/flow-record.ts';
import type { Carried } from './record/flow-traffic.ts';
import { type Counted, countedRules, countedUnder, HitTotals, hitsIdOf } from './record/hit-totals.ts';

const READ_MS = 10_000;
const LOOK_MS = 60_000;
const SHARE = 20;
/** Of a round's report: the rest waits for the next round. */
const MESSAGES = 20;
/** Counters of a few rules are asked for by name, since the whole set of 100,000 takes a tenth of a second. */
const READ_SINGLY = 1000;
const FILE = 'hits.json';
const MAX_BYTES = 256 * 1024 * 1024;

export interface HitsOptions {
  /** Directory for what must outlive the process. */
  state: string;
  /** Of the machine's present boot; the kernel's counters do not outlive it. */
  boot: string;
  /** Mark → counter of the table's set; of these marks, or of all. */
  counts(marks?: readonly number[]): Promise<Map<number, CounterValue>>;
  /** Has traffic() told of every flow that lives. */
  lookAtFlows(): Promise<void>;
  /** false: not connected, or too slow. */
  report(epoch: string, rules: [id: string, hits: RuleHits][]): boolean;
  onError(error: unknown): void;
  now?(): number;
}

export class GatewayHits {
  /** When living flows were looked at last; milliseconds since the epoch. */
  lookedAt = 0;
  readonly #options: HitsOptions;
  readonly #now: () => number;
  /** Drawn anew when totals start at zero. */
  #epoch: string = randomUUID();
  #hits = new HitTotals();
  #pool = '';
  /** Of the plan in force. */
  #numbers: Numbers | undefined;
  /** One reading at a time: two that overlap would count twice. */
  #turn: Promise<void> = Promise.resolve();
  #waiting: Promise<void> | undefined;
  #cost = 0;
  #readAt = 0;
  #lookCost = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor(options: HitsOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
  }

  /** Restores what an earlier run saved, and counts what the kernel has counted since. */
  static async open(options: HitsOptions): Promise<GatewayHits> {
    const hits = new GatewayHits(options);
    await hits.#restore();
    await hits.read().catch(options.onError);
    return hits;
  }

  get totals(): ReadonlyMap<string, RuleHits> {
    return this.#hits.totals;
  }

  /** Before other rules are counted under these numbers (undefined: under any): what has been counted under them. */
  async before(numbers: ReadonlySet<number> | undefined): Promise<void> {
    if (numbers === undefined || numbers.size > READ_SINGLY) return this.recount();
    if (numbers.size === 0) return;
    await this.#inTurn(async () => {
      const marks = [...numbers].flatMap((number) => [ruleMark(number), refusedMark(number)]);
      this.#hits.fold(await this.#options.counts(marks), this.#now());
    }).catch(this.#options.onError);
  }

  /** Before the table is compared with the plan: whether it is gone, and its counters with it. */
  async recount(): Promise<void> {
    await this.read().catch(this.#options.onError);
  }

  /** The plan is in force. `changed`: numbers that had another meaning; undefined: all. */
  inForce(plan: GatewayPlan, numbers: Numbers, changed: ReadonlySet<number> | undefined): void {
    this.#pool = 'pool' in plan.settings ? plan.settings.pool.pool : '';
    this.#numbers = numbers;
    if (changed === undefined) this.#hits.use(countedRules(plan, numbers), this.#now());
    else if (changed.size > 0) {
      const marks = [...changed].flatMap((number) => countedUnder(plan, number, numbers.nameOf(number)));
      this.#hits.recount(marks, this.#now());
    }
  }

  /** Of flows that threads have decided: what the kernel did not count. */
  matched(hits: readonly Counted[]): void {
    const isHere = (id: string): boolean => id === defaultActionId(this.#pool) || this.#numbers?.get(id) !== undefined;
    for (const hit of hits) this.#hits.met(hit, isHere(hit.id), this.#now());
  }

  traffic(started: FlowRecord, { packets, bytes }: Carried): void {
    const id = hitsIdOf(started, this.#pool);
    if (id !== undefined) this.#hits.traffic(id, packets, bytes, this.#now());
  }

  /** Counts are as of now when this returns; readers that come meanwhile share one reading. */
  read(): Promise<void> {
    this.#waiting ??= this.#inTurn(async () => {
      this.#waiting = undefined;
      const began = performance.now();
      const counts = await this.#options.counts();
      if (counts.size === 0) this.#hits.reset();
      this.#hits.fold(counts, this.#now());
      this.#cost = performance.now() - began;
      this.#readAt = this.#now();
    });
    return this.#waiting;
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** For whoever asks often: reads only if that was not done a moment ago. */
  async fresh(): Promise<void> {
    if (this.#now() - this.#readAt > SHARE * this.#cost) await this.read();
  }

  /** The other end knows nothing, or may have forgotten: it is told everything. */
  connected(): void {
    this.#hits.again();
  }

  start(): void {
    const next = (wait: number): void => {
      if (this.#closed) return;
      this.#timer = setTimeout(() => {
        const began = performance.now();
        this.round()
          .catch(this.#options.onError)
          .finally(() => next(Math.max(READ_MS, SHARE * (performance.now() - began))));
      }, wait);
    };
    next(READ_MS);
  }

  /** Reads, saves, reports. */
  async round(): Promise<void> {
    if (this.#now() - this.lookedAt >= Math.max(LOOK_MS, SHARE * this.#lookCost)) await this.#look();
    await this.read();
    await this.#save();
    for (let sent = 0; sent < MESSAGES; sent++) {
      const rules = this.#hits.take(MAX_HITS_RULES);
      if (rules.length === 0) return;
      if (this.#options.report(this.#epoch, rules)) continue;
      this.#hits.again(rules.map(([id]) => id));
      return;
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#look()
      .then(() => this.read())
      .then(() => this.#save())
      .catch(this.#options.onError);
  }

  async #look(): Promise<void> {
    const began = performance.now();
    const at = this.#now();
    await this.#options.lookAtFlows();
    this.lookedAt = at;
    this.#lookCost = performance.now() - began;
  }

  async #save(): Promise<void> {
    if (!this.#hits.dirty) return;
    this.#hits.dirty = false;
    const { boot, state } = this.#options;
    const content = { epoch: this.#epoch, boot, lookedAt: this.lookedAt, ...this.#hits.save() };
    const file = join(state, FILE);
    // Not synced, as the saved plan is not: the kernel's counters die with the machine too.
    const handle = await open(`${file}.new`, 'w', 0o600);
    await handle.writeFile(JSON.stringify(content)).finally(() => handle.close());
    await rename(`${file}.new`, file);
  }

  async #restore(): Promise<void> {
    const file = join(this.#options.state, FILE);
    let saved: unknown;
    try {
      if ((await stat(file)).size > MAX_BYTES) return;
      saved = JSON.parse(await readFile(file, 'utf8'));
    } catch {
      return;
    }
    if (!isRecord(saved) || typeof saved.epoch !== 'string') return;
    this.#epoch = saved.epoch;
    if (Number.isSafeInteger(saved.lookedAt)) this.lookedAt = Number(saved.lookedAt);
    this.#hits = HitTotals.restore(saved, saved.boot === this.#options.boot);
  }
}
