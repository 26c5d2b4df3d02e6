/**
 * Limits of rules on a real kernel (topology: gateway-rig.ts): how much passes, over both families together, through
 * changes of the plan and after connections have ended; for random policies the kernel counts as the evaluator says
 * which limits must hold.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import fc from 'fast-check';
import { Registry } from 'prom-client';
import t from 'tap';
import { NFLOG_GROUP } from '../../api/names.ts';
import { type Family, families, type GatewayPlan, type RuleLimits } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { refusedMark, ruleMark } from '../../gateway/marks.ts';
import { gatewayMetrics } from '../../gateway/metrics.ts';
import { auditRecord, denyRecord, type LoggedPacket, viewOf } from '../../gateway/record/flow-record.ts';
import type { Recorder } from '../../gateway/record/recorder.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { endFlows } from '../../kernel/conntrack.ts';
import { startEventSocket } from '../../kernel/event-socket.ts';
import { listCounts } from '../../kernel/nft-counts.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP, parsePacket } from '../../wire/ip.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import { addRule, basePlan, DESTINATIONS, PODS, PORTS, randomPlan, WEB } from './gateway-plans.ts';
import { GatewayRig, type Probe, probePacket } from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 2;
/** The kernel looks for dead connections once a tick at most: 10 ms where it ticks slowest. */
const TICK_MS = 21;
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('limits', state);
const namespace = `t-limits-gw-${process.pid}`;
const registry = new Registry();
gatewayMetrics(registry, rig.nft, () => ({}) as Recorder, undefined);
let logged: LoggedPacket[] = [];
const log = startEventSocket({
  kind: 'nflog',
  group: NFLOG_GROUP,
  namespace,
  onBatch(messages) {
    for (const message of messages) {
      const record = decodeNflog(message);
      const packet = record.ok ? parsePacket(record.value.payload) : undefined;
      if (!record.ok || !packet?.ok) throw new Error('a log record that cannot be read');
      const { prefix, mark } = record.value;
      // Not what the machine itself says, as of its neighbours.
      if (/^(10\.244|fd00:244)/.test(packet.value.source)) logged.push({ prefix, mark, ...packet.value });
    }
  },
});
t.teardown(async () => {
  await log.close();
  await rig.close();
  rmSync(state, { recursive: true });
});

let marker = 1;
type Pod = 'pay' | 'rev';
const probe = (pod: Pod, family: Family, port = 80, protocol = PROTOCOL_UDP): Probe => ({
  source: PODS[pod][family],
  destination: WEB[family],
  protocol,
  destinationPort: port,
  marker: marker++,
});
/** So many new flows, of both families in turn. */
const probes = (pod: Pod, count: number, port = 80): Probe[] =>
  Array.from({ length: count }, () => probe(pod, families[marker % 2] ?? 4, port));

/** How many left. */
const passed = async (list: Probe[]): Promise<number> => (await round(list)).count;

interface Round {
  count: number;
  /** Milliseconds: they were sent between. */
  from: number;
  to: number;
}
async function round(list: Probe[]): Promise<Round> {
  const from = performance.now();
  for (const one of list) rig.fromNode(probePacket(one));
  const to = performance.now();
  const markers = new Set(list.map((one) => one.marker));
  const seen = await rig.collect();
  const left = seen.filter((s) => s.where === 'outside' && s.kind === 'packet' && markers.has(s.marker));
  return { count: left.length, from, to };
}
/** What a rate lets through beside a second's worth, on a machine that takes its time. */
const refilled = (rate: number, { from }: Round, { to }: Round): number => Math.floor(((to - from) * rate) / 1000);

/** The kernel gathers log records, and a busy machine may take long to read them. */
async function loggedAre(count: number): Promise<void> {
  for (let tries = 0; tries < 600 && logged.length < count; tries++) await wait(100);
  await wait(100);
}

type Limited = [
  rule: { context: 'cluster' | 'namespace' | 'service'; name: string; group?: string },
  limits: RuleLimits,
];
/** Rules that accept everything, of both groups unless it says which. */
function planOf(...rules: Limited[]): GatewayPlan {
  const plan = basePlan();
  for (const [{ context, name, group }, limits] of rules) {
    for (const key of group === undefined ? ['g-pay', 'g-rev'] : [group]) {
      addRule(plan, key, { context, name, action: 'accept', services: '*' });
      Object.assign(plan.rules[`${context}/${name}`] ?? {}, { limits });
    }
  }
  return plan;
}
const service = { context: 'service', name: 'all' } as const;
const cluster = { context: 'cluster', name: 'top' } as const;

