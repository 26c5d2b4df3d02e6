/**
 * Which addresses are given out, and to whom: the controller's own memory where its state is at hand, else what it wrote
 * into the status of the EgressIPs, which says no more of those that rest.
 */
import { canonicalAddress } from '../api/address.ts';
import type { EgressIP } from '../api/kinds.ts';
import { isRecord } from '../api/plan-delta.ts';
import { readKeptMemory } from '../controller/kept-memory.ts';
import { emptyMemory, type PlannerMemory } from '../controller/plan/memory.ts';
import { ofKind } from '../controller/plan/snapshot.ts';
import { Exit } from './output.ts';
import { type Source, statusOf } from './source.ts';

export async function memoryOf({ path, snapshot }: Source, state: string | undefined): Promise<PlannerMemory> {
  if (state !== undefined) {
    const memory = await readKeptMemory(state);
    if (memory === undefined) throw new Exit(1, `${state} holds no state of a controller`);
    return memory;
  }
  const memory = emptyMemory();
  for (const egressIP of ofKind(snapshot, 'EgressIP')) {
    const status = await statusOf(path, egressIP);
    for (const text of textsOf(status?.addresses)) give(memory, egressIP, text);
    for (const assigned of recordsOf(status?.assignments)) give(memory, egressIP, String(assigned.address));
    for (const { owner, addresses } of recordsOf(status?.owners)) {
      if (typeof owner !== 'string') continue;
      for (const text of textsOf(addresses)) give(memory, egressIP, text, owner);
    }
  }
  return memory;
}

function give(memory: PlannerMemory, { metadata, spec }: EgressIP, text: string, owner?: string): void {
  const address = canonicalAddress(text);
  if (!address.ok) return;
  const egressIP = metadata.name;
  memory.allocations[address.value] = { pool: spec.pool, owner: egressIP };
  if (owner !== undefined) memory.owners[address.value] = { egressIP, owner };
}

const textsOf = (list: unknown): string[] => (Array.isArray(list) ? list.map(String) : []);
const recordsOf = (list: unknown): Record<string, unknown>[] => (Array.isArray(list) ? list.filter(isRecord) : []);
