/**
 * The gateway's compiler, kept up to date step by step, against the whole of each plan: whatever changes in whatever
 * order, the table is the one that the plan alone gives, and the changes lead there from one to the next.
 */
import fc from 'fast-check';
import t from 'tap';
import type {
  Context,
  EgressIPEntry,
  GatewayPlan,
  GroupEntry,
  PortCheck,
  Redirect,
  RuleEntry,
  RuleLimits,
  ServiceEntry,
  WorkloadEntry,
} from '../../api/plan.ts';
import { changePlan, copyPlan, diffPlan } from '../../api/plan-delta.ts';
import { compileGateway, GatewayCompiler, type Machine } from '../../gateway/compile.ts';
import { LAST_HOOK } from '../../gateway/frame.ts';
import {
  changeSize,
  diffRuleset,
  type ElementsChange,
  emptyState,
  isEmptyChange,
  type Ruleset,
  scriptOf,
  type TableChange,
} from '../../kernel/nft.ts';
import { creation } from '../../kernel/nft-create.ts';
import { FakeNft } from '../../kernel/nft-fake.ts';
import { assertUntilMet } from '../draws.ts';
import { basePlan, directPlan } from '../netns/gateway-plans.ts';

const NAMES = ['a', 'b', 'c', 'd'];
const contextOf = fc.constantFrom<Context>('cluster', 'namespace', 'service');
const services = fc.oneof(
  fc.constant('*' as const),
  fc.subarray(
    NAMES.map((name) => `n/${name}`),
    { minLength: 1 },
  ),
);

const rule = fc
  .record({
    context: contextOf,
    name: fc.constantFrom(...NAMES),
    action: fc.constantFrom<RuleEntry['action']>('accept', 'accept-decisively', 'drop', 'reject'),
    services,
    mode: fc.option(fc.constant('Audit' as const), { nil: undefined, freq: 5 }),
    logging: fc.option(fc.constantFrom('All' as const, 'None' as const), { nil: undefined, freq: 4 }),
    redirect: fc.option(
      fc.record(
        {
          address: fc.constantFrom('198.51.100.90', '2001:db8:100::90'),
          port: fc.constantFrom(80, 8080),
          forbidden: fc.constant('it is the address of a pod'),
        },
        { requiredKeys: ['address'] },
      ),
      { nil: undefined, freq: 2 },
    ),
    limits: fc.option(
      fc.record(
        {
          maxConnections: fc.integer({ min: 1, max: 9 }),
          connectionsPerSecond: fc.integer({ min: 1, max: 9 }),
          bandwidth: fc.constantFrom(1e6, 5e6),
          shards: fc.subarray(['edge/s0', 'edge/s1'], { minLength: 1 }),
        },
        { requiredKeys: ['shards'] },
      ),
      { nil: undefined, freq: 2 },
    ),
  })
  .map(({ redirect, limits, mode, logging, ...rest }): RuleEntry => {
    const accepts = rest.action === 'accept' || rest.action === 'accept-decisively';
    return {
      ...rest,
      ...(rest.context !== 'cluster' && { namespace: 'n' }),
      priority: 1000,
      ...(mode && { mode }),
      ...(logging && { logging }),
      ...(redirect && accepts && { redirect }),
      ...(limits && accepts && { limits }),
    };
  });

const idOf = ({ context, name }: RuleEntry): string => `${context}/${context === 'cluster' ? '' : 'n/'}${name}`;

const limitsOfPorts = fc.option(
  fc.constantFrom([443], [80, 443]).map((ports) =>
    ports.map((at) => ({
      name: `p-${at}`,
      protocol: 6,
      ports: [[at, at + 5]] as [number, number][],
      bandwidth: at * 1e4,
      shards: ['edge/s0'],
    })),
  ),
  { nil: undefined, freq: 4 },
);

