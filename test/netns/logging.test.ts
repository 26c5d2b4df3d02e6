/**
 * `logging` of rules on a real gateway (topology: gateway-rig.ts), by the records of the product's recorder: every action
 * in every context with every value, IPv4 and IPv6; with audit, limits and redirects; and changes while flows live.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type Action, type Context, contexts, type Family, families, type GatewayPlan } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleMark } from '../../gateway/marks.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { endFlows } from '../../kernel/conntrack.ts';
import { listCounts } from '../../kernel/nft-counts.ts';
import { PROTOCOL_UDP } from '../../wire/ip.ts';
import { addRule, basePlan, EGRESS, PODS, WEB } from './gateway-plans.ts';
import { GatewayRig, type Probe, probePacket } from './gateway-rig.ts';
import { startRecorder } from './recorder-rig.ts';

t.setTimeout(570_000);
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('log', state);
const options = { namespace: `t-log-gw-${process.pid}` };
const recorder = await startRecorder(options.namespace);
t.teardown(async () => {
  await recorder.close();
  await rig.close();
  rmSync(state, { recursive: true });
});

type Logging = 'All' | 'Decisions' | 'None';
/** A port for each value, so that rules of all three stand beside each other. */
const portOf: Record<Logging, number> = { All: 51, Decisions: 52, None: 53 };
const loggings = Object.keys(portOf) as Logging[];

function planWith(make: (plan: GatewayPlan, logging: Logging) => void): GatewayPlan {
  const plan = basePlan();
  for (const logging of loggings) {
    const port = portOf[logging];
    plan.services[`x/${logging}`] = {
      addresses: [`${WEB[4]}/32`, `${WEB[6]}/128`],
      ports: [{ protocol: PROTOCOL_UDP, ports: [[port, port]] }],
    };
    make(plan, logging);
  }
  return plan;
}

/** `more`: fields of the rule's entry. */
function add(plan: GatewayPlan, context: Context, name: string, action: Action, logging: Logging, more = {}): void {
  addRule(plan, 'g-pay', { context, name: `${name}-${logging}`, action, services: [`x/${logging}`] });
  Object.assign(plan.rules[`${context}/${name}-${logging}`] ?? {}, logging !== 'Decisions' && { logging }, more);
}

async function inForce(plan: GatewayPlan): Promise<void> {
  await rig.apply(plan);
  await recorder.ask(JSON.stringify(plan));
}

let marker = 1;
/** Sends UDP packets of new flows to these ports; where each left from. */
async function send(family: Family, ports: number[]): Promise<string[]> {
  const sent = ports.map(
    (destinationPort): Probe => ({
      source: PODS.pay[family],
      destination: WEB[family],
      protocol: PROTOCOL_UDP,
      destinationPort,
      marker: marker++,
    }),
  );
  for (const one of sent) rig.fromNode(probePacket(one));
  const markers = new Set(sent.map((one) => one.marker));
  const seen = await rig.collect();
  return seen.filter((s) => s.where === 'outside' && markers.has(s.marker)).map(({ packet }) => packet.source);
}

/** Nobody's packet: its denial is logged after all that was logged before. */
const sentinel = { source: '10.244.9.9', destination: WEB[4], protocol: PROTOCOL_UDP, destinationPort: 9, marker: 0 };
const isSentinel = ({ reason }: FlowRecord): boolean => reason === 'unknown-source';

/** All so far: the kernel gathers logged packets for up to 100 ms, and a busy machine may take longer to read them. */
async function records(): Promise<FlowRecord[]> {
  rig.fromNode(probePacket(sentinel));
  const all: FlowRecord[] = [];
  let quiet = false;
  for (const until = Date.now() + 60_000; !(quiet && all.some(isSentinel)) && Date.now() < until; ) {
    await new Promise((resolve) => setTimeout(resolve, 30));
    const more = (await recorder.ask('wait')).flatMap(({ record }) => record ?? []);
    quiet = more.length === 0;
    all.push(...more);
  }
  return all.filter((record) => !isSentinel(record));
}
const endAll = (): Promise<number> => endFlows(({ original }) => /^(10|fd)/.test(original.source), options);
/** Nothing that was before is heard of any more. */
async function anew(): Promise<void> {
  await endAll();
  await records();
  await rig.reset();
}
/** Of one value's port: `EVENT VERDICT RULE or REASON`, sorted. */
const briefOf = (found: FlowRecord[], logging: Logging): string[] =>
  found
    .filter(({ destinationPort }) => destinationPort === portOf[logging])
    .map(brief)
    .sort();
