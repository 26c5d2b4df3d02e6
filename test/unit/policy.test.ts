/**
 * Policy in tables: selectors, the order of rules, what a rule may name, who a service rule's source is, the four
 * actions in three contexts, the words of explain, and boxes drawn by hand. The naive evaluator is in property/.
 */

import t from 'tap';
import type { LabelSelector } from '../../api/kinds.ts';
import type { Action, Context, Policy, ServiceEntry } from '../../api/plan.ts';
import type { BindInput } from '../../policy/bind.ts';
import { bind } from '../../policy/bind.ts';
import { boxesOf } from '../../policy/boxes.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { compareRules } from '../../policy/order.ts';
import { matches } from '../../policy/selector.ts';
import { app, cluster, external, input, NS, namespace, pod, slice, tenant } from './policy-objects.ts';

t.test('selectors', async (t) => {
  const labels = { app: 'pay', tier: 'back' };
  const rows: [string, LabelSelector | undefined, boolean][] = [
    ['absent selects all', undefined, true],
    ['empty selects all', {}, true],
    ['a label that is there', { matchLabels: { app: 'pay' } }, true],
    ['a label with another value', { matchLabels: { app: 'web' } }, false],
    ['every label must hold', { matchLabels: { app: 'pay', tier: 'front' } }, false],
    ['In', { matchExpressions: [{ key: 'app', operator: 'In', values: ['x', 'pay'] }] }, true],
    ['In, absent key', { matchExpressions: [{ key: 'zone', operator: 'In', values: ['x'] }] }, false],
    ['NotIn', { matchExpressions: [{ key: 'app', operator: 'NotIn', values: ['pay'] }] }, false],
    ['NotIn, absent key', { matchExpressions: [{ key: 'zone', operator: 'NotIn', values: ['x'] }] }, true],
    ['Exists', { matchExpressions: [{ key: 'tier', operator: 'Exists' }] }, true],
    ['Exists, absent key', { matchExpressions: [{ key: 'zone', operator: 'Exists' }] }, false],
    ['DoesNotExist', { matchExpressions: [{ key: 'tier', operator: 'DoesNotExist' }] }, false],
    ['DoesNotExist, absent key', { matchExpressions: [{ key: 'zone', operator: 'DoesNotExist' }] }, true],
    ['a name that every object inherits', { matchExpressions: [{ key: 'constructor', operator: 'Exists' }] }, false],
    [
      'labels and expressions together',
      { matchLabels: { app: 'pay' }, matchExpressions: [{ key: 'tier', operator: 'In', values: ['front'] }] },
      false,
    ],
  ];
  for (const [name, selector, expected] of rows) t.equal(matches(selector, labels), expected, name);
  t.equal(matches({ matchLabels: { app: 'pay' } }, undefined), false, 'an object without labels');
});

t.test('order: priority, then oldest, then name; without a timestamp is newest', async (t) => {
  const rules = [
    tenant('a/first', { priority: 1 }),
    tenant('a/old', { created: '2024-01-01T00:00:00Z' }),
    // Later on the clock though smaller as text.
    tenant('a/newer', { created: '2024-01-01T00:00:00.5Z' }),
    tenant('a/b-undated'),
    tenant('a/c-undated'),
    tenant('a/last', { priority: 1001, created: '2020-01-01T00:00:00Z' }),
  ];
  const sorted = rules.toReversed().sort(compareRules);
  t.strictSame(
    sorted.map(({ metadata }) => metadata.name),
    ['first', 'old', 'newer', 'b-undated', 'c-undated', 'last'],
  );
});

