/**
 * Every field of the policy kinds in every context with every action: a rule, or an external service that it names,
 * that speaks of a flow, and one that differs in that field alone and does not. From manifests through parser, binding
 * and evaluator. What must be tried is read from the schemas: a field, an action or a protocol without a row fails.
 */

import t from 'tap';
import { type Application, applications } from '../../api/application.ts';
import {
  type AnyObject,
  type ExternalService,
  type KindName,
  type Namespace,
  type Pod,
  parseObject,
} from '../../api/kinds.ts';
import { type Action, type Context, contexts, type Family, families, type Policy } from '../../api/plan.ts';
import { icmpProtocol, portProtocols, protocolNumbers } from '../../api/ports.ts';
import { schemas } from '../../api/schema/registry.ts';
import type { ApplicationReading, TlsReading } from '../../policy/application.ts';
import { type BindInput, bind } from '../../policy/bind.ts';
import { compilePolicy, type Flow } from '../../policy/evaluate.ts';

/** Field → file of tests of its own, for fields that do not choose flows. */
const elsewhere: Record<string, string> = {
  bandwidth: 'unit/bandwidth.test.ts',
  'ports[].bandwidth': 'unit/bandwidth.test.ts',
  'ports[].dns.maxQuestionsPerSecond': 'property/names.test.ts',
  connectionsPerSecond: 'unit/limits.test.ts',
  logging: 'unit/logging.test.ts, netns/logging.test.ts',
  maxConnections: 'unit/limits.test.ts',
  redirect: 'unit/redirect.test.ts',
  webhook: 'unit/webhooks.test.ts',
};

const SYSTEM = 'sluice-system';
/** A Friday. */
const NOW = Date.UTC(2026, 10, 27, 12);
const pod = { 4: '10.244.1.5', 6: 'fd00:244:1::5' } as const;
const web = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
const next = { 4: '198.51.100.81', 6: '2001:db8:100::81' } as const;

const kinds = {
  cluster: 'ClusterEgressRule',
  namespace: 'NamespaceEgressRule',
  service: 'ServiceEgressRule',
} as const satisfies Record<Context, KindName>;

type Manifest = { kind: KindName; metadata: object; [field: string]: unknown };

function parsed<T>(manifest: Manifest): T {
  const core = { Namespace: 'v1', Pod: 'v1', EndpointSlice: 'discovery.k8s.io/v1' } as Record<string, string>;
  const object = parseObject({ apiVersion: core[manifest.kind] ?? 'sluice.dev/v1alpha1', ...manifest });
  if (!object.ok) throw new Error(JSON.stringify([manifest, object.errors]));
  return object.value as AnyObject as T;
}

/** The pod is listed by its Service, and not ready. */
const world: BindInput = {
  namespaces: [parsed<Namespace>({ kind: 'Namespace', metadata: { name: 'billing', labels: { team: 'pay' } } })],
  pods: [
    parsed<Pod>({
      kind: 'Pod',
      metadata: { name: 'pay-1', namespace: 'billing', uid: 'u', labels: { app: 'pay' } },
      spec: { nodeName: 'n', serviceAccountName: 'payer' },
      status: { phase: 'Running', podIPs: families.map((family) => ({ ip: pod[family] })) },
    }),
  ],
  endpointSlices: [
    parsed({
      kind: 'EndpointSlice',
      metadata: { name: 'p-1', namespace: 'billing', labels: { 'kubernetes.io/service-name': 'payments' } },
      addressType: 'IPv4',
      endpoints: [{ addresses: [pod[4]], conditions: { ready: false } }],
    }),
  ],
  externalServices: [],
  clusterRules: [],
  namespaceRules: [],
  serviceRules: [],
  controllerNamespace: SYSTEM,
  auditedNamespaces: new Set(),
  lastServices: {},
  now: NOW,
};

const external = (name: string, namespace: string, spec: object): ExternalService =>
  parsed({ kind: 'ExternalService', metadata: { name, namespace }, spec });

