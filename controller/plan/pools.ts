/**
 * Gateway pools: which namespaces each carries, its gateways, and its shards with their numbers and next hops.
 * Shards are named by position in `nextHops` (`s0`, `s1`, …). Age decides between two pools that want the same
 * namespace, the same gateway, the same address on the inside, the same virtual router, or different ports for the one tunnel
 * device that a node has.
 */
import { formatAddress, parseRange, type Range } from '../../api/address.ts';
import { type GatewayPool, type Namespace, objectKey } from '../../api/kinds.ts';
import { LABEL_MODE, LABEL_NAMESPACE_NAME, NODE_SHARDS_MAX } from '../../api/names.ts';
import { families, type GatewayEntry, type PerFamily, type PoolSettings, type ShardEntry } from '../../api/plan.ts';
import { matches } from '../../policy/selector.ts';
import type { Findings } from './condition.ts';
import { type Member, rendezvousOrder } from './rendezvous.ts';

/** Labels with the one that the API server sets by itself, which a manifest on disk may lack or forge. */
export function labelsOf({ metadata }: Namespace): Record<string, string> {
  return { ...metadata.labels, [LABEL_NAMESPACE_NAME]: metadata.name };
}

export interface Pool {
  name: string;
  object: GatewayPool;
  settings: PoolSettings;
  /** Without what gateways report of themselves, until it is looked at. */
  gateways: Record<string, GatewayEntry>;
  /** Without `egressIPs`, until addresses are allocated. */
  shards: Record<string, ShardEntry>;
  namespaces: string[];
  /** Of these, those whose whole policy is in audit. */
  audited: string[];
}

/** What a namespace's label says of its own; undefined: a word that is neither, which changes nothing. */
export function modeOf(namespace: Namespace): 'Enforce' | 'Audit' | undefined {
  const mode = labelsOf(namespace)[LABEL_MODE] ?? 'Enforce';
  return mode === 'Enforce' || mode === 'Audit' ? mode : undefined;
}

const field = { 4: 'v4', 6: 'v6' } as const;

/**
 * `pools` oldest first. The numbers in `indices` are kept; the second result has the new ones as well. `found`: ranges of the
 * cluster, for pools that do not list them.
 */
