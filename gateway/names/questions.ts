/**
 * Which questions a gateway asks of its resolvers because a flow waits, and how many: each name once at a time, an answer
 * remembered for a moment, and bounds in all and for each domain, so that flows to made-up names under a wildcard that a
 * tenant permitted itself neither flood the resolvers nor keep others' names from being asked.
 */
import type { Family } from '../../api/plan.ts';
import type { Answer, Outcome } from './resolver.ts';

export interface QuestionLimits {
  /** At once, and a second; in all, and below one domain (the last two labels). */
  inFlight: number;
  inFlightOfDomain: number;
  perSecond: number;
  perSecondOfDomain: number;
  /** Answers that are remembered. */
  remembered: number;
  /** Milliseconds for which the same is not asked again. What was found is in the table, and another address may be next. */
  rememberMs: Record<Outcome, number>;
}

export const defaultQuestionLimits: QuestionLimits = {
  inFlight: 64,
  inFlightOfDomain: 16,
  perSecond: 200,
  perSecondOfDomain: 50,
  remembered: 4_096,
  rememberMs: { found: 250, none: 5_000, failed: 1_000 },
};

/** Why a question was not asked. */
export const questionReasons = {
  remembered: 'it was answered a moment ago',
  busy: 'too many questions wait for an answer, in all or below its domain',
  rate: 'too many were asked in this second, in all or below its domain',
} as const;
export type QuestionReason = keyof typeof questionReasons;

interface Asked {
  outcome: Outcome;
  until: number;
}

export class Questions {
  readonly #ask: (name: string, families: readonly Family[]) => Promise<Answer | undefined>;
  readonly #limits: QuestionLimits;
  readonly #inFlight = new Map<string, Promise<void>>();
  readonly #inFlightOf = new Map<string, number>();
  /** The oldest first. */
  readonly #remembered = new Map<string, Asked>();
  /** Of the second that runs. */
  #second = 0;
  #asked = 0;
  readonly #askedOf = new Map<string, number>();
  readonly counts: Record<QuestionReason, number> = { remembered: 0, busy: 0, rate: 0 };

  /** `ask` has done with the answer what there is to do when it resolves. Undefined: it counts for nothing. */
  constructor(
    ask: (name: string, families: readonly Family[]) => Promise<Answer | undefined>,
    limits: QuestionLimits = defaultQuestionLimits,
  ) {
    this.#ask = ask;
    this.#limits = limits;
  }

  /** Undefined: nothing is asked, what is known is known. Else resolves when the answer is in the table, or none came. */
  ask(name: string, families: readonly Family[], now: number): Promise<void> | undefined {
    const key = `${name} ${[...families].sort().join('')}`;
    const running = this.#inFlight.get(key);
    if (running !== undefined) return running;
    const domain = domainOf(name);
    const reason = this.#refuses(key, domain, now);
    if (reason !== undefined) {
      this.counts[reason]++;
      return undefined;
    }
    this.#asked++;
    this.#askedOf.set(domain, (this.#askedOf.get(domain) ?? 0) + 1);
    this.#inFlightOf.set(domain, (this.#inFlightOf.get(domain) ?? 0) + 1);
    const question = this.#ask(name, families).then((answer) => {
      this.#inFlight.delete(key);
      const left = (this.#inFlightOf.get(domain) ?? 1) - 1;
      if (left === 0) this.#inFlightOf.delete(domain);
      else this.#inFlightOf.set(domain, left);
      if (answer === undefined) return;
      const { outcome } = answer;
      this.#remember(key, { outcome, until: now + this.#limits.rememberMs[outcome] });
    });
    this.#inFlight.set(key, question);
    return question;
  }

  #refuses(key: string, domain: string, now: number): QuestionReason | undefined {
    const { inFlight, inFlightOfDomain, perSecond, perSecondOfDomain, rememberMs } = this.#limits;
    const asked = this.#remembered.get(key);
    // A clock that was set back must not make a memory last.
    if (asked !== undefined && asked.until > now && asked.until <= now + rememberMs[asked.outcome]) return 'remembered';
    if (this.#inFlight.size >= inFlight || (this.#inFlightOf.get(domain) ?? 0) >= inFlightOfDomain) return 'busy';
    const second = Math.floor(now / 1000);
    if (second !== this.#second) {
      this.#second = second;
      this.#asked = 0;
      this.#askedOf.clear();
    }
    return this.#asked >= perSecond || (this.#askedOf.get(domain) ?? 0) >= perSecondOfDomain ? 'rate' : undefined;
  }

  #remember(key: string, asked: Asked): void {
    this.#remembered.delete(key);
    this.#remembered.set(key, asked);
    if (this.#remembered.size <= this.#limits.remembered) return;
    const [oldest] = this.#remembered.keys();
    if (oldest !== undefined) this.#remembered.delete(oldest);
  }

  /** Others may answer otherwise. */
  forget(): void {
    this.#remembered.clear();
  }
}

/** Whoever can make up names has a domain, mostly of two labels. */
const domainOf = (name: string): string => name.split('.').slice(-2).join('.');
