/**
 * Which EgressIPs serve a pod, and with which of their addresses (design §3). Precedence: where an EgressIP has
 * `destinations`, the longest prefix (policy/egress.ts, which is given the order found here); then one whose podSelector
 * matches, then one that lists the namespace before one whose namespaceSelector matches; within that `priority` (lower
 * first), age, name. Only an EgressIP of the pod's own gateway pool counts, and only where its EgressIPPool lets the
 * namespace draw. Spread Pod: rendezvous of the pod over the addresses, so that few pods move when one is added.
 */
import { type EgressIP, type EgressIPPool, type Namespace, objectKey, type Pod } from '../../api/kinds.ts';
import { type Egress, families, type PerFamily } from '../../api/plan.ts';
import { matches } from '../../policy/selector.ts';
import type { Findings } from './condition.ts';
import type { Destinations } from './destinations.ts';
import { sameList } from './memo.ts';
import type { PlannedOwners } from './owners.ts';
import type { CountedPod } from './pods.ts';
import { labelsOf, type Pool } from './pools.ts';
import { rendezvousPick } from './rendezvous.ts';

/** Lower first. WITHOUT_POD is added where there is no podSelector. */
const LISTED = 0;
const SELECTED = 1;
const WITHOUT_POD = 2;

export interface Candidate {
  egressIP: EgressIP;
  rank: number;
  /** Of one that serves only these. */
  prefixes?: readonly string[];
}

/** A candidate with its addresses and their shards; absent: it has none. A value. */
export interface Serving extends Pick<Candidate, 'egressIP' | 'rank'> {
  addresses: PerFamily<Egress[]> | undefined;
  /** Instead, by name of the pod, of one that gives each its own. */
  pods?: ReadonlyMap<string, PerFamily<Egress[]>>;
}

export interface Assignment {
  /** What serves the pod where no other says otherwise. */
  otherwise?: Serving;
  /** Those with destinations, in order of precedence. */
  destinations: readonly Serving[];
}

export interface Assigner {
  /** EgressIPs that serve pods of a namespace, in order of precedence. */
  candidates(namespace: string): readonly Candidate[];
  /** Namespaces that an EgressIP serves, wholly or by some pods; oldest first. */
  served(egressIP: string): readonly Namespace[];
}

export const mayDraw = ({ spec }: EgressIPPool, namespace: Namespace): boolean =>
  matches(spec.namespaceSelector, labelsOf(namespace));
export const drawRefusal = (pool: string, namespace: string): string =>
  `EgressIPPool ${pool} does not let namespace ${namespace} draw from it`;

/** `egressIPs` and `namespaces` oldest first. */
export function assigner(
  egressIPs: readonly EgressIP[],
  drawPools: ReadonlyMap<string, EgressIPPool>,
  namespaces: readonly Namespace[],
  poolOfNamespace: ReadonlyMap<string, Pool>,
  destinations: Destinations,
  findings: Findings,
): Assigner {
  const conflicts = new Conflicts();
  const candidates = new Map<string, Candidate[]>();
  const served = new Map<string, Namespace[]>();
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
      if (!mayDraw(drawPool, namespace)) {
        const message = drawRefusal(spec.pool, name);
        findings.add(objectKey(egressIP), 'Programmed', 'False', 'NamespaceNotAllowed', message);
        continue;
      }
      const prefixes = destinations.get(egressIP.metadata.name);
      if (prefixes === null) continue;
      const rank = (listed ? LISTED : SELECTED) + (spec.podSelector === undefined ? WITHOUT_POD : 0);
      list.push({ egressIP, rank, ...(prefixes !== undefined && { prefixes }) });
    }
    const age = ({ egressIP }: Candidate): number => ageOf.get(egressIP) ?? 0;
    list.sort((a, b) => a.rank - b.rank || priority(a.egressIP) - priority(b.egressIP) || age(a) - age(b));
    const wholly = list.filter(({ rank }) => rank >= WITHOUT_POD);
    for (const { object, reason, message } of conflicts.among(`namespace ${name}`, 'NamespaceTaken', wholly)) {
      findings.conflict(object, reason, message);
    }
    candidates.set(name, list);
    const whole = list.findIndex(({ rank, prefixes }) => rank >= WITHOUT_POD && prefixes === undefined);
    for (const [at, { egressIP, prefixes }] of list.entries()) {
      if (whole !== -1 && at > whole && prefixes === undefined) continue;
      const known = served.get(egressIP.metadata.name);
      if (known === undefined) served.set(egressIP.metadata.name, [namespace]);
      else known.push(namespace);
    }
  }
  return {
    candidates: (namespace) => candidates.get(namespace) ?? [],
    served: (egressIP) => served.get(egressIP) ?? [],
  };
}

