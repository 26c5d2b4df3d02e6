/**
 * An address whose pod is gone before the API server says so: the real `sluice node`, real interfaces, plans over the stream.
 *
 *   pods 10.244.1.11 -- [ node ] eth0 10.0.0.21 ---- next hop 10.0.0.64, 10.0.0.31 [ gw ] "internet" on its loopback
 *                                eth1 10.0.1.21 ---- next hop 10.0.1.64
 *
 * Steering is Direct: shard s1 by eth0, s2 by eth1, so that counters at the gateway's door say whose packets came.
 * Pods hang as the CNI plugins bridge and ptp would have them. Masquerade shows whatever is not steered.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { TUNNEL_PORT } from '../../api/names.ts';
import { emptyNodePlan, families, type NodePlan, type NodeWorkloadEntry } from '../../api/plan.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { listFlows } from '../../kernel/conntrack.ts';

t.setTimeout(570_000);
const ns = (host: string): string => `t-place-${host}-${process.pid}`;
const [NODE, GW] = [ns('n'), ns('g')];
const root = mkdtempSync(join(tmpdir(), 'sluice-places-'));
const internet = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
const address = { 4: '10.244.1.11', 6: 'fd00:244:1::11' } as const;
const gateway = { 4: '10.244.1.1', 6: 'fd00:244:1::1' } as const;
const host = { 4: 32, 6: 128 } as const;
const net = { 4: 24, 6: 64 } as const;
const shards = ['s1', 's2'] as const;
type Shard = (typeof shards)[number];
const kinds = ['bridge', 'ptp'] as const;
type Kind = (typeof kinds)[number];

function run(command: string, input = ''): string {
  const [program = '', ...args] = command.split(' ');
  const stdio: ('pipe' | 'ignore')[] = ['pipe', 'pipe', 'pipe'];
  return execFileSync('timeout', ['20', program, ...args], { encoding: 'utf8', input, stdio });
}
const inside = (namespace: string, command: string, input?: string): string =>
  run(`ip netns exec ${namespace} ${command}`, input);
const ip = (namespace: string, lines: string[]): void => {
  for (const family of families) {
    const own = lines.filter((line) => family === (line.includes(':') ? 6 : 4));
    if (own.length > 0) run(`ip -n ${namespace} -${family} -batch -`, `${own.join('\n')}\n`);
  }
};

function addNamespace(name: string): void {
  run(`ip netns add ${name}`);
  const off = [
    'net.ipv6.conf.default.accept_dad=0',
    'net.ipv4.conf.all.rp_filter=0',
    'net.ipv4.conf.default.rp_filter=0',
  ];
  inside(name, `sysctl -qw ${off.join(' ')}`);
  ip(name, ['link set lo up']);
}

const counter = (shard: Shard, family: 4 | 6): string => `${shard}_${family}`;
function setUp(): void {
  for (const name of [NODE, GW]) addNamespace(name);
  const devices = ['eth0', 'eth1'];
  for (const device of devices) run(`ip link add ${device} netns ${NODE} type veth peer name ${device} netns ${GW}`);
  // As the plugin does: a bridge that is not told has the MAC of a port, and another when the port goes.
  run(`ip -n ${NODE} link add cni0 address 02:00:00:00:00:01 type bridge`);
  ip(NODE, [
    ...['cni0', ...devices].map((device) => `link set ${device} up`),
    ...families.map((family) => `addr add ${gateway[family]}/${net[family]} dev cni0${family === 6 ? ' nodad' : ''}`),
    ...devices.flatMap((device, n) => [
      `addr add 10.0.${n}.21/24 dev ${device}`,
      `addr add fd00:1${n}::21/64 dev ${device} nodad`,
    ]),
    'route add default via 10.0.0.31',
    'route add default via fd00:10::31',
  ]);
  ip(GW, [
    ...devices.map((device) => `link set ${device} up`),
    ...devices.flatMap((device, n) => [
      ...[31, 64].map((last) => `addr add 10.0.${n}.${last}/24 dev ${device}`),
      ...[31, 64].map((last) => `addr add fd00:1${n}::${last}/64 dev ${device} nodad`),
    ]),
    ...families.map((family) => `addr add ${internet[family]}/${host[family]} dev lo`),
    'route add 10.244.1.0/24 via 10.0.0.21',
    'route add fd00:244:1::/64 via fd00:10::21',
  ]);
  const rules = shards.flatMap((shard, n) =>
    families.map((family) => {
      const word = family === 4 ? 'ip' : 'ip6';
      return `iifname "eth${n}" ${word} saddr ${address[family]} ${word} daddr ${internet[family]} counter name ${counter(shard, family)} accept`;
    }),
  );
  const leaks = families.map((family) => `${family === 4 ? 'ip' : 'ip6'} daddr ${internet[family]} counter name leak`);
  const names = [...shards.flatMap((shard) => families.map((family) => counter(shard, family))), 'leak'];
  const chain = ['chain door { type filter hook prerouting priority raw; policy accept;', ...rules, ...leaks, '}'];
  inside(
    GW,
    'nft -f -',
    ['table inet watch {', ...names.map((name) => `counter ${name} { }`), ...chain, '}'].join('\n'),
  );
  inside(NODE, 'iptables-nft -t nat -A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j MASQUERADE');
  inside(NODE, 'ip6tables-nft -t nat -A POSTROUTING -s fd00:244:1::/64 ! -d fd00:244::/32 -j MASQUERADE');
}

/** What came since `before`, by counter. */
function arrived(before: Record<string, number> = {}): Record<string, number> {
  const { nftables } = JSON.parse(inside(GW, 'nft -j list counters table inet watch')) as {
    nftables: { counter?: { name: string; packets: number } }[];
  };
  const now = nftables.flatMap(({ counter }) => (counter ? [[counter.name, counter.packets] as const] : []));
  return Object.fromEntries(now.map(([name, packets]) => [name, packets - (before[name] ?? 0)]));
}
const came = (before: Record<string, number>): Record<string, number> =>
  Object.fromEntries(Object.entries(arrived(before)).filter(([, packets]) => packets > 0));

