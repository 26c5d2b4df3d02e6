/**
 * `sluice lab demo`, what `npm start` runs: lab up, a table of who leaves with which address and who does not, what the
 * firewall upstream saw, live flow records until Ctrl-C, lab down. `--once` ends after the table; 0 is the exit code
 * only if everything was as expected.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { FlowRecord } from '../gateway/record/flow-record.ts';
import {
  type CheckResult,
  checksOf,
  explainExpectation,
  type FirewallView,
  firewallView,
  runChecks,
} from './checks.ts';
import { down } from './down.ts';
import { flowFiles, followFlows, formatRecord } from './flows.ts';
import { inNamespace, run } from './netns.ts';
import { defaultLab, placeOf } from './place.ts';
import { awaitReady } from './ready.ts';
import { up } from './up.ts';

const trafficEveryMs = 1_500;

export async function demo(options: { name: string; once: boolean; print?: (text: string) => void }): Promise<number> {
  const { name, once, print = (text) => process.stdout.write(`${text}\n`) } = options;
  const started = Date.now();
  const progress = (text: string) => print(`${((Date.now() - started) / 1000).toFixed(1).padStart(5)} s  ${text}`);
  const stopped = new AbortController();
  const stop = (): void => stopped.abort();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop);
  try {
    if (await down(name)) progress(`took down what was left of an earlier lab ${name}`);
    const world = await up({ name, progress });
    progress('waiting until every gateway and node has its plan in force');
    await orStopped(awaitReady(world), stopped.signal);
    progress('asking');
    const results = await orStopped(runChecks(name), stopped.signal);
    const firewall = await firewallView(name);
    print(`\n${formatResults(results)}\n\n${formatFirewall(firewall)}\n`);
    const ok = results.every((r) => r.ok) && firewallIsContent(firewall);
    progress(ok ? 'all of it as expected' : 'NOT as expected (see ✗)');
    if (!once) await showFlows(name, flowFiles(name, world.topology), stopped.signal, print);
    return ok ? 0 : 1;
  } catch (error) {
    if (stopped.signal.aborted) return 130;
    print(`\n${error instanceof Error ? error.message : String(error)}`);
    return 1;
  } finally {
    await down(name);
    progress(`lab ${name} is down, nothing left behind`);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(signal, stop);
  }
}

function orStopped<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = (): void => reject(new Error('stopped'));
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

/** Some traffic, so that there is something to see; then records as they come, until the signal. */
async function showFlows(
  name: string,
  files: string[],
  signal: AbortSignal,
  print: (text: string) => void,
): Promise<void> {
  const place = placeOf(name);
  const which = name === defaultLab ? '' : `--name ${name} `;
  print(
    [
      '',
      'Flow records as the gateways write them; Ctrl-C ends the demo and takes the lab down. Meanwhile, in another terminal:',
      `  sudo bin/sluice lab exec ${which}pay-1 -- curl -s http://web.example.test/ip     ask as a pod of billing`,
      `  sudo bin/sluice lab status ${which}     what runs where, who holds which address`,
      `  edit ${place.manifests}/*.yaml        takes effect within a second`,
      '',
    ].join('\n'),
  );
  const follower = await followFlows(files, (record: FlowRecord) => print(formatRecord(record)));
  const asked = ([4, 6] as const).flatMap((family) => checksOf(family).filter((c) => c.argv[0] === 'curl'));
  for (let i = 0; !signal.aborted; i++) {
    const check = asked[i % asked.length];
    if (check !== undefined) {
      // What is still waiting when the demo ends goes down with the lab.
      void run(inNamespace(place.namespace(check.host), check.argv), { timeoutMs: 5_000 });
    }
    await sleep(trafficEveryMs, undefined, { signal }).catch(() => {});
  }
  await follower.close();
}

export function formatResults(results: CheckResult[]): string {
  const header = ['who', 'asks for', 'over', 'expected', 'seen', ''];
  const rows = results.map(({ check, seen, ok }) => [
    check.who,
    check.what,
    `IPv${check.family}`,
    explainExpectation(check),
    seen,
    ok ? '✓' : '✗',
  ]);
  const widths = header.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]?.length ?? 0)));
  const line = (cells: string[]): string =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return [line(header), line(widths.map((w) => '─'.repeat(w))), ...rows.map(line)].join('\n');
}

/** Every namespace of the allow-list came through, over both families, and nobody else tried. */
export const firewallIsContent = (view: FirewallView): boolean =>
  view.foreign.length === 0 && view.passed.every(({ packets }) => packets > 0);

export function formatFirewall({ passed, foreign }: FirewallView): string {
  const let_through = passed.map((p) => `${p.namespace} IPv${p.family} ${p.packets}${p.packets > 0 ? '' : ' ✗'}`);
  return [
    'The firewall upstream allow-lists each namespace by its addresses.',
    `  packets that it let through: ${let_through.join(', ')}`,
    foreign.length === 0
      ? '  packets from any other source: none ✓'
      : `  packets from other sources ✗: ${foreign.slice(0, 10).join(', ')}`,
  ].join('\n');
}
