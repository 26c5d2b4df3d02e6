/**
 * The reader of QUIC: the vectors of RFC 9001 and RFC 9369, datagrams of real clients, and datagrams built field by field with
 * what the reader must make of them. A row is one flow, its datagrams in the order in which they come.
 */

import t from 'tap';
import { bytesOfU32, join } from '../../wire/bytes.ts';
import { QuicHelloReader, type QuicLimits, type QuicReason, quicLimits, quicReasons } from '../../wire/quic.ts';
import { InitialKeys, QuicKeyCache } from '../../wire/quic-keys.ts';
import { openInitial, parseLongHeader } from '../../wire/quic-packet.ts';
import { CHROMIUM_QUIC, CHROMIUM_QUIC_AGAIN, CHROMIUM_QUIC_CLOSE, QUICHE } from './captures.ts';
import {
  alpn,
  ascii,
  CLIENT_ID,
  cryptoFrame,
  extension,
  helloMessage,
  type InitialFields,
  list8,
  message,
  otherPacket,
  postQuantumShare,
  sealInitial,
  serverName,
  varint,
  versionCode,
  versions,
} from './hello-bytes.ts';
import * as vectors from './quic-vectors.ts';

const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const u8s = (...octets: number[]): Uint8Array => Uint8Array.from(octets);
const PADDING = u8s(0);
const PING = u8s(1);

/** What the last of a flow's datagrams leads to: a name, `more`, or a reason. */
function outcome(datagrams: readonly Uint8Array[], limits: QuicLimits = quicLimits, keys = new QuicKeyCache()): string {
  const reader = new QuicHelloReader(limits);
  let answer = 'more';
  for (const datagram of datagrams) {
    const before = toHex(datagram);
    const said = reader.take(datagram, keys);
    if (toHex(datagram) !== before) return 'the datagram was changed';
    const now =
      said.state === 'read' ? `name ${said.value.hello.serverName}` : said.state === 'refused' ? said.reason : 'more';
    if (answer !== 'more' && now !== answer) return `${answer}, then ${now}`;
    answer = now;
  }
  return answer;
}

t.test('the vectors of RFC 9001 and RFC 9369', async (t) => {
  for (const version of [1, 2] as const) {
    for (const side of ['client', 'server'] as const) {
      const { key, iv, hp } = new InitialKeys(version, vectors.CONNECTION_ID, side);
      t.same(
        { key: toHex(key), iv: toHex(iv), hp: toHex(hp) },
        vectors.keys[version][side],
        `version ${version}: keys of the ${side}`,
      );
    }
  }
  const packets = [
    [
      1,
      'client',
      vectors.CLIENT_INITIAL_1,
      2,
      join([vectors.CLIENT_FRAME, new Uint8Array(1162 - vectors.CLIENT_FRAME.length)]),
    ],
    [
      2,
      'client',
      vectors.CLIENT_INITIAL_2,
      2,
      join([vectors.CLIENT_FRAME, new Uint8Array(1162 - vectors.CLIENT_FRAME.length)]),
    ],
    [1, 'server', vectors.SERVER_INITIAL_1, 1, vectors.SERVER_FRAMES],
    [2, 'server', vectors.SERVER_INITIAL_2, 1, vectors.SERVER_FRAMES],
  ] as const;
  for (const [version, side, packet, number, frames] of packets) {
    const header = parseLongHeader(packet, 0, 100);
    if (header.state !== 'read') throw new Error('no header');
    t.match(header.value, { version, type: 'initial', start: 0, number: 18, end: packet.length });
    const opened = openInitial(packet, header.value, new InitialKeys(version, vectors.CONNECTION_ID, side), -1);
    if (opened.state !== 'read') throw new Error('not opened');
    t.equal(opened.value.number, number);
    t.equal(toHex(opened.value.payload), toHex(frames), `version ${version}: frames of the ${side}`);
  }
  for (const [version, packet] of [
    [1, vectors.CLIENT_INITIAL_1],
    [2, vectors.CLIENT_INITIAL_2],
  ] as const) {
    t.same(new QuicHelloReader().take(packet, new QuicKeyCache()), {
      state: 'read',
      value: {
        version,
        connectionId: vectors.CONNECTION_ID,
        hello: {
          serverName: 'example.com',
          alpn: ['alpn'],
          versions: [0x0304],
          legacyVersion: 0x0303,
          encryptedClientHello: false,
          groups: ' 29 23 24/ 29',
          preSharedKey: false,
          earlyData: false,
          length: 241,
        },
      },
    });
  }
  // The builder of the rows below is held by the same vectors.
  for (const [version, packet] of [
    [1, vectors.CLIENT_INITIAL_1],
    [2, vectors.CLIENT_INITIAL_2],
  ] as const) {
    const built = sealInitial({
      version,
      destination: vectors.CONNECTION_ID,
      number: 2,
      numberSize: 4,
      frames: [vectors.CLIENT_FRAME],
    });
    t.equal(toHex(built), toHex(packet), `version ${version}: sealed again`);
  }
});

