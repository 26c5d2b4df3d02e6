/**
 * Inspection of a gateway, from beginning to end: nothing of it is there while no rule asks for what flows say and no name
 * is to be learned; then, in this order, threads at their queues (workers.ts), the rule that feeds them, the table that marks
 * what is to be fed (table.ts), and only after it the rules that ask, so that no packet is asked about before somebody can
 * answer. The way out is the reverse. Policy goes to the threads before the kernel's rules change (policy-share.ts), and
 * established flows are looked at again when the threads decide by it.
 *
 * What cannot be had is tried again, and said (`degraded`); a plan comes into force all the same, since what nobody reads goes
 * nowhere: the kernel drops it at a queue without a listener, or without the rule at the end of the forward hook. With
 * `onOverload: Accept` it passes, as the pool says.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { INSPECT_QUEUE, INSPECT_QUEUE_MARK, INSPECT_QUEUES_MAX } from '../../api/names.ts';
import type { GatewayPlan, PoolSettings } from '../../api/plan.ts';
import { type PlanDelta, sameJson } from '../../api/plan-delta.ts';
import type { Logger } from '../../daemon/log.ts';
import type { QueueRule } from '../../kernel/queue-rule.ts';
import type { RawSockets } from '../../kernel/raw-socket.ts';
import type { Numbers } from '../marks.ts';
import type { DecidedFlow, DeciderData, FromDecider, ToDecider } from './messages.ts';
import type { NamedAddress } from './name-table.ts';
import { unpackFlows } from './packed-flows.ts';
import { isEmptyChange, PolicyShare, type ShareChange } from './policy-share.ts';
import { quicPorts } from './table.ts';
import { TALLY_BYTES, Tally, tallyNames } from './tally.ts';
import type { Inspection, InspectionOptions, QueueStatus } from './workers.ts';

/** UDP ports where flows are read as QUIC (table.ts). */
type QuicPorts = ReturnType<typeof quicPorts>;

/** What inspection does to the machine (inspection-host.ts). */
export interface InspectionHost {
  processors: number;
  /** As workers.ts. */
  start(options: Pick<InspectionOptions, 'queues' | 'decider' | 'onOverload' | 'onMessage'>): Inspection;
  openRaw(): RawSockets;
  /** Resolves to how many changes that took. */
  putRule(rule: QueueRule): Promise<number>;
  removeRule(rule: Pick<QueueRule, 'mark' | 'mask'>): Promise<unknown>;
  /** Resolves to whether it was otherwise. */
  putTable(settings: PoolSettings, quic: QuicPorts): Promise<boolean>;
  /** Resolves to whether there was one. */
  removeTable(): Promise<boolean>;
}

/** The pool's name table, as its threads meet it (names/service.ts). */
export interface SharedNames {
  /** What a thread posted; false: it is none of the names'. */
  message(queue: number, value: unknown): boolean;
  pairs(): NamedAddress[];
}

export interface GatewayInspectionOptions {
  host: InspectionHost;
  /** URL of the module that decides. */
  decider: string;
  names: SharedNames;
  onDecided(flows: DecidedFlow[]): void;
  log: Logger;
}

/**
 * For new threads to load what they run, of a busy machine: what would be fed to them meanwhile waits, and an answer of a resolver
 * that waits a second is a client's time-out. After that a plan comes into force without them.
 */
const BEGUN_MS = 5_000;
/** For threads to say that they decide by a policy. They read messages between batches of packets. */
const IN_FORCE_MS = 1_000;
const LOOK_MS = 20;
const WORKERS_MOST = 8;
const RULE = { mark: INSPECT_QUEUE_MARK, mask: INSPECT_QUEUE_MARK } as const;

/** How it should be, beside the policy. */
interface Wanted {
  settings: PoolSettings;
  quic: QuicPorts;
  workers: number;
  onOverload: 'Drop' | 'Accept';
}

interface Running {
  workers: number;
  onOverload: 'Drop' | 'Accept';
  inspection: Inspection;
  raw: RawSockets;
}

const parts = ['workers', 'rule', 'table'] as const;
type Part = (typeof parts)[number];

