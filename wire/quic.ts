/**
 * The client's side of a QUIC handshake (RFC 9000, RFC 9369) as far as its hello: Initial packets, coalesced or in several
 * datagrams and in any order, decrypted, and the CRYPTO frames in them put together. Unlike a reader of streams it keeps
 * what came: one `QuicHelloReader` a flow, given each datagram once. Of bytes that come twice the first count, and other
 * bytes in the same place are refused: which of them a server takes is its own affair. A flow is one connection until its
 * hello is read. Behind it a second may come, for which the server asked (HelloRetryRequest): under the keys of the first, to
 * the connection ID of the server's choice. Left out: what servers send, 0-RTT data, and further connections from the same
 * port. An Initial packet that its own connection ID's keys open begins such a connection, or the same one anew after a
 * Retry: a new reader does not call it `undecryptable`.
 */

import type { QuicKeyCache, QuicVersion } from './quic-keys.ts';
import { type LongHeader, openInitial, packetReasons, parseLongHeader, QuicCursor } from './quic-packet.ts';
import { CryptoStream, streamReasons } from './quic-stream.ts';
import { MORE, type Reading, read, refused } from './reading.ts';
import { type ClientHello, type HelloLimits, helloLimits, helloReasons, readHelloMessage } from './tls-hello.ts';

export const quicReasons = {
  ...helloReasons,
  ...packetReasons,
  ...streamReasons,
  'short-datagram': 'an Initial packet in a datagram of under 1,200 bytes, which servers must ignore',
  'too-many-datagrams': 'a hello over more datagrams than are read',
  'too-many-bytes': 'more bytes of datagrams than are read before the hello is whole',
  'too-many-frames': 'more frames than are read before the hello is whole',
  'several-connections': 'packets of another connection or version before the hello is whole, or in its datagram',
  'early-data-first': '0-RTT data before the hello is whole',
  'not-initial': 'a Handshake or Retry packet before the hello is whole',
  'bad-frame': 'a frame that Initial packets may not have, or one that is cut short, or none at all',
  'other-second-hello': 'a second hello that names another server than the first',
  closed: 'the client closed the connection before its hello was whole',
} as const;
export type QuicReason = keyof typeof quicReasons;

export interface QuicLimits extends HelloLimits {
  readonly datagrams: number;
  /** Bytes of datagrams before the hello is whole. */
  readonly bytes: number;
  /** Frames before the hello is whole. Chrome cuts its hello into some tens, with padding between. */
  readonly frames: number;
  readonly tokenBytes: number;
}

/** A hello with post-quantum key shares takes two datagrams, and is sent again twice or three times. */
export const quicLimits: QuicLimits = {
  ...helloLimits,
  datagrams: 16,
  bytes: 32_768,
  frames: 512,
  tokenBytes: 1024,
};

export interface QuicHello {
  readonly version: QuicVersion;
  /** Of the client's first packet, which names the connection until the server has answered. A copy. */
  readonly connectionId: Uint8Array;
  /** Its `length` is that of the message. */
  readonly hello: ClientHello;
}

/** RFC 9000 §14.1. */
const DATAGRAM_MIN = 1200;
/** RFC 9000 §7.2. */
const FIRST_CONNECTION_ID_MIN = 8;

const FRAME_PADDING = 0x00;
const FRAME_PING = 0x01;
const FRAME_ACK = 0x02;
const FRAME_ACK_ECN = 0x03;
const FRAME_CRYPTO = 0x06;
const FRAME_CONNECTION_CLOSE = 0x1c;

export class QuicHelloReader {
  readonly #limits: QuicLimits;
  readonly #stream: CryptoStream;
  #version: QuicVersion | undefined;
  #connectionId: Uint8Array = new Uint8Array(0);
  #largest = -1;
  #datagrams = 0;
  #bytes = 0;
  #frames = 0;
  /** Bytes of the handshake that were read as hellos. */
  #length = 0;
  #answer: Reading<QuicHello, QuicReason> = MORE;

  constructor(limits: QuicLimits = quicLimits) {
    this.#limits = limits;
    this.#stream = new CryptoStream(limits.helloBytes);
  }

