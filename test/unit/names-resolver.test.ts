/**
 * What a gateway asks of the pool's resolvers: for flows that wait, with the bounds that a tenant meets, and for the exact
 * names of the plan before a flow comes. Against resolvers of the test's on loopback.
 */
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { defaultQuestionLimits, Questions } from '../../gateway/names/questions.ts';
import { type Answer, PoolResolver } from '../../gateway/names/resolver.ts';
import type { NamesOptions } from '../../gateway/names/service.ts';
import { MAX_WARM, WarmNames } from '../../gateway/names/warm.ts';
import {
  connected,
  createWorld,
  type DnsAnswer,
  type Gateway,
  type PlanParts,
  planOf,
  startDns,
  startGateway,
  until,
} from './names-world.ts';

const world = await createWorld(t, 82, ['gw-a', 'gw-b']);
const block = world.addresses['gw-a']?.replace(/\.1$/, '') ?? '';
const [one, two] = [`${block}.101`, `${block}.102`];
const { port } = world;
const A = (name: string, data: string, ttl = 60) => ({ name, type: 'A', ttl, data });
const AAAA = (name: string, data: string, ttl = 60) => ({ name, type: 'AAAA', ttl, data });
const nxdomain: DnsAnswer = { rcode: 3 };
const servfail: DnsAnswer = { rcode: 2 };

const planWith = (parts: Partial<PlanParts>) =>
  planOf({ gateways: { 'gw-a': world.addresses['gw-a'] ?? '' }, resolvers: [one], ...parts });
async function start(parts: Partial<PlanParts> = {}, options: Partial<NamesOptions> = {}): Promise<Gateway> {
  const gateway = await startGateway(world, 'gw-a', { resolverPort: port, ...options });
  gateway.names.plan(planWith(parts));
  return gateway;
}
const outcomes = (gateway: Gateway, outcome: string): Promise<number> =>
  gateway.metric('sluice_gateway_names_question_seconds', { outcome });

t.test('a flow that waits', async (t) => {
  const dns = await startDns(t, one, port, (name, type) => {
    if (name === 'www.example.com') {
      const alias = { name, type: 'CNAME', ttl: 40, data: 'cdn.example.net' };
      const address = type === 'A' ? A('cdn.example.net', '198.51.100.1') : AAAA('cdn.example.net', '2001:db8::1');
      return { answers: [alias, address] };
    }
    if (name === 'v4.example.com') return type === 'A' ? { answers: [A(name, '198.51.100.4')] } : {};
    if (name === 'inside.example.com')
      return { answers: type === 'A' ? [A(name, '10.0.0.1')] : [AAAA(name, 'fe80::1')] };
    if (name === 'broken.example.com') return servfail;
    return nxdomain;
  });
  const now = Date.now();
  const a = await start({}, { now: () => now });
  await Promise.all([a.resolve('www.example.com'), a.resolve('www.example.com'), a.resolve('www.example.com')]);
  t.same(dns.questions.sort(), ['www.example.com A', 'www.example.com AAAA'], 'is one question of each family');
  t.same(
    a.names.pairs().map((pair) => ({ ...pair, until: pair.until - now })),
    [
      { name: 'www.example.com', address: '198.51.100.1', until: 340_000 },
      { name: 'www.example.com', address: '2001:db8::1', until: 340_000 },
    ],
    'aliases are followed, and the least TTL holds',
  );
  const kinds = a.posted.map(({ message, queue }) => `${message.kind} ${queue}`);
  t.same(
    kinds,
    ['names undefined', 'resolved 0', 'resolved 0', 'resolved 0'],
    'the threads know before the flow goes on',
  );

  await a.resolve('v4.example.com', [4]);
  t.same(dns.questions.slice(2), ['v4.example.com A'], 'only the family of the flow is asked for');
  await a.resolve('v4.example.com', [4]);
  t.equal(dns.questions.length, 3, 'an answer of a moment ago is not asked for again');
  t.equal(await a.metric('sluice_gateway_names_questions_spared_total', { reason: 'remembered' }), 1);
  await a.resolve('nothing.example.com');
  await a.resolve('nothing.example.com');
  t.equal(dns.questions.length, 5, 'nor one that there is no such name');
  await a.resolve('v4.example.com', [6]);
  await a.resolve('inside.example.com');
  await a.resolve('broken.example.com');
  t.equal(a.names.pairs().length, 3, 'what may not be learned is not, whoever says it');
  t.equal(await outcomes(a, 'found'), 3);
  t.equal(await outcomes(a, 'none'), 2);
  t.equal(await outcomes(a, 'failed'), 1);
  const asked = dns.questions.length;
  await a.resolve('*.example.com');
  await a.resolve('bad..name');
  t.equal(dns.questions.length, asked, 'what is no name is not asked for');
  await a.names.close();
  await a.resolve('late.example.com');
  t.equal(dns.questions.length, asked, 'nor is anything at the end, and nobody waits');
  dns.close();
});

