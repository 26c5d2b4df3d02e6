/**
 * Flows of all protocols but TCP whose bytes or names are asked for (design §4.5): QUIC by its hello, which may take several
 * datagrams, and is read anew for each connection that begins in the flow; DNS question by question; all others by the first
 * packet, of which nothing is known but the names of its address.
 */
import { GATEWAY_PROHIBIT_MARK, INSPECT_LIFE_MARK, INSPECT_REPLY_MARK } from '../../api/names.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { DnsQueryReader } from '../../wire/dns.ts';
import type { NameMeasures } from '../../wire/dns-name.ts';
import { PROTOCOL_UDP } from '../../wire/ip.ts';
import type { QueuePacket } from '../../wire/nfqueue.ts';
import { QuicHelloReader } from '../../wire/quic.ts';
import { QuicKeyCache } from '../../wire/quic-keys.ts';
import type { ClientHello } from '../../wire/tls-hello.ts';
import { Aged } from './aged.ts';
import type { Asked } from './asked.ts';
import type { Datagram } from './datagram.ts';
import { type Desk, type Ends, PASSED, type Remarks } from './desk.ts';
import { helloReading, questionReading } from './first-bytes.ts';
import type { InspectReason } from './reasons.ts';
import { isPlain } from './report.ts';

interface DatagramFlow {
  key: string;
  ends: Ends;
  asked: Asked;
  /** `waiting`: for the addresses of a name. */
  state: 'open' | 'waiting' | 'permitted';
  mark: number;
  reader: QuicHelloReader | undefined;
  /** Of the connection that was permitted. */
  known: QuicHelloReader | undefined;
  held: number[];
  /** Until when it is kept. */
  until: number;
  /** What was denied last, and told. */
  denied: string | undefined;
}

/** Flows that are being read, and those that were. */
const READING_MAX = 2_048;
const KNOWN_MAX = 32_768;
const KNOWN_MS = 30_000;
const HELD_MAX = 16;

const notQuic = new Set(['not-quic', 'short-header', 'unknown-version', 'version-negotiation']);

const quicReading = (hello: ClientHello): ApplicationReading => ({ application: 'QUIC', ...helloReading(hello) });

export class DatagramFlows {
  readonly #desk: Desk;
  readonly #keys = new QuicKeyCache();
  readonly #queries = new DnsQueryReader();
  /** Packets of them wait; the oldest first. */
  readonly #reading = new Aged<DatagramFlow>();
  readonly #known = new Aged<DatagramFlow>();

  constructor(desk: Desk) {
    this.#desk = desk;
  }

  get size(): number {
    return this.#reading.size + this.#known.size;
  }

  decide({ id, bytes, mark }: QueuePacket, datagram: Datagram, ends: Ends, now: number): void {
    if ((mark & INSPECT_REPLY_MARK) !== 0) {
      this.#desk.accept(id, PASSED);
      return;
    }
    const flow = this.#flowOf(ends, datagram);
    if (flow.held.length >= HELD_MAX) {
      this.#desk.drop(id);
      this.#end(flow, 'packets', now);
      return;
    }
    if (flow.state === 'waiting') {
      flow.held.push(id);
      return;
    }
    const payload = bytes.subarray(datagram.payload, datagram.end);
    if (flow.state === 'open' && !this.#first(flow, payload, id, now)) return;
    this.#read(flow, payload, id, now);
  }

  /** By the names of its address, or only by what it says: then true. */
  #first(flow: DatagramFlow, payload: Uint8Array, id: number, now: number): boolean {
    const desk = this.#desk;
    if (flow.reader !== undefined) return true;
    const copy = flow.asked.names.length > 0 ? new Uint8Array(payload) : payload;
    const conclude = (at: number, again?: (now: number) => void): boolean => {
      const judged = desk.decideFirst(flow.ends, at, again);
      if (judged === undefined) {
        this.#hold(flow, id, now);
        flow.state = 'waiting';
        return false;
      }
      if (judged.decision.provisional === true) return true;
      if (judged.mark !== 0) this.#permit(flow, judged.mark, id, at);
      else this.#deny(flow, judged.decision.verdict === 'reject', id);
      return false;
    };
    return conclude(now, (at) => {
      if (flow.state !== 'waiting') return;
      flow.state = 'open';
      const [, ...others] = flow.held;
      if (!conclude(at)) return;
      // Bytes decide after all: of the others that came meanwhile nobody kept them.
      flow.held = [];
      for (const other of others) desk.drop(other);
      this.#read(flow, copy, id, at);
    });
  }

