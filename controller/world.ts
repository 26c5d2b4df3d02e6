/**
 * What differs between a controller of a directory and one of a cluster: where objects come from, where their status goes, what
 * is remembered where.
 */
import { join, resolve } from 'node:path';
import type { Registry } from 'prom-client';
import type { Logger } from '../daemon/log.ts';
import { KeptMemory } from './kept-memory.ts';
import type { Memory } from './memory.ts';
import { watchDirectory } from './observe/directory.ts';
import type { ObjectSource, Observation } from './observe/source.ts';
import type { Objects } from './plan/objects.ts';
import type { StatusSink } from './publish/sink.ts';
import { StatusDirectory } from './publish/status.ts';

export interface World {
  /** Resolves when this controller may plan; there may be others, of which one at a time may. `onLost`: it may no more. */
  lead(onLost: (reason: string) => void): Promise<void>;
  /** Whether it may now: asked before anything is published. */
  leads(): boolean;
  /** Who may instead, in words for a person; undefined: nobody that is known. */
  leader(): string | undefined;
  /** Resolves when all has been read once. `onLook`: something may have happened to files that are no objects. */
  watch(events: { onChange(observation: Observation): void; onLook(): void }): Promise<ObjectSource>;
  memory(): Promise<Memory>;
  readonly statuses: StatusSink;
  /** These are in force: what they ask of one another is written. */
  planned(objects: Objects): void;
  /** Where the files of `addressesFrom` lie. */
  readonly files: string;
  /** Whether there may be other controllers: one of them may lead, and they may have given out addresses. */
  readonly others: boolean;
  /** After the source. */
  close(): Promise<void>;
}

const DIRECTORY = 'directory:';

interface Around {
  state: string;
  log: Logger;
  now: () => number;
  registry: Registry;
}

/** Of a controller's options. */
export async function worldOf(
  { source, kubeconfig, context }: { source: string; kubeconfig?: string; context?: string },
  around: Around,
): Promise<World> {
  if (source.startsWith(DIRECTORY)) return directoryWorld(resolve(source.slice(DIRECTORY.length)), around);
  if (source !== 'kubernetes') throw new Error(`unknown source ${source}`);
  // On use: the library takes most of a second, and 70 MB.
  const { clusterWorld } = await import('./kubernetes/world.ts');
  const target = { ...(kubeconfig !== undefined && { kubeconfig }), ...(context !== undefined && { context }) };
  return clusterWorld({ ...target, ...around });
}

function directoryWorld(path: string, options: Omit<Around, 'registry'>): World {
  const { state, log, now } = options;
  return {
    watch: (events) => watchDirectory({ path, state, log, ...events }),
    memory: () => KeptMemory.open(state, log),
    statuses: new StatusDirectory(join(path, '.status'), log, now),
    planned: () => {},
    files: path,
    others: false,
    lead: async () => {},
    leads: () => true,
    leader: () => undefined,
    close: async () => {},
  };
}
