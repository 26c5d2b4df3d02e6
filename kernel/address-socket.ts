/**
 * Addresses of interfaces by rtnetlink, on the caller's thread and at once: for taking over, where a program to start
 * (iproute-host.ts) would be most of the time. Many go as one request. Adding what is there gives it the new lifetime,
 * removing what is not there is done already: both may be repeated.
 */

import { encodeAddressAdd, encodeAddressRemove, type LinkAddress } from '../wire/rtaddress.ts';
import { errnoName } from './libc.ts';
import { NETLINK_ROUTE, NetlinkSocket } from './netlink-socket.ts';

/** Requests a datagram: their answers stay within the socket's buffer. */
const BATCH = 200;
const EADDRNOTAVAIL = 99;
/** Wait for the kernel, which takes one such request at a time from the whole machine. */
const TIMEOUT_MS = 500;

export class AddressSocket {
  readonly #socket: NetlinkSocket;
  #sequence = 1;

  private constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /** `namespace`: `/run/netns/NAME`; absent: the thread's own. Throws SystemError. */
  static open(namespace?: string): AddressSocket {
    const where = namespace === undefined ? {} : { namespace };
    return new AddressSocket(
      NetlinkSocket.open({
        protocol: NETLINK_ROUTE,
        receiveBuffer: 1 << 20,
        extendedAck: true,
        timeoutMs: TIMEOUT_MS,
        ...where,
      }),
    );
  }

  /** The names of the errors, each once; none: all are there. Throws SystemError when the kernel does not answer. */
  add(addresses: readonly LinkAddress[], validSeconds?: number): string[] {
    return this.#request(addresses, (address, sequence) => encodeAddressAdd(address, sequence, validSeconds), []);
  }

  remove(addresses: readonly LinkAddress[]): string[] {
    return this.#request(addresses, encodeAddressRemove, [EADDRNOTAVAIL]);
  }

  #request(
    addresses: readonly LinkAddress[],
    encode: (address: LinkAddress, sequence: number) => Uint8Array,
    fine: number[],
  ): string[] {
    const errors = new Set<string>();
    for (let from = 0; from < addresses.length; from += BATCH) {
      const messages = addresses.slice(from, from + BATCH).map((address) => encode(address, this.#next()));
      for (const errno of this.#socket.batch(messages)) if (!fine.includes(errno)) errors.add(errnoName(errno));
    }
    return [...errors];
  }

  #next(): number {
    this.#sequence = this.#sequence >= 0x7fffffff ? 1 : this.#sequence + 1;
    return this.#sequence;
  }

  close(): void {
    this.#socket.close();
  }
}
