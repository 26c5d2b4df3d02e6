/**
 * Fuzzing of all readers of bytes from outside: mutations of real messages, of which those that get an answer of a new
 * kind are mutated further (guided by behaviour, as coverage would). A reader never throws, answers in time, says the same of the
 * same bytes and leaves them as they are; of a stream, what it says of fewer bytes holds for more (wire/reading.ts); and all that it
 * keeps is bounded.
 *   SLUICE_FUZZ_SECONDS=60 node dist/test/property/parsers.test.js     so many seconds for each reader instead of CI's
 *   SLUICE_FUZZ_SEED=123 …                                             the same inputs again
 */
import { deepStrictEqual } from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { parseList } from '../../api/address-list.ts';
import { parseHostName } from '../../api/host-name.ts';
import { Datagram } from '../../gateway/inspect/datagram.ts';
import { defaultLimits, FIRST_OF_STREAM, FlowTable } from '../../gateway/inspect/flows.ts';
import { formatPairs, parsePeerMessage } from '../../gateway/names/frame.ts';
import { decodeFrame, encodeFrame } from '../../ha/replica-codec.ts';
import { packFlow, unpackFlow } from '../../ha/replica-record.ts';
import { ipv4Text, ipv6Text } from '../../wire/address-text.ts';
import { parseArp } from '../../wire/arp.ts';
import { ConntrackReader, decodeConntrack } from '../../wire/conntrack.ts';
import { DnsQueryReader } from '../../wire/dns.ts';
import { DnsAnswerReader } from '../../wire/dns-answer.ts';
import { parseFrame } from '../../wire/ethernet.ts';
import { protocols, recognise } from '../../wire/greeting.ts';
import { readRequestHead } from '../../wire/http1.ts';
import { RequestBody } from '../../wire/http1-body.ts';
import { readHttp2Preface } from '../../wire/http2.ts';
import { buildTcp, buildUdp, parsePacket, TCP_ACK, TCP_PSH, TCP_SYN } from '../../wire/ip.ts';
import { parseNeighbourAdvertisement, unsolicitedAdvertisement } from '../../wire/ndp.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import { decodeNfqueue, PacketReader, QueuePacket } from '../../wire/nfqueue.ts';
import { QuicHelloReader } from '../../wire/quic.ts';
import { QuicKeyCache } from '../../wire/quic-keys.ts';
import { readClientHello, readServerTls } from '../../wire/tls.ts';
import { buildAdvertFrame, parseAdvert, parseAdvertFrame } from '../../wire/vrrp.ts';
import { CHROMIUM_QUIC, CHROMIUM_TLS, OPENSSL_EARLY_DATA, QUICHE } from '../unit/captures.ts';
import { CLIENT_INITIAL_1, SERVER_INITIAL_1 } from '../unit/quic-vectors.ts';

const SECONDS = Number(process.env.SLUICE_FUZZ_SECONDS ?? 0.4);
const SEED = Number(process.env.SLUICE_FUZZ_SEED ?? randomBytes(4).readUInt32LE());
/** What one answer may take, on a machine that does other things too. */
const SLOW_MS = 1_000;
const LONGEST = 16_384;
const KEPT_MAX = 24 * 1024 * 1024;

interface Subject {
  name: string;
  seeds: Uint8Array[];
  /** Plain data: it is compared. */
  answer(bytes: Uint8Array): unknown;
  /** It reads a stream from its first byte on, and answers as wire/reading.ts says. */
  stream?: true;
}

const ascii = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'latin1'));
const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));
const framed = (message: Uint8Array): Uint8Array => Uint8Array.of(message.length >> 8, message.length, ...message);

const query = hex(
  '1234 0100 0001 0000 0000 0001 03777777 07 6578616d706c65 03 6f7267 00 0001 0001 00 0029 04d0 0000 0000 0000',
);
const answer = hex(`1234 8180 0001 0002 0000 0000 03777777 07 6578616d706c65 03 6f7267 00 0001 0001
  c00c 0005 0001 0000003c 0006 03 63646e c010 c02d 0001 0001 0000003c 0004 c6336450`);
