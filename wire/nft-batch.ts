/**
 * A batch of nftables messages, which the kernel runs as one transaction (<linux/netfilter/nfnetlink.h>,
 * <linux/netfilter/nf_tables.h>). Each message has a number, by which the kernel names it in an error; of the last one it
 * says so too if all went well.
 */

import { canWrite, writeElements } from './nft-elements.ts';
import * as nft from './nft-names.ts';
import type { SetLayouts } from './nft-rule.ts';
import { type SetLayout, writeSet } from './nft-shape.ts';
import { writeRule } from './nft-template.ts';
import {
  AttributeCursor,
  NFNL_HEADER,
  NFNL_SUBSYS_NFTABLES,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_REQUEST,
} from './nlattr.ts';
import { NetlinkWriter } from './nlwriter.ts';

const NFNL_MSG_BATCH_BEGIN = 16;
const NFNL_MSG_BATCH_END = 17;
const NLM_F_APPEND = 0x800;

type Element = readonly [key: string, value: string];

type Rule = readonly [chain: string, text: string];

interface ToldElements {
  what: string;
  /** Where the message begins. */
  start: number;
  list: readonly Element[];
  from: number;
}

/** What a message is about, for errors: of the many nothing is made before it is asked for. */
type Told = string | Rule | ToldElements;

export class NftBatch {
  readonly #table: string;
  readonly #writer: NetlinkWriter;
  /** Of the message with number n at n - 1; the begin of the batch has 0. */
  readonly #told: Told[] = [];
  #setId = 0;

  /** `writer`: one of which what it holds is of no use any more. */
  constructor(table: string, writer = new NetlinkWriter(64 * 1024)) {
    this.#table = table;
    this.#writer = writer;
    writer.cut(0);
    this.#frame(NFNL_MSG_BATCH_BEGIN, 0);
  }

