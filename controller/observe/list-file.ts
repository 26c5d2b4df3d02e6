/**
 * A list in a file below the manifests (ExternalService `addressesFrom[].file`). A link may lead to another place
 * below, as in a mounted ConfigMap, but not out: checked before the file is opened, since opening a device can do
 * something already, and of what was opened, since a link can change in between. Only regular files, of bounded size.
 */
import { constants } from 'node:fs';
import { open, readlink, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LIST_MAX_BYTES } from '../../api/address-list.ts';

export type FileReason = 'FileNotFound' | 'FileUnreadable' | 'ListTooLarge';
export type ListFile = { ok: true; text: string } | { ok: false; reason: FileReason; message: string };

/** `text` changes whenever the content may have. Gone: the directory is there, and the file is not. */
export async function fileSignature(
  root: string,
  file: string,
): Promise<{ text: string; mtime: number } | 'gone' | 'unreadable'> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(join(root, file), { bigint: true });
    return { text: `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`, mtime: Number(mtimeNs / 1_000_000n) };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'ENOENT' && code !== 'ENOTDIR') return 'unreadable';
    // Without the directory nothing is known, as of the manifests (tree.ts).
    return stat(root).then(
      () => 'gone' as const,
      () => 'unreadable' as const,
    );
  }
}

export async function readListFile(root: string, file: string): Promise<ListFile> {
  const unreadable = (message: string): ListFile => ({ ok: false, reason: 'FileUnreadable', message });
  try {
    const base = `${await realpath(root)}/`;
    const outside = unreadable('expected a file below the manifests, got a link that leads out');
    const path = await realpath(join(root, file));
    if (!path.startsWith(base)) return outside;
    // A pipe would wait for its other end.
    const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    try {
      if (!(await readlink(`/proc/self/fd/${handle.fd}`)).startsWith(base)) return outside;
      if (!(await handle.stat()).isFile()) return unreadable('expected a regular file');
      const buffer = Buffer.alloc(LIST_MAX_BYTES + 1);
      let size = 0;
      while (size < buffer.length) {
        const { bytesRead } = await handle.read(buffer, size, buffer.length - size, size);
        if (bytesRead === 0) break;
        size += bytesRead;
      }
      if (size <= LIST_MAX_BYTES) return decode(buffer.subarray(0, size));
      return { ok: false, reason: 'ListTooLarge', message: `expected at most ${LIST_MAX_BYTES} bytes, got more` };
    } finally {
      await handle.close();
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return { ok: false, reason: 'FileNotFound', message: 'there is no such file' };
    return unreadable(`cannot read the file: ${code ?? 'it failed'}`);
  }
}

/** Also of what was fetched. */
export function decode(
  bytes: Uint8Array,
): { ok: true; text: string } | { ok: false; reason: FileReason; message: string } {
  try {
    return { ok: true, text: new TextDecoder('utf-8', { fatal: true }).decode(bytes) };
  } catch {
    return { ok: false, reason: 'FileUnreadable', message: 'expected UTF-8, got other bytes' };
  }
}
