/**
 * lab.json: what a lab is made of and which processes run in it, written before the first namespace is made and after
 * each change, so that `lab down` after a crash, or in the middle of `lab up`, knows what to look for.
 */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { type Place, placeOf } from './place.ts';
import type { Process } from './process.ts';
import { defaultTopology, type Topology } from './topology.ts';

export interface World {
  lab: string;
  /** Half done until this is true. */
  complete: boolean;
  topology: Topology;
  processes: Process[];
}

export async function saveWorld(place: Place, world: World): Promise<void> {
  const temporary = `${place.file}.new`;
  await writeFile(temporary, `${JSON.stringify(world, null, 1)}\n`, { mode: 0o600 });
  await rename(temporary, place.file);
}

/** Null: there is no such lab, or its file was lost. */
export async function loadWorld(lab: string): Promise<World | null> {
  try {
    const world = JSON.parse(await readFile(placeOf(lab).file, 'utf8')) as World;
    return Array.isArray(world.processes) && Array.isArray(world.topology.hosts) ? world : null;
  } catch {
    return null;
  }
}

export async function mustLoadWorld(lab: string): Promise<World> {
  const world = await loadWorld(lab);
  if (world === null) throw new Error(`no lab ${lab} is up; start it with: sluice lab up --name ${lab}`);
  return world;
}

export const emptyWorld = (lab: string, topology: Topology = defaultTopology): World => ({
  lab,
  complete: false,
  topology,
  processes: [],
});
