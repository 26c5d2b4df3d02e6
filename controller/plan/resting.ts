/**
 * Addresses that somebody has and nobody knows of: a gateway still has them, or an older memory does, while the objects or the disk of
 * this controller do not (it was restored from a backup, or lost). Each rests for its pool's quarantine before another may draw it.
 */
import { parseAddress } from '../../api/address.ts';
import type { EgressIPPool } from '../../api/kinds.ts';
import { freeSet } from './allocate.ts';
import type { PlannerMemory } from './memory.ts';

export interface HeldAddress {
  address: string;
  pool: string;
  /** EgressIP that had it, and may have it back; empty: not known. */
  owner: string;
  /** `namespace` or `namespace/pod` that had it to itself by that. */
  to?: string;
}

/** Of what a gateway has, those that are in a pool's ranges. `addresses`: address → EgressIP, `EgressIP/OWNER`. */
export function heldAddresses(
  addresses: Readonly<Record<string, string>>,
  pools: readonly EgressIPPool[],
): HeldAddress[] {
  const sets = pools.map((pool) => ({ pool: pool.metadata.name, set: freeSet(pool) }));
  return Object.entries(addresses).flatMap(([address, owner]): HeldAddress[] => {
    const parsed = parseAddress(address);
    const found = parsed.ok ? sets.find(({ set }) => set.has(parsed.value)) : undefined;
    if (found === undefined) return [];
    const [egressIP = '', ...to] = owner.split('/');
    return [{ address, pool: found.pool, owner: egressIP, ...(to.length > 0 && { to: to.join('/') }) }];
  });
}

/** The memory in which they rest since `now`; the same if all are known. */
export function withResting(memory: PlannerMemory, held: readonly HeldAddress[], now: number): PlannerMemory {
  const unknown = held.filter(({ address }) => !Object.hasOwn(memory.allocations, address));
  const resting = unknown.map(({ address, pool, owner }) => [address, { pool, owner, releasedAt: now }] as const);
  const allocations =
    unknown.length === 0 ? memory.allocations : { ...memory.allocations, ...Object.fromEntries(resting) };
  // Of an address that is known too, who has it to himself may not be.
  const owned = held.flatMap(({ address, owner, to }) =>
    to === undefined || Object.hasOwn(memory.owners, address) || allocations[address]?.owner !== owner
      ? []
      : [[address, { egressIP: owner, owner: to, goneAt: now }] as const],
  );
  if (unknown.length + owned.length === 0) return memory;
  return { ...memory, allocations, owners: { ...memory.owners, ...Object.fromEntries(owned) } };
}
