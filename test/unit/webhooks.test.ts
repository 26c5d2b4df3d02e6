/**
 * Webhooks of rules (design §2, §3, §4.7), beside their queue (webhook-queue.test.ts): which rules have one, one POST
 * against a real https server with every trick that a receiver may try (names and connections are led as in
 * fetch.test.ts, which has the tricks of URLs and certificates), and the front door: manifests, a gateway that reports
 * hits, a controller, a server.
 */

import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { Registry } from 'prom-client';
import t from 'tap';
import { parse } from 'yaml';
import { noHits, type RuleHits } from '../../api/hits.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { hitsMessage } from '../../api/plan-stream.ts';
import type { WebhookBody } from '../../api/webhook.ts';
import { type Controller, runController } from '../../controller/main.ts';
import type { FetchPolicy } from '../../controller/observe/fetch-policy.ts';
import type { HttpsWorld } from '../../controller/observe/https.ts';
import { ObjectIndex } from '../../controller/plan/objects.ts';
import {
  WEBHOOK_URLS,
  WEBHOOK_URLS_PER_NAMESPACE,
  type WebhookTarget,
  webhooksOf,
} from '../../controller/plan/webhooks.ts';
import { postWebhook } from '../../controller/publish/webhook-post.ts';
import type { DeliveryOutcome } from '../../controller/publish/webhook-queue.ts';
import { Webhooks } from '../../controller/webhooks.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { collectGarbage } from '../../daemon/heap.ts';
import { silentLog } from '../../daemon/log.ts';
import { type PlanClient, startPlanClient } from '../../daemon/stream-client.ts';
import { createServerCertificate } from '../../lab/servers/certificate.ts';
import { sluice } from '../sluice.ts';
import { smallCluster } from './small-cluster.ts';

const NAME = 'hooks.example.test';
const WEB = '198.51.100.7';

const object = (kind: string, name: string, spec: object, more: object = {}): AnyObject => {
  const namespaced = kind.startsWith('Namespace') || kind.startsWith('Service') ? { namespace: 'a' } : {};
  const metadata = { name, ...namespaced, ...more };
  const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', kind, metadata, spec });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
  return parsed.value;
};
const pool = (allowedHosts: string[]): AnyObject =>
  object('GatewayPool', 'p', {
    namespaceSelector: {},
    gateways: [{ name: 'g1', internalAddress: '10.0.0.31' }],
    interfaces: { internal: 'in', external: { name: 'out' } },
    nextHops: { v4: ['10.0.0.64'] },
    fetch: { allowedHosts },
  });
const snapshotOf = (...objects: AnyObject[]) => new Map(objects.map((o) => [objectKey(o), o]));

const objectsOf = (...objects: AnyObject[]) => new ObjectIndex().look(snapshotOf(...objects));

