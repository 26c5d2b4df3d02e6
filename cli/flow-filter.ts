/** Which flow records are wanted, as a person says it: the flags that `flows` and `suggest` share, and their meaning. */
import { InvalidArgumentError } from 'commander';
import { type Address, formatAddress, parseAddress, parsePrefix, prefixRange, type Range } from '../api/address.ts';
import { type Application, applications } from '../api/application.ts';
import { NameSet, parseNamePattern } from '../api/host-name.ts';
import type { FlowRecord } from '../gateway/record/flow-record.ts';
import { events, verdicts } from '../gateway/record/read-record.ts';
import { timeArgument } from './explain.ts';

/** Addresses, or names that the client asked for. */
export type Where = { range: Range } | { names: NameSet };

export interface FlowQuery {
  namespace?: string;
  /** `POD`, or `NAMESPACE/POD`. */
  pod?: string;
  verdict?: FlowRecord['verdict'][];
  event?: FlowRecord['event'][];
  /** `NAME`, `NAMESPACE/NAME`, with or without `CONTEXT/` before it. */
  rule?: string;
  to?: Where;
  application?: Application[];
  /** Milliseconds since the epoch. */
  since?: number;
  until?: number;
}

export function flowFilter(query: FlowQuery): (record: FlowRecord) => boolean {
  const { namespace, pod, verdict, event, rule, to, application, since, until } = query;
  const tests: ((record: FlowRecord) => boolean)[] = [];
  if (namespace !== undefined) tests.push((record) => record.namespace === namespace);
  if (pod !== undefined) tests.push((record) => record.pod === pod || `${record.namespace}/${record.pod}` === pod);
  if (verdict !== undefined) tests.push((record) => verdict.includes(record.verdict));
  if (event !== undefined) tests.push((record) => event.includes(record.event));
  if (rule !== undefined) tests.push((record) => isRule(record, rule));
  if (to !== undefined) tests.push((record) => leadsTo(record, to));
  if (application !== undefined) {
    tests.push((record) => record.application !== undefined && application.includes(record.application));
  }
  if (since !== undefined) tests.push(({ time }) => Date.parse(time) >= since);
  if (until !== undefined) tests.push(({ time }) => Date.parse(time) < until);
  return (record) => tests.every((test) => test(record));
}

function isRule({ context, rule }: FlowRecord, wanted: string): boolean {
  if (rule === undefined) return false;
  return [rule, `${context}/${rule}`, rule.slice(rule.indexOf('/') + 1)].includes(wanted);
}

function leadsTo({ destination, destinationName, redirectedTo }: FlowRecord, to: Where): boolean {
  if ('names' in to) return destinationName !== undefined && to.names.has(destinationName);
  return [destination, redirectedTo].some((text) => {
    const address = text === undefined ? undefined : parseAddress(text);
    return address?.ok === true && isIn(address.value, to.range);
  });
}

const isIn = ({ family, value }: Address, range: Range): boolean =>
  family === range.family && value >= range.first && value <= range.last;

export function whereArgument(text: string): Where {
  const address = parseAddress(text);
  const prefix = parsePrefix(
    address.ok ? `${formatAddress(address.value)}/${address.value.family === 4 ? 32 : 128}` : text,
  );
  if (prefix.ok) return { range: prefixRange(prefix.value) };
  const pattern = parseNamePattern(text);
  if (pattern.ok) return { names: new NameSet([pattern.value]) };
  throw new InvalidArgumentError('expected an address, a prefix like 198.51.100.0/24, a name, *.name or **.name');
}

const unitSeconds: Record<string, number> = { s: 1, m: 60, h: 3_600, d: 86_400 };

/** `90s`, `30m`, `24h`, `7d` ago, or a time. */
export function momentArgument(text: string): number {
  const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  if (count !== undefined && unit !== undefined) return Date.now() - Number(count) * (unitSeconds[unit] ?? 0) * 1_000;
  return timeArgument(text);
}

/** `accept,drop`, in any case, and the flag given again. */
function wordsOf<Word extends string>(words: readonly Word[]): (text: string, before: Word[] | undefined) => Word[] {
  return (text, before = []) => [
    ...before,
    ...text.split(',').map((given) => {
      const word = words.find((one) => one.toLowerCase() === given.trim().toLowerCase());
      if (word === undefined) throw new InvalidArgumentError(`expected of ${words.join(', ')}`);
      return word;
    }),
  ];
}
export const verdictsArgument = wordsOf<FlowRecord['verdict']>(verdicts);
export const eventsArgument = wordsOf<FlowRecord['event']>(events);
export const applicationsArgument = wordsOf<Application>(applications);
