/**
 * Holds back a plan that would take more than half of a pool's workloads at once, until a person confirms it (design §2):
 * the pool's gateways are given nothing new and its nodes keep what they have of it; other pools go on. At once is
 * within a minute, since files are deleted one after the other. What was in force is remembered, so that a controller
 * which starts on an empty directory takes nothing away either.
 * The confirmation is a file that `sluice confirm` writes into the state directory: who may write there may stop the
 * controller anyway, and whoever only writes manifests cannot confirm his own mistake.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { emptyNodePlan, type NodePlan } from '../api/plan.ts';
import { isRecord } from '../api/plan-delta.ts';
import type { Logger } from '../daemon/log.ts';
import type { Status } from './plan/condition.ts';
import {
  covers,
  describeLoss,
  type InForce,
  isOf,
  keepInMemory,
  keepInNode,
  type Loss,
  lossOf,
  peakOf,
  type Served,
} from './plan/loss.ts';
import type { PlannerMemory } from './plan/memory.ts';
import type { PlanResult } from './plan/plan.ts';
import { readJson, writeJson } from './state-file.ts';

/** What is in force, and what is held: written by the controller, read by `sluice confirm`. */
export const POOLS_FILE = 'pools.json';
/** Written by `sluice confirm`, taken away by the controller. */
export const CONFIRMED_FILE = 'confirmed.json';

const none: Served = new Map();
/** What pools serve is saved so often; what is held, at once. */
const SAVE_MS = 10_000;
/** At once. What was served is forgotten after one to two of these. */
const WINDOW_MS = 60_000;
/** How often a confirmation is looked for while something is held. */
const LOOK_MS = 500;

export interface Held extends Loss {
  /** Milliseconds since the epoch. */
  since: number;
}

interface Pool extends InForce {
  gateways: readonly string[];
  /** The most that each namespace had since `since`, and in the time before that. */
  peak: Map<string, number>;
  older: Served;
  since: number;
  held?: Held;
}

export interface Judged {
  result: PlanResult;
  /** Gateways and nodes that are given nothing new. */
  frozen: { gateways: ReadonlySet<string>; nodes: ReadonlySet<string> };
}

export class HeldPools {
  readonly #state: string;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #onConfirmed: () => void;
  readonly #pools: Map<string, Pool>;
  #confirmed: Pick<Loss, 'pool' | 'lost'> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #savedHeld = '';
  #savedAt = Number.NEGATIVE_INFINITY;
  #saving: Promise<void> | undefined;
  #dirty = false;

  private constructor(options: HeldPoolsOptions, pools: Map<string, Pool>) {
    this.#state = options.state;
    this.#log = options.log;
    this.#now = options.now;
    this.#onConfirmed = options.onConfirmed;
    this.#pools = pools;
  }

  static async open(options: HeldPoolsOptions): Promise<HeldPools> {
    return new HeldPools(options, readPools(await readJson(options.state, POOLS_FILE), options.now()));
  }