t.test('what a rule may name', async (t) => {
  const world = {
    namespaces: [
      namespace('lent', { 'sluice.dev/trusted-services': 'true' }),
      namespace('other', { 'sluice.dev/trusted-services': 'false' }),
      namespace('a'),
    ],
    externalServices: [external(`${NS}/web`), external('lent/web'), external('other/web'), external('a/web')],
  };
  const last = {
    'a/gone': { addresses: ['192.0.2.1/32'], ports: null },
    [`${NS}/gone`]: { addresses: ['192.0.2.2/32'], ports: null },
  };
  const withdrawn = { addresses: ['192.0.2.9/32'], ports: null };
  const rows: [string, Partial<BindInput>, string, string[] | '*' | undefined][] = [
    ['cluster rule: the controller namespace', { clusterRules: [cluster('r')] }, 'Accepted', [`${NS}/web`]],
    [
      'cluster rule: a trusted namespace',
      { clusterRules: [cluster('r', { externalServices: ['lent/web'] })] },
      'Accepted',
      ['lent/web'],
    ],
    [
      'cluster rule: an untrusted one',
      { clusterRules: [cluster('r', { externalServices: ['other/web'] })] },
      'UntrustedNamespace',
      undefined,
    ],
    [
      'cluster rule: an unknown one',
      { clusterRules: [cluster('r', { externalServices: ['nowhere/web'] })] },
      'UntrustedNamespace',
      undefined,
    ],
    [
      'drop: of a namespace that lends no more, the last list',
      {
        clusterRules: [cluster('r', { action: 'drop', externalServices: ['other/web', 'nowhere/web', 'web'] })],
        lastServices: { 'other/web': withdrawn, 'nowhere/web': withdrawn },
      },
      'UntrustedNamespace',
      [`${NS}/web`, 'other/web (as it was lent)', 'nowhere/web (as it was lent)'],
    ],
    [
      'drop: another of them was never in force',
      {
        clusterRules: [cluster('r', { action: 'drop', externalServices: ['other/web', 'nowhere/web'] })],
        lastServices: { 'other/web': withdrawn },
      },
      'UntrustedNamespace',
      undefined,
    ],
    [
      'accept: not its last list',
      { clusterRules: [cluster('r', { externalServices: ['other/web'] })], lastServices: { 'other/web': withdrawn } },
      'UntrustedNamespace',
      undefined,
    ],
    ['namespace rule: its own', { namespaceRules: [tenant('a/r')] }, 'Accepted', ['a/web']],
    [
      'namespace rule: a prefix is refused',
      { namespaceRules: [tenant('a/r', { externalServices: ['lent/web'] })] },
      'ForeignReference',
      undefined,
    ],
    [
      'namespace rule: even its own prefix',
      { namespaceRules: [tenant('a/r', { externalServices: ['a/web'] })] },
      'ForeignReference',
      undefined,
    ],
    [
      'service rule: a prefix is refused',
      { serviceRules: [app('a/r', { externalServices: ['*', 'lent/web'] })] },
      'ForeignReference',
      undefined,
    ],
    ['any destination', { namespaceRules: [tenant('a/r', { externalServices: ['web', '*'] })] }, 'Accepted', '*'],
    [
      'accept: a missing name matches nothing',
      { namespaceRules: [tenant('a/r', { externalServices: ['web', 'gone'] })], lastServices: last },
      'ExternalServiceNotFound',
      ['a/web'],
    ],
    [
      'accept-decisively too',
      {
        namespaceRules: [tenant('a/r', { action: 'accept-decisively', externalServices: ['gone'] })],
        lastServices: last,
      },
      'ExternalServiceNotFound',
      [],
    ],
    [
      'drop: the last list',
      { namespaceRules: [tenant('a/r', { action: 'drop', externalServices: ['web', 'gone'] })], lastServices: last },
      'ExternalServiceNotFound',
      ['a/web', 'a/gone'],
    ],
    [
      'reject: the last list',
      { clusterRules: [cluster('r', { action: 'reject', externalServices: ['gone'] })], lastServices: last },
      'ExternalServiceNotFound',
      [`${NS}/gone`],
    ],
    [
      'drop: never was one, refused',
      { namespaceRules: [tenant('a/r', { action: 'drop', externalServices: ['web', 'gone'] })] },
      'ExternalServiceNotFound',
      undefined,
    ],
  ];
  for (const [name, more, reason, services] of rows) {
    const binding = bind(input({ ...world, ...more }));
    const [condition] = binding.conditions.filter((c) => c.reason !== 'NoEndpoints');
    const [entry] = Object.values(binding.rules);
    t.equal(condition?.reason, reason, name);
    t.equal(condition?.status, services === undefined ? 'False' : 'True', name);
    t.strictSame(entry?.services, services, name);
    if (Array.isArray(services))
      t.ok(
        services.every((key) => binding.services[key]),
        `${name}: lists are there`,
      );
    for (const [key, entry] of Object.entries(binding.services)) {
      if (key.endsWith(' (as it was lent)')) t.same(entry, withdrawn, 'not what the namespace says now');
    }
  }
  const lent = 'other/web (as it was lent)';
  const later = bind(
    input({
      ...world,
      clusterRules: [cluster('r', { action: 'drop', externalServices: ['other/web'] })],
      namespaceRules: [tenant('other/r', { action: 'drop' })],
      lastServices: { [lent]: withdrawn, 'other/web': last['a/gone'] },
    }),
  );
  t.same(later.services[lent], withdrawn, 'whatever the vetoes of that namespace keep');
  t.notSame(later.services['other/web'], withdrawn);
  const both = bind(
    input({
      namespaceRules: [
        tenant('a/veto', { action: 'drop', externalServices: ['gone'] }),
        tenant('a/pass', { externalServices: ['gone'] }),
      ],
      lastServices: last,
    }),
  );
  t.strictSame(both.services, { 'a/gone': last['a/gone'] });
  t.strictSame(both.rules['namespace/a/veto']?.services, ['a/gone']);
  t.strictSame(both.rules['namespace/a/pass']?.services, [], 'the kept list is no accept');
  t.strictSame(
    both.conditions.map((c) => c.objectKey),
    ['NamespaceEgressRule/a/veto', 'NamespaceEgressRule/a/pass'],
  );
});

