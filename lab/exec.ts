/** `sluice lab exec HOST -- COMMAND`: runs a command in a host, with this terminal, and ends with its exit code. */
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { inNamespace } from './netns.ts';
import { placeOf } from './place.ts';
import { mustLoadWorld } from './world.ts';

export async function exec(lab: string, host: string, command: string[]): Promise<number> {
  const world = await mustLoadWorld(lab);
  if (!world.topology.hosts.some((h) => h.name === host)) {
    throw new Error(`no host ${host}; there are ${world.topology.hosts.map((h) => h.name).join(', ')}`);
  }
  const [program = '', ...rest] = inNamespace(placeOf(lab).namespace(host), command);
  const child = spawn(program, rest, { stdio: 'inherit' });
  // The terminal sends Ctrl-C to the command as well; it decides what that means.
  const ignore = (): void => {};
  process.on('SIGINT', ignore);
  try {
    return await new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
    });
  } finally {
    process.off('SIGINT', ignore);
  }
}
