/**
 * Flows that bytes and names decide, in tables: what a reader is asked for, the words of explain, and which established
 * flows a plan ends. That the decisions are right is property/names.test.ts's.
 */

import t from 'tap';
import type { GatewayPlan, PortCheck, RuleEntry, ServiceEntry } from '../../api/plan.ts';
import { emptyGatewayPlan } from '../../api/plan.ts';
import { endedBy, judgedBy } from '../../gateway/recheck.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { compilePolicy, type Flow, type Known } from '../../policy/evaluate.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';

const tcp = (port: number): { protocol: number; ports: [number, number][] } => ({ protocol: 6, ports: [[port, port]] });
const implied: PortCheck[] = [
  { ...tcp(443), application: 'TLS', implied: true },
  { ...tcp(80), application: 'HTTP', implied: true },
  { protocol: 17, ports: [[443, 443]], application: 'QUIC', implied: true },
];
const services: Record<string, ServiceEntry> = {
  'a/api': { addresses: [], names: ['*.cdn.test', 'api.test'], ports: null, checks: implied },
  'a/evil': { addresses: [], names: ['evil.test'], ports: null, checks: implied },
  'a/bad': { addresses: [], names: ['evil.test'], ports: [tcp(443)], checks: implied.slice(0, 1) },
  'a/git': { addresses: [], names: ['git.test'], ports: [tcp(22)], checks: [{ ...tcp(22), application: 'SSH' }] },
  'a/modern': {
    addresses: ['192.0.2.0/24'],
    ports: [tcp(443)],
    checks: [
      { ...tcp(443), application: 'TLS', tls: { minVersion: '1.3', alpn: ['h2'], rejectEncryptedClientHello: true } },
    ],
  },
  'a/web': {
    addresses: ['192.0.2.0/24'],
    ports: [tcp(80), tcp(443)],
    checks: [{ ...tcp(80), application: 'HTTP', http: { methods: ['GET'], hosts: ['api.test'], paths: ['/v1/*'] } }],
  },
  'a/loose': {
    addresses: ['192.0.2.0/24'],
    ports: [tcp(443)],
    checks: [{ ...tcp(443), application: 'TLS', conformance: 'Audit' }],
  },
  'a/dns': {
    addresses: ['192.0.2.53/32'],
    ports: [{ protocol: 17, ports: [[53, 53]] }],
    checks: [
      {
        protocol: 17,
        ports: [[53, 53]],
        application: 'DNS',
        dns: { names: ['**.test'], types: ['A'], maxQuestionsPerSecond: 20 },
      },
    ],
  },
};

/** `context action service…`, in walking order. */
function planOf(lines: string[], pool: object = {}): GatewayPlan {
  const plan = emptyGatewayPlan();
  const rules = lines.map((line, n): [string, RuleEntry] => {
    const [context, action, names = '', ...more] = line.split(' ');
    const id = `${context}/r${n}`;
    const audit = more.includes('audit') && { mode: 'Audit' };
    const redirect = more.includes('redirect') && { redirect: { address: '198.51.100.9' } };
    const wanted = names === '*' ? '*' : names.split(',').map((name) => `a/${name}`);
    return [id, { context, name: `r${n}`, action, priority: 0, services: wanted, ...audit, ...redirect } as RuleEntry];
  });
  const idsOf = (context: string): string[] => rules.flatMap(([id]) => (id.startsWith(`${context}/`) ? [id] : []));
  plan.settings = {
    pool: { pool: 'main', defaultAction: 'Drop', clusterCIDRs: [], excludedCIDRs: [], ...pool } as never,
  };
  plan.services = services;
  plan.rules = Object.fromEntries(rules);
  plan.groups = {
    g: {
      namespace: 'a',
      rules: { cluster: idsOf('cluster'), namespace: idsOf('namespace'), service: idsOf('service') },
    },
  };
  const egress = { 4: { address: '203.0.113.1', shard: 's' } };
  const workload = {
    namespace: 'a',
    name: 'p',
    uid: 'u',
    node: 'n',
    services: ['x'],
    addresses: ['10.244.1.1'],
    egress,
  };
  plan.workloads = { u: { ...workload, group: 'g' } };
  return plan;
}

