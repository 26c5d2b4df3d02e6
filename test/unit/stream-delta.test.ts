/**
 * What a program hears of its plan's changes: the difference to the plan that it was given last, the same plan object
 * changed in place and only in its turn; deltas that arrive meanwhile as one; nothing where it is not known.
 */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createSecureServer, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { emptyNodePlan, type NodePlan } from '../../api/plan.ts';
import { copyPlan, type PlanDelta } from '../../api/plan-delta.ts';
import { hashPlan } from '../../api/plan-hash.ts';
import { formatUpdate, type Update } from '../../api/plan-parts.ts';
import { type ClientMessage, LineReader, parseClientMessage } from '../../api/plan-stream.ts';
import { createCa, issueCertificate, tlsOptions } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { type PlanClientOptions, startPlanClient } from '../../daemon/stream-client.ts';
import { startPlanServer } from '../../daemon/stream-server.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-stream-delta-'));
t.teardown(() => rmSync(dir, { recursive: true }));
await createCa(join(dir, 'ca'));
for (const [role, name] of [
  ['controller', 'ctl'],
  ['node', 'node-a'],
] as const) {
  await issueCertificate({ caDir: join(dir, 'ca'), outDir: join(dir, name), role, name, addresses: ['127.0.0.1'] });
}

const pod = (name: string, address = '10.244.1.2'): NodePlan['workloads'][string] => ({
  namespace: 'billing',
  name,
  uid: `uid-${name}`,
  addresses: [address],
  steer: { 4: { shard: 'main/0' } },
});
function planOf(pods: Record<string, string>): NodePlan {
  const plan = emptyNodePlan();
  for (const [name, address] of Object.entries(pods)) plan.workloads[name] = pod(name, address);
  return plan;
}
const set = (pods: Record<string, string>): PlanDelta['set'] => ({ workloads: planOf(pods).workloads });

interface Call {
  object: NodePlan;
  /** As it was then. */
  plan: NodePlan;
  generation: number;
  delta: PlanDelta | undefined;
}

/** A server and a client whose onPlan can be held, or made to fail. */
async function start(t: Test, more: Partial<PlanClientOptions<'node'>> = {}) {
  const acks: string[] = [];
  const server = await startPlanServer({
    listen: { host: '127.0.0.1', port: 0 },
    certs: join(dir, 'ctl'),
    log: silentLog(),
    onHello: () => acks.push('hello'),
    onAck: (_client, generation, error) => acks.push(error === undefined ? `ack ${generation}` : `nack ${generation}`),
    onGone: () => acks.push('gone'),
  });
  const calls: Call[] = [];
  const behaviour = { hold: undefined as Promise<void> | undefined, fail: 0 };
  const client = startPlanClient({
    role: 'node',
    name: 'node-a',
    url: `https://127.0.0.1:${server.port}`,
    certs: join(dir, 'node-a'),
    addresses: [],
    async onPlan(plan, generation, delta) {
      const before = copyPlan(plan);
      calls.push({ object: plan, plan: before, generation, delta });
      await behaviour.hold;
      t.same(plan, before, 'the plan does not change during a call');
      if (behaviour.fail-- > 0) throw new Error('no');
    },
    log: silentLog(),
    random: () => 0,
    ...more,
  });
  t.teardown(async () => {
    await client.close();
    await server.close();
  });
  return { server, client, calls, behaviour, acks, publish: server.publish.bind(server, 'node', 'node-a') };
}

