/**
 * How far a time zone's wall clock is from UTC, and when that changes. Node's own time zone data (ICU, the IANA
 * database) answers for one instant at a time, so a year of days is asked once a zone, and a change between two days is
 * found by halving. No zone has changed twice within one day since 1970. Left out: a calendar; see schedule.ts.
 */

export const DAY = 86_400_000;
/** How far ahead changes are known: every yearly one, once at least. */
export const HORIZON = 400 * DAY;

/** From `from` until `until` the offset is the same. Milliseconds; local time is UTC plus `offset`. */
export interface Span {
  offset: number;
  /** Of the change that comes next; at the horizon or beyond: none is known before it. */
  until: number;
}

interface Known {
  /** Days of UTC that were asked: `first` ≤ t < `end`. */
  first: number;
  end: number;
  /** In order; each holds from `from` until the next one's. */
  spans: { from: number; offset: number }[];
}

export class Zone {
  readonly #format: Intl.DateTimeFormat;
  #known: Known | undefined;

  constructor(name: string) {
    this.#format = new Intl.DateTimeFormat('en-US', { timeZone: name, timeZoneName: 'longOffset' });
  }

  spanAt(instant: number): Span {
    const { spans, end } = this.#covering(instant);
    let index = spans.length - 1;
    while (index > 0 && (spans[index]?.from ?? 0) > instant) index--;
    return { offset: spans[index]?.offset ?? 0, until: spans[index + 1]?.from ?? end };
  }

  /** What is known is extended as time goes on; another time (`explain --at`, a clock set back) starts anew. */
  #covering(instant: number): Known {
    const day = Math.floor(instant / DAY) * DAY;
    let known = this.#known;
    if (known === undefined || day < known.first || day > known.first + 2 * HORIZON) {
      known = { first: day, end: day, spans: [{ from: day, offset: this.#offset(day) }] };
      this.#known = known;
    }
    for (; known.end < day + HORIZON; known.end += DAY) {
      const next = known.end + DAY;
      const before = known.spans.at(-1)?.offset ?? 0;
      const offset = this.#offset(next);
      if (offset !== before) known.spans.push({ from: this.#change(known.end, next, before), offset });
    }
    return known;
  }

  /** The first instant after `low` at which the offset is not `before` any more; at `high` it is not. */
  #change(low: number, high: number, before: number): number {
    let [last, first] = [low, high];
    while (first - last > 1000) {
      const middle = last + Math.floor((first - last) / 2000) * 1000;
      if (this.#offset(middle) === before) last = middle;
      else first = middle;
    }
    return first;
  }

  #offset(instant: number): number {
    const name = this.#format.formatToParts(instant).find(({ type }) => type === 'timeZoneName')?.value ?? '';
    const match = /^GMT(?:([+-])(\d\d):(\d\d)(?::(\d\d))?)?$/.exec(name);
    if (match === null) throw new Error(`time zone offset ${JSON.stringify(name)}`);
    const [, sign, hours = '0', minutes = '0', seconds = '0'] = match;
    const size = (Number(hours) * 60 + Number(minutes)) * 60 + Number(seconds);
    return (sign === '-' ? -size : size) * 1000;
  }
}

const zones = new Map<string, Zone>();

/** Throws RangeError for a name that the time zone data does not have; the schema has refused those. */
export function zoneOf(name: string): Zone {
  // Names are taken in any case, so that without this a zone could be known under very many.
  const key = name.toLowerCase();
  let zone = zones.get(key);
  if (zone === undefined) {
    zone = new Zone(name);
    zones.set(key, zone);
  }
  return zone;
}