const to = (destination: string, destinationPort: number, protocol = 6): Flow => ({
  source: '10.244.1.1',
  destination,
  destinationPort,
  protocol,
});
const tlsOf = (name?: string, version = 0x0304, alpn = ['h2'], encryptedClientHello = false): ApplicationReading => ({
  application: 'TLS',
  ...(name && { name }),
  tls: { version, alpn, encryptedClientHello },
});
const httpOf = (method: string, path: string, host: object): ApplicationReading => ({
  application: 'HTTP',
  http: { method, path },
  ...host,
});
/** Names that the table has for every address. */
const knowing = (names: string[], reading?: ApplicationReading): Known => ({
  ...(reading && { reading }),
  gives: (name) => names.includes(name),
  namesOf: () => names,
});

t.test('what a reader is asked for', async (t) => {
  const rows: [name: string, lines: string[], flow: Flow, expected: [string, boolean, string]][] = [
    ['names: TLS', ['service accept api'], to('192.0.2.1', 443), ['TLS', false, '']],
    ['names: HTTP, every request', ['service accept api'], to('192.0.2.1', 80), ['HTTP', true, '']],
    ['names: QUIC, every connection', ['service accept api'], to('192.0.2.1', 443, 17), ['QUIC', true, '']],
    ['names: another port is the table’s', ['service accept api'], to('192.0.2.1', 5432), ['', false, 'api.test']],
    ['a protocol without names in it', ['service accept git'], to('192.0.2.1', 22), ['SSH', false, 'git.test']],
    ['a veto by name', ['cluster drop evil', 'service accept *'], to('192.0.2.1', 443), ['TLS', false, 'evil.test']],
    ['DNS, every question', ['service accept dns'], to('192.0.2.53', 53, 17), ['DNS', true, '']],
    ['another address', ['service accept dns'], to('192.0.2.1', 53, 17), ['', false, '']],
    [
      'of all rules on the way',
      ['cluster drop evil', 'service accept modern,api'],
      to('192.0.2.1', 443),
      ['TLS', false, 'evil.test'],
    ],
    [
      'what certainly ends it hides what comes after',
      ['cluster drop *', 'service accept api'],
      to('192.0.2.1', 443),
      ['', false, ''],
    ],
    [
      'what may hand on hides nothing',
      ['cluster accept api', 'cluster drop *', 'service accept web'],
      to('192.0.2.1', 80),
      ['HTTP', true, ''],
    ],
    [
      'a rule in audit, too',
      ['cluster drop evil audit', 'service accept *'],
      to('192.0.2.1', 443),
      ['TLS', false, 'evil.test'],
    ],
    ['nobody asks', ['service accept *'], to('192.0.2.1', 443), ['', false, '']],
  ];
  for (const [name, lines, flow, expected] of rows) {
    const { applications, life, names } = compilePolicy(planOf(lines)).reads(flow);
    t.same([[...applications].join(), life, [...names].join()], expected, name);
  }
  const stranger = compilePolicy(planOf([])).reads({ ...to('192.0.2.1', 443), source: '10.0.0.1' });
  t.same([stranger.applications.size, stranger.life], [0, false]);
});

