/** A result as Markdown: a table a scenario, what was asked of it, and who could not take part. Pure. */
import {
  type Bar,
  GROUPS,
  type Group,
  judge,
  judgeLimit,
  type Limit,
  type Metric,
  metrics,
  type Result,
  ratioOf,
  referencesOf,
  type ScenarioResult,
  type SubjectResult,
  summaryOf,
} from './result.ts';
import type { Ratio } from './statistics.ts';

/** Three digits that mean something, and no more zeros than a person reads. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(size >= 10 ? 1 : size >= 0.995 ? 2 : 3);
}

export const ratioText = ({ ratio, low, high }: Ratio): string =>
  `${ratio.toFixed(2)} [${low.toFixed(2)}..${high.toFixed(2)}]`;

export const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function table(head: string[], rows: string[][]): string {
  const line = (cells: string[]): string => `| ${cells.map(cell).join(' | ')} |`;
  return [line(head), `|${head.map((_, at) => (at === 0 ? '---|' : '---:|')).join('')}`, ...rows.map(line)].join('\n');
}

export function measuredMetrics({ subjects, main }: ScenarioResult): Metric[] {
  const known = (Object.keys(metrics) as Metric[]).filter((metric) =>
    subjects.some(({ samples }) => samples[metric] !== undefined),
  );
  return known.sort((a, b) => Number(b === main) - Number(a === main));
}

export function scenarioTable(scenario: ScenarioResult): string {
  const { subjects, main, unit } = scenario;
  const shown = measuredMetrics(scenario);
  const used = new Set(subjects.flatMap((subject) => referencesOf(scenario, subject)));
  const references = [...new Set([...scenario.references, ...used])].filter((reference) => used.has(reference));
  const titleOf = (id: string): string => subjects.find((subject) => subject.id === id)?.title ?? id;
  const head = [
    'subject',
    ...shown.map(
      (metric) =>
        `${metrics[metric].unit(unit)}${metrics[metric].unit(unit) === 'µs' ? ` (${metrics[metric].title})` : ''}`,
    ),
    ...references.map((reference) => `to: ${titleOf(reference)}`),
    'rounds',
  ];
  const rows = subjects.map((subject) => [
    subject.own ? `**${subject.title}**` : subject.title,
    ...shown.map((metric) => figure(subject, metric, metric === main)),
    ...references.map((reference) =>
      referencesOf(scenario, subject).includes(reference) ? ratios(scenario, subject, reference) : '',
    ),
    String(Math.max(...Object.values(subject.samples).map((samples) => samples.length), 0)),
  ]);
  return table(head, rows);
}

/** By the scenario's figure; of rates the one of the clock beside it. */
function ratios(scenario: ScenarioResult, { id }: SubjectResult, reference: string): string {
  const ratio = ratioOf(scenario, id, reference, scenario.main);
  if (ratio === undefined) return '';
  const wall = scenario.main === 'perCpuSecond' ? ratioOf(scenario, id, reference, 'perSecond') : undefined;
  return `${ratioText(ratio)}${wall === undefined ? '' : `; ${wall.ratio.toFixed(2)} per second`}`;
}

function figure({ samples }: SubjectResult, metric: Metric, whole: boolean): string {
  const of = samples[metric];
  if (of === undefined) return '';
  const { median, least, most } = summaryOf(of);
  return of.flat().length > 1 && (whole || metric === 'perSecond')
    ? `${number(median)} [${number(least)}..${number(most)}]`
    : number(median);
}

export function barText(scenario: ScenarioResult, bar: Bar): string {
  const { ratio, verdict } = judge(scenario, bar);
  const title = (id: string): string => scenario.subjects.find((subject) => subject.id === id)?.title ?? id;
  const { better, title: metric } = metrics[bar.metric];
  const asked =
    bar.least === 'alike'
      ? `no worse than ${title(bar.beside)}`
      : `${better === 'more' ? 'at least' : 'at most'} ${bar.least} × ${title(bar.beside)}`;
  return `${title(bar.subject)}, ${metric}: ${asked}: ${ratio === undefined ? '' : `${ratioText(ratio)}, `}**${verdict}**`;
}

