/**
 * The saved plan: what is read is what was saved last, through changes and through a new file; and at every byte at
 * which a writer can have died, the plan before or after a change, never half of one. Damaged files are reported.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import t from 'tap';
import { emptyNodePlan, type NodePlan } from '../../api/plan.ts';
import { copyPlan, diffPlan } from '../../api/plan-delta.ts';
import { hashPlan } from '../../api/plan-hash.ts';
import { silentLog } from '../../daemon/log.ts';
import { SavedPlanFile } from '../../daemon/saved-plan.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-saved-'));
t.teardown(() => rmSync(dir, { recursive: true }));
const fileIn = (directory: string): string => join(directory, 'plan.saved');

function planOf(...pods: string[]): NodePlan {
  const plan = emptyNodePlan();
  for (const pod of pods) {
    const steer = { 4: { shard: 'main/0' } };
    plan.workloads[pod] = { namespace: 'billing', name: pod, uid: pod, addresses: ['10.244.1.2'], steer };
  }
  return plan;
}

/** Saves as a program does: one plan object, changed in place. */
class Writer {
  readonly plan = emptyNodePlan();
  generation = 0;
  readonly file: SavedPlanFile<'node'>;
  constructor(file: SavedPlanFile<'node'>) {
    this.file = file;
  }
  async save(plan: NodePlan, known = true): Promise<void> {
    const delta = diffPlan(this.plan, plan);
    Object.assign(this.plan, copyPlan(plan));
    this.generation++;
    await this.file.save(this.plan, this.generation, hashPlan(plan), known && this.generation > 1 ? delta : undefined);
  }
}

const openIn = (directory: string, leastChanges?: number): Promise<SavedPlanFile<'node'>> =>
  SavedPlanFile.open(directory, 'node', { log: silentLog(), ...(leastChanges !== undefined && { leastChanges }) });

async function read(directory: string) {
  const file = await openIn(directory);
  await file.close();
  return file;
}

t.test('a plan and its changes are read as they were saved', async (t) => {
  const state = join(dir, 'round-trip');
  const nothing = await openIn(state);
  t.equal(nothing.saved, undefined);
  t.equal(nothing.reason, undefined, 'no file, no reason');
  const writer = new Writer(nothing);
  const steps = [planOf('a'), planOf('a', 'b'), planOf('b', 'c'), planOf(), planOf('ä', 'x\ny', 'a')];
  for (const plan of steps) {
    await writer.save(plan);
    const { saved } = await read(state);
    t.same(saved?.plan, plan);
    t.match(saved, { generation: writer.generation, hash: hashPlan(plan) });
  }
  await writer.file.close();
  t.equal(statSync(fileIn(state)).mode & 0o777, 0o600);
  const then = Date.now() / 1000 - 90;
  utimesSync(fileIn(state), then, then);
  const again = await openIn(state);
  t.ok(Math.abs((again.saved?.ageSeconds ?? 0) - 90) < 5, 'it says its age');
  const lines = readFileSync(fileIn(state), 'utf8').split('\n').length;
  await again.save(planOf('a'), 6, hashPlan(planOf('a')), { set: {}, delete: { workloads: ['ä', 'x\ny'] } });
  t.equal(readFileSync(fileIn(state), 'utf8').split('\n').length, lines + 3, 'the next run appends');
  t.same((await read(state)).saved?.plan, planOf('a'));
  await again.close();
});