t.test('why a rule matches what was read, in words', async (t) => {
  const there = 'TCP port 443 to 192.0.2.1';
  const rows: [service: string, flow: Flow, known: Known | undefined, why: string][] = [
    [
      'api',
      to('192.0.2.1', 443),
      undefined,
      'its first bytes decide: TLS for *.cdn.test or api.test (external service a/api)',
    ],
    [
      'git',
      to('192.0.2.1', 22),
      undefined,
      'its first bytes decide: SSH to an address of git.test (external service a/git)',
    ],
    [
      'api',
      to('192.0.2.1', 5432),
      undefined,
      'the name table decides: TCP port 5432 to an address of *.cdn.test or api.test (external service a/api)',
    ],
    [
      'modern',
      to('192.0.2.1', 443),
      undefined,
      'its first bytes decide: TLS (TLS 1.3 or later; ALPN only h2; no Encrypted Client Hello) (external service a/modern)',
    ],
    [
      'web',
      to('192.0.2.1', 80),
      undefined,
      'its first bytes decide: HTTP (method GET; host api.test; path /v1/*) (external service a/web)',
    ],
    [
      'dns',
      to('192.0.2.53', 53, 17),
      undefined,
      'its first bytes decide: DNS (type A; question **.test) (external service a/dns)',
    ],
    ['loose', to('192.0.2.1', 443), undefined, 'its first bytes decide: TLS or other bytes (external service a/loose)'],
    ['web', to('192.0.2.1', 443), undefined, `${there} is in external service a/web by its address alone`],
    [
      'api',
      to('192.0.2.1', 5432),
      knowing(['api.test']),
      'TCP port 5432 to 192.0.2.1 is in external service a/api by its address alone, which the name table has for api.test',
    ],
    [
      'api',
      to('192.0.2.1', 5432),
      knowing([]),
      'the name table has 192.0.2.1 for none of the names of external service a/api',
    ],
    ['git', to('192.0.2.1', 443), undefined, 'external service a/git does not have TCP port 443'],
    [
      'api',
      to('192.0.2.1', 443),
      knowing(['x.cdn.test'], tlsOf('x.cdn.test')),
      `TLS for x.cdn.test, ${there}, is in external service a/api`,
    ],
    [
      'api',
      to('192.0.2.1', 443),
      knowing([], tlsOf('api.test')),
      'the name table does not have 192.0.2.1 for api.test (external service a/api)',
    ],
    [
      'api',
      to('192.0.2.1', 443),
      knowing([], tlsOf('other.test')),
      'other.test is none of its names (external service a/api)',
    ],
    [
      'api',
      to('192.0.2.1', 443),
      knowing([], tlsOf()),
      'its bytes (TLS without a server name) name no host, where one is needed (external service a/api)',
    ],
    [
      'api',
      to('192.0.2.1', 443),
      knowing([], { application: 'SSH' }),
      'its bytes are SSH, where TLS is asked for (external service a/api)',
    ],
    [
      'api',
      to('192.0.2.1', 443),
      knowing([], {}),
      'its bytes are no protocol that is known, where TLS is asked for (external service a/api)',
    ],
    [
      'api',
      to('192.0.2.1', 80),
      knowing([], httpOf('GET', '/', { literal: '192.0.2.1' })),
      'its host is the address 192.0.2.1, which is not where it goes (external service a/api)',
    ],
    [
      'modern',
      to('192.0.2.1', 443),
      knowing([], tlsOf('x.test', 0x0303)),
      'it speaks at most TLS 1.2, which is too old (external service a/modern)',
    ],
    [
      'modern',
      to('192.0.2.1', 443),
      knowing([], tlsOf('x.test', 0x0304, ['h2', 'http/1.1'])),
      'of its ALPN (h2, http/1.1) not all are allowed (external service a/modern)',
    ],
    [
      'modern',
      to('192.0.2.1', 443),
      knowing([], tlsOf('x.test', 0x0304, [])),
      'it offers no ALPN, where some are asked for (external service a/modern)',
    ],
    [
      'modern',
      to('192.0.2.1', 443),
      knowing([], tlsOf('x.test', 0x0304, ['h2'], true)),
      'its hello is encrypted (or may be), which is refused (external service a/modern)',
    ],
    [
      'web',
      to('192.0.2.1', 80),
      knowing([], httpOf('PUT', '/v1/x', { name: 'api.test' })),
      'method PUT is not asked for (external service a/web)',
    ],
    [
      'web',
      to('192.0.2.1', 80),
      knowing([], httpOf('GET', '/v2', { name: 'api.test' })),
      'path /v2 is not asked for (external service a/web)',
    ],
    [
      'web',
      to('192.0.2.1', 80),
      knowing([], httpOf('GET', '/v1/x', { name: 'b.test' })),
      'b.test is none of the hosts that are asked for (external service a/web)',
    ],
    [
      'web',
      to('192.0.2.1', 80),
      knowing([], httpOf('GET', '/v1/x', { name: 'api.test' })),
      'HTTP GET /v1/x of api.test, TCP port 80 to 192.0.2.1, is in external service a/web',
    ],
    [
      'dns',
      to('192.0.2.53', 53, 17),
      knowing([], { application: 'DNS', name: 'a.test', dns: { type: 'TXT' } }),
      'a question of type TXT is not asked for (external service a/dns)',
    ],
    [
      'dns',
      to('192.0.2.53', 53, 17),
      knowing([], { application: 'DNS', name: 'a.com', dns: { type: 'A' } }),
      'a question for a.com is not asked for (external service a/dns)',
    ],
    [
      'loose',
      to('192.0.2.1', 443),
      knowing([], { application: 'SSH' }),
      `SSH, ${there}, is in external service a/loose, only since other bytes than TLS are let pass and counted`,
    ],
  ];
  for (const [service, flow, known, why] of rows)
    t.equal(compilePolicy(planOf([`service accept ${service}`])).explain(flow, known).steps[0]?.why, why);
});

