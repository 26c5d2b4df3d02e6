/**
 * What becomes of connections whose bytes are asked for: real packets through a whole decider, without a kernel. First what
 * each protocol is told by, then all that a pod may try so that its server hears something else than was read, each row with
 * its outcome; and, for any cut, order and repetition of a hello, that the verdict is the same and nothing leaves before it.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { type Application, applications } from '../../api/application.ts';
import { INSPECT_FIRST_MARK } from '../../api/names.ts';
import type { PortCheck, ServiceEntry } from '../../api/plan.ts';
import { inspectReasons } from '../../gateway/inspect/reasons.ts';
import { join } from '../../wire/bytes.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN } from '../../wire/ip.ts';
import { INFO_CHECKSUM_NOT_VERIFIED, INFO_GSO } from '../../wire/nfqueue.ts';
import { message as dnsMessage, framed, question } from '../dns-build.ts';
import { Rig, type RigPolicy, SERVER, Talk } from '../inspect-rig.ts';
import { alpn, extension, helloMessage, outerEch, records, serverName, versions } from './hello-bytes.ts';

t.setTimeout(120_000);
const tcp = (port: number): { protocol: number; ports: [number, number][] } => ({ protocol: 6, ports: [[port, port]] });
const check = (port: number, application: Application, more: Partial<PortCheck> = {}): PortCheck => ({
  ...tcp(port),
  application,
  ...more,
});

const hello = (name: string | undefined, ...more: Uint8Array[]): Uint8Array =>
  records(
    helloMessage({
      extensions: [
        ...(name === undefined ? [] : [serverName(name)]),
        versions(0x0a0a, 0x0304, 0x0303),
        alpn('h2'),
        ...more,
      ],
    }),
    16_384,
  );
const text = (value: string): Uint8Array => Uint8Array.from(Buffer.from(value, 'latin1'));
const get = (host: string, path = '/', more = ''): string => `GET ${path} HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`;

/** Names on 443 as TLS and on 80 as HTTP, as an ExternalService of names has it. */
const web: ServiceEntry = {
  addresses: [],
  names: ['**.good.example', 'good.example'],
  ports: null,
  checks: [check(443, 'TLS', { implied: true }), check(80, 'HTTP', { implied: true })],
};
const permitWeb: RigPolicy = {
  services: { web },
  rules: [{ name: 'web', services: ['web'] }],
  names: [
    ['good.example', SERVER],
    ['www.good.example', SERVER],
    ['good.example', '2001:db8::10'],
  ],
};
const of = (application: Application, port: number, more: Partial<PortCheck> = {}): RigPolicy => ({
  services: { s: { addresses: ['0.0.0.0/0', '::/0'], ports: [tcp(port)], checks: [check(port, application, more)] } },
  rules: [{ name: 's', services: ['s'] }],
});

t.test('a hello in one segment: its name decides', async (t) => {
  const rig = new Rig(permitWeb);
  const talk = new Talk(rig, 443);
  t.equal(talk.say(0, hello('good.example')), 'cluster/web');
  rig.wait(20);
  t.match(rig.flows, [
    {
      protocol: 6,
      source: '10.1.0.5',
      sourcePort: 40_000,
      destination: SERVER,
      destinationPort: 443,
      decision: { verdict: 'accept', rule: 'cluster/web' },
      reading: {
        application: 'TLS',
        name: 'good.example',
        tls: { version: 0x0304, alpn: ['h2'], encryptedClientHello: false },
      },
    },
  ]);
  t.equal(talk.say(1_000, 'late'), 'as decided', 'what was on its way goes on if the kernel says so');
  t.equal(talk.say(0, hello('evil.example')), 'as decided', 'and so does another connection with the same numbers');
  rig.wait(1_100);
  t.equal(talk.say(0, hello('evil.example')), 'reset to server 0', 'but not for ever');

  const other = new Rig(permitWeb);
  t.equal(new Talk(other, 443).say(0, hello('bad.example')), 'reset to server 0');
  t.same(other.resets, [], 'dropped: the client is told nothing');
  other.wait(20);
  t.match(other.flows, [{ decision: { verdict: 'drop' }, delete: true, reading: { name: 'bad.example' } }]);
});

