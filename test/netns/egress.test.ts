/**
 * EgressIPs with destinations, spread over connections and with a limit, on real kernels. The gateway of gateway-rig.ts;
 * and a node, to see that both choose alike for the same packets:
 *
 *   test (as pods) <-> cni0  node  eth0 <-> nobody
 */
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { promisify } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { parseAddress } from '../../api/address.ts';
import { NODE_MARK_MASK } from '../../api/names.ts';
import { emptyNodePlan, type Family, families, type GatewayPlan, type NodePlan } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { listFlows } from '../../kernel/conntrack.ts';
import { PacketSocket } from '../../kernel/packet-socket.ts';
import { Steering } from '../../node/apply.ts';
import { HostKernel } from '../../node/kernel.ts';
import { compileEgress } from '../../policy/egress.ts';
import { buildFrame, ETHERTYPE_IPV4, ETHERTYPE_IPV6 } from '../../wire/ethernet.ts';
import { buildUdp, PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.ts';
import { addRule, basePlan, directPlan, EGRESS, PODS, WEB } from './gateway-plans.ts';
import { GatewayRig, icmpOf, type Probe, probePacket, ROUTER, type Sighting } from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40);
const exec = promisify(execFile);
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const directState = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('eip', state);
const directRig = await GatewayRig.create('eipd', directState, 'Direct');
t.teardown(async () => {
  for (const each of [rig, directRig]) await each.close();
  for (const directory of [state, directState]) rmSync(directory, { recursive: true });
});

const PARTNER = { 4: '203.0.113.120', 6: '2001:db8:113::120' } as const;
const SPECIAL = { 4: '203.0.113.121', 6: '2001:db8:113::121' } as const;
/** Of reviews: the first two on the shard that gw-a holds, the third on another. */
const SPREAD = {
  4: ['203.0.113.130', '203.0.113.131', '203.0.113.132'],
  6: ['2001:db8:113::130', '2001:db8:113::131', '2001:db8:113::132'],
} as const;
const OTHER = { 4: '198.51.100.7', 6: '2001:db8:100::7' } as const;
const FAR = { 4: '192.0.2.1', 6: '2001:db8:101::1' } as const;
const networks = { 4: '198.51.100.0/24', 6: '2001:db8:100::/64' } as const;
const single = { 4: `${WEB[4]}/32`, 6: `${WEB[6]}/128` } as const;

/** Everything is permitted; what is asked is the source. */
function openPlan(): GatewayPlan {
  const plan = basePlan('Accept');
  plan.shards.s0?.egressIPs.push(...[PARTNER, SPECIAL].flatMap((a) => [a[4], a[6]]));
  for (const family of families) {
    plan.shards.s0?.egressIPs.push(...SPREAD[family].slice(0, 2));
    plan.shards.s1?.egressIPs.push(...SPREAD[family].slice(2));
  }
  return plan;
}
const on = (addresses: Record<Family, string>, shard: string) => ({
  4: { address: addresses[4], shard },
  6: { address: addresses[6], shard },
});
const spreadOf = (shards: string[]) => ({
  4: SPREAD[4].map((address, at) => ({ address, shard: shards[at] ?? '' })),
  6: SPREAD[6].map((address, at) => ({ address, shard: shards[at] ?? '' })),
});

/** billing leaves with an address of its own; to the network as `partner`, and to one address of it as `special`. */
function destinationPlan(lists: { partner: string[]; special: string[] }): GatewayPlan {
  const plan = openPlan();
  plan.egressIPs = { partner: { destinations: lists.partner }, special: { destinations: lists.special } };
  plan.destinations = { both: { egressIPs: ['partner', 'special'] } };
  Object.assign(plan.workloads['uid-pay'] ?? {}, {
    destinations: 'both',
    elsewhere: { partner: on(PARTNER, 's0'), special: on(SPECIAL, 's0') },
  });
  return plan;
}
const usual = { partner: Object.values(networks), special: Object.values(single) };

/** reviews uses all of its addresses. */
function spreadPlan(shards: string[] = ['s0', 's0', 's0']): GatewayPlan {
  const plan = openPlan();
  plan.egressIPs = { all: { spread: spreadOf(shards) } };
  Object.assign(plan.workloads['uid-rev'] ?? {}, { egress: {}, egressIP: 'all' });
  return plan;
}

