/**
 * The command `sluice`, in this process: exit codes, help of every verb, and lint, get and explain over small
 * manifests written here. What a terminal would see never has control characters that came from a manifest.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { parseAllDocuments } from 'yaml';
import { buildProgram } from '../../cli/program.ts';
import { parseTarget } from '../../cli/target.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { sluice } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-cli-'));
t.teardown(() => rmSync(dir, { recursive: true }));

function manifests(name: string, files: Record<string, string>): string {
  const path = join(dir, name);
  for (const [file, text] of Object.entries(files)) {
    mkdirSync(join(path, file, '..'), { recursive: true });
    writeFileSync(join(path, file), text);
  }
  return path;
}

const pod = (namespace: string, name: string, host: number, more = ''): string => `
apiVersion: v1
kind: Pod
metadata: { name: ${name}, namespace: ${namespace}, uid: ${namespace}-${name}, labels: { app: ${name} } }
spec: { nodeName: node-a${more} }
status: { phase: Running, podIPs: [{ ip: 10.244.1.${host} }, { ip: "fd00:244:1::${host}" }] }
---`;
const namespace = (name: string, team = 'a'): string => `
apiVersion: v1
kind: Namespace
metadata: { name: ${name}, labels: { team: ${team} } }
---`;
const service = (spaceName: string, name: string, spec: string): string => `
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata: { name: ${name}, namespace: ${spaceName} }
spec: ${spec}
---`;
const rule = (kind: string, name: string, spec: string): string => `
apiVersion: sluice.dev/v1alpha1
kind: ${kind}
metadata: { name: ${name}${kind === 'ClusterEgressRule' ? '' : ', namespace: billing'} }
spec: ${spec}
---`;

const cluster = `
apiVersion: v1
kind: Node
metadata: { name: node-a }
spec: { podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"] }
status: { addresses: [{ type: InternalIP, address: 10.0.0.21 }] }
---${namespace('billing')}${namespace('batch')}${namespace('outside', 'b')}${namespace('v4only')}
${pod('billing', 'pay-1', 11)}${pod('billing', 'host', 12, ', hostNetwork: true')}${pod('batch', 'job', 13)}
${pod('outside', 'out', 14)}${pod('v4only', 'four', 15)}
apiVersion: v1
kind: Service
metadata: { name: payments, namespace: billing }
spec: { selector: { app: pay-1 } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: payments-1, namespace: billing, labels: { kubernetes.io/service-name: payments } }
addressType: IPv4
endpoints: [{ addresses: [10.244.1.11], conditions: { ready: true } }]
`;
const network = `
apiVersion: sluice.dev/v1alpha1
kind: GatewayPool
metadata: { name: edge }
spec:
  namespaceSelector: { matchLabels: { team: a } }
  gateways: [{ name: gw-a, internalAddress: 10.0.0.31 }]
  interfaces: { internal: inside, external: { name: outside } }
  nextHops: { v4: [10.0.0.64], v6: ["fd00:10::64"] }
  steering: { mode: VXLAN, vni: 7790 }
  clusterCIDRs: [10.244.0.0/16, 10.0.0.0/24, "fd00:244::/32"]
  excludedCIDRs: [192.0.2.0/24]
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIPPool
metadata: { name: edge }
spec: { gatewayPool: edge, ranges: [203.0.113.101-203.0.113.110, "2001:db8:113::101-2001:db8:113::110"], namespaceSelector: {} }
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIP
metadata: { name: billing }
spec: { pool: edge, addresses: [203.0.113.101, "2001:db8:113::101"], namespaces: [billing] }
---
apiVersion: sluice.dev/v1alpha1
kind: EgressIP
metadata: { name: v4only }
spec: { pool: edge, addresses: [203.0.113.102], namespaces: [v4only] }
`;
const policy = [
  service('billing', 'web', '{ addresses: [198.51.100.80, "2001:db8:100::80"] }'),
  service('billing', 'other', '{ addresses: [198.51.100.90], ports: [{ name: tls, protocol: TCP, port: "443" }] }'),
  rule('NamespaceEgressRule', 'partners', '{ action: accept, externalServices: [web, other] }'),
  service(
    'billing',
    'ping',
    `{ addresses: [198.51.100.70, "2001:db8:100::70"], ports: [
      { name: four, protocol: ICMP, port: "8,13/1" }, { name: six, protocol: ICMPv6, port: "128" }] }`,
  ),
  rule('ServiceEgressRule', 'pay', '{ action: accept, service: payments, externalServices: [web, ping] }'),
  rule('ClusterEgressRule', 'no-telnet', '{ action: reject, externalServices: ["telnet"], priority: 5 }'),
  service('sluice-system', 'telnet', '{ addresses: [0.0.0.0/0], ports: [{ name: t, protocol: TCP, port: "23" }] }'),
].join('');
const good = manifests('good', { 'cluster.yaml': cluster, 'network.yaml': network, 'policy.yml': policy });

t.test('exit codes and help', async (t) => {
  const rows: [string[], number][] = [
    [[], 2],
    [['--help'], 0],
    [['--version'], 0],
    [['dance'], 2],
    [['get'], 2],
    [['get', 'pods'], 2],
    [['get', 'pods', '--source', 'kubernetes'], 2],
    [['get', 'shoes', '--source', `directory:${good}`], 2],
    [['get', 'pods', '--source', `directory:${dir}/none`], 1],
    [['lint'], 2],
    [['lint', `${dir}/none`], 1],
    [['gateway', '--name', 'gw-a'], 2],
    [['gateway', '--name', 'GW_A', '--controller', 'https://10.0.0.1:1', '--certs', dir, '--state', dir], 2],
    [['gateway', '--name', 'gw-a', '--controller', 'http://10.0.0.1:1', '--certs', dir, '--state', dir], 2],
    [['certs', 'issue', 'king', 'a', '--dir', dir], 2],
    [['certs', 'issue', 'node', '../a', '--dir', dir], 2],
    [['certs', 'issue', 'node', 'a', '--dir', `${dir}/none`], 1],
    [['certs', 'token', 'controller', 'a', '--dir', dir, '--state', dir], 2],
    [['certs', 'token', 'node', 'a', '--dir', `${dir}/none`, '--state', dir], 1],
    [['enrol', '--controller', 'https://10.0.0.1:1', '--certs', dir], 2],
    [['enrol', '--controller', 'http://10.0.0.1:1', '--token', 'x', '--certs', dir], 2],
    [['enrol', '--controller', 'https://10.0.0.1:1', '--token', 'x', '--certs', dir], 2],
    [['explain', '--source', `directory:${good}`, '--from', 'pay-1', '--to', '198.51.100.80:443'], 2],
    [['explain', '--source', `directory:${good}`, '--from', 'billing/pay-1', '--to', 'example.com:443'], 2],
    [
      ['explain', '--source', `directory:${good}`, '--from', 'billing/pay-1', '--to', '1.2.3.4', '--protocol', 'tcp'],
      2,
    ],
    [
      [
        'explain',
        '--source',
        `directory:${good}`,
        '--from',
        'billing/pay-1',
        '--to',
        '1.2.3.4:icmp/8',
        '--protocol',
        'udp',
      ],
      2,
    ],
  ];
  for (const [args, code] of rows) t.equal((await sluice(...args)).code, code, `sluice ${args.join(' ')}`);
  const verbs = (await buildProgram()).commands;
  t.same(
    verbs.map((verb) => verb.name()),
    [
      'run',
      'controller',
      'gateway',
      'node',
      'certs',
      'enrol',
      'lint',
      'get',
      'explain',
      'flows',
      'suggest',
      'simulate',
      'confirm',
      'drain',
      'undrain',
      'import',
      'lab',
    ],
  );
  for (const verb of verbs) {
    const helps: string[] = [];
    for (const command of [verb, ...verb.commands]) {
      const { code, out } = await sluice(verb.name(), ...(command === verb ? [] : [command.name()]), '--help');
      t.equal(code, 0);
      helps.push(out);
    }
    t.match(helps.join(''), /Examples?:?\n/, `the help of ${verb.name()} has an example`);
  }
  t.equal((await sluice('certs', 'ca', '--dir', join(dir, 'ca'))).code, 0);
  t.equal((await sluice('certs', 'ca', '--dir', join(dir, 'ca'))).code, 1, 'a CA is not replaced');
  const issued = await sluice('certs', 'issue', 'gateway', 'gw-a', '--dir', join(dir, 'ca'), '--address', '10.0.0.31');
  t.same([issued.code, issued.out], [0, `${join(dir, 'ca')}/gateway-gw-a\n`]);
});

t.test('lint', async (t) => {
  const clean = await sluice('lint', good);
  t.same([clean.code, clean.err], [0, '3 files, 23 objects, 0 errors, 0 warnings\n'], clean.out);
  const bad = manifests('bad', {
    'a.yaml': 'apiVersion: v1\nkind: Namespace\nmetadata: { name: billing }\n---\nkind: [\n',
    'b.yaml': [
      'apiVersion: sluice.dev/v1alpha1',
      'kind: ExternalService',
      'metadata: { name: web, namespace: billing }',
      'spec:',
      '  addresses:',
      '    - 198.51.100.80',
      '    - 010.0.0.1',
      '  prots: []',
    ].join('\n'),
    'c.yaml': rule('ServiceEgressRule', 'pay', '{ action: drop, service: payments, externalServices: [nothing] }'),
    'd.yaml': `apiVersion: v1\nkind: "Pod\\e[31m\\u202e"\nmetadata: { name: x }\n`,
    'e.yaml': `a: &a [x,x,x,x,x,x,x,x,x]\n${[...'bcdefgh'].map((c, i) => `${c}: &${c} [${Array(9).fill(`*${'abcdefg'[i]}`)}]`).join('\n')}\n`,
    'sub/f.yaml': 'apiVersion: v1\nkind: Namespace\nmetadata: { name: billing }\n',
    '.hidden.yaml': 'nonsense: [',
  });
  symlinkSync('nowhere', join(bad, 'g.yaml'));
  symlinkSync('..', join(bad, 'out'));
  const { code, out, err } = await sluice('lint', bad);
  t.equal(code, 1);
  t.match(out, /a\.yaml:\d: .* at line \d+, column \d+\n/, 'YAML errors have a line, and announce no excerpt');
  t.match(
    out,
    /b\.yaml:7: ExternalService\/billing\/web: Invalid: spec\.addresses\[1\]: expected .*, got "010\.0\.0\.1"/,
  );
  t.match(out, /b\.yaml:8: .*: spec\.prots: /, 'unknown fields are named');
  t.match(out, /c\.yaml:2: ServiceEgressRule\/billing\/pay: ExternalServiceNotFound: /);
  t.match(out, /e\.yaml:1: .*alias/i, 'an alias bomb is no more than an error');
  t.match(out, /sub\/f\.yaml:1: Namespace\/billing: Duplicate: is in .*a\.yaml:1 already/);
  t.match(out, /g\.yaml:1: a link that leads nowhere/, 'what cannot be read hides nothing else');
  t.match(out, /bad\/out\/:1: a link to a directory outside of the manifests/, 'nor is it passed over in silence');
  t.notMatch(out, /hidden/);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what must not be there
  t.notMatch(out + err, /[\x00-\x09\x0b-\x1f\u202e]/, 'nothing that steers a terminal');

  const useless = manifests('useless', {
    'all.yaml': [
      cluster,
      '---',
      network,
      '---',
      service('billing', 'web', '{ addresses: [198.51.100.80] }'),
      rule('NamespaceEgressRule', 'a-all', '{ action: accept, externalServices: ["*"], priority: 1 }'),
      rule('NamespaceEgressRule', 'shadowed', '{ action: drop, externalServices: [web] }'),
      rule('ServiceEgressRule', 'gone', '{ action: accept, service: payments, externalServices: [missing] }'),
      rule('ServiceEgressRule', 'nobody', '{ action: accept, service: ghosts, externalServices: [web] }'),
    ].join('\n'),
  });
  const lines = (await sluice('lint', useless)).out;
  t.match(
    lines,
    /warning: NamespaceEgressRule\/billing\/shadowed: Shadowed: is never reached: namespace\/billing\/a-all/,
  );
  t.match(lines, /ServiceEgressRule\/billing\/gone: .*missing/);
  t.match(lines, /warning: ServiceEgressRule\/billing\/nobody: NoEndpoints/);
  const alone = manifests('alone', {
    'all.yaml': [
      cluster,
      '---',
      network,
      '---',
      service('billing', 'web', '{ addresses: [198.51.100.80] }'),
      rule('NamespaceEgressRule', 'hopeful', '{ action: accept, externalServices: [web] }'),
    ].join('\n'),
  });
  t.match(
    (await sluice('lint', alone)).out,
    /warning: NamespaceEgressRule\/billing\/hopeful: PermitsNothing: can never permit/,
  );
  const accounts = manifests('accounts', {
    'all.yaml': [
      cluster,
      '---',
      rule(
        'ClusterEgressRule',
        'some',
        '{ action: drop, externalServices: ["*"], serviceAccounts: [default, x/y, typo] }',
      ),
      rule('NamespaceEgressRule', 'wrong', '{ action: drop, externalServices: ["*"], serviceAccounts: [pya] }'),
    ].join('\n'),
  });
  const named = (await sluice('lint', accounts)).out.split('\n').filter((line) => line.includes('account'));
  t.match(named, [
    /warning: ClusterEgressRule\/some: UnknownServiceAccount: no pod has the service account typo:/,
    /warning: NamespaceEgressRule\/billing\/wrong: UnknownServiceAccount: no pod of namespace billing has the service account pya:/,
  ]);
  t.equal(named.length, 2, 'an account of a namespace that is not among the manifests is not judged');
});

t.test('get', async (t) => {
  const status = (kind: string, name: string, text: string) =>
    manifests('shown', { [`.status/${kind}/${name}.yaml`]: text, 'n.yaml': network, 'bad.yaml': 'kind: Pod\n' });
  status('GatewayPool', 'edge', 'status: { conditions: [{ type: Accepted, status: "True" }, 7, null] }\n');
  status('EgressIP', 'v4only', 'status: [not, a, status]\n');
  const path = status(
    'EgressIP',
    'billing',
    'status:\n  addresses: [203.0.113.101]\n  conditions: [{ type: Programmed, status: "False", reason: GatewaysBehind, message: "gw-a \\e[31mis away" }]\n',
  );
  const source = ['--source', `directory:${path}`];
  const wide = await sluice('get', 'eip', '-o', 'wide', ...source);
  t.match(
    wide.out,
    /^NAME +POOL +ADDRESSES .*PROGRAMMED +AGE +PROBLEM\nbilling +edge +203\.0\.113\.101 .*False .*GatewaysBehind: gw-a \\u001b\[31mis away\nv4only +edge/,
  );
  t.equal(wide.err, '1 refused, see: sluice get errors\n');
  const part = (reason: string) =>
    `status: { conditions: [{ type: Accepted, status: "True", reason: ${reason}, message: in part }, { type: Programmed, status: "True" }] }\n`;
  for (const [reason, problem] of [
    ['ListInvalid', ' ListInvalid: in part'],
    ['OutOfSchedule', ''],
    ['Accepted', ''],
  ] as const) {
    status('EgressIP', 'v4only', part(reason));
    const { out } = await sluice('get', 'eip', 'v4only', '-o', 'wide', ...source);
    t.equal(/True( \S+: .*)?\n$/.exec(out.replace(/ +/g, ' '))?.[1] ?? '', problem, reason);
  }
  t.match((await sluice('get', 'GATEWAYPOOL', ...source)).out, /edge +VXLAN +Drop +Bypass +Enforce +True/);
  t.match(JSON.parse((await sluice('get', 'egressips', 'billing', '-o', 'json', ...source)).out), {
    kind: 'EgressIP',
    spec: { addresses: ['203.0.113.101', '2001:db8:113::101'] },
    status: { addresses: ['203.0.113.101'] },
  });
  t.match(JSON.parse((await sluice('get', 'all', '-o', 'json', ...source)).out), {
    kind: 'List',
    items: { length: 4 },
  });
  t.match((await sluice('get', 'eip', 'v4only', '-o', 'yaml', ...source)).out, /^apiVersion: .*\nkind: EgressIP\n/);
  t.match((await sluice('get', 'errors', ...source)).out, /^FILE .*\nbad\.yaml \(document 1\) +Invalid +/);
  t.match(
    (await sluice('get', 'shoes', ...source)).err,
    /no kind "shoes"; there are .*egressips \(eip\), .*pods \(po\), /,
  );
  t.match(await sluice('get', 'eip', 'none', ...source), { code: 1, err: 'sluice: no eip "none"\n' });
  t.match(await sluice('get', 'pods', '-n', 'billing', '--source', `directory:${good}`), {
    code: 0,
    out: /^NAMESPACE +NAME +PHASE +IPS +NODE +AGE\nbilling +host .*\nbilling +pay-1 +Running +10\.244\.1\.11,fd00:244:1::11 +node-a/,
  });
  t.match(await sluice('get', 'cm', '--source', `directory:${good}`), { code: 0, out: '', err: 'no cm found\n' });
});

t.test('get rules: in walking order, with what each has met', async (t) => {
  const ruleOf = (kind: string, name: string, priority: number, created: string, namespace?: string): string => `
apiVersion: sluice.dev/v1alpha1
kind: ${kind}
metadata: { name: ${name}, creationTimestamp: "${created}"${namespace === undefined ? '' : `, namespace: ${namespace}`} }
spec: { action: drop, externalServices: ["*"], priority: ${priority}${kind === 'ServiceEgressRule' ? ', service: s' : ''} }
---`;
  const [old, young] = ['2024-01-01T00:00:00Z', '2025-01-01T00:00:00Z'];
  const source = manifests('rules', {
    'network.yaml': network,
    'rules.yaml': [
      ruleOf('ServiceEgressRule', 'last', 1, old, 'a'),
      ruleOf('NamespaceEgressRule', 'second', 5, old, 'b'),
      ruleOf('NamespaceEgressRule', 'first', 4, old, 'b'),
      ruleOf('NamespaceEgressRule', 'other', 9, old, 'a'),
      ruleOf('ClusterEgressRule', 'young', 1, young),
      ruleOf('ClusterEgressRule', 'z-old', 1, old),
    ].join(''),
    '.status/ClusterEgressRule/young.yaml': `
kind: ClusterEgressRule
status: { conditions: [], counters: { hits: 1200, flows: 0, packets: 1200, bytes: 72000, lastHit: "2025-06-01T00:00:00Z" } }`,
    '.status/GatewayPool/edge.yaml': 'status: { conditions: [], defaultActionCounters: { hits: 7 } }',
    '.status/NamespaceEgressRule/a/other.yaml': 'status: { counters: [hostile, 7] }',
  });
  const state = manifests('rules-state', {
    'hits.json': JSON.stringify({
      sums: { 'cluster/young': [1234, 0, 1234, 74040, 1748736059000], 'default/edge': [8, 0, 8, 480, 0] },
    }),
  });
  const rows = ({ out }: { out: string }) =>
    out
      .trimEnd()
      .split('\n')
      .map((line) => line.split(/\s{2,}/));
  const shown = await sluice('get', 'rules', '--source', `directory:${source}`);
  t.same(
    rows(shown)
      .slice(1)
      .map(
        ([context, ...rest]) =>
          `${context} ${rest.find((cell) => /^(z-old|young|other|first|second|last|edge)$/.test(cell))}`,
      ),
    [
      'cluster z-old',
      'cluster young',
      'namespace other',
      'namespace first',
      'namespace second',
      'service last',
      'default edge',
    ],
  );
  t.match(shown.out, /^CONTEXT +NAMESPACE +NAME .* HITS +LAST-HIT$/m);
  t.match(shown.out, /^cluster +young +1 +drop +Enforce +\* +1200 +\d+d$/m, 'as the status says');
  t.match(shown.out, /^default +edge +drop +Enforce +\* +7$/m);
  const exact = await sluice('get', 'rules', '-o', 'wide', '--source', `directory:${source}`, '--state', state);
  t.match(exact.out, /^cluster +young +1 +drop +Enforce +\* +1234 +\d+d +0 +1234 +74040$/m, 'as the controller knows');
  t.match(exact.out, /^cluster +z-old +1 +drop +Enforce +\* +0 +0 +0 +0$/m);
  const list = JSON.parse(
    (await sluice('get', 'rules', '-o', 'json', '--source', `directory:${source}`, '--state', state)).out,
  );
  t.equal(list.items.length, 7);
  t.match(list.items[1].status, { conditions: [], counters: { hits: 1234, lastHit: '2025-06-01T00:00:59Z' } });
  t.match(list.items[6].status, { defaultActionCounters: { hits: 8 } });
  const one = await sluice('get', 'rules', 'young', '-o', 'yaml', '--source', `directory:${source}`);
  t.match(one.out, /^kind: ClusterEgressRule\n/m);
  t.equal(rows(await sluice('get', 'rules', '-n', 'b', '--source', `directory:${source}`)).length, 3);
  t.match(await sluice('get', 'rules', 'none', '--source', `directory:${source}`), { code: 1, err: /no rule "none"/ });
  t.match(await sluice('get', 'rules', '--source', `directory:${source}`, '--state', source), {
    code: 1,
    err: /holds no state of a controller/,
  });
});

t.test('explain', async (t) => {
  const rows: [string, string, object][] = [
    [
      'billing/pay-1',
      '198.51.100.80:443',
      {
        verdict: 'accept',
        reason: 'service-accept',
        egress: { address: '203.0.113.101', gateway: 'gw-a', nextHop: '10.0.0.64' },
      },
    ],
    [
      'billing/pay-1',
      '[2001:DB8:100::80]:443',
      {
        verdict: 'accept',
        to: '[2001:db8:100::80]:443',
        egress: { address: '2001:db8:113::101', nextHop: 'fd00:10::64' },
      },
    ],
    ['billing/pay-1', '198.51.100.80', { verdict: 'accept', protocol: 1, icmpType: 8, icmpCode: 0 }],
    ['billing/pay-1', '2001:db8:100::80', { verdict: 'accept', protocol: 58, icmpType: 128, icmpCode: 0 }],
    ['billing/pay-1', '198.51.100.70', { verdict: 'accept', reason: 'service-accept' }],
    ['billing/pay-1', '198.51.100.70:icmp/8/0', { verdict: 'accept', to: '198.51.100.70' }],
    ['billing/pay-1', '198.51.100.70:icmp/13', { verdict: 'drop', reason: 'default-action', icmpType: 13 }],
    ['billing/pay-1', '198.51.100.70:icmp/13/1', { verdict: 'accept', icmpType: 13, icmpCode: 1 }],
    ['billing/pay-1', '[2001:db8:100::70]:icmp/128', { verdict: 'accept', protocol: 58 }],
    ['billing/pay-1', '[2001:db8:100::70]:ICMPv6/139', { verdict: 'drop', reason: 'default-action' }],
    ['billing/pay-1', '198.51.100.80:icmp/3/4', { verdict: 'drop', reason: 'invalid', policy: undefined }],
    ['billing/pay-1', '[2001:db8:100::80]:icmp/3', { verdict: 'drop', reason: 'invalid', egress: undefined }],
    ['billing/pay-1', '10.244.1.13:icmp/3', { verdict: 'bypass', reason: 'clusterCIDRs' }],
    ['billing/pay-1', '198.51.100.90:443', { verdict: 'drop', reason: 'default-action', egress: undefined }],
    ['billing/pay-1', '198.51.100.80:23', { verdict: 'reject', policy: { decision: { rule: 'cluster/no-telnet' } } }],
    ['billing/pay-1', '203.0.113.102:80', { verdict: 'reject', reason: 'hairpin' }],
    ['billing/pay-1', '10.0.0.31:80', { verdict: 'drop', reason: 'tunnel-port' }],
    ['billing/pay-1', '10.244.1.13:80', { verdict: 'bypass', reason: 'clusterCIDRs' }],
    ['billing/pay-1', '192.0.2.1:80', { verdict: 'bypass', reason: 'excludedCIDRs' }],
    ...[
      '169.254.169.254',
      '127.0.0.1',
      '224.0.0.9',
      '255.255.255.255',
      '0.0.0.0',
      '[fe80::1]',
      '[ff02::1]',
      '[::1]',
    ].map((address): [string, string, object] => [
      'billing/pay-1',
      `${address}:80`,
      { verdict: 'bypass', reason: 'never-steered', summary: /link-local/ },
    ]),
    ['billing/pay-1', '[fec0::1]:80', { verdict: 'drop', reason: 'default-action' }],
    ['billing/host', '198.51.100.80:443', { verdict: 'bypass', reason: 'host-network' }],
    ['batch/job', '198.51.100.80:443', { verdict: 'bypass', reason: 'unassigned' }],
    ['outside/out', '198.51.100.80:443', { verdict: 'bypass', reason: 'no-pool' }],
    ['v4only/four', '[2001:db8:100::80]:443', { verdict: 'drop', reason: 'no-egress-ip' }],
    ['v4only/four', '198.51.100.80:443', { verdict: 'drop', reason: 'default-action' }],
  ];
  for (const [from, to, expected] of rows) {
    const { code, out, err } = await sluice(
      'explain',
      '--source',
      `directory:${good}`,
      '--from',
      from,
      '--to',
      to,
      '-o',
      'json',
    );
    t.equal(code, 0, err);
    t.match(JSON.parse(out), expected, `${from} to ${to}`);
  }
  const { out } = await sluice(
    'explain',
    '--source',
    `directory:${good}`,
    '--from',
    'billing/pay-1',
    '--to',
    '198.51.100.80:443',
  );
  for (const line of [
    /^billing\/pay-1 \(10\.244\.1\.11\) to 198\.51\.100\.80:443, TCP$/m,
    /^cluster: no-match/m,
    /^namespace: accepted.*permits nothing by itself/m,
    /^ +\* +service\/billing\/pay +accept/m,
    /^accept \(service-accept\)$/m,
    /^Leaves as 203\.0\.113\.101: shard \S+ of pool edge, gateway gw-a\.$/m,
  ])
    t.match(out, line);
  const ping = ['explain', '--source', `directory:${good}`, '--from', 'billing/pay-1', '--to', '198.51.100.80'];
  t.match((await sluice(...ping)).out, /^billing\/pay-1 \(10\.244\.1\.11\) to 198\.51\.100\.80, ICMP type 8\/0$/m);
  t.match((await sluice(...ping, '-o', 'yaml')).out, /^verdict: accept$/m);
  for (const [mode, shaped] of [
    ['Enforce', true],
    ['Audit', false],
  ] as const) {
    const files = {
      'cluster.yaml': cluster,
      'policy.yml': policy,
      'network.yaml': network
        .replace('namespaces: [billing]', 'namespaces: [billing], bandwidth: { egress: 5Mbit }')
        .replace('name: edge }\nspec:\n', `name: edge }\nspec:\n  mode: ${mode}\n`),
    };
    const source = `directory:${manifests(`shaped-${mode}`, files)}`;
    const { out } = await sluice('explain', '--source', source, '--from', 'billing/pay-1', '--to', '198.51.100.80:443');
    t.equal(/Bandwidth of EgressIP billing, .*: 5 Mbit/.test(out), shaped, `nothing waits in audit: ${mode}`);
  }
  t.match(JSON.parse((await sluice(...ping, '--protocol', '136', '-o', 'json')).out), {
    verdict: 'drop',
    reason: 'invalid',
    summary: /UDP-Lite .*invalid\. On gateways where .*nf_conntrack_checksum is 0: Accepted by service\/billing\/pay/,
    egress: undefined,
  });
  const excluding = manifests('excluding', {
    'cluster.yaml': cluster,
    'network.yaml': network,
    'policy.yml': [
      policy,
      rule(
        'ClusterEgressRule',
        'of-ci',
        '{ action: drop, externalServices: ["*"], serviceAccounts: [ci, batch/default] }',
      ),
      rule(
        'ClusterEgressRule',
        'elsewhere',
        '{ action: drop, externalServices: ["*"], namespaceSelector: { matchLabels: { team: c } } }',
      ),
      rule(
        'NamespaceEgressRule',
        'labels',
        '{ action: drop, externalServices: ["*"], podSelector: { matchLabels: { app: x } } }',
      ),
      rule('NamespaceEgressRule', 'broken', '{ action: drop, externalServices: [none] }'),
      rule('ServiceEgressRule', 'ghosts', '{ action: drop, service: ghosts, externalServices: ["*"] }'),
    ].join('\n'),
  });
  const why = (
    await sluice(
      'explain',
      '--source',
      `directory:${excluding}`,
      '--from',
      'billing/pay-1',
      '--to',
      '198.51.100.80:443',
    )
  ).out;
  for (const line of [
    /^ +cluster\/of-ci +does not apply: the pod's service account default is none of its ci, batch\/default$/m,
    /^ +cluster\/elsewhere +does not apply: its namespaceSelector does not select namespace billing$/m,
    /^ +namespace\/billing\/labels +does not apply: its podSelector does not match the pod's labels$/m,
    /^ +namespace\/billing\/broken +does not apply: it is not accepted: .*none/m,
    /^ +service\/billing\/ghosts +does not apply: service ghosts does not list the pod as an endpoint$/m,
    /^accept \(service-accept\)$/m,
  ])
    t.match(why, line);
  t.match(await sluice('explain', '--source', `directory:${good}`, '--from', 'billing/nope', '--to', '198.51.100.80'), {
    code: 1,
    err: /no pod "nope" in namespace "billing" \(it has host, pay-1\)|it has pay-1, host/,
  });
  for (const text of [
    '',
    '1.2.3',
    '1.2.3.4:',
    '1.2.3.4:0',
    '1.2.3.4:70000',
    '[1.2.3.4]:80',
    '[::1',
    '::1]:80',
    'fe80::1%eth0',
    '[::1]:x',
    '1.2.3.4:icmp',
    '1.2.3.4:icmp/',
    '1.2.3.4:icmp/256',
    '1.2.3.4:icmp/8/256',
    '1.2.3.4:icmp/8/0/0',
    '1.2.3.4:icmpv6/128',
    '1.2.3.4:tcp/80',
    '::1:icmp/128',
  ])
    t.equal(parseTarget(text), undefined, JSON.stringify(text));
});

t.test('ages: of rules with one priority the one that is older in force, as the controller knows it', async (t) => {
  const [old, young] = ['2025-01-01T00:00:00Z', '2025-01-02T00:00:00Z'];
  const tied = {
    'all.yaml': [
      cluster,
      '---',
      network,
      '---',
      rule('ClusterEgressRule', 'a-young', '{ action: accept-decisively, externalServices: ["*"] }'),
      rule('ClusterEgressRule', 'z-old', '{ action: drop, externalServices: ["*"] }'),
    ].join('\n'),
  };
  const status = (name: string, created: string) => ({
    [`.status/ClusterEgressRule/${name}.yaml`]: `metadata:\n  name: ${name}\n  creationTimestamp: ${created}\n`,
  });
  const unknown = manifests('tied', tied);
  const known = manifests('tied-known', { ...tied, ...status('a-young', young), ...status('z-old', old) });
  const state = manifests('tied-state', {
    'planner.json': JSON.stringify({ generation: 1, memory: emptyMemory() }),
    'objects.json': JSON.stringify({
      files: {},
      firstSeen: { 'ClusterEgressRule/a-young': young, 'ClusterEgressRule/z-old': old },
    }),
  });
  const decides = async (...source: string[]) => {
    const args = ['--from', 'billing/pay-1', '--to', '198.51.100.80:443', '-o', 'json', '--source', ...source];
    return JSON.parse((await sluice('explain', ...args)).out).policy.decision.rule;
  };
  t.equal(await decides(`directory:${unknown}`), 'cluster/a-young', 'of one age: by name');
  t.equal(await decides(`directory:${known}`), 'cluster/z-old', 'as the status says');
  t.equal(await decides(`directory:${unknown}`, '--state', state), 'cluster/z-old', 'as the state says');
  for (const source of [[`directory:${known}`], [`directory:${unknown}`, '--state', state]]) {
    t.match((await sluice('get', 'cgr', '--source', ...source)).out, /^a-young .* \d+d\nz-old .* \d+d$/m);
    t.match((await sluice('get', 'rules', '--source', ...source)).out, /z-old.*\n.*a-young/);
  }
  t.match(
    (await sluice('get', 'cgr', '--source', `directory:${unknown}`)).out,
    /^a-young +\S+ .*\D$/m,
    'none is made up',
  );
  for (const kind of ['cgr', 'rules', 'pods']) {
    const { out } = await sluice('get', kind, '-o', 'yaml', '--source', `directory:${unknown}`);
    t.notMatch(out, /creationTimestamp/, `nor in ${kind}`);
  }
});

t.test('explain and simulate: what is refused is in force as it was, which the state knows', async (t) => {
  const forbid = rule('ClusterEgressRule', 'veto', '{ action: drop, externalServices: ["*"] }');
  const broken = manifests('broken', {
    'cluster.yaml': cluster,
    'network.yaml': network,
    'veto.yaml': forbid.replace('drop', 'dorp'),
  });
  const state = manifests('broken-state', {
    'planner.json': JSON.stringify({ generation: 1, memory: emptyMemory() }),
    'objects.json': JSON.stringify({
      files: { 'veto.yaml': parseAllDocuments(forbid).flatMap((document) => document.toJS() ?? []) },
      firstSeen: {},
    }),
  });
  const flow = ['explain', '--from', 'billing/pay-1', '--to', '198.51.100.80:443', '--source', `directory:${broken}`];
  t.match(await sluice(...flow), { code: 0, out: /default-action/, err: /^1 refused, .* not looked at \(--state DIR/ });
  t.match(await sluice(...flow, '--state', state), {
    code: 0,
    out: /^Dropped by cluster\/veto/m,
    err: /^1 refused, .* is looked at$/m,
  });
  const nothing = ['simulate', good, '--source', `directory:${broken}`];
  t.match((await sluice(...nothing)).err, /^1 refused, .* not looked at/);
  t.match((await sluice(...nothing, '--state', state)).err, /^1 refused, .* is looked at$/m);
});
