/**
 * The election on the real kernel, and against Debian's keepalived.
 *
 *   t-vr-a-PID ── e0 ── inside  bridge, t-vr-s-PID ── e0 ── t-vr-b-PID
 *              └─ e1 ── outside bridge             └─ e1 ─┘
 *
 * a and b are gateways: 10.9.0.1 and .2, fe80::1 and ::2 inside; 203.0.113.1 and .2 outside. A shard has 10.9.0.64 and
 * fe80::64, fd09::64 inside, 203.0.113.101 and 2001:db8:113::101 outside. In the first tests b runs keepalived, and
 * only the inside counts. tcpdump hears all that is said inside, and says at the end whether it understood it.
 */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { ElectionCounts, ThreadReport } from '../../ha/election-messages.ts';
import type { ElectionConfig } from '../../ha/elections.ts';
import { FENCE_SECONDS } from '../../ha/holding.ts';
import type { PeerOrder } from './election-peer.ts';

const HUB = `t-vr-s-${process.pid}`;
const A = `t-vr-a-${process.pid}`;
const B = `t-vr-b-${process.pid}`;
const namespaces = [HUB, A, B];
const directory = mkdtempSync(join(tmpdir(), 'sluice-vrrp-'));
const NEIGHBOUR = '10.9.0.9';
const insideMac: Record<string, string> = { [A]: '02:00:00:00:00:01', [B]: '02:00:00:00:00:02' };
const VRID = 51;
/** Ten times keepalived's shortest, so that a busy machine misses none. */
const INTERVAL_MS = 100;
const WAIT_MS = 60_000;
const inside4 = ['10.9.0.64'];
const inside6 = ['fe80::64', 'fd09::64'];
const outside = ['203.0.113.101', '2001:db8:113::101'];
const number: Record<string, number> = { [A]: 1, [B]: 2 };

const run = (command: string, input?: string): string => {
  const [program = '', ...args] = command.split(' ');
  return execFileSync('timeout', ['60', program, ...args], {
    encoding: 'utf8',
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(input === undefined ? {} : { input }),
  });
};
const within = (namespace: string, command: string, input?: string) =>
  run(`ip netns exec ${namespace} ${command}`, input);

/** `what` may say more once it was in vain. */
async function until(what: string | (() => string), holds: () => boolean, waitMs = WAIT_MS): Promise<void> {
  const end = Date.now() + waitMs;
  while (!holds()) {
    if (Date.now() > end) throw new Error(`waited in vain: ${typeof what === 'string' ? what : what()}`);
    await sleep(20);
  }
}

function setUp(): void {
  for (const namespace of namespaces) run(`ip netns add ${namespace}`);
  within(HUB, 'ip -batch -', 'link add br0 type bridge mcast_snooping 0\nlink add br1 type bridge mcast_snooping 0\n');
  for (const gateway of [A, B]) {
    const end = gateway === A ? 'a' : 'b';
    for (const link of [0, 1]) {
      const mac = `02:00:00:00:0${link}:0${number[gateway]}`;
      run(`ip link add ${end}${link} netns ${HUB} type veth peer name e${link} address ${mac} netns ${gateway}`);
      within(HUB, 'ip -batch -', `link set ${end}${link} master br${link} up\n`);
    }
    const n = number[gateway];
    within(
      gateway,
      'ip -batch -',
      `link set lo up\nlink set e0 addrgenmode none\nlink set e1 addrgenmode none\nlink set e0 up\nlink set e1 up\n` +
        `addr add 10.9.0.${n}/24 dev e0\naddr add fe80::${n}/64 dev e0 nodad\naddr add fd09::${n}/64 dev e0 nodad\n` +
        `addr add 203.0.113.${n}/24 dev e1\naddr add fe80::${n}/64 dev e1 nodad\n`,
    );
  }
  within(HUB, 'ip -batch -', `link set br0 up\nlink set br1 up\naddr add ${NEIGHBOUR}/24 dev br0\n`);
}

/** Where the hub, a neighbour on the inside, believes the next hop to be. */
const believed = (): string => {
  const [entry] = JSON.parse(within(HUB, `ip -j neigh show ${inside4[0]} dev br0`)) as { lladdr?: string }[];
  return entry?.lladdr ?? 'nowhere';
};
/** Has it ask for the next hop; the echo's answer is of no account. */
const ask = (): void => {
  try {
    within(HUB, `ping -c 1 -W 1 ${inside4[0]}`);
  } catch {}
};

