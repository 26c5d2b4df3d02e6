/**
 * Every name that other software sees: API group, labels, kernel objects, marks, ports, rule priorities.
 * One place, so that an operator can find what Sluice owns (design §2) and two programs cannot disagree.
 */

/** API group and version of every kind of ours. */
export const API_GROUP = 'sluice.dev';
export const API_VERSION = 'sluice.dev/v1alpha1';

/** Namespace whose ExternalServices a cluster rule names without a prefix. */
export const CONTROLLER_NAMESPACE = 'sluice-system';
/** Service by which the API server asks the validating webhook: of every controller that is ready. */
export const ADMISSION_SERVICE = 'sluice-admission';
/** A namespace with this label "true" lends its ExternalServices to cluster rules as `namespace/name`. */
export const LABEL_TRUSTED_SERVICES = 'sluice.dev/trusted-services';
/** A namespace with this label "Audit" has its whole policy counted and logged, and not enforced. */
export const LABEL_MODE = 'sluice.dev/mode';
/** With this annotation, its value the object's own name, what still carries workloads may be deleted. */
export const ANNOTATION_CONFIRM_DELETION = 'sluice.dev/confirm-deletion';
/** Of an ExternalService that a drop or reject rule names: it stays until none does. */
export const FINALIZER_FORBIDDING_RULE = 'sluice.dev/forbidding-rule';
/** Label that the API server puts on every namespace: its own name. */
export const LABEL_NAMESPACE_NAME = 'kubernetes.io/metadata.name';
/** Label by which an EndpointSlice names its Service. */
export const LABEL_SERVICE_NAME = 'kubernetes.io/service-name';

/** nftables tables, both of family inet. Nothing outside tables named `sluice*` is touched. */
export const NFT_TABLE_GATEWAY = 'sluice';
export const NFT_TABLE_NODE = 'sluice_node';
/** Of a gateway while rules ask for what flows say: which of their packets go to a queue. */
export const NFT_TABLE_INSPECT = 'sluice_inspect';
/** Of a gateway: which packets of flows that no rule asks about are copied, to see what they speak. */
export const NFT_TABLE_DETECT = 'sluice_detect';

/** Of a gateway whose first table is being made: nobody reaches this machine through an egress IP (gateway/early-addresses.ts). */
export const NFT_TABLE_EARLY = 'sluice_early';

/** VXLAN device in metadata mode, on nodes and gateways. */
export const TUNNEL_DEVICE = 'sluice-vx';
/** Default UDP port: not the CNI's 4789 or 8472, since a metadata device cannot share a port. */
export const TUNNEL_PORT = 4793;
/** Bytes that VXLAN adds over an IPv4 and an IPv6 underlay: outer IP, UDP 8, VXLAN 8, inner Ethernet 14. */
export const TUNNEL_OVERHEAD = { 4: 50, 6: 70 } as const;
/**
 * One MAC for all gateways, another for all nodes. Were they one, the receiver would drop every frame as a loop
 * (measured.md, part 0). Locally administered.
 */
export const TUNNEL_MAC_GATEWAY = '02:73:6c:75:00:01';
export const TUNNEL_MAC_NODE = '02:73:6c:75:00:02';
/** On-link next hops that stand for "the other end" on the tunnel device; permanent neighbour entries carry the MAC. */
export const TUNNEL_PEER = { 4: '169.254.77.1', 6: 'fe80::5:1c:77:1' } as const;

/** Routing tables. Nodes: NODE_TABLE_BASE + shard index. */
export const TABLE_GATEWAY_RETURN = 7790;
export const TABLE_GATEWAY_EGRESS = 7791;
/** Where workloads' packets end that our nftables table has not checked: it holds a black hole. */
export const TABLE_GATEWAY_UNCHECKED = 7792;
/** For what policy rejects: leads TCP to the machine itself, whose input hook resets; and refuses all else. */
export const TABLE_GATEWAY_RESET = 7793;
export const TABLE_GATEWAY_PROHIBIT = 7794;
/** For what the machine itself would say as an egress IP: leads nowhere, but past the output hook, which counts it. */
export const TABLE_GATEWAY_OWN = 7795;
export const TABLE_MAIN = 254;
export const NODE_TABLE_BASE = 7800;
/** `ip rule` priorities; before `main` (32766). Nodes: NODE_RULE_PRIORITY + shard index. */
export const RULE_PRIORITY_RETURN = 7788;
export const RULE_PRIORITY_EGRESS = 7789;
export const RULE_PRIORITY_RESET = 7790;
export const RULE_PRIORITY_PROHIBIT = 7791;
/** What is not said as an egress IP goes on at RULE_PRIORITY_UNCHECKED. */
export const RULE_PRIORITY_OTHERS = 7792;
export const RULE_PRIORITY_OWN = 7793;
export const RULE_PRIORITY_UNCHECKED = 7794;
export const RULE_PRIORITY_NODE = 7800;
/** Routing protocol number put on every route of ours (rtnetlink `rtm_protocol`), so that list → diff sees only ours. */
export const ROUTE_PROTOCOL = 177;

/**
 * Node: bits of packet mark and ct mark that are ours. The value is the shard's index (1 to 253) or MARK_HELD.
 * Low bits, since kube-proxy uses 0xc000, Cilium 0x0f00, Calico 0xffff0000.
 */
