/**
 * What the counters of a set of marks say (own codec and socket). As with the connection table, a long dump yields to
 * the event loop between datagrams; a transaction in between may make it miss elements, which the next one has.
 */
import { decodeSetCounts, encodeSetDump } from '../wire/nft-counts.ts';
import { messageErrno, messageSequence, messageType, NLMSG_DONE, NLMSG_ERROR, splitMessages } from '../wire/nlattr.ts';
import { ENOENT, SystemError } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';
import type { CounterValue } from './nft.ts';

const RECEIVE_SIZE = 64 * 1024;
const DATAGRAMS_PER_TURN = 16;
const SEQUENCE = 1;

/** Mark → its counter, of a set of family inet; empty if there is no such table or set. */
export async function listCounts(
  table: string,
  set: string,
  options: { namespace?: string } = {},
): Promise<Map<number, CounterValue>> {
  const counts = new Map<number, CounterValue>();
  const socket = NetlinkSocket.open({ protocol: NETLINK_NETFILTER, receiveBuffer: 1 << 20, ...options });
  try {
    socket.send(encodeSetDump(SEQUENCE, table, set));
    const buffer = new Uint8Array(RECEIVE_SIZE);
    for (let datagrams = 1; ; datagrams++) {
      for (const message of splitMessages(buffer.subarray(0, socket.receive(buffer)))) {
        if (messageSequence(message) !== SEQUENCE) continue;
        const type = messageType(message);
        if (type === NLMSG_DONE || type === NLMSG_ERROR) {
          const errno = messageErrno(message) ?? 0;
          if (errno !== 0 && errno !== ENOENT) throw new SystemError('nft counts', errno);
          return counts;
        }
        const decoded = decodeSetCounts(message);
        if (!decoded.ok) continue;
        for (const { mark, packets, bytes } of decoded.value) counts.set(mark, { packets, bytes });
      }
      if (datagrams % DATAGRAMS_PER_TURN === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  } finally {
    socket.close();
  }
}
