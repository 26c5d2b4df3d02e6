/**
 * What is known of the gateways and nodes: connected or not, the plan that each said it has in force, and the
 * addresses that each calls its own.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import type { GatewayPlan, NodePlan, ShardEntry } from '../../api/plan.ts';

export interface Peer<P> {
  connected: boolean;
  /** The machine's own addresses, as its hello named them. */
  addresses: string[];
  /** Generation that was acknowledged last; 0: none that we know. */
  generation: number;
  /** The plan of that generation; absent if the controller no longer has it (restart). */
  inForce?: P;
  /** Why the newest plan could not be applied. */
  error?: string;
}

export interface Peers {
  gateways: ReadonlyMap<string, Peer<GatewayPlan>>;
  nodes: ReadonlyMap<string, Peer<NodePlan>>;
}

/**
 * The gateways that must know what is led to a shard: the one that holds it. Where the gateways elect who does, all that are
 * there: each may be it, and what one that is away does not know of it drops. None of them there: the first.
 */
export function holdersOf(
  { settings, shards }: Pick<GatewayPlan, 'settings' | 'shards'>,
  shard: string,
  { gateways }: Peers,
): string[] {
  const { order = [] }: Partial<ShardEntry> = shards[shard] ?? {};
  const first = order.slice(0, 1);
  if (!('pool' in settings) || settings.pool.vrrp === undefined) return first;
  const there = order.filter((name) => gateways.get(name)?.connected);
  return there.length === 0 ? first : there;
}

/** Whether a gateway knows that it holds the shard, or may come to. */
export const knowsToHold = (plan: GatewayPlan, shard: string, gateway: string): boolean => {
  const { order = [] }: Partial<ShardEntry> = plan.shards[shard] ?? {};
  const elects = 'pool' in plan.settings && plan.settings.pool.vrrp !== undefined;
  return elects ? order.includes(gateway) : order[0] === gateway;
};

export const noPeers = (): Peers => ({ gateways: new Map(), nodes: new Map() });

/** More addresses than a machine has; the hello is another machine's word. */
const MAX_OWN_ADDRESSES = 256;

/**
 * A gateway's own addresses: what it reported last, canonical and sorted, without what the plan itself puts there
 * (egress IPs and next hops are on its interfaces too, and would come and go with the shards).
 */
export function ownAddressesOf(
  remembered: Readonly<Record<string, string[]>>,
  peers: Peers,
  isPlanned: (address: string) => boolean,
): Record<string, string[]> {
  const result: Record<string, string[]> = { ...remembered };
  for (const [name, peer] of peers.gateways) {
    if (!peer.connected) continue;
    const addresses = new Set<string>();
    for (const text of peer.addresses.slice(0, MAX_OWN_ADDRESSES)) {
      const parsed = parseAddress(text);
      if (!parsed.ok || isLocal(text)) continue;
      const address = formatAddress(parsed.value);
      if (!isPlanned(address)) addresses.add(address);
    }
    result[name] = [...addresses].sort();
  }
  return result;
}

const isLocal = (address: string): boolean => /^(127\.|169\.254\.|fe[89ab][0-9a-f]:|::1$)/i.test(address);
