/**
 * The table sluice_inspect, as text for `nft -f`: which packets of flows that are read go to the queue (design §4.5, §5), in
 * the forward hook before the rule that queues. It is there while a rule asks for what flows say, or resolvers are
 * believed. Loading it again puts other rules into chains that stay, and keeps the set: no flow is disturbed.
 *
 * Of TCP only what carries a byte, or ends the stream, is queued; a packet that carries none is told by its length, that of
 * its headers. (With IPv6 extension headers it counts as one that does, which is slower and safe.) A SYN is queued where
 * the very first packet is asked for, or if it brings bytes (RFC 7413). The server's SYN+ACK names the client's first byte:
 * the set `first` remembers it with the connection's id, and the packet that begins there is marked FIRST; a retransmitted
 * one, too. Of flows that are read for life, what the server says passes. Fragments were put together by conntrack.
 *
 * A packet mark serves as register on the way, so every way to an end sets the whole mark. What ends without PASSED or QUEUE
 * is dropped behind the queue (read-chains.ts): bytes in a reset, and ICMP errors of the workload itself.
 */
import {
  CT_DECIDED,
  CT_READ,
  CT_RULE_SHIFT,
  GATEWAY_CHECKED_MARK,
  INSPECT_DNS_MARK,
  INSPECT_FIRST_MARK,
  INSPECT_PASSED_MARK,
  INSPECT_QUEUE_MARK,
  INSPECT_REPLY_MARK,
  NFT_TABLE_INSPECT,
  NUMBER_READ_BYTES,
  NUMBER_READ_FIRST,
} from '../../api/names.ts';
import { type Family, families, type PoolSettings, type ServiceEntry } from '../../api/plan.ts';
import { markText } from '../../kernel/nft.ts';

type PortRange = readonly [first: number, last: number];

/** What is known of connections that have begun: seconds until their first byte, and how long it may be sent again. */
const [IDLE, AGAIN] = [300, 20];
/** Connections that begin and have sent nothing for IDLE, and all of AGAIN. */
const CONNECTIONS = 1 << 19;
/** IPv4 header without options (with some, a packet of this length carries nothing at all). */
const IPV4_HEADER = 20;
/** Words of a TCP header. */
const [DOFF_LEAST, DOFF_MOST] = [5, 15];
const DNS = 53;
const HTTPS: PortRange = [443, 443];

const header: Record<Family, string> = { 4: 'ip', 6: 'ip6' };
const on = (bits: number): string => `meta mark set ${markText(GATEWAY_CHECKED_MARK | bits)} accept`;
const passed = on(INSPECT_PASSED_MARK);
/** It goes no further. */
const nowhere = on(0);
const read = `ct mark & ${markText(CT_READ | CT_DECIDED)} == ${markText(CT_READ)}`;
const errors = 'meta l4proto { icmp, ipv6-icmp } ct state related';
/** In bits of which no rule's number has all. */
const undecided = markText((NUMBER_READ_BYTES & NUMBER_READ_FIRST) << CT_RULE_SHIFT);
const forLife = `ct mark & ${undecided} != ${undecided}`;
const askedFirst = `ct mark & ${markText(NUMBER_READ_BYTES << CT_RULE_SHIFT)} == ${markText(NUMBER_READ_FIRST << CT_RULE_SHIFT)}`;

/** Chains and their rules, in an order in which each names only those behind it. */
type Chains = [name: string, rules: string[]][];

/** `quic`: UDP ports of flows of which for life only those packets are read that may begin a connection (quicPorts()). */
export function inspectTable({ dns }: Pick<PoolSettings, 'dns'>, quic: readonly PortRange[] = [HTTPS]): string {
  const resolvers = [...new Set(dns?.resolvers ?? [])].sort();
  const table = `inet ${NFT_TABLE_INSPECT}`;
  const sets = families.map((family) => {
    const own = resolvers.filter((address) => address.includes(':') === (family === 6));
    return { name: `resolvers${family}`, type: `ipv${family}_addr`, elements: own };
  });
  const first = `typeof ct id . meta mark; flags dynamic,timeout; timeout ${IDLE}s; size ${CONNECTIONS};`;
  const chains = chainsOf(resolvers.length > 0, quic);
  return `${[
    `add table ${table}`,
    `add set ${table} first { ${first} }`,
    ...sets.map(({ name, type }) => `add set ${table} ${name} { type ${type}; }`),
    `add chain ${table} forward { type filter hook forward priority -160; policy accept; }`,
    ...chains.map(([name]) => `add chain ${table} ${name}`),
    ...chains.map(([name]) => `flush chain ${table} ${name}`),
    ...sets.map(({ name }) => `flush set ${table} ${name}`),
    ...sets.flatMap(({ name, elements }) =>
      elements.length === 0 ? [] : `add element ${table} ${name} { ${elements.join(', ')} }`,
    ),
    ...chains.flatMap(([name, rules]) => rules.map((rule) => `add rule ${table} ${name} ${rule}`)),
  ].join('\n')}\n`;
}

/** Takes it away; nothing if it is not there. */
export const noInspectTable = `add table inet ${NFT_TABLE_INSPECT}\ndelete table inet ${NFT_TABLE_INSPECT}\n`;