t.test('which rules have one', async (t) => {
  const base = { externalServices: ['*'], webhook: { url: `https://${NAME.toUpperCase()}:443/x?t=1` } };
  const decisive = { ...base, action: 'accept-decisively' };
  const planned = webhooksOf(
    objectsOf(
      pool([NAME, `${NAME}:8443`, '[2001:DB8::7]:8443']),
      object('ClusterEgressRule', 'c', decisive, { generation: 7 }),
      object('NamespaceEgressRule', 'n', decisive),
      object('ServiceEgressRule', 's', { ...base, action: 'accept', service: 'web' }),
      object('NamespaceEgressRule', 'v6', { ...decisive, webhook: { url: 'https://[2001:db8:0::7]:8443' } }),
      object('NamespaceEgressRule', 'audited', { ...decisive, mode: 'Audit' }),
      object('NamespaceEgressRule', 'without', { ...decisive, webhook: undefined }),
      object('NamespaceEgressRule', 'port', { ...decisive, webhook: { url: `https://${NAME}:9443/` } }),
      object('NamespaceEgressRule', 'evil', { ...decisive, webhook: { url: 'https://evil.test/t0p' } }),
    ),
  );
  t.same(
    [...planned.targets].flatMap(([id, { url, host, rule }]) =>
      id === 'namespace/a/v6' ? [] : [[id, url, host, rule]],
    ),
    [
      ['cluster/c', { context: 'cluster', rule: 'c', action: 'accept-decisively', generation: 7 }],
      ['namespace/a/n', { context: 'namespace', namespace: 'a', rule: 'n', action: 'accept-decisively' }],
      ['service/a/s', { context: 'service', namespace: 'a', rule: 's', action: 'accept' }],
    ].map(([id, rule]) => [id, `https://${NAME}/x?t=1`, NAME, rule]),
    'one URL, however it is written; a rule in audit permits nothing',
  );
  t.match(planned.targets.get('namespace/a/v6'), {
    url: 'https://[2001:db8::7]:8443/',
    host: '[2001:db8::7]:8443',
  });
  t.same(
    [...planned.refused].map(([key, { reason, message }]) => [key, reason, message]),
    [
      ['evil', 'evil.test'],
      ['port', `${NAME}:9443`],
    ].map(([name, host]) => [
      `NamespaceEgressRule/a/${name}`,
      'HostNotAllowed',
      `host ${host} is not among fetch.allowedHosts of any GatewayPool`,
    ]),
  );
  const many = (count: number, kind: string, spec: object, more = (_: number): object => ({})) =>
    Array.from({ length: count }, (_, i) =>
      object(kind, `r${i}`, { ...spec, webhook: { url: `https://${NAME}/${kind}/${i}` } }, more(i)),
    );
  const own = webhooksOf(
    objectsOf(
      pool([NAME]),
      ...many(WEBHOOK_URLS_PER_NAMESPACE + 2, 'NamespaceEgressRule', decisive, (i) => ({
        creationTimestamp: `2026-11-27T12:00:${String(i).padStart(2, '0')}Z`,
      })),
      object('NamespaceEgressRule', 'shares', {
        ...decisive,
        webhook: { url: `https://${NAME}/NamespaceEgressRule/0` },
      }),
    ),
  );
  t.same(
    [...own.refused].map(([key, { reason, message }]) => `${key} ${reason} ${message}`),
    [16, 17].map((i) => `NamespaceEgressRule/a/r${i} TooManyWebhooks more than 16 webhook URLs in the namespace`),
    'the youngest, and none that another rule has too',
  );
  const everybody = webhooksOf(
    objectsOf(
      pool([NAME]),
      ...Array.from({ length: WEBHOOK_URLS / 16 + 1 }, (_, n) =>
        many(16, 'NamespaceEgressRule', decisive).map((o, i) => {
          const url = `https://${NAME}/${n}/${i}`;
          return object(
            'NamespaceEgressRule',
            o.metadata.name,
            { ...decisive, webhook: { url } },
            { namespace: `n${n}` },
          );
        }),
      ).flat(),
    ),
  );
  t.equal(new Set([...everybody.targets.values()].map(({ url }) => url)).size, WEBHOOK_URLS);
  t.match([...everybody.refused.values()][0], {
    reason: 'TooManyWebhooks',
    message: 'more than 1024 webhook URLs in all',
  });
});

interface Server {
  port: number;
  ca: string;
  requests: {
    method?: string | undefined;
    url?: string | undefined;
    headers: IncomingMessage['headers'];
    body: string;
  }[];
  respond(handler: (request: IncomingMessage, response: ServerResponse) => void): void;
}
/** Reads each request to its end before it answers. */
async function serve(t: Tap.Test, root: string): Promise<Server> {
  await createServerCertificate(join(root, 'web'), [NAME], Date.now());
  const pem = (name: string) => readFile(join(root, 'web', name), 'utf8');
  let handler: Parameters<Server['respond']>[0] = (_, response) => response.writeHead(204).end();
  const requests: Server['requests'] = [];
  const server = createServer({ cert: await pem('tls.crt'), key: await pem('tls.key') }, (request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => {
      const { method, url, headers } = request;
      requests.push({ method, url, headers, body });
      handler(request, response);
    });
    response.on('error', () => undefined);
  });
  server.on('tlsClientError', () => undefined);
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  t.teardown(
    () =>
      new Promise<void>((done) => {
        server.closeAllConnections();
        server.close(() => done());
      }),
  );
  return {
    port: (server.address() as AddressInfo).port,
    ca: await pem('ca.crt'),
    requests,
    respond(next) {
      handler = next;
    },
  };
}

