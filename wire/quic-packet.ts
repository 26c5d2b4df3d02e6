/**
 * Long-header packets of QUIC version 1 (RFC 9000 §17.2) and 2 (RFC 9369 §3.2): the header, and the content of an Initial
 * once its protection is off (RFC 9001 §5). Header bytes that are encrypted are believed only after the content's tag has
 * been checked. Left out: the tag of Retry packets, and packets under keys that only the ends have.
 */

import { createDecipheriv } from 'node:crypto';
import { u8, u32 } from './bytes.ts';
import { AEAD, type InitialKeys, type QuicVersion } from './quic-keys.ts';
import { type Reading, read, refused } from './reading.ts';

export const packetReasons = {
  'not-quic': 'the first byte or the header is none of QUIC',
  'short-header': 'a packet of an established connection, whose beginning was not seen',
  'version-negotiation': 'a packet of version negotiation, which only servers send',
  'unknown-version': 'a version of QUIC other than 1 and 2',
  'bad-connection-id': 'a connection ID of more than 20 bytes, or one of under 8 from a client that begins',
  'token-too-long': 'a token of more bytes than are read',
  'bad-packet-length': 'a packet whose length does not fit the datagram, or is too short to be decrypted',
  undecryptable: "content that the client's Initial keys do not open",
  'bad-reserved-bits': 'an Initial packet whose reserved bits are not zero',
} as const;
export type PacketReason = keyof typeof packetReasons;

export type PacketType = 'initial' | '0-rtt' | 'handshake' | 'retry';

export interface LongHeader {
  version: QuicVersion;
  type: PacketType;
  /** Destination Connection ID: a view. */
  destination: Uint8Array;
  /** Where the packet begins in the datagram, where its number does, and where it ends. */
  start: number;
  number: number;
  end: number;
}

const LONG_FORM = 0x80;
const FIXED_BIT = 0x40;
const RESERVED_BITS = 0x0c;
const VERSION_2 = 0x6b3343cf;
/** By the two bits of the first byte; version 2 has them moved round (RFC 9369 §3.2). */
const typesOf: Record<QuicVersion, readonly PacketType[]> = {
  1: ['initial', '0-rtt', 'handshake', 'retry'],
  2: ['retry', 'initial', '0-rtt', 'handshake'],
};
const CONNECTION_ID_MAX = 20;
const NUMBER_MAX = 4;
const SAMPLE = 16;
const TAG = 16;

/** Reads fields one after the other; once one is not there, `short` says so and what is read means nothing. */
export class QuicCursor {
  at: number;
  short = false;
  readonly #bytes: Uint8Array;
  readonly #end: number;

  constructor(bytes: Uint8Array, at: number, end: number) {
    this.#bytes = bytes;
    this.at = at;
    this.#end = end;
  }

  get done(): boolean {
    return this.short || this.at >= this.#end;
  }

