/**
 * The lab's network and programs, with a real API server (api-server.ts) on the controller's host in place of its directory, and as
 * many controllers there as a test wants. Gateways and nodes reach them as by a Service: each connection to the one
 * address leads to any of them, dead or alive.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parse, parseAllDocuments, stringify } from 'yaml';
import { besideSources } from '../../bench/topology.ts';
import { down } from '../../lab/down.ts';
import { inNamespace, must, run } from '../../lab/netns.ts';
import { compiledRoot, type Place, placeOf } from '../../lab/place.ts';
import { isAlive, type Process, signal, startProcess } from '../../lab/process.ts';
import { isSluice } from '../../lab/programs.ts';
import { createServerCertificate } from '../../lab/servers/certificate.ts';
import { defaultTopology } from '../../lab/topology.ts';
import { start, up } from '../../lab/up.ts';
import { type ApiServerOptions, RealApiServer } from './api-server.ts';

/** Plan stream, metrics and webhook of each controller; the first is what a controller of the lab has. */
const SERVICE_PORT = 7790;
const ports: Record<string, { plans: number; metrics: number; admission: number }> = {
  one: { plans: 7781, metrics: 7791, admission: 7798 },
  two: { plans: 7782, metrics: 7797, admission: 7799 },
};

export interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string; uid?: string };
  spec?: Record<string, unknown>;
  status?: Record<string, unknown>;
  [field: string]: unknown;
}

/** As an API server of this minor version takes it: without status, uid and the second family of Services. */
function forServer(manifest: Manifest, minor: number, uidOf: (pod: string) => string | undefined): Manifest {
  const { status: _, metadata, ...rest } = manifest;
  const { uid: __, ...meta } = metadata;
  const object: Manifest = { ...rest, metadata: meta };
  if (object.kind === 'Pod') object.spec = { ...object.spec, containers: [{ name: 'app', image: 'none' }] };
  if (object.kind === 'Service') {
    const { clusterIPs, ...spec } = object.spec as { clusterIPs: string[] };
    object.spec = { ...spec, clusterIP: clusterIPs[0] };
  }
  if (object.kind === 'EndpointSlice') {
    const old = minor < 21;
    if (old) object.apiVersion = 'discovery.k8s.io/v1beta1';
    const endpoints = object.endpoints as { nodeName?: string; targetRef: { namespace: string; name: string } }[];
    object.endpoints = endpoints.map(({ nodeName, targetRef, ...endpoint }) => ({
      ...endpoint,
      ...(!old && nodeName !== undefined && { nodeName }),
      targetRef: { ...targetRef, uid: uidOf(`${targetRef.namespace}/${targetRef.name}`) },
    }));
  }
  return object;
}

async function read(folder: string): Promise<Manifest[]> {
  const files = (await readdir(folder)).filter((file) => file.endsWith('.yaml')).sort();
  const texts = await Promise.all(files.map((file) => readFile(join(folder, file), 'utf8')));
  return texts.flatMap((text) => parseAllDocuments(text).map((document) => document.toJS() as Manifest));
}

/** Pods and Nodes have a status of their own, which a kubelet would write. */
async function applyAll(server: RealApiServer, manifests: readonly Manifest[]): Promise<void> {
  const first = (kinds: string[]) => manifests.filter(({ kind }) => kinds.includes(kind));
  const others = manifests.filter(({ kind }) => !['Namespace', 'Pod'].includes(kind));
  const uids = new Map<string, string>();
  for (const some of [first(['Namespace']), first(['Pod']), others]) {
    const objects = some.map((one) => stringify(forServer(one, server.minor, (pod) => uids.get(pod))));
    await server.kubectl(['apply', '-f', '-'], objects.join('---\n'));
    const pods = JSON.parse(await server.kubectl(['get', 'pods', '-A', '-o', 'json'])) as { items: Manifest[] };
    for (const { metadata } of pods.items) uids.set(`${metadata.namespace}/${metadata.name}`, metadata.uid ?? '');
  }
  for (const { kind, metadata, status } of manifests) {
    if (status === undefined || (kind !== 'Pod' && kind !== 'Node')) continue;
    const path =
      kind === 'Node'
        ? `/api/v1/nodes/${metadata.name}`
        : `/api/v1/namespaces/${metadata.namespace}/pods/${metadata.name}`;
    const object = JSON.parse(await server.kubectl(['get', '--raw', path])) as Manifest;
    await server.kubectl(['replace', '--raw', `${path}/status`, '-f', '-'], JSON.stringify({ ...object, status }));
  }
}

