/**
 * `sluice import networkpolicy` by its front door: NetworkPolicies go through import, lint, the planner and the evaluator,
 * and traffic to the outside meets what Kubernetes says; what is the CNI's is reported; bad input writes nothing.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { parseAllDocuments } from 'yaml';
import { parseObject } from '../../api/kinds.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { importNetworkPolicies } from '../../cli/import/networkpolicy.ts';
import type { Manifest, Report } from '../../cli/import/report.ts';
import { loadDirectory } from '../../controller/observe/directory.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { sluice } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-import-np-'));
t.teardown(() => rmSync(dir, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(dir, name);
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, text);
  return path;
}

const policy = (name: string, spec: string, metadata = ''): string =>
  `apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: ${name}, namespace: shop${metadata} }\nspec: ${spec}\n---\n`;
const pod = (namespace: string, name: string, host: number): string => `apiVersion: v1
kind: Pod
metadata: { name: ${name}, namespace: ${namespace}, uid: ${namespace}-${name}, labels: { app: ${name} } }
spec: { nodeName: n }
status: { phase: Running, podIPs: [{ ip: 10.244.1.${host} }, { ip: "fd00:244:1::${host}" }] }
---
`;
const ours = (defaultAction: string): string => `apiVersion: v1
kind: Node
metadata: { name: n }
spec: { podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"] }
status: { addresses: [{ type: InternalIP, address: 10.0.0.21 }] }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Namespace
metadata: { name: other }
---
${pod('shop', 'web', 11)}${pod('shop', 'db', 12)}${pod('shop', 'free', 13)}${pod('shop', 'proxy', 14)}${pod('other', 'web', 15)}
apiVersion: sluice.dev/v1alpha1
kind: GatewayPool
metadata: { name: edge }
spec:
  namespaceSelector: {}
  defaultAction: ${defaultAction}
  gateways: [{ name: gw-a, internalAddress: 10.0.0.31 }]
  interfaces: { internal: inside, external: { name: outside } }
  nextHops: { v4: [10.0.0.64], v6: ["fd00:10::64"] }
  clusterCIDRs: [10.244.0.0/16, 10.0.0.0/24, "fd00:244::/32"]
`;

const policies = [
  policy(
    'web',
    `
  podSelector: { matchLabels: { app: web } }
  policyTypes: [Egress]
  egress:
    - to: [{ ipBlock: { cidr: 198.51.100.0/24, except: [198.51.100.64/26, 198.51.100.1/32] } }, { podSelector: {} }]
      ports: [{ port: 443 }, { protocol: UDP, port: 8000, endPort: 8100 }]
    - to: [{ ipBlock: { cidr: "2001:db8:100::/48", except: ["2001:db8:100:1::/64"] } }]
    - ports: [{ protocol: UDP, port: 53 }]
    - to: [{ namespaceSelector: {}, podSelector: { matchLabels: { k8s-app: kube-dns } } }]`,
  ),
  policy(
    'web-too',
    '{ podSelector: { matchLabels: { app: web } }, egress: [{ to: [{ ipBlock: { cidr: 192.0.2.7/32 } }] }] }',
  ),
  policy(
    'db',
    '{ podSelector: { matchExpressions: [{ key: app, operator: In, values: [db] }] }, policyTypes: [Egress] }',
  ),
  policy('proxy', '{ podSelector: { matchLabels: { app: proxy } }, policyTypes: [Egress], egress: [{}] }'),
  policy('proxy-less', '{ podSelector: { matchLabels: { app: proxy } }, policyTypes: [Egress], egress: [] }'),
  policy('ingress', '{ podSelector: {}, ingress: [{ from: [{ podSelector: {} }] }] }'),
].join('');

const [ICMP, TCP, UDP, SCTP] = [1, 6, 17, 132];
const decisions: [
  from: string,
  to: string,
  protocol: number,
  port: number | undefined,
  verdict: string,
  why: string,
][] = [
  ['shop/web', '198.51.100.80', TCP, 443, 'drop', 'inside an except'],
  ['shop/web', '198.51.100.2', TCP, 443, 'accept', 'inside the block'],
  ['shop/web', '198.51.100.1', TCP, 443, 'drop', 'another except'],
  ['shop/web', '198.51.100.255', TCP, 443, 'accept', 'the last of the block'],
  ['shop/web', '198.51.100.2', UDP, 443, 'drop', 'no protocol said is TCP'],
  ['shop/web', '198.51.100.2', UDP, 8100, 'accept', 'endPort belongs to the range'],
  ['shop/web', '198.51.100.2', UDP, 8101, 'drop', 'and ends it'],
  ['shop/web', '2001:db8:100::1', SCTP, 9, 'accept', 'no ports: every protocol'],
  ['shop/web', '2001:db8:100:1::1', SCTP, 9, 'drop', 'except by IPv6'],
  ['shop/web', '203.0.113.9', UDP, 53, 'accept', 'no peers: everywhere'],
  ['shop/web', '2001:db8:ffff::9', UDP, 53, 'accept', 'everywhere by IPv6'],
  ['shop/web', '203.0.113.9', TCP, 53, 'drop', 'everywhere, but this port'],
  ['shop/web', '192.0.2.7', ICMP, undefined, 'accept', 'a second policy adds to the first'],
  ['shop/db', '203.0.113.9', TCP, 443, 'drop', 'isolated without a rule'],
  [
    'shop/proxy',
    '203.0.113.9',
    ICMP,
    undefined,
    'accept',
    'an empty rule is everything, whatever another policy isolates',
  ],
  ['shop/free', '203.0.113.9', TCP, 443, 'accept', 'no policy of egress selects it'],
  ['other/web', '203.0.113.9', TCP, 443, 'accept', 'nor a pod of another namespace'],
];

t.test('traffic to the outside meets what Kubernetes says', async (t) => {
  const target = join(dir, 'decisions');
  mkdirSync(target);
  writeFileSync(join(target, 'ours.yaml'), ours('Accept'));
  const input = file('all.yaml', policies);
  const done = await sluice(
    'import',
    'networkpolicy',
    input,
    '--output',
    join(target, 'policies.yaml'),
    '--target',
    target,
  );
  t.equal(done.code, 3, 'peers that are pods');
  t.match(done.err, /InCluster \(2\)\n {4}NetworkPolicy\/shop\/web spec\.egress\[0\]\.to\[1\]: .*\[none\]\n/);
  t.match(done.err, /NoEgress \(1\)\n {4}NetworkPolicy\/shop\/ingress: /);
  t.match(done.err, /6 objects read: 4 carried over, 1 in part, 1 not; 11 written\n/);
  for (const reason of ['Isolation', 'DefaultAction', 'EgressIP', 'InCluster', 'Ingress']) {
    t.match(done.err, new RegExp(`^ {2}${reason}: `, 'm'));
  }
  const lint = await sluice('lint', target);
  t.equal(lint.code, 0, lint.out);
  const { snapshot } = await loadDirectory(target);
  const gatewayPlan = plan(snapshot, emptyMemory(), noPeers(), 0).pools.get('edge') as GatewayPlan;
  const evaluator = compilePolicy(gatewayPlan);
  for (const [from, destination, protocol, port, verdict, why] of decisions) {
    const workload = Object.values(gatewayPlan.workloads).find((one) => `${one.namespace}/${one.name}` === from);
    const source = workload?.addresses.find((address) => address.includes(':') === destination.includes(':')) ?? '';
    const flow = { source, destination, protocol, ...(port === undefined ? {} : { destinationPort: port }) };
    t.equal(evaluator.decide(flow).verdict, verdict, `${from} to ${destination}: ${why}`);
  }
  const strict = file('strict/ours.yaml', ours('Drop'));
  const dropping = await sluice('import', 'networkpolicy', input, '--target', join(strict, '..'));
  t.match(dropping.err, /DefaultAction \(1\)\n {4}GatewayPool\/edge spec\.defaultAction: is Drop .*\[permits less\]/);
});

function converted(text: string): { manifests: Manifest[]; report: Report } {
  const inputs = parseAllDocuments(text).flatMap((document, i) => {
    const value: unknown = (document as { toJS(): unknown }).toJS();
    return value === null ? [] : [{ value, at: `document ${i + 1}` }];
  });
  const imported = importNetworkPolicies(inputs);
  if (!imported.ok) throw new Error(imported.errors.join('\n'));
  for (const manifest of imported.manifests) if (!parseObject(manifest).ok) throw new Error(JSON.stringify(manifest));
  return imported;
}

t.test('what is written for a policy', async (t) => {
  const { manifests, report } = converted(
    policy(
      'p',
      '{ policyTypes: [Egress, Ingress], egress: [{ to: [{ ipBlock: { cidr: 10.1.2.3/8, except: [10.0.0.0/9] } }, { ipBlock: { cidr: 10.128.0.0/9 } }], ports: [{ port: 443 }, { protocol: SCTP }, { port: http }] }] }',
      ', labels: { team: a }',
    ) + policy('p-isolate', '{ policyTypes: [Egress] }'),
  );
  const metadata = (name: string, labels = true) => ({
    name,
    namespace: 'shop',
    ...(labels ? { labels: { team: 'a' } } : {}),
  });
  const rule = { apiVersion: 'sluice.dev/v1alpha1', kind: 'NamespaceEgressRule' };
  const isolate = { action: 'drop', externalServices: ['*'], priority: 2000 };
  t.same(manifests, [
    {
      apiVersion: 'sluice.dev/v1alpha1',
      kind: 'ExternalService',
      metadata: metadata('p-egress-0'),
      spec: {
        addresses: ['10.128.0.0/9'],
        ports: [
          { name: 'tcp-0', protocol: 'TCP', port: '443' },
          { name: 'sctp-1', protocol: 'SCTP' },
        ],
      },
    },
    { ...rule, metadata: metadata('p'), spec: { action: 'accept-decisively', externalServices: ['p-egress-0'] } },
    { ...rule, metadata: metadata('p-isolate-2'), spec: isolate },
    { ...rule, metadata: metadata('p-isolate-isolate', false), spec: isolate },
  ]);
  t.same(
    report.notCarried.map(({ path, reason, effect }) => [path, reason, effect]),
    [['spec.egress[0].ports[2].port', 'NamedPort', 'none']],
  );
});

t.test('what cannot be read never permits more', async (t) => {
  const rows: [name: string, egress: string, lost: string[]][] = [
    [
      'a bad except takes the block with it',
      '{ to: [{ ipBlock: { cidr: 10.0.0.0/8, except: [010.0.0.0/9] } }] }',
      ['AddressUnreadable'],
    ],
    ['a bad cidr', '{ to: [{ ipBlock: { cidr: "::ffff:10.0.0.0/104" } }] }', ['AddressUnreadable']],
    ['an address is no CIDR', '{ to: [{ ipBlock: { cidr: 10.0.0.1 } }] }', ['AddressUnreadable']],
    ['named ports only', '{ to: [{ ipBlock: { cidr: 10.0.0.0/8 } }], ports: [{ port: http }] }', ['NamedPort']],
    ['pods only', '{ to: [{ podSelector: {} }], ports: [{ port: 80 }] }', ['InCluster']],
    [
      'nothing is left of the block',
      '{ to: [{ ipBlock: { cidr: 10.0.0.0/8, except: [10.0.0.0/9, 10.128.0.0/9] } }] }',
      [],
    ],
  ];
  for (const [name, egress, lost] of rows) {
    const { manifests, report } = converted(policy('p', `{ policyTypes: [Egress], egress: [${egress}] }`));
    t.same(
      manifests.map(({ spec }) => spec.action),
      ['drop'],
      name,
    );
    t.same(
      report.notCarried.map(({ reason }) => reason),
      lost,
      name,
    );
  }
});

t.test('large policies become several objects', async (t) => {
  const odd = Array.from({ length: 2100 }, (_, i) => `10.${i >> 7}.${(i & 127) * 2}.0/24`);
  const { manifests } = converted(
    policy(
      'p',
      `{ policyTypes: [Egress], egress: [{ to: [{ ipBlock: { cidr: 10.0.0.0/8, except: [${odd}] } }, { ipBlock: { cidr: 11.0.0.0/8, except: [${odd.map((text) => text.replace('10', '11'))}] } }] }] }`,
    ) +
      policy(
        'many',
        `{ policyTypes: [Egress], egress: [${Array.from({ length: 257 }, (_, i) => `{ ports: [{ port: ${i + 1} }] }`)}] }`,
      ),
  );
  const services = manifests.filter(({ metadata }) => metadata.name.startsWith('p-egress'));
  t.same(
    services.map(({ metadata }) => metadata.name),
    ['p-egress-0', 'p-egress-0-2'],
  );
  t.ok(services.every(({ spec }) => (spec.addresses as string[]).length <= 4096));
  const rules = manifests.filter(({ kind }) => kind === 'NamespaceEgressRule');
  t.same(
    rules.map(({ metadata, spec }) => [metadata.name, (spec.externalServices as string[]).length]),
    [
      ['p', 2],
      ['p-isolate', 1],
      ['many', 256],
      ['many-2', 1],
      ['many-isolate', 1],
    ],
  );
});

t.test('bad input is refused as a whole', async (t) => {
  const to = (peer: string): string => policy('b', `{ egress: [{ to: [${peer}] }] }`);
  const ports = (port: string): string => policy('b', `{ egress: [{ ports: [${port}] }] }`);
  const rows: [text: string, error: RegExp][] = [
    [policy('b', '{ policyTypes: [Both] }'), /spec\.policyTypes\[0\]: expected Ingress or Egress, got "Both"/],
    [policy('b', '{ egres: [] }'), /spec\.egres: expected absent: unknown field/],
    [to('{}'), /spec\.egress\[0\]\.to\[0\]: expected ipBlock alone, or /],
    [
      to('{ ipBlock: { cidr: 10.0.0.0/8 }, podSelector: {} }'),
      /spec\.egress\[0\]\.to\[0\]: expected ipBlock alone, or /,
    ],
    [to('{ ipBlock: { cidr: 10.0.0.0/8, expect: [10.0.0.0/9] } }'), /ipBlock\.expect: expected absent: unknown field/],
    [to('{ ipBlock: { except: [10.0.0.0/9] } }'), /ipBlock\.cidr: expected .*, got nothing/],
    [ports('{ port: 0 }'), /spec\.egress\[0\]\.ports\[0\]\.port: expected an integer from 1 to 65535, got 0/],
    [ports('{ port: 9, endPort: 8 }'), /spec\.egress\[0\]\.ports\[0\]\.endPort: expected .*, got 8/],
    [ports('{ endPort: 8 }'), /spec\.egress\[0\]\.ports\[0\]\.endPort: expected .*, got 8/],
    [
      ports('{ protocol: tcp, port: 8 }'),
      /spec\.egress\[0\]\.ports\[0\]\.protocol: expected TCP or UDP or SCTP, got "tcp"/,
    ],
    [policy('b', '{ podSelector: { matchLabels: [] } }'), /spec\.podSelector\.matchLabels: expected an object, got/],
    [policy('a', '{ egress: [] }'), /expected each object once, got "NetworkPolicy\/shop\/a", which is in .* too/],
    [
      'apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: b }\nspec: {}\n',
      /metadata\.namespace: expected a namespace, got nothing/,
    ],
    ['7\n', /expected an object with apiVersion, kind and metadata, got 7/],
  ];
  for (const [i, [text, error]] of rows.entries()) {
    const { code, out, err } = await sluice('import', 'networkpolicy', file(`bad/${i}.yaml`, policy('a', '{}') + text));
    t.same([code, out], [1, ''], err);
    t.match(err, error);
  }
  t.match((await sluice('import', 'networkpolicy', '--help')).out, /Exit codes: 0 .*\nExamples:\n/s);
});
