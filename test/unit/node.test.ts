/**
 * A node's pure half: the hold machine, the compiler, what ends flows; and the order in which a plan is applied, on
 * the fakes of kernel/. What the kernel makes of it: test/netns/node.test.ts.
 */
import t from 'tap';
import {
  emptyNodePlan,
  families,
  type NodePlan,
  type NodeSettings,
  type NodeWorkloadEntry,
  type PerFamily,
  type Steer,
} from '../../api/plan.ts';
import { dropReasons } from '../../api/reasons.ts';
import { emptyNetState, type NetState } from '../../kernel/iproute.ts';
import { emptyState, type NftState, scriptOf, stateOf } from '../../kernel/nft.ts';
import { endingsOf, endsWith, Steering } from '../../node/apply.ts';
import { compileNode, type NodeState } from '../../node/compile.ts';
import { Hold } from '../../node/hold.ts';
import { packetSource } from '../../node/hold-queue.ts';
import type { NodeKernel } from '../../node/kernel.ts';
import { underlayAddresses } from '../../node/main.ts';
import { localDestinations, nodeDropReasons } from '../../node/ruleset.ts';

const settings: NodeSettings = {
  node: 'node-a',
  podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'],
  port: 4793,
  mtu: null,
  clusterCIDRs: ['10.244.0.0/16', '10.244.1.0/24', 'fd00:244::/32'],
  excludedCIDRs: ['192.0.2.0/25', '192.0.2.128/25'],
};
const A = ['10.244.1.11', 'fd00:244:1::11'];
const underlays = {
  '10.0.0.65': { device: 'eth0', rpFilter: 1 },
  '10.0.0.66': { device: 'eth1', rpFilter: 0 },
  'fd00:10::66': { device: 'eth0', rpFilter: 1 },
};
const toS1: PerFamily<Steer> = { 4: { shard: 'p/1' }, 6: { shard: 'p/1' } };

type Entry = Pick<NodeWorkloadEntry, 'addresses' | 'steer' | 'destinations' | 'elsewhere'>;
function planOf(workloads: Record<string, Entry>, shared: Partial<NodePlan> = {}): NodePlan {
  return {
    ...emptyNodePlan(),
    ...shared,
    settings: { node: settings },
    shards: {
      'p/1': { index: 1, mode: 'VXLAN', vni: 100, nextHops: { 4: '10.0.0.64', 6: 'fd00:10::64' } },
      'p/2': { index: 253, mode: 'VXLAN', vni: 200, nextHops: { 4: '10.0.0.65' } },
    },
    gateways: { gw: { internalAddress: '10.0.0.31', addresses: ['10.0.0.31', '203.0.113.31', '2001:db8:113::31'] } },
    workloads: Object.fromEntries(
      Object.entries(workloads).map(([uid, entry]) => [uid, { namespace: 'a', name: uid, uid, ...entry }]),
    ),
  };
}
const compile = (plan: NodePlan, from = settings): NodeState =>
  compileNode(plan, from, { workloadInterfaces: ['cni0', 'cali*'], underlayMtu: 1500, rpFilterAll: 0, underlays });
const elements = (state: NodeState, set: string): [string, string][] => [...(state.ruleset.sets[set]?.elements ?? [])];

