/**
 * Audit (design §3, `mode`) from the manifest to the record: what the evaluator and explain say, whose policy the planner
 * puts into audit, the gateway's table, flow records, lint. Packets are in netns/audit.test.ts.
 */
import t from 'tap';
import { renderCrds } from '../../api/crd.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { CT_DECIDED } from '../../api/names.ts';
import { type Action, type Context, emptyGatewayPlan, type GatewayPlan, type RuleEntry } from '../../api/plan.ts';
import { lintTogether } from '../../cli/lint.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { DEFAULT_ACTION, ruleMark } from '../../gateway/marks.ts';
import { endedBy } from '../../gateway/recheck.ts';
import { auditRecord, startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { hitsIdOf } from '../../gateway/record/hit-totals.ts';
import { diffRuleset, markText, scriptOf, stateOf } from '../../kernel/nft.ts';
import { formatRecord } from '../../lab/flows.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';

const WEB = '198.51.100.80';
const EGRESS = { 4: { address: '203.0.113.101', shard: 's0' }, 6: { address: '2001:db8:113::101', shard: 's0' } };

/** One workload; rules are written `context action [audit]`, all of any destination or of `a/web`. */
function planOf(lines: string[], audit = false, defaultAction: 'Drop' | 'Accept' = 'Drop'): GatewayPlan {
  const made = emptyGatewayPlan();
  made.settings = {
    pool: {
      pool: 'main',
      defaultAction,
      unassigned: 'Drop',
      internalInterface: 'inside',
      externalInterface: 'outside',
      externalGateway: {},
      steering: { mode: 'VXLAN', vni: 7790, port: 4793, mtu: null },
      clusterCIDRs: [],
      excludedCIDRs: [],
    },
  };
  made.services['a/web'] = {
    addresses: [`${WEB}/32`, '2001:db8:100::80/128'],
    ports: [
      { protocol: 6, ports: [[80, 80]] },
      { protocol: 17, ports: null },
    ],
  };
  const rules: Record<Context, string[]> = { cluster: [], namespace: [], service: [] };
  for (const [index, line] of lines.entries()) {
    const [context, action, services, mode] = line.split(' ') as [Context, Action, string, string?];
    const entry: RuleEntry = {
      context,
      ...(context !== 'cluster' && { namespace: 'a' }),
      name: `r${index}`,
      action,
      ...(mode === 'audit' && { mode: 'Audit' }),
      priority: 1000,
      services: services === '*' ? '*' : [services],
    };
    made.rules[`${context}/r${index}`] = entry;
    rules[context].push(`${context}/r${index}`);
  }
  made.groups.g = { namespace: 'a', ...(audit && { audit: true }), rules };
  made.workloads.u = {
    namespace: 'a',
    name: 'one',
    uid: 'u',
    node: 'n',
    services: ['payments'],
    addresses: ['10.0.0.1', 'fd00::1'],
    group: 'g',
    egress: EGRESS,
  };
  return made;
}
const web = { source: '10.0.0.1', destination: WEB, protocol: 6, destinationPort: 80 };

t.test('a rule in audit is skipped, and what it would have done is told', async (t) => {
  const rows: [string, string[], string, string[]][] = [
    ['drop', ['cluster drop * audit', 'service accept a/web'], 'accept service-accept service/r1', ['cluster/r0 drop']],
    [
      'the next rule decides',
      ['namespace drop * audit', 'namespace reject *'],
      'reject rule namespace/r1',
      ['namespace/r0 drop'],
    ],
    ['an accept permits nothing', ['service accept a/web audit'], 'drop default-action', ['service/r0 accept']],
    [
      'an accept does not shield',
      ['cluster accept * audit', 'cluster drop a/web', 'service accept *'],
      'drop rule cluster/r1',
      ['cluster/r0 accept'],
    ],
    [
      'accept-decisively does not end the walk',
      ['cluster accept-decisively * audit', 'namespace drop *'],
      'drop rule namespace/r1',
      ['cluster/r0 accept-decisively'],
    ],
    [
      'what does not match is no hit',
      ['cluster drop a/none audit', 'service accept *'],
      'accept service-accept service/r1',
      [],
    ],
    ['what is not reached is no hit', ['cluster drop *', 'cluster reject * audit'], 'drop rule cluster/r0', []],
    [
      'several',
      ['cluster drop * audit', 'cluster reject a/web audit', 'service drop a/web audit'],
      'drop default-action',
      ['cluster/r0 drop', 'cluster/r1 reject', 'service/r2 drop'],
    ],
  ];
  for (const [name, lines, expected, hits] of rows) {
    const evaluator = compilePolicy(planOf(lines));
    const decision = evaluator.decide(web);
    const { verdict, reason, rule, audited = [], wouldHave } = decision;
    t.equal([verdict, reason, rule].filter(Boolean).join(' '), expected, name);
    t.same(
      audited.map((hit) => `${hit.rule} ${hit.action}`),
      hits,
      `${name}: hits`,
    );
    t.equal(wouldHave, undefined);
    t.same(evaluator.explain(web).decision, decision, `${name}: explain`);
  }
});

t.test('a policy in audit lets everything pass, and tells what would have become of it', async (t) => {
  const rows: [string, string[], string, string | undefined][] = [
    ['default action', [], 'accept default-action', 'drop'],
    ['drop', ['cluster drop *'], 'accept rule cluster/r0', 'drop'],
    ['reject', ['namespace reject *'], 'accept rule namespace/r0', 'reject'],
    ['what is permitted anyhow', ['service accept a/web'], 'accept service-accept service/r0', undefined],
    ['a rule in audit beside it', ['cluster reject * audit', 'cluster drop *'], 'accept rule cluster/r1', 'drop'],
  ];
  for (const [name, lines, expected, would] of rows) {
    const { verdict, reason, rule, wouldHave } = compilePolicy(planOf(lines, true)).decide(web);
    t.same([[verdict, reason, rule].filter(Boolean).join(' '), wouldHave], [expected, would], name);
  }
  t.match(compilePolicy(planOf([], true, 'Accept')).decide(web), { verdict: 'accept', wouldHave: undefined });
  const stranger = { ...web, source: '10.0.0.9' };
  t.same(compilePolicy(planOf([], true)).decide(stranger), { verdict: 'drop', reason: 'unknown-source' });
});

t.test('explain', async (t) => {
  const explain = (lines: string[], audit = false) => compilePolicy(planOf(lines, audit)).explain(web);
  t.equal(
    explain(['cluster drop * audit', 'service accept a/web']).summary,
    'Accepted by service/r1 in the service context. In audit, so skipped: cluster/r0 (drop).',
  );
  t.equal(
    explain(['namespace reject *'], true).summary,
    'Accepted, since the policy of namespace a is in audit (by its label or its GatewayPool); else: rejected by namespace/r0 in the namespace context.',
  );
  t.match(
    explain([], true).summary,
    /^Accepted, since .*; else: dropped by the pool's default action \(Drop\): no rule/,
  );
  const { contexts: outcomes, steps } = explain(['cluster drop * audit', 'service accept a/web']);
  t.match(outcomes[0], { outcome: 'no-match', rule: undefined, why: 'only rules in audit match, which are skipped' });
  t.match(steps[0], { rule: 'cluster/r0', matched: true, audit: true });
  t.notOk('audit' in (steps[1] ?? {}));
  t.same(
    explain(['cluster drop * audit']).contexts.map(({ outcome }) => outcome),
    ['no-match', 'no-match', 'no-match'],
    'a rule in audit that drops ends no walk',
  );
});

/** Objects of one pool, one namespace with a pod, a rule in audit and one that is not. */
function world(poolMode: string | undefined, label: string | undefined): Map<string, AnyObject> {
  const sluice = 'sluice.dev/v1alpha1';
  const objects = [
    {
      apiVersion: sluice,
      kind: 'GatewayPool',
      metadata: { name: 'p' },
      spec: {
        namespaceSelector: {},
        ...(poolMode && { mode: poolMode }),
        gateways: [{ name: 'g1', internalAddress: '10.0.0.31' }],
        interfaces: { internal: 'in0', external: { name: 'out0' } },
        nextHops: { v4: ['10.0.0.64'] },
        steering: {},
      },
    },
    {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name: 'a', labels: label === undefined ? {} : { 'sluice.dev/mode': label } },
    },
    { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'b' } },
    ...['a', 'b'].map((namespace, n) => ({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'one', namespace, uid: `uid-${namespace}` },
      spec: { nodeName: 'n' },
      status: { podIPs: [{ ip: `10.244.1.${n + 1}` }] },
    })),
    ...['Audit', 'Enforce'].map((mode) => ({
      apiVersion: sluice,
      kind: 'ClusterEgressRule',
      metadata: { name: mode.toLowerCase() },
      spec: { action: 'drop', externalServices: ['*'], mode },
    })),
  ];
  return new Map(
    objects.map((object) => {
      const parsed = parseObject(object);
      if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
      return [objectKey(parsed.value), parsed.value];
    }),
  );
}

