/**
 * Topologies as data: hosts (one network namespace each), the bridges and links between them, and the programs that
 * run in them. The default one is design §10's; another is a value of the same type. How a host's world is made out
 * of this is render.ts, what a program's command line is, programs.ts. All addresses are of documentation ranges.
 */

export interface Bridge {
  name: string;
  addresses: string[];
  /** Ports can talk to the bridge's own host only (pods: all traffic between them is routed, as with most CNIs). */
  isolated?: boolean;
}

/** A veth pair: `name` in the host, the other end a port of `bridge` in host `to`. */
export interface Link {
  name: string;
  to: string;
  bridge: string;
  /** With prefix length. */
  addresses: string[];
}

export type Program =
  | { kind: 'controller'; listen: string; addresses: string[] }
  | { kind: 'gateway'; controller: string }
  | { kind: 'node'; controller: string; workloadInterface: string }
  | { kind: 'web'; httpPorts: number[]; names: string[] }
  /** Answers `names` itself and asks the host's rotating-dns for what is below `rotating`; with `upstream`, a caching forwarder. */
  | { kind: 'dns'; names: Record<string, string[]>; upstream: string[]; rotating?: string }
  /** Answers every name below `domain` with the next addresses of the pools (addresses with a length), on 127.0.0.1. */
  | { kind: 'rotating-dns'; domain: string; pools: string[] }
  | { kind: 'sshd'; ports: number[] }
  | { kind: 'iperf' };

export interface Host {
  name: string;
  about: string;
  bridges?: Bridge[];
  links?: Link[];
  /** Arguments of `ip route add`; a destination with a colon is an IPv6 one. */
  routes?: string[];
  /** Below /proc/sys/net, dots as separators. */
  sysctls?: Record<string, string>;
  /** Loaded into the namespace before its links exist. */
  nft?: string;
  nameservers?: string[];
  programs?: Program[];
}

export interface Topology {
  hosts: Host[];
  /** Folder with the controller's manifests, below the package's root. */
  manifests: string;
}

const controllerUrl = 'https://10.0.0.10:7790';
const forwarding = { 'ipv4.ip_forward': '1', 'ipv6.conf.all.forwarding': '1' };

/** The addresses that the firewall upstream lets through, by namespace. */
export const allowList: Record<string, { 4: string[]; 6: string[] }> = {
  billing: { 4: ['203.0.113.101'], 6: ['2001:db8:113::101'] },
  reviews: { 4: ['203.0.113.102', '203.0.113.103'], 6: ['2001:db8:113::102', '2001:db8:113::103'] },
  'kube-system': { 4: ['203.0.113.110'], 6: ['2001:db8:113::110'] },
};

export const serverAddresses = {
  web: { 4: '198.51.100.80', 6: '2001:db8:100::80' },
  web2: { 4: '198.51.100.90', 6: '2001:db8:100::90' },
  odd: { 4: '198.51.100.95', 6: '2001:db8:100::95' },
} as const;
/** Every name below this one has other addresses of these in each answer, for a second; all of them are web's. */
export const rotatingDomain = 'rot.example.test';
export const rotatingPools = { 4: '198.51.100.128/26', 6: '2001:db8:100::1:0/122' } as const;
const serverNames: Record<string, string[]> = {
  'web.example.test': Object.values(serverAddresses.web),
  'www.example.test': Object.values(serverAddresses.web),
  'api.example.test': Object.values(serverAddresses.web),
  'web2.example.test': Object.values(serverAddresses.web2),
};

/**
 * Stands in for what is on a node of a real cluster beside Sluice. `services` is kube-proxy's part: a ClusterIP is
 * translated to an endpoint. `off_cluster` is the CNI's: pods' off-cluster traffic takes the node's address. It is here
 * so that Sluice has something to beat: were a steered packet masqueraded, its source would be unknown to a gateway.
 */
const kubeRules = (podCIDRs: { 4: string; 6: string }): string => `
table inet kube {
  chain services {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.2.13
    ip daddr 10.96.0.10 tcp dport 53 dnat ip to 10.244.2.13
    ip6 daddr fd00:96::a udp dport 53 dnat ip6 to fd00:244:2::13
    ip6 daddr fd00:96::a tcp dport 53 dnat ip6 to fd00:244:2::13
  }
  chain off_cluster {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${podCIDRs[4]} ip daddr != { 10.244.0.0/16, 10.96.0.0/12, 10.0.0.0/24 } masquerade
    ip6 saddr ${podCIDRs[6]} ip6 daddr != { fd00:244::/32, fd00:96::/112, fd00:10::/64 } masquerade
  }
}`;

