/**
 * The chains that every packet may meet, whatever the policy (design §5). Order of a packet's way:
 *   ingress          tunnel packets from a node of the plan, with an inner source that this node holds: not tracked. Others
 *                    are dropped by reason
 *   nat input        first packets only, so not the tunnel's: nobody reaches the gateway's sockets through an egress IP or
 *                    from the tunnel, nor the tunnel by another way; TCP that policy rejects is led here and reset
 *   nat prerouting   first packets only: source → group, contexts in order, default action. What is permitted goes on
 *                    with its rule in the ct mark
 *   nat postrouting  first packets only: source, and where EgressIPs say so destination and flow → egress IP (source-nat.ts)
 *   output           tunnel packets of our own: not tracked
 *   forward          only while a rule asks for what flows say: nothing of a flow that is to be read passes unread
 *   last hook        a workload's packet whose source is not its own egress IP is dropped: a leak; so is one that no
 *                    rule has permitted. The first packet that passes makes its flow a decided one. Every packet is
 *                    asked while the connection table may hold flows that are translated otherwise than the plan says;
 *                    else only those of flows that are not decided, since a flow keeps its translation
 * Membership lives in sets and maps (membership.ts). The checks that every packet pays are two short chains.
 * Direct mode has no tunnel: workloads' packets come by the internal interface as they are, among those of nodes and
 * of whoever else is on that segment, which is trusted. Then a source is a workload's if the plan says so.
 */
import {
  CT_DECIDED,
  CT_RULE_MASK,
  GATEWAY_CHECKED_MARK,
  GATEWAY_PROHIBIT_MARK,
  GATEWAY_RESET_MARK,
  GATEWAY_TUNNEL_MARK,
  NFLOG_GROUP,
} from '../api/names.ts';
import { type Family, families, type GatewayPlan, type PoolSettings } from '../api/plan.ts';
import { type AuditReason, auditCounterName, counterName, type DropReason } from '../api/reasons.ts';
import { markText, type NftChain } from '../kernel/nft.ts';
import { ingressOf, isTunnelled } from './compile-net.ts';
import { header } from './destination-sets.ts';
import { type VerdictsFor, verdictsByLogging } from './logging.ts';
import { etherType, familyOf, heldKey, innerSource, innerType, vni, vniText } from './membership.ts';
import { addReadChains, isRead, READ_LAST } from './read-chains.ts';
import { AUDIT_LIMIT, EGRESS_LIMIT, MATCH } from './record/flow-record.ts';
import type { Refusals } from './source-nat.ts';
import type { Scope } from './table.ts';
import type { Denials } from './verdict.ts';

export interface Frame {
  /** Chains that end a walk of the policy. */
  verdictsFor: VerdictsFor;
  /** Of the choice of a source (source-nat.ts). */
  refusals: Refusals;
  /** While a rule asks for what flows say: what becomes of the packets of flows that are read (read-chains.ts). */
  readChains(scope: Scope): void;
  /**
   * The chain of the last hook; `settled`: for when no flow is left that is translated otherwise than the plan says.
   * `bandwidth`: the chain that every packet passes before, if anything is limited (bandwidth-chains.ts). `reads`: whether
   * readChains() are there.
   */
  lastHook(settled: boolean, bandwidth: string | undefined, reads: boolean): NftChain;
}

export const LAST_HOOK = 'last_hook';

/** Routing asks for it: without this table nothing of a workload is forwarded. */
const checked = `meta mark set ${markText(GATEWAY_CHECKED_MARK)}`;

