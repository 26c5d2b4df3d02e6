/**
 * Audit on a real gateway (topology: gateway-rig.ts): what a rule or a policy in audit would deny leaves with its own
 * egress IP, is counted and logged; the switch to Enforce denies exactly that, established flows included; for random
 * policies the kernel's hits are the evaluator's.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import fc from 'fast-check';
import { Registry } from 'prom-client';
import t from 'tap';
import { NFLOG_GROUP } from '../../api/names.ts';
import { type Family, families, type GatewayPlan } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { DEFAULT_ACTION, ruleMark, ruleNumberOf } from '../../gateway/marks.ts';
import { gatewayMetrics } from '../../gateway/metrics.ts';
import { auditRecord, type LoggedPacket, startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import type { Recorder } from '../../gateway/record/recorder.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { startEventSocket } from '../../kernel/event-socket.ts';
import { listCounts } from '../../kernel/nft-counts.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP, parsePacket } from '../../wire/ip.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import { addRule, basePlan, DESTINATIONS, EGRESS, PODS, PORTS, randomPlan, WEB } from './gateway-plans.ts';
import { GatewayRig, type Probe, probePacket } from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 4;
const OTHER = { 4: '198.51.100.90', 6: '2001:db8:100::90' } as const;
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('audit', state);

const NAMESPACE = `t-audit-gw-${process.pid}`;
const registry = new Registry();
gatewayMetrics(registry, rig.nft, () => ({}) as Recorder, undefined);

/** What was logged, by which rule, and which packet. */
interface Hit {
  prefix: string;
  rule: number;
  source: string;
  destination: string;
  destinationPort: number | undefined;
}
let logged: Hit[] = [];
const log = startEventSocket({
  kind: 'nflog',
  group: NFLOG_GROUP,
  namespace: NAMESPACE,
  onBatch(messages) {
    for (const message of messages) {
      const record = decodeNflog(message);
      const packet = record.ok ? parsePacket(record.value.payload) : undefined;
      if (!record.ok || !packet?.ok) throw new Error('a log record that cannot be read');
      const { source, destination, destinationPort } = packet.value;
      const { prefix, mark } = record.value;
      logged.push({ prefix, rule: ruleNumberOf(mark), source, destination, destinationPort });
    }
  },
});
t.teardown(async () => {
  await log.close();
  await rig.close();
  rmSync(state, { recursive: true });
});

let marker = 1;
const probe = (pod: 'pay' | 'rev', family: Family, destination: string, protocol: number, port: number): Probe => ({
  source: PODS[pod][family],
  destination,
  protocol,
  destinationPort: port,
  marker: marker++,
});

interface Round {
  /** Per probe: the source with which it left, an answer, or nothing. */
  outcomes: string[];
  counted: Record<string, number>;
  hits: Hit[];
}
async function send(probes: Probe[]): Promise<Round> {
  const before = await rig.counters();
  logged = [];
  for (const one of probes) rig.fromNode(probePacket(one));
  const seen = await rig.collect();
  const counted: Record<string, number> = {};
  for (const [name, packets] of Object.entries(await rig.counters())) {
    const grew = packets - (before[name] ?? 0);
    if (grew > 0) counted[name] = grew;
  }
  // The kernel gathers log records, and a busy machine may take long to read them. What is counted here is logged, once.
  const due = Object.values(counted).reduce((sum, count) => sum + count, 0);
  for (let tries = 0; tries < 600 && logged.length < due; tries++) await wait(100);
  await wait(100);
  const outcomes = probes.map((one) => {
    const mine = seen.filter((sighting) => sighting.marker === one.marker);
    const left = mine.find(({ where, kind }) => where === 'outside' && kind === 'packet');
    if (left !== undefined) return left.packet.source;
    return mine.some(({ where, kind }) => where === 'inside' && kind !== 'packet') ? 'reject' : 'drop';
  });
  return { outcomes, counted, hits: logged };
}

const flowsOf = async (): Promise<string[]> =>
  (await rig.flows())
    .map(({ original }) => `${original.source} ${original.destination}:${original.destinationPort}`)
    .filter((text) => /^(10\.244|fd00:244)/.test(text))
    .sort();

