/**
 * The codec of nftables sets without a kernel: what is written of a shape and its elements reads back as what it was
 * written from, and no bytes that a kernel might send make a reader throw, hang or read past its input.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import { isIPv4, isIPv6 } from 'node:net';
import fc from 'fast-check';
import t from 'tap';
import { bytesLimitText, classText, markText, rawText, shapeOf } from '../../kernel/nft.ts';
import { addressBytes, ipv4Text, ipv6Text, putIpv4, putIpv6 } from '../../wire/address-text.ts';
import { decodeAck } from '../../wire/netlink-ack.ts';
import { NftBatch } from '../../wire/nft-batch.ts';
import { ElementReader } from '../../wire/nft-elements.ts';
import { tableEvent } from '../../wire/nft-event.ts';
import { readChain, readComment, readCounter, readGeneration } from '../../wire/nft-listing.ts';
import { layoutOf, readSet, type SetLayout } from '../../wire/nft-shape.ts';
import { type Template, writeRule } from '../../wire/nft-template.ts';
import { attribute, nested, nfnlMessage, splitMessages } from '../../wire/nlattr.ts';
import { NetlinkWriter } from '../../wire/nlwriter.ts';
import { everySet } from '../nft-suite.ts';

const u32 = fc.nat(0xffffffff);
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const texts: Record<string, fc.Arbitrary<string>> = {
  ipv4_addr: bytes(4).map((at) => ipv4Text(at, 0)),
  ipv6_addr: bytes(16).map((at) => ipv6Text(at, 0)),
  mark: u32.map(markText),
  inet_proto: fc.nat(255).map(String),
  icmp_type: fc.nat(255).map(String),
  icmp_code: fc.nat(255).map(String),
  icmpv6_type: fc.nat(255).map(String),
  icmpv6_code: fc.nat(255).map(String),
  inet_service: fc.nat(65_535).map(String),
  classid: fc
    .tuple(fc.integer({ min: 1, max: 0xffff }), fc.integer({ min: 1, max: 0xffff }), fc.boolean())
    .map(([major, minor, none]) => (none ? 'none' : classText(major, minor))),
  ifname: fc.stringMatching(/^[a-z0-9.-]{1,15}$/).map((name) => `"${name}"`),
  'ip saddr': bytes(4).map((at) => ipv4Text(at, 0)),
  'ip6 saddr': bytes(16).map((at) => ipv6Text(at, 0)),
  'udp dport': fc.nat(65_535).map(String),
  '@th,96,32': u32.map((value) => rawText(BigInt(value))),
  '@th,336,32': u32.map((value) => rawText(BigInt(value))),
  '@th,304,64': fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }).map(rawText),
  '@th,304,128': fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }).map(rawText),
};
const verdicts = fc.constantFrom('drop', 'accept', 'return', 'continue', 'goto leaf_1', 'jump leaf_2');
const limits = {
  rate: fc.integer({ min: 1, max: 1e9 - 1 }).map((n) => `limit rate over ${n}/second burst ${n} packets`),
  bytes: fc
    .tuple(fc.integer({ min: 1, max: 100e9 }), fc.integer({ min: 0, max: 1e9 - 1 }))
    .map(([rate, burst]) => bytesLimitText(rate, burst)),
  connections: fc.integer({ min: 0, max: 1e9 - 1 }).map((n) => `ct count over ${n}`),
};

/** Shapes that can be written, with elements of theirs. */
const samples = Object.entries(everySet())
  .map(([name, set]) => ({ name, set, shape: shapeOf(set) }))
  .filter(({ set, shape }) => !set.interval || shape.includes(' . '))
  .concat([
    {
      name: 'held',
      set: { type: '', elements: new Map() },
      shape: 'typeof ip saddr . udp dport . @th,96,32 . @th,304,128;',
    },
  ]);

function elementOf({ fields, interval, value, limited }: SetLayout): fc.Arbitrary<[string, string]> {
  const parts = fields.map(({ type }) => {
    const text = texts[type.name];
    if (text === undefined) throw new TypeError(`no texts of ${type.name}`);
    return interval
      ? fc.tuple(text, text, fc.boolean()).map(([a, b, one]) => (one || a === b ? a : `${a}-${b}`))
      : text;
  });
  const values: fc.Arbitrary<string> =
    value === 'verdict'
      ? verdicts
      : value !== undefined
        ? (texts[value.name === 'meta mark' ? 'mark' : value.name] as fc.Arbitrary<string>)
        : limited !== undefined
          ? limits[limited]
          : fc.constant('');
  return fc.tuple(
    fc.tuple(...parts).map((list) => list.join(' . ')),
    values,
  );
}

