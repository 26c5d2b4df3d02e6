/**
 * Samples of flows (gateway/record/detect.ts, detect-budget.ts): what is read of copies of first packets, in whatever order, cut
 * or missing they come; its bounds; and how much of the time samples are taken.
 */
import fc from 'fast-check';
import t from 'tap';
import type { applications } from '../../api/application.ts';
import { Detector } from '../../gateway/record/detect.ts';
import { DetectBudget, forwardedPackets } from '../../gateway/record/detect-budget.ts';
import { type FlowRecord, sampledFields } from '../../gateway/record/flow-record.ts';
import { HeldStarts } from '../../gateway/record/held-starts.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { join } from '../../wire/bytes.ts';
import { buildIcmpEcho, buildTcp, buildUdp, TCP_ACK } from '../../wire/ip.ts';
import {
  alpn,
  ascii,
  cryptoFrame,
  helloMessage,
  postQuantumShare,
  record,
  sealInitial,
  serverName,
  versions,
} from './hello-bytes.ts';

const client = { source: '10.244.1.5', destination: '198.51.100.80', sourcePort: 40_000, destinationPort: 443 };
const server = { source: '198.51.100.80', destination: '10.244.1.5', sourcePort: 443, destinationPort: 40_000 };
const FLOW = { id: 7, reply: false };

const segment = (payload: Uint8Array, sequence = 100): Uint8Array =>
  buildTcp({ ...client, flags: TCP_ACK, sequence, payload });
const hello = (...more: Uint8Array[]): Uint8Array =>
  helloMessage({ extensions: [serverName('api.example.test'), versions(0x0a0a, 0x0304, 0x0303), alpn('h2'), ...more] });