const service = fc.record({
  name: fc.constantFrom(...NAMES),
  entry: fc
    .record({
      addresses: fc.subarray(
        ['198.51.100.80/32', '198.51.100.0/24', '2001:db8:100::80/128', '198.51.100.90/32', '0.0.0.0/0'].concat(
          Array.from({ length: 12 }, (_, at) => `192.0.2.${2 * at}/32`),
        ),
      ),
      ports: fc.option(
        fc.array(
          fc.record({
            protocol: fc.constantFrom(6, 17, 132, 1, 58, 47),
            ports: fc.option(
              fc.constantFrom<[number, number][]>(
                [[80, 90]],
                [
                  [443, 443],
                  [2048, 2303],
                ],
              ),
              { nil: null, freq: 2 },
            ),
          }),
          { minLength: 1, maxLength: 4 },
        ),
        { nil: null },
      ),
      limits: limitsOfPorts,
      names: fc.option(fc.subarray(['**.example.test', '*.example.test', 'web.example.test'], { minLength: 1 }), {
        nil: undefined,
        freq: 2,
      }),
      checks: fc.option(
        fc.constantFrom<PortCheck[]>(
          [{ protocol: 6, ports: [[443, 443]], application: 'TLS', implied: true }],
          [{ protocol: 6, ports: [[80, 85]], application: 'HTTP' }],
          [{ protocol: 17, ports: null, application: 'QUIC' }],
        ),
        { nil: undefined, freq: 2 },
      ),
    })
    .map(({ limits, names, checks, ...rest }) => ({
      ...rest,
      ...(limits && { limits }),
      ...(names && { names: names.sort() }),
      ...(checks && { checks }),
    })) as fc.Arbitrary<ServiceEntry>,
});

type Edit = (plan: GatewayPlan) => void;

const groupEdit = fc
  .record({ key: fc.constantFrom('n/1', 'n/2', 'm/1'), audit: fc.boolean(), order: fc.nat(3), gone: fc.boolean() })
  .map(
    ({ key, audit, order, gone }): Edit =>
      (plan) => {
        const used = Object.values(plan.workloads).some(({ group }) => group === key);
        if (gone && !used) {
          delete plan.groups[key];
          return;
        }
        const ids = Object.keys(plan.rules);
        const of = (context: Context): string[] => {
          const list = ids.filter((id) => id.startsWith(`${context}/`)).sort();
          return order % 2 === 0 ? list.slice(0, order + 1) : list.reverse();
        };
        plan.groups[key] = {
          namespace: key[0] ?? '',
          ...(audit && { audit }),
          rules: { cluster: of('cluster'), namespace: of('namespace'), service: of('service') },
        };
      },
  );

const workloadEdit = fc
  .record({
    at: fc.nat(5),
    group: fc.nat(2),
    node: fc.constantFrom('node-a', 'node-b', 'node-x'),
    v6: fc.boolean(),
    egress: fc.constantFrom('203.0.113.101', '203.0.113.102', ''),
    gone: fc.boolean(),
    /** Another's addresses too, or its own once more. */
    claims: fc.option(fc.nat(5), { nil: undefined, freq: 3 }),
  })
  .map(
    ({ at, group, node, v6, egress, gone, claims }): Edit =>
      (plan) => {
        const uid = `uid-${at}`;
        const groups = Object.keys(plan.groups);
        const key = groups[group % groups.length];
        if (gone || key === undefined) {
          delete plan.workloads[uid];
          return;
        }
        const entry: WorkloadEntry = {
          namespace: key[0] ?? '',
          name: uid,
          uid,
          node,
          services: [],
          addresses: [at, claims ?? []]
            .flat()
            .flatMap((own) => [`10.244.1.${100 + own}`, ...(v6 ? [`fd00:244:1::${100 + own}`] : [])]),
          group: key,
          egress: egress === '' ? {} : { 4: { address: egress, shard: 's0' } },
        };
        plan.workloads[uid] = entry;
      },
  );

