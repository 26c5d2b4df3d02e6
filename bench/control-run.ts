/**
 * The control plane's scenarios: each is a program beside this file, which builds what it needs and writes its samples; what
 * it says on the way is shown, and what it writes comes into the report (control-figures.ts).
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { readers } from './control-figures.ts';
import type { ScenarioResult, SubjectResult } from './result.ts';
import { closedOnce, type Run } from './run-scenario.ts';
import type { ControlScenario } from './scenarios.ts';

/** Programs that have rounds of their own. */
const withRounds = new Set(['scale', 'planner', 'plan-load', 'recheck', 'queue']);

export async function runControl(
  scenario: ControlScenario,
  run: Run,
  { at, of }: { at: number; of: number },
): Promise<ScenarioResult> {
  const { id, title, group, unit, main, references, bars, limits, program, args } = scenario;
  const folder = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
  const result: ScenarioResult = { id, title, group, unit, main, references, bars, limits, subjects: [], absent: [] };
  try {
    const output = join(folder, 'report.json');
    const rounds = withRounds.has(program) ? ['--rounds', String(run.rounds)] : [];
    const file = fileURLToPath(new URL(`./${program}.js`, import.meta.url));
    const child = spawn(process.execPath, ['--expose-gc', file, ...args, ...rounds, '--output', output], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    // It takes down what it made, when it is asked to end.
    const close = closedOnce(run, async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill('SIGTERM');
      await once(child, 'exit');
    });
    const step = { scenario: at, scenarios: of, title: id, rounds: run.rounds, subject: program };
    let round = 0;
    createInterface({ input: child.stdout }).on('line', (line) => {
      run.progress.step({ ...step, round: round++, figure: line });
    });
    const [code] = await once(child, 'exit');
    await close();
    if (code !== 0) throw new Error(`${program} ended with ${code}`);
    result.subjects = subjectsFrom(program, await readFile(output, 'utf8'));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    run.progress.say(`${id} is left out: ${reason}`);
    result.absent.push({ subject: title, reason });
  } finally {
    await rm(folder, { recursive: true });
  }
  return result;
}

export function subjectsFrom(program: string, text: string): SubjectResult[] {
  const read = readers[program];
  if (read === undefined) throw new TypeError(`nobody reads what ${program} writes`);
  return read(JSON.parse(text) as never);
}
