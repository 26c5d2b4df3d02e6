/**
 * Bandwidth, but for the kernel (test/netns/bandwidth.test.ts): what may be written, what decisions and statuses say of it,
 * how it is divided, which chains and classes a gateway makes of it, and what a change of it touches.
 */
import t from 'tap';
import { formatBandwidth, parseBandwidth } from '../../api/bandwidth.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { TC_MAJOR } from '../../api/names.ts';
import { emptyGatewayPlan, type GatewayPlan, type RuleEntry, type WorkloadEntry } from '../../api/plan.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { bandwidthsOf, egressName, pairName, portName, ruleName } from '../../gateway/bandwidth.ts';
import { bandwidthTable } from '../../gateway/bandwidth-chains.ts';
import { compileGateway, GatewayCompiler } from '../../gateway/compile.ts';
import { desiredClasses, Shaping } from '../../gateway/shaping.ts';
import { changeSize, diffRuleset, scriptOf, stateOf } from '../../kernel/nft.ts';
import { diffTc, queueBytes, shapedBits, type TcClass, type TcState } from '../../kernel/tc.ts';
import { FakeTc } from '../../kernel/tc-fake.ts';
import { parseClasses, parseQdiscs } from '../../kernel/tc-host.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { touches } from '../touches.ts';

type Fields = Record<string, unknown>;
function object(kind: string, name: string, fields: Fields, meta: Fields = {}): AnyObject {
  const apiVersion = ['Namespace', 'Pod', 'Node'].includes(kind) ? 'v1' : 'sluice.dev/v1alpha1';
  const parsed = parseObject({ apiVersion, kind, metadata: { name, ...meta }, ...fields });
  if (!parsed.ok) throw new Error(`${kind} ${name}: ${JSON.stringify(parsed.errors)}`);
  return parsed.value;
}
const errorsOf = (kind: string, spec: Fields) => {
  const namespaced = kind !== 'EgressIP' && kind !== 'ClusterEgressRule';
  const metadata = { name: 'r', ...(namespaced && { namespace: 'a' }) };
  const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', kind, metadata, spec });
  return parsed.ok ? [] : parsed.errors.map(({ path, expected, got }) => `${path}: ${expected}: ${got}`);
};

t.test('what may be written', async (t) => {
  const expected = 'a rate like 50Mbit: a whole number with kbit, Mbit or Gbit, up to 100Gbit';
  const good: [text: string, bits: number, shown: string][] = [
    ['1kbit', 1e3, '1 kbit/s'],
    ['50Mbit', 50e6, '50 Mbit/s'],
    ['2500kbit', 2.5e6, '2.5 Mbit/s'],
    ['10Gbit', 10e9, '10 Gbit/s'],
    ['100Gbit', 100e9, '100 Gbit/s'],
    ['99999999kbit', 99_999_999e3, '100 Gbit/s'],
  ];
  const bad: unknown[] = [
    ...['50', '50M', '50 Mbit', '50mbit', '50MBit', '50Mbps', '1.5Gbit', '0Mbit', '05Mbit', '-1Mbit', '', 'Mbit'],
    ...['101Gbit', '100000Mbit', '100000000kbit', '50Mibit', '50Mbit/s', 'unlimited'],
    50,
    { egress: '1Mbit' },
  ];
  const places: [kind: string, path: string, spec: (value: unknown) => Fields][] = [
    ['ClusterEgressRule', 'spec.bandwidth', (bandwidth) => ({ action: 'accept', externalServices: ['*'], bandwidth })],
    [
      'NamespaceEgressRule',
      'spec.bandwidth',
      (bandwidth) => ({ action: 'accept-decisively', externalServices: ['*'], bandwidth }),
    ],
    [
      'ServiceEgressRule',
      'spec.bandwidth',
      (bandwidth) => ({ action: 'accept', service: 's', externalServices: ['*'], bandwidth }),
    ],
    [
      'ExternalService',
      'spec.ports[0].bandwidth',
      (bandwidth) => ({ addresses: ['198.51.100.1'], ports: [{ name: 'a', protocol: 'TCP', bandwidth }] }),
    ],
    ...(['egress', 'ingress'] as const).map((way): [string, string, (value: unknown) => Fields] => [
      'EgressIP',
      `spec.bandwidth.${way}`,
      (value) => ({ pool: 'p', count: 1, namespaces: ['a'], bandwidth: { [way]: value } }),
    ]),
  ];
  for (const [kind, path, spec] of places) {
    for (const [text] of good) t.same(errorsOf(kind, spec(text)), [], `${kind} ${text}`);
    for (const value of bad) {
      const [error = '', ...more] = errorsOf(kind, spec(value));
      t.ok(
        error.startsWith(`${path}: ${expected}: `) && more.length === 0,
        `${kind} ${JSON.stringify(value)}: ${error}`,
      );
    }
  }
  for (const [text, bits, shown] of good) t.same([parseBandwidth(text), formatBandwidth(bits)], [bits, shown]);
  t.throws(() => parseBandwidth('50'));
  for (const action of ['drop', 'reject']) {
    t.same(errorsOf('ClusterEgressRule', { action, externalServices: ['*'], bandwidth: '1Mbit' }), [
      `spec.bandwidth: absent: a rule that says ${action} lets nothing through: "1Mbit"`,
    ]);
  }
  const eip = { pool: 'p', count: 1, namespaces: ['a'] };
  t.same(errorsOf('EgressIP', { ...eip, bandwidth: {} }), ['spec.bandwidth: egress or ingress: neither']);
  t.match(errorsOf('EgressIP', { ...eip, bandwidth: '1Mbit' })[0] ?? '', /^spec\.bandwidth: an object/);
});

