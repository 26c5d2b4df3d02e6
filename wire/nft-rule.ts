/**
 * Rules of nftables from text to expressions: of nft's language what Sluice's chains are written in. What is outside
 * that is refused, not guessed at: the `nft` command then does it. Made as nft 1.0.6 does, so that `nft list` prints
 * such a rule as its own: it asks for the protocols that a key presupposes where the rule has not yet asked, and turns host
 * order round where a concatenation is looked up among intervals.
 */

import { type Comparison, comparisons, ExpressionWriter, REGISTERS } from './nft-expressions.ts';
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
import * as nft from './nft-names.ts';
import type { SetLayout } from './nft-shape.ts';
import { bytesOf, writeSimple } from './nft-statements.ts';
import { Outside, WordReader } from './nft-words.ts';
import type { NetlinkWriter } from './nlwriter.ts';

/** Layouts of sets by name; undefined: there is none, or one that is not understood. */
export type SetLayouts = (set: string) => SetLayout | undefined;

/** Writes the attributes of a rule; false if it is outside. */
export function writeRule(
  writer: NetlinkWriter,
  table: string,
  chain: string,
  text: string,
  layouts: SetLayouts,
): boolean {
  writer.putText(nft.NFTA_RULE_TABLE, table);
  writer.putText(nft.NFTA_RULE_CHAIN, chain);
  const [, statements = text, comment] = /^(.*) comment "([!-~]{1,100})"$/.exec(text) ?? [];
  const expressions = writer.open(nft.NFTA_RULE_EXPRESSIONS);
  const known = new RuleCompiler(writer, statements, layouts).compile();
  writer.close(expressions);
  if (comment !== undefined) writer.putBytes(nft.NFTA_RULE_USERDATA, noteOf(comment));
  return known;
}

/** As nft notes a comment: type 0, length, text with a zero. */
function noteOf(comment: string): Uint8Array {
  const text = new TextEncoder().encode(`${comment}\0`);
  return Uint8Array.of(0, text.length, ...text);
}

class RuleCompiler {
  readonly #write: ExpressionWriter;
  readonly #words: WordReader;
  readonly #layouts: SetLayouts;
  /** What the rule has asked for so far. */
  #network: number | undefined;
  #transport: number | undefined;

  constructor(writer: NetlinkWriter, text: string, layouts: SetLayouts) {
    this.#write = new ExpressionWriter(writer);
    this.#words = new WordReader(text);
    this.#layouts = layouts;
  }

  compile(): boolean {
    try {
      if (this.#endsInReset()) this.#presuppose({ transport: TCP });
      while (!this.#words.atEnd) this.#statement();
      return this.#words.all.length > 0;
    } catch (error) {
      if (error instanceof Outside) return false;
      throw error;
    }
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
    if (this.#words.takes('and')) this.#mask(key, this.#words.number());
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
    const fixed = target.value(this.#words.peek());
    if (fixed !== undefined) {
      this.#words.next();
      this.#write.immediate(fixed);
      return;
    }
    if (this.#words.takes('jhash')) {
      this.#hash();
      return;
    }
    const { key, words } = this.#key();
    if (key.mark === undefined || this.#words.peek() === '.' || this.#words.peek() === 'map') {
      this.#words.at -= words;
      this.#lookedUp();
      return;
    }
    this.#load([key]);
    const and = this.#words.takes('and') ? this.#words.number() : undefined;
    const or = this.#words.takes('or') ? this.#words.number() : undefined;
    if (and === undefined && or === undefined) return;
    const bits = or ?? 0;
    this.#write.bitwise(bytesOf((and ?? 0xffffffff) & ~bits), bytesOf(bits));
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

  #mask(key: Key, mask: number): void {
    if (key.mark === undefined) throw new Outside();
    this.#write.bitwise(bytesOf(mask), bytesOf(0));
  }

  /** `KEY VALUE`, `KEY != FIRST-LAST`, `ip daddr 10.0.0.0/8`, `ct mark and M == V` */
  #compare(key: Key): void {
    const mask = this.#words.takes('and') ? this.#words.number() : undefined;
    const given = Object.hasOwn(comparisons, this.#words.peek()) ? (this.#words.next() as Comparison) : undefined;
    const comparison = given ?? '==';
    const ordered = comparison !== '==' && comparison !== '!=';
    if (ordered && key.host && key.bytes > 1) throw new Outside();
    const word = this.#words.next();
    // A name has a dash too: `"sluice-vx"`, `ipv6-icmp`.
    const ends = /^[0-9a-f.:x]+-[0-9a-f.:x]+$/.test(word) ? word.split('-') : [];
    if (ends.length === 2) {
      this.#compareRange(key, comparison, ends[0] ?? '', ends[1] ?? '', mask);
      return;
    }
    if (word.includes('/')) {
      if (mask !== undefined || ordered) throw new Outside();
      this.#comparePrefix(key, comparison, word);
      return;
    }
    const value = key.value(word);
    if (value === undefined) throw new Outside();
    this.#load([key]);
    if (mask !== undefined) this.#mask(key, mask);
    this.#write.compare(comparison, value);
    if (comparison === '==' && mask === undefined) this.#learn(key, value);
  }

  /** What a match of a protocol says about those behind it. */
  #learn(key: Key, value: Uint8Array): void {
    if (key === nfproto) this.#network = value[0];
    if (key === l4proto) this.#transport = value[0];
  }

  #compareRange(key: Key, comparison: Comparison, first: string, last: string, mask: number | undefined): void {
    const [from, to] = [key.value(first), key.value(last)];
    if (from === undefined || to === undefined || mask !== undefined) throw new Outside();
    if (comparison !== '==' && comparison !== '!=') throw new Outside();
    const turned = key.host && key.bytes > 1;
    this.#load([key], { turned });
    if (turned) for (const bytes of [from, to]) bytes.reverse();
    if (comparison === '!=') {
      this.#write.notInRange(from, to);
      return;
    }
    this.#write.compare('>=', from);
    this.#write.compare('<=', to);
  }

  #comparePrefix(key: Key, comparison: Comparison, word: string): void {
    const [text = '', bits = ''] = word.split('/');
    const value = key.value(text);
    const length = /^\d{1,3}$/.test(bits) ? Number(bits) : -1;
    if (key.network === undefined || value === undefined || length < 1 || length > 8 * key.bytes) throw new Outside();
    this.#load([key]);
    const mask = value.map((_, index) => 0xff00 >> Math.min(8, Math.max(0, length - 8 * index)));
    if (value.some((byte, index) => (byte & ~(mask[index] ?? 0)) !== 0)) throw new Outside();
    this.#write.bitwise(mask, new Uint8Array(key.bytes));
    this.#write.compare(comparison, value);
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
