/**
 * When a rule applies (design §3 `schedule`): at the instants at which the wall clock of a window's time zone stands
 * within it, from `from` (included) to `to` (not included), on the days on which it begins. So where clocks are set
 * forward a time that does not exist does not happen, and where they are set back a time that exists twice counts
 * twice. Pure: the time is passed in. Instants are milliseconds since the epoch.
 */

import type { ScheduleWindow } from '../api/kinds.ts';
import { weekdays } from '../api/kinds.ts';
import { DAY, HORIZON, type Zone, zoneOf } from './time-zone.ts';

/** Any of the windows opens it. */
export type Schedule = readonly ScheduleWindow[];

interface Window {
  zone: Zone;
  /** By day of the week, Sunday first: whether the window begins on it. */
  begins: boolean[];
  /** Milliseconds since midnight; `to` before `from`: on the next day. */
  from: number;
  to: number;
}

/** A week has every edge of every window, and a week after a change of the clocks those that fell into the gap. */
const QUIET = 8 * DAY;

/** Objects stay the same from plan to plan, and so do their schedules. */
const compiled = new WeakMap<Schedule, Window[]>();

function windowsOf(schedule: Schedule): Window[] {
  let windows = compiled.get(schedule);
  if (windows === undefined) {
    windows = schedule.map(({ days, from, to, timezone }) => ({
      zone: zoneOf(timezone),
      begins: weekdays.map((day) => days === undefined || days.includes(day)),
      from: timeOf(from),
      to: timeOf(to),
    }));
    compiled.set(schedule, windows);
  }
  return windows;
}

const timeOf = (text: string): number => (Number(text.slice(0, 2)) * 60 + Number(text.slice(3))) * 60_000;

export function isOpen(schedule: Schedule, instant: number): boolean {
  return windowsOf(schedule).some((window) => holds(window, instant + window.zone.spanAt(instant).offset));
}

/** `local`: what the wall clock shows, as if it were UTC. */
function holds({ begins, from, to }: Window, local: number): boolean {
  const day = Math.floor(local / DAY);
  const time = local - day * DAY;
  // The epoch was a Thursday.
  const today = begins[(((day + 4) % 7) + 7) % 7] === true;
  if (from < to) return today && time >= from && time < to;
  return (today && time >= from) || (begins[(((day + 3) % 7) + 7) % 7] === true && time < to);
}

/**
 * The first instant after `instant` at which isOpen changes; undefined: at none that is known of (about a year ahead).
 * Between the edges of windows and the changes of clocks nothing happens, so it goes from one to the next.
 */
export function nextChange(schedule: Schedule, instant: number): number | undefined {
  const windows = windowsOf(schedule);
  const open = isOpen(schedule, instant);
  const end = instant + HORIZON;
  let quietSince = instant;
  for (let at = instant; at < end; ) {
    let edge = Number.POSITIVE_INFINITY;
    let change = Number.POSITIVE_INFINITY;
    for (const window of windows) {
      const { offset, until } = window.zone.spanAt(at);
      change = Math.min(change, until);
      edge = Math.min(edge, nextEdge(window, at + offset) - offset);
    }
    if (change <= edge || edge - quietSince > QUIET) {
      at = change;
      quietSince = change;
    } else at = edge;
    if (isOpen(schedule, at) !== open) return at < end ? at : undefined;
  }
  return undefined;
}

/** The next time after `local` at which the wall clock shows an edge of the window, on whatever day. */
function nextEdge({ from, to }: Window, local: number): number {
  const midnight = Math.floor(local / DAY) * DAY;
  // `to` may be 24:00, and is then an edge of the day before too.
  const [opens, closes] = [midnight + from, midnight + (to % DAY)];
  return Math.min(opens > local ? opens : opens + DAY, closes > local ? closes : closes + DAY);
}

/** What a rule's schedule says at an instant: the rule applies or not, and until when. */
export interface ScheduleState {
  open: boolean;
  nextChange?: number;
}

/** The last answer holds until the next change: plans are made far more often than schedules change. */
const lastStates = new WeakMap<Schedule, { since: number; until: number; state: ScheduleState }>();

/** Undefined: without a schedule a rule always applies. */
export function scheduleState(schedule: Schedule | undefined, instant: number): ScheduleState | undefined {
  if (schedule === undefined) return undefined;
  const last = lastStates.get(schedule);
  if (last !== undefined && instant >= last.since && instant < last.until) return last.state;
  const change = nextChange(schedule, instant);
  const state = { open: isOpen(schedule, instant), ...(change === undefined ? {} : { nextChange: change }) };
  // Without a change in sight it is asked again in a day, when there is another day to be seen.
  lastStates.set(schedule, { since: instant, until: change ?? instant + DAY, state });
  return state;
}

/** In words, for status and `explain`. */
export function describeSchedule({ open, nextChange }: ScheduleState): string {
  const until = nextChange === undefined ? 'for the year to come' : `until ${timeText(nextChange)}`;
  return open ? `by its schedule it applies ${until}` : `out of its schedule ${until}`;
}

/** Edges are whole seconds: as the times of Kubernetes are written. */
export const timeText = (instant: number): string => new Date(instant).toISOString().replace('.000Z', 'Z');
