/**
 * The readers of TLS and QUIC over hellos of any content: what was put in is read back, however it is cut into records,
 * segments, frames and datagrams; changed bytes never make a reader throw, nor give two answers for two cuts. The oracle of
 * the names is OpenSSL: whatever name its server makes of some bytes, we make the same of them, or refuse them.
 */

import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';
import fc from 'fast-check';
import t from 'tap';
import { parseHostName } from '../../api/host-name.ts';
import { bytesOfU16, join } from '../../wire/bytes.ts';
import { QuicHelloReader } from '../../wire/quic.ts';
import { QuicKeyCache } from '../../wire/quic-keys.ts';
import { CryptoStream } from '../../wire/quic-stream.ts';
import { readClientHello, readServerTls } from '../../wire/tls.ts';
import type { ClientHello } from '../../wire/tls-hello.ts';
import { CHROMIUM_QUIC, CHROMIUM_TLS, OPENSSL_EARLY_DATA } from '../unit/captures.ts';
import {
  alpn,
  CLIENT_ID,
  cryptoFrame,
  extension,
  helloMessage,
  list16,
  nameEntry,
  outerEch,
  records,
  sealInitial,
  serverName,
  versions,
} from '../unit/hello-bytes.ts';

t.setTimeout(120_000);
const SERVER_ID = Uint8Array.of(1, 2, 3, 4);
const isGrease = (value: number): boolean => /^(.a)\1$/.test(value.toString(16).padStart(4, '0'));
const letters = (alphabet: string, minLength: number, maxLength: number): fc.Arbitrary<string> =>
  fc.string({ unit: fc.constantFrom(...alphabet), minLength, maxLength });
const label = fc
  .tuple(letters('abcXYZ', 1, 1), letters('abcXYZ019-_', 0, 12), letters('abcXYZ019', 0, 1))
  .map(([first, middle, last]) => first + (last === '' ? '' : middle + last));
const name = fc
  .tuple(fc.array(label, { minLength: 1, maxLength: 5 }), fc.constantFrom('', '.'))
  .map(([labels, dot]) => labels.join('.') + dot);
const protocol = letters('abh23/.%\n\x0a\x1a', 1, 8);
const version = fc.oneof(fc.constantFrom(0x0304, 0x0303, 0x0302, 0x0a0a, 0xdada), fc.nat(0xffff));
const group = fc.constantFrom(0x1d, 0x17, 0x11ec, 0x2a2a);
const spaced = (groups: number[]): string => groups.map((of) => (isGrease(of) ? '' : ` ${of}`)).join('');
const small = (max: number) => fc.uint8Array({ maxLength: max });
/** Types that the reader gives no meaning, or that only their presence counts of. */
const others = fc.uniqueArray(
  fc.record({
    type: fc.oneof(fc.constantFrom(13, 21, 41, 45, 0xff01, 0xfe0d), fc.integer({ min: 100, max: 60_000 })),
    body: small(40),
  }),
  { maxLength: 6, selector: ({ type }) => type },
);

interface Hello {
  message: Uint8Array;
  says: Omit<ClientHello, 'length'>;
}

