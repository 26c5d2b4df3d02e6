/**
 * Links, addresses, routes, rules and neighbours as values: what is there (list), what must be there (desired), and
 * the difference as lines for `ip -batch` (iproute-diff.ts; iproute-host.ts runs them, iproute-fake.ts for tests).
 * Only what is ours is ever listed, so that a diff cannot touch another program's: see NetScope.
 */
import type { Family } from '../api/plan.ts';

/** A VXLAN device in metadata mode. */
export interface DesiredLink {
  name: string;
  kind: 'vxlan-external';
  /** UDP port. Changing it replaces the device. */
  port: number;
  mac: string;
  mtu: number;
  up: boolean;
}

/** `10.0.0.64/32` on a device. */
export interface DeviceAddress {
  dev: string;
  /** With prefix length. v6 is added with `nodad`. */
  address: string;
}

export interface Route {
  family: Family;
  table: number;
  type: 'unicast' | 'local' | 'prohibit' | 'throw' | 'blackhole' | 'unreachable';
  /** Canonical prefix with its length (`10.0.0.1/32` too), or 'default'. */
  destination: string;
  /** Next hop of the route's own family. */
  via?: string;
  dev?: string;
  onlink?: boolean;
  /** Tunnel metadata of this route's packets; the outer family is `destination`'s. */
  encap?: { id: number; destination: string };
  /** Absent: the kernel's default (0 for v4, 1024 for v6). */
  metric?: number;
}

export interface Rule {
  family: Family;
  priority: number;
  /** Where to look up the way; absent: nowhere, but go on as `goto` says. */
  table?: number;
  /** The priority of the rule to go on at. */
  goto?: number;
  /** It is for packets that this does not hold of. */
  not?: true;
  mark?: { value: number; mask: number };
  iif?: string;
  /** Prefix; absent: all. */
  from?: string;
  to?: string;
  /** IP protocol; absent: all. A rule that has one makes the kernel dissect every packet of the machine. */
  protocol?: number;
}

/** A permanent neighbour entry. */
export interface Neighbour {
  dev: string;
  address: string;
  mac: string;
}

export interface NetState {
  links: DesiredLink[];
  addresses: DeviceAddress[];
  routes: Route[];
  rules: Rule[];
  neighbours: Neighbour[];
}

/** What of the machine is ours to list and change. */
export interface NetScope {
  /** Names of our links. */
  links: string[];
  /** Which addresses on which devices are ours. */
  managed(address: DeviceAddress): boolean;
  /** Tables of which the routes with protocol ROUTE_PROTOCOL are ours. */
  tables: number[];
  /** Inclusive ranges of rule priorities that are ours. */
  rulePriorities: [number, number][];
  /** Devices of which the permanent neighbours are ours. */
  neighbourDevices: string[];
}

/** Lists and changes a machine's state; each line carries its family: `-6 route replace …`. */
export interface Ip {
  list(scope: NetScope): Promise<NetState>;
  apply(lines: string[]): Promise<void>;
}

export { diffNet, emptyNetState } from './iproute-diff.ts';
