/**
 * The YAML files below a directory, and one inotify watch per directory. Not `fs.watch`'s `recursive`: on Linux that
 * is emulated with a watch per file, which an editor's rename leaves on the old inode. A directory's watch tells of
 * every entry that is made, written, renamed or removed. It is set before the directory is read, so nothing is missed.
 * Links: to a file they are followed. To a directory only where a mounted ConfigMap has them, from `sub` to `..data/sub`:
 * what is not hidden is read where it lies, and what lies elsewhere is not read, which is said.
 */
import { type FSWatcher, watch } from 'node:fs';
import { lstat, readdir, realpath, stat } from 'node:fs/promises';
import { join, relative } from 'node:path';

const MAX_DEPTH = 16;
export const MAX_FILES = 20_000;

export interface TreeFile {
  path: string;
  /** Changes whenever the content may have. */
  signature: string;
  size: number;
}

export interface Listing {
  /** By path relative to the root, in code-unit order. */
  files: Map<string, TreeFile>;
  /** What could not be read, so that nothing is known of it: a file, or a directory with all below, which ends in `/`; that is the root. */
  unreadable: Map<string, string>;
  /** There are more than that: nothing is known of the rest. */
  tooMany: boolean;
}

export class Tree {
  readonly #watchers = new Map<string, { inode: bigint; watcher: FSWatcher }>();
  readonly #root: string;
  readonly #maxFiles: number;
  readonly #onEvent: ((error?: Error) => void) | undefined;

  constructor(root: string, maxFiles: number, onEvent?: (error?: Error) => void) {
    this.#root = root;
    this.#maxFiles = maxFiles;
    this.#onEvent = onEvent;
  }

  async list(): Promise<Listing> {
    const listing: Listing = { files: new Map(), unreadable: new Map(), tooMany: false };
    const seen = new Set<string>();
    await this.#walk('', 0, listing, seen);
    for (const [directory, { watcher }] of this.#watchers) {
      if (seen.has(directory)) continue;
      watcher.close();
      this.#watchers.delete(directory);
    }
    listing.files = new Map([...listing.files].sort(([a], [b]) => (a < b ? -1 : 1)));
    return listing;
  }

  async #walk(directory: string, depth: number, listing: Listing, seen: Set<string>, linked = false): Promise<void> {
    const path = join(this.#root, directory);
    try {
      const { ino } = await stat(path, { bigint: true });
      seen.add(directory);
      this.#watch(directory, path, ino);
      for (const entry of await readdir(path, { withFileTypes: true })) {
        // `.status`, and what editors leave: lock files, swap files.
        if (entry.name.startsWith('.')) continue;
        const child = directory === '' ? entry.name : `${directory}/${entry.name}`;
        const link = entry.isSymbolicLink() ? await this.#linkTo(child, listing, linked) : undefined;
        if (link === 'elsewhere') continue;
        if (entry.isDirectory() || link === 'directory') {
          if (depth < MAX_DEPTH) await this.#walk(child, depth + 1, listing, seen, linked || link === 'directory');
          else listing.unreadable.set(`${child}/`, `deeper than ${MAX_DEPTH} directories`);
        } else if (isYaml(entry.name)) {
          if (listing.files.size < this.#maxFiles) await this.#file(child, listing);
          else listing.tooMany = true;
        }
      }
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      // A directory below the root that has just been removed is simply gone; without the root nothing is known.
      if (code !== 'ENOENT' || directory === '') listing.unreadable.set(`${directory}/`, message);
    }
  }

  /** `directory`: to be walked from here. `linked`: a link led here already, and no second one may lead around in a circle. */
  async #linkTo(child: string, listing: Listing, linked: boolean): Promise<'directory' | 'elsewhere' | 'file'> {
    const path = join(this.#root, child);
    try {
      if (!(await stat(path)).isDirectory()) return 'file';
      const below = relative(await realpath(this.#root), await realpath(path)).split('/');
      const outside = below[0] === '..';
      if (!outside && !below.some((part) => part.startsWith('.'))) return 'elsewhere';
      if (!outside && !linked) return 'directory';
      const where = outside ? 'outside of the manifests' : 'from a directory that is a link itself';
      listing.unreadable.set(
        `${child}/`,
        `a link to a directory ${where}, which is not followed: put the directory itself here`,
      );
      return 'elsewhere';
    } catch (error) {
      // It may have led to a file or to a directory.
      const why = await unreadableText(path, error);
      if (why !== undefined) listing.unreadable.set(isYaml(child) ? child : `${child}/`, why);
      return 'elsewhere';
    }
  }

  async #file(child: string, listing: Listing): Promise<void> {
    const path = join(this.#root, child);
    try {
      // Follows links: a mounted ConfigMap is made of them.
      const found = await stat(path, { bigint: true });
      if (!found.isFile()) {
        listing.unreadable.set(child, 'expected a regular file');
        return;
      }
      const { ino, size, mtimeNs, ctimeNs } = found;
      listing.files.set(child, { path, signature: `${ino}:${size}:${mtimeNs}:${ctimeNs}`, size: Number(size) });
    } catch (error) {
      const why = await unreadableText(path, error);
      if (why !== undefined) listing.unreadable.set(child, why);
    }
  }

  #watch(directory: string, path: string, inode: bigint): void {
    const known = this.#watchers.get(directory);
    if (this.#onEvent === undefined || known?.inode === inode) return;
    known?.watcher.close();
    const onEvent = this.#onEvent;
    try {
      const watcher = watch(path, { persistent: false }, (_event, name) => {
        if (name?.startsWith('.') !== true) onEvent();
      });
      watcher.on('error', (error) => {
        this.#watchers.delete(directory);
        watcher.close();
        onEvent(error);
      });
      this.#watchers.set(directory, { inode, watcher });
    } catch (error) {
      onEvent(error instanceof Error ? error : new Error(String(error)));
    }
  }

  close(): void {
    for (const { watcher } of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
  }
}

const isYaml = (name: string): boolean => /\.ya?ml$/.test(name);

/** undefined: it has just been removed. What a link led to that is not there may be on its way, as in a ConfigMap. */
async function unreadableText(path: string, error: unknown): Promise<string | undefined> {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code !== 'ENOENT') return message;
  return lstat(path).then(
    () => 'a link that leads nowhere',
    () => undefined,
  );
}
