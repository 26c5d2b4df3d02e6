/**
 * The last good lists in the state directory (`lists.json`), by where they come from. Without them a restart of the
 * controller, while a list's server is away, would end the flows that the list permits. Read again strictly: what is
 * not as we write it is as if it were not there.
 */
import { formatRange, parseRange } from '../../api/address.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { readJson, writeJson } from '../state-file.ts';

export interface GoodList {
  /** Canonical, sorted, none twice. */
  addresses: readonly string[];
  /** Of the answer that it was read from. */
  etag?: string;
}

const FILE = 'lists.json';

export async function recallLists(state: string): Promise<Map<string, GoodList>> {
  const lists = new Map<string, GoodList>();
  const stored = await readJson(state, FILE);
  for (const [id, list] of isRecord(stored) ? Object.entries(stored) : []) {
    if (!isRecord(list) || !Array.isArray(list.addresses) || !list.addresses.every(isCanonical)) continue;
    lists.set(id, { addresses: list.addresses, ...(typeof list.etag === 'string' ? { etag: list.etag } : {}) });
  }
  return lists;
}

function isCanonical(text: unknown): text is string {
  const range = typeof text === 'string' ? parseRange(text) : undefined;
  return range?.ok === true && formatRange(range.value) === text;
}

export async function rememberLists(state: string, lists: ReadonlyMap<string, GoodList>): Promise<void> {
  await writeJson(state, FILE, Object.fromEntries(lists));
}