t.test('whose policy is in audit', async (t) => {
  t.match(renderCrds()['sluice.dev_gatewaypools.yaml'], /auditedNamespaces:/, 'the API server keeps the number');
  const rows: [pool: string | undefined, label: string | undefined, audited: string[], warned: boolean][] = [
    [undefined, undefined, [], false],
    ['Enforce', 'Enforce', [], false],
    [undefined, 'Audit', ['a'], false],
    ['Audit', undefined, ['a', 'b'], false],
    ['Audit', 'Enforce', ['a', 'b'], false],
    [undefined, 'audit', [], true],
    [undefined, '', [], true],
  ];
  const keys = new Set<string>();
  for (const [poolMode, label, expected, warned] of rows) {
    const result = plan(world(poolMode, label), emptyMemory(), noPeers(), 0);
    const { groups, rules, workloads } = result.pools.get('p') as GatewayPlan;
    const audited = Object.values(groups).filter(({ audit }) => audit === true);
    const name = `pool ${poolMode}, label ${label}`;
    t.same(audited.map(({ namespace }) => namespace).sort(), expected, name);
    t.equal(result.statuses.get('GatewayPool/p')?.auditedNamespaces, expected.length, `${name}: status`);
    const warnings = result.warnings.filter(({ reason }) => reason === 'UnknownMode').map(({ object }) => object);
    t.same(warnings, warned ? ['Namespace/a'] : [], `${name}: warning`);
    const { conditions = [] } = result.statuses.get('ClusterEgressRule/audit') ?? {};
    t.match(conditions[0], { status: 'True', message: /^the rule is in audit/ });
    t.same([rules['cluster/audit']?.mode, rules['cluster/enforce']?.mode], ['Audit', undefined]);
    keys.add(workloads['uid-a']?.group ?? '');
  }
  t.equal(keys.size, 1, 'a group in audit is the same group');
});

