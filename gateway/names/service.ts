/**
 * The names of a gateway as its main thread has them (design §4.6), seen from outside: what the rest of the program tells
 * them and asks of them. They own the name table; the threads that read flows have copies. Types only: names.ts starts it.
 */
import type { Registry } from 'prom-client';
import type { GatewayPlan } from '../../api/plan.ts';
import type { PlanDelta } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import type { ToDecider } from '../inspect/messages.ts';
import type { NamedAddress, NameTableLimits } from '../inspect/name-table.ts';

export interface NamesOptions {
  /** This gateway, as plans and certificates name it. */
  name: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** Directory for what must outlive the process. */
  state: string;
  log: Logger;
  registry: Registry;
  /** To the thread of one queue, or to all of them. */
  post(message: ToDecider, queue?: number): void;
  /** Milliseconds since the epoch. */
  now?(): number;
  /** TCP port of all gateways. Absent: PORT_NAMES. */
  port?: number;
  /** UDP and TCP port of resolvers. Absent: 53. */
  resolverPort?: number;
  /** Of the table. Absent: those of every table. */
  limits?: NameTableLimits;
  /** How often the table is saved, and pairs that flows use are told anew; milliseconds. */
  saveMs?: number;
  renewMs?: number;
}

export interface Names {
  /**
   * What is in force now: gateways to share with, resolvers to ask, names to keep warm, addresses that no name may have.
   * The plan is read while this runs, and not kept. `delta`: what changed since the last call; absent: not known.
   */
  plan(plan: GatewayPlan, delta?: PlanDelta): void;
  /** What the thread of that queue posted; false: it is none of `teach` and `resolve`, so not for the names. */
  message(queue: number, value: unknown): boolean;
  /**
   * A flow that was permitted by this pair lives. What gave true asks for one release() when the flow ends; false: there is
   * no such pair (any more).
   */
  use(name: string, address: string): boolean;
  release(name: string, address: string): void;
  /** As the table says now. */
  gives(name: string, address: string): boolean;
  namesOf(address: string): readonly string[];
  /** All that is known, for a thread that begins. */
  pairs(): NamedAddress[];
  /** Writes to disk what it has; nothing is learned any more, and no answer held. */
  close(): Promise<void>;
}
