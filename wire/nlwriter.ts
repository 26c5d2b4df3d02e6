/**
 * Writes netlink messages one behind the other into one growing buffer: for batches of many small attributes, where
 * nlattr.ts, which makes an array of each, would be most of the work. Order of bytes as there.
 */
import { NFNL_HEADER, type NfnlRequest } from './nlattr.ts';

const NLA_F_NESTED = 0x8000;

export class NetlinkWriter {
  #bytes: Uint8Array;
  #view: DataView;
  #length = 0;
  #message = 0;

  constructor(capacity = 4096) {
    this.#bytes = new Uint8Array(capacity);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get length(): number {
    return this.#length;
  }

  /** What has been written; of no use after the next write. */
  written(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** The buffer itself, to write into what append() has made room for; of no use after the next append(). */
  get buffer(): Uint8Array {
    return this.#bytes;
  }

  /** Room for so many bytes, zero; returns where it begins. */
  append(bytes: number): number {
    const at = this.#length;
    const end = at + bytes;
    if (end > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(end, 2 * this.#bytes.length));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = end;
    return at;
  }

  /** Takes back all that was written from there on: the buffer there is zero again. */
  cut(length: number): void {
    this.#bytes.fill(0, length, this.#length);
    this.#length = length;
  }

  beginMessage(request: NfnlRequest): void {
    const at = this.append(NFNL_HEADER);
    this.#message = at;
    this.#view.setUint16(at + 4, (request.subsystem << 8) | request.message, true);
    this.#view.setUint16(at + 6, request.flags, true);
    this.#view.setUint32(at + 8, request.sequence ?? 0, true);
    this.#bytes[at + 16] = request.family ?? 0;
    this.#view.setUint16(at + 18, request.resource ?? 0, false);
  }

  endMessage(): void {
    this.#view.setUint32(this.#message, this.#length - this.#message, true);
  }

  /** Flags of the message that was begun last. */
  addFlags(flags: number): void {
    this.#view.setUint16(this.#message + 6, this.#view.getUint16(this.#message + 6, true) | flags, true);
  }

  /** Begins an attribute that holds others; close() it with what this returns. */
  open(type: number): number {
    return this.#head(type | NLA_F_NESTED);
  }

  close(at: number): void {
    const length = this.#length - at;
    if (length > 0xffff) throw new RangeError(`netlink attribute of ${length} bytes`);
    this.#view.setUint16(at, length, true);
  }

  /** An attribute with room for so many bytes; returns where they begin. */
  attribute(type: number, length: number): number {
    const at = this.#head(type);
    const start = this.append((length + 3) & ~3);
    this.#view.setUint16(at, 4 + length, true);
    return start;
  }

  putBytes(type: number, bytes: Uint8Array): void {
    const at = this.attribute(type, bytes.length);
    this.#bytes.set(bytes, at);
  }

  /** Names are ASCII. With the zero at its end, as nftables wants it. */
  putText(type: number, text: string): void {
    const at = this.attribute(type, text.length + 1);
    for (let i = 0; i < text.length; i++) this.#bytes[at + i] = text.charCodeAt(i);
  }

  putU32(type: number, value: number): void {
    const at = this.attribute(type, 4);
    this.#view.setUint32(at, value, false);
  }

  putU16(type: number, value: number): void {
    const at = this.attribute(type, 2);
    this.#view.setUint16(at, value, false);
  }

  putU64(type: number, value: number): void {
    const at = this.attribute(type, 8);
    this.#view.setBigUint64(at, BigInt(value), false);
  }

  #head(type: number): number {
    const at = this.append(4);
    this.#view.setUint16(at + 2, type, true);
    return at;
  }
}