t.test('one delivery, and what receivers try', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-wp-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const server = await serve(t, root);
  const { requests } = server;
  let names: string[] | (() => Promise<string[]>) = [WEB];
  const dialled: string[] = [];
  const world: HttpsWorld = {
    ca: server.ca,
    timeoutMs: 2000,
    lookup: async () => (typeof names === 'function' ? names() : names),
    dial(address, port) {
      dialled.push(`${address} ${port}`);
      return connect({ host: '127.0.0.1', port: server.port });
    },
  };
  const policy: FetchPolicy = {
    allows: (host, port) => host === NAME && port === 443,
    forbidden: ({ value }) => (value === 0x7f00_0001n ? 'loopback' : value === 0x0af4_0105n ? 'pod' : undefined),
  };
  const body = JSON.stringify({ some: 'thing', more: 'x'.repeat(100_000) });
  const post = (url = `https://${NAME}/in?token=t0p`, more: Partial<HttpsWorld> = {}) =>
    postWebhook({ url, body, key: 'k1' }, policy, { ...world, ...more }, new AbortController().signal);
  t.beforeEach(() => {
    names = [WEB];
    dialled.length = 0;
    requests.length = 0;
    server.respond((_, response) => response.writeHead(204).end());
  });

  await t.test('it comes as it should', async (t) => {
    for (const status of [200, 201, 202, 204, 299]) {
      server.respond((_, response) => response.writeHead(status).end());
      t.same(await post(), { ok: true }, `${status}`);
    }
    const [request] = requests;
    t.match(request, { method: 'POST', url: '/in?token=t0p', body });
    t.match(request?.headers, {
      host: NAME,
      'content-type': 'application/json',
      'content-length': String(body.length),
      'idempotency-key': 'k1',
      'user-agent': 'sluice',
    });
    t.same([request?.headers.authorization, request?.headers.cookie], [undefined, undefined], 'no credentials');
    t.same(dialled, Array(5).fill(`${WEB} 443`));
  });

  await t.test('where it must not go', async (t) => {
    const rows: [string, string, typeof names, object][] = [
      ['a host that is not allowed', 'https://evil.test/', [WEB], { reason: 'HostNotAllowed' }],
      ['a port that is not allowed', `https://${NAME}:22/`, [WEB], { reason: 'HostNotAllowed' }],
      ['not https', `http://${NAME}/`, [WEB], { reason: 'DeliveryFailed', message: /begins with https/ }],
      ['a private address', `https://${NAME}/`, ['10.244.1.5'], { reason: 'AddressForbidden', message: /\(pod\)/ }],
      ['loopback behind a good one', `https://${NAME}/`, [WEB, '127.0.0.1'], { reason: 'AddressForbidden' }],
      ['a name without address', `https://${NAME}/`, [], { reason: 'DeliveryFailed', message: /has no address/ }],
    ];
    for (const [title, url, addresses, wanted] of rows) {
      names = addresses;
      t.match(await post(url), { ok: false, ...wanted }, title);
    }
    t.same(dialled, [], 'no connection was opened');
    t.same(requests, []);
  });

  await t.test('a name that changes its mind: the connection goes to what was checked', async (t) => {
    let calls = 0;
    names = async () => (++calls === 1 ? [WEB] : ['127.0.0.1']);
    t.same(await post(), { ok: true });
    t.same([calls, dialled], [1, [`${WEB} 443`]]);
    t.match(await post(), { ok: false, reason: 'AddressForbidden' }, 'next time it is refused');
    t.same(dialled, [`${WEB} 443`]);
  });

  await t.test('redirects are not followed, not even to the same host', async (t) => {
    for (const status of [301, 302, 303, 307, 308]) {
      server.respond((_, response) => response.writeHead(status, { location: '/elsewhere' }).end());
      t.match(await post(), {
        ok: false,
        reason: 'DeliveryFailed',
        message: `expected status 200 to 299, got ${status}: no redirect is followed`,
      });
    }
    t.same(
      requests.map(({ url }) => url),
      Array(5).fill('/in?token=t0p'),
    );
  });

  await t.test('what a server answers is neither read nor told', async (t) => {
    const rows: [string, Parameters<Server['respond']>[0], object][] = [
      ['an error', (_, r) => r.writeHead(500).end('hunter2'), { message: 'expected status 200 to 299, got 500' }],
      ['no HTTP', ({ socket }) => socket.end('hunter2\r\n'), { message: /^cannot deliver: HPE_[A-Z_]+$/ }],
      ['gone', (_, r) => r.destroy(), { message: 'cannot deliver: ECONNRESET' }],
      [
        'headers without end',
        (_, r) => r.writeHead(200, { x: 'y'.repeat(15_000), z: 'y'.repeat(15_000) }).end(),
        { message: /HPE_HEADER_OVERFLOW/ },
      ],
    ];
    for (const [title, misbehave, wanted] of rows) {
      server.respond(misbehave);
      const outcome = await post();
      t.match(outcome, { ok: false, reason: 'DeliveryFailed', ...wanted }, title);
      t.notMatch(JSON.stringify(outcome), /hunter2|t0p/, `${title}: nothing of it, nor of the URL`);
    }
    const { ca: _, ...strange } = world;
    const outcome = await postWebhook(
      { url: `https://${NAME}/`, body, key: 'k' },
      policy,
      strange,
      new AbortController().signal,
    );
    t.match(outcome, { ok: false, message: /^cannot deliver: (UNABLE|SELF|DEPTH)/ }, 'a CA that nobody trusts');
    let sent = 0;
    let closed: (() => void) | undefined;
    const over = new Promise<void>((done) => {
      closed = done;
    });
    server.respond((_, response) => {
      response.writeHead(200);
      const more = (): void => {
        while (!response.destroyed && response.write('x'.repeat(65_536))) sent += 65_536;
      };
      response.on('drain', more).on('close', () => closed?.());
      more();
    });
    const since = performance.now();
    t.same(await post(), { ok: true }, 'a huge answer: its status is all that counts');
    await over;
    t.ok(performance.now() - since < 1900, 'the connection ends before its time does');
    t.ok(sent < 32 * 1024 * 1024, `after ${sent} bytes`);
  });

  await t.test('time is bounded, in whichever part it is lost', async (t) => {
    const rows: [string, () => void][] = [
      ['the look-up', () => (names = () => new Promise(() => undefined))],
      ['the headers', () => server.respond(() => undefined)],
      [
        'headers that drip (slow loris)',
        () =>
          server.respond(({ socket }) => {
            socket.write('HTTP/1.1 200 OK\r\n');
            const timer = setInterval(() => socket.write('a: b\r\n'), 20);
            socket.on('close', () => clearInterval(timer)).on('error', () => undefined);
          }),
      ],
    ];
    for (const [title, lose] of rows) {
      names = [WEB];
      lose();
      const since = performance.now();
      setTimeout(collectGarbage, 100);
      const outcome = await post(undefined, { timeoutMs: 300 });
      t.match(outcome, { ok: false, reason: 'DeliveryFailed', message: /took longer than 0.3 s|ETIMEDOUT/ }, title);
      t.ok(performance.now() - since < 30_000, `${title}: given up in time`);
    }
  });
});

