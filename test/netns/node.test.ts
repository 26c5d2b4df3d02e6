/**
 * A node's steering and hold queue against the real kernel.
 *
 *   pod p1, p2 -- cni0 [ node ] eth0 10.0.0.21 ---- 10.0.0.31, next hops .64, .65 [ gw ] "internet" on its loopback
 *
 * gw is no Sluice gateway: a plain VXLAN device that unpacks and answers by itself, so that nothing is translated and
 * counters at its door say exactly what came: outer address, VNI, inner source. The node also has a default route and a
 * CNI's masquerade, so that everything that is not steered arrives there too, in the open, and is counted as a leak.
 * A second segment, eth1 10.0.1.21 ---- next hop 10.0.1.64, is for Direct steering: its packets come as they are.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { NFT_TABLE_NODE, TUNNEL_MAC_GATEWAY, TUNNEL_MAC_NODE, TUNNEL_PEER, TUNNEL_PORT } from '../../api/names.ts';
import {
  emptyNodePlan,
  type Family,
  families,
  type NodePlan,
  type NodeWorkloadEntry,
  type PerFamily,
  type Steer,
} from '../../api/plan.ts';
import { hashPlan } from '../../api/plan-hash.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { SavedPlanFile } from '../../daemon/saved-plan.ts';
import { listFlows } from '../../kernel/conntrack.ts';
import { type Applied, Steering } from '../../node/apply.ts';
import { startHoldQueue } from '../../node/hold-queue.ts';
import { HostKernel } from '../../node/kernel.ts';
import { keepPlaces } from '../../node/place-keeper.ts';
import { Places } from '../../node/places.ts';

t.setTimeout(570_000);
const name = (host: string): string => `t-node-${host}-${process.pid}`;
const [NODE, GW, P1, P2] = [name('n'), name('g'), name('p1'), name('p2')];
const VNI = 100;
const internet = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
const pod = {
  p1: { 4: '10.244.1.11', 6: 'fd00:244:1::11' },
  p2: { 4: '10.244.1.12', 6: 'fd00:244:1::12' },
} as const;
type Pod = keyof typeof pod;
const client = { 4: '192.0.2.7', 6: '2001:db8:2::7' } as const;
/** Outer destination by shard. */
const nextHop = { s1: '10.0.0.64', s2: '10.0.0.65' } as const;
type ShardName = keyof typeof nextHop;

function run(command: string, input = ''): string {
  const [program = '', ...args] = command.split(' ');
  return execFileSync('timeout', ['20', program, ...args], {
    encoding: 'utf8',
    input,
    stdio: ['pipe', 'pipe', 'pipe'],
  });
}
const inside = (namespace: string, command: string, input?: string): string =>
  run(`ip netns exec ${namespace} ${command}`, input);
const batch = (namespace: string, lines: string[]): string =>
  run(`ip -n ${namespace} -batch -`, `${lines.join('\n')}\n`);

/** True if the one echo request that is sent is answered in time: there is no second one. */
function ping(namespace: string, destination: string, options = '-c1 -W2'): Promise<boolean> {
  return new Promise((resolve) => {
    const args = ['60', 'ip', 'netns', 'exec', namespace, 'ping', '-n', ...options.split(' '), destination];
    execFile('timeout', args, (error) => resolve(error === null));
  });
}

const hexOf = (address: string): string =>
  address.includes(':')
    ? `fd0002440001${'0'.repeat(18)}${address.slice(-2)}`
    : address
        .split('.')
        .map((octet) => Number(octet).toString(16).padStart(2, '0'))
        .join('')
        .replace(/^0+/, '');