t.test('the decision in words', async (t) => {
  const web = to('192.0.2.1', 443);
  const rows: [lines: string[], flow: Flow, known: Known | undefined, summary: string][] = [
    [
      ['cluster drop evil', 'service accept api'],
      web,
      undefined,
      "Its first bytes decide, so it may begin and is read. Open are cluster/r0 (drop): TLS for evil.test (external service a/evil); service/r1 (accept): TLS for *.cdn.test or api.test (external service a/api). If none of these matches: dropped by the pool's default action (Drop): no rule of any context matches.",
    ],
    [
      ['cluster drop evil', 'service accept * redirect'],
      web,
      undefined,
      'Dropped: service/r1 redirects it to 198.51.100.9 port 443, but a flow whose first bytes decide is read, and cannot be redirected.',
    ],
    [
      ['service accept loose'],
      web,
      knowing([], {}),
      'Accepted by service/r0 in the service context. Not the protocol that is asked for, which is counted (conformance: Audit): a/loose.',
    ],
    [
      ['service accept dns'],
      to('192.0.2.53', 53, 17),
      knowing([], { application: 'DNS', name: 'a.test', dns: { type: 'A' } }),
      'Accepted by service/r0 in the service context. Of one source 20 questions a second (external service a/dns): what is beyond is dropped (limit).',
    ],
  ];
  for (const [lines, flow, known, summary] of rows)
    t.equal(compilePolicy(planOf(lines)).explain(flow, known).summary, summary);

  const plan = planOf(['cluster drop bad', 'service accept * redirect']);
  const alt = to('192.0.2.1', 8443);
  t.match(
    compilePolicy(plan).explain(alt).summary,
    /^Accepted by service\/r1 .* redirected to 198/,
    'a veto of another port',
  );
  Object.assign(plan.rules['service/r1'] ?? {}, { redirect: { address: '198.51.100.9', port: 443 } });
  t.equal(
    compilePolicy(plan).explain(alt).summary,
    'Dropped: service/r1 redirects it to 198.51.100.9 port 443, but whether cluster/r0 forbids that its first bytes decide, and what is redirected is not read.',
  );

  const walk = compilePolicy(planOf(['cluster accept api', 'cluster drop *', 'service accept web'])).explain(web);
  t.same(
    walk.contexts.map(({ outcome }) => outcome),
    ['open', 'no-match', 'accepted'],
  );
  t.equal(
    walk.contexts[0]?.why,
    'what its first bytes say decides whether cluster/r0 matches; if none does, cluster/r1 says drop',
  );
  const sure = compilePolicy(planOf(['cluster drop evil', 'cluster drop *'])).explain(web);
  t.same([sure.decision.provisional, sure.decision.verdict], [undefined, 'drop'], 'nothing to read it for');
  const idle = compilePolicy(planOf(['service drop evil'])).explain(web);
  t.equal(idle.contexts[2]?.why, 'no rule matches without its bytes being read, which would change nothing');
});

