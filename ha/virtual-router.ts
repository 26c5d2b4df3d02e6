/**
 * The state machine of one virtual router (RFC 9568 §6.4): events and the time go in, actions and the time of its timer
 * come out. No clock, no socket. Times are milliseconds of one clock that runs on while the process is stopped.
 *
 * What Sluice adds to the RFC:
 * - Channels: one router is heard and speaks on several links and families at once, and is one thing on all of them.
 *   Silence is silence on all; an advertisement on any counts. (Beside a foreign router, which is another thing on
 *   each link, the caller makes one virtual router for each.)
 * - Waking: who was stopped for longer than others wait does not know what happened. It listens for one
 *   Active_Down_Interval before it advertises; its addresses are neither renewed nor removed until it knows.
 * - Failback: whether and when a router of higher priority takes over from one that works. Never before it has
 *   the state of the connections, not while it flaps; always from one that has lowered its own priority below ours.
 * - Priority 0: unfit. It gives up, and takes over from nobody.
 */

import { Equals, isAbove } from './equals.ts';

export type RouterState = 'Initialize' | 'Backup' | 'Active' | 'Waking';

export type Failback = 'Immediate' | 'Delayed' | 'Never';

export interface RouterSettings {
  /** 1 to 254; 255: owns the addresses, and begins as Active; 0: unfit. */
  priority: number;
  /** Between two of its advertisements. */
  intervalMs: number;
  failback: Failback;
  /** Of `Delayed`. */
  failbackDelayMs: number;
  /** Own address on each channel. The first on which an equal is heard decides who yields. */
  sources: readonly string[];
  /** Somebody will say when the state of the connections is complete; before that, it takes over from nobody alive. */
  stateTracked: boolean;
}

export type RouterEvent =
  | ({ kind: 'startup' } & Startup)
  | { kind: 'shutdown' }
  /** The time is `due`. */
  | { kind: 'timer' }
  | { kind: 'advert'; channel: number; source: string; priority: number; intervalMs: number }
  | { kind: 'settings'; settings: RouterSettings }
  | { kind: 'state'; complete: boolean };

export interface Startup {
  /** The addresses may be on the machine already, from a life before. */
  holding?: boolean;
  /** It has had the shard all along, when there was no election of it. */
  leads?: boolean;
  /** Somebody who has not begun yet has it: it waits so much longer for the first advertisement. */
  patienceMs?: number;
}

/** Why the router became what it is. */
export type RouterCause =
  | 'startup'
  | 'shutdown'
  /** It has the address. */
  | 'owner'
  /** Nobody was heard for an Active_Down_Interval. */
  | 'silence'
  /** The active router has said that it goes. */
  | 'resigned'
  /** The active router works, with a lower priority than ours. */
  | 'preempts'
  /** A router of higher priority is active, or an equal one of higher address. */
  | 'outranked'
  /** Our priority became 0. */
  | 'unfit'
  /** It was stopped. */
  | 'stopped'
  /** It was stopped, and another is active now. */
  | 'replaced'
  /** It was stopped, and nobody took over. */
  | 'unreplaced';

export type RouterAction =
  /** On one channel or, without it, on all. */
  | { kind: 'advertise'; priority: number; channel?: number }
  | { kind: 'take-over' }
  | { kind: 'give-up' }
  /** Once more: neighbours may have heard another since. */
  | { kind: 'announce' }
  /** After each change; what has to be done comes after it. */
  | { kind: 'became'; state: RouterState; cause: RouterCause };

/** Specification: so many intervals of silence, and the skew. */
const DOWN_INTERVALS = 3;
const SKEW_STEPS = 256;
const OWNER = 255;
/** Ours: a timer that is noticed so many intervals late was not late but stopped; others have taken over by then. */
export const WAKE_INTERVALS = 3;
/** Not more often it announces once more; each time goes on for longer than that (holding.ts). */
export const ANNOUNCE_AGAIN_MS = 1_000;
/** Whoever lost the addresses so often in so long a time takes them from nobody alive. */
export const FLAPS_MAX = 3;
export const FLAP_WINDOW_MS = 60_000;

interface Heard {
  source: string;
  priority: number;
}

export class VirtualRouter {
  #settings: RouterSettings;
  #state: RouterState = 'Initialize';
  #due: number | undefined;
  /** Active_Adver_Interval. */
  #activeInterval: number;
  #complete: boolean;
  /** What the timer's end means in Backup. */
  #expected: RouterCause = 'silence';
  /** From here on the delay of failback counts. */
  #since = 0;
  /** The active router has lowered its priority below ours. */
  #handedDown = false;
  /** Who was stopped says nothing before. */
  #listensUntil = Number.NEGATIVE_INFINITY;
  #assertedAt = Number.NEGATIVE_INFINITY;
  #announcedAt = Number.NEGATIVE_INFINITY;
  /** Last of each channel. */
  readonly #heard: (Heard | undefined)[] = [];
  readonly #equals = new Equals();
  /** Added to the skew by who has yielded to an equal: two that both yielded must not both come back at once. */
  #backOff = 0;
  #losses: number[] = [];

