/**
 * Limits of rules, but for the kernel (test/netns/limits.test.ts): what is refused, what a decision says of them, how
 * they are divided over shards and told in a status, and how they become elements that only their own change touches.
 */
import fc from 'fast-check';
import t from 'tap';
import { crdOf } from '../../api/crd.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import {
  type Action,
  type Context,
  contexts,
  emptyGatewayPlan,
  type GatewayPlan,
  type RuleLimits,
} from '../../api/plan.ts';
import { sluiceKinds } from '../../api/schema/registry.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleMark } from '../../gateway/marks.ts';
import { endedBy } from '../../gateway/recheck.ts';
import { auditRecord, denyRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { diffRuleset, markText, type Ruleset, scriptOf, stateOf } from '../../kernel/nft.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { divideLimit, shareOf } from '../../policy/limits.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';
import { touches } from '../touches.ts';

type Fields = Record<string, unknown>;
function object(kind: string, name: string, fields: Fields, meta: Fields = {}): AnyObject {
  const apiVersion = ['Namespace', 'Pod', 'Node'].includes(kind) ? 'v1' : 'sluice.dev/v1alpha1';
  const parsed = parseObject({ apiVersion, kind, metadata: { name, ...meta }, ...fields });
  if (!parsed.ok) throw new Error(`${kind} ${name}: ${JSON.stringify(parsed.errors)}`);
  return parsed.value;
}
const errorsOf = (spec: Fields, kind = 'ClusterEgressRule') => {
  const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', kind, metadata: { name: 'r' }, spec });
  return parsed.ok ? [] : parsed.errors;
};

t.test('what a rule may say', async (t) => {
  const spec = { action: 'accept', externalServices: ['*'] };
  for (const [field, most] of [
    ['connectionsPerSecond', 1_000_000],
    ['maxConnections', 10_000],
  ] as const) {
    const expected = `an integer from 1 to ${most}`;
    for (const action of ['accept', 'accept-decisively']) {
      for (const good of [1, most])
        t.same(errorsOf({ ...spec, action, [field]: good }), [], `${action} ${field} ${good}`);
    }
    for (const [bad, got] of [
      [0, '0'],
      [most + 1, String(most + 1)],
      [1.5, '1.5'],
      ['10', '"10"'],
    ] as const) {
      t.same(errorsOf({ ...spec, [field]: bad }), [{ path: `spec.${field}`, expected, got }]);
    }
    for (const action of ['drop', 'reject']) {
      const none = {
        path: `spec.${field}`,
        expected: `absent: a rule that says ${action} lets nothing through`,
        got: '7',
      };
      t.same(errorsOf({ ...spec, action, [field]: 7 }), [none]);
    }
  }
  for (const info of sluiceKinds.filter(({ kind }) => kind.endsWith('EgressRule'))) {
    const text = JSON.stringify(crdOf(info));
    t.match(
      text,
      /'accept-decisively'\] \|\| !\(has\(self.connectionsPerSecond\) \|\| has\(self.maxConnections\) \|\| has\(self.bandwidth\)\)/,
      `${info.kind}: the API server too`,
    );
  }
});

/** One pod whose rules are `context action [limit]`, in walking order, each to any destination. */
function policyOf(lines: string[], more: { audit?: boolean } = {}): GatewayPlan {
  const made = emptyGatewayPlan();
  made.settings = {
    pool: {
      pool: 'edge',
      defaultAction: 'Drop',
      unassigned: 'Drop',
      internalInterface: 'in',
      externalInterface: 'out',
      externalGateway: {},
      steering: { mode: 'VXLAN', vni: 1, port: 4793, mtu: null },
      clusterCIDRs: [],
      excludedCIDRs: [],
    },
  };
  const rules: Record<Context, string[]> = { cluster: [], namespace: [], service: [] };
  lines.forEach((line, at) => {
    const [context, action, max, mode] = line.split(' ') as [Context, Action, string?, string?];
    const id = `${context}/r${at}`;
    const limits: RuleLimits | undefined = Number(max) > 0 ? { maxConnections: Number(max) } : undefined;
    const audit = mode === 'audit' && ({ mode: 'Audit' } as const);
    made.rules[id] = {
      context,
      name: `r${at}`,
      action,
      ...audit,
      priority: 0,
      services: '*',
      ...(limits && { limits }),
    };
    rules[context].push(id);
  });
  made.groups.g = { namespace: 'a', ...(more.audit && { audit: true }), rules };
  const egress = { 4: { address: '203.0.113.1', shard: 's0' } };
  const names = { namespace: 'a', name: 'one', uid: 'u', node: 'n', services: ['s'] };
  made.workloads.u = { ...names, addresses: ['10.1.0.1', 'fd00::1'], group: 'g', egress };
  return made;
}
const web = { source: '10.1.0.1', destination: '198.51.100.80', protocol: 6, destinationPort: 80 };

