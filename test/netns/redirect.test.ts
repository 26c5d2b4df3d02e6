/**
 * Redirects on a real gateway (topology: gateway-rig.ts): where the flow goes, and that the answer seems to come from
 * where the pod asked; every way to get around the second walk; changes; and for random policies with redirects, the
 * kernel sends each packet where the evaluator says.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { type Family, families, type GatewayPlan, type Redirect, type RuleEntry } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleMark } from '../../gateway/marks.ts';
import { startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { listCounts } from '../../kernel/nft-counts.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { buildIcmp, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_SYN } from '../../wire/ip.ts';
import { addRule, basePlan, DESTINATIONS, directPlan, EGRESS, PODS, PORTS, randomPlan, WEB } from './gateway-plans.ts';
import { GatewayRig, icmpOf, NODES, type Probe, probePacket, ROUTER, type Sighting } from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 2;
const states = ['VXLAN', 'Direct'].map(() => mkdtempSync(join(tmpdir(), 'sluice-test-')));
const rig = await GatewayRig.create('rd', states[0] as string);
const directRig = await GatewayRig.create('re', states[1] as string, 'Direct');
const rigs = [rig, directRig];
t.teardown(async () => {
  for (const each of rigs) await each.close();
  for (const directory of states) rmSync(directory, { recursive: true });
});
const NAMESPACE = `t-rd-gw-${process.pid}`;
const planFor = (on: GatewayRig, plan: GatewayPlan): GatewayPlan => (on.mode === 'Direct' ? directPlan(plan) : plan);

/** Where redirects lead, and a third place. */
const PROXY = { 4: '198.51.100.90', 6: '2001:db8:100::90' } as const;
const THIRD = { 4: '192.0.2.9', 6: '2001:db8:101::9' } as const;
const protocols = [
  ['TCP', PROTOCOL_TCP],
  ['UDP', PROTOCOL_UDP],
] as const;

let nextMarker = 1;
const probe = (pod: 'pay' | 'rev', family: Family, protocol: number, port: number, destination?: string): Probe => ({
  source: PODS[pod][family],
  destination: destination ?? WEB[family],
  protocol,
  destinationPort: port,
  marker: nextMarker++,
});

type AddedRule = Pick<RuleEntry, 'context' | 'action' | 'services'> & { name: string };
function add(plan: GatewayPlan, group: string, rule: AddedRule, redirect?: Redirect): void {
  addRule(plan, group, rule);
  if (redirect !== undefined) Object.assign(plan.rules[`${rule.context}/${rule.name}`] ?? {}, { redirect });
}

/** Services `x/web`, `x/proxy`, `x/third`; the application of billing redirects the web to the proxy, per family. */
function redirectPlan(port?: number): GatewayPlan {
  const plan = basePlan();
  for (const [name, at] of Object.entries({ web: WEB, proxy: PROXY, third: THIRD })) {
    plan.services[`x/${name}`] = { addresses: [`${at[4]}/32`, `${at[6]}/128`], ports: null };
  }
  for (const family of families) {
    add(
      plan,
      'g-pay',
      { context: 'service', action: 'accept', services: ['x/web'], name: `to-proxy${family}` },
      { address: PROXY[family], ...(port !== undefined && { port }) },
    );
  }
  return plan;
}

/** What becomes of each probe: `ADDRESS:PORT` that it went to, `reset`, `unreachable` or `nothing`; counters that grew. */
async function send(probes: Probe[], on = rig): Promise<{ outcomes: string[]; counted: Record<string, number> }> {
  const before = await on.counters();
  for (const one of probes) on.fromNode(probePacket(one));
  const seen = await on.collect();
  const counted = Object.fromEntries(
    Object.entries(await on.counters()).flatMap(([name, packets]) =>
      packets > (before[name] ?? 0) ? [[name, packets - (before[name] ?? 0)]] : [],
    ),
  );
  return { outcomes: probes.map((one) => outcomeOf(one, seen)), counted };
}

function outcomeOf({ marker }: Probe, seen: Sighting[]): string {
  const mine = seen.filter((sighting) => sighting.marker === marker);
  const left = mine.find(({ where, kind }) => where === 'outside' && kind === 'packet');
  if (left !== undefined) return `${left.packet.destination}:${left.packet.destinationPort ?? 'icmp'}`;
  return mine.find(({ where }) => where === 'inside')?.kind ?? 'nothing';
}