/** Of sandboxes: later than whatever goes in this test. */
const times = {
  first: new Date(Date.now() + 3_600_000).toISOString(),
  again: new Date(Date.now() + 3_700_000).toISOString(),
};

let pods = 0;
/** A sandbox: a namespace and, as a CNI plugin makes it, an interface. Both addresses are always the same. */
class Sandbox {
  readonly name = ns(`p${++pods}`);
  readonly device = `v${pods}`;
  readonly #kind: Kind;

  constructor(kind: Kind) {
    this.#kind = kind;
    addNamespace(this.name);
    run(`ip link add eth0 netns ${this.name} type veth peer name ${this.device} netns ${NODE}`);
    const onlink = kind === 'ptp';
    ip(this.name, [
      'link set eth0 up',
      ...families.map(
        (family) =>
          `addr add ${address[family]}/${(onlink ? host : net)[family]} dev eth0${family === 6 ? ' nodad' : ''}`,
      ),
      ...families.map((family) => `route add default via ${gateway[family]} dev eth0 onlink`),
    ]);
    if (!onlink) ip(NODE, [`link set ${this.device} master cni0 up`]);
    else {
      ip(NODE, [`link set ${this.device} up`]);
      this.route();
    }
  }

  /** Of ptp: what the plugin does on the node. It replaces another's, or its own that an interface lost while it was down. */
  route(): void {
    if (this.#kind === 'bridge') return;
    ip(
      NODE,
      families.flatMap((family) => [
        `addr replace ${gateway[family]}/${host[family]} dev ${this.device}${family === 6 ? ' nodad' : ''}`,
        `route replace ${address[family]}/${host[family]} dev ${this.device}`,
      ]),
    );
  }

  /** Whether the one echo request that is sent is answered within so many seconds. */
  ping(family: 4 | 6, seconds = 2): Promise<boolean> {
    const args = ['60', 'ip', 'netns', 'exec', this.name, 'ping', '-n', '-c1', `-W${seconds}`, internet[family]];
    return new Promise((resolve) => execFile('timeout', args, (error) => resolve(error === null)));
  }

  /** The interface; the namespace stays for the test to look back. */
  goes(): void {
    run(`ip -n ${NODE} link del ${this.device}`);
  }
}

function planOf(shard: Shard, workload: { uid: string; networked?: string } | undefined): NodePlan {
  const entry = workload && {
    ...{ namespace: 'a', name: workload.uid, ...workload, addresses: [address[4], address[6]] },
    steer: { 4: { shard: `pool/${shard}` }, 6: { shard: `pool/${shard}` } },
  };
  const workloads: Record<string, NodeWorkloadEntry> = entry === undefined ? {} : { [entry.uid]: entry };
  return {
    ...emptyNodePlan(),
    settings: {
      node: {
        node: 'node-a',
        podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'],
        port: TUNNEL_PORT,
        mtu: null,
        clusterCIDRs: ['10.244.0.0/16', '10.0.0.0/24', '10.0.1.0/24', 'fd00:244::/32', 'fd00:10::/64', 'fd00:11::/64'],
        excludedCIDRs: [],
      },
    },
    shards: Object.fromEntries(
      shards.map((key, n) => [
        `pool/${key}`,
        { index: n + 1, mode: 'Direct' as const, vni: 100, nextHops: { 4: `10.0.${n}.64`, 6: `fd00:1${n}::64` } },
      ]),
    ),
    gateways: { gw: { internalAddress: '10.0.0.31', addresses: ['10.0.0.31'] } },
    workloads,
  };
}

const children = new Set<ChildProcess>();
function start(argv: string[]): ChildProcess {
  const child = spawn('ip', ['netns', 'exec', NODE, process.execPath, ...argv], { stdio: ['pipe', 'pipe', 'inherit'] });
  children.add(child);
  return child;
}

let generation = 0;
const answered = new Map<number, (error: string | undefined) => void>();
let feeder: ChildProcess;
/** Resolves when the plan is in force. */
async function publish(plan: NodePlan): Promise<void> {
  generation++;
  const done = new Promise<string | undefined>((resolve) => answered.set(generation, resolve));
  feeder.stdin?.write(`${JSON.stringify({ role: 'node', name: 'node-a', plan, generation })}\n`);
  const error = await done;
  if (error !== undefined) throw new Error(error);
}

async function startNode(): Promise<ChildProcess> {
  const main = join(import.meta.dirname, '..', '..', 'cli', 'main.js');
  const files = ['--certs', join(root, 'node-a'), '--state', join(root, 'state')];
  const where = ['--name', 'node-a', '--controller', 'https://127.0.0.1:7790', '--metrics', '127.0.0.1:7793'];
  const argv = [main, 'node', ...where, ...files, '--workload-interface', 'cni0', '--workload-interface', 'v*'];
  const program = start(argv);
  program.stdout?.resume();
  return program;
}
async function ready(): Promise<void> {
  for (let tries = 0; tries < 600; tries++) {
    try {
      inside(NODE, 'curl -sf -m 1 http://127.0.0.1:7793/readyz');
      return;
    } catch {
      await sleep(100);
    }
  }
  throw new Error('sluice node does not get ready');
}

const known = (family: 4 | 6): boolean =>
  inside(NODE, `nft list set inet sluice_node known${family}`).includes(address[family]);
async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 30_000;
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(5);
  }
}
const flows = async (): Promise<unknown[]> =>
  (await listFlows({ namespace: NODE })).filter(
    ({ original, mark }) => [address[4], address[6]].includes(original.source as never) && (mark & 0xff) !== 0,
  );

