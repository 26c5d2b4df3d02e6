/**
 * Schedules against the clock on the wall: a slow reference asks Intl for weekday and time of every minute of the weeks
 * in which clocks change, and isOpen and nextChange must agree with it at all of them, whatever the windows.
 * Then a table of edges by hand, since the reference and the code could read the design wrong alike.
 */

import fc from 'fast-check';
import t from 'tap';
import { type ScheduleWindow, weekdays } from '../../api/kinds.ts';
import { isOpen, nextChange, type Schedule } from '../../policy/schedule.ts';

const MINUTE = 60_000;
const DAY = 86_400_000;
const zones = ['Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe', 'Asia/Kolkata'];
/** Days on which clocks change in one of the zones, which have each other's weeks in common. */
const weeks = ['2026-03-08', '2026-03-29', '2026-04-04', '2026-10-03', '2026-10-25', '2026-11-01'].map((day) =>
  Date.parse(`${day}T00:00:00Z`),
);
const [BEFORE, LENGTH] = [2 * DAY, 9 * DAY];

interface Wall {
  day: number;
  minute: number;
}
const names: readonly string[] = weekdays;
function wallClock(zone: string, start: number): Wall[] {
  const format = new Intl.DateTimeFormat('en-US', {
    timeZone: zone,
    weekday: 'short',
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
  });
  return Array.from({ length: LENGTH / MINUTE }, (_, index) => {
    const parts = new Map(format.formatToParts(start + index * MINUTE).map(({ type, value }) => [type, value]));
    const day = names.indexOf(parts.get('weekday') ?? '');
    return { day, minute: Number(parts.get('hour')) * 60 + Number(parts.get('minute')) };
  });
}

const minutes = (text: string): number => Number(text.split(':')[0]) * 60 + Number(text.split(':')[1]);

function shows({ days = [...weekdays], from, to }: ScheduleWindow, { day, minute }: Wall): boolean {
  const [opens, closes] = [minutes(from), minutes(to)];
  const named = (number: number): boolean => days.some((name) => weekdays.indexOf(name) === (number + 7) % 7);
  if (opens < closes) return named(day) && opens <= minute && minute < closes;
  return (named(day) && opens <= minute) || (named(day - 1) && minute < closes);
}

const text = (minute: number): string =>
  `${String(Math.floor(minute / 60)).padStart(2, '0')}:${String(minute % 60).padStart(2, '0')}`;
/** Mostly in the small hours, where clocks change. */
const time = fc.oneof(fc.integer({ min: 0, max: 240 }), fc.integer({ min: 0, max: 1439 }));
const window = (zone: fc.Arbitrary<string>) =>
  fc
    .record({
      days: fc.option(fc.subarray([...weekdays], { minLength: 1 }), { nil: undefined }),
      from: time,
      to: fc.oneof(time, fc.constant(1440)),
      timezone: zone,
    })
    .filter(({ from, to }) => from !== to)
    .map(({ days, from, to, timezone }): ScheduleWindow => {
      return { ...(days && { days }), from: text(from), to: text(to), timezone };
    });
const schedules = fc.oneof(
  ...zones.map((zone) => fc.array(window(fc.constant(zone)), { minLength: 1, maxLength: 3 })),
  fc.array(window(fc.constantFrom(...zones)), { minLength: 2, maxLength: 4 }),
);

t.test('as the clock on the wall, minute by minute over changes of clocks', async (t) => {
  const walls = weeks.map((day) => new Map(zones.map((zone) => [zone, wallClock(zone, day - BEFORE)])));
  let flips = 0;
  fc.assert(
    fc.property(fc.nat(weeks.length - 1), schedules, fc.integer({ min: 0, max: MINUTE - 1 }), (week, schedule, ms) => {
      const start = (weeks[week] ?? 0) - BEFORE;
      const wall = walls[week];
      const expected = Array.from({ length: LENGTH / MINUTE }, (_, index) =>
        schedule.some((one) => shows(one, wall?.get(one.timezone)?.[index] ?? { day: -1, minute: -1 })),
      );
      const following: (number | undefined)[] = [];
      for (let index = expected.length - 1, next: number | undefined; index >= 0; index--) {
        following[index] = next;
        if (index > 0 && expected[index] !== expected[index - 1]) next = start + index * MINUTE;
      }
      for (const [index, open] of expected.entries()) {
        const at = start + index * MINUTE;
        if (isOpen(schedule, at) !== open || isOpen(schedule, at + MINUTE - 1) !== open) return false;
        // Every edge from both sides, and now and then in between.
        const [before, after] = [expected[index - 1] ?? open, expected[index + 1] ?? open];
        if (before !== open) flips++;
        if (before === open && after === open && index % 173 !== 0) continue;
        const found = nextChange(schedule, at + ms);
        const next = following[index];
        const right = next === undefined ? found === undefined || found >= start + LENGTH : found === next;
        if (!right) return false;
      }
      return true;
    }),
    { numRuns: 60 },
  );
  t.ok(flips > 500, `${flips} changes were compared`);
});

