/**
 * One file of Kubernetes YAML → objects, with last-good semantics: what cannot be read leaves in force what the file
 * (or the object, if the bad document says which one it is) had before. Hostile input: aliases and size are bounded,
 * nothing throws. A `List`, as kubectl prints it, is its items.
 */
import { parseAllDocuments } from 'yaml';
import { type AnyObject, type FieldError, objectKey, parseObject } from '../../api/kinds.ts';
import { isRecord, sameJson } from '../../api/plan-delta.ts';

/** Aliases that one document may resolve: enough for anchors written by hand, not for an alias bomb. */
const MAX_ALIASES = 100;
const MAX_DETAILS = 20;

export interface SourceError {
  file: string;
  /** Zero-based document in the file. */
  document?: number;
  /** Key of the object, if the document says which one it is. */
  object?: string;
  reason: 'Unreadable' | 'BadYAML' | 'Invalid' | 'Duplicate';
  details: string[];
}

export interface FileContent {
  objects: Map<string, AnyObject>;
  errors: SourceError[];
}

/**
 * `before`: what this file had; `lastGood`: an object that is in force from anywhere (a bad document may have moved
 * between files).
 */
export function readDocuments(
  file: string,
  text: string,
  before: ReadonlyMap<string, AnyObject>,
  lastGood: (key: string) => AnyObject | undefined,
): FileContent {
  const objects = new Map<string, AnyObject>();
  const errors: SourceError[] = [];
  const parsed = parseYaml(text);
  if (!parsed.ok) return { objects: new Map(before), errors: [{ file, reason: 'BadYAML', details: parsed.errors }] };
  // A bad document that does not say which object it is may be any that the file had.
  let keepAll = false;
  const kept = new Map<string, AnyObject>();
  parsed.documents.forEach((content, document) => {
    for (const input of itemsOf(content)) {
      const result = parseObject(input);
      if (result.ok) {
        const key = objectKey(result.value);
        if (!objects.has(key)) objects.set(key, unlessEqual(before.get(key), result.value));
        else errors.push({ file, document, object: key, reason: 'Duplicate', details: ['is in this file already'] });
        continue;
      }
      const key = keyOf(input);
      const details = errorTexts(result.errors);
      errors.push({ file, document, ...(key === undefined ? {} : { object: key }), reason: 'Invalid', details });
      const good = key === undefined ? undefined : (before.get(key) ?? lastGood(key));
      if (key === undefined) keepAll = true;
      else if (good !== undefined) kept.set(key, good);
    }
  });
  for (const [key, object] of keepAll ? [...kept, ...before] : kept) {
    if (!objects.has(key)) objects.set(key, object);
  }
  return { objects, errors };
}

export const errorTexts = (errors: readonly FieldError[]): string[] =>
  errors
    .slice(0, MAX_DETAILS)
    .map(({ path, expected, got }) => `${path || '(document)'}: expected ${expected}, got ${got}`);

/** A file is read whole: what it says of an object as before is the object of before. */
const unlessEqual = (before: AnyObject | undefined, now: AnyObject): AnyObject =>
  before !== undefined && sameJson(before, now) ? before : now;

/** Every document of a text, or what is wrong with it; also for what reads other kinds (cli/import). */
export function parseYaml(text: string): { ok: true; documents: unknown[] } | { ok: false; errors: string[] } {
  try {
    const documents = parseAllDocuments(text, { logLevel: 'silent', stringKeys: true });
    if (!Array.isArray(documents)) return { ok: true, documents: [] };
    const errors = documents.flatMap((document) => document.errors.map(yamlMessage));
    if (errors.length > 0) return { ok: false, errors: errors.slice(0, MAX_DETAILS) };
    return { ok: true, documents: documents.map((document) => document.toJS({ maxAliasCount: MAX_ALIASES })) };
  } catch (error) {
    // Too many aliases, or nesting beyond the stack.
    return { ok: false, errors: [yamlMessage(error)] };
  }
}

/** What the parser said, without the excerpt that it announces with a colon. */
export function yamlMessage(error: unknown): string {
  const [first = ''] = (error instanceof Error ? error.message : String(error)).split('\n');
  return first.replace(/:$/, '');
}

/** What one document holds: the items of a `List`, nothing if it is empty, else itself. */
export function itemsOf(content: unknown): unknown[] {
  if (content === null || content === undefined) return [];
  if (isRecord(content) && content.kind === 'List' && Array.isArray(content.items)) return content.items;
  return [content];
}

/** Which object a document that was refused speaks of. */
export function keyOf(input: unknown): string | undefined {
  if (!isRecord(input) || typeof input.kind !== 'string' || !isRecord(input.metadata)) return undefined;
  const { name, namespace } = input.metadata;
  if (typeof name !== 'string' || name === '') return undefined;
  return typeof namespace === 'string' ? `${input.kind}/${namespace}/${name}` : `${input.kind}/${name}`;
}
