/**
 * Names and application checks: the evaluator against a naive one written from design §4.5, §4.6 alone. What may be open
 * is enumerated: every rule that is open matches or does not, and each such world is walked by itself. Then all readings
 * of a small universe: no flow is refused unread that one of them permits, and none passes unread that one forbids.
 */

import fc from 'fast-check';
import t from 'tap';
import type { Application } from '../../api/application.ts';
import type { Action, Context, Policy, PortCheck, Redirect, RuleEntry, ServiceEntry } from '../../api/plan.ts';
import { contexts } from '../../api/plan.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { type AuditHit, compilePolicy, type Decision, type Flow, type Known } from '../../policy/evaluate.ts';

const addresses = ['192.0.2.1', '192.0.2.2', '192.0.2.3', '2001:db8::1'] as const;
const hosts = ['a.test', 'b.a.test', 'd.b.a.test', 'c.test'] as const;
/** 443/TCP, 80/TCP, 22/TCP, 53/UDP, 443/UDP, and protocol 47. */
const places = [
  { protocol: 6, port: 443 },
  { protocol: 6, port: 80 },
  { protocol: 6, port: 22 },
  { protocol: 17, port: 53 },
  { protocol: 17, port: 443 },
  { protocol: 47 },
] as const;
type Place = (typeof places)[number];

const tls = (version: number, encryptedClientHello: boolean, alpn: string[]) => ({
  version,
  encryptedClientHello,
  alpn,
});
/** All that bytes may say here. */
const readings: ApplicationReading[] = [
  {},
  { application: 'SSH' },
  ...(['TLS', 'QUIC'] as const).flatMap((application) =>
    [undefined, ...hosts].flatMap((name) =>
      [tls(0x0304, false, ['h2']), tls(0x0303, true, [])].map((said) => ({
        application,
        ...(name && { name }),
        tls: said,
      })),
    ),
  ),
  ...[...hosts, ...addresses, undefined].flatMap((host) =>
    [
      { method: 'GET', path: '/a' },
      { method: 'PUT', path: '/b/c' },
    ].map((http) => ({
      application: 'HTTP' as const,
      ...(host && ((hosts as readonly string[]).includes(host) ? { name: host } : { literal: host })),
      http,
    })),
  ),
  ...hosts.flatMap((name) => ['A', 'TXT'].map((type) => ({ application: 'DNS' as const, name, dns: { type } }))),
];

const pattern = fc.constantFrom('a.test', 'b.a.test', '*.a.test', '**.a.test', 'c.test');
const patterns = fc.uniqueArray(pattern, { minLength: 1, maxLength: 3 });
const conformance = fc.constantFrom(undefined, undefined, undefined, 'Audit', 'Off');
const checkParts: fc.Arbitrary<Pick<PortCheck, 'application' | 'tls' | 'http' | 'dns'>> = fc.oneof(
  fc.constantFrom<Application>('TLS', 'HTTP', 'QUIC', 'DNS', 'SSH').map((application) => ({ application })),
  fc.constantFrom<Application>('TLS', 'HTTP', 'QUIC', 'DNS', 'SSH').map((application) => ({ application })),
  patterns.map((serverNames) => ({ application: 'TLS' as const, tls: { serverNames } })),
  fc
    .constantFrom({ minVersion: '1.3' as const }, { alpn: ['h2'] }, { rejectEncryptedClientHello: true as const })
    .map((asked) => ({ application: 'TLS' as const, tls: asked })),
  fc.constantFrom({ methods: ['GET'] }, { paths: ['/a'] }, { paths: ['/b/*'] }, { hosts: ['a.test'] }).map((http) => ({
    application: 'HTTP' as const,
    http,
  })),
  fc
    .constantFrom({ types: ['A'] }, { names: ['*.a.test'] }, { maxQuestionsPerSecond: 5 }, { maxQuestionsPerSecond: 9 })
    .map((dns) => ({ application: 'DNS' as const, dns })),
);
const at = (place: Place): { protocol: number; ports: [number, number][] | null } => ({
  protocol: place.protocol,
  ports: 'port' in place ? [[place.port, place.port]] : null,
});
const check: fc.Arbitrary<PortCheck> = fc
  .tuple(fc.constantFrom(...places.slice(0, 5)), checkParts, conformance, fc.constantFrom(undefined, undefined, true))
  .map(([place, parts, how, implied]) => ({
    ...at(place),
    ...parts,
    ...(how && { conformance: how as 'Audit' | 'Off' }),
    ...(implied && { implied }),
  }));
