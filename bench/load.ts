/**
 * The loads: one TCP stream of 64 KB segments, one of MTU-sized packets, a flood of small UDP datagrams in flows that
 * stand, and TCP connections that are opened and closed. Client, connector and sender run on CPU 0, the TCP server on CPU 1, on a machine that has two: where threads land changes the figures.
 * `iperf3 -C cubic`: the kernel's default (bbr here) halves and spreads TCP's rate on veth.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { Family } from '../api/plan.ts';
import { run } from '../kernel/run.ts';
import { SERVER, TCP_PORT, UDP_PORT } from './plan.ts';
import type { Requested } from './requester.ts';

/** Where a load runs: from the namespace `client` to the namespace `server`, through whatever is in force between them. */
export interface Place {
  readonly subject: string;
  namespace(host: 'client' | 'node' | 'server'): string;
  /** Packets of `udp` that came, so far. */
  received(): Promise<number>;
  /** Segments of up to 64 KB, or one packet each from the client on. */
  segmentation(on: boolean): Promise<void>;
}

/** What counts the CPU time of processes that write themselves into `procs`. */
export interface Meter {
  readonly procs: string;
  seconds(): number;
}

export type Load = 'tcp' | 'tcp-8' | 'tcp-packets' | 'tcp-packets-8' | 'udp' | 'frames' | 'connect' | 'request';
/** Of iperf3: how many streams, and whether each packet goes the whole way by itself. */
const streamsOf: Partial<Record<Load, { streams: number; packets: boolean }>> = {
  tcp: { streams: 1, packets: false },
  'tcp-8': { streams: 8, packets: false },
  'tcp-packets': { streams: 1, packets: true },
  'tcp-packets-8': { streams: 8, packets: true },
};
export const isStream = (load: Load): boolean => streamsOf[load] !== undefined;
export const unitOf: Record<Load, string> = {
  tcp: 'Gbit',
  'tcp-8': 'Gbit',
  'tcp-packets': 'Gbit',
  'tcp-packets-8': 'Gbit',
  udp: 'kpackets',
  frames: 'kpackets',
  connect: 'kconnections',
  request: 'krequests',
};
/** Those of bench/forwarding.ts. */
const existing: readonly Load[] = ['tcp', 'tcp-packets', 'udp', 'connect'];
/** Loads that can be measured in slices of a fraction of a second. */
export const sliced: readonly Load[] = ['udp', 'connect'];
/** Node starts in a tenth of a second, where nobody else is. */
const START_MS = 60_000;
/** A rule of every namespace permits it to the server. */
const CONNECT_PORT = 443;

export interface Sample {
  /** Gbit, thousand packets that arrived or thousand connections, per second of wall clock and per CPU second. */
  perSecond: number;
  perCpuSecond: number;
  /** Share of the datagrams that did not arrive. */
  lost: number;
}

/** What was counted in some seconds. */
export interface Count {
  /** Gbit, thousand packets that arrived or thousand connections. */
  amount: number;
  /** The same of what did not. */
  lost: number;
  seconds: number;
  cpuSeconds: number;
  /** Of `request`, microseconds. */
  p50?: number;
  p99?: number;
}

export function sampleOf({ amount, lost, seconds, cpuSeconds }: Count): Sample {
  return { perSecond: amount / seconds, perCpuSecond: amount / cpuSeconds, lost: lost / (amount + lost) };
}

const pin = (cpu: number): string[] => (availableParallelism() > 1 ? ['taskset', '-c', String(cpu)] : []);

/** What runs beside a topology as long as it stands. */
export class LoadGenerator {
  readonly #topology: Place;
  readonly #meter: Meter;
  readonly #pods: Record<Family, string[]>;
  readonly #senders = new Map<Family, ChildProcess>();
  #frameSource: ChildProcess | undefined;
  readonly #connectors = new Map<Family, ChildProcess>();
  readonly #requesters = new Map<Family, ChildProcess>();
  /** All that were started. */
  readonly #children: ChildProcess[] = [];

  constructor(topology: Place, meter: Meter, pods: Record<Family, string[]>) {
    this.#topology = topology;
    this.#meter = meter;
    this.#pods = pods;
  }

