/**
 * The readers of TLS: hellos of real clients, recorded and run here; hellos built field by field, with what each reader must
 * make of them; what servers answer. Each hello is also read in every part of it: what is said of a part holds for the whole.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import {
  type ConnectionOptions,
  connect as connectTls,
  createServer as createTlsServer,
  type TlsOptions,
} from 'node:tls';
import t, { type Test } from 'tap';
import { createServerCertificate } from '../../lab/servers/certificate.ts';
import { join } from '../../wire/bytes.ts';
import {
  readChosenVersion,
  readClientHello,
  readServerTls,
  type ServerReason,
  serverReasons,
  type TlsReason,
  tlsLimits,
  tlsReasons,
} from '../../wire/tls.ts';
import { type ClientHello, helloLimits } from '../../wire/tls-hello.ts';
import { CHROMIUM_TLS, OPENSSL_EARLY_DATA } from './captures.ts';
import {
  alpn,
  ascii,
  extension,
  type HelloFields,
  helloMessage,
  list8,
  list16,
  message,
  nameEntry,
  outerEch,
  postQuantumShare,
  record,
  records,
  serverName,
  versions,
} from './hello-bytes.ts';

const plain: Omit<ClientHello, 'length'> = {
  serverName: undefined,
  alpn: [],
  versions: [0x0303],
  legacyVersion: 0x0303,
  encryptedClientHello: false,
  groups: undefined,
  preSharedKey: false,
  earlyData: false,
};
const hello = (...extensions: Uint8Array[]): Uint8Array => helloMessage({ extensions });
const named = hello(serverName('api.example.com'), alpn('h2'), versions(0x0304, 0x0303));
const ofNamed = { ...plain, serverName: 'api.example.com', alpn: ['h2'], versions: [0x0304, 0x0303] };

/** Every part from the first byte on: `more` up to some length, from which on the answer is that for the whole. */
function readInParts(t: Test, bytes: Uint8Array, what: string): ReturnType<typeof readClientHello> {
  const whole = readClientHello(bytes);
  let answered = -1;
  for (let length = 0; length <= bytes.length; length++) {
    const part = readClientHello(bytes.subarray(0, length));
    if (part.state === 'more') {
      if (answered >= 0) t.fail(`${what}: more after an answer, at ${length}`);
      continue;
    }
    if (answered < 0) answered = length;
    if (JSON.stringify(part) !== JSON.stringify(whole)) {
      t.same(part, whole, `${what}: the first ${length} bytes`);
      break;
    }
  }
  if (whole.state === 'read') t.equal(answered, whole.value.length, `${what}: read as soon as it is whole, not before`);
  return whole;
}