const service: fc.Arbitrary<ServiceEntry> = fc
  .record({
    own: fc.subarray([...addresses]),
    names: fc.option(patterns),
    ports: fc.option(fc.subarray([...places], { minLength: 1 })),
    checks: fc.array(check, { maxLength: 4 }),
    limited: fc.boolean(),
  })
  .map(({ own, names, ports, checks, limited }) => {
    const within = checks.filter((one) => ports === null || ports.some((place) => covers(one, place)));
    return {
      addresses: own.map((address) => `${address}/${address.includes(':') ? 128 : 32}`),
      ...(names && { names: names.sort() }),
      ports: ports === null ? null : ports.map(at),
      ...(within.length > 0 && { checks: within }),
      ...(limited && { limits: [{ name: 'web', protocol: 6, ports: [[80, 443]], bandwidth: 8 }] }),
    };
  });

const redirect: fc.Arbitrary<Redirect> = fc.record({
  address: fc.constantFrom(...addresses),
  port: fc.constantFrom(22, 80, 443),
});
const rule = fc.record({
  context: fc.constantFrom<Context>(...contexts),
  action: fc.constantFrom<Action>('accept', 'accept', 'accept', 'accept-decisively', 'drop', 'reject'),
  audit: fc.constantFrom(false, false, false, true),
  redirect: fc.oneof({ weight: 4, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: redirect }),
  names: fc.oneof(
    { weight: 5, arbitrary: fc.subarray(['a/0', 'a/1', 'a/2', 'a/gone'], { minLength: 1 }) },
    { weight: 1, arbitrary: fc.constant('*' as const) },
  ),
});

const policy: fc.Arbitrary<Policy> = fc
  .record({
    services: fc.tuple(service, service, service),
    rules: fc.array(rule, { minLength: 1, maxLength: 6 }),
    audit: fc.constantFrom(false, false, true),
    strict: fc.constantFrom(false, false, true),
    defaultAction: fc.constantFrom('Drop', 'Drop', 'Accept'),
  })
  .map(({ services, rules, audit, strict, defaultAction }) => {
    const entries = rules.map(
      (one, index): RuleEntry => ({
        context: one.context,
        name: `r${index}`,
        action: one.action,
        ...(one.audit && { mode: 'Audit' }),
        priority: 0,
        services: one.names,
        ...(one.redirect && one.action.startsWith('accept') && { redirect: one.redirect }),
      }),
    );
    const idsOf = (context: Context) =>
      entries.flatMap((entry) => (entry.context === context ? [`${context}/${entry.name}`] : []));
    const pod = { namespace: 'a', name: 'p', uid: 'u', node: 'n', services: [], egress: {}, group: 'g' };
    return {
      settings: { pool: { defaultAction, dns: { resolvers: [], ...(strict && { strict }) } } },
      services: Object.fromEntries(services.map((entry, index) => [`a/${index}`, entry])),
      rules: Object.fromEntries(entries.map((entry) => [`${entry.context}/${entry.name}`, entry])),
      groups: {
        g: {
          namespace: 'a',
          ...(audit && { audit: true }),
          rules: { cluster: idsOf('cluster'), namespace: idsOf('namespace'), service: idsOf('service') },
        },
      },
      workloads: { u: { ...pod, addresses: ['10.244.1.1', 'fd00::1'] } },
    } as unknown as Policy;
  });

const flow: fc.Arbitrary<Flow> = fc
  .tuple(fc.constantFrom(...addresses), fc.constantFrom(...places))
  .map(([destination, place]) => ({
    source: destination.includes(':') ? 'fd00::1' : '10.244.1.1',
    destination,
    protocol: place.protocol,
    ...('port' in place && { destinationPort: place.port }),
  }));

