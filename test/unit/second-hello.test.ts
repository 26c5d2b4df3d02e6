/**
 * Hellos after which a server may ask for another one (HelloRetryRequest, RFC 8446 §4.1.4). OpenSSL serves the name of the second,
 * as is seen here by its own server, though the specification has it be that of the first: so a flow is decided by the first
 * hello only of servers that are known to take such a one as it is. Real packets through a whole decider.
 */
import { equal, ok } from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join as pathOf } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { AnsweringServers } from '../../gateway/inspect/answering-servers.ts';
import { createServerCertificate } from '../../lab/servers/certificate.ts';
import { join } from '../../wire/bytes.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH } from '../../wire/ip.ts';
import { readServerTls } from '../../wire/tls.ts';
import { Rig, type RigPolicy, SERVER, Talk } from '../inspect-rig.ts';
import {
  extension,
  groups,
  helloMessage,
  list16,
  message,
  outerEch,
  record,
  serverName,
  versions,
} from './hello-bytes.ts';

t.setTimeout(120_000);
/** Of a ServerHello that is a HelloRetryRequest. */
const RETRY_RANDOM = Buffer.from('cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c', 'hex');
const X25519 = 0x1d;
const P256 = 0x17;
const policy: RigPolicy = {
  services: {
    web: {
      addresses: [],
      names: ['**.good.example', 'good.example'],
      ports: null,
      checks: [{ protocol: 6, ports: [[443, 443]], application: 'TLS', implied: true }],
    },
  },
  rules: [{ name: 'web', services: ['web'] }],
  names: [
    ['good.example', SERVER],
    ['www.good.example', SERVER],
  ],
};
/** Without a share of its first group, unless said. */
const hello = (name: string, shares: number[] = [], ...more: Uint8Array[]): Uint8Array =>
  record(
    helloMessage({
      extensions: [
        serverName(name),
        versions(0x0304),
        extension(13, list16(Uint8Array.of(4, 3, 8, 4, 4, 1))),
        ...groups([X25519, P256], shares),
        ...more,
      ],
    }),
  );
const serverHello = (random: Uint8Array): Uint8Array =>
  record(message(2, join([Uint8Array.of(3, 3), random, Uint8Array.of(0, 0x13, 1, 0)])), 22, 0x0303);
const ANSWER = serverHello(new Uint8Array(32).fill(8));
const RETRY = join([serverHello(RETRY_RANDOM), record(Uint8Array.of(1), 20, 0x0303)]);
const CHANGE = record(Uint8Array.of(1), 20, 0x0303);
const first = hello('good.example');
const second = join([CHANGE, hello('good.example', [X25519])]);

/** What becomes of a connection in which each says that in turn: words of the client's packets and of the server's. */
function talkOf(rig: Rig, sourcePort: number, ...turns: [who: 'client' | 'server', bytes: Uint8Array][]): string[] {
  const talk = new Talk(rig, 443, { sourcePort });
  const at = { client: 0, server: 0 };
  return turns.map(([who, bytes]) => {
    const word = who === 'client' ? talk.say(at.client, bytes) : talk.hear(at.server, bytes);
    at[who] += bytes.length;
    return word;
  });
}

t.test('the server answers at once: it is not asked again for such a hello', async (t) => {
  const rig = new Rig(policy);
  t.same(talkOf(rig, 1, ['client', first], ['server', ANSWER]), ['passed', 'cluster/web']);
  rig.wait(20);
  t.match(rig.flows, [{ decision: { rule: 'cluster/web' }, reading: { name: 'good.example', application: 'TLS' } }]);
  t.equal(rig.flows.length, 1, 'it is told once');
  t.same(talkOf(rig, 2, ['client', first]), ['cluster/web']);
  t.same(talkOf(rig, 3, ['client', hello('www.good.example')]), ['passed'], 'another name');
  t.same(talkOf(rig, 4, ['client', hello('good.example', [P256])]), ['passed'], 'other shares');
  const six = new Talk(rig, 443, { family: 6, sourcePort: 5 });
  t.equal(six.say(0, first), 'held', 'another server');
  t.same(talkOf(rig, 6, ['client', hello('good.example', [], extension(41, new Uint8Array(9)))]), ['cluster/web']);
  rig.wait(600_000);
  t.same(talkOf(rig, 7, ['client', first]), ['passed'], 'and not for ever');
});

