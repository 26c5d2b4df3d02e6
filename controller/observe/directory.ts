/**
 * The directory source: every YAML file below a path, watched, as one snapshot of valid objects. Nothing that is bad
 * disturbs what is in force (document.ts); an object that is in two files is taken from the first by file name.
 * Objects without `creationTimestamp` or `uid`, as people write them, get the time when they were first seen, and
 * a uid made from both, so that age is stable across restarts and a pod that is made anew is another pod.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { AnyObject } from '../../api/kinds.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import { type FileContent, readDocuments, type SourceError } from './document.ts';
import { type Remembered, recall, remember } from './remembered.ts';
import type { ObjectSource, Observation } from './source.ts';
import { type Listing, MAX_FILES, Tree, type TreeFile } from './tree.ts';

export type { SourceError } from './document.ts';

export interface DirectoryOptions {
  path: string;
  /** Remembers the last good objects and first-seen times; absent: nothing is remembered (lint, get). */
  state?: string;
  log: Logger;
  now?: () => number;
  /** For tests: so few that they are soon beyond it. */
  maxFiles?: number;
  onChange(observation: Observation): void;
  /** After each look, changed or not: something may have happened to files that are no manifests. */
  onLook?(): void;
}

/** Quiet time after the last event; an editor's or kubectl's burst is over sooner. */
const DEBOUNCE_MS = 10;
const MAX_DELAY_MS = 100;
/** A file that is being rewritten in place is empty for a moment: its objects are not gone yet. */
const EMPTY_GRACE_MS = 250;
/** A look without an event: network file systems have no inotify, and watches can run out. */
const POLL_MS = 5_000;
const MAX_FILE_BYTES = 32 * 1024 * 1024;

interface LoadedFile extends FileContent {
  signature: string;
}

/** The logic between files and snapshot; apart from the watch, so that `lint` and `get` have it too. */
class Directory {
  readonly #options: Pick<DirectoryOptions, 'path' | 'state' | 'now' | 'maxFiles'>;
  readonly #tree: Tree;
  readonly #files = new Map<string, LoadedFile>();
  readonly #emptySince = new Map<string, number>();
  #firstSeen: Map<string, string>;
  /** As they are written, of objects whose age nothing tells. */
  #unaged = new Map<string, AnyObject>();
  observation: Observation = { snapshot: new Map(), errors: [] };

  constructor(
    options: Pick<DirectoryOptions, 'path' | 'state' | 'now' | 'maxFiles'>,
    onEvent?: (error?: Error) => void,
    firstSeen: ReadonlyMap<string, string> = new Map(),
  ) {
    this.#options = options;
    this.#firstSeen = new Map(firstSeen);
    this.#tree = new Tree(options.path, options.maxFiles ?? MAX_FILES, onEvent);
  }

