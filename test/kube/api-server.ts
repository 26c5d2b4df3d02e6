/**
 * A real API server with its etcd, on loopback of a network namespace or of this machine. Programs (etcd, kube-apiserver,
 * kubectl) are those that build.sh makes, or of `KUBEBUILDER_ASSETS`. RBAC is on, unless it is lean; whoever has the token
 * may do everything.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, randomBytes, randomInt } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { sluiceKinds } from '../../api/kinds.ts';
import { besideSources } from '../../bench/topology.ts';
import { inNamespace, must, type Outcome, run } from '../../lab/netns.ts';

const cache = process.env.SLUICE_KUBE_HOME || join(homedir(), '.cache', 'sluice', 'kube');
const assets = process.env.KUBEBUILDER_ASSETS || join(cache, 'bin');
const READY_MS = 180_000;

type Program = 'etcd' | 'kube-apiserver';

export interface ApiServerOptions {
  /**
   * Without what costs processor time and that nobody asks for where pods are counted: admission, authorisation, priority and
   * fairness, profiling; in memory instead of on disk, and with more garbage between two collections.
   */
  lean?: boolean;
}

/** All that are on by themselves, in 1.20. */
const admissionPlugins = [
  ...['NamespaceLifecycle', 'LimitRanger', 'ServiceAccount', 'TaintNodesByCondition', 'Priority', 'RuntimeClass'],
  ...['DefaultTolerationSeconds', 'DefaultStorageClass', 'StorageObjectInUseProtection', 'PersistentVolumeClaimResize'],
  ...['CertificateApproval', 'CertificateSigning', 'CertificateSubjectRestriction', 'DefaultIngressClass'],
  ...['MutatingAdmissionWebhook', 'ValidatingAdmissionWebhook', 'ResourceQuota'],
];
const MEMORY = '/dev/shm';
/** Percent of what lives, of Go; its own is 100. */
const LEAN_GARBAGE = '400';

/**
 * So many ports in a row that nothing has here. Below those of clients (32,768 and on): a client that tries again and again
 * to reach a server that is down would meet itself there some day, and keep the port.
 */
async function freePorts(count: number): Promise<number> {
  for (;;) {
    const first = randomInt(10_000, 32_000);
    const free = await Promise.all(Array.from({ length: count }, (_, i) => isFree(first + i)));
    if (free.every(Boolean)) return first;
  }
}
const isFree = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host: '127.0.0.1' }, () => server.close(() => resolve(true)));
  });

export class RealApiServer {
  readonly kubeconfig: string;
  /** Version: 20 of 1.20.2. */
  readonly minor: number;
  readonly #dir: string;
  readonly #namespace: string | undefined;
  readonly #lean: boolean;
  /** Of the API server; etcd has the next two. */
  readonly #port: number;
  readonly #children = new Map<Program, ChildProcess>();

  private constructor(dir: string, minor: number, port: number, namespace: string | undefined, lean: boolean) {
    this.#dir = dir;
    this.minor = minor;
    this.#port = port;
    this.#namespace = namespace;
    this.#lean = lean;
    this.kubeconfig = join(dir, 'kubeconfig');
  }

  /** In a network namespace by its name, or in this one. Resolves when it is ready. */
  static async start(namespace?: string, { lean = false }: ApiServerOptions = {}): Promise<RealApiServer> {
    const version = await must([join(assets, 'kube-apiserver'), '--version']);
    const minor = Number(/v1\.([0-9]+)/.exec(version)?.[1]);
    const dir = await mkdtemp(join(lean ? MEMORY : tmpdir(), 'sluice-api-server-'));
    const server = new RealApiServer(dir, minor, await freePorts(3), namespace, lean);
    try {
      await server.#prepare();
      await server.up();
    } catch (error) {
      await server.close();
      throw error;
    }
    return server;
  }

