/**
 * Fuzzing of what strangers send for a certificate: tokens, requests, CSRs, the list of the revoked, and bytes on the
 * listener itself. Whatever is read is never an exception, takes little time and says the same twice; what is accepted is
 * what was made: one text for each token, and of a CSR only the key that signed it.
 *   SLUICE_FUZZ_SECONDS=60 node dist/test/property/enrolment.test.js     so many seconds for each reader instead of CI's
 *   SLUICE_FUZZ_SEED=123 …                                               the same inputs again
 */
import { deepStrictEqual } from 'node:assert/strict';
import { randomBytes, webcrypto } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import t from 'tap';
import {
  errorOf,
  formatEnrolRequest,
  formatToken,
  newToken,
  parseAnswer,
  parseEnrolRequest,
  parseRenewRequest,
  parseToken,
  parseTokenRecord,
  parseTokenUse,
} from '../../api/enrolment.ts';
import { must } from '../../api/result.ts';
import { Enrolment } from '../../controller/enrolment.ts';
import { sourceOf } from '../../controller/enrolment-listener.ts';
import { parseRevoked } from '../../controller/revoked.ts';
import { parseTtl, TokenStore } from '../../controller/tokens.ts';
import { algorithm, createCa, issueCertificate } from '../../daemon/certs.ts';
import { makeCsr, readCsr } from '../../daemon/csr.ts';
import { createRegistry } from '../../daemon/http.ts';
import { silentLog } from '../../daemon/log.ts';

const SECONDS = Number(process.env.SLUICE_FUZZ_SECONDS ?? 0.4);
const SEED = Number(process.env.SLUICE_FUZZ_SEED ?? randomBytes(4).readUInt32LE());
const SLOW_MS = 1_000;
const LONGEST = 16_384;
t.setTimeout(60_000 + SECONDS * 20_000);
t.comment(`seed ${SEED}`);

/** mulberry32. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296) * below);
  };
}

/** Tags, lengths and characters at which readers change their mind. */
const ODD = [0, 1, 2, 3, 6, 10, 13, 0x30, 0x31, 0xa0, 0x22, 0x2e, 0x2f, 0x3d, 0x5c, 0x7b, 0x7f, 0x80, 0x81, 0x84, 0xff];

function mutated(bytes: Buffer, below: (limit: number) => number): Buffer {
  let made: Buffer = Buffer.from(bytes);
  for (let times = 1 + below(4); times > 0; times--) {
    const at = below(made.length + 1);
    const length = 1 + below(Math.min(64, made.length - at + 1));
    const cut = (middle: Uint8Array, skip = 0): Buffer =>
      Buffer.concat([made.subarray(0, at), middle, made.subarray(at + skip)]);
    switch (below(7)) {
      case 0:
        if (at < made.length) made[at] = (made[at] ?? 0) ^ (1 << below(8));
        break;
      case 1:
        if (at < made.length) made[at] = ODD[below(ODD.length)] ?? 0;
        break;
      case 2:
        made = cut(Buffer.alloc(0), length);
        break;
      case 3:
        made = cut(made.subarray(at, at + length));
        break;
      case 4:
        made = cut(Uint8Array.from({ length }, () => below(256)));
        break;
      case 5:
        // Deep rather than long.
        made = cut(Buffer.from('3080'.repeat(below(2_000)), 'hex'));
        break;
      default:
        made = made.subarray(0, at);
    }
  }
  return made.subarray(0, LONGEST);
}

const root = mkdtempSync(join(tmpdir(), 'sluice-enrol-fuzz-'));
t.teardown(() => rmSync(root, { recursive: true }));
const [ca, certs, state] = [join(root, 'ca'), join(root, 'certs'), join(root, 'state')];
mkdirSync(state);
await createCa(ca);
await issueCertificate({ caDir: ca, outDir: certs, role: 'controller', name: 'c', addresses: ['127.0.0.1'] });
const enrolment = await Enrolment.open({
  ca,
  enrol: { host: '127.0.0.1', port: 0 },
  certs,
  state,
  registry: createRegistry('controller'),
  log: silentLog(),
});
t.teardown(() => enrolment.close());
await enrolment.listen();

