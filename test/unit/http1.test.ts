/**
 * The head of a request: what is read of it, what is refused and why, each row at every cut of its bytes. Rows of the
 * evasion table state for each way to say one thing to a gateway and another to a server what becomes of it.
 * A pilcrow stands for the end of a line, so that a row is one text.
 */

import t, { type Test } from 'tap';
import { REQUEST_LIMITS, type RequestHead, type RequestReason, readRequestHead } from '../../wire/http1.ts';
import { type Host, readHost } from '../../wire/http1-host.ts';
import { type PathAmbiguity, pathOf } from '../../wire/http1-target.ts';
import { readHttp2Preface } from '../../wire/http2.ts';

const bytesOf = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll('¶', '\r\n'), 'latin1'));

/** Reasons that a row has shown. */
const shown = new Set<string>();

/** Of all bytes; each beginning of them says the same, or asks for more. */
function readAtEveryCut(t: Test, text: string, name: string, limits = REQUEST_LIMITS) {
  const bytes = bytesOf(text);
  const whole = readRequestHead(bytes, limits);
  if (whole.state === 'refused') shown.add(whole.reason);
  for (let length = 0; length < bytes.length; length++) {
    const part = readRequestHead(bytes.slice(0, length), limits);
    if (part.state !== 'more' && JSON.stringify(part) !== JSON.stringify(whole)) {
      t.same(part, whole, `${name}: the first ${length} bytes say what all say`);
    }
  }
  return whole;
}

function expectHead(t: Test, name: string, text: string, expected: Partial<RequestHead> | RequestReason | 'more') {
  const reading = readAtEveryCut(t, text, name);
  if (expected === 'more') t.same(reading, { state: 'more' }, name);
  else if (typeof expected === 'string') t.same(reading, { state: 'refused', reason: expected }, name);
  else if (reading.state !== 'read') t.fail(`${name}: ${reading.state === 'refused' ? reading.reason : 'more'}`);
  else {
    const said = Object.keys(expected).map((key) => [key, reading.value[key as keyof RequestHead]]);
    t.same(Object.fromEntries(said), expected, name);
  }
}

const host = (text: string, port?: number): Host => ({ kind: 'name', text, port });

