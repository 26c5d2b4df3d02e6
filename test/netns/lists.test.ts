/**
 * Lists from a web server, with nothing in between: the real command, the real look-up (the namespace's own /etc/hosts),
 * real connections, and a CA that the controller's environment names. (The tricks have their table in
 * test/unit/fetch.test.ts, where names and connections are the test's own.)
 *
 *   t-li-c-PID (controller) 198.51.100.1/24, 2001:db8:100::1/64 --- veth --- 198.51.100.7, 2001:db8:100::7 t-li-w-PID (web)
 *
 * On the controller's machine traps listen on every address at 443: a connection there is what must not happen.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, rmdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { createServerCertificate } from '../../lab/servers/certificate.ts';

const CONTROLLER = `t-li-c-${process.pid}`;
const WEB = `t-li-w-${process.pid}`;
const NAMES = {
  'four.example.test': '198.51.100.7',
  'six.example.test': '2001:db8:100::7',
  'loopback.example.test': '127.0.0.1',
  'loopback6.example.test': '::1',
  'self.example.test': '198.51.100.1',
  'both.example.test': '198.51.100.7 127.0.0.1',
  'away.example.test': '198.51.100.7',
};

const run = (command: string): void => {
  const [program = '', ...args] = command.split(' ');
  execFileSync('timeout', ['20', program, ...args]);
};
const children: ChildProcess[] = [];
/** A child in a namespace; what it writes is collected. */
function start(namespace: string, args: string[], env: Record<string, string> = {}): { text: string } {
  const child = spawn('ip', ['netns', 'exec', namespace, process.execPath, ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const said = { text: '' };
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (chunk) => (said.text += chunk));
  children.push(child);
  return said;
}
async function until(t: Tap.Test, title: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const since = performance.now();
  while (!(await check()) && performance.now() - since < 60_000) await new Promise((done) => setTimeout(done, 20));
  t.ok(await check(), title);
}

const web = `
const { createServer } = require('node:https');
const { readFileSync } = require('node:fs');
const [dir] = process.argv.slice(1);
const server = createServer({ cert: readFileSync(dir + '/tls.crt'), key: readFileSync(dir + '/tls.key') }, (request, response) => {
  console.log(request.socket.remoteAddress, request.headers.host, request.url);
  if (request.url === '/away') response.writeHead(302, { location: 'https://loopback.example.test/list' }).end();
  else response.end(request.headers.host.startsWith('six') ? '2001:db8:6::/48\\n' : '192.0.2.0/24\\n');
});
server.listen(443, '::', () => console.log('ready'));
`;
const trap = `
const server = require('node:net').createServer((socket) => { console.log('caught'); socket.destroy(); });
server.listen(443, '::', () => console.log('ready'));
`;

t.test('the controller fetches lists, and from nowhere else', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-li-'));
  const config = join('/etc/netns', CONTROLLER);
  t.teardown(async () => {
    for (const child of children) child.kill('SIGKILL');
    for (const namespace of [CONTROLLER, WEB]) run(`ip netns del ${namespace}`);
    await rm(config, { recursive: true, force: true });
    await rmdir('/etc/netns').catch(() => undefined);
    await rm(root, { recursive: true, force: true });
  });
  for (const namespace of [CONTROLLER, WEB]) run(`ip netns add ${namespace}`);
  run(`ip link add e0 netns ${CONTROLLER} type veth peer name e0 netns ${WEB}`);
  for (const [namespace, host] of [
    [CONTROLLER, '1'],
    [WEB, '7'],
  ]) {
    run(`ip -n ${namespace} addr add 198.51.100.${host}/24 dev e0`);
    run(`ip -n ${namespace} addr add 2001:db8:100::${host}/64 dev e0 nodad`);
    for (const device of ['lo', 'e0']) run(`ip -n ${namespace} link set ${device} up`);
  }
  await mkdir(config, { recursive: true });
  const hosts = Object.entries(NAMES).flatMap(([name, list]) =>
    list.split(' ').map((address) => `${address} ${name}\n`),
  );
  await writeFile(join(config, 'hosts'), hosts.join(''));
  await writeFile(join(config, 'nsswitch.conf'), 'hosts: files\n');

  await createServerCertificate(join(root, 'web'), Object.keys(NAMES), Date.now());
  await createCa(join(root, 'ca'));
  await issueCertificate({
    caDir: join(root, 'ca'),
    outDir: join(root, 'ctl'),
    role: 'controller',
    name: 'c',
    addresses: ['127.0.0.1'],
  });
  const manifests = join(root, 'manifests');
  await mkdir(manifests);
  const names = Object.keys(NAMES);
  await writeFile(
    join(manifests, 'all.yaml'),
    `
apiVersion: sluice.dev/v1alpha1
kind: GatewayPool
metadata: { name: p }
spec:
  namespaceSelector: {}
  gateways: [{ name: g1, internalAddress: 10.0.0.31 }]
  interfaces: { internal: in, external: { name: out } }
  nextHops: { v4: [10.0.0.64] }
  fetch: { allowedHosts: [${names.join(', ')}] }
${names
  .map(
    (name) => `---
apiVersion: sluice.dev/v1alpha1
kind: ExternalService
metadata: { name: ${name.split('.')[0]}, namespace: a }
spec: { addressesFrom: [{ url: "https://${name}/${name.split('.')[0]}" }] }
`,
  )
  .join('')}`,
  );

  const served = start(WEB, ['-e', web, join(root, 'web')]);
  const traps = start(CONTROLLER, ['-e', trap]);
  await until(t, 'the servers listen', () => served.text.includes('ready') && traps.text.includes('ready'));
  const log = start(
    CONTROLLER,
    [
      ...['--enable-source-maps', fileURLToPath(new URL('../../cli/main.js', import.meta.url)), 'controller'],
      ...['--source', `directory:${manifests}`, '--state', join(root, 'state')],
      ...['--listen', '127.0.0.1:7790', '--certs', join(root, 'ctl')],
    ],
    { NODE_EXTRA_CA_CERTS: join(root, 'web', 'ca.crt') },
  );
  const status = (name: string) =>
    readFile(join(manifests, '.status', 'ExternalService', 'a', `${name}.yaml`), 'utf8').catch(() => '');
  const rows: [string, RegExp][] = [
    ['four', /entries: 1/],
    ['six', /entries: 1/],
    ['loopback', /reason: AddressForbidden[\s\S]*forbidden address\s+\(loopback\)/],
    ['loopback6', /reason: AddressForbidden[\s\S]*\(loopback\)/],
    ['self', /reason: AddressForbidden[\s\S]*\(controller\)/],
    ['both', /reason: AddressForbidden[\s\S]*\(loopback\)/],
    ['away', /reason: AddressForbidden[\s\S]*\(loopback\)/],
  ];
  for (const [name, wanted] of rows) await until(t, name, async () => wanted.test(await status(name)));
  t.match(served.text, /^::ffff:198\.51\.100\.1 four\.example\.test \/four$/m);
  t.match(served.text, /^2001:db8:100::1 six\.example\.test \/six$/m);
  t.notMatch(served.text, /both/, 'a name with one forbidden address is not asked at the other either');
  t.notMatch(traps.text, /caught/, 'nobody came to the traps');
  const lists = () => readFile(join(root, 'state', 'lists.json'), 'utf8').catch(() => '');
  // Saved behind, a moment after the statuses say it.
  await until(t, 'IPv4 is remembered', async () => /192\.0\.2\.0\/24/.test(await lists()));
  await until(t, 'IPv6 too', async () => /2001:db8:6::\/48/.test(await lists()));
  if (!t.passing()) t.comment(log.text.slice(-3000));
});

declare namespace Tap {
  interface Test {
    ok(value: unknown, title: string): unknown;
  }
}
