/**
 * The transport of inspection alone: UDP of 60-byte frames through a forwarding machine, every packet to a queue, a decider
 * that does next to nothing. Printed: verdicts per CPU second of the queue's threads (what the kernel does with an
 * accepted packet until it is at the server runs in the verdict's system call, and is in it), as ratios to a loop of single
 * receives in the same run; and how long a single packet takes to the server more than without a queue.
 *   node dist/bench/queue.js [--rounds 5] [--seconds 1] [--packets 2000]
 */
import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import koffi from 'koffi';
import { silentLog } from '../daemon/log.ts';
import { startInspection } from '../gateway/inspect/workers.ts';
import * as libc from '../kernel/libc.ts';
import { probeQueueRule, putQueueRule, removeQueueRule } from '../kernel/queue-rule.ts';
import { QueueSocket } from '../kernel/queue-socket.ts';
import type { NaiveData } from './queue-naive.ts';
import { inRounds, type Turn } from './rounds.ts';
import { AF_INET, SOCK_DGRAM, socketAddress } from './socket-address.ts';
import { median, ratioOfMedians } from './statistics.ts';

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '1' },
    packets: { type: 'string', default: '2000' },
    output: { type: 'string', default: 'bench/results/queue.json' },
  },
});
const [rounds, seconds, packets] = [Number(values.rounds), Number(values.seconds), Number(values.packets)];
const name = (host: string): string => `t-bench-queue-${host}-${process.pid}`;
const names = { client: name('c'), gateway: name('g'), server: name('s') };
const ADDRESSES = 16;
const client = (at: number): string => `10.9.0.${2 + at}`;
const SERVER = '10.9.1.2';
const PORT_FLOOD = 9;
const PORT_SINGLE = 10;
const FIRST_QUEUE = 7700;
const ASK = { mark: 0x10, mask: 0xff };

const sh = (command: string, input = ''): string => {
  const [program = '', ...args] = command.split(' ');
  return execFileSync('timeout', ['20', program, ...args], { encoding: 'utf8', input });
};

function build(): void {
  for (const name of Object.values(names)) sh(`ip netns add ${name}`);
  sh(
    'ip -batch -',
    `link add e0 netns ${names.client} type veth peer name inside netns ${names.gateway}
     link add e0 netns ${names.server} type veth peer name outside netns ${names.gateway}\n`,
  );
  const at = (name: string, lines: string[]) => sh(`ip -n ${name} -batch -`, `${lines.join('\n')}\n`);
  const own = Array.from({ length: ADDRESSES }, (_, host) => `addr add ${client(host)}/24 dev e0`);
  at(names.client, [...own, 'link set lo up', 'link set e0 up']);
  at(names.server, [`addr add ${SERVER}/24 dev e0`, 'link set lo up', 'link set e0 up']);
  at(names.gateway, ['addr add 10.9.0.1/24 dev inside', 'addr add 10.9.1.1/24 dev outside', 'link set inside up']);
  at(names.gateway, ['link set outside up']);
  at(names.client, ['route add default via 10.9.0.1']);
  at(names.server, ['route add default via 10.9.1.1']);
  sh(`ip netns exec ${names.gateway} sysctl -qw net.ipv4.ip_forward=1`);
  const mark = 'type filter hook forward priority mangle - 10; meta l4proto udp meta mark set 0x10;';
  sh(`ip netns exec ${names.gateway} nft -f -`, `table inet t {\nchain ask { ${mark} }\n}\n`);
  const drop = `type filter hook prerouting priority raw; udp dport ${PORT_FLOOD} drop;`;
  sh(`ip netns exec ${names.server} nft -f -`, `table inet t {\nchain sink { ${drop} }\n}\n`);
}