const table = fc.subarray(hosts.flatMap((name) => addresses.map((address) => `${name} ${address}`)));
const knownOf = (pairs: readonly string[], reading?: ApplicationReading): Known => ({
  ...(reading && { reading }),
  gives: (name, address) => pairs.includes(`${name} ${address}`),
  namesOf: (address) => hosts.filter((name) => pairs.includes(`${name} ${address}`)),
});

// The naive evaluator: from here on no code of policy/ but its types.

function covers(
  { protocol, ports }: { protocol: number; ports: [number, number][] | null },
  place: { protocol: number; port?: number },
): boolean {
  if (protocol !== place.protocol) return false;
  return (
    ports === null ||
    ports.some(([first, last]) => place.port !== undefined && first <= place.port && place.port <= last)
  );
}
const placeOf = ({ protocol, destinationPort }: Flow) => ({
  protocol,
  ...(destinationPort && { port: destinationPort }),
});

/** `*.` is one label more, `**.` one or more. */
const isOf = (name: string | undefined, list: readonly string[] = []): boolean =>
  name !== undefined &&
  list.some((one) => {
    const base = one.replace(/^\*+\./, '');
    if (one === base) return name === one;
    if (!name.endsWith(`.${base}`)) return false;
    return one.startsWith('**') || !name.slice(0, -base.length - 1).includes('.');
  });

/** Whether what a check asks for was read: `other`, since it does not mind. */
function holds(c: PortCheck, r: ApplicationReading): 'yes' | 'no' | 'other' {
  if (c.application !== r.application) {
    const { minVersion, serverNames, alpn, rejectEncryptedClientHello } = c.tls ?? {};
    const parts = [
      minVersion,
      serverNames,
      alpn,
      rejectEncryptedClientHello,
      c.http?.hosts,
      c.http?.methods,
      c.http?.paths,
      c.dns?.names,
      c.dns?.types,
    ];
    if (c.conformance === undefined || parts.some((part) => part !== undefined)) return 'no';
    return c.conformance === 'Off' ? 'yes' : 'other';
  }
  const said = [
    c.tls?.serverNames === undefined || isOf(r.name, c.tls.serverNames),
    c.tls?.minVersion === undefined || r.tls?.version === 0x0304,
    c.tls?.alpn === undefined || r.tls?.alpn.join() === 'h2',
    c.tls?.rejectEncryptedClientHello === undefined || r.tls?.encryptedClientHello === false,
    c.http?.hosts === undefined || isOf(r.name, c.http.hosts),
    c.http?.methods === undefined || r.http?.method === 'GET',
    c.http?.paths === undefined || (c.http.paths[0] === '/a' ? r.http?.path === '/a' : r.http?.path === '/b/c'),
    c.dns?.names === undefined || isOf(r.name, c.dns.names),
    c.dns?.types === undefined || r.dns?.type === 'A',
  ];
  return said.every(Boolean) ? 'yes' : 'no';
}

type Answer = 'yes' | 'other' | 'open' | 'no';
const hosted = ['TLS', 'HTTP', 'QUIC'];

/** The contract: "A service matches a flow", steps 1 to 4. */
function serviceMatches(s: ServiceEntry | undefined, f: Flow, veto: boolean, strict: boolean, known?: Known): Answer {
  if (s === undefined) return 'no';
  const place = placeOf(f);
  if (s.ports !== null && !s.ports.some((entry) => covers(entry, place))) return 'no';
  const here = s.addresses.some((text) => text.split('/')[0] === f.destination);
  const byTable = known?.namesOf(f.destination).some((name) => isOf(name, s.names)) === true;
  const c = (s.checks ?? []).filter((one) => covers(one, place));
  if (c.length === 0) {
    if (here || byTable) return 'yes';
    return s.names !== undefined && known === undefined ? 'open' : 'no';
  }
  if (!here && s.names === undefined) return 'no';
  const r = known?.reading;
  if (r === undefined || known === undefined) return strict && known && !veto && !here && !byTable ? 'no' : 'open';
  if (veto) {
    const written = c.filter(({ implied }) => !implied);
    if (written.length > 0 && written.every((one) => holds(one, r) === 'no')) return 'no';
    if (here) return 'yes';
    const name = hosted.includes(r.application ?? '') ? r.name : undefined;
    if (isOf(name, s.names)) return 'yes';
    return (name === undefined || r.tls?.encryptedClientHello === true) && byTable ? 'yes' : 'no';
  }
  const found = c
    .filter((one) => {
      if (here && (r.literal === undefined || r.literal === f.destination)) return true;
      // An address as a host matches only itself.
      if (r.literal !== undefined) return false;
      if (!hosted.includes(one.application)) return byTable;
      return isOf(r.name, s.names) && known.gives(r.name ?? '', f.destination);
    })
    .map((one) => holds(one, r));
  return found.includes('yes') ? 'yes' : found.includes('other') ? 'other' : 'no';
}