  constructor(settings: RouterSettings) {
    this.#settings = settings;
    this.#activeInterval = settings.intervalMs;
    this.#complete = !settings.stateTracked;
  }

  get state(): RouterState {
    return this.#state;
  }

  get settings(): RouterSettings {
    return this.#settings;
  }

  /** When it wants a timer event; undefined: it waits for something else. */
  get due(): number | undefined {
    return this.#due;
  }

  handle(event: RouterEvent, now: number): RouterAction[] {
    const actions: RouterAction[] = [];
    this.#wake(now, actions);
    switch (event.kind) {
      case 'startup':
        this.#startUp(event, now, actions);
        break;
      case 'shutdown':
        this.#shutDown(actions);
        break;
      case 'timer':
        if (this.#due !== undefined && now >= this.#due) this.#timeOut(now, actions);
        break;
      case 'advert':
        // Our own address: it comes back to us, or a stranger has it. Neither is somebody to yield to.
        if (this.#state !== 'Initialize' && event.source !== this.#settings.sources[event.channel]) {
          this.#hear(event, now, actions);
        }
        break;
      case 'settings':
        this.#set(event.settings, now, actions);
        break;
      case 'state':
        if (event.complete && !this.#complete) this.#since = now;
        this.#complete = event.complete;
    }
    return actions;
  }

  /** Active_Down_Interval. */
  get #downInterval(): number {
    return DOWN_INTERVALS * this.#activeInterval + this.#skewTime;
  }

  get #skewTime(): number {
    return ((SKEW_STEPS - this.#settings.priority) * this.#activeInterval) / SKEW_STEPS + this.#backOff;
  }

  #wake(now: number, actions: RouterAction[]): void {
    // Only what waits has a timer: it is no longer Initialize.
    if (this.#due === undefined || now - this.#due < WAKE_INTERVALS * this.#settings.intervalMs) return;
    // What was heard before says nothing of now.
    this.#activeInterval = this.#settings.intervalMs;
    this.#heard.length = 0;
    this.#handedDown = false;
    if (this.#settings.stateTracked) this.#complete = false;
    this.#listensUntil = now + this.#downInterval;
    this.#due = this.#listensUntil;
    this.#expected = 'silence';
    this.#become(this.#state === 'Backup' ? 'Backup' : 'Waking', 'stopped', actions);
  }

  #become(state: RouterState, cause: RouterCause, actions: RouterAction[]): void {
    this.#state = state;
    actions.push({ kind: 'became', state, cause });
  }

  #startUp({ holding, leads, patienceMs = 0 }: Startup, now: number, actions: RouterAction[]): void {
    if (this.#state !== 'Initialize') return;
    this.#since = now;
    if (this.#settings.priority === OWNER) {
      this.#activate('owner', now, actions);
    } else if (leads && this.#settings.priority > 0) {
      this.#activate('startup', now, actions);
    } else if (holding && this.#settings.priority > 0) {
      this.#become('Waking', 'startup', actions);
      this.#due = now + this.#downInterval;
    } else {
      this.#stepBack('startup', now, actions);
      if (this.#due !== undefined) this.#due += patienceMs;
      if (holding) actions.push({ kind: 'give-up' });
    }
  }

  #shutDown(actions: RouterAction[]): void {
    const held = this.#state === 'Active' || this.#state === 'Waking';
    const active = this.#state === 'Active';
    this.#due = undefined;
    if (this.#state !== 'Initialize') this.#become('Initialize', 'shutdown', actions);
    if (held) actions.push({ kind: 'give-up' });
    if (active) actions.push({ kind: 'advertise', priority: 0 });
  }

  #activate(cause: RouterCause, now: number, actions: RouterAction[]): void {
    this.#become('Active', cause, actions);
    this.#activeInterval = this.#settings.intervalMs;
    this.#heard.length = 0;
    this.#due = now + this.#settings.intervalMs;
    actions.push({ kind: 'advertise', priority: this.#settings.priority }, { kind: 'take-over' });
  }

  #stepBack(cause: RouterCause, now: number, actions: RouterAction[]): void {
    this.#become('Backup', cause, actions);
    this.#since = now;
    this.#expected = 'silence';
    this.#handedDown = false;
    this.#due = this.#settings.priority === 0 ? undefined : now + this.#downInterval;
  }

  #timeOut(now: number, actions: RouterAction[]): void {
    const { intervalMs, priority } = this.#settings;
    switch (this.#state) {
      case 'Active':
        // From when it was due, so that lateness does not add up; but none is made up for.
        this.#due = Math.max((this.#due ?? now) + intervalMs, now + intervalMs / 2);
        actions.push({ kind: 'advertise', priority });
        break;
      case 'Waking':
        this.#activate('unreplaced', now, actions);
        break;
      case 'Backup':
        this.#activate(this.#expected, now, actions);
        break;
      case 'Initialize':
        this.#due = undefined;
    }
  }

  #hear(advert: RouterEvent & { kind: 'advert' }, now: number, actions: RouterAction[]): void {
    if (advert.priority === this.#settings.priority) this.#equals.note(advert.channel, now, this.#downInterval);
    switch (this.#state) {
      case 'Backup':
        this.#hearAsBackup(advert, now);
        break;
      case 'Active':
        this.#hearAsActive(advert, now, actions);
        break;
      case 'Waking':
        // One that goes has told so to those who wait already.
        if (advert.priority === 0) break;
        this.#lost(now);
        this.#activeInterval = advert.intervalMs;
        this.#stepBack('replaced', now, actions);
        actions.push({ kind: 'give-up' });
    }
  }

  #hearAsBackup(advert: RouterEvent & { kind: 'advert' }, now: number): void {
    const { channel, source, priority } = advert;
    if (this.#settings.priority === 0) return;
    if (priority === 0) {
      // On several channels, one after the other: the first counts.
      this.#due = Math.max(this.#listensUntil, Math.min(this.#due ?? now, now + this.#skewTime));
      this.#expected = 'resigned';
      return;
    }
    if (priority > this.#settings.priority) this.#backOff = 0;
    const before = this.#heard[channel];
    this.#heard[channel] = { source, priority };
    const lower = priority < this.#settings.priority;
    if (!lower) this.#handedDown = false;
    else if (before?.source === source && before.priority >= this.#settings.priority) this.#handedDown = true;
    if (lower && this.#mayPreempt(now)) {
      this.#expected = 'preempts';
      return;
    }
    this.#expected = 'silence';
    this.#activeInterval = advert.intervalMs;
    this.#due = now + this.#downInterval;
  }

  #mayPreempt(now: number): boolean {
    if (!this.#complete) return false;
    this.#losses = this.#losses.filter((at) => now - at < FLAP_WINDOW_MS);
    if (this.#losses.length >= FLAPS_MAX) return false;
    const { failback, failbackDelayMs } = this.#settings;
    if (this.#handedDown || failback === 'Immediate') return true;
    return failback === 'Delayed' && now - this.#since >= failbackDelayMs;
  }

  #hearAsActive(advert: RouterEvent & { kind: 'advert' }, now: number, actions: RouterAction[]): void {
    const { channel, source, priority } = advert;
    const { priority: own, intervalMs, sources } = this.#settings;
    if (priority === 0) {
      this.#due = now + intervalMs;
      actions.push({ kind: 'advertise', priority: own });
      this.#announceAgain(now, actions);
      return;
    }
    if (priority === own && !this.#equals.decides(channel, now, this.#downInterval, intervalMs)) return;
    if (priority > own || (priority === own && isAbove(source, sources[channel]))) {
      this.#lost(now);
      this.#activeInterval = advert.intervalMs;
      if (priority === own) this.#backOff = intervalMs * this.#equals.backOff(sources[0]);
      this.#stepBack('outranked', now, actions);
      // That one may not have heard this one, and has to announce once more.
      actions.push({ kind: 'give-up' }, { kind: 'advertise', priority: 0 });
      return;
    }
    // At once, so that it yields; but two that both mean to be above must not answer each other without end.
    if (now - this.#assertedAt < intervalMs) return;
    this.#assertedAt = now;
    actions.push({ kind: 'advertise', priority: own, channel });
    this.#announceAgain(now, actions);
  }

  /** The other was active too, and neighbours may believe the addresses to be there. */
  #announceAgain(now: number, actions: RouterAction[]): void {
    if (now - this.#announcedAt < ANNOUNCE_AGAIN_MS) return;
    this.#announcedAt = now;
    actions.push({ kind: 'announce' });
  }

  #lost(now: number): void {
    this.#losses.push(now);
    if (this.#losses.length > FLAPS_MAX) this.#losses.shift();
  }

  #set(settings: RouterSettings, now: number, actions: RouterAction[]): void {
    const before = this.#settings;
    this.#settings = settings;
    if (!settings.stateTracked) this.#complete = true;
    if (settings.priority !== before.priority) this.#backOff = 0;
    const fell = settings.priority === 0 && before.priority !== 0;
    switch (this.#state) {
      case 'Active':
        if (fell) {
          this.#lost(now);
          this.#stepBack('unfit', now, actions);
          actions.push({ kind: 'give-up' }, { kind: 'advertise', priority: 0 });
        } else if (settings.priority !== before.priority || settings.intervalMs !== before.intervalMs) {
          this.#due = now + settings.intervalMs;
          actions.push({ kind: 'advertise', priority: settings.priority });
        }
        break;
      case 'Waking':
        if (!fell) break;
        this.#stepBack('unfit', now, actions);
        actions.push({ kind: 'give-up' });
        break;
      case 'Backup':
        if (settings.priority === 0) this.#due = undefined;
        else if (before.priority === 0) {
          this.#since = now;
          this.#due = now + this.#downInterval;
        } else if (this.#due !== undefined && this.#isOther(before)) {
          this.#due = Math.min(this.#due, now + this.#downInterval);
        }
    }
  }

  #isOther({ priority, intervalMs }: RouterSettings): boolean {
    return priority !== this.#settings.priority || intervalMs !== this.#settings.intervalMs;
  }
}