async function until(done: () => boolean): Promise<void> {
  const end = performance.now() + 60_000;
  while (!done()) {
    if (performance.now() > end) throw new Error('never came');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
function gate(): { promise: Promise<void>; open(): void } {
  let open = (): void => {};
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

t.test('the difference to the plan before, which is changed in place', async (t) => {
  const { publish, calls, acks } = await start(t);
  publish(planOf({ a: '10.244.1.1' }), 1);
  await until(() => acks.includes('ack 1'));
  t.equal(calls[0]?.delta, undefined, 'nothing was known before the first plan');
  const b = planOf({ a: '10.244.1.9', b: '10.244.1.2' });
  publish(b, 2);
  await until(() => acks.includes('ack 2'));
  t.same(calls[1]?.delta, { set: set({ a: '10.244.1.9', b: '10.244.1.2' }), delete: {} });
  t.same(calls[1]?.plan, b);
  t.equal(calls[1]?.object, calls[0]?.object, 'one object');
  publish(planOf({ b: '10.244.1.2' }), 3);
  await until(() => acks.includes('ack 3'));
  t.same(calls[2]?.delta, { set: {}, delete: { workloads: ['a'] } });
});

t.test('who is forgotten is sent nothing until there is a plan again', async (t) => {
  const { server, publish, calls, acks, client } = await start(t);
  publish(planOf({ a: '10.244.1.1' }), 1);
  await until(() => acks.includes('ack 1'));
  server.forget('node', 'node-a');
  publish(planOf({ a: '10.244.1.2' }), 2);
  await until(() => acks.includes('ack 2'));
  t.ok(calls[1]?.delta, 'nobody is while it is connected');
  await client.close();
  await until(() => acks.includes('gone'));
  server.forget('node', 'node-a');
  const later: number[] = [];
  const again = startPlanClient({
    role: 'node',
    name: 'node-a',
    url: `https://127.0.0.1:${server.port}`,
    certs: join(dir, 'node-a'),
    addresses: [],
    onPlan: async (_plan, generation) => void later.push(generation),
    log: silentLog(),
  });
  t.teardown(() => again.close());
  await until(() => acks.filter((text) => text === 'hello').length === 2);
  publish(planOf({ a: '10.244.1.2' }), 3);
  await until(() => acks.includes('ack 3'));
  t.same(later, [3]);
});

t.test('after a failure the difference is not known, until a call succeeds', async (t) => {
  const { publish, calls, acks, behaviour } = await start(t);
  publish(planOf({ a: '10.244.1.1' }), 1);
  await until(() => acks.includes('ack 1'));
  behaviour.fail = 1;
  publish(planOf({ a: '10.244.1.1', b: '10.244.1.2' }), 2);
  await until(() => acks.includes('nack 2'));
  t.ok(calls.at(-1)?.delta, 'the call that failed had one');
  publish(planOf({ a: '10.244.1.1', c: '10.244.1.3' }), 3);
  await until(() => acks.includes('ack 3'));
  t.equal(calls.at(-1)?.delta, undefined);
  t.same(calls.at(-1)?.plan, planOf({ a: '10.244.1.1', c: '10.244.1.3' }), 'the whole plan is right all the same');
  publish(planOf({ a: '10.244.1.1' }), 4);
  await until(() => acks.includes('ack 4'));
  t.same(calls.at(-1)?.delta, { set: {}, delete: { workloads: ['c'] } });
});

t.test('a plan from the last run is in force: kept without a difference, or changed by one', async (t) => {
  const saved = { plan: planOf({ a: '10.244.1.1' }), generation: 7, hash: hashPlan(planOf({ a: '10.244.1.1' })) };
  const { publish, calls, acks } = await start(t, { saved });
  await until(() => acks.includes('hello'));
  publish(planOf({ a: '10.244.1.1' }), 8);
  await until(() => acks.includes('ack 8'));
  t.same(calls[0]?.delta, { set: {}, delete: {} }, 'only the generation is new');
  t.equal(calls[0]?.object, saved.plan);
  publish(planOf({ b: '10.244.1.1' }), 9);
  await until(() => acks.includes('ack 9'));
  t.same(calls[1]?.delta, { set: set({ b: '10.244.1.1' }), delete: { workloads: ['a'] } });
});

t.test('a plan is changed only in turn with whatever else reads it', async (t) => {
  let last: Promise<void> = Promise.resolve();
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const mine = last.then(work);
    last = mine;
    return mine;
  };
  const { publish, calls, acks } = await start(t, { inTurn });
  publish(planOf({ a: '10.244.1.1' }), 1);
  await until(() => acks.includes('ack 1'));
  const [call] = calls;
  const reading = gate();
  const mine = inTurn(() => reading.promise);
  publish(planOf({ b: '10.244.1.2' }), 2);
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.same(call?.object, planOf({ a: '10.244.1.1' }), 'a reader in its turn sees no change');
  t.equal(calls.length, 1);
  reading.open();
  await mine;
  await until(() => acks.includes('ack 2'));
  t.same(call?.object, planOf({ b: '10.244.1.2' }));
});

/** A controller that says what the test tells it to, whatever the client has answered. */
async function startSpeaker(t: Test) {
  const heard: ClientMessage[] = [];
  const streams: ServerHttp2Stream[] = [];
  const server = createSecureServer({ ...tlsOptions(join(dir, 'ctl')), requestCert: true });
  server.on('stream', (stream) => {
    const reader = new LineReader(1_000_000);
    stream.respond({ ':status': 200 });
    stream.on('error', () => {});
    stream.on('data', (chunk: Uint8Array) => {
      const lines = reader.push(chunk);
      for (const line of lines.ok ? lines.value : []) {
        const message = parseClientMessage(line);
        if (message.ok) heard.push(message.value);
      }
    });
    streams.push(stream);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const stream of streams) stream.session?.destroy();
    server.close();
  });
  return {
    heard,
    url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
    say: (update: Update) => streams.at(-1)?.write([...formatUpdate(update)].join('')),
    cut: () => streams.at(-1)?.session?.destroy(),
    said: (type: ClientMessage['type']) => heard.filter((message) => message.type === type),
  };
}
const HASH = 'ab'.repeat(32);
const deltas = (from: number, ...list: PlanDelta[]): Update => ({
  type: 'delta',
  from,
  generation: from + 1,
  hash: HASH.replace('ab', `${from % 10}c`),
  deltas: list,
});
const delta = (from: number, pods: Record<string, string>, gone: string[] = []): Update =>
  deltas(from, {
    set: Object.keys(pods).length > 0 ? set(pods) : {},
    delete: gone.length > 0 ? { workloads: gone } : {},
  });
const snapshot = (generation: number, plan: NodePlan): Update => ({ type: 'snapshot', generation, hash: HASH, plan });

t.test('what arrives during a call is one difference afterwards', async (t) => {
  const speaker = await startSpeaker(t);
  const { calls, behaviour } = await start(t, { url: speaker.url });
  await until(() => speaker.said('hello').length === 1);
  const held = gate();
  behaviour.hold = held.promise;
  speaker.say(snapshot(1, planOf({ a: '10.244.1.1', b: '10.244.1.2', c: '10.244.1.3' })));
  await until(() => calls.length === 1);
  speaker.say(delta(1, { a: '10.244.1.7', d: '10.244.1.4', e: '10.244.1.5' }, ['b', 'c']));
  // Set after a delete, a delete after a set; and d comes and goes unseen.
  speaker.say(delta(2, { b: '10.244.1.8' }, ['e', 'd', 'a']));
  speaker.say(delta(3, { e: '10.244.1.6' }));
  // Asked for a snapshot, the client has read them all.
  speaker.say(delta(4, { x: '10.244.1.9' }, ['d']));
  await until(() => speaker.said('resync').length === 1);
  speaker.cut();
  await until(() => speaker.said('hello').length === 2);
  const now = planOf({ b: '10.244.1.8', e: '10.244.1.6' });
  t.match(
    speaker.said('hello')[1],
    { generation: 4, hash: HASH.replace('ab', '3c') },
    'it says what it has been told; the delta that did not fit changed nothing of it',
  );
  held.open();
  await until(() => calls.length === 2);
  t.match(calls[1], { generation: 4, plan: now });
  t.same(calls[1]?.plan, now);
  t.same(calls[1]?.delta, { set: set({ b: '10.244.1.8', e: '10.244.1.6' }), delete: { workloads: ['c', 'a'] } });
});

t.test('deltas on a snapshot that waits are part of it', async (t) => {
  const speaker = await startSpeaker(t);
  const { calls, behaviour } = await start(t, { url: speaker.url });
  await until(() => speaker.said('hello').length === 1);
  const held = gate();
  behaviour.hold = held.promise;
  speaker.say(snapshot(1, planOf({ a: '10.244.1.1' })));
  await until(() => calls.length === 1);
  speaker.say(delta(1, { lost: '10.244.1.2' }));
  speaker.say(snapshot(5, planOf({ b: '10.244.1.2' })));
  speaker.say(delta(5, { c: '10.244.1.3' }, ['b']));
  speaker.say({ type: 'keep', generation: 9 });
  // An answer to this one means that it has read them all.
  speaker.say(delta(77, {}));
  await until(() => speaker.said('resync').length === 1);
  held.open();
  await until(() => speaker.said('ack').some((message) => 'generation' in message && message.generation === 9));
  t.equal(calls.length, 2);
  t.same(calls[1]?.plan, planOf({ c: '10.244.1.3' }));
  t.match(calls[1], { generation: 9 });
  t.same(
    calls[1]?.delta,
    { set: set({ c: '10.244.1.3' }), delete: { workloads: ['a'] } },
    'a snapshot too is told as a difference',
  );
  t.equal(calls[1]?.object, calls[0]?.object);
});

t.test('a delta that does not fit changes nothing and asks for a snapshot', async (t) => {
  const speaker = await startSpeaker(t);
  const { calls } = await start(t, { url: speaker.url });
  await until(() => speaker.said('hello').length === 1);
  speaker.say(delta(0, { a: '10.244.1.1' }));
  await until(() => speaker.said('resync').length === 1);
  speaker.say(snapshot(1, planOf({ a: '10.244.1.1' })));
  await until(() => speaker.said('ack').length === 1);
  const wrong: Update[] = [
    delta(3, { b: '10.244.1.2' }),
    delta(1, { b: '10.244.1.2' }, ['nobody']),
    delta(1, { b: '10.244.1.2' }, ['a', 'a']),
    deltas(1, { set: { shoes: { x: {} }, ...set({ b: '10.244.1.2' }) }, delete: {} } as never),
    deltas(1, { set: { workloads: { b: 7 } }, delete: { workloads: ['a'] } } as never),
    // The first of them fits, the second does not after it.
    deltas(1, { set: {}, delete: { workloads: ['a'] } }, { set: {}, delete: { workloads: ['a'] } }),
  ];
  for (const [index, message] of wrong.entries()) {
    speaker.say(message);
    await until(() => speaker.said('resync').length === 2 + index);
  }
  t.same(calls[0]?.object, planOf({ a: '10.244.1.1' }));
  speaker.say(delta(1, { b: '10.244.1.2' }));
  await until(() => speaker.said('ack').length === 2);
  t.same(calls[1]?.delta, { set: set({ b: '10.244.1.2' }), delete: {} });
});