t.test('real clients', async (t) => {
  const quic = {
    name: 'quic.example.test',
    value: { version: 1, hello: { alpn: ['h3'], versions: [0x0304], encryptedClientHello: true, length: 1979 } },
  };
  const rows: [string, readonly Uint8Array[], string][] = [
    ['quiche', [QUICHE], 'name quiche.example.test'],
    ['Chromium', CHROMIUM_QUIC, `name ${quic.name}`],
    ['Chromium, the second datagram first', CHROMIUM_QUIC.toReversed(), `name ${quic.name}`],
    ['Chromium, the first twice', [...CHROMIUM_QUIC.slice(0, 1), ...CHROMIUM_QUIC], `name ${quic.name}`],
    ['the first of Chromium alone', CHROMIUM_QUIC.slice(0, 1), 'more'],
    ['Chromium, sent again and cut in another way', CHROMIUM_QUIC_AGAIN, `name ${quic.name}`],
    [
      'Chromium, the first and what was sent again',
      [...CHROMIUM_QUIC.slice(0, 1), ...CHROMIUM_QUIC_AGAIN],
      `name ${quic.name}`,
    ],
    ['Chromium, one of each', [...CHROMIUM_QUIC.slice(1), ...CHROMIUM_QUIC_AGAIN.slice(0, 1)], `name ${quic.name}`],
    ['Chromium that gives up', [CHROMIUM_QUIC_CLOSE], 'closed'],
    ['one Chromium, then quiche', [...CHROMIUM_QUIC.slice(0, 1), QUICHE], 'several-connections'],
  ];
  for (const [what, datagrams, expected] of rows) {
    t.equal(outcome(datagrams), expected, what);
    t.equal(outcome(datagrams.map((datagram) => Buffer.from(datagram))), expected, `${what}, as Buffers`);
  }
  const reader = new QuicHelloReader();
  const answers = CHROMIUM_QUIC.map((datagram) => reader.take(datagram, new QuicKeyCache()));
  t.match(answers, [{ state: 'more' }, { state: 'read', value: quic.value }]);
});

const hello = helloMessage({
  sessionId: new Uint8Array(0),
  extensions: [serverName('api.example.com'), alpn('h3'), versions(0x0304), extension(57, ascii('x'))],
});
const long = helloMessage({ extensions: [postQuantumShare(), serverName('pq.example.com'), versions(0x0304)] });
const initial = (frames: Uint8Array[], fields: Partial<InitialFields> = {}): Uint8Array =>
  sealInitial({ frames, ...fields });
const whole = cryptoFrame(0, hello);
const NAME = 'name api.example.com';
const PQ = 'name pq.example.com';
const piece = (from: number, to?: number): Uint8Array => cryptoFrame(from, hello.subarray(from, to));
const pqPiece = (from: number, to?: number): Uint8Array => cryptoFrame(from, long.subarray(from, to));
const ack = (...ranges: number[]): Uint8Array =>
  join([u8s(2), varint(9), varint(0), varint(ranges.length / 2), varint(0), ...ranges.map((n) => varint(n))]);
const datagram = (...packets: Uint8Array[]): Uint8Array => {
  const joined = join(packets);
  return joined.length >= 1200 ? joined : join([joined, new Uint8Array(1200 - joined.length)]);
};
const small = (frames: Uint8Array[], fields: Partial<InitialFields> = {}): Uint8Array =>
  initial(frames, { padTo: 0, ...fields });
const header = (first: number, code: Uint8Array, ...rest: Uint8Array[]): Uint8Array =>
  join([u8s(first), code, ...rest, new Uint8Array(1200)]);
const V1 = versionCode(1);
const changed = (at: number): Uint8Array => {
  const bytes = initial([whole]);
  bytes[at < 0 ? bytes.length + at : at]! ^= 1;
  return bytes;
};