const textOf = (made: GatewayPlan): string =>
  scriptOf(
    diffRuleset(
      stateOf({ family: 'inet', table: 'sluice', counters: [], sets: {}, chains: {} }),
      compileGateway(made).ruleset,
    ),
  );
const numberOf = (made: GatewayPlan, id: string): number => compileGateway(made).ruleNumbers.get(id) ?? 0;

t.test('the table: hits go on, denials of a policy in audit pass', async (t) => {
  const one = planOf(['cluster drop * audit', 'service accept a/web']);
  const all = compileGateway(one).ruleset.chains;
  const [, chain] = Object.entries(all).find(([name]) => name.startsWith('cluster_')) ?? [];
  const [, mark, target = ''] = /^meta mark set (\w+) jump (rule_audited)$/.exec(chain?.rules.join('\n') ?? '') ?? [];
  t.equal(mark, markText(ruleMark(numberOf(one, 'cluster/r0'))));
  const follow = (name: string): string[] =>
    (all[name]?.rules ?? []).flatMap((line) => (line.startsWith('goto ') ? follow(line.slice(5)) : [line]));
  const hit = follow(target);
  t.match(hit.join('\n'), /counter name audit_rule\n.* log prefix "audit" group /);
  t.notOk(
    hit.some((line) => /accept|drop|reject|jump/.test(line)),
    'and nothing that would end the walk',
  );

  const two = compileGateway(planOf(['cluster drop a/web audit'])).ruleset.chains;
  const [, several] = Object.entries(two).find(([name]) => name.startsWith('cluster_')) ?? [];
  t.match(several?.rules, [/^jump audited_\w+$/], 'a packet that two sets know is one hit');
  t.equal(several?.rules.length, 1);
  const once = two[several?.rules[0]?.replace('jump ', '') ?? '']?.rules ?? [];
  t.ok(once.length > 1 && once.every((line) => / goto rule_audited$/.test(line)), once.join('\n'));

  const whole = textOf(planOf(['cluster drop a/web', 'namespace reject *'], true));
  t.notMatch(whole, /(cluster|namespace)_\w+ .*goto rule_/);
  t.equal(whole.match(/let_pass_\w+ meta mark set \w+ jump audit_/g)?.length, 3, 'two rules and the default action');
  t.match(whole, /rule inet sluice group_\w+ goto let_pass_\w+$/m);
  t.notMatch(whole, /group_\w+ .*goto rule_default/);
  const enforced = textOf(planOf(['cluster drop a/web', 'namespace reject *']));
  t.notMatch(enforced, /jump audit_/);
  const open = compileGateway(planOf([], true, 'Accept')).ruleset.chains;
  t.notOk(
    Object.entries(open).some(
      ([name, { rules }]) => !/^(rule|audit)_/.test(name) && rules.some((line) => line.includes('audit')),
    ),
    'what would pass anyhow is no hit',
  );
});