export async function within(what: string, milliseconds: number, holds: () => Promise<boolean>): Promise<number> {
  const began = performance.now();
  while (!(await holds())) {
    if (performance.now() - began > milliseconds) throw new Error(`not within ${milliseconds} ms: ${what}`);
    await sleep(50);
  }
  return performance.now() - began;
}

function portsOf(name: string) {
  const found = ports[name];
  if (found === undefined) throw new Error(`no ports for a controller ${name}`);
  return found;
}

/** What daemon/stream-client.ts logs: a connection more, or how many are left. */
function longestGap(lines: readonly string[], since: number): number {
  let links = 0;
  let lostAt = Number.NaN;
  let longest = 0;
  const end = (now: number): void => {
    if (links === 0 && now > since) longest = Math.max(longest, now - Math.max(since, lostAt));
  };
  for (const line of lines) {
    if (!/"msg":"(connected|disconnected)"/.test(line)) continue;
    const { msg, left, time } = JSON.parse(line) as { msg: string; left?: number; time: string | number };
    const now = new Date(time).getTime();
    if (msg === 'connected') {
      end(now);
      links++;
      continue;
    }
    if (links > 0 && left === 0) lostAt = now;
    links = left ?? 0;
  }
  end(Date.now());
  return longest;
}

export class LabCluster {
  readonly lab: string;
  readonly place: Place;
  readonly ctl: string;
  server!: RealApiServer;
  readonly controllers = new Map<string, Process>();
  readonly #started = new Set<string>();

  readonly #options: ApiServerOptions;

  constructor(lab: string, options: ApiServerOptions = {}) {
    this.lab = lab;
    this.#options = options;
    this.place = placeOf(lab);
    this.ctl = this.place.namespace('ctl');
  }

