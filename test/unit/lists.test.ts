/**
 * Lists that ExternalServices take from elsewhere (design §3), through the front door: the controller over a directory
 * of manifests, and what a gateway gets to hear of it. ConfigMaps and files are edited as people do; an https server
 * here is what a URL leads to (as in fetch.test.ts, which has the tricks). A second of refreshSeconds is 2 ms here.
 */

import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { promisify } from 'node:util';
import { pino } from 'pino';
import t from 'tap';
import { parse } from 'yaml';
import { LIST_MAX_BYTES } from '../../api/address-list.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { runCli } from '../../cli/program.ts';
import { type Controller, runController } from '../../controller/main.ts';
import { fileSignature, readListFile } from '../../controller/observe/list-file.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { createServerCertificate } from '../../lab/servers/certificate.ts';
import { smallCluster } from './small-cluster.ts';

const NAME = 'lists.example.test';
/** Directories are looked at anyway every five seconds. */
const SOON_MS = 4_500;
const until = async (check: () => boolean | undefined | Promise<boolean>, ms = 60_000): Promise<number> => {
  const since = performance.now();
  while (!(await check()) && performance.now() - since < ms) await new Promise((done) => setTimeout(done, 2));
  return performance.now() - since;
};

const service = (name: string, spec: string): string =>
  `\n---\n{ apiVersion: sluice.dev/v1alpha1, kind: ExternalService, metadata: { name: ${name}, namespace: a }, spec: ${spec} }`;
const rule = (name: string, action: string, to: string): string =>
  `\n---\n{ apiVersion: sluice.dev/v1alpha1, kind: NamespaceEgressRule, metadata: { name: ${name}, namespace: a }, spec: { action: ${action}, externalServices: [${to}] } }`;
const configMap = (data: Record<string, string>): string =>
  `\n---\n${JSON.stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'cm', namespace: 'a' }, data })}`;

interface Rig {
  manifests: string;
  state: string;
  log: string[];
  requests: IncomingMessage[];
  respond(handler: (request: IncomingMessage, response: ServerResponse) => void): void;
  /** Addresses that the rule's destinations have in the gateway's plan; undefined: the rule is not in the plan. */
  addresses(rule: string): string[] | undefined;
  plan(): GatewayPlan | undefined;
  /** Reason and message of Accepted, `+` for True. */
  accepted(key: string): Promise<string>;
  status(key: string): Promise<unknown>;
  start(): Promise<void>;
  stop(): Promise<void>;
  metrics(): Promise<string>;
}

