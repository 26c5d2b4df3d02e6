/**
 * What GatewayPools, EgressIPPools and EgressIPs come to together, before any pod's policy is looked at: which pool carries
 * which namespace, who has which address, whom each EgressIP serves; and all that is the matter with them. The planner begins
 * with it, and admission asks it of a change before it is made. From what was found last where that still holds.
 */
import { type EgressIPPool, objectKey } from '../../api/kinds.ts';
import type { KnownLists } from '../../policy/external-service.ts';
import { AddressPlanner, type PlannedAddresses } from './addresses.ts';
import { type Assigner, assigner } from './assign.ts';
import { Findings } from './condition.ts';
import { DestinationIndex, type Destinations } from './destinations.ts';
import { Memo } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import type { Objects } from './objects.ts';
import { OwnerPlanner, type PlannedOwners } from './owners.ts';
import type { Peers } from './peers.ts';
import { type Pool, poolsOf } from './pools.ts';

type Found = ReturnType<typeof poolsOf> & { audited: ReadonlySet<string>; findings: Findings };

export interface Layout {
  found: Found;
  addresses: PlannedAddresses;
  destinations: Destinations;
  assign: Assigner;
  owners: PlannedOwners;
  findings: readonly Findings[];
}

export class LayoutPlanner {
  readonly #pools = new Memo<Found>();
  readonly #without = new Memo<Findings>();
  readonly #addresses = new AddressPlanner();
  readonly #destinations = new DestinationIndex();
  readonly #owners = new OwnerPlanner();
  readonly #assigner = new Memo<{ assign: Assigner; findings: Findings }>();

  /** `ranges`: what was found of the cluster, for pools that do not say (cluster-ranges.ts). */
  look(
    objects: Objects,
    memory: PlannerMemory,
    peers: Peers,
    now: number,
    lists: KnownLists,
    ranges?: readonly string[],
  ): Layout {
    const { GatewayPool, EgressIPPool: drawPools, EgressIP: egressIPs, Namespace: namespaces } = objects;
    const found = this.#pools.get([GatewayPool, namespaces, memory.shardIndices, ranges], () => {
      const findings = new Findings();
      const made = poolsOf(GatewayPool, namespaces, memory.shardIndices, findings, ranges);
      return { ...made, audited: new Set(made.pools.flatMap((pool) => pool.audited)), findings };
    });
    const { poolOfNamespace } = found;
    const without = this.#without.get([drawPools, found.pools], () => withoutPool(drawPools, found.pools));
    const addresses = this.#addresses.look(objects, found.pools, memory, peers, now);
    const { destinations, findings } = this.#destinations.look(objects, lists);
    const assigned = this.#assigner.get([egressIPs, drawPools, namespaces, poolOfNamespace, destinations], () => {
      const findings = new Findings();
      const drawPoolOf = new Map(drawPools.map((pool) => [pool.metadata.name, pool]));
      return { assign: assigner(egressIPs, drawPoolOf, namespaces, poolOfNamespace, destinations, findings), findings };
    });
    const { assign } = assigned;
    const { allocation, placed } = addresses;
    const owners = this.#owners.look({ objects, assign, allocation, placed, owners: memory.owners, now });
    const all = [found.findings, without, ...addresses.findings, findings, assigned.findings, owners.findings];
    return { found, addresses, destinations, assign, owners, findings: all };
  }
}

function withoutPool(drawPools: readonly EgressIPPool[], pools: readonly Pool[]): Findings {
  const findings = new Findings();
  for (const object of drawPools) {
    const { gatewayPool } = object.spec;
    if (pools.some(({ name }) => name === gatewayPool)) continue;
    findings.refuse(objectKey(object), 'NoSuchPool', `GatewayPool ${gatewayPool} does not exist or is not accepted`);
  }
  return findings;
}
