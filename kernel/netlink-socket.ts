/**
 * A netlink socket: open, send, receive, close. Blocking with a time limit (requests and dumps, on the caller's
 * thread) or polled (event-worker.ts). No queue, no thread of its own.
 * `npm:netlink` does not serve here: an overrun aborts the process (measured.md, part 1, finding 3).
 */

import { write } from 'node:fs';
import { promisify } from 'node:util';
import { join } from '../wire/bytes.ts';
import { messageErrno, messageSequence, messageType, NLMSG_ERROR, splitMessages } from '../wire/nlattr.ts';
import * as libc from './libc.ts';

export const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;
/** NFNLGRP_NFTABLES */
export const NFTABLES_GROUP = 7;
export const NFTABLES_BIT = 1 << (NFTABLES_GROUP - 1);
const SOL_NETLINK = 270;
const NETLINK_ADD_MEMBERSHIP = 1;
const NETLINK_DROP_MEMBERSHIP = 2;
const NETLINK_NO_ENOBUFS = 5;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;

const writeAside = promisify(write);

export interface NetlinkSocketOptions {
  protocol: number;
  /** Bit mask of multicast groups 1 to 32: group n is bit n - 1. */
  groups?: number;
  /** Bytes; past the limit of net.core.rmem_max, which needs CAP_NET_ADMIN. */
  receiveBuffer?: number;
  /** Lose messages silently instead of ENOBUFS. */
  noEnobufs?: boolean;
  /** Errors say in words what the kernel objects to, and leave the request out (wire/netlink-ack.ts). */
  extendedAck?: boolean;
  /** Network namespace `/run/netns/NAME` to live in; absent: the thread's own. */
  namespace?: string;
  /** A blocking receive fails after so many milliseconds. */
  timeoutMs?: number;
}

export class NetlinkSocket {
  readonly fd: number;
  /** For answers; only if there is a request. */
  #answers: Uint8Array | undefined;
  #open = true;

  private constructor(fd: number) {
    this.fd = fd;
  }

  static open(options: NetlinkSocketOptions): NetlinkSocket {
    const create = () => libc.socket(libc.AF_NETLINK, libc.SOCK_RAW, options.protocol);
    const socket = new NetlinkSocket(
      options.namespace === undefined ? create() : libc.withNamespace(options.namespace, create),
    );
    try {
      if (options.receiveBuffer !== undefined) {
        libc.setOption(socket.fd, libc.SOL_SOCKET, libc.SO_RCVBUFFORCE, options.receiveBuffer);
      }
      if (options.noEnobufs) libc.setOption(socket.fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
      if (options.extendedAck) {
        for (const option of [NETLINK_CAP_ACK, NETLINK_EXT_ACK]) libc.setOption(socket.fd, SOL_NETLINK, option, 1);
      }
      libc.setReceiveTimeout(socket.fd, options.timeoutMs ?? 2000);
      // struct sockaddr_nl: family, padding, port id (0: the kernel chooses), groups.
      const address = new Uint8Array(12);
      const view = new DataView(address.buffer);
      view.setUint16(0, libc.AF_NETLINK, true);
      view.setUint32(8, options.groups ?? 0, true);
      libc.bind(socket.fd, address);
    } catch (error) {
      socket.close();
      throw error;
    }
    return socket;
  }

  /** Its netlink port, which events of what it asked for carry. */
  get port(): number {
    const name = libc.socketName(this.fd, 12);
    return new DataView(name.buffer).getUint32(4, true);
  }

  /** Joins or leaves the multicast group of that number. */
  hear(group: number, on: boolean): void {
    libc.setOption(this.fd, SOL_NETLINK, on ? NETLINK_ADD_MEMBERSHIP : NETLINK_DROP_MEMBERSHIP, group);
  }

  send(bytes: Uint8Array): void {
    libc.send(this.fd, bytes);
  }

  /** What the kernel does with it, it does in a thread of Node's pool: this one goes on meanwhile. */
  async sendAside(bytes: Uint8Array): Promise<void> {
    await writeAside(this.fd, bytes);
  }

  /** Bytes of one datagram; throws SystemError (EAGAIN after the time limit). */
  receive(into: Uint8Array): number {
    return libc.receive(this.fd, into, 0);
  }

  /** Sends one request and waits for its acknowledgement; throws SystemError with the kernel's errno. */
  request(op: string, message: Uint8Array): void {
    const [errno] = this.batch([message]);
    if (errno !== undefined) throw new libc.SystemError(op, errno);
  }

  /**
   * Sends requests as one datagram and waits until the last, which alone asks for an acknowledgement, is answered: the
   * errno of each that failed. The kernel takes them in their order. Other messages that come meanwhile are lost.
   */
  batch(messages: readonly Uint8Array[]): number[] {
    const [first, last] = [messages[0], messages.at(-1)];
    if (first === undefined || last === undefined) return [];
    return this.exchange(messages.length === 1 ? first : join(messages), messageSequence(first), messageSequence(last));
  }

  /** The same for requests that are one behind the other already, numbered from `from` to `to`. */
  exchange(requests: Uint8Array, from: number, to: number): number[] {
    this.send(requests);
    const failures: number[] = [];
    this.#answers ??= new Uint8Array(32 * 1024);
    const buffer = this.#answers;
    for (;;) {
      const length = this.receive(buffer);
      for (const answer of splitMessages(buffer.subarray(0, length))) {
        const sequence = messageSequence(answer);
        if (messageType(answer) !== NLMSG_ERROR || sequence < from || sequence > to) continue;
        const errno = messageErrno(answer);
        if (errno !== undefined && errno !== 0) failures.push(errno);
        if (errno !== undefined && sequence === to) return failures;
      }
    }
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    libc.close(this.fd);
  }
}
