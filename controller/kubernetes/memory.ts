/**
 * The planner's memory in a cluster: who has which address is at the API server (addresses.ts), with the numbers of shards and the
 * generation in a ConfigMap, so that whoever leads next goes on from there. All else, and a copy of this, is on the disk of this
 * controller: what is lost with it is found again, if later.
 *
 * An address of which only the disk knows, or which a gateway has and nobody knows of (the API server was restored
 * from a backup), rests for its quarantine; who had it comes back to it.
 */
import type { KubeConfig } from '@kubernetes/client-node';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import { KeptMemory } from '../kept-memory.ts';
import type { Memory } from '../memory.ts';
import type { PlannerMemory } from '../plan/memory.ts';
import { type HeldAddress, withResting } from '../plan/resting.ts';
import { AddressObjects, Conflict } from './addresses.ts';
import { obtain, Refused } from './obtain.ts';
import { type Api, apiOf, type Json, recordOf } from './requests.ts';

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
  readonly #api: Api;
  readonly #objects: AddressObjects;
  readonly #disk: KeptMemory;
  #memory: PlannerMemory;
  /** What the objects say. */
  #written: Pick<PlannerMemory, 'allocations' | 'owners'> | undefined;
  #reserved = 0;
  /** As it was read or written last; undefined: there is none. */
  #numbers: Json | undefined;

  private constructor(options: ClusterMemoryOptions, api: Api, disk: KeptMemory) {
    this.#options = options;
    this.#api = api;
    this.#objects = new AddressObjects(api);
    this.#disk = disk;
    this.#memory = disk.memory;
    this.#reserved = disk.reserved;
  }

  /** Rejects if the API server does not say what was given out: nobody may plan without that. */
  static async open(options: ClusterMemoryOptions): Promise<ClusterMemory> {
    const disk = await KeptMemory.open(options.state, options.log);
    const memory = new ClusterMemory(options, apiOf(options.config), disk);
    try {
      await memory.#read();
    } catch (error) {
      await memory.close();
      throw error;
    }
    const known = Object.entries(disk.memory.allocations);
    memory.rest(
      known.map(([address, { pool, owner }]) => {
        const own = disk.memory.owners[address];
        return { address, pool, owner, ...(own?.egressIP === owner && { to: own.owner }) };
      }),
    );
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
      const { allocations, owners } = next;
      if (allocations !== this.#written?.allocations || owners !== this.#written.owners)
        await this.#objects.write({ allocations, owners });
      this.#written = { allocations, owners };
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

  async refresh(): Promise<void> {
    const { allocations, shardIndices } = this.#memory;
    await this.#read();
    const now = this.#memory;
    this.#memory = {
      ...now,
      allocations: sameJson(allocations, now.allocations) ? allocations : now.allocations,
      shardIndices: sameJson(shardIndices, now.shardIndices) ? shardIndices : now.shardIndices,
    };
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
      await this.#read();
    } catch (failure) {
      log.error(
        { reason: failure instanceof Error ? failure.message : String(failure) },
        'the API server does not say what addresses are given out',
      );
    }
  }

  /** What the API server has, and of the rest what was known last. */
  async #read(): Promise<void> {
    await this.#objects.read();
    const { generation, shardIndices } = await this.#readNumbers();
    this.#reserved = Math.max(this.#reserved, generation);
    this.#memory = { ...this.#memory, ...this.#objects.given, shardIndices };
  }

  async #readNumbers(): Promise<Numbers> {
    try {
      this.#numbers = await obtain(this.#api, { method: 'GET', path: `${this.#place}/${CONFIG_MAP}` });
    } catch (error) {
      if (!(error instanceof Refused && error.status === 404)) throw error;
      this.#numbers = undefined;
    }
    return numbersOf(this.#numbers);
  }

  async #writeNumbers({ generation, shardIndices }: Numbers): Promise<void> {
    const { namespace } = this.#options;
    const { resourceVersion } = recordOf(this.#numbers?.metadata);
    const body = {
      metadata: { name: CONFIG_MAP, namespace, ...(resourceVersion !== undefined && { resourceVersion }) },
      data: { generation: String(generation), shardIndices: JSON.stringify(shardIndices) },
    };
    const place = this.#place;
    try {
      this.#numbers = await obtain(
        this.#api,
        this.#numbers === undefined
          ? { method: 'POST', path: place, body }
          : { method: 'PUT', path: `${place}/${CONFIG_MAP}`, body },
      );
    } catch (error) {
      if (error instanceof Refused && (error.status === 409 || error.status === 404))
        throw new Conflict(`ConfigMap ${namespace}/${CONFIG_MAP}: somebody else has written it`);
      throw error;
    }
  }

  get #place(): string {
    return `/api/v1/namespaces/${encodeURIComponent(this.#options.namespace)}/configmaps`;
  }

  async close(): Promise<void> {
    this.#api.close();
    await this.#disk.close();
  }
}

function numbersOf(map: Json | undefined): Numbers {
  const data = recordOf(map?.data);
  const generation = Number(data.generation);
  let shardIndices: PlannerMemory['shardIndices'] = {};
  try {
    const read: unknown = JSON.parse(String(data.shardIndices ?? '{}'));
    if (isRecord(read) && Object.values(read).every(Number.isInteger)) shardIndices = read as typeof shardIndices;
  } catch {
    // Somebody wrote into it: shards get numbers anew.
  }
  return { generation: Number.isSafeInteger(generation) && generation > 0 ? generation : 0, shardIndices };
}
