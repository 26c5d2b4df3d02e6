/**
 * Two controllers behind one address, as behind a Service: a client's stream to the one that stands by is there when the
 * leader dies, and nothing but what the leader says is ever in force. Both ends are real; which controller a connection
 * reaches is this test's choice.
 */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createSecureServer, type IncomingHttpHeaders } from 'node:http2';
import { createServer, type Socket, connect as tcpConnect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { hashPlan } from '../../api/plan-hash.ts';
import { formatUpdate } from '../../api/plan-parts.ts';
import { formatMessage, PLAN_STREAM_PATH, PLAN_STREAM_VERSION, STANDING_HEADER } from '../../api/plan-stream.ts';
import { createCa, issueCertificate, tlsOptions } from '../../daemon/certs.ts';
import { type Logger, silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { startPlanServer } from '../../daemon/stream-server.ts';
import { planOf } from '../stream-plan.ts';

t.setTimeout(120_000);
const dir = mkdtempSync(join(tmpdir(), 'sluice-standby-'));
t.teardown(() => rmSync(dir, { recursive: true }));
const certs = (name: string): string => join(dir, name);
await createCa(certs('ca'));
for (const [role, name] of [
  ['controller', 'ctl'],
  ['node', 'node-a'],
] as const)
  await issueCertificate({ caDir: certs('ca'), outDir: certs(name), role, name, addresses: ['127.0.0.1'] });

async function until(what: string, holds: () => boolean): Promise<void> {
  for (const end = performance.now() + 60_000; !holds(); await sleep(5))
    if (performance.now() > end) throw new Error(`never came: ${what}`);
}

interface Controller {
  server: Awaited<ReturnType<typeof startPlanServer>>;
  events: string[];
  leads: boolean;
}

async function startController(leads: boolean): Promise<Controller> {
  const controller = { events: [] as string[], leads } as Controller;
  controller.server = await startPlanServer({
    listen: { host: '127.0.0.1', port: 0 },
    certs: certs('ctl'),
    log: silentLog(),
    leads: () => controller.leads,
    onHello: ({ generation }) => controller.events.push(`hello ${generation}`),
    onAck: (_client, generation) => controller.events.push(`ack ${generation}`),
    onGone: () => controller.events.push('gone'),
  });
  return controller;
}

/** Where clients connect to: `to` is asked for each connection. */
async function startService(to: () => Controller) {
  const sockets = new Map<Socket, Controller>();
  const made: Controller[] = [];
  let sent = 0;
  const proxy = createServer((inside) => {
    const controller = to();
    made.push(controller);
    const outside = tcpConnect(controller.server.port, '127.0.0.1');
    for (const socket of [inside, outside]) socket.on('error', () => {});
    inside.on('close', () => {
      sockets.delete(inside);
      outside.destroy();
    });
    outside.on('close', () => inside.destroy());
    outside.on('data', (chunk) => {
      sent += chunk.length;
    });
    sockets.set(inside, controller);
    inside.pipe(outside).pipe(inside);
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  return {
    port: (proxy.address() as { port: number }).port,
    made,
    sent: () => sent,
    cut(controller: Controller) {
      for (const [socket, other] of sockets) if (other === controller) socket.destroy();
    },
    close() {
      for (const socket of sockets.keys()) socket.destroy();
      proxy.close();
    },
  };
}

function startClient(port: number) {
  const plans: { pods: string[]; generation: number }[] = [];
  const states: string[] = [];
  /** Of connections that are up, what the controller said that it was. */
  const made: string[] = [];
  const log = Object.assign(silentLog(), {
    child: () => log,
    info: ({ standing }: { standing?: string }) => standing !== undefined && made.push(standing),
  });
  const client = startPlanClient({
    role: 'node',
    name: 'node-a',
    url: `https://localhost:${port}`,
    certs: certs('node-a'),
    addresses: ['10.0.0.21'],
    onPlan: async (plan, generation) => {
      plans.push({ pods: Object.keys(plan.workloads).map((uid) => uid.slice(4)), generation });
    },
    onState: (state) => states.push(state),
    log: log as unknown as Logger,
    random: () => 0,
  });
  return { client, plans, states, made };
}

t.test('the leader dies: the stream to the other is there, and the plan is kept', async (t) => {
  const [first, second] = [await startController(true), await startController(false)];
  // The leader's address comes up three times before the other's does.
  let turn = 0;
  let other = second;
  const service = await startService(() => (turn++ < 3 ? first : other));
  const { client, plans, states, made } = startClient(service.port);
  const pods = Array.from({ length: 500 }, (_, at) => `pod-${at}`);
  first.server.publish('node', 'node-a', planOf(...pods), 7);
  second.server.publish('node', 'node-a', planOf('of-one-that-does-not-lead'), 1007);
  await until('the plan is in force', () => first.events.includes('ack 7'));
  await until('the other has a stream', () => made.length === 2);
  t.same(made, ['leads', 'stands-by']);
  t.same(first.events, ['hello 0', 'ack 7'], 'to reach the leader again on the way there disturbs nothing');
  t.same(second.events, [], 'the planner of one that stands by hears of nobody');
  first.server.publish('node', 'node-a', planOf(...pods, 'more'), 8);
  await until('the leader goes on', () => first.events.includes('ack 8'));
  t.equal(plans.length, 2);

  // Whoever is asked for a new connection from now on is not there.
  other = first;
  const connections = service.made.length;
  await first.server.close();
  await until('the client knows', () => states.at(-1) === 'waiting');
  t.equal(second.server.waiting('node'), 1, 'the stream to the other is what it was');
  second.server.publish('node', 'node-a', planOf(...pods, 'more'), 1008);
  await sleep(50);
  t.equal(plans.length, 2, 'which sends nothing until it leads');
  const sent = service.sent();
  second.leads = true;
  second.server.lead();
  await until('the other leads', () => second.events.includes('ack 1008'));
  t.same(second.events, ['hello 8', 'ack 1008'], 'by what the client holds now, not when it came');
  t.same(plans.length, 2, 'the same plan is not applied again');
  t.ok(service.sent() - sent < 2_000, `nor sent: ${service.sent() - sent} bytes`);
  t.same(states, ['connected', 'waiting', 'connected']);
  t.equal(second.server.waiting('node'), 0);
  t.ok(
    service.made.slice(connections).every((one) => one === first),
    'no new connection was needed',
  );
  second.server.publish('node', 'node-a', planOf(...pods), 1009);
  await until('and goes on', () => second.events.includes('ack 1009'));
  t.equal(plans.at(-1)?.pods.length, 500);
  await client.close();
  service.close();
  await second.server.close();
});

t.test('one that stands by is met first, and there is no other: it is waited for', async (t) => {
  const [gone, heir] = [await startController(true), await startController(false)];
  await gone.server.close();
  let turn = 0;
  const service = await startService(() => (turn++ % 2 === 0 ? heir : gone));
  const { client, plans, states } = startClient(service.port);
  await until('its stream is up', () => states.length > 0);
  await until('it looks for another', () => service.made.length > 2);
  t.same(states, ['waiting']);
  t.equal(heir.server.waiting('node'), 1);
  heir.leads = true;
  heir.server.publish('node', 'node-a', planOf('a'), 1);
  heir.server.lead();
  await until('it leads', () => heir.events.includes('ack 1'));
  t.same(plans, [{ pods: ['a'], generation: 1 }]);
  t.same(heir.events, ['hello 0', 'ack 1']);
  await client.close();
  service.close();
  await heir.server.close();
});

t.test('two that both believe to lead: the last to say so does', async (t) => {
  const [first, second] = [await startController(true), await startController(false)];
  let turn = 0;
  const service = await startService(() => (turn++ === 0 ? first : second));
  const { client, plans, states } = startClient(service.port);
  first.server.publish('node', 'node-a', planOf('a'), 1);
  await until('the plan is in force', () => first.events.includes('ack 1'));
  await until('the other has a stream', () => second.server.waiting('node') === 1);
  second.leads = true;
  second.server.publish('node', 'node-a', planOf('b'), 1001);
  second.server.lead();
  await until('the other leads', () => second.events.includes('ack 1001'));
  await until('the first has lost it', () => first.events.includes('gone'));
  first.server.publish('node', 'node-a', planOf('a', 'late'), 2);
  // What is lost is a stream to one that could lead next; it is looked for again, and one that says that it leads is believed:
  // so a controller asks itself before each answer.
  first.leads = false;
  await sleep(300);
  t.same(
    plans.map(({ pods }) => pods.join()),
    ['a', 'b'],
  );
  t.equal(states.at(-1), 'connected');
  await client.close();
  service.close();
  await first.server.close();
  await second.server.close();
});

t.test('the cable to a leader is cut: it is found again, past the one that stands by', async (t) => {
  const [leader, other] = [await startController(true), await startController(false)];
  let turn = 0;
  const service = await startService(() => (turn++ % 2 === 0 ? leader : other));
  const { client, plans, states, made } = startClient(service.port);
  leader.server.publish('node', 'node-a', planOf('a'), 1);
  await until('both streams are up', () => leader.events.includes('ack 1') && made.length === 2);
  service.cut(leader);
  await until('it is back', () => leader.events.filter((event) => event === 'ack 1').length === 2);
  t.equal(plans.length, 1);
  t.same(states, ['connected', 'waiting', 'connected']);
  t.equal(other.server.waiting('node'), 1);
  await client.close();
  service.close();
  await leader.server.close();
  await other.server.close();
});

t.test('a plan of one that says that it stands by is not taken', async (t) => {
  let streams = 0;
  const plan = planOf('a');
  const server = createSecureServer({ ...tlsOptions(certs('ctl')), requestCert: true });
  server.on('session', (session) => session.on('error', () => {}));
  server.on('stream', (stream) => {
    streams++;
    stream.on('error', () => {});
    stream.respond({ ':status': 200, [STANDING_HEADER]: 'stands-by' });
    for (const chunk of formatUpdate({ type: 'snapshot', generation: 5, hash: hashPlan(plan), plan }))
      stream.write(chunk);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { client, plans, states } = startClient((server.address() as { port: number }).port);
  await until('it comes back', () => streams > 2);
  t.same(plans, []);
  t.notOk(states.includes('connected'));
  await client.close();
  server.close();
});

t.test('one that stands by cannot keep a client that knows of no such thing', async (t) => {
  const { server } = await startController(false);
  const session = connect(`https://127.0.0.1:${server.port}`, {
    ...tlsOptions(certs('node-a')),
    checkServerIdentity: () => undefined,
  });
  const stream = session.request({ ':method': 'POST', ':path': PLAN_STREAM_PATH }, { endStream: false });
  const who = { role: 'node', name: 'node-a', addresses: [] as string[] } as const;
  stream.write(formatMessage({ type: 'hello', version: PLAN_STREAM_VERSION, ...who, generation: 0, hash: '' }));
  const [headers] = (await once(stream, 'response')) as [IncomingHttpHeaders];
  t.match(headers, { ':status': 403, 'x-sluice-reason': 'another controller leads' }, 'so that it tries again');
  session.destroy();
  await server.close();
});