async function start(plan: GatewayPlan): Promise<void> {
  await rig.reset();
  await rig.apply(plan);
  logged = [];
}

t.test('maxConnections: of all sources and both families together; what ends makes room', async (t) => {
  const plan = planOf([service, { maxConnections: 5 }]);
  await start(plan);
  // Of some sets the kernel takes what counts nothing, once a second.
  await wait(1500);
  t.equal(await passed(probes('pay', 4)), 4);
  t.equal(await passed(probes('rev', 4)), 1, 'another pod: the rest of it');
  t.equal((await rig.counters()).drop_limit, 3);
  t.match(await registry.getSingleMetricAsString('sluice_gateway_drops_total'), /\{reason="limit"\} 3$/m);
  const flows = await rig.flows();
  t.same(new Set(flows.map(({ family }) => family)), new Set(families), 'both families are among them');
  const [first] = flows.filter(({ original }) => original.source === PODS.pay[4]);
  t.ok(first !== undefined);
  t.equal(await endFlows(({ id }) => id === first?.id, { namespace }), 1);
  await wait(TICK_MS);
  t.equal(await passed(probes('rev', 3)), 1, 'one has ended: one more');
  await wait(TICK_MS);
  t.equal(await passed(probes('pay', 3)), 0, 'what was refused took no place, and gave none');

  await loggedAre(8);
  const numbers = compileGateway(plan).ruleNumbers;
  const view = viewOf('gw-a', plan, numbers);
  t.match(
    logged.map((packet) => denyRecord(packet, view, new Date(0))),
    Array.from({ length: 8 }, () => ({
      event: 'deny',
      verdict: 'drop',
      reason: 'limit',
      context: 'service',
      rule: 'all',
    })),
    'each is on record, with the rule',
  );
  const hits = await listCounts('sluice', HITS_SET, { namespace });
  const number = numbers.get('service/all') ?? 0;
  const counted = [ruleMark(number), refusedMark(number)].map((mark) => hits.get(mark)?.packets);
  t.same(counted, [6, 8], 'and a hit of it, as what passed is, but not counted as that');
});

t.test('later packets of a flow ask no more', async (t) => {
  await start(planOf([service, { maxConnections: 1, connectionsPerSecond: 1 }]));
  const one = probe('pay', 4);
  for (let i = 0; i < 3; i++) t.equal(await passed([one]), 1, `packet ${i}`);
  t.equal(await passed([probe('pay', 6)]), 0);
});

t.test('connectionsPerSecond: a second’s worth at once, then as time goes by', async (t) => {
  await start(planOf([service, { connectionsPerSecond: 4 }]));
  const first = await round([...probes('pay', 6), ...probes('rev', 6)]);
  t.ok(first.count >= 4 && first.count <= 4 + refilled(4, first, first), `a second’s worth: ${first.count}`);
  t.equal((await rig.counters()).drop_limit, 12 - first.count);
  await wait(550);
  const half = await round(probes('rev', 6));
  t.ok(half.count >= 2, `half a second later: ${half.count}`);
  t.ok(first.count + half.count <= 4 + refilled(4, first, half), 'no more than has come since');
  await wait(2000);
  const last = await round(probes('pay', 9));
  t.ok(
    last.count >= 4 && last.count <= 4 + refilled(4, last, last),
    `a quiet time saves up a second’s worth, not more: ${last.count}`,
  );
});

