/** Where the planner's memory is kept: on disk (kept-memory.ts), or at an API server (kubernetes/memory.ts). */
import type { PlannerMemory } from './plan/memory.ts';
import type { HeldAddress } from './plan/resting.ts';

export interface Memory {
  readonly memory: PlannerMemory;
  /** All generations up to this may have been published before. */
  readonly reserved: number;
  /**
   * Before a plan of the generation after `generation` is published. False: what decides who has which address could not be
   * kept, and `memory` may be another by now: nothing of that plan may be published, and it is to be planned again.
   */
  keep(next: PlannerMemory, generation: number): Promise<boolean>;
  /** What others wrote meanwhile, for whoever keeps nothing himself. Rejects if it cannot be read. */
  refresh(): Promise<void>;
  /** Those of which nothing is known rest from now on. True: there are such. */
  rest(held: readonly HeldAddress[]): boolean;
  close(): Promise<void>;
}