/** Messages of a batch, without its two ends. */
const messagesOf = (batch: NftBatch): Uint8Array[] => splitMessages(batch.finish()).slice(1, -1);

t.test('what is written reads back', async (t) => {
  for (const { name, shape } of samples) {
    const layout = layoutOf(shape);
    if (layout === undefined) throw new TypeError(`${name}: ${shape} is not understood`);
    const batch = new NftBatch('t');
    batch.addSet(name, layout);
    t.same(readSet(messagesOf(batch)[0] as Uint8Array), { ok: true, value: { name, shape, layout } }, shape);
    const outcome = fc.check(
      fc.property(fc.array(elementOf(layout), { maxLength: 40 }), (list) => {
        const elements = new Map(list);
        const batch = new NftBatch('t');
        batch.addTable();
        ok(batch.changeElements('add', name, layout, [...elements]));
        const reader = new ElementReader(layout);
        for (const message of messagesOf(batch).slice(1)) equal(reader.read(message).ok, true);
        deepStrictEqual(reader.finish(), elements);
      }),
      { numRuns: 100 },
    );
    t.notOk(outcome.failed, `elements of ${shape}`, { found: String(outcome.errorInstance) });
  }
});

const names = fc.stringMatching(/^[A-Za-z_]\w{0,20}$/);
const address = fc.oneof(texts.ipv4_addr as fc.Arbitrary<string>, texts.ipv6_addr as fc.Arbitrary<string>);
const marks = fc.oneof(
  u32.map(markText),
  u32.map((mark) => `0x${mark.toString(16)}`),
  fc.nat(0xfffffffff).map(String),
);
const mistakes = fc.constantFrom(
  'x',
  '0',
  '-',
  '/',
  '10.0.0.256',
  '1.2.3.4.5',
  '::1::',
  '0x',
  '007',
  '#9',
  'goto',
  '@s4',
);
const ports = fc.oneof(fc.nat(70_000), fc.nat(2_000), fc.constantFrom(25, 80, 443)).map(String);
const pair = (one: fc.Arbitrary<string>, mark: string) => fc.tuple(one, one).map((both) => both.join(mark));
const values = fc.oneof(
  { weight: 6, arbitrary: address },
  { weight: 3, arbitrary: ports },
  { weight: 3, arbitrary: marks },
  { weight: 2, arbitrary: fc.tuple(address, fc.nat(140)).map(([text, bits]) => `${text}/${bits}`) },
  { weight: 2, arbitrary: fc.nat(32).map((bits) => `${bits === 0 ? '0.0.0.0' : '128.0.0.0'}/${bits}`) },
  { weight: 2, arbitrary: fc.oneof(pair(address, '-'), pair(ports, '-')) },
  { weight: 1, arbitrary: fc.constantFrom('tcp', 'ipv4', 'ipv6', '6', '17', 'none', '1:abc') },
  { weight: 1, arbitrary: mistakes },
);
const chains = fc.oneof({ weight: 9, arbitrary: names }, { weight: 1, arbitrary: mistakes });
/** `V` stands for a value, `C` for a chain. */
const pieces = fc.oneof(
  fc.constantFrom(
    ...[
      'ip daddr V',
      'ip6 saddr V',
      'ip saddr != V',
      'meta l4proto V',
      'meta nfproto V',
      'th dport V',
      'th dport != V',
    ],
    ...['tcp dport V', 'udp sport >= V', 'meta mark V', 'meta mark and V == V', 'ct mark and V != V', 'meta length V'],
    ...['icmp type V', 'icmpv6 code V', 'ct state new', 'ct original ip saddr V', '@th,96,32 V', '@nh,96,32 != V'],
    ...['meta iif V', 'ct direction V', 'meta protocol ip', 'tcp flags & (syn | ack) == ack', 'iifname "a b"'],
    ...['ip daddr @s4', 'ip daddr . meta l4proto @pairs', 'ip saddr vmap @v4', 'ip6 daddr V V'],
  ),
  fc.constantFrom(
    ...[
      'meta mark set V',
      'ct mark set V',
      'ct mark set ct mark and V or V',
      'ct mark set ct mark or V',
      'drop',
      'return',
    ],
    ...['meta mark set meta mark and V', 'meta priority set V', 'goto C', 'jump C', 'update @hits { meta mark and V }'],
    ...['meta mark set ip saddr map @m4', 'meta mark set jhash ip saddr . ip daddr mod V seed V offset V', 'accept C'],
    ...[
      'snat ip to V',
      'dnat ip6 to [V]:V',
      'reject with tcp reset',
      'limit rate V/second burst V packets',
      'counter name C',
    ],
  ),
);
const rules = fc
  .tuple(fc.array(pieces, { minLength: 1, maxLength: 4 }), fc.infiniteStream(values), fc.infiniteStream(chains))
  .map(([list, values, chains]) =>
    list.join(' ').replaceAll(/\b[VC]\b/g, (letter) => (letter === 'V' ? values : chains).next().value as string),
  );
