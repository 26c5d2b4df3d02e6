/** docs/benchmarks.md from a result: the only place that figures of README and documents come from. Pure. */
import { asked, cell, machineText, resultText } from './markdown.ts';
import { plotName, sizePlotNames } from './plots.ts';
import type { Result, ScenarioResult } from './result.ts';

/** `plots`: where pictures are, as the document names them. */
export function documentText(result: Result, plots: string): string {
  const { scenarios, configurations, absent } = result;
  const pictured = (scenario: ScenarioResult): string | undefined =>
    scenario.subjects.some(({ samples }) => samples[scenario.main] !== undefined)
      ? `${plots}/${plotName(scenario)}`
      : undefined;
  const verdicts = scenarios.flatMap((scenario) =>
    asked(scenario).map((line) => line.replace('- ', `- ${scenario.title}: `)),
  );
  const subjects = Object.entries(configurations).map(([title, text]) => `| ${cell(title)} | ${cell(text)} |`);
  const parts = [
    '# Measured',
    'Written by `npm run bench`, from `bench/results/bench.json`: change nothing here by hand. What is measured, and how, is in\n[bench.md](bench.md).',
    machineText(result),
    'Client, gateway, server and generator share the processors: figures per second are of all of them together, and figures\nper CPU second of what all of them took. Ratios are of medians, with the 95 % interval of a bootstrap over rounds in brackets. A\nbar is met when the ratio is at it and the interval lies within 5 % of it; else it is undecided, as it is with fewer than nine rounds.',
    ...(verdicts.length === 0 ? [] : [`## What was asked\n\n${verdicts.join('\n')}`]),
    ...sizePlotNames(result).map((name) => `![by number of namespaces](${plots}/${name})`),
    `## Who takes part\n\n| subject | how it is configured |\n|---|---|\n${subjects.join('\n')}`,
    ...(absent.length === 0
      ? []
      : [`Not measured here:\n\n${absent.map(({ subject, reason }) => `- ${subject}: ${reason}`).join('\n')}`]),
    resultText(result, pictured),
  ];
  return `${parts.join('\n\n')}\n`;
}