t.test('what a hello says', async (t) => {
  const grease = extension(0x3a3a);
  const rows: [string, Uint8Array, Partial<ClientHello>][] = [
    ['name, protocol and versions', record(named), ofNamed],
    ['nothing, without extensions', record(helloMessage({})), {}],
    ['nothing, with an empty list of extensions', record(hello()), {}],
    [
      'SSL 3',
      record(helloMessage({ legacyVersion: 0x0300 }), 22, 0x0300),
      { legacyVersion: 0x0300, versions: [0x0300] },
    ],
    [
      'an empty session id',
      record(helloMessage({ sessionId: new Uint8Array(0), extensions: [serverName('a.test')] })),
      { serverName: 'a.test' },
    ],
    [
      'a name in capitals with a dot at its end',
      record(hello(serverName('API.Example.COM.'))),
      { serverName: 'api.example.com' },
    ],
    ['a name of one label', record(hello(serverName('localhost'))), { serverName: 'localhost' }],
    [
      'an A-label and an underscore',
      record(hello(serverName('_x.xn--bcher-kva.example'))),
      { serverName: '_x.xn--bcher-kva.example' },
    ],
    [
      'a name of 253 octets',
      record(hello(serverName(`${`${'a'.repeat(49)}.`.repeat(5)}abc`))),
      { serverName: `${`${'a'.repeat(49)}.`.repeat(5)}abc` },
    ],
    ['a label with a digit at its end', record(hello(serverName('example.a1'))), { serverName: 'example.a1' }],
    [
      'a label that begins as a hexadecimal number',
      record(hello(serverName('example.0xg'))),
      { serverName: 'example.0xg' },
    ],
    [
      'several protocols, GREASE between',
      record(hello(alpn('\x0a\x0a', 'h2', 'zz', 'http/1.1', '\xfa\xfa', 'ab'))),
      { alpn: ['h2', 'http/1.1', 'ab'] },
    ],
    [
      'protocols that are no text',
      record(hello(alpn('a b', '50%', '\x00\xff'))),
      { alpn: ['a%20b', '50%25', '%00%FF'] },
    ],
    ['GREASE versions', record(hello(versions(0x7a7a, 0x0304, 0x0a0a))), { versions: [0x0304] }],
    ['what looks like GREASE and is none', record(hello(versions(0x0a1a, 0x1b1b))), { versions: [0x0a1a, 0x1b1b] }],
    [
      'extensions that nobody knows',
      record(hello(grease, serverName('a.test'), extension(0x1234, ascii('x')))),
      { serverName: 'a.test' },
    ],
    [
      'ECH beside the outer name',
      record(hello(serverName('outer.test'), outerEch())),
      { serverName: 'outer.test', encryptedClientHello: true },
    ],
    ['ECH of a draft', record(hello(extension(0xfe0a, ascii('x')))), { encryptedClientHello: true }],
    ['ESNI', record(hello(extension(0xffce, ascii('x')))), { encryptedClientHello: true }],
    [
      'early data under a shared key',
      record(hello(extension(42), extension(41, ascii('x')))),
      { earlyData: true, preSharedKey: true },
    ],
    ['a post-quantum key share', record(hello(postQuantumShare(), serverName('pq.test'))), { serverName: 'pq.test' }],
    ['all of it in records of one byte', records(named, 1), ofNamed],
    ['all of it in records of one, two and three', records(named, 1, 2, 3), ofNamed],
    [
      'a post-quantum hello in records of one byte',
      records(hello(postQuantumShare(), serverName('pq.test')), 1),
      { serverName: 'pq.test' },
    ],
    ['a record that ends within the header of the message', records(named, 3, 1000), ofNamed],
    ['a record of TLS 1.2', record(named, 22, 0x0303), ofNamed],
    [
      'as many extensions as are read',
      record(hello(...Array.from({ length: 64 }, (_, i) => extension(0x2000 + i)))),
      {},
    ],
    [
      'as many protocols as are read',
      record(hello(alpn(...Array.from({ length: 32 }, (_, i) => `p${i}`)))),
      { alpn: Array.from({ length: 32 }, (_, i) => `p${i}`) },
    ],
    ['as many bytes as are read', records(padded(helloLimits.helloBytes), 16_000), {}],
  ];
  for (const [what, bytes, says] of rows) {
    const answer = bytes.length > 8000 ? readClientHello(bytes) : readInParts(t, bytes, what);
    t.same(answer, { state: 'read', value: { ...plain, length: bytes.length, ...says } }, what);
  }
  const early = join([record(named), record(ascii('GET / HTTP/1.1'), 23)]);
  t.same(
    readClientHello(early),
    { state: 'read', value: { ...ofNamed, length: record(named).length } },
    'what follows is not looked at',
  );
  t.same(readClientHello(Buffer.from(record(named))), readClientHello(record(named)), 'a Buffer is as good');
});

/** A hello whose body has this many bytes. */
function padded(size: number): Uint8Array {
  const filling = (n: number): Uint8Array => hello(extension(21, new Uint8Array(n)));
  return filling(size + 4 - filling(0).length);
}

