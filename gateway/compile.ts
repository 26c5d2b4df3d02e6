/**
 * GatewayPlan → the gateway's nftables table, as a value (design §5). Order of a packet's way:
 *   ingress          tunnel packets from a node of the plan, with an inner source that this node holds: not tracked. Others
 *                    are dropped by reason
 *   nat input        first packets only, so not the tunnel's: nobody reaches the gateway's sockets through an egress IP or
 *                    from the tunnel, nor the tunnel by another way; TCP that policy rejects is led here and reset
 *   nat prerouting   first packets only: source → group, contexts in order, default action. What is permitted goes on
 *                    with its rule in the ct mark
 *   nat postrouting  first packets only: source → egress IP
 *   output           tunnel packets of our own: not tracked
 *   last hook        a workload's packet whose source is not its own egress IP is dropped: a leak; so is one that no
 *                    rule has permitted. The first packet that passes makes its flow a decided one. Every packet is
 *                    asked until the connection table has been looked through for flows that a change ends; after
 *                    that only those of flows that are not decided, since a flow keeps its translation
 * Membership lives in sets and maps. The checks that every packet pays are two short chains.
 * Direct mode has no tunnel: workloads' packets come by the internal interface as they are, among those of nodes and
 * of whoever else is on that segment, which is trusted. Then a source is a workload's if the plan says so.
 * Which shards this machine holds changes addresses (compile-net.ts), and of the rules only its share of their limits.
 */
import { formatAddress, parseAddress } from '../api/address.ts';
import {
  CT_DECIDED,
  CT_RULE_MASK,
  GATEWAY_CHECKED_MARK,
  GATEWAY_PROHIBIT_MARK,
  GATEWAY_RESET_MARK,
  GATEWAY_TUNNEL_MARK,
  NFLOG_GROUP,
  NFT_TABLE_GATEWAY,
} from '../api/names.ts';
import { type Family, families, type GatewayPlan, type PoolSettings } from '../api/plan.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { auditCounterName, auditReasons, countedReasons, counterName, type DropReason } from '../api/reasons.ts';
import { must } from '../api/result.ts';
import { concat, markText, type NftSet, type Ruleset, rangeText, rawText } from '../kernel/nft.ts';
import { Chains } from './chains.ts';
import { ingressOf, isTunnelled } from './compile-net.ts';
import { compilePolicy } from './compile-policy.ts';
import { addressType, header } from './destination-sets.ts';
import { AUDIT_LIMIT, MATCH } from './record/flow-record.ts';
import type { Denials } from './verdict.ts';

export interface CompiledGateway {
  /** Asks every packet for its source. */
  ruleset: Ruleset;
  /** Asks the first packet of a flow: for when no flow is left that is translated otherwise than the plan says. */
  settled: Ruleset;
  ruleNumbers: Map<string, number>;
}

/** Routing asks for it: without this table nothing of a workload is forwarded. */
const checked = `meta mark set ${markText(GATEWAY_CHECKED_MARK)}`;

/** Where in a tunnel packet (bits from the UDP header on) the inner source lies: UDP 8, VXLAN 8, Ethernet 14 bytes. */
const innerSource = { 4: '@th,336,32', 6: '@th,304,128' } as const;
const innerType = '@th,224,16';
const etherType = { 4: '0x0800', 6: '0x86dd' } as const;
/** The VNI and the reserved byte behind it, zero in what the kernel takes: 32 aligned bits compare fastest. */
const vni = '@th,96,32';
const vniText = (pool: PoolSettings): string => rawText(BigInt(pool.steering.vni) << 8n);
/** One look-up instead of comparisons: each expression costs a packet about as much as the next. */
const heldKey = (outer: Family, inner: Family): string =>
  `${header[outer]} saddr . udp dport . ${vni} . ${innerSource[inner]}`;

export interface Machine {
  /** Whether the kernel filters what comes from the external interface so (`rp_filter`). Absent: it does. */
  reversePathFilter?: boolean;
  /** Shards that it holds; absent: all. */
  heldShards?: readonly string[];
}

