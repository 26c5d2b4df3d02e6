/**
 * What stays the same from one run of the controller's loop to the next, or is put off: objects of manifests that were
 * read again, the memory on disk, statuses of a large cluster.
 */
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { KeptMemory, readKeptMemory } from '../../controller/kept-memory.ts';
import { loadDirectory, watchDirectory } from '../../controller/observe/directory.ts';
import { emptyMemory, type PlannerMemory } from '../../controller/plan/memory.ts';
import { Pace } from '../../controller/publish/pace.ts';
import { StatusDirectory } from '../../controller/publish/status.ts';
import { silentLog } from '../../daemon/log.ts';

const directory = async (test: Pick<typeof t, 'teardown'>): Promise<string> => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-kept-'));
  test.teardown(() => rm(root, { recursive: true, force: true }));
  return root;
};
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
async function until(what: string, holds: () => unknown): Promise<void> {
  for (const began = Date.now(); !(await holds()); await sleep(10)) {
    if (Date.now() - began > 60_000) throw new Error(`never: ${what}`);
  }
}

t.test('a file that is read again gives the objects that it gave, but for those that changed', async (t) => {
  const root = await directory(t);
  const map = (name: string, value: string) =>
    `{apiVersion: v1, kind: ConfigMap, metadata: {name: ${name}, namespace: a}, data: {k: ${value}}}`;
  const file = join(root, 'all.yaml');
  await writeFile(file, [map('one', 'x'), map('two', 'x')].join('\n---\n'));
  const source = await watchDirectory({ path: root, log: silentLog(), onChange: () => undefined });
  t.teardown(() => source.close());
  const before = source.current().snapshot;
  await writeFile(file, [map('two', 'x'), map('one', 'y'), map('three', 'x')].join('\n---\n'));
  await until('it is read', () => source.current().snapshot.size === 3);
  const after = source.current().snapshot;
  t.equal(after.get('ConfigMap/a/two'), before.get('ConfigMap/a/two'), 'the same object, its age and uid made up');
  t.not(after.get('ConfigMap/a/one'), before.get('ConfigMap/a/one'));
  t.match((await loadDirectory(root)).snapshot.get('ConfigMap/a/one'), { data: { k: 'y' } });
});

const release = (name: string) => ({
  fingerprint: name,
  node: 'n',
  entry: { namespace: 'a', name, uid: name, addresses: ['10.1.0.1'], steer: { 4: 'bypass' as const } },
});
const memory = (owner: string, ...pods: string[]): PlannerMemory => ({
  ...emptyMemory(),
  allocations: { '192.0.2.1': { pool: 'd', owner } },
  released: pods.length === 0 ? {} : { n: Object.fromEntries(pods.map((pod) => [pod, release(pod)])) },
});

t.test('memory: addresses are on disk first, releases follow, at most about once a second', async (t) => {
  const root = await directory(t);
  const kept = await KeptMemory.open(root, silentLog());
  t.same(kept.memory, emptyMemory());
  const first = memory('one', 'p');
  await kept.keep(first, 0);
  t.match(JSON.parse(await readFile(join(root, 'planner.json'), 'utf8')), {
    generation: 1000,
    memory: { allocations: { '192.0.2.1': { owner: 'one' } } },
  });
  const releases = join(root, 'released.json');
  await until('releases follow', () => stat(releases).catch(() => undefined));
  const written = await stat(join(root, 'planner.json'));
  const inodes = new Set([(await stat(releases)).ino]);
  const began = Date.now();
  for (let i = 0; Date.now() - began < 900; i++) {
    await kept.keep({ ...first, released: memory('one', 'p', `q${i}`).released }, 5);
    inodes.add((await stat(releases)).ino);
    await sleep(10);
  }
  const seconds = (Date.now() - began) / 1000;
  t.ok(inodes.size <= 2 + Math.floor(seconds), `${inodes.size} files in ${seconds} seconds`);
  t.equal((await stat(join(root, 'planner.json'))).mtimeMs, written.mtimeMs, 'what did not change is not written');
  t.same((await readKeptMemory(root))?.allocations, first.allocations, 'as explain reads it');
  const last = { ...first, released: memory('one', 'p', 'last').released };
  await kept.keep(last, 5);
  await kept.close();
  const again = await KeptMemory.open(root, silentLog());
  t.same(again.memory, last, 'closing writes what waits');
  t.equal(again.reserved, 1000, 'and no generation below was ever used');
  await again.close();

  await writeFile(releases, '{"n":{"p":5}}');
  const damaged = await KeptMemory.open(root, silentLog());
  t.same(damaged.memory, { ...last, released: {} }, 'damaged releases take nobody his address');
  await damaged.close();
  await writeFile(join(root, 'planner.json'), '{"generation":7,"memory":{"allocations":5}}');
  const anew = await KeptMemory.open(root, silentLog());
  t.same([anew.memory, anew.reserved], [emptyMemory(), 7]);
  await anew.close();
});

t.test('Pace: long work is done less often, and the newest of it', async (t) => {
  const errors: unknown[] = [];
  const pace = new Pace((error) => errors.push(error));
  const done: number[] = [];
  for (const at of [1, 2]) pace.run(() => done.push(at));
  t.same(done, [1, 2], 'short work has no pace');
  pace.run(() => {
    for (const began = performance.now(); performance.now() - began < 10; );
    done.push(3);
  });
  for (const at of [4, 5]) pace.run(() => done.push(at));
  t.same(done, [1, 2, 3], 'after ten milliseconds there is a pause of two hundred');
  await until('it is done', () => done.length > 3);
  t.same(done, [1, 2, 3, 5]);
  const long = (): void => {
    for (const began = performance.now(); performance.now() - began < 10; );
  };
  pace.run(long);
  pace.run(() => {
    throw new Error('later');
  });
  await until('the error is told', () => errors.length > 0);
  pace.run(long);
  pace.run(() => done.push(6));
  pace.close();
  t.same(done, [1, 2, 3, 5, 6], 'closing does what waits');

  const short = new Pace((error) => errors.push(error));
  let times = 0;
  const began = performance.now();
  while (performance.now() - began < 100) short.run(() => times++);
  t.ok(times < 20, 'short work that is asked for without end is not done without end');
  let last = 0;
  short.run(() => last++);
  short.close();
  t.equal(last, 1);
});

t.test('statuses: one that is the same object is not looked at again', async (t) => {
  const root = join(await directory(t), '.status');
  await mkdir(root);
  let reads = 0;
  const condition = { type: 'Accepted' as const, status: 'True' as const, reason: 'R', message: 'm' };
  const status = {
    get conditions() {
      reads++;
      return [condition];
    },
  };
  const statuses = new StatusDirectory(root, silentLog());
  const publish = async (...entries: [string, { conditions: (typeof condition)[] }][]): Promise<void> => {
    statuses.publish(new Map(entries), [], new Map());
    await statuses.close();
  };
  await publish(['EgressIP/a', status], ['EgressIP/b', { conditions: [condition] }]);
  const once = reads;
  await publish(['EgressIP/a', status]);
  t.equal(reads, once);
  const there = await Promise.all(
    ['a', 'b'].map((name) =>
      readFile(join(root, `EgressIP/${name}.yaml`), 'utf8').then(
        () => name,
        () => '',
      ),
    ),
  );
  t.same(there, ['a', ''], 'and what is gone is removed');
  await publish(['EgressIP/a', { ...status, conditions: [{ ...condition, message: 'other' }] }]);
  t.match(await readFile(join(root, 'EgressIP/a.yaml'), 'utf8'), /message: other/);
});