t.test('Hold', async (t) => {
  const limits = { perSource: 4, total: 6, milliseconds: 2_000 };
  const packet = (id: number, source: string) => ({ id, source, mark: 0xfe });
  const idsOf = (list: { packet: { id: number } }[]) => list.map(({ packet: { id } }) => id);

  t.test('bounds per source and in all, then room again', async (t) => {
    const hold = new Hold(limits);
    t.same(
      [1, 2, 3, 4, 5].map((id) => hold.arrive(packet(id, 'a'), 0)),
      ['hold', 'hold', 'hold', 'hold', 'drop'],
    );
    t.same(
      [6, 7, 8].map((id) => hold.arrive(packet(id, `b${id}`), 1)),
      ['hold', 'hold', 'drop'],
    );
    t.equal(hold.size, 6);
    t.same(idsOf(hold.release(new Set(['a']), 5)), [1, 2, 3, 4], 'in order');
    t.equal(hold.size, 2);
    t.equal(hold.arrive(packet(9, 'c'), 6), 'hold');
  });
  t.test('expiry: at the limit and not before, each once, in order', async (t) => {
    const hold = new Hold(limits);
    t.equal(hold.nextExpiry(), undefined);
    hold.arrive(packet(1, 'a'), 100);
    hold.arrive(packet(2, 'b'), 200);
    hold.arrive(packet(3, 'a'), 300);
    t.equal(hold.nextExpiry(), 2_100);
    t.same(hold.expire(2_099), []);
    t.same(
      hold.expire(2_200).map(({ id }) => id),
      [1, 2],
    );
    t.equal(hold.nextExpiry(), 2_300);
    t.same(hold.release(new Set(['a', 'b']), 2_250), [{ packet: packet(3, 'a'), milliseconds: 1_950 }]);
    t.same(hold.expire(9_999), []);
    t.equal(hold.size, 0);
  });
  t.test('a known source is let through at once, until it is withdrawn', async (t) => {
    const hold = new Hold(limits);
    hold.release(new Set(['a']), 0);
    t.equal(hold.arrive(packet(1, 'a'), 1), 'accept');
    t.equal(hold.arrive(packet(2, 'b'), 1), 'hold');
    hold.release(new Set(['b']), 2);
    t.equal(hold.arrive(packet(3, 'a'), 3), 'hold');
    hold.clear();
    t.equal(hold.size, 0);
    t.equal(hold.nextExpiry(), undefined);
  });
  t.test('a source that nobody is behind: what waits goes, and it is not known', async (t) => {
    const hold = new Hold(limits);
    hold.release(new Set(['a', 'b']), 0);
    hold.arrive(packet(1, 'c'), 1);
    hold.arrive(packet(2, 'd'), 1);
    t.same(hold.forget(['a', 'c', 'e']), [packet(1, 'c')]);
    t.same(
      [packet(3, 'a'), packet(4, 'b')].map((one) => hold.arrive(one, 2)),
      ['hold', 'accept'],
    );
    t.equal(hold.size, 2);
  });
  t.test('the source is read from the packet, or there is none', async (t) => {
    const v4 = new Uint8Array(20).fill(0);
    v4.set([0x45], 0);
    v4.set([10, 244, 1, 11], 12);
    const v6 = new Uint8Array(40);
    v6.set([0x60], 0);
    v6.set([0xfd, 0, 2, 0x44, 0, 1], 8);
    v6[23] = 0x11;
    t.equal(packetSource(v4), A[0]);
    t.equal(packetSource(v6), A[1]);
    for (const bad of [v4.subarray(0, 19), v6.subarray(0, 39), new Uint8Array(0), new Uint8Array(40)]) {
      t.equal(packetSource(bad), undefined);
    }
  });
});

