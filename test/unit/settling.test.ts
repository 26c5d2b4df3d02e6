/**
 * The first moments of a controller that has lost its memory: nodes keep the pods that they steer until gateways have said what they
 * have in force, and addresses that gateways have rest. Real streams; the programs at their ends are these tests.
 */
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { type EgressIPPool, parseObject } from '../../api/kinds.ts';
import { emptyGatewayPlan, type GatewayPlan, type NodePlan, type PlanOf, type PlanRole } from '../../api/plan.ts';
import { formatMessage, HOLDS_AT_ONCE, holdsMessages, MAX_HOLDS, parseClientMessage } from '../../api/plan-stream.ts';
import { type Controller, runController } from '../../controller/main.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { heldAddresses, withResting } from '../../controller/plan/resting.ts';
import { Settling } from '../../controller/settling.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { examplesFolder } from '../sluice.ts';

/** Manifests of the lab's default topology. */
const labManifests = join(examplesFolder, '..', 'lab', 'manifests');

t.setTimeout(120_000);

interface Held<R extends PlanRole> {
  plan: PlanOf[R];
  generation: number;
  hash: string;
}

t.test('a node keeps its pods until gateways have spoken', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-settling-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const certs = (name: string) => join(root, 'certs', name);
  await createCa(certs('ca'));
  const issue = (role: 'controller' | PlanRole, name: string) =>
    issueCertificate({ caDir: certs('ca'), outDir: certs(name), role, name, addresses: ['127.0.0.1'] });
  await issue('controller', 'ctl');
  await issue('node', 'node-a');
  for (const name of ['gw-a', 'gw-b', 'gw-c']) await issue('gateway', name);
  const manifests = join(root, 'manifests');
  await cp(labManifests, manifests, { recursive: true });
  const start = (state: string, port: number): Promise<Controller> =>
    runController({
      source: `directory:${manifests}`,
      state: join(root, state),
      listen: { host: '127.0.0.1', port },
      certs: certs('ctl'),
      log: silentLog(),
    });
  const held = new Map<string, Held<PlanRole>>();
  /** Pods that the node had, at each plan. */
  const steered: number[] = [];
  const client = <R extends PlanRole>(role: R, name: string, port: number) => {
    const saved = held.get(name) as Held<R> | undefined;
    return startPlanClient<R>({
      role,
      name,
      url: `https://127.0.0.1:${port}`,
      certs: certs(name),
      addresses: [],
      ...(saved !== undefined && { saved }),
      log: silentLog(),
      async onPlan(plan, generation, _delta, hash) {
        held.set(name, { plan: structuredClone(plan), generation, hash } as Held<PlanRole>);
        if (role === 'node') steered.push(Object.keys((plan as NodePlan).workloads).length);
      },
    });
  };
  const gateways = ['gw-a', 'gw-b', 'gw-c'];
  const pods = () => steered.at(-1) ?? 0;
  const until = async (what: string, holds: () => boolean): Promise<void> => {
    for (const end = performance.now() + 30_000; !holds() && performance.now() < end; ) await sleep(5);
    t.ok(holds(), what);
  };

  const first = await start('state', 0);
  const clients = [
    ...gateways.map((name) => client('gateway', name, first.port)),
    client('node', 'node-a', first.port),
  ];
  await until('pods are steered', () => pods() >= 2);
  const before = pods();
  await first.close();
  await Promise.all(clients.map((one) => one.close()));

  const second = await start('another-state', first.port);
  t.teardown(() => second.close());
  const node = client('node', 'node-a', first.port);
  t.teardown(() => node.close());
  const since = steered.length;
  await sleep(1_500);
  t.same(steered.slice(since), [], 'what it steers is left to it while no gateway is there');
  const back = gateways.map((name) => client('gateway', name, first.port));
  t.teardown(async () => {
    for (const one of back) await one.close();
  });
  await sleep(6_000);
  t.ok(
    steered.slice(since).every((count) => count >= before),
    `and no plan took any away: ${steered.slice(since)}`,
  );
  await writeFile(
    join(manifests, 'more.yaml'),
    JSON.stringify({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'pay-9', namespace: 'billing', uid: '00000000-0000-4000-8000-000000000099' },
      spec: { nodeName: 'node-a' },
      status: { phase: 'Running', podIP: '10.244.1.99', podIPs: [{ ip: '10.244.1.99' }] },
    }),
  );
  await until('and it goes on', () => pods() === before + 1);
});

