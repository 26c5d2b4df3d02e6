/**
 * What `ip -j -d -N` of iproute2 6.1 prints, as the values of iproute.ts. Numbers instead of names (-N), since
 * names depend on files in /etc/iproute2.
 */
import type { Family } from '../api/plan.ts';
import { KernelError } from './errors.ts';
import type { DesiredLink, DeviceAddress, Neighbour, Route, Rule } from './iproute.ts';

/** rtnetlink(7) route types. */
const routeTypes: Record<string, Route['type']> = {
  1: 'unicast',
  2: 'local',
  6: 'blackhole',
  7: 'unreachable',
  8: 'prohibit',
  9: 'throw',
};

interface LinkJson {
  ifname: string;
  flags?: string[];
  mtu: number;
  address?: string;
  linkinfo?: { info_kind?: string; info_data?: { external?: boolean; port?: number } };
  addr_info?: { local?: string; prefixlen?: number }[];
}
interface RouteJson {
  table?: string;
  type: string;
  dst: string;
  encap?: string;
  encapId?: number;
  encapDst?: string;
  gateway?: string;
  via?: { host?: string };
  dev?: string;
  flags?: string[];
  metric?: number;
}
interface RuleJson {
  /** There, and null: it is one. */
  not?: null;
  priority?: number;
  src?: string;
  srclen?: number;
  dst?: string;
  dstlen?: number;
  fwmark?: string;
  fwmask?: string;
  iif?: string;
  ipproto?: string;
  goto?: number;
  table?: string;
}
interface NeighbourJson {
  dst?: string;
  lladdr?: string;
}

/** An empty listing is printed as nothing, or as `[{}]`. */
function entries<T>(json: string): T[] {
  if (json.trim() === '') return [];
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch (error) {
    throw new KernelError('ip list', 'bad-answer', json.slice(0, 200), error);
  }
  if (!Array.isArray(parsed)) throw new KernelError('ip list', 'bad-answer', json.slice(0, 200));
  return parsed.filter((entry) => typeof entry === 'object' && entry !== null && Object.keys(entry).length > 0);
}

export function parseLinks(json: string): DesiredLink[] {
  return entries<LinkJson>(json)
    .filter(({ linkinfo }) => linkinfo?.info_kind === 'vxlan')
    .map(({ ifname, flags, mtu, address, linkinfo }) => ({
      name: ifname,
      kind: 'vxlan-external',
      // A VXLAN device of another mode differs in its port, so that it is replaced.
      port: linkinfo?.info_data?.external ? (linkinfo.info_data.port ?? 0) : 0,
      mac: address ?? '',
      mtu,
      up: flags?.includes('UP') ?? false,
    }));
}

export function parseAddresses(json: string): DeviceAddress[] {
  return entries<LinkJson>(json).flatMap(({ ifname, addr_info = [] }) =>
    addr_info.map(({ local, prefixlen }) => ({ dev: ifname, address: `${local}/${prefixlen}` })),
  );
}

export function parseRoutes(json: string, family: Family): Route[] {
  // The tunnel's `dst` follows under the same key as the route's own.
  const distinct = json.replace(
    /"encap":"(ip6?)","id":(\d+),"src":"[^"]*","dst":/g,
    '"encap":"$1","encapId":$2,"encapDst":',
  );
  return entries<RouteJson>(distinct).flatMap((entry): Route[] => {
    const type = routeTypes[entry.type];
    // A type that we never write, yet with our protocol: not ours after all.
    if (type === undefined) return [];
    const via = entry.gateway ?? entry.via?.host;
    return [
      {
        family,
        // Table main is not named.
        table: Number(entry.table ?? 254),
        type,
        destination:
          entry.dst === 'default' || entry.dst.includes('/') ? entry.dst : `${entry.dst}/${hostLength[family]}`,
        ...(via !== undefined && { via }),
        ...((type === 'unicast' || type === 'local') && entry.dev !== undefined && { dev: entry.dev }),
        ...(entry.flags?.includes('onlink') && { onlink: true }),
        ...(entry.encap !== undefined && { encap: { id: entry.encapId ?? 0, destination: entry.encapDst ?? '' } }),
        ...(entry.metric !== undefined && { metric: entry.metric }),
      },
    ];
  });
}

const hostLength = { 4: 32, 6: 128 } as const;

export function parseRules(json: string, family: Family): Rule[] {
  const prefix = (address: string | undefined, length: number | undefined) =>
    address === undefined || address === 'all' ? undefined : `${address}/${length ?? hostLength[family]}`;
  return entries<RuleJson>(json).map((entry) => {
    const from = prefix(entry.src, entry.srclen);
    const to = prefix(entry.dst, entry.dstlen);
    return {
      family,
      priority: entry.priority ?? 0,
      ...(entry.table !== undefined && { table: Number(entry.table) }),
      ...(entry.goto !== undefined && { goto: entry.goto }),
      ...('not' in entry && { not: true as const }),
      ...(entry.fwmark !== undefined && {
        mark: { value: Number(entry.fwmark), mask: Number(entry.fwmask ?? '0xffffffff') },
      }),
      ...(entry.iif !== undefined && { iif: entry.iif }),
      ...(entry.ipproto !== undefined && { protocol: Number(entry.ipproto.replace('ipproto-', '')) }),
      ...(from !== undefined && { from }),
      ...(to !== undefined && { to }),
    };
  });
}

export function parseNeighbours(json: string, dev: string): Neighbour[] {
  return entries<NeighbourJson>(json).map(({ dst = '', lladdr = '' }) => ({ dev, address: dst, mac: lladdr }));
}
