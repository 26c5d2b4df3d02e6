/**
 * A lab's long-running processes. Each is remembered by pid *and* start time (field 22 of /proc/PID/stat), so that a
 * number which the kernel gave to somebody else is never taken for it, let alone killed.
 */
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { inNamespace } from './netns.ts';

export interface Process {
  host: string;
  program: string;
  pid: number;
  /** Clock ticks since boot. */
  start: string;
  argv: string[];
  log: string;
}

/** Null: no such process (a zombie is none either). */
function startOf(pid: number): string | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command's name is in parentheses and may hold anything; fields are counted after the last one.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

export const isAlive = (process: Pick<Process, 'pid' | 'start'>): boolean => startOf(process.pid) === process.start;

/** Starts a program of its own session in a namespace; `ip netns exec` becomes the program, so the pid is its own. */
export function startProcess(what: {
  host: string;
  program: string;
  namespace: string;
  argv: string[];
  log: string;
}): Process {
  const { host, program, argv, log } = what;
  const fd = openSync(log, 'a', 0o600);
  const [command = '', ...rest] = inNamespace(what.namespace, argv);
  const child = spawn(command, rest, { detached: true, stdio: ['ignore', fd, fd], cwd: '/' });
  closeSync(fd);
  child.on('error', () => {});
  child.unref();
  if (child.pid === undefined) throw new Error(`${host}: ${program} could not be started`);
  return { host, program, pid: child.pid, start: startOf(child.pid) ?? '', argv, log };
}

export function signal(target: Pick<Process, 'pid' | 'start'>, name: NodeJS.Signals): boolean {
  if (!isAlive(target)) return false;
  try {
    return process.kill(target.pid, name);
  } catch {
    return false;
  }
}

/** Every process that is in one of the namespaces, whoever started it. A pid goes by the namespace that it is in. */
export async function processesIn(namespaces: string[]): Promise<{ pid: number; start: string }[]> {
  const ours = new Set<number>();
  for (const name of namespaces) {
    const info = await stat(`/run/netns/${name}`).catch(() => null);
    if (info !== null) ours.add(info.ino);
  }
  const found: { pid: number; start: string }[] = [];
  for (const entry of await readdir('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) continue;
    const info = await stat(`/proc/${entry}/ns/net`).catch(() => null);
    const start = info !== null && ours.has(info.ino) ? startOf(pid) : null;
    if (start !== null) found.push({ pid, start });
  }
  return found;
}