t.test('what a request says', async (t) => {
  const rows: [name: string, text: string, expected: Partial<RequestHead> | 'more'][] = [
    ['nothing has come', '', 'more'],
    ['half a method', 'GE', 'more'],
    ['all but the last byte', 'GET / HTTP/1.1¶Host: a.test¶\r', 'more'],
    [
      'a plain request',
      'GET /ip?x=1 HTTP/1.1¶Host: web.example.test¶Accept: */*¶¶',
      {
        method: 'GET',
        form: 'origin',
        target: '/ip?x=1',
        path: { raw: '/ip', normal: '/ip', ambiguous: [] },
        version: '1.1',
        host: host('web.example.test'),
        framing: 'none',
        contentLength: 0,
        following: 'request',
        upgrade: '',
        length: 61,
      },
    ],
    ['what follows the head is not of it', 'GET / HTTP/1.1¶Host: a¶¶GET /2 HTTP/1.1¶', { target: '/', length: 27 }],
    ['an empty line before it', '¶GET / HTTP/1.1¶Host: a¶¶', { method: 'GET', length: 29 }],
    ['a body by its length', 'POST / HTTP/1.1¶Host: a¶Content-Length: 12¶¶', { framing: 'length', contentLength: 12 }],
    ['a body of no bytes', 'POST / HTTP/1.1¶Host: a¶Content-Length: 0¶¶', { framing: 'none', contentLength: 0 }],
    ['a body in chunks', 'PUT / HTTP/1.1¶Host: a¶Transfer-Encoding: Chunked¶¶', { framing: 'chunked' }],
    ['a field without a value', 'GET / HTTP/1.1¶Host: a¶X-Empty:¶¶', { method: 'GET' }],
    ['bytes beyond ASCII in a value', 'GET / HTTP/1.1¶Host: a¶X-Name: J\xfcrgen¶¶', { method: 'GET' }],
    ['a method of its own', 'M-SEARCH * HTTP/1.1¶Host: a¶¶', 'more'],
    ['HTTP/1.0 without a host', 'GET / HTTP/1.0¶¶', { version: '1.0', host: undefined, length: 18 }],
    ['HTTP/1.0 with one', 'GET / HTTP/1.0¶Host: a¶¶', { version: '1.0', host: host('a') }],
    ['all of a server', 'OPTIONS * HTTP/1.1¶Host: a¶¶', { form: 'asterisk', target: '*', path: undefined }],
    [
      'to a proxy',
      'GET http://A.test:8080/x HTTP/1.1¶Host: a.test:8080¶¶',
      { form: 'absolute', host: host('a.test', 8080), path: { raw: '/x', normal: '/x', ambiguous: [] } },
    ],
    [
      'to a proxy, without a path',
      'GET http://a.test?q HTTP/1.1¶Host: a.test¶¶',
      { form: 'absolute', path: { raw: '/', normal: '/', ambiguous: [] } },
    ],
    ['the default port written once', 'GET http://a.test/ HTTP/1.1¶Host: a.test:80¶¶', { host: host('a.test') }],
    ['that of https', 'GET https://a.test:443/ HTTP/1.1¶Host: a.test¶¶', { host: host('a.test', 443) }],
    [
      'a tunnel',
      'CONNECT a.test:443 HTTP/1.1¶Host: a.test:443¶¶',
      { form: 'authority', host: host('a.test', 443), following: 'tunnel', path: undefined },
    ],
    ['a tunnel, Host without port', 'CONNECT a.test:443 HTTP/1.1¶Host: a.test¶¶', { following: 'tunnel' }],
    [
      'another protocol',
      'GET /chat HTTP/1.1¶Host: a¶Connection: Upgrade¶Upgrade: WebSocket¶¶',
      { following: 'upgrade', upgrade: 'websocket' },
    ],
    [
      'another protocol without Connection, which some take',
      'GET / HTTP/1.1¶Host: a¶Upgrade: h2c¶Upgrade: x¶¶',
      { following: 'upgrade', upgrade: 'h2c, x' },
    ],
  ];
  for (const [name, text, expected] of rows) {
    // Asterisk is OPTIONS's alone, though SSDP has it over UDP.
    if (text.startsWith('M-SEARCH')) expectHead(t, name, text, 'bad-target');
    else expectHead(t, name, text, expected);
  }
});

