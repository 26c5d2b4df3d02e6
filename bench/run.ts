/**
 * The benchmark: all scenarios in one run and one report.
 *   npm run bench                               under ten minutes: the scenarios and subjects of the quick run
 *   npm run bench -- --full                     all of them, some hours
 *   npm run bench -- --scenarios udp --rounds 1 those whose name begins so; a look
 *   npm run bench -- --compare OLD.json         and fails if Sluice is slower than in that report, beyond the noise of both
 *   npm run bench -- --report                   no measuring: tables, plots and docs/benchmarks.md again, of what was measured
 * Needs root. Docs: docs/bench.md.
 */
import { loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { compare, comparedText } from './compare.ts';
import { runControl } from './control-run.ts';
import { stageOf, standForwarding } from './forwarding-run.ts';
import { commit, hasCommand, kernelConfig, machine } from './machine.ts';
import { Progress } from './progress.ts';
import { readResult, writeDocument, writeReport } from './report.ts';
import type { Result, ScenarioResult } from './result.ts';
import { type Run, runScenario, type Stand } from './run-scenario.ts';
import { type ControlScenario, type Scenario, scenarios } from './scenarios.ts';
import { type Absent, absentPeers, forwardingSubjects, tlsSubjects } from './subjects.ts';
import { standTls } from './tls-run.ts';

const { values } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    scenarios: { type: 'string' },
    subjects: { type: 'string' },
    rounds: { type: 'string' },
    'most-rounds': { type: 'string' },
    seconds: { type: 'string', default: '1' },
    output: { type: 'string', default: 'bench/results' },
    compare: { type: 'string' },
    report: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
  },
});

/** Of the quick run: no round begins after so many seconds. TLS begins programs anew in each turn. */
const QUICK_SECONDS = 540;
const [ROUNDS, MOST_ROUNDS, QUICK_TLS_ROUNDS] = [9, 25, 3];
/** Names, or how they begin; one that is a whole name means no other. */
const named = (list: string | undefined): ((id: string) => boolean) => {
  const parts = list?.split(',');
  const whole = new Set(scenarios.map(({ id }) => id));
  return (id) => parts === undefined || parts.some((part) => (whole.has(part) ? id === part : id.startsWith(part)));
};

const known = [...forwardingSubjects, ...tlsSubjects];
const wanted = named(values.scenarios);
const subjectWanted = (id: string): boolean => values.subjects === undefined || values.subjects.split(',').includes(id);
const subjectsOf = (scenario: Scenario): string[] =>
  (values.full ? scenario.subjects : (scenario.quick ?? scenario.subjects)).filter(subjectWanted);
const chosen = scenarios
  .filter(
    (scenario) =>
      wanted(scenario.id) && (values.full || values.scenarios !== undefined || scenario.quick !== undefined),
  )
  .filter((scenario) => scenario.kind === 'control' || subjectsOf(scenario).length > 0);

/** What is to be taken down by whoever interrupts. */
const closing: Run['closing'] = new Set();
let interrupted = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    interrupted = true;
    void Promise.allSettled([...closing].map((close) => close())).finally(() => process.exit(130));
  });
}

if (values.list) for (const { id, title } of chosen) console.log(`${id.padEnd(28)} ${title}`);
else if (values.report) await writeDocument(values.output);
else process.exitCode = await main();

