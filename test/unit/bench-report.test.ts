/** What the harness makes of samples: verdicts, comparisons of two reports, tables and plots; from a made-up result. */
import t, { type Test } from 'tap';
import { type Compared, compare, comparedText } from '../../bench/compare.ts';
import { subjectsFrom } from '../../bench/control-run.ts';
import { documentText } from '../../bench/document.ts';
import { ahead, asked, number, resultText, scenarioTable } from '../../bench/markdown.ts';
import { plotsOf } from '../../bench/plots.ts';
import { stepText } from '../../bench/progress.ts';
import {
  type Bar,
  isDecided,
  judge,
  judgeLimit,
  type Metric,
  metrics,
  type Result,
  type ScenarioResult,
  type SubjectResult,
} from '../../bench/result.ts';
import { scenarios } from '../../bench/scenarios.ts';
import { absentPeers, forwardingSubjects, tlsSubjects } from '../../bench/subjects.ts';
import { bars, decades, lines, ticks } from '../../bench/svg.ts';

/** Nine rounds about a figure, that vary by so much; each round disturbs all subjects alike. */
const NOISE = [0, 0.5, -0.5, 1, -1, 0.2, -0.2, 0.7, -0.7];
const around = (value: number, by = 0.01, rounds = 9): number[][] =>
  NOISE.slice(0, rounds).map((part) => [value * (1 + by * part)]);
/** The same figures in another order: nothing pairs up. */
const apart = (value: number, by: number): number[][] => around(value, by).toReversed();

const subject = (id: string, samples: Partial<Record<Metric, number[][]>>, own = false): SubjectResult => ({
  id,
  title: id === 'sluice' ? 'Sluice <here>' : `the ${id}`,
  own,
  samples,
});
const bar = (least: Bar['least'], metric: Metric = 'perCpuSecond'): Bar => ({
  subject: 'sluice',
  beside: 'nft',
  metric,
  least,
});
function scenario(sluice: number[][], nft: number[][], more: Partial<ScenarioResult> = {}): ScenarioResult {
  return {
    id: 'udp-tunnel-1000',
    title: 'small packets; through the tunnel, 1,000 namespaces, IPv4',
    group: 'forwarding',
    unit: 'thousand packets',
    main: 'perCpuSecond',
    references: ['nft'],
    bars: [bar(0.95)],
    limits: [],
    subjects: [subject('nft', { perCpuSecond: nft }), subject('sluice', { perCpuSecond: sluice }, true)],
    absent: [],
    ...more,
  };
}
function result(...list: ScenarioResult[]): Result {
  return {
    version: 1,
    date: '2026-11-28T05:00:00.000Z',
    commit: 'abc1234',
    command: '',
    seconds: 540,
    machine: {
      kernel: '6.18.44',
      cpu: 'AMD EPYC',
      cpus: 2,
      memoryGB: 24,
      loadBefore: [0.1, 0.2, 0.3],
      loadAfter: [2, 1, 1],
      versions: { nft: 'nftables v1.0.6' },
    },
    configurations: { 'Sluice <here>': 'as | it is' },
    absent: [{ subject: 'Open vSwitch', reason: 'no module' }],
    scenarios: list,
  };
}

t.test('a bar is met at it with a narrow interval, and undecided with a wide one or few rounds', async (t) => {
  const verdict = (sluice: number[][], nft: number[][], of = bar(0.95)): string =>
    judge(scenario(sluice, nft), of).verdict;
  t.equal(verdict(around(96), around(100)), 'met');
  t.equal(verdict(around(94), around(100)), 'missed');
  t.equal(verdict(around(99), apart(100, 0.4)), 'undecided', 'the interval is wide');
  t.equal(verdict(around(99, 0.01, 8), around(100, 0.01, 8)), 'undecided', 'eight rounds');
  t.equal(verdict(around(99), around(100), { ...bar(0.95), beside: 'nobody' }), 'not measured');
  const time = (mine: number, least: Bar['least']): string => {
    const of = scenario(around(1), around(1));
    const list = [subject('nft', { p50: around(100) }), subject('sluice', { p50: apart(mine, 0.01) }, true)];
    return judge({ ...of, subjects: list }, bar(least, 'p50')).verdict;
  };
  t.equal(time(90, 1), 'met', 'of times less is better');
  t.equal(time(110, 1), 'missed');
  t.equal(time(100, 'alike'), 'met');
  t.equal(time(90, 'alike'), 'met', 'better is no worse');
  t.equal(time(110, 'alike'), 'missed');
  t.ok(isDecided(scenario(around(50), around(100))), 'missed is decided too');
  t.notOk(isDecided(scenario(around(99), apart(100, 0.4))));
});