/** billing: a drop and a reject in audit before what permits. reviews: its whole policy in audit. */
function auditPlan(): GatewayPlan {
  const plan = basePlan();
  plan.services['s/web'] = { addresses: [`${WEB[4]}/32`, `${WEB[6]}/128`], ports: null };
  plan.services['s/tcp'] = {
    addresses: [`${WEB[4]}/32`, `${WEB[6]}/128`, `${OTHER[4]}/32`, `${OTHER[6]}/128`],
    // Two sets that know one packet: it is one hit.
    ports: [
      { protocol: PROTOCOL_TCP, ports: [[80, 80]] },
      { protocol: PROTOCOL_TCP, ports: null },
    ],
  };
  addRule(plan, 'g-pay', { context: 'cluster', name: 'no-web', action: 'drop', services: ['s/web'] });
  addRule(plan, 'g-pay', { context: 'namespace', name: 'no-tcp', action: 'reject', services: ['s/tcp'] });
  addRule(plan, 'g-pay', { context: 'service', name: 'all', action: 'accept', services: '*' });
  addRule(plan, 'g-rev', { context: 'cluster', name: 'rev-web', action: 'drop', services: ['s/web'] });
  addRule(plan, 'g-rev', { context: 'namespace', name: 'rev-tcp', action: 'reject', services: ['s/tcp'] });
  for (const id of ['cluster/no-web', 'namespace/no-tcp']) Object.assign(plan.rules[id] ?? {}, { mode: 'Audit' });
  Object.assign(plan.groups['g-rev'] ?? {}, { audit: true });
  return plan;
}

t.test('under audit nothing is denied, all is counted and logged; Enforce denies exactly that', async (t) => {
  for (const family of families) {
    await rig.reset();
    const plan = auditPlan();
    await rig.apply(plan);
    const [web, other] = [WEB[family], OTHER[family]];
    const probes = [
      probe('pay', family, web, PROTOCOL_TCP, 80),
      probe('pay', family, web, PROTOCOL_UDP, 53),
      probe('pay', family, other, PROTOCOL_TCP, 80),
      probe('pay', family, other, PROTOCOL_UDP, 53),
      probe('rev', family, web, PROTOCOL_TCP, 80),
      probe('rev', family, other, PROTOCOL_TCP, 80),
      probe('rev', family, other, PROTOCOL_UDP, 53),
    ];
    const audit = await send(probes);
    const own = probes.map(({ source }) => EGRESS[source === PODS.pay[family] ? 'pay' : 'rev'][family]);
    t.same(audit.outcomes, own, `v${family}: each leaves with its own egress IP`);
    t.same(audit.counted, { audit_rule: 6, audit_default_action: 1 }, `v${family}: counted, and nothing as a drop`);
    const names = new Map([...compileGateway(plan).ruleNumbers].map(([id, n]) => [n, id]));
    t.same(
      audit.hits
        .filter(({ prefix }) => prefix === 'audit')
        .map((hit) => [names.get(hit.rule), hit.source, hit.destination, hit.destinationPort]),
      [
        ['cluster/no-web', PODS.pay[family], web, 80],
        ['namespace/no-tcp', PODS.pay[family], web, 80],
        ['cluster/no-web', PODS.pay[family], web, 53],
        ['namespace/no-tcp', PODS.pay[family], other, 80],
        ['cluster/rev-web', PODS.rev[family], web, 80],
        ['namespace/rev-tcp', PODS.rev[family], other, 80],
        [DEFAULT_ACTION, PODS.rev[family], other, 53],
      ],
      `v${family}: logged, each hit once`,
    );
    const metric = await registry.getSingleMetricAsString('sluice_gateway_audit_hits_total');
    t.match(
      metric,
      /\{reason="rule"\} 6\n.*\{reason="default-action"\} 1\n.*\{reason="limit"\} 0$/s,
      `v${family}: as a metric`,
    );
    const numbers = compileGateway(plan).ruleNumbers;
    const perRule = await listCounts('sluice', HITS_SET, { namespace: NAMESPACE });
    t.same(
      ['cluster/no-web', 'namespace/no-tcp', 'service/all', 'cluster/rev-web', DEFAULT_ACTION].map(
        (id) => perRule.get(ruleMark(numbers.get(id) ?? 0))?.packets,
      ),
      [2, 2, 4, 1, 1],
      `v${family}: and for each rule`,
    );
    const view = viewOf('gw-a', plan, compileGateway(plan).ruleNumbers);
    const would = (await rig.flows())
      .filter(({ original }) => original.source === PODS.rev[family])
      .map((flow) => startRecord(flow, view, new Date(0)))
      .map(({ verdict, wouldHave, reason, egressIP }) => `${verdict} ${wouldHave} ${reason} ${egressIP}`);
    const as = EGRESS.rev[family];
    t.same(
      would.sort(),
      [`accept drop default-action ${as}`, `accept drop rule ${as}`, `accept reject rule ${as}`],
      `v${family}: the records of its flows say what would have become of them`,
    );

    const again = await send(probes);
    t.same(again.outcomes, own, `v${family}: later packets pass`);
    t.same(again.counted, {}, `v${family}: and are counted no more`);

    const flows = await flowsOf();
    t.equal(flows.length, probes.length);
    const enforced = structuredClone(plan);
    for (const rule of Object.values(enforced.rules)) delete rule.mode;
    for (const group of Object.values(enforced.groups)) delete group.audit;
    await rig.apply(enforced);
    t.same(
      await flowsOf(),
      flows.filter((text) => text === `${PODS.pay[family]} ${other}:53`),
      `v${family}: the flows that it forbids have ended, the others not`,
    );
    const after = await send(probes.map((one) => ({ ...one, marker: marker++ })));
    t.same(
      after.outcomes,
      ['drop', 'drop', 'reject', EGRESS.pay[family], 'drop', 'reject', 'drop'],
      `v${family}: exactly what was logged is denied`,
    );
    t.match(after.counted, { drop_rule: 5, drop_default_action: 1 });
    t.notOk('audit_rule' in after.counted || 'audit_default_action' in after.counted);

    await rig.apply(plan);
    t.same((await send(probes.map((one) => ({ ...one, marker: marker++ })))).outcomes, own, `v${family}: and back`);
  }
});