t.test('evasion: two things said at once', async (t) => {
  const get = (fields: string) => `GET / HTTP/1.1¶Host: a.test¶${fields}¶¶`;
  const post = (fields: string) => `POST / HTTP/1.1¶Host: a.test¶${fields}¶¶`;
  const named = (value: string) => `GET / HTTP/1.1¶Host: ${value}¶¶`;
  const read = { state: 'read' } as Partial<RequestHead>;
  const rows: [name: string, text: string, expected: Partial<RequestHead> | RequestReason][] = [
    // Which host.
    ['an absolute target with another Host', 'GET http://a.test/ HTTP/1.1¶Host: b.test¶¶', 'conflicting-host'],
    ['the same name on another port', 'GET http://a.test/ HTTP/1.1¶Host: a.test:8080¶¶', 'conflicting-host'],
    ['an absolute target with another case', 'GET HTTP://A.TEST/ HTTP/1.1¶Host: a.test.¶¶', { host: host('a.test') }],
    ['an absolute target without Host', 'GET http://a.test/ HTTP/1.1¶¶', 'missing-host'],
    ['a tunnel to another host than Host', 'CONNECT a.test:443 HTTP/1.1¶Host: b.test:443¶¶', 'conflicting-host'],
    ['a tunnel to another port', 'CONNECT a.test:443 HTTP/1.1¶Host: a.test:80¶¶', 'conflicting-host'],
    ['no Host', 'GET / HTTP/1.1¶Accept: */*¶¶', 'missing-host'],
    ['two Hosts', get('Host: b.test'), 'duplicate-host'],
    ['the same Host twice', get('hOST: a.test'), 'duplicate-host'],
    ['an empty Host', named(''), 'empty-host'],
    ['a list of Hosts', named('a.test, b.test'), 'bad-host-byte'],
    ['Host in upper case', named('A.TEST'), { host: host('a.test') }],
    ['Host with a trailing dot', named('a.test.'), { host: host('a.test') }],
    ['Host with two', named('a.test..'), 'bad-host-label'],
    ['a label that ends in a hyphen', named('a-.test'), 'bad-host-label'],
    ['Host with a port', named('a.test:080'), { host: host('a.test', 80) }],
    ['Host with an empty port', named('a.test:'), { host: host('a.test') }],
    ['IDN as A-labels', named('XN--bcher-KVA.test'), { host: host('xn--bcher-kva.test') }],
    ['IDN as UTF-8', named('b\xc3\xbccher.test'), 'bad-host-byte'],
    ['a name percent-encoded', named('%61.test'), 'bad-host-byte'],
    ['a user before the host', named('a.test@b.test'), 'user-information'],
    ['a password before the host', named('a.test:80@b.test'), 'user-information'],
    ['the same in a target', 'GET http://a.test:x@b.test/ HTTP/1.1¶Host: b.test¶¶', 'user-information'],
    ['a path in Host', named('a.test/b'), 'bad-host-byte'],
    ['white space in Host', named('a.test b.test'), 'bad-host-byte'],
    ['white space around Host', named(' \t a.test \t'), { host: host('a.test') }],
    ['a vertical tab around Host', named('\va.test'), 'control-byte'],
    ['a no-break space around Host', named('\xa0a.test'), 'bad-host-byte'],
    ['an IPv4 literal', named('198.51.100.80'), { host: { kind: 'ipv4', text: '198.51.100.80', port: undefined } }],
    ['an IPv6 literal', named('[2001:DB8::0:80]:81'), { host: { kind: 'ipv6', text: '2001:db8::80', port: 81 } }],
    ['an IPv6 literal with a zone', named('[fe80::1%25eth0]'), 'bad-ipv6-host'],
    ['an IPv6 literal without brackets', named('2001:db8::80'), 'bad-port'],
    ['an address as one number', named('3325256784'), 'ambiguous-address'],
    ['an address in hexadecimal', named('0xc6336450'), 'ambiguous-address'],
    ['an address in octal', named('0306.063.0144.0120'), 'ambiguous-address'],
    ['an address of three parts', named('198.51.25680'), 'ambiguous-address'],
    ['an address with a trailing dot', named('198.51.100.80.'), 'ambiguous-address'],
    ['Host behind a space', 'GET / HTTP/1.1¶Host : a.test¶¶', 'space-before-colon'],
    ['Host behind an invisible fold', 'GET / HTTP/1.1¶ Host: a.test¶¶', 'obs-fold'],
    ['Host by another letter', 'GET / HTTP/1.1¶Ho\xf3t: a.test¶¶', 'bad-name'],
    // Where the request ends.
    [
      'length and chunks',
      post('Content-Length: 5¶Transfer-Encoding: chunked'),
      'content-length-with-transfer-encoding',
    ],
    [
      'chunks and length',
      post('Transfer-Encoding: chunked¶Content-Length: 0'),
      'content-length-with-transfer-encoding',
    ],
    ['two lengths', post('Content-Length: 5¶Content-Length: 6'), 'differing-content-lengths'],
    ['the same length twice', post('Content-Length: 5¶content-length: 5'), 'repeated-content-length'],
    ['lengths in a list', post('Content-Length: 5, 5'), 'bad-content-length'],
    ['a length with a sign', post('Content-Length: +5'), 'bad-content-length'],
    ['a negative length', post('Content-Length: -5'), 'bad-content-length'],
    ['a length in hexadecimal', post('Content-Length: 0x5'), 'bad-content-length'],
    ['a length that is octal to some', post('Content-Length: 010'), 'bad-content-length'],
    ['an empty length', post('Content-Length:'), 'bad-content-length'],
    ['a length no number holds', post('Content-Length: 9007199254740992'), 'content-length-too-large'],
    ['the longest length', post('Content-Length: 9007199254740991'), { contentLength: Number.MAX_SAFE_INTEGER }],
    ['a coding that looks like chunked', post('Transfer-Encoding: xchunked'), 'bad-transfer-coding'],
    ['chunked in quotes', post('Transfer-Encoding: "chunked"'), 'bad-transfer-coding'],
    ['chunked with a parameter', post('Transfer-Encoding: chunked;q=1'), 'bad-transfer-coding'],
    ['chunked behind a no-break space', post('Transfer-Encoding: \xa0chunked'), 'bad-transfer-coding'],
    ['chunked behind a vertical tab', post('Transfer-Encoding: \vchunked'), 'control-byte'],
    ['chunked behind a tab', post('Transfer-Encoding:\tchunked'), { framing: 'chunked' }],
    ['chunked not last', post('Transfer-Encoding: chunked, identity'), 'bad-transfer-coding'],
    ['compressed and chunked', post('Transfer-Encoding: gzip, chunked'), 'bad-transfer-coding'],
    ['codings in two lines', post('Transfer-Encoding: chunked¶Transfer-Encoding: cow'), 'repeated-transfer-encoding'],
    ['no coding', post('Transfer-Encoding:'), 'bad-transfer-coding'],
    ['a space before the colon', post('Transfer-Encoding : chunked'), 'space-before-colon'],
    ['a tab before the colon', post('Content-Length\t: 5'), 'space-before-colon'],
    ['a folded value', post('Transfer-Encoding:¶ chunked'), 'bad-transfer-coding'],
    ['a fold behind another field', post('X: 1¶\tTransfer-Encoding: chunked'), 'obs-fold'],
    ['a line feed alone', post('X: 1\nContent-Length: 5'), 'bare-line-feed'],
    ['a carriage return alone', post('X: 1\rContent-Length: 5'), 'bare-carriage-return'],
    ['a head that ends in line feeds', 'GET / HTTP/1.1\nHost: a\n\n', 'bare-line-feed'],
    ['a null byte in a value', post('X: a\0b'), 'null-byte'],
    ['a null byte in a name', post('Content\0-Length: 5'), 'null-byte'],
    ['a control byte in a value', post('X: a\x08b'), 'control-byte'],
    ['a delete byte in a value', post('X: a\x7fb'), 'control-byte'],
    ['a delete byte in the target', 'GET /\x7f HTTP/1.1¶Host: a¶¶', 'control-byte'],
    ['white space in a name', post('Content Length: 5'), 'space-in-name'],
    ['a field without a colon', post('Content-Length'), 'missing-colon'],
    ['a field without a name', post(': 5'), 'bad-name'],
    ['a name in quotes', post('"Content-Length": 5'), 'bad-name'],
    ['chunks in HTTP/1.0', 'POST / HTTP/1.0¶Transfer-Encoding: chunked¶¶', 'transfer-encoding-in-http-1.0'],
    ['a tunnel with a body', 'CONNECT a:1 HTTP/1.1¶Host: a:1¶Content-Length: 3¶¶', 'forbidden-body'],
    ['a trace with a body', 'TRACE / HTTP/1.1¶Host: a¶Transfer-Encoding: chunked¶¶', 'forbidden-body'],
    ['a trace without', 'TRACE / HTTP/1.1¶Host: a¶Content-Length: 0¶¶', { framing: 'none', bodyAmbiguous: [] }],
    [
      'a body that may stay away',
      post('Content-Length: 5¶Expect: 100-Continue'),
      { bodyAmbiguous: ['expects-continue'] },
    ],
    ['no body that may stay away', get('Expect: 100-continue'), { bodyAmbiguous: [] }],
    ['another expectation', post('Content-Length: 5¶Expect: y 100-continue'), 'unknown-expectation'],
    ['a body of GET', get('Content-Length: 5'), { framing: 'length', bodyAmbiguous: ['body-without-meaning'] }],
    [
      'one of DELETE in chunks',
      'DELETE / HTTP/1.1¶Host: a¶Expect: 100-continue¶Transfer-Encoding: chunked¶¶',
      { bodyAmbiguous: ['expects-continue', 'body-without-meaning'] },
    ],
    ['one of POST', post('Content-Length: 5'), { bodyAmbiguous: [] }],
    ['a body with another name', post('Content_Length: 5'), read],
    // Which request.
    ['two empty lines before it', '¶¶GET / HTTP/1.1¶Host: a¶¶', 'blank-lines'],
    ['a line feed before it', '\nGET / HTTP/1.1¶Host: a¶¶', 'bare-line-feed'],
    ['a space before it', ' GET / HTTP/1.1¶Host: a¶¶', 'bad-method'],
    ['a method in lower case', 'get / HTTP/1.1¶Host: a¶¶', 'lower-case-method'],
    ['a method in mixed case', 'Get / HTTP/1.1¶Host: a¶¶', 'lower-case-method'],
    ['a method without end', `${'A'.repeat(33)} / HTTP/1.1¶Host: a¶¶`, 'bad-method'],
    ['two spaces behind the method', 'GET  / HTTP/1.1¶Host: a¶¶', 'bad-request-line'],
    ['a tab behind the method', 'GET\t/ HTTP/1.1¶Host: a¶¶', 'bad-request-line'],
    ['a space in the target', 'GET /a b HTTP/1.1¶Host: a¶¶', 'bad-request-line'],
    ['a space behind the version', 'GET / HTTP/1.1 ¶Host: a¶¶', 'bad-request-line'],
    ['a method alone', 'GET¶Host: a¶¶', 'bad-request-line'],
    ['a target in UTF-8', 'GET /\xc3\xbc HTTP/1.1¶Host: a¶¶', 'bad-target'],
    ['a null byte in the target', 'GET /\0 HTTP/1.1¶Host: a¶¶', 'null-byte'],
    ['a fragment', 'GET /a#/b HTTP/1.1¶Host: a¶¶', 'fragment-in-target'],
    ['a target without a slash', 'GET a HTTP/1.1¶Host: a¶¶', 'bad-target'],
    ['an authority without CONNECT', 'GET a:80 HTTP/1.1¶Host: a¶¶', 'bad-target'],
    ['a path with CONNECT', 'CONNECT /a HTTP/1.1¶Host: a¶¶', 'bad-target'],
    ['a tunnel without a port', 'CONNECT a.test HTTP/1.1¶Host: a.test¶¶', 'missing-port'],
    ['another scheme', 'GET ftp://a.test/ HTTP/1.1¶Host: a.test¶¶', 'unsupported-scheme'],
    ['no host in an absolute target', 'GET http:///x HTTP/1.1¶Host: a¶¶', 'empty-host'],
    ['HTTP/0.9', 'GET /¶', 'http-0.9'],
    ['HTTP/0.9 in so many words', 'GET / HTTP/0.9¶¶', 'bad-version'],
    ['HTTP/1.2', 'GET / HTTP/1.2¶Host: a¶¶', 'bad-version'],
    ['HTTP/1.10', 'GET / HTTP/1.10¶Host: a¶¶', 'bad-version'],
    ['HTTP/2 in the words of HTTP/1', 'GET / HTTP/2.0¶Host: a¶¶', 'bad-version'],
    ['http in lower case', 'GET / http/1.1¶Host: a¶¶', 'bad-version'],
    ['a letter behind the version', 'GET / HTTP/1.1x¶Host: a¶¶', 'bad-version'],
    ['the preface of HTTP/2', 'PRI * HTTP/2.0¶¶SM¶¶', 'http2-preface'],
    // Another protocol on the port.
    ['TLS', '\x16\x03\x01\x02\x00\x01', 'bad-method'],
    ['SSH', 'SSH-2.0-OpenSSH_9.2p1 Debian-2¶', 'lower-case-method'],
    ['SMTP', 'EHLO a.test¶', 'bad-request-line'],
    ['Redis', '*1¶$4¶PING¶', 'bad-request-line'],
    ['RTSP', 'DESCRIBE rtsp://a.test/ RTSP/1.0¶CSeq: 1¶¶', 'bad-request-line'],
  ];
  for (const [name, text, expected] of rows) {
    if (expected === read) t.match(readAtEveryCut(t, text, name), { state: 'read', value: { framing: 'none' } }, name);
    else expectHead(t, name, text, expected);
  }
});

