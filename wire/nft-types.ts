/**
 * The types that keys and values of nftables sets have, with their texts: those of kernel/nft-element.ts, to bytes and
 * back. Numbers of types and the payload fields that `typeof` may name are nft's own (datatype.h, proto.h, as of 1.0.6):
 * the kernel only keeps them.
 * Addresses, ports and payload are in network order; marks in host order, but for a concatenation with intervals,
 * where nft puts them into network order, so that they can be compared.
 */
import { hexDigit, ipv4Text, ipv6Text, putIpv4, putIpv6 } from './address-text.ts';
import { u8, u16, u32 } from './bytes.ts';

export interface NftType {
  /** As written in a set: `ipv4_addr`, `ip saddr`, `@th,336,32`. */
  name: string;
  /** nft's number of the type. */
  id: number;
  bytes: number;
  /** What nft notes as its byte order: 0 none, 1 host, 2 network. */
  order: 0 | 1 | 2;
  /** Of `typeof`: how nft notes the expression (nft-shape.ts). */
  expression?: NftExpression;
  /** Writes the value of a text, where there are zeros; false if it is none. */
  write(text: string, bytes: Uint8Array, at: number, interval: boolean): boolean;
  read(bytes: Uint8Array, at: number, interval: boolean): string;
}

export type NftExpression =
  | { kind: 'payload'; protocol: number; field: number }
  | { kind: 'raw'; base: number; offset: number; length: number }
  | { kind: 'meta'; key: number };

/** Decimal, without zeros in front: nft would read them as octal. */
function writeNumber(text: string, bytes: Uint8Array, at: number, length: number): boolean {
  let value = 0;
  for (let i = 0; i < text.length; i++) {
    const digit = text.charCodeAt(i) - 0x30;
    if (!(digit >= 0 && digit <= 9) || (i > 0 && value === 0)) return false;
    value = 10 * value + digit;
    if (value >= 2 ** (8 * length)) return false;
  }
  for (let i = at + length - 1; i >= at; i--) {
    bytes[i] = value;
    value >>>= 8;
  }
  return text !== '';
}

/** Hexadecimal, of any length, in network order. */
function writeHex(text: string, bytes: Uint8Array, at: number, length: number): boolean {
  if (text.length < 3 || !text.startsWith('0x')) return false;
  // Digits from the last one on.
  for (let i = text.length - 1, place = 2 * length - 1; i >= 2; i--, place--) {
    const digit = hexDigit(text.charCodeAt(i));
    if (digit < 0 || (place < 0 && digit > 0)) return false;
    if (place >= 0) (bytes[at + (place >> 1)] as number) |= (place & 1) === 1 ? digit : digit << 4;
  }
  return true;
}

function readHex(bytes: Uint8Array, at: number, length: number): string {
  let text = '';
  for (let i = 0; i < length; i++)
    text += u8(bytes, at + i)
      .toString(16)
      .padStart(2, '0');
  return `0x${text.replace(/^0+(?=.)/, '')}`;
}

/** Bytes the other way round. */
export function turn(bytes: Uint8Array, at: number, length: number): void {
  for (let low = at, high = at + length - 1; low < high; low++, high--) {
    const byte = bytes[low] as number;
    bytes[low] = bytes[high] as number;
    bytes[high] = byte;
  }
}

const number = (name: string, id: number, bytes: 1 | 2, order: 0 | 2): NftType => ({
  name,
  id,
  bytes,
  order,
  write: (text, into, at) => writeNumber(text, into, at, bytes),
  read: (from, at) => String(bytes === 1 ? u8(from, at) : u16(from, at)),
});

