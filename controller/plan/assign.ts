/**
 * Which EgressIP serves a pod, and with which of its addresses (design §3). Precedence: one with a podSelector that
 * matches, then one that lists the namespace, then one whose namespaceSelector matches; within that `priority` (lower
 * first), age, name. Only an EgressIP of the pod's own gateway pool counts, and only where its EgressIPPool lets the
 * namespace draw. Spread Pod: rendezvous of the pod over the addresses, so that few pods move when one is added.
 */
import { type EgressIP, type EgressIPPool, type Namespace, objectKey } from '../../api/kinds.ts';
import { type Egress, families, type PerFamily } from '../../api/plan.ts';
import { matches } from '../../policy/selector.ts';
import type { Findings } from './condition.ts';
import type { CountedPod } from './pods.ts';
import { labelsOf, type Pool } from './pools.ts';
import { rendezvousPick } from './rendezvous.ts';

interface Candidate {
  egressIP: EgressIP;
  /** 0: podSelector, 1: namespaces, 2: namespaceSelector. */
  rank: number;
}

export interface Assigner {
  egressIPOf(pod: CountedPod): EgressIP | undefined;
  /** Namespaces that an EgressIP serves, wholly or by some pods. */
  namespaces(egressIP: string): number;
}

/** `egressIPs` and `namespaces` oldest first. */
export function assigner(
  egressIPs: readonly EgressIP[],
  drawPools: ReadonlyMap<string, EgressIPPool>,
  namespaces: readonly Namespace[],
  poolOfNamespace: ReadonlyMap<string, Pool>,
  findings: Findings,
): Assigner {
  const candidates = new Map<string, Candidate[]>();
  const served = new Map<string, number>();
  // Most EgressIPs list their namespaces: those are found by name, and only selectors are tried on each namespace.
  const ageOf = new Map(egressIPs.map((egressIP, index) => [egressIP, index]));
  const listing = new Map<string, EgressIP[]>();
  const selecting = egressIPs.filter(({ spec }) => spec.namespaceSelector !== undefined);
  for (const egressIP of egressIPs) {
    for (const name of new Set(egressIP.spec.namespaces)) listing.set(name, [...(listing.get(name) ?? []), egressIP]);
  }
  for (const namespace of namespaces) {
    const { name } = namespace.metadata;
    const labels = labelsOf(namespace);
    const pool = poolOfNamespace.get(name);
    const list: Candidate[] = [];
    for (const egressIP of new Set([...(listing.get(name) ?? []), ...selecting])) {
      const { spec } = egressIP;
      const listed = spec.namespaces?.includes(name) === true;
      const selected = listed || (spec.namespaceSelector !== undefined && matches(spec.namespaceSelector, labels));
      const drawPool = drawPools.get(spec.pool);
      if (!selected || drawPool === undefined || pool === undefined || drawPool.spec.gatewayPool !== pool.name)
        continue;
      if (!matches(drawPool.spec.namespaceSelector, labels)) {
        const message = `EgressIPPool ${spec.pool} does not let namespace ${name} draw from it`;
        findings.add(objectKey(egressIP), 'Programmed', 'False', 'NamespaceNotAllowed', message);
        continue;
      }
      list.push({ egressIP, rank: spec.podSelector !== undefined ? 0 : listed ? 1 : 2 });
    }
    const age = ({ egressIP }: Candidate): number => ageOf.get(egressIP) ?? 0;
    list.sort((a, b) => a.rank - b.rank || priority(a.egressIP) - priority(b.egressIP) || age(a) - age(b));
    reportConflicts(name, list, findings);
    candidates.set(name, list);
    const whole = list.findIndex(({ rank }) => rank > 0);
    for (const { egressIP } of whole === -1 ? list : list.slice(0, whole + 1)) {
      served.set(egressIP.metadata.name, (served.get(egressIP.metadata.name) ?? 0) + 1);
    }
  }
  return {
    egressIPOf: ({ namespace, pod }) =>
      candidates
        .get(namespace)
        ?.find(({ egressIP, rank }) => rank > 0 || matches(egressIP.spec.podSelector, pod.metadata.labels))?.egressIP,
    namespaces: (egressIP) => served.get(egressIP) ?? 0,
  };
}

const priority = (egressIP: EgressIP): number => egressIP.spec.priority ?? 1000;

/**
 * A more specific EgressIP beside a fallback is how they are meant to be used; two of the same rank that select one
 * namespace as a whole is not, and the loser says who won. (Of podSelectors only the pods could tell.)
 */
function reportConflicts(namespace: string, list: readonly Candidate[], findings: Findings): void {
  for (const rank of [1, 2]) {
    const [winner, ...losers] = list.filter((candidate) => candidate.rank === rank);
    if (winner === undefined) continue;
    for (const { egressIP } of losers) {
      const message = `namespace ${namespace} is served by EgressIP ${winner.egressIP.metadata.name}`;
      findings.conflict(objectKey(egressIP), 'NamespaceTaken', message);
    }
  }
}

/** The pod's source address in each family that its EgressIP has, and the shard that owns it. */
export function egressOf(
  pod: CountedPod,
  addresses: PerFamily<string[]> | undefined,
  shardOf: (address: string) => string | undefined,
): PerFamily<Egress> {
  const egress: PerFamily<Egress> = {};
  for (const family of families) {
    const address = rendezvousPick(pod.key, addresses?.[family] ?? []);
    const shard = address === undefined ? undefined : shardOf(address);
    if (address !== undefined && shard !== undefined) egress[family] = { address, shard };
  }
  return egress;
}