const hello: fc.Arbitrary<Hello> = fc
  .record({
    name: fc.option(name, { nil: undefined }),
    protocols: fc.array(protocol, { maxLength: 5 }),
    offered: fc.array(version, { maxLength: 5 }),
    legacyVersion: fc.integer({ min: 0x0300, max: 0x03ff }),
    sessionId: small(32),
    suites: small(20),
    ech: fc.boolean(),
    groups: fc.array(group, { maxLength: 4 }),
    shares: fc.option(fc.array(fc.tuple(group, small(40)), { maxLength: 3 }), { nil: undefined }),
    early: fc.boolean(),
    others,
    order: fc.nat(),
  })
  .map((v) => {
    const extensions = [
      ...(v.name === undefined ? [] : [serverName(v.name)]),
      ...(v.protocols.length === 0 ? [] : [alpn(...v.protocols)]),
      ...(v.offered.length === 0 ? [] : [versions(...v.offered)]),
      ...(v.ech && v.others.every(({ type }) => type !== 0xfe0d) ? [outerEch()] : []),
      ...(v.groups.length === 0 ? [] : [extension(10, list16(...v.groups.map(bytesOfU16)))]),
      ...(v.shares === undefined
        ? []
        : [extension(51, list16(...v.shares.map(([of, key]) => join([bytesOfU16(of), list16(key)]))))]),
      ...(v.early ? [extension(42)] : []),
      ...v.others.map(({ type, body }) => extension(type, body)),
    ];
    const turn = extensions.length === 0 ? 0 : v.order % extensions.length;
    const message = helloMessage({
      legacyVersion: v.legacyVersion,
      sessionId: v.sessionId,
      suites: join([v.suites, v.suites, Uint8Array.of(0x13, 1)]),
      extensions: [...extensions.slice(turn), ...extensions.slice(0, turn)],
    });
    const text = (protocol: string): string =>
      [...protocol]
        .map((c) => ('%\n\x1a'.includes(c) ? `%${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}` : c))
        .join('');
    const says = {
      serverName: v.name?.toLowerCase().replace(/\.$/, ''),
      alpn: v.protocols.filter((p) => p !== '\n\n' && p !== '\x1a\x1a').map(text),
      versions: v.offered.length === 0 ? [v.legacyVersion] : v.offered.filter((offered) => !isGrease(offered)),
      legacyVersion: v.legacyVersion,
      encryptedClientHello: v.ech || v.others.some(({ type }) => type === 0xfe0d),
      groups:
        v.shares !== undefined && (v.offered.length === 0 ? [v.legacyVersion] : v.offered).includes(0x0304)
          ? `${spaced(v.groups)}/${spaced(v.shares.map(([of]) => of))}`
          : undefined,
      preSharedKey: v.others.some(({ type }) => type === 41),
      earlyData: v.early,
    };
    return { message, says };
  });
const sizes = fc.oneof(
  fc.constant([20_000]),
  fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 6 }),
);

/** Bytes changed, taken out, doubled; numbers that look like lengths most of all. */
const changes = fc.array(
  fc.record({
    at: fc.nat(),
    to: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 255)),
    how: fc.constantFrom('set', 'cut', 'insert'),
  }),
  { minLength: 1, maxLength: 4 },
);
type Changes = typeof changes extends fc.Arbitrary<infer Value> ? Value : never;
function change(bytes: Uint8Array, edits: Changes): Uint8Array {
  const changed = [...bytes];
  for (const { at, to, how } of edits) {
    const where = at % (changed.length + 1);
    if (how === 'cut') changed.splice(where, 1);
    else changed.splice(where, how === 'set' ? 1 : 0, to);
  }
  return Uint8Array.from(changed);
}

/** Asks for every part; returns the answer for the whole. */
function sameForAnyCut<Answer extends { state: string }>(
  read: (bytes: Uint8Array) => Answer,
  bytes: Uint8Array,
): Answer {
  const whole = read(bytes);
  let answered = false;
  for (let length = 0; length < bytes.length; length++) {
    const part = read(bytes.subarray(0, length));
    if (part.state === 'more') ok(!answered, `more at ${length}, after an answer`);
    else {
      if (!answered) deepStrictEqual(part, whole, `the first ${length} bytes`);
      answered = true;
    }
  }
  return whole;
}

t.test('a hello is read back, in any records and from any part', async () => {
  fc.assert(
    fc.property(hello, sizes, small(20), ({ message, says }, sizes, after) => {
      const bytes = records(message, ...sizes);
      const answer = sameForAnyCut(readClientHello, join([bytes, after]));
      deepStrictEqual(answer, { state: 'read', value: { ...says, length: bytes.length } });
      equal(readClientHello(bytes.subarray(0, -1)).state, 'more');
    }),
    { numRuns: 300 },
  );
});

const someHello = fc.oneof(
  fc.tuple(hello, sizes).map(([{ message }, sizes]) => records(message, ...sizes)),
  fc.constantFrom(CHROMIUM_TLS.subarray(0, 400), OPENSSL_EARLY_DATA),
);