async function rig(t: Tap.Test): Promise<Rig> {
  const root = await mkdtemp(join(tmpdir(), 'sluice-l-'));
  const manifests = join(root, 'manifests');
  const certs = (name: string) => join(root, 'certs', name);
  await mkdir(join(manifests, 'lists'), { recursive: true });
  await createCa(certs('ca'));
  const issue = (role: 'controller' | 'gateway', name: string, addresses: string[]) =>
    issueCertificate({ caDir: certs('ca'), outDir: certs(name), role, name, addresses });
  await issue('controller', 'ctl', ['127.0.0.1']);
  await issue('gateway', 'g1', []);
  await createServerCertificate(certs('web'), [NAME], Date.now());
  const pem = (name: string) => readFile(join(certs('web'), name), 'utf8');
  let handler: Parameters<Rig['respond']>[0] = (_, response) => response.end('');
  const requests: IncomingMessage[] = [];
  const server = createServer({ cert: await pem('tls.crt'), key: await pem('tls.key') }, (request, response) => {
    requests.push(request);
    handler(request, response);
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const ca = await pem('ca.crt');
  const { port } = server.address() as AddressInfo;

  const log: string[] = [];
  const sink = new Writable({
    write: (chunk, _, done) => {
      log.push(String(chunk));
      done();
    },
  });
  let controller: Controller | undefined;
  let gateway: { close(): Promise<void> } | undefined;
  let current: GatewayPlan | undefined;
  const self: Rig = {
    manifests,
    state: join(root, 'state'),
    log,
    requests,
    respond(next) {
      handler = next;
    },
    addresses(name) {
      const found = current?.rules[`namespace/a/${name}`];
      if (found === undefined || found.services === '*') return undefined;
      return found.services.flatMap((key) => current?.services[key]?.addresses ?? []);
    },
    plan: () => current,
    async status(key) {
      const text = await readFile(join(manifests, '.status', `${key}.yaml`), 'utf8').catch(() => '');
      const document: unknown = parse(text);
      return isRecord(document) ? document.status : undefined;
    },
    async accepted(key) {
      const status = await self.status(key);
      const conditions = isRecord(status) && Array.isArray(status.conditions) ? status.conditions : [];
      const { status: yes, reason, message } = conditions.find(({ type }) => type === 'Accepted') ?? {};
      return `${yes === 'True' ? '+' : '-'}${reason}: ${message}`;
    },
    async start() {
      current = undefined;
      controller = await runController({
        source: `directory:${manifests}`,
        state: self.state,
        listen: { host: '127.0.0.1', port: 0 },
        certs: certs('ctl'),
        metrics: { host: '127.0.0.1', port: 0 },
        log: pino({ level: 'debug' }, sink),
        fetcher: {
          world: {
            ca,
            lookup: async (host) => (host === NAME ? ['198.51.100.7'] : ['127.0.0.1']),
            dial: () => connect({ host: '127.0.0.1', port }),
          },
          secondMs: 2,
        },
      });
      gateway = startPlanClient({
        role: 'gateway',
        name: 'g1',
        url: `https://127.0.0.1:${controller.port}`,
        certs: certs('g1'),
        addresses: [],
        log: silentLog(),
        async onPlan(next: GatewayPlan) {
          current = next;
        },
      });
    },
    async stop() {
      await gateway?.close();
      await controller?.close();
      gateway = undefined;
      controller = undefined;
    },
    async metrics() {
      return (await fetch(`http://127.0.0.1:${controller?.metricsPort}/metrics`)).text();
    },
  };
  t.teardown(async () => {
    await self.stop();
    server.closeAllConnections();
    server.close();
    await rm(root, { recursive: true, force: true });
  });
  return self;
}

t.test('a ConfigMap and a file: read, edited, spoilt, taken away', async (t) => {
  const r = await rig(t);
  const write = (file: string, text: string) => writeFile(join(r.manifests, file), text);
  const is = async (title: string, name: string, expected: string[] | undefined) => {
    const took = await until(() => JSON.stringify(r.addresses(name)) === JSON.stringify(expected));
    t.same(r.addresses(name), expected, title);
    return took;
  };
  const says = async (key: string, wanted: RegExp, title = key) => {
    await until(async () => wanted.test(await r.accepted(key)));
    t.match(await r.accepted(key), wanted, title);
  };
  await write('base.yaml', smallCluster(''));
  await write('lists/file.json', '{"comment": ["x"], "addresses": ["2001:db8::/48", "192.0.2.9"]}');
  await write(
    'policy.yaml',
    service(
      'own',
      '{ addresses: [198.51.100.1], addressesFrom: [{ configMapRef: { name: cm, key: a.txt } }, { file: lists/file.json, format: JSON }] }',
    ) +
      service('all', '{ addressesFrom: [{ configMapRef: { name: cm } }] }') +
      rule('pass', 'accept', 'own') +
      rule('all', 'accept', 'all') +
      rule('stop', 'drop', 'own'),
  );
  const good =
    'a list # with words\n'.replace('a list ', '') +
    '\n  192.0.2.0/30\t# four\r\n192.0.2.16-192.0.2.19\n192.0.2.0/30\n2001:DB8:0:1::1\n';
  await write('cm.yaml', configMap({ 'a.txt': good, 'b.txt': '203.0.113.1' }));
  await r.start();
  const all = [
    '192.0.2.0/30',
    '192.0.2.16/30',
    '192.0.2.9/32',
    '198.51.100.1/32',
    '2001:db8:0:1::1/128',
    '2001:db8::/48',
  ];
  await is('addresses, a ConfigMap and a file together', 'pass', all);
  await is('of a drop rule too', 'stop', all);
  await is('all keys of a ConfigMap', 'all', [
    '192.0.2.0/30',
    '192.0.2.16/30',
    '2001:db8:0:1::1/128',
    '203.0.113.1/32',
  ]);
  await says('ExternalService/a/own', /^\+Accepted/);
  t.match(await r.status('ExternalService/a/own'), {
    lists: [
      { from: 'ConfigMap cm', entries: 3 },
      { from: 'lists/file.json', entries: 2 },
    ],
  });
  t.match(await r.metrics(), /sluice_controller_lists\{state="current".*\} 3/);

  await write('cm.yaml', configMap({ 'a.txt': '192.0.2.77', 'b.txt': '203.0.113.1' }));
  const rest = ['192.0.2.9/32', '198.51.100.1/32', '2001:db8::/48'];
  t.ok((await is('an edited ConfigMap', 'pass', ['192.0.2.77/32', ...rest])) < SOON_MS, 'soon');
  await new Promise((done) => setTimeout(done, 150));
  await write('lists/file.json', '["192.0.2.10"]');
  t.ok((await is('an edited file', 'pass', ['192.0.2.10/32', '192.0.2.77/32', '198.51.100.1/32'])) < SOON_MS, 'soon');
  await write('lists/.new', '["192.0.2.11"]');
  await rename(join(r.manifests, 'lists/.new'), join(r.manifests, 'lists/file.json'));
  t.ok((await is('a file renamed over it', 'pass', ['192.0.2.11/32', '192.0.2.77/32', '198.51.100.1/32'])) < SOON_MS);
  const kept = ['192.0.2.11/32', '192.0.2.77/32', '198.51.100.1/32'];

  const spoilt: [string, string, RegExp][] = [
    [
      'a name',
      '192.0.2.1\nexample.test # a name',
      /^\+ListInvalid: addressesFrom\[0\]: key a.txt: line 2: expected an address, CIDR or FIRST-LAST, got "example.test" \(the last good list stays in force, 1 entry\)$/,
    ],
    ['host bits', '192.0.2.1/24', /line 1: expected an address/],
    ['nothing at all', '  \n', /expected a list .* got nothing/],
    ['a mapped address', '::ffff:192.0.2.1', /not mapped into IPv6/],
  ];
  for (const [title, text, wrong] of spoilt) {
    await write('cm.yaml', configMap({ 'a.txt': text, 'b.txt': '203.0.113.1' }));
    await says('ExternalService/a/own', wrong, `${title}: said`);
    t.same(r.addresses('pass'), kept, `${title}: what was in force stays`);
  }
  t.match(await r.metrics(), /sluice_controller_lists\{state="stale".*\} 2/);
  await new Promise((done) => setTimeout(done, 150));
  await write('lists/file.json', '["192.0.2.12", "s3cret-token", {"a": 1}]');
  const quiet =
    /addressesFrom\[1\]: \[1\]: expected an address, CIDR or FIRST-LAST, got 12 characters that are none; \[2\]: expected text, got an object \(the last good/;
  await says('ExternalService/a/own', quiet);
  t.notMatch(JSON.stringify(await r.status('ExternalService/a/own')), /s3cret/, 'a file’s content is not told');

  await r.stop();
  await r.start();
  await is('what was in force stays, over a restart too', 'pass', kept);
  await write('cm.yaml', configMap({ 'a.txt': '# none at present\n' }));
  await is('an empty list, meant so', 'pass', ['192.0.2.11/32', '198.51.100.1/32']);

  await rm(join(r.manifests, 'lists/file.json'));
  await is('a file that is gone is gone for an accept rule', 'pass', ['198.51.100.1/32']);
  t.same(r.addresses('stop'), ['192.0.2.11/32', '198.51.100.1/32'], 'a drop rule keeps what was in force');
  await says(
    'ExternalService/a/own',
    /^-FileNotFound: addressesFrom\[1\]: there is no file lists\/file.json \(no list yet\)/,
  );
  await says(
    'NamespaceEgressRule/a/stop',
    /^\+ListNotRead: a list of external service a\/own was never read: what was in force stays/,
  );
  await says('NamespaceEgressRule/a/pass', /^\+ListNotRead: .*it matches the rest/);
  await rm(join(r.manifests, 'cm.yaml'));
  await is('a ConfigMap too', 'all', []);
  await says(
    'ExternalService/a/all',
    /^-ConfigMapNotFound: addressesFrom\[0\]: there is no ConfigMap cm in namespace a/,
  );
  await write('lists/file.json', '["192.0.2.13"]');
  await write('cm.yaml', configMap({ 'c.txt': '192.0.2.14' }));
  await is('and comes back', 'all', ['192.0.2.14/32']);
  await is('only half of it: the drop rule still keeps', 'stop', ['192.0.2.11/32', '198.51.100.1/32']);
  await says('ExternalService/a/own', /^-ConfigMapNotFound: addressesFrom\[0\]: ConfigMap cm has no key a.txt/);
  await write('cm.yaml', configMap({ 'a.txt': '192.0.2.15' }));
  await is('until all is known', 'stop', ['192.0.2.13/32', '192.0.2.15/32', '198.51.100.1/32']);
  t.same(r.addresses('pass'), r.addresses('stop'));
});

t.test('a URL', async (t) => {
  const r = await rig(t);
  const write = (file: string, text: string) => writeFile(join(r.manifests, file), text);
  const policy = (source: string, more = '') =>
    service(
      'feed',
      `{ addresses: [198.51.100.1], addressesFrom: [{ url: "https://${NAME}/list?token=t0p", refreshSeconds: 30 }${source}] }`,
    ) +
    rule('pass', 'accept', 'feed') +
    rule('stop', 'reject', 'feed') +
    service('rare', `{ addressesFrom: [{ url: "https://${NAME}/rare", refreshSeconds: 604800 }] }`) +
    rule('rare', 'accept', 'rare') +
    more;
  const is = async (title: string, name: string, expected: string[] | undefined) => {
    await until(() => r.plan() !== undefined && JSON.stringify(r.addresses(name)) === JSON.stringify(expected));
    t.same(r.addresses(name), expected, title);
  };
  const says = async (title: string, key: string, wanted: RegExp) => {
    await until(async () => wanted.test(await r.accepted(key)));
    t.match(await r.accepted(key), wanted, title);
  };
  const FEED = 'ExternalService/a/feed';
  let list = '192.0.2.1\n2001:db8::1\n';
  let down = true;
  r.respond((request, response) => {
    if (down) response.writeHead(503).end('internal: hunter2');
    else if (request.headers['if-none-match'] === `"${list.length}"`) response.writeHead(304).end();
    else response.writeHead(200, { etag: `"${list.length}"` }).end(list);
  });
  await write('base.yaml', smallCluster('other.test'));
  await write('policy.yaml', policy(''));
  await r.start();
  await is('not allowed: an accept rule matches the rest', 'pass', ['198.51.100.1/32']);
  await is('a reject rule is not in force', 'stop', undefined);
  await says(
    'as it says',
    FEED,
    /^-HostNotAllowed: addressesFrom\[0\]: host lists.example.test is not among fetch.allowedHosts of any GatewayPool \(no list yet\)/,
  );
  await says(
    'the rule too',
    'NamespaceEgressRule/a/stop',
    /^-ListNotRead: externalServices: a\/feed \(addressesFrom\[0\]\) never read and never in force: a reject rule would match too little/,
  );
  t.equal(r.requests.length, 0, 'nobody was asked');

  await write('base.yaml', smallCluster(`other.test, ${NAME}`));
  await says(
    'allowed, but the server is down',
    FEED,
    /^-FetchFailed: addressesFrom\[0\]: expected status 200, got 503 \(no list yet\)/,
  );
  await is('still', 'stop', undefined);
  down = false;
  await is('it is tried again', 'pass', ['192.0.2.1/32', '198.51.100.1/32', '2001:db8::1/128']);
  await is('however seldom it is fetched', 'rare', ['192.0.2.1/32', '2001:db8::1/128']);
  await is('now the reject rule is in force', 'stop', ['192.0.2.1/32', '198.51.100.1/32', '2001:db8::1/128']);
  await says('all is well', FEED, /^\+Accepted/);

  const before = r.requests.length;
  await until(() => r.requests.length > before + 2);
  t.equal(r.requests.at(-1)?.headers['if-none-match'], '"22"', 'asked again and again, with the ETag');
  const times = r.requests.length;
  list = '# changed\n192.0.2.2\n';
  await is('a changed list', 'pass', ['192.0.2.2/32', '198.51.100.1/32']);
  await is('everywhere', 'stop', ['192.0.2.2/32', '198.51.100.1/32']);
  t.ok(r.requests.length - times < 20, 'in the rhythm of refreshSeconds');

  const kept = ['192.0.2.2/32', '198.51.100.1/32'];
  list = 'hunter2 is the password\n192.0.2.3\nhunter3\n';
  await says(
    'a bad list',
    FEED,
    /^\+ListInvalid: addressesFrom\[0\]: line 1: expected an address, CIDR or FIRST-LAST, got 23 characters that are none; line 3: .* \(the last good list stays in force, 1 entry\)/,
  );
  t.same(r.addresses('pass'), kept);
  down = true;
  await says('a server that fails', FEED, /^\+FetchFailed: .*got 503 .*stays in force, 1 entry/);
  t.same(r.addresses('pass'), kept);
  t.same(r.addresses('stop'), kept);
  await r.stop();
  await r.start();
  await is('it stays over a restart, with the server still down', 'pass', kept);
  await is('everywhere', 'stop', kept);
  await says('as it says', FEED, /^\+FetchFailed/);
  const everything =
    r.log.join('') +
    JSON.stringify(await r.status(FEED)) +
    (await readFile(join(r.manifests, '.status', 'errors.yaml'), 'utf8'));
  t.notMatch(everything, /hunter/, 'no bodies in status or logs');
  t.notMatch(everything, /t0p/, 'nor the query of a URL');
  t.match(everything, /a list could not be fetched; what was in force stays/);

  await write('policy.yaml', policy(`, { url: "https://${NAME}/second" }`));
  await says('another list, never fetched', 'NamespaceEgressRule/a/stop', /^\+ListNotRead: .*what was in force stays/);
  await is('the accept rule has what is known', 'pass', kept);
  await is('the reject rule what was in force', 'stop', kept);
  t.same(r.plan()?.rules['namespace/a/stop']?.services, ['a/feed (last in force)']);
  down = false;
  list = '192.0.2.4\n';
  await is('until it is there', 'stop', ['192.0.2.4/32', '198.51.100.1/32']);

  await write('base.yaml', smallCluster('other.test'));
  await says('a host that is not allowed any more', FEED, /^\+HostNotAllowed: .*the last good list stays in force/);
  // What was on its way may still come.
  let asked = -1;
  for (let tries = 0; tries < 20 && asked !== r.requests.length; tries++) {
    asked = r.requests.length;
    await new Promise((done) => setTimeout(done, 250));
  }
  t.equal(r.requests.length, asked, 'is not asked any more');
  t.same(r.addresses('pass'), ['192.0.2.4/32', '198.51.100.1/32']);
  await write('base.yaml', smallCluster(`${NAME}, evil.test`));
  await write('policy.yaml', policy(', { url: "https://evil.test/" }'));
  await says(
    'an allowed name that leads to loopback',
    FEED,
    /AddressForbidden: addressesFrom\[1\]: host "evil.test" has a forbidden address \(loopback\) \(no list yet\)/,
  );
  const many = Array.from({ length: 5 }, (_, i) =>
    service(
      `many-${i}`,
      `{ addressesFrom: [${Array.from({ length: 14 }, (_, j) => `{ url: "https://${NAME}/${i}-${j}" }`).join(', ')}] }`,
    ),
  );
  await write('policy.yaml', policy('', many.join('')));
  await says(
    'more URLs than a namespace may have',
    'ExternalService/a/many-4',
    /addressesFrom\[13\]: more than 64 URLs in the namespace \(no list yet\)/,
  );
  await says('the older ones go on', 'ExternalService/a/many-0', /^\+Accepted/);
});

t.test('lint and explain: ConfigMaps and files are read, and URLs are said to be the controller’s', async (t) => {
  const r = await rig(t);
  const write = (file: string, text: string) => writeFile(join(r.manifests, file), text);
  const sluice = async (...args: string[]): Promise<{ code: number; out: string }> => {
    let out = '';
    const add = (text: string): void => {
      out += text;
    };
    const code = await runCli(args, { writeOut: add, writeErr: add, getOutHasColors: () => false });
    return { code, out };
  };
  const explain = (to: string, ...more: string[]) =>
    sluice('explain', '--source', `directory:${r.manifests}`, '--from', 'a/one', '--to', to, ...more);
  await write('base.yaml', smallCluster(NAME));
  await write(
    'egress.yaml',
    `
{ apiVersion: sluice.dev/v1alpha1, kind: EgressIPPool, metadata: { name: d }, spec: { gatewayPool: p, ranges: [203.0.113.1], namespaceSelector: {} } }
---
{ apiVersion: sluice.dev/v1alpha1, kind: EgressIP, metadata: { name: a }, spec: { pool: d, count: 1, namespaces: [a] } }
`,
  );
  await write('cm.yaml', configMap({ list: '192.0.2.1' }));
  await write('lists/file.txt', '192.0.2.2');
  const policy =
    service('near', '{ addressesFrom: [{ configMapRef: { name: cm } }, { file: lists/file.txt }] }') +
    service('far', `{ addressesFrom: [{ url: "https://${NAME}/list?token=t0p" }] }`) +
    rule('near', 'accept-decisively', 'near') +
    rule('far', 'accept-decisively', 'far');
  await write('policy.yaml', policy);
  const clean = await sluice('lint', r.manifests);
  t.equal(clean.code, 0, clean.out);
  t.match(
    clean.out,
    /policy.yaml:\d+: warning: ExternalService\/a\/far: NotFetched: addressesFrom\[0\]: only the controller fetches a url/,
  );
  t.notMatch(clean.out, /NamespaceEgressRule\/a\/far: MatchesNothing/, 'what it lists is not known here');
  t.notMatch(clean.out, /near/, 'the others are');
  for (const address of ['192.0.2.1', '192.0.2.2']) t.match((await explain(address)).out, /accept \(rule\)/, address);
  const blind = await explain('192.0.2.3');
  t.match(blind.out, /drop \(default-action\)/);
  t.match(
    blind.out,
    /The lists of an ExternalService are not all known here: a\/far: .*only the controller fetches a url, and its state was not given/,
  );

  r.respond((_, response) => response.end('192.0.2.3\n'));
  await r.start();
  await until(() => r.addresses('far')?.length === 1);
  await r.stop();
  const known = await explain('192.0.2.3', '--state', r.state);
  t.match(known.out, /accept \(rule\)/, 'with the controller’s state it is known');
  t.notMatch(known.out, /not all known/);

  await write('cm.yaml', configMap({ list: '192.0.2.1\nexample' }));
  await write('policy.yaml', policy + rule('stop', 'drop', 'far'));
  const spoilt = await sluice('lint', r.manifests);
  t.equal(spoilt.code, 1);
  t.match(
    spoilt.out,
    /policy.yaml:\d+: ExternalService\/a\/near: ListInvalid: addressesFrom\[0\]: key list: line 2: expected an address/,
  );
  t.match(
    spoilt.out,
    /warning: NamespaceEgressRule\/a\/stop: ListNotRead/,
    'that a drop rule’s list is not known here is no error',
  );
});

t.test('what a file may be', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-lf-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const manifests = join(root, 'manifests');
  const inside = (path: string) => join(manifests, path);
  await mkdir(inside('..data'), { recursive: true });
  await mkdir(join(root, 'manifests-other'));
  await writeFile(join(root, 'secret.txt'), '192.0.2.66');
  await writeFile(join(root, 'manifests-other', 'x.txt'), '192.0.2.66');
  await writeFile(inside('..data/list.txt'), '192.0.2.1');
  await symlink('..data/list.txt', inside('mounted.txt'));
  await symlink(join(root, 'secret.txt'), inside('absolute.txt'));
  await symlink('../secret.txt', inside('relative.txt'));
  await symlink('../manifests-other/x.txt', inside('sibling.txt'));
  await symlink('..', inside('up'));
  await symlink('/dev/zero', inside('device.txt'));
  await symlink('loop.txt', inside('loop.txt'));
  await promisify(execFile)('mkfifo', [inside('pipe.txt')]);
  await mkdir(inside('folder.txt'));
  await writeFile(inside('large.txt'), Buffer.alloc(LIST_MAX_BYTES + 1, '\n'));
  await writeFile(inside('largest.txt'), Buffer.alloc(LIST_MAX_BYTES, '\n'));
  await writeFile(inside('bytes.txt'), Buffer.from([0x31, 0xff, 0xfe]));
  const rows: [string, string | RegExp][] = [
    ['mounted.txt', '192.0.2.1'],
    ['largest.txt', '\n'.repeat(LIST_MAX_BYTES)],
    ['absolute.txt', /^FileUnreadable: expected a file below the manifests, got a link that leads out/],
    ['relative.txt', /leads out/],
    ['sibling.txt', /leads out/],
    ['up/secret.txt', /leads out/],
    ['device.txt', /leads out/],
    ['loop.txt', /^FileUnreadable: cannot read the file: ELOOP/],
    ['pipe.txt', /regular file/],
    ['folder.txt', /regular file/],
    ['large.txt', /^ListTooLarge: expected at most 4194304 bytes/],
    ['bytes.txt', /UTF-8/],
    ['none.txt', /^FileNotFound/],
  ];
  for (const [file, wanted] of rows) {
    const found = await readListFile(manifests, file);
    const text = found.ok ? found.text : `${found.reason}: ${found.message}`;
    if (typeof wanted === 'string') t.ok(text === wanted, file);
    else t.match(text, wanted, file);
    t.notMatch(text.slice(0, 200), /192\.0\.2\.66/, 'nothing from outside');
  }
  t.equal(await fileSignature(manifests, 'none.txt'), 'gone');
  t.equal(
    await fileSignature(join(root, 'away'), 'mounted.txt'),
    'unreadable',
    'without the directory nothing is known',
  );
});

declare namespace Tap {
  interface Test {
    teardown(f: () => unknown): void;
  }
}
