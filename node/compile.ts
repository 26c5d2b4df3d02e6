/**
 * NodePlan → everything that the kernel must hold for it: nftables (ruleset.ts), the tunnel device, one `ip rule` and
 * one routing table per shard, sysctls (design §6). Pure: what it must know of the machine comes in as facts.
 * A node may have shards of both modes; the tunnel device is there if one is VXLAN.
 */
import {
  NODE_MARK_MASK,
  NODE_SHARDS_MAX,
  NODE_TABLE_BASE,
  RULE_PRIORITY_NODE,
  TUNNEL_DEVICE,
  TUNNEL_MAC_GATEWAY,
  TUNNEL_MAC_NODE,
  TUNNEL_OVERHEAD,
  TUNNEL_PEER,
} from '../api/names.ts';
import { type Family, families, type NodePlan, type NodeSettings, type NodeShardEntry } from '../api/plan.ts';
import { emptyNetState, type NetScope, type NetState, type Route } from '../kernel/iproute.ts';
import type { Ruleset } from '../kernel/nft.ts';
import { compileRuleset, familyOf, type SeenPlaces } from './ruleset.ts';

/** The device by which the machine reaches an address. */
export interface Underlay {
  device: string;
  /** net.ipv4.conf.DEVICE.rp_filter. */
  rpFilter: number;
}

export interface NodeFacts {
  /** Where workloads are; absent: that is not looked at. */
  places?: SeenPlaces;
  /** Addresses of workloads that went, of which there may still be flows. */
  leaving?: ReadonlySet<string>;
  workloadInterfaces: readonly string[];
  /** MTU of the device towards the next hops. */
  underlayMtu: number;
  /** net.ipv4.conf.all.rp_filter: the kernel takes the larger of it and the device's. */
  rpFilterAll: number;
  /** By next hop of a Direct shard; absent: no route leads there. */
  underlays: Readonly<Record<string, Underlay>>;
}

export interface NodeState {
  ruleset: Ruleset;
  net: NetState;
  /** Keys as in sysctl(8), with `/` between the parts. */
  sysctls: Record<string, string>;
}

/** Later than every route that we want, sooner than the main table: a vanished device never leaks. */
const BLACKHOLE_METRIC = 32767;

/** What of the machine is ours to list and change. */
export const nodeScope: NetScope = {
  links: [TUNNEL_DEVICE],
  managed: () => false,
  tables: Array.from({ length: NODE_SHARDS_MAX }, (_, i) => NODE_TABLE_BASE + 1 + i),
  rulePriorities: [[RULE_PRIORITY_NODE + 1, RULE_PRIORITY_NODE + NODE_SHARDS_MAX]],
  neighbourDevices: [TUNNEL_DEVICE],
};

/** The settings, or undefined: the controller does not know this node. */
export function settingsOf(plan: NodePlan): NodeSettings | undefined {
  return 'node' in plan.settings ? plan.settings.node : undefined;
}

/** The family of the tunnel's outer header: that of the gateways' inside addresses. */
export function outerFamily(plan: NodePlan): Family {
  const gateways = Object.values(plan.gateways);
  if (gateways.length === 0) return 4;
  return gateways.some(({ internalAddress }) => familyOf(internalAddress) === 4) ? 4 : 6;
}

export const isTunnelled = ({ mode }: NodeShardEntry): boolean => mode === 'VXLAN';

/** Next hops to which packets go as they are. */
export function directNextHops(plan: NodePlan): string[] {
  const direct = Object.values(plan.shards).filter((shard) => !isTunnelled(shard));
  return direct.flatMap(({ nextHops }) => families.flatMap((family) => nextHops[family] ?? []));
}

/** Where the tunnel's packets of a shard go. */
export function outerNextHop(shard: NodeShardEntry, outer: Family): string | undefined {
  return shard.nextHops[outer] ?? shard.nextHops[outer === 4 ? 6 : 4];
}

export function tunnelMtu(settings: NodeSettings, underlayMtu: number, outer: Family): number {
  return settings.mtu ?? underlayMtu - TUNNEL_OVERHEAD[outer];
}