t.test('one namespace goes into audit and back: elements, not chains; the other is not touched', async (t) => {
  await rig.reset();
  const plan = auditPlan();
  const rules = { cluster: [], namespace: [], service: [] };
  // As the planner makes them: under another key, for another group of the same namespace is in audit already.
  plan.groups['g-pay-audit'] = { namespace: 'billing', audit: true, rules };
  plan.groups['g-pay-enforced'] = { namespace: 'billing', rules };
  const moved = (group: string): GatewayPlan => {
    const next = structuredClone(plan);
    Object.assign(next.workloads['uid-pay'] ?? {}, { group });
    return next;
  };
  await rig.apply(moved('g-pay-enforced'));
  const chains = async (): Promise<string[]> => [...(await rig.nft.list('inet', 'sluice')).chains.keys()].sort();
  const before = await chains();
  for (const [group, verdict] of [
    ['g-pay-audit', 'accept'],
    ['g-pay-enforced', 'drop'],
  ] as const) {
    await rig.apply(moved(group));
    t.same(await chains(), before, group);
    for (const family of families) {
      const { outcomes } = await send([
        probe('pay', family, WEB[family], PROTOCOL_UDP, 53),
        probe('rev', family, WEB[family], PROTOCOL_UDP, 53),
      ]);
      t.same(
        outcomes,
        [verdict === 'accept' ? EGRESS.pay[family] : 'drop', EGRESS.rev[family]],
        `${group}, v${family}`,
      );
    }
  }
});

