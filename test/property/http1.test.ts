/**
 * HTTP/1.x against generated connections and against two other readers, Node's own (llhttp, behind its server) and
 * http-parser-js: what was built is read back, in any cuts; what was bent never throws, always ends, says the same in any
 * cuts; and what we let pass as a request no other reader takes for another request, or for more of them.
 *
 * Where we are stricter than both: methods in lower case, an empty or odd Host, two equal Content-Lengths, lists of transfer
 * codings, white space behind a chunk's size, fragments and bytes beyond ASCII in a target, trailers that frame.
 */

import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import { createServer, type IncomingMessage } from 'node:http';
import { Duplex } from 'node:stream';
import fc from 'fast-check';
import { HTTPParser } from 'http-parser-js';
import t from 'tap';
import { readRequestHead } from '../../wire/http1.ts';
import { type Host, readHost } from '../../wire/http1-host.ts';
import { pathOf } from '../../wire/http1-target.ts';
import { walk } from '../http1-walk.ts';

const latin1 = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'latin1'));

interface Request {
  method: string;
  path: string;
  host: string;
  port: number | undefined;
  absolute: boolean;
  fields: [string, string][];
  body: { kind: 'none' } | { kind: 'length'; text: string } | { kind: 'chunked'; chunks: string[]; extension: string };
}

const oneOf = (characters: string, constraints: { minLength?: number; maxLength: number }) =>
  fc.array(fc.constantFrom(...characters), constraints).map((some) => some.join(''));
const LETTERS = 'abcdefghijklmnopqrstuvwxyz';
const label = fc
  .tuple(fc.constantFrom(...LETTERS), oneOf(`${LETTERS}0123456789-_`, { maxLength: 20 }))
  .map((two) => two.join(''));
const hostLabel = label.map((text) => text.replace(/-+$/, ''));
const hostName = fc.array(hostLabel, { minLength: 1, maxLength: 5 }).map((labels) => labels.join('.'));
const path = oneOf(`${LETTERS}ABC019/._~%25;=&+@:`, { maxLength: 30 }).map((text) => `/${text}`);
const text = oneOf(`${LETTERS}GET /HTP1.:\r\n0`, { maxLength: 40 });
const request: fc.Arbitrary<Request> = fc.record({
  method: fc.constantFrom('GET', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'M-SEARCH'),
  path,
  host: hostName,
  port: fc.option(fc.integer({ min: 1, max: 65_535 }), { nil: undefined }),
  absolute: fc.boolean(),
  fields: fc.array(
    fc.tuple(
      label.map((name) => `X-${name}`),
      oneOf(`${LETTERS}09 \t",;:=\xfc`, { maxLength: 30 }),
    ),
    { maxLength: 4 },
  ),
  body: fc.oneof(
    fc.constant<Request['body']>({ kind: 'none' }),
    text.map<Request['body']>((text) => ({ kind: 'length', text })),
    fc
      .tuple(fc.array(text.filter((text) => text !== '')), fc.constantFrom('', ';a', ';a="x;y"', ';\t a = b'))
      .map<Request['body']>(([chunks, extension]) => ({ kind: 'chunked', chunks, extension })),
  ),
});

