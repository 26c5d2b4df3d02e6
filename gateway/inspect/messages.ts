/**
 * What the main thread and the threads that read flows say to each other: structured clones of plain data. A thread has its
 * own copy of policy and of the name table; what it decided it tells the main thread in batches.
 *
 * Of the order: messages to one thread are read in the order in which they were posted. A thread reads them before it
 * asks for a name that it does not know, so an answer that it may rely on has to be posted before whoever waits for it
 * is let on.
 */

import type { Family, Policy } from '../../api/plan.ts';
import type { PlanDelta } from '../../api/plan-delta.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import type { Decision } from '../../policy/decision.ts';
import { defaultLimits, type FlowLimits } from './flows.ts';
import type { NamedAddress } from './name-table.ts';
import type { PackedFlows } from './packed-flows.ts';
import type { InspectReason } from './reasons.ts';

/** What `createDecider` begins with: of the time at which the thread starts. */
export interface DeciderData {
  policy: Policy;
  /** Of that policy; answered with `inForce`. */
  generation: number;
  /** Number of each rule by its id (GatewayCompiler.numbers). */
  numbers: readonly (readonly [id: string, number: number])[];
  names: readonly NamedAddress[];
  /** Raw sockets (kernel/raw-socket.ts) of the main thread, which also closes them. */
  raw: Record<Family, number>;
  onOverload: 'Drop' | 'Accept';
  /** SharedArrayBuffer of TALLY_BYTES (tally.ts), of this start of this thread alone: counters. Absent: nobody reads them. */
  counts?: SharedArrayBuffer;
  /** Milliseconds since the epoch at which performance.now() is zero in the thread; absent: as it says. */
  epoch?: number;
  limits?: Partial<DeciderLimits>;
}

export interface DeciderLimits extends FlowLimits {
  /** Milliseconds that a flow waits for `resolved`. */
  resolveMs: number;
  /** Milliseconds that an answer of a resolver waits for `release`. */
  teachMs: number;
  /** Names that are asked for at the first packet of one flow. */
  resolveNames: number;
}

export const deciderLimits: DeciderLimits = {
  ...defaultLimits,
  // Those that are read for life among them.
  flows: 16_384,
  resolveMs: 500,
  teachMs: 500,
  resolveNames: 8,
};

export type ToDecider =
  /** What changed in the collections of policy; `numbers` that are new or others, `gone` of rules that are no more. */
  | { kind: 'policy'; generation: number; delta: PlanDelta; numbers: [id: string, number: number][]; gone: string[] }
  /**
   * Pairs that are new or hold longer now. A thread forgets a pair when its `until` is over: of one that a flow uses the main
   * thread tells a later time before that.
   */
  | { kind: 'names'; pairs: NamedAddress[] }
  /** Addresses that no name may have any more. */
  | { kind: 'forget'; addresses: string[] }
  /** The answer of that `teach` may go: who has to know of it does. */
  | { kind: 'release'; id: number }
  /** That `resolve` has its answer, or will have none; what it taught was posted before, as `names`. */
  | { kind: 'resolved'; id: number };

export type FromDecider =
  /** That generation is what flows are decided by from now on. */
  | { kind: 'inForce'; generation: number }
  /** At most 256 at once. */
  | { kind: 'decided'; packed: PackedFlows }
  /** A resolver of the pool answered: each of `names` (the question's, and those that it is an alias of) has each address. */
  | {
      kind: 'teach';
      id: number;
      /** Canonical text. */
      resolver: string;
      names: string[];
      addresses: { address: string; ttlSeconds: number }[];
    }
  /** A flow waits for the addresses of that name, of these families. */
  | { kind: 'resolve'; id: number; name: string; families: Family[] };

/**
 * A flow as it was decided; of flows that are read for life the first request or question that was permitted, and of
 * later ones those that are no plain permission: denied, or hits of audit. Addresses are canonical text, before SNAT.
 */
export interface DecidedFlow {
  protocol: number;
  source: string;
  sourcePort?: number;
  destination: string;
  destinationPort?: number;
  /** Undefined: inspection itself ended it, for `reason`. */
  decision: Decision | undefined;
  reason?: InspectReason;
  /** More of the reason: the word of the reader that refused. */
  detail?: string;
  reading: ApplicationReading;
  /** It is read for life: more may follow of the same flow. */
  life?: true;
  /** Its conntrack entry is to go: nothing of it may pass any more. */
  delete?: true;
}