const vetoes = ({ action }: RuleEntry): boolean => action === 'drop' || action === 'reject';
const strictOf = (p: Policy): boolean => 'pool' in p.settings && p.settings.pool.dns?.strict === true;

function ruleMatches(p: Policy, id: string, f: Flow, known?: Known): Answer {
  const entry = p.rules[id] as RuleEntry;
  if (entry.redirect) {
    const sameFamily = entry.redirect.address.includes(':') === f.destination.includes(':');
    if (!sameFamily || f.destinationPort === undefined) return 'no';
  }
  if (entry.services === '*') return 'yes';
  const said = entry.services.map((name) => serviceMatches(p.services[name], f, vetoes(entry), strictOf(p), known));
  return (['yes', 'other', 'open'] as const).find((one) => said.includes(one)) ?? 'no';
}

const rulesOf = (p: Policy, context: Context): string[] => p.groups.g?.rules[context] ?? [];

/** In one world, where each open rule matches or not: whether it permits, and whether something open lies on the way. */
function inWorld(
  p: Policy,
  said: Map<string, Answer>,
  world: ReadonlySet<string>,
): { permits: boolean; pending: boolean } {
  let pending = false;
  let enforced = false;
  for (const context of contexts) {
    for (const id of rulesOf(p, context)) {
      const entry = p.rules[id] as RuleEntry;
      const answer = said.get(id);
      if (answer === 'open') {
        pending = true;
        if (entry.mode !== 'Audit') enforced = true;
      }
      if (answer === 'no' || (answer === 'open' && !world.has(id)) || entry.mode === 'Audit') continue;
      if (vetoes(entry)) return { permits: false, pending };
      if (entry.action === 'accept' && context !== 'service') break;
      return { permits: entry.redirect === undefined || !enforced, pending: pending && entry.redirect === undefined };
    }
  }
  return { permits: 'pool' in p.settings && p.settings.pool.defaultAction === 'Accept', pending };
}

function naiveAsks(p: Policy, f: Flow, known?: Known): boolean {
  const said = new Map(
    contexts.flatMap((context) => rulesOf(p, context)).map((id) => [id, ruleMatches(p, id, f, known)]),
  );
  const open = [...said].filter(([, answer]) => answer === 'open').map(([id]) => id);
  for (let bits = 0; bits < 2 ** open.length; bits++) {
    const world = new Set(open.filter((_, index) => (bits >> index) & 1));
    const { permits, pending } = inWorld(p, said, world);
    if (pending && permits) return true;
    // Everything passes: it is read to be counted.
    if (p.groups.g?.audit && open.length > 0 && onTheWay(p, said)) return true;
  }
  return false;
}

/** Whether an open rule comes before what ends the walk. */
function onTheWay(p: Policy, said: Map<string, Answer>): boolean {
  for (const context of contexts) {
    for (const id of rulesOf(p, context)) {
      const entry = p.rules[id] as RuleEntry;
      if (said.get(id) === 'open') return true;
      if (said.get(id) === 'no' || entry.mode === 'Audit') continue;
      if (entry.action !== 'accept' || context === 'service') return false;
      break;
    }
  }
  return false;
}