/** What the flow's bytes said, and names that the table has its destination for. */
interface Said {
  reading?: ApplicationReading;
  names?: string[];
}

/**
 * What becomes of a flow under these rules of one context, each a name and a spec; whether `r` decided there; what
 * rules in audit would have done.
 */
function judge(context: Context, rules: Record<string, object>, service: object, flow: Flow, said?: Said) {
  const namespace = context === 'cluster' ? {} : { namespace: 'billing' };
  const objects = Object.entries(rules).map(([name, spec]) =>
    parsed<never>({
      kind: kinds[context],
      metadata: { name, ...namespace },
      spec: { externalServices: ['it'], ...(context === 'service' && { service: 'payments' }), ...spec },
    }),
  );
  const where = context === 'cluster' ? SYSTEM : 'billing';
  const other = { addresses: [next[4], next[6]] };
  const binding = bind({
    ...world,
    externalServices: [external('it', where, service), external('other', where, other)],
    [`${context}Rules`]: objects,
    // What a service has from elsewhere.
    lists: new Map([[`${where}/it`, [{ addresses: [`${web[4]}/32`, `${web[6]}/128`] }]]]),
  });
  const policy: Policy = {
    settings: {},
    rules: binding.rules,
    services: binding.services,
    groups: binding.groups,
    workloads: {
      u: {
        namespace: 'billing',
        name: 'pay-1',
        uid: 'u',
        node: 'n',
        services: binding.servicesOf.get('u') ?? [],
        addresses: [pod[4], pod[6]],
        group: binding.groupOf.get('u') ?? '',
        egress: {},
      },
    },
  };
  const { reading, names = [] } = said ?? {};
  const known = said && {
    gives: (name: string) => names.includes(name),
    namesOf: () => names,
    ...(reading && { reading }),
  };
  const { decision, contexts: outcomes } = compilePolicy(policy).explain(flow, known);
  const outcome = outcomes.find((one) => one.context === context);
  return {
    outcome: `${decision.verdict} ${decision.reason}`,
    decides: outcome?.rule?.endsWith('/r') === true,
    noted: decision.audited?.map(({ action }) => action) ?? [],
  };
}

/** Of a flow that a rule of the context speaks of, where no other does and the default action is Drop. */
const outcomes: Record<Action, Record<Context, string>> = {
  accept: { cluster: 'drop default-action', namespace: 'drop default-action', service: 'accept service-accept' },
  'accept-decisively': { cluster: 'accept rule', namespace: 'accept rule', service: 'accept rule' },
  drop: { cluster: 'drop rule', namespace: 'drop rule', service: 'drop rule' },
  reject: { cluster: 'reject rule', namespace: 'reject rule', service: 'reject rule' },
};
const actions = Object.keys(outcomes) as Action[];
const nothing = 'drop default-action';

const ruleFields = (context: Context): string[] => Object.keys(schemas[kinds[context]].properties.spec.properties);

interface RuleRow {
  speaks: object;
  silent: object;
  /** Another rule of the context that speaks of the flow, and drops it. */
  rival?: object;
  /** The silent rule is noted, as one in audit. */
  noted?: true;
}
/** By field; only `action` has none, being what every row is tried with. */
const ruleRows: Record<string, RuleRow[]> = {
  mode: [{ speaks: { mode: 'Enforce' }, silent: { mode: 'Audit' }, noted: true }],
  externalServices: [
    { speaks: { externalServices: ['it'] }, silent: { externalServices: ['other'] } },
    { speaks: { externalServices: ['other', 'it'] }, silent: { externalServices: ['other', 'none'] } },
    { speaks: { externalServices: ['*'] }, silent: { externalServices: ['other'] } },
  ],
  priority: [{ speaks: { priority: 0 }, silent: { priority: 65_535 }, rival: { priority: 1000 } }],
  podSelector: [
    {
      speaks: { podSelector: { matchLabels: { app: 'pay' } } },
      silent: { podSelector: { matchLabels: { app: 'x' } } },
    },
  ],
  namespaceSelector: [
    {
      speaks: { namespaceSelector: { matchLabels: { team: 'pay' } } },
      silent: { namespaceSelector: { matchLabels: { team: 'x' } } },
    },
  ],
  serviceAccounts: [{ speaks: { serviceAccounts: ['x', 'payer'] }, silent: { serviceAccounts: ['x'] } }],
  schedule: [
    {
      speaks: { schedule: [{ days: ['Fri'], from: '11:00', to: '13:00' }] },
      silent: { schedule: [{ days: ['Fri'], from: '13:00', to: '11:00' }] },
    },
  ],
  service: [{ speaks: { service: 'payments' }, silent: { service: 'reviews' } }],
  endpoints: [{ speaks: { endpoints: 'All' }, silent: { endpoints: 'Ready' } }],
};