/** A hello of one extension, whose content is as given. */
const ext = (type: number, ...body: Uint8Array[]): Uint8Array => record(hello(extension(type, ...body)));
const u8s = (...octets: number[]): Uint8Array => Uint8Array.from(octets);
/** With bytes of the message, after its header, set. */
const edited = (from: Uint8Array, at: number, ...octets: number[]): Uint8Array => {
  const bytes = Uint8Array.from(from);
  bytes.set(octets, at);
  return record(bytes);
};
const fields = (these: HelloFields): Uint8Array => record(helloMessage(these));

const refusals: [string, Uint8Array, TlsReason][] = [
  ['an HTTP request', ascii('GET / HTTP/1.1\r\n'), 'not-tls'],
  ['an SSH banner', ascii('SSH-2.0-OpenSSH_9.2\r\n'), 'not-tls'],
  ['zeros', new Uint8Array(64), 'not-tls'],
  ['an alert', record(u8s(2, 40), 21), 'not-tls'],
  ['application data', record(ascii('x'), 23), 'not-tls'],
  ['a handshake record of TLS 4', record(named, 22, 0x0401), 'not-tls'],
  ['a DTLS record', record(named, 22, 0xfefd), 'not-tls'],
  ['random bytes with the highest bit set', u8s(0x99, 1, 2, 3, 4, 5), 'not-tls'],
  ['the shape of SSL 2 with another version', u8s(0x80, 0x2e, 1, 7, 7, 0, 0), 'not-tls'],
  ['a hello of SSL 2', u8s(0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10), 'sslv2-hello'],
  ['a hello of SSL 2 that offers TLS 1.0', u8s(0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10), 'sslv2-hello'],
  ['a ServerHello', record(message(2, new Uint8Array(40))), 'not-client-hello'],
  ['a HelloRequest', record(message(0, new Uint8Array(0))), 'not-client-hello'],
  ['an alert within', join([record(named.subarray(0, 50)), record(u8s(1, 0), 21)]), 'other-record'],
  ['application data within', join([record(named.subarray(0, 50)), record(named.subarray(50), 23)]), 'other-record'],
  ['a change of ciphers within', join([record(named.subarray(0, 2)), record(u8s(1), 20)]), 'other-record'],
  [
    'a later record of another version',
    join([record(named.subarray(0, 50)), record(named.subarray(50), 22, 0x0200)]),
    'bad-record',
  ],
  ['an empty first record', join([record(new Uint8Array(0)), record(named)]), 'empty-record'],
  ['an empty record within', join([record(named.subarray(0, 50)), record(new Uint8Array(0))]), 'empty-record'],
  ['a record of 16,385 bytes', u8s(22, 3, 1, 0x40, 0x01, 1), 'record-too-long'],
  ['4,097 records', records(padded(5000), 1), 'too-many-records'],
  ['a body of 16,385 bytes', record(padded(16_385).subarray(0, 100)), 'hello-too-long'],
  ['a body of 16 MB, in records of one byte', records(u8s(1, 0xff, 0xff, 0xff, 3, 3), 1), 'hello-too-long'],
  ['a second message in the record', record(join([named, message(11, new Uint8Array(3))])), 'bytes-after-hello'],
  [
    'a second hello in the last of two records',
    records(join([named, named]), named.length - 5, 20),
    'bytes-after-hello',
  ],
  ['a byte more in the record', record(join([named, u8s(0)])), 'bytes-after-hello'],
  ['version 2.0', fields({ legacyVersion: 0x0200 }), 'bad-version'],
  ['version 4.0', fields({ legacyVersion: 0x0400 }), 'bad-version'],
  ['an empty body', record(message(1, new Uint8Array(0))), 'bad-length'],
  ['a body that ends in the random', record(message(1, named.subarray(4, 30))), 'bad-length'],
  ['a body that ends before the session id', record(message(1, named.subarray(4, 38))), 'bad-length'],
  ['a session id of 33 bytes', fields({ sessionId: new Uint8Array(33), extensions: [] }), 'bad-length'],
  ['no cipher suites', fields({ suites: new Uint8Array(0), extensions: [] }), 'bad-length'],
  ['half a cipher suite', fields({ suites: new Uint8Array(3), extensions: [] }), 'bad-length'],
  ['no way of compression', fields({ compression: new Uint8Array(0), extensions: [] }), 'bad-length'],
  ['cipher suites past the end', edited(bare(), 4 + 2 + 32 + 33, 0xff, 0xfe), 'bad-length'],
  ['compression past the end', edited(bare(), 4 + 2 + 32 + 33 + 6, 9), 'bad-length'],
  ['one byte after compression', record(message(1, join([bare().subarray(4), u8s(0)]))), 'bad-length'],
  ['extensions that end before the message', record(message(1, join([named.subarray(4), u8s(0)]))), 'bad-length'],
  ['an extension after the list of them', record(message(1, join([named.subarray(4), extension(5)]))), 'bad-length'],
  ['extensions past the message', record(message(1, named.subarray(4, -1))), 'bad-length'],
  ['an extension past the list', fields({ extensions: [u8s(0, 5, 0, 9, 1)] }), 'bad-length'],
  ['an extension cut in its header', fields({ extensions: [u8s(0, 5, 0)] }), 'bad-length'],
  ['an empty server_name', ext(0), 'bad-length'],
  ['a server_name with an empty list', ext(0, list16()), 'bad-length'],
  ['a list of names longer than the extension', ext(0, u8s(0, 10), nameEntry('a.test')), 'bad-length'],
  ['a list of names shorter than the extension', ext(0, list16(nameEntry('a.test')), u8s(0)), 'bad-length'],
  ['a name past its list', ext(0, list16(u8s(0, 0, 9, 0x61))), 'bad-length'],
  ['an empty list of protocols', ext(16, list16()), 'bad-length'],
  ['an empty protocol', ext(16, list16(list8(ascii('h2')), list8())), 'bad-length'],
  ['a protocol past its list', ext(16, list16(u8s(9, 0x68))), 'bad-length'],
  ['an empty list of versions', ext(43, list8()), 'bad-length'],
  ['half a version', ext(43, list8(u8s(3, 4, 3))), 'bad-length'],
  ['bytes after the versions', ext(43, list8(u8s(3, 4)), u8s(3, 3)), 'bad-length'],
  ['early data with content', ext(42, u8s(0)), 'bad-length'],
  [
    '65 extensions',
    record(hello(...Array.from({ length: 65 }, (_, i) => extension(0x2000 + i)))),
    'too-many-extensions',
  ],
  ['two server_name extensions', record(hello(serverName('a.test'), serverName('b.test'))), 'duplicate-extension'],
  ['the same one twice', record(hello(serverName('a.test'), alpn('h2'), serverName('a.test'))), 'duplicate-extension'],
  [
    'an unknown extension twice',
    record(hello(extension(0x1234), alpn('h2'), extension(0x1234))),
    'duplicate-extension',
  ],
  ['an empty extension twice in a row', record(hello(extension(0x1234), extension(0x1234))), 'duplicate-extension'],
  ['a name of type 1', ext(0, list16(nameEntry('a.test', 1))), 'bad-name-type'],
  ['two names', record(hello(serverName('a.test', 'b.test'))), 'several-names'],
  ['a name and one of another type', ext(0, list16(nameEntry('a.test'), nameEntry('b.test', 1))), 'several-names'],
  ['33 protocols', record(hello(alpn(...Array.from({ length: 33 }, (_, i) => `p${i}`)))), 'too-many-protocols'],
  ...(
    [
      ['', 'bad-name'],
      ['.', 'bad-name'],
      ['a.test..', 'bad-name'],
      ['a..test', 'bad-name'],
      ['.a.test', 'bad-name'],
      ['a.test\0', 'bad-name'],
      ['a.test\0.evil.test', 'bad-name'],
      ['a test', 'bad-name'],
      ['a.test\n', 'bad-name'],
      ['*.a.test', 'bad-name'],
      ['a.test:443', 'bad-name'],
      ['https://a.test', 'bad-name'],
      ['b\xfccher.example', 'bad-name'],
      ['-a.test', 'bad-name'],
      ['a-.test', 'bad-name'],
      ['a.-test', 'bad-name'],
      ['a.test-', 'bad-name'],
      [`${'a'.repeat(64)}.test`, 'bad-name'],
      ['a@test', 'bad-name'],
      ['a`test', 'bad-name'],
      ['a[test', 'bad-name'],
      ['a{test', 'bad-name'],
      ['a/test', 'bad-name'],
      [`${`${'a'.repeat(49)}.`.repeat(5)}abcd`, 'name-too-long'],
      ['a'.repeat(4000), 'name-too-long'],
      ['192.0.2.1', 'address-as-name'],
      ['192.0.2.1.', 'address-as-name'],
      ['3232235777', 'address-as-name'],
      ['0x7f.1', 'address-as-name'],
      ['a.0X7F', 'address-as-name'],
      ['a.0x', 'address-as-name'],
      ['2001:db8::1', 'address-as-name'],
      ['[2001:DB8::1]', 'address-as-name'],
      ['::ffff:192.0.2.1', 'address-as-name'],
    ] as const
  ).map(([name, reason]): [string, Uint8Array, TlsReason] => [
    `the name ${JSON.stringify(name.slice(0, 80))}`,
    record(hello(serverName(name))),
    reason,
  ]),
];

