/**
 * Metrics of a gateway's names (design §8): what the table holds and lost, how the other gateways keep up, what resolvers
 * answer. Counts that the parts keep themselves are read when Prometheus asks.
 */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { type NameTable, type NameTableReason, nameTableReasons } from '../inspect/name-table.ts';
import { type QuestionReason, type Questions, questionReasons } from './questions.ts';
import type { Outcome } from './resolver.ts';
import type { SkipReason } from './sharing.ts';
import type { WarmNames } from './warm.ts';

/** By whom a pair was taught. */
export const teachers = ['answer', 'question', 'gateway', 'disk'] as const;
export type Teacher = (typeof teachers)[number];

export interface NamesMetrics {
  learned(by: Teacher, pairs: number): void;
  skipped(gateway: string, reason: SkipReason): void;
  shared(seconds: number): void;
  answered(outcome: Outcome, seconds: number): void;
  /** The plan has no such gateway any more. */
  gone(gateway: string): void;
}

export interface NamesParts {
  table: NameTable;
  questions: Questions;
  warm: WarmNames;
  /** Gateways of the plan without this one, and those that are connected. */
  gateways(): { expected: number; connected: number };
}

export function namesMetrics(registry: Registry, parts: NamesParts): NamesMetrics {
  const registers = [registry];
  const gauge = (name: string, help: string, value: () => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  };
  gauge('sluice_gateway_names_pairs', 'Pairs of name and address that the name table holds', () => parts.table.size);
  gauge('sluice_gateway_names_gateways', 'Other gateways of the pool', () => parts.gateways().expected);
  gauge(
    'sluice_gateway_names_gateways_connected',
    'Other gateways of the pool with which names are shared now',
    () => parts.gateways().connected,
  );
  gauge('sluice_gateway_names_warm', 'Exact names that are asked for before a flow comes', () => parts.warm.size);
  gauge('sluice_gateway_names_warm_left_out', 'Exact names that are more than are kept warm', () => parts.warm.leftOut);
  const counted = <R extends string>(
    name: string,
    help: string,
    reasons: Record<R, string>,
    counts: Record<R, number>,
  ): void => {
    new Counter({
      name,
      help,
      labelNames: ['reason'],
      registers,
      collect() {
        this.reset();
        for (const reason of Object.keys(reasons) as R[]) this.inc({ reason }, counts[reason]);
      },
    });
  };
  counted<NameTableReason>(
    'sluice_gateway_names_pairs_lost_total',
    'Pairs that the name table did not learn, or has no more, by reason',
    nameTableReasons,
    parts.table.counts,
  );
  counted<QuestionReason>(
    'sluice_gateway_names_questions_spared_total',
    'Questions for which a flow waited and that were not asked, by reason',
    questionReasons,
    parts.questions.counts,
  );
  const learned = new Counter({
    name: 'sluice_gateway_names_learned_total',
    help: 'Pairs learned that were new or hold longer, by who taught them',
    labelNames: ['by'],
    registers,
  });
  const skipped = new Counter({
    name: 'sluice_gateway_names_acks_skipped_total',
    help: 'Answers of resolvers that were let on before a gateway said that it has what they say, by gateway and reason',
    labelNames: ['gateway', 'reason'],
    registers,
  });
  const shared = new Histogram({
    name: 'sluice_gateway_names_replication_seconds',
    help: 'Time for which an answer of a resolver waited for the other gateways',
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1],
    registers,
  });
  const answers = new Histogram({
    name: 'sluice_gateway_names_question_seconds',
    help: "Time until the pool's resolvers answered a question of this gateway, by outcome",
    labelNames: ['outcome'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5],
    registers,
  });
  return {
    learned: (by, pairs) => learned.inc({ by }, pairs),
    skipped: (gateway, reason) => skipped.inc({ gateway, reason }),
    shared: (seconds) => shared.observe(seconds),
    answered: (outcome, seconds) => answers.observe({ outcome }, seconds),
    gone(gateway) {
      for (const reason of ['down', 'silent', 'late', 'lost'] satisfies SkipReason[])
        skipped.remove({ gateway, reason });
    },
  };
}
