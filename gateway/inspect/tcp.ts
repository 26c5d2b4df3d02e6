/**
 * Connections of TCP whose bytes are asked for (design §4.5): packets wait until their first bytes are read and policy has
 * judged them; of those that are read for life each unit is judged before it passes (followed.ts). Where the server speaks
 * first what it says goes on to the client meanwhile, which nobody asked to keep from it, and what the client says waits.
 * Where a server may ask for another hello, the first goes on once it is permitted, and the server's answer decides.
 */
import { GATEWAY_RESET_MARK, INSPECT_FIRST_MARK, INSPECT_REPLY_MARK } from '../../api/names.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { PROTOCOL_TCP, TCP_ACK, TCP_RST, TCP_SYN } from '../../wire/ip.ts';
import { INFO_CHECKSUM_NOT_VERIFIED, INFO_GSO, type QueuePacket } from '../../wire/nfqueue.ts';
import { AnsweringServers } from './answering-servers.ts';
import { Connection, type StreamFlow } from './connection.ts';
import { AS_DECIDED, type Desk, type Ends, NO_REMARKS, PASSED } from './desk.ts';
import { Endings } from './endings.ts';
import { readFirstBytes } from './first-bytes.ts';
import { FIRST_OF_STREAM, FlowTable, type LostReason } from './flows.ts';
import type { Judged } from './judge.ts';
import { LifeReader } from './life.ts';
import { KEY_WORDS, turn } from './segment.ts';
import { Strays } from './strays.ts';

const NOTHING = new Uint8Array(0);
export class TcpFlows {
  readonly #desk: Desk;
  readonly #table: FlowTable<Connection>;
  readonly #endings: Endings;
  readonly #life: LifeReader;
  /** The last packet's direction the other way round. */
  readonly #back = { version: 0, key: new Int32Array(KEY_WORDS) };
  /** Whether a server was ever heard before its client: where policy asks for TLS alone, no look-up is needed for it. */
  #keepsServers = false;
  readonly #servers = new AnsweringServers();
  readonly #strays = new Strays();

  constructor(desk: Desk, seed: number) {
    this.#desk = desk;
    this.#table = new FlowTable<Connection>(seed, (flow, reason) => this.#lost(flow, reason), desk.limits);
    this.#endings = new Endings(desk, this.#table);
    this.#life = new LifeReader(desk, this.#table, this.#endings);
  }

  get size(): number {
    return this.#table.size;
  }

  decide(packet: QueuePacket, now: number): void {
    const { id, bytes, start, end, mark, info } = packet;
    const table = this.#table;
    if (!table.read(bytes, start, end)) {
      this.#desk.refuse(id, table.reason ?? 'not-tcp');
      return;
    }
    const { flags } = table.segment;
    // Where nobody looked at it (nf_conntrack_checksum=0), and it is no large send, which has none yet.
    if ((info & (INFO_CHECKSUM_NOT_VERIFIED | INFO_GSO)) === INFO_CHECKSUM_NOT_VERIFIED) {
      if (!table.segment.checksumHolds(bytes)) {
        this.#desk.refuse(id, 'bad-checksum');
        return;
      }
    }
    if ((flags & TCP_SYN) !== 0 && (flags & TCP_ACK) === 0) {
      this.#syn(packet, now);
      return;
    }
    if ((mark & INSPECT_REPLY_MARK) !== 0) {
      this.#server(packet, now);
      return;
    }
    this.#client(packet, now);
  }

