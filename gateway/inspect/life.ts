/**
 * Connections of TCP of which each unit is judged (followed.ts): requests of HTTP, questions of DNS. The verdict on the first is the
 * connection's, with the mark by which the kernel goes on asking; behind it packets only pass. Where nothing can be followed any
 * more, and policy permits it, the connection is decided for good.
 */
import { INSPECT_LIFE_MARK } from '../../api/names.ts';
import type { QueuePacket } from '../../wire/nfqueue.ts';
import type { Connection, StreamFlow } from './connection.ts';
import { type Desk, PASSED, type Remarks } from './desk.ts';
import type { Endings } from './endings.ts';
import type { FlowTable } from './flows.ts';
import { Followed, type FollowOutcome, type UnitVerdict } from './followed.ts';
import { isPlain } from './report.ts';
import { questionUnits, requestUnits, type Unit } from './units.ts';

/** Over the bound so much of it is left. */
const LEAVE = 0.9;

export class LifeReader {
  readonly #desk: Desk;
  readonly #table: FlowTable<Connection>;
  readonly #endings: Endings;
  readonly #questions = questionUnits();
  /** Connections of which packets wait, and since when; the longest first. */
  readonly #holding = new Map<Connection, number>();
  /** Bytes that are kept of all. */
  #memory = 0;

  constructor(desk: Desk, table: FlowTable<Connection>, endings: Endings) {
    this.#desk = desk;
    this.#table = table;
    this.#endings = endings;
  }

  /** From here on each unit is judged, the first too. */
  begin(connection: Connection, client: StreamFlow, units: 'requests' | 'questions', now: number): void {
    const { flow } = connection.ends;
    const read = units === 'requests' ? requestUnits(() => this.#desk.judge.asked(flow)) : this.#questions;
    const followed = new Followed(client.sequenceOf(0), read, (unit, again) =>
      this.#judgeUnit(connection, unit, again, this.#now),
    );
    connection.followed = followed;
    const held: { id: number; end: number }[] = [];
    for (let index = 0; index < client.heldCount; index++) {
      const end = client.heldEnd(index);
      const id = client.held[index]!;
      // What came ahead of a gap is sent again.
      if (end > client.length + 1) this.#desk.drop(id);
      else held.push({ id, end: client.sequenceOf(Math.min(end, client.length)) });
    }
    this.#now = now;
    const view = new Uint8Array(client.view());
    this.#table.follow(client, now);
    this.#after(connection, followed.begin(view, held), undefined, now);
  }

  /** Of the packet or the message at hand. */
  #now = 0;

  #judgeUnit(connection: Connection, unit: Unit, again: boolean, now: number): UnitVerdict {
    const desk = this.#desk;
    const { reading, measures } = unit;
    const resume = (at: number): void => {
      const { followed } = connection;
      if (followed === undefined || connection.state === 'denied') return;
      this.#now = at;
      this.#after(connection, followed.resume(), undefined, at);
    };
    const judged = desk.decide(connection.ends.flow, reading, now, again ? undefined : resume);
    if (judged === undefined) return 'wait';
    desk.tally.count(`read_${reading.application ?? 'none'}`);
    connection.judged = judged;
    connection.unit = unit;
    if (judged.mark === 0) return 'deny';
    const { source } = connection.ends.flow;
    if (measures !== undefined) {
      const reason = desk.questions.refuse(source, judged.decision, measures, now);
      if (reason !== undefined && !desk.judge.audits(source)) {
        connection.refusal = reason;
        return 'deny';
      }
    }
    const remarks: Remarks = { ...(unit.detail !== undefined && { detail: unit.detail }), life: true };
    // Of what comes later only what is no plain permission is told.
    if (connection.mark === 0 || unit.detail !== undefined || !isPlain(judged.decision)) {
      desk.tell(connection.ends, judged.decision, reading, remarks, now);
    }
    if (connection.mark === 0) connection.mark = judged.mark;
    return 'permit';
  }