  /** The next datagram of the client. An answer other than `more` stays; later datagrams are not looked at. */
  take(datagram: Uint8Array, keys: QuicKeyCache): Reading<QuicHello, QuicReason> {
    if (this.#answer.state !== 'more') return this.#answer;
    this.#answer = this.#take(datagram, keys);
    if (this.#answer.state === 'refused') this.#stream.clear();
    return this.#answer;
  }

  /**
   * Of a connection whose hello was read, a later datagram. `foreign`: it is not of this connection, as far as its keys tell.
   * `repeated`: it carries nothing of the handshake but bytes that were read, as when they are sent again. Else it brings bytes
   * of a second hello, of which the answer is what has come so far.
   */
  follow(datagram: Uint8Array, keys: QuicKeyCache): 'foreign' | 'repeated' | Reading<ClientHello, QuicReason> {
    if (this.#answer.state !== 'read') return 'foreign';
    this.#frames = 0;
    for (let at = 0; at < datagram.length && (at === 0 || ((datagram[at] ?? 0) & 0x80) !== 0); ) {
      const parsed = parseLongHeader(datagram, at, this.#limits.tokenBytes);
      if (parsed.state !== 'read' || parsed.value.version !== this.#version) return 'foreign';
      const header = parsed.value;
      at = header.end;
      // Under keys that only the ends have.
      if (header.type !== 'initial') continue;
      const packet = openInitial(datagram, header, keys.get(header.version, this.#connectionId), this.#largest);
      if (packet.state !== 'read') return 'foreign';
      const wrong = this.#readFrames(packet.value.payload);
      if (wrong === 'closed') return 'repeated';
      if (wrong !== undefined) return refused(wrong);
      this.#largest = Math.max(this.#largest, packet.value.number);
    }
    return this.#stream.end > this.#length ? this.#second(this.#answer.value.hello) : 'repeated';
  }

  #second(first: ClientHello): Reading<ClientHello, QuicReason> {
    const { prefix, end } = this.#stream;
    const hello = readHelloMessage(prefix.subarray(this.#length), this.#limits);
    if (hello.state !== 'read') return hello;
    if (end > prefix.length) return refused('bytes-after-hello');
    if (hello.value.serverName !== first.serverName) return refused('other-second-hello');
    this.#length = prefix.length;
    return hello;
  }

  #take(datagram: Uint8Array, keys: QuicKeyCache): Reading<QuicHello, QuicReason> {
    this.#bytes += datagram.length;
    if (++this.#datagrams > this.#limits.datagrams) return refused('too-many-datagrams');
    if (this.#bytes > this.#limits.bytes) return refused('too-many-bytes');
    if (datagram.length === 0) return refused('not-quic');
    let answer: Reading<QuicHello, QuicReason> = MORE;
    for (let at = 0; at < datagram.length; ) {
      // Nobody can open a packet with a short header yet: what has no long one is filling.
      if (at > 0 && ((datagram[at] ?? 0) & 0x80) === 0) break;
      const parsed = parseLongHeader(datagram, at, this.#limits.tokenBytes);
      if (parsed.state !== 'read') return parsed;
      const header = parsed.value;
      at = header.end;
      const whole = answer.state === 'read';
      if (header.type === '0-rtt' && !whole) return refused('early-data-first');
      if (header.type === 'handshake' || header.type === 'retry') return refused('not-initial');
      const other = this.#connect(header, datagram.length);
      if (other !== undefined) return refused(other);
      if (whole) continue;
      answer = this.#initial(datagram, header, keys);
      if (answer.state === 'refused') return answer;
    }
    return answer;
  }

  /** Whether a packet belongs to the flow's connection, which the first one makes. */
  #connect({ version, destination }: LongHeader, datagram: number): QuicReason | undefined {
    if (datagram < DATAGRAM_MIN) return 'short-datagram';
    if (this.#version === undefined) {
      if (destination.length < FIRST_CONNECTION_ID_MIN) return 'bad-connection-id';
      this.#version = version;
      this.#connectionId = new Uint8Array(destination);
      return undefined;
    }
    const same = version === this.#version && equal(destination, this.#connectionId);
    return same ? undefined : 'several-connections';
  }

  #initial(datagram: Uint8Array, header: LongHeader, keys: QuicKeyCache): Reading<QuicHello, QuicReason> {
    const { version } = header;
    const packet = openInitial(datagram, header, keys.get(version, this.#connectionId), this.#largest);
    if (packet.state !== 'read') return packet;
    this.#largest = Math.max(this.#largest, packet.value.number);
    const wrong = this.#readFrames(packet.value.payload);
    if (wrong !== undefined) return refused(wrong);
    const hello = readHelloMessage(this.#stream.prefix, this.#limits);
    if (hello.state !== 'read') return hello;
    // Also what came ahead of a gap: none is left, and nothing may lie behind the hello.
    if (this.#stream.end > this.#stream.prefix.length) return refused('bytes-after-hello');
    this.#length = this.#stream.end;
    return read({ version, connectionId: this.#connectionId, hello: hello.value });
  }

  #readFrames(payload: Uint8Array): QuicReason | undefined {
    const cursor = new QuicCursor(payload, 0, payload.length);
    if (cursor.done) return 'bad-frame';
    while (!cursor.done) {
      // Types are sent in their shortest form (RFC 9000 §12.4), and all that an Initial may have are below 64.
      const type = cursor.u8();
      if (++this.#frames > this.#limits.frames) return 'too-many-frames';
      if (type === FRAME_PADDING) {
        // A run of it counts as one.
        cursor.skipZeros();
        continue;
      }
      if (type === FRAME_PING) continue;
      if (type === FRAME_CRYPTO) {
        const offset = cursor.varint();
        const size = cursor.varint();
        const at = cursor.skip(size);
        if (cursor.short) return 'bad-frame';
        const wrong = this.#stream.put(offset, payload.subarray(at, at + size));
        if (wrong !== undefined) return wrong;
      } else if (type === FRAME_ACK || type === FRAME_ACK_ECN) skipAck(cursor, type);
      else return type === FRAME_CONNECTION_CLOSE ? 'closed' : 'bad-frame';
    }
    return cursor.short ? 'bad-frame' : undefined;
  }
}

/** RFC 9000 §19.3. The count of ranges is the sender's word; the bytes at hand end the walk. */
function skipAck(cursor: QuicCursor, type: number): void {
  cursor.varint();
  cursor.varint();
  const ranges = cursor.varint();
  cursor.varint();
  for (let range = 0; range < ranges && !cursor.short; range++) {
    cursor.varint();
    cursor.varint();
  }
  if (type === FRAME_ACK_ECN) for (let count = 0; count < 3; count++) cursor.varint();
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((octet, at) => octet === b[at]);
}
