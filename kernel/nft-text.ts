/**
 * A small nftables table that is a text, for what nft-change.ts has no words for: loaded as one transaction by `nft`, known
 * again by what `nft` lists of it, without counters and elements. The text makes what is not there and flushes its
 * chains first, so that loading it again changes nothing and empties no set.
 */
import { KernelError } from './errors.ts';
import type { HostNft } from './nft-host.ts';
import { inNamespace, run } from './run.ts';

export class TextTable {
  readonly #table: string;
  readonly #nft: Pick<HostNft, 'runScript' | 'drop'>;
  readonly #namespace: string | undefined;
  /** What was loaded last, and how it is listed. */
  #loaded: { text: string; listed: string } | undefined;

  /** Of family inet. */
  constructor(table: string, nft: Pick<HostNft, 'runScript' | 'drop'>, namespace?: string) {
    this.#table = table;
    this.#nft = nft;
    this.#namespace = namespace;
  }

  /** Brings the table to the text; false: it was so. Throws KernelError. */
  async put(text: string): Promise<boolean> {
    if (this.#loaded?.text === text && (await this.#list()) === this.#loaded.listed) return false;
    // Another text may have other chains, and somebody else may have added some.
    const script = this.#loaded === undefined ? text : `${this.#deletion()}${text}`;
    this.#loaded = undefined;
    await this.#nft.runScript(script);
    const listed = await this.#list();
    if (listed !== undefined) this.#loaded = { text, listed };
    return true;
  }

  /** false: there was none. */
  async remove(): Promise<boolean> {
    this.#loaded = undefined;
    if ((await this.#list()) === undefined) return false;
    await this.#nft.drop(this.#table);
    return true;
  }

  #deletion(): string {
    return `add table inet ${this.#table}\ndelete table inet ${this.#table}\n`;
  }

  /** undefined: there is none. */
  async #list(): Promise<string | undefined> {
    const command = ['nft', '--stateless', '--terse', 'list', 'table', 'inet', this.#table];
    try {
      return await run(inNamespace(this.#namespace, command), { op: 'nft list' });
    } catch (error) {
      if (error instanceof KernelError && error.code === 'ENOENT') return undefined;
      throw error;
    }
  }
}