export function compileGateway(plan: GatewayPlan, machine: Machine = {}): CompiledGateway {
  const { reversePathFilter = true, heldShards = Object.keys(plan.shards) } = machine;
  const chains = new Chains();
  if (!('pool' in plan.settings)) {
    const empty: Ruleset = { family: 'inet', table: NFT_TABLE_GATEWAY, counters: [], sets: {}, chains: {} };
    return { ruleset: empty, settled: empty, ruleNumbers: new Map() };
  }
  const pool = plan.settings.pool;
  const dropped = dropChains(chains);
  const policy = compilePolicy(plan, heldShards, chains, {
    decisions: denials(chains, log),
    none: denials(chains),
    match: log(MATCH),
  });
  const hairpin = (last: string[]): string =>
    chains.add('hairpin', [`counter name ${counterName('hairpin')}`, log('hairpin'), ...last]);

  const tunnelled = isTunnelled(pool);
  const ingress = ingressOf(pool);
  const tunnelInput = tunnelled ? tunnelHooks(chains, plan, pool, dropped) : [];
  // Answers, where the way back of each is looked up: see deviceSysctls().
  if (reversePathFilter) chains.ingress('outside_in', pool.externalInterface, [`meta protocol ip ${checked}`]);
  if (!tunnelled) {
    chains.base('inside_in', 'type filter hook prerouting priority raw; policy accept;', [
      `iifname "${ingress}" ${checked}`,
    ]);
  }
  policyHook(chains, pool, policy.walk, dropped, hairpin(reject));
  chains.base('input', 'type nat hook input priority 100; policy accept;', [
    ...tunnelInput,
    `iifname "${ingress}" meta mark ${markText(GATEWAY_RESET_MARK)} reject with tcp reset`,
    ...(tunnelled
      ? [`iifname "${ingress}" goto ${hairpin(rejectStatements)}`]
      : // Not all that comes from there: nodes, the controller and the other gateways talk to this machine too.
        families.map((f) => `iifname "${ingress}" ${header[f]} saddr @sources${f} goto ${hairpin(rejectStatements)}`)),
    ...families.map((family) => `${header[family]} daddr @egress${family} goto ${dropped('stray')}`),
  ]);
  chains.base('nat', 'type nat hook postrouting priority srcnat; policy accept;', [
    ...families.map((family) => `snat ${header[family]} to ${header[family]} saddr map @snat${family}`),
  ]);
  outputHook(chains, pool, dropped('stray'));
  const undecided = undecidedPackets(chains, ingress, dropped);
  const counters = [...countedReasons.map(counterName), ...auditReasons.map(auditCounterName)];
  const sets = { ...policy.sets, ...membership(plan, pool, policy.groupMarks) };
  const guarded = (settled: boolean): Ruleset => {
    const all = { ...chains.all, ...lastHook(ingress, dropped('leak'), undecided, tunnelled, settled) };
    return { family: 'inet', table: NFT_TABLE_GATEWAY, counters, sets, chains: all };
  };
  return { ruleset: guarded(false), settled: guarded(true), ruleNumbers: policy.ruleNumbers };
}

/**
 * What leaves without the permission of a rule. Not all of it is a workload's: the machine may be a router to others. A
 * workload without an egress IP may be one that is not steered.
 */
function undecidedPackets(chains: Chains, ingress: string, dropped: (reason: DropReason) => string): string {
  const invalid = chains.add('invalid', [
    `tcp flags & (syn | ack) == ack goto ${dropped('stray')}`,
    `goto ${dropped('invalid')}`,
  ]);
  return chains.add('undecided', [
    // What this machine sends itself. Of neighbour discovery, which is untracked, the kernel names the device that it
    // goes out by as the one that it came in by.
    'meta iif 0 return',
    'meta l4proto ipv6-icmp ct state untracked fib saddr type local return',
    'meta l4proto ipv6-icmp ct state untracked ip6 saddr :: return',
    `iifname "${ingress}" ct state invalid goto ${invalid}`,
    `iifname "${ingress}" goto ${dropped('leak')}`,
    `oifname "${ingress}" goto ${dropped('unsolicited')}`,
    // By another way than workloads come.
    ...families.map((f) => {
      const source = `ct original ${header[f]} saddr`;
      return `${source} @sources${f} ${source} != @noegress${f} goto ${dropped('spoofed-source')}`;
    }),
  ]);
}

