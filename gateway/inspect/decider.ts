/**
 * The decider of a queue's thread (worker.ts): what becomes of each packet that the table sluice_inspect sends there, by what it
 * and those before it say and the policy that the main thread has told (design §4.5, §4.6, §5). Packets of TCP go to tcp.ts,
 * all others to datagrams.ts, answers of resolvers to teaching.ts.
 * Marks with which a packet goes on (api/names.ts): CHECKED|PASSED lets it on, VERDICT and a rule's number decide its flow, with
 * LIFE only for what has come so far; exactly RESET or PROHIBIT: it is answered with a refusal.
 */
import { randomBytes } from 'node:crypto';
import { INSPECT_DNS_MARK, INSPECT_PASSED_MARK, INSPECT_REPLY_MARK } from '../../api/names.ts';
import type { Decider, QueueControl } from '../../kernel/queue-loop.ts';
import type { Flow as PolicyFlow } from '../../policy/decision.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP, TCP_SYN } from '../../wire/ip.ts';
import type { QueuePacket } from '../../wire/nfqueue.ts';
import { Datagram } from './datagram.ts';
import { DatagramFlows } from './datagrams.ts';
import { Desk, type Ends, PASSED } from './desk.ts';
import { type DeciderData, deciderLimits, type ToDecider } from './messages.ts';
import type { SendReset } from './reset.ts';
import { Segment } from './segment.ts';
import { TcpFlows } from './tcp.ts';
import { Teaching } from './teaching.ts';

/** Milliseconds between two looks at what is over, while nothing falls due. */
const SWEEP_MS = 1_000;

/** What worker.ts asks for. */
export const createDecider = (control: QueueControl, data: unknown): Decider =>
  new InspectDecider(control, data as DeciderData);

export class InspectDecider implements Decider {
  readonly desk: Desk;
  readonly tcp: TcpFlows;
  readonly datagrams: DatagramFlows;
  readonly #teaching: Teaching;
  readonly #datagram = new Datagram();
  readonly #segment = new Segment();

  readonly #clock: () => number;

  /** `reset` sends resets instead of the raw sockets; `clock` is the loop's. */
  constructor(
    control: QueueControl,
    data: DeciderData,
    { reset, clock = () => performance.now() }: { reset?: SendReset; clock?: () => number } = {},
  ) {
    this.#clock = clock;
    this.desk = new Desk(control, data, { ...deciderLimits, ...data.limits }, clock(), reset);
    this.tcp = new TcpFlows(this.desk, randomBytes(4).readInt32LE());
    this.datagrams = new DatagramFlows(this.desk);
    this.#teaching = new Teaching(this.desk);
    this.desk.post({ kind: 'inForce', generation: data.generation });
    control.wakeAt(clock() + SWEEP_MS);
  }

