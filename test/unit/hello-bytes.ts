/**
 * Client hellos field by field, in TLS records and in QUIC packets, for the tests of their readers: also what no honest
 * client sends. Written from the specifications and not from the readers; the keys of Initial packets are those of
 * wire/quic-keys.ts, which the vectors of RFC 9001 and RFC 9369 hold.
 */

import { createCipheriv } from 'node:crypto';
import { bytesOfU16, bytesOfU32, join } from '../../wire/bytes.ts';
import { InitialKeys, type QuicSide, type QuicVersion } from '../../wire/quic-keys.ts';

export const ascii = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'latin1'));
export const list8 = (...parts: Uint8Array[]): Uint8Array => {
  const body = join(parts);
  return join([Uint8Array.of(body.length), body]);
};
export const list16 = (...parts: Uint8Array[]): Uint8Array => {
  const body = join(parts);
  return join([bytesOfU16(body.length), body]);
};

export const extension = (type: number, ...body: Uint8Array[]): Uint8Array => join([bytesOfU16(type), list16(...body)]);
export const nameEntry = (name: string | Uint8Array, type = 0): Uint8Array =>
  join([Uint8Array.of(type), list16(typeof name === 'string' ? ascii(name) : name)]);
export const serverName = (...names: (string | Uint8Array)[]): Uint8Array =>
  extension(0, list16(...names.map((name) => nameEntry(name))));
export const alpn = (...protocols: string[]): Uint8Array =>
  extension(16, list16(...protocols.map((protocol) => list8(ascii(protocol)))));
export const versions = (...offered: number[]): Uint8Array => extension(43, list8(...offered.map(bytesOfU16)));
/** Groups that are supported, and a share of some; of X25519 one that servers take. */
export const groups = (supported: number[], shares: number[]): Uint8Array[] => [
  extension(10, list16(...supported.map(bytesOfU16))),
  extension(51, list16(...shares.map((group) => join([bytesOfU16(group), list16(new Uint8Array(32).fill(9, 0, 1))])))),
];
/** A key share of X25519MLKEM768: what makes a hello longer than a packet. */
export const postQuantumShare = (): Uint8Array =>
  extension(51, list16(bytesOfU16(0x11ec), list16(new Uint8Array(1216).fill(7))));
/** RFC 9849 §5: outer, HKDF-SHA256 and AES-128-GCM, a config, a public key, what is hidden. */
export const outerEch = (): Uint8Array =>
  extension(0xfe0d, Uint8Array.of(0, 0, 1, 0, 1, 42), list16(new Uint8Array(32)), list16(new Uint8Array(160)));

export interface HelloFields {
  legacyVersion?: number;
  sessionId?: Uint8Array;
  suites?: Uint8Array;
  compression?: Uint8Array;
  /** Undefined: the hello ends before them. */
  extensions?: Uint8Array[] | undefined;
}

/** The handshake message. */
export function helloMessage(fields: HelloFields): Uint8Array {
  const { extensions } = fields;
  const body = join([
    bytesOfU16(fields.legacyVersion ?? 0x0303),
    new Uint8Array(32).fill(0x5a),
    list8(fields.sessionId ?? new Uint8Array(32).fill(1)),
    list16(fields.suites ?? Uint8Array.of(0x1a, 0x1a, 0x13, 0x01)),
    list8(fields.compression ?? Uint8Array.of(0)),
    extensions === undefined ? new Uint8Array(0) : list16(...extensions),
  ]);
  return message(1, body);
}

export function message(type: number, body: Uint8Array): Uint8Array {
  return join([Uint8Array.of(type, body.length >>> 16), bytesOfU16(body.length & 0xffff), body]);
}

export const record = (fragment: Uint8Array, type = 22, version = 0x0301): Uint8Array =>
  join([Uint8Array.of(type), bytesOfU16(version), list16(fragment)]);

/** A message in records of these sizes in turn, the last one short if need be. */
export function records(whole: Uint8Array, ...sizes: number[]): Uint8Array {
  const parts: Uint8Array[] = [];
  for (let at = 0, i = 0; at < whole.length; i++) {
    const size = sizes[i % sizes.length] ?? whole.length;
    parts.push(record(whole.subarray(at, at + size)));
    at += size;
  }
  return join(parts);
}

