/**
 * `schedule` of a rule (design §3): windows of local wall-clock time, any of which opens the rule. What a window means
 * at an instant is in policy/schedule.ts; here is how it is written, and which time zones there are.
 */

import { Type } from 'typebox';
import { oneOf } from './common.ts';
import { show } from './describe.ts';

/** In the order of `Date.getUTCDay()`. */
export const weekdays = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'] as const;

const timeText = (pattern: string, expected: string, description: string) =>
  Type.String({ pattern, minLength: 5, maxLength: 5, expected, description });

const scheduleWindow = Type.Object(
  {
    days: Type.Optional(
      Type.Array(oneOf([...weekdays]), {
        minItems: 1,
        maxItems: 7,
        listType: 'set',
        description: 'Days on which the window begins; absent: every day',
      }),
    ),
    from: timeText(
      '^([01][0-9]|2[0-3]):[0-5][0-9]$',
      'text in quotes with a time from "00:00" to "23:59"',
      'When it opens, local wall-clock time HH:MM',
    ),
    to: timeText(
      '^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$',
      'text in quotes with a time from "00:00" to "24:00"',
      'When it closes; earlier than from: on the next day',
    ),
    timezone: Type.String({
      pattern: '^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$',
      minLength: 1,
      maxLength: 64,
      default: 'UTC',
      expected: 'a time zone of the IANA database, as in Europe/Berlin',
      description: 'IANA time zone, as in Europe/Berlin',
    }),
  },
  {
    additionalProperties: false,
    check: checkWindow,
    cel: [{ rule: 'self.from != self.to', message: 'to must differ from from; a whole day is 00:00 to 24:00' }],
  },
);
export type ScheduleWindow = Type.Static<typeof scheduleWindow>;

export const scheduleSchema = Type.Array(scheduleWindow, {
  minItems: 1,
  maxItems: 32,
  description: 'The rule applies only within any of these windows; absent: always',
});

function checkWindow({ from, to, timezone }: ScheduleWindow) {
  if (from === to)
    return { field: 'to', expected: 'other than from; a whole day is "00:00" to "24:00"', got: show(to) };
  if (isTimeZone(timezone)) return null;
  return { field: 'timezone', expected: 'a time zone of the IANA database, as in Europe/Berlin', got: show(timezone) };
}

/** Whether Node's own time zone data has it. Not to be asked of a text longer than a name: it makes a formatter. */
function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en-US', { timeZone: name });
    return true;
  } catch {
    return false;
  }
}