export function poolsOf(
  objects: readonly GatewayPool[],
  namespaces: readonly Namespace[],
  indices: Readonly<Record<string, number>>,
  findings: Findings,
  found: readonly string[] = [],
): { pools: Pool[]; poolOfNamespace: Map<string, Pool>; indices: Record<string, number> } {
  const pools: Pool[] = [];
  const poolOfNamespace = new Map<string, Pool>();
  const poolOfGateway = new Map<string, string>();
  /** Addresses on the inside, which two cannot have. */
  const inside = new Map<string, string>();
  /** VRIDs, of which two on a link would be one. */
  const routers = new Map<number, string>();
  const numbers = new ShardNumbers(indices);
  for (const object of objects) {
    const key = objectKey(object);
    const { spec } = object;
    const name = object.metadata.name;
    const settings = settingsOf(object, found);
    const first = tunnelled(settings) ? pools.find((pool) => tunnelled(pool.settings)) : undefined;
    if (first !== undefined && first.settings.steering.port !== settings.steering.port) {
      // Not refused: that would withdraw a pool for the sake of one number.
      settings.steering.port = first.settings.steering.port;
      const message = `steering.port is ${settings.steering.port}, that of the older GatewayPool ${first.name}`;
      findings.conflict(key, 'TunnelPort', message);
    }
    const hops = nextHopsOf(object, findings);
    if (hops === undefined) continue;
    for (const address of hops.flatMap((one) => Object.values(one))) {
      const other = inside.get(address);
      if (other === undefined) inside.set(address, `a next hop of GatewayPool ${name}`);
      else findings.conflict(key, 'InsideAddressTaken', `nextHops: ${address} is ${other}`);
    }
    for (const [position] of settings.vrrp === undefined ? [] : hops.entries()) {
      const id = (settings.vrrp?.baseId ?? 0) + position;
      const other = routers.get(id);
      if (other === undefined) routers.set(id, name);
      else if (other !== name) {
        const message = `vrrp.baseId: virtual router ${id} is GatewayPool ${other}'s, too`;
        findings.conflict(key, 'VirtualRouterTaken', message);
        break;
      }
    }
    const members: Member[] = [];
    const gateways: Record<string, GatewayEntry> = {};
    for (const gateway of spec.gateways) {
      const other = poolOfGateway.get(gateway.name);
      if (other !== undefined) {
        findings.conflict(key, 'GatewayTaken', `gateway ${gateway.name} belongs to GatewayPool ${other}`);
        continue;
      }
      poolOfGateway.set(gateway.name, name);
      const taken = inside.get(gateway.internalAddress);
      if (taken !== undefined)
        findings.conflict(key, 'InsideAddressTaken', `gateways: ${gateway.internalAddress} is ${taken}`);
      else inside.set(gateway.internalAddress, `internalAddress of gateway ${gateway.name} of GatewayPool ${name}`);
      members.push({ name: gateway.name, weight: gateway.weight ?? 1 });
      gateways[gateway.name] = { internalAddress: gateway.internalAddress, addresses: [gateway.internalAddress] };
    }
    const shards: Record<string, ShardEntry> = {};
    hops.forEach((nextHops, position) => {
      const shard = `s${position}`;
      const index = numbers.take(`${name}/${shard}`);
      if (index === undefined) {
        findings.refuse(
          key,
          'TooManyShards',
          `all pools together may have ${NODE_SHARDS_MAX} shards; ${shard} has none`,
        );
        return;
      }
      shards[shard] = { index, nextHops, order: rendezvousOrder(`${name}/${shard}`, members), egressIPs: [] };
    });
    const pool: Pool = { name, object, settings, gateways, shards, namespaces: [], audited: [] };
    for (const namespace of namespaces) {
      const { metadata } = namespace;
      if (!matches(spec.namespaceSelector, labelsOf(namespace))) continue;
      const other = poolOfNamespace.get(metadata.name);
      if (other === undefined) {
        poolOfNamespace.set(metadata.name, pool);
        pool.namespaces.push(metadata.name);
        // The pool's own mode covers all: a label can only add to it.
        if (spec.mode === 'Audit' || modeOf(namespace) === 'Audit') pool.audited.push(metadata.name);
      } else {
        findings.conflict(key, 'NamespaceTaken', `namespace ${metadata.name} is carried by GatewayPool ${other.name}`);
      }
    }
    pools.push(pool);
  }
  return { pools, poolOfNamespace, indices: numbers.all() };
}

/** A node has one tunnel device, so that all tunnels have one port. */
export const tunnelled = ({ steering }: PoolSettings): boolean => steering.mode === 'VXLAN';

function settingsOf({ metadata, spec }: GatewayPool, found: readonly string[]): PoolSettings {
  const { external, internal } = spec.interfaces;
  const externalGateway: PerFamily<string> = {};
  for (const family of families) {
    const router = external.gateway?.[field[family]];
    if (router !== undefined) externalGateway[family] = router;
  }
  return {
    pool: metadata.name,
    defaultAction: spec.defaultAction ?? 'Drop',
    unassigned: spec.unassigned ?? 'Bypass',
    internalInterface: internal,
    externalInterface: external.name,
    externalGateway,
    steering: {
      mode: spec.steering.mode,
      vni: spec.steering.vni,
      port: spec.steering.port,
      mtu: spec.steering.mtu ?? null,
    },
    clusterCIDRs: [...(spec.clusterCIDRs ?? found)],
    excludedCIDRs: [...(spec.excludedCIDRs ?? [])],
    ...dnsOf(spec),
    ...inspectionOf(spec),
    ...vrrpOf(spec),
  };
}

