/**
 * Connection state among the gateways of a pool (design §7), put together: the flows of shards that this gateway is master of
 * go to those behind it (replica-sender.ts), those of shards that it stands behind come into its kernel (replica-receiver.ts,
 * kernel/conntrack-inject.ts), over mutual TLS on the inside network. What flows there are it is told by whoever hears the
 * kernel's events. No packet waits for any of this.
 * Left out: which gateway is master (vrrp), expectations (FTP), flows that are not decided.
 */
import { PORT_REPLICATION } from '../api/names.ts';
import type { Logger } from '../daemon/log.ts';
import { Peers, type Place } from '../daemon/peers.ts';
import type { ConntrackEntry } from '../wire/conntrack.ts';
import { trackedFlow } from '../wire/conntrack-flow.ts';
import type { Batch, Frame } from './replica-codec.ts';
import { ReplicaLink } from './replica-link.ts';
import { type HeldShard, type IgnoredReason, ReplicaReceiver } from './replica-receiver.ts';
import { packFlow, packKey } from './replica-record.ts';
import { type Feed, SentShard } from './replica-sender.ts';
import { type Foreign, type KernelCounts, type ReplicaKernel, ReplicaTable } from './replica-table.ts';

export interface ReplicatorOptions {
  /** This gateway, as plans and certificates name it. */
  name: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  kernel: ReplicaKernel;
  log: Logger;
  /** The shard of an egress IP. */
  shardOf(address: string): string | undefined;
  /** Whether the flow of that mark goes on elsewhere; others are left out. */
  isDecided(mark: number): boolean;
  /** Milliseconds since the epoch. */
  now?(): number;
  /** TCP port of all gateways. Absent: PORT_REPLICATION. */
  port?: number;
  /** Whoever acknowledges nothing for so many milliseconds, and twice that at most, is told anew. */
  stallMs?: number;
  /** Between looks at whether the kernel has what it should. */
  compareMs?: number;
}

export interface ReplicatorCounts extends KernelCounts {
  /** Batches that were not applied, by reason, and those before which something was missing. */
  ignored: Partial<Record<IgnoredReason, number>>;
  missing: number;
}

export type FeedState = Pick<Feed, 'synced' | 'waiting' | 'underway' | 'passes' | 'overflows'>;

/** A kernel takes a window's 32,768 flows in a second. */
const STALL_MS = 15_000;
/** At 200,000 flows a look takes a second or two of a processor, in parts of some milliseconds. */
const COMPARE_MS = 600_000;
/** Two masters of a shard that outdo each other do it so often at most. */
const OUTDO_MS = 1_000;

export class Replicator {
  readonly counts: ReplicatorCounts = { ignored: {}, missing: 0, applied: 0, displaced: 0, refused: {} };
  readonly #options: ReplicatorOptions;
  readonly #now: () => number;
  readonly #peers: Peers<ReplicaLink>;
  readonly #links = new Map<string, ReplicaLink>();
  readonly #sent = new Map<string, SentShard>();
  readonly #receiver = new ReplicaReceiver();
  readonly #outdone = new Map<string, number>();
  readonly #stalls: NodeJS.Timeout;
  readonly #comparing: NodeJS.Timeout;
  /** Of each look at the kernel that goes on: flows of which events told since it began. */
  readonly #told = new Set<Set<string>>();
  /** The kernel may not have what it should, or events were lost. */
  #doubts = false;
  #reassuring = false;
  readonly #table: ReplicaTable;
  #pumping: NodeJS.Immediate | undefined;
  #sync = 0;
  #closed = false;