/** A hello without extensions. */
function bare(): Uint8Array {
  return helloMessage({});
}

t.test('what is refused, and why', async (t) => {
  for (const [what, bytes, reason] of refusals) {
    const answer = bytes.length > 5000 ? readClientHello(bytes) : readInParts(t, bytes, what);
    t.same(answer, { state: 'refused', reason }, what);
  }
  t.same(
    [...new Set(refusals.map(([, , reason]) => reason))].sort(),
    Object.keys(tlsReasons).sort(),
    'a row for each reason',
  );
});

t.test('bounds are the caller’s', async (t) => {
  const limits = { ...tlsLimits, helloBytes: 100, records: 3, extensions: 1, protocols: 1 };
  const rows: [string, Uint8Array, TlsReason | 'read'][] = [
    ['a body of 100 bytes', record(padded(100)), 'read'],
    ['a body of 101 bytes', record(padded(101)), 'hello-too-long'],
    ['three records', records(padded(100), 40), 'read'],
    ['four records', records(padded(100), 30), 'too-many-records'],
    ['one extension', record(hello(extension(5))), 'read'],
    ['two extensions', record(hello(extension(5), extension(6))), 'too-many-extensions'],
    ['one protocol', record(hello(alpn('h2'))), 'read'],
    ['two protocols', record(hello(alpn('h2', 'h3'))), 'too-many-protocols'],
  ];
  for (const [what, bytes, expected] of rows) {
    const answer = readClientHello(bytes, limits);
    t.equal(answer.state === 'refused' ? answer.reason : answer.state, expected, what);
  }
});

