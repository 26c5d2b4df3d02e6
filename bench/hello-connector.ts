/**
 * A process that opens TCP connections from many pods, some at a time, says a client's hello in each, waits for the first bytes
 * of the answer and closes: what a gateway that reads names must decide about. Client and server are in one thread, with one
 * epoll set: nobody waits for a second thread's turn but for the gateway's. The server answers once it has the whole
 * hello, and closes first, so that it is the one to remember the connection. Each connection has a port of its own.
 *   node hello-connector.js CLIENT_NAMESPACE SERVER_NAMESPACE CERTIFICATES DESTINATION NAME OTHER_NAME SOURCE...
 * then, by IPC: a Task → a Made; `other` asks for OTHER_NAME.
 */
import { isIPv6 } from 'node:net';
import koffi from 'koffi';
import { AF_INET6, EAGAIN, enterNamespace, SOL_SOCKET, setOption, socket, withNamespace } from '../kernel/libc.ts';
import { recordAnswer, recordHello } from './handshake.ts';
import { AF_INET, SOCK_STREAM, socketAddress } from './socket-address.ts';

export interface Task {
  seconds: number;
  /** Connections at a time. */
  concurrency: number;
  /** At most so many. */
  most?: number;
  other?: true;
}
export interface Made {
  /** With the server's bytes. */
  answered: number;
  /** Ended otherwise: reset or closed without a byte. */
  refused: number;
  /** Of which nothing was heard in time. */
  silent: number;
  /** Hellos that came to the server. */
  arrived: number;
  seconds: number;
  /** From the hello's sending to the answer, microseconds. */
  p50: number;
  p99: number;
}

const [SO_REUSEADDR, SO_LINGER] = [2, 13];
const SOCK_NONBLOCK = 0x800;
const EINPROGRESS = 115;
const EPOLL_CTL_ADD = 1;
const [EPOLLIN, EPOLLOUT, EPOLLET] = [1, 4, 2 ** 31];
const EVENT_BYTES = 12;
const EVENTS = 256;
const BACKLOG = 4_096;
const [FIRST_PORT, LAST_PORT] = [1_024, 65_535];
const PORT = 443;
const SILENT_MS = 1_000;

const libc = koffi.load('libc.so.6');
const bind = libc.func('int bind(int, void*, uint32_t)');
const connect = libc.func('int connect(int, void*, uint32_t)');
const listen = libc.func('int listen(int, int)');
const accept4 = libc.func('int accept4(int, void*, void*, int)');
const send = libc.func('int64_t send(int, void*, size_t, int)');
const recv = libc.func('int64_t recv(int, void*, size_t, int)');
const close = libc.func('int close(int)');
const epoll_create1 = libc.func('int epoll_create1(int)');
const epoll_ctl = libc.func('int epoll_ctl(int, int, int, void*)');
const epoll_wait = libc.func('int epoll_wait(int, void*, int, int)');
const MSG_NOSIGNAL = 0x4000;

function must(result: unknown, call: string): number {
  if (Number(result) < 0) throw new Error(`${call}: errno ${koffi.errno()}`);
  return Number(result);
}

const [client = '', server = '', certificates = '', destination = '', name = '', otherName = '', ...sources] =
  process.argv.slice(2);
const family = isIPv6(destination) ? AF_INET6 : AF_INET;
const to = socketAddress(destination, PORT);
const epoll = must(epoll_create1(0), 'epoll_create1');
const listener = withNamespace(server, () => socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
setOption(listener, SOL_SOCKET, SO_REUSEADDR, 1);
must(bind(listener, to, to.length), `bind ${destination}`);
must(listen(listener, BACKLOG), 'listen');
watch(listener, EPOLLIN);
enterNamespace(client);
const hellos = { own: await recordHello(name), other: await recordHello(otherName) };
const answer = await recordAnswer(hellos.own, certificates);
const froms = sources
  .map((source) => socketAddress(source, 0))
  .map((bytes) => ({ bytes, view: new DataView(bytes.buffer) }));

interface Client {
  fd: number;
  since: number;
  said: number;
}
const clients = new Map<number, Client>();
/** Bytes that a connection of the server still waits for, by descriptor. */
const served = new Map<number, number>();
const into = new Uint8Array(65_536);
const events = new Uint8Array(EVENT_BYTES * EVENTS);
const eventView = new DataView(events.buffer);
/** On close: reset, and forget. */
const atOnce = new Uint8Array(Int32Array.of(1, 0).buffer);
let count = 0;
let hello = hellos.own;
let made: Made;
let times: number[] = [];

function watch(fd: number, what: number): void {
  const event = new Uint8Array(EVENT_BYTES);
  const view = new DataView(event.buffer);
  view.setUint32(0, what, true);
  view.setInt32(4, fd, true);
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, event), 'epoll_ctl');
}