t.test('limits of figures by themselves', async (t) => {
  const of = scenario([], [], { subjects: [subject('one pod', { milliseconds: [[40], [45], [90]] }, true)] });
  t.equal(judgeLimit(of, { subject: 'one pod', metric: 'milliseconds', most: 50 }), 'met', 'by the median');
  t.equal(judgeLimit(of, { subject: 'one pod', metric: 'milliseconds', most: 44 }), 'missed');
  t.equal(judgeLimit(of, { subject: 'two pods', metric: 'milliseconds', most: 44 }), 'not measured');
});

t.test('two reports', async (t) => {
  const verdicts = (old: Result, now: Result): string[] => compare(old, now).map((of: Compared) => of.verdict);
  const before = result(scenario(around(96), around(100)));
  t.same(verdicts(before, before), ['same']);
  t.same(verdicts(before, result(scenario(around(80), around(100)))), ['slower']);
  t.same(verdicts(before, result(scenario(around(120), around(100)))), ['faster']);
  t.same(verdicts(before, result(scenario(around(48), around(50)))), ['same'], 'a slower machine is no regression');
  t.same(verdicts(before, result(scenario(around(93), apart(100, 0.3)))), ['same'], 'what the noise hides');
  const few = result(scenario(around(80, 0.01, 2), around(100, 0.01, 2)));
  t.same(verdicts(before, few), ['unknown']);
  t.match(compare(before, few)[0]?.why, /fewer than 3 rounds/);
  t.same(verdicts(result(), before), [], 'nothing in common');

  const twin = (by: number): ScenarioResult => {
    const of = scenario(around(90), around(100));
    return { ...of, subjects: [...of.subjects, subject('nft-twin', { perCpuSecond: around(100 * by) })] };
  };
  const wasTwin = (by: number): ScenarioResult => ({
    ...twin(by),
    subjects: [...scenario(around(96), around(100)).subjects, subject('nft-twin', { perCpuSecond: around(100 * by) })],
  });
  const slightly = (of: ScenarioResult): ScenarioResult => ({
    ...of,
    subjects: of.subjects.map((one) => (one.own ? { ...one, samples: { perCpuSecond: around(94.5) } } : one)),
  });
  t.same(verdicts(before, result(scenario(around(94.5), around(100)))), ['same'], 'no more than places may differ by');
  t.same(verdicts(result(wasTwin(1)), result(slightly(wasTwin(1)))), ['slower'], 'more than these places do');
  t.same(verdicts(result(wasTwin(1)), result(twin(1))), ['slower']);
  t.same(verdicts(result(wasTwin(1)), result(twin(1.1))), ['same'], 'places differ by more than that');

  const with3 = scenario(around(50), around(100), { references: ['plain', 'nft'] });
  const named = (of: ScenarioResult): (string | undefined)[] =>
    compare(result(of), result(of)).map(({ beside }) => beside);
  const plain = subject('plain', { perCpuSecond: around(200) });
  t.same(named({ ...with3, subjects: [plain, ...with3.subjects] }), ['nft'], 'the last of the references');
  const own = with3.subjects.map((one) => (one.own ? { ...one, beside: 'plain' } : one));
  t.same(named({ ...with3, subjects: [plain, ...own] }), ['plain'], 'or the subject’s own');

  const alone = (value: number): ScenarioResult =>
    scenario([], [], {
      main: 'milliseconds',
      references: [],
      group: 'control',
      subjects: [subject('sluice', { milliseconds: around(value) }, true)],
    });
  t.same(verdicts(result(alone(100)), result(alone(150))), ['slower'], 'of times more is slower');
  t.same(verdicts(result(alone(100)), result(alone(60))), ['faster']);
  const other = { ...result(alone(150)), machine: { ...result().machine, cpu: 'another' } };
  t.same(verdicts(result(alone(100)), other), ['unknown'], 'figures by themselves are of a machine');
  t.match(comparedText(compare(result(alone(100)), result(alone(150)))), /slower .*\n1 slower, beyond the noise/);
  t.match(comparedText(compare(before, before)), /no regression/);
});

