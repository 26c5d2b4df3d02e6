/**
 * `sluice import f5-ces` by its front door: manifests of CES's shape, written here, go through import, lint, the planner
 * and the evaluator, and flows meet what CES would have decided. Then what the report says of each thing that is not
 * carried over or changed, and that hostile or bad input writes nothing.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { parseAllDocuments } from 'yaml';
import { parseObject } from '../../api/kinds.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { importF5Ces } from '../../cli/import/f5-ces.ts';
import { schemaTakes, type Takes } from '../../cli/import/f5-ces-service.ts';
import { overlapsOf } from '../../cli/import/overlap.ts';
import { type Imported, type Manifest, type Report, reportText } from '../../cli/import/report.ts';
import { printable } from '../../cli/output.ts';
import { loadDirectory } from '../../controller/observe/directory.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { sluice } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-import-'));
t.teardown(() => rmSync(dir, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(dir, name);
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, text);
  return path;
}

const ces = (kind: string, qualified: string, spec: string, metadata = ''): string => {
  const [name, namespace] = qualified.split('/').reverse();
  const where = namespace === undefined ? '' : `, namespace: ${namespace}`;
  return `apiVersion: kubeovn.io/v1alpha1\nkind: ${kind}\nmetadata: { name: ${name}${where}${metadata} }\nspec: ${spec}\n---\n`;
};
const exsvc = (qualified: string, address: string, ports = ''): string =>
  ces('ExternalService', qualified, `{ addresses: ["${address}"]${ports === '' ? '' : `, ports: [${ports}]`} }`);

/** A cluster of ours: namespace shop with two pods behind Services and one behind none, and a namespace beside it. */
const ours = `
apiVersion: v1
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
${[
  ['shop', 'ready', 11],
  ['shop', 'starting', 12],
  ['shop', 'job', 13],
  ['other', 'else', 14],
]
  .map(
    ([namespace, name, host]) => `apiVersion: v1
kind: Pod
metadata: { name: ${name}, namespace: ${namespace}, uid: ${namespace}-${name} }
spec: { nodeName: n }
status: { phase: Running, podIPs: [{ ip: 10.244.1.${host} }, { ip: "fd00:244:1::${host}" }] }
---`,
  )
  .join('\n')}
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
endpoints:
  - { addresses: [10.244.1.11], conditions: { ready: true } }
  - { addresses: [10.244.1.12], conditions: { ready: false } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: sleeping-1, namespace: shop, labels: { kubernetes.io/service-name: sleeping } }
addressType: IPv4
endpoints: [{ addresses: [10.244.1.12], conditions: { ready: false } }]
---
apiVersion: sluice.dev/v1alpha1
kind: GatewayPool
metadata: { name: edge }
spec:
  namespaceSelector: {}
  gateways: [{ name: gw-a, internalAddress: 10.0.0.31 }]
  interfaces: { internal: inside, external: { name: outside } }
  nextHops: { v4: [10.0.0.64], v6: ["fd00:10::64"] }
  clusterCIDRs: [10.244.0.0/16, 10.0.0.0/24, "fd00:244::/32"]
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIPPool
metadata: { name: edge }
spec: { gatewayPool: edge, ranges: [203.0.113.101-203.0.113.110, "2001:db8:113::101-2001:db8:113::110"], namespaceSelector: {} }
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIP
metadata: { name: all }
spec: { pool: edge, addresses: [203.0.113.101, "2001:db8:113::101"], namespaceSelector: {} }
`;

const dns = '{ name: dns-udp, protocol: UDP, port: "9090" }, { name: dns-tcp, protocol: TCP, port: "9090" }';
const to = (action: string, name: string, more = ''): string =>
  `{ action: ${action}, externalServices: [${name}]${more} }`;
