/**
 * What becomes of flows that were read: their records and hits of rules, whoever tells of a flow first, and what is kept of
 * it until it ends, across a restart too.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { CT_DECIDED, CT_READ, NUMBER_READ_BYTES } from '../../api/names.ts';
import type { RuleEntry, ServiceEntry } from '../../api/plan.ts';
import { FlowReading } from '../../gateway/flow-reading.ts';
import type { GatewayInspection } from '../../gateway/inspect/inspection.ts';
import type { DecidedFlow } from '../../gateway/inspect/messages.ts';
import { keyOf, type NamesInUse, Readings } from '../../gateway/inspect/readings.ts';
import { DEFAULT_ACTION, isDecided, isRead, isUndecided, ruleMark, ruleNumbers } from '../../gateway/marks.ts';
import type { Judgement } from '../../gateway/recheck.ts';
import { RecordLimit, sayDecided } from '../../gateway/record/decided.ts';
import { endRecord, startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { HitTotals } from '../../gateway/record/hit-totals.ts';
import { Undecided } from '../../gateway/record/undecided.ts';
import type { FlowTuple } from '../../kernel/conntrack.ts';
import type { Decision } from '../../policy/decision.ts';
import { workloadsByAddress } from '../../policy/evaluate.ts';
import type { ConntrackEntry, ConntrackView } from '../../wire/conntrack.ts';
import { basePlan, EGRESS, PODS, WEB } from '../netns/gateway-plans.ts';

const time = new Date('2026-11-27T12:00:00Z');
const plan = basePlan();
const entry = (fields: Pick<RuleEntry, 'context' | 'action' | 'name'> & Partial<RuleEntry>): string => {
  const tenant = fields.context === 'cluster' ? {} : { namespace: 'billing' };
  const id = [fields.context, ...Object.values(tenant), fields.name].join('/');
  plan.rules[id] = { priority: 1, services: ['billing/api'], ...tenant, ...fields };
  return id;
};
const service: ServiceEntry = { addresses: [], names: ['api.test'], ports: null };
plan.services['billing/api'] = service;
const hand = entry({ context: 'cluster', action: 'accept', name: 'hand', logging: 'All' });
const quiet = entry({ context: 'namespace', action: 'accept', name: 'quiet' });
const permit = entry({ context: 'service', action: 'accept', name: 'permit' });
const deny = entry({ context: 'namespace', action: 'reject', name: 'deny' });
const silent = entry({ context: 'namespace', action: 'drop', name: 'silent', logging: 'None' });
const tried = entry({ context: 'namespace', action: 'drop', name: 'tried', mode: 'Audit' });
for (const group of Object.values(plan.groups)) {
  group.rules = { cluster: [], namespace: [], service: [] };
}
const numbers = ruleNumbers(Object.keys(plan.rules));
const view = viewOf('gw-a', plan, numbers);
const tls = {
  application: 'TLS',
  name: 'api.test',
  tls: { version: 0x0304, alpn: ['h2'], encryptedClientHello: false },
} as const;
const ends = { source: PODS.pay[4], sourcePort: 4000, destination: WEB[4], destinationPort: 443 };
const about = { protocol: 6, ...ends };
const flowOf = (decision: Decision | undefined, more: Partial<DecidedFlow> = {}): DecidedFlow => ({
  ...about,
  decision,
  reading: tls,
  ...more,
});
const accepted: Decision = { verdict: 'accept', reason: 'service-accept', context: 'service', rule: permit };
const conntrack = (mark: number, id = 7): ConntrackEntry => ({
  family: 4,
  id,
  protocol: 6,
  original: ends,
  reply: { source: WEB[4], sourcePort: 443, destination: EGRESS.pay[4], destinationPort: 4000 },
  mark,
  status: 0,
  packets: { original: 3, reply: 2 },
  bytes: { original: 300, reply: 200 },
  zone: 0,
});
const UNDECIDED = (CT_READ | ruleMark(NUMBER_READ_BYTES)) >>> 0;

t.test('records and hits of what a thread decided', async (t) => {
  const events = (flow: DecidedFlow, again = false) => {
    const { records, hits } = sayDecided(flow, view, time, again);
    return { records: records.map(({ event, rule, verdict, reason }) => [event, rule, verdict, reason]), hits };
  };
  const rows: [string, DecidedFlow, unknown[][], [string, string][]][] = [
    ['permitted, and nothing beside it: the kernel counts it', flowOf(accepted), [], []],
    [
      'rules that hand on are counted, and one wants a record',
      flowOf({ ...accepted, passed: [hand, quiet] }),
      [['match', 'hand', 'match', 'rule']],
      [
        [hand, 'permits'],
        [quiet, 'permits'],
      ],
    ],
    [
      'denied by a rule',
      flowOf({ verdict: 'reject', reason: 'rule', context: 'namespace', rule: deny }),
      [['deny', 'billing/deny', 'reject', 'rule']],
      [[deny, 'denies']],
    ],
    [
      'denied by a rule that wants no records',
      flowOf({ verdict: 'drop', reason: 'rule', context: 'namespace', rule: silent }),
      [],
      [[silent, 'denies']],
    ],
    [
      'denied by default',
      flowOf({ verdict: 'drop', reason: 'default-action' }),
      [['deny', undefined, 'drop', 'default-action']],
      [['default/edge', 'denies']],
    ],
    [
      'ended by inspection',
      flowOf(undefined, { reason: 'bad-request', detail: 'x' }),
      [['deny', undefined, 'drop', 'bad-request']],
      [],
    ],
    [
      'a hit of audit',
      flowOf({ ...accepted, audited: [{ context: 'namespace', rule: tried, action: 'drop' }] }),
      [['audit', 'billing/tried', 'audit', 'rule']],
      [[tried, 'denies']],
    ],
    [
      'a policy in audit',
      flowOf({ ...accepted, reason: 'rule', rule: deny, wouldHave: 'reject' }),
      [['audit', 'billing/deny', 'audit', 'rule']],
      [],
    ],
    [
      'other bytes than a check in audit wants',
      flowOf({ ...accepted, unconforming: ['billing/api'] }),
      [['audit', 'billing/permit', 'audit', 'conformance']],
      [],
    ],
  ];
  for (const [name, flow, records, hits] of rows) {
    t.same(events(flow), { records, hits: hits.map(([id, as]) => ({ id, as })) }, name);
  }
  t.same(events(flowOf({ ...accepted, passed: [hand] }), true), { records: [], hits: [] }, 'a further request');
  const { records } = sayDecided(flowOf(undefined, { reason: 'bad-request', detail: 'two-lengths' }), view, time);
  t.match(records[0], {
    time: time.toISOString(),
    pod: 'pay',
    protocol: 'tcp',
    ...ends,
    application: 'TLS',
    destinationName: 'api.test',
    tls: { version: '1.3', alpn: ['h2'] },
    reason: 'bad-request',
    detail: 'two-lengths',
  });
});

t.test('a start says the rule that a thread decided by, and what was read; the end repeats it', async (t) => {
  const started = startRecord(conntrack(UNDECIDED), view, time, flowOf(accepted));
  t.match(started, { event: 'start', context: 'service', rule: 'billing/permit', destinationName: 'api.test' });
  t.match(endRecord(started, conntrack(UNDECIDED), time), { event: 'end', rule: 'billing/permit', application: 'TLS' });
  const byDefault = startRecord(
    conntrack(UNDECIDED),
    view,
    time,
    flowOf({ verdict: 'accept', reason: 'default-action' }),
  );
  t.match(byDefault, { reason: 'default-action' });
  t.same([isRead(UNDECIDED), isUndecided(UNDECIDED), isDecided(UNDECIDED)], [true, true, false]);
  const life = (CT_READ | ruleMark(numbers.get(permit) ?? 0)) >>> 0;
  t.same([isRead(life), isUndecided(life)], [true, false]);
});

t.test('not more records than the kernel would log; hits count all', async (t) => {
  const limit = new RecordLimit();
  const taken = (now: number, count: number) =>
    Array.from({ length: count }, () => limit.take(now)).filter(Boolean).length;
  t.equal(taken(5_000, 3_000), 1_000);
  t.equal(limit.over, 2_000);
  t.equal(taken(5_500, 3_000), 500);
  t.equal(taken(60_000, 3_000), 1_000);
  const totals = new HitTotals();
  totals.met({ id: deny, as: 'denies' }, true, 1);
  totals.met({ id: quiet, as: 'permits' }, true, 2);
  t.match(totals.totals.get(deny), { hits: 1, flows: 0, packets: 1, lastHit: 1 });
  t.match(totals.totals.get(quiet), { hits: 1, flows: 1, packets: 0, lastHit: 2 });
});

t.test('the kernel and the thread tell of a flow in either order', async (t) => {
  const decided = flowOf(accepted);
  const kernelFirst = new Undecided();
  t.equal(kernelFirst.begin(conntrack(UNDECIDED), false, 0), undefined);
  t.same(kernelFirst.due(1e9), [], 'one that says nothing may never start');
  t.equal(kernelFirst.permit(decided, 1e9)?.id, 7);
  t.equal(kernelFirst.size, 0);
  const threadFirst = new Undecided();
  t.equal(threadFirst.permit(decided, 0), undefined);
  t.equal(threadFirst.begin(conntrack(UNDECIDED), true, 100), decided);
  t.equal(threadFirst.begin(conntrack(UNDECIDED), true, 100), undefined, 'told once');
  t.same(threadFirst.due(500), []);
  t.equal(threadFirst.due(700).length, 1, 'its packet has left: it has started');
  threadFirst.permit(decided, 0);
  threadFirst.due(1_000);
  t.equal(threadFirst.begin(conntrack(UNDECIDED), false, 1_000), undefined, 'of another flow by now');
  threadFirst.keep(new Set());
  t.equal(threadFirst.size, 0);
});

class Table implements NamesInUse {
  readonly pairs = new Set(['api.test 198.51.100.80', 'other.test 198.51.100.80']);
  readonly used: string[] = [];
  use(name: string, address: string): boolean {
    if (this.pairs.has(`${name} ${address}`)) this.used.push(`${name} ${address}`);
    return this.pairs.has(`${name} ${address}`);
  }
  release(name: string, address: string): void {
    this.used.splice(this.used.indexOf(`${name} ${address}`), 1);
  }
  gives(name: string, address: string): boolean {
    return this.pairs.has(`${name} ${address}`);
  }
  namesOf(address: string): string[] {
    return [...this.pairs].filter((pair) => pair.endsWith(` ${address}`)).map((pair) => pair.split(' ')[0] ?? '');
  }
}

const state = mkdtempSync(join(tmpdir(), 'sluice-readings-'));
t.teardown(() => rmSync(state, { recursive: true }));

t.test('what was read stays while the flow lives, and its names with it; on disk too', async (t) => {
  const table = new Table();
  const readings = await Readings.open(state, table);
  const key = keyOf(about);
  readings.set(key, tls);
  t.same(table.used, ['api.test 198.51.100.80']);
  const ssh = keyOf({ ...about, destinationPort: 22 });
  readings.set(ssh, { application: 'SSH' });
  t.equal(table.used.length, 3, 'one that named no host uses all names of its address');
  await readings.save();
  table.pairs.clear();
  const known = readings.known(about);
  if (known === undefined) throw new Error('nothing is known');
  t.equal(known.reading, tls);
  t.ok(known.gives('api.test', WEB[4]), 'an expired name ends no flow');
  t.notOk(known.gives('other.test', WEB[4]));
  t.notOk(known.gives('api.test', '192.0.2.1'));
  t.same(known.namesOf(WEB[4]), ['api.test']);
  t.equal(readings.known({ ...about, sourcePort: 1 }), undefined);

  const later = new Table();
  const again = await Readings.open(state, later);
  t.same(again.get(key), tls);
  t.ok(again.known(about)?.gives('api.test', WEB[4]));
  later.used.length = 0;
  again.keep(new Set([key]), performance.now() + 1);
  t.equal(again.get(ssh), undefined, 'it has ended meanwhile');
  again.end(key);
  t.same([again.size, later.used], [0, []]);
  again.set(key, tls);
  again.keep(new Set(), 0);
  t.equal(again.size, 1, 'it is younger than the list of those that live');
});

t.test('many flows: one object for all of which the same was read, written in parts', async (t) => {
  const readings = await Readings.open(join(state, 'none'), new Table());
  const here = mkdtempSync(join(state, 'many-'));
  const many = await Readings.open(here, new Table());
  for (let sourcePort = 1; sourcePort <= 2_500; sourcePort++) {
    many.set(keyOf({ ...about, sourcePort }), structuredClone(tls));
    many.set(keyOf({ ...about, sourcePort, destinationPort: 80 }), {
      application: 'HTTP',
      http: { method: 'GET', path: '/' },
    });
  }
  await many.save();
  const again = await Readings.open(here, new Table());
  t.equal(again.size, 5_000);
  const of = (sourcePort: number) => again.get(keyOf({ ...about, sourcePort }));
  t.same([of(1), of(2_500)], [tls, tls]);
  t.equal(of(1), of(2_500));
  t.equal(readings.size, 0);
});

t.test('damaged, missing and full', async (t) => {
  const file = join(state, 'readings.jsonl');
  const damaged = [
    '',
    '{',
    '[1,2,3]',
    '["6 a b c",0]',
    '["6 a 1 b 2",0]',
    '{}\n["6 a 1 b 2",1]',
    'null',
    '{}\n["6 a b",0]',
  ];
  for (const text of [...damaged, '{}\n["6 a 1 b 2",0,7]\n["6 a 1 b 3"']) {
    writeFileSync(file, text);
    const readings = await Readings.open(state, new Table());
    t.equal(readings.size, damaged.includes(text) ? 0 : 1, text);
  }
  const table = new Table();
  const few = await Readings.open(join(state, 'none'), table, 2);
  for (const sourcePort of [1, 2, 3]) few.set(keyOf({ ...about, sourcePort }), tls);
  t.equal(few.size, 2);
  t.equal(few.get(keyOf({ ...about, sourcePort: 1 })), undefined, 'the oldest');
  t.equal(table.used.length, 2);
  await few.save().then(
    () => t.fail('there is no such directory'),
    () => t.pass('said'),
  );
  t.ok(readFileSync(file));
});

t.test('a denied flow leaves the connection table; a permitted one is judged by what it said', async (t) => {
  const table = new Table();
  const readings = await Readings.open(join(state, 'none'), table);
  const ended: FlowTuple[][] = [];
  const recorded: [string, boolean][] = [];
  let judged: ['end' | number | undefined][] = [];
  let asks = true;
  const inspection = { active: true, share: { asksOf: () => asks } } as unknown as GatewayInspection;
  const flows = [conntrack(UNDECIDED, 7)];
  const reading = new FlowReading({
    inspection,
    readings,
    names: { plan: () => {} },
    record(flow, again) {
      recorded.push([flow.decision?.verdict ?? 'ended', again]);
      return 7;
    },
    endTuples: async (tuples) => ended.push(tuples),
    changeFlows: async (change) => {
      judged = flows.map((flow) => [change(flow as ConntrackView)]);
      return { ended: judged.filter(([what]) => what === 'end').length, marked: 0 };
    },
    onError: t.error,
  });
  reading.decided([flowOf(accepted, { life: true })]);
  t.equal(reading.known(conntrack(0))?.reading, tls);
  reading.decided([flowOf(undefined, { life: true, reason: 'bad-request', delete: true })]);
  t.same(recorded, [
    ['accept', false],
    ['ended', true],
  ]);
  t.same(ended, [[{ ...about, id: 7 }]]);
  t.equal(readings.size, 0);
  const workloadOf = workloadsByAddress(plan);
  const byDefault: Decision = { verdict: 'accept', reason: 'default-action' };
  const review = (judgement: Judgement) => reading.review(() => judgement, workloadOf, numbers);
  t.equal(await review('ended'), 1);
  t.equal(await review(byDefault), 0);
  t.same(judged, [[undefined]], 'it goes on to be read');
  asks = false;
  await review('untouched');
  t.same(judged, [[undefined]]);
  await review(byDefault);
  const by = numbers.get(DEFAULT_ACTION) ?? 0;
  t.same(judged, [[(CT_DECIDED | ruleMark(by)) >>> 0]], 'nothing is asked of it any more');
});