/** Counters at the gateway's door: by shard, family and pod; the rest of the tunnel port; what came in the open. */
function gatewayCounters(): string {
  const names: string[] = [];
  const rules: string[] = [];
  for (const shard of Object.keys(nextHop) as ShardName[]) {
    for (const family of families) {
      for (const from of Object.keys(pod) as Pod[]) {
        const counter = `${shard}_${from}_${family}`;
        const inner = family === 4 ? '@th,224,16 0x0800 @th,336,32' : '@th,224,16 0x86dd @th,304,128';
        names.push(counter);
        rules.push(
          `ip saddr 10.0.0.21 ip daddr ${nextHop[shard]} udp dport ${TUNNEL_PORT} @th,96,24 ${VNI} ${inner} 0x${hexOf(pod[from][family])} counter name ${counter} accept`,
        );
      }
    }
  }
  for (const family of families) {
    const ip = family === 4 ? 'ip' : 'ip6';
    names.push(`direct_p1_${family}`);
    rules.push(
      `iifname "eth1" ${ip} saddr ${pod.p1[family]} ${ip} daddr ${internet[family]} counter name direct_p1_${family} accept`,
    );
  }
  names.push('other', 'leak', 'over6', 'clamped');
  rules.push(`ip6 daddr fd00:10::64 udp dport ${TUNNEL_PORT} @th,96,24 ${VNI} counter name over6 accept`);
  for (const segment of [1410, 1390]) {
    rules.push(`iifname "vx0" tcp flags & (syn | ack) == syn tcp option maxseg size ${segment} counter name clamped`);
  }
  rules.push(`udp dport ${TUNNEL_PORT} counter name other`);
  for (const family of families) {
    const ip = family === 4 ? 'ip' : 'ip6';
    rules.push(`iifname { "eth0", "eth1" } ${ip} daddr ${internet[family]} counter name leak`);
  }
  return [
    'table inet watch {',
    ...names.map((counter) => `counter ${counter} { }`),
    'chain door { type filter hook prerouting priority raw; policy accept;',
    ...rules,
    '}',
    '}',
  ].join('\n');
}

function arrived(): Record<string, number> {
  const { nftables } = JSON.parse(inside(GW, 'nft -j list counters table inet watch')) as {
    nftables: { counter?: { name: string; packets: number } }[];
  };
  return Object.fromEntries(nftables.flatMap(({ counter }) => (counter ? [[counter.name, counter.packets]] : [])));
}
/** What came since `before`, without what did not. */
function since(before: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(arrived())
      .map(([key, value]) => [key, value - (before[key] ?? 0)] as const)
      .filter(([, value]) => value !== 0),
  );
}

function setUp(): void {
  for (const namespace of [NODE, GW, P1, P2]) {
    run(`ip netns add ${namespace}`);
    inside(
      namespace,
      'sysctl -q -w net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.rp_filter=0',
    );
    batch(namespace, ['link set lo up']);
  }
  run(`ip link add eth0 netns ${NODE} type veth peer name eth0 netns ${GW}`);
  for (const [namespace, port] of [
    [P1, 'v1'],
    [P2, 'v2'],
  ]) {
    run(`ip link add eth0 netns ${namespace} type veth peer name ${port} netns ${NODE}`);
  }
  batch(NODE, [
    'link add cni0 type bridge',
    ...['v1', 'v2'].flatMap((port) => [`link set ${port} master cni0`, `link set ${port} up`]),
    'link set cni0 up',
    'link set eth0 up',
    'addr add 10.244.1.1/24 dev cni0',
    'addr add fd00:244:1::1/64 dev cni0 nodad',
    'addr add 10.0.0.21/24 dev eth0',
    'addr add fd00:10::21/64 dev eth0 nodad',
    'route add default via 10.0.0.31',
    'route add default via fd00:10::31',
  ]);
  for (const [namespace, addresses] of [
    [P1, pod.p1],
    [P2, pod.p2],
  ] as const) {
    batch(namespace, [
      `addr add ${addresses[4]}/24 dev eth0`,
      `addr add ${addresses[6]}/64 dev eth0 nodad`,
      'link set eth0 up',
      'route add default via 10.244.1.1',
      'route add default via fd00:244:1::1',
    ]);
  }
  batch(GW, [
    'link set eth0 up',
    ...['10.0.0.31/24', '10.0.0.64/32', '10.0.0.65/32'].map((address) => `addr add ${address} dev eth0`),
    'addr add fd00:10::31/64 dev eth0 nodad',
    'addr add fd00:10::64/128 dev eth0 nodad',
    ...families.flatMap((family) => [`addr add ${internet[family]} dev lo`, `addr add ${client[family]} dev lo`]),
    `link add vx0 address ${TUNNEL_MAC_GATEWAY} type vxlan external dstport ${TUNNEL_PORT}`,
    'link set vx0 mtu 1450 up',
    ...families.map((family) => `neigh replace ${TUNNEL_PEER[family]} lladdr ${TUNNEL_MAC_NODE} dev vx0 nud permanent`),
    `route add 10.244.1.0/24 via ${TUNNEL_PEER[4]} dev vx0 onlink encap ip id ${VNI} dst 10.0.0.21`,
    // Connections from `client` to a pod come by the node's front door.
    'route add 10.244.1.0/24 via 10.0.0.21 table 50',
    `rule add from ${client[4]} table 50`,
  ]);
  run(
    `ip -n ${GW} -6 -batch -`,
    [
      `route add fd00:244:1::/64 via ${TUNNEL_PEER[6]} dev vx0 onlink encap ip id ${VNI} dst 10.0.0.21`,
      'route add fd00:244:1::/64 via fd00:10::21 table 50',
      `rule add from ${client[6]} table 50`,
      '',
    ].join('\n'),
  );
  inside(GW, 'nft -f -', gatewayCounters());
  inside(NODE, 'iptables-nft -t nat -A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j MASQUERADE');
  inside(NODE, 'ip6tables-nft -t nat -A POSTROUTING -s fd00:244:1::/64 ! -d fd00:244::/32 -j MASQUERADE');
}