t.test('recorded hellos', async (t) => {
  t.same(readInParts(t, CHROMIUM_TLS, 'Chromium'), {
    state: 'read',
    value: {
      serverName: 'tls.example.test',
      alpn: ['h2', 'http/1.1'],
      versions: [0x0304, 0x0303],
      legacyVersion: 0x0303,
      encryptedClientHello: true,
      groups: ' 4588 29 23 24/ 4588 29',
      preSharedKey: false,
      earlyData: false,
      length: 1988,
    },
  });
  const rewrapped = records(CHROMIUM_TLS.subarray(5), 1, 700);
  t.match(readInParts(t, rewrapped, 'Chromium, in other records'), {
    value: { serverName: 'tls.example.test', length: rewrapped.length },
  });
  t.same(readInParts(t, OPENSSL_EARLY_DATA, 'OpenSSL'), {
    state: 'read',
    value: {
      serverName: 'resumed.example.test',
      alpn: ['h2'],
      versions: [0x0304, 0x0303, 0x0302, 0x0301],
      legacyVersion: 0x0303,
      encryptedClientHello: false,
      groups: ' 29 23 30 25 24 256 257 258 259 260/ 29',
      preSharedKey: true,
      earlyData: true,
      length: 434,
    },
  });
});

/** What a client sends to a server that never answers. The first record tells how much that is. */
async function capture(start: (port: number) => ChildProcess | { destroy(): void }): Promise<Uint8Array | undefined> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  let client: ReturnType<typeof start> | undefined;
  try {
    return await new Promise<Uint8Array | undefined>((resolve, reject) => {
      server.once('connection', (socket) => {
        let bytes = Buffer.alloc(0);
        socket.on('error', () => {});
        socket.on('data', (data) => {
          bytes = Buffer.concat([bytes, data]);
          if (bytes.length < 5 || bytes.length < 5 + bytes.readUInt16BE(3)) return;
          socket.destroy();
          resolve(new Uint8Array(bytes));
        });
      });
      client = start((server.address() as AddressInfo).port);
      if (!('pid' in client)) return;
      client.once('error', (error: NodeJS.ErrnoException) =>
        error.code === 'ENOENT' ? resolve(undefined) : reject(error),
      );
      client.once('exit', (code) => reject(new Error(`ended with ${code} before it said hello`)));
    });
  } finally {
    if (client !== undefined && 'kill' in client) client.kill();
    else client?.destroy();
    server.close();
  }
}

