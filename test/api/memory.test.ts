/**
 * On a real API server: who has which address survives the loss of a controller's disk, two controllers that both believe to
 * lead, and an API server that forgot.
 *   node dist/test/api/memory.test.js [ADDRESSES]      by hand with 10,000 or 100,000
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CustomObjectsApi } from '@kubernetes/client-node';
import t from 'tap';
import { loadKubeConfig } from '../../controller/kubernetes/client.ts';
import { ClusterMemory } from '../../controller/kubernetes/memory.ts';
import type { Allocation, PlannerMemory } from '../../controller/plan/memory.ts';
import { silentLog } from '../../daemon/log.ts';
import { RealApiServer } from '../kube/api-server.ts';

const NAMESPACE = 'sluice-system';
const count = Number(process.argv[2] ?? 200);
t.setTimeout(200_000 + 10 * count);
const server = await RealApiServer.start();
t.teardown(() => server.close());
await server.addKinds();
await server.kubectl(['create', 'namespace', NAMESPACE]);
const config = await loadKubeConfig({ kubeconfig: server.kubeconfig });
const api = config.makeApiClient(CustomObjectsApi);
const kind = { group: 'sluice.dev', version: 'v1alpha1', plural: 'egressaddresses' };
const folders: string[] = [];
const NOW = 1_800_000_000_000;

const disk = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'sluice-memory-'));
  folders.push(folder);
  return folder;
};
const open = (state: string): Promise<ClusterMemory> =>
  ClusterMemory.open({ config, namespace: NAMESPACE, state, log: silentLog(), now: () => NOW });
const withAllocations = (memory: PlannerMemory, more: Record<string, Allocation>): PlannerMemory => ({
  ...memory,
  allocations: { ...memory.allocations, ...more },
});
const objects = async (): Promise<Record<string, unknown>> => {
  const { items } = (await api.listClusterCustomObject(kind)) as {
    items: { metadata: { name: string }; spec: object }[];
  };
  return Object.fromEntries(items.map(({ metadata, spec }) => [metadata.name, spec]));
};
const wipe = async (): Promise<void> => {
  await api.deleteCollectionClusterCustomObject(kind);
};
t.teardown(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

const V4 = '203.0.113.101';
const V6 = '2001:db8:113::101';
const billing: Allocation = { pool: 'public', owner: 'billing' };

t.test('another controller, with a disk of its own, goes on where the first was', async (t) => {
  await wipe();
  const first = await open(disk());
  const next = { ...withAllocations(first.memory, { [V4]: billing, [V6]: billing }), shardIndices: { 'edge/0': 7 } };
  t.equal(await first.keep(next, first.reserved), true);
  t.same(await objects(), {
    [V4]: { address: V4, pool: 'public', egressIP: 'billing' },
    '2001-0db8-0113-0000-0000-0000-0000-0101': { address: V6, pool: 'public', egressIP: 'billing' },
  });
  const second = await open(disk());
  t.same(second.memory.allocations, next.allocations);
  t.same(second.memory.shardIndices, { 'edge/0': 7 });
  t.ok(second.reserved >= first.reserved, 'generations only grow');
  const released = withAllocations(second.memory, { [V4]: { ...billing, releasedAt: NOW + 5 } });
  t.equal(await second.keep(released, second.reserved - 1), true);
  t.same((await open(disk())).memory.allocations[V4], { ...billing, releasedAt: NOW + 5 }, 'to the millisecond');
  const before = first.memory.allocations;
  await first.refresh();
  t.same(first.memory.allocations[V4], { ...billing, releasedAt: NOW + 5 }, 'one that stands by sees it');
  t.not(first.memory.allocations, before);
  const seen = first.memory.allocations;
  await first.refresh();
  t.equal(first.memory.allocations, seen, 'and that nothing else happened');
  const { [V6]: _, ...rest } = released.allocations;
  t.equal(await second.keep({ ...released, allocations: rest }, second.reserved - 1), true);
  t.same(Object.keys(await objects()), [V4], 'what is forgotten is no object any more');
});

t.test('whose an address alone is, is there too, and comes back with it', async (t) => {
  await wipe();
  const state = disk();
  const first = await open(state);
  const own = { egressIP: 'billing', owner: 'billing/pay-1' };
  const next = { ...withAllocations(first.memory, { [V4]: billing, [V6]: billing }), owners: { [V4]: own } };
  t.equal(await first.keep(next, first.reserved), true);
  t.match(await objects(), { [V4]: { egressIP: 'billing', owner: 'billing/pay-1' } });
  t.same((await open(disk())).memory.owners, next.owners, 'to whoever leads next');
  const gone = { ...next, owners: { [V4]: { ...own, goneAt: NOW + 5 }, [V6]: { ...own, owner: 'billing/pay-2' } } };
  t.equal(await first.keep(gone, first.reserved - 1), true);
  t.same((await open(disk())).memory.owners, gone.owners);
  t.match(await objects(), { [V4]: { ownerGoneAt: new Date(NOW + 5).toISOString() } });
  await first.close();
  await wipe();
  const again = await open(state);
  t.same(again.memory.owners[V6], { ...own, owner: 'billing/pay-2', goneAt: NOW }, 'its own, from the disk');
  const held = { address: '203.0.113.102', pool: 'public', owner: 'billing', to: 'billing/pay-3' };
  t.equal(again.rest([held]), true);
  t.same(again.memory.owners[held.address], { egressIP: 'billing', owner: 'billing/pay-3', goneAt: NOW });
});

t.test('two that both believe to lead: an address has one owner', async (t) => {
  await wipe();
  const [one, other] = [await open(disk()), await open(disk())];
  const wins = await Promise.all([
    one.keep(withAllocations(one.memory, { [V4]: billing }), one.reserved - 1),
    other.keep(withAllocations(other.memory, { [V4]: { pool: 'public', owner: 'reviews' } }), other.reserved - 1),
  ]);
  t.same([...wins].sort(), [false, true], 'one of them publishes');
  const winner = wins[0] ? 'billing' : 'reviews';
  t.match(await objects(), { [V4]: { egressIP: winner } });
  t.equal((wins[0] ? other : one).memory.allocations[V4]?.owner, winner, 'and the other one knows who has it');
  // Both go on from there, and one writes what the other has not seen.
  t.equal(
    await one.keep(withAllocations(one.memory, { [V4]: { ...billing, releasedAt: NOW } }), one.reserved - 1),
    true,
  );
  t.equal(await other.keep(withAllocations(other.memory, { [V4]: billing }), other.reserved - 1), winner === 'billing');
  t.equal(await other.keep(other.memory, other.reserved), true);
  t.equal(await one.keep(one.memory, one.reserved), false, 'nor are two given the same generations');
  t.equal(await one.keep(one.memory, one.reserved), true);
});

t.test('an API server that was restored from before: what a disk or a gateway knows rests', async (t) => {
  await wipe();
  const state = disk();
  const first = await open(state);
  t.equal(await first.keep(withAllocations(first.memory, { [V4]: billing }), first.reserved - 1), true);
  await first.close();
  await wipe();
  const again = await open(state);
  t.same(again.memory.allocations[V4], { ...billing, releasedAt: NOW }, 'billing may have it back, and nobody else');
  t.equal(again.rest([{ address: V6, pool: 'public', owner: '' }]), true);
  t.equal(await again.keep(again.memory, again.reserved - 1), true);
  t.match(await objects(), { [V4]: { egressIP: 'billing', releasedAt: new Date(NOW).toISOString() } });
  t.equal(Object.keys(await objects()).length, 2);
});

t.test('what the API server refuses is not published', async (t) => {
  await wipe();
  const memory = await open(disk());
  const bad = withAllocations(memory.memory, { [V4]: { pool: 'Not A Name', owner: 'billing' } });
  t.equal(await memory.keep(bad, memory.reserved - 1), false);
  t.same(await objects(), {});
  t.same(memory.memory.allocations, {});
});

t.test(`${count} addresses`, async (t) => {
  await wipe();
  const memory = await open(disk());
  const many = Object.fromEntries(
    Array.from({ length: count }, (_, at) => [`10.${at >> 16}.${(at >> 8) & 255}.${at & 255}`, billing] as const),
  );
  const began = performance.now();
  t.equal(await memory.keep(withAllocations(memory.memory, many), memory.reserved - 1), true);
  const wrote = performance.now();
  const read = await open(disk());
  t.equal(Object.keys(read.memory.allocations).length, count);
  t.comment(`written in ${Math.round(wrote - began)} ms, read in ${Math.round(performance.now() - wrote)} ms`);
  await wipe();
});
