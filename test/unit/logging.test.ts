/**
 * `logging` of rules, but for the kernel (test/netns/logging.test.ts): what is refused, what becomes of it in a plan, and
 * what `sluice explain` says.
 */
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { explain } from '../../cli/explain.ts';
import { answerText } from '../../cli/explain-text.ts';
import { parseTarget } from '../../cli/target.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import type { Snapshot } from '../../controller/plan/snapshot.ts';
import { touches } from '../touches.ts';

type Fields = Record<string, unknown>;
function object(kind: string, name: string, fields: Fields, meta: Fields = {}): AnyObject {
  const core: Record<string, string> = { Namespace: 'v1', Pod: 'v1', Node: 'v1', EndpointSlice: 'discovery.k8s.io/v1' };
  const apiVersion = core[kind] ?? 'sluice.dev/v1alpha1';
  const parsed = parseObject({ apiVersion, kind, metadata: { name, ...meta }, ...fields });
  if (!parsed.ok) throw new Error(`${kind} ${name}: ${JSON.stringify(parsed.errors)}`);
  return parsed.value;
}

t.test('what a rule may say', async (t) => {
  for (const kind of ['ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule']) {
    const metadata = { name: 'r', ...(kind !== 'ClusterEgressRule' && { namespace: 'a' }) };
    const errorsOf = (more: Fields) => {
      const service = kind === 'ServiceEgressRule' && { service: 's' };
      const spec = { externalServices: ['x'], ...service, ...more };
      const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', kind, metadata, spec });
      return parsed.ok ? [] : parsed.errors;
    };
    for (const action of ['accept', 'accept-decisively', 'drop', 'reject']) {
      for (const logging of ['All', 'Decisions', 'None'])
        t.same(errorsOf({ action, logging }), [], `${kind} ${logging}`);
    }
    for (const [bad, got] of [
      [true, 'true'],
      ['none', '"none"'],
    ] as const) {
      t.match(errorsOf({ action: 'drop', logging: bad }), [
        { path: 'spec.logging', expected: /All.*Decisions.*None/, got },
      ]);
    }
  }
});

/** One pod of billing; rules of it as `context action logging`. */
function snapshotOf(...rules: string[]): Snapshot {
  const kinds = {
    cluster: 'ClusterEgressRule',
    namespace: 'NamespaceEgressRule',
    service: 'ServiceEgressRule',
  } as const;
  const objects = [
    object('GatewayPool', 'edge', {
      spec: {
        namespaceSelector: {},
        gateways: [{ name: 'gw-a', internalAddress: '10.0.0.31' }],
        interfaces: { internal: 'in', external: { name: 'out' } },
        nextHops: { v4: ['10.0.0.64'] },
        steering: { mode: 'VXLAN', vni: 7 },
        clusterCIDRs: ['10.0.0.0/8'],
      },
    }),
    object('EgressIPPool', 'public', {
      spec: { gatewayPool: 'edge', ranges: ['203.0.113.96/28'], namespaceSelector: {} },
    }),
    object('EgressIP', 'all', { spec: { pool: 'public', count: 1, namespaceSelector: {} } }),
    object('Namespace', 'billing', {}),
    object('Node', 'n', { status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] } }),
    object(
      'Pod',
      'pay',
      {
        spec: { nodeName: 'n' },
        status: { phase: 'Running', podIP: '10.1.0.5', podIPs: [{ ip: '10.1.0.5' }] },
      },
      { namespace: 'billing', uid: 'u', labels: { app: 'pay' } },
    ),
    object(
      'EndpointSlice',
      'pay',
      {
        addressType: 'IPv4',
        endpoints: [{ addresses: ['10.1.0.5'] }],
      },
      { namespace: 'billing', labels: { 'kubernetes.io/service-name': 'pay' } },
    ),
    ...rules.map((text) => {
      const [context, action, logging] = text.split(' ') as [keyof typeof kinds, string, string | undefined];
      const service = context === 'service' && { service: 'pay' };
      const spec = { action, externalServices: ['*'], ...service, ...(logging && { logging }) };
      return object(kinds[context], 'r', { spec }, context === 'cluster' ? {} : { namespace: 'billing' });
    }),
  ];
  return new Map(objects.map((one) => [objectKey(one), one]));
}

t.test('a plan says it where it is not the default, and its change ends no flow', async (t) => {
  const plans = ['', ' All', ' Decisions', ' None'].map((logging) =>
    plan(snapshotOf(`namespace accept-decisively${logging}`), emptyMemory(), noPeers(), 0).pools.get('edge'),
  );
  t.same(
    plans.map((made) => made?.rules['namespace/billing/r']?.logging),
    [undefined, 'All', undefined, 'None'],
  );
  const [, all, decisions, none] = plans;
  if (all === undefined || decisions === undefined || none === undefined) throw new Error('no plan');
  t.notOk(touches(all, none));
  t.notOk(touches(none, decisions));
});

t.test('explain says which records a flow leaves', async (t) => {
  const rows: [rules: string[], said: string[] | undefined, text: RegExp][] = [
    [['cluster accept', 'service accept'], undefined, /^((?!Flow records).)*$/s],
    [
      ['cluster accept All', 'service accept'],
      ['a match of cluster/r, which says logging: All'],
      /\nFlow records: a match of cluster\/r, which says logging: All\.\n/,
    ],
    [
      ['cluster accept All', 'namespace accept All', 'service accept None'],
      [
        'a match of cluster/r, which says logging: All',
        'a match of namespace/billing/r, which says logging: All',
        'no start and end, since service/billing/r says logging: None',
      ],
      /Flow records: a match of .*; a match of .*; no start and end, /,
    ],
    [
      ['cluster accept None', 'namespace drop None'],
      ['no denial, since namespace/billing/r says logging: None'],
      /Flow records: no denial, /,
    ],
    [['service accept All'], undefined, /accept/],
  ];
  for (const [rules, said, text] of rows) {
    const source = {
      path: '/nowhere',
      snapshot: snapshotOf(...rules),
      errors: [],
      firstSeen: new Map(),
      unaged: new Map(),
    };
    const target = parseTarget('198.51.100.80:443');
    if (target === undefined) throw new Error('no target');
    const answer = await explain(source, { namespace: 'billing', pod: 'pay', target, protocol: 6 });
    t.same(answer.records, said, rules.join(', '));
    t.match(
      answerText(answer, (_, text) => text),
      text,
    );
  }
});
