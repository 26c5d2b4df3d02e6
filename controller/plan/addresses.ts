/**
 * Addresses: what gateways say of their own, which EgressIP has which, and on which shard each is. From what was found
 * last where that still holds.
 */
import { parseAddress } from '../../api/address.ts';
import type { EgressIP, EgressIPPool } from '../../api/kinds.ts';
import { type Egress, families, type GatewayEntry, type PerFamily, type ShardEntry } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import type { PrefixSet } from '../../api/prefix-set.ts';
import { type AllocationResult, allocate, freeSet, overlapsOf, quarantinesEnd } from './allocate.ts';
import { Findings } from './condition.ts';
import { Memo, sameItems, sameList, sameRecord } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import type { Objects } from './objects.ts';
import { ownAddressesOf, type Peers } from './peers.ts';
import type { Pool } from './pools.ts';
import { rendezvousPick } from './rendezvous.ts';

export interface PlannedAddresses {
  /** With their gateways' addresses and their shards' egress IPs. */
  pools: readonly Pool[];
  gatewayAddresses: Record<string, string[]>;
  allocation: AllocationResult;
  shardOf: ReadonlyMap<string, string>;
  /** By EgressIP name: those that are on a shard. */
  placed: ReadonlyMap<string, PerFamily<Egress[]>>;
  gatewayPoolOf(egressIP: EgressIP): Pool | undefined;
  findings: readonly Findings[];
}

interface Allocated {
  from: readonly unknown[];
  result: AllocationResult;
  findings: Findings;
  at: number;
  /** From then on the result is another. */
  until: number;
}

interface Placed extends Pick<PlannedAddresses, 'shardOf' | 'placed'> {
  /** By pool. */
  shards: ReadonlyMap<string, Record<string, ShardEntry>>;
}

export class AddressPlanner {
  readonly #drawable = new Memo<PrefixSet[]>();
  readonly #overlaps = new Memo<Findings>();
  readonly #placed = new Memo<Placed>();
  /** Address → shard; by the names of the shards that it was picked from. */
  readonly #picks = new Map<string, Map<string, string | undefined>>();
  #allocated: Allocated | undefined;
  #reserved: readonly string[] = [];
  #gateways = new Map<string, Record<string, GatewayEntry>>();
  #pools: readonly Pool[] = [];

