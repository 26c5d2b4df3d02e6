/**
 * `sluice lint` of manifests taken together and `sluice simulate`, through the command: a table with a finding of every
 * code and, for most, its neighbour that is none; the forms of output and the exit codes; and that the documents list
 * what there is. That the findings are true and the differences exact is test/property/analysis.test.ts's business.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t from 'tap';
import { trafficText } from '../../cli/simulate.ts';
import { analyse, analysisCodes } from '../../controller/analyse.ts';
import { loadDirectory } from '../../controller/observe/directory.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { changesOf } from '../../policy/analysis/difference.ts';
import { ruleCodes } from '../../policy/analysis/rules.ts';
import { compileCarriage } from '../../policy/carriage.ts';
import { sluice, sluiceInColours } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-analysis-'));
t.teardown(() => rmSync(dir, { recursive: true }));

let count = 0;
/** A directory with one file; returns its path. */
function directory(...documents: string[]): string {
  const path = join(dir, `m${count++}`);
  mkdirSync(path);
  writeFileSync(join(path, 'all.yaml'), documents.join('\n---\n'));
  return path;
}

const sluiceObject = (kind: string, name: string, namespace: string | undefined, spec: string): string =>
  `apiVersion: sluice.dev/v1alpha1
kind: ${kind}
metadata: { name: ${name}${namespace === undefined ? '' : `, namespace: ${namespace}`} }
spec: ${spec}`;
const cgr = (name: string, spec: string): string => sluiceObject('ClusterEgressRule', name, undefined, spec);
const nsgr = (name: string, spec: string): string => sluiceObject('NamespaceEgressRule', name, 'shop', spec);
const svcgr = (name: string, spec: string): string => sluiceObject('ServiceEgressRule', name, 'shop', spec);
const exsvc = (name: string, namespace: string, spec: string): string =>
  sluiceObject('ExternalService', name, namespace, spec);
const namespace = (name: string, team = 'a'): string =>
  `apiVersion: v1\nkind: Namespace\nmetadata: { name: ${name}, labels: { team: ${team} } }`;
const pod = (space: string, name: string, host: number): string => `apiVersion: v1
kind: Pod
metadata: { name: ${name}, namespace: ${space}, uid: ${space}-${name}, labels: { app: ${name} } }
spec: { nodeName: node-a, serviceAccountName: ${name} }
status: { phase: Running, podIPs: [{ ip: 10.244.1.${host} }, { ip: "fd00:244:1::${host}" }] }`;
const pool = `apiVersion: sluice.dev/v1alpha1
kind: GatewayPool
metadata: { name: edge }
spec:
  namespaceSelector: { matchLabels: { team: a } }
  gateways: [{ name: gw-a, internalAddress: 10.0.0.31 }]
  interfaces: { internal: inside, external: { name: outside } }
  nextHops: { v4: [10.0.0.64], v6: ["fd00:10::64"] }
  steering: { mode: VXLAN, vni: 7790 }
  clusterCIDRs: [10.244.0.0/16]
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIPPool
metadata: { name: edge }
spec: { gatewayPool: edge, ranges: [203.0.113.0/24, "2001:db8:113::/64"], namespaceSelector: {} }`;
const egressIP = (name: string, spec: string): string =>
  sluiceObject('EgressIP', name, undefined, `{ pool: edge, ${spec} }`);
const world = [
  `apiVersion: v1\nkind: Node\nmetadata: { name: node-a }\nspec: { podCIDRs: [10.244.1.0/24] }
status: { addresses: [{ type: InternalIP, address: 10.0.0.21 }] }`,
  namespace('shop'),
  namespace('sluice-system', 'b'),
  pod('shop', 'front', 11),
  pod('shop', 'back', 12),
  `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: front-1, namespace: shop, labels: { kubernetes.io/service-name: front } }
addressType: IPv4
endpoints: [{ addresses: [10.244.1.11], conditions: { ready: true } }]`,
  exsvc('half', 'shop', '{ addresses: [198.51.100.0/25] }'),
  exsvc('rest', 'shop', '{ addresses: [198.51.100.128/25] }'),
  exsvc('net', 'shop', '{ addresses: [198.51.100.0/24], ports: [{ name: a, protocol: TCP, port: "1-65535" }] }'),
  exsvc(
    'web',
    'shop',
    '{ addresses: [198.51.100.80, "2001:db8::80"], ports: [{ name: a, protocol: TCP, port: "443" }] }',
  ),
  exsvc('web', 'sluice-system', '{ addresses: [198.51.100.80, "2001:db8::80"] }'),
];
const shop = [pool, egressIP('shop', 'addresses: [203.0.113.7, "2001:db8:113::7"], namespaces: [shop]')];
const serve = svcgr('serve', '{ action: accept, service: front, externalServices: [web] }');

