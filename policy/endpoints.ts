/**
 * Which pods a Service lists, the source of a ServiceEgressRule (design §3): the pods of its own namespace that its
 * EndpointSlices name, ready or not. Tenants write slices, so an endpoint must be a pod of that namespace both by
 * address and, where it has one, by targetRef; anything else is *foreign* and never a source.
 * Left out: slices of other address types than IP (their endpoints are foreign).
 */

import { canonicalAddress } from '../api/address.ts';
import type { EndpointSlice, Pod } from '../api/kinds.ts';
import { LABEL_SERVICE_NAME } from '../api/names.ts';

export interface ServiceEndpoints {
  /** Pod keys (podKey). */
  all: Set<string>;
  ready: Set<string>;
  /** Addresses that are no pod of the namespace. */
  foreign: Set<string>;
}

type Endpoint = EndpointSlice['endpoints'][number];

/** The uid that a plan keys a pod by; a manifest on disk may have none. */
export function podKey(pod: Pod): string {
  return pod.metadata.uid ?? qualified(pod.metadata.namespace, pod.metadata.name);
}

/** Host-network addresses are the node's, and a finished pod's address may be another's by now. */
export function isSource(pod: Pod): boolean {
  return pod.spec.hostNetwork !== true && pod.status.phase !== 'Succeeded' && pod.status.phase !== 'Failed';
}

/** Keyed by `namespace/service`; a Service that no slice names is absent. */
export function endpointsOf(pods: readonly Pod[], slices: readonly EndpointSlice[]): Map<string, ServiceEndpoints> {
  const byAddress = new Map<string, Pod>();
  const hostNetwork = new Set<string>();
  for (const pod of pods) {
    const { namespace } = pod.metadata;
    for (const address of addressesOf(pod)) {
      if (isSource(pod)) byAddress.set(qualified(namespace, address), pod);
      else hostNetwork.add(qualified(namespace, address));
    }
  }

  const services = new Map<string, ServiceEndpoints>();
  for (const slice of slices) {
    const { namespace, labels } = slice.metadata;
    const name =
      labels !== undefined && Object.hasOwn(labels, LABEL_SERVICE_NAME) ? labels[LABEL_SERVICE_NAME] : undefined;
    if (name === undefined || namespace === undefined) continue;
    const key = qualified(namespace, name);
    const service = services.get(key) ?? { all: new Set(), ready: new Set(), foreign: new Set() };
    services.set(key, service);
    for (const endpoint of slice.endpoints) {
      for (const text of endpoint.addresses) {
        const address = canonical(text);
        const pod = byAddress.get(qualified(namespace, address));
        if (pod !== undefined && refersTo(endpoint, pod)) {
          service.all.add(podKey(pod));
          // Kubernetes: a condition that is absent is to be read as true.
          if (endpoint.conditions?.ready !== false) service.ready.add(podKey(pod));
        } else if (!hostNetwork.has(qualified(namespace, address))) service.foreign.add(address);
      }
    }
  }
  return services;
}

export function sameEndpoints(
  a: ReadonlyMap<string, ServiceEndpoints>,
  b: ReadonlyMap<string, ServiceEndpoints>,
): boolean {
  if (a.size !== b.size) return false;
  for (const [key, one] of a) {
    const other = b.get(key);
    if (other === undefined || !(['all', 'ready', 'foreign'] as const).every((set) => sameSet(one[set], other[set])))
      return false;
  }
  return true;
}

function sameSet(a: ReadonlySet<string>, b: ReadonlySet<string>): boolean {
  if (a.size !== b.size) return false;
  for (const item of a) if (!b.has(item)) return false;
  return true;
}

/** Canonical text of each address that the pod reports. */
export function addressesOf(pod: Pod): string[] {
  const { podIP, podIPs } = pod.status;
  const texts = podIPs?.map(({ ip }) => ip) ?? (podIP ? [podIP] : []);
  return texts.map(canonical);
}

function refersTo(endpoint: Endpoint, pod: Pod): boolean {
  const ref = endpoint.targetRef;
  if (ref === undefined) return true;
  return (
    (ref.kind ?? 'Pod') === 'Pod' &&
    (ref.namespace ?? pod.metadata.namespace) === pod.metadata.namespace &&
    (ref.name ?? pod.metadata.name) === pod.metadata.name &&
    // A pod made anew under an old name is another pod.
    (ref.uid === undefined || pod.metadata.uid === undefined || ref.uid === pod.metadata.uid)
  );
}

function canonical(text: string): string {
  const parsed = canonicalAddress(text);
  return parsed.ok ? parsed.value : text;
}

function qualified(namespace: string | undefined, name: string): string {
  return `${namespace ?? ''}/${name}`;
}
