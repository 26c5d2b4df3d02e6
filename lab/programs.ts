/**
 * What a program of the topology is on a machine: its command line, what must lie ready for it (certificates, keys),
 * and whether it is a part of Sluice. Programs that are not ours are started first.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PORT_METRICS } from '../api/names.ts';
import { createCa, issueCertificate } from '../daemon/certs.ts';
import { gatewayFlags } from '../daemon/heap.ts';
import { must } from './netns.ts';
import { compiledRoot, type Place } from './place.ts';
import { createServerCertificate } from './servers/certificate.ts';
import type { Host, Program, Topology } from './topology.ts';

/** For files and for `lab fail HOST process`. */
export const programName = (program: Program): string => program.kind;

export const isSluice = (program: Program): boolean =>
  program.kind === 'controller' || program.kind === 'gateway' || program.kind === 'node';

/** On 127.0.0.1 of its host: what has port 53 there asks it. */
export const rotatingDnsPort = 5300;

const metricsOf = (kind: 'controller' | 'gateway' | 'node'): string => `127.0.0.1:${PORT_METRICS[kind]}`;

const sluice = (command: string, ...flags: string[]): string[] => [
  process.execPath,
  '--enable-source-maps',
  ...(command === 'gateway' ? gatewayFlags : []),
  join(compiledRoot(), 'cli', 'main.js'),
  command,
  ...flags,
];

export function commandOf(program: Program, host: Host, place: Place): string[] {
  const own = `${host.name}.${programName(program)}`;
  switch (program.kind) {
    case 'controller':
      return sluice(
        'controller',
        ...['--source', `directory:${place.manifests}`, '--state', place.state('controller')],
        ...['--listen', program.listen, '--certs', place.certs('controller'), '--metrics', metricsOf('controller')],
      );
    case 'gateway':
      return sluice(
        'gateway',
        ...['--name', host.name, '--controller', program.controller, '--certs', place.certs(host.name)],
        ...['--state', place.state(host.name), '--flow-log', place.flows(host.name)],
        ...['--metrics', metricsOf('gateway')],
      );
    case 'node':
      return sluice(
        'node',
        ...['--name', host.name, '--controller', program.controller, '--certs', place.certs(host.name)],
        ...['--state', place.state(host.name), '--workload-interface', program.workloadInterface],
        ...['--metrics', metricsOf('node')],
      );
    case 'web':
      return [
        process.execPath,
        join(compiledRoot(), 'lab', 'servers', 'web.js'),
        ...['--http', program.httpPorts.join(','), '--tls', '443', '--certs', place.state(own)],
      ];
    case 'dns':
      return [
        'dnsmasq',
        ...['--keep-in-foreground', '--user=root', '--conf-file=/dev/null', '--pid-file=', '--log-facility=-'],
        // What has other addresses in each answer is asked anew each time; a forwarder keeps it as long as it says.
        ...['--no-hosts', '--no-resolv', `--cache-size=${program.upstream.length === 0 ? 0 : 1000}`, '--local-ttl=30'],
        ...(program.rotating === undefined ? [] : [`--server=/${program.rotating}/127.0.0.1#${rotatingDnsPort}`]),
        // Names of ours end here: what is not known does not exist. A forwarder asks for all.
        ...(program.upstream.length === 0 ? ['--local=/test/'] : []),
        ...program.upstream.map((address) => `--server=${address}`),
        ...Object.entries(program.names).map(([name, addresses]) => `--host-record=${[name, ...addresses].join(',')}`),
      ];
    case 'rotating-dns':
      return [
        process.execPath,
        join(compiledRoot(), 'lab', 'servers', 'rotating-dns.js'),
        ...['--port', String(rotatingDnsPort), '--domain', program.domain, ...program.pools],
      ];
    case 'iperf':
      return ['iperf3', '--server', '--forceflush'];
    case 'sshd': {
      // sshd wants /run/sshd and would leave it on the machine: it gets a /run of its own, in the mount namespace that
      // `ip netns exec` made for it. Its files are copied there, since it reads them again for each connection.
      const script =
        'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && cp sshd_config host_key /run/sshd/ && ' +
        'chmod 600 /run/sshd/host_key && exec "$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f /run/sshd/sshd_config';
      return ['sh', '-c', `cd '${place.state(own)}' && ${script}`];
    }
  }
}

/** Lays ready what the programs read at their start: certificates, keys, folders. */
export async function prepare(topology: Topology, place: Place): Promise<void> {
  const caDir = place.certs('ca');
  await createCa(caDir);
  const jobs = topology.hosts.flatMap((host) =>
    (host.programs ?? []).map((program) => prepareProgram(program, host, place, caDir)),
  );
  await Promise.all(jobs);
}

async function prepareProgram(program: Program, host: Host, place: Place, caDir: string): Promise<void> {
  const own = `${host.name}.${programName(program)}`;
  switch (program.kind) {
    case 'controller': {
      await mkdir(place.state('controller'), { recursive: true });
      const { addresses } = program;
      await issueCertificate({
        caDir,
        outDir: place.certs('controller'),
        role: 'controller',
        name: 'controller',
        addresses,
      });
      return;
    }
    case 'gateway':
    case 'node':
      await mkdir(place.state(host.name), { recursive: true });
      await issueCertificate({
        caDir,
        outDir: place.certs(host.name),
        role: program.kind,
        name: host.name,
        addresses: [],
      });
      return;
    case 'web':
      await createServerCertificate(place.state(own), program.names, Date.now());
      return;
    case 'sshd': {
      const dir = place.state(own);
      await mkdir(dir, { recursive: true });
      await must(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', join(dir, 'host_key')]);
      // It says hello in SSH, and lets nobody in.
      const config = [
        ...program.ports.map((port) => `Port ${port}`),
        'HostKey /run/sshd/host_key',
        'PidFile none',
        'UsePAM no',
        'PasswordAuthentication no',
        'KbdInteractiveAuthentication no',
        'PubkeyAuthentication no',
      ];
      await writeFile(join(dir, 'sshd_config'), `${config.join('\n')}\n`);
      return;
    }
    case 'dns':
    case 'rotating-dns':
    case 'iperf':
      return;
  }
}
