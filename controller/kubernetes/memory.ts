/**
 * The planner's memory in a cluster: who has which address is at the API server (addresses.ts), with the numbers of shards and the
 * generation in a ConfigMap, so that whoever leads next goes on from there. All else, and a copy of this, is on the disk of this
 * controller: what is lost with it is found again, if later.
 *
 * An address of which only the disk knows, or which a gateway has and nobody knows of (the API server was restored
 * from a backup), rests for its quarantine; who had it comes back to it.
 */
import type { CoreV1Api, KubeConfig, V1ConfigMap } from '@kubernetes/client-node';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import { KeptMemory } from '../kept-memory.ts';
import type { Memory } from '../memory.ts';
import type { PlannerMemory } from '../plan/memory.ts';
import { type HeldAddress, withResting } from '../plan/resting.ts';
import { AddressObjects, Conflict } from './addresses.ts';
import { codeOf, withinTime } from './call.ts';
import { loadLibrary } from './client.ts';

const CONFIG_MAP = 'sluice-controller';
/** As on disk: one write a block, not one a plan. */
const GENERATION_BLOCK = 1000;
const AGAIN_MS = 1_000;

export interface ClusterMemoryOptions {
  config: KubeConfig;
  /** Of the controller. */
  namespace: string;
  state: string;
  log: Logger;
  now: () => number;
}

interface Numbers {
  generation: number;
  shardIndices: PlannerMemory['shardIndices'];
}

export class ClusterMemory implements Memory {
  readonly #options: ClusterMemoryOptions;
  readonly #core: CoreV1Api;
  readonly #objects: AddressObjects;
  readonly #disk: KeptMemory;
  #memory: PlannerMemory;
  /** What the objects say. */
  #written: PlannerMemory['allocations'] | undefined;
  #reserved = 0;
  /** As it was read or written last; undefined: there is none. */
  #numbers: V1ConfigMap | undefined;

  private constructor(options: ClusterMemoryOptions, core: CoreV1Api, objects: AddressObjects, disk: KeptMemory) {
    this.#options = options;
    this.#core = core;
    this.#objects = objects;
    this.#disk = disk;
    this.#memory = disk.memory;
  }

  /** Rejects if the API server does not say what was given out: nobody may plan without that. */
  static async open(options: ClusterMemoryOptions): Promise<ClusterMemory> {
    const { CoreV1Api } = await loadLibrary();
    const disk = await KeptMemory.open(options.state, options.log);
    const objects = await AddressObjects.open(options.config);
    const memory = new ClusterMemory(options, options.config.makeApiClient(CoreV1Api), objects, disk);
    const { generation } = await memory.#readNumbers();
    memory.#reserved = Math.max(generation, disk.reserved);
    const known = disk.memory.allocations;
    memory.#memory = memory.#joined();
    memory.rest(Object.entries(known).map(([address, { pool, owner }]) => ({ address, pool, owner })));
    return memory;
  }

  get memory(): PlannerMemory {
    return this.#memory;
  }

  get reserved(): number {
    return this.#reserved;
  }

  rest(held: readonly HeldAddress[]): boolean {
    const next = withResting(this.#memory, held, this.#options.now());
    const changed = next !== this.#memory;
    this.#memory = next;
    return changed;
  }

  async keep(next: PlannerMemory, generation: number): Promise<boolean> {
    const last = this.#memory;
    try {
      if (next.allocations !== this.#written) await this.#objects.write(next.allocations);
      this.#written = next.allocations;
      const numbers = { generation: Math.max(this.#reserved, generation), shardIndices: next.shardIndices };
      const block = generation >= this.#reserved;
      if (block) numbers.generation = generation + GENERATION_BLOCK;
      if (block || !sameJson(last.shardIndices, next.shardIndices)) await this.#writeNumbers(numbers);
      this.#reserved = numbers.generation;
    } catch (error) {
      await this.#failed(error);
      return false;
    }
    this.#memory = next;
    return this.#disk.keep(next, generation);
  }

  async #failed(error: unknown): Promise<void> {
    this.#written = undefined;
    const { log } = this.#options;
    const reason = error instanceof Error ? error.message : String(error);
    if (error instanceof Conflict)
      log.warn({ reason }, 'addresses were given out by another controller: planned again');
    else log.error({ reason }, 'what addresses are given out cannot be kept: nothing new is published until it can');
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    try {
      await this.#objects.read();
      const { generation } = await this.#readNumbers();
      this.#reserved = Math.max(this.#reserved, generation);
      this.#memory = this.#joined();
    } catch (failure) {
      log.error(
        { reason: failure instanceof Error ? failure.message : String(failure) },
        'the API server does not say what addresses are given out',
      );
    }
  }

  /** What the API server has, and of the rest what was known last. */
  #joined(): PlannerMemory {
    const { shardIndices } = numbersOf(this.#numbers);
    return { ...this.#memory, allocations: this.#objects.allocations, shardIndices };
  }

  async #readNumbers(): Promise<Numbers> {
    const { namespace } = this.#options;
    try {
      this.#numbers = await withinTime(this.#core.readNamespacedConfigMap({ name: CONFIG_MAP, namespace }));
    } catch (error) {
      if (codeOf(error) !== 404) throw error;
      this.#numbers = undefined;
    }
    return numbersOf(this.#numbers);
  }

  async #writeNumbers({ generation, shardIndices }: Numbers): Promise<void> {
    const { namespace } = this.#options;
    const resourceVersion = this.#numbers?.metadata?.resourceVersion;
    const body: V1ConfigMap = {
      metadata: { name: CONFIG_MAP, namespace, ...(resourceVersion !== undefined && { resourceVersion }) },
      data: { generation: String(generation), shardIndices: JSON.stringify(shardIndices) },
    };
    try {
      this.#numbers = await withinTime(
        this.#numbers === undefined
          ? this.#core.createNamespacedConfigMap({ namespace, body })
          : this.#core.replaceNamespacedConfigMap({ namespace, name: CONFIG_MAP, body }),
      );
    } catch (error) {
      const code = codeOf(error);
      if (code === 409 || code === 404)
        throw new Conflict(`ConfigMap ${namespace}/${CONFIG_MAP}: somebody else has written it`);
      throw error;
    }
  }

  close(): Promise<void> {
    return this.#disk.close();
  }
}

function numbersOf(map: V1ConfigMap | undefined): Numbers {
  const generation = Number(map?.data?.generation);
  let shardIndices: PlannerMemory['shardIndices'] = {};
  try {
    const read: unknown = JSON.parse(map?.data?.shardIndices ?? '{}');
    if (isRecord(read) && Object.values(read).every(Number.isInteger)) shardIndices = read as typeof shardIndices;
  } catch {
    // Somebody wrote into it: shards get numbers anew.
  }
  return { generation: Number.isSafeInteger(generation) && generation > 0 ? generation : 0, shardIndices };
}
