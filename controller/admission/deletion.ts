/**
 * Deleting what workloads leave through ends their connections, and gives them no address, or another that the firewall
 * upstream does not know. So a GatewayPool, EgressIPPool or EgressIP that carries some is deleted only if it says so
 * itself, by an annotation with its own name, which no manifest has by chance. Pure.
 */
import { type EgressIP, objectKey, type SluiceObject } from '../../api/kinds.ts';
import { ANNOTATION_CONFIRM_DELETION } from '../../api/names.ts';
import { families, type GatewayPlan } from '../../api/plan.ts';
import { compileEgress } from '../../policy/egress.ts';
import type { PlannerMemory } from '../plan/memory.ts';
import type { Objects } from '../plan/objects.ts';

export interface Carrying {
  objects: Objects;
  memory: PlannerMemory;
  /** The newest, by GatewayPool. */
  plans: ReadonlyMap<string, GatewayPlan>;
}

/** How many workloads would lose it. */
export function carriedBy(object: SluiceObject, { objects, memory, plans }: Carrying): number {
  const { name } = object.metadata;
  switch (object.kind) {
    case 'GatewayPool':
      return Object.keys(plans.get(name)?.workloads ?? {}).length;
    case 'EgressIPPool':
      return leavingWith(
        objects.EgressIP.filter(({ spec }) => spec.pool === name),
        memory,
        plans,
      );
    case 'EgressIP':
      return leavingWith([object], memory, plans);
    default:
      return 0;
  }
}

function leavingWith(
  egressIPs: readonly EgressIP[],
  { allocations }: PlannerMemory,
  plans: ReadonlyMap<string, GatewayPlan>,
): number {
  const owners = new Set(egressIPs.map(({ metadata }) => metadata.name));
  const addresses = new Set(
    Object.entries(allocations).flatMap(([address, { owner, releasedAt }]) =>
      releasedAt === undefined && owners.has(owner) ? [address] : [],
    ),
  );
  if (addresses.size === 0) return 0;
  let count = 0;
  for (const plan of plans.values()) {
    const map = compileEgress(plan);
    for (const workload of Object.values(plan.workloads)) {
      if (families.some((family) => map.everything(workload, family).some(({ address }) => addresses.has(address))))
        count++;
    }
  }
  return count;
}

/** Why it may not be deleted; undefined: it may. */
export function refusedDeletion(object: SluiceObject, carrying: Carrying): string | undefined {
  const { annotations, name } = object.metadata;
  const said =
    annotations !== undefined && Object.hasOwn(annotations, ANNOTATION_CONFIRM_DELETION)
      ? annotations[ANNOTATION_CONFIRM_DELETION]
      : undefined;
  if (said === name) return undefined;
  const count = carriedBy(object, carrying);
  if (count === 0) return undefined;
  const who = count === 1 ? '1 workload leaves' : `${count} workloads leave`;
  const but = typeof said !== 'string' ? '' : ` (the annotation says ${JSON.stringify(said.slice(0, 63))})`;
  return `${objectKey(object)}: ${who} through it, whose connections would end${but}; to delete it all the same: kubectl annotate --overwrite ${object.kind.toLowerCase()} ${name} ${ANNOTATION_CONFIRM_DELETION}=${name}`;
}
