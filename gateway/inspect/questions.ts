/**
 * Bounds on questions to DNS servers beside what policy says of their names and types: how many of one source a port lets
 * through in a second (a token bucket: after a quiet second so many at once), and names that carry data rather than name
 * something. Pure; time comes with the call.
 */
import type { Decision } from '../../policy/decision.ts';
import type { NameMeasures } from '../../wire/dns-name.ts';
import { Aged } from './aged.ts';
import type { InspectReason } from './reasons.ts';

export interface QuestionLimits {
  /** Of a name's labels below the last two: with more characters than this, and more bits in each, it carries data. */
  tunnelCharacters: number;
  tunnelEntropy: number;
}

/** Tunnels fill names with base32 or more, some 200 characters; reverse names of IPv6 have 32, hashes 32 to 64. */
export const questionLimits: QuestionLimits = { tunnelCharacters: 100, tunnelEntropy: 3.8 };

interface Bucket {
  tokens: number;
  at: number;
}

const BUCKETS_MAX = 65_536;

export class Questions {
  /** The longest unused first. */
  readonly #buckets = new Aged<Bucket>();
  readonly #limits: QuestionLimits;

  constructor(limits: QuestionLimits = questionLimits) {
    this.#limits = limits;
  }

  /** Why a question must not pass that is permitted. Where it may, a token of each bound is taken. */
  refuse(source: string, decision: Decision, measures: NameMeasures, now: number): InspectReason | undefined {
    const { tunnelCharacters, tunnelEntropy } = this.#limits;
    if (measures.entropyOf > tunnelCharacters && measures.entropy > tunnelEntropy) return 'tunnel';
    const bounds = decision.questionsPerSecond;
    if (bounds === undefined) return undefined;
    const buckets = Object.entries(bounds).map(([service, most]) => this.#bucket(`${source} ${service}`, most, now));
    if (buckets.some(({ tokens }) => tokens < 1)) return 'question-rate';
    for (const bucket of buckets) bucket.tokens--;
    return undefined;
  }

  #bucket(key: string, perSecond: number, now: number): Bucket {
    const known = this.#buckets.get(key);
    const bucket = known ?? { tokens: perSecond, at: now };
    bucket.tokens = Math.min(perSecond, bucket.tokens + ((now - bucket.at) / 1000) * perSecond);
    bucket.at = now;
    this.#buckets.put(key, bucket);
    if (this.#buckets.size > BUCKETS_MAX) this.#buckets.deleteOldest();
    return bucket;
  }
}
