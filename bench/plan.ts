/**
 * A generated plan as a cluster of many small teams would give it: N namespaces with some pods each, an egress IP a
 * namespace, and rules in all three contexts that name services of the namespace's own, so that no two namespaces
 * share a chain or a set. Pods lie 250 to a node; the first node is the one that the benchmark drives.
 */
import { emptyGatewayPlan, type GatewayPlan, type RuleEntry, type ServiceEntry } from '../api/plan.ts';

export const VNI = 7700;
export const PORT = 4793;
export const NODE = '10.0.0.21';
export const GATEWAY_INSIDE = '10.0.0.31';
export const GATEWAY_OUTSIDE = { 4: '203.0.113.31', 6: '2001:db8:113::31' } as const;
export const NEXT_HOP = '10.0.0.64';
export const ROUTER = { 4: '203.0.113.1', 6: '2001:db8:113::1' } as const;
/** Where the traffic goes, and by which ports. */
export const SERVER = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
export const TCP_PORT = 5201;
export const UDP_PORT = 9000;
/** All egress IPs lie in these. */
export const EGRESS = { 4: '100.64.0.0/16', 6: '2001:db8:e::/64' } as const;

/** All pods lie in these. */
export const PODS = { 4: '10.128.0.0/9', 6: 'fd00:244::/32' } as const;

export const PODS_PER_NODE = 250;

export interface PlanSize {
  namespaces: number;
  /** Of each namespace. */
  pods: number;
}

export function generatePlan({ namespaces, pods }: PlanSize): GatewayPlan {
  const plan = emptyPool();
  addRule(plan, 'cluster', undefined, 'no-metadata', 'drop', {
    addresses: ['169.254.169.254/32', 'fd00:ec2::254/128'],
    ports: null,
  });
  addRule(plan, 'cluster', undefined, 'blocked', 'drop', blockList());
  for (let at = 0; at < namespaces; at++) addNamespace(plan, at, pods);
  return plan;
}

/** A pool of one gateway with one shard, and nobody whom it carries. */
export function emptyPool(): GatewayPlan {
  const plan = emptyGatewayPlan();
  plan.settings = {
    pool: {
      pool: 'edge',
      defaultAction: 'Drop',
      unassigned: 'Drop',
      internalInterface: 'inside',
      externalInterface: 'outside',
      externalGateway: ROUTER,
      steering: { mode: 'VXLAN', vni: VNI, port: PORT, mtu: null },
      clusterCIDRs: ['10.128.0.0/9', '10.0.0.0/16', 'fd00:244::/32', 'fd00:10::/64'],
      excludedCIDRs: [],
    },
  };
  plan.gateways['gw-a'] = { internalAddress: GATEWAY_INSIDE, addresses: [GATEWAY_INSIDE, ...both(GATEWAY_OUTSIDE)] };
  plan.shards.s0 = { index: 1, nextHops: { 4: NEXT_HOP }, order: ['gw-a'], egressIPs: [] };
  return plan;
}

/** Namespace number `at` with its pods, group, rules and egress IP. */
export function addNamespace(plan: GatewayPlan, at: number, pods: number): void {
  const namespace = `team-${at}`;
  const own = { 4: `192.0.${at >> 8}.${at & 255}/32`, 6: `2001:db8:200:${(at + 1).toString(16)}::/64` };
  const rules = {
    cluster: ['cluster/no-metadata', 'cluster/blocked'],
    namespace: [
      addRule(plan, 'namespace', namespace, 'no-mail', 'drop', {
        addresses: ['0.0.0.0/0', '::/0'],
        ports: [{ protocol: 6, ports: [[25, 25]] }],
      }),
      addRule(plan, 'namespace', namespace, 'database', 'accept', {
        addresses: both(own),
        ports: [{ protocol: 6, ports: [[5432, 5432]] }],
      }),
    ],
    service: [
      addRule(plan, 'service', namespace, 'partner', 'accept', { addresses: both(own), ports: null }),
      addRule(plan, 'service', namespace, 'web', 'accept', {
        addresses: ['198.51.100.0/24', '2001:db8:100::/64', ...both(own)],
        ports: [
          {
            protocol: 6,
            ports: [
              [443, 443],
              [TCP_PORT, TCP_PORT],
            ],
          },
          {
            protocol: 17,
            ports: [
              [443, 443],
              [UDP_PORT, UDP_PORT],
            ],
          },
        ],
      }),
    ],
  };
  plan.groups[namespace] = { namespace, rules };
  const egress = { 4: `100.64.${(at + 1) >> 8}.${(at + 1) & 255}`, 6: `2001:db8:e::${(at + 1).toString(16)}` };
  plan.shards.s0?.egressIPs.push(...both(egress));
  for (let pod = 0; pod < pods; pod++) addPod(plan, at, pod, at * pods + pod, egress);
}

/** A pod of a namespace that the plan holds; `place` numbers pods cluster-wide. */
export function addPod(
  plan: GatewayPlan,
  at: number,
  pod: number,
  place: number,
  egress: { 4: string; 6: string },
  service = 'api',
  group = `team-${at}`,
): string {
  const uid = `uid-${at}-${pod}`;
  const node = Math.floor(place / PODS_PER_NODE);
  plan.nodes[`node-${node}`] ??= {
    addresses: [node === 0 ? NODE : `10.0.${1 + (node >> 8)}.${node & 255}`],
    podCIDRs: [`10.${128 + (node >> 8)}.${node & 255}.0/24`, `fd00:244:${(node + 1).toString(16)}::/64`],
  };
  plan.workloads[uid] = {
    namespace: `team-${at}`,
    name: `pod-${pod}`,
    uid,
    node: `node-${node}`,
    services: [service],
    addresses: both(podAddresses(place)),
    group,
    egress: { 4: { address: egress[4], shard: 's0' }, 6: { address: egress[6], shard: 's0' } },
  };
  return uid;
}

export function podAddresses(place: number): { 4: string; 6: string } {
  const node = Math.floor(place / PODS_PER_NODE);
  const host = (place % PODS_PER_NODE) + 2;
  return {
    4: `10.${128 + (node >> 8)}.${node & 255}.${host}`,
    6: `fd00:244:${(node + 1).toString(16)}::${host.toString(16)}`,
  };
}

export function addRule(
  plan: GatewayPlan,
  context: RuleEntry['context'],
  namespace: string | undefined,
  name: string,
  action: RuleEntry['action'],
  service: ServiceEntry,
): string {
  const scope = namespace === undefined ? '' : `${namespace}/`;
  const id = `${context}/${scope}${name}`;
  const key = `${namespace ?? 'sluice-system'}/${name}`;
  plan.services[key] = service;
  plan.rules[id] = { context, ...(namespace && { namespace }), name, action, priority: 1000, services: [key] };
  return id;
}

/** The first half of the addresses of networks that only namespace `at` talks to: at most 256 hosts each. */
export const own = (at: number): [four: string, six: string] => [
  `172.${16 + (at >> 8)}.${at & 255}.`,
  `2001:db8:200:${(at + 1).toString(16)}::`,
];

/** 200 prefixes that a security team keeps closed for all. */
export function blockList(): ServiceEntry {
  const addresses = Array.from({ length: 200 }, (_, at) => `185.${at}.0.0/17`);
  return { addresses: [...addresses, '2a0f:dead::/32'], ports: null };
}

const both = (of: { 4: string; 6: string }): string[] => [of[4], of[6]];
