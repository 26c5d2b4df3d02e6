/**
 * Plans: everything that one gateway or one node must have in force, as plain JSON data (design §1, "plan").
 * A plan is a set of named collections of keyed values, so that a delta is "set these keys, delete those" and
 * needs no knowledge of what the values mean (plan-delta.ts). All addresses are canonical text (address.ts).
 */

import type { ApplicationCheck } from './application.ts';

export type Family = 4 | 6;
export const families = [4, 6] as const;
/** A value per address family; a family that is absent has none. */
export interface PerFamily<T> {
  4?: T;
  6?: T;
}

export type Context = 'cluster' | 'namespace' | 'service';
export const contexts = ['cluster', 'namespace', 'service'] as const;
export type Action = 'accept' | 'accept-decisively' | 'drop' | 'reject';
export type SteeringMode = 'VXLAN' | 'Direct';

export interface PoolSettings {
  pool: string;
  defaultAction: 'Drop' | 'Accept';
  unassigned: 'Drop' | 'Bypass';
  internalInterface: string;
  externalInterface: string;
  /** Routers on the external link; absent: the machine's own routes decide. */
  externalGateway: PerFamily<string>;
  steering: { mode: SteeringMode; vni: number; port: number; mtu: number | null };
  /** Prefixes that are never steered and that a gateway never forwards to. */
  clusterCIDRs: string[];
  excludedCIDRs: string[];
  /** Absent: nobody's answers are believed, so no name has an address. */
  dns?: PoolDns;
  inspection?: PoolInspection;
  /** Absent: a shard is held by the first gateway of its order, whatever becomes of that. */
  vrrp?: PoolVrrp;
}

export interface PoolVrrp {
  /** VRID of `s0`; `s1` has the next. */
  baseId: number;
  /** A multiple of 10. */
  advertIntervalMs: number;
  failback: 'Immediate' | 'Delayed' | 'Never';
  failbackDelayMs: number;
}

export interface PoolDns {
  /** Addresses whose answers teach the pool's name table; sorted. */
  resolvers: string[];
  /** A flow that only names could permit is dropped at its first packet unless a name has its address by then. */
  strict?: true;
}

export interface PoolInspection {
  /** Threads of each gateway that read flows; absent: one for each processor, at most 8. */
  workers?: number;
  /** What becomes of flows that cannot be read for want of threads or room. Absent: they are dropped. */
  onOverload?: 'Accept';
}

export interface GatewayEntry {
  /** Underlay address; its family is the family of the tunnel's outer header. */
  internalAddress: string;
  /** Every address that the gateway reported as its own (inside, outside): hairpin destinations. */
  addresses: string[];
}

export interface NodeEntry {
  /** Underlay addresses, from which tunnel packets of this node may come. */
  addresses: string[];
  podCIDRs: string[];
}

export interface ShardEntry {
  /** 1 to 253, unique among all pools; the node's mark. */
  index: number;
  nextHops: PerFamily<string>;
  /** Gateways in rendezvous order; the first holds the shard, unless the gateways elect who does (PoolSettings.vrrp). */
  order: string[];
  /** Egress IPs given out that hash to this shard. */
  egressIPs: string[];
  /** EgressIP by address: gateways keep it, for a controller that has lost its memory to ask them. */
  owners?: Record<string, string>;
}

export interface Egress {
  address: string;
  shard: string;
}

/**
 * What an EgressIP says beyond which address each workload has of it; one that says nothing more is absent. Keyed by its
 * name.
 */
export interface EgressIPEntry {
  /** Each namespace, or pod, that it serves has an address of it to itself, or none at all. Absent: all have the same. */
  allocation?: 'PerNamespace' | 'PerPod';
  /** Spread Connection: all its addresses; a flow's hash modulo their number chooses one (kernel/flow-hash.ts). */
  spread?: PerFamily<Egress[]>;
  /** It serves only these: canonical prefixes, sorted. */
  destinations?: string[];
  /** Of all flows that leave with one of its addresses. */
  limits?: EgressLimits;
  bandwidth?: EgressBandwidth;
}

