/**
 * Addresses, prefixes, ranges and prefix sets: vectors of RFC 4291 and RFC 5952, and texts that must be refused.
 */

import t from 'tap';
import {
  coverOf,
  formatAddress,
  formatPrefix,
  formatRange,
  parseAddress,
  parsePrefix,
  parseRange,
  rangeToPrefixes,
} from '../../api/address.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must, type Result } from '../../api/result.ts';

t.test('the prefix around ranges', (t) => {
  for (const [ranges, around] of [
    [['10.1.2.3'], '10.1.2.3/32'],
    [['203.0.113.101', '203.0.113.102'], '203.0.113.100/30'],
    [['10.0.0.0/9', '10.128.0.1'], '10.0.0.0/8'],
    [['0.0.0.0', '255.255.255.255'], '0.0.0.0/0'],
    [['2001:db8::1', '2001:db8::8000:0:0:0'], '2001:db8::/64'],
    [[], undefined],
  ] as const) {
    const cover = coverOf(ranges.map((text) => must(parseRange(text))));
    t.equal(cover && formatPrefix(cover), around, `${ranges}`);
  }
  t.end();
});

t.test('parseAddress and formatAddress: text → canonical text', (t) => {
  const rows: [string, string][] = [
    ['0.0.0.0', '0.0.0.0'],
    ['255.255.255.255', '255.255.255.255'],
    ['10.0.0.1', '10.0.0.1'],
    ['::', '::'],
    ['::1', '::1'],
    ['1::', '1::'],
    ['2001:DB8:0:0:8:800:200C:417A', '2001:db8::8:800:200c:417a'], // RFC 4291 §2.2
    ['ff01:0:0:0:0:0:0:101', 'ff01::101'],
    ['0:0:0:0:0:FFFF:129.144.52.38', '::ffff:8190:3426'],
    ['::13.1.68.3', '::d01:4403'],
    ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'], // RFC 5952 §4.2.2: one group is not shortened
    ['2001:0:0:1:0:0:0:1', '2001:0:0:1::1'], // §4.2.3: the longest run
    ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'], // the first of equal runs
    ['2001:0db8::0001', '2001:db8::1'],
    ['1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0'],
    ['::2:3:4:5:6:7:8', '0:2:3:4:5:6:7:8'],
    ['ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'],
  ];
  for (const [text, canonical] of rows) {
    const address = parseAddress(text);
    t.ok(address.ok, text);
    if (address.ok) t.equal(formatAddress(address.value), canonical, text);
  }
  t.same(parseAddress('1.2.3.4'), { ok: true, value: { family: 4, value: 0x01020304n } });
  t.same(parseAddress('2001:db8::1'), { ok: true, value: { family: 6, value: 0x20010db8000000000000000000000001n } });
  t.end();
});

t.test('texts that are refused', (t) => {
  const none: Record<string, [(text: string) => Result<unknown>, string[]]> = {
    address: [
      parseAddress,
      [
        '',
        '1',
        '1.2.3',
        '1.2.3.4.5',
        '010.0.0.1',
        '1.2.3.04',
        '1.2.3.256',
        '0x1.2.3.4',
        '1.2.3.4 ',
        ' 1.2.3.4',
        '1.2.3.4\n',
        '1.2.3.-4',
        '1.2.3.4/32',
        '1..3.4',
        '١.2.3.4',
        ':',
        ':::',
        '1:2:3:4:5:6:7',
        '1:2:3:4:5:6:7:8:9',
        '1:2:3:4:5:6:7:8::',
        '::1:2:3:4:5:6:7:8',
        '1::2::3',
        '12345::',
        'g::',
        '::1%eth0',
        '[::1]',
        ':1:2:3:4:5:6:7',
        '1:2:3:4:5:6:7:',
        '1.2.3.4::',
        '::1.2.3',
        '::1.2.3.4:5',
        '::01.2.3.4',
        'localhost',
      ],
    ],
    prefix: [
      parsePrefix,
      [
        '10.0.0.0',
        '10.0.0.0/',
        '10.0.0.0/33',
        '10.0.0.1/24',
        '10.0.0.0/08',
        '10.0.0.0/-1',
        '10.0.0.0/8/8',
        '10.0.0.0/+8',
        '::/129',
        '::1/64',
        '/8',
        '10.0.0.0 /8',
      ],
    ],
    range: [
      parseRange,
      [
        '10.0.0.9-10.0.0.1',
        '10.0.0.1-::1',
        '10.0.0.1-',
        '-10.0.0.1',
        '10.0.0.1-9',
        '10.0.0.1-10.0.0.2-10.0.0.3',
        '10.0.0.1 - 10.0.0.2',
        '10.0.0.0/24-10.0.1.0/24',
        '',
      ],
    ],
  };
  for (const [what, [parse, texts]] of Object.entries(none)) {
    for (const text of texts) t.notOk(parse(text).ok, `${what} ${JSON.stringify(text)}`);
  }
  const error = (result: Result<unknown>) => (result.ok ? '' : result.error);
  t.match(error(parseAddress('010.0.0.1')), /leading zero/);
  t.match(error(parseAddress('fe80::1%eth0')), /zone id/);
  t.match(error(parsePrefix('10.0.0.1/8')), /the prefix is 10\.0\.0\.0\/8/);
  t.match(error(parsePrefix('2001:db8::1/32')), /the prefix is 2001:db8::\/32/);
  t.end();
});

