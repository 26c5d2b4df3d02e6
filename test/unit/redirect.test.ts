/**
 * Redirects (design §3, §4.7) from the manifest to the record: what is refused, where no redirect may lead, what explain
 * says, the gateway's table, established flows, records, simulate. Packets are in netns/redirect.test.ts, the meaning
 * for random policies in property/policy.test.ts.
 */
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { CT_DECIDED } from '../../api/names.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { type Answer, explain } from '../../cli/explain.ts';
import { answerText } from '../../cli/explain-text.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers, type Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { simulate } from '../../controller/simulate.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleMark } from '../../gateway/marks.ts';
import { endedBy } from '../../gateway/recheck.ts';
import { denyRecord, startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { formatRecord } from '../../lab/flows.ts';
import { compilePolicy, type Flow } from '../../policy/evaluate.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';
import { touches } from '../touches.ts';

type Fields = Record<string, unknown>;
const sluice = 'sluice.dev/v1alpha1';
const WEB = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
const PROXY = { 4: '198.51.100.90', 6: '2001:db8:100::90' } as const;
const POD = { 4: '10.244.1.5', 6: 'fd00:244:1::5' } as const;

function parsed(manifest: Fields): AnyObject {
  const object = parseObject(manifest);
  if (!object.ok) throw new Error(JSON.stringify([manifest, object.errors]));
  return object.value;
}
const rule = (kind: string, name: string, spec: Fields): Fields => ({
  apiVersion: sluice,
  kind,
  metadata: { name, ...(kind === 'ClusterEgressRule' ? {} : { namespace: 'a' }) },
  spec: { externalServices: ['web'], ...(kind === 'ServiceEgressRule' && { service: 'app' }), ...spec },
});
const external = (name: string, namespace: string, addresses: string[], ports?: Fields[]): Fields => ({
  apiVersion: sluice,
  kind: 'ExternalService',
  metadata: { name, namespace },
  spec: { addresses, ...(ports && { ports }) },
});

/** One pod, carried; a second pool; a Service; what is not in the cluster at all. */
const world: Fields[] = [
  ...['a', 'b', 'sluice-system'].map((name) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name } })),
  {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'one', namespace: 'a', uid: 'u' },
    spec: { nodeName: 'node' },
    status: { phase: 'Running', podIPs: [{ ip: POD[4] }, { ip: POD[6] }] },
  },
  {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'far', namespace: 'b', uid: 'v' },
    spec: { nodeName: 'node' },
    status: { phase: 'Running', podIPs: [{ ip: '172.30.0.9' }] },
  },
  {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: 'app', namespace: 'a' },
    spec: { clusterIPs: ['172.20.0.5'] },
  },
  {
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'app', namespace: 'a', labels: { 'kubernetes.io/service-name': 'app' } },
    addressType: 'IPv4',
    endpoints: [{ addresses: [POD[4]], conditions: { ready: true } }],
  },
  {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: 'node' },
    spec: { podCIDRs: ['172.31.0.0/24'] },
    status: {
      addresses: [
        { type: 'InternalIP', address: '10.0.0.21' },
        { type: 'ExternalIP', address: '192.0.2.21' },
      ],
    },
  },
  ...['main', 'other'].map((name, at) => ({
    apiVersion: sluice,
    kind: 'GatewayPool',
    metadata: { name },
    spec: {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': at === 0 ? 'a' : 'none' } },
      gateways: [{ name: `gw-${name}`, internalAddress: `10.${at}.0.31` }],
      interfaces: { internal: 'in0', external: { name: 'out0' } },
      nextHops: { v4: [`10.${at}.0.64`], v6: [`fd00:10:${at}::64`] },
      steering: { mode: 'VXLAN', vni: 100 + at },
      clusterCIDRs: [`10.${244 - at}.0.0/16`, '10.0.0.0/24', 'fd00:244::/32'],
      excludedCIDRs: [`192.168.${at}.0/24`],
    },
  })),
  {
    apiVersion: sluice,
    kind: 'EgressIPPool',
    metadata: { name: 'pool' },
    spec: { gatewayPool: 'main', ranges: ['203.0.113.96/28', '2001:db8:113::/120'], namespaceSelector: {} },
  },
  {
    apiVersion: sluice,
    kind: 'EgressIP',
    metadata: { name: 'a' },
    spec: { pool: 'pool', count: 1, namespaces: ['a'] },
  },
  ...['a', 'sluice-system'].flatMap((namespace) => [
    external('web', namespace, [WEB[4], WEB[6]]),
    external('proxy', namespace, [PROXY[4], PROXY[6]]),
  ]),
];
const gatewayPeers: Peers = {
  ...noPeers(),
  gateways: new Map([
    ['gw-main', { connected: true, addresses: ['203.0.113.31', '2001:db8:113:1::31'], generation: 0 }],
  ]),
};
const snapshotOf = (rules: Fields[]): Map<string, AnyObject> =>
  new Map([...world, ...rules].map(parsed).map((object) => [objectKey(object), object]));