t.test('wherever a writer died, the plan before or after a change is read', async (t) => {
  const state = join(dir, 'torn');
  const writer = new Writer(await openIn(state));
  await writer.save(planOf('a', 'b'));
  const sizes = [{ bytes: statSync(fileIn(state)).size, plan: planOf('a', 'b') }];
  for (const plan of [planOf('a'), planOf('a', 'c', 'd'), planOf('d')]) {
    await writer.save(plan);
    sizes.push({ bytes: statSync(fileIn(state)).size, plan });
  }
  await writer.file.close();
  const whole = readFileSync(fileIn(state));
  const cut = join(dir, 'cut');
  const other = await openIn(cut);
  await other.save(planOf(), 1, hashPlan(planOf()));
  await other.close();
  let wrong = 0;
  for (let bytes = 0; bytes <= whole.length; bytes++) {
    writeFileSync(fileIn(cut), whole.subarray(0, bytes));
    const { saved, reason } = await read(cut);
    const expected = sizes.findLast((step) => step.bytes <= bytes);
    const generation = expected === undefined ? undefined : sizes.indexOf(expected) + 1;
    const hash = expected && hashPlan(expected.plan);
    const right =
      saved === undefined
        ? expected === undefined && reason !== undefined
        : saved.generation === generation && saved.hash === hash && hashPlan(saved.plan) === hash;
    if (!right) wrong++;
    if (!right) t.fail(`cut after ${bytes} bytes: generation ${saved?.generation}, ${reason}`);
  }
  t.equal(wrong, 0, `${whole.length} cuts`);

  // A byte that is another: nothing wrong is read either.
  for (let at = 0; at < whole.length; at++) {
    const damaged = Buffer.from(whole);
    damaged[at] = (damaged[at] ?? 0) ^ 1;
    writeFileSync(fileIn(cut), damaged);
    const { saved } = await read(cut);
    const known = sizes.map(({ plan }) => hashPlan(plan));
    if (saved === undefined || (saved.hash === hashPlan(saved.plan) && known[saved.generation - 1] === saved.hash))
      continue;
    t.fail(`byte ${at} changed: something was read that was never saved`);
  }

  writeFileSync(fileIn(cut), whole.subarray(0, whole.length - 3));
  const torn = await openIn(cut);
  t.equal(torn.saved?.generation, 3);
  await torn.save(planOf('d', 'e'), 9, hashPlan(planOf('d', 'e')), { set: {}, delete: {} });
  t.same(
    (await read(cut)).saved?.plan,
    planOf('d', 'e'),
    'nothing is appended to a torn end: the plan is written whole',
  );
  await torn.close();
});

t.test('a new file when the changes outgrow the snapshot, while more come', async (t) => {
  const state = join(dir, 'renewed');
  const writer = new Writer(await openIn(state, 2_000));
  const names = Array.from({ length: 40 }, (_, at) => `pod-${at}`);
  await writer.save(planOf(...names));
  const first = statSync(fileIn(state)).size;
  let largest = 0;
  for (let round = 0; round < 300; round++) {
    await writer.save(planOf(...names.slice(round % 20, 20 + (round % 20)), `new-${round}`));
    const { size } = statSync(fileIn(state));
    largest = Math.max(largest, size);
    if (round % 10 !== 0) continue;
    copyFileSync(fileIn(state), fileIn(dir));
    const { saved } = await read(dir);
    if (saved?.generation !== writer.generation || saved.hash !== hashPlan(writer.plan)) t.fail(`round ${round}`);
  }
  const begins = Number(/"generation":(\d+)/.exec(readFileSync(fileIn(state), 'utf8'))?.[1]);
  t.ok(begins > 250, `it begins with a plan of late (${begins} of 301)`);
  t.ok(largest < 6 * first, `it is bounded (${largest} bytes, ${first} at first)`);
  await writer.file.close();
  t.same((await read(state)).saved?.plan, writer.plan);
  t.equal(existsSync(`${fileIn(state)}.new`), false);
});

t.test('a plan whose changes are not known is written whole, even while a new file is written', async (t) => {
  const state = join(dir, 'whole');
  const writer = new Writer(await openIn(state, 1));
  await writer.save(planOf('a'));
  for (let round = 0; round < 50; round++) {
    await writer.save(planOf('a', `b${round}`));
    await writer.save(planOf(`c${round}`), round % 2 === 0);
    const { saved } = await read(state);
    t.match(saved, { generation: writer.generation, hash: hashPlan(writer.plan) });
  }
  await writer.file.close();
});

