/** `sluice gateway`: the program of a gateway machine, until SIGINT or SIGTERM. What it puts in force outlives it. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { isPeerName } from '../api/plan-stream.ts';
import { formatListen } from '../daemon/listen.ts';
import { registerCleanup } from './cleanup.ts';
import { listenArgument, untilSignal } from './controller.ts';

export function nameArgument(text: string): string {
  if (!isPeerName(text)) throw new InvalidArgumentError('expected lower-case letters, digits, "-" and "."');
  return text;
}

export function urlArgument(text: string): string {
  if (!/^https:\/\/[^/\s@]+\/?$/.test(text) || !URL.canParse(text)) {
    throw new InvalidArgumentError('expected https://ADDRESS:PORT');
  }
  return text;
}

export const metricsArgument = (text: string): string => formatListen(listenArgument(text));

export const detectOption = (): Option =>
  new Option('--detect <on|off>', 'whether samples of flows that no rule asks about are read for their records')
    .choices(['on', 'off'])
    .default('on');

/** Of the device, which takes an int; more than a second is no bound. */
const LATENCY_MOST = 1_000_000;

function microsecondsArgument(text: string): number {
  const value = Number(text);
  if (!/^\d{1,7}$/.test(text) || value > LATENCY_MOST)
    throw new InvalidArgumentError(`expected whole microseconds, 0 to ${LATENCY_MOST}`);
  return value;
}

export const cpuLatencyOption = (): Option =>
  new Option(
    '--cpu-latency <microseconds>',
    'while flows are read: how long a CPU may take to wake (/dev/cpu_dma_latency); 0: CPUs never sleep. Absent: as the machine has it',
  ).argParser(microsecondsArgument);

interface Flags {
  name: string;
  controller: string;
  certs: string;
  state: string;
  flowLog?: string;
  detect: 'on' | 'off';
  cpuLatency?: number;
  metrics?: string;
}

export function register(program: Command): void {
  const verb = program
    .command('gateway')
    .description('run a gateway: apply the plan of the controller to this machine (as root)')
    .requiredOption('--name <name>', 'name in GatewayPool.spec.gateways and in the certificate', nameArgument)
    .requiredOption('--controller <url>', 'plan stream of the controller', urlArgument)
    .requiredOption('--certs <dir>', 'directory with ca.crt, tls.crt, tls.key')
    .requiredOption('--state <dir>', 'what must survive a restart: the last plan')
    .option('--flow-log <file>', 'flow records, one JSON object a line')
    .addOption(detectOption())
    .addOption(cpuLatencyOption())
    .option('--metrics <address:port>', 'metrics, /healthz and /readyz', metricsArgument)
    .addHelpText(
      'after',
      `
Example:
  sluice gateway --name gw-a --controller https://10.0.0.10:7790 --certs /etc/sluice/certs \\
    --state /var/lib/sluice/gateway --flow-log /var/log/sluice/flows.jsonl --metrics 127.0.0.1:7792`,
    )
    .action(async (flags: Flags) => {
      const { runGateway } = await import('../gateway/main.ts');
      await untilSignal(await runGateway({ ...flags, detect: flags.detect === 'on' }));
    });
  registerCleanup(verb, 'gateway', async (state) => {
    const { gatewayCleaning } = await import('../gateway/cleanup.ts');
    return gatewayCleaning(state);
  });
}
