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
import { type ConntrackEntry, type ConntrackEvent, decodeConntrack } from '../../wire/conntrack.ts';
import { PROTOCOL_TCP, parsePacket } from '../../wire/ip.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import type { DecidedFlow } from '../inspect/messages.ts';
import { keyOf } from '../inspect/readings.ts';
import { decidedMark, isDecided, isRead, isUndecided, readMark, ruleNumberOf } from '../marks.ts';
import { RecordLimit, sayDecided } from './decided.ts';
import {
  type Decided,
  decidingRule,
  endRecord,
  type FlowRecord,
  loggedRecord,
  type RecordView,
  sampledFields,
  startRecord,
} from './flow-record.ts';
import { type Carried, FlowTraffic } from './flow-traffic.ts';
import { HeldStarts } from './held-starts.ts';
import type { Counted } from './hit-totals.ts';
import { Undecided } from './undecided.ts';

export interface RecorderOptions {
  view: RecordView;
  onRecord(record: FlowRecord): void;
  /** What a flow has carried since this was last said of it: at its end, and whenever lookAtFlows() finds it. */
  onTraffic?(started: FlowRecord, carried: Carried): void;
  /** Hits of rules that the kernel has not counted: a thread walked the policy. */
  onHits?(hits: Counted[]): void;
  /** A flow that was read has ended; or, of many at once, these are all that live, as of a time of performance.now(). */
  onReadEnd?(key: string): void;
  onReadLiving?(keys: ReadonlySet<string>, asOf: number): void;
  /** What was read of a flow that was there before. */
  readingOf?(key: string): ApplicationReading | undefined;
  /** Whether there may be flows that are read, or were. */
  reads?(): boolean;
  /** Whether starts wait a moment for what samples say (sampled()). */
  samples?: boolean;
  /** Flows that are older (milliseconds since the epoch) were looked at by an earlier run. */
  lookedAt?: number;
  /** Of each event; false: it is of a flow of which another gateway tells. */
  heard?(message: Uint8Array, event: ConntrackEvent): boolean;
  /** The same of a flow. */
  isOwn?(flow: ConntrackEntry): boolean;
  /** A flow was decided after it had begun, by that rule. */
  onPermitted?(flow: ConntrackEntry, rule: string): void;
  /** Events were lost. */
  onOverrun?(): void;
  onError(error: Error): void;
}