const utc = (at: string): number => Date.parse(`${at.replace(' ', 'T')}:00Z`);
const one = (from: string, to: string, timezone: string, ...days: ScheduleWindow['days'] & object): Schedule => [
  { from, to, timezone, ...(days.length > 0 && { days }) },
];

t.test('edges by hand: from a moment on, the changes that follow', async (t) => {
  const rows: [string, Schedule, string, boolean, (string | undefined)[]][] = [
    [
      'spring: a window whose beginning does not exist opens when the clock has passed it',
      one('02:30', '04:00', 'Europe/Berlin'),
      '2026-03-28 12:00',
      false,
      ['2026-03-29 01:00', '2026-03-29 02:00', '2026-03-30 00:30'],
    ],
    [
      'spring: a window that does not exist is left out that day',
      one('02:15', '02:45', 'Europe/Berlin'),
      '2026-03-28 12:00',
      false,
      ['2026-03-30 00:15', '2026-03-30 00:45'],
    ],
    [
      'spring: and a weekly one that week',
      one('02:15', '02:45', 'Europe/Berlin', 'Sun'),
      '2026-03-24 12:00',
      false,
      ['2026-04-05 00:15'],
    ],
    [
      'spring: an end that does not exist comes when the clock passes it',
      one('01:00', '02:30', 'Europe/Berlin', 'Sun'),
      '2026-03-28 12:00',
      false,
      ['2026-03-29 00:00', '2026-03-29 01:00', '2026-04-04 23:00'],
    ],
    [
      'autumn: a time that exists twice counts twice',
      one('01:00', '02:30', 'Europe/Berlin', 'Sun'),
      '2026-10-24 12:00',
      false,
      ['2026-10-24 23:00', '2026-10-25 00:30', '2026-10-25 01:00', '2026-10-25 01:30', '2026-11-01 00:00'],
    ],
    [
      'autumn: a window around it is an hour longer',
      one('22:00', '06:00', 'Europe/Berlin', 'Sat'),
      '2026-10-24 12:00',
      false,
      ['2026-10-24 20:00', '2026-10-25 05:00', '2026-10-31 21:00'],
    ],
    [
      'half an hour: Lord Howe',
      one('01:45', '03:00', 'Australia/Lord_Howe', 'Sun'),
      '2026-10-03 12:00',
      false,
      // 02:00 (+10:30) becomes 02:30 (+11).
      ['2026-10-03 15:15', '2026-10-03 16:00', '2026-10-10 14:45'],
    ],
    [
      'no change of clocks: Kolkata',
      one('09:00', '17:30', 'Asia/Kolkata', 'Mon', 'Fri'),
      '2026-03-29 00:00',
      false,
      ['2026-03-30 03:30', '2026-03-30 12:00', '2026-04-03 03:30'],
    ],
    [
      'the night that belongs to Friday',
      one('20:00', '04:00', 'America/New_York', 'Fri'),
      '2026-11-28 02:00',
      true,
      ['2026-11-28 09:00', '2026-12-05 01:00'],
    ],
    [
      'clocks that change at midnight: Beirut has no 00:00 that day',
      one('00:00', '01:30', 'Asia/Beirut', 'Sun'),
      '2026-03-28 12:00',
      false,
      ['2026-03-28 22:00', '2026-03-28 22:30', '2026-04-04 21:00'],
    ],
    [
      'a whole day',
      one('00:00', '24:00', 'UTC', 'Thu'),
      '2026-11-25 12:00',
      false,
      ['2026-11-26 00:00', '2026-11-27 00:00'],
    ],
    [
      'until midnight, written as the next day',
      one('22:00', '00:00', 'UTC'),
      '2026-11-25 23:00',
      true,
      ['2026-11-26 00:00'],
    ],
    ['always', one('00:00', '24:00', 'Europe/Berlin'), '2026-11-25 12:00', true, [undefined]],
    [
      'always, in two halves',
      [...one('00:00', '12:00', 'UTC'), ...one('12:00', '24:00', 'UTC')],
      '2026-11-25 12:00',
      true,
      [undefined],
    ],
    [
      'two windows that meet do not close between',
      [...one('08:00', '12:00', 'UTC'), ...one('12:00', '18:00', 'UTC')],
      '2026-11-25 09:00',
      true,
      ['2026-11-25 18:00', '2026-11-26 08:00'],
    ],
    [
      'two zones that agree in winter only: months without a change, then a gap',
      [...one('00:00', '12:00', 'Europe/Berlin'), ...one('12:00', '24:00', 'Africa/Lagos')],
      '2026-11-25 09:00',
      true,
      ['2027-03-28 10:00', '2027-03-28 11:00'],
    ],
  ];
  for (const [title, schedule, from, open, changes] of rows) {
    let at = utc(from);
    t.equal(isOpen(schedule, at), open, `${title}: at ${from}`);
    let now = open;
    for (const change of changes) {
      const next = nextChange(schedule, at);
      t.equal(next, change === undefined ? undefined : utc(change), `${title}: ${change ?? 'no change'}`);
      if (next === undefined) break;
      now = !now;
      t.equal(isOpen(schedule, next - 1), !now, `${title}: before ${change}`);
      t.equal(isOpen(schedule, next), now, `${title}: at ${change}`);
      at = next;
    }
  }
});
