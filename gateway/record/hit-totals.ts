/**
 * Totals per rule from what the kernel counts per mark of a rule (design §8): the counter of a set's element, which dies
 * with the rule's number or the table, and the packets and bytes of flows. Totals belong to the rule's id, and so
 * survive a change of the ruleset, of the rule, and the process (save, restore). Pure; the clock is passed in.
 * Memory: the rules of the plan, and those that went within the last hour.
 */
import {
  defaultActionId,
  type HitsTuple,
  hitsTuple,
  isHitId,
  noHits,
  type RuleHits,
  readHits,
} from '../../api/hits.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { isRecord } from '../../api/plan-delta.ts';
import type { CounterValue } from '../../kernel/nft.ts';
import { DEFAULT_ACTION, refusedMark, ruleMark } from '../marks.ts';
import { refuses } from '../verdict.ts';
import type { FlowRecord } from './flow-record.ts';

/** A rule may be away for a moment: a file renamed, a manifest refused. Then its totals go on. */
const KEEP_MS = 3_600_000;
const KEEP_MOST = 10_000;

const kinds = ['permits', 'denies', 'refuses'] as const;

/** Who is counted under a mark. */
export interface Counted {
  id: string;
  /** What a packet there has met: a rule that lets it on, one that denies, or one that lets on others like it. */
  as: (typeof kinds)[number];
}

/** Who is counted under the marks of a number by a plan; undefined: nobody. */
export function countedUnder(
  plan: GatewayPlan,
  number: number,
  id: string | undefined,
): [mark: number, counted: Counted | undefined][] {
  const [mark, refused] = [ruleMark(number), refusedMark(number)];
  const nobody: [number, undefined] = [refused, undefined];
  if (id === undefined || !('pool' in plan.settings)) return [[mark, undefined], nobody];
  const { pool, defaultAction } = plan.settings.pool;
  if (id === DEFAULT_ACTION) {
    return [[mark, { id: defaultActionId(pool), as: defaultAction === 'Drop' ? 'denies' : 'permits' }], nobody];
  }
  const rule = plan.rules[id];
  const denies = rule?.action === 'drop' || rule?.action === 'reject';
  return [
    [mark, { id, as: denies ? 'denies' : 'permits' }],
    rule !== undefined && refuses(rule) ? [refused, { id, as: 'refuses' }] : nobody,
  ];
}

export function countedRules(plan: GatewayPlan, numbers: Iterable<[id: string, number: number]>): Map<number, Counted> {
  const all = new Map<number, Counted>();
  for (const [id, number] of numbers) {
    for (const [mark, counted] of countedUnder(plan, number, id)) if (counted !== undefined) all.set(mark, counted);
  }
  return all;
}

/** The rule that permitted a flow; undefined where its record does not say, or names what would have denied it. */
export function hitsIdOf({ context, rule, reason, wouldHave }: FlowRecord, pool: string): string | undefined {
  if (wouldHave !== undefined) return undefined;
  if (context !== undefined && rule !== undefined) return `${context}/${rule}`;
  return reason === 'default-action' && pool !== '' ? defaultActionId(pool) : undefined;
}

export interface SavedHits {
  /** The counters as they were last read. */
  counters: [mark: number, id: string, as: Counted['as'], packets: number, bytes: number][];
  totals: Record<string, HitsTuple>;
}

export class HitTotals {
  readonly totals = new Map<string, RuleHits>();
  /** Something is to be saved. */
  dirty = false;
  /** By mark, as #last. */
  #counted = new Map<number, Counted>();
  #last = new Map<number, CounterValue>();
  /** Id of a rule that is not in the plan → since when. The longest gone first. */
  readonly #gone = new Map<string, number>();
  readonly #changed = new Set<string>();

