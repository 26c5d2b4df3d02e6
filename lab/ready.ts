/**
 * Waits until a lab's Sluice programs are ready (their own /readyz), every EgressIP is `Programmed` by the controller's
 * status, i.e. acknowledged by the gateways, and the nodes steer their pods, which they may only after that: what an operator
 * would look at too.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parse } from 'yaml';
import { placeOf } from './place.ts';
import { isAlive } from './process.ts';
import { isSluice } from './programs.ts';
import { isReady, steeredPods } from './status.ts';
import type { World } from './world.ts';

/** Fifteen programs begin on the processors of one machine: on two slow ones that takes a minute. */
const READY_MS = 180_000;

/** Resolves when nothing is missing; throws with what still is after `timeoutMs`, at once when a program has ended. */
export async function awaitReady(world: World, timeoutMs = READY_MS): Promise<void> {
  const until = Date.now() + timeoutMs;
  for (;;) {
    const ended = world.processes.filter((p) => !isAlive(p));
    if (ended.length > 0) {
      const first = ended[0];
      const tail = (await readFile(first?.log ?? '', 'utf8').catch(() => '')).trim().split('\n').slice(-15).join('\n');
      throw new Error(`${ended.map((p) => `${p.program} on ${p.host}`).join(', ')} ended by itself:\n${tail}`);
    }
    const missing = await missingOf(world);
    if (missing.length === 0) return;
    if (Date.now() > until) {
      throw new Error(
        `not ready after ${timeoutMs / 1000} s: ${missing.join(', ')}; logs are in ${placeOf(world.lab).dir}/logs`,
      );
    }
    // Asking costs a process per program, which the programs that start would rather have.
    await sleep(250);
  }
}

async function missingOf(world: World): Promise<string[]> {
  const place = placeOf(world.lab);
  const programs = world.topology.hosts.flatMap((host) =>
    (host.programs ?? []).filter(isSluice).map((program) => ({ host, program })),
  );
  const ready = await Promise.all(
    programs.map(async ({ host, program }) =>
      (await isReady(place.namespace(host.name), program.kind)) ? [] : [`${program.kind} on ${host.name}`],
    ),
  );
  const missing = ready.flat();
  if (missing.length > 0) return missing;
  const waiting = await unprogrammed(place.manifests);
  return waiting.length > 0 ? waiting : unsteered(world);
}

/** Nodes on which fewer pods are in force than the topology has: of a pod that is not, no more than a few packets are kept. */
async function unsteered({ lab, topology: { hosts } }: World): Promise<string[]> {
  const nodes = hosts.filter((host) => host.programs?.some(({ kind }) => kind === 'node'));
  const missing = nodes.map(async ({ name }) => {
    const pods = hosts.filter(({ links }) =>
      links?.some(({ to, bridge }) => to === name && bridge !== undefined),
    ).length;
    const steered = await steeredPods(placeOf(lab).namespace(name));
    return steered >= pods ? [] : [`${name} to steer ${pods} pods (${steered} by now)`];
  });
  return (await Promise.all(missing)).flat();
}

/** Names of EgressIPs whose condition `Programmed` is not True, or that have no status yet. */
async function unprogrammed(manifests: string): Promise<string[]> {
  const dir = join(manifests, '.status', 'EgressIP');
  const files = await readdir(dir).catch(() => [] as string[]);
  if (files.length === 0) return ['status of EgressIPs'];
  const missing: string[] = [];
  for (const file of files) {
    const text = await readFile(join(dir, file), 'utf8').catch(() => '');
    const object = parse(text) as { status?: { conditions?: { type: string; status: string }[] } } | null;
    const programmed = object?.status?.conditions?.some((c) => c.type === 'Programmed' && c.status === 'True');
    if (programmed !== true) missing.push(`EgressIP ${file.replace(/\.yaml$/, '')} to be programmed`);
  }
  return missing;
}
