/**
 * Elements that count packets, while a transaction is worked through that brings both them and the rules that name them
 * (kernel/nft-change.ts, countersFirst()): a flood of packets meets the rules the moment they are there. Root.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import t from 'tap';
import {
  diffRuleset,
  emptyChange,
  emptyState,
  type NftSet,
  shapeOf,
  stateOf,
  type TableChange,
} from '../../kernel/nft.ts';
import { countersFirst } from '../../kernel/nft-change.ts';
import { listCounts } from '../../kernel/nft-counts.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { run } from '../../kernel/run.ts';

const TABLE = 't';
const MANY = 60_000;
const namespace = `t-nftcount-${process.pid}`;
const nft = new HostNft({ namespace });

t.setTimeout(570_000);
await run(['ip', 'netns', 'add', namespace], { op: 'netns add' });
await run(['ip', '-n', namespace, 'link', 'set', 'lo', 'up'], { op: 'link' });
t.teardown(() => run(['ip', 'netns', 'del', namespace], { op: 'netns del' }));

const hits: NftSet = { type: 'mark', counted: true, size: 1024, elements: new Map() };
const many: NftSet = { type: 'mark', elements: new Map() };
const elements = Array.from({ length: MANY }, (_, at): [string, string] => [
  `0x${(at + 1).toString(16).padStart(8, '0')}`,
  '',
]);
const marks = Array.from({ length: 8 }, (_, at) => 0x77 + at);
const markOf = (mark: number): string => `0x${mark.toString(16).padStart(8, '0')}`;

t.test('no packet adds a second element of the same key', async (t) => {
  const before = {
    family: 'inet' as const,
    table: TABLE,
    counters: [],
    // In their order: the kernel is long busy with the many.
    sets: { many, hits },
    chains: {
      base: { hook: 'type filter hook output priority 0; policy accept;', rules: ['jump walk'] },
      walk: { rules: ['accept'] },
    },
  };
  await nft.run(diffRuleset(emptyState(), before));
  const flood = spawn('ip', ['netns', 'exec', namespace, 'ping', '-f', '-q', '127.0.0.1'], { stdio: 'ignore' });
  t.teardown(() => flood.kill('SIGKILL'));
  const after = (full: boolean): typeof before => ({
    ...before,
    sets: {
      many: { ...many, elements: new Map(full ? elements : []) },
      hits: { ...hits, elements: new Map(full ? marks.map((mark) => [markOf(mark), '']) : []) },
    },
    chains: {
      ...before.chains,
      walk: {
        rules: full
          ? marks.flatMap((mark) => [`meta mark set ${markOf(mark)}`, 'update @hits { meta mark }'])
          : ['accept'],
      },
    },
  });
  for (let round = 0; round < 5; round++) {
    await nft.run(diffRuleset(stateOf(before), after(true)));
    const text = await run(['ip', 'netns', 'exec', namespace, 'nft', 'list', 'set', 'inet', TABLE, 'hits'], {
      op: 'nft list',
    });
    for (const mark of marks) t.equal(text.split(markOf(mark)).length - 1, 1, `round ${round}: one of ${markOf(mark)}`);
    t.ok(((await listCounts(TABLE, 'hits', { namespace })).get(marks[0] ?? 0)?.packets ?? 0) > 0, 'which counts');
    await nft.run(diffRuleset(stateOf(after(true)), before));
  }
  const ended = once(flood, 'exit');
  flood.kill('SIGKILL');
  await ended;
});

t.test('which elements come first', async (t) => {
  const change: TableChange = {
    ...emptyChange('inet', TABLE),
    rules: [['walk', 'drop']],
    elementsIn: [
      { set: 'many', shape: shapeOf(many), elements: [['0x00000001', '']] },
      { set: 'hits', shape: shapeOf(hits), elements: [['0x00000002', '']] },
    ],
  };
  const [plain, counting] = change.elementsIn;
  t.same(countersFirst(change), [
    { ...emptyChange('inet', TABLE), elementsIn: [counting] },
    { ...change, elementsIn: [plain] },
  ]);
  const alone = { ...emptyChange('inet', TABLE), elementsIn: change.elementsIn.slice(1) };
  t.same(countersFirst(alone), [alone], 'nothing else: one transaction');
  const made = { ...change, sets: [{ name: 'hits', shape: shapeOf(hits) }] };
  t.same(countersFirst(made), [made], 'of a set that is not there yet they cannot');
});
