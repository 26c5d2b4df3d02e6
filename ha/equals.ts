/**
 * Who of two active routers of the same priority yields: the one of the lower address (RFC 9568 §6.4.3), where that says
 * something. On each channel the addresses may say another thing, and two that both yield would both come back: the
 * first channel on which an equal is heard decides, and one that is slower than others has an interval to be heard.
 */

import { addressBytes } from '../wire/address-text.ts';

export class Equals {
  /** On each channel: since when an equal is heard there, and when it was heard last. */
  readonly #heard: ({ since: number; last: number } | undefined)[] = [];
  #yields = 0;

  /** An equal was heard; it counts for `downInterval`. */
  note(channel: number, now: number, downInterval: number): void {
    const equal = this.#heard[channel];
    if (equal !== undefined && now - equal.last < downInterval) equal.last = now;
    else this.#heard[channel] = { since: now, last: now };
  }

  /** Whether this channel is the one. */
  decides(channel: number, now: number, downInterval: number, interval: number): boolean {
    for (const equal of this.#heard.slice(0, channel)) {
      if (equal !== undefined && now - equal.last < downInterval) return false;
    }
    return channel === 0 || now - (this.#heard[channel]?.since ?? now) >= interval;
  }

  /** From 0 to 1, another for each address and each time: no dice, so that a run can be run again. */
  backOff(address: string | undefined): number {
    let hash = ++this.#yields;
    for (const byte of addressBytes(address ?? '::')) hash = Math.imul(hash ^ byte, 0x01000193) + 0x9e3779b9;
    return ((hash ^ (hash >>> 15)) >>> 0) / 2 ** 32;
  }
}

export function isAbove(theirs: string, ours: string | undefined): boolean {
  return ours !== undefined && Buffer.compare(addressBytes(theirs), addressBytes(ours)) > 0;
}
