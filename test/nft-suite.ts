/**
 * What an Nft must do, be it the kernel (test/netns/kernel.test.ts) or the fake (test/unit/kernel.test.ts): one table,
 * every row is led to from the row before it, so that the differences between rows are walked too.
 */
import type { Test } from 'tap';
import { families } from '../api/plan.ts';
import {
  bytesLimitText,
  classText,
  concat,
  connectionLimitText,
  diffRuleset,
  emptyChange,
  emptyState,
  isEmptyChange,
  markText,
  type Nft,
  type NftElement,
  type NftSet,
  portsText,
  protocolText,
  type Ruleset,
  rangeText,
  rateLimitText,
  rawText,
  scriptOf,
  stateOf,
  type TableChange,
} from '../kernel/nft.ts';

export const TABLE = 'sluice_test';

const addresses = {
  4: {
    type: 'ipv4_addr',
    one: '10.2.0.21',
    net: rangeText('10.0.0.0', '10.0.0.255'),
    odd: rangeText('10.1.0.3', '10.1.0.9'),
    all: rangeText('0.0.0.0', '255.255.255.255'),
    snat: '203.0.113.101',
  },
  6: {
    type: 'ipv6_addr',
    one: '::ffff:a00:1',
    net: rangeText('fd00::', 'fd00::ff'),
    odd: rangeText('fd01::3', 'fd01::9'),
    all: rangeText('::', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
    snat: '2001:db8:113::101',
  },
} as const;

/** Every shape that the compilers use, each with the elements that nft prints in another form. */
export function everySet(): Record<string, NftSet> {
  const sets: Record<string, NftSet> = {
    marks: {
      type: 'mark',
      value: 'verdict',
      elements: new Map([
        [markText(7), 'goto leaf_1'],
        [markText(8), 'jump leaf_1'],
        [markText(0xffffff00), 'drop'],
        [markText(10), 'accept'],
      ]),
    },
    counts: {
      type: 'mark',
      counted: true,
      size: 1 << 10,
      elements: new Map([
        [markText(7), ''],
        [markText(0x80000000), ''],
      ]),
    },
    rates: {
      type: 'mark',
      limited: 'rate',
      elements: new Map([
        [markText(7), rateLimitText(5)],
        [markText(0x80000000), rateLimitText(1_000_000)],
      ]),
    },
    connections: {
      type: 'mark',
      limited: 'connections',
      elements: new Map([
        [markText(7), connectionLimitText(5)],
        [markText(8), connectionLimitText(1_000_000)],
      ]),
    },
    bytes: {
      type: 'classid',
      limited: 'bytes',
      elements: new Map([
        [classText(0x7000, 1), bytesLimitText(125, 131_072)],
        [classText(0x7000, 2), bytesLimitText(6_250_000, 131_072)],
        // What nft would write as kbytes, mbytes and gbytes.
        [classText(0x7fff, 0x1000), bytesLimitText(1024 * 12_207, 131_072)],
        [classText(0x7fff, 0x1001), bytesLimitText(1024 ** 2 * 11, 1024 ** 2)],
        [classText(0x7fff, 0x1002), bytesLimitText(1024 ** 3 * 11, 131_072)],
        [classText(0x7fff, 0x1003), bytesLimitText(12_500_000_000, 131_072)],
      ]),
    },
    classes: {
      type: 'classid',
      value: 'classid',
      elements: new Map([
        [classText(0x7000, 1), classText(0x1e6e, 1)],
        [classText(0x7abc, 0xdef), classText(0x1e6e, 0xffff)],
      ]),
    },
    class_chains: {
      type: 'classid',
      value: 'verdict',
      elements: new Map([[classText(0x7000, 1), 'goto leaf_1']]),
    },
    mark_protocols: {
      type: 'mark . inet_proto',
      elements: new Map([
        [concat(markText(7), protocolText(6)), ''],
        [concat(markText(7), protocolText(253)), ''],
      ]),
    },
    links: { type: 'ifname . inet_service', elements: new Map([['"eth0" . 4793', '']]) },
    ports: {
      type: 'inet_service',
      interval: true,
      elements: new Map([
        [portsText(0, 1023), ''],
        [portsText(8080, 8080), ''],
      ]),
    },
    inner4: {
      type: { typeof: 'ip saddr . @th,336,32' },
      interval: true,
      elements: new Map([
        [concat('10.0.0.21', rawText(0xaf40105n)), ''],
        [concat('10.0.0.22', rangeText(rawText(0xaf40200n), rawText(0xaf402ffn))), ''],
      ]),
    },
    inner4_exact: {
      type: { typeof: 'ip saddr . @th,336,32' },
      elements: new Map([
        [concat('10.0.0.21', rawText(0xaf40105n)), ''],
        [concat('10.0.0.21', rawText(0xfffffffen)), ''],
      ]),
    },
    inner6: {
      type: { typeof: 'ip6 saddr . @th,304,128' },
      interval: true,
      elements: new Map([
        [concat('fd00::21', rawText(0xfd000244000100000000000000000005n)), ''],
        [
          concat(
            'fd00::22',
            rangeText(rawText(0xfd000244000200000000000000000000n), rawText(0xfd00024400020000ffffffffffffffffn)),
          ),
          '',
        ],
      ]),
    },
    inner64: {
      type: { typeof: 'ip6 saddr . @th,304,64' },
      elements: new Map([
        [concat('fd00::21', rawText(0xfd00024400010001n)), ''],
        [concat('fd00::21', rawText(0x2001_0db8_0000_0001n)), ''],
      ]),
    },
    inner_mark: {
      type: { typeof: 'ip saddr . @th,336,32' },
      value: 'mark',
      elements: new Map([[concat('10.0.0.21', rawText(5n)), markText(9)]]),
    },
  };
  for (const family of families) {
    const { type, one, net, odd, all, snat } = addresses[family];
    Object.assign(sets, {
      [`ranges${family}`]: {
        type,
        interval: true,
        elements: new Map([
          [net, ''],
          [odd, ''],
          [one, ''],
        ]),
      },
      [`any${family}`]: { type, interval: true, elements: new Map([[all, '']]) },
      [`exact${family}`]: { type, elements: new Map([[one, '']]) },
      [`boxes${family}`]: {
        type: `${type} . inet_proto . inet_service`,
        interval: true,
        elements: new Map([
          [concat(net, protocolText(6), portsText(80, 80)), ''],
          [concat(odd, protocolText(17), portsText(80, 90)), ''],
          [concat(one, protocolText(132), portsText(0, 65535)), ''],
          [concat(all, protocolText(254), portsText(22, 22)), ''],
        ]),
      },
      [`types${family}`]: {
        type: family === 4 ? 'ipv4_addr . icmp_type . icmp_code' : 'ipv6_addr . icmpv6_type . icmpv6_code',
        interval: true,
        elements: new Map([
          [concat(net, portsText(128, 128), portsText(0, 255)), ''],
          [concat(net, portsText(3, 3), portsText(4, 4)), ''],
          [concat(odd, portsText(8, 14), portsText(0, 255)), ''],
          [concat(all, portsText(255, 255), portsText(7, 200)), ''],
        ]),
      },
      [`rule_boxes${family}`]: {
        type: `mark . ${type} . inet_proto . inet_service`,
        interval: true,
        elements: new Map([[concat(markText(7), net, rangeText('0', '255'), portsText(443, 443)), '']]),
      },
      [`source${family}`]: { type, value: 'mark', elements: new Map([[one, markText(7)]]) },
      [`snat${family}`]: { type, value: type, elements: new Map([[one, snat]]) },
      [`spread${family}`]: {
        type: `${type} . mark`,
        value: type,
        elements: new Map([[concat(one, markText(1)), snat]]),
      },
      [`leaf${family}`]: { type, value: 'verdict', elements: new Map([[one, 'goto leaf_1']]) },
      [`box_verdict${family}`]: {
        type: `${type} . inet_service`,
        value: 'verdict',
        interval: true,
        elements: new Map([[concat(net, portsText(80, 90)), 'goto leaf_1']]),
      },
    } satisfies Record<string, NftSet>);
  }
  return sets;
}

const rule = (table: Partial<Ruleset>): Ruleset => ({
  family: 'inet',
  table: TABLE,
  counters: [],
  sets: {},
  chains: {},
  ...table,
});
const hook = 'type filter hook forward priority filter; policy accept;';
const numbers = (key: (n: number) => string, value: (n: number) => string, from: number, to: number) =>
  new Map(Array.from({ length: to - from }, (_, n): [string, string] => [key(from + n), value(from + n)]));
const tenNet = (n: number) => `10.9.${n >> 8}.${n & 255}`;

/** Rows: the same table, one ruleset after another. */
export const rulesets: [title: string, ruleset: Ruleset][] = [
  ['an empty table', rule({})],
  [
    'every shape of set',
    rule({ counters: ['c_1'], sets: everySet(), chains: { leaf_1: { rules: ['counter name "c_1" drop'] } } }),
  ],
  [
    'the same with another leaf and other limits: verdicts change, the old chain goes',
    (() => {
      const sets = everySet();
      for (const set of Object.values(sets))
        for (const [key, value] of set.elements)
          set.elements.set(key, value.replace('leaf_1', 'leaf_2').replace('over 5', 'over 6'));
      return rule({ counters: ['c_2'], sets, chains: { leaf_2: { rules: ['counter name "c_2" accept', 'drop'] } } });
    })(),
  ],
  [
    'a verdict map goes together with its chain',
    rule({ sets: { exact4: { type: 'ipv4_addr', elements: new Map() } } }),
  ],
  [
    'a set under the same name gets another shape',
    rule({
      sets: {
        exact4: { type: 'ipv6_addr . inet_proto', interval: true, elements: new Map([['fd00::-fd00::ff . 6', '']]) },
      },
    }),
  ],
  [
    'and becomes a map',
    rule({ sets: { exact4: { type: 'ipv6_addr', value: 'mark', elements: new Map([['fd00::1', markText(1)]]) } } }),
  ],
  [
    '600 elements',
    rule({ sets: { source4: { type: 'ipv4_addr', value: 'mark', elements: numbers(tenNet, markText, 0, 600) } } }),
  ],
  [
    'other values for them, some gone, some new',
    rule({
      sets: {
        source4: { type: 'ipv4_addr', value: 'mark', elements: numbers(tenNet, (n) => markText(n + 1), 300, 1000) },
      },
    }),
  ],
  [
    'intervals',
    rule({
      sets: {
        r4: {
          type: 'ipv4_addr',
          interval: true,
          elements: new Map([
            ['10.0.0.0-10.0.0.255', ''],
            ['10.0.2.0-10.0.2.9', ''],
          ]),
        },
        b4: { type: 'ipv4_addr . inet_service', interval: true, elements: new Map([['10.0.0.0-10.0.0.255 . 80', '']]) },
      },
    }),
  ],
  [
    'intervals split, joined, overlapping the old ones, adjacent',
    rule({
      sets: {
        r4: {
          type: 'ipv4_addr',
          interval: true,
          elements: new Map([
            ['10.0.0.0-10.0.0.99', ''],
            ['10.0.0.100', ''],
            ['10.0.0.101-10.0.3.255', ''],
          ]),
        },
        b4: {
          type: 'ipv4_addr . inet_service',
          interval: true,
          elements: new Map([
            ['10.0.0.128-10.0.1.255 . 70-90', ''],
            ['10.0.0.0-10.0.0.127 . 80', ''],
          ]),
        },
      },
    }),
  ],
  [
    'chains that jump to each other',
    rule({
      counters: ['c_1'],
      chains: {
        forward: { hook, rules: ['jump walk_1'] },
        walk_1: { rules: ['ip saddr 10.0.0.1 jump leaf_1', 'goto leaf_2'] },
        leaf_1: { rules: ['counter name "c_1" return'] },
        leaf_2: { rules: ['drop'] },
      },
    }),
  ],
  [
    'a base chain of a fixed name jumps elsewhere, all old chains go',
    rule({
      counters: ['c_1'],
      chains: {
        forward: { hook, rules: ['jump guard_1', 'jump walk_2'] },
        guard_1: { rules: ['counter name "c_1" return'] },
        walk_2: { rules: ['accept'] },
      },
    }),
  ],
  [
    'a chain without a hook that keeps its name jumps elsewhere, and nothing else changes',
    rule({
      counters: ['c_1'],
      chains: {
        forward: { hook, rules: ['jump guard_1', 'jump walk_2'] },
        guard_1: { rules: ['counter name "c_1" return'] },
        walk_2: { rules: ['jump walk_3', 'drop'] },
        walk_3: { rules: ['accept'] },
      },
    }),
  ],
  [
    'and elsewhere again',
    rule({
      counters: ['c_1'],
      chains: {
        forward: { hook, rules: ['jump guard_1', 'jump walk_2'] },
        guard_1: { rules: ['counter name "c_1" return'] },
        walk_2: { rules: ['jump walk_4', 'drop'] },
        walk_4: { rules: ['counter name "c_1" accept'] },
      },
    }),
  ],
  [
    'a chain of a fixed name gets other rules, and a base chain that jumps nowhere',
    rule({
      counters: ['c_1'],
      chains: {
        forward: { hook, rules: ['ip saddr 10.0.0.1 counter name "c_1"', 'jump walk_2'] },
        walk_2: { rules: ['ip saddr 10.0.0.9 drop', 'return'] },
      },
    }),
  ],
  ['base chains named by content swap', rule({ chains: { forward_2: { hook, rules: ['ip saddr 10.0.0.1 drop'] } } })],
  ['once more', rule({ chains: { forward_3: { hook, rules: ['ip6 saddr fd00::1 drop'] } } })],
];

export async function nftSuite(t: Test, nft: Nft): Promise<void> {
  t.same(await nft.list('inet', TABLE), emptyState(), 'no table at first');
  t.same(await nft.counters(TABLE), {}, 'and no counters');
  await nft.drop(TABLE);
  for (const [title, ruleset] of rulesets) {
    const change = diffRuleset(await nft.list('inet', TABLE), ruleset);
    t.notOk(isEmptyChange(change), `${title}: something to do`);
    await nft.run(change);
    const listed = await nft.list('inet', TABLE);
    t.same(listed, stateOf(ruleset), `${title}: listed as wanted`);
    t.ok(isEmptyChange(diffRuleset(listed, ruleset)), `${title}: nothing left to do`);
  }
  const [, base] = rulesets[10] as [string, Ruleset];
  const leaf = (name: string, from: number, to: number): Ruleset => ({
    ...base,
    sets: { source4: { type: 'ipv4_addr', value: 'mark', elements: numbers(tenNet, markText, from, to) } },
    chains: { ...base.chains, leaf_1: base.chains.leaf_1 ?? { rules: [] }, [name]: { rules: ['drop'] } },
  });
  await nft.run(diffRuleset(await nft.list('inet', TABLE), leaf('leaf_2', 0, 100)));
  const membership = diffRuleset(await nft.list('inet', TABLE), leaf('leaf_2', 1, 101));
  t.same(
    scriptOf(membership)
      .trimEnd()
      .split('\n')
      .map((line) => line.split(' ').slice(0, 2).join(' ')),
    ['delete element', 'add element'],
    'membership is element updates only',
  );
  t.same(await nft.counters(TABLE), { c_1: { packets: 0, bytes: 0 } });

  const before = await nft.list('inet', TABLE);
  const shape = 'type ipv4_addr : mark;';
  const element = (set: string, key: string, value: string) => [
    { set, shape, elements: [[key, value]] as NftElement[] },
  ];
  const refused: [title: string, code: string, change: Partial<TableChange>][] = [
    ['an element into a set that is not there', 'ENOENT', { elementsIn: element('nope', '10.0.0.1', markText(1)) }],
    ['a rule with a chain that is not there', 'ENOENT', { rules: [['walk_1', 'jump nope']] }],
    ['deleting an element that is not there', 'ENOENT', { elementsOut: element('source4', '192.0.2.1', '0x00000001') }],
    ['another value for a key', 'EEXIST', { elementsIn: element('source4', '10.9.0.5', '0x00000fff') }],
    ['deleting a chain that is jumped to', 'EBUSY', { chainsOut: ['walk_1'] }],
  ];
  for (const [title, code, change] of refused) {
    const whole = { ...emptyChange('inet', TABLE), counters: ['c_9'], ...change };
    await t.rejects(nft.run(whole), { name: 'KernelError', code }, title);
    t.same(await nft.list('inet', TABLE), before, `${title}: nothing of the transaction is left`);
  }
  await nft.drop(TABLE);
  t.same(await nft.list('inet', TABLE), emptyState(), 'dropped');
}
