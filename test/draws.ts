/**
 * Properties that also count what their draws had: a rare thing that no draw had says nothing of the code. So more is drawn,
 * until all was met; what is never met still is for the test to say.
 */
import fc from 'fast-check';

/** Rounds of `RUNS` more: far more than the rarest needs. */
const ROUNDS = 40;
const RUNS = 10;

export async function assertUntilMet<T>(
  property: fc.IAsyncProperty<T> | fc.IProperty<T>,
  met: () => boolean,
  parameters: fc.Parameters<T>,
): Promise<void> {
  await fc.assert(property, parameters);
  for (let round = 0; round < ROUNDS && !met(); round++) await fc.assert(property, { ...parameters, numRuns: RUNS });
}
