/**
 * The last plan that a gateway or node had in force, on disk: DIR/plan.json. Written to a temporary file, synced and
 * renamed, so that a crash leaves the old or the new one, never half of one. A file that cannot be read is reported
 * with its reason and otherwise treated as absent: the controller sends a snapshot.
 */
import { mkdir, open, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { emptyGatewayPlan, emptyNodePlan, type PlanOf, type PlanRole } from '../api/plan.ts';
import { hashPlan, isRecord } from '../api/plan-delta.ts';

export interface SavedPlan<R extends PlanRole> {
  generation: number;
  hash: string;
  plan: PlanOf[R];
  /** Milliseconds since the epoch. */
  savedAt: number;
}

export interface LoadedPlan<R extends PlanRole> {
  saved?: SavedPlan<R> & { ageSeconds: number };
  /** Why there is none, if there is a file. */
  reason?: string;
}

const fileOf = (directory: string): string => join(directory, 'plan.json');
const MAX_BYTES = 512 * 1024 * 1024;

export async function savePlan<R extends PlanRole>(
  directory: string,
  role: R,
  plan: PlanOf[R],
  generation: number,
  now: number = Date.now(),
): Promise<void> {
  const file = fileOf(directory);
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const temporary = `${file}.new`;
  const handle = await open(temporary, 'w', 0o600);
  try {
    await handle.writeFile(JSON.stringify({ role, generation, hash: hashPlan(plan), savedAt: now, plan }));
    await rename(temporary, file);
  } catch (error) {
    await handle.close();
    throw error;
  }
  // A process that dies has its file all the same; only a machine that dies does not, and its kernel has forgotten the
  // plan too. So nobody waits for the disk: a pod's release would.
  void handle
    .sync()
    .catch(() => undefined)
    .finally(() => handle.close());
}

export async function loadPlan<R extends PlanRole>(
  directory: string,
  role: R,
  now: number = Date.now(),
): Promise<LoadedPlan<R>> {
  let text: string;
  try {
    const handle = await open(fileOf(directory), 'r');
    try {
      if ((await handle.stat()).size > MAX_BYTES) return { reason: `larger than ${MAX_BYTES} bytes` };
      text = await handle.readFile('utf8');
    } finally {
      await handle.close();
    }
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    return missing ? {} : { reason: `cannot be read: ${(error as Error).message}` };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { reason: 'is no JSON' };
  }
  if (!isRecord(value) || !isRecord(value.plan)) return { reason: 'holds no plan' };
  const { generation, hash, savedAt, plan } = value;
  if (value.role !== role) return { reason: `is of role ${JSON.stringify(value.role)}, not ${role}` };
  if (typeof generation !== 'number' || !Number.isSafeInteger(generation) || generation < 0) {
    return { reason: 'has no generation' };
  }
  const names = Object.keys(role === 'gateway' ? emptyGatewayPlan() : emptyNodePlan());
  if (!names.every((name) => isRecord(plan[name]))) return { reason: 'lacks a collection' };
  if (hash !== hashPlan(plan)) return { reason: 'does not have the hash that it names' };
  const at = typeof savedAt === 'number' && Number.isFinite(savedAt) ? savedAt : 0;
  return {
    saved: {
      generation,
      hash,
      savedAt: at,
      plan: plan as unknown as PlanOf[R],
      ageSeconds: Math.max(0, (now - at) / 1000),
    },
  };
}
