/**
 * The directory source and symbolic links (controller/observe/tree.ts), with a real inotify: those of a mounted ConfigMap
 * are followed, none leads out to another directory or around in a circle, and what is not read is said.
 */
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { watchDirectory } from '../../controller/observe/directory.ts';
import { silentLog } from '../../daemon/log.ts';

const yaml = (name: string): string =>
  `apiVersion: v1\nkind: ConfigMap\nmetadata: { name: ${name}, namespace: a }\ndata: { k: x }\n`;

t.test('the directory source: links', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-d-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const inside = (name: string) => join(root, 'manifests', name);
  for (const directory of ['..2026', '..2026/sub', '..2026/sub/deep', 'plain', '../elsewhere']) {
    await mkdir(inside(directory), { recursive: true });
  }
  await symlink('..2026', inside('..data'));
  await writeFile(inside('..2026/top.yaml'), yaml('top'));
  await writeFile(inside('..2026/sub/deep/below.yaml'), yaml('below'));
  await writeFile(inside('plain/own.yaml'), yaml('own'));
  await writeFile(inside('../elsewhere/far.yaml'), yaml('far'));
  await writeFile(inside('../elsewhere/file.yaml'), yaml('file'));
  const source = await watchDirectory({ path: inside(''), log: silentLog(), onChange: () => undefined });
  t.teardown(() => source.close());
  const names = () => [...source.current().snapshot.keys()].map((key) => key.split('/')[2]).sort();
  const until = async (title: string, check: () => boolean) => {
    const since = performance.now();
    while (!check() && performance.now() - since < 10_000) await new Promise((done) => setTimeout(done, 10));
    t.ok(check(), title);
  };
  t.same([names(), source.current().errors], [['own'], []], 'what is hidden is not read');
  await symlink('..data/sub', inside('sub'));
  await symlink('..data/top.yaml', inside('top.yaml'));
  await until('as in a mounted ConfigMap', () => names().join() === 'below,own,top');
  await symlink('../elsewhere/file.yaml', inside('file.yaml'));
  await until('a file that is elsewhere', () => names().includes('file'));
  await writeFile(inside('..2026/sub/deep/below.yaml'), yaml('changed'));
  await until('below a link things are watched', () => names().includes('changed'));

  await symlink('.', inside('loop'));
  await symlink('plain', inside('again'));
  await symlink('..', inside('..2026/sub/around'));
  await symlink('../sub', inside('..2026/sub/self'));
  await symlink(join(root, 'elsewhere'), inside('out'));
  await symlink('nowhere', inside('plain/gone.yaml'));
  await symlink('round.yaml', inside('round.yaml'));
  await rm(inside('../elsewhere/file.yaml'));
  await until('all is said', () => source.current().errors.length === 6);
  t.match(
    source.current().errors.toSorted((a, b) => (a.file < b.file ? -1 : 1)),
    [
      { file: 'file.yaml', reason: 'Unreadable', details: ['a link that leads nowhere'] },
      { file: 'out/', reason: 'Unreadable', details: [/^a link to a directory outside of the manifests/] },
      { file: 'plain/gone.yaml', reason: 'Unreadable', details: ['a link that leads nowhere'] },
      { file: 'round.yaml', reason: 'Unreadable', details: [/^ELOOP/] },
      {
        file: 'sub/around/',
        reason: 'Unreadable',
        details: [/^a link to a directory from a directory that is a link/],
      },
      { file: 'sub/self/', reason: 'Unreadable' },
    ],
  );
  t.same(names(), ['changed', 'file', 'own', 'top'], 'what cannot be read stays in force, and nothing is read twice');
});
