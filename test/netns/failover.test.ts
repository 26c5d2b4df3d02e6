/**
 * Gateways fail and nobody's connection does (design §7): the default lab, whose pool is changed to elect who has a shard. A pod
 * of billing has connections and streams of datagrams through one shard, over both families; the gateway that has it is
 * killed with its links cut, comes back, is stopped, goes on. Each time the connections go on with their egress IP and
 * translated port, another gateway has the shard, and the firewall upstream sees no other source.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { PORT_METRICS } from '../../api/names.ts';
import { decidedMark } from '../../gateway/marks.ts';
import { listFlows } from '../../kernel/conntrack.ts';
import { firewallView } from '../../lab/checks.ts';
import { down } from '../../lab/down.ts';
import { fail, heal } from '../../lab/fault.ts';
import { inNamespace, must, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { signal } from '../../lab/process.ts';
import { awaitReady } from '../../lab/ready.ts';
import { up } from '../../lab/up.ts';
import { mustLoadWorld } from '../../lab/world.ts';
import { sluice } from '../sluice.ts';
import type { Seen } from './failover-client.ts';

const name = `e${process.pid}`;
const place = placeOf(name);
const gateways = ['gw-a', 'gw-b', 'gw-c'];
const SHARDS = 6;
const WAIT_MS = 60_000;
/** Of each family. */
const CONNECTIONS = 20;
const egress = ['203.0.113.101', '2001:db8:113::101'];

async function until<T>(what: string, look: () => Promise<T | undefined | false>): Promise<T> {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(100);
  }
}

/** Which of these a gateway's machine has. */
async function has(gateway: string, addresses: readonly string[]): Promise<string[]> {
  const text = await must(['ip', '-n', place.namespace(gateway), '-j', 'addr', 'show']);
  const links = JSON.parse(text) as { addr_info: { local?: string }[] }[];
  const there = new Set(links.flatMap(({ addr_info }) => addr_info.map(({ local = '' }) => local)));
  return addresses.filter((address) => there.has(address));
}
/** Gateways that have all of billing's egress IPs, and no others any. */
async function holder(among = gateways): Promise<string | undefined> {
  const all = await Promise.all(
    among.map(async (gateway) => ({ gateway, count: (await has(gateway, egress)).length })),
  );
  const some = all.filter(({ count }) => count > 0);
  return some.length === 1 && some[0]?.count === egress.length ? some[0].gateway : undefined;
}

async function metric(gateway: string, which: RegExp): Promise<number | undefined> {
  const argv = ['curl', '-s', '-m', '5', `http://127.0.0.1:${PORT_METRICS.gateway}/metrics`];
  const { stdout } = await run(inNamespace(place.namespace(gateway), argv));
  const found = which.exec(stdout)?.[1];
  return found === undefined ? undefined : Number(found);
}
async function heldInAll(): Promise<number> {
  const counts = await Promise.all(
    gateways.map((gateway) => metric(gateway, /^sluice_gateway_shards_held\{[^}]*\} (\d+)$/m)),
  );
  return counts.reduce<number>((sum, count) => sum + (count ?? 0), 0);
}

/** With which addresses and ports the datagrams leave, by a gateway's connection table. */
async function translations(gateway: string, ports: Record<string, number>): Promise<string[]> {
  const flows = await listFlows({ namespace: place.namespace(gateway), mark: decidedMark });
  return flows
    .filter(({ protocol, family, original }) => protocol === 17 && original.sourcePort === ports[family])
    .map(({ reply }) => `${reply.destination} ${reply.destinationPort}`)
    .sort();
}

class Client {
  readonly child: ChildProcess;
  readonly #lines: string[] = [];