/** Of one request; nothing here lasts as long but what hangs. */
const TIMEOUT_MS = 10_000;

const manifests = (hosts: string): string => `${smallCluster(hosts)}---
{ apiVersion: sluice.dev/v1alpha1, kind: EgressIPPool, metadata: { name: d }, spec: { gatewayPool: p, ranges: [203.0.113.1, "2001:db8:113::1"], namespaceSelector: {} } }
---
{ apiVersion: sluice.dev/v1alpha1, kind: EgressIP, metadata: { name: a }, spec: { pool: d, addresses: [203.0.113.1, "2001:db8:113::1"], namespaces: [a] } }
---
{ apiVersion: sluice.dev/v1alpha1, kind: ExternalService, metadata: { name: web, namespace: a }, spec: { addresses: [198.51.100.80, "2001:db8:100::80"] } }
`;
const ruleText = (name: string, more: string): string =>
  `---\n{ apiVersion: sluice.dev/v1alpha1, kind: NamespaceEgressRule, metadata: { name: ${name}, namespace: a }, spec: { externalServices: [web], action: accept-decisively, ${more} } }\n`;

t.test('from manifests and reported hits to a POST; failing, recovering, restarted', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-wh-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const server = await serve(t, root);
  const certs = (name: string) => join(root, 'certs', name);
  await createCa(certs('ca'));
  const issue = (role: 'controller' | 'gateway', name: string, addresses: string[]) =>
    issueCertificate({ caDir: certs('ca'), outDir: certs(name), role, name, addresses });
  await issue('controller', 'ctl', ['127.0.0.1']);
  await issue('gateway', 'g1', []);
  const source = join(root, 'manifests');
  await mkdir(source);
  const write = (hosts: string, ...rules: string[]) =>
    writeFile(join(source, 'all.yaml'), manifests(hosts) + rules.join(''));
  const until = async (check: () => unknown, ms = 60_000): Promise<void> => {
    const since = performance.now();
    while (!(await check()) && performance.now() - since < ms) await new Promise((done) => setTimeout(done, 5));
  };
  const log: string[] = [];
  const sink = new Writable({
    write: (chunk, _, done) => {
      log.push(String(chunk));
      done();
    },
  });
  let controller: Controller | undefined;
  let gateway: PlanClient | undefined;
  let known: string[] = [];
  const stop = async (): Promise<void> => {
    await gateway?.close();
    await controller?.close();
  };
  t.teardown(stop);
  const start = async (): Promise<void> => {
    known = [];
    controller = await runController({
      source: `directory:${source}`,
      state: join(root, 'state'),
      listen: { host: '127.0.0.1', port: 0 },
      certs: certs('ctl'),
      metrics: { host: '127.0.0.1', port: 0 },
      log: pino({ level: 'debug' }, sink),
      fetcher: {
        world: {
          ca: server.ca,
          timeoutMs: TIMEOUT_MS,
          lookup: async (host) => (host === NAME ? [WEB] : ['127.0.0.1']),
          dial: () => connect({ host: '127.0.0.1', port: server.port }),
        },
        secondMs: 10,
      },
    });
    gateway = startPlanClient({
      role: 'gateway',
      name: 'g1',
      url: `https://127.0.0.1:${controller.port}`,
      certs: certs('g1'),
      addresses: [],
      log: silentLog(),
      async onPlan({ rules }) {
        known = Object.keys(rules);
      },
    });
  };
  /** As a gateway's totals: flows of each rule. */
  const report = (flows: Record<string, number>): void => {
    const rules = Object.entries(flows).map(([name, n]): [string, RuleHits] => [
      `namespace/a/${name}`,
      { hits: n, flows: n, packets: 10 * n, bytes: 1000 * n, lastHit: Date.UTC(2026, 10, 27, 12) },
    ]);
    t.ok(gateway?.report(hitsMessage('e0', rules)), 'reported');
  };
  const bodies = (): WebhookBody[] => server.requests.map(({ body }) => JSON.parse(body));
  const condition = async (name: string): Promise<string> => {
    const text = await readFile(join(source, '.status', 'NamespaceEgressRule', 'a', `${name}.yaml`), 'utf8').catch(
      () => '',
    );
    const document: unknown = parse(text);
    const status = isRecord(document) && isRecord(document.status) ? document.status : {};
    const conditions = Array.isArray(status.conditions) ? status.conditions : [];
    const found = conditions.find(({ type }) => type === 'WebhookFailing');
    return found === undefined ? 'none' : `${found.status} ${found.reason}: ${found.message}`;
  };
  const metrics = async (): Promise<string> =>
    (await fetch(`http://127.0.0.1:${controller?.metricsPort}/metrics`)).text();
  const hook = (path: string): string => `webhook: { url: "https://${NAME}/${path}?token=t0p" }`;

  await write(
    NAME,
    ruleText('told', hook('one')),
    ruleText('silent', 'priority: 2'),
    ruleText('evil', 'webhook: { url: "https://evil.test/" }'),
  );
  await start();
  await until(() => known.length === 3);
  t.equal(known.length, 3);
  report({ told: 3, silent: 9, evil: 4 });
  await until(() => server.requests.length > 0);
  const [first] = bodies();
  t.match(first, {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'PermittedFlows',
    time: /^20\d\d-.*Z$/,
  });
  t.same(first?.events, [
    {
      context: 'namespace',
      namespace: 'a',
      rule: 'told',
      action: 'accept-decisively',
      flows: 3,
      packets: 30,
      bytes: 3000,
      total: { flows: 3, packets: 30, bytes: 3000 },
      lastHit: '2026-11-27T12:00:00.000Z',
    },
  ]);
  t.match(server.requests[0], {
    method: 'POST',
    url: '/one?token=t0p',
    headers: { 'content-type': 'application/json' },
  });
  await until(async () => (await condition('told')) !== 'none');
  t.match(await condition('told'), /^False NotFailing/);
  t.equal(await condition('silent'), 'none');
  await until(async () => (await condition('evil')) !== 'none');
  t.match(await condition('evil'), /^True HostNotAllowed: host evil.test is not among fetch.allowedHosts/);
  report({ told: 3 });
  await new Promise((done) => setTimeout(done, 100));
  t.equal(server.requests.length, 1, 'the same totals again tell nothing');

  server.respond((_, response) => response.writeHead(503).end('hunter2'));
  report({ told: 5 });
  await until(() => server.requests.length >= 4);
  const [, ...attempts] = server.requests;
  t.equal(new Set(attempts.map(({ body }) => body)).size, 1, 'every attempt says the same');
  t.equal(new Set(attempts.map(({ headers }) => headers['idempotency-key'])).size, 1, 'under one key');
  t.match(bodies()[1]?.events, [{ rule: 'told', flows: 2 }]);
  await until(async () => /^True/.test(await condition('told')));
  t.equal(await condition('told'), 'True DeliveryFailed: expected status 200 to 299, got 503');
  t.match(await metrics(), /sluice_controller_webhooks_failing\{.*\} 1/);
  t.match(await metrics(), /sluice_controller_webhook_pending_events\{.*\} 1/);

  await stop();
  server.requests.length = 0;
  server.respond((_, response) => response.writeHead(200).end('hunter2'));
  await start();
  await until(() => server.requests.length > 0);
  t.match(bodies()[0]?.events, [{ rule: 'told', flows: 2, total: { flows: 5 } }], 'a restart loses nothing');
  t.equal(server.requests[0]?.headers['idempotency-key'], attempts[0]?.headers['idempotency-key'], 'and keeps the key');
  await until(() => known.length === 3);
  report({ told: 5, silent: 9, evil: 4 });
  await until(async () => /^False/.test(await condition('told')));
  t.match(await condition('told'), /^False NotFailing/);
  t.match(await metrics(), /sluice_controller_webhook_requests_total\{result="delivered".*\} 1/);
  t.match(await metrics(), /sluice_controller_webhook_events_total\{result="delivered".*\} 1/);

  server.requests.length = 0;
  await write('other.test', ruleText('told', hook('one')));
  await until(async () => /HostNotAllowed/.test(await condition('told')));
  report({ told: 8 });
  await new Promise((done) => setTimeout(done, 200));
  t.same(server.requests, [], 'a host that is not allowed any more hears nothing');
  await write(NAME, ruleText('told', hook('two')));
  await until(async () => /NotFailing/.test(await condition('told')));
  report({ told: 9 });
  await until(() => server.requests.length > 0);
  t.match(bodies()[0]?.events, [{ flows: 1, total: { flows: 9 } }], 'a new one begins with what comes');
  t.match(server.requests[0]?.url, /^\/two/);
  server.respond(() => undefined);
  report({ told: 10 });
  await until(() => server.requests.length > 1);
  const hanging = performance.now();
  await write(NAME, ruleText('told', hook('two')), ruleText('late', 'priority: 3'));
  await until(() => known.includes('namespace/a/late'));
  t.ok(performance.now() - hanging < TIMEOUT_MS, 'nothing waits for a receiver that hangs');
  await write(NAME, ruleText('told', `mode: Audit, ${hook('two')}`));
  await until(async () => (await condition('told')) === 'none');
  const heard = server.requests.length;
  report({ told: 20 });
  await new Promise((done) => setTimeout(done, 200));
  t.equal(server.requests.length, heard, 'a rule in audit permits nothing, and tells nothing');

  const everything = log.join('') + JSON.stringify(await readFile(join(root, 'state', 'hits.json'), 'utf8'));
  t.notMatch(everything, /hunter|t0p/, 'neither answers nor URLs in log or state');
  t.match(everything, /a webhook cannot be delivered; it is tried again/);
});

