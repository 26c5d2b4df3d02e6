/**
 * Gateways that share names, over real mutual TLS on loopback: what one learns the others have before the answer is let on;
 * who is silent, gone, somebody else or speaks nonsense; plans that change; the disk.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { connect, type TLSSocket } from 'node:tls';
import t from 'tap';
import { createCa, issueCertificate, tlsOptions } from '../../daemon/certs.ts';
import { ACK_MS } from '../../gateway/names/sharing.ts';
import { connected, createWorld, type Gateway, planOf, startGateway, until } from './names-world.ts';

const world = await createWorld(t, 81, ['gw-a', 'gw-b', 'gw-c']);
const { addresses } = world;
const only = (...names: string[]): Record<string, string> =>
  Object.fromEntries(names.map((name) => [name, addresses[name] ?? '']));
const plan = planOf({ gateways: addresses });
const skips = (gateway: Gateway, labels: Record<string, string>): Promise<number> =>
  gateway.metric('sluice_gateway_names_acks_skipped_total', labels);

async function start(names: string[], of = planOf({ gateways: only(...names) })): Promise<Gateway[]> {
  const gateways = await Promise.all(names.map((name) => startGateway(world, name)));
  for (const { names: service } of gateways) service.plan(of);
  for (const gateway of gateways) await connected(gateway, names.length - 1);
  return gateways;
}
const stop = (gateways: Gateway[]): Promise<unknown> => Promise.all(gateways.map(({ names }) => names.close()));

t.test('what one gateway learns the others have before the answer is let on', async (t) => {
  const gateways = await start(['gw-a', 'gw-b', 'gw-c']);
  const [a, b, c] = gateways as [Gateway, Gateway, Gateway];
  let inTime = 0;
  for (const [at, gateway] of gateways.entries()) {
    for (let answer = 1; answer <= 50; answer++) {
      const address = `198.51.100.${answer}`;
      const skipped = await skips(gateway, {});
      await gateway.teach(`www${at}.example.com alias${at}.example.com`, `${address} 2001:db8::${answer}`);
      // All three share a thread here, and two cores with whatever else runs.
      if ((await skips(gateway, {})) > skipped) continue;
      inTime++;
      for (const other of gateways) {
        if (!other.has(`alias${at}.example.com`, `2001:db8::${answer}`)) t.fail(`${at}: not everywhere`);
        if (!other.has(`www${at}.example.com`, address)) t.fail(`${at}: not everywhere`);
      }
    }
  }
  t.ok(inTime > 100, `${inTime} answers of 150 in time`);
  const heard = (gateway: Gateway, name: string): number =>
    gateway.posted.findIndex(({ message }) => message.kind === 'names' && message.pairs.some((p) => p.name === name));
  t.ok(heard(b, 'www0.example.com') >= 0, 'the threads of the others hear of it');
  t.equal(a.posted[heard(a, 'www0.example.com')]?.queue, undefined, 'all threads of the own gateway, too');
  const released = a.posted.findIndex(({ message }) => message.kind === 'release');
  t.ok(heard(a, 'www0.example.com') < released, 'before the answer is let on');
  t.equal(a.posted[released]?.queue, 0, 'to the thread that holds it');
  if (inTime === 150) t.equal(await skips(a, {}), 0, 'nobody was skipped');
  t.equal(await a.metric('sluice_gateway_names_replication_seconds'), 50);
  t.equal(await c.metric('sluice_gateway_names_learned_total', { by: 'gateway' }), 400);
  const sent = await a.metric('sluice_gateway_names_learned_total', { by: 'answer' });
  const held = await a.teach('www0.example.com', '198.51.100.1');
  t.ok(held < ACK_MS, 'what all have already waits for nobody');
  t.equal(await a.metric('sluice_gateway_names_learned_total', { by: 'answer' }), sent);
  await stop(gateways);
});

t.test('what is not to be learned', async (t) => {
  const [a, b] = (await start(
    ['gw-a', 'gw-b'],
    planOf({ gateways: only('gw-a', 'gw-b'), egressIPs: ['203.0.113.101'], clusterCIDRs: ['10.0.0.0/8', 'fd00::/8'] }),
  )) as [Gateway, Gateway];
  const forbidden = [
    '10.1.2.3 fd00::1',
    '203.0.113.101',
    `127.0.0.1 ${addresses['gw-b']} 169.254.169.254 fe80::1 ::1`,
    '224.0.0.1 ff02::1 0.0.0.0 :: 255.255.255.255',
    '::ffff:10.1.2.3',
  ];
  await a.teach('evil.example.com', forbidden.join(' '));
  await a.teach('bad', 'not-an-address');
  await a.teach('a..b -x.test *.test', '198.51.100.9');
  await a.teach('other.example.com', '198.51.100.9', 60, '192.0.2.99');
  t.same(
    a.names.pairs(),
    [],
    'addresses of the cluster and the pool, names that are none, what nobody asked a resolver',
  );
  t.same(b.names.pairs(), []);
  t.equal(
    a.posted.filter(({ message }) => message.kind === 'release').length,
    4,
    'the answers are let on: what flows may do is not decided by them',
  );
  await stop([a, b]);
});

/** A gateway in a process of its own, which can be stopped. */
async function startProcess(name: string): Promise<{ stop(): void; go(): void; end(): Promise<void> }> {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'names-process.js')], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  child.stdin.write(`${JSON.stringify({ world: { ...world, certs: undefined }, name, plan })}\n`);
  await new Promise((resolve) => child.stdout.once('data', resolve));
  return {
    stop: () => child.kill('SIGSTOP'),
    go: () => child.kill('SIGCONT'),
    end: () =>
      new Promise((resolve) => {
        child.once('exit', () => resolve());
        child.kill('SIGKILL');
      }),
  };
}

