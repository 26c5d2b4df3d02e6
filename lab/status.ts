/**
 * `sluice lab status`: what runs, and what is in force, as seen from the hosts themselves (not from lab.json alone):
 * processes alive, their /readyz, and addresses that are on a host beyond those of the topology (next hops, egress IPs).
 */
import { PORT_METRICS } from '../api/names.ts';
import { inNamespace, listNamespaces, type Outcome, run } from './netns.ts';
import { placeOf } from './place.ts';
import { isAlive } from './process.ts';
import { isSluice, programName } from './programs.ts';
import { mustLoadWorld } from './world.ts';

export interface ProgramStatus {
  program: string;
  pid: number | null;
  /** Null: this program has no readiness, or it is not alive. */
  ready: boolean | null;
}
export interface HostStatus {
  host: string;
  about: string;
  exists: boolean;
  addresses: string[];
  /** On the host's interfaces, and not by the topology. */
  extraAddresses: string[];
  programs: ProgramStatus[];
}
export interface LabStatus {
  lab: string;
  directory: string;
  complete: boolean;
  hosts: HostStatus[];
}

export async function status(name: string): Promise<LabStatus> {
  const world = await mustLoadWorld(name);
  const place = placeOf(name);
  const namespaces = new Set(await listNamespaces(place.prefix));
  const hosts = world.topology.hosts.map(async (host): Promise<HostStatus> => {
    const namespace = place.namespace(host.name);
    const exists = namespaces.has(namespace);
    const own = [...(host.links ?? []), ...(host.bridges ?? [])].flatMap((link) => link.addresses);
    const bare = new Set(own.map((address) => address.split('/')[0]));
    const now = exists ? await globalAddresses(namespace) : [];
    const programs = (host.programs ?? []).map(async (program): Promise<ProgramStatus> => {
      const kind = programName(program);
      const alive = world.processes.find((p) => p.host === host.name && p.program === kind && isAlive(p));
      const ready = alive !== undefined && isSluice(program) ? await isReady(namespace, program.kind) : null;
      return { program: kind, pid: alive?.pid ?? null, ready };
    });
    return {
      host: host.name,
      about: host.about,
      exists,
      addresses: own,
      extraAddresses: now.filter((address) => !bare.has(address)),
      programs: await Promise.all(programs),
    };
  });
  return { lab: name, directory: place.dir, complete: world.complete, hosts: await Promise.all(hosts) };
}

async function globalAddresses(namespace: string): Promise<string[]> {
  const { code, stdout } = await run(['ip', '-n', namespace, '-j', 'address', 'show', 'scope', 'global']);
  if (code !== 0) return [];
  const links = JSON.parse(stdout) as { addr_info?: { local?: string }[] }[];
  return links.flatMap((link) => (link.addr_info ?? []).flatMap(({ local }) => (local === undefined ? [] : [local])));
}

export async function isReady(namespace: string, kind: string): Promise<boolean> {
  if (kind !== 'controller' && kind !== 'gateway' && kind !== 'node') return false;
  return (await ask(namespace, kind, '/readyz')).code === 0;
}

/** Of what a node has in force, by its metrics; 0 if it does not answer. */
export async function steeredPods(namespace: string): Promise<number> {
  const { stdout } = await ask(namespace, 'node', '/metrics');
  return Number(/^sluice_node_workloads\S* (\d+)$/m.exec(stdout)?.[1] ?? 0);
}

const ask = (namespace: string, kind: keyof typeof PORT_METRICS, path: string): Promise<Outcome> =>
  run(inNamespace(namespace, ['curl', '-sf', '-m', '2', `http://127.0.0.1:${PORT_METRICS[kind]}${path}`]));

export function formatStatus(lab: LabStatus): string {
  const lines = [`lab ${lab.lab}${lab.complete ? '' : ' (half done)'}: ${lab.directory}`];
  for (const host of lab.hosts) {
    const programs = host.programs.map(({ program, pid, ready }) => {
      if (pid === null) return `${program} DOWN`;
      return `${program} ${pid}${ready === null ? '' : ready ? ' ready' : ' NOT READY'}`;
    });
    lines.push(
      `${host.host.padEnd(8)}${host.exists ? host.about : 'GONE'}${programs.length ? `: ${programs.join(', ')}` : ''}`,
    );
    if (host.addresses.length > 0) lines.push(`        ${host.addresses.join(' ')}`);
    if (host.extraAddresses.length > 0) lines.push(`        holds ${host.extraAddresses.join(' ')}`);
  }
  return lines.join('\n');
}