t.test('a batch that nobody takes is dropped, counted and logged', async (t) => {
  const log: string[] = [];
  const sink = new Writable({
    write: (chunk, _, done) => {
      log.push(String(chunk));
      done();
    },
  });
  const registry = new Registry();
  const bodies: string[] = [];
  let outcome: DeliveryOutcome = {
    ok: false,
    reason: 'DeliveryFailed',
    message: 'expected status 200 to 299, got 503',
  };
  const webhooks = new Webhooks({
    async post({ body }) {
      bodies.push(body);
      return outcome;
    },
    log: pino(sink),
    registry,
    now: () => 0,
    secondMs: 0.05,
  });
  t.teardown(() => webhooks.close());
  const totals = { hits: 3, flows: 3, packets: 0, bytes: 0, lastHit: 0 };
  const url = `https://${NAME}/t0p`;
  const rule = { context: 'cluster', rule: 'x', action: 'accept-decisively' } as const;
  webhooks.restore(new Map([['cluster/x', noHits()]]));
  webhooks.use(new Map([['cluster/x', { url, host: NAME, rule }]]), () => totals);
  const until = async (check: () => Promise<boolean>): Promise<void> => {
    for (let tries = 0; tries < 6000 && !(await check()); tries++) await new Promise((done) => setTimeout(done, 10));
  };
  await until(async () => /events_total\{result="dropped"\} 1/.test(await registry.metrics()));
  const metrics = await registry.metrics();
  t.match(metrics, /webhook_events_total\{result="dropped"\} 1/);
  t.match(metrics, /webhook_requests_total\{result="failed"\} 12/);
  t.match(metrics, /webhook_pending_events 0/);
  t.equal(new Set(bodies).size, 1, 'every attempt said the same');
  t.equal(webhooks.told.get('cluster/x')?.flows, 3, 'it counts as told');
  t.ok(webhooks.changed(), 'which is to be saved');
  t.match(webhooks.with('cluster/x', { conditions: [] }).conditions, [{ type: 'WebhookFailing' }]);
  outcome = { ok: true };
  totals.flows = 4;
  webhooks.grown(['cluster/x']);
  await until(async () => /webhooks_failing 0/.test(await registry.metrics()));
  t.same(
    log.map((line) => JSON.parse(line).msg),
    [
      'a webhook cannot be delivered; it is tried again',
      'events of a webhook are dropped',
      'a webhook is delivered to again',
    ],
  );
  t.notMatch(log.join(''), /t0p/);
});