const flows: [string, Uint8Array[], string][] = [
  ['a hello in one frame', [initial([whole])], NAME],
  ['of version 2', [initial([whole], { version: 2 })], NAME],
  [
    'with a token, a source and a long destination',
    [
      initial([whole], {
        token: new Uint8Array(300),
        source: ascii('sourceid'),
        destination: new Uint8Array(20).fill(3),
      }),
    ],
    NAME,
  ],
  ['with a token as long as is read', [initial([whole], { token: new Uint8Array(1024), padTo: 1500 })], NAME],
  ...[1, 2, 3, 4].map((numberSize): [string, Uint8Array[], string] => [
    `with a packet number of ${numberSize} bytes`,
    [initial([whole], { numberSize, number: 77 })],
    NAME,
  ]),
  ['with padding, PING and ACK around', [initial([PADDING, PADDING, PING, ack(), ack(1, 2, 3, 4), whole, PING])], NAME],
  [
    'with an ACK that counts ECN',
    [initial([join([u8s(3), ack().subarray(1), varint(1), varint(20_000), varint(2 ** 31)]), whole])],
    NAME,
  ],
  ['in two frames', [initial([piece(0, 50), piece(50)])], NAME],
  ['in two frames the wrong way round', [initial([piece(50), piece(0, 50)])], NAME],
  [
    'in frames of one byte, backwards',
    [initial(Array.from(hello, (_, at) => piece(at, at + 1)).reverse(), { padTo: 1500 })],
    NAME,
  ],
  ['in overlapping frames that agree', [initial([piece(0, 60), piece(40, 90), piece(10, 20), piece(30)])], NAME],
  ['with an empty frame', [initial([cryptoFrame(0, u8s()), cryptoFrame(9999, u8s()), whole])], NAME],
  [
    'with offsets and lengths longer than need be',
    [initial([join([u8s(6), varint(0, 8), varint(hello.length, 4), hello])])],
    NAME,
  ],
  ['all but its last byte', [initial([piece(0, -1)])], 'more'],
  ['all but its first byte', [initial([piece(1)])], 'more'],
  ['nothing but PING', [initial([PING])], 'more'],
  ['over two datagrams', [initial([pqPiece(0, 1000)]), initial([pqPiece(1000)], { number: 1 })], PQ],
  [
    'over two datagrams the wrong way round',
    [initial([pqPiece(1000)], { number: 1 }), initial([pqPiece(0, 1000)])],
    PQ,
  ],
  ['the second part again and again', [1, 2, 3].map((number) => initial([pqPiece(1000)], { number })), 'more'],
  [
    'packet numbers that pass a byte',
    [254, 255, 256, 257].map((number, i) =>
      initial([piece(i * 30, i === 3 ? undefined : i * 30 + 30)], { number, numberSize: 1 + Number(i === 0) }),
    ),
    NAME,
  ],
  [
    'a packet number past 32 bits',
    [0x7fff_ffff, 0xf000_0000, 0x1_0000_0005].map((number, i) =>
      initial([piece(i * 30, i === 2 ? undefined : i * 30 + 30)], { number, numberSize: 4 }),
    ),
    NAME,
  ],
  [
    'a packet number of before a turn of its byte, late',
    [initial([piece(0, 50)], { number: 256 }), initial([piece(50)], { number: 255, numberSize: 1 })],
    NAME,
  ],
  ['two Initials in one datagram', [datagram(small([piece(0, 50)]), small([piece(50)], { number: 1 }))], NAME],
  ['an Initial and 0-RTT in one datagram', [datagram(small([whole]), otherPacket('0-rtt'))], NAME],
  ['an Initial of version 2 and 0-RTT', [datagram(small([whole], { version: 2 }), otherPacket('0-rtt', 2))], NAME],
  ['an Initial and filling', [datagram(small([whole]), new Uint8Array(900))], NAME],
  ['an Initial and a short header', [datagram(small([whole]), vectors.SHORT_HEADER)], NAME],

  ['an empty datagram', [u8s()], 'not-quic'],
  ['a DNS query', [u8s(0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0x61, 0, 0, 1, 0, 1)], 'not-quic'],
  ['a DTLS hello', [u8s(22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0)], 'not-quic'],
  ['a long header cut in its version', [u8s(0xc0, 0, 0, 0)], 'not-quic'],
  [
    'a long header without the fixed bit',
    [header(0x80, V1, list8(CLIENT_ID), list8(), varint(0), varint(100))],
    'not-quic',
  ],
  ['a packet with a short header (RFC 9001 A.5)', [vectors.SHORT_HEADER], 'short-header'],
  ['version negotiation', [header(0xc0, bytesOfU32(0), list8(CLIENT_ID), list8())], 'version-negotiation'],
  ['a draft of version 1', [header(0xc0, bytesOfU32(0xff00001d), list8(CLIENT_ID))], 'unknown-version'],
  [
    'a version that is there to be unknown',
    [header(0xc0, bytesOfU32(0x1a2a3a4a), list8(CLIENT_ID))],
    'unknown-version',
  ],
  ['Google’s QUIC', [header(0xc3, ascii('Q050'), list8(CLIENT_ID))], 'unknown-version'],
  ['a destination of 7 bytes', [initial([whole], { destination: new Uint8Array(7) })], 'bad-connection-id'],
  ['a destination of 21 bytes', [initial([whole], { destination: new Uint8Array(21) })], 'bad-connection-id'],
  ['a source of 21 bytes', [initial([whole], { source: new Uint8Array(21) })], 'bad-connection-id'],
  ['a token of 1,025 bytes', [initial([whole], { token: new Uint8Array(1025), padTo: 1500 })], 'token-too-long'],
  [
    'a token of 2^62 - 1 bytes',
    [header(0xc0, V1, list8(CLIENT_ID), list8(), u8s(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))],
    'token-too-long',
  ],
  ['a length past the datagram', [initial([whole]).subarray(0, 1199)], 'bad-packet-length'],
  [
    'a length too short for a sample',
    [header(0xc0, V1, list8(CLIENT_ID), list8(), varint(0), varint(19))],
    'bad-packet-length',
  ],
  ['a header cut in its destination', [join([u8s(0xc0), V1, u8s(8, 1, 2)])], 'bad-packet-length'],
  [
    'a datagram that ends in its token',
    [join([u8s(0xc0), V1, list8(CLIENT_ID), list8(), varint(100), u8s(1, 2)])],
    'bad-packet-length',
  ],
  ['a Retry cut in its source', [join([u8s(0xf0), V1, list8(), u8s(8, 1)])], 'bad-packet-length'],
  ['a second packet cut short', [datagram(small([piece(0, 50)]), u8s(0xc0, 0, 0, 0, 1, 8))], 'bad-packet-length'],
  ['a changed bit in the content', [changed(600)], 'undecryptable'],
  ['a changed bit in the tag', [changed(-1)], 'undecryptable'],
  ['a changed bit in the packet number', [changed(19)], 'undecryptable'],
  ['a changed reserved bit in the header', [changed(0)], 'undecryptable'],
  ['a packet under the server’s keys', [initial([whole], { side: 'server' })], 'undecryptable'],
  ['a packet under keys of another connection', [initial([whole], { keyId: ascii('another!') })], 'undecryptable'],
  ['reserved bits', [initial([whole], { reserved: 1 })], 'bad-reserved-bits'],
  ['a datagram of 1,199 bytes', [initial([whole], { padTo: 1199 })], 'short-datagram'],
  [
    'a second datagram of 1,199 bytes',
    [initial([piece(0, 50)]), initial([piece(50)], { padTo: 1199, number: 1 })],
    'short-datagram',
  ],
  ['the 17th datagram', Array.from({ length: 17 }, (_, number) => initial([PING], { number })), 'too-many-datagrams'],
  [
    'more than 32 KiB of datagrams',
    Array.from({ length: 4 }, (_, number) => initial([PING], { number, padTo: 9000 })),
    'too-many-bytes',
  ],
  ['513 frames', [initial(Array.from({ length: 257 }, () => join([PING, PADDING, PADDING])))], 'too-many-frames'],
  [
    'another destination before the hello is whole',
    [initial([piece(0, 50)]), initial([piece(50)], { destination: ascii('serverid'), keyId: CLIENT_ID, number: 1 })],
    'several-connections',
  ],
  [
    'another version before the hello is whole',
    [initial([piece(0, 50)]), initial([piece(50)], { version: 2, number: 1 })],
    'several-connections',
  ],
  [
    'two connections in one datagram',
    [datagram(small([whole]), small([whole], { destination: ascii('serverid') }))],
    'several-connections',
  ],
  [
    '0-RTT of another connection in the datagram',
    [datagram(small([whole]), otherPacket('0-rtt', 1, ascii('serverid')))],
    'several-connections',
  ],
  ['0-RTT first', [join([otherPacket('0-rtt'), new Uint8Array(1200)])], 'early-data-first'],
  [
    '0-RTT in the midst of a hello',
    [datagram(small([piece(0, 50)]), otherPacket('0-rtt'), small([piece(50)], { number: 1 }))],
    'early-data-first',
  ],
  ['a Handshake packet', [join([otherPacket('handshake'), new Uint8Array(1200)])], 'not-initial'],
  ['a Handshake packet after the hello', [datagram(small([whole]), otherPacket('handshake'))], 'not-initial'],
  ['a Handshake packet of version 2', [join([otherPacket('handshake', 2), new Uint8Array(1200)])], 'not-initial'],
  ['a Retry (RFC 9001 A.4)', [vectors.RETRY_1], 'not-initial'],
  ['a Retry (RFC 9369 A.4)', [vectors.RETRY_2], 'not-initial'],
  ['a frame of streams', [initial([u8s(8, 0, 0), whole])], 'bad-frame'],
  ['a type of frame in more bytes than need be', [initial([u8s(0x40, 0x06), whole.subarray(1)])], 'bad-frame'],
  ['a CRYPTO frame past the packet', [initial([join([u8s(6), varint(0), varint(2000), hello])])], 'bad-frame'],
  [
    'an ACK of more ranges than it has',
    [initial([join([u8s(2), varint(9), varint(0), varint(2 ** 40), varint(0)])])],
    'bad-frame',
  ],
  ['an ACK that ends early', [initial([join([new Uint8Array(1180), u8s(2, 0x40)])])], 'bad-frame'],
  [
    'a CRYPTO frame that ends one byte past the packet',
    [initial([join([new Uint8Array(1100), u8s(6), varint(0), varint(hello.length + 1), hello])])],
    'bad-frame',
  ],
  ['no frame', [datagram(small([], { numberSize: 4 }))], 'bad-frame'],
  ['a close', [initial([u8s(0x1c, 0, 0, 0)])], 'closed'],
  ['a close after the hello in its packet', [initial([whole, u8s(0x1c, 0, 0, 0)])], 'closed'],
  ['CRYPTO past the bound', [initial([cryptoFrame(16_388 - 9, new Uint8Array(10))])], 'crypto-too-long'],
  [
    'CRYPTO at 2^62',
    [initial([join([u8s(6), u8s(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), list8(u8s(1))])])],
    'crypto-too-long',
  ],
  ['CRYPTO up to the bound', [initial([cryptoFrame(16_388 - 10, new Uint8Array(10))])], 'more'],
  [
    'other bytes in a place that has some',
    [initial([piece(50), cryptoFrame(60, u8s(0xee, 0xee, 0xee))])],
    'conflicting-overlap',
  ],
  [
    'another first byte, later',
    [initial([piece(0, 50)]), initial([cryptoFrame(0, u8s(2))], { number: 1 })],
    'conflicting-overlap',
  ],
  [
    'one other byte at the end of a bridge',
    [initial([piece(0, 20), piece(40, 60), cryptoFrame(20, join([hello.subarray(20, 40), u8s(0xee)]))])],
    'conflicting-overlap',
  ],
  [
    'another name in the same datagram',
    [datagram(small([pqPiece(0, 1200)]), small([cryptoFrame(1100, new Uint8Array(200).fill(9))], { number: 1 }))],
    'conflicting-overlap',
  ],
  ['a message after the hello', [initial([cryptoFrame(0, join([hello, u8s(1)]))])], 'bytes-after-hello'],
  [
    'bytes behind a gap after the hello',
    [initial([cryptoFrame(hello.length + 10, u8s(1)), whole])],
    'bytes-after-hello',
  ],
  ['another message', [initial([cryptoFrame(0, message(20, new Uint8Array(32)))])], 'not-client-hello'],
  [
    'a hello with an address as name',
    [initial([cryptoFrame(0, helloMessage({ extensions: [serverName('192.0.2.1')] }))])],
    'address-as-name',
  ],
];

