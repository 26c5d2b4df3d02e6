/**
 * Addresses that nobody may be led to in a tenant's name (design §3, §4.7): by a URL that the controller fetches, or by
 * a redirect. Fixed ranges first (IANA special-purpose registries, RFC 6890), then what this installation is made of.
 */
import { type Address, formatAddress, parseAddress, parseRange, type Range } from '../../api/address.ts';
import type { AnyObject } from '../../api/kinds.ts';
import type { Context } from '../../api/plan.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import type { Pool } from './pools.ts';
import type { Snapshot } from './snapshot.ts';

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

/**
 * `own`: addresses of the controller's machine; `gateways`: what gateways and nodes reported as theirs. The objects are
 * only looked through for addresses that are asked for, since there are many of them and a name has few.
 */
export function forbiddenAddresses(snapshot: Snapshot, own: readonly string[], gateways: readonly string[]): Forbidden {
  const machines = (
    [
      ['controller', own],
      ['gateway', gateways],
    ] as const
  ).map(([name, texts]) => [name, PrefixSet.of(texts.flatMap(readable))] as const);
  const find: Forbidden = (address) => {
    if (nat64.has(address)) return find({ family: 4, value: address.value & 0xffff_ffffn });
    const set = [...fixed, ...machines].find(([, ranges]) => ranges.has(address));
    if (set !== undefined) return set[0];
    const text = formatAddress(address);
    for (const object of snapshot.values()) {
      if (object.kind === 'Pod') {
        // Canonical since they passed their schema.
        if (object.status.podIPs?.some(({ ip }) => ip === text)) return 'pod';
      } else {
        const place = placesOf(object).find(([, range]) => holds(range, address));
        if (place !== undefined) return place[0];
      }
    }
    return undefined;
  };
  return find;
}

type Place = [name: string, range: Range];
/** An object is a value: what was read of it once holds as long as it is there. */
const places = new WeakMap<AnyObject, Place[]>();

function placesOf(object: AnyObject): Place[] {
  const known = places.get(object);
  if (known !== undefined) return known;
  const found = textsOf(object).flatMap(([name, texts]) =>
    texts.flatMap(readable).map((range): Place => [name, range]),
  );
  places.set(object, found);
  return found;
}

function textsOf(object: AnyObject): [name: string, texts: readonly string[]][] {
  switch (object.kind) {
    case 'GatewayPool': {
      const { clusterCIDRs, gateways, nextHops } = object.spec;
      const inside = gateways.map(({ internalAddress }) => internalAddress);
      return [
        ['cluster', clusterCIDRs],
        ['gateway', [...inside, ...(nextHops.v4 ?? []), ...(nextHops.v6 ?? [])]],
      ];
    }
    case 'EgressIPPool':
      return [['egress', object.spec.ranges]];
    case 'Node': {
      const { spec, status } = object;
      return [['node', [...(spec.podCIDRs ?? []), ...(status.addresses ?? []).map(({ address }) => address)]]];
    }
    case 'Service':
      return [['service', object.spec.clusterIPs ?? []]];
    default:
      return [];
  }
}

const holds = ({ family, first, last }: Range, address: Address): boolean =>
  family === address.family && first <= address.value && address.value <= last;

/** Node addresses may be names, cluster IPs `None`; zones are the machine's own. */
function readable(text: string): Range[] {
  const range = parseRange(text.replace(/%.*$/, ''));
  return range.ok ? [range.value] : [];
}

/** Of a redirect's address: why it may not be, for a condition's message. Undefined: the redirect may lead there. */
export type RedirectBan = (address: string, context: Context) => string | undefined;

const redirectWords: Record<string, string> = {
  cluster: 'it lies in clusterCIDRs of a GatewayPool',
  excluded: 'it lies in excludedCIDRs of a GatewayPool',
  gateway: 'it is an address of a gateway, or a next hop',
  egress: 'it lies in the ranges of an EgressIPPool, or is an egress IP',
  node: 'it is an address of a node, or lies in its pod ranges',
  pod: 'it is the address of a pod',
  service: 'it is the address of a Service',
};
/**
 * Where the redirect of a cluster rule may lead, since who writes it is who says what may go there. To a gateway or an
 * egress IP no workload gets in any case (design §5, hairpin).
 */
const byClusterRule = new Set(['cluster', 'excluded', 'node', 'pod', 'service']);

/** Of all pools together. There may be many redirects, so that the objects are looked through once, for the first. */
export function redirectBan(snapshot: Snapshot, pools: readonly Pool[]): RedirectBan {
  let kinds: [name: string, set: PrefixSet][] | undefined;
  const find = (address: Address): string[] => {
    kinds ??= kindsOf(snapshot, pools);
    if (nat64.has(address)) return find({ family: 4, value: address.value & 0xffff_ffffn });
    return kinds.flatMap(([name, set]) => (set.has(address) ? [name] : []));
  };
  return (text, context) => {
    const kind = find(must(parseAddress(text))).find((each) => context !== 'cluster' || !byClusterRule.has(each));
    return kind === undefined ? undefined : (redirectWords[kind] ?? `it is a ${kind} address`);
  };
}

function kindsOf(snapshot: Snapshot, pools: readonly Pool[]): [name: string, set: PrefixSet][] {
  const ranges = new Map<string, Range[]>();
  const add = (name: string, range: Range): void => {
    const list = ranges.get(name);
    if (list === undefined) ranges.set(name, [range]);
    else list.push(range);
  };
  const addTexts = (name: string, texts: readonly string[]): void => {
    for (const range of texts.flatMap(readable)) add(name, range);
  };
  for (const object of snapshot.values()) {
    if (object.kind === 'Pod') addTexts('pod', object.status.podIPs?.map(({ ip }) => ip) ?? []);
    else for (const [name, range] of placesOf(object)) add(name, range);
  }
  for (const { settings, gateways, shards } of pools) {
    addTexts('excluded', settings.excludedCIDRs);
    for (const { addresses } of Object.values(gateways)) addTexts('gateway', addresses);
    for (const { egressIPs } of Object.values(shards)) addTexts('egress', egressIPs);
  }
  return [...fixed, ...[...ranges].map(([name, list]): [string, PrefixSet] => [name, PrefixSet.of(list)])];
}