  look(objects: Objects, bare: readonly Pool[], memory: PlannerMemory, peers: Peers, now: number): PlannedAddresses {
    const { EgressIPPool: drawPools, EgressIP: egressIPs } = objects;
    const nextHops = new Set(
      bare.flatMap(({ shards }) => Object.values(shards).flatMap((s) => Object.values(s.nextHops))),
    );
    const drawable = this.#drawable.get([drawPools], () => drawPools.map(freeSet));
    const own = ownAddressesOf(memory.gatewayAddresses, peers, (address) => {
      const parsed = parseAddress(address);
      return (
        nextHops.has(address) ||
        Object.hasOwn(memory.allocations, address) ||
        (parsed.ok && drawable.some((set) => set.has(parsed.value)))
      );
    });
    const gatewayAddresses: Record<string, string[]> = {};
    const gatewaysOf = new Map<string, Record<string, GatewayEntry>>();
    for (const { name: pool, gateways } of bare) {
      const entries = Object.entries(gateways).map(([name, gateway]): [string, GatewayEntry] => {
        const reported = own[name];
        if (reported !== undefined) gatewayAddresses[name] = reported;
        return [name, { ...gateway, addresses: [...new Set([gateway.internalAddress, ...(reported ?? [])])] }];
      });
      gatewaysOf.set(pool, sameRecord(this.#gateways.get(pool), Object.fromEntries(entries)));
    }
    this.#gateways = gatewaysOf;
    const gateways = [...gatewaysOf.values()].flatMap((entries) => Object.values(entries));
    this.#reserved = sameList(this.#reserved, [...nextHops, ...gateways.flatMap(({ addresses }) => addresses)]);

    const { result: allocation, findings } = this.#allocate(objects, memory, now);
    const drawPoolOf = new Map(drawPools.map((pool) => [pool.metadata.name, pool]));
    const places = this.#placed.get([bare, egressIPs, drawPools, allocation.addresses], (last) =>
      this.#place(bare, egressIPs, drawPoolOf, allocation, last),
    );
    const pools = bare.map((pool, at): Pool => {
      const last = this.#pools[at];
      const [gateways, shards] = [gatewaysOf.get(pool.name) ?? {}, places.shards.get(pool.name) ?? {}];
      const same = last?.object === pool.object && last.namespaces === pool.namespaces;
      return same && last.gateways === gateways && last.shards === shards ? last : { ...pool, gateways, shards };
    });
    this.#pools = sameList(this.#pools, pools);
    const poolByName = new Map(pools.map((pool) => [pool.name, pool]));
    const { shardOf, placed } = places;
    return {
      pools: this.#pools,
      gatewayAddresses: sameRecord(memory.gatewayAddresses, gatewayAddresses),
      allocation,
      shardOf,
      placed,
      gatewayPoolOf: (egressIP) => poolByName.get(drawPoolOf.get(egressIP.spec.pool)?.spec.gatewayPool ?? ''),
      findings: [this.#overlaps.get([drawPools], () => overlapsOf(drawPools, drawable)), findings],
    };
  }

  #allocate({ EgressIPPool: pools, EgressIP: egressIPs }: Objects, memory: PlannerMemory, now: number): Allocated {
    const last = this.#allocated;
    const owners = last?.result.asksOwners === true ? memory.owners : undefined;
    const from = [pools, egressIPs, memory.allocations, this.#reserved, owners];
    if (last !== undefined && sameItems(last.from, from) && last.at <= now && (now === last.at || now < last.until)) {
      return last;
    }
    const findings = new Findings();
    const reserved = new Set(this.#reserved);
    const made = allocate(
      { pools, egressIPs, previous: memory.allocations, owners: memory.owners, now, reserved },
      findings,
    );
    const allocations = sameRecord(memory.allocations, made.allocations);
    const addresses = sameMap(last?.result.addresses, made.addresses);
    // What is not remembered yet may be decided otherwise a moment later.
    const until =
      allocations === memory.allocations
        ? Math.min(quarantinesEnd(allocations, pools, now), made.wakeAt ?? Number.POSITIVE_INFINITY)
        : now;
    if (made.asksOwners) from[4] = memory.owners;
    this.#allocated = { from, result: { ...made, allocations, addresses }, findings, at: now, until };
    return this.#allocated;
  }

  #place(
    pools: readonly Pool[],
    egressIPs: readonly EgressIP[],
    drawPools: ReadonlyMap<string, EgressIPPool>,
    { addresses, allocations }: AllocationResult,
    last: Placed | undefined,
  ): Placed {
    const shardOf = new Map<string, string>();
    const placed = new Map<string, PerFamily<Egress[]>>();
    const shards = new Map(pools.map((pool) => [pool.name, { shards: pool.shards, egressIPs: emptyLists(pool) }]));
    for (const { metadata, spec } of egressIPs) {
      const place = shards.get(drawPools.get(spec.pool)?.spec.gatewayPool ?? '');
      if (place === undefined) continue;
      const names = Object.keys(place.shards);
      const own: PerFamily<Egress[]> = {};
      for (const family of families) {
        for (const address of addresses.get(metadata.name)?.[family] ?? []) {
          const shard = this.#pick(address, names);
          if (shard === undefined) continue;
          shardOf.set(address, shard);
          place.egressIPs.get(shard)?.push(address);
          own[family] ??= [];
          own[family].push({ address, shard });
        }
      }
      placed.set(metadata.name, own);
    }
    const filled = [...shards].map(([name, place]) => {
      const entries = Object.entries(place.shards).map(([shard, entry]): [string, ShardEntry] => [
        shard,
        { ...entry, ...ownedBy(place.egressIPs.get(shard) ?? [], allocations) },
      ]);
      return [name, sameRecord(last?.shards.get(name), Object.fromEntries(entries))] as const;
    });
    return { shardOf, placed: sameMap(last?.placed, placed), shards: new Map(filled) };
  }

  /** As rendezvousPick, which is a hash of every shard. */
  #pick(address: string, names: readonly string[]): string | undefined {
    const key = names.join();
    const picks = this.#picks.get(key) ?? new Map<string, string | undefined>();
    this.#picks.set(key, picks);
    let pick = picks.get(address);
    if (pick === undefined) {
      pick = rendezvousPick(address, names);
      picks.set(address, pick);
    }
    return pick;
  }
}

const emptyLists = ({ shards }: Pool): Map<string, string[]> =>
  new Map(Object.keys(shards).map((name): [string, string[]] => [name, []]));

function ownedBy(
  addresses: string[],
  allocations: PlannerMemory['allocations'],
): Pick<ShardEntry, 'egressIPs' | 'owners'> {
  const egressIPs = addresses.sort();
  const owners = Object.fromEntries(egressIPs.map((address) => [address, allocations[address]?.owner ?? '']));
  return { egressIPs, ...(egressIPs.length > 0 && { owners }) };
}

/** With the values of before that are equal; the map of before if all are. */
function sameMap<V>(before: ReadonlyMap<string, V> | undefined, now: Map<string, V>): Map<string, V> {
  if (before === undefined) return now;
  let same = before.size === now.size;
  for (const [key, value] of now) {
    const was = before.get(key);
    if (was !== undefined && sameJson(was, value)) now.set(key, was);
    else same = false;
  }
  return same ? (before as Map<string, V>) : now;
}
