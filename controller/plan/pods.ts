/**
 * Pods that count: those with addresses of their own that may send. A finished pod's address is free again, a
 * host-network pod's is the node's. A pod that is being deleted sends until it has finished. Two pods that claim one address:
 * that which is not being deleted has it, else the newest (the API server may show the old one for a while after its
 * address was given again, and that may be the younger: the other waited for a node longer); the other loses all its
 * addresses, since half a pod would be steered and half not. The same of two with one uid, which is a manifest that was copied.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import { objectKey, type Pod } from '../../api/kinds.ts';
import { podKey } from '../../policy/endpoints.ts';
import { sameList } from './memo.ts';
import type { NamespaceObjects } from './objects.ts';
import type { Warning } from './plan.ts';
import { compareText, older } from './snapshot.ts';

export interface CountedPod {
  pod: Pod;
  uid: string;
  key: string;
  namespace: string;
  node: string;
  /** Canonical. */
  addresses: string[];
}

/** In the order of `pods`. */
export function countedPods(pods: readonly Pod[], warnings: Warning[]): CountedPod[] {
  const claims = new Claims();
  const counted = pods.flatMap((pod) => countedPod(pod) ?? []);
  for (const pod of counted) claims.add(pod);
  const losers = claims.losers();
  warnings.push(...warningsOf(losers));
  return counted.filter((pod) => !losers.has(pod));
}

/** Of one namespace. A value. */
export interface NamespacePods {
  /** Oldest first. */
  counted: readonly CountedPod[];
  /** What policy is bound to: these, and those on their node's network, which are known to be no source. */
  bound: readonly Pod[];
}

const nobody: NamespacePods = { counted: [], bound: [] };

/** The same namespace by namespace, from what it was before. */
export class PodIndex {
  readonly #claims = new Claims();
  readonly #namespaces = new Map<string, { pods: readonly Pod[]; candidates: CountedPod[]; result: NamespacePods }>();
  #losers: ReadonlyMap<CountedPod, CountedPod> = new Map();

  /** `touched`: namespaces that are not what they were. Returns those whose pods are not. */
  look(
    objects: ReadonlyMap<string, NamespaceObjects>,
    touched: ReadonlySet<string>,
    warnings: Warning[],
  ): ReadonlySet<string> {
    const changed = new Set<string>();
    for (const name of touched) {
      const last = this.#namespaces.get(name);
      const pods = objects.get(name)?.pods ?? [];
      if (last?.pods === pods) continue;
      const known = new Map(last?.candidates.map((candidate) => [candidate.pod, candidate]));
      const candidates = pods.flatMap((pod) => known.get(pod) ?? countedPod(pod) ?? []);
      const stay = new Set(candidates);
      for (const candidate of known.values()) if (!stay.has(candidate)) this.#claims.remove(candidate);
      for (const candidate of candidates) if (!known.has(candidate.pod)) this.#claims.add(candidate);
      if (objects.has(name)) this.#namespaces.set(name, { pods, candidates, result: last?.result ?? nobody });
      else this.#namespaces.delete(name);
      changed.add(name);
    }
    const losers = this.#claims.losers();
    for (const { namespace } of [...losers.keys(), ...this.#losers.keys()]) changed.add(namespace);
    this.#losers = losers;
    warnings.push(...warningsOf(losers));
    for (const name of changed) {
      const place = this.#namespaces.get(name);
      if (place === undefined) continue;
      const counted = sameList(
        place.result.counted,
        place.candidates.filter((pod) => !losers.has(pod)),
      );
      const host = place.pods.filter(({ spec }) => spec.hostNetwork === true);
      const bound = sameList(place.result.bound, [...counted.map(({ pod }) => pod), ...host]);
      if (counted !== place.result.counted || bound !== place.result.bound) place.result = { counted, bound };
    }
    return changed;
  }

  of(namespace: string): NamespacePods {
    return this.#namespaces.get(namespace)?.result ?? nobody;
  }
}

/** Who claims what. */
class Claims {
  /** Address or uid → its only claimant, or all of several. */
  readonly #claims = new Map<string, CountedPod | CountedPod[]>();
  readonly #contested = new Set<string>();

  add(pod: CountedPod): void {
    for (const claim of claimsOf(pod)) {
      const others = this.#claims.get(claim);
      if (others === undefined) this.#claims.set(claim, pod);
      else {
        this.#claims.set(claim, [others, pod].flat());
        this.#contested.add(claim);
      }
    }
  }

  remove(pod: CountedPod): void {
    for (const claim of claimsOf(pod)) {
      const left = [this.#claims.get(claim) ?? []].flat().filter((other) => other !== pod);
      const [only, second] = left;
      if (second === undefined) this.#contested.delete(claim);
      if (only === undefined) this.#claims.delete(claim);
      else this.#claims.set(claim, second === undefined ? only : left);
    }
  }

  /** Each with one to which it loses. */
  losers(): Map<CountedPod, CountedPod> {
    const losers = new Map<CountedPod, CountedPod>();
    const claimants = new Set([...this.#contested].flatMap((claim) => this.#claims.get(claim) ?? []));
    const holder = new Map<string, CountedPod>();
    for (const pod of [...claimants].sort(rightful)) {
      const claims = claimsOf(pod);
      const other = claims.map((claim) => holder.get(claim)).find((found) => found !== undefined);
      if (other !== undefined) losers.set(pod, other);
      else for (const claim of claims) holder.set(claim, pod);
    }
    return losers;
  }
}

/** Comparison: who has a claim comes first. */
const rightful = (a: CountedPod, b: CountedPod): number =>
  Number(leaving(a)) - Number(leaving(b)) || older(b.pod, a.pod);
const leaving = ({ pod }: CountedPod): boolean => pod.metadata.deletionTimestamp !== undefined;

/** No uid looks like an address. */
const claimsOf = ({ uid, addresses }: CountedPod): string[] => [...addresses, `uid ${uid}`];

function warningsOf(losers: ReadonlyMap<CountedPod, CountedPod>): Warning[] {
  return [...losers]
    .map(([pod, other]): Warning => {
      const [what, reason] =
        pod.uid === other.uid ? ['has the uid', 'UidTaken'] : ['claims an address', 'AddressTaken'];
      const why = leaving(pod) && !leaving(other) ? 'and is being deleted' : 'which is newer';
      return { object: pod.key, reason, message: `${what} of ${other.key}, ${why}; it is ignored` };
    })
    .sort((a, b) => compareText(a.object, b.object));
}

function countedPod(pod: Pod): CountedPod | undefined {
  const { metadata, spec, status } = pod;
  if (spec?.hostNetwork === true || status?.phase === 'Succeeded' || status?.phase === 'Failed') return undefined;
  if (spec?.nodeName === undefined) return undefined;
  const addresses = new Set<string>();
  const claimed = status?.podIPs?.map(({ ip }) => ip) ?? (status?.podIP === undefined ? [] : [status.podIP]);
  for (const ip of claimed) {
    const parsed = parseAddress(ip);
    if (parsed.ok) addresses.add(formatAddress(parsed.value));
  }
  if (addresses.size === 0) return undefined;
  return {
    pod,
    uid: podKey(pod),
    key: objectKey(pod),
    namespace: metadata.namespace ?? '',
    node: spec.nodeName,
    addresses: [...addresses],
  };
}
