/**
 * What stands in the gateway of bench/inspection.ts, one at a time: `sluice gateway` with a rule by name, or by address
 * (the same program, which then reads nothing); one hand-written SNAT rule alone, with Suricata behind it, or with
 * nginx. Peers have Sluice's links, addresses and routes, and none of its tables.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, openSync, readFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { INSPECT_QUEUE_MARK, NFT_TABLE_INSPECT } from '../api/names.ts';
import { families } from '../api/plan.ts';
import { gatewayFlags } from '../daemon/heap.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { probeQueueRule, putQueueRule, type QueueCapability, removeQueueRule } from '../kernel/queue-rule.ts';
import { run } from '../kernel/run.ts';
import { issueCertificates } from './certificates.ts';
import { CpuMeter } from './cpu.ts';
import type { Way } from './inspection-plan.ts';
import type { Told } from './inspection-publisher.ts';
import { GATEWAY_OUTSIDE, ROUTER, SERVER } from './plan.ts';
import { Talk } from './talk.ts';
import { besideSources, type Topology } from './topology.ts';

/** Those of bench/inspection.ts. */
export const subjects = ['by address', 'by name', 'snat', 'suricata', 'nginx'] as const;
/** Proxies: connections end at them, and they make others to the server. */
const proxies = ['nginx', 'haproxy', 'squid'] as const;
type Proxy = (typeof proxies)[number];
type Peer = Proxy | 'suricata';
export type Subject = (typeof subjects)[number] | Proxy;
const isProxy = (subject: Subject): subject is Proxy => (proxies as readonly string[]).includes(subject);
const isPeer = (subject: Subject): subject is Peer => isProxy(subject) || subject === 'suricata';
/** Where the proxies listen, on the gateway's own addresses. */
const PROXY_PORT: Record<Proxy, number> = { nginx: 8443, haproxy: 8444, squid: 8445 };

const METRICS = '127.0.0.1:7792';
/** Of Suricata's rule: what is not decided (bench/peers/suricata.nft). */
const ASK = { mark: 2, mask: 2 };
const READY_MS = 60_000;

export interface SubjectOptions {
  /** Folder of all that the subjects keep and say. */
  state: string;
  queues: number;
  pods: number;
  /** Folder for CPU profiles of Sluice's threads; absent: none is taken. */
  profiles?: string;
}

export class Subjects {
  readonly #topology: Topology;
  readonly #state: string;
  readonly #queues: number;
  readonly #pods: number;
  readonly #profiles: string | undefined;
  readonly #capability: QueueCapability;
  readonly #namespace: string;
  readonly #nft: HostNft;
  readonly #meters: Record<'sluice' | Peer, CpuMeter>;
  #publisher: { talk: Talk<Told>; port: number } | undefined;
  #program: ChildProcess | undefined;
  #now: Subject | undefined;