t.test('every field of a rule, with every action in every context', async (t) => {
  for (const context of contexts) {
    const { action } = schemas[kinds[context]].properties.spec.properties;
    t.same([...action.enum].sort(), [...actions].sort(), `${context}: every action`);
    for (const field of ruleFields(context)) {
      if (field === 'action' || elsewhere[field] !== undefined) continue;
      const rows = ruleRows[field] ?? [];
      t.ok(rows.length > 0, `${context}: ${field} has a row`);
      for (const { speaks, silent, rival, noted } of rows) {
        for (const action of actions) {
          for (const family of families) {
            const flow = { source: pod[family], destination: web[family], protocol: 6, destinationPort: 443 };
            const it = { addresses: [web[4], web[6]] };
            const others = rival === undefined ? {} : { rival: { action: 'drop', ...rival } };
            const name = `${context} ${action} v${family}`;
            t.same(
              judge(context, { ...others, r: { action, ...speaks } }, it, flow),
              { outcome: outcomes[action][context], decides: true, noted: [] },
              `${name}: ${JSON.stringify(speaks)}`,
            );
            t.same(
              judge(context, { ...others, r: { action, ...silent } }, it, flow),
              { outcome: rival === undefined ? nothing : 'drop rule', decides: false, noted: noted ? [action] : [] },
              `${name}: ${JSON.stringify(silent)}`,
            );
          }
        }
      }
    }
  }
  const known = new Set(contexts.flatMap(ruleFields));
  t.same(
    Object.keys(ruleRows).filter((field) => !known.has(field)),
    [],
    'no row of a field that is not there',
  );
});

type Traffic = Omit<Flow, 'source' | 'destination'>;
interface ServiceRow {
  spec: {
    addresses?: string[];
    addressesFrom?: { file: string }[];
    ports?: { name: string; protocol: string | number; port?: string; [check: string]: unknown }[];
  };
  /** To WEB, unless it says otherwise. */
  speaks: Traffic & { destination?: string; said?: Said };
  silent: Traffic & { destination?: string; said?: Said };
}
const tcp = { protocol: 6, destinationPort: 443 };

/** With `port` where the protocol has ports or types in this family, and without. */
function protocolRows(protocol: string | number, number: number, family: Family): ServiceRow[] {
  const addresses = [web[family]];
  const only = (port?: string) => ({
    addresses,
    ports: [{ name: 'a', protocol, ...(port !== undefined && { port }) }],
  });
  const any: ServiceRow = { spec: only(), speaks: { protocol: number }, silent: { protocol: number === 6 ? 17 : 6 } };
  if (portProtocols.has(number)) {
    const at = (destinationPort: number): Traffic => ({ protocol: number, destinationPort });
    return [
      { ...any, speaks: at(1) },
      { spec: only('443,8000-8100'), speaks: at(443), silent: at(444) },
      { spec: only('443,8000-8100'), speaks: at(8100), silent: at(8101) },
      { spec: only('443'), speaks: at(443), silent: { ...at(443), protocol: number === 6 ? 17 : 6 } },
    ];
  }
  const of = (icmpType: number, icmpCode: number): Traffic => ({ protocol: number, icmpType, icmpCode });
  if (number !== icmpProtocol[family]) return [any];
  return [
    { ...any, speaks: of(13, 7) },
    { spec: only('8,3/4'), speaks: of(8, 7), silent: of(9, 0) },
    { spec: only('8,3/4'), speaks: of(3, 4), silent: of(3, 5) },
  ];
}