function chainsOf(teaches: boolean, quic: readonly PortRange[]): Chains {
  const { to, from } = resolverMatches(teaches);
  /** The same packet with the mark of DNS, to or from a resolver; of a flow that is not read: it need not be let on. */
  const marked = (bits: number, matches: readonly string[]): string[] => [
    ...matches.flatMap((match) => [
      `${match} ${read} ${on(bits | INSPECT_QUEUE_MARK | INSPECT_DNS_MARK)}`,
      `${match} ${on(bits | INSPECT_QUEUE_MARK | INSPECT_DNS_MARK | INSPECT_PASSED_MARK)}`,
    ]),
    on(bits | INSPECT_QUEUE_MARK),
  ];
  const sizes = Array.from({ length: DOFF_MOST - DOFF_LEAST + 1 }, (_, at) => DOFF_LEAST + at);
  const lengths: Chains = sizes.map((doff) => [
    `length${doff}`,
    [`ip length ${IPV4_HEADER + 4 * doff} goto empty`, `ip6 length ${4 * doff} goto empty`],
  ]);
  return [
    ['queue_reply', marked(INSPECT_REPLY_MARK, from)],
    ['queue_first', [`update @first { ct id . meta mark timeout ${AGAIN}s }`, ...marked(INSPECT_FIRST_MARK, to)]],
    ['queue_syn', marked(INSPECT_FIRST_MARK, to)],
    [
      'queue_packet',
      [
        'ct direction reply goto queue_reply',
        // The sequence number.
        'meta l4proto tcp meta mark set @th,32,32 ct id . meta mark @first goto queue_first',
        ...marked(0, to),
      ],
    ],
    ['begins', ['meta mark set @th,64,32 update @first { ct id . meta mark }']],
    ['empty', [`tcp flags & syn == syn ${askedFirst} goto queue_syn`, passed]],
    ...lengths,
    [
      'tcp_packet',
      [
        // The acknowledgement: of the client's first byte.
        'ct direction reply tcp flags & (syn | ack) == (syn | ack) jump begins',
        // It tells where both directions of the connection begin.
        ...from.map((match) => `ct direction reply tcp flags & (syn | ack) == (syn | ack) ${match} goto queue_reply`),
        `tcp flags & fin == 0 tcp doff vmap { ${sizes.map((doff) => `${doff} : jump length${doff}`).join(', ')} }`,
        ...from.map((match) => `ct direction reply ${match} goto queue_reply`),
        `ct direction reply ${forLife} ${passed}`,
        `ct direction original tcp flags & rst == rst ${nowhere}`,
        'tcp flags & (syn | ack) == syn goto queue_syn',
        'goto queue_packet',
      ],
    ],
    [
      'quic_packet',
      [
        // A short header: of a connection that has begun. Of long ones those that are known and no Initial (RFC 9000 §17.2, RFC 9369 §3.2).
        `@th,64,8 & 0x80 == 0 ${passed}`,
        `@th,72,32 0x00000001 @th,64,8 & 0x30 != 0 ${passed}`,
        `@th,72,32 0x6b3343cf @th,64,8 & 0x30 != 0x10 ${passed}`,
        'goto queue_packet',
      ],
    ],
    [
      'other_packet',
      [
        // Errors about the flow. What the workload itself says in one is not read.
        `${errors} ct direction reply ${passed}`,
        `${errors} ${forLife} ${passed}`,
        `${errors} ${nowhere}`,
        ...from.map((match) => `ct direction reply ${match} goto queue_reply`),
        `ct direction reply ${forLife} ${passed}`,
        ...(quic.length === 0
          ? []
          : [`ct direction original ${forLife} udp dport { ${quic.map(rangeText).join(', ')} } goto quic_packet`]),
        'goto queue_packet',
      ],
    ],
    ['packet', ['meta l4proto tcp goto tcp_packet', 'goto other_packet']],
    ['forward', [`${read} goto packet`, ...[...to, ...from].map((match) => `${match} goto packet`)]],
  ];
}

/** Packets to and from resolvers. */
function resolverMatches(teaches: boolean): { to: string[]; from: string[] } {
  const matches = (address: 'saddr' | 'daddr', port: 'sport' | 'dport'): string[] =>
    teaches
      ? families.map((f) => `meta l4proto { tcp, udp } th ${port} ${DNS} ${header[f]} ${address} @resolvers${f}`)
      : [];
  return { to: matches('daddr', 'dport'), from: matches('saddr', 'sport') };
}

const rangeText = ([first, last]: PortRange): string => (first === last ? `${first}` : `${first}-${last}`);

/** UDP ports where services have flows read as QUIC, and none as anything else: there each packet may say something new. */
export function quicPorts(services: Iterable<Pick<ServiceEntry, 'checks'>>): PortRange[] {
  const ALL: PortRange = [0, 65_535];
  const UDP = 17;
  const [yes, no] = [new Set<number>(), new Set<number>()];
  for (const { checks = [] } of services) {
    for (const { protocol, ports, application } of checks) {
      if (protocol !== UDP) continue;
      for (const [first, last] of ports ?? [ALL]) {
        for (let port = first; port <= last; port++) (application === 'QUIC' ? yes : no).add(port);
      }
    }
  }
  const ranges: [number, number][] = [];
  for (const port of [...yes].filter((each) => !no.has(each)).sort((a, b) => a - b)) {
    const open = ranges.at(-1);
    if (open !== undefined && open[1] + 1 === port) open[1] = port;
    else ranges.push([port, port]);
  }
  return ranges;
}