  #read(flow: DatagramFlow, payload: Uint8Array, id: number, now: number): void {
    const { applications } = flow.asked;
    let detail: string | undefined;
    if (applications.includes('QUIC')) {
      const said = this.#quic(flow, payload, id, now);
      if (said === true) return;
      detail = said;
    }
    if (applications.includes('DNS')) {
      const query = this.#queries.datagram(payload);
      if (query.state === 'read') {
        const { name, type, length, longestLabel, labels, entropy, entropyOf } = query.value;
        const measures = { length, longestLabel, labels, entropy, entropyOf };
        this.#question(flow, questionReading(name, type), measures, id, now);
        return;
      }
      if (query.state === 'refused') detail ??= query.reason;
    }
    if (flow.state === 'permitted' && flow.known === undefined) {
      this.#desk.accept(id, flow.mark);
      return;
    }
    this.#conclude(flow, {}, detail, id, now);
  }

  /** True: it is seen to. Else why it is no QUIC. What is not of the connection that was read last begins another, or is none. */
  #quic(flow: DatagramFlow, payload: Uint8Array, id: number, now: number): true | string {
    const desk = this.#desk;
    const followed = flow.known?.follow(payload, this.#keys) ?? 'foreign';
    if (followed === 'repeated') {
      desk.accept(id, PASSED);
      return true;
    }
    if (followed !== 'foreign') {
      if (followed.state === 'more') this.#hold(flow, id, now);
      else if (followed.state === 'refused') this.#conclude(flow, {}, followed.reason, id, now);
      else this.#conclude(flow, quicReading(followed.value), undefined, id, now, flow.known);
      return true;
    }
    flow.reader ??= new QuicHelloReader();
    const { reader } = flow;
    const hello = reader.take(payload, this.#keys);
    if (hello.state === 'more') {
      this.#hold(flow, id, now);
      return true;
    }
    flow.reader = undefined;
    if (hello.state === 'refused') {
      if (notQuic.has(hello.reason)) return hello.reason;
      this.#conclude(flow, {}, hello.reason, id, now);
      return true;
    }
    this.#conclude(flow, quicReading(hello.value.hello), undefined, id, now, reader);
    return true;
  }

  #conclude(
    flow: DatagramFlow,
    reading: ApplicationReading,
    detail: string | undefined,
    id: number,
    now: number,
    reader?: QuicHelloReader,
  ): void {
    const desk = this.#desk;
    const before = flow.state;
    const again = (at: number): void => {
      if (flow.state !== 'waiting') return;
      flow.state = before;
      this.#judge(flow, reading, detail, id, at, reader);
    };
    this.#judge(flow, reading, detail, id, now, reader, again);
    if (flow.state === 'waiting') desk.wakeAt(flow.until);
  }

  #judge(
    flow: DatagramFlow,
    reading: ApplicationReading,
    detail: string | undefined,
    id: number,
    now: number,
    reader?: QuicHelloReader,
    again?: (now: number) => void,
  ): void {
    const desk = this.#desk;
    const judged = desk.decide(flow.ends.flow, reading, now, again);
    if (judged === undefined) {
      this.#hold(flow, id, now);
      flow.state = 'waiting';
      return;
    }
    desk.tally.count(`read_${reading.application ?? 'none'}`);
    const { decision, mark } = judged;
    const remarks: Remarks = { ...(detail !== undefined && { detail }), ...(reader !== undefined && { life: true }) };
    if (mark === 0) {
      this.#deny(flow, decision.verdict === 'reject', id);
      if (decision.verdict === 'accept') remarks.reason = 'no-policy';
      const text = `${reading.name} ${decision.rule} ${decision.reason} ${detail}`;
      if (flow.denied !== text) desk.tell(flow.ends, decision, reading, remarks, now);
      flow.denied = text;
      return;
    }
    flow.known = reader;
    this.#permit(flow, reader === undefined ? mark : (mark | INSPECT_LIFE_MARK) >>> 0, id, now);
    desk.tell(flow.ends, decision, reading, remarks, now);
  }

  /** Each is judged for itself. */
  #question(flow: DatagramFlow, reading: ApplicationReading, measures: NameMeasures, id: number, now: number): void {
    const desk = this.#desk;
    const answer = (at: number, again?: (now: number) => void): void => {
      const judged = desk.decide(flow.ends.flow, reading, at, again);
      // Its server is known by its address; where a name is asked of that as well, it is not the question's.
      if (judged === undefined) return;
      desk.tally.count('read_DNS');
      const { decision, mark } = judged;
      const { source } = flow.ends.flow;
      const reason = mark === 0 ? undefined : desk.questions.refuse(source, decision, measures, at);
      if (mark !== 0 && (reason === undefined || desk.judge.audits(source))) {
        const verdict = (mark | INSPECT_LIFE_MARK) >>> 0;
        const known = flow.mark === verdict;
        desk.accept(id, known ? PASSED : verdict);
        flow.mark = verdict;
        flow.state = 'open';
        this.#keep(flow, at);
        // Of what comes later only what is no plain permission is told.
        if (known && reason === undefined && isPlain(decision)) return;
        desk.tell(flow.ends, decision, reading, { life: true, ...(reason !== undefined && { reason }) }, at);
        return;
      }
      if (decision.verdict === 'reject') desk.accept(id, GATEWAY_PROHIBIT_MARK);
      else desk.drop(id);
      this.#keep(flow, at);
      const told = reason === undefined ? decision : undefined;
      desk.tell(flow.ends, told, reading, { life: true, ...(reason !== undefined && { reason }) }, at);
    };
    answer(now, (at) => answer(at));
  }

  #permit(flow: DatagramFlow, mark: number, id: number, now: number): void {
    flow.state = 'permitted';
    flow.mark = mark;
    for (const held of flow.held) if (held !== id) this.#desk.accept(held, mark);
    flow.held = [];
    this.#desk.accept(id, mark);
    this.#keep(flow, now);
  }

  /** What comes next of it is read anew. */
  #deny(flow: DatagramFlow, reject: boolean, id: number): void {
    const desk = this.#desk;
    if (flow.state === 'waiting') flow.state = 'open';
    flow.reader = undefined;
    for (const held of flow.held) if (held !== id) desk.drop(held);
    flow.held = [];
    if (reject) desk.accept(id, GATEWAY_PROHIBIT_MARK);
    else desk.drop(id);
    this.#keep(flow, desk.now);
  }

  #hold(flow: DatagramFlow, id: number, now: number): void {
    flow.held.push(id);
    if (this.#reading.get(flow.key) !== undefined) return;
    this.#known.delete(flow.key);
    const { oldest } = this.#reading;
    if (this.#reading.size >= READING_MAX && oldest !== undefined) this.#end(oldest, 'flows', now);
    flow.until = now + this.#desk.limits.time;
    this.#reading.put(flow.key, flow);
    this.#desk.wakeAt(flow.until);
  }

  #keep(flow: DatagramFlow, now: number): void {
    this.#reading.delete(flow.key);
    flow.until = now + KNOWN_MS;
    this.#known.put(flow.key, flow);
    if (this.#known.size > KNOWN_MAX) this.#known.deleteOldest();
  }

  #end(flow: DatagramFlow, reason: InspectReason, now: number): void {
    const desk = this.#desk;
    this.#reading.delete(flow.key);
    const spared = desk.spared(flow.ends, reason);
    for (const id of flow.held) {
      if (spared === 0) desk.drop(id);
      else desk.accept(id, spared);
    }
    flow.held = [];
    flow.reader = undefined;
    flow.state = 'open';
    const decision = spared === 0 ? undefined : ({ verdict: 'accept', reason: 'unread', wouldHave: 'drop' } as const);
    desk.tell(flow.ends, decision, {}, { reason }, now);
  }

  /** A packet that waited too long for the loop, or for which there was no room. */
  expired(id: number, now: number): void {
    for (const flow of this.#reading.values()) {
      if (!flow.held.includes(id)) continue;
      this.#end(flow, 'waiting', now);
      return;
    }
  }

  expire(now: number): void {
    for (const flow of this.#reading.values()) {
      if (flow.until > now) {
        this.#desk.wakeAt(flow.until);
        break;
      }
      this.#end(flow, 'time', now);
    }
    while ((this.#known.oldest?.until ?? now + 1) <= now) this.#known.deleteOldest();
  }

  #flowOf(ends: Ends, { protocol }: Datagram): DatagramFlow {
    const { flow, sourcePort } = ends;
    const { source, destination, destinationPort, icmpType, icmpCode } = flow;
    const key = `${protocol} ${source} ${sourcePort} ${destination} ${destinationPort} ${icmpType} ${icmpCode}`;
    const known = this.#reading.get(key) ?? this.#known.get(key);
    if (known !== undefined) {
      // Policy may have changed.
      Object.assign(known, { asked: this.#desk.judge.asked(flow) });
      return known;
    }
    return {
      key,
      ends,
      asked:
        protocol === PROTOCOL_UDP
          ? this.#desk.judge.asked(flow)
          : { ...this.#desk.judge.asked(flow), applications: [] },
      state: 'open',
      mark: 0,
      reader: undefined,
      known: undefined,
      held: [],
      until: 0,
      denied: undefined,
    };
  }
}