function lastHook(
  ingress: string,
  leak: string,
  undecided: string,
  tunnelled: boolean,
  settled: boolean,
): Chains['all'] {
  const chains = new Chains();
  const decided = markText(CT_DECIDED);
  const rules = [
    `ct mark and ${markText(CT_RULE_MASK)} == 0x00000000 goto ${undecided}`,
    `ct state invalid,untracked goto ${undecided}`,
    ...families.map(
      (f) => `ct original ${header[f]} saddr . ${header[f]} saddr @own${f} ct mark set ct mark or ${decided} accept`,
    ),
    `iifname "${ingress}" goto ${leak}`,
  ];
  const known = settled ? [`ct mark and ${decided} == ${decided} accept`] : [];
  // The kernel names the tunnel device as the one that our own tunnel packets came in by.
  const own = tunnelled ? [`meta mark ${markText(GATEWAY_TUNNEL_MARK)} accept`] : [];
  chains.base('last', 'type filter hook postrouting priority 300; policy accept;', rules, [...known, ...own]);
  return chains.all;
}

/** A TCP client fails at once with a reset, any other with "administratively prohibited". */
const rejectStatements = ['meta l4proto tcp reject with tcp reset', 'reject with icmpx admin-prohibited'];

/** Where policy is walked no answer can be given yet: routing leads to one, by the mark. */
const reject = [
  `meta l4proto tcp meta mark set ${markText(GATEWAY_RESET_MARK)} accept`,
  `meta mark set ${markText(GATEWAY_PROHIBIT_MARK)} accept`,
];

/** At most 1,000 records a second: a flood of denials must not become a flood of work. The counters count all. */
function log(prefix: string): string {
  return `limit rate 1000/second burst 1000 packets log prefix "${prefix}" group ${NFLOG_GROUP} snaplen 96`;
}

/** What policy denies. `logged`: absent where rules want no records of it. */
function denials(chains: Chains, logged?: (prefix: string) => string): Denials {
  const ending = (noun: string, reason: 'rule' | 'default-action' | 'redirect' | 'limit', last = ['drop']): string => {
    const record = logged?.(reason === 'default-action' ? 'rule' : reason) ?? [];
    return chains.add(noun, [`counter name ${counterName(reason)}`, record, last].flat());
  };
  return {
    drop: () => ending('drop', 'rule'),
    reject: () => ending('reject', 'rule', reject),
    byDefault: () => ending('drop', 'default-action'),
    redirect: () => ending('drop', 'redirect'),
    overLimit: () => ending('drop', 'limit'),
    audit: (reason) =>
      chains.add('audit', [
        `counter name ${auditCounterName(reason)}`,
        log(reason === 'limit' ? AUDIT_LIMIT : 'audit'),
      ]),
  };
}

/** One chain per reason: count, record, drop. */
function dropChains(chains: Chains): (reason: DropReason) => string {
  const names = new Map<DropReason, string>();
  return (reason) => {
    let name = names.get(reason);
    if (name === undefined) {
      name = chains.add('drop', [`counter name ${counterName(reason)}`, log(reason), 'drop']);
      names.set(reason, name);
    }
    return name;
  };
}

/**
 * Tunnel packets. What a node sends in the name of a workload that it holds is never tracked, since its flows are the
 * inner ones; that is found on the internal interface itself, so that no other packet pays for it, and no later hook is
 * run for it. What is tracked has not passed there: it came in by another interface, was in fragments (the MTU of
 * the tunnel is such that none are), or the interface was made anew and lost its chain: dropped in the input hook.
 * Returns the rules for the input hook.
 */
