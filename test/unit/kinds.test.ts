/**
 * parseObject: what good objects become, and a table of bad inputs → path, expected, got. A bad row is a good sample
 * (samples.ts) with one thing changed.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { renderCrds, structural } from '../../api/crd.ts';
import {
  kindScopes,
  objectKey,
  parseIcmpTypes,
  parseObject,
  parsePorts,
  portEntry,
  sluiceKinds,
} from '../../api/kinds.ts';
import { absentFields, absentValues, schemas } from '../../api/schema/registry.ts';
import type { Keywords } from '../../api/schema/walk.ts';
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
    clusterCIDRs: [],
    excludedCIDRs: [],
    fetch: { allowedHosts: [] },
  });
  t.notOk('status' in pool, 'status is not input');
  t.notOk('finalizers' in pool.metadata);
  // A default is a value of its own in every object.
  (pool.spec.clusterCIDRs as string[]).push('x');
  t.same(
    value({ ...sample('GatewayPool'), spec: { namespaceSelector, gateways, interfaces, nextHops } }).spec.clusterCIDRs,
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

  const labels = value(
    JSON.parse('{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n","labels":{"a":"b"}}}'),
  ).metadata.labels as Json;
  t.equal(labels.constructor, undefined, 'labels inherit nothing');
  t.equal(objectKey({ kind: 'Pod', metadata: { name: 'pay-1', namespace: 'billing' } }), 'Pod/billing/pay-1');
  t.equal(objectKey({ kind: 'EgressIP', metadata: { name: 'billing' } }), 'EgressIP/billing');
  t.end();
});

/** kind, path that is changed, value (undefined: deleted), then the error: expected, got, and its path where it differs. */
type Row = [string, string, unknown, string | RegExp, string | RegExp, string?];
const rows: Row[] = [
  // Every kind: what it is, where it lives.
  ['EgressIP', 'kind', 'EgressIPs', /^GatewayPool or EgressIPPool or /, '"EgressIPs"'],
  ['EgressIP', 'kind', 'toString', /^GatewayPool or /, '"toString"'],
  ['EgressIP', 'kind', undefined, /^GatewayPool or /, 'nothing'],
  ['EgressIP', 'kind', 'EgressAddress', 'absent: EgressAddress is not carried out yet', '"EgressAddress"'],
  ['EgressIP', 'apiVersion', 'sluice.dev/v1', 'sluice.dev/v1alpha1', '"sluice.dev/v1"'],
  ['EgressIP', 'apiVersion', undefined, 'sluice.dev/v1alpha1', 'nothing'],
  ['Pod', 'apiVersion', 'v2', 'v1', '"v2"'],
  ['EgressIP', 'metadata', undefined, 'an object', 'nothing'],
  ['EgressIP', 'metadata.name', undefined, /^a name of lower-case/, 'nothing'],
  ['EgressIP', 'metadata.name', '../../etc', /^a name of lower-case/, '"../../etc"'],
  ['EgressIP', 'metadata.name', 'x'.repeat(254), 'at most 253 characters', '254 characters'],
  ['EgressIP', 'metadata.name', 7, /^a name of lower-case/, '7'],
  ['EgressIP', 'metadata.namespace', 'billing', 'absent: EgressIP belongs to no namespace', '"billing"'],
  ['Node', 'metadata.namespace', 'billing', 'absent: Node belongs to no namespace', '"billing"'],
  ['Pod', 'metadata.namespace', undefined, 'a namespace', 'nothing'],
  ['ExternalService', 'metadata.namespace', undefined, 'a namespace', 'nothing'],
  ['EgressIP', 'metadata.label', {}, 'absent: unknown field', 'an object'],
  ['EgressIP', 'metadata.labels', { 'a b': 'x' }, 'a label key', '"a b"', 'metadata.labels["a b"]'],
  ['EgressIP', 'metadata.labels', { a: true }, /^a label value/, 'true', 'metadata.labels["a"]'],
  [
    'Pod',
    'metadata.labels',
    JSON.parse('{"__proto__": "x"}'),
    'a label key',
    '"__proto__"',
    'metadata.labels["__proto__"]',
  ],
  [
    'Pod',
    'metadata.annotations',
    JSON.parse('{"__proto__": "x"}'),
    /^a usable key/,
    '"__proto__"',
    'metadata.annotations["__proto__"]',
  ],
  ['Pod', 'metadata.creationTimestamp', 'yesterday', /^a time like/, '"yesterday"'],
  ['EgressIP', 'metadata.creationTimestamp', '2026-13-01T12:00:00Z', /^a time like/, '"2026-13-01T12:00:00Z"'],
  ['EgressIP', 'metadata.creationTimestamp', '2026-12-01T24:00:00Z', /^a time like/, '"2026-12-01T24:00:00Z"'],
  ['EgressIP', 'spec', undefined, 'an object', 'nothing'],
  ['EgressIP', 'spec', null, 'an object', 'null'],
  ['EgressIP', 'spec', [], 'an object', 'an empty list'],
  ['EgressIP', 'specs', {}, 'absent: unknown field', 'an object'],
  ['EgressIP', 'spec.adresses', [], 'absent: unknown field', 'an empty list'],
  ['EgressIP', 'spec.evil\nname', 1, 'absent: unknown field', '1', 'spec."evil\\nname"'],
  // GatewayPool
  ['GatewayPool', 'spec.namespaceSelector', undefined, 'an object', 'nothing'],
  ['GatewayPool', 'spec.namespaceSelector', null, 'an object', 'null'],
  ['GatewayPool', 'spec.mode', 'enforce', 'Enforce or Audit', '"enforce"'],
  ['NamespaceEgressRule', 'spec.mode', 'audit', 'Enforce or Audit', '"audit"'],
  ['GatewayPool', 'spec.gateways', [], 'at least 1 item', 'an empty list'],
  ['GatewayPool', 'spec.gateways', new Array(65).fill({}), 'at most 64 items', '65 items'],
  ['GatewayPool', 'spec.gateways[1].name', 'gw-a', 'other than spec.gateways[0].name', '"gw-a"'],
  ['GatewayPool', 'spec.gateways[1].name', undefined, /^a name of/, 'nothing'],
  [
    'GatewayPool',
    'spec.gateways[1].internalAddress',
    '10.0.0.31',
    'other than spec.gateways[0].internalAddress',
    '"10.0.0.31"',
  ],
  ['GatewayPool', 'spec.gateways[1].internalAddress', '010.0.0.1', /leading zero/, '"010.0.0.1"'],
  ['GatewayPool', 'spec.gateways[1].internalAddress', 'fd00:10::32', /one outer family/, '"fd00:10::32"'],
  ['GatewayPool', 'spec.gateways[1].internalAddress', '127.0.0.1', 'an address that a host may have', '"127.0.0.1"'],
  ['GatewayPool', 'spec.gateways[1].weight', 0, 'an integer from 1 to 100', '0'],
  ['GatewayPool', 'spec.gateways[1].weight', 1.5, 'an integer from 1 to 100', '1.5'],
  ['GatewayPool', 'spec.gateways[1].weight', '1', 'an integer from 1 to 100', '"1"'],
  ['GatewayPool', 'spec.interfaces.internal', 'in0; drop', /^an interface name/, '"in0; drop"'],
  ['GatewayPool', 'spec.interfaces.internal', 'a'.repeat(16), 'at most 15 characters', '16 characters'],
  ['GatewayPool', 'spec.interfaces.external', 'out0', 'an object', '"out0"'],
  ['GatewayPool', 'spec.interfaces.external.gateway.v4', 'fd00::1', 'an IPv4 address', '"fd00::1"'],
  ['GatewayPool', 'spec.nextHops', {}, 'v4, v6 or both', 'neither'],
  ['GatewayPool', 'spec.nextHops.v6', ['fd00:10::64'], /^as many v6 as v4/, '6 v4 and 1 v6', 'spec.nextHops'],
  ['GatewayPool', 'spec.nextHops', { v4: ['10.1.0.0/24'] }, '1 to 253 addresses', '256 addresses', 'spec.nextHops.v4'],
  [
    'GatewayPool',
    'spec.nextHops',
    { v6: ['fd00::/64'] },
    '1 to 253 addresses',
    /^18446744073709551616/,
    'spec.nextHops.v6',
  ],
  ['GatewayPool', 'spec.nextHops', { v4: ['fd00::1'] }, /^an IPv4 address/, '"fd00::1"', 'spec.nextHops.v4[0]'],
  [
    'GatewayPool',
    'spec.nextHops',
    { v4: ['10.0.0.9-10.0.0.1'] },
    /ends before it begins/,
    '"10.0.0.9-10.0.0.1"',
    'spec.nextHops.v4[0]',
  ],
  [
    'GatewayPool',
    'spec.nextHops',
    { v4: ['10.0.0.1-10.0.0.4', '10.0.0.4'] },
    /^no address that another/,
    '"10.0.0.4"',
    'spec.nextHops.v4[1]',
  ],
  [
    'GatewayPool',
    'spec.nextHops',
    { v4: ['10.0.0.30-10.0.0.34'] },
    'no internalAddress of a gateway',
    /10\.0\.0\.31/,
    'spec.nextHops.v4',
  ],
  ['GatewayPool', 'spec.steering', null, 'an object', 'null'],
  ['GatewayPool', 'spec.steering.vni', 16_777_216, 'an integer from 1 to 16777215', '16777216'],
  ['GatewayPool', 'spec.steering.port', 0, 'an integer from 1 to 65535', '0'],
  ['GatewayPool', 'spec.steering.mtu', 576, 'an integer from 1280 to 65000', '576'],
  ['GatewayPool', 'spec.defaultAction', 'drop', 'Drop or Accept', '"drop"'],
  ['GatewayPool', 'spec.unassigned', 'Accept', 'Drop or Bypass', '"Accept"'],
  ['GatewayPool', 'spec.clusterCIDRs[0]', '10.244.0.1/16', /the prefix is 10\.244\.0\.0\/16/, '"10.244.0.1/16"'],
  ['GatewayPool', 'spec.clusterCIDRs[0]', '10.244.0.1', /^a CIDR/, '"10.244.0.1"'],
  ['GatewayPool', 'spec.clusterCIDRs[1]', '10.244.0.0/16', 'other than spec.clusterCIDRs[0]', '"10.244.0.0/16"'],
  ['GatewayPool', 'spec.fetch.allowedHosts[0]', 'https://a.test', /^HOST or HOST:PORT/, '"https://a.test"'],
  ['GatewayPool', 'spec.fetch.allowedHosts[0]', '*.example.test', /^HOST or HOST:PORT/, '"*.example.test"'],
  ['GatewayPool', 'spec.fetch.allowedHosts[0]', 'a.test.', 'a host without trailing dot', '"a.test."'],
  ['GatewayPool', 'spec.fetch.allowedHosts[0]', '127.1', 'an IPv4 address of four decimal numbers', '"127.1"'],
  ['GatewayPool', 'spec.fetch.allowedHosts[0]', 'a.test:99999', 'a port from 1 to 65535', '"a.test:99999"'],
  // EgressIPPool
  ['EgressIPPool', 'spec.gatewayPool', undefined, /^a name of/, 'nothing'],
  ['EgressIPPool', 'spec.ranges', [], 'at least 1 item', 'an empty list'],
  ['EgressIPPool', 'spec.ranges[0]', '224.0.0.0/4', 'addresses that a host may have', '"224.0.0.0/4"'],
  ['EgressIPPool', 'spec.ranges[0]', '0.0.0.0/0', 'addresses that a host may have', '"0.0.0.0/0"'],
  ['EgressIPPool', 'spec.ranges[1]', '203.0.113.100', /^no address that another/, '"203.0.113.100"'],
  ['EgressIPPool', 'spec.ranges[1]', '::ffff:10.0.0.1', /^IPv4 written as IPv4/, '"::ffff:10.0.0.1"'],
  ['EgressIPPool', 'spec.namespaceSelector', undefined, 'an object', 'nothing'],
  ['EgressIPPool', 'spec.quarantineSeconds', -1, 'an integer from 0 to 604800', '-1'],
  // EgressIP
  ['EgressIP', 'spec.count', 1, 'absent: addresses are given', '1'],
  ['EgressIP', 'spec.addresses', undefined, 'addresses or count', 'neither', 'spec'],
  ['EgressIP', 'spec.addresses', [], 'at least 1 item', 'an empty list'],
  ['EgressIP', 'spec.addresses[0]', '203.0.113.0/24', /^an IP address/, '"203.0.113.0/24"'],
  [
    'EgressIP',
    'spec.addresses[0]',
    '2001:db8:113:0:0:0:0:101',
    'other than spec.addresses[0]',
    '"2001:db8:113::101"',
    'spec.addresses[1]',
  ],
  ['EgressIP', 'spec.addresses[0]', 'fe80::1', 'addresses that a host may have', '"fe80::1"'],
  ['EgressIP', 'spec.namespaces', undefined, /^namespaces or namespaceSelector/, 'neither', 'spec'],
  ['EgressIP', 'spec.namespaceSelector', {}, 'absent: namespaces are given', 'an object'],
  ['EgressIP', 'spec.namespaces[0]', 'Billing', /^a name of/, '"Billing"'],
  ['EgressIP', 'spec.namespaces', ['a', 'a'], 'other than spec.namespaces[0]', '"a"', 'spec.namespaces[1]'],
  ['EgressIP', 'spec.priority', 65_536, 'an integer from 0 to 65535', '65536'],
  ['EgressIP', 'spec.destinations', [], 'at least 1 item', 'an empty list'],
  ['EgressIP', 'spec.destinations[0]', 'partner', 'a CIDR, or NAMESPACE/NAME of an ExternalService', '"partner"'],
  ['EgressIP', 'spec.destinations[0]', '198.51.100.80', /^a CIDR, or/, '"198.51.100.80"'],
  ['EgressIP', 'spec.destinations[0]', '*.example.com', /^a CIDR, or/, '"*.example.com"'],
  ['EgressIP', 'spec.destinations[0]', '198.51.100.1/24', /^a CIDR: .*198\.51\.100\.0\/24/, '"198.51.100.1/24"'],
  ['EgressIP', 'spec.destinations[0]', '2001:db8:::/64', /^a CIDR: /, '"2001:db8:::/64"'],
  ['EgressIP', 'spec.destinations[0]', '198.51.100.0/33', /^a CIDR/, '"198.51.100.0/33"'],
  ['EgressIP', 'spec.destinations[0]', 'A/partner', /^a CIDR, or/, '"A/partner"'],
  ['EgressIP', 'spec.destinations[1]', '2001:DB8:0::/32', 'other than spec.destinations[0]', '"2001:DB8:0::/32"'],
  ['EgressIP', 'spec.spread', 'Flow', /Pod.*Connection/, '"Flow"'],
  ['EgressIP', 'spec.maxConnections', 0, /1 to 10000/, '0'],
  ['EgressIP', 'spec.maxConnections', 10_001, /1 to 10000/, '10001'],
  ['EgressIP', 'spec.podSelector.app', 'pay', 'absent: unknown field', '"pay"'],
  [
    'EgressIP',
    'spec.podSelector.matchExpressions[0].operator',
    'Equals',
    'In or NotIn or Exists or DoesNotExist',
    '"Equals"',
  ],
  [
    'EgressIP',
    'spec.podSelector.matchExpressions[0].operator',
    'Exists',
    'absent: Exists takes no values',
    'a list of 2',
    'spec.podSelector.matchExpressions[0].values',
  ],
  ['EgressIP', 'spec.podSelector.matchExpressions[0].values', undefined, 'at least one value for In', 'nothing'],
  ['EgressIP', 'spec.podSelector.matchExpressions[0].values', [], 'at least one value for In', 'an empty list'],
  ['EgressIP', 'spec.podSelector.matchExpressions[0].key', '-', 'a label key', '"-"'],
  // ExternalService
  ['ExternalService', 'spec.addresses', {}, 'a list', 'an object'],
  ['ExternalService', 'spec', { ports: [{ name: 'a', protocol: 'TCP' }] }, 'addresses or addressesFrom', 'neither'],
  ['ExternalService', 'spec.addressesFrom', [], 'at least 1 item', 'an empty list'],
  ['ExternalService', 'spec.addressesFrom[0].url', undefined, 'configMapRef, file or url', 'none of them'],
  [
    'ExternalService',
    'spec.addressesFrom[0].file',
    'a.txt',
    'absent: file is given',
    '"https://lists.example.test/egress.txt"',
    'spec.addressesFrom[0].url',
  ],
  ['ExternalService', 'spec.addressesFrom[0].format', 'YAML', 'Text or JSON', '"YAML"'],
  ['ExternalService', 'spec.addressesFrom[0].refreshSeconds', 29, 'an integer from 30 to 604800', '29'],
  ['ExternalService', 'spec.addressesFrom[1].refreshSeconds', 60, 'absent: a file is watched', '60'],
  ['ExternalService', 'spec.addressesFrom[2].configMapRef.namespace', 'b', 'absent: unknown field', '"b"'],
  ['ExternalService', 'spec.addressesFrom[2].configMapRef.key', '../a', /^a key of a ConfigMap/, '"../a"'],
  ...['../a.txt', '/etc/passwd', 'a/../../b', '.status/a', 'a/.hidden', 'a//b', 'a/', 'a\nb', ''].map(
    (file): Row => [
      'ExternalService',
      'spec.addressesFrom[1].file',
      file,
      /^a path below the manifests/,
      JSON.stringify(file),
    ],
  ),
  ...(
    [
      ['http://lists.example.test/', /^a URL that begins with https/],
      ['HTTPS://lists.example.test/', /^a URL that begins with https/],
      ['https:lists.example.test/', /^a URL that begins with https/],
      ['https:///lists.example.test/', /^a URL that begins with https/],
      ['ftp://lists.example.test/', /^a URL that begins with https/],
      ['file:///etc/passwd', /^a URL that begins with https/],
      ['https://user:pass@lists.example.test/', 'a URL without user and password'],
      ['https://lists.example.test@127.0.0.1/', 'a URL without user and password'],
      ['https://lists.example.test/#127.0.0.1', /^a URL without fragment/],
      ['https://lists.example.test\\@evil.test/', /^a URL of printable ASCII/],
      ['https://lists.example.test\t/', /^a URL of printable ASCII/],
      ['https://lists.example.test /', /^a URL of printable ASCII/],
      ['https://lïsts.example.test/', /^a URL of printable ASCII/],
      ['https://lists.example.test./', 'a host without trailing dot'],
      ['https://lists%2eexample.test/', /^a DNS name/],
      ['https://lists..example.test/', /^a DNS name/],
      ['https://2130706433/', 'an IPv4 address of four decimal numbers'],
      ['https://0x7f000001/', 'an IPv4 address of four decimal numbers'],
      ['https://127.1/', 'an IPv4 address of four decimal numbers'],
      ['https://0177.0.0.1/', 'an IPv4 address of four decimal numbers'],
      ['https://lists.example.0x7f/', 'an IPv4 address of four decimal numbers'],
      ['https://[fe80::1%25eth0]/', /^an IPv6 address without zone/],
      ['https://[198.51.100.1]/', /^an IPv6 address without zone/],
      ['https://2001:db8::1/', 'HOST or HOST:PORT'],
      ['https://lists.example.test:0/', 'a port from 1 to 65535'],
      ['https://lists.example.test:65536/', 'a port from 1 to 65535'],
      ['https://lists.example.test:0443/', 'a port from 1 to 65535'],
      ['https://lists.example.test:/', 'HOST or HOST:PORT'],
    ] as const
  ).map(([url, expected]): Row => ['ExternalService', 'spec.addressesFrom[0].url', url, expected, 'another text']),
  [
    'ExternalService',
    'spec.addressesFrom[0].url',
    `https://a.test/${'x'.repeat(2048)}`,
    'at most 2048 characters',
    '2063 characters',
  ],
  [
    'ExternalService',
    'spec.addresses[0]',
    'api.example.com',
    /^absent: a name is not carried out yet/,
    '"api.example.com"',
  ],
  [
    'ExternalService',
    'spec.addresses[0]',
    '**.example.com',
    /^absent: a name is not carried out yet/,
    '"**.example.com"',
  ],
  ['ExternalService', 'spec.addresses[0]', '198.51.100.256', /^an address, CIDR or FIRST-LAST/, '"198.51.100.256"'],
  [
    'ExternalService',
    'spec.addresses[0]',
    '198.51.100.0/24',
    'other than spec.addresses[0]',
    '"198.51.100.0/24"',
    'spec.addresses[1]',
  ],
  ['ExternalService', 'spec.ports', [], 'at least 1 item', 'an empty list'],
  ['ExternalService', 'spec.ports[1].name', 'https', 'other than spec.ports[0].name', '"https"'],
  ['ExternalService', 'spec.ports[0].protocol', 'tcp', /^TCP, UDP, SCTP/, '"tcp"'],
  ['ExternalService', 'spec.ports[2].protocol', 256, /^TCP, UDP, SCTP/, '256'],
  ['ExternalService', 'spec.ports[2].protocol', '256', /^TCP, UDP, SCTP/, '"256"'],
  ['ExternalService', 'spec.ports[2].protocol', undefined, /^TCP, UDP, SCTP/, 'nothing'],
  ['ExternalService', 'spec.ports[0].port', 443, /^text in quotes/, '443'],
  ['ExternalService', 'spec.ports[0].port', '', /^text in quotes/, '""'],
  ['ExternalService', 'spec.ports[0].port', '0', /^ports from 1 to 65535/, '"0"'],
  ['ExternalService', 'spec.ports[0].port', '65536', /^ports from 1 to 65535/, '"65536"'],
  ['ExternalService', 'spec.ports[0].port', '0443', /^ports from 1 to 65535/, '"0443"'],
  ['ExternalService', 'spec.ports[0].port', '443, 80', /^text in quotes/, '"443, 80"'],
  ['ExternalService', 'spec.ports[0].port', '90-80', /ends after it begins/, '"90-80"'],
  ['ExternalService', 'spec.ports[0].port', '80-90,85', /^each port once/, '"80-90,85"'],
  ['ExternalService', 'spec.ports[0].port', '80-90,90', 'each port once, not 90 twice', '"80-90,90"'],
  ['ExternalService', 'spec.ports[0].port', '8/0', /^ports from 1 to 65535 as in/, '"8/0"'],
  ['ExternalService', 'spec.ports[1].port', 8, /^text in quotes.* or types and codes of ICMP/, '8'],
  ['ExternalService', 'spec.ports[1].port', 'echo', /^text in quotes.* or types and codes of ICMP/, '"echo"'],
  ['ExternalService', 'spec.ports[1].port', '256', 'types and codes of ICMP from 0 to 255', '"256"'],
  ['ExternalService', 'spec.ports[1].port', '8,3/256', 'types and codes of ICMP from 0 to 255', '"8,3/256"'],
  ['ExternalService', 'spec.ports[1].port', '3-4', /^types and codes .* as in 8,3\/4/, '"3-4"'],
  ['ExternalService', 'spec.ports[1].port', '08', /^types and codes .* as in 8,3\/4/, '"08"'],
  ['ExternalService', 'spec.ports[1].port', '3/4/5', /^text in quotes/, '"3/4/5"'],
  ['ExternalService', 'spec.ports[1].port', '3/4,3', 'each type and code once, not 3/4 twice', '"3/4,3"'],
  ['ExternalService', 'spec.ports[2].port', '8', /^absent: only TCP, .* not protocol 47/, '"8"'],
  // Rules
  ['ClusterEgressRule', 'spec.action', 'Drop', 'accept or accept-decisively or drop or reject', '"Drop"'],
  ['ClusterEgressRule', 'spec.action', undefined, 'accept or accept-decisively or drop or reject', 'nothing'],
  ['ClusterEgressRule', 'spec.externalServices', [], 'at least 1 item', 'an empty list'],
  [
    'ClusterEgressRule',
    'spec.externalServices',
    ['a', 'a'],
    'other than spec.externalServices[0]',
    '"a"',
    'spec.externalServices[1]',
  ],
  [
    'ClusterEgressRule',
    'spec.externalServices',
    ['a', '*'],
    'no other name beside "*"',
    '2 names',
    'spec.externalServices[1]',
  ],
  [
    'ClusterEgressRule',
    'spec.externalServices',
    ['a/b/c'],
    /^the name of an ExternalService/,
    '"a/b/c"',
    'spec.externalServices[0]',
  ],
  ['ClusterEgressRule', 'spec.service', 'x', 'absent: unknown field', '"x"'],
  [
    'NamespaceEgressRule',
    'spec.externalServices',
    ['a/b'],
    /^a name in the namespace of the rule/,
    '"a/b"',
    'spec.externalServices[0]',
  ],
  ['NamespaceEgressRule', 'spec.namespaceSelector', {}, 'absent: unknown field', 'an object'],
  ['NamespaceEgressRule', 'spec.podSelector', null, 'an object', 'null'],
  ['NamespaceEgressRule', 'spec.serviceAccounts', [], 'at least 1 item', 'an empty list'],
  [
    'NamespaceEgressRule',
    'spec.serviceAccounts',
    ['billing/pay'],
    /^a ServiceAccount of the namespace of the rule/,
    '"billing/pay"',
    'spec.serviceAccounts[0]',
  ],
  [
    'ClusterEgressRule',
    'spec.serviceAccounts',
    ['pay', 'a/b/c'],
    'the name of a ServiceAccount',
    '"a/b/c"',
    'spec.serviceAccounts[1]',
  ],
  ['ClusterEgressRule', 'spec.serviceAccounts[1]', 'pay', /^other than/, '"pay"'],
  [
    'ServiceEgressRule',
    'spec.externalServices',
    ['a/b'],
    /^a name in the namespace of the rule/,
    '"a/b"',
    'spec.externalServices[0]',
  ],
  ['ServiceEgressRule', 'spec.service', undefined, /^a name of/, 'nothing'],
  ['ServiceEgressRule', 'spec.endpoints', 'NotReady', 'All or Ready', '"NotReady"'],
  ['ServiceEgressRule', 'spec.redirect.address', '127.0.0.1', 'an address that a host may have', '"127.0.0.1"'],
  ['ServiceEgressRule', 'spec.redirect.port', 0, 'an integer from 1 to 65535', '0'],
  ['ServiceEgressRule', 'spec.action', 'drop', /^absent: a drop rule permits/, 'an object', 'spec.redirect'],
  ['ServiceEgressRule', 'spec.priority', -1, 'an integer from 0 to 65535', '-1'],
  ['ServiceEgressRule', 'spec.webhook', 'https://hooks.example.test/', 'an object', '"https://hooks.example.test/"'],
  [
    'ServiceEgressRule',
    'spec.webhook',
    {},
    'a URL that begins with https:// and a host',
    'nothing',
    'spec.webhook.url',
  ],
  ['ServiceEgressRule', 'spec.webhook.method', 'PUT', 'absent: unknown field', '"PUT"'],
  ['ServiceEgressRule', 'spec.webhook.url', 'http://hooks.example.test/', /begins with https/, 'another text'],
  ['ServiceEgressRule', 'spec.webhook.url', 'https://u:p@hooks.example.test/', /without user/, 'another text'],
  ['ServiceEgressRule', 'spec.webhook.url', 'https://hooks.example.test/#a', /without fragment/, 'another text'],
  ['ServiceEgressRule', 'spec.webhook.url', 'https://0x7f.1/', /four decimal numbers/, 'another text'],
  [
    'ServiceEgressRule',
    'spec.webhook.url',
    `https://hooks.example.test/${'x'.repeat(2048)}`,
    'at most 2048 characters',
    '2075 characters',
  ],
  ...(['drop', 'reject'] as const).map(
    (action): Row => [
      'ServiceEgressRule',
      'spec',
      { action, externalServices: ['a'], service: 'b', webhook: { url: 'https://hooks.example.test/' } },
      `absent: a ${action} rule permits nothing`,
      'an object',
      'spec.webhook',
    ],
  ),
  ...(['ClusterEgressRule', 'NamespaceEgressRule'] as const).map(
    (kind): Row => [
      kind,
      'spec',
      { action: 'accept', externalServices: ['a'], webhook: { url: 'https://hooks.example.test/' } },
      'absent: accept permits nothing in this context; accept-decisively does',
      'an object',
      'spec.webhook',
    ],
  ),
  // Kubernetes kinds
  ['Namespace', 'metadata.labels', [], 'an object', 'an empty list'],
  ['Pod', 'spec.nodeName', 5, 'text', '5'],
  ['Pod', 'spec.hostNetwork', 'true', 'true or false', '"true"'],
  ['Pod', 'status.podIPs[1].ip', '10.244.1', /^an IP address/, '"10.244.1"'],
  ['Pod', 'status.podIP', 'x', /^an IP address/, '"x"'],
  ['Service', 'spec.selector', { app: 5 }, 'text', '5', 'spec.selector["app"]'],
  ['Service', 'spec.ports[0].port', '80', 'an integer from 0 to 65535', '"80"'],
  ['EndpointSlice', 'addressType', 'ipv4', 'IPv4 or IPv6 or FQDN', '"ipv4"'],
  ['EndpointSlice', 'endpoints[0].addresses[0]', 'fd00::1', 'an IPv4 address', '"fd00::1"'],
  [
    'EndpointSlice',
    'endpoints[0].conditions',
    { ready: 'yes' },
    'true or false',
    '"yes"',
    'endpoints[0].conditions.ready',
  ],
  ['Node', 'spec.podCIDRs[0]', '10.244.1.1/24', /the prefix is/, '"10.244.1.1/24"'],
  ['Node', 'status.addresses[0].address', 'node-a', /^an IP address/, '"node-a"'],
  ['ConfigMap', 'data', { a: 1 }, 'text', '1', 'data["a"]'],
];

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
    for (const step of path === '' ? [] : path.split('.')) at = (at.properties as Json)[step] as Json;
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