interface Found {
  severity: string;
  code: string;
  object: string;
  file: string;
  line: number;
  message: string;
}
async function lint(...documents: string[]): Promise<Found[]> {
  const { out } = await sluice('lint', '-o', 'json', directory(...world, ...documents));
  return JSON.parse(out).findings as Found[];
}

const MON = 'schedule: [{ days: [Mon], from: "08:00", to: "17:00", timezone: UTC }]';
type Row = [name: string, documents: string[], found: [object: string, code: string, message: RegExp][]];
const rows: Row[] = [
  ['what the other rows begin with', [serve], []],
  [
    'an earlier rule that names more',
    [serve, svcgr('all', '{ action: accept, service: front, priority: 1, externalServices: ["*"] }')],
    [['ServiceEgressRule/shop/serve', 'Shadowed', /service\/shop\/all comes first .* lower priority/]],
  ],
  [
    'two earlier rules that together name more',
    [
      svcgr('a', '{ action: drop, service: front, priority: 1, externalServices: [half] }'),
      svcgr('b', '{ action: accept, service: front, priority: 2, externalServices: [rest] }'),
      svcgr('c', '{ action: accept, service: front, priority: 3, externalServices: [net] }'),
    ],
    [['ServiceEgressRule/shop/c', 'Shadowed', /service\/shop\/a, service\/shop\/b come first/]],
  ],
  [
    'an earlier rule that names more, whatever else it says',
    [
      serve,
      svcgr(
        'all',
        '{ action: accept, service: front, priority: 1, externalServices: ["*"], logging: All, maxConnections: 4, bandwidth: 1Mbit }',
      ),
    ],
    [['ServiceEgressRule/shop/serve', 'Shadowed', /service\/shop\/all comes first/]],
  ],
  [
    'two earlier redirects, one a family, before what has ports',
    [
      serve,
      svcgr(
        'to4',
        '{ action: accept, service: front, priority: 1, externalServices: [web], redirect: { address: 192.0.2.1 } }',
      ),
      svcgr(
        'to6',
        '{ action: accept, service: front, priority: 2, externalServices: [web], redirect: { address: "2001:db8:2::1" } }',
      ),
    ],
    [['ServiceEgressRule/shop/serve', 'Shadowed', /service\/shop\/to4, service\/shop\/to6 come first/]],
  ],
  [
    'an earlier redirect, before what pings too',
    [
      svcgr(
        'to4',
        '{ action: accept, service: front, priority: 1, externalServices: [half], redirect: { address: 192.0.2.1 } }',
      ),
      svcgr('ping', '{ action: accept, service: front, priority: 2, externalServices: [half] }'),
    ],
    [],
  ],
  [
    'a redirect to the other family',
    [
      exsvc('v6', 'shop', '{ addresses: ["2001:db8::/64"] }'),
      svcgr('to4', '{ action: accept, service: front, externalServices: [v6], redirect: { address: 192.0.2.1 } }'),
    ],
    [['ServiceEgressRule/shop/to4', 'MatchesNothing', /takes TCP, UDP and SCTP over IPv4 only/]],
  ],
  [
    'accepts above that a service rule completes',
    [
      exsvc('all', 'sluice-system', '{ addresses: [0.0.0.0/0, "::/0"] }'),
      cgr('fine', '{ action: accept, externalServices: [all] }'),
      nsgr('fine', '{ action: accept, externalServices: [web] }'),
      serve,
    ],
    [],
  ],
  [
    'an accept above for where a redirect leads',
    [
      exsvc('proxy', 'shop', '{ addresses: [192.0.2.1] }'),
      nsgr('hand-on', '{ action: accept, externalServices: [proxy] }'),
      svcgr('to', '{ action: accept, service: front, externalServices: [web], redirect: { address: 192.0.2.1 } }'),
    ],
    [],
  ],
  [
    'an accept above for where no redirect leads',
    [
      exsvc('proxy', 'shop', '{ addresses: [192.0.2.1] }'),
      nsgr('hand-on', '{ action: accept, externalServices: [proxy] }'),
      svcgr('to', '{ action: accept, service: front, externalServices: [web] }'),
    ],
    [['NamespaceEgressRule/shop/hand-on', 'PermitsNothing', /only hands on/]],
  ],
  [
    'ICMP of the other family',
    [
      exsvc('ping', 'shop', '{ addresses: [198.51.100.1], ports: [{ name: p, protocol: ICMPv6, port: "128" }] }'),
      svcgr('ping', '{ action: accept, service: front, externalServices: [ping] }'),
    ],
    [['ServiceEgressRule/shop/ping', 'MatchesNothing', /ICMP of one IP version and the addresses of the other/]],
  ],
  [
    'earlier for IPv4 only',
    [svcgr('a', '{ action: drop, service: front, priority: 1, externalServices: [net] }'), serve],
    [],
  ],
  [
    'earlier for some pods only',
    [
      nsgr(
        'some',
        '{ action: accept, podSelector: { matchLabels: { app: front } }, priority: 1, externalServices: [web] }',
      ),
      nsgr('all', '{ action: drop, externalServices: [web] }'),
      serve,
    ],
    [],
  ],
  [
    'earlier at times only',
    [serve, svcgr('all', `{ action: accept, service: front, priority: 1, externalServices: ["*"], ${MON} }`)],
    [],
  ],
  [
    'later at times only',
    [
      svcgr('late', `{ action: accept, service: front, externalServices: [web], ${MON} }`),
      svcgr('all', '{ action: accept, service: front, priority: 1, externalServices: ["*"] }'),
    ],
    [['ServiceEgressRule/shop/late', 'Shadowed', /service\/shop\/all/]],
  ],
  [
    'under a cluster reject',
    [serve, cgr('no', '{ action: reject, externalServices: [web] }')],
    [['ServiceEgressRule/shop/serve', 'Contradicted', /cluster\/no in a context above forbids/]],
  ],
  ['under a cluster reject at times', [serve, cgr('no', `{ action: reject, externalServices: [web], ${MON} }`)], []],
  [
    'a veto of what the cluster accepts decisively',
    [
      cgr('must', '{ action: accept-decisively, externalServices: [web] }'),
      nsgr('veto', '{ action: drop, externalServices: [web] }'),
    ],
    [['NamespaceEgressRule/shop/veto', 'Overruled', /cluster\/must .* make that an accept/]],
  ],
  [
    'a veto of a part that the cluster does not accept',
    [
      cgr('must', '{ action: accept-decisively, externalServices: [web] }'),
      nsgr('veto', '{ action: drop, externalServices: [half] }'),
    ],
    [],
  ],
  [
    'a drop under a drop',
    [cgr('no', '{ action: drop, externalServices: [web] }'), nsgr('veto', '{ action: drop, externalServices: [web] }')],
    [['NamespaceEgressRule/shop/veto', 'NeverReached', /cluster\/no comes first/]],
  ],
  [
    'an accept that nothing follows',
    [nsgr('hope', '{ action: accept, externalServices: [rest] }'), serve],
    [['NamespaceEgressRule/shop/hope', 'PermitsNothing', /namespace context only hands on/]],
  ],
  [
    'an accept that a decisive one follows',
    [
      cgr('hope', '{ action: accept, externalServices: [web] }'),
      nsgr('yes', '{ action: accept-decisively, externalServices: [web] }'),
    ],
    [],
  ],
  [
    'an accept that something follows at times',
    [
      nsgr('hope', '{ action: accept, externalServices: [web] }'),
      svcgr('serve', `{ action: accept, service: front, externalServices: [web], ${MON} }`),
    ],
    [],
  ],
  [
    'selectors',
    [serve, nsgr('typo', '{ action: drop, podSelector: { matchLabels: { app: fornt } }, externalServices: [web] }')],
    [['NamespaceEgressRule/shop/typo', 'SelectsNoPod', /no pod of namespace shop/]],
  ],
  [
    'service accounts',
    [serve, cgr('who', '{ action: drop, serviceAccounts: [shop/nobody], externalServices: [web] }')],
    [['ClusterEgressRule/who', 'UnknownServiceAccount', /no pod of namespace shop has the service account nobody/]],
  ],
  [
    'endpoints',
    [serve, svcgr('ghost', '{ action: accept, service: ghost, externalServices: [web] }')],
    [['ServiceEgressRule/shop/ghost', 'NoEndpoints', /ghost lists no pod/]],
  ],
  [
    'external services',
    [serve, svcgr('gone', '{ action: accept, service: front, externalServices: [gone] }')],
    [['ServiceEgressRule/shop/gone', 'ExternalServiceNotFound', /shop\/gone/]],
  ],
  [
    'an external service whose list is empty',
    [
      serve,
      'apiVersion: v1\nkind: ConfigMap\nmetadata: { name: lists, namespace: shop }\ndata: { none: "# nobody" }',
      exsvc('none', 'shop', '{ addressesFrom: [{ configMapRef: { name: lists, key: none }, format: Text }] }'),
      nsgr('block', '{ action: drop, externalServices: [none] }'),
    ],
    [['NamespaceEgressRule/shop/block', 'MatchesNothing', /fill their lists/]],
  ],
  [
    'an external service whose list is not known',
    [
      serve,
      exsvc('far', 'shop', '{ addressesFrom: [{ url: "https://lists.example.com/a", format: Text }] }'),
      svcgr('far', '{ action: accept, service: front, priority: 1, externalServices: [far, web] }'),
    ],
    [
      ['ExternalService/shop/far', 'HostNotAllowed', /./],
      ['ServiceEgressRule/shop/far', 'ListNotRead', /./],
    ],
  ],
  [
    'ICMP that begins nothing, beside some that does',
    [
      serve,
      exsvc(
        'icmp',
        'shop',
        `{ addresses: [198.51.100.0/24], ports: [{ name: ping, protocol: ICMP, port: "0,8" }, { name: six, protocol: 58, port: "129,139/1" },
          { name: errors, protocol: ICMP, port: "0,3/4,11" }, { name: far, protocol: ICMPv6, port: "8" }] }`,
      ),
    ],
    [
      ['ExternalService/shop/icmp', 'BeginsNothing', /ports errors: ICMP 0,3\/4,11 begins no flow/],
      ['ExternalService/shop/icmp', 'BeginsNothing', /ports far: ICMPv6 8 /],
    ],
  ],
  [
    'an EgressIP of pods that are not there',
    [serve, egressIP('none', 'count: 1, namespaces: [shop], podSelector: { matchLabels: { app: none } }')],
    [['EgressIP/none', 'ServesNoPod', /podSelector/]],
  ],
  [
    'an EgressIP of a namespace that is not there',
    [serve, egressIP('none', 'count: 1, namespaces: [shpo]')],
    [['EgressIP/none', 'NoSuchNamespace', /no namespace shpo/]],
  ],
  [
    'an EgressIP of pods that all have another',
    [serve, egressIP('none', 'count: 1, namespaces: [shop]')],
    [['EgressIP/shop', 'NamespaceTaken', /served by EgressIP none/]],
  ],
];