/** In the shortest form that is long enough, or in one of `size` bytes. */
export function varint(
  value: number,
  size = value < 64 ? 1 : value < 16_384 ? 2 : value < 2 ** 30 ? 4 : 8,
): Uint8Array {
  if (size === 1) return Uint8Array.of(value);
  if (size === 2) return bytesOfU16(value | 0x4000);
  if (size === 4) return bytesOfU32((value | 0x8000_0000) >>> 0);
  return join([bytesOfU32((Math.floor(value / 2 ** 32) | 0xc000_0000) >>> 0), bytesOfU32(value % 2 ** 32)]);
}

export const cryptoFrame = (offset: number, data: Uint8Array): Uint8Array =>
  join([Uint8Array.of(6), varint(offset), varint(data.length), data]);

export interface InitialFields {
  version?: QuicVersion;
  /** Whose keys: the Destination Connection ID, unless said. */
  keyId?: Uint8Array;
  side?: QuicSide;
  destination?: Uint8Array;
  source?: Uint8Array;
  token?: Uint8Array;
  number?: number;
  numberSize?: number;
  frames: Uint8Array[];
  /** Bytes of the packet that padding brings it to. */
  padTo?: number;
  /** Of the first byte. */
  reserved?: number;
}

export const CLIENT_ID = ascii('clientid');

export const versionCode = (version: QuicVersion): Uint8Array => bytesOfU32(version === 1 ? 1 : 0x6b3343cf);

/** A packet under Initial keys, protected as RFC 9001 §5 says. */
export function sealInitial(fields: InitialFields): Uint8Array {
  const { version = 1, destination = CLIENT_ID, number = 0, numberSize = 2 } = fields;
  const type = version === 1 ? 0 : 1;
  const before = join([
    Uint8Array.of(0xc0 | (type << 4) | ((fields.reserved ?? 0) << 2) | (numberSize - 1)),
    versionCode(version),
    list8(destination),
    list8(fields.source ?? new Uint8Array(0)),
    varint(fields.token?.length ?? 0),
    fields.token ?? new Uint8Array(0),
  ]);
  const content = join(fields.frames);
  const around = before.length + 2 + numberSize + 16;
  const padded = new Uint8Array(Math.max(content.length, 4 - numberSize, (fields.padTo ?? 1200) - around));
  padded.set(content);
  const length = varint(numberSize + padded.length + 16, 2);
  const numberBytes = bytesOfU32(number % 2 ** 32).subarray(4 - numberSize);
  const header = join([before, length, numberBytes]);

  const keys = new InitialKeys(version, fields.keyId ?? destination, fields.side);
  const nonce = Buffer.from(keys.iv);
  const low = nonce.readUIntBE(6, 6);
  nonce.writeUIntBE(Number(BigInt(low) ^ BigInt(number)), 6, 6);
  const cipher = createCipheriv('aes-128-gcm', keys.key, nonce);
  cipher.setAAD(header);
  const sealed = join([header, cipher.update(padded), cipher.final(), cipher.getAuthTag()]);
  const numberAt = header.length - numberSize;
  const mask = createCipheriv('aes-128-ecb', keys.hp, null).update(sealed.subarray(numberAt + 4, numberAt + 20));
  sealed[0] = (sealed[0] ?? 0) ^ ((mask[0] ?? 0) & 0x0f);
  for (let i = 0; i < numberSize; i++) sealed[numberAt + i] = (sealed[numberAt + i] ?? 0) ^ (mask[1 + i] ?? 0);
  return sealed;
}

/** A packet of another type: its header, and bytes that nobody can open. */
export function otherPacket(
  type: '0-rtt' | 'handshake',
  version: QuicVersion = 1,
  destination = CLIENT_ID,
): Uint8Array {
  const code = { '0-rtt': 1, handshake: 2 }[type] + (version === 1 ? 0 : 1);
  const content = new Uint8Array(64).fill(0x77);
  return join([
    Uint8Array.of(0xc0 | (code << 4)),
    versionCode(version),
    list8(destination),
    list8(new Uint8Array(0)),
    varint(content.length, 2),
    content,
  ]);
}
