/**
 * What the planner must not forget, on disk (plan/memory.ts). What decides who has which address is there before anybody
 * hears of it (`planner.json`); which pods are released is as long as there are pods, and follows behind
 * (`released.json`), some nodes at a time and at most about once a second. A crash forgets the releases since: their
 * pods wait once more for a gateway that has them.
 */
import { isRecord, sameJson } from '../api/plan-delta.ts';
import type { Logger } from '../daemon/log.ts';
import type { Memory } from './memory.ts';
import { emptyMemory, type PlannerMemory, readMemory, readReleased } from './plan/memory.ts';
import { type HeldAddress, withResting } from './plan/resting.ts';
import { readJson, writeJson, writeParts } from './state-file.ts';

const FILE = 'planner.json';
const RELEASED_FILE = 'released.json';
/** Generations are reserved in blocks: one synced write a block, not one a plan. */
const GENERATION_BLOCK = 1000;
const PAUSE_MS = 1_000;
/** After each save of the releases so many times as long as it took. */
const SAVE_SHARE = 10;

export class KeptMemory implements Memory {
  readonly #state: string;
  readonly #log: Logger;
  #memory: PlannerMemory;
  /** No generation beyond it was published, ever. */
  #reserved: number;
  #savedReleases: PlannerMemory['released'];
  #saving: Promise<void> = Promise.resolve();
  #behind: Promise<void> | undefined;
  #wake: (() => void) | undefined;
  #closed = false;

  private constructor(state: string, log: Logger, memory: PlannerMemory, reserved: number) {
    this.#state = state;
    this.#log = log;
    this.#memory = memory;
    this.#savedReleases = memory.released;
    this.#reserved = reserved;
  }

  static async open(state: string, log: Logger): Promise<KeptMemory> {
    const { stored, memory } = await read(state);
    if (stored !== undefined && memory === undefined) log.error({ file: FILE }, 'state is damaged; it is made anew');
    const reserved = isRecord(stored) && Number.isSafeInteger(stored.generation) ? Number(stored.generation) : 0;
    return new KeptMemory(state, log, memory ?? emptyMemory(), reserved);
  }

  get memory(): PlannerMemory {
    return this.#memory;
  }

  get reserved(): number {
    return this.#reserved;
  }

  rest(held: readonly HeldAddress[]): boolean {
    const next = withResting(this.#memory, held, Date.now());
    const changed = next !== this.#memory;
    this.#memory = next;
    return changed;
  }

  /** Always true: what cannot be saved is logged. */
  async keep(next: PlannerMemory, generation: number): Promise<boolean> {
    const last = this.#memory;
    this.#memory = next;
    const changed = (parts: readonly (keyof PlannerMemory)[]): boolean =>
      parts.some((part) => last[part] !== next[part] && !sameJson(last[part], next[part]));
    const first = generation >= this.#reserved || changed(['allocations', 'owners', 'shardIndices', 'lastServices']);
    if (generation >= this.#reserved) this.#reserved = generation + GENERATION_BLOCK;
    if (first || changed(['gatewayAddresses', 'shared'])) {
      const { released: _, ...memory } = next;
      const content = { generation: this.#reserved, memory };
      this.#saving = this.#saving
        .then(() => writeJson(this.#state, FILE, content))
        .catch((error: unknown) => this.#log.error({ reason: String(error) }, 'cannot save the state'));
    }
    if (next.released !== this.#savedReleases) this.#behind ??= this.#saveReleases();
    if (first) await this.#saving;
    return true;
  }

  /** Nobody else writes it. */
  async refresh(): Promise<void> {}

  async close(): Promise<void> {
    this.#closed = true;
    this.#wake?.();
    await this.#saving;
    await this.#behind;
  }

  async #saveReleases(): Promise<void> {
    while (this.#savedReleases !== this.#memory.released) {
      const { released } = this.#memory;
      const began = performance.now();
      try {
        await writeParts(this.#state, RELEASED_FILE, textOf(released));
      } catch (error) {
        this.#log.error({ reason: String(error) }, 'cannot save which pods are released');
      }
      this.#savedReleases = released;
      if (!this.#closed) await this.#pause(Math.max(PAUSE_MS, SAVE_SHARE * (performance.now() - began)));
    }
    this.#behind = undefined;
  }

  #pause(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

async function read(state: string): Promise<{ stored: unknown; memory: PlannerMemory | undefined }> {
  const stored = await readJson(state, FILE);
  if (!isRecord(stored) || !isRecord(stored.memory)) return { stored, memory: undefined };
  const released = readReleased(await readJson(state, RELEASED_FILE));
  return { stored, memory: readMemory({ ...stored.memory, released }) };
}

/** As a controller left it; undefined: none did, or it is damaged. */
export const readKeptMemory = async (state: string): Promise<PlannerMemory | undefined> => (await read(state)).memory;

/** A node at a time. */
function* textOf(released: PlannerMemory['released']): Generator<string> {
  let comma = '';
  yield '{';
  for (const [node, pods] of Object.entries(released)) {
    yield `${comma}${JSON.stringify(node)}:${JSON.stringify(pods)}`;
    comma = ',';
  }
  yield '}';
}