t.test('an external service in the plan', async (t) => {
  const ports = [
    { name: 'web', protocol: 'TCP', port: '443,8000-8100' },
    { name: 'more', protocol: 'TCP', port: '80' },
    { name: 'ping', protocol: 'ICMP', port: '8' },
    { name: 'time', protocol: 1, port: '13/0' },
    { name: 'six', protocol: 'ICMPv6' },
    { name: 'lite', protocol: '136' },
    { name: 'gre', protocol: 47 },
    { name: 'dns', protocol: 'UDP' },
    { name: 'dns-port', protocol: 'UDP', port: '53' },
  ];
  const addresses = ['198.51.100.80', '2001:DB8::1', '10.0.0.0/8', '10.0.0.1-10.0.0.9', '192.0.2.0-192.0.2.255'];
  const { services } = bind(
    input({ externalServices: [external('a/web', addresses, ports)], namespaceRules: [tenant('a/r')] }),
  );
  t.strictSame(services['a/web'], {
    addresses: ['10.0.0.0/8', '10.0.0.1-10.0.0.9', '192.0.2.0/24', '198.51.100.80/32', '2001:db8::1/128'],
    ports: [
      {
        protocol: 1,
        ports: [
          [0x0800, 0x08ff],
          [0x0d00, 0x0d00],
        ],
      },
      {
        protocol: 6,
        ports: [
          [80, 80],
          [443, 443],
          [8000, 8100],
        ],
      },
      { protocol: 17, ports: null },
      { protocol: 47, ports: null },
      { protocol: 58, ports: null },
      { protocol: 136, ports: null },
    ],
  });
});