let marker = 1;
type PodName = 'pay' | 'rev';
const probe = (pod: PodName, destination: string, more: Partial<Probe> = {}): Probe => ({
  source: PODS[pod][destination.includes(':') ? 6 : 4],
  destination,
  protocol: PROTOCOL_UDP,
  destinationPort: 53,
  marker: marker++,
  ...more,
});

/** By marker: with what source each left. */
async function sources(list: Probe[], through = rig, options = {}): Promise<Map<number, string>> {
  for (const one of list) through.fromNode(probePacket(one), options);
  const seen = (await through.collect()).filter(({ where, kind }) => where === 'outside' && kind === 'packet');
  return new Map(seen.map((sighting: Sighting) => [sighting.marker, sighting.packet.source]));
}
async function sourceOf(one: Probe, through = rig): Promise<string | undefined> {
  return (await sources([one], through)).get(one.marker);
}
const planFor = (through: GatewayRig, plan: GatewayPlan) => (through.mode === 'Direct' ? directPlan(plan) : plan);

for (const through of [rig, directRig]) {
  t.test(`${through.mode}: each destination is reached with its address, the longest prefix first`, async (t) => {
    await through.reset();
    await through.apply(planFor(through, destinationPlan(usual)));
    for (const family of families) {
      for (const protocol of [PROTOCOL_UDP, PROTOCOL_TCP, icmpOf(family)]) {
        const left = (destination: string) => sourceOf(probe('pay', destination, { protocol }), through);
        t.equal(await left(FAR[family]), EGRESS.pay[family], `v${family} ${protocol}: what none names`);
        t.equal(await left(OTHER[family]), PARTNER[family], `v${family} ${protocol}: the network`);
        t.equal(await left(WEB[family]), SPECIAL[family], `v${family} ${protocol}: one address of it`);
      }
      t.equal(await sourceOf(probe('rev', WEB[family]), through), EGRESS.rev[family], 'another pod is not concerned');
    }
    t.equal((await through.counters()).drop_leak, 0);
  });
}

t.test('a list that changes moves new flows, ends those that would leave otherwise now, and no others', async (t) => {
  await rig.reset();
  await rig.apply(destinationPlan(usual));
  const port = { sourcePort: 40_000 };
  for (const family of families) {
    await sources([FAR[family], OTHER[family], WEB[family]].map((to) => probe('pay', to, port)));
  }
  const flowsTo = async (...to: string[]) =>
    (await rig.flows()).filter(({ original }) => to.includes(original.destination)).map(({ id }) => id);
  const [kept, moved] = [
    await flowsTo(...Object.values(FAR), ...Object.values(WEB)),
    await flowsTo(...Object.values(OTHER)),
  ];
  t.equal(kept.length + moved.length, 6);
  await rig.apply(destinationPlan({ ...usual, partner: [] }));
  t.same(await flowsTo(...Object.values(FAR), ...Object.values(WEB)), kept, 'the others go on');
  t.same(await flowsTo(...Object.values(OTHER)), [], 'those of the network are ended');
  for (const family of families) {
    t.equal(
      await sourceOf(probe('pay', OTHER[family], port)),
      EGRESS.pay[family],
      `v${family}: the next one leaves as the rest`,
    );
    t.equal(
      await sourceOf(probe('pay', WEB[family], port)),
      SPECIAL[family],
      `v${family}: an old one keeps its address`,
    );
  }
  t.equal((await rig.counters()).drop_leak, 0);
});

t.test(
  'an EgressIP without an address of the family, and nothing but destinations: dropped, with the reason',
  async (t) => {
    const plan = destinationPlan(usual);
    const workload = plan.workloads['uid-pay'];
    t.ok(workload);
    if (workload === undefined) return;
    workload.elsewhere = { partner: { 4: { address: PARTNER[4], shard: 's0' } }, special: on(SPECIAL, 's0') };
    workload.egress = {};
    await rig.reset();
    await rig.apply(plan);
    for (const [what, destination, expected] of [
      ['an address of this family', OTHER[4], PARTNER[4]],
      ['none of that', OTHER[6], undefined],
      ['another EgressIP has', WEB[6], SPECIAL[6]],
      ['nothing serves the rest', FAR[4], undefined],
    ] as const) {
      const before = (await rig.counters()).drop_no_egress_ip ?? 0;
      t.equal(await sourceOf(probe('pay', destination)), expected, what);
      t.equal(((await rig.counters()).drop_no_egress_ip ?? 0) - before, expected === undefined ? 1 : 0);
    }
  },
);

