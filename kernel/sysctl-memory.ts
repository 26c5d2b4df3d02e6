/**
 * What kernel parameters were before this program changed them first, in a file of its state directory, written before the
 * parameter is; so that a cleanup can put them back. Values are of one boot: what a machine had before it started anew
 * says nothing. Who else changes one meanwhile is taken as the new owner of its value: that is what it goes back to, or
 * it is left alone. Left out: parameters of a device that goes with us.
 */
import { mkdir, open, readdir, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { applySysctls, readSysctl, type SysctlOptions } from './sysctl.ts';

export const SYSCTL_MEMORY = 'sysctls.json';

interface Remembered {
  was: string;
  wrote: string;
  /** Others that the kernel changes with it, as they were. */
  with?: Record<string, string>;
}

interface Content {
  boot: string;
  values: Record<string, Remembered>;
}

export interface SysctlMemoryOptions extends SysctlOptions {
  /** Parameters that are not kept. */
  except?: (key: string) => boolean;
}

/** What the kernel sets for every device when it is told for all (inet_forward_change, addrconf_fixup_forwarding). */
const companions: Record<string, { each: string; also: string[] }> = {
  'net/ipv4/ip_forward': { each: 'net/ipv4/conf', also: ['net/ipv4/conf/all/accept_redirects'] },
  'net/ipv6/conf/all/forwarding': { each: 'net/ipv6/conf', also: [] },
};

export class SysctlMemory {
  readonly #file: string;
  readonly #options: SysctlMemoryOptions;
  #values: Record<string, Remembered> | undefined;
  #boot = '';
  /** The file is of this boot. */
  #kept = false;

  constructor(file: string, options: SysctlMemoryOptions = {}) {
    this.#file = file;
    this.#options = options;
  }

  /** As applySysctls(). */
  async apply(desired: Record<string, string>): Promise<string[]> {
    const values = await this.#read();
    let news = false;
    for (const [key, wrote] of Object.entries(desired)) {
      if (this.#options.except?.(key)) continue;
      const was = await readSysctl(key, this.#options);
      if (was === undefined || was === wrote) continue;
      const known = values[key];
      // What we wrote before and want otherwise now is no one else's value.
      if (known !== undefined && known.wrote === was) values[key] = { ...known, wrote };
      else values[key] = { was, wrote, ...(await this.#companionsOf(key)) };
      news = true;
    }
    if (news || !this.#kept) await this.#save(values);
    return applySysctls(desired, this.#options);
  }

  /** Parameters that were changed and still are as written, with what they were. `false`: nothing is known of this boot. */
  async changed(): Promise<Map<string, string> | false> {
    const values = await this.#read();
    if (!this.#kept) return false;
    const found = new Map<string, string>();
    for (const [key, { was, wrote }] of Object.entries(values)) {
      if ((await readSysctl(key, this.#options)) === wrote) found.set(key, was);
    }
    return found;
  }

  /** Puts one back, and forgets it. */
  async restore(key: string): Promise<void> {
    const values = await this.#read();
    const known = values[key];
    if (known === undefined) return;
    await applySysctls({ [key]: known.was }, this.#options);
    for (const [other, was] of Object.entries(known.with ?? {})) {
      const now = await readSysctl(other, this.#options);
      if (now !== undefined && now !== was) await applySysctls({ [other]: was }, this.#options);
    }
    delete values[key];
    await this.#save(values);
  }

  async #companionsOf(key: string): Promise<Pick<Remembered, 'with'>> {
    const more = companions[key];
    if (more === undefined) return {};
    const devices = await readdir(`${this.#options.root ?? '/proc/sys'}/${more.each}`).catch(() => []);
    const keys = [...devices.map((device) => `${more.each}/${device}/forwarding`), ...more.also];
    const found: Record<string, string> = {};
    for (const other of keys) {
      if (other === key || this.#options.except?.(other)) continue;
      const value = await readSysctl(other, this.#options);
      if (value !== undefined) found[other] = value;
    }
    return { with: found };
  }

  async #read(): Promise<Record<string, Remembered>> {
    if (this.#values !== undefined) return this.#values;
    this.#boot = (await readSysctl('kernel/random/boot_id', this.#options)) ?? '';
    this.#values = {};
    try {
      const content = JSON.parse(await readFile(this.#file, 'utf8')) as Content;
      if (content.boot === this.#boot && typeof content.values === 'object') {
        this.#values = content.values;
        this.#kept = true;
      }
    } catch {
      // Absent, or half a file of another machine: nothing is known.
    }
    return this.#values;
  }

  async #save(values: Record<string, Remembered>): Promise<void> {
    await mkdir(dirname(this.#file), { recursive: true });
    const handle = await open(`${this.#file}.new`, 'w', 0o600);
    try {
      await handle.writeFile(`${JSON.stringify({ boot: this.#boot, values } satisfies Content)}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(`${this.#file}.new`, this.#file);
    this.#kept = true;
  }
}
