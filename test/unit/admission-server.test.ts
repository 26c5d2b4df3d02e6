/**
 * The admission webhook over a real socket: what it answers, what it refuses and with which status, its bounds on bytes,
 * time and number, and that it takes up a renewed certificate and no half of one.
 */
import { once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { Agent, type RequestOptions, request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { pino } from 'pino';
import { Registry } from 'prom-client';
import t from 'tap';
import type { AdmissionWorld } from '../../controller/admission/review.ts';
import {
  ADMISSION_PATH,
  type AdmissionServer,
  admissionLimits,
  startAdmission,
} from '../../controller/admission/server.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { billing, create, egressIP, inForce, remove, worldOf } from './admission-world.ts';

const directory = await mkdtemp(join(tmpdir(), 'sluice-admission-'));
t.teardown(() => rm(directory, { recursive: true, force: true }));
const ca = join(directory, 'ca');
await createCa(ca);
const issue = (name: string) =>
  issueCertificate({ caDir: ca, outDir: join(directory, name), role: 'controller', name, addresses: ['127.0.0.1'] });
await issue('first');
const certificate = { cert: join(directory, 'tls.crt'), key: join(directory, 'tls.key') };
const serve = async (name: string, ...files: ('tls.crt' | 'tls.key')[]) => {
  for (const file of files) await copyFile(join(directory, name, file), join(directory, file));
};
await serve('first', 'tls.crt', 'tls.key');
const caText = await readFile(join(ca, 'ca.crt'));

const logged: string[] = [];
const log = pino({ level: 'info' }, { write: (line: string) => void logged.push(line) });
const world = worldOf(inForce());
let now: () => AdmissionWorld | undefined = () => world;
const registry = new Registry();
const start = (limits: Partial<typeof admissionLimits> = {}, registerIn = new Registry()): Promise<AdmissionServer> =>
  startAdmission({
    listen: { host: '127.0.0.1', port: 0 },
    certificate,
    world: () => now(),
    log,
    registry: registerIn,
    limits,
  });
const server = await start({ certificateMs: 20 }, registry);
t.teardown(() => server.close());

interface Answer {
  status: number;
  text: string;
}
async function ask(body: string | Buffer, more: RequestOptions = {}, port = server.port): Promise<Answer> {
  const agent = new Agent({ ca: caText });
  const sent = request({ host: '127.0.0.1', port, path: ADMISSION_PATH, method: 'POST', agent, ...more });
  sent.end(body);
  const [response] = await once(sent, 'response');
  let text = '';
  for await (const chunk of response) text += String(chunk);
  agent.destroy();
  return { status: response.statusCode, text };
}
const reviewOf = (of: object, kind = 'EgressIP') =>
  JSON.stringify({
    apiVersion: 'admission.k8s.io/v1',
    kind: 'AdmissionReview',
    request: { uid: 'u-1', kind: { group: 'sluice.dev', version: 'v1alpha1', kind }, ...of },
  });
const count = async (labels: string): Promise<number> => {
  const line = (await registry.metrics()).split('\n').find((one) => one.includes(`requests_total{${labels}}`));
  return Number(line?.split(' ').at(-1) ?? 0);
};

t.test('answers', async (t) => {
  const taken = await ask(reviewOf(create(egressIP('new'))));
  t.equal(taken.status, 200);
  t.same(JSON.parse(taken.text), {
    apiVersion: 'admission.k8s.io/v1',
    kind: 'AdmissionReview',
    response: { uid: 'u-1', allowed: true },
  });
  const denied = JSON.parse((await ask(reviewOf(create(egressIP('new', { addresses: ['192.0.2.1'] }))))).text);
  t.match(denied.response, {
    uid: 'u-1',
    allowed: false,
    status: { code: 422, reason: 'Invalid', message: /^spec\.addresses: / },
  });
  const stranding = JSON.parse((await ask(reviewOf(remove(billing())))).text);
  t.match(stranding.response, { allowed: false, status: { code: 403, reason: 'Forbidden' } });
  const warned = JSON.parse(
    (await ask(reviewOf(create(egressIP('new', { pool: 'later' }))), { path: `${ADMISSION_PATH}?timeout=5s` })).text,
  );
  t.match(warned.response, { allowed: true, warnings: [/^spec\.pool: EgressIPPool later does not exist/] });

  t.equal(await count('kind="EgressIP",operation="CREATE",outcome="allowed"'), 1);
  t.equal(await count('kind="EgressIP",operation="CREATE",outcome="denied"'), 1);
  t.equal(await count('kind="EgressIP",operation="CREATE",outcome="warned"'), 1);
  t.equal(await count('kind="EgressIP",operation="DELETE",outcome="denied"'), 1);
  await ask(reviewOf({ operation: 'CREATE', object: { kind: 'x' } }, 'Made-up'));
  t.equal(await count('kind="",operation="CREATE",outcome="allowed"'), 1, 'a kind that others make up');
  const expires = Number(/certificate_expiry_seconds (\d+)/.exec(await registry.metrics())?.[1]);
  t.ok(expires > Date.now() / 1000 + 86_400);
});

t.test('refusals', async (t) => {
  const rows: [what: string, answer: Promise<Answer>, status: number, text: RegExp][] = [
    ['another path', ask('', { path: '/' }), 404, /not found/],
    ['GET', ask('', { method: 'GET' }), 405, /POST/],
    ['no JSON', ask('{'), 400, /no JSON/],
    ['no review', ask('{}'), 400, /AdmissionReview/],
    ['no UTF-8', ask(Buffer.from([0xff, 0xfe])), 400, /no JSON/],
    ['no object', ask(reviewOf({ operation: 'CREATE' })), 400, /request\.object/],
    ['3 MiB', ask(`${' '.repeat(admissionLimits.bodyBytes - 2)}{}`), 400, /AdmissionReview/],
    ['more, as it says', ask(`${' '.repeat(admissionLimits.bodyBytes - 1)}{}`), 413, /at most 3145728 bytes/],
    [
      'more, in chunks',
      ask(`${' '.repeat(admissionLimits.bodyBytes)}{}`, { headers: { 'transfer-encoding': 'chunked' } }),
      413,
      /at most/,
    ],
  ];
  for (const [what, answer, status, text] of rows) {
    const got = await answer;
    t.equal(got.status, status, what);
    t.match(got.text, text, what);
  }
  t.equal(await count('kind="",operation="",outcome="malformed"'), 7);
});

t.test('what it cannot judge it does not judge', async (t) => {
  now = () => undefined;
  t.match(await ask(reviewOf(create(egressIP('new')))), { status: 503, text: /not known yet/ });
  now = () => {
    throw new Error('a mistake');
  };
  t.match(await ask(reviewOf(create(egressIP('new')))), { status: 500 });
  now = () => ({ ...world, objects: {} as typeof world.objects });
  t.match(await ask(reviewOf(create(egressIP('new')))), { status: 500, text: /the log of the controller/ });
  t.ok(logged.some((line) => line.includes('cannot review')));
  now = () => world;
  t.equal(await count('kind="EgressIP",operation="CREATE",outcome="unready"'), 1);
  t.match(await ask(reviewOf(create(egressIP('new')))), { status: 200 });
});

t.test('slow and many', async (t) => {
  const small = await start({ concurrent: 2, requestMs: 300 });
  t.teardown(() => small.close());
  const open = () => {
    const socket = connect({ host: '127.0.0.1', port: small.port, ca: caText });
    socket.on('error', () => {});
    socket.write(`POST ${ADMISSION_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{`);
    let text = '';
    socket.on('data', (data) => (text += String(data)));
    return once(socket, 'close').then(() => text);
  };
  const begun = Date.now();
  const waiting = [open(), open()];
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.match(await ask(reviewOf(create(egressIP('new'))), {}, small.port), { status: 503, text: /too many/ });
  for (const text of await Promise.all(waiting)) t.match(text, /^(HTTP\/1\.1 408|$)/);
  t.ok(Date.now() - begun < 3000, 'they were given up');
  t.match(await ask(reviewOf(create(egressIP('new'))), {}, small.port), { status: 200 }, 'their places are free');
});

t.test('a renewed certificate', async (t) => {
  const subject = async (): Promise<string> => {
    const socket = connect({ host: '127.0.0.1', port: server.port, ca: caText });
    await once(socket, 'secureConnect');
    const { subject } = socket.getPeerCertificate();
    socket.destroy();
    return String(subject.CN);
  };
  const settled = () => new Promise((resolve) => setTimeout(resolve, 150));
  t.equal(await subject(), 'controller first');
  await issue('second');
  await serve('second', 'tls.crt');
  await settled();
  t.equal(await subject(), 'controller first', 'a certificate without its key');
  t.equal(logged.filter((line) => line.includes('the last one is used')).length, 1, 'said once');
  await serve('second', 'tls.key');
  await settled();
  t.equal(await subject(), 'controller second');
  await writeFile(certificate.cert, 'nothing');
  await settled();
  t.equal(await subject(), 'controller second');
  await rm(certificate.cert);
  await settled();
  t.match(await ask(reviewOf(create(egressIP('new')))), { status: 200 });
  await t.rejects(start(), /ENOENT/, 'without one it does not start');
});