t.test('who a service rule speaks of', async (t) => {
  const world = {
    pods: [
      pod('a/one', ['10.0.0.1', 'fd00::1']),
      pod('a/two', ['10.0.0.2']),
      pod('a/host', ['192.0.2.9'], { hostNetwork: true }),
      pod('a/done', ['10.0.0.3'], { phase: 'Succeeded' }),
      pod('a/failed', ['10.0.0.4'], { phase: 'Failed' }),
      pod('b/one', ['10.0.1.1']),
    ],
    externalServices: [external('a/web')],
  };
  const ref = (name: string, more = {}) => ({ targetRef: { kind: 'Pod', namespace: 'a', name, ...more } });
  const rows: [string, object[], { endpoints?: 'Ready' }, string[], string][] = [
    ['nothing listed is no source', [], {}, [], 'NoEndpoints'],
    ['by address', [{ addresses: ['10.0.0.1'] }], {}, ['a/one'], 'Accepted'],
    ['by an IPv6 address, not canonical', [{ addresses: ['FD00:0::1'] }], {}, ['a/one'], 'Accepted'],
    [
      'by reference and address',
      [{ addresses: ['10.0.0.2'], ...ref('two', { uid: 'uid-a/two' }) }],
      {},
      ['a/two'],
      'Accepted',
    ],
    ['a pod that failed', [{ addresses: ['10.0.0.4'] }], {}, [], 'NoEndpoints'],
    [
      'by reference to what is no pod',
      [{ addresses: ['10.0.0.2'], ...ref('two', { kind: 'Node' }) }],
      {},
      [],
      'ForeignEndpoint',
    ],
    [
      'by reference to a pod of another namespace',
      [{ addresses: ['10.0.0.2'], ...ref('two', { namespace: 'b' }) }],
      {},
      [],
      'ForeignEndpoint',
    ],
    ['unready counts', [{ addresses: ['10.0.0.1'], conditions: { ready: false } }], {}, ['a/one'], 'Accepted'],
    [
      'unready, Ready asked',
      [{ addresses: ['10.0.0.1'], conditions: { ready: false } }],
      { endpoints: 'Ready' },
      [],
      'NoEndpoints',
    ],
    [
      'ready absent is ready',
      [{ addresses: ['10.0.0.1'], conditions: {} }],
      { endpoints: 'Ready' },
      ['a/one'],
      'Accepted',
    ],
    [
      "another namespace's pod",
      [{ addresses: ['10.0.1.1'] }, { addresses: ['10.0.0.1'] }],
      {},
      ['a/one'],
      'ForeignEndpoint',
    ],
    [
      "another namespace's pod by reference",
      [{ addresses: ['10.0.1.1'], ...ref('one', { namespace: 'b' }) }],
      {},
      [],
      'ForeignEndpoint',
    ],
    ['no pod at all', [{ addresses: ['203.0.113.9'] }], {}, [], 'ForeignEndpoint'],
    ['reference and address disagree', [{ addresses: ['10.0.0.1'], ...ref('two') }], {}, [], 'ForeignEndpoint'],
    [
      'made anew under the old name',
      [{ addresses: ['10.0.0.1'], ...ref('one', { uid: 'older' }) }],
      {},
      [],
      'ForeignEndpoint',
    ],
    ['a host-network pod is never a source', [{ addresses: ['192.0.2.9'], ...ref('host') }], {}, [], 'NoEndpoints'],
    ['a finished pod is gone', [{ addresses: ['10.0.0.3'], ...ref('done') }], {}, [], 'NoEndpoints'],
  ];
  for (const [name, endpoints, spec, expected, reason] of rows) {
    const endpointSlices = [
      slice('a/s', 'payments', endpoints),
      slice('b/s', 'payments', [{ addresses: ['10.0.1.1'] }]),
    ];
    const binding = bind(input({ ...world, endpointSlices, serviceRules: [app('a/r', spec)] }));
    const sources = world.pods.filter(({ metadata }) => {
      const group = binding.groups[binding.groupOf.get(metadata.uid ?? '') ?? ''];
      return group?.rules.service.includes('service/a/r');
    });
    t.strictSame(
      sources.map(({ metadata }) => `${metadata.namespace}/${metadata.name}`),
      expected,
      name,
    );
    t.equal(binding.conditions[0]?.reason, reason, `${name}: condition`);
    t.equal(binding.conditions[0]?.status, 'True', `${name}: the rule stands`);
    t.equal(binding.groupOf.has('uid-a/host'), false, 'a host-network pod has no group');
    t.strictSame(binding.servicesOf.get('uid-b/one'), ['payments']);
  }
  const endpointSlices = [slice('a/s', 'payments', [{ addresses: ['10.0.0.1'] }, { addresses: ['10.0.0.2'] }])];
  const podSelector = { matchLabels: { app: 'none' } };
  const narrowed = bind(input({ ...world, endpointSlices, serviceRules: [app('a/r', { podSelector })] }));
  t.ok(
    Object.values(narrowed.groups).every(({ rules }) => rules.service.length === 0),
    'the selector narrows the endpoints',
  );
  const two = bind(
    input({
      ...world,
      endpointSlices: [
        slice('a/z', 'z', [{ addresses: ['10.0.0.1'] }]),
        slice('a/b', 'b', [{ addresses: ['10.0.0.1'] }]),
      ],
    }),
  );
  t.strictSame(two.servicesOf.get('uid-a/one'), ['b', 'z'], 'sorted');
});

