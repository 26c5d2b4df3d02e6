/**
 * What rules ask of a packet, by nft's words: how it is loaded into a register, and which protocols it presupposes (of
 * which nft asks first, if the rule has not yet).
 */
import { hexDigit } from './address-text.ts';
import { putU16 } from './bytes.ts';
import type { ExpressionWriter } from './nft-expressions.ts';
import { markType, type NftType, typeNamed, typeOfExpression } from './nft-types.ts';

export interface Key {
  bytes: number;
  /** In host order: for intervals of a concatenation it is turned round. */
  host: boolean;
  /** AF_INET or AF_INET6. */
  network?: number;
  transport?: number;
  load(write: ExpressionWriter, register: number): void;
  /** Writes a value's bytes, where there are zeros; false if the text is none. */
  write(text: string, into: Uint8Array, at: number): boolean;
  mark?: true;
  states?: true;
  flags?: true;
}

export const AF_INET = 2;
export const AF_INET6 = 10;
export const META_PRIORITY = 2;
export const META_MARK = 3;
export const META_NFPROTO = 15;
export const META_L4PROTO = 16;
export const CT_MARK = 3;

export const TCP = 6;
const UDP = 17;
const ICMP = 1;
const ICMPV6 = 58;
const protocols: Record<string, number> = {
  icmp: ICMP,
  tcp: TCP,
  udp: UDP,
  'ipv6-icmp': ICMPV6,
  icmpv6: ICMPV6,
  sctp: 132,
};
const nfprotos: Record<string, number> = { ipv4: AF_INET, ipv6: AF_INET6 };
const etherTypes: Record<string, number> = { ip: 0x0800, ip6: 0x86dd };
export const ctStates: Record<string, number> = { invalid: 1, established: 2, related: 4, new: 8, untracked: 64 };
export const tcpFlags: Record<string, number> = { fin: 1, syn: 2, rst: 4, psh: 8, ack: 16, urg: 32 };

const writerOf =
  (type: NftType): Key['write'] =>
  (text, into, at) =>
    type.write(text, into, at, false);

function bytesIn(text: string, type: NftType): Uint8Array | undefined {
  const bytes = new Uint8Array(type.bytes);
  return type.write(text, bytes, 0, false) ? bytes : undefined;
}

function typed(name: string): NftType {
  const type = typeNamed(name);
  if (type === undefined) throw new TypeError(`no nftables type ${name}`);
  return type;
}

const address = { [AF_INET]: typed('ipv4_addr'), [AF_INET6]: typed('ipv6_addr') };
const port = typed('inet_service');
const byte = writerOf(typed('inet_proto'));

const named =
  (names: Record<string, number>): Key['write'] =>
  (text, into, at) => {
    if (!Object.hasOwn(names, text)) return byte(text, into, at);
    into[at] = names[text] as number;
    return true;
  };

const network = (family: typeof AF_INET | typeof AF_INET6, offset: number): Key => ({
  bytes: address[family].bytes,
  host: false,
  network: family,
  load: (write, register) => write.payloadLoad('network', offset, address[family].bytes, register),
  write: writerOf(address[family]),
});

const transport = (protocol: number | undefined, offset: number, type: NftType, family?: number): Key => ({
  bytes: type.bytes,
  host: false,
  ...(family !== undefined && { network: family }),
  ...(protocol !== undefined && { transport: protocol }),
  load: (write, register) => write.payloadLoad('transport', offset, type.bytes, register),
  write: writerOf(type),
});

const meta = (key: number, bytes: number, write: Key['write']): Key => ({
  bytes,
  host: true,
  load: (write, register) => write.metaLoad(key, register),
  write,
});

/** An address of a flow, as one direction has it. */
const flow = (direction: 0 | 1, family: typeof AF_INET | typeof AF_INET6, key: number): Key => ({
  bytes: address[family].bytes,
  host: false,
  load: (write, register) => write.ctLoad(key, register, direction),
  write: writerOf(address[family]),
});
const flowKeys = Object.fromEntries(
  (['original', 'reply'] as const).flatMap((word, at): [string, Key][] => {
    const direction = at === 0 ? 0 : 1;
    return [
      [`ct ${word} ip saddr`, flow(direction, AF_INET, 19)],
      [`ct ${word} ip daddr`, flow(direction, AF_INET, 20)],
      [`ct ${word} ip6 saddr`, flow(direction, AF_INET6, 21)],
      [`ct ${word} ip6 daddr`, flow(direction, AF_INET6, 22)],
    ];
  }),
);

const ct = (key: number, bytes: number, write: Key['write']): Key => ({
  bytes,
  host: true,
  load: (write, register) => write.ctLoad(key, register),
  write,
});

/** Of up to 32 bits, hexadecimal or not; -1 if the text is none. */
export function numberIn(text: string): number {
  const hex = text.startsWith('0x');
  const base = hex ? 16 : 10;
  const first = hex ? 2 : 0;
  let value = 0;
  for (let i = first; i < text.length; i++) {
    const digit = hexDigit(text.charCodeAt(i));
    // Behind a zero nft would read an octal number.
    if (digit < 0 || digit >= base || (!hex && i > 0 && value === 0)) return -1;
    value = base * value + digit;
    if (value > 0xffffffff) return -1;
  }
  return text.length > first ? value : -1;
}

