/**
 * Imported rules decide as their source did: random manifests, and a naive reading of what they mean there, against
 * import → plan → evaluator.
 * F5 CES: cluster, namespace, service, deny all. Flows on which rules of one context disagree are left out, since CES
 * gives those no order. A model without CES's bugs: nobody listed, no source.
 * NetworkPolicy: whom a policy selects may go where some policy permits; everybody else anywhere.
 */
import fc from 'fast-check';
import t from 'tap';
import { parseAddress } from '../../api/address.ts';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { importF5Ces } from '../../cli/import/f5-ces.ts';
import { importNetworkPolicies } from '../../cli/import/networkpolicy.ts';
import type { Imported } from '../../cli/import/report.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { compilePolicy, type Known } from '../../policy/evaluate.ts';

const CES = 'kubeovn.io/v1alpha1';
const SLUICE = 'sluice.dev/v1alpha1';
const namespaces = ['kube-system', 'a', 'sluice-system'];
/** Who is behind `web` of its namespace, and whether ready. */
const pods = namespaces.flatMap((namespace, i) =>
  [true, false, undefined].map((ready, j) => ({ namespace, ready, name: `p${j}`, host: 10 * i + j + 1 })),
);

const base = (defaultAction: 'Accept' | 'Drop'): object[] => [
  ...namespaces.map((name) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name } })),
  ...pods.map(({ namespace, name, host }) => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace, uid: `${namespace}-${name}`, labels: { app: name } },
    spec: { nodeName: 'n' },
    status: { phase: 'Running', podIPs: [{ ip: `10.244.1.${host}` }, { ip: `fd00:244:1::${host}` }] },
  })),
  ...namespaces.map((namespace) => ({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'web-1', namespace, labels: { 'kubernetes.io/service-name': 'web' } },
    addressType: 'IPv4',
    endpoints: pods
      .filter((pod) => pod.namespace === namespace && pod.ready !== undefined)
      .map(({ host, ready }) => ({ addresses: [`10.244.1.${host}`], conditions: { ready } })),
  })),
  {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: 'n' },
    spec: { podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'] },
    status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] },
  },
  {
    apiVersion: SLUICE,
    kind: 'GatewayPool',
    metadata: { name: 'edge' },
    spec: {
      namespaceSelector: {},
      defaultAction,
      gateways: [{ name: 'gw-a', internalAddress: '10.0.0.31' }],
      interfaces: { internal: 'inside', external: { name: 'outside' } },
      nextHops: { v4: ['10.0.0.64'], v6: ['fd00:10::64'] },
    },
  },
];

interface Service {
  apiVersion: string;
  kind: string;
  metadata: { namespace: string; name: string };
  spec: { addresses: string[]; ports?: { protocol: string; port?: string; name?: string }[] };
}
interface Rule {
  apiVersion: string;
  kind: string;
  metadata: { namespace?: string; name: string };
  spec: { action: string; externalServices: string[]; service?: string };
}

const serviceName = fc.constantFrom('x', 'y', 'z');
const services = fc.uniqueArray(
  fc.record({
    apiVersion: fc.constant(CES),
    kind: fc.constant('ExternalService'),
    metadata: fc.record({ namespace: fc.constantFrom(...namespaces), name: serviceName }),
    spec: fc.record(
      {
        addresses: fc.array(
          fc.constantFrom(
            '198.51.100.1',
            '198.51.100.2/31',
            '198.51.100.5/30',
            '2001:db8::1',
            '2001:db8::/64',
            'api.example.com',
          ),
          { minLength: 1, maxLength: 3 },
        ),
        ports: fc.array(
          fc.record(
            {
              name: fc.constantFrom('one', 'Two', ''),
              protocol: fc.constantFrom('TCP', 'tcp', 'UDP'),
              port: fc.constantFrom('443', '53,440-450', ''),
            },
            { requiredKeys: ['protocol'] },
          ),
          { maxLength: 3 },
        ),
      },
      { requiredKeys: ['addresses'] },
    ),
  }),
  { maxLength: 9, selector: ({ metadata }) => `${metadata.namespace}/${metadata.name}` },
);
const ruleSpec = {
  action: fc.constantFrom('accept', 'accept', 'accept-decisively', 'drop', 'reject'),
  externalServices: fc.array(fc.oneof(serviceName, fc.constantFrom('none', '*')), { maxLength: 3 }),
};
const scoped = fc.constantFrom(...namespaces);
const ruleOf = (kind: string, metadata: fc.Arbitrary<object>, spec: Record<string, fc.Arbitrary<unknown>>) =>
  fc.array(fc.record({ apiVersion: fc.constant(CES), kind: fc.constant(kind), metadata, spec: fc.record(spec) }), {
    maxLength: 4,
  });
