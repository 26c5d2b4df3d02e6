/**
 * parseObject: what good objects become, and a table of bad inputs → path, expected, got. A bad row is a good sample
 * (samples.ts) with one thing changed.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { renderCrds, structural } from '../../api/crd.ts';
import { kindScopes, objectKey, parseObject, sluiceKinds } from '../../api/kinds.ts';
import { parseIcmpTypes, parsePorts, portEntry } from '../../api/ports.ts';
import { absentFields, absentValues, schemas } from '../../api/schema/registry.ts';
import type { Keywords } from '../../api/schema/walk.ts';
import { rows } from './bad-inputs.ts';
import { samples } from './samples.ts';

type Json = Record<string, unknown>;
const sample = (kind: string): Json => structuredClone(samples.find((one) => one.kind === kind)) as unknown as Json;

/** Sets (or, with undefined, deletes) what a path such as `spec.gateways[1].name` names. */
function change(o: Json, path: string, value: unknown): Json {
  const steps = path.split(/[.[\]]+/).filter((step) => step !== '');
  const last = steps.pop() ?? '';
  let at = o;
  for (const step of steps) {
    at[step] ??= {};
    at = at[step] as Json;
  }
  if (value === undefined) delete at[last];
  else at[last] = value;
  return o;
}

t.test('every sample parses, and the table of samples is complete', (t) => {
  for (const one of samples) {
    const parsed = parseObject(one);
    t.ok(parsed.ok, one.kind);
    if (!parsed.ok) t.comment(parsed.errors);
  }
  t.same(samples.map((one) => one.kind).sort(), Object.keys(schemas).sort());
  t.same(Object.keys(kindScopes).sort(), Object.keys(schemas).sort());
  t.end();
});