t.test('tables', async (t) => {
  const of = scenario(around(80), around(100));
  const [head = '', , nft = '', sluice = ''] = scenarioTable(of).split('\n');
  t.match(head, '| subject | thousand packets per CPU second | to: the nft | rounds |');
  t.match(nft, '| the nft | 100 [99.0..101] |  | 9 |');
  t.match(sluice, '| **Sluice <here>** | 80.0 [79.2..80.8] | 0.80 [0.80..0.80] | 9 |');
  t.match(asked(of), [/at least 0.95 × the nft: 0.80 .* \*\*missed\*\*/]);
  t.match(ahead(scenario(around(80), apart(100, 0.01))), [/the nft: .* of it/]);
  t.same(ahead(scenario(around(100), apart(100, 0.01))), []);
  t.same([0.1234, 1.234, 12.34, 1234.5, Number.NaN].map(number), ['0.123', '1.23', '12.3', '1,235', '–']);
  const text = documentText(result(of), '../bench/results');
  t.match(text, '](../bench/results/udp-tunnel-1000.svg)');
  t.match(text, 'Open vSwitch: no module');
  t.match(text, '| Sluice <here> | as \\| it is |', 'what would end a cell is escaped');
  t.match(text, 'commit abc1234');
  for (const title of ['## What was asked', '## Who takes part', '## Forwarding']) t.match(text, title);
  const without = scenario([], [], { subjects: [], absent: [{ subject: 'squid', reason: 'is not installed' }] });
  t.match(
    resultText(result(without), () => undefined),
    'squid: not measured: is not installed',
  );
  t.notMatch(documentText(result(without), 'x'), '.svg');
});

t.test('plots are XML that holds what was measured', async (t) => {
  const sizes = [1, 1000, 10_000].map((size) => scenario(around(80), around(100), { id: `udp-tunnel-${size}` }));
  const plots = plotsOf(result(...sizes));
  t.same([...plots.keys()].sort(), [
    'udp-tunnel-1.svg',
    'udp-tunnel-1000.svg',
    'udp-tunnel-10000.svg',
    'udp-tunnel-sizes.svg',
  ]);
  for (const [name, svg] of plots) {
    wellFormed(t, svg, name);
    t.notMatch(svg, /NaN|undefined|Infinity/, name);
    t.match(svg, 'Sluice &lt;here&gt;', name);
  }
  const wide = bars('a & b', 'ms', [
    { label: 'small', value: 5, low: 4, high: 6, own: true },
    { label: 'large', value: 30_000, low: 30_000, high: 30_000, own: false },
  ]);
  wellFormed(t, wide, 'logarithmic');
  t.match(wide, />10,000</);
  const width = (svg: string): number[] =>
    [...svg.matchAll(/<rect x="\d+" y="\d+" width="([\d.]+)"/g)].map(([, of]) => Number(of));
  const [half = 0, whole = 0] = width(
    bars(
      '',
      '',
      [50, 100].map((value) => ({ label: 'x', value, low: value, high: value, own: false })),
    ),
  );
  t.ok(Math.abs(half / whole - 0.5) < 0.01, 'a bar is as long as its figure');
  wellFormed(t, lines('', '', ['1'], [{ label: 'gap', values: [undefined], own: false }]), 'nothing measured');
  t.same(ticks(100), [0, 20, 40, 60, 80, 100]);
  t.same(ticks(7.3), [0, 2, 4, 6, 8]);
  t.same(ticks(0), [0, 1]);
  t.same(decades(3, 4000), [1, 10, 100, 1000, 10_000]);
});