t.test('what is asked for is told to the other gateways', async (t) => {
  const dns = await startDns(t, one, port, (name, type) =>
    type === 'A' ? { answers: [A(name, '198.51.100.1')] } : { answers: [] },
  );
  const [a, b] = await Promise.all(['gw-a', 'gw-b'].map((name) => startGateway(world, name, { resolverPort: port })));
  if (a === undefined || b === undefined) throw new Error('not started');
  const plan = planOf({ gateways: world.addresses, resolvers: [one] });
  for (const { names } of [a, b]) names.plan(plan);
  await connected(a, 1);
  await a.resolve('www.example.com');
  await until(() => b.has('www.example.com', '198.51.100.1'), 'the other gateway knows');
  await Promise.all([a.names.close(), b.names.close()]);
  dns.close();
});

t.test('resolvers that do not answer', async (t) => {
  const said: string[] = [];
  const log = { warn: (_: object, text: string) => said.push(text), info: (text: string) => said.push(text) } as never;
  let speaks = false;
  const mute = await startDns(t, one, port, () => (speaks ? nxdomain : undefined));
  let refuses = false;
  const good = await startDns(t, two, port, (name) =>
    refuses ? servfail : { answers: [A(name, '198.51.100.1')].filter(() => !refuses) },
  );
  const a = await start({ resolvers: [one, two] }, { log });
  const first = await a.resolve('a.example.com', [4]);
  t.ok(a.has('a.example.com', '198.51.100.1'), 'another one is asked beside the first');
  t.ok(first >= 140 && first < 450, `a moment later: ${first} ms`);
  mute.questions.length = 0;
  const second = await a.resolve('b.example.com', [4]);
  t.ok(second < 140, `and first, from then on: ${second} ms`);
  t.same(mute.questions, [], 'the silent one is not bothered');
  refuses = true;
  const neither = await a.resolve('c.example.com', [4]);
  t.ok(neither < 550, `with none the flow waits no longer than it may: ${neither} ms`);
  t.ok(neither >= 350, 'the silent one had its time');
  t.equal(await outcomes(a, 'failed'), 1);
  for (const name of ['d', 'e', 'f', 'g', 'h']) await a.resolve(`${name}.example.com`, [4]);
  t.same(said, ['names: no resolver answers this gateway'], 'it is said once');
  speaks = true;
  await a.resolve('i.example.com', [4]);
  t.same(said.slice(1), ['names: resolvers answer again']);
  good.close();
  mute.close();
  const gone = await a.resolve('j.example.com', [4]);
  t.ok(gone < 550, `where nobody listens: ${gone} ms`);
  await a.names.close();

  const closing = new PoolResolver(port);
  closing.use([one, two]);
  const mute2 = await startDns(t, one, port, () => undefined);
  const answer = closing.ask('www.example.com');
  await delay(20);
  closing.close();
  t.equal((await answer).outcome, 'failed', 'one that ends lets nobody wait');
  t.equal((await new PoolResolver(port).ask('www.example.com')).outcome, 'failed', 'nor does one without resolvers');
  mute2.close();
});

