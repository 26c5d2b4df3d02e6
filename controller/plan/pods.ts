/**
 * Pods that count: those with addresses of their own that may send. A finished pod's address is free again, a
 * host-network pod's is the node's. Two pods that claim one address: the newest has it (the API server may show the
 * old one for a while after its address was given again); the other loses all its addresses, since half a pod
 * would be steered and half not.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import { objectKey, type Pod } from '../../api/kinds.ts';
import { podKey } from '../../policy/endpoints.ts';
import type { Warning } from './plan.ts';

export interface CountedPod {
  pod: Pod;
  uid: string;
  key: string;
  namespace: string;
  node: string;
  /** Canonical. */
  addresses: string[];
}

/** `pods` oldest first; so is the result. */
export function countedPods(pods: readonly Pod[], warnings: Warning[]): CountedPod[] {
  const holder = new Map<string, CountedPod>();
  const counted: CountedPod[] = [];
  for (const pod of [...pods].reverse()) {
    const entry = countedPod(pod);
    if (entry === undefined) continue;
    const other = entry.addresses.map((address) => holder.get(address)).find((found) => found !== undefined);
    if (other !== undefined) {
      const message = `claims an address of ${other.key}, which is newer; it is ignored`;
      warnings.push({ object: entry.key, reason: 'AddressTaken', message });
      continue;
    }
    for (const address of entry.addresses) holder.set(address, entry);
    counted.push(entry);
  }
  return counted.reverse();
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
    namespace: metadata.namespace ?? 'default',
    node: spec.nodeName,
    addresses: [...addresses],
  };
}
