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
}

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
      await writeFile(pathOf(key, options), `${value}\n`);
    } catch (error) {
      throw KernelError.from(`sysctl write ${key}`, error);
    }
    changed.push(key);
  }
  return changed;
}