t.test('an answer that is not to the question is none', async (t) => {
  const rows: [string, Partial<DnsAnswer>][] = [
    ['to another question', { question: 'other.example.com' }],
    ['with another number', { id: 1 }],
  ];
  for (const [what, other] of rows) {
    const dns = await startDns(t, one, port, (name) => ({ answers: [A(name, '198.51.100.66')], ...other }));
    const a = await start();
    await a.resolve('www.example.com', [4]);
    t.same(a.names.pairs(), [], what);
    t.ok(dns.questions.length > 0);
    await a.names.close();
    dns.close();
  }
});

t.test('a flood of names', async (t) => {
  const asked: string[] = [];
  const answers: ((answer: Answer) => void)[] = [];
  const questions = new Questions((name) => {
    asked.push(name);
    return new Promise((resolve) => answers.push(resolve));
  });
  const { inFlight, inFlightOfDomain, perSecond, perSecondOfDomain } = defaultQuestionLimits;
  const none: Answer = { outcome: 'none', addresses: [] };
  const settle = async (): Promise<void> => {
    for (const answer of answers.splice(0)) answer(none);
    await delay(0);
  };
  const flood = (domain: string, from: number, count: number, now: number): void => {
    for (let at = from; at < from + count; at++) void questions.ask(`n${at}.deep.${domain}`, [4], now);
  };
  const of = (domain: string): number => asked.filter((name) => name.endsWith(domain)).length;
  flood('evil.test', 0, 1_000, 1_000);
  t.equal(of('evil.test'), inFlightOfDomain, 'below one domain few wait at once');
  t.equal(questions.counts.busy, 1_000 - inFlightOfDomain);
  t.ok(questions.ask('api.example.com', [4], 1_000) !== undefined, 'and others are asked for beside them');
  for (let round = 1; round < 10; round++) {
    await settle();
    flood('evil.test', 1_000 * round, 1_000, 1_000);
  }
  t.equal(of('evil.test'), perSecondOfDomain, 'and in one second');
  await settle();
  for (let domain = 0; domain < 20; domain++) {
    flood(`evil${domain}.test`, 0, 10, 1_000);
    await settle();
  }
  t.equal(asked.length, perSecond, 'in all, too');
  t.equal(questions.ask('www.example.com', [4], 1_999), undefined);
  const before = asked.length;
  t.ok(questions.ask('www.example.com', [4], 2_000) !== undefined, 'the next second is another');
  for (let domain = 0; domain < 100; domain++) flood(`more${domain}.test`, 0, 1, 2_000);
  t.equal(asked.length - before, inFlight, 'so many at once in all');
  await settle();

  const again = asked.length;
  t.equal(questions.ask('www.example.com', [4], 4_999), undefined, 'remembered');
  t.equal(asked.length, again);
  t.ok(questions.ask('www.example.com', [6], 4_999) !== undefined, 'of that family only');
  t.ok(questions.ask('www.example.com', [4], 7_000) !== undefined, 'and not for ever');
  await settle();
  t.ok(questions.ask('www.example.com', [4], -1_000_000) !== undefined, 'nor for longer when the clock is set back');
  await settle();
  questions.forget();
  t.ok(questions.ask('www.example.com', [4], -1_000_000) !== undefined);
  await settle();
});