/** In host order. */
export function putHost(value: number, into: Uint8Array, at: number): boolean {
  into[at] = value;
  into[at + 1] = value >>> 8;
  into[at + 2] = value >>> 16;
  into[at + 3] = value >>> 24;
  return value >= 0;
}

/** Marks may be written shorter. */
const mark: Key['write'] = (text, into, at) => putHost(numberIn(text), into, at);
/** A class of a queueing discipline: `1:a`, `none`. */
const classId = writerOf(typed('classid'));
const interfaceName = writerOf(typed('ifname'));
const quoted: Key['write'] = (text, into, at) => !text.endsWith('*"') && interfaceName(text, into, at);
const index: Key['write'] = (text, into, at) => !text.startsWith('0x') && mark(text, into, at);

const keys: Record<string, Key> = {
  'ip saddr': network(AF_INET, 12),
  'ip daddr': network(AF_INET, 16),
  'ip6 saddr': network(AF_INET6, 8),
  'ip6 daddr': network(AF_INET6, 24),
  'th sport': transport(undefined, 0, port),
  'th dport': transport(undefined, 2, port),
  'tcp sport': transport(TCP, 0, port),
  'tcp dport': transport(TCP, 2, port),
  'udp sport': transport(UDP, 0, port),
  'udp dport': transport(UDP, 2, port),
  'tcp flags': { ...transport(TCP, 13, typed('inet_proto')), write: named(tcpFlags), flags: true },
  'icmp type': transport(ICMP, 0, typed('icmp_type'), AF_INET),
  'icmp code': transport(ICMP, 1, typed('icmp_code'), AF_INET),
  'icmpv6 type': transport(ICMPV6, 0, typed('icmpv6_type'), AF_INET6),
  'icmpv6 code': transport(ICMPV6, 1, typed('icmpv6_code'), AF_INET6),
  'meta protocol': {
    ...meta(1, 2, (text, into, at) => {
      if (!Object.hasOwn(etherTypes, text)) return false;
      putU16(into, at, etherTypes[text] as number);
      return true;
    }),
    host: false,
  },
  'meta mark': { ...meta(META_MARK, markType.bytes, mark), mark: true },
  'meta length': meta(0, 4, mark),
  'meta priority': meta(META_PRIORITY, 4, classId),
  'meta iif': meta(4, 4, index),
  'meta nfproto': meta(
    META_NFPROTO,
    1,
    (text, into, at) => Object.hasOwn(nfprotos, text) && named(nfprotos)(text, into, at),
  ),
  'meta l4proto': meta(META_L4PROTO, 1, named(protocols)),
  'ct direction': ct(1, 1, named({ original: 0, reply: 1 })),
  'ct mark': { ...ct(CT_MARK, markType.bytes, mark), mark: true },
  'ct state': { ...ct(0, 4, mark), states: true },
  ...flowKeys,
};
const single: Record<string, Key> = { iifname: meta(6, 16, quoted), oifname: meta(7, 16, quoted) };

/** Reads one key from the words; returns it and how many words it took. */
export function keyAt(words: readonly string[], at: number): { key: Key; words: number } | undefined {
  const word = words[at] ?? '';
  if (Object.hasOwn(single, word)) return { key: single[word] as Key, words: 1 };
  const [, base, offset, length] = (word.startsWith('@') && /^@(th|nh),(\d+),(\d+)$/.exec(word)) || [];
  if (base !== undefined) {
    const type = typeOfExpression(word);
    return (
      type && { key: rawKey(type, base === 'th' ? 'transport' : 'network', Number(offset), Number(length)), words: 1 }
    );
  }
  const two = `${word} ${words[at + 1]}`;
  if (Object.hasOwn(keys, two)) return { key: keys[two] as Key, words: 2 };
  const four = `${two} ${words[at + 2]} ${words[at + 3]}`;
  if (Object.hasOwn(keys, four)) return { key: keys[four] as Key, words: 4 };
  return undefined;
}

function rawKey(type: NftType, base: 'transport' | 'network', offset: number, length: number): Key {
  return {
    bytes: length / 8,
    host: false,
    load: (write, register) => write.payloadLoad(base, offset / 8, length / 8, register),
    write: writerOf(type),
  };
}

/** Where a packet is translated to: `1.2.3.4`, `1.2.3.4:80`, `fd00::1`, `[fd00::1]:80`. */
export function targetOf(
  family: typeof AF_INET | typeof AF_INET6,
  text: string,
): { address: Uint8Array; port?: Uint8Array } | undefined {
  const form = family === AF_INET ? /^([0-9.]+)(?::(\d+))?$/ : /^(?:\[([0-9a-f:]+)\]:(\d+)|([0-9a-f:]+))$/;
  const [, host, number, alone] = form.exec(text) ?? [];
  const bytes = bytesIn(host ?? alone ?? '', address[family]);
  if (bytes === undefined || number === undefined) return bytes && { address: bytes };
  const there = bytesIn(number, port);
  return there && { address: bytes, port: there };
}