  follow(connection: Connection, packet: QueuePacket, now: number): void {
    const { followed } = connection;
    const { segment } = this.#table;
    if (followed === undefined) {
      this.#desk.drop(packet.id);
      return;
    }
    this.#now = now;
    const outcome = followed.take(segment.sequence, packet.bytes, segment.payload, segment.end, packet.id);
    this.#after(connection, outcome, packet.id, now);
  }

  #after(connection: Connection, outcome: FollowOutcome, id: number | undefined, now: number): void {
    const desk = this.#desk;
    const { followed } = connection;
    if (followed === undefined) return;
    // The first verdict is the connection's; after it packets only pass.
    const opening = connection.state !== 'permitted';
    const life = (connection.mark | INSPECT_LIFE_MARK) >>> 0;
    const mark = followed.finished ? connection.mark : opening ? life : PASSED;
    if (connection.mark !== 0 && outcome !== 'refused') connection.state = 'permitted';
    for (const one of followed.released.splice(0)) desk.accept(one, mark);
    switch (outcome) {
      case 'pass':
        if (id !== undefined) desk.accept(id, mark);
        break;
      case 'drop':
        if (id !== undefined) desk.drop(id);
        break;
      case 'refused':
        if (id !== undefined && !followed.held.some((one) => one.id === id)) followed.held.push({ id, end: 0 });
        this.#refuse(connection, followed, now);
        return;
      default:
    }
    if (followed.finished && followed.held.length === 0 && connection.client !== undefined) {
      this.#table.decide(connection.client, now);
      connection.followed = undefined;
    }
    this.#account(connection, now);
    if (connection.state === 'denied') return;
    if (followed.held.length === 0) this.#holding.delete(connection);
    else if (!this.#holding.has(connection)) {
      this.#holding.set(connection, now);
      desk.wakeAt(now + desk.limits.time);
    }
  }

  /** All that is kept of connections together is bounded: who has been silent longest gives way. */
  #account(connection: Connection, now: number): void {
    const kept = connection.followed?.memory ?? 0;
    this.#memory += kept - connection.memory;
    connection.memory = kept;
    const { memory } = this.#desk.limits;
    if (this.#memory <= memory) return;
    for (const one of this.#table.followed()) {
      const { context } = one;
      if (context?.followed === undefined || context.memory === 0) continue;
      context.followed.forget();
      this.#memory += context.followed.memory - context.memory;
      context.memory = context.followed.memory;
      if (context.memory > 0) {
        this.leave(context);
        this.#endings.end(context, 'memory', {}, now);
      }
      if (this.#memory <= memory * LEAVE) return;
    }
  }

  #refuse(connection: Connection, followed: Followed, now: number): void {
    this.leave(connection);
    const { unit, judged } = connection;
    const reading = unit?.reading ?? {};
    const reason = followed.reason ?? connection.refusal;
    if (reason !== undefined) {
      this.#endings.end(connection, reason, reading, now, followed.detail);
      return;
    }
    if (judged === undefined) {
      this.#endings.end(connection, 'no-policy', reading, now);
      return;
    }
    this.#endings.deny(
      connection,
      judged,
      reading,
      unit?.detail === undefined ? {} : { reason: 'bad-request', detail: unit.detail },
      now,
    );
  }

  /** It is followed no more. */
  leave(connection: Connection): void {
    this.#holding.delete(connection);
    this.#memory -= connection.memory;
    connection.memory = 0;
  }

  /** A packet that waited too long for the loop, or for which there was no room. */
  expired(id: number, now: number): void {
    for (const connection of this.#holding.keys()) {
      if (connection.followed?.held.some((one) => one.id === id) !== true) continue;
      this.leave(connection);
      this.#endings.end(connection, 'waiting', {}, now);
      return;
    }
  }

  expire(now: number): void {
    const { time } = this.#desk.limits;
    for (const [connection, since] of this.#holding) {
      if (since + time > now) {
        this.#desk.wakeAt(since + time);
        return;
      }
      this.leave(connection);
      this.#endings.end(connection, 'time', {}, now);
    }
  }
}