const manifests = [
  exsvc('kube-system/by-cluster', '198.51.100.1', dns),
  ces('ClusterEgressRule', 'only', to('accept', 'by-cluster')),
  exsvc('shop/by-namespace', '198.51.100.2', dns),
  ces('NamespaceEgressRule', 'shop/only', to('accept', 'by-namespace')),
  exsvc('shop/by-service', '198.51.100.3', dns),
  ces('ServiceEgressRule', 'shop/only', to('accept', 'by-service', ', service: web')),
  // The same destination in all three.
  exsvc('kube-system/all', '2001:db8:100::4'),
  exsvc('shop/all', '2001:db8:100::4'),
  ces('ClusterEgressRule', 'all', to('accept', 'all')),
  ces('NamespaceEgressRule', 'shop/all', to('accept', 'all')),
  ces('ServiceEgressRule', 'shop/all', to('accept', 'all', ', service: web')),
  exsvc('kube-system/time', '198.51.100.123', '{ name: ntp, protocol: udp, port: "123" }'),
  ces('ClusterEgressRule', 'time', to('accept-decisively', 'time')),
  exsvc('shop/time', '198.51.100.123'),
  ces('NamespaceEgressRule', 'shop/no-time', to('drop', 'time')),
  exsvc('shop/reports', '198.51.100.5', '{ name: https, protocol: TCP, port: "443,8000-8100" }'),
  ces('NamespaceEgressRule', 'shop/reports', to('accept-decisively', 'reports')),
  exsvc('kube-system/bad', '192.0.2.0/24'),
  ces('ClusterEgressRule', 'bad', to('drop', 'bad')),
  exsvc('shop/bad', '192.0.2.0/24'),
  ces('ServiceEgressRule', 'shop/bad', to('accept-decisively', 'bad', ', service: web')),
  exsvc('shop/worse', '198.51.100.6'),
  ces('NamespaceEgressRule', 'shop/worse', to('reject', 'worse')),
  ces('ServiceEgressRule', 'shop/worse', to('accept', 'worse', ', service: web')),
  exsvc('shop/svc-drop', '198.51.100.7'),
  ces('NamespaceEgressRule', 'shop/svc-drop', to('accept', 'svc-drop')),
  ces('ServiceEgressRule', 'shop/svc-drop', to('reject', 'svc-drop', ', service: web')),
  exsvc('shop/svc-decisive', '198.51.100.8'),
  ces('ServiceEgressRule', 'shop/svc-decisive', to('accept-decisively', 'svc-decisive', ', service: web')),
  exsvc('shop/for-sleeping', '198.51.100.9'),
  ces('ServiceEgressRule', 'shop/for-sleeping', to('accept', 'for-sleeping', ', service: sleeping')),
  ces('ServiceEgressRule', 'shop/for-nobody', to('accept', 'for-sleeping', ', service: not-there')),
  exsvc('shop/any-protocol', '198.51.100.10', '{ name: a, protocol: TCP }, { name: b, protocol: UDP, port: "" }'),
  ces('ServiceEgressRule', 'shop/any-protocol', to('accept', 'any-protocol', ', service: web')),
  exsvc('shop/one-port', '198.51.100.11', '{ name: a, protocol: TCP, port: "443" }, { name: b, protocol: UDP }'),
  ces('ServiceEgressRule', 'shop/one-port', to('accept', 'one-port', ', service: web')),
  // Somebody else's ExternalService of that name does not serve a rule of shop, and "*" is a name like any other.
  exsvc('other/elsewhere', '198.51.100.12'),
  ces('ServiceEgressRule', 'shop/elsewhere', to('accept', '"elsewhere", "*", "by-service"', ', service: web')),
].join('');

const [ICMP, TCP, UDP] = [1, 6, 17];
type Row = [from: string, to: string, protocol: number, port: number | undefined, verdict: string, why: string];
const decisions: Row[] = [
  ['shop/ready', '198.51.100.1', TCP, 9090, 'drop', 'accept in the cluster context only'],
  ['shop/ready', '198.51.100.2', UDP, 9090, 'drop', 'accept in the namespace context only'],
  ['shop/ready', '198.51.100.3', TCP, 9090, 'accept', 'accept in the service context'],
  ['shop/ready', '198.51.100.3', UDP, 9090, 'accept', 'the same by UDP'],
  ['shop/ready', '198.51.100.3', TCP, 9091, 'drop', 'another port'],
  ['shop/ready', '198.51.100.3', ICMP, undefined, 'drop', 'another protocol'],
  ['shop/job', '198.51.100.3', TCP, 9090, 'drop', 'a pod behind no Service'],
  ['other/else', '198.51.100.3', TCP, 9090, 'drop', 'a pod of another namespace'],
  ['shop/starting', '198.51.100.3', TCP, 9090, 'drop', 'a pod that is not ready is no source'],
  ['shop/ready', '2001:db8:100::4', TCP, 443, 'accept', 'accepted in every context, by IPv6'],
  ['shop/job', '2001:db8:100::4', TCP, 443, 'drop', 'accepted in two contexts, not in the last'],
  ['other/else', '198.51.100.123', UDP, 123, 'accept', 'accept-decisively in the cluster context'],
  ['shop/ready', '198.51.100.123', UDP, 123, 'accept', 'which overrules a drop of the namespace'],
  ['shop/ready', '198.51.100.123', TCP, 123, 'drop', 'that decides what the cluster left'],
  ['shop/job', '198.51.100.5', TCP, 8050, 'accept', 'accept-decisively in the namespace context'],
  ['other/else', '198.51.100.5', TCP, 443, 'drop', 'not in the next namespace'],
  ['shop/ready', '192.0.2.77', TCP, 443, 'drop', 'drop in the cluster context, whatever the service says'],
  ['shop/ready', '198.51.100.6', TCP, 443, 'reject', 'reject in the namespace context, whatever the service says'],
  ['shop/ready', '198.51.100.7', TCP, 443, 'reject', 'reject in the service context'],
  ['shop/job', '198.51.100.7', TCP, 443, 'drop', 'which is not about a pod behind no Service'],
  ['shop/ready', '198.51.100.8', TCP, 443, 'accept', 'accept-decisively in the service context is accept'],
  ['shop/starting', '198.51.100.9', TCP, 443, 'drop', 'a Service with no ready endpoint is no source'],
  ['other/else', '198.51.100.9', TCP, 443, 'drop', 'and never every source, as it could be in CES'],
  ['shop/ready', '198.51.100.10', ICMP, undefined, 'accept', 'no entry has a port: any protocol'],
  ['shop/ready', '198.51.100.10', TCP, 1, 'accept', 'and any port'],
  ['shop/ready', '198.51.100.11', TCP, 443, 'accept', 'the entry with a port'],
  ['shop/ready', '198.51.100.11', UDP, 443, 'drop', 'the entry without one says nothing'],
  ['shop/ready', '198.51.100.12', TCP, 443, 'drop', 'the name is of another namespace'],
  ['shop/ready', '203.0.113.9', TCP, 443, 'drop', '"*" is not any destination'],
];

