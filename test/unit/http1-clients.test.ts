/**
 * What clients in use send, read by us: Node's two clients and curl against a socket of this process that records, answers
 * each request that it can read, and reads on until it cannot. `--connect-to` brings any name to that socket.
 */

import { execFile } from 'node:child_process';
import { Agent, type ClientRequest, request } from 'node:http';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { type RequestHead, readRequestHead } from '../../wire/http1.ts';
import { RequestBody } from '../../wire/http1-body.ts';
import { readHttp2Preface } from '../../wire/http2.ts';

const run = promisify(execFile);
/** A client that waits for us waits no longer; on a slow machine none needs it. */
const PATIENCE = 30;

interface Recording {
  port: number;
  /** What was read, oldest first. */
  heads: RequestHead[];
  /** What could not be read, and HTTP/2. */
  others: string[];
}

async function record(t: Test): Promise<Recording> {
  const recording: Recording = { port: 0, heads: [], others: [] };
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    serve(socket, recording);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  recording.port = (server.address() as AddressInfo).port;
  return recording;
}

function serve(socket: Socket, { heads, others }: Recording): void {
  let held: Buffer = Buffer.alloc(0);
  let body: RequestBody | undefined;
  const stop = (why: string): void => {
    others.push(why);
    socket.destroy();
  };
  socket.on('data', (bytes) => {
    held = Buffer.concat([held, bytes]);
    while (held.length > 0) {
      if (body === undefined) {
        const preface = readHttp2Preface(held);
        if (preface.state === 'read') return stop('http2');
        const reading = readRequestHead(held);
        if (reading.state === 'more') return;
        if (reading.state === 'refused') return stop(reading.reason);
        heads.push(reading.value);
        held = held.subarray(reading.value.length);
        body = new RequestBody(reading.value);
      }
      held = held.subarray(body.take(held));
      if (body.state === 'refused') return stop(body.reason ?? '');
      if (body.state === 'body') return;
      if (body.state === 'tunnel') return stop('tunnel');
      if (body.state === 'upgrade') return stop('upgrade');
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n');
      body = undefined;
    }
  });
}

const brief = ({ method, form, host, path, framing, following, bodyAmbiguous }: RequestHead): string =>
  [method, form, host?.kind, host?.text, path?.normal ?? 'undefined', framing, following, ...bodyAmbiguous].join(' ');

t.test('node:http', async (t) => {
  const recording = await record(t);
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.teardown(() => agent.destroy());
  const ask = (options: object, write: (request: ClientRequest) => void = (r) => r.end()): Promise<void> =>
    new Promise((resolve) => {
      const sent = request({ host: '127.0.0.1', port: recording.port, agent, ...options }, (response) => {
        response.resume().on('end', resolve);
      });
      sent.on('error', () => resolve());
      write(sent);
    });
  await ask({ path: '/a?b', headers: { Host: 'Web.example.test' } });
  await ask({ path: '/form', method: 'POST' }, (r) => r.end('x=1'));
  await ask({ path: '/chunks', method: 'PUT', headers: { Trailer: 'X-Sum' } }, (r) => {
    r.write('x'.repeat(70_000));
    r.addTrailers({ 'X-Sum': '1' });
    r.end('y');
  });
  await ask({ path: '/gone', method: 'DELETE' });
  await ask({ path: '/chat', headers: { Connection: 'Upgrade', Upgrade: 'websocket' } });
  await ask({ path: 'web.example.test:443', method: 'CONNECT', headers: { Host: 'web.example.test:443' } });
  t.same(recording.heads.map(brief), [
    'GET origin name web.example.test /a none request',
    'POST origin ipv4 127.0.0.1 /form length request',
    'PUT origin ipv4 127.0.0.1 /chunks chunked request',
    'DELETE origin ipv4 127.0.0.1 /gone none request',
    'GET origin ipv4 127.0.0.1 /chat none upgrade',
    'CONNECT authority name web.example.test undefined none tunnel',
  ]);
  t.same(recording.others, ['upgrade', 'tunnel']);
});

t.test('fetch', async (t) => {
  const recording = await record(t);
  const origin = `http://127.0.0.1:${recording.port}`;
  await (await fetch(`${origin}/%7euser/../b/./c`)).text();
  await (await fetch(`${origin}/json`, { method: 'POST', body: JSON.stringify({ a: 1 }) })).text();
  const stream = new ReadableStream({
    start(controller) {
      for (const text of ['a', 'b'.repeat(10_000)]) controller.enqueue(Buffer.from(text));
      controller.close();
    },
  });
  await (await fetch(`${origin}/stream`, { method: 'PUT', body: stream, duplex: 'half' })).text();
  t.same(recording.heads.map(brief), [
    'GET origin ipv4 127.0.0.1 /b/c none request',
    'POST origin ipv4 127.0.0.1 /json length request',
    'PUT origin ipv4 127.0.0.1 /stream chunked request',
  ]);
  t.same(recording.others, []);
});