async function main(): Promise<number> {
  if (process.getuid?.() !== 0) {
    console.error('needs root: network namespaces, nftables');
    return 1;
  }
  const old = values.compare === undefined ? undefined : await readResult(values.compare);
  const progress = new Progress(process.stderr);
  const loadBefore = loadavg();
  const rounds = Number(values.rounds ?? ROUNDS);
  const run: Run = {
    progress,
    rounds,
    mostRounds: Math.max(rounds, Number(values['most-rounds'] ?? (values.full ? MOST_ROUNDS : rounds))),
    seconds: Number(values.seconds),
    budget: values.full ? Number.POSITIVE_INFINITY : QUICK_SECONDS,
    subjectsOf,
    titleOf,
    besideOf: (id) => tlsSubjects.find((subject) => subject.id === id)?.beside,
    absent: absentOf,
    closing,
    interrupted: () => interrupted,
  };
  const measured: ScenarioResult[] = [];
  const keep = async (result: ScenarioResult): Promise<void> => {
    // Of what was under way only failures are left.
    if (interrupted) return new Promise(() => undefined);
    measured.push(result);
    // What was measured is there, whatever becomes of the rest.
    await writeReport(values.output, resultOf(measured, progress.seconds, loadBefore));
  };
  for (const group of groups(chosen)) await measureGroup(group, run, keep);
  const result = resultOf(measured, progress.seconds, loadBefore);
  const { table, files } = await writeReport(values.output, result);
  console.log(table);
  console.log(`written: ${files.join(', ')}`);
  if (old === undefined) return 0;
  const compared = compare(old, result);
  console.log(comparedText(compared));
  return compared.some(({ verdict }) => verdict === 'slower') ? 2 : 0;
}

/** Scenarios that share what stands, one after the other. */
function groups(list: readonly Scenario[]): Scenario[][] {
  const found = new Map<string, Scenario[]>();
  for (const scenario of list) {
    const key = scenario.kind === 'forwarding' ? stageOf(scenario) : scenario.kind;
    found.set(key, [...(found.get(key) ?? []), scenario]);
  }
  return [...found.values()];
}

async function measureGroup(
  group: Scenario[],
  run: Run,
  keep: (result: ScenarioResult) => Promise<void>,
): Promise<void> {
  const place = (scenario: Scenario) => ({ at: chosen.indexOf(scenario) + 1, of: chosen.length });
  const control = group.filter((scenario): scenario is ControlScenario => scenario.kind === 'control');
  for (const scenario of control) await keep(await runControl(scenario, run, place(scenario)));
  const forwarding = group.filter((scenario) => scenario.kind === 'forwarding');
  const tls = group.filter((scenario) => scenario.kind === 'tls');
  if (forwarding.length > 0) await standing(await standForwarding(forwarding, run), forwarding, run);
  const tlsRounds = values.full || values.rounds !== undefined ? run.rounds : QUICK_TLS_ROUNDS;
  const tlsRun = { ...run, rounds: tlsRounds, mostRounds: Math.max(tlsRounds, values.full ? run.mostRounds : 0) };
  if (tls.length > 0) await standing(await standTls(run), tls, tlsRun);

  async function standing<S extends Exclude<Scenario, ControlScenario>>(
    stand: Stand<S>,
    of: S[],
    how: Run,
  ): Promise<void> {
    try {
      for (const scenario of of) await keep(await runScenario(scenario, stand.measure(scenario), how, place(scenario)));
    } finally {
      await stand.close();
    }
  }
}

function absentOf(id: string): Absent | undefined {
  const needs = tlsSubjects.find((subject) => subject.id === id)?.needs;
  if (needs === undefined || hasCommand(needs.command)) return undefined;
  return { subject: titleOf(id), reason: `${needs.command} is not installed (Debian: ${needs.package})` };
}

function titleOf(id: string): string {
  return known.find((subject) => subject.id === id)?.title ?? id;
}

function resultOf(measured: ScenarioResult[], seconds: number, loadBefore: number[]): Result {
  const used = new Set(measured.flatMap(({ subjects }) => subjects.map(({ id }) => id)));
  const configurations = known
    .filter(({ id }) => used.has(id))
    .map(({ title, configuration }) => [title, configuration]);
  return {
    version: 1,
    date: new Date().toISOString(),
    commit: commit(),
    command: process.argv.slice(2).join(' '),
    seconds: Math.round(seconds),
    machine: machine(loadBefore),
    configurations: Object.fromEntries(configurations),
    absent: absentPeers(kernelConfig()),
    scenarios: measured,
  };
}
