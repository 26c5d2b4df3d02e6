/**
 * Which capabilities the programs need (docs/kubernetes.md): the lab with every program of Sluice confined to its set, as the
 * systemd units and the chart do it, and all that the demo asks is as expected; with one capability less it is not. Run by
 * hand, as root, since it takes minutes: node dist/test/kube/capabilities.js
 *
 *   units      user `nobody` with ambient capabilities, no new privileges
 *   container  node: root with one capability, /proc/sys read-only, /proc/sys/net of the machine below /host
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { checksOf, firewallView, runChecks } from '../../lab/checks.ts';
import { firewallIsContent } from '../../lab/demo.ts';
import { down } from '../../lab/down.ts';
import { placeOf } from '../../lab/place.ts';
import { startProcess } from '../../lab/process.ts';
import { commandOf, isSluice, programName } from '../../lab/programs.ts';
import { awaitReady } from '../../lab/ready.ts';
import { up } from '../../lab/up.ts';
import { saveWorld } from '../../lab/world.ts';

type Role = 'controller' | 'gateway' | 'node';
type Sets = Record<Role, readonly string[]>;

const NOBODY = 65_534;
const needed: Sets = { controller: [], gateway: ['net_admin', 'net_raw'], node: ['net_admin'] };
const lab = 'caps';
const place = placeOf(lab);
t.setTimeout(0);

/** As a unit with User= and AmbientCapabilities= runs it. */
function asUnit(caps: readonly string[], user = NOBODY): string[] {
  const set = ['-all', ...caps.map((name) => `+${name}`)].join(',');
  const ids = [`--reuid=${user}`, `--regid=${user}`, '--clear-groups', '--no-new-privs'];
  return ['setpriv', ...ids, `--inh-caps=${set}`, `--ambient-caps=${set}`, `--bounding-set=${set}`];
}

/** As containerd runs it: of user root, /proc/sys read-only but for what is mounted elsewhere. */
const asContainer = (caps: readonly string[]): string[] => [
  ...['unshare', '--mount', '--', 'sh', '-ec'],
  'mount --bind /proc/sys/net /host/proc/sys/net; mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"',
  ...['sh', ...asUnit(caps, 0)],
];

function give(path: string, user = NOBODY): void {
  chownSync(path, user, user);
  if (statSync(path).isDirectory()) for (const name of readdirSync(path)) give(join(path, name), user);
}

/** What the demo asks that came out otherwise, or what never became ready. */
async function failures(
  sets: Sets,
  wrap: (role: Role, caps: readonly string[]) => string[],
  rootOnNodes = false,
): Promise<string[]> {
  const world = await up({ name: lab, sluice: false });
  try {
    // The lab's files are root's; the way to them is nobody's.
    const [certs, state] = [join(place.dir, 'certs'), join(place.dir, 'state')];
    for (const path of [certs, state, join(place.dir, 'manifests'), join(place.dir, 'logs')]) give(path);
    for (const path of ['/run/sluice', '/run/sluice/labs', place.dir, certs, state]) chmodSync(path, 0o711);
    for (const host of world.topology.hosts) {
      for (const program of (host.programs ?? []).filter(isSluice)) {
        const role = program.kind as Role;
        // Root without CAP_DAC_OVERRIDE reads what is root's alone.
        if (rootOnNodes && role === 'node')
          for (const path of [place.certs(host.name), place.state(host.name)]) give(path, 0);
        const argv = [...wrap(role, sets[role]), ...commandOf(program, host, place)];
        const [name, namespace] = [programName(program), place.namespace(host.name)];
        world.processes.push(
          startProcess({ host: host.name, program: name, namespace, argv, log: place.log(host.name, name) }),
        );
      }
    }
    await saveWorld(place, world);
    try {
      await awaitReady(world, 25_000);
    } catch (error) {
      const complaints = world.processes.flatMap(({ log }) =>
        readFileSync(log, 'utf8')
          .split('\n')
          .filter((line) => /"level":"(warn|error|fatal)"/.test(line))
          .slice(-1),
      );
      return [(error as Error).message, ...complaints];
    }
    const wrong = (await runChecks(lab)).filter(({ ok }) => !ok);
    const content = firewallIsContent(await firewallView(lab)) ? [] : ['the firewall saw another source'];
    return [...wrong.map(({ check, seen }) => `${check.who}, ${check.what}: ${seen}`), ...content];
  } finally {
    await down(lab);
  }
}

const before = existsSync('/run/sluice') ? statSync('/run/sluice').mode : 0o700;
t.teardown(() => chmodSync('/run/sluice', before));

t.test('with these sets, as systemd units', async (t) => {
  const wrong = await failures(needed, (_role, caps) => asUnit(caps));
  t.same(wrong, [], `${checksOf(4).length * 2} requests of the demo`);
});

t.test('a node with its set, as a container', async (t) => {
  const made: string[] = [];
  for (const path of ['/host', '/host/proc', '/host/proc/sys', '/host/proc/sys/net']) {
    if (existsSync(path)) continue;
    mkdirSync(path);
    made.unshift(path);
  }
  try {
    const wrap = (role: Role, caps: readonly string[]): string[] =>
      role === 'node' ? asContainer(caps) : asUnit(caps);
    t.same(await failures(needed, wrap, true), []);
  } finally {
    for (const path of made) rmdirSync(path);
  }
});

t.test('none of them can be left out', async (t) => {
  for (const [role, caps] of Object.entries(needed) as [Role, readonly string[]][]) {
    for (const left of caps) {
      const sets = { ...needed, [role]: caps.filter((name) => name !== left) };
      const wrong = await failures(sets, (_role, some) => asUnit(some));
      t.not(wrong.length, 0, `${role} without ${left}`);
      t.comment(`${role} without ${left}: ${wrong[0]?.split('\n')[0]}`);
    }
  }
});

t.comment(execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim());
