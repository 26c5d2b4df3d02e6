/**
 * Connection state from one gateway to another, in two processes with an empty network namespace each and mutual TLS on
 * loopback between them. The sender is told of flows as by the kernel's events; the receiver puts them into its kernel.
 *   bulk    the whole table to one that comes late: until all of it is in the kernel there
 *   stream  flows that begin and end, so many a second: how long until the kernel there has them, how many wait, CPU per flow
 *   node dist/bench/replication.js [--flows 200000] [--rate 5000] [--seconds 10] [--output FILE]
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { createCa, issueCertificate } from '../daemon/certs.ts';
import { createLog } from '../daemon/log.ts';
import { Replicator } from '../ha/replicator.ts';
import { walk } from '../kernel/conntrack.ts';
import { FlowInjector } from '../kernel/conntrack-inject.ts';
import { run } from '../kernel/run.ts';
import type { ConntrackEntry } from '../wire/conntrack.ts';
import { median } from './statistics.ts';

const { values } = parseArgs({
  options: {
    flows: { type: 'string', default: '200000' },
    rate: { type: 'string', default: '5000' },
    seconds: { type: 'string', default: '10' },
    receiver: { type: 'string' },
    output: { type: 'string' },
  },
});
const SHARD = 'main/0';
const PORT = 17_796;
const own = `127.96.${process.pid % 250}`;
const [flows, rate, seconds] = [Number(values.flows), Number(values.rate), Number(values.seconds)];

/** The receiver's answers to `say()`. */
interface Said {
  entries: number;
  cpuSeconds: number;
  /** For which its main thread was ready to run, and had no processor. */
  waited: number;
  refused: Record<string, number>;
}

function entryOf(n: number): ConntrackEntry {
  const [source, egress] = [`10.${(n >> 16) & 255}.${(n >> 8) & 255}.${n & 255}`, `203.0.113.${(n >> 15) & 255}`];
  const ports = { sourcePort: 40_000, destinationPort: 443 };
  const zero = { original: 0, reply: 0 };
  return {
    family: 4,
    id: n,
    protocol: 6,
    original: { source, destination: '198.51.100.80', ...ports },
    reply: { source: '198.51.100.80', destination: egress, sourcePort: 443, destinationPort: 1024 + (n & 0x7fff) },
    mark: 0x80000100,
    status: 0,
    packets: zero,
    bytes: zero,
    zone: 0,
  };
}

async function start(side: 'gw-a' | 'gw-b', dir: string, base: string, namespace?: string) {
  const injector = FlowInjector.open(namespace);
  const options = namespace === undefined ? {} : { namespace };
  const replicator = new Replicator({
    name: side,
    certs: join(dir, side),
    port: PORT,
    log: createLog('bench', 'warn'),
    kernel: { apply: (changes) => injector.apply(changes), walk: (visit) => walk(options, visit) },
    shardOf: () => SHARD,
    isDecided: () => true,
  });
  const [address, other] = side === 'gw-a' ? [`${base}.1`, `${base}.2`] : [`${base}.2`, `${base}.1`];
  const others = new Map([[side === 'gw-a' ? 'gw-b' : 'gw-a', other]]);
  return { replicator, connect: () => replicator.place({ address, others }) };
}

/** Of this thread, so far, on a machine that others use too. */
const waitedSeconds = (): number => Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[1]) / 1e9;

async function receive(told: string): Promise<void> {
  const { dir, base, namespace } = JSON.parse(told) as { dir: string; base: string; namespace: string };
  const { replicator, connect } = await start('gw-b', dir, base, namespace);
  await replicator.shards(new Map(), [SHARD]);
  let began = process.cpuUsage();
  let waited = waitedSeconds();
  process.on('message', (message) => {
    if (message === 'connect') {
      began = process.cpuUsage();
      waited = waitedSeconds();
      connect();
      return;
    }
    const { user, system } = process.cpuUsage(began);
    began = process.cpuUsage();
    const entries = replicator.held(SHARD)?.flows.size ?? 0;
    const said: Said = {
      entries,
      cpuSeconds: (user + system) / 1e6,
      waited: waitedSeconds() - waited,
      refused: replicator.counts.refused,
    };
    waited = waitedSeconds();
    process.send?.(said);
  });
  process.on('disconnect', () => process.exit(0));
  process.send?.('ready');
}

async function ask(child: ChildProcess): Promise<Said> {
  child.send('say');
  const [said] = (await once(child, 'message')) as [Said];
  return said;
}

const count = async (namespace: string): Promise<number> =>
  Number(await run(['ip', 'netns', 'exec', namespace, 'conntrack', '-C'], { op: 'conntrack -C' }));

