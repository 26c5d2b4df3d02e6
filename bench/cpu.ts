/**
 * CPU time of a benchmark on a machine that others use too. Counted: all processes of the benchmark (a cgroup v2 of
 * its own, `usage_usec`, which the scheduler keeps in nanoseconds, not ticks) plus the ksoftirqd threads. On veth all
 * of a packet's way (node, tunnel, gateway, server) runs as soft interrupt in the sender's own system call, or in
 * ksoftirqd when that lasts too long; so this is the whole cost. Left out: soft interrupts that hit another program
 * or an idle CPU (timers), which the kernel books to nobody here. A kernel with CONFIG_IRQ_TIME_ACCOUNTING
 * books soft interrupts apart from processes: refused, since the figures would be wrong.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';

export class CpuMeter {
  readonly #group: string;
  readonly #softirqThreads: string[];

  constructor(name: string) {
    if (softirqsApart()) throw new Error('this kernel has CONFIG_IRQ_TIME_ACCOUNTING: CPU seconds would lack packets');
    const mount = readFileSync('/proc/mounts', 'utf8')
      .split('\n')
      .map((line) => line.split(' '))
      .find(([, , type]) => type === 'cgroup2')?.[1];
    if (mount === undefined) throw new Error('no cgroup v2 is mounted, which CPU seconds are read from');
    this.#group = `${mount}/${name}`;
    mkdirSync(this.#group);
    this.#softirqThreads = softirqThreads();
  }

  /** File to write a process id into: it and its children are counted from then on. */
  get procs(): string {
    return `${this.#group}/cgroup.procs`;
  }

  add(pid: number): void {
    writeFileSync(this.procs, String(pid));
  }

  /** CPU seconds so far; only differences mean anything. */
  seconds(): number {
    let nanoseconds = 0;
    for (const file of this.#softirqThreads) nanoseconds += Number(readFileSync(file, 'utf8').split(' ')[0]);
    return this.ownSeconds() + nanoseconds / 1e9;
  }

  /** Without the ksoftirqd threads: for the second group of a benchmark that has several. */
  ownSeconds(): number {
    const usage = /usage_usec (\d+)/.exec(readFileSync(`${this.#group}/cpu.stat`, 'utf8'))?.[1];
    return Number(usage) / 1e6;
  }

  /** After the last process has ended. */
  close(): void {
    rmdirSync(this.#group);
  }
}

function softirqThreads(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('ksoftirqd/');
      } catch {
        return false; // ended meanwhile
      }
    })
    .map((pid) => `/proc/${pid}/schedstat`);
}

function softirqsApart(): boolean {
  let config: string;
  try {
    config = gunzipSync(readFileSync('/proc/config.gz')).toString();
  } catch {
    try {
      config = readFileSync(`/boot/config-${execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim()}`, 'utf8');
    } catch {
      return false; // a kernel that does not tell
    }
  }
  return config.includes('CONFIG_IRQ_TIME_ACCOUNTING=y');
}
