/**
 * What those who read flows know of the policy, kept up to date step by step, against the whole of each plan: whatever
 * changes in whatever order, they have what the plan alone says, and beside it only what was asked about one step before.
 */
import fc from 'fast-check';
import t from 'tap';
import {
  emptyGatewayPlan,
  type GatewayPlan,
  type GroupEntry,
  type Policy,
  type RuleEntry,
  type ServiceEntry,
} from '../../api/plan.ts';
import { changePlan, copyPlan, diffPlan } from '../../api/plan-delta.ts';
import { PolicyShare, type ShareChange, shareOf } from '../../gateway/inspect/policy-share.ts';
import { DEFAULT_ACTION, ruleNumbers } from '../../gateway/marks.ts';
import { basePlan } from '../netns/gateway-plans.ts';

const SERVICES = ['n/a', 'n/b', 'n/c'];
const RULES = ['cluster/r1', 'cluster/r2', 'cluster/r3', 'cluster/r4'];
const GROUPS = ['g1', 'g2', 'g3'];
const UIDS = ['u1', 'u2', 'u3', 'u4', 'u5'];

const service = fc.oneof(
  { weight: 2, arbitrary: fc.constant<ServiceEntry>({ addresses: ['192.0.2.0/24'], ports: null }) },
  fc.constant<ServiceEntry>({ addresses: [], names: ['example.test'], ports: null }),
  fc.constant<ServiceEntry>({
    addresses: ['192.0.2.1/32'],
    ports: [{ protocol: 6, ports: [[22, 22]] }],
    checks: [{ protocol: 6, ports: [[22, 22]], application: 'SSH' }],
  }),
  // Nothing of it is open.
  fc.constant<ServiceEntry>({
    addresses: [],
    ports: [{ protocol: 6, ports: null }],
    checks: [{ protocol: 6, ports: null, application: 'SSH' }],
  }),
);
const rule = fc.record({
  context: fc.constant('cluster' as const),
  name: fc.constantFrom('x', 'y'),
  action: fc.constant('accept' as const),
  priority: fc.nat(2),
  services: fc.oneof(fc.constant('*' as const), fc.subarray(SERVICES)),
}) as fc.Arbitrary<RuleEntry>;

type Step =
  | { kind: 'service'; key: string; value: ServiceEntry | undefined }
  | { kind: 'rule'; key: string; value: RuleEntry | undefined }
  | { kind: 'group'; key: string; value: string[] | undefined }
  | { kind: 'workload'; key: string; value: string | undefined }
  | { kind: 'settings'; resolvers: string[] };

const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined, freq: 4 });
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant('service' as const), key: fc.constantFrom(...SERVICES), value: maybe(service) }),
  fc.record({ kind: fc.constant('rule' as const), key: fc.constantFrom(...RULES), value: maybe(rule) }),
  fc.record({ kind: fc.constant('group' as const), key: fc.constantFrom(...GROUPS), value: maybe(fc.subarray(RULES)) }),
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('workload' as const),
      key: fc.constantFrom(...UIDS),
      value: maybe(fc.constantFrom(...GROUPS)),
    }),
  },
  fc.record({ kind: fc.constant('settings' as const), resolvers: fc.subarray(['192.0.2.53', '192.0.2.54']) }),
);

/** As the planner would: a group names rules that there are, a workload a group that there is. */
function change(plan: GatewayPlan, one: Step): void {
  const put = <T>(collection: Record<string, T>, key: string, value: T | undefined): void => {
    if (value === undefined) delete collection[key];
    else collection[key] = value;
  };
  switch (one.kind) {
    case 'service':
      put(plan.services, one.key, one.value);
      return;
    case 'rule':
      put(plan.rules, one.key, one.value);
      for (const [key, { rules, ...group }] of Object.entries(plan.groups)) {
        const cluster = rules.cluster.filter((id) => id in plan.rules);
        if (cluster.length < rules.cluster.length) plan.groups[key] = { ...group, rules: { ...rules, cluster } };
      }
      return;
    case 'group': {
      const cluster = one.value?.filter((id) => id in plan.rules) ?? [];
      const group: GroupEntry = { namespace: 'n', rules: { cluster, namespace: [], service: [] } };
      if (one.value !== undefined || !Object.values(plan.workloads).some((workload) => workload.group === one.key)) {
        put(plan.groups, one.key, one.value && group);
      }
      return;
    }
    case 'workload': {
      const like = Object.values(basePlan().workloads)[0];
      if (one.value === undefined) put(plan.workloads, one.key, undefined);
      else if (one.value in plan.groups && like !== undefined) {
        put(plan.workloads, one.key, { ...like, uid: one.key, group: one.value });
      }
      return;
    }
    case 'settings':
      if ('pool' in plan.settings)
        plan.settings = { pool: { ...plan.settings.pool, dns: { resolvers: one.resolvers } } };
  }
}

const asked = (plan: Policy): string[] => Object.keys(shareOf(plan).workloads);

