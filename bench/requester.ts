/**
 * A process that sends requests and waits for their answers, one at a time, over TCP connections that stand, of many
 * pods in turn: 64 bytes there, 64 bytes back. Client and server are in one thread, and on veth a packet has arrived when
 * send() returns: what is timed is the way of two packets and their two acknowledgements, and no waking of anybody.
 *   node requester.js CLIENT_NAMESPACE SERVER_NAMESPACE DESTINATION PORT SOURCE...
 * then, by IPC: {seconds} → {requests, seconds, p50, p99} (microseconds)
 */
import { isIPv6 } from 'node:net';
import koffi from 'koffi';
import { AF_INET6, enterNamespace, SOL_SOCKET, setOption, socket, withNamespace } from '../kernel/libc.ts';
import { AF_INET, SOCK_STREAM, socketAddress } from './socket-address.ts';

export interface Requested {
  requests: number;
  seconds: number;
  p50: number;
  p99: number;
}

const [SO_REUSEADDR, SO_RCVTIMEO, SO_SNDTIMEO] = [2, 20, 21];
const [IPPROTO_TCP, TCP_NODELAY, TCP_QUICKACK] = [6, 1, 12];
const BACKLOG = 512;
const SIZE = 64;
/** struct timeval. */
const PATIENCE = new Uint8Array(BigInt64Array.of(2n, 0n).buffer);
const ONE = new Uint8Array(Int32Array.of(1).buffer);

const libc = koffi.load('libc.so.6');
const bind = libc.func('int bind(int, void*, uint32_t)');
const connect = libc.func('int connect(int, void*, uint32_t)');
const listen = libc.func('int listen(int, int)');
const accept = libc.func('int accept(int, void*, void*)');
const send = libc.func('int64_t send(int, void*, size_t, int)');
const recv = libc.func('int64_t recv(int, void*, size_t, int)');
const close = libc.func('int close(int)');
const setsockopt = libc.func('int setsockopt(int, int, int, void*, uint32_t)');

function must(result: unknown, call: string): number {
  if (Number(result) < 0) throw new Error(`${call}: errno ${koffi.errno()}`);
  return Number(result);
}

const [client = '', server = '', destination = '', portText = '', ...sources] = process.argv.slice(2);
const family = isIPv6(destination) ? AF_INET6 : AF_INET;
const to = socketAddress(destination, Number(portText));
enterNamespace(client);

interface Pair {
  client: number;
  server: number;
}

/** Nobody listens between measurements: other generators use the port as well, which rules permit. */
function listening(): number {
  const fd = withNamespace(server, () => socket(family, SOCK_STREAM, 0));
  setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  must(bind(fd, to, to.length), `bind ${destination}`);
  must(listen(fd, BACKLOG), 'listen');
  return fd;
}

function open(source: string, listener: number): Pair {
  const from = socketAddress(source, 0);
  const fd = socket(family, SOCK_STREAM, 0);
  setOption(fd, SOL_SOCKET, SO_SNDTIMEO, PATIENCE);
  must(bind(fd, from, from.length), 'bind');
  must(connect(fd, to, to.length), 'connect');
  const other = must(accept(listener, null, null), 'accept');
  for (const end of [fd, other]) {
    setOption(end, SOL_SOCKET, SO_RCVTIMEO, PATIENCE);
    must(setsockopt(end, IPPROTO_TCP, TCP_NODELAY, ONE, 4), 'TCP_NODELAY');
    must(setsockopt(end, IPPROTO_TCP, TCP_QUICKACK, ONE, 4), 'TCP_QUICKACK');
  }
  return { client: fd, server: other };
}

function work(seconds: number): Requested {
  const listener = listening();
  const pairs = sources.map((source) => open(source, listener));
  const [payload, into] = [new Uint8Array(SIZE), new Uint8Array(SIZE)];
  const times: number[] = [];
  const start = performance.now();
  const end = start + seconds * 1000;
  let now = start;
  for (let at = 0; now < end; at = (at + 1) % pairs.length) {
    const pair = pairs[at] as Pair;
    const began = performance.now();
    must(send(pair.client, payload, SIZE, 0), 'send');
    must(recv(pair.server, into, SIZE, 0), 'request');
    must(send(pair.server, payload, SIZE, 0), 'send');
    must(recv(pair.client, into, SIZE, 0), 'answer');
    now = performance.now();
    times.push((now - began) * 1000);
  }
  for (const pair of pairs) {
    // The server closes first, so that it is the one to remember the connection.
    close(pair.server);
    close(pair.client);
  }
  close(listener);
  times.sort((a, b) => a - b);
  const quantile = (share: number): number => times[Math.floor(times.length * share)] ?? Number.NaN;
  return { requests: times.length, seconds: (now - start) / 1000, p50: quantile(0.5), p99: quantile(0.99) };
}

process.on('message', ({ seconds }: { seconds: number }) => process.send?.(work(seconds)));
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