t.test('killed in the middle, again and again', async (t) => {
  const state = join(dir, 'killed');
  const program = `
    import { SavedPlanFile } from ${JSON.stringify(new URL('../../daemon/saved-plan.js', import.meta.url).href)};
    import { hashPlan } from ${JSON.stringify(new URL('../../api/plan-hash.js', import.meta.url).href)};
    import { emptyNodePlan } from ${JSON.stringify(new URL('../../api/plan.js', import.meta.url).href)};
    import { silentLog } from ${JSON.stringify(new URL('../../daemon/log.js', import.meta.url).href)};
    const file = await SavedPlanFile.open(${JSON.stringify(state)}, 'node', { log: silentLog(), leastChanges: 3000 });
    const plan = file.saved?.plan ?? emptyNodePlan();
    let generation = file.saved?.generation ?? 0;
    let known = file.saved !== undefined;
    for (;;) {
      const key = 'pod-' + (generation % 50);
      const value = { generation: ++generation, text: 'x'.repeat(generation % 300) };
      plan.workloads[key] = value;
      await file.save(plan, generation, hashPlan(plan), known ? { set: { workloads: { [key]: value } }, delete: {} } : undefined);
      known = true;
      process.stdout.write(generation + '\\n');
    }`;
  let last = 0;
  for (let round = 0; round < 12; round++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    child.stdout.on('data', (chunk) => {
      text += chunk;
    });
    await once(child.stdout, 'data');
    await new Promise((resolve) => setTimeout(resolve, 10 + 13 * round));
    child.kill('SIGKILL');
    await once(child, 'close');
    const said = Number(text.trim().split('\n').at(-1));
    const { saved, reason } = await read(state);
    t.equal(reason, undefined);
    t.ok(said > last, 'the run before was taken up');
    t.ok(saved !== undefined && saved.generation >= said, `what it said is saved (${saved?.generation}, said ${said})`);
    t.equal(saved && hashPlan(saved.plan), saved?.hash);
    last = said;
  }
});

t.test('files that are none, and what becomes of them', async (t) => {
  const state = join(dir, 'bad');
  const writer = new Writer(await openIn(state));
  await writer.save(planOf('a'));
  await writer.save(planOf('b'));
  await writer.file.close();
  const lines = readFileSync(fileIn(state), 'utf8').split('\n').slice(0, -1);
  const summed = (line: string): string => `${crc32(line).toString(16).padStart(8, '0')} ${line}`;
  const body = lines.map((line) => line.slice(9));
  t.same(body.map(summed), lines, 'each line has its checksum');
  const file = (...of: string[]): string => `${of.map(summed).join('\n')}\n`;
  const [head = '', snapshot = '', part = '', end = '', delta = '', change = '', ...rest] = body;
  const rows: [string, string, string | { generation: number }][] = [
    ['as it was', file(...body), { generation: 2 }],
    ['empty', '', 'ends in the middle of a change'],
    ['no checksums', `${body.join('\n')}\n`, 'has a line with a wrong checksum'],
    ['of another role', file(head.replace('node', 'gateway'), ...body.slice(1)), 'is no plan of a node'],
    ['of another version', file(head.replace(':1,', ':7,'), ...body.slice(1)), 'is no plan of a node'],
    ['no snapshot', file(head, delta, change, end), 'has a change of another plan'],
    ['half a snapshot', file(head, snapshot, part), 'ends in the middle of a change'],
    ['two snapshots', file(head, snapshot, part, end, snapshot, part, end), { generation: 1 }],
    [
      'a change of another plan',
      file(head, snapshot, part, end, delta.replace('"from":1', '"from":0'), change, end),
      { generation: 1 },
    ],
    [
      'a change that does not fit',
      file(head, snapshot, part, end, delta, change.replace('["a"]', '["z"]'), end),
      { generation: 1 },
    ],
    [
      'a lacking collection',
      file(head, snapshot.replace('"workloads"', '"w"'), end),
      'a message snapshot: expected the collection "workloads"',
    ],
    [
      '__proto__',
      file(head, snapshot, '{"type":"part","delta":{"set":{"workloads":{"__proto__":{}}},"delete":{}}}', end),
      'a message snapshot: set.workloads has a forbidden key',
    ],
    ['keep', file(...body, '{"type":"keep","generation":9}'), { generation: 2 }],
    ['more lines than there are', file(...body, ...rest), { generation: 2 }],
  ];
  for (const [name, text, expected] of rows) {
    writeFileSync(fileIn(state), text);
    const { saved, reason } = await read(state);
    if (typeof expected === 'string') t.equal(reason, expected, name);
    else t.match(saved, expected, name);
    const next = await openIn(state);
    await next.save(planOf('n'), 50, hashPlan(planOf('n')));
    t.equal((await read(state)).saved?.generation, 50, 'the next plan takes its place');
    await next.close();
  }
  writeFileSync(join(dir, 'no-directory'), '');
  const nowhere = await openIn(join(dir, 'no-directory'));
  t.match(nowhere.reason, /cannot be read/);
  await t.rejects(nowhere.save(planOf('a'), 1, hashPlan(planOf('a'))));
});
