/**
 * One good object of every kind, with as many fields as it may have: what the tables of bad inputs change one thing of.
 */

const sluice = 'sluice.dev/v1alpha1';

export const samples = [
  {
    apiVersion: sluice,
    kind: 'GatewayPool',
    metadata: { name: 'main', creationTimestamp: '2026-11-25T12:00:00Z', generation: 3, finalizers: ['x'] },
    spec: {
      namespaceSelector: {},
      mode: 'Enforce',
      gateways: [
        { name: 'gw-a', internalAddress: '10.0.0.31', weight: 2 },
        { name: 'gw-b', internalAddress: '10.0.0.32' },
      ],
      interfaces: {
        internal: 'in0',
        external: { name: 'out0', gateway: { v4: '203.0.113.1', v6: '2001:db8:113::1' } },
      },
      nextHops: { v4: ['10.0.0.64-10.0.0.69'], v6: ['fd00:10::64-fd00:10::69'] },
      steering: { mode: 'VXLAN', vni: 100, port: 4793, mtu: 1450 },
      defaultAction: 'Drop',
      unassigned: 'Drop',
      clusterCIDRs: ['10.244.0.0/16', 'fd00:244::/48'],
      excludedCIDRs: ['192.168.0.0/16'],
      dns: { resolvers: ['2001:DB8::53', '198.51.100.53'], strict: true },
      inspection: { workers: 4, onOverload: 'Accept' },
      fetch: { allowedHosts: ['Lists.Example.test', 'lists.example.test:8443', '198.51.100.7', '[2001:db8::7]:8443'] },
    },
    status: { anything: true },
  },
  {
    apiVersion: sluice,
    kind: 'EgressIPPool',
    metadata: { name: 'public' },
    spec: {
      gatewayPool: 'main',
      ranges: ['203.0.113.96/27', '2001:db8:113::100-2001:db8:113::1ff'],
      exclude: ['203.0.113.97'],
      namespaceSelector: { matchLabels: { 'example.com/team': 'pay' } },
      quarantineSeconds: 60,
    },
  },
  {
    apiVersion: sluice,
    kind: 'EgressIP',
    metadata: { name: 'billing' },
    spec: {
      pool: 'public',
      addresses: ['203.0.113.101', '2001:DB8:113:0::101'],
      allocation: 'Shared',
      namespaces: ['billing'],
      podSelector: { matchExpressions: [{ key: 'app', operator: 'In', values: ['pay', ''] }] },
      destinations: ['2001:db8::/32', 'sluice-system/partner'],
      spread: 'Connection',
      maxConnections: 200,
      priority: 10,
    },
  },
  {
    apiVersion: sluice,
    kind: 'ExternalService',
    metadata: { name: 'web', namespace: 'billing' },
    spec: {
      addresses: [
        '198.51.100.80',
        '198.51.100.0/24',
        '2001:db8:100::80-2001:db8:100::90',
        'API.Example.com.',
        '*.example.net',
        '**.bücher.example',
      ],
      addressesFrom: [
        { url: 'https://lists.example.test/egress.txt', refreshSeconds: 60 },
        { file: 'lists/partners.json', format: 'JSON' },
        { configMapRef: { name: 'partners', key: 'list.txt' }, format: 'Text' },
      ],
      ports: [
        { name: 'https', protocol: 'TCP', port: '443,8000-8100' },
        { name: 'ping', protocol: 'ICMP', port: '8,3/4' },
        { name: 'gre', protocol: 47 },
        {
          name: 'tls',
          protocol: 'TCP',
          port: '993',
          appProtocol: 'TLS',
          tls: {
            serverNames: ['API.example.com', '*.example.net.'],
            minVersion: '1.2',
            alpn: ['h2', 'http/1.1'],
            rejectEncryptedClientHello: true,
          },
          conformance: 'Enforce',
        },
        {
          name: 'http',
          protocol: 6,
          port: '8080',
          appProtocol: 'HTTP',
          http: { hosts: ['**.example.com'], methods: ['GET', 'HEAD'], paths: ['/v1/status', '/v2/*'] },
        },
        {
          name: 'dns',
          protocol: '17',
          port: '53',
          appProtocol: 'DNS',
          dns: { names: ['**.example.com'], types: ['A', 'TYPE28', 'TYPE4242'], maxQuestionsPerSecond: 50 },
        },
        { name: 'ssh', protocol: 'TCP', port: '22', appProtocol: 'SSH', conformance: 'Audit' },
      ],
    },
  },
  {
    apiVersion: sluice,
    kind: 'ClusterEgressRule',
    metadata: { name: 'block' },
    spec: {
      action: 'reject',
      logging: 'All',
      externalServices: ['bad', 'security/list'],
      priority: 5,
      podSelector: {},
      serviceAccounts: ['pay', 'billing/pay.v2'],
      namespaceSelector: { matchExpressions: [{ key: 'team', operator: 'Exists' }] },
      schedule: [{ days: ['Sat', 'Sun'], from: '22:00', to: '04:00', timezone: 'Europe/Berlin' }],
    },
  },
  {
    apiVersion: sluice,
    kind: 'NamespaceEgressRule',
    metadata: { name: 'any', namespace: 'billing' },
    spec: {
      action: 'accept',
      externalServices: ['*'],
      priority: 5,
      podSelector: { matchLabels: { app: 'pay' } },
      connectionsPerSecond: 100,
      maxConnections: 40,
    },
  },
  {
    apiVersion: sluice,
    kind: 'ServiceEgressRule',
    metadata: { name: 'payments', namespace: 'billing' },
    spec: {
      action: 'accept',
      externalServices: ['web'],
      priority: 5,
      service: 'payments',
      endpoints: 'Ready',
      redirect: { address: '2001:DB8:100::90', port: 8443 },
      webhook: { url: 'https://hooks.example.test/sluice?token=t0p' },
    },
  },
  { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'billing', labels: { team: 'pay' } }, status: {} },
  {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'pay-1', namespace: 'billing', uid: 'a-1', labels: { app: 'pay' }, managedFields: [{}] },
    spec: { nodeName: 'node-a', containers: [{}], serviceAccountName: 'pay', hostNetwork: false },
    status: { phase: 'Running', podIP: '10.244.1.2', podIPs: [{ ip: '10.244.1.2' }, { ip: 'FD00:244:1::2' }] },
  },
  {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: 'payments', namespace: 'billing' },
    spec: {
      clusterIPs: ['10.96.0.20'],
      selector: { app: 'pay' },
      ports: [{ name: 'http', port: 80, protocol: 'TCP', targetPort: 'web' }],
    },
  },
  {
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'payments-1', namespace: 'billing', labels: { 'kubernetes.io/service-name': 'payments' } },
    addressType: 'IPv4',
    endpoints: [
      {
        addresses: ['10.244.1.2'],
        conditions: { ready: true, serving: null },
        targetRef: { kind: 'Pod', namespace: 'billing', name: 'pay-1', uid: 'a-1' },
      },
    ],
    ports: null,
  },
  {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: 'node-a' },
    spec: { podCIDR: '10.244.1.0/24', podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'] },
    status: {
      addresses: [
        { type: 'InternalIP', address: '10.0.0.21' },
        { type: 'Hostname', address: 'node-a' },
      ],
    },
  },
  {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: { name: 'list', namespace: 'billing' },
    data: { 'a.txt': '10.0.0.1\n' },
  },
] as const;
