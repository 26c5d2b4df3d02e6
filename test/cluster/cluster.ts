/**
 * A real cluster on the lab's network (topology.ts): etcd, API server, controller manager and scheduler of Kubernetes 1.20 on
 * `ctl`; containerd, kubelet, kube-proxy and the bridge plugin on each node, in a mount and PID namespace of its own
 * (node.sh). Dual stack, RBAC, the node authorizer. Everything is made by build.sh, and lies in SLUICE_KUBE_HOME.
 */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { cp, mkdir, readdir, rm, rmdir, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { besideSources } from '../../bench/topology.ts';
import { down } from '../../lab/down.ts';
import { inNamespace, must, type Outcome, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { isAlive, type Process, signal, startProcess } from '../../lab/process.ts';
import { isReady } from '../../lab/status.ts';
import { start, up } from '../../lab/up.ts';
import type { World } from '../../lab/world.ts';
import { CONTROL_PLANE, clusterTopology, type Node, nodes } from './topology.ts';

const home = process.env.SLUICE_KUBE_HOME ?? join(homedir(), '.cache', 'sluice', 'kube');
const program = (name: string): string => join(home, 'bin', name);
const API = `https://${CONTROL_PLANE}:6443`;
const dualStack = '--feature-gates=IPv6DualStack=true';
const CGROUPS = '/sys/fs/cgroup';

/** By name of the kubeconfig: user and groups of a token. */
const users: Record<string, [user: string, group: string]> = {
  admin: ['admin', 'system:masters'],
  'controller-manager': ['system:kube-controller-manager', ''],
  scheduler: ['system:kube-scheduler', ''],
  proxy: ['system:kube-proxy', ''],
  ...Object.fromEntries(nodes.map(({ name }) => [name, [`system:node:${name}`, 'system:nodes']])),
};

/** Resolves when it holds; throws what it was that did not. */
export async function until(what: string, milliseconds: number, holds: () => Promise<boolean>): Promise<void> {
  for (const end = performance.now() + milliseconds; !(await holds()); await sleep(250)) {
    if (performance.now() > end) throw new Error(`not within ${milliseconds / 1000} s: ${what}`);
  }
}

export class Cluster {
  readonly place;
  /** Not below /run, which is another one for a node. */
  readonly dir: string;
  readonly #world: World;
  readonly #gateways = new Map<string, Process>();

  private constructor(world: World) {
    this.#world = world;
    this.place = placeOf(world.lab);
    this.dir = dirOf(world.lab);
  }

  /** Resolves when every node is Ready. What else is started on the hosts is the caller's. */
  static async up(lab: string, progress: (text: string) => void): Promise<Cluster> {
    const world = await up({ name: lab, topology: clusterTopology, sluice: false, progress });
    const cluster = new Cluster(world);
    await rm(cluster.dir, { recursive: true, force: true });
    await mkdir(join(cluster.dir, 'pki'), { recursive: true });
    progress('starting a control plane');
    await cluster.#controlPlane();
    progress('starting nodes');
    for (const node of nodes) await cluster.#node(node);
    await until(
      'nodes are registered',
      120_000,
      async () => (await cluster.kubectl(['get', 'nodes', '-o', 'name'])).split('\n').length > nodes.length,
    );
    for (const { name, podCIDRs } of nodes)
      await cluster.kubectl([
        'patch',
        'node',
        name,
        '-p',
        JSON.stringify({ spec: { podCIDR: podCIDRs[0], podCIDRs } }),
      ]);
    await cluster.kubectl(['wait', '--for=condition=Ready', '--timeout=120s', 'nodes', '--all']);
    return cluster;
  }

  async #controlPlane(): Promise<void> {
    const pki = join(this.dir, 'pki');
    const { privateKey, publicKey } = generateKeyPairSync('rsa', {
      modulusLength: 2048,
      privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
      publicKeyEncoding: { type: 'spki', format: 'pem' },
    });
    await writeFile(join(pki, 'accounts.key'), privateKey);
    await writeFile(join(pki, 'accounts.pub'), publicKey);
    const tokens: string[] = [];
    for (const [name, [user, group]] of Object.entries(users)) {
      const token = randomBytes(16).toString('hex');
      tokens.push(`${token},${user},${name},"${group}"\n`);
      const config = {
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [{ name: 'test', cluster: { server: API, 'insecure-skip-tls-verify': true } }],
        users: [{ name: 'user', user: { token } }],
        contexts: [{ name: 'test', context: { cluster: 'test', user: 'user' } }],
        'current-context': 'test',
      };
      await writeFile(this.kubeconfig(name), JSON.stringify(config), { mode: 0o600 });
    }
    await writeFile(join(pki, 'tokens.csv'), tokens.join(''), { mode: 0o600 });
    this.#start('ctl', 'etcd', [
      ...[program('etcd'), '--name=test', `--data-dir=${join(this.dir, 'etcd')}`, '--unsafe-no-fsync'],
    ]);
    this.#start('ctl', 'kube-apiserver', [
      ...[program('kube-apiserver'), '--etcd-servers=http://127.0.0.1:2379', dualStack],
      ...['--bind-address=0.0.0.0', `--advertise-address=${CONTROL_PLANE}`, '--secure-port=6443'],
      ...[`--cert-dir=${pki}`, `--token-auth-file=${join(pki, 'tokens.csv')}`, '--authorization-mode=Node,RBAC'],
      ...['--enable-admission-plugins=NodeRestriction', '--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112'],
      ...[
        `--service-account-key-file=${join(pki, 'accounts.pub')}`,
        '--service-account-issuer=https://kubernetes.default.svc',
      ],
      ...[`--service-account-signing-key-file=${join(pki, 'accounts.key')}`, '--allow-privileged=true'],
      '--kubelet-preferred-address-types=InternalIP',
    ]);
    await until(`the API server is ready (${this.dir})`, 120_000, async () =>
      this.kubectl(['get', '--raw', '/readyz']).then(
        (said) => said === 'ok',
        () => false,
      ),
    );
    // It made its certificate itself; the file has the CA of it too.
    this.#start('ctl', 'kube-controller-manager', [
      ...[program('kube-controller-manager'), `--kubeconfig=${this.kubeconfig('controller-manager')}`, dualStack],
      ...['--use-service-account-credentials', `--service-account-private-key-file=${join(pki, 'accounts.key')}`],
      ...[`--root-ca-file=${join(pki, 'apiserver.crt')}`, '--allocate-node-cidrs=false', '--leader-elect=false'],
    ]);
    this.#start('ctl', 'kube-scheduler', [
      ...[program('kube-scheduler'), `--kubeconfig=${this.kubeconfig('scheduler')}`, '--leader-elect=false'],
    ]);
  }

  async #node({ name, addresses, podCIDRs }: Node): Promise<void> {
    const dir = join(this.dir, name);
    await mkdir(join(dir, 'cni'), { recursive: true });
    const cgroup = this.place.namespace(name);
    for (const hierarchy of await hierarchies()) await mkdir(join(hierarchy, cgroup), { recursive: true });
    await cp(this.place.certs(name), join(dir, 'certs'), { recursive: true });
    for (const [file, user] of [
      ['kubelet', name],
      ['proxy', 'proxy'],
    ] as const)
      await cp(this.kubeconfig(user), join(dir, `${file}.kubeconfig`));
    // Whoever reaches it may do everything: what it is asked is the API server's to judge, and this is a test.
    const kubelet = {
      apiVersion: 'kubelet.config.k8s.io/v1beta1',
      kind: 'KubeletConfiguration',
      authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
      authorization: { mode: 'AlwaysAllow' },
      cgroupDriver: 'cgroupfs',
      cgroupRoot: `/${cgroup}`,
      failSwapOn: false,
      clusterDNS: ['10.96.0.10'],
      clusterDomain: 'cluster.local',
      volumePluginDir: join(dir, 'plugins'),
      evictionHard: { 'memory.available': '50Mi', 'nodefs.available': '1%' },
      imageGCHighThresholdPercent: 100,
    };
    await writeFile(join(dir, 'kubelet.yaml'), JSON.stringify(kubelet));
    const bridge = {
      type: 'bridge',
      bridge: 'cni0',
      isGateway: true,
      hairpinMode: true,
      ipam: {
        type: 'host-local',
        ranges: podCIDRs.map((subnet) => [{ subnet }]),
        routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
      },
    };
    const network = { cniVersion: '0.4.0', name: 'pods', plugins: [bridge] };
    await writeFile(join(dir, 'cni', '10-pods.conflist'), JSON.stringify(network));
    await writeFile(join(dir, 'containerd.toml'), containerd(dir));
    const script = besideSources('test/cluster/node.sh');
    // `ip netns exec` hides the cgroups: back to the mounts of this process, of which the node makes its own.
    this.#start(name, 'kubelet', [
      ...[
        'nsenter',
        `--mount=/proc/${process.pid}/ns/mnt`,
        '--',
        'unshare',
        '--mount',
        '--propagation',
        'private',
        '--pid',
        '--fork',
      ],
      ...['--mount-proc', '--kill-child', 'bash', script, dir, home, name, addresses.join(',')],
    ]);
  }

  #start(host: string, name: string, argv: string[]): void {
    const [namespace, log] = [this.place.namespace(host), this.place.log(host, name)];
    this.#world.processes.push(startProcess({ host, program: name, namespace, argv, log }));
  }

  kubeconfig(user: string): string {
    return join(this.dir, `${user}.kubeconfig`);
  }

  /** Its output; rejects if it fails. */
  kubectl(args: readonly string[], input?: string): Promise<string> {
    const argv = [program('kubectl'), '--kubeconfig', this.kubeconfig('admin'), ...args];
    return must(inNamespace(this.place.namespace('ctl'), argv), {
      timeoutMs: 300_000,
      ...(input !== undefined && { input }),
    });
  }

  /** In a pod, `namespace/name`. */
  exec(pod: string, argv: readonly string[], timeoutMs = 30_000): Promise<Outcome> {
    const [namespace = '', name = ''] = pod.split('/');
    const kubectl = [program('kubectl'), '--kubeconfig', this.kubeconfig('admin'), 'exec', '-n', namespace, name, '--'];
    return run(inNamespace(this.place.namespace('ctl'), [...kubectl, ...argv]), { timeoutMs });
  }

  /** On a host of the lab, as `sh -ec`. */
  on(host: string, script: string): Promise<string> {
    return must(inNamespace(this.place.namespace(host), ['sh', '-ec', script]));
  }

  startGateway(name: string): void {
    const host = clusterTopology.hosts.find((one) => one.name === name);
    const program = host?.programs?.find(({ kind }) => kind === 'gateway');
    if (host === undefined || program === undefined) throw new Error(`${name} is no gateway`);
    this.#gateways.set(name, start(host, program, this.place));
  }

  /** Resolves when it is ready again. */
  async restartGateway(name: string): Promise<void> {
    const gateway = this.#gateways.get(name);
    if (gateway === undefined) throw new Error(`${name} does not run`);
    signal(gateway, 'SIGTERM');
    await until(`${name} has ended`, 30_000, async () => !isAlive(gateway));
    this.startGateway(name);
    await until(`${name} is ready`, 60_000, () => isReady(this.place.namespace(name), 'gateway'));
  }
}

/** Nothing of it is left but what build.sh made; also of one that was interrupted. */
export async function takeDown(lab: string): Promise<void> {
  await down(lab);
  for (const { name } of nodes) {
    for (const hierarchy of await hierarchies()) {
      const root = join(hierarchy, placeOf(lab).namespace(name));
      const below = await readdir(root, { recursive: true, withFileTypes: true }).catch(() => []);
      const directories = below
        .filter((entry) => entry.isDirectory())
        .map((entry) => join(entry.parentPath, entry.name));
      for (const directory of [root, ...directories].sort().reverse()) await rmdir(directory).catch(() => {});
    }
  }
  await rm(dirOf(lab), { recursive: true, force: true });
}

const dirOf = (lab: string): string => join(home, 'clusters', lab);

/** Of cgroup v1, which is what was tried. */
async function hierarchies(): Promise<string[]> {
  const names = await readdir(CGROUPS);
  if (!names.includes('memory')) throw new Error(`${CGROUPS}: this machine has no cgroups of version 1`);
  return names.filter((name) => name !== 'unified').map((name) => join(CGROUPS, name));
}

const containerd = (dir: string): string => `version = 2
root = "${dir}/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pods:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "${home}/runtime/usr/lib/cni"
    conf_dir = "${dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`;
