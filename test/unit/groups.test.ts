/**
 * Groups of pods (policy/group-key.ts): who shares one, and which changes of rules leave their names as they are.
 */
import t from 'tap';
import type { NamespaceEgressRule, ServiceEgressRule } from '../../api/kinds.ts';
import { type BindInput, bind } from '../../policy/bind.ts';
import { cluster, external, input, NS, namespace, pod, type RuleShape, rule, slice, tenant } from './policy-objects.ts';

t.test('groups: pods that no selector tells apart share one', async (t) => {
  const pods = [
    pod('a/1', ['10.0.0.1'], { labels: { app: 'x' } }),
    pod('a/2', ['10.0.0.2'], { labels: { app: 'x', other: 'y' } }),
    pod('a/3', ['10.0.0.3'], { labels: { app: 'z' } }),
    pod('b/1', ['10.0.0.4'], { labels: { app: 'x' } }),
  ];
  const world = input({
    // The tenant forges the label that names the namespace.
    namespaces: [namespace('a', { 'kubernetes.io/metadata.name': 'b' })],
    pods,
    externalServices: [external('a/web'), external(`${NS}/web`)],
    clusterRules: [
      cluster('late', { priority: 2000 }),
      cluster('only-b', { namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'b' } } }),
      cluster('early', { priority: 5, podSelector: { matchLabels: { app: 'x' } } }),
    ],
    namespaceRules: [tenant('a/r')],
  });
  const binding = bind(world);
  const of = (uid: string) => binding.groupOf.get(uid) ?? '';
  t.equal(of('uid-a/1'), of('uid-a/2'));
  t.not(of('uid-a/1'), of('uid-a/3'));
  t.match(of('uid-a/1'), /^a\/[0-9a-f]{32}$/);
  const rules = (cluster: string[], namespace: string[]) => ({ cluster, namespace, service: [] });
  t.strictSame(binding.groups[of('uid-a/1')], {
    namespace: 'a',
    rules: rules(['cluster/early', 'cluster/late'], ['namespace/a/r']),
  });
  t.strictSame(binding.groups[of('uid-a/3')], { namespace: 'a', rules: rules(['cluster/late'], ['namespace/a/r']) });
  t.strictSame(binding.groups[of('uid-b/1')], {
    namespace: 'b',
    rules: rules(['cluster/early', 'cluster/only-b', 'cluster/late'], []),
  });

  const shuffled = bind({ ...world, pods: pods.toReversed(), clusterRules: world.clusterRules.toReversed() });
  t.strictSame(shuffled.groups, binding.groups, 'whatever the order of the objects');
  t.strictSame([...shuffled.groupOf].sort(), [...binding.groupOf].sort());
  t.strictSame(bind(input()).groups, {});
});

t.test('groups: which changes of rules rename them', async (t) => {
  const pods = [
    pod('a/1', ['10.0.0.1'], { labels: { app: 'x', unique: '1' } }),
    pod('a/2', ['10.0.0.2'], { labels: { app: 'x', unique: '2' } }),
    pod('a/3', ['10.0.0.3'], { labels: { app: 'z' }, account: 'pay' }),
  ];
  const app = (value: string): RuleShape => ({ podSelector: { matchLabels: { app: value } } });
  const world: Partial<BindInput> = {
    namespaces: [namespace('a')],
    pods,
    externalServices: [external('a/web'), external(`${NS}/web`)],
    endpointSlices: [slice('a/s', 'payments', [{ addresses: ['10.0.0.1'] }, { addresses: ['10.0.0.2'] }])],
    namespaceRules: [tenant('a/r', app('x'))],
  };
  const before = bind(input(world));
  const exists = { podSelector: { matchExpressions: [{ key: 'unique', operator: 'Exists' }] } } satisfies RuleShape;
  const night = { schedule: [{ from: '22:00', to: '23:00', timezone: 'UTC' }] };
  const more = (...rules: NamespaceEgressRule[]): Partial<BindInput> => ({
    namespaceRules: [...(world.namespaceRules ?? []), ...rules],
  });
  /** The names of the pods whose groups have other names than before. */
  const rows: [string, Partial<BindInput>, string[]][] = [
    ['a rule without a selector', more(tenant('a/all')), []],
    ['another value of a label that was asked for', more(tenant('a/z', app('z'))), []],
    ['a rule of the cluster', { clusterRules: [cluster('c', app('x'))] }, []],
    ['the policy in audit', { auditedNamespaces: new Set(['a']) }, []],
    ['a rule with other destinations', { externalServices: [external('a/web', ['192.0.2.1'])] }, []],
    ['a label that no rule asked for, of those who have it', more(tenant('a/u', exists)), ['1', '2']],
    [
      'a service, of its pods',
      { serviceRules: [rule('ServiceEgressRule', 'a/s', { service: 'payments' })] },
      ['1', '2'],
    ],
    ['a service account, of all', more(tenant('a/sa', { serviceAccounts: ['none'] })), ['1', '2', '3']],
    ['no rule any more', { namespaceRules: [] }, ['1', '2', '3']],
  ];
  for (const [name, change, renamed] of rows) {
    const after = bind(input({ ...world, ...change }));
    const moved = pods.filter(({ metadata: { uid = '' } }) => after.groupOf.get(uid) !== before.groupOf.get(uid));
    t.strictSame(
      moved.map(({ metadata }) => metadata.name),
      renamed,
      name,
    );
  }
  const asked = bind(input({ ...world, ...more(tenant('a/u', exists)) }));
  t.equal(
    asked.groupOf.get('uid-a/1'),
    asked.groupOf.get('uid-a/2'),
    'where only presence is asked values do not part',
  );
  const scheduled = more(tenant('a/night', { ...exists, ...night } as RuleShape));
  const [day, evening] = [12, 22.5].map((hour) => bind(input({ ...world, ...scheduled, now: hour * 3_600_000 })));
  t.strictSame([...(day?.groupOf ?? [])], [...(evening?.groupOf ?? [])], 'nor do the edges of a schedule rename');
  t.notSame(day?.groups, evening?.groups, 'though what they list changes');
});