const ends4 = { source: '10.244.1.5', destination: '198.51.100.80', sourcePort: 40_000, destinationPort: 443 };
const ends6 = { ...ends4, source: 'fd00:244:1::5', destination: '2001:db8:100::80' };
const packets = [ends4, ends6].flatMap((ends) => [
  buildTcp({ ...ends, flags: TCP_SYN, sequence: 7, payload: new Uint8Array(0) }),
  buildTcp({
    ...ends,
    flags: TCP_ACK | TCP_PSH,
    sequence: 8,
    acknowledgement: 9,
    payload: CHROMIUM_TLS.subarray(0, 600),
  }),
  buildUdp({ ...ends, payload: query }),
]);
/** As the kernel sends them: nlmsghdr, nfgenmsg, attributes. */
const netlink = (type: number, attributes: Uint8Array): Uint8Array => {
  const message = new Uint8Array(20 + attributes.length);
  const view = new DataView(message.buffer);
  view.setUint32(0, message.length, true);
  view.setUint16(4, type, true);
  message.set([2, 0, 0x1e, 0x6a], 16);
  message.set(attributes, 20);
  return message;
};
const attribute = (type: number, value: Uint8Array): Uint8Array => {
  const padded = new Uint8Array(4 + ((value.length + 3) & ~3));
  const view = new DataView(padded.buffer);
  view.setUint16(0, 4 + value.length, true);
  view.setUint16(2, type, true);
  padded.set(value, 4);
  return padded;
};
const join = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
const tuple = (type: number, from: string, to: string): Uint8Array =>
  attribute(
    0x8000 | type,
    join(
      attribute(0x8001, join(attribute(1, hex(from)), attribute(2, hex(to)))),
      attribute(0x8002, join(attribute(1, hex('06')), attribute(2, hex('9c40')), attribute(3, hex('01bb')))),
    ),
  );
const tracked = netlink(
  0x0100,
  join(
    tuple(1, '0af40105', 'c6336450'),
    tuple(2, 'c6336450', 'cb007165'),
    attribute(8, hex('80000100')),
    attribute(12, hex('00000007')),
    attribute(
      0x8004,
      attribute(0x8001, join(attribute(1, hex('03')), attribute(2, hex('07')), attribute(4, hex('2b00')))),
    ),
  ),
);
const replicated = [ends4, ends6].flatMap((original, at) => {
  const address = at === 0 ? '203.0.113.7' : '2001:db8:113::7';
  const flow = { protocol: 6, original, source: { address, port: 1024 }, mark: 0x80000100, status: 0, zone: 0 };
  const packed = [packFlow(flow), packFlow({ ...flow, protocol: 17, zone: 3 })];
  return packed.flatMap((one) => (one === undefined ? [] : [{ op: 'put' as const, ...one }]));
});
const batch = { shard: 'main/0', epoch: 1.7e12, sync: 1, seq: 2, begins: true, ends: false, records: replicated };
const queuedPacket = netlink(
  0x0300,
  join(
    attribute(1, hex('00000007080003')),
    attribute(3, hex('00000100')),
    attribute(10, packets[1] ?? new Uint8Array(0)),
  ),
);
const logged = netlink(
  0x0400,
  join(attribute(1, hex('08000300')), attribute(10, ascii('rule\0')), attribute(9, packets[2] ?? new Uint8Array(0))),
);

const request = ascii(
  'POST http://api.example.test/a%2fb?x=1 HTTP/1.1\r\nHost: api.example.test\r\nTransfer-Encoding: chunked\r\nContent-Type: a/b\r\n\r\n',
);
const upgrade = ascii(
  'GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\n',
);
const body = ascii('5;x="y"\r\nhello\r\n0\r\nTrailer: one\r\n\r\nGET / HTTP/1.1\r\n');

const greetings: Record<keyof typeof protocols, Uint8Array[]> = {
  ssh: [ascii('SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n'), ascii('hello\r\nSSH-1.99-x\n')],
  smtp: [ascii('220 mail.example ESMTP Postfix\r\n'), ascii('220-a\r\n220 b\r\n'), ascii('EHLO x\r\n')],
  imap: [ascii('* OK [CAPABILITY IMAP4rev1] ready\r\n'), ascii('a1 LOGIN x y\r\n')],
  pop3: [ascii('+OK POP3 ready <1.2@example>\r\n'), ascii('USER x\r\n')],
  mysql: [
    hex(
      '4a0000000a382e302e333600080000000102030405060708 00 ffff 21 0200 ffc3 15 00000000000000000000 0102030405060708090a0b0c 00 6d7973716c00',
    ),
  ],
  postgresql: [
    hex('00000008 04d2162f'),
    hex('00000017 00030000 75736572 00 61 00 00'),
    ascii('S'),
    hex('52 00000008 00000000'),
  ],
  redis: [ascii('*1\r\n$4\r\nPING\r\n'), ascii('PING\r\n')],
  mqtt: [hex('10 0e 0004 4d515454 04 02 003c 0002 6162'), hex('10 13 0004 4d515454 05 02 003c 00 0002 6162')],
  rdp: [hex('0300 0013 0e e0 0000 0000 00 01 0008 00 0b000000')],
};