/**
 * The firewall upstream: each namespace's addresses pass and are counted under the namespace's name; what the gateways
 * say about a flow in their own name (ICMP errors) and ask of the resolver passes too; every other source is remembered,
 * with its destination, and dropped.
 */
function firewallRules(): string {
  const namespaces = Object.keys(allowList);
  const word = (namespace: string) => namespace.replaceAll('-', '_');
  return `
table inet fw {
${namespaces.map((n) => `  counter ${word(n)}_v4 { }\n  counter ${word(n)}_v6 { }`).join('\n')}
  counter foreign { }
${namespaces
  .flatMap((n) =>
    ([4, 6] as const).map(
      (f) => `  set ${word(n)}_v${f} { type ipv${f}_addr; elements = { ${allowList[n]?.[f].join(', ')} }; }`,
    ),
  )
  .join('\n')}
  set foreign_v4 { type ipv4_addr . ipv4_addr; flags dynamic; size 4096; counter; }
  set foreign_v6 { type ipv6_addr . ipv6_addr; flags dynamic; size 4096; counter; }
  chain forward {
    type filter hook forward priority filter; policy drop;
    iifname "servers" accept
${namespaces
  .flatMap((n) => [
    `    ip saddr @${word(n)}_v4 counter name ${word(n)}_v4 accept`,
    `    ip6 saddr @${word(n)}_v6 counter name ${word(n)}_v6 accept`,
  ])
  .join('\n')}
    ip saddr 203.0.113.31-203.0.113.33 ip daddr ${serverAddresses.web[4]} meta l4proto { tcp, udp } th dport 53 accept
    ip6 saddr 2001:db8:113::31-2001:db8:113::33 ip6 daddr ${serverAddresses.web[6]} meta l4proto { tcp, udp } th dport 53 accept
    ip saddr 203.0.113.31-203.0.113.33 icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
    ip6 saddr 2001:db8:113::31-2001:db8:113::33 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
    counter name foreign
    meta nfproto ipv4 add @foreign_v4 { ip saddr . ip daddr } drop
    meta nfproto ipv6 add @foreign_v6 { ip6 saddr . ip6 daddr } drop
  }
}`;
}

function gateway(letter: string, number: number): Host {
  return {
    name: `gw-${letter}`,
    about: 'gateway',
    links: [
      { name: 'inside', to: 'sw', bridge: 'inside', addresses: [`10.0.0.${number}/24`, `fd00:10::${number}/64`] },
      {
        name: 'outside',
        to: 'sw',
        bridge: 'outside',
        addresses: [`203.0.113.${number}/24`, `2001:db8:113::${number}/64`],
      },
    ],
    routes: ['default via 203.0.113.1', '::/0 via 2001:db8:113::1'],
    programs: [{ kind: 'gateway', controller: controllerUrl }],
  };
}

function node(letter: string, index: number, other: number): Host {
  return {
    name: `node-${letter}`,
    about: 'Kubernetes node',
    bridges: [{ name: 'cni0', addresses: [`10.244.${index}.1/24`, `fd00:244:${index}::1/64`], isolated: true }],
    links: [
      {
        name: 'inside',
        to: 'sw',
        bridge: 'inside',
        addresses: [`10.0.0.2${index}/24`, `fd00:10::2${index}/64`],
      },
    ],
    routes: [`10.244.${other}.0/24 via 10.0.0.2${other}`, `fd00:244:${other}::/64 via fd00:10::2${other}`],
    sysctls: forwarding,
    nft: kubeRules({ 4: `10.244.${index}.0/24`, 6: `fd00:244:${index}::/64` }),
    programs: [{ kind: 'node', controller: controllerUrl, workloadInterface: 'cni0' }],
  };
}