t.test('drop tells the server alone, reject both', async (t) => {
  const deny = (action: 'drop' | 'reject'): Rig =>
    new Rig({
      services: { web, all: { addresses: ['0.0.0.0/0'], ports: [tcp(443)], checks: [check(443, 'TLS')] } },
      rules: [
        { name: 'no', action, services: ['web'] },
        { name: 'yes', services: ['all'] },
      ],
    });
  const dropped = deny('drop');
  t.equal(new Talk(dropped, 443).say(0, hello('good.example')), 'reset to server 0');
  t.same(dropped.resets, []);
  const rejected = deny('reject');
  t.equal(new Talk(rejected, 443).say(0, hello('good.example')), 'reset to server 0');
  t.same(rejected.resets, ['reset to client 0']);
  t.equal(new Talk(deny('drop'), 443).say(0, hello('other.example')), 'cluster/yes');
});

/** What one side says first in each protocol. */
const clients: Record<Exclude<Application, 'QUIC'>, Uint8Array> = {
  TLS: hello('x.example'),
  HTTP: text(get('x.example')),
  DNS: framed(dnsMessage({ questions: [question('x.example', 1)] })),
  SSH: text('SSH-2.0-OpenSSH_9.6\r\n'),
  SMTP: text('EHLO pod.example\r\n'),
  IMAP: text('a1 CAPABILITY\r\n'),
  POP3: text('USER joe\r\n'),
  MySQL: Uint8Array.from([32, 0, 0, 1, 0x05, 0xae, 0x0f, 0, 0, 0, 0, 1, 33, ...Array(23).fill(0)]),
  PostgreSQL: Uint8Array.from([0, 0, 0, 8, 4, 210, 22, 47]),
  Redis: text('*1\r\n$4\r\nPING\r\n'),
  MQTT: Uint8Array.from([0x10, 14, 0, 4, ...text('MQTT'), 4, 2, 0, 60, 0, 2, 0x61, 0x62]),
  RDP: Uint8Array.from([3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0]),
};
const servers: Partial<Record<Application, Uint8Array>> = {
  SSH: text('SSH-2.0-server\r\n'),
  SMTP: text('220 mx.example ESMTP\r\n'),
  IMAP: text('* OK ready\r\n'),
  POP3: text('+OK ready\r\n'),
};

t.test('each protocol where it is asked for, and every other one there', async (t) => {
  for (const wanted of applications) {
    if (wanted === 'QUIC') continue;
    for (const [said, bytes] of Object.entries(clients)) {
      const rig = new Rig(of(wanted, 9000));
      const talk = new Talk(rig, 9000);
      const server = servers[wanted];
      if (server !== undefined && wanted !== 'SSH') {
        t.equal(talk.hear(0, server), 'cluster/s', `${wanted}: the server's greeting decides`);
        t.equal(talk.say(0, bytes), 'as decided');
        break;
      }
      const word = talk.say(0, bytes);
      if (wanted === 'MySQL') {
        t.equal(word, said === 'MySQL' ? 'held' : 'reset to server 0', `${said} where MySQL is asked for`);
        continue;
      }
      const life = wanted === 'HTTP' || wanted === 'DNS' ? ' for life' : '';
      // Its first bytes could be the length of a message.
      if (wanted === 'DNS' && said === 'RDP') continue;
      t.equal(word, said === wanted ? `cluster/s${life}` : 'reset to server 0', `${said} where ${wanted} is asked for`);
      rig.wait(20);
      t.match(rig.flows[0]?.reading.application, said === wanted ? wanted : undefined);
    }
  }
});

t.test('a server that speaks first: what it says goes on, what the client says waits', async (t) => {
  const rig = new Rig(of('SMTP', 25));
  const talk = new Talk(rig, 25);
  t.equal(talk.say(0, 'EHLO pod.example\r\n'), 'held', 'too early, but it may be');
  t.equal(talk.hear(0, '220-mx.exam'), 'passed');
  t.equal(talk.hear(11, 'ple ESMTP\r\n220 '), 'passed');
  t.equal(talk.hear(26, 'go\r\n'), 'cluster/s');
  t.same(rig.left, ['2 passed', '3 passed', '1 cluster/s', '4 cluster/s']);

  const other = new Rig(of('SMTP', 25));
  const liar = new Talk(other, 25);
  t.equal(liar.say(0, 'EHLO pod.example\r\n'), 'held');
  t.equal(liar.hear(0, 'HTTP/1.1 400 Bad Request\r\n'), 'dropped');
  t.same(other.left, ['1 reset to server 0', '2 dropped']);

  const silent = new Rig(of('SMTP', 25));
  t.equal(new Talk(silent, 25).say(0, 'EHLO pod.example\r\n'), 'held');
  silent.wait(6_000);
  t.same(silent.left, ['1 reset to server 0']);
  t.match(silent.flows, [{ reason: 'time', decision: undefined, delete: true }]);
});

