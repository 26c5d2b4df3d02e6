/**
 * Streams put together from held packets: every row is a story of packets, with what becomes of each, told over IPv4 and
 * over IPv6. Then each bound, and the table of flows. Stories end with the bytes that the reader has, and the ids that are
 * held for its verdict.
 */
import t from 'tap';
import {
  BAD_CHECKSUM,
  defaultLimits,
  FIRST_OF_STREAM,
  type Flow,
  type FlowLimits,
  FlowTable,
} from '../../gateway/inspect/flows.ts';
import { TCP_URG } from '../../gateway/inspect/segment.ts';
import { type AssemblyReason, assemblyReasons } from '../../gateway/inspect/stream.ts';
import { buildIp, buildTcp, buildUdp, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN } from '../../wire/ip.ts';

const families = {
  v4: { source: '10.244.1.7', destination: '198.51.100.80' },
  v6: { source: 'fd00:244:1::7', destination: '2001:db8:100::80' },
};
type Ends = (typeof families)['v4'];

/** Near where numbers begin anew, and where signed ones do, so that every story but the shortest goes over it. */
const numbers = { 4: 0xfffffffd, 6: 0x7ffffffd };

interface Sent {
  /** Place of the first byte in the stream. */
  at?: number;
  payload?: string;
  flags?: number;
  notes?: number;
  port?: number;
  isn?: number;
}

const text = (value: string): Uint8Array => Buffer.from(value, 'latin1');

const isnOf = ({ source }: Ends): number => numbers[source.includes(':') ? 6 : 4];

function packetOf(
  ends: Ends,
  { at = 0, payload = '', flags = TCP_ACK, port = 40_000, isn = isnOf(ends) }: Sent,
): Uint8Array {
  const sequence = (isn + 1 + at - ((flags & TCP_SYN) !== 0 ? 1 : 0)) >>> 0;
  return buildTcp({ ...ends, sourcePort: port, destinationPort: 443, flags, sequence, payload: text(payload) });
}

const syn = (payload = ''): Sent => ({ flags: TCP_SYN, payload });
const data = (at: number, payload: string, more: Sent = {}): Sent => ({
  at,
  payload,
  flags: TCP_ACK | TCP_PSH,
  ...more,
});
/** What the kernel marks as the beginning. */
const first = (payload: string, more: Sent = {}): Sent => data(0, payload, { notes: FIRST_OF_STREAM, ...more });
const fin = (at: number, payload = ''): Sent => ({ at, payload, flags: TCP_ACK | TCP_FIN });
const ack = (at: number): Sent => ({ at });

/** Reasons that were met. */
const told = new Set<string>();

class Player {
  readonly lost: string[] = [];
  readonly table: FlowTable<string>;
  now = 1000;
  private id = 0;
  private readonly ends: Ends;

  constructor(ends: Ends, limits: Partial<FlowLimits> = {}) {
    this.ends = ends;
    const lost = (flow: Flow<string>, reason: AssemblyReason): void => {
      told.add(reason);
      this.lost.push(`${flow.context ?? '?'} ${reason} ${this.held(flow)}`);
    };
    this.table = new FlowTable<string>(42, lost, { ...defaultLimits, ...limits });
  }

  /** What became of it, with the reason if there is one. Ids count from one. */
  send(sent: Sent): string {
    return this.take(packetOf(this.ends, sent), sent.notes);
  }

  /** The packet lies in the middle of others, as in a buffer of a batch. */
  take(packet: Uint8Array, notes = 0): string {
    const buffer = new Uint8Array(packet.length + 100).fill(0x5a);
    buffer.set(packet, 37);
    const outcome = this.table.take(buffer, 37, 37 + packet.length, ++this.id, this.now, notes);
    buffer.fill(0);
    if (outcome !== 'drop' && outcome !== 'refused') return outcome;
    told.add(String(this.table.reason));
    return `${outcome} ${this.table.reason}`;
  }

  held(flow = this.table.flow): string {
    return flow === undefined ? '' : flow.held.subarray(0, flow.heldCount).join(' ');
  }

  get stream(): string {
    const flow = this.table.flow;
    return flow === undefined ? '' : Buffer.from(flow.view()).toString('latin1');
  }
}