/** A pool with four next hops, so that two addresses of an EgressIP can lie on different shards. */
const around = surroundings();
function surroundings(): AnyObject[] {
  const pods = Array.from({ length: 8 }, (_, i) =>
    object(
      'Pod',
      `p-${i}`,
      { spec: { nodeName: 'n' }, status: { phase: 'Running', podIPs: [{ ip: `10.244.1.${i + 1}` }] } },
      { namespace: 'shop', uid: `u-${i}` },
    ),
  );
  return [
    object('GatewayPool', 'edge', {
      spec: {
        namespaceSelector: {},
        gateways: [
          { name: 'gw-a', internalAddress: '10.0.0.31' },
          { name: 'gw-b', internalAddress: '10.0.0.32' },
        ],
        interfaces: { internal: 'inside', external: { name: 'outside' } },
        nextHops: { v4: ['10.0.0.64-10.0.0.67'] },
        clusterCIDRs: ['10.244.0.0/16'],
      },
    }),
    object('EgressIPPool', 'public', {
      spec: { gatewayPool: 'edge', ranges: ['203.0.113.100-203.0.113.120'], namespaceSelector: {} },
    }),
    object('Namespace', 'shop', {}),
    object('Node', 'n', {
      spec: { podCIDR: '10.244.1.0/24' },
      status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] },
    }),
    ...pods,
  ];
}
/** `cache`: of the plans before. */
function planned(more: AnyObject[], cache = new PlanCache()): PlanResult {
  const objects = [...around, ...more];
  return plan(new Map(objects.map((o) => [objectKey(o), o])), emptyMemory(), noPeers(), 0, new Map(), cache);
}
const inShop = { namespace: 'shop' };
const eip = (bandwidth: Fields): AnyObject =>
  object('EgressIP', 'shop', { spec: { pool: 'public', count: 4, namespaces: ['shop'], bandwidth } });
const store = object(
  'ExternalService',
  'store',
  {
    spec: {
      addresses: ['198.51.100.63'],
      ports: [
        { name: 's3', protocol: 'TCP', port: '9000', bandwidth: '500Mbit' },
        { name: 'ping', protocol: 'ICMP', port: '8', bandwidth: '1Mbit' },
        { name: 'console', protocol: 'TCP', port: '9001' },
      ],
    },
  },
  inShop,
);
const backup = (more: Fields = {}): AnyObject =>
  object(
    'NamespaceEgressRule',
    'backup',
    { spec: { action: 'accept-decisively', externalServices: ['store'], bandwidth: '200Mbit', ...more } },
    inShop,
  );

