/**
 * What a connection that is read for life is made of, one after the other: requests of HTTP/1 with their bodies, questions
 * of DNS over TCP. Pure; of each unit the reader says how long it is and what it asks for, and whether anything is behind
 * which no reader can follow.
 */
import type { ApplicationReading } from '../../policy/application.ts';
import { DnsQueryReader } from '../../wire/dns.ts';
import type { NameMeasures } from '../../wire/dns-name.ts';
import { readRequestHead } from '../../wire/http1.ts';
import { RequestBody } from '../../wire/http1-body.ts';
import type { Asked } from './asked.ts';
import { ambiguityOf, questionReading, requestReading } from './first-bytes.ts';
import type { InspectReason } from './reasons.ts';

export interface Unit {
  /** Bytes, without the body. */
  length: number;
  reading: ApplicationReading;
  body?: RequestBody;
  /** Why it must not pass, whatever policy says of the reading. */
  refused?: { reason: InspectReason; detail: string };
  /** Not well-formed, and why: behind it nothing can be followed. */
  detail?: string;
  /** Something else may follow that cannot be read. */
  last?: true;
  measures?: NameMeasures;
}

/** From the first byte of a unit on; undefined: it is not whole yet. */
export type ReadUnit = (bytes: Uint8Array) => Unit | undefined;

/** `asked`: at each request, since policy changes. */
export function requestUnits(asked: () => Pick<Asked, 'shapes'>): ReadUnit {
  return (bytes) => {
    const head = readRequestHead(bytes);
    if (head.state === 'more') return undefined;
    if (head.state === 'refused') return { length: bytes.length, reading: {}, detail: head.reason, last: true };
    const { value } = head;
    const { following, length } = value;
    const reading = requestReading(value);
    const body = new RequestBody(value);
    if (!asked().shapes) return { length, reading, body, ...(following !== 'request' && { last: true }) };
    const detail = ambiguityOf(value);
    if (detail === undefined) return { length, reading, body };
    const reason = following === 'request' ? 'bad-request' : 'upgrade';
    return { length, reading, body, refused: { reason, detail } };
  };
}

export function questionUnits(): ReadUnit {
  const queries = new DnsQueryReader();
  return (bytes) => {
    const query = queries.stream(bytes);
    if (query.state === 'more') return undefined;
    if (query.state === 'refused') return { length: bytes.length, reading: {}, detail: query.reason, last: true };
    const { name, type, size, length, longestLabel, labels, entropy, entropyOf } = query.value;
    const measures = { length, longestLabel, labels, entropy, entropyOf };
    return { length: 2 + size, reading: questionReading(name, type), measures };
  };
}