t.test('SSH is told by either side', async (t) => {
  t.equal(new Talk(new Rig(of('SSH', 22)), 22).hear(0, servers.SSH!), 'cluster/s');
  t.equal(new Talk(new Rig(of('SSH', 22)), 22).say(0, 'SSH-2.0-x\r\n'), 'cluster/s');
  t.equal(new Talk(new Rig(of('TLS', 443)), 443).say(0, 'SSH-2.0-x\r\n'), 'reset to server 0', 'SSH on 443');
  const rig = new Rig(of('TLS', 443));
  const talk = new Talk(rig, 443);
  t.equal(talk.hear(0, servers.SSH!), 'passed', 'a server may say what it likes, while nobody answers it');
  t.equal(talk.say(0, 'SSH-2.0-x\r\n'), 'reset to server 0');
  const loud = new Talk(new Rig(of('TLS', 443)), 443);
  let at = 0;
  while (loud.hear(at, 'x'.repeat(1_000)) === 'passed') at += 1_000;
  t.ok(at >= 16_000 && at <= 17_000, 'but not for ever');
});

t.test('what is asked of a hello', async (t) => {
  const rows: [what: string, check: Partial<PortCheck>, bytes: Uint8Array, passes: boolean][] = [
    ['a name', { tls: { serverNames: ['*.x.example'] } }, hello('a.x.example'), true],
    ['another', { tls: { serverNames: ['*.x.example'] } }, hello('x.example'), false],
    ['no name', { tls: { serverNames: ['*.x.example'] } }, hello(undefined), false],
    ['a version that is older than all that is offered', { tls: { minVersion: '1.2' } }, hello('a.example'), true],
    ['ALPN', { tls: { alpn: ['h2'] } }, hello('a.example'), true],
    ['other ALPN', { tls: { alpn: ['http/1.1'] } }, hello('a.example'), false],
    ['ECH, refused', { tls: { rejectEncryptedClientHello: true } }, hello('a.example', outerEch()), false],
    ['ECH', {}, hello('a.example', outerEch()), true],
    ['another protocol, where conformance is off', { conformance: 'Off' }, text('SSH-2.0-x\r\n'), true],
    ['another protocol, where it is audited', { conformance: 'Audit' }, text('SSH-2.0-x\r\n'), true],
  ];
  for (const [what, more, bytes, passes] of rows) {
    const word = new Talk(new Rig(of('TLS', 443, more)), 443).say(0, bytes);
    t.equal(word, passes ? 'cluster/s' : 'reset to server 0', what);
  }
});

t.test('a name whose address is not known: it is asked for once, and waited for', async (t) => {
  const start = (): [Rig, Talk] => {
    const rig = new Rig({ ...permitWeb, names: [] });
    return [rig, new Talk(rig, 443)];
  };
  const asks = (rig: Rig) => rig.posted.filter(({ kind }) => kind === 'resolve');
  const learned = { kind: 'names', pairs: [{ name: 'good.example', address: SERVER, until: 4e12 }] } as const;

  const [rig, talk] = start();
  t.equal(talk.say(0, hello('good.example')), 'held');
  const [asked] = asks(rig);
  t.match(asked, { kind: 'resolve', name: 'good.example', families: [4] });
  if (asked?.kind !== 'resolve') return;
  rig.wait(200);
  t.same(rig.left, []);
  rig.tell({ ...learned, pairs: [...learned.pairs] });
  rig.tell({ kind: 'resolved', id: asked.id });
  t.same(rig.left, ['1 cluster/web']);

  const [late, slow] = start();
  t.equal(slow.say(0, hello('good.example')), 'held');
  late.wait(499);
  t.same(late.left, []);
  late.wait(2);
  t.same(late.left, ['1 reset to server 0'], 'half a second is all');
  t.equal(asks(late).length, 1);

  const [wise, quick] = start();
  wise.inbox.push({ ...learned, pairs: [...learned.pairs] });
  t.equal(quick.say(0, hello('good.example')), 'cluster/web', 'what was posted already is read first');
  t.same(asks(wise), []);

  const [two, first] = start();
  const second = new Talk(two, 443, { sourcePort: 40_001 });
  t.equal(first.say(0, hello('good.example')), 'held');
  t.equal(second.say(0, hello('good.example')), 'held');
  t.equal(asks(two).length, 1, 'for several flows once');
  two.wait(600);
  t.same(two.left, ['1 reset to server 0', '2 reset to server 0']);

  const [never, wrong] = start();
  t.equal(wrong.say(0, hello('bad.example')), 'reset to server 0', 'no name that a rule has: nothing to ask');
  t.same(asks(never), []);
});