function vrrpOf({ vrrp }: GatewayPool['spec']): Pick<PoolSettings, 'vrrp'> {
  if (vrrp === undefined) return {};
  const { baseId, advertIntervalMs, failback, failbackDelaySeconds } = vrrp;
  const failbackDelayMs = failback === 'Delayed' ? failbackDelaySeconds * 1000 : 0;
  return { vrrp: { baseId, advertIntervalMs, failback, failbackDelayMs } };
}

/** Without what is not said, or said as it is anyway. */
function dnsOf({ dns }: GatewayPool['spec']): Pick<PoolSettings, 'dns'> {
  if (dns === undefined) return {};
  return { dns: { resolvers: [...dns.resolvers].sort(), ...(dns.strict === true && { strict: true }) } };
}

function inspectionOf({ inspection }: GatewayPool['spec']): Pick<PoolSettings, 'inspection'> {
  const { workers, onOverload } = inspection ?? {};
  if (workers === undefined && onOverload !== 'Accept') return {};
  return { inspection: { ...(workers !== undefined && { workers }), ...(onOverload === 'Accept' && { onOverload }) } };
}

/** One entry a shard. A pool may have next hops of one family only; the tunnel carries both through them. */
function nextHopsOf(object: GatewayPool, findings: Findings): PerFamily<string>[] | undefined {
  const key = objectKey(object);
  const lists: PerFamily<string[]> = {};
  for (const family of families) {
    const list: string[] = [];
    for (const text of object.spec.nextHops[field[family]] ?? []) {
      const range = parseRange(text);
      if (!range.ok || range.value.family !== family) {
        findings.refuse(key, 'BadNextHop', `nextHops.${field[family]}: ${text} is no IPv${family} range`);
        return undefined;
      }
      list.push(...addressesOf(range.value, NODE_SHARDS_MAX + 1 - list.length));
    }
    if (list.length > 0) lists[family] = list;
  }
  const counts = families.flatMap((family) => lists[family]?.length ?? []);
  const [count] = counts;
  if (count === undefined || counts.some((other) => other !== count) || count > NODE_SHARDS_MAX) {
    findings.refuse(
      key,
      'NextHopCount',
      `nextHops need 1 to ${NODE_SHARDS_MAX} addresses, as many v4 as v6 where there are both; got ${counts.join(' and ')}`,
    );
    return undefined;
  }
  return Array.from({ length: count }, (_, position) => {
    const hops: PerFamily<string> = {};
    for (const family of families) {
      const hop = lists[family]?.[position];
      if (hop !== undefined) hops[family] = hop;
    }
    return hops;
  });
}

function addressesOf(range: Range, limit: number): string[] {
  const list: string[] = [];
  for (let value = range.first; value <= range.last && list.length < limit; value++) {
    list.push(formatAddress({ family: range.family, value }));
  }
  return list;
}

/**
 * Numbers of shards, unique among all pools. A number is a mark in the nodes' connection tables, so that of a shard
 * that is gone is given to another only when there is no fresh one.
 */
class ShardNumbers {
  readonly #known: Map<string, number>;
  readonly #inUse = new Map<string, number>();

  constructor(known: Readonly<Record<string, number>>) {
    this.#known = new Map(Object.entries(known).filter(([, index]) => index >= 1 && index <= NODE_SHARDS_MAX));
  }

  take(shard: string): number | undefined {
    const index = this.#known.get(shard) ?? this.#fresh();
    if (index === undefined) return undefined;
    this.#known.set(shard, index);
    this.#inUse.set(shard, index);
    return index;
  }

  #fresh(): number | undefined {
    const taken = new Set(this.#known.values());
    for (let index = 1; index <= NODE_SHARDS_MAX; index++) if (!taken.has(index)) return index;
    // Shards of pools that come later in this run may lose their number here; more than 253 is an error anyway.
    for (const [shard, index] of this.#known) {
      if (this.#inUse.has(shard)) continue;
      this.#known.delete(shard);
      return index;
    }
    return undefined;
  }

  all(): Record<string, number> {
    return Object.fromEntries(this.#known);
  }
}
