/**
 * Numbers for names: each rule and each group of workloads gets a number that fits into mark bits. The number is a
 * hash of the name, so that it needs no memory and every gateway of a pool finds the same; names that collide take
 * the next free number in the order of their names.
 */
import { createHash } from 'node:crypto';
import { CT_DECIDED, CT_RULE_SHIFT } from '../api/names.ts';

/** Name under which the pool's default action is numbered beside the rules. */
export const DEFAULT_ACTION = 'default-action';

const RULE_NUMBERS = 0x7fffff;
const GROUP_NUMBERS = 0xffffff;

/** Numbers 1..max for names; stable for all names that collide with none. */
export function numberNames(names: Iterable<string>, max: number): Map<string, number> {
  const taken = new Set<number>();
  const numbers = new Map<string, number>();
  for (const name of [...names].sort()) {
    let number = (createHash('sha256').update(name).digest().readUInt32BE(0) % max) + 1;
    while (taken.has(number)) number = (number % max) + 1;
    taken.add(number);
    numbers.set(name, number);
  }
  return numbers;
}

export const ruleNumbers = (ids: Iterable<string>): Map<string, number> =>
  numberNames([...ids, DEFAULT_ACTION], RULE_NUMBERS);
export const groupNumbers = (keys: Iterable<string>): Map<string, number> => numberNames(keys, GROUP_NUMBERS);

/** Rule number ↔ bits of ct mark (and of the packet mark of a logged denial or hit of audit). */
export const ruleMark = (number: number): number => (number << CT_RULE_SHIFT) >>> 0;
export const ruleNumberOf = (mark: number): number => (mark & ~CT_DECIDED) >>> CT_RULE_SHIFT;
export const isDecided = (mark: number): boolean => (mark & CT_DECIDED) !== 0;
