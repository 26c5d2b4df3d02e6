/**
 * What a parser of untrusted input returns: a value, or why there is none. Parsers never throw; an exception always
 * means a programmer's mistake (house rule 10).
 */

export type Result<T> = { ok: true; value: T } | { ok: false; error: string };

export function ok<T>(value: T): { ok: true; value: T } {
  return { ok: true, value };
}

export function fail(error: string): { ok: false; error: string } {
  return { ok: false, error };
}

/** For texts that the program itself made: a failure here is a mistake of ours, not of the input. */
export function must<T>(result: Result<T>): T {
  if (result.ok) return result.value;
  throw new Error(result.error);
}