t.test('every rule that matched must hold, in every context', async (t) => {
  const rows: [name: string, limits: Limited[], pay: number, rev: number][] = [
    [
      'the service’s is the narrower',
      [
        [cluster, { maxConnections: 4 }],
        [service, { maxConnections: 2 }],
      ],
      2,
      0,
    ],
    [
      'the cluster’s is',
      [
        [cluster, { maxConnections: 2 }],
        [service, { maxConnections: 4 }],
      ],
      2,
      0,
    ],
    [
      'the cluster’s is for both together, the services’ for each',
      [
        [cluster, { maxConnections: 5 }],
        [{ ...service, name: 'pay', group: 'g-pay' }, { maxConnections: 3 }],
        [{ ...service, name: 'rev', group: 'g-rev' }, { maxConnections: 3 }],
      ],
      3,
      2,
    ],
    [
      'a rate and a count',
      [
        [cluster, { connectionsPerSecond: 3 }],
        [service, { maxConnections: 5 }],
      ],
      3,
      0,
    ],
    [
      'both of one rule',
      [
        [cluster, { connectionsPerSecond: 5, maxConnections: 2 }],
        [service, {}],
      ],
      2,
      0,
    ],
    [
      'the other way round',
      [
        [cluster, { connectionsPerSecond: 2, maxConnections: 5 }],
        [service, {}],
      ],
      2,
      0,
    ],
  ];
  for (const [name, limits, pay, rev] of rows) {
    await start(planOf(...limits));
    const mine = await round(probes('pay', 6));
    await wait(TICK_MS);
    const others = await round(probes('rev', 6));
    const rate = limits.find(([, one]) => one.connectionsPerSecond !== undefined)?.[1].connectionsPerSecond;
    const more = rate === undefined ? 0 : refilled(rate, mine, others);
    if (more === 0) t.same([mine.count, others.count], [pay, rev], name);
    else t.ok(mine.count >= pay && mine.count + others.count <= pay + rev + more, `${name}, in slow motion`);
  }
});

t.test('a change of the plan: limits keep what they know; one that changes is in force at once', async (t) => {
  const plan = planOf(
    [{ ...service, name: 'pay', group: 'g-pay' }, { maxConnections: 3 }],
    [
      { ...service, name: 'rev', group: 'g-rev' },
      { maxConnections: 3, connectionsPerSecond: 1000 },
    ],
  );
  await start(plan);
  t.same([await passed(probes('pay', 5)), await passed(probes('rev', 5))], [3, 3]);

  const unrelated = structuredClone(plan);
  addRule(unrelated, 'g-pay', { context: 'cluster', name: 'more', action: 'accept', services: '*' });
  addRule(unrelated, 'g-pay', { context: 'service', name: 'other', action: 'accept', services: '*' });
  unrelated.services['x/web'] = { addresses: [`${WEB[4]}/32`, `${WEB[6]}/128`], ports: null };
  // The chains that ask are others now.
  Object.assign(unrelated.rules['service/pay'] ?? {}, { services: ['x/web'] });
  await rig.apply(unrelated);
  await wait(TICK_MS);
  t.same([await passed(probes('pay', 2)), await passed(probes('rev', 2))], [0, 0], 'full, as before');
  await rig.restarted(state).apply(unrelated);
  await wait(TICK_MS);
  t.same([await passed(probes('pay', 2)), await passed(probes('rev', 2))], [0, 0], 'after a restart too');

  const raised = structuredClone(unrelated);
  Object.assign(raised.rules['service/pay'] ?? {}, { limits: { maxConnections: 2 } });
  await rig.apply(raised);
  t.equal(await passed(probes('pay', 5)), 2, 'one that changes begins to count anew');
  t.equal(await passed(probes('rev', 2)), 0, 'another rule’s does not');

  const none = structuredClone(raised);
  for (const rule of Object.values(none.rules)) delete rule.limits;
  await rig.apply(none);
  t.same([await passed(probes('pay', 5)), await passed(probes('rev', 5))], [5, 5], 'without limits all pass');
  await rig.apply(raised);
  t.equal((await rig.flows()).filter(({ family }) => family).length, 18, 'a new limit ends no flow');
});

t.test('a gateway lets through the share of the shards that it holds', async (t) => {
  const limits = { maxConnections: 7, shards: ['edge/s0', 'edge/s1', 'other/s0'] };
  await start(planOf([service, limits]));
  t.equal(await passed(probes('pay', 9)), 3, 'gw-a holds s0 of edge');
  const moved = planOf([service, limits]);
  moved.shards.s1?.order.reverse();
  await start(moved);
  t.equal(await passed(probes('pay', 9)), 5, 'and now s1');
});

