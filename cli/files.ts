/** Which files a path on the command line stands for (`lint`, `import`), and how large one may be. */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

export const MAX_FILE_BYTES = 32 * 1024 * 1024;
const MAX_DEPTH = 16;

/** YAML files below the path; names that start with a dot are no manifests (as in the directory source). */
export async function filesOf(path: string, depth = 0): Promise<string[]> {
  if (!(await stat(path)).isDirectory()) return [path];
  const files: string[] = [];
  for (const entry of (await readdir(path, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name.startsWith('.')) continue;
    const child = join(path, entry.name);
    if (entry.isDirectory() && depth < MAX_DEPTH) files.push(...(await filesOf(child, depth + 1)));
    else if (/\.ya?ml$/.test(entry.name) && (await isManifest(child))) files.push(child);
  }
  return files;
}

/** A link that leads nowhere is one that cannot be read. */
const isManifest = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isFile(),
    () => true,
  );
