/**
 * Counters of the elements of one nftables set (<linux/netfilter/nf_tables.h>): the request that lists a set whose key
 * is a mark, and one message of the answer. The `nft` command reads the whole table to list one set, some seconds where
 * this takes a tenth. Leaves out every other kind of set, element and expression.
 */
import { counter, type Decoded, join, malformed, u32 } from './bytes.ts';
import {
  AttributeCursor,
  attribute,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_NFTABLES,
  NLM_F_ACK,
  NLM_F_DUMP,
  NLM_F_REQUEST,
  nested,
  nfnlMessage,
} from './nlattr.ts';

const NFT_MSG_NEWSETELEM = 12;
const NFT_MSG_GETSETELEM = 13;
const NFPROTO_INET = 1;

const NFTA_SET_ELEM_LIST_TABLE = 1;
const NFTA_SET_ELEM_LIST_SET = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS = 3;
const NFTA_LIST_ELEM = 1;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_SET_ELEM_EXPR = 7;
const NFTA_DATA_VALUE = 1;
const NFTA_EXPR_NAME = 1;
const NFTA_EXPR_DATA = 2;
const NFTA_COUNTER_BYTES = 1;
const NFTA_COUNTER_PACKETS = 2;

/** An element's key and what its counter says. */
export interface MarkCount {
  mark: number;
  packets: number;
  bytes: number;
}

const text = (value: string): Uint8Array => join([new TextEncoder().encode(value), new Uint8Array(1)]);

/** Asks for the element of one mark. It is answered by the element and an acknowledgement, or by ENOENT. */
export function encodeSetGet(sequence: number, table: string, set: string, mark: number): Uint8Array {
  const key = new Uint8Array(4);
  new DataView(key.buffer).setUint32(0, mark, true);
  const elements = nested(
    NFTA_SET_ELEM_LIST_ELEMENTS,
    nested(NFTA_LIST_ELEM, nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key))),
  );
  return request(NLM_F_ACK, sequence, table, set, elements);
}

export const encodeSetDump = (sequence: number, table: string, set: string): Uint8Array =>
  request(NLM_F_DUMP, sequence, table, set);

function request(how: number, sequence: number, table: string, set: string, ...more: Uint8Array[]): Uint8Array {
  return nfnlMessage(
    {
      subsystem: NFNL_SUBSYS_NFTABLES,
      message: NFT_MSG_GETSETELEM,
      flags: NLM_F_REQUEST | how,
      sequence,
      family: NFPROTO_INET,
    },
    attribute(NFTA_SET_ELEM_LIST_TABLE, text(table)),
    attribute(NFTA_SET_ELEM_LIST_SET, text(set)),
    ...more,
  );
}

/** The elements of one message; those without a counter, or with a key that is no mark, are left out. */
export function decodeSetCounts(message: Uint8Array): Decoded<MarkCount[]> {
  if (message.length < NFNL_HEADER) return malformed('truncated');
  if (messageType(message) !== ((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_NEWSETELEM)) return malformed('bad-type');
  const counts: MarkCount[] = [];
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    if (cursor.type !== NFTA_SET_ELEM_LIST_ELEMENTS) continue;
    const list = cursor.inside();
    while (list.next()) {
      const count = readElement(message, list.inside());
      if (count === 'malformed') return malformed('bad-attribute');
      if (count !== undefined) counts.push(count);
    }
    if (list.malformed) return malformed('bad-attribute');
  }
  return cursor.malformed ? malformed('bad-attribute') : { ok: true, value: counts };
}

function readElement(message: Uint8Array, cursor: AttributeCursor): MarkCount | undefined | 'malformed' {
  let mark: number | undefined;
  let value: { packets: number; bytes: number } | undefined;
  while (cursor.next()) {
    if (cursor.type === NFTA_SET_ELEM_KEY) mark = readMark(cursor.inside(), message);
    else if (cursor.type === NFTA_SET_ELEM_EXPR) value = readCounter(cursor.inside(), message);
  }
  if (cursor.malformed) return 'malformed';
  return mark === undefined || value === undefined ? undefined : { mark, ...value };
}

/** A mark is in host order, as netlink's own headers are (nlattr.ts). */
function readMark(cursor: AttributeCursor, message: Uint8Array): number | undefined {
  while (cursor.next()) {
    if (cursor.type !== NFTA_DATA_VALUE || cursor.length !== 4) continue;
    return new DataView(message.buffer, message.byteOffset + cursor.start, 4).getUint32(0, true);
  }
  return undefined;
}

function readCounter(cursor: AttributeCursor, message: Uint8Array): { packets: number; bytes: number } | undefined {
  let named = false;
  const value = { packets: 0, bytes: 0 };
  while (cursor.next()) {
    if (cursor.type === NFTA_EXPR_NAME) named = isCounter(message, cursor);
    if (cursor.type !== NFTA_EXPR_DATA) continue;
    const data = cursor.inside();
    while (data.next()) {
      if (data.length < 8) continue;
      if (data.type === NFTA_COUNTER_PACKETS) value.packets = counter(message, data.start);
      else if (data.type === NFTA_COUNTER_BYTES) value.bytes = counter(message, data.start);
    }
  }
  return named ? value : undefined;
}

/** `counter` with its zero, as two numbers: there is one for each rule, and decoding text costs more than all the rest. */
function isCounter(message: Uint8Array, { start, length }: AttributeCursor): boolean {
  return length === 8 && u32(message, start) === 0x636f756e && u32(message, start + 4) === 0x74657200;
}
