/**
 * Puts flows of another gateway into this kernel's connection table, and takes them out (ctnetlink, wire/conntrack-flow.ts):
 * many messages a datagram, some datagrams a turn of the event loop. (Sent by a thread of Node's pool, each entry cost half
 * as much again, and on a busy machine all of it took twice as long.) Of an entry that is there already, or
 * of another flow's that has the translated port, the new one takes the place: such entries are leftovers, as no packet of
 * such a flow comes here. One call after the other, whoever calls.
 */
import {
  type FlowName,
  type TrackedFlow,
  writeFlow,
  writeFlowChange,
  writeFlowEnd,
  writeHolderEnd,
} from '../wire/conntrack-flow.ts';
import { messageErrno, messageSequence, messageType, NLM_F_ACK, NLMSG_ERROR, splitMessages } from '../wire/nlattr.ts';
import { NetlinkWriter } from '../wire/nlwriter.ts';
import { EEXIST, ENOENT, errnoName } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from './netlink-socket.ts';

export type FlowChange =
  /** `timeout`: seconds. `replaces`: there is one of that tuple that is another. */
  | { op: 'put'; flow: TrackedFlow; timeout: number; replaces?: boolean }
  | { op: 'change'; flow: FlowName; mark?: number; timeout?: number }
  | { op: 'end'; flow: FlowName };

export interface Injected<C extends FlowChange = FlowChange> {
  /** Entries of others that had to go for one of these. */
  displaced: number;
  /** To be changed, but not there. */
  missing: C[];
  /** The errno's name of each that the kernel refused: ENOMEM of a full table. */
  refused: { change: C; code: string }[];
}

const CHANGES_PER_DATAGRAM = 128;
/** Some milliseconds. */
const DATAGRAMS_PER_TURN = 4;
const ANSWERS = 64 * 1024;

export class FlowInjector {
  readonly #socket: NetlinkSocket;
  readonly #writer = new NetlinkWriter(64 * 1024);
  readonly #answers = new Uint8Array(ANSWERS);
  #last: Promise<unknown> = Promise.resolve();

  private constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /** `namespace`: `/run/netns/NAME`; absent: the thread's own. */
  static open(namespace?: string): FlowInjector {
    const socket = NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      receiveBuffer: 4 << 20,
      extendedAck: true,
      ...(namespace === undefined ? {} : { namespace }),
    });
    return new FlowInjector(socket);
  }

  /** Netlink port: events of what is done here carry it (messagePort()). */
  get port(): number {
    return this.#socket.port;
  }

  /** In their order. Rejects if the socket fails; what was done until then stays. */
  apply<C extends FlowChange>(changes: readonly C[]): Promise<Injected<C>> {
    const applied = this.#last.then(turn).then(() => this.#apply(changes));
    this.#last = applied.catch(() => undefined);
    return applied;
  }

  async close(): Promise<void> {
    await this.#last;
    this.#socket.close();
  }

  async #apply<C extends FlowChange>(changes: readonly C[]): Promise<Injected<C>> {
    const done: Injected<C> = { displaced: 0, missing: [], refused: [] };
    for (let at = 0; at < changes.length; at += CHANGES_PER_DATAGRAM) {
      const part = changes.slice(at, at + CHANGES_PER_DATAGRAM);
      if (at > 0 && (at / CHANGES_PER_DATAGRAM) % DATAGRAMS_PER_TURN === 0) await turn();
      const occupied: C[] = [];
      for (const [index, errno] of this.#exchange(part, false)) {
        const change = part[index] as C;
        if (errno === EEXIST && change.op === 'put') occupied.push(change);
        else if (errno !== ENOENT) done.refused.push({ change, code: errnoName(errno) });
        else if (change.op === 'change') done.missing.push(change);
      }
      if (occupied.length === 0) continue;
      done.displaced += occupied.length;
      for (const [index, errno] of this.#exchange(occupied, true)) {
        if (errno !== ENOENT) done.refused.push({ change: occupied[index] as C, code: errnoName(errno) });
      }
    }
    return done;
  }

  /** Sends them as one datagram; what failed, by index. `clear`: whoever is in the way of what is put goes before. */
  #exchange(changes: readonly FlowChange[], clear: boolean): [index: number, errno: number][] {
    const writer = this.#writer;
    writer.cut(0);
    /** Of each message, by its sequence from 1. */
    const indexes: number[] = [];
    for (const [index, change] of changes.entries()) {
      const { op } = change;
      const next = (): number => indexes.push(index);
      if (op === 'end') writeFlowEnd(writer, next(), change.flow);
      else if (op === 'change') writeFlowChange(writer, next(), change.flow, change);
      else {
        if (clear || change.replaces) writeFlowEnd(writer, next(), change.flow);
        if (clear) writeHolderEnd(writer, next(), change.flow);
        writeFlow(writer, next(), change.flow, change.timeout);
      }
    }
    writer.addFlags(NLM_F_ACK);
    this.#socket.send(writer.written());
    return this.#failures(indexes);
  }

  /** They wait in the socket already: the kernel answers while it is sent to. */
  #failures(indexes: readonly number[]): [index: number, errno: number][] {
    const failures: [number, number][] = [];
    for (;;) {
      const length = this.#socket.receive(this.#answers);
      for (const answer of splitMessages(this.#answers.subarray(0, length))) {
        const sequence = messageSequence(answer);
        const errno = messageErrno(answer);
        if (messageType(answer) !== NLMSG_ERROR || errno === undefined) continue;
        if (errno !== 0) failures.push([indexes[sequence - 1] ?? 0, errno]);
        if (sequence === indexes.length) return failures;
      }
    }
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
