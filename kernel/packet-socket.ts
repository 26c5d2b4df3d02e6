/**
 * Whole Ethernet frames on one interface: AF_PACKET, SOCK_RAW (packet(7)). For announcements and for tests that must
 * send what no honest stack sends, and for hearing advertisements. Blocking with a time limit, or polled; no ring, no
 * thread of its own.
 * The socket may live in another network namespace than the thread that uses it.
 */

import { macText } from '../wire/address-text.ts';
import * as libc from './libc.ts';

const ETH_P_ALL = 0x0003;
const SOL_PACKET = 263;
const PACKET_IGNORE_OUTGOING = 23;
const SO_ATTACH_FILTER = 26;
const ENETDOWN = 100;
const SIOCGIFHWADDR = 0x8927;
const SIOCGIFFLAGS = 0x8913;
const IFF_RUNNING = 0x40;
const IFREQ_LENGTH = 40;
const IFNAMSIZ = 16;

export interface PacketSocketOptions {
  device: string;
  /** Ether type to receive; absent: all; 0: none (a socket that only sends). */
  etherType?: number;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
  /** A receive gives up after so many milliseconds (default 1000). */
  timeoutMs?: number;
  /** Only frames that have this byte at this place: the kernel looks before it hands them over. */
  only?: { at: number; byte: number };
}

export class PacketSocket {
  readonly device: string;
  readonly #fd: number;
  readonly #buffer = new Uint8Array(64 * 1024);
  #open = true;

  private constructor(fd: number, device: string) {
    this.#fd = fd;
    this.device = device;
  }

  static open(options: PacketSocketOptions): PacketSocket {
    const create = () => openBound(options);
    const fd = options.namespace === undefined ? create() : libc.withNamespace(options.namespace, create);
    return new PacketSocket(fd, options.device);
  }

  send(frame: Uint8Array): void {
    libc.send(this.#fd, frame);
  }

  /** Never waits; the errno's name, if it did not go out. */
  trySend(frame: Uint8Array): string | undefined {
    try {
      libc.send(this.#fd, frame, libc.MSG_DONTWAIT);
      return undefined;
    } catch (error) {
      if (error instanceof libc.SystemError) return error.code;
      throw error;
    }
  }

  /** The next frame that comes in, or undefined after the time limit. Frames that go out are not among them. */
  receive(): Uint8Array | undefined {
    const length = libc.receive(this.#fd, this.#buffer, 0, [libc.EAGAIN, libc.EINTR]);
    return length < 0 ? undefined : this.#buffer.slice(0, length);
  }

  /** Readable when a frame waits, or the device went down. */
  get fd(): number {
    return this.#fd;
  }

  /** A frame that waits, valid until the next; undefined: none. */
  take(): Uint8Array | undefined {
    const length = libc.receive(this.#fd, this.#buffer, libc.MSG_DONTWAIT, [libc.EAGAIN, libc.EINTR, ENETDOWN]);
    return length < 0 ? undefined : this.#buffer.subarray(0, length);
  }

  /** MAC address of the device, as the kernel of the socket's own namespace has it (sysfs may show another's). */
  mac(): string {
    const request = new Uint8Array(IFREQ_LENGTH);
    request.set(Buffer.from(this.device).subarray(0, IFNAMSIZ - 1));
    libc.ioctl(this.#fd, SIOCGIFHWADDR, request);
    return macText(request, IFNAMSIZ + 2);
  }

  /** Whether the device is up and has a carrier. */
  running(): boolean {
    const request = new Uint8Array(IFREQ_LENGTH);
    request.set(Buffer.from(this.device).subarray(0, IFNAMSIZ - 1));
    libc.ioctl(this.#fd, SIOCGIFFLAGS, request);
    return (new DataView(request.buffer).getUint16(IFNAMSIZ, true) & IFF_RUNNING) !== 0;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    libc.close(this.#fd);
  }
}

function openBound(options: PacketSocketOptions): number {
  // Protocol 0 until bound to the interface: else frames of every interface would be queued in between.
  const fd = libc.socket(libc.AF_PACKET, libc.SOCK_RAW, 0);
  try {
    libc.setReceiveTimeout(fd, options.timeoutMs ?? 1000);
    libc.setOption(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    if (options.only !== undefined) attachFilter(fd, options.only);
    // struct sockaddr_ll: family, protocol (network order), interface index; the rest is for receiving.
    const address = new Uint8Array(20);
    const view = new DataView(address.buffer);
    view.setUint16(0, libc.AF_PACKET, true);
    view.setUint16(2, options.etherType ?? ETH_P_ALL, false);
    view.setInt32(4, libc.interfaceIndex(options.device), true);
    libc.bind(fd, address);
  } catch (error) {
    libc.close(fd);
    throw error;
  }
  return fd;
}

/** Classic BPF: ldb [at]; jeq #byte, all of it, nothing. */
function attachFilter(fd: number, { at, byte }: { at: number; byte: number }): void {
  // struct sock_filter: code, jump if true, jump if false, k. Long enough to stay where it is.
  const code = new Uint8Array(2048);
  const view = new DataView(code.buffer);
  const lines = [
    [0x30, 0, 0, at],
    [0x15, 0, 1, byte],
    [0x06, 0, 0, 0x40000],
    [0x06, 0, 0, 0],
  ] as const;
  for (const [index, [operation, yes, no, k]] of lines.entries()) {
    view.setUint16(8 * index, operation, true);
    view.setUint8(8 * index + 2, yes);
    view.setUint8(8 * index + 3, no);
    view.setUint32(8 * index + 4, k, true);
  }
  // struct sock_fprog: length, pointer.
  const program = new Uint8Array(16);
  const head = new DataView(program.buffer);
  head.setUint16(0, lines.length, true);
  head.setBigUint64(8, libc.addressOf(code), true);
  libc.setOption(fd, libc.SOL_SOCKET, SO_ATTACH_FILTER, program);
}
