/** `sluice node`: the program of a Kubernetes node, until SIGINT or SIGTERM. What it puts in force outlives it. */
import { type Command, InvalidArgumentError } from 'commander';
import { registerCleanup } from './cleanup.ts';
import { untilSignal } from './controller.ts';
import { metricsArgument, nameArgument, urlArgument } from './gateway.ts';

interface Flags {
  name: string;
  controller: string;
  certs: string;
  state: string;
  workloadInterface: string[];
  metrics?: string;
}

function interfaceArgument(text: string, before: string[] = []): string[] {
  if (!/^[^\s/"]{1,15}$/.test(text)) throw new InvalidArgumentError('expected the name of an interface');
  return [...before, text];
}

export function register(program: Command): void {
  const verb = program
    .command('node')
    .description('run on a Kubernetes node: steer its workloads to their gateways (as root)')
    .requiredOption('--name <name>', 'name of the Node object and in the certificate', nameArgument)
    .requiredOption('--controller <url>', 'plan stream of the controller', urlArgument)
    .requiredOption('--certs <dir>', 'directory with ca.crt, tls.crt, tls.key')
    .requiredOption('--state <dir>', 'what must survive a restart: the last plan')
    .requiredOption(
      '--workload-interface <name>',
      'interface behind which pods live, or a pattern that ends in *; may be given again',
      interfaceArgument,
    )
    .option('--metrics <address:port>', 'metrics, /healthz and /readyz', metricsArgument)
    .addHelpText(
      'after',
      `
Examples:
  sluice node --name node-a --controller https://10.0.0.10:7790 --certs /etc/sluice/certs \\
    --state /var/lib/sluice/node --workload-interface cni0
  sluice node … --workload-interface 'cali*' --metrics 127.0.0.1:7793`,
    )
    .action(async ({ workloadInterface, ...flags }: Flags) => {
      const { runNode } = await import('../node/main.ts');
      await untilSignal(await runNode({ ...flags, workloadInterfaces: workloadInterface }));
    });
  registerCleanup(verb, 'node', async (state) => {
    const { nodeCleaning } = await import('../node/cleanup.ts');
    return nodeCleaning(state);
  });
}
