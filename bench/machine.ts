/** On what a report was made: machine, kernel, and the versions of all that took part. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { gunzipSync } from 'node:zlib';
import type { Machine } from './result.ts';

/** What a command says first, or undefined: it is not there. Some tell their version on standard error, some with a code. */
function firstLine(command: string, ...args: string[]): string | undefined {
  try {
    const [program, ...rest] = ['sh', '-c', '"$0" "$@" 2>&1 || true', command, ...args];
    const text = execFileSync(program ?? '', rest, { encoding: 'utf8', timeout: 20_000 });
    const line = text.split('\n').find((part) => /\d+\.\d+/.test(part));
    return line === undefined || line.includes('not found') ? undefined : line.trim();
  } catch {
    return undefined;
  }
}

export function machine(loadBefore: number[]): Machine {
  const asked: Record<string, string | undefined> = {
    node: process.version,
    nft: firstLine('nft', '--version'),
    iptables: firstLine('iptables', '--version'),
    iproute2: firstLine('ip', '-V'),
    iperf3: firstLine('iperf3', '--version'),
    nginx: firstLine('nginx', '-v'),
    haproxy: firstLine('haproxy', '-v'),
    squid: firstLine('squid', '-v'),
    suricata: firstLine('suricata', '-V'),
  };
  const versions = Object.entries(asked).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return {
    kernel: release(),
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: cpus().length,
    memoryGB: Math.round(totalmem() / 2 ** 30),
    loadBefore,
    loadAfter: loadavg(),
    versions: Object.fromEntries(versions),
  };
}

export const hasCommand = (command: string): boolean => {
  try {
    execFileSync('sh', ['-c', 'command -v "$0"', command], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

export function commit(): string {
  try {
    const git = (...args: string[]): string =>
      execFileSync('git', ['-C', import.meta.dirname, ...args], { encoding: 'utf8' }).trim();
    return `${git('rev-parse', '--short', 'HEAD')}${git('status', '--porcelain', '-uno') === '' ? '' : ' and changes'}`;
  } catch {
    return 'unknown';
  }
}

/** The running kernel's configuration, where it tells. */
export function kernelConfig(): string | undefined {
  for (const read of [
    () => gunzipSync(readFileSync('/proc/config.gz')).toString(),
    () => readFileSync(`/boot/config-${release()}`, 'utf8'),
  ]) {
    try {
      return read();
    } catch {
      // the other, then
    }
  }
  return undefined;
}
