/**
 * A table that is made by our own netlink messages is the one that nft makes: both ways in two namespaces, and what
 * `nft -n list` prints of each is the same text. No traffic: the packets of the other tests here go through such tables.
 * Root.
 */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { compileGateway } from '../../gateway/compile.ts';
import {
  diffRuleset,
  type ElementsChange,
  emptyChange,
  emptyState,
  markText,
  type NftSet,
  type NftState,
  type Ruleset,
  scriptOf,
  stateOf,
  type TableChange,
} from '../../kernel/nft.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { run } from '../../kernel/run.ts';
import { everySet } from '../nft-suite.ts';
import { directPlan, randomPlan, randomTypedPlan } from './gateway-plans.ts';

const TABLE = 't';
const ROUNDS = 8;
const names = { own: `t-nftlink-${process.pid}-0`, nft: `t-nftlink-${process.pid}-1` };
const own = new HostNft({ namespace: names.own });
const nft = new HostNft({ namespace: names.nft });

t.setTimeout(570_000);
for (const namespace of Object.values(names)) {
  await run(['ip', 'netns', 'add', namespace], { op: 'netns add' });
  for (const device of ['inside', 'outside']) {
    await run(['ip', '-n', namespace, 'link', 'add', device, 'type', 'veth', 'peer', `${device}-peer`], { op: 'veth' });
  }
}
t.teardown(async () => {
  for (const namespace of Object.values(names)) await run(['ip', 'netns', 'del', namespace], { op: 'netns del' });
});

const listed = (namespace: string): Promise<string> =>
  run(['ip', 'netns', 'exec', namespace, 'nft', '-n', 'list', 'ruleset'], { op: 'nft list' });

/** Makes the change both ways; the own way must be one. */
async function both(t: Test, change: TableChange, title: string): Promise<void> {
  t.ok(own.encode(change), `${title}: by netlink`);
  await own.run(change);
  await nft.runScript(scriptOf(change));
  t.equal(await listed(names.own), await listed(names.nft), title);
}

async function begin(table: string, script = ''): Promise<void> {
  for (const host of [own, nft]) {
    await host.runScript(`flush ruleset\nadd table inet ${table}\n${script}`);
  }
}

const isPlainInterval = ({ interval, type }: NftSet): boolean =>
  interval === true && !(typeof type === 'string' ? type : type.typeof).includes(' . ');

t.test('sets of every shape, and what becomes of their elements', async (t) => {
  const sets: Record<string, NftSet> = Object.fromEntries(
    Object.entries(everySet()).filter(([, set]) => !isPlainInterval(set)),
  );
  for (const type of ['ip daddr . meta l4proto . th dport', 'udp dport', 'meta mark', 'ip6 saddr . tcp dport']) {
    sets[`told_${type.replace(/\W/g, '_')}`] = { type: { typeof: type }, elements: new Map() };
  }
  for (const value of ['mark', 'verdict', 'ipv4_addr', 'ipv6_addr'] as const) {
    sets[`told_${value}`] = { type: { typeof: 'ip saddr . @nh,96,32' }, value, elements: new Map() };
  }
  const ruleset: Ruleset = {
    family: 'inet',
    table: TABLE,
    counters: ['c_1'],
    sets,
    chains: { leaf_1: { rules: ['drop'] } },
  };
  await both(t, diffRuleset(emptyState(), ruleset), 'all of them, full');
  const half = (of: 0 | 1): Ruleset => ({
    ...ruleset,
    sets: Object.fromEntries(
      Object.entries(sets).map(([name, set]) => [
        name,
        { ...set, elements: new Map([...set.elements].filter((_, index) => index % 2 === of)) },
      ]),
    ),
  });
  await both(t, diffRuleset(stateOf(ruleset), half(0)), 'every second element goes');
  await both(t, diffRuleset(stateOf(half(0)), half(1)), 'those go and the others come');
  await both(t, diffRuleset(stateOf(half(1)), { ...ruleset, counters: [], sets: {}, chains: {} }), 'all goes');
  for (const set of Object.values(everySet()).filter(isPlainInterval)) {
    const one = { ...ruleset, sets: { s: set } };
    t.notOk(own.encode(diffRuleset(emptyState(), one)), 'a plain interval set is for the command');
  }
});