  get count(): number {
    return [...this.#pools.values()].filter(({ held }) => held !== undefined).length;
  }

  /** What of a result may come into force. `nodePlan`: what a node was given last, in this run. */
  judge(result: PlanResult, memory: PlannerMemory, nodePlan: (name: string) => NodePlan | undefined): Judged {
    const now = this.#now();
    for (const name of new Set([...this.#pools.keys(), ...result.pools.keys()])) this.#judgePool(name, result, now);
    const held = [...this.#pools.values()].filter((pool) => pool.held !== undefined);
    this.#look(held.length > 0);
    this.#save(now);
    const all: Judged = { result, frozen: { gateways: new Set(), nodes: new Set() } };
    return held.reduce((judged, pool) => keep(judged, pool, memory, nodePlan), all);
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await (this.#saving ?? this.#write());
  }

  #judgePool(name: string, result: PlanResult, now: number): void {
    const before = this.#pools.get(name);
    const plan = result.pools.get(name);
    const served = result.served.get(name) ?? none;
    if (before?.plan !== undefined && plan !== undefined && before.held === undefined) {
      const { plan: was } = before;
      // The planner gives what did not change as it was.
      if (before.served === served && was.shards === plan.shards && was.gateways === plan.gateways) {
        before.plan = plan;
        return;
      }
    }
    this.#dirty = true;
    const peaks = before && peaksAt(before, now);
    const loss = peaks && lossOf(name, peakOf(peaks.older, peaks.peak), served);
    if (before !== undefined && loss !== undefined) {
      if (this.#confirmed === undefined || !covers(this.#confirmed, loss)) {
        this.#hold(before, loss, now);
        return;
      }
      this.#confirmed = undefined;
      this.#log.warn({ pool: name, lost: loss.lost }, 'confirmed: the plan comes into force');
    } else if (before?.held !== undefined) {
      this.#log.info({ pool: name }, 'no longer held: the manifests take no more than half of its workloads');
    }
    if (plan === undefined) {
      this.#pools.delete(name);
      return;
    }
    const sameShards = before?.plan?.shards === plan.shards;
    // What was confirmed is not compared with what was before it.
    const { peak, older, since } = loss === undefined && peaks ? peaks : { peak: new Map(), older: none, since: now };
    raise(peak, served);
    this.#pools.set(name, {
      pool: name,
      served,
      plan,
      egressIPPools: before !== undefined && sameShards ? before.egressIPPools : egressIPPoolsOf(name, result),
      gateways: [...result.gateways].filter(([, pool]) => pool === name).map(([gateway]) => gateway),
      peak,
      older,
      since,
    });
  }

  #hold(pool: Pool, loss: Loss, now: number): void {
    const { held } = pool;
    if (held?.digest !== loss.digest) {
      const fields = { pool: loss.pool, lost: loss.lost, of: loss.of, digest: loss.digest };
      this.#log.error(fields, 'a plan that takes more than half of the workloads is held until it is confirmed');
    }
    pool.held = { ...loss, since: held?.since ?? now };
  }

  #look(wanted: boolean): void {
    if (!wanted) {
      clearInterval(this.#timer);
      this.#timer = undefined;
      this.#confirmed = undefined;
      return;
    }
    this.#timer ??= setInterval(() => void this.#read(), LOOK_MS).unref();
  }

  async #read(): Promise<void> {
    const confirmed = await readJson(this.#state, CONFIRMED_FILE);
    if (confirmed === undefined) return;
    await rm(join(this.#state, CONFIRMED_FILE), { force: true });
    if (!isRecord(confirmed) || typeof confirmed.pool !== 'string' || !areCounts(confirmed.lost)) return;
    this.#confirmed = { pool: confirmed.pool, lost: confirmed.lost };
    const loss = this.#pools.get(confirmed.pool)?.held;
    if (loss === undefined || !covers(this.#confirmed, loss)) {
      this.#log.error(
        { pool: confirmed.pool, lost: confirmed.lost },
        'confirmed is another loss than the one that is held',
      );
      this.#confirmed = undefined;
    } else this.#onConfirmed();
  }

  /** Behind, the newest only. */
  #save(now: number): void {
    if (!this.#dirty) return;
    const held = JSON.stringify(
      [...this.#pools].flatMap(([name, pool]) => (pool.held ? [name, pool.held.digest] : [])),
    );
    const due = held !== this.#savedHeld || now - this.#savedAt >= SAVE_MS || now < this.#savedAt;
    if (!due) return;
    [this.#savedHeld, this.#savedAt] = [held, now];
    this.#saving ??= this.#write().finally(() => {
      this.#saving = undefined;
    });
  }

  async #write(): Promise<void> {
    while (this.#dirty) {
      this.#dirty = false;
      await writeJson(this.#state, POOLS_FILE, savedPools(this.#pools)).catch((error: unknown) =>
        this.#log.error({ reason: String(error) }, 'cannot save what pools serve'),
      );
    }
  }
}

export interface HeldPoolsOptions {
  state: string;
  log: Logger;
  /** Milliseconds since the epoch. */
  now(): number;
  /** Something that is held was confirmed: judge() lets it through. */
  onConfirmed(): void;
}

function keep(
  { result, frozen }: Judged,
  pool: Pool,
  memory: PlannerMemory,
  nodePlan: (name: string) => NodePlan | undefined,
): Judged {
  const nodes = new Map(result.nodes);
  const frozenNodes = new Set(frozen.nodes);
  const itsNodes = Object.entries(memory.released).flatMap(([node, pods]) =>
    Object.entries(pods).some(([uid, { entry }]) => isOf(pool, uid, entry, memory.shared)) ? node : [],
  );
  for (const name of new Set([...nodes.keys(), ...itsNodes])) {
    const was = nodePlan(name);
    nodes.set(name, keepInNode(was, nodes.get(name) ?? emptyNodePlan(), pool));
  }
  // A controller that began with the pool held has given them nothing, and does not know all that they have.
  for (const name of itsNodes) if (nodePlan(name) === undefined) frozenNodes.add(name);
  const key = `GatewayPool/${pool.pool}`;
  return {
    result: {
      ...result,
      nodes,
      memory: keepInMemory(memory, result.memory, pool),
      statuses: pool.held === undefined ? result.statuses : withHeld(result.statuses, key, pool.held),
    },
    frozen: {
      gateways: new Set([...frozen.gateways, ...pool.gateways, ...gatewaysOf(result, pool.pool)]),
      nodes: frozenNodes,
    },
  };
}

/** A pool that is gone gets a status too: somebody may look for it. */
function withHeld(statuses: PlanResult['statuses'], key: string, held: Held): Map<string, Status> {
  const status = statuses.get(key);
  const others = (status?.conditions ?? []).filter(({ type }) => type !== 'Programmed');
  const message = `the manifests take ${describeLoss(held)} away at once: what was in force stays, until somebody runs sluice confirm --state DIR ${held.pool} ${held.digest}`;
  const condition = { type: 'Programmed', status: 'False', reason: 'Held', message } as const;
  return new Map(statuses).set(key, { ...status, conditions: [...others, condition] });
}

const gatewaysOf = ({ gateways }: PlanResult, pool: string): string[] =>
  [...gateways].flatMap(([name, of]) => (of === pool ? name : []));

function egressIPPoolsOf(pool: string, { pools, memory }: PlanResult): string[] {
  const addresses = Object.values(pools.get(pool)?.shards ?? {}).flatMap(({ egressIPs }) => egressIPs);
  return [...new Set(addresses.flatMap((address) => memory.allocations[address]?.pool ?? []))].sort();
}

function peaksAt({ held, served, peak, older, since }: Pool, now: number): Pick<Pool, 'peak' | 'older' | 'since'> {
  const age = now - since;
  // What is held is compared with the same for as long as it is.
  if (held !== undefined || (age >= 0 && age < WINDOW_MS)) return { peak, older, since };
  return { peak: new Map(served), older: age < 2 * WINDOW_MS ? peak : none, since: now };
}

function raise(peak: Map<string, number>, served: Served): void {
  for (const [namespace, count] of served) if (count > (peak.get(namespace) ?? 0)) peak.set(namespace, count);
}

interface SavedPool {
  served: Record<string, number>;
  egressIPPools: readonly string[];
  gateways: readonly string[];
  held?: Held;
}

function savedPools(pools: ReadonlyMap<string, Pool>): { pools: Record<string, SavedPool> } {
  const saved: Record<string, SavedPool> = {};
  for (const [name, { served, peak, older, egressIPPools, gateways, held }] of pools) {
    const compared = held === undefined ? served : peakOf(older, peak);
    saved[name] = { served: Object.fromEntries(compared), egressIPPools, gateways, ...(held && { held }) };
  }
  return { pools: saved };
}

const areCounts = (value: unknown): value is Record<string, number> =>
  isRecord(value) && Object.values(value).every((count) => Number.isSafeInteger(count));
const areTexts = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((text) => typeof text === 'string');

/** From our own file; what is damaged in it is left out, and then not compared with. */
function readPools(stored: unknown, now: number): Map<string, Pool> {
  const pools = new Map<string, Pool>();
  if (!isRecord(stored) || !isRecord(stored.pools)) return pools;
  for (const [pool, saved] of Object.entries(stored.pools)) {
    if (!isRecord(saved) || !areCounts(saved.served)) continue;
    const { egressIPPools, gateways } = saved;
    const served = new Map(Object.entries(saved.served));
    if (!areTexts(egressIPPools) || !areTexts(gateways)) continue;
    const held = readOne(pool, saved.held);
    const peaks = { peak: new Map(served), older: none, since: now };
    pools.set(pool, { pool, served, egressIPPools, gateways, ...peaks, ...(held && { held }) });
  }
  return pools;
}

/** What is held, as `sluice confirm` reads it. */
export async function readHeld(state: string): Promise<Held[] | undefined> {
  const stored = await readJson(state, POOLS_FILE);
  if (!isRecord(stored) || !isRecord(stored.pools)) return undefined;
  return Object.entries(stored.pools).flatMap(([pool, saved]) => readOne(pool, isRecord(saved) && saved.held) ?? []);
}

function readOne(pool: string, held: unknown): Held | undefined {
  if (!isRecord(held) || !areCounts(held.lost) || typeof held.digest !== 'string') return undefined;
  const [of, since] = [Number(held.of), Number(held.since)];
  return { pool, lost: held.lost, of, digest: held.digest, since };
}

export async function writeConfirmed(state: string, { pool, lost, digest }: Held): Promise<void> {
  await writeJson(state, CONFIRMED_FILE, { pool, lost, digest });
}