t.test('plans and statuses: each limit with the shards over which it is divided', async (t) => {
  const result = planned([eip({ egress: '1Gbit' }), store, backup()]);
  const made = result.pools.get('edge') ?? emptyGatewayPlan();
  const used = new Set(Object.values(made.workloads).map(({ egress }) => `edge/${egress[4]?.shard}`));
  const shards = [...used].sort();
  t.ok(shards.length > 1, 'the pods are on several shards');
  t.same(made.rules['namespace/shop/backup']?.limits, { bandwidth: 200e6, shards });
  t.same(made.services['shop/store']?.limits, [
    { name: 'ping', protocol: 1, ports: [[2048, 2303]], bandwidth: 1e6, shards },
    { name: 's3', protocol: 6, ports: [[9000, 9000]], bandwidth: 500e6, shards },
  ]);
  const { addresses = [], shards: own = [], ...rates } = made.egressIPs.shop?.bandwidth ?? {};
  t.same([addresses.length, rates], [4, { egress: 1e9 }]);
  t.ok(
    shards.every((shard) => own.includes(shard)),
    'of its addresses, used or not',
  );
  const division = (key: string): Fields[] => result.statuses.get(key)?.limits as Fields[];
  t.same(
    division('NamespaceEgressRule/shop/backup').map(({ bandwidth }) => bandwidth),
    shards.map((_, at) => Math.floor(200e6 / shards.length) + (at < 200e6 % shards.length ? 1 : 0)),
  );
  t.same(new Set(division('ExternalService/shop/store').map(({ port }) => port)), new Set(['ping', 's3']));
  t.same(
    division('EgressIP/shop').map(({ shard, egress, ingress }) => [`edge/${shard}`, egress, ingress]),
    own.map((shard) => [
      shard,
      Math.floor(1e9 / own.length) + (own.indexOf(shard) < 1e9 % own.length ? 1 : 0),
      undefined,
    ]),
  );
  const without = planned([eip({ egress: '1Gbit' }), store, backup({ mode: 'Audit' })]);
  t.same(
    without.pools.get('edge')?.services['shop/store']?.limits?.[1]?.shards,
    undefined,
    'a rule in audit accepts nothing',
  );
  const veto = object(
    'NamespaceEgressRule',
    'backup',
    { spec: { action: 'drop', externalServices: ['store'] } },
    inShop,
  );
  const dropped = planned([eip({ egress: '1Gbit' }), store, veto]);
  t.same(dropped.pools.get('edge')?.services['shop/store']?.limits?.[1]?.shards, undefined, 'nor does one that drops');
  const plain = object('EgressIP', 'shop', { spec: { pool: 'public', count: 1, namespaces: ['shop'] } });
  t.same(planned([plain]).pools.get('edge')?.egressIPs, {});
});

t.test('a port that gets a limit later is divided like the others of the rule that names it', async (t) => {
  const service = (name: string, bandwidth?: string): AnyObject => {
    const port = { name: 'tls', protocol: 'TCP', port: '443', ...(bandwidth && { bandwidth }) };
    return object('ExternalService', name, { spec: { addresses: ['198.51.100.63'], ports: [port] } }, trusted);
  };
  const trusted = { namespace: 'sluice-system' };
  const rule = object('ClusterEgressRule', 'top', {
    spec: { action: 'accept-decisively', externalServices: ['one', 'two'] },
  });
  const [always, cache] = [[eip({ egress: '1Gbit' }), rule, service('one', '8Mbit')], new PlanCache()];
  planned([...always, service('two')], cache);
  const later = planned([...always, service('two', '9Mbit')], cache).pools.get('edge')?.services;
  const [one, two] = ['one', 'two'].map((name) => later?.[`sluice-system/${name}`]?.limits?.[0]?.shards);
  t.ok((one ?? []).length > 1);
  t.same(two, one);
});