t.test('groups: each pod has the rules that select it, by whatever selector', async (t) => {
  const pods = [
    pod('a/x', ['10.0.0.1'], { labels: { app: 'x' } }),
    pod('a/z', ['10.0.0.2'], { labels: { app: 'z' } }),
    pod('a/none', ['10.0.0.3'], { account: 'pay' }),
  ];
  const by = (operator: 'In' | 'NotIn' | 'Exists' | 'DoesNotExist', values?: string[]): RuleShape => ({
    podSelector: { matchExpressions: [{ key: 'app', operator, ...(values && { values }) }] },
  });
  const service = (name: string, endpoints: 'All' | 'Ready'): ServiceEgressRule =>
    rule('ServiceEgressRule', name, { service: 'payments', endpoints });
  const rows: [string, Partial<BindInput>, string[]][] = [
    ['In', { namespaceRules: [tenant('a/r', by('In', ['x']))] }, ['x']],
    ['NotIn', { namespaceRules: [tenant('a/r', by('NotIn', ['x']))] }, ['z', 'none']],
    ['Exists', { namespaceRules: [tenant('a/r', by('Exists'))] }, ['x', 'z']],
    ['DoesNotExist', { namespaceRules: [tenant('a/r', by('DoesNotExist'))] }, ['none']],
    ['a label', { namespaceRules: [tenant('a/r', { podSelector: { matchLabels: { app: 'z' } } })] }, ['z']],
    ['an account', { namespaceRules: [tenant('a/r', { serviceAccounts: ['pay'] })] }, ['none']],
    ['endpoints', { serviceRules: [service('a/r', 'All')] }, ['x', 'z']],
    ['ready endpoints', { serviceRules: [service('a/r', 'Ready')] }, ['x']],
  ];
  const endpoints = [{ addresses: ['10.0.0.1'] }, { addresses: ['10.0.0.2'], conditions: { ready: false } }];
  const base = {
    namespaces: [namespace('a')],
    pods,
    externalServices: [external('a/web')],
    endpointSlices: [slice('a/s', 'payments', endpoints)],
  };
  // Alone, and beside one that asks otherwise of the same service, which comes before or after it.
  for (const [name, rules, expected] of rows) {
    for (const beside of [
      [],
      [service('a/q', 'All')],
      [service('a/z', 'All')],
      [service('a/q', 'Ready')],
      [service('a/z', 'Ready')],
    ]) {
      const serviceRules = [...beside, ...(rules.serviceRules ?? [])].sort((a, b) =>
        a.metadata.name < b.metadata.name ? -1 : 1,
      );
      const { groups, groupOf } = bind(input({ ...base, ...rules, serviceRules }));
      const selected = pods.filter(({ metadata: { uid = '' } }) => {
        const { namespace = [], service = [] } = groups[groupOf.get(uid) ?? '']?.rules ?? {};
        return [...namespace, ...service].some((id) => id.endsWith('/a/r'));
      });
      t.strictSame(
        selected.map(({ metadata }) => metadata.name),
        expected,
        `${name}, beside ${beside.map(({ metadata, spec }) => `${metadata.name} ${spec.endpoints}`).join() || 'none'}`,
      );
    }
  }
});
