/**
 * Hit counters of rules, without a kernel: what a gateway adds up and keeps, what it tells the controller, how that sums
 * it up and when it shows it. Clocks are passed in. The kernel's own counting: test/netns/hits.test.ts.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { Registry } from 'prom-client';
import t from 'tap';
import {
  type HitsTuple,
  hitsIdOfObject,
  isHitId,
  MAX_COUNT,
  noHits,
  type RuleHits,
  roundCount,
  statusCounters,
} from '../../api/hits.ts';
import { type Action, emptyGatewayPlan, type GatewayPlan, type RuleLimits } from '../../api/plan.ts';
import {
  formatMessage,
  hitsMessage,
  MAX_CLIENT_LINE,
  MAX_HITS_RULES,
  parseClientMessage,
} from '../../api/plan-stream.ts';
import { ControllerHits } from '../../controller/hits.ts';
import { HitSums } from '../../controller/publish/hits.ts';
import { StatusDirectory } from '../../controller/publish/status.ts';
import { Webhooks } from '../../controller/webhooks.ts';
import { silentLog } from '../../daemon/log.ts';
import { compileGateway, GatewayCompiler } from '../../gateway/compile.ts';
import { GatewayHits } from '../../gateway/hits.ts';
import { ruleMark, ruleNumbers } from '../../gateway/marks.ts';
import { hitsMetrics } from '../../gateway/metrics-hits.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import { FlowTraffic } from '../../gateway/record/flow-traffic.ts';
import { type Counted, countedRules, HitTotals } from '../../gateway/record/hit-totals.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { type CounterValue, diffRuleset, markText, scriptOf, stateOf } from '../../kernel/nft.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-hits-'));
t.teardown(() => rmSync(dir, { recursive: true }));

const HOUR = 3_600_000;
const counts = (...rows: [number, number, number][]): Map<number, CounterValue> =>
  new Map(rows.map(([number, packets, bytes]) => [number, { packets, bytes }]));
const rule = (id: string, denies = false) => ({ id, as: denies ? ('denies' as const) : ('permits' as const) });
const hits = (h: number, flows: number, packets: number, bytes: number, lastHit: number): RuleHits => ({
  hits: h,
  flows,
  packets,
  bytes,
  lastHit,
});

function planOf(rules: Record<string, Action>, defaultAction: 'Drop' | 'Accept' = 'Drop'): GatewayPlan {
  const plan = emptyGatewayPlan();
  plan.settings = {
    pool: {
      pool: 'edge',
      defaultAction,
      unassigned: 'Drop',
      internalInterface: 'inside',
      externalInterface: 'outside',
      externalGateway: {},
      steering: { mode: 'VXLAN', vni: 7, port: 4793, mtu: null },
      clusterCIDRs: [],
      excludedCIDRs: [],
    },
  };
  for (const [id, action] of Object.entries(rules)) {
    const [context = '', ...names] = id.split('/');
    plan.rules[id] = {
      context: context as 'cluster',
      ...(names.length > 1 ? { namespace: names[0] ?? '' } : {}),
      name: names.at(-1) ?? '',
      action,
      priority: 1000,
      services: '*',
    } as GatewayPlan['rules'][string];
  }
  return plan;
}

t.test('totals: what permits counts flows, what denies packets', async (t) => {
  const totals = new HitTotals();
  totals.use(
    new Map([
      [1, rule('cluster/a')],
      [2, rule('service/x/b', true)],
    ]),
    0,
  );
  totals.fold(counts([1, 3, 180], [2, 4, 240], [9, 100, 100]), 1000);
  t.same(Object.fromEntries(totals.totals), {
    'cluster/a': hits(3, 3, 0, 0, 1000),
    'service/x/b': hits(4, 0, 4, 240, 1000),
  });
  totals.traffic('cluster/a', 50, 6000, 1500);
  totals.fold(counts([1, 3, 180], [2, 5, 300]), 2000);
  t.same(totals.totals.get('cluster/a'), hits(3, 3, 50, 6000, 1000), 'traffic is no hit');
  t.same(totals.totals.get('service/x/b'), hits(5, 0, 5, 300, 2000));
  totals.fold(counts([1, 3, 180]), 3000);
  t.same(totals.totals.get('service/x/b'), hits(5, 0, 5, 300, 2000), 'a counter that was not read says nothing');
  totals.fold(counts([2, 2, 120]), 4000);
  t.same(totals.totals.get('service/x/b'), hits(7, 0, 7, 420, 4000), 'a smaller one was made anew');
  totals.reset();
  totals.fold(counts([1, 5, 300], [2, 6, 360]), 6000);
  t.equal(totals.totals.get('cluster/a')?.hits, 8, 'after a table that was gone every counter starts at zero');
  t.equal(totals.totals.get('service/x/b')?.hits, 13);
  totals.use(new Map([[3, { id: 'service/x/c', as: 'refuses' }]]), 7000);
  totals.fold(counts([3, 2, 120]), 7000);
  t.same(
    totals.totals.get('service/x/c'),
    hits(2, 0, 0, 0, 7000),
    'what its limit keeps from passing is no flow of it',
  );
});

t.test('totals belong to the rule, not to its number', async (t) => {
  const totals = new HitTotals();
  totals.use(
    new Map([
      [1, rule('cluster/a')],
      [2, rule('cluster/b')],
    ]),
    0,
  );
  totals.fold(counts([1, 10, 600], [2, 20, 1200]), 1);
  totals.use(
    new Map([
      [1, rule('cluster/b')],
      [3, rule('cluster/a', true)],
    ]),
    2,
  );
  totals.fold(counts([1, 11, 660], [3, 1, 60]), 3);
  t.same(totals.totals.get('cluster/b'), hits(21, 21, 0, 0, 3), 'what a number had counted for another is not its own');
  t.same(totals.totals.get('cluster/a'), hits(11, 10, 1, 60, 3), 'another action, the same rule');
  totals.use(new Map([[3, rule('cluster/a')]]), 4);
  totals.use(
    new Map([
      [1, rule('cluster/b')],
      [3, rule('cluster/a')],
    ]),
    5,
  );
  totals.fold(counts([1, 12, 720], [3, 1, 60]), 6);
  t.equal(totals.totals.get('cluster/b')?.hits, 33, 'a rule that came back counts on; its counter is a new one');
});

t.test(
  'traffic of a rule that is away long since is forgotten too, that of one before its first hit is not',
  async (t) => {
    const totals = new HitTotals();
    totals.use(new Map([[1, rule('cluster/new')]]), 0);
    for (const id of ['cluster/old', 'cluster/new']) totals.traffic(id, 5, 500, 10);
    totals.fold(counts([1, 1, 60]), 20);
    t.same([...totals.totals.keys()], ['cluster/old', 'cluster/new']);
    totals.fold(counts([1, 2, 120]), 10 + HOUR);
    t.same(Object.fromEntries(totals.totals), { 'cluster/new': hits(2, 2, 5, 500, 10 + HOUR) });
  },
);

t.test('totals: forgotten an hour after the rule, or when there are too many', async (t) => {
  const totals = new HitTotals();
  const all = new Map(Array.from({ length: 10_100 }, (_, n) => [n + 1, rule(`cluster/r${n}`)]));
  totals.use(all, 0);
  totals.fold(new Map([...all.keys()].map((number) => [number, { packets: 1, bytes: 60 }])), 0);
  totals.use(new Map([[1, rule('cluster/r0')]]), 1000);
  t.equal(totals.totals.size, 10_001, 'the rule that is there, and 10,000');
  totals.fold(counts([1, 1, 60]), 1000 + HOUR - 1);
  t.equal(totals.totals.size, 10_001);
  totals.fold(counts([1, 1, 60]), 1000 + HOUR);
  t.same([...totals.totals.keys()], ['cluster/r0']);
  t.same(
    totals.take(20_000).map(([id]) => id),
    ['cluster/r0'],
    'nobody is told of them',
  );
});

t.test('totals: saved and restored', async (t) => {
  const totals = new HitTotals();
  totals.use(
    new Map([
      [1, rule('cluster/a')],
      [2, rule('default/edge', true)],
    ]),
    0,
  );
  totals.fold(counts([1, 3, 180], [2, 4, 240]), 7);
  const saved: unknown = JSON.parse(JSON.stringify(totals.save()));
  const next = HitTotals.restore(saved, true);
  next.fold(counts([1, 5, 300], [2, 4, 240]), 8);
  t.same(next.totals.get('cluster/a'), hits(5, 5, 0, 0, 8), 'what was counted while nobody read is counted once');
  t.same(next.totals.get('default/edge'), hits(4, 0, 4, 240, 7));
  const rebooted = HitTotals.restore(saved, false);
  rebooted.fold(counts([1, 5, 300]), 8);
  t.equal(rebooted.totals.get('cluster/a')?.hits, 8, 'after a boot the kernel counts from zero');
  for (const damaged of [
    undefined,
    [],
    { totals: 7, counters: [] },
    { totals: { 'cluster/a': [1, 2, 3, 4] }, counters: [['1', 'cluster/a', false, 1, 1], 7, null] },
    { totals: { '../etc': [1, 2, 3, 4, 5], 'cluster/a': [-1, 0, 0, 0, 0] }, counters: [] },
  ]) {
    t.equal(HitTotals.restore(damaged, true).totals.size, 0, JSON.stringify(damaged));
  }
});

t.test('the table: every verdict counts, and a counter stays as long as its rule', async (t) => {
  const rules = {
    'cluster/on': 'accept',
    'cluster/no': 'drop',
    'namespace/x/never': 'reject',
    'namespace/x/yes': 'accept-decisively',
    'service/x/web': 'accept',
  } as const;
  const grouped = (defaultAction: 'Drop' | 'Accept', more: Record<string, Action> = {}): GatewayPlan => {
    const plan = planOf({ ...rules, ...more }, defaultAction);
    const of = (context: string) => Object.keys(plan.rules).filter((id) => id.startsWith(context));
    plan.groups.g = {
      namespace: 'x',
      rules: { cluster: of('cluster'), namespace: of('namespace'), service: of('service') },
    };
    return plan;
  };
  for (const defaultAction of ['Drop', 'Accept'] as const) {
    const { ruleset, ruleNumbers: numbers } = compileGateway(grouped(defaultAction));
    const marks = [...numbers].map(([, number]) => markText(ruleMark(number)));
    t.same([...(ruleset.sets[HITS_SET]?.elements.keys() ?? [])], marks, 'an element for each rule');
    for (const refusing of ['redirect', 'over_limit', 'audited_limit']) {
      const [mark, count] = ruleset.chains[`rule_${refusing}`]?.rules ?? [];
      t.same([mark, count], ['meta mark set meta mark or 0x00000001', 'update @rule_hits { meta mark }'], refusing);
    }
    const lines = Object.entries(ruleset.chains).flatMap(([name, chain]) =>
      /^(cluster|namespace|service|group)_/.test(name) ? chain.rules.filter((line) => !line.startsWith('jump')) : [],
    );
    t.equal(lines.length, 6, 'each rule and the default action');
    for (const line of lines) {
      const [, mark, chain = ''] = /(?:meta mark set|or) (\w+) goto (\w+)$/.exec(line) ?? [];
      t.ok(marks.includes(mark ?? ''), `${line}: says which rule it is`);
      t.match(ruleset.chains[chain]?.rules[0], /^update @rule_hits \{ (meta mark|ct mark and 0x3fffff00) \}$/);
    }
  }
  const [before, after] = [grouped('Drop'), grouped('Drop', { 'cluster/new': 'drop' })].map(
    (plan) => compileGateway(plan).ruleset,
  );
  if (before === undefined || after === undefined) throw new Error('no rulesets');
  const script = (from: typeof before, to: typeof before): string[] =>
    scriptOf(diffRuleset(stateOf(from), to))
      .split('\n')
      .filter((line) => line.includes(` ${HITS_SET} `));
  t.match(
    script(before, after),
    [/^add element inet sluice rule_hits \{ 0x\w+ \}$/],
    'a rule more is one counter more',
  );
  t.match(script(after, before), [/^delete element inet sluice rule_hits \{ 0x\w+ \}$/], 'and the other way');
});

t.test('which plans count alike', async (t) => {
  const plan = planOf({ 'cluster/a': 'accept', 'service/x/b': 'drop' });
  const numbers = ruleNumbers(Object.keys(plan.rules));
  t.same(
    new Map([...countedRules(plan, numbers).values()].map(({ id, as }) => [id, as])),
    new Map([
      ['cluster/a', 'permits'],
      ['service/x/b', 'denies'],
      ['default/edge', 'denies'],
    ]),
    'the default action counts like a rule',
  );
  t.same(countedRules(emptyGatewayPlan(), numbers).size, 0);
  const named = planOf({ 'cluster/a': 'accept', 'service/x/b': 'drop' });
  const limitedTo = (limits: RuleLimits): GatewayPlan => {
    const plan = structuredClone(named);
    Object.assign(plan.rules['cluster/a'] ?? {}, { limits });
    return plan;
  };
  for (const [name, other, changed] of [
    ['the same', structuredClone(named), []],
    ['a rule less', planOf({ 'cluster/a': 'accept' }), ['service/x/b']],
    ['another rule', planOf({ 'cluster/a': 'accept', 'service/x/c': 'drop' }), ['service/x/b', 'service/x/c']],
    ['another action', planOf({ 'cluster/a': 'accept', 'service/x/b': 'accept' }), ['service/x/b']],
    ['a limit', limitedTo({ maxConnections: 5 }), ['cluster/a']],
    ['a limit that is not of connections', limitedTo({ bandwidth: 5e6 }), []],
  ] as const) {
    const compiler = new GatewayCompiler();
    compiler.update(named, undefined);
    const was = ruleNumbers(Object.keys(named.rules));
    const { numbers: found } = compiler.update(other, undefined);
    const is = ruleNumbers(Object.keys(other.rules));
    const ids = [...(found ?? [])].map((number) => is.nameOf(number) ?? was.nameOf(number));
    t.same(ids.sort(), changed, name);
  }
  const compiler = new GatewayCompiler();
  compiler.update(named, undefined);
  const opened = planOf({ 'cluster/a': 'accept', 'service/x/b': 'drop' }, 'Accept');
  t.equal(compiler.update(opened, undefined).numbers, undefined, 'another default: all is made anew');
});

t.test('numbers that change one by one count as if all had been said anew', async (t) => {
  const rule = fc.record({
    id: fc.constantFrom('a', 'b', 'c'),
    as: fc.constantFrom('permits' as const, 'denies' as const, 'refuses' as const),
  });
  const numbered = fc.dictionary(fc.constantFrom('1', '2', '3', '4'), rule);
  const step = fc.record({
    numbered,
    count: fc.record({ number: fc.integer({ min: 1, max: 4 }), packets: fc.nat(5) }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 8 }), (steps) => {
      const [one, whole] = [new HitTotals(), new HitTotals()];
      let before = new Map<number, Counted>();
      const kernel = new Map<number, CounterValue>();
      steps.forEach(({ numbered, count }, at) => {
        const next = new Map(Object.entries(numbered).map(([number, value]) => [Number(number), value]));
        const changed = new Set([...before.keys(), ...next.keys()]);
        one.recount(
          [...changed].map((number) => [number, next.get(number)] as const),
          at,
        );
        whole.use(next, at);
        for (const number of before.keys()) if (!next.has(number)) kernel.delete(number);
        if (next.has(count.number)) {
          const packets = (kernel.get(count.number)?.packets ?? 0) + count.packets;
          kernel.set(count.number, { packets, bytes: packets * 100 });
        }
        for (const hits of [one, whole]) hits.fold(kernel, at);
        before = next;
      });
      t.same(one.save(), whole.save());
    }),
    { numRuns: 200 },
  );
});

t.test('traffic of flows: each packet once, however often a flow is looked at', async (t) => {
  const look = fc.record({ flow: fc.integer({ min: 1, max: 4 }), more: fc.nat(100), end: fc.boolean() });
  fc.assert(
    fc.property(fc.array(look, { maxLength: 60 }), (events) => {
      const traffic = new FlowTraffic();
      const carried = new Map<number, number>();
      let all = 0;
      let counted = 0;
      for (const { flow: id, more, end } of events) {
        const packets = (carried.get(id) ?? 0) + more;
        all += more;
        const flow = { id, packets: { original: packets, reply: 0 }, bytes: { original: 0, reply: 3 * packets } };
        const { packets: now, bytes } = end ? traffic.end(flow) : traffic.look(flow);
        counted += now;
        if (bytes !== 3 * now) return false;
        if (end) carried.delete(id);
        else carried.set(id, packets);
      }
      return counted === all;
    }),
  );
  const traffic = new FlowTraffic();
  const flow = (packets: number) => ({
    id: 1,
    packets: { original: packets, reply: 1 },
    bytes: { original: 9, reply: 9 },
  });
  traffic.skip(flow(5));
  t.same(traffic.end(flow(7)), { packets: 2, bytes: 0 }, 'what an earlier run has counted is skipped');
});

/** A gateway whose kernel is a map. */
function fakeGateway(state: string, boot = 'b1') {
  const kernel = new Map<string, CounterValue>();
  const sent: [string, Record<string, RuleHits>][] = [];
  const gateway = {
    kernel,
    sent,
    up: true,
    now: 1_000_000,
    errors: [] as unknown[],
    numbers: ruleNumbers(),
    looked: 0,
    open: () =>
      GatewayHits.open({
        state,
        boot,
        counts: async () =>
          new Map([...kernel].map(([id, value]) => [ruleMark(gateway.numbers.get(id) ?? 0), { ...value }] as const)),
        lookAtFlows: async () => void gateway.looked++,
        report: (epoch, rules) => {
          if (gateway.up) sent.push([epoch, Object.fromEntries(structuredClone(rules))]);
          return gateway.up;
        },
        onError: (error) => gateway.errors.push(error),
        now: () => gateway.now,
      }),
  };
  return gateway;
}

