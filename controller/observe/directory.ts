/** stub, see the next commit */
import type { Logger } from '../../daemon/log.ts';
import type { Snapshot } from '../plan/snapshot.ts';

export interface SourceError {
  file: string;
  /** Zero-based document in the file. */
  document?: number;
  object?: string;
  reason: string;
  details: string[];
}

export interface Observation {
  snapshot: Snapshot;
  errors: SourceError[];
}

export interface DirectoryOptions {
  path: string;
  /** Remembers the last good objects and first-seen times; absent: nothing is remembered (lint, get). */
  state?: string;
  log: Logger;
  now?: () => number;
  onChange(observation: Observation): void;
}

export interface DirectorySource {
  current(): Observation;
  close(): Promise<void>;
}

/** Loads once (the promise resolves after the first load, before any onChange), then watches. */
export function watchDirectory(options: DirectoryOptions): Promise<DirectorySource> {
  throw new Error(`not built yet: ${options.path}`);
}

/** One load without a watch or memory: `sluice lint`, `get`, `explain`. */
export function loadDirectory(path: string): Promise<Observation> {
  throw new Error(`not built yet: ${path}`);
}