type Story = [
  what: string,
  steps: [sent: Sent, becomes: string][],
  ends: { stream?: string; held?: string; exhausted?: string },
];
const stories: Story[] = [
  ['one segment that the kernel marks as the first', [[first('hello'), 'ready']], { stream: 'hello', held: '1' }],
  [
    'a handshake, and two segments in order',
    [
      [syn(), 'pass'],
      [ack(0), 'pass'],
      [data(0, 'hello '), 'ready'],
      [data(6, 'world'), 'ready'],
    ],
    { stream: 'hello world', held: '3 4' },
  ],
  [
    'segments in the worst order',
    [
      [syn(), 'pass'],
      [data(8, 'rld'), 'held'],
      [data(4, 'o wo'), 'held'],
      [data(2, 'll'), 'held'],
      [data(0, 'he'), 'ready'],
    ],
    { stream: 'hello world', held: '2 3 4 5' },
  ],
  [
    'a later segment that comes before the first is known waits to be sent again',
    [
      [data(5, ' world'), 'drop no-start'],
      [first('hello'), 'ready'],
      [data(5, ' world'), 'ready'],
    ],
    { stream: 'hello world', held: '2 3' },
  ],
  [
    'a second segment cannot pose as the first: what is before it comes first',
    [
      [data(6, 'GET /allowed'), 'drop no-start'],
      [first('POST /'), 'ready'],
    ],
    { stream: 'POST /', held: '2' },
  ],
  [
    'a segment that comes twice is held once',
    [
      [first('hello'), 'ready'],
      [data(0, 'hello'), 'drop duplicate'],
      [data(1, 'ell'), 'drop duplicate'],
    ],
    { stream: 'hello', held: '1' },
  ],
  [
    'what is sent again with more behind it is held too',
    [
      [first('hello'), 'ready'],
      [data(0, 'hello world'), 'ready'],
    ],
    { stream: 'hello world', held: '1 2' },
  ],
  [
    'an overlap with the same bytes on both sides of a gap closes it',
    [
      [first('hel'), 'ready'],
      [data(6, 'world'), 'held'],
      [data(2, 'llo wo'), 'ready'],
    ],
    { stream: 'hello world', held: '1 2 3' },
  ],
  [
    'a segment over several pieces takes them in',
    [
      [syn(), 'pass'],
      [data(2, 'l'), 'held'],
      [data(4, 'o'), 'held'],
      [data(8, 'r'), 'held'],
      [data(1, 'ello wo'), 'held'],
      [data(0, 'h'), 'ready'],
    ],
    { stream: 'hello wor', held: '2 3 4 5 6' },
  ],
  [
    'an overlap in order with another byte ends the flow, and it stays ended',
    [
      [first('hello'), 'ready'],
      [data(4, 'a world'), 'refused overlap'],
      [data(5, ' world'), 'refused overlap'],
    ],
    { held: '1' },
  ],
  [
    'an overlap out of order with another byte ends the flow',
    [
      [syn(), 'pass'],
      [data(6, 'world'), 'held'],
      [data(4, 'o wa'), 'refused overlap'],
    ],
    { held: '2' },
  ],
  [
    'what fills a gap with other bytes behind it ends the flow',
    [
      [first('he'), 'ready'],
      [data(5, ' world'), 'held'],
      [data(2, 'llo World'), 'refused overlap'],
    ],
    {},
  ],
  [
    'a segment with a wrong checksum teaches nothing',
    [
      [first('HELLO', { notes: FIRST_OF_STREAM | BAD_CHECKSUM }), 'drop bad-checksum'],
      [first('hello'), 'ready'],
    ],
    { stream: 'hello', held: '2' },
  ],
  [
    'fast open: what comes with the SYN is part of the stream, and held',
    [
      [syn('hello'), 'ready'],
      [syn(), 'pass'],
      [data(0, 'hello'), 'drop duplicate'],
      [data(5, ' world'), 'ready'],
    ],
    { stream: 'hello world', held: '1 4' },
  ],
  [
    'a SYN that comes again is let on, one with another number is not',
    [
      [syn(), 'pass'],
      [syn(), 'pass'],
      [data(0, 'a'), 'ready'],
      [{ ...syn(), isn: 77 }, 'refused start-conflict'],
    ],
    { held: '3' },
  ],
  [
    'a second beginning by the kernel is a conflict as well',
    [
      [syn(), 'pass'],
      [data(1, 'b', { notes: FIRST_OF_STREAM }), 'refused start-conflict'],
    ],
    {},
  ],
  [
    'a keep-alive before the first byte is let on, with a byte or none',
    [
      [syn(), 'pass'],
      [ack(-1), 'pass'],
      [data(-1, 'x'), 'pass'],
      [data(0, 'a'), 'ready'],
    ],
    { stream: 'a', held: '4' },
  ],
  [
    'bytes before the first are not: no sender has any',
    [
      [first('hello'), 'ready'],
      [data(-3, 'xxxhello'), 'drop before-start'],
      [data(-2, 'xx'), 'drop before-start'],
      [fin(-1, 'x'), 'drop before-start'],
    ],
    { stream: 'hello', held: '1' },
  ],
  [
    'a keep-alive with a byte of its own is dropped, the flow goes on',
    [
      [first('hello'), 'ready'],
      [data(4, 'X'), 'drop keep-alive'],
      [data(4, 'o'), 'drop duplicate'],
      [data(3, 'X'), 'refused overlap'],
    ],
    { held: '1' },
  ],
  [
    'a probe of a window that is closed is a byte like others',
    [
      [first('hello'), 'ready'],
      [data(5, ' '), 'ready'],
      [data(5, ' world'), 'ready'],
    ],
    { stream: 'hello world', held: '1 2 3' },
  ],
  [
    'the end with the last bytes',
    [
      [first('hello'), 'ready'],
      [fin(5, ' world'), 'ready'],
    ],
    { stream: 'hello world', held: '1 2', exhausted: 'ended' },
  ],
  [
    'the end alone, twice',
    [
      [first('hello'), 'ready'],
      [fin(5), 'ready'],
      [fin(5), 'drop duplicate'],
    ],
    { stream: 'hello', held: '1 2', exhausted: 'ended' },
  ],
  [
    'the end before the last bytes',
    [
      [first('hello'), 'ready'],
      [fin(11), 'held'],
      [data(5, ' world'), 'ready'],
    ],
    { stream: 'hello world', held: '1 2 3', exhausted: 'ended' },
  ],
  [
    'an end to what was sent before',
    [
      [first('hello'), 'ready'],
      [fin(0, 'hello'), 'ready'],
    ],
    { stream: 'hello', held: '1 2', exhausted: 'ended' },
  ],
  [
    'a client that says nothing and ends',
    [
      [syn(), 'pass'],
      [fin(0), 'ready'],
    ],
    { stream: '', held: '2', exhausted: 'ended' },
  ],
  [
    'bytes after the end',
    [
      [first('hello'), 'ready'],
      [fin(5), 'ready'],
      [data(5, ' world'), 'refused fin-conflict'],
    ],
    {},
  ],
  [
    'an end before bytes that have come',
    [
      [first('hello'), 'ready'],
      [fin(3), 'refused fin-conflict'],
    ],
    {},
  ],
  [
    'two ends',
    [
      [first('hello'), 'ready'],
      [fin(8), 'held'],
      [fin(7), 'refused fin-conflict'],
    ],
    {},
  ],
  [
    'a reset: what is held is given up, the reset itself goes on',
    [
      [first('hello'), 'ready'],
      [{ at: 5, flags: TCP_RST }, 'refused reset'],
    ],
    { held: '1' },
  ],
  ['a reset of nothing', [[{ at: 5, flags: TCP_RST | TCP_ACK }, 'pass']], {}],
  [
    'a reset with bytes',
    [
      [first('hello'), 'ready'],
      [{ at: 5, flags: TCP_RST, payload: 'gone' }, 'drop bad-flags'],
    ],
    {},
  ],
  [
    'urgent data, and the announcement of some',
    [
      [first('hello', { flags: TCP_ACK | TCP_URG }), 'refused urgent'],
      [data(5, ' '), 'refused urgent'],
    ],
    {},
  ],
  ['urgent data of no known flow', [[data(5, 'x', { flags: TCP_ACK | TCP_URG }), 'drop urgent']], {}],
  [
    'urgency without a byte counts too: the byte comes later',
    [
      [syn(), 'pass'],
      [{ at: 0, flags: TCP_ACK | TCP_URG }, 'refused urgent'],
    ],
    {},
  ],
  ['bytes without ACK', [[first('hello', { flags: TCP_PSH }), 'drop bad-flags']], {}],
  ['SYN and FIN', [[{ flags: TCP_SYN | TCP_FIN }, 'drop bad-flags']], {}],
  ['SYN and RST', [[{ flags: TCP_SYN | TCP_RST }, 'drop bad-flags']], {}],
  [
    'acknowledgements alone are let on at all times',
    [
      [ack(0), 'pass'],
      [first('hello'), 'ready'],
      [ack(5), 'pass'],
      [ack(4), 'pass'],
      [ack(90_000), 'pass'],
    ],
    { stream: 'hello', held: '2' },
  ],
  ['the end of a flow of which nothing is known', [[fin(0), 'drop no-start']], {}],
  [
    'two connections at once do not meet',
    [
      [first('hello'), 'ready'],
      [first('other', { port: 40_001, isn: 5 }), 'ready'],
      [data(5, ' world'), 'ready'],
    ],
    { stream: 'hello world', held: '1 3' },
  ],
];