function decide(policy: GatewayPlan, from: string, destination: string, protocol: number, port?: number): string {
  const workload = Object.values(policy.workloads).find(({ namespace, name }) => `${namespace}/${name}` === from);
  const source = workload?.addresses.find((address) => address.includes(':') === destination.includes(':'));
  if (source === undefined) throw new Error(`${from} has no address to reach ${destination} from`);
  const flow = { source, destination, protocol, ...(port === undefined ? {} : { destinationPort: port }) };
  return compilePolicy(policy).decide(flow).verdict;
}

t.test('flows meet what CES decided', async (t) => {
  const target = join(dir, 'decisions');
  const done = await sluice('import', 'f5-ces', file('ces/all.yaml', manifests), '--output', target);
  t.equal(done.code, 3, 'the rule that names what is not there');
  t.match(
    done.err,
    /ServiceEgressRule\/shop\/elsewhere spec\.externalServices\[0\]: "elsewhere": not in what was read/,
  );
  t.match(done.err, /^38 objects read: 37 carried over, 1 in part, 0 not; 38 written$/m);
  t.same(readdirSync(target).sort(), [
    'clusteregressrules',
    'externalservices',
    'namespaceegressrules',
    'serviceegressrules',
  ]);
  t.ok(
    existsSync(join(target, 'externalservices/sluice-system/by-cluster.yaml')),
    'what a cluster rule names has moved',
  );
  t.notOk(existsSync(join(target, 'externalservices/kube-system')), 'and left nothing behind');

  writeFileSync(join(target, 'ours.yaml'), ours);
  const lint = await sluice('lint', target);
  t.equal(lint.code, 0, lint.out);
  const { snapshot } = await loadDirectory(target);
  const policy = plan(snapshot, emptyMemory(), noPeers(), 0).pools.get('edge') as GatewayPlan;
  for (const [from, destination, protocol, port, verdict, why] of decisions) {
    t.equal(decide(policy, from, destination, protocol, port), verdict, `${from} to ${destination}: ${why}`);
  }
});

/** As the pure function has it; the schema's own answer unless a test asks otherwise. */
function convert(text: string, more: { controllerNamespace?: string; takes?: Takes; config?: never } = {}): Imported {
  const inputs = parseAllDocuments(text).flatMap((document, i) => {
    const value: unknown = (document as { toJS(): unknown }).toJS();
    return value === null ? [] : [{ value, at: `document ${i + 1}` }];
  });
  return importF5Ces(inputs, { controllerNamespace: 'kube-system', ...more });
}
function converted(text: string, more = {}): { manifests: Manifest[]; report: Report } {
  const imported = convert(text, more);
  if (!imported.ok) throw new Error(imported.errors.join('\n'));
  for (const manifest of imported.manifests) if (!parseObject(manifest).ok) throw new Error(JSON.stringify(manifest));
  return imported;
}
const reasons = (report: Report, list: 'notCarried' | 'changed'): string[] =>
  report[list].map(({ object, path, reason, effect }) =>
    [reason, path === undefined ? object : `${object} ${path}`, ...(effect === undefined ? [] : [effect])].join(': '),
  );

/** Nothing that another version of the schema may carry out. */
const nothing: Takes = { names: false };