t.test('compile', async (t) => {
  const state = compile(planOf({ u1: { addresses: A, steer: { 4: { shard: 'p/1' }, 6: 'drop' } } }));
  const text = Object.values(state.ruleset.chains).flatMap(({ rules }) => rules);

  t.test('routes: into the tunnel, past it for its own packets, nowhere else', async (t) => {
    const blackhole = { type: 'blackhole', destination: 'default', metric: 32_767 };
    const tunnel = { type: 'unicast', destination: 'default', dev: 'sluice-vx', onlink: true };
    const first = { id: 100, destination: '10.0.0.64' };
    const second = { id: 200, destination: '10.0.0.65' };
    t.same(state.net.routes, [
      { family: 4, table: 7801, ...tunnel, via: '169.254.77.1', encap: first },
      { family: 4, table: 7801, ...blackhole },
      { family: 6, table: 7801, ...tunnel, via: 'fe80::5:1c:77:1', encap: first },
      { family: 6, table: 7801, ...blackhole },
      { family: 4, table: 7801, type: 'throw', destination: '10.0.0.64/32' },
      { family: 4, table: 8053, ...tunnel, via: '169.254.77.1', encap: second },
      { family: 4, table: 8053, ...blackhole },
      // This shard has no next hop of this family: nothing but the black hole.
      { family: 6, table: 8053, ...blackhole },
      { family: 4, table: 8053, type: 'throw', destination: '10.0.0.65/32' },
    ]);
    t.same(
      state.net.rules.map(({ family, priority, table, mark }) => [family, priority, table, mark?.value, mark?.mask]),
      [
        [4, 7801, 7801, 1, 0xff],
        [6, 7801, 7801, 1, 0xff],
        [4, 8053, 8053, 253, 0xff],
        [6, 8053, 8053, 253, 0xff],
      ],
    );
    t.equal(state.net.links[0]?.mtu, 1450);
  });
  t.test('a v6 underlay: v6 outer next hop, 70 bytes less, other throw', async (t) => {
    const plan = planOf({});
    plan.gateways = { gw: { internalAddress: 'fd00:10::31', addresses: ['fd00:10::31'] } };
    const { net, ruleset } = compile(plan);
    t.equal(net.links[0]?.mtu, 1430);
    const table = net.routes.filter((route) => route.table === 7801);
    t.same(
      table.filter(({ type }) => type === 'unicast').map(({ encap }) => encap?.destination),
      ['fd00:10::64', 'fd00:10::64'],
    );
    t.same(
      table.filter(({ type }) => type === 'throw').map(({ destination }) => destination),
      ['fd00:10::64/128'],
    );
    t.ok(ruleset.sets.peers6?.elements.has('fd00:10::31'));
  });
  t.test('sets', async (t) => {
    t.same(elements(state, 'known4'), [[A[0], '']]);
    t.same(elements(state, 'known6'), [[A[1], '']]);
    t.match(elements(state, 'steer4')[0]?.[1] ?? '', /^goto s1_/);
    t.match(elements(state, 'steer6')[0]?.[1] ?? '', /^goto unassigned_/);
    t.same(
      elements(state, 'byct').map(([mark]) => mark),
      ['0x00000001', '0x000000fd'],
    );
    t.ok(
      elements(state, 'local4').some(([range]) => range === '10.244.0.0-10.244.255.255'),
      'overlaps are merged',
    );
    t.ok(
      elements(state, 'local4').some(([range]) => range === '192.0.2.0-192.0.2.255'),
      'neighbours too, or touch',
    );
    t.ok(
      elements(state, 'gateways4').some(([address]) => address === '203.0.113.31'),
      'outside addresses are forbidden',
    );
    t.notOk(
      elements(state, 'peers4').some(([address]) => address === '203.0.113.31'),
      'and no tunnel comes from there',
    );
    t.ok(elements(state, 'peers4').some(([address]) => address === '10.0.0.65'));
    for (const { elements } of Object.values(compile(planOf({ x: { addresses: A, steer: {} } })).ruleset.sets)) {
      for (const verdict of elements.values()) {
        const chain = /^goto (.*)$/.exec(verdict)?.[1];
        if (verdict !== '') t.ok(chain !== undefined && state.ruleset.chains[chain], `${verdict} is there`);
      }
    }
  });
  t.test('every reason is counted somewhere, is a word of api/reasons.ts, and has its counter', async (t) => {
    for (const reason of nodeDropReasons) {
      const counter = `drop_${reason.replaceAll('-', '_')}`;
      t.ok(Object.hasOwn(dropReasons, reason));
      t.ok(state.ruleset.counters.includes(counter));
      t.ok(
        text.some((rule) => rule.endsWith(`counter name ${counter} drop`)),
        reason,
      );
    }
  });
  t.test('membership changes elements only; every interface is asked', async (t) => {
    t.same(Object.keys(compile(planOf({})).ruleset.chains).sort(), Object.keys(state.ruleset.chains).sort());
    for (const name of ['cni0', 'cali*'])
      t.equal(text.filter((rule) => rule.startsWith(`iifname "${name}"`)).length, 3);
    for (const family of families) {
      t.ok(text.some((rule) => rule.endsWith(`maxseg size set ${family === 4 ? 1410 : 1390}`)));
    }
  });
  t.test('Direct shards beside VXLAN ones: each by its own device', async (t) => {
    const plan = planOf({ u1: { addresses: A, steer: toS1 } });
    plan.shards['q/1'] = { index: 3, mode: 'Direct', vni: 1, nextHops: { 4: '10.0.0.66', 6: 'fd00:10::66' } };
    const { net, ruleset, sysctls } = compile(plan);
    const hop = { type: 'unicast', destination: 'default', onlink: true };
    const blackhole = { type: 'blackhole', destination: 'default', metric: 32_767 };
    t.same(
      net.routes.filter(({ table }) => table === 7803),
      [
        { family: 4, table: 7803, ...hop, via: '10.0.0.66', dev: 'eth1' },
        { family: 4, table: 7803, ...blackhole },
        { family: 6, table: 7803, ...hop, via: 'fd00:10::66', dev: 'eth0' },
        { family: 6, table: 7803, ...blackhole },
        { family: 4, table: 7803, type: 'throw', destination: '10.0.0.66/32' },
        { family: 6, table: 7803, type: 'throw', destination: 'fd00:10::66/128' },
      ],
    );
    t.same(
      net.routes.filter(({ table }) => table !== 7803),
      state.net.routes,
      'the tunnel’s are as before',
    );
    const waysOf = (index: string): string[] => {
      const chain = /^goto (way_\w+)$/.exec(ruleset.sets.ways?.elements.get(index) ?? '')?.[1] ?? '';
      return ruleset.chains[chain]?.rules ?? [];
    };
    const leak = 'counter name drop_leak drop';
    t.same(waysOf('0x00000001'), ['oifname "sluice-vx" return', leak]);
    t.same(waysOf('0x00000003'), ['oifname "eth0" return', 'oifname "eth1" return', leak]);
    t.equal(sysctls['net/ipv4/conf/eth0/rp_filter'], '2', 'strict becomes loose');
    t.notOk('net/ipv4/conf/eth1/rp_filter' in sysctls, 'none stays none');
  });
  t.test('Direct shards only: nothing of a tunnel', async (t) => {
    const plan = planOf({ u1: { addresses: A, steer: toS1 } });
    plan.shards = { 'p/1': { index: 1, mode: 'Direct', vni: 1, nextHops: { 4: '10.0.0.66', 6: 'fd00:10::99' } } };
    const { net, ruleset, sysctls } = compile(plan);
    t.same([net.links, net.neighbours], [[], []]);
    const rules = Object.values(ruleset.chains).flatMap((chain) => chain.rules);
    t.notOk(
      rules.some((rule) => /4793|maxseg|notrack/.test(rule)),
      'no tunnel port, no clamping',
    );
    t.notOk(Object.keys(sysctls).some((key) => key.includes('sluice-vx')));
    t.same(
      net.routes.filter(({ family }) => family === 6).map(({ type }) => type),
      ['blackhole', 'throw'],
      'a next hop that cannot be reached: nothing but the black hole',
    );
    t.ok(
      rules.some((rule) => rule.startsWith('ip daddr @gateways4 ')),
      'gateways are guarded all the same',
    );
  });
  t.test('refused by name', async (t) => {
    const strange = planOf({});
    strange.shards['p/1'] = { index: 1, mode: 'GRE' as 'Direct', vni: 0, nextHops: {} };
    t.throws(() => compile(strange), { message: /p\/1.*GRE.*not known/ });
    for (const index of [0, 254, 253, 1.5]) {
      const plan = planOf({});
      plan.shards['p/1'] = { index, mode: 'VXLAN', vni: 1, nextHops: {} };
      t.throws(() => compile(plan), { message: /p\/[12].*index/ }, `index ${index}`);
    }
    t.throws(() => compile(planOf({ u: { addresses: A, steer: { 4: { shard: 'p/9' } } } })), /names a shard/);
    t.throws(() => compile(planOf({}), { ...settings, clusterCIDRs: ['10.0.0.1/8'] }), /plan: /);
  });
});