for (const on of rigs) {
  t.test(`${on.mode}: a flow goes elsewhere, and the answer comes back from where it was sent to`, async (t) => {
    for (const port of [8080, undefined]) {
      await on.reset();
      await on.apply(planFor(on, redirectPlan(port)));
      for (const family of families) {
        for (const [name, protocol] of protocols) {
          const what = `v${family} ${name}, port ${port ?? 'unchanged'}`;
          const sent = probe('pay', family, protocol, 80);
          on.fromNode(probePacket(sent));
          const left = (await on.collect()).filter((s) => s.marker === sent.marker);
          t.same(
            left.map(({ where, packet: p }) => [where, p.source, p.destination, p.destinationPort]),
            [['outside', EGRESS.pay[family], PROXY[family], port ?? 80]],
            `${what}: to the proxy, with billing's address`,
          );
          const answer = nextMarker++;
          const back: Probe = {
            source: PROXY[family],
            destination: EGRESS.pay[family],
            protocol,
            sourcePort: port ?? 80,
            destinationPort: left[0]?.packet.sourcePort ?? 0,
            flags: TCP_SYN | TCP_ACK,
            marker: answer,
          };
          on.fromOutside(probePacket({ ...back, marker: answer }));
          t.same(
            (await on.collect())
              .filter((s) => s.marker === answer)
              .map(({ where, node, packet: p }) => [
                where,
                node,
                p.source,
                p.sourcePort,
                p.destination,
                p.destinationPort,
              ]),
            [['inside', NODES.a, WEB[family], 80, PODS.pay[family], 1024 + (sent.marker % 60_000)]],
            `${what}: the answer is the web's`,
          );
          // The web itself is not whom the flow is with.
          on.fromOutside(probePacket({ ...back, source: WEB[family], sourcePort: 80, marker: nextMarker++ }));
          t.same(await on.collect(), [], `${what}: the web itself has nothing to say`);
        }
      }
    }
  });

  t.test(`${on.mode}: ICMP errors about a redirected flow are about the flow that the pod knows`, async (t) => {
    await on.reset();
    await on.apply(planFor(on, redirectPlan(8080)));
    for (const family of families) {
      const sent = probe('pay', family, PROTOCOL_UDP, 80);
      on.fromNode(probePacket(sent));
      const left = (await on.collect()).find((s) => s.marker === sent.marker)?.packet;
      const [type, code] = family === 4 ? [3, 1] : [1, 3];
      const quoted = probePacket({
        ...sent,
        source: EGRESS.pay[family],
        destination: PROXY[family],
        sourcePort: left?.sourcePort ?? 0,
        destinationPort: 8080,
      });
      const error = { source: ROUTER[family], destination: EGRESS.pay[family], type, code, id: 0, sequence: 0 };
      on.fromOutside(buildIcmp({ ...error, payload: quoted }));
      const [got] = await on.collect();
      t.equal(got?.kind, 'unreachable', `v${family}: the error arrives`);
      t.equal(got?.marker, sent.marker, `v${family}: about the packet that was sent`);
    }
  });
}

t.test('two flows of one port to two places, sent to one: each has its own answers', async (t) => {
  for (const family of families) {
    await rig.reset();
    const plan = redirectPlan();
    for (const name of [`to-proxy${family}`]) {
      Object.assign(plan.rules[`service/${name}`] ?? {}, { services: ['x/web', 'x/third'] });
    }
    await rig.apply(plan);
    const flows = [WEB[family], THIRD[family]].map((destination) => ({
      ...probe('pay', family, PROTOCOL_UDP, 53, destination),
      sourcePort: 5353,
    }));
    for (const flow of flows) rig.fromNode(probePacket(flow));
    const seen = await rig.collect();
    const ports = flows.map(({ marker }) => seen.find((s) => s.marker === marker)?.packet.sourcePort ?? 0);
    t.not(ports[0], ports[1], `v${family}: they leave by two ports`);
    for (const [at, { destination }] of flows.entries()) {
      const answer = nextMarker++;
      rig.fromOutside(
        probePacket({
          source: PROXY[family],
          destination: EGRESS.pay[family],
          protocol: PROTOCOL_UDP,
          sourcePort: 53,
          destinationPort: ports[at] ?? 0,
          marker: answer,
        }),
      );
      const [back] = (await rig.collect()).filter((s) => s.marker === answer);
      t.same([back?.packet.source, back?.packet.destinationPort], [destination, 5353], `v${family}: ${destination}`);
    }
  }
});

