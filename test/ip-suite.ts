/**
 * What an Ip must do, be it the kernel (test/netns/kernel.test.ts) or the fake (test/unit/kernel.test.ts): one table,
 * every row is led to from the row before it, so that the differences between rows are walked too.
 */
import type { Test } from 'tap';
import { NODE_MARK_MASK, ROUTE_PROTOCOL, TUNNEL_DEVICE, TUNNEL_MAC_GATEWAY, TUNNEL_PEER } from '../api/names.ts';
import { families } from '../api/plan.ts';
import { diffNet, emptyNetState, type Ip, type NetScope, type NetState, type Route } from '../kernel/iproute.ts';
import { PROTOCOL_TCP } from '../wire/ip.ts';

const DEV = 'eth0';
/** Ours: host addresses, not the machine's own with their prefix. */
export const scope: NetScope = {
  links: [TUNNEL_DEVICE],
  managed: ({ dev, address }) => dev === DEV && /\/(32|128)$/.test(address),
  tables: [7800, 7801],
  rulePriorities: [[7800, 7899]],
  neighbourDevices: [TUNNEL_DEVICE],
};

const encap = { 4: { id: 7, destination: '10.0.0.64' }, 6: { id: 16777215, destination: 'fd00:10::64' } } as const;
const inner = { 4: '10.244.0.0/16', 6: 'fd00:244::/48' } as const;
const host = { 4: '10.244.1.5/32', 6: 'fd00:244:1::5/128' } as const;
const egress = {
  4: ['203.0.113.101/32', '203.0.113.102/32'],
  6: ['2001:db8:113::101/128', '2001:db8:113::102/128'],
} as const;
const link = {
  name: TUNNEL_DEVICE,
  kind: 'vxlan-external',
  port: 4793,
  mac: TUNNEL_MAC_GATEWAY,
  mtu: 1450,
  up: true,
} as const;
const each = <T>(make: (family: 4 | 6) => T[]): T[] => families.flatMap(make);
const tunnel = (family: 4 | 6, outer: 4 | 6, destination: string): Route => ({
  family,
  table: 7800,
  type: 'unicast',
  destination,
  via: TUNNEL_PEER[family],
  dev: TUNNEL_DEVICE,
  onlink: true,
  encap: encap[outer],
});

const full = (): NetState => ({
  links: [link],
  addresses: each((f) => egress[f].map((address) => ({ dev: DEV, address }))),
  routes: each((f): Route[] => [
    tunnel(f, 4, 'default'),
    tunnel(f, 6, inner[f]),
    { family: f, table: 7800, type: 'throw', destination: host[f] },
    { family: f, table: 7801, type: 'blackhole', destination: 'default', metric: 4000 },
    { family: f, table: 7801, type: 'unreachable', destination: inner[f] },
    { family: f, table: 7801, type: 'unicast', destination: host[f], dev: DEV, metric: 5 },
  ]),
  rules: each((f) => [
    { family: f, priority: 7800, table: 7800, mark: { value: 1, mask: NODE_MARK_MASK } },
    { family: f, priority: 7801, table: 7801, iif: DEV },
    { family: f, priority: 7802, table: 254, from: inner[f], to: host[f] },
    { family: f, priority: 7802, table: 254, not: true, iif: DEV },
    { family: f, priority: 7802, goto: 7804, not: true, iif: 'lo', from: inner[f] },
    { family: f, priority: 7803, table: 7801, iif: 'lo', from: host[f], mark: { value: 0, mask: NODE_MARK_MASK } },
    { family: f, priority: 7804, table: 7801, iif: 'lo', from: host[f], protocol: PROTOCOL_TCP },
  ]),
  neighbours: each((f) => [{ dev: TUNNEL_DEVICE, address: TUNNEL_PEER[f], mac: TUNNEL_MAC_GATEWAY }]),
});

export const netStates: [title: string, state: NetState][] = [
  ['everything at once', full()],
  [
    'an egress IP moves away, a shard gets another next hop, a mark another table',
    {
      ...full(),
      addresses: each((f) => egress[f].slice(1).map((address) => ({ dev: DEV, address }))),
      routes: full().routes.map((route) =>
        route.encap ? { ...route, encap: { id: 8, destination: encap[4].destination } } : route,
      ),
      rules: full().rules.map((rule) => (rule.mark ? { ...rule, table: 7801 } : rule)),
      neighbours: full().neighbours.map((neighbour) => ({ ...neighbour, mac: '02:73:6c:75:00:09' })),
    },
  ],
  [
    'types of routes change',
    {
      ...full(),
      routes: full().routes.map(
        (route): Route =>
          route.type === 'throw'
            ? { ...route, type: 'blackhole' }
            : route.type === 'blackhole'
              ? { ...route, type: 'throw' }
              : route,
      ),
    },
  ],
  ['MTU and MAC of the device', { ...full(), links: [{ ...link, mtu: 1430, mac: '02:73:6c:75:00:08' }] }],
  ['another port: the device is replaced with all that stands on it', { ...full(), links: [{ ...link, port: 4794 }] }],
  [
    'the device goes, the rest stays',
    { ...full(), links: [], neighbours: [], routes: full().routes.filter(({ dev }) => dev !== TUNNEL_DEVICE) },
  ],
  ['nothing', emptyNetState()],
];

const sorted = (state: NetState) =>
  Object.fromEntries(
    Object.entries(state).map(([kind, items]) => [
      kind,
      (items as object[]).map((item) => JSON.stringify(Object.entries(item).sort())).sort(),
    ]),
  );
/** The kernel's default metric of v6 routes is listed like any other. */
const withMetric = (state: NetState): NetState => ({
  ...state,
  routes: state.routes.map((route) => ({ ...route, metric: route.metric ?? (route.family === 6 ? 1024 : 0) })),
});

/** `foreign` puts things of another program there and answers with a text of all that is not ours. */
export async function ipSuite(t: Test, ip: Ip, foreign: () => Promise<string>): Promise<void> {
  const others = await foreign();
  t.same(await ip.list(scope), emptyNetState(), 'nothing of ours at first');
  for (const [title, state] of netStates) {
    const lines = diffNet(await ip.list(scope), state);
    t.not(lines.length, 0, `${title}: something to do`);
    await ip.apply(lines);
    const listed = await ip.list(scope);
    t.same(sorted(withMetric(listed)), sorted(withMetric(state)), `${title}: listed as wanted`);
    t.same(diffNet(listed, state), [], `${title}: nothing left to do`);
  }
  t.equal(await foreign(), others, 'what is not ours was not touched');
  for (const family of families) {
    const address = egress[family][0];
    for (const [title, code, line] of [
      ['a device that is not there', 'ENODEV', `-${family} addr add ${address} dev nope`],
      [
        'a route that is not there',
        'ENOENT',
        `-${family} route del unicast ${inner[family]} table 7800 proto ${ROUTE_PROTOCOL}`,
      ],
      ['a rule that is not there', 'ENOENT', `-${family} rule del priority 7810 from all table 7800`],
    ] as const) {
      await t.rejects(ip.apply([line]), { name: 'KernelError', code, message: /nope|7800/ }, `v${family}: ${title}`);
    }
  }
}