  constructor(options: ReplicatorOptions) {
    this.#options = options;
    const { name, certs, log, port = PORT_REPLICATION, now = Date.now } = options;
    this.#now = now;
    this.#table = new ReplicaTable(options.kernel, this.#receiver, this.counts, log);
    this.#peers = new Peers({
      name,
      certs,
      port,
      log,
      subject: 'replication',
      whenDown: 'it would not know flows of now',
      link: (socket, events) =>
        new ReplicaLink(socket, name, {
          ...events,
          onFrame: (link, frame) => this.#frame(link, frame),
          onRoom: () => this.#pumpSoon(),
        }),
      onOpen: (link, peer) => {
        this.#links.set(peer, link);
        this.#again(peer);
      },
      onClose: (link) => {
        if (link.name === undefined || this.#links.get(link.name) !== link) return;
        this.#links.delete(link.name);
        this.#again(link.name);
      },
    });
    this.#stalls = setInterval(() => this.#stalled(), options.stallMs ?? STALL_MS).unref();
    this.#comparing = setInterval(() => this.overrun(), options.compareMs ?? COMPARE_MS).unref();
  }

  /** The plan's gateways are these now. */
  place(place: Place): void {
    this.#peers.place(place);
  }

  /**
   * Of which shards this gateway is master, and who stands behind it in each; and behind whom it stands itself. Resolves
   * when what was received of shards that are its own now is in the kernel: before their addresses are.
   */
  async shards(leads: ReadonlyMap<string, Iterable<string>>, follows: Iterable<string>): Promise<void> {
    for (const shard of this.#sent.keys()) if (!leads.has(shard)) this.#sent.delete(shard);
    const taken: Map<string, string>[] = [];
    let unknown = false;
    for (const [shard, receivers] of leads) {
      let sent = this.#sent.get(shard);
      if (sent === undefined) {
        const { flows, epoch } = this.#receiver.take(shard, this.#now());
        if (flows.size > 0) taken.push(flows);
        else unknown = true;
        sent = new SentShard(shard, epoch, () => ++this.#sync, flows);
        this.#sent.set(shard, sent);
      }
      sent.receivers(receivers);
    }
    const wanted = [...follows];
    for (const shard of wanted) {
      // What was sent before was not taken.
      if (this.#receiver.held(shard) !== undefined) continue;
      const place = { shard, epoch: 0, sync: 0 };
      for (const link of this.#links.values()) link.send({ type: 'resync', place });
    }
    this.#table.apply(this.#receiver.receives(wanted));
    this.#pumpSoon();
    await this.#table.idle();
    // A program that begins anew: its kernel knows.
    if (unknown) this.overrun();
    // Not waited for: nothing is wrong before.
    for (const flows of taken) void this.#table.settle([...flows]);
  }

  /** The kernel tells of a flow, or of its end. Others than those of its own shards it may tell as well. */
  began(entry: ConntrackEntry): void {
    const sent = this.#shardOf(entry);
    const flow = sent && this.#options.isDecided(entry.mark) ? trackedFlow(entry) : undefined;
    const packed = flow && packFlow(flow);
    if (packed === undefined) return;
    this.#tell(packed.key);
    sent?.put(packed.key, packed.body);
  }

  ended(entry: ConntrackEntry): void {
    const sent = this.#shardOf(entry);
    const key = sent && packKey(entry);
    if (key === undefined) return;
    this.#tell(key);
    sent?.end(key);
  }

  /** A flow has another mark from now on: it was decided later than it began, say. */
  marked(entry: ConntrackEntry, mark: number): void {
    const sent = this.#shardOf(entry);
    const key = sent && packKey(entry);
    if (key === undefined) return;
    this.#tell(key);
    if (sent?.flows.has(key)) sent.mark(key, mark);
    else this.began({ ...entry, mark });
  }

  /** Events were lost. */
  overrun(): void {
    this.#doubts = true;
    void this.#reassure();
  }

  /**
   * Compares both sides with the kernel: what it has of own shards is what others are told (events were lost, or a state has
   * changed that no event tells of), and what others told is what it has: the same translated ports, and nothing beside.
   */
  async compare(): Promise<{ corrected: number }> {
    const told = new Set<string>();
    this.#told.add(told);
    try {
      return await this.#compare(told);
    } finally {
      this.#told.delete(told);
    }
  }

  async #compare(told: ReadonlySet<string>): Promise<{ corrected: number }> {
    const own = new Map([...this.#sent.keys()].map((shard) => [shard, new Map<string, string>()]));
    const foreign: Foreign = new Map();
    await this.#options.kernel.walk((reader) => {
      const shard = this.#options.shardOf(reader.reply.destination);
      if (shard === undefined) return;
      const held = this.#receiver.held(shard);
      const flows = own.get(shard);
      if (held === undefined && flows === undefined) return;
      const flow = trackedFlow(reader.entry(), reader.tracking());
      if (flow === undefined) return;
      const packed = packFlow(flow);
      if (flows !== undefined) {
        if (packed !== undefined && this.#options.isDecided(flow.mark)) flows.set(packed.key, packed.body);
        return;
      }
      const key = packed?.key ?? packKey(flow);
      if (key !== undefined) foreign.set(key, { shard, body: packed?.body ?? '' });
    });
    for (const [shard, flows] of own) this.#sent.get(shard)?.replace(flows, told);
    this.#pumpSoon();
    const changes = this.#table.corrections(foreign);
    await this.#table.apply(changes);
    return { corrected: changes.length };
  }

  /** By receiver of an own shard. */
  sending(shard: string): ReadonlyMap<string, FeedState> {
    return this.#sent.get(shard)?.feeds ?? new Map();
  }

  /** What is held of another's shard. */
  held(shard: string): HeldShard | undefined {
    return this.#receiver.held(shard);
  }

  get connected(): number {
    return this.#links.size;
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#stalls);
    clearInterval(this.#comparing);
    clearImmediate(this.#pumping);
    this.#peers.close();
    await this.#table.close();
  }

  #shardOf(entry: ConntrackEntry): SentShard | undefined {
    const shard = this.#sent.size === 0 ? undefined : this.#options.shardOf(entry.reply.destination);
    return shard === undefined ? undefined : this.#sent.get(shard);
  }

  /** Something is to be told of the flow. */
  #tell(key: string): void {
    for (const told of this.#told) told.add(key);
    this.#pumpSoon();
  }

  #again(peer: string): void {
    for (const { feeds } of this.#sent.values()) feeds.get(peer)?.again();
    this.#pumpSoon();
  }

  /** Until there is nothing to doubt; one look at a time. */
  async #reassure(): Promise<void> {
    if (this.#reassuring) return;
    this.#reassuring = true;
    try {
      while (this.#doubts && !this.#closed) {
        this.#doubts = false;
        const { corrected } = await this.compare();
        if (corrected > 0) this.#options.log.warn({ corrected }, 'replication: entries were not as they were told');
      }
    } catch (err) {
      this.#doubts = true;
      this.#options.log.error({ err }, 'replication: comparing with the kernel; trying again');
    } finally {
      this.#reassuring = false;
    }
  }

  #stalled(): void {
    if (this.#doubts) void this.#reassure();
    for (const { shard, feeds } of this.#sent.values()) {
      for (const [peer, feed] of feeds) {
        if (this.#links.has(peer) && feed.stalled()) {
          this.#options.log.warn({ peer, shard }, 'replication: nothing is acknowledged; all is told anew');
        }
      }
    }
    this.#pumpSoon();
  }

  /** What many events change goes together. */
  #pumpSoon(): void {
    if (this.#closed) return;
    this.#pumping ??= setImmediate(() => {
      this.#pumping = undefined;
      this.#pump();
    });
  }

  #pump(): void {
    for (const { feeds } of this.#sent.values()) {
      for (const [peer, feed] of feeds) {
        const link = this.#links.get(peer);
        while (link?.hasRoom) {
          const batch = feed.next();
          if (batch === undefined) break;
          link.send({ type: 'batch', batch });
        }
      }
    }
  }

  #frame(link: ReplicaLink, frame: Frame): void {
    const peer = link.name ?? '';
    switch (frame.type) {
      case 'batch':
        this.#receive(link, peer, frame.batch);
        break;
      case 'ack':
        this.#sent.get(frame.place.shard)?.feeds.get(peer)?.acknowledged(frame.place);
        this.#pumpSoon();
        break;
      case 'resync':
        this.#sent.get(frame.place.shard)?.feeds.get(peer)?.asked(frame.place);
        this.#pumpSoon();
        break;
      case 'outdone':
        this.#outdo(peer, frame.shard, frame.epoch);
        break;
    }
  }

  #receive(link: ReplicaLink, peer: string, batch: Batch): void {
    const reception = this.#receiver.receive(peer, batch);
    if (reception.kind === 'missing') {
      this.counts.missing++;
      link.send({ type: 'resync', place: reception.ask });
    } else if (reception.kind === 'ignored') {
      this.counts.ignored[reception.reason] = (this.counts.ignored[reception.reason] ?? 0) + 1;
      if (reception.reason === 'older-master') {
        link.send({ type: 'outdone', shard: batch.shard, epoch: reception.epoch });
      }
    } else {
      // Not before it is in the kernel; and of a kernel that fails never: all will come again.
      void this.#table.apply(reception.changes).then((done) => {
        if (done) link.send({ type: 'ack', place: reception.ack });
        else this.#doubts = true;
      });
    }
  }

  /** This gateway is master all the same. */
  #outdo(peer: string, shard: string, epoch: number): void {
    const sent = this.#sent.get(shard);
    const now = performance.now();
    if (sent === undefined || !sent.feeds.has(peer) || sent.epoch > epoch) return;
    if (now - (this.#outdone.get(shard) ?? Number.NEGATIVE_INFINITY) < OUTDO_MS) return;
    this.#outdone.set(shard, now);
    const higher = this.#receiver.outdo(shard, epoch);
    const again = new SentShard(shard, higher, () => ++this.#sync, sent.flows);
    again.receivers(sent.feeds.keys());
    this.#sent.set(shard, again);
    this.#pumpSoon();
  }
}
