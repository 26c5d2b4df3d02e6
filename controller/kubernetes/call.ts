/** What every request to the API server has: a bound of its time, and a code by which it failed. */
import { isRecord } from '../../api/plan-delta.ts';

const CALL_MS = 10_000;

/** Rejects if it takes too long; what it does at the server may be done all the same. */
export async function withinTime<T>(request: Promise<T>, milliseconds = CALL_MS): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`the API server did not answer within ${milliseconds / 1000} s`)),
      milliseconds,
    );
  });
  try {
    return await Promise.race([request, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Of HTTP; undefined: there was no answer. */
export function codeOf(error: unknown): number | undefined {
  return isRecord(error) && typeof error.code === 'number' ? error.code : undefined;
}