export class GatewayInspection {
  readonly share = new PolicyShare();
  readonly #options: GatewayInspectionOptions;
  #wanted: Wanted | undefined;
  #running: Running | undefined;
  /** As what it is in the kernel. */
  #placed: Wanted | undefined;
  /** Nothing of it is there: not known at first, since an earlier run may have left something. */
  #absent = false;
  #quic: QuicPorts = [];
  #generation = 0;
  /** What threads count, those that ended among them. */
  readonly #tallies: Tally[] = [];
  /** By queue. */
  readonly #inForce = new Map<number, number>();
  readonly #faults = new Map<Part, string>();
  #wake: () => void = () => {};
  #closed = false;

  constructor(options: GatewayInspectionOptions) {
    this.#options = options;
  }

  /** Whether flows are read, or answers of resolvers. */
  get active(): boolean {
    return this.#wanted !== undefined;
  }

  /** What is not as it should be, in words; undefined: all is. */
  get degraded(): string | undefined {
    const faults = [...this.#faults].map(([part, why]) => `${part}: ${why}`);
    const idle = this.status().filter(({ state }) => state === 'waiting');
    if (idle.length > 0) faults.push(`${idle.length} queues without a worker`);
    return faults.length === 0 ? undefined : faults.join('; ');
  }

  status(): QueueStatus[] {
    return this.#running?.inspection.status() ?? [];
  }

  /** What all threads have counted so far (tally.ts). */
  counts(): Record<string, number> {
    const sum: Record<string, number> = {};
    const read = this.#tallies.map((tally) => tally.read());
    for (const name of tallyNames) sum[name] = read.reduce((all, counts) => all + (counts[name] ?? 0), 0);
    return sum;
  }

  /** To one thread, or to all. A later thread begins with what is known then. */
  post(message: ToDecider, queue?: number): void {
    this.#running?.inspection.post(message, queue);
  }

  /** Before the kernel's rules are those of this plan; `delta` and `changed` as of PolicyShare. */
  async before(
    plan: GatewayPlan,
    delta: PlanDelta | undefined,
    numbers: Pick<Numbers, 'get' | 'nameOf'>,
    changed: ReadonlySet<number> | undefined,
  ): Promise<void> {
    const change = this.share.update(plan, delta, numbers, changed);
    const { set, delete: gone } = change.delta;
    if ((set.services ?? gone.services) !== undefined)
      this.#quic = quicPorts(Object.values(this.share.policy.services));
    const wanted = this.#wantedBy(plan);
    if (wanted !== undefined) this.#wanted = wanted;
    if (this.#wanted === undefined) return;
    this.#tell(change);
    // A look at what is in the kernel costs more than a pod's change: mend() does it now and then.
    if (!sameJson(this.#wanted, this.#placed) || this.#faults.size > 0) await this.#place(this.#wanted);
  }

  /** The plan that before() was given last did not come into force. The next one is told without a delta. */
  undo(): void {
    this.#tell(this.share.undo());
  }

  #tell(change: ShareChange): void {
    if (isEmptyChange(change)) return;
    this.#generation++;
    this.post({ kind: 'policy', generation: this.#generation, ...change });
  }

  /** Flows are decided by the policy that before() was given last, or not at all. */
  async inForce(): Promise<void> {
    const until = performance.now() + IN_FORCE_MS;
    for (;;) {
      const behind = this.status().filter(
        ({ queue, state }) => state === 'serving' && (this.#inForce.get(queue) ?? 0) < this.#generation,
      );
      if (behind.length === 0) return;
      if (performance.now() > until) {
        const queues = behind.map(({ queue }) => queue);
        this.#options.log.warn({ queues }, 'inspection: threads that have not said that they decide by the new policy');
        return;
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, LOOK_MS);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** The kernel's rules are those of that plan, and flows were looked at: what nothing asks for any more goes. */
  async after(plan: GatewayPlan): Promise<void> {
    if (this.#wantedBy(plan) !== undefined) return;
    this.#wanted = undefined;
    await this.#leave();
  }

  /** Puts back what somebody took away, and tries again what failed. */
  async mend(): Promise<void> {
    if (this.#wanted !== undefined) await this.#place(this.#wanted);
  }

  /** What is in the kernel stays there. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#stop();
  }

  #wantedBy({ settings }: GatewayPlan): Wanted | undefined {
    if (!('pool' in settings)) return undefined;
    const { dns, inspection } = settings.pool;
    const teaches = (dns?.resolvers.length ?? 0) > 0 && this.share.named;
    if (!this.share.asks && !teaches) return undefined;
    const workers = inspection?.workers ?? Math.min(this.#options.host.processors, WORKERS_MOST);
    return {
      settings: settings.pool,
      quic: this.#quic,
      workers: Math.min(Math.max(workers, 1), INSPECT_QUEUES_MAX),
      onOverload: inspection?.onOverload ?? 'Drop',
    };
  }

  async #place(wanted: Wanted): Promise<void> {
    const { host } = this.#options;
    const { workers, onOverload, settings, quic } = wanted;
    this.#placed = wanted;
    this.#absent = false;
    await this.#try('workers', () => this.#run(wanted));
    const rule = { ...RULE, first: INSPECT_QUEUE, count: workers, bypass: onOverload === 'Accept' };
    await this.#try('rule', async () => this.#mended('rule', (await host.putRule(rule)) > 0));
    await this.#try('table', async () => this.#mended('table', await host.putTable(settings, quic)));
  }

  #mended(part: Part, changed: boolean): void {
    if (changed) this.#options.log.info({ part }, 'inspection: put in place');
  }

  async #run(wanted: Wanted): Promise<void> {
    const { workers, onOverload } = wanted;
    if (this.#closed) return;
    if (this.#running?.workers === workers && this.#running.onOverload === onOverload) return;
    // Between the old threads and the new ones nobody holds the queues: what is sent meanwhile is sent again.
    await this.#stop();
    const { host, decider } = this.#options;
    const raw = host.openRaw();
    try {
      const inspection = host.start({
        queues: { first: INSPECT_QUEUE, count: workers },
        decider: { module: decider, data: () => this.#dataFor(raw, onOverload) },
        onOverload,
        onMessage: (queue, value) => this.#hear(queue, value as FromDecider),
      });
      this.#running = { workers, onOverload, inspection, raw };
      await Promise.race([inspection.begun, sleep(BEGUN_MS, undefined, { ref: false })]);
    } catch (error) {
      raw.close();
      throw error;
    }
  }

  #dataFor(raw: RawSockets, onOverload: 'Drop' | 'Accept'): DeciderData {
    const counts = new SharedArrayBuffer(TALLY_BYTES);
    this.#tallies.push(new Tally(counts));
    return {
      policy: this.share.policy,
      generation: this.#generation,
      numbers: [...this.share.numbers],
      names: this.#options.names.pairs(),
      raw: raw.fds,
      onOverload,
      counts,
    };
  }

  #hear(queue: number, value: FromDecider): void {
    if (value.kind === 'inForce') {
      this.#inForce.set(queue, value.generation);
      this.#wake();
    } else if (value.kind === 'decided') this.#options.onDecided(unpackFlows(value.packed));
    else this.#options.names.message(queue, value);
  }

  /** The reverse of #place(): nothing of it is left. */
  async #leave(): Promise<void> {
    if (this.#absent) return;
    const { host } = this.#options;
    this.#absent = true;
    this.#placed = undefined;
    const ran = this.#running !== undefined;
    let was = false;
    await this.#try('table', async () => {
      was = await host.removeTable();
    });
    // A machine without either may have no program that knows of such rules.
    if (was || ran) await this.#try('rule', () => host.removeRule(RULE));
    await this.#stop();
    this.#faults.clear();
    if (was) this.#options.log.info('inspection: nothing asks for it, and nothing of it is left');
  }

  async #stop(): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    this.#inForce.clear();
    await running?.inspection.close();
    running?.raw.close();
  }

  async #try(part: Part, work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
      if (this.#faults.delete(part)) this.#options.log.info({ part }, 'inspection: as it should be again');
    } catch (error) {
      const { message } = error as Error;
      if (this.#faults.get(part) !== message) this.#options.log.error({ err: error, part }, 'inspection: degraded');
      this.#faults.set(part, message);
    }
  }
}