t.test('names are those of policy', async () => {
  const text = fc.oneof(name, letters('a0.-_xX1:[*', 0, 12), fc.string({ unit: 'grapheme-ascii', maxLength: 20 }));
  fc.assert(
    fc.property(text, (text) => {
      const answer = readClientHello(records(helloMessage({ extensions: [serverName(text)] }), 20_000));
      const policy = parseHostName(text);
      equal(answer.state === 'read' ? answer.value.serverName : undefined, policy.ok ? policy.value : undefined);
    }),
    { numRuns: 1000 },
  );
});

t.test('changed bytes have one answer too', async () => {
  fc.assert(
    fc.property(someHello, changes, (bytes, edits) => void sameForAnyCut(readClientHello, change(bytes, edits))),
    { numRuns: 400 },
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => void sameForAnyCut(readClientHello, bytes)),
    { numRuns: 500 },
  );
  const firstOfServer = fc.tuple(
    fc.constantFrom(21, 22, 22, 22, 23),
    fc.constantFrom(3, 3, 3, 2),
    fc.uint8Array({ maxLength: 60 }),
  );
  fc.assert(
    fc.property(
      firstOfServer,
      ([type, major, rest]) => void sameForAnyCut(readServerTls, join([Uint8Array.of(type, major), rest])),
    ),
    { numRuns: 500 },
  );
});

/** The server name that OpenSSL finds in a client's first bytes, if it finds one before it gives up. */
async function nameByOpenssl(bytes: Uint8Array): Promise<string | undefined> {
  let found: string | undefined;
  const stream = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() });
  const socket = new TLSSocket(stream, {
    isServer: true,
    SNICallback: (name, done) => {
      found = name;
      done(new Error('that is all'));
    },
  });
  const over = new Promise<void>((resolve) => {
    socket.on('error', () => resolve());
    // Of a part of a hello it says nothing; what it was given it has read by then.
    stream.on('end', () => setImmediate(() => setImmediate(resolve)));
  });
  stream.push(bytes);
  stream.push(null);
  await over;
  socket.destroy();
  return found;
}

t.test('a name that OpenSSL finds is the name that we read', async (t) => {
  // What a server could be brought to read differently lies in lengths and in the list of names.
  const list = fc.oneof(
    name.map((name) => serverName(name)),
    fc.tuple(name, name).map(([a, b]) => serverName(a, b)),
    fc.tuple(name, name).map(([a, b]) => join([serverName(a), serverName(b)])),
    fc.tuple(fc.nat(2), name).map(([type, name]) => extension(0, list16(nameEntry(name, type)))),
    fc.uint8Array({ minLength: 1, maxLength: 12 }).map((bytes) => serverName(bytes)),
  );
  const crafted = fc
    .record({
      list,
      before: small(6),
      after: small(6),
      sizes,
      edits: fc.oneof(fc.constant<Changes>([]), changes),
      first: fc.nat(3),
    })
    .map(({ list, before, after, sizes, edits, first }) => {
      const suites = Uint8Array.of(0x13, 1, 0x13, 2, 0xc0, 0x2f, 0, 0x2f);
      const extensions = join([extension(0x1234, before), list, extension(0x1235, after), versions(0x0303)]);
      // Bytes may change in the extensions, in all of the message, or in the records.
      const body = first === 1 ? change(extensions, edits) : extensions;
      const message = around(suites, body);
      const changed = first === 2 ? change(message, edits) : message;
      const bytes = records(changed, ...sizes);
      return first === 3 ? change(bytes, edits) : bytes;
    });
  let both = 0;
  await fc.assert(
    fc.asyncProperty(crafted, async (bytes) => {
      const theirs = await nameByOpenssl(bytes);
      const ours = readClientHello(bytes);
      if (theirs === undefined || ours.state === 'refused') return;
      ok(ours.state === 'read', 'OpenSSL has read a whole hello');
      equal(ours.value.serverName, theirs.toLowerCase().replace(/\.$/, ''));
      both++;
    }),
    { numRuns: 500 },
  );
  t.ok(both > 20, `both found a name, ${both} times`);
});

