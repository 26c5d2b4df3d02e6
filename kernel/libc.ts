/**
 * The system calls that Node does not have, through koffi: sockets of families other than IP, poll, eventfd, setns.
 * Each call throws `SystemError` (stable errno name) unless its errno is one that the caller expects, which comes
 * back as a negative number: -EAGAIN is no exception in a receive loop.
 * 64-bit Linux only. koffi may be loaded by any number of threads.
 */

import { closeSync, openSync, readSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import koffi from 'koffi';

const libc = koffi.load('libc.so.6');
type Call = (...args: unknown[]) => number;
const declare = (prototype: string): Call => libc.func(prototype) as unknown as Call;

const call = {
  socket: declare('int socket(int, int, int)'),
  bind: declare('int bind(int, void*, uint32_t)'),
  getsockname: declare('int getsockname(int, void*, void*)'),
  setsockopt: declare('int setsockopt(int, int, int, void*, uint32_t)'),
  send: declare('int64_t send(int, void*, size_t, int)'),
  sendto: declare('int64_t sendto(int, void*, size_t, int, void*, uint32_t)'),
  recv: declare('int64_t recv(int, void*, size_t, int)'),
  recvmmsg: declare('int recvmmsg(int, void*, unsigned int, int, void*)'),
  memmove: declare('uintptr_t memmove(void*, void*, size_t)'),
  poll: declare('int poll(void*, uint64_t, int)'),
  eventfd: declare('int eventfd(unsigned int, int)'),
  write: declare('int64_t write(int, void*, size_t)'),
  close: declare('int close(int)'),
  setns: declare('int setns(int, int)'),
  setpriority: declare('int setpriority(int, unsigned int, int)'),
  prctl: declare('int prctl(int, const char*, unsigned long, unsigned long, unsigned long)'),
  ioctl: declare('int ioctl(int, unsigned long, void*)'),
  if_nametoindex: declare('unsigned int if_nametoindex(const char*)'),
};

export const EAGAIN = 11;
export const EINTR = 4;
export const ENOENT = 2;
export const EEXIST = 17;
export const ENOBUFS = 105;

export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_NETLINK = 16;
export const AF_PACKET = 17;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0x80000;
export const MSG_DONTWAIT = 0x40;
export const MSG_TRUNC = 0x20;
export const SOL_SOCKET = 1;
export const SO_RCVTIMEO = 20;
export const SO_MARK = 36;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
const EFD_CLOEXEC = 0x80000;
const EFD_NONBLOCK = 0x800;
const CLONE_NEWNET = 0x40000000;
export const POLLIN = 1;

/** A failed call: `code` is the errno's name, `op` the call. */
export class SystemError extends Error {
  readonly code: string;
  readonly op: string;
  readonly errno: number;

  constructor(op: string, errno: number) {
    const code = errnoName(errno);
    super(`${op}: ${code}`);
    this.name = 'SystemError';
    this.code = code;
    this.op = op;
    this.errno = errno;
  }
}

export function errnoName(errno: number): string {
  try {
    return getSystemErrorName(-errno);
  } catch {
    return `errno ${errno}`;
  }
}

function checked(op: string, result: number, expected: readonly number[] = []): number {
  const value = Number(result);
  if (value >= 0) return value;
  const errno = koffi.errno();
  if (expected.includes(errno)) return -errno;
  throw new SystemError(op, errno);
}

export function socket(family: number, type: number, protocol: number): number {
  return checked('socket', call.socket(family, type | SOCK_CLOEXEC, protocol));
}

export function bind(fd: number, address: Uint8Array): void {
  checked('bind', call.bind(fd, address, address.length));
}

/** The address that a socket has, into so many bytes. */
export function socketName(fd: number, length: number): Uint8Array {
  const address = new Uint8Array(length);
  checked('getsockname', call.getsockname(fd, address, new Uint8Array(Uint32Array.of(length).buffer)));
  return address;
}

export function setOption(fd: number, level: number, name: number, value: number | Uint8Array): void {
  const bytes = typeof value === 'number' ? new Uint8Array(Int32Array.of(value).buffer) : value;
  checked('setsockopt', call.setsockopt(fd, level, name, bytes, bytes.length));
}

/** SO_RCVTIMEO: a blocking receive gives up (EAGAIN) after so many milliseconds. */
export function setReceiveTimeout(fd: number, milliseconds: number): void {
  const timeval = BigInt64Array.of(
    BigInt(Math.floor(milliseconds / 1000)),
    BigInt(Math.floor(milliseconds % 1000) * 1000),
  );
  setOption(fd, SOL_SOCKET, SO_RCVTIMEO, new Uint8Array(timeval.buffer));
}

/** The first `length` bytes. */
export function send(fd: number, bytes: Uint8Array, flags = 0, length = bytes.length): number {
  return checked('send', call.send(fd, bytes, length, flags));
}

/** To that address; bytes sent, or the negative errno if `expected` lists it. */
export function sendTo(
  fd: number,
  bytes: Uint8Array,
  address: Uint8Array,
  flags = 0,
  expected: readonly number[] = [],
): number {
  return checked('sendto', call.sendto(fd, bytes, bytes.length, flags, address, address.length), expected);
}

/** Bytes received, or the negative errno if `expected` lists it. */
export function receive(fd: number, into: Uint8Array, flags: number, expected: readonly number[] = []): number {
  return checked('recv', call.recv(fd, into, into.length, flags), expected);
}

/**
 * Datagrams received at once, or the negative errno if `expected` lists it. `headers`: so many struct mmsghdr, whose
 * vectors hold addresses (addressOf). Never waits.
 */
export function receiveMany(fd: number, headers: Uint8Array, count: number, expected: readonly number[] = []): number {
  return checked('recvmmsg', call.recvmmsg(fd, headers, count, MSG_DONTWAIT, null), expected);
}

/** Where an array's memory is. It stays there as long as the array's buffer lives, which the caller sees to. */
export function addressOf(bytes: Uint8Array): bigint {
  if (bytes.length < ON_HEAP_MAX) throw new RangeError('a short array may lie on the heap, where it moves');
  return BigInt(call.memmove(bytes, bytes, 0));
}
/** V8 keeps typed arrays up to 64 bytes on its heap; far above that to be safe. */
const ON_HEAP_MAX = 1024;

/** poll(2) over the same few descriptors again and again: allocates nothing. */
export class PollSet {
  readonly #entries: Uint8Array;
  readonly #events: Int16Array;
  readonly #count: number;

  constructor(fds: readonly number[]) {
    this.#count = fds.length;
    this.#entries = new Uint8Array(8 * fds.length);
    this.#events = new Int16Array(this.#entries.buffer);
    const view = new DataView(this.#entries.buffer);
    for (const [index, fd] of fds.entries()) {
      view.setInt32(8 * index, fd, true);
      view.setInt16(8 * index + 4, POLLIN, true);
    }
  }

  /** Sleeps until one is readable or has an error, at most so long; a signal ends it early. */
  wait(timeoutMs: number): void {
    const answer = checked('poll', call.poll(this.#entries, this.#count, timeoutMs), interrupted);
    if (answer < 0) for (let at = 0; at < this.#count; at++) this.#events[4 * at + 3] = 0;
  }

  /** Whether the last wait found it so. */
  ready(index: number): boolean {
    return this.#events[4 * index + 3] !== 0;
  }
}
const interrupted = [EINTR];

/** Sleeps until one of the descriptors is readable or has an error; says which. Signals only restart it. */
export function poll(fds: readonly number[], timeoutMs = -1): boolean[] {
  const entries = new Uint8Array(8 * fds.length);
  const view = new DataView(entries.buffer);
  for (const [index, fd] of fds.entries()) {
    view.setInt32(8 * index, fd, true);
    view.setInt16(8 * index + 4, POLLIN, true);
  }
  while (checked('poll', call.poll(entries, fds.length, timeoutMs), [EINTR]) === -EINTR);
  return fds.map((_, index) => view.getInt16(8 * index + 6, true) !== 0);
}

/** A descriptor that `signal` makes readable, for waking a thread that polls. */
export function eventfd(): number {
  return checked('eventfd', call.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

export function signal(fd: number): void {
  checked('write', call.write(fd, new Uint8Array(BigUint64Array.of(1n).buffer), 8), [EAGAIN]);
}

/** Takes back all signals. */
export function drainEvent(fd: number): void {
  const count = Buffer.alloc(8);
  try {
    readSync(fd, count);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
  }
}

/** Writes the answer into `argument`. */
export function ioctl(fd: number, request: number, argument: Uint8Array): void {
  checked('ioctl', call.ioctl(fd, request, argument));
}

export function close(fd: number): void {
  checked('close', call.close(fd));
}

const PR_SET_NAME = 15;

/** What `top -H` and /proc call this thread; 15 bytes of it. */
export function setThreadName(name: string): void {
  checked('prctl', call.prctl(PR_SET_NAME, name, 0, 0, 0));
}

const EACCES = 13;
const EPERM = 1;

/** Nice value of this thread, not of its process (setpriority(2)); false: one that may not be less nice. */
export function setThreadNice(nice: number): boolean {
  return checked('setpriority', call.setpriority(0, 0, nice), [EACCES, EPERM]) >= 0;
}

/** Index of a network interface in the current network namespace. */
export function interfaceIndex(name: string): number {
  const index = call.if_nametoindex(name);
  if (index === 0) throw new SystemError(`if_nametoindex ${name}`, koffi.errno());
  return index;
}

/**
 * Runs a synchronous function inside a network namespace (`/run/netns/NAME`) and returns to the present one: a socket
 * belongs to the namespace in which it was opened, for ever. Only this thread changes, and only for the call.
 */
export function withNamespace<T>(name: string, run: () => T): T {
  const home = openSync('/proc/thread-self/ns/net', 'r');
  try {
    enterNamespace(name);
    try {
      return run();
    } finally {
      checked('setns', call.setns(home, CLONE_NEWNET));
    }
  } finally {
    closeSync(home);
  }
}

/** Moves this thread into a network namespace for good: for a worker thread that does all its work there. */
export function enterNamespace(name: string): void {
  const fd = openSync(`/run/netns/${name}`, 'r');
  try {
    checked('setns', call.setns(fd, CLONE_NEWNET));
  } finally {
    closeSync(fd);
  }
}