t.test('flows', async (t) => {
  for (const [what, datagrams, expected] of flows) {
    t.equal(outcome(datagrams), expected, what);
    t.equal(outcome(datagrams.map((datagram) => Buffer.from(datagram))), expected, `${what}, as Buffers`);
  }
  const here = new Set(flows.map(([, , expected]) => expected));
  // The reasons of a hello have their rows in tls.test.ts.
  const ofHello = new Set<string>([
    'name-too-long',
    'bad-name',
    'hello-too-long',
    'bad-version',
    'bad-length',
    'too-many-extensions',
    'duplicate-extension',
    'bad-name-type',
    'several-names',
    'too-many-protocols',
    // Of a second one: inspect-datagrams.test.ts.
    'other-second-hello',
  ]);
  const missing = (Object.keys(quicReasons) as QuicReason[]).filter(
    (reason) => !here.has(reason) && !ofHello.has(reason),
  );
  t.same(missing, [], 'a row for each reason');
});

t.test('an answer stays', async (t) => {
  const reader = new QuicHelloReader();
  const keys = new QuicKeyCache();
  const first = reader.take(initial([whole]), keys);
  t.equal(reader.take(new Uint8Array(1200), keys), first);
  const refused = new QuicHelloReader();
  const reason = refused.take(new Uint8Array(1200), keys);
  t.match(reason, { state: 'refused' });
  t.equal(refused.take(initial([whole]), keys), reason);
});