const planned = (rules: Fields[], peers = noPeers()): PlanResult => plan(snapshotOf(rules), emptyMemory(), peers, 0);
const mainPlan = (rules: Fields[]): GatewayPlan => planned(rules).pools.get('main') as GatewayPlan;
const tcp = (destination: string, destinationPort = 80): Flow => ({
  source: destination.includes(':') ? POD[6] : POD[4],
  destination,
  protocol: 6,
  destinationPort,
});
const toProxy = (family: 4 | 6, more: Fields = {}): Fields =>
  rule('ServiceEgressRule', `to-proxy${family}`, { action: 'accept', redirect: { address: PROXY[family], ...more } });

t.test('a manifest: what can be redirected, and by whom', async (t) => {
  const errorsOf = (kind: string, action: string, redirect: unknown): string[] => {
    const object = parseObject(rule(kind, 'r', { action, redirect }));
    return object.ok ? [] : object.errors.map(({ path, expected, got }) => `${path}: ${expected}, not ${got}`);
  };
  const there = { address: '198.51.100.90', port: 8080 };
  const permits = 'accept permits nothing in this context; accept-decisively does';
  for (const [kind, action, expected] of [
    ['ClusterEgressRule', 'accept-decisively', []],
    ['NamespaceEgressRule', 'accept-decisively', []],
    ['ServiceEgressRule', 'accept-decisively', []],
    ['ServiceEgressRule', 'accept', []],
    ['ClusterEgressRule', 'accept', [`spec.redirect: absent: ${permits}, not an object`]],
    ['NamespaceEgressRule', 'accept', [`spec.redirect: absent: ${permits}, not an object`]],
    ['ServiceEgressRule', 'drop', ['spec.redirect: absent: a drop rule permits nothing, not an object']],
    ['ClusterEgressRule', 'reject', ['spec.redirect: absent: a reject rule permits nothing, not an object']],
  ] as const) {
    t.same(errorsOf(kind, action, there), expected, `${kind} ${action}`);
  }
  const rows: [unknown, RegExp][] = [
    [{}, /^spec\.redirect\.address: an IP address.*, not nothing/],
    ['198.51.100.90', /^spec\.redirect: an object, not "198\.51\.100\.90"/],
    [{ address: 'proxy.example.test' }, /^spec\.redirect\.address: an IP address/],
    [{ address: '198.51.100.0/24' }, /^spec\.redirect\.address: an IP address/],
    [{ address: '198.51.100.090' }, /^spec\.redirect\.address: .*leading zero/],
    [{ ...there, port: 0 }, /^spec\.redirect\.port: an integer from 1 to 65535, not 0/],
    [{ ...there, port: 65_536 }, /^spec\.redirect\.port: an integer from 1 to 65535/],
    [{ ...there, port: '80' }, /^spec\.redirect\.port: an integer/],
    [{ ...there, protocol: 'TCP' }, /^spec\.redirect\.protocol: absent/],
    ...[
      '127.0.0.1',
      '0.0.0.0',
      '169.254.169.254',
      '224.0.0.1',
      '255.255.255.255',
      '::1',
      '::',
      'fe80::1',
      'ff02::1',
    ].map((address): [unknown, RegExp] => [
      { address },
      /^spec\.redirect\.address: an address that a host may have, not "/,
    ]),
    [{ address: '::ffff:10.244.1.5' }, /^spec\.redirect\.address: IPv4 written as IPv4/],
  ];
  for (const [redirect, expected] of rows) {
    const errors = errorsOf('ServiceEgressRule', 'accept', redirect);
    t.match(errors[0] ?? 'taken', expected, JSON.stringify(redirect));
  }
});

