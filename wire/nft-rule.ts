/**
 * Rules of nftables from words to expressions: of nft's language what Sluice's chains are written in. What is outside
 * that is refused, not guessed at: the `nft` command then does it. Made as nft 1.0.6 does, so that `nft list` prints
 * such a rule as its own: it asks for the protocols that a key presupposes where the rule has not yet asked, and turns host
 * order round where a concatenation is looked up among intervals. Values are left open: nft-template.ts.
 */

import {
  type Comparison,
  comparisons,
  ExpressionWriter,
  type Operand,
  type Place,
  REGISTERS,
} from './nft-expressions.ts';
import {
  AF_INET,
  AF_INET6,
  CT_MARK,
  ctStates,
  type Key,
  keyAt,
  META_L4PROTO,
  META_MARK,
  META_NFPROTO,
  META_PRIORITY,
  TCP,
  targetOf,
  tcpFlags,
} from './nft-keys.ts';
import { changeOf, endOf, prefixMask, prefixValue } from './nft-operands.ts';
import type { SetLayout } from './nft-shape.ts';
import { bytesOf, writeSimple } from './nft-statements.ts';
import { Outside, WordReader } from './nft-words.ts';
import type { NetlinkWriter } from './nlwriter.ts';

/** Layouts of sets by name; undefined: there is none, or one that is not understood. */
export type SetLayouts = (set: string) => SetLayout | undefined;

export interface Compiled {
  places: readonly Place[];
  /** Words that may be others: what is written holds for these too. */
  open: ReadonlySet<number>;
  /** The rule asks a set, of the layout that it has now. */
  asksSet: boolean;
}

/** Writes the expressions of a rule; undefined if it is outside. */
export function compileRule(
  writer: NetlinkWriter,
  words: readonly string[],
  layouts: SetLayouts,
): Compiled | undefined {
  try {
    return new RuleCompiler(writer, words, layouts).compile();
  } catch (error) {
    if (error instanceof Outside) return undefined;
    throw error;
  }
}

class RuleCompiler {
  readonly #write: ExpressionWriter;
  readonly #words: WordReader;
  readonly #layouts: SetLayouts;
  #asksSet = false;
  /** What the rule has asked for so far. */
  #network: number | undefined;
  #transport: number | undefined;

  constructor(writer: NetlinkWriter, words: readonly string[], layouts: SetLayouts) {
    this.#write = new ExpressionWriter(writer);
    this.#words = new WordReader(words);
    this.#layouts = layouts;
  }

