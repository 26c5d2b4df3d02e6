/**
 * The packets that see a change come into force, for bench/scale.ts: a small UDP datagram every half millisecond from a
 * pod's address to a destination, each from a port of its own and so a flow of its own; and the server's socket beside
 * it, in the same thread. On veth a datagram is there, or dropped, when its send() returns, so that one clock and one
 * loop know which was the first to pass, or the first to be stopped.
 *   node scale-probe.js CLIENT_NAMESPACE SERVER_NAMESPACE PORT     then, by IPC: Watch → {watching}, Seen
 */
import koffi from 'koffi';
import { EAGAIN, enterNamespace, MSG_DONTWAIT, receive, SOL_SOCKET, setOption, withNamespace } from '../kernel/libc.ts';
import { AF_INET, SOCK_DGRAM, socketAddress } from './socket-address.ts';

export interface Watch {
  source: string;
  destination: string;
  /** What to wait for: that datagrams pass, or that they do not. */
  passes: boolean;
  timeoutMs: number;
}

export interface Seen {
  /** When the first datagram was sent that passed, or the first that did not; nanoseconds, monotonic. '': never. */
  at: string;
  /** Since the datagram before it, to which the opposite happened. */
  sinceLastMs: number;
  sent: number;
}

const SO_REUSEADDR = 2;
const INTERVAL_MS = 0.5;
/** So many in a row do not pass until it is no accident. */
const STOPPED = 20;
/** Ports of datagrams, one after another; none is used again while its flow may live. */
const [FIRST_PORT, LAST_PORT] = [10_000, 60_000];

const libc = koffi.load('libc.so.6');
const socket = libc.func('int socket(int, int, int)');
const bind = libc.func('int bind(int, void*, uint32_t)');
const sendto = libc.func('int64_t sendto(int, void*, size_t, int, void*, uint32_t)');
const close = libc.func('int close(int)');

const [client = '', server = '', port = ''] = process.argv.slice(2);
const receiver = withNamespace(server, () => {
  const fd = Number(socket(AF_INET, SOCK_DGRAM, 0));
  const any = socketAddress('0.0.0.0', Number(port));
  if (Number(bind(fd, any, any.length)) !== 0) throw new Error(`bind: errno ${koffi.errno()}`);
  return fd;
});
enterNamespace(client);
const payload = new Uint8Array(8);
const received = new Uint8Array(64);
const sequence = new DataView(payload.buffer);
let number = 0;
let nextPort = FIRST_PORT;

/** Sends the next datagram and says whether it arrived. */
function probe(source: string, to: Uint8Array): boolean {
  const fd = Number(socket(AF_INET, SOCK_DGRAM, 0));
  try {
    setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    nextPort = nextPort >= LAST_PORT ? FIRST_PORT : nextPort + 1;
    const from = socketAddress(source, nextPort);
    if (Number(bind(fd, from, from.length)) !== 0) throw new Error(`bind ${source}: errno ${koffi.errno()}`);
    sequence.setUint32(0, ++number);
    sendto(fd, payload, payload.length, 0, to, to.length);
  } finally {
    close(fd);
  }
  for (;;) {
    const bytes = receive(receiver, received, MSG_DONTWAIT, [EAGAIN]);
    if (bytes < 0) return false;
    if (new DataView(received.buffer).getUint32(0) === number) return true;
  }
}

function watch({ source, destination, passes, timeoutMs }: Watch): Seen {
  const to = socketAddress(destination, Number(port));
  const pause = new Int32Array(new SharedArrayBuffer(4));
  const end = performance.now() + timeoutMs;
  let [sent, row] = [0, 0];
  let [at, before] = [0n, process.hrtime.bigint()];
  while (performance.now() < end) {
    const now = process.hrtime.bigint();
    sent++;
    if (probe(source, to) !== passes) {
      row = 0;
      before = now;
    } else {
      if (row++ === 0) at = now;
      if (passes || row >= STOPPED) return { at: String(at), sinceLastMs: Number(at - before) / 1e6, sent };
    }
    Atomics.wait(pause, 0, 0, INTERVAL_MS);
  }
  return { at: '', sinceLastMs: 0, sent };
}

process.on('message', (order: Watch) => {
  process.send?.({ watching: true }, () => process.send?.(watch(order)));
});
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
