/**
 * An ExternalService as the plan carries it (design §3 → api/plan.ts): canonical addresses, protocols as numbers,
 * ports as ranges, sorted, so that two ways to write one thing give one plan.
 * Lists that are kept elsewhere (`addressesFrom`) are read by the controller and come in as they are known; they hold
 * addresses only. What ports ask of bytes becomes checks, and names imply some (design §4.6).
 */

import { formatRange, parseRange } from '../api/address.ts';
import type { ApplicationCheck } from '../api/application.ts';
import { parseBandwidth } from '../api/bandwidth.ts';
import type { ExternalService, ServicePort } from '../api/kinds.ts';
import type { PortCheck, PortEntry, PortLimit, ServiceEntry } from '../api/plan.ts';
import { portEntry } from '../api/ports.ts';

/** One list of `addressesFrom`, as it is known. */
export interface KnownList {
  /** The last good one: canonical, sorted. Absent: it was never read. */
  addresses?: readonly string[];
  /** Why it is not known, or not the newest. */
  problem?: { reason: string; message: string };
}
/** `namespace/name` of an ExternalService → its lists, in the order of `addressesFrom`. */
export type KnownLists = ReadonlyMap<string, readonly KnownList[]>;

/** Places in `addressesFrom` whose list was never read: the service's destinations are not all known. */
export function unreadLists(service: ExternalService, lists: readonly KnownList[] = []): number[] {
  return (service.spec.addressesFrom ?? []).flatMap((_, i) => (lists[i]?.addresses === undefined ? [i] : []));
}

/** Plans are made far more often than an object or a list changes. */
const made = new WeakMap<ExternalService, { from: (readonly string[] | undefined)[]; entry: ServiceEntry }>();

export function serviceEntryOf(service: ExternalService, lists: readonly KnownList[] = []): ServiceEntry {
  const from = (service.spec.addressesFrom ?? []).map((_, i) => lists[i]?.addresses);
  const known = made.get(service);
  if (known?.from.every((list, i) => list === from[i])) return known.entry;
  const entry = makeEntry(service, lists);
  made.set(service, { from, entry });
  return entry;
}

/** The object has passed validation; what cannot be read here is our own mistake and throws. */
function makeEntry(service: ExternalService, lists: readonly KnownList[]): ServiceEntry {
  const { addresses = [], addressesFrom = [], ports: specs = [] } = service.spec;
  const own = addresses.flatMap((text) => {
    const range = parseRange(text);
    return range.ok ? [formatRange(range.value)] : [];
  });
  const listed = addressesFrom.flatMap((_, i) => lists[i]?.addresses ?? []);
  const names = namesOf(service);
  const ports = specs.length === 0 ? null : portEntriesOf(specs);
  const checks = checksOf(specs, ports, names.length > 0);
  return {
    addresses: [...new Set([...own, ...listed])].sort(),
    ...(names.length > 0 && { names }),
    ports,
    ...(checks.length > 0 && { checks }),
    ...limitsOf(specs),
  };
}

/** Canonical patterns, sorted. Validation wrote all texts of `addresses` in their one form, and no name is a range. */
export function namesOf({ spec }: ExternalService): string[] {
  return (spec.addresses ?? []).filter((text) => !parseRange(text).ok).sort();
}

/** Whether what it matches is decided by more than addresses and ports. */
export const isRead = ({ names, checks }: ServiceEntry): boolean => names !== undefined || checks !== undefined;

/** What 443 and 80 of a service with names are, unless a port says otherwise (design §4.6). */
const implied: readonly PortCheck[] = [
  { protocol: 6, ports: [[80, 80]], application: 'HTTP', implied: true },
  { protocol: 6, ports: [[443, 443]], application: 'TLS', implied: true },
  { protocol: 17, ports: [[443, 443]], application: 'QUIC', implied: true },
];

/** Explicit ones, ports that ask the same together, and what names imply. By protocol, ports, application. */
function checksOf(specs: readonly ServicePort[], ports: PortEntry[] | null, named: boolean): PortCheck[] {
  const same = new Map<string, { asked: ApplicationCheck; ports: PortEntry[] }>();
  for (const spec of specs) {
    const asked = askedOf(spec);
    if (asked === undefined) continue;
    const entry = portEntryOf(spec);
    const key = JSON.stringify([entry.protocol, asked]);
    const known = same.get(key);
    if (known === undefined) same.set(key, { asked, ports: [entry] });
    else known.ports.push(entry);
  }
  const explicit = [...same.values()].flatMap(({ asked, ports }): PortCheck[] =>
    disjoint(ports).map((entry) => ({ ...entry, ...asked })),
  );
  const covered = (by: readonly PortEntry[] | null, { protocol, ports }: PortEntry): boolean =>
    by === null || by.some((one) => one.protocol === protocol && (one.ports === null || holds(one.ports, ports)));
  const more = named ? implied.filter((check) => covered(ports, check) && !covered(explicit, check)) : [];
  return [...explicit, ...more]
    .map((check) => ({ check, key: sortKey(check) }))
    .sort((a, b) => (a.key < b.key ? -1 : 1))
    .map(({ check }) => check);
}