t.test('service accounts', async (t) => {
  const world = {
    namespaces: [namespace('a', { team: 'x' }), namespace('b')],
    pods: [
      pod('a/plain', ['10.0.0.1']),
      pod('a/pay', ['10.0.0.2'], { account: 'pay' }),
      pod('b/pay', ['10.0.0.3'], { account: 'pay' }),
      pod('b/other', ['10.0.0.4'], { account: 'other', labels: { app: 'x' } }),
    ],
    endpointSlices: [slice('a/s', 'payments', [{ addresses: ['10.0.0.1'] }, { addresses: ['10.0.0.2'] }])],
    externalServices: [external('a/web'), external(`${NS}/web`)],
  };
  const inA = { namespaceSelector: { matchLabels: { team: 'x' } } };
  const rows: [string, Partial<BindInput>, string[]][] = [
    ['absent is all', { clusterRules: [cluster('r')] }, ['a/plain', 'a/pay', 'b/pay', 'b/other']],
    ['a name in each namespace', { clusterRules: [cluster('r', { serviceAccounts: ['pay'] })] }, ['a/pay', 'b/pay']],
    ['a name in the selected ones', { clusterRules: [cluster('r', { serviceAccounts: ['pay'], ...inA })] }, ['a/pay']],
    ['exactly one', { clusterRules: [cluster('r', { serviceAccounts: ['b/pay'] })] }, ['b/pay']],
    [
      'not in a namespace that is not selected',
      { clusterRules: [cluster('r', { serviceAccounts: ['b/pay'], ...inA })] },
      [],
    ],
    [
      'any of them',
      { clusterRules: [cluster('r', { serviceAccounts: ['a/default', 'other'] })] },
      ['a/plain', 'b/other'],
    ],
    [
      'labels and account',
      {
        clusterRules: [cluster('r', { serviceAccounts: ['other', 'pay'], podSelector: { matchLabels: { app: 'x' } } })],
      },
      ['b/other'],
    ],
    ['a namespace rule: its own', { namespaceRules: [tenant('a/r', { serviceAccounts: ['pay'] })] }, ['a/pay']],
    [
      'a pod without one has the default',
      { namespaceRules: [tenant('a/r', { serviceAccounts: ['default'] })] },
      ['a/plain'],
    ],
    ['a service rule', { serviceRules: [app('a/r', { serviceAccounts: ['pay'] })] }, ['a/pay']],
  ];
  for (const [name, more, expected] of rows) {
    const binding = bind(input({ ...world, ...more }));
    const speaksOf = world.pods
      .map(({ metadata }) => `${metadata.namespace}/${metadata.name}`)
      .filter((key) => {
        const group = binding.groups[binding.groupOf.get(`uid-${key}`) ?? ''];
        return Object.values(group?.rules ?? {}).flat().length > 0;
      });
    t.strictSame(speaksOf, expected, name);
  }
});

const services: Record<string, ServiceEntry> = {
  'a/web': {
    addresses: ['198.51.100.80/32', '2001:db8:100::80/128'],
    ports: [
      {
        protocol: 6,
        ports: [
          [80, 80],
          [443, 443],
        ],
      },
    ],
  },
  'a/dns': { addresses: ['198.51.100.53/32'], ports: [{ protocol: 17, ports: [[53, 53]] }] },
  'a/ping': { addresses: ['198.51.100.0/24'], ports: [{ protocol: 1, ports: null }] },
  'a/echo': {
    addresses: ['198.51.100.0/24', '2001:db8:100::/64'],
    ports: [
      { protocol: 1, ports: [[0x0800, 0x0800]] },
      { protocol: 58, ports: [[0x8000, 0x80ff]] },
    ],
  },
};
/** One workload whose rules are written `context action names`, in walking order. */
function policyOf(lines: string[], more: { listed?: string[]; defaultAction?: 'Drop' | 'Accept' } = {}): Policy {
  const policy: Policy = { settings: {}, workloads: {}, groups: {}, rules: {}, services };
  if (more.defaultAction) policy.settings = { pool: { defaultAction: more.defaultAction } } as Policy['settings'];
  const rules: Record<Context, string[]> = { cluster: [], namespace: [], service: [] };
  lines.forEach((line, index) => {
    const [context, action, names = ''] = line.split(' ') as [Context, Action, string];
    const id = `${context}/r${index}`;
    const keys = names === '*' ? '*' : names.split(',').filter(Boolean);
    policy.rules[id] = { context, name: `r${index}`, action, priority: 1000, services: keys };
    rules[context].push(id);
  });
  policy.groups.g = { namespace: 'a', rules };
  policy.workloads.u = {
    namespace: 'a',
    name: 'one',
    uid: 'u',
    node: 'n',
    services: more.listed ?? ['payments'],
    addresses: ['10.0.0.1', 'fd00::1'],
    group: 'g',
    egress: {},
  };
  return policy;
}
const web = { source: '10.0.0.1', destination: '198.51.100.80', protocol: 6, destinationPort: 80 };

