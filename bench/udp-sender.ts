/**
 * A process that floods small UDP datagrams from many sources, by sendmmsg through koffi: 64 datagrams a call, so that
 * JavaScript costs a per cent. It lives as long as its topology, so that no start of Node is in a measurement.
 *   node udp-sender.js NAMESPACE DESTINATION PORT FLOWS SOURCE...     then, by IPC: {seconds} → {sent, seconds}
 */
import { isIPv6 } from 'node:net';
import koffi from 'koffi';
import { AF_INET6, enterNamespace, socket } from '../kernel/libc.ts';
import { AF_INET, SOCK_DGRAM, socketAddress } from './socket-address.ts';

const BATCH = 64;
/** 14 + 20 + 8 + 18 = 60 bytes: the smallest Ethernet frame over IPv4. */
const PAYLOAD = 18;
const MSGHDR = 64;
const IOVEC = 16;

const libc = koffi.load('libc.so.6');
const bind = libc.func('int bind(int, void*, uint32_t)');
const connect = libc.func('int connect(int, void*, uint32_t)');
const sendmmsg = libc.func('int sendmmsg(int, void*, unsigned int, int)');

function openFlow(source: string, destination: string, port: number): number {
  const fd = socket(isIPv6(source) ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
  const from = socketAddress(source, 0);
  const to = socketAddress(destination, port);
  if (bind(fd, from, from.length) !== 0) throw new Error(`bind ${source}: errno ${koffi.errno()}`);
  if (connect(fd, to, to.length) !== 0) throw new Error(`connect ${destination}: errno ${koffi.errno()}`);
  return fd;
}

/** BATCH struct mmsghdr that all send the same payload; memory that never moves. */
function batchOfMessages(): unknown {
  const memory = koffi.alloc('uint8_t', BATCH * (MSGHDR + IOVEC) + PAYLOAD);
  const start = koffi.address(memory);
  const view = new DataView(koffi.view(memory, BATCH * (MSGHDR + IOVEC) + PAYLOAD));
  const vectors = BATCH * MSGHDR;
  for (let at = 0; at < BATCH; at++) {
    const vector = vectors + at * IOVEC;
    view.setBigUint64(at * MSGHDR + 16, start + BigInt(vector), true); // msg_iov
    view.setBigUint64(at * MSGHDR + 24, 1n, true); // msg_iovlen
    view.setBigUint64(vector, start + BigInt(BATCH * (MSGHDR + IOVEC)), true);
    view.setBigUint64(vector + 8, BigInt(PAYLOAD), true);
  }
  return memory;
}

function flood(flows: number[], messages: unknown, seconds: number): { sent: number; seconds: number } {
  let sent = 0;
  const start = process.hrtime.bigint();
  const end = start + BigInt(Math.round(seconds * 1e9));
  let now = start;
  while (now < end) {
    for (const fd of flows) {
      const count = sendmmsg(fd, messages, BATCH, 0);
      if (count > 0) sent += count;
    }
    now = process.hrtime.bigint();
  }
  return { sent, seconds: Number(now - start) / 1e9 };
}

const [namespace = '', destination = '', port = '', flowCount = '', ...sources] = process.argv.slice(2);
enterNamespace(namespace);
const flows = Array.from({ length: Number(flowCount) }, (_, at) =>
  openFlow(sources[at % sources.length] ?? '', destination, Number(port)),
);
const messages = batchOfMessages();
process.on('message', ({ seconds }: { seconds: number }) => process.send?.(flood(flows, messages, seconds)));
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
