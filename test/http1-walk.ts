/** One direction of an HTTP/1.x connection, walked as a worker walks it: a head is held until it is read, a body passes. */

import { type RequestHead, readRequestHead } from '../wire/http1.ts';
import { RequestBody } from '../wire/http1-body.ts';

export interface Walk {
  heads: RequestHead[];
  /** Requests whose end was reached. */
  complete: number;
  /** `head`, or the state or the reason that it ended with. */
  end: string;
  /** Bytes that were let pass. */
  passed: number;
}

export function walk(segments: readonly Uint8Array[]): Walk {
  const found: Walk = { heads: [], complete: 0, end: 'head', passed: 0 };
  let held: Uint8Array = new Uint8Array(0);
  let body: RequestBody | undefined;
  for (const segment of segments) {
    held = held.length === 0 ? segment : Uint8Array.from([...held, ...segment]);
    while (held.length > 0) {
      if (body === undefined) {
        const reading = readRequestHead(held);
        if (reading.state === 'more') break;
        if (reading.state === 'refused') return { ...found, end: reading.reason };
        found.heads.push(reading.value);
        body = new RequestBody(reading.value);
        held = held.subarray(reading.value.length);
        found.passed += reading.value.length;
      }
      const taken = body.take(held);
      held = held.subarray(taken);
      found.passed += taken;
      found.end = body.state;
      if (body.state === 'refused') return { ...found, end: body.reason ?? '' };
      if (body.state === 'body') break;
      found.complete++;
      if (body.state !== 'request') return found;
      body = undefined;
      found.end = 'head';
    }
  }
  return found;
}