t.test('a buffer of datagrams that is used again', async (t) => {
  const reader = new QuicHelloReader();
  const buffer = new Uint8Array(1200);
  const said = [initial([pqPiece(0, 1000)]), initial([pqPiece(1000)], { number: 1 })].map((datagram) => {
    buffer.set(datagram);
    const answer = reader.take(buffer, new QuicKeyCache());
    buffer.fill(0xff);
    return answer;
  });
  t.match(said, [{ state: 'more' }, { state: 'read', value: { connectionId: CLIENT_ID } }]);
});

t.test('bounds are the caller’s', async (t) => {
  const limits: QuicLimits = {
    ...quicLimits,
    datagrams: 2,
    bytes: 3000,
    frames: 4,
    tokenBytes: 3,
    helloBytes: hello.length - 4,
  };
  const rows: [string, Uint8Array[], string][] = [
    ['a hello of the longest size', [initial([whole])], NAME],
    ['a longer one', [initial([pqPiece(0, 1000)])], 'crypto-too-long'],
    ['one that says it is longer', [initial([cryptoFrame(0, u8s(1, 0, 1, 0xff))])], 'hello-too-long'],
    ['two datagrams', [initial([piece(0, 50)]), initial([piece(50)], { number: 1 })], NAME],
    [
      'three datagrams',
      [initial([PING]), initial([PING], { number: 1 }), initial([whole], { number: 2 })],
      'too-many-datagrams',
    ],
    ['3,000 bytes', [initial([whole], { padTo: 3000 })], NAME],
    ['3,001 bytes', [initial([whole], { padTo: 3001 })], 'too-many-bytes'],
    ['four frames, the last of them padding', [initial([PING, PING, whole])], NAME],
    ['five frames', [initial([PING, PING, PING, whole])], 'too-many-frames'],
    ['a token of three bytes', [initial([whole], { token: u8s(1, 2, 3) })], NAME],
    ['a token of four bytes', [initial([whole], { token: u8s(1, 2, 3, 4) })], 'token-too-long'],
  ];
  for (const [what, datagrams, expected] of rows) t.equal(outcome(datagrams, limits), expected, what);
});

