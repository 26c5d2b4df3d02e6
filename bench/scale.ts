/**
 * The real gateway program with the plan of a large cluster (scale-plan.ts), fed over the real plan stream: the first
 * load until it is ready, then single changes, there and back, each from publishing until a packet sees it in force and
 * until it is acknowledged; memory of the process; a restart with nothing to do. Printed: medians, least and most.
 *   node dist/bench/scale.js [--namespaces 10000] [--pods 10] [--rules 7,3] [--egress-ips N] [--rounds 9] [--cpu-prof DIR]
 *                            [--output FILE]
 * Needs root, nft, iproute2. Docs: docs/bench.md.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gatewayFlags } from '../daemon/heap.ts';
import { run } from '../kernel/run.ts';
import { issueCertificates } from './certificates.ts';
import { changes, PROBE_PORT, PROBE_SOURCES, PROBED_NETWORKS } from './scale-changes.ts';
import type { ScaleSize } from './scale-plan.ts';
import type { Seen, Watch } from './scale-probe.ts';
import type { Order, Told } from './scale-publisher.ts';
import { median } from './statistics.ts';
import { Talk } from './talk.ts';
import { Topology } from './topology.ts';

const { values } = parseArgs({
  options: {
    namespaces: { type: 'string', default: '10000' },
    pods: { type: 'string', default: '10' },
    rules: { type: 'string', default: '7,3' },
    'egress-ips': { type: 'string' },
    rounds: { type: 'string', default: '9' },
    'cpu-prof': { type: 'string' },
    output: { type: 'string', default: 'bench/results/scale.json' },
  },
});
const [namespaceRules = 7, serviceRules = 3] = values.rules.split(',').map(Number);
const size: ScaleSize = {
  namespaces: Number(values.namespaces),
  pods: Number(values.pods),
  namespaceRules,
  serviceRules,
  egressIPs: Number(values['egress-ips'] ?? values.namespaces),
};
const rounds = Number(values.rounds);
const METRICS = '127.0.0.1:7792';
const FIRST_LOAD_MS = 300_000;
const CHANGE_MS = 60_000;

interface Figures {
  median: number;
  least: number;
  most: number;
  samples: number[];
}
interface Row {
  change: string;
  /** From publishing until the first packet that saw it was sent. */
  inForceMs: Figures;
  acknowledgedMs: Figures;
  /** Finding the difference of the two plans, before publishing. */
  differenceMs: Figures;
}

const state = await mkdtemp(join(tmpdir(), 'sluice-scale-'));
const children = new Set<ChildProcess>();
let topology: Topology | undefined;
// Whoever waits for a child then hears that it is gone, and what was made is taken away.
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    for (const child of children) child.kill('SIGKILL');
  });
}
try {
  topology = await Topology.create(undefined, PROBE_SOURCES, state);
  const server = topology.namespace('server');
  for (const network of PROBED_NETWORKS) {
    await run(['ip', '-n', server, 'route', 'add', 'local', network, 'dev', 'lo'], { op: 'route' });
  }
  await issueCertificates(state);
  await report(await measure(topology));
} catch (error) {
  console.error(lastWords());
  throw error;
} finally {
  for (const child of children) await stop(child, 'SIGKILL');
  await topology?.close();
  await rm(state, { recursive: true, force: true });
}