const question = (name: string, type: number): Uint8Array =>
  join([
    Uint8Array.of(0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    ...name.split('.').map((label) => join([Uint8Array.of(label.length), ascii(label)])),
    Uint8Array.of(0, type >>> 8, type, 0, 1),
  ]);
const TLS: ApplicationReading = {
  application: 'TLS',
  name: 'api.example.test',
  tls: { version: 0x0304, alpn: ['h2'], encryptedClientHello: false },
};

/** What a new detector says of these packets of the client, one after another. */
function saidOf(packets: Uint8Array[], flow = FLOW): (ApplicationReading | undefined)[] {
  const detector = new Detector();
  return packets.map((packet) => detector.take(flow, packet, 0));
}

t.test('one packet of the client', async (t) => {
  const rows: [what: string, packet: Uint8Array, said: ApplicationReading | undefined][] = [
    ['a hello', segment(record(hello())), TLS],
    [
      'a request',
      segment(ascii('GET /a/b?c HTTP/1.1\r\nHost: Web.example.test:80\r\n\r\n')),
      { application: 'HTTP', name: 'web.example.test', http: { method: 'GET', path: '/a/b' } },
    ],
    [
      'a request to an address',
      segment(ascii('GET / HTTP/1.1\r\nHost: 198.51.100.80\r\n\r\n')),
      { application: 'HTTP', literal: '198.51.100.80', http: { method: 'GET', path: '/' } },
    ],
    ['HTTP/2 without TLS', segment(ascii('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')), { application: 'HTTP' }],
    ['SSH', segment(ascii('SSH-2.0-OpenSSH_9.2\r\n')), { application: 'SSH' }],
    ['Redis', segment(ascii('*1\r\n$4\r\nPING\r\n')), { application: 'Redis' }],
    [
      'a question by TCP',
      segment(join([Uint8Array.of(0, question('a.example.test', 1).length), question('a.example.test', 1)])),
      { application: 'DNS', name: 'a.example.test', dns: { type: 'A' } },
    ],
    [
      'a question',
      buildUdp({ ...client, payload: question('Web.example.test', 28) }),
      { application: 'DNS', name: 'web.example.test', dns: { type: 'AAAA' } },
    ],
    [
      'a question of another type, for what is no host',
      buildUdp({ ...client, payload: question('-x.example', 4321) }),
      { application: 'DNS', dns: { type: 'TYPE4321' } },
    ],
    [
      'QUIC',
      buildUdp({ ...client, payload: sealInitial({ frames: [cryptoFrame(0, hello())] }) }),
      { ...TLS, application: 'QUIC' },
    ],
    ['noise', segment(new Uint8Array(64).fill(0xee)), undefined],
    ['a datagram of noise', buildUdp({ ...client, payload: new Uint8Array(64).fill(0xee) }), undefined],
    ['no bytes', segment(new Uint8Array(0)), undefined],
    [
      'a ping',
      buildIcmpEcho({ source: client.source, destination: client.destination, id: 1, sequence: 1 }),
      undefined,
    ],
    ['no packet', ascii('no packet'), undefined],
  ];
  for (const [what, packet, said] of rows) {
    const [found] = saidOf([packet]);
    t.same(found, said, what);
  }
  const seen = new Set(rows.map(([, , said]) => said?.application));
  t.ok(seen.size > 6, 'most of the protocols whose clients speak first');
});

t.test('servers that speak first', async (t) => {
  const banners: Partial<Record<(typeof applications)[number], string>> = {
    SSH: 'SSH-2.0-OpenSSH_9.2\r\n',
    SMTP: '220 mail.example.test ESMTP\r\n',
    IMAP: '* OK IMAP4rev1 ready\r\n',
    POP3: '+OK POP3 ready\r\n',
  };
  for (const [application, text] of Object.entries(banners)) {
    const packet = buildTcp({ ...server, flags: TCP_ACK, sequence: 1, payload: ascii(text) });
    t.match(saidOf([packet], { id: 7, reply: true }), [{ application }], application);
  }
  const answer = buildTcp({ ...server, flags: TCP_ACK, sequence: 1, payload: ascii('HTTP/1.1 200 OK\r\n\r\n') });
  t.same(saidOf([answer], { id: 7, reply: true }), [undefined], 'what only answers says nothing');
  const datagram = buildUdp({ ...server, payload: question('a.example.test', 1) });
  t.same(saidOf([datagram], { id: 7, reply: true }), [undefined], 'nor do datagrams from outside');
});

t.test('several packets', async (t) => {
  const long = record(hello(postQuantumShare()));
  const [first, second] = [long.subarray(0, 700), long.subarray(700)];
  t.same(saidOf([segment(first), segment(second, 800)]), [undefined, TLS]);
  t.same(
    saidOf([segment(first), segment(first), segment(second, 800)]),
    [undefined, undefined, TLS],
    'one comes twice',
  );
  t.same(saidOf([segment(second, 800)]), [undefined], 'the first is missing');
  t.same(saidOf([segment(first), segment(second, 900)]), [undefined, undefined], 'one between is missing');
  const wrap = 0xffffffff - 99;
  t.same(saidOf([segment(first, wrap), segment(second, 600)]), [undefined, TLS], 'sequence numbers begin anew');
  const quic = hello(postQuantumShare());
  const datagrams = [
    sealInitial({ frames: [cryptoFrame(0, quic.subarray(0, 900))] }),
    sealInitial({ number: 1, frames: [cryptoFrame(900, quic.subarray(900))] }),
  ].map((payload) => buildUdp({ ...client, payload }));
  t.match(saidOf(datagrams), [undefined, { application: 'QUIC', name: 'api.example.test' }]);
  t.match(saidOf([...datagrams].reverse()), [undefined, { application: 'QUIC', name: 'api.example.test' }]);
});

t.test('copies that are cut short', async (t) => {
  const request = segment(
    ascii(`GET / HTTP/1.1\r\nHost: web.example.test\r\nCookie: ${'x'.repeat(6000)}\r\nAccept: */*\r\n\r\n`),
  );
  t.match(saidOf([request.subarray(0, 4096)]), [{ application: 'HTTP', name: 'web.example.test' }]);
  t.same(saidOf([request.subarray(0, 50)]), [undefined], 'the host is not there');
  t.same(saidOf([segment(record(hello(postQuantumShare()))).subarray(0, 900)]), [undefined], 'half a hello');
  const whole = buildUdp({ ...client, payload: question('web.example.test', 1) });
  t.same(saidOf([whole.subarray(0, whole.length - 3)]), [undefined], 'half a question');
});

t.test('any cut of a hello and of a request says the same', async () => {
  const texts = [
    { bytes: record(hello(postQuantumShare())), application: 'TLS' },
    { bytes: ascii('POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n'), application: 'HTTP' },
  ];
  fc.assert(
    fc.property(fc.constantFrom(...texts), fc.array(fc.nat(1600), { maxLength: 5 }), ({ bytes, application }, cuts) => {
      const at = [...new Set([0, ...cuts.filter((cut) => cut < bytes.length), bytes.length])].sort((a, b) => a - b);
      const parts = at.slice(1).map((end, i) => segment(bytes.subarray(at[i], end), 100 + (at[i] ?? 0)));
      const said = saidOf(parts).filter((one) => one !== undefined);
      return said.length === 1 && said[0]?.application === application;
    }),
  );
});

t.test('any bytes: no exception, and what is kept is bounded', async (t) => {
  const limits = { flows: 8, bytes: 512, wait: 1_000 };
  const detector = new Detector(limits);
  let now = 0;
  fc.assert(
    fc.property(
      fc.nat(40),
      fc.boolean(),
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }),
        fc.uint8Array({ maxLength: 300 }).map((payload) => segment(payload)),
        fc.uint8Array({ maxLength: 300 }).map((payload) => buildUdp({ ...client, payload })),
        fc.nat(100).map((length) => segment(record(hello()).subarray(0, length))),
      ),
      (id, reply, bytes) => {
        now += 10;
        detector.take({ id, reply }, bytes, now);
        return detector.waiting <= limits.flows;
      },
    ),
    { numRuns: 3_000 },
  );
  detector.take({ id: 99, reply: false }, segment(ascii('GET / HTTP/1.1\r\n')), now + 5_000);
  t.equal(detector.waiting, 1, 'those that waited too long are given up');
  // A head without an end.
  let sequence = 100;
  const endless = new Detector(limits);
  for (let i = 0; i < 50; i++) {
    const payload = ascii(`${i === 0 ? 'GET / HTTP/1.1\r\nHost: a.example\r\n' : ''}X-${i}: yyyyyyyyyyyyyyyyyyyy\r\n`);
    const said = endless.take(FLOW, segment(payload, sequence), 0);
    sequence += payload.length;
    if (said === undefined) continue;
    t.match(said, { application: 'HTTP', name: 'a.example' }, 'it is read as far as it came');
    t.ok(sequence - 100 < limits.bytes + 100);
    return;
  }
  t.fail('never given up');
});