/** Each tag is closed, and no ampersand stands alone. */
function wellFormed(t: Test, svg: string, name: string): void {
  const open: string[] = [];
  for (const [, end, tag = '', self] of svg.matchAll(/<(\/?)([a-z]+)[^>]*?(\/?)>/g)) {
    if (end) t.equal(open.pop(), tag, `${name}: ${tag} is closed`);
    else if (!self) open.push(tag);
  }
  t.same(open, [], `${name}: all is closed`);
  t.notMatch(svg, /&(?!amp;|lt;|gt;|quot;)/, name);
}

t.test('what the programs of the control plane write', async (t) => {
  const cost = { what: 'one pod', milliseconds: 5, samples: [4, 5, 6] };
  t.same(subjectsFrom('planner', JSON.stringify({ costs: [cost], residentMiB: 1000 })), [
    { id: 'one pod', title: 'one pod', own: true, samples: { milliseconds: [[4], [5], [6]] } },
    { id: 'planner, resident', title: 'planner, resident', own: true, samples: { megabytes: [[1049]] } },
  ]);
  const rounds = [{ milliseconds: 9, flowsMilliseconds: 3, flowsCpuMilliseconds: 2 }];
  t.match(subjectsFrom('recheck', JSON.stringify({ costs: [{ what: 'all are', milliseconds: 9, rounds }] })), [
    { id: 'all are: the whole change', samples: { milliseconds: [[9]] } },
    { id: 'all are: of it the flows', samples: { milliseconds: [[3]], cpuMicroseconds: [[2000]] } },
  ]);
  t.throws(() => subjectsFrom('nobody', '{}'), TypeError);
});

t.test('the data are whole', async (t) => {
  const ids = scenarios.map(({ id }) => id);
  t.equal(new Set(ids).size, ids.length, 'each scenario has a name of its own');
  const known = new Set([...forwardingSubjects, ...tlsSubjects].map(({ id }) => id));
  for (const of of scenarios) {
    t.ok(of.main in metrics, of.id);
    if (of.kind === 'control') continue;
    const named = [
      ...of.subjects,
      ...(of.quick ?? []),
      ...of.references,
      ...of.bars.flatMap((bar) => [bar.subject, bar.beside]),
    ];
    t.same(
      named.filter((id) => !known.has(id)),
      [],
      `${of.id}: everybody is known`,
    );
    t.same(
      (of.quick ?? []).filter((id) => !of.subjects.includes(id)),
      [],
      `${of.id}: the quick run is a part of the full one`,
    );
  }
  for (const { id } of scenarios.filter(({ kind }) => kind === 'control'))
    t.throws(() => subjectsFrom(id, 'no JSON'), SyntaxError, `${id} is read by somebody`);
  t.match(absentPeers('CONFIG_OPENVSWITCH=m\n')[0]?.reason, /no scenario/);
  t.match(absentPeers('# CONFIG_OPENVSWITCH is not set\n')[0]?.reason, /without CONFIG_OPENVSWITCH/);
  t.match(absentPeers(undefined)[0]?.reason, /does not tell/);
});

t.test('the progress line', async (t) => {
  const step = { scenario: 2, scenarios: 9, title: 'udp', round: 0, rounds: 9, subject: 'nft' };
  t.equal(stepText(step, 75), '[2/9 1:15] udp: round 1/9, nft');
  t.equal(stepText({ ...step, round: -1, figure: '3 Gbit' }, 0), '[2/9 0:00] udp: warming up, nft 3 Gbit');
});
