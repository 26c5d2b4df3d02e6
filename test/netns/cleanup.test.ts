/**
 * Uninstalling: a network namespace with things of other programs in all places where Sluice puts something, the whole state
 * of its kernel before the real program ran and after `sluice node cleanup`, `sluice gateway cleanup`: identical.
 *
 *   pod 10.244.1.11 -- cni0 [ node ] eth0 10.0.0.21, fd00:10::21 -- nobody
 *   inside 10.0.0.31 [ gateway ] outside 203.0.113.31 -- nobody
 *
 * The programs have their plans from their state directories; there is no controller.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { emptyNodePlan, type GatewayPlan, type NodePlan, type PlanOf, type PlanRole } from '../../api/plan.ts';
import { hashPlan } from '../../api/plan-hash.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import type { CleanupReport } from '../../daemon/cleanup.ts';
import { silentLog } from '../../daemon/log.ts';
import { SavedPlanFile } from '../../daemon/saved-plan.ts';
import { addRule, basePlan, directPlan, EGRESS } from './gateway-plans.ts';

t.setTimeout(570_000);
const main = join(import.meta.dirname, '..', '..', 'cli', 'main.js');
const root = mkdtempSync(join(tmpdir(), 'sluice-cleanup-'));
const namespaces: string[] = [];
const children = new Set<ChildProcess>();
t.teardown(() => {
  for (const child of children) child.kill('SIGKILL');
  for (const name of namespaces) spawnSync('ip', ['netns', 'del', name]);
  rmSync(root, { recursive: true, force: true });
});
await createCa(join(root, 'ca'));

class Host {
  readonly name: string;
  readonly role: PlanRole;
  readonly state: string;
  readonly #certs: string;
  #program: ChildProcess | undefined;

  constructor(role: PlanRole, tag: string) {
    this.role = role;
    this.name = `t-clean-${tag}-${process.pid}`;
    this.state = join(root, tag, 'state');
    this.#certs = join(root, tag, 'certs');
    mkdirSync(this.state, { recursive: true });
    execFileSync('ip', ['netns', 'add', this.name]);
    namespaces.push(this.name);
    this.sh('sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0');
    this.sh('ip link set lo up');
  }

  sh(command: string): string {
    const [file, args] = ['ip', ['netns', 'exec', this.name, 'sh', '-ec', command]];
    return execFileSync(file, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 30_000 });
  }

  /** Everything that Sluice might have changed, and what lies beside it. */
  kernel(): Record<string, string[]> {
    const lists = {
      nft: 'nft -s list ruleset',
      rules: 'ip -4 rule; ip -6 rule',
      // An answer of a neighbour, or a router, is no configuration.
      routes: 'ip -4 -d route show table all; ip -6 -d route show table all | sed "s/ expires [0-9]*sec//"',
      links: 'ip -d link | sed "s/[a-z_]*timer *[0-9.]*//g"',
      addresses: 'ip addr',
      neighbours: 'ip neigh show nud permanent; ip -6 neigh show nud permanent',
      tc: 'tc qdisc show | sed "s/direct_packets_stat [0-9]*//"; for d in $(ls /sys/class/net); do tc class show dev $d; tc filter show dev $d; done',
      sysctls: 'sysctl -a 2>/dev/null | grep -E "^net\\." | grep -vE "nf_conntrack_count|\\.stable_secret"',
      legacy: 'cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true',
      flows:
        'conntrack -L -s 192.0.2.50 2>/dev/null | sed "s/ [0-9]* ESTABLISHED//; s/packets=0 bytes=0 //g; s/delta-time=[0-9]* //"',
    };
    return Object.fromEntries(Object.entries(lists).map(([name, command]) => [name, this.sh(command).split('\n')]));
  }

  async plan<R extends PlanRole>(role: R, plan: PlanOf[R]): Promise<void> {
    const file = await SavedPlanFile.open(this.state, role, { log: silentLog() });
    await file.save(plan, 7, hashPlan(plan));
    await file.close();
  }

  /** Resolves when its plan is in force. */
  async start(...more: string[]): Promise<void> {
    const { role } = this;
    await issueCertificate({ caDir: join(root, 'ca'), outDir: this.#certs, role, name: 'gw-a', addresses: [] });
    const options = ['--name', 'gw-a', '--controller', 'https://127.0.0.1:9', '--certs', this.#certs];
    const argv = [role, ...options, '--state', this.state, '--metrics', '127.0.0.1:7799', ...more];
    this.#program = spawn('ip', ['netns', 'exec', this.name, process.execPath, main, ...argv], { stdio: 'ignore' });
    children.add(this.#program);
    for (let tries = 0; tries < 600; tries++) {
      try {
        this.sh('curl -sf -m 1 http://127.0.0.1:7799/readyz');
        return;
      } catch {
        await sleep(100);
      }
    }
    throw new Error(`sluice ${role} does not get ready`);
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    if (this.#program === undefined) return;
    this.#program.kill(signal);
    await once(this.#program, 'exit');
    children.delete(this.#program);
    this.#program = undefined;
  }

  cleanup(...flags: string[]): { code: number | null; report?: CleanupReport; out: string; err: string } {
    const argv = [main, this.role, 'cleanup', ...flags];
    const { status, stdout, stderr } = spawnSync('ip', ['netns', 'exec', this.name, process.execPath, ...argv], {
      encoding: 'utf8',
    });
    const report = stdout.startsWith('{') ? (JSON.parse(stdout) as CleanupReport) : undefined;
    return { code: status, ...(report && { report }), out: stdout, err: stderr };
  }

  clean(...more: string[]): CleanupReport {
    const { code, report, err } = this.cleanup('--state', this.state, '-o', 'json', ...more);
    if (code !== 0 || report === undefined) throw new Error(`cleanup: ${code}: ${err}`);
    return report;
  }
}

/** Of other programs, in every place that is Sluice's too; `priority`, `table`, `device` in its ranges. */
function foreign(host: Host, device: string, priority: number, table: number): void {
  host.sh(`
    nft 'table inet other { set s { type ipv4_addr; elements = { 192.0.2.1 }; }
      chain c { type filter hook prerouting priority 0; ct state new meta mark & 0xff == 0xfe counter accept; ip saddr @s drop; };
      chain o { type filter hook output priority 0; ct state new counter; }; }'
    nft 'table ip sluiced { chain c { }; }'
    ip link add vx-other type vxlan external dstport 4789
    ip link set vx-other up
    ip link add other0 type bridge
    ip link set other0 up
    ip addr add 192.0.2.77/32 dev ${device}
    ip -6 addr add 2001:db8:77::77/128 dev ${device} nodad
    for f in -4 -6; do
      ip $f rule add priority ${priority} fwmark 0x10000/0xffff0000 table 100
      ip $f route add blackhole default table ${table} metric 7
      ip $f route add unreachable default table 100 proto 177
    done
    ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev other0 nud permanent
    tc qdisc replace dev other0 root handle 7: htb
    tc class add dev other0 parent 7: classid 7:1 htb rate 1mbit
    tc qdisc add dev ${device} clsact
    conntrack -I -p tcp -s 192.0.2.50 -d 192.0.2.51 --sport 1 --dport 2 --state ESTABLISHED -t 3000 -m ${host.role === 'node' ? '0x80000500' : '0x5'} 2>/dev/null`);
}

const inRange =
  'ip rule add priority 7802 fwmark 0x2/0xffff table 7802; ip rule add priority 7789 iif inside table 100; ip -6 rule add priority 7803 from all table 7803';
const pod = '10.244.1.11';
function nodeHost(tag: string): Host {
  const host = new Host('node', tag);
  const podName = `t-clean-${tag}p-${process.pid}`;
  execFileSync('ip', ['netns', 'add', podName]);
  namespaces.push(podName);
  host.sh(`
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip link add cni0 type bridge
    ip link add v1 type veth peer name eth0 netns /run/netns/${podName}
    ip link set v1 master cni0 up
    ip link set cni0 up
    ip addr add 10.244.1.1/24 dev cni0
    ip link add eth0 type veth peer name eth0p
    ip link set eth0p up
    ip link set eth0 up
    ip addr add 10.0.0.21/24 dev eth0
    ip addr add fd00:10::21/64 dev eth0 nodad
    ip route add default via 10.0.0.1
    sysctl -qw net.ipv4.conf.eth0.rp_filter=1`);
  execFileSync('sh', [
    '-ec',
    `ip -n ${podName} addr add ${pod}/24 dev eth0; ip -n ${podName} link set eth0 up; ip -n ${podName} route add default via 10.244.1.1`,
  ]);
  foreign(host, 'eth0', 7799, 7801);
  return host;
}

function nodePlan(): NodePlan {
  return {
    ...emptyNodePlan(),
    settings: {
      node: {
        node: 'gw-a',
        podCIDRs: ['10.244.1.0/24'],
        port: 4793,
        mtu: null,
        clusterCIDRs: ['10.244.0.0/16', '10.0.0.0/24'],
        excludedCIDRs: [],
      },
    },
    shards: {
      'edge/s0': { index: 1, mode: 'VXLAN', vni: 7700, nextHops: { 4: '10.0.0.64', 6: 'fd00:10::64' } },
      // Its device is strict: the program loosens it.
      'flat/s0': { index: 253, mode: 'Direct', vni: 1, nextHops: { 4: '10.0.0.65' } },
    },
    gateways: { 'gw-a': { internalAddress: '10.0.0.31', addresses: ['10.0.0.31'] } },
    workloads: {
      u1: {
        namespace: 'a',
        name: 'p',
        uid: 'u1',
        addresses: [pod],
        steer: { 4: { shard: 'edge/s0' }, 6: 'drop' },
      },
    },
  };
}

/** With what `what` says, and nothing of `where`. */
function same(t: Test, host: Host, before: ReturnType<Host['kernel']>): void {
  const now = host.kernel();
  for (const [name, lines] of Object.entries(before)) t.same(now[name], lines, `${name} is as it was`);
}

const steered = (host: Host): number => (host.sh(`conntrack -L -s ${pod} 2>/dev/null | wc -l`).trim() === '0' ? 0 : 1);

for (const mangle of [false, true]) {
  t.test(`a node: everything is as it was, ${mangle ? 'beside rules of' : 'without'} iptables`, async (t) => {
    const host = nodeHost(mangle ? 'nm' : 'n');
    if (mangle) {
      for (const program of ['iptables-nft', 'ip6tables-nft']) {
        host.sh(`${program} -t mangle -A PREROUTING -m mark --mark 0x4000/0x4000 -j MARK --set-xmark 0x0/0x4000`);
        // The same queue for another mark.
        host.sh(`${program} -t mangle -A PREROUTING -m mark --mark 0xfd/0xff -j NFQUEUE --queue-num 7790`);
      }
    }
    const before = host.kernel();
    await host.plan('node', nodePlan());
    await host.start('--workload-interface', 'cni0');
    execFileSync('ip', [
      'netns',
      'exec',
      `t-clean-${mangle ? 'nm' : 'n'}p-${process.pid}`,
      'sh',
      '-c',
      'echo x | nc -u -w1 198.51.100.80 53 || true',
    ]);
    t.equal(steered(host), 1, 'a flow was steered');
    t.equal(host.sh('sysctl -n net.ipv4.conf.eth0.rp_filter').trim(), '2');

    const inForce = host.kernel();
    if (!mangle) {
      const refused = host.cleanup('--state', host.state);
      t.equal(refused.code, 1);
      t.match(refused.err, /sluice node is running here .* stop it first/);
      t.same(host.kernel(), inForce, 'while it runs nothing is done');
    }
    await host.stop('SIGKILL');
    const dry = host.clean('--dry-run');
    if (!mangle) t.same(host.kernel(), inForce, 'a dry run changes nothing');

    // In its range, but none of its own; the program itself takes the range for its own.
    host.sh(inRange);
    const report = host.clean();
    t.same(report.removed, dry.removed, 'what it said it would remove');
    host.sh(inRange.replaceAll('add', 'del'));
    t.same([report.left, report.failed], [[], []]);
    same(t, host, before);
    t.equal(steered(host), 0, 'what was steered has ended');
    if (mangle) return;
    t.match(host.cleanup('--state', host.state).out, /^nothing of sluice node is here\n$/);

    // Again, and its memory is lost.
    await host.plan('node', nodePlan());
    await host.start('--workload-interface', 'cni0');
    await host.stop();
    rmSync(host.state, { recursive: true });
    const lost = host.clean();
    t.match(lost.left, [{ what: 'sysctls', why: /^nothing is recorded/ }]);
    t.equal(host.sh('sysctl -n net.ipv4.conf.eth0.rp_filter').trim(), '2', 'what is not known is not guessed');
    host.sh('sysctl -qw net.ipv4.conf.eth0.rp_filter=1');
    same(t, host, before);
  });
}

t.test('a node: forwarding stays, and it is said; what others changed since stays too', async (t) => {
  const host = nodeHost('nf');
  host.sh('sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0');
  await host.plan('node', nodePlan());
  await host.start('--workload-interface', 'cni0');
  await host.stop();
  host.sh('sysctl -qw net.ipv4.conf.eth0.rp_filter=0');
  const { left } = host.clean();
  t.match(left.map(({ what }) => what).sort(), ['sysctl net/ipv4/ip_forward', 'sysctl net/ipv6/conf/all/forwarding']);
  t.match(left[0]?.why, /pods of this node need it.*it was 0/);
  t.equal(host.sh('sysctl -n net.ipv4.ip_forward net.ipv4.conf.eth0.rp_filter'), '1\n0\n');
});

function gatewayHost(tag: string): Host {
  const host = new Host('gateway', tag);
  host.sh(`
    for d in inside outside; do
      ip link add $d type veth peer name p$d
      ip link set p$d up
      ip link set $d up
    done
    ip addr add 10.0.0.31/24 dev inside
    ip addr add fd00:10::31/64 dev inside nodad
    ip addr add 203.0.113.31/24 dev outside
    ip addr add 2001:db8:113::31/64 dev outside nodad
    ip route add default via 203.0.113.1
    # Each device has a mind of its own, which forwarding for all would overwrite.
    sysctl -qw net.ipv4.conf.inside.forwarding=1 net.ipv4.conf.all.accept_redirects=0 net.ipv6.conf.inside.forwarding=1`);
  foreign(host, 'inside', 7787, 7790);
  host.sh('ip addr add 192.0.2.78/32 dev outside');
  return host;
}

/** With everything that a gateway may have: classes, a queue, samples of flows, rules that reject. */
function gatewayPlan(direct: boolean): GatewayPlan {
  const plan = direct ? directPlan(basePlan()) : basePlan();
  if ('pool' in plan.settings) {
    plan.settings.pool.inspection = { workers: 1 };
    plan.settings.pool.externalGateway = { 4: '203.0.113.1', 6: '2001:db8:113::1' };
  }
  plan.services['a/tls'] = {
    addresses: ['198.51.100.0/24'],
    names: ['api.test'],
    ports: [{ protocol: 6, ports: [[443, 443]] }],
    checks: [{ protocol: 6, ports: [[443, 443]], application: 'TLS', implied: true }],
  };
  addRule(plan, 'g-pay', { context: 'cluster', name: 'tls', action: 'accept-decisively', services: ['a/tls'] });
  addRule(plan, 'g-rev', { context: 'cluster', name: 'no', action: 'reject', services: '*' });
  plan.egressIPs.pay = {
    bandwidth: { egress: 50e6, ingress: 50e6, addresses: [EGRESS.pay[4], EGRESS.pay[6]], shards: ['edge/s0'] },
  };
  return plan;
}

/** A machine that forwards, as it does as long as that is not put back, is any router of its networks. */
const notAnycast = (line: string): boolean => !line.startsWith('anycast ');

for (const direct of [false, true]) {
  t.test(`a gateway: everything is as it was (${direct ? 'Direct' : 'VXLAN'})`, async (t) => {
    const host = gatewayHost(direct ? 'gd' : 'g');
    const before = host.kernel();
    const start = async (): Promise<void> => {
      await host.plan('gateway', gatewayPlan(direct));
      await host.start('--flow-log', join(root, 'flows.jsonl'));
      // Two flows: of ours, and of another program through the same machine.
      for (const [from, as] of [
        ['10.244.1.5', EGRESS.pay[4]],
        ['10.9.9.9', '203.0.113.31'],
      ])
        host.sh(
          `conntrack -I -p tcp -s ${from} -d 198.51.100.80 --sport 1234 --dport 443 -r 198.51.100.80 -q ${as} --reply-port-src 443 --reply-port-dst 1234 --state ESTABLISHED -t 300 -m 0x80000100 2>/dev/null`,
        );
    };
    const flows = (): string => host.sh('conntrack -L -d 198.51.100.80 2>/dev/null | grep -o "src=10[^ ]*" || true');
    await start();
    const inForce = host.kernel();
    const text = JSON.stringify(inForce);
    for (const sign of [
      'table inet sluice ',
      'table inet sluice_inspect ',
      'table inet sluice_detect ',
      'htb 1e6e:',
      '7793:',
      EGRESS.pay[6],
    ])
      t.ok(text.includes(sign), `in force: ${sign}`);
    t.ok(/NFQUEUE|queue/.test(text), 'in force: a queue');
    t.match(host.cleanup('--state', host.state), { code: 1, err: /sluice gateway is running here/ });
    if (!direct) t.same(host.kernel(), inForce);
    await host.stop('SIGKILL');
    host.sh(inRange);
    const report = host.clean();
    host.sh(inRange.replaceAll('add', 'del'));
    t.same([report.left, report.failed], [[], []]);
    same(t, host, before);
    t.equal(flows(), 'src=10.9.9.9\n', 'its flows have ended, no other');
    if (direct) return;
    t.same(host.clean().removed, []);

    // Its memory is lost: addresses are known by the table, but for what a device was given first.
    await start();
    await host.stop();
    rmSync(host.state, { recursive: true });
    const lost = host.clean();
    t.same(lost.left.map(({ what }) => what).sort(), ['addresses', 'sysctls']);
    const now = host.kernel();
    for (const name of Object.keys(before))
      if (name !== 'sysctls')
        t.same(now[name]?.filter(notAnycast), before[name]?.filter(notAnycast), `${name}, without state`);
    t.equal(flows(), 'src=10.9.9.9\n');
  });
}

t.test('how it is used', async (t) => {
  const host = new Host('node', 'u');
  t.equal(host.cleanup().code, 2, 'the state directory is to be named');
  t.equal(host.cleanup('--state', host.state, '--name', 'x').code, 2, 'options of the program are none of it');
  const { code, out } = host.cleanup('--state', join(root, 'nowhere'));
  t.equal(code, 0);
  t.match(out, /^nothing of sluice node is here\nleft: sysctls: nothing is recorded/);
  // A broken record is none.
  writeFileSync(join(host.state, 'sysctls.json'), '{"boot":');
  t.match(host.clean().left, [{ what: 'sysctls' }]);
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const values = { 'net/ipv4/conf/lo/rp_filter': { was: '1', wrote: '0' } };
  host.sh('sysctl -qw net.ipv4.conf.lo.rp_filter=0');
  writeFileSync(join(host.state, 'sysctls.json'), JSON.stringify({ boot: 'another', values }));
  t.same(host.clean().removed, [], 'what was before the machine started anew is none');
  writeFileSync(join(host.state, 'sysctls.json'), JSON.stringify({ boot, values }));
  t.same(host.clean('--force').removed, ['sysctl -w net/ipv4/conf/lo/rp_filter=1']);
  t.equal(host.sh('sysctl -n net.ipv4.conf.lo.rp_filter'), '1\n');
});