t.test('a stopped gateway costs its time once, and is then not waited for', async (t) => {
  const gateways = await Promise.all(['gw-a', 'gw-b'].map((name) => startGateway(world, name)));
  const [a, b] = gateways as [Gateway, Gateway];
  const c = await startProcess('gw-c');
  for (const { names } of gateways) names.plan(plan);
  for (const gateway of gateways) await connected(gateway, 2);
  t.ok((await a.teach('one.example.com', '198.51.100.1')) < 5_000);
  t.equal(await skips(a, { gateway: 'gw-c' }), 0);
  c.stop();
  await delay(20);
  const first = await a.teach('two.example.com', '198.51.100.2');
  t.ok(first >= ACK_MS - 5, `the first answer waits: ${first} ms`);
  t.ok(first < ACK_MS + 2_000, `and not longer than it may: ${first} ms`);
  t.equal(await skips(a, { gateway: 'gw-c', reason: 'late' }), 1);
  t.ok(b.has('two.example.com', '198.51.100.2'), 'the other one has it');
  for (let answer = 0; answer < 20; answer++) await a.teach('three.example.com', `198.51.100.${answer}`);
  t.equal(await skips(a, { gateway: 'gw-c', reason: 'late' }), 1, 'the others do not wait for it');
  t.equal(await skips(a, { gateway: 'gw-c', reason: 'silent' }), 20);
  c.go();
  await until(async () => {
    const before = await skips(a, { gateway: 'gw-c' });
    await a.teach(
      'four.example.com',
      `198.51.${Math.floor(performance.now() / 256) % 256}.${Math.floor(performance.now()) % 256}`,
    );
    return (await skips(a, { gateway: 'gw-c' })) === before;
  }, 'it is waited for again');
  c.stop();
  await until(async () => (await a.metric('sluice_gateway_names_gateways_connected')) === 1, 'it is given up');
  await a.teach('five.example.com', '198.51.100.5');
  t.ok((await skips(a, { gateway: 'gw-c', reason: 'down' })) > 0, 'one without a connection is not waited for at all');
  c.go();
  for (const gateway of gateways) await connected(gateway, 2);
  await stop(gateways);
  await c.end();
});

