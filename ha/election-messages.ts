/**
 * What the thread of the election and the main thread say to each other. From the main thread come lists of
 * ElectionConfig (elections.ts).
 */

import type { MessagePort } from 'node:worker_threads';
import type { LinkAddress } from '../wire/rtaddress.ts';
import type { AdvertFault } from '../wire/vrrp.ts';
import type { ElectionReport } from './elections.ts';

/** By name: its device. */
export type Links = Readonly<Record<string, string>>;

export interface ElectionWorkerData {
  links: Links;
  namespace?: string;
  /** Eventfd that ends the sleep. */
  wake: number;
  port: MessagePort;
  control: Int32Array;
  /** To the thread of addresses, and the eventfd that wakes it. */
  addresses: { port: MessagePort; wake: number };
}

export interface AddressWorkerData {
  namespace?: string;
  wake: number;
  /** Eventfd of who asks. */
  asker: number;
  port: MessagePort;
  /** Its own: to stop when what was asked for is done. */
  control: Int32Array;
}

export interface AddressRequest {
  op: 'add' | 'remove';
  addresses: LinkAddress[];
  validSeconds?: number;
}

/** Names of errors. */
export type AddressAnswer = string[];

/** Of `control`: 0, or how to end; and the main thread's count. */
export const STOP = 0;
export const BEAT = 1;
/** 1: the main thread has work that may take it long, and is not hung before BUSY_MS (election-worker.ts). */
export const BUSY = 2;
export const GIVE_UP = 1;
export const LEAVE = 2;

export interface ElectionCounts {
  sent: number;
  /** By name of the error. */
  unsent: Record<string, number>;
  heard: number;
  /** By why an advertisement did not count. */
  refused: Partial<Record<AdvertFault | 'other-router', number>>;
  /** Longest that a timer was late since the last report, milliseconds. */
  late: number;
}

export type ThreadReport =
  | ElectionReport
  | { kind: 'ready' }
  /** A link was opened, or lost (with the error). */
  | { kind: 'link'; link: string; error?: string }
  /** The main thread answers (again), or not. */
  | { kind: 'trust'; trusted: boolean }
  /** A link has a carrier (again), or not. */
  | { kind: 'carrier'; link: string; up: boolean }
  /** So many lists of what is wanted were taken in, and who is active has all addresses of the last. */
  | { kind: 'settled'; configured: number }
  /** Each second in which something was counted. */
  | { kind: 'counts'; counts: ElectionCounts };
