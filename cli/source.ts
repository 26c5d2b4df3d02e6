/**
 * What `get` and `explain` read of a directory source: the objects, the documents that were refused, and each object's
 * status as the controller wrote it below PATH/.status (absent where no controller has run). Reads only.
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'yaml';
import { type AnyObject, objectKey } from '../api/kinds.ts';
import { isRecord, isSafeJson } from '../api/plan-delta.ts';
import { type Loaded, loadDirectory } from '../controller/observe/directory.ts';

export interface Source extends Loaded {
  path: string;
}

/** `state`: the controller's, where it keeps since when it knows an object. */
export async function loadSource(source: string, state?: string): Promise<Source> {
  const path = source.slice('directory:'.length);
  return { path, ...(await loadDirectory(path, { state })) };
}

const MAX_STATUS_BYTES = 16 * 1024 * 1024;
/** As publish/status.ts writes them; anything else could lead out of the directory. */
const SAFE = /^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$/;

export async function statusOf(path: string, object: AnyObject): Promise<Record<string, unknown> | undefined> {
  const key = objectKey(object);
  if (!key.split('/').every((part) => SAFE.test(part))) return undefined;
  const file = join(path, '.status', `${key}.yaml`);
  try {
    if ((await stat(file)).size > MAX_STATUS_BYTES) return undefined;
    const document: unknown = parse(await readFile(file, 'utf8'), { logLevel: 'silent', maxAliasCount: 100 });
    if (!isRecord(document) || !isRecord(document.status) || !isSafeJson(document.status)) return undefined;
    return document.status;
  } catch {
    return undefined;
  }
}

/** The conditions of a status, of which nothing is known but that it came from a file. */
export function conditionsOf(status: unknown): { type: string; status: string; reason: string; message: string }[] {
  const list = isRecord(status) && Array.isArray(status.conditions) ? status.conditions : [];
  return list.filter(isRecord).map(({ type, status, reason, message }) => ({
    type: String(type),
    status: String(status),
    reason: String(reason ?? ''),
    message: String(message ?? ''),
  }));
}
