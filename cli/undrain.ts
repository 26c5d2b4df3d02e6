/** `sluice undrain`: a gateway that was drained (drain.ts) takes its shards back. */
import type { Command } from 'commander';
import { readDrainState, requestDrain } from '../gateway/drain.ts';
import { Exit, print } from './output.ts';

async function undrain({ state }: { state: string }, command: Command): Promise<void> {
  if ((await readDrainState(state)) === undefined) throw new Exit(1, `${state} holds no state of a gateway`);
  await requestDrain(state, false);
  print(command, 'undrained: it takes its shards back as failback of its GatewayPool says\n');
}

export function register(program: Command): void {
  program
    .command('undrain')
    .description('have a gateway take its shards back (on its machine)')
    .requiredOption('--state <dir>', 'state directory of the gateway')
    .addHelpText('after', '\nExample:\n  sluice undrain --state /var/lib/sluice/gateway')
    .action(undrain);
}