  /** With the lab's manifests and these in it, and these controllers, of which one leads; its gateways and nodes run. */
  async up(more: readonly Manifest[] = [], controllers: readonly string[] = ['one']): Promise<void> {
    const world = await up({ name: this.lab, sluice: false });
    this.server = await RealApiServer.start(this.ctl, this.#options);
    await this.server.addKinds();
    const manifests = [...(await read(besideSources(defaultTopology.manifests))), ...more];
    await within('kinds of CRDs are known', 60_000, () =>
      applyAll(this.server, manifests).then(
        () => true,
        (error: Error) => {
          if (!/no matches for kind/.test(error.message)) throw error;
          return false;
        },
      ),
    );
    await createServerCertificate(join(this.place.dir, 'admission'), ['localhost'], Date.now());
    for (const name of controllers) await this.startController(name);
    await within('one leads', 60_000, async () => (await this.roles()).leader !== '');
    for (const host of defaultTopology.hosts) {
      for (const program of host.programs ?? []) {
        if (isSluice(program) && program.kind !== 'controller') world.processes.push(start(host, program, this.place));
      }
    }
    await this.server.kubectl(['wait', '--for=condition=Programmed', '--timeout=120s', 'eip', '--all']);
  }

  /** Its manifests once more. */
  async applyLab(): Promise<void> {
    await applyAll(this.server, await read(besideSources(defaultTopology.manifests)));
  }

  /** The webhook of this controller. */
  async admit(name: string): Promise<void> {
    const text = await readFile(besideSources('deploy/webhook.yaml'), 'utf8');
    const configuration = parse(text) as { webhooks: { clientConfig: object }[] };
    const caBundle = (await readFile(join(this.place.dir, 'admission', 'ca.crt'))).toString('base64');
    const url = `https://localhost:${portsOf(name).admission}/admission`;
    for (const webhook of configuration.webhooks) webhook.clientConfig = { url, caBundle };
    await this.server.kubectl(['apply', '-f', '-'], JSON.stringify(configuration));
  }

  /** As kube-proxy would, for all that were ever started. */
  async #balance(): Promise<void> {
    const backends = [...this.#started].map((name, at) => `${at} : ${portsOf(name).plans}`);
    const choice = `numgen random mod ${backends.length} map { ${backends.join(', ')} }`;
    const rules = `table ip service
delete table ip service
table ip service {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    tcp dport ${SERVICE_PORT} redirect to :${choice}
  }
}
`;
    await must(inNamespace(this.ctl, ['nft', '-f', '-']), { input: rules });
  }

  async startController(name: string): Promise<void> {
    const { place, ctl } = this;
    const { plans, metrics, admission } = portsOf(name);
    this.#started.add(name);
    await this.#balance();
    const main = join(compiledRoot(), 'cli', 'main.js');
    const source = ['--source', 'kubernetes', '--kubeconfig', this.server.kubeconfig];
    const argv = [
      ...[process.execPath, '--enable-source-maps', main, 'controller', ...source],
      ...['--state', join(place.dir, `state-${name}`), '--listen', `10.0.0.10:${plans}`],
      ...['--certs', place.certs('controller'), '--metrics', `127.0.0.1:${metrics}`],
      ...['--admission', `127.0.0.1:${admission}`, '--admission-certs', join(place.dir, 'admission')],
    ];
    const log = place.log('ctl', name);
    this.controllers.set(name, startProcess({ host: 'ctl', program: `controller-${name}`, namespace: ctl, argv, log }));
  }

  kill(name: string, how: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): void {
    const controller = this.controllers.get(name);
    if (controller !== undefined) signal(controller, how);
    this.controllers.delete(name);
  }

  /** One that could not renew its lease has ended: it is begun anew, as a supervisor would. Says which. */
  async revive(): Promise<string[]> {
    const ended = [...this.controllers].filter(([, controller]) => !isAlive(controller)).map(([name]) => name);
    for (const name of ended) await this.startController(name);
    return ended;
  }

  /** Who leads and who stands by. */
  async roles(): Promise<{ leader: string; standby: string }> {
    const roles = { leader: '', standby: '' };
    await this.revive();
    for (const name of this.controllers.keys()) {
      const said = await this.readiness(name);
      if (this.leads(said)) roles.leader = name;
      if (/^standby: .* leads/.test(said)) roles.standby = name;
    }
    return roles;
  }

  /** Empty: it has ended. */
  async readiness(name: string): Promise<string> {
    return this.#get(name, 'readyz');
  }

  /** Gateways and nodes that have a stream to it. */
  async clients(name: string): Promise<number> {
    const metrics = await this.#get(name, 'metrics');
    const counts = [...metrics.matchAll(/^sluice_controller_clients\{.*\} (\d+)$/gm)];
    return counts.reduce((sum, [, count]) => sum + Number(count), 0);
  }

  async #get(name: string, path: string): Promise<string> {
    const url = `http://127.0.0.1:${portsOf(name).metrics}/${path}`;
    return (await run(inNamespace(this.ctl, ['curl', '-s', '-m', '2', url]))).stdout;
  }

  /** Of each gateway and node, by its log: the longest time since then, in milliseconds, without a stream to any controller. */
  async withoutStream(since: number): Promise<Map<string, number>> {
    const longest = new Map<string, number>();
    for (const { name, programs = [] } of defaultTopology.hosts) {
      for (const { kind } of programs) {
        if (kind !== 'gateway' && kind !== 'node') continue;
        const lines = (await readFile(this.place.log(name, kind), 'utf8')).split('\n');
        longest.set(name, longestGap(lines, since));
      }
    }
    return longest;
  }

  leads(readiness: string): boolean {
    return /^generation [1-9]/.test(readiness);
  }

  async close(): Promise<void> {
    await this.server?.close();
    await down(this.lab);
  }
}
