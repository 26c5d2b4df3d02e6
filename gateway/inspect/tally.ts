/**
 * What a thread that reads flows counts, in memory that it shares with the main one: flows, requests and questions by what
 * they said, and what inspection itself ended or dropped by reason. One writer each (kernel/queue-memory.ts has the same, of packets).
 */
import { applications } from '../../api/application.ts';
import { type UntaughtReason, untaughtReasons } from './conversations.ts';
import { type InspectReason, inspectReasons } from './reasons.ts';

export const tallyNames = [
  /** Flows, requests and questions that were decided by what they said, by application; `read_none`: nothing that we know. */
  ...applications.map((application) => `read_${application}` as const),
  'read_none',
  /** Flows that were decided at their first packet, by the name of an address. */
  'first',
  /** Of all of them. */
  'permitted',
  'denied',
  /** Taken from memory, of decisions. */
  'remembered',
  /** Names that were asked for, and of them those that nobody answered in time. */
  'resolved',
  'unresolved',
  /** Answers of resolvers that taught names, and of them those that went on before who has to know had said so. */
  'taught',
  'taught_late',
  /** Connections to resolvers that teach nothing any more. */
  ...(Object.keys(untaughtReasons) as UntaughtReason[]).map((reason) => `untaught_${reason}` as const),
  ...(Object.keys(inspectReasons) as InspectReason[]).map((reason) => `reason_${reason}` as const),
] as const;
export type TallyName = (typeof tallyNames)[number] | `reason_${InspectReason}` | `read_${string}`;

const places = new Map<string, number>(tallyNames.map((name, at) => [name, at]));
export const TALLY_BYTES = 8 * tallyNames.length;

export class Tally {
  readonly #counts: Float64Array;

  constructor(buffer: ArrayBufferLike = new ArrayBuffer(TALLY_BYTES)) {
    this.#counts = new Float64Array(buffer);
  }

  count(name: TallyName): void {
    const at = places.get(name);
    if (at !== undefined) this.#counts[at] = (this.#counts[at] ?? 0) + 1;
  }

  read(): Record<string, number> {
    return Object.fromEntries(tallyNames.map((name, at) => [name, this.#counts[at] ?? 0]));
  }
}