const decidedOf = ({ state, length }: { state: string; length: number }): unknown => ({ state, length });

const subjects: Subject[] = [
  {
    name: 'TLS: what a client says first',
    seeds: [CHROMIUM_TLS, OPENSSL_EARLY_DATA],
    answer: readClientHello,
    stream: true,
  },
  {
    name: 'TLS: what a server says first',
    seeds: [hex(`1603030032 02 00002e 0303 ${'11'.repeat(32)} 00 1301 00 0006 002b 0002 0304`)],
    answer: readServerTls,
    stream: true,
  },
  {
    name: 'QUIC: datagrams of a client',
    seeds: [...CHROMIUM_QUIC, QUICHE, CLIENT_INITIAL_1, SERVER_INITIAL_1],
    answer: (bytes) => new QuicHelloReader().take(bytes, new QuicKeyCache()),
  },
  {
    name: 'HTTP/1: head of a request',
    seeds: [request, upgrade],
    answer: (bytes) => readRequestHead(bytes),
    stream: true,
  },
  {
    name: 'HTTP/1: a body',
    seeds: [body],
    answer: (bytes) => {
      const head = readRequestHead(request);
      if (head.state !== 'read') throw new TypeError('no head');
      const reader = new RequestBody(head.value);
      return decidedOf({ length: reader.take(bytes), state: reader.state });
    },
  },
  {
    name: 'HTTP/2: preface',
    seeds: [ascii('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0d')],
    answer: readHttp2Preface,
    stream: true,
  },
  ...Object.entries(protocols).flatMap(([name, of]): Subject[] => {
    const seeds = greetings[name as keyof typeof protocols];
    const one = (side: string, answer: Subject['answer']): Subject => ({
      name: `${of.title}: ${side}`,
      seeds,
      answer,
      stream: true,
    });
    return 'server' in of ? [one('client', of.client), one('server', of.server)] : [one('client', of.client)];
  }),
  {
    name: 'greetings: which protocol it is',
    seeds: Object.values(greetings).flat(),
    answer: (bytes) => [recognise('client', bytes), recognise('server', bytes)],
  },
  { name: 'DNS: a question', seeds: [query], answer: (bytes) => structuredClone(new DnsQueryReader().datagram(bytes)) },
  {
    name: 'DNS: a question in a stream',
    seeds: [framed(query)],
    answer: (bytes) => structuredClone(new DnsQueryReader().stream(bytes)),
    stream: true,
  },
  { name: 'DNS: an answer', seeds: [answer], answer: (bytes) => new DnsAnswerReader().datagram(bytes) },
  {
    name: 'DNS: an answer in a stream',
    seeds: [framed(answer)],
    answer: (bytes) => new DnsAnswerReader().stream(bytes),
    stream: true,
  },
  { name: 'IP: a packet', seeds: packets, answer: parsePacket },
  {
    name: 'IP: a datagram, in place',
    seeds: packets,
    answer: (bytes) => {
      const datagram = new Datagram();
      const fault = datagram.read(bytes, 0, bytes.length);
      return fault ?? { ...datagram };
    },
  },
  {
    name: 'TCP: segments of a connection',
    seeds: packets.filter((_, at) => at % 3 < 2),
    answer: (bytes) => {
      const table = new FlowTable(1, () => {}, { ...defaultLimits, flows: 16 });
      const half = bytes.length >> 1;
      return [
        table.take(bytes, 0, bytes.length, 1, 0, FIRST_OF_STREAM),
        table.take(bytes, 0, half, 2, 1),
        table.take(bytes, 0, bytes.length, 3, 2),
        table.size,
      ];
    },
  },
  {
    name: 'Ethernet, ARP, neighbour advertisements',
    seeds: [
      unsolicitedAdvertisement('02:00:00:00:00:01', 'fd00::1'),
      hex('ffffffffffff020000000001 0806 0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000001'),
    ],
    answer: (bytes) => [parseFrame(bytes), parseArp(bytes), parseNeighbourAdvertisement(bytes)],
  },
  {
    name: 'VRRP: advertisements',
    seeds: [
      { family: 4, source: '10.0.0.31', addresses: ['10.0.0.64', '10.0.0.65'] } as const,
      { family: 6, source: 'fe80::31', addresses: ['fe80::64', 'fd00:10::64'] } as const,
    ].map(({ addresses, ...of }) =>
      buildAdvertFrame('02:00:00:00:00:01', { ...of, addresses: [...addresses], vrid: 51, priority: 200, interval: 4 }),
    ),
    answer: (bytes) => [parseAdvertFrame(bytes), parseAdvert(bytes.subarray(14))],
  },
  { name: 'nfnetlink: events of connections', seeds: [tracked], answer: decodeConntrack },
  {
    name: 'nfnetlink: what is kept of a protocol',
    seeds: [tracked],
    answer: (bytes) => {
      const reader = new ConntrackReader((of, at, family) => (family === 4 ? ipv4Text : ipv6Text)(of, at));
      return reader.read(bytes) ?? reader.tracking();
    },
  },
  {
    name: 'flows: what another gateway says',
    seeds: [
      { type: 'batch' as const, batch },
      { type: 'hello' as const, version: 1, name: 'gw-b' },
      { type: 'ack' as const, place: batch },
    ].map((frame) => encodeFrame(frame).subarray(4)),
    answer: (bytes) => {
      const frame = decodeFrame(bytes);
      if (!frame.ok) return frame;
      // There is one way only to say each thing.
      deepStrictEqual(Buffer.from(encodeFrame(frame.value).subarray(4)), Buffer.from(bytes));
      if (frame.value.type !== 'batch') return frame;
      return frame.value.batch.records.map((record) =>
        record.op === 'put' ? unpackFlow(record.key, record.body) : record,
      );
    },
  },
  { name: 'nfnetlink: logged packets', seeds: [logged], answer: decodeNflog },
  {
    name: 'nfnetlink: queued packets',
    seeds: [queuedPacket],
    answer: (bytes) => {
      const packet = new QueuePacket();
      const fault = new PacketReader().read(bytes, 0, bytes.length, packet);
      const { id, mark, start, end } = packet;
      return [decodeNfqueue(bytes), fault ?? { id, mark, start, end }];
    },
  },
  {
    name: 'names: what another gateway says',
    seeds: [
      ascii(formatPairs(3, [{ name: 'a.example', address: '198.51.100.7', until: 60_000 }], 0)),
      ascii('{"type":"hello","version":1,"name":"gw-b"}'),
    ],
    answer: (bytes) => parsePeerMessage(Buffer.from(bytes).toString(), 0),
  },
  {
    name: 'names of hosts',
    seeds: [ascii('api.Example.test.'), ascii('xn--mnchen-3ya.example')],
    answer: (bytes) => parseHostName(Buffer.from(bytes).toString()),
  },
  {
    name: 'lists of addresses',
    seeds: [
      ascii('198.51.100.0/24\n# x\n2001:db8::/32\n'),
      ascii('{"prefixes":[{"ip_prefix":"198.51.100.0/24"}]}'),
      ascii('["10.0.0.1","10.0.0.2-10.0.0.9"]'),
    ],
    answer: (bytes) => [
      parseList(Buffer.from(bytes).toString(), 'Text', { quote: true }),
      parseList(Buffer.from(bytes).toString(), 'JSON', { quote: true }),
    ],
  },
];

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

