/**
 * The lab's topology with a real cluster in it: `ctl` is the control plane, `node-a` and `node-b` are nodes whose pods a kubelet
 * makes, and a way out for nodes that Sluice does not know of leads to the firewall, so that it sees what leaks. The programs
 * of Sluice that stand on these three are pods; the lab makes their certificates.
 */
import { defaultTopology, type Host, type Link, type Topology } from '../../lab/topology.ts';

export interface Node {
  name: string;
  addresses: readonly [v4: string, v6: string];
  podCIDRs: readonly [v4: string, v6: string];
}

export const nodes: readonly Node[] = [
  { name: 'node-a', addresses: ['10.0.0.21', 'fd00:10::21'], podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'] },
  { name: 'node-b', addresses: ['10.0.0.22', 'fd00:10::22'], podCIDRs: ['10.244.2.0/24', 'fd00:244:2::/64'] },
];
export const CONTROL_PLANE = '10.0.0.10';
export const GATEWAYS = ['gw-a', 'gw-b', 'gw-c'];
/** Of the Service `sluice-controller`: gateways ask one of the nodes, which may pass it on to another. */
export const NODE_PORT = 30790;
const controller = `https://${nodes[0]?.addresses[0]}:${NODE_PORT}`;

/** Of the other nodes' pods, by these nodes. */
const podRoutes = (others: readonly Node[]): string[] =>
  others.flatMap(({ addresses, podCIDRs }) => podCIDRs.map((cidr, i) => `${cidr} via ${addresses[i]}`));

const routerInside: Link = { name: 'inside', to: 'sw', bridge: 'inside', addresses: ['10.0.0.1/24', 'fd00:10::1/64'] };

/** The CNI's part: what leaves the cluster has the node's address. Services are kube-proxy's. */
const masquerade = ({ podCIDRs }: Node): string => `
table inet cni {
  chain off_cluster {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${podCIDRs[0]} ip daddr != { 10.244.0.0/16, 10.96.0.0/12, 10.0.0.0/24 } masquerade
    ip6 saddr ${podCIDRs[1]} ip6 daddr != { fd00:244::/32, fd00:96::/112, fd00:10::/64 } masquerade
  }
}`;

function clusterNode(host: Host, node: Node): Host {
  const { bridges: _, ...rest } = host;
  return {
    ...rest,
    routes: [...podRoutes(nodes.filter((other) => other !== node)), 'default via 10.0.0.1', '::/0 via fd00:10::1'],
    // kube-proxy needs to see what pods of one bridge send to a Service.
    sysctls: { ...host.sysctls, 'bridge.bridge-nf-call-iptables': '1', 'bridge.bridge-nf-call-ip6tables': '1' },
    nft: masquerade(node),
  };
}

function inCluster(host: Host): Host {
  const node = nodes.find(({ name }) => name === host.name);
  if (node !== undefined) return clusterNode(host, node);
  if (host.name === 'ctl') return { ...host, routes: podRoutes(nodes) };
  if (host.name === 'fw')
    return {
      ...host,
      links: [...(host.links ?? []), routerInside],
      routes: [...(host.routes ?? []), ...podRoutes(nodes)],
    };
  if (GATEWAYS.includes(host.name)) return { ...host, programs: [{ kind: 'gateway', controller }] };
  return host;
}

export const clusterTopology: Topology = {
  ...defaultTopology,
  hosts: defaultTopology.hosts.filter(({ about }) => !about.startsWith('pod ')).map(inCluster),
};
