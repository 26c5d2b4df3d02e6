/**
 * `sluice node cleanup` and `sluice gateway cleanup`: uninstalling from one machine. A subcommand of the program's verb,
 * with options of its own.
 */
import { type Command, Option } from 'commander';
import type { PlanRole } from '../api/plan.ts';
import { type Cleaning, type CleanupOptions, type CleanupReport, cleanUp } from '../daemon/cleanup.ts';
import { Exit, json, painter, print, printable, printError } from './output.ts';

interface Flags {
  state: string;
  dryRun?: true;
  force?: true;
  output: 'table' | 'json';
}

/** `verb` has required options, which are those of the program, not of this. */
export function registerCleanup(verb: Command, role: PlanRole, look: (state: string) => Promise<Cleaning>): void {
  verb.enablePositionalOptions().hook('preSubcommand', () => {
    for (const option of verb.options) option.mandatory = false;
  });
  verb
    .command('cleanup')
    .description(
      `take out of the kernel what sluice ${role} put there, and nothing else (as root, after it was stopped)`,
    )
    .requiredOption('--state <dir>', `as it was given to sluice ${role}; it may be gone`)
    .option('--dry-run', 'only say what would go')
    .option('--force', `though sluice ${role} runs, which puts everything back`)
    .addOption(new Option('-o, --output <form>', 'how to print').choices(['table', 'json']).default('table'))
    .addHelpText(
      'after',
      `
It may be run again. Exit codes: 0 nothing of it is there any more, 1 something could not be removed, or the program runs.

Examples:
  sluice ${role} cleanup --state /var/lib/sluice/${role} --dry-run
  sluice ${role} cleanup --state /var/lib/sluice/${role}`,
    )
    .action(async ({ state, dryRun, force, output }: Flags, command: Command) => {
      if (process.getuid?.() !== 0) throw new Exit(1, 'cleanup changes the kernel: run it as root');
      const options: CleanupOptions = { dryRun: dryRun === true, force: force === true };
      const report = await cleanUp(role, () => look(state), options);
      if (output === 'json') print(command, json(report));
      else printReport(command, report);
      if (report.failed.length > 0) throw new Exit(1, `${report.failed.length} could not be removed`);
    });
}

function printReport(command: Command, { role, dryRun, removed, left, failed }: CleanupReport): void {
  const paint = painter(command);
  const verb = dryRun ? 'would remove' : 'removed';
  if (removed.length + failed.length === 0) print(command, `nothing of sluice ${role} is here`);
  for (const what of removed) print(command, `${verb}: ${printable(what)}`);
  for (const { what, why } of left) print(command, `${paint('yellow', 'left')}: ${printable(`${what}: ${why}`)}`);
  for (const { what, error } of failed)
    printError(command, `${paint('red', 'failed')}: ${printable(`${what}: ${error}`)}`);
}
