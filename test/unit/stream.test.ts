/**
 * The plan stream over real HTTP/2 and mutual TLS on 127.0.0.1, both ends in this process: what a client is sent
 * (snapshot, delta, keep), acknowledgements, reconnection, and everybody who must be refused.
 */
import { EventEmitter, once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { type ClientHttp2Session, connect } from 'node:http2';
import { createServer, type Socket, connect as tcpConnect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { NodePlan } from '../../api/plan.ts';
import { hashPlan } from '../../api/plan-hash.ts';
import {
  hitsMessage,
  LineReader,
  MAX_CLIENT_LINE,
  PLAN_STREAM_PATH,
  parseClientMessage,
} from '../../api/plan-stream.ts';
import { createCa, hasUri, issueCertificate, tlsOptions } from '../../daemon/certs.ts';
import { watchPeer } from '../../daemon/heartbeat.ts';
import { createRegistry, startHttp } from '../../daemon/http.ts';
import { formatListen, parseListen } from '../../daemon/listen.ts';
import { createLog, silentLog } from '../../daemon/log.ts';
import { type PlanClientOptions, startPlanClient } from '../../daemon/stream-client.ts';
import { type PlanPeer, type PlanServerOptions, startPlanServer } from '../../daemon/stream-server.ts';
import { planOf } from '../stream-plan.ts';

const log = process.env.STREAM_TEST_LOG === undefined ? silentLog() : createLog('test', 'debug');
const dir = mkdtempSync(join(tmpdir(), 'sluice-stream-'));
t.teardown(() => rmSync(dir, { recursive: true }));
const certs = (name: string): string => join(dir, name);

await createCa(certs('ca'));
await createCa(certs('other-ca'));
for (const [role, name, ca] of [
  ['controller', 'ctl', 'ca'],
  ['node', 'node-a', 'ca'],
  ['node', 'stranger', 'other-ca'],
  ['gateway', 'gw-a', 'ca'],
] as const) {
  await issueCertificate({ caDir: certs(ca), outDir: certs(name), role, name, addresses: ['127.0.0.1', '::1'] });
}

/** A server that writes down what happens, and a way to wait for it. */
async function startRecorder(port = 0, onHits?: PlanServerOptions['onHits']) {
  const events: string[] = [];
  const waiters = new Set<() => void>();
  const add = (event: string): void => {
    events.push(event);
    for (const wake of waiters) wake();
  };
  const peers: PlanPeer[] = [];
  const server = await startPlanServer({
    listen: { host: '127.0.0.1', port },
    certs: certs('ctl'),
    log,
    onHello: (client) => {
      peers.push(client);
      add(`hello ${client.role}/${client.name} ${client.generation}`);
    },
    onAck: (client, generation, error) =>
      add(error === undefined ? `ack ${client.name} ${generation}` : `nack ${client.name} ${generation} ${error}`),
    onGone: (client) => add(`gone ${client.name}`),
    ...(onHits === undefined ? {} : { onHits }),
  });
  return {
    server,
    events,
    peers,
    add,
    waitFor: (event: string, count = 1) => waitUntil(() => has(events, event, count), waiters, event, events),
  };
}
const has = (events: string[], event: string, count: number): boolean =>
  events.filter((item) => item.startsWith(event)).length >= count;

async function waitUntil(done: () => boolean, waiters: Set<() => void>, what: string, seen: string[]): Promise<void> {
  const until = performance.now() + 60_000;
  while (!done()) {
    if (performance.now() > until) throw new Error(`never came: ${what}; seen: ${seen.join(', ')}`);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, 50);
      const wake = (): void => {
        clearTimeout(timer);
        waiters.delete(wake);
        resolve();
      };
      waiters.add(wake);
    });
  }
}