t.test('a gateway reads, saves and only then reports; a restart loses nothing and counts nothing twice', async (t) => {
  const state = mkdtempSync(join(dir, 'gw-'));
  const gateway = fakeGateway(state);
  const plan = planOf({ 'cluster/a': 'accept-decisively' });
  gateway.numbers = ruleNumbers(Object.keys(plan.rules));
  const first = await gateway.open();
  await first.before(undefined);
  first.inForce(plan, gateway.numbers, undefined);
  gateway.kernel.set('cluster/a', { packets: 2, bytes: 120 });
  const started = { context: 'cluster', rule: 'a', reason: 'rule' } as FlowRecord;
  first.traffic(started, { packets: 20, bytes: 4000 });
  first.traffic({ reason: 'default-action' } as FlowRecord, { packets: 1, bytes: 60 });
  first.traffic({ reason: 'rule' } as FlowRecord, { packets: 1, bytes: 60 });
  gateway.up = false;
  await first.round();
  t.same(gateway.sent, [], 'nobody hears');
  t.ok(readFileSync(join(state, 'hits.json')).length > 0, 'but it is saved');
  gateway.up = true;
  await first.round();
  const epoch = gateway.sent[0]?.[0];
  t.same(gateway.sent, [
    [epoch, { 'cluster/a': hits(2, 2, 20, 4000, 1_000_000), 'default/edge': hits(0, 0, 1, 60, 0) }],
  ]);
  await first.round();
  t.equal(gateway.sent.length, 1, 'what did not change is not told again');
  t.equal(gateway.looked, 1, 'living flows are looked at once a minute');
  gateway.now += 60_000;
  await first.round();
  t.equal(gateway.looked, 2);

  // It dies here; the kernel goes on.
  gateway.kernel.set('cluster/a', { packets: 5, bytes: 300 });
  const second = await gateway.open();
  t.equal(second.totals.get('cluster/a')?.hits, 5, 'counted by the numbering of then, before any plan');
  await second.before(undefined);
  second.inForce(plan, gateway.numbers, undefined);
  second.connected();
  await second.round();
  t.same(gateway.sent[1]?.[0], epoch, 'the totals go on');
  t.match(gateway.sent[1]?.[1], { 'cluster/a': { hits: 5, packets: 20 } });

  const other = planOf({ 'cluster/a': 'accept-decisively', 'cluster/b': 'drop' });
  gateway.kernel.set('cluster/a', { packets: 6, bytes: 360 });
  await second.before(undefined);
  t.equal(second.totals.get('cluster/a')?.hits, 6, 'before rules change, what they counted is read');
  gateway.kernel.set('cluster/a', { packets: 7, bytes: 420 });
  second.inForce(other, ruleNumbers(Object.keys(other.rules)), undefined);
  await second.before(new Set());
  t.equal(second.totals.get('cluster/a')?.hits, 6, 'before a plan of the same rules nothing is');
  await second.close();
  t.equal(second.totals.get('cluster/a')?.hits, 7, 'the end is counted');
  const third = await gateway.open();
  t.equal(third.totals.get('cluster/a')?.hits, 7);
  writeFileSync(join(state, 'hits.json'), '{"epoch":');
  const lost = await gateway.open();
  t.equal(lost.totals.size, 0, 'a damaged file is none');
  t.same(gateway.errors, []);
});