t.test('where no redirect may lead, and what a cluster rule may', async (t) => {
  const cluster = /it lies in clusterCIDRs/;
  const rows: [address: string, message: RegExp, byClusterRule: boolean][] = [
    ['10.244.9.9', cluster, true],
    ['10.243.0.1', cluster, true],
    ['fd00:244:9::1', cluster, true],
    ['192.168.0.7', /it lies in excludedCIDRs/, true],
    ['192.168.1.7', /it lies in excludedCIDRs/, true],
    ['192.0.2.21', /it is an address of a node/, true],
    ['172.31.0.77', /it is an address of a node, or lies in its pod ranges/, true],
    ['172.30.0.9', /it is the address of a pod/, true],
    ['172.20.0.5', /it is the address of a Service/, true],
    // Of clusterCIDRs too: the cluster rule may not all the same.
    ['10.0.0.31', /./, false],
    ['10.0.0.64', /./, false],
    ['10.1.0.31', /it is an address of a gateway, or a next hop/, false],
    ['fd00:10:1::64', /it is an address of a gateway, or a next hop/, false],
    ['203.0.113.31', /it is an address of a gateway, or a next hop/, false],
    ['2001:db8:113:1::31', /it is an address of a gateway, or a next hop/, false],
    ['203.0.113.96', /it lies in the ranges of an EgressIPPool/, false],
    ['203.0.113.111', /it lies in the ranges of an EgressIPPool/, false],
    ['2001:db8:113::ff', /it lies in the ranges of an EgressIPPool/, false],
    ['100.100.100.200', /it is a metadata address/, false],
    ['fd00:ec2::254', /it is a metadata address/, false],
    ['2002:af4:105::1', /it is a translated address/, false],
    // The address inside: 10.244.9.9.
    ['64:ff9b::af4:909', cluster, true],
  ];
  for (const [address, message, byClusterRule] of rows) {
    for (const kind of ['NamespaceEgressRule', 'ServiceEgressRule', 'ClusterEgressRule']) {
      const rules = [rule(kind, 'r', { action: 'accept-decisively', redirect: { address } })];
      const result = planned(rules, gatewayPeers);
      const key = kind === 'ClusterEgressRule' ? `${kind}/r` : `${kind}/a/r`;
      const accepted = result.statuses.get(key)?.conditions.find(({ type }) => type === 'Accepted');
      const policy = compilePolicy(result.pools.get('main') as GatewayPlan);
      const decision = policy.decide(tcp(address.includes(':') ? WEB[6] : WEB[4]));
      if (kind === 'ClusterEgressRule' && byClusterRule) {
        t.same([accepted?.status, decision.redirect?.address], ['True', address], `${kind}: ${address}`);
        continue;
      }
      t.match(accepted, { status: 'False', reason: 'RedirectForbidden', message }, `${kind}: ${address}`);
      t.match(decision, { verdict: 'drop', reason: 'redirect', wouldRedirect: { address } }, `${kind}: ${address}`);
    }
  }
  for (const address of ['198.51.100.90', '2001:db8:100::90', '192.0.2.22', '203.0.113.112', '64:ff9b::c633:645a']) {
    const { statuses } = planned([rule('ServiceEgressRule', 'r', { action: 'accept', redirect: { address } })]);
    const accepted = statuses.get('ServiceEgressRule/a/r')?.conditions.find(({ type }) => type === 'Accepted');
    t.match(accepted, { status: 'True', reason: 'Accepted' }, address);
  }
});

t.test('an address that becomes a forbidden one is, from then on', async (t) => {
  const rules = [rule('ServiceEgressRule', 'r', { action: 'accept', redirect: { address: '172.30.0.10' } })];
  const before = snapshotOf(rules);
  const pod = structuredClone(before.get('Pod/b/far') as never) as { status: { podIPs: { ip: string }[] } };
  pod.status.podIPs = [{ ip: '172.30.0.10' }];
  const after = new Map([...before, ['Pod/b/far', pod as unknown as AnyObject]]);
  const [was, is] = [before, after].map((snapshot) => plan(snapshot, emptyMemory(), noPeers(), 0));
  const planOf = (result: PlanResult | undefined): GatewayPlan => result?.pools.get('main') as GatewayPlan;
  t.equal(compilePolicy(planOf(was)).decide(tcp(WEB[4])).verdict, 'accept');
  t.equal(compilePolicy(planOf(is)).decide(tcp(WEB[4])).verdict, 'drop');
  t.ok(touches(planOf(was), planOf(is)), 'and flows are looked at');

  const cache = new PlanCache();
  const gone = new Map([...after].filter(([key]) => key !== 'Pod/b/far'));
  const verdicts = [before, after, gone, after, before].map((snapshot) => {
    const result = plan(snapshot, emptyMemory(), noPeers(), 0, new Map(), cache);
    return compilePolicy(planOf(result)).decide(tcp(WEB[4])).verdict;
  });
  t.same(verdicts, ['accept', 'drop', 'accept', 'drop', 'accept'], 'and no longer, as the pod comes and goes');
});