/** One pod of the group g, whose rules are those given, with services web (198.51.100.80) and its limited port 443. */
type Rule = Pick<RuleEntry, 'context' | 'name' | 'action' | 'services'> & Partial<RuleEntry>;
function policyOf(
  rules: Rule[],
  more: { audit?: true; egress?: number; ingress?: number; port?: number } = {},
): GatewayPlan {
  const made = emptyGatewayPlan();
  made.settings = {
    pool: {
      pool: 'edge',
      defaultAction: 'Drop',
      unassigned: 'Drop',
      internalInterface: 'in',
      externalInterface: 'out',
      externalGateway: {},
      steering: { mode: 'VXLAN', vni: 1, port: 4793, mtu: null },
      clusterCIDRs: [],
      excludedCIDRs: [],
    },
  };
  made.shards = { s0: { index: 1, nextHops: {}, order: ['gw-a'], egressIPs: ['203.0.113.1'] } };
  const lists = { cluster: [] as string[], namespace: [] as string[], service: [] as string[] };
  for (const rule of rules) {
    const id = `${rule.context}/${rule.name}`;
    made.rules[id] = { priority: 0, ...rule };
    lists[rule.context].push(id);
  }
  made.groups.g = { namespace: 'a', ...(more.audit && { audit: true }), rules: lists };
  const { port } = more;
  made.services['a/web'] = {
    addresses: ['198.51.100.80/32', '2001:db8:100::80/128'],
    ports: [{ protocol: 6, ports: null }],
    ...(port !== undefined && { limits: [{ name: 'tls', protocol: 6, ports: [[443, 443]], bandwidth: port }] }),
  };
  made.services['a/mail'] = { addresses: ['198.51.100.90/32'], ports: [{ protocol: 6, ports: [[25, 25]] }] };
  const { egress, ingress } = more;
  if (egress !== undefined || ingress !== undefined) {
    const rates = { ...(egress !== undefined && { egress }), ...(ingress !== undefined && { ingress }) };
    made.egressIPs.own = { bandwidth: { ...rates, addresses: ['203.0.113.1'], shards: ['edge/s0'] } };
  }
  const names = { namespace: 'a', name: 'one', uid: 'u', node: 'n', services: ['s'] };
  const own = { 4: { address: '203.0.113.1', shard: 's0' } };
  made.workloads.u = { ...names, addresses: ['10.1.0.1', 'fd00::1'], group: 'g', egress: own };
  return made;
}
const limited = (bandwidth: number) => ({ limits: { bandwidth } });
const all = (context: RuleEntry['context'], name: string, more: Partial<RuleEntry> = {}): Rule => ({
  context,
  name,
  action: 'accept',
  services: '*',
  ...more,
});
const held = ['s0'];
const classesOf = (policy: GatewayPlan) => desiredClasses(policy, bandwidthsOf(policy, held));
const tableOf = (policy: GatewayPlan) => {
  const bandwidths = bandwidthsOf(policy, held);
  return bandwidths && bandwidthTable(policy, bandwidths, 'over', () => 0);
};

t.test('a decision names the limits that are met, and explain says them', async (t) => {
  const flow = { source: '10.1.0.1', destination: '198.51.100.80', protocol: 6, destinationPort: 443 };
  const web: Rule = { context: 'service', name: 'web', action: 'accept', services: ['a/web'], ...limited(5e6) };
  const policy = policyOf([all('cluster', 'top', limited(9e6)), web], { port: 2e6 });
  const evaluator = compilePolicy(policy);
  const decision = evaluator.decide(flow);
  t.same(decision.limits, ['cluster/top', 'service/web']);
  t.same(decision.ports, { 'port tls of a/web': 2e6 });
  t.same(evaluator.decide({ ...flow, destinationPort: 444 }).ports, undefined, 'another port');
  t.match(
    evaluator.explain(flow).summary,
    / Bandwidth of cluster\/top \(9 Mbit\/s each way\), service\/web \(5 Mbit\/s each way\), port tls of a\/web \(2 Mbit\/s each way\): what is beyond waits\.$/,
  );
  t.notMatch(evaluator.explain(flow).summary, /Limited by/, 'no limit of connections');
  const audited = compilePolicy(policyOf([web], { port: 2e6, audit: true })).explain(flow);
  t.notMatch(audited.summary, /Bandwidth/, 'nothing waits in audit');
  const drops = policyOf([{ ...web, action: 'drop', limits: {} }], { port: 2e6 });
  t.same(compilePolicy(drops).decide(flow).ports, undefined, 'nor where nothing is accepted');
});

