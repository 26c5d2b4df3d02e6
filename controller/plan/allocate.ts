/**
 * EgressIP → addresses. What is given out is an input (memory), so the result does not depend on order or restarts:
 * an owner keeps its addresses as long as it wants as many. Between two that claim one address the older object wins.
 * An address that an owner gave back may be *drawn* by another only after the pool's quarantine; an explicit
 * claim is an operator's word and does not wait. To whom an EgressIP gives which of its addresses: owners.ts.
 */
import {
  type Address,
  compareAddresses,
  formatAddress,
  formatRange,
  parseAddress,
  parseRange,
  type Range,
} from '../../api/address.ts';
import { type EgressIP, type EgressIPPool, objectKey } from '../../api/kinds.ts';
import { type Family, families, type PerFamily } from '../../api/plan.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { Findings } from './condition.ts';
import type { Allocation, PlannerMemory } from './memory.ts';

export interface AllocationInput {
  /** Both oldest first. */
  pools: readonly EgressIPPool[];
  egressIPs: readonly EgressIP[];
  previous: Readonly<Record<string, Allocation>>;
  owners: PlannerMemory['owners'];
  now: number;
  /** Addresses that no EgressIP may have: next hops, gateways' and nodes' own. */
  reserved: ReadonlySet<string>;
}

export interface AllocationResult {
  /** By EgressIP name; families that have none are absent. */
  addresses: Map<string, PerFamily<string[]>>;
  allocations: Record<string, Allocation>;
  /** When the first quarantine that somebody waits for ends. */
  wakeAt?: number;
  /** Whether it is another with other `owners`, though nobody draws more or fewer. */
  asksOwners: boolean;
}

interface DrawPool {
  object: EgressIPPool;
  set: PrefixSet;
}

/** Addresses of a pool that one run looks at: bounds the walk over a /64. */
const MAX_WALK = 1 << 17;