function startClient(port: number, more: Partial<PlanClientOptions<'node'>> = {}) {
  const plans: { plan: NodePlan; generation: number }[] = [];
  const states: string[] = [];
  const client = startPlanClient({
    role: 'node',
    name: 'node-a',
    url: `https://127.0.0.1:${port}`,
    certs: certs('node-a'),
    addresses: ['10.0.0.21', 'fd00:10::21'],
    onPlan: async (plan, generation) => {
      plans.push({ plan, generation });
    },
    onState: (state) => states.push(state),
    log,
    random: () => 0,
    ...more,
  });
  return { client, plans, states };
}

t.test('a client gets a snapshot, then deltas, and acknowledges each; a cut connection is resumed', async (t) => {
  const recorder = await startRecorder();
  const { server } = recorder;
  // A proxy in between, so that the test can see the bytes' number and cut the cable.
  const sockets = new Set<Socket>();
  let received = 0;
  const proxy = createServer((inside) => {
    const outside = tcpConnect(server.port, '127.0.0.1');
    for (const socket of [inside, outside]) socket.on('error', () => {});
    inside.on('close', () => outside.destroy());
    outside.on('close', () => inside.destroy());
    outside.on('data', (chunk) => {
      received += chunk.length;
    });
    sockets.add(inside);
    inside.pipe(outside).pipe(inside);
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  const { client, plans, states } = startClient((proxy.address() as { port: number }).port);

  const many = Array.from({ length: 2_000 }, (_, i) => `pod-${i}`);
  server.publish('node', 'node-a', planOf(...many), 1);
  server.publish('node', 'node-b', planOf('not-yours'), 1);
  await recorder.waitFor('ack node-a 1');
  t.same(plans[0]?.plan, planOf(...many), 'the snapshot is the plan');
  t.same(recorder.peers[0]?.addresses, ['10.0.0.21', 'fd00:10::21']);
  t.ok(received > 100_000, 'which is large');

  received = 0;
  server.publish('node', 'node-a', planOf(...many, 'new'), 2);
  await recorder.waitFor('ack node-a 2');
  t.same(plans[1]?.plan, planOf(...many, 'new'), 'the delta gives the new plan');
  t.ok(received < 2_000, `a delta is small (${received} bytes)`);

  for (const socket of sockets) socket.destroy();
  await recorder.waitFor('gone node-a');
  received = 0;
  server.publish('node', 'node-a', planOf(...many), 3);
  await recorder.waitFor('ack node-a 3');
  t.same(plans[2]?.plan, planOf(...many));
  t.ok(received < 8_000, `after a reconnection too only the difference is sent (${received} bytes)`);
  t.same(states, ['connected', 'disconnected', 'connected']);

  for (const socket of sockets) socket.destroy();
  await recorder.waitFor('hello node/node-a 3');
  await recorder.waitFor('ack node-a 3', 2);
  t.equal(plans.length, 3, 'a plan that is in force is not applied again');
  await client.close();
  await recorder.waitFor('gone node-a', 3);
  proxy.close();
  await server.close();
});

t.test('a plan that cannot be applied is a nack with the message, tried again, and superseded', async (t) => {
  const recorder = await startRecorder();
  const { server } = recorder;
  const seen: number[] = [];
  let release = (): void => {};
  const { client } = startClient(server.port, {
    onPlan: async (_plan, generation) => {
      seen.push(generation);
      recorder.add(`applying ${generation}`);
      if (generation === 1 && seen.length < 3) throw new Error('nft run: no such chain');
      if (generation === 2) {
        await new Promise<void>((resolve) => {
          release = resolve;
        });
      }
    },
  });
  server.publish('node', 'node-a', planOf('a'), 1);
  await recorder.waitFor('nack node-a 1 nft run: no such chain');
  await recorder.waitFor('ack node-a 1');
  t.same(seen, [1, 1, 1], 'tried until it worked');
  server.publish('node', 'node-a', planOf('a', 'b'), 2);
  await recorder.waitFor('applying 2');
  for (const generation of [3, 4, 5]) server.publish('node', 'node-a', planOf('a', `c${generation}`), generation);
  release();
  await recorder.waitFor('ack node-a 5');
  t.same(seen, [1, 1, 1, 2, 5], 'one at a time, the newest wins');
  await client.close();
  await server.close();
});

t.test('a controller that starts again: the same plan is kept, another is a snapshot', async (t) => {
  const first = await startRecorder();
  const { port } = first.server;
  const saved = { generation: 7, plan: planOf('a'), hash: hashPlan(planOf('a')) };
  const { client, plans } = startClient(port, { saved });
  first.server.publish('node', 'node-a', planOf('a'), 1);
  await first.waitFor('ack node-a 1');
  t.match(first.events, ['hello node/node-a 7', 'ack node-a 1']);
  t.equal(plans[0]?.plan, saved.plan, 'the saved plan was used: nothing but "keep" was sent');
  await first.server.close();

  const second = await startRecorder(port);
  await second.waitFor('hello');
  second.server.publish('node', 'node-a', planOf('b'), 1);
  await second.waitFor('ack node-a 1');
  t.same(plans.at(-1)?.plan, planOf('b'), 'same generation, other plan: never a delta on the wrong base');
  await client.close();
  await second.server.close();
});

/** Speaks to the server without our client. */
async function speak(port: number, tls: object, ...lines: (string | Buffer)[]): Promise<string> {
  const session: ClientHttp2Session = connect(`https://127.0.0.1:${port}`, {
    checkServerIdentity: () => undefined,
    ...tls,
  });
  return new Promise((resolve) => {
    let answer = '';
    const failed = (error: NodeJS.ErrnoException): void => {
      answer ||= error.code ?? error.message;
    };
    session.on('error', failed);
    const stream = session.request({ ':method': 'POST', ':path': PLAN_STREAM_PATH }, { endStream: false });
    stream.on('error', failed);
    // Not the session's: Node 20 has none after a TLS alert.
    stream.on('close', () => {
      session.destroy();
      resolve(answer);
    });
    stream.on('response', (headers) => {
      answer = `${headers[':status']} ${headers['x-sluice-reason'] ?? ''}`.trim();
      if (headers[':status'] !== 200) session.destroy();
    });
    stream.resume();
    for (const line of lines) stream.write(line);
  });
}
const hello = (more: object = {}): string =>
  `${JSON.stringify({ type: 'hello', version: 2, role: 'node', name: 'node-a', addresses: [], generation: 0, hash: '', ...more })}\n`;

t.test('who is refused, and why', async (t) => {
  const recorder = await startRecorder();
  const { port } = recorder.server;
  const own = tlsOptions(certs('node-a'));
  const { ca } = own;
  const long = Buffer.alloc(MAX_CLIENT_LINE + 10, 0x78);
  const rows: [string, object, (string | Buffer)[], RegExp][] = [
    ['no certificate', { ca }, [hello()], /^(|ERR_SSL.*|ECONNRESET|EPIPE)$/],
    [
      'a certificate of another CA',
      { ...tlsOptions(certs('stranger')), ca },
      [hello({ name: 'stranger' })],
      /^(|ERR_SSL.*|ECONNRESET|EPIPE)$/,
    ],
    ["another node's name", own, [hello({ name: 'node-b' })], /403 the certificate is not for sluice:\/\/node\/node-b/],
    ['another role', own, [hello({ role: 'gateway' })], /403 the certificate is not for sluice:\/\/gateway\/node-a/],
    ['a node that says it is the gateway', own, [hello({ role: 'gateway', name: 'gw-a' })], /403 the certificate/],
    ['a line that never ends', own, [long], /403 a line is longer/],
    ['a line that never ends, after the hello', own, [hello(), long], /^200$/],
    ['no JSON', own, ['hello\n'], /403 a message is no JSON/],
    ['an ack before the hello', own, ['{"type":"ack","generation":1}\n'], /403 expected a hello first/],
    ['a second hello', own, [hello(), hello()], /^200$/],
    ['asking for snapshots without reading them', own, [hello(), '{"type":"resync"}\n'.repeat(50)], /^200$/],
  ];
  recorder.server.publish('node', 'node-a', planOf('a'), 1);
  for (const [name, tls, lines, expected] of rows) t.match(await speak(port, tls, ...lines), expected, name);

  const mine = { outDir: certs('stranger-here'), role: 'node' as const, name: 'stranger', addresses: [] };
  await issueCertificate({ ...mine, caDir: certs('other-ca') });
  writeFileSync(join(certs('stranger-here'), 'ca.crt'), readFileSync(join(certs('ca'), 'ca.crt')));
  // Our client in turn refuses a server whose certificate is not the controller's.
  const impostor = await startPlanServer({
    listen: { host: '127.0.0.1', port: 0 },
    certs: certs('gw-a'),
    log,
    onHello: () => t.fail('nobody says hello to an impostor'),
    onAck: () => {},
    onGone: () => {},
  });
  const { client, states } = startClient(impostor.port);
  // And one whose own certificate the controller refuses goes on trying: it may be replaced meanwhile.
  const unknown = startClient(port, { certs: certs('stranger-here'), name: 'stranger' });
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.same(states, []);
  await client.close();
  t.same(unknown.states, []);
  await issueCertificate({ ...mine, caDir: certs('ca') });
  await recorder.waitFor('hello node/stranger');
  await unknown.client.close();
  await impostor.close();
  await recorder.server.close();
});

t.test('hits: a gateway tells them, a node may not', async (t) => {
  const told: [from: string, message: unknown][] = [];
  const recorder = await startRecorder(0, (gateway, message) => told.push([gateway, message]));
  const message = hitsMessage('e1', [['cluster/a', { hits: 1, flows: 2, packets: 3, bytes: 4, lastHit: 5 }]]);
  const gateway = startPlanClient({
    role: 'gateway',
    name: 'gw-a',
    url: `https://127.0.0.1:${recorder.server.port}`,
    certs: certs('gw-a'),
    addresses: [],
    onPlan: async () => {},
    log,
    random: () => 0,
  });
  t.equal(gateway.report(message), false, 'not before it is connected');
  await recorder.waitFor('hello gateway/gw-a');
  for (let tries = 0; tries < 3000 && told.length === 0; tries++) {
    gateway.report(message);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.same(told[0], ['gw-a', message]);
  const node = startClient(recorder.server.port);
  await recorder.waitFor('hello node/node-a');
  for (let tries = 0; tries < 3000 && !node.client.report(message); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await recorder.waitFor('gone node-a');
  t.same(
    told.filter(([from]) => from !== 'gw-a'),
    [],
    'a node that tells hits is refused',
  );
  await gateway.close();
  await node.client.close();
  await recorder.server.close();
});

t.test('certificates: modes, names, and what is not issued', async (t) => {
  t.equal(statSync(join(certs('node-a'), 'tls.key')).mode & 0o777, 0o600);
  t.equal(statSync(join(certs('ca'), 'ca.key')).mode & 0o777, 0o600);
  await t.rejects(createCa(certs('ca')), /exists already/);
  const bad = { caDir: certs('ca'), outDir: certs('bad'), role: 'node' as const };
  await t.rejects(issueCertificate({ ...bad, name: 'a, URI:sluice://controller', addresses: [] }), /expected a name/);
  await t.rejects(issueCertificate({ ...bad, name: 'a', addresses: ['10.0.0.1/24'] }), /expected an IP address/);
  const names = (subjectaltname: string) => ({ subjectaltname }) as Parameters<typeof hasUri>[0];
  t.ok(hasUri(names('URI:sluice://node/a, IP Address:10.0.0.1'), 'sluice://node/a'));
  t.notOk(hasUri(names('URI:"x, URI:sluice://controller, y"'), 'sluice://controller'), 'a quoted name cannot pretend');
  t.notOk(hasUri(names('DNS:sluice://node/a'), 'sluice://node/a'));
});

t.test('messages: what the parser refuses', async (t) => {
  const rows: [string, string][] = [
    ['[]', 'is no object'],
    ['{"type":"ack","generation":-1}', 'ack: expected a generation'],
    ['{"type":"ack","generation":1e300}', 'ack: expected a generation'],
    [`{"type":"nack","generation":1,"error":"${'x'.repeat(9000)}"}`, 'nack: expected a short error text'],
    ['{"type":"__proto__"}', 'has an unknown type'],
    [hello({ version: 1 }), 'hello: expected version 2'],
    [hello({ role: 'controller' }), 'hello: expected role "gateway" or "node"'],
    [hello({ name: '../etc' }), 'hello: expected a name of lower-case letters, digits, "-" and "."'],
    [hello({ addresses: ['fe80::1%eth0'] }), 'hello: expected addresses without prefix length or zone'],
    [hello({ addresses: [{ length: 3 }] }), 'hello: expected addresses without prefix length or zone'],
    [hello({ addresses: Array(2000).fill('10.0.0.1') }), 'hello: expected at most 1024 addresses'],
    [hello({ hash: 'zz' }), 'hello: expected a hash or ""'],
  ];
  for (const [line, error] of rows) t.same(parseClientMessage(line), { ok: false, error }, line.slice(0, 60));
  const reader = new LineReader(8);
  t.same(reader.push(Buffer.from('ab')), { ok: true, value: [] });
  t.same(reader.push(Buffer.from('c\n\nde\nf')), { ok: true, value: ['abc', 'de'] });
  t.same(reader.push(Buffer.from('1234567\n')), { ok: true, value: ['f1234567'] });
  t.equal(reader.push(Buffer.from('123456789')).ok, false);
});

t.test('a session that is destroyed and has not told so yet is not pinged', async (t) => {
  const session = Object.assign(new EventEmitter(), {
    destroyed: false,
    pings: 0,
    ping(answer: (error: null) => void) {
      // As Node does.
      if (session.destroyed) throw new Error('The session has been destroyed');
      session.pings++;
      answer(null);
    },
  });
  watchPeer(session as unknown as ClientHttp2Session);
  await new Promise((done) => setTimeout(done, 1_500));
  t.equal(session.pings, 1);
  session.destroyed = true;
  await new Promise((done) => setTimeout(done, 1_000));
  t.equal(session.pings, 1);
  session.emit('close');
});

t.test('the metrics server', async (t) => {
  const registry = createRegistry('test');
  let ok = true;
  const health = () => ({ ok, detail: ok ? 'fine' : 'no plan yet' });
  const http = await startHttp({ listen: { host: '127.0.0.1', port: 0 }, registry, health, ready: health });
  const get = async (path: string, method = 'GET'): Promise<[number, string]> => {
    const response = await fetch(`http://127.0.0.1:${http.port}${path}`, { method });
    return [response.status, await response.text()];
  };
  t.match(await get('/metrics'), [200, /process_cpu_seconds_total\{program="test"\}/]);
  t.same(await get('/healthz'), [200, 'fine\n']);
  ok = false;
  t.same(await get('/readyz'), [503, 'no plan yet\n']);
  t.match(await get('/etc'), [404, /./]);
  t.match(await get('/metrics', 'POST'), [405, /./]);
  await http.close();
  for (const text of ['10.0.0.1:80', '[fd00::1]:0']) {
    const listen = parseListen(text);
    t.equal(listen.ok && formatListen(listen.value), text);
  }
  for (const text of ['10.0.0.1', 'localhost:80', 'fd00::1:80', '10.0.0.1:65536', '[10.0.0.1]:80', '010.0.0.1:80', ''])
    t.notOk(parseListen(text).ok, text);
});