const ofNode = (options: ConnectionOptions) => (port: number) => {
  const socket = connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false, ...options });
  socket.on('error', () => {});
  return socket;
};

t.test('clients of this machine', async (t) => {
  const run =
    (command: string, ...args: string[]) =>
    (port: number): ChildProcess =>
      spawn(
        command,
        args.map((arg) => arg.replace('PORT', String(port))),
        { stdio: 'ignore' },
      );
  const python = `import socket, ssl
c = ssl.create_default_context()
c.set_alpn_protocols(['http/1.1'])
c.wrap_socket(socket.create_connection(('127.0.0.1', PORT)), server_hostname='Python.Example.test')`;
  const rows: [string, Parameters<typeof capture>[0], Partial<ClientHello>][] = [
    [
      'node:tls',
      ofNode({ servername: 'Node.Example.test', ALPNProtocols: ['h2', 'http/1.1'] }),
      { serverName: 'node.example.test', alpn: ['h2', 'http/1.1'], versions: [0x0304, 0x0303] },
    ],
    ['node:tls without a name', ofNode({}), { serverName: undefined, alpn: [] }],
    [
      'node:tls, 1.3 alone',
      ofNode({ servername: 'a.test', minVersion: 'TLSv1.3' }),
      { versions: [0x0304], legacyVersion: 0x0303 },
    ],
    [
      'node:tls, at most 1.2',
      ofNode({ servername: 'a.test', maxVersion: 'TLSv1.2' }),
      { versions: [0x0303], legacyVersion: 0x0303 },
    ],
    [
      'openssl s_client',
      run(
        'openssl',
        's_client',
        '-connect',
        '127.0.0.1:PORT',
        '-servername',
        'openssl.example.test',
        '-alpn',
        'h2,spdy/1',
      ),
      { serverName: 'openssl.example.test', alpn: ['h2', 'spdy/1'] },
    ],
    [
      'openssl s_client without a name',
      run('openssl', 's_client', '-connect', '127.0.0.1:PORT', '-noservername', '-no_tls1_3'),
      { serverName: undefined, versions: [0x0303] },
    ],
    [
      'curl',
      run(
        'curl',
        '-sk',
        '--noproxy',
        '*',
        '--resolve',
        'curl.example.test:PORT:127.0.0.1',
        'https://curl.example.test:PORT/',
      ),
      { serverName: 'curl.example.test', alpn: ['h2', 'http/1.1'] },
    ],
    [
      'Python',
      (port) => spawn('python3', ['-c', python.replace('PORT', String(port))], { stdio: 'ignore' }),
      { serverName: 'python.example.test', alpn: ['http/1.1'] },
    ],
  ];
  for (const [what, start, says] of rows) {
    const bytes = await capture(start);
    if (bytes === undefined) {
      t.fail(`${what}: not on this machine, which setup.sh should have made ready`);
      continue;
    }
    t.match(
      readInParts(t, bytes, what),
      { state: 'read', value: { ...says, encryptedClientHello: false, earlyData: false, length: bytes.length } },
      what,
    );
    if (says.serverName === undefined && 'serverName' in says)
      t.match(readClientHello(bytes), { value: { serverName: undefined } });
    const cut = records(bytes.subarray(5), 1);
    t.match(readInParts(t, cut, `${what}, in records of one byte`), {
      state: 'read',
      value: { ...says, length: cut.length },
    });
  }
});

