/**
 * The addresses of one shard on this machine: added and announced when it is taken over, renewed while it is held,
 * removed when it is given up. A thousand addresses take the kernel a tenth of a second and more: they go in slices,
 * each announced when it is there, so that the first need not wait for the last.
 */

import { gratuitousArp } from '../wire/arp.ts';
import { unsolicitedAdvertisement } from '../wire/ndp.ts';

export interface HeldAddress {
  link: string;
  address: string;
  prefixLength: number;
}

export interface HoldingWorld {
  /** Milliseconds. */
  now(): number;
  /** Undefined: the link is not there now. */
  mac(link: string): string | undefined;
  send(link: string, frame: Uint8Array): void;
  /** Both are done in the order in which they were asked for; `done` gets the names of errors. */
  add(addresses: readonly HeldAddress[], validSeconds: number | undefined, done: (errors: string[]) => void): void;
  remove(addresses: readonly HeldAddress[], done: (errors: string[]) => void): void;
  /** Nothing that was asked for is still to be done. */
  idle(): boolean;
}

/** The kernel's lifetime of fenced addresses, and how often it is renewed. */
export const FENCE_SECONDS = 2;
export const RENEW_MS = 400;
/** Announcements after a take-over: neighbours may miss one, or be deaf while their port comes up. */
export const ANNOUNCE_MS = [0, 100, 500, 1_500, 5_000] as const;
/** Of IPv6 the kernel takes up to half a millisecond for each. */
export const SLICE = 32;

const NEVER = Number.POSITIVE_INFINITY;

interface Job {
  add: boolean;
  announce: boolean;
  next: number;
}

export class Holding {
  readonly #world: HoldingWorld;
  readonly #fault: (op: 'add' | 'remove', errors: string[]) => void;
  #held: readonly HeldAddress[] = [];
  #fenced = false;
  #taken = false;
  #jobs: Job[] = [];
  /** Slices that are being added. */
  #underway = 0;
  /** Counts what was taken and released: what is done for a time before is announced no more. */
  #times = 0;
  /** Of each address, made before they are wanted. */
  #frames = new Map<string, { mac: string; frames: Uint8Array[] }>();
  /** Index into ANNOUNCE_MS of what comes next, and when. */
  #announceNext = 0;
  #announceAt = NEVER;
  #renewAt = NEVER;

  constructor(world: HoldingWorld, fault: (op: 'add' | 'remove', errors: string[]) => void) {
    this.#world = world;
    this.#fault = fault;
  }

  /** What there is to hold. `present`: what was there to hold before may be on the machine. */
  set(held: readonly HeldAddress[], fenced: boolean, present: boolean): void {
    const [before, fencedBefore] = [new Set(this.#held.map(keyOf)), this.#fenced];
    const wanted = new Set(held.map(keyOf));
    const gone = this.#held.filter((address) => !wanted.has(keyOf(address)));
    this.#held = held;
    this.#fenced = fenced;
    this.prepare();
    if (present && gone.length > 0) this.#remove(gone);
    if (!this.#taken) return;
    const fresh = held.some((address) => !before.has(keyOf(address)));
    if (fresh || (this.#jobs.length > 0 && gone.length > 0)) this.take();
    else if (fenced !== fencedBefore) this.#renew();
  }

  /** Makes the announcements: at first, and when a link has got another MAC. */
  prepare(): void {
    const made = new Map<string, { mac: string; frames: Uint8Array[] }>();
    for (const held of this.#held) {
      const { link, address } = held;
      const mac = this.#world.mac(link);
      if (mac === undefined) continue;
      const known = this.#frames.get(keyOf(held));
      if (known?.mac === mac) made.set(keyOf(held), known);
      else {
        const frames = address.includes(':') ? [unsolicitedAdvertisement(mac, address)] : gratuitousArp(mac, address);
        made.set(keyOf(held), { mac, frames });
      }
    }
    this.#frames = made;
  }

  /** Adds and announces, by tick(). */
  take(): void {
    this.#taken = true;
    this.#times++;
    const now = this.#world.now();
    this.#jobs = [{ add: true, announce: true, next: 0 }];
    this.#renewAt = this.#fenced ? now + RENEW_MS : NEVER;
    this.#announceNext = 1;
    this.#announceAt = now + ANNOUNCE_MS[1];
  }

  /** Announces all of it anew, by and by. */
  announce(): void {
    if (!this.#taken) return;
    this.#announceNext = 0;
    this.#announceAt = this.#world.now();
  }

  /** All of it, whether it was taken or not. */
  release(): void {
    this.#taken = false;
    this.#times++;
    this.#jobs = [];
    this.#renewAt = NEVER;
    this.#announceAt = NEVER;
    this.#remove(this.#held);
  }

  /** Nothing is left of what was begun. */
  get settled(): boolean {
    return this.#jobs.length === 0 && this.#underway === 0;
  }

  /** When tick() has something to do. */
  get due(): number {
    return this.#jobs.length > 0 ? Number.NEGATIVE_INFINITY : Math.min(this.#renewAt, this.#announceAt);
  }

  tick(): void {
    const now = this.#world.now();
    // Whoever does not keep up with it goes on with what it has begun: that comes to the same.
    if (now >= this.#renewAt) this.#renew();
    if (now >= this.#announceAt) {
      const done = ANNOUNCE_MS[this.#announceNext] ?? 0;
      const next = ANNOUNCE_MS[++this.#announceNext];
      this.#announceAt = next === undefined ? NEVER : now + next - done;
      if (this.#jobs.length < 2) this.#jobs.push({ add: false, announce: true, next: 0 });
    }
    this.#work();
  }

  #renew(): void {
    this.#renewAt = this.#fenced ? this.#world.now() + RENEW_MS : NEVER;
    if (!this.#jobs.some(({ add }) => add)) this.#jobs.push({ add: true, announce: false, next: 0 });
  }

  #work(): void {
    // An announcement may wait, a renewal not for long.
    const job = this.#jobs.find(({ add }) => add) ?? this.#jobs[0];
    if (job === undefined) return;
    const slice = this.#held.slice(job.next, job.next + SLICE);
    job.next += SLICE;
    if (job.next >= this.#held.length) this.#jobs.splice(this.#jobs.indexOf(job), 1);
    if (!job.add || slice.length === 0) {
      this.#send(slice);
      return;
    }
    const times = this.#times;
    this.#underway++;
    this.#world.add(slice, this.#fenced ? FENCE_SECONDS : undefined, (errors) => {
      this.#underway--;
      if (errors.length > 0) this.#fault('add', errors);
      if (job.announce && times === this.#times) this.#send(slice);
    });
  }

  #send(slice: readonly HeldAddress[]): void {
    for (const held of slice) {
      for (const frame of this.#frames.get(keyOf(held))?.frames ?? []) this.#world.send(held.link, frame);
    }
  }

  #remove(held: readonly HeldAddress[]): void {
    if (held.length === 0) return;
    this.#world.remove(held, (errors) => {
      if (errors.length > 0) this.#fault('remove', errors);
    });
  }
}

const keyOf = ({ link, address, prefixLength }: HeldAddress): string => `${link} ${address}/${prefixLength}`;