const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
const csr = await makeCsr(keys);
const der = Buffer.from(csr.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64');
const { hash } = must(await readCsr(der));
/** The same request with somebody else's key in it. */
const spki = async (pair: webcrypto.CryptoKeyPair): Promise<Buffer> =>
  Buffer.from(await webcrypto.subtle.exportKey('spki', pair.publicKey));
const stolen = Buffer.from(der);
(await spki(await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']))).copy(
  stolen,
  der.indexOf(await spki(keys)),
);
const token = newToken('ab'.repeat(32));
/** The same bits, as a lenient decoder takes them: the last character has two that say nothing. */
const twin = formatToken(token).replace(/.$/, (last) => {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  return alphabet[alphabet.indexOf(last) + 1] ?? '';
});
const known = must(
  parseToken(await new TokenStore(state).make('gateway', 'gw-a', 'ab'.repeat(32), 3_600_000, Date.now())),
);
const use = { at: 1, key: 'ab'.repeat(32), certificate: csr };
const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
const orJson = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};

interface Subject {
  name: string;
  seeds: Buffer[];
  answer(bytes: Buffer): unknown;
  /** What holds of every answer. */
  holds?(answer: unknown, bytes: Buffer): void;
}
type Answered<T> = { ok: true; value: T } | { ok: false; error: string };

const subjects: Subject[] = [
  {
    name: 'tokens: what is accepted has this text and no other',
    seeds: [Buffer.from(formatToken(token)), Buffer.from(twin), Buffer.from(formatToken(newToken('00'.repeat(32))))],
    answer: (bytes) => parseToken(bytes.toString()),
    holds(answer, bytes) {
      const parsed = answer as ReturnType<typeof parseToken>;
      if (parsed.ok) deepStrictEqual(formatToken(parsed.value), bytes.toString());
    },
  },
  {
    name: 'requests to enrol and to renew, and answers',
    seeds: [
      Buffer.from(formatEnrolRequest(token, csr)),
      json({ csr }),
      json({ certificate: csr, ca: csr }),
      json({ error: 'x' }),
    ],
    answer: (bytes) => {
      const text = bytes.toString();
      return [parseEnrolRequest(text), parseRenewRequest(text), parseAnswer(text), errorOf(text)];
    },
    holds(answer) {
      const [request] = answer as [ReturnType<typeof parseEnrolRequest>];
      if (request.ok)
        deepStrictEqual([/^[0-9a-f]{16}$/.test(request.value.id), request.value.secret.length], [true, 32]);
    },
  },
  {
    name: 'CSRs: what is accepted is the key that signed it',
    seeds: [der, stolen],
    answer: async (bytes) => {
      const read = await readCsr(bytes);
      return read.ok ? { ok: true, value: read.value.hash } : read;
    },
    holds(answer) {
      const read = answer as Answered<string>;
      if (read.ok) deepStrictEqual(read.value, hash);
    },
  },
  {
    name: 'whole requests: nothing but the secret gives a certificate',
    seeds: [
      Buffer.from(formatEnrolRequest(token, csr)),
      Buffer.from(formatEnrolRequest({ ...token, id: known.id }, csr)),
    ],
    answer: async (bytes) => (await enrolment.enrol(bytes.toString())).result,
    holds: (answer) => deepStrictEqual(['bad-request', 'unknown-token'].includes(String(answer)), true),
  },
  {
    name: 'files of tokens and of their use',
    seeds: [json({ role: 'node', name: 'a', hash: 'ab'.repeat(32), made: 1, expires: 2 }), json(use)],
    answer: (bytes) => [parseTokenRecord(orJson(bytes.toString())), parseTokenUse(orJson(bytes.toString()))],
  },
  {
    name: 'the list of the revoked; times; addresses',
    seeds: [Buffer.from('gateway/gw-a\n# x\nserial=00AB\n'), Buffer.from('30m'), Buffer.from('2001:db8::1%eth0')],
    answer: (bytes) => {
      const text = bytes.toString();
      const { serials, names, odd } = parseRevoked(text);
      return [[...serials], [...names], odd, parseTtl(text), sourceOf(text)];
    },
  },
];

for (const { name, seeds, answer, holds } of subjects) {
  t.test(name, { timeout: 60_000 + SECONDS * 2_000 }, async (t) => {
    const below = numbers(SEED);
    const corpus = [...seeds];
    const kinds = new Map<string, number>();
    let [count, slowest] = [0, 0];
    const end = performance.now() + SECONDS * 1_000;
    while (count < seeds.length || performance.now() < end) {
      const seed = corpus[below(corpus.length)] ?? Buffer.alloc(0);
      const bytes = seeds[count] ?? mutated(seed, below);
      count++;
      const copy = Buffer.from(bytes);
      try {
        const began = performance.now();
        const first = await answer(bytes);
        slowest = Math.max(slowest, performance.now() - began);
        holds?.(first, bytes);
        deepStrictEqual(bytes, copy, 'the bytes are left as they are');
        deepStrictEqual(await answer(Buffer.from(copy)), first, 'the same of the same bytes');
        const kind = JSON.stringify(first)
          .replaceAll(/[0-9a-f]{8,}|\d+/g, '#')
          .slice(0, 120);
        if (!kinds.has(kind) && corpus.length < 1_000) corpus.push(copy);
        kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      } catch (error) {
        t.fail(`${(error as Error).message}; seed ${SEED}, input ${count}: ${copy.toString('hex')}`);
        return;
      }
    }
    t.ok(slowest < SLOW_MS, `no answer took longer than ${slowest.toFixed(1)} ms`);
    t.ok(kinds.size > 1, `${count} inputs, ${kinds.size} kinds of answers`);
  });
}

/** Bytes within TLS, as they are; what came back. */
async function say(port: number, bytes: Buffer): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
  let said = '';
  socket.on('error', () => {});
  socket.on('data', (chunk: Buffer) => {
    said += chunk.toString('latin1');
  });
  socket.end(bytes);
  const timer = setTimeout(() => socket.destroy(), 100);
  await once(socket, 'close');
  clearTimeout(timer);
  return said;
}