function tearDown(): void {
  for (const namespace of [P1, P2, NODE, GW]) {
    try {
      run(`ip netns del ${namespace}`);
    } catch {}
  }
}

const both = (steer: Steer): PerFamily<Steer> => ({ 4: steer, 6: steer });
const shard = (key: ShardName): PerFamily<Steer> => both({ shard: `pool/${key}` });
function planOf(workloads: Partial<Record<Pod, PerFamily<Steer>>>, uids: Partial<Record<Pod, string>> = {}): NodePlan {
  const entries = (Object.entries(workloads) as [Pod, PerFamily<Steer>][]).map(([key, steer]): NodeWorkloadEntry => {
    const uid = uids[key] ?? `uid-${key}`;
    return { namespace: 'a', name: key, uid, addresses: [pod[key][4], pod[key][6]], steer };
  });
  return {
    ...emptyNodePlan(),
    settings: {
      node: {
        node: 'node-a',
        podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'],
        port: TUNNEL_PORT,
        mtu: null,
        clusterCIDRs: ['10.244.0.0/16', '10.96.0.0/16', '10.0.0.0/24', 'fd00:244::/32', 'fd00:10::/64'],
        excludedCIDRs: [],
      },
    },
    shards: {
      'pool/s1': { index: 1, mode: 'VXLAN', vni: VNI, nextHops: { 4: nextHop.s1, 6: 'fd00:10::64' } },
      'pool/s2': { index: 2, mode: 'VXLAN', vni: VNI, nextHops: { 4: nextHop.s2, 6: 'fd00:10::65' } },
    },
    gateways: { gw: { internalAddress: '10.0.0.31', addresses: ['10.0.0.31', 'fd00:10::31'] } },
    workloads: Object.fromEntries(entries.map((entry) => [entry.uid, entry])),
  };
}