t.test('what of a destination is not carried over, and what that does', async (t) => {
  const user = (action: string, name: string): string => ces('NamespaceEgressRule', `shop/${action}`, to(action, name));
  const rows: [name: string, spec: string, addresses: unknown, lost: string[]][] = [
    ['a name', '{ addresses: [198.51.100.1, api.example.com] }', ['198.51.100.1'], ['NameAddress: spec.addresses[1]']],
    [
      'FIRST-LAST',
      '{ addresses: [198.51.100.1-198.51.100.9, "::1"] }',
      ['::1'],
      ['AddressUnreadable: spec.addresses[0]'],
    ],
    [
      '0.0.0.0',
      '{ addresses: [0.0.0.0, 0.0.0.0/0, "::"] }',
      ['0.0.0.0/0'],
      ['AddressUnreadable: spec.addresses[0]', 'AddressUnreadable: spec.addresses[2]'],
    ],
    [
      'a route domain',
      '{ addresses: [198.51.100.1%10, 198.51.100.2] }',
      ['198.51.100.2'],
      ['AddressUnreadable: spec.addresses[0]'],
    ],
    [
      'mapped',
      '{ addresses: ["::ffff:198.51.100.1", 198.51.100.2] }',
      ['198.51.100.2'],
      ['AddressUnreadable: spec.addresses[0]'],
    ],
    [
      'bits after the prefix',
      '{ addresses: [10.1.2.3/8, "2001:db8::1/32", 10.0.0.0/8] }',
      ['10.0.0.0/8', '2001:db8::/32'],
      [],
    ],
    [
      'nothing is left',
      '{ addresses: [api.example.com] }',
      undefined,
      ['NameAddress: spec.addresses[0]', 'NothingLeft: '],
    ],
    ['nothing was there', '{ addresses: [] }', undefined, ['NothingLeft: ']],
    // Were the list of ports left out instead, the rule would match every protocol.
    [
      'ports of ICMP',
      '{ addresses: [198.51.100.1], ports: [{ protocol: icmp, port: "8" }] }',
      undefined,
      ['ProtocolWithoutPorts: spec.ports[0].protocol', 'NothingLeft: '],
    ],
    [
      'no protocol',
      '{ addresses: [198.51.100.1], ports: [{ port: "8" }, { protocol: TCP }] }',
      undefined,
      ['ProtocolWithoutPorts: spec.ports[0].protocol', 'NothingLeft: '],
    ],
    [
      'port 0',
      '{ addresses: [198.51.100.1], ports: [{ protocol: TCP, port: "443,0" }, { protocol: UDP, port: "53" }] }',
      ['198.51.100.1'],
      ['PortUnreadable: spec.ports[0].port'],
    ],
    [
      'a range that ends before',
      '{ addresses: [198.51.100.1], ports: [{ protocol: TCP, port: "9-1" }] }',
      undefined,
      ['PortUnreadable: spec.ports[0].port', 'NothingLeft: '],
    ],
  ];
  for (const [name, spec, addresses, lost] of rows) {
    for (const [action, effect] of [
      ['accept', 'permits less'],
      ['reject', 'permits more'],
    ] as const) {
      const { manifests, report } = converted(ces('ExternalService', 'shop/x', spec) + user(action, 'x'), {
        takes: nothing,
      });
      t.same(manifests.find(({ kind }) => kind === 'ExternalService')?.spec.addresses, addresses, name);
      const ofService = report.notCarried.filter(({ object }) => object === 'ExternalService/shop/x');
      t.same(
        ofService.map(({ reason, path = '' }) => `${reason}: ${path}`),
        lost,
        name,
      );
      t.ok(
        ofService.every((remark) => remark.effect === effect),
        `${name}: ${effect}`,
      );
      // A rule of which nothing is left is not written either.
      t.equal(
        manifests.some(({ kind }) => kind === 'NamespaceEgressRule'),
        addresses !== undefined,
        name,
      );
    }
  }
  const { report } = converted(
    ces('ExternalService', 'shop/x', rows[0]?.[1] ?? '') + user('accept', 'x') + user('drop', 'x'),
    { takes: nothing },
  );
  t.equal(report.notCarried[0]?.effect, 'permits less here and more there');
});

t.test('names go along exactly if the schema takes them; bandwidth and logging always', async (t) => {
  const takes = schemaTakes();
  const { manifests, report } = converted(
    ces(
      'ExternalService',
      'shop/x',
      '{ addresses: [198.51.100.1, api.example.com], ports: [{ name: a, protocol: TCP, port: "443", bandwidth: bwc-12mbps-irule }] }',
    ) +
      ces('NamespaceEgressRule', 'shop/r', to('accept', 'x', ', logging: true')) +
      ces('NamespaceEgressRule', 'shop/s', to('drop', 'x', ', logging: false')) +
      ces('ClusterEgressRule', 't', to('drop', 'x')) +
      ces('NamespaceEgressRule', 'shop/t', to('drop', 'x')),
  );
  const said = new Set([...report.notCarried, ...report.changed].map(({ reason }) => reason));
  const services = manifests.filter(({ kind }) => kind === 'ExternalService');
  const rules = manifests.filter(({ kind }) => kind !== 'ExternalService');
  t.equal(takes.names, true);
  t.same(
    services.map(({ metadata: { name }, spec }) => [name, spec.addresses]),
    [
      ['x', ['198.51.100.1']],
      ['x-2', ['api.example.com']],
    ],
    'apart from addresses, of which nobody asks for TLS',
  );
  for (const { spec } of services) t.match(spec.ports, [{ bandwidth: '12Mbit' }]);
  t.same(rules.map(({ spec }) => spec.externalServices)[0], ['x', 'x-2']);
  for (const reason of ['NameByBytes', 'BandwidthSplit', 'Split']) t.ok(said.has(reason), reason);
  for (const reason of ['NameAddress', 'Bandwidth']) t.notOk(said.has(reason), reason);
  t.same(
    rules.map(({ metadata: { name }, spec }) => [name, spec.logging]),
    [
      ['r', 'All'],
      ['s', 'None'],
      ['t', undefined],
    ],
  );
  const odd = converted(
    ces(
      'ExternalService',
      'shop/x',
      '{ addresses: [198.51.100.1], ports: [{ name: a, protocol: TCP, port: "443", bandwidth: our-own-irule }] }',
    ),
  );
  t.same(
    reasons(odd.report, 'notCarried'),
    ['Bandwidth: ExternalService/shop/x spec.ports[0].bandwidth'],
    'an iRule that says no rate',
  );
});

