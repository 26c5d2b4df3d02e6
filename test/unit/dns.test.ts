/**
 * DNS queries and answers: messages of glibc, c-ares and dnsmasq (recorded), messages built here by the part, right and
 * wrong, each with what is read of it or why it is refused.
 */

import t, { type Test } from 'tap';
import { type DnsQuery, DnsQueryReader, type DnsReason } from '../../wire/dns.ts';
import { type DnsAddress, type DnsAnswer, DnsAnswerReader } from '../../wire/dns-answer.ts';
import { edns, framed, message, nameBytes, pointer, QUESTION, question, record } from '../dns-build.ts';

const hex = (text: string) => Uint8Array.from(Buffer.from(text, 'hex'));
const A = 1;
const CNAME = 5;
const MX = 15;
const AAAA = 28;
const HTTPS = 65;
const TSIG = 250;
const queries = new DnsQueryReader();
const answers = new DnsAnswerReader();
/** Reasons that a row has shown. */
const shown = new Set<string>();

/** What is read; the object itself is the reader's. */
function queryOf(bytes: Uint8Array): DnsQuery | string {
  const reading = queries.datagram(bytes);
  if (reading.state === 'refused') shown.add(reading.reason);
  return reading.state === 'read' ? { ...reading.value } : reading.state === 'more' ? 'more' : reading.reason;
}

function answerOf(bytes: Uint8Array): DnsAnswer | string {
  const reading = answers.datagram(bytes);
  if (reading.state === 'refused') shown.add(reading.reason);
  return reading.state === 'read' ? reading.value : reading.state === 'more' ? 'more' : reading.reason;
}

/** The fields that a row speaks of, exactly. */
function has<Value>(t: Test, value: Value | string, expected: Partial<Value>, name: string): void {
  if (typeof value === 'string') t.fail(`${name}: ${value}`);
  else t.same(Object.fromEntries(Object.keys(expected).map((key) => [key, value[key as keyof Value]])), expected, name);
}

t.test('queries of clients in use', async (t) => {
  const rows: [name: string, bytes: string, expected: Partial<DnsQuery>][] = [
    [
      'glibc asks in upper case',
      'e0e90100000100000000000003575757076578616d706c6504746573740000010001',
      { id: 0xe0e9, name: 'www.example.test', type: A, class: 1, recursionDesired: true, udpSize: 0, size: 34 },
    ],
    ['and for IPv6', '50ea0100000100000000000003575757076578616d706c65047465737400001c0001', { type: AAAA }],
    [
      'glibc with EDNS',
      '2bd501000001000000000001027272076578616d706c650474657374000001000100002904b0000000000000',
      { name: 'rr.example.test', udpSize: 1200, optionBytes: 0 },
    ],
    [
      'c-ares for a text',
      'e7710100000100000000000003747874076578616d706c6504746573740000100001',
      { name: 'txt.example.test', type: 16 },
    ],
  ];
  for (const [name, bytes, expected] of rows) has(t, queryOf(hex(bytes)), expected, name);
});

t.test('glibc over TCP: two queries in one segment, at every cut', async (t) => {
  const both = hex(
    '0022c4360100000100000000000003776562076578616d706c65047465737400000100010022' +
      '4d340100000100000000000003776562076578616d706c65047465737400001c0001',
  );
  for (let length = 0; length < 36; length++) {
    t.same(queries.stream(both.subarray(0, length)), { state: 'more' }, `${length} bytes are too few`);
  }
  for (const length of [36, 40, 72]) {
    t.match(queries.stream(both.subarray(0, length)), { state: 'read', value: { type: A, size: 34 } });
  }
  t.match(queries.stream(both.subarray(36)), { state: 'read', value: { type: AAAA, name: 'web.example.test' } });
  t.same(queries.stream(hex('0401')), { state: 'refused', reason: 'message-too-large' }, 'by its length alone');
  t.same(queries.stream(hex('000b')), { state: 'refused', reason: 'cut-short' });
  t.same(queries.stream(framed(message({ questions: [question('a', A)], trailing: [0] }))), {
    state: 'refused',
    reason: 'trailing-bytes',
  });
  t.match(answers.stream(framed(message({ flags: 0x8180, questions: [question('a', A)] }))), { state: 'read' });
  t.same(answers.stream(hex('00')), { state: 'more' });
  t.same(answers.stream(hex('0005')), { state: 'refused', reason: 'cut-short' });
});