const layoutsOf: Record<string, SetLayout | undefined> = {
  s4: layoutOf('type ipv4_addr;'),
  pairs: layoutOf('type ipv4_addr . inet_proto; flags interval;'),
  v4: layoutOf('type ipv4_addr : verdict;'),
  m4: layoutOf('type ipv4_addr : mark;'),
};

t.test('a rule is the same, whatever rules of its kind came before', async (t) => {
  const kept = new Map<string, Template>();
  const written = (text: string, templates: Map<string, Template>): string | undefined => {
    const writer = new NetlinkWriter();
    const known = writeRule(writer, 't', 'c', text, (set) => layoutsOf[set], templates);
    return known ? Buffer.from(writer.written()).toString('hex') : undefined;
  };
  let understood = 0;
  let like = 0;
  const outcome = fc.check(
    fc.property(rules, (text) => {
      const before = kept.size;
      const alone = written(text, new Map());
      equal(written(text, kept), alone);
      if (alone === undefined) return;
      understood++;
      if (kept.size === before) like++;
    }),
    { numRuns: 20_000 },
  );
  t.notOk(outcome.failed, 'alone or behind others', {
    found: String(outcome.errorInstance),
    rule: outcome.counterexample,
  });
  t.ok(understood > 2_000 && like > 1_000, `${understood} rules understood, ${like} of them like one before`);
  t.comment(`${understood} rules understood, ${like} of them like one before, ${kept.size} kinds`);

  const one = new Map<string, Template>();
  const rule = (address: string, port: number, chain: string): string =>
    `ip daddr ${address} meta l4proto 6 th dport ${port} meta mark set 0x0000ab00 goto ${chain}`;
  t.not(written(rule('10.0.0.1', 8443, 'leaf_1'), one), written(rule('10.200.0.1', 5432, 'leaf_2'), one));
  t.equal(one.size, 1, 'values and names of chains are no part of a kind');
  t.ok(written('ip daddr @s4 drop', one));
  layoutsOf.s4 = layoutOf('type ipv6_addr;');
  t.notOk(written('ip daddr @s4 drop', one), 'a set may have another shape');
});

t.test('addresses as text', async (t) => {
  const read = (put: typeof putIpv4, text: string, length: number): Uint8Array | undefined => {
    const bytes = new Uint8Array(length + 2);
    return put(text, bytes, 1) ? bytes.subarray(1, length + 1) : undefined;
  };
  const groups = fc.array(fc.stringMatching(/^[0-9a-f]{0,5}$/), { maxLength: 10 }).map((list) => list.join(':'));
  const dotted = fc.array(fc.nat(300).map(String), { maxLength: 6 }).map((list) => list.join('.'));
  const outcome = fc.check(
    fc.property(fc.oneof(address, groups, dotted, fc.stringMatching(/^[0-9a-fg:.]{0,20}$/)), (text) => {
      deepStrictEqual(read(putIpv4, text, 4), isIPv4(text) ? addressBytes(text) : undefined, text);
      const plain = isIPv6(text) && !text.includes('.');
      deepStrictEqual(read(putIpv6, text, 16), plain ? addressBytes(text) : undefined, text);
    }),
    { numRuns: 20_000 },
  );
  t.notOk(outcome.failed, 'as Node reads them', { found: String(outcome.errorInstance) });
});

