/**
 * GatewayPlan → the gateway's links, addresses, routes, rules and sysctls, as values (design §5, §6). A shard is held
 * by the first gateway of its order: its next hops are put on the internal interface, its egress IPs on the external. Where the
 * gateways elect who holds it, addresses are the election's (mastership.ts).
 * Return routes lead a workload's addresses back to its node, through the tunnel or (Direct) on the inside segment: one
 * per pod CIDR of a node, and one per workload whose address lies in none of them.
 */
import { coverOf, formatPrefix, parseAddress } from '../api/address.ts';
import {
  GATEWAY_CHECKED_MARK,
  GATEWAY_PROHIBIT_MARK,
  GATEWAY_RESET_MARK,
  RULE_PRIORITY_EGRESS,
  RULE_PRIORITY_OTHERS,
  RULE_PRIORITY_OWN,
  RULE_PRIORITY_PROHIBIT,
  RULE_PRIORITY_RESET,
  RULE_PRIORITY_RETURN,
  RULE_PRIORITY_UNCHECKED,
  TABLE_GATEWAY_EGRESS,
  TABLE_GATEWAY_OWN,
  TABLE_GATEWAY_PROHIBIT,
  TABLE_GATEWAY_RESET,
  TABLE_GATEWAY_RETURN,
  TABLE_GATEWAY_UNCHECKED,
  TABLE_MAIN,
  TUNNEL_DEVICE,
  TUNNEL_MAC_GATEWAY,
  TUNNEL_MAC_NODE,
  TUNNEL_OVERHEAD,
  TUNNEL_PEER,
} from '../api/names.ts';
import {
  type Family,
  families,
  type GatewayPlan,
  type NodeEntry,
  type PoolSettings,
  type PoolVrrp,
  type ShardEntry,
  type WorkloadEntry,
} from '../api/plan.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { must } from '../api/result.ts';
import {
  type DesiredLink,
  type DeviceAddress,
  emptyNetState,
  type NetScope,
  type NetState,
  type Route,
  type Rule,
} from '../kernel/iproute.ts';

const hostLength = { 4: 32, 6: 128 } as const;
const familyOf = (address: string): Family => (address.includes(':') ? 6 : 4);

/** What of the machine is a gateway's to list and change. */
export const gatewayScope = (managed: NetScope['managed']): NetScope => ({
  links: [TUNNEL_DEVICE],
  managed,
  tables: [
    TABLE_GATEWAY_RETURN,
    TABLE_GATEWAY_EGRESS,
    TABLE_GATEWAY_UNCHECKED,
    TABLE_GATEWAY_RESET,
    TABLE_GATEWAY_PROHIBIT,
    TABLE_GATEWAY_OWN,
  ],
  rulePriorities: [[RULE_PRIORITY_RETURN, RULE_PRIORITY_UNCHECKED]],
  neighbourDevices: [TUNNEL_DEVICE],
});

export const isTunnelled = (pool: PoolSettings): boolean => pool.steering.mode === 'VXLAN';
/** The device by which workloads' packets come in, and replies to them go out. */
export const ingressOf = (pool: PoolSettings): string => (isTunnelled(pool) ? TUNNEL_DEVICE : pool.internalInterface);

export type Places = Pick<GatewayPlan, 'settings' | 'gateways' | 'nodes' | 'shards'>;

const underlayOf = (plan: Places, self: string): Family => familyOf(plan.gateways[self]?.internalAddress ?? '0.0.0.0');

/** All but the routes of single workloads. `underlayMtu`: of the internal interface; used where the plan names no MTU. */
export function compileNet(plan: Places, self: string, underlayMtu: number): NetState {
  if (!('pool' in plan.settings)) return emptyNetState();
  const pool = plan.settings.pool;
  const underlay = underlayOf(plan, self);
  const nodeRoutes = Object.values(plan.nodes).flatMap((node) =>
    node.podCIDRs.flatMap((prefix) => wayTo(plan, pool, self, node, prefix) ?? []),
  );
  const tunnel: DesiredLink = {
    name: TUNNEL_DEVICE,
    kind: 'vxlan-external',
    port: pool.steering.port,
    mac: TUNNEL_MAC_GATEWAY,
    mtu: pool.steering.mtu ?? underlayMtu - TUNNEL_OVERHEAD[underlay],
    up: true,
  };
  const links = isTunnelled(pool) ? [tunnel] : [];
  return {
    links,
    addresses: heldAddresses(plan, pool, self),
    routes: [...nodeRoutes, ...egressRoutes(pool)],
    rules: [...rules(pool), ...ownRules(plan)],
    neighbours: links.flatMap(({ name }) =>
      families.map((family) => ({ dev: name, address: TUNNEL_PEER[family], mac: TUNNEL_MAC_NODE })),
    ),
  };
}

export const electionOf = ({ settings }: Pick<GatewayPlan, 'settings'>): PoolVrrp | undefined =>
  'pool' in settings ? settings.pool.vrrp : undefined;

const noShards: ReadonlySet<string> = new Set();

