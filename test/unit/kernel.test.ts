/**
 * The kernel room without a kernel: the suite on the fakes, texts, listings as nft and ip print them, errors, run().
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { KernelError } from '../../kernel/errors.ts';
import { FakeIp } from '../../kernel/iproute-fake.ts';
import { parseRoutes } from '../../kernel/iproute-json.ts';
import {
  concat,
  diffRuleset,
  emptyChange,
  emptyState,
  isEmptyChange,
  markText,
  portsText,
  type Ruleset,
  rangeText,
  rawText,
  scriptOf,
  shapeOf,
  stateOf,
  type TableChange,
} from '../../kernel/nft.ts';
import { FakeNft } from '../../kernel/nft-fake.ts';
import { digestOf, rulesOf } from '../../kernel/nft-state.ts';
import { run } from '../../kernel/run.ts';
import { applySysctls, readSysctl } from '../../kernel/sysctl.ts';
import { FakeTc } from '../../kernel/tc-fake.ts';
import { ipSuite } from '../ip-suite.ts';
import { nftSuite } from '../nft-suite.ts';
import { tcSuite } from '../tc-suite.ts';

t.test('the fakes do what the kernel does', async (t) => {
  await nftSuite(t, new FakeNft());
  await ipSuite(t, new FakeIp(['eth0']), async () => '');
  await tcSuite(t, new FakeTc({ eth0: 'free', peer: { kind: 'htb', handle: '1:' } }), true);
});

t.test('FakeNft keeps scripts, fails on demand, plays traffic', async (t) => {
  const nft = new FakeNft();
  const made: TableChange = {
    ...emptyChange('inet', 'x'),
    create: true,
    counters: ['c'],
    chains: [{ name: 'k' }],
    rules: [['k', 'counter name "c" drop']],
  };
  t.notOk(isEmptyChange(made));
  await nft.run(made);
  nft.count('x', 'c', 2, 100);
  t.same(await nft.counters('x'), { c: { packets: 2, bytes: 100 } });
  t.same(nft.rules('x', 'k'), ['counter name "c" drop']);
  nft.failNext = new KernelError('nft run', 'EBUSY', 'played');
  await t.rejects(nft.drop('x'), { code: 'EBUSY' });
  t.equal(nft.scripts.length, 1, 'what failed is not kept');
  t.same(nft.scripts, [scriptOf(made)]);
  const nothing = emptyChange('inet', 'x');
  t.same([isEmptyChange(nothing), scriptOf(nothing)], [true, '']);
  await nft.run(nothing);
  t.equal(nft.scripts.length, 1, 'an empty change is none');
  await nft.run({ ...nothing, flushed: ['k'], rules: [['k', 'drop']] });
  t.same(nft.rules('x', 'k'), ['drop'], 'a chain is rewritten in place');
});

t.test('element texts', async (t) => {
  for (const [text, wanted] of [
    [markText(7), '0x00000007'],
    [markText(0x80000000 | 0), '0x80000000'],
    [rangeText('10.0.0.1', '10.0.0.1'), '10.0.0.1'],
    [rangeText('10.0.0.1', '10.0.0.2'), '10.0.0.1-10.0.0.2'],
    [portsText(80, 80), '80'],
    [portsText(0, 65535), '0-65535'],
    [rawText(0x0af40105n), '0xaf40105'],
    [concat('a', 'b', 'c'), 'a . b . c'],
    [shapeOf({ type: 'ipv4_addr', value: 'ipv4_addr', interval: true }), 'type ipv4_addr : ipv4_addr; flags interval;'],
    [
      shapeOf({ type: { typeof: 'ip saddr . @th,336,32' }, value: 'mark' }),
      'typeof ip saddr . @th,336,32 : meta mark;',
    ],
  ])
    t.equal(text, wanted);
});

t.test('a script, to the letter', async (t) => {
  const ruleset: Ruleset = {
    family: 'inet',
    table: 'x',
    counters: ['c'],
    sets: {
      s: {
        type: 'ipv4_addr',
        elements: new Map([
          ['10.0.0.1', ''],
          ['10.0.0.2', ''],
        ]),
      },
      m: { type: 'mark', value: 'verdict', elements: new Map([['0x00000001', 'goto k_1']]) },
    },
    chains: {
      base: { hook: 'type filter hook forward priority 0; policy accept;', rules: ['jump k_1'] },
      k_1: { rules: ['drop'] },
    },
  };
  t.equal(
    scriptOf(diffRuleset(emptyState(), ruleset)),
    `add table inet x
add counter inet x c
add set inet x s { type ipv4_addr; }
add map inet x m { type mark : verdict; }
add chain inet x base { type filter hook forward priority 0; policy accept; }
add chain inet x k_1
add rule inet x base jump k_1 comment "${digestOf({ rules: ['jump k_1'] })}"
add rule inet x k_1 drop comment "${digestOf({ rules: ['drop'] })}"
add element inet x s { 10.0.0.1, 10.0.0.2 }
add element inet x m { 0x00000001 : goto k_1 }
`,
  );
  const next: Ruleset = {
    ...ruleset,
    counters: [],
    sets: {
      s: {
        type: 'ipv4_addr',
        elements: new Map([
          ['10.0.0.2', ''],
          ['10.0.0.3', ''],
        ]),
      },
    },
    chains: { base: { ...ruleset.chains.base, rules: ['jump k_2'] }, k_2: { rules: [] } },
  };
  t.equal(
    scriptOf(diffRuleset(stateOf(ruleset), next)),
    `flush chain inet x k_1
flush chain inet x base
delete element inet x s { 10.0.0.1 }
flush map inet x m
delete chain inet x k_1
delete map inet x m
delete counter inet x c
add chain inet x k_2
add rule inet x base jump k_2 comment "${digestOf({ rules: ['jump k_2'] })}"
add element inet x s { 10.0.0.3 }
`,
  );
  const users: Ruleset = { ...ruleset, chains: { k_1: { rules: ['ip saddr @s drop'] } } };
  t.throws(
    () =>
      diffRuleset(stateOf(users), { ...users, sets: { ...users.sets, s: { type: 'ipv6_addr', elements: new Map() } } }),
    /rename one of them/,
  );
  t.same(
    diffRuleset({ ...stateOf(ruleset), chains: new Map([...stateOf(ruleset).chains, ['base', undefined]]) }, ruleset),
    { ...emptyChange('inet', 'x'), flushed: ['base'], rules: rulesOf('base', { rules: ['jump k_1'] }) },
    'a base chain that somebody else changed is put right',
  );
});

t.test('listings', async (t) => {
  const route =
    '[{"type":"1","dst":"default","encap":"ip","id":7,"src":"0.0.0.0","dst":"10.0.0.64","ttl":0,"tos":0,"gateway":"169.254.77.1","dev":"sluice-vx","flags":["onlink"]},{"type":"3","dst":"10.0.0.255","flags":[]},{"type":"1","dst":"10.0.0.1","via":{"family":"inet6","host":"fe80::1"},"dev":"eth0","flags":[]}]';
  t.same(
    parseRoutes(route, 4),
    [
      {
        family: 4,
        table: 254,
        type: 'unicast',
        destination: 'default',
        via: '169.254.77.1',
        dev: 'sluice-vx',
        onlink: true,
        encap: { id: 7, destination: '10.0.0.64' },
      },
      { family: 4, table: 254, type: 'unicast', destination: '10.0.0.1/32', via: 'fe80::1', dev: 'eth0' },
    ],
    "the tunnel's dst is not the route's; a broadcast route is not ours",
  );
  for (const nothing of ['', '[]', '[{}]', '[{},{}]']) t.same(parseRoutes(nothing, 4), []);
  t.throws(() => parseRoutes('[', 4), { code: 'bad-answer' });
});

t.test('errors and run', async (t) => {
  for (const [text, code] of [
    ['/dev/stdin:2:16-18: Error: syntax error, unexpected all, expecting string', 'syntax'],
    ['Error: No such file or directory; did you mean set', 'ENOENT'],
    ['RTNETLINK answers: File exists\nCommand failed -:1', 'EEXIST'],
    ['Cannot find device "nope"', 'ENODEV'],
    ['Error: Could not process rule: Device or resource busy', 'EBUSY'],
    ['Error: Could not process rule: Operation not supported', 'EOPNOTSUPP'],
    ['Error: Nexthop has invalid gateway.', 'ENETUNREACH'],
    ['', 'failed'],
  ] as const)
    t.equal(KernelError.fromOutput('nft run', text).code, code, text);
  const cause = Object.assign(new Error('EPERM: no'), { code: 'EPERM' });
  t.match(KernelError.from('x', cause), { code: 'EPERM', op: 'x', cause, message: 'x: EPERM: EPERM: no' });
  t.equal(KernelError.from('y', KernelError.from('x', cause)).op, 'x', 'typed once');
  t.equal(KernelError.from('x', 'text').code, 'failed');

  const big = 'x'.repeat(300_000);
  t.equal(await run(['cat'], { op: 'cat', input: big }), big);
  await t.rejects(
    run(['true', 'x'], { op: 'true', input: big }).then(() => run(['false'], { op: 'false' })),
    { code: 'failed', op: 'false' },
    'a pipe closed early is no error of its own',
  );
  await t.rejects(run(['sh', '-c', 'echo File exists >&2; exit 3'], { op: 'o' }), {
    code: 'EEXIST',
    message: 'o: EEXIST: File exists',
  });
  await t.rejects(run(['sleep', '60'], { op: 'o', timeoutMs: 50 }), { code: 'timeout' });
  await t.rejects(run(['yes'], { op: 'o', outputLimit: 1000 }), { code: 'bad-answer' });
  await t.rejects(run(['no-such-command-here'], { op: 'o' }), { code: 'missing-command' });
});

t.test('sysctls', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sysctl-'));
  t.teardown(() => rm(root, { recursive: true }));
  await mkdir(join(root, 'net/ipv4/conf/eth0.100'), { recursive: true });
  await writeFile(join(root, 'net/ipv4/ip_forward'), '0\n');
  await writeFile(join(root, 'net/ipv4/ping_group_range'), '1\t0\n');
  await writeFile(join(root, 'net/ipv4/conf/eth0.100/rp_filter'), '1\n');
  const wanted = {
    'net.ipv4.ip_forward': '1',
    'net/ipv4/conf/eth0.100/rp_filter': '0',
    'net.ipv4.ping_group_range': '1 0',
  };
  t.same(await applySysctls(wanted, { root }), ['net.ipv4.ip_forward', 'net/ipv4/conf/eth0.100/rp_filter']);
  t.same(await applySysctls(wanted, { root }), [], 'twice changes nothing');
  t.equal(await readFile(join(root, 'net/ipv4/ip_forward'), 'utf8'), '1\n');
  t.equal(await readSysctl('net/ipv4/conf/eth0.100/rp_filter', { root }), '0');
  t.equal(await readSysctl('net.ipv4.nope', { root }), undefined);
  await t.rejects(applySysctls({ 'net.ipv4.nope': '1' }, { root }), { code: 'ENOENT' });
  for (const key of ['../etc/passwd', 'net//x', '/net', 'net/../../x', 'a b'])
    await t.rejects(readSysctl(key, { root }), TypeError, key);
  t.match(await readSysctl('net.ipv4.ip_forward'), /^[01]$/);
});