t.test('what a server answers', async (t) => {
  const random = Buffer.from('cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c', 'hex');
  const serverHello = message(2, join([u8s(3, 3), new Uint8Array(32), u8s(0, 0x13, 1, 0)]));
  const retry = message(2, join([u8s(3, 3), random, u8s(0, 0x13, 1, 0)]));
  const rows: [string, Uint8Array, ServerReason | 'server-hello' | 'hello-retry-request' | number][] = [
    ['a ServerHello', record(serverHello, 22, 0x0303), 'server-hello'],
    [
      'one and a certificate in the same record',
      record(join([serverHello, message(11, new Uint8Array(900))])),
      'server-hello',
    ],
    ['its first part', record(serverHello.subarray(0, 38)), 'server-hello'],
    ['less of it', record(serverHello.subarray(0, 37)), 'not-tls'],
    ['a HelloRetryRequest', record(retry, 22, 0x0303), 'hello-retry-request'],
    ['a random that is nearly the one of it', edited(retry, 4 + 2 + 31, 0x9d), 'server-hello'],
    ['an alert', record(u8s(2, 40), 21), 40],
    ['a warning', record(u8s(1, 112), 21, 0x0303), 112],
    ['an HTTP answer', ascii('HTTP/1.1 400 Bad Request\r\n'), 'not-tls'],
    ['an SSH banner', ascii('SSH-2.0-OpenSSH_9.2\r\n'), 'not-tls'],
    ['application data', record(ascii('hello'), 23), 'not-tls'],
    ['an alert of level 3', record(u8s(3, 40), 21), 'not-tls'],
    ['an alert of level 0', record(u8s(0, 40), 21), 'not-tls'],
    ['an alert of three bytes', record(u8s(2, 40, 0), 21), 'not-tls'],
    ['another version of the record', record(serverHello, 22, 0x0500), 'not-tls'],
    ['an empty record', record(new Uint8Array(0)), 'not-tls'],
    ['a record of 16,385 bytes', u8s(22, 3, 3, 0x40, 0x01, 2), 'not-tls'],
    ['a ClientHello', record(named), 'not-server-hello'],
    ['a HelloRequest', record(message(0, new Uint8Array(40))), 'not-server-hello'],
    ['a hello too short to be one', edited(serverHello, 3, 37), 'not-server-hello'],
    ['a hello of version 2', record(edited(serverHello, 4, 2).subarray(5)), 'not-server-hello'],
  ];
  for (const [what, bytes, expected] of rows) {
    const whole = readServerTls(bytes);
    const got =
      whole.state === 'read'
        ? whole.value.message === 'alert'
          ? whole.value.code
          : whole.value.message
        : whole.state === 'refused'
          ? whole.reason
          : whole.state;
    t.equal(got, expected, what);
    let answered = false;
    for (let length = 0; length < bytes.length; length++) {
      const part = readServerTls(bytes.subarray(0, length));
      if (part.state !== 'more') t.same(part, whole, `${what}: the first ${length} bytes`);
      else if (answered) t.fail(`${what}: more after an answer`);
      answered ||= part.state !== 'more';
    }
  }
  const reasons = rows.map(([, , expected]) => expected).filter((expected) => String(expected) in serverReasons);
  t.same([...new Set(reasons)].sort(), Object.keys(serverReasons).sort(), 'a row for each reason');

  const directory = t.testdir();
  await createServerCertificate(directory, ['server.example.test'], Date.now());
  const [cert, key] = ['tls.crt', 'tls.key'].map((file) => readFileSync(`${directory}/${file}`));
  const servers: [string, TlsOptions, ConnectionOptions, object, number?][] = [
    ['a server of node:tls', { cert, key }, {}, { message: 'server-hello' }, 0x0304],
    ['one of TLS 1.2', { cert, key, maxVersion: 'TLSv1.2' }, {}, { message: 'server-hello' }, 0x0303],
    // The client sends a share of its first group alone.
    ['one that wants another group', { cert, key, ecdhCurve: 'P-384' }, {}, { message: 'hello-retry-request' }],
    ['one without a certificate', {}, {}, { message: 'alert', code: 40 }],
    [
      'one that wants TLS 1.3',
      { cert, key, minVersion: 'TLSv1.3' },
      { maxVersion: 'TLSv1.2' },
      { message: 'alert', code: 70 },
    ],
  ];
  for (const [what, options, client, says, chosen] of servers) {
    const server = createTlsServer(options).listen(0, '127.0.0.1');
    server.on('tlsClientError', () => {});
    await once(server, 'listening');
    const hello = await capture(ofNode({ servername: 'server.example.test', ...client }));
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write(hello ?? '');
    const [answer] = (await once(socket, 'data')) as [Buffer];
    t.same(readServerTls(answer), { state: 'read', value: says }, what);
    if (chosen !== undefined) t.same(readChosenVersion(answer), { state: 'read', value: chosen }, what);
    socket.destroy();
    server.close();
  }
});