export function compileNode(plan: NodePlan, settings: NodeSettings, facts: NodeFacts): NodeState {
  const seen = new Set<number>();
  for (const [key, { index, mode }] of Object.entries(plan.shards)) {
    if (mode !== 'VXLAN' && mode !== 'Direct') throw new Error(`shard ${key}: steering mode ${mode} is not known`);
    if (!Number.isInteger(index) || index < 1 || index > NODE_SHARDS_MAX || seen.has(index)) {
      throw new TypeError(`shard ${key}: index ${index} is out of range or twice there`);
    }
    seen.add(index);
  }
  const outer = outerFamily(plan);
  const mtu = tunnelMtu(settings, facts.underlayMtu, outer);
  const { workloadInterfaces, underlays, places, leaving = new Set<string>() } = facts;
  const found = { workloadInterfaces, places, leaving };
  return {
    ruleset: compileRuleset({ plan, settings, ...found, mtu, devicesOf: devicesOf(underlays) }),
    net: compileNet(plan, settings.port, mtu, outer, underlays),
    sysctls: {
      'net/ipv4/ip_forward': '1',
      'net/ipv6/conf/all/forwarding': '1',
      ...returnSysctls(plan, facts),
    },
  };
}

/** Replies come in by the device by which the packets left, with sources of the whole internet. */
function returnSysctls(plan: NodePlan, { rpFilterAll, underlays }: NodeFacts): Record<string, string> {
  const wanted: Record<string, string> = {};
  if (Object.values(plan.shards).some(isTunnelled)) {
    // Where `all` is strict, loose is the most to be had.
    wanted[`net/ipv4/conf/${TUNNEL_DEVICE}/rp_filter`] = rpFilterAll === 0 ? '0' : '2';
    wanted[`net/ipv6/conf/${TUNNEL_DEVICE}/disable_ipv6`] = '0';
  }
  for (const nextHop of directNextHops(plan)) {
    const underlay = underlays[nextHop];
    // Another's device: touched only where it is strict, which would hold unless the default route leads there too.
    if (underlay !== undefined && Math.max(rpFilterAll, underlay.rpFilter) === 1) {
      wanted[`net/ipv4/conf/${underlay.device}/rp_filter`] = '2';
    }
  }
  return wanted;
}

/** The devices by which a shard's packets may leave. */
function devicesOf(underlays: NodeFacts['underlays']): (shard: NodeShardEntry) => string[] {
  return (shard) => {
    if (isTunnelled(shard)) return [TUNNEL_DEVICE];
    const found = families.flatMap((family) => underlays[shard.nextHops[family] ?? '']?.device ?? []);
    return [...new Set(found)].sort();
  };
}

function compileNet(
  plan: NodePlan,
  port: number,
  mtu: number,
  outer: Family,
  underlays: NodeFacts['underlays'],
): NetState {
  const net = emptyNetState();
  if (Object.values(plan.shards).some(isTunnelled)) {
    net.links.push({ name: TUNNEL_DEVICE, kind: 'vxlan-external', port, mac: TUNNEL_MAC_NODE, mtu, up: true });
    for (const family of families) {
      net.neighbours.push({ dev: TUNNEL_DEVICE, address: TUNNEL_PEER[family], mac: TUNNEL_MAC_GATEWAY });
    }
  }
  for (const shard of Object.values(plan.shards)) {
    const table = NODE_TABLE_BASE + shard.index;
    const tunnelTo = isTunnelled(shard) ? outerNextHop(shard, outer) : undefined;
    for (const family of families) {
      net.rules.push({
        family,
        priority: RULE_PRIORITY_NODE + shard.index,
        table,
        mark: { value: shard.index, mask: NODE_MARK_MASK },
      });
      // No next hop of a family: the shard does not carry it, and its packets must not find another way.
      const own = shard.nextHops[family];
      if (tunnelTo !== undefined && own !== undefined) {
        net.routes.push(tunnelRoute(family, table, shard.vni, tunnelTo));
      } else if (own !== undefined && underlays[own] !== undefined) {
        const { device } = underlays[own];
        const destination = 'default';
        net.routes.push({ family, table, type: 'unicast', destination, via: own, dev: device, onlink: true });
      }
      net.routes.push({ family, table, type: 'blackhole', destination: 'default', metric: BLACKHOLE_METRIC });
    }
    // A tunnel's outer packet still carries the mark: without this it would loop into the tunnel. What else is for a
    // next hop itself goes there as the machine says.
    for (const nextHop of isTunnelled(shard) ? [tunnelTo] : Object.values(shard.nextHops)) {
      if (nextHop === undefined) continue;
      const family = familyOf(nextHop);
      net.routes.push({ family, table, type: 'throw', destination: `${nextHop}/${family === 4 ? 32 : 128}` });
    }
  }
  return net;
}

function tunnelRoute(family: Family, table: number, vni: number, nextHop: string): Route {
  return {
    family,
    table,
    type: 'unicast',
    destination: 'default',
    via: TUNNEL_PEER[family],
    dev: TUNNEL_DEVICE,
    onlink: true,
    encap: { id: vni, destination: nextHop },
  };
}