t.teardown(() => {
  for (const child of children) child.kill('SIGKILL');
  for (let pod = 1; pod <= pods; pod++) run(`ip netns del ${ns(`p${pod}`)}`);
  for (const name of [NODE, GW]) run(`ip netns del ${name}`);
  rmSync(root, { recursive: true, force: true });
});
setUp();
await createCa(join(root, 'ca'));
for (const [role, name] of [
  ['controller', 'controller'],
  ['node', 'node-a'],
] as const) {
  await issueCertificate({ caDir: join(root, 'ca'), outDir: join(root, name), role, name, addresses: ['127.0.0.1'] });
}
feeder = start([join(import.meta.dirname, 'plan-feeder.js'), '7790', join(root, 'controller')]);
createInterface({ input: feeder.stdout as NodeJS.ReadableStream }).on('line', (line) => {
  const { generation, error } = JSON.parse(line) as { generation?: number; error?: string };
  if (generation !== undefined) answered.get(generation)?.(error);
});
let node = await startNode();

/** A pod of shard s1 that has sent. */
async function first(kind: Kind, uid: string): Promise<Sandbox> {
  await publish(planOf('s1', undefined));
  const sandbox = new Sandbox(kind);
  await publish(planOf('s1', { uid, networked: times.first }));
  for (const family of families)
    if (!(await sandbox.ping(family))) throw new Error(`${uid} gets no answer over IPv${family}`);
  return sandbox;
}

/** The address's new sandbox gets nothing out until `release`, then its first packets go by `shard`. */
async function isHeldUntil(t: Tap, sandbox: Sandbox, release: () => Promise<void>, shard: Shard): Promise<void> {
  await until('withdrawn', () => families.every((family) => !known(family)));
  // All that were withdrawn within 0.4 s together; until then their packets are dropped.
  await until('its flows are ended', async () => (await flows()).length === 0);
  const before = arrived();
  const answers = families.map((family) => sandbox.ping(family, 15));
  await sleep(600);
  t.same(came(before), {}, 'nothing leaves, as its own or as the other’s');
  await release();
  t.same(await Promise.all(answers), [true, true], 'the packets that were held are answered');
  t.same(came(before), { [counter(shard, 4)]: 1, [counter(shard, 6)]: 1 });
}
type Tap = Pick<typeof t, 'same' | 'ok' | 'comment'>;