  async start(families: Family[], flows: number, loads: readonly Load[] = existing): Promise<void> {
    const server = ['ip', 'netns', 'exec', this.#topology.namespace('server'), 'iperf3', '-s', '-p', String(TCP_PORT)];
    this.#counted([...pin(1), ...server]);
    await this.#untilListening();
    if (loads.includes('frames')) this.#frameSource = await this.#startFrames(flows);
    for (const family of families) {
      const where = [this.#topology.namespace('client'), SERVER[family], String(UDP_PORT), String(flows)];
      const sender = this.#counted(
        [...pin(0), process.execPath, programOf('udp-sender'), ...where, ...this.#pods[family]],
        true,
      );
      this.#senders.set(family, sender);
      await answer(sender, START_MS);
      if (loads.includes('connect')) this.#connectors.set(family, await this.#bothEnds('connector', family));
      if (loads.includes('request')) this.#requesters.set(family, await this.#bothEnds('requester', family));
    }
  }

  /** One that ended (a connection was refused where a subject failed) begins anew: others have their turns. */
  async #living(
    program: 'connector' | 'requester',
    among: Map<Family, ChildProcess>,
    family: Family,
  ): Promise<ChildProcess> {
    const known = among.get(family);
    if (known === undefined) throw new TypeError(`${program} not started`);
    if (known.exitCode === null && known.signalCode === null) return known;
    const child = await this.#bothEnds(program, family);
    among.set(family, child);
    return child;
  }

  /** A program that is client and server. */
  async #bothEnds(program: 'connector' | 'requester', family: Family): Promise<ChildProcess> {
    const ends = [this.#topology.namespace('client'), this.#topology.namespace('server')];
    const to = [SERVER[family], String(CONNECT_PORT), ...this.#pods[family]];
    const child = this.#counted([...pin(0), process.execPath, programOf(program), ...ends, ...to], true);
    await answer(child, START_MS);
    return child;
  }

  measure(load: Load, family: Family, seconds: number): Promise<Count> {
    if (load === 'udp') return this.#flood(this.#senders.get(family), seconds);
    if (load === 'frames') return this.#flood(this.#frameSource, seconds);
    if (load === 'request') return this.#request(family, seconds);
    return load === 'connect' ? this.#connect(family, seconds) : this.#stream(load, family, seconds);
  }

  async #connect(family: Family, seconds: number): Promise<Count> {
    const connector = await this.#living('connector', this.#connectors, family);
    const cpuBefore = this.#meter.seconds();
    connector.send({ seconds });
    const made = (await answer(connector, 1000 * seconds + 10_000)) as { connections: number; seconds: number };
    const cpu = this.#meter.seconds() - cpuBefore;
    return { amount: made.connections / 1000, lost: 0, seconds: made.seconds, cpuSeconds: cpu };
  }

  async #request(family: Family, seconds: number): Promise<Count> {
    const requester = await this.#living('requester', this.#requesters, family);
    const cpuBefore = this.#meter.seconds();
    requester.send({ seconds });
    const made = (await answer(requester, 1000 * seconds + 10_000)) as Requested;
    const cpuSeconds = this.#meter.seconds() - cpuBefore;
    const { p50, p99 } = made;
    return { amount: made.requests / 1000, lost: 0, seconds: made.seconds, cpuSeconds, p50, p99 };
  }

