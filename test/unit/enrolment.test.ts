/**
 * Enrolment by token through the front door: a real controller program, `sluice certs token`, `sluice enrol`, and the plan
 * stream's client with what they gave it. Who is refused, and why; what a man in the middle learns; what a controller
 * that is killed leaves behind. Renewal and revocation: renewal.test.ts.
 */
import { spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer as createHttps } from 'node:https';
import { type AddressInfo, connect as connectTcp, createServer as createTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { MAX_REQUEST, newToken, parseToken, sha256 } from '../../api/enrolment.ts';
import { must } from '../../api/result.ts';
import { sourceOf, Tries } from '../../controller/enrolment-listener.ts';
import { enrolmentResults } from '../../controller/enrolment-outcome.ts';
import { parseTtl, TokenStore } from '../../controller/tokens.ts';
import { createCa, issueCertificate, tlsOptions } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { ControllerRig, csr, post, program, tokenRequest, until } from '../enrolment-rig.ts';
import { sluice } from '../sluice.ts';

t.setTimeout(180_000);
const rig = await ControllerRig.open();
t.teardown(() => rig.close());
const certs = (name: string): string => join(rig.dir, name);
const enrol = (token: string, name: string, ...more: string[]) =>
  sluice('enrol', '--controller', rig.url, '--token', token, '--certs', certs(name), ...more);
const serialOf = (name: string): string => new X509Certificate(readFileSync(join(certs(name), 'tls.crt'))).serialNumber;
const fingerprint = sha256(new X509Certificate(readFileSync(join(rig.ca, 'ca.crt'))).raw);

/** Whether a client with these files gets the plan of (gateway, name). */
async function connects(directory: string, name: string): Promise<boolean> {
  let planned = false;
  const client = startPlanClient({
    role: 'gateway',
    name,
    url: rig.streamUrl,
    certs: certs(directory),
    addresses: [],
    onPlan: async () => {
      planned = true;
    },
    log: silentLog(),
  });
  await until('a plan', () => planned, 3_000).catch(() => undefined);
  await client.close();
  return planned;
}

t.test('a token that was made while the controller runs: a certificate, and the plan of its name only', async (t) => {
  const token = await rig.token('gateway', 'gw-a', '--ttl', '30m');
  t.match(token, /^sluice1\.[\w-]{11}\.[\w-]{43}\.[\w-]{43}$/, 'one text to paste');
  t.equal(must(parseToken(token)).fingerprint, fingerprint);
  const kept = readFileSync(rig.tokenFile(token), 'utf8');
  const { secret } = must(parseToken(token));
  for (const form of ['hex', 'base64', 'base64url'] as const) {
    t.notOk(kept.includes(Buffer.from(secret).toString(form)), `the secret is not kept (${form})`);
  }
  t.equal(statSync(rig.tokenFile(token)).mode & 0o777, 0o600);
  t.equal(statSync(join(rig.state, 'tokens')).mode & 0o777, 0o700);

  const done = await enrol(token, 'gw-a');
  t.same([done.code, done.err], [0, '']);
  t.match(done.out, 'certificate of gateway/gw-a');
  t.same(readdirSync(certs('gw-a')).sort(), ['ca.crt', 'tls.crt', 'tls.key'], 'nothing is left over');
  for (const file of ['ca.crt', 'tls.crt', 'tls.key']) {
    t.equal(statSync(join(certs('gw-a'), file)).mode & 0o777, 0o600, `${file} is ours alone`);
  }
  const certificate = new X509Certificate(readFileSync(join(certs('gw-a'), 'tls.crt')));
  t.equal(certificate.subjectAltName, 'URI:sluice://gateway/gw-a', 'what the token says, nothing else');
  t.ok(await connects('gw-a', 'gw-a'), 'its plan comes');
  t.notOk(await connects('gw-a', 'gw-b'), "another gateway's does not");
  await until('it is said why', () => rig.said.includes('the certificate is not for sluice://gateway/gw-b'));

  const node = await rig.token('node', 'gw-a');
  t.equal((await enrol(node, 'node')).code, 0);
  t.notOk(await connects('node', 'gw-a'), 'a node gets no plan of a gateway, though it has its name');

  const again = await enrol(await rig.token('gateway', 'gw-a'), 'gw-a');
  t.match(again, { code: 1, err: /holds a certificate or key already; --force replaces it/ });
  const before = serialOf('gw-a');
  t.equal((await enrol(await rig.token('gateway', 'gw-a'), 'gw-a', '--force')).code, 0);
  t.not(serialOf('gw-a'), before);
  t.ok(await connects('gw-a', 'gw-a'));
});

t.test('the token from standard input', async (t) => {
  const args = ['enrol', '--controller', rig.url, '--token', '-', '--certs', certs('stdin')];
  const child = spawn(process.execPath, [program, ...args], { stdio: ['pipe', 'ignore', 'inherit'] });
  child.stdin.end(`${await rig.token('node', 'node-b')}\n`);
  t.same(await once(child, 'exit'), [0, null]);
  t.ok(existsSync(join(certs('stdin'), 'tls.crt')));
});

t.test('who is refused', async (t) => {
  const good = must(parseToken(await rig.token('gateway', 'gw-x')));
  const used = await rig.token('gateway', 'gw-y');
  t.equal((await enrol(used, 'gw-y')).code, 0);
  const old = await rig.token('gateway', 'gw-z');
  const record = JSON.parse(readFileSync(rig.tokenFile(old), 'utf8')) as object;
  writeFileSync(rig.tokenFile(old), JSON.stringify({ ...record, expires: Date.now() - 1 }));
  const broken = await rig.token('gateway', 'gw-z');
  writeFileSync(rig.tokenFile(broken), '{"role":');

  const stuck = await rig.token('gateway', 'gw-z');
  mkdirSync(rig.tokenFile(stuck, '.used'));

  const request = await csr();
  const asked = async (token: Parameters<typeof tokenRequest>[0], change: object = {}): Promise<string> =>
    JSON.stringify({ ...JSON.parse(await tokenRequest(token, request)), ...change });
  const der = Buffer.from(request.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64');
  const pem = (bytes: Uint8Array): string =>
    `-----BEGIN CERTIFICATE REQUEST-----\n${Buffer.from(bytes).toString('base64')}\n-----END CERTIFICATE REQUEST-----\n`;
  const forged = Buffer.from(der);
  forged[forged.length - 1]! ^= 1;
  const rows: [title: string, body: string, status: number, error: RegExp, result: string][] = [
    ['no JSON', 'hello', 400, /expected a JSON object/, 'bad-request'],
    ['nothing', '', 400, /expected a JSON object/, 'bad-request'],
    ['an id that is a path', await asked(good, { id: '../../ca/ca.key' }), 400, /expected id/, 'bad-request'],
    ['half a secret', await asked(good, { secret: 'AAAA' }), 400, /expected secret/, 'bad-request'],
    ['no CSR', await asked(good, { csr: 'x' }), 400, /expected csr/, 'bad-request'],
    ['too much', 'x'.repeat(MAX_REQUEST + 1), 413, /at most/, 'too-large'],
    ['a token that nobody made', await asked(newToken(fingerprint)), 401, /no such token/, 'unknown-token'],
    ['another secret', await asked({ ...good, secret: newToken('').secret }), 401, /no such token/, 'unknown-token'],
    ['a token whose file is damaged', await asked(broken), 401, /no such token/, 'unknown-token'],
    ['a state that cannot be used', await asked(stuck), 500, /see its log/, 'failed'],
    ['expired', await asked(old), 403, /expired/, 'expired'],
    ['used by another key', await asked(used), 403, /used already/, 'used'],
    ['a CSR that is none', await asked(good, { csr: pem(der.subarray(9)) }), 400, /no certificate/, 'bad-request'],
    ['a CSR of a key that it does not have', await asked(good, { csr: pem(forged) }), 400, /csr: /, 'bad-request'],
  ];
  // Each from a run of its own, so that none is too many.
  await rig.end();
  await rig.start();
  for (const [title, body, status, error, result] of rows) {
    const before = rig.results().length;
    const answer = await post(rig.enrolPort, body);
    await until('the log tells', () => rig.results().length > before);
    t.same(answer.status, status, title);
    t.match((JSON.parse(answer.body) as { error: string }).error, error, title);
    t.equal(rig.results().at(-1), result, `${title}: the log says ${result}`);
  }
  t.equal(await rig.metric('sluice_controller_enrolments_total{result="unknown-token"'), 3, 'and the metric');
  rmSync(rig.tokenFile(stuck, '.used'), { recursive: true });
  t.match(await post(rig.enrolPort, '', { path: '/v1/other' }), { status: 404 });
  t.match(await post(rig.enrolPort, '', { method: 'PUT' }), { status: 404 });
  t.equal((await enrol(old, 'gw-old')).code, 1);
  t.match(await enrol(used, 'gw-y2'), { code: 1, err: 'the controller refused: the token was used already' });

  const wrong = await enrol('sluice1.AAAA.secret-secret.BBBB', 'gw-w');
  t.equal(wrong.code, 2);
  t.notMatch(wrong.err, 'secret-secret', 'a token is not shown, not even a wrong one');
  t.equal((await sluice('certs', 'token', 'gateway', 'x', '--dir', rig.ca, '--state', certs('nowhere'))).code, 1);
  t.equal(
    (await sluice('certs', 'token', 'gateway', 'x', '--dir', rig.ca, '--state', rig.state, '--ttl', '1y')).code,
    2,
  );
  const source = ['--source', 'directory:.', '--state', rig.state, '--listen', '127.0.0.1:0', '--certs', rig.certs];
  t.match(await sluice('controller', ...source, '--enrol', '127.0.0.1:0'), { code: 2, err: /needs --ca/ });
  await createCa(certs('other-ca'));
  t.match(await sluice('controller', ...source, '--ca', certs('other-ca')), {
    code: 1,
    err: /nobody here would believe/,
  });

  const { secret } = good;
  for (const form of ['hex', 'base64', 'base64url'] as const) {
    t.notOk(rig.said.includes(Buffer.from(secret).toString(form)), `no secret in the log (${form})`);
  }
  t.equal((await post(rig.enrolPort, await tokenRequest(good))).status, 200, 'none of this has used up the good one');
});

t.test('of many that use one token at once exactly one wins', async (t) => {
  await rig.end();
  await rig.start();
  const token = await rig.token('gateway', 'gw-race');
  const bodies = await Promise.all(Array.from({ length: 8 }, () => tokenRequest(token)));
  const answers = await Promise.all(bodies.map((body) => post(rig.enrolPort, body)));
  t.same(answers.map(({ status }) => status).sort(), [200, ...Array<number>(7).fill(403)]);
  const given = answers.find(({ status }) => status === 200)?.body ?? '';
  t.equal((JSON.parse(given) as { certificate: string }).certificate, rig.useOf(token).certificate);
  // Of several controllers on one state directory too.
  const { id } = must(parseToken(await rig.token('gateway', 'gw-race')));
  const use = { at: 1, key: '00'.repeat(32), certificate: '' };
  const won = await Promise.all(Array.from({ length: 8 }, () => new TokenStore(rig.state).use(id, use)));
  t.equal(won.filter(Boolean).length, 1);
  t.same(
    readdirSync(join(rig.state, 'tokens')).filter((name) => name.endsWith('.part')),
    [],
  );
});

t.test('a man in the middle learns nothing', async (t) => {
  await createCa(certs('evil-ca'));
  const evil = {
    caDir: certs('evil-ca'),
    outDir: certs('evil'),
    role: 'controller' as const,
    name: 'c',
    addresses: [],
  };
  await issueCertificate(evil);
  const gateway = { ...evil, caDir: rig.ca, outDir: certs('traitor'), role: 'gateway' as const, name: 'traitor' };
  await issueCertificate(gateway);
  const rows: [title: string, tls: string, ca: string, error: RegExp][] = [
    ['another CA', 'evil', certs('evil-ca'), /another CA than the token says: the token was not sent/],
    ['another CA that shows ours', 'evil', rig.ca, /self-signed|unable to verify|signature/],
    ['a gateway that poses as the controller', 'traitor', rig.ca, /the server is no controller/],
  ];
  const token = await rig.token('gateway', 'gw-m');
  for (const [title, tls, ca, error] of rows) {
    const heard: string[] = [];
    const server = createHttps(tlsOptions(certs(tls)), (request, response) => {
      heard.push(`${request.method} ${request.url}`);
      request.on('data', (chunk: Buffer) => heard.push(chunk.toString()));
      request.on('end', () => response.end(request.method === 'GET' ? readFileSync(join(ca, 'ca.crt')) : '{}'));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const { code, err } = await sluice('enrol', '--controller', url, '--token', token, '--certs', certs('gw-m'));
    t.equal(code, 1, title);
    t.match(err, error, title);
    t.same(heard, ['GET /v1/ca'], `${title}: all that was said`);
    t.same(readdirSync(certs('gw-m')), ['tls.key.new'], 'and nothing was believed');
    server.closeAllConnections();
    server.close();
  }
  t.equal((await enrol(token, 'gw-m')).code, 0, 'the token is good still');
});

t.test('an answer that is lost, and a controller that is killed', async (t) => {
  const early = await rig.token('gateway', 'gw-k');
  await rig.end('SIGKILL');
  t.match(await enrol(early, 'gw-k'), { code: 1, err: /ECONNREFUSED/ });
  await rig.start();
  const key = readFileSync(join(certs('gw-k'), 'tls.key.new'), 'utf8');
  // Answers take a while, so that the controller can be killed between the use of the token and the end of its answer.
  const sockets = new Set<Socket>();
  const proxy = createTcp((inside) => {
    const outside = connectTcp(rig.enrolPort, '127.0.0.1');
    for (const socket of [inside, outside]) {
      sockets.add(socket);
      socket.on('error', () => {});
    }
    inside.pipe(outside);
    outside.on('data', (chunk) => setTimeout(() => inside.write(chunk), 300));
    outside.on('close', () => setTimeout(() => inside.end(), 300));
  }).listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  const url = `https://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const lost = sluice('enrol', '--controller', url, '--token', early, '--certs', certs('gw-k'));
  await until('the token is used', () => existsSync(rig.tokenFile(early, '.used')));
  for (const socket of sockets) socket.destroy();
  await rig.end('SIGKILL');
  t.equal((await lost).code, 1);
  t.notOk(existsSync(join(certs('gw-k'), 'tls.crt')));
  proxy.close();
  for (const socket of sockets) socket.destroy();

  await rig.start();
  t.match(await enrol(early, 'thief'), { code: 1, err: /used already/ }, 'another key gets nothing');
  t.equal((await enrol(early, 'gw-k')).code, 0, 'the same key gets what was lost');
  t.equal(readFileSync(join(certs('gw-k'), 'tls.key'), 'utf8'), key);
  t.equal(
    serialOf('gw-k'),
    new X509Certificate(rig.useOf(early).certificate).serialNumber,
    'the very same certificate',
  );
  await until('it is told', () => rig.results().includes('repeated'));
  t.ok(await connects('gw-k', 'gw-k'));

  const body = await tokenRequest(await rig.token('gateway', 'gw-l'));
  t.equal((await post(rig.enrolPort, body)).status, 200);
  t.equal((await post(rig.enrolPort, body)).status, 200);
  const file = rig.tokenFile(
    `sluice1.${Buffer.from((JSON.parse(body) as { id: string }).id, 'hex').toString('base64url')}.${(JSON.parse(body) as { secret: string }).secret}.${Buffer.alloc(32).toString('base64url')}`,
    '.used',
  );
  const use = JSON.parse(readFileSync(file, 'utf8')) as { at: number };
  writeFileSync(file, JSON.stringify({ ...use, at: use.at - 11 * 60_000 }));
  t.equal((await post(rig.enrolPort, body)).status, 403, 'after ten minutes it is used for this key too');
  writeFileSync(file, '');
  t.equal((await post(rig.enrolPort, body)).status, 403, 'a damaged note of its use is one all the same');
});

t.test('bounds: tries, connections, seconds', async (t) => {
  await rig.end();
  await rig.start();
  const slow = post(rig.enrolPort, '{', { slow: true });
  const statuses: number[] = [];
  for (let i = 0; i < 24; i++) statuses.push((await post(rig.enrolPort, '{}')).status);
  t.same(statuses.slice(0, 19), Array(19).fill(400));
  t.equal(statuses.at(-1), 429);
  t.match(
    await post(rig.enrolPort, '', { method: 'GET', path: '/v1/ca' }),
    { status: 200 },
    'the CA is told all the same',
  );
  t.equal((await slow).status, 408, 'whoever does not finish is not waited for');
  await until('counted', async () => (await rig.metric('sluice_controller_enrolments_total{result="too-many"')) > 0);

  const sockets = Array.from({ length: 12 }, () => connectTcp(rig.enrolPort, '127.0.0.1'));
  let closed = 0;
  for (const socket of sockets) {
    socket.on('error', () => {});
    socket.on('close', () => closed++);
  }
  await until('some are closed', () => closed >= 4, 3_000);
  t.equal(closed, 4, 'of one address eight may be open');
  for (const socket of sockets) socket.destroy();

  const tries = new Tries();
  const taken = (n: number, now: number): number =>
    Array.from({ length: n }, () => tries.take('a', now)).filter(Boolean).length;
  t.equal(taken(30, 0), 20);
  t.equal(taken(30, 3_000), 1, 'one more every three seconds');
  t.equal(taken(30, 600_000), 20, 'and never more than at first');
  tries.giveBack('a');
  t.equal(taken(5, 600_000), 1, 'what ended well is given back');
  for (let i = 0; i < 10_000; i++) tries.take(`x${i}`, 0);
  t.ok(tries.size <= 4_096, 'of so many addresses');
  const sources: [string | undefined, string][] = [
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['2001:db8:1:2:3::4', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    [undefined, ''],
  ];
  for (const [address, source] of sources) t.equal(sourceOf(address), source);
});

t.test('what is odd', async (t) => {
  for (const [text, ms] of [
    ['1m', 60_000],
    ['1h', 3_600_000],
    ['7d', 604_800_000],
    ['90s', 90_000],
  ] as const) {
    t.same(parseTtl(text), { ok: true, value: ms });
  }
  for (const text of ['', '0m', '1', '59s', '8d', '1h30m', '-1h', '1e3m']) t.notOk(parseTtl(text).ok, text);
  const store = new TokenStore(rig.state);
  mkdirSync(join(rig.state, 'tokens'), { recursive: true });
  const count = (): number => readdirSync(join(rig.state, 'tokens')).length;
  const before = count();
  await store.prune(Date.now() + 30 * 86_400_000);
  t.equal(count(), before, 'for a month it is known what became of a token');
  await store.prune(Date.now() + 38 * 86_400_000);
  t.equal(count(), 0);
  t.same(
    [...new Set(rig.results())].filter((result) => !(result in enrolmentResults)),
    [],
  );
  // A server that says nothing but a long answer.
  const endless = createHttps(tlsOptions(certs('evil')), (_request, response) => {
    response.on('error', () => {});
    const more = (): void => {
      while (!response.destroyed && response.write('x'.repeat(65_536)));
      if (!response.destroyed) response.once('drain', more);
    };
    more();
  }).listen(0, '127.0.0.1');
  await once(endless, 'listening');
  const url = `https://127.0.0.1:${(endless.address() as AddressInfo).port}`;
  const told = await sluice(
    'enrol',
    '--controller',
    url,
    '--token',
    await rig.token('node', 'n'),
    '--certs',
    certs('n'),
  );
  t.match(told, { code: 1, err: 'an answer that does not end' });
  endless.closeAllConnections();
  endless.close();
});
