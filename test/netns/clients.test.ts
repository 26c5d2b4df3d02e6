/**
 * Real clients, the whole way through the lab: each says what it is allowed to say and passes, and what it is not and is
 * refused at once, though the server's address and port are the same. Where no installed program says it (QUIC, ECH, a
 * hello over several segments), the bytes are made here. Of a refused flow no byte may come to the server: tcpdump beside it
 * is the witness.
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Family, families } from '../../api/plan.ts';
import { firewallView } from '../../lab/checks.ts';
import { down } from '../../lab/down.ts';
import { inNamespace, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { awaitReady } from '../../lab/ready.ts';
import { allowList, serverAddresses } from '../../lab/topology.ts';
import { up } from '../../lab/up.ts';
import {
  alpn,
  cryptoFrame,
  extension,
  helloMessage,
  outerEch,
  postQuantumShare,
  record,
  sealInitial,
  serverName,
  versions,
} from '../unit/hello-bytes.ts';
import type { Heard, Order } from './bytes-client.ts';
import { clientManifests } from './clients-manifests.ts';

t.setTimeout(570_000);
const lab = `t${process.pid}`;
const place = placeOf(lab);
const program = (name: string): string => fileURLToPath(new URL(`./${name}.js`, import.meta.url));
const { web, web2, odd } = serverAddresses;
/** Clients wait longer than this before they give up by themselves, so what ends earlier was refused. */
const AT_ONCE_MS = 5_000;
const CLIENT_MS = 20_000;

interface Row {
  what: string;
  argv: string[];
  input?: string;
  /** What a client prints (to either stream) that got through; undefined: it is to be refused. */
  passes?: RegExp;
}

const bracket = (address: string): string => (address.includes(':') ? `[${address}]` : address);
const certificates = (): string => place.state('web.web');

function curlRows(family: Family): Row[] {
  const own = new RegExp(`^${allowList.billing?.[family][0]?.replaceAll('.', '\\.')}\\s`);
  const curl = (...args: string[]): string[] => [
    ...['curl', `-${family}`, '-sS', '-m', '20', '--cacert', join(certificates(), 'ca.crt')],
    ...args,
  ];
  const rows: Row[] = [];
  for (const version of ['--http1.1', '--http2']) {
    const tell = ['-w', ' %{http_version}', version];
    rows.push(
      { what: `curl ${version}`, argv: curl(...tell, 'https://web.example.test/ip'), passes: own },
      { what: `curl ${version}, another name of the same address`, argv: curl(...tell, 'https://www.example.test/ip') },
      {
        what: `curl ${version}, a name of another service`,
        argv: curl(...tell, 'https://api.example.test/ip'),
        passes: own,
      },
    );
  }
  const host = (name: string): string[] => ['-H', `Host: ${name}`];
  rows.push(
    { what: 'curl, HTTP', argv: curl('http://web.example.test/ip'), passes: own },
    { what: 'curl, HTTP, another name', argv: curl('http://www.example.test/ip') },
    { what: 'curl, HTTP, another Host', argv: curl(...host('www.example.test'), 'http://web.example.test/ip') },
    { what: 'curl, no name but the address', argv: curl('-k', `https://${bracket(web[family])}/ip`) },
    {
      what: 'curl, the right name at the address of another server',
      argv: curl('--resolve', `web.example.test:443:${web2[family]}`, '-k', 'https://web.example.test/ip'),
    },
  );
  return rows;
}

