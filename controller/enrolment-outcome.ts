/** What became of a request for a certificate: label of the metric, word of the log; the number is the HTTP status. */
import type { Enrolled } from '../api/enrolment.ts';

export const enrolmentResults = {
  enrolled: 200,
  /** The same key with the same token, again: it gets the same certificate. */
  repeated: 200,
  renewed: 200,
  'bad-request': 400,
  'unknown-token': 401,
  expired: 403,
  used: 403,
  revoked: 403,
  'not-a-client': 403,
  'too-slow': 408,
  'too-large': 413,
  'too-many': 429,
  failed: 500,
} as const;

export type EnrolmentResult = keyof typeof enrolmentResults;

/** For the log: which token, whose certificate. Nothing secret. */
export type Detail = Record<string, string>;

export type Outcome = { result: EnrolmentResult; detail: Detail } & ({ enrolled: Enrolled } | { error: string });

export function refused(result: EnrolmentResult, error: string, detail: Detail = {}): Outcome {
  return { result, error, detail };
}
