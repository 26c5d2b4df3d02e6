/**
 * `sluice suggest` held against the meaning of policy: for random flow records, the draft passes validation, and bound as the
 * controller would bind it permits every flow that it was drawn from, and none to a place that was not seen. The oracle is
 * the evaluator (policy/), with what was read of each flow.
 */
import fc from 'fast-check';
import t from 'tap';
import { parseObject } from '../../api/kinds.ts';
import type { Policy } from '../../api/plan.ts';
import { draft } from '../../cli/suggest/draft.ts';
import { Seen } from '../../cli/suggest/seen.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { bind } from '../../policy/bind.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { input, namespace, pod, slice } from '../unit/policy-objects.ts';

const pods = [
  { name: 'pay-1', addresses: ['10.244.1.1', 'fd00::1'], services: ['payments'] },
  { name: 'pay-2', addresses: ['10.244.1.2', 'fd00::2'], services: ['payments', 'audit'] },
  { name: 'rev-1', addresses: ['10.244.1.3', 'fd00::3'], services: ['reviews'] },
  { name: 'job-1', addresses: ['10.244.1.4', 'fd00::4'], services: [] },
];
/** Of the family of where it goes. */
const sourceOf = ({ pod, destination }: Pick<Drawn, 'pod' | 'destination'>): string =>
  pod.addresses[destination.includes(':') ? 1 : 0] ?? '';
const destinations = ['198.51.100.1', '198.51.100.2', '198.51.100.3', '2001:db8::', '2001:db8::1'];
const names = ['a.example.test', 'b.example.test', '_x.b.example.test', 'x.b.example.test'];
const ports = [22, 53, 80, 443, 444, 8080];
const UNSEEN = 4_999;

interface Drawn {
  pod: (typeof pods)[number];
  destination: string;
  protocol: 'tcp' | 'udp' | 'sctp';
  port: number;
  reading: ApplicationReading;
  event: 'start' | 'end';
  sourcePort: number;
  time: number;
}

const named = fc.option(fc.constantFrom(...names), { nil: undefined, freq: 4 });
const hello = { version: 0x0304, alpn: [], encryptedClientHello: false };
const reading = (protocol: Drawn['protocol']): fc.Arbitrary<ApplicationReading> => {
  const nothing = fc.constant<ApplicationReading>({});
  const of = (make: (name: string | undefined) => ApplicationReading) => named.map(make);
  const name = (text: string | undefined) => (text === undefined ? {} : { name: text });
  const dns = of((text) => ({ application: 'DNS', ...name(text), dns: { type: 'A' } }));
  if (protocol === 'tcp') {
    return fc.oneof(
      nothing,
      of((text) => ({ application: 'TLS', ...name(text), tls: hello })),
      of((text) => ({ application: 'HTTP', ...name(text), http: { method: 'GET', path: '/' } })),
      fc.constant<ApplicationReading>({ application: 'SSH' }),
      dns,
    );
  }
  const quic = of((text) => ({ application: 'QUIC', ...name(text), tls: hello }));
  return protocol === 'udp' ? fc.oneof(nothing, quic, dns) : nothing;
};
const drawn: fc.Arbitrary<Drawn> = fc.constantFrom('tcp', 'tcp', 'udp', 'sctp' as const).chain((protocol) =>
  fc.record({
    pod: fc.constantFrom(...pods),
    destination: fc.constantFrom(...destinations),
    protocol: fc.constant(protocol as Drawn['protocol']),
    port: fc.oneof(fc.constantFrom(...ports), fc.integer({ min: 5_000, max: 5_020 })),
    reading: reading(protocol as Drawn['protocol']),
    event: fc.constantFrom('start', 'end' as const),
    sourcePort: fc.integer({ min: 1024, max: 65_535 }),
    time: fc.integer({ min: 0, max: 1e6 }),
  }),
);

const recordOf = (flow: Drawn, more: Partial<FlowRecord> = {}): FlowRecord => ({
  time: new Date(Date.UTC(2026, 0, 1) + flow.time * 1000).toISOString(),
  event: flow.event,
  verdict: 'accept',
  reason: 'default-action',
  namespace: 'billing',
  pod: flow.pod.name,
  services: flow.pod.services,
  protocol: flow.protocol,
  source: sourceOf(flow),
  sourcePort: flow.sourcePort,
  destination: flow.destination,
  destinationPort: flow.port,
  gateway: 'gw-a',
  ...(flow.reading.application !== undefined && { application: flow.reading.application, sampled: true }),
  ...(flow.reading.name !== undefined && { destinationName: flow.reading.name }),
  ...more,
});

/** The draft as the controller would have it in force, alone, and where the default is to drop. */
function policyOf(records: FlowRecord[], atLeast = 1): { policy: Policy; objects: string } {
  const seen = new Seen('billing');
  for (const record of records) seen.add(record);
  seen.end();
  const manifests = draft(seen, 'billing', atLeast).map(({ manifest }) => manifest);
  const objects = manifests.map((manifest) => {
    const parsed = parseObject(manifest);
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
    return parsed.value;
  });
  const of = (kind: string): never[] => objects.filter((object) => object.kind === kind) as never[];
  const services = [...new Set(pods.flatMap((one) => one.services))];
  const binding = bind(
    input({
      namespaces: [namespace('billing')],
      pods: pods.map(({ name, addresses }) => pod(`billing/${name}`, addresses, { uid: name })),
      endpointSlices: services.map((service) =>
        slice(
          `billing/${service}`,
          service,
          pods
            .filter((one) => one.services.includes(service))
            .map(({ name, addresses }) => ({
              addresses,
              targetRef: { kind: 'Pod', name, namespace: 'billing', uid: name },
            })),
        ),
      ),
      externalServices: of('ExternalService'),
      namespaceRules: of('NamespaceEgressRule'),
      serviceRules: of('ServiceEgressRule'),
    }),
  );
  const workloads = Object.fromEntries(
    pods.map(({ name, addresses }) => [
      name,
      {
        namespace: 'billing',
        name,
        uid: name,
        node: 'n',
        services: binding.servicesOf.get(name) ?? [],
        addresses,
        group: binding.groupOf.get(name) ?? '',
        egress: {},
      },
    ]),
  );
  const { rules, services: entries, groups } = binding;
  return {
    policy: { settings: {}, rules, services: entries, groups, workloads },
    objects: JSON.stringify(manifests),
  };
}

