/**
 * What goes wrong between us and an API server, as one class with a code: what to do next (informer.ts), the label of a
 * metric and the word in a log line all go by it. Nothing of what the server says is taken at its length.
 */
import { isRecord } from '../../api/plan-delta.ts';

export type FailureCode =
  /** No connection, or it broke. */
  | 'Unreachable'
  | 'Unauthorized'
  | 'Forbidden'
  | 'NotFound'
  /** The version or page that we asked for is no longer kept. */
  | 'Expired'
  | 'TooManyRequests'
  /** Any other 4xx. */
  | 'Refused'
  | 'ServerError'
  /** What came is no JSON, or not what was asked for. */
  | 'BadAnswer'
  | 'TooLarge'
  /** A watch that should have ended by now: half-open. */
  | 'Silent';

const MAX_MESSAGE = 300;
/** However long a server wants us to stay away. */
const MAX_RETRY_AFTER_MS = 120_000;

export class ApiFailure extends Error {
  readonly code: FailureCode;
  readonly retryAfterMs: number | undefined;

  constructor(
    code: FailureCode,
    message: string,
    options: { retryAfterMs?: number | undefined; cause?: unknown } = {},
  ) {
    super(short(message), { cause: options.cause });
    this.code = code;
    this.retryAfterMs = options.retryAfterMs;
  }

  /** Whatever was caught. */
  static from(error: unknown): ApiFailure {
    if (error instanceof ApiFailure) return error;
    const { code } = (error ?? {}) as { code?: unknown };
    const message = error instanceof Error ? error.message : String(error);
    const text = typeof code === 'string' && !message.includes(code) ? `${code}: ${message}` : message;
    return new ApiFailure('Unreachable', text, { cause: error });
  }

  /** An answer that is no success: `body` is its `Status` if it is one, `retryAfter` the header. */
  static ofStatus(status: number, body: unknown, retryAfter?: string): ApiFailure {
    const said = isRecord(body) && typeof body.message === 'string' ? body.message : '';
    const details = isRecord(body) && isRecord(body.details) ? body.details : {};
    const seconds = secondsOf(retryAfter) ?? secondsOf(details.retryAfterSeconds);
    const retryAfterMs = seconds === undefined ? undefined : Math.min(1000 * seconds, MAX_RETRY_AFTER_MS);
    return new ApiFailure(codeOf(status, said), `${status}${said === '' ? '' : `: ${said}`}`, { retryAfterMs });
  }
}

function codeOf(status: number, said: string): FailureCode {
  // Ours is of the future, as after a restore of etcd: a list tells what there is now.
  if (/too large resource version/i.test(said)) return 'Expired';
  switch (status) {
    case 401:
      return 'Unauthorized';
    case 403:
      return 'Forbidden';
    case 404:
      return 'NotFound';
    case 410:
      return 'Expired';
    case 429:
      return 'TooManyRequests';
    default:
      return status >= 400 && status < 500 ? 'Refused' : 'ServerError';
  }
}

/** A header's text (a date, which API servers do not send, is not read) or a number. */
function secondsOf(value: unknown): number | undefined {
  const seconds = typeof value === 'string' && /^[0-9]{1,9}$/.test(value) ? Number(value) : value;
  return typeof seconds === 'number' && seconds >= 0 ? seconds : undefined;
}

/** One line, printable. */
const short = (message: string): string => {
  const line = message.replaceAll(/[^\x20-\x7e\u00a0-\ud7ff]+/g, ' ').trim();
  return line.length > MAX_MESSAGE ? `${line.slice(0, MAX_MESSAGE)}…` : line;
};