t.test('a request that nobody wants any more is called off, and makes room', async (t) => {
  const registry = new Registry();
  const begun: { url: string; stop: AbortSignal }[] = [];
  const webhooks = new Webhooks({
    post: ({ url }, stop) =>
      new Promise((done) => {
        begun.push({ url, stop });
        stop.addEventListener('abort', () => done({ ok: false, reason: 'DeliveryFailed', message: 'called off' }));
      }),
    log: silentLog(),
    registry,
    now: () => 0,
    secondMs: 1,
  });
  const rules = Array.from({ length: 3 }, (_, i): [string, WebhookTarget] => [
    `cluster/r${i}`,
    {
      url: `https://${NAME}/${i}`,
      host: NAME,
      rule: { context: 'cluster', rule: `r${i}`, action: 'accept-decisively' },
    },
  ]);
  const totals = { hits: 1, flows: 1, packets: 0, bytes: 0, lastHit: 0 };
  webhooks.restore(new Map(rules.map(([id]) => [id, noHits()])));
  webhooks.use(new Map(rules), () => totals);
  const settled = () => new Promise((done) => setTimeout(done, 50));
  const until = async (check: () => boolean): Promise<void> => {
    for (let tries = 0; tries < 6000 && !check(); tries++) await new Promise((done) => setTimeout(done, 10));
  };
  await until(() => begun.length >= 2);
  await settled();
  t.equal(begun.length, 2, 'two of one host at once');
  const [first] = begun;
  webhooks.use(new Map(rules.filter(([, { url }]) => url !== first?.url)), () => totals);
  t.ok(first?.stop.aborted);
  await until(() => begun.length >= 3);
  await settled();
  t.equal(begun.length, 3, 'the next one has its turn');
  t.notMatch(await registry.metrics(), /result="failed"/, 'that is no failure');
  await webhooks.close();
  t.ok(
    begun.every(({ stop }) => stop.aborted),
    'the end ends them all',
  );
});