function programRows(family: Family): Row[] {
  const to = `${bracket(web[family])}:443`;
  const openssl = (...args: string[]): string[] => ['openssl', 's_client', '-connect', to, '-brief', ...args];
  const established = /CONNECTION ESTABLISHED/;
  const ssh = (address: string, port: number): string[] => [
    ...['ssh', '-F', 'none', '-p', String(port), '-o', 'BatchMode=yes', '-o', 'StrictHostKeyChecking=no'],
    ...['-o', 'UserKnownHostsFile=/dev/null', '-o', 'ConnectTimeout=20', `nobody@${address}`, 'true'],
  ];
  const psql = (port: number, sslmode: string): string[] => [
    'psql',
    `host=${web[family]} port=${port} user=nobody dbname=none sslmode=${sslmode} connect_timeout=20`,
    ...['-Atc', 'select said'],
  ];
  const dig = (...args: string[]): string[] => ['dig', `@${web[family]}`, '+tries=1', '+time=20', '+short', ...args];
  const python = (...names: string[]): string[] => ['python3', '-c', PYTHON, web[family], ...names];
  return [
    { what: 'openssl, TLS 1.3', argv: openssl('-servername', 'web.example.test'), passes: established },
    { what: 'openssl, TLS 1.2', argv: openssl('-servername', 'web.example.test', '-tls1_2'), passes: established },
    { what: 'openssl, upper case', argv: openssl('-servername', 'WEB.example.TEST'), passes: established },
    { what: 'openssl, another name', argv: openssl('-servername', 'www.example.test') },
    { what: 'openssl, no name', argv: openssl('-noservername') },
    { what: 'python, a hello over two segments', argv: python('web.example.test'), passes: /^TLSv1/ },
    { what: 'python, another name in it', argv: python('www.example.test') },
    { what: 'ssh', argv: ssh(web[family], 22), passes: /Permission denied/ },
    { what: 'ssh on 443', argv: ssh(odd[family], 443) },
    { what: 'psql, TLS', argv: psql(5432, 'require'), passes: /^hello$/m },
    { what: 'psql, in clear', argv: psql(5432, 'disable'), passes: /^hello$/m },
    { what: 'psql where TLS is to be', argv: psql(5433, 'require') },
    {
      what: 'curl where PostgreSQL is to be',
      argv: ['curl', '-sS', '-m', '20', `http://${bracket(web[family])}:5432/`],
    },
    { what: 'dig', argv: dig('web.example.test', 'AAAA'), passes: new RegExp(`^${web[6]}$`, 'm') },
    { what: 'dig, below a name', argv: dig('x.rot.example.test', 'A'), passes: /^198\.51\.100\.\d+$/m },
    { what: 'dig, another name', argv: dig('www.example.test', 'A') },
    { what: 'dig, another type', argv: dig('web.example.test', 'TXT') },
    { what: 'dig over TCP', argv: dig('+tcp', 'web.example.test', 'A'), passes: /^198\.51\.100\.80$/m },
    { what: 'dig over TCP, another name', argv: dig('+tcp', 'www.example.test', 'A') },
  ];
}

/** OpenSSL offers so many protocols that its hello is longer than a packet. */
const PYTHON = `
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(['http/1.1'] + ['padding-%052d' % at for at in range(30)])
with socket.create_connection((sys.argv[1], 443), timeout=20) as plain:
    with context.wrap_socket(plain, server_hostname=sys.argv[2]) as secure:
        print(secure.version())
`;

function byteRows(family: Family): Row[] {
  const say = (port: number, pieces: Uint8Array[], udp?: true): Pick<Row, 'argv' | 'input'> => {
    const order: Order = {
      address: web[family],
      port,
      ...(udp && { udp }),
      pieces: pieces.map((piece) => Buffer.from(piece).toString('base64')),
      waitMs: CLIENT_MS,
    };
    return { argv: [process.execPath, program('bytes-client')], input: JSON.stringify(order) };
  };
  const bytes = /"how":"bytes"/;
  const hello = (name: string, ...more: Uint8Array[]): Uint8Array =>
    helloMessage({ extensions: [serverName(name), versions(0x0304, 0x0303), alpn('h2', 'http/1.1'), ...more] });
  const halves = (whole: Uint8Array): Uint8Array[] => [whole.subarray(0, 700), whole.subarray(700)];
  const rows: Row[] = [];
  for (const [name, passes] of [
    ['web.example.test', bytes],
    ['www.example.test', undefined],
  ] as const) {
    // Padding (RFC 7685): as long as hellos with two post-quantum shares, tickets and all.
    const large = record(hello(name, postQuantumShare(), extension(21, new Uint8Array(432))));
    const row = (what: string, how: Pick<Row, 'argv' | 'input'>): void => {
      rows.push({ what: `${what}, ${name}`, ...how, ...(passes && { passes }) });
    };
    row(`a hello of ${large.length} bytes in two sendings`, say(443, halves(large)));
    row('ECH, whose outer name is', say(443, [record(hello(name, outerEch()))]));
    for (const version of [1, 2] as const) {
      const alone = (frame: Uint8Array, number: number): Uint8Array =>
        sealInitial({
          version,
          destination: Buffer.from(`id-${version}-${name}`).subarray(0, 16),
          number,
          frames: [frame],
        });
      const message = hello(name);
      row(`QUIC version ${version}`, say(443, [alone(cryptoFrame(0, message), 0)], true));
      const long = hello(name, postQuantumShare());
      row(
        `QUIC version ${version}, a hello over two datagrams`,
        say(
          443,
          [alone(cryptoFrame(0, long.subarray(0, 900)), 0), alone(cryptoFrame(900, long.subarray(900)), 1)],
          true,
        ),
      );
    }
  }
  rows.push(
    {
      what: 'no ECH, where it is not allowed',
      ...say(443, [record(hello('api.example.test'))]),
      passes: bytes,
    },
    { what: 'ECH, where it is not allowed', ...say(443, [record(hello('api.example.test', outerEch()))]) },
    { what: 'bytes that are no QUIC', ...say(443, [new Uint8Array(1_200).fill(0x41)], true) },
  );
  return rows;
}

const refusals: { what: string; ms: number }[] = [];
const servers: { kill(): void; said(): string }[] = [];
t.teardown(async () => {
  for (const server of servers) server.kill();
  await down(lab);
});

