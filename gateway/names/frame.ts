/**
 * What gateways of a pool say to each other about names: one JSON object a line, over mutual TLS (daemon/peers.ts). Both ends say
 * hello; then each sends pairs, numbered from 1, and acknowledges the other's by the last number that it has. Times travel
 * as what is left of them, since clocks differ. Parsers are bounded and return a reason; unknown fields are ignored.
 */
import { type Address, formatAddress, parseAddress } from '../../api/address.ts';
import { parseHostName } from '../../api/host-name.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { isPeerName } from '../../api/plan-stream.ts';
import { fail, ok, type Result } from '../../api/result.ts';
import type { NamedAddress } from '../inspect/name-table.ts';

export const NAMES_VERSION = 1;
/** Of one message. */
export const MAX_PAIRS = 256;
/** Longest line: so many pairs of the longest names and addresses fit. */
export const MAX_LINE = 128 * 1024;

/** A pair with its address as a value, too: what the table takes of others. */
export type ParsedPair = NamedAddress & { parsed: Address };

export type PeerMessage =
  | { type: 'hello'; version: number; name: string }
  | { type: 'pairs'; seq: number; pairs: ParsedPair[] }
  /** Everything up to this number is in the table, and its readers were told. */
  | { type: 'ack'; seq: number }
  /** Nothing but that somebody is there. */
  | { type: 'ping' };

export const formatHello = (name: string): string => line({ type: 'hello', version: NAMES_VERSION, name });
export const formatAck = (seq: number): string => line({ type: 'ack', seq });
export const formatPing = (): string => line({ type: 'ping' });
export const formatPairs = (seq: number, pairs: readonly NamedAddress[], now: number): string =>
  line({ type: 'pairs', seq, pairs: pairs.map(({ name, address, until }) => [name, address, Math.ceil(until - now)]) });

const line = (message: object): string => `${JSON.stringify(message)}\n`;

const isSequence = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) > 0;

export function parsePeerMessage(text: string, now: number): Result<PeerMessage> {
  if (text.length > MAX_LINE) return fail('is too long');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return fail('is no JSON');
  }
  if (!isRecord(value)) return fail('is no object');
  const { type, version, name, seq, pairs } = value;
  switch (type) {
    case 'hello':
      if (version !== NAMES_VERSION) return fail(`hello: expected version ${NAMES_VERSION}`);
      return isPeerName(name) ? ok({ type, version, name }) : fail('hello: expected the name of a gateway');
    case 'pairs': {
      if (!isSequence(seq)) return fail('pairs: expected a number');
      if (!Array.isArray(pairs) || pairs.length > MAX_PAIRS) return fail(`pairs: expected at most ${MAX_PAIRS}`);
      const parsed = parsePairs(pairs, now);
      return parsed.ok ? ok({ type, seq, pairs: parsed.value }) : fail(`pairs: ${parsed.error}`);
    }
    case 'ack':
      return isSequence(seq) ? ok({ type, seq }) : fail('ack: expected a number');
    case 'ping':
      return ok({ type });
    default:
      return fail('has an unknown type');
  }
}

function parsePairs(items: readonly unknown[], now: number): Result<ParsedPair[]> {
  const pairs: ParsedPair[] = [];
  for (const item of items) {
    const pair = parsePair(item);
    if (!pair.ok) return pair;
    pairs.push({ ...pair.value, until: now + pair.value.until });
  }
  return ok(pairs);
}

/** `[NAME, ADDRESS, NUMBER]`; whose time the number is, the caller knows. */
export function parsePair(item: unknown): Result<ParsedPair> {
  if (!Array.isArray(item)) return fail('expected a list for each');
  const [name, text, until] = item as unknown[];
  if (typeof name !== 'string' || !isCanonicalName(name)) return fail('expected a name in its canonical form');
  const parsed = typeof text === 'string' ? parseAddress(text) : fail('no text');
  if (!parsed.ok) return fail('expected an address');
  if (!Number.isSafeInteger(until)) return fail('expected whole milliseconds');
  return ok({ name, address: formatAddress(parsed.value), parsed: parsed.value, until: until as number });
}

export function isCanonicalName(name: string): boolean {
  const parsed = parseHostName(name);
  return parsed.ok && parsed.value === name;
}