/** A hello around a list of extensions that is right or not. */
function around(suites: Uint8Array, extensions: Uint8Array): Uint8Array {
  const without = helloMessage({ suites });
  const body = join([without.subarray(4), bytesOfU16(extensions.length), extensions]);
  return join([Uint8Array.of(1, 0), bytesOfU16(body.length), body]);
}

/** How a hello is cut: where each frame ends, how many a packet has, what stands between. */
const cutting = fc.record({
  ends: fc.array(fc.nat(600), { maxLength: 12 }),
  overlap: fc.nat(20),
  order: fc.array(fc.nat(), { minLength: 14, maxLength: 14 }),
  perPacket: fc.integer({ min: 1, max: 4 }),
  between: fc.constantFrom([], [1], [0, 0, 0], [2, 5, 0, 0, 5], [3, 0, 0, 0, 0, 1, 1, 1]),
  version: fc.constantFrom(1 as const, 2 as const),
  numberSize: fc.integer({ min: 1, max: 4 }),
  token: small(30),
  destination: fc.uint8Array({ minLength: 8, maxLength: 20 }),
});
type Cutting = typeof cutting extends fc.Arbitrary<infer Value> ? Value : never;

/** Datagrams in the order in which they come, which is any. */
function datagramsOf(message: Uint8Array, cut: Cutting): Uint8Array[] {
  const ends = [...new Set([...cut.ends.map((end) => Math.min(end + 1, message.length)), message.length])].sort(
    (a, b) => a - b,
  );
  const frames = ends.map((end, i) => {
    const from = Math.max(0, (ends[i - 1] ?? 0) - cut.overlap);
    return cryptoFrame(from, message.subarray(from, end));
  });
  const shuffled = frames.map((frame, i) => ({ frame, key: cut.order[i] ?? 0 })).sort((a, b) => a.key - b.key);
  const datagrams: Uint8Array[] = [];
  for (let at = 0; at < shuffled.length; at += cut.perPacket) {
    const inPacket = shuffled
      .slice(at, at + cut.perPacket)
      .flatMap(({ frame }) => [frame, Uint8Array.from(cut.between)]);
    const { version, numberSize, token, destination } = cut;
    datagrams.push(
      sealInitial({ version, numberSize, token, destination, number: datagrams.length, frames: inPacket, padTo: 1200 }),
    );
  }
  return datagrams;
}

t.test('a hello is read back from any frames and datagrams', async () => {
  fc.assert(
    fc.property(hello, cutting, ({ message, says }, cut) => {
      const datagrams = datagramsOf(message, cut);
      const keys = new QuicKeyCache(1);
      const reader = new QuicHelloReader();
      const answers = datagrams.map((datagram) => reader.take(datagram, keys));
      for (const early of answers.slice(0, -1)) if (early.state !== 'read') equal(early.state, 'more');
      const value = { version: cut.version, connectionId: cut.destination, hello: { ...says, length: message.length } };
      deepStrictEqual(answers.at(-1), { state: 'read', value });
    }),
    { numRuns: 150 },
  );
});

t.test('a datagram with one changed bit is never read', async () => {
  fc.assert(
    fc.property(hello, cutting, fc.nat(), fc.nat(7), ({ message }, cut, at, bit) => {
      const datagrams = datagramsOf(message, { ...cut, ends: [] });
      const changed = Uint8Array.from(datagrams[0] ?? []);
      // Half of the changes in the header.
      const where = at % 2 === 0 ? at % 40 : at % changed.length;
      changed[where] = (changed[where] ?? 0) ^ (1 << bit);
      equal(new QuicHelloReader().take(changed, new QuicKeyCache()).state, 'refused');
    }),
    { numRuns: 200 },
  );
});

