/** Plans for the gateway rig: a fixed small one, and random policies over few addresses so that rules often match. */
import fc from 'fast-check';
import {
  type Action,
  contexts,
  emptyGatewayPlan,
  type Family,
  families,
  type GatewayPlan,
  type PortCheck,
  type PortEntry,
  type RuleEntry,
  type ServiceEntry,
} from '../../api/plan.ts';
import { GATEWAY_INSIDE, NODES, NODES6, PORT, VNI } from './gateway-rig.ts';

export const PODS = {
  pay: { 4: '10.244.1.5', 6: 'fd00:244:1::5' },
  rev: { 4: '10.244.1.6', 6: 'fd00:244:1::6' },
  job: { 4: '10.244.2.7', 6: 'fd00:244:2::7' },
} as const;
export const EGRESS = {
  pay: { 4: '203.0.113.101', 6: '2001:db8:113::101' },
  rev: { 4: '203.0.113.102', 6: '2001:db8:113::102' },
} as const;
export const WEB = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;

export function basePlan(defaultAction: 'Drop' | 'Accept' = 'Drop'): GatewayPlan {
  const plan = emptyGatewayPlan();
  plan.settings = {
    pool: {
      pool: 'edge',
      defaultAction,
      unassigned: 'Drop',
      internalInterface: 'inside',
      externalInterface: 'outside',
      externalGateway: {},
      steering: { mode: 'VXLAN', vni: VNI, port: PORT, mtu: null },
      clusterCIDRs: ['10.244.0.0/16', '10.96.0.0/12', '10.0.0.0/24', 'fd00:244::/32', 'fd00:10::/64'],
      excludedCIDRs: [],
    },
  };
  plan.gateways = {
    'gw-a': { internalAddress: GATEWAY_INSIDE, addresses: [GATEWAY_INSIDE, '203.0.113.31', '2001:db8:113::31'] },
    'gw-b': { internalAddress: '10.0.0.32', addresses: ['10.0.0.32', '203.0.113.32', '2001:db8:113::32'] },
  };
  plan.nodes = {
    a: { addresses: [NODES.a], podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'] },
    b: { addresses: [NODES.b], podCIDRs: [] },
  };
  plan.shards = {
    s0: {
      index: 1,
      nextHops: { 4: '10.0.0.64', 6: 'fd00:10::64' },
      order: ['gw-a', 'gw-b'],
      egressIPs: Object.values(EGRESS).flatMap((e) => [e[4], e[6]]),
    },
    s1: {
      index: 2,
      nextHops: { 4: '10.0.0.65', 6: 'fd00:10::65' },
      order: ['gw-b', 'gw-a'],
      egressIPs: ['203.0.113.110'],
    },
  };
  const workload = (name: keyof typeof PODS, namespace: string, node: string, group: string): void => {
    const egress = name === 'job' ? undefined : EGRESS[name];
    plan.workloads[`uid-${name}`] = {
      namespace,
      name,
      uid: `uid-${name}`,
      node,
      services: [],
      addresses: [PODS[name][4], PODS[name][6]],
      group,
      egress:
        egress === undefined ? {} : { 4: { address: egress[4], shard: 's0' }, 6: { address: egress[6], shard: 's0' } },
    };
  };
  workload('pay', 'billing', 'a', 'g-pay');
  workload('rev', 'reviews', 'a', 'g-rev');
  workload('job', 'batch', 'b', 'g-job');
  for (const [group, namespace] of [
    ['g-pay', 'billing'],
    ['g-rev', 'reviews'],
    ['g-job', 'batch'],
  ] as const) {
    plan.groups[group] = { namespace, rules: { cluster: [], namespace: [], service: [] } };
  }
  return plan;
}

/** The same plan with Direct steering: a node is then a next hop of each family. */
export function directPlan(plan: GatewayPlan): GatewayPlan {
  const direct = structuredClone(plan);
  if ('pool' in direct.settings) direct.settings.pool.steering.mode = 'Direct';
  for (const node of ['a', 'b'] as const) direct.nodes[node]?.addresses.push(NODES6[node]);
  return direct;
}

/** Adds a rule to a group. */
export function addRule(
  plan: GatewayPlan,
  group: string,
  rule: Pick<RuleEntry, 'context' | 'action' | 'services'> & { name: string },
): void {
  const id = `${rule.context}/${rule.name}`;
  plan.rules[id] = { ...rule, priority: 1000 };
  plan.groups[group]?.rules[rule.context].push(id);
}

/** Destinations that random services draw from, and that probes are sent to: edges of the prefixes included. */
export const DESTINATIONS = {
  4: [
    '198.51.100.0',
    '198.51.100.79',
    '198.51.100.80',
    '198.51.100.81',
    '198.51.100.127',
    '198.51.100.128',
    '192.0.2.1',
  ],
  6: [
    '2001:db8:100::',
    '2001:db8:100::7f',
    '2001:db8:100::80',
    '2001:db8:100::81',
    '2001:db8:100::ffff',
    '2001:db8:101::',
  ],
} as const;
export const PORTS = [79, 80, 81, 443, 444, 8000, 8100, 8101];
const ADDRESSES = [
  '198.51.100.80/32',
  '198.51.100.0/25',
  '198.51.100.64/26',
  '198.51.100.79-198.51.100.81',
  '0.0.0.0/0',
  '192.0.2.0/24',
  '2001:db8:100::80/128',
  '2001:db8:100::/121',
  '2001:db8:100::/64',
  '2001:db8:100::7f-2001:db8:100::81',
  '::/0',
];

const port = fc.constantFrom<[number, number]>([80, 80], [443, 443], [8000, 8100], [0, 65535], [80, 443], [81, 81]);
const portEntry: fc.Arbitrary<PortEntry> = fc.oneof(
  fc.record({ protocol: fc.constantFrom(6, 17), ports: fc.option(fc.array(port, { minLength: 1, maxLength: 2 })) }),
  fc.record({ protocol: fc.constantFrom(1, 58), ports: fc.constant(null) }),
);
/** Types and codes for which there are flows; ranges of them, as whole types and runs from one into the next. */
export const ICMP_TYPES: Record<Family, [type: number, code: number][]> = {
  4: [
    [8, 0],
    [8, 1],
    [8, 255],
    [13, 0],
    [13, 7],
    [17, 0],
  ],
  6: [
    [128, 0],
    [128, 1],
    [128, 255],
    [139, 0],
    [139, 7],
  ],
};
const typesOf = (family: Family): fc.Arbitrary<[number, number]> =>
  fc
    .tuple(fc.constantFrom(...ICMP_TYPES[family]), fc.constantFrom(0, 1, 255, 1279, 1280, 1281, 65_535))
    .map(([[type, code], more]) => {
      const first = type * 256 + code;
      return [first, Math.min(first + more, 65_535)];
    });
const icmpEntry: fc.Arbitrary<PortEntry> = fc.constantFrom(...families).chain((family) =>
  fc.record({
    protocol: fc.constant(family === 4 ? 1 : 58),
    ports: fc.array(typesOf(family), { minLength: 1, maxLength: 3 }),
  }),
);
/** SCTP, and what is known by its number alone. */
const otherEntry: fc.Arbitrary<PortEntry> = fc.oneof(
  fc.record({
    protocol: fc.constant(132),
    ports: fc.option(fc.array(port, { minLength: 1, maxLength: 2 })),
  }),
  fc.record({ protocol: fc.constantFrom(47, 253), ports: fc.constant(null) }),
);
/** So many that a set is made of them. */
const CROWD = Array.from({ length: 9 }, (_, at) => [
  `192.0.2.${2 * at + 1}/32`,
  `2001:db8:100::${81 + 2 * at}/128`,
]).flat();
const serviceOf = (entry: fc.Arbitrary<PortEntry>): fc.Arbitrary<ServiceEntry> =>
  fc.record({
    addresses: fc
      .tuple(
        fc.uniqueArray(fc.constantFrom(...ADDRESSES), { minLength: 1, maxLength: 4 }),
        fc.option(fc.constant(CROWD), { nil: [], freq: 2 }),
      )
      .map((lists) => lists.flat()),
    ports: fc.option(fc.array(entry, { minLength: 1, maxLength: 3 }), { freq: 4 }),
  });
/** Some of them have names, or ports where flows are read: all that is said of them is whether (openParts). */
const askingOf = (service: fc.Arbitrary<ServiceEntry>): fc.Arbitrary<ServiceEntry> =>
  fc
    .record({
      service,
      names: fc.option(fc.constant(['**.example.test'] as string[]), { freq: 2, nil: undefined }),
      bare: fc.boolean(),
      /** Which of its ports are read, and which of these only in part. */
      read: fc.nat(7),
      part: fc.nat(7),
    })
    .map(({ service: entry, names, bare, read, part }) => {
      const ports = entry.ports ?? ANY_PORTS;
      const checks = ports.flatMap((port, at): PortCheck[] => {
        if (((read >> at) & 1) === 0) return [];
        const some = ((part >> at) & 1) === 1 ? (port.ports?.slice(0, 1) ?? null) : port.ports;
        return [{ protocol: port.protocol, ports: some, application: 'TLS' }];
      });
      const addresses = names !== undefined && bare ? [] : entry.addresses;
      return { ...entry, addresses, ...(names && { names }), ...(checks.length > 0 && { checks }) };
    });
const ANY_PORTS: PortEntry[] = [
  { protocol: 6, ports: [[443, 443]] },
  { protocol: 6, ports: [[80, 81]] },
  { protocol: 17, ports: [[443, 8050]] },
];
const SERVICES = ['x/a', 'x/b', 'x/c', 'x/d'];
const action = fc.constantFrom<Action>('accept', 'accept-decisively', 'drop', 'reject');
const ruleServices: fc.Arbitrary<string[] | '*'> = fc.oneof(
  { weight: 5, arbitrary: fc.uniqueArray(fc.constantFrom(...SERVICES, 'x/missing'), { minLength: 1, maxLength: 3 }) },
  { weight: 1, arbitrary: fc.constant('*' as const) },
);

const planOf = (service: fc.Arbitrary<ServiceEntry>): fc.Arbitrary<GatewayPlan> =>
  fc
    .record({
      defaultAction: fc.constantFrom<'Drop' | 'Accept'>('Drop', 'Accept'),
      services: fc.tuple(service, service, service, service),
      rules: fc.array(fc.record({ context: fc.constantFrom(...contexts), action, services: ruleServices }), {
        maxLength: 12,
      }),
      /** Which rules each group has, as bits. */
      groups: fc.tuple(fc.nat(0xfff), fc.nat(0xfff)),
    })
    .map(({ defaultAction, services, rules, groups }) => {
      const plan = basePlan(defaultAction);
      plan.services = Object.fromEntries(services.map((entry, at) => [SERVICES[at] ?? '', entry]));
      rules.forEach((rule, at) => {
        const id = `${rule.context}/r${at}`;
        plan.rules[id] = { ...rule, name: `r${at}`, priority: 1000 };
        ['g-pay', 'g-rev'].forEach((group, bit) => {
          if ((groups[bit as 0 | 1] >>> at) & 1) plan.groups[group]?.rules[rule.context].push(id);
        });
      });
      return plan;
    });

export const randomPlan = planOf(serviceOf(portEntry));
/** With rules in audit and groups in audit, redirects, and services that ask for what flows say. */
export const randomAskingPlan: fc.Arbitrary<GatewayPlan> = fc
  .record({
    plan: planOf(
      askingOf(
        serviceOf(
          fc.oneof(
            { weight: 3, arbitrary: portEntry },
            { weight: 1, arbitrary: otherEntry },
            { weight: 1, arbitrary: icmpEntry },
          ),
        ),
      ),
    ),
    audit: fc.option(fc.constantFrom('g-pay', 'g-rev'), { freq: 2 }),
    rules: fc.infiniteStream(fc.constantFrom('Audit', 'redirect', 'redirect', 'redirect', '', '', '', '')),
  })
  .map(({ plan: drawnPlan, audit, rules }) => {
    // Drawn again from the same when it is told what failed.
    const plan = structuredClone(drawnPlan);
    const group = plan.groups[audit ?? ''];
    if (group !== undefined) group.audit = true;
    const drawn = rules[Symbol.iterator]();
    for (const rule of Object.values(plan.rules)) {
      const { value } = drawn.next();
      const asks = rule.services !== '*' && rule.services.some((name) => isAsking(plan.services[name]));
      if (value === 'Audit') rule.mode = 'Audit';
      // What must be read cannot be redirected: such a rule is refused.
      else if (value === 'redirect' && rule.action.startsWith('accept') && !asks) {
        rule.redirect = { address: '192.0.2.200' };
      }
    }
    return plan;
  });
const isAsking = (entry: ServiceEntry | undefined): boolean =>
  entry?.names !== undefined || entry?.checks !== undefined;

/** With types of ICMP, SCTP and protocols by number: for probes that are of them. */
export const randomTypedPlan = planOf(
  serviceOf(
    fc.oneof(
      { weight: 1, arbitrary: portEntry },
      { weight: 2, arbitrary: icmpEntry },
      { weight: 2, arbitrary: otherEntry },
    ),
  ),
);
