/**
 * The kernel room against the kernel, each test in a namespace of its own: `eth0 <-> peer` (veth) and lo, no traffic
 * but on lo. Root.
 */
import { spawn } from 'node:child_process';
import t from 'tap';
import { TUNNEL_MAC_GATEWAY, TUNNEL_PEER } from '../../api/names.ts';
import { families } from '../../api/plan.ts';
import { diffNet, emptyNetState } from '../../kernel/iproute.ts';
import { HostIp } from '../../kernel/iproute-host.ts';
import { changeSize, diffRuleset, isEmptyChange, markText, type Ruleset } from '../../kernel/nft.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { run } from '../../kernel/run.ts';
import { HostTc } from '../../kernel/tc-host.ts';
import { ipSuite, netStates, scope } from '../ip-suite.ts';
import { everySet, nftSuite, TABLE } from '../nft-suite.ts';
import { tcSuite } from '../tc-suite.ts';

// Other tests run beside it.
t.setTimeout(570_000);
let count = 0;
/** A namespace for the length of one test. */
async function inFresh(body: (namespace: string, exec: (command: string) => Promise<string>) => Promise<void>) {
  const namespace = `t-kernel-${process.pid}-${count++}`;
  const exec = (command: string) =>
    run(['ip', 'netns', 'exec', namespace, 'sh', '-ec', command], { op: command, timeoutMs: 60_000 });
  await run(['ip', 'netns', 'add', namespace], { op: 'netns add', timeoutMs: 60_000 });
  try {
    // No link-local addresses of the kernel's own, which would come in the middle of a comparison.
    await exec(`sysctl -qw net.ipv6.conf.default.addr_gen_mode=1 net.ipv6.conf.default.accept_dad=0
      ip link set lo up; ip link add eth0 type veth peer name peer; ip link set eth0 up; ip link set peer up
      ip addr add 10.0.0.21/24 dev eth0; ip addr add fd00:10::21/64 dev eth0 nodad`);
    await body(namespace, exec);
  } finally {
    await run(['ip', 'netns', 'del', namespace], { op: 'netns del', timeoutMs: 60_000 });
  }
}

t.test('nftables', async (t) => {
  await inFresh((namespace) => nftSuite(t, new HostNft({ namespace })));
});

t.test('iproute2', async (t) => {
  await inFresh(async (namespace, exec) => {
    // Another program's: without our protocol, priority or prefix length, in the same tables and on the same devices.
    const foreign = async () => {
      for (const family of families) {
        const [route, address] = family === 4 ? ['10.99.0.0/24', '10.99.1.1/24'] : ['fd99::/64', 'fd99:1::1/64'];
        await exec(`ip -${family} route replace ${route} dev eth0 table 7800
          ip -${family} rule del priority 100 2>/dev/null || true
          ip -${family} rule add priority 100 fwmark 1 table 7800
          ip -${family} addr replace ${address} dev eth0 nodad`);
      }
      return exec(
        'for f in 4 6; do ip -$f route show table all; ip -$f rule; ip -$f -o addr show dev eth0 scope global; done',
      );
    };
    await ipSuite(t, new HostIp({ namespace }), foreign);
  });
});

t.test('tc', async (t) => {
  await inFresh(async (namespace, exec) => {
    await exec('tc qdisc add dev peer root handle 1: htb');
    await tcSuite(t, new HostTc({ namespace }), false);
  });
});