t.test('a gateway that is busy itself does not blame the others', async (t) => {
  const a = await startGateway(world, 'gw-a');
  const c = await startProcess('gw-c');
  a.names.plan(plan);
  await connected(a, 1);
  await a.teach('warm.example.com', '198.51.100.1');
  const late = await skips(a, { gateway: 'gw-c', reason: 'late' });
  const answer = a.teach('busy.example.com', '198.51.100.2');
  // What was written goes out, and the answer to it comes, while nothing here runs.
  await new Promise(setImmediate);
  const end = performance.now() + 500;
  while (performance.now() < end);
  await answer;
  t.equal(await skips(a, { gateway: 'gw-c', reason: 'late' }), late);
  await stop([a]);
  await c.end();
});

t.test('who comes gets all that is known, and tells what it knows', async (t) => {
  const [a, b] = (await start(['gw-a', 'gw-b'])) as [Gateway, Gateway];
  const many = Array.from({ length: 40 }, (_, at) => `198.51.100.${at}`).join(' ');
  for (let at = 0; at < 100; at++) await a.teach(`n${at}.example.com`, many);
  const state = mkdtempSync(join(world.dir, 'kept-'));
  const c = await startGateway(world, 'gw-c', { state });
  c.names.plan(planOf({ gateways: only('gw-c') }));
  await c.teach('only-c.example.com', '198.51.100.200');
  for (const { names } of [a, b, c]) names.plan(plan);
  await until(() => c.names.pairs().length === 4_001, 'all 4,000 pairs');
  await until(() => a.has('only-c.example.com', '198.51.100.200'), 'what the new one knew');
  await until(() => b.has('only-c.example.com', '198.51.100.200'), 'what the new one knew');
  t.same(
    c.names
      .pairs()
      .map(({ name, address }) => `${name} ${address}`)
      .sort(),
    a.names
      .pairs()
      .map(({ name, address }) => `${name} ${address}`)
      .sort(),
  );

  // Away, while something is learned.
  await c.names.close();
  await a.teach('meanwhile.example.com', '198.51.100.201');
  const again = await startGateway(world, 'gw-c', { state });
  again.names.plan(plan);
  t.ok(again.has('n99.example.com', '198.51.100.39'), 'from its disk, before anybody is connected');
  t.notOk(again.has('meanwhile.example.com', '198.51.100.201'));
  await until(() => again.has('meanwhile.example.com', '198.51.100.201'), 'what it has missed');
  await stop([a, b, again]);
});

t.test('while a table is on its way, what is taught anew is sent at once', async (t) => {
  const [a] = (await start(['gw-a'])) as [Gateway];
  for (let at = 0; at < 500; at++) {
    const where = Array.from({ length: 40 }, (_, of) => `198.51.${at % 100}.${of}`).join(' ');
    await a.teach(`n${at}.example.com`, where);
  }
  await a.teach('last.example.com', '198.51.100.7');
  const b = await startGateway(world, 'gw-b');
  for (const { names } of [a, b]) names.plan(planOf({ gateways: only('gw-a', 'gw-b') }));
  await connected(a, 1);
  t.notOk(b.has('last.example.com', '198.51.100.7'), 'not there yet');
  await a.teach('last.example.com', '198.51.100.7');
  t.ok(b.has('last.example.com', '198.51.100.7'), 'nothing in it is new, and still the other one has it now');
  t.ok(b.names.pairs().length < 20_001, 'before the whole table is');
  await until(() => b.names.pairs().length === 20_001, 'the whole table');
  await stop([a, b]);
});