t.test('where ExternalServices of cluster rules live', async (t) => {
  const written = (text: string, more = {}): unknown =>
    converted(text, more).manifests.map(({ kind, metadata: { namespace, name }, spec }) =>
      [kind, namespace, name, ...((spec.externalServices as string[]) ?? [])]
        .join(' ')
        .replace('ExternalService', 'ES'),
    );
  const inKubeSystem = exsvc('kube-system/a', '198.51.100.1');
  const byCluster = ces('ClusterEgressRule', 'r', to('drop', 'a'));
  const byItself = ces('NamespaceEgressRule', 'kube-system/r', to('drop', 'a'));
  t.same(written(inKubeSystem + byCluster), ['ES sluice-system a', 'ClusterEgressRule  r a'], 'moved');
  t.same(written(inKubeSystem), ['ES sluice-system a'], 'moved, though nobody names it yet');
  t.same(written(inKubeSystem + byItself), ['ES kube-system a', 'NamespaceEgressRule kube-system r a'], 'stays');
  t.same(
    written(byCluster + byItself + inKubeSystem),
    ['ES sluice-system a', 'ES kube-system a', 'ClusterEgressRule  r a', 'NamespaceEgressRule kube-system r a'],
    'in both, in whatever order they come',
  );
  t.same(
    written(inKubeSystem + exsvc('sluice-system/a', '198.51.100.2') + byCluster),
    ['ES sluice-system a-2', 'ES sluice-system a', 'ClusterEgressRule  r a-2'],
    'another of that name is there: the reference goes along',
  );
  t.same(
    written(inKubeSystem + byCluster, { controllerNamespace: 'ces' }),
    ['ES kube-system a'],
    "not the controller's",
  );
  t.same(
    written(exsvc('sluice-system/a', '198.51.100.1') + byCluster, { controllerNamespace: 'sluice-system' }),
    ['ES sluice-system a', 'ClusterEgressRule  r a'],
    'theirs is ours',
  );
  const foreign = converted(exsvc('shop/a', '198.51.100.1') + byCluster);
  t.same(reasons(foreign.report, 'notCarried'), [
    'ExternalServiceNotFound: ClusterEgressRule/r spec.externalServices[0]: permits more',
    'NothingLeft: ClusterEgressRule/r: permits more',
  ]);
});

t.test('what is changed is said', async (t) => {
  const { manifests, report } = converted(
    ces(
      'ExternalService',
      'shop/x',
      '{ addresses: [198.51.100.1, 198.51.100.1/32], extra: 1, ports: [{ name: A, protocol: TCP, port: "443,440-450" }, { protocol: tcp, port: "80", color: red }, { name: udp-2, protocol: UDP, port: "053" }] }',
      ', labels: { cpaas.io/ruleType: svc, team: a }, annotations: { kubectl.kubernetes.io/last-applied-configuration: "{}", note: "a\\nb", bidi: "\\u202e" }, uid: u, resourceVersion: "7", creationTimestamp: "2022-01-01T00:00:00Z"',
    ) +
      ces(
        'ServiceEgressRule',
        'shop/r',
        '{ action: accept, service: web, externalServices: [x, x], priority: 5, logging: false }',
      ) +
      ces('NamespaceEgressRule', 'shop/none', '{ action: drop, externalServices: [] }'),
  );
  t.same(manifests, [
    {
      apiVersion: 'sluice.dev/v1alpha1',
      kind: 'ExternalService',
      metadata: { name: 'x', namespace: 'shop', labels: { team: 'a' }, annotations: { note: 'a\nb' } },
      spec: {
        addresses: ['198.51.100.1'],
        ports: [
          { name: 'tcp-0', protocol: 'TCP', port: '440-450' },
          { name: 'tcp-1', protocol: 'TCP', port: '80' },
          { name: 'udp-2', protocol: 'UDP', port: '53' },
        ],
      },
    },
    {
      apiVersion: 'sluice.dev/v1alpha1',
      kind: 'ServiceEgressRule',
      metadata: { name: 'r', namespace: 'shop' },
      spec: { action: 'accept', externalServices: ['x'], service: 'web', endpoints: 'Ready', logging: 'None' },
    },
  ]);
  t.same(reasons(report, 'changed'), [
    'UnknownField: ExternalService/shop/x spec.ports[].color',
    'UnknownField: ExternalService/shop/x spec.extra',
    'PortNames: ExternalService/shop/x spec.ports',
    'Unprintable: ExternalService/shop/x metadata.annotations',
    'UnknownField: ServiceEgressRule/shop/r spec.priority',
    'NoExternalService: NamespaceEgressRule/shop/none',
  ]);
  t.same(report.notCarried, []);
  t.same(
    report.notes.map(({ reason }) => reason),
    ['DefaultAction', 'EgressIP', 'Source', 'Ready'],
  );
  t.same(
    report.objects.map(({ result, written }) => [result, ...written]),
    [['whole', 'ExternalService/shop/x'], ['whole', 'ServiceEgressRule/shop/r'], ['not']],
  );
});