for (const [family, ends] of Object.entries(families)) {
  t.test(`stories over IP${family}`, async (t) => {
    for (const [what, steps, end] of stories) {
      const player = new Player(ends);
      t.same(
        steps.map(([sent]) => player.send(sent)),
        steps.map(([, becomes]) => becomes),
        what,
      );
      if (end.stream !== undefined) t.equal(player.stream, end.stream, `${what}: the stream`);
      if (end.held !== undefined) t.equal(player.held(), end.held, `${what}: held`);
      if (end.exhausted === undefined) continue;
      t.equal(player.table.flow?.exhausted, end.exhausted, `${what}: no more`);
      told.add(end.exhausted);
    }
  });

  t.test(`bounds over IP${family}`, async (t) => {
    const bounds: [what: string, limits: Partial<FlowLimits>, steps: [sent: Sent, becomes: string][]][] = [
      [
        'packets',
        { packets: 3 },
        [
          [first('a'), 'ready'],
          [data(1, 'b'), 'ready'],
          [data(0, 'a'), 'drop duplicate'],
          [data(2, 'c'), 'ready'],
          [data(3, 'd'), 'refused packets'],
        ],
      ],
      [
        'pieces',
        { pieces: 2 },
        [
          [first('a'), 'ready'],
          [data(2, 'c'), 'held'],
          [data(4, 'e'), 'held'],
          [data(3, 'd'), 'held'],
          [data(6, 'g'), 'held'],
          [data(8, 'i'), 'refused pieces'],
        ],
      ],
      [
        'gap',
        { gap: 10 },
        [
          [first('a'), 'ready'],
          [data(12, 'x'), 'drop gap'],
          [data(0x7fff0000, 'x'), 'drop gap'],
          [data(-0x7fff0000, 'x'), 'drop before-start'],
          [data(11, 'x'), 'held'],
        ],
      ],
      [
        'bytes, of which the last packet may have more than are read',
        { bytes: 8 },
        [
          [first('hello'), 'ready'],
          [data(5, ' world'), 'ready'],
          [data(5, ' world'), 'drop duplicate'],
          [data(11, '!'), 'refused bytes'],
        ],
      ],
      [
        'bytes, out of order: what could not be compared is not held',
        { bytes: 8 },
        [
          [first('a'), 'ready'],
          [data(8, 'x'), 'drop gap'],
          [data(6, 'gHIJK'), 'held'],
          [data(6, 'gHXXX'), 'drop duplicate'],
          [data(1, 'bcdef'), 'ready'],
        ],
      ],
      [
        'the end just at the last byte that is read',
        { bytes: 5 },
        [
          [first('hello'), 'ready'],
          [fin(5), 'ready'],
        ],
      ],
    ];
    for (const [what, limits, steps] of bounds) {
      const player = new Player(ends, limits);
      t.same(
        steps.map(([sent]) => player.send(sent)),
        steps.map(([, becomes]) => becomes),
        what,
      );
    }
    const player = new Player(ends, { bytes: 8 });
    player.send(first('hello world'));
    t.equal(player.stream, 'hello wo');
    t.equal(player.table.flow?.exhausted, 'bytes', 'a reader that wants more gets no more');
    const large = new Player(ends, { bytes: 9000, gap: 9000 });
    large.send(first('a'.repeat(1000)));
    for (let at = 8000; at >= 1000; at -= 1000) large.send(data(at, 'b'.repeat(1000)));
    t.equal(large.stream, 'a'.repeat(1000) + 'b'.repeat(8000), 'a buffer that grows loses nothing');
  });
}

