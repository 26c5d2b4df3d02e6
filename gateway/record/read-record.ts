/**
 * A flow record from a line of a log that others may have written to. What it says has the type that it should have, or the
 * line is no record; what is not known here stays in it. Pure, and never throws.
 */
import { canonicalAddress } from '../../api/address.ts';
import { isRecord, isSafeJson } from '../../api/plan-delta.ts';
import type { FlowRecord } from './flow-record.ts';

/** Longer than any that a gateway writes: names are at most 253 octets, and a pod is of few services. */
export const RECORD_MAX = 64 * 1024;

export const events = ['start', 'end', 'deny', 'audit', 'match'] as const satisfies readonly FlowRecord['event'][];
export const verdicts = [
  'accept',
  'drop',
  'reject',
  'audit',
  'match',
] as const satisfies readonly FlowRecord['verdict'][];

type Check = (value: unknown) => boolean;
const text: Check = (value) => typeof value === 'string';
const number: Check = (value) => typeof value === 'number' && value >= 0;
const upTo =
  (most: number): Check =>
  (value) =>
    Number.isInteger(value) && Number(value) >= 0 && Number(value) <= most;
const oneOf =
  (...words: readonly unknown[]): Check =>
  (value) =>
    words.includes(value);
const address: Check = (value) => {
  const canonical = canonicalAddress(String(value));
  return typeof value === 'string' && canonical.ok && canonical.value === value;
};
const texts: Check = (value) => Array.isArray(value) && value.every(text);
const object =
  (fields: Record<string, Check>): Check =>
  (value) =>
    isRecord(value) && Object.entries(fields).every(([name, check]) => value[name] === undefined || check(value[name]));
const both: Check = (value) => isRecord(value) && number(value.egress) && number(value.ingress);
const time: Check = (value) => typeof value === 'string' && value.length < 40 && !Number.isNaN(Date.parse(value));

const needed = {
  time,
  event: oneOf(...events),
  verdict: oneOf(...verdicts),
  reason: text,
  protocol: text,
  source: address,
  destination: address,
  gateway: text,
} satisfies { [Field in keyof FlowRecord]?: Check };
const optional: Record<Exclude<keyof FlowRecord, keyof typeof needed>, Check> = {
  detail: text,
  wouldHave: text,
  context: oneOf('cluster', 'namespace', 'service'),
  rule: text,
  namespace: text,
  pod: text,
  services: texts,
  node: text,
  sourcePort: upTo(65_535),
  destinationPort: upTo(65_535),
  icmpType: upTo(255),
  icmpCode: upTo(255),
  egressIP: address,
  egressPort: upTo(65_535),
  limitedBy: text,
  redirectedTo: address,
  redirectedPort: upTo(65_535),
  application: text,
  destinationName: text,
  tls: object({ version: text, alpn: texts, encryptedClientHello: oneOf(true) }),
  http: object({ method: text, path: text }),
  dns: object({ type: text }),
  sampled: oneOf(true),
  shard: text,
  packets: both,
  bytes: both,
  durationSeconds: number,
};

export function readRecord(line: string): FlowRecord | undefined {
  if (line.length > RECORD_MAX) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (!isRecord(value) || !isSafeJson(value)) return undefined;
  for (const [name, check] of Object.entries(needed)) if (!check(value[name])) return undefined;
  for (const [name, check] of Object.entries(optional)) {
    if (value[name] !== undefined && !check(value[name])) return undefined;
  }
  return value as unknown as FlowRecord;
}
