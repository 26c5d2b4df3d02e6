/**
 * Walks untrusted input along a TypeBox schema: returns a fresh copy of the known fields with defaults filled in, or
 * errors as (path, expected, got). TypeBox's own validator is not used, since it keeps the input object (prototype and
 * all) and its errors name neither what was expected of a union nor what was got; the property test holds this walk to
 * it. Understands only the keywords that the schemas in this folder use (`Keywords`).
 */

import { formatAddress, formatPrefix, formatRange, parseAddress, parsePrefix, parseRange } from '../address.ts';
import { parseDnsType } from '../dns-type.ts';
import { formatNamePattern, parseNamePattern } from '../host-name.ts';
import { fail, ok, type Result } from '../result.ts';
import { describe, show } from './describe.ts';

export interface FieldError {
  /** `spec.gateways[1].name`; '' is the document itself. */
  path: string;
  expected: string;
  got: string;
}

/** A schema as this folder writes them: JSON Schema's words, then ours. */
export interface Keywords {
  type?: 'object' | 'array' | 'string' | 'integer' | 'boolean';
  properties?: Record<string, Keywords>;
  required?: string[];
  additionalProperties?: boolean;
  patternProperties?: Record<string, Keywords>;
  maxProperties?: number;
  items?: Keywords;
  minItems?: number;
  maxItems?: number;
  pattern?: string;
  minLength?: number;
  maxLength?: number;
  minimum?: number;
  maximum?: number;
  enum?: string[];
  anyOf?: Keywords[];
  default?: unknown;
  description?: string;
  /** What a bad value should have been, where the keywords alone would not tell a person. */
  expected?: string;
  /** What the text is: read strictly, kept in canonical form. */
  reads?: 'address' | 'prefix' | 'range' | 'name' | 'place' | 'dnsType';
  /** Keys of a map of labels are label keys. */
  keys?: 'label';
  /** Items are a set: none twice. Or a map: no two with the same value of a field. */
  listType?: 'set';
  listMapKeys?: string[];
  /** To server-side apply one value, which is never put together from what several appliers say. */
  mapType?: 'atomic';
  intOrString?: boolean;
  /** Fields of the API server's that are dropped without a word. */
  ignored?: string[];
  /** `field: null` is as if the field were absent, as API servers and clients write it. Always so in tolerant objects. */
  nullAsAbsent?: boolean;
  /** CEL rules of the CRD. */
  cel?: { rule: string; message: string }[];
  /** What the keywords cannot say of one object, beside the CEL rule that says it to the API server. */
  check?: (value: never) => { field: string; expected: string; got: string } | null;
}

export interface WalkOptions {
  /** Why a field or value is refused by name, asked with its path with `[]` for any index; null: it is not. */
  absent(pattern: string, value: unknown): string | null;
  /** Stop after so many errors: a hostile document must not make a large answer. */
  maxErrors: number;
}

export const labelKeyPattern = '^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$';
const maxLabelKey = 317;

const regexps = new Map<string, RegExp>();
function matches(pattern: string, text: string): boolean {
  let regexp = regexps.get(pattern);
  if (regexp === undefined) {
    regexp = new RegExp(pattern);
    regexps.set(pattern, regexp);
  }
  return regexp.test(text);
}

export function walk(
  schema: Keywords,
  input: unknown,
  options: WalkOptions,
): { ok: true; value: unknown } | { ok: false; errors: FieldError[] } {
  const errors: FieldError[] = [];
  const value = new Walk(options, errors).any(schema, input, '', '');
  return errors.length === 0 ? { ok: true, value } : { ok: false, errors };
}

class Walk {
  readonly #options: WalkOptions;
  readonly #errors: FieldError[];

  constructor(options: WalkOptions, errors: FieldError[]) {
    this.#options = options;
    this.#errors = errors;
  }

  #refuse(path: string, expected: string, got: string): undefined {
    if (this.#errors.length < this.#options.maxErrors) this.#errors.push({ path, expected, got });
    return undefined;
  }