function naive(p: Policy, f: Flow, known?: Known): Decision {
  if (known?.reading === undefined && naiveAsks(p, f, known))
    return { verdict: 'accept', reason: 'unread', provisional: true };
  const found: Decision = { verdict: 'drop', reason: 'rule' };
  const audited: AuditHit[] = [];
  const passed: string[] = [];
  const ports: Record<string, number> = {};
  const unconforming = new Set<string>();
  const questions: Record<string, number> = {};
  let open = false;
  const end = ((): Decision => {
    for (const context of contexts) {
      for (const id of rulesOf(p, context)) {
        const entry = p.rules[id] as RuleEntry;
        const said = ruleMatches(p, id, f, known);
        if (said === 'open' && entry.mode !== 'Audit') open = true;
        if (said === 'no' || said === 'open') continue;
        if (entry.mode === 'Audit') {
          audited.push({ context, rule: id, action: entry.action });
          continue;
        }
        if (vetoes(entry)) return { ...found, verdict: entry.action as 'drop', context, rule: id };
        accepts(entry);
        if (entry.action === 'accept' && context !== 'service') {
          passed.push(id);
          break;
        }
        const permitted: Decision = {
          verdict: 'accept',
          reason: entry.action === 'accept' ? 'service-accept' : 'rule',
          context,
          rule: id,
        };
        return entry.redirect === undefined ? permitted : again(id, entry.redirect, permitted);
      }
    }
    const accept = 'pool' in p.settings && p.settings.pool.defaultAction === 'Accept';
    return { verdict: accept ? 'accept' : 'drop', reason: 'default-action' };
  })();
  const audit = p.groups.g?.audit === true;
  const { redirect, ...rest } = end;
  return {
    ...rest,
    ...(audit && end.verdict !== 'accept' && { verdict: 'accept', wouldHave: end.verdict as 'drop' }),
    ...(redirect && (audit ? { wouldRedirect: redirect } : { redirect })),
    ...(audited.length > 0 && { audited }),
    ...(known && passed.length > 0 && { passed }),
    ...(Object.keys(ports).length > 0 && { ports }),
    ...(unconforming.size > 0 && end.verdict === 'accept' && { unconforming: [...unconforming] }),
    ...(Object.keys(questions).length > 0 && { questionsPerSecond: questions }),
  };

  function accepts({ services }: RuleEntry): void {
    const names = services === '*' ? [] : services;
    const said = names.map((name) => serviceMatches(p.services[name], f, false, strictOf(p), known));
    names.forEach((name, index) => {
      const limit = p.services[name]?.limits?.[0];
      if (limit && covers(limit, placeOf(f)) && ['yes', 'other'].includes(said[index] ?? ''))
        ports[`port web of ${name}`] = 8;
    });
    const by = said.includes('yes') ? said.indexOf('yes') : said.indexOf('other');
    const name = names[by] ?? '';
    if (said[by] === 'other') unconforming.add(name);
    const { reading } = known ?? {};
    const holding = (p.services[name]?.checks ?? []).filter(
      (one) => reading && covers(one, placeOf(f)) && holds(one, reading) === 'yes',
    );
    const rates = holding.map((one) => one.dns?.maxQuestionsPerSecond ?? Number.POSITIVE_INFINITY);
    const rate = Math.max(...rates);
    if (rates.length > 0 && rate < Number.POSITIVE_INFINITY) questions[name] = rate;
  }

  function again(by: string, to: Redirect, permitted: Decision): Decision {
    const target = { by, address: to.address, port: to.port ?? 0 };
    const refused = { verdict: 'drop', reason: 'redirect', wouldRedirect: target } as const;
    const read = known !== undefined && (known.reading !== undefined || naiveAsks(p, f));
    if (open || read) return { ...permitted, ...refused };
    const next = { ...f, destination: to.address, destinationPort: to.port ?? 0 };
    for (const context of ['cluster', 'namespace'] as const) {
      for (const id of rulesOf(p, context)) {
        const entry = p.rules[id] as RuleEntry;
        const said = ruleMatches(p, id, next);
        if (said === 'no' || (said === 'open' && (!vetoes(entry) || entry.mode === 'Audit'))) continue;
        if (entry.mode === 'Audit') {
          if (vetoes(entry)) audited.push({ context, rule: id, action: entry.action });
          continue;
        }
        if (entry.action === 'accept') break;
        if (said === 'open') return { ...refused, context, rule: id };
        if (vetoes(entry))
          return { verdict: entry.action as 'drop', reason: 'rule', context, rule: id, wouldRedirect: target };
        const elsewhere = entry.redirect && (entry.redirect.address !== to.address || entry.redirect.port !== to.port);
        if (elsewhere) return { ...refused, context, rule: id };
        return { ...permitted, redirect: target };
      }
    }
    return { ...permitted, redirect: target };
  }
}

