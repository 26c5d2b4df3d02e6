/**
 * Receives many netlink datagrams in one system call (recvmmsg(2)) into memory that is there already: one slot each.
 * Layout of struct mmsghdr and struct iovec on 64-bit Linux.
 */
import * as libc from './libc.ts';

const MMSGHDR = 64;
const IOVEC = 16;
const AT_IOV = 16;
const AT_IOVLEN = 24;
/** In words of four bytes. */
const FLAGS_WORD = 12;
const LENGTH_WORD = 14;

const expected = [libc.EAGAIN, libc.EINTR];

export class ReceiveBatch {
  readonly bytes: Uint8Array;
  readonly #slot: number;
  readonly #count: number;
  readonly #headers: Uint8Array;
  readonly #words: Uint32Array;

  /** `count` slots of at least `size` bytes; pages that no datagram reaches are never real memory. */
  constructor(count: number, size: number) {
    this.#count = count;
    this.#slot = (size + 63) & ~63;
    this.bytes = new Uint8Array(count * this.#slot);
    this.#headers = new Uint8Array(count * (MMSGHDR + IOVEC));
    this.#words = new Uint32Array(this.#headers.buffer);
    const view = new DataView(this.#headers.buffer);
    const [slots, headers] = [libc.addressOf(this.bytes), libc.addressOf(this.#headers)];
    for (let at = 0; at < count; at++) {
      const vector = count * MMSGHDR + at * IOVEC;
      view.setBigUint64(at * MMSGHDR + AT_IOV, headers + BigInt(vector), true);
      view.setBigUint64(at * MMSGHDR + AT_IOVLEN, 1n, true);
      view.setBigUint64(vector, slots + BigInt(at * this.#slot), true);
      view.setBigUint64(vector + 8, BigInt(this.#slot), true);
    }
  }

  get count(): number {
    return this.#count;
  }

  /** How many came, 0 to `count`; a negative errno. Never waits. */
  receive(fd: number): number {
    return libc.receiveMany(fd, this.#headers, this.#count, expected);
  }

  start(at: number): number {
    return at * this.#slot;
  }

  /** Bytes received into a slot. */
  length(at: number): number {
    return this.#words[(at * MMSGHDR) / 4 + LENGTH_WORD] ?? 0;
  }

  /** The datagram was longer than its slot. */
  cut(at: number): boolean {
    return ((this.#words[(at * MMSGHDR) / 4 + FLAGS_WORD] ?? 0) & libc.MSG_TRUNC) !== 0;
  }
}
