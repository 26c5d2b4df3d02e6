/**
 * What nftables lists of one table, besides sets and their elements (nft-shape.ts, nft-elements.ts): its chains, the
 * comments of rules, counters, and the number of the generation that all of it belongs to. Expressions are not read.
 */
import { counter, type Decoded, malformed, u8, u32 } from './bytes.ts';
import * as nft from './nft-names.ts';
import { textIn } from './nft-shape.ts';
import {
  AttributeCursor,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_NFTABLES,
  NLM_F_DUMP,
  NLM_F_REQUEST,
} from './nlattr.ts';
import { NetlinkWriter } from './nlwriter.ts';

const NFTA_GEN_ID = 1;
const NOTE_COMMENT = 0;

/** Whatever is asked for, the first attribute names the table; the second, of elements the set, of rules the chain. */
function encode(message: number, flags: number, sequence: number, table?: string, within?: string): Uint8Array {
  const writer = new NetlinkWriter(256);
  const subsystem = NFNL_SUBSYS_NFTABLES;
  writer.beginMessage({ subsystem, message, flags: NLM_F_REQUEST | flags, sequence, family: nft.NFPROTO_INET });
  if (table !== undefined) writer.putText(1, table);
  if (within !== undefined) writer.putText(2, within);
  writer.endMessage();
  return writer.written();
}

const listings = {
  chains: nft.NFT_MSG_GETCHAIN,
  rules: nft.NFT_MSG_GETRULE,
  sets: nft.NFT_MSG_GETSET,
  elements: nft.NFT_MSG_GETSETELEM,
  objects: nft.NFT_MSG_GETOBJ,
};
export type Listing = keyof typeof listings;

/** `within`: the set of which the elements, the chain of which the rules. */
export const encodeListing = (of: Listing, sequence: number, table: string, within?: string): Uint8Array =>
  encode(listings[of], NLM_F_DUMP, sequence, table, within);
export const encodeGetTable = (sequence: number, table: string): Uint8Array =>
  encode(nft.NFT_MSG_GETTABLE, 0, sequence, table);
export const encodeGetGeneration = (sequence: number): Uint8Array => encode(nft.NFT_MSG_GETGEN, 0, sequence);

export const isNft = (message: Uint8Array, type: number): boolean =>
  message.length >= NFNL_HEADER && messageType(message) === ((NFNL_SUBSYS_NFTABLES << 8) | type);

export function readGeneration(message: Uint8Array): Decoded<number> {
  if (!isNft(message, nft.NFT_MSG_NEWGEN)) return malformed('bad-type');
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    if (cursor.type === NFTA_GEN_ID && cursor.length === 4) return { ok: true, value: u32(message, cursor.start) };
  }
  return malformed('bad-attribute');
}

export function readChain(message: Uint8Array): Decoded<{ table: string; name: string }> {
  if (!isNft(message, nft.NFT_MSG_NEWCHAIN)) return malformed('bad-type');
  const chain = { table: '', name: '' };
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    if (cursor.type === nft.NFTA_CHAIN_TABLE) chain.table = textIn(cursor);
    else if (cursor.type === nft.NFTA_CHAIN_NAME) chain.name = textIn(cursor);
  }
  return cursor.malformed || chain.name === '' ? malformed('bad-attribute') : { ok: true, value: chain };
}

/** Of a rule; '' if it has none. */
export function readComment(message: Uint8Array): Decoded<string> {
  if (!isNft(message, nft.NFT_MSG_NEWRULE)) return malformed('bad-type');
  let comment = '';
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) if (cursor.type === nft.NFTA_RULE_USERDATA) comment = commentIn(cursor.bytes());
  return cursor.malformed ? malformed('bad-attribute') : { ok: true, value: comment };
}

/** Notes are a type, a length and a value each. */
function commentIn(notes: Uint8Array): string {
  for (let at = 0; at + 2 <= notes.length; at += 2 + u8(notes, at + 1)) {
    if (u8(notes, at) !== NOTE_COMMENT) continue;
    const bytes = notes.subarray(at + 2, at + 2 + u8(notes, at + 1));
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  }
  return '';
}

export interface ListedCounter {
  name: string;
  packets: number;
  bytes: number;
}

/** undefined: an object of another kind. */
export function readCounter(message: Uint8Array): Decoded<ListedCounter | undefined> {
  if (!isNft(message, nft.NFT_MSG_NEWOBJ)) return malformed('bad-type');
  const read: ListedCounter = { name: '', packets: 0, bytes: 0 };
  let type = 0;
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    if (cursor.type === nft.NFTA_OBJ_NAME) read.name = textIn(cursor);
    else if (cursor.type === nft.NFTA_OBJ_TYPE && cursor.length === 4) type = u32(message, cursor.start);
    else if (cursor.type === nft.NFTA_OBJ_DATA) {
      const data = cursor.inside();
      while (data.next()) {
        if (data.length !== 8) continue;
        if (data.type === nft.NFTA_COUNTER_PACKETS) read.packets = counter(message, data.start);
        else if (data.type === nft.NFTA_COUNTER_BYTES) read.bytes = counter(message, data.start);
      }
    }
  }
  if (cursor.malformed || read.name === '') return malformed('bad-attribute');
  return { ok: true, value: type === nft.NFT_OBJECT_COUNTER ? read : undefined };
}