t.test('actions in contexts', async (t) => {
  const rows: [string, string[], string][] = [
    ['nothing applies', [], 'drop default-action'],
    ['accept in the cluster context permits nothing', ['cluster accept *'], 'drop default-action'],
    ['nor in cluster and namespace', ['cluster accept *', 'namespace accept *'], 'drop default-action'],
    ['accept in the service context permits', ['service accept a/web'], 'accept service-accept service/r0'],
    ['the first match decides its context', ['service drop a/web', 'service accept a/web'], 'drop rule service/r0'],
    ['accept above does not undo drop below', ['cluster accept *', 'service drop *'], 'drop rule service/r1'],
    ['drop above is a veto', ['cluster drop a/web', 'service accept a/web'], 'drop rule cluster/r0'],
    ['reject above too', ['namespace reject a/web', 'service accept a/web'], 'reject rule namespace/r0'],
    [
      'accept shields from a later drop of its context',
      ['cluster accept a/web', 'cluster drop *', 'service accept *'],
      'accept service-accept service/r2',
    ],
    ['accept-decisively ends the walk', ['cluster accept-decisively *', 'namespace drop *'], 'accept rule cluster/r0'],
    ['accept-decisively in the service context', ['service accept-decisively *'], 'accept rule service/r0'],
    [
      'no match goes on',
      ['cluster drop a/dns', 'namespace drop a/ping', 'service accept a/web'],
      'accept service-accept service/r2',
    ],
    ['a list that does not exist matches nothing', ['service accept a/none'], 'drop default-action'],
    ['no list matches nothing', ['service accept'], 'drop default-action'],
  ];
  for (const [name, lines, expected] of rows) {
    const evaluator = compilePolicy(policyOf(lines));
    const { verdict, reason, rule } = evaluator.decide(web);
    t.equal([verdict, reason, rule].filter(Boolean).join(' '), expected, name);
    t.strictSame(evaluator.explain(web).decision, evaluator.decide(web), `${name}: explain`);
  }
  t.equal(compilePolicy(policyOf([], { defaultAction: 'Accept' })).decide(web).verdict, 'accept');
  t.strictSame(compilePolicy(policyOf(['cluster accept-decisively *'])).decide({ ...web, source: '10.0.0.9' }), {
    verdict: 'drop',
    reason: 'unknown-source',
  });
});