  constructor(pod: string) {
    const script = fileURLToPath(new URL('./failover-client.js', import.meta.url));
    const argv = inNamespace(place.namespace(pod), [process.execPath, script, String(CONNECTIONS)]);
    this.child = spawn(argv[0] ?? '', argv.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] });
    if (this.child.stdout) createInterface({ input: this.child.stdout }).on('line', (line) => this.#lines.push(line));
  }

  async ready(): Promise<void> {
    await until('all connections have an answer', async () => this.#lines.shift() !== undefined);
  }

  async seen(): Promise<Seen> {
    this.child.stdin?.write('\n');
    return JSON.parse(await until('the client answers', async () => this.#lines.shift())) as Seen;
  }
}

let client: Client | undefined;
t.setTimeout(570_000);
t.teardown(async () => {
  client?.child.kill('SIGKILL');
  await down(name);
});

/** Nothing was lost since the last look, and nothing is silent any more. */
async function goesOn(t: Test, client: Client, what: string): Promise<Seen> {
  // Until it is heard again: what is silent for good is never below.
  let worst = { silenceMs: 0, datagramSilenceMs: 0 };
  const seen = await until(`${what}: all are heard again`, async () => {
    const now = await client.seen();
    worst = {
      silenceMs: Math.max(worst.silenceMs, now.silenceMs),
      datagramSilenceMs: Math.max(worst.datagramSilenceMs, now.datagramSilenceMs),
    };
    const heard = now.living < 2 * CONNECTIONS || Math.max(now.silenceMs, now.datagramSilenceMs) < 500;
    return heard ? now : undefined;
  });
  t.same({ living: seen.living, ended: seen.ended }, { living: 2 * CONNECTIONS, ended: [] }, `${what}: none was lost`);
  t.comment(`${what}: worst connection ${worst.silenceMs} ms, datagrams ${worst.datagramSilenceMs} ms`);
  return seen;
}

t.test('a gateway fails, and connections go on', async (t) => {
  await up({ name });
  await awaitReady(await mustLoadWorld(name));
  const first = await until('billing has a gateway', holder);

  // Connections that begin while a shard stays with its first gateway go on while it becomes an election's.
  client = new Client('pay-1');
  await client.ready();
  const file = join(place.manifests, '10-network-team.yaml');
  const text = await readFile(file, 'utf8');
  const edited = text.replace('  defaultAction: Drop\n', '  defaultAction: Drop\n  vrrp: { advertIntervalMs: 100 }\n');
  t.not(edited, text);
  await writeFile(file, edited);
  await until('three gateways elect', async () => {
    const counts = await Promise.all(
      gateways.map((gateway) =>
        metric(gateway, /^sluice_gateway_elections_total\{state="Backup",cause="startup"[^}]*\} (\d+)$/m),
      ),
    );
    return counts.every((count) => count !== undefined) ? true : undefined;
  });
  await until('every shard is held once', async () => (await heldInAll()) === SHARDS);
  t.equal(await until('billing has a gateway', holder), first, 'the first of the order has the shard, as before');
  await goesOn(t, client, 'the pool elects from now on');

  const replicated = async (gateway: string): Promise<string[] | undefined> => {
    const { ports } = await client!.seen();
    const found = await translations(gateway, ports);
    return found.length === 2 ? found : undefined;
  };
  const before = await until('both streams are known', () => replicated(first));
  for (const gateway of gateways.filter((one) => one !== first)) {
    t.same(await until(`${gateway} knows them`, () => replicated(gateway)), before, `${gateway} has their translation`);
  }

  await t.test('killed, with its links cut', async (t) => {
    // In this order: who loses its carrier before says so.
    await fail(name, first, 'process');
    await fail(name, first, 'link');
    const rest = gateways.filter((gateway) => gateway !== first);
    const second = await until('another has the shard', () => holder(rest));
    const { ports } = await goesOn(t, client!, `${first} killed, ${second} has it`);
    t.same(await translations(second, ports), before, 'with the same addresses and ports');
    await until('addresses of the dead are gone', async () => (await has(first, egress)).length === 0);

    await heal(name, first, 'host');
    await until(`${first} has it again`, async () => (await holder()) === first);
    await goesOn(t, client!, `${first} is back`);
    t.same(await translations(first, ports), before, 'with the same addresses and ports');
  });

  await t.test('stopped, and going on', async (t) => {
    const { processes } = await mustLoadWorld(name);
    const program = processes.find(({ host }) => host === first);
    if (program === undefined) throw new Error(`no program on ${first}`);
    signal(program, 'SIGSTOP');
    t.teardown(() => signal(program, 'SIGCONT'));
    const rest = gateways.filter((gateway) => gateway !== first);
    const second = await until('another has the shard', () => holder(rest));
    const { ports } = await goesOn(t, client!, `${first} stopped, ${second} has it`);
    t.same(await translations(second, ports), before, 'with the same addresses and ports');
    await until('addresses of the stopped are gone', async () => (await has(first, egress)).length === 0);
    signal(program, 'SIGCONT');
    await until(`${first} has it again`, async () => (await holder()) === first);
    await goesOn(t, client!, `${first} goes on`);
    t.same(await translations(first, ports), before, 'with the same addresses and ports');
  });

  await t.test('drained, and not', async (t) => {
    const state = place.state(first);
    const said = await sluice('drain', '--state', state);
    t.same([said.code, said.err], [0, ''], said.out);
    const second = await until('another has the shard', holder);
    t.not(second, first);
    const { ports } = await goesOn(t, client!, `${first} drained, ${second} has it`);
    t.same(await translations(second, ports), before, 'with the same addresses and ports');
    t.equal((await sluice('undrain', '--state', state)).code, 0);
    await until(`${first} has it again`, async () => (await holder()) === first);
    await goesOn(t, client!, `${first} undrained`);
    t.equal((await sluice('drain', '--state', place.state('ctl'))).code, 1, 'there is no gateway');
  });

  const firewall = await firewallView(name);
  t.same(firewall.foreign, [], 'the firewall saw no foreign source');
});