const SETS = `add set inet ${TABLE} s4 { type ipv4_addr; }
add set inet ${TABLE} s6 { type ipv6_addr; }
add set inet ${TABLE} r4 { type ipv4_addr; flags interval; }
add set inet ${TABLE} protocols { type inet_proto; }
add set inet ${TABLE} pairs { type ipv4_addr . ipv4_addr; }
add set inet ${TABLE} exact { type mark . inet_proto; }
add set inet ${TABLE} boxes { type ipv4_addr . inet_proto . inet_service; flags interval; }
add set inet ${TABLE} boxes6 { type ipv6_addr . inet_proto . inet_service; flags interval; }
add set inet ${TABLE} marked { type mark . inet_proto; flags interval; }
add set inet ${TABLE} types { type ipv4_addr . icmp_type . icmp_code; flags interval; }
add set inet ${TABLE} types6 { type ipv6_addr . icmpv6_type . icmpv6_code; flags interval; }
add set inet ${TABLE} inner { typeof ip saddr . udp dport . @th,96,32 . @th,304,128; }
add set inet ${TABLE} raw { typeof @th,336,32; }
add set inet ${TABLE} marks { type mark; }
add set inet ${TABLE} hits { type mark; size 1024; flags dynamic,timeout; gc-interval 1d; counter; }
add map inet ${TABLE} group { type ipv4_addr : mark; }
add map inet ${TABLE} box_mark { type ipv4_addr . inet_proto . inet_service : mark; flags interval; }
add map inet ${TABLE} marked_box { type mark . ipv4_addr . inet_proto : mark; flags interval; }
add map inet ${TABLE} spread { type mark : ipv4_addr; }
add map inet ${TABLE} snat4 { type ipv4_addr : ipv4_addr; }
add map inet ${TABLE} snat6 { type ipv6_addr : ipv6_addr; }
add map inet ${TABLE} next { type mark : verdict; }
add counter inet ${TABLE} c_1
add chain inet ${TABLE} leaf
add chain inet ${TABLE} plain
add chain inet ${TABLE} before { type nat hook prerouting priority 0; policy accept; }
add chain inet ${TABLE} after { type nat hook postrouting priority 0; policy accept; }
add chain inet ${TABLE} answers { type filter hook forward priority 0; policy accept; }
add chain inet ${TABLE} early { type filter hook prerouting priority -300; policy accept; }
`;