/** An EgressIP changes, comes or goes, and a table; of some workloads. What workloads name stays. */
const egressIPEdit = fc
  .record({
    name: fc.constantFrom('e', 'f', 'g'),
    spread: fc.option(fc.subarray(['203.0.113.101', '203.0.113.102', '203.0.113.110']), { nil: undefined }),
    destinations: fc.option(fc.subarray(['198.51.100.0/24', '198.51.100.80/32', '0.0.0.0/0', '2001:db8:100::/64']), {
      nil: undefined,
    }),
    limit: fc.option(fc.integer({ min: 1, max: 9 }), { nil: undefined }),
    allocation: fc.option(fc.constant('PerPod' as const), { nil: undefined }),
    names: fc.subarray(['e', 'f', 'g']),
    table: fc.constantFrom('t', 'u'),
    uses: fc.record({ at: fc.nat(5), egressIP: fc.boolean(), table: fc.boolean() }),
  })
  .map(
    ({ name, spread, destinations, limit, allocation, names, table, uses }): Edit =>
      (plan) => {
        const entry: EgressIPEntry = {
          ...(allocation && { allocation }),
          ...(destinations && { destinations }),
          ...(limit !== undefined && { limits: { maxConnections: limit, shards: ['edge/s0', 'edge/s1'] } }),
        };
        if (spread !== undefined) entry.spread = { 4: spread.map((address, at) => ({ address, shard: `s${at % 2}` })) };
        plan.egressIPs[name] = entry;
        plan.destinations[table] = { egressIPs: names.filter((other) => plan.egressIPs[other] !== undefined) };
        const workload = plan.workloads[`uid-${uses.at}`];
        if (workload === undefined) return;
        const { egressIP: _, destinations: __, elsewhere: ___, ...rest } = workload;
        plan.workloads[workload.uid] = {
          ...rest,
          ...(uses.egressIP && { egressIP: name }),
          ...(uses.table && {
            destinations: table,
            elsewhere: { [name]: { 4: { address: '203.0.113.103', shard: 's0' } } },
          }),
        };
        const kept = Object.values(plan.workloads).flatMap(({ egressIP, elsewhere }) => [
          egressIP ?? [],
          Object.keys(elsewhere ?? {}),
        ]);
        const used = new Set([...kept.flat(2), ...Object.values(plan.destinations).flatMap((t) => t.egressIPs)]);
        for (const other of ['e', 'f', 'g']) if (!used.has(other)) delete plan.egressIPs[other];
      },
  );

const ruleEdit = fc.record({ rule, gone: fc.boolean() }).map(
  ({ rule: entry, gone }): Edit =>
    (plan) => {
      const id = idOf(entry);
      if (!gone) {
        plan.rules[id] = entry;
        return;
      }
      delete plan.rules[id];
      for (const [key, group] of Object.entries(plan.groups)) {
        const without = (ids: string[]): string[] => ids.filter((other) => other !== id);
        const { cluster, namespace, service: last } = group.rules;
        const rules = { cluster: without(cluster), namespace: without(namespace), service: without(last) };
        plan.groups[key] = { ...group, rules } satisfies GroupEntry;
      }
    },
);

const serviceEdit = fc.record({ service, gone: fc.boolean() }).map(
  ({ service: { name, entry }, gone }): Edit =>
    (plan) => {
      if (gone) delete plan.services[`n/${name}`];
      else plan.services[`n/${name}`] = entry;
    },
);

const egressEdit = fc
  .record({ egress: fc.constantFrom(1e6, 2e6), both: fc.boolean(), gone: fc.boolean(), two: fc.boolean() })
  .map(
    ({ egress, both, gone, two }): Edit =>
      (plan) => {
        const addresses = ['203.0.113.101', ...(two ? ['203.0.113.102'] : [])];
        const bandwidth = { egress, ...(both && { ingress: 3e6 }), addresses, shards: ['edge/s0'] };
        if (gone) delete plan.egressIPs.one;
        else plan.egressIPs.one = { bandwidth };
      },
  );

const placeEdit = fc.constantFrom<Edit[]>(
  (plan) => {
    plan.nodes['node-x'] = { addresses: ['10.0.0.29'], podCIDRs: ['10.244.9.0/24'] };
  },
  (plan) => {
    plan.nodes['node-x'] = { addresses: ['fd00:10::29'], podCIDRs: [] };
  },
  (plan) => {
    delete plan.nodes['node-x'];
  },
  (plan) => {
    for (const [name, shard] of Object.entries(plan.shards)) {
      plan.shards[name] = { ...shard, egressIPs: [...shard.egressIPs].reverse().slice(0, 1) };
    }
  },
  (plan) => {
    if (!('pool' in plan.settings)) return;
    const { defaultAction, ...rest } = plan.settings.pool;
    plan.settings = { pool: { ...rest, defaultAction: defaultAction === 'Drop' ? 'Accept' : 'Drop' } };
  },
  (plan) => {
    if (!('pool' in plan.settings)) return;
    const { dns, ...rest } = plan.settings.pool;
    plan.settings = { pool: dns === undefined ? { ...rest, dns: { resolvers: [], strict: true } } : rest };
  },
  (plan) => {
    const { settings } = directPlan(copyPlan(basePlan()));
    if ('pool' in settings) plan.settings = { pool: { ...settings.pool } };
  },
);