export function allocate(input: AllocationInput, findings: Findings): AllocationResult {
  const pools = new Map<string, DrawPool>();
  for (const object of input.pools) pools.set(object.metadata.name, { object, set: freeSet(object) });
  const owners = input.egressIPs.filter((egressIP) => {
    if (pools.has(egressIP.spec.pool)) return true;
    findings.refuse(objectKey(egressIP), 'NoSuchPool', `EgressIPPool ${egressIP.spec.pool} does not exist`);
    return false;
  });
  const given = new Map<string, string>();
  const holderBefore = (address: string): string | undefined => {
    const allocation = input.previous[address];
    return allocation !== undefined && allocation.releasedAt === undefined ? allocation.owner : undefined;
  };

  let wakeAt = Number.POSITIVE_INFINITY;
  let asksOwners = false;
  /** What is no longer in the pool stays for whom it was given to, and is given to nobody else. */
  const stays = (owner: EgressIP, text: string): boolean => {
    if (owner.spec.allocation === 'Shared') return true;
    asksOwners = true;
    const { egressIP, goneAt } = input.owners[text] ?? {};
    if (egressIP !== owner.metadata.name) return false;
    if (goneAt === undefined) return true;
    const end = goneAt + quarantineOf(pools.get(owner.spec.pool)?.object);
    if (end > input.now) wakeAt = Math.min(wakeAt, end);
    return end > input.now;
  };
  const claim = (owner: EgressIP): void => {
    const pool = pools.get(owner.spec.pool)?.set;
    const key = objectKey(owner);
    const { name } = owner.metadata;
    for (const address of explicitAddresses(owner)) {
      const text = formatAddress(address);
      const winner = given.get(text);
      if (winner === name) continue;
      if (winner !== undefined) {
        findings.conflict(key, 'AddressTaken', `${text} belongs to EgressIP ${winner}, which is older`);
      } else if (input.reserved.has(text)) {
        findings.refuse(key, 'AddressReserved', `${text} is a next hop or a gateway's own address`);
      } else if (pool?.has(address) === true) {
        given.set(text, name);
      } else if (holderBefore(text) === name && stays(owner, text)) {
        given.set(text, name);
        findings.add(key, 'Accepted', 'True', 'OutOfPool', `${text} is no longer in EgressIPPool ${owner.spec.pool}`);
      } else {
        findings.refuse(key, 'OutOfPool', `${text} is not in EgressIPPool ${owner.spec.pool}`);
      }
    }
  };
  // What an owner drew before; if it now wants fewer, what somebody has to himself first, then the lowest.
  const counts = new Map<string, PerFamily<number>>();
  const before = byOwner(input.previous, (text) => {
    const owner = input.owners[text];
    return owner !== undefined && owner.goneAt === undefined && owner.egressIP === input.previous[text]?.owner;
  });
  const keep = (owner: EgressIP, released: boolean): void => {
    const { name } = owner.metadata;
    const { pool, count = 0 } = owner.spec;
    const kept = counts.get(name) ?? {};
    for (const { text, allocation, address } of before.get(name) ?? []) {
      const { family } = address;
      if (allocation.pool !== pool || (allocation.releasedAt !== undefined) !== released) continue;
      if ((kept[family] ?? 0) >= count || given.has(text) || input.reserved.has(text)) continue;
      if (pools.get(pool)?.set.has(address) !== true) {
        if (released || !stays(owner, text)) continue;
        const message = `${text} is no longer in EgressIPPool ${pool}`;
        findings.add(objectKey(owner), 'Accepted', 'True', 'OutOfPool', message);
      }
      given.set(text, name);
      kept[family] = (kept[family] ?? 0) + 1;
    }
    counts.set(name, kept);
  };
  // By age, so that of a claim and a draw too the older has the address.
  for (const owner of owners) {
    if (owner.spec.addresses === undefined) keep(owner, false);
    else claim(owner);
  }
  // An owner that comes back takes its own again, quarantined or not.
  for (const owner of owners) keep(owner, true);

  // New ones from the pool. What one owner walked past no later one can have, so each pool is walked once.
  const walks = new Map<string, { addresses: Generator<string>; nextFree: number }>();
  for (const owner of owners) {
    const pool = pools.get(owner.spec.pool);
    if (pool === undefined) continue;
    const { name } = owner.metadata;
    for (const family of families) {
      let missing = wants(owner, family, pools) - (counts.get(name)?.[family] ?? 0);
      if (missing <= 0) continue;
      const key = `${owner.spec.pool} ${family}`;
      const walk = walks.get(key) ?? {
        addresses: candidates(pool.set, family),
        nextFree: Number.POSITIVE_INFINITY,
      };
      walks.set(key, walk);
      while (missing > 0) {
        const { value: text, done } = walk.addresses.next();
        if (done) break;
        if (given.has(text) || input.reserved.has(text)) continue;
        const freeAt = quarantineEnd(input.previous[text], pools, input.now);
        if (freeAt > input.now) {
          walk.nextFree = Math.min(walk.nextFree, freeAt);
          continue;
        }
        given.set(text, name);
        missing--;
      }
      if (missing > 0) {
        wakeAt = Math.min(wakeAt, walk.nextFree);
        const message = `EgressIPPool ${owner.spec.pool} has no free IPv${family} address (${missing} missing)`;
        findings.add(objectKey(owner), 'Programmed', 'False', 'PoolExhausted', message);
      }
    }
  }
  const collected = collect(owners, given, input, pools);
  return { ...collected, asksOwners, ...(wakeAt < Number.POSITIVE_INFINITY && { wakeAt }) };
}

interface Held {
  text: string;
  address: Address;
  allocation: Allocation;
}

/** Those that are used first; in order of address. */
function byOwner(
  allocations: Readonly<Record<string, Allocation>>,
  used: (address: string) => boolean,
): Map<string, Held[]> {
  const owners = new Map<string, Held[]>();
  const all = Object.entries(allocations).flatMap(([text, allocation]) => {
    const parsed = parseAddress(text);
    return parsed.ok ? [{ text, allocation, address: parsed.value }] : [];
  });
  all.sort((a, b) => compareAddresses(a.address, b.address));
  for (const item of [...all.filter(({ text }) => used(text)), ...all.filter(({ text }) => !used(text))]) {
    const list = owners.get(item.allocation.owner);
    if (list === undefined) owners.set(item.allocation.owner, [item]);
    else list.push(item);
  }
  return owners;
}

