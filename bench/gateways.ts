/**
 * What stands in the gateways of a stage: for each subject its table, or `sluice gateway`, the program, with a plan server
 * beside it. Links, addresses, routes and (where a subject says so) sysctls of the others are those that Sluice compiles for
 * a pool with one node; only the rules that ask for marks of Sluice's table are without them.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { GatewayPlan, PoolSettings } from '../api/plan.ts';
import { gatewayFlags } from '../daemon/heap.ts';
import { compileNet, deviceSysctls, sysctls } from '../gateway/compile-net.ts';
import { diffNet, emptyNetState } from '../kernel/iproute.ts';
import { HostIp } from '../kernel/iproute-host.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { run } from '../kernel/run.ts';
import { issueCertificates } from './certificates.ts';
import { CpuMeter } from './cpu.ts';
import { mapTable, naiveTable } from './peer-tables.ts';
import { addNamespace, emptyPool, NEXT_HOP } from './plan.ts';
import type { Churn, Order, Planned, Told } from './plan-publisher.ts';
import { plannedFor } from './planned.ts';
import { MTU, type Stage } from './stage.ts';
import type { ForwardingSubject } from './subjects.ts';
import { Talk } from './talk.ts';
import { besideSources, unmarked, writeSysctls } from './topology.ts';

const LOAD_MS = 300_000;
/** A program is quiet when it takes less than so much of a processor. */
const [QUIET_SHARE, LOOK_MS, QUIET_MS] = [0.03, 50, 5_000];

/** A running `sluice gateway`. */
interface Program {
  child: ChildProcess;
  publisher: Talk<Told>;
  meter: CpuMeter;
}

export class Gateways {
  readonly #stage: Stage;
  readonly #state: string;
  readonly #planned: Planned;
  readonly #programs = new Map<string, Program>();

  private constructor(stage: Stage, state: string, planned: Planned) {
    this.#stage = stage;
    this.#state = state;
    this.#planned = planned;
  }

  static async create(stage: Stage, state: string, planned: Planned): Promise<Gateways> {
    await issueCertificates(state);
    return new Gateways(stage, state, planned);
  }