t.test('time: a flow is lost so long after its first byte, oldest first; one that said nothing waits', async (t) => {
  const player = new Player(families.v4, { time: 100 });
  player.send({ ...syn(), port: 1 });
  player.now = 1010;
  player.send(first('a', { port: 2 }));
  player.table.flow!.context = 'two';
  player.now = 1050;
  player.send(data(0, 'b', { port: 1 }));
  player.table.flow!.context = 'one';
  player.send({ ...syn(), port: 3 });
  player.now = 1060;
  player.send(data(1, 'c', { port: 2 }));
  player.table.expire(1109);
  t.same(player.lost, []);
  player.table.expire(1110);
  t.same(player.lost, ['two time 2 5'], 'with its packets; those that came later gave it no more time');
  player.table.expire(100_000);
  t.same(player.lost, ['two time 2 5', 'one time 3']);
  t.equal(player.table.size, 1, 'the silent one is there');
  t.equal(player.send(data(0, 'd', { port: 3 })), 'ready');
  t.equal(player.send(data(1, 'e', { port: 1 })), 'drop no-start', 'a lost one is unknown');
});

t.test('flows: decided ones give way, then the oldest that is not', async (t) => {
  const player = new Player(families.v4, { flows: 3 });
  for (const port of [1, 2, 3]) {
    player.now++;
    player.send(first('a', { port }));
    player.table.flow!.context = String(port);
    if (port === 2) player.table.decide(player.table.flow!, player.now);
  }
  player.send(first('a', { port: 4 }));
  t.same(player.lost, [], 'one was decided');
  player.now++;
  player.send({ ...syn(), port: 5 });
  t.same(player.lost, ['1 flows 1']);
  player.send(first('a', { port: 6 }));
  t.same(player.lost, ['1 flows 1', '3 flows 3']);
  t.equal(player.table.size, 3);
});