/** Steering and hold queue as runNode joins them, in the node's namespace, with counts of what the hold queue did. */
function startNode(onLeft?: () => void) {
  const kernel = new HostKernel(NODE);
  const places = new Places();
  const steering = new Steering(kernel, ['cni0'], { places, ...(onLeft && { onLeft }) });
  const seen = { held: 0, released: 0, expired: 0, gone: 0, limit: 0, malformed: 0, heldAt: 0, releasedAt: 0 };
  const hold = startHoldQueue({
    namespace: NODE,
    onSource: (...source) => keeper.sent(...source),
    log: silentLog(),
    events: {
      held: () => {
        seen.held++;
        seen.heldAt = performance.now();
      },
      released: () => {
        seen.released++;
        seen.releasedAt = performance.now();
      },
      dropped: (why) => seen[why]++,
    },
  });
  let last: Promise<unknown> = Promise.resolve();
  const apply = async (plan: NodePlan | undefined): Promise<Applied> => {
    if (plan === undefined) throw new Error('no plan yet');
    const mine = last.then(() => steering.apply(plan));
    last = mine.catch(() => undefined);
    const applied = await mine;
    hold.release(applied.known);
    return applied;
  };
  const keeper = keepPlaces({
    places,
    hold,
    inTurn: (work) => work(),
    apply: async () => void (await apply(steering.plan)),
    again: () => {},
    log: silentLog(),
    namespace: NODE,
  });
  return {
    kernel,
    seen,
    apply,
    endLeft: () => steering.endLeft(),
    async drops(): Promise<Record<string, number>> {
      const counters = await kernel.nft.counters(NFT_TABLE_NODE);
      return Object.fromEntries(Object.entries(counters).map(([key, { packets }]) => [key, packets]));
    },
    async close() {
      await keeper.close();
      await last;
      await hold.close();
    },
  };
}

const until = async (
  what: string,
  condition: () => boolean | Promise<boolean>,
  milliseconds = 60_000,
): Promise<void> => {
  const end = performance.now() + milliseconds;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(2);
  }
};

t.teardown(tearDown);
setUp();
let node = startNode();

t.test('an unassigned workload is not steered: the masquerade carries it, as if Sluice were absent', async (t) => {
  await node.apply(planOf({ p1: both('bypass') }));
  const before = arrived();
  for (const family of families) t.ok(await ping(P1, internet[family]), `v${family} answered`);
  t.same(since(before), { leak: 2 });
});

t.test('a known workload arrives encapsulated at its shard, with its own source beside a masquerade', async (t) => {
  const { endedFlows } = await node.apply(planOf({ p1: shard('s1') }));
  t.ok(endedFlows >= 2, 'flows that the CNI had translated were ended');
  const before = arrived();
  for (const family of families) t.ok(await ping(P1, internet[family]), `v${family} answered`);
  t.ok(await ping(P1, internet[4], '-c1 -W2 -s 1400 -M do'), 'a packet that just fits is not cut');
  t.same(since(before), { s1_p1_4: 2, s1_p1_6: 1 });
});

t.test('TCP is clamped to the tunnel; over IPv6 it is as over IPv4', async (t) => {
  const before = arrived();
  for (const family of families) {
    const address = family === 6 ? `[${internet[6]}]` : internet[4];
    // Nothing listens there: the SYN is all that is wanted.
    t.throws(() => inside(P1, `socat -u - TCP${family}:${address}:9,connect-timeout=2`), /refused/);
  }
  t.equal(since(before).clamped, 2);
  const plan = planOf({ p1: shard('s1') });
  plan.gateways = { gw: { internalAddress: 'fd00:10::31', addresses: ['fd00:10::31'] } };
  await node.apply(plan);
  const then = arrived();
  for (const family of families) await ping(P1, internet[family], '-c1 -W1');
  t.same(since(then), { over6: 2 });
  await node.apply(planOf({ p1: shard('s1') }));
});

t.test('steering looks after service translation, and so does the guard of the tunnel port', async (t) => {
  const translate = (address: string, to: string) =>
    inside(NODE, `iptables-nft -t nat -A PREROUTING -p udp -d ${address} -j DNAT --to-destination ${to}`);
  translate('10.96.0.8', `${internet[4]}:9`);
  translate('10.96.0.9', `10.0.0.31:${TUNNEL_PORT}`);
  // A load balancer's address that is a pod.
  translate('203.0.113.200', `${pod.p2[4]}:9`);
  const before = arrived();
  const drops = await node.drops();
  for (const address of ['10.96.0.8', '10.96.0.9', '203.0.113.200'])
    inside(P1, `socat -u - UDP4-SENDTO:${address}:9`, 'x');
  await until('the last', async () => ((await node.drops()).drop_tunnel_port ?? 0) > (drops.drop_tunnel_port ?? 0));
  await until('the first', () => since(before).s1_p1_4 !== undefined);
  await sleep(50);
  t.same(since(before), { s1_p1_4: 1 }, 'an endpoint off the cluster is steered, the others are not');
  t.equal((await node.drops()).drop_tunnel_port, (drops.drop_tunnel_port ?? 0) + 1, 'a gateway is no endpoint');
});