t.test('bytes on the listener: it answers in HTTP or not at all, and goes on', async (t) => {
  const below = numbers(SEED);
  const port = enrolment.port ?? 0;
  const body = formatEnrolRequest(token, csr);
  const head = (length: number | string, path = '/v1/enrol'): string =>
    `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Length: ${length}\r\n\r\n`;
  const seeds = [
    `${head(body.length)}${body}`,
    `${head(-1)}${body}`,
    `POST /v1/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n`,
    'GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n',
    `GET /v1/ca HTTP/1.1\r\n${'a: b\r\n'.repeat(2_000)}\r\n`,
    'CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n',
    'GET /v1/ca HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n',
    'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  ].map((text) => Buffer.from(text));
  const end = performance.now() + SECONDS * 1_000;
  const statuses = new Set<string>();
  for (let count = 0; count < seeds.length || performance.now() < end; count++) {
    const seed = seeds[below(seeds.length)] ?? Buffer.alloc(0);
    const said = await say(port, seeds[count] ?? mutated(seed, below));
    if (said !== '' && !/^HTTP\/1\.1 \d{3} /.test(said)) t.fail(`it said ${JSON.stringify(said.slice(0, 80))}`);
    statuses.add(said.slice(9, 12));
    if (said.includes('"certificate"')) t.fail('nobody gets a certificate');
  }
  t.ok(statuses.size > 2, [...statuses].join());
  t.match(await say(port, Buffer.from('GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n')), /^HTTP\/1\.1 200 [\s\S]*BEGIN CERT/);
  t.equal(
    (await enrolment.enrol(formatEnrolRequest(known, csr))).result,
    'enrolled',
    'and the right secret is good still',
  );
});
