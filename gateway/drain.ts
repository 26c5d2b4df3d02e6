/**
 * How a gateway is asked to leave its shards to others, and says which it has: two files in its state directory, so that it
 * works without a controller and outlives the program. Who asks is `sluice drain` (cli/drain.ts), on the same machine.
 */
import { access, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** What the program writes. */
export interface DrainState {
  /** Its pool has an election (`vrrp`): else a shard stays where it is. */
  elects: boolean;
  drained: boolean;
  /** That it has now. */
  shards: string[];
}

const requestFile = (state: string): string => join(state, 'drained');
const stateFile = (state: string): string => join(state, 'shards.json');

/** `drained`: from now on, until it is taken back. */
export async function requestDrain(state: string, drained: boolean): Promise<void> {
  if (drained) await writeFile(requestFile(state), '');
  else await rm(requestFile(state), { force: true });
}

export const isDrainRequested = (state: string): Promise<boolean> =>
  access(requestFile(state)).then(
    () => true,
    () => false,
  );

export async function writeDrainState(state: string, content: DrainState): Promise<void> {
  const file = stateFile(state);
  await writeFile(`${file}.new`, JSON.stringify(content));
  await rename(`${file}.new`, file);
}

/** undefined: no gateway has written it. */
export async function readDrainState(state: string): Promise<DrainState | undefined> {
  try {
    const { elects, drained, shards } = JSON.parse(await readFile(stateFile(state), 'utf8')) as Partial<DrainState>;
    return {
      elects: elects === true,
      drained: drained === true,
      shards: Array.isArray(shards) ? shards.map(String) : [],
    };
  } catch {
    return undefined;
  }
}
