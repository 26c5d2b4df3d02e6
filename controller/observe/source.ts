/** Where the controller's objects come from: the same words for a directory of manifests and for an API server. */
import type { Snapshot } from '../plan/snapshot.ts';
import type { SourceError } from './document.ts';

export interface Observation {
  snapshot: Snapshot;
  /** What is not in force as it is written, and why. */
  errors: SourceError[];
}

export interface ObjectSource {
  current(): Observation;
  close(): Promise<void>;
}
