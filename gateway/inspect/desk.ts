/**
 * What the parts of a decider share (tcp.ts, datagrams.ts, teaching.ts): policy, waits, counters, reports, and the packet at
 * hand, whose verdict is the answer and not a message of its own.
 */

import { isIPv4 } from 'node:net';
import { GATEWAY_CHECKED_MARK, INSPECT_PASSED_MARK } from '../../api/names.ts';
import { ACCEPT, type Decision, DROP, HOLD, type QueueControl } from '../../kernel/queue-loop.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import type { Decision as PolicyDecision, Flow as PolicyFlow } from '../../policy/decision.ts';
import { type AddressText, rememberedText } from '../../wire/address-text.ts';
import type { QueuePacket } from '../../wire/nfqueue.ts';
import { Judge, type Judged } from './judge.ts';
import type { DecidedFlow, DeciderData, DeciderLimits, FromDecider } from './messages.ts';
import { Questions } from './questions.ts';
import type { InspectReason } from './reasons.ts';
import { Report } from './report.ts';
import { resetSender, type SendReset } from './reset.ts';
import { Tally } from './tally.ts';
import { Waits } from './waits.ts';

/** Let on; nothing is decided by it. */
export const PASSED = GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK;
/** Neither asked for any more nor let on: what the connection's own mark says, the kernel does. */
export const AS_DECIDED = GATEWAY_CHECKED_MARK;
/** The mark that a packet came with. */
export const AS_IT_IS = -1;

export interface Ends {
  flow: PolicyFlow;
  sourcePort: number | undefined;
}

/** Beside the decision. */
export interface Remarks {
  reason?: InspectReason;
  detail?: string;
  life?: true;
  delete?: true;
}

export const NO_REMARKS: Remarks = {};

/** Whether inspection's own end of a flow is for want of room. */
const overloads: ReadonlySet<InspectReason> = new Set(['flows', 'memory', 'waiting']);

export class Desk {
  readonly judge: Judge;
  readonly tally: Tally;
  readonly report: Report;
  readonly questions = new Questions();
  readonly resolving: Waits;
  readonly limits: DeciderLimits;
  readonly reset: SendReset;
  /** Of the loop's clock, when this turn began. */
  now: number;
  readonly addressText: AddressText = rememberedText();
  readonly #control: QueueControl;
  readonly #accepts: boolean;
  #packet: QueuePacket | undefined;
  #answer: Decision = DROP;
  /** From the loop's clock to that of names. */
  readonly #epoch: number;

  constructor(control: QueueControl, data: DeciderData, limits: DeciderLimits, now: number, reset?: SendReset) {
    this.now = now;
    this.#control = control;
    this.#accepts = data.onOverload === 'Accept';
    this.#epoch = data.epoch ?? performance.timeOrigin;
    this.limits = limits;
    this.tally = new Tally(data.counts);
    this.judge = new Judge(data, this.tally, this.time(now));
    const wakeAt = (time: number) => control.wakeAt(time);
    this.report = new Report((message) => this.post(message), this.tally, wakeAt);
    this.resolving = new Waits(limits.resolveMs, wakeAt);
    this.reset = reset ?? resetSender(data.raw);
  }

  /** Milliseconds since the epoch. */
  time(now: number): number {
    return this.#epoch + now;
  }

  post(message: FromDecider): void {
    this.#control.post(message);
  }

  wakeAt(time: number): void {
    this.#control.wakeAt(time);
  }

  /** `decide` gives verdicts on packets, this one among them; one that it says nothing of waits. */
  at(packet: QueuePacket, now: number, decide: () => void): Decision {
    this.now = now;
    this.#packet = packet;
    this.#answer = HOLD;
    decide();
    this.#packet = undefined;
    return this.#answer;
  }

