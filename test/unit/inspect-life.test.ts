/**
 * Connections that are read for life: every request of HTTP and every question of DNS is judged before a byte of it leaves,
 * however they are cut, ordered and repeated; and all that follows a verdict.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import type { ApplicationCheck } from '../../api/application.ts';
import { Followed, followLimits } from '../../gateway/inspect/followed.ts';
import { requestUnits } from '../../gateway/inspect/units.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH } from '../../wire/ip.ts';
import { message as dnsMessage, framed, question } from '../dns-build.ts';
import { Rig, type RigPolicy, SERVER, Talk } from '../inspect-rig.ts';

const http = (more: ApplicationCheck['http'], rest: Partial<RigPolicy> = {}): RigPolicy => ({
  services: {
    api: {
      addresses: ['192.0.2.0/24'],
      ports: [{ protocol: 6, ports: [[80, 80]] }],
      checks: [{ protocol: 6, ports: [[80, 80]], application: 'HTTP', ...(more && { http: more }) }],
    },
  },
  rules: [{ name: 'api', services: ['api'] }],
  ...rest,
});
const request = (path = '/ok', { method = 'GET', host = 'api.example', more = '', body = '' } = {}): string =>
  `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n${body}`;
const post = (body: string, path = '/ok'): string =>
  request(path, { method: 'POST', more: `Content-Length: ${body.length}\r\n`, body });
const chunked = (chunks: string[], path = '/ok'): string =>
  request(path, {
    method: 'POST',
    more: 'Transfer-Encoding: chunked\r\n',
    body: `${chunks.map((chunk) => `${chunk.length.toString(16)}\r\n${chunk}\r\n`).join('')}0\r\n\r\n`,
  });
const okPaths = http({ paths: ['/ok', '/ok/*'] });

t.test('requests of one connection, one after the other', async (t) => {
  const rig = new Rig(okPaths);
  const talk = new Talk(rig, 80);
  let at = 0;
  const say = (bytes: string): string => {
    const word = talk.say(at, bytes);
    at += bytes.length;
    return word;
  };
  t.equal(say(request()), 'cluster/api for life');
  t.equal(say(request('/ok/more')), 'passed');
  t.equal(say(post('x'.repeat(100))), 'passed');
  t.equal(say(post('y'.repeat(50)).slice(0, -20)), 'passed');
  t.equal(say('z'.repeat(20) + request()), 'passed', 'what is left of a body, and the next request');
  t.equal(say(chunked(['one', 'three', 'GET /bad HTTP/1.1\r\n\r\n'])), 'passed', 'what a body says is no request');
  const whole = request('/ok/x');
  t.equal(say(whole.slice(0, 10)), 'held');
  t.equal(say(whole.slice(10)), 'passed');
  t.same(rig.left.slice(-2), ['7 passed', '8 passed'], 'in order');
  t.equal(say(request('/bad')), `reset to server ${at - request('/bad').length}`);
  rig.wait(20);
  t.equal(rig.flows.length, 2, 'the first, and what was denied');
  t.match(rig.flows.at(-1), { decision: { verdict: 'drop' }, delete: true, reading: { http: { path: '/bad' } } });
  t.match(rig.flows[0], { life: true, reading: { http: { method: 'GET', path: '/ok' }, name: 'api.example' } });
  t.equal(rig.decider.desk.tally.read().read_HTTP, 8, 'all are counted');
  t.equal(talk.say(at, request()), 'dropped');

  const audited = new Rig({
    ...okPaths,
    rules: [
      { name: 'seen', action: 'drop', mode: 'Audit', services: ['api'] },
      { name: 'all', services: '*' },
    ],
  });
  const other = new Talk(audited, 80);
  for (let count = 0; count < 3; count++) other.say(count * request().length, request());
  audited.wait(20);
  t.equal(audited.flows.length, 3, 'hits of audit are told each');
});

t.test('what must not pass, as the second request', async (t) => {
  const rows: [what: string, bytes: string, reason: string | undefined, detail: string | undefined][] = [
    ['another path', request('/other'), undefined, undefined],
    ['a path that goes back', request('/ok/../other'), undefined, undefined],
    ['an encoded slash', request('/ok%2f..%2fother'), 'bad-request', 'encoded-slash'],
    ['two slashes', request('//ok'), 'bad-request', 'empty-segment'],
    ['an encoded dot', request('/ok/%2e%2e/other'), 'bad-request', 'encoded-dot-segment'],
    ['no request at all', 'hello\r\n', 'bad-request', 'lower-case-method'],
    [
      'two lengths',
      request('/ok', { method: 'POST', more: 'Content-Length: 1\r\nContent-Length: 2\r\n' }),
      'bad-request',
      'differing-content-lengths',
    ],
    [
      'a body that some do not read',
      request('/ok', { more: 'Content-Length: 3\r\n', body: 'abc' }),
      'bad-request',
      'body-without-meaning',
    ],
    ['an upgrade', request('/ok', { more: 'Upgrade: websocket\r\n' }), 'upgrade', 'upgrade'],
    ['a tunnel', 'CONNECT x.example:443 HTTP/1.1\r\nHost: x.example:443\r\n\r\n', 'upgrade', 'tunnel'],
    [
      'a chunk of no size',
      request('/ok', { method: 'POST', more: 'Transfer-Encoding: chunked\r\n', body: 'x\r\n' }),
      'bad-body',
      'bad-chunk-size',
    ],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'bad-request', 'http2-preface'],
  ];
  for (const [what, bytes, reason, detail] of rows) {
    const rig = new Rig(okPaths);
    const talk = new Talk(rig, 80);
    const first = request();
    t.equal(talk.say(0, first), 'cluster/api for life');
    t.equal(talk.say(first.length, bytes), `reset to server ${first.length}`, what);
    rig.wait(20);
    t.equal(rig.flows.at(-1)?.reason, reason, what);
    t.equal(rig.flows.at(-1)?.detail, detail, what);
    const together = new Rig(okPaths);
    t.equal(
      new Talk(together, 80).say(0, first + bytes),
      'reset to server 0',
      `${what}, in one segment with the first`,
    );
  }
  const preface = new Rig(okPaths);
  t.equal(new Talk(preface, 80).say(0, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), 'reset to server 0');
});

t.test('names without paths: an upgrade is decided for good', async (t) => {
  const rig = new Rig(http(undefined));
  const talk = new Talk(rig, 80);
  t.equal(talk.say(0, request()), 'cluster/api for life');
  const bytes = request('/ok', { more: 'Upgrade: websocket\r\n' });
  let at = request().length;
  t.equal(talk.say(at, bytes), 'passed');
  at += bytes.length;
  t.equal(talk.say(at, request()), 'passed', 'a server that does not agree gets requests');
  at += request().length;
  t.equal(talk.say(at, bytes), 'passed');
  at += bytes.length;
  t.equal(talk.say(at, '\x81\x05hello'), 'cluster/api', 'without the mark of life');
  t.equal(talk.say(at + 7, '\x81\x05hello'), 'as decided');

  const names: RigPolicy = {
    services: {
      web: {
        addresses: [],
        names: ['one.example'],
        ports: null,
        checks: [{ protocol: 6, ports: [[80, 80]], application: 'HTTP', implied: true }],
      },
    },
    rules: [{ name: 'web', services: ['web'] }],
    names: [['one.example', SERVER]],
  };
  const more = 'Upgrade: websocket\r\n';
  const upgrade = request('/', { host: 'one.example', more });
  const posted = request('/', {
    host: 'one.example',
    more: `${more}Content-Length: 3\r\n`,
    method: 'POST',
    body: 'abc',
  });
  for (const first of [upgrade, posted]) {
    const liar = new Talk(new Rig(names), 80);
    t.equal(liar.say(0, first), 'cluster/web for life');
    t.match(
      liar.say(first.length, request('/', { host: 'evil.example' })),
      /^reset/,
      'a request of another host behind it',
    );
    const preface = new Talk(new Rig(names), 80);
    t.match(preface.say(0, `${first}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`), /^reset/);
  }
});

t.test('a host that is another with the second request', async (t) => {
  const rig = new Rig({
    services: {
      web: {
        addresses: [],
        names: ['one.example', 'two.example'],
        ports: null,
        checks: [{ protocol: 6, ports: [[80, 80]], application: 'HTTP', implied: true }],
      },
    },
    rules: [{ name: 'web', services: ['web'] }],
    names: [['one.example', SERVER]],
  });
  const talk = new Talk(rig, 80);
  const [one, two] = ['one.example', 'two.example'].map((host) => request('/', { host })) as [string, string];
  t.equal(talk.say(0, one), 'cluster/web for life');
  t.equal(talk.say(one.length, two), 'held', 'the table does not have its address for it');
  t.equal(talk.say(one.length + two.length, one), 'held');
  const asked = rig.posted.find(({ kind }) => kind === 'resolve');
  if (asked?.kind !== 'resolve') return t.fail('it asks');
  t.equal(asked.name, 'two.example');
  rig.tell({ kind: 'names', pairs: [{ name: 'two.example', address: SERVER, until: 4e12 }] });
  rig.tell({ kind: 'resolved', id: asked.id });
  t.same(rig.left, ['1 cluster/web for life', '2 passed', '3 passed']);
  const other = request('/', { host: 'three.example' });
  t.match(talk.say(2 * one.length + two.length, other), /^reset to server/);
});

t.test('what was let on comes again', async (t) => {
  const rig = new Rig(okPaths);
  const talk = new Talk(rig, 80);
  const bytes = post('a'.repeat(40));
  t.equal(talk.say(0, bytes), 'cluster/api for life');
  t.equal(talk.say(0, bytes), 'passed', 'the same');
  t.equal(talk.say(10, bytes.slice(10, 30)), 'passed', 'part of it');
  const get = new Talk(rig, 80, { sourcePort: 2 });
  t.equal(get.say(0, request()), 'cluster/api for life');
  t.equal(get.say(request().length - 1, '\0'), 'dropped', 'a probe with a byte of its own');
  t.equal(get.say(request().length - 1, '\n'), 'passed');
  t.equal(talk.say(bytes.length - 20, 'b'.repeat(20)), 'passed', 'what a body says matters to nobody');
  t.equal(talk.say(bytes.length - 5, `${'a'.repeat(5)}${request()}`), 'passed', 'more behind it');
  t.equal(
    talk.say(bytes.length, request('/bad').slice(0, request().length)),
    `reset to server ${bytes.length + request().length}`,
  );
  rig.wait(20);
  t.match(rig.flows.at(-1), { reason: 'changed-bytes' });

  const chunks = new Rig(okPaths);
  const sender = new Talk(chunks, 80);
  const body = chunked(['x'.repeat(16)]);
  t.equal(sender.say(0, body), 'cluster/api for life');
  t.equal(sender.say(0, body.replace('x'.repeat(16), 'y'.repeat(16))), 'passed');
  const start = body.indexOf('10\r\n');
  t.match(sender.say(start, '0\r\n\r\nGET /bad'), /^reset/, 'another size of a chunk');
});

t.test('out of order, and its bounds', async (t) => {
  const rig = new Rig(okPaths);
  const talk = new Talk(rig, 80);
  const [a, b, c] = [request(), post('b'.repeat(30)), request('/ok/c')] as const;
  t.equal(talk.say(0, a), 'cluster/api for life');
  t.equal(talk.say(a.length + b.length, c), 'held');
  t.equal(talk.say(a.length + b.length, c), 'dropped', 'the same again');
  t.equal(talk.say(a.length + 10, b.slice(10)), 'held');
  t.equal(talk.say(a.length, b.slice(0, 10)), 'passed');
  t.same(rig.left, ['1 cluster/api for life', '3 dropped', '4 passed', '2 passed', '5 passed']);
  t.equal(talk.say(1e6, 'far'), 'dropped');
  const end = a.length + b.length + c.length;
  for (let index = 0; index < followLimits.packets; index++) t.equal(talk.say(end + 10 + index * 20, 'x'), 'held');
  t.equal(talk.say(end + 5, 'x'), 'dropped', 'no more than so many');
  rig.wait(6_000);
  t.match(rig.flows.at(-1), { reason: 'time', delete: true });
  t.equal(rig.holding, 0);
});

t.test('a head that is never whole, and one that is too long', async (t) => {
  const slow = new Rig(okPaths);
  const talk = new Talk(slow, 80);
  t.equal(talk.say(0, request()), 'cluster/api for life');
  t.equal(talk.say(request().length, 'GET /ok HTTP/1.1\r\n'), 'held');
  slow.wait(6_000);
  t.equal(slow.left.at(-1), `2 reset to server ${request().length}`);
  t.match(slow.flows.at(-1), { reason: 'time' });

  const long = new Rig(okPaths);
  const other = new Talk(long, 80);
  t.equal(other.say(0, request()), 'cluster/api for life');
  let at = request().length;
  const start = 'GET /ok HTTP/1.1\r\n';
  t.equal(other.say(at, start), 'held');
  at += start.length;
  let word = 'held';
  for (let count = 0; word === 'held' && count < 60; count++, at += 1_007)
    word = other.say(at, `X: ${'y'.repeat(1_002)}\r\n`);
  t.equal(word, 'dropped');
  long.wait(20);
  t.match(long.flows.at(-1), { reason: 'bad-request', detail: 'head-too-long' });
  t.equal(long.holding, 0);
});

t.test('the end of a connection', async (t) => {
  const rig = new Rig(okPaths);
  const talk = new Talk(rig, 80);
  t.equal(talk.say(0, request()), 'cluster/api for life');
  t.equal(talk.say(request().length, '', TCP_ACK | TCP_FIN), 'passed');
  t.equal(talk.say(request().length, '', TCP_ACK | TCP_FIN), 'passed', 'again');
  const ahead = new Talk(rig, 80, { sourcePort: 2 });
  t.equal(ahead.say(0, request()), 'cluster/api for life');
  t.equal(ahead.say(2 * request().length, '', TCP_ACK | TCP_FIN), 'dropped', 'ahead of what it ends');
  t.equal(ahead.say(request().length, request(), TCP_ACK | TCP_FIN), 'passed');
  const torn = new Talk(rig, 80, { sourcePort: 3 });
  t.equal(torn.say(0, request()), 'cluster/api for life');
  t.equal(torn.say(request().length, 'GET /'), 'held');
  t.equal(torn.say(request().length + 5, '', TCP_ACK | TCP_FIN), 'dropped');
  rig.wait(20);
  t.match(rig.flows.at(-1), { reason: 'ended', delete: true });
});

t.test('policy that asks for more while a connection goes on', async (t) => {
  const rig = new Rig(http(undefined));
  const talk = new Talk(rig, 80);
  t.equal(talk.say(0, request('//ok')), 'cluster/api for life', 'nobody asks for paths');
  const { api } = okPaths.services ?? {};
  rig.tell({ kind: 'policy', generation: 2, delta: { set: { services: { api } }, delete: {} }, numbers: [], gone: [] });
  t.equal(talk.say(request('//ok').length, request()), 'passed');
  t.match(talk.say(request('//ok').length + request().length, request('//ok')), /^reset/);
});

t.test('a connection that said nothing for long gives way, and is ended when it says something', async (t) => {
  const rig = new Rig({ ...okPaths, data: { limits: { flows: 2 } } });
  const talks = [1, 2, 3].map((sourcePort) => new Talk(rig, 80, { sourcePort }));
  for (const talk of talks) t.equal(talk.say(0, request()), 'cluster/api for life');
  rig.wait(20);
  t.equal(rig.flows.length, 3, 'it is not told');
  const [first] = talks as [Talk];
  for (let count = 0; count < 4; count++, rig.wait(1_500)) t.equal(first.say(request().length, request()), 'dropped');
  t.same(rig.resets, [`reset to server ${request().length}`, 'reset to client 0']);
  t.match(rig.flows.at(-1), { reason: 'no-start', delete: true });
});

t.test('memory of all together is bounded', async (t) => {
  const rig = new Rig({ ...okPaths, data: { limits: { memory: 20_000 } } });
  for (let port = 1; port <= 40; port++) {
    const talk = new Talk(rig, 80, { sourcePort: port });
    t.equal(talk.say(0, request(`/ok/${'x'.repeat(900)}`)), 'cluster/api for life');
  }
  const first = new Talk(rig, 80, { sourcePort: 1 });
  t.equal(first.say(0, request(`/ok/${'x'.repeat(900)}`)), 'dropped', 'of the oldest it is not known any more');
  t.equal(first.say(request(`/ok/${'x'.repeat(900)}`).length, request()), 'passed', 'which goes on all the same');
  for (let port = 1; port <= 40; port++) {
    const talk = new Talk(rig, 80, { sourcePort: port });
    const at = request(`/ok/${'x'.repeat(900)}`).length + (port === 1 ? request().length : 0);
    talk.say(at, `GET /ok/${'y'.repeat(900)}`);
  }
  rig.wait(20);
  t.ok(rig.flows.some(({ reason }) => reason === 'memory'));
});

t.test('a namespace in audit: each request is told, and all pass', async (t) => {
  const rig = new Rig({ ...okPaths, audit: true });
  const talk = new Talk(rig, 80);
  t.equal(talk.say(0, request()), 'cluster/api for life');
  t.equal(talk.say(request().length, request('/bad')), 'passed');
  const at = request().length + request('/bad').length;
  t.equal(talk.say(at, request('//ok')), 'default-action', 'what would have ended it lets it go');
  rig.wait(20);
  t.match(rig.flows.slice(1), [
    { decision: { wouldHave: 'drop' } },
    { reason: 'bad-request', detail: 'empty-segment' },
  ]);
});

t.test('questions over TCP', async (t) => {
  const rig = new Rig({
    services: {
      dns: {
        addresses: ['192.0.2.0/24'],
        ports: [{ protocol: 6, ports: [[53, 53]] }],
        checks: [
          {
            protocol: 6,
            ports: [[53, 53]],
            application: 'DNS',
            dns: { names: ['**.good.example'], types: ['A', 'AAAA'], maxQuestionsPerSecond: 4 },
          },
        ],
      },
    },
    rules: [{ name: 'dns', services: ['dns'] }],
  });
  const ask = (name: string, type = 1): Uint8Array => framed(dnsMessage({ questions: [question(name, type)] }));
  const talk = new Talk(rig, 53);
  let at = 0;
  const say = (bytes: Uint8Array): string => {
    const word = talk.say(at, bytes);
    at += bytes.length;
    return word;
  };
  t.equal(say(ask('a.good.example')), 'cluster/dns for life');
  t.equal(talk.hear(0, 'an answer'), 'passed', 'a resolver of the pool is listened to');
  t.equal(say(ask('b.good.example', 28)), 'passed');
  const two = Buffer.concat([ask('c.good.example'), ask('d.good.example')]);
  t.equal(say(two.subarray(0, 40)), 'held');
  t.equal(say(two.subarray(40)), 'passed');
  t.match(say(ask('e.good.example')), /^reset/, 'the fifth in a second');
  rig.wait(20);
  t.match(rig.flows.at(-1), { reason: 'question-rate', reading: { dns: { type: 'A' } } });
  for (const [what, bytes] of [
    ['another name', ask('a.bad.example')],
    ['another type', ask('a.good.example', 16)],
    ['no question', framed(Uint8Array.from(Array(20).fill(0xff)))],
  ] as const) {
    const other = new Talk(rig, 53, { sourcePort: 9 });
    t.equal(other.say(0, bytes), 'reset to server 0', what);
    rig.wait(1_100);
  }
});

t.test('any cuts, order and repetition of requests: what passes is what was judged', async () => {
  const units = fc.array(
    fc.oneof(
      fc.constantFrom(request(), request('/ok/x'), chunked(['abc', 'GET /bad HTTP/1.1']), chunked([])),
      fc.nat(60).map((size) => post('p'.repeat(size))),
      fc.constant(request('/bad')),
    ),
    { minLength: 1, maxLength: 6 },
  );
  fc.assert(
    fc.property(
      units,
      fc.array(fc.nat(1_000), { maxLength: 12 }),
      fc.array(fc.nat(40), { maxLength: 30 }),
      (list, cuts, order) => {
        const stream = list.join('');
        const bad = list.indexOf(request('/bad'));
        const limit = bad < 0 ? stream.length : list.slice(0, bad).join('').length;
        const places = [...new Set([0, ...cuts.map((cut) => cut % stream.length), stream.length])].sort(
          (a, b) => a - b,
        );
        const pieces = places.slice(0, -1).map((at, index) => ({ at, end: places[index + 1]! }));
        const bytes = Buffer.from(stream, 'latin1');
        const start = 0xffff_fff0 | 0;
        let judged = 0;
        const followed = new Followed(
          start,
          requestUnits(() => ({ shapes: true })),
          ({ reading }) => {
            judged++;
            return reading.http?.path.startsWith('/ok') ? 'permit' : 'deny';
          },
        );
        const gone = new Set<number>();
        const sent = new Map<number, { at: number; end: number }>();
        let id = 0;
        let refused = false;
        for (const piece of [...order.map((index) => pieces[index % pieces.length]!), ...pieces, ...pieces]) {
          if (refused) break;
          sent.set(++id, piece);
          const around = Buffer.concat([Buffer.alloc(7, 1), bytes.subarray(piece.at, piece.end), Buffer.alloc(9, 2)]);
          const outcome = followed.take((start + piece.at) | 0, around, 7, 7 + piece.end - piece.at, id);
          around.fill(0);
          for (const one of followed.released.splice(0)) gone.add(one);
          if (outcome === 'pass') gone.add(id);
          refused = outcome === 'refused';
        }
        for (const one of gone) ok(sent.get(one)!.end <= limit, 'nothing of what was denied has left');
        equal(refused, bad >= 0);
        if (bad < 0) {
          equal(judged, list.length);
          equal(followed.held.length, 0);
          const covered = [...gone].map((one) => sent.get(one)!).sort((a, b) => a.at - b.at);
          let reached = 0;
          for (const { at, end } of covered) if (at <= reached) reached = Math.max(reached, end);
          equal(reached, stream.length, 'and all the rest has');
        } else deepStrictEqual((followed.edge - start) | 0, Math.max(0, ...[...gone].map((one) => sent.get(one)!.end)));
      },
    ),
    { numRuns: 1_500 },
  );
});

t.test('random bytes behind a request: nothing throws', async () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          at: fc.integer({ min: -40, max: 200 }),
          bytes: fc.oneof(
            fc.uint8Array({ maxLength: 60 }),
            fc.constantFrom(Buffer.from(request()), Buffer.from('0\r\n')),
          ),
          fin: fc.boolean(),
        }),
        { maxLength: 20 },
      ),
      (packets) => {
        const rig = new Rig(okPaths);
        const talk = new Talk(rig, 80);
        equal(talk.say(0, request()), 'cluster/api for life');
        for (const { at, bytes, fin } of packets)
          talk.say(request().length + at, bytes, TCP_ACK | (fin ? TCP_FIN : TCP_PSH));
        rig.wait(20_000);
        equal(rig.holding, 0);
      },
    ),
    { numRuns: 500 },
  );
});