t.test('defaults, canonical texts and what is dropped', (t) => {
  const value = (input: unknown) => {
    const parsed = parseObject(input);
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
    return parsed.value as unknown as Json & { spec: Json; metadata: Json; status: Json };
  };
  const { gateways, interfaces, nextHops, namespaceSelector } = sample('GatewayPool').spec as Json;
  const pool = value({ ...sample('GatewayPool'), spec: { namespaceSelector, gateways, interfaces, nextHops } });
  t.same(pool.spec, {
    namespaceSelector: {},
    mode: 'Enforce',
    gateways: [
      { name: 'gw-a', internalAddress: '10.0.0.31', weight: 2 },
      { name: 'gw-b', internalAddress: '10.0.0.32', weight: 1 },
    ],
    interfaces,
    nextHops,
    steering: { mode: 'VXLAN', vni: 7790, port: 4793 },
    defaultAction: 'Drop',
    unassigned: 'Bypass',
    excludedCIDRs: [],
    fetch: { allowedHosts: [] },
  });
  t.notOk('status' in pool, 'status is not input');
  t.notOk('finalizers' in pool.metadata);
  // A default is a value of its own in every object.
  (pool.spec.excludedCIDRs as string[]).push('x');
  t.same(
    value({ ...sample('GatewayPool'), spec: { namespaceSelector, gateways, interfaces, nextHops } }).spec.excludedCIDRs,
    [],
  );

  const most = value(change(sample('GatewayPool'), 'spec.nextHops', { v4: ['10.1.0.1-10.1.0.253'] }));
  t.same(most.spec.nextHops, { v4: ['10.1.0.1-10.1.0.253'] }, 'as many shards as may be');

  const eip = value(change(change(sample('EgressIP'), 'spec.addresses', undefined), 'spec.count', 2));
  t.equal(eip.spec.count, 2);
  t.same(value(sample('EgressIP')).spec.addresses, ['203.0.113.101', '2001:db8:113::101']);
  t.equal(value(change(sample('EgressIPPool'), 'spec.quarantineSeconds', undefined)).spec.quarantineSeconds, 300);
  t.same(value(change(sample('EgressIPPool'), 'spec.ranges', ['203.0.113.96-203.0.113.127'])).spec.ranges, [
    '203.0.113.96/27',
  ]);
  t.equal(value(change(sample('NamespaceEgressRule'), 'spec.priority', undefined)).spec.priority, 1000);
  t.equal(value(change(sample('ServiceEgressRule'), 'spec.endpoints', undefined)).spec.endpoints, 'All');

  const forged = change(sample('Namespace'), 'metadata.labels', { 'kubernetes.io/metadata.name': 'kube-system' });
  t.equal((value(forged).metadata.labels as Json)['kubernetes.io/metadata.name'], 'billing', 'its own name');
  t.equal(
    (value({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'x' } }).metadata.labels as Json)[
      'kubernetes.io/metadata.name'
    ],
    'x',
  );
  t.same(value(sample('Pod')).status.podIPs, [{ ip: '10.244.1.2' }, { ip: 'fd00:244:1::2' }]);
  t.same(value(change(sample('Pod'), 'status.podIPs', undefined)).status.podIPs, [{ ip: '10.244.1.2' }]);
  const conditions = ['Ready', 'PodReadyToStartContainers'].map((type) => ({
    type,
    status: 'True',
    lastTransitionTime: 'x',
  }));
  t.same(value(change(sample('Pod'), 'status.conditions', conditions)).status.conditions, conditions.slice(1));
  t.same(value(sample('Pod')).spec, { nodeName: 'node-a', serviceAccountName: 'pay', hostNetwork: false });
  for (const account of [undefined, null, '']) {
    const { spec } = value(change(sample('Pod'), 'spec.serviceAccountName', account));
    t.match(spec, { serviceAccountName: 'default' }, `a pod whose service account is ${JSON.stringify(account)}`);
  }
  t.same(
    value({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'p', namespace: 'n', creationTimestamp: null } }).status,
    {},
  );
  t.same(value(change(sample('Node'), 'spec.podCIDRs', undefined)).spec.podCIDRs, ['10.244.1.0/24']);
  t.same(value(change(sample('EndpointSlice'), 'endpoints', null)).endpoints, [], 'null as API servers write it');

  const { addresses, ports } = value(sample('ExternalService')).spec as { addresses: string[]; ports: Json[] };
  t.same(addresses.slice(3), ['api.example.com', '*.example.net', '**.xn--bcher-kva.example'], 'one form of each name');
  t.match(ports[3]?.tls, { serverNames: ['api.example.com', '*.example.net'] });
  t.match(ports[5]?.dns, { types: ['A', 'AAAA', 'TYPE4242'] });
  t.same(value(sample('GatewayPool')).spec.dns, { resolvers: ['2001:db8::53', '198.51.100.53'], strict: true });
  t.same(value(change(sample('GatewayPool'), 'spec.inspection', {})).spec.inspection, { onOverload: 'Drop' });

  const labels = value(
    JSON.parse('{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n","labels":{"a":"b"}}}'),
  ).metadata.labels as Json;
  t.equal(labels.constructor, undefined, 'labels inherit nothing');
  t.equal(objectKey({ kind: 'Pod', metadata: { name: 'pay-1', namespace: 'billing' } }), 'Pod/billing/pay-1');
  t.equal(objectKey({ kind: 'EgressIP', metadata: { name: 'billing' } }), 'EgressIP/billing');
  t.end();
});

t.test('bad inputs → path, expected, got', (t) => {
  for (const [kind, path, value, expected, got, at = path] of rows) {
    const title = `${kind} ${path} = ${JSON.stringify(value)}`.slice(0, 90);
    const parsed = parseObject(change(sample(kind), path, value));
    if (parsed.ok) {
      t.fail(`${title}: accepted`);
      continue;
    }
    const [error] = parsed.errors;
    t.equal(error?.path, at, title);
    t[typeof expected === 'string' ? 'equal' : 'match'](error?.expected, expected, `${title}: expected`);
    t[typeof got === 'string' ? 'equal' : 'match'](error?.got, got, `${title}: got`);
  }
  const kinds = new Set(rows.map(([kind]) => kind));
  t.same(
    Object.keys(schemas).filter((kind) => !kinds.has(kind)),
    [],
    'every kind has a bad row',
  );
  t.end();
});

