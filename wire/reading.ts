/**
 * What a reader of application bytes says of the bytes at hand: the first ones of a stream, as far as they have come, or a
 * datagram. Readers keep no state: with more bytes they are asked again from the first on, and what they said of fewer holds
 * for more, unless it was `more`. They never throw and never look past the bytes; each has bounds on what it reads,
 * beyond which it refuses.
 */

export type Reading<Value, Reason extends string> =
  | { readonly state: 'read'; readonly value: Value }
  /** Right so far, and not enough. */
  | { readonly state: 'more' }
  /** Not bytes of this protocol, or ones that it forbids. */
  | { readonly state: 'refused'; readonly reason: Reason };

/** One object for all: readers are asked for every segment. */
export const MORE: { readonly state: 'more' } = { state: 'more' };

export function read<Value>(value: Value): { readonly state: 'read'; readonly value: Value } {
  return { state: 'read', value };
}

export function refused<Reason extends string>(reason: Reason): { readonly state: 'refused'; readonly reason: Reason } {
  return { state: 'refused', reason };
}