  async recall(): Promise<void> {
    if (this.#options.state === undefined) return;
    const { files, firstSeen } = await recall(this.#options.state);
    this.#firstSeen = firstSeen;
    for (const [file, objects] of files) this.#files.set(file, { objects, errors: [], signature: '' });
  }

  /** Reads what changed; true if the observation did. `again`: look once more, after so many milliseconds. */
  async load(): Promise<{ changed: boolean; again?: number }> {
    const listing = await this.#tree.list();
    const { files, unreadable, tooMany } = listing;
    const now = (this.#options.now ?? Date.now)();
    let changed = false;
    let waiting = false;
    for (const name of this.#files.keys()) {
      if (files.has(name) || tooMany || [...unreadable.keys()].some((place) => isIn(name, place))) continue;
      this.#files.delete(name);
      changed = true;
    }
    for (const [name, file] of files) {
      const known = this.#files.get(name);
      if (known?.signature === file.signature) continue;
      if (file.size > 0) this.#emptySince.delete(name);
      else if ((known?.objects.size ?? 0) > 0) {
        const since = this.#emptySince.get(name) ?? now;
        this.#emptySince.set(name, since);
        if (now - since < EMPTY_GRACE_MS) {
          waiting = true;
          continue;
        }
      }
      this.#files.set(name, { ...(await this.#read(name, file, known)), signature: file.signature });
      changed = true;
    }
    const before = this.observation.errors;
    if (changed || unreadable.size > 0 || tooMany || before.length > 0) this.#merge(listing, now);
    changed ||= !sameJson(before, this.observation.errors);
    return { changed, ...(waiting ? { again: EMPTY_GRACE_MS } : {}) };
  }

  async #read(name: string, { path, size }: TreeFile, known: LoadedFile | undefined): Promise<FileContent> {
    const before = known?.objects ?? new Map<string, AnyObject>();
    const unreadable = (detail: string): FileContent => ({
      objects: before,
      errors: [{ file: name, reason: 'Unreadable', details: [detail] }],
    });
    if (size > MAX_FILE_BYTES) return unreadable(`larger than ${MAX_FILE_BYTES} bytes`);
    try {
      const text = await readFile(path, 'utf8');
      return readDocuments(name, text, before, (key) => this.observation.snapshot.get(key));
    } catch (error) {
      return unreadable(error instanceof Error ? error.message : String(error));
    }
  }

  #merge({ unreadable, tooMany }: Listing, now: number): void {
    const snapshot = new Map<string, AnyObject>();
    const origin = new Map<string, string>();
    const errors: SourceError[] = [];
    const firstSeen = new Map<string, string>();
    this.#unaged = new Map();
    for (const [file, message] of unreadable) errors.push({ file, reason: 'Unreadable', details: [message] });
    if (tooMany) {
      const detail = `more than ${this.#options.maxFiles ?? MAX_FILES} files: the rest is not read; put several documents into one file`;
      errors.push({ file: '*', reason: 'Unreadable', details: [detail] });
    }
    const names = [...this.#files.keys()].sort();
    for (const name of names) {
      const file = this.#files.get(name);
      if (file === undefined) continue;
      errors.push(...file.errors);
      for (const [key, object] of file.objects) {
        const other = origin.get(key);
        if (other !== undefined) {
          errors.push({ file: name, object: key, reason: 'Duplicate', details: [`is in ${other} already`] });
          continue;
        }
        origin.set(key, name);
        const known = this.#firstSeen.get(key);
        if (known === undefined && object.metadata.creationTimestamp === undefined) this.#unaged.set(key, object);
        const seen = known ?? new Date(now).toISOString();
        firstSeen.set(key, seen);
        snapshot.set(key, withAge(key, object, seen));
      }
    }
    this.#firstSeen = firstSeen;
    this.observation = { snapshot, errors };
  }

  remembered(): Remembered {
    const files = new Map([...this.#files].map(([name, { objects }]) => [name, objects] as const));
    return { files, firstSeen: this.#firstSeen };
  }

  get unaged(): ReadonlyMap<string, AnyObject> {
    return this.#unaged;
  }

  close(): void {
    this.#tree.close();
  }
}

/** Made of an object and the time when it was first seen: the same as long as these are, and so are snapshots. */
const aged = new WeakMap<AnyObject, { seen: string; object: AnyObject }>();

/** `place`: as a listing's `unreadable` has it. */
const isIn = (file: string, place: string): boolean =>
  place === '/' || file === place || (place.endsWith('/') && file.startsWith(place));

function withAge<O extends AnyObject>(key: string, object: O, seen: string): O {
  const { creationTimestamp, uid } = object.metadata;
  if (creationTimestamp !== undefined && uid !== undefined) return object;
  const known = aged.get(object);
  if (known?.seen === seen) return known.object as O;
  // The API server's form has seconds; the uid is of the exact time, since a pod may be made anew within one.
  const created = creationTimestamp ?? seen.replace(/\.\d+Z$/, 'Z');
  const made = uid ?? uidOf(key, creationTimestamp ?? seen);
  const whole = { ...object, metadata: { ...object.metadata, creationTimestamp: created, uid: made } };
  aged.set(object, { seen, object: whole });
  return whole;
}

/** In the form that Kubernetes' uids have. */
function uidOf(key: string, time: string): string {
  const hex = createHash('sha256').update(`${key}\0${time}`).digest('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), `8${hex.slice(13, 16)}`, `a${hex.slice(17, 20)}`, hex.slice(20, 32)].join(
    '-',
  );
}

export interface Loaded extends Observation {
  /** Object key → time, of objects that do not say their own age. */
  firstSeen: ReadonlyMap<string, string>;
  /** Objects of which neither their manifest nor anybody else says the age: as they are written, without a made-up one. */
  unaged: ReadonlyMap<string, AnyObject>;
}

/**
 * One load without a watch: `sluice get`, `explain`, `simulate`. Rejects if the path cannot be read. `firstSeen`: what
 * another directory's objects have, for those that are in this one too.
 */
export async function loadDirectory(
  path: string,
  options: { state?: string | undefined; now?: () => number; firstSeen?: ReadonlyMap<string, string> } = {},
): Promise<Loaded> {
  const { state, firstSeen, ...rest } = options;
  const directory = new Directory({ path, ...rest, ...(state === undefined ? {} : { state }) }, undefined, firstSeen);
  await directory.recall();
  await directory.load();
  const broken = directory.observation.errors.find(({ file }) => file === '/');
  if (broken !== undefined) throw new Error(broken.details.join('; '));
  const { observation, unaged } = directory;
  return { ...observation, firstSeen: directory.remembered().firstSeen, unaged };
}

/** Loads once (the promise resolves after the first load, before any onChange), then watches. */
export async function watchDirectory(options: DirectoryOptions): Promise<ObjectSource> {
  const { log, state } = options;
  let timer: NodeJS.Timeout | undefined;
  let loading: Promise<void> | undefined;
  let saving = Promise.resolve();
  let dirty = false;
  let ready = false;
  let firstEvent = 0;
  let closed = false;
  let reported = new Set<string>();

  const directory = new Directory(options, (error) => {
    if (error !== undefined) log.warn({ reason: error.message }, 'a watch failed; the directory is polled');
    schedule(DEBOUNCE_MS);
  });
  function schedule(delay: number): void {
    // What happens during the first load is looked at after it.
    dirty = true;
    if (closed || !ready) return;
    const time = Date.now();
    if (timer === undefined) firstEvent = time;
    // Someone who writes without a pause must not put off everybody else.
    else if (time - firstEvent > MAX_DELAY_MS) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = undefined;
      dirty = true;
      loading ??= loadAll()
        .catch((error: unknown) => log.error({ reason: String(error) }, 'cannot load the directory'))
        .finally(() => {
          loading = undefined;
        });
    }, delay);
  }
  async function loadAll(): Promise<void> {
    while (dirty && !closed) {
      dirty = false;
      const { changed, again } = await directory.load();
      if (again !== undefined) schedule(again);
      if (!closed) options.onLook?.();
      if (!changed || closed) continue;
      report();
      options.onChange(directory.observation);
      save();
    }
  }
  function report(): void {
    const now = new Set<string>();
    for (const error of directory.observation.errors) {
      const text = JSON.stringify(error);
      now.add(text);
      if (!reported.has(text)) log.error(error, 'a manifest was refused; what was in force stays');
    }
    reported = now;
  }
  function save(): void {
    if (state === undefined) return;
    const remembered = directory.remembered();
    saving = saving
      .then(() => remember(state, remembered))
      .catch((error: unknown) => log.error({ reason: String(error) }, 'cannot save the last good objects'));
  }

  await directory.recall();
  const { again } = await directory.load();
  if (directory.observation.errors.some(({ file }) => file === '/')) {
    const [broken] = directory.observation.errors;
    directory.close();
    throw new Error(`${options.path}: ${broken?.details.join('; ')}`);
  }
  report();
  save();
  ready = true;
  if (dirty || again !== undefined) schedule(again ?? DEBOUNCE_MS);
  const poll = setInterval(() => schedule(0), POLL_MS);
  return {
    current: () => directory.observation,
    async close() {
      closed = true;
      clearTimeout(timer);
      clearInterval(poll);
      directory.close();
      await loading;
      await saving;
    },
  };
}
