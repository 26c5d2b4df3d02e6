/**
 * Plots as SVG text: bars with whiskers, and lines over a few sizes. Written here since it is little: no library, no
 * script, one font family, readable on light and dark ground. Pure.
 */

export interface BarRow {
  label: string;
  value: number;
  /** Least and most: the whisker. */
  low: number;
  high: number;
  own: boolean;
}

export interface LineRow {
  label: string;
  /** By place on the x axis; undefined: not measured there. */
  values: (number | undefined)[];
  own: boolean;
}

const [LEAST_WIDTH, PLOT, RIGHT, TOP, ROW, FOOT] = [760, 380, 90, 44, 26, 34];
/** Of a letter, about: nobody here can ask a font. */
const [LETTER, BOLD] = [6.7, 7.3];
const OWN = '#0b7285';
const OTHERS = [
  '#868e96',
  '#e8590c',
  '#5f3dc4',
  '#2b8a3e',
  '#c2255c',
  '#1864ab',
  '#a07d00',
  '#5c940d',
  '#495057',
  '#862e9c',
];
const FONT = 'font-family="system-ui, sans-serif" font-size="12"';

export const escaped = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');

const widthOf = (title: string, least: number): number => Math.ceil(Math.max(least, 16 + BOLD * title.length));

function frame([width, height]: [number, number], title: string, unit: string, body: string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${escaped(title)}" ${FONT}>`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    `<text x="8" y="18" font-weight="bold" fill="#212529">${escaped(title)}</text>`,
    `<text x="8" y="34" fill="#495057">${escaped(unit)}</text>`,
    ...body,
    '</svg>',
    '',
  ].join('\n');
}

/** At most six round numbers from 0 to what holds `most`. */
export function ticks(most: number): number[] {
  if (!(most > 0)) return [0, 1];
  const rough = most / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((of) => of * power).find((of) => most / of <= 5) ?? 10 * power;
  const count = Math.ceil(most / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, at) => Number((at * step).toPrecision(6)));
}

/** Powers of ten around all of them. */
export function decades(least: number, most: number): number[] {
  const [first, last] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(most))];
  return Array.from({ length: Math.max(2, last - first + 1) }, (_, at) => 10 ** (first + at));
}

/** Beyond such a factor between figures a linear axis hides the small ones. */
const WIDE = 50;

interface Scale {
  marks: number[];
  /** 0 to 1. */
  of(value: number): number;
}

function scaleOf(values: number[]): Scale {
  const positive = values.filter((value) => value > 0);
  const [least, most] = [Math.min(...positive), Math.max(...positive)];
  if (positive.length > 0 && most / least > WIDE) {
    const marks = decades(least, most);
    const [from, to] = [Math.log10(marks[0] ?? 1), Math.log10(marks.at(-1) ?? 10)];
    return { marks, of: (value) => (value <= 0 ? 0 : Math.max(0, (Math.log10(value) - from) / (to - from))) };
  }
  const marks = ticks(most);
  const end = marks.at(-1) ?? 1;
  return { marks, of: (value) => Math.max(0, value / end) };
}

const text = (value: number): string =>
  value >= 1000 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(3)));
const at = (value: number): string => value.toFixed(1);

export function bars(title: string, unit: string, rows: readonly BarRow[]): string {
  const scale = scaleOf(rows.flatMap(({ value, low, high }) => [value, low, high]));
  const height = TOP + rows.length * ROW + FOOT;
  const labels = Math.ceil(Math.max(...rows.map(({ label, own }) => label.length * (own ? BOLD : LETTER)), 100)) + 16;
  const x = (value: number): number => labels + PLOT * scale.of(value);
  const bottom = TOP + rows.length * ROW;
  const grid = scale.marks.map(
    (mark) =>
      `<line x1="${at(x(mark))}" y1="${TOP}" x2="${at(x(mark))}" y2="${bottom}" stroke="#dee2e6"/>` +
      `<text x="${at(x(mark))}" y="${bottom + 16}" text-anchor="middle" fill="#495057">${text(mark)}</text>`,
  );
  const drawn = rows.map(({ label, value, low, high, own }, index) => {
    const y = TOP + index * ROW;
    const middle = at(y + ROW / 2);
    return [
      `<text x="${labels - 8}" y="${at(y + ROW / 2 + 4)}" text-anchor="end" fill="#212529"${own ? ' font-weight="bold"' : ''}>${escaped(label)}</text>`,
      `<rect x="${labels}" y="${y + 5}" width="${at(Math.max(0, x(value) - labels))}" height="${ROW - 10}" fill="${own ? OWN : '#adb5bd'}"/>`,
      `<line x1="${at(x(low))}" y1="${middle}" x2="${at(x(high))}" y2="${middle}" stroke="#212529" stroke-width="1.5"/>`,
      `<text x="${at(Math.max(x(value), x(high)) + 6)}" y="${at(y + ROW / 2 + 4)}" fill="#212529">${text(value)}</text>`,
    ].join('\n');
  });
  const width = widthOf(title, Math.max(LEAST_WIDTH, labels + PLOT + RIGHT));
  return frame([width, height], title, unit, [...grid, ...drawn]);
}

export function lines(title: string, unit: string, places: readonly string[], rows: readonly LineRow[]): string {
  const scale = scaleOf(rows.flatMap(({ values }) => values.flatMap((value) => value ?? [])));
  const [left, plot, tall] = [70, 400, 260];
  const bottom = TOP + 8 + tall;
  const height = Math.max(bottom + FOOT, TOP + rows.length * 18 + 12);
  const x = (place: number): number => left + (places.length < 2 ? plot / 2 : (plot * place) / (places.length - 1));
  const y = (value: number): number => bottom - tall * scale.of(value);
  const grid = scale.marks.map(
    (mark) =>
      `<line x1="${left}" y1="${at(y(mark))}" x2="${left + plot}" y2="${at(y(mark))}" stroke="#dee2e6"/>` +
      `<text x="${left - 6}" y="${at(y(mark) + 4)}" text-anchor="end" fill="#495057">${text(mark)}</text>`,
  );
  const names = places.map(
    (place, index) =>
      `<text x="${at(x(index))}" y="${bottom + 18}" text-anchor="middle" fill="#495057">${escaped(place)}</text>`,
  );
  const drawn = rows.map(({ label, values, own }, index) => {
    const colour = own ? OWN : (OTHERS[index % OTHERS.length] ?? OWN);
    const points = values.flatMap((value, place) => (value === undefined ? [] : [[x(place), y(value)] as const]));
    const path = points.map(([px, py]) => `${at(px)},${at(py)}`).join(' ');
    const key = TOP + 12 + index * 18;
    return [
      `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="${own ? 3 : 1.5}"/>`,
      ...points.map(([px, py]) => `<circle cx="${at(px)}" cy="${at(py)}" r="${own ? 4 : 3}" fill="${colour}"/>`),
      `<line x1="${left + plot + 16}" y1="${key - 4}" x2="${left + plot + 36}" y2="${key - 4}" stroke="${colour}" stroke-width="${own ? 3 : 1.5}"/>`,
      `<text x="${left + plot + 42}" y="${key}" fill="#212529"${own ? ' font-weight="bold"' : ''}>${escaped(label)}</text>`,
    ].join('\n');
  });
  const longest = Math.max(...rows.map(({ label }) => label.length * BOLD), 0);
  const width = widthOf(title, Math.max(LEAST_WIDTH, left + plot + 50 + longest));
  return frame([width, height], title, unit, [...grid, ...names, ...drawn]);
}
