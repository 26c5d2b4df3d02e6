/**
 * From the kernel's events to records: conntrack events of decided flows and logged packets (denials, hits of audit,
 * matches).
 * Keeps what a flow's start said until its end, so that an end names the workload even when the plan no longer does.
 * After an overrun the table is read again and flows that ended unheard are forgotten; how often that happened is a
 * metric.
 */
import { NFLOG_GROUP } from '../../api/names.ts';
import { listFlows } from '../../kernel/conntrack.ts';
import { type EventSocket, startEventSocket } from '../../kernel/event-socket.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { type ConntrackEntry, decodeConntrack } from '../../wire/conntrack.ts';
import { parsePacket } from '../../wire/ip.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import { decidedMark } from '../apply.ts';
import { isDecided, ruleNumberOf } from '../marks.ts';
import {
  endRecord,
  type FlowRecord,
  loggedRecord,
  type RecordView,
  sampledFields,
  startRecord,
} from './flow-record.ts';
import { type Carried, FlowTraffic } from './flow-traffic.ts';

export interface RecorderOptions {
  view: RecordView;
  onRecord(record: FlowRecord): void;
  /** What a flow has carried since this was last said of it: at its end, and whenever lookAtFlows() finds it. */
  onTraffic?(started: FlowRecord, carried: Carried): void;
  /** Flows that are older (milliseconds since the epoch) were looked at by an earlier run. */
  lookedAt?: number;
  onError(error: Error): void;
}

/** Readings of flows whose start is not here yet. */
const EARLY_MAX = 1_024;

export class Recorder {
  view: RecordView;
  overruns = 0;
  malformed = 0;
  readonly #options: RecorderOptions;
  readonly #open = new Map<number, FlowRecord>();
  /** Starts that were not written, since the rule wanted none: nor will be their ends, whatever it wants then. */
  readonly #silent = new WeakSet<FlowRecord>();
  readonly #traffic = new FlowTraffic();
  /** What samples said of flows that have not begun: the kernel tells the two by different ways. The oldest first. */
  readonly #early = new Map<number, ApplicationReading>();
  #sockets: EventSocket[] = [];

  constructor(options: RecorderOptions) {
    this.#options = options;
    this.view = options.view;
  }

  get flows(): number {
    return this.#open.size;
  }

  /** Flows that are there already are known without a start record: theirs was written by the run before. */
  async start(): Promise<void> {
    const { onError } = this.#options;
    this.#sockets.push(
      startEventSocket({
        kind: 'conntrack',
        groups: ['new', 'destroy'],
        onBatch: (messages) => this.#conntrack(messages),
        onOverrun: () => {
          this.overruns++;
          this.#resync().catch(onError);
        },
        onError,
      }),
      startEventSocket({
        kind: 'nflog',
        group: NFLOG_GROUP,
        onBatch: (messages) => this.#logged(messages),
        onOverrun: () => this.overruns++,
        onError,
      }),
    );
    await this.#resync(this.#options.lookedAt ?? 0);
  }

  /** Counts what living flows have carried so far. */
  async lookAtFlows(): Promise<void> {
    for (const flow of await listFlows({ mark: decidedMark })) {
      const started = this.#open.get(flow.id);
      if (started !== undefined) this.#options.onTraffic?.(started, this.#traffic.look(flow));
    }
  }

  /** What a sample said of a flow: its end says it, and its start if that is still to come. */
  sampled(id: number, reading: ApplicationReading): void {
    const started = this.#open.get(id);
    if (started === undefined) {
      this.#early.set(id, reading);
      const [oldest] = this.#early.keys();
      if (this.#early.size > EARLY_MAX && oldest !== undefined) this.#early.delete(oldest);
    } else if (started.application === undefined) this.#replace(id, started, sampledFields(reading));
  }

  #replace(id: number, started: FlowRecord, fields: Partial<FlowRecord>): void {
    const record = { ...started, ...fields };
    if (this.#silent.has(started)) this.#silent.add(record);
    this.#open.set(id, record);
  }

  async close(): Promise<void> {
    await Promise.all(this.#sockets.map((socket) => socket.close()));
    this.#sockets = [];
  }

  async #resync(lookedAt = 0): Promise<void> {
    const flows = await listFlows({ mark: decidedMark });
    const now = new Date();
    const ids = new Set(flows.map((flow) => flow.id));
    for (const id of this.#open.keys()) {
      if (ids.has(id)) continue;
      this.#open.delete(id);
      this.#traffic.forget(id);
    }
    for (const flow of flows) {
      if (this.#open.has(flow.id)) continue;
      this.#open.set(flow.id, this.#startOf(flow, now));
      if (Number(flow.startNs ?? 0n) / 1e6 < lookedAt) this.#traffic.skip(flow);
    }
  }

  #conntrack(messages: Uint8Array[]): void {
    const now = new Date();
    for (const message of messages) {
      const decoded = decodeConntrack(message);
      if (!decoded.ok) {
        this.malformed++;
        continue;
      }
      const event = decoded.value;
      if (!isDecided(event.mark)) continue;
      if (event.type === 'new') this.#started(event, now);
      else if (event.type === 'destroy') this.#ended(event, now);
    }
  }

  #startOf(flow: ConntrackEntry, now: Date): FlowRecord {
    const sample = this.#early.get(flow.id);
    this.#early.delete(flow.id);
    const record = { ...startRecord(flow, this.view, now), ...(sample !== undefined && sampledFields(sample)) };
    if (this.view.silent(ruleNumberOf(flow.mark))) this.#silent.add(record);
    return record;
  }

  #started(flow: ConntrackEntry, now: Date): void {
    const record = this.#startOf(flow, now);
    this.#open.set(flow.id, record);
    if (!this.#silent.has(record)) this.#options.onRecord(record);
  }

  #ended(flow: ConntrackEntry, now: Date): void {
    const started = this.#open.get(flow.id) ?? this.#startOf(flow, now);
    this.#open.delete(flow.id);
    if (!this.#silent.has(started)) this.#options.onRecord(endRecord(started, flow, now));
    this.#options.onTraffic?.(started, this.#traffic.end(flow));
  }

  #logged(messages: Uint8Array[]): void {
    const now = new Date();
    for (const message of messages) {
      const decoded = decodeNflog(message);
      const packet = decoded.ok ? parsePacket(decoded.value.payload) : undefined;
      if (!decoded.ok || !packet?.ok) {
        this.malformed++;
        continue;
      }
      const { prefix, mark } = decoded.value;
      this.#options.onRecord(loggedRecord({ prefix, mark, ...packet.value }, this.view, now));
    }
  }
}
