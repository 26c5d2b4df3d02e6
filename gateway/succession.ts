/**
 * Who has a shard, and what the next ones know of its connections (design §7), put together: the election (mastership.ts)
 * and the replication of connection state (replication.ts). Both are there while the plan has an election.
 * The thread of the election waits for nobody, so addresses come while the last of what was received is on its way into the
 * kernel: what is received is put there at once, and is little.
 */
import type { GatewayPlan } from '../api/plan.ts';
import type { Logger } from '../daemon/log.ts';
import type { ConntrackEntry, ConntrackEvent } from '../wire/conntrack.ts';
import { electionOf } from './compile-net.ts';
import { isDrainRequested, writeDrainState } from './drain.ts';
import { Mastership } from './mastership.ts';
import { GatewayReplication } from './replication.ts';

export interface SuccessionOptions {
  name: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** Directory in which others ask that it be drained (drain.ts). */
  state: string;
  log: Logger;
  /** Other shards are this gateway's than before. */
  onChange(): void;
}

/** Between looks at whether what is held of others' shards is whole by now, and whether the gateway is to be drained. */
const LOOK_MS = 200;

export class Succession {
  readonly mastership: Mastership;
  readonly #options: SuccessionOptions;
  #replication: GatewayReplication | undefined;
  /** The plan is the controller's, or nobody tells of any. */
  #informed = false;
  #looking: NodeJS.Timeout | undefined;
  #drained = false;
  #elects = false;
  /** What others were told last of all this, and when that was written. */
  #told = '';
  #telling: Promise<void> = Promise.resolve();

  constructor(options: SuccessionOptions) {
    this.#options = options;
    const { name, log, onChange } = options;
    this.mastership = new Mastership({
      name,
      log,
      drained: () => this.#drained,
      complete: (shard) => this.#informed && this.#replicator?.held(shard)?.whole === true,
      onChange: () => {
        this.#replicates((replication) => replication.masters(new Set(this.elected)));
        this.#tell();
        onChange();
      },
    });
  }

  /** Shards for which this gateway is elected. */
  get elected(): ReadonlySet<string> {
    return this.mastership.elected;
  }

  /** What is known of others' shards. */
  get replicated(): { connected: number; flows: number; incomplete: number } {
    const counts = { connected: this.#replicator?.connected ?? 0, flows: 0, incomplete: 0 };
    for (const shard of this.#replication?.followed ?? []) {
      const held = this.#replicator?.held(shard);
      counts.flows += held?.flows.size ?? 0;
      if (held?.whole !== true) counts.incomplete++;
    }
    return counts;
  }

  get #replicator(): GatewayReplication['replicator'] | undefined {
    return this.#replication?.replicator;
  }

  /** Before a plan is applied. */
  async before(plan: GatewayPlan): Promise<void> {
    await this.mastership.before(plan);
    if (electionOf(plan) === undefined) await this.#endReplication();
  }

  /** A plan is in force. Resolves when shards of this gateway have all their addresses. */
  async follow(plan: GatewayPlan): Promise<void> {
    this.#elects = electionOf(plan) !== undefined;
    if (this.#elects) {
      const { name, certs, log } = this.#options;
      this.#replication ??= new GatewayReplication({ name, certs, log });
      this.#drained = await isDrainRequested(this.#options.state);
      this.#looking ??= setInterval(() => void this.#look(), LOOK_MS).unref();
      // It is changed in place, and then not in force yet.
      const places = { gateways: { ...plan.gateways }, shards: { ...plan.shards } };
      this.#replicates((replication) => replication.plan(places));
    }
    await this.mastership.follow(plan);
    this.#tell();
  }

  async #look(): Promise<void> {
    try {
      this.#drained = await isDrainRequested(this.#options.state);
      await this.mastership.look();
      this.#tell();
    } catch (err) {
      this.#options.log.error({ err }, 'election');
    }
  }

  /** Whoever has asked. */
  #tell(): void {
    const content = { elects: this.#elects, drained: this.#drained, shards: [...this.elected] };
    const text = JSON.stringify(content);
    if (text === this.#told) return;
    this.#told = text;
    this.#telling = this.#telling
      .then(() => writeDrainState(this.#options.state, content))
      .catch((err: unknown) => this.#options.log.error({ err }, 'state of shards'));
  }

  /** It is, or was refused. */
  applied(): void {
    this.mastership.applied();
  }

  informed(): void {
    this.#informed = true;
  }

  /** Of the kernel's events; false: of a flow that is another gateway's. */
  heard(message: Uint8Array, event: ConntrackEvent): boolean {
    return this.#replication?.heard(message, event) ?? true;
  }

  /** Whether a flow is this gateway's. */
  isOwn(flow: ConntrackEntry): boolean {
    return this.#replication?.isOwn(flow) ?? true;
  }

  /** A flow has another mark from now on. */
  marked(flow: ConntrackEntry, mark: number): void {
    this.#replicator?.marked(flow, mark);
  }

  /** Events were lost. */
  overrun(): void {
    this.#replicator?.overrun();
  }

  /** First shards go, then what is told of them ends. */
  async close(): Promise<void> {
    await this.mastership.close();
    await this.#endReplication();
    await this.#telling;
  }

  async #endReplication(): Promise<void> {
    clearInterval(this.#looking);
    this.#looking = undefined;
    const replication = this.#replication;
    this.#replication = undefined;
    await replication?.close();
  }

  #replicates(tell: (replication: GatewayReplication) => Promise<void>): void {
    if (this.#replication === undefined) return;
    tell(this.#replication).catch((err: unknown) => this.#options.log.error({ err }, 'replication'));
  }
}
