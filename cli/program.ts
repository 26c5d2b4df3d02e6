/**
 * The command `sluice`: its verbs, one file each, and what they have in common: help with examples, and exit codes
 * 0 (done), 1 (failed, or the answer is no), 2 (used wrongly), 3 (simulate, import: done, with a but). Nothing here starts
 * anything at import.
 */
import { Command, CommanderError, type OutputConfiguration } from 'commander';
import { Exit, printable } from './output.ts';

type Register = (program: Command) => void;

/**
 * In the order of the help. Only the one that is asked for is loaded: a gateway's beginning has no use for what `lint` is
 * made of.
 */
const verbs: Readonly<Record<string, () => Promise<{ register: Register }>>> = {
  run: () => import('./run.ts'),
  controller: () => import('./controller.ts'),
  gateway: () => import('./gateway.ts'),
  node: () => import('./node.ts'),
  certs: () => import('./certs.ts'),
  enrol: () => import('./enrol.ts'),
  lint: () => import('./lint.ts'),
  get: () => import('./get.ts'),
  explain: () => import('./explain.ts'),
  flows: () => import('./flows.ts'),
  suggest: () => import('./suggest/command.ts'),
  simulate: () => import('./simulate.ts'),
  confirm: () => import('./confirm.ts'),
  drain: () => import('./drain.ts'),
  undrain: () => import('./undrain.ts'),
  import: () => import('./import/command.ts'),
  lab: () => import('./lab.ts'),
};

/** With all verbs, or with the one that is named and no other. */
export async function buildProgram(output: OutputConfiguration = {}, verb?: string): Promise<Command> {
  const program = new Command('sluice')
    .description('A centralized SNAT egress gateway for Kubernetes: stable egress IPs, hierarchical egress rules.')
    .version('0.1.0')
    .showHelpAfterError('(sluice help VERB shows how it is used)')
    .exitOverride()
    .enablePositionalOptions()
    .configureOutput(output)
    .addHelpText(
      'after',
      `
Exit codes: 0 done, 1 failed, 2 used wrongly; 3 simulate found changes, import could not carry over all.

Examples:
  sluice lab demo                                    # a whole network on this machine
  sluice lint manifests/                             # what is wrong with what I wrote?
  sluice explain --source directory:manifests --from billing/pay-1 --to 198.51.100.80:443`,
    );
  const only = verb !== undefined && Object.hasOwn(verbs, verb) ? verbs[verb] : undefined;
  const loaded = await Promise.all((only === undefined ? Object.values(verbs) : [only]).map((load) => load()));
  for (const { register } of loaded) register(program);
  return program;
}

/** Runs one command line and returns its exit code; errors are told in one line. */
export async function runCli(args: readonly string[], output: OutputConfiguration = {}): Promise<number> {
  const program = await buildProgram(output, args[0]);
  try {
    await program.parseAsync(args, { from: 'user' });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    // Commander has said it already; `--help` and `--version` come this way too. No verb at all is wrong use.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    const message = error instanceof Error ? error.message : String(error);
    if (message !== '') program.configureOutput().writeErr?.(`sluice: ${printable(message)}\n`);
    return error instanceof Exit ? error.code : 1;
  }
}