const rules = fc
  .tuple(
    ruleOf('ClusterEgressRule', fc.record({}), ruleSpec),
    ruleOf('NamespaceEgressRule', fc.record({ namespace: scoped }), ruleSpec),
    ruleOf('ServiceEgressRule', fc.record({ namespace: scoped }), {
      ...ruleSpec,
      service: fc.constantFrom('web', 'web', 'nobody'),
    }),
  )
  .map((lists) =>
    (lists.flat() as Rule[]).map((rule, i) => ({ ...rule, metadata: { ...rule.metadata, name: `r${i}` } })),
  );

interface Flow {
  pod: (typeof pods)[number];
  to: string;
  protocol: 'tcp' | 'udp' | 'icmp';
  port: number;
}

/** undefined: rules of one context disagree. */
function cesDecides(all: Service[], rules: Rule[], controller: string, flow: Flow): string | undefined {
  const matches = ({ spec }: Service): boolean => {
    const address = must(parseAddress(flow.to));
    const inside = spec.addresses.some((text) => {
      const [head = '', length] = text.split('/');
      const parsed = parseAddress(head);
      if (!parsed.ok || parsed.value.family !== address.family) return false;
      const host = BigInt((address.family === 4 ? 32 : 128) - Number(length ?? (address.family === 4 ? 32 : 128)));
      return parsed.value.value >> host === address.value >> host;
    });
    const usable = (spec.ports ?? []).filter(({ port = '' }) => port !== '');
    const ports = usable.some(
      ({ protocol, port = '' }) =>
        protocol.toLowerCase() === flow.protocol &&
        port.split(',').some((part) => {
          const [first = '', last = first] = part.split('-');
          return Number(first) <= flow.port && flow.port <= Number(last);
        }),
    );
    return inside && (usable.length === 0 || ports);
  };
  for (const kind of ['ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule']) {
    const actions = new Set<string>();
    for (const { metadata, spec } of rules.filter((rule) => rule.kind === kind)) {
      const { namespace = controller } = metadata;
      if (kind !== 'ClusterEgressRule' && namespace !== flow.pod.namespace) continue;
      if (kind === 'ServiceEgressRule' && (spec.service !== 'web' || flow.pod.ready !== true)) continue;
      const named = all.filter(
        (one) => one.metadata.namespace === namespace && spec.externalServices.includes(one.metadata.name),
      );
      if (!named.some(matches)) continue;
      const permits = kind === 'ServiceEgressRule' && spec.action === 'accept-decisively';
      actions.add(permits ? 'accept' : spec.action);
    }
    if (actions.size > 1) return undefined;
    const [action] = actions;
    if (action === 'accept-decisively' || (action === 'accept' && kind === 'ServiceEgressRule')) return 'accept';
    if (action === 'drop' || action === 'reject') return action;
  }
  return 'drop';
}

