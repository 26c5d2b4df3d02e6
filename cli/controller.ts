/** `sluice controller`: observes a source, plans, publishes plans to gateways and nodes. */
import { type Command, InvalidArgumentError } from 'commander';
import type { Listen } from '../daemon/listen.ts';
import { parseListen } from '../daemon/listen.ts';
import { Exit } from './output.ts';

export function listenArgument(text: string): Listen {
  const parsed = parseListen(text);
  if (!parsed.ok) throw new InvalidArgumentError(parsed.error);
  return parsed.value;
}

export function sourceArgument(text: string): string {
  if (!/^directory:.+/.test(text)) throw new InvalidArgumentError('expected directory:PATH');
  return text;
}

const anySourceArgument = (text: string): string => {
  if (text === 'kubernetes' || /^directory:.+/.test(text)) return text;
  throw new InvalidArgumentError('expected kubernetes or directory:PATH');
};

interface Flags {
  source: string;
  kubeconfig?: string;
  context?: string;
  state: string;
  listen: Listen;
  certs: string;
  ca?: string;
  enrol?: Listen;
  admission?: Listen;
  admissionCerts?: string;
  metrics?: Listen;
}

/** Exit code of a controller that leads no more, for whoever starts it again. */
const LOST = 75;

const signals = ['SIGINT', 'SIGTERM'] as const;

/** Runs until SIGINT or SIGTERM, then closes; a second signal ends the process at once. */
export async function untilSignal(closable: { close(): Promise<void> }): Promise<void> {
  await new Promise<void>((resolve) => {
    for (const signal of signals) process.once(signal, () => resolve());
  });
  await closable.close();
}

export function register(program: Command): void {
  program
    .command('controller')
    .description('observe the manifests, plan, and publish plans to gateways and nodes')
    .requiredOption('--source <source>', 'kubernetes, or directory:PATH of Kubernetes YAML, watched', anySourceArgument)
    .option('--kubeconfig <file>', 'of --source kubernetes: the way to the API server; absent: as kubectl finds it')
    .option('--context <name>', 'of that file; absent: its current one')
    .requiredOption('--state <dir>', 'what must survive a restart: allocations, generation, last good objects')
    .requiredOption('--listen <address:port>', 'plan stream, mutual TLS', listenArgument)
    .requiredOption('--certs <dir>', 'directory with ca.crt, tls.crt, tls.key')
    .option('--ca <dir>', 'directory of the CA (ca.crt, ca.key): certificates are renewed with it')
    .option('--enrol <address:port>', 'where gateways and nodes are enrolled by token; needs --ca', listenArgument)
    .option('--admission <address:port>', 'the validating webhook; needs --admission-certs', listenArgument)
    .option('--admission-certs <dir>', 'directory with tls.crt, tls.key of the webhook')
    .option('--metrics <address:port>', 'metrics, /healthz and /readyz', listenArgument)
    .addHelpText(
      'after',
      `
Example:
  sluice controller --source directory:/etc/sluice/manifests --state /var/lib/sluice/controller \\
    --listen 10.0.0.10:7790 --certs /etc/sluice/certs --metrics 127.0.0.1:7791 \\
    --ca /etc/sluice/ca --enrol 10.0.0.10:7795
  sluice controller --source kubernetes --state /var/lib/sluice/controller --listen 0.0.0.0:7790 --certs /etc/sluice/certs`,
    )
    .action(async (flags: Flags) => {
      const { admission: listen, admissionCerts: certs, ...rest } = flags;
      if ((listen === undefined) !== (certs === undefined))
        throw new Exit(2, '--admission and --admission-certs come together');
      const admission = listen === undefined || certs === undefined ? {} : { admission: { listen, certs } };
      if (flags.enrol !== undefined && flags.ca === undefined) throw new Exit(2, '--enrol needs --ca');
      const { runController } = await import('../controller/main.ts');
      const { createLog } = await import('../daemon/log.ts');
      const log = createLog('controller');
      const onLost = (reason: string): never => {
        log.error({ reason }, 'another controller may lead: this one ends');
        // At once: what is under way here must not come to anything any more.
        process.exit(LOST);
      };
      // One that stands by has nothing to finish; as the first process of a container it would not even hear a signal.
      const end = (): never => process.exit(0);
      for (const signal of signals) process.once(signal, end);
      const controller = await runController({ ...rest, ...admission, log, onLost });
      for (const signal of signals) process.off(signal, end);
      await untilSignal(controller);
    });
}
