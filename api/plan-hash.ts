/**
 * The content hash of a plan: a sum of the digests of its entries, so that it does not depend on their order and a
 * delta changes it at the cost of what the delta names. Whoever makes the plans computes it and sends it along; a
 * client keeps it with the plan and says it when it comes back. Equal hashes are equal plans, unless one of the two
 * ends is hostile: both have shown certificates.
 */
import { hash } from 'node:crypto';
import { isRecord, type PlanDelta } from './plan-delta.ts';

type Collections = Record<string, Record<string, unknown>>;

/** Text that JSON leaves as it is, which is nearly all of a plan's: to ask is cheaper than to call. */
const plain = /^[ !#-[\]-~]*$/;
const quoted = (text: string): string => (plain.test(text) ? `"${text}"` : JSON.stringify(text));

/** JSON text with the keys of every object in code-unit order: equal values give equal text. */
export function canonicalJson(value: unknown): string {
  if (typeof value === 'string') return quoted(value);
  let text = '';
  if (Array.isArray(value)) {
    for (const item of value) text += `${text && ','}${canonicalJson(item ?? null)}`;
    return `[${text}]`;
  }
  if (!isRecord(value)) return JSON.stringify(value) ?? 'null';
  for (const key of Object.keys(value).sort()) {
    if (value[key] !== undefined) text += `${text && ','}${quoted(key)}:${canonicalJson(value[key])}`;
  }
  return `{${text}}`;
}

const BITS = 256;

const digestOf = (name: string, key: string, value: unknown): bigint =>
  BigInt(`0x${hash('sha256', canonicalJson([name, key, value]), 'hex')}`);

const textOf = (sum: bigint): string =>
  BigInt.asUintN(BITS, sum)
    .toString(16)
    .padStart(BITS / 4, '0');

export function hashPlan(plan: object): string {
  let sum = 0n;
  for (const [name, collection] of Object.entries(plan as Collections)) {
    for (const [key, value] of Object.entries(collection)) {
      if (value !== undefined) sum = BigInt.asUintN(BITS, sum + digestOf(name, key, value));
    }
  }
  return textOf(sum);
}

/** The hash of what `delta` makes of `plan`, which has the hash `before`. */
export function hashAfter(before: string, plan: object, delta: PlanDelta): string {
  const collections = plan as Collections;
  let sum = BigInt(`0x${before}`);
  const was = (name: string, key: string): bigint => {
    const collection = collections[name];
    const value = collection !== undefined && Object.hasOwn(collection, key) ? collection[key] : undefined;
    return value === undefined ? 0n : digestOf(name, key, value);
  };
  for (const [name, keys] of Object.entries(delta.delete)) for (const key of keys) sum -= was(name, key);
  for (const [name, set] of Object.entries(delta.set)) {
    for (const [key, value] of Object.entries(set)) sum += digestOf(name, key, value) - was(name, key);
  }
  return textOf(sum);
}

export const isPlanHash = (value: unknown): value is string =>
  typeof value === 'string' && /^[0-9a-f]{64}$/.test(value);
