/**
 * Reading of flows, as the rest of a gateway meets it: who has to know of a plan before and after it is in force, what becomes of
 * a flow that a thread decided (its record, hits of rules, its reading for later, its entry in the connection table), and what is
 * known of established flows when a plan has them judged again. The threads and what feeds them: inspect/inspection.ts.
 */
import type { GatewayPlan } from '../api/plan.ts';
import type { PlanDelta } from '../api/plan-delta.ts';
import type { FlowTuple } from '../kernel/conntrack.ts';
import type { Known } from '../policy/decision.ts';
import { hasPorts } from '../policy/destination.ts';
import type { ConntrackView } from '../wire/conntrack.ts';
import type { GatewayInspection } from './inspect/inspection.ts';
import type { DecidedFlow } from './inspect/messages.ts';
import { keyOf, type Readings } from './inspect/readings.ts';
import { decidedBy, type Numbers } from './marks.ts';
import type { Judgement, WorkloadOf } from './recheck.ts';
import { decidingRule } from './record/flow-record.ts';

export interface FlowReadingOptions {
  inspection: GatewayInspection;
  readings: Readings;
  /** What a thread decided is written down; `again`: of a flow that lives. Gives the kernel's id of the flow if it is known. */
  record(flow: DecidedFlow, again: boolean, key: string): number | undefined;
  /** To be told of a plan before it is in force. */
  names: { plan(plan: GatewayPlan, delta?: PlanDelta): void };
  endTuples(flows: FlowTuple[]): Promise<unknown>;
  /** Of flows that are read: what ends, or which mark it has from now on. */
  changeFlows(change: (flow: ConntrackView) => 'end' | number | undefined): Promise<{ ended: number; marked: number }>;
  onError(error: unknown): void;
}

/** Of what is saved, a second's work costs the program so many. */
const SAVE_SHARE = 50;
const SAVE_MS = 5_000;

export class FlowReading {
  readonly inspection: GatewayInspection;
  readonly #options: FlowReadingOptions;
  readonly #readings: Readings;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: FlowReadingOptions) {
    this.#options = options;
    this.inspection = options.inspection;
    this.#readings = options.readings;
  }

  /** See GatewayInspection. */
  before(
    plan: GatewayPlan,
    delta: PlanDelta | undefined,
    numbers: Pick<Numbers, 'get' | 'nameOf'>,
    changed: ReadonlySet<number> | undefined,
  ): Promise<void> {
    this.#options.names.plan(plan, delta);
    return this.inspection.before(plan, delta, numbers, changed);
  }

  undo(): void {
    this.inspection.undo();
  }

  inForce(): Promise<void> {
    return this.inspection.inForce();
  }

  after(plan: GatewayPlan): Promise<void> {
    return this.inspection.after(plan);
  }

  /** undefined: of a flow whose reading is lost, or that was never read. */
  known({ protocol, original }: ConntrackView): Known | undefined {
    return this.#readings.known({ protocol, ...ends(original) });
  }

  /**
   * Flows that are read, after a plan came into force: those that `judge` says end; and those of whose source nothing is asked
   * any more become flows like all others, decided by what address and port say. Resolves to how many ended.
   */
  async review(
    judge: (flow: ConntrackView) => Judgement,
    workloadOf: WorkloadOf,
    numbers: Pick<Numbers, 'get'>,
  ): Promise<number> {
    if (!this.inspection.active) return 0;
    const { ended } = await this.#options.changeFlows((flow) => {
      const judged = judge(flow);
      if (judged === 'ended') return 'end';
      const workload = workloadOf(flow.original.source);
      if (judged === 'untouched' || workload === undefined || this.inspection.share.asksOf(workload)) return undefined;
      const rule = decidingRule(judged);
      const number = rule === undefined ? undefined : numbers.get(rule);
      if (number === undefined) return undefined;
      return decidedBy(flow.mark, number);
    });
    return ended;
  }

  decided(flows: readonly DecidedFlow[]): void {
    const gone: FlowTuple[] = [];
    for (const flow of flows) {
      const key = keyOf(flow);
      const again = this.#readings.get(key) !== undefined;
      const permitted = flow.decision?.verdict === 'accept';
      flow.reading = this.#readings.shared(flow.reading);
      if (permitted && !again) this.#readings.set(key, flow.reading, flow.destination);
      const id = this.#options.record(flow, again, key);
      if (flow.delete !== true) continue;
      this.#readings.end(key);
      const { protocol, source, destination, sourcePort, destinationPort } = flow;
      if (!hasPorts(protocol) || sourcePort === undefined || destinationPort === undefined) continue;
      const named = { protocol, source, destination, sourcePort, destinationPort };
      gone.push({ ...named, ...(id !== undefined && { id }) });
    }
    if (gone.length > 0) this.#options.endTuples(gone).catch(this.#options.onError);
  }

  /** Saves now and then what was read. */
  start(): void {
    const next = (wait: number): void => {
      if (this.#closed) return;
      this.#timer = setTimeout(() => {
        const began = performance.now();
        this.#readings
          .save()
          .catch(this.#options.onError)
          .finally(() => next(Math.max(SAVE_MS, SAVE_SHARE * (performance.now() - began))));
      }, wait).unref();
    };
    next(SAVE_MS);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.inspection.close();
    await this.#readings.save().catch(this.#options.onError);
  }
}

const ends = ({ source, destination, sourcePort, destinationPort }: ConntrackView['original']) => ({
  source,
  destination,
  sourcePort,
  destinationPort,
});
