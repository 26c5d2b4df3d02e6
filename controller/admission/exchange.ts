/**
 * AdmissionReview of admission.k8s.io/v1 (k8s.io/api/admission/v1), both ways: the request that a body holds, and the
 * answer to it. What is in it was written by whoever reached the port.
 */
import { isRecord } from '../../api/plan-delta.ts';
import { fail, ok, type Result } from '../../api/result.ts';
import type { AdmissionRequest, Verdict } from './review.ts';

/** Of the API server's: it cuts warnings that are longer, and drops those beyond the total (warning headers). */
const WARNING_LENGTH = 256;
const WARNINGS_LENGTH = 4096;
/** Ours: what a person reads in a terminal. */
const MESSAGE_LENGTH = 8192;
const UID_LENGTH = 128;

const API_VERSION = 'admission.k8s.io/v1';
const operations = new Set(['CREATE', 'UPDATE', 'DELETE', 'CONNECT']);

export interface ReviewRequest extends AdmissionRequest {
  uid: string;
  kind: string;
}

export function readReview(body: string): Result<ReviewRequest> {
  let input: unknown;
  try {
    input = JSON.parse(body);
  } catch {
    return fail('the body is no JSON');
  }
  if (!isRecord(input) || input.apiVersion !== API_VERSION || input.kind !== 'AdmissionReview') {
    return fail(`expected an AdmissionReview of ${API_VERSION}`);
  }
  const { request } = input;
  if (!isRecord(request)) return fail('request: expected an object');
  const { uid, kind, operation, subResource, object, oldObject } = request;
  if (typeof uid !== 'string' || uid === '' || uid.length > UID_LENGTH) {
    return fail(`request.uid: expected text of at most ${UID_LENGTH} characters`);
  }
  if (!isRecord(kind) || typeof kind.kind !== 'string') return fail('request.kind.kind: expected text');
  if (typeof operation !== 'string' || !operations.has(operation)) {
    return fail(`request.operation: expected ${[...operations].join(', ')}`);
  }
  if (subResource !== undefined && typeof subResource !== 'string') return fail('request.subResource: expected text');
  if ((operation === 'CREATE' || operation === 'UPDATE') && !isRecord(object)) {
    return fail('request.object: expected an object');
  }
  if ((operation === 'UPDATE' || operation === 'DELETE') && !isRecord(oldObject)) {
    return fail('request.oldObject: expected an object');
  }
  return ok({
    uid,
    kind: kind.kind,
    operation: operation as AdmissionRequest['operation'],
    ...(subResource !== undefined && { subResource }),
    object,
    oldObject,
  });
}

export function answerTo(uid: string, { allowed, status, warnings }: Verdict): string {
  const shown = fitting(warnings.map((text) => printable(text)));
  return JSON.stringify({
    apiVersion: API_VERSION,
    kind: 'AdmissionReview',
    response: {
      uid,
      allowed,
      ...(status !== undefined && {
        status: { code: status.code, reason: status.reason, message: cut(printable(status.message), MESSAGE_LENGTH) },
      }),
      ...(shown.length > 0 && { warnings: shown }),
    },
  });
}

/** As many as the API server passes on; the last says how many there are beside. */
function fitting(warnings: readonly string[]): string[] {
  const shown: string[] = [];
  let left = WARNINGS_LENGTH - bytes(more(warnings.length));
  for (const text of warnings) {
    const warning = cut(text, WARNING_LENGTH);
    left -= bytes(warning);
    if (left < 0) return [...shown, more(warnings.length - shown.length)];
    shown.push(warning);
  }
  return shown;
}

const more = (count: number): string => `and ${count} more`;
const bytes = (text: string): number => Buffer.byteLength(text);

/** By bytes, at a whole character. */
function cut(text: string, length: number): string {
  if (bytes(text) <= length) return text;
  let end = length - 3;
  const all = Buffer.from(text);
  while (end > 0 && ((all[end] ?? 0) & 0xc0) === 0x80) end--;
  return `${all.subarray(0, end).toString()}...`;
}

/** A terminal shows it, and a header carries it. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out
const printable = (text: string): string => text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ');
