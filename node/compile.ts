/**
 * NodePlan → everything that the kernel must hold for it: nftables (ruleset.ts), the tunnel device, one `ip rule` and
 * one routing table per shard, sysctls (design §6). Pure: what it must know of the machine comes in as facts.
 * Left out: Direct mode, refused by name.
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
import { compileRuleset, familyOf } from './ruleset.ts';

export interface NodeFacts {
  workloadInterfaces: readonly string[];
  /** MTU of the device towards the next hops. */
  underlayMtu: number;
  /** net.ipv4.conf.all.rp_filter: the kernel takes the larger of it and the device's. */
  rpFilterAll: number;
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
    if (mode !== 'VXLAN') throw new Error(`shard ${key}: steering mode ${mode} is not carried out yet`);
    if (!Number.isInteger(index) || index < 1 || index > NODE_SHARDS_MAX || seen.has(index)) {
      throw new TypeError(`shard ${key}: index ${index} is out of range or twice there`);
    }
    seen.add(index);
  }
  const outer = outerFamily(plan);
  const mtu = tunnelMtu(settings, facts.underlayMtu, outer);
  return {
    ruleset: compileRuleset({ plan, settings, workloadInterfaces: facts.workloadInterfaces, mtu }),
    net: compileNet(plan, settings.port, mtu, outer),
    sysctls: {
      'net/ipv4/ip_forward': '1',
      'net/ipv6/conf/all/forwarding': '1',
      // Sources of packets from the tunnel are the whole internet. Where `all` is strict, loose is the most to be had.
      [`net/ipv4/conf/${TUNNEL_DEVICE}/rp_filter`]: facts.rpFilterAll === 0 ? '0' : '2',
      [`net/ipv6/conf/${TUNNEL_DEVICE}/disable_ipv6`]: '0',
    },
  };
}

function compileNet(plan: NodePlan, port: number, mtu: number, outer: Family): NetState {
  const net = emptyNetState();
  net.links.push({ name: TUNNEL_DEVICE, kind: 'vxlan-external', port, mac: TUNNEL_MAC_NODE, mtu, up: true });
  for (const family of families) {
    net.neighbours.push({ dev: TUNNEL_DEVICE, address: TUNNEL_PEER[family], mac: TUNNEL_MAC_GATEWAY });
  }
  for (const shard of Object.values(plan.shards)) {
    const table = NODE_TABLE_BASE + shard.index;
    const nextHop = outerNextHop(shard, outer);
    for (const family of families) {
      net.rules.push({
        family,
        priority: RULE_PRIORITY_NODE + shard.index,
        table,
        mark: { value: shard.index, mask: NODE_MARK_MASK },
      });
      // No next hop of a family: the shard does not carry it, and its packets must not find another way.
      if (nextHop !== undefined && shard.nextHops[family] !== undefined) {
        net.routes.push(tunnelRoute(family, table, shard.vni, nextHop));
      }
      net.routes.push({ family, table, type: 'blackhole', destination: 'default', metric: BLACKHOLE_METRIC });
    }
    // The outer packet still carries the mark: without this it would loop into the tunnel.
    if (nextHop !== undefined) {
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