async function measure(within: Topology) {
  const inGateway = ['ip', 'netns', 'exec', within.namespace('gateway')];
  const publisher = new Talk<Told>(
    start([...inGateway, process.execPath, program('scale-publisher'), join(state, 'ctl'), JSON.stringify(size)], true),
  );
  const listening = await publisher.heard((told) => 'listening' in told && told, 120_000);
  const ends = [within.namespace('client'), within.namespace('server'), String(PROBE_PORT)];
  const probe = new Talk<'ready' | { watching: true } | Seen>(
    start([process.execPath, program('scale-probe'), ...ends], true),
  );
  await probe.heard((told) => told === 'ready', 10_000);
  console.log(`plan made in ${listening.generateMs.toFixed(0)} ms`);

  const tell = (order: Order): void => void publisher.child.send(order);
  const prepare = async (change: number | undefined): Promise<number> => {
    tell({ prepare: change });
    return (await publisher.heard((told) => 'prepared' in told && told, 60_000)).prepared;
  };
  /** Milliseconds from `since` until the acknowledgement of what was published last. */
  const answered = (generation: number, since: bigint, limitMs: number): Promise<number> => {
    const waiting = answer(generation, since, limitMs);
    // Somebody awaits it, but something else before.
    waiting.catch(() => undefined);
    return waiting;
  };
  const answer = async (generation: number, since: bigint, limitMs: number): Promise<number> => {
    const said = await publisher.heard((told) => 'answered' in told && told.generation === generation && told, limitMs);
    if (said.error !== undefined) throw new Error(`the gateway refused the plan: ${said.error}`);
    return milliseconds(since, said.answered);
  };
  const publish = async (): Promise<{ published: bigint; generation: number }> => {
    tell({ publish: true });
    const told = await publisher.heard((message) => 'published' in message && message, 10_000);
    return { published: BigInt(told.published), generation: told.generation };
  };

  await prepare(undefined);
  const { generation } = await publish();
  // What a controller makes ready for a gateway that is not there (the plan's hash) is not the gateway's time.
  await prepare(undefined);
  const began = process.hrtime.bigint();
  let gateway = startGateway(inGateway, listening.listening);
  const acknowledged = answered(generation, began, FIRST_LOAD_MS);
  await untilReady(gateway, inGateway, FIRST_LOAD_MS);
  const firstLoad = {
    readyMs: milliseconds(began),
    acknowledgedMs: await acknowledged,
    cpuSeconds: cpuSecondsOf(gateway),
  };
  const memoryAfterLoad = memoryOf(gateway);
  console.log('first load', firstLoad, memoryAfterLoad);

  const rows: Row[] = [];
  for (const [index, change] of changes.entries()) {
    for (const [at, name] of [change.name, change.undo].entries()) {
      rows[2 * index + at] = { change: name, inForceMs: figures(), acknowledgedMs: figures(), differenceMs: figures() };
    }
    for (let round = 0; round < rounds; round++) {
      for (const back of [false, true]) {
        const row = rows[2 * index + Number(back)] as Row;
        row.differenceMs.samples.push(await prepare(back ? undefined : index));
        const watch: Watch = { ...change.probe, passes: change.passes !== back, timeoutMs: CHANGE_MS };
        probe.child.send(watch);
        await probe.heard((told) => told !== 'ready' && 'watching' in told, 5_000);
        const { published, generation } = await publish();
        const ack = answered(generation, published, CHANGE_MS);
        const seen = await probe.heard((told) => told !== 'ready' && 'at' in told && told, CHANGE_MS + 5_000);
        if (seen.at === '' || BigInt(seen.at) < published)
          throw new Error(`${row.change}: the probe saw nothing of it`);
        row.inForceMs.samples.push(milliseconds(published, seen.at));
        row.acknowledgedMs.samples.push(await ack);
      }
    }
    for (const row of rows.slice(-2)) print(row);
  }
  const memoryAfterChanges = memoryOf(gateway);
  console.log('after the changes', memoryAfterChanges);

  await stop(gateway, 'SIGTERM');
  const restarted = process.hrtime.bigint();
  gateway = startGateway(inGateway, listening.listening);
  const again = answered(publishedLast(), restarted, FIRST_LOAD_MS);
  await untilReady(gateway, inGateway, FIRST_LOAD_MS);
  const restart = { readyMs: milliseconds(restarted), acknowledgedMs: await again, ...memoryOf(gateway) };
  console.log('restart with nothing to do', restart);
  await stop(gateway, 'SIGTERM');
  return { firstLoad, memoryAfterLoad, rows: rows.map(summed), memoryAfterChanges, restart };

  function publishedLast(): number {
    return generation + 2 * rounds * changes.length;
  }
}

type Measured = Awaited<ReturnType<typeof measure>>;