t.test('queries, part by part', async (t) => {
  const q = [question('a.test', A)];
  const label = 'a'.repeat(63);
  const longest = `${label}.${label}.${label}.${'a'.repeat(61)}`;
  const rows: [name: string, bytes: Uint8Array, expected: Partial<DnsQuery> | DnsReason][] = [
    ['the root', message({ questions: [question('', 2)] }), { name: '.', labels: 0, length: 0, longestLabel: 0 }],
    [
      'mixed case, as resolvers send to be safe',
      message({ questions: [question('wWw.ExAmPle.TEST', A)] }),
      { name: 'www.example.test' },
    ],
    ['an underscore', message({ questions: [question('_dns.a-b.test', 64)] }), { name: '_dns.a-b.test', type: 64 }],
    [
      'the longest name',
      message({ questions: [question(longest, A)] }),
      { name: longest, length: 253, longestLabel: 63 },
    ],
    ['another class', message({ questions: [question('version.bind', 16, 3)] }), { class: 3 }],
    ['without recursion', message({ flags: 0, questions: q }), { recursionDesired: false }],
    ['with AD and CD', message({ flags: 0x0130, questions: q }), { name: 'a.test' }],
    [
      'with a cookie',
      message({ questions: q, additionals: [edns([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8])] }),
      { udpSize: 1232, optionBytes: 12 },
    ],
    [
      'signed',
      message({ questions: q, additionals: [edns(), record('key.test', TSIG, [1, 2], 0, 255)] }),
      { udpSize: 1232 },
    ],
    // What is no query, or more than one.
    ['no bytes', new Uint8Array(0), 'cut-short'],
    ['half a header', message({ questions: q }).subarray(0, 11), 'cut-short'],
    ['half a label', message({ questions: q }).subarray(0, 16), 'cut-short'],
    ['a name without its type', message({ questions: q }).subarray(0, 21), 'cut-short'],
    ['a label longer than the message', message({ questions: [[63, 97]] }), 'cut-short'],
    ['half a pointer', message({ questions: [[0xc0]] }), 'cut-short'],
    ['an answer', message({ flags: 0x8180, questions: q }), 'response-not-query'],
    ['an update', message({ flags: 0x2800, questions: q }), 'opcode-not-query'],
    ['a notification', message({ flags: 0x2000, questions: q }), 'opcode-not-query'],
    ['the reserved bit', message({ flags: 0x0140, questions: q }), 'reserved-bit'],
    ['no question', message({}), 'no-question'],
    ['two questions', message({ questions: [...q, ...q] }), 'several-questions'],
    ['a question too many in the header', message({ questions: q, counts: [2, 0, 0, 0] }), 'several-questions'],
    [
      'an answer with the query',
      message({ questions: q, answers: [record('a', A, [1, 2, 3, 4])] }),
      'records-in-query',
    ],
    ['an authority with it', message({ questions: q, authorities: [record('a', 6, [])] }), 'records-in-query'],
    [
      'a text in the additional section',
      message({ questions: q, additionals: [record('a', 16, [1, 65])] }),
      'records-in-query',
    ],
    [
      'three in the additional section',
      message({ questions: q, additionals: [edns(), edns(), edns()] }),
      'records-in-query',
    ],
    [
      'a signature that is not the last',
      message({ questions: q, additionals: [record('k', TSIG, []), edns()] }),
      'records-in-query',
    ],
    ['EDNS twice', message({ questions: q, additionals: [edns(), edns()] }), 'several-edns'],
    ['EDNS of another version', message({ questions: q, additionals: [edns([], 0x10000)] }), 'bad-edns'],
    ['EDNS with a name', message({ questions: q, additionals: [edns([], 0, 'a')] }), 'bad-edns'],
    ['half an option', message({ questions: q, additionals: [edns([0, 10, 0])] }), 'bad-edns'],
    ['an option longer than its record', message({ questions: q, additionals: [edns([0, 10, 0, 1])] }), 'bad-edns'],
    ['a record that is not there', message({ questions: q, counts: [1, 0, 0, 1] }), 'cut-short'],
    ['half a record', message({ questions: q, counts: [1, 0, 0, 1], trailing: edns().slice(0, 10) }), 'cut-short'],
    ['bytes behind the end', message({ questions: q, trailing: [0] }), 'trailing-bytes'],
    [
      'more bytes than a query needs',
      message({ questions: q, additionals: [edns(Array(1024).fill(0))] }),
      'message-too-large',
    ],
    // Names.
    ['a name of 256 bytes', message({ questions: [question(`${longest}a`, A)] }), 'name-too-long'],
    ['a pointer to the header', message({ questions: [question(pointer(0), A)] }), 'bad-pointer'],
    ['a pointer to itself', message({ questions: [question(pointer(QUESTION), A)] }), 'bad-pointer'],
    ['a pointer to its own labels', message({ questions: [question(pointer(QUESTION, 'a'), A)] }), 'bad-pointer'],
    ['a pointer forwards', message({ questions: [question(pointer(QUESTION + 10), A)] }), 'bad-pointer'],
    ['a bit label of RFC 2673', message({ questions: [question([0x41, 8, 1, 0], A)] }), 'bad-label-type'],
    ['the other kind of label', message({ questions: [question([0x81, 8, 1, 0], A)] }), 'bad-label-type'],
    ['a dot in a label', message({ questions: [question([3, 97, 46, 98, 0], A)] }), 'odd-name-byte'],
    ['a null byte in a label', message({ questions: [question([3, 97, 0, 98, 0], A)] }), 'odd-name-byte'],
    ['a space', message({ questions: [question('a b.test', A)] }), 'odd-name-byte'],
    ['a backslash', message({ questions: [question('a\\046b.test', A)] }), 'odd-name-byte'],
    ['UTF-8', message({ questions: [question('b\xc3\xbccher.test', A)] }), 'odd-name-byte'],
  ];
  for (const [name, bytes, expected] of rows) {
    if (typeof expected === 'string') t.equal(queryOf(bytes), expected, `${name}: ${expected}`);
    else has(t, queryOf(bytes), expected, name);
  }
  const small = new DnsQueryReader(30);
  t.match(
    small.datagram(message({ questions: [question('aaaaaaa.test', A)] })),
    { state: 'read' },
    'as large as may be',
  );
  t.match(small.datagram(message({ questions: [question('aaaaaaaa.test', A)] })), { reason: 'message-too-large' });
});

