/**
 * `sluice lab down`: leaves nothing, whatever state the lab is in. Works from what the machine shows (namespaces of the
 * lab's prefix, processes inside them) beside lab.json, which may be old, half written or gone. Twice is fine.
 */
import { readdir, rm, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { listNamespaces, must, run } from './netns.ts';
import { placeOf } from './place.ts';
import { isAlive, processesIn, signal } from './process.ts';
import { loadWorld } from './world.ts';

/** True when there was something to take down. */
export async function down(name: string): Promise<boolean> {
  const place = placeOf(name);
  const world = await loadWorld(name);
  const namespaces = await listNamespaces(place.prefix);
  const until = Date.now() + 5_000;
  // Again, until none is left: a process may have started another meanwhile.
  for (;;) {
    const victims = [...(world?.processes ?? []).filter(isAlive), ...(await processesIn(namespaces))];
    if (victims.length === 0) break;
    if (Date.now() > until)
      throw new Error(`lab ${name}: processes do not end: ${victims.map((v) => v.pid).join(', ')}`);
    for (const victim of victims) signal(victim, 'SIGKILL');
    await sleep(10);
  }
  if (namespaces.length > 0) {
    const lines = namespaces.map((namespace) => `netns del ${namespace}\n`).join('');
    // One that cannot be deleted at once (somebody else's mount of it) gets a second try on its own, with the reason.
    if ((await run(['ip', '-force', '-batch', '-'], { input: lines })).code !== 0) {
      for (const namespace of await listNamespaces(place.prefix)) await must(['ip', 'netns', 'del', namespace]);
    }
  }
  const configured = (await readdir('/etc/netns').catch(() => [] as string[])).filter((n) =>
    n.startsWith(place.prefix),
  );
  for (const entry of configured) await rm(join('/etc/netns', entry), { recursive: true, force: true });
  // Fails, as it should, while another lab or somebody else has something there.
  await rmdir('/etc/netns').catch(() => {});
  await rm(place.dir, { recursive: true, force: true });
  return world !== null || namespaces.length > 0 || configured.length > 0;
}