/** The EgressIPs that a pod leaves with, and with which of their addresses. */
export function assignmentOf(serving: readonly Serving[], { pod }: CountedPod): Assignment {
  const { otherwise, destinations } = chosenOf(serving, pod);
  const own = (one: Serving): Serving =>
    one.pods === undefined ? one : { ...one, addresses: one.pods.get(pod.metadata.name) };
  return { ...(otherwise !== undefined && { otherwise: own(otherwise) }), destinations: destinations.map(own) };
}

/** Those of `candidates`, in order of precedence, that serve a pod. */
export function chosenOf<C extends Pick<Candidate, 'egressIP' | 'rank'>>(
  candidates: readonly C[],
  pod: Pod,
): { otherwise?: C; destinations: readonly C[] } {
  const own = candidates.filter(
    ({ egressIP, rank }) => rank >= WITHOUT_POD || matches(egressIP.spec.podSelector, pod.metadata.labels),
  );
  const otherwise = own.find(({ egressIP }) => egressIP.spec.destinations === undefined);
  return {
    ...(otherwise !== undefined && { otherwise }),
    destinations: own.filter(({ egressIP }) => egressIP.spec.destinations !== undefined),
  };
}

/** Of podSelectors only the pods can tell. */
export function podConflicts(candidates: readonly Candidate[], pods: readonly CountedPod[]): Conflict[] {
  const selecting = candidates.filter(({ rank }) => rank < WITHOUT_POD);
  if (selecting.length < 2) return [];
  const conflicts = new Conflicts();
  return pods.flatMap(({ namespace, pod }) => {
    const { name, labels } = pod.metadata;
    const chosen = selecting.filter(({ egressIP }) => matches(egressIP.spec.podSelector, labels));
    return conflicts.among(`pod ${namespace}/${name}`, 'PodTaken', chosen);
  });
}

/** By namespace; lists that are what they were are the same lists. */
export function servingsOf(
  assign: Assigner,
  addresses: ReadonlyMap<string, PerFamily<Egress[]>>,
  given: PlannedOwners['given'],
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
      const before = known[at];
      const own = given.get(egressIP.metadata.name);
      const ofNamespace = own?.namespaces.get(name);
      const by = own === undefined ? addresses.get(egressIP.metadata.name) : ofNamespace?.all;
      const pods = ofNamespace?.pods;
      const same = before?.egressIP === egressIP && before.rank === rank && before.addresses === by;
      if (same && before.pods === pods) return before;
      return { egressIP, rank, addresses: by, ...(pods !== undefined && { pods }) };
    });
    servings.set(name, sameList(known, now));
  }
  return servings;
}

const priority = (egressIP: EgressIP): number => egressIP.spec.priority ?? 1000;

/** An EgressIP that another comes before, though nothing but priority, age or name tells them apart. */
export interface Conflict {
  /** Key of the loser. */
  object: string;
  reason: 'NamespaceTaken' | 'PodTaken' | 'DestinationTaken';
  message: string;
}

/**
 * A more specific EgressIP beside a fallback is how they are meant to be used; two of the same rank that select the same
 * for the same destinations are not, and the loser says who won.
 */
class Conflicts {
  /** By winner and loser: a prefix that both name. */
  readonly #common = new Map<string, string | undefined>();
  /** Namespaces and pods with the same EgressIPs have the same conflicts, of which one is shown. */
  readonly #seen = new Set<string>();

  /** `list` in order of precedence; `what` it is that all of them select. */
  among(what: string, reason: 'NamespaceTaken' | 'PodTaken', list: readonly Candidate[]): Conflict[] {
    if (list.length < 2) return [];
    const all = list.map(({ egressIP, rank }) => `${rank} ${egressIP.metadata.name}`).join(' ');
    if (this.#seen.has(all)) return [];
    this.#seen.add(all);
    return list.flatMap((loser, at): Conflict[] => {
      const object = objectKey(loser.egressIP);
      for (const winner of list.slice(0, at)) {
        if (winner.rank !== loser.rank) continue;
        const { name } = winner.egressIP.metadata;
        if (winner.prefixes === undefined && loser.prefixes === undefined) {
          return [{ object, reason, message: `${what} is served by EgressIP ${name}` }];
        }
        const prefix = this.#commonPrefix(winner, loser);
        if (prefix === undefined) continue;
        const message = `destination ${prefix} of ${what} is served by EgressIP ${name}`;
        return [{ object, reason: 'DestinationTaken', message }];
      }
      return [];
    });
  }

  #commonPrefix(winner: Candidate, loser: Candidate): string | undefined {
    if (winner.prefixes === undefined || loser.prefixes === undefined) return undefined;
    const key = `${winner.egressIP.metadata.name} ${loser.egressIP.metadata.name}`;
    if (!this.#common.has(key)) {
      const taken = new Set(winner.prefixes);
      this.#common.set(
        key,
        loser.prefixes.find((prefix) => taken.has(prefix)),
      );
    }
    return this.#common.get(key);
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
