/**
 * What is in force of what an API server said: valid objects, and of own objects that are bad now the last version that
 * was good, across restarts too (`apiserver.json` in the state directory holds those alone). An object that was made anew
 * has another uid: what was good of the one before is not good of it. Changes gather until the next snapshot is taken.
 */
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { isRecord } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import type { SourceError } from '../observe/document.ts';
import { LayeredSnapshot } from '../plan/layered.ts';
import type { Snapshot } from '../plan/snapshot.ts';
import { readJson, writeJson } from '../state-file.ts';
import type { Reader } from './informer.ts';
import { API_SERVER, isOwn, type Reading, type Resource, readItem } from './resources.ts';

const FILE = 'apiserver.json';
/** More than a person reads; each is also a status to write. */
const MAX_ERRORS = 1_000;

export class ObjectsInForce {
  #snapshot = new LayeredSnapshot();
  #changed = new Map<string, AnyObject | undefined>();
  readonly #keys = new Map<Resource, Set<string>>();
  /** Objects that are bad now. */
  readonly #bad = new Map<string, SourceError>();
  /** Last good versions of an earlier process, until an object of that name is read. */
  readonly #recalled = new Map<string, AnyObject>();
  #errors: SourceError[] = [];
  #errorsChanged = false;

  constructor(recalled: readonly AnyObject[] = []) {
    for (const object of recalled) this.#recalled.set(objectKey(object), object);
  }

  get(key: string): AnyObject | undefined {
    return this.#changed.has(key) ? this.#changed.get(key) : this.#snapshot.get(key);
  }

  /** Valid objects of a resource. */
  *of(resource: Resource): Generator<AnyObject> {
    for (const key of this.#keys.get(resource) ?? []) {
      const object = this.get(key);
      if (object !== undefined) yield object;
    }
  }

  /** Of a resource, for its informer. */
  reader(resource: Resource): Reader<Reading> {
    const keys = new Set<string>();
    this.#keys.set(resource, keys);
    const inForce = (key: string): AnyObject | undefined => this.get(key);
    const put = (key: string, reading: Reading): void => {
      keys.add(key);
      this.#put(key, reading);
    };
    const remove = (key: string): void => {
      keys.delete(key);
      this.#set(key, undefined);
      this.#forgive(key);
    };
    return {
      read: (item) => readItem(resource, item, inForce),
      put,
      remove,
      replace: (readings) => {
        for (const key of keys) if (!readings.has(key)) remove(key);
        for (const [key, reading] of readings) put(key, reading);
        for (const key of this.#recalled.keys()) if (key.startsWith(`${resource.kind}/`)) this.#recalled.delete(key);
      },
    };
  }

  /** Nobody asks for it any more. */
  drop(resource: Resource): void {
    for (const key of this.#keys.get(resource) ?? []) {
      this.#set(key, undefined);
      this.#forgive(key);
    }
    this.#keys.delete(resource);
  }

  #put(key: string, { uid, object, error }: Reading): void {
    if (error === undefined) {
      this.#set(key, object);
      this.#forgive(key);
      return;
    }
    const good = this.get(key) ?? this.#recalled.get(key);
    this.#set(key, good?.metadata.uid === uid ? good : undefined);
    this.#bad.set(key, error);
    this.#errorsChanged = true;
  }

  #set(key: string, object: AnyObject | undefined): void {
    if (this.#snapshot.get(key) === object) this.#changed.delete(key);
    else this.#changed.set(key, object);
  }

  #forgive(key: string): void {
    if (this.#bad.delete(key)) this.#errorsChanged = true;
  }

  /** Whether `take` gives anything else than last time. */
  get changed(): boolean {
    return this.#changed.size > 0 || this.#errorsChanged;
  }

  /** The same values as last time where nothing changed. */
  take(): { snapshot: Snapshot; errors: SourceError[] } {
    if (this.#changed.size > 0) {
      this.#snapshot = this.#snapshot.with(this.#changed);
      this.#changed = new Map();
    }
    if (this.#errorsChanged) this.#errors = this.#listErrors();
    this.#errorsChanged = false;
    return { snapshot: this.#snapshot, errors: this.#errors };
  }

  #listErrors(): SourceError[] {
    const errors: SourceError[] = [];
    for (const error of this.#bad.values()) {
      if (errors.length < MAX_ERRORS) errors.push(error);
    }
    const more = this.#bad.size - errors.length;
    if (more > 0) errors.push({ file: API_SERVER, reason: 'Invalid', details: [`and ${more} more objects`] });
    return errors;
  }

  /** What must not be forgotten: of own objects that are bad, what is in force. */
  lastGood(): AnyObject[] {
    const good: AnyObject[] = [];
    for (const key of this.#bad.keys()) {
      const object = this.get(key);
      if (object !== undefined && isOwn(object.kind)) good.push(object);
    }
    return good;
  }
}

/** Of an earlier process; a newer version may refuse what an older took. */
export async function recallLastGood(state: string): Promise<AnyObject[]> {
  const stored = await readJson(state, FILE);
  const list = isRecord(stored) && Array.isArray(stored.lastGood) ? stored.lastGood : [];
  return list.flatMap((input) => {
    const parsed = parseObject(input);
    return parsed.ok && isOwn(parsed.value.kind) ? [parsed.value] : [];
  });
}

/** Writes behind, one after the other, and only what is not written yet. */
export class LastGoodFile {
  readonly #state: string;
  readonly #log: Logger;
  #saved: readonly AnyObject[];
  #saving = Promise.resolve();

  constructor(state: string, log: Logger, saved: readonly AnyObject[]) {
    this.#state = state;
    this.#log = log;
    this.#saved = saved;
  }

  keep(lastGood: readonly AnyObject[]): void {
    const before = this.#saved;
    if (lastGood.length === before.length && lastGood.every((object, index) => object === before[index])) return;
    this.#saved = lastGood;
    this.#saving = this.#saving
      .then(() => writeJson(this.#state, FILE, { lastGood }))
      .catch((error: unknown) => this.#log.error({ reason: String(error) }, 'cannot save the last good objects'));
  }

  close(): Promise<void> {
    return this.#saving;
  }
}
