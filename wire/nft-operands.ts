/**
 * Values of rules that take more than the bytes of one word: ends of ranges, prefixes, what is done to a mark. `word` is
 * the index of a word that was left open (nft-words.ts); what it says is known only when a template is filled in.
 */
import type { Operand } from './nft-expressions.ts';
import { type Key, numberIn, putHost } from './nft-keys.ts';
import { turn } from './nft-types.ts';

/** What is before the mark in a word, or behind it; '' without a mark. */
function side(words: readonly string[], index: number, mark: string, which: 0 | 1): string {
  const word = words[index] ?? '';
  const at = word.indexOf(mark);
  if (at < 0) return '';
  return which === 0 ? word.slice(0, at) : word.slice(at + 1);
}

/** An end of `FIRST-LAST`. */
export const endOf = (key: Key, word: number, which: 0 | 1, turned: boolean): Operand => ({
  bytes: key.bytes,
  write(words, into, at) {
    if (!key.write(side(words, word, '-', which), into, at)) return false;
    if (turned) turn(into, at, key.bytes);
    return true;
  },
});

const maskAt = (length: number, index: number): number =>
  (0xff00 >> Math.min(8, Math.max(0, length - 8 * index))) & 0xff;

/** How long the prefix is; -1 if it is none that nft would compare so. */
function prefixLength(key: Key, words: readonly string[], word: number): number {
  const text = side(words, word, '/', 1);
  const length = text.startsWith('0x') ? -1 : numberIn(text);
  return length >= 1 && length <= 8 * key.bytes ? length : -1;
}

/** The mask of `ADDRESS/LENGTH`. */
export const prefixMask = (key: Key, word: number): Operand => ({
  bytes: key.bytes,
  write(words, into, at) {
    const length = prefixLength(key, words, word);
    for (let i = 0; i < key.bytes; i++) into[at + i] = maskAt(length, i);
    return length > 0;
  },
});

/** The address of `ADDRESS/LENGTH`, which has nothing behind the prefix. */
export const prefixValue = (key: Key, word: number): Operand => ({
  bytes: key.bytes,
  write(words, into, at) {
    if (!key.write(side(words, word, '/', 0), into, at)) return false;
    const length = prefixLength(key, words, word);
    for (let i = 0; i < key.bytes; i++) if (((into[at + i] as number) & ~maskAt(length, i)) !== 0) return false;
    return true;
  },
});

/** What `and WORD or WORD` do to a mark; either may be absent. */
export const changeOf = (
  and: number | undefined,
  or: number | undefined,
  combine: (and: number, or: number) => number,
): Operand => ({
  bytes: 4,
  write(words, into, at) {
    const kept = and === undefined ? 0xffffffff : numberIn(words[and] ?? '');
    const set = or === undefined ? 0 : numberIn(words[or] ?? '');
    return kept >= 0 && set >= 0 && putHost(combine(kept, set) >>> 0, into, at);
  },
});
