/**
 * Statements of nftables rules that ask nothing of the packet's protocols: for the rest nft-rule.ts.
 */
import type { ExpressionWriter } from './nft-expressions.ts';
import { Outside, type WordReader } from './nft-words.ts';

/** In host order. */
export function bytesOf(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  bytes[0] = value;
  bytes[1] = value >>> 8;
  bytes[2] = value >>> 16;
  bytes[3] = value >>> 24;
  return bytes;
}

/** Reads and writes the next statement, if it is one of these. */
export function writeSimple(write: ExpressionWriter, words: WordReader): boolean {
  const statement = statements[words.peek()];
  if (statement === undefined) return false;
  statement(write, words);
  return true;
}

type Statement = (write: ExpressionWriter, words: WordReader) => void;

const verdict: Statement = (write, words) => {
  write.verdict(words.next());
};
const lead: Statement = (write, words) => {
  write.verdict(words.next(), words.chain());
};

const statements: Record<string, Statement> = {
  __proto__: null as unknown as Statement,
  accept: verdict,
  drop: verdict,
  return: verdict,
  continue: verdict,
  jump: lead,
  goto: lead,
  notrack(write, words) {
    words.next();
    write.notrack();
  },
  /** `counter name c_1` */
  counter(write, words) {
    words.expect('counter', 'name');
    write.counter(words.peek().startsWith('"') ? words.quoted() : words.name());
  },
  /** `limit rate 1000/second burst 1000 packets` */
  limit(write, words) {
    words.expect('limit', 'rate');
    const rate = /^(\d{1,9})\/second$/.exec(words.next())?.[1];
    words.expect('burst');
    const burst = words.number();
    words.expect('packets');
    if (rate === undefined) throw new Outside();
    write.limit(Number(rate), burst);
  },
  /** `log prefix "rule" group 77 snaplen 96` */
  log(write, words) {
    words.expect('log', 'prefix');
    const prefix = words.quoted();
    words.expect('group');
    const group = words.number();
    words.expect('snaplen');
    if (group > 0xffff) throw new Outside();
    write.log(prefix, group, words.number());
  },
  /** `fib saddr type local` */
  fib(write, words) {
    words.expect('fib');
    const flags = { saddr: 1, daddr: 2 }[words.next()];
    words.expect('type', 'local');
    if (flags === undefined) throw new Outside();
    write.fibType(flags);
    const RTN_LOCAL = 2;
    write.compare('==', bytesOf(RTN_LOCAL));
  },
};