const prefix = fc.constantFrom(
  '0.0.0.0/0',
  '198.51.100.0/24',
  '198.51.100.0/25',
  '198.51.100.80/32',
  '192.0.2.0/24',
  '::/0',
  '2001:db8:100::/64',
  '2001:db8:100::80/128',
  '2001:db8::/32',
);
const egressIPs = ['e0', 'e1', 'e2', 'e3'] as const;
const randomTables = fc.record({
  lists: fc.tuple(...egressIPs.map(() => fc.uniqueArray(prefix, { maxLength: 4 }))),
  spreads: fc.tuple(...egressIPs.map(() => fc.boolean())),
  tables: fc.tuple(
    ...(['pay', 'rev'] as const).map(() => fc.option(fc.shuffledSubarray([...egressIPs], { minLength: 1 }))),
  ),
  otherwise: fc.tuple(...(['pay', 'rev'] as const).map(() => fc.constantFrom('own', 'none', 'spread'))),
});

t.test('for random lists, tables and spreads the kernel does as policy/egress.ts says', async (t) => {
  const [pays, revs] = [
    ['pay', 0],
    ['rev', 1],
  ] as const;
  await fc.assert(
    fc.asyncProperty(randomTables, async ({ lists, spreads, tables, otherwise }) => {
      const plan = openPlan();
      const own = (at: number) => on({ 4: `203.0.113.${140 + at}`, 6: `2001:db8:113::${140 + at}` }, 's0');
      const many = (at: number) => {
        const [a, b] = [own(at), own(at + 4)];
        return { 4: [a[4], b[4]], 6: [a[6], b[6]] };
      };
      egressIPs.forEach((name, at) => {
        plan.egressIPs[name] = { destinations: lists[at] ?? [], ...(spreads[at] && { spread: many(at) }) };
      });
      plan.egressIPs.rest = { spread: many(8) };
      for (const [pod, at] of [pays, revs]) {
        const workload = plan.workloads[`uid-${pod}`];
        if (workload === undefined) continue;
        if (otherwise[at] !== 'own') workload.egress = {};
        if (otherwise[at] === 'spread') workload.egressIP = 'rest';
        const names = tables[at];
        if (!names) continue;
        plan.destinations[pod] = { egressIPs: names };
        workload.destinations = pod;
        workload.elsewhere = Object.fromEntries(
          names.flatMap((name) => (spreads[egressIPs.indexOf(name)] ? [] : [[name, own(egressIPs.indexOf(name))]])),
        );
      }
      await rig.apply(plan);
      const map = compileEgress(plan);
      const sent = (['pay', 'rev'] as const).flatMap((pod) =>
        [FAR, OTHER, WEB, ROUTER].flatMap((to) => families.map((family) => probe(pod, to[family]))),
      );
      const left = await sources(sent);
      for (const one of sent) {
        const workload = Object.values(plan.workloads).find(({ addresses }) => addresses.includes(one.source));
        if (workload === undefined) throw new Error('no workload');
        const { addresses } = map.towards(workload, must(parseAddress(one.destination)));
        const source = left.get(one.marker);
        const expected = addresses.map(({ address }) => address);
        if (source === undefined ? expected.length > 0 : !expected.includes(source)) {
          throw new Error(`${JSON.stringify(one)} left as ${source}, expected one of ${expected}`);
        }
      }
    }),
    { numRuns: RUNS, endOnFailure: true },
  );
  t.equal((await rig.counters()).drop_leak, 0);
});

