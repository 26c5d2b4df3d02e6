/**
 * What bytes say, read once for bytes that come again and again, as the names that clients of one cluster ask for. Each text of
 * bytes has one slot, in which the last of its slot's is remembered: no choice of bytes costs more than a reading and a copy, or
 * takes more memory.
 */

const SLOTS = 1_024;
/** Longer ones are read each time. */
const LONGEST = 64;

/** `read` gives the same for the same bytes, and what it gives is never changed. */
export function remembered<Value>(
  read: (bytes: Uint8Array, start: number, end: number) => Value,
): (bytes: Uint8Array, start: number, end: number) => Value {
  const keys = new Uint8Array(SLOTS * LONGEST);
  const lengths = new Int32Array(SLOTS).fill(-1);
  const values: Value[] = [];
  return (bytes, start, end) => {
    const length = end - start;
    if (length > LONGEST) return read(bytes, start, end);
    let hash = length;
    for (let at = start; at < end; at++) hash = Math.imul(hash ^ (bytes[at] ?? 0), 0x01000193);
    const slot = (hash ^ (hash >>> 15)) & (SLOTS - 1);
    const key = slot * LONGEST;
    let same = lengths[slot] === length;
    for (let at = 0; same && at < length; at++) same = keys[key + at] === bytes[start + at];
    if (!same) {
      values[slot] = read(bytes, start, end);
      lengths[slot] = length;
      for (let at = 0; at < length; at++) keys[key + at] = bytes[start + at] ?? 0;
    }
    return values[slot] as Value;
  };
}
