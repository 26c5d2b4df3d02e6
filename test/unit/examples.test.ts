/**
 * What examples/*.yaml promise in their comments: every document is taken, the planner accepts every object, and flows
 * meet the verdicts of the table, by the same way as in the product (documents → plan → evaluator). Each example is
 * shown by itself (with the cluster and the pool that all need) and together with all others; and without its rules
 * something else happens, so that none is there for nothing.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { parseAddress } from '../../api/address.ts';
import { renderCrds } from '../../api/crd.ts';
import { type AnyObject, sluiceKinds } from '../../api/kinds.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { readDocuments } from '../../controller/observe/document.ts';
import { readLists } from '../../controller/observe/lists.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { compileEgress } from '../../policy/egress.ts';
import { compilePolicy, type Decision } from '../../policy/evaluate.ts';
import { examplesFolder } from '../sluice.ts';

type Json = Record<string, unknown>;

const base = ['cluster.yaml', 'gateway-pool.yaml'];

const files = readdirSync(examplesFolder).filter((name) => name.endsWith('.yaml'));
const documents = new Map(
  files.map((name) => [
    name,
    readDocuments(name, readFileSync(join(examplesFolder, name), 'utf8'), new Map(), () => undefined),
  ]),
);

/** What the API server would drop from a status, or refuse, since the CRD has no place for it. */
function misfits(value: unknown, schema: Json, path: string): string[] {
  if (Array.isArray(value)) {
    if (schema.type !== 'array' || value.length > Number(schema.maxItems)) return [`${path}: ${value.length} items`];
    return value.flatMap((item, i) => misfits(item, schema.items as Json, `${path}[${i}]`));
  }
  if (typeof value === 'object' && value !== null) {
    const properties = (schema.properties ?? {}) as Record<string, Json>;
    return Object.entries(value).flatMap(([name, item]) =>
      properties[name] === undefined ? [`${path}.${name}`] : misfits(item, properties[name], `${path}.${name}`),
    );
  }
  const type = Number.isInteger(value) ? 'integer' : typeof value;
  const listed = (schema.enum as unknown[] | undefined)?.includes(value) ?? true;
  return schema.type === type && listed ? [] : [`${path}: ${value}`];
}

function snapshotOf(names: readonly string[]): Map<string, AnyObject> {
  const snapshot = new Map<string, AnyObject>();
  for (const name of names) for (const [key, object] of documents.get(name)?.objects ?? []) snapshot.set(key, object);
  return snapshot;
}

/** A Thursday, 01:00 in Berlin: the schedule of schedule.yaml is open. */
const NIGHT = Date.parse('1970-01-01T00:00:00Z');
const lists = await readLists(snapshotOf(files), () => examplesFolder);
const planned = (names: readonly string[], now = NIGHT): PlanResult =>
  plan(snapshotOf(names), emptyMemory(), noPeers(), now, lists);
const mainPlan = (names: readonly string[], now?: number): GatewayPlan =>
  planned(names, now).pools.get('main') as GatewayPlan;

/** Pod as `namespace/name`; the source is its address of the destination's family. Of ICMP `port` is the type. */
function decide(policy: GatewayPlan, pod: string, to: string, protocol: number, port?: number, said?: Said): Decision {
  const workload = Object.values(policy.workloads).find(({ namespace, name }) => `${namespace}/${name}` === pod);
  const source = workload?.addresses.find((address) => address.includes(':') === to.includes(':'));
  if (source === undefined) throw new Error(`${pod} has no address to reach ${to} from`);
  const flow = { source, destination: to, protocol };
  // The table gives these names every address.
  const { reading, names = [] } = said ?? {};
  const known = said && {
    gives: (name: string) => names.includes(name),
    namesOf: () => names,
    ...(reading && { reading }),
  };
  if (port === undefined) return compilePolicy(policy).decide(flow, known);
  const isIcmp = protocol === ICMP || protocol === ICMPV6;
  return compilePolicy(policy).decide(
    { ...flow, ...(isIcmp ? { icmpType: port, icmpCode: 0 } : { destinationPort: port }) },
    known,
  );
}