t.test('lint: every code, and its neighbour that is none', async (t) => {
  const met = new Set<string>();
  for (const [name, documents, expected] of rows) {
    const found = await lint(...shop, ...documents);
    t.same(
      found.map(({ object, code }) => [object, code]),
      expected.map(([object, code]) => [object, code]),
      name,
    );
    for (const [index, [, , message]] of expected.entries()) t.match(found[index]?.message, message, name);
    for (const { severity, file, line, code } of found) {
      t.match([severity, file.endsWith('all.yaml'), line > 1], ['warning', true, true], `${name}: where it is`);
      met.add(code);
    }
  }
  const accept = (text: string): string =>
    text.replace('namespaceSelector', 'defaultAction: Accept\n  namespaceSelector');
  const hope = nsgr('hope', '{ action: accept, externalServices: [rest] }');
  t.same(
    await lint(
      ...shop.map((text) => text.replace('spec:\n', `spec:\n  ${accept('').trim()}defaultAction: Accept\n`)),
      hope,
    ),
    [],
    'default Accept permits',
  );

  t.match(await lint(pool, serve), [
    {
      object: 'Namespace/shop',
      code: 'NoEgressIP',
      message: /its pods have no EgressIP and leave as if Sluice were absent/,
    },
  ]);
  t.match(await lint(pool.replace('spec:\n', 'spec:\n  unassigned: Drop\n'), serve), [
    { code: 'NoEgressIP', message: /are let out nowhere/ },
  ]);
  t.match(
    await lint(
      pool,
      egressIP('some', 'count: 1, namespaces: [shop], podSelector: { matchLabels: { app: back } }'),
      serve,
    ),
    [{ code: 'NoEgressIP', message: /1 of its 2 pods/ }],
  );
  t.match(await lint(...shop.map((text) => text.replace('team: a', 'team: c')), serve), [
    { object: 'Namespace/shop', code: 'NotCarried' },
  ]);
  const block = nsgr('block', '{ action: drop, externalServices: ["*"] }').replace(
    'namespace: shop',
    'namespace: shpo',
  );
  t.match(await lint(...shop, block), [
    { object: 'NamespaceEgressRule/shpo/block', code: 'NoSuchNamespace', message: /there is no namespace shpo/ },
  ]);
  t.same(await lint(serve), [], 'without a GatewayPool nothing is known of egress');
  met.add('NoEgressIP').add('NotCarried');

  const { snapshot } = await loadDirectory(
    directory(
      ...world,
      nsgr('a', '{ action: drop, externalServices: [half] }'),
      nsgr('b', '{ action: drop, externalServices: [half] }'),
      serve,
    ),
  );
  t.match(analyse(snapshot, new Map(), 3), [
    {
      object: 'NamespaceEgressRule/shop/a',
      code: 'NotJudged',
      message: /^there is too much to compare it with: whether this rule and 2 others are ever reached/,
    },
  ]);
  t.match(analyse(snapshot), [{ code: 'Shadowed' }]);
  met.add('NotJudged');

  t.same(
    [...Object.keys(ruleCodes), ...Object.keys(analysisCodes)].filter((code) => !met.has(code)),
    [],
    'all were met',
  );
});