export const NODE_MARK_MASK = 0x000000ff;
export const NODE_SHARDS_MAX = 253;
/** Value (before shifting into the mask) of a packet that waits in the hold queue. */
export const NODE_MARK_HELD = 0xfe;

/**
 * Gateway: bits of the ct mark that are ours: the top one says *decided* (permitted, and seen to leave with the right
 * source), the next one *read*: packets with bytes of the flow go to a queue, until it is decided or, with a rule
 * beside it, for life. The others carry the rule that permitted; of what is not decided yet, one of two numbers that no rule has.
 */
export const GATEWAY_CT_MASK = 0xffffff00;
export const CT_DECIDED = 0x80000000;
export const CT_READ = 0x40000000;
export const CT_RULE_MASK = 0x3fffff00;
export const CT_RULE_SHIFT = 8;
/** Undecided: its first bytes are to be read; its very first packet is to be asked about already (an address of a name). */
export const NUMBER_READ_BYTES = 0x3fffff;
export const NUMBER_READ_FIRST = 0x3ffffe;

/**
 * Gateway: packet marks in the forward hook of flows that are read, all beside GATEWAY_CHECKED_MARK. To the queue: that
 * it goes there, that its first byte is the stream's first, that it comes from the outside. `PASSED`: it need not go
 * there, or was let on by a worker. A packet of such a flow without it goes nowhere.
 */
export const INSPECT_QUEUE_MARK = 0x00001000;
export const INSPECT_FIRST_MARK = 0x00002000;
export const INSPECT_REPLY_MARK = 0x00004000;
export const INSPECT_PASSED_MARK = 0x00008000;
/** It is one of DNS, to or from a resolver whose answers are believed: it teaches the name table, whatever else it is. */
export const INSPECT_DNS_MARK = 0x00010000;
/**
 * Gateway: a worker's verdict that ends the asking: this bit, the number of the rule in CT_RULE_MASK's bits (or one of
 * NUMBER_READ_*), and INSPECT_LIFE_MARK if the flow is to be read for life. It has passed, whatever else is there.
 */
export const INSPECT_VERDICT_MARK = 0x40000000;
export const INSPECT_LIFE_MARK = 0x80000000;
/** First of the NFQUEUE numbers of a gateway's workers. */
export const INSPECT_QUEUE = 7800;
export const INSPECT_QUEUES_MAX = 64;

/**
 * Gateway: the packet mark of what the tunnel's check has let in. Routing asks for it, so that a machine whose nftables
 * were flushed by somebody forwards nothing of a workload, rather than everything as it is. While policy is walked the
 * packet mark carries the source's group instead, after it this or the next.
 */
export const GATEWAY_CHECKED_MARK = 0x00000100;
/** Gateway: packet marks of what policy rejects, by which it is routed: TCP, and all else. */
export const GATEWAY_RESET_MARK = 0x00000200;
export const GATEWAY_PROHIBIT_MARK = 0x00000400;

/**
 * Gateway: packet marks of EgressIPs while the source of a flow's first packet is chosen, and of a flow that one of them
 * limits: this bit, a number of the EgressIP, and in the low bits the place of an address among those that it spreads over.
 */
export const GATEWAY_EGRESS_MARK = 0x80000000;
export const GATEWAY_SLOT_BITS = 6;
/** Where nodes and gateways begin the hash by which a flow chooses among several addresses. */
export const FLOW_HASH_SEED = 0x736c7563;

/** Gateway: the packet mark of its own tunnel packets, which the last hook does not ask for their source. */
export const GATEWAY_TUNNEL_MARK = 0x00000800;

/**
 * Gateway: major number of the HTB qdisc, and of its classes, at the root of the interfaces of which bandwidth is
 * limited. A root qdisc with another handle is somebody else's.
 */
export const TC_MAJOR = 0x1e6e;
/** Major numbers of what a packet's priority holds while its class is looked for; no qdisc has them. */
export const SCRATCH_MAJOR = 0x7000;

/** nfnetlink_log group of denials on a gateway, NFQUEUE number of held packets on a node. */
export const NFLOG_GROUP = 7790;
/** nfnetlink_log group of copies of first packets (NFT_TABLE_DETECT). */
export const NFLOG_DETECT_GROUP = 7791;
export const HOLD_QUEUE = 7790;

/** TCP ports: plan stream (controller, mutual TLS); metrics and health of each program. */
export const PORT_PLAN_STREAM = 7790;
/** TCP port on which gateways tell each other what names they have learned (mutual TLS, inside). */
export const PORT_NAMES = 7794;
/** TCP port on which the controller enrols gateways and nodes by token (TLS). */
export const PORT_ENROLMENT = 7795;
/** TCP port on which the controller serves the validating webhook (TLS), where the chart starts it. */
export const PORT_ADMISSION = 7796;
/** TCP port on which a gateway tells the next ones of its shards which flows it carries (mutual TLS, inside). */
export const PORT_REPLICATION = 7797;
export const PORT_METRICS = { controller: 7791, gateway: 7792, node: 7793 } as const;

/** URI subject alternative name in a certificate: `sluice://gateway/gw-a`. */
export const CERT_URI_PREFIX = 'sluice://';