/** A change of the plan, what then becomes of TCP to port 80 of the web (by family), and what counts it. */
type Trick = [what: string, port: number | undefined, (plan: GatewayPlan) => void, outcome: string, counted: string];
const veto = (context: 'cluster' | 'namespace', action: 'drop' | 'reject', services: string[] | '*') => {
  return (plan: GatewayPlan): void => add(plan, 'g-pay', { context, action, services, name: 'veto' });
};
const each = (plan: GatewayPlan, change: (rule: RuleEntry, family: Family) => void): void => {
  for (const family of families) change(plan.rules[`service/to-proxy${family}`] as RuleEntry, family);
};
const ports = (plan: GatewayPlan, name: string, first: number, last = first): void => {
  plan.services[name] = {
    addresses: [`${PROXY[4]}/32`, `${PROXY[6]}/128`],
    ports: [{ protocol: PROTOCOL_TCP, ports: [[first, last]] }],
  };
};
const decisively = (context: 'cluster' | 'namespace', service: string) => ({
  context,
  action: 'accept-decisively' as const,
  services: [service],
});
const tricks: Trick[] = [
  ['nothing forbids it', 8080, () => undefined, 'proxy:8080', ''],
  ['the cluster drops what goes to the proxy', 8080, veto('cluster', 'drop', ['x/proxy']), 'nothing', 'drop_rule'],
  ['so does the namespace', 8080, veto('namespace', 'drop', ['x/proxy']), 'nothing', 'drop_rule'],
  ['the cluster rejects it', 8080, veto('cluster', 'reject', ['x/proxy']), 'reset', 'drop_rule'],
  ['the namespace rejects it', undefined, veto('namespace', 'reject', ['x/proxy']), 'reset', 'drop_rule'],
  [
    'the cluster has no objection to the web, before it drops all else',
    8080,
    (plan) => {
      add(plan, 'g-pay', { context: 'cluster', action: 'accept', services: ['x/web'], name: 'web' });
      veto('cluster', 'drop', '*')(plan);
    },
    'nothing',
    'drop_rule',
  ],
  [
    'the namespace permits the web decisively, with a redirect of its own',
    8080,
    (plan) => {
      for (const family of families) {
        const rule = decisively('namespace', 'x/web');
        add(plan, 'g-pay', { ...rule, name: `own${family}` }, { address: THIRD[family] });
      }
      veto('cluster', 'drop', ['x/third'])(plan);
    },
    'nothing',
    'drop_rule',
  ],
  [
    'the new port alone is forbidden',
    8080,
    (plan) => {
      ports(plan, 'x/port', 8080);
      veto('cluster', 'drop', ['x/port'])(plan);
    },
    'nothing',
    'drop_rule',
  ],
  [
    'the old port at the new address is forbidden, which nobody goes to',
    8080,
    (plan) => {
      ports(plan, 'x/port', 80);
      veto('cluster', 'drop', ['x/port'])(plan);
    },
    'proxy:8080',
    '',
  ],
  [
    "the flow's own port is forbidden at the new address",
    undefined,
    (plan) => {
      ports(plan, 'x/port', 70, 90);
      veto('namespace', 'drop', ['x/port'])(plan);
    },
    'nothing',
    'drop_rule',
  ],
  [
    'other ports are forbidden at the new address',
    undefined,
    (plan) => {
      ports(plan, 'x/port', 81, 65_535);
      veto('cluster', 'drop', ['x/port'])(plan);
    },
    'proxy:80',
    '',
  ],
  [
    'what follows an accept of the new address in its context is not asked',
    8080,
    (plan) => {
      add(plan, 'g-pay', { context: 'cluster', action: 'accept', services: ['x/proxy', 'x/web'], name: 'fine' });
      veto('cluster', 'drop', '*')(plan);
    },
    'proxy:8080',
    '',
  ],
  [
    'where the cluster permits the new address decisively, the namespace is not asked',
    8080,
    (plan) => {
      add(plan, 'g-pay', { context: 'cluster', action: 'accept-decisively', services: ['x/proxy'], name: 'fine' });
      veto('namespace', 'drop', ['x/proxy'])(plan);
    },
    'proxy:8080',
    '',
  ],
  [
    'a range that no redirect may lead to',
    8080,
    (plan) => each(plan, ({ redirect }) => Object.assign(redirect ?? {}, { forbidden: 'it is the address of a pod' })),
    'nothing',
    'drop_redirect',
  ],
  [
    'the cluster lets go to the proxy only what it sends to a third place',
    8080,
    (plan) => {
      for (const family of families) {
        const rule = decisively('cluster', 'x/proxy');
        add(plan, 'g-pay', { ...rule, name: `on${family}` }, { address: THIRD[family] });
      }
    },
    'nothing',
    'drop_redirect',
  ],
  [
    'or to another port of it',
    undefined,
    (plan) => {
      for (const family of families) {
        const rule = decisively('cluster', 'x/proxy');
        add(plan, 'g-pay', { ...rule, name: `on${family}` }, { address: PROXY[family], port: 8080 });
      }
    },
    'nothing',
    'drop_redirect',
  ],
  [
    'the cluster sends there what is sent there already',
    8080,
    (plan) => {
      for (const family of families) {
        const rule = decisively('cluster', 'x/proxy');
        add(plan, 'g-pay', { ...rule, name: `on${family}` }, { address: PROXY[family], port: 8080 });
      }
    },
    'proxy:8080',
    '',
  ],
  [
    'the rule is in audit',
    8080,
    (plan) => each(plan, (rule) => Object.assign(rule, { mode: 'Audit' })),
    'nothing',
    'audit_rule drop_default_action',
  ],
  [
    'the policy is in audit: the flow goes where the pod wants',
    8080,
    (plan) => Object.assign(plan.groups['g-pay'] ?? {}, { audit: true }),
    'web:80',
    '',
  ],
  [
    'the policy is in audit, and would forbid the redirect',
    8080,
    (plan) => {
      Object.assign(plan.groups['g-pay'] ?? {}, { audit: true });
      veto('cluster', 'drop', ['x/proxy'])(plan);
    },
    'web:80',
    'audit_rule',
  ],
  [
    'what forbids the redirect is in audit',
    8080,
    (plan) => {
      veto('cluster', 'drop', ['x/proxy'])(plan);
      Object.assign(plan.rules['cluster/veto'] ?? {}, { mode: 'Audit' });
    },
    'proxy:8080',
    'audit_rule',
  ],
];

