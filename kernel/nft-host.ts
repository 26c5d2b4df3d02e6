/**
 * nftables of this machine, or of one of its network namespaces. A change goes to the kernel as netlink messages of our
 * own (nft-transaction.ts) where all of it is understood there, else as a script to the `nft` command: the same change,
 * some hundred times slower in a big table. Either is one transaction, and nobody above sees which it was.
 */
import type { NftBatch } from '../wire/nft-batch.ts';
import { KernelError } from './errors.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';
import type { CounterValue, Nft, NftState } from './nft.ts';
import { isEmptyChange, scriptOf, type TableChange } from './nft-change.ts';
import { parseCounters, parseTable } from './nft-json.ts';
import { emptyState } from './nft-state.ts';
import { askLayout, encodeChange, sendBatch } from './nft-transaction.ts';
import { inNamespace, run } from './run.ts';

export interface HostOptions {
  /** A namespace made by `ip netns add`; absent: the one that this process is in. */
  namespace?: string;
}

export class HostNft implements Nft {
  readonly #namespace: string | undefined;
  #socket: NetlinkSocket | undefined;

  constructor(options: HostOptions = {}) {
    this.#namespace = options.namespace;
  }

  async run(change: TableChange): Promise<void> {
    if (isEmptyChange(change)) return;
    const batch = this.encode(change);
    if (batch === undefined) await this.runScript(scriptOf(change));
    else sendBatch(this.#netlink(), batch);
  }

  /** The change as messages; undefined if it is one for the command. */
  encode(change: TableChange): NftBatch | undefined {
    return encodeChange(change, (set) => askLayout(this.#netlink(), change.table, set));
  }

  /** Any text that `nft -f` takes. */
  async runScript(script: string): Promise<void> {
    await this.#nft('nft run', ['-f', '-'], script);
  }

  async list(family: 'inet', table: string): Promise<NftState> {
    return this.#ifPresent(emptyState(), async () => {
      // Two listings: nobody but this program changes the table, and it does not while it lists.
      const terse = await this.#nft('nft list', ['-n', '-t', 'list', 'table', family, table]);
      const json = await this.#nft('nft list', ['-n', '-j', 'list', 'table', family, table]);
      return parseTable(json, terse);
    });
  }

  async counters(table: string): Promise<Record<string, CounterValue>> {
    return this.#ifPresent({}, async () =>
      parseCounters(await this.#nft('nft counters', ['-j', 'list', 'counters', 'table', 'inet', table])),
    );
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
      ...(this.#namespace === undefined ? {} : { namespace: this.#namespace }),
    });
    return this.#socket;
  }

  #nft(op: string, args: string[], input = ''): Promise<string> {
    return run(inNamespace(this.#namespace, ['nft', ...args]), { op, input });
  }

  async #ifPresent<T>(absent: T, ask: () => Promise<T>): Promise<T> {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof KernelError && error.code === 'ENOENT') return absent;
      throw error;
    }
  }
}