t.test('an object that is too large becomes several; what our schema refuses is said', async (t) => {
  const addresses = Array.from({ length: 4097 }, (_, i) => `10.1.${i >> 8}.${i & 255}`);
  const names = Array.from({ length: 257 }, (_, i) => `s${i}`);
  const long = 'x'.repeat(253);
  const ports = Array.from({ length: 65 }, (_, i) => `{ protocol: TCP, port: "${2 * i + 1}" }`);
  const { manifests, report } = converted(
    ces('ExternalService', `shop/${long}`, `{ addresses: [${addresses}], ports: [${ports}] }`) +
      names.map((name) => exsvc(`shop/${name}`, '198.51.100.1')).join('') +
      ces('NamespaceEgressRule', 'shop/r', `{ action: drop, externalServices: [${long}, ${names}] }`) +
      ces('ServiceEgressRule', 'shop/r', '{ action: accept, service: "No Such Name", externalServices: [s1] }'),
  );
  const [first, second] = manifests;
  t.same([first?.metadata.name, second?.metadata.name], [long, `${long.slice(0, 251)}-2`]);
  t.same([(first?.spec.addresses as string[] | undefined)?.length, second?.spec.addresses], [4096, ['10.1.16.0']]);
  t.same(
    (second?.spec.ports as object[] | undefined)?.map((port) => Object.keys(port)),
    [
      ['name', 'protocol', 'port'],
      ['name', 'protocol', 'port'],
    ],
  );
  const rules = manifests.filter(({ kind }) => kind === 'NamespaceEgressRule');
  t.same(
    rules.map(({ metadata }) => metadata.name),
    ['r', 'r-2'],
  );
  t.same(
    rules.flatMap(({ spec }) => spec.externalServices),
    [long, second?.metadata.name, ...names],
  );
  t.same(
    reasons(report, 'changed').filter((text) => !text.startsWith('PortNames')),
    [
      `PortsMerged: ExternalService/shop/${long} spec.ports`,
      `Split: ExternalService/shop/${long}`,
      'Split: NamespaceEgressRule/shop/r',
    ],
  );
  t.same(reasons(report, 'notCarried'), ['Refused: ServiceEgressRule/shop/r spec.service: permits less']);
});

t.test('rules of one context that overlap and differ', async (t) => {
  const rules = (action: string, name: string, service?: string): string =>
    ces(
      service === undefined ? 'NamespaceEgressRule' : 'ServiceEgressRule',
      `shop/${action}-${name}`,
      to(action, name, service === undefined ? '' : `, service: ${service}`),
    );
  const order = (text: string): string[] | undefined =>
    converted(
      exsvc('shop/a', '198.51.100.0/24', '{ protocol: TCP, port: "1-10" }') +
        exsvc('shop/b', '198.51.100.7', '{ protocol: TCP, port: "10" }') +
        exsvc('shop/c', '198.51.100.7', '{ protocol: UDP, port: "10" }') +
        exsvc('shop/d', '198.51.101.0') +
        exsvc('shop/e', '198.51.100.255') +
        text,
    ).report.notes.find(({ reason }) => reason === 'Order')?.items;
  const pair = ['NamespaceEgressRule/shop/accept-a (accept), NamespaceEgressRule/shop/drop-b (drop)'];
  t.same(order(rules('accept', 'a') + rules('drop', 'b')), pair);
  t.same(order(rules('drop', 'b') + rules('accept', 'a')), pair, 'in whatever order they come');
  t.same(order(rules('accept', 'a') + rules('accept', 'b')), undefined, 'the same action');
  t.same(order(rules('accept', 'a') + rules('drop', 'c')), undefined, 'other ports');
  t.same(order(rules('accept', 'a') + rules('drop', 'd')), undefined, 'the address after the last');
  t.equal(order(rules('accept', 'a') + rules('drop', 'e'))?.length, 1, 'the last address');
  t.same(order(rules('accept', 'a') + rules('drop', 'b', 'web')), undefined, 'another context');
  t.same(order(rules('accept', 'a', 'api') + rules('drop', 'b', 'web')), undefined, 'another Service');
  t.same(
    order(rules('accept', 'a', 'web') + rules('accept-decisively', 'b', 'web')),
    undefined,
    'the same in the last context',
  );
  t.equal(order(rules('accept', 'a') + rules('accept-decisively', 'b'))?.length, 1, 'which differ in another');

  const everything = (action: string, i: number) => ({
    group: 'g',
    name: `${action}-${i}`,
    action,
    destinations: [{ ranges: [{ family: 4 as const, first: 0n, last: 1n }], ports: null }],
  });
  const many = overlapsOf([...Array(3000).keys()].flatMap((i) => [everything('accept', i), everything('drop', i)]));
  t.same([many.complete, many.overlaps.length], [false, 1000], 'bounded, and says so');
});