t.test('lint: without pods, only what holds for any', async (t) => {
  const path = directory(
    namespace('shop'),
    exsvc('web', 'shop', '{ addresses: [198.51.100.80] }'),
    nsgr('a', '{ action: accept, externalServices: ["*"], priority: 1 }'),
    nsgr('b', '{ action: drop, externalServices: [web], podSelector: { matchLabels: { app: x } } }'),
    nsgr('c', '{ action: drop, externalServices: [web], podSelector: { matchLabels: { app: y } }, priority: 0 }'),
  );
  t.match(await sluice('lint', path), {
    code: 0,
    out: /all\.yaml:\d+: warning: NamespaceEgressRule\/shop\/b: Shadowed: is never reached: namespace\/shop\/a comes first .*\n$/,
    err: '1 files, 5 objects, 0 errors, 1 warnings\n',
  });
});

t.test('lint: without pods, nothing that a pod may undo', async (t) => {
  const web = exsvc('web', 'shop', '{ addresses: [198.51.100.80] }');
  const b = '{ action: drop, externalServices: [web], priority: 2000 }';
  const rows: [string, string[], string[]][] = [
    [
      'an account before all',
      [nsgr('a', '{ action: accept, externalServices: ["*"], serviceAccounts: [x] }'), nsgr('b', b)],
      [],
    ],
    [
      'an account before the same',
      [
        nsgr('a', '{ action: accept, externalServices: ["*"], serviceAccounts: [x] }'),
        nsgr('b', '{ action: drop, externalServices: [web], priority: 2000, serviceAccounts: [x] }'),
      ],
      ['b'],
    ],
    [
      'another service',
      [
        svcgr('a', '{ action: accept, service: one, externalServices: ["*"] }'),
        svcgr('b', '{ action: drop, service: two, externalServices: [web], priority: 2000 }'),
      ],
      [],
    ],
    [
      'the same service',
      [
        svcgr('a', '{ action: accept, service: one, externalServices: ["*"] }'),
        svcgr('b', '{ action: drop, service: one, externalServices: [web], priority: 2000 }'),
      ],
      ['b'],
    ],
    [
      'a namespace of which no label is known',
      [
        cgr(
          'a',
          '{ action: drop, externalServices: ["*"], namespaceSelector: { matchExpressions: [{ key: x, operator: DoesNotExist }] } }',
        ),
        nsgr('b', '{ action: accept-decisively, externalServices: [web] }'),
      ],
      [],
    ],
    [
      'a namespace of which the labels are known',
      [
        namespace('shop'),
        cgr(
          'a',
          '{ action: drop, externalServices: ["*"], namespaceSelector: { matchExpressions: [{ key: x, operator: DoesNotExist }] } }',
        ),
        nsgr('b', '{ action: accept-decisively, externalServices: [web] }'),
      ],
      ['b'],
    ],
  ];
  const useless = new Set(Object.keys(ruleCodes));
  for (const [name, documents, expected] of rows) {
    const { out } = await sluice('lint', '-o', 'json', directory(web, ...documents));
    const found = (JSON.parse(out).findings as Found[]).filter(({ code }) => useless.has(code));
    t.same(
      found.map(({ object }) => object.split('/').at(-1)),
      expected,
      name,
    );
  }
});

