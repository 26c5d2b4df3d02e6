/**
 * Expressions of nftables rules (<linux/netfilter/nf_tables.h>), written one behind the other into a rule. Each method
 * has the line above it that `nft --debug=netlink` prints for it. Registers are numbered by four bytes from 0 on; a
 * verdict has one of its own. What differs from one rule to the next that is like it (Operand) is left open: its places
 * are noted, for nft-template.ts to fill in.
 */

import { writeVerdict } from './nft-elements.ts';
import * as nft from './nft-names.ts';
import { writeRateLimit } from './nft-shape.ts';
import type { NetlinkWriter } from './nlwriter.ts';

/** Registers of four bytes. */
export const REGISTERS = 16;
/** NFT_REG32_00: the first of four bytes; NFT_REG_VERDICT is 0. */
const REGISTER_BASE = 8;
const VERDICT = 0;

export const comparisons = { '==': 0, '!=': 1, '<': 2, '<=': 3, '>': 4, '>=': 5 } as const;
export type Comparison = keyof typeof comparisons;

export const bases = { network: 1, transport: 2 } as const;

/** A value that is one of a rule's words, or is made of some. */
export interface Operand {
  bytes: number;
  /** Writes it, where there are zeros; false: there is none in these words. */
  write(words: readonly string[], into: Uint8Array, at: number): boolean;
}

export interface Place {
  at: number;
  operand: Operand;
}

export class ExpressionWriter {
  readonly #writer: NetlinkWriter;
  /** Where operands belong. */
  readonly places: Place[] = [];

  constructor(writer: NetlinkWriter) {
    this.#writer = writer;
  }

