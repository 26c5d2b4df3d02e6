/**
 * Which files a path on the command line stands for (`lint`, `import`), and how large one may be: a file itself, of a
 * directory what the directory source reads of it.
 */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { MAX_FILES, Tree } from '../controller/observe/tree.ts';

export const MAX_FILE_BYTES = 32 * 1024 * 1024;

export interface Files {
  files: string[];
  /** What is there and cannot be read, or is not: place → why. */
  unread: Map<string, string>;
}

/** Rejects if there is no such path. */
export async function filesOf(path: string): Promise<Files> {
  if (!(await stat(path)).isDirectory()) return { files: [path], unread: new Map() };
  const { files, unreadable, tooMany } = await new Tree(path, MAX_FILES).list();
  const unread = new Map([...unreadable].map(([place, why]) => [join(path, place), why]));
  if (tooMany) unread.set(path, `more than ${MAX_FILES} files: the rest is not read`);
  return { files: [...files.keys()].map((file) => join(path, file)), unread };
}