async function report(measured: Measured): Promise<void> {
  const machine = { kernel: release(), cpu: cpus()[0]?.model, cpus: cpus().length, load: loadavg() };
  await mkdir(join(values.output, '..'), { recursive: true });
  const content = { date: new Date().toISOString(), machine, size, rounds, ...measured };
  await writeFile(values.output, `${JSON.stringify(content, null, 2)}\n`);
  console.log(`written: ${values.output}`);
}

function startGateway(inGateway: string[], port: number): ChildProcess {
  const profile = values['cpu-prof'] === undefined ? [] : ['--cpu-prof', '--cpu-prof-dir', values['cpu-prof']];
  const where = ['--name', 'gw-a', '--controller', `https://127.0.0.1:${port}`, '--certs', join(state, 'gw-a')];
  const more = ['--state', join(state, 'gateway'), '--metrics', METRICS];
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  return start(
    [...inGateway, process.execPath, ...gatewayFlags, ...profile, main, 'gateway', ...where, ...more],
    false,
  );
}

function program(name: string): string {
  return fileURLToPath(new URL(`./${name}.js`, import.meta.url));
}

function start([command = '', ...args]: string[], ipc: boolean): ChildProcess {
  const log = openSync(join(state, 'log'), 'a');
  const child = spawn(command, args, { stdio: ['ignore', log, log, ...(ipc ? (['ipc'] as const) : [])] });
  children.add(child);
  child.once('exit', (code, signal) => {
    if (!children.delete(child)) return;
    console.error(lastWords());
    console.error(`${args.join(' ')} ended: ${code ?? signal}`);
    process.exitCode = 1;
  });
  return child;
}

/** What the children said last. */
function lastWords(): string {
  return readFileSync(join(state, 'log'), 'utf8').split('\n').slice(-30).join('\n');
}

async function stop(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  children.delete(child);
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill(signal);
  await once(child, 'exit');
}

async function untilReady(gateway: ChildProcess, inGateway: string[], limitMs: number): Promise<void> {
  const end = performance.now() + limitMs;
  const ask = [...inGateway, 'curl', '-sf', '-m', '2', '-o', '/dev/null', `http://${METRICS}/readyz`];
  while (performance.now() < end && gateway.exitCode === null && gateway.signalCode === null) {
    const ready = await run(ask, { op: 'readyz', timeoutMs: 5_000 }).then(
      () => true,
      () => false,
    );
    if (ready) return;
    await sleep(50);
  }
  throw new Error(`the gateway is gone, or not ready after ${limitMs} ms`);
}

/** Megabytes resident: now, and at most so far. */
function memoryOf(child: ChildProcess): { residentMB: number; mostResidentMB: number } {
  const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
  const field = (name: string): number => Math.round(Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1]) / 1000);
  return { residentMB: field('VmRSS'), mostResidentMB: field('VmHWM') };
}

/** Of all its threads, in user and kernel, since its start: /proc/PID/stat counts hundredths. */
function cpuSecondsOf(child: ChildProcess): number {
  const fields = readFileSync(`/proc/${child.pid}/stat`, 'utf8')
    .replace(/\(.*\)/, '')
    .split(/ +/);
  const [user, system] = fields.slice(12, 14);
  return (Number(user) + Number(system)) / 100;
}

function milliseconds(since: bigint, until: string | bigint = process.hrtime.bigint()): number {
  return Math.round(Number(BigInt(until) - since) / 1e4) / 100;
}

function figures(): Figures {
  return { median: 0, least: 0, most: 0, samples: [] };
}

function summed(row: Row): Row {
  for (const of of [row.inForceMs, row.acknowledgedMs, row.differenceMs]) {
    of.median = median(of.samples);
    of.least = Math.min(...of.samples);
    of.most = Math.max(...of.samples);
  }
  return row;
}

function print(row: Row): void {
  const { inForceMs, acknowledgedMs, differenceMs } = summed(row);
  const text = ({ median: middle, least, most }: Figures): string =>
    `${middle.toFixed(1).padStart(8)} [${least.toFixed(1)}..${most.toFixed(1)}]`;
  console.log(
    `${row.change.padEnd(42)} in force ${text(inForceMs)} ms, acknowledged ${text(acknowledgedMs)} ms (difference ${differenceMs.median.toFixed(0)} ms)`,
  );
}