const edit = fc.oneof(
  { weight: 4, arbitrary: ruleEdit },
  { weight: 3, arbitrary: serviceEdit },
  { weight: 4, arbitrary: groupEdit },
  { weight: 4, arbitrary: workloadEdit },
  { weight: 1, arbitrary: egressEdit },
  { weight: 3, arbitrary: egressIPEdit },
  { weight: 1, arbitrary: placeEdit },
);
const machine: fc.Arbitrary<Machine> = fc.record({
  reversePathFilter: fc.boolean(),
  heldShards: fc.subarray(['s0', 's1']),
});
const stepOf = (minLength: number, maxLength: number) =>
  fc.record({ edits: fc.array(edit, { minLength, maxLength }), machine, told: fc.boolean() });
/** The first makes a plan of it in which there is something of everything. */
const steps = fc
  .tuple(stepOf(12, 40), fc.array(stepOf(1, 6), { minLength: 1, maxLength: 11 }))
  .map(([first, rest]) => [first, ...rest]);

/** Plain, and in one order. */
function plain({ sets, chains, ...rest }: Ruleset): unknown {
  const sorted = <T>(record: Record<string, T>): [string, T][] =>
    Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1));
  return {
    ...rest,
    chains: sorted(chains),
    sets: sorted(sets).map(([name, { elements, ...head }]) => [name, head, [...elements].sort()]),
  };
}

/** Elements of which set come first makes no difference, nor in which part. */
function bySet({ later, ...change }: TableChange): TableChange {
  const sets = new Map<string, ElementsChange>();
  for (const { set, shape, elements } of [change.elementsIn, ...(later ?? [])].flat()) {
    sets.set(set, { set, shape, elements: [...(sets.get(set)?.elements ?? []), ...elements] });
  }
  return { ...change, elementsIn: [...sets.values()].toSorted((a, b) => (a.set < b.set ? -1 : 1)) };
}

/** Rules want one number, groups one or the next: who comes or goes moves others (gateway/marks.ts). */
const ALIKE = [
  ['r24735', 'n/103615'],
  ['r39104', 'n/203574'],
  ['r47674', 'n/114491'],
] as const;

t.setTimeout(570_000);

t.test('what is moved to another number by others is compiled again', async (t) => {
  const numbers = (plan: GatewayPlan): unknown => [...compileGateway(plan).ruleNumbers].sort();
  let moves = 0;
  fc.assert(
    fc.property(fc.array(fc.nat(ALIKE.length - 1), { maxLength: 9 }), (list) => {
      const plan = basePlan();
      const compiler = new GatewayCompiler();
      compiler.update(plan, undefined);
      for (const at of list) {
        const [name, key] = ALIKE[at] ?? ALIKE[0];
        const [id, uid, next] = [`namespace/n/${name}`, `uid-${at}`, copyPlan(plan)];
        if (plan.rules[id] === undefined) {
          next.rules[id] = {
            context: 'namespace',
            namespace: 'n',
            name,
            action: 'accept',
            priority: 1,
            services: '*',
            limits: { maxConnections: at + 1 },
          };
          next.groups[key] = { namespace: 'n', rules: { cluster: [], namespace: [id], service: [] } };
          next.workloads[uid] = {
            namespace: 'n',
            name: uid,
            uid,
            node: 'node-a',
            services: [],
            addresses: [`10.244.1.${100 + at}`],
            group: key,
            egress: {},
          };
        } else {
          delete next.rules[id];
          delete next.groups[key];
          delete next.workloads[uid];
        }
        const now = compileGateway(next).ruleNumbers;
        const moved = (other: string): boolean => other !== id && compiler.numbers.get(other) !== now.get(other);
        if (Object.keys(plan.rules).some(moved)) moves++;
        const delta = diffPlan(plan, next);
        changePlan(plan, delta);
        compiler.update(plan, delta);
        if (JSON.stringify(plain(compiler.table.ruleset())) !== JSON.stringify(plain(compileGateway(plan).ruleset)))
          return false;
      }
      return JSON.stringify([...compiler.numbers].sort()) === JSON.stringify(numbers(plan));
    }),
    { numRuns: 30 },
  );
  t.ok(moves > 10, `${moves} moves`);
});