t.test('an unknown source is held, and its first packet goes on when the plan names it', async (t) => {
  for (const family of families) {
    await node.apply(planOf({ p1: shard('s1') }));
    const before = arrived();
    const held = node.seen.held;
    const reply = ping(P2, internet[family], '-c1 -W15');
    await until('held', () => node.seen.held > held);
    await sleep(300);
    t.same(since(before), {}, `v${family}: nothing left while it was held`);
    const asked = performance.now();
    await node.apply(planOf({ p1: shard('s1'), p2: shard('s2') }));
    await until('released', () => node.seen.releasedAt > asked);
    const took = node.seen.releasedAt - asked;
    t.comment(`v${family}: released ${took.toFixed(0)} ms after the plan`);
    t.ok(await reply, `v${family}: the only packet that was sent is answered`);
    t.same(since(before), { [`s2_p2_${family}`]: 1 });
  }
});

t.test('an unknown source that stays unknown: four packets wait in vain, nothing leaves', async (t) => {
  await node.apply(planOf({ p1: shard('s1') }));
  const before = arrived();
  const { expired, limit } = node.seen;
  const answers = await Promise.all(families.map((family) => ping(P2, internet[family], '-c 6 -i 0.1 -W 1')));
  await until('expired', () => node.seen.expired >= expired + 8);
  t.same(answers, [false, false]);
  t.equal(node.seen.expired - expired, 8, 'held to the end: four of each source');
  t.equal(node.seen.limit - limit, 4, 'the others were too many');
  t.same(since(before), {});
});

t.test('what a workload may not do is dropped and counted by reason', async (t) => {
  const cases: { what: string; steer: PerFamily<Steer>; to: (family: Family) => string[]; reason: string }[] = [
    {
      what: 'to the tunnel port of a gateway',
      steer: shard('s1'),
      to: (family) => [family === 4 ? '10.0.0.31' : 'fd00:10::31', String(TUNNEL_PORT)],
      reason: 'drop_tunnel_port',
    },
    {
      what: 'to the tunnel port of its own node',
      steer: shard('s1'),
      to: (family) => [family === 4 ? '10.0.0.21' : 'fd00:10::21', String(TUNNEL_PORT)],
      reason: 'drop_tunnel_port',
    },
    {
      what: 'to a next hop',
      steer: shard('s1'),
      to: (f) => [f === 4 ? nextHop.s1 : 'fd00:10::64', '9'],
      reason: 'drop_tunnel_port',
    },
    { what: 'assigned nothing', steer: both('drop'), to: (f) => [internet[f], '9'], reason: 'drop_unassigned' },
    { what: 'no egress IP', steer: {}, to: (f) => [internet[f], '9'], reason: 'drop_no_egress_ip' },
  ];
  for (const { what, steer, to, reason } of cases) {
    await node.apply(planOf({ p1: steer }));
    for (const family of families) {
      const [before, drops] = [arrived(), await node.drops()];
      const [address = '', port = ''] = to(family);
      inside(P1, `socat -u - UDP${family}-SENDTO:${family === 6 ? `[${address}]` : address}:${port}`, 'x');
      await until(reason, async () => ((await node.drops())[reason] ?? 0) > (drops[reason] ?? 0));
      t.equal((await node.drops())[reason], (drops[reason] ?? 0) + 1, `${what}, v${family}`);
      t.same(since(before), {}, `${what}, v${family}: nothing arrives`);
    }
  }
  await node.apply(planOf({ p1: shard('s1') }));
  const drops = await node.drops();
  inside(GW, `socat -u - UDP4-SENDTO:10.0.0.21:${TUNNEL_PORT},bind=${client[4]}`, 'x');
  await until(
    'a stranger',
    async () => ((await node.drops()).drop_foreign_tunnel ?? 0) > (drops.drop_foreign_tunnel ?? 0),
  );
  t.equal(
    (await node.drops()).drop_foreign_tunnel,
    (drops.drop_foreign_tunnel ?? 0) + 1,
    'a tunnel packet of a stranger',
  );
});