t.test('a decision names the limits that must hold', async (t) => {
  const rows: [name: string, lines: string[], verdict: string, limits: string[] | undefined][] = [
    ['none', ['cluster accept', 'service accept'], 'accept', undefined],
    [
      'of each context',
      ['cluster accept 3', 'namespace accept 2', 'service accept 1'],
      'accept',
      contexts.map((c, at) => `${c}/r${at}`),
    ],
    ['not of rules behind the one that matched', ['service accept', 'service accept 3'], 'accept', undefined],
    ['not beyond the end of the walk', ['cluster accept-decisively 3', 'service accept 3'], 'accept', ['cluster/r0']],
    ['of one that is denied further on', ['cluster accept 3', 'namespace reject'], 'reject', ['cluster/r0']],
    ['not of rules in audit', ['service accept 3 audit', 'service accept'], 'accept', undefined],
  ];
  for (const [name, lines, verdict, limits] of rows) {
    const evaluator = compilePolicy(policyOf(lines));
    const decision = evaluator.decide(web);
    t.same([decision.verdict, decision.limits], [verdict, limits], name);
    t.same(evaluator.explain(web).decision, decision, `${name}: explain`);
    const said = limits !== undefined && verdict === 'accept';
    t.equal(evaluator.explain(web).summary.includes('Limited by'), said, `${name}: in words`);
  }
  const both = policyOf(['cluster accept 3', 'service accept']);
  Object.assign(both.rules['service/r1'] ?? {}, { limits: { connectionsPerSecond: 20, maxConnections: 5 } });
  t.equal(
    compilePolicy(both).explain(web).summary,
    'Accepted by service/r1 in the service context. Limited by cluster/r0 (3 connections at once), service/r1 (20 new connections a second and 5 connections at once): what is beyond is dropped (limit).',
  );
  const audit = compilePolicy(policyOf(['service accept 3'], { audit: true }));
  t.match(audit.explain(web).summary, /what is beyond is counted and logged\.$/);
});

t.test('established flows are judged without limits', async (t) => {
  const ends = endedBy(policyOf(['service accept 1']));
  const flow = {
    family: 4,
    protocol: 6,
    original: { ...web, sourcePort: 1 },
    reply: { source: web.destination, sourcePort: web.destinationPort, destination: '203.0.113.1', destinationPort: 1 },
  } as unknown as ConntrackEntry;
  t.notOk([flow, flow].some(ends));
  const [one, two] = [policyOf(['service accept 1']), policyOf(['service accept 2'])];
  t.notOk(touches(one, two), 'another limit: the connection table is not even looked through');
  t.notOk(touches(one, policyOf(['service accept'])));
  t.ok(touches(one, policyOf(['service drop'])));
  t.ok(touches(one, policyOf([])));
});

t.test('division over shards', async (t) => {
  const shards = fc.uniqueArray(fc.stringMatching(/^p\/s[0-9]{1,2}$/), { minLength: 1, maxLength: 40 });
  const property = fc.property(
    fc.integer({ min: 1, max: 10_000 }),
    shards,
    fc.func<[string], boolean>(fc.boolean()),
    (limit, list, held) => {
      const shares = divideLimit(limit, list);
      const parts = [...shares.values()];
      const sum = parts.reduce((a, b) => a + b, 0);
      if (sum !== Math.max(limit, list.length)) throw new Error(`sum ${sum}`);
      if (Math.max(...parts) - Math.min(...parts) > 1) throw new Error('uneven');
      if (JSON.stringify([...divideLimit(limit, list.toReversed())]) !== JSON.stringify([...shares]))
        throw new Error('order');
      const [mine, others] = [
        shareOf(limit, list, (shard) => held(shard)),
        shareOf(limit, list, (shard) => !held(shard)),
      ];
      const some = list.some((shard) => held(shard)) && !list.every((shard) => held(shard));
      if (some && mine + others !== sum) throw new Error(`${mine} and ${others}`);
      if (mine < 1 || others < 1) throw new Error('nothing at all');
    },
  );
  t.doesNotThrow(() => fc.assert(property));
});

