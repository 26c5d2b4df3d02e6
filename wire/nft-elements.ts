/**
 * Elements of nftables sets, between their texts (kernel/nft-element.ts) and the messages that change and list them. An
 * element that does not read as its set's shape says is not written. A plain interval set (one field) is read only: its
 * elements are ends of intervals, which a change to one interval may share with others.
 */
import { type Decoded, malformed, u32 } from './bytes.ts';
import * as nft from './nft-names.ts';
import {
  isConcatenation,
  type SetLayout,
  textIn,
  writeByteLimit,
  writeConnectionLimit,
  writeRateLimit,
} from './nft-shape.ts';
import { AttributeCursor, messageType, NFNL_HEADER, NFNL_SUBSYS_NFTABLES } from './nlattr.ts';
import type { NetlinkWriter } from './nlwriter.ts';

type Element = readonly [key: string, value: string];

/** Bytes of elements in one message; an attribute takes 64 KiB. */
const LIST_BYTES = 48 * 1024;

export const canWrite = (layout: SetLayout): boolean => !layout.interval || isConcatenation(layout);

/**
 * The attributes of NFT_MSG_NEWSETELEM or NFT_MSG_DELSETELEM with as many elements from `from` on as one message takes.
 * Returns the index behind the last of them; -1 if one does not read. To delete, the keys are enough.
 */
export function writeElements(
  writer: NetlinkWriter,
  table: string,
  set: string,
  layout: SetLayout,
  elements: readonly Element[],
  from: number,
  verb: 'add' | 'delete',
): number {
  writer.putText(nft.NFTA_SET_ELEM_LIST_TABLE, table);
  writer.putText(nft.NFTA_SET_ELEM_LIST_SET, set);
  const list = writer.open(nft.NFTA_SET_ELEM_LIST_ELEMENTS);
  const end = writer.length + LIST_BYTES;
  let index = from;
  for (; index < elements.length && writer.length < end; index++) {
    const [key, value] = elements[index] as Element;
    const element = writer.open(nft.NFTA_LIST_ELEM);
    if (!writeKey(writer, layout, key) || (verb === 'add' && !writeValue(writer, layout, value))) return -1;
    writer.close(element);
  }
  writer.close(list);
  return index;
}

function writeKey(writer: NetlinkWriter, layout: SetLayout, text: string): boolean {
  const { fields, keyBytes, interval } = layout;
  const parts = fields.length === 1 ? [text] : text.split(' . ');
  if (parts.length !== fields.length) return false;
  const key = writer.open(nft.NFTA_SET_ELEM_KEY);
  const first = writer.attribute(nft.NFTA_DATA_VALUE, keyBytes);
  writer.close(key);
  let last = 0;
  if (interval) {
    const end = writer.open(nft.NFTA_SET_ELEM_KEY_END);
    last = writer.attribute(nft.NFTA_DATA_VALUE, keyBytes);
    writer.close(end);
  }
  const { buffer } = writer;
  for (let index = 0; index < parts.length; index++) {
    const { type, at } = fields[index] as SetLayout['fields'][number];
    const part = parts[index] as string;
    const dash = interval ? part.indexOf('-') : -1;
    if (!type.write(dash < 0 ? part : part.slice(0, dash), buffer, first + at, interval)) return false;
    if (interval && !type.write(dash < 0 ? part : part.slice(dash + 1), buffer, last + at, interval)) return false;
  }
  return true;
}

function writeValue(writer: NetlinkWriter, { value, limited }: SetLayout, text: string): boolean {
  if (value === undefined) {
    if (limited !== undefined) return writeLimit(writer, limited, text);
    return text === '';
  }
  const data = writer.open(nft.NFTA_SET_ELEM_DATA);
  if (value === 'verdict') {
    if (!writeVerdictText(writer, text)) return false;
  } else {
    const at = writer.attribute(nft.NFTA_DATA_VALUE, value.bytes);
    if (!value.write(text, writer.buffer, at, false)) return false;
  }
  writer.close(data);
  return true;
}

const LIMITS = {
  rate: /^limit rate over (\d{1,9})\/second burst (\d{1,9}) packets$/,
  bytes: /^limit rate over (\d{1,15}) bytes\/second burst (\d{1,9}) bytes$/,
  connections: /^ct count over (\d{1,9})$/,
};

function writeLimit(writer: NetlinkWriter, kind: keyof typeof LIMITS, text: string): boolean {
  const [, number, burst] = LIMITS[kind].exec(text) ?? [];
  if (number === undefined) return false;
  const expression = writer.open(nft.NFTA_SET_ELEM_EXPR);
  if (kind === 'rate') writeRateLimit(writer, Number(number), Number(burst));
  else if (kind === 'bytes') writeByteLimit(writer, Number(number), Number(burst));
  else writeConnectionLimit(writer, Number(number));
  writer.close(expression);
  return true;
}

