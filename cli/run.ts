/**
 * `sluice run`: controller and gateway in one process, for one machine. They talk over loopback as they would over a
 * network, so that everything is the same code; certificates are made in the state directory (the CA once, the others
 * at each start). Nodes may join: give --listen an address that they reach, and issue them certificates from that CA.
 */
import type { Command } from 'commander';
import type { Listen } from '../daemon/listen.ts';
import { listenArgument, sourceArgument, untilSignal } from './controller.ts';
import { cpuLatencyOption, detectOption } from './gateway.ts';

interface RunFlags {
  name: string;
  source: string;
  state: string;
  listen?: Listen;
  flowLog?: string;
  detect: 'on' | 'off';
  cpuLatency?: number;
  metrics?: Listen;
  gatewayMetrics?: Listen;
}

const LOOPBACK: Listen = { host: '127.0.0.1', port: 0 };

export function register(program: Command): void {
  program
    .command('run')
    .description('controller and gateway in one process: the embedded default for one machine')
    .requiredOption('--name <name>', 'name of this gateway, as the GatewayPool lists it')
    .requiredOption('--source <source>', 'directory:PATH of Kubernetes YAML, watched', sourceArgument)
    .requiredOption('--state <dir>', 'what must survive a restart; certificates are made here')
    .option('--listen <address:port>', 'plan stream (default: loopback, any port)', listenArgument)
    .option('--flow-log <file>', 'flow records, JSON lines')
    .addOption(detectOption())
    .addOption(cpuLatencyOption())
    .option('--metrics <address:port>', "the controller's metrics and health", listenArgument)
    .option('--gateway-metrics <address:port>', "the gateway's metrics and health", listenArgument)
    .addHelpText(
      'after',
      `
Example:
  sluice run --name gw-a --source directory:/etc/sluice/manifests --state /var/lib/sluice`,
    )
    .action(async (flags: RunFlags) => {
      await untilSignal(await runBoth(flags));
    });
}

export async function runBoth(flags: RunFlags): Promise<{ close(): Promise<void> }> {
  const { listen = LOOPBACK } = flags;
  const { join } = await import('node:path');
  const { createLog } = await import('../daemon/log.ts');
  const { formatListen } = await import('../daemon/listen.ts');
  const { runController } = await import('../controller/main.ts');
  const { runGateway } = await import('../gateway/main.ts');
  const certs = await makeCertificates(join(flags.state, 'certs'), flags.name, listen);
  const controller = await runController({
    source: flags.source,
    state: join(flags.state, 'controller'),
    listen,
    certs: certs.controller,
    ca: certs.ca,
    ...(flags.metrics === undefined ? {} : { metrics: flags.metrics }),
    log: createLog('controller'),
  });
  // An unspecified address is for others to connect to; we reach ourselves by loopback.
  const host = listen.host === '0.0.0.0' ? '127.0.0.1' : listen.host === '::' ? '::1' : listen.host;
  try {
    const gateway = await runGateway({
      name: flags.name,
      controller: `https://${formatListen({ host, port: controller.port })}`,
      certs: certs.gateway,
      state: join(flags.state, 'gateway'),
      ...(flags.flowLog === undefined ? {} : { flowLog: flags.flowLog }),
      detect: flags.detect === 'on',
      ...(flags.cpuLatency === undefined ? {} : { cpuLatency: flags.cpuLatency }),
      ...(flags.gatewayMetrics === undefined ? {} : { metrics: formatListen(flags.gatewayMetrics) }),
    });
    return {
      async close() {
        await gateway.close();
        await controller.close();
      },
    };
  } catch (error) {
    await controller.close();
    throw error;
  }
}

async function makeCertificates(
  directory: string,
  name: string,
  listen: Listen,
): Promise<{ ca: string; controller: string; gateway: string }> {
  const { access } = await import('node:fs/promises');
  const { join } = await import('node:path');
  const { createCa, issueCertificate } = await import('../daemon/certs.ts');
  const caDir = join(directory, 'ca');
  const known = await access(join(caDir, 'ca.key')).then(
    () => true,
    () => false,
  );
  if (!known) await createCa(caDir);
  const controller = join(directory, 'controller');
  const gateway = join(directory, 'gateway');
  const addresses = [...new Set(['127.0.0.1', '::1', listen.host])].filter((a) => a !== '0.0.0.0' && a !== '::');
  await issueCertificate({ caDir, outDir: controller, role: 'controller', name: 'controller', addresses });
  await issueCertificate({ caDir, outDir: gateway, role: 'gateway', name, addresses: [] });
  return { ca: caDir, controller, gateway };
}