t.test('bad input is refused as a whole', async (t) => {
  const good = exsvc('shop/a', '198.51.100.1');
  const rows: [text: string, error: RegExp][] = [
    [
      ces('ExternalService', 'a', '{ addresses: [198.51.100.1] }'),
      /metadata\.namespace: expected a namespace, got nothing/,
    ],
    [ces('ExternalService', 'shop/A', '{ addresses: [198.51.100.1] }'), /metadata\.name: expected .*, got "A"/],
    [ces('ExternalService', 'shop/b', '{ ports: [] }'), /spec\.addresses: expected a list, got nothing/],
    [
      ces('ExternalService', 'shop/b', '{ addresses: 198.51.100.1 }'),
      /spec\.addresses: expected a list, got "198\.51\.100\.1"/,
    ],
    [ces('ExternalService', 'shop/b', '{ addresses: [1] }'), /spec\.addresses\[0\]: expected .*, got 1/],
    [
      ces('ExternalService', 'shop/b', '{ addresses: [198.51.100.1], ports: [{ protocol: TCP, port: 443 }] }'),
      /spec\.ports\[0\]\.port: expected text in quotes .*, got 443/,
    ],
    [
      ces('ExternalService', 'shop/b', '{ addresses: [198.51.100.1], ports: [{ protocol: TCP, port: "a" }] }'),
      /spec\.ports\[0\]\.port: expected .*, got "a"/,
    ],
    [ces('NamespaceEgressRule', 'shop/b', to('permit', 'a')), /spec\.action: expected accept or drop .*, got "permit"/],
    [ces('ServiceEgressRule', 'shop/b', to('accept', 'a')), /spec\.service: expected .*, got nothing/],
    [ces('ClusterEgressRule', 'b', '{ action: drop }'), /spec\.externalServices: expected a list, got nothing/],
    [good, /expected each object once, got "ExternalService\/shop\/a", which is in .*document 1\) too/],
    ['just text\n', /expected an object with apiVersion, kind and metadata, got "just text"/],
    ['kind: [\n', /expected YAML, got /],
    [
      `a: &a [x,x,x,x,x,x,x,x,x]\n${[...'bcdefgh'].map((c, i) => `${c}: &${c} [${Array(9).fill(`*${'abcdefg'[i]}`)}]`).join('\n')}\n`,
      /expected YAML, got .*alias/i,
    ],
    [`${'['.repeat(100_000)}\n`, /expected YAML, got /],
  ];
  for (const [i, [text, error]] of rows.entries()) {
    const output = join(dir, `refused-${i}`);
    const { code, out, err } = await sluice('import', 'f5-ces', file(`bad/${i}.yaml`, good + text), '--output', output);
    t.same([code, out, existsSync(output)], [1, '', false], err);
    t.match(err, error);
    t.match(err, /bad\/\d+\.yaml.*: expected/, 'and where');
  }
  const hostile = 'apiVersion: kubeovn.io/v1alpha1\nkind: ClusterEgressRule\nmetadata: { name: "\\e[31m\\u202e" }\n';
  const { err } = await sluice('import', 'f5-ces', file('esc.yaml', hostile));
  t.equal(printable(err.replaceAll('\n', '')), err.replaceAll('\n', ''), 'nothing that steers a terminal');
  const limited = convert(ces('ExternalService', 'shop/x', `{ addresses: [${Array(100_001).fill('a')}] }`));
  t.match(limited, { ok: false, errors: [/expected at most 100000 items, got 100001 items/] });
});

