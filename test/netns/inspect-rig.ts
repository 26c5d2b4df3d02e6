/**
 * The gateway program itself between a client and a server with stacks of their own, in three network namespaces:
 *
 *   client, a pod behind its node  --  inside  gateway  outside  --  server, and the router before it
 *   PODS.pay, PODS.rev                10.0.0.31, .64    203.0.113.31      WEB, RESOLVER
 *
 * Direct steering, so that the client needs no tunnel. Plans come to the program over its plan stream, from plan-feeder.ts in
 * its namespace; what the ends do and saw, inspect-peer.ts says.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Family, families, type GatewayPlan } from '../../api/plan.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { PODS, WEB } from './gateway-plans.ts';
import { GATEWAY_INSIDE, NODES, NODES6, ROUTER } from './gateway-rig.ts';
import type { PeerAnswer, PeerOrder } from './inspect-peer.ts';
import { sh } from './queue-rig.ts';

export const RESOLVER = { 4: '198.51.100.53', 6: '2001:db8:100::53' } as const;
const PLAN_PORT = 7790;
const METRICS = '127.0.0.1:7792';
/** For what comes in the end. */
const WAIT_MS = 30_000;

type Without<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;
export type Order = Without<PeerOrder, 'id'>;

export class InspectRig {
  readonly #names: { client: string; gateway: string; server: string };
  readonly #state: string;
  readonly #children = new Set<ChildProcess>();
  readonly #waiting = new Map<number, (answer: PeerAnswer) => void>();
  #client: ChildProcess | undefined;
  #server: ChildProcess | undefined;
  #feeder: ChildProcess | undefined;
  #program: ChildProcess | undefined;
  #orders = 0;
  #generation = 0;
  #acked = 0;
  #refused: string | undefined;
  /** Lines of the program's log. */
  readonly log: string[] = [];

  private constructor(tag: string) {
    const name = (host: string) => `t-insp-${tag}-${host}-${process.pid}`;
    this.#names = { client: name('c'), gateway: name('g'), server: name('s') };
    this.#state = mkdtempSync(join(tmpdir(), `sluice-insp-${tag}-`));
  }

  static async create(tag: string): Promise<InspectRig> {
    const rig = new InspectRig(tag);
    try {
      await rig.#build();
    } catch (error) {
      await rig.close();
      throw error;
    }
    return rig;
  }

  get gateway(): string {
    return this.#names.gateway;
  }

  get nft(): HostNft {
    return new HostNft({ namespace: this.gateway });
  }

  inside(command: string, input?: string): string {
    return sh(`ip netns exec ${this.gateway} ${command}`, input);
  }

  client(order: Order): Promise<PeerAnswer> {
    return this.#order(this.#client, order);
  }