const hello: TlsReading = { version: 0x0303, alpn: ['h2'], encryptedClientHello: false };
const readTls = (name: string | undefined, names: string[] = [], more: Partial<TlsReading> = {}): Said => ({
  reading: { application: 'TLS', ...(name !== undefined && { name }), tls: { ...hello, ...more } },
  names,
});
const readHttp = (name: string, method: string, path: string): Said => ({
  reading: { application: 'HTTP', name, http: { method, path } },
});
const readQuestion = (name: string, type: string): Said => ({
  reading: { application: 'DNS', name, dns: { type } },
});
const readAs = (application: Application): Said => ({ reading: { application } });

/** Names, and each part of what a port asks of bytes. */
function readRows(family: Family): ServiceRow[] {
  const addresses = [web[family]];
  const row = (spec: ServiceRow['spec'], traffic: Traffic, speaks: Said, silent: Said): ServiceRow => ({
    spec,
    speaks: { ...traffic, said: speaks },
    silent: { ...traffic, said: silent },
  });
  const check = (check: object, speaks: Said, silent: Said, traffic: Traffic = tcp): ServiceRow => {
    const { protocol, destinationPort } = traffic;
    return row(
      { addresses, ports: [{ name: 'a', protocol, port: String(destinationPort), ...check }] },
      traffic,
      speaks,
      silent,
    );
  };
  const tls = (part: object, speaks: Said, silent: Said): ServiceRow =>
    check({ appProtocol: 'TLS', tls: part }, speaks, silent);
  const http = (part: object, speaks: Said, silent: Said): ServiceRow =>
    check({ appProtocol: 'HTTP', http: part }, speaks, silent);
  const udp = { protocol: 17, destinationPort: 53 };
  const dns = (part: object, speaks: Said, silent: Said): ServiceRow =>
    check({ appProtocol: 'DNS', dns: part }, speaks, silent, udp);
  const at = (name: string): Said => readTls(name, [name]);
  const ssh = { protocol: 6, destinationPort: 22 };
  return [
    row({ addresses: ['a.test'] }, tcp, at('a.test'), at('b.test')),
    row({ addresses: ['*.a.test'] }, tcp, at('b.a.test'), at('a.test')),
    row({ addresses: ['**.a.test'] }, tcp, at('c.b.a.test'), at('a.test')),
    // Nothing is read there.
    row({ addresses: ['a.test'] }, ssh, { names: ['a.test'] }, { names: ['b.test'] }),
    {
      spec: { addresses: ['a.test', ...addresses] },
      speaks: { ...tcp, said: readTls('b.test') },
      silent: { ...tcp, destination: next[family], said: readTls('b.test', ['b.test']) },
    },
    ...applications.flatMap((application) => {
      const traffic = application === 'QUIC' ? { protocol: 17, destinationPort: 443 } : tcp;
      return check({ appProtocol: application }, readAs(application), { reading: {} }, traffic);
    }),
    tls({ serverNames: ['**.a.test', 'b.test'] }, readTls('b.test'), readTls('c.test')),
    tls({ minVersion: '1.2' }, readTls('b.test'), readTls('b.test', [], { version: 0x0302 })),
    tls({ alpn: ['h2'] }, readTls('b.test'), readTls('b.test', [], { alpn: ['h2', 'x'] })),
    tls({ rejectEncryptedClientHello: true }, readTls('b.test'), readTls('b.test', [], { encryptedClientHello: true })),
    http({ hosts: ['a.test'] }, readHttp('a.test', 'GET', '/'), readHttp('b.test', 'GET', '/')),
    http({ methods: ['GET', 'PUT'] }, readHttp('a.test', 'PUT', '/'), readHttp('a.test', 'POST', '/')),
    http({ paths: ['/a/*', '/b'] }, readHttp('a.test', 'GET', '/a/c'), readHttp('a.test', 'GET', '/b/c')),
    dns({ names: ['*.a.test'] }, readQuestion('b.a.test', 'A'), readQuestion('a.test', 'A')),
    dns({ types: ['AAAA', 'TYPE65'] }, readQuestion('a.test', 'HTTPS'), readQuestion('a.test', 'TXT')),
    check({ appProtocol: 'TLS', conformance: 'Enforce' }, readTls('a.test'), readAs('SSH')),
    ...(['Audit', 'Off'] as const).map((conformance): ServiceRow => {
      const { spec, speaks } = check({ appProtocol: 'TLS', conformance }, readAs('SSH'), {});
      return { spec, speaks, silent: { ...speaks, destination: next[family] } };
    }),
  ];
}