/** Every form of the language that is understood, by the chain that it may stand in. */
const forms: Record<string, string[]> = {
  plain: [
    'drop',
    'accept',
    'return',
    'jump leaf',
    'goto leaf',
    'counter name c_1',
    'counter name "c_1" drop',
    'jump leaf comment "0123456789ab0001"',
    'ip saddr 10.0.0.1 drop comment "another"',
    'limit rate 1000/second burst 1000 packets log prefix "default-action" group 7790 snaplen 96',
    'update @hits { meta mark }',
    'update @hits { ct mark and 0x7fffff00 }',
    'meta mark set 0x00000500 goto leaf',
    'meta mark set meta mark and 0xffffff00 or 0x00000007',
    'meta mark set meta mark or 0x00000100',
    'meta mark set meta mark and 0x000000ff',
    'meta mark set ct mark',
    'meta mark set ct mark and 0x000000ff',
    'ct mark set meta mark and 0x000000ff or 0x00000005',
    'ct mark set ct mark and 0x800000ff or 0x7fffff00 goto leaf',
    'ct mark set ct mark or 0x80000000 accept',
    'ct mark set 0x00000005',
    'meta mark set ip saddr map @group',
    'meta mark set ip daddr . meta l4proto . th dport map @box_mark',
    'ct mark set ip saddr map @group',
    'meta mark vmap @next',
    'meta mark 0x00000000 goto leaf',
    'meta mark != 0x80000001 drop',
    'meta mark and 0x0000ff00 == 0x00000100 drop',
    'ct mark and 0x80000000 == 0x80000000 accept',
    'ct mark and 0x000000ff != 0 return',
    'ct mark 0x00000005 drop',
    'meta mark @marks goto leaf',
    'meta nfproto ipv4 drop',
    'meta nfproto ipv6 ip6 saddr != @s6 goto leaf',
    'meta l4proto tcp drop',
    'meta l4proto 132 drop',
    'meta l4proto != 6 drop',
    'meta l4proto 6-17 drop',
    'meta protocol ip meta mark set 0x00000001',
    'meta iif 0 return',
    'iifname "inside" goto leaf',
    'oifname "sluice-vx" goto leaf',
    'ip saddr 10.0.0.1 drop',
    'ip daddr != 10.0.0.1 drop',
    'ip daddr 10.0.0.3-10.0.0.9 drop',
    'ip daddr != 10.0.0.3-10.0.0.9 drop',
    'ip daddr 10.0.0.0/8 drop',
    'ip daddr 10.0.16.0/20 drop',
    'ip6 daddr fd00::1 drop',
    'ip6 saddr fd00::1-fd00::9 drop',
    'ip6 daddr fd00:0:0:8000::/49 drop',
    'ip6 saddr :: return',
    'th dport 80 drop',
    'th dport 80-90 drop',
    'th dport >= 80 drop',
    'tcp dport 80 drop',
    'udp dport 4793 goto leaf',
    'meta l4proto 6 th dport 8443 drop',
    'meta l4proto tcp tcp dport 80 drop',
    'ip daddr 10.0.0.1 udp dport 53 drop',
    'icmp type 8 drop',
    'icmp code 1 drop',
    'icmpv6 type 128-129 drop',
    'ip daddr 10.0.0.1 icmp type 3 icmp code 4 drop',
    'tcp flags & (syn | ack) == ack goto leaf',
    'ct state invalid,untracked goto leaf',
    'ct state established,related accept',
    'ct state new drop',
    'ct direction reply return',
    'ct original ip saddr 10.0.0.1 drop',
    'meta mark 5-9 drop',
    'meta priority set none',
    'meta priority set 1:a return',
    'meta priority 1:2 drop',
    'meta length 0-80 drop',
    'meta nfproto ipv4 meta length 0-80 tcp flags & (fin | syn | rst | ack) == ack meta priority set none return',
    'ct reply ip daddr 10.0.0.1 drop',
    'ct reply ip6 saddr fd00::1 drop',
    'meta mark set jhash ip saddr . ip daddr mod 3 seed 0x5 offset 7',
    'meta mark set jhash ct original ip6 saddr . ct original ip6 daddr . th sport mod 3 seed 0x5',
    'meta mark set jhash ct original ip saddr . ct original ip daddr . th sport mod 2 seed 0x51 goto leaf',
    'meta mark set meta mark . ct original ip daddr . meta l4proto map @marked_box goto leaf',
    'ct original ip saddr @s4 ct original ip saddr != @r4 goto leaf',
    'ct original ip saddr . ip saddr @pairs ct mark set ct mark or 0x80000000 accept',
    'fib saddr type local return',
    'fib daddr type local goto leaf',
    'meta l4proto ipv6-icmp ct state untracked fib saddr type local return',
    '@th,224,16 0x0800 goto leaf',
    '@th,96,32 != 0x1e1400 goto leaf',
    '@th,336,32 @raw goto leaf',
    '@nh,96,32 0x0a000001 drop',
    '@th,224,16 0x86dd ip saddr . udp dport . @th,96,32 . @th,304,128 @inner drop',
    'ip daddr . meta l4proto . th dport @boxes meta mark set 0x00000100 jump leaf',
    'ip6 daddr . meta l4proto . th dport @boxes6 drop',
    'ip daddr . icmp type . icmp code @types goto leaf',
    'ip6 daddr . icmpv6 type . icmpv6 code @types6 goto leaf',
    'meta mark . meta l4proto @exact drop',
    'meta mark . meta l4proto @marked drop',
    'ip daddr @r4 drop',
    'meta nfproto ipv4 meta l4proto @protocols ip daddr . meta l4proto . th dport @boxes drop',
  ],
  before: [
    'dnat ip to 198.51.100.1',
    'dnat ip6 to 2001:db8::1',
    'meta mark set 0x00000001 dnat ip to 198.51.100.1',
    'meta l4proto 132 dnat ip to 198.51.100.1:99',
    'meta l4proto 17 dnat ip6 to [2001:db8::1]:99',
    'dnat ip to ip daddr map @snat4',
  ],
  after: ['snat ip to 198.51.100.1', 'snat ip to ip saddr map @snat4', 'snat ip6 to ip6 saddr map @snat6'],
  answers: [
    'reject with icmpx admin-prohibited',
    'meta l4proto tcp reject with tcp reset',
    'iifname "inside" meta mark 0x00000001 reject with tcp reset',
    'reject with tcp reset',
  ],
  early: ['notrack', 'udp dport 4793 notrack meta mark set 0x00000001 accept'],
};

