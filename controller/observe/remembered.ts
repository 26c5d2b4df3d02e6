/**
 * What the directory source keeps in the state directory (`objects.json`): the last good objects of every file, so
 * that a bad manifest is harmless across a restart too, and when each object was first seen, which is its age if the
 * manifest gives none. Stored objects pass through parseObject again: a newer version may refuse what an older took.
 */
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { readJson, writeJson } from '../state-file.ts';

export interface Remembered {
  files: Map<string, Map<string, AnyObject>>;
  firstSeen: Map<string, string>;
}

const FILE = 'objects.json';

export async function recall(state: string): Promise<Remembered> {
  const remembered: Remembered = { files: new Map(), firstSeen: new Map() };
  const stored = await readJson(state, FILE);
  if (!isRecord(stored)) return remembered;
  for (const [file, list] of isRecord(stored.files) ? Object.entries(stored.files) : []) {
    const objects = new Map<string, AnyObject>();
    for (const input of Array.isArray(list) ? list : []) {
      const parsed = parseObject(input);
      if (parsed.ok) objects.set(objectKey(parsed.value), parsed.value);
    }
    remembered.files.set(file, objects);
  }
  for (const [key, time] of isRecord(stored.firstSeen) ? Object.entries(stored.firstSeen) : []) {
    if (typeof time === 'string') remembered.firstSeen.set(key, time);
  }
  return remembered;
}

export async function remember(state: string, { files, firstSeen }: Remembered): Promise<void> {
  const stored = {
    files: Object.fromEntries([...files].map(([file, objects]) => [file, [...objects.values()]])),
    firstSeen: Object.fromEntries(firstSeen),
  };
  await writeJson(state, FILE, stored);
}
