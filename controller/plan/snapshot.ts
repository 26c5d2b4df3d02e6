/**
 * What the planner starts from: the objects in force, by kind, and the order in which age decides between them.
 * `older` is total: equal creation times (one manifest, one second) fall back to the name, so that no decision
 * depends on the order in which files or objects were read.
 */
import { type AnyObject, objectKey } from '../../api/kinds.ts';

export type Snapshot = ReadonlyMap<string, AnyObject>;
export type Kind = AnyObject['kind'];

export function ofKind<K extends Kind>(snapshot: Snapshot, kind: K): Extract<AnyObject, { kind: K }>[] {
  const found: Extract<AnyObject, { kind: K }>[] = [];
  for (const object of snapshot.values()) {
    if (object.kind === kind) found.push(object as Extract<AnyObject, { kind: K }>);
  }
  return oldestFirst(found);
}

/** In the order of `older`, with times read once. */
export function oldestFirst<O extends AnyObject>(objects: readonly O[]): O[] {
  if (objects.length < 2) return [...objects];
  return objects
    .map((object) => ({ object, created: createdAt(object), key: objectKey(object) }))
    .sort((a, b) => a.created - b.created || compareText(a.key, b.key))
    .map(({ object }) => object);
}

export const createdAt = (object: AnyObject): number => Date.parse(object.metadata.creationTimestamp ?? '') || 0;

/** Comparison: the older object first. */
export function older(a: AnyObject, b: AnyObject): number {
  return createdAt(a) - createdAt(b) || compareText(objectKey(a), objectKey(b));
}

/** Code-unit order, the same on every machine (localeCompare is not). */
export function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