t.test('lint: forms and exit codes', async (t) => {
  const clean = directory(...world, ...shop, serve);
  const warned = directory(
    ...world,
    ...shop,
    serve,
    nsgr('typo', '{ action: drop, podSelector: { matchLabels: { app: z } }, externalServices: [web] }'),
  );
  const bad = directory('kind: Pod');
  for (const [args, code] of [
    [[clean], 0],
    [['--strict', clean], 0],
    [[warned], 0],
    [['--strict', warned], 1],
    [[bad], 1],
    [['-o', 'wide', clean], 2],
  ] as const) {
    t.equal((await sluice('lint', ...args)).code, code, args.join(' '));
  }
  t.match(JSON.parse((await sluice('lint', '-o', 'json', bad)).out), {
    findings: [{ severity: 'error', code: 'Invalid', file: /all\.yaml$/, line: 1 }],
    errors: 2,
    warnings: 0,
  });
  const named = JSON.parse((await sluice('lint', '-o', 'json', directory(nsgr('typo', '{ action: allow }')))).out);
  for (const { object } of named.findings)
    t.equal(object, 'NamespaceEgressRule/shop/typo', 'a refused object is named');
  t.match(
    (await sluice('lint', '-o', 'yaml', warned)).out,
    /^findings:\n {2}- file: .*\n {4}line: \d+\n.*object: NamespaceEgressRule/s,
  );
});