t.test('a change of assignment moves new flows only; a withdrawal ends them', async (t) => {
  await node.apply(planOf({ p1: shard('s1') }));
  for (const family of families) {
    const then = arrived();
    const flow = ping(P1, internet[family], '-c 40 -i 0.1 -W 1');
    await until('the first packet', () => since(then)[`s1_p1_${family}`] !== undefined);
    await node.apply(planOf({ p1: shard('s2') }));
    const before = arrived();
    t.ok(await ping(P1, internet[family]), 'a new flow');
    t.ok(await flow, 'the old flow');
    const after = since(before);
    t.equal(after[`s2_p1_${family}`], 1, `v${family}: the new flow goes to the new shard`);
    t.ok((after[`s1_p1_${family}`] ?? 0) >= 1, `v${family}: the old one stays`);
    t.equal(after.leak, undefined);
    await node.apply(planOf({ p1: shard('s1') }));
  }
  const marked = async () =>
    (await listFlows({ namespace: NODE })).filter(({ original }) => original.source === pod.p1[4]);
  t.ok((await marked()).length > 0, 'flows are there');
  const handed = await node.apply(planOf({ p1: shard('s1') }, { p1: 'uid-next' }));
  t.ok(handed.endedFlows > 0, 'the address has another owner: flows are ended');
  t.same(await marked(), []);
  await ping(P1, internet[4]);
  await node.apply(planOf({}));
  t.same(await marked(), [], 'the pod is gone: its flows too');
  const before = arrived();
  t.notOk(await ping(P1, internet[4], '-c1 -W1'));
  t.same(since(before), {}, 'and nothing leaves');
});

t.test('of a workload that went nobody uses the flows, before they are ended', async (t) => {
  await node.close();
  let told = 0;
  node = startNode(() => told++);
  const flows = async () =>
    (await listFlows({ namespace: NODE })).filter(({ original }) => original.source === pod.p1[4]).length;
  // A flow for each number that ping names itself by.
  const pings = (id: number) => ping(P1, internet[4], `-c1 -W1 -e ${id}`);
  await node.apply(planOf({ p1: shard('s1') }));
  t.ok(await pings(77), 'a flow');
  t.equal((await node.apply(planOf({}))).endedFlows, 0);
  t.equal(told, 1);
  t.ok((await flows()) > 0, 'it is there still');
  const [before, drops, { held }] = [arrived(), await node.drops(), { ...node.seen }];
  t.notOk(await pings(77), 'whoever sends what would be of it');
  t.same(since(before), {});
  const dropped = (await node.drops()).drop_unknown_source ?? 0;
  t.equal(dropped, (drops.drop_unknown_source ?? 0) + 1);
  t.equal(node.seen.held, held);
  t.notOk(await pings(78));
  t.equal(node.seen.held, held + 1, 'what begins anew is held');
  t.ok((await node.endLeft()) > 0);
  t.notMatch(inside(NODE, 'nft list ruleset'), /saddr @leaving/, 'nobody asks any more');
  await node.apply(planOf({ p1: shard('s1') }));
  t.ok(await pings(79));
  await node.apply(planOf({}));
  const { endedFlows } = await node.apply(planOf({ p1: shard('s2') }, { p1: 'uid-next' }));
  t.ok(endedFlows > 0, 'the address has another owner: that is not put off');
  t.equal(await flows(), 0);
  const next = arrived();
  t.ok(await pings(79));
  t.same(since(next), { s2_p1_4: 1 }, 'and leaves as the other');
  await node.close();
  node = startNode();
  await node.apply(planOf({}));
});

t.test('replies of inbound connections are not steered, known workload or not', async (t) => {
  for (const workloads of [{ p1: shard('s1') }, {}]) {
    await node.apply(planOf(workloads));
    for (const family of families) {
      const before = arrived();
      t.ok(await ping(GW, pod.p1[family], `-c1 -W2 -I ${client[family]}`), `v${family} answered`);
      t.same(since(before), {}, 'not through the tunnel');
    }
  }
});

