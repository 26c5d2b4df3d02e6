/**
 * `sluice suggest`: a draft from a flow log, word by word; that lint takes it; what is left out and said; and lines that want to
 * write more into the draft than a record may.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { parseAllDocuments } from 'yaml';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import { sluice } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-suggest-'));
t.teardown(() => rmSync(dir, { recursive: true }));

let sourcePort = 1024;
const flow = (second: number, more: Partial<FlowRecord> = {}): FlowRecord => ({
  time: new Date(Date.parse('2026-03-01T10:00:00Z') + second * 1000).toISOString(),
  event: 'end',
  verdict: 'accept',
  reason: 'default-action',
  namespace: 'billing',
  pod: 'pay-1',
  services: ['payments'],
  protocol: 'tcp',
  source: '10.244.1.5',
  sourcePort: sourcePort++,
  destination: '198.51.100.80',
  destinationPort: 443,
  gateway: 'gw-a',
  ...more,
});
const api = { application: 'TLS', destinationName: 'api.example.test', sampled: true } as const;
let files = 0;
function logOf(records: object[], tail = ''): string {
  const file = join(dir, `log-${files++}.jsonl`);
  writeFileSync(file, `${records.map((record) => `${JSON.stringify(record)}\n`).join('')}${tail}`);
  return file;
}
const job = { pod: 'job-1', services: [], source: '10.244.1.9' };
const log = logOf([
  flow(0, api),
  flow(1, { ...api, pod: 'pay-2', destination: '198.51.100.81' }),
  flow(2),
  flow(3, { destinationPort: 8443, ...api, sampled: undefined } as never),
  flow(4, {
    destination: '192.0.2.7',
    destinationPort: 5432,
    application: 'PostgreSQL',
    sampled: true,
    rule: 'db',
    context: 'service',
    reason: 'service-accept',
  }),
  flow(5, { destination: '192.0.2.7', destinationPort: 9000 }),
  flow(6, {
    ...job,
    destination: '2001:db8::53',
    destinationPort: 53,
    protocol: 'udp',
    application: 'DNS',
    destinationName: 'q.example.test',
    sampled: true,
  }),
  flow(7, { protocol: 'icmp', destinationPort: undefined, icmpType: 8, icmpCode: 0 } as never),
  flow(8, { event: 'deny', verdict: 'drop', destinationPort: 25 }),
  flow(9, { wouldHave: 'drop', destinationPort: 26 }),
  flow(10, { redirectedTo: '192.0.2.1', destinationPort: 27 }),
  flow(11, { namespace: 'reviews', destinationPort: 28 }),
  flow(12, { event: 'deny', verdict: 'drop', reason: 'stray', destinationPort: 29 }),
  // One that still lives, and one of which the start was written too.
  flow(13, { event: 'start', destination: '192.0.2.9', sourcePort: 1 }),
  flow(14, { event: 'start', destination: '192.0.2.9', sourcePort: 2 }),
  flow(15, { event: 'end', destination: '192.0.2.9', sourcePort: 2 }),
]);

t.test('a draft', async (t) => {
  const { code, out, err } = await sluice('suggest', 'billing', log);
  t.equal(code, 0);
  t.equal(
    out,
    `# Drafted by sluice suggest from 13 flows of namespace billing, 2026-03-01T10:00:00.000Z to 2026-03-01T10:00:15.000Z.
# It permits what was seen, which is not what should be: read it before you apply it.
# Names need dns.resolvers in the GatewayPool.
# Left out: 1 flow of protocols without ports, as ICMP: write these rules by hand.
# Left out: 1 flow redirected by a rule: what they need is that rule.
# Left out: 2 flows denied by policy, or only passed since policy is in audit (--denied takes them in).
---
# Pods job-1: 1 flow, the last 2026-03-01T10:00:06.000Z
# They are of no Service, so this permits every pod of the namespace: a podSelector or serviceAccounts would say which.
apiVersion: sluice.dev/v1alpha1
kind: NamespaceEgressRule
metadata:
  name: suggested
  namespace: billing
spec:
  action: accept-decisively
  externalServices:
    - ip-2001-db8--53
---
# Pods pay-1, pay-2: 8 flows, the last 2026-03-01T10:00:15.000Z
apiVersion: sluice.dev/v1alpha1
kind: ServiceEgressRule
metadata:
  name: suggested-payments
  namespace: billing
spec:
  action: accept
  service: payments
  externalServices:
    - api.example.test
    - ip-192-0-2-7
    - ip-192-0-2-9
---
# 4 flows, the last 2026-03-01T10:00:03.000Z; 3 read, 2 of them in samples; to 198.51.100.80, 198.51.100.81; passed by: default-action
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata:
  name: api.example.test
  namespace: billing
spec:
  addresses:
    - api.example.test
  ports:
    - name: tls-tcp
      protocol: TCP
      port: 443,8443
      appProtocol: TLS
---
# 2 flows, the last 2026-03-01T10:00:05.000Z; 1 read, in samples; passed by: default-action, service db
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata:
  name: ip-192-0-2-7
  namespace: billing
spec:
  addresses:
    - 192.0.2.7
  ports:
    - name: tcp
      protocol: TCP
      port: "9000"
    - name: postgresql-tcp
      protocol: TCP
      port: "5432"
      appProtocol: PostgreSQL
---
# 2 flows, the last 2026-03-01T10:00:15.000Z; nothing was read of them; passed by: default-action
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata:
  name: ip-192-0-2-9
  namespace: billing
spec:
  addresses:
    - 192.0.2.9
  ports:
    - name: tcp
      protocol: TCP
      port: "443"
---
# 1 flow, the last 2026-03-01T10:00:06.000Z; all read, in samples; passed by: default-action
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata:
  name: ip-2001-db8--53
  namespace: billing
spec:
  addresses:
    - 2001:db8::53
  ports:
    - name: dns-udp
      protocol: UDP
      port: "53"
      appProtocol: DNS
`,
  );
  t.match(err, /^left out: 1 flow of protocols/);
  t.match(err, /left out: 2 flows denied by policy/);
});

t.test('lint takes it', async (t) => {
  const draft = join(dir, 'draft.yaml');
  const cluster = join(dir, 'cluster.yaml');
  writeFileSync(draft, (await sluice('suggest', 'billing', log)).out);
  writeFileSync(
    cluster,
    `apiVersion: v1
kind: Namespace
metadata: { name: billing }
---
apiVersion: v1
kind: Service
metadata: { name: payments, namespace: billing }
`,
  );
  const { code, out } = await sluice('lint', cluster, draft);
  t.equal(code, 0, out);
  t.notMatch(out, 'Invalid');
});

t.test('what is taken in, and what not', async (t) => {
  const portsOf = async (...flags: string[]): Promise<string[]> => {
    const { out } = await sluice('suggest', 'billing', log, '-o', 'json', ...flags);
    const { items } = JSON.parse(out) as { items: { kind: string; spec: { ports?: { port: string }[] } }[] };
    return items.flatMap(({ spec }) => (spec.ports ?? []).flatMap(({ port }) => port.split(','))).sort();
  };
  t.same(await portsOf(), ['443', '443', '53', '5432', '8443', '9000']);
  t.same(await portsOf('--denied'), ['25-26', '443', '443', '53', '5432', '8443', '9000']);
  t.same(await portsOf('--at-least', '4'), ['443', '8443']);
  t.same(await portsOf('--pod', 'job-1'), ['53']);
  t.same(await portsOf('--since', '2026-03-01T10:00:05Z', '--until', '2026-03-01T10:00:06Z'), ['9000']);
  const rare = await sluice('suggest', 'billing', log, '--at-least', '4', '-o', 'json');
  t.match(JSON.parse(rare.out), {
    namespace: 'billing',
    flows: 13,
    omitted: { rare: 5, denied: 2, protocol: 1, redirected: 1 },
  });
});

t.test('what was not read goes where pods of the same Service went', async (t) => {
  const other = { ...api, destinationName: 'other.example.test', pod: 'rev-1', services: ['reviews'] };
  const shared = logOf([flow(0, api), flow(1), flow(2, other), flow(3, { services: ['batch'] })]);
  const { out } = await sluice('suggest', 'billing', shared, '-o', 'json');
  const { items } = JSON.parse(out) as { items: { spec: { service?: string; externalServices?: string[] } }[] };
  const used = items.flatMap(({ spec }) => (spec.service === undefined ? [] : [[spec.service, spec.externalServices]]));
  t.same(Object.fromEntries(used), {
    batch: ['api.example.test', 'other.example.test'],
    payments: ['api.example.test'],
    reviews: ['other.example.test'],
  });
});

t.test('nothing to draft from', async (t) => {
  const none = await sluice('suggest', 'nobody', log);
  t.equal(none.code, 1);
  t.match(none.err, /^sluice: no flow of namespace nobody in /);
  const denied = await sluice('suggest', 'billing', logOf([flow(0, { event: 'deny', verdict: 'drop' })]));
  t.equal(denied.code, 1);
  t.match(denied.err, /nothing to suggest: 1 flow denied by policy/);
  t.equal((await sluice('suggest', 'billing', join(dir, 'nowhere'))).code, 1);
  t.equal((await sluice('suggest', 'Billing', log)).code, 2);
  t.equal((await sluice('suggest', 'billing', log, '--at-least', '0')).code, 2);
});

t.test('a record writes nothing into the draft but what it may', async (t) => {
  const evil = 'x\n---\nkind: ClusterEgressRule\u001b[2J';
  const hostile = logOf(
    [
      flow(0, { ...api, destinationName: evil }),
      flow(1, { ...api, destinationName: '*.example.test' }),
      flow(2, { application: evil as never, destinationPort: 444 }),
      flow(3, { pod: evil, services: [evil, '../x', 'a.b'], destinationPort: 445 }),
      flow(4, { rule: evil, context: 'service', destinationPort: 446 }),
      flow(5, { protocol: 'constructor', destinationPort: 447 }),
      flow(6, { application: 'QUIC', destinationPort: 448 }),
      flow(7, { destinationPort: 0 }),
    ],
    `${evil}\n`,
  );
  const { code, out } = await sluice('suggest', 'billing', hostile);
  t.equal(code, 0);
  t.notMatch(out, '\u001b');
  const documents = parseAllDocuments(out);
  const objects = Array.from(
    documents,
    (document) => document.toJS() as { kind: string; spec: { addresses?: string[] } },
  );
  t.same([...new Set(objects.map(({ kind }) => kind))].sort(), [
    'ExternalService',
    'NamespaceEgressRule',
    'ServiceEgressRule',
  ]);
  t.same(
    objects.flatMap(({ spec }) => spec.addresses ?? []),
    ['198.51.100.80'],
    'no name that is none, nor a pattern',
  );
  t.match(out, '# Lines that are no flow records: 3.');
});