  private constructor(topology: Topology, options: SubjectOptions, capability: QueueCapability) {
    const { state, queues, pods, profiles } = options;
    this.#profiles = profiles;
    this.#topology = topology;
    this.#state = state;
    this.#queues = queues;
    this.#pods = pods;
    this.#capability = capability;
    this.#namespace = topology.namespace('gateway');
    this.#nft = new HostNft({ namespace: this.#namespace });
    const meter = (of: string): CpuMeter => new CpuMeter(`sluice-bench-${process.pid}-${of}`);
    this.#meters = {
      sluice: meter('sluice'),
      suricata: meter('suricata'),
      nginx: meter('nginx'),
      haproxy: meter('haproxy'),
      squid: meter('squid'),
    };
  }

  static async create(topology: Topology, options: SubjectOptions): Promise<Subjects> {
    const { state } = options;
    const made = new Subjects(topology, options, await probeQueueRule());
    await issueCertificates(state);
    // nginx connects for itself, and is no forwarded packet that a rule of Sluice's would lead out.
    for (const family of families) {
      const route = ['route', 'add', SERVER[family], 'via', ROUTER[family]];
      await run(['ip', '-n', made.#namespace, ...route], { op: 'route' });
    }
    const range = ['sysctl', '-qw', 'net.ipv4.ip_local_port_range=1024 65535'];
    await run([...made.#inside, ...range], { op: 'sysctl' });
    return made;
  }

  /** CPU seconds of the subject's program so far; only differences mean anything. */
  cpuSeconds(): number {
    return this.#meter?.ownSeconds() ?? 0;
  }

  /** The program of the subject that is in force. */
  get pid(): number | undefined {
    return this.#program?.pid;
  }

  /** Packets that came to the threads of `by name` so far, each of which had one verdict; 0 for others. */
  async packets(): Promise<number> {
    if (this.#now !== 'by name') return 0;
    const text = await run([...this.#inside, 'curl', '-sf', '-m', '5', `http://${METRICS}/metrics`], { op: 'metrics' });
    const counts = [...text.matchAll(/^sluice_inspection_packets_total(?:\{[^}]*\})? (\d+)$/gm)];
    return counts.reduce((sum, [, count]) => sum + Number(count), 0);
  }

  async become(subject: Subject): Promise<void> {
    if (this.#now === subject) return;
    const ours = (of: Subject | undefined): boolean => of === 'by address' || of === 'by name';
    if (!(ours(this.#now) && ours(subject))) {
      // One that cannot begin leaves nobody there.
      this.#now = undefined;
      await this.#leave();
      await this.#enter(subject);
    }
    this.#now = subject;
    if (ours(subject)) await this.#publish(subject === 'by name' ? 'names' : 'addresses');
    await this.#topology.forgetFlows();
  }

  /** What the subjects' programs said last. */
  lastWords(): string {
    const logs = Object.keys(this.#meters)
      .map((of) => this.#log(of))
      .filter((log) => existsSync(log));
    return logs.map((log) => readFileSync(log, 'utf8').split('\n').slice(-10).join('\n')).join('\n');
  }

  /** What this subject's program said last, in one line. */
  wordsOf(subject: Subject): string {
    const log = this.#log(isPeer(subject) ? subject : 'sluice');
    return existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n').slice(-3).join(' / ') : '';
  }

  async close(): Promise<void> {
    await this.#leave().catch(() => undefined);
    const publisher = this.#publisher?.talk.child;
    if (publisher !== undefined && publisher.exitCode === null) {
      publisher.kill('SIGKILL');
      await once(publisher, 'exit');
    }
    for (const meter of Object.values(this.#meters)) meter.close();
  }

  get #meter(): CpuMeter | undefined {
    if (this.#now === undefined || this.#now === 'snat') return undefined;
    return this.#meters[isPeer(this.#now) ? this.#now : 'sluice'];
  }

  get #inside(): string[] {
    return ['ip', 'netns', 'exec', this.#namespace];
  }

  async #enter(subject: Subject): Promise<void> {
    const peer = (file: string): string => besideSources(join('bench/peers', file));
    if (subject === 'by address' || subject === 'by name') {
      await this.#topology.become('sluice');
      const { port } = await this.#publishing();
      const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
      const where = [
        '--name',
        'gw-a',
        '--controller',
        `https://127.0.0.1:${port}`,
        '--certs',
        join(this.#state, 'gw-a'),
      ];
      const more = ['--state', join(this.#state, 'gateway'), '--metrics', METRICS];
      const profile = this.#profiles === undefined ? [] : ['--cpu-prof', '--cpu-prof-dir', this.#profiles];
      this.#start('sluice', [process.execPath, ...gatewayFlags, ...profile, main, 'gateway', ...where, ...more]);
      return;
    }
    await this.#topology.become('baseline');
    if (subject === 'snat') return;
    await this.#nft.runScript(await readFile(peer(`${subject}.nft`), 'utf8'));
    if (isProxy(subject)) {
      this.#start(subject, await this.#proxyCommand(subject, peer));
      await this.#until(`${subject} listens`, async () =>
        (await run([...this.#inside, 'ss', '-Hltn', `sport = :${PROXY_PORT[subject]}`], { op: 'ss' })).includes(
          String(PROXY_PORT[subject]),
        ),
      );
      return;
    }
    const queues = Array.from({ length: this.#queues }, (_, at) => ['-q', String(at)]).flat();
    const files = ['-c', peer('suricata.yaml'), '-S', peer('sni.rules'), '-l', await this.#folder('suricata')];
    this.#start('suricata', ['suricata', ...files, '--runmode', 'workers', '-k', 'none', ...queues]);
    await this.#until('Suricata holds its queues', async () => {
      const held = await run([...this.#inside, 'cat', '/proc/net/netfilter/nfnetlink_queue'], { op: 'queues' });
      return held.trim().split('\n').length === this.#queues;
    });
    const rule = { ...ASK, first: 0, count: this.#queues, bypass: false };
    await putQueueRule(this.#capability, rule, this.#namespace);
  }

  async #proxyCommand(subject: Proxy, peer: (file: string) => string): Promise<string[]> {
    const folder = await this.#folder(subject);
    if (subject === 'nginx') return ['nginx', '-e', 'stderr', '-p', folder, '-c', peer('nginx.conf')];
    if (subject === 'haproxy') return ['haproxy', '-db', '-f', peer('haproxy.cfg')];
    // A certificate is asked for, and never shown to anybody: nothing is decrypted.
    const certificate = join(this.#state, 'server');
    const paths = [`${GATEWAY_OUTSIDE[4]}:8445`, `[${GATEWAY_OUTSIDE[6]}]:8445`].map(
      (where) =>
        `https_port ${where} intercept ssl-bump tls-cert=${certificate}/tls.crt tls-key=${certificate}/tls.key generate-host-certificates=off`,
    );
    const own = [`pid_filename ${folder}/squid.pid`, `coredump_dir ${folder}`];
    const file = join(folder, 'squid.conf');
    const common = await readFile(peer('squid.conf'), 'utf8');
    await writeFile(file, `${common}${[...paths, ...own].join('\n')}\n`);
    // A service name of its own: what squid shares in memory is named by it.
    return ['squid', '-N', '-n', `bench${process.pid}`, '-f', file];
  }

  async #leave(): Promise<void> {
    const program = this.#program;
    this.#program = undefined;
    if (program !== undefined && program.exitCode === null && program.signalCode === null) {
      program.kill('SIGTERM');
      await once(program, 'exit');
    }
    for (const table of [NFT_TABLE_INSPECT, 'suricata', ...proxies]) {
      await this.#nft.runScript(`add table inet ${table}\ndelete table inet ${table}\n`);
    }
    for (const asked of [ASK, { mark: INSPECT_QUEUE_MARK, mask: INSPECT_QUEUE_MARK }]) {
      await removeQueueRule(this.#capability, asked, this.#namespace);
    }
  }

  async #publish(way: Way): Promise<void> {
    const { talk } = await this.#publishing();
    talk.child.send({ publish: way });
    const told = await talk.heard((message) => 'published' in message && message, READY_MS);
    const said = await talk.heard(
      (message) => 'answered' in message && message.answered === told.published && message,
      READY_MS,
    );
    if (said.error !== undefined) throw new Error(`the gateway refused the plan: ${said.error}`);
  }

  async #publishing(): Promise<{ talk: Talk<Told>; port: number }> {
    if (this.#publisher !== undefined) return this.#publisher;
    const program = fileURLToPath(new URL('./inspection-publisher.js', import.meta.url));
    const argv = [process.execPath, program, join(this.#state, 'ctl'), String(this.#pods), String(this.#queues)];
    const [command = '', ...args] = [...this.#inside, ...argv];
    const talk = new Talk<Told>(spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] }));
    const { listening } = await talk.heard((told) => 'listening' in told && told, READY_MS);
    this.#publisher = { talk, port: listening };
    return this.#publisher;
  }

  async #folder(name: string): Promise<string> {
    const path = join(this.#state, name);
    await mkdir(path, { recursive: true });
    return path;
  }

  /** Joins the meter's group before it becomes the program. */
  #start(of: 'sluice' | Peer, argv: string[]): void {
    const log = openSync(this.#log(of), 'a');
    const counted = ['sh', '-c', 'echo $$ > "$0" && exec "$@"', this.#meters[of].procs, ...this.#inside, ...argv];
    const [command = '', ...args] = counted;
    const program = spawn(command, args, { stdio: ['ignore', log, log] });
    this.#program = program;
    program.once('exit', (code, signal) => {
      if (this.#program === program) console.error(`${of} ended: ${code ?? signal}; see ${this.#log(of)}`);
    });
  }

  #log(of: string): string {
    return join(this.#state, `${of}.log`);
  }

  async #until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const end = performance.now() + READY_MS;
    while (!(await holds())) {
      if (performance.now() > end || this.#program?.exitCode !== null) throw new Error(`not so: ${what}`);
      await sleep(20);
    }
  }
}