t.test('destinations', async (t) => {
  const { decide } = compilePolicy(policyOf(['service accept a/web,a/ping']));
  const rows: [string, object, boolean][] = [
    ['port 80', {}, true],
    ['port 443', { destinationPort: 443 }, true],
    ['between the ports', { destinationPort: 81 }, false],
    ['another protocol', { protocol: 17 }, false],
    ['no port to be seen', { destinationPort: undefined }, false],
    ['the next address', { destination: '198.51.100.81' }, false],
    ['IPv6', { source: 'fd00::1', destination: '2001:db8:100::80' }, true],
    ['IPv6, the next address', { source: 'fd00::1', destination: '2001:db8:100::81' }, false],
    ['an IPv6 address with the bits of an IPv4 one', { source: 'fd00::1', destination: '::c633:6450' }, false],
    ['ICMP by its number, whatever the port', { protocol: 1, destinationPort: 99 }, true],
  ];
  for (const [name, change, accepted] of rows) {
    const flow = { ...web, ...change } as typeof web;
    if (flow.destinationPort === undefined) Reflect.deleteProperty(flow, 'destinationPort');
    t.equal(decide(flow).verdict, accepted ? 'accept' : 'drop', name);
  }
  const echo = compilePolicy(policyOf(['service accept a/echo']));
  const six = { source: 'fd00::1', destination: '2001:db8:100::1', protocol: 58 };
  const types: [string, object, boolean][] = [
    ['type and code', { icmpType: 8, icmpCode: 0 }, true],
    ['another code', { icmpType: 8, icmpCode: 1 }, false],
    ['another type', { icmpType: 13, icmpCode: 0 }, false],
    ['no type to be seen', {}, false],
    ['a port says nothing of ICMP', { destinationPort: 0x0800 }, false],
    ['a type says nothing of TCP', { protocol: 6, icmpType: 8, icmpCode: 0 }, false],
    ['any code of a type', { ...six, icmpType: 128, icmpCode: 7 }, true],
    ['ICMPv6, another type', { ...six, icmpType: 129, icmpCode: 0 }, false],
    ['ICMPv6 in an IPv4 packet', { protocol: 58, icmpType: 128, icmpCode: 0 }, false],
    ['ICMP in an IPv6 packet', { ...six, protocol: 1, icmpType: 8, icmpCode: 0 }, false],
  ];
  for (const [name, change, accepted] of types) {
    const { destinationPort: _, ...ping } = { ...web, protocol: 1 };
    t.equal(echo.decide({ ...ping, ...change }).verdict, accepted ? 'accept' : 'drop', name);
  }
  t.throws(() => decide({ ...web, destination: 'fd00::1' }), /two families/);
  t.throws(() => decide({ ...web, destination: 'web' }), /web/);
  t.throws(() => compilePolicy({ ...policyOf([]), groups: {} }).decide(web), /no group "g"/, 'half a policy is none');
  t.throws(() => compilePolicy({ ...policyOf(['cluster drop *']), rules: {} }).decide(web), /no rule "cluster\/r0"/);
});

t.test('explain says why', async (t) => {
  const explain = (lines: string[], flow: object = {}, more = {}) =>
    compilePolicy(policyOf(lines, more)).explain({ ...web, ...flow });
  const whys: [string, object, string][] = [
    ['service accept *', {}, 'the rule names any destination'],
    ['service accept a/dns,a/web', {}, 'TCP port 80 to 198.51.100.80 is in external service a/web'],
    ['service accept a/dns', {}, 'destination 198.51.100.80 is not in external service a/dns'],
    [
      'service accept a/web,a/dns',
      { destination: '198.51.100.7' },
      'destination 198.51.100.7 is in none of the 2 external services',
    ],
    [
      'service accept a/web',
      { destinationPort: 22 },
      '198.51.100.80 is in external service a/web, but not with TCP port 22',
    ],
    ['service accept a/web', { protocol: 17 }, '198.51.100.80 is in external service a/web, but not with UDP'],
    ['service accept a/web', { protocol: 89 }, '198.51.100.80 is in external service a/web, but not with protocol 89'],
    [
      'service accept a/echo',
      { protocol: 1, icmpType: 8, icmpCode: 0 },
      'ICMP type 8/0 to 198.51.100.80 is in external service a/echo',
    ],
    [
      'service accept a/echo',
      { protocol: 1, icmpType: 13, icmpCode: 0 },
      '198.51.100.80 is in external service a/echo, but not with ICMP type 13/0',
    ],
    ['service accept a/none', {}, 'external service a/none does not exist'],
    ['service accept', {}, 'none of the external services that the rule names exists'],
    [
      'service accept a/ping,a/dns',
      {},
      '198.51.100.80 is in external service a/ping, but not with TCP; destination 198.51.100.80 is not in external service a/dns',
    ],
  ];
  for (const [line, flow, why] of whys) t.equal(explain([line], flow).steps[0]?.why, why);

  const summaries: [string[], object, string][] = [
    [[], {}, "Dropped by the pool's default action (Drop): no rule of any context matches."],
    [
      ['cluster accept *'],
      {},
      "Dropped by the pool's default action (Drop): accept in the cluster context alone permits nothing, and no service rule accepts.",
    ],
    [
      ['cluster accept *', 'namespace accept *'],
      { listed: [] },
      "Dropped by the pool's default action (Drop): accept in the cluster and namespace contexts alone permits nothing, and no service rule accepts. The workload is in no Service, so no service rule can accept it; an accept-decisively rule could.",
    ],
    [
      ['namespace accept *'],
      { defaultAction: 'Accept' },
      "Accepted by the pool's default action (Accept): accept in the namespace context alone permits nothing, and no service rule accepts.",
    ],
    [['namespace reject *'], {}, 'Rejected by namespace/r0 in the namespace context.'],
  ];
  for (const [lines, more, summary] of summaries) t.equal(explain(lines, {}, more).summary, summary);

  const walk = explain(['cluster accept *', 'namespace drop a/dns', 'namespace reject a/web', 'service accept *']);
  t.strictSame(
    walk.steps.map(({ rule, matched }) => `${rule} ${matched}`),
    ['cluster/r0 true', 'namespace/r1 false', 'namespace/r2 true'],
  );
  t.strictSame(walk.contexts, [
    {
      context: 'cluster',
      outcome: 'accepted',
      rule: 'cluster/r0',
      why: 'cluster/r0 accepts, which hands on to the next context and permits nothing by itself',
    },
    {
      context: 'namespace',
      outcome: 'decided',
      rule: 'namespace/r2',
      why: 'namespace/r2 says reject, which ends the walk',
    },
    { context: 'service', outcome: 'not-reached', why: 'the walk ended in the namespace context' },
  ]);
  t.equal(walk.workload, 'u');
  const unknown = explain(['cluster accept *'], { source: '10.0.0.9' });
  t.equal(unknown.summary, 'Dropped: 10.0.0.9 is an address of no workload.');
  t.strictSame([unknown.workload, unknown.steps], [undefined, []]);
  t.ok(unknown.contexts.every(({ outcome }) => outcome === 'not-reached'));
});

