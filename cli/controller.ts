/** `sluice controller`: observes a source, plans, publishes plans to gateways and nodes. */
import { type Command, InvalidArgumentError } from 'commander';
import type { Listen } from '../daemon/listen.ts';
import { parseListen } from '../daemon/listen.ts';

export function listenArgument(text: string): Listen {
  const parsed = parseListen(text);
  if (!parsed.ok) throw new InvalidArgumentError(parsed.error);
  return parsed.value;
}

export function sourceArgument(text: string): string {
  if (!/^directory:.+/.test(text)) throw new InvalidArgumentError('expected directory:PATH');
  return text;
}

/** Runs until SIGINT or SIGTERM, then closes; a second signal ends the process at once. */
export async function untilSignal(closable: { close(): Promise<void> }): Promise<void> {
  await new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
  await closable.close();
}

export function register(program: Command): void {
  program
    .command('controller')
    .description('observe the manifests, plan, and publish plans to gateways and nodes')
    .requiredOption('--source <source>', 'directory:PATH of Kubernetes YAML, watched', sourceArgument)
    .requiredOption('--state <dir>', 'what must survive a restart: allocations, generation, last good objects')
    .requiredOption('--listen <address:port>', 'plan stream, mutual TLS', listenArgument)
    .requiredOption('--certs <dir>', 'directory with ca.crt, tls.crt, tls.key')
    .option('--metrics <address:port>', 'metrics, /healthz and /readyz', listenArgument)
    .addHelpText(
      'after',
      `
Example:
  sluice controller --source directory:/etc/sluice/manifests --state /var/lib/sluice/controller \\
    --listen 10.0.0.10:7790 --certs /etc/sluice/certs --metrics 127.0.0.1:7791`,
    )
    .action(async (flags: { source: string; state: string; listen: Listen; certs: string; metrics?: Listen }) => {
      const { runController } = await import('../controller/main.ts');
      const { createLog } = await import('../daemon/log.ts');
      await untilSignal(await runController({ ...flags, log: createLog('controller') }));
    });
}