t.test('the cache of keys', async (t) => {
  const keys = new QuicKeyCache(2);
  const [a, b, c] = ['aaaaaaaa', 'bbbbbbbb', 'cccccccc'].map(ascii) as [Uint8Array, Uint8Array, Uint8Array];
  const first = keys.get(1, a);
  t.equal(keys.get(1, Uint8Array.from(a)), first, 'asked again: the same');
  t.not(keys.get(2, a), first, 'of another version: others');
  t.equal(keys.get(1, a), first);
  keys.get(1, b);
  t.equal(keys.size, 2, 'no more than it may hold');
  t.equal(keys.get(1, a), first, 'the longest unused went first');
  keys.get(1, b);
  keys.get(1, c);
  t.not(keys.get(1, a), first, 'and is derived anew');
  t.ok(keys.size <= 2);
  const shared = new QuicKeyCache(1);
  const flowsAtOnce = [a, b].map((destination) => ({ destination, reader: new QuicHelloReader() }));
  for (const [from, to] of [
    [0, 50],
    [50, undefined],
  ] as const) {
    for (const { destination, reader } of flowsAtOnce) {
      const said = reader.take(initial([piece(from, to)], { destination, number: from }), shared);
      t.equal(said.state, from === 0 ? 'more' : 'read', 'flows that push each other out');
    }
  }
});