t.test('what a server answers to who resumes a session, or hides a hello, says nothing of others', async (t) => {
  for (const more of [extension(41, new Uint8Array(9)), outerEch()]) {
    const rig = new Rig(policy);
    const special = hello('good.example', [], more);
    t.same(talkOf(rig, 1, ['client', special], ['server', ANSWER]), ['passed', 'cluster/web']);
    t.same(talkOf(rig, 2, ['client', special]), ['passed']);
    t.same(talkOf(rig, 3, ['client', first]), ['passed']);
  }
  const servers = new AnsweringServers();
  const ends = { flow: { source: '', destination: SERVER, protocol: 6, destinationPort: 443 }, sourcePort: 1 };
  for (let at = 0; at < 20_000; at++) {
    servers.answered(ends, { serverName: `${at}`, groups: '', preSharedKey: false, encryptedClientHello: false }, at);
  }
  t.equal(servers.size, 16_384);
  servers.expire(1e9);
  t.equal(servers.size, 0);
});

t.test('the server asks for another hello', async (t) => {
  const early = record(new Uint8Array(100), 23, 0x0303);
  const other = join([CHANGE, hello('evil.example', [X25519])]);
  const denied = (detail: string | undefined): object => ({
    decision: { verdict: 'drop' },
    delete: true,
    ...(detail !== undefined && { detail }),
  });
  const permitted = { decision: { verdict: 'accept', rule: 'cluster/web' } };
  const rows: [what: string, client: [Uint8Array, Uint8Array], words: string[], told: object][] = [
    ['of the same name', [first, second], ['passed', 'passed', 'cluster/web'], permitted],
    [
      'without the message of TLS 1.2',
      [first, hello('good.example', [X25519])],
      ['passed', 'passed', 'cluster/web'],
      permitted,
    ],
    [
      'behind early data',
      [join([first, early]), join([early, second])],
      ['passed', 'passed', 'cluster/web'],
      permitted,
    ],
    ['of another name', [first, other], ['passed', 'passed', 'reset to server 0'], denied('other-second-hello')],
    [
      'of another name that is allowed too',
      [first, hello('www.good.example')],
      ['passed', 'passed', 'reset to server 0'],
      denied('other-second-hello'),
    ],
    [
      'of no name',
      [first, record(helloMessage({ extensions: [versions(0x0304), ...groups([X25519], [X25519])] }))],
      ['passed', 'passed', 'reset to server 0'],
      denied('other-second-hello'),
    ],
    [
      'that is none',
      [first, record(message(16, new Uint8Array(40)))],
      ['passed', 'passed', 'reset to server 0'],
      denied('not-client-hello'),
    ],
    [
      'and gets an alert',
      [first, record(Uint8Array.of(2, 40), 21)],
      ['passed', 'passed', 'reset to server 0'],
      denied('no-second-hello'),
    ],
    [
      'that was there before it asked',
      [join([first, other]), early],
      ['reset to server 0', 'dropped', 'dropped'],
      denied('early-second-hello'),
    ],
    [
      'after one that is denied',
      [hello('evil.example'), second],
      ['reset to server 0', 'dropped', 'dropped'],
      denied(undefined),
    ],
  ];
  for (const [what, [one, two], words, told] of rows) {
    const rig = new Rig(policy);
    const became = talkOf(rig, 1, ['client', one], ['server', RETRY], ['client', two]);
    // The server has what was let on.
    const edge = words[0] === 'passed' ? one.length : 0;
    t.same(
      became,
      words.map((word) => word.replace('server 0', `server ${edge}`)),
      what,
    );
    rig.wait(20);
    t.match(rig.flows, [told], what);
    t.equal(rig.flows.length, 1, what);
    t.equal(rig.holding, 0, what);
    t.equal(talkOf(rig, 2, ['client', first])[0], 'passed', `${what}: nothing was learned of the server`);
  }
});