t.test('one that holds nothing, or waits for nobody, is not kept waiting', async (t) => {
  const settling = new Settling(() => {});
  t.teardown(() => settling.close());
  const hello = (role: PlanRole, name: string, generation: number) =>
    settling.hello({ role, name, addresses: [], generation, hash: '' });
  hello('node', 'new', 0);
  hello('node', 'old', 7);
  t.same(
    [settling.waits('new', 3), settling.waits('old', 3), settling.waits('old', 0), settling.waits('unheard', 3)],
    [false, true, false, false],
  );
  const asked = settling.gateways(() => new Set(['gw-a', 'gw-b']));
  let done = false;
  void asked.then(() => {
    done = true;
  });
  settling.heard('gw-a');
  await sleep(20);
  t.notOk(done);
  settling.heard('gw-b');
  await asked;
  const began = performance.now();
  await settling.gateways(() => new Set(['never']));
  t.ok(performance.now() - began < 5_000, 'nor for ever for one that does not come');
});

t.test('what gateways have, and nobody knows of, rests', (t) => {
  const parsed = parseObject({
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'EgressIPPool',
    metadata: { name: 'public' },
    spec: { gatewayPool: 'edge', ranges: ['203.0.113.96/28'], exclude: ['203.0.113.97'], namespaceSelector: {} },
  });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
  const pools = [parsed.value as EgressIPPool];
  const held = heldAddresses({ '203.0.113.98': 'billing', '203.0.113.97': 'x', '10.0.0.31': '', nonsense: '' }, pools);
  t.same(held, [{ address: '203.0.113.98', pool: 'public', owner: 'billing' }]);
  const memory = withResting(emptyMemory(), held, 5);
  t.same(memory.allocations, { '203.0.113.98': { pool: 'public', owner: 'billing', releasedAt: 5 } });
  t.equal(withResting(memory, held, 9), memory, 'what is known stays as it is');
  t.end();
});

t.test('what a gateway says of its egress IPs', (t) => {
  const plan: GatewayPlan = emptyGatewayPlan();
  t.same(holdsMessages(plan), [{ type: 'holds', addresses: {}, more: false }]);
  const addresses = Array.from({ length: HOLDS_AT_ONCE + 1 }, (_, at) => `10.0.${at >> 8}.${at & 255}`);
  const owners = Object.fromEntries(addresses.map((address) => [address, 'a'.repeat(253)]));
  plan.shards = { s0: { index: 1, nextHops: {}, order: ['gw-a'], egressIPs: addresses, owners } };
  const messages = holdsMessages(plan);
  const read = messages.map((message) => parseClientMessage(formatMessage(message).trim()));
  t.same(
    read.map(
      (one) => one.ok && one.value.type === 'holds' && [Object.keys(one.value.addresses).length, one.value.more],
    ),
    [
      [HOLDS_AT_ONCE, true],
      [1, false],
    ],
    'in lines that are read again',
  );
  const longest = `${'a'.repeat(253)}/${'b'.repeat(63)}/${'c'.repeat(253)}`;
  const most = Object.fromEntries(
    addresses.slice(1).map((_, at) => [`2001:db8:1111:1111:1111:1111:1111:${at + 4096}`, longest]),
  );
  t.ok(
    parseClientMessage(formatMessage({ type: 'holds', addresses: most, more: true }).trim()).ok,
    'whatever the names',
  );
  for (const [addresses, error] of [
    [{ '10.0.0.1/32': '' }, /addresses/],
    [{ '10.0.0.1': 'Not A Name' }, /names/],
    [{ '10.0.0.1': 7 }, /names/],
    [['10.0.0.1'], /addresses/],
    [
      Object.fromEntries(Array.from({ length: MAX_HOLDS + 1 }, (_, at) => [`10.0.${at >> 8}.${at & 255}`, ''])),
      /at most/,
    ],
  ] as const) {
    const parsed = parseClientMessage(JSON.stringify({ type: 'holds', addresses, more: false }));
    t.match(parsed.ok ? '' : parsed.error, error);
  }
  t.end();
});