t.test('spread: all addresses are used, a connection keeps its own, whatever else changes', async (t) => {
  await rig.reset();
  await rig.apply(spreadPlan());
  for (const family of families) {
    const flows = Array.from({ length: 60 }, () => probe('rev', WEB[family]));
    const first = await sources(flows);
    t.equal(first.size, 60);
    const used = new Map<string, number>();
    for (const source of first.values()) used.set(source, (used.get(source) ?? 0) + 1);
    t.same([...used.keys()].sort(), [...SPREAD[family]], `v${family}: all of them`);
    t.ok(Math.min(...used.values()) >= 8, `about as often: ${[...used.values()]}`);
    t.same(await sources(flows), first, 'the second packet of each as its first');
    const fewer = spreadPlan();
    fewer.egressIPs = {
      all: { spread: { 4: spreadOf(['s0', 's0', 's0'])[4].slice(1), 6: spreadOf(['s0', 's0', 's0'])[6].slice(1) } },
    };
    await rig.apply(fewer);
    const later = await sources(flows);
    for (const { marker: at } of flows) {
      const [was, is] = [first.get(at) ?? '', later.get(at) ?? ''];
      if (was === SPREAD[family][0]) t.not(is, was, 'of the address that went');
      else if (was !== is) t.fail(`a connection of ${was} goes on as ${is}`);
    }
    await rig.apply(spreadPlan());
    t.same(await sources(flows), later, 'and none moves when it comes back');
  }
  const ping = () => sourceOf(probe('rev', WEB[4], { protocol: icmpOf(4) }));
  t.equal(await ping(), await ping(), 'a ping has one address');
  t.equal((await rig.counters()).drop_leak, 0);
});

t.test('spread over shards: what comes here leaves with an address that is held here', async (t) => {
  await rig.reset();
  await rig.apply(spreadPlan(['s0', 's0', 's1']));
  for (const family of families) {
    const left = await sources(Array.from({ length: 40 }, () => probe('rev', WEB[family])));
    t.same([...new Set(left.values())].sort(), SPREAD[family].slice(0, 2), `v${family}`);
  }
});

t.test('maxConnections of an EgressIP: of all its addresses and pods; others are not limited', async (t) => {
  await rig.reset();
  const plan = spreadPlan();
  const all = plan.egressIPs.all;
  if (all !== undefined) all.limits = { maxConnections: 10, shards: ['edge/s0', 'edge/s1'] };
  Object.assign(plan.workloads['uid-pay'] ?? {}, { egress: {}, egressIP: 'all' });
  await rig.apply(plan);
  const flows = (pod: PodName, count: number) =>
    Array.from({ length: count }, (_, at) => probe(pod, WEB[families[at % 2] ?? 4]));
  t.equal((await sources(flows('rev', 3))).size, 3);
  t.equal((await sources(flows('pay', 4))).size, 2, 'of ten this gateway has the five of its shard');
  t.equal((await rig.counters()).drop_limit, 2);
  const raised = structuredClone(plan);
  const more = raised.egressIPs.all;
  if (more !== undefined) more.limits = { maxConnections: 16, shards: ['edge/s0', 'edge/s1'] };
  const flowsBefore = (await rig.flows()).map(({ id }) => id).sort();
  await rig.apply(raised);
  t.same((await rig.flows()).map(({ id }) => id).sort(), flowsBefore, 'another limit ends none');
  const own = structuredClone(plan);
  Object.assign(own.workloads['uid-pay'] ?? {}, { egress: on(EGRESS.pay, 's0'), egressIP: 'mine' });
  own.egressIPs.mine = { limits: { maxConnections: 2, shards: ['edge/s0'] } };
  await rig.reset();
  await rig.apply(own);
  const left = await sources(flows('pay', 4));
  t.same([...new Set(left.values())].sort(), Object.values(EGRESS.pay).sort(), 'one of spread Pod too');
  t.equal(left.size, 2);
  t.equal((await sources(flows('rev', 3))).size, 3, 'and each has a limit of its own');
});

t.test('a restart finds in the kernel what it would write', async (t) => {
  const plan = destinationPlan(usual);
  plan.egressIPs.special = { destinations: usual.special, spread: spreadOf(['s0', 's0', 's1']) };
  plan.egressIPs.mine = { limits: { maxConnections: 7, shards: ['edge/s0'] } };
  const workload = plan.workloads['uid-pay'];
  if (workload !== undefined) Object.assign(workload, { egressIP: 'mine', elsewhere: { partner: on(PARTNER, 's0') } });
  await rig.reset();
  await rig.apply(plan);
  let written = '';
  rig.mutate = (script) => {
    written += script;
    return script;
  };
  await rig.restarted(state).apply(plan);
  rig.mutate = undefined;
  t.notMatch(written, /^(add|delete) (element|map|set) |chain inet sluice (spread|by_)/m, 'nothing of sources');
});

