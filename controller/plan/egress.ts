/**
 * What a workload leaves with, as plans have it: one address per family beside the workload, as long as its EgressIP
 * says no more; what an EgressIP says for all its workloads (addresses that it spreads over, destinations, a limit)
 * once, under its name; which of them serve a workload by destination once per such list.
 */
import { digest } from '../../api/digest.ts';
import type { EgressIP } from '../../api/kinds.ts';
import {
  type DestinationTable,
  type Egress,
  type EgressIPEntry,
  families,
  type GatewayPlan,
  type PerFamily,
  type WorkloadEntry,
} from '../../api/plan.ts';
import { compileEgress } from '../../policy/egress.ts';
import { type Assignment, egressOf } from './assign.ts';
import type { Destinations } from './destinations.ts';
import { egressBandwidthOf } from './limits.ts';
import { isPerOwner, type PlannedOwners, placedOf } from './owners.ts';
import type { CountedPod } from './pods.ts';

type EgressFields = Pick<WorkloadEntry, 'egress' | 'egressIP' | 'destinations' | 'elsewhere'>;

const spreads = ({ spec }: EgressIP): boolean => spec.spread === 'Connection';
/** Whether plans say something of it that its workloads must name. */
const saysMore = (egressIP: EgressIP): boolean =>
  spreads(egressIP) || egressIP.spec.destinations !== undefined || egressIP.spec.maxConnections !== undefined;

/** By pool: what plans say of EgressIPs beyond who has which address. */
export function egressEntries(
  egressIPs: readonly EgressIP[],
  placed: ReadonlyMap<string, PerFamily<Egress[]>>,
  given: PlannedOwners['given'],
  destinations: Destinations,
  poolOf: (egressIP: EgressIP) => string,
): Map<string, Record<string, EgressIPEntry>> {
  const entries = new Map<string, Record<string, EgressIPEntry>>();
  for (const egressIP of egressIPs) {
    if (!saysMore(egressIP) && egressIP.spec.bandwidth === undefined && !isPerOwner(egressIP)) continue;
    const { name } = egressIP.metadata;
    const { allocation, maxConnections } = egressIP.spec;
    const pool = poolOf(egressIP);
    const own = placed.get(name) ?? {};
    const perOwner = given.get(name);
    const used = perOwner === undefined ? own : placedOf(perOwner);
    const shards = shardsOf(used).map((shard) => `${pool}/${shard}`);
    const prefixes = destinations.get(name);
    const entry: EgressIPEntry = {};
    if (allocation !== 'Shared') entry.allocation = allocation;
    if (spreads(egressIP)) entry.spread = own;
    if (prefixes) entry.destinations = [...prefixes];
    if (maxConnections !== undefined) entry.limits = { maxConnections, shards };
    const addresses = families.flatMap((family) => (own[family] ?? []).map(({ address }) => address));
    const bandwidth = egressBandwidthOf(egressIP, addresses, shards);
    if (bandwidth !== undefined) entry.bandwidth = bandwidth;
    // One whose destinations were refused may say nothing.
    if (Object.keys(entry).length === 0) continue;
    const ofPool = entries.get(pool) ?? {};
    entries.set(pool, ofPool);
    ofPool[name] = entry;
  }
  return entries;
}

/** Of an EgressIP's addresses; sorted. */
export const shardsOf = (own: PerFamily<Egress[]> = {}): string[] =>
  [...new Set(families.flatMap((family) => (own[family] ?? []).map(({ shard }) => shard)))].sort();

/** What one namespace adds to a plan, beside its workloads. */
export class NamespaceEgress {
  readonly tables: Record<string, DestinationTable> = {};
  readonly #keys = new Map<string, string>();

  /** Fields of a workload. */
  fieldsOf(pod: CountedPod, { otherwise, destinations }: Assignment): EgressFields {
    const fields: EgressFields = { egress: {} };
    if (otherwise !== undefined) {
      const { egressIP, addresses } = otherwise;
      if (!spreads(egressIP)) fields.egress = egressOf(pod, addresses);
      // That it is served, though with nothing, is said by the name alone.
      const without = isPerOwner(egressIP) && Object.keys(fields.egress).length === 0;
      if (saysMore(egressIP) || without) fields.egressIP = egressIP.metadata.name;
    }
    if (destinations.length === 0) return fields;
    fields.destinations = this.#table(destinations.map(({ egressIP }) => egressIP.metadata.name));
    for (const { egressIP, addresses } of destinations) {
      if (spreads(egressIP)) continue;
      fields.elsewhere ??= {};
      fields.elsewhere[egressIP.metadata.name] = egressOf(pod, addresses);
    }
    return fields;
  }

  /** Content in the key: workloads with another order of precedence have another table. */
  #table(names: string[]): string {
    const text = JSON.stringify(names);
    let key = this.#keys.get(text);
    if (key === undefined) {
      key = digest(text);
      this.#keys.set(text, key);
      this.tables[key] = { egressIPs: names };
    }
    return key;
  }
}

/** Whether a pod can leave anywhere. */
export const leaves = ({ otherwise, destinations }: Assignment): boolean =>
  [...(otherwise === undefined ? [] : [otherwise]), ...destinations].some(({ addresses = {} }) =>
    families.some((family) => (addresses[family]?.length ?? 0) > 0),
  );

/** The same of a workload in a plan. */
export function hasAddress(workload: WorkloadEntry, plan: Pick<GatewayPlan, 'egressIPs' | 'destinations'>): boolean {
  const map = compileEgress(plan);
  return families.some((family) => map.everything(workload, family).length > 0);
}