t.test('curl', async (t) => {
  const version = await run('curl', ['--version']).catch(() => undefined);
  if (version === undefined) {
    t.comment('skipped: curl is not installed');
    return;
  }
  const rows: [name: string, args: string[], expected: string[], others?: string[]][] = [
    ['a plain request', ['http://web.example.test/ip'], ['GET origin name web.example.test /ip none request']],
    [
      'two on one connection',
      ['http://a.test/1', 'http://a.test/2'],
      ['1', '2'].map((n) => `GET origin name a.test /${n} none request`),
    ],
    ['HTTP/1.0', ['-0', 'http://a.test/'], ['GET origin name a.test / none request']],
    ['HEAD', ['-I', 'http://a.test/'], ['HEAD origin name a.test / none request']],
    ['a form', ['-d', 'x=1', 'http://a.test/f'], ['POST origin name a.test /f length request']],
    ['a form of parts', ['-F', 'x=1', '-F', 'y=2', 'http://a.test/f'], ['POST origin name a.test /f length request']],
    [
      'a file in chunks',
      ['-H', 'Transfer-Encoding: chunked', '-d', 'x'.repeat(5000), 'http://a.test/'],
      ['POST origin name a.test / chunked request'],
    ],
    [
      'a file that waits for leave',
      ['-H', 'Expect: 100-continue', '--expect100-timeout', '0.01', '-d', 'x=1', 'http://a.test/'],
      ['POST origin name a.test / length request expects-continue'],
    ],
    ['upper case and a trailing dot', ['http://A.TEST./'], ['GET origin name a.test / none request']],
    ['an IPv6 literal', ['-g', 'http://[2001:DB8:0::80]:81/'], ['GET origin ipv6 2001:db8::80 / none request']],
    ['an address as one number', ['http://3325256784/'], ['GET origin ipv4 198.51.100.80 / none request']],
    ['a path as it is', ['--path-as-is', 'http://a.test/x/../%2e%2e/y'], ['GET origin name a.test /y none request']],
    ['to a proxy', ['-x', 'PROXY', 'http://a.test:8080/x'], ['GET absolute name a.test /x none request']],
    [
      'through a proxy',
      ['-p', '-x', 'PROXY', 'http://a.test/x'],
      ['CONNECT authority name a.test undefined none tunnel'],
      ['tunnel'],
    ],
    ['to HTTP/2, asked', ['--http2', 'http://a.test/'], ['GET origin name a.test / none upgrade'], ['upgrade']],
    ['HTTP/2 unasked', ['--http2-prior-knowledge', 'http://a.test/'], [], ['http2']],
    ['another Host', ['-H', 'Host: b.test', '-x', 'PROXY', 'http://a.test/'], [], ['conflicting-host']],
    ['two Hosts', ['-H', 'X: 1', '-H', 'hOst : b.test', 'http://a.test/'], [], ['space-before-colon']],
  ];
  // As far as this curl was built with what they need.
  const features = version.stdout;
  if (/\bIDN\b/.test(features)) {
    rows.push(['IDN', ['http://b\u00fccher.test/'], ['GET origin name xn--bcher-kva.test / none request']]);
  }
  for (const [name, args, expected, others = []] of rows) {
    if (name.includes('HTTP/2') && !/\bHTTP2\b/.test(features)) continue;
    const recording = await record(t);
    const here = `127.0.0.1:${recording.port}`;
    const proxied = args.map((arg) => (arg === 'PROXY' ? `http://${here}` : arg));
    const connect = args.includes('PROXY') ? [] : ['--connect-to', `::${here}`];
    const common = ['-sS', '--noproxy', args.includes('PROXY') ? '' : '*', '--max-time', String(PATIENCE), ...connect];
    const env = { ...process.env, LC_ALL: 'C.UTF-8', http_proxy: '', HTTP_PROXY: '', all_proxy: '', ALL_PROXY: '' };
    // Its exit code is not asked: we hang up on what cannot be read.
    await run('curl', [...common, ...proxied], { env }).catch(() => undefined);
    t.same({ heads: recording.heads.map(brief), others: recording.others }, { heads: expected, others }, name);
  }
});
