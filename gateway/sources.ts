/**
 * Who sends from an address: a plan's workloads, by address. The planner gives no plan with one address twice
 * (controller/plan/pods.ts). Should one come, that address is nobody's while several claim it: what comes from it is
 * dropped as of an unknown source, rather than passing as somebody's who it may not be of. Which of them came first, or
 * stands first in the plan, makes no difference.
 */
import type { WorkloadEntry } from '../api/plan.ts';

export class Sources {
  readonly #owners = new Map<string, WorkloadEntry>();
  /** Of addresses that have no owner since there are several: all of them. */
  readonly #claimants = new Map<string, WorkloadEntry[]>();

  add(workload: WorkloadEntry): void {
    for (const address of workload.addresses) {
      const owner = this.#owners.get(address);
      if (owner === workload) continue;
      const claimants = this.#claimants.get(address) ?? (owner === undefined ? [] : [owner]);
      if (claimants.length === 0) this.#owners.set(address, workload);
      else if (!claimants.includes(workload)) {
        this.#claimants.set(address, [...claimants, workload]);
        this.#owners.delete(address);
      }
    }
  }

  remove(workload: WorkloadEntry): void {
    for (const address of workload.addresses) {
      if (this.#owners.get(address) === workload) this.#owners.delete(address);
      const left = this.#claimants.get(address)?.filter((other) => other !== workload);
      if (left === undefined) continue;
      const [only, second] = left;
      if (second !== undefined) this.#claimants.set(address, left);
      else {
        this.#claimants.delete(address);
        if (only !== undefined) this.#owners.set(address, only);
      }
    }
  }

  clear(): void {
    this.#owners.clear();
    this.#claimants.clear();
  }

  /** Canonical text. */
  ownerOf(address: string): WorkloadEntry | undefined {
    return this.#owners.get(address);
  }

  /** Those of a workload's addresses that are its own, each once. */
  addressesOf(workload: WorkloadEntry): readonly string[] {
    const { addresses } = workload;
    const all = this.#claimants.size === 0;
    // Nearly always.
    if (all && addresses.length <= 2 && addresses[0] !== addresses[1]) return addresses;
    return addresses.filter(
      (address, at) => addresses.indexOf(address) === at && (all || this.#owners.get(address) === workload),
    );
  }

  /** Whoever claims an address with one of these: if they come or go, it may own another. */
  rivalsOf(workloads: readonly (WorkloadEntry | undefined)[]): Set<WorkloadEntry> {
    const rivals = new Set<WorkloadEntry>();
    for (const address of workloads.flatMap((workload) => workload?.addresses ?? [])) {
      for (const rival of this.#claimants.get(address) ?? []) rivals.add(rival);
      const owner = this.#owners.get(address);
      if (owner !== undefined) rivals.add(owner);
    }
    return rivals;
  }

  /** Addresses that several claim, with whom: `namespace/name`. */
  contested(): { address: string; workloads: string[] }[] {
    const nameOf = ({ namespace, name }: WorkloadEntry): string => `${namespace}/${name}`;
    return [...this.#claimants].map(([address, list]) => ({ address, workloads: list.map(nameOf).sort() }));
  }
}