  compile(): Compiled {
    if (this.#endsInReset()) this.#presuppose({ transport: TCP });
    do this.#statement();
    while (!this.#words.atEnd);
    return { places: this.#write.places, open: this.#words.open, asksSet: this.#asksSet };
  }

  /** nft puts what a reset presupposes in front of all else, if nothing in the rule asks for it. */
  #endsInReset(): boolean {
    const { all } = this.#words;
    const asked = all.slice(0, -2).some((word) => word === 'l4proto' || word === 'tcp');
    return !asked && all.slice(-4).join(' ') === 'reject with tcp reset';
  }

  #statement(): void {
    const word = this.#words.peek();
    if (writeSimple(this.#write, this.#words)) return;
    switch (word) {
      case 'reject':
        this.#reject();
        return;
      case 'update':
        this.#update();
        return;
      case 'snat':
      case 'dnat':
        this.#nat(word);
        return;
    }
    const set = this.#words.peek(2) === 'set' ? settable[`${word} ${this.#words.peek(1)}`] : undefined;
    if (set !== undefined) {
      this.#words.at += 3;
      this.#value(set.key);
      set.write(this.#write);
      return;
    }
    this.#match();
  }

  #reject(): void {
    this.#words.expect('reject', 'with');
    if (this.#words.takes('tcp')) {
      this.#words.expect('reset');
      if (this.#transport !== TCP) throw new Outside();
      this.#write.reject(1, 0);
      return;
    }
    this.#words.expect('icmpx', 'admin-prohibited');
    this.#write.reject(2, 3);
  }

  /** `update @S { KEY }`, `update @S { ct mark and M }` */
  #update(): void {
    this.#words.expect('update');
    const set = this.#words.set();
    this.#words.expect('{');
    const { key } = this.#key();
    this.#load([key]);
    if (this.#words.takes('and')) this.#mask(key, this.#words.operand(key.bytes, key.write));
    this.#words.expect('}');
    this.#write.update(set);
  }

  /** `snat ip to ip saddr map @m`, `dnat ip6 to [fd00::1]:80` */
  #nat(kind: 'snat' | 'dnat'): void {
    this.#words.next();
    const family = this.#words.next();
    this.#words.expect('to');
    if (family !== 'ip' && family !== 'ip6') throw new Outside();
    const network = family === 'ip' ? AF_INET : AF_INET6;
    if (keyAt(this.#words.all, this.#words.at) !== undefined) {
      this.#lookedUp();
      this.#write.nat(kind, network);
      return;
    }
    const target = targetOf(network, this.#words.next());
    if (target === undefined) throw new Outside();
    this.#write.immediate(target.address);
    if (target.port === undefined) {
      this.#write.nat(kind, network);
      return;
    }
    if (this.#transport === undefined) throw new Outside();
    // As nft does, behind as many bytes as an IPv6 address has.
    const register = 4;
    this.#write.immediate(target.port, register);
    this.#write.nat(kind, network, register);
  }

  /** What a mark or the priority is set to, in the first register. */
  #value(target: Key): void {
    if (this.#words.takes('jhash')) {
      this.#hash();
      return;
    }
    if (keyAt(this.#words.all, this.#words.at) === undefined) {
      this.#write.immediate(this.#words.operand(target.bytes, target.write));
      return;
    }
    const { key, words } = this.#key();
    if (key.mark === undefined || this.#words.peek() === '.' || this.#words.peek() === 'map') {
      this.#words.at -= words;
      this.#lookedUp();
      return;
    }
    this.#load([key]);
    const and = this.#words.takes('and') ? this.#words.leave() : undefined;
    const or = this.#words.takes('or') ? this.#words.leave() : undefined;
    if (and === undefined && or === undefined) return;
    const mask = changeOf(and, or, (and, or) => and & ~or);
    this.#write.bitwise(mask, or === undefined ? bytesOf(0) : changeOf(and, or, (_, or) => or));
  }

  /** `jhash KEY . KEY mod 3 seed 0x5 offset 7` */
  #hash(): void {
    const keys = this.#keys();
    this.#words.expect('mod');
    const modulus = this.#words.number();
    this.#words.expect('seed');
    const seed = this.#words.number();
    const offset = this.#words.takes('offset') ? this.#words.number() : 0;
    // As nft does, behind the first four registers, which the result is for.
    const register = 4;
    this.#load(keys, { register });
    const bytes = keys.reduce((sum, { bytes }) => sum + ((bytes + 3) & ~3), 0);
    this.#write.hash(register, bytes, modulus, seed, offset);
  }

  /** `KEY . KEY map @m`, its value in the first register. */
  #lookedUp(): void {
    const keys = this.#keys();
    this.#words.expect('map');
    this.#lookup(keys, this.#words.set(), 'value');
  }

  #key(): { key: Key; words: number } {
    const found = keyAt(this.#words.all, this.#words.at);
    if (found === undefined) throw new Outside();
    this.#words.at += found.words;
    return found;
  }

  #keys(): Key[] {
    const keys = [this.#key().key];
    while (this.#words.takes('.')) keys.push(this.#key().key);
    return keys;
  }

  #match(): void {
    const keys = this.#keys();
    const [key] = keys;
    if (key === undefined) throw new Outside();
    if (this.#words.takes('vmap')) {
      this.#lookup(keys, this.#words.set(), 'verdict');
      return;
    }
    const negated = this.#words.peek() === '!=' && this.#words.peek(1).startsWith('@');
    if (negated || this.#words.peek().startsWith('@')) {
      if (negated) this.#words.at++;
      this.#lookup(keys, this.#words.set(), negated ? 'no match' : 'match');
      return;
    }
    if (keys.length > 1) throw new Outside();
    if (key.states) this.#states(key);
    else if (key.flags) this.#flags(key);
    else this.#compare(key);
  }

  #lookup(keys: Key[], set: string, gives: 'match' | 'no match' | 'value' | 'verdict'): void {
    const layout = this.#layouts(set);
    this.#asksSet = true;
    if (layout === undefined || layout.fields.length !== keys.length) throw new Outside();
    if (layout.fields.some(({ type }, index) => type.bytes !== keys[index]?.bytes)) throw new Outside();
    const isMap = gives === 'value' || gives === 'verdict';
    if (isMap !== (layout.value !== undefined) || (gives === 'verdict') !== (layout.value === 'verdict')) {
      throw new Outside();
    }
    if (layout.interval && keys.length === 1 && keys[0]?.host && keys[0].bytes > 1) throw new Outside();
    this.#load(keys, { turned: layout.interval && keys.length > 1 });
    this.#write.lookup(set, gives);
  }

  /** Asks for the protocols first, then loads one key behind the other. */
  #load(keys: Key[], { turned = false, register: first = 0 } = {}): void {
    for (const key of keys) this.#presuppose(key);
    let register = first;
    for (const key of keys) {
      if (register + Math.ceil(key.bytes / 4) > REGISTERS) throw new Outside();
      key.load(this.#write, register);
      if (turned && key.host) this.#write.toNetworkOrder(register, key.bytes);
      register += Math.ceil(key.bytes / 4);
    }
  }

  #presuppose({ network, transport }: Pick<Key, 'network' | 'transport'>): void {
    if (network !== undefined && network !== this.#network) {
      if (this.#network !== undefined) throw new Outside();
      this.#network = network;
      this.#write.metaLoad(META_NFPROTO, 0);
      this.#write.compare('==', Uint8Array.of(network));
    }
    if (transport !== undefined && transport !== this.#transport) {
      if (this.#transport !== undefined) throw new Outside();
      this.#transport = transport;
      this.#write.metaLoad(META_L4PROTO, 0);
      this.#write.compare('==', Uint8Array.of(transport));
    }
  }

  #mask(key: Key, mask: Operand): void {
    if (key.mark === undefined) throw new Outside();
    this.#write.bitwise(mask, bytesOf(0));
  }

  /** `KEY VALUE`, `KEY != FIRST-LAST`, `ip daddr 10.0.0.0/8`, `ct mark and M == V` */
  #compare(key: Key): void {
    const mask = this.#words.takes('and') ? this.#words.operand(key.bytes, key.write) : undefined;
    const given = Object.hasOwn(comparisons, this.#words.peek()) ? (this.#words.next() as Comparison) : undefined;
    const comparison = given ?? '==';
    const ordered = comparison !== '==' && comparison !== '!=';
    if (ordered && key.host && key.bytes > 1) throw new Outside();
    const word = this.#words.peek();
    // A name has a dash too: `"sluice-vx"`, `ipv6-icmp`.
    if (/^[0-9a-f.:x]+-[0-9a-f.:x]+$/.test(word)) {
      if (mask !== undefined || ordered) throw new Outside();
      this.#compareRange(key, comparison);
      return;
    }
    if (word.includes('/')) {
      if (mask !== undefined || ordered) throw new Outside();
      this.#comparePrefix(key, comparison);
      return;
    }
    const value = this.#asked(key, comparison === '==' && mask === undefined);
    this.#load([key]);
    if (mask !== undefined) this.#mask(key, mask);
    this.#write.compare(comparison, value);
    if (value instanceof Uint8Array) this.#learn(key, value);
  }

  /** The next word as a value of the key's; not left open if those behind it depend on it. */
  #asked(key: Key, known: boolean): Uint8Array | Operand {
    if (!known || (key !== nfproto && key !== l4proto)) return this.#words.operand(key.bytes, key.write);
    const value = new Uint8Array(key.bytes);
    if (!key.write(this.#words.next(), value, 0)) throw new Outside();
    return value;
  }

  /** What a match of a protocol says about those behind it. */
  #learn(key: Key, value: Uint8Array): void {
    if (key === nfproto) this.#network = value[0];
    if (key === l4proto) this.#transport = value[0];
  }

  #compareRange(key: Key, comparison: '==' | '!='): void {
    const turned = key.host && key.bytes > 1;
    const word = this.#words.leave();
    const [from, to] = [endOf(key, word, 0, turned), endOf(key, word, 1, turned)];
    this.#load([key], { turned });
    if (comparison === '!=') {
      this.#write.notInRange(from, to);
      return;
    }
    this.#write.compare('>=', from);
    this.#write.compare('<=', to);
  }

  #comparePrefix(key: Key, comparison: '==' | '!='): void {
    if (key.network === undefined) throw new Outside();
    const word = this.#words.leave();
    this.#load([key]);
    this.#write.bitwise(prefixMask(key, word), new Uint8Array(key.bytes));
    this.#write.compare(comparison, prefixValue(key, word));
  }

  /** `ct state invalid,untracked` */
  #states(key: Key): void {
    let bits = 0;
    for (const name of this.#words.next().split(',')) {
      if (!Object.hasOwn(ctStates, name)) throw new Outside();
      bits |= ctStates[name] as number;
    }
    this.#load([key]);
    this.#write.bitwise(bytesOf(bits), bytesOf(0));
    this.#write.compare('!=', bytesOf(0));
  }