function serviceRows(family: Family): ServiceRow[] {
  const before = family === 4 ? '198.51.100.79' : '2001:db8:100::7f';
  const net = family === 4 ? '198.51.100.80/32' : '2001:db8:100::80/128';
  const to = (destination: string) => ({ ...tcp, destination });
  return [
    ...[[web[family]], [net], [`${before}-${web[family]}`]].map(
      (addresses): ServiceRow => ({ spec: { addresses }, speaks: tcp, silent: to(next[family]) }),
    ),
    ...readRows(family),
    { spec: { addressesFrom: [{ file: 'list.txt' }] }, speaks: tcp, silent: to(next[family]) },
    { spec: { addresses: [before, web[family]] }, speaks: { protocol: 253 }, silent: to(next[family]) },
    ...Object.entries(protocolNumbers).flatMap(([name, number]) => protocolRows(name, number, family)),
    ...Object.values(protocolNumbers).flatMap((number) => protocolRows(String(number), number, family)),
    ...[47, 136, 255].flatMap((number) => protocolRows(number, number, family)),
  ];
}

/** `tls`, `tls.alpn`. */
const fieldsOf = (port: object): string[] =>
  Object.entries(port).flatMap(([field, value]) => [
    field,
    ...(typeof value === 'object' ? Object.keys(value).map((part) => `${field}.${part}`) : []),
  ]);

t.test('every field of an ExternalService, with every action in every context', async (t) => {
  const used = new Set<string>();
  for (const family of families) {
    for (const { spec, speaks, silent } of serviceRows(family)) {
      for (const field of Object.keys(spec)) used.add(field);
      for (const port of spec.ports ?? []) for (const field of fieldsOf(port)) used.add(`ports[].${field}`);
      const ends = { source: pod[family], destination: web[family] };
      for (const context of contexts) {
        for (const action of actions) {
          const name = `${context} ${action} v${family} ${JSON.stringify(spec)}`;
          t.same(
            judge(context, { r: { action } }, spec, { ...ends, ...speaks }, speaks.said),
            { outcome: outcomes[action][context], decides: true, noted: [] },
            `${name}: ${JSON.stringify(speaks)}`,
          );
          t.same(
            judge(context, { r: { action } }, spec, { ...ends, ...silent }, silent.said),
            { outcome: nothing, decides: false, noted: [] },
            `${name}: not ${JSON.stringify(silent)}`,
          );
        }
      }
    }
  }
  const { properties } = schemas.ExternalService.properties.spec;
  const fields = [
    ...Object.keys(properties),
    ...Object.entries(properties.ports.items.properties).flatMap(([field, schema]) => [
      `ports[].${field}`,
      ...Object.keys((schema as { properties?: object }).properties ?? {}).map((part) => `ports[].${field}.${part}`),
    ]),
  ];
  t.same(
    fields.filter((field) => elsewhere[field] === undefined && !used.has(field)),
    [],
    'every field has a row',
  );
});