t.test('every form of a rule', async (t) => {
  await begin(TABLE, SETS);
  for (const [chain, rules] of Object.entries(forms)) {
    for (const rule of rules) {
      await both(t, { ...emptyChange('inet', TABLE), flushed: [chain], rules: [[chain, rule]] }, `${chain}: ${rule}`);
    }
    const whole = {
      ...emptyChange('inet', TABLE),
      flushed: [chain],
      rules: rules.map((rule): [string, string] => [chain, rule]),
    };
    await both(t, whole, `${chain}: all one behind the other`);
  }
});

t.test('what is not understood is left to the command, which understands it or says why not', async (t) => {
  await begin(TABLE, SETS);
  for (const rule of [
    'fib daddr type { local, broadcast } return',
    'ip daddr { 10.0.0.1, 10.0.0.2 } drop',
    'iifname "eth*" drop',
    'tcp option maxseg size set 1360',
    'limit rate over 10/minute drop',
    'ip daddr 10.0.0.1/24 drop',
    'ip daddr @nowhere drop',
    'ip6 daddr @s4 drop',
    'ip daddr . th dport @boxes drop',
    'meta mark set ip saddr map @s4',
    'ip saddr @group drop',
    'meta mark vmap @group',
    'ip saddr 10.0.0.1 ip6 daddr fd00::1 drop',
    'tcp dport 80 udp dport 80 drop',
    'dnat ip to 198.51.100.1:99',
    'dnat ip to 198.51.100.1:99999',
    'th dport 65536 drop',
    'ip daddr 10.0.0.256 drop',
    'jump',
    'drop )',
    '',
  ]) {
    const change = { ...emptyChange('inet', TABLE), rules: [['plain', rule]] } satisfies TableChange;
    t.notOk(own.encode(change), rule);
  }
  const set = { set: 's4', shape: 'type ipv4_addr;' };
  for (const element of ['10.0.0', '10.0.0.1-10.0.0.2', '10.0.0.1 . 6', 'fd00::1', '']) {
    const change = { ...emptyChange('inet', TABLE), elementsIn: [{ ...set, elements: [[element, '']] }] };
    t.notOk(own.encode(change as TableChange), `element ${element}`);
  }
  const hook = 'type filter hook input priority 0; policy accept;';
  t.notOk(own.encode({ ...emptyChange('inet', TABLE), chains: [{ name: 'b', hook }] }), 'a base chain');
  await own.run({ ...emptyChange('inet', TABLE), rules: [['plain', 'ip daddr { 10.0.0.1, 10.0.0.2 } drop']] });
  t.match(await listed(names.own), /ip daddr \{ 10\.0\.0\.1, 10\.0\.0\.2 \} drop/, 'and is done');
});

