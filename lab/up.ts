/**
 * `sluice lab up`: namespaces, links, addresses, programs. Each stage runs for all hosts at once. A failure takes down
 * what was made. Returns when the servers answer; that plans are in force is for the caller to await (ready.ts).
 */
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { down } from './down.ts';
import { batch, inNamespace, listNamespaces, must, run } from './netns.ts';
import { type Place, packageRoot, placeOf } from './place.ts';
import { type Process, startProcess } from './process.ts';
import { commandOf, isSluice, prepare, programName, rotatingDnsPort } from './programs.ts';
import { addressBatch, prepareScript, wireBatch } from './render.ts';
import { defaultTopology, type Host, type Program, type Topology } from './topology.ts';
import { emptyWorld, loadWorld, saveWorld, type World } from './world.ts';

export interface UpOptions {
  name: string;
  topology?: Topology;
  /** Start the controller, gateways and nodes too (default), or leave that to a test. */
  sluice?: boolean;
  progress?: (text: string) => void;
}

export async function up(options: UpOptions): Promise<World> {
  const { name, topology = defaultTopology, progress = () => {} } = options;
  const place = placeOf(name);
  if (process.getuid?.() !== 0) throw new Error('a lab needs root: network namespaces, nftables');
  if ((await loadWorld(name)) !== null || (await listNamespaces(place.prefix)).length > 0) {
    throw new Error(`lab ${name} is there already; take it down first: sluice lab down --name ${name}`);
  }
  const world = emptyWorld(name, topology);
  await mkdir(join(place.dir, 'logs'), { recursive: true, mode: 0o700 });
  await saveWorld(place, world);
  try {
    await build(world, place, options.sluice ?? true, progress);
    world.complete = true;
    await saveWorld(place, world);
    return world;
  } catch (error) {
    await down(name);
    throw error;
  }
}

async function build(world: World, place: Place, sluice: boolean, progress: (text: string) => void): Promise<void> {
  const { topology } = world;
  const { hosts } = topology;
  const everyHost = (job: (host: Host) => Promise<unknown>) => Promise.all(hosts.map(job));
  const files = prepare(topology, place);
  // Awaited below; without a handler, a failure before that would end the process.
  files.catch(() => {});

  progress(`making ${hosts.length} hosts (network namespaces ${place.prefix}*)`);
  await must(['ip', '-batch', '-'], { input: hosts.map((h) => `netns add ${place.namespace(h.name)}\n`).join('') });
  await everyHost((host) =>
    must(inNamespace(place.namespace(host.name), ['sh', '-e']), { input: prepareScript(host) }),
  );
  await everyHost((host) => batch(place.namespace(host.name), wireBatch(topology, host, place.namespace)));
  await everyHost((host) => batch(place.namespace(host.name), addressBatch(host)));
  await everyHost(async (host) => {
    if (host.nameservers === undefined) return;
    const dir = join('/etc/netns', place.namespace(host.name));
    await mkdir(dir, { recursive: true });
    const text = `${host.nameservers.map((a) => `nameserver ${a}`).join('\n')}\noptions timeout:1 attempts:3\n`;
    await writeFile(join(dir, 'resolv.conf'), text);
  });
  await cp(join(packageRoot(), topology.manifests), place.manifests, { recursive: true });
  await files;

  const programs = hosts.flatMap((host) => (host.programs ?? []).map((program) => ({ host, program })));
  for (const ours of sluice ? [false, true] : [false]) {
    const now = programs.filter(({ program }) => isSluice(program) === ours);
    const names = now.map(({ host, program }) => (ours ? host.name : `${programName(program)} on ${host.name}`));
    progress(`starting ${names.join(', ')}`);
    for (const { host, program } of now) world.processes.push(start(host, program, place));
    await saveWorld(place, world);
  }
  await serversAnswer(hosts, place);
}

export function start(host: Host, program: Program, place: Place): Process {
  return startProcess({
    host: host.name,
    program: programName(program),
    namespace: place.namespace(host.name),
    argv: commandOf(program, host, place),
    log: place.log(host.name, programName(program)),
  });
}

/** Every server listens on its ports: seen from inside its own host, so that no part of the network is needed. */
async function serversAnswer(hosts: Host[], place: Place): Promise<void> {
  const expected = hosts.map((host) => ({
    host,
    ports: (host.programs ?? []).flatMap((program) => {
      if (program.kind === 'web') return [...program.httpPorts, 443, 7, 9];
      if (program.kind === 'dns') return [53];
      if (program.kind === 'iperf') return [5201];
      if (program.kind === 'rotating-dns') return [rotatingDnsPort];
      return program.kind === 'sshd' ? program.ports : [];
    }),
  }));
  const until = Date.now() + 15_000;
  await Promise.all(
    expected.map(async ({ host, ports }) => {
      for (let missing = ports; missing.length > 0; ) {
        const { stdout } = await run(inNamespace(place.namespace(host.name), ['ss', '-Htln']));
        missing = ports.filter((port) => !new RegExp(`:${port}\\s`).test(stdout));
        if (missing.length > 0 && Date.now() > until) {
          throw new Error(`${host.name} does not listen on port ${missing.join(', ')}; see ${join(place.dir, 'logs')}`);
        }
        if (missing.length > 0) await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }),
  );
}