  addTable(): void {
    this.#message(nft.NFT_MSG_NEWTABLE, NLM_F_CREATE, `add table ${this.#table}`, (w) => {
      w.putText(nft.NFTA_TABLE_NAME, this.#table);
      w.putU32(nft.NFTA_TABLE_FLAGS, 0);
    });
  }

  /** One without a hook. */
  addChain(name: string): void {
    this.#chain(nft.NFT_MSG_NEWCHAIN, NLM_F_CREATE, `add chain ${name}`, name);
  }

  deleteChain(name: string): void {
    this.#chain(nft.NFT_MSG_DELCHAIN, 0, `delete chain ${name}`, name);
  }

  flushChain(name: string): void {
    this.#message(nft.NFT_MSG_DELRULE, 0, `flush chain ${name}`, (w) => {
      w.putText(nft.NFTA_RULE_TABLE, this.#table);
      w.putText(nft.NFTA_RULE_CHAIN, name);
    });
  }

  /** False: the text is outside what is understood here, and the batch of no use any more. */
  addRule(rule: Rule, layouts: SetLayouts): boolean {
    const [chain, text] = rule;
    let known = false;
    this.#message(nft.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule, (w) => {
      known = writeRule(w, this.#table, chain, text, layouts);
    });
    return known;
  }

  addSet(name: string, layout: SetLayout): void {
    this.#setId++;
    this.#message(nft.NFT_MSG_NEWSET, NLM_F_CREATE, `add set ${name}`, (w) => {
      writeSet(w, this.#table, name, this.#setId, layout);
    });
  }

  deleteSet(name: string): void {
    this.#message(nft.NFT_MSG_DELSET, 0, `delete set ${name}`, (w) => {
      w.putText(nft.NFTA_SET_TABLE, this.#table);
      w.putText(nft.NFTA_SET_NAME, name);
    });
  }

  flushSet(name: string): void {
    this.#message(nft.NFT_MSG_DELSETELEM, 0, `flush set ${name}`, (w) => {
      w.putText(nft.NFTA_SET_ELEM_LIST_TABLE, this.#table);
      w.putText(nft.NFTA_SET_ELEM_LIST_SET, name);
    });
  }

  /** False: they cannot be changed so, or one is outside what is understood here; the batch is of no use any more. */
  changeElements(verb: 'add' | 'delete', set: string, layout: SetLayout, list: readonly Element[]): boolean {
    if (!canWrite(layout)) return false;
    const [type, flags] = verb === 'add' ? [nft.NFT_MSG_NEWSETELEM, NLM_F_CREATE] : [nft.NFT_MSG_DELSETELEM, 0];
    for (let from = 0; from >= 0 && from < list.length; ) {
      const told = { what: `${verb} element ${set}`, start: this.#writer.length, list, from };
      this.#message(type, flags, told, (w) => {
        from = writeElements(w, this.#table, set, layout, list, told.from, verb);
      });
      if (from < 0) return false;
    }
    return true;
  }

  addCounter(name: string): void {
    this.#message(nft.NFT_MSG_NEWOBJ, NLM_F_CREATE, `add counter ${name}`, (w) => {
      this.#object(w, name);
      const data = w.open(nft.NFTA_OBJ_DATA);
      w.putU64(nft.NFTA_COUNTER_BYTES, 0);
      w.putU64(nft.NFTA_COUNTER_PACKETS, 0);
      w.close(data);
    });
  }

  deleteCounter(name: string): void {
    this.#message(nft.NFT_MSG_DELOBJ, 0, `delete counter ${name}`, (w) => this.#object(w, name));
  }

  /** The whole batch. Nothing may be added to it any more. */
  finish(): Uint8Array {
    this.#writer.addFlags(NLM_F_ACK);
    this.#frame(NFNL_MSG_BATCH_END, this.#told.length + 1);
    return this.#writer.written();
  }

  /** Number of the last message. */
  get last(): number {
    return this.#told.length;
  }

  /** What a message was about; `offset`: of the attribute in it that the kernel objects to. */
  describe(sequence: number, offset?: number): string {
    const told = this.#told[sequence - 1];
    if (told === undefined) return sequence === 0 ? 'the whole' : `message ${sequence}`;
    if (typeof told === 'string') return told;
    if (!('what' in told)) return `add rule ${told.join(' ')}`;
    const { what, start, list, from } = told;
    const index = offset === undefined ? -1 : this.#elementAt(start, start + offset);
    const element = list[from + index];
    return index < 0 || element === undefined
      ? what
      : `${what} { ${element.filter((text) => text !== '').join(' : ')} }`;
  }

  /** Index in its message of the element that lies there. */
  #elementAt(start: number, at: number): number {
    const bytes = this.#writer.written();
    const cursor = new AttributeCursor(bytes, start + NFNL_HEADER, bytes.length);
    while (cursor.next()) {
      if (cursor.type !== nft.NFTA_SET_ELEM_LIST_ELEMENTS) continue;
      const list = cursor.inside();
      for (let index = 0; list.next(); index++) if (at < list.end) return index;
      return -1;
    }
    return -1;
  }

  #chain(type: number, flags: number, what: string, name: string): void {
    this.#message(type, flags, what, (w) => {
      w.putText(nft.NFTA_CHAIN_TABLE, this.#table);
      w.putText(nft.NFTA_CHAIN_NAME, name);
    });
  }

  #object(writer: NetlinkWriter, name: string): void {
    writer.putText(nft.NFTA_OBJ_TABLE, this.#table);
    writer.putText(nft.NFTA_OBJ_NAME, name);
    writer.putU32(nft.NFTA_OBJ_TYPE, nft.NFT_OBJECT_COUNTER);
  }

  #message(message: number, flags: number, told: Told, attributes: (writer: NetlinkWriter) => void): void {
    this.#told.push(told);
    this.#writer.beginMessage({
      subsystem: NFNL_SUBSYS_NFTABLES,
      message,
      flags: NLM_F_REQUEST | flags,
      sequence: this.#told.length,
      family: nft.NFPROTO_INET,
    });
    attributes(this.#writer);
    this.#writer.endMessage();
  }

  #frame(message: number, sequence: number): void {
    const subsystem = 0;
    this.#writer.beginMessage({ subsystem, message, flags: NLM_F_REQUEST, sequence, resource: NFNL_SUBSYS_NFTABLES });
    this.#writer.endMessage();
  }
}
