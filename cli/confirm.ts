/**
 * `sluice confirm`: lists the pools whose plan the controller holds, since it would take most of their workloads away at
 * once, and confirms one of them. It talks to the controller through its state directory (controller/held-pools.ts).
 */
import type { Command } from 'commander';
import { Option } from 'commander';
import { type Held, readHeld, writeConfirmed } from '../controller/held-pools.ts';
import { describeLoss, sumOf } from '../controller/plan/loss.ts';
import { Exit, json, print, table, yaml } from './output.ts';

interface Flags {
  state: string;
  output: 'text' | 'json' | 'yaml';
}

function listText(held: readonly Held[]): string {
  if (held.length === 0) return 'nothing is held\n';
  const rows = held.map(({ pool, lost, of, since, digest }) => [
    pool,
    `${sumOf(lost)} of ${of}`,
    Object.entries(lost)
      .map(([namespace, count]) => `${namespace} ${count}`)
      .join(', '),
    new Date(since).toISOString(),
    digest,
  ]);
  return table(['Pool', 'Lost', 'Namespaces', 'Since', 'Digest'], rows);
}

async function confirm(
  pool: string | undefined,
  digest: string | undefined,
  flags: Flags,
  command: Command,
): Promise<void> {
  const held = await readHeld(flags.state);
  if (held === undefined) throw new Exit(1, `${flags.state} holds no state of a controller`);
  if (pool === undefined) {
    print(command, { text: listText, json, yaml }[flags.output](held));
    return;
  }
  if (digest === undefined) throw new Exit(2, 'which? sluice confirm --state DIR POOL DIGEST');
  const one = held.find((candidate) => candidate.pool === pool);
  if (one === undefined) throw new Exit(1, `nothing is held of pool ${pool}`);
  if (one.digest !== digest) {
    throw new Exit(1, `of pool ${pool} something else is held now: ${describeLoss(one)}, ${one.digest}`);
  }
  await writeConfirmed(flags.state, one);
  print(command, `confirmed: pool ${pool} loses ${describeLoss(one)}\n`);
}

export function register(program: Command): void {
  program
    .command('confirm')
    .description('list plans that are held since they would take most of a pool away, and let one come into force')
    .argument('[pool]', 'GatewayPool; absent: list')
    .argument('[digest]', 'of what is held, as the list says it')
    .requiredOption('--state <dir>', 'state directory of the controller')
    .addOption(new Option('-o, --output <form>', 'form of the list').choices(['text', 'json', 'yaml']).default('text'))
    .addHelpText(
      'after',
      `
Examples:
  sluice confirm --state /var/lib/sluice/controller
  sluice confirm --state /var/lib/sluice/controller edge 3f9a1c07b2de`,
    )
    .action(confirm);
}
