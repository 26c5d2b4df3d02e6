/**
 * How much garbage V8 lets gather. A big plan is many small objects, and by default as much again may lie about unused
 * before the whole heap is searched.
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/**
 * Of Node.js, for a gateway: what it makes of each flow that is read lives for milliseconds, or until the flow ends. With the
 * default of 16 much of the former is still there when V8 looks, and is copied. It can only be said at the start (bin/sluice).
 */
export const gatewayFlags: readonly string[] = ['--max-semi-space-size=32'];

let tight = false;

/**
 * From now on the heap grows by less than a third between two searches: for a fifth less memory. Not before a first plan
 * is understood: as long as a heap grows from nothing, it would be searched again and again. It is searched once now,
 * since only then V8 finds a new limit.
 */
export function tightenHeap(): void {
  if (tight) return;
  tight = true;
  setFlagsFromString('--heap-growing-percent=30');
  collectGarbage();
}

/** The whole heap is searched, now. */
export function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
}
