/**
 * Who leads, as one candidate sees it: the rules of client-go's leader election over a Lease (coordination.k8s.io/v1),
 * without I/O and timers. A lease is free when its record has not changed for as long as it is given out, by this
 * candidate's own clock since it saw the change: nobody's wall clock counts. Who holds it leads until `renewMs` after it
 * *sent* the last renewal that was confirmed, which is before anyone else may take it, however late answers are, and
 * whatever the process slept through. Every write is of the version that was read. Beyond client-go: a record in this
 * candidate's own name that is not of its present term (an etcd restored, a name given twice) is another's; a lease that
 * was deleted is free no sooner than one that was not renewed.
 */
import { type Answer, type Json, recordOf } from './requests.ts';

export interface LeaseTimes {
  /** How long a lease lasts that nobody renews. */
  leaseMs: number;
  /** How long its holder leads after a renewal: less, by more than clocks run apart. */
  renewMs: number;
  /** Between renewals, and between looks at another's lease. */
  retryMs: number;
}

export const defaultLeaseTimes: LeaseTimes = { leaseMs: 6_000, renewMs: 4_000, retryMs: 1_000 };

/** Longer ones are somebody's mistake. */
const MAX_LEASE_MS = 600_000;
const JITTER = 0.2;

export interface CandidateOptions {
  namespace: string;
  name: string;
  identity: string;
  times: LeaseTimes;
  /** What the record shows to people; decides nothing. */
  wallClock(): number;
  random(): number;
}

export type Step =
  | { do: 'wait'; until: number }
  | { do: 'read' }
  /** POST when `create`, else PUT. */
  | { do: 'write'; create: boolean; lease: Json; term: string };

interface Seen {
  text: string;
  at: number;
  forMs: number;
  holder: string;
}

export class Candidate {
  readonly #options: CandidateOptions;
  #plan: 'read' | 'create' | 'take' | 'renew' = 'read';
  #nextAt = Number.NEGATIVE_INFINITY;
  /** The object as it was read or written last. */
  #lease: Json = {};
  /** What its record said, and since when it says so. */
  #seen: Seen | undefined;
  /** acquireTime of what this candidate took, or asked for. */
  #term: string | undefined;
  #leadsUntil = Number.NEGATIVE_INFINITY;

  constructor(options: CandidateOptions) {
    const { leaseMs, renewMs, retryMs } = options.times;
    if (!(leaseMs > renewMs && renewMs > retryMs * (1 + JITTER) && retryMs > 0))
      throw new Error(
        'a lease lasts longer than its holder leads without renewal, and that longer than between retries',
      );
    this.#options = options;
  }

  isLeader(now: number): boolean {
    return now < this.#leadsUntil;
  }

  /** Until when it leads if nothing is renewed. */
  get leadsUntil(): number {
    return this.#leadsUntil;
  }

  get holder(): string | undefined {
    return this.#seen?.holder === '' ? undefined : this.#seen?.holder;
  }

  next(now: number): Step {
    if (now < this.#nextAt) return { do: 'wait', until: this.#nextAt };
    if (this.#plan === 'read') return { do: 'read' };
    if (this.#plan !== 'renew') this.#term = this.#time();
    const term = this.#term ?? this.#time();
    return { do: 'write', create: this.#plan === 'create', lease: this.#record(this.#options.identity, term), term };
  }

  /** To a step that was taken at `sentAt`; what comes after the next step was taken is not told. */
  answered(step: Step, sentAt: number, now: number, { status, body }: Answer): void {
    const { renewMs, retryMs } = this.#options.times;
    if (step.do === 'read') {
      if (status === 200) this.#read(body, now);
      else if (status === 404) this.#absent(now);
      else this.#again('read', now + this.#jitter(retryMs));
    } else if (step.do === 'write') {
      if (status === 200 || status === 201) {
        this.#lease = body;
        this.#see(now);
        this.#leadsUntil = Math.max(this.#leadsUntil, sentAt + renewMs);
        this.#again('renew', sentAt + retryMs);
      } else if (status === 409 || status === 404) this.#again('read', now);
      // It may have been written all the same.
      else this.#again('read', now + this.#jitter(retryMs) / 2);
    }
  }

  /** Leads no more, and what gives the lease to the next one; undefined: it has none. */
  resign(): Json | undefined {
    const held = this.#holds();
    this.#leadsUntil = Number.NEGATIVE_INFINITY;
    const lease = held ? this.#record('', this.#time(), 1) : undefined;
    this.#term = undefined;
    this.#again('read', Number.NEGATIVE_INFINITY);
    return lease;
  }

  #read(lease: Json, now: number): void {
    this.#lease = lease;
    const { at, forMs, holder } = this.#see(now);
    if (this.#holds()) {
      this.#again('renew', now);
      return;
    }
    this.#term = undefined;
    this.#leadsUntil = Number.NEGATIVE_INFINITY;
    const free = holder === '' ? now : at + forMs;
    if (now >= free) this.#again('take', now);
    else this.#again('read', Math.min(free, now + this.#jitter(this.#options.times.retryMs)));
  }

  #absent(now: number): void {
    this.#lease = {};
    const free = this.#seen === undefined || this.#seen.holder === '' ? now : this.#seen.at + this.#seen.forMs;
    if (this.isLeader(now) || now >= free) this.#again('create', now);
    else this.#again('read', Math.min(free, now + this.#jitter(this.#options.times.retryMs)));
  }

  #see(now: number): Seen {
    const spec = recordOf(this.#lease.spec);
    const text = JSON.stringify(spec);
    if (this.#seen?.text === text) return this.#seen;
    const asked = (Number(spec.leaseDurationSeconds) || 0) * 1000;
    const forMs = Math.max(this.#options.times.leaseMs, Math.min(MAX_LEASE_MS, asked));
    const holder = typeof spec.holderIdentity === 'string' ? spec.holderIdentity : '';
    const seen = { text, at: now, forMs, holder };
    this.#seen = seen;
    return seen;
  }

  #holds(): boolean {
    const { holderIdentity, acquireTime } = recordOf(this.#lease.spec);
    return this.#term !== undefined && holderIdentity === this.#options.identity && acquireTime === this.#term;
  }

  #record(holderIdentity: string, acquireTime: string, seconds = Math.ceil(this.#options.times.leaseMs / 1000)): Json {
    const { namespace, name } = this.#options;
    const spec = recordOf(this.#lease.spec);
    const before = Number(spec.leaseTransitions) || 0;
    const leaseTransitions = before + (holderIdentity !== '' && holderIdentity !== spec.holderIdentity ? 1 : 0);
    return {
      apiVersion: 'coordination.k8s.io/v1',
      kind: 'Lease',
      metadata: { ...recordOf(this.#lease.metadata), name, namespace },
      spec: {
        ...spec,
        holderIdentity,
        leaseDurationSeconds: seconds,
        acquireTime,
        renewTime: this.#time(),
        leaseTransitions,
      },
    };
  }

  #again(plan: 'read' | 'create' | 'take' | 'renew', at: number): void {
    this.#plan = plan;
    this.#nextAt = at;
  }

  #jitter(ms: number): number {
    return ms * (1 + JITTER * this.#options.random());
  }

  /** metav1.MicroTime; below a millisecond is chance, so that no two terms look alike. */
  #time(): string {
    const micros = String(Math.floor(this.#options.random() * 1000)).padStart(3, '0');
    return new Date(this.#options.wallClock()).toISOString().replace('Z', `${micros}Z`);
  }
}