const ipv4: NftType = { name: 'ipv4_addr', id: 7, bytes: 4, order: 2, write: putIpv4, read: ipv4Text };
const ipv6: NftType = { name: 'ipv6_addr', id: 8, bytes: 16, order: 2, write: putIpv6, read: ipv6Text };
const protocol = number('inet_proto', 12, 1, 0);
const port = number('inet_service', 13, 2, 2);
export const markType: NftType = {
  name: 'mark',
  id: 19,
  bytes: 4,
  order: 1,
  write(text, bytes, at, interval) {
    if (!writeHex(text, bytes, at, 4)) return false;
    if (!interval) turn(bytes, at, 4);
    return true;
  },
  read(bytes, at, interval) {
    const own = bytes.slice(at, at + 4);
    if (!interval) own.reverse();
    return `0x${u32(own, 0).toString(16).padStart(8, '0')}`;
  },
};
/** A class of traffic control, `MAJOR:MINOR` in hexadecimal, neither of them 0; `none` is 0:0. */
const classType: NftType = {
  name: 'classid',
  id: 23,
  bytes: 4,
  order: 1,
  write(text, bytes, at, interval) {
    if (text === 'none') return true;
    const [, major = '', minor = ''] = /^([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(text) ?? [];
    return major !== '' && markType.write(`0x${major}${minor.padStart(4, '0')}`, bytes, at, interval);
  },
  read(bytes, at, interval) {
    const handle = Number(markType.read(bytes, at, interval));
    return handle === 0 ? 'none' : `${(handle >>> 16).toString(16)}:${(handle & 0xffff).toString(16)}`;
  },
};
const IFNAMSIZ = 16;
const interfaceName: NftType = {
  name: 'ifname',
  id: 41,
  bytes: IFNAMSIZ,
  order: 1,
  write(text, bytes, at) {
    const name = /^"([!-~]{1,15})"$/.exec(text)?.[1];
    if (name === undefined) return false;
    for (let i = 0; i < name.length; i++) bytes[at + i] = name.charCodeAt(i);
    return true;
  },
  read(bytes, at) {
    const end = bytes.indexOf(0, at);
    const last = end < 0 ? at + IFNAMSIZ : Math.min(end, at + IFNAMSIZ);
    return `"${new TextDecoder('latin1').decode(bytes.subarray(at, last))}"`;
  },
};

const named = new Map(
  [
    ipv4,
    ipv6,
    protocol,
    port,
    number('icmp_type', 14, 1, 0),
    number('icmpv6_type', 29, 1, 0),
    number('icmp_code', 32, 1, 0),
    number('icmpv6_code', 33, 1, 0),
    markType,
    classType,
    interfaceName,
  ].map((type) => [type.name, type]),
);
const byId = new Map([...named.values()].map((type) => [type.id, type]));

export const typeNamed = (name: string): NftType | undefined => named.get(name);
export const typeNumbered = (id: number): NftType | undefined => byId.get(id);

/** nft's number for an integer without a type. */
export const INTEGER = 4;

const payload = (name: string, type: NftType, protocol: number, field: number): NftType => ({
  ...type,
  name,
  expression: { kind: 'payload', protocol, field },
});
const meta = (name: string, type: NftType, key: number): NftType => ({
  ...type,
  name,
  expression: { kind: 'meta', key },
});

const expressions = new Map(
  [
    payload('ip saddr', ipv4, 12, 11),
    payload('ip daddr', ipv4, 12, 12),
    payload('ip6 saddr', ipv6, 13, 8),
    payload('ip6 daddr', ipv6, 13, 9),
    payload('udp dport', port, 6, 2),
    payload('tcp dport', port, 8, 2),
    payload('th dport', port, 11, 2),
    meta('meta mark', markType, 3),
    meta('meta l4proto', protocol, 16),
  ].map((type) => [type.name, type]),
);

const bases = ['', 'll', 'nh', 'th'];

/** The type of what `typeof` names; undefined if it is not known here. */
export function typeOfExpression(text: string): NftType | undefined {
  const known = expressions.get(text);
  if (known !== undefined) return known;
  const [, base = '', offset, length] = /^@(nh|th),(\d+),(\d+)$/.exec(text) ?? [];
  return base === '' ? undefined : rawType(bases.indexOf(base), Number(offset), Number(length));
}

/** A piece of a packet, in bits. */
function rawType(base: number, offset: number, length: number): NftType | undefined {
  if (bases[base] === undefined || offset % 8 !== 0 || length % 8 !== 0 || length < 8 || length > 128) return undefined;
  const bytes = length / 8;
  return {
    name: `@${bases[base]},${offset},${length}`,
    id: INTEGER,
    bytes,
    order: 2,
    expression: { kind: 'raw', base, offset, length },
    write: (text, into, at) => writeHex(text, into, at, bytes),
    read: (from, at) => readHex(from, at, bytes),
  };
}

/** The other way: of what nft noted. */
export function typeOfNote(note: NftExpression): NftType | undefined {
  if (note.kind === 'raw') return rawType(note.base, note.offset, note.length);
  for (const type of expressions.values()) {
    const { expression } = type;
    if (expression?.kind === 'payload' && note.kind === 'payload') {
      if (expression.protocol === note.protocol && expression.field === note.field) return type;
    } else if (expression?.kind === 'meta' && note.kind === 'meta' && expression.key === note.key) return type;
  }
  return undefined;
}
