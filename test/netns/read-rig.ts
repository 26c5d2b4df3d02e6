/**
 * What the test of the read path needs beside gateway-rig.ts: the queue, held by the test itself, which sees each packet with
 * its mark and answers when it likes; and both ends of a TCP connection, segment by segment.
 */
import { INSPECT_QUEUE } from '../../api/names.ts';
import type { Family } from '../../api/plan.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from '../../kernel/netlink-socket.ts';
import { bytesOfU16, bytesOfU32, join, putU16 } from '../../wire/bytes.ts';
import { buildIp, type Packet, PROTOCOL_TCP, parsePacket, TCP_ACK, TCP_SYN, transportChecksum } from '../../wire/ip.ts';
import { decodeNfqueue, encodeQueueConfig, encodeVerdict, type Verdict } from '../../wire/nfqueue.ts';
import { splitMessages } from '../../wire/nlattr.ts';
import { EGRESS, PODS, WEB } from './gateway-plans.ts';
import type { GatewayRig, Sighting } from './gateway-rig.ts';

export interface Queued {
  id: number;
  mark: number;
  packet: Packet;
}

export class HeldQueue {
  readonly #socket: NetlinkSocket;
  readonly #buffer = new Uint8Array(1 << 17);

  constructor(namespace: string) {
    this.#socket = NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      namespace,
      receiveBuffer: 1 << 20,
      noEnobufs: true,
      timeoutMs: 1,
    });
    const settings = { queue: INSPECT_QUEUE, maxLength: 1024, copyRange: 0xffff };
    for (const message of encodeQueueConfig(settings, 1)) this.#socket.send(message);
    this.take();
  }

  /** What came since the last time. */
  take(): Queued[] {
    const queued: Queued[] = [];
    for (;;) {
      let length: number;
      try {
        length = this.#socket.receive(this.#buffer);
      } catch {
        return queued;
      }
      for (const message of splitMessages(this.#buffer.slice(0, length))) {
        const decoded = decodeNfqueue(message);
        const packet = decoded.ok ? parsePacket(decoded.value.payload) : undefined;
        if (decoded.ok && packet?.ok) queued.push({ ...decoded.value, packet: packet.value });
      }
    }
  }

  answer(id: number, verdict: Verdict, mark?: number): void {
    this.#socket.send(encodeVerdict(INSPECT_QUEUE, id, verdict, mark));
  }

  close(): void {
    this.#socket.close();
  }
}

/** What of a segment is not what a bare acknowledgement has. */
export interface Part {
  flags?: number;
  payload?: string;
  /** Bytes of options, a multiple of 4. */
  options?: number;
}

let nextPort = 20_000;
const text = (payload: string): Uint8Array => new Uint8Array(Buffer.from(payload));

/** A connection of the pod to WEB; the test is both ends of it. */
export class Connection {
  readonly #rig: GatewayRig;
  readonly family: Family;
  readonly port: number;
  readonly sourcePort = nextPort++;
  /** Next bytes to send. */
  client = 1000 * nextPort;
  server = 7000 * nextPort;
  /** As the outside sees it. */
  #translated = 0;

  constructor(rig: GatewayRig, family: Family, port: number) {
    this.#rig = rig;
    this.family = family;
    this.port = port;
  }

  /** Sends, and looks what left. */
  async fromPod(part: Part = {}): Promise<Sighting[]> {
    const ends = { source: PODS.pay[this.family], destination: WEB[this.family] };
    this.#rig.fromNode(
      this.#segment({ ...ends, from: this.sourcePort, to: this.port }, this.client, this.server, part),
    );
    const seen = await this.#rig.collect();
    const left = seen.filter(({ where, packet }) => where === 'outside' && packet.source === EGRESS.pay[this.family]);
    this.#translated = left[0]?.packet.sourcePort ?? this.#translated;
    return left;
  }

  /** Sends from the server, and looks what came to the pod. */
  async fromServer(part: Part = {}): Promise<Sighting[]> {
    const ends = { source: WEB[this.family], destination: EGRESS.pay[this.family] };
    this.#rig.fromOutside(
      this.#segment({ ...ends, from: this.port, to: this.#translated }, this.server, this.client, part),
    );
    const seen = await this.#rig.collect();
    return seen.filter(({ where, packet }) => where === 'inside' && packet.destination === PODS.pay[this.family]);
  }

  /** Says whether each of its segments went through. */
  async handshake(): Promise<boolean> {
    const syn = (await this.fromPod({ flags: TCP_SYN })).length;
    this.client++;
    const answer = (await this.fromServer({ flags: TCP_SYN | TCP_ACK, options: 20 })).length;
    this.server++;
    return syn === 1 && answer === 1 && (await this.fromPod()).length === 1;
  }

  async mark(): Promise<number | undefined> {
    const flows = await this.#rig.flows();
    return flows.find(({ original }) => original.sourcePort === this.sourcePort)?.mark;
  }

  #segment(
    ends: { source: string; destination: string; from: number; to: number },
    sequence: number,
    acknowledgement: number,
    { flags = TCP_ACK, payload = '', options = 0 }: Part,
  ): Uint8Array {
    const transport = join([
      bytesOfU16(ends.from),
      bytesOfU16(ends.to),
      bytesOfU32(sequence),
      bytesOfU32((flags & TCP_ACK) === 0 ? 0 : acknowledgement),
      Uint8Array.of((5 + options / 4) << 4, flags),
      bytesOfU16(0xffff),
      new Uint8Array(4),
      // All of them NOP.
      new Uint8Array(options).fill(1),
      text(payload),
    ]);
    putU16(transport, 16, transportChecksum(ends, PROTOCOL_TCP, transport));
    return buildIp(ends, PROTOCOL_TCP, transport);
  }
}
