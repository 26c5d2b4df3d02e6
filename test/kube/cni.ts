/**
 * `sluice node` beside real CNI plugins (bridge and ptp with host-local), two nodes, the real controller, gateway and node
 * programs, steering VXLAN and then Direct. What stands for kube-proxy is its kind of rule. Not among the tests of `npm test`:
 * nothing that setup.sh installs has the plugins (Debian: containernetworking-plugins, unpacked, is enough).
 * Usage, as root: CNI_PATH=/usr/lib/cni node dist/test/kube/cni.js
 *
 *   pods 10.78.N.0/24 -- cni0 or veth* [ node N ] eth0 10.0.0.2N --+
 *                                      [ ctl ]    eth0 10.0.0.10 --+-- lan
 *   [ fw ] outside 203.0.113.1 -- [ gw ] inside 10.0.0.31 ---------+
 *     web 198.51.100.80, and 10.0.0.1 on the lan: the nodes' router
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { createCa, issueCertificate } from '../../daemon/certs.ts';

t.setTimeout(900_000);
const plugins = process.env.CNI_PATH ?? '/usr/lib/cni';
const main = join(import.meta.dirname, '..', '..', 'cli', 'main.js');
const WEB = '198.51.100.80';
const EGRESS = '203.0.113.101';
const CLUSTER_IP = '10.96.0.10';
/** A pod's server says who it sees. */
const answer = ['socat', '-T3', 'TCP4-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo $SOCAT_PEERADDR'];

class Cluster {
  readonly #cni: 'bridge' | 'ptp';
  readonly #root = mkdtempSync(join(tmpdir(), 'sluice-cni-'));
  readonly #children: ChildProcess[] = [];
  readonly #namespaces: string[] = [];
  readonly #pods: { name: string; namespace: string; node: string; ip: string }[] = [];

  constructor(cni: 'bridge' | 'ptp') {
    this.#cni = cni;
  }

  name = (host: string): string => `t-cni-${this.#cni}-${host}-${process.pid}`;