  accept(id: number, mark: number): void {
    const packet = this.#packet;
    if (packet?.id !== id) {
      this.#control.verdict(id, ACCEPT, mark);
      return;
    }
    if (mark !== AS_IT_IS) packet.mark = mark;
    this.#answer = ACCEPT;
  }

  drop(id: number): void {
    if (this.#packet?.id === id) this.#answer = DROP;
    else this.#control.verdict(id, DROP);
  }

  /** False: the packet does not wait any more. */
  replace(id: number, replacement: Uint8Array): boolean {
    const packet = this.#packet;
    if (packet?.id !== id) return this.#control.replace(id, replacement, PASSED);
    packet.replacement = replacement;
    packet.mark = PASSED;
    this.#answer = ACCEPT;
    return true;
  }

  /** The packet goes nowhere, for a reason. */
  refuse(id: number, reason: InspectReason): void {
    this.tally.count(`reason_${reason}`);
    this.drop(id);
  }

  /**
   * What policy says of a flow. Where a name that was asked for does not have the address, the main thread is asked, and
   * `again` is called when it has answered or its time is over: then undefined.
   */
  decide(
    flow: PolicyFlow,
    reading: ApplicationReading | undefined,
    now: number,
    again?: (now: number) => void,
  ): Judged | undefined {
    const time = this.time(now);
    let judged = this.judge.decide(flow, reading, now, time);
    if (judged.missed.length === 0 || again === undefined) return judged;
    // What a resolver taught just now may wait among the messages.
    const packet = this.#packet;
    const answer = this.#answer;
    this.#packet = undefined;
    this.#control.readMessages();
    this.#packet = packet;
    this.#answer = answer;
    judged = this.judge.decide(flow, reading, now, time);
    if (judged.missed.length === 0) return judged;
    this.#resolve(judged.missed.slice(0, this.limits.resolveNames), flow.destination, again, now);
    return undefined;
  }

  /** Of a first packet: by the names of its address, or provisionally. Undefined: it waits for names. */
  decideFirst(ends: Ends, now: number, again?: (now: number) => void): Judged | undefined {
    const { flow } = ends;
    const judged = this.decide(flow, undefined, now, again);
    if (judged === undefined) return undefined;
    const { decision } = judged;
    if (decision.provisional === true) return judged;
    this.tally.count('first');
    this.tell(
      ends,
      decision,
      {},
      decision.verdict === 'accept' && judged.mark === 0 ? { reason: 'no-policy' } : {},
      now,
    );
    return judged;
  }

  #resolve(names: readonly string[], destination: string, again: (now: number) => void, now: number): void {
    let left = names.length;
    for (const name of names) {
      const resume = (late: boolean, at: number) => {
        if (late) this.tally.count('unresolved');
        if (--left === 0) again(at);
      };
      const family = isIPv4(destination) ? 4 : 6;
      const id = this.resolving.add(resume, now, `${family} ${name}`);
      if (id === undefined) continue;
      this.tally.count('resolved');
      this.post({ kind: 'resolve', id, name, families: [family] });
    }
  }

  /** Of a flow that inspection itself ends: the mark by which it passes all the same; 0: it does not. */
  spared({ flow }: Ends, reason: InspectReason): number {
    const spares = (this.#accepts && overloads.has(reason)) || this.judge.audits(flow.source);
    return spares ? this.judge.auditMark() : 0;
  }

  tell(
    { flow, sourcePort }: Ends,
    decision: PolicyDecision | undefined,
    reading: ApplicationReading,
    remarks: Remarks,
    now: number,
  ): void {
    const { protocol, source, destination, destinationPort } = flow;
    // Written out: this is once for every connection.
    const told: DecidedFlow = { protocol, source, destination, decision, reading };
    if (sourcePort !== undefined) told.sourcePort = sourcePort;
    if (destinationPort !== undefined) told.destinationPort = destinationPort;
    if (remarks !== NO_REMARKS) Object.assign(told, remarks);
    this.report.add(told, now);
  }
}