  u8(): number {
    const at = this.skip(1);
    return this.short ? 0 : u8(this.#bytes, at);
  }

  /** RFC 9000 §16; above 2^53 not exact, and far above every bound. */
  varint(): number {
    const first = this.u8();
    let value = first & 0x3f;
    for (let more = (1 << (first >>> 6)) - 1; more > 0; more--) value = value * 256 + this.u8();
    return value;
  }

  /** Steps over zeros: padding is most of a packet. */
  skipZeros(): void {
    while (this.at < this.#end && this.#bytes[this.at] === 0) this.at++;
  }

  /** Steps over bytes and says where they begin. */
  skip(count: number): number {
    const { at } = this;
    if (count > this.#end - at) this.short = true;
    else this.at = at + count;
    return at;
  }
}

/** A packet at `start`. It ends where its length says; a Retry, which has none, with the datagram. */
export function parseLongHeader(bytes: Uint8Array, start: number, tokenMax: number): Reading<LongHeader, PacketReason> {
  const first = u8(bytes, start);
  if ((first & LONG_FORM) === 0) return refused((first & FIXED_BIT) === 0 ? 'not-quic' : 'short-header');
  if (start + 5 > bytes.length) return refused('not-quic');
  const code = u32(bytes, start + 1);
  if (code === 0) return refused('version-negotiation');
  if (code !== 1 && code !== VERSION_2) return refused('unknown-version');
  if ((first & FIXED_BIT) === 0) return refused('not-quic');
  const version = code === 1 ? 1 : 2;
  const type = typesOf[version][(first >>> 4) & 3] ?? 'retry';

  const cursor = new QuicCursor(bytes, start + 5, bytes.length);
  const destinationSize = cursor.u8();
  const destination = bytes.subarray(cursor.skip(destinationSize), cursor.at);
  const sourceSize = cursor.u8();
  cursor.skip(sourceSize);
  if (destinationSize > CONNECTION_ID_MAX || sourceSize > CONNECTION_ID_MAX) return refused('bad-connection-id');
  if (type === 'retry') {
    return cursor.short
      ? refused('bad-packet-length')
      : read({ version, type, destination, start, number: bytes.length, end: bytes.length });
  }
  if (type === 'initial') {
    const token = cursor.varint();
    if (token > tokenMax) return refused('token-too-long');
    cursor.skip(token);
  }
  const length = cursor.varint();
  const number = cursor.at;
  // The sample begins four bytes after the number does, however long it is.
  if (cursor.short || length > bytes.length - number || length < NUMBER_MAX + SAMPLE) {
    return refused('bad-packet-length');
  }
  return read({ version, type, destination, start, number, end: number + length });
}

export interface OpenedPacket {
  number: number;
  /** The frames: bytes of their own, not a view of the datagram. */
  payload: Uint8Array;
}

/** `largest` is the largest packet number so far, -1 before the first: numbers are sent cut (RFC 9000 appendix A.3). */
export function openInitial(
  bytes: Uint8Array,
  header: LongHeader,
  keys: InitialKeys,
  largest: number,
): Reading<OpenedPacket, PacketReason> {
  const { start, number: numberAt, end } = header;
  const mask = keys.headerMask(bytes.subarray(numberAt + NUMBER_MAX, numberAt + NUMBER_MAX + SAMPLE));
  const first = u8(bytes, start) ^ (u8(mask, 0) & 0x0f);
  const numberSize = (first & 3) + 1;
  const content = numberAt + numberSize;
  // Not slice(), which on a Buffer is a view: the datagram stays as it is.
  const clear = new Uint8Array(bytes.subarray(start, content));
  clear[0] = first;
  let cut = 0;
  for (let i = 0; i < numberSize; i++) {
    const octet = u8(bytes, numberAt + i) ^ u8(mask, 1 + i);
    clear[numberAt - start + i] = octet;
    cut = cut * 256 + octet;
  }
  const number = wholeNumber(cut, 2 ** (8 * numberSize), largest);

  const payload = open(keys, number, clear, bytes.subarray(content, end - TAG), bytes.subarray(end - TAG, end));
  if (payload === undefined) return refused('undecryptable');
  if ((first & RESERVED_BITS) !== 0) return refused('bad-reserved-bits');
  return read({ number, payload });
}

/** The number with these last bytes that is closest to the next one expected. */
function wholeNumber(cut: number, window: number, largest: number): number {
  const expected = largest + 1;
  const candidate = expected - (expected % window) + cut;
  if (candidate <= expected - window / 2 && candidate + window < 2 ** 53) return candidate + window;
  return candidate > expected + window / 2 && candidate >= window ? candidate - window : candidate;
}

function open(
  keys: InitialKeys,
  number: number,
  header: Uint8Array,
  content: Uint8Array,
  tag: Uint8Array,
): Uint8Array | undefined {
  const nonce = new Uint8Array(keys.iv);
  for (let i = 1, left = number; left > 0; i++, left = Math.floor(left / 256)) {
    nonce[nonce.length - i] = u8(nonce, nonce.length - i) ^ (left % 256);
  }
  const decipher = createDecipheriv(AEAD, keys.key, nonce, { authTagLength: TAG });
  decipher.setAAD(header);
  decipher.setAuthTag(tag);
  const payload = decipher.update(content);
  try {
    decipher.final();
  } catch {
    // Node says by an exception, and no other way, that the tag is wrong.
    return undefined;
  }
  return payload;
}