/** What of a plan the kernel decides by; the compiler of TypeScript sees to it that none is forgotten here. */
const fields: {
  rules: Record<keyof RuleEntry, true>;
  redirect: Record<keyof Redirect, true>;
  limits: Record<keyof RuleLimits, true>;
  services: Record<keyof ServiceEntry, true>;
  groups: Record<keyof GroupEntry, true>;
  egressIPs: Record<keyof EgressIPEntry, true>;
  workloads: Record<keyof WorkloadEntry, true>;
} = {
  rules: {
    context: true,
    namespace: true,
    name: true,
    action: true,
    mode: true,
    logging: true,
    priority: true,
    services: true,
    redirect: true,
    limits: true,
  },
  redirect: { address: true, port: true, forbidden: true },
  limits: { connectionsPerSecond: true, maxConnections: true, bandwidth: true, shards: true },
  services: { addresses: true, names: true, ports: true, checks: true, limits: true },
  groups: { namespace: true, audit: true, rules: true },
  egressIPs: { allocation: true, spread: true, destinations: true, limits: true, bandwidth: true },
  workloads: {
    namespace: true,
    name: true,
    uid: true,
    node: true,
    services: true,
    addresses: true,
    group: true,
    egress: true,
    egressIP: true,
    destinations: true,
    elsewhere: true,
  },
};

/** Counts the fields that the plan's objects have, and of rules which actions in which contexts, of services protocols. */
function note(plan: GatewayPlan, met: Map<string, number>): void {
  const add = (what: string): void => {
    met.set(what, (met.get(what) ?? 0) + 1);
  };
  const addAll = (kind: keyof typeof fields, object: object | undefined): void => {
    for (const field of Object.keys(object ?? {})) add(`${kind}.${field}`);
  };
  for (const entry of Object.values(plan.rules)) {
    addAll('rules', entry);
    addAll('redirect', entry.redirect);
    addAll('limits', entry.limits);
    add(`${entry.action} in ${entry.context}`);
  }
  for (const entry of Object.values(plan.services)) {
    addAll('services', entry);
    for (const { protocol, ports } of entry.ports ?? []) add(`protocol ${protocol}${ports === null ? '' : ' ports'}`);
  }
  for (const kind of ['groups', 'egressIPs', 'workloads'] as const) {
    for (const entry of Object.values(plan[kind])) addAll(kind, entry);
  }
}