t.test('a round reports so much, and the rest in the next ones', async (t) => {
  const gateway = fakeGateway(mkdtempSync(join(dir, 'gw-')));
  const plan = planOf(Object.fromEntries(Array.from({ length: 9_000 }, (_, n) => [`cluster/r${n}`, 'drop' as const])));
  gateway.numbers = ruleNumbers(Object.keys(plan.rules));
  const program = await gateway.open();
  program.inForce(plan, gateway.numbers, undefined);
  for (const id of Object.keys(plan.rules)) gateway.kernel.set(id, { packets: 1, bytes: 60 });
  await program.round();
  t.equal(gateway.sent.length, 20);
  t.ok(gateway.sent.every(([, rules]) => Object.keys(rules).length <= MAX_HITS_RULES));
  await program.round();
  t.equal(new Set(gateway.sent.flatMap(([, rules]) => Object.keys(rules))).size, 9_000, 'each once');
});

t.test('messages: bounds, and what is refused', async (t) => {
  const long = (n: number): string => `service/${'n'.repeat(63)}/${'x'.repeat(245)}${String(n).padStart(8, '0')}`;
  const most = MAX_COUNT;
  const full = Array.from({ length: MAX_HITS_RULES }, (_, n): [string, RuleHits] => [
    long(n),
    hits(most, most, most, most, 8.64e15),
  ]);
  const message = hitsMessage('0123-abc', full);
  const line = formatMessage(message).trim();
  t.ok(line.length < MAX_CLIENT_LINE, 'the longest fits into a line');
  t.same(parseClientMessage(line), { ok: true, value: message });
  const of = (rules: unknown, epoch: unknown = 'abc'): string => JSON.stringify({ type: 'hits', epoch, rules });
  const rows: [string, string][] = [
    [of({}, '../x'), 'hits: expected an epoch'],
    [of({}, 7), 'hits: expected an epoch'],
    [of([]), 'hits: expected rules'],
    [of({ 'cluster/a': [1, 2, 3, 4] }), 'hits: expected five counts a rule'],
    [of({ 'cluster/a': [1, 2, 3, 4, -1] }), 'hits: expected five counts a rule'],
    [of({ 'cluster/a': [1, 2, 3, 4, 1e300] }), 'hits: expected five counts a rule'],
    [of({ 'cluster/a': [1, 2, 3, 1.5, 4] }), 'hits: expected five counts a rule'],
    [of({ 'cluster/a': [1, 2, 3, 2e18, 4] }), 'hits: expected five counts a rule'],
    // No Date says it: a status that did would throw.
    [of({ 'cluster/a': [1, 2, 3, 4, Number.MAX_SAFE_INTEGER] }), 'hits: expected five counts a rule'],
    [of({ 'cluster/../a': [1, 2, 3, 4, 5] }), 'hits: expected ids of rules'],
    ['{"type":"hits","epoch":"a","rules":{"__proto__":[1,2,3,4,5]}}', 'hits: expected ids of rules'],
    [
      of(Object.fromEntries(Array.from({ length: MAX_HITS_RULES + 1 }, (_, n) => [`cluster/r${n}`, [0, 0, 0, 0, 0]]))),
      `hits: expected at most ${MAX_HITS_RULES} rules`,
    ],
  ];
  for (const [text, error] of rows) t.same(parseClientMessage(text), { ok: false, error }, text.slice(0, 70));
  for (const [id, yes] of [
    ['cluster/a', true],
    ['default/edge', true],
    ['namespace/x/a', true],
    ['cluster/x/a', false],
    ['service/a', false],
    ['pod/x/a', false],
    ['cluster/', false],
    ['cluster/A', false],
  ] as const) {
    t.equal(isHitId(id), yes, id);
  }
});

