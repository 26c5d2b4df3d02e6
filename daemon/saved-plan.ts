/**
 * The last plan that a gateway or node had in force, on disk: DIR/plan.saved, a snapshot and behind it every change
 * since, as updates of the plan stream (plan-parts.ts), each line after its CRC-32. A change costs what it is long; when
 * the changes outgrow the snapshot, a new file is written beside and takes the old one's place at once. A crash leaves
 * the plan before or after a change, never half of one: what is torn at the end is dropped, and said. A file whose
 * snapshot cannot be read is reported with its reason and otherwise treated as absent: the controller sends one.
 */
import { renameSync } from 'node:fs';
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import type { PlanOf, PlanRole } from '../api/plan.ts';
import { Changes, changePlan, checkDelta, copyPlan, type PlanDelta } from '../api/plan-delta.ts';
import { Assembly, formatUpdate, type Update } from '../api/plan-parts.ts';
import { LineReader, MAX_SERVER_LINE, MAX_UPDATE, parseServerMessage } from '../api/plan-stream.ts';
import type { Logger } from './log.ts';

export interface SavedPlan<R extends PlanRole> {
  generation: number;
  hash: string;
  /** The client's, once it was given to it (stream-client.ts). */
  plan: PlanOf[R];
  ageSeconds: number;
}

export interface SavedPlanOptions {
  log: Logger;
  /** Bytes of changes behind a snapshot that is smaller. */
  leastChanges?: number;
}

const FILE = 'plan.saved';
const CHUNK = 1024 * 1024;
const NEWLINE = 10;
const LEAST_CHANGES = 1024 * 1024;
/** The first line says whose plan it is. */
const headOf = (role: PlanRole): string => `{"type":"saved","version":1,"role":"${role}"}`;

interface Open {
  handle: FileHandle;
  snapshotBytes: number;
  changeBytes: number;
  /** Of the plan that it holds. */
  generation: number;
}

/** An update that the file holds, or will. */
type Change = Exclude<Update, { type: 'keep' }>;

export class SavedPlanFile<R extends PlanRole> {
  readonly saved: SavedPlan<R> | undefined;
  /** Why there is none, if there is a file. */
  readonly reason: string | undefined;
  readonly #role: R;
  readonly #directory: string;
  readonly #log: Logger;
  readonly #leastChanges: number;
  /** What changes are appended to; undefined: the next plan is written as a whole. */
  #open: Open | undefined;
  /** A change that is being appended. */
  #appending: Promise<number> | undefined;
  /** Changes that came while the next file is being written. */
  #since: Change[] | undefined;
  #renewal: Promise<void> = Promise.resolve();

  private constructor(directory: string, role: R, options: SavedPlanOptions, found: Found<R>) {
    this.#directory = directory;
    this.#role = role;
    this.#log = options.log;
    this.#leastChanges = options.leastChanges ?? LEAST_CHANGES;
    this.saved = found.saved;
    this.reason = found.reason;
    this.#open = found.open;
  }

  static async open<R extends PlanRole>(
    directory: string,
    role: R,
    options: SavedPlanOptions,
  ): Promise<SavedPlanFile<R>> {
    return new SavedPlanFile(directory, role, options, await find(directory, role, options));
  }

