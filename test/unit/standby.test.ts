/**
 * A controller that stands by plans as the leader does, over what that one has given out, and keeps nothing itself. On the lab's
 * manifests, with a memory that another would write.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { refusedDeletion } from '../../controller/admission/deletion.ts';
import type { Memory } from '../../controller/memory.ts';
import { watchDirectory } from '../../controller/observe/directory.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { type Allocation, emptyMemory, type PlannerMemory } from '../../controller/plan/memory.ts';
import { Standby } from '../../controller/standby.ts';
import { silentLog } from '../../daemon/log.ts';
import { examplesFolder } from '../sluice.ts';

const labManifests = join(examplesFolder, '..', 'lab', 'manifests');
t.setTimeout(60_000);

t.test('it plans, and gives out nothing', async (t) => {
  const state = mkdtempSync(join(tmpdir(), 'sluice-standby-'));
  t.teardown(() => rmSync(state, { recursive: true }));
  const log = silentLog();
  const source = await watchDirectory({ path: labManifests, state, log, onChange: () => {}, onLook: () => {} });
  t.teardown(() => source.close());
  let given: Record<string, Allocation> = { '203.0.113.101': { pool: 'edge', owner: 'billing' } };
  let closed = false;
  let view: PlannerMemory = { ...emptyMemory(), allocations: given };
  const memory: Memory = {
    get memory() {
      return view;
    },
    reserved: 7,
    keep: () => Promise.reject(new Error('a standby keeps nothing')),
    refresh: async () => {
      view = { ...view, allocations: given };
    },
    rest: () => {
      throw new Error('a standby gives nothing back');
    },
    close: async () => {
      closed = true;
    },
  };
  const cache = new PlanCache();
  let plans = 0;
  const standby = await Standby.open({
    ...{ world: { memory: async () => memory, files: state }, state, source, cache, log, now: Date.now },
    onPlanned: () => plans++,
  });
  const until = async (what: string, holds: () => boolean): Promise<void> => {
    for (const end = performance.now() + 30_000; !holds() && performance.now() < end; ) await sleep(10);
    t.ok(holds(), what);
  };
  await until('it plans by itself', () => plans === 1);
  const workloads = () => Object.keys(standby.planned?.plans.get('edge')?.workloads ?? {}).length;
  t.ok(workloads() > 3, `${workloads()} workloads`);
  t.same(standby.planned?.memory.allocations, given, 'what it would give out is not said to be given out');
  const objects = cache.look(source.current().snapshot);
  const refusal = (name: string): string | undefined => {
    const egressIP = objects.EgressIP.find(({ metadata }) => metadata.name === name);
    if (standby.planned === undefined || egressIP === undefined) throw new Error('nothing is planned');
    return refusedDeletion(egressIP, { ...standby.planned, objects });
  };
  t.match(refusal('billing'), /2 workloads leave through it/, 'the webhook has what it asks for');
  t.equal(refusal('kube-system'), undefined);

  given = { ...given, '203.0.113.110': { pool: 'edge', owner: 'kube-system' } };
  standby.trigger();
  await until(
    'what the leader gives out is known',
    () => standby.planned?.memory.allocations['203.0.113.110'] !== undefined,
  );
  t.match(refusal('kube-system'), /leaves? through it/);
  await standby.close();
  t.ok(closed);
  const last = plans;
  standby.trigger();
  await sleep(1_200);
  t.equal(plans, last, 'and it ends');
});
