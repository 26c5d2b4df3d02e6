/**
 * What the counters of a set of marks say (own codec and socket). As with the connection table, a long dump yields to
 * the event loop between datagrams; a transaction in between may make it miss elements, which the next one has.
 */
import { join } from '../wire/bytes.ts';
import { decodeSetCounts, encodeSetDump, encodeSetGet } from '../wire/nft-counts.ts';
import { messageErrno, messageType, NLMSG_DONE, NLMSG_ERROR, splitMessages } from '../wire/nlattr.ts';
import { ENOENT, SystemError } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';
import type { CounterValue } from './nft.ts';

const RECEIVE_SIZE = 64 * 1024;
const DATAGRAMS_PER_TURN = 16;

/** Mark → its counter, of a set of family inet: all, or those of `marks` that are there. Empty without the table or set. */
export async function listCounts(
  table: string,
  set: string,
  { marks, namespace }: { marks?: readonly number[]; namespace?: string } = {},
): Promise<Map<number, CounterValue>> {
  const counts = new Map<number, CounterValue>();
  const requests = marks?.map((mark, index) => encodeSetGet(index, table, set, mark)) ?? [encodeSetDump(0, table, set)];
  if (requests.length === 0) return counts;
  const socket = NetlinkSocket.open({
    protocol: NETLINK_NETFILTER,
    receiveBuffer: 1 << 20,
    ...(namespace !== undefined && { namespace }),
  });
  try {
    socket.send(join(requests));
    const buffer = new Uint8Array(RECEIVE_SIZE);
    let answered = 0;
    for (let datagrams = 1; ; datagrams++) {
      for (const message of splitMessages(buffer.subarray(0, socket.receive(buffer)))) {
        const type = messageType(message);
        if (type === NLMSG_DONE || type === NLMSG_ERROR) {
          const errno = messageErrno(message) ?? 0;
          if (errno !== 0 && errno !== ENOENT) throw new SystemError('nft counts', errno);
          answered++;
          if (answered === requests.length) return counts;
          continue;
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
