/** The file of flow records: rotated by size, written in batches, and never waited for. */
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FlowLog } from '../../gateway/record/flow-log.ts';

t.test('flow log', async (t) => {
  const folder = t.testdir({});
  const file = join(folder, 'deep', 'flows.jsonl');
  const log = new FlowLog(file, 100);
  const written: number[] = [];
  for (let n = 0; n < 40; n++) {
    log.write({ n, padding: 'x'.repeat(60) });
    written.push(n);
    log.flush();
  }
  log.write({ n: 40 });
  log.close();
  t.equal(log.lost, 0);
  const names = readdirSync(join(folder, 'deep')).sort();
  t.same(names, ['flows.jsonl', ...[1, 2, 3, 4, 5].map((n) => `flows.jsonl.${n}`)], 'five old files are kept');
  const kept = [...names.slice(1).reverse(), 'flows.jsonl'].flatMap((name) =>
    readFileSync(join(folder, 'deep', name), 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => (JSON.parse(line) as { n: number }).n),
  );
  t.same(kept, [...written, 40].slice(-kept.length), 'the newest lines, whole and in order, the oldest file last');

  const again = new FlowLog(file);
  again.write({ n: 41 });
  again.close();
  t.match(readFileSync(file, 'utf8'), /"n":40\}\n\{"n":41\}\n$/, 'a start goes on where the last run ended');

  const small = new FlowLog(file, 10);
  small.write({ n: 42 });
  small.close();
  t.equal(readFileSync(file, 'utf8'), '{"n":42}\n', 'what was there already counts for the size');

  const fullDisk = new FlowLog('/dev/full');
  for (let n = 0; n < 3; n++) fullDisk.write({ n });
  fullDisk.close();
  t.equal(fullDisk.lost, 3, 'what a full disk does not take is counted');

  const slow = new FlowLog(join(folder, 'slow.jsonl'));
  const megabyte = 'x'.repeat(1024 * 1024);
  for (let n = 0; n < 12; n++) slow.write({ n, megabyte });
  t.equal(slow.lost, 4, 'more than 8 MiB that wait to be written are lost, and counted');
  slow.flush();
  slow.write({ n: 13 });
  slow.close();
  t.equal(slow.lost, 4, 'once written there is room again');
  rmSync(folder, { recursive: true });
});