t.test('step by step as at once', async () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(step, { minLength: 1, maxLength: 4 }), { minLength: 5, maxLength: 25 }),
      fc.boolean(),
      fc.boolean(),
      (rounds, known, refused) => {
        const plan = emptyGatewayPlan();
        plan.settings = basePlan().settings;
        const share = new PolicyShare();
        const other: Policy = { settings: {}, workloads: {}, groups: {}, rules: {}, services: {} };
        let before = copyPlan(plan);
        let numbers = ruleNumbers();
        const told = new Map<string, number>();
        for (const round of rounds) {
          for (const one of round) change(plan, one);
          const was = numbers;
          numbers = ruleNumbers(Object.keys(plan.rules));
          const changed = new Set<number>();
          for (const [id, number] of [...was, ...numbers]) {
            if (was.get(id) !== numbers.get(id) || before.rules[id] !== plan.rules[id]) changed.add(number);
          }
          const delta = diffPlan(before, plan);
          let result: ShareChange | undefined;
          if (refused) {
            const had = JSON.stringify(sorted([share.policy, Object.fromEntries(share.numbers)]));
            changePlan(
              other,
              share.update(plan, known ? delta : undefined, numbers, known ? changed : undefined).delta,
            );
            changePlan(other, share.undo().delta);
            const has = JSON.stringify(sorted([share.policy, Object.fromEntries(share.numbers)]));
            if (has !== had) throw new Error('not undone');
            result = share.update(plan, undefined, numbers, undefined);
          }
          result ??= share.update(plan, known ? delta : undefined, numbers, known ? changed : undefined);
          changePlan(other, result.delta);
          for (const id of result.gone) told.delete(id);
          for (const [id, number] of result.numbers) told.set(id, number);
          const expected = shareOf(plan, asked(before));
          if (JSON.stringify(sorted(share.policy)) !== JSON.stringify(sorted(expected)))
            throw new Error('its own copy differs');
          if (JSON.stringify(sorted(other)) !== JSON.stringify(sorted(expected)))
            throw new Error('another copy differs');
          const all = [DEFAULT_ACTION, ...Object.keys(expected.rules)].sort();
          if (JSON.stringify([...told.keys()].sort()) !== JSON.stringify(all))
            throw new Error('numbers of other rules');
          for (const [id, number] of told) if (numbers.get(id) !== number) throw new Error(`${id} is not ${number}`);
          if (share.asks !== Object.keys(shareOf(plan).groups).length > 0) throw new Error('asks');
          if (share.named !== Object.values(plan.services).some(({ names }) => names !== undefined))
            throw new Error('named');
          before = copyPlan(plan);
        }
      },
    ),
    { numRuns: 1500 },
  );
});

/** Whatever order its keys have. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, inner]) => [key, sorted(inner)]),
  );
}

t.test('a pod costs what it is long; nothing is there while nothing asks', async (t) => {
  const plan = emptyGatewayPlan();
  plan.settings = basePlan().settings;
  const share = new PolicyShare();
  const numbers = ruleNumbers(RULES);
  const update = (steps: Step[]) => {
    const before = copyPlan(plan);
    for (const one of steps) change(plan, one);
    return share.update(plan, diffPlan(before, plan), numbers, new Set());
  };
  const plain: RuleEntry = { context: 'cluster', name: 'x', action: 'accept', priority: 1, services: ['n/a'] };
  update([
    { kind: 'service', key: 'n/a', value: { addresses: ['192.0.2.0/24'], ports: null } },
    { kind: 'rule', key: 'cluster/r1', value: plain },
    { kind: 'group', key: 'g1', value: ['cluster/r1'] },
    { kind: 'group', key: 'g2', value: [] },
    { kind: 'workload', key: 'u1', value: 'g1' },
    { kind: 'workload', key: 'u2', value: 'g2' },
  ]);
  t.notOk(share.asks);
  t.same([share.policy.workloads, share.policy.rules, share.policy.groups], [{}, {}, {}]);
  update([{ kind: 'service', key: 'n/a', value: { addresses: [], names: ['a.test'], ports: null } }]);
  t.ok(share.asks && share.named);
  t.same(Object.keys(share.policy.workloads), ['u1']);
  t.same(Object.keys(share.policy.rules), ['cluster/r1']);
  const come = update([{ kind: 'workload', key: 'u3', value: 'g1' }]);
  t.same(Object.keys(come.delta.set), ['workloads']);
  t.same([Object.keys(come.delta.set.workloads ?? {}), come.delta.delete, come.numbers], [['u3'], {}, []]);
  const foreign = update([{ kind: 'workload', key: 'u4', value: 'g2' }]);
  t.same(foreign.delta, { set: {}, delete: {} }, 'of nobody else');
  update([{ kind: 'service', key: 'n/a', value: { addresses: ['192.0.2.0/24'], ports: null } }]);
  t.notOk(share.asks);
  t.same(Object.keys(share.policy.workloads), ['u1', 'u3'], 'for a step: their flows are on the way');
  update([]);
  t.same([share.policy.workloads, share.policy.rules, share.policy.groups], [{}, {}, {}]);
});
