/** Which pictures a result has, by file name: one of each scenario, and one of each load over the sizes of a cluster. Pure. */
import { metrics, type Result, type ScenarioResult, subjectOf, summaryOf } from './result.ts';
import { bars, lines } from './svg.ts';

export const plotName = ({ id }: Pick<ScenarioResult, 'id'>): string => `${id}.svg`;

export function plotsOf(result: Result): Map<string, string> {
  const found = new Map<string, string>();
  for (const scenario of result.scenarios) {
    const picture = scenarioPlot(scenario);
    if (picture !== undefined) found.set(plotName(scenario), picture);
  }
  for (const [name, picture] of sizePlots(result)) found.set(name, picture);
  return found;
}

function scenarioPlot({ title, main, unit, subjects }: ScenarioResult): string | undefined {
  const rows = subjects.flatMap(({ title: label, own, samples }) => {
    const of = samples[main];
    if (of === undefined) return [];
    const { median: value, least: low, most: high } = summaryOf(of);
    return [{ label, value, low, high, own }];
  });
  return rows.length === 0
    ? undefined
    : bars(title, `${metrics[main].unit(unit)}; bar: median, line: least to most`, rows);
}

/** `udp-tunnel-1000`: a load, a way, a number of namespaces. */
const SIZED = /^([a-z-]+-(?:tunnel|direct))-(\d+)$/;

function sizePlots({ scenarios }: Result): [name: string, picture: string][] {
  const families = new Map<string, { size: number; scenario: ScenarioResult }[]>();
  for (const scenario of scenarios) {
    const [, name, size] = SIZED.exec(scenario.id) ?? [];
    if (name === undefined || scenario.group === 'churn') continue;
    families.set(name, [...(families.get(name) ?? []), { size: Number(size), scenario }]);
  }
  return [...families].flatMap(([name, of]): [string, string][] => {
    const [first] = of;
    if (first === undefined || of.length < 2) return [];
    of.sort((a, b) => a.size - b.size);
    const { main, unit, title } = first.scenario;
    const rows = first.scenario.subjects.map(({ id, title: label, own }) => ({
      label,
      own: own && id === 'sluice',
      values: of.map(({ scenario }) => {
        const samples = subjectOf(scenario, id)?.samples[main];
        return samples === undefined ? undefined : summaryOf(samples).median;
      }),
    }));
    const places = of.map(({ size }) => size.toLocaleString('en'));
    const way = title.split(/, (?=[\d,]+ namespace)/)[0] ?? title;
    return [[`${name}-sizes.svg`, lines(way, `${metrics[main].unit(unit)}, by number of namespaces`, places, rows)]];
  });
}

/** Pictures over sizes, for the report's beginning. */
export const sizePlotNames = (result: Result): string[] => sizePlots(result).map(([name]) => name);
