/**
 * A real API server with its etcd, on loopback of a network namespace or of this machine. Binaries (etcd, kube-apiserver, kubectl)
 * are those of `KUBEBUILDER_ASSETS`, else of `~/.cache/sluice-kube/bin`. RBAC is on; whoever has the token may do everything.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { inNamespace, must } from '../../lab/netns.ts';

const assets = process.env.KUBEBUILDER_ASSETS ?? join(homedir(), '.cache', 'sluice-kube', 'bin');
const READY_MS = 120_000;

export interface ApiServerOptions {
  /** Network namespace by name; absent: this one. */
  namespace?: string;
  port?: number;
  etcdPort?: number;
}

export class RealApiServer {
  readonly kubeconfig: string;
  readonly #dir: string;
  readonly #options: Required<Omit<ApiServerOptions, 'namespace'>> & Pick<ApiServerOptions, 'namespace'>;
  readonly #children = new Map<'etcd' | 'kube-apiserver', ChildProcess>();

  private constructor(dir: string, options: ApiServerOptions) {
    this.#dir = dir;
    this.#options = { port: 26_443, etcdPort: 26_379, ...options };
    this.kubeconfig = join(dir, 'kubeconfig');
  }

  static async start(options: ApiServerOptions = {}): Promise<RealApiServer> {
    const dir = await mkdtemp(join(tmpdir(), 'sluice-api-server-'));
    const server = new RealApiServer(dir, options);
    await server.#prepare();
    await server.up();
    return server;
  }

  async #prepare(): Promise<void> {
    const { port } = this.#options;
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
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'test', cluster: { server: `https://127.0.0.1:${port}`, 'insecure-skip-tls-verify': true } }],
      users: [{ name: 'admin', user: { token } }],
      contexts: [{ name: 'test', context: { cluster: 'test', user: 'admin' } }],
      'current-context': 'test',
    };
    await writeFile(this.kubeconfig, JSON.stringify(config), { mode: 0o600 });
  }

  /** What of it does not run; its data are kept. Resolves when it is ready. */
  async up(): Promise<void> {
    const { port, etcdPort } = this.#options;
    const at = `http://127.0.0.1:${etcdPort}`;
    const peer = `http://127.0.0.1:${etcdPort + 1}`;
    const pki = join(this.#dir, 'pki');
    this.#spawn('etcd', [
      ...['--name', 'test', '--data-dir', join(this.#dir, 'etcd'), '--unsafe-no-fsync'],
      ...['--listen-client-urls', at, '--advertise-client-urls', at],
      ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', `test=${peer}`],
    ]);
    this.#spawn('kube-apiserver', [
      ...[`--etcd-servers=${at}`, '--bind-address=127.0.0.1', '--advertise-address=127.0.0.1', `--secure-port=${port}`],
      ...[`--cert-dir=${pki}`, `--token-auth-file=${join(this.#dir, 'tokens.csv')}`, '--authorization-mode=RBAC'],
      ...[
        `--service-account-key-file=${join(pki, 'sa.pub')}`,
        `--service-account-signing-key-file=${join(pki, 'sa.key')}`,
      ],
      ...[
        '--service-account-issuer=https://kubernetes.default.svc',
        '--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112',
      ],
      // Of 1.20: else it drops a Node's second pod CIDR.
      '--feature-gates=IPv6DualStack=true',
      // Nobody makes service accounts here.
      '--disable-admission-plugins=ServiceAccount',
    ]);
    const until = performance.now() + READY_MS;
    while ((await this.kubectl(['get', '--raw', '/readyz']).catch(() => '')) !== 'ok') {
      if (performance.now() > until) throw new Error(`no API server: see ${this.#dir}`);
      await sleep(200);
    }
  }

  async kill(which: 'etcd' | 'kube-apiserver'): Promise<void> {
    const child = this.#children.get(which);
    this.#children.delete(which);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }

  /** Its output; rejects if it fails. */
  kubectl(args: readonly string[], input?: string): Promise<string> {
    const argv = [join(assets, 'kubectl'), '--kubeconfig', this.kubeconfig, ...args];
    const { namespace } = this.#options;
    return must(namespace === undefined ? argv : inNamespace(namespace, argv), {
      timeoutMs: 60_000,
      ...(input !== undefined && { input }),
    });
  }

  async close(): Promise<void> {
    for (const which of ['kube-apiserver', 'etcd'] as const) await this.kill(which);
    await rm(this.#dir, { recursive: true, force: true });
  }

  #spawn(which: 'etcd' | 'kube-apiserver', args: string[]): void {
    if (this.#children.has(which)) return;
    const argv = [join(assets, which), ...args];
    const { namespace } = this.#options;
    const [command = '', ...rest] = namespace === undefined ? argv : inNamespace(namespace, argv);
    const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'] });
    const log = createWriteStream(join(this.#dir, `${which}.log`), { flags: 'a' });
    child.stdout?.pipe(log);
    child.stderr?.pipe(log);
    this.#children.set(which, child);
  }
}