t.test('a redirected flow leaves as its pod does towards what it asked for', async (t) => {
  const plan = destinationPlan(usual);
  plan.services['x/other'] = { addresses: [`${OTHER[4]}/32`], ports: null };
  addRule(plan, 'g-pay', { context: 'namespace', action: 'accept-decisively', services: ['x/other'], name: 'to-far' });
  Object.assign(plan.rules['namespace/to-far'] ?? {}, { redirect: { address: FAR[4], port: 99 } });
  await rig.reset();
  await rig.apply(plan);
  const one = probe('pay', OTHER[4]);
  rig.fromNode(probePacket(one));
  const [seen] = (await rig.collect()).filter(({ where }) => where === 'outside');
  t.equal(seen?.packet.destination, FAR[4]);
  t.equal(seen?.packet.source, PARTNER[4]);
  t.equal((await rig.flows()).length, 1);
  await rig.apply(structuredClone({ ...plan, groups: { ...plan.groups } }));
  t.equal((await rig.flows()).length, 1, 'and a look through the flows leaves it');
});

/** A node between a wire that is its pods' and one where nobody answers. */
async function startNode(): Promise<{
  apply(plan: NodePlan): Promise<unknown>;
  send(packet: Uint8Array): void;
  /** By source port: the shard's index in the mark. */
  shards(): Promise<Map<number, number>>;
  /** As listed, with handles. */
  ruleset(): Promise<string>;
  /** As a program does that starts anew. */
  restart(plan: NodePlan): Promise<unknown>;
  close(): Promise<void>;
}> {
  const [node, wire] = [`t-eip-n-${process.pid}`, `t-eip-w-${process.pid}`];
  const sh = (command: string) => exec('sh', ['-c', command], { timeout: 60_000 });
  for (const namespace of [node, wire]) await sh(`ip netns add ${namespace}`);
  await sh(`ip link add cni0 netns ${node} type veth peer name pods netns ${wire}`);
  await sh(`ip link add eth0 netns ${node} type veth peer name far netns ${wire}`);
  for (const device of ['cni0', 'eth0', 'lo']) await sh(`ip -n ${node} link set ${device} up`);
  for (const device of ['pods', 'far']) await sh(`ip -n ${wire} link set ${device} up`);
  await sh(`ip netns exec ${wire} sysctl -qw net.ipv6.conf.all.disable_ipv6=1`);
  await sh(
    `ip netns exec ${node} sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.cni0.rp_filter=0`,
  );
  await sh(`ip -n ${node} addr add 10.0.0.21/24 dev eth0 && ip -n ${node} addr add 10.244.1.1/24 dev cni0`);
  await sh(`ip -n ${node} addr add fd00:244:1::1/64 dev cni0 nodad`);
  const socket = PacketSocket.open({ device: 'pods', namespace: wire, timeoutMs: 1 });
  const of = PacketSocket.open({ device: 'cni0', etherType: 0, namespace: node });
  const mac = of.mac();
  of.close();
  const steering = new Steering(new HostKernel(node), ['cni0']);
  return {
    apply: (plan) => steering.apply(plan),
    ruleset: async () => (await sh(`ip netns exec ${node} nft -a -s list table inet sluice_node`)).stdout,
    restart: (plan) => new Steering(new HostKernel(node), ['cni0']).apply(plan),
    send(packet) {
      const etherType = (packet[0] ?? 0) >>> 4 === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4;
      socket.send(buildFrame({ destination: mac, source: '02:00:00:00:00:98', etherType, payload: packet }));
    },
    async shards() {
      const flows = await listFlows({ namespace: node });
      return new Map(flows.map(({ original, mark }) => [original.sourcePort ?? 0, (mark ?? 0) & NODE_MARK_MASK]));
    },
    async close() {
      socket.close();
      for (const namespace of [node, wire]) await sh(`ip netns del ${namespace}`);
    },
  };
}