const brief = ({ event, verdict, context, rule, reason }: FlowRecord): string =>
  [event, verdict, rule === undefined ? reason : `${context}/${rule.replace(/-[A-Z].*/, '')}`].join(' ');

const actions = ['accept', 'accept-decisively', 'drop', 'reject'] as const;

t.test('every action in every context, with every value', async (t) => {
  for (const [at, context] of contexts.entries()) {
    const plan = basePlan();
    // A port for each rule.
    const rows = actions.flatMap((action) => loggings.map((logging) => ({ action, logging })));
    for (const [port, { action, logging }] of rows.entries()) {
      const name = `${action}-${logging}`;
      plan.services[`x/${name}`] = { addresses: Object.values(WEB), ports: [{ protocol: 17, ports: [[port, port]] }] };
      addRule(plan, 'g-pay', { context, name, action, services: [`x/${name}`] });
      Object.assign(plan.rules[`${context}/${name}`] ?? {}, logging !== 'Decisions' && { logging });
    }
    const family = families[at % 2] ?? 4;
    await inForce(plan);
    await send(family, [...rows.keys()]);
    await endAll();
    const found = await records();
    const counts = await listCounts('sluice', HITS_SET, options);
    const numbers = compileGateway(plan).ruleNumbers;
    for (const [port, { action, logging }] of rows.entries()) {
      const own = `${context}/${action}`;
      const handsOn = action === 'accept' && context !== 'service';
      const permits = !handsOn && action.startsWith('accept');
      const expected = handsOn
        ? ['deny drop default-action', ...(logging === 'All' ? [`match match ${own}`] : [])]
        : logging === 'None'
          ? []
          : permits
            ? [`end accept ${own}`, `start accept ${own}`]
            : [`deny ${action} ${own}`];
      const mine = found.filter(({ destinationPort }) => destinationPort === port);
      t.same(mine.map(brief).sort(), expected, `v${family} ${own} ${logging}`);
      const number = numbers.get(`${own}-${logging}`) ?? 0;
      t.equal(counts.get(ruleMark(number))?.packets, 1, `v${family} ${own} ${logging}: counted`);
    }
  }
});

t.test('what is handed on has a record of each rule that wants one, once a flow', async (t) => {
  for (const family of families) {
    const plan = basePlan();
    for (const [context, logging] of [
      ['cluster', 'All'],
      ['namespace', 'All'],
      ['service', 'None'],
    ] as const) {
      addRule(plan, 'g-pay', { context, name: 'r', action: 'accept', services: '*' });
      Object.assign(plan.rules[`${context}/r`] ?? {}, { logging });
    }
    await inForce(plan);
    t.same(await send(family, [80]), [EGRESS.pay[family]]);
    // The same flow again.
    marker--;
    t.same(await send(family, [80]), [EGRESS.pay[family]]);
    const found = await records();
    t.same(
      found.map(brief),
      ['match match cluster/r', 'match match namespace/r'],
      `v${family}: the application's None hides the flow from no one else's records`,
    );
    t.match(found[0], {
      reason: 'rule',
      namespace: 'billing',
      pod: 'pay',
      source: PODS.pay[family],
      destination: WEB[family],
      destinationPort: 80,
      protocol: 'udp',
      gateway: 'gw-a',
    });
    await endAll();
    t.same(await records(), [], `v${family}: nor has it an end`);
  }
});

