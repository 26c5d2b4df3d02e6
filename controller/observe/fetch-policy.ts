/**
 * What the controller may fetch from (design §3): hosts that a GatewayPool allows, and never an address of the ranges
 * below, whatever a name resolves to. A tenant who can name a URL must not reach with the controller's eyes what he
 * cannot reach himself. Fixed ranges first (IANA special-purpose registries, RFC 6890), then what this installation is
 * made of. Private addresses of elsewhere are not among them: a list may well be served inside a company, by a host
 * that the network team has allowed.
 */
import { type Address, parseAddress, parseRange, type Range } from '../../api/address.ts';
import { parseAuthority } from '../../api/list-url.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import { ofKind, type Snapshot } from '../plan/snapshot.ts';

export interface FetchPolicy {
  allows(host: string, port: number): boolean;
  forbidden: Forbidden;
}

/** Of all pools together: `host port`. */
export function allowedHosts(snapshot: Snapshot): Set<string> {
  const texts = ofKind(snapshot, 'GatewayPool').flatMap(({ spec }) => spec.fetch.allowedHosts);
  return new Set(
    texts.map((text) => {
      const { host, port } = must(parseAuthority(text));
      return `${host} ${port}`;
    }),
  );
}

/** What an address is of, or undefined if it may be connected to. */
export type Forbidden = (address: Address) => string | undefined;

const fixed: [string, PrefixSet][] = (
  [
    ['unspecified', '0.0.0.0/8', '::/128'],
    ['loopback', '127.0.0.0/8', '::1/128'],
    ['link-local', '169.254.0.0/16', 'fe80::/10', 'fec0::/10'],
    // Where clouds answer with a machine's credentials, beside 169.254.169.254.
    ['metadata', 'fd00:ec2::/32', '100.100.100.200/32', '168.63.129.16/32', '192.0.0.0/24'],
    ['multicast', '224.0.0.0/4', 'ff00::/8'],
    ['reserved', '240.0.0.0/4', '100::/64'],
    // IPv4 in IPv6 clothes, which would pass by the IPv4 ranges: mapped, compatible, local NAT64, 6to4, Teredo.
    ['translated', '::ffff:0:0/96', '::/96', '64:ff9b:1::/48', '2002::/16', '2001::/32'],
  ] as const
).map(([name, ...ranges]) => [name, must(PrefixSet.parse(ranges))]);
/** RFC 6052: the last 32 bits are an IPv4 address, as DNS64 gives it for every IPv4-only name. */
const nat64 = must(PrefixSet.parse(['64:ff9b::/96']));

/** `own`: addresses of the controller's machine; `gateways`: what gateways and nodes reported as theirs. */
export function forbiddenAddresses(snapshot: Snapshot, own: readonly string[], gateways: readonly string[]): Forbidden {
  const pools = ofKind(snapshot, 'GatewayPool').map(({ spec }) => spec);
  const nodes = ofKind(snapshot, 'Node');
  const ranges: [string, string[]][] = [
    ['controller', [...own]],
    ['cluster', pools.flatMap(({ clusterCIDRs }) => clusterCIDRs)],
    [
      'gateway',
      [
        ...gateways,
        ...pools.flatMap(({ gateways: list, nextHops }) => [
          ...list.map(({ internalAddress }) => internalAddress),
          ...(nextHops.v4 ?? []),
          ...(nextHops.v6 ?? []),
        ]),
      ],
    ],
    ['egress', ofKind(snapshot, 'EgressIPPool').flatMap(({ spec }) => spec.ranges)],
    [
      'node',
      nodes.flatMap(({ spec, status }) => [...(spec.podCIDRs ?? []), ...(status.addresses ?? []).map(addressOf)]),
    ],
    ['pod', ofKind(snapshot, 'Pod').flatMap(({ status }) => (status.podIPs ?? []).map(({ ip }) => ip))],
    ['service', ofKind(snapshot, 'Service').flatMap(({ spec }) => spec.clusterIPs ?? [])],
  ];
  const sets = [...fixed, ...ranges.map(([name, texts]) => [name, PrefixSet.of(texts.flatMap(readable))] as const)];
  const find: Forbidden = (address) => {
    if (nat64.has(address)) return find({ family: 4, value: address.value & 0xffff_ffffn });
    return sets.find(([, set]) => set.has(address))?.[0];
  };
  return find;
}

const addressOf = ({ address }: { address: string }): string => address;

/** Node addresses may be names, cluster IPs `None`; zones are the machine's own. */
function readable(text: string): Range[] {
  const range = parseRange(text.replace(/%.*$/, ''));
  return range.ok ? [range.value] : [];
}

/** Text that cannot be read is no address to connect to. */
export function checkAddress(text: string, forbidden: Forbidden): string | undefined {
  const address = parseAddress(text);
  return address.ok ? forbidden(address.value) : 'unreadable';
}