t.test('node and gateway choose alike, by destination and by connection', async (t) => {
  const node = await startNode();
  t.teardown(() => node.close());
  const plan: NodePlan = {
    ...emptyNodePlan(),
    settings: {
      node: {
        node: 'a',
        podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'],
        port: 4793,
        mtu: 1400,
        clusterCIDRs: ['10.244.0.0/16', '10.0.0.0/24', 'fd00:244::/32'],
        excludedCIDRs: [],
      },
    },
    shards: {
      'edge/s0': { index: 1, mode: 'VXLAN', vni: 7700, nextHops: { 4: '10.0.0.64', 6: 'fd00:10::64' } },
      'edge/s1': { index: 2, mode: 'VXLAN', vni: 7700, nextHops: { 4: '10.0.0.65', 6: 'fd00:10::65' } },
    },
    gateways: {},
    egressIPs: {
      all: { spread: { 4: ['edge/s0', 'edge/s0', 'edge/s1'], 6: ['edge/s0', 'edge/s0', 'edge/s1'] } },
      partner: { destinations: usual.partner },
      special: { destinations: usual.special, spread: { 4: ['edge/s1'], 6: ['edge/s1', 'edge/s0'] } },
    },
    destinations: { both: { egressIPs: ['partner', 'special'] } },
    workloads: {
      'uid-rev': {
        namespace: 'reviews',
        name: 'rev',
        uid: 'uid-rev',
        addresses: Object.values(PODS.rev),
        steer: { 4: { spread: 'all' }, 6: { spread: 'all' } },
      },
      'uid-pay': {
        namespace: 'billing',
        name: 'pay',
        uid: 'uid-pay',
        addresses: Object.values(PODS.pay),
        steer: { 4: { shard: 'edge/s0' }, 6: { shard: 'edge/s0' } },
        destinations: 'both',
        elsewhere: { partner: { 4: { shard: 'edge/s1' }, 6: { shard: 'edge/s1' } } },
      },
    },
  };
  await node.apply(plan);
  await rig.reset();
  await rig.apply(spreadPlan());
  let sourcePort = 20_000;
  const send = (source: string, destination: string): number => {
    node.send(
      buildUdp({ source, destination, sourcePort: ++sourcePort, destinationPort: 53, payload: new Uint8Array(4) }),
    );
    return sourcePort;
  };
  for (const family of families) {
    const ports = Array.from({ length: 60 }, () => send(PODS.rev[family], WEB[family]));
    const list = ports.map((port) => probe('rev', WEB[family], { sourcePort: port }));
    const left = await sources(list);
    await wait(100);
    const shards = await node.shards();
    const counted = { 1: 0, 2: 0 } as Record<number, number>;
    for (const { sourcePort: port = 0, marker: at } of list) {
      const expected = left.get(at) === SPREAD[family][2] ? 2 : 1;
      counted[expected] = (counted[expected] ?? 0) + 1;
      if (shards.get(port) !== expected) t.fail(`port ${port}: shard ${shards.get(port)}, address ${left.get(at)}`);
    }
    t.ok(
      (counted[1] ?? 0) > (counted[2] ?? 0) && (counted[2] ?? 0) > 5,
      `v${family}: both shards, in proportion: ${JSON.stringify(counted)}`,
    );
    const again = ports.slice(0, 20);
    for (const port of again) {
      node.send(
        buildUdp({
          source: PODS.rev[family],
          destination: WEB[family],
          sourcePort: port,
          destinationPort: 53,
          payload: new Uint8Array(4),
        }),
      );
    }
    const [far, other, web] = [FAR, OTHER, WEB].map((to) => send(PODS.pay[family], to[family]));
    await wait(100);
    const later = await node.shards();
    t.equal(later.get(far ?? 0), 1, `v${family}: what no EgressIP names`);
    t.equal(later.get(other ?? 0), 2, `v${family}: the network, on another shard`);
    if (family === 4) t.equal(later.get(web ?? 0), 2, 'one address of it');
    // Another order of addresses moves new connections only.
    const turned = structuredClone(plan);
    turned.egressIPs.all = { spread: { 4: ['edge/s1', 'edge/s0', 'edge/s0'], 6: ['edge/s1', 'edge/s0', 'edge/s0'] } };
    await node.apply(turned);
    for (const port of again) {
      node.send(
        buildUdp({
          source: PODS.rev[family],
          destination: WEB[family],
          sourcePort: port,
          destinationPort: 53,
          payload: new Uint8Array(4),
        }),
      );
    }
    await wait(100);
    const turnedShards = await node.shards();
    t.same(
      again.map((port) => turnedShards.get(port)),
      again.map((port) => shards.get(port)),
      'each flow keeps its shard',
    );
    await node.apply(plan);
  }
  const before = await node.ruleset();
  await node.restart(plan);
  t.equal(await node.ruleset(), before, 'a node that starts again changes nothing');
});
