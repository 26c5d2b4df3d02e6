/**
 * The words of a text in nft's language, read one by one. A word that is not what it should be is outside of what is
 * understood: nft-rule.ts. Words that are values may be left open, to be read when a template is filled in.
 */
import { putName } from './nft-elements.ts';
import type { Operand } from './nft-expressions.ts';

/** Thrown where a text is outside, and caught where reading it began. */
export class Outside extends Error {}

const NUMBER = /^(0x[0-9a-f]{1,8}|\d{1,9})$/;
const NAME = /^[A-Za-z_]\w*$/;

export class WordReader {
  readonly all: readonly string[];
  /** Indices of those that were left open. */
  readonly open = new Set<number>();
  at = 0;

  constructor(all: readonly string[]) {
    this.all = all;
  }

  get atEnd(): boolean {
    return this.at >= this.all.length;
  }

  /** Without taking it; '' at the end. */
  peek(ahead = 0): string {
    return this.all[this.at + ahead] ?? '';
  }

  next(): string {
    const word = this.all[this.at++];
    if (word === undefined) throw new Outside();
    return word;
  }

  expect(...words: string[]): void {
    for (const word of words) if (this.next() !== word) throw new Outside();
  }

  /** The next word, if it is this one. */
  takes(word: string): boolean {
    if (this.peek() !== word) return false;
    this.at++;
    return true;
  }

  /** The next word's index: it is left open. */
  leave(): number {
    const index = this.at;
    this.next();
    this.open.add(index);
    return index;
  }

  /** The next word, to be written so. */
  operand(bytes: number, put: (text: string, into: Uint8Array, at: number) => boolean): Operand {
    const index = this.leave();
    return { bytes, write: (words, into, at) => put(words[index] ?? '', into, at) };
  }

  /** The next word as a chain's name. */
  chain(): Operand {
    return this.operand(this.peek().length, putName);
  }

  number(): number {
    const word = this.next();
    if (!NUMBER.test(word)) throw new Outside();
    return Number(word);
  }

  name(): string {
    const word = this.next();
    if (!NAME.test(word)) throw new Outside();
    return word;
  }

  quoted(): string {
    const text = /^"([!-~]{1,100})"$/.exec(this.next())?.[1];
    if (text === undefined) throw new Outside();
    return text;
  }

  /** `@NAME` */
  set(): string {
    const word = this.next();
    if (!word.startsWith('@') || !NAME.test(word.slice(1))) throw new Outside();
    return word.slice(1);
  }
}
