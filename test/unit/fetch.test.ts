/**
 * Fetching a list (design §3): one https server here, in a world of its own: names resolve as a test says, and a
 * connection to 198.51.100.7 (or another address of the table) is led to the server on loopback, after the fetcher has
 * checked it. Every trick of a hostile URL, name, certificate or server has a row; none may open a connection to where
 * it should not. That the real look-up and the real connection do the same is shown in test/netns/lists.test.ts.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { LIST_MAX_BYTES } from '../../api/address-list.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { type FetchOutcome, fetchList } from '../../controller/observe/fetch.ts';
import { allowedHosts, checkAddress, type FetchPolicy } from '../../controller/observe/fetch-policy.ts';
import type { HttpsWorld } from '../../controller/observe/https.ts';
import { forbiddenAddresses } from '../../controller/plan/forbidden.ts';
import { ofKind } from '../../controller/plan/snapshot.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { collectGarbage } from '../../daemon/heap.ts';
import { createServerCertificate } from '../../lab/servers/certificate.ts';

const NAME = 'lists.example.test';
const WEB = '198.51.100.7';
const WEB6 = '2001:db8:100::7';

function object(kind: string, name: string, spec: object, more: object = {}): AnyObject {
  const apiVersion = ['Node', 'Pod', 'Service'].includes(kind) ? 'v1' : 'sluice.dev/v1alpha1';
  const namespaced = ['Pod', 'Service'].includes(kind) ? { namespace: 'a' } : {};
  const parsed = parseObject({ apiVersion, kind, metadata: { name, ...namespaced }, spec, ...more });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
  return parsed.value;
}
const snapshot = new Map(
  [
    object('GatewayPool', 'p', {
      namespaceSelector: {},
      gateways: [{ name: 'g1', internalAddress: '10.0.0.31' }],
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: ['10.0.0.64-10.0.0.67'], v6: ['fd00:10::64-fd00:10::67'] },
      clusterCIDRs: ['10.244.0.0/16', 'fd00:244::/32'],
      fetch: {
        allowedHosts: ['Lists.Example.TEST', `${NAME}:8443`, 'other.example.test', WEB, `[${WEB6}]`, '127.0.0.1'],
      },
    }),
    object('GatewayPool', 'q', {
      namespaceSelector: { matchLabels: { a: 'b' } },
      gateways: [{ name: 'g2', internalAddress: '10.0.0.32' }],
      interfaces: { internal: 'in', external: { name: 'out' } },
      nextHops: { v4: ['10.0.0.68'] },
      fetch: { allowedHosts: ['second.example.test'] },
    }),
    object('EgressIPPool', 'd', { gatewayPool: 'p', ranges: ['203.0.113.96/27'], namespaceSelector: {} }),
    object(
      'Node',
      'n',
      { podCIDRs: ['10.9.0.0/24'] },
      {
        status: {
          addresses: [
            { type: 'InternalIP', address: '10.0.0.21' },
            { type: 'Hostname', address: 'n' },
          ],
        },
      },
    ),
    object(
      'Pod',
      'x',
      { nodeName: 'n' },
      { status: { phase: 'Running', podIPs: [{ ip: '10.8.0.5' }, { ip: 'fd08::5' }] } },
    ),
    object('Service', 's', { clusterIPs: ['10.96.0.10', 'None'] }),
  ].map((o) => [objectKey(o), o]),
);
const forbidden = forbiddenAddresses(snapshot, ['192.168.9.9', 'fe80::9'], ['203.0.113.31']);
const allowed = allowedHosts(ofKind(snapshot, 'GatewayPool'));
const policy = (): FetchPolicy => ({ allows: (host, port) => allowed.has(`${host} ${port}`), forbidden });

t.test('addresses that are never connected to', async (t) => {
  const rows: [string, string | undefined][] = [
    ['127.0.0.1', 'loopback'],
    ['127.255.255.254', 'loopback'],
    ['::1', 'loopback'],
    ['0.0.0.0', 'unspecified'],
    ['0.1.2.3', 'unspecified'],
    ['::', 'unspecified'],
    ['169.254.169.254', 'link-local'],
    ['fe80::1', 'link-local'],
    ['fd00:ec2::254', 'metadata'],
    ['100.100.100.200', 'metadata'],
    ['224.0.0.1', 'multicast'],
    ['ff02::1', 'multicast'],
    ['255.255.255.255', 'reserved'],
    ['::ffff:127.0.0.1', 'translated'],
    ['::ffff:198.51.100.7', 'translated'],
    ['::7f00:1', 'translated'],
    ['2002:7f00:1::1', 'translated'],
    ['2001:0:7f00:1::1', 'translated'],
    ['64:ff9b:1::7f00:1', 'translated'],
    ['64:ff9b::7f00:1', 'loopback'],
    ['64:ff9b::a00:1f', 'gateway'],
    ['10.244.3.4', 'cluster'],
    ['fd00:244:1::9', 'cluster'],
    ['10.0.0.31', 'gateway'],
    ['10.0.0.32', 'gateway'],
    ['10.0.0.66', 'gateway'],
    ['fd00:10::65', 'gateway'],
    ['203.0.113.31', 'gateway'],
    ['203.0.113.101', 'egress'],
    ['10.0.0.21', 'node'],
    ['10.9.0.7', 'node'],
    ['10.8.0.5', 'pod'],
    ['fd08::5', 'pod'],
    ['10.96.0.10', 'service'],
    ['192.168.9.9', 'controller'],
    ['127.1', 'unreadable'],
    ['fe80::1%eth0', 'unreadable'],
    ['', 'unreadable'],
    [WEB, undefined],
    [WEB6, undefined],
    ['64:ff9b::c633:6407', undefined],
    ['192.168.9.10', undefined],
    ['fd99::1', undefined],
  ];
  for (const [address, range] of rows) t.equal(checkAddress(address, forbidden), range, address);
});

t.test('fetchList', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-fetch-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  await createServerCertificate(join(root, 'names'), [NAME, 'other.example.test'], Date.now());
  await createServerCertificate(join(root, 'old'), [NAME], Date.now() - 90 * 86_400_000);
  await createCa(join(root, 'ca'));
  await issueCertificate({
    caDir: join(root, 'ca'),
    outDir: join(root, 'ip'),
    role: 'gateway',
    name: 'x',
    addresses: [WEB, WEB6],
  });
  const text = (path: string) => readFile(join(root, path), 'utf8');
  const ca = [await text('names/ca.crt'), await text('ip/ca.crt'), await text('old/ca.crt')].join('\n');

  let respond: (request: IncomingMessage, response: ServerResponse) => void = () => undefined;
  const requests: IncomingMessage[] = [];
  const serve = async (certificate: string): Promise<number> => {
    const server = createServer(
      { cert: await text(`${certificate}/tls.crt`), key: await text(`${certificate}/tls.key`) },
      (request, response) => {
        requests.push(request);
        respond(request, response);
      },
    );
    server.on('tlsClientError', () => undefined);
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    t.teardown(
      () =>
        new Promise((done) => {
          server.closeAllConnections();
          server.close(done);
        }),
    );
    return (server.address() as AddressInfo).port;
  };
  const byName = await serve('names');
  const byAddress = await serve('ip');
  const expired = await serve('old');

  /** Where a checked address leads to. */
  let ports: Record<string, number>;
  let names: Record<string, string[] | (() => Promise<string[]>)>;
  let dialled: string[];
  let looked: string[];
  const world: HttpsWorld = {
    ca,
    timeoutMs: 10_000,
    async lookup(host) {
      looked.push(host);
      const found = names[host];
      return typeof found === 'function' ? found() : (found ?? []);
    },
    dial(address, port) {
      dialled.push(`${address} ${port}`);
      return connect({ host: '127.0.0.1', port: ports[address] ?? 1 });
    },
  };
  t.beforeEach(() => {
    ports = { [WEB]: byName, [WEB6]: byName };
    names = { [NAME]: [WEB], 'other.example.test': [WEB6], 'second.example.test': [WEB] };
    dialled = [];
    looked = [];
    requests.length = 0;
    respond = (_, response) => response.end('192.0.2.1\n');
  });
  const fetch = (url: string, etag?: string, more: Partial<HttpsWorld> = {}) =>
    fetchList(url, etag, policy, { ...world, ...more }, new AbortController().signal);
  const body = (outcome: FetchOutcome) =>
    outcome.ok ? Buffer.from(outcome.body ?? []).toString() : `${outcome.reason}: ${outcome.message}`;

  await t.test('a list comes', async (t) => {
    const outcome = await fetch(`https://${NAME}/list.txt?a=b`);
    t.equal(body(outcome), '192.0.2.1\n');
    t.same(dialled, [`${WEB} 443`]);
    t.same(looked, [NAME], 'the name is looked up once');
    const [request] = requests;
    t.equal(request?.url, '/list.txt?a=b');
    t.equal(request?.method, 'GET');
    t.equal(request?.headers.host, NAME);
    t.equal(request?.headers['accept-encoding'], 'identity');
    t.same([request?.headers.authorization, request?.headers.cookie], [undefined, undefined], 'no credentials');
  });

  await t.test('hosts: which, written how', async (t) => {
    const rows: [string, string, RegExp | null][] = [
      ['upper case', 'https://LISTS.Example.TEST/', null],
      ['another port that is allowed', `https://${NAME}:8443/`, null],
      ['443 in as many words', `https://${NAME}:443/`, null],
      ['a host of another pool', 'https://second.example.test/', /ERR_TLS_CERT_ALTNAME_INVALID/],
      ['an address that is allowed', `https://${WEB}/`, null],
      ['an IPv6 address', `https://[2001:DB8:100:0::7]/`, null],
      ['a host that is not allowed', 'https://evil.example.test/', /^HostNotAllowed: host "evil.example.test"/],
      ['below an allowed one', `https://a.${NAME}/`, /^HostNotAllowed/],
      ['an allowed one in front', `https://${NAME}.evil.test/`, /^HostNotAllowed/],
      ['a port that is not allowed', `https://${NAME}:9443/`, /^HostNotAllowed: host "lists.example.test:9443"/],
      ['an address that is not allowed', 'https://198.51.100.8/', /^HostNotAllowed/],
      ['loopback, though someone allowed it', 'https://127.0.0.1/', /^AddressForbidden: host "127.0.0.1".*loopback/],
      ['not https', `http://${NAME}/`, /^FetchFailed: url: expected a URL that begins with https/],
      ['with a password', `https://u:p@${NAME}/`, /without user and password/],
      ['a trailing dot', `https://${NAME}./`, /without trailing dot/],
      ['a number', 'https://2130706433/', /four decimal numbers/],
    ];
    for (const [title, url, wrong] of rows) {
      ports = { [WEB]: url.includes(WEB) ? byAddress : byName, [WEB6]: url.includes('[') ? byAddress : byName };
      dialled = [];
      const found = body(await fetch(url));
      if (wrong === null) t.equal(found, '192.0.2.1\n', title);
      else {
        t.match(found, wrong, title);
        if (!/ALTNAME/.test(wrong.source)) t.same(dialled, [], `${title}: no connection`);
      }
    }
  });

  await t.test('names that resolve to where nobody may go', async (t) => {
    const rows: [string, string[], RegExp][] = [
      ['loopback', ['127.0.0.1'], /loopback/],
      ['loopback of IPv6', ['::1'], /loopback/],
      ['metadata', ['169.254.169.254'], /link-local/],
      ['a mapped address', ['::ffff:127.0.0.1'], /translated/],
      ['through NAT64', ['64:ff9b::7f00:1'], /loopback/],
      ['a pod', ['10.244.1.2'], /cluster/],
      ['a gateway', ['10.0.0.31'], /gateway/],
      ['a node', ['10.0.0.21'], /node/],
      ['the controller itself', ['192.168.9.9'], /controller/],
      ['a good one before a bad one', [WEB, '127.0.0.1'], /loopback/],
      ['a zone', ['fe80::1%lo'], /unreadable/],
    ];
    for (const [title, addresses, range] of rows) {
      names[NAME] = addresses;
      const outcome = await fetch(`https://${NAME}/`);
      t.match(outcome, { ok: false, reason: 'AddressForbidden', message: range }, title);
      if (!outcome.ok)
        for (const address of addresses) t.notOk(outcome.message.includes(address), 'the address is not told');
    }
    t.same(dialled, []);
    names[NAME] = [];
    t.match(await fetch(`https://${NAME}/`), { ok: false, reason: 'FetchFailed', message: /has no address/ });
  });

  await t.test('a name that changes its mind: the connection goes to what was checked', async (t) => {
    let calls = 0;
    names[NAME] = async () => (++calls === 1 ? [WEB] : ['127.0.0.1']);
    t.equal(body(await fetch(`https://${NAME}/`)), '192.0.2.1\n');
    t.same([calls, dialled], [1, [`${WEB} 443`]]);
    t.match(await fetch(`https://${NAME}/`), { ok: false, reason: 'AddressForbidden' }, 'next time it is refused');
    t.same(dialled, [`${WEB} 443`]);
    calls = 0;
    respond = (request, response) => {
      if (request.url === '/') response.writeHead(302, { location: '/again' }).end();
      else response.end('192.0.2.1\n');
    };
    t.match(await fetch(`https://${NAME}/`), { ok: false, reason: 'AddressForbidden' }, 'also between two redirects');
    t.same(dialled, [`${WEB} 443`, `${WEB} 443`]);
  });

  await t.test('redirects', async (t) => {
    const rows: [string, string | undefined, RegExp | null][] = [
      ['on the same host', '/final', null],
      ['relative', 'final', null],
      ['to another allowed host', 'https://other.example.test/final', null],
      ['without a scheme', '//other.example.test/final', null],
      ['with a fragment', '/final#here', null],
      ['to a host that is not allowed', 'https://evil.example.test/final', /^HostNotAllowed: host "evil.example.test"/],
      ['to http', `http://${NAME}/final`, /^FetchFailed: redirect: expected a URL that begins with https/],
      ['to a file', 'file:///etc/passwd', /^FetchFailed: redirect/],
      ['to loopback', 'https://127.0.0.1/final', /^AddressForbidden/],
      ['to loopback in hex', 'https://0x7f.1/final', /four decimal numbers/],
      ['to loopback in hex, without a scheme', '//0x7f.1/final', /four decimal numbers/],
      ['with a password', `https://u:p@${NAME}/final`, /without user and password/],
      ['with backslashes', '\\\\evil.example.test/final', /printable ASCII/],
      ['to another port', `https://${NAME}:22/final`, /^HostNotAllowed/],
      ['to an allowed name at a forbidden address', 'https://second.example.test/final', /^AddressForbidden/],
      ['to nowhere', undefined, /redirect: expected a location/],
    ];
    for (const status of [301, 302, 303, 307, 308]) {
      for (const [title, location, wrong] of rows) {
        names['second.example.test'] = ['10.244.0.1'];
        requests.length = 0;
        respond = (request, response) => {
          if (request.url === '/final') response.end('192.0.2.9\n');
          else response.writeHead(status, location === undefined ? {} : { location }).end('192.0.2.66\n');
        };
        const found = body(await fetch(`https://${NAME}/start`));
        if (wrong === null) t.equal(found, '192.0.2.9\n', `${status} ${title}`);
        else {
          t.match(found, wrong, `${status} ${title}`);
          t.equal(requests.length, 1, `${status} ${title}: nobody else is asked`);
        }
      }
    }
    respond = (request, response) => {
      const at = Number(request.url?.slice(1) || 0);
      if (at >= limit) response.end('192.0.2.9\n');
      else response.writeHead(302, { location: `/${at + 1}` }).end();
    };
    let limit = 3;
    t.equal(body(await fetch(`https://${NAME}/`)), '192.0.2.9\n', 'three of them');
    limit = 4;
    t.match(await fetch(`https://${NAME}/`), { ok: false, message: 'more than 3 redirects' });
    limit = Number.POSITIVE_INFINITY;
    t.match(await fetch(`https://${NAME}/`), { ok: false, message: 'more than 3 redirects' }, 'a loop');
    const policies = [policy(), { ...policy(), allows: () => false }];
    const moved = await fetchList(
      `https://${NAME}/`,
      undefined,
      () => policies.shift() ?? policy(),
      world,
      new AbortController().signal,
    );
    t.match(moved, { ok: false, reason: 'HostNotAllowed' }, 'what is allowed is asked again for every redirect');
  });

  await t.test('certificates', async (t) => {
    ports[WEB] = byAddress;
    t.match(
      await fetch(`https://${NAME}/`),
      { ok: false, message: 'cannot fetch: ERR_TLS_CERT_ALTNAME_INVALID' },
      'of another name',
    );
    ports[WEB] = byName;
    t.match(
      await fetch(`https://${WEB}/`),
      { ok: false, message: 'cannot fetch: ERR_TLS_CERT_ALTNAME_INVALID' },
      'of no address',
    );
    ports[WEB] = expired;
    t.match(await fetch(`https://${NAME}/`), { ok: false, message: 'cannot fetch: CERT_HAS_EXPIRED' }, 'expired');
    ports[WEB] = byName;
    const { ca: _, ...strange } = world;
    const unknown = await fetchList(`https://${NAME}/`, undefined, policy, strange, new AbortController().signal);
    t.match(unknown, { ok: false, message: /^cannot fetch: (UNABLE|SELF|DEPTH)/ }, 'of a CA that nobody trusts');
    t.equal(requests.length, 0, 'no request is made of any of them');
  });

  await t.test('ETags', async (t) => {
    respond = (request, response) => {
      if (request.headers['if-none-match'] === '"v1"') response.writeHead(304).end();
      else response.writeHead(200, { etag: '"v1"' }).end('192.0.2.1\n');
    };
    t.match(await fetch(`https://${NAME}/`), { ok: true, etag: '"v1"' });
    t.same(await fetch(`https://${NAME}/`, '"v1"'), { ok: true }, 'unchanged');
    t.equal(body(await fetch(`https://${NAME}/`, '"v0"')), '192.0.2.1\n');
    respond = (_, response) => response.writeHead(304).end();
    t.match(
      await fetch(`https://${NAME}/`),
      { ok: false, message: /got 304/ },
      'unchanged, to somebody who has nothing',
    );
    for (const etag of ['v1', '"a"b"', `"${'x'.repeat(300)}"`, '"a b"']) {
      respond = (_, response) => response.writeHead(200, { etag }).end('192.0.2.1\n');
      t.notOk('etag' in (await fetch(`https://${NAME}/`)), `${etag.slice(0, 20)} is no ETag to send back`);
    }
  });

  await t.test('servers that misbehave', async (t) => {
    const half = `${'192.0.2.1\n'.repeat(10)}`;
    const rows: [string, typeof respond, RegExp][] = [
      [
        'an error',
        (_, r) => r.writeHead(500).end('the password is hunter2'),
        /^FetchFailed: expected status 200, got 500$/,
      ],
      ['not found', (_, r) => r.writeHead(404).end('x'), /got 404$/],
      ['a part', (_, r) => r.writeHead(206).end('x'), /got 206$/],
      [
        'too large, as announced',
        (_, r) => r.writeHead(200, { 'content-length': LIST_MAX_BYTES + 1 }).flushHeaders(),
        /^ListTooLarge: expected at most 4194304 bytes/,
      ],
      ['too large, without a word', (_, r) => flood(r), /^ListTooLarge/],
      ['compressed', (_, r) => r.writeHead(200, { 'content-encoding': 'gzip' }).end('x'), /Content-Encoding/],
      [
        'cut short of its length',
        (_, r) => {
          r.writeHead(200, { 'content-length': 1000 });
          r.write(half, () => r.destroy());
        },
        /^FetchFailed/,
      ],
      [
        'cut short in chunks',
        (_, r) => {
          r.writeHead(200);
          r.write(half, () => r.destroy());
        },
        /^FetchFailed/,
      ],
      ['gone at once', (_, r) => r.destroy(), /^FetchFailed: cannot fetch: ECONNRESET$/],
      [
        'headers without end',
        (_, r) => r.writeHead(200, { x: 'y'.repeat(15_000), z: 'y'.repeat(15_000) }).end(),
        /HPE_HEADER_OVERFLOW/,
      ],
      [
        'no HTTP',
        (request) => request.socket.end('SSH-2.0-OpenSSH_9.2 hunter2\r\n'),
        /^FetchFailed: cannot fetch: HPE_[A-Z_]+$/,
      ],
    ];
    for (const [title, misbehave, wrong] of rows) {
      respond = misbehave;
      const found = body(await fetch(`https://${NAME}/`));
      t.match(found, wrong, title);
      t.notMatch(found, /hunter2/, 'nothing of what it said is told');
    }
    ports = {};
    t.match(await fetch(`https://${NAME}/`), { ok: false, message: 'cannot fetch: ECONNREFUSED' }, 'nobody listens');
    t.match(
      await fetch(`https://${NAME}/`, undefined, {
        lookup: () => Promise.reject(Object.assign(new Error('x'), { code: 'ENOTFOUND' })),
      }),
      { ok: false, message: 'cannot fetch: ENOTFOUND' },
    );
  });

  await t.test('time is bounded, in whichever part it is lost', async (t) => {
    const silent = connectable(t);
    const rows: [string, () => void][] = [
      [
        'the look-up',
        () => {
          names[NAME] = () => new Promise(() => undefined);
        },
      ],
      [
        'the handshake',
        () => {
          ports[WEB] = silent.port;
        },
      ],
      [
        'the headers',
        () => {
          respond = () => undefined;
        },
      ],
      [
        'the body',
        () => {
          respond = (_, r) => {
            r.writeHead(200);
            drip(r);
          };
        },
      ],
      [
        'one slow redirect after another',
        () => {
          respond = (_, r) => void setTimeout(() => r.writeHead(302, { location: '/x' }).end(), 120);
        },
      ],
    ];
    await silent.ready;
    for (const [title, lose] of rows) {
      names[NAME] = [WEB];
      ports[WEB] = byName;
      lose();
      const since = performance.now();
      setTimeout(collectGarbage, 100);
      const outcome = await fetch(`https://${NAME}/`, undefined, { timeoutMs: 300 });
      t.match(outcome, { ok: false, reason: 'FetchFailed', message: /took longer than 0.3 s|ETIMEDOUT/ }, title);
      t.ok(performance.now() - since < 30_000, `${title}: given up in time`);
    }
    const stop = new AbortController();
    respond = () => stop.abort();
    names[NAME] = [WEB];
    ports[WEB] = byName;
    const since = performance.now();
    await fetchList(`https://${NAME}/`, undefined, policy, world, stop.signal);
    t.ok(performance.now() - since < 9_000, 'stopped from outside, not by the time limit');
  });

  await t.test('a name with several addresses: the next one where one does not answer', async (t) => {
    names[NAME] = [WEB6, WEB];
    ports = { [WEB]: byName };
    t.equal(body(await fetch(`https://${NAME}/`)), '192.0.2.1\n');
    t.same(dialled, [`${WEB6} 443`, `${WEB} 443`]);
    dialled = [];
    names[NAME] = Array.from({ length: 40 }, (_, i) => `198.51.100.${i + 100}`);
    t.match(await fetch(`https://${NAME}/`), { ok: false });
    t.equal(dialled.length, 4, 'not of hundreds');
  });
});

function flood(response: ServerResponse): void {
  response.writeHead(200);
  const more = (): void => {
    while (!response.destroyed && response.write('192.0.2.1\n'.repeat(5000)));
  };
  response.on('drain', more);
  more();
}

function drip(response: ServerResponse): void {
  const timer = setInterval(() => response.write('192.0.2.1\n'), 20);
  response.on('close', () => clearInterval(timer));
}

/** Takes connections and says nothing. */
function connectable(t: { teardown(f: () => unknown): void }): { port: number; ready: Promise<void> } {
  const found = { port: 0, ready: Promise.resolve() };
  found.ready = import('node:net').then(
    ({ createServer: createTcpServer }) =>
      new Promise((done) => {
        const sockets = new Set<{ destroy(): void }>();
        const server = createTcpServer((socket) => sockets.add(socket.on('error', () => undefined)));
        t.teardown(() => {
          for (const socket of sockets) socket.destroy();
          server.close();
        });
        server.listen(0, '127.0.0.1', () => {
          found.port = (server.address() as AddressInfo).port;
          done();
        });
      }),
  );
  return found;
}
