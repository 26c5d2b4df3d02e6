/**
 * `sluice drain`: a gateway leaves its shards to others without losing a connection, until `sluice undrain`. On the
 * gateway's machine, through its state directory (gateway/drain.ts): no controller is asked.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { readDrainState, requestDrain } from '../gateway/drain.ts';
import { Exit, print } from './output.ts';

interface Flags {
  state: string;
  wait: string;
}

const POLL_MS = 100;

async function drain({ state, wait }: Flags, command: Command): Promise<void> {
  const seconds = Number(wait);
  if (!(seconds >= 0)) throw new Exit(2, `--wait: expected seconds, got ${JSON.stringify(wait)}`);
  const before = await readDrainState(state);
  if (before === undefined) throw new Exit(1, `${state} holds no state of a gateway`);
  if (!before.elects) throw new Exit(1, 'its GatewayPool has no vrrp: a shard stays with its first gateway');
  await requestDrain(state, true);
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const now = await readDrainState(state);
    if (now?.drained && now.shards.length === 0) break;
    if (Date.now() >= end) {
      const rest = now?.drained ? `it still has ${now.shards.join(', ')}` : 'the gateway program does not answer';
      throw new Exit(1, `asked for, but after ${seconds} s ${rest}: is there another gateway that is complete?`);
    }
    await sleep(POLL_MS);
  }
  print(command, 'drained: it has no shard, and takes one only if no other gateway is there\n');
}

export function register(program: Command): void {
  program
    .command('drain')
    .description('have a gateway leave its shards to others, without losing a connection (on its machine)')
    .requiredOption('--state <dir>', 'state directory of the gateway')
    .option('--wait <seconds>', 'how long to wait until it has none', '60')
    .addHelpText(
      'after',
      `
It stays drained across restarts, until undrained. Exit codes: 0 it has no shard, 1 it still has some.

Examples:
  sluice drain --state /var/lib/sluice/gateway
  sluice undrain --state /var/lib/sluice/gateway`,
    )
    .action(drain);
}
