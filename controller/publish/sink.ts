/** Where what became of objects is told: files beside manifests, or the status subresources of an API server. */
import type { SourceError } from '../observe/document.ts';
import type { Status } from '../plan/condition.ts';
import type { Snapshot } from '../plan/snapshot.ts';

/** Nothing throws: what cannot be written is logged and tried again. */
export interface StatusSink {
  /** Returns at once; what is published while something is written replaces what was waiting. */
  publish(statuses: ReadonlyMap<string, Status>, errors: readonly SourceError[], objects: Snapshot): void;
  /** The status of these objects alone. What is published later replaces it. */
  patch(statuses: ReadonlyMap<string, Status>): void;
  close(): Promise<void>;
}