t.test('measures of names that carry data', async (t) => {
  const rows: [name: string, length: number, longestLabel: number, labels: number, entropy: number, of: number][] = [
    ['example.test', 12, 7, 2, 0, 0],
    ['www.example.test', 16, 7, 3, 0, 3],
    ['aabb.example.test', 17, 7, 3, 1, 4],
    ['abcd.example.test', 17, 7, 3, 2, 4],
    ['ab.CD.example.test', 18, 7, 4, 2, 4],
    ['0123456789abcdef.example.test', 29, 16, 3, 4, 16],
    ['abcdefghijklmnopqrstuvwxyz234567.t.example.test', 47, 32, 4, 4.9838, 33],
    ['test', 4, 4, 1, 0, 0],
  ];
  for (const [name, length, longestLabel, labels, entropy, entropyOf] of rows) {
    const query = queryOf(message({ questions: [question(name, A)] }));
    if (typeof query === 'string') throw new Error(query);
    has(t, query, { length, longestLabel, labels, entropyOf }, name);
    t.ok(Math.abs(query.entropy - entropy) < 0.001, `${name}: ${query.entropy} is ${entropy} bits`);
  }
});

t.test('answers of dnsmasq', async (t) => {
  const rows: [name: string, bytes: string, expected: Partial<DnsAnswer>][] = [
    [
      'an alias and its address',
      'e0e98580000100020000000003575757076578616d706c6504746573740000010001c00c0005000100000000001203776562076578616d706c65047465737400c02e00010001000000000004c6336450',
      {
        name: 'www.example.test',
        type: A,
        rcode: 0,
        truncated: false,
        aliases: [{ name: 'web.example.test', ttl: 0 }],
        chain: 'whole',
        addresses: [{ address: '198.51.100.80', family: 4, ttl: 0 }],
        foreign: 0,
        hints: 0,
      },
    ],
    [
      'the same over IPv6',
      '50ea8580000100020000000003575757076578616d706c65047465737400001c0001c00c0005000100000000001203776562076578616d706c65047465737400c02e001c000100000000001020010db8010000000000000000000080',
      { addresses: [{ address: '2001:db8:100::80', family: 6, ttl: 0 }] },
    ],
    [
      'two addresses and EDNS',
      '2bd585800001000200000001027272076578616d706c6504746573740000010001c00c00010001000000000004c6336401c00c00010001000000000004c633640200002904d0000000000000',
      { addresses: ['198.51.100.1', '198.51.100.2'].map((address) => ({ address, family: 4 as const, ttl: 0 })) },
    ],
    [
      'no such name',
      '46b181830001000000000000046e6f7065076578616d706c6504746573740000010001',
      { rcode: 3, addresses: [], name: 'nope.example.test' },
    ],
    [
      'a text',
      'e7718580000100010000000003747874076578616d706c6504746573740000100001c00c001000010000000000060568656c6c6f',
      { type: 16, addresses: [], aliases: [], foreign: 0 },
    ],
  ];
  for (const [name, bytes, expected] of rows) has(t, answerOf(hex(bytes)), expected, name);
});