const protocols = { tcp: 6, udp: 17, icmp: 1 };
const targets = ['198.51.100.1', '198.51.100.3', '198.51.100.6', '198.51.100.9', '2001:db8::1', '2001:db8::2'];
const flows: Flow[] = pods.flatMap((pod) =>
  targets.flatMap((to) => [
    { pod, to, protocol: 'tcp' as const, port: 443 },
    { pod, to, protocol: 'udp' as const, port: 53 },
    { pod, to, protocol: 'icmp' as const, port: 0 },
  ]),
);

/** A flow that names nobody, to an address of no name. */
const nothingNamed: Known = { reading: {}, gives: () => false, namesOf: () => [] };

/** Every flow, decided by what was imported and by a naive reading of its source (undefined: it does not say). */
function compare(
  imported: Imported,
  defaultAction: 'Accept' | 'Drop',
  naive: (flow: Flow) => string | undefined,
  seen: Map<string, number>,
): void {
  if (!imported.ok) throw new Error(imported.errors.join('\n'));
  const snapshot = new Map<string, AnyObject>();
  for (const object of [...base(defaultAction), ...imported.manifests]) {
    const parsed = parseObject(object);
    if (!parsed.ok) throw new Error(JSON.stringify([object, parsed.errors]));
    if (snapshot.has(objectKey(parsed.value))) throw new Error(`${objectKey(parsed.value)} twice`);
    snapshot.set(objectKey(parsed.value), parsed.value);
  }
  const result = plan(snapshot, emptyMemory(), noPeers(), 0);
  for (const [key, { conditions }] of result.statuses) {
    const refused = conditions.find(({ type, status }) => type === 'Accepted' && status === 'False');
    if (refused !== undefined) throw new Error(`${key}: ${refused.reason}: ${refused.message}`);
  }
  const evaluator = compilePolicy(result.pools.get('edge') as GatewayPlan);
  for (const flow of flows) {
    const expected = naive(flow);
    if (expected === undefined) continue;
    const v6 = flow.to.includes(':');
    const { verdict } = evaluator.decide(
      {
        source: v6 ? `fd00:244:1::${flow.pod.host}` : `10.244.1.${flow.pod.host}`,
        destination: flow.to,
        protocol: v6 && flow.protocol === 'icmp' ? 58 : protocols[flow.protocol],
        ...(flow.protocol === 'icmp' ? {} : { destinationPort: flow.port }),
      },
      nothingNamed,
    );
    seen.set(verdict, (seen.get(verdict) ?? 0) + 1);
    if (verdict !== expected) throw new Error(`${JSON.stringify(flow)}: ${verdict}, the source says ${expected}`);
  }
}

t.test('imported rules decide as CES did', async (t) => {
  const seen = new Map<string, number>();
  fc.assert(
    fc.property(services, rules, fc.constantFrom(...namespaces), (all, some, controllerNamespace) => {
      const input = [...some, ...all].map((value, i) => ({ value, at: `${i}` }));
      const imported = importF5Ces(input, { controllerNamespace });
      compare(imported, 'Drop', (flow) => cesDecides(all as Service[], some, controllerNamespace, flow), seen);
    }),
    { numRuns: 200 },
  );
  for (const verdict of ['accept', 'drop', 'reject']) {
    t.ok((seen.get(verdict) ?? 0) > 100, `${verdict}: ${seen.get(verdict)} flows`);
  }
});

interface Policy {
  apiVersion: string;
  kind: string;
  metadata: { namespace: string; name: string };
  spec: {
    podSelector?: { matchLabels?: { app: string } };
    policyTypes?: string[];
    egress?: {
      to?: { ipBlock?: { cidr: string; except?: string[] }; podSelector?: object }[];
      ports?: { protocol?: string; port?: number | string; endPort?: number }[];
    }[];
  };
}