t.test('a second hello is read back from any two frames, if it names what the first did', async () => {
  fc.assert(
    fc.property(hello, hello, fc.nat(), ({ message, says }, second, at) => {
      const keys = new QuicKeyCache();
      const reader = new QuicHelloReader();
      equal(reader.take(sealInitial({ frames: [cryptoFrame(0, message)], padTo: 1200 }), keys).state, 'read');
      const cut = at % second.message.length;
      const parts = [
        cryptoFrame(message.length + cut, second.message.subarray(cut)),
        cryptoFrame(message.length, second.message.subarray(0, cut)),
      ];
      const answers = parts.map((frame, number) =>
        reader.follow(
          sealInitial({ frames: [frame], number: number + 1, keyId: CLIENT_ID, destination: SERVER_ID }),
          keys,
        ),
      );
      if (cut > 0) deepStrictEqual(answers.shift(), { state: 'more' });
      const value = { ...second.says, length: second.message.length };
      const same = says.serverName === value.serverName;
      deepStrictEqual(answers[0], same ? { state: 'read', value } : { state: 'refused', reason: 'other-second-hello' });
    }),
    { numRuns: 150 },
  );
});

t.test('whatever a packet holds has an answer', async () => {
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 30 }),
    fc
      .tuple(fc.constantFrom(0, 1, 2, 3, 6, 6, 6, 0x1c), small(30))
      .map(([type, rest]) => join([Uint8Array.of(type), rest])),
    fc.tuple(fc.nat(40), small(30)).map(([offset, data]) => cryptoFrame(offset, data)),
  );
  fc.assert(
    fc.property(fc.array(fc.array(frame, { maxLength: 6 }), { minLength: 1, maxLength: 4 }), (packets) => {
      const reader = new QuicHelloReader();
      for (const [number, frames] of packets.entries()) {
        ok(
          ['more', 'read', 'refused'].includes(reader.take(sealInitial({ frames, number }), new QuicKeyCache()).state),
        );
      }
      const known = new QuicHelloReader();
      known.take(sealInitial({ frames: [cryptoFrame(0, helloMessage({}))] }), new QuicKeyCache());
      for (const [number, frames] of packets.entries()) {
        ok(known.follow(sealInitial({ frames, number: number + 1 }), new QuicKeyCache()));
      }
    }),
    { numRuns: 300 },
  );
  fc.assert(
    fc.property(fc.constantFrom(...CHROMIUM_QUIC), changes, (datagram, edits) => {
      ok(new QuicHelloReader().take(change(datagram, edits), new QuicKeyCache()).state);
    }),
    { numRuns: 200 },
  );
  const head = fc.tuple(
    fc.integer({ min: 0x80, max: 0xff }),
    fc.constantFrom([0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf]),
    small(1300),
  );
  fc.assert(
    fc.property(head, ([first, code, rest]) => {
      ok(new QuicHelloReader().take(Uint8Array.from([first, ...code, ...rest]), new QuicKeyCache()).state);
    }),
    { numRuns: 300 },
  );
});

t.test('the first bytes count, and others in their place are refused', async () => {
  const piece = fc.record({
    offset: fc.nat(30),
    data: fc.uint8Array({ min: 0, max: 1, maxLength: 12 }),
    honest: fc.boolean(),
  });
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 20 }),
      fc.uint8Array({ min: 0, max: 1, minLength: 42, maxLength: 42 }),
      (pieces, truth) => {
        const stream = new CryptoStream(36);
        // Byte by byte.
        const model = new Map<number, number>();
        for (const { offset, data, honest } of pieces) {
          const bytes = honest ? truth.slice(offset, offset + data.length) : data;
          const expected =
            offset + bytes.length > 40
              ? 'crypto-too-long'
              : bytes.some((octet, i) => (model.get(offset + i) ?? octet) !== octet)
                ? 'conflicting-overlap'
                : undefined;
          equal(stream.put(offset, Uint8Array.from(bytes)), expected);
          if (expected === undefined) for (const [i, octet] of bytes.entries()) model.set(offset + i, octet);
          const prefix: number[] = [];
          for (let at = 0; model.has(at); at++) prefix.push(model.get(at) ?? 0);
          deepStrictEqual([...stream.prefix], prefix);
          equal(stream.end, Math.max(0, ...[...model.keys()].map((at) => at + 1)));
        }
      },
    ),
    { numRuns: 500 },
  );
});