const FLAGS = 0x8180;
const asked = (name: string, type = A) => ({ flags: FLAGS, questions: [question(name, type)] });
const v4 = [192, 0, 2, 1];
const v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const alias = (from: string | number[], to: string | number[], ttl = 60) =>
  record(from, CNAME, typeof to === 'string' ? nameBytes(to) : to, ttl);

t.test('what answers teach', async (t) => {
  const own: DnsAddress = { address: '192.0.2.1', family: 4, ttl: 60 };
  const chain = (length: number) => [
    ...Array.from({ length }, (_, i) => alias(`n${i}.test`, `n${i + 1}.test`, 100 + i)),
    record(`n${length}.test`, A, v4),
  ];
  const rows: [name: string, bytes: Uint8Array, expected: Partial<DnsAnswer>][] = [
    ['nothing', message(asked('a.test')), { addresses: [], aliases: [], chain: 'whole', foreign: 0 }],
    ['an address', message({ ...asked('A.test'), answers: [record('a.TEST', A, v4)] }), { addresses: [own] }],
    [
      'one behind a pointer',
      message({ ...asked('a.test'), answers: [record(pointer(QUESTION), A, v4)] }),
      { addresses: [own] },
    ],
    [
      'one behind labels and a pointer',
      message({ ...asked('a.test'), answers: [record(pointer(QUESTION + 2, 'A'), A, v4)] }),
      { addresses: [own] },
    ],
    [
      'aliases in order',
      message({ ...asked('n0.test'), answers: chain(3) }),
      {
        aliases: [
          { name: 'n1.test', ttl: 100 },
          { name: 'n2.test', ttl: 101 },
          { name: 'n3.test', ttl: 102 },
        ],
        addresses: [own],
        foreign: 0,
      },
    ],
    [
      'aliases in any order',
      message({ ...asked('n0.test'), answers: chain(3).reverse() }),
      {
        aliases: [
          { name: 'n1.test', ttl: 100 },
          { name: 'n2.test', ttl: 101 },
          { name: 'n3.test', ttl: 102 },
        ],
        addresses: [own],
      },
    ],
    ['sixteen aliases', message({ ...asked('n0.test'), answers: chain(16) }), { chain: 'whole', addresses: [own] }],
    [
      'seventeen',
      message({ ...asked('n0.test'), answers: chain(17) }),
      { chain: 'too-long', addresses: [], foreign: 2 },
    ],
    [
      'a loop',
      message({
        ...asked('a.test'),
        answers: [alias('a.test', 'b.test'), alias('b.test', 'a.test'), record('b.test', A, v4)],
      }),
      { chain: 'loop', addresses: [], aliases: [{ name: 'b.test', ttl: 60 }] },
    ],
    [
      'a name that is its own alias',
      message({ ...asked('a.test'), answers: [alias('a.test', 'a.test'), record('a.test', A, v4)] }),
      { chain: 'loop', addresses: [] },
    ],
    [
      'another name',
      message({ ...asked('a.test'), answers: [record('b.test', A, v4), record('a.test', A, v4)] }),
      { addresses: [own], foreign: 1 },
    ],
    [
      'a name below',
      message({ ...asked('a.test'), answers: [record('x.a.test', A, v4)] }),
      { addresses: [], foreign: 1 },
    ],
    [
      'an alias of another name',
      message({ ...asked('a.test'), answers: [alias('b.test', 'c.test'), record('c.test', A, v4)] }),
      { addresses: [], aliases: [], foreign: 2 },
    ],
    [
      'an address beside an alias',
      message({ ...asked('a.test'), answers: [record('a.test', A, v4), alias('a.test', 'b.test')] }),
      { addresses: [], foreign: 1 },
    ],
    [
      'two aliases of one name',
      message({
        ...asked('a.test'),
        answers: [alias('a.test', 'b.test'), alias('a.test', 'c.test'), record('c.test', A, v4)],
      }),
      { aliases: [{ name: 'b.test', ttl: 60 }], addresses: [], foreign: 2 },
    ],
    [
      'an alias that no host has',
      message({ ...asked('a.test'), answers: [alias('a.test', 'b c.test'), record('b c.test', A, v4)] }),
      { chain: 'odd-name', addresses: [], foreign: 2 },
    ],
    [
      'an owner that no host has',
      message({ ...asked('a.test'), answers: [record('a b', A, v4), record('a.test', A, v4)] }),
      { addresses: [own], foreign: 1 },
    ],
    [
      'the other family',
      message({ ...asked('a.test'), answers: [record('a.test', AAAA, v6)] }),
      { addresses: [], foreign: 1 },
    ],
    [
      'both families, asked for any',
      message({ ...asked('a.test', 255), answers: [record('a.test', A, v4), record('a.test', AAAA, v6)] }),
      { addresses: [own, { address: '2001:db8::1', family: 6, ttl: 60 }] },
    ],
    [
      'another class',
      message({ ...asked('a.test'), answers: [record('a.test', A, v4, 60, 3)] }),
      { addresses: [], foreign: 1 },
    ],
    [
      'another class that was asked',
      message({ flags: FLAGS, questions: [question('a.test', A, 3)], answers: [record('a.test', A, v4)] }),
      { addresses: [], foreign: 1 },
    ],
    [
      'addresses with an error',
      message({ ...asked('a.test'), flags: FLAGS | 3, answers: [record('a.test', A, v4)] }),
      { rcode: 3, addresses: [] },
    ],
    [
      'addresses with an error of EDNS',
      message({ ...asked('a.test'), answers: [record('a.test', A, v4)], additionals: [edns([], 0x01000000)] }),
      { rcode: 16, addresses: [] },
    ],
    [
      'addresses of servers',
      message({
        ...asked('a.test'),
        authorities: [record('a.test', 2, nameBytes('ns.test')), record('a.test', A, v4)],
        additionals: [record('a.test', A, v4)],
      }),
      { addresses: [], foreign: 0 },
    ],
    [
      'an alias for another type',
      message({ ...asked('a.test', MX), answers: [alias('a.test', 'b.test'), record('b.test', MX, [0, 1, 0])] }),
      { aliases: [{ name: 'b.test', ttl: 60 }], addresses: [] },
    ],
    [
      'half of what there is',
      message({ ...asked('a.test'), flags: FLAGS | 0x0200, answers: [record('a.test', A, v4)] }),
      { truncated: true, addresses: [own] },
    ],
    [
      'a time to live with the top bit',
      message({ ...asked('a.test'), answers: [record('a.test', A, v4, 0x80000000)] }),
      { addresses: [{ ...own, ttl: 0 }] },
    ],
    [
      'the longest time to live',
      message({ ...asked('a.test'), answers: [record('a.test', A, v4, 0x7fffffff)] }),
      { addresses: [{ ...own, ttl: 0x7fffffff }] },
    ],
    [
      'hints of HTTPS',
      message({
        ...asked('a.test', HTTPS),
        answers: [record('a.test', HTTPS, [0, 1, 0, 0, 1, 0, 3, 2, 104, 50, 0, 4, 0, 4, ...v4, 0, 6, 0, 16, ...v6])],
      }),
      { hints: 1, addresses: [], foreign: 0 },
    ],
    [
      'HTTPS without hints',
      message({ ...asked('a.test', HTTPS), answers: [record('a.test', HTTPS, [0, 1, 0, 0, 1, 0, 3, 2, 104, 50])] }),
      { hints: 0 },
    ],
    [
      'hints beside the answer',
      message({
        ...asked('a.test'),
        additionals: [record('a.test', 64, [0, 1, ...nameBytes('b.test'), 0, 4, 0, 4, ...v4])],
      }),
      { hints: 1, addresses: [] },
    ],
    [
      'an error that says nothing of the question',
      message({ flags: FLAGS | 1 }),
      { rcode: 1, name: undefined, addresses: [] },
    ],
  ];
  for (const [name, bytes, expected] of rows) has(t, answerOf(bytes), expected, name);
});