t.test('plans that change', async (t) => {
  const [a, b] = (await start(['gw-a', 'gw-b'])) as [Gateway, Gateway];
  await a.teach('www.example.com', '198.51.100.1 198.51.100.2');
  await a.teach('alone.example.com', '198.51.100.2');
  const two = only('gw-a', 'gw-b');
  const egress = planOf({ gateways: two, egressIPs: ['198.51.100.2'] });
  a.names.plan(egress, { set: { workloads: {} }, delete: {} });
  t.ok(a.has('alone.example.com', '198.51.100.2'), 'a change that says nothing to names is not looked at');
  a.names.plan(egress, { set: { shards: {} }, delete: {} });
  t.same(
    a.names.pairs().map(({ name, address }) => `${name} ${address}`),
    ['www.example.com 198.51.100.1'],
    'an address that becomes an egress IP is forgotten',
  );
  t.same(a.posted.at(-1)?.message, { kind: 'forget', addresses: ['198.51.100.2'] }, 'by the threads, too');
  await b.teach('back.example.com', '198.51.100.2');
  t.notOk(a.has('back.example.com', '198.51.100.2'), 'nor learned from a gateway that does not know yet');

  b.names.plan(planOf({ gateways: only('gw-b') }));
  await connected(a, 0);
  await b.teach('solo.example.com', '198.51.100.3');
  t.notOk(a.has('solo.example.com', '198.51.100.3'), 'a gateway that is gone from the plan is told nothing');
  b.names.plan(planOf({ gateways: two }));
  await until(() => a.has('solo.example.com', '198.51.100.3'), 'until it is back');

  a.names.plan(planOf({ gateways: two, resolvers: [] }));
  t.same(a.names.pairs(), [], 'without resolvers nobody is believed');
  await connected(b, 0);
  await a.teach('www.example.com', '198.51.100.1');
  t.same(a.names.pairs(), []);
  a.names.plan(planOf({ gateways: two }));
  await until(() => a.has('solo.example.com', '198.51.100.3'), 'with them again');
  const moved = { ...two, 'gw-b': addresses['gw-c'] ?? '' };
  for (const { names } of [a, b]) names.plan(planOf({ gateways: moved }));
  await connected(a, 1);
  await a.teach('moved.example.com', '198.51.100.4');
  t.ok(b.has('moved.example.com', '198.51.100.4'), 'a gateway that has another address is found there');
  await stop([a, b]);
});

/** A client with these certificates that says `lines`; gives what came before the end. */
function speak(certs: string, to: string, ...lines: string[]): Promise<string> {
  return new Promise((resolve) => {
    let text = '';
    const socket: TLSSocket = connect(
      { ...tlsOptions(certs), host: to, port: world.port, checkServerIdentity: () => undefined },
      () => {
        for (const line of lines) socket.write(line);
      },
    );
    socket.on('data', (chunk) => {
      text += chunk;
    });
    socket.on('error', () => undefined);
    socket.once('close', () => resolve(text));
  });
}

