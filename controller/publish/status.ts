/**
 * Status of the directory source: `PATH/.status/<Kind>/[<namespace>/]<name>.yaml` and `errors.yaml`, written only when
 * something changed, renamed into place. With the object's age, which its manifest need not say, since of two rules with
 * one priority the older comes first. `lastTransitionTime` moves only when a condition's status does, across
 * restarts too. A status that cannot be written is logged and costs nothing else.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { parse, stringify } from 'yaml';
import { API_VERSION } from '../../api/names.ts';
import { isRecord } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import type { SourceError } from '../observe/document.ts';
import type { Condition, Status } from '../plan/condition.ts';
import type { Snapshot } from '../plan/snapshot.ts';
import type { StatusSink } from './sink.ts';

/** What a file name may be made of; keys of refused documents are anybody's text. */
const SAFE = /^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$/;
const ownKinds = new Set([
  'GatewayPool',
  'EgressIPPool',
  'EgressIP',
  'ExternalService',
  'ClusterEgressRule',
  'NamespaceEgressRule',
  'ServiceEgressRule',
]);

/** A refused manifest shows on its object: not accepted, whether an older version is in force or not. */
export function withErrors(statuses: ReadonlyMap<string, Status>, errors: readonly SourceError[]): Map<string, Status> {
  const result = new Map(statuses);
  for (const { object, file, reason, details } of errors) {
    if (object === undefined || reason === 'Duplicate' || !ownKinds.has(object.split('/')[0] ?? '')) continue;
    const before = result.get(object);
    const stays = before === undefined ? 'nothing is in force' : 'the last good version stays in force';
    const message = `${file}: ${details.join('; ')} (${stays})`;
    const others = (before?.conditions ?? []).filter(({ type }) => type !== 'Accepted');
    result.set(object, {
      ...before,
      conditions: [{ type: 'Accepted', status: 'False', reason: 'Invalid', message }, ...others],
    });
  }
  return result;
}

const createdOf = (objects: Snapshot, key: string): string | undefined => objects.get(key)?.metadata.creationTimestamp;

interface Published {
  statuses: ReadonlyMap<string, Status>;
  errors: readonly SourceError[];
  objects: Snapshot;
}
type TimedCondition = Condition & { lastTransitionTime: string };

export class StatusDirectory implements StatusSink {
  readonly #root: string;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #written = new Map<string, string>();
  /** What the text was made of. */
  readonly #sources = new Map<string, { status: Status; created: string | undefined }>();
  readonly #times = new Map<string, Map<string, TimedCondition>>();
  #known = false;
  #next: Published | undefined;
  /** Whose age was written. */
  #objects: Snapshot = new Map();
  readonly #patches = new Map<string, Status>();
  #writing: Promise<void> | undefined;

  constructor(root: string, log: Logger, now: () => number = Date.now) {
    this.#root = root;
    this.#log = log;
    this.#now = now;
  }

  /** Returns at once; what is published while files are written replaces what was waiting. */
  publish(statuses: ReadonlyMap<string, Status>, errors: readonly SourceError[], objects: Snapshot): void {
    this.#next = { statuses, errors, objects };
    this.#patches.clear();
    this.#start();
  }

  /** Writes the status of these objects alone. What is published later replaces it. */
  patch(statuses: ReadonlyMap<string, Status>): void {
    for (const [key, status] of statuses) this.#patches.set(key, status);
    this.#start();
  }

  #start(): void {
    this.#writing ??= this.#run().finally(() => {
      this.#writing = undefined;
    });
  }

  async close(): Promise<void> {
    await this.#writing;
  }

  async #run(): Promise<void> {
    while (this.#next !== undefined || this.#patches.size > 0) {
      const next = this.#next;
      this.#next = undefined;
      try {
        if (next !== undefined) await this.#writeAll(next);
        // What is patched is newer than all that waits to be published.
        if (this.#next !== undefined) continue;
        const patches = [...this.#patches];
        this.#patches.clear();
        for (const [key, status] of patches) await this.#writeStatus(key, status);
      } catch (error) {
        this.#log.error({ reason: String(error) }, 'cannot write status');
      }
    }
  }

  async #writeAll({ statuses, errors, objects }: Published): Promise<void> {
    this.#objects = objects;
    if (!this.#known) await this.#recall();
    this.#known = true;
    await this.#write('errors', stringify({ errors }));
    for (const [key, status] of statuses) {
      // Most are what they were, and there may be a great many.
      const source = this.#sources.get(key);
      if (source?.status === status && source.created === createdOf(objects, key)) continue;
      await this.#writeStatus(key, status);
    }
    for (const key of this.#written.keys()) {
      if (key === 'errors' || statuses.has(key)) continue;
      await rm(this.#file(key), { force: true });
      this.#written.delete(key);
      this.#sources.delete(key);
      this.#times.delete(key);
    }
  }

  async #writeStatus(key: string, status: Status): Promise<void> {
    const [kind, ...names] = key.split('/');
    if (kind === undefined || names.length === 0 || !names.every((name) => SAFE.test(name))) return;
    const conditions = status.conditions.map((condition) => this.#timed(key, condition));
    this.#times.set(key, new Map(conditions.map((condition) => [condition.type, condition])));
    const name = names.at(-1);
    const created = createdOf(this.#objects, key);
    const metadata = {
      ...(names.length > 1 && { namespace: names[0] }),
      name,
      ...(created !== undefined && { creationTimestamp: created }),
    };
    await this.#write(key, stringify({ apiVersion: API_VERSION, kind, metadata, status: { ...status, conditions } }));
    this.#sources.set(key, { status, created });
  }

  #timed(key: string, condition: Condition): TimedCondition {
    const before = this.#times.get(key)?.get(condition.type);
    const same = before?.status === condition.status;
    return { ...condition, lastTransitionTime: same ? before.lastTransitionTime : new Date(this.#now()).toISOString() };
  }

  async #write(key: string, text: string): Promise<void> {
    if (this.#written.get(key) === text) return;
    const file = this.#file(key);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(`${file}.new`, text);
    await rename(`${file}.new`, file);
    this.#written.set(key, text);
  }

  /** What an earlier run wrote: its times go on, and files of objects that are gone are removed. */
  async #recall(): Promise<void> {
    const entries = await readdir(this.#root, { recursive: true }).catch(() => []);
    for (const entry of entries) {
      if (!entry.endsWith('.yaml')) continue;
      const key = entry.slice(0, -'.yaml'.length);
      const text = await readFile(join(this.#root, entry), 'utf8').catch(() => '');
      this.#written.set(key, text);
      this.#times.set(key, conditionsOf(text));
    }
  }

  #file(key: string): string {
    return join(this.#root, `${key}.yaml`);
  }
}

function conditionsOf(text: string): Map<string, TimedCondition> {
  const conditions = new Map<string, TimedCondition>();
  try {
    const object: unknown = parse(text, { logLevel: 'silent' });
    const list = isRecord(object) && isRecord(object.status) ? object.status.conditions : [];
    for (const condition of Array.isArray(list) ? list : []) {
      if (isRecord(condition) && typeof condition.lastTransitionTime === 'string') {
        conditions.set(String(condition.type), condition as unknown as TimedCondition);
      }
    }
  } catch {
    // Written anew.
  }
  return conditions;
}