t.test('random policies: verdict and hits are the evaluator’s', async (t) => {
  const modes = fc.record({
    plan: randomPlan,
    rules: fc.infiniteStream(fc.boolean()),
    groups: fc.tuple(fc.boolean(), fc.boolean()),
  });
  let hits = 0;
  await fc.assert(
    fc.asyncProperty(modes, async ({ plan, rules, groups }) => {
      for (const rule of Object.values(plan.rules)) if (rules.next().value) rule.mode = 'Audit';
      for (const [at, key] of ['g-pay', 'g-rev'].entries()) {
        if (groups[at]) Object.assign(plan.groups[key] ?? {}, { audit: true });
      }
      await rig.reset();
      await rig.apply(plan);
      const names = new Map([...compileGateway(plan).ruleNumbers].map(([id, n]) => [n, id]));
      const evaluator = compilePolicy(plan);
      const probes = families.flatMap((family) =>
        (['pay', 'rev'] as const).flatMap((pod) =>
          DESTINATIONS[family].map((destination) => {
            const protocol = marker % 2 ? PROTOCOL_TCP : PROTOCOL_UDP;
            return probe(pod, family, destination, protocol, PORTS[marker % PORTS.length] ?? 80);
          }),
        ),
      );
      const { outcomes, hits: found } = await send(probes);
      const expected = probes.flatMap((one) => {
        const { audited = [], wouldHave, rule } = evaluator.decide(one);
        const ids = audited.map((hit) => hit.rule);
        if (wouldHave !== undefined) ids.push(rule ?? DEFAULT_ACTION);
        return ids.map((id) => `${one.source} ${one.destination} ${one.destinationPort} ${id}`);
      });
      const got = found
        .filter(({ prefix }) => prefix === 'audit')
        .map((hit) => `${hit.source} ${hit.destination} ${hit.destinationPort} ${names.get(hit.rule)}`);
      hits += got.length;
      const problem = probes.find((one, at) => {
        const { verdict } = evaluator.decide(one);
        return verdict !== (/^(drop|reject)$/.test(outcomes[at] ?? '') ? outcomes[at] : 'accept');
      });
      if (problem !== undefined) throw new Error(`${JSON.stringify(problem)}: not what the evaluator says`);
      if (JSON.stringify(got.sort()) !== JSON.stringify(expected.sort())) {
        throw new Error(`logged\n${got.join('\n')}\nexpected\n${expected.join('\n')}`);
      }
    }),
    { numRuns: RUNS, endOnFailure: true },
  );
  t.ok(hits > 50, `${RUNS} policies, ${hits} hits`);
});

t.test(
  'random policies, wholly in audit: Enforce changes exactly the flows that were counted, and as was said',
  async (t) => {
    let denied = 0;
    let kept = 0;
    await fc.assert(
      fc.asyncProperty(randomPlan, async (enforced) => {
        const audited = structuredClone(enforced);
        for (const group of Object.values(audited.groups)) group.audit = true;
        await rig.reset();
        await rig.apply(audited);
        const probes = families.flatMap((family) =>
          (['pay', 'rev'] as const).flatMap((pod) =>
            DESTINATIONS[family].map((destination) =>
              probe(
                pod,
                family,
                destination,
                marker % 2 ? PROTOCOL_TCP : PROTOCOL_UDP,
                PORTS[marker % PORTS.length] ?? 80,
              ),
            ),
          ),
        );
        const before = await send(probes);
        const view = viewOf('gw-a', audited, compileGateway(audited).ruleNumbers);
        const flowOf = (at: { source: string; destination: string; destinationPort?: number | undefined }): string =>
          `${at.source} ${at.destination}:${at.destinationPort}`;
        const said = new Map(
          before.hits.map((hit) => {
            const packet = { ...hit, mark: ruleMark(hit.rule), protocol: PROTOCOL_UDP };
            const { wouldHave } = auditRecord(packet as LoggedPacket, view, new Date(0));
            return [flowOf(hit), wouldHave];
          }),
        );
        await rig.apply(enforced);
        const left = new Set(await flowsOf());
        const after = await send(probes.map((one) => ({ ...one, marker: marker++ })));
        for (const [at, one] of probes.entries()) {
          const flow = flowOf(one);
          const [was, is] = [before.outcomes[at], after.outcomes[at]];
          const own = EGRESS[one.source === PODS.pay[4] || one.source === PODS.pay[6] ? 'pay' : 'rev'];
          const expected = said.get(flow) ?? was;
          if (was !== own[4] && was !== own[6]) throw new Error(`${flow}: ${was} in audit`);
          if (is !== expected) throw new Error(`${flow}: ${is}, though ${said.get(flow) ?? 'nothing'} was said`);
          if (left.has(flow) !== (is === was))
            throw new Error(`${flow}: its flow ${left.has(flow) ? 'lives' : 'ended'}`);
          if (is === was) kept++;
          else denied++;
        }
      }),
      { numRuns: Math.ceil(RUNS / 2), endOnFailure: true },
    );
    t.ok(denied > 20 && kept > 0, `${denied} flows are denied, ${kept} go on`);
  },
);
