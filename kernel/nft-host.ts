/**
 * nftables of this machine, or of one of its network namespaces. A change goes to the kernel as netlink messages of our
 * own (nft-transaction.ts) where all of it is understood there, else as a script to the `nft` command: the same change,
 * some hundred times slower in a big table. Either is one transaction, and nobody above sees which it was.
 */
import type { NftBatch } from '../wire/nft-batch.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';
import type { CounterValue, Nft, NftState, Ruleset } from './nft.ts';
import { changeSize, isEmptyChange, scriptOf, type TableChange } from './nft-change.ts';
import { creation } from './nft-create.ts';
import { listCounters, listTable } from './nft-list.ts';
import { askLayout, encodeChange, sendBatch } from './nft-transaction.ts';
import { inNamespace, run } from './run.ts';

export interface HostOptions {
  /** A namespace made by `ip netns add`; absent: the one that this process is in. */
  namespace?: string;
}

/** A table of more is created in parts. */
const CREATED_AT_ONCE = 10_000;
/** Events of a change come some milliseconds after it; process ids come round again. */
const COMMANDS_MAX = 32;

export class HostNft implements Nft {
  readonly #where: HostOptions;
  #socket: NetlinkSocket | undefined;
  #port: number | undefined;
  /** Process ids of the commands that ran last. */
  readonly #commands: number[] = [];

  constructor(options: HostOptions = {}) {
    this.#where = options;
  }

  async run(change: TableChange): Promise<void> {
    if (isEmptyChange(change)) return;
    if (change.create && changeSize(change) > CREATED_AT_ONCE) {
      for (const part of creation(change)) await this.#make(part);
    } else await this.#make(change);
  }

  async #make(change: TableChange): Promise<void> {
    const batch = this.encode(change);
    if (batch === undefined) await this.runScript(scriptOf(change));
    else {
      sendBatch(this.#netlink(), batch);
      // Whoever makes changes in a loop lets others have their turn.
      await new Promise((resolve) => setImmediate(resolve));
    }
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