/** Shards that this gateway holds. `elected`: those for which it was elected, where there is an election. */
export function heldShards(
  plan: Pick<GatewayPlan, 'settings' | 'shards'>,
  self: string,
  elected: ReadonlySet<string> = noShards,
): string[] {
  const isHeld = electionOf(plan)
    ? (name: string): boolean => elected.has(name)
    : (_: string, { order }: ShardEntry): boolean => order[0] === self;
  return Object.entries(plan.shards).flatMap(([name, shard]) => (isHeld(name, shard) ? [name] : []));
}

/** Link-local next hop of an elected shard, which advertisements of IPv6 list first. The same on all gateways. */
export const linkLocalHop = (vrid: number): string => `fe80::7:${vrid.toString(16)}`;
/** Virtual router of a shard: their names are `s` and a position. */
export const vridOf = ({ baseId }: PoolVrrp, shard: string): number => baseId + Number(shard.slice(1));

/** Of one shard, on whichever gateway. */
export function shardAddresses(pool: PoolSettings, name: string, shard: ShardEntry): DeviceAddress[] {
  const host = (dev: string, address: string): DeviceAddress => ({
    dev,
    address: `${address}/${hostLength[familyOf(address)]}`,
  });
  const local = pool.vrrp && shard.nextHops[6] ? [linkLocalHop(vridOf(pool.vrrp, name))] : [];
  const nextHops = families.flatMap((family) => shard.nextHops[family] ?? []);
  return [
    ...[...local, ...nextHops].map((address) => host(pool.internalInterface, address)),
    ...shard.egressIPs.map((address) => host(pool.externalInterface, address)),
  ];
}

/** Addresses that come and go with elections, and not with plans. */
export function electedAddresses({ settings, shards }: Pick<GatewayPlan, 'settings' | 'shards'>): DeviceAddress[] {
  if (!('pool' in settings) || settings.pool.vrrp === undefined) return [];
  const { pool } = settings;
  return Object.entries(shards).flatMap(([name, shard]) => shardAddresses(pool, name, shard));
}

function heldAddresses(plan: Places, pool: PoolSettings, self: string): DeviceAddress[] {
  if (pool.vrrp !== undefined) return [];
  return heldShards(plan, self).flatMap((name) => {
    const shard = plan.shards[name];
    return shard === undefined ? [] : shardAddresses(pool, name, shard);
  });
}

/** The way back to a destination on a node; undefined: there is none. */
function wayTo(
  plan: Places,
  pool: PoolSettings,
  self: string,
  node: NodeEntry,
  destination: string,
): Route | undefined {
  const family = familyOf(destination);
  // The tunnel carries both families through one; a next hop is of the packet's own.
  const wanted = isTunnelled(pool) ? underlayOf(plan, self) : family;
  const outer = node.addresses.find((address) => familyOf(address) === wanted);
  if (outer === undefined) return undefined;
  return {
    family,
    table: TABLE_GATEWAY_RETURN,
    type: 'unicast',
    destination,
    via: isTunnelled(pool) ? TUNNEL_PEER[family] : outer,
    dev: ingressOf(pool),
    onlink: true,
    ...(isTunnelled(pool) && { encap: { id: pool.steering.vni, destination: outer } }),
  };
}

/** The routes that a workload needs of its own: to addresses that its node's pod CIDRs do not cover. */
export function workloadRoutes(plan: Places, self: string): (workload: WorkloadEntry) => Route[] {
  if (!('pool' in plan.settings)) return () => [];
  const { pool } = plan.settings;
  const covered = new Map<string, PrefixSet>();
  const coveredBy = (name: string, { podCIDRs }: NodeEntry): PrefixSet => {
    let set = covered.get(name);
    if (set === undefined) {
      set = must(PrefixSet.parse(podCIDRs));
      covered.set(name, set);
    }
    return set;
  };
  return ({ node: name, addresses }) => {
    const node = plan.nodes[name];
    if (node === undefined) return [];
    const set = coveredBy(name, node);
    return addresses.flatMap((address) => {
      const parsed = parseAddress(address);
      if (!parsed.ok || set.has(parsed.value)) return [];
      return wayTo(plan, pool, self, node, `${address}/${hostLength[parsed.value.family]}`) ?? [];
    });
  };
}

/**
 * Workloads' packets go to the external router, whatever the machine's own default route is; unchecked ones nowhere;
 * of rejected ones TCP to the machine itself, to be reset, and the rest to an ICMP error.
 */
function egressRoutes(pool: PoolSettings): Route[] {
  return families.flatMap((family): Route[] => {
    const via = pool.externalGateway[family];
    const dev = pool.externalInterface;
    return [
      { family, table: TABLE_GATEWAY_UNCHECKED, type: 'blackhole', destination: 'default' },
      { family, table: TABLE_GATEWAY_RESET, type: 'local', destination: 'default', dev: 'lo' },
      { family, table: TABLE_GATEWAY_PROHIBIT, type: 'prohibit', destination: 'default' },
      // The tunnel loses a packet whose route does not say the other end. Without one no hook counts what is lost.
      isTunnelled(pool)
        ? {
            family,
            table: TABLE_GATEWAY_OWN,
            type: 'unicast',
            destination: 'default',
            via: TUNNEL_PEER[family],
            dev: TUNNEL_DEVICE,
            onlink: true,
          }
        : { family, table: TABLE_GATEWAY_OWN, type: 'blackhole', destination: 'default' },
      ...(via === undefined
        ? []
        : [{ family, table: TABLE_GATEWAY_EGRESS, type: 'unicast' as const, destination: 'default', via, dev }]),
    ];
  });
}

