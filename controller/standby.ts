/**
 * A controller that stands by: it plans what it observes as if it led, over what the API server says is given out, and
 * nothing comes of it: no plan, status, Event, address or fetch. So it can lead at once, since what the planner keeps from
 * one plan to the next is there (plan/cache.ts), and it answers the admission webhook as the leader does. Of lists by URL it
 * knows what an earlier time as a leader left on its disk.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from '../daemon/log.ts';
import type { AdmissionWorld } from './admission/review.ts';
import type { Memory } from './memory.ts';
import { type Lists, openLists } from './observe/lists.ts';
import type { ObjectSource, Observation } from './observe/source.ts';
import type { PlanCache } from './plan/cache.ts';
import { noPeers } from './plan/peers.ts';
import { type PlanResult, plan } from './plan/plan.ts';
import type { World } from './world.ts';

/** Between plans: nobody waits for these. */
const PAUSE_MS = 1_000;
/** How often it is looked at what the leader has given out, if nothing else happens. */
const LOOK_MS = 10_000;

export interface StandbyOptions {
  world: Pick<World, 'memory' | 'files'>;
  state: string;
  source: ObjectSource;
  /** The planner's, for whoever leads afterwards too. */
  cache: PlanCache;
  log: Logger;
  now(): number;
  onPlanned(observed: Observation, result: PlanResult, lists: Lists): void;
}

export class Standby {
  readonly #options: StandbyOptions;
  readonly #memory: Memory;
  readonly #lists: Lists;
  readonly #stop = new AbortController();
  #dirty = true;
  #planned: Pick<AdmissionWorld, 'memory' | 'lists' | 'plans'> | undefined;
  #failing = false;

  private constructor(options: StandbyOptions, memory: Memory, lists: Lists) {
    this.#options = options;
    this.#memory = memory;
    this.#lists = lists;
    void this.#run();
  }

  /** Rejects if the API server does not say what is given out. */
  static async open(options: StandbyOptions): Promise<Standby> {
    const { world, state, log } = options;
    const memory = await world.memory();
    return new Standby(options, memory, await openLists({ root: () => world.files, state, log, onChange: () => {} }));
  }

  /** Of the newest plan; undefined: there is none yet. */
  get planned(): Pick<AdmissionWorld, 'memory' | 'lists' | 'plans'> | undefined {
    return this.#planned;
  }

  /** Something else was observed. */
  trigger(): void {
    this.#dirty = true;
  }

  /** Without waiting for what it may be asking. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#lists.close();
    await this.#memory.close();
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    let lookedAt = performance.now();
    while (!signal.aborted) {
      if (this.#dirty) await this.#plan();
      await sleep(PAUSE_MS, undefined, { signal, ref: false }).catch(() => {});
      if (signal.aborted || (!this.#dirty && performance.now() - lookedAt < LOOK_MS)) continue;
      await this.#look();
      lookedAt = performance.now();
    }
  }

  /** At what was given out meanwhile. */
  async #look(): Promise<void> {
    const { allocations, shardIndices } = this.#memory.memory;
    try {
      await this.#memory.refresh();
      this.#failing = false;
    } catch (error) {
      if (!this.#failing && !this.#stop.signal.aborted)
        this.#options.log.warn({ reason: String(error) }, 'cannot see what addresses the leader gives out');
      this.#failing = true;
    }
    const { memory } = this.#memory;
    this.#dirty ||= memory.allocations !== allocations || memory.shardIndices !== shardIndices;
  }

  async #plan(): Promise<void> {
    const { source, cache, log, now, onPlanned } = this.#options;
    this.#dirty = false;
    try {
      const observed = source.current();
      const { snapshot } = observed;
      const lists = await this.#lists.update(snapshot, cache.look(snapshot));
      if (this.#stop.signal.aborted) return;
      const { allocations, shardIndices } = this.#memory.memory;
      const memory = { ...(this.#planned ?? this.#memory).memory, allocations, shardIndices };
      const result = plan(snapshot, memory, noPeers(), now(), lists, cache);
      // What this plan would give out is the leader's to give.
      this.#planned = { memory: { ...result.memory, allocations, shardIndices }, lists, plans: result.pools };
      onPlanned(observed, result, this.#lists);
    } catch (error) {
      log.error({ reason: String(error), stack: error instanceof Error ? error.stack : undefined }, 'cannot plan');
    }
  }
}