t.test('files, standard input, report and exit codes', async (t) => {
  const input = file(
    'io/in.yaml',
    exsvc('shop/a', '198.51.100.1') + ces('NamespaceEgressRule', 'shop/r', to('drop', 'a')),
  );
  const help = await sluice('import', 'f5-ces', '--help');
  t.match(help.out, /Exit codes: 0 .*1 .*2 .*\n3 /);
  t.match(help.out, /Examples:\n/);
  for (const [args, code] of [
    [['import'], 2],
    [['import', 'pdf', input], 2],
    [['import', 'f5-ces'], 2],
    [['import', 'f5-ces', input, '-o', 'xml'], 2],
    [['import', 'f5-ces', input, '--controller-namespace', 'No'], 2],
    [['import', 'f5-ces', input, '--output', `${dir}/same`, '--report', `${dir}/same`], 2],
    [['import', 'f5-ces', `${dir}/none`], 1],
    [['import', 'f5-ces', input, '--target', `${dir}/none`], 1],
    [['import', 'f5-ces', input, '--ces-config', input], 1],
    [['import', 'f5-ces', input], 0],
  ] as const) {
    t.equal((await sluice(...args)).code, code, `sluice ${args.join(' ')}`);
  }
  const plain = await sluice('import', 'f5-ces', input, input);
  t.equal(plain.out.split('---\n').length, 2, 'a file that is named twice is read once');
  t.match(plain.err, /2 objects read: 2 carried over, 0 in part, 0 not; 2 written\n$/);

  const one = join(dir, 'io/one.yaml');
  const report = join(dir, 'io/report.json');
  const again = ['import', 'f5-ces', input, '--output', one, '--report', report, '-o', 'json'];
  const first = await sluice(...again);
  t.same([first.code, first.out], [0, '']);
  t.match(first.err, /^2 objects read: .*\n$/, 'the report is in the file');
  t.equal(readFileSync(one, 'utf8'), plain.out);
  t.match(JSON.parse(readFileSync(report, 'utf8')), {
    format: 'f5-ces',
    counts: { read: 2, written: 2 },
    objects: [
      {
        object: 'ExternalService/shop/a',
        at: `${input} (document 1)`,
        written: ['ExternalService/shop/a'],
        result: 'whole',
      },
      {},
    ],
    notCarried: [],
  });
  writeFileSync(one, 'mine');
  t.match(await sluice(...again), {
    code: 1,
    err: /one\.yaml and 1 more: expected no such file \(--force overwrites\)/,
  });
  t.equal(readFileSync(one, 'utf8'), 'mine', 'nothing is overwritten');
  rmSync(report);
  t.equal((await sluice(...again)).code, 1);
  t.notOk(existsSync(report), 'nor is anything else written');
  t.equal((await sluice(...again, '--force')).code, 0);
  t.equal(readFileSync(one, 'utf8'), plain.out);
  t.same(readdirSync(join(dir, 'io')).sort(), ['in.yaml', 'one.yaml', 'report.json'], 'and nothing lies about');

  const main = join(import.meta.dirname, '../../cli/main.js');
  const piped = spawnSync(process.execPath, [main, 'import', 'f5-ces', '-'], {
    input: `apiVersion: v1\nkind: List\nitems:\n- ${exsvc('shop/a', '198.51.100.1').replace('---\n', '').trim().replaceAll('\n', '\n  ')}\n- { apiVersion: v1, kind: Pod }\n`,
    encoding: 'utf8',
  });
  t.same([piped.status, piped.stdout.split('\n')[1]], [0, 'kind: ExternalService'], piped.stderr);
  t.match(piped.stderr, /1 objects read: .*; 1 of other kinds passed over/);

  const target = join(dir, 'target');
  const network = ours.slice(ours.indexOf('apiVersion: sluice.dev'));
  file(
    'target/pool.yaml',
    network.replace('namespaceSelector: {}\n', 'namespaceSelector: {}\n  defaultAction: Accept\n'),
  );
  file(
    'target/a.yaml',
    'apiVersion: sluice.dev/v1alpha1\nkind: ExternalService\nmetadata: { name: a, namespace: shop }\nspec: { addresses: [198.51.100.2] }\n',
  );
  const beside = await sluice('import', 'f5-ces', input, '--target', target);
  t.equal(beside.code, 3);
  t.match(beside.err, /GatewayPool\/edge spec\.defaultAction: is Accept .*\[permits more\]/);
  t.match(beside.err, /Replaces: .*\n {4}ExternalService\/shop\/a\n/);
  file('target/pool.yaml', network);
  file(
    'target/a.yaml',
    'apiVersion: sluice.dev/v1alpha1\nkind: ExternalService\nmetadata: { name: a, namespace: shop }\nspec: { addresses: [198.51.100.1] }\n',
  );
  file('target/bad.yaml', 'apiVersion: sluice.dev/v1alpha1\nkind: GatewayPool\nmetadata: { name: other }\n');
  const same = await sluice('import', 'f5-ces', input, '--target', target);
  t.equal(same.code, 0);
  t.match(same.err, /TargetRefused: .*\n {4}bad\.yaml: GatewayPool\/other\n/);
  t.notMatch(same.err, /Replaces|NoResolvers/);
  const named = file(
    'named.yaml',
    exsvc('shop/b', 'api.example.com') + ces('NamespaceEgressRule', 'shop/b', to('accept', 'b')),
  );
  t.match(
    (await sluice('import', 'f5-ces', named, '--target', target)).err,
    /NoResolvers: .*\n {4}GatewayPool\/edge\n/,
  );

  const config = file(
    'ces-conf.yaml',
    'clusterName: k8s\niRule: [bwc-1mbps-irule]\ntenant:\n  - { name: Common, namespaces: "default,web" }\n  - { name: empty }\n',
  );
  const ignoring = await sluice('import', 'f5-ces', input, '--ces-config', config);
  t.equal(ignoring.code, 0);
  t.match(ignoring.err, /IgnoredNamespace: .*\n {4}shop \(1 rules\)\n/);
  t.notMatch(
    (
      await sluice(
        'import',
        'f5-ces',
        input,
        '--ces-config',
        file('ces-conf.yaml', 'tenant: [{ name: a, namespaces: "x,shop" }]\n'),
      )
    ).err,
    /IgnoredNamespace/,
  );
  const eip = file(
    'eip.yaml',
    'apiVersion: bigip.io/v1alpha1\nkind: ExternalIPRule\nmetadata: { name: e, namespace: shop }\nspec: { externalAddresses: [203.0.113.1], services: [web] }\n',
  );
  t.match(await sluice('import', 'f5-ces', eip), { code: 3, out: '', err: /ExternalIPRule\/shop\/e: .*EgressIP/ });
});

t.test('ten thousand objects', async (t) => {
  const services = Array.from({ length: 5000 }, (_, i) =>
    exsvc(`ns-${i % 500}/s${i}`, `10.${i >> 8}.${i & 255}.0/24`, dns),
  );
  const rules = Array.from({ length: 5000 }, (_, i) =>
    ces('NamespaceEgressRule', `ns-${i % 500}/r${i}`, to(i % 2 ? 'accept' : 'drop', `s${i}`)),
  );
  const started = process.cpuUsage();
  const { code, out, err } = await sluice('import', 'f5-ces', file('many.yaml', [...services, ...rules].join('')));
  const { user } = process.cpuUsage(started);
  t.equal(code, 0);
  t.match(err, /10000 objects read: 10000 carried over/);
  t.equal(out.split('\n---\n').length, 10_000);
  t.ok(user < 60_000_000, `seconds of a processor: ${user / 1e6}`);
  const remarks = Array.from({ length: 200 }, (_, i) => ({ object: `o${i}`, reason: 'Same', message: 'm' }));
  const text = reportText({
    format: 'x',
    counts: { read: 0, passedOver: 0, written: 0, unlisted: 0 },
    objects: [],
    notCarried: remarks,
    changed: [],
    notes: [],
  });
  t.match(text, /Same \(200\)\n/);
  t.match(text, /and 150 more/);
  t.ok(text.split('\n').length < 60, 'a person is not shown all of it');
});