t.test('rounding', async (t) => {
  for (const [count, rounded] of [
    [0, 0],
    [7, 7],
    [99, 99],
    [100, 100],
    [109, 100],
    [12_999, 12_000],
    [9_999_999, 9_900_000],
    [Number.MAX_SAFE_INTEGER, 9_000_000_000_000_000],
  ] as const) {
    t.equal(roundCount(count), rounded);
  }
  fc.assert(
    fc.property(fc.maxSafeNat(), (count) => {
      const rounded = roundCount(count);
      return rounded <= count && count - rounded <= count / 10 && /^\d{0,2}0*$/.test(String(rounded));
    }),
  );
  t.same(statusCounters(noHits()), { hits: 0, flows: 0, packets: 0, bytes: 0 }, 'never hit: no time');
  t.equal(statusCounters(hits(1, 1, 1, 1, 60_000)).lastHit, '1970-01-01T00:01:00Z');
  t.equal(hitsIdOfObject('ServiceEgressRule/x/a'), 'service/x/a');
  t.equal(hitsIdOfObject('GatewayPool/edge'), 'default/edge');
  t.equal(hitsIdOfObject('Pod/x/a'), undefined);
});

const tuple = (h: number, lastHit = 0): [number, number, number, number, number] => [h, h, 2 * h, 100 * h, lastHit];