const block = fc.constantFrom(
  { cidr: '198.51.100.0/24' },
  { cidr: '198.51.100.0/24', except: ['198.51.100.2/31', '198.51.100.6/32'] },
  { cidr: '198.51.100.9/29', except: ['198.51.100.8/32'] },
  { cidr: '2001:db8::/64', except: ['2001:db8::2/128'] },
  { cidr: '0.0.0.0/0', except: ['198.51.100.0/30', '198.51.100.4/30'] },
);
const policies = fc
  .array(
    fc.record({
      apiVersion: fc.constant('networking.k8s.io/v1'),
      kind: fc.constant('NetworkPolicy'),
      metadata: fc.record({ namespace: scoped }),
      spec: fc.record(
        {
          podSelector: fc.constantFrom({}, { matchLabels: { app: 'p0' } }, { matchLabels: { app: 'p1' } }),
          policyTypes: fc.constantFrom([], ['Egress'], ['Ingress'], ['Ingress', 'Egress']),
          egress: fc.array(
            fc.record(
              {
                to: fc.array(
                  fc.oneof({ arbitrary: fc.record({ ipBlock: block }), weight: 3 }, fc.constant({ podSelector: {} })),
                  {
                    maxLength: 3,
                  },
                ),
                ports: fc.array(
                  fc.constantFrom<NonNullable<NonNullable<Policy['spec']['egress']>[number]['ports']>[number]>(
                    { port: 443 },
                    { protocol: 'UDP', port: 50, endPort: 60 },
                    { protocol: 'UDP' },
                    { port: 'http' },
                  ),
                  { maxLength: 2 },
                ),
              },
              { requiredKeys: [] },
            ),
            { maxLength: 3 },
          ),
        },
        { requiredKeys: [] },
      ),
    }),
    { maxLength: 6 },
  )
  .map((list) =>
    list.map((policy, i): Policy => {
      const { spec, metadata, ...rest } = policy as unknown as Policy;
      return { ...rest, spec, metadata: { ...metadata, name: `n${i}` } };
    }),
  );

function kubernetesDecides(all: readonly Policy[], { pod, to: destination, protocol, port }: Flow): string {
  const address = must(parseAddress(destination));
  const inside = (text: string): boolean => {
    const [head = '', length] = text.split('/');
    const { family, value } = must(parseAddress(head));
    const host = BigInt((family === 4 ? 32 : 128) - Number(length));
    return family === address.family && value >> host === address.value >> host;
  };
  const isolating = all.filter(({ metadata, spec }) => {
    const { podSelector, policyTypes = [], egress = [] } = spec;
    const app = podSelector?.matchLabels?.app;
    const speaks = policyTypes.length === 0 ? egress.length > 0 : policyTypes.includes('Egress');
    return speaks && metadata.namespace === pod.namespace && (app === undefined || app === pod.name);
  });
  const permits = isolating.some(({ spec: { egress = [] } }) =>
    egress.some(({ to = [], ports = [] }) => {
      const there =
        to.length === 0 ||
        to.some(({ ipBlock }) => ipBlock !== undefined && inside(ipBlock.cidr) && !(ipBlock.except ?? []).some(inside));
      const through =
        ports.length === 0 ||
        ports.some(({ protocol: name = 'TCP', port: first, endPort = first }) => {
          if (name.toLowerCase() !== protocol || typeof first === 'string') return false;
          return first === undefined || (first <= port && port <= Number(endPort));
        });
      return there && through;
    }),
  );
  return isolating.length === 0 || permits ? 'accept' : 'drop';
}

t.test('imported NetworkPolicies decide as Kubernetes does', async (t) => {
  const seen = new Map<string, number>();
  fc.assert(
    fc.property(policies, (all) => {
      const imported = importNetworkPolicies(all.map((value, i) => ({ value, at: `${i}` })));
      compare(imported, 'Accept', (flow) => kubernetesDecides(all, flow), seen);
    }),
    { numRuns: 200 },
  );
  for (const verdict of ['accept', 'drop'])
    t.ok((seen.get(verdict) ?? 0) > 1000, `${verdict}: ${seen.get(verdict)} flows`);
});