function rules(pool: PoolSettings): Rule[] {
  const mark = { value: GATEWAY_CHECKED_MARK, mask: GATEWAY_CHECKED_MARK };
  const rejected = (value: number): { value: number; mask: number } => ({ value, mask: 0xffffffff });
  const iif = ingressOf(pool);
  return families.flatMap((family): Rule[] => [
    // Answers, and whether a packet's source is where it came from, ask no further. What comes from workloads asks for no
    // way back to one.
    { family, priority: RULE_PRIORITY_RETURN, table: TABLE_GATEWAY_RETURN, not: true, iif },
    {
      family,
      priority: RULE_PRIORITY_EGRESS,
      table: pool.externalGateway[family] === undefined ? TABLE_MAIN : TABLE_GATEWAY_EGRESS,
      iif,
      mark,
    },
    { family, priority: RULE_PRIORITY_RESET, table: TABLE_GATEWAY_RESET, iif, mark: rejected(GATEWAY_RESET_MARK) },
    {
      family,
      priority: RULE_PRIORITY_PROHIBIT,
      table: TABLE_GATEWAY_PROHIBIT,
      iif,
      mark: rejected(GATEWAY_PROHIBIT_MARK),
    },
    { family, priority: RULE_PRIORITY_UNCHECKED, table: TABLE_GATEWAY_UNCHECKED, iif },
  ]);
}

/** Beyond as many prefixes some are left out: the kernel looks through all of them for what is among them. */
const OWN_RULES = 512;

/**
 * While our nftables table is gone, answers to workloads end at the machine itself, and it must not reset connections that go
 * on once the table is back: nothing of its own leaves as an egress IP (neighbour discovery asks no rules). Not TCP alone:
 * if one rule names a protocol, the kernel dissects every packet before it looks up its way
 * (fib_rules_require_fldissect, include/net/fib_rules.h). And not for the mark that the kernel looks up by whether a
 * packet from outside came the right way (deviceSysctls). The kernel asks that of each packet, as one that it would send
 * itself: where egress IPs are many prefixes, one rule spares all that is not among them the others.
 */
function ownRules({ shards }: Places): Rule[] {
  const addresses = must(PrefixSet.parse(Object.values(shards).flatMap(({ egressIPs }) => egressIPs)));
  const unchecked = { value: 0, mask: GATEWAY_CHECKED_MARK };
  return families.flatMap((family): Rule[] => {
    const prefixes = addresses.prefixes(family).slice(0, OWN_RULES);
    const own = prefixes.map((prefix) => ({
      family,
      priority: RULE_PRIORITY_OWN,
      table: TABLE_GATEWAY_OWN,
      iif: 'lo',
      from: formatPrefix(prefix),
      mark: unchecked,
    }));
    const around = prefixes.length > 1 ? coverOf(addresses.ranges(family)) : undefined;
    if (around === undefined || around.length === 0) return own;
    const others = { priority: RULE_PRIORITY_OTHERS, goto: RULE_PRIORITY_UNCHECKED, not: true as const };
    return [{ family, ...others, iif: 'lo', from: formatPrefix(around) }, ...own];
  });
}

/**
 * `tcp_loose` off: a segment in mid-stream makes no flow (it would be translated anew, and die). Accounting and
 * timestamps feed the records; events are made even while no listener is there, so that a restart misses no end.
 */
export const sysctls: Record<string, string> = {
  'net/ipv4/ip_forward': '1',
  'net/ipv6/conf/all/forwarding': '1',
  'net/netfilter/nf_conntrack_tcp_loose': '0',
  'net/netfilter/nf_conntrack_acct': '1',
  'net/netfilter/nf_conntrack_timestamp': '1',
  'net/netfilter/nf_conntrack_events': '1',
};
/** After the tunnel device exists: its packets come from anywhere. */
export const tunnelSysctls: Record<string, string> = {
  [`net/ipv4/conf/${TUNNEL_DEVICE}/rp_filter`]: '2',
  [`net/ipv4/conf/${TUNNEL_DEVICE}/forwarding`]: '1',
};

/**
 * Settings of devices. Where the kernel asks whether an answer came by the right interface, it looks up the way to its
 * source as a workload's packet would go, and that way is there only for packets with the mark: it is to look at it.
 */
export function deviceSysctls(pool: PoolSettings): Record<string, string> {
  return {
    [`net/ipv4/conf/${pool.externalInterface}/src_valid_mark`]: '1',
    ...(isTunnelled(pool) ? tunnelSysctls : {}),
  };
}
