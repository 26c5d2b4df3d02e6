/**
 * What `get`, `explain` and `simulate` read of a directory source: the objects, the documents that were refused, and each object's
 * status as the controller wrote it below PATH/.status (absent where no controller has run). Reads only.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'yaml';
import { type AnyObject, objectKey } from '../api/kinds.ts';
import { isRecord, isSafeJson } from '../api/plan-delta.ts';
import { type Loaded, loadDirectory } from '../controller/observe/directory.ts';

export interface Source extends Loaded {
  path: string;
}

/** `state`: the controller's, where it keeps since when it knows an object; else what it wrote into their status. */
export async function loadSource(source: string, state?: string): Promise<Source> {
  const path = source.slice('directory:'.length);
  const ages = state === undefined ? { firstSeen: await agesOf(path) } : { state };
  return { path, ...(await loadDirectory(path, ages)) };
}

/** Of what is refused the last good version is in force, which only the controller's state has. */
export const refusedText = (count: number, state: string | undefined): string =>
  `${count} refused, see: sluice get errors; ${
    state === undefined
      ? 'what is in force of them is not looked at (--state DIR knows it)'
      : 'what is in force of them is looked at'
  }`;

const MAX_STATUS_BYTES = 16 * 1024 * 1024;
/** Files that are read at once. */
const BATCH = 64;

/** Object key → when the controller saw it first: of rules with one priority the oldest comes first. */
async function agesOf(path: string): Promise<Map<string, string>> {
  const root = join(path, '.status');
  const files = (await readdir(root, { recursive: true }).catch(() => [])).filter((file) => file.endsWith('.yaml'));
  const ages = new Map<string, string>();
  for (let begin = 0; begin < files.length; begin += BATCH) {
    const batch = files.slice(begin, begin + BATCH);
    const texts = await Promise.all(batch.map((file) => statusText(join(root, file))));
    texts.forEach((text, index) => {
      const created = /^ {2}creationTimestamp: ([0-9T:-]{19}Z)$/m.exec(text ?? '')?.[1];
      if (created !== undefined) ages.set((batch[index] as string).slice(0, -'.yaml'.length), created);
    });
  }
  return ages;
}

async function statusText(file: string): Promise<string | undefined> {
  try {
    return (await stat(file)).size > MAX_STATUS_BYTES ? undefined : await readFile(file, 'utf8');
  } catch {
    return undefined;
  }
}

/** As publish/status.ts writes them; anything else could lead out of the directory. */
const SAFE = /^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$/;

export async function statusOf(path: string, object: AnyObject): Promise<Record<string, unknown> | undefined> {
  const key = objectKey(object);
  if (!key.split('/').every((part) => SAFE.test(part))) return undefined;
  const text = await statusText(join(path, '.status', `${key}.yaml`));
  if (text === undefined) return undefined;
  try {
    const document: unknown = parse(text, { logLevel: 'silent', maxAliasCount: 100 });
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