function beside(host: string, argv: string[]): void {
  const [command = '', ...args] = inNamespace(place.namespace(host), argv);
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (part: Buffer) => (said += part.toString()));
  servers.push({ kill: () => child.kill('SIGKILL'), said: () => said });
}

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 60_000;
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`not so within a minute: ${what}`);
    await sleep(100);
  }
}

const ask = async ({ argv, input }: Pick<Row, 'argv' | 'input'>) => {
  const began = performance.now();
  const options = { timeoutMs: CLIENT_MS + 5_000, ...(input !== undefined && { input }) };
  const outcome = await run(inNamespace(place.namespace('pay-1'), argv), options);
  return { ...outcome, ms: performance.now() - began };
};

await t.test('the lab comes up, with names and protocols for billing', async () => {
  const world = await up({ name: lab });
  await awaitReady(world);
  beside('web', [process.execPath, program('client-servers'), certificates()]);
  await writeFile(join(place.manifests, '30-billing.yaml'), clientManifests);
  const works = { argv: ['curl', '-sk', '-m', '5', 'https://web.example.test/ip'] };
  await until('the allowed name passes', async () => (await ask(works)).code === 0);
  const refused = { argv: ['curl', '-sk', '-m', '5', 'https://www.example.test/ip'] };
  await until('another is refused', async () => (await ask(refused)).code !== 0);
  beside('web', ['tcpdump', '-i', 'eth0', '-U', '-w', join(place.dir, 'witness.pcap'), 'port 443 or port 80']);
  await until('tcpdump listens', () => servers[1]?.said().includes('listening on') === true);
});

for (const family of families) {
  for (const [title, rows] of [
    ['curl', curlRows(family)],
    ['programs', programRows(family)],
    ['bytes made here', byteRows(family)],
  ] as const) {
    t.test(`IPv${family}: ${title}`, async (t) => {
      for (const row of rows) {
        const { stdout, stderr, ms } = await ask(row);
        const said = `${stdout}${stderr}`;
        if (row.passes !== undefined) t.match(said, row.passes, `${row.what} passes`);
        else {
          t.notMatch(
            said,
            /CONNECTION ESTABLISHED|Permission denied|^hello$|"how":"(bytes|silent)"/m,
            `${row.what} does not`,
          );
          t.notMatch(stdout, /^[0-9a-f:]+(\.[0-9.]+)?\s/, `${row.what}: nothing of the server's is printed`);
          t.ok(ms < AT_ONCE_MS, `${row.what} is refused at once`, { ms, said });
          const heard = /"how"/.test(stdout) ? (JSON.parse(stdout) as Heard).ms : ms;
          refusals.push({ what: `IPv${family} ${row.what}`, ms: heard });
        }
      }
    });
  }
}

t.test('of refused flows nothing came to the server, and they were refused within a second', async (t) => {
  const capture = readFileSync(join(place.dir, 'witness.pcap')).toString('latin1');
  t.match(capture, /web\.example\.test/, 'the witness sees names');
  t.notMatch(capture, /www\.example\.test/i, 'another name is not among them');
  const quic = servers[0]?.said() ?? '';
  for (const version of [1, 2]) {
    t.equal(
      quic.split(`v${version} web.example.test`).length - 1,
      4,
      `QUIC version ${version}: two hellos of each family`,
    );
  }
  t.notMatch(quic, /www\.example\.test|refused/, 'and none that asks for another name');
  const times = refusals.map(({ ms }) => ms).sort((a, b) => a - b);
  t.comment(`refused after ${times.map((ms) => ms.toFixed(0)).join(', ')} ms`);
  t.ok((times[times.length >> 1] ?? Number.POSITIVE_INFINITY) < 1_000, 'most of them', { refusals });
});

t.test("a DNS server that is not the pool's teaches nothing", async (t) => {
  for (const family of families) {
    const type = family === 4 ? 'A' : 'AAAA';
    const lie = await ask({ argv: ['dig', `@${odd[4]}`, '+tries=2', '+time=2', '+short', 'web.example.test', type] });
    t.equal(lie.stdout.trim(), web2[family], `IPv${family}: it says that the name has the address of web2`);
    const believed = await ask({
      argv: [
        'curl',
        '-sk',
        '-m',
        '20',
        '--resolve',
        `web.example.test:443:${web2[family]}`,
        'https://web.example.test/ip',
      ],
    });
    t.not(believed.code, 0, 'who believes it does not get there');
    t.ok(believed.ms < AT_ONCE_MS, 'and is told at once', { ms: believed.ms });
    const right = await ask({ argv: ['curl', `-${family}`, '-sk', '-m', '20', 'https://web.example.test/ip'] });
    t.equal(right.code, 0, 'the right address works on');
  }
});

t.test('no packet left with a foreign source', async (t) => {
  t.same((await firewallView(lab)).foreign, []);
  for (const gateway of ['gw-a', 'gw-b', 'gw-c']) {
    t.notMatch(
      await readFile(place.log(gateway, 'gateway'), 'utf8'),
      /"level":[56]0/,
      `${gateway} has no error in its log`,
    );
  }
});
