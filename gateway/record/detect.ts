/**
 * Reads copies of the first packets of flows that nobody asks about (detect-table.ts): which application each speaks, and the
 * name that it asked for, if the packets that tell were among those copied. Pure; the clock is passed in. Bounded in flows,
 * in bytes of each and in time: what comes beyond is given up, since it is a sample anyway.
 * A copy may be missing, so that what is taken for the first bytes of a flow are others. Readers refuse nearly all of those.
 */
import type { ApplicationReading } from '../../policy/application.ts';
import { type Packet, PROTOCOL_TCP, PROTOCOL_UDP, parsePacket } from '../../wire/ip.ts';
import { DatagramReader, type FirstReading, readStream } from './first-bytes.ts';

export interface DetectLimits {
  /** Flows that may wait for their next packet. */
  flows: number;
  /** Bytes of each. */
  bytes: number;
  /** Milliseconds that each may wait. */
  wait: number;
}

export const detectLimits: DetectLimits = { flows: 1_024, bytes: 16_384, wait: 10_000 };

interface Waiting {
  until: number;
  /** Of TCP: what came, and the sequence number that comes next. */
  bytes: Uint8Array;
  next: number;
  datagrams: DatagramReader;
}

export class Detector {
  /** Copies that were no packet of TCP or UDP with bytes; flows of which something was read, and those that said nothing. */
  readonly counts = { useless: 0, read: 0, unread: 0 };
  readonly #limits: DetectLimits;
  /** By the flow's id; the longest waiting first. */
  readonly #waiting = new Map<number, Waiting>();

  constructor(limits: DetectLimits = detectLimits) {
    this.#limits = limits;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** The next packet of a flow, from its IP header on, maybe cut short. What it says, once that is known. */
  take(flow: { id: number; reply: boolean }, bytes: Uint8Array, now: number): ApplicationReading | undefined {
    this.#giveUp(now);
    const parsed = parsePacket(bytes);
    if (!parsed.ok || parsed.value.laterFragment || parsed.value.end <= parsed.value.payloadOffset) {
      this.counts.useless++;
      return undefined;
    }
    const answer = this.#read(flow, parsed.value, bytes, now);
    if (answer === undefined || answer.state === 'more') return undefined;
    this.#waiting.delete(flow.id);
    this.counts[answer.state === 'read' ? 'read' : 'unread']++;
    return answer.state === 'read' ? answer.value : undefined;
  }

  #read(
    flow: { id: number; reply: boolean },
    packet: Packet,
    bytes: Uint8Array,
    now: number,
  ): FirstReading | undefined {
    const payload = bytes.subarray(packet.payloadOffset, packet.end);
    const cut = packet.length > bytes.length;
    if (packet.protocol === PROTOCOL_UDP && !flow.reply) {
      // Half a datagram says nothing.
      return cut ? undefined : this.#of(flow.id, 0, now).datagrams.take(payload);
    }
    if (packet.protocol !== PROTOCOL_TCP || packet.sequence === undefined) {
      this.counts.useless++;
      return undefined;
    }
    // A server's greeting is one packet, or none that is worth the waiting.
    if (flow.reply) {
      const answer = readStream('server', payload, cut);
      return answer.state === 'read' ? answer : undefined;
    }
    const waiting = this.#of(flow.id, packet.sequence, now);
    // One of before again, or one that is missing: the next may be the right one.
    if (packet.sequence !== waiting.next) return undefined;
    // A copy: the batch that it came in is larger.
    waiting.bytes = Buffer.concat([waiting.bytes, payload]);
    waiting.next = (packet.sequence + packet.length - packet.payloadOffset) >>> 0;
    const over = waiting.bytes.length > this.#limits.bytes;
    const answer = readStream('client', waiting.bytes, cut || over);
    if (answer.state === 'more' && (cut || over)) return { state: 'refused', reason: 'none-known' };
    return answer;
  }

  #of(id: number, next: number, now: number): Waiting {
    let waiting = this.#waiting.get(id);
    if (waiting === undefined) {
      const until = now + this.#limits.wait;
      waiting = { until, bytes: new Uint8Array(0), next, datagrams: new DatagramReader() };
      this.#waiting.set(id, waiting);
    }
    return waiting;
  }

  #giveUp(now: number): void {
    for (const [id, { until }] of this.#waiting) {
      if (until > now && this.#waiting.size < this.#limits.flows) break;
      this.#waiting.delete(id);
      this.counts.unread++;
    }
  }
}