/** What the flow's bytes said, and names that its destination has. Rows without it: nobody asks. */
interface Said {
  reading?: ApplicationReading;
  names?: string[];
}
const tls = (name: string, ...names: string[]): Said => ({
  reading: { application: 'TLS', name, tls: { version: 0x0304, alpn: ['h2'], encryptedClientHello: false } },
  names,
});
const http = (name: string, method: string, path: string): Said => ({
  reading: { application: 'HTTP', name, http: { method, path } },
});
const question = (name: string, type: string): Said => ({ reading: { application: 'DNS', name, dns: { type } } });
const unread: Said = {};

const [ICMP, TCP, UDP, ICMPV6] = [1, 6, 17, 58];
const resolver = 'namespace/batch/our-resolver';
const vendor = 'namespace/monitoring/grafana-may-ask-vendor';
const catalogue = 'accept service/reviews/read-catalogue';
const shop = 'catalogue.example.com';
const probe = 'accept namespace/monitoring/probe-may-ask';
type Row = [
  from: string,
  to: string,
  protocol: number,
  port: number | undefined,
  outcome: string,
  why: string,
  said?: Said,
];

/** Outcome: the verdict, and the rule that decided or `default-action`; where it goes, if that is elsewhere. */
const examples: Record<string, Row[]> = {
  'coredns-upstream.yaml': [
    ['kube-system/coredns-1', '198.51.100.53', UDP, 53, 'accept service/kube-system/coredns-upstream', 'by UDP'],
    ['kube-system/coredns-1', '198.51.100.53', TCP, 53, 'accept service/kube-system/coredns-upstream', 'by TCP'],
    ['kube-system/coredns-1', '2001:db8:100::53', UDP, 53, 'accept service/kube-system/coredns-upstream', 'by IPv6'],
    ['kube-system/coredns-1', '198.51.100.53', TCP, 853, 'drop default-action', 'no other port'],
    ['kube-system/coredns-1', '198.51.100.54', UDP, 53, 'drop default-action', 'no other resolver'],
    ['reviews/reviews-1', '198.51.100.53', UDP, 53, 'drop default-action', 'pods ask CoreDNS, not the resolvers'],
  ],
  'ntp.yaml': [
    ['batch/cleanup-7', '198.51.100.123', UDP, 123, 'accept cluster/time-for-all', 'a pod without a Service'],
    ['reviews/reviews-1', '2001:db8:100::123', UDP, 123, 'accept cluster/time-for-all', 'a pod behind a Service'],
    ['batch/cleanup-7', '198.51.100.123', TCP, 123, 'drop default-action', 'the time only'],
    ['batch/cleanup-7', '198.51.100.124', UDP, 123, 'drop default-action', 'of these servers only'],
  ],
  'icmp-echo.yaml': [
    ['monitoring/blackbox-1', '198.51.100.80', ICMP, 8, 'accept namespace/monitoring/probe-may-ping', 'ping'],
    ['monitoring/blackbox-1', '2001:db8:100::80', ICMPV6, 128, 'accept namespace/monitoring/probe-may-ping', '6'],
    ['monitoring/blackbox-1', '198.51.100.80', ICMP, 13, 'drop default-action', 'nothing but ping'],
    ['monitoring/blackbox-1', '2001:db8:100::80', ICMPV6, 139, 'drop default-action', 'by IPv6 neither'],
    ['monitoring/grafana-1', '198.51.100.80', ICMP, 8, 'drop default-action', 'a neighbour may not'],
    ['monitoring/blackbox-1', '203.0.113.250', ICMP, 8, 'drop default-action', 'not everywhere'],
    ['monitoring/blackbox-1', '198.51.100.80', UDP, 33434, 'drop default-action', 'not by other protocols'],
  ],
  'names.yaml': [
    ...['api.example.com', 'eu.status.example.com'].map(
      (name): Row => ['monitoring/grafana-1', '192.0.3.1', TCP, 443, `accept ${vendor}`, name, tls(name, name)],
    ),
    [
      'monitoring/grafana-1',
      '2001:db8:7::1',
      TCP,
      443,
      `accept ${vendor}`,
      'by IPv6',
      tls('api.example.com', 'api.example.com'),
    ],
    [
      'monitoring/grafana-1',
      '192.0.3.1',
      TCP,
      443,
      'drop default-action',
      'another name at the same address',
      tls('www.example.com', 'api.example.com'),
    ],
    [
      'monitoring/grafana-1',
      '192.0.3.1',
      TCP,
      443,
      'drop default-action',
      'the name, at an address that it does not have',
      tls('api.example.com', 'www.example.com'),
    ],
    [
      'monitoring/grafana-1',
      '192.0.3.1',
      TCP,
      443,
      'drop default-action',
      'no TLS',
      { reading: { application: 'SSH' }, names: ['api.example.com'] },
    ],
    ['monitoring/grafana-1', '192.0.3.1', TCP, 443, 'accept unread', 'before it has said anything', unread],
    ['monitoring/grafana-1', '192.0.3.1', TCP, 80, 'drop default-action', 'not another port', unread],
    ['monitoring/blackbox-1', '192.0.3.1', TCP, 443, 'drop default-action', 'not a neighbour', unread],
    [
      'monitoring/grafana-1',
      '192.0.3.2',
      TCP,
      443,
      'reject cluster/no-paste-sites',
      'a paste site, by name',
      tls('a.b.paste.example'),
    ],
    [
      'batch/report-29',
      '192.0.3.2',
      TCP,
      443,
      'reject cluster/no-paste-sites',
      'or by address, where no name is said',
      { reading: { application: 'SSH' }, names: ['paste.example'] },
    ],
  ],
  'http-paths.yaml': [
    ['reviews/reviews-1', '198.51.100.66', TCP, 8080, catalogue, 'to read', http(shop, 'GET', '/v1/items')],
    ['reviews/reviews-1', '2001:db8:100::66', TCP, 8080, catalogue, 'by IPv6', http(shop, 'HEAD', '/v1/')],
    ...[http(shop, 'POST', '/v1/items'), http(shop, 'GET', '/v2/items'), http('www.example.com', 'GET', '/v1/')].map(
      (said): Row => ['reviews/reviews-1', '198.51.100.66', TCP, 8080, 'drop default-action', 'nothing else', said],
    ),
    ['reviews/reviews-1', '198.51.100.66', TCP, 8080, 'drop default-action', 'no TLS', tls(shop)],
    ['reviews/reviews-1', '198.51.100.66', TCP, 8080, 'accept unread', 'before it has asked', unread],
    ['reviews/reviews-1', '198.51.100.67', TCP, 8080, 'drop default-action', 'another machine', unread],
  ],
  'dns-questions.yaml': [
    ['monitoring/blackbox-1', '198.51.100.153', UDP, 53, probe, 'a question', question('a.partner.example', 'A')],
    ['monitoring/blackbox-1', '2001:db8:100::153', TCP, 53, probe, 'IPv6', question('a.b.partner.example', 'AAAA')],
    ...[question('partner.example', 'A'), question('a.partner.example', 'TXT')].map(
      (said): Row => ['monitoring/blackbox-1', '198.51.100.153', UDP, 53, 'drop default-action', 'another', said],
    ),
    ['monitoring/blackbox-1', '198.51.100.153', TCP, 22, probe, 'SSH', { reading: { application: 'SSH' } }],
    ['monitoring/blackbox-1', '198.51.100.153', TCP, 22, probe, 'what is none, counted', { reading: {} }],
    ['monitoring/blackbox-1', '198.51.100.153', TCP, 25, 'drop default-action', 'no other port', unread],
    ['monitoring/grafana-1', '198.51.100.153', UDP, 53, 'drop default-action', 'not a neighbour', unread],
  ],
  'job.yaml': [
    ['batch/report-29', '198.51.100.60', TCP, 443, 'accept namespace/batch/report-may-upload', 'the Job uploads'],
    ['batch/report-29', '2001:db8:100::60', TCP, 443, 'accept namespace/batch/report-may-upload', 'by IPv6'],
    ['batch/report-29', '198.51.100.60', TCP, 22, 'drop default-action', 'by HTTPS only'],
    ['batch/cleanup-7', '198.51.100.60', TCP, 443, 'drop default-action', 'another Job may not'],
  ],
  'egress-ip-by-destination.yaml': [
    ['batch/report-29', '198.51.100.161', TCP, 22, 'accept cluster/partner-sftp', 'the partner'],
    ['batch/cleanup-7', '2001:db8:100:160::9', TCP, 22, 'accept cluster/partner-sftp', 'by IPv6'],
    ['batch/report-29', '198.51.100.192', TCP, 22, 'drop default-action', 'the next network'],
    ['reviews/reviews-1', '198.51.100.161', TCP, 22, 'drop default-action', 'another namespace'],
  ],
  'limits.yaml': [
    ['reviews/reviews-1', '198.51.100.62', TCP, 5432, 'accept service/reviews/few-at-once', 'the database'],
    ['reviews/reviews-4', '2001:db8:100::62', TCP, 5432, 'accept service/reviews/few-at-once', 'by IPv6'],
    ['reviews/reviews-1', '198.51.100.62', TCP, 22, 'drop default-action', 'nothing else'],
    ['batch/report-29', '198.51.100.62', TCP, 5432, 'drop default-action', 'of another namespace'],
  ],
  'bandwidth.yaml': [
    ['reviews/reviews-1', '198.51.100.63', TCP, 9000, 'accept service/reviews/backup', 'the store'],
    ['reviews/reviews-1', '2001:db8:100::63', TCP, 9001, 'accept service/reviews/backup', 'another port of it'],
    ['reviews/reviews-1', '198.51.100.63', TCP, 22, 'drop default-action', 'nothing else'],
    ['batch/report-29', '198.51.100.63', TCP, 9000, 'drop default-action', 'of another namespace'],
  ],
  'partner-lists.yaml': [
    ['reviews/reviews-1', '198.51.100.32', TCP, 22, 'accept service/reviews/partners', 'of the ConfigMap'],
    ['reviews/reviews-1', '2001:db8:100:32::9', TCP, 22, 'accept service/reviews/partners', 'by IPv6'],
    ['reviews/reviews-1', '198.51.100.79', TCP, 22, 'accept service/reviews/partners', 'of the file'],
    ['reviews/reviews-1', '2001:db8:100:64::9', TCP, 22, 'accept service/reviews/partners', 'by IPv6'],
    ['reviews/reviews-1', '198.51.100.80', TCP, 22, 'drop default-action', 'the next address'],
    ['reviews/reviews-1', '198.51.100.32', TCP, 25, 'drop default-action', 'another port'],
    ['batch/report-29', '198.51.100.32', TCP, 22, 'drop default-action', 'another namespace'],
  ],
  'redirect.yaml': [
    ['batch/report-29', '198.51.100.99', UDP, 53, `accept ${resolver}-v4 to 198.51.100.53:53`, 'any resolver is ours'],
    ['batch/report-29', '198.51.100.99', TCP, 53, `accept ${resolver}-v4 to 198.51.100.53:53`, 'by TCP'],
    ['batch/cleanup-7', '2001:db8:100::99', UDP, 53, `accept ${resolver}-v6 to 2001:db8:100::53:53`, 'by IPv6'],
    ['batch/report-29', '198.51.100.99', TCP, 853, 'drop default-action', 'DNS over TLS is not'],
    ['batch/report-29', '198.51.100.99', ICMP, 8, 'drop default-action', 'nor is a ping'],
    ['reviews/reviews-1', '198.51.100.99', UDP, 53, 'drop default-action', 'another namespace'],
  ],
  'schedule.yaml': [
    ['batch/cleanup-7', '198.51.100.61', TCP, 873, 'accept namespace/batch/backup-at-night', 'at night'],
    ['batch/cleanup-7', '2001:db8:100::61', TCP, 873, 'accept namespace/batch/backup-at-night', 'by IPv6'],
    ['batch/cleanup-7', '198.51.100.61', TCP, 22, 'drop default-action', 'by rsync only'],
    ['batch/report-29', '198.51.100.61', TCP, 873, 'drop default-action', 'another Job may not'],
  ],
  'webhook.yaml': [
    ['monitoring/grafana-1', '198.51.100.70', TCP, 443, 'accept namespace/monitoring/emergency-door', 'and told'],
    ['monitoring/grafana-1', '2001:db8:100::70', TCP, 443, 'accept namespace/monitoring/emergency-door', 'by IPv6'],
    ['monitoring/grafana-1', '198.51.100.70', TCP, 22, 'drop default-action', 'by HTTPS only'],
    ['monitoring/blackbox-1', '198.51.100.70', TCP, 443, 'drop default-action', 'a neighbour may not'],
  ],
  'cluster-reject.yaml': [
    ['reviews/reviews-1', '192.0.2.7', TCP, 443, 'reject cluster/forbidden', 'a forbidden network'],
    ['reviews/reviews-1', '2001:db8:bad::7', UDP, 443, 'reject cluster/forbidden', 'of the other family'],
    ['batch/report-29', '198.51.100.25', TCP, 25, 'reject cluster/forbidden', 'mail to anywhere'],
    ['batch/report-29', '2001:db8:100::25', TCP, 587, 'reject cluster/forbidden', 'mail by IPv6'],
    ['batch/report-29', '198.51.100.25', UDP, 25, 'drop default-action', 'what is no mail is not its business'],
  ],
  'two-egress-ips.yaml': [
    ['reviews/reviews-1', '198.51.100.80', TCP, 443, 'accept service/reviews/https-anywhere', 'HTTPS'],
    [
      'reviews/reviews-4',
      '2001:db8:100::80',
      TCP,
      443,
      'accept service/reviews/https-anywhere',
      'from a pod not ready',
    ],
    ['reviews/reviews-1', '198.51.100.80', TCP, 80, 'drop default-action', 'nothing else'],
    ['batch/report-29', '198.51.100.80', TCP, 443, 'drop default-action', 'nobody else'],
  ],
};