/** `reversePathFilter`: whether the kernel filters what comes from the external interface so. */
export function compileFrame(
  scope: Scope,
  nodes: GatewayPlan['nodes'],
  pool: PoolSettings,
  reversePathFilter: boolean,
): Frame {
  const chain = (name: string, rules: string[]): string => {
    scope.chain(name, { rules });
    return name;
  };
  const dropped = (reason: DropReason): string =>
    chain(named('drop', reason), [`counter name ${counterName(reason)}`, log(reason), 'drop']);
  const verdictsFor = verdictsByLogging(chain, {
    decisions: denials(chain, '', log),
    none: denials(chain, '_unlogged'),
    match: log(MATCH),
  });
  const hairpin = (name: string, last: string[]): string =>
    chain(name, [`counter name ${counterName('hairpin')}`, log('hairpin'), ...last]);
  const base = (name: string, hook: string, rules: string[]): void => scope.chain(name, { hook, rules });

  const tunnelled = isTunnelled(pool);
  const ingress = ingressOf(pool);
  const tunnelInput = tunnelled ? tunnelHooks(scope, chain, nodes, pool, dropped) : [];
  // Answers, where the way back of each is looked up: see deviceSysctls().
  if (reversePathFilter) onDevice(scope, 'outside_in', pool.externalInterface, [`meta protocol ip ${checked}`]);
  if (!tunnelled) {
    base('inside_in', 'type filter hook prerouting priority raw; policy accept;', [`iifname "${ingress}" ${checked}`]);
  }
  base('walk', 'type nat hook prerouting priority dstnat + 10; policy accept;', [
    `iifname "${ingress}" goto ${walk(chain, pool, dropped, hairpin('hairpin_walk', reject))}`,
  ]);
  const refused = hairpin('hairpin_input', rejectStatements);
  base('input', 'type nat hook input priority 100; policy accept;', [
    ...tunnelInput,
    `iifname "${ingress}" meta mark ${markText(GATEWAY_RESET_MARK)} reject with tcp reset`,
    ...(tunnelled
      ? [`iifname "${ingress}" goto ${refused}`]
      : // Not all that comes from there: nodes, the controller and the other gateways talk to this machine too.
        families.map((f) => `iifname "${ingress}" ${ofWorkload(f)} goto ${refused}`)),
    ...families.map((family) => `${header[family]} daddr @egress${family} goto ${dropped('stray')}`),
  ]);
  base('output', 'type filter hook output priority raw; policy accept;', outputRules(pool, dropped('stray')));
  const undecided = undecidedPackets(chain, ingress, dropped);
  const leak = dropped('leak');
  const refusals = {
    noAddress: dropped('no-egress-ip'),
    overLimit: chain('drop_egress_limit', [`counter name ${counterName('limit')}`, log(EGRESS_LIMIT), 'drop']),
  };
  return {
    verdictsFor,
    refusals,
    readChains: (reading) =>
      addReadChains(reading, {
        unread: [`counter name ${counterName('unread')}`, log('unread'), 'drop'],
        overLimit: verdictsFor(undefined).overLimit,
        last: [...ownSources('accept'), `iifname "${ingress}" goto ${leak}`],
        overload: pool.inspection?.onOverload ?? 'Drop',
      }),
    lastHook: (settled, bandwidth, reads) =>
      lastHook(ingress, leak, undecided, { tunnelled, settled, bandwidth, reads }),
  };
}

/** Nearly always one: a family that no node has would cost each packet a comparison. */
export function outerFamilies(nodes: GatewayPlan['nodes']): Family[] {
  return families.filter((family) =>
    Object.values(nodes).some(({ addresses }) => addresses.some((address) => familyOf(address) === family)),
  );
}

/**
 * Matches a source that is a workload's. Of those there is one map, by which the walk finds a source's group: a set of
 * the same addresses beside it would double what a pod's coming costs. The mark is of no use to whoever asks only this.
 */
const ofWorkload = (family: Family, source = `${header[family]} saddr`): string =>
  `meta mark set ${source} map @group${family}`;

type AddChain = (name: string, rules: string[]) => string;

const named = (noun: string, reason: string): string => `${noun}_${reason.replaceAll('-', '_')}`;

/**
 * A chain on one interface, before all other hooks. Another device needs another chain, so its name tells: while one
 * takes the place of another a packet may pass neither, which the rules must allow for.
 */
function onDevice(scope: Scope, noun: string, device: string, rules: string[]): void {
  const hook = `type filter hook ingress device "${device}" priority filter; policy accept;`;
  const suffix = Buffer.from(device).toString('hex');
  scope.chain(`${noun}_${suffix}`, { hook, rules });
}

/**
 * What leaves without the permission of a rule. Not all of it is a workload's: the machine may be a router to others. A
 * workload without an egress IP, or with one for some destinations only, may be one that is not steered.
 */
function undecidedPackets(chain: AddChain, ingress: string, dropped: (reason: DropReason) => string): string {
  const invalid = chain('invalid_packets', [
    `tcp flags & (syn | ack) == ack goto ${dropped('stray')}`,
    `goto ${dropped('invalid')}`,
  ]);
  return chain('undecided', [
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
      const steered = `${source} != @noegress${f} ${source} != @partly${f}`;
      return `${steered} ${ofWorkload(f, source)} goto ${dropped('spoofed-source')}`;
    }),
  ]);
}

function lastHook(
  ingress: string,
  leak: string,
  undecided: string,
  {
    tunnelled,
    settled,
    bandwidth,
    reads,
  }: { tunnelled: boolean; settled: boolean; bandwidth: string | undefined; reads: boolean },
): NftChain {
  const decided = markText(CT_DECIDED);
  // Not `!= … goto`, which would spare a packet the verdict: of one that belongs to no flow neither matches.
  const known = settled ? [`ct mark and ${decided} == ${decided} accept`] : [];
  // The kernel names the tunnel device as the one that our own tunnel packets came in by.
  const own = tunnelled ? [`meta mark ${markText(GATEWAY_TUNNEL_MARK)} accept`] : [];
  return {
    hook: 'type filter hook postrouting priority 300; policy accept;',
    rules: [
      // Where anything is limited every packet is asked, but for the tunnel's, whose inner ones were.
      ...(bandwidth === undefined ? [...known, ...own] : [...own, `jump ${bandwidth}`, ...known]),
      `ct mark and ${markText(CT_RULE_MASK)} == 0x00000000 goto ${undecided}`,
      `ct state invalid,untracked goto ${undecided}`,
      ...(reads ? [`${isRead} goto ${READ_LAST}`] : []),
      ...ownSources(`ct mark set ct mark or ${decided} accept`),
      `iifname "${ingress}" goto ${leak}`,
    ],
  };
}

