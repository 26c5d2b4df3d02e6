/**
 * `sluice lab fail` and `heal`: cut and mend a host's links, its processes, or both. A link is cut at the switch's end,
 * as by pulling the cable: the host loses its carrier and keeps its addresses and routes. A process is killed (SIGKILL),
 * so that nothing can tidy up after itself.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { must } from './netns.ts';
import { placeOf } from './place.ts';
import { isAlive, type Process, signal } from './process.ts';
import { programName } from './programs.ts';
import { portName } from './render.ts';
import type { Host } from './topology.ts';
import { start } from './up.ts';
import { mustLoadWorld, saveWorld, type World } from './world.ts';

export const faults = ['link', 'process', 'host'] as const;
export type Fault = (typeof faults)[number];

const GONE_MS = 10_000;

function hostOf(world: World, name: string): Host {
  const host = world.topology.hosts.find((h) => h.name === name);
  if (host !== undefined) return host;
  throw new Error(`no host ${name}; there are ${world.topology.hosts.map((h) => h.name).join(', ')}`);
}

/** `which`: one link or program by name; absent: all of the host's. */
export async function fail(lab: string, name: string, fault: Fault, which?: string): Promise<string[]> {
  const world = await mustLoadWorld(lab);
  const host = hostOf(world, name);
  const done = fault === 'process' ? [] : await setLinks(lab, host, 'down', which);
  if (fault !== 'link') {
    for (const process of world.processes.filter((p) => p.host === name && (which ?? p.program) === p.program)) {
      if (!signal(process, 'SIGKILL')) continue;
      await gone(process);
      done.push(`killed ${process.program} (pid ${process.pid})`);
    }
  }
  return done;
}

export async function heal(lab: string, name: string, fault: Fault, which?: string): Promise<string[]> {
  const world = await mustLoadWorld(lab);
  const host = hostOf(world, name);
  const done = fault === 'process' ? [] : await setLinks(lab, host, 'up', which);
  if (fault !== 'link') {
    for (const program of host.programs ?? []) {
      const kind = programName(program);
      const ofIt = world.processes.filter((p) => p.host === name && p.program === kind);
      if ((which ?? kind) !== kind || ofIt.some(isAlive)) continue;
      world.processes = world.processes.filter((p) => !ofIt.includes(p));
      const process = start(host, program, placeOf(lab));
      world.processes.push(process);
      done.push(`started ${kind} (pid ${process.pid})`);
    }
    await saveWorld(placeOf(lab), world);
  }
  return done;
}

/** A killed process is there until the kernel has taken it down; heal() would take it for a living one. */
async function gone(process: Process): Promise<void> {
  for (let waited = 0; isAlive(process); waited += 5) {
    if (waited > GONE_MS) throw new Error(`${process.program} (pid ${process.pid}) is still there after SIGKILL`);
    await sleep(5);
  }
}

async function setLinks(lab: string, host: Host, to: 'up' | 'down', which?: string): Promise<string[]> {
  const place = placeOf(lab);
  const links = (host.links ?? []).filter((link) => (which ?? link.name) === link.name);
  for (const link of links) {
    await must(['ip', '-n', place.namespace(link.to), 'link', 'set', portName(host.name, link), to]);
  }
  return links.map((link) => `${host.name} ${link.name} is ${to}`);
}