  get #full(): boolean {
    return this.#errors.length >= this.#options.maxErrors;
  }

  any(schema: Keywords, input: unknown, path: string, pattern: string): unknown {
    const absent = this.#options.absent(pattern, input);
    if (absent !== null) return this.#refuse(path, absent, describe(input));
    if (schema.intOrString === true) {
      const type = typeof input === 'number' ? 'integer' : 'string';
      const branch = schema.anyOf?.find((one) => one.type === type);
      if (branch === undefined) throw new Error(`${pattern}: intOrString needs both branches`);
      return this.any(
        schema.expected === undefined ? branch : { ...branch, expected: schema.expected },
        input,
        path,
        pattern,
      );
    }
    if (schema.enum !== undefined) {
      if (typeof input === 'string' && schema.enum.includes(input)) return input;
      return this.#refuse(path, schema.expected ?? schema.enum.join(' or '), describe(input));
    }
    switch (schema.type) {
      case 'object':
        return schema.patternProperties === undefined
          ? this.#object(schema, input, path, pattern)
          : this.#map(schema, input, path, pattern);
      case 'array':
        return this.#array(schema, input, path, pattern);
      case 'string':
        return this.#string(schema, input, path);
      case 'integer':
        return this.#integer(schema, input, path);
      case 'boolean':
        return typeof input === 'boolean' ? input : this.#refuse(path, 'true or false', describe(input));
      default:
        throw new Error(`${pattern}: a schema that the walk does not know`);
    }
  }

  #object(schema: Keywords, input: unknown, path: string, pattern: string): unknown {
    if (!isObject(input)) return this.#refuse(path, schema.expected ?? 'an object', describe(input));
    const properties = schema.properties ?? {};
    const strict = schema.additionalProperties === false;
    const output: Record<string, unknown> = {};
    const before = this.#errors.length;
    for (const [name, property] of Object.entries(properties)) {
      let value = Object.hasOwn(input, name) ? input[name] : undefined;
      if (value === null && (!strict || schema.nullAsAbsent === true)) value = undefined;
      // A default is walked like input: copied, and the defaults inside it filled in too.
      if (value === undefined) value = property.default;
      if (value !== undefined) {
        output[name] = this.any(property, value, join(path, name), join(pattern, name));
      } else if (schema.required?.includes(name) === true) {
        this.#refuse(join(path, name), property.expected ?? brief(property), 'nothing');
      }
    }
    for (const name of Object.keys(input)) {
      if (this.#full) break;
      if (Object.hasOwn(properties, name) || schema.ignored?.includes(name) === true) continue;
      const absent = this.#options.absent(join(pattern, name), input[name]);
      if (absent !== null) this.#refuse(join(path, name), absent, describe(input[name]));
      else if (strict) this.#refuse(join(path, name), 'absent: unknown field', describe(input[name]));
    }
    if (schema.check !== undefined && this.#errors.length === before) {
      const wrong = schema.check(output as never);
      if (wrong !== null) this.#refuse(join(path, wrong.field), wrong.expected, wrong.got);
    }
    return output;
  }

  /** A map of texts. It has no prototype, so that a label named `constructor` is only found if it is there. */
  #map(schema: Keywords, input: unknown, path: string, pattern: string): unknown {
    if (!isObject(input)) return this.#refuse(path, 'an object', describe(input));
    const names = Object.keys(input);
    const max = schema.maxProperties ?? 0;
    if (names.length > max) return this.#refuse(path, `at most ${max} fields`, `${names.length} fields`);
    const [item] = Object.values(schema.patternProperties ?? {});
    if (item === undefined) throw new Error(`${pattern}: a map without a schema for its values`);
    const output: Record<string, unknown> = Object.create(null);
    for (const name of names) {
      if (this.#full) break;
      const at = `${path}[${show(name)}]`;
      if (schema.keys === 'label' && (name.length > maxLabelKey || !matches(labelKeyPattern, name))) {
        this.#refuse(at, 'a label key', show(name));
      } else if (name === '__proto__' || name.length > 512) {
        this.#refuse(at, 'a usable key of at most 512 characters', show(name));
      } else {
        output[name] = this.any(item, input[name], at, `${pattern}[]`);
      }
    }
    return output;
  }

  #array(schema: Keywords, input: unknown, path: string, pattern: string): unknown {
    if (!Array.isArray(input)) return this.#refuse(path, schema.expected ?? 'a list', describe(input));
    const { minItems = 0, maxItems = 0, items } = schema;
    if (items === undefined) throw new Error(`${pattern}: a list without a schema for its items`);
    // Before any item is looked at: a hostile list costs no more than its length.
    if (input.length > maxItems) return this.#refuse(path, `at most ${maxItems} items`, `${input.length} items`);
    if (input.length < minItems) return this.#refuse(path, `at least ${minItems} item`, describe(input));
    const output: unknown[] = [];
    const seen = new Map<string, number>();
    const key = schema.listMapKeys?.[0];
    for (let i = 0; i < input.length && !this.#full; i++) {
      const before = this.#errors.length;
      const value = this.any(items, input[i], `${path}[${i}]`, `${pattern}[]`);
      output.push(value);
      if (this.#errors.length > before) continue;
      const identity = key === undefined ? (schema.listType === 'set' ? value : undefined) : (value as never)[key];
      if (identity === undefined) continue;
      const text = String(identity);
      const first = seen.get(text);
      const at = key === undefined ? `${path}[${i}]` : `${path}[${i}].${key}`;
      if (first !== undefined) this.#refuse(at, `other than ${path}[${first}]${key ? `.${key}` : ''}`, show(text));
      else seen.set(text, i);
    }
    return output;
  }

  #string(schema: Keywords, input: unknown, path: string): unknown {
    if (typeof input !== 'string') return this.#refuse(path, schema.expected ?? brief(schema), describe(input));
    const max = schema.maxLength ?? 0;
    if (input.length > max) return this.#refuse(path, `at most ${max} characters`, `${input.length} characters`);
    if (schema.reads !== undefined) {
      const read = readers[schema.reads](input);
      return read.ok ? read.value : this.#refuse(path, schema.expected ?? read.error, show(input));
    }
    if (input.length < (schema.minLength ?? 0) || (schema.pattern !== undefined && !matches(schema.pattern, input))) {
      return this.#refuse(path, schema.expected ?? brief(schema), show(input));
    }
    return input;
  }

  #integer(schema: Keywords, input: unknown, path: string): unknown {
    const { minimum = Number.MIN_SAFE_INTEGER, maximum = Number.MAX_SAFE_INTEGER } = schema;
    if (typeof input === 'number' && Number.isInteger(input) && input >= minimum && input <= maximum) return input;
    return this.#refuse(path, schema.expected ?? brief(schema), describe(input));
  }
}