t.test('endings: whose flows may not go on', async (t) => {
  const steer = (how: Steer): PerFamily<Steer> => ({ 4: how, 6: how });
  const cases: [string, NodePlan | undefined, NodePlan, string[], string[]][] = [
    [
      'nothing was there: flows that were translated before',
      undefined,
      planOf({ u: { addresses: A, steer: toS1 } }),
      [],
      A,
    ],
    [
      'the same again',
      planOf({ u: { addresses: A, steer: toS1 } }),
      planOf({ u: { addresses: A, steer: toS1 } }),
      [],
      [],
    ],
    ['a new pod', planOf({}), planOf({ u: { addresses: A, steer: toS1 } }), [], []],
    ['a pod that is gone', planOf({ u: { addresses: A, steer: toS1 } }), planOf({}), A, []],
    [
      'another owner',
      planOf({ u: { addresses: A, steer: toS1 } }),
      planOf({ w: { addresses: A, steer: toS1 } }),
      A,
      [],
    ],
    [
      'another shard',
      planOf({ u: { addresses: A, steer: toS1 } }),
      planOf({ u: { addresses: A, steer: steer({ shard: 'p/2' }) } }),
      [],
      [],
    ],
    [
      'assigned',
      planOf({ u: { addresses: A, steer: steer('bypass') } }),
      planOf({ u: { addresses: A, steer: toS1 } }),
      [],
      A,
    ],
    [
      'assigned no more',
      planOf({ u: { addresses: A, steer: toS1 } }),
      planOf({ u: { addresses: A, steer: steer('drop') } }),
      A,
      [],
    ],
  ];
  for (const [what, before, after, withdrawn, assigned] of cases) {
    const now = before === undefined ? emptyState() : stateOf(compile(before).ruleset);
    const endings = endingsOf(now, compile(after).ruleset, before, after);
    t.same([...endings.withdrawn].sort(), withdrawn, `${what}: withdrawn`);
    t.same([...endings.assigned].sort(), assigned, `${what}: assigned`);
  }
  const [before, after] = ['u', 'w'].map((uid) => planOf({ [uid]: { addresses: A, steer: toS1 } }));
  const now = stateOf(compile(planOf({})).ruleset);
  const taken = endingsOf(now, compile(after as NodePlan).ruleset, before, after as NodePlan);
  t.same([...taken.withdrawn], [], 'withdrawn before: what there is now is the next owner’s');
  const flow = (source: string, destination: string, replyTo: string, mark = 0) => ({
    original: { source, destination },
    reply: { source: destination, destination: replyTo },
    mark,
  });
  const local = localDestinations(settings);
  const [none, pod, node] = [new Set<string>(), '10.244.1.11', '10.0.0.21'];
  const assigned = new Set([pod]);
  for (const [what, entry, gone, expected] of [
    ['of a withdrawn pod', flow(pod, '198.51.100.1', pod, 1), new Set([pod]), true],
    ['to a withdrawn pod', flow('198.51.100.1', pod, '198.51.100.1'), new Set([pod]), true],
    ['of another', flow('10.244.1.12', '198.51.100.1', node), new Set([pod]), false],
    ['translated before the assignment', flow(pod, '198.51.100.1', node), none, true],
    ['not translated', flow(pod, '198.51.100.1', pod), none, false],
    ['already steered', flow(pod, '198.51.100.1', node, 1), none, false],
    ['another program marked it', flow(pod, '198.51.100.1', node, 0x4000), none, true],
    ['translated, in the cluster', flow(pod, '10.244.2.9', node), none, false],
  ] as const) {
    t.equal(endsWith(entry, { withdrawn: gone, assigned, partly: new Map() }, local), expected, `a flow ${what}`);
  }
});