function tunnelHooks(
  chains: Chains,
  plan: GatewayPlan,
  pool: PoolSettings,
  dropped: (reason: DropReason) => string,
): string[] {
  const { port } = pool.steering;
  // Nearly always one: a family that no node has would cost each packet a comparison.
  const outerFamilies = families.filter((family) =>
    Object.values(plan.nodes).some(({ addresses }) => addresses.some((address) => familyOf(address) === family)),
  );
  const held = families.flatMap((inner) =>
    outerFamilies.map((outer) => `${innerType} ${etherType[inner]} ${heldKey(outer, inner)} @held${outer}${inner}`),
  );
  const suspect = families.map((family) =>
    chains.add('suspect', [
      `${innerSource[family]} @known${family} goto ${dropped('spoofed-source')}`,
      `goto ${dropped('unknown-source')}`,
    ]),
  );
  const tunnel = chains.add('tunnel', [
    `${vni} != ${vniText(pool)} goto ${dropped('foreign-tunnel')}`,
    'meta nfproto ipv4 ip saddr != @nodes4 goto '.concat(dropped('foreign-tunnel')),
    'meta nfproto ipv6 ip6 saddr != @nodes6 goto '.concat(dropped('foreign-tunnel')),
    ...families.map((inner, at) => `${innerType} ${etherType[inner]} goto ${suspect[at]}`),
    `goto ${dropped('bad-tunnel-frame')}`,
  ]);
  chains.ingress('tunnel_in', pool.internalInterface, [
    ...held.map((match) => `${match} notrack ${checked} accept`),
    `udp dport ${port} goto ${tunnel}`,
  ]);
  return [`udp dport ${port} goto ${dropped('foreign-tunnel')}`];
}

/**
 * The tunnel's own packets are not tracked. And nobody outside gets an answer from an egress IP itself: what belongs to no
 * flow and begins none (conntrack calls it invalid) is not seen by the input hook, and the kernel would reset it.
 */
function outputHook(chains: Chains, pool: PoolSettings, stray: string): void {
  // By the port alone: comparing the name of the interface would cost each answer more.
  const tunnel = `udp dport ${pool.steering.port} notrack meta mark set ${markText(GATEWAY_TUNNEL_MARK)} accept`;
  chains.base(
    'output',
    'type filter hook output priority raw; policy accept;',
    // Not neighbour discovery, which goes by these addresses.
    families.map(
      (f) => `oifname "${pool.externalInterface}" meta l4proto tcp ${header[f]} saddr @egress${f} goto ${stray}`,
    ),
    isTunnelled(pool) ? [tunnel] : [],
  );
}

/**
 * The walk of the policy, in a hook that only the first packet of a flow runs, before it is routed. Whoever translated
 * its destination before (an earlier chain) keeps it from coming here, and so from leaving.
 */
function policyHook(
  chains: Chains,
  pool: PoolSettings,
  walk: string,
  dropped: (reason: DropReason) => string,
  hairpin: string,
): void {
  const egress = chains.add('egress', [
    ...families.map((family) => `${header[family]} daddr @hairpin${family} goto ${hairpin}`),
    ...families.map((family) => `${header[family]} daddr @cluster${family} goto ${dropped('cluster-destination')}`),
    'meta mark set 0x00000000',
    ...families.map((family) => `meta mark set ${header[family]} saddr map @group${family}`),
    `meta mark 0x00000000 goto ${dropped('unknown-source')}`,
    ...families.map((family) => `${header[family]} saddr @noegress${family} goto ${dropped('no-egress-ip')}`),
    walk,
    // The group went while its packet was on its way.
    `goto ${dropped('unknown-source')}`,
  ]);
  // A stranger on the segment is told nothing. From the tunnel none comes so far: its packets were asked before.
  const first = isTunnelled(pool)
    ? egress
    : chains.add('inside', [
        'fib daddr type { local, broadcast, multicast } return',
        ...families.map((family) => `${header[family]} saddr @sources${family} goto ${egress}`),
        `goto ${dropped('unknown-source')}`,
      ]);
  chains.base('walk', 'type nat hook prerouting priority dstnat + 10; policy accept;', [
    `iifname "${ingressOf(pool)}" goto ${first}`,
  ]);
}