t.test('sums over gateways: totals told twice, lost, or from an older state', async (t) => {
  let sums = new HitSums();
  const of = (id = 'cluster/a'): number | undefined => sums.sums.get(id)?.hits;
  sums.report('gw-a', 'e1', { 'cluster/a': tuple(10, 5) });
  sums.report('gw-b', 'e2', { 'cluster/a': tuple(7, 9) });
  t.same(sums.sums.get('cluster/a'), hits(17, 17, 34, 1700, 9));
  sums.report('gw-a', 'e1', { 'cluster/a': tuple(10, 5) });
  t.equal(of(), 17, 'told twice');
  sums.report('gw-a', 'e1', { 'cluster/a': tuple(30) });
  t.equal(of(), 37, 'told after some were lost');
  sums = HitSums.restore(JSON.parse(JSON.stringify(sums.save())));
  sums.report('gw-a', 'e1', { 'cluster/a': tuple(31) });
  t.equal(of(), 38, 'told to a controller that has started again');
  sums.report('gw-a', 'e1', { 'cluster/a': tuple(20) });
  t.equal(of(), 38, 'an older state of the gateway adds nothing');
  sums.report('gw-a', 'e9', { 'cluster/a': tuple(40) });
  t.equal(of(), 78, 'one that lost its state counts from zero');
  sums.use(new Set(['cluster/b']), 1000);
  sums.report('gw-a', 'e9', { 'cluster/a': tuple(50), 'cluster/b': tuple(1) });
  t.same([of(), of('cluster/b')], [78, 1], 'a rule that is away is not counted');
  sums.use(new Set(['cluster/a', 'cluster/b']), 1000 + HOUR - 1);
  sums.report('gw-a', 'e9', { 'cluster/a': tuple(50) });
  t.equal(of(), 88, 'back within the hour it goes on');
  sums.use(new Set(['cluster/b']), 2000);
  sums.use(new Set(['cluster/b']), 2000 + HOUR);
  t.equal(of(), undefined, 'after an hour it is forgotten');
  for (const damaged of [
    undefined,
    [],
    { sums: 1, told: [] },
    { sums: { 'cluster/a': 'x' }, told: { g: { epoch: 1 } } },
  ])
    t.equal(HitSums.restore(damaged).sums.size, 0, JSON.stringify(damaged));
});

