/**
 * The kernel's connection table: list it, end flows by deleting their entries (ctnetlink, own codec and socket).
 * Sockets of each call's own, so that calls cannot mix their answers. A walk through a large table yields to the event
 * loop between datagrams: the kernel makes each part when it is asked for it.
 */

import { rememberedText } from '../wire/address-text.ts';
import { type ConntrackEntry, ConntrackReader, type ConntrackView, encodeConntrackDump } from '../wire/conntrack.ts';
import {
  messageBounds,
  messageErrno,
  messageSequence,
  messageType,
  NLM_F_ACK,
  NLMSG_DONE,
  NLMSG_ERROR,
} from '../wire/nlattr.ts';
import { NetlinkWriter } from '../wire/nlwriter.ts';
import { ENOENT, SystemError } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';

export type { ConntrackEntry, ConntrackView } from '../wire/conntrack.ts';

export interface TableOptions {
  /** Only entries with `(mark & mask) === value`: the kernel filters. */
  mark?: { value: number; mask: number };
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** The kernel's parts of a dump are of 32 KiB. */
const RECEIVE_SIZE = 64 * 1024;
const DATAGRAMS_PER_TURN = 16;
const DUMP_SEQUENCE = 1;

/** Every entry of both families. */
export async function listFlows(options: TableOptions = {}): Promise<ConntrackEntry[]> {
  const entries: ConntrackEntry[] = [];
  await walk(options, (reader) => entries.push(reader.entry()));
  return entries;
}

/**
 * Deletes the entries that match; says how many were there to delete. What is to go of each part of the table goes
 * before the next part is asked for: the kernel's walk begins a bucket again whose entry it stood at is gone.
 */
export async function endFlows(match: (entry: ConntrackView) => boolean, options: TableOptions = {}): Promise<number> {
  const deletions = new Deletions(options);
  try {
    await walk(
      options,
      (entry) => {
        if (match(entry)) deletions.add(entry);
      },
      () => deletions.send(),
    );
  } finally {
    deletions.close();
  }
  return deletions.done;
}

/** Entries to delete, sent as one datagram: a system call each way for all of them. */
class Deletions {
  done = 0;
  readonly #options: TableOptions;
  readonly #writer = new NetlinkWriter(RECEIVE_SIZE);
  #socket: NetlinkSocket | undefined;
  #sequence = 0;
  #waiting = 0;

  constructor(options: TableOptions) {
    this.#options = options;
  }

  add(entry: ConntrackReader): void {
    this.#waiting++;
    this.#sequence++;
    entry.writeDeletion(this.#writer, this.#sequence);
  }

  send(): void {
    if (this.#waiting === 0) return;
    this.#socket ??= open(this.#options);
    this.#writer.addFlags(NLM_F_ACK);
    const first = this.#sequence - this.#waiting + 1;
    const failures = this.#socket.exchange(this.#writer.written(), first, this.#sequence);
    // ENOENT: it ended by itself meanwhile, or its tuple is another flow's now.
    const other = failures.find((errno) => errno !== ENOENT);
    if (other !== undefined) throw new SystemError('conntrack delete', other);
    this.done += this.#waiting - failures.length;
    this.#waiting = 0;
    this.#writer.cut(0);
  }

  close(): void {
    this.#socket?.close();
  }
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

/** `visit`: of each entry, which is there for the call; `between`: after each part of the table. */
async function walk(
  options: TableOptions,
  visit: (entry: ConntrackReader) => void,
  between: () => void = () => undefined,
): Promise<void> {
  const socket = open(options);
  try {
    socket.send(encodeConntrackDump(DUMP_SEQUENCE, options.mark));
    const buffer = new Uint8Array(RECEIVE_SIZE);
    const reader = new ConntrackReader(rememberedText());
    for (let datagrams = 1; ; datagrams++) {
      const done = part(buffer, socket.receive(buffer), reader, visit);
      between();
      if (done) return;
      if (datagrams % DATAGRAMS_PER_TURN === 0) await turn();
    }
  } finally {
    socket.close();
  }
}

/** One datagram of a dump; true: it was the last. */
function part(
  buffer: Uint8Array,
  length: number,
  reader: ConntrackReader,
  visit: (entry: ConntrackReader) => void,
): boolean {
  const bounds = messageBounds(buffer, 0, length);
  for (let at = 0; at + 1 < bounds.length; at += 2) {
    const [start, end] = [bounds[at] ?? 0, bounds[at + 1] ?? 0];
    if (messageSequence(buffer, start) !== DUMP_SEQUENCE) continue;
    const type = messageType(buffer, start);
    if (type === NLMSG_DONE || type === NLMSG_ERROR) {
      const errno = messageErrno(buffer.subarray(start, end)) ?? 0;
      if (errno !== 0) throw new SystemError('conntrack dump', errno);
      return true;
    }
    if (reader.read(buffer, start, end) === undefined) visit(reader);
  }
  return false;
}