t.test('the contexts above are asked for the new destination, and there is no way around them', async (t) => {
  for (const [what, port, change, outcome, counted] of tricks) {
    const plan = redirectPlan(port);
    change(plan);
    await rig.apply(plan);
    const evaluator = compilePolicy(plan);
    for (const family of families) {
      const sent = probe('pay', family, PROTOCOL_TCP, 80);
      const got = await send([sent]);
      const place = outcome.replace('proxy', PROXY[family]).replace('web', WEB[family]);
      t.same(got.outcomes, [place], `v${family}: ${what}`);
      t.same(Object.keys(got.counted).sort().join(' '), counted, `v${family}: ${what}: counted`);
      const { verdict, redirect } = evaluator.decide(sent);
      const said = redirect ? `${redirect.address}:${redirect.port}` : `${sent.destination}:${sent.destinationPort}`;
      const meant = verdict === 'accept' ? said : verdict === 'reject' ? 'reset' : 'nothing';
      t.equal(meant, place, `v${family}: ${what}: so says the evaluator`);
    }
  }
});

t.test('what cannot be redirected is not matched', async (t) => {
  for (const family of families) {
    const plan = redirectPlan();
    const other = family === 4 ? 6 : 4;
    const group = plan.groups['g-pay'];
    if (group !== undefined) group.rules.service = [`service/to-proxy${other}`];
    Object.assign(plan.rules[`service/to-proxy${other}`] ?? {}, { services: '*' });
    await rig.apply(plan);
    const refused = await send([
      probe('pay', family, PROTOCOL_TCP, 80),
      probe('pay', family, icmpOf(family), 0),
      probe('pay', other, icmpOf(other), 0),
    ]);
    t.same(refused.outcomes, ['nothing', 'nothing', 'nothing'], `v${family}: the other family, and pings`);
    t.same(refused.counted, { drop_default_action: 3 }, 'no rule matches them');
    const sent = await send([probe('pay', other, PROTOCOL_UDP, 80)]);
    t.same(sent.outcomes, [`${PROXY[other]}:80`], `v${other}: it is there`);
  }
});

