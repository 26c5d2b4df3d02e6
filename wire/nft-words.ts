/**
 * The words of a text in nft's language, read one by one. A word that is not what it should be is outside of what is
 * understood: nft-rule.ts.
 */

/** Thrown where a text is outside, and caught where reading it began. */
export class Outside extends Error {}

const WORDS = /"[^"]*"|[(){}]|[^\s(){}"]+/g;
const NUMBER = /^(0x[0-9a-f]{1,8}|\d{1,9})$/;
const NAME = /^[A-Za-z_]\w*$/;

export class WordReader {
  readonly all: string[];
  at = 0;

  constructor(text: string) {
    this.all = text.match(WORDS) ?? [];
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

  get isNumber(): boolean {
    return NUMBER.test(this.peek());
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
