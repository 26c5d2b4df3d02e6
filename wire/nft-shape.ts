/**
 * The shape of a set (kernel/nft-state.ts, shapeOf()) between its text, its layout in bytes and the messages that make
 * and list it. What `nft` notes in a set (nft-set-notes.ts) is written as it does, so that `nft list` prints such a set
 * as one of its own, and is read back to tell a shape. A text that is not understood has no layout; a set that is not gets a text that equals no other.
 */
import type { Decoded } from './bytes.ts';
import { malformed, u32 } from './bytes.ts';
import * as nft from './nft-names.ts';
import { NOTE_DATA, NOTE_KEY, namesNoted, notesIn, notesOf } from './nft-set-notes.ts';
import { INTEGER, type NftType, typeNamed, typeNumbered, typeOfExpression } from './nft-types.ts';
import { AttributeCursor, messageType, NFNL_HEADER, NFNL_SUBSYS_NFTABLES, NLM_F_REQUEST } from './nlattr.ts';
import { NetlinkWriter } from './nlwriter.ts';

export interface SetLayout {
  /** One, or several of a concatenation: each begins at four bytes. */
  fields: { type: NftType; at: number }[];
  keyBytes: number;
  interval: boolean;
  value?: NftType | 'verdict';
  /** Told by expressions (`typeof`), not by names. */
  expressions: boolean;
  /** Each element counts; so many of them. */
  counted?: true;
  /** The most elements. */
  size?: number;
  limited?: 'rate' | 'bytes' | 'connections';
}

const layouts = new Map<string, SetLayout | undefined>();
/** There are some twenty shapes; a set's size is part of one. */
const LAYOUTS_MAX = 1000;

export function layoutOf(shape: string): SetLayout | undefined {
  if (layouts.has(shape)) return layouts.get(shape);
  const layout = parseShape(shape);
  if (layouts.size < LAYOUTS_MAX) layouts.set(shape, layout);
  return layout;
}

const limits = {
  'limit rate over 1/second': 'rate',
  'limit rate over 1 bytes/second': 'bytes',
  'ct count over 1': 'connections',
} as const;

function parseShape(shape: string): SetLayout | undefined {
  const [, how, keys = '', value, rest = ''] = /^(type|typeof) (.+?)(?: : ([^;]+))?;(.*)$/.exec(shape) ?? [];
  if (how === undefined) return undefined;
  const expressions = how === 'typeof';
  const typeOf = expressions ? typeOfExpression : typeNamed;
  const types = keys.split(' . ').map(typeOf);
  const layout: SetLayout = { fields: [], keyBytes: 0, interval: false, expressions };
  for (const type of types) {
    if (type === undefined) return undefined;
    layout.fields.push({ type, at: layout.keyBytes });
    layout.keyBytes += types.length === 1 ? type.bytes : (type.bytes + 3) & ~3;
  }
  const of = value === 'verdict' ? value : value === undefined ? undefined : typeOf(value);
  if (value !== undefined && of === undefined) return undefined;
  if (of !== undefined) layout.value = of;
  const words = rest.split(';').map((word) => word.trim());
  const size = /^size (\d+)$/.exec(words[0] ?? '')?.[1];
  if (size !== undefined) {
    words.shift();
    layout.size = Number(size);
    if (words.join() === 'flags dynamic,timeout,gc-interval 1d,counter,') {
      layout.counted = true;
      return layout;
    }
  }
  for (const word of words) {
    if (word === 'flags interval') layout.interval = true;
    else if (word in limits) layout.limited = limits[word as keyof typeof limits];
    else if (word !== '') return undefined;
  }
  return layout;
}

const DAY_MS = 86_400_000;

export const isConcatenation = ({ fields }: SetLayout): boolean => fields.length > 1;

export function writeSet(writer: NetlinkWriter, table: string, name: string, id: number, layout: SetLayout): void {
  const { fields, keyBytes, interval, value, counted, size, limited } = layout;
  const ranges = interval && isConcatenation(layout);
  writer.putText(nft.NFTA_SET_TABLE, table);
  writer.putText(nft.NFTA_SET_NAME, name);
  writer.putU32(
    nft.NFTA_SET_FLAGS,
    (interval ? nft.NFT_SET_INTERVAL : 0) |
      (ranges ? nft.NFT_SET_CONCAT : 0) |
      (value === undefined ? 0 : nft.NFT_SET_MAP) |
      (counted === undefined ? 0 : nft.NFT_SET_EVAL | nft.NFT_SET_TIMEOUT),
  );
  writer.putU32(
    nft.NFTA_SET_KEY_TYPE,
    fields.reduce((ids, { type }) => (ids << 6) | type.id, 0),
  );
  writer.putU32(nft.NFTA_SET_KEY_LEN, keyBytes);
  if (value !== undefined) {
    writer.putU32(nft.NFTA_SET_DATA_TYPE, value === 'verdict' ? nft.NFT_DATA_VERDICT : value.id);
    writer.putU32(nft.NFTA_SET_DATA_LEN, value === 'verdict' ? 0 : value.bytes);
  }
  writer.putU32(nft.NFTA_SET_ID, id);
  if (size !== undefined || ranges) {
    const description = writer.open(nft.NFTA_SET_DESC);
    if (size !== undefined) writer.putU32(nft.NFTA_SET_DESC_SIZE, size);
    if (ranges) {
      const lengths = writer.open(nft.NFTA_SET_DESC_CONCAT);
      for (const { type } of fields) {
        const field = writer.open(nft.NFTA_LIST_ELEM);
        writer.putU32(nft.NFTA_SET_FIELD_LEN, type.bytes);
        writer.close(field);
      }
      writer.close(lengths);
    }
    writer.close(description);
  }
  if (counted !== undefined) writer.putU32(nft.NFTA_SET_GC_INTERVAL, DAY_MS);
  writer.putBytes(nft.NFTA_SET_USERDATA, Uint8Array.from(notesOf(layout)));
  if (counted === undefined && limited === undefined) return;
  const expression = writer.open(nft.NFTA_SET_EXPR);
  if (limited === undefined) writeCounter(writer);
  else if (limited === 'rate') writeRateLimit(writer, 1, 5);
  else if (limited === 'bytes') writeByteLimit(writer, 1, 0);
  else writeConnectionLimit(writer, 1);
  writer.close(expression);
}