t.test('bounds', async (t) => {
  const limits = { headBytes: 100, lineBytes: 40, fields: 3 };
  // `GET /… HTTP/1.1` is 14 bytes and the path's.
  const rows: [name: string, text: string, expected: RequestReason | 'read' | 'more'][] = [
    ['a request line as long as may be', `GET /${'a'.repeat(26)} HTTP/1.1¶Host: a¶¶`, 'read'],
    ['one byte longer', `GET /${'a'.repeat(27)} HTTP/1.1¶Host: a¶¶`, 'line-too-long'],
    ['a target without end', `GET /${'a'.repeat(60)}`, 'line-too-long'],
    ['a field as long as may be', `GET / HTTP/1.1¶Host: a¶X: ${'a'.repeat(37)}¶¶`, 'read'],
    ['one byte longer', `GET / HTTP/1.1¶Host: a¶X: ${'a'.repeat(38)}¶¶`, 'line-too-long'],
    ['a field without end', `GET / HTTP/1.1¶Host: a¶X: ${'a'.repeat(60)}`, 'line-too-long'],
    ['a name without end', `GET / HTTP/1.1¶Host: a¶${'a'.repeat(60)}`, 'line-too-long'],
    ['spaces without end behind a name', `GET / HTTP/1.1¶Host: a¶X${' '.repeat(60)}`, 'line-too-long'],
    ['three fields', 'GET / HTTP/1.1¶Host: a¶X: 1¶X: 2¶¶', 'read'],
    ['four fields', 'GET / HTTP/1.1¶Host: a¶X: 1¶X: 2¶X: 3¶¶', 'too-many-fields'],
    ['a head as long as may be', `GET / HTTP/1.1¶Host: a¶X: ${'a'.repeat(36)}¶Y: ${'a'.repeat(27)}¶¶`, 'read'],
    ['one byte longer', `GET / HTTP/1.1¶Host: a¶X: ${'a'.repeat(36)}¶Y: ${'a'.repeat(28)}¶¶`, 'head-too-long'],
    ['not yet', `GET / HTTP/1.1¶Host: a¶X: ${'a'.repeat(36)}¶Y: ${'a'.repeat(27)}¶\r`, 'more'],
  ];
  for (const [name, text, expected] of rows) {
    const reading = readAtEveryCut(t, text, name, limits);
    t.equal(reading.state === 'refused' ? reading.reason : reading.state, expected, `${name}: ${expected}`);
  }
  const long = `GET / HTTP/1.1¶Host: a¶Cookie: ${'c'.repeat(12_000)}¶X: ${'x'.repeat(12_000)}¶¶`;
  t.equal(readRequestHead(bytesOf(long)).state, 'read', 'what servers take passes the bounds that are there unasked');
  t.match(readRequestHead(bytesOf(`GET /${'a'.repeat(20_000)}`)), { reason: 'line-too-long' });
  const wide = `GET / HTTP/1.1¶Host: a¶${`X: ${'x'.repeat(12_000)}¶`.repeat(3)}`;
  t.match(readRequestHead(bytesOf(wide)), { reason: 'head-too-long' });
  t.match(readRequestHead(bytesOf(`GET / HTTP/1.1¶${'X: y¶'.repeat(129)}`)), { reason: 'too-many-fields' });
});

