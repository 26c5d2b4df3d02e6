/**
 * Keys of Initial packets (RFC 9001 §5.2; RFC 9369 §3.3 for version 2): anybody can derive them from the Destination
 * Connection ID of the client's first packet; they keep out of the way of accidents, not of readers. A derivation costs five
 * HMACs, so the caller keeps a cache. Left out: keys of Handshake, 0-RTT and 1-RTT packets, which only the ends have.
 */

import { type CipherGCMTypes, createCipheriv, createHmac } from 'node:crypto';
import { join } from './bytes.ts';

export type QuicVersion = 1 | 2;
export type QuicSide = 'client' | 'server';

export const AEAD: CipherGCMTypes = 'aes-128-gcm';
const HEADER_CIPHER = 'aes-128-ecb';
const KEY_BYTES = 16;
const IV_BYTES = 12;
const SECRET_BYTES = 32;

const salts: Record<QuicVersion, Uint8Array> = {
  1: fromHex('38762cf7f55934b34d179ae6a4c80cadccbb7f0a'),
  2: fromHex('0dede3def700a6db819381be6e269dcbf9bd2ed9'),
};
const sides: Record<QuicSide, Uint8Array> = {
  client: expandInput('client in', SECRET_BYTES),
  server: expandInput('server in', SECRET_BYTES),
};
const labels = { 1: keyInputs('quic'), 2: keyInputs('quicv2') };

function keyInputs(prefix: string): { key: Uint8Array; iv: Uint8Array; hp: Uint8Array } {
  return {
    key: expandInput(`${prefix} key`, KEY_BYTES),
    iv: expandInput(`${prefix} iv`, IV_BYTES),
    hp: expandInput(`${prefix} hp`, KEY_BYTES),
  };
}

/** What HKDF-Expand-Label (RFC 8446 §7.1, no context) hashes for its first block, the only one up to 32 bytes. */
function expandInput(label: string, length: number): Uint8Array {
  const text = new TextEncoder().encode(`tls13 ${label}`);
  return join([Uint8Array.of(0, length, text.length), text, Uint8Array.of(0, 1)]);
}

function fromHex(text: string): Uint8Array {
  return Uint8Array.from(text.match(/../g) ?? [], (octet) => Number.parseInt(octet, 16));
}

function hmac(key: Uint8Array, data: Uint8Array): Uint8Array {
  return createHmac('sha256', key).update(data).digest();
}

/** Of one side of one connection. */
export class InitialKeys {
  readonly key: Uint8Array;
  readonly iv: Uint8Array;
  /** Of header protection. */
  readonly hp: Uint8Array;
  readonly #header;

  constructor(version: QuicVersion, connectionId: Uint8Array, side: QuicSide = 'client') {
    const secret = hmac(hmac(salts[version], connectionId), sides[side]);
    const { key, iv, hp } = labels[version];
    this.key = hmac(secret, key).subarray(0, KEY_BYTES);
    this.iv = hmac(secret, iv).subarray(0, IV_BYTES);
    this.hp = hmac(secret, hp).subarray(0, KEY_BYTES);
    // A block in is a block out, with nothing kept between: one cipher serves all packets.
    this.#header = createCipheriv(HEADER_CIPHER, this.hp, null).setAutoPadding(false);
  }

  /** RFC 9001 §5.4.3; of a sample of 16 bytes, the first five of the answer count. */
  headerMask(sample: Uint8Array): Uint8Array {
    return this.#header.update(sample);
  }
}

/** The client's keys by version and connection ID, the longest unused out first. One for all flows of a worker. */
export class QuicKeyCache {
  readonly #max: number;
  readonly #keys = new Map<string, InitialKeys>();

  constructor(max = 1024) {
    this.#max = max;
  }

  get size(): number {
    return this.#keys.size;
  }

  get(version: QuicVersion, connectionId: Uint8Array): InitialKeys {
    let name = String.fromCharCode(version);
    for (const octet of connectionId) name += String.fromCharCode(octet);
    const known = this.#keys.get(name);
    const keys = known ?? new InitialKeys(version, connectionId);
    // A map keeps the order in which names were set.
    const full = known === undefined && this.#keys.size >= this.#max;
    const out = full ? this.#keys.keys().next().value : name;
    if (out !== undefined) this.#keys.delete(out);
    this.#keys.set(name, keys);
    return keys;
  }
}