t.test('limits of a gateway: its shares, classes below the EgressIP, nothing of audit', async (t) => {
  const web: Rule = { context: 'service', name: 'web', action: 'accept', services: ['a/web'], ...limited(50e6) };
  t.equal(bandwidthsOf(policyOf([all('service', 'all')]), held), undefined, 'no bandwidth at all');
  const made = bandwidthsOf(policyOf([web], { egress: 20e6, port: 10e6 }), held);
  t.same(
    [...(made?.limits ?? [])].map(([name, { shares }]) => [name, shares]),
    [
      [egressName('own'), { out: 20e6 }],
      [ruleName('service/web'), { out: 50e6, in: 50e6 }],
      [portName('a/web', 'tls'), { out: 10e6, in: 10e6 }],
    ],
  );
  const classes = [...(made?.classes ?? [])].flatMap(([name, list]) =>
    list.map(
      ({ direction, bits, leaf, parent }) =>
        `${direction} ${name} ${bits / 1e6}${parent ? ' child' : ''}${leaf ? '' : ' inner'}`,
    ),
  );
  t.same(classes.sort(), [
    'in port a/web tls 10',
    'in rule service/web 50',
    `out ${egressName('own')} 20 inner`,
    `out ${pairName(egressName('own'))} 20 child`,
    `out ${pairName(egressName('own'), portName('a/web', 'tls'))} 10 child`,
    `out ${pairName(egressName('own'), ruleName('service/web'))} 20 child`,
    'out port a/web tls 10',
    'out rule service/web 50',
  ]);
  const minors = [...(made?.classes ?? [])].flatMap(([, list]) => list.map(({ minor }) => minor));
  t.equal(new Set(minors).size, minors.length, 'both ways may be one interface');
  for (const rule of [{ ...web, mode: 'Audit' as const }, web]) {
    const audit = policyOf([rule], rule === web ? { audit: true } : {});
    t.equal(bandwidthsOf(audit, held)?.groups.size, 0, 'in audit nothing is met');
  }
  const spread = policyOf([web], { egress: 20e6 });
  const pod = spread.workloads.u;
  const pair = pairName(egressName('own'), ruleName('service/web'));
  const pairs = (more: Partial<WorkloadEntry>): boolean => {
    spread.workloads.u = { ...(pod as WorkloadEntry), egress: {}, ...more };
    return bandwidthsOf(spread, held)?.classes.has(pair) === true;
  };
  t.notOk(pairs({}), 'who leaves with another EgressIP has no class below this one');
  t.ok(pairs({ egressIP: 'own' }), 'one that spreads by connection has');
  spread.destinations.d = { egressIPs: ['own'] };
  t.ok(pairs({ destinations: 'd' }), 'and one that is for some destinations');
  const shards = ['edge/s0', 'edge/s1', 'edge/s2'];
  const shared = policyOf([{ ...web, limits: { bandwidth: 90e6, shards } }]);
  const share = (of: string[]): number | undefined =>
    bandwidthsOf(shared, of)?.limits.get(ruleName('service/web'))?.shares.out;
  t.same([share(['s0']), share(['s0', 's2']), share([])], [30e6, 60e6, 30e6], 'of none: that of one to come');
});

/** Where a packet of the pod goes, chain by chain, as text: what is asked of it and of which limits. */
function chainsOf(policy: GatewayPlan): { entry: string[]; text: string; sets: string[] } {
  const made = tableOf(policy);
  if (made === undefined) return { entry: [], text: '', sets: [] };
  const text = Object.values(made.chains).flatMap(({ rules }) => rules);
  return { entry: made.chains[made.entry]?.rules ?? [], text: text.join('\n'), sets: Object.keys(made.sets).sort() };
}

