/** What parameters were before they were changed, on a tree of files in the place of /proc/sys. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t from 'tap';
import { SysctlMemory } from '../../kernel/sysctl-memory.ts';

const FORWARD = 'net/ipv4/ip_forward';
const FILTER = 'net/ipv4/conf/eth0/rp_filter';

function machine(values: Record<string, string>) {
  const base = mkdtempSync(join(tmpdir(), 'sluice-sysctl-'));
  t.teardown(() => rmSync(base, { recursive: true }));
  const root = join(base, 'sys');
  const set = (key: string, value: string): void => {
    mkdirSync(dirname(join(root, key)), { recursive: true });
    writeFileSync(join(root, key), `${value}\n`);
  };
  const get = (key: string): string => readFileSync(join(root, key), 'utf8').trim();
  set('kernel/random/boot_id', 'boot-1');
  for (const [key, value] of Object.entries(values)) set(key, value);
  const file = join(base, 'state', 'sysctls.json');
  // A program that starts anew each time.
  const memory = (): SysctlMemory => new SysctlMemory(file, { root, except: (key) => key.includes('/ours/') });
  return { set, get, memory, file };
}

t.test('what comes back, and what does not', async (t) => {
  const { set, get, memory } = machine({ [FILTER]: '1', 'net/ipv4/conf/ours/rp_filter': '1', 'net/a': '5' });
  t.equal(await memory().changed(), false, 'no program ran here');
  t.same(await memory().apply({ [FILTER]: '2', 'net/ipv4/conf/ours/rp_filter': '2', 'net/a': '5' }), [
    FILTER,
    'net/ipv4/conf/ours/rp_filter',
  ]);
  t.same(await memory().changed(), new Map([[FILTER, '1']]), 'neither what is excepted, nor what was so already');
  await memory().apply({ [FILTER]: '0' });
  t.same(await memory().changed(), new Map([[FILTER, '1']]), 'what we wrote twice was still what it was at first');
  set(FILTER, '7');
  t.same(await memory().changed(), new Map(), 'it is somebody else’s now');
  await memory().apply({ [FILTER]: '2' });
  t.same(await memory().changed(), new Map([[FILTER, '7']]), 'and to that it goes back');
  await memory().restore(FILTER);
  t.equal(get(FILTER), '7');
  t.same(await memory().changed(), new Map(), 'known to be none');
});

t.test('what the kernel changes beside', async (t) => {
  const forwarding = (device: string): string => `net/ipv4/conf/${device}/forwarding`;
  const redirects = 'net/ipv4/conf/all/accept_redirects';
  const before = { [FORWARD]: '0', [forwarding('eth0')]: '1', [forwarding('eth1')]: '0', [redirects]: '0' };
  const { set, get, memory } = machine(before);
  await memory().apply({ [FORWARD]: '1' });
  for (const key of [forwarding('eth0'), forwarding('eth1')]) set(key, '0');
  set(redirects, '1');
  await memory().restore(FORWARD);
  for (const [key, value] of Object.entries(before)) t.equal(get(key), value, key);
});

t.test('it is on disk before the parameter is changed, and of one boot', async (t) => {
  const { set, memory, file } = machine({ [FILTER]: '1' });
  await t.rejects(memory().apply({ [FILTER]: '2', 'net/missing': '1' }), { code: 'ENOENT' });
  t.match(JSON.parse(readFileSync(file, 'utf8')), { boot: 'boot-1', values: { [FILTER]: { was: '1', wrote: '2' } } });
  set('kernel/random/boot_id', 'boot-2');
  t.equal(await memory().changed(), false);
  await memory().apply({ [FILTER]: '2' });
  t.same(await memory().changed(), new Map(), 'the machine had it so when it started');
  writeFileSync(file, '{"boot":"boot-2","values":');
  t.equal(await memory().changed(), false, 'half a file');
});
