/**
 * From untrusted input to a typed object: schema, then what a schema cannot say.
 */

import type { PortEntry } from './plan.ts';
import type { Result } from './result.ts';
import type { KindName, ObjectOf } from './schema/registry.ts';
import type { FieldError } from './schema/walk.ts';

export type AnyObject = { [Kind in KindName]: ObjectOf<Kind> }[KindName];
export type ParsedObject = { ok: true; value: AnyObject } | { ok: false; errors: FieldError[] };

export function parseObject(_input: unknown): ParsedObject {
  throw new Error('later');
}
/** Port text of an ExternalService to inclusive, merged ranges. */
export function parsePorts(_text: string): Result<[number, number][]> {
  throw new Error('later');
}
/** A port of an ExternalService as the plan has it. */
export function portEntry(_port: { protocol: string | number; port?: string }): PortEntry {
  throw new Error('later');
}
