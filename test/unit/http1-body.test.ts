/**
 * From one request of a connection to the next, past bodies, at every cut: where heads begin, what may pass, where it ends.
 * The connection is walked by test/http1-walk.ts.
 */

import t from 'tap';
import { readRequestHead } from '../../wire/http1.ts';
import { type BodyReason, RequestBody } from '../../wire/http1-body.ts';
import { walk } from '../http1-walk.ts';

const bytesOf = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll('¶', '\r\n'), 'latin1'));

const chunked = (chunks: string) => `POST /1 HTTP/1.1¶Host: a¶Transfer-Encoding: chunked¶¶${chunks}`;
const NEXT = 'GET /2 HTTP/1.1¶Host: a¶¶';

t.test('where the next request begins', async (t) => {
  const rows: [name: string, stream: string, targets: string[], end: string][] = [
    ['one request', 'GET /1 HTTP/1.1¶Host: a¶¶', ['/1'], 'head'],
    ['pipelined', `GET /1 HTTP/1.1¶Host: a¶¶${NEXT}${NEXT}`, ['/1', '/2', '/2'], 'head'],
    ['behind five bytes', `POST /1 HTTP/1.1¶Host: a¶Content-Length: 5¶¶GET /${NEXT}`, ['/1', '/2'], 'head'],
    ['a body that looks like a request', `POST /1 HTTP/1.1¶Host: a¶Content-Length: 28¶¶${NEXT}`, ['/1'], 'head'],
    ['a body that has not come', 'POST /1 HTTP/1.1¶Host: a¶Content-Length: 5¶¶GET', ['/1'], 'body'],
    [
      'behind an empty line that old clients send',
      `POST /1 HTTP/1.1¶Host: a¶Content-Length: 1¶¶x¶${NEXT}`,
      ['/1', '/2'],
      'head',
    ],
    ['behind chunks', `${chunked('5¶hello¶A¶0123456789¶0¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['behind no chunk', `${chunked('0¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['a chunk that looks like the end', `${chunked('6¶0¶¶x¶0¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['chunk extensions', `${chunked('5;a=1;b="0;\t"¶hello¶0;x¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['zeros before a size', `${chunked('0000000000005¶hello¶000¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['trailers', `${chunked('1¶x¶0¶Digest: x¶X:¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['chunks that go on', chunked('5¶hello¶'), ['/1'], 'body'],
    ['a chunk of 4 PiB that goes on', chunked('fffffffffffff¶x'), ['/1'], 'body'],
    ['another protocol', `GET /1 HTTP/1.1¶Host: a¶Upgrade: x¶¶${NEXT}`, ['/1'], 'upgrade'],
    ['behind a body', `PUT /1 HTTP/1.1¶Host: a¶Upgrade: x¶Content-Length: 2¶¶ab${NEXT}`, ['/1'], 'upgrade'],
    ['a tunnel', `CONNECT a:1 HTTP/1.1¶Host: a:1¶¶${NEXT}`, ['a:1'], 'tunnel'],
    ['a second one that is refused', `GET /1 HTTP/1.1¶Host: a¶¶get /2 HTTP/1.1¶`, ['/1'], 'lower-case-method'],
    // Where two servers could go on at different bytes.
    ['a size with a sign', chunked('+5¶hello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['a size as C has it', chunked('0x5¶hello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['no size', chunked('¶hello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['no size before an extension', chunked(';x¶'), ['/1'], 'bad-chunk-size'],
    ['white space before a size', chunked(' 5¶hello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['white space behind a size', chunked('5 ¶hello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['a size that no number holds', chunked('10000000000000005¶hello¶0¶¶'), ['/1'], 'chunk-too-large'],
    ['a size that ends in a line feed', chunked('5\nhello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['a size that ends in two carriage returns', chunked('5\r\r\nhello¶0¶¶'), ['/1'], 'bad-chunk-size'],
    ['an extension that ends in a line feed', chunked('5;\nxx¶hello¶0¶¶'), ['/1'], 'bad-chunk-extension'],
    ['an extension with a carriage return', chunked('5;\rxx¶hello¶0¶¶'), ['/1'], 'bad-chunk-extension'],
    ['an extension with a null byte', chunked('5;\0¶hello¶0¶¶'), ['/1'], 'bad-chunk-extension'],
    ['an extension without end', chunked(`5;${'x'.repeat(1100)}`), ['/1'], 'chunk-line-too-long'],
    ['a chunk longer than its size', chunked('5¶hello!¶0¶¶'), ['/1'], 'bad-chunk-end'],
    ['a chunk that ends in a line feed', chunked('5¶hello\n0¶¶'), ['/1'], 'bad-chunk-end'],
    ['a chunk that ends in a carriage return', chunked('5¶hello\r0¶¶'), ['/1'], 'bad-chunk-end'],
    ['a trailer with a length', chunked('0¶Content-Length: 5¶¶'), ['/1'], 'forbidden-trailer'],
    ['a trailer with a coding', chunked('0¶X: 1¶TRANSFER-encoding: chunked¶¶'), ['/1'], 'forbidden-trailer'],
    ['a trailer with a host', chunked('0¶host: b¶¶'), ['/1'], 'forbidden-trailer'],
    ['a trailer with another protocol', chunked('0¶Upgrade: x¶¶'), ['/1'], 'forbidden-trailer'],
    ['a trailer whose name begins as one', `${chunked('0¶Transfer-Encoding-X: 1¶¶')}${NEXT}`, ['/1', '/2'], 'head'],
    ['a folded trailer', chunked('0¶X: 1¶ y¶¶'), ['/1'], 'bad-trailer'],
    ['a space before the colon', chunked('0¶X : 1¶¶'), ['/1'], 'bad-trailer'],
    ['a trailer without a colon', chunked('0¶X¶¶'), ['/1'], 'bad-trailer'],
    ['a trailer that ends in a line feed', chunked('0¶X: 1\n¶'), ['/1'], 'bad-trailer'],
    ['a trailer with a carriage return', chunked('0¶X: 1\ry¶¶'), ['/1'], 'bad-trailer'],
    ['trailers that end in a carriage return', chunked('0¶X: 1¶\rGET'), ['/1'], 'bad-trailer'],
    ['trailers without end', chunked(`0¶${'X: 1¶'.repeat(2000)}`), ['/1'], 'trailers-too-long'],
  ];
  const shown = new Set<string>();
  for (const [name, stream, targets, end] of rows) {
    const bytes = bytesOf(stream);
    const whole = walk([bytes]);
    t.same([whole.heads.map(({ target }) => target), whole.end], [targets, end], `${name}: ${end}`);
    shown.add(whole.end);
    const single = stream.length < 1000 ? Array.from(bytes, (byte) => Uint8Array.of(byte)) : [bytes];
    t.same(walk(single), whole, `${name}: the same byte by byte`);
    for (let cut = 1; cut < bytes.length && stream.length < 1000; cut++) {
      const parts = walk([bytes.slice(0, cut), bytes.slice(cut)]);
      if (JSON.stringify(parts) !== JSON.stringify(whole)) t.same(parts, whole, `${name}: cut behind ${cut} bytes`);
    }
  }
  const all: Record<BodyReason, true> = {
    'bad-chunk-end': true,
    'bad-chunk-extension': true,
    'bad-chunk-size': true,
    'bad-trailer': true,
    'chunk-line-too-long': true,
    'chunk-too-large': true,
    'forbidden-trailer': true,
    'trailers-too-long': true,
  };
  for (const reason of Object.keys(all)) t.ok(shown.has(reason), `${reason} has a row`);
});

t.test('what may pass', async (t) => {
  const headOf = (text: string) => {
    const reading = readRequestHead(bytesOf(text));
    if (reading.state !== 'read') throw new Error(text);
    return reading.value;
  };
  const sized = new RequestBody(headOf('POST / HTTP/1.1¶Host: a¶Content-Length: 5¶¶'));
  t.equal(sized.state, 'body');
  t.equal(sized.take(bytesOf('ab')), 2, 'a body passes as it comes');
  t.equal(sized.take(bytesOf('xxcdeGET'), 2), 5, 'up to its end');
  t.equal(sized.state, 'request');
  t.equal(sized.take(bytesOf('GET')), 0, 'the next head is left');

  const inChunks = new RequestBody(headOf('POST / HTTP/1.1¶Host: a¶Transfer-Encoding: chunked¶¶'));
  t.equal(inChunks.take(bytesOf('5¶hello!')), 8, 'up to the byte that is wrong');
  t.equal(inChunks.state, 'refused');
  t.equal(inChunks.reason, 'bad-chunk-end');
  t.equal(inChunks.take(bytesOf('¶0¶¶')), 0, 'and nothing afterwards');

  const none = new RequestBody(headOf('GET / HTTP/1.1¶Host: a¶¶'));
  t.equal(none.state, 'request');
  t.equal(none.take(bytesOf('GET')), 0);

  const limits = { chunkLineBytes: 6, trailerBytes: 8 };
  const bounded = (text: string) => {
    const body = new RequestBody(headOf('POST / HTTP/1.1¶Host: a¶Transfer-Encoding: chunked¶¶'), limits);
    body.take(bytesOf(text));
    return body.reason ?? body.state;
  };
  t.equal(bounded('0;abcd¶¶'), 'request', 'a line as long as may be');
  t.equal(bounded('0;abcde¶¶'), 'chunk-line-too-long');
  t.equal(bounded('0¶X: 1¶¶'), 'request', 'trailers as long as may be');
  t.equal(bounded('0¶X: 12¶¶'), 'trailers-too-long');
});