t.test('a refusal names the message and the element', async (t) => {
  await begin(TABLE, SETS);
  const many = Array.from({ length: 5000 }, (_, n): [string, string] => [`10.9.${n >> 8}.${n & 255}`, markText(n)]);
  const group = { set: 'group', shape: 'type ipv4_addr : mark;' };
  const change = emptyChange('inet', TABLE);
  await own.run({ ...change, elementsIn: [{ ...group, elements: many }] });
  const before = await listed(names.own);
  for (const [title, code, wrong, message] of [
    [
      'an element that is not there, among many',
      'ENOENT',
      { elementsOut: [{ ...group, elements: [...many.slice(0, 4000), ['10.1.1.1', ''], ...many.slice(4000)] }] },
      /delete element group \{ 10\.1\.1\.1 \}/,
    ],
    [
      'another value',
      'EEXIST',
      {
        elementsIn: [
          {
            ...group,
            elements: [
              ['10.8.0.1', markText(1)],
              ['10.9.0.7', markText(1)],
            ],
          },
        ],
      },
      /add element group \{ 10\.9\.0\.7 : 0x00000001 \}/,
    ],
    ['a chain that is not there', 'ENOENT', { flushed: ['nope'] }, /flush chain nope/],
    ['a target that is not there', 'ENOENT', { rules: [['plain', 'jump nope']] }, /add rule plain jump nope/],
    ['a translation in the wrong hook', 'EOPNOTSUPP', { rules: [['before', 'snat ip to 1.2.3.4']] }, /snat ip to/],
  ] as [string, string, Partial<TableChange>, RegExp][]) {
    const whole = { ...change, counters: ['c_9'], ...wrong };
    t.ok(own.encode(whole), `${title}: by netlink`);
    await t.rejects(own.run(whole), { name: 'KernelError', code, message }, title);
    t.equal(await listed(names.own), before, `${title}: nothing of it is left`);
  }
  await own.run({
    ...change,
    rules: [
      ['answers', 'jump plain'],
      ['plain', 'jump leaf'],
    ],
  });
  await t.rejects(own.run({ ...change, chainsOut: ['leaf'] }), { code: 'EBUSY', message: /delete chain leaf/ });
  const loop = { ...change, rules: [['leaf', 'jump plain']] } satisfies TableChange;
  await t.rejects(
    own.run(loop as TableChange),
    { name: 'KernelError', message: /E(LOOP|MLINK): add rule leaf jump plain/ },
    'a loop',
  );
});