t.test('any cuts: one verdict, and not before the second hello is whole', async () => {
  const cuts = fc.array(fc.nat(400), { maxLength: 4 });
  fc.assert(
    fc.property(cuts, cuts, cuts, fc.boolean(), (one, answer, two, honest) => {
      const rig = new Rig(policy);
      const talk = new Talk(rig, 443);
      const last = honest ? second : join([CHANGE, hello('evil.example', [X25519])]);
      const words: string[] = [];
      const inParts = (
        bytes: Uint8Array,
        at: number,
        ends: number[],
        send: (at: number, part: Uint8Array) => string,
      ) => {
        const edges = [...new Set([0, ...ends.map((end) => Math.min(end, bytes.length)), bytes.length])].sort(
          (a, b) => a - b,
        );
        for (const [index, end] of edges.slice(1).entries())
          words.push(send(at + edges[index]!, bytes.subarray(edges[index], end)));
      };
      inParts(first, 0, one, (at, part) => talk.say(at, part));
      ok(rig.left.every((line) => line.endsWith('passed')));
      equal(rig.holding, 0, 'the first goes on as soon as it is whole');
      inParts(RETRY, 0, answer, (at, part) => talk.hear(at, part));
      ok(
        rig.left.every((line) => line.endsWith('passed')),
        'and so does what the server asks for',
      );
      const before = rig.left.length;
      inParts(last, first.length, two, (at, part) => talk.say(at, part));
      const after = rig.left.slice(before).map((line) => line.replace(/^\d+ /, ''));
      ok(
        after.every((word) => (honest ? word === 'cluster/web' : /reset to server|dropped/.test(word))),
        after.join(),
      );
      ok(after.includes(honest ? 'cluster/web' : `reset to server ${first.length}`));
      equal(rig.holding, 0);
    }),
    { numRuns: 150 },
  );
});

t.test('where policy asks for a version, what the server chose', async (t) => {
  const atLeast = (minVersion: '1.2' | '1.3'): RigPolicy => ({
    services: {
      web: {
        addresses: ['0.0.0.0/0'],
        ports: null,
        checks: [{ protocol: 6, ports: [[443, 443]], application: 'TLS', tls: { minVersion } }],
      },
    },
    rules: [{ name: 'web', services: ['web'] }],
  });
  const offers = (...offered: number[]): Uint8Array =>
    record(
      helloMessage({ extensions: [serverName('good.example'), ...(offered.length > 0 ? [versions(...offered)] : [])] }),
    );
  const chose = (...bytes: number[]): Uint8Array =>
    record(
      message(2, join([Uint8Array.of(3, 3), new Uint8Array(32), Uint8Array.from([0, 0x13, 1, 0, ...bytes])])),
      22,
      0x0303,
    );
  const tls12 = chose();
  const tls13 = chose(0, 6, 0, 43, 0, 2, 3, 4);
  const rows: [least: '1.2' | '1.3', hello: Uint8Array, answer: Uint8Array, words: string[], version: number][] = [
    ['1.3', offers(0x0304), tls13, ['cluster/web', 'as decided'], 0x0304],
    ['1.3', offers(0x0304, 0x0303), tls13, ['passed', 'cluster/web'], 0x0304],
    ['1.3', offers(0x0304, 0x0303), tls12, ['passed', 'reset to server'], 0x0303],
    ['1.2', offers(0x0304, 0x0303), tls12, ['cluster/web', 'as decided'], 0x0304],
    ['1.2', offers(), tls12, ['passed', 'cluster/web'], 0x0303],
    ['1.3', offers(0x0303), tls12, ['reset to server', 'dropped'], 0x0303],
  ];
  for (const [least, said, answer, words, version] of rows) {
    const rig = new Rig(atLeast(least));
    const talk = new Talk(rig, 443);
    const what = `${least}: ${words.join()}`;
    t.equal(talk.say(0, said).replace(/ \d+$/, ''), words[0], what);
    const word = talk.hear(0, answer);
    // Nobody tells the client of a drop, and the server is told raw.
    if (words[1] === 'reset to server')
      t.same([word, rig.resets], ['dropped', [`reset to server ${said.length}`]], what);
    else t.equal(word, words[1], what);
    rig.wait(20);
    t.match(rig.flows, [{ reading: { tls: { version } } }], what);
  }
});