export interface EgressLimits {
  /** Connections that live at once. */
  maxConnections: number;
  /** `pool/shard` of its addresses, over which the limit is divided; sorted. */
  shards: string[];
}

/** Of all that leaves with any of its addresses, and of what comes back to them; bits per second. */
export interface EgressBandwidth {
  egress?: number;
  ingress?: number;
  addresses: string[];
  /** `pool/shard` of its addresses, over which the limits are divided; sorted. */
  shards: string[];
}

/** EgressIPs with destinations that serve the same workloads, in the order in which they win a prefix that several name. */
export interface DestinationTable {
  /** Keys into `egressIPs`. */
  egressIPs: string[];
}

/** A pod that the pool carries. Keyed by uid. */
export interface WorkloadEntry {
  namespace: string;
  name: string;
  uid: string;
  node: string;
  /** Names of the Services that list it as an endpoint. */
  services: string[];
  addresses: string[];
  /** Key into `groups`. */
  group: string;
  /** With what it leaves where no EgressIP of `destinations` says otherwise; none of spread Connection. */
  egress: PerFamily<Egress>;
  /** The EgressIP that `egress` is of, or whose addresses it spreads over: a key into `egressIPs`, absent if that has none. */
  egressIP?: string;
  /** Key into `destinations`. */
  destinations?: string;
  /** By EgressIP of `destinations` that spreads by pod: with what it leaves there. */
  elsewhere?: Record<string, PerFamily<Egress>>;
}

/** Workloads that no selector of a rule tells apart: the rules that can apply to them, in the order in which they are walked. */
export interface GroupEntry {
  namespace: string;
  /** What the policy would drop or reject is counted, logged and let through. Absent: it is enforced. */
  audit?: true;
  rules: Record<Context, string[]>;
}

/** Keyed by id: `cluster/NAME`, `namespace/NS/NAME`, `service/NS/NAME`. */
export interface RuleEntry {
  context: Context;
  /** Namespace of the rule; absent for a cluster rule. */
  namespace?: string;
  name: string;
  action: Action;
  /** What it matches is counted and logged, and the walk goes on as if it had not. Absent: it is enforced. */
  mode?: 'Audit';
  /** All: a record also of what it accepts and hands on. None: no record of what it decides. Absent: of that only. */
  logging?: 'All' | 'None';
  priority: number;
  /** Keys into `services`, or '*' for any destination. */
  services: string[] | '*';
  redirect?: Redirect;
  /** Of an accept rule; all of its sources together. */
  limits?: RuleLimits;
}

/** Where the flows that a rule permits go instead. The rule matches no others than TCP, UDP and SCTP of its family. */
export interface Redirect {
  address: string;
  /** Absent: the flow's own. */
  port?: number;
  /** Why nothing may go there in the name of this rule, as "it lies in …": what it would permit is dropped. */
  forbidden?: string;
}

/** How much of what a rule matches may pass; the rest is dropped. */
export interface RuleLimits {
  /** New connections a second; after a quiet second so many may begin at once. */
  connectionsPerSecond?: number;
  /** Connections that live at once. */
  maxConnections?: number;
  /** Bits per second in each direction; what is beyond waits, and only then is dropped. */
  bandwidth?: number;
  /** `pool/shard` of those that the rule's sources use, over which the limits are divided; sorted. Absent: not known yet. */
  shards?: string[];
}

/** A set of destinations: any of `addresses` and `names`, with any of `ports`. Keyed by `namespace/name`. */
export interface ServiceEntry {
  /** Canonical prefixes (`10.0.0.0/8`, `10.0.0.1/32`) or ranges (`10.0.0.1-10.0.0.9`), both families. */
  addresses: string[];
  /** Canonical patterns (host-name.ts), sorted: addresses that the pool's name table gives for such names. Absent: none. */
  names?: string[];
  /** null: every protocol. */
  ports: PortEntry[] | null;
  /** Parts of `ports` where flows are read: of the checks that cover a flow's port one must hold. Absent: none is read. */
  checks?: PortCheck[];
  /** Ports with a limit, which hold for all that rules accept by them together. Absent: none has. */
  limits?: PortLimit[];
}