  decide(packet: QueuePacket, now: number): ReturnType<Decider['decide']> {
    return this.desk.at(packet, now, () => this.#packet(packet, now));
  }

  #packet(packet: QueuePacket, now: number): void {
    const { bytes, start, end, mark } = packet;
    const four = bytes[start]! >>> 4 === 4;
    const tcp = four ? bytes[start + 9] === PROTOCOL_TCP : bytes[start + 6] === PROTOCOL_TCP;
    if (tcp) {
      if ((mark & INSPECT_DNS_MARK) !== 0 && this.#teachStream(packet, now)) return;
      this.tcp.decide(packet, now);
      return;
    }
    const datagram = this.#datagram;
    const fault = datagram.read(bytes, start, end);
    if (fault !== undefined) {
      this.desk.refuse(packet.id, fault);
      return;
    }
    // Behind extension headers.
    if (datagram.protocol === PROTOCOL_TCP) {
      this.tcp.decide(packet, now);
      return;
    }
    const ends = this.#ends(packet);
    if ((mark & INSPECT_DNS_MARK) !== 0 && datagram.protocol === PROTOCOL_UDP && this.#teach(packet, ends, now)) return;
    this.datagrams.decide(packet, datagram, ends, now);
  }

  /** True: the packet is seen to. */
  #teach({ id, bytes, mark }: QueuePacket, { flow, sourcePort }: Ends, now: number): boolean {
    const { payload, end } = this.#datagram;
    const reply = (mark & INSPECT_REPLY_MARK) !== 0;
    const asking = { client: flow.source, port: sourcePort, resolver: flow.destination, stream: false };
    const believed = this.#teaching.isResolver(asking.resolver);
    const view = bytes.subarray(payload, end);
    if (reply) {
      if (!believed || !this.#teaching.answered(view, asking, id, now)) this.desk.accept(id, PASSED);
      return true;
    }
    if (believed) this.#teaching.asked(view, asking, now);
    if ((mark & INSPECT_PASSED_MARK) === 0) return false;
    this.desk.accept(id, PASSED);
    return true;
  }

  /** The same over TCP, whose packets are read as well if the flow is. */
  #teachStream({ id, bytes, start, end, mark }: QueuePacket, now: number): boolean {
    const segment = this.#segment;
    if (segment.read(bytes, start, end) !== undefined) return false;
    const reply = (mark & INSPECT_REPLY_MARK) !== 0;
    const four = segment.version === 4;
    const from = this.desk.addressText(bytes, start + (four ? 12 : 8), four ? 4 : 6);
    const to = this.desk.addressText(bytes, start + (four ? 16 : 24), four ? 4 : 6);
    const ports = segment.key[8]!;
    const asking = reply
      ? { client: to, port: ports & 0xffff, resolver: from, stream: true }
      : { client: from, port: ports >>> 16, resolver: to, stream: true };
    const believed = this.#teaching.isResolver(asking.resolver);
    if (believed && this.#teaching.heard(segment, bytes, asking, reply, id, now)) return true;
    // A SYN+ACK is here for its numbers alone.
    const listened = (mark & INSPECT_PASSED_MARK) !== 0 || (reply && (segment.flags & TCP_SYN) !== 0);
    if (listened) this.desk.accept(id, PASSED);
    return listened;
  }

  /** Of a packet that is no segment; the one that asks stands first. */
  #ends({ bytes, start, mark }: QueuePacket): Ends {
    const { family, protocol, sourcePort, destinationPort, icmpType, icmpCode } = this.#datagram;
    const four = family === 4;
    const from = this.desk.addressText(bytes, start + (four ? 12 : 8), family);
    const to = this.desk.addressText(bytes, start + (four ? 16 : 24), family);
    const reply = (mark & INSPECT_REPLY_MARK) !== 0;
    const port = reply ? sourcePort : destinationPort;
    const flow: PolicyFlow = {
      source: reply ? to : from,
      destination: reply ? from : to,
      protocol,
      ...(port !== undefined && { destinationPort: port }),
      ...(icmpType !== undefined && { icmpType }),
      ...(icmpCode !== undefined && { icmpCode }),
    };
    return { flow, sourcePort: reply ? destinationPort : sourcePort };
  }

  expired(id: number): void {
    const now = this.#clock();
    this.desk.now = now;
    this.tcp.expired(id, now);
    this.datagrams.expired(id, now);
  }

  alarm(now: number): void {
    this.desk.now = now;
    this.tcp.expire(now);
    this.datagrams.expire(now);
    this.#teaching.expire(now);
    this.desk.resolving.expire(now);
    this.desk.judge.expire(this.desk.time(now));
    this.desk.report.flush();
    this.desk.wakeAt(now + SWEEP_MS);
  }

  message(value: unknown): void {
    const message = value as ToDecider;
    const { desk } = this;
    // Within a packet's turn it is that packet's time.
    const now = Math.max(desk.now, this.#clock());
    switch (message.kind) {
      case 'policy':
        // What was decided by the policy before is told before.
        desk.report.flush();
        desk.judge.change(message);
        desk.post({ kind: 'inForce', generation: message.generation });
        return;
      case 'names':
        desk.judge.learn(message.pairs, desk.time(now));
        return;
      case 'forget':
        desk.judge.forget(message.addresses);
        return;
      case 'release':
        this.#teaching.release(message.id, now);
        return;
      case 'resolved':
        desk.resolving.end(message.id, now);
        return;
      default:
        message satisfies never;
    }
  }

  close(): void {
    this.desk.report.flush();
  }
}