t.test('nothing that a stranger can write makes an import throw, or write what we refuse', async (t) => {
  // Mostly of the right type, so that it gets past the schema, with something else now and then.
  const seldom = <T>(usual: fc.Arbitrary<T>) =>
    fc.oneof({ arbitrary: usual as fc.Arbitrary<unknown>, weight: 30 }, fc.jsonValue());
  const texts =
    '443 0 0-99999 9-1 00443 ::/0 1.2.3.4/0 1.2.3.4 ::ffff:1.2.3.4 1.2.3.4-5.6.7.8 a.example. - * a/b __proto__ a';
  const text = seldom(fc.oneof(fc.constantFrom(...texts.split(' '), '', '\u202e'), fc.string()));
  const name = seldom(fc.constantFrom('a', 'kube-system', 'b.c', 'a'.repeat(63), `${'a.'.repeat(126)}a`));
  const list = seldom(fc.array(text, { maxLength: 4 }));
  const number = seldom(fc.constantFrom(1, 443, 65_535));
  const cesPort = fc.record(
    { name: text, protocol: text, port: fc.constantFrom('443', '', '0', '9-1', '1,1') },
    { requiredKeys: [] },
  );
  const kubePort = fc.record(
    { protocol: fc.constantFrom('TCP', 'SCTP'), port: number, endPort: number },
    { requiredKeys: [] },
  );
  const block = fc.record({ ipBlock: fc.record({ cidr: text, except: list }, { requiredKeys: ['cidr'] }) });
  const rule = { action: fc.constantFrom('accept', 'drop'), externalServices: list };
  const egress = fc.record(
    { to: fc.array(block, { maxLength: 3 }), ports: fc.array(kubePort, { maxLength: 3 }) },
    { requiredKeys: [] },
  );
  const specs: [kind: string, spec: fc.Arbitrary<unknown>][] = [
    [
      'ExternalService',
      fc.record({ addresses: list, ports: fc.array(cesPort, { maxLength: 4 }) }, { requiredKeys: ['addresses'] }),
    ],
    ['ClusterEgressRule', fc.record(rule)],
    ['NamespaceEgressRule', fc.record(rule)],
    ['ServiceEgressRule', fc.record({ ...rule, service: text })],
    ['NetworkPolicy', fc.record({ policyTypes: fc.constant(['Egress']), egress: fc.array(egress, { maxLength: 3 }) })],
    ['ExternalIPRule', fc.jsonValue()],
  ];
  const versions: Record<string, string> = {
    NetworkPolicy: 'networking.k8s.io/v1',
    ExternalIPRule: 'bigip.io/v1alpha1',
  };
  const object = fc.oneof(
    ...specs.map(([kind, spec]) =>
      fc.record({
        apiVersion: fc.constant(versions[kind] ?? CES),
        kind: fc.constant(kind),
        metadata: seldom(
          fc.record(
            {
              name,
              namespace: seldom(fc.constantFrom('a', 'kube-system')),
              labels: seldom(fc.constantFrom({}, { team: 'a' }, { 'cpaas.io/ruleType': 'x' }, { '': '' })),
            },
            { requiredKeys: ['name', 'namespace'] },
          ),
        ),
        spec: seldom(spec),
      }),
    ),
  );
  let written = 0;
  fc.assert(
    fc.property(fc.array(seldom(object), { maxLength: 3 }), (values) => {
      const inputs = values.map((value, i) => ({ value, at: `${i}` }));
      for (const imported of [
        importF5Ces(inputs, { controllerNamespace: 'kube-system' }),
        importNetworkPolicies(inputs),
      ]) {
        if (!imported.ok) {
          if (imported.errors.length === 0) throw new Error('refused without a word');
          continue;
        }
        for (const manifest of imported.manifests) {
          written++;
          if (!parseObject(manifest).ok) throw new Error(JSON.stringify(manifest));
        }
      }
    }),
    { numRuns: 2000 },
  );
  t.ok(written > 50, `${written} objects were written all the same`);
});
