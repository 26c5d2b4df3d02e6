/**
 * A generated cluster as manifests give it, of many small teams: N namespaces with some pods, rules of their owners and of
 * the applications', an egress IP each; a few rules of the cluster for all; pods 250 to a node.
 */
import { type AnyObject, objectKey, parseObject } from '../api/kinds.ts';

export interface ClusterSize {
  namespaces: number;
  /** Of each namespace. */
  pods: number;
  rules: number;
}

const PODS_PER_NODE = 250;
const CREATED = '2026-01-01T00:00:00Z';

export function generateCluster(size: ClusterSize): Map<string, AnyObject> {
  const snapshot = new Map<string, AnyObject>();
  const add = (input: object): void => {
    const object = valid(input);
    snapshot.set(objectKey(object), object);
  };
  add({
    kind: 'GatewayPool',
    metadata: { name: 'edge' },
    spec: {
      namespaceSelector: {},
      gateways: ['gw-a', 'gw-b', 'gw-c'].map((name, at) => ({ name, internalAddress: `10.0.0.3${at + 1}` })),
      interfaces: { internal: 'inside', external: { name: 'outside' } },
      nextHops: { v4: ['10.0.0.64-10.0.0.69'], v6: ['fd00:10::64-fd00:10::69'] },
      unassigned: 'Drop',
      clusterCIDRs: ['10.128.0.0/9', '10.0.0.0/16', 'fd00:244::/32', 'fd00:10::/64'],
    },
  });
  add({
    kind: 'EgressIPPool',
    metadata: { name: 'public' },
    spec: { gatewayPool: 'edge', ranges: ['100.64.0.0/16', '2001:db8:e::/112'], namespaceSelector: {} },
  });
  for (const [at, priority] of Array.from({ length: 20 }, (_, at) => [at, 100 + at])) {
    add({
      kind: 'ExternalService',
      metadata: { name: `list-${at}`, namespace: 'sluice-system' },
      spec: { addresses: Array.from({ length: 50 }, (_, n) => `185.${at}.${n}.0/24`) },
    });
    add(clusterRule(`list-${at}`, { priority, externalServices: [`list-${at}`], action: 'drop' }));
  }
  const nodes = Math.ceil((size.namespaces * size.pods) / PODS_PER_NODE);
  for (let node = 0; node < nodes; node++) {
    add({
      apiVersion: 'v1',
      kind: 'Node',
      metadata: { name: `node-${node}` },
      spec: { podCIDRs: [`10.${128 + (node >> 8)}.${node & 255}.0/24`, `fd00:244:${(node + 1).toString(16)}::/64`] },
      status: { addresses: [{ type: 'InternalIP', address: `10.0.${1 + (node >> 8)}.${node & 255}` }] },
    });
  }
  for (let at = 0; at < size.namespaces; at++) {
    const namespace = `team-${at}`;
    add({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace, labels: { tier: `t${at % 5}` } } });
    add({
      kind: 'EgressIP',
      metadata: { name: namespace },
      spec: { pool: 'public', count: 1, namespaces: [namespace] },
    });
    for (const [name, last] of [
      ['database', 1],
      ['partner', 2],
    ] as const) {
      add({
        kind: 'ExternalService',
        metadata: { name, namespace },
        spec: {
          addresses: [`192.${last}.${at >> 8}.${at & 255}`, `2001:db8:${200 + last}:${(at + 1).toString(16)}::/64`],
          ports: [{ name: 'tls', protocol: 'TCP', port: '443,5432' }],
        },
      });
    }
    const members: string[] = [];
    for (let pod = 0; pod < size.pods; pod++) {
      const place = at * size.pods + pod;
      members.push(podAddresses(place)[4]);
      add(podOf(namespace, pod, place));
    }
    add(sliceOf(namespace, members));
    for (let rule = 0; rule < size.rules; rule++) add(ruleOf(namespace, rule));
  }
  return snapshot;
}

export function valid(input: object): AnyObject {
  const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', ...input });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
  const { metadata } = parsed.value;
  return { ...parsed.value, metadata: { creationTimestamp: CREATED, ...metadata } } as AnyObject;
}

export const podOf = (namespace: string, pod: number, place: number): object => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: {
    name: `pod-${pod}`,
    namespace,
    uid: `00000000-0000-8000-a000-${place.toString(16).padStart(12, '0')}`,
    labels: { app: pod % 2 === 0 ? 'api' : 'worker', 'pod-template-hash': `h${place % 7}` },
  },
  spec: { nodeName: `node-${Math.floor(place / PODS_PER_NODE)}` },
  status: { phase: 'Running', podIPs: Object.values(podAddresses(place)).map((ip) => ({ ip })) },
});

export const sliceOf = (namespace: string, members: readonly string[]): object => ({
  apiVersion: 'discovery.k8s.io/v1',
  kind: 'EndpointSlice',
  metadata: { name: 'api-1', namespace, labels: { 'kubernetes.io/service-name': 'api' } },
  addressType: 'IPv4',
  endpoints: members.filter((_, at) => at % 2 === 0).map((address) => ({ addresses: [address] })),
});

/** Half of them of the namespace's owners, half of the application's; a third selects by label. */
export function ruleOf(namespace: string, rule: number, more: object = {}): object {
  const spec = {
    action: 'accept',
    priority: 1000 + rule,
    externalServices: [rule % 3 === 0 ? 'database' : 'partner'],
    ...(rule % 3 === 1 && { podSelector: { matchLabels: { app: 'worker' } } }),
    ...more,
  };
  const metadata = { name: `rule-${rule}`, namespace };
  return rule % 2 === 0
    ? { kind: 'NamespaceEgressRule', metadata, spec }
    : { kind: 'ServiceEgressRule', metadata, spec: { ...spec, service: 'api' } };
}

export const clusterRule = (name: string, spec: object): object => ({
  kind: 'ClusterEgressRule',
  metadata: { name },
  spec: { namespaceSelector: {}, ...spec },
});

export function podAddresses(place: number): { 4: string; 6: string } {
  const node = Math.floor(place / PODS_PER_NODE);
  const host = (place % PODS_PER_NODE) + 2;
  return {
    4: `10.${128 + (node >> 8)}.${node & 255}.${host}`,
    6: `fd00:244:${(node + 1).toString(16)}::${host.toString(16)}`,
  };
}