  async #prepare(): Promise<void> {
    await mkdir(join(this.#dir, 'pki'));
    const { privateKey, publicKey } = generateKeyPairSync('rsa', {
      modulusLength: 2048,
      privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
      publicKeyEncoding: { type: 'spki', format: 'pem' },
    });
    await writeFile(join(this.#dir, 'pki', 'sa.key'), privateKey);
    await writeFile(join(this.#dir, 'pki', 'sa.pub'), publicKey);
    const token = randomBytes(16).toString('hex');
    await writeFile(join(this.#dir, 'tokens.csv'), `${token},admin,1,"system:masters"\n`);
    const server = `https://127.0.0.1:${this.#port}`;
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'test', cluster: { server, 'insecure-skip-tls-verify': true } }],
      users: [{ name: 'admin', user: { token } }],
      contexts: [{ name: 'test', context: { cluster: 'test', user: 'admin' } }],
      'current-context': 'test',
    };
    await writeFile(this.kubeconfig, JSON.stringify(config), { mode: 0o600 });
  }

  /** What of it does not run; its data are kept. Resolves when it is ready. */
  async up(): Promise<void> {
    const at = `http://127.0.0.1:${this.#port + 1}`;
    const peer = `http://127.0.0.1:${this.#port + 2}`;
    const pki = join(this.#dir, 'pki');
    this.#spawn('etcd', [
      ...['--name', 'test', '--data-dir', join(this.#dir, 'etcd'), '--unsafe-no-fsync'],
      ...['--listen-client-urls', at, '--advertise-client-urls', at],
      ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', `test=${peer}`],
    ]);
    this.#spawn('kube-apiserver', [
      ...[`--etcd-servers=${at}`, '--bind-address=127.0.0.1', '--advertise-address=127.0.0.1'],
      ...[`--secure-port=${this.#port}`, `--cert-dir=${pki}`],
      `--token-auth-file=${join(this.#dir, 'tokens.csv')}`,
      ...[
        `--service-account-key-file=${join(pki, 'sa.pub')}`,
        `--service-account-signing-key-file=${join(pki, 'sa.key')}`,
      ],
      ...[
        '--service-account-issuer=https://kubernetes.default.svc',
        '--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112',
      ],
      // Without it old ones drop a Node's second pod CIDR; those of today know no such gate.
      ...(this.minor < 23 ? ['--feature-gates=IPv6DualStack=true'] : []),
      ...(this.#lean
        ? [
            ...['--authorization-mode=AlwaysAllow', `--disable-admission-plugins=${admissionPlugins}`],
            ...['--enable-priority-and-fairness=false', '--profiling=false', '--endpoint-reconciler-type=none'],
          ]
        : // Nobody makes service accounts here.
          ['--authorization-mode=RBAC', '--disable-admission-plugins=ServiceAccount']),
    ]);
    const until = performance.now() + READY_MS;
    while ((await this.tryKubectl(['get', '--raw', '/readyz'])).stdout !== 'ok') {
      const ended = [...this.#children].find(
        ([, { exitCode, signalCode }]) => exitCode !== null || signalCode !== null,
      );
      const which = ended?.[0] ?? (performance.now() > until ? 'kube-apiserver' : undefined);
      if (which !== undefined) {
        const log = await readFile(this.#log(which), 'utf8');
        throw new Error(`no API server: ${which} says …${log.slice(-2000)}`);
      }
      await sleep(200);
    }
  }

  /** The kinds of deploy/crds, until they can be used. Without validation: 1.20 does not know CEL, and leaves it out. */
  async addKinds(): Promise<void> {
    await this.kubectl(['apply', '--validate=false', '-f', besideSources('deploy/crds')]);
    const names = sluiceKinds.map(({ plural }) => `crd/${plural}.sluice.dev`);
    await this.kubectl(['wait', '--for=condition=Established', '--timeout=60s', ...names]);
  }

  async kill(which: Program): Promise<void> {
    const child = this.#children.get(which);
    this.#children.delete(which);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  /** With a copy of all data as they are now, for `restore`. Both programs are killed meanwhile. */
  async backUp(): Promise<void> {
    await this.#down();
    await cp(join(this.#dir, 'etcd'), join(this.#dir, 'backup'), { recursive: true });
    await this.up();
  }

  /** What was written since `backUp` has never been. */
  async restore(): Promise<void> {
    await this.#down();
    await rm(join(this.#dir, 'etcd'), { recursive: true });
    await rename(join(this.#dir, 'backup'), join(this.#dir, 'etcd'));
    await this.up();
  }

  /** Its output; rejects if it fails. */
  kubectl(args: readonly string[], input?: string): Promise<string> {
    return must(...this.#command(args, input));
  }

  /** What it says and its exit code, also when it fails. */
  tryKubectl(args: readonly string[], input?: string): Promise<Outcome> {
    return run(...this.#command(args, input));
  }

  /** The server's words to kubectl when it refuses, as JSON; kubectl 1.20 itself says of what is invalid only that it is. */
  async refusal(args: readonly string[], input?: string): Promise<string> {
    const { code, stdout, stderr } = await this.tryKubectl([...args, '-v=8'], input);
    const [answer = stderr] = stderr.match(/(?<=Response Body: )\{.*/g)?.slice(-1) ?? [];
    return code === 0 ? `not refused: ${stdout}` : answer;
  }

  #command(args: readonly string[], input?: string): Parameters<typeof run> {
    // What it remembers of a server it finds by the port: not that of another test.
    const flags = ['--kubeconfig', this.kubeconfig, '--cache-dir', join(this.#dir, 'cache')];
    const argv = this.#here([join(assets, 'kubectl'), ...flags, ...args]);
    return [argv, { timeoutMs: 150_000, ...(input !== undefined && { input }) }];
  }

  async close(): Promise<void> {
    await this.#down();
    await rm(this.#dir, { recursive: true, force: true });
  }

  async #down(): Promise<void> {
    for (const which of ['kube-apiserver', 'etcd'] as const) await this.kill(which);
  }

  #here(argv: string[]): string[] {
    return this.#namespace === undefined ? argv : inNamespace(this.#namespace, argv);
  }

  #log(which: Program): string {
    return join(this.#dir, `${which}.log`);
  }

  #spawn(which: Program, args: string[]): void {
    if (this.#children.has(which)) return;
    // A test that is killed leaves none behind.
    const argv = ['setpriv', '--pdeathsig', 'KILL', join(assets, which), ...args];
    const [command = '', ...rest] = this.#here(argv);
    const log = openSync(this.#log(which), 'a');
    const env = this.#lean ? { ...process.env, GOGC: LEAN_GARBAGE } : process.env;
    this.#children.set(which, spawn(command, rest, { stdio: ['ignore', log, log], env }));
    closeSync(log);
  }
}
