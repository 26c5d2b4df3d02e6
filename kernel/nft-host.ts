/**
 * nftables of this machine, or of one of its network namespaces. A change goes to the kernel as netlink messages of our
 * own (nft-transaction.ts) where all of it is understood there, else as a script to the `nft` command: the same change,
 * some hundred times slower in a big table. Either is one transaction, and nobody above sees which it was; what counts
 * packets comes in one before it.
 */
import type { NftBatch } from '../wire/nft-batch.ts';
import { layoutOf } from '../wire/nft-shape.ts';
import { NetlinkWriter } from '../wire/nlwriter.ts';
import type { EventSocket } from './event-socket.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';
import type { CounterValue, Nft, NftState, Ruleset } from './nft.ts';
import { changeSize, countersFirst, isEmptyChange, scriptOf, type TableChange } from './nft-change.ts';
import { creation } from './nft-create.ts';
import { listCounters, listTable } from './nft-list.ts';
import { askGeneration, askLayout, encodeChange, sendBatch } from './nft-transaction.ts';
import { type TableEvents, type TableWatch, watchTable } from './nft-watch.ts';
import { inNamespace, run } from './run.ts';

export interface HostOptions {
  /** A namespace made by `ip netns add`; absent: the one that this process is in. */
  namespace?: string;
}

/** A table of more is created in parts; of a change of more the events would not find room. */
const BIG = 10_000;
/** Events of a change come some milliseconds after it; process ids come round again. */
const COMMANDS_MAX = 32;

export class HostNft implements Nft {
  readonly #where: HostOptions;
  #socket: NetlinkSocket | undefined;
  #port: number | undefined;
  /** Process ids of the commands that ran last. */
  readonly #commands: number[] = [];
  readonly #watches = new Set<{ events: EventSocket; told: TableEvents }>();

  constructor(options: HostOptions = {}) {
    this.#where = options;
  }

  async run(change: TableChange): Promise<void> {
    if (isEmptyChange(change)) return;
    for (const part of countersFirst(change)) {
      if (changeSize(part) <= BIG) await this.#make(part, this.encode(part));
      else await this.#unheard(() => this.#makeBig(part));
    }
  }

  /** Tells of what others do to a table. */
  watch(table: TableWatch['table'], told: TableEvents): Pick<EventSocket, 'close'> {
    const events = watchTable({ table, ours: (port) => this.isOwn(port), ...told, ...this.#where });
    const watch = { events, told };
    this.#watches.add(watch);
    return {
      close: () => {
        this.#watches.delete(watch);
        return events.close();
      },
    };
  }

  /**
   * Makes as many transactions as `work` returns, of which no event is written: those of a big change are half of what it
   * costs the kernel. Whether others made any meanwhile is told by their number; if `work` fails, it is not known.
   */
  async #unheard(work: () => Promise<number>): Promise<void> {
    const before = askGeneration(this.#netlink());
    for (const { events } of this.#watches) events.hear(false);
    let made: number | undefined;
    try {
      made = await work();
    } finally {
      for (const { events } of this.#watches) events.hear(true);
      if (askGeneration(this.#netlink()) - before !== made) for (const { told } of this.#watches) told.onChanged();
    }
  }

  /** Returns how many transactions it was. */
  async #makeBig(change: TableChange): Promise<number> {
    if (change.create) return this.#create(change);
    await this.#make(change, this.encode(change));
    return 1;
  }

  /** Returns how many parts it was. One is made ready while the kernel is busy with the one before. */
  async #create(change: TableChange): Promise<number> {
    // All that rules may ask, so that nobody asks the kernel meanwhile.
    const layouts = new Map(change.sets.map(({ name, shape }) => [name, layoutOf(shape)]));
    // In turn: buffers of each part's own would have all of this program's memory searched for garbage every few parts.
    const writers = [new NetlinkWriter(), new NetlinkWriter()];
    let before = Promise.resolve();
    let made = 0;
    try {
      for (const part of creation(change)) {
        if (isEmptyChange(part)) continue;
        const batch = encodeChange(part, (set) => layouts.get(set), writers[made % 2]);
        await before;
        before = this.#make(part, batch);
        made++;
      }
    } finally {
      // Whatever failed, nothing is on its way any more.
      await before;
    }
    return made;
  }

  async #make(change: TableChange, batch: NftBatch | undefined): Promise<void> {
    if (batch === undefined) await this.runScript(scriptOf(change));
    // Whoever makes changes in a loop lets others have their turn.
    else await Promise.all([sendBatch(this.#netlink(), batch), new Promise((resolve) => setImmediate(resolve))]);
  }

  /** The change as messages; undefined if it is one for the command. */
  encode(change: TableChange): NftBatch | undefined {
    return encodeChange(change, (set) => askLayout(this.#netlink(), change.table, set));
  }

  /** Any text that `nft -f` takes. */
  async runScript(script: string): Promise<void> {
    const command = inNamespace(this.#where.namespace, ['nft', '-f', '-']);
    await run(command, { op: 'nft run', input: script, onStart: (pid) => this.#remember(pid) });
  }

  /** Whether what was asked for at this netlink port was asked for here: a command's first socket has its process id. */
  isOwn(port: number): boolean {
    return port === this.#port || this.#commands.includes(port);
  }

  #remember(pid: number): void {
    this.#commands.push(pid);
    if (this.#commands.length > COMMANDS_MAX) this.#commands.shift();
  }

  list(_family: 'inet', table: string, like?: () => Ruleset): Promise<NftState> {
    return listTable(table, this.#where, like);
  }

  counters(table: string): Promise<Record<string, CounterValue>> {
    return listCounters(table, this.#where);
  }

  async drop(table: string): Promise<void> {
    // Added first, so that it is there to be deleted.
    await this.runScript(`add table inet ${table}\ndelete table inet ${table}\n`);
  }

  /** Opened once and never closed: as long as the program lives its changes come from one address. */
  #netlink(): NetlinkSocket {
    this.#socket ??= NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      receiveBuffer: 1 << 20,
      extendedAck: true,
      ...this.#where,
    });
    this.#port ??= this.#socket.port;
    return this.#socket;
  }
}