t.test('Direct steering', (t) => {
  const direct = change(sample('GatewayPool'), 'spec.steering', { mode: 'Direct' });
  t.match(parseObject(direct), { ok: true, value: { spec: { steering: { mode: 'Direct' } } } });
  const oneArmed = change(direct, 'spec.interfaces.external.name', 'in0');
  t.match(parseObject(oneArmed), {
    ok: false,
    errors: [{ path: 'spec.interfaces.external.name', expected: /^other than spec.interfaces.internal/, got: '"in0"' }],
  });
  t.ok(parseObject(change(oneArmed, 'spec.steering', {})).ok, 'a tunnel is a device of its own');
  t.end();
});

t.test('fields and values of the design that are not carried out yet are refused by name', (t) => {
  for (const [kind, places] of Object.entries(absentFields)) {
    for (const [place, names] of Object.entries(places)) {
      for (const name of names) {
        const path = `${place.replace('[]', '[0]')}.${name}`;
        const parsed = parseObject(change(sample(kind), path, {}));
        const want = { path, expected: `absent: ${name} is not carried out yet`, got: 'an object' };
        t.same(parsed.ok ? null : parsed.errors, [want], `${kind} ${path}`);
      }
    }
  }
  for (const [kind, fields] of Object.entries(absentValues)) {
    for (const [path, values] of Object.entries(fields)) {
      for (const value of values) {
        const parsed = parseObject(change(sample(kind), path, value));
        const expected = `absent: ${path.split('.').at(-1)} ${value} is not carried out yet`;
        t.same(parsed.ok ? null : parsed.errors, [{ path, expected, got: `"${value}"` }], `${kind} ${path}`);
      }
    }
  }
  t.end();
});

t.test('hostile documents', (t) => {
  for (const input of [undefined, null, 1, 'x', [], [[]], true, () => 1, Symbol('x'), 1n]) {
    const parsed = parseObject(input);
    t.same(parsed.ok ? null : parsed.errors[0]?.path, '');
  }
  const trap = {
    apiVersion: 'v1',
    kind: 'Pod',
    get metadata() {
      throw new Error('boom');
    },
  };
  t.match(parseObject(trap), { ok: false, errors: [{ expected: 'plain data', got: '"boom"' }] });

  const polluted = parseObject(
    JSON.parse(
      '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"b"},"__proto__":{"data":{"x":"y"}}}',
    ),
  );
  t.ok(polluted.ok && !('data' in polluted.value), 'nothing is taken from a __proto__');
  t.equal(parseObject(Object.create(sample('EgressIP'))).ok, false, 'nor from a real prototype');

  const { metadata, ...rest } = sample('ConfigMap');
  t.equal(parseObject(Object.assign(Object.create({ metadata }), rest)).ok, false, 'nor a field from one');

  const many = parseObject({
    ...sample('EgressIP'),
    ...Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [`f${i}`, 1])),
  });
  t.equal(many.ok ? 0 : many.errors.length, 50, 'errors are bounded');
  const long = parseObject(change(sample('EgressIP'), 'spec.pool', 'a'.repeat(10_000_000)));
  t.same(long.ok ? null : long.errors, [
    { path: 'spec.pool', expected: 'at most 253 characters', got: '10000000 characters' },
  ]);
  const shown = parseObject(change(sample('EgressIP'), 'spec.mode', '\u001b[2J'.repeat(5000)));
  t.ok(!shown.ok && JSON.stringify(shown.errors).length < 400, 'what was got is cut');
  const loop = sample('Pod');
  (loop.spec as Json).self = loop;
  t.ok(parseObject(loop).ok, 'a loop in what is dropped does no harm');
  t.end();
});