t.test('which version a server chose', async (t) => {
  const random = new Uint8Array(32).fill(7);
  const of = (...rest: Uint8Array[]): Uint8Array =>
    record(message(2, join([u8s(3, 3), random, u8s(1, 9, 0x13, 1, 0), ...rest])), 22, 0x0303);
  const rows: [string, Uint8Array, number | string][] = [
    ['without extensions', of(), 0x0303],
    ['with others', of(list16(extension(23), extension(16, new Uint8Array(5)))), 0x0303],
    ['by extension', of(list16(extension(23), extension(43, u8s(3, 4)))), 0x0304],
    [
      'with more behind it in the record',
      record(join([message(2, join([u8s(3, 2), random, u8s(0, 0, 47, 0)])), message(14, u8s())])),
      0x0302,
    ],
    ['in two records', records(message(2, join([u8s(3, 3), random, u8s(0, 0x13, 1, 0)])), 40), 'not-server-hello'],
    ['extensions that are too long', of(u8s(0, 9, 1)), 'not-server-hello'],
    ['a session past the end', record(message(2, join([u8s(3, 3), random, u8s(200)]))), 'not-server-hello'],
    ['no session at all', record(message(2, join([u8s(3, 3), random]))), 'not-server-hello'],
  ];
  for (const [what, bytes, expected] of rows) {
    const whole = readChosenVersion(bytes);
    t.equal(whole.state === 'read' ? whole.value : whole.state === 'refused' && whole.reason, expected, what);
    for (let length = 0; length < bytes.length; length++) {
      const part = readChosenVersion(bytes.subarray(0, length));
      if (part.state !== 'more') t.same(part, whole, `${what}: the first ${length} bytes`);
    }
  }
});