t.test('chains: only what can be met is asked', async (t) => {
  const keyOf = (policy: GatewayPlan, name: string): string =>
    bandwidthsOf(policy, held)?.limits.get(name)?.key ?? 'no such limit';
  const mail: Rule = { context: 'service', name: 'mail', action: 'accept', services: ['a/mail'] };
  const web: Rule = { context: 'service', name: 'web', action: 'accept', services: ['a/web'], ...limited(5e6) };
  const after: Rule = { context: 'service', name: 'after', action: 'accept', services: '*' };
  const policy = policyOf([all('cluster', 'any'), mail, web, after], { port: 1e6 });
  const { text, entry, sets } = chainsOf(policy);
  t.match(text, new RegExp(`meta priority set ${keyOf(policy, ruleName('service/web'))}`));
  t.match(text, /proto-dst 443 jump bw_port_/, 'the port of it');
  t.equal(text.match(/198\.51\.100\.90/g)?.length, 1, 'a rule before it, which ends the context');
  t.notMatch(sets.join(), /bw_egress|bw_pair|bw_audit/, 'no EgressIP has a limit');
  t.match(entry.join('\n'), /^meta priority set ct original ip saddr map @bw_group4 goto bw_grouped_/);
  t.match(
    chainsOf(policyOf([mail], { egress: 1e6 })).entry.join('\n'),
    /^meta priority set ct reply ip daddr map @bw_egress4 jump bw_egress_/,
  );
  t.match(chainsOf(policyOf([mail], { egress: 1e6, audit: true })).entry[0] ?? '', /saddr @bw_audit4 return$/);

  const decisive: Rule = { ...mail, context: 'cluster', action: 'accept-decisively' };
  const ends = chainsOf(
    policyOf([
      decisive,
      { ...mail, context: 'cluster', name: 'b', services: ['a/web'] },
      all('service', 'x', limited(1e6)),
    ]),
  );
  t.match(ends.text, /198\.51\.100\.90 meta l4proto 6 ct original proto-dst 25 goto bw_end_/, 'ends the walk');
  t.notMatch(ends.text, /198\.51\.100\.80/, 'hands on, like all that does not match');
  const redirect: Rule = { ...after, redirect: { address: '198.51.100.1' }, ...limited(1e6) };
  const redirected = chainsOf(policyOf([redirect])).text;
  t.match(redirected, /meta nfproto ipv4 meta l4proto 132 goto bw_matched/, 'what can be redirected');
  t.notMatch(redirected, /ipv6 meta l4proto/, 'of its family');
});

t.test('many destinations are sets, and every one that is named is there', async (t) => {
  const policy = policyOf([{ ...all('service', 'many'), services: ['a/many'], ...limited(1e6) }], { egress: 1e6 });
  const addresses = Array.from({ length: 20 }, (_, i) => `198.51.${i}.0/28`);
  policy.services['a/many'] = {
    addresses,
    ports: [
      { protocol: 6, ports: [[443, 443]] },
      { protocol: 47, ports: null },
    ],
  };
  const made = tableOf(policy);
  const named = new Set(Object.values(made?.chains ?? {}).flatMap(({ rules }) => rules.join().match(/@\w+/g) ?? []));
  t.same(
    [...named].sort(),
    Object.keys(made?.sets ?? {})
      .map((name) => `@${name}`)
      .sort(),
  );
  t.match([...named].join(), /_protocols4.*_ports4/);
  for (const { rules } of Object.values(made?.chains ?? {})) {
    for (const [, chain = ''] of rules.join('\n').matchAll(/(?:goto|jump) (bw_\w+)/g)) t.ok(made?.chains[chain], chain);
  }
});

