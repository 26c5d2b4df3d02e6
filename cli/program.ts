/**
 * The command `sluice`: its verbs, one file each, and what they have in common: help with examples, and exit codes
 * 0 (done), 1 (failed, or the answer is no), 2 (used wrongly), 3 (simulate, import: done, with a but). Nothing here starts
 * anything at import.
 */
import { Command, CommanderError, type OutputConfiguration } from 'commander';
import { register as certs } from './certs.ts';
import { register as confirm } from './confirm.ts';
import { register as controller } from './controller.ts';
import { register as enrol } from './enrol.ts';
import { register as explain } from './explain.ts';
import { register as flows } from './flows.ts';
import { register as gateway } from './gateway.ts';
import { register as get } from './get.ts';
import { register as importer } from './import/command.ts';
import { register as lab } from './lab.ts';
import { register as lint } from './lint.ts';
import { register as node } from './node.ts';
import { Exit, printable } from './output.ts';
import { register as run } from './run.ts';
import { register as simulate } from './simulate.ts';
import { register as suggest } from './suggest/command.ts';

const verbs = [
  run,
  controller,
  gateway,
  node,
  certs,
  enrol,
  lint,
  get,
  explain,
  flows,
  suggest,
  simulate,
  confirm,
  importer,
  lab,
];

export function buildProgram(output: OutputConfiguration = {}): Command {
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
  for (const register of verbs) register(program);
  return program;
}

/** Runs one command line and returns its exit code; errors are told in one line. */
export async function runCli(args: readonly string[], output: OutputConfiguration = {}): Promise<number> {
  const program = buildProgram(output);
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
