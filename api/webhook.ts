/**
 * What a rule's webhook is told (docs/rules.md, Webhooks): the JSON body of one POST. Names and counts of rules that
 * the one who wrote the URL may read; nothing of pods, addresses or destinations.
 */
import { createHash } from 'node:crypto';
import type { RuleHits } from './hits.ts';
import { API_VERSION } from './names.ts';
import type { Action, Context } from './plan.ts';

/** The same content has the same key, so that a receiver can tell what it has already. */
export const IDEMPOTENCY_HEADER = 'idempotency-key';

/** Flows begun, packets and bytes both ways, as of hit counters (hits.ts). */
export type PermittedCounts = Pick<RuleHits, 'flows' | 'packets' | 'bytes'>;

export interface WebhookRule {
  context: Context;
  /** Absent: a cluster rule's. */
  namespace?: string;
  /** Name of the rule. */
  rule: string;
  action: Action;
  /** metadata.generation, where the rule has one. */
  generation?: number;
}

/** What one rule has permitted since the last delivery; at least one flow. */
export interface WebhookEvent extends WebhookRule, PermittedCounts {
  /** The same since the rule is counted; it includes what was not delivered. */
  total: PermittedCounts;
  /** RFC 3339. */
  lastHit: string;
}

export interface WebhookBody {
  apiVersion: typeof API_VERSION;
  kind: 'PermittedFlows';
  /** When it was put together, RFC 3339; it stays in later attempts. */
  time: string;
  events: WebhookEvent[];
}

const timeText = (time: number): string => new Date(time).toISOString();

/** `from`: as of the last delivery. */
export function webhookEvent(rule: WebhookRule, from: RuleHits, to: RuleHits): WebhookEvent {
  const since = (field: keyof PermittedCounts): number => Math.max(0, to[field] - from[field]);
  return {
    ...rule,
    flows: since('flows'),
    packets: since('packets'),
    bytes: since('bytes'),
    total: { flows: to.flows, packets: to.packets, bytes: to.bytes },
    lastHit: timeText(to.lastHit),
  };
}

/** `now`: milliseconds since the epoch. */
export function webhookBody(events: WebhookEvent[], now: number): WebhookBody {
  return { apiVersion: API_VERSION, kind: 'PermittedFlows', time: timeText(now), events };
}

/** Of what is told, not of when: after a restart of the controller the same is told with the same key. */
export function idempotencyKey(url: string, events: readonly WebhookEvent[]): string {
  return createHash('sha256')
    .update(JSON.stringify([url, events]))
    .digest('hex')
    .slice(0, 32);
}