t.test('who is not the gateway that it says, or speaks nonsense, is refused', async (t) => {
  const issue = (name: string, role: 'gateway' | 'node', ca = 'ca', as = name): Promise<void> =>
    issueCertificate({ caDir: world.certs(ca), outDir: world.certs(as), role, name, addresses: [] });
  await createCa(world.certs('other-ca'));
  await issue('gw-a', 'gateway', 'other-ca', 'false-gw-a');
  await issue('gw-z', 'gateway');
  await issue('gw-a', 'node', 'ca', 'node-gw-a');
  const c = await startGateway(world, 'gw-c');
  c.names.plan(plan);
  const to = addresses['gw-c'] ?? '';
  const line = (message: object): string => `${JSON.stringify(message)}\n`;
  const hello = (name: string): string => line({ type: 'hello', version: 1, name });
  const pairs = (seq: number, ...list: unknown[]): string => line({ type: 'pairs', seq, pairs: list });
  const pair = ['evil.example.com', '198.51.100.66', 60_000];
  await until(async () => (await speak(world.certs('gw-a'), to)) !== '', 'it listens');
  const rows: [what: string, certs: string, lines: string[]][] = [
    ['another CA', 'false-gw-a', [hello('gw-a'), pairs(1, pair)]],
    ['the certificate of another gateway', 'gw-b', [hello('gw-a'), pairs(1, pair)]],
    ['the certificate of a node of that name', 'node-gw-a', [hello('gw-a'), pairs(1, pair)]],
    ['a gateway that is not in the plan', 'gw-z', [hello('gw-z'), pairs(1, pair)]],
    ['itself', 'gw-c', [hello('gw-c'), pairs(1, pair)]],
    ['no hello', 'gw-a', [pairs(1, pair)]],
    ['a second hello', 'gw-a', [hello('gw-a'), hello('gw-a'), pairs(1, pair)]],
    ['another version', 'gw-a', [line({ type: 'hello', version: 2, name: 'gw-a' }), pairs(1, pair)]],
    ['a gap', 'gw-a', [hello('gw-a'), pairs(2, pair)]],
    ['an acknowledgement of nothing', 'gw-a', [hello('gw-a'), line({ type: 'ack', seq: 1_000 }), pairs(1, pair)]],
    ['no JSON', 'gw-a', [hello('gw-a'), 'GET / HTTP/1.1\n', pairs(1, pair)]],
    ['a line without end', 'gw-a', [hello('gw-a'), 'x'.repeat(200_000)]],
    ['too many pairs', 'gw-a', [hello('gw-a'), pairs(1, ...Array.from({ length: 257 }, () => pair))]],
    ['a name that is none', 'gw-a', [hello('gw-a'), pairs(1, pair, ['*.example.com', '198.51.100.66', 1])]],
    ['an address that is none', 'gw-a', [hello('gw-a'), pairs(1, pair, ['evil.example.com', '198.51.100', 1])]],
    ['a time that is none', 'gw-a', [hello('gw-a'), pairs(1, pair, ['evil.example.com', '198.51.100.66', '1'])]],
  ];
  for (const [what, certs, lines] of rows) {
    const said = await speak(world.certs(certs), to, ...lines);
    t.notMatch(said, /"ack"/, what);
    t.same(c.names.pairs(), [], `${what}: nothing is believed`);
  }

  const all: string[] = [];
  const client = connect({
    ...tlsOptions(world.certs('gw-a')),
    host: to,
    port: world.port,
    checkServerIdentity: () => undefined,
  });
  client.on('data', (chunk) => all.push(String(chunk)));
  const far = ['far.example.com', '198.51.100.67', 10 * 365 * 86_400_000];
  const over = ['over.example.com', '198.51.100.67', -5];
  client.write(hello('gw-a') + pairs(1, pair, far, over, ['in.example.com', '10.0.0.1', 60_000]));
  await until(() => all.join('').includes('{"type":"ack","seq":1}'), 'one that does as it should is acknowledged');
  const known = c.names.pairs();
  t.same(
    known.map(({ name }) => name).sort(),
    ['evil.example.com', 'far.example.com'],
    'what is over or forbidden is not taken',
  );
  const longest = Math.max(...known.map(({ until: end }) => end)) - Date.now();
  t.ok(longest <= 86_700_000, 'nobody is believed beyond the ceiling');
  client.destroy();
  await c.names.close();
});

t.test('a gateway that stands where another should is not told anything', async (t) => {
  const [a] = (await start(['gw-a'])) as [Gateway];
  await a.teach('secret.example.com', '198.51.100.1');
  // gw-c listens at the address that the plan says is gw-b's.
  const wrong = { 'gw-a': addresses['gw-a'] ?? '', 'gw-b': addresses['gw-c'] ?? '' };
  const c = await startGateway(world, 'gw-c');
  c.names.plan(planOf({ gateways: only('gw-a', 'gw-c') }));
  a.names.plan(planOf({ gateways: wrong }));
  await delay(500);
  t.same(c.names.pairs(), []);
  t.equal(await a.metric('sluice_gateway_names_gateways_connected'), 0);
  await stop([a, c]);
});