t.test('first packets: names of the address', async (t) => {
  const byName: RigPolicy = {
    services: { db: { addresses: [], names: ['db.example'], ports: [tcp(5432)] } },
    rules: [{ name: 'db', services: ['db'] }],
  };
  const syn = (rig: Rig, port = 5432): string => new Talk(rig, port).say(-1, '', TCP_SYN);
  const known = new Rig({ ...byName, names: [['db.example', SERVER]] });
  t.equal(syn(known), 'cluster/db');
  const unknown = new Rig(byName);
  t.equal(syn(unknown), 'held');
  const [asked] = unknown.posted.filter(({ kind }) => kind === 'resolve');
  t.match(asked, { name: 'db.example' });
  unknown.wait(600);
  t.same(unknown.left, ['1 dropped']);
  const rejecting = new Rig({
    ...byName,
    rules: [{ name: 'no', action: 'reject', services: ['db'] }],
    names: [['db.example', SERVER]],
  });
  t.equal(syn(rejecting), 'answered with a reset');
  t.equal(new Talk(known, 5432).say(-1, 'data', TCP_SYN), 'dropped');
  const both = new Rig({
    services: {
      ...byName.services,
      tls: { addresses: ['0.0.0.0/0'], ports: [tcp(5432)], checks: [check(5432, 'TLS')] },
    },
    rules: [
      { name: 'db', services: ['db'] },
      { name: 'tls', services: ['tls'] },
    ],
  });
  t.equal(syn(both), 'to be read');
});

t.test('policy changes while flows wait and while they go on', async (t) => {
  const rig = new Rig(permitWeb);
  t.same(rig.posted, [{ kind: 'inForce', generation: 1 }]);
  const talk = new Talk(rig, 443);
  const bytes = hello('good.example');
  t.equal(talk.say(0, bytes.subarray(0, 50)), 'held');
  rig.tell({
    kind: 'policy',
    generation: 2,
    delta: { set: { services: { web: { ...web, names: ['other.example'] } } }, delete: {} },
    numbers: [],
    gone: [],
  });
  t.match(rig.posted.at(-1), { kind: 'inForce', generation: 2 });
  t.equal(talk.say(50, bytes.subarray(50)), 'dropped');
  t.same(rig.left, ['1 reset to server 0', '2 dropped'], 'one packet becomes the reset');

  const numbered = new Rig(permitWeb);
  numbered.tell({
    kind: 'policy',
    generation: 2,
    delta: { set: {}, delete: {} },
    numbers: [['cluster/web', 77]],
    gone: [],
  });
  t.equal(new Talk(numbered, 443).say(0, bytes), 'number 77');
  numbered.tell({ kind: 'policy', generation: 3, delta: { set: {}, delete: {} }, numbers: [], gone: ['cluster/web'] });
  t.equal(new Talk(numbered, 443, { sourcePort: 2 }).say(0, bytes), 'reset to server 0', 'a rule without a number');
  numbered.wait(20);
  t.match(numbered.flows.at(-1), { reason: 'no-policy' });

  const gone = new Rig(permitWeb);
  gone.tell({
    kind: 'policy',
    generation: 2,
    delta: { set: {}, delete: { workloads: ['pod'] } },
    numbers: [],
    gone: [],
  });
  t.equal(new Talk(gone, 443).say(0, bytes), 'reset to server 0');
  const forgotten = new Rig(permitWeb);
  t.equal(new Talk(forgotten, 443).say(0, bytes), 'cluster/web');
  forgotten.tell({ kind: 'forget', addresses: [SERVER] });
  t.equal(new Talk(forgotten, 443, { sourcePort: 2 }).say(0, bytes), 'held', 'and asked for again');
});