t.test('exact names of the plan are known before a flow comes', async (t) => {
  let now = Date.now();
  const dns = await startDns(t, one, port, (name, type) => {
    if (name === 'gone.example.com') return nxdomain;
    return type === 'A' ? { answers: [A(name, '198.51.100.1', 100)] } : { answers: [AAAA(name, '2001:db8::1', 100)] };
  });
  const names = ['*.wild.example.com', '**.wild.example.org', 'www.example.com', 'api.example.com', 'gone.example.com'];
  const a = await start({ names }, { now: () => now });
  await until(() => a.names.pairs().length === 4, 'the addresses of all that have some');
  const asked = (): number => dns.questions.filter((question) => question === 'www.example.com A').length;
  t.same(
    [...new Set(dns.questions.map((question) => question.split(' ')[0]))].sort(),
    ['api.example.com', 'gone.example.com', 'www.example.com'],
    'patterns are nobody to ask for',
  );
  await delay(500);
  t.equal(asked(), 1, 'once');
  now += 75_000;
  await delay(500);
  t.equal(asked(), 1, 'and not before its time');
  now += 21_000;
  await until(() => asked() === 2, 'but before its TTL is over');
  a.names.plan(planWith({ names: ['www.example.com', 'new.example.com'] }));
  await until(() => a.has('new.example.com', '198.51.100.1'), 'a name that the plan has now');
  dns.questions.length = 0;
  now += 100_000;
  await until(() => asked() === 1, 'what it still has');
  t.notOk(
    dns.questions.some((question) => question.startsWith('api.')),
    'what it has no more is not asked for',
  );
  const other = await startDns(t, two, port, (name) => ({ answers: [A(name, '198.51.100.2')] }));
  a.names.plan(planWith({ names: ['www.example.com'], resolvers: [two] }));
  await until(() => a.has('www.example.com', '198.51.100.2'), 'another resolver is asked at once');
  t.ok(other.questions.length > 0);
  t.equal(await a.metric('sluice_gateway_names_warm'), 1);
  await a.names.close();
  dns.close();
  other.close();
});

t.test('how often names are asked for', async (t) => {
  const at = 1_000_000;
  const due = (warm: WarmNames, from: number): number => {
    for (let now = from; ; now += 100) if (warm.take(1, now).length > 0) return now - from;
  };
  const rows: [string, 'found' | 'none' | 'failed', number, number, number][] = [
    ['shortly before its TTL is over', 'found', 300, 240_000, 285_000],
    ['a TTL of nothing', 'found', 0, 16_000, 19_000],
    ['a TTL of a week', 'found', 604_800, 2_880_000, 3_420_000],
    ['no such name', 'none', Number.POSITIVE_INFINITY, 24_000, 28_500],
    ['no answer', 'failed', Number.POSITIVE_INFINITY, 1_600, 1_900],
  ];
  for (const random of [0, 1]) {
    for (const [what, outcome, ttl, least, most] of rows) {
      const warm = new WarmNames(() => random);
      warm.keep(new Set(['a.test']), at);
      t.same(warm.take(5, at), ['a.test'], `${what}: at once`);
      t.same(warm.take(5, at + 3_600_000_000), [], `${what}: not while it is being asked for`);
      warm.answered('a.test', outcome, ttl, at);
      t.equal(due(warm, at), random === 0 ? least : most, what);
    }
  }
  const failing = new WarmNames(() => 0);
  failing.keep(new Set(['a.test']), 0);
  failing.take(1, 0);
  const waits: number[] = [];
  for (let now = 0; waits.length < 8; ) {
    failing.answered('a.test', 'failed', Number.POSITIVE_INFINITY, now);
    const wait = due(failing, now);
    waits.push(wait);
    now += wait;
  }
  t.same(waits, [1_600, 3_200, 6_400, 12_800, 25_600, 48_000, 48_000, 48_000], 'ever more seldom');

  const many = new WarmNames(() => 0);
  const names = Array.from({ length: MAX_WARM + 10 }, (_, n) => `n${n}.test`);
  many.keep(new Set(names), at);
  t.equal(many.size, MAX_WARM);
  t.equal(many.leftOut, 10);
  const seen = new Set<string>();
  for (let tick = 0; seen.size < MAX_WARM && tick < 2_000; tick++) {
    const now = at + tick * 200;
    for (const name of many.take(10, now)) {
      if (seen.has(name)) t.fail(`${name} twice before others once`);
      seen.add(name);
      many.answered(name, 'found', 0, now);
    }
  }
  t.equal(seen.size, MAX_WARM, 'all have their turn, however many are due');
  many.keep(new Set(), at);
  t.equal(many.size, 0);
  many.answered('n1.test', 'found', 0, at);
  t.equal(many.size, 0, 'an answer for a name that is not kept any more');
});
