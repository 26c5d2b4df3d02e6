/**
 * Kernel parameters below /proc/sys: read, compare, write what differs. A key is a path with slashes
 * (`net/ipv4/conf/eth0.100/rp_filter`), or with dots where no name in it has a dot (`net.ipv4.ip_forward`), as in
 * sysctl(8). They belong to the network namespace that this process is in.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { KernelError } from './errors.ts';

export interface SysctlOptions {
  /** Instead of /proc/sys, for tests. */
  root?: string;
  /** Instead of HOST_PROC_SYS, for tests. */
  hostRoot?: string;
}

/**
 * In a container /proc/sys is read-only unless it is privileged. There /proc/sys/net of the machine may be mounted below
 * this folder: what is read and written there is of this process's own network namespace, as everywhere.
 */
const HOST_PROC_SYS = '/host/proc/sys';

function pathOf(key: string, { root = '/proc/sys' }: SysctlOptions): string {
  const path = key.includes('/') ? key : key.replaceAll('.', '/');
  if (!/^[\w.@:/-]+$/.test(path) || path.split('/').some((part) => part === '' || part === '.' || part === '..')) {
    throw new TypeError(`not a sysctl key: ${JSON.stringify(key)}`);
  }
  return `${root}/${path}`;
}

/** Tabs between several values become spaces. */
const normal = (value: string): string => value.trim().split(/\s+/).join(' ');

/** undefined: this kernel has no such parameter (or the module, or the interface, is not there). */
export async function readSysctl(key: string, options: SysctlOptions = {}): Promise<string | undefined> {
  const path = pathOf(key, options);
  try {
    return normal(await readFile(path, 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw KernelError.from(`sysctl read ${key}`, error);
  }
}

/** Writes what differs; returns the keys that it changed. A parameter that is missing is an ENOENT error. */
export async function applySysctls(desired: Record<string, string>, options: SysctlOptions = {}): Promise<string[]> {
  const changed: string[] = [];
  for (const [key, value] of Object.entries(desired)) {
    const current = await readSysctl(key, options);
    if (current === undefined) throw new KernelError(`sysctl write ${key}`, 'ENOENT', 'no such parameter');
    if (current === normal(value)) continue;
    try {
      await write(key, `${value}\n`, options);
    } catch (error) {
      throw KernelError.from(`sysctl write ${key}`, error);
    }
    changed.push(key);
  }
  return changed;
}

async function write(key: string, value: string, options: SysctlOptions): Promise<void> {
  try {
    await writeFile(pathOf(key, options), value);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EROFS') throw error;
    const elsewhere = pathOf(key, { root: options.hostRoot ?? HOST_PROC_SYS });
    // Where nothing is mounted, what it says is that /proc/sys is read-only.
    await writeFile(elsewhere, value, { flag: 'r+' }).catch(() => {
      throw error;
    });
  }
}