t.test('what is redirected is counted once, by what was asked for', async (t) => {
  const plan = planOf([cluster, { connectionsPerSecond: 3 }]);
  for (const family of families) {
    const [name, address] = [`v${family}`, DESTINATIONS[family][3]];
    for (const group of ['g-pay', 'g-rev']) {
      addRule(plan, group, { context: 'service', name, action: 'accept', services: '*' });
    }
    Object.assign(plan.rules[`service/${name}`] ?? {}, { redirect: { address }, limits: { maxConnections: 2 } });
  }
  await start(plan);
  const first = await round(probes('pay', 6));
  t.ok(first.count >= 3, 'the cluster’s rule speaks of both destinations');
  t.ok(first.count <= 3 + refilled(3, first, first), `and counts each once: ${first.count}`);
  await wait(1100);
  const rest = await passed([probe('rev', 4), probe('rev', 4), probe('rev', 6), probe('rev', 6)]);
  t.equal(first.count + rest, 4, 'four in all, two a family');
});

t.test('in audit what is over a limit passes, and is counted and logged', async (t) => {
  const plan = planOf([service, { maxConnections: 2 }]);
  Object.assign(plan.groups['g-pay'] ?? {}, { audit: true });
  await start(plan);
  t.equal(await passed(probes('pay', 5)), 5);
  t.match(await rig.counters(), { audit_limit: 3, drop_limit: 0, audit_rule: 0 });
  t.equal(await passed(probes('rev', 1)), 0, 'the other namespace is not in audit, and the rule is full');
  await loggedAre(4);
  const view = viewOf('gw-a', plan, compileGateway(plan).ruleNumbers);
  const audits = logged.filter(({ prefix }) => prefix !== 'limit');
  t.match(
    audits.map((packet) => auditRecord(packet, view, new Date(0))),
    Array.from({ length: 3 }, () => ({ event: 'audit', wouldHave: 'drop', reason: 'limit', rule: 'all' })),
  );

  const rule = planOf([{ ...service, name: 'tried' }, { maxConnections: 2 }], [service, {}]);
  Object.assign(rule.rules['service/tried'] ?? {}, { mode: 'Audit' });
  delete rule.rules['service/all']?.limits;
  await start(rule);
  t.equal(await passed(probes('pay', 5)), 5);
  t.match(await rig.counters(), { audit_limit: 3, audit_rule: 2, drop_limit: 0 }, 'a rule in audit: accepted, or not');
});

t.test('random policies: a flow passes while the limits that the evaluator names hold', async (t) => {
  const draws = fc.record({ plan: randomPlan, limits: fc.infiniteStream(fc.constantFrom(undefined, 1, 2, 4, 6, 8)) });
  let over = 0;
  let below = 0;
  await fc.assert(
    fc.asyncProperty(draws, async ({ plan, limits }) => {
      for (const rule of Object.values(plan.rules)) {
        const maxConnections: number | undefined = limits.next().value;
        if (!rule.action.startsWith('accept') || maxConnections === undefined) continue;
        rule.limits = { maxConnections, connectionsPerSecond: 1_000_000 };
      }
      await start(plan);
      const evaluator = compilePolicy(plan);
      const living = new Map<string, number>();
      const room = (id: string): boolean => (living.get(id) ?? 0) < (plan.rules[id]?.limits?.maxConnections ?? 0);
      for (const family of families) {
        for (const pod of ['pay', 'rev', 'pay'] as const) {
          for (const destination of DESTINATIONS[family]) {
            const protocol = marker % 2 ? PROTOCOL_TCP : PROTOCOL_UDP;
            const one = { ...probe(pod, family, PORTS[marker % PORTS.length], protocol), destination };
            const { verdict, limits: ids = [] } = evaluator.decide(one);
            if (ids.length === 0) continue;
            const allowed = verdict === 'accept' && ids.every(room);
            if (verdict === 'accept') allowed ? below++ : over++;
            if (allowed) for (const id of ids) living.set(id, (living.get(id) ?? 0) + 1);
            await wait(TICK_MS);
            rig.fromNode(probePacket(one));
            const seen = await rig.collect(5);
            const left = seen.some((s) => s.marker === one.marker && s.where === 'outside' && s.kind === 'packet');
            if (left !== allowed) throw new Error(`${JSON.stringify(one)}: ${left ? 'passed' : 'stopped'}`);
          }
        }
      }
    }),
    { numRuns: RUNS, endOnFailure: true },
  );
  t.ok(over > 3 && below > 3, `${RUNS} policies, ${below} below and ${over} over a limit`);
});