  /**
   * When it returns, a process that dies has this plan in its file; only a machine that dies may not, and its kernel
   * has forgotten the plan too: so nobody waits for the disk, a pod's release would. `delta`: from the plan that was
   * saved last; absent: not known. The plan must not change until it returns.
   */
  async save(plan: PlanOf[R], generation: number, hash: string, delta?: PlanDelta): Promise<void> {
    const file = this.#open;
    if (file === undefined || delta === undefined) {
      await this.#stopRenewal();
      await this.#close();
      this.#open = await this.#write(plan, generation, hash);
      this.#replace(this.#open);
      return;
    }
    const change: Change = { type: 'delta', from: file.generation, generation, hash, deltas: [delta] };
    this.#since?.push(change);
    try {
      this.#appending = append(file.handle, change);
      file.changeBytes += await this.#appending;
      file.generation = generation;
    } catch (error) {
      // It may end with half a line, after which nothing would be read.
      await this.#close();
      throw error;
    } finally {
      this.#appending = undefined;
    }
    if (file.changeBytes < Math.max(file.snapshotBytes, this.#leastChanges) || this.#since !== undefined) return;
    this.#since = [];
    // The copy is of the keys alone; a plan of 100,000 workloads comes to this after as many changes.
    this.#renewal = this.#renew(copyPlan(plan), generation, hash);
  }

  /** Writes a new file and puts it in the place of the old, which goes on being the plan until then. */
  async #renew(plan: PlanOf[R], generation: number, hash: string): Promise<void> {
    const since = this.#since ?? [];
    let next: Open | undefined;
    try {
      next = await this.#write(plan, generation, hash, () => this.#since !== since);
      while ((since.length > 0 || this.#appending !== undefined) && this.#since === since) {
        const change = since.shift();
        if (change === undefined) {
          // The old file is not closed under a change that is on its way into it.
          await this.#appending?.catch(() => undefined);
          continue;
        }
        next.changeBytes += await append(next.handle, change);
        next.generation = change.generation;
      }
      if (this.#since !== since) throw new Error('called off');
      // No await between the last look at what came since and the new file's taking over.
      const old = this.#open;
      this.#replace(next);
      this.#open = next;
      await old?.handle.close().catch(() => undefined);
    } catch (error) {
      await next?.handle.close().catch(() => undefined);
      await rm(`${this.#path}.new`, { force: true }).catch(() => undefined);
      if (this.#since !== since) return;
      this.#log.error({ reason: (error as Error).message }, 'the saved plan cannot be written anew; it grows');
      // Tried again when it has grown as much once more.
      if (this.#open !== undefined) this.#open.snapshotBytes += this.#open.changeBytes;
    } finally {
      if (this.#since === since) this.#since = undefined;
    }
  }

  /** A whole plan, in the file beside; a piece at a time, so that other work goes on. */
  async #write(plan: PlanOf[R], generation: number, hash: string, calledOff = () => false): Promise<Open> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const handle = await open(`${this.#path}.new`, 'w', 0o600);
    try {
      let bytes = await write(handle, `${headOf(this.#role)}\n`);
      bytes += await append(handle, { type: 'snapshot', generation, hash, plan }, calledOff);
      return { handle, snapshotBytes: bytes, changeBytes: 0, generation };
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  #replace({ handle }: Open): void {
    renameSync(`${this.#path}.new`, this.#path);
    void handle.sync().catch(() => undefined);
  }

  get #path(): string {
    return join(this.#directory, FILE);
  }

  async #stopRenewal(): Promise<void> {
    this.#since = undefined;
    await this.#renewal;
  }

  async #close(): Promise<void> {
    const file = this.#open;
    this.#open = undefined;
    await file?.handle.close();
  }

  async close(): Promise<void> {
    await this.#stopRenewal();
    await this.#close();
  }
}

const sumOf = (line: string | Uint8Array): string => `${crc32(line).toString(16).padStart(8, '0')} `;

/** Whole lines, each after its checksum. */
function withSums(lines: string): Buffer {
  const text = Buffer.from(lines);
  const parts: Buffer[] = [];
  let start = 0;
  for (let end = text.indexOf(NEWLINE); end >= 0; end = text.indexOf(NEWLINE, start)) {
    parts.push(Buffer.from(sumOf(text.subarray(start, end))), text.subarray(start, end + 1));
    start = end + 1;
  }
  return Buffer.concat(parts);
}

async function write(handle: FileHandle, lines: string): Promise<number> {
  const bytes = withSums(lines);
  await handle.writeFile(bytes);
  return bytes.length;
}

async function append(handle: FileHandle, update: Update, calledOff = () => false): Promise<number> {
  let bytes = 0;
  for (const lines of formatUpdate(update)) {
    if (calledOff()) throw new Error('called off');
    bytes += await write(handle, lines);
  }
  return bytes;
}

interface Found<R extends PlanRole> {
  saved?: SavedPlan<R>;
  reason?: string;
  /** Where changes can be appended. */
  open?: Open;
}

async function find<R extends PlanRole>(directory: string, role: R, { log }: SavedPlanOptions): Promise<Found<R>> {
  const path = join(directory, FILE);
  let handle: FileHandle;
  try {
    handle = await open(path, 'r');
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    return missing ? {} : { reason: `cannot be read: ${(error as Error).message}` };
  }
  try {
    const reading = new Reading(role);
    const damage = await reading.read(handle);
    const { plan, generation, hash, snapshotBytes } = reading;
    if (plan === undefined) return { reason: damage ?? 'holds no plan' };
    const { size, mtimeMs } = await handle.stat();
    const ageSeconds = Math.max(0, (Date.now() - mtimeMs) / 1000);
    const saved = { plan, generation, hash, ageSeconds };
    if (damage !== undefined) {
      log.warn({ reason: damage, generation }, 'the end of the saved plan is damaged: starting with what is before it');
      return { saved };
    }
    const changes = { handle: await open(path, 'a'), snapshotBytes, changeBytes: size - snapshotBytes, generation };
    return { saved, open: changes };
  } catch (error) {
    return { reason: `cannot be read: ${(error as Error).message}` };
  } finally {
    await handle.close();
  }
}

/** Reads a file to its end or to its first damage; what was whole before that counts. */
class Reading<R extends PlanRole> {
  plan: PlanOf[R] | undefined;
  generation = 0;
  hash = '';
  snapshotBytes = 0;
  readonly #role: R;
  readonly #assembly: Assembly<PlanOf[R]>;
  #bytes = 0;
  /** The last line was the end of an update. */
  #whole = false;
  #begun = false;

  constructor(role: R) {
    this.#role = role;
    this.#assembly = new Assembly(role, MAX_UPDATE);
  }

  /** What is wrong with the file, if something is. */
  async read(handle: FileHandle): Promise<string | undefined> {
    const reader = new LineReader(MAX_SERVER_LINE);
    let last: number | undefined;
    for (;;) {
      const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(CHUNK), 0, CHUNK);
      if (bytesRead === 0) break;
      last = buffer[bytesRead - 1];
      const lines = reader.push(buffer.subarray(0, bytesRead));
      if (!lines.ok) return lines.error;
      for (const line of lines.value) {
        const damage = this.#line(line);
        if (damage !== undefined) return damage;
      }
    }
    return last === NEWLINE && this.#whole ? undefined : 'ends in the middle of a change';
  }

  #line(text: string): string | undefined {
    this.#bytes += Buffer.byteLength(text) + 1;
    const line = text.slice(9);
    if (text.slice(0, 9) !== sumOf(line)) return 'has a line with a wrong checksum';
    if (!this.#begun) {
      this.#begun = line === headOf(this.#role);
      return this.#begun ? undefined : `is no plan of a ${this.#role}`;
    }
    const message = parseServerMessage(line);
    if (!message.ok) return `a message ${message.error}`;
    const update = this.#assembly.push(message.value, line.length);
    if (!update.ok) return `a message ${update.error}`;
    this.#whole = update.value !== undefined;
    return update.value === undefined ? undefined : this.#take(update.value);
  }

  #take(update: Update<PlanOf[R]>): string | undefined {
    if (update.type === 'snapshot') {
      if (this.plan !== undefined) return 'has a second snapshot';
      this.plan = update.plan;
      this.snapshotBytes = this.#bytes;
    } else if (update.type === 'delta') {
      if (this.plan === undefined || update.from !== this.generation) return 'has a change of another plan';
      const trial = new Changes();
      for (const delta of update.deltas) {
        const checked = checkDelta(this.plan, delta, trial);
        if (!checked.ok) return checked.error;
        trial.add(delta);
      }
      changePlan(this.plan, trial.from(this.plan));
    } else {
      return 'has a message that is no change';
    }
    this.generation = update.generation;
    this.hash = update.hash;
    return undefined;
  }
}