t.test('memory: the oldest flows make room for the bytes of others, never the one at hand', async (t) => {
  const player = new Player(families.v4, { memory: 3 * 2048 });
  for (const port of [1, 2, 3]) {
    player.send(first('a', { port }));
    player.table.flow!.context = String(port);
  }
  t.same(player.lost, []);
  t.equal(player.send(data(1, 'b'.repeat(2100), { port: 1 })), 'ready', 'it needs twice as much now');
  t.same(player.lost, ['2 memory 2']);
  t.equal(player.stream, `a${'b'.repeat(2100)}`);
  t.equal(player.send(data(2101, 'c'.repeat(3000), { port: 1 })), 'ready');
  t.same(player.lost, ['2 memory 2', '3 memory 3']);
  t.equal(player.table.size, 1);
});

t.test('a decided flow: what comes late goes back to the kernel, for a while and so often', async (t) => {
  const player = new Player(families.v4, { linger: 50, packets: 3 });
  player.send(first('hello'));
  const flow = player.table.flow!;
  player.table.decide(flow, player.now);
  t.equal(player.held(flow), '', 'nothing is held');
  t.equal(player.send(data(5, ' world')), 'decided');
  t.equal(player.send(fin(11)), 'decided');
  t.equal(player.send(first('HELLO')), 'decided', 'the same beginning, too: the kernel knows whether it is another');
  const isn = 77;
  t.equal(player.send(first('HELLO', { isn })), 'ready', 'another beginning is read again');
  t.equal(player.stream, 'HELLO');
  player.table.decide(player.table.flow!, player.now);
  t.same(
    [1, 2, 3, 4].map(() => player.send(data(5, ' world', { isn }))),
    ['decided', 'decided', 'decided', 'drop no-start'],
  );
  player.send(first('hello', { port: 7 }));
  player.table.decide(player.table.flow!, player.now);
  player.table.expire(player.now + 49);
  t.equal(player.send(data(5, 'x', { port: 7 })), 'decided');
  player.table.expire(player.now + 50);
  t.equal(player.send(data(5, 'x', { port: 7 })), 'drop no-start');
  t.same(player.lost, [], 'none of them was lost');
  t.equal(player.table.size, 0);
  player.table.decide(flow, player.now);
  player.table.forget(flow);
  t.equal(player.table.size, 0, 'what is not there cannot be decided');
});