/** Addresses of the shard that a gateway has now. */
function held(gateway: string): string[] {
  const shard = new Set([...inside4, ...inside6, ...outside]);
  const links = JSON.parse(within(gateway, 'ip -j addr show')) as { addr_info: { local?: string }[] }[];
  return links
    .flatMap(({ addr_info }) => addr_info.map(({ local = '' }) => local))
    .filter((local) => shard.has(local))
    .sort();
}
/** Of the shard's addresses. */
function lifetimes(gateway: string): { flags: string[]; valid: number; preferred: number }[] {
  type Info = Record<string, unknown> & { local?: string; family: string };
  const links = JSON.parse(within(gateway, 'ip -j addr show')) as { addr_info: Info[] }[];
  return links
    .flatMap(({ addr_info }) => addr_info)
    .filter(({ local = '' }) => allHeld.includes(local))
    .map((info) => ({
      flags: [info.family === 'inet' ? 'v4' : 'v6', ...Object.keys(info).filter((key) => info[key] === true)],
      valid: Number(info.valid_life_time),
      preferred: Number(info.preferred_life_time),
    }));
}
const insideHeld = [...inside4, ...inside6].sort();
const allHeld = [...insideHeld, ...outside].sort();
const holds = (gateway: string, what: string[]) => held(gateway).join() === [...what].sort().join();

async function comesToHold(t: Test, gateway: string, what: string[], name: string): Promise<void> {
  await until(name, () => holds(gateway, what));
  t.pass(name);
}

const children = new Set<ChildProcess>();
const track = (child: ChildProcess): ChildProcess => {
  children.add(child);
  child.on('exit', () => children.delete(child));
  return child;
};
const ended = (child: ChildProcess) =>
  new Promise<void>((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve();
    else child.on('exit', () => resolve());
  });

class Peer {
  readonly reports: (ThreadReport | { kind: 'closed' } | { kind: 'end'; error: string })[] = [];
  readonly child: ChildProcess;

  constructor(gateway: string, links: Record<string, string>) {
    const script = fileURLToPath(new URL('./election-peer.js', import.meta.url));
    const argv = ['netns', 'exec', gateway, process.execPath, script, JSON.stringify(links)];
    this.child = track(spawn('ip', argv, { stdio: ['pipe', 'pipe', 'inherit'] }));
    createInterface({ input: this.child.stdout! }).on('line', (line) => this.reports.push(JSON.parse(line)));
  }

  order(order: PeerOrder): void {
    this.child.stdin?.write(`${JSON.stringify(order)}\n`);
  }

  configure(...configs: ElectionConfig[]): void {
    this.order({ kind: 'configure', configs });
  }

  /** State and cause of each change. */
  get changes(): string[] {
    return this.reports.flatMap((report) => (report.kind === 'became' ? [`${report.state} ${report.cause}`] : []));
  }

  get counts(): ElectionCounts | undefined {
    return this.reports.flatMap((report) => (report.kind === 'counts' ? [report.counts] : [])).at(-1);
  }

  async became(change: string, times = 1): Promise<void> {
    await until(
      () => `${change}, ${times} times, of ${this.changes}`,
      () => this.changes.filter((c) => c === change).length >= times,
    );
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    this.child.kill(signal);
    await ended(this.child);
  }
}

const addresses = (link: string, of: string[]) =>
  of.map((address) => ({ link, address, prefixLength: address.includes(':') ? 128 : 32 }));

const common = {
  vrid: VRID,
  intervalMs: INTERVAL_MS,
  failback: 'Immediate',
  failbackDelayMs: 0,
  fenced: true,
} as const;

/** Beside keepalived, which has a router for each family: one for each. */
function beside(gateway: string, priority: number): ElectionConfig[] {
  const n = number[gateway];
  return [
    {
      ...common,
      priority,
      id: 'v4',
      channels: [{ link: 'inside', family: 4, source: `10.9.0.${n}`, addresses: inside4 }],
      held: addresses('inside', inside4),
    },
    {
      ...common,
      priority,
      id: 'v6',
      channels: [{ link: 'inside', family: 6, source: `fe80::${n}`, addresses: inside6 }],
      held: addresses('inside', inside6),
    },
  ];
}