const numberOf = { tcp: 6, udp: 17, sctp: 132 } as const;
const flowOf = (flow: Drawn) => ({
  source: sourceOf(flow),
  destination: flow.destination,
  protocol: numberOf[flow.protocol],
  destinationPort: flow.port,
});
const hosts = new Set(['TLS', 'HTTP', 'QUIC']);
/** The name of the host that it went to, if it said that. */
const hostOf = ({ reading: { application, name } }: Drawn): string | undefined =>
  application !== undefined && hosts.has(application) ? name : undefined;
const sameEndpoint = (a: Drawn, b: Drawn): boolean =>
  a.destination === b.destination && a.protocol === b.protocol && a.port === b.port;

t.test('what is suggested permits what it was drawn from, and no other place', async (t) => {
  let named = 0;
  fc.assert(
    fc.property(fc.array(drawn, { minLength: 1, maxLength: 25 }), (flows) => {
      const { policy, objects } = policyOf(flows.map((flow) => recordOf(flow)));
      const evaluator = compilePolicy(policy);
      const gives = (name: string, address: string): boolean =>
        flows.some((flow) => hostOf(flow) === name && flow.destination === address);
      const known = (reading: ApplicationReading) => ({
        reading,
        gives,
        namesOf: (address: string) => names.filter((name) => gives(name, address)),
      });
      for (const flow of flows) {
        // What was not read speaks what others spoke there.
        const others = flows.filter((other) => sameEndpoint(other, flow) && other.reading.application !== undefined);
        const own = others.filter(({ pod }) => pod.services[0] === flow.pod.services[0]);
        const like = flow.reading.application === undefined ? (own.length > 0 ? own : others) : [];
        for (const reading of like.length > 0 ? like.map((one) => one.reading) : [flow.reading]) {
          const { verdict } = evaluator.decide(flowOf(flow), known(reading));
          if (verdict !== 'accept') throw new Error(`${JSON.stringify({ flow, reading })} ${objects}`);
        }
        // And nothing else, where anything was read.
        if (others.length > 0 && evaluator.decide(flowOf(flow), known({ application: 'RDP' })).verdict === 'accept') {
          throw new Error(`whatever it speaks: ${JSON.stringify(flow)} ${objects}`);
        }
        if (hostOf(flow) !== undefined) named++;
        const elsewhere = [
          { ...flow, port: UNSEEN },
          { ...flow, destination: '203.0.113.9' },
        ];
        for (const other of elsewhere) {
          const { verdict } = evaluator.decide(flowOf(other), known(flow.reading));
          if (verdict === 'accept') throw new Error(`permitted: ${JSON.stringify(other)} ${objects}`);
        }
      }
      return true;
    }),
    { numRuns: 1_500 },
  );
  t.ok(named > 1_000);
});

t.test('the order of records does not matter', async () => {
  fc.assert(
    fc.property(
      fc
        .array(drawn, { minLength: 1, maxLength: 20 })
        .chain((flows) => fc.tuple(fc.constant(flows), fc.shuffledSubarray(flows, { minLength: flows.length }))),
      ([flows, shuffled]) =>
        policyOf(flows.map((flow) => recordOf({ ...flow, event: 'end' }))).objects ===
        policyOf(shuffled.map((flow) => recordOf({ ...flow, event: 'end' }))).objects,
    ),
    { numRuns: 300 },
  );
});

t.test('many destinations and ports: still valid, and split where the schema has bounds', async (t) => {
  const [first] = pods;
  if (first === undefined) throw new Error('no pod');
  const base: Drawn = {
    pod: first,
    destination: '',
    protocol: 'tcp',
    port: 443,
    reading: {},
    event: 'end',
    sourcePort: 1,
    time: 0,
  };
  const wide = Array.from({ length: 600 }, (_, n) => ({ ...base, destination: `198.51.${100 + (n >> 8)}.${n & 255}` }));
  // Every other port: none can be said as a range.
  const long = Array.from({ length: 3_000 }, (_, n) => ({ ...base, destination: '192.0.2.1', port: 2 * n + 1 }));
  const { policy } = policyOf([...wide, ...long].map((flow) => recordOf(flow)));
  t.equal(Object.keys(policy.rules).length, 3);
  const evaluator = compilePolicy(policy);
  for (const flow of [...wide, ...long]) {
    const { verdict } = evaluator.decide(flowOf(flow));
    if (verdict !== 'accept') t.fail(JSON.stringify(flow));
  }
  t.equal(evaluator.decide(flowOf({ ...base, destination: '192.0.2.1', port: 2 })).verdict, 'drop');
  const endless = Array.from({ length: 20_000 }, (_, n) => ({ ...base, destination: '192.0.2.2', port: 2 * n + 1 }));
  t.notOk('billing/ip-192-0-2-2' in policyOf(endless.map((flow) => recordOf(flow))).policy.services, 'too many to say');
});