t.test('a namespace in audit: all of it passes, and what would not have is told', async (t) => {
  const rig = new Rig({ ...permitWeb, audit: true });
  t.equal(new Talk(rig, 443).say(0, hello('good.example')), 'cluster/web');
  const bad = new Talk(rig, 443, { sourcePort: 2 });
  t.equal(bad.say(0, hello('bad.example')), 'default-action');
  const torn = new Talk(rig, 443, { sourcePort: 3 });
  t.equal(torn.say(0, hello('good.example').subarray(0, 20)), 'held');
  t.equal(torn.say(0, 'something else than it said before'), 'default-action');
  rig.wait(20);
  t.match(rig.flows.slice(1), [
    { decision: { wouldHave: 'drop' } },
    { decision: { verdict: 'accept', wouldHave: 'drop' }, reason: 'overlap' },
  ]);
  t.equal(rig.holding, 0);
});

/** [what, policy, port, what the client sends, what becomes of each, why at last]. */
type Step = [at: number, bytes: Uint8Array | string, becomes: string, flags?: number];
const goodHello = hello('good.example');
const half = Math.floor(goodHello.length / 2);
const evasions: [
  what: string,
  port: number,
  steps: Step[],
  told?: { reason?: string; detail?: string; name?: string },
][] = [
  [
    'a hello in two segments',
    443,
    [
      [0, goodHello.subarray(0, half), 'held'],
      [half, goodHello.subarray(half), 'cluster/web'],
    ],
  ],
  [
    'the second segment first',
    443,
    [
      [half, goodHello.subarray(half), 'dropped'],
      [0, goodHello.subarray(0, half), 'held'],
      [half, goodHello.subarray(half), 'cluster/web'],
    ],
  ],
  [
    'the same bytes again',
    443,
    [
      [0, goodHello.subarray(0, half), 'held'],
      [0, goodHello.subarray(0, half), 'dropped'],
      [half - 10, goodHello.subarray(half - 10), 'cluster/web'],
    ],
  ],
  [
    'other bytes for a place that has some: whichever the server takes',
    443,
    [
      [0, goodHello.subarray(0, half), 'held'],
      [half - 10, goodHello.subarray(half - 10).map((byte) => byte ^ 1), 'reset to server 0'],
    ],
    { reason: 'overlap' },
  ],
  [
    'records of one byte',
    443,
    [[0, records(helloMessage({ extensions: [serverName('good.example')] }), 1), 'cluster/web']],
  ],
  ['upper case', 443, [[0, hello('GOOD.Example'), 'cluster/web']], { name: 'good.example' }],
  ['a trailing dot', 443, [[0, hello('good.example.'), 'cluster/web']], { name: 'good.example' }],
  ['an A-label that is another name', 443, [[0, hello('xn--god-sna.example'), 'reset to server 0']]],
  ['UTF-8 in a name', 443, [[0, hello('g\u00f6d.example'), 'reset to server 0']], { detail: 'bad-name' }],
  ['a NUL in a name', 443, [[0, hello('good.example\0.evil'), 'reset to server 0']], { detail: 'bad-name' }],
  ['an IP address as name', 443, [[0, hello(SERVER), 'reset to server 0']], { detail: 'address-as-name' }],
  [
    'two names',
    443,
    [
      [
        0,
        records(helloMessage({ extensions: [serverName('good.example', 'evil.example')] }), 16_384),
        'reset to server 0',
      ],
    ],
    { detail: 'several-names' },
  ],
  [
    'the extension twice',
    443,
    [
      [
        0,
        records(helloMessage({ extensions: [serverName('good.example'), serverName('evil.example')] }), 16_384),
        'reset to server 0',
      ],
    ],
    { detail: 'duplicate-extension' },
  ],
  ['no name', 443, [[0, hello(undefined), 'reset to server 0']]],
  [
    'a name that hides another (ECH) is as good as any, unless it is refused',
    443,
    [[0, hello('good.example', outerEch()), 'cluster/web']],
  ],
  [
    'early data in the same segment: it goes on with the hello, and not before',
    443,
    [
      [0, goodHello.subarray(0, half), 'held'],
      [half, join([goodHello.subarray(half), text('early data of the application')]), 'cluster/web'],
    ],
  ],
  [
    'early data behind a hello that is not whole',
    443,
    [
      [0, goodHello.subarray(0, half), 'held'],
      [goodHello.length, 'early data', 'held'],
      [half, goodHello.subarray(half), 'cluster/web'],
    ],
  ],
  [
    'TLS whose hello is none',
    443,
    [[0, Uint8Array.from([22, 3, 1, 0, 4, 2, 0, 0, 0]), 'reset to server 0']],
    { detail: 'not-client-hello' },
  ],
  [
    'SSL 2',
    443,
    [[0, Uint8Array.from([0x80, 46, 1, 3, 1, 0, 21, 0, 0, 0, 16]), 'reset to server 0']],
    { detail: 'sslv2-hello' },
  ],
  ['another protocol on 443', 443, [[0, 'SSH-2.0-x\r\n', 'reset to server 0']]],
  ['HTTP on 443', 443, [[0, get('good.example'), 'reset to server 0']]],
  [
    'the end before it is whole',
    443,
    [[0, goodHello.subarray(0, half), 'reset to server 0', TCP_ACK | TCP_FIN]],
    { reason: 'ended' },
  ],
  ['no word at all', 443, [[0, '', 'passed', TCP_ACK | TCP_FIN]]],
  ['urgent data', 443, [[0, goodHello, 'reset to server 0', TCP_ACK | TCP_PSH | 0x20]], { reason: 'urgent' }],
  ['data in the SYN (TCP fast open)', 443, [[-1, goodHello, 'dropped', TCP_SYN]]],
  [
    'a reset that only the gateway takes for one',
    443,
    [
      [0, goodHello.subarray(0, half), 'held'],
      [half, '', 'passed', TCP_RST],
    ],
  ],
  ['upper case in Host', 80, [[0, get('GOOD.example'), 'cluster/web for life']], { name: 'good.example' }],
  ['a trailing dot in Host', 80, [[0, get('good.example.'), 'cluster/web for life']], { name: 'good.example' }],
  [
    'the absolute form',
    80,
    [[0, 'GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n', 'cluster/web for life']],
  ],
  [
    'the absolute form with another Host',
    80,
    [[0, 'GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n', 'reset to server 0']],
    { detail: 'conflicting-host' },
  ],
  [
    'Host twice',
    80,
    [[0, 'GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n', 'reset to server 0']],
    { detail: 'duplicate-host' },
  ],
  [
    'white space before the colon',
    80,
    [[0, 'GET / HTTP/1.1\r\nHost : evil.example\r\nHost: good.example\r\n\r\n', 'reset to server 0']],
    { detail: 'space-before-colon' },
  ],
  [
    'a folded line',
    80,
    [[0, 'GET / HTTP/1.1\r\nX: y\r\n Host: good.example\r\n\r\n', 'reset to server 0']],
    { detail: 'obs-fold' },
  ],
  ['IDN in Host', 80, [[0, get('g\u00f6d.example'), 'reset to server 0']], { detail: 'bad-host-byte' }],
  ['an IP address as Host, the server\u2019s own', 80, [[0, get(SERVER), 'reset to server 0']]],
  ['no Host', 80, [[0, 'GET / HTTP/1.0\r\n\r\n', 'reset to server 0']]],
  ['HTTP/0.9', 80, [[0, 'GET /\r\n', 'reset to server 0']], { detail: 'http-0.9' }],
  ['HTTP/2 without TLS', 80, [[0, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'reset to server 0']]],
  [
    'Content-Length and chunks',
    80,
    [[0, get('good.example', '/', 'Content-Length: 3\r\nTransfer-Encoding: chunked\r\n'), 'reset to server 0']],
    { detail: 'content-length-with-transfer-encoding' },
  ],
  ['a line that ends with LF alone', 80, [[0, 'GET / HTTP/1.1\nHost: good.example\n\n', 'reset to server 0']]],
  [
    'a second request of another host in the same segment',
    80,
    [[0, get('good.example') + get('evil.example'), 'reset to server 0']],
    { name: 'evil.example' },
  ],
];