  /** What the server received since it was asked last. */
  async received(): Promise<NonNullable<PeerAnswer['received']>> {
    return (await this.#order(this.#server, { do: 'received' })).received ?? [];
  }

  /** Resolves when the program has it in force; throws what it says against it. */
  async publish(plan: GatewayPlan): Promise<void> {
    this.#generation++;
    this.#refused = undefined;
    this.#feeder?.stdin?.write(`${JSON.stringify({ plan, generation: this.#generation })}\n`);
    await this.until('a plan in force', () => this.#acked >= this.#generation || this.#refused !== undefined);
    if (this.#refused !== undefined) throw new Error(this.#refused);
  }

  /** Starts the program; resolves when it answers. `dying`: its threads end at a word (inspect-dying-decider.ts). */
  async start({ dying = false, options: more = [] as readonly string[] } = {}): Promise<void> {
    const main = join(import.meta.dirname, ...(dying ? ['inspect-dying.js'] : ['..', '..', 'cli', 'main.js']));
    const options = [
      ...['--name', 'gw-a', '--controller', `https://127.0.0.1:${PLAN_PORT}`, '--certs', join(this.#state, 'gw-a')],
      ...['--state', join(this.#state, 'state'), '--flow-log', this.#flows, '--metrics', METRICS, '--detect', 'off'],
      ...more,
    ];
    const program = this.#spawn(this.gateway, [main, 'gateway', ...options]);
    this.#program = program;
    if (program.stderr !== null) createInterface({ input: program.stderr }).on('line', (line) => this.log.push(line));
    await this.until(
      'the program',
      () => this.metric('sluice_gateway_generation') !== undefined || program.exitCode !== null,
    );
    if (program.exitCode !== null) throw new Error(`the program ended: ${this.log.slice(-3).join('\n')}`);
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const program = this.#program;
    this.#program = undefined;
    if (program === undefined || program.exitCode !== null) return;
    program.kill(signal);
    await once(program, 'exit');
    this.#children.delete(program);
  }

  get pid(): number {
    return this.#program?.pid ?? 0;
  }

  /** What the program has open. */
  files(): string[] {
    const folder = `/proc/${this.pid}/fd`;
    return readdirSync(folder).flatMap((fd) => {
      try {
        return [readlinkSync(join(folder, fd))];
      } catch {
        return [];
      }
    });
  }

  /** Sum of a metric's samples whose labels hold this text; undefined: the program does not answer. */
  metric(name: string, labels = ''): number | undefined {
    let text: string;
    try {
      text = this.inside(`curl -sf -m 5 http://${METRICS}/metrics`);
    } catch {
      return undefined;
    }
    const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    return lines
      .filter((line) => line.includes(labels))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  readiness(): string {
    return this.inside(`curl -s -m 5 http://${METRICS}/readyz`);
  }

  records(): FlowRecord[] {
    if (!existsSync(this.#flows)) return [];
    const lines = readFileSync(this.#flows, 'utf8').split('\n').filter(Boolean);
    return lines.map((line) => JSON.parse(line) as FlowRecord);
  }

  /** Records since a time that hold these fields, once there are so many. */
  async recordsWith(since: string, fields: Partial<FlowRecord>, count = 1): Promise<FlowRecord[]> {
    const found = (): FlowRecord[] =>
      this.records().filter(
        (record) =>
          record.time >= since &&
          Object.entries(fields).every(([name, value]) => record[name as keyof FlowRecord] === value),
      );
    await this.until(`records with ${JSON.stringify(fields)}`, () => found().length >= count);
    return found();
  }

  async until(what: string, condition: () => boolean | Promise<boolean>): Promise<number> {
    const began = performance.now();
    while (!(await condition())) {
      if (performance.now() - began > WAIT_MS) throw new Error(`waited in vain for ${what}`);
      await sleep(20);
    }
    return performance.now() - began;
  }

  async close(): Promise<void> {
    for (const child of this.#children) child.kill('SIGKILL');
    this.#children.clear();
    for (const name of Object.values(this.#names)) {
      try {
        sh(`ip netns del ${name}`);
      } catch {
        // It was never made.
      }
    }
    rmSync(this.#state, { recursive: true, force: true });
  }

  get #flows(): string {
    return join(this.#state, 'flows.jsonl');
  }

  #spawn(namespace: string, argv: string[]): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', namespace, process.execPath, ...argv], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.#children.add(child);
    child.stdin?.on('error', () => {});
    return child;
  }

  async #build(): Promise<void> {
    const { client, gateway, server } = this.#names;
    for (const name of Object.values(this.#names)) sh(`ip netns add ${name}`);
    for (const name of Object.values(this.#names)) {
      sh(`ip netns exec ${name} sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0`);
    }
    sh(
      'ip -batch -',
      `link add e0 netns ${client} type veth peer name inside netns ${gateway}
       link add e0 netns ${server} type veth peer name outside netns ${gateway}\n`,
    );
    const at = (name: string, lines: string[]) => sh(`ip -n ${name} -batch -`, `${lines.join('\n')}\n`);
    const host = (family: Family) => (family === 4 ? 32 : 128);
    const own = (addresses: Record<Family, string>[], device: string) =>
      addresses.flatMap((each) => families.map((f) => `addr add ${each[f]}/${host(f)} dev ${device}`));
    at(client, [
      ...['link set lo up', 'link set e0 up', `addr add ${NODES.a}/24 dev e0`, `addr add ${NODES6.a}/64 dev e0`],
      ...own([PODS.pay, PODS.rev], 'lo'),
      ...['route add default via 10.0.0.64 dev e0', 'route add default via fd00:10::64 dev e0'],
    ]);
    at(server, [
      ...['link set lo up', 'link set e0 up', `addr add ${ROUTER[4]}/24 dev e0`, `addr add ${ROUTER[6]}/64 dev e0`],
      ...own([WEB, RESOLVER], 'lo'),
    ]);
    at(gateway, [
      ...['link set lo up', 'link set inside up', 'link set outside up'],
      ...[`addr add ${GATEWAY_INSIDE}/24 dev inside`, 'addr add fd00:10::31/64 dev inside'],
      ...['addr add 203.0.113.31/24 dev outside', 'addr add 2001:db8:113::31/64 dev outside'],
      ...[`route add default via ${ROUTER[4]}`, `route add default via ${ROUTER[6]}`],
    ]);
    const ca = join(this.#state, 'ca');
    await createCa(ca);
    for (const [role, name] of [
      ['controller', 'ctl'],
      ['gateway', 'gw-a'],
    ] as const) {
      await issueCertificate({
        caDir: ca,
        outDir: join(this.#state, name),
        role,
        name,
        addresses: ['127.0.0.1', GATEWAY_INSIDE],
      });
    }
    mkdirSync(join(this.#state, 'state'));
    this.#client = this.#peer(client);
    this.#server = this.#peer(server);
    const addresses = Object.values(WEB);
    await this.#order(this.#server, {
      do: 'serve',
      certs: join(this.#state, 'ctl'),
      addresses,
      dns: Object.values(RESOLVER),
      answer: addresses,
    });
    const script = join(import.meta.dirname, 'plan-feeder.js');
    this.#feeder = this.#spawn(gateway, [script, String(PLAN_PORT), join(this.#state, 'ctl')]);
    let ready = false;
    if (this.#feeder.stdout !== null) {
      createInterface({ input: this.#feeder.stdout }).on('line', (line) => {
        const { generation, error, ...said } = JSON.parse(line) as {
          generation?: number;
          error?: string;
          ready?: true;
        };
        ready ||= said.ready === true;
        if (error !== undefined) this.#refused = error;
        else if (generation !== undefined) this.#acked = generation;
      });
    }
    await this.until('the plan stream', () => ready);
  }

  #peer(namespace: string): ChildProcess {
    const child = this.#spawn(namespace, [join(import.meta.dirname, 'inspect-peer.js')]);
    child.stderr?.pipe(process.stderr);
    if (child.stdout !== null) {
      createInterface({ input: child.stdout }).on('line', (line) => {
        const answer = JSON.parse(line) as PeerAnswer;
        this.#waiting.get(answer.id)?.(answer);
        this.#waiting.delete(answer.id);
      });
    }
    return child;
  }

  #order(to: ChildProcess | undefined, order: Order): Promise<PeerAnswer> {
    const id = ++this.#orders;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      to?.stdin?.write(`${JSON.stringify({ id, ...order })}\n`);
    });
  }
}
