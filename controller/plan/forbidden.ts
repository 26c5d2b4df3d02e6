/**
 * Addresses that nobody may be led to in a tenant's name (design §3, §4.7): by a URL that the controller fetches, or by
 * a redirect. Fixed ranges first (IANA special-purpose registries, RFC 6890), then what this installation is made of.
 */
import { type Address, formatAddress, parseAddress, parseRange, type Range } from '../../api/address.ts';
import type { AnyObject, Pod } from '../../api/kinds.ts';
import type { Context } from '../../api/plan.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import { Memo } from './memo.ts';
import type { Objects } from './objects.ts';
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
        ['cluster', clusterCIDRs ?? []],
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

/** From what is first asked on, since most installations have no redirect. */
export class RedirectBans {
  readonly #sets = new Map<string, Memo<PrefixSet>>();
  readonly #podAddresses = new PodAddresses();

  /** Of all pools together; the answers are of now. */
  look(objects: Objects, pools: readonly Pool[]): RedirectBan {
    const find = (address: Address): string | undefined => this.#kinds(objects, pools, address).next().value;
    const answers = new Map<string, string | undefined>();
    return (text, context) => {
      const key = `${context} ${text}`;
      if (!answers.has(key)) {
        const address = mapped(must(parseAddress(text)));
        const kind = context === 'cluster' ? first(this.#kinds(objects, pools, address), byClusterRule) : find(address);
        answers.set(key, kind === undefined ? undefined : (redirectWords[kind] ?? `it is a ${kind} address`));
      }
      return answers.get(key);
    };
  }

  *#kinds(objects: Objects, pools: readonly Pool[], address: Address): Generator<string, undefined> {
    for (const [name, set] of fixed) if (set.has(address)) yield name;
    const { GatewayPool, EgressIPPool, Node, Service } = objects;
    for (const name of ['cluster', 'gateway', 'egress', 'node', 'service']) {
      const list = { cluster: GatewayPool, gateway: GatewayPool, egress: EgressIPPool, node: Node, service: Service }[
        name
      ];
      const set = this.#set(name, list ?? [], () => (list ?? []).flatMap(placesOf).filter(([of]) => of === name));
      if (set.has(address)) yield name;
    }
    const texts = (name: string, of: (pool: Pool) => string[]): boolean =>
      this.#set(`${name} of pools`, pools, () =>
        pools
          .flatMap(of)
          .flatMap(readable)
          .map((range): Place => [name, range]),
      ).has(address);
    // What was found for those that list none.
    if (texts('cluster', ({ settings }) => settings.clusterCIDRs)) yield 'cluster';
    if (texts('gateway', ({ gateways }) => Object.values(gateways).flatMap(({ addresses }) => addresses)))
      yield 'gateway';
    if (texts('egress', ({ shards }) => Object.values(shards).flatMap(({ egressIPs }) => egressIPs))) yield 'egress';
    if (this.#podAddresses.look(objects.namespaces).has(formatAddress(address))) yield 'pod';
    if (texts('excluded', ({ settings }) => settings.excludedCIDRs)) yield 'excluded';
    return undefined;
  }

  #set(name: string, from: readonly unknown[], places: () => Place[]): PrefixSet {
    const memo = this.#sets.get(name) ?? new Memo<PrefixSet>();
    this.#sets.set(name, memo);
    return memo.get(from, () => PrefixSet.of(places().map(([, range]) => range)));
  }
}

const mapped = (address: Address): Address =>
  nat64.has(address) ? { family: 4, value: address.value & 0xffff_ffffn } : address;

function first(kinds: Iterable<string>, except: ReadonlySet<string>): string | undefined {
  for (const kind of kinds) if (!except.has(kind)) return kind;
  return undefined;
}

/** Of all pods, whether they count or not. */
class PodAddresses {
  readonly #counts = new Map<string, number>();
  readonly #pods = new Map<string, readonly Pod[]>();
  #namespaces: Objects['namespaces'] = new Map();

  look(namespaces: Objects['namespaces']): ReadonlyMap<string, number> {
    if (namespaces === this.#namespaces) return this.#counts;
    for (const name of this.#pods.keys()) if (!namespaces.has(name)) this.#replace(name, []);
    for (const [name, { pods }] of namespaces) if (this.#pods.get(name) !== pods) this.#replace(name, pods);
    this.#namespaces = namespaces;
    return this.#counts;
  }

  #replace(name: string, pods: readonly Pod[]): void {
    for (const { status } of this.#pods.get(name) ?? []) for (const { ip } of status.podIPs ?? []) this.#count(ip, -1);
    for (const { status } of pods) for (const { ip } of status.podIPs ?? []) this.#count(ip, 1);
    if (pods.length === 0) this.#pods.delete(name);
    else this.#pods.set(name, pods);
  }

  #count(address: string, by: number): void {
    const count = (this.#counts.get(address) ?? 0) + by;
    if (count === 0) this.#counts.delete(address);
    else this.#counts.set(address, count);
  }
}