t.test('groups that share a rule are each asked what applies to them', async (t) => {
  const plan = redirectPlan(8080);
  for (const family of families) plan.groups['g-rev']?.rules.service.push(`service/to-proxy${family}`);
  add(plan, 'g-rev', { context: 'cluster', action: 'drop', services: ['x/proxy'], name: 'not-reviews' });
  await rig.apply(plan);
  for (const family of families) {
    const { outcomes } = await send([probe('pay', family, PROTOCOL_TCP, 80), probe('rev', family, PROTOCOL_TCP, 80)]);
    t.same(outcomes, [`${PROXY[family]}:8080`, 'nothing'], `v${family}`);
  }
});

t.test('to the gateway itself nobody is led, though the plan says so', async (t) => {
  for (const on of rigs) {
    for (const [what, addresses] of Object.entries({
      'the gateway': { 4: '203.0.113.31', 6: '2001:db8:113::31' },
      'an egress IP': { 4: EGRESS.rev[4], 6: EGRESS.rev[6] },
      'a next hop': { 4: '10.0.0.64', 6: 'fd00:10::64' },
    })) {
      const plan = redirectPlan(7792);
      each(plan, ({ redirect }, family) => Object.assign(redirect ?? {}, { address: addresses[family] }));
      await on.apply(planFor(on, plan));
      for (const family of families) {
        const { outcomes, counted } = await send([probe('pay', family, PROTOCOL_TCP, 80)], on);
        t.same([outcomes, counted], [['reset'], { drop_hairpin: 1 }], `${on.mode}, v${family}: ${what}`);
      }
    }
  }
});

t.test('a cluster rule leads to a node: by the external interface, with the egress IP', async (t) => {
  const plan = basePlan();
  const rule = { context: 'cluster', action: 'accept-decisively', services: '*', name: 'node' } as const;
  add(plan, 'g-pay', rule, { address: NODES.a, port: 9000 });
  // Else the machine's own routes decide.
  if ('pool' in plan.settings) plan.settings.pool.externalGateway = ROUTER;
  await rig.apply(plan);
  const sent = probe('pay', 4, PROTOCOL_TCP, 80);
  rig.fromNode(probePacket(sent));
  const seen = (await rig.collect()).filter(({ marker }) => marker === sent.marker);
  t.same(
    seen.map(({ where, packet: p }) => [where, p.source, p.destination, p.destinationPort]),
    [['outside', EGRESS.pay[4], NODES.a, 9000]],
  );
});

t.test('a hit is the rule that redirects, or the one that forbids; a record says where the flow went', async (t) => {
  await rig.reset();
  const plan = redirectPlan(8080);
  add(
    plan,
    'g-rev',
    { context: 'service', action: 'accept', services: ['x/third'], name: 'third' },
    { address: PROXY[4] },
  );
  add(plan, 'g-rev', { context: 'cluster', action: 'drop', services: ['x/proxy'], name: 'veto' });
  await rig.apply(plan);
  await send([probe('pay', 4, PROTOCOL_TCP, 80), probe('rev', 4, PROTOCOL_TCP, 80, THIRD[4])]);
  const { ruleNumbers } = compileGateway(plan);
  const counts = await listCounts('sluice', HITS_SET, { namespace: NAMESPACE });
  const hits = [...ruleNumbers].flatMap(([id, number]) => {
    const packets = counts.get(ruleMark(number))?.packets ?? 0;
    return packets === 0 ? [] : [[id, packets]];
  });
  t.same(hits.sort(), [
    ['cluster/veto', 1],
    ['service/to-proxy4', 1],
  ]);
  const flow = (await rig.flows()).find(({ original }) => original.source === PODS.pay[4]);
  t.match(flow && startRecord(flow, viewOf('gw-a', plan, ruleNumbers), new Date()), {
    verdict: 'accept',
    rule: 'to-proxy4',
    destination: WEB[4],
    destinationPort: 80,
    redirectedTo: PROXY[4],
    redirectedPort: 8080,
    egressIP: EGRESS.pay[4],
  });
});