const sorted = (value: unknown): unknown =>
  value !== null && typeof value === 'object' && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort())
    : value;
function same(actual: unknown, expected: unknown, about: () => unknown): void {
  const [a, b] = [JSON.stringify(sorted(actual)), JSON.stringify(sorted(expected))];
  if (a !== b) throw new Error(`${a}, expected ${b}, of ${JSON.stringify(about())}`);
}

t.test('decide is what the sentences say, unread and read, and explain tells the same', async (t) => {
  const outcomes = new Map<string, number>();
  const reached = (what: string): void => void outcomes.set(what, (outcomes.get(what) ?? 0) + 1);
  const property = fc.property(
    policy,
    fc.array(flow, { minLength: 4, maxLength: 8 }),
    table,
    fc.array(fc.constantFrom(...readings), { minLength: 3, maxLength: 6 }),
    (p, flows, pairs, some) => {
      const evaluator = compilePolicy(p);
      for (const f of flows) {
        for (const known of [undefined, knownOf(pairs), ...some.map((reading) => knownOf(pairs, reading))]) {
          const expected = naive(p, f, known);
          const about = () => ({ f, reading: known?.reading, pairs, known: known !== undefined });
          const decision = evaluator.decide(f, known);
          same(decision, expected, about);
          const { decision: explained, steps, summary } = evaluator.explain(f, known);
          same(explained, expected, about);
          if (summary === '' || steps.some(({ why }) => why === '')) throw new Error('no words');
          if (steps.some(({ open, matched }) => open && matched)) throw new Error('open, and matched');
          if (decision.provisional && !steps.some(({ open }) => open)) throw new Error('nothing is open');
          const how = known === undefined ? 'unread' : known.reading === undefined ? 'table' : 'read';
          reached(`${how} ${decision.reason} ${decision.wouldHave ?? decision.verdict}`);
          for (const what of ['unconforming', 'questionsPerSecond', 'audited', 'passed', 'ports', 'redirect'] as const)
            if (decision[what] !== undefined) reached(`${how} ${what}`);
        }
      }
    },
  );
  fc.assert(property, { numRuns: 600 });
  // 3 × (rule ×3, service-accept, default ×2, redirect), unread ×2, and what stands beside.
  t.equal(outcomes.size, 3 * 7 + 2 + 2 + 3 + 2 + 3 + 2, JSON.stringify(Object.fromEntries([...outcomes].sort())));
});

t.test('no reading permits what is refused unread, or forbids what passes unread', async (t) => {
  let asked = 0;
  let both = 0;
  const property = fc.property(policy, fc.array(flow, { minLength: 3, maxLength: 6 }), table, (p, flows, pairs) => {
    const evaluator = compilePolicy(p);
    for (const f of flows) {
      for (const first of [undefined, knownOf(pairs)]) {
        const unread = evaluator.decide(f, first);
        // Under audit nothing is refused; where it goes redirected it is never read.
        const would = (decision: Decision): string =>
          decision.wouldHave === undefined ? decision.verdict : decision.wouldHave;
        const outcomes = new Set(
          readings.map((reading) => would(evaluator.decide(f, knownOf(pairs, reading))) === 'accept'),
        );
        if (unread.provisional) {
          asked++;
          if (outcomes.size === 2) both++;
          continue;
        }
        const passes = would(unread) === 'accept';
        if (unread.redirect !== undefined || unread.wouldRedirect !== undefined) continue;
        if (outcomes.has(!passes))
          throw new Error(`${JSON.stringify({ unread, f, pairs, table: first !== undefined })}`);
      }
    }
  });
  fc.assert(property, { numRuns: 400 });
  t.ok(asked > 300 && both > asked / 8, `${asked} asked, of which ${both} are decided by what is read`);
});