t.test('what flows use is told anew before it is over', async (t) => {
  let now = Date.parse('2026-11-27T12:00:00Z');
  const limits = { ttlFloor: 1, ttlCeiling: 100, grace: 10, addressesPerName: 10, pairs: 100 };
  const options = { now: () => now, limits, renewMs: 20 };
  const a = await startGateway(world, 'gw-a', options);
  // Its clock goes wrong by an hour.
  const b = await startGateway(world, 'gw-b', { ...options, now: () => now + 3_600_000 });
  for (const { names } of [a, b]) names.plan(planOf({ gateways: only('gw-a', 'gw-b') }));
  await connected(a, 1);
  await a.teach('used.example.com', '198.51.100.1', 5);
  await a.teach('idle.example.com', '198.51.100.1', 5);
  t.equal(a.names.use('used.example.com', '198.51.100.1'), true);
  t.equal(a.names.use('used.example.com', '198.51.100.2'), false, 'there is no such pair');
  for (let second = 0; second < 40; second += 4) {
    now += 4_000;
    await delay(100);
    const [pair] = b.names.pairs().filter(({ name }) => name === 'used.example.com');
    if (pair === undefined || pair.until <= now + 3_600_000) t.fail(`over after ${second} s at the other gateway`);
  }
  await until(() => !b.has('idle.example.com', '198.51.100.1'), 'what no flow uses is over');
  const told = a.posted.flatMap(({ message }) => (message.kind === 'names' ? message.pairs : []));
  t.ok(
    told.some(({ name, until: end }) => name === 'used.example.com' && end > now),
    'the threads hear of it, too',
  );
  a.names.release('used.example.com', '198.51.100.1');
  now += 25_000;
  await until(() => a.names.pairs().length + b.names.pairs().length === 0, 'and after the flow it is over, too');
  await stop([a, b]);
});

t.test('the disk', async (t) => {
  const state = mkdtempSync(join(world.dir, 'disk-'));
  const file = join(state, 'names.saved');
  const a = await startGateway(world, 'gw-a', { state });
  a.names.plan(planOf({ gateways: only('gw-a') }));
  await a.teach('disk.example.com other.example.com', '198.51.100.1 2001:db8::1');
  const before = a.names.pairs().map((pair) => ({ ...pair, until: Math.ceil(pair.until) }));
  await a.names.close();
  const whole = readFileSync(file);
  const reasons: string[] = [];
  const log = { warn: (fields: { reason: string }) => reasons.push(fields.reason) } as never;
  const load = async (): Promise<Gateway> => {
    const gateway = await startGateway(world, 'gw-a', { state, log });
    t.same(gateway.names.pairs(), [], 'nothing before there is a plan');
    return gateway;
  };
  const good = await load();
  good.names.plan(planOf({ gateways: only('gw-a') }));
  t.same(good.names.pairs(), before, 'what was saved is there again');
  t.same(reasons, []);
  t.same(good.posted[0]?.message, { kind: 'names', pairs: before });
  await good.names.close();

  const forbidding = await load();
  forbidding.names.plan(planOf({ gateways: only('gw-a'), egressIPs: ['198.51.100.1', '2001:db8::1'] }));
  t.same(forbidding.names.pairs(), [], 'what may not be learned any more is not taken from disk either');
  await forbidding.names.close();

  const flipped = Buffer.from(whole);
  flipped[flipped.length - 10] = (flipped[flipped.length - 10] ?? 0) ^ 1;
  const rows: [string, Uint8Array | string][] = [
    ['empty', ''],
    ['half of it', whole.subarray(0, whole.length / 2)],
    ['a bit', flipped],
    ['something else', 'names\n'],
    ['more than it says', Buffer.concat([whole, Buffer.from('["x.test","198.51.100.1",1]\n')])],
  ];
  for (const [what, bytes] of rows) {
    writeFileSync(file, bytes);
    reasons.length = 0;
    const gateway = await load();
    gateway.names.plan(planOf({ gateways: only('gw-a') }));
    t.same(gateway.names.pairs(), [], `${what}: ignored`);
    t.match(reasons, [/./], `${what}: and said`);
    await gateway.names.close();
  }

  const writer = await startGateway(world, 'gw-a', { state, saveMs: 50 });
  writer.names.plan(planOf({ gateways: only('gw-a') }));
  await writer.teach('soon.example.com', '198.51.100.1');
  await until(() => readFileSync(file, 'utf8').includes('soon.example.com'), 'saved while it runs', 15_000);
  await writer.names.close();
});