t.test('explain says where a flow goes, and why it may not', async (t) => {
  const answer = async (rules: Fields[], to: string, protocol = 6): Promise<Answer> => {
    const family = to.includes(':') ? 6 : 4;
    const target = { address: to, family, ...(protocol === 6 && { port: 80 }) } as const;
    return explain({ path: '.', snapshot: snapshotOf(rules) } as never, {
      namespace: 'a',
      pod: 'one',
      target,
      protocol,
    });
  };
  const both = [toProxy(4, { port: 8080 }), toProxy(6)];
  const text = async (rules: Fields[], to: string, protocol?: number): Promise<string> =>
    answerText(await answer(rules, to, protocol), ((_: string, words: string) => words) as never);

  const permitted =
    'Accepted by service/a/to-proxy4 in the service context, and redirected to 198.51.100.90 port 8080.';
  t.match(await text(both, WEB[4]), permitted);
  t.match(await text(both, WEB[6]), 'redirected to 2001:db8:100::90 port 80.');
  t.match(
    await text(both, WEB[6]),
    /to-proxy4 .*it redirects to 198\.51\.100\.90, so it matches only TCP, UDP and SCTP of IPv4/,
  );
  t.match(await text(both, WEB[4], 1), /to-proxy4 .*it redirects to 198\.51\.100\.90, so it matches only/);

  const veto = rule('ClusterEgressRule', 'veto', { action: 'reject', externalServices: ['proxy'] });
  const refused = await text([...both, veto], WEB[4]);
  t.match(
    refused,
    'Rejected by cluster/veto in the cluster context, which is asked again: service/a/to-proxy4 redirects it to 198.51.100.90 port 8080.',
  );
  t.match(refused, /service: accepted\. service\/a\/to-proxy4 accepts/, 'of the first walk all is told as it was');
  t.match(
    refused,
    /asked again for where the flow is redirected to:\n +\* +cluster\/veto +reject +TCP port 8080 to 198\.51\.100\.90 is in/,
  );

  const inside = rule('NamespaceEgressRule', 'in', {
    action: 'accept-decisively',
    redirect: { address: '10.244.9.9' },
  });
  t.match(
    await text([inside], WEB[4]),
    'Dropped: namespace/a/in redirects it to 10.244.9.9 port 80, which is forbidden: it lies in clusterCIDRs of a GatewayPool.',
  );
  const onwards = rule('ClusterEgressRule', 'on', {
    action: 'accept-decisively',
    externalServices: ['proxy'],
    redirect: { address: '198.51.100.99' },
  });
  t.match(
    await text([...both, onwards], WEB[4]),
    'Dropped: service/a/to-proxy4 redirects it to 198.51.100.90 port 8080, but what goes there cluster/on would redirect again; a flow is redirected once.',
  );
});

t.test('the gateway: one chain a redirect, the second walk before it, nothing where nobody speaks of it', async (t) => {
  const chainsOf = (rules: Fields[]): [string, string[]][] =>
    Object.entries(compileGateway(mainPlan(rules)).ruleset.chains).map(([name, { rules: lines }]) => [name, lines]);
  const named = (chains: [string, string[]][], noun: string): string[][] =>
    chains.filter(([name]) => name.startsWith(`${noun}_`)).map(([, lines]) => lines);

  const alone = chainsOf([toProxy(4, { port: 8080 }), toProxy(6)]);
  t.same(named(alone, 'redirect'), [], 'nothing to ask again');
  const translations = named(alone, 'redirected').map((lines) => lines.slice(1));
  const checked = 'meta mark set 0x00000100';
  t.same(translations.sort(), [
    [`${checked} dnat ip6 to 2001:db8:100::90`],
    [6, 17, 132].map((protocol) => `${checked} meta l4proto ${protocol} dnat ip to 198.51.100.90:8080`),
  ]);
  t.match(named(alone, 'service')[0]?.[0], /^meta nfproto ipv4 meta l4proto @redirectable ip daddr /);

  const deaf = rule('ClusterEgressRule', 'deaf', { action: 'drop', externalServices: ['web'] });
  t.same(named(chainsOf([toProxy(4), deaf]), 'cluster_again'), [], 'who does not speak of it is not asked');
  const veto = rule('ClusterEgressRule', 'veto', { action: 'drop', externalServices: ['*'] });
  const fine = rule('ClusterEgressRule', 'fine', { action: 'accept', externalServices: ['proxy'], priority: 1 });
  const asked = chainsOf([toProxy(4), veto, fine]);
  t.same(named(asked, 'cluster_again'), [['return']], 'what comes after the last word is left out');
  const refused = named(chainsOf([toProxy(4), veto]), 'cluster_again')[0]?.[0];
  t.match(refused, /^meta mark set 0x[0-9a-f]{8} goto rule_drop$/, 'a veto is in its own name');
});