t.test('many elements are several messages, and an error finds the one that it is about', async (t) => {
  const layout = layoutOf('type ipv4_addr : mark;') as SetLayout;
  const list = Array.from({ length: 10_000 }, (_, n): [string, string] => [`10.9.${n >> 8}.${n & 255}`, markText(n)]);
  const batch = new NftBatch('t');
  batch.addChain('c');
  ok(batch.changeElements('add', 'm', layout, list));
  const messages = messagesOf(batch);
  t.ok(messages.length > 5 && messages.every(({ length }) => length < 65_536), `${messages.length} messages`);
  const reader = new ElementReader(layout);
  for (const message of messages.slice(1)) t.ok(reader.read(message).ok);
  t.same(reader.finish(), new Map(list));
  t.equal(batch.describe(1, 20), 'add chain c');
  t.equal(batch.describe(2), 'add element m');
  // Header 20, table 8, set 8, list 4; an element is 4 + 12 + 12.
  t.equal(batch.describe(2, 40), 'add element m { 10.9.0.0 : 0x00000000 }');
  t.equal(batch.describe(2, 40 + 28 * 3 + 4), 'add element m { 10.9.0.3 : 0x00000003 }');
  const second = (messages[1]?.length ?? 0) - 40;
  t.match(batch.describe(3, 40), new RegExp(`: ${markText(second / 28)} }$`));
  t.equal(batch.describe(0), 'the whole');
  t.equal(batch.describe(99), 'message 99');
});

t.test('plain intervals are read from their ends', async (t) => {
  const layout = layoutOf('type inet_service; flags interval;') as SetLayout;
  const part = (port: number, end: boolean): Uint8Array => {
    const key = attribute(1, attribute(1, Uint8Array.of(port >> 8, port)));
    return attribute(1, Uint8Array.from([...(end ? attribute(3, Uint8Array.of(0, 0, 0, 1)) : []), ...key]));
  };
  const message = (parts: [number, boolean][]): Uint8Array => {
    const batch = new NftBatch('t');
    batch.addChain('x');
    const [head] = messagesOf(batch);
    const list = attribute(3, Uint8Array.from(parts.flatMap(([port, end]) => [...part(port, end)])));
    const whole = Uint8Array.from([...(head as Uint8Array).subarray(0, 20), ...list]);
    const view = new DataView(whole.buffer);
    view.setUint32(0, whole.length, true);
    view.setUint16(4, (10 << 8) | 12, true);
    return whole;
  };
  for (const [title, parts, wanted] of [
    [
      'apart',
      [
        [0, true],
        [80, false],
        [81, true],
        [443, false],
        [500, true],
      ],
      ['80', '443-499'],
    ],
    [
      'in any order',
      [
        [500, true],
        [443, false],
        [81, true],
        [80, false],
      ],
      ['80', '443-499'],
    ],
    [
      'adjacent',
      [
        [80, false],
        [90, true],
        [90, false],
        [91, true],
      ],
      ['80-89', '90'],
    ],
    [
      'to the end',
      [
        [0, false],
        [10, true],
        [65_000, false],
      ],
      ['0-9', '65000-65535'],
    ],
    ['nothing', [], []],
  ] as [string, [number, boolean][], string[]][]) {
    const reader = new ElementReader(layout);
    t.ok(reader.read(message(parts)).ok);
    t.same([...reader.finish().keys()], wanted, title);
  }
});