t.test('what a change touches', async (t) => {
  const web: Rule = { context: 'service', name: 'web', action: 'accept', services: ['a/web'], ...limited(50e6) };
  const before = policyOf([web], { egress: 20e6, port: 10e6 });
  const changed = (edit: (plan: GatewayPlan) => void): string => {
    const after = structuredClone(before);
    edit(after);
    t.notOk(touches(before, after), 'no flow is looked at');
    const [was, is] = [before, after].map((plan) => compileGateway(plan, { heldShards: held }).settled);
    const change = was && is && diffRuleset(stateOf(was), is);
    return change === undefined || changeSize(change) === 0 ? '' : scriptOf(change);
  };
  t.equal(
    changed(() => undefined),
    '',
  );
  const rate = changed((plan) => Object.assign(plan.rules['service/web'] ?? {}, limited(40e6)));
  const lines = rate.trim().split('\n');
  t.ok(
    lines.every((line) => /^(add|delete) element inet sluice bw_rate_(in|out) /.test(line)),
    rate,
  );
  t.match(rate, /limit rate over 5000000 bytes\/second burst 131072 bytes/);
  changed((plan) => Object.assign(plan.services['a/web'] ?? {}, { limits: [] }));
  changed((plan) => Object.assign(plan.egressIPs, { own: {} }));
  const none = policyOf([{ ...web, limits: {} }]);
  const { settled } = compileGateway(none, { heldShards: held });
  t.notMatch(JSON.stringify(settled.chains), /bw_/, 'a plan without bandwidth has none of it');
  const own = Object.values(compileGateway(before, { heldShards: held }).settled.chains).find(({ hook }) =>
    hook?.includes('300'),
  );
  const at = (text: RegExp): number => own?.rules.findIndex((rule) => text.test(rule)) ?? -1;
  t.ok(at(/meta mark 0x00000800/) < at(/jump bw_bandwidth/), 'the tunnel itself is not asked');
  t.ok(at(/jump bw_bandwidth/) < at(/ct mark and 0x80000000/), 'decided flows are');
});

t.test('from plan to plan: as if each were the first', async (t) => {
  const web: Rule = { context: 'service', name: 'web', action: 'accept', services: ['a/web'], ...limited(50e6) };
  const free = policyOf([{ ...web, limits: {} }]);
  const plans = [
    free,
    policyOf([web]),
    policyOf([all('cluster', 'top', limited(9e6)), web], { port: 2e6 }),
    policyOf([web], { egress: 20e6, port: 10e6 }),
    policyOf([web], { egress: 20e6, audit: true }),
    policyOf([{ ...web, limits: {} }], { ingress: 20e6 }),
  ];
  const compiler = new GatewayCompiler();
  for (const [from, before] of plans.entries()) {
    for (const [to, after] of plans.entries()) {
      for (const policy of [before, after]) {
        compiler.update(policy, undefined, { heldShards: held });
        compiler.guard(true);
        const whole = compileGateway(policy, { heldShards: held }).settled;
        const sorted = (items: object) => Object.fromEntries(Object.entries(items).sort());
        const now = compiler.table.ruleset();
        t.same([sorted(now.chains), sorted(now.sets)], [sorted(whole.chains), sorted(whole.sets)], `${from} → ${to}`);
      }
    }
  }
  compiler.update(free, undefined, { heldShards: held });
  t.equal(compiler.bandwidths, undefined);
});

const klass = (minor: number, bits: number, parent?: number, leaf = true): TcClass => ({
  minor,
  bits,
  ...(parent !== undefined && { parent }),
  leaf,
});

t.test('tc: a change is one of what differs, and the queue stays', async (t) => {
  const tree = [klass(1, 100e6, undefined, false), klass(2, 100e6, 1), klass(3, 50e6, 1), klass(4, 10e6)];
  const after = tree.map((one) => (one.minor === 3 ? klass(3, 40e6, 1) : one));
  const change = diffTc(new Map([['out', { root: 'ours', classes: tree }]]), new Map([['out', after]]));
  t.same(change, [
    'class change dev out parent 1e6e:1 classid 1e6e:3 htb rate 1000bit ceil 40000000bit burst 1600 cburst 140000 quantum 60000',
    'qdisc change dev out parent 1e6e:3 bfifo limit 250000',
  ]);
  t.same([shapedBits(1), shapedBits(33_333_333), shapedBits(3_333_333_333)], [1e3, 33_333e3, 3_333e6]);
  t.same([queueBytes(1e3), queueBytes(50e6), queueBytes(100e9)], [140_000, 312_500, 16_000_000]);
});