for (const family of [4, 6] as const) {
  t.test(`evasions, IPv${family}`, async (t) => {
    for (const [what, port, steps, told] of evasions) {
      const rig = new Rig(permitWeb);
      const talk = new Talk(rig, port, { family });
      for (const [at, bytes, becomes, flags] of steps) {
        const payload = typeof bytes === 'string' ? text(bytes) : bytes;
        const word = talk.say(at, payload, flags);
        // Of several packets the first becomes the reset.
        if (becomes !== 'reset to server 0' || word !== 'dropped') t.equal(word, becomes, `${what}: ${at}`);
        else t.match(rig.left, [/ reset to server 0$/], what);
      }
      rig.wait(20);
      const last = rig.flows.at(-1);
      if (told?.reason !== undefined) t.equal(last?.reason, told.reason, what);
      if (told?.detail !== undefined) t.equal(last?.detail, told.detail, what);
      if (told?.name !== undefined) t.equal(last?.reading.name, told.name, what);
      // Whatever has left did so in the order in which it came, and nothing before a verdict.
      const verdictAt = rig.left.findIndex((line) => line.includes('cluster/web'));
      for (const line of rig.left.slice(0, Math.max(verdictAt, 0))) t.match(line, /dropped|passed/, what);
    }
  });
}

t.test('packets that the server never takes, sent before those that it does', async (t) => {
  for (const family of [4, 6] as const) {
    const evil = hello('evil.example');
    const start = (): [Rig, Talk] => {
      const rig = new Rig(permitWeb);
      return [rig, new Talk(rig, 443, { family })];
    };
    const [unchecked, first] = start();
    const broken = first.packet(0, goodHello);
    broken[broken.length - 1]! ^= 1;
    t.equal(unchecked.send(broken, INSPECT_FIRST_MARK, INFO_CHECKSUM_NOT_VERIFIED), 'dropped', 'a wrong checksum');
    t.equal(unchecked.decider.desk.tally.read()['reason_bad-checksum'], 1);
    for (const odd of [evil, join([evil, text('x')])]) {
      const word = unchecked.send(first.packet(0, odd), INSPECT_FIRST_MARK, INFO_CHECKSUM_NOT_VERIFIED);
      t.match(word, /reset to server 0|dropped/, 'what comes behind it is read for itself');
    }
    t.match(unchecked.left[1], /reset to server 0/);
    t.equal(start()[0].send(first.packet(0, goodHello), INSPECT_FIRST_MARK, INFO_CHECKSUM_NOT_VERIFIED), 'cluster/web');
    t.equal(start()[0].send(broken, INSPECT_FIRST_MARK, INFO_CHECKSUM_NOT_VERIFIED | INFO_GSO), 'cluster/web');

    const [rig, talk] = start();
    const short = talk.packet(0, goodHello.subarray(0, -8));
    short[family === 4 ? 8 : 7] = 1;
    t.equal(rig.send(short, INSPECT_FIRST_MARK), 'held', 'a TTL that ends on the way: it is held all the same');
    t.equal(talk.say(0, evil.subarray(0, -8)), 'dropped', 'and what is to take its place has to be the same');
    t.same(rig.left, ['1 reset to server 0', '2 dropped']);
    rig.wait(20);
    t.match(rig.flows, [{ reason: 'overlap' }]);

    if (family === 6) continue;
    const [split, fragments] = start();
    for (const [at, value] of [
      [6, 0x20],
      [7, 0x01],
    ] as const) {
      const fragment = fragments.packet(0, goodHello);
      fragment[at] = value;
      t.equal(split.send(fragment, INSPECT_FIRST_MARK), 'dropped', 'a fragment that the kernel did not put together');
    }
    t.equal(split.decider.desk.tally.read().reason_fragment, 2);
  }
});