t.test('boxes by hand', async (t) => {
  const draw = (family: 4 | 6, ...list: ServiceEntry[]): string => {
    const { addresses, protocols, ports } = boxesOf(list, family);
    const base = family === 4 ? 0x0a000000n : 0xfd00n << 112n;
    const range = ({ first, last }: { first: bigint; last: bigint }) => `${first - base}-${last - base}`;
    return [
      ...addresses.map(range),
      ...protocols.map((box) => `${range(box.range)}/${box.protocol}`),
      ...ports.map((box) => `${range(box.range)}/${box.protocol}:${box.first}-${box.last}`),
    ].join(' ');
  };
  const tcp = (address: string, ...ports: [number, number][]): ServiceEntry => ({
    addresses: [address],
    ports: [{ protocol: 6, ports }],
  });
  t.equal(draw(4), '');
  t.equal(
    draw(4, { addresses: ['10.0.0.0/30', '10.0.0.4/32', '10.0.0.2-10.0.0.9', 'fd00::1/128'], ports: null }),
    '0-9',
    'merged',
  );
  t.equal(draw(6, { addresses: ['10.0.0.0/30', 'fd00::/127', 'fd00::2/128'], ports: null }), '0-2');
  t.equal(draw(4, tcp('10.0.0.1/32', [80, 80], [81, 90], [85, 100])), '1-1/6:80-100');
  t.equal(draw(4, tcp('10.0.0.0/30', [80, 80]), tcp('10.0.0.4/30', [80, 80])), '0-7/6:80-80');
  // A cross: the middle column is one tall box, the arms are two.
  t.equal(
    draw(4, tcp('10.0.0.0-10.0.0.8', [50, 59]), tcp('10.0.0.3-10.0.0.5', [10, 99])),
    '0-2/6:50-59 3-5/6:10-99 6-8/6:50-59',
  );
  // A port range of its own beside one that begins and ends keeps its box.
  t.equal(
    draw(4, tcp('10.0.0.0-10.0.0.8', [443, 443]), tcp('10.0.0.3-10.0.0.5', [80, 80])),
    '0-8/6:443-443 3-5/6:80-80',
  );
  t.equal(
    draw(4, {
      addresses: ['10.0.0.1/32'],
      ports: [
        { protocol: 1, ports: null },
        { protocol: 6, ports: [] },
      ],
    }),
    '1-1/1',
  );
  t.equal(
    draw(4, { addresses: ['0.0.0.0/0'], ports: [{ protocol: 17, ports: [[0, 65535]] }] }),
    `${-0x0a000000}-${0xffffffff - 0x0a000000}/17:0-65535`,
  );
  t.equal(boxesOf([{ addresses: ['::/0'], ports: null }], 6).addresses[0]?.last, 2n ** 128n - 1n);
});