async function measure(dir: string, namespace: string): Promise<void> {
  const child = fork(fileURLToPath(import.meta.url), ['--receiver', JSON.stringify({ dir, base: own, namespace })]);
  try {
    await once(child, 'message');
    const { replicator, connect } = await start('gw-a', dir, own);
    await replicator.shards(new Map([[SHARD, ['gw-b']]]), []);
    const told = process.cpuUsage();
    for (let n = 0; n < flows; n++) replicator.began(entryOf(n));
    const { user } = process.cpuUsage(told);
    const feed = () => replicator.sending(SHARD).get('gw-b');
    const until = async (done: () => boolean): Promise<void> => {
      while (!done()) await delay(1);
    };
    console.log(`told of ${flows} flows: ${(user / flows).toFixed(2)} µs of CPU each`);
    const began = performance.now();
    const cpu = process.cpuUsage();
    connect();
    child.send('connect');
    await until(() => feed()?.synced === true);
    const bulk = performance.now() - began;
    const spent = process.cpuUsage(cpu);
    const said = await ask(child);
    console.log(
      `bulk: ${flows} flows in ${bulk.toFixed(0)} ms (the receiver waited ${(1e3 * said.waited).toFixed(0)} ms of them for a processor), ${await count(namespace)} in the kernel; ` +
        `CPU µs a flow: ${((spent.user + spent.system) / flows).toFixed(2)} sender, ${((said.cpuSeconds * 1e6) / flows).toFixed(2)} receiver; refused ${JSON.stringify(said.refused)}`,
    );

    const before = process.cpuUsage();
    const started = performance.now();
    const waits: number[] = [];
    const behind: number[] = [];
    let made = 0;
    let generated = 0;
    while (performance.now() - started < seconds * 1_000) {
      const due = Math.floor(((performance.now() - started) / 1_000) * rate);
      const since = process.cpuUsage();
      for (; made < due; made++) {
        replicator.began(entryOf(flows + made));
        // As many end.
        replicator.ended(entryOf(made % flows));
      }
      const { user, system } = process.cpuUsage(since);
      generated += user + system;
      const asked = performance.now();
      behind.push(feed()?.waiting ?? 0);
      await delay(5);
      if (waits.length * 50 < performance.now() - started) {
        await until(() => feed()?.waiting === 0 && feed()?.underway === 0);
        waits.push(performance.now() - asked);
      }
    }
    await until(() => feed()?.waiting === 0 && feed()?.underway === 0);
    const after = process.cpuUsage(before);
    const last = await ask(child);
    waits.sort((a, b) => a - b);
    console.log(
      `stream: ${made} flows began and as many ended in ${seconds} s (${Math.round(made / seconds)}/s); ` +
        `in the kernel there after ${median(waits).toFixed(1)} ms (median), ${waits.at(-1)?.toFixed(1)} ms (most); ` +
        `waiting at most ${Math.max(...behind)}; passes ${feed()?.passes}; ` +
        `CPU µs a flow and its end: ${((after.user + after.system) / made).toFixed(1)} sender (of which told ${(generated / made).toFixed(1)}), ` +
        `${((last.cpuSeconds * 1e6) / made).toFixed(1)} receiver; ${await count(namespace)} in the kernel, ${last.entries} held`,
    );
    await replicator.close();
    if (values.output === undefined) return;
    const of = (cpu: NodeJS.CpuUsage): number => cpu.user + cpu.system;
    const figures = {
      bulk: { milliseconds: bulk, waitedMilliseconds: 1e3 * said.waited },
      bulkCpuMicroseconds: { sender: of(spent) / flows, receiver: (said.cpuSeconds * 1e6) / flows },
      stream: { waits, mostWaiting: Math.max(...behind), perSecond: made / seconds },
      streamCpuMicroseconds: { sender: of(after) / made, receiver: (last.cpuSeconds * 1e6) / made },
    };
    await writeFile(values.output, `${JSON.stringify({ flows, rate, seconds, ...figures }, null, 1)}\n`);
  } finally {
    child.disconnect();
  }
}

if (values.receiver !== undefined) await receive(values.receiver);
else {
  const dir = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  const namespace = `t-bench-repl-${process.pid}`;
  try {
    await run(['ip', 'netns', 'add', namespace], { op: 'netns' });
    await createCa(join(dir, 'ca'));
    for (const name of ['gw-a', 'gw-b']) {
      await issueCertificate({ caDir: join(dir, 'ca'), outDir: join(dir, name), role: 'gateway', name, addresses: [] });
    }
    await measure(dir, namespace);
  } finally {
    await run(['ip', 'netns', 'del', namespace], { op: 'netns' }).catch(() => undefined);
    await rm(dir, { recursive: true });
  }
}
