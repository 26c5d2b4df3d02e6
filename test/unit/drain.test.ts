/** `sluice drain` and `undrain`, with a gateway of paper that does what it is asked. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { isDrainRequested, readDrainState, writeDrainState } from '../../gateway/drain.ts';
import { sluice } from '../sluice.ts';

const dir = (t: Test): string => {
  const path = mkdtempSync(join(tmpdir(), 'sluice-drain-'));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
};

t.test('it waits until no shard is left, and can be taken back', async (t) => {
  const state = dir(t);
  await writeDrainState(state, { elects: true, drained: false, shards: ['s0', 's3'] });
  const draining = sluice('drain', '--state', state);
  while (!(await isDrainRequested(state))) await new Promise((resolve) => setImmediate(resolve));
  for (const shards of [['s0'], []]) await writeDrainState(state, { elects: true, drained: true, shards });
  t.match(await draining, { code: 0, out: /^drained: it has no shard/, err: '' });
  t.match(await sluice('undrain', '--state', state), { code: 0, out: /^undrained/ });
  t.notOk(await isDrainRequested(state));
  t.match(await sluice('undrain', '--state', state), { code: 0 }, 'twice is once');
});

t.test('what cannot be', async (t) => {
  const state = dir(t);
  for (const verb of ['drain', 'undrain']) {
    t.match(await sluice(verb, '--state', state), { code: 1, err: /holds no state of a gateway/ });
  }
  t.equal(await readDrainState(state), undefined);
  await writeDrainState(state, { elects: false, drained: false, shards: [] });
  t.match(await sluice('drain', '--state', state), { code: 1, err: /has no vrrp/ });
  t.notOk(await isDrainRequested(state), 'nothing is asked for');
  await writeDrainState(state, { elects: true, drained: false, shards: ['s1'] });
  t.match(await sluice('drain', '--state', state, '--wait', '0'), {
    code: 1,
    err: /the gateway program does not answer/,
  });
  await writeDrainState(state, { elects: true, drained: true, shards: ['s1'] });
  t.match(await sluice('drain', '--state', state, '--wait', '0'), { code: 1, err: /it still has s1/ });
  t.match(await sluice('drain', '--state', state, '--wait', 'x'), { code: 2 });
});