t.test('what records say of a sample', async (t) => {
  t.same(sampledFields(TLS), {
    application: 'TLS',
    destinationName: 'api.example.test',
    tls: { version: '1.3', alpn: ['h2'] },
    sampled: true,
  });
  t.same(
    sampledFields({ application: 'HTTP', name: 'a.example', http: { method: 'GET', path: '/secret' } }),
    { application: 'HTTP', destinationName: 'a.example', http: { method: 'GET' }, sampled: true },
    'not the path',
  );
});

t.test('a busy gateway looks a part of the time', async (t) => {
  const share = (rate: number): number => {
    const budget = new DetectBudget();
    let forwarded = 5e9;
    let on = 0;
    for (let second = 0; second < 2_000; second++) {
      forwarded += rate;
      // Those of the first seconds use up what a quiet time left.
      if (budget.ask(forwarded, 1) && second >= 1_000) on++;
    }
    return on / 1_000;
  };
  t.equal(share(0), 1);
  t.equal(share(49_000), 1);
  t.ok(Math.abs(share(100_000) - 0.5) < 0.05, `${share(100_000)}`);
  t.ok(Math.abs(share(1_000_000) - 0.05) < 0.02, `${share(1_000_000)}`);
  const budget = new DetectBudget();
  budget.ask(1e9, 1);
  t.ok(budget.ask(5, 1), 'a count that begins anew is no burst');
});

t.test('how many packets were forwarded', async (t) => {
  const snmp = 'Ip: Forwarding DefaultTTL ForwDatagrams X\nIp: 1 64 12 3\nTcp: A\nTcp: 1\n';
  t.equal(forwardedPackets(snmp, 'Ip6InReceives \t9\nIp6OutForwDatagrams             \t30\n'), 42);
  t.equal(forwardedPackets('', ''), 0);
  t.equal(forwardedPackets('Ip: ForwDatagrams\nIp: x\n', 'Ip6OutForwDatagrams y'), 0);
});

t.test('starts that wait for a sample', async (t) => {
  const record = (n: number) => ({ pod: `pod-${n}` }) as FlowRecord;
  const starts = new HeldStarts();
  t.same(starts.hold(1, record(1), 0), []);
  t.same(starts.hold(2, record(2), 100), []);
  t.same(starts.due(299), []);
  t.same(starts.take(2), record(2));
  t.equal(starts.take(2), undefined, 'only once');
  t.same(starts.due(300), [record(1)]);
  t.equal(starts.size, 0);
  let written = 0;
  for (let n = 0; n < 10_000; n++) written += starts.hold(n, record(n), 0).length;
  t.equal(written + starts.size, 10_000);
  t.ok(starts.size < 5_000, 'bounded');
  t.same(starts.due(Number.POSITIVE_INFINITY).length, 10_000 - written);
});
