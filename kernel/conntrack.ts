/**
 * The kernel's connection table: list it, end flows by deleting their entries (ctnetlink, own codec and socket).
 * One socket per call, so that calls cannot mix their answers. A dump of a large table yields to the event loop
 * between datagrams: the kernel makes each part when it is asked for it.
 */

import {
  type ConntrackEntry,
  type ConntrackEvent,
  decodeConntrack,
  encodeConntrackDelete,
  encodeConntrackDump,
} from '../wire/conntrack.ts';
import { messageErrno, messageSequence, messageType, NLMSG_DONE, NLMSG_ERROR, splitMessages } from '../wire/nlattr.ts';
import { ENOENT, SystemError } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';

export type { ConntrackEntry } from '../wire/conntrack.ts';

export interface TableOptions {
  /** Only entries with `(mark & mask) === value`: the kernel filters. */
  mark?: { value: number; mask: number };
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

const RECEIVE_SIZE = 64 * 1024;
const DATAGRAMS_PER_TURN = 16;
/** Sent as one datagram: a system call each way for all of them. */
const DELETES_PER_BATCH = 64;
const DUMP_SEQUENCE = 1;

/** Every entry of both families. */
export async function listFlows(options: TableOptions = {}): Promise<ConntrackEntry[]> {
  const entries: ConntrackEntry[] = [];
  const socket = open(options);
  try {
    await dump(socket, options, ({ type: _, ...entry }) => entries.push(entry));
  } finally {
    socket.close();
  }
  return entries;
}

/** Deletes the entries that match; says how many were there to delete. */
export async function endFlows(match: (entry: ConntrackEntry) => boolean, options: TableOptions = {}): Promise<number> {
  const doomed: Uint8Array[] = [];
  const socket = open(options);
  let ended = 0;
  try {
    await dump(socket, options, (entry, message) => {
      // A copy: the buffer is used again.
      if (match(entry)) doomed.push(message.slice());
    });
    for (let first = 0; first < doomed.length; first += DELETES_PER_BATCH) {
      const batch = doomed.slice(first, first + DELETES_PER_BATCH);
      const sequence = DUMP_SEQUENCE + 1 + first;
      const failures = socket.batch(
        batch.map((entry, at) => encodeConntrackDelete(entry, sequence + at, at === batch.length - 1)),
      );
      // ENOENT: it ended by itself meanwhile, or its tuple is another flow's now.
      const other = failures.find((errno) => errno !== ENOENT);
      if (other !== undefined) throw new SystemError('conntrack delete', other);
      ended += batch.length - failures.length;
      await turn();
    }
  } finally {
    socket.close();
  }
  return ended;
}

function open(options: TableOptions): NetlinkSocket {
  return NetlinkSocket.open({
    protocol: NETLINK_NETFILTER,
    receiveBuffer: 1 << 20,
    ...(options.namespace === undefined ? {} : { namespace: options.namespace }),
  });
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

async function dump(
  socket: NetlinkSocket,
  options: TableOptions,
  visit: (entry: ConntrackEvent, message: Uint8Array) => void,
): Promise<void> {
  socket.send(encodeConntrackDump(DUMP_SEQUENCE, options.mark));
  const buffer = new Uint8Array(RECEIVE_SIZE);
  for (let datagrams = 1; ; datagrams++) {
    const length = socket.receive(buffer);
    for (const message of splitMessages(buffer.subarray(0, length))) {
      if (messageSequence(message) !== DUMP_SEQUENCE) continue;
      const type = messageType(message);
      if (type === NLMSG_DONE || type === NLMSG_ERROR) {
        const errno = messageErrno(message) ?? 0;
        if (errno !== 0) throw new SystemError('conntrack dump', errno);
        return;
      }
      const decoded = decodeConntrack(message);
      if (!decoded.ok) continue;
      visit(decoded.value, message);
    }
    if (datagrams % DATAGRAMS_PER_TURN === 0) await turn();
  }
}