t.test('status: once a minute an object, twenty a second in all, and each in its turn', async (t) => {
  const step = fc.record({ wait: fc.constantFrom(200, 1000, 7000), from: fc.nat(99), many: fc.nat(60) });
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 60 }), (steps) => {
      const sums = new HitSums();
      const totals = new Map<string, number>();
      const written = new Map<string, number>();
      const writes: number[] = [];
      let now = 1_000_000;
      const tick = (): number => {
        const due = sums.due(now);
        for (const id of due) {
          if (now - (written.get(id) ?? Number.NEGATIVE_INFINITY) < 60_000) throw new Error(`${id} again at ${now}`);
          written.set(id, now);
          writes.push(now);
        }
        if (due.length > 20) throw new Error(`${due.length} at once`);
        return due.length;
      };
      for (const { wait, from, many } of steps) {
        for (let n = from; n < from + many; n++) {
          const id = `cluster/r${n % 100}`;
          totals.set(id, (totals.get(id) ?? 0) + 1);
          sums.report('gw-a', 'e', { [id]: tuple(totals.get(id) ?? 0, now) });
        }
        tick();
        now += wait;
      }
      // A minute and as long as all of them take.
      for (let n = 0; n < 66; n++, now += 1000) tick();
      const status = (id: string) => sums.with(id, { conditions: [] }).counters;
      const shown = [...totals].every(([id, h]) => (status(id) as { hits: number }).hits === roundCount(h));
      // Twenty at once, and then one each 50 ms.
      const paced = writes.every((at, index) => {
        const first = writes[index - 40];
        return first === undefined || at - first >= 1000;
      });
      return shown && paced && tick() === 0;
    }),
    { numRuns: 60 },
  );
  const sums = new HitSums();
  sums.report('gw-a', 'e', { 'default/edge': tuple(1234, 90_000) });
  t.same(sums.with('default/edge', { conditions: [] }), { conditions: [] }, 'nothing before it is due');
  sums.due(0);
  t.same(sums.with('default/edge', { conditions: [] }), {
    conditions: [],
    defaultActionCounters: { hits: 1200, flows: 1200, packets: 2400, bytes: 120_000, lastHit: '1970-01-01T00:01:00Z' },
  });
  sums.report('gw-a', 'e', { 'default/edge': tuple(1239, 95_000) });
  t.same(sums.due(100_000), [], 'a change that rounding hides is none');
  const next = HitSums.restore(JSON.parse(JSON.stringify(sums.save())));
  t.match(next.with('default/edge', { conditions: [] }), { defaultActionCounters: { hits: 1200 } }, 'after a restart');
  t.same(next.due(200_000), [], 'and it is not written again');
});