/** Lengths and characters at which readers change their mind. */
const ODD = [0, 1, 2, 4, 7, 9, 10, 13, 22, 32, 37, 46, 58, 63, 64, 127, 128, 191, 192, 254, 255];

function mutated(bytes: Uint8Array, other: Uint8Array, below: (limit: number) => number): Uint8Array {
  let made: Uint8Array = bytes.slice();
  for (let times = 1 + below(4); times > 0; times--) {
    const at = below(made.length + 1);
    const length = 1 + below(Math.min(64, made.length - at + 1));
    switch (below(8)) {
      case 0:
        if (at < made.length) made[at]! ^= 1 << below(8);
        break;
      case 1:
        if (at < made.length) made[at] = ODD[below(ODD.length)] ?? 0;
        break;
      case 2:
        if (at < made.length) made[at]! += below(2) === 0 ? 1 : -1;
        break;
      case 3:
        made = join(made.subarray(0, at), made.subarray(at + length));
        break;
      case 4:
        made = join(made.subarray(0, at), made.subarray(at, at + length), made.subarray(at));
        break;
      case 5:
        made = join(
          made.subarray(0, at),
          Uint8Array.from({ length }, () => below(256)),
          made.subarray(at),
        );
        break;
      case 6: {
        const from = below(other.length + 1);
        made = join(made.subarray(0, at), other.subarray(from, from + length), made.subarray(at + length));
        break;
      }
      default:
        made = made.slice(0, below(2) === 0 ? at : made.length);
    }
  }
  return made.length > LONGEST ? made.slice(0, LONGEST) : made;
}