function build({ method, path, host, port, absolute, fields, body }: Request): string {
  const authority = host.toUpperCase() + (port === undefined ? '' : `:${port}`);
  const lines = [`${method} ${absolute ? `http://${authority}` : ''}${path} HTTP/1.1`];
  const own = [`Host: ${authority}`];
  if (body.kind === 'length') own.push(`content-length:${body.text.length}`);
  if (body.kind === 'chunked') own.push('Transfer-Encoding: chunked');
  lines.push(...fields.map(([name, value]) => `${name}:${value}`), ...own, '', '');
  if (body.kind === 'length') return lines.join('\r\n') + body.text;
  if (body.kind === 'none') return lines.join('\r\n');
  const chunks = body.chunks.map((chunk) => `${chunk.length.toString(16)}${body.extension}\r\n${chunk}\r\n`);
  return `${lines.join('\r\n')}${chunks.join('')}0\r\nX-Trailer: 1\r\n\r\n`;
}

const cuts = fc.array(fc.nat(10_000), { maxLength: 6 });
function cutAt(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const at = [...new Set(places.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...at].map((from, i) => bytes.subarray(from, at[i] ?? bytes.length));
}

t.test('what was built is read back, in any cuts', async () => {
  const property = fc.property(fc.array(request, { maxLength: 4 }), cuts, (requests, places) => {
    const bytes = latin1(requests.map(build).join(''));
    const found = walk(cutAt(bytes, places));
    equal(found.end, 'head');
    equal(found.passed, bytes.length);
    equal(found.complete, requests.length);
    for (const [i, { method, path, host, port, absolute, body }] of requests.entries()) {
      const head = found.heads[i]!;
      const portOf = absolute || port !== undefined ? port : undefined;
      deepStrictEqual(
        [head.method, head.form, head.host, head.path, head.framing],
        [
          method,
          absolute ? 'absolute' : 'origin',
          { kind: 'name', text: host, port: portOf },
          pathOf(path),
          body.kind === 'length' && body.text === '' ? 'none' : body.kind,
        ],
      );
    }
  });
  fc.assert(property, { numRuns: 500 });
});

/** Bytes and lines by which one message becomes another. */
const poison = fc.constantFrom(
  ...'\0\t\n\r "+,-.0129:;xX_~\x7f\x80\xa0\xff',
  '\r\n',
  '\r\n ',
  '\n\n',
  '\r\n\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Transfer-Encoding:\tchunked\r\n',
  'Transfer-Encoding: identity\r\n',
  'Content-Length: 3\r\n',
  'Content-Length: 0\r\n',
  'Host: b.test\r\n',
  'Upgrade: x\r\nConnection: upgrade\r\n',
  '0\r\n\r\n',
  'HTTP/1.0',
  'GET / HTTP/1.1\r\nHost: c.test\r\n\r\n',
);
const edit = fc.record({ at: fc.nat(100_000), drop: fc.nat(3), insert: fc.oneof(poison, fc.constant('')) });
const bent = fc
  .tuple(fc.array(request, { minLength: 1, maxLength: 3 }), fc.array(edit, { maxLength: 3 }))
  .map(([requests, edits]) => {
    let stream = requests.map(build).join('');
    for (const { at, drop, insert } of edits) {
      const place = at % (stream.length + 1);
      stream = stream.slice(0, place) + insert + stream.slice(place + drop);
    }
    return latin1(stream);
  });

t.test('bent bytes and any bytes: it ends, and any cuts say the same', async () => {
  const bytes = fc.oneof(bent, fc.uint8Array({ maxLength: 200 }));
  const property = fc.property(bytes, cuts, (bytes, places) => {
    const whole = walk([bytes]);
    deepStrictEqual(walk(cutAt(bytes, places)), whole);
    ok(whole.passed <= bytes.length);
    const final = readRequestHead(bytes);
    for (const place of places) {
      const part = readRequestHead(bytes.subarray(0, place % (bytes.length + 1)));
      if (part.state !== 'more') deepStrictEqual(part, final);
    }
  });
  fc.assert(property, { numRuns: 1500 });
});

/** As another reader has it. */
interface Other {
  requests: { method: string; target: string; hosts: string[] }[];
  complete: number;
  failed: boolean;
}

function hostsOf(fields: readonly string[]): string[] {
  return fields.filter((_, i) => i % 2 === 1 && fields[i - 1]?.toLowerCase() === 'host');
}

function httpParserJs(bytes: Uint8Array): Other {
  const found: Other = { requests: [], complete: 0, failed: false };
  const parser = new HTTPParser(HTTPParser.REQUEST);
  const hooks = parser as unknown as Record<number, (info: { method: number; url: string; headers: string[] }) => void>;
  hooks[HTTPParser.kOnHeadersComplete] = ({ method, url, headers }) => {
    found.requests.push({ method: HTTPParser.methods[method] ?? '', target: url, hosts: hostsOf(headers) });
  };
  hooks[HTTPParser.kOnMessageComplete] = () => {
    found.complete++;
  };
  found.failed = parser.execute(Buffer.from(bytes)) instanceof Error;
  return found;
}

/** The server's parser, behind a stream instead of a socket. Order alone makes it deterministic: no byte waits. */
function nodeServer(): (bytes: Uint8Array) => Promise<Other> {
  let found: Other;
  const seen = (message: IncomingMessage): void => {
    const { method = '', url = '', rawHeaders } = message;
    found.requests.push({ method, target: url, hosts: hostsOf(rawHeaders) });
  };
  const server = createServer((message) => {
    seen(message);
    message.on('end', () => found.complete++).resume();
  });
  for (const event of ['upgrade', 'connect']) {
    server.on(event, (message) => {
      seen(message);
      found.complete++;
    });
  }
  server.on('checkContinue', seen).on('checkExpectation', seen);
  server.on('clientError', () => {
    found.failed = true;
  });
  return async (bytes) => {
    found = { requests: [], complete: 0, failed: false };
    const stream = new Duplex({ read: () => {}, write: (_bytes, _encoding, done) => done() });
    stream.on('error', () => {});
    server.emit('connection', stream);
    stream.push(bytes);
    for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve));
    stream.destroy();
    return found;
  };
}

/** They may refuse what we take, and go no further; but read it otherwise they may not. */
function compare(name: string, bytes: Uint8Array, other: Other): void {
  const ours = walk([bytes]);
  const said = `${name}: ${JSON.stringify(Buffer.from(bytes).toString('latin1'))}`;
  for (const [i, head] of ours.heads.entries()) {
    const theirs = other.requests[i];
    if (theirs === undefined) {
      ok(other.failed || head.method === 'CONNECT', `${said}: request ${i} is there`);
      return;
    }
    deepStrictEqual([theirs.method, theirs.target], [head.method, head.target], said);
    ok(theirs.hosts.length === 1 || (theirs.hosts.length === 0 && head.version === '1.0'), said);
    for (const value of theirs.hosts)
      deepStrictEqual({ ...head.host, port: 0 }, { ...(readHost(value) as Host), port: 0 }, said);
  }
  // One that ended for them before it did for us would have begun another in what we take for its body.
  if (ours.end === 'body') ok(other.complete <= ours.complete, `${said}: no more requests than ours`);
  if (ours.end === 'head' && !other.failed) equal(other.complete, ours.complete, `${said}: as many requests`);
}

t.test('others read what we let pass as we do', async (t) => {
  const node = nodeServer();
  let accepted = 0;
  const property = fc.asyncProperty(bent, async (bytes) => {
    if (walk([bytes]).complete > 0) accepted++;
    compare('http-parser-js', bytes, httpParserJs(bytes));
    compare('node', bytes, await node(bytes));
  });
  await fc.assert(property, { numRuns: 600 });
  t.ok(accepted > 100, 'some were let pass');
  for (const bytes of [latin1('GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n')]) {
    t.same([httpParserJs(bytes).complete, (await node(bytes)).complete], [2, 2], 'and these do read');
  }
});