t.test('strict: who is known by no name at the first packet is refused there', async (t) => {
  const evaluator = compilePolicy(planOf(['service accept api'], { dns: { resolvers: [], strict: true } }));
  const web = to('192.0.2.1', 443);
  t.equal(evaluator.decide(web).provisional, true, 'unless the table was not asked');
  t.equal(evaluator.decide(web, knowing(['api.test'])).provisional, true);
  t.match(evaluator.decide(web, knowing(['other.test'])), { verdict: 'drop', reason: 'default-action' });
});

t.test('which established flows a plan ends, with what was read of them', async (t) => {
  const entry = (destination: string, destinationPort: number): ConntrackEntry =>
    ({
      protocol: 6,
      original: { source: '10.244.1.1', destination, sourcePort: 40000, destinationPort },
      reply: { source: destination, destination: '203.0.113.1', sourcePort: destinationPort, destinationPort: 50000 },
    }) as ConntrackEntry;
  const web = entry('192.0.2.1', 443);
  const api = knowing(['api.test'], tlsOf('api.test'));
  const rows: [name: string, lines: string[], flow: ConntrackEntry, known: Known | undefined, ended: boolean][] = [
    ['what was read is still permitted', ['service accept api'], web, api, false],
    ['another name is', ['service accept git,evil'], web, api, true],
    ['the address, though the reading is lost', ['service accept api'], web, undefined, false],
    ['a reading that no rule permits', ['service accept api'], web, knowing(['api.test'], tlsOf('b.test')), true],
    ['a veto by the name that was read', ['cluster drop api', 'service accept *'], web, api, true],
    ['a veto by another', ['cluster drop evil', 'service accept *'], web, api, false],
    ['lost: a veto may be meant, or not', ['cluster drop api', 'service accept *'], web, undefined, false],
    [
      'lost, and no reading would permit it',
      ['cluster drop api', 'cluster drop *', 'service accept api'],
      web,
      undefined,
      true,
    ],
    ['not read yet', ['service accept api'], web, knowing([]), false],
    [
      'by the table: a name that it had',
      ['service accept api'],
      entry('192.0.2.1', 5432),
      knowing(['api.test']),
      false,
    ],
    ['by the table: none', ['service accept api'], entry('192.0.2.1', 5432), knowing(['b.test']), true],
    ['a rule that reads nothing', ['service accept *'], web, api, false],
    ['read, and would be redirected now', ['cluster accept api', 'service accept * redirect'], web, api, true],
  ];
  for (const [name, lines, flow, known, ended] of rows)
    t.equal(endedBy(planOf(lines), undefined, undefined, () => known)(flow), ended, name);

  const strict = planOf(['service accept api'], { dns: { resolvers: [], strict: true } });
  t.equal(endedBy(strict, undefined, undefined, () => knowing([]))(web), false, 'strict is about first packets');
  const judge = judgedBy(planOf(['namespace accept *', 'service accept api']), undefined, undefined, () => api);
  t.match(judge(web), { verdict: 'accept', rule: 'service/r1', passed: ['namespace/r0'] }, 'by what it goes on');
  let asked = 0;
  const counting = judgedBy(planOf(['service accept web']), undefined, undefined, () => {
    asked++;
    return undefined;
  });
  counting(entry('192.0.2.1', 443));
  t.equal(asked, 1);
  const plain = judgedBy(planOf(['service accept *']), undefined, undefined, () => t.fail('asked') as never);
  t.match(plain(web), { rule: 'service/r0' }, 'where nothing is read nobody is asked');
});
