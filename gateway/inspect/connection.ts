/**
 * One TCP connection that is undecided, or is read for life: both directions' streams, what is known of where its ends
 * are, and how it ends. Verdicts on packets go through the desk.
 */

import type { Asked } from './asked.ts';
import type { Desk, Ends } from './desk.ts';
import { PASSED } from './desk.ts';
import type { Flow, FlowTable } from './flows.ts';
import type { Followed } from './followed.ts';
import type { Judged } from './judge.ts';
import type { InspectReason } from './reasons.ts';
import { resetPacket } from './reset.ts';
import type { Unit } from './units.ts';

export type StreamFlow = Flow<Connection>;

export class Connection {
  readonly ends: Ends;
  readonly asked: Asked;
  client: StreamFlow | undefined;
  server: StreamFlow | undefined;
  /** `waiting`: for the addresses of a name. */
  state: 'open' | 'waiting' | 'permitted' | 'denied' = 'open';
  /** Of the verdict that permits. */
  mark = 0;
  /** What the client said goes on to the server, without a verdict on what follows. */
  wasLetOn = false;
  followed: Followed | undefined;
  /** Bytes that are kept of it while it is followed. */
  memory = 0;
  /** Sequence number that each end expects next; undefined: not seen. */
  clientExpects: number | undefined;
  serverExpects: number | undefined;
  /** Packets of the server that go on with whatever becomes of the connection now, unless it ends. */
  answers: number[] = [];
  /** The packet at hand that no stream holds, of the client. */
  last: number | undefined;
  /** The unit that was judged last, and how. */
  unit: Unit | undefined;
  judged: Judged | undefined;
  /** Why a question must not pass that policy permits. */
  refusal: InspectReason | undefined;

  constructor(ends: Ends, asked: Asked) {
    this.ends = ends;
    this.asked = asked;
  }

  /** A packet of the client says what it expects. */
  heardClient(acknowledgement: number): void {
    const known = this.clientExpects;
    if (known === undefined || ((acknowledgement - known) | 0) > 0) this.clientExpects = acknowledgement;
  }

  heardServer(acknowledgement: number): void {
    this.serverExpects ??= acknowledgement;
  }

  /** Up to that sequence number. */
  letOn(edge: number): void {
    this.wasLetOn = true;
    this.state = 'open';
    this.serverExpects = edge;
  }

  /** All that waits goes on with the mark. */
  permit(mark: number, table: FlowTable<Connection>, desk: Desk, now: number): void {
    this.state = 'permitted';
    this.mark = mark;
    for (const flow of [this.client, this.server]) {
      if (flow === undefined) continue;
      for (let index = 0; index < flow.heldCount; index++) desk.accept(flow.held[index]!, mark);
      table.decide(flow, now);
    }
    for (const id of this.answers) desk.accept(id, mark);
    if (this.last !== undefined) desk.accept(this.last, mark);
    this.answers = [];
    this.last = undefined;
  }

  /**
   * Nothing of it passes any more. The server is told always, so that it does not wait; the client if `tellClient`. A packet
   * that is at hand becomes the reset of its own direction, which so goes the way of all others; without one it is sent raw.
   */
  end(tellClient: boolean, table: FlowTable<Connection>, desk: Desk, now: number): void {
    this.state = 'denied';
    const toServer = this.followed?.held.map(({ id }) => id) ?? [];
    const toClient = [...this.answers];
    const { client, server } = this;
    if (client !== undefined) for (let index = 0; index < client.heldCount; index++) toServer.push(client.held[index]!);
    if (server !== undefined) for (let index = 0; index < server.heldCount; index++) toClient.push(server.held[index]!);
    if (this.last !== undefined) toServer.push(this.last);
    this.answers = [];
    this.last = undefined;
    const expects = this.serverExpects ?? client?.sequenceOf(0);
    const serverExpects = this.followed?.edge ?? expects;
    this.#tell(toServer, false, serverExpects, this.clientExpects, desk);
    this.#tell(toClient, true, tellClient ? this.clientExpects : undefined, serverExpects, desk);
    for (const flow of [client, server]) if (flow !== undefined) table.decide(flow, now);
    if (this.followed !== undefined) this.followed.held = [];
  }

  #tell(ids: number[], toClient: boolean, expects: number | undefined, other: number | undefined, desk: Desk): void {
    const { flow, sourcePort = 0 } = this.ends;
    const { source, destination, destinationPort = 0 } = flow;
    let reset: Uint8Array | undefined;
    if (expects !== undefined) {
      const ends = toClient
        ? { source: destination, sourcePort: destinationPort, destination: source, destinationPort: sourcePort }
        : { source, sourcePort, destination, destinationPort };
      reset = resetPacket(ends, expects, other ?? 0);
    }
    let told = reset === undefined;
    for (const id of ids) {
      if (!told && reset !== undefined && desk.replace(id, reset)) told = true;
      else desk.drop(id);
    }
    if (!told && reset !== undefined) desk.reset(reset);
  }

  /** What the server said goes on to the client, which may need it to say more. */
  passAnswers(desk: Desk): void {
    for (const id of this.answers) desk.accept(id, PASSED);
  }
}