t.test('a flow that is read for life: its packets are the caller’s, as long as it says something', async (t) => {
  const player = new Player(families.v4, { idle: 1_000, flows: 2 });
  player.send(first('hello'));
  const flow = player.table.flow!;
  flow.context = 'life';
  player.table.follow(flow, player.now);
  t.equal(player.held(flow), '');
  player.now += 900;
  t.equal(player.send(data(5, ' world')), 'followed');
  t.equal(player.table.flow, flow);
  t.equal(player.send(first('hello')), 'followed', 'its own beginning again');
  player.table.expire(player.now + 999);
  t.same(player.lost, []);
  t.equal(player.send(first('HELLO', { isn: 9 })), 'ready');
  t.same(player.lost, ['life replaced ']);
  player.table.flow!.context = 'next';
  player.table.follow(player.table.flow!, player.now);
  player.table.expire(player.now + 1_000);
  t.same(player.lost, ['life replaced ', 'next idle ']);

  player.send(first('one', { port: 1 }));
  player.table.follow(player.table.flow!, player.now);
  player.send(first('two', { port: 2 }));
  player.table.follow(player.table.flow!, player.now);
  player.send(first('three', { port: 3 }));
  t.equal(player.lost.at(-1), '? flows ', 'the longest silent gives way');
  t.equal(player.send(data(3, 'more', { port: 2 })), 'followed');
  t.same(player.table.holderOf(99), undefined);
  t.equal(player.table.holderOf(7)?.held[0], 7);
});

t.test('a flow that was decided and reset: its ports and numbers are no way past the reader', async (t) => {
  const player = new Player(families.v4);
  player.send(first('allowed'));
  player.table.decide(player.table.flow!, player.now);
  t.equal(player.send(syn()), 'pass');
  t.equal(player.send(data(0, 'forbidden')), 'ready');
  t.equal(player.stream, 'forbidden');
});

t.test('packets let on without a verdict, where the server must answer first', async (t) => {
  const player = new Player(families.v6);
  player.send(first('request'));
  player.send(data(9, 'later'));
  player.send(data(7, 'mo'));
  const flow = player.table.flow!;
  flow.context = 'waits';
  const ids: number[] = [];
  flow.passUpTo(8, ids);
  t.same(ids, [1], 'those of which all was read');
  t.equal(player.held(), '2 3');
  t.equal(player.send(data(0, 'request')), 'pass', 'the same again may be needed');
  t.equal(player.send(data(0, 'REQUEST')), 'refused overlap', 'other bytes are a lie still');
  player.table.forget(flow);

  player.send(first('request'));
  player.send(data(9, 'unread'));
  ids.length = 0;
  player.table.flow!.passUpTo(100, ids);
  t.same(ids, [6], 'what lies behind a gap was not read, whoever says so');
  player.table.forget(player.table.flow!);

  player.send(first('request'));
  player.send(fin(7));
  const ending = player.table.flow!;
  ids.length = 0;
  ending.passUpTo(100, ids);
  t.same(ids, [8, 9], 'the end goes with the last byte');
  t.equal(player.send(fin(7)), 'pass');
});

t.test(
  'addresses and ports that differ in one bit only are two connections, in whatever bucket they lie',
  async (t) => {
    const { v4, v6 } = families;
    const bits = (packet: Uint8Array, from: number, to: number): Uint8Array[] =>
      Array.from({ length: (to - from) * 8 }, (_, bit) => {
        const copy = packet.slice();
        copy[from + (bit >> 3)]! ^= 1 << (bit & 7);
        return copy;
      });
    for (const packets of [bits(packetOf(v4, syn()), 12, 24), bits(packetOf(v6, syn()), 8, 44)]) {
      // Two buckets for each, so that some of them meet.
      for (let seed = 0; seed < 32; seed++) {
        const table = new FlowTable(seed, () => t.fail('there is room'), { ...defaultLimits, flows: packets.length });
        for (const packet of packets) table.take(packet, 0, packet.length, 1, 1);
        t.equal(table.size, packets.length);
      }
    }
  },
);