t.test('a hello cut at every byte', async (t) => {
  for (const [name, becomes] of [
    ['good.example', 'cluster/web'],
    ['evil.example', 'reset to server 0'],
  ] as const) {
    const bytes = hello(name);
    const rig = new Rig(permitWeb);
    for (let cut = 1; cut < bytes.length; cut++) {
      const talk = new Talk(rig, 443, { sourcePort: 1_000 + cut });
      equal(talk.say(0, bytes.subarray(0, cut)), 'held');
      equal(talk.say(cut, bytes.subarray(cut)), becomes === 'cluster/web' ? becomes : 'dropped');
    }
    t.equal(rig.holding, 0);
    t.pass(name);
  }
});

t.test('any cuts, order and repetition: one verdict, and no byte before it', async () => {
  const cutsOf = (length: number) => fc.uniqueArray(fc.integer({ min: 1, max: length - 1 }), { maxLength: 8 });
  const names = ['good.example', 'evil.example', 'www.good.example'] as const;
  fc.assert(
    fc.property(
      fc.constantFrom(...names),
      fc.boolean(),
      cutsOf(hello('good.example').length),
      fc.array(fc.nat(20), { maxLength: 30 }),
      (name, large, cuts, order) => {
        const bytes = large ? hello(name, extension(21, new Uint8Array(1_216))) : hello(name);
        const places = [0, ...cuts.sort((a, b) => a - b), bytes.length];
        const pieces = places.slice(0, -1).map((at, index) => ({ at, end: places[index + 1]! }));
        const rig = new Rig(permitWeb);
        const talk = new Talk(rig, 443);
        // Some order, then all of them until nothing more happens: as a sender that gets no answer would.
        const sent = [...order.map((index) => pieces[index % pieces.length]!), ...pieces, ...pieces];
        for (const { at, end } of sent) {
          const word = talk.say(at, bytes.subarray(at, end));
          ok(word !== 'passed', word);
        }
        // What went on did so with the verdict or behind it.
        const verdict = rig.left.findIndex((line) => line.endsWith('cluster/web'));
        const early = rig.left.findIndex((line) => line.endsWith('as decided'));
        ok(early < 0 || early > verdict);
        rig.wait(20);
        equal(rig.flows.length, 1);
        equal(rig.flows[0]?.reading.name, name);
        const permits = name !== 'evil.example';
        const words = new Set(rig.left.map((line) => line.replace(/^\d+ /, '')));
        words.delete('dropped');
        words.delete('as decided');
        deepStrictEqual([...words], [permits ? 'cluster/web' : 'reset to server 0']);
        equal(rig.holding, 0);
      },
    ),
    { numRuns: 400 },
  );
});