for (const kind of kinds) {
  t.test(`${kind}: an interface goes, and its address is another pod's before the plan says so`, async (t) => {
    const old = await first(kind, `${kind}-1`);
    old.goes();
    const next = new Sandbox(kind);
    await isHeldUntil(t, next, () => publish(planOf('s2', { uid: `${kind}-2` })), 's2');
    const before = arrived();
    for (const family of families) t.ok(await next.ping(family), `IPv${family}: and so are later ones`);
    t.same(came(before), { s2_4: 1, s2_6: 1 });
    next.goes();
    await until('gone too', () => !known(4) && !known(6));
  });

  t.test(`${kind}: the same pod again, in another sandbox with the same address`, async (t) => {
    const old = await first(kind, `${kind}-3`);
    old.goes();
    const next = new Sandbox(kind);
    const again = planOf('s1', { uid: `${kind}-3`, networked: times.again });
    await isHeldUntil(t, next, () => publish(again), 's1');
    next.goes();
    const third = new Sandbox(kind);
    await until('gone too', () => !known(4) && !known(6));
    await publish({ ...again, shards: { ...again.shards } });
    t.notOk(await third.ping(4, 1), 'a plan that says nothing new of it releases nothing');
    third.goes();
  });

  t.test(`${kind}: an interface that is down, or is another bridge’s, is there`, async (t) => {
    const sandbox = await first(kind, `${kind}-4`);
    const before = arrived();
    ip(NODE, [`link set ${sandbox.device} down`]);
    await sleep(200);
    ip(NODE, [`link set ${sandbox.device} up`]);
    if (kind === 'bridge') ip(NODE, [`link set ${sandbox.device} nomaster`, `link set ${sandbox.device} master cni0`]);
    sandbox.route();
    await sleep(200);
    for (const family of families) t.ok(known(family) && (await sandbox.ping(family)), `IPv${family}`);
    t.same(came(before), { s1_4: 1, s1_6: 1 });
    sandbox.goes();
  });

  t.test(`${kind}: the old interface goes after the plan has named the next pod`, async (t) => {
    const old = await first(kind, `${kind}-5`);
    const next = new Sandbox(kind);
    // Its packets say where it is; what of them leaves is not asked here.
    for (const family of families) await next.ping(family, 1);
    await publish(planOf('s2', { uid: `${kind}-6` }));
    old.goes();
    await sleep(300);
    const before = arrived();
    for (const family of families) t.ok(await next.ping(family), `IPv${family}: the next pod is not touched`);
    t.same(came(before), { s2_4: 1, s2_6: 1 });
    next.goes();
    await until('and withdrawn with its own interface', () => !known(4) && !known(6));
  });

  t.test(`${kind}: the interface goes while the program is not there`, async (t) => {
    const old = await first(kind, `${kind}-7`);
    // So long may it take until where a pod is has been written down.
    await sleep(1_500);
    node.kill('SIGKILL');
    await once(node, 'exit');
    const before = arrived();
    for (const family of families) t.ok(await old.ping(family), `IPv${family}: the kernel steers without it`);
    node = await startNode();
    await ready();
    for (const family of families) t.ok(await old.ping(family), `IPv${family}: a restart withdraws nothing`);
    t.same(came(before), { s1_4: 2, s1_6: 2 });
    node.kill('SIGKILL');
    await once(node, 'exit');
    old.goes();
    const next = new Sandbox(kind);
    node = await startNode();
    await ready();
    await isHeldUntil(t, next, () => publish(planOf('s2', { uid: `${kind}-8` })), 's2');
    next.goes();
  });
}

t.test('a plan names a pod too late, when its interface is gone and another pod has its address', async (t) => {
  await publish(planOf('s1', undefined));
  const made = new Date(Date.now() - 2_000).toISOString();
  const old = new Sandbox('ptp');
  old.goes();
  const next = new Sandbox('ptp');
  await publish(planOf('s1', { uid: 'ptp-late', networked: made }));
  await isHeldUntil(t, next, () => publish(planOf('s2', { uid: 'ptp-next', networked: times.first })), 's2');
  next.goes();
});

t.test('ptp: a route that is taken away, and put back', async (t) => {
  const sandbox = await first('ptp', 'ptp-9');
  ip(
    NODE,
    families.map((family) => `route del ${address[family]}/${host[family]}`),
  );
  await until('withdrawn', () => !known(4) && !known(6));
  sandbox.route();
  await until('known again', () => known(4) && known(6));
  for (const family of families) t.ok(await sandbox.ping(family), `IPv${family}`);
  sandbox.goes();
});

t.test('packets that wait when their interface goes are not the next pod’s', async (t) => {
  await publish(planOf('s1', undefined));
  const old = new Sandbox('ptp');
  const before = arrived();
  const unheard = families.map((family) => old.ping(family, 3));
  await sleep(300);
  old.goes();
  const next = new Sandbox('ptp');
  await publish(planOf('s2', { uid: 'ptp-10' }));
  t.same(await Promise.all(unheard), [false, false]);
  t.same(came(before), {}, 'none left');
  for (const family of families) t.ok(await next.ping(family), `IPv${family}: the next pod’s own do`);
});
