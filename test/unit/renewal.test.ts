/**
 * Certificates that are renewed and refused: a real controller program, and the renewal of gateways and nodes with a clock
 * that runs faster. Who gets no successor; certificates that are revoked or have expired, of those who are connected too;
 * files that a crash left half replaced.
 */
import { createPrivateKey, webcrypto, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { connect as connectH2 } from 'node:http2';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import type { Registry } from 'prom-client';
import t from 'tap';
import { MAX_REQUEST, parseAnswer, RENEW_PATH } from '../../api/enrolment.ts';
import type { PlanRole } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { parseRevoked, Revoked } from '../../controller/revoked.ts';
import { install, pendingKey, settle } from '../../daemon/cert-files.ts';
import { algorithm, certificateUri, createCa, issueCertificate, openIssuer, tlsOptions } from '../../daemon/certs.ts';
import { makeCsr } from '../../daemon/csr.ts';
import { renew } from '../../daemon/enrol-client.ts';
import { createRegistry } from '../../daemon/http.ts';
import { silentLog } from '../../daemon/log.ts';
import { type Renewal, type RenewalOptions, renewalTime, startRenewal } from '../../daemon/renewal.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { ControllerRig, csr, until } from '../enrolment-rig.ts';
import { sluice } from '../sluice.ts';

t.setTimeout(180_000);
const DAY = 24 * 3600 * 1000;
/** The controller's own certificate is due as well. */
const rig = await ControllerRig.open(Date.now() - 300 * DAY);
t.teardown(() => rig.close());
const certs = (name: string): string => join(rig.dir, name);
const read = (name: string, file: string): string => readFileSync(join(certs(name), file), 'utf8');
const certificateOf = (name: string): X509Certificate => new X509Certificate(read(name, 'tls.crt'));

/** As if it had been issued `daysAgo`. */
async function issue(
  role: PlanRole | 'controller',
  name: string,
  daysAgo: number,
  to = name,
  ca = rig.ca,
): Promise<void> {
  await issueCertificate({ caDir: ca, outDir: certs(to), role, name, addresses: [] }, Date.now() - daysAgo * DAY);
}

/** Of a gateway, with a second of two milliseconds. */
function keep(name: string, more: Partial<RenewalOptions> & { registry: Registry }): Promise<Renewal> {
  return startRenewal({
    certs: certs(name),
    uri: certificateUri('gateway', name),
    log: silentLog(),
    renew: (keys, _now, stop) => renew(rig.streamUrl, certs(name), keys, stop),
    secondMs: 2,
    random: () => 0,
    ...more,
  });
}
const expiry = async (registry: Registry): Promise<number> => {
  const [value] = (await registry.getSingleMetric('sluice_certificate_expiry_timestamp_seconds')?.get())?.values ?? [];
  return value?.value ?? Number.NaN;
};

t.test('a certificate with a third of its life left is renewed, with another key', async (t) => {
  await issue('gateway', 'gw-old', 300);
  await issue('gateway', 'gw-new', 200);
  const before = { gwOld: certificateOf('gw-old'), key: read('gw-old', 'tls.key'), gwNew: read('gw-new', 'tls.crt') };
  const [old, young] = [createRegistry('gateway'), createRegistry('gateway')];
  let changes = 0;
  const renewals = [
    await keep('gw-old', { registry: old, onChange: () => changes++ }),
    await keep('gw-new', { registry: young }),
  ];
  t.equal(await expiry(old), Date.parse(before.gwOld.validTo) / 1000);
  await until('it is renewed', () => certificateOf('gw-old').serialNumber !== before.gwOld.serialNumber);
  const after = certificateOf('gw-old');
  await until('it is told', () => changes > 0);
  t.ok(Date.parse(after.validTo) > Date.now() + 364 * DAY);
  t.equal(after.subjectAltName, 'URI:sluice://gateway/gw-old');
  t.not(read('gw-old', 'tls.key'), before.key);
  t.same(readdirSync(certs('gw-old')).sort(), ['ca.crt', 'tls.crt', 'tls.key']);
  t.equal(await expiry(old), Date.parse(after.validTo) / 1000);
  const client = connectH2(rig.streamUrl, { ...tlsOptions(certs('gw-old')), checkServerIdentity: () => undefined });
  await once(client, 'connect');
  client.destroy();
  t.equal(read('gw-new', 'tls.crt'), before.gwNew, 'one that has more is let be');
  await until('logged', () => rig.results().includes('renewed'));

  await issue('gateway', 'gw-new', 1);
  await until(
    'files that a person brought are seen',
    async () => (await expiry(young)) > Date.now() / 1000 + 363 * 86_400,
  );
  for (const renewal of renewals) await renewal.close();
  t.equal(changes, 1);
});

t.test('the controller renews its own, and shows the new one', async (t) => {
  const shown = async (port: number): Promise<string> => {
    const socket = connectTls({
      ...tlsOptions(certs('gw-old')),
      host: '127.0.0.1',
      port,
      checkServerIdentity: () => undefined,
    });
    await once(socket, 'secureConnect');
    const { serialNumber = '' } = socket.getPeerX509Certificate() ?? {};
    socket.destroy();
    return serialNumber;
  };
  await until('it is renewed', () => Date.parse(certificateOf('ctl').validTo) > Date.now() + 364 * DAY);
  const { serialNumber, subjectAltName } = certificateOf('ctl');
  t.equal(
    subjectAltName,
    'URI:sluice://controller, DNS:sluice-admission.sluice-system.svc, IP Address:127.0.0.1',
    'for the same addresses',
  );
  for (const port of [rig.port, rig.enrolPort]) {
    await until('it is shown', async () => (await shown(port)) === serialNumber, 5_000);
  }
  t.ok((await rig.metric('sluice_certificate_expiry_timestamp_seconds')) > Date.now() / 1000 + 364 * 86_400);
});

t.test('a controller that was killed while it put its new certificate in place', async (t) => {
  await rig.end();
  const keys = await pendingKey(rig.certs);
  const issuer = await openIssuer(rig.ca);
  const subject = { role: 'controller' as const, name: 'controller', addresses: ['127.0.0.1'] };
  writeFileSync(join(rig.certs, 'tls.crt.new'), await issuer.sign(keys.publicKey, subject));
  renameSync(join(rig.certs, 'tls.key.new'), join(rig.certs, 'tls.key'));
  t.notOk(
    certificateOf('ctl').checkPrivateKey(createPrivateKey(read('ctl', 'tls.key'))),
    'key and certificate do not fit',
  );
  await rig.start();
  t.ok(certificateOf('ctl').checkPrivateKey(createPrivateKey(read('ctl', 'tls.key'))), 'they do again');
});

/** A renewal without our client. */
async function ask(as: string, body: string): Promise<{ status: number; said: string }> {
  const session = connectH2(rig.streamUrl, { ...tlsOptions(certs(as)), checkServerIdentity: () => undefined });
  session.on('error', () => {});
  const stream = session.request({ ':method': 'POST', ':path': RENEW_PATH });
  let status = 0;
  let said = '';
  stream.on('error', () => {});
  stream.on('response', (headers) => {
    status = Number(headers[':status']);
  });
  stream.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  stream.end(body);
  await new Promise((done) => {
    stream.once('close', done);
    session.once('close', done);
  });
  session.destroy();
  return { status, said };
}

t.test('who gets no successor', async (t) => {
  await issue('gateway', 'gw-r', 1);
  await issue('gateway', 'gw-lost', 1);
  await issue('gateway', 'gw-expired', 400);
  await createCa(certs('other-ca'));
  await issue('gateway', 'gw-r', 1, 'stranger', certs('other-ca'));
  const own = await webcrypto.subtle.importKey(
    'pkcs8',
    Buffer.from(read('gw-r', 'tls.key').replaceAll(/-----[^-]+-----|\s/g, ''), 'base64'),
    algorithm,
    true,
    ['sign'],
  );
  const spki = certificateOf('gw-r').publicKey.export({ type: 'spki', format: 'der' });
  const same = {
    privateKey: own,
    publicKey: await webcrypto.subtle.importKey('spki', spki, algorithm, true, ['verify']),
  };
  appendFileSync(join(rig.state, 'revoked'), `# lost in a train\ngateway/gw-lost\n`);
  const body = JSON.stringify({ csr: await csr() });
  const rows: [title: string, as: string, body: string, status: number, said: RegExp][] = [
    ['a controller', 'ctl', body, 403, /not that of a gateway or node/],
    ['the key that it has', 'gw-r', JSON.stringify({ csr: await makeCsr(same) }), 400, /another key/],
    ['no CSR', 'gw-r', '{}', 400, /expected csr/],
    ['no JSON', 'gw-r', 'x', 400, /JSON/],
    ['too much', 'gw-r', 'x'.repeat(MAX_REQUEST + 1), 413, /at most/],
    ['revoked', 'gw-lost', body, 403, /gateway\/gw-lost is revoked/],
    ['expired', 'gw-expired', body, 0, /^$/],
    ['of another CA', 'stranger', body, 0, /^$/],
  ];
  for (const [title, as, text, status, said] of rows) {
    const answer = await ask(as, text);
    t.equal(answer.status, status, title);
    t.match(answer.said, said, title);
  }
  const { status, said } = await ask('gw-r', JSON.stringify({ csr: await csr(), name: 'gw-other', role: 'node' }));
  t.equal(status, 200);
  const given = new X509Certificate(must(parseAnswer(said)).certificate);
  t.equal(given.subjectAltName, 'URI:sluice://gateway/gw-r', 'the same name, whatever it asks for');
  const many: number[] = [];
  for (let i = 0; i < 22; i++) many.push((await ask('gw-r', '{}')).status);
  t.equal(many.at(-1), 429, 'of one name twenty at once');

  const other = connectH2(rig.streamUrl, { ...tlsOptions(certs('gw-r')), checkServerIdentity: () => undefined });
  const nothing = other.request({ ':path': '/v1/other' });
  const [headers] = (await once(nothing, 'response')) as [Record<string, unknown>];
  t.equal(headers[':status'], 404);
  nothing.resume();
  await once(other, 'close');
  t.pass('and the session is ended');
  const lost = await rig.token('gateway', 'gw-lost');
  const enrolled = await sluice('enrol', '--controller', rig.url, '--token', lost, '--certs', certs('lost-again'));
  t.match(enrolled, { code: 1, err: 'gateway/gw-lost is revoked' }, 'nor by a token');
});

t.test('revoked and expired certificates lead to no plan, and end the one that comes', async (t) => {
  await issue('gateway', 'gw-v', 1);
  await issue('gateway', 'gw-w', 1);
  const states: string[] = [];
  const start = (name: string) =>
    startPlanClient({
      role: 'gateway',
      name,
      url: rig.streamUrl,
      certs: certs(name),
      addresses: [],
      onPlan: async () => {},
      onState: (state) => states.push(`${name} ${state}`),
      log: silentLog(),
    });
  const clients = ['gw-v', 'gw-w', 'gw-expired', 'gw-lost'].map(start);
  await until('two are connected', () => states.length >= 2);
  const serial = certificateOf('gw-v').serialNumber;
  appendFileSync(join(rig.state, 'revoked'), `serial=${serial.toLowerCase()}\nnonsense, I fear\n`);
  await until('it is cut off', () => states.includes('gw-v disconnected'), 10_000);
  await until('it is said why', () => rig.said.includes('the certificate is revoked'));
  await until('lines that say nothing are told of', () => rig.said.includes('lines that say nothing'));
  await issue('gateway', 'gw-v', 1);
  await until(
    'with another certificate it comes back',
    () => states.filter((s) => s === 'gw-v connected').length === 2,
  );
  for (const client of clients) await client.close();
  t.same(
    states.filter((state) => /expired|lost|gw-w disc/.test(state)),
    ['gw-w disconnected'],
    'the others never came',
  );
});

t.test('the list of the revoked', async (t) => {
  const { serials, names, odd } = parseRevoked(
    'gateway/a # x\r\n\n00aB\nserial=01\nnode/b.c\nnode/B\ncontroller/x\n/a\ngateway/a/b\n',
  );
  t.same(
    [[...serials], [...names], odd],
    [
      ['AB', '1'],
      ['gateway/a', 'node/b.c'],
      [6, 7, 8, 9],
    ],
  );
  mkdirSync(certs('odd'));
  t.ok(new Revoked(certs('odd'), silentLog()));
  mkdirSync(join(certs('odd'), 'revoked'));
  t.throws(() => new Revoked(certs('odd'), silentLog()), 'a list that cannot be read at the start');
  await issue('gateway', 'two', 1);
  const revoked = new Revoked(rig.state, silentLog());
  t.equal(revoked.refusal(certificateOf('two'), Date.now()), undefined);
  t.equal(revoked.refusal(certificateOf('two'), Date.now() + 366 * DAY), 'the certificate has expired');
});

t.test(
  'a controller that does not answer is asked ever more seldom; files that do not fit are not put in place',
  async (t) => {
    await issue('gateway', 'gw-alone', 300);
    const asked: number[] = [];
    const began = performance.now();
    const attempt = await keep('gw-alone', {
      registry: createRegistry('gateway'),
      secondMs: 1,
      random: () => 0.5,
      renew: async () => {
        asked.push(performance.now() - began);
        throw new Error('nobody is there');
      },
    });
    await until('asked four times', () => asked.length >= 4);
    await attempt.close();
    const gaps = asked.slice(1).map((at, i) => at - (asked[i] ?? 0));
    t.ok(
      gaps.every((gap, i) => gap >= 30 * 2 ** i - 2),
      `gaps of ${gaps.map(Math.round)} seconds`,
    );
    const key = read('gw-alone', 'tls.key.new');
    t.ok(key, 'the key is kept, and asked with again');

    const issuer = await openIssuer(rig.ca);
    const others = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
    const own = await pendingKey(certs('gw-alone'));
    t.equal(read('gw-alone', 'tls.key.new'), key);
    const given = async (publicKey: webcrypto.CryptoKey, name: string, from = issuer) => ({
      certificate: await from.sign(publicKey, { role: 'gateway', name, addresses: [] }),
      ca: issuer.ca,
    });
    const uri = certificateUri('gateway', 'gw-alone');
    const before = read('gw-alone', 'tls.crt');
    await t.rejects(install(certs('gw-alone'), await given(others.publicKey, 'gw-alone'), uri), /another key/);
    await t.rejects(install(certs('gw-alone'), await given(own.publicKey, 'gw-b'), uri), /not for/);
    const other = await openIssuer(certs('other-ca'));
    await t.rejects(install(certs('gw-alone'), await given(own.publicKey, 'gw-alone', other), uri), /another CA/);
    await t.rejects(install(certs('gw-alone'), { certificate: 'x', ca: '' }, uri));
    t.equal(read('gw-alone', 'tls.crt'), before);

    // A crash between any two steps, and what the next start makes of it.
    const next = await given(own.publicKey, 'gw-alone');
    const steps = ['tls.crt.new', 'tls.key', 'tls.crt'] as const;
    for (let done = 0; done <= steps.length; done++) {
      const at = certs(`crash-${done}`);
      mkdirSync(at);
      for (const file of ['ca.crt', 'tls.crt', 'tls.key', 'tls.key.new'])
        copyFileSync(join(certs('gw-alone'), file), join(at, file));
      if (done >= 1) writeFileSync(join(at, 'tls.crt.new'), next.certificate);
      if (done >= 2) copyFileSync(join(at, 'tls.key.new'), join(at, 'tls.key'));
      if (done >= 3) writeFileSync(join(at, 'tls.crt'), next.certificate);
      await settle(at);
      const certificate = certificateOf(`crash-${done}`);
      t.doesNotThrow(() =>
        connectTls({ ...tlsOptions(at), port: 1, host: '127.0.0.1' })
          .on('error', () => {})
          .destroy(),
      );
      t.equal(String(certificate) === String(new X509Certificate(next.certificate)), done > 0, `after ${done} steps`);
      t.notOk(existsSync(join(at, 'tls.crt.new')));
    }
    mkdirSync(certs('stray'));
    writeFileSync(join(certs('stray'), 'tls.crt.new'), next.certificate);
    await settle(certs('stray'));
    t.same(readdirSync(certs('stray')), [], 'a certificate without its key is thrown away');

    t.equal(renewalTime(0, 300, 0), 200);
    t.equal(renewalTime(0, 300, 1), 210);
    const none = createRegistry('gateway');
    const gone = await keep('nowhere', { registry: none });
    t.equal(await expiry(none), 0, 'no certificate at all');
    await gone.close();
  },
);