/** `drop`, `goto NAME`, … */
function writeVerdictText(writer: NetlinkWriter, text: string): boolean {
  const space = text.indexOf(' ');
  const word = space < 0 ? text : text.slice(0, space);
  const chain = space < 0 ? '' : text.slice(space + 1);
  const at = writeVerdict(writer, word, chain.length);
  return space < 0 ? at === 0 : at > 0 && putName(chain, writer.buffer, at);
}

/**
 * A verdict as data of an element or of an `immediate` expression, with room for the name of the chain that it leads to.
 * Returns where that begins, 0 if there is none to be; -1 if there is no such verdict.
 */
export function writeVerdict(writer: NetlinkWriter, word: string, chainLength: number): number {
  const code = Object.hasOwn(nft.verdictCodes, word) ? nft.verdictCodes[word] : undefined;
  if (code === undefined || (word === 'jump' || word === 'goto') !== chainLength > 0) return -1;
  const verdict = writer.open(nft.NFTA_DATA_VERDICT);
  writer.putU32(nft.NFTA_VERDICT_CODE, code);
  // With a zero behind it.
  const at = chainLength === 0 ? 0 : writer.attribute(nft.NFTA_VERDICT_CHAIN, chainLength + 1);
  writer.close(verdict);
  return at;
}

/** A name of letters, digits and `_`; false if it is none. */
export function putName(text: string, into: Uint8Array, at: number): boolean {
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    const digit = code >= 0x30 && code <= 0x39;
    const letter = (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a) || code === 0x5f;
    if (!letter && !(digit && i > 0)) return false;
    into[at + i] = code;
  }
  return text !== '';
}

const verdictWords = new Map(Object.entries(nft.verdictCodes).map(([word, code]) => [code, word]));

/** Puts together what NFT_MSG_GETSETELEM lists of one set. */
export class ElementReader {
  readonly #layout: SetLayout;
  readonly #elements = new Map<string, string>();
  /** Of a plain interval set: where intervals begin and end. */
  readonly #bounds: { key: Uint8Array; end: boolean; value: string }[] = [];

  constructor(layout: SetLayout) {
    this.#layout = layout;
  }

