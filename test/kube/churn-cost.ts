/** Processor time of the programs of churn.ts, with that of the commands that they have run. */
import { readFile } from 'node:fs/promises';
import { run } from '../../lab/netns.ts';

/** Of a second: USER_HZ. */
const TICKS = 100;

/** Milliseconds for which processors have worked, and in all. */
export interface Busy {
  worked: number;
  all: number;
}

/** Of the machine, whatever for. */
export async function busy(): Promise<Busy> {
  const [line = ''] = (await readFile('/proc/stat', 'latin1')).split('\n');
  // user, nice, system, idle, iowait, irq, softirq, steal
  const ticks = line.split(/ +/).slice(1, 9).map(Number);
  const all = ticks.reduce((sum, one) => sum + one, 0);
  const idle = (ticks[3] ?? 0) + (ticks[4] ?? 0);
  return { worked: (1000 * (all - idle)) / TICKS, all: (1000 * all) / TICKS };
}

/** Milliseconds until now, by host and program. */
export async function costs(
  hosts: readonly (readonly [host: string, namespace: string])[],
): Promise<Map<string, number>> {
  const found = new Map<string, number>();
  for (const [host, namespace] of hosts) {
    const pids = (await run(['ip', 'netns', 'pids', namespace])).stdout.split('\n').filter((pid) => pid !== '');
    for (const pid of pids) {
      const [stat, command] = await Promise.all(
        ['stat', 'cmdline'].map((file) => readFile(`/proc/${pid}/${file}`, 'latin1').catch(() => '')),
      );
      // After the name, which may have spaces: state is field 3; utime, stime, cutime, cstime are 14 to 17.
      const fields = (stat ?? '').slice((stat ?? '').lastIndexOf(')') + 2).split(' ');
      const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
      const words = (command ?? '').split('\0');
      const main = words.findIndex((word) => word.endsWith('cli/main.js'));
      const name =
        main >= 0 ? words[main + 1] : words.map((word) => word.split('/').at(-1)).find((word) => word !== 'node');
      if (stat !== '') found.set(`${host} ${name}`, (found.get(`${host} ${name}`) ?? 0) + (1000 * ticks) / TICKS);
    }
  }
  return found;
}

/** What was spent since `before` on each of so many, dearest first. */
export function costText(
  before: ReadonlyMap<string, number>,
  after: ReadonlyMap<string, number>,
  pods: number,
): string {
  const spent = [...after].map(([name, total]) => [name, (total - (before.get(name) ?? 0)) / pods] as const);
  return spent
    .filter(([, each]) => each >= 0.1)
    .sort(([, a], [, b]) => b - a)
    .map(([name, each]) => `${name} ${each.toFixed(1)}`)
    .join(', ');
}