t.test('ports, types and codes', (t) => {
  t.same(parsePorts('8000-8100,443'), {
    ok: true,
    value: [
      [443, 443],
      [8000, 8100],
    ],
  });
  t.same(parsePorts('1-65535'), { ok: true, value: [[1, 65535]] });
  t.equal(parsePorts(Array.from({ length: 129 }, (_, i) => i + 1).join(',')).ok, false);
  t.same(portEntry({ protocol: 'UDP', port: '53' }), { protocol: 17, ports: [[53, 53]] });
  t.same(portEntry({ protocol: '132' }), { protocol: 132, ports: null });
  t.same(portEntry({ protocol: 'ICMPv6' }), { protocol: 58, ports: null });
  t.same(parseIcmpTypes('13,8/0,3/4,255'), {
    ok: true,
    value: [
      [0x0304, 0x0304],
      [0x0800, 0x0800],
      [0x0d00, 0x0dff],
      [0xff00, 0xffff],
    ],
  });
  t.same(parseIcmpTypes('0'), { ok: true, value: [[0, 255]] });
  t.equal(parseIcmpTypes(Array.from({ length: 129 }, (_, code) => `3/${code}`).join(',')).ok, false);
  t.same(portEntry({ protocol: 'ICMP', port: '8' }), { protocol: 1, ports: [[0x0800, 0x08ff]] });
  t.same(portEntry({ protocol: '58', port: '128/0' }), { protocol: 58, ports: [[0x8000, 0x8000]] });
  t.throws(() => portEntry({ protocol: 47, port: '8' }), 'a programmer may not skip the parser');
  t.throws(() => portEntry({ protocol: 'ICMP', port: '256' }), 'nor with ICMP');
  t.end();
});

t.test('CRDs', (t) => {
  const folder = join('deploy', 'crds');
  const files = renderCrds();
  t.same(readdirSync(folder).sort(), Object.keys(files).sort(), 'one file a kind');
  for (const [name, text] of Object.entries(files)) {
    const path = join(folder, name);
    t.equal(existsSync(path) ? readFileSync(path, 'utf8') : '', text, `${path} is what npm run crds renders`);
  }
  // `kubectl explain` shows them.
  const textless = (schema: Json, path: string): string[] => [
    ...Object.entries((schema.properties ?? {}) as Record<string, Json>).flatMap(([name, field]) => [
      ...(field.description === undefined ? [`${path}.${name}`] : []),
      ...textless(field, `${path}.${name}`),
    ]),
    ...(schema.items === undefined ? [] : textless(schema.items as Json, `${path}[]`)),
  ];
  for (const [name, text] of Object.entries(files)) {
    t.same(
      textless(parse(text).spec.versions[0].schema.openAPIV3Schema, name),
      [`${name}.metadata`],
      'every field has a text',
    );
  }
  for (const info of sluiceKinds) {
    const crd = parse(files[`sluice.dev_${info.plural}.yaml`] ?? '');
    const [version] = crd.spec.versions;
    t.same(version.subresources, { status: {} }, info.kind);
    t.ok(version.schema.openAPIV3Schema.properties.status.properties.conditions, `${info.kind} has conditions`);
    t.ok(version.additionalPrinterColumns.length > 0);
    const problems: string[] = [];
    structuralProblems(version.schema.openAPIV3Schema.properties.spec, 'spec', problems);
    t.same(problems, [], `${info.kind} is structural and bounded`);
  }
  t.end();
});