  /** The elements of one message. */
  read(message: Uint8Array): Decoded<number> {
    if (message.length < NFNL_HEADER) return malformed('truncated');
    if (messageType(message) !== ((NFNL_SUBSYS_NFTABLES << 8) | nft.NFT_MSG_NEWSETELEM)) return malformed('bad-type');
    const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
    let count = 0;
    while (cursor.next()) {
      if (cursor.type !== nft.NFTA_SET_ELEM_LIST_ELEMENTS) continue;
      const list = cursor.inside();
      for (; list.next(); count++) if (!this.#element(message, list.inside())) return malformed('bad-attribute');
      if (list.malformed) return malformed('bad-attribute');
    }
    return cursor.malformed ? malformed('bad-attribute') : { ok: true, value: count };
  }

  /** All of them, with the last message read. */
  finish(): Map<string, string> {
    if (canWrite(this.#layout)) return this.#elements;
    // An end that is another's beginning comes first.
    const order = (end: boolean): number => (end ? 0 : 1);
    this.#bounds.sort((a, b) => Buffer.compare(a.key, b.key) || order(a.end) - order(b.end));
    for (const [index, { key, end, value }] of this.#bounds.entries()) {
      if (end) continue;
      const next = this.#bounds[index + 1];
      const first = this.#keyText(key, 0);
      const last = this.#keyText(next === undefined ? new Uint8Array(key.length).fill(0xff) : before(next.key), 0);
      this.#elements.set(first === last ? first : `${first}-${last}`, value);
    }
    return this.#elements;
  }

  #element(message: Uint8Array, cursor: AttributeCursor): boolean {
    const { keyBytes, interval } = this.#layout;
    let key = -1;
    let keyEnd = -1;
    let flags = 0;
    let value: string | undefined = '';
    while (cursor.next()) {
      switch (cursor.type) {
        case nft.NFTA_SET_ELEM_KEY:
          key = dataIn(cursor.inside(), keyBytes);
          break;
        case nft.NFTA_SET_ELEM_KEY_END:
          keyEnd = dataIn(cursor.inside(), keyBytes);
          break;
        case nft.NFTA_SET_ELEM_FLAGS:
          flags = cursor.length === 4 ? u32(message, cursor.start) : 0;
          break;
        case nft.NFTA_SET_ELEM_DATA:
          value = this.#value(message, cursor.inside());
          break;
        case nft.NFTA_SET_ELEM_EXPR:
          if (this.#layout.limited !== undefined) value = limitText(message, cursor.inside());
          break;
      }
    }
    if (cursor.malformed || value === undefined) return false;
    // What catches all that no other element does has no key; it is nobody's of ours, and equals none.
    if (key < 0) {
      if ((flags & nft.NFT_SET_ELEM_CATCHALL) !== 0) this.#elements.set('*', value);
      return (flags & nft.NFT_SET_ELEM_CATCHALL) !== 0;
    }
    if (!canWrite(this.#layout)) {
      const end = (flags & nft.NFT_SET_ELEM_INTERVAL_END) !== 0;
      this.#bounds.push({ key: message.slice(key, key + keyBytes), end, value });
    } else this.#elements.set(interval ? this.#rangeText(message, key, keyEnd) : this.#keyText(message, key), value);
    return true;
  }

  #keyText(bytes: Uint8Array, from: number): string {
    const { fields } = this.#layout;
    let text = '';
    for (const { type, at } of fields) text += (at === 0 ? '' : ' . ') + type.read(bytes, from + at, false);
    return text;
  }

  #rangeText(bytes: Uint8Array, from: number, to: number): string {
    let text = '';
    for (const { type, at } of this.#layout.fields) {
      const first = type.read(bytes, from + at, true);
      const last = to < 0 ? first : type.read(bytes, to + at, true);
      text += `${at === 0 ? '' : ' . '}${first === last ? first : `${first}-${last}`}`;
    }
    return text;
  }

  #value(message: Uint8Array, cursor: AttributeCursor): string | undefined {
    const { value } = this.#layout;
    if (value === undefined) return undefined;
    if (value === 'verdict') return verdictText(message, cursor);
    const at = dataIn(cursor, value.bytes);
    return at < 0 ? undefined : value.read(message, at, false);
  }
}

/** Where a value of so many bytes begins; -1 if there is none. */
function dataIn(cursor: AttributeCursor, bytes: number): number {
  while (cursor.next()) if (cursor.type === nft.NFTA_DATA_VALUE && cursor.length === bytes) return cursor.start;
  return -1;
}

export function verdictText(message: Uint8Array, cursor: AttributeCursor): string | undefined {
  let word: string | undefined;
  let chain: string | undefined;
  while (cursor.next()) {
    if (cursor.type !== nft.NFTA_DATA_VERDICT) continue;
    const inside = cursor.inside();
    while (inside.next()) {
      if (inside.type === nft.NFTA_VERDICT_CODE && inside.length === 4) {
        word = verdictWords.get(u32(message, inside.start));
      } else if (inside.type === nft.NFTA_VERDICT_CHAIN) chain = textIn(inside);
    }
  }
  return word === undefined || chain === undefined ? word : `${word} ${chain}`;
}

function limitText(message: Uint8Array, cursor: AttributeCursor): string | undefined {
  let name = '';
  while (cursor.next()) {
    if (cursor.type === nft.NFTA_EXPR_NAME) name = textIn(cursor);
    else if (cursor.type === nft.NFTA_EXPR_DATA) {
      const values = new Map<number, number>();
      const data = cursor.inside();
      while (data.next()) {
        if (data.length === 4) values.set(data.type, u32(message, data.start));
        // Rates and units, of which few bits are used.
        else if (data.length === 8) {
          values.set(data.type, u32(message, data.start) * 2 ** 32 + u32(message, data.start + 4));
        }
      }
      const of = (type: number): number => values.get(type) ?? 0;
      if (name === 'limit') {
        const over = of(nft.NFTA_LIMIT_FLAGS) === nft.NFT_LIMIT_F_INV ? 'over ' : '';
        const unit = units[of(nft.NFTA_LIMIT_UNIT)] ?? of(nft.NFTA_LIMIT_UNIT);
        const [rate, burst] = [of(nft.NFTA_LIMIT_RATE), of(nft.NFTA_LIMIT_BURST)];
        return of(nft.NFTA_LIMIT_TYPE) === nft.NFT_LIMIT_PKT_BYTES
          ? `limit rate ${over}${rate} bytes/${unit} burst ${burst} bytes`
          : `limit rate ${over}${rate}/${unit} burst ${burst} packets`;
      }
      if (name === 'connlimit') {
        return `ct count ${of(nft.NFTA_CONNLIMIT_FLAGS) === nft.NFT_CONNLIMIT_F_INV ? 'over ' : ''}${of(nft.NFTA_CONNLIMIT_COUNT)}`;
      }
    }
  }
  return undefined;
}

const units: Record<number, string> = { 1: 'second', 60: 'minute', 3600: 'hour', 86400: 'day', 604800: 'week' };

/** The number before, in network order. */
function before(bytes: Uint8Array): Uint8Array {
  const less = bytes.slice();
  for (let i = less.length - 1; i >= 0; i--) {
    const byte = less[i] as number;
    less[i] = byte - 1;
    if (byte !== 0) break;
  }
  return less;
}