/** Ports in digits of equal number, so that they sort as texts. */
function sortKey(check: PortCheck): string {
  const ports = (check.ports ?? [[0, 0xffff]]).flat().map((port) => String(port).padStart(5, '0'));
  return [String(check.protocol).padStart(3, '0'), ...ports, JSON.stringify(check)].join(' ');
}

const holds = (ranges: readonly [number, number][], ports: PortEntry['ports']): boolean =>
  ports?.every(([first, last]) => ranges.some((range) => range[0] <= first && last <= range[1])) === true;

const sorted = <T extends string>(texts: readonly T[]): T[] => [...new Set(texts)].sort();

/** Without what asks for nothing, in an order of its own. */
function askedOf({ appProtocol, tls, http, dns, conformance }: ServicePort): ApplicationCheck | undefined {
  if (appProtocol === undefined) return undefined;
  const asked = {
    tls: tls && {
      ...(tls.serverNames && { serverNames: sorted(tls.serverNames) }),
      ...(tls.minVersion && { minVersion: tls.minVersion }),
      ...(tls.alpn && { alpn: sorted(tls.alpn) }),
      ...(tls.rejectEncryptedClientHello && { rejectEncryptedClientHello: true as const }),
    },
    http: http && {
      ...(http.hosts && { hosts: sorted(http.hosts) }),
      ...(http.methods && { methods: sorted(http.methods) }),
      ...(http.paths && { paths: sorted(http.paths) }),
    },
    dns: dns && {
      ...(dns.names && { names: sorted(dns.names) }),
      ...(dns.types && { types: sorted(dns.types) }),
      ...(dns.maxQuestionsPerSecond && { maxQuestionsPerSecond: dns.maxQuestionsPerSecond }),
    },
  };
  const parts = Object.entries(asked).filter(([, part]) => part !== undefined && Object.keys(part).length > 0);
  return {
    application: appProtocol,
    ...Object.fromEntries(parts),
    ...(conformance !== undefined && conformance !== 'Enforce' && { conformance }),
  };
}

/** One entry of one protocol's, ranges that overlap made one. */
function disjoint(entries: readonly PortEntry[]): PortEntry[] {
  const [first] = entries;
  if (first === undefined) return [];
  if (entries.some(({ ports }) => ports === null)) return [{ protocol: first.protocol, ports: null }];
  const ranges: [number, number][] = [];
  const all = entries.flatMap(({ ports }) => ports ?? []).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  for (const [from, to] of all) {
    const last = ranges.at(-1);
    if (last !== undefined && from <= last[1]) last[1] = Math.max(last[1], to);
    else ranges.push([from, to]);
  }
  return [{ protocol: first.protocol, ports: ranges }];
}

const portEntryOf = ({ protocol, port }: ServicePort): PortEntry =>
  portEntry({ protocol, ...(port !== undefined && { port }) });

/** Of the ports that have a bandwidth, by name. */
function limitsOf(specs: ServicePort[]): Pick<ServiceEntry, 'limits'> {
  const limits = specs.flatMap((spec): PortLimit[] => {
    const { name, bandwidth } = spec;
    return bandwidth === undefined
      ? []
      : [
          {
            name,
            ...portEntryOf(spec),
            bandwidth: parseBandwidth(bandwidth),
          },
        ];
  });
  return limits.length === 0 ? {} : { limits: limits.sort((a, b) => (a.name < b.name ? -1 : 1)) };
}

/** One entry per protocol, ascending. */
function portEntriesOf(specs: ServicePort[]): PortEntry[] {
  const byProtocol = new Map<number, PortEntry['ports']>();
  for (const spec of specs) {
    const { protocol: number, ports } = portEntryOf(spec);
    const known = byProtocol.get(number) ?? (byProtocol.has(number) ? null : []);
    byProtocol.set(number, ports === null || known === null ? null : [...known, ...ports]);
  }
  return [...byProtocol]
    .sort((a, b) => a[0] - b[0])
    .map(([protocol, ports]) => ({ protocol, ports: ports?.sort((a, b) => a[0] - b[0] || a[1] - b[1]) ?? null }));
}