/** Kind, path in the spec, the fields that the rule there speaks of. What each does, test/kube/crds.ts tries. */
const celRules: [string, string, RegExp][] = [
  ['GatewayPool', '', /steering\.mode != 'Direct' .*interfaces\.external\.name != self\.interfaces\.internal/],
  ['GatewayPool', 'gateways', /internalAddress\.contains\(':'\) == self\[0\]/],
  ['GatewayPool', 'gateways', /exists_one\(other, other\.internalAddress/],
  ['GatewayPool', 'interfaces.external.gateway.v4', /^!self\.contains\(':'\)$/],
  ['GatewayPool', 'interfaces.external.gateway.v6', /^self\.contains\(':'\)$/],
  ['GatewayPool', 'nextHops', /^has\(self\.v4\) \|\| has\(self\.v6\)$/],
  ['GatewayPool', 'nextHops.v4', /^self\.all\(range, !range\.contains\(':'\)\)$/],
  ['GatewayPool', 'nextHops.v6', /^self\.all\(range, range\.contains\(':'\)\)$/],
  ['ExternalService', 'ports.[]', /has\(self\.appProtocol\) \|\| \(string\(self\.protocol\) in \['TCP', '6'\]/],
  ...['tls', 'http', 'dns'].flatMap((part): [string, string, RegExp][] => [
    ['ExternalService', 'ports.[]', new RegExp(`^!has\\(self\\.${part}\\) \\|\\| has\\(self\\.appProtocol\\)`)],
    ['ExternalService', `ports.[].${part}`, /^has\(self\.[a-zA-Z]+\) \|\| /],
  ]),
  ['ExternalService', 'ports.[]', /^has\(self\.appProtocol\) \|\| !has\(self\.conformance\)$/],
  ['ExternalService', 'ports.[]', /^!has\(self\.conformance\) \|\| self\.conformance == 'Enforce'/],
  ['EgressIPPool', 'gatewayPool', /^self == oldSelf$/],
  ['EgressIP', 'pool', /^self == oldSelf$/],
  ['EgressIP', '', /addresses\) != has\(self\.count/],
  ['EgressIP', '', /namespaces\) != has\(self\.namespaceSelector/],
  ...['ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule'].map((kind): [string, string, RegExp] => [
    kind,
    'externalServices',
    /size\(self\) == 1 .*'\*' in self/,
  ]),
  ...['NamespaceEgressRule', 'ServiceEgressRule'].flatMap((kind): [string, string, RegExp][] => [
    [kind, '', /^self\.externalServices\.all\(.*contains\('\/'\)/],
    [kind, '', /self\.serviceAccounts\.all\(.*contains\('\/'\)/],
  ]),
  ...['ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule'].flatMap((kind): [string, string, RegExp][] => [
    [kind, 'webhook', /self\.url\.matches\('\^https:/],
    ...['redirect', 'webhook'].map((field): [string, string, RegExp] => [
      kind,
      '',
      new RegExp(
        `^!has\\(self\\.${field}\\) \\|\\| self\\.action in \\[${kind === 'ServiceEgressRule' ? "'accept', " : ''}'accept-decisively'\\]$`,
      ),
    ]),
  ]),
];

t.test('what CEL says to the API server, and selectors are one value to it', (t) => {
  const specs = new Map(sluiceKinds.map((info) => [info.kind as string, structural(info.schema as Keywords)]));
  for (const [kind, path, wanted] of celRules) {
    let at = specs.get(kind) as Json;
    for (const step of path === '' ? [] : path.split('.'))
      at = (step === '[]' ? at.items : (at.properties as Json)[step]) as Json;
    const rules = (at['x-kubernetes-validations'] ?? []) as { rule: string; message: string }[];
    t.ok(
      rules.some(({ rule }) => wanted.test(rule)),
      `${kind} ${path}: ${wanted}`,
    );
  }
  for (const [kind, spec] of specs) {
    for (const [name, property] of Object.entries(spec.properties as Record<string, Json>)) {
      // Two appliers would otherwise put a selector together that neither meant.
      if (name.endsWith('Selector')) t.equal(property['x-kubernetes-map-type'], 'atomic', `${kind} ${name}`);
    }
  }
  t.end();
});

/** What the API server refuses, or what would leave CEL's cost without bound. */
function structuralProblems(schema: Json, path: string, problems: string[]): void {
  const known =
    /^(type|description|enum|pattern|default|format|(min|max)(imum|Items|Length|Properties)|properties|required|additionalProperties|items|anyOf|x-kubernetes-.*)$/;
  for (const word of Object.keys(schema)) if (!known.test(word)) problems.push(`${path}: ${word}`);
  if (schema.type === undefined && schema['x-kubernetes-int-or-string'] !== true) problems.push(`${path}: no type`);
  if (schema.type === 'array' && schema.maxItems === undefined) problems.push(`${path}: no maxItems`);
  if (schema.type === 'string' && schema.maxLength === undefined && schema.enum === undefined)
    problems.push(`${path}: no maxLength`);
  if (schema.additionalProperties !== undefined && schema.properties !== undefined) problems.push(`${path}: both`);
  if (schema.additionalProperties !== undefined)
    structuralProblems(schema.additionalProperties as Json, `${path}[*]`, problems);
  if (schema.items !== undefined) structuralProblems(schema.items as Json, `${path}[]`, problems);
  for (const [name, property] of Object.entries((schema.properties ?? {}) as Json))
    structuralProblems(property as Json, `${path}.${name}`, problems);
}