/** Of a packet that leaves with a source that is its workload's own. */
const ownSources = (then: string): string[] =>
  families.map((f) => `ct original ${header[f]} saddr . ${header[f]} saddr @own${f} ${then}`);

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

/** What policy denies. `logged`: absent where rules want no records of it, which the names tell. */
function denials(chain: AddChain, suffix: string, logged?: (prefix: string) => string): Denials {
  const ending = (name: string, reason: 'rule' | 'default-action' | 'redirect' | 'limit', last = ['drop']): string => {
    const record = logged?.(reason === 'default-action' ? 'rule' : reason) ?? [];
    return chain(`${name}${suffix}`, [`counter name ${counterName(reason)}`, record, last].flat());
  };
  const audit = (reason: AuditReason): string =>
    chain(named('audit', reason), [
      `counter name ${auditCounterName(reason)}`,
      log(reason === 'limit' ? AUDIT_LIMIT : 'audit'),
    ]);
  return {
    drop: ending('drop_rule', 'rule'),
    reject: ending('reject_rule', 'rule', reject),
    byDefault: ending('drop_default_action', 'default-action'),
    redirect: ending('drop_redirect', 'redirect'),
    overLimit: ending('drop_limit', 'limit'),
    audit: { rule: audit('rule'), 'default-action': audit('default-action'), limit: audit('limit') },
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
  scope: Scope,
  chain: AddChain,
  nodes: GatewayPlan['nodes'],
  pool: PoolSettings,
  dropped: (reason: DropReason) => string,
): string[] {
  const { port } = pool.steering;
  const outers = outerFamilies(nodes);
  // A map to the mark: to set one afterwards is another expression for every packet.
  const held = families.flatMap((inner) =>
    outers.map(
      (outer) => `${innerType} ${etherType[inner]} meta mark set ${heldKey(outer, inner)} map @held${outer}${inner}`,
    ),
  );
  const suspect = families.map((family) =>
    chain(`suspect${family}`, [
      `${innerSource[family]} @known${family} goto ${dropped('spoofed-source')}`,
      `goto ${dropped('unknown-source')}`,
    ]),
  );
  const tunnel = chain('foreign_tunnel', [
    `${vni} != ${vniText(pool)} goto ${dropped('foreign-tunnel')}`,
    ...families.map((f) => `meta nfproto ipv${f} ${header[f]} saddr != @nodes${f} goto ${dropped('foreign-tunnel')}`),
    ...families.map((inner, at) => `${innerType} ${etherType[inner]} goto ${suspect[at]}`),
    `goto ${dropped('bad-tunnel-frame')}`,
  ]);
  onDevice(scope, 'tunnel_in', pool.internalInterface, [
    ...held.map((match) => `${match} notrack accept`),
    `udp dport ${port} goto ${tunnel}`,
  ]);
  return [`udp dport ${port} goto ${dropped('foreign-tunnel')}`];
}

/**
 * The tunnel's own packets are not tracked. And nobody outside gets an answer from an egress IP itself: what belongs to no
 * flow and begins none (conntrack calls it invalid) is not seen by the input hook, and the kernel would reset it.
 */
function outputRules(pool: PoolSettings, stray: string): string[] {
  // By the port alone: comparing the name of the interface would cost each answer more.
  const tunnel = `udp dport ${pool.steering.port} notrack meta mark set ${markText(GATEWAY_TUNNEL_MARK)} accept`;
  return [
    ...(isTunnelled(pool) ? [tunnel] : []),
    // Not neighbour discovery, which goes by these addresses; nor what refuses a workload (hairpin), which is of its flow.
    ...families.map((f) => `meta l4proto tcp ct state invalid ${header[f]} saddr @egress${f} goto ${stray}`),
  ];
}

/**
 * The walk of the policy, in a hook that only the first packet of a flow runs, before it is routed. Whoever translated
 * its destination before (an earlier chain) keeps it from coming here, and so from leaving.
 */
function walk(chain: AddChain, pool: PoolSettings, dropped: (reason: DropReason) => string, hairpin: string): string {
  const workload = chain('from_workload', [
    ...families.map((family) => `${header[family]} daddr @hairpin${family} goto ${hairpin}`),
    ...families.map((family) => `${header[family]} daddr @cluster${family} goto ${dropped('cluster-destination')}`),
    'meta mark set 0x00000000',
    ...families.map((family) => `meta mark set ${header[family]} saddr map @group${family}`),
    // More than one look-up would be one too many: a change between two of them could show a packet half of the old
    // policy and half of the new.
    'meta mark vmap @groups',
    // Nobody's, or the group went while its packet was on its way.
    `goto ${dropped('unknown-source')}`,
  ]);
  if (isTunnelled(pool)) return workload;
  // A stranger on the segment is told nothing. From the tunnel none comes so far: its packets were asked before.
  return chain('from_inside', [
    'fib daddr type { local, broadcast, multicast } return',
    ...families.map((family) => `${ofWorkload(family)} goto ${workload}`),
    `goto ${dropped('unknown-source')}`,
  ]);
}