/** Pods of two namespaces, spread over the addresses and shards of one pool. */
function world(limits: Fields, pods: { a: number; b: number }): PlanResult {
  const objects = [
    ...['a', 'b'].map((name) => object('Namespace', name, {})),
    object('Node', 'n1', {
      spec: { podCIDRs: ['10.1.0.0/16'] },
      status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] },
    }),
    object('GatewayPool', 'p', {
      spec: {
        namespaceSelector: {},
        gateways: ['1', '2'].map((n) => ({ name: `g${n}`, internalAddress: `10.0.0.${n}` })),
        interfaces: { internal: 'in', external: { name: 'out' } },
        nextHops: { v4: ['10.0.0.64-10.0.0.67'] },
        steering: { mode: 'VXLAN', vni: 1 },
      },
    }),
    object('EgressIPPool', 'd', {
      spec: { gatewayPool: 'p', ranges: ['192.0.2.1-192.0.2.30'], namespaceSelector: {} },
    }),
    object('EgressIP', 'all', { spec: { pool: 'd', count: 12, namespaceSelector: {} } }),
    ...(['a', 'b'] as const).flatMap((namespace, at) =>
      Array.from({ length: pods[namespace] }, (_, i) =>
        object(
          'Pod',
          `${namespace}${i}`,
          { spec: { nodeName: 'n1' }, status: { phase: 'Running', podIPs: [{ ip: `10.1.${at}.${i + 1}` }] } },
          { namespace, uid: `u-${namespace}${i}` },
        ),
      ),
    ),
    object('ClusterEgressRule', 'top', { spec: { action: 'accept', externalServices: ['*'], ...limits } }),
    object(
      'NamespaceEgressRule',
      'ns',
      { spec: { action: 'accept-decisively', externalServices: ['*'], maxConnections: 1 } },
      { namespace: 'a' },
    ),
  ];
  return plan(new Map(objects.map((o) => [objectKey(o), o])), emptyMemory(), noPeers(), 0);
}

t.test('plan and status: divided over the shards that its sources use', async (t) => {
  const result = world({ connectionsPerSecond: 100, maxConnections: 7 }, { a: 1, b: 20 });
  const made = result.pools.get('p') as GatewayPlan;
  const used = (namespace?: string): string[] =>
    [
      ...new Set(
        Object.values(made.workloads).flatMap((w) =>
          namespace === undefined || w.namespace === namespace ? [`p/${w.egress[4]?.shard}`] : [],
        ),
      ),
    ].sort();
  t.ok(used().length > 1, `${used().length} shards are used`);
  t.same(made.rules['cluster/top']?.limits, { connectionsPerSecond: 100, maxConnections: 7, shards: used() });
  t.same(made.rules['namespace/a/ns']?.limits, { maxConnections: 1, shards: used('a') }, 'of its own sources only');
  const status = result.statuses.get('ClusterEgressRule/top')?.limits as { pool: string; shard: string }[];
  const rates = [...divideLimit(100, used())];
  const counts = divideLimit(7, used());
  t.same(
    status,
    rates.map(([name, connectionsPerSecond]) => ({
      pool: 'p',
      shard: name.slice(2),
      connectionsPerSecond,
      maxConnections: counts.get(name),
    })),
  );
  t.same(result.statuses.get('NamespaceEgressRule/a/ns')?.limits, [
    { pool: 'p', shard: used('a')[0]?.slice(2), maxConnections: 1 },
  ]);

  t.same(world({ maxConnections: 7 }, { a: 0, b: 0 }).statuses.get('ClusterEgressRule/top')?.limits, [], 'no source');
  const none = world({}, { a: 1, b: 1 });
  t.notOk('limits' in (none.statuses.get('ClusterEgressRule/top') ?? {}), 'without limits none is told');
  t.notOk('limits' in (none.pools.get('p')?.rules['cluster/top'] ?? {}));

  const shares = ['g1', 'g2'].map((gateway) => {
    const heldShards = Object.entries(made.shards).flatMap(([name, { order }]) => (order[0] === gateway ? [name] : []));
    const { ruleset, ruleNumbers } = compileGateway(made, { heldShards });
    const element = ruleset.sets.connection_limits?.elements.get(
      markText(ruleMark(ruleNumbers.get('cluster/top') ?? 0)),
    );
    return Number(/^ct count over (\d+)$/.exec(element ?? '')?.[1]);
  });
  t.equal(
    shares.reduce((a, b) => a + b, 0),
    7,
    `the gateways together let through as many: ${shares.join(' and ')}`,
  );
});

