/**
 * The difference between two plans, and its application: per named collection, keys to set and keys to delete.
 * It knows nothing of what the values mean (api/plan.ts), so a new collection or field costs nothing here.
 * Input comes from the network: application never throws, never touches a prototype, and shares no state with
 * the plan that it starts from. Left out: differences within a value; a value that changed is sent whole.
 */
import { createHash } from 'node:crypto';
import type { Result } from './result.ts';

/** What turns one plan into another. A collection in which nothing changed is absent. */
export interface PlanDelta {
  set: Record<string, Record<string, unknown>>;
  delete: Record<string, string[]>;
}

type Collections = Record<string, Record<string, unknown>>;

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const MAX_DEPTH = 32;

/**
 * False if the value is nested too deeply to be walked without care, or has somewhere a key `__proto__` that would
 * reach a prototype when a reader copies the object by assignment. No Kubernetes name has an underscore.
 */
export function isSafeJson(value: unknown, depth = 0): boolean {
  if (typeof value !== 'object' || value === null) return true;
  if (depth >= MAX_DEPTH || Object.hasOwn(value, '__proto__')) return false;
  return Object.values(value).every((item) => isSafeJson(item, depth + 1));
}

/** JSON text with the keys of every object in code-unit order: equal values give equal text. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map((item) => canonicalJson(item ?? null)).join(',')}]`;
  if (!isRecord(value)) return JSON.stringify(value) ?? 'null';
  const parts: string[] = [];
  for (const key of Object.keys(value).sort()) {
    if (value[key] !== undefined) parts.push(`${JSON.stringify(key)}:${canonicalJson(value[key])}`);
  }
  return `{${parts.join(',')}}`;
}

/** Digests of values that were hashed before. Values of a plan are never changed once it is published or received. */
const digests = new WeakMap<object, string>();

function digestOf(value: unknown): string {
  const known = isRecord(value) ? digests.get(value) : undefined;
  if (known !== undefined) return known;
  const digest = createHash('sha256').update(canonicalJson(value)).digest('base64');
  if (isRecord(value)) digests.set(value, digest);
  return digest;
}

/**
 * SHA-256 over the canonical JSON in which each value stands as its own SHA-256, in hex. Since a delta shares the
 * values that stay, hashing a plan of 50,000 workloads again after one changed takes milliseconds, not a second.
 */
export function hashPlan(plan: object): string {
  const hash = createHash('sha256');
  const collections = collectionsOf(plan);
  for (const name of Object.keys(collections).sort()) {
    hash.update(`${JSON.stringify(name)}:{`);
    const collection = collections[name] ?? {};
    const parts: string[] = [];
    for (const key of Object.keys(collection).sort()) {
      if (collection[key] !== undefined) parts.push(`${JSON.stringify(key)}:${digestOf(collection[key])}`);
    }
    hash.update(`${parts.join(',')}}\n`);
  }
  return hash.digest('hex');
}

const collectionsOf = (plan: object): Collections => plan as Collections;
const own = (object: Record<string, unknown> | undefined, key: string): unknown =>
  object !== undefined && Object.hasOwn(object, key) ? object[key] : undefined;

/** Structural equality of JSON values; the same reference is equal at once, so an unchanged entry costs nothing. */
export function sameJson(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (Array.isArray(a)) {
    return Array.isArray(b) && a.length === b.length && a.every((item, index) => sameJson(item, b[index]));
  }
  if (!isRecord(a) || !isRecord(b)) return false;
  const defined = (object: Record<string, unknown>): string[] =>
    Object.keys(object).filter((key) => object[key] !== undefined);
  const keys = defined(a);
  return keys.length === defined(b).length && keys.every((key) => Object.hasOwn(b, key) && sameJson(a[key], b[key]));
}

/** Both plans must have the same collections (they are made by the same program). */
export function diffPlan<P extends object>(from: P, to: P): PlanDelta {
  const delta: PlanDelta = { set: {}, delete: {} };
  const before = collectionsOf(from);
  const after = collectionsOf(to);
  for (const name of Object.keys(after)) {
    const set: Record<string, unknown> = {};
    const next = after[name] ?? {};
    const previous = before[name] ?? {};
    for (const key of Object.keys(next)) {
      if (next[key] !== undefined && !sameJson(own(previous, key), next[key])) set[key] = next[key];
    }
    const gone = Object.keys(previous).filter((key) => own(next, key) === undefined);
    if (Object.keys(set).length > 0) delta.set[name] = set;
    if (gone.length > 0) delta.delete[name] = gone;
  }
  return delta;
}

export function isEmptyDelta(delta: PlanDelta): boolean {
  return Object.keys(delta.set).length === 0 && Object.keys(delta.delete).length === 0;
}

/**
 * A new plan; the old one is not changed, and values that stay are shared with it. A delta that names an unknown
 * collection, deletes a key that is not there or uses a forbidden key does not fit: the caller asks for a snapshot.
 */
export function applyDelta<P extends object>(plan: P, delta: unknown): Result<P> {
  if (!isRecord(delta) || !isRecord(own(delta, 'set')) || !isRecord(own(delta, 'delete'))) {
    return { ok: false, error: 'a delta is an object with "set" and "delete"' };
  }
  const sets = delta.set as Record<string, unknown>;
  const deletes = delta.delete as Record<string, unknown>;
  const result: Collections = { ...collectionsOf(plan) };
  for (const name of new Set([...Object.keys(sets), ...Object.keys(deletes)])) {
    if (!Object.hasOwn(result, name)) return { ok: false, error: `unknown collection ${JSON.stringify(name)}` };
    const collection = { ...result[name] };
    const gone = own(deletes, name) ?? [];
    if (!Array.isArray(gone)) return { ok: false, error: `delete.${name} is not a list` };
    for (const key of gone) {
      if (typeof key !== 'string' || !Object.hasOwn(collection, key)) {
        return { ok: false, error: `delete.${name} names a key that is not there` };
      }
      delete collection[key];
    }
    const set = own(sets, name) ?? {};
    if (!isRecord(set)) return { ok: false, error: `set.${name} is not an object` };
    for (const key of Object.keys(set)) {
      const value = set[key];
      if (key === '__proto__' || !isSafeJson(value)) return { ok: false, error: `set.${name} has a forbidden key` };
      if (value === undefined || value === null || typeof value !== 'object') {
        return { ok: false, error: `set.${name} has a value that is no object` };
      }
      collection[key] = value;
    }
    result[name] = collection;
  }
  return { ok: true, value: result as P };
}