const ESCAPE = '\u001b[';
t.test('simulate', async (t) => {
  const before = directory(...world, ...shop, serve);
  const after = (...documents: string[]): string => directory(...documents);
  const run = async (draft: string, ...args: string[]) => {
    const { code, out, err } = await sluice('simulate', draft, '--source', `directory:${before}`, ...args);
    return { code, out, err };
  };
  const json = async (draft: string, ...args: string[]) => JSON.parse((await run(draft, '-o', 'json', ...args)).out);

  t.match(await run(before), { code: 0, out: '', err: /^2 pods compared; changes: 0 of verdict/ }, 'nothing changes');
  t.match(await run(before, '-n', 'misspelt'), { code: 1, err: /there is no namespace "misspelt"/ });
  const none = await json(before);
  t.same(none, { changes: [], egress: [], added: [], removed: [], compared: 2 });

  const veto = after(cgr('veto', '{ action: reject, externalServices: [web], priority: 1 }'));
  t.match(await json(veto, '--overlay'), {
    changes: [
      {
        namespace: 'shop',
        pods: ['front'],
        kind: 'verdict',
        destinations: ['198.51.100.80/32', '2001:db8::80/128'],
        traffic: [{ protocols: [6, 6], ports: [443, 443] }],
        before: { verdict: 'accept', reason: 'service-accept', rule: 'service/shop/serve' },
        after: { verdict: 'reject', reason: 'rule', rule: 'cluster/veto' },
      },
      { pods: ['back'], before: { verdict: 'drop', reason: 'default-action' }, traffic: { length: 4 } },
      { pods: ['front'], before: { verdict: 'drop', reason: 'default-action' } },
    ],
  });
  const table = await run(veto, '--overlay');
  t.match(table, {
    code: 3,
    out: /^NAMESPACE +PODS +DESTINATION +TRAFFIC +BEFORE +AFTER\nshop +1: front +198\.51\.100\.80, 2001:db8::80 +TCP 443 +accept \(service\/shop\/serve\) +reject \(cluster\/veto\)\n/,
  });
  t.notOk(table.out.includes(ESCAPE), 'no colours where there is no terminal');
  const coloured = await sluiceInColours('simulate', veto, '--overlay', '--source', `directory:${before}`);
  t.ok(coloured.out.includes(`${ESCAPE}31mreject (cluster/veto)`), 'colours on a terminal');
  t.match(await run(veto, '--overlay', '-n', 'sluice-system'), { code: 0, err: /^0 pods compared/ }, 'one namespace');
  t.match((await run(veto, '--overlay', '-o', 'yaml')).out, /^changes:\n {2}- namespace: shop\n/);

  const slower = after(
    svcgr('serve', '{ action: accept, service: front, externalServices: [web], maxConnections: 5 }'),
  );
  t.match(await json(slower, '--overlay'), {
    changes: [
      { pods: ['front'], kind: 'limits', before: { limits: undefined }, after: { rule: 'service/shop/serve' } },
    ],
  });
  t.match(await run(slower, '--overlay'), {
    code: 3,
    out: / accept \(service\/shop\/serve\) +accept \(service\/shop\/serve\), limited by service\/shop\/serve \(5 connections at once\)\n$/,
    err: /0 of verdict, 0 of address, 1 of limits, 0 only of the deciding rule/,
  });

  // The draft alone, without pods, takes all away and says so.
  t.match(await run(veto), {
    code: 3,
    out: /Pods not in the draft: shop\/back, shop\/front/,
    err: /no pods at all: --overlay/,
  });
  const grown = after(...world, ...shop, serve, pod('shop', 'third', 13));
  t.match(await run(grown), { code: 3, out: 'Pods only in the draft: shop/third\n', err: /1 pods more, 0 fewer/ });

  const moved = after(egressIP('shop', 'addresses: [203.0.113.9], namespaces: [shop]'));
  const address = await json(moved, '--overlay');
  t.match(address.egress, [
    { namespace: 'shop', pods: ['back', 'front'], family: 4, before: '203.0.113.7', after: '203.0.113.9' },
    { family: 6, before: '2001:db8:113::7', after: null },
  ]);
  t.match(
    address.changes.filter(({ kind }: { kind: string }) => kind === 'egress'),
    [
      {
        pods: ['front'],
        destinations: ['198.51.100.80/32'],
        before: { egress: '203.0.113.7' },
        after: { egress: '203.0.113.9' },
      },
    ],
    'only where something leaves',
  );
  t.match(await run(moved, '--overlay'), { code: 3, out: /shop +2: back, front +IPv6 +2001:db8:113::7 +none\n/ });

  // What is settled before any rule, and audit, change flows too.
  const edge = (text: string): string => pool.replace('spec:\n', `spec:\n  ${text}\n`);
  const bypass = await json(after(edge('excludedCIDRs: [198.51.100.80/32]')), '--overlay');
  t.match(bypass.changes[0], {
    pods: ['front'],
    destinations: ['198.51.100.80/32'],
    before: { verdict: 'accept' },
    after: { verdict: 'bypass', reason: 'excludedCIDRs' },
  });
  t.match(await json(after(edge('mode: Audit')), '--overlay'), {
    changes: [
      { after: { verdict: 'accept', wouldHave: 'drop', reason: 'default-action' } },
      { after: { verdict: 'accept', wouldHave: 'drop' } },
    ],
  });
  t.match((await run(after(edge('mode: Audit')), '--overlay')).out, / accept, would drop \(default-action\)\n/);
  t.match((await json(after(edge('defaultAction: Accept')), '--overlay')).changes, [
    { before: { verdict: 'drop' }, after: { verdict: 'accept', reason: 'default-action' } },
    { before: { verdict: 'drop' }, after: { verdict: 'accept' } },
  ]);
  t.match((await json(after(edge('unassigned: Drop')), '--overlay')).changes, [], 'all have an egress IP');
  t.match((await json(after(pool.replace('{ team: a }', '{ team: c }')), '--overlay')).changes[0], {
    pods: ['front'],
    before: { verdict: 'accept' },
    after: { verdict: 'bypass', reason: 'no-pool' },
  });

  const limited = shop.map((text) =>
    text.replace('namespaces: [shop]', 'namespaces: [shop], maxConnections: 7, bandwidth: { egress: 5Mbit }'),
  );
  const under = 'EgressIP shop (7 connections at once), EgressIP shop (5 Mbit/s to the outside)';
  t.match((await json(after(...world, ...limited, serve))).changes, [
    { pods: ['front'], kind: 'limits', before: { limits: undefined }, after: { verdict: 'accept', limits: under } },
  ]);
  const inAudit = [cgr('none', '{ action: drop, externalServices: ["*"], priority: 9 }'), edge('mode: Audit')];
  const from = directory(...world, ...shop.slice(1), serve, ...inAudit);
  const { out } = await sluice(
    'simulate',
    directory(...world, ...limited.slice(1), serve, ...inAudit),
    '--source',
    `directory:${from}`,
    '-o',
    'json',
  );
  t.match(
    JSON.parse(out).changes[0],
    { kind: 'limits', after: { limits: 'EgressIP shop (7 connections at once)' } },
    'in audit bandwidth is not limited',
  );

  const tls = (more = ''): string[] => [
    exsvc(
      'tls',
      'shop',
      `{ addresses: [198.51.100.81], ports: [{ name: a, protocol: TCP }, { name: b, protocol: TCP, port: "443"${more} }] }`,
    ),
    svcgr('tls', '{ action: accept, service: front, externalServices: [tls] }'),
  ];
  const limitedPort = after(...world, ...shop, serve, ...tls(', bandwidth: 1Mbit'));
  const free = `directory:${directory(...world, ...shop, serve, ...tls())}`;
  const { changes } = JSON.parse((await sluice('simulate', limitedPort, '--source', free, '-o', 'json')).out);
  t.match(
    changes,
    [{ kind: 'limits', traffic: [{ protocols: [6, 6], ports: [443, 443] }] }],
    'a limit of a port within others',
  );
  t.equal(changes.length, 1);

  const led = [
    ...[...world, ...shop],
    exsvc('proxy', 'shop', '{ addresses: [192.0.2.1] }'),
    svcgr('to', '{ action: accept, service: front, externalServices: [half], redirect: { address: 192.0.2.1 } }'),
  ];
  const only80 = nsgr(
    'only80',
    '{ action: accept-decisively, externalServices: [proxy], redirect: { address: 192.0.2.1, port: 80 } }',
  );
  const two = await sluice('simulate', after(...led, only80), '--source', `directory:${after(...led)}`, '-o', 'json');
  const away = JSON.parse(two.out).changes.find(({ destinations }: { destinations: string[] }) =>
    destinations.includes('198.51.100.0/25'),
  );
  t.match(away, { before: { verdict: 'accept' }, after: { verdict: 'drop', reason: 'redirect' } });
  t.match(
    away.traffic.filter(({ protocols }: { protocols: number[] }) => protocols[0] === 6),
    [{ ports: [0, 79] }, { ports: [81, 65_535] }],
    'a port that a redirect leads to is one of its own',
  );

  // An object that says no age keeps the one that it has; a new one is younger, and so comes after it.
  const first = svcgr('aaa', '{ action: drop, service: front, externalServices: [web] }');
  t.same(await json(after(...world, ...shop, serve, first)), none);
  const both = directory(...world, ...shop, serve, first);
  const alone = await sluice('simulate', before, '--source', `directory:${both}`, '-o', 'json');
  t.match(JSON.parse(alone.out).changes, [
    { before: { rule: 'service/shop/aaa' }, after: { rule: 'service/shop/serve' } },
  ]);

  t.match(await run(after('kind: Pod')), { code: 1, err: /all\.yaml: .*expected.*sluice: the draft has 1 documents/s });
  t.equal((await run(join(dir, 'nowhere'))).code, 1);
  t.equal((await sluice('simulate', veto)).code, 2);
  t.equal((await run(veto, '-o', 'xml')).code, 2);
  const closed = after(cgr('veto', `{ action: reject, externalServices: [web], priority: 1, ${MON} }`));
  t.equal((await run(closed, '--overlay', '--at', '2026-11-23T12:00:00Z')).code, 3, 'a schedule, on a Monday');
  t.equal((await run(closed, '--overlay', '--at', '2026-11-24T12:00:00Z')).code, 0, 'on a Tuesday');
});

