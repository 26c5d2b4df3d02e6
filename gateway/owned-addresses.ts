/**
 * Addresses that this program has put on the machine, on disk before they are put there: after a crash, and for a cleanup,
 * they can be told from those of others, since the kernel does not say who added an address (IFA_PROTO needs iproute2 6.3).
 */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { DeviceAddress, NetState } from '../kernel/iproute.ts';

export class OwnedAddresses {
  readonly #file: string;
  #known: Set<string> | undefined;

  constructor(stateDirectory: string) {
    this.#file = join(stateDirectory, 'addresses.json');
  }

  async add(addresses: DeviceAddress[]): Promise<Set<string>> {
    this.#known ??= (await this.recorded()) ?? new Set();
    const before = this.#known.size;
    for (const address of addresses) this.#known.add(textOf(address));
    if (this.#known.size !== before) await this.#save(this.#known);
    return this.#known;
  }

  async write(addresses: DeviceAddress[]): Promise<void> {
    const next = new Set(addresses.map(textOf));
    if (next.size === this.#known?.size) return;
    this.#known = next;
    await this.#save(next);
  }

  /** As on disk, each textOf(); undefined: there is no record. */
  async recorded(): Promise<Set<string> | undefined> {
    try {
      const parsed: unknown = JSON.parse(await readFile(this.#file, 'utf8'));
      return Array.isArray(parsed) ? new Set(parsed.filter((text) => typeof text === 'string')) : undefined;
    } catch {
      return undefined;
    }
  }

  async #save(known: Set<string>): Promise<void> {
    await writeFile(`${this.#file}.new`, JSON.stringify([...known]));
    await rename(`${this.#file}.new`, this.#file);
  }
}

export const textOf = ({ dev, address }: DeviceAddress): string => `${dev} ${address}`;

/** Addresses alone, without their prefix lengths. */
export function byDevice(addresses: DeviceAddress[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const { dev, address } of addresses) {
    const list = found.get(dev) ?? [];
    list.push(address.slice(0, address.indexOf('/')));
    found.set(dev, list);
  }
  return found;
}

/** Of addresses that are elections' nothing is known to who applies a plan. */
export function withoutElected(state: NetState, elected: readonly DeviceAddress[]): NetState {
  if (elected.length === 0) return state;
  const theirs = new Set(elected.map(textOf));
  return { ...state, addresses: state.addresses.filter((address) => !theirs.has(textOf(address))) };
}
