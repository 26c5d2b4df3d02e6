/**
 * Names, and what ports ask of bytes, from the manifest to the plan: two ways to write one thing give one plan; what names
 * imply of ports; settings of a pool; who may not name such services; what is remembered of them. What a check means is
 * application.test.ts, what a rule with one does fields.test.ts.
 */
import t from 'tap';
import { type AnyObject, type ExternalService, type GatewayPool, parseObject } from '../../api/kinds.ts';
import type { PortCheck, ServiceEntry } from '../../api/plan.ts';
import { emptyMemory, readMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { serviceEntryOf } from '../../policy/external-service.ts';
import { samples } from './samples.ts';

type Fields = Record<string, unknown>;
const sluice = 'sluice.dev/v1alpha1';

function parsed<T extends AnyObject>(manifest: Fields): T {
  const object = parseObject({ apiVersion: sluice, ...manifest });
  if (!object.ok) throw new Error(JSON.stringify([manifest, object.errors]));
  return object.value as T;
}
const external = (spec: Fields, name = 'it', namespace = 'a'): ExternalService =>
  parsed({ kind: 'ExternalService', metadata: { name, namespace }, spec });
const entryOf = (spec: Fields): ServiceEntry => serviceEntryOf(external(spec));

const TLS: PortCheck = { protocol: 6, ports: [[443, 443]], application: 'TLS' };
const HTTP: PortCheck = { protocol: 6, ports: [[80, 80]], application: 'HTTP' };
const QUIC: PortCheck = { protocol: 17, ports: [[443, 443]], application: 'QUIC' };
const implied = (...checks: PortCheck[]): PortCheck[] => checks.map((check) => ({ ...check, implied: true }));
const named = { addresses: ['api.example.com'] };
const tcp = (port: string | undefined, more: Fields = {}): Fields => ({
  name: `p${port ?? ''}`.replace(/[,-].*/, ''),
  protocol: 'TCP',
  ...(port !== undefined && { port }),
  ...more,
});

const rows: [string, Fields, { [Field in keyof ServiceEntry]?: ServiceEntry[Field] | undefined }][] = [
  ['addresses alone', { addresses: ['198.51.100.1'] }, { addresses: ['198.51.100.1/32'], ports: null }],
  [
    'names beside addresses, each in its one form, sorted',
    { addresses: ['**.Example.COM.', '198.51.100.7', 'bücher.example', '*.example.com', '2001:db8::/64'] },
    {
      addresses: ['198.51.100.7/32', '2001:db8::/64'],
      names: ['**.example.com', '*.example.com', 'xn--bcher-kva.example'],
      ports: null,
      checks: implied(HTTP, TLS, QUIC),
    },
  ],
  ['names imply what 80 and 443 are', named, { ports: null, checks: implied(HTTP, TLS, QUIC) }],
  ['of what the ports have', { ...named, ports: [tcp('443')] }, { checks: implied(TLS) }],
  ['a range has it, too', { ...named, ports: [tcp('1-1024')] }, { checks: implied(HTTP, TLS) }],
  ['all of UDP', { ...named, ports: [{ name: 'u', protocol: 'UDP' }] }, { checks: implied(QUIC) }],
  ['no such port', { ...named, ports: [tcp('22')] }, { checks: undefined }],
  ['without names nothing is implied', { addresses: ['198.51.100.1'], ports: [tcp('443')] }, { checks: undefined }],
  [
    'a port that says what it is needs no more',
    { ...named, ports: [tcp('443', { appProtocol: 'SSH' }), tcp('80')] },
    { checks: [...implied(HTTP), { ...TLS, application: 'SSH' }] },
  ],
  [
    'one that covers it does, too',
    { ...named, ports: [tcp(undefined, { appProtocol: 'TLS', conformance: 'Off' })] },
    { checks: [{ protocol: 6, ports: null, application: 'TLS', conformance: 'Off' }] },
  ],
  [
    'of TCP, not of UDP',
    { ...named, ports: [tcp('443', { appProtocol: 'TLS' }), { name: 'u', protocol: 'UDP', port: '443' }] },
    { checks: [TLS, ...implied(QUIC)] },
  ],
  [
    'checks without names',
    { addresses: ['198.51.100.1'], ports: [tcp('443', { appProtocol: 'TLS', tls: { minVersion: '1.3' } })] },
    { names: undefined, checks: [{ ...TLS, tls: { minVersion: '1.3' } }] },
  ],
  [
    'what asks for nothing is not there',
    {
      ...named,
      ports: [tcp('443', { appProtocol: 'TLS', tls: { rejectEncryptedClientHello: false }, conformance: 'Enforce' })],
    },
    { checks: [TLS] },
  ],
  [
    'all parts, sorted, in their one form',
    {
      ...named,
      ports: [
        tcp('8443', {
          appProtocol: 'TLS',
          tls: {
            serverNames: ['b.Test', '*.A.test.'],
            minVersion: '1.2',
            alpn: ['http/1.1', 'h2'],
            rejectEncryptedClientHello: true,
          },
        }),
        tcp('8080', {
          appProtocol: 'HTTP',
          http: { hosts: ['B.test', 'a.test'], methods: ['PUT', 'GET'], paths: ['/b/*', '/a'] },
          conformance: 'Enforce',
        }),
        {
          name: 'dns',
          protocol: 17,
          port: '53',
          appProtocol: 'DNS',
          dns: { names: ['**.B.test', 'a.test'], types: ['TXT', 'TYPE28', 'A'], maxQuestionsPerSecond: 9 },
        },
        tcp('22', { appProtocol: 'SSH', conformance: 'Audit', bandwidth: '50Mbit' }),
      ],
    },
    {
      ports: [
        {
          protocol: 6,
          ports: [
            [22, 22],
            [8080, 8080],
            [8443, 8443],
          ],
        },
        { protocol: 17, ports: [[53, 53]] },
      ],
      checks: [
        { protocol: 6, ports: [[22, 22]], application: 'SSH', conformance: 'Audit' },
        {
          protocol: 6,
          ports: [[8080, 8080]],
          application: 'HTTP',
          http: { hosts: ['a.test', 'b.test'], methods: ['GET', 'PUT'], paths: ['/a', '/b/*'] },
        },
        {
          protocol: 6,
          ports: [[8443, 8443]],
          application: 'TLS',
          tls: {
            serverNames: ['*.a.test', 'b.test'],
            minVersion: '1.2',
            alpn: ['h2', 'http/1.1'],
            rejectEncryptedClientHello: true,
          },
        },
        {
          protocol: 17,
          ports: [[53, 53]],
          application: 'DNS',
          dns: { names: ['**.b.test', 'a.test'], types: ['A', 'AAAA', 'TXT'], maxQuestionsPerSecond: 9 },
        },
      ],
      limits: [{ name: 'p22', protocol: 6, ports: [[22, 22]], bandwidth: 50_000_000 }],
    },
  ],
];

t.test('an external service as the plan has it', (t) => {
  for (const [name, spec, wanted] of rows) {
    const entry = entryOf(spec);
    for (const field of Object.keys(wanted) as (keyof ServiceEntry)[])
      t.same(entry[field], wanted[field], `${name}: ${field}`);
  }
  t.end();
});

t.test('two ways to write one thing give one plan', (t) => {
  const tls = (port: string, more: Fields = {}): Fields => tcp(port, { appProtocol: 'TLS', ...more });
  const pairs: [Fields, Fields][] = [
    [{ addresses: ['B.test', 'a.test.'] }, { addresses: ['A.test', 'b.test'] }],
    [
      { ...named, ports: [tls('443', { tls: { alpn: ['h2', 'x'] } }), tls('8443', { tls: { alpn: ['x', 'h2'] } })] },
      { ...named, ports: [tls('8443,443', { tls: { alpn: ['x', 'h2'] }, conformance: 'Enforce' })] },
    ],
    [
      { ...named, ports: [tls('22', { appProtocol: 'SSH' }), tls('443')] },
      {
        ...named,
        ports: [
          { ...tls('443'), protocol: '6' },
          { ...tls('22', { appProtocol: 'SSH' }), protocol: 6 },
        ],
      },
    ],
  ];
  for (const [one, other] of pairs) {
    t.equal(JSON.stringify(entryOf(one)), JSON.stringify(entryOf(other)), JSON.stringify(one));
  }
  const overlapping = entryOf({ ...named, ports: [tls('1-500'), tls('400-600')] });
  t.same(overlapping.checks, [{ ...TLS, ports: [[1, 600]] }], 'ports that ask the same are one check');
  t.end();
});

const namespace = (name: string): AnyObject => parsed({ apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
const poolOf = (more: Fields): GatewayPool =>
  parsed({
    kind: 'GatewayPool',
    metadata: { name: 'main' },
    spec: {
      namespaceSelector: {},
      gateways: [{ name: 'gw-a', internalAddress: '10.0.0.31' }],
      interfaces: { internal: 'in0', external: { name: 'out0' } },
      nextHops: { v4: ['10.0.0.64'], v6: ['fd00:10::64'] },
      ...more,
    },
  });
const run = (objects: readonly AnyObject[], memory = emptyMemory()) =>
  plan(
    new Map(
      [namespace('a'), namespace('sluice-system'), ...objects].map((o) => [
        `${o.kind}/${o.metadata.namespace ?? ''}/${o.metadata.name}`,
        o,
      ]),
    ),
    memory,
    noPeers(),
    0,
  );

t.test('what a pool says of names and of reading', (t) => {
  const settings = (more: Fields) => run([poolOf(more)]).pools.get('main')?.settings.pool;
  const resolvers = ['2001:DB8::53', '198.51.100.53'];
  t.same(settings({})?.dns, undefined);
  t.same(settings({})?.inspection, undefined);
  t.same(settings({ dns: { resolvers } })?.dns, { resolvers: ['198.51.100.53', '2001:db8::53'] });
  t.same(settings({ dns: { resolvers, strict: false } })?.dns, settings({ dns: { resolvers } })?.dns);
  t.match(settings({ dns: { resolvers, strict: true } })?.dns, { strict: true });
  t.same(settings({ inspection: {} })?.inspection, undefined);
  t.same(settings({ inspection: { onOverload: 'Drop' } })?.inspection, undefined);
  t.same(settings({ inspection: { onOverload: 'Accept', workers: 3 } })?.inspection, {
    workers: 3,
    onOverload: 'Accept',
  });
  t.same(settings({ inspection: { workers: 3 } })?.inspection, { workers: 3 });
  t.end();
});

t.test('names of which nobody would know the addresses', (t) => {
  const dns = { dns: { resolvers: ['198.51.100.53'] } };
  const reason = (pools: GatewayPool[], service: ExternalService): string | undefined =>
    run([...pools, service])
      .statuses.get(`ExternalService/${service.metadata.namespace}/it`)
      ?.conditions.find(({ type }) => type === 'Accepted')?.reason;
  const other = parsed<GatewayPool>({
    kind: 'GatewayPool',
    metadata: { name: 'other' },
    spec: {
      ...poolOf(dns).spec,
      namespaceSelector: { matchLabels: { none: 'such' } },
      gateways: [{ name: 'gw-b', internalAddress: '10.0.0.32' }],
      nextHops: { v4: ['10.0.0.65'] },
    },
  });
  const own = external(named);
  const lent = external(named, 'it', 'sluice-system');
  t.equal(reason([poolOf({})], own), 'NoResolvers');
  t.equal(reason([poolOf(dns)], own), 'Accepted');
  t.equal(reason([poolOf({}), other], own), 'NoResolvers', "another pool's resolvers are no help");
  t.equal(reason([poolOf({}), other], lent), 'Accepted', 'but to cluster rules, which hold in both');
  t.equal(reason([poolOf({})], lent), 'NoResolvers');
  t.equal(reason([other], own), 'Accepted', 'no pool carries the namespace');
  t.equal(reason([poolOf({})], external({ addresses: ['198.51.100.1'] })), 'Accepted', 'without names');
  t.end();
});

t.test('what must be known at the first packet names no such service', (t) => {
  const services = [
    external({ addresses: ['198.51.100.1'] }, 'plain'),
    external(named, 'named'),
    external({ addresses: ['198.51.100.1'], ports: [tcp('443', { appProtocol: 'TLS' })] }, 'checked'),
  ];
  const https = tcp('443', { bandwidth: '5Mbit' });
  services.push(external({ ...named, ports: [https] }, 'slow'));
  const cluster = services.map((one) => external(one.spec, one.metadata.name, 'sluice-system'));
  const condition = (kind: string, spec: Fields) => {
    const metadata = { name: 'r', ...(kind === 'ClusterEgressRule' ? {} : { namespace: 'a' }) };
    const result = run([
      poolOf({}),
      ...services,
      ...cluster,
      parsed({ kind, metadata, spec: { ...spec, ...(kind === 'ServiceEgressRule' && { service: 's' }) } }),
    ]);
    const key = kind === 'ClusterEgressRule' ? `${kind}/r` : `${kind}/a/r`;
    const found = result.statuses.get(key)?.conditions.find(({ type }) => type === 'Accepted');
    const { rules = {} } = result.binding;
    return { reason: found?.reason, message: found?.message, bound: Object.keys(rules).length > 0 };
  };
  const redirect = { redirect: { address: '198.51.100.90' } };
  const limits: Fields[] = [{ connectionsPerSecond: 5 }, { maxConnections: 5 }, { bandwidth: '5Mbit' }];
  for (const name of ['named', 'checked', 'plain']) {
    const externalServices = ['plain', ...(name === 'plain' ? [] : [name])];
    const is = (kind: string, spec: Fields, reason: string | undefined): void => {
      const found = condition(kind, { externalServices, ...spec });
      const title = `${name} ${kind} ${JSON.stringify(spec)}`;
      const refused = name !== 'plain' && reason !== undefined;
      t.equal(found.bound, !refused, `${title}: ${refused ? 'not bound' : 'bound'}`);
      if (!refused) t.notMatch(found.reason, /NeedsAddresses/, title);
      else {
        t.equal(found.reason, reason, title);
        t.match(found.message, new RegExp(`/${name} has names or appProtocol`), title);
      }
    };
    for (const kind of ['ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule']) {
      const decides = kind === 'ServiceEgressRule';
      is(kind, { action: 'accept-decisively', ...redirect }, 'RedirectNeedsAddresses');
      is(kind, { action: 'accept-decisively', mode: 'Audit', ...redirect }, 'RedirectNeedsAddresses');
      is(kind, { action: 'accept' }, undefined);
      for (const limit of limits) {
        const counted = limit.maxConnections === undefined ? undefined : 'LimitNeedsAddresses';
        is(kind, { action: 'accept-decisively', ...limit }, counted);
        is(kind, { action: 'accept', ...limit }, decides ? counted : 'LimitNeedsAddresses');
        const audit = limit.bandwidth === undefined ? 'LimitNeedsAddresses' : undefined;
        is(kind, { action: 'accept-decisively', mode: 'Audit', ...limit }, audit);
        is(kind, { action: 'accept', mode: 'Audit', ...limit }, audit);
      }
    }
  }
  // Of a flow only the rule is kept that permitted it, not by which of its services.
  for (const [names, bound] of [
    [['slow'], true],
    [['slow', 'plain'], true],
    [['slow', 'named'], false],
    [['slow', 'checked'], false],
    [['named', 'checked'], true],
  ] as const) {
    const found = condition('ServiceEgressRule', { action: 'accept', externalServices: names });
    t.equal(found.bound, bound, names.join());
    if (!bound) t.match(found, { reason: 'LimitNeedsAddresses', message: /^bandwidth of a port of a\/slow: / });
    t.ok(condition('NamespaceEgressRule', { action: 'accept', externalServices: names }).bound, 'it hands on');
    t.ok(
      condition('ServiceEgressRule', { action: 'accept', mode: 'Audit', externalServices: names }).bound,
      'in audit',
    );
  }
  t.match(condition('ClusterEgressRule', { action: 'accept', externalServices: ['*'], maxConnections: 5 }), {
    reason: 'Accepted',
    bound: true,
  });
  t.end();
});

t.test('EgressIPs for destinations know their addresses', (t) => {
  const egressIP = (...destinations: string[]) => {
    const result = run([
      poolOf({}),
      parsed({
        kind: 'EgressIPPool',
        metadata: { name: 'public' },
        spec: { gatewayPool: 'main', ranges: ['203.0.113.0/24'], namespaceSelector: {} },
      }),
      parsed({
        kind: 'EgressIP',
        metadata: { name: 'e' },
        spec: { pool: 'public', count: 1, namespaces: ['a'], destinations },
      }),
      external({ addresses: ['198.51.100.1', '**.example.com'] }, 'named', 'sluice-system'),
      external(
        { addresses: ['198.51.100.1'], ports: [tcp('443', { appProtocol: 'TLS' })] },
        'checked',
        'sluice-system',
      ),
    ]);
    const accepted = result.statuses.get('EgressIP/e')?.conditions.find(({ type }) => type === 'Accepted');
    return { accepted, destinations: result.pools.get('main')?.egressIPs.e?.destinations };
  };
  t.match(egressIP('sluice-system/named', '203.0.113.0/24'), {
    accepted: { status: 'False', reason: 'DestinationNeedsAddresses', message: /sluice-system\/named has names/ },
    destinations: undefined,
  });
  // As with ports: what flows say there does not matter.
  t.match(egressIP('sluice-system/checked'), { accepted: { status: 'True' }, destinations: ['198.51.100.1/32'] });
  t.end();
});

t.test('a veto keeps names and checks of a service that is gone, across restarts', (t) => {
  const sample = samples.find(({ kind }) => kind === 'ExternalService') as unknown as { spec: Fields };
  const { addressesFrom: _, ...spec } = sample.spec;
  const rule = parsed({
    kind: 'NamespaceEgressRule',
    metadata: { name: 'r', namespace: 'a' },
    spec: { action: 'drop', externalServices: ['it'] },
  });
  const before = run([poolOf({}), external(spec), rule]);
  const entry = before.memory.lastServices['a/it'];
  t.same(entry, entryOf(spec));
  t.ok(entry?.names?.includes('**.xn--bcher-kva.example') && (entry.checks?.length ?? 0) > 4);
  const memory = readMemory(JSON.parse(JSON.stringify(before.memory)));
  t.same(memory?.lastServices['a/it'], entry, 'as it is read again');
  const after = run([poolOf({}), rule], memory);
  t.same(after.binding.services['a/it'], entry);
  t.match(after.statuses.get('NamespaceEgressRule/a/r')?.conditions[0], {
    reason: 'ExternalServiceNotFound',
    status: 'True',
  });

  const damage: [string, (entry: Fields) => void][] = [
    ['no addresses', (one) => delete one.addresses],
    ['an address', (one) => Object.assign(one, { addresses: ['x'] })],
    ['names', (one) => Object.assign(one, { names: ['*'] })],
    ['ports', (one) => Object.assign(one, { ports: [{ protocol: 6, ports: [['a', 'b']] }] })],
    ['an application', (one) => Object.assign(one, { checks: [{ ...TLS, application: 'tls' }] })],
    ['names of a check', (one) => Object.assign(one, { checks: [{ ...TLS, tls: { serverNames: ['a..b'] } }] })],
    ['paths of a check', (one) => Object.assign(one, { checks: [{ ...HTTP, http: { paths: [1] } }] })],
  ];
  for (const [name, change] of damage) {
    const content = JSON.parse(JSON.stringify(before.memory)) as { lastServices: Record<string, Fields> };
    change(content.lastServices['a/it'] as Fields);
    t.equal(readMemory(content), undefined, `damaged: ${name}`);
  }
  t.end();
});
