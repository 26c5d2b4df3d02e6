/**
 * What a rule has met (design §8): counters as a gateway keeps them, reports them and the controller sums them up. What
 * is in audit counts as it would have been: a packet that would have been denied as denied, whatever became of it.
 * Ids are those of a plan's rules (`cluster/NAME`, `namespace/NS/NAME`, `service/NS/NAME`); a pool's default action
 * counts like a rule, under `default/POOL`.
 */
import type { Context } from './plan.ts';

export interface RuleHits {
  /**
   * Packets that the rule matched where policy is walked: the first of each flow, and every one that it denied, or that
   * was over its limit or redirected to where it may not go.
   */
  hits: number;
  /** Flows among them that it permitted, or let on to the next context. */
  flows: number;
  /** Of flows that it permitted, both ways, and what it denied. Bytes of IP packets. */
  packets: number;
  bytes: number;
  /** Milliseconds since the epoch, 0: never. */
  lastHit: number;
}

/** The five as they are sent and stored. */
export type HitsTuple = [hits: number, flows: number, packets: number, bytes: number, lastHit: number];

export const noHits = (): RuleHits => ({ hits: 0, flows: 0, packets: 0, bytes: 0, lastHit: 0 });
export const hitsTuple = ({ hits, flows, packets, bytes, lastHit }: RuleHits): HitsTuple => [
  hits,
  flows,
  packets,
  bytes,
  lastHit,
];

/** Of each count but the last: 2 years of 100 Gbit/s. It is beyond what a number holds exactly (9 PB), which rounds it by bytes. */
export const MAX_COUNT = 1e18;
/** What a Date can say. */
const LAST_TIME = 8.64e15;

/** undefined: not five counts. */
export function readHits(value: unknown): RuleHits | undefined {
  if (!Array.isArray(value) || value.length !== 5) return undefined;
  if (!value.every((item) => Number.isInteger(item) && item >= 0 && item <= MAX_COUNT)) return undefined;
  const [hits, flows, packets, bytes, lastHit] = value as HitsTuple;
  return lastHit > LAST_TIME ? undefined : { hits, flows, packets, bytes, lastHit };
}

export const defaultActionId = (pool: string): string => `default/${pool}`;

const namePattern = '[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?';
const idPattern = new RegExp(`^((cluster|default)/${namePattern}|(namespace|service)/${namePattern}/${namePattern})$`);
export const isHitId = (text: string): boolean => idPattern.test(text);

const kindOf: Record<Context | 'default', string> = {
  cluster: 'ClusterEgressRule',
  namespace: 'NamespaceEgressRule',
  service: 'ServiceEgressRule',
  default: 'GatewayPool',
};

const contextOf = new Map(Object.entries(kindOf).map(([context, kind]) => [kind, context]));

/** Whose counters an object's status shows (`ServiceEgressRule/billing/pay`, `GatewayPool/edge`); undefined: nobody's. */
export function hitsIdOfObject(key: string): string | undefined {
  const slash = key.indexOf('/');
  const context = contextOf.get(key.slice(0, slash));
  return context === undefined ? undefined : `${context}${key.slice(slash)}`;
}

/** As a status shows a count: two significant digits, rounded down, so that a busy rule changes its object seldom. */
export function roundCount(count: number): number {
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(count, 1))) - 1);
  return Math.floor(count / unit) * unit;
}

/** What a status shows: rounded counts, and the minute of the last hit. */
export const roundHits = ({ hits, flows, packets, bytes, lastHit }: RuleHits): RuleHits => ({
  hits: roundCount(hits),
  flows: roundCount(flows),
  packets: roundCount(packets),
  bytes: roundCount(bytes),
  lastHit: lastHit - (lastHit % 60_000),
});

/** `status.counters` of a rule, `status.defaultActionCounters` of a pool. */
export interface StatusCounters extends Omit<RuleHits, 'lastHit'> {
  /** RFC 3339; absent: never. */
  lastHit?: string;
}

export const statusCounters = ({ lastHit, ...counts }: RuleHits): StatusCounters => ({
  ...counts,
  ...(lastHit === 0 ? {} : { lastHit: `${new Date(lastHit).toISOString().slice(0, 19)}Z` }),
});
