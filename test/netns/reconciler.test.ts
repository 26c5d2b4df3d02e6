/**
 * When a reconciliation looks at the nftables table: after what somebody else did to it, not after what we did ourselves.
 * Real events, in a namespace of its own. Root.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pino from 'pino';
import t from 'tap';
import { startReconciler } from '../../daemon/reconciler.ts';
import { emptyChange, type TableChange } from '../../kernel/nft.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { run } from '../../kernel/run.ts';

const TABLE = 'sluice';
const namespace = `t-reconciler-${process.pid}`;
const shape = 'type ipv4_addr;';
const element = (key: string): TableChange => ({
  ...emptyChange('inet', TABLE),
  elementsIn: [{ set: 's', shape, elements: [[key, '']] }],
});

await run(['ip', 'netns', 'add', namespace], { op: 'netns add' });
t.teardown(() => run(['ip', 'netns', 'del', namespace], { op: 'netns del' }));
t.setTimeout(570_000);

t.test('what takes long to find out is found out while others have their turns', async (t) => {
  const said: string[] = [];
  let found = (): void => undefined;
  const reconciler = startReconciler({
    table: TABLE,
    nft: new HostNft({ namespace }),
    look: () =>
      new Promise((resolve) => {
        said.push('look');
        found = resolve;
      }),
    reconcile: async () => void said.push('reconcile'),
    everyMs: 50,
    log: pino({ level: 'silent' }),
  });
  const until = async (word: string): Promise<void> => {
    while (!said.includes(word)) await sleep(10);
  };
  try {
    await until('look');
    await reconciler.inTurn(async () => void said.push('release'));
    t.same(said.includes('reconcile'), false);
    t.ok(said.includes('release'));
    found();
    await until('reconcile');
  } finally {
    await reconciler.close();
  }
});

t.test("only somebody else's change of the table is looked for", async (t) => {
  const ours = new HostNft({ namespace });
  const others = new HostNft({ namespace });
  const seen: boolean[] = [];
  let refuse = false;
  const reconciler = startReconciler({
    table: TABLE,
    nft: ours,
    async reconcile(table) {
      seen.push(table);
      if (refuse) throw new Error('not now');
    },
    log: pino({ level: 'silent' }),
  });
  const within = async (milliseconds: number, count: number): Promise<boolean[]> => {
    for (let waited = 0; waited < milliseconds && seen.length < count; waited += 20) await sleep(20);
    return seen.splice(0);
  };
  try {
    await ours.run({ ...emptyChange('inet', TABLE), create: true, sets: [{ name: 's', shape }] });
    for (let n = 0; n < 20; n++) await ours.run(element(`10.0.0.${n}`));
    await ours.runScript(`add chain inet ${TABLE} by_command\n`);
    await others.runScript('add table inet another\nadd chain inet another c\n');
    await others.runScript(`add table ip ${TABLE}\nadd chain ip ${TABLE} c\n`);
    await others.run({ ...emptyChange('inet', 'another'), chains: [{ name: 'd' }] });
    t.same(await within(2000, 1), [], 'our own changes, and those of other tables');

    await others.run(element('10.0.1.1'));
    await others.runScript(`add element inet ${TABLE} s { 10.0.1.2 }\n`);
    t.same(await within(60_000, 1), [true], 'somebody adds elements: looked at once for both');
    await others.run(element('10.0.1.3'));
    t.same(await within(2000, 1), [], 'and not again at once');
    await others.drop(TABLE);
    t.same(await within(6_000, 1), [true], 'a deletion: at once, not ten seconds after the last');
    t.same(await within(1500, 1), [], 'which is for the change before too');

    await ours.run({ ...emptyChange('inet', TABLE), create: true });
    refuse = true;
    await others.runScript('flush ruleset\n');
    t.same(await within(60_000, 2), [true, true], 'one that fails is tried again, the table with it');
    refuse = false;
    t.same(await within(60_000, 1), [true]);
    t.same(await within(1500, 1), [], 'until it has done it');
    await ours.run({ ...emptyChange('inet', TABLE), create: true });
    await ours.drop(TABLE);
    t.same(await within(700, 1), [], 'we may delete it');

    const isOwn = ours.isOwn.bind(ours);
    let heard = 0;
    ours.isOwn = (port) => {
      heard++;
      return isOwn(port);
    };
    const elements = Array.from({ length: 20_000 }, (_, n): [string, string] => [`10.1.${n >> 8}.${n & 255}`, '']);
    const big: TableChange = {
      ...emptyChange('inet', TABLE),
      create: true,
      sets: [{ name: 's', shape }],
      elementsIn: [{ set: 's', shape, elements }],
    };
    await ours.run(big);
    t.same([await within(1500, 1), heard], [[], 0], 'of a big table we do not even hear');
    await ours.run(element('10.0.0.1'));
    for (let tries = 0; tries < 1000 && heard === 0; tries++) await sleep(20);
    t.not(heard, 0, 'afterwards we do');
    await ours.drop(TABLE);
    const made = ours.run(big);
    await others.run({ ...emptyChange('inet', 'another'), create: true });
    await made;
    t.same(await within(60_000, 1), [true], 'what others did meanwhile may have been to ours');
  } finally {
    await reconciler.close();
  }
});