t.test('simulate: lists that are not known, and too much to compare', async (t) => {
  const before = directory(...world, ...shop, serve);
  const listed = directory(
    exsvc('far', 'shop', '{ addressesFrom: [{ url: "https://lists.example.com/a", format: Text }] }'),
    svcgr('far', '{ action: accept, service: front, externalServices: [far] }'),
  );
  t.match(await sluice('simulate', listed, '--overlay', '--source', `directory:${before}`), {
    code: 0,
    err: /^lists that are not known here .*: shop\/far\n/,
  });
  const { snapshot } = await loadDirectory(before);
  const gatewayPlan = plan(snapshot, emptyMemory(), noPeers(), 0).pools.get('edge');
  const workload = Object.values(gatewayPlan?.workloads ?? {})[0];
  if (gatewayPlan === undefined || workload === undefined) throw new Error('no plan');
  const side = { carriage: compileCarriage(gatewayPlan), workload };
  t.same(changesOf(side, side, { cells: 1e6 }), []);
  t.throws(() => changesOf(side, undefined, { cells: 10 }), { message: /^5 kinds of addresses with 3 of ports$/ });
});

t.test('simulate: traffic in words', async (t) => {
  const span = (first: number, last: number, ...ports: number[]) => ({
    first,
    last,
    ports: ports.length === 0 ? null : (ports as [number, number]),
  });
  for (const [spans, text] of [
    [[span(0, 255)], 'any'],
    [[span(6, 6, 443, 443), span(6, 6, 8000, 8100)], 'TCP 443,8000-8100'],
    [[span(1, 1, 2048, 2048), span(17, 17)], 'ICMP 8/0; UDP'],
    [[span(47, 47), span(48, 57), span(6, 6, 1, 1)], 'protocol 47; protocols 48-57; TCP 1'],
  ] as const) {
    t.equal(trafficText(spans), text);
  }
});

t.test('simulate.md lists every code', async (t) => {
  let root = import.meta.dirname;
  while (!existsSync(join(root, 'tsconfig.json'))) root = dirname(root);
  const text = readFileSync(join(root, 'docs/simulate.md'), 'utf8');
  const listed = [...text.matchAll(/^\| `([A-Z]\w+)`/gm)].map(([, code]) => code);
  t.same(listed.sort(), [...Object.keys(ruleCodes), ...Object.keys(analysisCodes)].sort());
});