t.test('ranges ↔ prefixes', (t) => {
  const rows: [string, string, string[]][] = [
    ['10.0.0.1', '10.0.0.1/32', ['10.0.0.1/32']],
    ['10.0.0.0-10.0.0.255', '10.0.0.0/24', ['10.0.0.0/24']],
    ['0.0.0.0/0', '0.0.0.0/0', ['0.0.0.0/0']],
    ['0.0.0.0-255.255.255.255', '0.0.0.0/0', ['0.0.0.0/0']],
    ['10.0.0.1-10.0.0.6', '10.0.0.1-10.0.0.6', ['10.0.0.1/32', '10.0.0.2/31', '10.0.0.4/31', '10.0.0.6/32']],
    ['255.255.255.254-255.255.255.255', '255.255.255.254/31', ['255.255.255.254/31']],
    ['::/0', '::/0', ['::/0']],
    ['2001:db8::1', '2001:db8::1/128', ['2001:db8::1/128']],
    ['2001:DB8::1-2001:db8::3', '2001:db8::1-2001:db8::3', ['2001:db8::1/128', '2001:db8::2/127']],
    ['fd00::-fd00::ffff', 'fd00::/112', ['fd00::/112']],
  ];
  for (const [text, canonical, prefixes] of rows) {
    const range = must(parseRange(text));
    t.equal(formatRange(range), canonical, text);
    t.same(rangeToPrefixes(range).map(formatPrefix), prefixes, text);
  }
  // The worst range of each family: every bit length twice, less the two that never occur.
  t.equal(rangeToPrefixes(must(parseRange('0.0.0.1-255.255.255.254'))).length, 62);
  t.equal(rangeToPrefixes(must(parseRange('::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe'))).length, 254);
  t.end();
});

t.test('PrefixSet', (t) => {
  const set = (...texts: string[]) => must(PrefixSet.parse(texts));
  const rows: [string, PrefixSet, string][] = [
    ['nothing', set(), ''],
    ['adjacent ranges merge', set('10.0.0.0/25', '10.0.0.128/25'), '10.0.0.0/24'],
    ['overlapping ranges merge', set('10.0.0.5-10.0.0.9', '10.0.0.1-10.0.0.6'), '10.0.0.1-10.0.0.9'],
    ['one inside another', set('10.0.0.0/8', '10.1.0.0/16'), '10.0.0.0/8'],
    ['families stay apart', set('::/96', '0.0.0.0/0'), '0.0.0.0/0,::/96'],
    ['a hole', set('10.0.0.0/24').exclude(set('10.0.0.64/26')), '10.0.0.0/26,10.0.0.128/25'],
    [
      'a hole over two ranges',
      set('10.0.0.1-10.0.0.4', '10.0.0.8-10.0.0.9').exclude(set('10.0.0.3-10.0.0.8')),
      '10.0.0.1-10.0.0.2,10.0.0.9/32',
    ],
    ['a hole at either end', set('fd00::/126').exclude(set('fd00::', 'fd00::3')), 'fd00::1-fd00::2'],
    ['everything', set('0.0.0.0/0').exclude(set('0.0.0.0/1', '128.0.0.0/1')), ''],
    ['union', set('10.0.0.1').union(set('10.0.0.2', 'fd00::1')), '10.0.0.1-10.0.0.2,fd00::1/128'],
  ];
  for (const [what, value, text] of rows) t.equal(String(value), text, what);
  t.notOk(PrefixSet.parse(['10.0.0.0/8', '10.0.0.1/8']).ok, 'a bad text is an error');
  t.equal(set('10.0.0.0/24', '10.0.2.0/24', '::/64').size(4), 512n);
  t.equal(set('::/64').size(6), 1n << 64n);
  t.equal(set('::/64').intersects(must(parseRange('0.0.0.0/0'))), false);
  t.end();
});