t.test('an inner packet of either family leaves by the tunnel over either underlay', async (t) => {
  await inFresh(async (namespace, exec) => {
    const ip = new HostIp({ namespace });
    const state = netStates[0]?.[1] ?? emptyNetState();
    // The mark is still there when the outer packet looks for its route: it must not meet the tunnel again.
    for (const [family, destination] of [
      [4, '10.0.0.0/24'],
      [6, 'fd00:10::/64'],
    ] as const) {
      state.routes.push({ family, table: 7800, type: 'throw', destination });
    }
    await ip.apply(diffNet(await ip.list(scope), state));
    for (const [family, address, outer] of [
      [4, '198.51.100.80', 'ip '],
      [4, '10.244.9.9', 'ip6 '],
      [6, '2001:db8:100::80', 'ip '],
      [6, 'fd00:244:0:9::9', 'ip6 '],
    ] as const) {
      const route = await exec(`ip -${family} route get ${address} mark 1`);
      t.match(
        route,
        new RegExp(`encap ${outer}.*via ${TUNNEL_PEER[family]} dev sluice-vx table 7800`),
        `${address} leaves by ${outer}`,
      );
    }
    // The outer packets, as the peer of eth0 sees them: a permanent neighbour each stands for the next hop.
    await exec(`ip neigh replace 10.0.0.64 lladdr 02:00:00:00:00:01 dev eth0; ip -6 neigh replace fd00:10::64 lladdr 02:00:00:00:00:01 dev eth0
      nft -f - <<'N'
table netdev seen {
  counter v4_in_v4 { }
  counter v6_in_v4 { }
  chain peer {
    type filter hook ingress device peer priority 0; policy accept;
    ip daddr 10.0.0.64 udp dport 4793 @th,32,32 & 0 == 0 @th,96,24 7 @th,224,16 0x0800 counter name v4_in_v4
    ip daddr 10.0.0.64 udp dport 4793 @th,96,24 7 @th,224,16 0x86dd counter name v6_in_v4
  }
}
N
      ip addr add 10.244.1.7/32 dev lo; ip addr add fd00:244:1::7/128 dev lo nodad
      timeout 3 ping -4 -c 1 -W 0.2 -m 1 -I 10.244.1.7 198.51.100.80 >/dev/null || true
      timeout 3 ping -6 -c 1 -W 0.2 -m 1 -I fd00:244:1::7 2001:db8:100::80 >/dev/null || true`);
    const seen = await exec('nft list counters table netdev seen');
    t.match(seen, /v4_in_v4 \{\s*packets 1 /, 'v4 in VXLAN over v4, VNI 7');
    t.match(seen, /v6_in_v4 \{\s*packets 1 /, 'v6 in VXLAN over v4, VNI 7');
    t.match(
      await exec('ip neigh show dev sluice-vx nud permanent; ip -6 neigh show dev sluice-vx nud permanent'),
      new RegExp(TUNNEL_MAC_GATEWAY),
    );
  });
});

/** Packets that a reader sees while a base chain is replaced again and again. */
t.test('base chains change under traffic: what is accepted passes, what is dropped does not', async (t) => {
  await inFresh(async (namespace, exec) => {
    const nft = new HostNft({ namespace });
    const hook = 'type filter hook input priority filter; policy accept;';
    const rules = ['ip daddr 127.0.0.2 counter name "dropped" drop', 'ip daddr 127.0.0.3 counter name "passed" accept'];
    const generation = (n: number, fixed: boolean): Ruleset => ({
      family: 'inet',
      table: TABLE,
      counters: ['dropped', 'passed', 'through'],
      sets: { noise: { type: 'ipv4_addr', value: 'mark', elements: new Map([[`10.0.0.${n & 255}`, markText(n)]]) } },
      chains: {
        // Counts what the input hook let by; it stays.
        after: {
          hook: 'type filter hook input priority 10; policy accept;',
          rules: ['ip daddr 127.0.0.2 counter name "through" accept'],
        },
        ...(fixed
          ? { input: { hook, rules: [`jump policy_${n}`] }, [`policy_${n}`]: { rules } }
          : { [`input_${n}`]: { hook, rules } }),
      },
    });
    for (const fixed of [true, false]) {
      await nft.drop(TABLE);
      await nft.run(diffRuleset(await nft.list('inet', TABLE), generation(0, fixed)));
      const floods = ['127.0.0.2', '127.0.0.3'].map((address) =>
        spawn('ip', ['netns', 'exec', namespace, 'timeout', '20', 'ping', '-q', '-f', '-W', '1', '-w', '2', address], {
          stdio: 'ignore',
        }),
      );
      const ended = floods.map((flood) => new Promise<void>((resolve) => flood.on('close', () => resolve())));
      let n = 0;
      for (let going = true; going; n++) {
        await nft.run(diffRuleset(await nft.list('inet', TABLE), generation(n + 1, fixed)));
        going = floods.some((flood) => flood.exitCode === null && flood.signalCode === null);
      }
      await Promise.all(ended);
      const { dropped, passed, through } = await nft.counters(TABLE);
      t.comment(
        `${fixed ? 'fixed name' : 'named by content'}: ${n} swaps, ${dropped?.packets} dropped, ${passed?.packets} passed, ${through?.packets} let by`,
      );
      t.ok(
        (dropped?.packets ?? 0) > 10 && (passed?.packets ?? 0) > 1000 && n > 2,
        'there was traffic, and there were swaps',
      );
      if (fixed) t.equal(through?.packets, 0, 'no packet was let by');
    }
    await exec('true');
  });
});

t.test('10,000 elements', async (t) => {
  await inFresh(async (namespace) => {
    const nft = new HostNft({ namespace });
    const ten = (n: number) => `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`;
    const elements = (from: number) => Array.from({ length: 10_000 }, (_, n) => from + n);
    const ruleset = (from: number): Ruleset => ({
      family: 'inet',
      table: TABLE,
      counters: [],
      chains: { leaf_1: { rules: ['drop'] } },
      sets: {
        ...everySet(),
        big_source: {
          type: 'ipv4_addr',
          value: 'mark',
          elements: new Map(elements(from).map((n) => [ten(n), markText(n)])),
        },
        big_boxes: {
          type: 'ipv4_addr . inet_proto . inet_service',
          interval: true,
          elements: new Map(elements(from).map((n) => [`${ten(4 * n)}-${ten(4 * n + 2)} . 6 . 443`, ''])),
        },
      },
    });
    const timed = async <T>(title: string, work: () => Promise<T>): Promise<T> => {
      const start = performance.now();
      const result = await work();
      t.comment(`${title}: ${Math.round(performance.now() - start)} ms`);
      return result;
    };
    const empty = await nft.list('inet', TABLE);
    await timed('load a map and an interval set of 10,000 each', () => nft.run(diffRuleset(empty, ruleset(0))));
    const listed = await timed('list them', () => nft.list('inet', TABLE));
    t.ok(isEmptyChange(diffRuleset(listed, ruleset(0))));
    const change = diffRuleset(listed, ruleset(10));
    t.equal(changeSize(change), 40, 'ten gone and ten new in both');
    await timed('move both by ten', () => nft.run(change));
    t.ok(isEmptyChange(diffRuleset(await nft.list('inet', TABLE), ruleset(10))));
  });
});