const now = (): number => performance.now();

function open(): void {
  const from = froms[count % froms.length];
  if (from === undefined) throw new TypeError('no sources');
  from.view.setUint16(2, FIRST_PORT + (count % (LAST_PORT - FIRST_PORT)));
  count++;
  const fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  must(bind(fd, from.bytes, from.bytes.length), 'bind');
  if (Number(connect(fd, to, to.length)) < 0 && koffi.errno() !== EINPROGRESS) must(-1, 'connect');
  clients.set(fd, { fd, since: now(), said: 0 });
  // Edges: the handshake's end and the answer's coming are told once each.
  watch(fd, EPOLLIN + EPOLLOUT + EPOLLET);
}

function clientTurn(of: Client): void {
  if (of.said === 0) {
    of.said = now();
    // On a veth a whole conversation may take place within this call.
    const sent = Number(send(of.fd, hello, hello.length, MSG_NOSIGNAL));
    if (sent < 0) {
      of.said = 0;
      if (koffi.errno() !== EAGAIN) finish(of, 'refused');
      return;
    }
  }
  const size = Number(recv(of.fd, into, into.length, 0));
  if (size < 0 && koffi.errno() === EAGAIN) return;
  if (size > 0) times.push((now() - of.said) * 1000);
  finish(of, size > 0 ? 'answered' : 'refused');
}

function finish(of: Client, how: 'answered' | 'refused' | 'silent'): void {
  made[how]++;
  if (how === 'silent') setOption(of.fd, SOL_SOCKET, SO_LINGER, atOnce);
  clients.delete(of.fd);
  close(of.fd);
}

function serverTurn(fd: number, left: number): void {
  const size = Number(recv(fd, into, into.length, 0));
  if (size < 0 && koffi.errno() === EAGAIN) return;
  if (size > 0 && size < left) {
    served.set(fd, left - size);
    return;
  }
  if (size > 0) {
    made.arrived++;
    send(fd, answer, answer.length, MSG_NOSIGNAL);
  }
  served.delete(fd);
  close(fd);
}

function acceptAll(): void {
  for (;;) {
    const fd = Number(accept4(listener, null, null, SOCK_NONBLOCK));
    if (fd < 0) return;
    served.set(fd, hello.length);
    watch(fd, EPOLLIN);
  }
}

function turn(timeoutMs: number): void {
  const ready = Number(epoll_wait(epoll, events, EVENTS, timeoutMs));
  for (let at = 0; at < ready; at++) {
    const fd = eventView.getInt32(at * EVENT_BYTES + 4, true);
    if (fd === listener) acceptAll();
    else {
      const of = clients.get(fd);
      const left = served.get(fd);
      // Neither: it was closed in this turn.
      if (of !== undefined) clientTurn(of);
      else if (left !== undefined) serverTurn(fd, left);
    }
  }
}

function work({ seconds, concurrency, most = Number.POSITIVE_INFINITY, other }: Task): Made {
  made = { answered: 0, refused: 0, silent: 0, arrived: 0, seconds: 0, p50: 0, p99: 0 };
  times = [];
  hello = other ? hellos.other : hellos.own;
  const start = now();
  const end = start + seconds * 1000;
  let [begun, looked] = [0, start];
  for (let at = start; at < end && (begun < most || clients.size > 0); at = now()) {
    while (clients.size < concurrency && begun < most) {
      open();
      begun++;
    }
    turn(10);
    if (at - looked < SILENT_MS / 4) continue;
    looked = at;
    for (const of of clients.values()) if (at - of.since > SILENT_MS) finish(of, 'silent');
  }
  made.seconds = (now() - start) / 1000;
  const counted = { ...made };
  // What is under way is of no interest any more, but the next task begins with nothing open.
  for (const of of [...clients.values()]) finish(of, 'silent');
  for (let waited = 0; served.size > 0 && waited < 20; waited++) turn(10);
  for (const fd of served.keys()) close(fd);
  served.clear();
  times.sort((a, b) => a - b);
  const quantile = (share: number): number => times[Math.floor(times.length * share)] ?? Number.NaN;
  return { ...counted, p50: quantile(0.5), p99: quantile(0.99) };
}

process.on('message', (task: Task) => process.send?.(work(task)));
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