  // meta load mark => reg 1
  metaLoad(key: number, register: number): void {
    this.#expression('meta', (w) => {
      w.putU32(1, REGISTER_BASE + register);
      w.putU32(2, key);
    });
  }

  // meta set mark with reg 1
  metaSet(key: number): void {
    this.#expression('meta', (w) => {
      w.putU32(2, key);
      w.putU32(3, REGISTER_BASE);
    });
  }

  // ct load src_ip => reg 1 , dir original
  ctLoad(key: number, register: number, direction?: number): void {
    this.#expression('ct', (w) => {
      w.putU32(1, REGISTER_BASE + register);
      w.putU32(2, key);
      if (direction !== undefined) w.putBytes(3, Uint8Array.of(direction));
    });
  }

  // ct set mark with reg 1
  ctSet(key: number): void {
    this.#expression('ct', (w) => {
      w.putU32(2, key);
      w.putU32(4, REGISTER_BASE);
    });
  }

  // payload load 4b @ network header + 12 => reg 1
  payloadLoad(base: keyof typeof bases, offset: number, bytes: number, register: number): void {
    this.#expression('payload', (w) => {
      w.putU32(1, REGISTER_BASE + register);
      w.putU32(2, bases[base]);
      w.putU32(3, offset);
      w.putU32(4, bytes);
    });
  }

  // fib saddr type => reg 1
  fibType(flags: number): void {
    this.#expression('fib', (w) => {
      w.putU32(1, REGISTER_BASE);
      w.putU32(2, 3);
      w.putU32(3, flags);
    });
  }

  // cmp eq reg 1 0x00000002
  compare(comparison: Comparison, value: Uint8Array | Operand): void {
    this.#expression('cmp', (w) => {
      w.putU32(1, REGISTER_BASE);
      w.putU32(2, comparisons[comparison]);
      this.#data(3, value);
    });
  }

  // range neq reg 1 0x04030201 0x09030201
  notInRange(first: Operand, last: Operand): void {
    this.#expression('range', (w) => {
      w.putU32(1, REGISTER_BASE);
      w.putU32(2, 1);
      this.#data(3, first);
      this.#data(4, last);
    });
  }

  // bitwise reg 1 = ( reg 1 & 0x000000ff ) ^ 0x00000500
  bitwise(mask: Uint8Array | Operand, xor: Uint8Array | Operand): void {
    this.#expression('bitwise', (w) => {
      w.putU32(1, REGISTER_BASE);
      w.putU32(2, REGISTER_BASE);
      w.putU32(3, lengthOf(mask));
      this.#data(4, mask);
      this.#data(5, xor);
      w.putU32(6, 0);
    });
  }

  // byteorder reg 9 = hton(reg 9, 2, 1)
  toNetworkOrder(register: number, bytes: number): void {
    this.#expression('byteorder', (w) => {
      w.putU32(1, REGISTER_BASE + register);
      w.putU32(2, REGISTER_BASE + register);
      w.putU32(3, 1);
      w.putU32(4, bytes);
      w.putU32(5, Math.max(2, bytes));
    });
  }

  // lookup reg 1 set pr [0x1]; lookup reg 1 set g dreg 1
  lookup(set: string, gives: 'match' | 'no match' | 'value' | 'verdict'): void {
    this.#expression('lookup', (w) => {
      w.putText(1, set);
      w.putU32(2, REGISTER_BASE);
      if (gives === 'value') w.putU32(3, REGISTER_BASE);
      if (gives === 'verdict') w.putU32(3, VERDICT);
      if (gives === 'no match') w.putU32(5, 1);
    });
  }

  // immediate reg 1 0x00000005
  immediate(value: Uint8Array | Operand, register = 0): void {
    this.#expression('immediate', (w) => {
      w.putU32(1, REGISTER_BASE + register);
      this.#data(2, value);
    });
  }

  // immediate reg 0 goto -> b
  verdict(word: string, chain?: Operand): void {
    this.#expression('immediate', (w) => {
      w.putU32(1, VERDICT);
      const data = w.open(2);
      const at = writeVerdict(w, word, chain?.bytes ?? 0);
      w.close(data);
      if (chain !== undefined) this.places.push({ at, operand: chain });
    });
  }

  // dynset update reg_key 1 set hits
  update(set: string): void {
    this.#expression('dynset', (w) => {
      w.putText(1, set);
      w.putU32(3, 1);
      w.putU32(4, REGISTER_BASE);
    });
  }

  // hash reg 1 = jhash(reg 2, 8, 0x5) % mod 3 offset 7
  hash(register: number, bytes: number, modulus: number, seed: number, offset: number): void {
    this.#expression('hash', (w) => {
      w.putU32(1, REGISTER_BASE + register);
      w.putU32(2, REGISTER_BASE);
      w.putU32(3, bytes);
      w.putU32(4, modulus);
      w.putU32(5, seed);
      w.putU32(6, offset);
      w.putU32(7, 0);
    });
  }

  // nat dnat ip addr_min reg 1 proto_min reg 2 flags 0x2
  nat(kind: 'snat' | 'dnat', family: number, portRegister?: number): void {
    this.#expression('nat', (w) => {
      w.putU32(1, kind === 'snat' ? 0 : 1);
      w.putU32(2, family);
      w.putU32(3, REGISTER_BASE);
      if (portRegister === undefined) return;
      w.putU32(5, REGISTER_BASE + portRegister);
      w.putU32(7, 2);
    });
  }

  // log prefix rule group 77 snaplen 96
  log(prefix: string, group: number, snaplen: number): void {
    this.#expression('log', (w) => {
      w.putU16(1, group);
      w.putText(2, prefix);
      w.putU32(3, snaplen);
    });
  }

  // limit rate 1000/second burst 1000 type packets flags 0x0
  limit(rate: number, burst: number): void {
    const element = this.#writer.open(nft.NFTA_LIST_ELEM);
    writeRateLimit(this.#writer, rate, burst, false);
    this.#writer.close(element);
  }

  // reject type 2 code 3
  reject(type: number, code: number): void {
    this.#expression('reject', (w) => {
      w.putU32(1, type);
      w.putBytes(2, Uint8Array.of(code));
    });
  }

  // objref type 1 name c1
  counter(name: string): void {
    this.#expression('objref', (w) => {
      w.putU32(1, nft.NFT_OBJECT_COUNTER);
      w.putText(2, name);
    });
  }

  // notrack
  notrack(): void {
    this.#expression('notrack', () => undefined);
  }

  #expression(name: string, data: (writer: NetlinkWriter) => void): void {
    const element = this.#writer.open(nft.NFTA_LIST_ELEM);
    this.#writer.putText(nft.NFTA_EXPR_NAME, name);
    const inside = this.#writer.open(nft.NFTA_EXPR_DATA);
    data(this.#writer);
    this.#writer.close(inside);
    this.#writer.close(element);
  }

  #data(type: number, value: Uint8Array | Operand): void {
    const data = this.#writer.open(type);
    const at = this.#writer.attribute(nft.NFTA_DATA_VALUE, lengthOf(value));
    if (value instanceof Uint8Array) this.#writer.buffer.set(value, at);
    else this.places.push({ at, operand: value });
    this.#writer.close(data);
  }
}

const lengthOf = (value: Uint8Array | Operand): number => (value instanceof Uint8Array ? value.length : value.bytes);
