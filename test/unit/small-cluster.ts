/**
 * The smallest cluster that is carried: a node, a namespace `a` with one pod, a GatewayPool that lets the controller fetch
 * from these hosts. More documents may follow.
 */
export const smallCluster = (hosts: string): string => `
apiVersion: v1
kind: Node
metadata: { name: n }
spec: { podCIDRs: [10.1.0.0/24] }
status: { addresses: [{ type: InternalIP, address: 10.0.0.21 }] }
---
{ apiVersion: v1, kind: Namespace, metadata: { name: a } }
---
apiVersion: v1
kind: Pod
metadata: { name: one, namespace: a, uid: uid-one }
spec: { nodeName: n }
status: { phase: Running, podIPs: [{ ip: 10.1.0.1 }, { ip: "fd01::1" }] }
---
apiVersion: sluice.dev/v1alpha1
kind: GatewayPool
metadata: { name: p }
spec:
  namespaceSelector: {}
  gateways: [{ name: g1, internalAddress: 10.0.0.31 }]
  interfaces: { internal: in, external: { name: out } }
  nextHops: { v4: [10.0.0.64], v6: ["fd00:10::64"] }
  unassigned: Drop
  fetch: { allowedHosts: [${hosts}] }
`;