t.test('with limits, redirects and audit', async (t) => {
  const limits = { connectionsPerSecond: 1_000_000, maxConnections: 1 };
  const twice = (one: string): string[] => [one, one];
  const rows: [
    name: string,
    make: (plan: GatewayPlan, logging: Logging) => void,
    expected: Record<Logging, string[]>,
    counted: Record<string, number>,
  ][] = [
    [
      'over its limit',
      (plan, logging) => add(plan, 'service', 'few', 'accept', logging, { limits }),
      {
        All: ['deny drop service/few', 'start accept service/few'],
        Decisions: ['deny drop service/few', 'start accept service/few'],
        None: [],
      },
      { drop_limit: 3 },
    ],
    [
      'handed on, and over its limit',
      (plan, logging) => {
        add(plan, 'cluster', 'few', 'accept', logging, { limits });
        add(plan, 'service', 'app', 'accept', logging, { logging: undefined });
      },
      {
        All: ['deny drop cluster/few', 'match match cluster/few', 'start accept service/app'],
        Decisions: ['deny drop cluster/few', 'start accept service/app'],
        None: ['start accept service/app'],
      },
      { drop_limit: 3 },
    ],
    [
      'redirected to where it may not go',
      (plan, logging) => {
        const redirect = { address: '198.51.100.90', forbidden: 'it lies in a test' };
        add(plan, 'service', 'away', 'accept', logging, { redirect });
      },
      { All: twice('deny drop service/away'), Decisions: twice('deny drop service/away'), None: [] },
      { drop_redirect: 6 },
    ],
    [
      'a rule in audit is there to be read',
      (plan, logging) => add(plan, 'cluster', 'tried', 'drop', logging, { mode: 'Audit' }),
      {
        All: [...twice('audit audit cluster/tried'), ...twice('deny drop default-action')],
        Decisions: [...twice('audit audit cluster/tried'), ...twice('deny drop default-action')],
        None: [...twice('audit audit cluster/tried'), ...twice('deny drop default-action')],
      },
      { audit_rule: 6, drop_default_action: 6 },
    ],
    [
      'a policy in audit: its hits too, but the flow that passes is the rule’s',
      (plan, logging) => {
        add(plan, 'cluster', 'tried', 'drop', logging);
        Object.assign(plan.groups['g-pay'] ?? {}, { audit: true });
      },
      {
        All: [...twice('audit audit cluster/tried'), ...twice('start accept cluster/tried')],
        Decisions: [...twice('audit audit cluster/tried'), ...twice('start accept cluster/tried')],
        None: twice('audit audit cluster/tried'),
      },
      { audit_rule: 6 },
    ],
  ];
  for (const [name, make, expected, counted] of rows) {
    await anew();
    await inForce(planWith(make));
    await send(
      4,
      Object.values(portOf).flatMap((port) => [port, port]),
    );
    const found = await records();
    for (const logging of loggings) t.same(briefOf(found, logging), expected[logging], `${name}: ${logging}`);
    t.match(await rig.counters(), counted, `${name}: counted alike`);
  }
});

t.test('a rule without the field has the same chains beside one with it', async (t) => {
  const chainsOf = (...values: Logging[]): Record<string, unknown> =>
    compileGateway(
      planWith((plan, logging) => {
        if (!values.includes(logging)) return;
        add(plan, 'cluster', 'on', 'accept', logging);
        add(plan, 'namespace', 'no', 'reject', logging);
      }),
    ).settled.chains;
  const both = chainsOf('Decisions', 'All', 'None');
  const verdicts = (chains: Record<string, unknown>) =>
    new Set(
      JSON.stringify(Object.entries(chains).filter(([name]) => /^(cluster|namespace)_/.test(name))).match(/rule_\w+/g),
    );
  const alone = verdicts(chainsOf('Decisions'));
  t.same(alone, new Set(['rule_pass', 'rule_reject']), 'one that counts what it hands on, one for what it rejects');
  t.ok([...alone].every((name) => verdicts(both).has(name)));
  t.equal(verdicts(both).size, 6, 'and All and None have theirs');
});

t.test('a change of it ends no flow; what began with a record ends with one', async (t) => {
  await anew();
  const plan = (logging: Logging): GatewayPlan => {
    const made = basePlan();
    addRule(made, 'g-pay', { context: 'service', name: 'app', action: 'accept', services: '*' });
    Object.assign(made.rules['service/app'] ?? {}, logging !== 'Decisions' && { logging });
    return made;
  };
  await inForce(plan('Decisions'));
  await send(4, [80]);
  t.same((await records()).map(brief), ['start accept service/app']);
  await inForce(plan('None'));
  await send(6, [80]);
  t.same((await records()).map(brief), [], 'not the next');
  t.equal((await rig.flows()).filter(({ original }) => /^(10|fd)/.test(original.source)).length, 2);
  await inForce(plan('All'));
  await endAll();
  t.same(
    (await records()).map((record) => `${brief(record)} ${record.source}`),
    [`end accept service/app ${PODS.pay[4]}`],
  );
});
