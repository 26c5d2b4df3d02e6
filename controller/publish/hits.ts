/**
 * Hit counters summed over gateways, and when a status may show them (design §8: rounded, once in 60 s an object, 20
 * writes a second in all). A gateway tells totals, so that a message that is lost or told twice changes nothing.
 * Pure; the clock is passed in. Memory: rules in force and within the last hour, once a gateway.
 */
import {
  type HitsTuple,
  hitsTuple,
  isHitId,
  MAX_COUNT,
  noHits,
  type RuleHits,
  readHits,
  roundHits,
  statusCounters,
} from '../../api/hits.ts';
import { isRecord } from '../../api/plan-delta.ts';
import type { Status } from '../plan/condition.ts';

/** As long as a gateway keeps the totals of a rule that is away. */
const KEEP_MS = 3_600_000;
const OBJECT_MS = 60_000;
const WRITES_PER_SECOND = 20;

interface Told {
  epoch: string;
  totals: Map<string, RuleHits>;
}

export class HitSums {
  /** Something is to be saved. */
  dirty = false;
  readonly #sums = new Map<string, RuleHits>();
  /** Gateway → what it told last. */
  readonly #told = new Map<string, Told>();
  /** Since when a rule is away. */
  readonly #gone = new Map<string, number>();
  /** Until they are known, any. */
  #rules: { has(id: string): boolean } = { has: () => true };
  /** What statuses show, and since when; those to be shown next, the longest waiting first. */
  readonly #shown = new Map<string, { hits: RuleHits; at: number }>();
  readonly #waiting = new Set<string>();
  readonly #decorated = new WeakMap<Status, { shown: RuleHits; status: Status }>();
  #budget = WRITES_PER_SECOND;
  #budgetAt = Number.NEGATIVE_INFINITY;

  get sums(): ReadonlyMap<string, RuleHits> {
    return this.#sums;
  }

  /** The rules that there are: others are not counted, and forgotten after a while. */
  use(rules: { has(id: string): boolean }, now: number): void {
    this.#rules = rules;
    for (const id of this.#sums.keys()) {
      if (rules.has(id)) this.#gone.delete(id);
      else if (!this.#gone.has(id)) this.#gone.set(id, now);
    }
    for (const [id, since] of this.#gone) {
      if (now - since < KEEP_MS) continue;
      for (const map of [this.#gone, this.#sums, this.#shown]) map.delete(id);
      for (const { totals } of this.#told.values()) totals.delete(id);
      this.#waiting.delete(id);
      this.dirty = true;
    }
  }

  /** Returns the rules that met new flows. */
  report(gateway: string, epoch: string, rules: Readonly<Record<string, HitsTuple>>): string[] {
    const grown: string[] = [];
    let told = this.#told.get(gateway);
    if (told?.epoch !== epoch) {
      told = { epoch, totals: new Map() };
      this.#told.set(gateway, told);
    }
    for (const [id, tuple] of Object.entries(rules)) {
      const totals = readHits(tuple);
      if (totals === undefined || !this.#rules.has(id)) continue;
      const before = told.totals.get(id) ?? noHits();
      told.totals.set(id, totals);
      const sum = this.#sums.get(id) ?? noHits();
      // Less than before within an epoch: an older state of the gateway came back. What it counts again was counted.
      for (const field of ['hits', 'flows', 'packets', 'bytes'] as const) {
        sum[field] = Math.min(MAX_COUNT, sum[field] + Math.max(0, totals[field] - before[field]));
      }
      sum.lastHit = Math.max(sum.lastHit, totals.lastHit);
      this.#sums.set(id, sum);
      this.#waiting.add(id);
      this.dirty = true;
      if (totals.flows > before.flows) grown.push(id);
    }
    return grown;
  }

  /** Rules whose status may show other counters now than it does; it is taken as done. */
  due(now: number): string[] {
    // A clock may be set back.
    const seconds = Math.max(0, now - this.#budgetAt) / 1000;
    this.#budget = Math.min(WRITES_PER_SECOND, this.#budget + WRITES_PER_SECOND * seconds);
    this.#budgetAt = now;
    const due: string[] = [];
    for (const id of this.#waiting) {
      if (this.#budget < 1) break;
      const shown = this.#shown.get(id);
      if (shown !== undefined && now >= shown.at && now - shown.at < OBJECT_MS) continue;
      this.#waiting.delete(id);
      const hits = roundHits(this.#sums.get(id) ?? noHits());
      if (shown !== undefined && sameHits(shown.hits, hits)) continue;
      this.#shown.set(id, { hits, at: now });
      this.#budget--;
      due.push(id);
    }
    if (due.length > 0) this.dirty = true;
    return due;
  }

  /** The status with the counters that it may show. */
  with(id: string, status: Status): Status {
    const shown = this.#shown.get(id);
    if (shown === undefined) return status;
    // Those that did not change stay the same object, so that nobody writes them again.
    const known = this.#decorated.get(status);
    if (known?.shown === shown.hits) return known.status;
    const field = id.startsWith('default/') ? 'defaultActionCounters' : 'counters';
    const decorated = { ...status, [field]: statusCounters(shown.hits) };
    this.#decorated.set(status, { shown: shown.hits, status: decorated });
    return decorated;
  }

  save(): object {
    return {
      sums: tuples(this.#sums),
      shown: tuples(new Map([...this.#shown].map(([id, { hits }]) => [id, hits]))),
      told: Object.fromEntries(
        [...this.#told].map(([gateway, { epoch, totals }]) => [gateway, { epoch, totals: tuples(totals) }]),
      ),
    };
  }

  /** From our own file; what is damaged in it is left out. */
  static restore(saved: unknown): HitSums {
    const hits = new HitSums();
    if (!isRecord(saved)) return hits;
    for (const [id, sum] of readSums(saved)) hits.#sums.set(id, sum);
    for (const [id, shown] of entries(saved.shown)) {
      hits.#shown.set(id, { hits: shown, at: Number.NEGATIVE_INFINITY });
      hits.#waiting.add(id);
    }
    for (const [gateway, told] of Object.entries(isRecord(saved.told) ? saved.told : {})) {
      if (!isRecord(told) || typeof told.epoch !== 'string') continue;
      hits.#told.set(gateway, { epoch: told.epoch, totals: new Map(entries(told.totals)) });
    }
    return hits;
  }
}

/** The sums in the controller's file, by id; `webhooks`: what of them webhooks were told. */
export const readSums = (saved: unknown, field: 'sums' | 'webhooks' = 'sums'): Map<string, RuleHits> =>
  new Map(entries(isRecord(saved) ? saved[field] : {}));

function entries(tuples: unknown): [string, RuleHits][] {
  return Object.entries(isRecord(tuples) ? tuples : {}).flatMap(([id, tuple]): [string, RuleHits][] => {
    const hits = readHits(tuple);
    return hits === undefined || !isHitId(id) ? [] : [[id, hits]];
  });
}

export const tuples = (map: ReadonlyMap<string, RuleHits>): Record<string, HitsTuple> =>
  Object.fromEntries([...map].map(([id, hits]) => [id, hitsTuple(hits)]));

const sameHits = (a: RuleHits, b: RuleHits): boolean => String(hitsTuple(a)) === String(hitsTuple(b));
