/**
 * What becomes of datagrams whose flows are asked for: QUIC by its hello, over any datagrams and again for each connection
 * that begins in the flow; DNS question by question; others by the names of their address. And what answers of resolvers teach.
 */
import { equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import type { ApplicationCheck } from '../../api/application.ts';
import { INSPECT_DNS_MARK, INSPECT_PASSED_MARK, INSPECT_REPLY_MARK } from '../../api/names.ts';
import { deciderLimits } from '../../gateway/inspect/messages.ts';
import { join } from '../../wire/bytes.ts';
import { buildIcmpEcho, buildIp } from '../../wire/ip.ts';
import { message, question, record } from '../dns-build.ts';
import { answer, datagram, POD, Rig, type RigPolicy, SERVER } from '../inspect-rig.ts';
import {
  alpn,
  ascii,
  cryptoFrame,
  helloMessage,
  otherPacket,
  postQuantumShare,
  sealInitial,
  serverName,
  versions,
} from './hello-bytes.ts';

const udp = (port: number): { protocol: number; ports: [number, number][] } => ({
  protocol: 17,
  ports: [[port, port]],
});
const quicNames: RigPolicy = {
  services: {
    web: {
      addresses: [],
      names: ['good.example'],
      ports: null,
      checks: [{ ...udp(443), application: 'QUIC', implied: true }],
    },
  },
  rules: [{ name: 'web', services: ['web'] }],
  names: [['good.example', SERVER]],
};
const hello = (name: string, ...more: Uint8Array[]): Uint8Array =>
  helloMessage({ extensions: [serverName(name), versions(0x0304), alpn('h3'), ...more] });
const initial = (name: string, fields: Partial<Parameters<typeof sealInitial>[0]> = {}): Uint8Array =>
  sealInitial({ frames: [cryptoFrame(0, hello(name))], ...fields });
const OTHER_ID = ascii('otherone');

t.test('a hello of QUIC in one datagram', async (t) => {
  const rig = new Rig(quicNames);
  t.equal(rig.send(datagram(initial('good.example'), 443)), 'cluster/web for life');
  rig.wait(20);
  t.match(rig.flows, [
    {
      protocol: 17,
      sourcePort: 40_000,
      destinationPort: 443,
      decision: { verdict: 'accept', rule: 'cluster/web' },
      reading: { application: 'QUIC', name: 'good.example', tls: { version: 0x0304, alpn: ['h3'] } },
      life: true,
    },
  ]);
  t.equal(rig.send(datagram(initial('good.example', { number: 1 }), 443)), 'passed', 'sent again');
  t.equal(rig.send(datagram(initial('evil.example', { number: 2 }), 443)), 'dropped', 'other bytes in its place');
  t.equal(
    rig.send(datagram(initial('good.example', { number: 3, destination: OTHER_ID, keyId: ascii('clientid') }), 443)),
    'passed',
    'what its own connection ID does not open is of the connection that is there',
  );
  t.equal(rig.send(datagram(initial('evil.example', { destination: OTHER_ID }), 443)), 'dropped', 'another connection');
  t.equal(rig.send(datagram(initial('good.example', { destination: OTHER_ID }), 443)), 'cluster/web for life');
  t.equal(rig.send(answer(ascii('anything'), 443), INSPECT_REPLY_MARK), 'passed');
  rig.wait(40_000);
  t.equal(rig.decider.datagrams.size, 0, 'nothing is kept for ever');
});

t.test('a second hello that the server asks for', async (t) => {
  const first = hello('good.example');
  /** Of the connection that is there, to the connection ID of the server's choice. */
  const later = (number: number, ...frames: Uint8Array[]): Uint8Array =>
    sealInitial({ number, frames, keyId: ascii('clientid'), destination: ascii('srv') });
  const ack = Uint8Array.of(2, 0, 0, 0, 0);
  const large = hello('good.example', postQuantumShare());
  const half = 700;
  const rows: [what: string, datagrams: [bytes: Uint8Array, becomes: string][], detail?: string][] = [
    ['of the same name', [[later(1, ack, cryptoFrame(first.length, first)), 'cluster/web for life']]],
    [
      'over two datagrams',
      [
        [later(1, cryptoFrame(first.length + half, large.subarray(half))), 'held'],
        [later(2, cryptoFrame(first.length, large.subarray(0, half))), 'cluster/web for life'],
        [later(3, cryptoFrame(first.length, large.subarray(0, half))), 'passed'],
      ],
    ],
    [
      'of another name',
      [[later(1, cryptoFrame(first.length, hello('evil.example'))), 'dropped']],
      'other-second-hello',
    ],
    ['that is none', [[later(1, cryptoFrame(first.length, Uint8Array.of(2, 0, 0, 0))), 'dropped']], 'not-client-hello'],
    [
      'with more behind it',
      [[later(1, cryptoFrame(first.length, join([first, ascii('x')]))), 'dropped']],
      'bytes-after-hello',
    ],
    [
      'no: acknowledgements, and the end',
      [
        [later(1, ack), 'passed'],
        [join([later(2, ack), otherPacket('handshake', 1, ascii('srv'))]), 'passed'],
        [later(3, Uint8Array.of(0x1c, 0, 0, 0)), 'passed'],
      ],
    ],
    [
      'after another connection has begun',
      [
        [sealInitial({ frames: [cryptoFrame(0, first)], destination: OTHER_ID }), 'cluster/web for life'],
        [later(1, cryptoFrame(first.length, hello('evil.example'))), 'dropped'],
      ],
      'bad-connection-id',
    ],
  ];
  for (const [what, datagrams, detail] of rows) {
    const rig = new Rig(quicNames);
    t.equal(rig.send(datagram(initial('good.example'), 443)), 'cluster/web for life');
    for (const [bytes, becomes] of datagrams) t.equal(rig.send(datagram(bytes, 443)), becomes, what);
    rig.wait(20);
    t.equal(rig.flows.at(-1)?.detail, detail, what);
    t.equal(rig.holding, 0, what);
  }
});

t.test('what else may come on 443', async (t) => {
  const rows: [what: string, payload: Uint8Array, detail: string | undefined][] = [
    ['another name', initial('evil.example'), undefined],
    ['version 2', initial('evil.example', { version: 2 }), undefined],
    ['bytes of nothing', Uint8Array.of(1, 2, 3), 'not-quic'],
    ['a packet of an established connection', Uint8Array.from([0x40, ...Array(40).fill(1)]), 'short-header'],
    ['0-RTT data first', otherPacket('0-rtt'), 'early-data-first'],
    ['a datagram that is too short', initial('good.example', { padTo: 600 }), 'short-datagram'],
    ['another version', Uint8Array.from([0xc0, 9, 9, 9, 9, 8, ...Array(1_300).fill(1)]), 'unknown-version'],
  ];
  for (const [what, payload, detail] of rows) {
    const rig = new Rig(quicNames);
    t.equal(rig.send(datagram(payload, 443)), 'dropped', what);
    rig.wait(20);
    t.match(rig.flows, [{ decision: { verdict: 'drop' } }], what);
    t.equal(rig.flows[0]?.detail, detail, what);
    rig.send(datagram(payload, 443));
    rig.wait(20);
    t.equal(rig.flows.length, 1, 'the same again is told once');
  }
  const two = new Rig(quicNames);
  t.equal(two.send(datagram(initial('good.example', { version: 2 }), 443)), 'cluster/web for life');
});

t.test('a hello over two datagrams, in any order', async (t) => {
  const bytes = hello('good.example', postQuantumShare());
  const half = 700;
  const [one, two] = [
    sealInitial({ frames: [cryptoFrame(0, bytes.subarray(0, half))] }),
    sealInitial({ frames: [cryptoFrame(half, bytes.subarray(half))], number: 1 }),
  ] as const;
  for (const [first, second] of [
    [one, two],
    [two, one],
  ] as const) {
    const rig = new Rig(quicNames);
    t.equal(rig.send(datagram(first, 443)), 'held');
    t.equal(rig.send(datagram(second, 443)), 'cluster/web for life');
    t.same(rig.left, ['1 cluster/web for life', '2 cluster/web for life']);
    t.equal(
      rig.send(datagram(sealInitial({ frames: [cryptoFrame(half, bytes.subarray(half))], number: 2 }), 443)),
      'passed',
    );
    t.equal(
      rig.send(datagram(sealInitial({ frames: [cryptoFrame(bytes.length, ascii('more'))], number: 3 }), 443)),
      'dropped',
      'what lies behind the hello is not let on',
    );
    rig.wait(6_000);
    t.equal(rig.holding, 0);
  }
  const torn = new Rig(quicNames);
  t.equal(torn.send(datagram(one, 443)), 'held');
  torn.wait(6_000);
  t.same(torn.left, ['1 dropped']);
  t.match(torn.flows, [{ reason: 'time', decision: undefined }]);
  const many = new Rig(quicNames);
  for (let count = 0; count < 16; count++)
    many.send(datagram(sealInitial({ frames: [cryptoFrame(0, bytes.subarray(0, 9))], number: count }), 443));
  many.send(datagram(one, 443));
  t.equal(many.holding, 0);
  many.wait(20);
  t.match(many.flows, [{ reason: 'packets' }]);
});

t.test('rejected: an error for the first, and the others dropped', async (t) => {
  const rig = new Rig({
    ...quicNames,
    rules: [
      { name: 'no', action: 'reject', services: ['web'] },
      { name: 'all', services: '*' },
    ],
  });
  const bytes = hello('good.example', postQuantumShare());
  rig.send(datagram(sealInitial({ frames: [cryptoFrame(0, bytes.subarray(0, 700))] }), 443));
  t.equal(
    rig.send(datagram(sealInitial({ frames: [cryptoFrame(700, bytes.subarray(700))], number: 1 }), 443)),
    'answered with an error',
  );
  t.same(rig.left, ['1 dropped', '2 answered with an error']);
});

t.test('a name that must be asked for, and packets that come meanwhile', async (t) => {
  const rig = new Rig({ ...quicNames, names: [] });
  t.equal(rig.send(datagram(initial('good.example'), 443)), 'held');
  t.equal(rig.send(datagram(initial('good.example', { number: 1 }), 443)), 'held');
  const asked = rig.posted.find(({ kind }) => kind === 'resolve');
  if (asked?.kind !== 'resolve') return t.fail('it asks');
  rig.tell({ kind: 'names', pairs: [{ name: 'good.example', address: SERVER, until: 4e12 }] });
  rig.tell({ kind: 'resolved', id: asked.id });
  t.same(rig.left.sort(), ['1 cluster/web for life', '2 cluster/web for life']);
  const late = new Rig({ ...quicNames, names: [] });
  t.equal(late.send(datagram(initial('good.example'), 443)), 'held');
  late.wait(600);
  t.same(late.left, ['1 dropped']);
});

const dns = (check: ApplicationCheck['dns'], rest: Partial<RigPolicy> = {}): RigPolicy => ({
  services: {
    dns: {
      addresses: ['192.0.2.0/24'],
      ports: [udp(53)],
      checks: [{ ...udp(53), application: 'DNS', ...(check && { dns: check }) }],
    },
  },
  rules: [{ name: 'dns', services: ['dns'] }],
  ...rest,
});
const ask = (name: string, type = 1, id = 7): Uint8Array => message({ id, questions: [question(name, type)] });

t.test('questions', async (t) => {
  const rig = new Rig(dns({ names: ['**.good.example'], types: ['A'], maxQuestionsPerSecond: 3 }));
  t.equal(rig.send(datagram(ask('a.good.example'), 53)), 'cluster/dns for life');
  t.equal(rig.send(datagram(ask('b.good.example'), 53)), 'passed');
  t.equal(rig.send(datagram(ask('evil.example'), 53)), 'dropped');
  t.equal(rig.send(datagram(ask('b.good.example', 28), 53)), 'dropped');
  t.equal(rig.send(datagram(ascii('no question'), 53)), 'dropped');
  t.equal(rig.send(datagram(ask('c.good.example'), 53, 40_001)), 'cluster/dns for life');
  t.equal(rig.send(datagram(ask('d.good.example'), 53, 40_002)), 'dropped', 'of one source, whatever its port');
  rig.wait(400);
  t.equal(rig.send(datagram(ask('d.good.example'), 53, 40_002)), 'cluster/dns for life');
  t.match(
    rig.flows.filter(({ reason }) => reason !== undefined),
    [{ reason: 'question-rate', decision: undefined, life: true }],
  );
  t.match(rig.flows[0], { reading: { application: 'DNS', name: 'a.good.example', dns: { type: 'A' } }, life: true });

  const rejecting = new Rig({ ...dns({ names: ['**.bad.example'] }) });
  rejecting.tell({ kind: 'policy', generation: 2, delta: { set: {}, delete: {} }, numbers: [], gone: [] });
  t.equal(rejecting.send(datagram(ask('x.good.example'), 53)), 'dropped');

  const any = new Rig(dns(undefined));
  t.equal(any.send(datagram(ask('x.example', 65_280), 53)), 'cluster/dns for life');
  const data = 'abcdefghijklmnopqrstuvwxyz0123456789'.repeat(2).slice(0, 60);
  t.equal(any.send(datagram(ask(`${data}.${data}.t.example`), 53)), 'dropped', 'a name that carries data');
  t.equal(
    any.send(datagram(ask(`${'0.1.2.3.4.5.6.7.8.9.a.b.c.d.e.f.'.repeat(2)}ip6.arpa`, 12), 53)),
    'passed',
    'a long one that does not',
  );
  any.wait(20);
  t.same(
    any.flows.flatMap(({ reason }) => reason ?? []),
    ['tunnel'],
  );
  const tcp = new Rig(dns(undefined, { audit: true }));
  t.equal(
    tcp.send(datagram(ask(`${data}.${data}.t.example`), 53)),
    'cluster/dns for life',
    'in audit it is told, and passes',
  );
});

t.test('first packets of other flows: names of the address', async (t) => {
  const policy: RigPolicy = {
    services: {
      ntp: { addresses: [], names: ['time.example'], ports: [udp(123)] },
      ping: { addresses: [], names: ['time.example'], ports: [{ protocol: 1, ports: [[2048, 2048]] }] },
      gre: { addresses: [], names: ['time.example'], ports: [{ protocol: 47, ports: null }] },
    },
    rules: [{ name: 'all', services: ['ntp', 'ping', 'gre'] }],
  };
  const echo = buildIcmpEcho({ source: POD, destination: SERVER, id: 1, sequence: 1 });
  const gre = buildIp({ source: POD, destination: SERVER }, 47, new Uint8Array(8));
  const known = new Rig({ ...policy, names: [['time.example', SERVER]] });
  const unknown = new Rig(policy);
  const refused = new Rig({
    ...policy,
    rules: [
      { name: 'no', action: 'reject', services: ['ntp', 'ping', 'gre'] },
      { name: 'all', services: '*' },
    ],
    names: [['time.example', SERVER]],
  });
  for (const [at, packet] of [datagram(ascii('time?'), 123), echo, gre].entries()) {
    t.equal(known.send(packet), 'cluster/all');
    t.equal(known.send(packet), 'cluster/all', 'one that was on its way');
    t.equal(unknown.send(packet), 'held');
    t.equal(unknown.left.length, 0, String(at));
    t.equal(refused.send(packet), 'answered with an error');
  }
  t.equal(unknown.posted.filter(({ kind }) => kind === 'resolve').length, 1);
  unknown.wait(600);
  t.same(unknown.left, ['1 dropped', '2 dropped', '3 dropped']);
  const cut = new Rig(policy);
  t.equal(cut.send(datagram(ascii('time?'), 123).subarray(0, 30)), 'dropped');
  t.equal(cut.send(Uint8Array.of(0x45)), 'dropped');
  t.equal(cut.send(new Uint8Array(0)), 'dropped');
});

const RESOLVER = '198.51.100.53';
const TO = INSPECT_DNS_MARK | INSPECT_PASSED_MARK;
const FROM = TO | INSPECT_REPLY_MARK;
const response = (name: string, addresses: number[][], id = 7): Uint8Array =>
  message({
    id,
    flags: 0x8180,
    questions: [question(name, 1)],
    answers: [
      record(name, 5, [...question('edge.example', 1).slice(0, -4)]),
      ...addresses.map((address) => record('edge.example', 1, address, 300)),
    ],
  });

t.test('answers of resolvers teach, and wait until who has to know does', async (t) => {
  const rig = new Rig({ dns: { resolvers: [RESOLVER] } });
  t.equal(rig.send(datagram(ask('www.example'), 53, 40_000, RESOLVER), TO), 'passed');
  t.equal(
    rig.send(
      answer(
        response('www.example', [
          [192, 0, 2, 7],
          [192, 0, 2, 8],
        ]),
        53,
        40_000,
        RESOLVER,
      ),
      FROM,
    ),
    'held',
  );
  const taught = rig.posted.find(({ kind }) => kind === 'teach');
  t.match(taught, {
    resolver: RESOLVER,
    names: ['www.example', 'edge.example'],
    addresses: [
      { address: '192.0.2.7', ttlSeconds: 300 },
      { address: '192.0.2.8', ttlSeconds: 300 },
    ],
  });
  if (taught?.kind !== 'teach') return;
  t.equal(rig.left.length, 1);
  rig.tell({ kind: 'release', id: taught.id });
  t.same(rig.left, ['1 passed', '2 passed']);
  t.equal(
    rig.send(answer(response('www.example', [[192, 0, 2, 9]]), 53, 40_000, RESOLVER), FROM),
    'passed',
    'a second answer',
  );
  equal(rig.posted.filter(({ kind }) => kind === 'teach').length, 1);

  rig.send(datagram(ask('late.example', 1, 8), 53, 40_000, RESOLVER), TO);
  t.equal(rig.send(answer(response('late.example', [[192, 0, 2, 9]], 8), 53, 40_000, RESOLVER), FROM), 'held');
  rig.wait(deciderLimits.teachMs + 1);
  t.equal(rig.left.at(-1), '5 passed');
  t.match(rig.decider.desk.tally.read(), { taught: 2, taught_late: 1 });
});

t.test('answers that teach nothing go on at once', async (t) => {
  const rows: [what: string, asked: Uint8Array | undefined, answered: Uint8Array, from?: string, wait?: number][] = [
    ['nobody asked', undefined, response('www.example', [[192, 0, 2, 7]])],
    ['another id', ask('www.example', 1, 8), response('www.example', [[192, 0, 2, 7]])],
    ['another name', ask('other.example'), response('www.example', [[192, 0, 2, 7]])],
    ['another type', ask('www.example', 28), response('www.example', [[192, 0, 2, 7]])],
    ['no address', ask('www.example'), response('www.example', [])],
    ['no resolver of the pool', ask('www.example'), response('www.example', [[192, 0, 2, 7]]), '203.0.113.9'],
    ['too late', ask('www.example'), response('www.example', [[192, 0, 2, 7]]), RESOLVER, 11_000],
    ['no answer', ask('www.example'), ascii('gibberish')],
  ];
  for (const [what, asked, answered, from = RESOLVER, wait = 0] of rows) {
    const rig = new Rig({ dns: { resolvers: [RESOLVER] } });
    if (asked !== undefined) t.equal(rig.send(datagram(asked, 53, 40_000, from), TO), 'passed');
    rig.wait(wait);
    t.equal(rig.send(answer(answered, 53, 40_000, from), FROM), 'passed', what);
    t.notOk(
      rig.posted.some(({ kind }) => kind === 'teach'),
      what,
    );
  }
});

t.test('of flows that are read, too', async (t) => {
  const read = new Rig(dns({ names: ['www.example'] }, { dns: { resolvers: [SERVER] } }));
  t.equal(read.send(datagram(ask('www.example'), 53), INSPECT_DNS_MARK), 'cluster/dns for life');
  t.equal(read.send(datagram(ask('bad.example', 1, 9), 53), INSPECT_DNS_MARK), 'dropped');
  t.equal(
    read.send(answer(response('www.example', [[192, 0, 2, 7]]), 53), INSPECT_DNS_MARK | INSPECT_REPLY_MARK),
    'held',
  );
});

t.test('random datagrams: nothing throws, nothing is kept for ever', async () => {
  const rig = new Rig({ ...quicNames, ...dns(undefined), dns: { resolvers: [RESOLVER, SERVER] } });
  const good = initial('good.example');
  fc.assert(
    fc.property(
      fc.constantFrom(53, 443, 99),
      fc.nat(4),
      fc.oneof(
        fc.uint8Array({ maxLength: 80 }),
        fc.tuple(fc.nat(good.length - 1), fc.nat(255)).map(([at, byte]) => {
          const bytes = good.slice();
          bytes[at] = byte;
          return bytes;
        }),
        fc.constantFrom(ask('a.example'), response('a.example', [[1, 2, 3, 4]])),
      ),
      fc.constantFrom(0, INSPECT_DNS_MARK, TO, FROM, INSPECT_REPLY_MARK),
      fc.nat(300),
      (port, sourcePort, bytes, marks, milliseconds) => {
        rig.send(
          (marks & INSPECT_REPLY_MARK) !== 0 ? answer(bytes, port, sourcePort) : datagram(bytes, port, sourcePort),
          marks,
        );
        rig.wait(milliseconds);
        ok(rig.decider.datagrams.size <= 16);
      },
    ),
    { numRuns: 2_000 },
  );
  rig.wait(60_000);
  equal(rig.holding, 0);
});