export interface PortCheck extends PortEntry, ApplicationCheck {
  /** No port says so, it follows from `names`: 443 is TLS, 80 HTTP, 443/UDP QUIC. A veto needs it for the name alone. */
  implied?: true;
}

export interface PortLimit extends PortEntry {
  /** Unique in its service. */
  name: string;
  /** Bits per second in each direction. */
  bandwidth: number;
  /** As in RuleLimits, of the sources of all rules that accept. */
  shards?: string[];
}

export interface PortEntry {
  /** IP protocol number. */
  protocol: number;
  /**
   * Inclusive ranges; null: all of the protocol. TCP, UDP and SCTP: of ports. ICMP and ICMPv6: of type * 256 + code,
   * as their two octets stand in the header, in packets of their own family. No other protocol has any.
   */
  ports: [number, number][] | null;
}

export interface GatewayPlan {
  settings: { pool: PoolSettings } | Record<string, never>;
  gateways: Record<string, GatewayEntry>;
  nodes: Record<string, NodeEntry>;
  shards: Record<string, ShardEntry>;
  workloads: Record<string, WorkloadEntry>;
  egressIPs: Record<string, EgressIPEntry>;
  destinations: Record<string, DestinationTable>;
  groups: Record<string, GroupEntry>;
  rules: Record<string, RuleEntry>;
  services: Record<string, ServiceEntry>;
}

/** What the data path's policy is made of; a GatewayPlan has it all. */
export type Policy = Pick<GatewayPlan, 'settings' | 'workloads' | 'groups' | 'rules' | 'services'>;

export interface NodeSettings {
  node: string;
  podCIDRs: string[];
  /** UDP port of the tunnel and its device MTU (null: the underlay's less the overhead). */
  port: number;
  mtu: number | null;
  clusterCIDRs: string[];
  excludedCIDRs: string[];
}

/** A shard as a node sees it. Keyed by `pool/shard`. */
export interface NodeShardEntry {
  index: number;
  mode: SteeringMode;
  vni: number;
  nextHops: PerFamily<string>;
}

/** An EgressIPEntry as a node sees it: shards (`pool/shard`) instead of addresses. */
export interface NodeEgressIPEntry {
  spread?: PerFamily<string[]>;
  destinations?: string[];
}

/** Where a workload's off-cluster packets of one family go; `spread`: a key into `egressIPs`. */
export type Steer = { shard: string } | { spread: string } | 'bypass' | 'drop';

/**
 * A pod of this node. A pod that the pool carries appears only after the gateways of its shard acknowledged it
 * (design §6): its presence here *is* the release. Keyed by uid.
 */
export interface NodeWorkloadEntry {
  namespace: string;
  name: string;
  uid: string;
  /** When its network was made, as its node told the API server: another text, another network. Absent: not known. */
  networked?: string;
  addresses: string[];
  steer: PerFamily<Steer>;
  /** Key into `destinations`, which go elsewhere than `steer` says. */
  destinations?: string;
  /** By EgressIP of `destinations` that spreads by pod. */
  elsewhere?: Record<string, PerFamily<Steer>>;
}

export interface NodePlan {
  settings: { node: NodeSettings } | Record<string, never>;
  shards: Record<string, NodeShardEntry>;
  /** Gateways' addresses: tunnel packets may come from them; workloads may not send to them. */
  gateways: Record<string, GatewayEntry>;
  workloads: Record<string, NodeWorkloadEntry>;
  egressIPs: Record<string, NodeEgressIPEntry>;
  destinations: Record<string, DestinationTable>;
}

export type PlanRole = 'gateway' | 'node';
export interface PlanOf {
  gateway: GatewayPlan;
  node: NodePlan;
}

export const emptyGatewayPlan = (): GatewayPlan => ({
  settings: {},
  gateways: {},
  nodes: {},
  shards: {},
  workloads: {},
  egressIPs: {},
  destinations: {},
  groups: {},
  rules: {},
  services: {},
});
export const emptyNodePlan = (): NodePlan => ({
  settings: {},
  shards: {},
  gateways: {},
  workloads: {},
  egressIPs: {},
  destinations: {},
});