t.test('a big table is made in parts, and the thread is free while the kernel works', async (t) => {
  await begin('other');
  const shape = 'type ipv4_addr : mark;';
  const leaves = Array.from({ length: 6_000 }, (_, n) => `leaf_${n}`);
  const elements = leaves.map((_, n): [string, string] => [`10.9.${n >> 8}.${n & 255}`, markText(n)]);
  const verdicts = leaves.map((leaf, n): [string, string] => [markText(n), `goto ${leaf}`]);
  const change: TableChange = {
    ...emptyChange('inet', TABLE),
    create: true,
    sets: [
      { name: 'm', shape },
      { name: 'v', shape: 'type mark : verdict;' },
    ],
    chains: [
      { name: 'base', hook: 'type filter hook forward priority filter; policy accept;' },
      ...leaves.map((name) => ({ name })),
    ],
    rules: [
      ['base', 'meta mark set ip saddr map @m meta mark vmap @v'],
      ...leaves.map((leaf, n): [string, string] => [leaf, `ip daddr 10.8.${n >> 8}.${n & 255} drop`]),
    ],
    elementsIn: [
      { set: 'm', shape, elements },
      { set: 'v', shape: 'type mark : verdict;', elements: verdicts },
    ],
  };
  const turnsOf = async (made: Promise<void>): Promise<number> => {
    let turns = 0;
    const running = new AbortController();
    const stop = () => running.abort();
    made.then(stop, stop);
    for (; !running.signal.aborted; turns++) await new Promise((resolve) => setImmediate(resolve));
    await made;
    return turns;
  };
  t.ok((await turnsOf(own.run(change))) > 50, 'others have their turns');
  const { chains, sets } = await own.list('inet', TABLE);
  t.equal(chains.size, change.chains.length);
  t.same(sets.get('m')?.elements, new Map(elements));
  t.same(sets.get('v')?.elements, new Map(verdicts));
  const text = await listed(names.own);
  t.ok(
    leaves.every((leaf, n) => text.includes(`chain ${leaf} {\n\t\tip daddr 10.8.${n >> 8}.${n & 255} drop\n`)),
    'each chain has its rule',
  );
  t.match(text, /chain base \{\n.*\n\t\tmeta mark set ip saddr map @m meta mark vmap @v\n/);

  await own.drop(TABLE);
  const [, ...rest] = change.rules;
  const wrong = { ...change, rules: [...rest.slice(0, 3_000), ['leaf_5', 'jump nope'], ...rest.slice(3_000)] };
  let changed = 0;
  const watch = own.watch(TABLE, { onChanged: () => changed++, onDeleted: () => undefined, onError: t.error });
  await t.rejects(
    own.run(wrong as TableChange),
    { name: 'KernelError', code: 'ENOENT', message: /add rule leaf_5 jump nope/ },
    'one part is refused',
  );
  t.equal(changed, 1, 'what others did meanwhile is not known then');
  await watch.close();
  t.notMatch(await listed(names.own), /chain base|goto leaf/, 'and none follows it');

  // A part that cannot even be written, while the kernel is at one that it takes or refuses.
  const unwritable = {
    size: 0,
    // biome-ignore lint/correctness/useYield: that it never comes to one is the point
    *[Symbol.iterator](): Generator<ElementsChange[]> {
      throw new TypeError('not to be written');
    },
  };
  const twice = [...elements.slice(1), ['10.9.0.1', markText(77)] as [string, string]];
  const unhandled: unknown[] = [];
  const onUnhandled = (reason: unknown) => unhandled.push(reason);
  process.on('unhandledRejection', onUnhandled);
  for (const [what, first, refusal] of [
    ['it is taken', elements, /not to be written/],
    ['it is refused', twice, /EEXIST|add element m/],
  ] as const) {
    await own.drop(TABLE);
    const [map, verdictMap] = change.elementsIn;
    const elementsIn = [{ ...map, elements: [...first] }, verdictMap] as ElementsChange[];
    await t.rejects(own.run({ ...change, elementsIn, later: unwritable }), refusal, what);
    t.notMatch(await listed(names.own), /chain base|goto leaf/, 'none follows');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  process.off('unhandledRejection', onUnhandled);
  t.strictSame(unhandled, [], 'and nobody is left to hear of it');
});

t.test('what others made is listed as it is, or as something that nobody wants', async (t) => {
  await begin(
    TABLE,
    `${SETS}add set inet ${TABLE} timed { type ipv4_addr; timeout 1h; }
add element inet ${TABLE} timed { 10.0.0.1 }
add set inet ${TABLE} vlans { typeof vlan id; }
add map inet ${TABLE} states { type ct_state : verdict; }
add element inet ${TABLE} states { new : goto leaf }
add set inet ${TABLE} everything { type ipv4_addr; }
add element inet ${TABLE} everything { 10.0.0.1, * }
add quota inet ${TABLE} q { 10 mbytes }
add rule inet ${TABLE} plain jump leaf comment "0123456789ab0001"
add rule inet ${TABLE} leaf drop comment "by hand"
add rule inet ${TABLE} answers ip daddr { 10.0.0.1, 10.0.0.2 } drop
add table inet other
add chain inet other foreign
add set inet other foreign { type mark; }
`,
  );
  const state = await own.list('inet', TABLE);
  t.equal(state.exists, true);
  t.same([...state.counters], ['c_1'], 'a quota is no counter');
  const chains: [string, string | undefined][] = [
    ['plain', '0123456789ab0001'],
    ['leaf', undefined],
    ['answers', undefined],
    ['before', ''],
  ];
  for (const [name, digest] of chains) t.equal(state.chains.get(name), digest, name);
  await own.runScript(`add rule inet ${TABLE} plain accept\n`);
  t.equal((await own.list('inet', TABLE)).chains.get('plain'), undefined, 'a rule more than the digest knows of');
  t.equal(state.chains.has('foreign'), false, 'another table');
  t.equal(state.sets.has('foreign'), false);
  t.equal(
    [...state.sets.keys()].some((name) => name.startsWith('__')),
    false,
    'no anonymous set',
  );
  t.match(state.sets.get('timed')?.shape, /flags timeout;/);
  t.match(state.sets.get('vlans')?.shape, /^typeof unknown;/);
  t.match(state.sets.get('states')?.shape, /^type type-\d+ : verdict;/);
  t.same([...(state.sets.get('everything')?.elements.keys() ?? [])].sort(), ['*', '10.0.0.1']);
  t.equal(state.sets.get('inner')?.shape, 'typeof ip saddr . udp dport . @th,96,32 . @th,304,128;');
  const wanted: Ruleset = { family: 'inet', table: TABLE, counters: ['c_1'], sets: {}, chains: {} };
  await own.run(diffRuleset(state, { ...wanted, chains: { leaf: { rules: ['drop'] } } }));
  const left = await own.list('inet', TABLE);
  t.same([...left.sets.keys(), ...left.chains.keys()], ['leaf'], 'all of it goes');
  t.ok((await listed(names.own)).includes('table inet other'));
  await own.drop('other');
});

t.test('100,000 elements', async (t) => {
  await begin(TABLE);
  const shape = 'type ipv4_addr : mark;';
  const elements = Array.from({ length: 100_000 }, (_, n): [string, string] => [
    `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`,
    markText(n),
  ]);
  const change = { ...emptyChange('inet', TABLE), sets: [{ name: 'm', shape }] };
  await own.run({ ...change, elementsIn: [{ set: 'm', shape, elements }] });
  const began = performance.now();
  const { sets } = await own.list('inet', TABLE);
  t.comment(`listed in ${Math.round(performance.now() - began)} ms`);
  t.equal(sets.get('m')?.elements.size, elements.length);
  t.ok(elements.every(([key, value]) => sets.get('m')?.elements.get(key) === value));
  const like = (elements: Map<string, string>): Ruleset => ({
    family: 'inet',
    table: TABLE,
    counters: [],
    sets: { m: { type: 'ipv4_addr', value: 'mark', elements } },
    chains: {},
  });
  const same = like(new Map(elements));
  t.equal(
    (await own.list('inet', TABLE, () => same)).sets.get('m')?.elements,
    same.sets.m?.elements,
    'as expected: its map',
  );
  const [first, ...others] = elements;
  for (const [title, unlike] of Object.entries({
    'an element more': new Map(others),
    'an element less': new Map([...elements, ['10.200.0.1', markText(1)]]),
    'another value': new Map([...elements, [first?.[0] ?? '', markText(1 << 20)]]),
  })) {
    const found = (await own.list('inet', TABLE, () => like(unlike))).sets.get('m')?.elements;
    t.same([found === unlike, found?.size, found?.get('10.0.0.0')], [false, elements.length, markText(0)], title);
  }
  const one = {
    ...emptyChange('inet', TABLE),
    elementsIn: [{ set: 'm', shape, elements: [['10.200.0.1', markText(1)]] }],
  };
  const start = performance.now();
  await own.run(one as TableChange);
  t.comment(`one element in ${(performance.now() - start).toFixed(1)} ms`);
});

/** Chains of a hundred rules that fill some parts of the kernel's answer. */
const manyChains = (count: number): Ruleset => ({
  family: 'inet',
  table: TABLE,
  counters: [],
  sets: {},
  chains: Object.fromEntries(
    Array.from({ length: count }, (_, chain) => [
      `c_${chain}`,
      {
        rules: Array.from({ length: 100 }, (_, rule) => {
          const address = `10.${chain >> 8}.${chain & 255}.${rule}`;
          return `ip saddr ${address} ip daddr ${address} ip saddr ${address} ip daddr ${address} drop`;
        }),
      },
    ]),
  ),
});

t.test('80,000 rules are listed in a time that grows with their number', async (t) => {
  const cost = async (chains: number): Promise<number> => {
    const ruleset = manyChains(chains);
    await begin(TABLE);
    await own.run(diffRuleset(emptyState(), ruleset));
    const before = process.cpuUsage();
    const state = await own.list('inet', TABLE);
    const { user, system } = process.cpuUsage(before);
    t.same(state, stateOf(ruleset), `${chains} chains: all of them, whole`);
    return (user + system) / chains;
  };
  await cost(100);
  const [few, many] = [await cost(100), await cost(800)];
  t.ok(many < 2 * few, `µs a chain: ${few} of few, ${many} of many`);
});

t.test('what changes while it is listed', async (t) => {
  await begin(TABLE, 'add table inet other\nadd set inet other s { type mark; }\n');
  const shape = 'type mark;';
  const marks = Array.from({ length: 100_000 }, (_, n): [string, string] => [markText(n), '']);
  await own.run({
    ...emptyChange('inet', TABLE),
    sets: [{ name: 's', shape }],
    elementsIn: [{ set: 's', shape, elements: marks }],
  });
  const set = (table: string, round: number): Promise<void> => {
    const change = { set: 's', shape, elements: [[markText(1 << 20), '']] as [string, string][] };
    return own.run({ ...emptyChange('inet', table), [round % 2 === 0 ? 'elementsIn' : 'elementsOut']: [change] });
  };
  /** Each time that the listing lets others have their turn. */
  const listing = async (commit: (round: number) => Promise<void>): Promise<{ state: NftState; commits: number }> => {
    let done = false;
    const commits = (async () => {
      for (let round = 0; ; round++) {
        if (done) return round;
        await commit(round);
      }
    })();
    try {
      const state = await own.list('inet', TABLE);
      done = true;
      return { state, commits: await commits };
    } finally {
      done = true;
      await commits;
    }
  };
  const other = await listing((round) => set('other', round));
  t.equal(other.state.sets.get('s')?.elements.size, marks.length, 'another table: never mind');
  t.ok(other.commits > 3, `${other.commits} commits`);
  const touched = await listing((round) =>
    round === 3 ? own.run({ ...emptyChange('inet', TABLE), chains: [{ name: 'late' }] }) : set('other', round),
  );
  t.same([...touched.state.chains], [['late', '']], 'the table itself: begun anew');
  await begin(TABLE, `add set inet ${TABLE} s { type mark; }\nadd table inet other\n`);
  const never = listing((round) => set(TABLE, round));
  await t.rejects(never, { name: 'KernelError', code: 'EBUSY' }, 'the table itself, all the time');
  await own.drop('other');
});

/** What of a ruleset the command must make: base chains without their rules, plain interval sets. */
function ground(ruleset: Ruleset): Ruleset {
  const bases = Object.entries(ruleset.chains).filter(([, { hook }]) => hook !== undefined);
  return {
    ...ruleset,
    counters: [],
    sets: Object.fromEntries(Object.entries(ruleset.sets).filter(([, set]) => isPlainInterval(set))),
    chains: Object.fromEntries(bases.map(([name, chain]) => [name, { ...chain, rules: [] }])),
  };
}

t.test('rulesets of random plans, and the way to their settled ones', { timeout: 570_000 }, async (t) => {
  const plans = [
    ...fc.sample(randomPlan, { seed: 3, numRuns: ROUNDS }),
    ...fc.sample(randomTypedPlan, { seed: 4, numRuns: ROUNDS }),
  ];
  for (const [at, plan] of plans.entries()) {
    for (const [index, rule] of Object.values(plan.rules).entries()) {
      const permits = rule.action === 'accept-decisively' || (rule.action === 'accept' && rule.context === 'service');
      if ((at + index) % 3 === 0) rule.limits = { connectionsPerSecond: 5, maxConnections: 7 };
      if ((at + index) % 4 === 1) rule.mode = 'Audit';
      else if ((at + index) % 3 === 2 && permits) {
        rule.redirect = {
          address: at % 2 === 0 ? '198.51.100.1' : '2001:db8::1',
          ...(index % 2 === 0 && { port: 99 }),
        };
      }
    }
    for (const group of Object.values(plan.groups)) if (at % 5 === 3) group.audit = true;
    const { ruleset, settled } = compileGateway(at % 6 === 5 ? directPlan(plan) : plan);
    const state = stateOf(ground(ruleset));
    await begin(ruleset.table);
    for (const host of [own, nft])
      await host.runScript(scriptOf(diffRuleset({ ...emptyState(), exists: true }, ground(ruleset))));
    const rest = diffRuleset(state, ruleset);
    rest.flushed = [];
    rest.rules = Object.entries(ruleset.chains).flatMap(([name, { rules }]) =>
      // An anonymous set, in Direct mode.
      rules.filter((rule) => !rule.includes(' type { ')).map((rule): [string, string] => [name, rule]),
    );
    await both(t, rest, `plan ${at}`);
    await both(t, diffRuleset(stateOf(ruleset), settled), `plan ${at}, settled`);
  }
});