t.test('hosts that are as long as DNS has them, and longer', async (t) => {
  const label = 'a'.repeat(63);
  const longest = `${label}.${label}.${label}.${'a'.repeat(61)}`;
  t.match(readHost(longest), { text: longest });
  t.match(readHost(`${longest}.:80`), { text: longest, port: 80 }, 'the trailing dot does not count');
  t.equal(readHost(`${longest}a`), 'bad-host-label');
  t.equal(readHost(`a${label}.test`), 'bad-host-label');
  t.equal(readHost(`test.a${label}`), 'bad-host-label');
  t.equal(readHost('.'), 'bad-host-label');
  t.equal(readHost('a.test:65535x'), 'bad-port');
  t.equal(readHost('a.test:65536'), 'bad-port');
  t.equal(readHost('a.test:0'), 'bad-port');
  t.match(readHost('a.test:65535'), { port: 65_535 });
  t.match(readHost('4.a0x.test'), { kind: 'name' }, 'digits before the last label are of a name');
  t.match(readHost('a.0xg'), { kind: 'name' });
  for (const bad of ['[::1', '[::1%25eth0]', '[::1%eth0]', '[v1.x]', '[1.2.3.4]', '[]', '[::1::]']) {
    t.equal(readHost(bad), 'bad-ipv6-host', bad);
  }
  t.equal(readHost('[::1]x'), 'bad-port');
  t.match(readHost('[::FFFF:192.0.2.1]'), { kind: 'ipv6', text: '::ffff:c000:201' });
});