const flowOf = (to: string, answers: string, port: number, mark = 0): ConntrackEntry => ({
  family: 4,
  id: 1,
  protocol: 6,
  original: { source: POD[4], destination: to, sourcePort: 4000, destinationPort: 80 },
  reply: { source: answers, destination: '203.0.113.96', sourcePort: port, destinationPort: 4000 },
  mark: (CT_DECIDED | mark) >>> 0,
  status: 0,
  packets: { original: 1, reply: 1 },
  bytes: { original: 60, reply: 60 },
  zone: 0,
});

t.test('established flows: where they go is what counts', async (t) => {
  const plain = rule('ServiceEgressRule', 'plain', { action: 'accept' });
  const egress = mainPlan([plain]).workloads.u?.egress[4]?.address ?? '';
  const direct = flowOf(WEB[4], WEB[4], 80);
  const proxied = flowOf(WEB[4], PROXY[4], 8080);
  for (const flow of [direct, proxied]) flow.reply.destination = egress;
  const veto = rule('ClusterEgressRule', 'veto', { action: 'drop', externalServices: ['proxy'] });
  for (const [what, rules, ends] of [
    ['permitted as it is', [plain], [false, true]],
    ['redirected', [toProxy(4, { port: 8080 })], [true, false]],
    ['redirected to another port', [toProxy(4, { port: 8081 })], [true, true]],
    ['redirected with its own port', [toProxy(4)], [true, true]],
    ['redirected to where it may not', [toProxy(4, { port: 8080 }), veto], [true, true]],
    ['not redirected, since only IPv6 is', [toProxy(6), plain], [false, true]],
    ['of no rule', [], [true, true]],
  ] as const) {
    const ended = endedBy(mainPlan([...rules]));
    t.same([ended(direct), ended(proxied)], ends, what);
  }
});

t.test('records: where the flow went; a denial names the rule that redirects', async (t) => {
  const made = mainPlan([toProxy(4, { port: 8080 })]);
  const { ruleNumbers } = compileGateway(made);
  const view = viewOf('gw-main', made, ruleNumbers);
  const mark = ruleMark(ruleNumbers.get('service/a/to-proxy4') ?? 0);
  const now = new Date(0);
  const record = startRecord(flowOf(WEB[4], PROXY[4], 8080, mark), view, now);
  t.match(record, {
    destination: WEB[4],
    destinationPort: 80,
    redirectedTo: PROXY[4],
    redirectedPort: 8080,
    rule: 'a/to-proxy4',
    reason: 'service-accept',
  });
  t.match(formatRecord(record), /→ 198\.51\.100\.80:80 as 203\.0\.113\.96, redirected to 198\.51\.100\.90:8080 \(/);
  const same = startRecord(flowOf(WEB[4], PROXY[4], 80, mark), view, now);
  t.equal(same.redirectedTo, PROXY[4]);
  t.notOk('redirectedPort' in same, 'the port is the same');
  t.notOk('redirectedTo' in startRecord(flowOf(WEB[4], WEB[4], 80, mark), view, now), 'not redirected');
  const packet = { prefix: 'redirect', mark, protocol: 6, source: POD[4], destination: WEB[4] };
  t.match(denyRecord(packet, view, now), {
    verdict: 'drop',
    reason: 'redirect',
    context: 'service',
    rule: 'a/to-proxy4',
    pod: 'one',
  });
});

t.test('simulate: another place is a change, though the verdict is none', async (t) => {
  const sides = [[toProxy(4, { port: 8080 })], [toProxy(4)]].map((rules) => {
    const snapshot = snapshotOf(rules);
    return { snapshot, result: plan(snapshot, emptyMemory(), noPeers(), 0) };
  });
  const [before, after] = sides as [(typeof sides)[0], (typeof sides)[0]];
  const { changes } = simulate(before, after);
  t.match(changes, [
    {
      before: { verdict: 'accept', redirect: `${PROXY[4]} port 8080` },
      after: { verdict: 'accept', redirect: PROXY[4] },
    },
  ]);
  t.same(simulate(before, before).changes, []);
});