function collect(
  owners: readonly EgressIP[],
  given: ReadonlyMap<string, string>,
  { previous, now }: AllocationInput,
  pools: ReadonlyMap<string, DrawPool>,
): Pick<AllocationResult, 'addresses' | 'allocations'> {
  const allocations: Record<string, Allocation> = {};
  const addresses = new Map<string, PerFamily<string[]>>();
  const poolOf = new Map(owners.map((owner) => [owner.metadata.name, owner.spec.pool]));
  const sorted = [...given.keys()]
    .flatMap((text) => {
      const parsed = parseAddress(text);
      return parsed.ok ? [{ text, address: parsed.value }] : [];
    })
    .sort((a, b) => compareAddresses(a.address, b.address));
  for (const { text, address } of sorted) {
    const owner = given.get(text) ?? '';
    allocations[text] = { pool: poolOf.get(owner) ?? '', owner };
    const perFamily = addresses.get(owner) ?? {};
    perFamily[address.family] = [...(perFamily[address.family] ?? []), text];
    addresses.set(owner, perFamily);
  }
  for (const [text, allocation] of Object.entries(previous)) {
    if (given.has(text)) continue;
    const released = { ...allocation, releasedAt: allocation.releasedAt ?? now };
    // Forgotten when the quarantine is over, unless the owner may come back for it.
    if (quarantineEnd(released, pools, now) > now || poolOf.has(allocation.owner)) allocations[text] = released;
  }
  return { addresses, allocations };
}

/**
 * 0 if nobody had it. An allocation that its owner did not keep is released by this very run. A pool that is gone
 * had the default quarantine.
 */
function quarantineEnd(
  allocation: Allocation | undefined,
  pools: ReadonlyMap<string, Pick<DrawPool, 'object'>>,
  now: number,
): number {
  if (allocation === undefined) return 0;
  return (allocation.releasedAt ?? now) + quarantineOf(pools.get(allocation.pool)?.object);
}

/** Milliseconds. */
export const quarantineOf = (pool: EgressIPPool | undefined): number => 1000 * (pool?.spec.quarantineSeconds ?? 300);

/** When the first of the quarantines that last now ends. */
export function quarantinesEnd(
  allocations: Readonly<Record<string, Allocation>>,
  objects: readonly EgressIPPool[],
  now: number,
): number {
  const pools = new Map(objects.map((object) => [object.metadata.name, { object }]));
  let first = Number.POSITIVE_INFINITY;
  for (const allocation of Object.values(allocations)) {
    const end = allocation.releasedAt === undefined ? 0 : quarantineEnd(allocation, pools, now);
    if (end > now) first = Math.min(first, end);
  }
  return first;
}

export function freeSet({ spec }: EgressIPPool): PrefixSet {
  return PrefixSet.of(ranges(spec.ranges)).exclude(PrefixSet.of(ranges(spec.exclude ?? [])));
}

/** Ranges that two pools would give from: whose an address is must not depend on who draws first. */
export function overlapsOf(pools: readonly EgressIPPool[], sets: readonly PrefixSet[]): Findings {
  const findings = new Findings();
  for (const [at, pool] of pools.entries()) {
    for (const range of sets[at] ?? []) {
      const older = pools.find((_, other) => other < at && sets[other]?.intersects(range));
      if (older === undefined) continue;
      const message = `some of ${formatRange(range)} belongs to EgressIPPool ${older.metadata.name}, which is older`;
      findings.conflict(objectKey(pool), 'RangeTaken', message);
    }
  }
  return findings;
}

/** Texts were validated with the object; what does not parse is left out. */
function ranges(texts: readonly string[]): Range[] {
  return texts.flatMap((text) => {
    const range = parseRange(text);
    return range.ok ? [range.value] : [];
  });
}

function explicitAddresses({ spec }: EgressIP): Address[] {
  return (spec.addresses ?? []).flatMap((text) => {
    const parsed = parseAddress(text);
    return parsed.ok ? [parsed.value] : [];
  });
}

/** How many addresses the EgressIP wants to draw of a family: `count`, where the pool has that family at all. */
function wants(egressIP: EgressIP | undefined, family: Family, pools: ReadonlyMap<string, DrawPool>): number {
  const set = egressIP === undefined ? undefined : pools.get(egressIP.spec.pool)?.set;
  return set === undefined || set.ranges(family).length === 0 ? 0 : (egressIP?.spec.count ?? 0);
}

function* candidates(set: PrefixSet, family: Family): Generator<string, undefined> {
  let walked = 0;
  for (const { first, last } of set.ranges(family)) {
    for (let value = first; value <= last; value++) {
      if (++walked > MAX_WALK) return undefined;
      yield formatAddress({ family, value });
    }
  }
  return undefined;
}
