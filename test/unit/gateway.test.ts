/**
 * The gateway's pure parts: numbers for names, the compiled table (what a change of the plan costs, what is shared, that
 * nothing dangles), addresses and routes, flow records. That the compiled table means what the evaluator
 * says is shown in the kernel (test/netns/gateway.test.ts).
 */

import t from 'tap';
import { CT_DECIDED } from '../../api/names.ts';
import { emptyGatewayPlan, families, type GatewayPlan, type PoolSettings, type WorkloadEntry } from '../../api/plan.ts';
import { countedReasons, counterName, dropReasons } from '../../api/reasons.ts';
import { compileGateway, GatewayCompiler } from '../../gateway/compile.ts';
import { compileNet, deviceSysctls, heldShards, workloadRoutes } from '../../gateway/compile-net.ts';
import { DEFAULT_ACTION, noEgressMark, ruleMark } from '../../gateway/marks.ts';
import { endedBy } from '../../gateway/recheck.ts';
import { denyRecord, endRecord, startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { WORKLOADS_MAX } from '../../gateway/source-nat.ts';
import type { NetState } from '../../kernel/iproute.ts';
import { diffRuleset, isEmptyChange, type NftState, type Ruleset, scriptOf, stateOf } from '../../kernel/nft.ts';
import { FakeNft } from '../../kernel/nft-fake.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';
import { touches } from '../touches.ts';

const workload = (uid: string, node: string, addresses: string[], group: string, egress = true): WorkloadEntry => ({
  namespace: group.split('/')[0] ?? '',
  name: uid,
  uid,
  node,
  services: ['payments'],
  addresses,
  group,
  egress: egress
    ? { 4: { address: '203.0.113.101', shard: 's0' }, 6: { address: '2001:db8:113::101', shard: 's0' } }
    : {},
});

/** Two gateways, two nodes (b's pod ranges are not known), a rule per context. A fresh one per call. */
function samplePlan(): GatewayPlan {
  const plan = emptyGatewayPlan();
  plan.settings = {
    pool: {
      pool: 'main',
      defaultAction: 'Drop',
      unassigned: 'Drop',
      internalInterface: 'inside',
      externalInterface: 'outside',
      externalGateway: { 4: '203.0.113.1' },
      steering: { mode: 'VXLAN', vni: 7790, port: 4793, mtu: null },
      clusterCIDRs: ['10.244.0.0/16', '10.244.7.0/24', '10.245.0.0/16', 'fd00:244::/32'],
      excludedCIDRs: [],
    },
  };
  plan.gateways = {
    'gw-a': { internalAddress: '10.0.0.31', addresses: ['10.0.0.31', '203.0.113.31'] },
    'gw-b': { internalAddress: '10.0.0.32', addresses: ['10.0.0.32'] },
  };
  plan.nodes = {
    a: { addresses: ['fd00:10::21', '10.0.0.21'], podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'] },
    b: { addresses: ['10.0.0.22'], podCIDRs: [] },
  };
  plan.shards = {
    s0: {
      index: 1,
      nextHops: { 4: '10.0.0.64', 6: 'fd00:10::64' },
      order: ['gw-a', 'gw-b'],
      egressIPs: ['203.0.113.101', '2001:db8:113::101'],
    },
    s1: { index: 2, nextHops: { 4: '10.0.0.65' }, order: ['gw-b', 'gw-a'], egressIPs: ['203.0.113.102'] },
  };
  plan.services = {
    'sluice-system/bad': { addresses: ['192.0.2.0/24', '2001:db8:bad::/48'], ports: null },
    'billing/web': { addresses: ['198.51.100.80/32'], ports: [{ protocol: 6, ports: [[443, 443]] }] },
    'billing/any-udp': { addresses: ['198.51.100.0/24'], ports: [{ protocol: 17, ports: null }] },
  };
  const rule = { action: 'accept', priority: 1000 } as const;
  plan.rules = {
    'cluster/no': { ...rule, context: 'cluster', name: 'no', action: 'reject', services: ['sluice-system/bad'] },
    'namespace/billing/ok': {
      ...rule,
      context: 'namespace',
      namespace: 'billing',
      name: 'ok',
      action: 'accept-decisively',
      services: ['billing/any-udp'],
    },
    'namespace/billing/never': {
      ...rule,
      context: 'namespace',
      namespace: 'billing',
      name: 'never',
      action: 'drop',
      services: '*',
    },
    'service/billing/web': {
      ...rule,
      context: 'service',
      namespace: 'billing',
      name: 'web',
      services: ['billing/web'],
    },
  };
  plan.groups = {
    'billing/1': {
      namespace: 'billing',
      rules: {
        cluster: ['cluster/no'],
        namespace: ['namespace/billing/ok', 'namespace/billing/never'],
        service: ['service/billing/web'],
      },
    },
    'batch/1': { namespace: 'batch', rules: { cluster: ['cluster/no'], namespace: [], service: [] } },
  };
  plan.workloads = {
    'u-1': workload('u-1', 'a', ['10.244.1.5', 'fd00:244:1::5'], 'billing/1'),
    'u-2': workload('u-2', 'b', ['10.244.2.6', 'fd00:244:2::6'], 'billing/1'),
    'u-3': workload('u-3', 'a', ['10.244.1.7'], 'batch/1', false),
  };
  return plan;
}

const rulesetOf = (plan: GatewayPlan): Ruleset => compileGateway(plan).ruleset;
const noTable: NftState = stateOf({ family: 'inet', table: 'sluice', counters: [], sets: {}, chains: {} });
const pool = (plan: GatewayPlan) => ('pool' in plan.settings ? plan.settings.pool : {});
/** With the routes of single workloads. */
function wholeNet(plan: GatewayPlan, self: string, mtu: number): NetState {
  const net = compileNet(plan, self, mtu);
  return { ...net, routes: [...net.routes, ...Object.values(plan.workloads).flatMap(workloadRoutes(plan, self))] };
}
const full = (plan: GatewayPlan): string => scriptOf(diffRuleset(noTable, rulesetOf(plan)));
/** Lines of the transaction that leads from one plan to another. */
const change = (before: GatewayPlan, after: GatewayPlan): string[] =>
  scriptOf(diffRuleset(stateOf(rulesetOf(before)), rulesetOf(after)))
    .split('\n')
    .filter(Boolean);
const edited = (edit: (plan: GatewayPlan) => void): GatewayPlan => {
  const plan = samplePlan();
  edit(plan);
  return plan;
};

const isVxlan = ({ settings }: GatewayPlan): boolean => 'pool' in settings && settings.pool.steering.mode === 'VXLAN';
const makeDirect = ({ settings }: GatewayPlan): void => {
  if ('pool' in settings) settings.pool.steering.mode = 'Direct';
};

const addRedirects = ({ rules }: GatewayPlan): void => {
  const [ok, web] = [rules['namespace/billing/ok'], rules['service/billing/web']];
  if (ok !== undefined) ok.redirect = { address: '198.51.100.80' };
  if (web !== undefined) web.redirect = { address: '198.51.100.90', forbidden: 'it is the address of a pod' };
};

/** The same plan with every collection in reverse order. */
const reversed = (plan: GatewayPlan): GatewayPlan =>
  Object.fromEntries(
    Object.entries(plan).map(([name, items]) => [name, Object.fromEntries(Object.entries(items).reverse())]),
  ) as unknown as GatewayPlan;

t.test('compile: nothing dangles, and the fake kernel takes it', async (t) => {
  for (const plan of [
    samplePlan(),
    edited((p) => Object.assign(p.settings, { pool: { ...pool(p), defaultAction: 'Accept' } })),
    edited((p) => makeDirect(p)),
    edited((p) => addRedirects(p)),
    edited((p) => Object.assign(p.rules['service/billing/web'] ?? {}, { limits: { maxConnections: 1 } })),
    edited((p) => Object.assign(p.rules['service/billing/web'] ?? {}, { limits: { bandwidth: 1e6 } })),
  ]) {
    const { chains, sets, counters } = rulesetOf(plan);
    const texts = [
      ...Object.values(chains).flatMap(({ rules }) => rules),
      ...Object.values(sets).flatMap(({ elements }) => [...elements.values()]),
    ];
    const found = (pattern: RegExp): Set<string> =>
      new Set(texts.flatMap((text) => [...text.matchAll(pattern)].map(([, name = '']) => name)));
    const targets = found(/\b(?:jump|goto) (\w+)/g);
    t.same(
      [...targets].filter((name) => chains[name] === undefined),
      [],
      'every jump has a target',
    );
    // Chains that end a walk are there for every policy.
    const ends = Object.entries(chains).filter(
      ([name, { hook }]) => hook === undefined && !targets.has(name) && !/^(rule|drop|reject|audit)_/.test(name),
    );
    t.same(ends, [], 'every chain is reached');
    t.same(
      [...found(/@([a-z]\w*)\b(?!,)/g)].filter((n) => sets[n] === undefined && n !== 'th'),
      [],
      'every set is there',
    );
    const used = found(/counter name (\w+)/g);
    t.same(
      [...used].filter((name) => !counters.includes(name)),
      [],
      'every counter is there',
    );
    // The other reasons are a node's.
    const elsewhere: string[] = ['tunnel-port', 'unassigned'];
    if (!isVxlan(plan)) elsewhere.push('foreign-tunnel', 'bad-tunnel-frame');
    if (Object.values(plan.services).every(({ checks }) => checks === undefined)) elsewhere.push('unread');
    if (Object.values(plan.rules).every(({ limits }) => !limits?.bandwidth)) elsewhere.push('bandwidth');
    const reasons = countedReasons.filter((reason) => !elsewhere.includes(reason));
    const drops = [...used].filter((name) => !name.startsWith('audit_'));
    t.same(drops.sort(), reasons.map(counterName).sort(), 'every reason can be met');
    const fake = new FakeNft();
    await fake.run(diffRuleset(await fake.list('inet', 'sluice'), rulesetOf(plan)));
    t.same(await fake.list('inet', 'sluice'), stateOf(rulesetOf(plan)));
  }
  t.ok(isEmptyChange(diffRuleset(noTable, rulesetOf(emptyGatewayPlan()))), 'no pool, no rules');
  t.throws(() => rulesetOf(edited((p) => delete p.rules['cluster/no'])), /cluster\/no/, 'half a policy is refused');
});

t.test('compile: more workloads than the kernel has places for are refused, at first and later', async (t) => {
  const plan = samplePlan();
  const most = Object.keys(plan.workloads).length;
  t.throws(() => new GatewayCompiler({ most: most - 1 }).update(plan, undefined), { message: /takes \d+ workloads/ });
  const compiler = new GatewayCompiler({ most });
  compiler.update(plan, undefined);
  for (const [name, { size }] of Object.entries(compiler.table.ruleset().sets)) {
    if (/^(group|held|own|snat|noegress)[46]/.test(name)) t.equal(size, WORKLOADS_MAX, name);
  }
  const more = structuredClone(plan);
  const [first] = Object.values(more.workloads);
  if (first !== undefined) more.workloads['u-more'] = { ...first, uid: 'u-more', addresses: ['10.244.9.9'] };
  t.throws(() => compiler.update(more, undefined), { message: /takes \d+ workloads/ });
});

t.test('compile: the same plan, the same table', async (t) => {
  t.equal(full(samplePlan()), full(samplePlan()), 'to the letter');
  t.same(change(samplePlan(), samplePlan()), [], 'twice changes nothing');
  t.same(change(samplePlan(), reversed(samplePlan())), [], 'whatever the order of the plan');
  t.same(
    [...compileGateway(reversed(samplePlan())).ruleNumbers].sort(),
    [...compileGateway(samplePlan()).ruleNumbers].sort(),
  );
});

t.test('compile: what a change costs', async (t) => {
  const onlyElements = /^(add|delete) element inet sluice /;
  const rows: [name: string, edit: (plan: GatewayPlan) => void, sets: string[]][] = [
    [
      'a pod comes',
      (p) => (p.workloads['u-9'] = workload('u-9', 'a', ['10.244.1.9', 'fd00:244:1::9'], 'billing/1')),
      [
        'group4',
        'group6',
        'held44',
        'held46',
        'held64',
        'held66',
        'known4',
        'known6',
        'own4',
        'own6',
        'snat4',
        'snat6',
      ],
    ],
    ['a pod goes', (p) => delete p.workloads['u-3'], ['group4', 'held44', 'held64', 'known4', 'noegress4']],
    [
      'a pod leaves with another address',
      (p) => Object.assign(p.workloads['u-1']?.egress ?? {}, { 4: { address: '203.0.113.102', shard: 's1' } }),
      ['own4', 'snat4'],
    ],
    [
      'a pod changes its group',
      (p) => Object.assign(p.workloads['u-1'] ?? {}, { group: 'batch/1' }),
      ['group4', 'group6'],
    ],
    [
      'a pod moves',
      (p) => Object.assign(p.workloads['u-1'] ?? {}, { node: 'b' }),
      ['held44', 'held46', 'held64', 'held66'],
    ],
    ['a node comes', (p) => (p.nodes.c = { addresses: ['10.0.0.23'], podCIDRs: [] }), ['nodes4']],
    ['an egress IP comes', (p) => p.shards.s1?.egressIPs.push('203.0.113.103'), ['egress4', 'hairpin4']],
    ['a gateway gets an address', (p) => p.gateways['gw-b']?.addresses.push('203.0.113.32'), ['hairpin4']],
    ['a shard moves', (p) => p.shards.s0?.order.reverse(), []],
    [
      'a namespace with known rules comes',
      (p) => (p.groups['x/1'] = { namespace: 'x', rules: { cluster: ['cluster/no'], namespace: [], service: [] } }),
      ['groups'],
    ],
  ];
  for (const [name, edit, sets] of rows) {
    const lines = change(samplePlan(), edited(edit));
    t.ok(
      lines.every((line) => onlyElements.test(line)),
      `${name}: elements only`,
    );
    t.same([...new Set(lines.map((line) => line.split(' ')[4]))].sort(), sets, name);
  }

  const serving = (last: string): GatewayPlan =>
    edited((p) => {
      const addresses = Array.from({ length: 9 }, (_, at) => `198.51.100.${10 * at}/32`);
      Object.assign(p.services['billing/web'] ?? {}, { addresses: [...addresses, last] });
    });
  const other = change(serving('198.51.100.90/32'), serving('198.51.100.99/32'));
  t.ok(other.length > 0 && other.every((line) => onlyElements.test(line)), 'many destinations are a set');
  const few = change(
    samplePlan(),
    edited((p) => Object.assign(p.services['billing/web'] ?? {}, { addresses: ['198.51.100.90/32'] })),
  );
  t.match(few, [/^flush chain inet sluice service_/, /daddr 198\.51\.100\.90 /], 'a few stand in the rule');
  const rule = change(
    samplePlan(),
    edited((p) => Object.assign(p.rules['service/billing/web'] ?? {}, { action: 'drop' })),
  );
  const chains = rule.filter((line) => / chain /.test(line)).map((line) => line.replace(/_\w{32}.*/, ''));
  t.same(chains, ['flush chain inet sluice service'], 'a rule is its context’s chain, in place');
  t.notOk(rule.some((line) => /^(flush|delete|add) (map|set|counter|table)/.test(line)));
});

t.test('compile: what is shared', async (t) => {
  const size = (plan: GatewayPlan): number => Object.keys(rulesetOf(plan).chains).length;
  const crowded = edited((p) => {
    for (let i = 0; i < 1000; i++) {
      const group = `ns-${i}/1`;
      p.groups[group] = { namespace: `ns-${i}`, rules: { cluster: ['cluster/no'], namespace: [], service: [] } };
      p.workloads[`w-${i}`] = workload(`w-${i}`, 'a', [`10.246.${i >> 8}.${i & 255}`], group);
    }
  });
  t.equal(size(crowded), size(samplePlan()), '1,000 namespaces and pods: not one chain more');
  const { chains, sets } = rulesetOf(crowded);
  t.equal(Object.keys(chains).filter((name) => name.startsWith('cluster_')).length, 1, 'one chain of cluster rules');
  const [nobody, ...groups] = sets.groups?.elements ?? [];
  t.same(nobody, [noEgressMark, 'goto drop_no_egress_ip'], 'and who has no egress IP, by a mark of their own');
  t.equal(sets.group4?.elements.get('10.244.1.7'), noEgressMark, 'as u-3 does');
  t.equal(new Set(groups.map(([, to]) => to)).size, 2, 'namespaces of the same rules go to the same chain');
  t.equal(groups.length, 1002, 'each by its own mark');
  const groupChains = Object.entries(chains).flatMap(([name, { rules }]) => (name.startsWith('group_') ? [rules] : []));
  const few = groupChains.find(({ length }) => length === 2);
  t.match(few, [/^jump cluster_/, /goto rule_default$/], 'no jump where a context has no rule');
  t.same(Object.keys(sets), Object.keys(rulesetOf(samplePlan()).sets), 'and not one set more');

  const twins = edited((p) => {
    const rule = p.rules['service/billing/web'];
    if (rule !== undefined) p.rules['service/billing/twin'] = { ...rule, name: 'twin', action: 'drop' };
    p.groups['billing/1']?.rules.service.push('service/billing/twin');
  });
  t.same(
    Object.keys(rulesetOf(twins).sets),
    Object.keys(rulesetOf(samplePlan()).sets),
    'rules share their destinations',
  );
  t.same([...(sets.cluster4?.elements.keys() ?? [])], ['10.244.0.0-10.245.255.255'], 'overlapping prefixes are joined');
  const walk = [/^jump cluster_/, /^jump namespace_/, /^jump service_/, /goto rule_default$/];
  const all = groupChains.find(({ length }) => length === 4);
  t.match(all, walk, 'contexts in their order, then the default action');
});

t.test('compile: a list among many rules is looked up with them, once', async (t) => {
  /** Drops before the rules of billing: so many single destinations, behind a list of so many prefixes. */
  const looked = (single: number, listed: number): string[] => {
    const { chains } = rulesetOf(
      edited((p) => {
        const add = (name: string, addresses: string[]): void => {
          p.services[`billing/${name}`] = { addresses, ports: null };
          const rule = p.rules['service/billing/web'];
          if (rule === undefined) throw new TypeError('no such rule');
          p.rules[`service/billing/${name}`] = { ...rule, name, action: 'drop', services: [`billing/${name}`] };
          p.groups['billing/1']?.rules.service.unshift(`service/billing/${name}`);
        };
        for (let at = 0; at < single; at++) add(`one-${at}`, [`198.18.${at}.1/32`]);
        add(
          'list',
          Array.from({ length: listed }, (_, at) => `10.${at >> 7}.${2 * (at & 127)}.0/24`),
        );
      }),
    );
    const [, service] = Object.entries(chains).find(([name, { rules }]) => {
      return name.startsWith('service_') && rules.some((rule) => rule.includes('@'));
    }) ?? [undefined, { rules: [] }];
    const asked = service.rules.flatMap(
      (rule) => /^ip daddr .*@(to|service)_[0-9a-f]+(\S*)/.exec(rule)?.slice(1).join('') ?? [],
    );
    return asked;
  };
  t.same(looked(0, 20), ['to_all4'], 'by itself it has its own set');
  t.same(looked(10, 20), ['to_all4'], 'and beside a few, which are compared');
  t.same(looked(40, 20), ['service_0_ports4', 'service_0_types4'], 'many are a look-up anyway');
  t.same(looked(40, 1_100), ['to_all4', 'service_1_ports4', 'service_1_types4'], 'of a long list no copies are made');
});

t.test('compile: types and codes of ICMP', async (t) => {
  const elements = (ports: [number, number][], addresses: number): string[] => {
    const { sets, chains } = rulesetOf(
      edited((p) => {
        p.services['billing/web'] = {
          addresses: Array.from({ length: addresses }, (_, at) => 80 + 2 * at).flatMap((host) => [
            `198.51.100.${host}/32`,
            `2001:db8:100::${host}/128`,
          ]),
          ports: [
            { protocol: 1, ports },
            { protocol: 58, ports },
          ],
        };
      }),
    );
    const texts = (['4', '6'] as const).map((family) => {
      const [name = '', set] = Object.entries(sets).find(([key]) => key.endsWith(`_types${family}`)) ?? [];
      const icmp = family === '4' ? 'icmp' : 'icmpv6';
      const rules = Object.values(chains).flatMap((chain) => chain.rules);
      if (addresses === 1) {
        t.equal(set, undefined, 'no set for a few');
        const compared = new RegExp(`(?:^| daddr \\S+ )${icmp} type (\\S+) ${icmp} code (\\S+) `);
        return rules.flatMap((rule) => compared.exec(rule)?.slice(1).join(' . ') ?? []);
      }
      t.match(set, { type: `ipv${family}_addr . ${icmp}_type . ${icmp}_code`, interval: true });
      t.ok(
        rules.some((rule) => rule.includes(` daddr . ${icmp} type . ${icmp} code @${name} `)),
        'a rule asks it',
      );
      return [...new Set([...(set?.elements.keys() ?? [])].map((key) => key.replace(/^\S+ \. /, '')))];
    });
    t.same(texts[0], texts[1], 'the same in both families');
    return texts[0] ?? [];
  };
  const rows: [name: string, ports: [number, number][], elements: string[]][] = [
    ['a type', [[0x0800, 0x08ff]], ['8 . 0-255']],
    ['a type and code', [[0x0304, 0x0304]], ['3 . 4']],
    ['codes in a row', [[0x0304, 0x0309]], ['3 . 4-9']],
    ['types in a row', [[0x0d00, 0x12ff]], ['13-18 . 0-255']],
    ['everything', [[0, 0xffff]], ['0-255 . 0-255']],
    ['the end of one, the start of the next', [[0x03fe, 0x0400]], ['3 . 254-255', '4 . 0']],
    ['types in part at both ends', [[0x0302, 0x0701]], ['3 . 2-255', '4-6 . 0-255', '7 . 0-1']],
    ['whole types and a part', [[0x0300, 0x0502]], ['3-4 . 0-255', '5 . 0-2']],
    ['a part and whole types', [[0x0301, 0x05ff]], ['3 . 1-255', '4-5 . 0-255']],
  ];
  for (const addresses of [1, 9]) {
    for (const [name, ports, expected] of rows) t.same(elements(ports, addresses), expected, `${name}, ${addresses}`);
  }
});

t.test('Direct: the internal interface in place of the tunnel', async (t) => {
  const direct = edited((p) => {
    makeDirect(p);
    p.nodes.b?.addresses.push('fd00:10::22');
  });
  const net = wholeNet(direct, 'gw-a', 1500);
  t.same([net.links, net.neighbours], [[], []], 'no tunnel device');
  t.same(
    net.routes
      .filter(({ table }) => table === 7790)
      .map(({ destination, via, dev, encap }) => `${destination} ${via} ${dev} ${encap ?? ''}`.trim()),
    [
      '10.244.1.0/24 10.0.0.21 inside',
      'fd00:244:1::/64 fd00:10::21 inside',
      '10.244.2.6/32 10.0.0.22 inside',
      'fd00:244:2::6/128 fd00:10::22 inside',
    ],
    'back to a node by its address of the same family',
  );
  t.same(
    net.rules.map(({ family, priority, not, iif }) => `${family} ${priority} ${not ? 'not ' : ''}${iif ?? ''}`.trim()),
    families
      .flatMap((f) => ['7788 not', '7789', '7790', '7791', '7794'].map((rule) => `${f} ${rule} inside`))
      .concat('4 7792 not lo', '4 7793 lo', '4 7793 lo', '6 7793 lo'),
  );
  t.same(net.addresses, wholeNet(samplePlan(), 'gw-a', 1500).addresses, 'the same addresses');
  const settingsOf = ({ settings }: GatewayPlan): string[] =>
    'pool' in settings ? Object.keys(deviceSysctls(settings.pool)) : [];
  t.same(settingsOf(direct), ['net/ipv4/conf/outside/src_valid_mark'], 'no setting of a tunnel device');
  t.ok(settingsOf(samplePlan()).includes('net/ipv4/conf/sluice-vx/rp_filter'));
  const { chains, sets } = rulesetOf(direct);
  t.same([...(sets.group6?.elements.keys() ?? [])], ['fd00:244:1::5', 'fd00:244:2::6']);
  t.same(
    Object.keys(sets).filter((name) => /^(held|known|nodes)/.test(name)),
    [],
  );
  const rules = Object.values(chains).flatMap((chain) => chain.rules);
  t.notOk(
    rules.some((rule) => /sluice-vx|4793|untracked .*accept|notrack/.test(rule)),
    'nothing of the tunnel, and nothing that passes untracked',
  );
  t.match(change(samplePlan(), direct).join('\n'), /delete map inet sluice held44/, 'a pool may change its mode');
});

t.test('addresses and routes', async (t) => {
  const net = wholeNet(samplePlan(), 'gw-a', 1500);
  t.same(heldShards(samplePlan(), 'gw-a'), ['s0']);
  t.same(heldShards(samplePlan(), 'gw-c'), [], 'a gateway that is in no order holds nothing');
  t.same(
    net.addresses.map(({ dev, address }) => `${dev} ${address}`),
    ['inside 10.0.0.64/32', 'inside fd00:10::64/128', 'outside 203.0.113.101/32', 'outside 2001:db8:113::101/128'],
    'of the shards that it holds: next hops inside, egress IPs outside',
  );
  t.same(
    wholeNet(samplePlan(), 'gw-b', 1500).addresses.map(({ address }) => address),
    ['10.0.0.65/32', '203.0.113.102/32'],
    'the other gateway has the others, and none of the first',
  );
  t.same(
    net.routes.filter(({ table }) => table === 7790).map((r) => `${r.destination} -> ${r.encap?.destination}`),
    [
      '10.244.1.0/24 -> 10.0.0.21',
      'fd00:244:1::/64 -> 10.0.0.21',
      '10.244.2.6/32 -> 10.0.0.22',
      'fd00:244:2::6/128 -> 10.0.0.22',
    ],
    'back to a node by its pod ranges, else by address; in the underlay’s family',
  );
  t.ok(
    net.routes.every(({ via, family, type }) => type !== 'unicast' || via?.includes(':') === (family === 6)),
    'next hops of the route’s own family',
  );
  t.same(
    net.routes.filter(({ table }) => table === 7791).map(({ family, via, dev }) => ({ family, via, dev })),
    [{ family: 4, via: '203.0.113.1', dev: 'outside' }],
    'out by the router that the pool names, and by the machine’s routes for a family without',
  );
  t.same(
    net.rules.map((r) =>
      [
        r.family,
        r.priority,
        r.table ?? `goto ${r.goto}`,
        r.not && 'not',
        r.iif,
        r.mark?.value || (r.mark && `not ${r.mark.mask}`),
        r.from,
      ]
        .filter(Boolean)
        .join(' '),
    ),
    [
      '4 7788 7790 not sluice-vx',
      '4 7789 7791 sluice-vx 256',
      '4 7790 7793 sluice-vx 512',
      '4 7791 7794 sluice-vx 1024',
      '4 7794 7792 sluice-vx',
      '6 7788 7790 not sluice-vx',
      '6 7789 254 sluice-vx 256',
      '6 7790 7793 sluice-vx 512',
      '6 7791 7794 sluice-vx 1024',
      '6 7794 7792 sluice-vx',
      '4 7792 goto 7794 not lo 203.0.113.100/30',
      '4 7793 7795 lo not 256 203.0.113.101/32',
      '4 7793 7795 lo not 256 203.0.113.102/32',
      '6 7793 7795 lo not 256 2001:db8:113::101/128',
    ],
    'only what nftables has checked leaves, and nothing that the machine says as an egress IP; the rest ends in a black hole',
  );
  t.notOk(
    net.rules.some((rule) => 'protocol' in rule),
    'no rule by protocol, for which the kernel would dissect every packet',
  );
  t.same(
    net.routes
      .filter(({ table }) => table === 7792)
      .map(({ family, type, destination }) => [family, type, destination]),
    families.map((family) => [family, 'blackhole', 'default']),
  );
  t.same(
    net.routes.filter(({ table }) => table > 7792).map(({ family, type, dev }) => [family, type, dev]),
    families.flatMap((family) => [
      [family, 'local', 'lo'],
      [family, 'prohibit', undefined],
      [family, 'unicast', 'sluice-vx'],
    ]),
    'what is rejected: TCP to the input hook, the rest to an ICMP error; as an egress IP by the output hook, and no further',
  );
  const mtu = (plan: GatewayPlan, underlay: number): number | undefined =>
    wholeNet(plan, 'gw-a', underlay).links[0]?.mtu;
  t.equal(mtu(samplePlan(), 1500), 1450, 'the tunnel’s MTU is the underlay’s less the overhead');
  t.equal(
    mtu(
      edited((p) => Object.assign(p.gateways['gw-a'] ?? {}, { internalAddress: 'fd00:10::31' })),
      1500,
    ),
    1430,
    'over IPv6 less 20 more',
  );
  t.equal(
    mtu(
      edited((p) => Object.assign(pool(p), { steering: { mode: 'VXLAN', vni: 1, port: 4793, mtu: 1300 } })),
      1500,
    ),
    1300,
    'unless the pool says one',
  );
  t.same(wholeNet(emptyGatewayPlan(), 'gw-a', 1500), {
    links: [],
    addresses: [],
    routes: [],
    rules: [],
    neighbours: [],
  });
  const gone = edited((p) => Object.assign(p.workloads['u-2'] ?? {}, { node: 'nowhere' }));
  t.notOk(
    wholeNet(gone, 'gw-a', 1500).routes.some(({ destination }) => destination.startsWith('10.244.2.6')),
    'no route to a node that is not there',
  );
});

const compiled = compileGateway(samplePlan());
const view = viewOf('gw-a', samplePlan(), compiled.ruleNumbers);
const time = new Date('2026-11-25T12:00:00Z');
const markOf = (rule: string): number => ruleMark(compiled.ruleNumbers.get(rule) ?? 0);

const flow = (rule: string, source = '10.244.1.5'): ConntrackEntry => ({
  family: 4,
  id: 7,
  protocol: 6,
  original: { source, destination: '198.51.100.80', sourcePort: 40000, destinationPort: 443 },
  reply: { source: '198.51.100.80', destination: '203.0.113.101', sourcePort: 443, destinationPort: 50123 },
  mark: (CT_DECIDED | markOf(rule)) >>> 0,
  status: 0,
  packets: { original: 12, reply: 10 },
  bytes: { original: 900, reply: 8000 },
  startNs: 1_764_072_000_000_000_000n,
  stopNs: 1_764_072_002_500_400_000n,
  zone: 0,
});

t.test('which established flows a plan ends', async (t) => {
  const ranges = ({ settings }: GatewayPlan) =>
    ('pool' in settings ? settings.pool : t.fail('no pool')) as PoolSettings;
  const claim = (address: string) => (p: GatewayPlan) =>
    (p.workloads['u-9'] = workload('u-9', 'b', [address], 'batch/1'));
  const ends = (edit: (plan: GatewayPlan) => void, one = flow('service/billing/web')): boolean =>
    endedBy(edited(edit))(one);
  const rows: [name: string, edit: (plan: GatewayPlan) => void, ended: boolean][] = [
    ['the same plan', () => {}, false],
    ['another pod goes', (p) => delete p.workloads['u-2'], false],
    ['a pod comes', (p) => (p.workloads['u-9'] = workload('u-9', 'a', ['10.244.1.9'], 'billing/1')), false],
    ['a rule that does not concern it', (p) => Object.assign(p.rules['cluster/no'] ?? {}, { action: 'drop' }), false],
    ['its pod goes', (p) => delete p.workloads['u-1'], true],
    [
      'its pod has another egress IP',
      (p) => Object.assign(p.workloads['u-1']?.egress ?? {}, { 4: { address: '203.0.113.102', shard: 's1' } }),
      true,
    ],
    ['its pod has none', (p) => Object.assign(p.workloads['u-1'] ?? {}, { egress: {} }), true],
    ['its rule drops now', (p) => Object.assign(p.rules['service/billing/web'] ?? {}, { action: 'drop' }), true],
    ['its destination leaves the list', (p) => (p.services['billing/web'] = { addresses: [], ports: null }), true],
    ['a veto above', (p) => Object.assign(p.rules['cluster/no'] ?? {}, { services: '*' }), true],
    ['its group loses the rule', (p) => Object.assign(p.groups['billing/1']?.rules ?? {}, { service: [] }), true],
    ['its destination is the cluster’s now', (p) => ranges(p).clusterCIDRs.push('198.51.100.80/31'), true],
    ['or excluded', (p) => ranges(p).excludedCIDRs.push('198.51.100.80/32'), true],
    ['what lies beside it is', (p) => ranges(p).excludedCIDRs.push('198.51.100.82/31'), false],
    ['the cluster has less', (p) => ranges(p).clusterCIDRs.splice(0), false],
    ['its destination is a gateway now', (p) => p.gateways['gw-b']?.addresses.push('198.51.100.80'), true],
    ['or an egress IP', (p) => p.shards.s1?.egressIPs.push('198.51.100.80'), true],
    ['another is', (p) => p.shards.s1?.egressIPs.push('198.51.100.81'), false],
    ['another pod claims its pod’s address', claim('10.244.1.5'), true],
    ['or that of another pod', claim('10.244.2.6'), false],
  ];
  // Without the rule that drops the rest of the namespace, which comes before the service context.
  const open = (p: GatewayPlan): void => void p.groups['billing/1']?.rules.namespace.pop();
  const before = edited(open);
  for (const [name, edit, ended] of rows) {
    const both = (p: GatewayPlan): void => {
      open(p);
      edit(p);
    };
    t.equal(ends(both), ended, name);
    if (ended) t.ok(touches(before, edited(both)), `${name}: and the table is looked through`);
  }
  for (const [family, protocol, icmpType] of [
    [4, 1, 8],
    [6, 58, 128],
  ] as const) {
    const egress = family === 4 ? '203.0.113.101' : '2001:db8:113::101';
    const destination = family === 4 ? '198.51.100.80' : '2001:db8:100::80';
    const ping: ConntrackEntry = {
      ...flow('service/billing/web', family === 4 ? '10.244.1.5' : 'fd00:244:1::5'),
      family,
      protocol,
      original: {
        source: family === 4 ? '10.244.1.5' : 'fd00:244:1::5',
        destination,
        icmpType,
        icmpCode: 0,
        icmpId: 7,
      },
      reply: { source: destination, destination: egress, icmpType: 0, icmpCode: 0, icmpId: 7 },
    };
    const only = (first: number) => (p: GatewayPlan) => {
      open(p);
      p.services['billing/web'] = { addresses: [destination], ports: [{ protocol, ports: [[first, first + 255]] }] };
    };
    t.equal(ends(only(icmpType * 256), ping), false, `v${family}: a ping, where echo requests are permitted`);
    t.equal(ends(only(13 * 256), ping), true, `v${family}: a ping, where another type is`);
  }
  const sent = flow('service/billing/web');
  const elsewhere = (p: GatewayPlan): void => {
    open(p);
    Object.assign(p.rules['service/billing/web'] ?? {}, { redirect: { address: '198.51.100.90' } });
    ranges(p).clusterCIDRs.push('198.51.100.90/32');
  };
  const redirected = { ...sent, reply: { ...sent.reply, source: '198.51.100.90' } };
  t.equal(ends(elsewhere, redirected), false, 'where a rule sends it instead is for the policy to say');
  t.notOk(touches(before, edited(open)), 'the same plan: it is not');
  t.notOk(
    touches(
      before,
      edited((p) => {
        open(p);
        p.workloads['u-9'] = workload('u-9', 'a', ['10.244.1.9'], 'billing/1');
      }),
    ),
    'nor for a pod that comes: it has no flows yet',
  );
});

t.test('flow records: start and end', async (t) => {
  const start = startRecord(flow('service/billing/web'), view, time);
  t.same(start, {
    time: '2026-11-25T12:00:00.000Z',
    event: 'start',
    verdict: 'accept',
    reason: 'service-accept',
    context: 'service',
    rule: 'billing/web',
    namespace: 'billing',
    pod: 'u-1',
    services: ['payments'],
    node: 'a',
    protocol: 'tcp',
    source: '10.244.1.5',
    sourcePort: 40000,
    destination: '198.51.100.80',
    destinationPort: 443,
    egressIP: '203.0.113.101',
    egressPort: 50123,
    gateway: 'gw-a',
    shard: 's0',
  });
  t.match(startRecord(flow('namespace/billing/ok'), view, time), {
    reason: 'rule',
    context: 'namespace',
    rule: 'billing/ok',
  });
  t.match(startRecord(flow(DEFAULT_ACTION), view, time), { reason: 'default-action', rule: undefined });
  t.match(
    startRecord(flow('gone'), view, time),
    { reason: 'rule', rule: undefined },
    'a rule that is no more has no name',
  );
  const stranger = startRecord(flow('service/billing/web', '10.244.9.9'), view, time);
  t.notOk('pod' in stranger || 'shard' in stranger, 'a source that is no workload any more');

  const later = new Date('2026-11-25T12:00:09Z');
  const end = endRecord(start, flow('gone', '10.244.9.9'), later);
  t.same(end, {
    ...start,
    time: '2026-11-25T12:00:09.000Z',
    event: 'end',
    packets: { egress: 12, ingress: 10 },
    bytes: { egress: 900, ingress: 8000 },
    durationSeconds: 2.5,
  });
  const { startNs: _start, stopNs: _stop, ...timeless } = flow('gone');
  t.notOk('durationSeconds' in endRecord(start, timeless, later), 'no duration that nobody measured');

  const ping: ConntrackEntry = {
    ...flow('service/billing/web'),
    protocol: 1,
    original: { source: '10.244.1.5', destination: '198.51.100.80', icmpType: 8, icmpCode: 0, icmpId: 7 },
    reply: { source: '198.51.100.80', destination: '203.0.113.101', icmpType: 0, icmpCode: 0, icmpId: 7 },
  };
  const record = startRecord(ping, view, time);
  t.match(record, { protocol: 'icmp', icmpType: 8, icmpCode: 0 }, 'the type that asked, not that of the answer');
  t.notOk('sourcePort' in record || 'destinationPort' in record || 'egressPort' in record, 'ICMP has no ports');
  t.equal(startRecord({ ...ping, protocol: 47 }, view, time).protocol, '47', 'others by number');
});

t.test('flow records: a denial of each reason', async (t) => {
  const packet = {
    mark: 0,
    protocol: 17,
    source: '10.244.1.5',
    sourcePort: 5,
    destination: '192.0.2.1',
    destinationPort: 53,
  };
  for (const reason of Object.keys(dropReasons)) {
    const record = denyRecord({ ...packet, prefix: reason }, view, time);
    t.match(record, { event: 'deny', reason, pod: 'u-1', protocol: 'udp', destinationPort: 53 }, reason);
    t.equal(record.verdict, reason === 'hairpin' ? 'reject' : 'drop');
    t.notOk('rule' in record || 'egressIP' in record, 'no rule, and no address that it would have left with');
  }
  const rows: [name: string, expected: object][] = [
    ['cluster/no', { verdict: 'reject', reason: 'rule', context: 'cluster', rule: 'no' }],
    [DEFAULT_ACTION, { verdict: 'drop', reason: 'default-action' }],
    ['gone', { verdict: 'drop', reason: 'rule', rule: undefined }],
  ];
  for (const [name, expected] of rows) {
    t.match(denyRecord({ ...packet, prefix: 'rule', mark: markOf(name) }, view, time), expected, `by ${name}`);
  }
  const { sourcePort: _source, destinationPort: _destination, ...portless } = packet;
  t.match(
    denyRecord({ ...portless, protocol: 1, icmpType: 13, icmpCode: 0, prefix: 'rule' }, view, time),
    { protocol: 'icmp', icmpType: 13, icmpCode: 0 },
    'ICMP by type and code',
  );
  const unknown = denyRecord({ ...packet, prefix: 'unknown-source', source: '10.9.9.9' }, view, time);
  t.notOk('namespace' in unknown || 'pod' in unknown, 'of nobody');
});
