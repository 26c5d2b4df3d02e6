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
import { sameList } from './memo.ts';
import type { CountedPod } from './pods.ts';
import { labelsOf, type Pool } from './pools.ts';
import { rendezvousPick } from './rendezvous.ts';

interface Candidate {
  egressIP: EgressIP;
  /** 0: podSelector, 1: namespaces, 2: namespaceSelector. */
  rank: number;
}

/** A candidate with its addresses and their shards; absent: it has none. A value. */
export interface Serving extends Candidate {
  addresses: PerFamily<Egress[]> | undefined;
}

export interface Assigner {
  /** EgressIPs that serve pods of a namespace, in order of precedence. */
  candidates(namespace: string): readonly Candidate[];
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
    for (const name of new Set(egressIP.spec.namespaces)) {
      const list = listing.get(name);
      if (list === undefined) listing.set(name, [egressIP]);
      else list.push(egressIP);
    }
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
    candidates: (namespace) => candidates.get(namespace) ?? [],
    namespaces: (egressIP) => served.get(egressIP) ?? 0,
  };
}

/** The EgressIP that a pod leaves with. */
export const servingOf = (serving: readonly Serving[], { pod }: CountedPod): Serving | undefined =>
  serving.find(({ egressIP, rank }) => rank > 0 || matches(egressIP.spec.podSelector, pod.metadata.labels));

/** By namespace; lists that are what they were are the same lists. */
export function servingsOf(
  assign: Assigner,
  addresses: ReadonlyMap<string, PerFamily<Egress[]>>,
  namespaces: readonly Namespace[],
  last: ReadonlyMap<string, readonly Serving[]> | undefined,
): Map<string, readonly Serving[]> {
  const servings = new Map<string, readonly Serving[]>();
  for (const { metadata } of namespaces) {
    const { name } = metadata;
    const list = assign.candidates(name);
    if (list.length === 0) continue;
    const known = last?.get(name) ?? [];
    const now = list.map(({ egressIP, rank }, at): Serving => {
      const [before, by] = [known[at], addresses.get(egressIP.metadata.name)];
      const same = before?.egressIP === egressIP && before.rank === rank && before.addresses === by;
      return same ? before : { egressIP, rank, addresses: by };
    });
    servings.set(name, sameList(known, now));
  }
  return servings;
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
export function egressOf(pod: CountedPod, addresses: PerFamily<Egress[]> = {}): PerFamily<Egress> {
  const egress: PerFamily<Egress> = {};
  for (const family of families) {
    const all = addresses[family] ?? [];
    // Few have several, and a pick among them is a hash of each.
    const address =
      all.length < 2
        ? all[0]?.address
        : rendezvousPick(
            pod.key,
            all.map((one) => one.address),
          );
    const one = all.find((candidate) => candidate.address === address);
    if (one !== undefined) egress[family] = one;
  }
  return egress;
}