/** A shard, as Sluice has it: one router on both links and of both families. */
function shard(gateway: string, priority: number, more: Partial<ElectionConfig> = {}): ElectionConfig {
  const n = number[gateway];
  return {
    ...common,
    id: 'shard-0',
    priority,
    channels: [
      { link: 'inside', family: 4, source: `10.9.0.${n}`, addresses: inside4 },
      { link: 'inside', family: 6, source: `fe80::${n}`, addresses: inside6 },
      { link: 'outside', family: 4, source: `203.0.113.${n}`, addresses: inside4 },
      { link: 'outside', family: 6, source: `fe80::${n}`, addresses: inside6 },
    ],
    held: [...addresses('inside', [...inside4, ...inside6]), ...addresses('outside', outside)],
    ...more,
  };
}

const pidsOf = (namespace: string): string[] => run(`ip netns pids ${namespace}`).split('\n').filter(Boolean);
/** To all that is in a namespace; some may have ended since they were listed. */
function signalAll(namespace: string, signal: NodeJS.Signals): void {
  for (const pid of pidsOf(namespace)) {
    try {
      process.kill(Number(pid), signal);
    } catch {}
  }
}
/** The third field of /proc/PID/stat; the second, in brackets, is a name. */
const isStopped = (pid: string): boolean => /\) T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));

/** keepalived on b; kill -9 of the whole of it. */
function startKeepalived(priority: number): { kill(): Promise<void>; terminate(): Promise<void> } {
  const instance = (name: string, addresses: string[]) => `vrrp_instance ${name} {
  state BACKUP
  interface e0
  virtual_router_id ${VRID}
  priority ${priority}
  advert_int ${INTERVAL_MS / 1000}
  virtual_ipaddress {
${addresses.map((address) => `    ${address}/${address.includes(':') ? 128 : 32} dev e0`).join('\n')}
  }
}
`;
  const file = join(directory, `keepalived-${priority}.conf`);
  const text = `global_defs {\n  router_id b\n  vrrp_version 3\n}\n${instance('four', inside4)}${instance('six', inside6)}`;
  writeFileSync(file, text, { mode: 0o600 });
  const pids = ['keepalived', 'vrrp'].map((name) => join(directory, `${name}.pid`));
  for (const pid of pids) rmSync(pid, { force: true });
  const argv = ['netns', 'exec', B, 'keepalived', '-n', '-l', '-P', '-f', file, '-p', pids[0]!, '-r', pids[1]!];
  const child = track(spawn('ip', argv, { stdio: ['ignore', 'pipe', 'pipe'], detached: true }));
  const log: string[] = [];
  for (const stream of [child.stdout!, child.stderr!]) {
    createInterface({ input: stream }).on('line', (line) => log.push(line));
  }
  keepalivedLog = log;
  return {
    async kill() {
      // Its parent begins a child anew that was killed before itself; and a child whose parent was killed before is told
      // so by the kernel, and resigns. Of processes that are stopped neither has the time.
      signalAll(B, 'SIGSTOP');
      await until('keepalived is stopped', () => pidsOf(B).every(isStopped));
      signalAll(B, 'SIGKILL');
      await until('keepalived is dead', () => pidsOf(B).length === 0);
      await ended(child);
    },
    async terminate() {
      child.kill('SIGTERM');
      await ended(child);
    },
  };
}
let keepalivedLog: string[] = [];

t.setTimeout(8 * WAIT_MS);
t.teardown(() => {
  for (const child of children) child.kill('SIGKILL');
  for (const namespace of namespaces) {
    try {
      signalAll(namespace, 'SIGKILL');
      run(`ip netns del ${namespace}`);
    } catch {}
  }
  rmSync(directory, { recursive: true, force: true });
});

