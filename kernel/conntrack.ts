/**
 * The kernel's connection table: list it, end flows by deleting their entries, or mark them otherwise (ctnetlink, own
 * codec and socket).
 * Sockets of each call's own, so that calls cannot mix their answers. A walk through a large table yields to the event
 * loop between datagrams: the kernel makes each part when it is asked for it. Even an empty table costs it some 10 ms, since it
 * looks into each place of a table that is made for the largest: so what is asked for at once is looked for in one walk.
 */

import { rememberedText } from '../wire/address-text.ts';
import {
  type ConntrackEntry,
  ConntrackReader,
  type ConntrackView,
  encodeConntrackDump,
  type FlowTuple,
  writeTupleDeletion,
} from '../wire/conntrack.ts';
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

export type { ConntrackEntry, ConntrackView, FlowTuple } from '../wire/conntrack.ts';

export interface TableOptions {
  /** Only entries with `(mark & mask) === value`: the kernel filters. */
  mark?: { value: number; mask: number };
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** The kernel's parts of a dump are of 32 KiB. */
const RECEIVE_SIZE = 64 * 1024;
const DATAGRAMS_PER_TURN = 16;
const CHANGES_PER_DATAGRAM = 256;
/** Of deletions: 102,400, whose events fit into what an event socket lets wait (kernel/event-worker.ts). */
const DATAGRAMS_PER_PAUSE = 400;
const DUMP_SEQUENCE = 1;

/** Every entry of both families. */
export async function listFlows(options: TableOptions = {}): Promise<ConntrackEntry[]> {
  const entries: ConntrackEntry[] = [];
  await walk(options, (reader) => entries.push(reader.entry()));
  return entries;
}

/**
 * Deletes the entries that match; says how many were there to delete. All are found first, and then deleted without a turn
 * of the event loop: who listens to ends of flows has more to do about each than it costs to end it, and would have his
 * turn before the next.
 */
export async function endFlows(match: (entry: ConntrackView) => boolean, options: TableOptions = {}): Promise<number> {
  return (await changeFlows((entry) => (match(entry) ? 'end' : undefined), options)).ended;
}

/** The same, where `change` says of an entry that it ends, or which mark it has from now on. */
export async function changeFlows(
  change: (entry: ConntrackView) => 'end' | number | undefined,
  options: TableOptions = {},
): Promise<{ ended: number; marked: number }> {
  const deletions = new Changes();
  const marks = new Changes();
  await walk(options, (entry) => {
    const wanted = change(entry);
    if (wanted === 'end') deletions.add((writer, sequence) => entry.writeDeletion(writer, sequence));
    else if (wanted !== undefined) marks.add((writer, sequence) => entry.writeMark(writer, sequence, wanted));
  });
  return { ended: await deletions.send(options), marked: await marks.send(options) };
}

/** Ends flows that are known by their tuples; says how many were there. */
export function endTuples(flows: Iterable<FlowTuple>, options: TableOptions = {}): Promise<number> {
  const deletions = new Changes();
  for (const flow of flows) deletions.add((writer, sequence) => writeTupleDeletion(writer, sequence, flow));
  return deletions.send(options);
}

/** Messages about entries. Many are sent as one datagram: a system call each way for all of them. */
class Changes {
  readonly #writer = new NetlinkWriter(RECEIVE_SIZE);
  /** Where each datagram ends; the last of them when it is sent. */
  readonly #ends: number[] = [];
  #count = 0;

  add(write: (writer: NetlinkWriter, sequence: number) => void): void {
    this.#count++;
    write(this.#writer, this.#count);
    if (this.#count % CHANGES_PER_DATAGRAM === 0) this.#end();
  }

  /** About how many of them there was an entry. */
  async send(options: TableOptions): Promise<number> {
    if (this.#count === 0) return 0;
    if (this.#count % CHANGES_PER_DATAGRAM !== 0) this.#end();
    const socket = open(options);
    let missing = 0;
    try {
      let from = 0;
      for (const [index, to] of this.#ends.entries()) {
        const before = index * CHANGES_PER_DATAGRAM;
        const last = Math.min(before + CHANGES_PER_DATAGRAM, this.#count);
        const failures = socket.exchange(this.#writer.written().subarray(from, to), before + 1, last);
        // ENOENT: it ended by itself meanwhile, or its tuple is another flow's now.
        const other = failures.find((errno) => errno !== ENOENT);
        if (other !== undefined) throw new SystemError('conntrack change', other);
        missing += failures.length;
        from = to;
        if ((index + 1) % DATAGRAMS_PER_PAUSE === 0) await turn();
      }
    } finally {
      socket.close();
    }
    return this.#count - missing;
  }

  #end(): void {
    this.#writer.addFlags(NLM_F_ACK);
    this.#ends.push(this.#writer.length);
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

interface Visitor {
  mark: TableOptions['mark'];
  /** Of each entry, which is there for the call. */
  visit(entry: ConntrackReader): void;
}

/** Visitors whose walk has not begun, by namespace. */
const waiting = new Map<string | undefined, { visitors: Visitor[]; walked: Promise<void> }>();

/** Every entry of both families. Begins a turn later, with all who have come by then. */
export function walk({ namespace, mark }: TableOptions, visit: Visitor['visit']): Promise<void> {
  let group = waiting.get(namespace);
  if (group === undefined) {
    const visitors: Visitor[] = [];
    const walked = turn().then(() => {
      waiting.delete(namespace);
      return walkFor(visitors, namespace === undefined ? {} : { namespace });
    });
    group = { visitors, walked };
    waiting.set(namespace, group);
  }
  group.visitors.push({ mark, visit });
  return group.walked;
}

async function walkFor(visitors: readonly Visitor[], options: Pick<TableOptions, 'namespace'>): Promise<void> {
  const [first, ...others] = visitors;
  const one = others.every(({ mark }) => mark?.value === first?.mark?.value && mark?.mask === first?.mark?.mask);
  const visit = (entry: ConntrackReader): void => {
    for (const { mark, visit } of visitors)
      if (one || mark === undefined || (entry.mark & mark.mask) >>> 0 === mark.value) visit(entry);
  };
  const socket = open(options);
  try {
    socket.send(encodeConntrackDump(DUMP_SEQUENCE, one ? first?.mark : undefined));
    const buffer = new Uint8Array(RECEIVE_SIZE);
    const reader = new ConntrackReader(rememberedText());
    for (let datagrams = 1; !part(buffer, socket.receive(buffer), reader, visit); datagrams++) {
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