t.test('a restart finds everything in place and changes nothing; kill -9 stops nothing', async (t) => {
  const plan = planOf({ p1: shard('s1') });
  await node.apply(plan);
  for (const family of families) await ping(P1, internet[family]);
  await node.close();
  const ids = async () =>
    (await listFlows({ namespace: NODE }))
      .filter(({ original }) => original.source === pod.p1[4] || original.source === pod.p1[6])
      .map(({ id }) => id)
      .sort();
  const state = () =>
    ['nft -a -s list ruleset', 'ip -d link show sluice-vx', 'ip route show table 7801', 'ip rule', 'ip -6 rule'].map(
      (command) => inside(NODE, command),
    );
  const [flows, kernelState] = [await ids(), state()];
  const directory = mkdtempSync(join(tmpdir(), 't-node-'));
  const children: ChildProcess[] = [];
  const program = async (): Promise<ChildProcess> => {
    const script = `import(${JSON.stringify(fileURLToPath(new URL('../../node/main.js', import.meta.url)))}).then((m) => m.runNode(${JSON.stringify(
      {
        name: 'node-a',
        controller: 'https://127.0.0.1:9',
        certs: join(directory, 'node-a'),
        state: join(directory, 'state'),
        workloadInterfaces: ['cni0'],
        metrics: '127.0.0.1:7793',
      },
    )}))`;
    // `ip netns exec` becomes the program, so its pid is the program's.
    const child = spawn('ip', ['netns', 'exec', NODE, process.execPath, '-e', script], { stdio: 'ignore' });
    children.push(child);
    for (let tries = 0; tries < 600; tries++) {
      try {
        inside(NODE, 'curl -sf -m 1 http://127.0.0.1:7793/readyz');
        return child;
      } catch {
        await sleep(100);
      }
    }
    throw new Error('the program does not get ready');
  };
  try {
    await createCa(directory);
    await issueCertificate({
      caDir: directory,
      outDir: join(directory, 'node-a'),
      role: 'node',
      name: 'node-a',
      addresses: [],
    });
    const file = await SavedPlanFile.open(join(directory, 'state'), 'node', { log: silentLog() });
    await file.save(plan, 7, hashPlan(plan));
    await file.close();
    const first = await program();
    t.same(state(), kernelState, 'the kernel holds the very same objects');
    t.ok(flows.length >= 2 && String(await ids()) === String(flows), 'and the same flows');
    const metrics = inside(NODE, 'curl -sf -m 2 http://127.0.0.1:7793/metrics');
    t.match(metrics, /sluice_node_generation\{program="node"\} 7\n/);
    t.match(metrics, /sluice_node_workloads\{program="node"\} 1\n/);
    t.match(metrics, /sluice_node_drops_total\{reason="tunnel-port",program="node"\} 7\n/);

    const sent = arrived();
    const flow = ping(P1, internet[4], '-c 20 -i 0.1 -W 1');
    await until('the first packet', () => since(sent).s1_p1_4 !== undefined);
    first.kill('SIGKILL');
    t.ok(await flow, 'a flow goes on');
    const before = arrived();
    t.ok(await ping(P1, internet[6]), 'new flows too');
    t.notOk(await ping(P2, internet[4], '-c1 -W1'), 'an unknown source does not get out with nobody at the queue');
    t.same(since(before), { s1_p1_6: 1 });
    await program();
    t.same(state(), kernelState, 'the next start finds it all again');
  } finally {
    for (const child of children) child.kill('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
    node = startNode();
  }
});

t.test('what another program takes away does not let packets out, and is mended', async (t) => {
  const plan = planOf({ p1: shard('s1') });
  await node.apply(plan);
  const before = arrived();
  inside(NODE, 'ip rule del priority 7801');
  const drops = await node.drops();
  t.notOk(await ping(P1, internet[4], '-c1 -W1'));
  t.equal((await node.drops()).drop_leak, (drops.drop_leak ?? 0) + 1, 'no rule: marked packets may not go another way');
  inside(NODE, 'ip rule add fwmark 1/0xff table 7801 priority 7801');
  inside(NODE, 'ip link del sluice-vx');
  for (const family of families) t.notOk(await ping(P1, internet[family], '-c1 -W1'));
  t.equal(
    (await node.drops()).drop_leak,
    (drops.drop_leak ?? 0) + 1,
    'no device: they fall into the black hole before',
  );
  t.same(since(before), {});
  await node.close();
  node = startNode();
  await node.apply(plan);
  for (const family of families) t.ok(await ping(P1, internet[family]), `v${family} answered again`);
  await node.close();
});

t.test(
  'Direct: to the next hop itself, by the device that leads there, beside a VXLAN shard and without',
  async (t) => {
    run(`ip link add eth1 netns ${NODE} type veth peer name eth1 netns ${GW}`);
    for (const [namespace, host, hops] of [
      [NODE, 21, []],
      [GW, 31, ['10.0.1.64/32', 'fd00:11::64/128']],
    ] as const) {
      batch(namespace, [
        'link set eth1 up',
        ...[`10.0.1.${host}/24`, `fd00:11::${host}/64`, ...hops].map(
          (address) => `addr add ${address} dev eth1${address.includes(':') ? ' nodad' : ''}`,
        ),
      ]);
    }
    for (const family of families) {
      const via = family === 4 ? '10.0.1.21' : 'fd00:11::21';
      run(`ip -${family} -n ${GW} route add ${pod.p1[family]} via ${via} dev eth1`);
    }
    // Strict: replies from the whole internet come in by another device than that of the default route.
    inside(NODE, 'sysctl -q -w net.ipv4.conf.eth1.rp_filter=1');
    const plan = planOf({ p1: both({ shard: 'pool2/d1' }), p2: shard('s1') });
    plan.shards['pool2/d1'] = { index: 3, mode: 'Direct', vni: 1, nextHops: { 4: '10.0.1.64', 6: 'fd00:11::64' } };
    node = startNode();
    await node.apply(plan);
    const before = arrived();
    for (const from of [P1, P2]) for (const family of families) t.ok(await ping(from, internet[family]), `v${family}`);
    t.ok(await ping(P1, internet[4], '-c1 -W2 -s 1472 -M do'), 'no byte is lost to a tunnel');
    t.same(since(before), { direct_p1_4: 2, direct_p1_6: 1, s1_p2_4: 1, s1_p2_6: 1 });

    const onlyDirect = planOf({ p1: both({ shard: 'pool2/d1' }) });
    onlyDirect.shards = { 'pool2/d1': plan.shards['pool2/d1'] };
    await node.apply(onlyDirect);
    t.throws(() => inside(NODE, 'ip link show sluice-vx'), 'no shard is VXLAN: no tunnel device');
    const then = arrived();
    for (const family of families) t.ok(await ping(P1, internet[family]), `v${family} without a tunnel`);
    t.same(since(then), { direct_p1_4: 1, direct_p1_6: 1 });

    await node.close();
    node = startNode();
    const state = () => ['nft -a -s list ruleset', 'ip route show table 7803'].map((command) => inside(NODE, command));
    const kernelState = state();
    await node.apply(onlyDirect);
    t.same(state(), kernelState, 'a restart changes nothing');

    const last = arrived();
    const drops = await node.drops();
    inside(NODE, 'ip rule del priority 7803');
    t.notOk(await ping(P1, internet[4], '-c1 -W1'));
    t.equal((await node.drops()).drop_leak, (drops.drop_leak ?? 0) + 1, 'no rule: the default route is another device');
    inside(NODE, 'ip rule add fwmark 3/0xff table 7803 priority 7803');
    inside(NODE, 'ip link set eth1 down');
    for (const family of families) t.notOk(await ping(P1, internet[family], '-c1 -W1'));
    t.same(since(last), {}, 'no device: the black hole');
    await node.apply(plan);
    t.equal(
      inside(NODE, 'ip -o link show sluice-vx').length > 0,
      true,
      'the tunnel device is back with the VXLAN shard',
    );
    t.ok(await ping(P2, internet[4]), 'and carries');
    await node.close();
  },
);
