/**
 * Plans that would take most of a pool's workloads away: what counts, and the real program against real plan-stream
 * clients over loopback: what stays in force, what goes on, how it is confirmed, and what ends it otherwise.
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { emptyNodePlan, type GatewayPlan, type NodePlan } from '../../api/plan.ts';
import { runCli } from '../../cli/program.ts';
import { HeldPools } from '../../controller/held-pools.ts';
import { runController } from '../../controller/main.ts';
import { covers, describeLoss, keepInNode, lossOf } from '../../controller/plan/loss.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import type { PlanResult } from '../../controller/plan/plan.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';

t.test('what counts', async (t) => {
  const rows: [
    name: string,
    before: Record<string, number>,
    after: Record<string, number>,
    lost: object | undefined,
  ][] = [
    ['all of it', { a: 6, b: 6 }, {}, { a: 6, b: 6 }],
    ['one more than half', { a: 5, b: 6 }, { a: 5 }, { b: 6 }],
    ['half', { a: 6, b: 6 }, { a: 6 }, undefined],
    ['replaced by others of their namespace', { a: 12 }, { a: 12 }, undefined],
    ['replaced by others of another namespace', { a: 12 }, { b: 12 }, { a: 12 }],
    ['others beside them do not make up for it', { a: 12 }, { a: 2, b: 100 }, { a: 10 }],
    ['a small pool', { a: 9 }, {}, undefined],
    ['the smallest that counts', { a: 10 }, { a: 4 }, { a: 6 }],
    ['growth', { a: 10 }, { a: 100 }, undefined],
  ];
  const loss = (before: Record<string, number>, after: Record<string, number>) =>
    lossOf('p', new Map(Object.entries(before)), new Map(Object.entries(after)));
  for (const [name, before, after, lost] of rows) t.same(loss(before, after)?.lost, lost, name);
  const one = loss({ a: 8, b: 6 }, { b: 2 });
  if (one === undefined) throw new Error('no loss');
  t.equal(describeLoss(one), '12 of 14 workloads (a 8, b 4)');
  const many = { lost: { a: 1, b: 2, c: 3, d: 4, e: 5, f: 6 }, of: 30 };
  t.equal(describeLoss(many), '21 of 30 workloads (f 6, e 5, d 4, c 3, b 2 and 1 more namespaces)');
  t.ok(covers(one, { ...one, lost: { a: 7, b: 4 } }), 'less than was confirmed');
  t.notOk(covers(one, { ...one, lost: { a: 8, b: 5 } }), 'more');
  t.notOk(covers(one, { ...one, lost: { a: 8, c: 1 } }), 'another namespace');
  t.notOk(covers(one, { ...one, pool: 'q' }), 'another pool');
  t.not(one.digest, loss({ a: 8, b: 6 }, { b: 1 })?.digest);
});

t.test('what a node keeps', async (t) => {
  const entry = (name: string, address: string, shard?: string, namespace = 'a') => ({
    namespace,
    name,
    uid: name,
    addresses: [address],
    steer: { 4: shard === undefined ? ('bypass' as const) : { shard } },
  });
  const settings = (clusterCIDRs: string[]): NodePlan['settings'] => ({
    node: { node: 'n', podCIDRs: [], port: 1, mtu: null, clusterCIDRs, excludedCIDRs: [] },
  });
  const shard = { index: 1, mode: 'VXLAN' as const, vni: 1, nextHops: {} };
  const was: NodePlan = {
    ...emptyNodePlan(),
    settings: settings(['10.1.0.0/16']),
    shards: { 'p/s0': shard, 'q/s0': { ...shard, index: 2 } },
    gateways: { g: { internalAddress: '10.0.0.1', addresses: [] } },
    workloads: {
      one: entry('one', '10.1.0.1', 'p/s0'),
      two: entry('two', '10.1.0.2', 'p/s0'),
      plain: entry('plain', '10.1.0.3'),
      other: entry('other', '10.1.0.4', 'q/s0', 'b'),
    },
  };
  const next: NodePlan = {
    ...emptyNodePlan(),
    settings: settings(['10.2.0.0/16']),
    shards: { 'q/s0': { ...shard, index: 2, vni: 9 } },
    gateways: {},
    workloads: {
      one: entry('one', '10.1.0.1'),
      fresh: entry('fresh', '10.1.0.9'),
      newcomer: entry('newcomer', '10.1.0.2', 'q/s0', 'b'),
    },
  };
  const plan = { workloads: { one: {}, two: {}, plain: {} }, gateways: was.gateways } as unknown as GatewayPlan;
  const pool = { pool: 'p', served: new Map([['a', 2]]), plan, egressIPPools: [] };
  t.same(
    keepInNode(was, next, pool),
    {
      ...emptyNodePlan(),
      settings: settings(['10.1.0.0/16', '10.2.0.0/16']),
      shards: { 'p/s0': shard, 'q/s0': { ...shard, index: 2, vni: 9 } },
      gateways: was.gateways,
      workloads: {
        newcomer: next.workloads.newcomer,
        one: was.workloads.one,
        plain: was.workloads.plain,
      },
    },
    'its pods as they were but one whose address another has; no new ones; those of another pool as they are now',
  );
  t.same(keepInNode(was, emptyNodePlan(), pool).settings, was.settings);
  const spread = { ...entry('one', '10.1.0.1'), steer: { 4: { spread: 'many' } }, destinations: 't' };
  const sharing: NodePlan = {
    ...was,
    workloads: { one: spread },
    egressIPs: { many: { spread: { 4: ['p/s0'] } }, some: { destinations: ['198.51.100.0/24'] }, unused: {} },
    destinations: { t: { egressIPs: ['some'] } },
  };
  const { unused: _, ...used } = sharing.egressIPs;
  for (const known of [pool, { pool: 'p', served: pool.served, egressIPPools: [] }]) {
    const { workloads, egressIPs, destinations } = keepInNode(sharing, { ...next, workloads: {} }, known);
    t.same([workloads, egressIPs, destinations], [{ one: spread }, used, sharing.destinations], 'with what it names');
  }
  t.same(Object.keys(keepInNode(undefined, next, pool).workloads), ['newcomer'], 'a node that had nothing');
});

t.test('at once is within a minute, whatever the steps', async (t) => {
  const state = await mkdtemp(join(tmpdir(), 'sluice-confirm-'));
  t.teardown(() => rm(state, { recursive: true }));
  let now = Date.parse('2026-11-27T12:00:00Z');
  const open = () => HeldPools.open({ state, log: silentLog(), now: () => now, onConfirmed: () => undefined });
  const result = (count: number): PlanResult => {
    const plan = { shards: {} } as unknown as GatewayPlan;
    return {
      pools: new Map([['p', plan]]),
      served: new Map([['p', new Map([['a', count]])]]),
      gateways: new Map([['g', 'p']]),
      nodes: new Map(),
      statuses: new Map(),
      memory: emptyMemory(),
    } as unknown as PlanResult;
  };
  let pools = await open();
  const held = (count: number): boolean => {
    const { frozen } = pools.judge(result(count), emptyMemory(), () => undefined);
    t.same([...frozen.gateways], pools.count > 0 ? ['g'] : []);
    return pools.count > 0;
  };
  t.same([held(100), held(80), held(60), held(50)], [false, false, false, false]);
  t.ok(held(49), 'step by step');
  now += 3_600_000;
  t.ok(held(49), 'time alone does not let it through');
  await pools.close();
  pools = await open();
  t.ok(held(49), 'nor does a restart');
  t.notOk(held(60), 'it went back to what is no more than half');
  now += 121_000;
  t.notOk(held(49), 'of 60');
  now += 121_000;
  t.ok(held(20), 'of 49');
  await pools.close();
  await writeFile(join(state, 'pools.json'), '{"pools":{"p":{"served":{"a":"x"}},"q":7}}');
  pools = await open();
  t.notOk(held(1), 'a damaged file: nothing is known');
  await pools.close();
});

type Object = Record<string, unknown>;
const object = (apiVersion: string, kind: string, name: string, more: Object, namespace?: string): Object => ({
  apiVersion,
  kind,
  metadata: { name, ...(namespace !== undefined && { namespace, uid: `uid-${name}` }) },
  ...more,
});
const ours = (kind: string, name: string, spec: Object) => object('sluice.dev/v1alpha1', kind, name, { spec });
const pods = (namespace: string, net: number, count: number): Object[] =>
  Array.from({ length: count }, (_, n) =>
    object(
      'v1',
      'Pod',
      `${namespace}-${n}`,
      { spec: { nodeName: 'n1' }, status: { phase: 'Running', podIP: `10.1.${net}.${n + 1}` } },
      namespace,
    ),
  );
/** Two pools, each with a gateway, that carry namespaces by label. */
const pool = (name: string, n: number): Object[] => [
  ours('GatewayPool', name, {
    namespaceSelector: { matchLabels: { pool: name } },
    gateways: [{ name: `g-${name}`, internalAddress: `10.0.0.${n}` }],
    interfaces: { internal: 'in', external: { name: 'out' } },
    nextHops: { v4: [`10.0.0.${60 + n}`] },
    steering: { mode: 'VXLAN', vni: n },
    unassigned: 'Drop',
  }),
  ours('EgressIPPool', name, { gatewayPool: name, ranges: [`192.0.${n}.0/28`], namespaceSelector: {} }),
  ours('EgressIP', name, { pool: name, count: 1, namespaceSelector: {} }),
];
const namespace = (name: string, label: string) => ({
  ...object('v1', 'Namespace', name, {}),
  metadata: { name, labels: { pool: label } },
});