t.test('hostile bytes', async (t) => {
  const mutated = (seed: fc.Arbitrary<Uint8Array>) =>
    fc
      .tuple(
        seed,
        fc.array(fc.tuple(fc.nat(0xffff), fc.nat(255)), { maxLength: 6 }),
        fc.option(fc.nat(0xffff), { freq: 3 }),
      )
      .map(([bytes, edits, cut]) => {
        const changed = bytes.slice();
        for (const [at, value] of edits) changed[at % changed.length] = value;
        return cut === null ? changed : changed.subarray(0, cut % (changed.length + 1));
      });
  const sample = fc.constantFrom(...samples).map(({ shape, set }) => ({ layout: layoutOf(shape) as SetLayout, set }));
  const sets = sample.map(({ layout }) => {
    const batch = new NftBatch('t');
    batch.addSet('s', layout);
    return messagesOf(batch)[0] as Uint8Array;
  });
  const ack = fc.constant(
    Uint8Array.from([
      ...[60, 0, 0, 0, 2, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff],
      ...new Uint8Array(16),
      ...attribute(1, Buffer.from('no such\0')),
      ...attribute(2, Uint8Array.of(20, 0, 0, 0)),
    ]),
  );
  t.match(decodeAck(fc.sample(ack, 1)[0] as Uint8Array), {
    ok: true,
    value: { errno: 2, text: 'no such', offset: 20 },
  });
  const table = attribute(1, Buffer.from('t\0'));
  const name = (type: number): Uint8Array => attribute(type, Buffer.from('name\0'));
  const number = (type: number, value: number): Uint8Array => attribute(type, Uint8Array.of(0, 0, 0, value));
  const long = (type: number, value: number): Uint8Array => attribute(type, Uint8Array.of(0, 0, 0, 0, 0, 0, 0, value));
  const comment = attribute(7, Uint8Array.of(1, 1, 9, 0, 3, ...Buffer.from('hi\0')));
  const message = (message: number, ...attributes: Uint8Array[]): Uint8Array =>
    nfnlMessage({ subsystem: 10, message, flags: 2, family: 1 }, ...attributes);
  const chain = message(3, table, attribute(2, new Uint8Array(8)), name(3));
  const rule = message(6, table, name(2), attribute(3, new Uint8Array(8)), nested(4), comment);
  const object = message(18, table, name(2), number(3, 1), nested(4, long(1, 90), long(2, 3)));
  const generation = message(15, number(1, 7), number(2, 9));
  t.same(readChain(chain), { ok: true, value: { table: 't', name: 'name' } });
  t.same(readComment(rule), { ok: true, value: 'hi' });
  t.same(readComment(message(6, table, name(2))), { ok: true, value: '' }, 'a rule without a comment');
  t.same(readCounter(object), { ok: true, value: { name: 'name', packets: 3, bytes: 90 } });
  t.same(readCounter(message(18, table, name(2), number(3, 2))), { ok: true, value: undefined }, 'not a counter');
  t.same(readGeneration(generation), { ok: true, value: 7 });
  t.same(tableEvent(chain), { family: 1, table: 't', port: 0, deleted: false });
  t.same(tableEvent(message(2, table)), { family: 1, table: 't', port: 0, deleted: true });
  t.equal(tableEvent(generation), undefined, 'of no table');
  const elsewhere = chain.slice();
  elsewhere[16] = 2;
  t.match(tableEvent(elsewhere), { family: 2 }, 'family ip');
  for (const read of [readChain, readComment, readCounter, readGeneration, readSet]) {
    t.notOk(read(message(9, table)).ok, 'without a name');
    t.notOk(read(new Uint8Array(19)).ok, 'too short');
  }
  const subjects: [string, fc.Arbitrary<Uint8Array>, (bytes: Uint8Array) => unknown][] = [
    ['readSet', sets, readSet],
    ['readChain', fc.constant(chain), readChain],
    ['readComment', fc.constant(rule), readComment],
    ['readCounter', fc.constant(object), readCounter],
    ['readGeneration', fc.constant(generation), readGeneration],
    ['tableEvent', fc.constantFrom(chain, rule, object, generation), tableEvent],
    ['decodeAck', ack, decodeAck],
  ];
  for (const { shape, set } of samples) {
    const layout = layoutOf(shape) as SetLayout;
    const batch = new NftBatch('t');
    batch.addTable();
    if (set.elements.size === 0 || !batch.changeElements('add', 's', layout, [...set.elements])) continue;
    subjects.push([
      `elements of ${shape}`,
      fc.constant(messagesOf(batch)[1] as Uint8Array),
      (bytes) => {
        const reader = new ElementReader(layout);
        reader.read(bytes);
        reader.finish();
      },
    ]);
  }
  for (const [name, seed, decode] of subjects) {
    const input = fc.oneof(
      { weight: 4, arbitrary: mutated(seed) },
      { weight: 1, arbitrary: fc.uint8Array({ maxLength: 300 }) },
    );
    const outcome = fc.check(
      fc.property(input, (bytes) => {
        decode(bytes);
      }),
      { numRuns: 1000 },
    );
    t.notOk(outcome.failed, `${name} neither throws nor strays`, {
      found: String(outcome.errorInstance),
      input: outcome.counterexample,
    });
  }
});