t.test('answers that are refused', async (t) => {
  const address = record('a.test', A, v4);
  // Each points to the one before it, the first to the root at the end of the question's name.
  const first = QUESTION + question('a.test', A).length + 10;
  const links = Array.from({ length: 130 }, (_, i) => pointer(i === 0 ? QUESTION + 7 : first + 1 + 2 * (i - 1)));
  const rows: [name: string, bytes: Uint8Array, expected: DnsReason][] = [
    ['a query', message({ questions: [question('a', A)] }), 'query-not-response'],
    ['an answer to an update', message({ ...asked('a'), flags: 0xa800 }), 'opcode-not-query'],
    ['no question, and no error', message({ flags: FLAGS }), 'no-question'],
    ['no question, an error and records', message({ flags: FLAGS | 3, answers: [address] }), 'no-question'],
    ['two questions', message({ flags: FLAGS, questions: [question('a', A), question('b', A)] }), 'several-questions'],
    [
      'fewer records than it says',
      message({ ...asked('a.test'), answers: [address], counts: [1, 2, 0, 0] }),
      'cut-short',
    ],
    ['more than it says', message({ ...asked('a.test'), answers: [address], counts: [1, 0, 0, 0] }), 'trailing-bytes'],
    ['data beyond the end', message({ ...asked('a.test'), answers: [address.slice(0, -1)] }), 'cut-short'],
    ['more records than anyone sends', message({ ...asked('a.test'), counts: [1, 1000, 20, 5] }), 'too-many-records'],
    [
      'an IPv4 address of five bytes',
      message({ ...asked('a.test'), answers: [record('a.test', A, [...v4, 0])] }),
      'bad-record',
    ],
    ['an IPv6 address of four', message({ ...asked('a.test'), answers: [record('a.test', AAAA, v4)] }), 'bad-record'],
    [
      'an alias with bytes behind it',
      message({ ...asked('a.test'), answers: [record('a.test', CNAME, [...nameBytes('b'), 0])] }),
      'bad-record',
    ],
    [
      'an alias that ends in the next record',
      message({ ...asked('a.test'), answers: [record('a.test', CNAME, [2, 98]), address] }),
      'bad-record',
    ],
    [
      'an alias to its own record',
      message({ ...asked('a.test'), answers: [record(pointer(QUESTION), CNAME, pointer(36))] }),
      'bad-pointer',
    ],
    ['an owner that is its own', message({ ...asked('a.test'), answers: [record(pointer(24), A, v4)] }), 'bad-pointer'],
    [
      'an owner behind a bit label',
      message({ ...asked('a.test'), answers: [record([0x41, 0], A, v4)] }),
      'bad-label-type',
    ],
    [
      'an owner without end',
      message({ ...asked('a.test'), answers: [record(nameBytes(Array(128).fill('a').join('.')), A, v4)] }),
      'name-too-long',
    ],
    [
      'an owner behind 130 pointers',
      message({
        ...asked('a.test'),
        answers: [record('', 16, links.flat()), record(pointer(first + 1 + 2 * 129), A, v4)],
      }),
      'too-many-pointers',
    ],
    ['EDNS among the answers', message({ ...asked('a.test'), answers: [edns()] }), 'bad-edns'],
    ['EDNS twice', message({ ...asked('a.test'), additionals: [edns(), edns()] }), 'several-edns'],
    [
      'HTTPS without a target',
      message({ ...asked('a.test', HTTPS), answers: [record('a.test', HTTPS, [0, 1])] }),
      'bad-record',
    ],
    [
      'HTTPS with a pointer as target',
      message({ ...asked('a.test', HTTPS), answers: [record('a.test', HTTPS, [0, 1, 0xc0, QUESTION])] }),
      'bad-record',
    ],
    [
      'HTTPS with half a parameter',
      message({ ...asked('a.test', HTTPS), answers: [record('a.test', HTTPS, [0, 1, 0, 0, 4, 0, 4, 1])] }),
      'bad-record',
    ],
  ];
  for (const [name, bytes, expected] of rows) t.equal(answerOf(bytes), expected, `${name}: ${expected}`);
  const small = new DnsAnswerReader({ bytes: 100, records: 2, aliases: 1 });
  t.match(small.datagram(new Uint8Array(101)), { reason: 'message-too-large' });
  t.match(small.stream(hex('0065')), { reason: 'message-too-large' });
});

t.test('each reason has a row', async (t) => {
  const all: Record<DnsReason, true> = {
    'bad-edns': true,
    'bad-label-type': true,
    'bad-pointer': true,
    'bad-record': true,
    'cut-short': true,
    'message-too-large': true,
    'name-too-long': true,
    'no-question': true,
    'odd-name-byte': true,
    'opcode-not-query': true,
    'query-not-response': true,
    'records-in-query': true,
    'reserved-bit': true,
    'response-not-query': true,
    'several-edns': true,
    'several-questions': true,
    'too-many-pointers': true,
    'too-many-records': true,
    'trailing-bytes': true,
  };
  t.same([...shown].sort(), Object.keys(all).sort());
});