/** A pod: one address a family, and every packet, to a neighbour too, goes by its node. */
function pod(name: string, about: string, on: { node: string; index: number }, last: number): Host {
  const { node, index } = on;
  return {
    name,
    about,
    links: [
      {
        name: 'eth0',
        to: node,
        bridge: 'cni0',
        addresses: [`10.244.${index}.${last}/32`, `fd00:244:${index}::${last}/128`],
      },
    ],
    routes: [
      `10.244.${index}.1 dev eth0 scope link`,
      `default via 10.244.${index}.1`,
      `fd00:244:${index}::1 dev eth0`,
      `::/0 via fd00:244:${index}::1`,
    ],
    nameservers: ['10.96.0.10', 'fd00:96::a'],
  };
}

const nodeA = { node: 'node-a', index: 1 };
const nodeB = { node: 'node-b', index: 2 };

function server(
  name: keyof typeof serverAddresses,
  number: number,
  programs: Program[],
  about = 'server outside',
): Host {
  return {
    name,
    about,
    links: [
      {
        name: 'eth0',
        to: 'sw',
        bridge: 'servers',
        addresses: [`198.51.100.${number}/24`, `2001:db8:100::${number}/64`],
      },
    ],
    routes: ['default via 198.51.100.1', '::/0 via 2001:db8:100::1'],
    nameservers: ['198.51.100.80'],
    programs,
  };
}

const web = server('web', 80, [
  {
    kind: 'web',
    httpPorts: [80],
    names: ['web.example.test', '*.example.test', `*.${rotatingDomain}`],
  },
  { kind: 'dns', names: serverNames, upstream: [], rotating: rotatingDomain },
  { kind: 'rotating-dns', domain: rotatingDomain, pools: Object.values(rotatingPools) },
  { kind: 'sshd', ports: [22] },
  { kind: 'iperf' },
]);

export const defaultTopology: Topology = {
  manifests: 'lab/manifests',
  hosts: [
    {
      name: 'sw',
      about: 'the switches between the others',
      bridges: ['inside', 'outside', 'servers'].map((name) => ({ name, addresses: [] })),
      sysctls: { 'ipv6.conf.all.disable_ipv6': '1', 'ipv6.conf.default.disable_ipv6': '1' },
    },
    {
      name: 'ctl',
      about: 'controller',
      links: [{ name: 'inside', to: 'sw', bridge: 'inside', addresses: ['10.0.0.10/24', 'fd00:10::10/64'] }],
      programs: [{ kind: 'controller', listen: '10.0.0.10:7790', addresses: ['10.0.0.10', 'fd00:10::10'] }],
    },
    node('a', 1, 2),
    node('b', 2, 1),
    gateway('a', 31),
    gateway('b', 32),
    gateway('c', 33),
    pod('pay-1', 'pod of billing, service payments', nodeA, 11),
    pod('pay-2', 'pod of billing, service payments', nodeB, 11),
    pod('rev-1', 'pod of reviews', nodeA, 12),
    pod('job-1', 'pod of batch, assigned nothing', nodeB, 12),
    {
      ...pod('dns-1', 'pod of kube-system, service kube-dns', nodeB, 13),
      nameservers: ['127.0.0.1'],
      programs: [{ kind: 'dns', names: {}, upstream: Object.values(serverAddresses.web) }],
    },
    {
      name: 'fw',
      about: 'firewall and router upstream',
      links: [
        { name: 'outside', to: 'sw', bridge: 'outside', addresses: ['203.0.113.1/24', '2001:db8:113::1/64'] },
        { name: 'servers', to: 'sw', bridge: 'servers', addresses: ['198.51.100.1/24', '2001:db8:100::1/64'] },
      ],
      routes: [
        `${rotatingPools[4]} via ${serverAddresses.web[4]}`,
        `${rotatingPools[6]} via ${serverAddresses.web[6]}`,
      ],
      sysctls: forwarding,
      nft: firewallRules(),
    },
    {
      ...web,
      routes: [...(web.routes ?? []), ...Object.values(rotatingPools).map((pool) => `local ${pool} dev lo`)],
    },
    server('web2', 90, [{ kind: 'web', httpPorts: [80, 8080], names: ['web2.example.test'] }]),
    server(
      'odd',
      95,
      [
        { kind: 'sshd', ports: [22, 443] },
        { kind: 'dns', names: { 'web.example.test': Object.values(serverAddresses.web2) }, upstream: [] },
      ],
      'server outside that lies: SSH on 443, false answers on 53',
    ),
  ],
};