t.test('what else may come of it', async (t) => {
  const silent = new Rig(policy);
  t.same(talkOf(silent, 1, ['client', first], ['client', Uint8Array.of(23)]), ['passed', 'held']);
  silent.wait(6_000);
  t.same(
    silent.left.at(-1),
    `2 reset to server ${first.length}`,
    'a server that says nothing is not waited for for ever',
  );
  t.match(silent.flows, [{ reason: 'time', delete: true }]);

  const ended = new Rig(policy);
  const talk = new Talk(ended, 443);
  talk.say(0, first);
  t.equal(talk.say(0, first), 'passed', 'sent again it goes on again');
  t.equal(talk.say(0, hello('evil.example')), `reset to server ${first.length}`, 'other bytes in its place do not');
  const over = new Rig(policy);
  const last = new Talk(over, 443);
  last.say(0, first);
  t.equal(last.hear(0, '', TCP_ACK | TCP_FIN), 'cluster/web', 'one that leaves without a word asks for nothing');

  const late = new Rig(policy);
  const order = new Talk(late, 443);
  order.say(0, first);
  t.equal(order.hear(20, RETRY.subarray(20)), 'dropped', 'its first byte must come first');
  t.equal(order.hear(0, RETRY.subarray(0, 20)), 'passed');
  t.equal(order.hear(20, RETRY.subarray(20)), 'passed');
  t.equal(order.say(first.length, second), 'cluster/web');

  for (const [what, answer, word] of [
    ['an alert', record(Uint8Array.of(2, 40), 21), 'cluster/web'],
    ['a server that speaks no TLS', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'), 'cluster/web'],
    ['another message', record(message(0, new Uint8Array(60))), 'reset to client 0'],
  ] as const) {
    const rig = new Rig(policy);
    const became = talkOf(rig, 1, ['client', first], ['server', answer]);
    t.same(became[0], 'passed');
    if (word === 'cluster/web') t.equal(became[1], word, what);
    else t.match(rig.left.join(), /reset to|dropped/, what);
    t.same(talkOf(rig, 2, ['client', first]), ['passed'], `${what}: nothing is known of it`);
  }
  const flood = new Rig(policy);
  const many = join([first, record(new Uint8Array(16_300), 23, 0x0303)]);
  t.equal(talkOf(flood, 1, ['client', many])[0], 'reset to server 0', 'more than is read in one packet');
  flood.wait(20);
  t.match(flood.flows, [{ reason: 'bytes' }]);
  t.equal(
    new Talk(new Rig(policy), 443).say(0, first, TCP_ACK | TCP_PSH | TCP_FIN),
    'passed',
    'with the end of the stream',
  );
});

t.test('OpenSSL, as it is here, goes by the name of the second', async (t) => {
  const directory = t.testdir();
  await createServerCertificate(directory, ['good.example'], Date.now());
  const free = createServer().listen(0, '127.0.0.1');
  await once(free, 'listening');
  const { port } = free.address() as AddressInfo;
  free.close();
  const [cert, key] = ['tls.crt', 'tls.key'].map((file) => pathOf(directory, file));
  // It refuses every other name.
  const server = spawn('openssl', [
    ...['s_server', '-accept', `127.0.0.1:${port}`, '-cert', `${cert}`, '-key', `${key}`],
    ...['-servername', 'good.example', '-cert2', `${cert}`, '-key2', `${key}`, '-servername_fatal'],
  ]);
  t.teardown(() => server.kill('SIGKILL'));
  let said = '';
  server.stdout.on('data', (part: Buffer) => (said += part.toString()));
  while (!said.includes('ACCEPT')) await once(server.stdout, 'data');
  for (const [name, says] of [
    ['good.example', { message: 'server-hello' }],
    ['evil.example', { message: 'alert', code: 112 }],
  ] as const) {
    const socket = connect(port, '127.0.0.1');
    const answer = async (bytes: Uint8Array): Promise<object> => {
      socket.write(bytes);
      const [part] = (await once(socket, 'data')) as [Buffer];
      return readServerTls(part);
    };
    t.same(await answer(first), { state: 'read', value: { message: 'hello-retry-request' } });
    t.same(await answer(join([CHANGE, hello(name, [X25519])])), { state: 'read', value: says }, name);
    socket.destroy();
  }
});