t.test('runController: what is held, what goes on, and confirm', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-confirm-'));
  const [manifests, state] = [join(root, 'manifests'), join(root, 'state')];
  const certs = (name: string) => join(root, 'certs', name);
  await mkdir(manifests);
  const caDir = certs('ca');
  await createCa(caDir);
  const issue = (role: 'controller' | 'gateway' | 'node', name: string, addresses: string[] = []) =>
    issueCertificate({ caDir, outDir: certs(name), role, name, addresses });
  await issue('controller', 'c', ['127.0.0.1']);
  for (const name of ['g-big', 'g-small']) await issue('gateway', name);
  await issue('node', 'n1');
  const write = (file: string, ...objects: Object[]) =>
    writeFile(join(manifests, file), objects.map((one) => JSON.stringify(one)).join('\n---\n'));
  const node = object('v1', 'Node', 'n1', {
    spec: { podCIDRs: ['10.1.0.0/16'] },
    status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] },
  });
  const putAll = async () => {
    await write('cluster.yaml', node, ...pool('big', 1), ...pool('small', 2));
    await write('a.yaml', namespace('a', 'big'), ...pods('a', 1, 8));
    await write('b.yaml', namespace('b', 'big'), ...pods('b', 2, 4));
    await write('c.yaml', namespace('c', 'small'), ...pods('c', 3, 2));
  };
  await putAll();

  const start = (port: number) =>
    runController({
      source: `directory:${manifests}`,
      state,
      listen: { host: '127.0.0.1', port },
      certs: certs('c'),
      metrics: { host: '127.0.0.1', port: 0 },
      log: silentLog(),
    });
  let controller = await start(0);
  const { port } = controller;
  const plans: { 'g-big'?: GatewayPlan; 'g-small'?: GatewayPlan; n1?: NodePlan } = {};
  let bigPlans = 0;
  const connect = { url: `https://127.0.0.1:${port}`, addresses: [], log: silentLog() };
  const clients = [
    ...(['g-big', 'g-small'] as const).map((name) =>
      startPlanClient({
        ...connect,
        role: 'gateway',
        name,
        certs: certs(name),
        async onPlan(plan: GatewayPlan) {
          plans[name] = structuredClone(plan);
          if (name === 'g-big') bigPlans++;
        },
      }),
    ),
    startPlanClient({
      ...connect,
      role: 'node',
      name: 'n1',
      certs: certs('n1'),
      async onPlan(plan: NodePlan) {
        plans.n1 = structuredClone(plan);
      },
    }),
  ];
  t.teardown(async () => {
    for (const client of clients) await client.close();
    await controller.close();
    await rm(root, { recursive: true });
  });
  const until = async (title: string, check: () => boolean | Promise<boolean>) => {
    const since = performance.now();
    while (!(await check()) && performance.now() - since < 60_000) await new Promise((done) => setTimeout(done, 5));
    t.ok(await check(), title);
  };
  const atNode = (): string[] => Object.keys(plans.n1?.workloads ?? {}).map((uid) => uid.replace('uid-', ''));
  const ofA = () => atNode().filter((uid) => uid.startsWith('a-')).length;
  const count = (name: 'g-big' | 'g-small') => Object.keys(plans[name]?.workloads ?? {}).length;
  const status = () => readFile(join(manifests, '.status', 'GatewayPool', 'big.yaml'), 'utf8').catch(() => '');
  const metric = async () =>
    /^sluice_controller_held_pools\S* (\d+)/m.exec(
      await (await fetch(`http://127.0.0.1:${controller.metricsPort}/metrics`)).text(),
    )?.[1];
  const confirm = async (...words: string[]) => {
    let [out, err] = ['', ''];
    const code = await runCli(['confirm', '--state', state, ...words], {
      writeOut: (text) => {
        out += text;
      },
      writeErr: (text) => {
        err += text;
      },
    });
    process.exitCode = 0;
    return { code, out, err };
  };
  await until('all pods are released', () => atNode().length === 14 && count('g-big') === 12);
  t.match(await confirm(), { code: 0, out: /^nothing is held/ });

  // A label is mistyped, and another pool changes in the same moment.
  const before = { plan: plans['g-big'], plans: bigPlans, shards: plans.n1?.shards };
  await write('a.yaml', namespace('a', 'bigg'), ...pods('a', 1, 8));
  await until('the status says so', async () => /reason: Held/.test(await status()));
  await write('c.yaml', namespace('c', 'small'), ...pods('c', 3, 3));
  await until('the other pool goes on', () => count('g-small') === 3 && atNode().includes('c-2'));
  await write('a2.yaml', ...pods('a', 1, 9).slice(8));
  await write('c.yaml', namespace('c', 'small'), ...pods('c', 3, 4));
  await until('and on', () => atNode().includes('c-3'));
  t.equal(ofA(), 8, "the node has the pool's pods, and not the new one, which would leave past the gateways");
  t.same([bigPlans, plans['g-big']], [before.plans, before.plan], 'its gateway was given nothing');
  t.same(plans.n1?.shards, before.shards);
  t.equal(await metric(), '1');
  t.match(await status(), /8 of 12 workloads \(a 8\)/);

  await write('a.yaml', namespace('a', 'big'), ...pods('a', 1, 8));
  await until('back again: nothing is held', async () => (await metric()) === '0' && atNode().includes('a-8'));
  await until('nor does the status say so', async () => !/Held/.test(await status()));
  await rm(join(manifests, 'a2.yaml'));
  await until('a pod of nine may go', () => !atNode().includes('a-8'));

  // Everything is gone, its pool too.
  await write('cluster.yaml', node, ...pool('small', 2));
  await rm(join(manifests, 'a.yaml'));
  await until('held', async () => (await metric()) === '1');
  await until('and listed', async () => (await confirm()).out.includes('big '));
  const list = await confirm();
  const digest = /big +\d+ of \d+.* ([0-9a-f]{12})\n/.exec(list.out)?.[1] ?? '';
  t.match(list.out, /^POOL +LOST +NAMESPACES +SINCE +DIGEST\nbig +1[23] of 1[23] +a [89], b 4 /);
  t.match(JSON.parse((await confirm('-o', 'json')).out), [{ pool: 'big', digest, lost: { b: 4 } }]);
  t.same(ofA(), 8, 'the node keeps them, though nothing of the pool is left');
  t.match(plans.n1?.settings, { node: { node: 'n1' } });

  // Nor does a restart forget it.
  await controller.close();
  controller = await start(port);
  await until('held after a restart', async () => (await metric()) === '1');
  await new Promise((done) => setTimeout(done, 300));
  t.equal(ofA(), 8);
  t.equal(count('g-big'), 12);
  t.equal(count('g-small'), 4);

  t.match(await confirm('big'), { code: 2, err: /POOL DIGEST/ });
  t.match(await confirm('small', digest), { code: 1, err: /nothing is held of pool small/ });
  t.match(await confirm('big', '000000000000'), { code: 1, err: /something else is held now: 1\d of 1\d workloads/ });
  t.equal(ofA(), 8);
  const now = /big .* ([0-9a-f]{12})\n/.exec((await confirm()).out)?.[1] ?? '';
  t.match(await confirm('big', now), { code: 0, out: /^confirmed: pool big loses 1\d of/ });
  await until('confirmed, it comes into force', () => count('g-big') === 0 && ofA() === 0);
  const steered = Object.values(plans.n1?.workloads ?? {}).filter(({ steer }) => typeof steer[4] === 'object');
  t.same(steered.map(({ name }) => name).sort(), ['c-0', 'c-1', 'c-2', 'c-3']);
  t.equal(plans.n1?.workloads['uid-b-0']?.steer[4], 'bypass', 'no pool carries b now, as the manifests say');
  t.equal(await metric(), '0');
  t.match(await confirm(), { code: 0, out: /^nothing is held/ });
  t.match(await confirm('--state', join(root, 'none')), { code: 1, err: /no state of a controller/ });

  // A controller that starts on an empty directory.
  await putAll();
  await until('all are there again', () => ofA() === 8 && count('g-big') === 12 && !atNode().includes('c-2'));
  const held = plans.n1;
  await controller.close();
  for (const file of ['a', 'b', 'cluster']) await rm(join(manifests, `${file}.yaml`));
  controller = await start(port);
  await until('held', async () => (await metric()) === '1');
  await new Promise((done) => setTimeout(done, 300));
  t.same(plans.n1, held, 'the node is given nothing');
  await putAll();
  await until('the directory is back', async () => (await metric()) === '0');
  await new Promise((done) => setTimeout(done, 200));
  t.same([ofA(), count('g-big')], [8, 12]);
});