t.test('the table: another namespace that goes into audit is elements, not chains', async (t) => {
  const world = (audited: boolean): GatewayPlan => {
    const made = planOf(['service accept *'], true);
    made.groups.h = {
      ...made.groups.g,
      namespace: 'b',
      rules: { cluster: [], namespace: [], service: [] },
    } as GatewayPlan['groups'][string];
    made.groups.i = { namespace: 'b', rules: { cluster: [], namespace: [], service: [] } };
    made.workloads.v = {
      ...made.workloads.u,
      uid: 'v',
      namespace: 'b',
      addresses: ['10.0.0.2'],
      group: audited ? 'h' : 'i',
    } as GatewayPlan['workloads'][string];
    return made;
  };
  const lines = scriptOf(
    diffRuleset(stateOf(compileGateway(world(false)).ruleset), compileGateway(world(true)).ruleset),
  )
    .split('\n')
    .filter(Boolean);
  t.ok(lines.length > 0);
  t.ok(
    lines.every((line) => /^(add|delete|destroy) element /.test(line)),
    lines.join('\n'),
  );
});

t.test('records', async (t) => {
  const made = planOf(['cluster reject * audit', 'namespace drop a/web'], true);
  const view = viewOf('gw-a', made, compileGateway(made).ruleNumbers);
  const time = new Date('2026-11-25T12:00:00Z');
  const packet = {
    prefix: 'audit',
    protocol: 6,
    source: '10.0.0.1',
    sourcePort: 5,
    destination: WEB,
    destinationPort: 80,
  };
  const hit = (id: string) => auditRecord({ ...packet, mark: ruleMark(numberOf(made, id)) }, view, time);
  t.same(hit('cluster/r0'), {
    time: '2026-11-25T12:00:00.000Z',
    event: 'audit',
    verdict: 'audit',
    wouldHave: 'reject',
    reason: 'rule',
    context: 'cluster',
    rule: 'r0',
    namespace: 'a',
    pod: 'one',
    services: ['payments'],
    node: 'n',
    protocol: 'tcp',
    source: '10.0.0.1',
    sourcePort: 5,
    destination: WEB,
    destinationPort: 80,
    gateway: 'gw-a',
  });
  t.match(hit(DEFAULT_ACTION), { event: 'audit', wouldHave: 'drop', reason: 'default-action', rule: undefined });
  const accepts = planOf(['cluster accept * audit', 'service accept * audit']);
  for (const [id, reason] of [
    ['cluster/r0', 'rule'],
    ['service/r1', 'service-accept'],
  ] as const) {
    const mark = ruleMark(numberOf(accepts, id));
    const record = auditRecord({ ...packet, mark }, viewOf('g', accepts, compileGateway(accepts).ruleNumbers), time);
    t.match(record, { wouldHave: 'accept', reason }, id);
  }
  t.match(hit('gone'), { event: 'audit', reason: 'rule', rule: undefined, wouldHave: undefined });

  const flow = (id: string): ConntrackEntry =>
    ({
      family: 4,
      id: 1,
      protocol: 6,
      mark: (CT_DECIDED | ruleMark(numberOf(made, id))) >>> 0,
      status: 0,
      original: { source: '10.0.0.1', destination: WEB, sourcePort: 5, destinationPort: 80 },
      reply: { source: WEB, destination: EGRESS[4].address, sourcePort: 80, destinationPort: 5 },
      packets: { original: 0n, reply: 0n },
      bytes: { original: 0n, reply: 0n },
    }) as unknown as ConntrackEntry;
  t.match(startRecord(flow('namespace/r1'), view, time), {
    event: 'start',
    verdict: 'accept',
    wouldHave: 'drop',
    rule: 'a/r1',
    egressIP: EGRESS[4].address,
  });
  t.match(startRecord(flow(DEFAULT_ACTION), view, time), {
    verdict: 'accept',
    wouldHave: 'drop',
    reason: 'default-action',
  });
  const passed = startRecord(flow('namespace/r1'), view, time);
  t.equal(hitsIdOf(passed, 'main'), undefined, 'what it carries is nothing that the rule permitted');
  t.match(formatRecord(passed), /accept .* as 203\.0\.113\.101 \(gw-a; namespace rule a\/r1 would have said drop\)$/);
  const open = planOf([], false, 'Accept');
  t.notOk(
    'wouldHave' in startRecord(flow(DEFAULT_ACTION), viewOf('gw-a', open, compileGateway(open).ruleNumbers), time),
  );

  t.equal(endedBy(made)(flow('namespace/r1')), false, 'under audit an established flow goes on');
  const enforced = planOf(['cluster reject * audit', 'namespace drop a/web']);
  t.equal(endedBy(enforced)(flow('namespace/r1')), true, 'enforced it ends');
  const permitted = planOf(['cluster reject * audit', 'service accept a/web']);
  t.equal(endedBy(permitted)(flow('service/r1')), false, 'a rule in audit ends nothing');
});

t.test('lint: a rule in audit hides no other', async (t) => {
  const rule = (name: string, spec: object) => ({
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'NamespaceEgressRule',
    metadata: { name, namespace: 'a' },
    spec: { externalServices: ['*'], ...spec },
  });
  const findings = (mode: string) => {
    const placed = new Map(
      [...world(undefined, undefined)].map(([key, object]) => [key, { object, file: 'f', line: 1 }]),
    );
    placed.delete('ClusterEgressRule/enforce');
    for (const document of [
      rule('first', { action: 'drop', priority: 1, mode }),
      rule('second', { action: 'accept-decisively', priority: 2 }),
    ]) {
      const parsed = parseObject(document);
      if (parsed.ok) placed.set(objectKey(parsed.value), { object: parsed.value, file: 'f', line: 1 });
    }
    return lintTogether(placed).filter((finding) => JSON.stringify(finding).includes('NamespaceEgressRule/a/second'));
  };
  t.match(findings('Enforce'), [{ severity: 'warning' }]);
  t.same(findings('Audit'), []);
});