/** What kind of answer it is: the same for all that differ only in what was said, not in how it was read. */
function kindOf(value: unknown, depth = 0): string {
  if (typeof value === 'string')
    return depth > 1 && /^[a-z0-9-]{1,40}$/.test(value) ? value : `s${Math.min(4, value.length)}`;
  if (typeof value === 'number') return `n${Math.min(9, 32 - Math.clz32(value))}`;
  if (Array.isArray(value))
    return `[${value
      .slice(0, 4)
      .map((one) => kindOf(one, depth + 1))
      .join()}]${Math.min(8, value.length)}`;
  if (ArrayBuffer.isView(value)) return `b${Math.min(9, 32 - Math.clz32(value.byteLength))}`;
  if (typeof value !== 'object' || value === null) return String(value);
  return `{${Object.entries(value)
    .map(([key, one]) => `${key}:${kindOf(one, depth + 2)}`)
    .join()}}`;
}

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
const heap = (): number => {
  collect();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
};

const stateOf = (value: unknown): unknown => (value as { state?: unknown }).state;

t.setTimeout(60_000 + subjects.length * SECONDS * 2_000);
t.comment(`seed ${SEED}`);
for (const { name, seeds, answer, stream } of subjects) {
  t.test(name, { timeout: 60_000 + SECONDS * 2_000 }, async (t) => {
    const below = numbers(SEED);
    const corpus = seeds.map((bytes) => bytes.slice());
    const kinds = new Set<string>();
    const said = new Map<unknown, number>();
    let [count, slowest, kept] = [0, 0, 0];
    const before = heap();
    const end = performance.now() + SECONDS * 1_000;
    const pick = (): Uint8Array => corpus[below(corpus.length)] ?? new Uint8Array(0);
    while (count < seeds.length || performance.now() < end) {
      const bytes = count < seeds.length ? (seeds[count] as Uint8Array).slice() : mutated(pick(), pick(), below);
      count++;
      const copy = bytes.slice();
      const told = (): string => `seed ${SEED}, input ${count}: ${Buffer.from(copy).toString('hex')}`;
      try {
        const began = performance.now();
        const first = answer(bytes);
        let took = performance.now() - began;
        // A busy machine may not let us run for that long; bytes that are slow to read are so each time.
        for (let again = 0; took >= SLOW_MS && again < 3; again++) {
          const since = performance.now();
          answer(copy.slice());
          took = Math.min(took, performance.now() - since);
        }
        slowest = Math.max(slowest, took);
        deepStrictEqual(bytes, copy, 'the bytes are left as they are');
        deepStrictEqual(answer(copy.slice()), first, 'the same of the same bytes');
        if (stream) {
          const part = answer(copy.slice(0, below(copy.length + 1)));
          // Beyond what was read nothing counts.
          if (stateOf(part) !== 'more') deepStrictEqual(part, first, 'what was said of fewer bytes holds for more');
        }
        said.set(stateOf(first ?? {}), (said.get(stateOf(first ?? {})) ?? 0) + 1);
        const kind = kindOf(first);
        if (!kinds.has(kind) && kinds.size < 4_000) {
          kinds.add(kind);
          if (count > seeds.length && kept < 4 * 1024 * 1024) {
            corpus.push(copy);
            kept += copy.length;
          }
        }
      } catch (error) {
        t.fail(`${(error as Error).message}; ${told()}`);
        return;
      }
    }
    t.ok(slowest < SLOW_MS, `no answer took longer than ${slowest.toFixed(1)} ms`);
    const grown = heap() - before - kept;
    t.ok(grown < KEPT_MAX, `kept ${Math.round(grown / 1024)} KiB after ${count} inputs`);
    t.ok(
      kinds.size >= 2,
      `${count} inputs got ${kinds.size} kinds of answers; ${[...said].map(([state, times]) => `${state} ${times}`).join(', ')}`,
    );
    t.comment(`${name}: ${count} inputs, ${kinds.size} kinds of answers, slowest ${slowest.toFixed(1)} ms`);
  });
}