t.test('bounds have names', async (t) => {
  const limited = new Rig({ ...permitWeb, data: { limits: { packets: 3, flows: 4, memory: 8_192 } } });
  const many = new Talk(limited, 443);
  for (let at = 0; at < 3; at++) t.equal(many.say(at, goodHello.subarray(at, at + 1)), 'held');
  t.equal(many.say(3, goodHello.subarray(3, 4)), 'dropped');
  limited.wait(20);
  t.match(limited.flows, [{ reason: 'packets', delete: true }]);
  for (let port = 1; port < 8; port++) new Talk(limited, 443, { sourcePort: port }).say(0, goodHello.subarray(0, 9));
  limited.wait(20);
  t.match(limited.flows.at(-1), { reason: 'flows' });
  const generous = new Rig({ ...permitWeb, data: { onOverload: 'Accept', limits: { flows: 2 } } });
  for (let port = 1; port < 6; port++) new Talk(generous, 443, { sourcePort: port }).say(0, goodHello.subarray(0, 9));
  t.match(generous.left, [/default-action/, /default-action/], 'where overload lets pass, what gives way passes');

  const slow = new Rig(permitWeb);
  t.equal(new Talk(slow, 443).say(0, goodHello.subarray(0, 9)), 'held');
  slow.expire(1);
  slow.wait(20);
  t.match(slow.flows, [{ reason: 'waiting' }]);

  const lost = new Rig(permitWeb);
  const stray = new Talk(lost, 443);
  for (let count = 0; count < 9; count++) t.equal(stray.say(500, 'of a connection that nobody knows'), 'dropped');
  t.same(lost.resets, [], 'its beginning may be late');
  lost.wait(4_000);
  t.equal(stray.say(500, 'of a connection that nobody knows'), 'dropped');
  t.same(lost.resets, ['reset to server 500', 'reset to client 0']);
  lost.wait(20);
  t.match(lost.flows, [{ reason: 'no-start', delete: true }]);
  t.ok(Object.values(inspectReasons).every((reason) => reason.length > 10));
});

t.test('random bytes and packets: nothing throws, nothing is kept for ever', async () => {
  const rig = new Rig({ ...permitWeb, data: { limits: { flows: 64, memory: 65_536 } } });
  fc.assert(
    fc.property(
      fc.constantFrom(80, 443, 22),
      fc.nat(3),
      fc.integer({ min: -2, max: 60 }),
      fc.uint8Array({ maxLength: 40 }),
      fc.constantFrom(TCP_ACK, TCP_ACK | TCP_FIN, TCP_SYN, TCP_RST, TCP_ACK | TCP_PSH),
      fc.boolean(),
      fc.nat(400),
      (port, sourcePort, at, bytes, flags, server, milliseconds) => {
        const talk = new Talk(rig, port, { sourcePort: sourcePort + 1 });
        if (server) talk.hear(at, bytes, flags);
        else talk.say(at, bytes, flags);
        rig.send(bytes);
        rig.wait(milliseconds);
        ok(rig.decider.tcp.size <= 64);
      },
    ),
    { numRuns: 3_000 },
  );
  rig.wait(20_000);
  equal(rig.holding, 0);
});