  /** Where frames of the client come in, as if it had sent them. */
  async #startFrames(flows: number): Promise<ChildProcess> {
    const mac = async (host: 'client' | 'node'): Promise<string> => {
      const text = await run(['ip', '-j', '-n', this.#topology.namespace(host), 'link', 'show', 'pod'], { op: 'link' });
      return (JSON.parse(text) as { address: string }[])[0]?.address ?? '';
    };
    const frame = [await mac('node'), await mac('client'), SERVER[4], String(UDP_PORT), String(flows)];
    const where = [this.#topology.namespace('node'), 'pod', ...frame, ...this.#pods[4]];
    const source = this.#counted([...pin(0), process.execPath, programOf('frame-source'), ...where], true);
    await answer(source, START_MS);
    return source;
  }

  async #flood(sender: ChildProcess | undefined, seconds: number): Promise<Count> {
    if (sender === undefined) throw new TypeError('sender not started');
    const arrivedBefore = await this.#topology.received();
    const cpuBefore = this.#meter.seconds();
    sender.send({ seconds });
    const sent = (await answer(sender, 1000 * seconds + 10_000)) as { sent: number; seconds: number };
    const cpu = this.#meter.seconds() - cpuBefore;
    const arrived = (await this.#topology.received()) - arrivedBefore;
    if (arrived === 0) throw new Error(`${this.#topology.subject}: no datagram arrived with a translated source`);
    return { amount: arrived / 1000, lost: (sent.sent - arrived) / 1000, seconds: sent.seconds, cpuSeconds: cpu };
  }

  async #stream(load: Load, family: Family, seconds: number): Promise<Count> {
    const { streams = 1, packets = false } = streamsOf[load] ?? {};
    await this.#topology.segmentation(!packets);
    const client = ['ip', 'netns', 'exec', this.#topology.namespace('client'), 'iperf3', '-C', 'cubic', '-J'];
    const ends = [
      '-c',
      SERVER[family],
      '-p',
      String(TCP_PORT),
      '-B',
      this.#pods[family][0] ?? '',
      ...(streams > 1 ? ['-P', String(streams)] : []),
      '-t',
      // A fraction would be cut off, and 0 means for ever.
      String(Math.max(1, Math.round(seconds))),
    ];
    const cpuBefore = this.#meter.seconds();
    const report = await run(this.#countedCommand([...pin(0), ...client, ...ends]), {
      op: 'iperf3',
      timeoutMs: 1000 * seconds + 15_000,
    });
    const cpu = this.#meter.seconds() - cpuBefore;
    const { end } = JSON.parse(report) as { end: { sum_received: { bytes: number; seconds: number } } };
    const { bytes, seconds: lasted } = end.sum_received;
    return { amount: (8 * bytes) / 1e9, lost: 0, seconds: lasted, cpuSeconds: cpu };
  }

  async close(): Promise<void> {
    for (const child of this.#children) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
  }

  /** Joins the meter's group before it becomes the program. */
  #countedCommand(command: string[]): string[] {
    return ['sh', '-c', 'echo $$ > "$0" && exec "$@"', this.#meter.procs, ...command];
  }

  #counted(command: string[], ipc = false): ChildProcess {
    const [program = '', ...args] = this.#countedCommand(command);
    const stdio = ['ignore', 'ignore', 'inherit', ...(ipc ? (['ipc'] as const) : [])] as (
      | 'ignore'
      | 'inherit'
      | 'ipc'
    )[];
    const child = spawn(program, args, { stdio });
    this.#children.push(child);
    return child;
  }

  async #untilListening(): Promise<void> {
    const namespace = this.#topology.namespace('server');
    for (let attempt = 0; attempt < 400; attempt++) {
      const sockets = await run(['ip', 'netns', 'exec', namespace, 'ss', '-Hltn', `sport = :${TCP_PORT}`], {
        op: 'ss',
      });
      if (sockets !== '') return;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error('iperf3 -s does not listen');
  }
}

const programOf = (name: string): string => fileURLToPath(new URL(`./${name}.js`, import.meta.url));

async function answer(child: ChildProcess, timeoutMs: number): Promise<unknown> {
  const stop = new AbortController();
  const { signal } = stop;
  const gone = once(child, 'exit', { signal }).then(() => {
    throw new Error(
      `${child.spawnargs.find((arg) => arg.endsWith('.js'))} ended: ${child.exitCode ?? child.signalCode}`,
    );
  });
  const late = setTimeout(() => stop.abort(new Error(`nothing heard in ${timeoutMs} ms`)), timeoutMs);
  try {
    const [message] = await Promise.race([once(child, 'message', { signal }), gone]);
    return message;
  } finally {
    clearTimeout(late);
    gone.catch(() => undefined);
    stop.abort();
  }
}
