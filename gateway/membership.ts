/**
 * Who and what is there, as sets and maps of the gateway's table (design §5): a workload that comes or goes is some
 * elements, whatever else there is. Pure.
 */
import { formatAddress, parseAddress } from '../api/address.ts';
import { GATEWAY_CHECKED_MARK } from '../api/names.ts';
import { type Family, families, type GatewayPlan, type PoolSettings, type WorkloadEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { must } from '../api/result.ts';
import { concat, markText, type NftSet, rangeText, rawText } from '../kernel/nft.ts';
import { isTunnelled } from './compile-net.ts';
import { addressType, header, perFamily } from './destination-sets.ts';
import { noEgressMark } from './marks.ts';
import { type SourceNat, sourceHeads, WORKLOADS_MAX } from './source-nat.ts';
import type { EachElement, SetHead } from './table.ts';

/** Where in a tunnel packet (bits from the UDP header on) the inner source lies: UDP 8, VXLAN 8, Ethernet 14 bytes. */
export const innerSource = { 4: '@th,336,32', 6: '@th,304,128' } as const;
export const innerType = '@th,224,16';
export const etherType = { 4: '0x0800', 6: '0x86dd' } as const;
/** The VNI and the reserved byte behind it, zero in what the kernel takes: 32 aligned bits compare fastest. */
export const vni = '@th,96,32';
export const vniText = (pool: PoolSettings): string => rawText(BigInt(pool.steering.vni) << 8n);
/**
 * One look-up instead of comparisons: each expression costs a packet about as much as the next. Not the port: what a node
 * sends elsewhere in just this form gains nothing by it that the node could not do anyway. An inner IPv4 source lies across
 * two words, and two halves that are aligned are loaded faster than one whole that is not (nft_payload_fast_eval); of IPv6
 * they would be five, and nft prints no set whose key has more than four parts of this kind.
 */
export const heldKey = (outer: Family, inner: Family): string =>
  `${header[outer]} saddr . ${vni} . ${inner === 4 ? '@th,336,16 . @th,352,16' : innerSource[6]}`;
const heldSource = (family: Family, value: bigint): string =>
  family === 4 ? concat(rawText(value >> 16n), rawText(value & 0xffffn)) : rawText(value);

/** What is checked has: of who is held by whom. */
const checkedMark = markText(GATEWAY_CHECKED_MARK);

export const familyOf = (address: string): Family => (address.includes(':') ? 6 : 4);

/** Made once: there is hardly anything that a first load does as often as to name a set. */
const workloadSetNames = perFamily((family) => ({
  group: `group${family}`,
  known: `known${family}`,
  held: perFamily((outer) => `held${outer}${family}`),
}));

/** The sets of workloads. `known`, `held`: for what comes through the tunnel. */
export function workloadSets(pool: PoolSettings): Record<string, SetHead> {
  const sets = sourceHeads();
  const tunnelled = isTunnelled(pool);
  for (const family of families) {
    const type = addressType[family];
    const { group, known, held } = workloadSetNames[family];
    sets[group] = { type, value: 'mark', size: WORKLOADS_MAX };
    if (!tunnelled) continue;
    sets[known] = { type: { typeof: innerSource[family] } };
    for (const outer of families)
      sets[held[outer]] = { type: { typeof: heldKey(outer, family) }, value: 'mark', size: WORKLOADS_MAX };
  }
  return sets;
}

export interface Sender {
  workload: WorkloadEntry;
  /** Those of its addresses that are its own (sources.ts). */
  addresses: readonly string[];
  /** Of its group, as text. */
  mark: string;
  /** Its node's addresses. */
  outer: readonly string[];
}

/** Says the elements that one workload has in workloadSets(). */
export type TellWorkload = (sender: Sender, each: EachElement) => void;

/**
 * `nat`: of the plan's EgressIPs.
 * Two workloads have no element in common, since no two own one address.
 */
export function workloadElements(pool: PoolSettings, nat: SourceNat): TellWorkload {
  const tunnel = isTunnelled(pool) ? vniText(pool) : undefined;
  return ({ workload, addresses, mark, outer }, each) => {
    for (const address of addresses) {
      const parsed = parseAddress(address);
      if (!parsed.ok) continue;
      const { family, value } = parsed.value;
      const { group, known, held } = workloadSetNames[family];
      const leaves = nat.elementsOf(workload, address, family, each);
      each(group, address, leaves ? mark : noEgressMark);
      if (tunnel === undefined) continue;
      each(known, rawText(value), '');
      const source = heldSource(family, value);
      for (const node of outer) each(held[familyOf(node)], concat(node, tunnel, source), checkedMark);
    }
  };
}

type Places = Pick<GatewayPlan, 'nodes' | 'shards' | 'gateways'>;

/** Sets of what is not a workload. */
export function placeSets(plan: Places, pool: PoolSettings): Record<string, NftSet> {
  const { nodes, shards } = plan;
  const sets: Record<string, NftSet> = {};
  const hairpin = hairpinAddresses(plan);
  const cluster = clusterRanges(pool);
  for (const family of families) {
    const type = addressType[family];
    const of = (addresses: Iterable<string>): NftSet => {
      const elements = new Map<string, string>();
      for (const address of addresses) if (familyOf(address) === family) elements.set(address, '');
      return { type, elements };
    };
    if (isTunnelled(pool)) sets[`nodes${family}`] = of(Object.values(nodes).flatMap(({ addresses }) => addresses));
    sets[`egress${family}`] = of(Object.values(shards).flatMap((shard) => shard.egressIPs));
    sets[`hairpin${family}`] = of(hairpin);
    const elements = new Map(textsOf(cluster, family).map((text) => [text, '']));
    sets[`cluster${family}`] = { type, interval: true, elements };
  }
  return sets;
}

/** Destinations that are refused to every workload as `hairpin`, each once. */
export const hairpinAddresses = ({ shards, gateways }: Omit<Places, 'nodes'>): Set<string> =>
  new Set([
    ...Object.values(shards).flatMap(({ egressIPs, nextHops }) => [...egressIPs, ...Object.values(nextHops)]),
    ...Object.values(gateways).flatMap(({ internalAddress, addresses }) => [internalAddress, ...addresses]),
  ]);

export function newHairpins(before: Omit<Places, 'nodes'>, after: Omit<Places, 'nodes'>): Set<string> {
  const refused = hairpinAddresses(after);
  for (const address of hairpinAddresses(before)) refused.delete(address);
  return refused;
}

/** And those as `cluster-destination`. */
export const clusterRanges = ({ clusterCIDRs, excludedCIDRs }: PoolSettings): PrefixSet =>
  must(PrefixSet.parse([...clusterCIDRs, ...excludedCIDRs]));

/** As ranges that do not overlap, which an interval set wants. */
function textsOf(prefixes: PrefixSet, family: Family): string[] {
  const text = (value: bigint): string => formatAddress({ family, value });
  return prefixes.ranges(family).map(({ first, last }) => rangeText(text(first), text(last)));
}

/** Nodes whose workloads' packets come from other addresses now. */
export function movedNodes(before: GatewayPlan['nodes'], after: GatewayPlan['nodes']): Set<string> {
  const moved = new Set<string>();
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    if (!sameJson(before[name]?.addresses ?? [], after[name]?.addresses ?? [])) moved.add(name);
  }
  return moved;
}