export function limitText(scenario: ScenarioResult, limit: Limit): string {
  const subject = scenario.subjects.find(({ id }) => id === limit.subject);
  const samples = subject?.samples[limit.metric];
  const found = samples === undefined ? '' : `${number(summaryOf(samples).median)}, `;
  const unit = metrics[limit.metric].unit('');
  return `${limit.subject}: at most ${number(limit.most)} ${unit}: ${found}**${judgeLimit(scenario, limit)}**`;
}

/** All that was asked of a scenario, a line each; who was not measured takes no line. */
export function asked(scenario: ScenarioResult): string[] {
  const bars = scenario.bars.map((bar) => [judge(scenario, bar).verdict, barText(scenario, bar)] as const);
  const limits = scenario.limits.map((limit) => [judgeLimit(scenario, limit), limitText(scenario, limit)] as const);
  return [...bars, ...limits].flatMap(([verdict, text]) => (verdict === 'not measured' ? [] : [`- ${text}`]));
}

/** Where a peer is ahead of Sluice for certain, by the scenario's own figure: a line each. */
export function ahead(scenario: ScenarioResult): string[] {
  const more = metrics[scenario.main].better === 'more';
  const own = scenario.subjects.findLast((subject) => subject.own);
  if (own === undefined || scenario.group === 'control') return [];
  return scenario.subjects.flatMap((peer) => {
    // Not what does less by design: no gateway, nothing read.
    if (peer.own || peer.id === 'ceiling') return [];
    const ratio = ratioOf(scenario, own.id, peer.id, scenario.main);
    if (ratio === undefined || ratio.low === ratio.high) return [];
    return (more ? ratio.high < 1 : ratio.low > 1)
      ? [`- ${peer.title}: ${own.title} is ${ratioText(ratio)} of it`]
      : [];
  });
}

export function scenarioSection(scenario: ScenarioResult, plot?: string): string {
  const absent = scenario.absent.map(({ subject, reason }) => `- ${subject}: not measured: ${cell(reason)}`);
  const peers = ahead(scenario);
  const parts = [
    `### ${scenario.title}`,
    ...(scenario.subjects.length === 0 ? [] : [scenarioTable(scenario)]),
    ...(plot === undefined ? [] : [`![${scenario.title}](${plot})`]),
    ...[asked(scenario)].filter((lines) => lines.length > 0).map((lines) => `Asked:\n\n${lines.join('\n')}`),
    ...(peers.length === 0 ? [] : [`Ahead of Sluice:\n\n${peers.join('\n')}`]),
    ...(absent.length === 0 ? [] : [absent.join('\n')]),
  ];
  return parts.join('\n\n');
}

export function machineText({ machine, date, commit, seconds, command }: Result): string {
  const { kernel, cpu, cpus, memoryGB, loadBefore, loadAfter, versions } = machine;
  const load = (of: number[]): string => of.map((value) => value.toFixed(1)).join(', ');
  return [
    `- ${date.slice(0, 16).replace('T', ' ')} UTC, commit ${commit}, \`npm run bench${command === '' ? '' : ` -- ${command}`}\`, ${Math.round(seconds / 60)} minutes`,
    `- ${cpus} processors (${cpu}), ${memoryGB} GB, Linux ${kernel}; load before ${load(loadBefore)}, after ${load(loadAfter)}`,
    `- ${Object.entries(versions)
      .map(([name, version]) => `${name}: ${cell(version)}`)
      .join('; ')}`,
  ].join('\n');
}

/** Group by group; `plotOf` gives a scenario's picture, if there is one. */
export function resultText(result: Result, plotOf: (scenario: ScenarioResult) => string | undefined): string {
  const groups = (Object.keys(GROUPS) as Group[]).flatMap((group) => {
    const of = result.scenarios.filter((scenario) => scenario.group === group);
    return of.length === 0
      ? []
      : [[`## ${GROUPS[group]}`, ...of.map((scenario) => scenarioSection(scenario, plotOf(scenario)))]];
  });
  return groups.flat().join('\n\n');
}
