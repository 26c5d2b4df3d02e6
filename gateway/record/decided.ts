/**
 * What becomes of a flow whose bytes were read, as records and hits of rules: of the rule that decided, those that let it on
 * above it, and those in audit. The kernel counts only what it decides itself, and the deciding rule of what it lets pass
 * after a thread's verdict; the rest of the walk was the thread's, and is counted here. Pure.
 */
import type { Decision } from '../../policy/decision.ts';
import type { DecidedFlow } from '../inspect/messages.ts';
import { type FlowRecord, protocolName, type RecordView, readingFields, tuple, workloadFields } from './flow-record.ts';
import type { Counted } from './hit-totals.ts';

export interface Said {
  readonly records: FlowRecord[];
  /** Each once. */
  readonly hits: Counted[];
}

const NOTHING: Said = { records: [], hits: [] };

const isPlain = (decision: Decision | undefined, again: boolean): boolean =>
  decision?.verdict === 'accept' &&
  decision.wouldHave === undefined &&
  decision.audited === undefined &&
  decision.unconforming === undefined &&
  (again || decision.passed === undefined);

/** `again`: the flow was decided before, and lives; this is a further request of it. */
export function sayDecided(flow: DecidedFlow, view: RecordView, time: Date, again = false): Said {
  const { decision } = flow;
  // Of nearly all there is nothing to say: the kernel counts the rule that permits, and the flow's start says the rest.
  if (isPlain(decision, again)) return NOTHING;
  const said: Said = { records: [], hits: [] };
  const about = {
    ...workloadFields(view.workload(flow.source)),
    protocol: protocolName(flow.protocol),
    ...tuple(flow),
    ...readingFields(flow.reading),
    gateway: view.gateway,
  };
  const say = (record: Pick<FlowRecord, 'event' | 'verdict' | 'reason'> & Partial<FlowRecord>): void => {
    said.records.push({ time: time.toISOString(), ...record, ...about });
  };
  const named = (id: string | undefined) => {
    const { action, ...names } = view.named(id);
    return { action, names };
  };
  if (!again) {
    for (const id of decision?.passed ?? []) {
      said.hits.push({ id, as: 'permits' });
      if (view.logging(id) === 'All') say({ event: 'match', verdict: 'match', ...named(id).names });
    }
  }
  for (const { rule: id, action } of decision?.audited ?? []) {
    said.hits.push({ id, as: action === 'drop' || action === 'reject' ? 'denies' : 'permits' });
    say({ event: 'audit', verdict: 'audit', wouldHave: action, ...named(id).names });
  }
  for (const _ of decision?.unconforming ?? []) {
    say({ event: 'audit', verdict: 'audit', wouldHave: 'drop', ...named(decision?.rule).names, reason: 'conformance' });
  }
  if (decision?.wouldHave !== undefined) {
    const { names } = named(decision.rule);
    say({ event: 'audit', verdict: 'audit', wouldHave: decision.wouldHave, ...names, reason: decision.reason });
  }
  if (decision === undefined || decision.verdict !== 'accept') deny();
  return said;

  function deny(): void {
    const { rule, reason = 'unread', verdict = 'drop' } = decision ?? { reason: flow.reason };
    const id = rule ?? (reason === 'default-action' ? view.defaultAction() : undefined);
    if (id !== undefined)
      said.hits.push({ id, as: reason === 'rule' || reason === 'default-action' ? 'denies' : 'refuses' });
    if (rule !== undefined && view.logging(rule) === 'None') return;
    const { detail } = flow;
    const names = rule === undefined ? {} : named(rule).names;
    say({
      event: 'deny',
      verdict: verdict === 'reject' ? 'reject' : 'drop',
      ...names,
      reason,
      ...(detail !== undefined && { detail }),
    });
  }
}

/** At most so many records a second, of all that threads decide; hits count all. */
const RECORDS_PER_SECOND = 1_000;

/** As the kernel's `limit rate 1000/second burst 1000 packets`. */
export class RecordLimit {
  #left = RECORDS_PER_SECOND;
  #at = 0;
  /** Records that were not written. */
  over = 0;

  /** Milliseconds of any clock that does not go back. */
  take(now: number): boolean {
    const more = ((now - this.#at) * RECORDS_PER_SECOND) / 1000;
    this.#left = Math.min(RECORDS_PER_SECOND, this.#left + more);
    this.#at = now;
    if (this.#left < 1) {
      this.over++;
      return false;
    }
    this.#left--;
    return true;
  }
}
