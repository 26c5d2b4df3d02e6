/**
 * From untrusted input (a YAML document, a JSON object of the API server) to a typed object, or errors as (path,
 * expected, got). First the schema (schema/walk.ts), then what a schema cannot say (checks.ts). Never throws, keeps
 * nothing of the input, and bounds its work and its answer.
 */

import { checks } from './checks.ts';
import { describe, show } from './schema/describe.ts';
import { absentFields, absentValues, type KindName, kindScopes, type ObjectOf, schemas } from './schema/registry.ts';
import { type FieldError, type Keywords, type WalkOptions, walk } from './schema/walk.ts';

export type AnyObject = { [Kind in KindName]: ObjectOf<Kind> }[KindName];
export type ParsedObject = { ok: true; value: AnyObject } | { ok: false; errors: FieldError[] };

/** More errors than a person reads at once. */
const maxErrors = 50;

export function parseObject(input: unknown): ParsedObject {
  try {
    return parse(input);
  } catch (error) {
    // YAML and JSON never get here: only an object with code in it (a getter, a proxy) can fail while it is read.
    const got = error instanceof Error ? show(error.message) : 'an exception while it was read';
    return { ok: false, errors: [{ path: '', expected: 'plain data', got }] };
  }
}

function parse(input: unknown): ParsedObject {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) {
    return refuse('', 'an object with apiVersion, kind and metadata', describe(input));
  }
  const { kind } = kindOf(input);
  if (kind === null) {
    const named = Object.hasOwn(input, 'kind') ? (input as { kind: unknown }).kind : undefined;
    if (named === 'EgressAddress') return refuse('kind', 'absent: EgressAddress is not carried out yet', show(named));
    return refuse('kind', Object.keys(schemas).join(' or '), describe(named));
  }
  const walked = walk(schemas[kind] as Keywords, input, { maxErrors, absent: absentIn(kind) });
  if (!walked.ok) return walked;
  const value = walked.value as AnyObject;

  const errors: FieldError[] = [];
  const report = (path: string, expected: string, got: string) => {
    if (errors.length < maxErrors) errors.push({ path, expected, got });
  };
  const { namespace } = value.metadata;
  if (kindScopes[kind] === 'namespaced' && namespace === undefined) {
    report('metadata.namespace', 'a namespace', 'nothing');
  } else if (kindScopes[kind] === 'cluster' && namespace !== undefined) {
    report('metadata.namespace', `absent: ${kind} belongs to no namespace`, show(namespace));
  }
  checks[kind](value as never, report);
  return errors.length === 0 ? { ok: true, value } : { ok: false, errors };
}

function kindOf(input: object): { kind: KindName | null } {
  const kind = Object.hasOwn(input, 'kind') ? (input as { kind: unknown }).kind : undefined;
  return { kind: typeof kind === 'string' && Object.hasOwn(schemas, kind) ? (kind as KindName) : null };
}

const refuse = (path: string, expected: string, got: string): ParsedObject => ({
  ok: false,
  errors: [{ path, expected, got }],
});

function absentIn(kind: KindName): WalkOptions['absent'] {
  const fields = new Map<string, string>();
  for (const [path, names] of Object.entries(absentFields[kind] ?? {})) {
    for (const name of names) fields.set(`${path}.${name}`, name);
  }
  const values = absentValues[kind] ?? {};
  return (pattern, value) => {
    const field = fields.get(pattern);
    if (field !== undefined) return `absent: ${field} is not carried out yet`;
    if (typeof value !== 'string') return null;
    if (Object.hasOwn(values, pattern) && values[pattern]?.includes(value)) {
      return `absent: ${pattern.split('.').at(-1)} ${value} is not carried out yet`;
    }
    return null;
  };
}