/** `counter`, as the parts of an expression. */
function writeCounter(writer: NetlinkWriter): void {
  writer.putText(nft.NFTA_EXPR_NAME, 'counter');
  writer.close(writer.open(nft.NFTA_EXPR_DATA));
}

/** `limit rate over R/second burst B packets` */
export const writeRateLimit = (writer: NetlinkWriter, rate: number, burst: number, over = true): void =>
  writeAnyLimit(writer, nft.NFT_LIMIT_PKTS, rate, burst, over);
/** `limit rate over R bytes/second burst B bytes` */
export const writeByteLimit = (writer: NetlinkWriter, rate: number, burst: number): void =>
  writeAnyLimit(writer, nft.NFT_LIMIT_PKT_BYTES, rate, burst, true);

function writeAnyLimit(writer: NetlinkWriter, type: number, rate: number, burst: number, over: boolean): void {
  writer.putText(nft.NFTA_EXPR_NAME, 'limit');
  const data = writer.open(nft.NFTA_EXPR_DATA);
  writer.putU64(nft.NFTA_LIMIT_RATE, rate);
  writer.putU64(nft.NFTA_LIMIT_UNIT, 1);
  writer.putU32(nft.NFTA_LIMIT_BURST, burst);
  writer.putU32(nft.NFTA_LIMIT_TYPE, type);
  writer.putU32(nft.NFTA_LIMIT_FLAGS, over ? nft.NFT_LIMIT_F_INV : 0);
  writer.close(data);
}

/** `ct count over N` */
export function writeConnectionLimit(writer: NetlinkWriter, connections: number): void {
  writer.putText(nft.NFTA_EXPR_NAME, 'connlimit');
  const data = writer.open(nft.NFTA_EXPR_DATA);
  writer.putU32(nft.NFTA_CONNLIMIT_COUNT, connections);
  writer.putU32(nft.NFTA_CONNLIMIT_FLAGS, nft.NFT_CONNLIMIT_F_INV);
  writer.close(data);
}

export interface ListedSet {
  name: string;
  shape: string;
  /** Absent: a shape that is not understood. */
  layout?: SetLayout;
  /** How many elements it has; older kernels do not say. */
  count?: number;
}

export function encodeGetSet(table: string, set: string): Uint8Array {
  const writer = new NetlinkWriter(256);
  const head = { subsystem: NFNL_SUBSYS_NFTABLES, message: nft.NFT_MSG_GETSET, flags: NLM_F_REQUEST };
  writer.beginMessage({ ...head, family: nft.NFPROTO_INET });
  writer.putText(nft.NFTA_SET_TABLE, table);
  writer.putText(nft.NFTA_SET_NAME, set);
  writer.endMessage();
  return writer.written();
}