  /** Who is counted where from now on. What was counted before should have been read. */
  use(counted: Map<number, Counted>, now: number): void {
    this.dirty = true;
    this.#counted = counted;
    for (const mark of this.#last.keys()) if (!counted.has(mark)) this.#last.delete(mark);
    const here = new Set([...counted.values()].map(({ id }) => id));
    for (const id of this.totals.keys()) {
      if (here.has(id)) this.#gone.delete(id);
      else if (!this.#gone.has(id)) this.#gone.set(id, now);
    }
    this.#forget(now);
  }

  /** The same where only these marks have changed; undefined: nobody is counted under it any more. */
  recount(changes: Iterable<readonly [mark: number, counted: Counted | undefined]>, now: number): void {
    this.dirty = true;
    const [gone, here] = [new Set<string>(), new Set<string>()];
    for (const [mark, counted] of changes) {
      const before = this.#counted.get(mark);
      if (before !== undefined) gone.add(before.id);
      if (counted === undefined) {
        this.#counted.delete(mark);
        this.#last.delete(mark);
      } else {
        this.#counted.set(mark, counted);
        here.add(counted.id);
      }
    }
    for (const id of gone) if (!here.has(id) && this.totals.has(id) && !this.#gone.has(id)) this.#gone.set(id, now);
    for (const id of here) this.#gone.delete(id);
    this.#forget(now);
  }

  /** None of the kernel's counters is there any more: they went with their table, and the next ones start at zero. */
  reset(): void {
    this.#last.clear();
  }

  /** What the kernel's counters say. One that is not among them was not read: it says nothing. */
  fold(counts: ReadonlyMap<number, CounterValue>, now: number): void {
    for (const [mark, value] of counts) {
      const counted = this.#counted.get(mark);
      if (counted === undefined) continue;
      const last = this.#last.get(mark);
      this.#last.set(mark, value);
      if (value.packets === last?.packets) continue;
      this.dirty = true;
      // A counter only grows; one that is smaller was made anew.
      const base = last === undefined || value.packets < last.packets ? { packets: 0, bytes: 0 } : last;
      const packets = value.packets - base.packets;
      if (packets === 0) continue;
      const totals = this.#of(counted.id);
      this.#gone.delete(counted.id);
      totals.hits += packets;
      totals.lastHit = now;
      if (counted.as === 'permits') totals.flows += packets;
      if (counted.as !== 'denies') continue;
      totals.packets += packets;
      totals.bytes += value.bytes - base.bytes;
    }
    this.#forget(now);
  }

  /** A hit that the kernel does not count: a thread walked the policy. `here`: the plan has the rule. */
  met({ id, as }: Counted, here: boolean, now: number): void {
    if (here) this.#gone.delete(id);
    else if (!this.#gone.has(id)) this.#gone.set(id, now);
    const totals = this.#of(id);
    totals.hits++;
    totals.lastHit = now;
    if (as === 'permits') totals.flows++;
    if (as === 'denies') totals.packets++;
  }

  /** What flows that the rule permitted have carried since they were last asked. */
  traffic(id: string, packets: number, bytes: number, now: number): void {
    if (packets === 0) return;
    // Away since long, unless its first hit was not read yet.
    if (!this.totals.has(id)) this.#gone.set(id, now);
    const totals = this.#of(id);
    totals.packets += packets;
    totals.bytes += bytes;
  }

  /** Totals that changed since they were taken, the longest waiting first. */
  take(most: number): [id: string, hits: RuleHits][] {
    const taken: [string, RuleHits][] = [];
    for (const id of this.#changed) {
      if (taken.length === most) break;
      this.#changed.delete(id);
      const totals = this.totals.get(id);
      if (totals !== undefined) taken.push([id, totals]);
    }
    return taken;
  }

  /** These were not sent after all; or, without a list, whoever they are for knows none of them. */
  again(ids: Iterable<string> = this.totals.keys()): void {
    for (const id of ids) this.#changed.add(id);
  }

  save(): SavedHits {
    const counters: SavedHits['counters'] = [];
    for (const [mark, { packets, bytes }] of this.#last) {
      const counted = this.#counted.get(mark);
      if (counted !== undefined) counters.push([mark, counted.id, counted.as, packets, bytes]);
    }
    return { counters, totals: Object.fromEntries([...this.totals].map(([id, hits]) => [id, hitsTuple(hits)])) };
  }

  /** From our own file; what is damaged in it is left out. `sameTable`: the kernel's counters may be those of then. */
  static restore(saved: unknown, sameTable: boolean): HitTotals {
    const hits = new HitTotals();
    if (!isRecord(saved) || !isRecord(saved.totals) || !Array.isArray(saved.counters)) return hits;
    for (const [id, tuple] of Object.entries(saved.totals)) {
      const totals = readHits(tuple);
      if (totals !== undefined && isHitId(id)) hits.totals.set(id, totals);
    }
    for (const item of saved.counters) {
      const [mark, id, as, packets, bytes] = Array.isArray(item) ? item : [];
      const counts = [mark, packets, bytes].every((count) => Number.isSafeInteger(count) && count >= 0);
      if (!counts || typeof id !== 'string' || !isHitId(id) || !kinds.includes(as)) continue;
      hits.#counted.set(mark, { id, as });
      if (sameTable) hits.#last.set(mark, { packets, bytes });
    }
    return hits;
  }

  #of(id: string): RuleHits {
    let totals = this.totals.get(id);
    if (totals === undefined) {
      totals = noHits();
      this.totals.set(id, totals);
    }
    this.#changed.add(id);
    this.dirty = true;
    return totals;
  }

  #forget(now: number): void {
    for (const [id, since] of this.#gone) {
      if (now - since < KEEP_MS && this.#gone.size <= KEEP_MOST) break;
      this.#gone.delete(id);
      this.totals.delete(id);
      this.#changed.delete(id);
    }
  }
}