  async add(subject: ForwardingSubject): Promise<void> {
    if (subject.churnOf !== undefined) return;
    const namespace = await this.#stage.addGateway(subject.id, subject.table === 'way');
    if (subject.table === 'way') return;
    if (subject.table === 'sluice') return this.#start(subject, namespace);
    await asGateway(namespace, this.#planned, subject.accounting === true);
    const nft = new HostNft({ namespace });
    if (subject.table === 'nft') await nft.runScript(await readFile(besideSources('bench/baseline.nft'), 'utf8'));
    if (subject.table === 'nft-map') await nft.runScript(mapTable(plannedFor(this.#planned)));
    if (subject.table === 'naive') await nft.runScript(naiveTable(plannedFor(this.#planned)));
    if (subject.table === 'iptables') {
      for (const command of ['iptables', 'ip6tables']) {
        const rule = [command, '-t', 'nat', '-A', 'POSTROUTING', '-o', 'outside', '-j', 'MASQUERADE'];
        await run(['ip', 'netns', 'exec', namespace, ...rule], { op: command });
      }
    }
  }

  /** CPU seconds of the subject's own program so far, if it has one. */
  programSeconds(subject: ForwardingSubject): number {
    return this.#programs.get(subject.churnOf ?? subject.id)?.meter.ownSeconds() ?? 0;
  }

  /** Megabytes resident of the subject's program. */
  residentMB(subject: ForwardingSubject): number | undefined {
    const pid = this.#programs.get(subject.churnOf ?? subject.id)?.child.pid;
    if (pid === undefined) return undefined;
    return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1000;
  }

  /** Until the program has done what the last turn left it, flows that ended above all. */
  async settle(subject: ForwardingSubject): Promise<void> {
    const end = performance.now() + QUIET_MS;
    for (let before = this.programSeconds(subject); performance.now() < end; ) {
      await sleep(LOOK_MS);
      const now = this.programSeconds(subject);
      if (now - before < (QUIET_SHARE * LOOK_MS) / 1000) return;
      before = now;
    }
  }

  churn(subject: ForwardingSubject, churn: Churn): void {
    this.#tell(subject, { churn });
  }

  /** Ends the changes; how many plans there were, and how many of them the gateway had in force. */
  async calm(subject: ForwardingSubject): Promise<{ published: number; answered: number }> {
    this.#tell(subject, { calm: true });
    const { publisher } = this.#program(subject);
    return (await publisher.heard((told) => 'calm' in told && told, 10_000)).calm;
  }

  async close(): Promise<void> {
    for (const { child, publisher, meter } of this.#programs.values()) {
      for (const one of [child, publisher.child]) {
        if (one.exitCode !== null || one.signalCode !== null) continue;
        one.kill('SIGKILL');
        await once(one, 'exit');
      }
      meter.close();
    }
  }

  #program(subject: ForwardingSubject): Program {
    const program = this.#programs.get(subject.churnOf ?? subject.id);
    if (program === undefined) throw new TypeError(`${subject.id} has no program`);
    return program;
  }

  #tell(subject: ForwardingSubject, order: Order): void {
    this.#program(subject).publisher.child.send(order);
  }

  async #start(subject: ForwardingSubject, namespace: string): Promise<void> {
    const within = ['ip', 'netns', 'exec', namespace];
    const log = openSync(join(this.#state, `${subject.id}.log`), 'a');
    const publish = [
      process.execPath,
      programOf('plan-publisher'),
      join(this.#state, 'ctl'),
      JSON.stringify(this.#planned),
    ];
    // The controller's work is another machine's: it has what processors have left.
    const [command = '', ...args] = ['nice', '-n', '10', ...within, ...publish];
    const publisher = new Talk<Told>(spawn(command, args, { stdio: ['ignore', log, log, 'ipc'] }));
    const meter = new CpuMeter(`sluice-bench-${process.pid}-${namespace}`);
    const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
    const { listening } = await publisher.heard((told) => 'listening' in told && told, LOAD_MS);
    const where = [
      '--name',
      'gw-a',
      '--controller',
      `https://127.0.0.1:${listening}`,
      '--certs',
      join(this.#state, 'gw-a'),
    ];
    const more = ['--state', join(this.#state, `${subject.id}.state`)];
    const records = subject.records ? ['--flow-log', join(this.#state, `${subject.id}.jsonl`)] : [];
    const gateway = [process.execPath, ...gatewayFlags, main, 'gateway', ...where, ...more, ...records];
    // Joins the meter's group before it becomes the program.
    const counted = ['sh', '-c', 'echo $$ > "$0" && exec "$@"', meter.procs, ...within, ...gateway];
    const child = spawn(counted[0] ?? '', counted.slice(1), { stdio: ['ignore', log, log] });
    this.#programs.set(subject.id, { child, publisher, meter });
    publisher.child.send({ publish: true } satisfies Order);
    const said = await publisher
      .heard((told) => 'answered' in told && told, LOAD_MS)
      .catch((error: unknown) => {
        throw new Error(`${subject.id} took no plan: ${this.lastWords(subject)}`, { cause: error });
      });
    if (said.error !== undefined) throw new Error(`${subject.id} refused its plan: ${said.error}`);
  }

  /** What the subject's program said last. */
  lastWords(subject: ForwardingSubject): string {
    return readFileSync(join(this.#state, `${subject.id}.log`), 'utf8')
      .split('\n')
      .slice(-5)
      .join('\n');
  }
}

/** Links, routes and rules as Sluice has them for one node and one egress IP, without its marks. */
async function asGateway(namespace: string, { steering }: Planned, accounting: boolean): Promise<void> {
  const plan: GatewayPlan = emptyPool();
  addNamespace(plan, 0, 1);
  const { pool } = plan.settings as { pool: PoolSettings };
  pool.steering = { ...pool.steering, mode: steering };
  if (plan.shards.s0 !== undefined) plan.shards.s0.nextHops = { 4: NEXT_HOP };
  const net = unmarked(compileNet(plan, 'gw-a', MTU));
  // Egress IPs are the kernel's own only where Sluice holds them; the others translate to addresses that are routed here.
  const addresses = net.addresses.filter(({ dev }) => dev === 'inside');
  await new HostIp({ namespace }).apply(diffNet(emptyNetState(), { ...net, addresses }));
  await writeSysctls(namespace, deviceSysctls(pool));
  if (accounting) await writeSysctls(namespace, sysctls);
}

const programOf = (name: string): string => fileURLToPath(new URL(`./${name}.js`, import.meta.url));