  sh(host: string, command: string): string {
    const argv = ['netns', 'exec', this.name(host), 'sh', '-ec', command];
    return execFileSync('ip', argv, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 30_000 }).trim();
  }

  start(host: string, argv: string[]): void {
    const file = process.env.DEBUG === undefined ? 'ignore' : 'inherit';
    this.#children.push(
      spawn('ip', ['netns', 'exec', this.name(host), ...argv], { stdio: ['ignore', file, file], detached: true }),
    );
  }

  async up(): Promise<void> {
    for (const host of ['lan', 'fw', 'gw', 'ctl', 'n1', 'n2']) this.#add(host);
    this.sh('lan', 'ip link add lan0 type bridge; ip link set lan0 up');
    for (const [host, device, address] of [
      ['fw', 'eth0', '10.0.0.1'],
      ['gw', 'inside', '10.0.0.31'],
      ['ctl', 'eth0', '10.0.0.10'],
      ['n1', 'eth0', '10.0.0.21'],
      ['n2', 'eth0', '10.0.0.22'],
    ] as const) {
      this.sh(host, `ip link add ${device} type veth peer name ${host} netns /run/netns/${this.name('lan')}`);
      this.sh(host, `ip addr add ${address}/24 dev ${device}; ip link set ${device} up`);
      this.sh('lan', `ip link set ${host} master lan0 up`);
    }
    this.sh('gw', `ip link add outside type veth peer name outside netns /run/netns/${this.name('fw')}`);
    this.sh(
      'gw',
      'ip addr add 203.0.113.31/24 dev outside; ip link set outside up; ip route add default via 203.0.113.1',
    );
    this.sh(
      'fw',
      `ip addr add 203.0.113.1/24 dev outside; ip link set outside up; ip addr add ${WEB}/32 dev lo; ip route add 10.78.1.0/24 via 10.0.0.21`,
    );
    // Whoever begins something with a pod's address.
    this.sh(
      'fw',
      'nft "table inet watch { counter leaks { }; chain c { type filter hook prerouting priority -300; ip saddr 10.78.0.0/16 tcp flags & (syn | ack) == syn counter name leaks; }; }"',
    );
    for (const n of [1, 2]) {
      const node = `n${n}`;
      this.sh(
        node,
        `sysctl -qw net.ipv4.ip_forward=1
         ip route add default via 10.0.0.1
         ip route add 10.78.${3 - n}.0/24 via 10.0.0.2${3 - n}
         iptables-nft -t nat -A POSTROUTING -s 10.78.0.0/16 -d 10.78.0.0/16 -j RETURN
         iptables-nft -t nat -A POSTROUTING -s 10.78.0.0/16 ! -d 10.0.0.0/24 -j MASQUERADE`,
      );
    }
    this.start('fw', answer);
    this.#pod('pay', 'billing', 'n1');
    this.#pod('free', 'other', 'n1');
    this.#pod('pay-2', 'billing', 'n2');
    const web = this.#pod('web', 'other', 'n2');
    for (const node of ['n1', 'n2']) {
      for (const chain of ['PREROUTING', 'OUTPUT'])
        this.sh(
          node,
          `iptables-nft -t nat -A ${chain} -d ${CLUSTER_IP} -p tcp --dport 80 -j DNAT --to-destination ${web}:80`,
        );
    }
    await this.#programs();
  }

  #add(host: string): void {
    execFileSync('ip', ['netns', 'add', this.name(host)]);
    this.#namespaces.push(this.name(host));
    this.sh(host, 'ip link set lo up');
  }

  /** As a container runtime would. Returns its address. */
  #pod(name: string, namespace: string, node: string): string {
    this.#add(name);
    const n = node.slice(1);
    const ipam = {
      type: 'host-local',
      ranges: [[{ subnet: `10.78.${n}.0/24` }]],
      routes: [{ dst: '0.0.0.0/0' }],
      dataDir: join(this.#root, `ipam-${node}`),
    };
    const bridge = { bridge: 'cni0', isGateway: true, hairpinMode: true };
    const config = { cniVersion: '0.4.0', name: 'k', type: this.#cni, ...(this.#cni === 'bridge' && bridge), ipam };
    const { status, stdout, stderr } = spawnSync('ip', ['netns', 'exec', this.name(node), join(plugins, this.#cni)], {
      encoding: 'utf8',
      input: JSON.stringify(config),
      env: {
        PATH: process.env.PATH,
        CNI_COMMAND: 'ADD',
        CNI_CONTAINERID: `${name}${process.pid}`,
        CNI_NETNS: `/run/netns/${this.name(name)}`,
        CNI_IFNAME: 'eth0',
        CNI_PATH: plugins,
      },
    });
    if (status !== 0) throw new Error(`${this.#cni}: ${stdout} ${stderr}`);
    const [first] = (JSON.parse(stdout) as { ips: { address: string }[] }).ips;
    const ip = first?.address.split('/')[0] ?? '';
    this.#pods.push({ name, namespace, node, ip });
    this.start(name, answer);
    return ip;
  }

  ip(pod: string): string {
    return this.#pods.find(({ name }) => name === pod)?.ip ?? '';
  }

  /** The cluster as manifests: no clusterCIDRs, they are found. */
  write(mode: 'VXLAN' | 'Direct'): void {
    const objects: unknown[] = ['billing', 'other', 'default'].map((name) => ({
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name },
    }));
    for (const n of [1, 2])
      objects.push({
        apiVersion: 'v1',
        kind: 'Node',
        metadata: { name: `n${n}` },
        spec: { podCIDRs: [`10.78.${n}.0/24`] },
        status: { addresses: [{ type: 'InternalIP', address: `10.0.0.2${n}` }] },
      });
    for (const { name, namespace, node, ip } of this.#pods)
      objects.push({
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name, namespace, uid: `uid-${name}` },
        spec: { nodeName: node },
        status: { phase: 'Running', podIPs: [{ ip }] },
      });
    objects.push({
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name: 'web', namespace: 'other' },
      spec: { clusterIPs: [CLUSTER_IP] },
    });
    const sluice = (kind: string, name: string, spec: unknown) =>
      objects.push({ apiVersion: 'sluice.dev/v1alpha1', kind, metadata: { name }, spec });
    sluice('GatewayPool', 'p', {
      namespaceSelector: {},
      gateways: [{ name: 'gw', internalAddress: '10.0.0.31' }],
      interfaces: { internal: 'inside', external: { name: 'outside', gateway: { v4: '203.0.113.1' } } },
      nextHops: { v4: ['10.0.0.64'] },
      steering: { mode, vni: 7700 },
      defaultAction: 'Accept',
    });
    sluice('EgressIPPool', 'd', { gatewayPool: 'p', ranges: ['203.0.113.96/27'], namespaceSelector: {} });
    sluice('EgressIP', 'e', { pool: 'd', addresses: [EGRESS], namespaces: ['billing'] });
    mkdirSync(join(this.#root, 'manifests'), { recursive: true });
    writeFileSync(
      join(this.#root, 'manifests', 'all.json.yaml'),
      objects.map((o) => JSON.stringify(o)).join('\n---\n'),
    );
  }

  async #programs(): Promise<void> {
    const [caDir, at] = [join(this.#root, 'ca'), (name: string) => join(this.#root, name)];
    await createCa(caDir);
    this.write('VXLAN');
    for (const [role, name, address] of [
      ['controller', 'controller', '10.0.0.10'],
      ['gateway', 'gw', '10.0.0.31'],
      ['node', 'n1', '10.0.0.21'],
      ['node', 'n2', '10.0.0.22'],
    ] as const) {
      await issueCertificate({ caDir, outDir: at(`certs-${name}`), role, name, addresses: [address] });
      const files = ['--certs', at(`certs-${name}`), '--state', at(`state-${name}`)];
      if (role === 'controller') {
        const options = ['--source', `directory:${at('manifests')}`, '--listen', '10.0.0.10:7790'];
        this.start('ctl', [process.execPath, main, role, ...options, ...files]);
        continue;
      }
      const device = this.#cni === 'bridge' ? 'cni0' : 'veth*';
      const more = role === 'node' ? ['--workload-interface', device] : [];
      this.start(name, [
        process.execPath,
        main,
        role,
        '--name',
        name,
        '--controller',
        'https://10.0.0.10:7790',
        ...files,
        ...more,
      ]);
    }
  }

  /** Whom the other end sees; empty: no answer. */
  async seen(host: string, to: string): Promise<string> {
    const argv = ['netns', 'exec', this.name(host), 'socat', '-u', '-T4', `TCP4:${to}:80,connect-timeout=4`, '-'];
    return new Promise((resolve) => {
      const child = spawn('ip', argv, { stdio: ['ignore', 'pipe', 'ignore'] });
      let text = '';
      child.stdout.on('data', (data: Buffer) => {
        text += data;
      });
      child.on('close', () => resolve(text.trim()));
    });
  }

  async until(host: string, to: string, wanted: string): Promise<string> {
    let seen = '';
    for (const end = Date.now() + 90_000; Date.now() < end; await sleep(500)) {
      seen = await this.seen(host, to);
      if (seen === wanted) break;
    }
    return seen;
  }

  leaks(): number {
    return Number(/packets (\d+)/.exec(this.sh('fw', 'nft list counter inet watch leaks'))?.[1]);
  }

  /** Ends the nodes' programs, and cleans up after them. */
  uninstall(): string[] {
    for (const child of this.#children) {
      if (child.spawnargs.includes('--workload-interface')) child.kill('SIGTERM');
    }
    return ['n1', 'n2'].map((node) => {
      for (;;) {
        const argv = [
          'netns',
          'exec',
          this.name(node),
          process.execPath,
          main,
          'node',
          'cleanup',
          '--state',
          join(this.#root, `state-${node}`),
        ];
        const { stdout, stderr } = spawnSync('ip', argv, { encoding: 'utf8' });
        if (!stderr.includes('is running')) return stdout + stderr;
      }
    });
  }

  down(): void {
    for (const { pid } of this.#children) {
      try {
        if (pid !== undefined) process.kill(-pid, 'SIGKILL');
      } catch {}
    }
    for (const name of this.#namespaces) spawnSync('ip', ['netns', 'del', name]);
    rmSync(this.#root, { recursive: true, force: true });
  }
}

for (const cni of ['bridge', 'ptp'] as const) {
  t.test(cni, async (t) => {
    const cluster = new Cluster(cni);
    t.teardown(() => cluster.down());
    await cluster.up();
    for (const mode of ['VXLAN', 'Direct'] as const) {
      cluster.write(mode);
      t.equal(await cluster.until('pay', WEB, EGRESS), EGRESS, `${mode}: a pod leaves with its egress IP`);
      if (mode === 'Direct') {
        for (let tries = 0; tries < 100 && /sluice-vx/.test(cluster.sh('n1', 'ip -o link')); tries++) await sleep(200);
        t.notMatch(cluster.sh('n1', 'ip -o link'), /sluice-vx/, 'and without a tunnel');
      }
      t.equal(await cluster.until('pay-2', WEB, EGRESS), EGRESS, 'that of another node too');
      t.equal(
        await cluster.seen('free', WEB),
        '10.0.0.21',
        'a pod that no EgressIP selects leaves as if Sluice were not there',
      );
      for (const pod of ['pay', 'free']) {
        t.equal(await cluster.seen(pod, cluster.ip('web')), cluster.ip(pod), `${pod}: pod to pod on another node`);
        t.equal(await cluster.seen(pod, CLUSTER_IP), cluster.ip(pod), `${pod}: ClusterIP`);
      }
      t.equal(await cluster.seen('free', cluster.ip('pay')), cluster.ip('free'), 'pod to pod on one node');
      t.equal(await cluster.seen('n1', WEB), '10.0.0.21', 'a node’s own traffic');
      t.equal(await cluster.seen('n1', cluster.ip('pay')), '10.78.1.1', 'a node to its pod');
      t.equal(await cluster.seen('n2', cluster.ip('pay')), '10.0.0.22', 'a node to a pod of another node');
      t.equal(
        await cluster.seen('fw', cluster.ip('pay')),
        '10.0.0.1',
        'what comes in from elsewhere is answered as it came',
      );
    }
    t.equal(cluster.leaks(), 0, 'nothing with a pod’s address reached the outside');
    const said = cluster.uninstall();
    t.match(said, [/removed: nft delete table inet sluice_node/, /removed: nft delete table inet sluice_node/]);
    t.equal(await cluster.seen('pay', WEB), '10.0.0.21', 'after a cleanup it leaves with the node’s address');
    t.equal(await cluster.seen('pay', CLUSTER_IP), cluster.ip('pay'));
    t.equal(cluster.leaks(), 0);
  });
}