t.test('tc: what is listed', async (t) => {
  const qdiscs = parseQdiscs(
    JSON.stringify([
      { kind: 'noqueue', handle: '0:', dev: 'lo', root: true, refcnt: 2 },
      { kind: 'htb', handle: '1e6e:', dev: 'out', root: true, options: {} },
      { kind: 'bfifo', handle: '8002:', dev: 'out', parent: '1e6e:2' },
      { kind: 'htb', handle: '1:', dev: 'in', root: true },
      { kind: 'mq', handle: '0:', dev: 'eth1', root: true },
      { kind: 'fq_codel', handle: '0:', dev: 'eth1', parent: ':1' },
    ]),
  );
  t.same(
    [...qdiscs].map(([dev, { root }]) => [dev, root]),
    [
      ['lo', 'free'],
      ['out', 'ours'],
      ['in', { kind: 'htb', handle: '1:' }],
      ['eth1', 'free'],
    ],
  );
  const text = [
    'class htb 1e6e:1 root rate 100Mbit ceil 100Mbit burst 125000b cburst 125000b ',
    'class htb 1e6e:2 parent 1e6e:1 leaf 8002: prio 0 rate 1Kbit ceil 33333Kbit burst 1600b cburst 62500b ',
    'class htb 1e6e:ab root leaf 8003: prio 0 rate 3333Mbit ceil 3333Mbit burst 4166250b cburst 4166250b ',
    'class htb 2:3 root prio 0 rate 1Gbit ceil 1Gbit burst 1b cburst 1b ',
  ].join('\n');
  t.same(parseClasses(text, qdiscs.get('out')?.queued ?? new Set()), [
    klass(1, 100e6, undefined, false),
    klass(2, 33_333e3, 1),
    // Its queue is not there yet.
    klass(0xab, 3_333e6, undefined, false),
  ]);
  t.throws(() => parseQdiscs('no JSON'), { code: 'bad-answer' });
});

t.test('shaping: the classes of a plan, and what cannot be', async (t) => {
  const web: Rule = { context: 'service', name: 'web', action: 'accept', services: ['a/web'], ...limited(50e6) };
  const policy = policyOf([web]);
  const tc = new FakeTc({ out: 'free', 'sluice-vx': 'free', in: 'free' });
  const shaping = new Shaping(tc);
  t.same(await shaping.apply(classesOf(policy)), []);
  t.same([...classesOf(policy).keys()].sort(), ['out', 'sluice-vx']);
  t.equal(tc.lines.filter((line) => line.startsWith('qdisc add dev')).length, 4);
  const before = tc.lines.length;
  t.same(await shaping.apply(classesOf(policy)), []);
  shaping.forget();
  t.same(await new Shaping(tc).apply(classesOf(policy)), []);
  t.equal(tc.lines.length, before, 'again, and after a restart: nothing to do');
  t.same(await shaping.apply(classesOf(emptyGatewayPlan())), []);
  t.same((await tc.list()).get('out'), { root: 'free', classes: [] });

  const direct = structuredClone(policy);
  if ('pool' in direct.settings) Object.assign(direct.settings.pool.steering, { mode: 'Direct' });
  t.same([...classesOf(direct).keys()].sort(), ['in', 'out']);
  if ('pool' in direct.settings) Object.assign(direct.settings.pool, { internalInterface: 'out' });
  t.equal(classesOf(direct).get('out')?.length, 2, 'one interface for both ways');

  const foreign = new FakeTc({ out: { kind: 'fq', handle: '8001:' } });
  t.same(await new Shaping(foreign).apply(classesOf(policy)), [
    { device: 'out', reason: "its root qdisc is another program's: fq 8001:" },
    { device: 'sluice-vx', reason: 'there is no such interface' },
  ]);
  t.same(foreign.lines, []);
  const broken = new FakeTc({ out: 'free', 'sluice-vx': 'free' });
  broken.apply = async () => {
    throw new Error('Specified qdisc kind is unknown');
  };
  const unshaped = await new Shaping(broken).apply(classesOf(policy));
  t.match(unshaped, [{ device: 'out', reason: /kind is unknown/ }, { device: 'sluice-vx' }]);
  const state: TcState = await broken.list();
  t.equal(state.get('out')?.root, 'free');
  t.equal(TC_MAJOR, 0x1e6e);
});