t.test('a clock that is set back, and counters beyond what a number holds exactly', async (t) => {
  const sums = new HitSums();
  const ids = Array.from({ length: 30 }, (_, n) => `cluster/r${n}`);
  const report = (count: number) =>
    sums.report('gw-a', 'e', Object.fromEntries(ids.map((id) => [id, tuple(count, 90_000)])));
  const DAY = 86_400_000;
  report(1000);
  sums.due(DAY);
  report(2000);
  const due = [0, 1000, 2000].map((now) => sums.due(now).length);
  t.same(due, [0, 20, 10], 'twenty a second again, at once');
  report(3000);
  t.equal(sums.due(70_000).length, 20, 'and once a minute');

  const large: HitsTuple = [1, 1, 1, 2 * Number.MAX_SAFE_INTEGER, 90_000];
  sums.report('gw-b', 'e', { 'cluster/r0': large });
  sums.report('gw-c', 'e', { 'cluster/r0': [1, 1, 1, MAX_COUNT, 90_000] });
  t.equal(sums.sums.get('cluster/r0')?.bytes, MAX_COUNT);
  const next = HitSums.restore(JSON.parse(JSON.stringify(sums.save())));
  t.equal(next.sums.get('cluster/r0')?.bytes, MAX_COUNT, 'and it outlives a restart');
});

