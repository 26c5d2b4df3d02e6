/**
 * Destinations inside the cluster, for a GatewayPool that does not say them (design §3, `clusterCIDRs`): pod ranges and addresses
 * of the Nodes, the API servers (which need not be on Nodes), and what holds the cluster IPs of the Services. The range of Services is no object that anybody can read, so
 * it is taken as the smallest prefix that holds those that are there: it never reaches beyond the real range, and grows
 * with it. Kubernetes takes no range of more than 20 bits, so that two ranges far apart stay two.
 * Left out: addresses of pods that lie in no node's pod range (a CNI with an address plan of its own), which `unranged`
 * counts; ranges of load balancers, which are not only the cluster's.
 */
import { formatPrefix, parseAddress, parseRange, prefixRange, type Range } from '../../api/address.ts';
import type { EndpointSlice, Node, Service } from '../../api/kinds.ts';
import { LABEL_SERVICE_NAME } from '../../api/names.ts';
import { type Family, families } from '../../api/plan.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { stable } from '../../policy/admit.ts';
import { Memo } from './memo.ts';
import type { Objects } from './objects.ts';

export interface ClusterRanges {
  /** Canonical prefixes that do not overlap. */
  prefixes: string[];
  /** How many prefixes each source gave. */
  from: { pods: number; services: number /** And of API servers. */; nodes: number };
  /** Nodes without pod ranges, whose pods are in the prefixes only by chance. */
  unranged: string[];
  /** Addresses of nodes were too many to be listed one by one. */
  nodesLeftOut: boolean;
}

/** Of addresses of nodes that lie apart: every node and every gateway is told all of them. As many as can be listed by hand. */
export const NODE_PREFIXES_MAX = 256;
/** The kube-apiserver's bound of --service-cluster-ip-range. */
const SERVICE_BITS = 20n;
const width = { 4: 32, 6: 128 } as const;

/** `slices`: of namespace default, where the API servers are. */
export function clusterRanges(
  nodes: readonly Node[],
  services: readonly Service[],
  slices: readonly EndpointSlice[],
): ClusterRanges {
  const pods = PrefixSet.of(nodes.flatMap(({ spec }) => (spec?.podCIDRs ?? []).flatMap(rangeOf)));
  const clusterIPs = PrefixSet.of(serviceRanges(services));
  const own = nodes.flatMap(({ status }) =>
    (status?.addresses ?? []).flatMap(({ type, address }) => (type === 'InternalIP' ? rangeOf(address) : [])),
  );
  const apiServers = slices
    .filter(({ metadata }) => metadata.labels?.[LABEL_SERVICE_NAME] === 'kubernetes')
    .flatMap(({ endpoints }) => endpoints.flatMap(({ addresses }) => addresses.flatMap(rangeOf)));
  const servers = PrefixSet.of(apiServers);
  const addresses = PrefixSet.of(own).exclude(pods).exclude(clusterIPs);
  const nodesLeftOut = textsOf(addresses).length > NODE_PREFIXES_MAX;
  const counted = nodesLeftOut ? PrefixSet.empty : addresses;
  return {
    prefixes: textsOf(pods.union(clusterIPs).union(counted).union(servers)),
    from: {
      pods: textsOf(pods).length,
      services: textsOf(clusterIPs).length,
      nodes: textsOf(counted.union(servers)).length,
    },
    unranged: nodes.filter(({ spec }) => (spec?.podCIDRs ?? []).length === 0).map(({ metadata }) => metadata.name),
    nodesLeftOut,
  };
}

/** Looked for while a GatewayPool asks for it; the same while nothing in it changed. */
export class ClusterRangesIndex {
  readonly #memo = new Memo<ClusterRanges>();

  look({ GatewayPool: pools, Node: nodes, Service: services, namespaces }: Objects): ClusterRanges | undefined {
    if (pools.every(({ spec }) => spec.clusterCIDRs !== undefined)) return undefined;
    const slices = namespaces.get('default')?.endpointSlices ?? nothing;
    return this.#memo.get([nodes, services, slices], (last) => stable(last, clusterRanges(nodes, services, slices)));
  }
}

const nothing: readonly never[] = [];

/** A status is no place for thousands. */
const SHOWN = 256;

/** For a status: what was found, and what to list by hand. */
export const rangesFacts = (ranges: ClusterRanges): Record<string, unknown> => ({
  clusterCIDRs: ranges.prefixes.slice(0, SHOWN),
  clusterCIDRsFound: rangesText(ranges),
});

function rangesText({ prefixes, from, unranged, nodesLeftOut }: ClusterRanges): string {
  const parts = [`${from.pods} of pods, ${from.services} of Services, ${from.nodes} of nodes`];
  if (prefixes.length === 0) parts.push('nothing is known of the cluster: traffic inside it is steered as well');
  const [first, ...others] = unranged;
  if (first !== undefined) {
    const who = others.length === 0 ? first : `${first} and ${others.length} more`;
    parts.push(`no pod ranges of ${who}: list the addresses of their pods in clusterCIDRs`);
  }
  if (nodesLeftOut)
    parts.push(`addresses of nodes are more than ${NODE_PREFIXES_MAX} prefixes: list them in clusterCIDRs`);
  return parts.join('; ');
}

/** The smallest prefix that holds all cluster IPs of one block. */
function serviceRanges(services: readonly Service[]): Range[] {
  const blocks = new Map<string, { family: Family; first: bigint; last: bigint }>();
  for (const { spec } of services) {
    // `None` is no address.
    for (const text of spec?.clusterIPs ?? []) {
      const address = parseAddress(text);
      if (!address.ok) continue;
      const { family, value } = address.value;
      const key = `${family} ${value >> SERVICE_BITS}`;
      const block = blocks.get(key);
      if (block === undefined) blocks.set(key, { family, first: value, last: value });
      else {
        if (value < block.first) block.first = value;
        if (value > block.last) block.last = value;
      }
    }
  }
  return [...blocks.values()].map(({ family, first, last }) => {
    const bits = BigInt((first ^ last).toString(2).length - (first === last ? 1 : 0));
    const value = (first >> bits) << bits;
    return prefixRange({ family, value, length: width[family] - Number(bits) });
  });
}

/** What a Node says may be a name, and is none then. */
function rangeOf(text: string): Range[] {
  const range = parseRange(text.replace(/%.*$/, ''));
  return range.ok ? [range.value] : [];
}

const textsOf = (set: PrefixSet): string[] => families.flatMap((family) => set.prefixes(family).map(formatPrefix));
