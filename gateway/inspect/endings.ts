/** How a connection ends that must not go on: by policy, or since inspection cannot say what it is; and that it is told. */
import type { ApplicationReading } from '../../policy/application.ts';
import type { Connection } from './connection.ts';
import type { Desk, Remarks } from './desk.ts';
import type { FlowTable } from './flows.ts';
import type { Judged } from './judge.ts';
import type { InspectReason } from './reasons.ts';

export class Endings {
  readonly #desk: Desk;
  readonly #table: FlowTable<Connection>;

  constructor(desk: Desk, table: FlowTable<Connection>) {
    this.#desk = desk;
    this.#table = table;
  }

  deny(connection: Connection, { decision }: Judged, reading: ApplicationReading, remarks: Remarks, now: number): void {
    const tellClient = decision.verdict !== 'drop';
    connection.end(tellClient, this.#table, this.#desk, now);
    const reason = decision.verdict === 'accept' ? ({ reason: 'no-policy' } as const) : {};
    this.#desk.tell(connection.ends, decision, reading, { ...reason, ...remarks, delete: true }, now);
  }

  /** Inspection itself ends it. */
  end(connection: Connection, reason: InspectReason, reading: ApplicationReading, now: number, detail?: string): void {
    if (connection.state === 'permitted' || connection.state === 'denied') {
      if (connection.followed === undefined || connection.state === 'denied') return;
    }
    const desk = this.#desk;
    const spared = reason === 'reset' ? 0 : desk.spared(connection.ends, reason);
    const remarks = { reason, ...(detail !== undefined && { detail }) };
    if (spared === 0) {
      connection.end(true, this.#table, desk, now);
      desk.tell(connection.ends, undefined, reading, { ...remarks, delete: true }, now);
      return;
    }
    if (connection.followed !== undefined) for (const { id } of connection.followed.held) desk.accept(id, spared);
    connection.permit(spared, this.#table, desk, now);
    desk.tell(connection.ends, { verdict: 'accept', reason: 'unread', wouldHave: 'drop' }, reading, remarks, now);
  }
}