const outcomeOf = ({ verdict, rule, reason, redirect }: Decision): string =>
  `${verdict} ${rule ?? reason}${redirect === undefined ? '' : ` to ${redirect.address}:${redirect.port}`}`;

t.test('every document is taken, and no object is written twice', async (t) => {
  const seen = new Set<string>();
  for (const [name, { objects, errors }] of documents) {
    t.same(errors, [], name);
    t.ok(objects.size > 0, `${name} holds something`);
    for (const key of objects.keys()) {
      t.notOk(seen.has(key), `${key} is in one file`);
      seen.add(key);
    }
    t.match(readFileSync(join(examplesFolder, name), 'utf8'), /^# .{40}/, `${name} says what it does`);
  }
  t.same(
    Object.keys(examples).sort(),
    files.filter((name) => !base.includes(name)).sort(),
    'every example has a table',
  );
});

t.test('the planner accepts every object', async (t) => {
  const { statuses, warnings } = planned(files);
  t.same(warnings, []);
  t.ok(statuses.size > 10);
  for (const [key, { conditions }] of statuses) {
    const unhappy = conditions.filter(
      ({ type, status }) => (type === 'Accepted' && status !== 'True') || (type === 'Conflicted' && status === 'True'),
    );
    // That `everybody` steps back where `reviews` lists the namespace is what a fallback is for: no conflict.
    t.same(unhappy, [], key);
    t.ok(
      conditions.some(({ reason }) => reason === 'Accepted'),
      `${key} without remarks`,
    );
  }
});

for (const [name, rows] of Object.entries(examples)) {
  t.test(name, async (t) => {
    const alone = mainPlan([...base, name]);
    const without = mainPlan(base);
    let differs = 0;
    for (const [from, to, protocol, port, expected, why, said] of rows) {
      const outcome = outcomeOf(decide(alone, from, to, protocol, port, said));
      t.equal(outcome, expected, `${from} to ${to}, ${protocol}/${port}: ${why}`);
      if (outcomeOf(decide(without, from, to, protocol, port, said)) !== outcome) differs++;
    }
    t.ok(differs > 0, 'without the example something else happens');
    t.ok(differs < rows.length, 'and not to everything');
    const rules = [...(documents.get(name)?.objects.values() ?? [])].filter(({ kind }) => kind.endsWith('EgressRule'));
    for (const { metadata } of rules) {
      t.ok(
        rows.some(
          ([from, to, protocol, port, expected, , said]) =>
            expected.split(' to ')[0]?.endsWith(`/${metadata.name}`) ||
            decide(alone, from, to, protocol, port, said).limits?.includes(`cluster/${metadata.name}`),
        ),
        `${metadata.name} decides or limits a flow of the table`,
      );
    }
  });
}

t.test('webhook.yaml: the rule is told of, and the pool allows it', async (t) => {
  const { webhooks } = planned([...base, 'webhook.yaml']);
  t.same(
    [...webhooks].map(([rule, { url }]) => [rule, url]),
    [['namespace/monitoring/emergency-door', 'https://hooks.example.com/sluice']],
  );
});

t.test('schedule.yaml by day', async (t) => {
  const outcome = (at: string): string => {
    const day = mainPlan([...base, 'schedule.yaml'], Date.parse(at));
    return outcomeOf(decide(day, 'batch/cleanup-7', '198.51.100.61', TCP, 873));
  };
  t.equal(outcome('2026-07-01T19:59:59Z'), 'drop default-action', 'before 22:00 in summer');
  t.equal(outcome('2026-07-01T20:00:00Z'), 'accept namespace/batch/backup-at-night');
  t.equal(outcome('2026-12-01T20:00:00Z'), 'drop default-action', 'before 22:00 in winter');
  t.equal(
    outcome('2026-12-05T02:59:59Z'),
    'accept namespace/batch/backup-at-night',
    'Saturday, of the night of Friday',
  );
  t.equal(outcome('2026-12-05T21:00:00Z'), 'drop default-action', 'the night of Saturday');
});

t.test('limits.yaml: whose limits a flow is under', async (t) => {
  const limited = mainPlan([...base, 'limits.yaml']);
  const limits = (from: string, port: number) => decide(limited, from, '198.51.100.62', TCP, port).limits;
  t.same(limits('reviews/reviews-1', 5432), ['cluster/slowly', 'service/reviews/few-at-once']);
  t.same(limits('batch/report-29', 5432), ['cluster/slowly']);
  t.same(limits('reviews/reviews-1', 22), undefined);
});

t.test('bandwidth.yaml: whose limits a flow is under', async (t) => {
  const limited = mainPlan([...base, 'bandwidth.yaml']);
  const met = (port: number) => {
    const { limits, ports } = decide(limited, 'reviews/reviews-1', '198.51.100.63', TCP, port);
    return [limits, ports];
  };
  t.same(met(9000), [['service/reviews/backup'], { 'port s3 of reviews/store': 500e6 }]);
  t.same(met(9001), [['service/reviews/backup'], undefined]);
});

t.test('egress-ip-by-destination.yaml: with which addresses the Jobs leave', async (t) => {
  const made = mainPlan([...base, 'egress-ip-by-destination.yaml']);
  const egress = compileEgress(made);
  const leaves = (name: string, destination: string) => {
    const workload = Object.values(made.workloads).find((one) => `${one.namespace}/${one.name}` === name);
    if (workload === undefined) throw new Error(name);
    return egress.towards(workload, must(parseAddress(destination))).addresses.map(({ address }) => address);
  };
  t.same(leaves('batch/report-29', '198.51.100.161'), ['203.0.113.120', '203.0.113.121']);
  t.same(leaves('batch/cleanup-7', '2001:db8:100:160::9'), ['2001:db8:113::120', '2001:db8:113::121']);
  t.same(leaves('batch/report-29', '198.51.100.192'), leaves('reviews/reviews-1', '198.51.100.161'), 'as all others');
  t.equal(made.egressIPs.partner?.limits?.maxConnections, 200);
});

t.test('all together: an accept stays one, and the veto comes first', async (t) => {
  const all = mainPlan(files);
  for (const [from, to, protocol, port, expected, , said] of Object.values(examples).flat()) {
    if (expected.startsWith('drop')) continue;
    // Where names forbid something all flows are read; of those that are redirected none can be.
    const more = said ?? (expected.includes(' to ') ? undefined : { reading: {} });
    t.equal(outcomeOf(decide(all, from, to, protocol, port, more)), expected, `${from} to ${to}, ${protocol}/${port}`);
  }
  const vetoed: Row[] = [
    ['reviews/reviews-1', '192.0.2.7', TCP, 443, 'reject cluster/forbidden', 'HTTPS anywhere, but not there'],
    ['reviews/reviews-1', '192.0.3.7', TCP, 443, 'accept service/reviews/https-anywhere', 'the next network'],
  ];
  for (const [from, to, protocol, port, expected, why] of vetoed) {
    t.equal(outcomeOf(decide(all, from, to, protocol, port, { reading: {} })), expected, why);
  }
});

t.test('who leaves with which address', async (t) => {
  const { workloads } = mainPlan(files);
  const own = { 4: ['203.0.113.102', '203.0.113.103'], 6: ['2001:db8:113::102', '2001:db8:113::104'] };
  for (const family of [4, 6] as const) {
    const byNamespace = new Map<string, Set<string | undefined>>();
    for (const { namespace, egress } of Object.values(workloads)) {
      byNamespace.set(namespace, (byNamespace.get(namespace) ?? new Set()).add(egress[family]?.address));
    }
    const reviews = byNamespace.get('reviews') ?? new Set();
    t.same([...reviews].sort(), own[family], `reviews: two IPv${family} addresses, each used by some pod`);
    byNamespace.delete('reviews');
    const others = new Set([...byNamespace.values()].flatMap((addresses) => [...addresses]));
    t.equal(others.size, 1, 'all others share one');
    t.notOk(others.has(undefined) || own[family].some((address) => others.has(address)), 'another one');
  }
  t.same(mainPlan(files).workloads, workloads, 'planned again: the same');
});

t.test('the CRDs have a place for all that a status says', async (t) => {
  const crds = renderCrds();
  const schemas = new Map<string, Json>(
    sluiceKinds.map((info) => {
      const crd = parse(crds[`sluice.dev_${info.plural}.yaml`] ?? '') as {
        spec: { versions: { schema: { openAPIV3Schema: { properties: Json } } }[] };
      };
      return [info.kind, crd.spec.versions[0]?.schema.openAPIV3Schema.properties.status as Json];
    }),
  );
  const said = new Map<string, Set<string>>();
  for (const [key, status] of planned(files).statuses) {
    const kind = key.split('/')[0] ?? '';
    t.same(misfits(status, schemas.get(kind) as Json, 'status'), [], key);
    for (const name of Object.keys(status)) said.set(kind, (said.get(kind) ?? new Set()).add(name));
  }
  t.ok(said.get('GatewayPool')?.has('gateways'));
  t.ok(said.get('EgressIPPool')?.has('inUse'));
  t.ok(said.get('EgressIP')?.has('assignments'));
  t.ok(said.get('ExternalService')?.has('lists'));
  t.ok(said.get('NamespaceEgressRule')?.has('schedule') || said.get('ClusterEgressRule')?.has('schedule'));
});