t.test('packets that are no segments', async (t) => {
  const { v4, v6 } = families;
  const tcp4 = packetOf(v4, first('hello'));
  const tcp6 = packetOf(v6, first('hello'));
  const extended = (next: number, header: number[]): Uint8Array => {
    const inner = Buffer.concat([Buffer.from(header), tcp6.subarray(40)]);
    return buildIp(v6, next, inner);
  };
  const edited = (packet: Uint8Array, edits: Record<number, number>): Uint8Array => {
    const copy = packet.slice();
    for (const [at, byte] of Object.entries(edits)) copy[Number(at)] = byte;
    return copy;
  };
  const rows: [what: string, packet: Uint8Array, becomes: string][] = [
    ['UDP', buildUdp({ ...v4, sourcePort: 1, destinationPort: 2 }), 'drop not-tcp'],
    ['UDP over IPv6', buildUdp({ ...v6, sourcePort: 1, destinationPort: 2 }), 'drop not-tcp'],
    ['another version', edited(tcp4, { 0: 0x55 }), 'drop not-tcp'],
    ['nothing', new Uint8Array(0), 'drop cut-packet'],
    ['half an IPv4 header', tcp4.subarray(0, 10), 'drop cut-packet'],
    ['half an IPv6 header', tcp6.subarray(0, 30), 'drop cut-packet'],
    ['a packet without its last byte', tcp4.subarray(0, tcp4.length - 1), 'drop cut-packet'],
    ['the same of IPv6', tcp6.subarray(0, tcp6.length - 1), 'drop cut-packet'],
    ['an IPv4 header of 16 bytes', edited(tcp4, { 0: 0x44 }), 'drop bad-header'],
    ['an IPv4 length shorter than its header', edited(tcp4, { 2: 0, 3: 19 }), 'drop bad-header'],
    ['an IPv4 length that ends in the TCP header', edited(tcp4, { 2: 0, 3: 39 }), 'drop bad-header'],
    ['a first fragment', edited(tcp4, { 6: 0x20 }), 'drop fragment'],
    ['a later fragment', edited(tcp4, { 7: 1 }), 'drop fragment'],
    ['"do not fragment"', edited(tcp4, { 6: 0x40 }), 'ready'],
    ['a TCP header of 16 bytes', edited(tcp4, { 32: 0x40 }), 'drop bad-header'],
    ['a TCP header longer than the packet', edited(tcp4, { 32: 0xf0 }), 'drop bad-header'],
    ['padding behind the packet', Buffer.concat([tcp4, new Uint8Array(6)]), 'ready'],
    ['hop-by-hop options', extended(0, [6, 0, 5, 2, 0, 0, 1, 0]), 'ready'],
    ['destination options of 16 bytes', extended(60, [6, 1, 1, 12, ...Array(12).fill(0)]), 'ready'],
    ['a routing header that was used up', extended(43, [6, 0, 0, 0, 0, 0, 0, 0]), 'ready'],
    ['a routing header that was not', extended(43, [6, 2, 0, 1, ...Array(20).fill(0)]), 'drop routing-header'],
    ['a fragment that is whole', extended(44, [6, 0, 0, 0, 1, 2, 3, 4]), 'ready'],
    ['a fragment of IPv6', extended(44, [6, 0, 0, 1, 1, 2, 3, 4]), 'drop fragment'],
    ['an extension past the end', extended(60, [6, 200, 0, 0, 0, 0, 0, 0]), 'drop bad-header'],
    ['no end of extensions', extended(60, Array(9).fill([60, 0, 1, 4, 0, 0, 0, 0]).flat()), 'drop bad-header'],
    ['authentication', extended(51, [6, 1, 0, 0, ...Array(8).fill(0)]), 'ready'],
    ['an extension that nobody knows', extended(140, [6, 0, 0, 0, 0, 0, 0, 0]), 'drop not-tcp'],
  ];
  for (const [what, packet, becomes] of rows) t.equal(new Player(v4).take(packet, FIRST_OF_STREAM), becomes, what);
});

t.test('every reason was told in a story or a bound', async (t) => {
  t.same([...told].sort(), Object.keys(assemblyReasons).sort());
});