  /** `tcp flags & (syn | ack) == ack` */
  #flags(key: Key): void {
    this.#words.expect('&', '(');
    let mask = this.#flag();
    while (this.#words.takes('|')) mask |= this.#flag();
    this.#words.expect(')', '==');
    const value = this.#flag();
    this.#load([key]);
    this.#write.bitwise(Uint8Array.of(mask), Uint8Array.of(0));
    this.#write.compare('==', Uint8Array.of(value));
  }

  #flag(): number {
    const name = this.#words.next();
    if (!Object.hasOwn(tcpFlags, name)) throw new Outside();
    return tcpFlags[name] as number;
  }
}

/** What a rule may give another value. */
const settable: Record<string, { key: Key; write(to: ExpressionWriter): void }> = {
  __proto__: null as never,
  'meta mark': { key: keyNamed('meta', 'mark'), write: (to) => to.metaSet(META_MARK) },
  'meta priority': { key: keyNamed('meta', 'priority'), write: (to) => to.metaSet(META_PRIORITY) },
  'ct mark': { key: keyNamed('ct', 'mark'), write: (to) => to.ctSet(CT_MARK) },
};

function keyNamed(...words: string[]): Key {
  const found = keyAt(words, 0);
  if (found === undefined) throw new TypeError(`no key ${words.join(' ')}`);
  return found.key;
}

const nfproto = keyNamed('meta', 'nfproto');
const l4proto = keyNamed('meta', 'l4proto');