/** Sets and maps: whoever comes or goes is an element here. */
function membership(plan: GatewayPlan, pool: PoolSettings, groupMarks: Map<string, number>): Record<string, NftSet> {
  const sets: Record<string, NftSet> = {};
  const tunnelled = isTunnelled(pool);
  const tunnel = concat(String(pool.steering.port), vniText(pool));
  const fresh = (name: string, set: Omit<NftSet, 'elements'>): Map<string, string> => {
    const elements = new Map<string, string>();
    sets[name] = { ...set, elements };
    return elements;
  };
  for (const family of families) {
    const type = addressType[family];
    const known = tunnelled ? fresh(`known${family}`, { type: { typeof: innerSource[family] } }) : undefined;
    const sources = fresh(`sources${family}`, { type });
    const group = fresh(`group${family}`, { type, value: 'mark' });
    const noEgress = fresh(`noegress${family}`, { type });
    const snat = fresh(`snat${family}`, { type, value: type });
    const own = fresh(`own${family}`, { type: `${type} . ${type}` });
    const held = tunnelled ? { 4: heldSet(fresh, 4, family), 6: heldSet(fresh, 6, family) } : undefined;
    for (const workload of Object.values(plan.workloads)) {
      const mark = markText(groupMarks.get(workload.group) ?? 0);
      const outer = plan.nodes[workload.node]?.addresses ?? [];
      for (const address of workload.addresses) {
        const parsed = parseAddress(address);
        if (!parsed.ok || parsed.value.family !== family) continue;
        const raw = rawText(parsed.value.value);
        known?.set(raw, '');
        sources.set(address, '');
        group.set(address, mark);
        const egress = workload.egress[family];
        if (egress === undefined) noEgress.set(address, '');
        else {
          snat.set(address, egress.address);
          own.set(concat(address, egress.address), '');
        }
        if (held === undefined) continue;
        for (const node of outer) held[familyOf(node)].set(concat(node, tunnel, raw), '');
      }
    }
    const nodes = tunnelled ? fresh(`nodes${family}`, { type }) : new Map<string, string>();
    for (const { addresses } of Object.values(plan.nodes)) add(nodes, addresses, family);
    const egressIPs = fresh(`egress${family}`, { type });
    for (const { egressIPs: addresses } of Object.values(plan.shards)) add(egressIPs, addresses, family);
    const hairpin = fresh(`hairpin${family}`, { type });
    for (const text of egressIPs.keys()) hairpin.set(text, '');
    for (const { nextHops } of Object.values(plan.shards)) add(hairpin, [nextHops[family] ?? ''], family);
    for (const gateway of Object.values(plan.gateways)) {
      add(hairpin, [gateway.internalAddress, ...gateway.addresses], family);
    }
    const cluster = fresh(`cluster${family}`, { type, interval: true });
    for (const text of disjoint([...pool.clusterCIDRs, ...pool.excludedCIDRs], family)) cluster.set(text, '');
  }
  return sets;
}

function heldSet(
  fresh: (name: string, set: Omit<NftSet, 'elements'>) => Map<string, string>,
  outer: Family,
  inner: Family,
): Map<string, string> {
  return fresh(`held${outer}${inner}`, { type: { typeof: heldKey(outer, inner) } });
}

const familyOf = (address: string): Family => (address.includes(':') ? 6 : 4);

function add(elements: Map<string, string>, addresses: string[], family: Family): void {
  for (const address of addresses) if (address !== '' && familyOf(address) === family) elements.set(address, '');
}

/** Prefixes as ranges that do not overlap, which an interval set wants. */
function disjoint(prefixes: string[], family: Family): string[] {
  const text = (value: bigint): string => formatAddress({ family, value });
  return must(PrefixSet.parse(prefixes))
    .ranges(family)
    .map(({ first, last }) => rangeText(text(first), text(last)));
}