t.test('apply', async (t) => {
  /** The machine as a log of what was done to it. */
  const fakeKernel = (nft: NftState = emptyState(), net: NetState = emptyNetState(), lists = false) => {
    const log: string[] = [];
    const fail = { ip: false, nft: false };
    const kernel: NodeKernel = {
      nft: {
        async run(change) {
          if (fail.nft) throw new Error('nft refuses');
          const script = scriptOf(change);
          if (script !== '') log.push(`nft ${script}`);
        },
        list: async () => {
          log.push('nft list');
          return nft;
        },
        counters: async () => ({}),
        drop: async () => {},
      },
      ip: {
        async list() {
          if (lists) log.push('ip list');
          return net;
        },
        async apply(lines) {
          if (fail.ip) throw new Error('ip refuses');
          log.push(`ip ${lines.join('\n')}`);
        },
      },
      facts: async () => ({ underlayMtu: 1500, rpFilterAll: 1, underlays: {} }),
      sysctls: async (wanted) => {
        log.push(`sysctls rp_filter ${wanted['net/ipv4/conf/sluice-vx/rp_filter']}`);
      },
      holdRule: async () => {
        log.push('hold rule');
      },
      endFlows: async () => {
        log.push('end flows');
        return 3;
      },
    };
    return { log, fail, kernel };
  };
  const one = planOf({ u: { addresses: A, steer: toS1 } });
  const words = (log: string[]) =>
    log.map((line) =>
      line
        .split(/[ \n]/, 2)
        .join(' ')
        .replace(/^ip -[46]$/, 'ip'),
    );

  t.test('routes before elements; nothing the second time; elements before routes when they go', async (t) => {
    const { log, kernel } = fakeKernel();
    const steering = new Steering(kernel, ['cni0']);
    t.same((await steering.apply(one)).known, new Set(A));
    t.same(words(log), ['nft list', 'hold rule', 'ip', 'sysctls rp_filter', 'nft add', 'end flows']);
    t.equal(log[3], 'sysctls rp_filter 2', 'loose where the machine is strict');
    log.length = 0;
    await steering.apply(structuredClone(one));
    t.same(log, []);
    const less = planOf({});
    delete less.shards['p/1'];
    t.equal((await steering.apply(less)).endedFlows, 3);
    t.equal(log.length, 3);
    t.match(log[0] ?? '', /^nft .*delete element inet sluice_node known4/s);
    t.equal(log[1], 'end flows');
    t.match(log[2] ?? '', /^ip .*route del/s);
    t.notMatch(log[2] ?? '', /replace|add/);
  });
  t.test('flows end though what the plan leaves behind cannot be taken away', async (t) => {
    const { log, fail, kernel } = fakeKernel();
    const steering = new Steering(kernel, ['cni0']);
    await steering.apply(one);
    log.length = 0;
    fail.ip = true;
    const bypassed = planOf({ u: { addresses: A, steer: { 4: 'bypass', 6: 'bypass' } } });
    delete bypassed.shards['p/1'];
    await t.rejects(steering.apply(bypassed), /ip refuses/);
    t.equal(log.at(-1), 'end flows');
  });
  t.test('what the plan forbids is done even if what it permits cannot be', async (t) => {
    const { log, fail, kernel } = fakeKernel();
    const steering = new Steering(kernel, ['cni0']);
    await steering.apply(one);
    log.length = 0;
    fail.ip = true;
    const next = planOf({ w: { addresses: ['10.244.1.12'], steer: { 4: { shard: 'p/3' } } } });
    next.shards['p/3'] = { index: 3, mode: 'VXLAN', vni: 100, nextHops: { 4: '10.0.0.66' } };
    await t.rejects(steering.apply(next), /ip refuses/);
    t.match(log[0] ?? '', /delete element inet sluice_node known4 \{ 10\.244\.1\.11/);
    t.notMatch(log[0] ?? '', /10\.244\.1\.12/, 'nobody new is let in');
    t.equal(log[1], 'end flows');
    fail.ip = false;
    log.length = 0;
    await steering.apply(next);
    t.equal(log[0], 'nft list', 'after a failure the kernel is asked again');
  });
  t.test('flows of workloads that went end later, all at once, and until then nobody uses them', async (t) => {
    const { log, kernel } = fakeKernel();
    let told = 0;
    const steering = new Steering(kernel, ['cni0'], { onLeft: () => told++ });
    const [u, w] = [
      { addresses: A, steer: toS1 },
      { addresses: ['10.244.1.12'], steer: toS1 },
    ];
    await steering.apply(planOf({ u, w }));
    t.equal(told, 0);
    log.length = 0;
    t.equal((await steering.apply(planOf({ w }))).endedFlows, 0);
    t.equal(log.length, 1);
    t.match(log[0], /delete element inet sluice_node known4 \{ 10\.244\.1\.11/);
    t.match(log[0], /add element inet sluice_node leaving4 \{ 10\.244\.1\.11/);
    t.match(log[0], /add rule inet sluice_node hold_flow_\w+ ip saddr @leaving4 jump left_/);
    t.equal(told, 1);
    await steering.apply(planOf({}));
    t.match(log[1], /add element inet sluice_node leaving4 \{ 10\.244\.1\.12/);
    t.equal(log.length, 2);
    log.length = 0;
    t.equal(await steering.endLeft(), 3);
    t.equal(log.length, 2);
    t.equal(log[0], 'end flows');
    t.match(log[1], /delete element inet sluice_node leaving4 \{ 10\.244\.1\.11, 10\.244\.1\.12 \}/);
    t.notMatch(log[1], /@leaving/, 'and no packet is asked');
    log.length = 0;
    t.equal(await steering.endLeft(), 0);
    t.same(log, []);
  });
  t.test('but not after somebody else has an address of theirs, or where flows of others end too', async (t) => {
    const { log, kernel } = fakeKernel();
    const steering = new Steering(kernel, ['cni0'], { onLeft() {} });
    const other = { addresses: ['10.244.1.12'], steer: toS1 };
    await steering.apply(one);
    await steering.apply(planOf({}));
    log.length = 0;
    t.equal((await steering.apply(planOf({ v: { addresses: A.slice(0, 1), steer: toS1 } }))).endedFlows, 3);
    t.equal(log.length, 2);
    t.equal(log[0], 'end flows', 'while packets of the address are still asked');
    t.match(log[1], /add element inet sluice_node known4 \{ 10\.244\.1\.11/);
    t.match(log[1], /delete element inet sluice_node leaving4/);
    t.notMatch(log[1], /add element inet sluice_node leaving/);
    await steering.apply(planOf({ u: { addresses: A, steer: toS1 }, w: other }));
    log.length = 0;
    const bypassed = planOf({ w: { ...other, steer: { 4: 'bypass' } } });
    t.equal((await steering.apply(bypassed)).endedFlows, 3);
    t.equal(await steering.endLeft(), 0, 'once for all of them');
    t.equal(log.filter((line) => line === 'end flows').length, 1);
    t.match(log.at(-1), /delete element inet sluice_node leaving4/);
  });
  t.test('what an earlier program had no time for', async (t) => {
    const before = stateOf(compile(planOf({})).ruleset);
    before.sets.get('leaving4')?.elements.set('10.244.1.11', '');
    for (const later of [true, false]) {
      const { log, kernel } = fakeKernel(structuredClone(before));
      let told = 0;
      const steering = new Steering(kernel, ['cni0'], later ? { onLeft: () => told++ } : {});
      t.equal((await steering.apply(planOf({}))).endedFlows, later ? 0 : 3);
      t.equal(told, later ? 1 : 0);
      if (later) t.equal(await steering.endLeft(), 3);
      t.equal(log.filter((line) => line === 'end flows').length, 1);
    }
  });
  t.test('a look ahead: the reconciliation asks nothing again, unless something was changed since', async (t) => {
    const { net } = compile(one);
    const { log, kernel } = fakeKernel(emptyState(), structuredClone(net), true);
    const steering = new Steering(kernel, ['cni0']);
    await steering.look();
    t.same(log, [], 'without a plan there is nothing to look for');
    await steering.apply(one);
    log.length = 0;
    await steering.look();
    t.same(words(log.splice(0)).sort(), ['hold rule', 'ip list']);
    await steering.apply(planOf({ v: { addresses: ['10.244.1.12'], steer: toS1 } }));
    t.notMatch(words(log.splice(0)).join(), /list/, 'meanwhile others have their turns');
    steering.forget(false);
    await steering.apply(one);
    t.notMatch(words(log).join(), /list|hold/, 'it need not be listed');
    t.ok(words(log).includes('sysctls rp_filter'), 'parameters are looked at all the same');
    await steering.look();
    const less = planOf({});
    delete less.shards['p/1'];
    await steering.apply(less);
    log.length = 0;
    steering.forget(false);
    await steering.apply(one);
    t.ok(words(log).includes('ip list'), 'routes were changed since');
  });
  t.test('a plan without settings', async (t) => {
    const { log, kernel } = fakeKernel();
    const steering = new Steering(kernel, ['cni0']);
    t.equal((await steering.apply(emptyNodePlan())).workloads, 0, 'asks for nothing where nothing is');
    t.same(log, []);
    await steering.apply(one);
    await t.rejects(steering.apply(emptyNodePlan()), /knows nothing of this node/, 'and takes nothing away');
    t.equal(steering.plan, one);
  });
});

t.test("underlayAddresses: the machine's own, not its workloads' side", async (t) => {
  const of = (...addresses: string[]) =>
    addresses.map((address) => ({
      address,
      internal: address === '127.0.0.1',
      netmask: '',
      mac: '',
      cidr: null,
      family: 'IPv4' as const,
    }));
  t.same(
    underlayAddresses(['cni0', 'cali*'], {
      lo: of('127.0.0.1'),
      eth0: of('10.0.0.21', 'fd00:10::21', 'fe80::1', '169.254.1.1'),
      cni0: of('10.244.1.1'),
      cali123: of('10.244.1.9'),
      'sluice-vx': of('10.9.9.9'),
    }),
    ['10.0.0.21', 'fd00:10::21'],
  );
});