t.test('step by step is as good as all at once', async (t) => {
  const met = new Map<string, number>();
  const wanted = [
    ...Object.entries(fields).flatMap(([kind, names]) => Object.keys(names).map((name) => `${kind}.${name}`)),
    ...['accept', 'accept-decisively', 'drop', 'reject'].flatMap((action) =>
      ['cluster', 'namespace', 'service'].map((context) => `${action} in ${context}`),
    ),
    ...[6, 17, 132, 1, 58].flatMap((protocol) => [`protocol ${protocol}`, `protocol ${protocol} ports`]),
    'protocol 47',
  ];
  const unmet = (): string[] => wanted.filter((what) => (met.get(what) ?? 0) < 3);
  const property = fc.asyncProperty(steps, fc.constantFrom(1, 6, 64), async (list, compared) => {
    const plan = basePlan();
    const compiler = new GatewayCompiler({ compared });
    const kernel = new FakeNft();
    compiler.update(plan, undefined);
    await kernel.run(compiler.table.takeWhole());
    for (const { edits, machine: facts, told } of list) {
      const next = copyPlan(plan);
      for (const change of edits) change(next);
      const delta = diffPlan(plan, next);
      changePlan(plan, delta);
      note(plan, met);
      compiler.update(plan, told ? delta : undefined, facts);
      compiler.guard(false);
      await kernel.run(compiler.table.take());
      const whole = compileGateway(plan, facts, { compared });
      t.strictSame(plain(compiler.table.ruleset()), plain(whole.ruleset));
      t.strictSame(bySet(compiler.table.takeWhole()), bySet(diffRuleset(emptyState(), compiler.table.ruleset())));
      const there = await kernel.list('inet', 'sluice');
      t.strictSame(diffRuleset(there, whole.ruleset), diffRuleset(there, compiler.table.ruleset()));
      t.equal(diffRuleset(there, whole.ruleset).rules.length, 0);
      t.strictSame(diffRuleset(there, whole.ruleset).elementsIn, []);
      t.strictSame(diffRuleset(there, whole.ruleset).elementsOut, []);
      t.strictSame([...there.chains.keys()].sort(), Object.keys(whole.ruleset.chains).sort());
      t.equal(whole.ruleset.chains[LAST_HOOK] !== undefined, true);
      t.equal(compiler.workloads, Object.keys(plan.workloads).length);
      const all = Object.values(plan.workloads);
      const contested = new Set<string>();
      for (const address of all.flatMap(({ addresses }) => addresses)) {
        const [first, second] = all.filter(({ addresses }) => addresses.includes(address));
        if (second !== undefined) contested.add(address);
        t.equal(compiler.workloadOf(address), second === undefined ? first : undefined, address);
      }
      t.strictSame(compiler.contested.map(({ address }) => address).sort(), [...contested].sort());
    }
  });
  await assertUntilMet(property, () => unmet().length === 0, { numRuns: 30 });
  t.same(unmet(), [], 'every field, every action in each context and every protocol was met');
});

t.test('a table that is created in parts is the same, and in force only at the end', async (t) => {
  const plan = basePlan();
  for (let at = 0; at < 12_000; at++) {
    plan.workloads[`uid-${at}`] = {
      namespace: 'n',
      name: `p-${at}`,
      uid: `uid-${at}`,
      node: 'node-a',
      services: [],
      addresses: [`10.244.${at >> 8}.${at & 255}`],
      group: 'g-pay',
      egress: { 4: { address: '203.0.113.101', shard: 's0' } },
    };
  }
  const { ruleset } = compileGateway(plan);
  const whole = diffRuleset(emptyState(), ruleset);
  const parts = [...creation(whole)];
  t.ok(parts.length > 5);
  const [one, other] = [new FakeNft(), new FakeNft()];
  await one.run(whole);
  for (const [at, part] of parts.entries()) {
    t.ok(changeSize(part) <= 16_000, 'a part is not big');
    t.equal(
      part.chains.some(({ hook }) => hook !== undefined),
      at === parts.length - 1,
      'base chains come last',
    );
    await other.run(part);
  }
  t.same(await other.list('inet', 'sluice'), await one.list('inet', 'sluice'));
});

t.test('a table of many workloads is told in parts', async (t) => {
  const plan = basePlan();
  const [some] = Object.values(plan.workloads);
  if (some === undefined) throw new Error('no workload');
  for (let at = 0; at < 5_000; at++) {
    const uid = `u-many-${at}`;
    plan.workloads[uid] = {
      ...some,
      uid,
      name: uid,
      addresses: [`10.99.${at >> 8}.${at & 255}`, `fd99::${at.toString(16)}`],
    };
  }
  const compiler = new GatewayCompiler();
  compiler.update(plan, undefined);
  const change = compiler.table.takeWhole();
  const before = changeSize(change);
  const script = scriptOf(change);
  t.ok((change.later?.size ?? 0) > 16_000, 'most is told later');
  t.equal(changeSize(change), before + (change.later?.size ?? 0), 'and counted when it was');
  const told = (parts: Iterable<TableChange>): number =>
    [...parts].flatMap(({ elementsIn }) => elementsIn).reduce((sum, { elements }) => sum + elements.length, 0);
  const whole = bySet(compiler.table.takeWhole());
  t.equal(
    told(creation(compiler.table.takeWhole())),
    told([whole]),
    'all of it is in the parts in which it is created',
  );
  const kernel = new FakeNft();
  await kernel.run(compiler.table.takeWhole());
  const there = await kernel.list('inet', 'sluice');
  t.ok(isEmptyChange(diffRuleset(there, compiler.table.ruleset())), 'all of it is there');
  t.match(script, /fd99::1387\b/, 'in the script too');
});