t.test('paths as rules compare them', async (t) => {
  const rows: [name: string, target: string, normal: string, ...ambiguous: PathAmbiguity[]][] = [
    ['a plain one', '/a/b.html', '/a/b.html'],
    ['its query is none of it', '/a?/../b', '/a'],
    ['the root', '/', '/'],
    ['a trailing slash is kept', '/a/', '/a/'],
    ['case is kept', '/A', '/A'],
    ['unreserved characters are decoded', '/%61%2d%7E%41', '/a-~A'],
    ['others are not, their digits get upper case', '/a%3ab%20', '/a%3Ab%20'],
    ['a name that begins with a dot', '/.well-known/x', '/.well-known/x'],
    ['three dots', '/.../x', '/.../x'],
    ['dot segments', '/a/./b/../c', '/a/c'],
    ['dot segments at the end', '/a/b/..', '/a/'],
    ['a dot at the end', '/a/.', '/a/'],
    ['RFC 3986 §5.2.4', '/a/b/c/./../../g', '/a/g'],
    ['encoded dots', '/public/%2e%2E/admin', '/admin', 'encoded-dot-segment'],
    ['one of two encoded', '/public/.%2e/admin', '/admin', 'encoded-dot-segment'],
    ['an encoded dot in a name', '/a%2ehtml', '/a.html'],
    ['an encoded slash', '/public%2f..%2Fadmin', '/public%2F..%2Fadmin', 'encoded-slash'],
    ['a backslash', '/public\\..\\admin', '/public\\..\\admin', 'backslash'],
    ['an encoded backslash', '/public%5cadmin', '/public%5Cadmin', 'backslash'],
    ['two slashes', '//admin', '//admin', 'empty-segment'],
    ['two slashes within', '/a//b', '/a//b', 'empty-segment'],
    ['above the root', '/../../admin', '/admin', 'above-root'],
    ['encoded twice', '/%252e%252e/admin', '/%252e%252e/admin', 'double-encoding'],
    ['a percent sign that is meant', '/100%25', '/100%25'],
    ['a percent sign alone', '/100%', '/100%', 'bad-percent-encoding'],
    ['no hexadecimal digits', '/%zz/%u002e', '/%zz/%u002e', 'bad-percent-encoding'],
    ['an encoded null', '/a%00.png', '/a%00.png', 'encoded-control'],
    ['an encoded line feed', '/a%0d%0ab', '/a%0D%0Ab', 'encoded-control'],
    ['dot segments with a parameter', '/public/..;/admin', '/public/..;/admin', 'dot-segment-with-parameter'],
    ['the same, encoded', '/public/%2e.%3bx/admin', '/public/..%3Bx/admin', 'dot-segment-with-parameter'],
    ['a parameter of a name', '/a;v=1/b', '/a;v=1/b'],
    ['several at once', '/a//%2f%2f', '/a//%2F%2F', 'encoded-slash', 'empty-segment'],
  ];
  for (const [name, target, normal, ...ambiguous] of rows) {
    const path = pathOf(target);
    t.same(path, { raw: target.replace(/\?.*/, ''), normal, ambiguous }, `${name}: ${target} is ${normal}`);
  }
  const all: Record<PathAmbiguity, true> = {
    'encoded-slash': true,
    backslash: true,
    'encoded-dot-segment': true,
    'dot-segment-with-parameter': true,
    'empty-segment': true,
    'above-root': true,
    'double-encoding': true,
    'bad-percent-encoding': true,
    'encoded-control': true,
  };
  const told = new Set(rows.flatMap(([, , , ...ambiguous]) => ambiguous));
  t.same(Object.keys(all).sort(), [...told].sort(), 'each has a row');
});