/**
 * Strict readers; the value kept is the canonical text. An IPv4-mapped IPv6 address is refused: what it means depends
 * on who reads it, and no packet on a wire carries one.
 */
const readers: Record<NonNullable<Keywords['reads']>, (text: string) => Result<string>> = {
  address: (text) => {
    const address = parseAddress(text);
    if (!address.ok) return fail(`an IP address: ${address.error}`);
    return mapped(address.value.family, address.value.value) ?? ok(formatAddress(address.value));
  },
  prefix: (text) => {
    const prefix = parsePrefix(text);
    if (!prefix.ok) return fail(`a CIDR: ${prefix.error}`);
    return mapped(prefix.value.family, prefix.value.value) ?? ok(formatPrefix(prefix.value));
  },
  range: (text) => {
    const range = parseRange(text);
    if (!range.ok) return fail(`an address, CIDR or FIRST-LAST: ${range.error}`);
    const { family, first } = range.value;
    const canonical = () => (/[-/]/.test(text) ? formatRange(range.value) : formatAddress({ family, value: first }));
    return mapped(family, first) ?? ok(canonical());
  },
  name: (text) => {
    const pattern = parseNamePattern(text);
    return pattern.ok ? ok(formatNamePattern(pattern.value)) : fail(`NAME, *.NAME or **.NAME: ${pattern.error}`);
  },
  place: (text) => {
    const name = readers.name(text);
    if (name.ok) return name;
    const range = readers.range(text);
    if (range.ok) return range;
    // Of the two errors the one of what it looks like.
    if (/^[0-9.]+([-/]|$)|:/.test(text)) return range;
    return fail(`an address, CIDR, FIRST-LAST or name: ${name.error}`);
  },
  dnsType: parseDnsType,
};
function mapped(family: 4 | 6, value: bigint): Result<string> | null {
  return family === 6 && value >> 32n === 0xffffn ? fail('IPv4 written as IPv4, not mapped into IPv6') : null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const join = (path: string, name: string): string => {
  const safe = /^[A-Za-z0-9_-]{1,64}$/.test(name) ? name : show(name);
  return path === '' ? safe : `${path}.${safe}`;
};

/** What a schema asks for, in a few words. */
export function brief(schema: Keywords): string {
  if (schema.expected !== undefined) return schema.expected;
  if (schema.enum !== undefined) return schema.enum.join(' or ');
  if (schema.reads === 'address') return 'an IP address';
  if (schema.reads === 'prefix') return 'a CIDR';
  if (schema.reads === 'range') return 'an address, CIDR or FIRST-LAST';
  if (schema.reads === 'place') return 'an address, CIDR, FIRST-LAST or name';
  if (schema.reads === 'name') return 'NAME, *.NAME or **.NAME';
  switch (schema.type) {
    case 'object':
      return 'an object';
    case 'array':
      return 'a list';
    case 'boolean':
      return 'true or false';
    case 'integer': {
      const { minimum, maximum } = schema;
      if (maximum === undefined || maximum === Number.MAX_SAFE_INTEGER) return `an integer of at least ${minimum ?? 0}`;
      return `an integer from ${minimum ?? 0} to ${maximum}`;
    }
    default:
      return schema.pattern === undefined ? 'text' : `text like ${schema.pattern}`;
  }
}