t.test('get: a webhook that fails is a problem, one that does not is none', async (t) => {
  const source = await mkdtemp(join(tmpdir(), 'sluice-wg-'));
  t.teardown(() => rm(source, { recursive: true, force: true }));
  await writeFile(join(source, 'all.yaml'), manifests(NAME) + ruleText('told', `webhook: { url: "https://${NAME}/" }`));
  const folder = join(source, '.status', 'NamespaceEgressRule', 'a');
  await mkdir(folder, { recursive: true });
  const say = (status: string, reason: string) => {
    const conditions = [{ type: 'WebhookFailing', status, reason, message: 'as it is' }];
    return writeFile(join(folder, 'told.yaml'), JSON.stringify({ status: { conditions } }));
  };
  const get = () => sluice('get', 'nsgr', '--source', `directory:${source}`, '-o', 'wide');
  await say('False', 'NotFailing');
  const fine = await get();
  t.match(fine.out, /told/);
  t.notMatch(fine.out, /NotFailing/);
  await say('True', 'DeliveryFailed');
  t.match((await get()).out, /told.*DeliveryFailed: as it is/);
});

t.test('explain and lint', async (t) => {
  const source = await mkdtemp(join(tmpdir(), 'sluice-we-'));
  t.teardown(() => rm(source, { recursive: true, force: true }));
  const run = async (...args: string[]): Promise<string> => {
    const { out, err } = await sluice(...args);
    return out + err;
  };
  const explain = (to: string, ...more: string[]) =>
    run('explain', '--source', `directory:${source}`, '--from', 'a/one', '--to', to, ...more);
  const hook = `webhook: { url: "https://${NAME}:8443/t0p" }`;
  await writeFile(join(source, 'all.yaml'), manifests(`"${NAME}:8443"`) + ruleText('told', hook));
  for (const to of ['198.51.100.80:443', '[2001:db8:100::80]:443']) {
    const text = await explain(to);
    t.match(text, /^Told to the rule's webhook at hooks.example.test:8443\.$/m, to);
    t.notMatch(text, /t0p/);
  }
  t.equal(JSON.parse(await explain('198.51.100.80:443', '-o', 'json')).webhook, `${NAME}:8443`);
  t.notMatch(await explain('198.51.100.81:443'), /webhook/, 'not of a flow that the rule does not permit');
  t.notMatch(await run('lint', source), /told/);
  await writeFile(join(source, 'all.yaml'), manifests('') + ruleText('told', hook));
  t.match(
    await run('lint', source),
    /all.yaml:\d+: warning: NamespaceEgressRule\/a\/told: HostNotAllowed: host hooks.example.test:8443 is not among/,
  );
  t.notMatch(await explain('198.51.100.80:443'), /webhook/, 'nor where it will not be told');
});

declare namespace Tap {
  interface Test {
    teardown(f: () => unknown): void;
  }
}