/** A set that NFT_MSG_GETSET lists; undefined: one without a name of its own, which is part of a rule. */
export function readSet(message: Uint8Array): Decoded<ListedSet | undefined> {
  if (message.length < NFNL_HEADER) return malformed('truncated');
  if (messageType(message) !== ((NFNL_SUBSYS_NFTABLES << 8) | nft.NFT_MSG_NEWSET)) return malformed('bad-type');
  const told = { name: '', flags: 0, keyType: 0, keyBytes: 0, dataType: 0, dataBytes: 0, size: 0, gcMs: 0 };
  let notes: Uint8Array = new Uint8Array(0);
  let count: number | undefined;
  const expressions: string[] = [];
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  const number = (): number => (cursor.length === 4 ? u32(message, cursor.start) : 0);
  while (cursor.next()) {
    switch (cursor.type) {
      case nft.NFTA_SET_NAME:
        told.name = textIn(cursor);
        break;
      case nft.NFTA_SET_FLAGS:
        told.flags = number();
        break;
      case nft.NFTA_SET_KEY_TYPE:
        told.keyType = number();
        break;
      case nft.NFTA_SET_KEY_LEN:
        told.keyBytes = number();
        break;
      case nft.NFTA_SET_DATA_TYPE:
        told.dataType = number();
        break;
      case nft.NFTA_SET_DATA_LEN:
        told.dataBytes = number();
        break;
      case nft.NFTA_SET_COUNT:
        count = number();
        break;
      case nft.NFTA_SET_GC_INTERVAL:
        told.gcMs = number();
        break;
      case nft.NFTA_SET_USERDATA:
        notes = cursor.bytes();
        break;
      case nft.NFTA_SET_DESC: {
        const inside = cursor.inside();
        while (inside.next()) {
          if (inside.type === nft.NFTA_SET_DESC_SIZE && inside.length === 4) told.size = u32(message, inside.start);
        }
        break;
      }
      case nft.NFTA_SET_EXPR:
        expressions.push(expressionName(cursor.inside()));
        break;
      case nft.NFTA_SET_EXPRESSIONS:
        expressions.push('several');
        break;
    }
  }
  if (cursor.malformed || told.name === '') return malformed('bad-attribute');
  if ((told.flags & nft.NFT_SET_ANONYMOUS) !== 0) return { ok: true, value: undefined };
  const shape = shapeText(told, notesIn(notes), expressions);
  const layout = layoutOf(shape);
  const { name } = told;
  if (layout === undefined) return { ok: true, value: { name, shape } };
  const { keyBytes, value } = layout;
  // A verdict's length is the kernel's own matter.
  const valueFits = value === 'verdict' || (value?.bytes ?? 0) === told.dataBytes;
  if (keyBytes !== told.keyBytes || !valueFits) return { ok: true, value: { name, shape: `${shape} other lengths;` } };
  return { ok: true, value: { name, shape, layout, ...(count !== undefined && { count }) } };
}

function shapeText(
  told: { flags: number; keyType: number; dataType: number; size: number; gcMs: number },
  notes: Map<number, Uint8Array>,
  expressions: string[],
): string {
  const typeName = (id: number): string => typeNumbered(id)?.name ?? (id === INTEGER ? 'integer' : `type-${id}`);
  const ids: number[] = [];
  for (let rest = told.keyType; rest > 0; rest = Math.floor(rest / 64)) ids.unshift(rest % 64);
  const noted = namesNoted(notes.get(NOTE_KEY));
  const keys = noted === undefined ? 'unknown' : (noted.length === 0 ? ids.map(typeName) : noted).join(' . ');
  const how = noted?.length === 0 ? 'type' : 'typeof';
  let value = '';
  if ((told.flags & nft.NFT_SET_MAP) !== 0) {
    const of = namesNoted(notes.get(NOTE_DATA))?.[0];
    value = ` : ${of ?? (told.dataType === nft.NFT_DATA_VERDICT ? 'verdict' : typeName(told.dataType))}`;
  }
  const names = Object.entries(flagNames).flatMap(([name, flag]) => ((told.flags & flag) === 0 ? [] : [name]));
  const rest = Object.values(flagNames).reduce((flags, flag) => flags & ~flag, told.flags & ~hiddenFlags);
  return [
    `${how} ${keys}${value};`,
    told.size > 0 ? ` size ${told.size};` : '',
    names.length > 0 ? ` flags ${names.join()};` : '',
    told.gcMs > 0 ? ` gc-interval ${told.gcMs === DAY_MS ? '1d' : `${told.gcMs}ms`};` : '',
    rest !== 0 ? ` flags 0x${rest.toString(16)};` : '',
    ...expressions.map((name) => ` ${exampleOf[name] ?? name};`),
  ].join('');
}

const flagNames = { interval: nft.NFT_SET_INTERVAL, dynamic: nft.NFT_SET_EVAL, timeout: nft.NFT_SET_TIMEOUT };
const hiddenFlags = nft.NFT_SET_MAP | nft.NFT_SET_CONCAT;

/** What a set's elements have, told by the example that shapeOf() gives. */
const exampleOf: Record<string, string> = {
  counter: 'counter',
  limit: 'limit rate over 1/second',
  'limit bytes': 'limit rate over 1 bytes/second',
  connlimit: 'ct count over 1',
};

export function textIn(cursor: AttributeCursor): string {
  const bytes = cursor.bytes();
  const end = bytes.indexOf(0);
  return new TextDecoder('latin1').decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** A limit of bytes is an expression of the same name as one of packets. */
function expressionName(cursor: AttributeCursor): string {
  let name = 'unknown';
  while (cursor.next()) {
    if (cursor.type === nft.NFTA_EXPR_NAME) name = textIn(cursor);
    else if (cursor.type === nft.NFTA_EXPR_DATA && name === 'limit') {
      const data = cursor.inside();
      while (data.next()) {
        const bytes = data.type === nft.NFTA_LIMIT_TYPE && data.bytes().at(-1) === nft.NFT_LIMIT_PKT_BYTES;
        if (bytes) return 'limit bytes';
      }
    }
  }
  return name;
}