t.test('a change of the redirect ends the flows that it would send elsewhere, and no others', async (t) => {
  const changes: [string, (plan: GatewayPlan) => void, boolean][] = [
    ['nothing', () => undefined, true],
    ['a rule more that forbids something else', veto('cluster', 'drop', ['x/third']), true],
    ['another address', (p) => each(p, (r, f) => Object.assign(r.redirect ?? {}, { address: THIRD[f] })), false],
    ['another port', (p) => each(p, (r) => Object.assign(r.redirect ?? {}, { port: 9090 })), false],
    ['its own port', (p) => each(p, (r) => delete r.redirect?.port), false],
    ['no redirect', (p) => each(p, (r) => delete r.redirect), false],
    ['the new destination is forbidden', veto('cluster', 'drop', ['x/proxy']), false],
    ['so is the range', (p) => each(p, (r) => Object.assign(r.redirect ?? {}, { forbidden: 'a range' })), false],
    ['audit', (p) => Object.assign(p.groups['g-pay'] ?? {}, { audit: true }), false],
  ];
  const mine = async (): Promise<string[]> =>
    (await rig.flows())
      .filter(({ original }) => Object.values(PODS.pay).includes(original.source as never))
      .map(({ id }) => String(id))
      .sort();
  const start = async (plan: GatewayPlan): Promise<string[]> => {
    await rig.reset();
    await rig.apply(plan);
    const probes = families.flatMap((f) => protocols.map(([, protocol]) => probe('pay', f, protocol, 80)));
    await send(probes);
    const flows = await mine();
    t.equal(flows.length, 4);
    return flows;
  };
  for (const [what, change, stays] of changes) {
    const plan = redirectPlan(8080);
    const flows = await start(plan);
    const changed = structuredClone(plan);
    change(changed);
    await rig.apply(changed);
    t.same(await mine(), stays ? flows : [], `${what}: they ${stays ? 'go on' : 'end'}`);
  }
  const direct = redirectPlan();
  each(direct, (rule) => delete rule.redirect);
  await start(direct);
  await rig.apply(redirectPlan());
  t.same(await mine(), [], 'a redirect where there was none: they end');
});

/** A redirect to a place that other rules speak of. */
const redirect: fc.Arbitrary<Redirect> = fc
  .record({
    family: fc.constantFrom(...families),
    at: fc.nat(3),
    port: fc.option(fc.constantFrom(80, 443, 8000, 8101), { nil: undefined }),
    forbidden: fc.constantFrom(false, false, false, true),
  })
  .map(({ family, at, port, forbidden }) => ({
    address: DESTINATIONS[family][at] ?? WEB[family],
    ...(port !== undefined && { port }),
    ...(forbidden && { forbidden: 'a range' }),
  }));
const action = fc.constantFrom('accept', 'accept', 'accept-decisively', 'drop', 'reject');
/** Random policies, some of whose rules redirect, with a word from above on every place, and redirects at the end. */
const randomRedirects: fc.Arbitrary<GatewayPlan> = fc
  .record({
    plan: randomPlan,
    redirects: fc.array(fc.option(redirect), { minLength: 12, maxLength: 12 }),
    above: fc.tuple(...['x/a', 'x/b', 'x/c', 'x/d'].map(() => action)),
    last: fc.tuple(redirect, redirect),
    audit: fc.constantFrom(false, false, false, true),
    audited: fc.array(fc.constantFrom(false, false, false, false, true), { minLength: 18, maxLength: 18 }),
  })
  .map(({ plan, redirects, above, last, audit, audited }) => {
    Object.values(plan.rules).forEach((rule, at) => {
      const wish = redirects[at];
      if (wish) rule.redirect = wish;
    });
    for (const group of ['g-pay', 'g-rev']) {
      above.forEach((action, at) => {
        const context = group === 'g-pay' ? 'cluster' : 'namespace';
        add(plan, group, { context, action, services: [`x/${'abcd'[at]}`], name: `above${at}` } as AddedRule);
      });
      last.forEach((to, at) => {
        add(plan, group, { context: 'service', action: 'accept', services: '*', name: `last${at}` }, to);
      });
    }
    Object.values(plan.rules).forEach((rule, at) => {
      if (audited[at] === true) rule.mode = 'Audit';
    });
    if (audit) Object.assign(plan.groups['g-rev'] ?? {}, { audit: true });
    return plan;
  });