t.test('beside keepalived', { timeout: 4 * WAIT_MS }, async (t) => {
  setUp();
  const capture = join(directory, 'inside.pcap');
  const dump = track(
    spawn(
      'ip',
      ['netns', 'exec', HUB, 'tcpdump', '-U', '-p', '-i', 'br0', '-w', capture, 'proto 112 or ip6 proto 112'],
      {
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    ),
  );
  await new Promise<void>((resolve) => createInterface({ input: dump.stderr! }).on('line', () => resolve()));

  let ours = new Peer(A, { inside: 'e0' });
  ours.configure(...beside(A, 200));
  await ours.became('Active silence', 2);
  await comesToHold(t, A, insideHeld, 'a holds the addresses, of both families');
  let theirs = startKeepalived(100);
  await until('keepalived hears ours', () => keepalivedLog.some((line) => line.includes('Entering BACKUP STATE')));
  const before = ours.counts?.sent ?? 0;
  await until('ours advertises on', () => (ours.counts?.sent ?? 0) > before + 40);
  await comesToHold(t, B, [], 'keepalived of lower priority stays back');

  await ours.kill('SIGKILL');
  await until('keepalived takes over', () => holds(B, insideHeld));
  await until('the addresses of the dead are gone', () => held(A).length === 0);
  t.pass('keepalived takes over when ours is killed, and the kernel takes the addresses of ours away');

  ours = new Peer(A, { inside: 'e0' });
  ours.configure(...beside(A, 200));
  await ours.became('Active preempts', 2);
  await until('keepalived gives up', () => held(B).length === 0);
  await comesToHold(t, A, insideHeld, 'ours comes back, and keepalived yields');

  await theirs.terminate();
  theirs = startKeepalived(250);
  await ours.became('Backup outranked', 2);
  await comesToHold(t, A, [], 'ours yields to keepalived of higher priority');
  await until('keepalived holds', () => holds(B, insideHeld));
  await theirs.kill();
  await ours.became('Active silence', 2);
  await comesToHold(t, A, insideHeld, 'ours takes over when keepalived is killed');

  theirs = startKeepalived(250);
  await ours.became('Backup outranked', 4);
  await until('keepalived holds again', () => holds(B, insideHeld));
  await theirs.terminate();
  await ours.became('Active resigned', 2);
  await comesToHold(t, A, insideHeld, 'ours takes over when keepalived ends');
  // What came before it knew of its routers was for another.
  const { 'other-router': _, ...refused } = ours.counts?.refused ?? {};
  t.same(refused, {}, 'nothing that keepalived says was refused');
  t.ok((ours.counts?.heard ?? 0) > 10);

  theirs = startKeepalived(100);
  await until('keepalived hears ours', () => keepalivedLog.some((line) => line.includes('Entering BACKUP STATE')));
  ours.child.stdin?.end();
  await ended(ours.child);
  await until('keepalived follows', () => holds(B, insideHeld));
  await comesToHold(t, A, [], 'keepalived takes over when ours ends, which gave up');
  await theirs.terminate();
  t.same(
    keepalivedLog.filter((line) => /invalid|mismatch|checksum|not present|bogus/i.test(line)),
    [],
    'keepalived has no complaint',
  );

  await new Promise<void>((resolve) => {
    dump.on('exit', () => resolve());
    dump.kill('SIGINT');
  });
  const lines = run(`tcpdump -vvv -n -r ${capture}`)
    .split('\n')
    .join(' ')
    .split(/(?=VRRPv)/)
    .slice(1);
  const said = (source: string) => lines.filter((line) => line.includes(`vrid ${VRID}`) && line.includes(source));
  t.ok(lines.length > 100, `${lines.length} advertisements`);
  t.same(
    lines.filter((line) => !/^VRRPv3, Advertisement/.test(line) || /bad|invalid|\[\|/.test(line)),
    [],
    'tcpdump understands each, checksums too',
  );
  t.ok(said('').length === lines.length);
});

t.test('two gateways on two links', { timeout: 4 * WAIT_MS }, async (t) => {
  const links = { inside: 'e0', outside: 'e1' };
  const port = (name: string, up: boolean) => within(HUB, `ip link set ${name} ${up ? 'up' : 'down'}`);
  const a = new Peer(A, links);
  a.configure(shard(A, 200));
  await a.became('Active silence');
  const b = new Peer(B, links);
  b.configure(shard(B, 100));
  await b.became('Backup startup');
  await comesToHold(t, A, allHeld, 'a holds all of the shard');
  for (const { flags, valid, preferred } of lifetimes(A)) {
    t.ok(valid <= FENCE_SECONDS && preferred === 0, `its addresses go by themselves: ${valid}`);
    t.ok(flags.includes('nodad') || flags.includes('v4'), 'and were not probed');
  }
  ask();
  t.equal(believed(), insideMac[A]);

  const hearsOn = async (more: number) => {
    const before = b.counts?.heard ?? 0;
    await until('b hears a', () => (b.counts?.heard ?? 0) > before + more);
  };
  await hearsOn(8);
  port('a0', false);
  await hearsOn(16);
  t.same(b.changes, ['Backup startup'], 'with the inside cut it is heard outside');
  port('a0', true);
  port('a1', false);
  await hearsOn(16);
  t.same(b.changes, ['Backup startup'], 'and the other way round');

  port('a0', false);
  await b.became('Active silence');
  await until('b has announced', () => believed() === insideMac[B]);
  await comesToHold(t, B, allHeld, 'with both cut b takes over');
  port('a0', true);
  await b.became('Backup outranked');
  await until('b has given up', () => held(B).length === 0);
  await comesToHold(t, A, allHeld, 'healed, one holds them: the higher');
  await until('a has announced once more', () => believed() === insideMac[A]);
  port('a1', true);

  a.configure(shard(A, 200, { failback: 'Never' }));
  a.child.kill('SIGSTOP');
  await b.became('Active silence', 2);
  await comesToHold(t, B, allHeld, 'b takes over from a that was stopped');
  await until('addresses of the stopped are gone', () => held(A).length === 0);
  const changes = b.changes.length;
  a.child.kill('SIGCONT');
  await a.became('Backup replaced');
  await hearsNothing(b, changes);
  t.ok(a.changes.includes('Waking stopped'), 'a that wakes asks first');
  await comesToHold(t, A, [], 'nobody else holds them');
  await comesToHold(t, B, allHeld, 'and leaves b alone');

  b.order({ kind: 'hang', ms: 4_000, busy: true });
  await hearsNothing(b, changes);
  t.same(held(B), [...allHeld], 'one that has much to do is not hung');
  b.order({ kind: 'hang', ms: 4_000 });
  await a.became('Active resigned');
  await b.became('Backup unfit');
  await comesToHold(t, A, allHeld, 'a program whose main thread hangs gives up');
  await comesToHold(t, B, [], 'nobody else holds them');

  a.configure(shard(A, 200, { failback: 'Never', needs: ['outside'] }));
  port('a1', false);
  await a.became('Backup unfit');
  await b.became('Active resigned');
  await comesToHold(t, B, allHeld, 'who has no carrier outside gives up, and says so inside');
  await comesToHold(t, A, [], 'nobody else holds them');
  port('a1', true);

  b.order({ kind: 'close', leave: false });
  await until('a has it again', () => holds(A, allHeld));
  await until('b has ended', () => b.reports.some(({ kind }) => kind === 'closed'));
  a.configure(shard(A, 200, { fenced: false }));
  a.order({ kind: 'close', leave: true });
  await until('a has ended', () => a.reports.some(({ kind }) => kind === 'closed'));
  await comesToHold(t, A, allHeld, 'without a fence addresses outlive the program, if it is told to leave them');
  const again = new Peer(A, links);
  again.configure(shard(A, 200, { fenced: false, start: { holding: true } }));
  await again.became('Active unreplaced');
  await comesToHold(t, A, allHeld, 'and the next one finds them');
  again.configure();
  await again.became('Initialize shutdown');
  await comesToHold(t, A, [], 'what is no longer wanted is gone');
  for (const peer of [a, b, again]) t.notOk(peer.reports.some(({ kind }) => kind === 'fault' || kind === 'end'));
  await Promise.all([a, b, again].map((peer) => peer.kill('SIGKILL')));
});

/** A while in which it goes on as it was: it sends, and nothing changes. */
async function hearsNothing(peer: Peer, changes: number): Promise<void> {
  const before = peer.counts?.sent ?? 0;
  await until('it goes on', () => (peer.counts?.sent ?? 0) > before + 80);
  if (peer.changes.length !== changes) throw new Error(`changed: ${peer.changes}`);
}