  /** A first packet that is asked for: names of the address decide, or what its bytes will say. */
  #syn({ id, bytes, start }: QueuePacket, now: number): void {
    const desk = this.#desk;
    const { segment } = this.#table;
    if (segment.payload !== segment.end) {
      desk.refuse(id, 'fast-open');
      return;
    }
    const ends = this.#ends(bytes, start, false);
    const decide = (at: number, again?: (now: number) => void): void => {
      const judged = desk.decideFirst(ends, at, again);
      if (judged === undefined) return;
      if (judged.mark !== 0) {
        desk.accept(id, judged.mark);
        return;
      }
      if (judged.decision.verdict === 'reject') desk.accept(id, GATEWAY_RESET_MARK);
      else desk.drop(id);
    };
    decide(now, (at) => decide(at));
  }

  #client(packet: QueuePacket, now: number): void {
    const { id, bytes, start, mark } = packet;
    const table = this.#table;
    const { segment } = table;
    const outcome = table.add(bytes, id, now, (mark & INSPECT_FIRST_MARK) !== 0 ? FIRST_OF_STREAM : 0);
    const { flow, reason } = table;
    if (outcome === 'drop') {
      this.#desk.refuse(id, reason ?? 'no-start');
      if (reason === 'no-start') this.#stray(bytes, start, now);
      return;
    }
    if (flow === undefined || (segment.flags & TCP_RST) !== 0) {
      this.#desk.accept(id, PASSED);
      if (flow !== undefined) this.#leave(flow);
      return;
    }
    const connection = this.#connectionOf(flow, bytes, start, now);
    connection.heardClient(segment.acknowledgement);
    if ((mark & INSPECT_FIRST_MARK) !== 0) connection.heardServer(segment.sequence);
    if (outcome === 'followed') {
      this.#life.follow(connection, packet, now);
      return;
    }
    if (outcome === 'decided' || connection.server?.age === 'decided') {
      if (outcome !== 'decided') this.#table.decide(flow, now);
      this.#late(connection, id);
      return;
    }
    if (outcome === 'pass') {
      this.#desk.accept(id, PASSED);
      return;
    }
    // A connection that waits for a name ends here, too.
    if (outcome === 'refused') {
      this.#desk.drop(id);
      connection.last = id;
      this.#endings.end(connection, reason ?? 'no-start', {}, now);
    } else if (outcome === 'ready') this.#advance(connection, now);
    else this.#desk.wakeAt(now + this.#desk.limits.time);
  }

  #server({ id, bytes, start }: QueuePacket, now: number): void {
    const table = this.#table;
    const desk = this.#desk;
    const { segment } = table;
    turn(this.#table.segment, this.#back);
    const client = table.streamOf(this.#back);
    const known = client?.context;
    // What a server says teaches names; nobody asks it of anything else that is read for life.
    if (known?.state === 'permitted' && client?.age === 'followed') {
      desk.accept(id, PASSED);
      return;
    }
    if (known !== undefined && known.state !== 'open' && known.state !== 'waiting') {
      this.#late(known, id);
      return;
    }
    // Which byte is its first, the client says; else it is the first that comes. Its peer gets all that does, in any order.
    const there = table.streamOf(segment);
    this.#keepsServers = true;
    const first = there === undefined && segment.sequence === (known?.clientExpects ?? segment.sequence);
    const outcome = table.add(bytes, id, now, first ? FIRST_OF_STREAM : 0);
    const { flow, reason } = table;
    if (outcome === 'drop') {
      desk.refuse(id, reason ?? 'no-start');
      return;
    }
    if (flow === undefined || (segment.flags & TCP_RST) !== 0) {
      desk.accept(id, PASSED);
      return;
    }
    const connection =
      known ??
      flow.context ??
      new Connection(this.#ends(bytes, start, true), desk.judge.asked(this.#ends(bytes, start, true).flow));
    flow.context = connection;
    connection.server = flow;
    if (client !== undefined) {
      client.context = connection;
      connection.client = client;
    }
    connection.heardServer(segment.acknowledgement);
    if (outcome === 'decided') {
      this.#late(connection, id);
      return;
    }
    if (outcome === 'refused') {
      desk.drop(id);
      connection.answers.push(id);
      this.#endings.end(connection, reason ?? 'no-start', {}, now);
      return;
    }
    if (outcome === 'held') return;
    if (outcome === 'ready') {
      flow.passUpTo(flow.length, connection.answers);
      connection.heardClient(flow.sequenceOf(flow.length));
      this.#advance(connection, now);
    } else connection.answers.push(id);
    if (connection.state === 'open' || connection.state === 'waiting') connection.passAnswers(desk);
    connection.answers = [];
  }

  /** A reset ends an undecided connection, or none that its receiver knows: what comes then is read from the first byte on. */
  #leave(flow: StreamFlow): void {
    if (flow.age !== 'silent' && flow.age !== 'speaking') return;
    const connection = flow.context;
    for (const one of [flow, connection?.server]) {
      if (one === undefined) continue;
      for (let index = 0; index < one.heldCount; index++) this.#desk.drop(one.held[index]!);
      this.#table.forget(one);
    }
    if (connection !== undefined) connection.state = 'denied';
  }

  /**
   * Packets that were on their way when the verdict was given; or of another connection with the same ports and sequence
   * numbers, which only the kernel can tell.
   */
  #late({ state }: Connection, id: number): void {
    if (state === 'permitted') this.#desk.accept(id, AS_DECIDED);
    else this.#desk.drop(id);
  }

  /** There is more to read. */
  #advance(connection: Connection, now: number): void {
    if (connection.state !== 'open') return;
    const desk = this.#desk;
    const { client, server, asked, ends } = connection;
    const said = readFirstBytes(asked, client?.view() ?? NOTHING, server?.view() ?? NOTHING, (hello) =>
      this.#servers.knows(ends, hello, now),
    );
    // Of a packet that has more than is read, nobody knows what would go on with it.
    if (said.state === 'answer' && client?.exhausted !== 'bytes') {
      // From a server that has ended nothing more will come.
      const last = server?.ended === true;
      if (last || !connection.wasLetOn)
        this.#conclude(connection, said.reading, undefined, now, last ? undefined : client);
      return;
    }
    if (said.state === 'read') {
      if (said.answered !== undefined) this.#servers.answered(ends, said.answered, now);
      if (client !== undefined && said.units !== undefined && (said.units === 'questions' || asked.life)) {
        this.#life.begin(connection, client, said.units, now);
        return;
      }
      this.#conclude(connection, said.reading, said.detail, now);
      return;
    }
    if (client?.ended === true && client.length === 0) {
      // It leaves without a word.
      this.#pass(client, 0);
      return;
    }
    const exhausted = client?.exhausted ?? server?.exhausted;
    if (exhausted !== undefined && (client?.exhausted !== undefined || server?.exhausted === 'bytes')) {
      this.#endings.end(connection, exhausted, {}, now);
    } else desk.wakeAt(now + desk.limits.time);
  }

  /** `client`: what it has said goes on if it may, and the server's answer says whether that is all. */
  #conclude(
    connection: Connection,
    reading: ApplicationReading,
    detail: string | undefined,
    now: number,
    client?: StreamFlow,
  ): void {
    const desk = this.#desk;
    const { ends, asked } = connection;
    if (detail === 'http2-preface' && asked.shapes) {
      this.#endings.end(connection, 'bad-request', reading, now, detail);
      return;
    }
    const again = (at: number): void => this.#conclude(connection, reading, detail, at, client);
    const judged = this.#judge(connection, reading, now, again);
    if (judged === undefined) return;
    if (judged.mark !== 0 && client !== undefined) {
      connection.letOn(client.sequenceOf(client.length));
      this.#pass(client, client.length);
      return;
    }
    desk.tally.count(`read_${reading.application ?? 'none'}`);
    const { decision, mark } = judged;
    if (mark !== 0) {
      connection.permit(mark, this.#table, desk, now);
      const read = judged.reading ?? reading;
      desk.tell(ends, decision, read, detail === undefined ? NO_REMARKS : { detail }, now);
    } else this.#endings.deny(connection, judged, reading, detail === undefined ? {} : { detail }, now);
  }

  /** Up to a place of its stream. */
  #pass(client: StreamFlow, place: number): void {
    const ids: number[] = [];
    client.passUpTo(place, ids);
    for (const id of ids) this.#desk.accept(id, PASSED);
  }

  /** Undefined: it waits for a name. */
  #judge(
    connection: Connection,
    reading: ApplicationReading,
    now: number,
    resume: (now: number) => void,
  ): Judged | undefined {
    // Once: what is asked for a second time is judged by what is known.
    const first = connection.state === 'open';
    const again = (at: number): void => {
      if (connection.state !== 'waiting') return;
      resume(at);
    };
    const judged = this.#desk.decide(connection.ends.flow, reading, now, first ? again : undefined);
    if (judged === undefined) connection.state = 'waiting';
    return judged;
  }

  /** A packet that waited too long for the loop, or for which there was no room. */
  expired(id: number, now: number): void {
    const undecided = this.#table.holderOf(id)?.context;
    if (undecided !== undefined) {
      this.#endings.end(undecided, 'waiting', {}, now);
      return;
    }
    this.#life.expired(id, now);
  }

  expire(now: number): void {
    this.#table.expire(now);
    this.#life.expire(now);
    this.#servers.expire(now);
    this.#strays.expire(now);
  }

  #lost(flow: StreamFlow, reason: LostReason): void {
    const connection = flow.context;
    const { now } = this.#desk;
    if (connection === undefined) {
      for (let index = 0; index < flow.heldCount; index++) this.#desk.drop(flow.held[index]!);
      return;
    }
    const held = connection.followed?.held;
    // Nobody may be there any more. Who is, and says something, is a stray then.
    if (reason === 'replaced' || held?.length === 0) {
      for (const { id } of held ?? []) this.#desk.drop(id);
      this.#life.leave(connection);
      this.#desk.tally.count(`reason_${reason}`);
      return;
    }
    this.#life.leave(connection);
    this.#endings.end(connection, reason, {}, now);
  }

  /** Bytes in the middle of a connection that nobody here knows: after a few its ends are told. */
  #stray(bytes: Uint8Array, start: number, now: number): void {
    const ends = this.#ends(bytes, start, false);
    const { source, destination, destinationPort } = ends.flow;
    const key = `${source} ${ends.sourcePort} ${destination} ${destinationPort}`;
    if (!this.#strays.isLast(key, now)) return;
    const connection = new Connection(ends, this.#desk.judge.asked(ends.flow));
    const { segment } = this.#table;
    connection.serverExpects = segment.sequence;
    connection.clientExpects = segment.acknowledgement;
    this.#endings.end(connection, 'no-start', {}, now);
  }

  #connectionOf(flow: StreamFlow, bytes: Uint8Array, start: number, now: number): Connection {
    if (flow.context === undefined) {
      const server = this.#serverOf();
      // What the server said of a connection before this one with the same ports is not this one's; unless its greeting
      // decided, and the client had not said anything yet.
      const before = server?.context;
      const known = server?.age === 'decided' && before?.client !== undefined ? undefined : before;
      const ends = known?.ends ?? this.#ends(bytes, start, false);
      flow.context = known ?? new Connection(ends, this.#desk.judge.asked(ends.flow));
      if (known === undefined && server !== undefined) this.#table.forget(server);
      this.#table.flow = flow;
    }
    flow.context.client = flow;
    if (flow.age === 'speaking') this.#desk.wakeAt(now + this.#desk.limits.time);
    return flow.context;
  }

  /** Of the packet whose segment was read. */
  #ends(bytes: Uint8Array, start: number, reply: boolean): Ends {
    const { segment } = this.#table;
    const { addressText } = this.#desk;
    const four = segment.version === 4;
    const family = four ? 4 : 6;
    const from = addressText(bytes, start + (four ? 12 : 8), family);
    const to = addressText(bytes, start + (four ? 16 : 24), family);
    const ports = segment.key[8]!;
    const [first, second] = [ports >>> 16, ports & 0xffff];
    const flow = reply
      ? { source: to, destination: from, protocol: PROTOCOL_TCP, destinationPort: first }
      : { source: from, destination: to, protocol: PROTOCOL_TCP, destinationPort: second };
    return { flow, sourcePort: reply ? second : first };
  }

  /** The other direction of the packet at hand, if it is kept. */
  #serverOf(): StreamFlow | undefined {
    if (!this.#keepsServers) return undefined;
    turn(this.#table.segment, this.#back);
    return this.#table.streamOf(this.#back);
  }
}