function probesOf(seed: number): Probe[] {
  const all = families.flatMap((family) =>
    (['pay', 'rev'] as const).flatMap((pod) =>
      DESTINATIONS[family].flatMap((destination) => [
        probe(pod, family, icmpOf(family), 0, destination),
        ...[PROTOCOL_TCP, PROTOCOL_UDP].flatMap((protocol) =>
          PORTS.map((port) => probe(pod, family, protocol, port, destination)),
        ),
      ]),
    ),
  );
  return all.filter((_, at) => (at * 7 + seed) % 3 === 0);
}

/** The first difference between what the evaluator says and what the wires showed. */
async function disagreement(plan: GatewayPlan, seed: number, on = rig): Promise<string | undefined> {
  await on.apply(planFor(on, plan));
  const evaluator = compilePolicy(plan);
  const probes = probesOf(seed);
  const { outcomes } = await send(probes, on);
  for (const [at, sent] of probes.entries()) {
    const { verdict, rule, redirect } = evaluator.decide(sent);
    const port = sent.protocol === icmpOf(4) || sent.protocol === icmpOf(6) ? 'icmp' : sent.destinationPort;
    const place = redirect ? `${redirect.address}:${redirect.port}` : `${sent.destination}:${port}`;
    const answer = sent.protocol === PROTOCOL_TCP ? 'reset' : 'unreachable';
    const expected = verdict === 'accept' ? place : verdict === 'reject' ? answer : 'nothing';
    if (outcomes[at] !== expected) {
      return `${JSON.stringify(sent)}: evaluator ${expected} (${rule ?? 'default'}), kernel ${outcomes[at]}`;
    }
  }
  return undefined;
}

t.test('evaluator and kernel agree on where each packet goes, for random policies with redirects', async (t) => {
  for (const on of rigs) {
    await on.reset();
    const runs = on.mode === 'Direct' ? Math.ceil(RUNS / 4) : Math.ceil(RUNS);
    let seed = 0;
    await fc.assert(
      fc.asyncProperty(randomRedirects, async (plan) => {
        const problem = await disagreement(plan, seed++, on);
        if (problem !== undefined) throw new Error(problem);
      }),
      { numRuns: runs, endOnFailure: true },
    );
    t.pass(`${on.mode}: ${runs} policies, each reached from the one before`);
  }
});

const mutants: [string, (script: string) => string][] = [
  [
    'the cluster is not asked again',
    (s) => s.replace(/^add rule \S+ \S+ redirect_\w+ jump cluster_again_\w+.*$/gm, ''),
  ],
  ['nor the namespace', (s) => s.replace(/^add rule \S+ \S+ redirect_\w+ jump namespace_again_\w+.*$/gm, '')],
  ['a port one too high', (s) => s.replace(/dnat (ip6?) to (\S+):8000$/gm, 'dnat $1 to $2:8001')],
  ['an accept of the new address permits', (s) => s.replace(/^(add rule .* \w+_again_\w+ .*)return$/gm, '$1accept')],
  ['the port is forgotten', (s) => s.replace(/dnat ip to ([0-9.]+):\d+$/gm, 'dnat ip to $1')],
];
t.test('every mutant of the redirects is caught', async (t) => {
  const plans = fc.sample(randomRedirects, { seed: 5, numRuns: 40 });
  for (const [name, mutate] of mutants) {
    let touched = false;
    rig.mutate = (script) => {
      const mutated = mutate(script);
      touched ||= mutated !== script;
      return mutated;
    };
    await rig.reset();
    let caught: string | undefined;
    for (let at = 0; at < plans.length && caught === undefined; at++) {
      caught = await disagreement(plans[at] as GatewayPlan, at).catch((error: Error) => `does not load: ${error}`);
    }
    t.ok(touched, `${name}: the mutation applies`);
    t.match(caught, /evaluator/, `${name}: caught by a packet`);
  }
  rig.mutate = undefined;
});