t.test('status: counters reach the files without a planning, and outlive one', async (t) => {
  const root = mkdtempSync(join(dir, 'status-'));
  const state = mkdtempSync(join(dir, 'state-'));
  let now = 1_000_000;
  const log = silentLog();
  const files = new StatusDirectory(root, log);
  const options = {
    state,
    patch: (patches: Parameters<typeof files.patch>[0]) => files.patch(patches),
    webhooks: new Webhooks({
      post: async () => ({ ok: true }),
      log,
      registry: new Registry(),
      now: () => now,
    }),
    log,
    now: () => now,
  };
  const controller = await ControllerHits.open(options);
  const statuses = new Map(
    ['ClusterEgressRule/a', 'ServiceEgressRule/x/b', 'GatewayPool/edge', 'EgressIP/e'].map((key) => [
      key,
      { conditions: [] },
    ]),
  );
  const read = (key: string): string => readFileSync(join(root, `${key}.yaml`), 'utf8');
  files.publish(controller.publish(statuses), [], new Map());
  await files.close();
  controller.report('gw-a', {
    type: 'hits',
    epoch: 'e',
    rules: { 'service/x/b': tuple(1234, 61_000), 'default/edge': tuple(5, 0), 'cluster/gone': tuple(1) },
  });
  for (let tries = 0; tries < 1200 && !read('GatewayPool/edge').includes('Counters'); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await files.close();
  t.match(
    read('ServiceEgressRule/x/b'),
    /counters:\n +hits: 1200\n +flows: 1200\n +packets: 2400\n +bytes: 120000\n +lastHit:/,
  );
  t.match(read('GatewayPool/edge'), /defaultActionCounters:\n +hits: 5\n/);
  t.notMatch(read('ClusterEgressRule/a'), /counters/);
  now += 30_000;
  files.publish(controller.publish(statuses), [], new Map());
  await files.close();
  t.match(read('ServiceEgressRule/x/b'), /hits: 1200/, 'a planning keeps them');
  await controller.close();
  t.same(readdirSync(state), ['hits.json']);
  const next = await ControllerHits.open(options);
  t.match(next.publish(statuses).get('ServiceEgressRule/x/b'), { counters: { hits: 1200 } }, 'and so does a restart');
  await next.close();
});

t.test('metrics: exact, and no more series than the bound', async (t) => {
  const registry = new Registry();
  const totals = new Map([
    ['default/edge', hits(9, 0, 9, 540, 1)],
    ['namespace/x/a', hits(1234, 1234, 5678, 90_123, 1)],
    ['cluster/b', hits(1, 1, 1, 1, 1)],
  ]);
  let asked = 0;
  hitsMetrics(registry, { totals, fresh: async () => void asked++ }, 2);
  const text = await registry.metrics();
  t.ok(asked > 0);
  t.match(text, /^sluice_rule_hits_total\{context="namespace",namespace="x",rule="a"\} 1234$/m);
  t.match(text, /^sluice_rule_packets_total\{context="namespace",namespace="x",rule="a"\} 5678$/m);
  t.match(text, /^sluice_rule_bytes_total\{context="default",namespace="",rule="edge"\} 540$/m);
  t.match(text, /^sluice_rule_flows_total\{context="default",namespace="",rule="edge"\} 0$/m);
  t.notMatch(text, /rule="b"/);
  t.match(text, /^sluice_rule_series_left_out 1$/m);
  await registry.metrics();
  t.match(await registry.metrics(), /rule="a"\} 1234$/m, 'asked again, not added up');
});