const limited = (lines: string[] = ['cluster accept 3', 'service accept 5']): GatewayPlan => policyOf(lines);
const rulesetOf = (made: GatewayPlan): Ruleset => compileGateway(made).ruleset;
const change = (before: GatewayPlan, after: GatewayPlan): string[] =>
  scriptOf(diffRuleset(stateOf(rulesetOf(before)), rulesetOf(after)))
    .split('\n')
    .filter(Boolean);
const limitLinesOf = (lines: string[]): string[] => lines.filter((line) => / (rate|connection)_limits /.test(line));

t.test('nft: one element a rule, which only its own change touches', async (t) => {
  const made = limited();
  Object.assign(made.rules['service/r1']?.limits ?? {}, { connectionsPerSecond: 20 });
  const { ruleset, ruleNumbers } = compileGateway(made);
  const mark = (id: string): string => markText(ruleMark(ruleNumbers.get(id) ?? 0));
  t.same(Object.fromEntries(ruleset.sets.connection_limits?.elements ?? []), {
    [mark('cluster/r0')]: 'ct count over 3',
    [mark('service/r1')]: 'ct count over 5',
  });
  t.same(Object.fromEntries(ruleset.sets.rate_limits?.elements ?? []), {
    [mark('service/r1')]: 'limit rate over 20/second burst 20 packets',
  });
  const { connection_limits, rate_limits, ...others } = rulesetOf(limited(['cluster accept', 'service accept'])).sets;
  t.same(
    [connection_limits?.elements.size, rate_limits?.elements.size],
    [0, 0],
    'no element where no rule has a limit',
  );
  t.ok(Object.keys(others).length > 0);

  const raised = structuredClone(made);
  Object.assign(raised.rules['service/r1']?.limits ?? {}, { maxConnections: 6 });
  t.same(
    change(made, raised),
    [
      `delete element inet sluice connection_limits { ${mark('service/r1')} ct count over 5 }`,
      `add element inet sluice connection_limits { ${mark('service/r1')} ct count over 6 }`,
    ],
    'another number is this element, and nothing else',
  );
  const unrelated = structuredClone(made);
  unrelated.services['a/web'] = { addresses: ['198.51.100.0/24'], ports: null };
  Object.assign(unrelated.rules['cluster/r0'] ?? {}, { services: ['a/web'] });
  const lines = change(made, unrelated);
  t.ok(lines.length > 0);
  t.same(limitLinesOf(lines), [], 'other destinations of the rule: other chains, the same elements');
  const more = limited(['cluster accept 3', 'service accept 5', 'namespace accept 9']);
  Object.assign(more.rules['service/r1']?.limits ?? {}, { connectionsPerSecond: 20 });
  t.match(limitLinesOf(change(made, more)), [/^add element .* ct count over 9 \}$/], 'another rule: one element more');
});

t.test('records of what was over a limit', async (t) => {
  const made = limited();
  const { ruleNumbers } = compileGateway(made);
  const view = viewOf('gw', made, ruleNumbers);
  const packet = { ...web, mark: ruleMark(ruleNumbers.get('cluster/r0') ?? 0) };
  const rule = { reason: 'limit', context: 'cluster', rule: 'r0', pod: 'one' };
  t.match(denyRecord({ ...packet, prefix: 'limit' }, view, new Date(0)), { event: 'deny', verdict: 'drop', ...rule });
  t.match(auditRecord({ ...packet, prefix: 'audit-limit' }, view, new Date(0)), {
    event: 'audit',
    verdict: 'audit',
    wouldHave: 'drop',
    ...rule,
  });
});