/** Readings of flows whose start is not here yet. */
const EARLY_MAX = 1_024;
/** At one of so many looks at what flows carry, those that ended unheard are looked for. */
const LOOKS = 10;
/** Between looks at flows that have waited long enough for what is read of them. */
const DUE_MS = 250;
const STARTS_MS = 50;
/** What a record may come later, so that a thousand flows a second wake us two hundred times. */
const GATHER_MS = 5;
const keyOfFlow = ({ protocol, original }: ConntrackEntry): string => keyOf({ protocol, ...original });

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
  readonly #starts = new HeldStarts();
  #startsDue: NodeJS.Timeout | undefined;
  #looks = 0;
  readonly #undecided = new Undecided();
  readonly #limit = new RecordLimit();
  #due: NodeJS.Timeout | undefined;
  #sockets: EventSocket[] = [];

  constructor(options: RecorderOptions) {
    this.#options = options;
    this.view = options.view;
  }

  get flows(): number {
    return this.#open.size;
  }

  get #reads(): boolean {
    return this.#options.reads?.() === true;
  }

  /** Flows that are there already are known without a start record: theirs was written by the run before. */
  async start(): Promise<void> {
    const { onError } = this.#options;
    this.#sockets.push(
      startEventSocket({
        kind: 'conntrack',
        groups: ['new', 'destroy'],
        gatherMs: GATHER_MS,
        onBatch: (messages) => this.#conntrack(messages),
        onOverrun: () => {
          this.overruns++;
          this.#options.onOverrun?.();
          this.#resync().catch(onError);
        },
        onError,
      }),
      startEventSocket({
        kind: 'nflog',
        group: NFLOG_GROUP,
        gatherMs: GATHER_MS,
        onBatch: (messages) => this.#logged(messages),
        onOverrun: () => this.overruns++,
        onError,
      }),
    );
    await this.#resync(this.#options.lookedAt ?? 0);
  }

  /**
   * What a thread decided about a flow; `again`: it lives, and this is a further request of it. Gives the kernel's id of the
   * flow, if that is known.
   */
  decided(flow: DecidedFlow, again: boolean, key = keyOf(flow)): number | undefined {
    const now = new Date();
    const { records, hits } = sayDecided(flow, this.view, now, again);
    for (const record of records) if (this.#limit.take(performance.now())) this.#options.onRecord(record);
    if (hits.length > 0) this.#options.onHits?.(hits);
    if (flow.decision?.verdict !== 'accept') return this.#undecided.end(key)?.flow.id;
    if (again) return undefined;
    const entry = this.#undecided.permit(flow, performance.now(), key);
    if (entry === undefined) return undefined;
    this.#started(entry, now, flow);
    const rule = decidingRule(flow.decision);
    if (rule !== undefined) this.#options.onPermitted?.(entry, rule);
    return entry.id;
  }

  /** Others than before may be this gateway's. */
  async lookAgain(): Promise<void> {
    if (this.#sockets.length > 0) await this.#resync();
  }

  /** Counts what living flows have carried so far. */
  async lookAtFlows(): Promise<void> {
    this.#looks++;
    // The kernel tells of each end: whoever missed one is rare.
    for (const flow of await this.#list(this.#looks % LOOKS === 0)) {
      const started = this.#open.get(flow.id);
      if (started !== undefined) this.#options.onTraffic?.(started, this.#traffic.look(flow));
    }
  }

  /** What a sample said of a flow: its end says it, and its start if that was not written yet. */
  sampled(id: number, reading: ApplicationReading): void {
    const started = this.#open.get(id);
    if (started === undefined) {
      this.#early.set(id, reading);
      const [oldest] = this.#early.keys();
      if (this.#early.size > EARLY_MAX && oldest !== undefined) this.#early.delete(oldest);
    } else if (started.application === undefined) this.#replace(id, started, sampledFields(reading));
    const held = this.#starts.take(id);
    if (held !== undefined) this.#write([this.#open.get(id) ?? held]);
  }

  #replace(id: number, started: FlowRecord, fields: Partial<FlowRecord>): void {
    const record = { ...started, ...fields };
    if (this.#silent.has(started)) this.#silent.add(record);
    this.#open.set(id, record);
  }

  async close(): Promise<void> {
    clearInterval(this.#due);
    await Promise.all(this.#sockets.map((socket) => socket.close()));
    this.#sockets = [];
    clearInterval(this.#startsDue);
    this.#write(this.#starts.due(Number.POSITIVE_INFINITY));
  }

  async #list(whole: boolean): Promise<ConntrackEntry[]> {
    const asOf = performance.now();
    const { isOwn = () => true } = this.#options;
    const flows = (await listFlows({ mark: decidedMark })).filter(isOwn);
    if (!this.#reads) return flows;
    for (const flow of await listFlows({ mark: readMark })) flows.push(flow);
    if (whole) this.#options.onReadLiving?.(new Set(flows.map(keyOfFlow)), asOf);
    return flows;
  }

  async #resync(lookedAt = 0): Promise<void> {
    const flows = await this.#list(true);
    const now = new Date();
    const ids = new Set(flows.map((flow) => flow.id));
    for (const id of this.#open.keys()) {
      if (ids.has(id)) continue;
      this.#open.delete(id);
      this.#traffic.forget(id);
    }
    this.#undecided.keep(new Set(flows.map(keyOfFlow)));
    for (const flow of flows) {
      if (this.#open.has(flow.id)) continue;
      if (isUndecided(flow.mark)) {
        this.#undecided.begin(flow, false, performance.now());
        continue;
      }
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
      if (this.#options.heard?.(message, event) === false) continue;
      if (isDecided(event.mark) || isRead(event.mark)) {
        if (event.type === 'new') this.#begun(event, now);
        else if (event.type === 'destroy') this.#ended(event, now);
      }
    }
  }

  /** Of a flow that is read, or was from its first packet on, the thread says what it is. */
  #begun(flow: ConntrackEntry, now: Date): void {
    const waits = isRead(flow.mark) || (this.#reads && flow.protocol !== PROTOCOL_TCP);
    if (!waits) {
      this.#started(flow, now);
      return;
    }
    const decided = this.#undecided.begin(flow, !isUndecided(flow.mark), performance.now());
    if (decided !== undefined) this.#started(flow, now, decided);
    else this.#due ??= setInterval(() => this.#startDue(), DUE_MS).unref();
  }

  #startDue(): void {
    const now = new Date();
    for (const flow of this.#undecided.due(performance.now())) this.#started(flow, now);
    if (this.#undecided.size > 0) return;
    clearInterval(this.#due);
    this.#due = undefined;
  }

  #startOf(flow: ConntrackEntry, now: Date, decided?: Decided): FlowRecord {
    const known = decided === undefined && this.#reads ? this.#options.readingOf?.(keyOfFlow(flow)) : undefined;
    const sample = this.#early.get(flow.id);
    this.#early.delete(flow.id);
    const begun = startRecord(
      flow,
      this.view,
      now,
      known === undefined ? decided : { decision: undefined, reading: known },
    );
    const sampled = sample !== undefined && begun.application === undefined;
    const record = sampled ? { ...begun, ...sampledFields(sample) } : begun;
    const rule = decided?.decision === undefined ? undefined : decidingRule(decided.decision);
    const silent = rule === undefined ? this.view.silent(ruleNumberOf(flow.mark)) : this.view.logging(rule) === 'None';
    if (silent) this.#silent.add(record);
    return record;
  }

  #started(flow: ConntrackEntry, now: Date, decided?: Decided): FlowRecord {
    const record = this.#startOf(flow, now, decided);
    this.#open.set(flow.id, record);
    if (this.#silent.has(record)) return record;
    if (this.#options.samples === true && record.application === undefined) {
      this.#write(this.#starts.hold(flow.id, record, performance.now()));
      this.#startsDue ??= setInterval(() => this.#writeStarts(), STARTS_MS).unref();
    } else this.#write([record]);
    return record;
  }

  #writeStarts(): void {
    this.#write(this.#starts.due(performance.now()));
    if (this.#starts.size > 0) return;
    clearInterval(this.#startsDue);
    this.#startsDue = undefined;
  }

  #write(records: readonly (FlowRecord | undefined)[]): void {
    for (const record of records) if (record !== undefined) this.#options.onRecord(record);
  }

  #ended(flow: ConntrackEntry, now: Date): void {
    // Of most gateways no flow is read.
    const key = this.#reads || this.#undecided.size > 0 ? keyOfFlow(flow) : undefined;
    const waiting = key === undefined ? undefined : this.#undecided.end(key);
    // It never began: it was denied, or said nothing.
    if (isUndecided(flow.mark) && !this.#open.has(flow.id)) return;
    if (waiting !== undefined) this.#started(waiting.flow, now);
    const started = this.#open.get(flow.id) ?? this.#startOf(flow, now);
    this.#open.delete(flow.id);
    this.#write([this.#starts.take(flow.id)]);
    if (!this.#silent.has(started)) this.#options.onRecord(endRecord(started, flow, now));
    this.#options.onTraffic?.(started, this.#traffic.end(flow));
    if (key !== undefined) this.#options.onReadEnd?.(key);
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