t.test('HTTP/2 without being asked', async (t) => {
  const preface = bytesOf('PRI * HTTP/2.0¶¶SM¶¶');
  for (let length = 0; length < 24; length++) {
    t.same(readHttp2Preface(preface.slice(0, length)), { state: 'more' }, `${length} bytes`);
  }
  const found = { state: 'read', value: { length: 24 } };
  t.same(readHttp2Preface(preface), found);
  t.same(readHttp2Preface(bytesOf('PRI * HTTP/2.0¶¶SM¶¶\0\0\0\x04')), found, 'with the first frame');
  t.same(readHttp2Preface(bytesOf('PR')), { state: 'more' }, 'PROPFIND begins so');
  for (const other of ['G', 'PROPFIND /', 'PRI * HTTP/2.0¶X', 'PRI * HTTP/2.0¶¶SM¶\r\r', 'PRI * HTTP/1.1¶']) {
    t.same(readHttp2Preface(bytesOf(other)), { state: 'refused', reason: 'not-http2' }, other);
  }
});

t.test('each reason has a row', async (t) => {
  const all: Record<RequestReason, true> = {
    'ambiguous-address': true,
    'bad-content-length': true,
    'bad-host-byte': true,
    'bad-host-label': true,
    'bad-ipv6-host': true,
    'bad-method': true,
    'bad-name': true,
    'bad-port': true,
    'bad-request-line': true,
    'bad-target': true,
    'bad-transfer-coding': true,
    'bad-version': true,
    'bare-carriage-return': true,
    'bare-line-feed': true,
    'blank-lines': true,
    'conflicting-host': true,
    'content-length-too-large': true,
    'content-length-with-transfer-encoding': true,
    'control-byte': true,
    'differing-content-lengths': true,
    'duplicate-host': true,
    'empty-host': true,
    'forbidden-body': true,
    'fragment-in-target': true,
    'head-too-long': true,
    'http-0.9': true,
    'http2-preface': true,
    'line-too-long': true,
    'lower-case-method': true,
    'missing-colon': true,
    'missing-host': true,
    'missing-port': true,
    'null-byte': true,
    'obs-fold': true,
    'repeated-content-length': true,
    'repeated-transfer-encoding': true,
    'space-before-colon': true,
    'space-in-name': true,
    'too-many-fields': true,
    'transfer-encoding-in-http-1.0': true,
    'unknown-expectation': true,
    'unsupported-scheme': true,
    'user-information': true,
  };
  t.same([...shown].sort(), Object.keys(all).sort());
});
