/**
 * The difference between two NetStates as lines for iproute2's batch mode, each with its family in front
 * (`-4 route replace …`), since a batch has one family for all its lines (iproute-host.ts splits it).
 * Order: links first, for the rest stands on them; then neighbours, addresses and routes before the rules that lead
 * there; what goes, goes in the opposite order, but before what comes wherever one could be in the other's way.
 * Every line can be repeated, or undoes something that was listed.
 */
import { ROUTE_PROTOCOL } from '../api/names.ts';
import { type Family, families } from '../api/plan.ts';
import type { DesiredLink, DeviceAddress, Neighbour, NetState, Route, Rule } from './iproute.ts';

export const emptyNetState = (): NetState => ({ links: [], addresses: [], routes: [], rules: [], neighbours: [] });

export const familyOf = (address: string): Family => (address.includes(':') ? 6 : 4);
const defaultMetric = { 4: 0, 6: 1024 } as const;

/** Lines that lead from `current` to `desired`; [] if there is nothing to do. */
export function diffNet(current: NetState, desired: NetState): string[] {
  // A device that goes, or is replaced, takes addresses, routes and neighbours with it.
  const lost = new Set(
    current.links
      .filter((link) => {
        const wanted = desired.links.find(({ name }) => name === link.name);
        return wanted === undefined || wanted.port !== link.port;
      })
      .map(({ name }) => name),
  );
  const kept = <T extends { dev?: string }>(items: T[]) =>
    items.filter(({ dev }) => dev === undefined || !lost.has(dev));

  const rules = compare(current.rules, desired.rules, ruleKey, ruleText);
  const routes = compare(kept(current.routes), desired.routes, routeKey, routeText);
  const addresses = compare(kept(current.addresses), desired.addresses, addressKey, addressKey);
  // A change of MAC flushes the device's neighbours, permanent ones too.
  const flushed = new Set(
    desired.links
      .filter((link) => current.links.some(({ name, mac }) => name === link.name && mac !== link.mac))
      .map(({ name }) => name),
  );
  const unflushed = kept(current.neighbours).filter(({ dev }) => !flushed.has(dev));
  const neighbours = compare(unflushed, desired.neighbours, neighbourKey, neighbourText);
  return [
    ...byFamily(rules.gone.map((rule) => `-${rule.family} rule del ${ruleText(rule)}`)),
    ...byFamily(routes.gone.map((route) => `-${route.family} route del ${routeText(route)}`)),
    ...byFamily(neighbours.gone.map(({ dev, address }) => `-${familyOf(address)} neigh del ${address} dev ${dev}`)),
    ...byFamily(addresses.gone.map(({ dev, address }) => `-${familyOf(address)} addr del ${address} dev ${dev}`)),
    ...[...lost].map((name) => `-4 link del ${name}`),
    ...desired.links.flatMap((link) =>
      linkLines(
        current.links.find(({ name }) => name === link.name && !lost.has(name)),
        link,
      ),
    ),
    ...byFamily(
      neighbours.set.map((item) => `-${familyOf(item.address)} neigh replace ${neighbourText(item)} nud permanent`),
    ),
    ...byFamily(addresses.set.map(addressLine)),
    ...byFamily(routes.set.map((route) => `-${route.family} route replace ${routeText(route)}`)),
    ...byFamily(rules.set.map((rule) => `-${rule.family} rule add ${ruleText(rule)}`)),
  ];
}

/** Lines of one kind, whose order among themselves is free: a batch for each family, not one for each change of it. */
const byFamily = (lines: string[]): string[] =>
  families.flatMap((f) => lines.filter((line) => line.startsWith(`-${f}`)));

/** By key: what is no longer wanted, and what is missing or differs in its text. */
function compare<T>(current: T[], desired: T[], key: (item: T) => string, text: (item: T) => string) {
  const texts = new Map(current.map((item) => [key(item), text(item)]));
  const wanted = new Set(desired.map(key));
  return {
    gone: current.filter((item) => !wanted.has(key(item))),
    set: desired.filter((item) => texts.get(key(item)) !== text(item)),
  };
}

function linkLines(current: DesiredLink | undefined, { name, port, mac, mtu, up }: DesiredLink): string[] {
  const lines: string[] = [];
  if (current === undefined) {
    lines.push(`-4 link add ${name} address ${mac} mtu ${mtu} type vxlan external dstport ${port}`);
  } else {
    if (current.mac !== mac) lines.push(`-4 link set ${name} address ${mac}`);
    if (current.mtu !== mtu) lines.push(`-4 link set ${name} mtu ${mtu}`);
  }
  if ((current?.up ?? false) !== up) lines.push(`-4 link set ${name} ${up ? 'up' : 'down'}`);
  return lines;
}

const addressKey = ({ dev, address }: DeviceAddress) => `${address} dev ${dev}`;

/** No duplicate detection: the address must work at once, and who owns it was decided before. */
function addressLine(address: DeviceAddress): string {
  const family = familyOf(address.address);
  return `-${family} addr add ${addressKey(address)}${family === 6 ? ' nodad' : ''}`;
}

/** What makes a route one of its own to the kernel. */
const routeKey = (route: Route) =>
  `${route.family} ${route.table} ${route.destination} ${route.metric ?? defaultMetric[route.family]}`;

function routeText(route: Route): string {
  const { family, table, type, destination, via, dev, onlink, encap } = route;
  const metric = route.metric ?? defaultMetric[family];
  return [
    `${type} ${destination}`,
    encap && `encap ${familyOf(encap.destination) === 4 ? 'ip' : 'ip6'} id ${encap.id} dst ${encap.destination}`,
    via && `via ${via}`,
    // The kernel hangs dev lo on a v6 throw and the like; it means nothing.
    (type === 'unicast' || type === 'local') && dev && `dev ${dev}`,
    onlink && 'onlink',
    `table ${table}`,
    `proto ${ROUTE_PROTOCOL}`,
    metric !== 0 && `metric ${metric}`,
  ]
    .filter(Boolean)
    .join(' ');
}

/** The same in both families is two rules. */
const ruleKey = (rule: Rule) => `${rule.family} ${ruleText(rule)}`;

function ruleText({ priority, table, goto, not, mark, iif, from, to, protocol }: Rule): string {
  return [
    `priority ${priority}`,
    not && 'not',
    `from ${from ?? 'all'}`,
    to && `to ${to}`,
    mark && `fwmark 0x${mark.value.toString(16)}/0x${mark.mask.toString(16)}`,
    iif && `iif ${iif}`,
    protocol !== undefined && `ipproto ${protocol}`,
    goto === undefined ? `table ${table}` : `goto ${goto}`,
  ]
    .filter(Boolean)
    .join(' ');
}

const neighbourKey = ({ dev, address }: Neighbour) => `${dev} ${address}`;
const neighbourText = ({ dev, address, mac }: Neighbour) => `${address} lladdr ${mac} dev ${dev}`;