function tearDown(): void {
  for (const name of Object.values(names)) {
    try {
      sh(`ip netns del ${name}`);
    } catch {
      // It was never made.
    }
  }
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** CPU seconds of threads of this process. */
const cpuOf = (threads: string[]): number =>
  threads.reduce((sum, path) => sum + Number(readFileSync(`/proc/self/${path}/schedstat`, 'utf8').split(' ')[0]), 0) /
  1e9;

interface Subject {
  threads: string[];
  verdicts(): number;
  close(): Promise<void>;
}

async function transport(count: number, how?: 'alike' | 'waiting'): Promise<Subject> {
  const threads: string[] = [];
  const inspection = startInspection({
    queues: { first: FIRST_QUEUE, count },
    decider: { module: new URL('./queue-decider.js', import.meta.url).href, data: () => how },
    onOverload: 'Drop',
    limits: { holdMs: 3_600_000 },
    log: silentLog(),
    namespace: names.gateway,
    onMessage: (_, path) => threads.push(path as string),
  });
  await until(() => threads.length === count && inspection.status().every(({ state }) => state === 'serving'));
  return {
    threads,
    verdicts: () => inspection.status().reduce((sum, { counters }) => sum + counters.accepted, 0),
    close: () => inspection.close(),
  };
}

async function naive(): Promise<Subject> {
  const settings = { queue: FIRST_QUEUE, maxLength: 16_384, copyRange: 65_531, receiveBuffer: 16 << 20 };
  const socket = QueueSocket.open({ ...settings, namespace: names.gateway });
  libc.setReceiveTimeout(socket.fd, 200);
  const counts = new Int32Array(new SharedArrayBuffer(8));
  const workerData: NaiveData = { fd: socket.fd, queue: FIRST_QUEUE, counts };
  const worker = new Worker(new URL('./queue-naive.js', import.meta.url), { workerData, execArgv: [] });
  const threads = [await new Promise<string>((resolve) => worker.once('message', resolve))];
  const exited = new Promise((resolve) => worker.once('exit', resolve));
  return {
    threads,
    verdicts: () => Atomics.load(counts, 0),
    async close() {
      Atomics.store(counts, 1, 1);
      await exited;
      socket.close();
    },
  };
}

async function flood(
  sender: ChildProcess,
  subject: Subject,
): Promise<{ perCpu: number; perSecond: number; cpus: number }> {
  const [cpu, verdicts, start] = [cpuOf(subject.threads), subject.verdicts(), performance.now()];
  const done = new Promise((resolve) => sender.once('message', resolve));
  sender.send({ seconds });
  await done;
  const wall = (performance.now() - start) / 1000;
  const count = subject.verdicts() - verdicts;
  const used = cpuOf(subject.threads) - cpu;
  return { perCpu: count / used, perSecond: count / wall, cpus: used / wall };
}

/** Microseconds from send to receive of single packets, sorted. One thread does both; the queue's does what it measures. */
function single(): number[] {
  const open = (namespace: string, address: string, port: number) =>
    libc.withNamespace(namespace, () => {
      const fd = libc.socket(AF_INET, SOCK_DGRAM, 0);
      libc.bind(fd, socketAddress(address, port));
      return fd;
    });
  const [from, to] = [open(names.client, client(0), 0), open(names.server, SERVER, PORT_SINGLE)];
  const connect = koffi.load('libc.so.6').func('int connect(int, void*, uint32_t)');
  const target = socketAddress(SERVER, PORT_SINGLE);
  connect(from, target, target.length);
  libc.setReceiveTimeout(to, 1000);
  const [payload, buffer] = [new Uint8Array(18), new Uint8Array(64)];
  const times: number[] = [];
  for (let at = 0; at < packets; at++) {
    const start = process.hrtime.bigint();
    libc.send(from, payload);
    libc.receive(to, buffer, 0);
    times.push(Number(process.hrtime.bigint() - start) / 1000);
  }
  libc.close(from);
  libc.close(to);
  return times.sort((a, b) => a - b);
}

type Name =
  | 'single receives'
  | 'one queue'
  | 'one queue, all verdicts alike'
  | 'one queue, 1,000 waiting'
  | 'two queues';
const subjects: [name: Name, queues: number, start: () => Promise<Subject>][] = [
  ['single receives', 1, naive],
  ['one queue', 1, () => transport(1)],
  ['one queue, all verdicts alike', 1, () => transport(1, 'alike')],
  ['one queue, 1,000 waiting', 1, () => transport(1, 'waiting')],
  ['two queues', 2, () => transport(2)],
];

process.on('exit', tearDown);
build();
const capability = await probeQueueRule();
const sources = Array.from({ length: ADDRESSES }, (_, at) => client(at));
const sender = fork(
  new URL('./udp-sender.js', import.meta.url),
  [names.client, SERVER, String(PORT_FLOOD), String(ADDRESSES), ...sources],
  { execArgv: [] },
);
await new Promise((resolve) => sender.once('message', resolve));

type Sample = Awaited<ReturnType<typeof flood>>;
const samples = Object.fromEntries(subjects.map(([name]) => [name, [] as Sample[]])) as Record<Name, Sample[]>;
const quantile = (sorted: number[], share: number): number => sorted[Math.floor(sorted.length * share)] ?? 0;
const delays: Record<string, { p50: number; p99: number }[]> = { 'no queue': [] };
const note = (name: string) => {
  const times = single();
  const list = delays[name] ?? [];
  delays[name] = list;
  list.push({ p50: quantile(times, 0.5), p99: quantile(times, 0.99) });
};
/** Each begins anew, and so does its rule; without a queue there is only the single packet. */
async function measure({ subject: name, round }: Turn<Name | 'no queue'>): Promise<void> {
  const [, count, start] = subjects.find(([known]) => known === name) ?? [];
  if (count === undefined || start === undefined) {
    if (round >= 0) note(name);
    return;
  }
  await putQueueRule(capability, { ...ASK, first: FIRST_QUEUE, count, bypass: false }, names.gateway);
  const subject = await start();
  const sample = await flood(sender, subject);
  // The first round warms up and is not counted.
  if (round >= 0) {
    samples[name as Name].push(sample);
    await new Promise((resolve) => setTimeout(resolve, 100));
    note(name);
  }
  await subject.close();
  await removeQueueRule(capability, ASK, names.gateway);
}
await inRounds<Name | 'no queue', void>({
  subjects: ['no queue', ...subjects.map(([name]) => name)],
  rounds,
  mostRounds: rounds,
  decided: () => true,
  measure,
});
sender.disconnect();

const per = (name: Name, what: keyof Sample): number[] => samples[name].map((sample) => sample[what]);
/** A round is one slice. */
const slices = (name: Name): number[][] => per(name, 'perCpu').map((value) => [value]);
const thousands = (list: number[]): string => `${Math.round(median(list) / 1000)}k`;
for (const [name] of subjects) {
  const { ratio, low, high } = ratioOfMedians(slices(name), slices('single receives'));
  console.log(
    `${name.padEnd(30)} ${thousands(per(name, 'perCpu'))} verdicts per CPU second, ${thousands(per(name, 'perSecond'))} per second` +
      ` (${median(per(name, 'cpus')).toFixed(2)} CPUs); ${ratio.toFixed(2)} [${low.toFixed(2)}, ${high.toFixed(2)}]`,
  );
}
for (const [name, list] of Object.entries(delays)) {
  const [p50, p99] = [median(list.map((one) => one.p50)), median(list.map((one) => one.p99))];
  const added = p50 - median((delays['no queue'] ?? []).map((one) => one.p50));
  console.log(
    `${name.padEnd(30)} single packet p50 ${p50.toFixed(0)} us, p99 ${p99.toFixed(0)} us; added p50 ${added.toFixed(0)} us`,
  );
}
await mkdir(dirname(values.output), { recursive: true });
await writeFile(values.output, `${JSON.stringify({ rounds, seconds, packets, samples, delays }, null, 1)}\n`);
