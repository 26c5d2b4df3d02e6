/**
 * The programs' own log: pino, JSON lines to stderr (stdout belongs to what a verb prints). Flow records do not
 * pass through here. Left out: rotation, which the supervisor (systemd, the container runtime) does.
 */
import { destination, type Logger, pino, stdTimeFunctions } from 'pino';

export type { Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

/** Lines are written synchronously, so that the last words before a crash are not lost. */
export function createLog(program: string, level: LogLevel = 'info'): Logger {
  return pino(
    {
      base: { program },
      level,
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination({ fd: 2, sync: true }),
  );
}

/** For tests and for verbs that report by themselves. */
export function silentLog(): Logger {
  return pino({ level: 'silent' });
}
