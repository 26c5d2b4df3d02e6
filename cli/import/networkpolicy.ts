/**
 * Egress of Kubernetes NetworkPolicies → Sluice, as far as it leaves the cluster. A policy *isolates* the pods that it
 * selects: they may go only where some policy that selects them permits. Here each policy becomes ExternalServices, one
 * rule of the namespace context that permits them decisively (a NetworkPolicy asks nobody else), and, at a later
 * priority, one that drops the rest for the same pods; so that policies add up, as they do in Kubernetes.
 * Peers that are pods, and ingress, are the CNI's: traffic inside the cluster is never steered. Pure.
 */
import { Type } from 'typebox';
import { formatRange, parseRange, type Range } from '../../api/address.ts';
import type { LabelSelector, ObjectMeta } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { labelSelectorSchema, objectMetaSchema } from '../../api/schema/common.ts';
import { describe, show } from '../../api/schema/describe.ts';
import { type Keywords, walk } from '../../api/schema/walk.ts';
import { type Entry, type Port, type PortProtocol, portsOf } from './ports.ts';
import { type Imported, type Input, MAX_OBJECTS, type Manifest, Reporter, refusal } from './report.ts';
import { chunks, metadataOf, nameBeside, withoutHostBits } from './rewrite.ts';

/** After every rule that permits (they have the default, 1000). */
const ISOLATE_PRIORITY = 2000;
/** Of our schema; and of the whole input, so that aliases in it cannot multiply. */
const MAX_ADDRESSES = 4096;
const MAX_NAMES = 256;
const MAX_ALL_ADDRESSES = 1_000_000;

// kubectl refuses unknown fields; a misspelt `except` that is passed over would permit more.
const strict = { additionalProperties: false, nullAsAbsent: true };
const anyObject = () => Type.Object({});
const cidr = () => Type.String({ maxLength: 128 });
const peer = Type.Object(
  {
    ipBlock: Type.Optional(
      Type.Object({ cidr: cidr(), except: Type.Optional(Type.Array(cidr(), { maxItems: 10_000 })) }, strict),
    ),
    podSelector: Type.Optional(anyObject()),
    namespaceSelector: Type.Optional(anyObject()),
  },
  strict,
);
const portNumber = () => Type.Integer({ minimum: 1, maximum: 65_535 });
const port = Type.Object(
  {
    protocol: Type.Optional(Type.Enum(['TCP', 'UDP', 'SCTP'])),
    port: Type.Optional(
      Type.Union([Type.String({ minLength: 1, maxLength: 63 }), portNumber()], { intOrString: true }),
    ),
    endPort: Type.Optional(portNumber()),
  },
  {
    ...strict,
    check: ({ port: first, endPort }: { port?: unknown; endPort?: number }) =>
      endPort === undefined || (typeof first === 'number' && first <= endPort)
        ? null
        : { field: 'endPort', expected: 'a port, with a number not above it in port', got: describe(endPort) },
  },
);
const networkPolicy = Type.Object({
  metadata: objectMetaSchema,
  spec: Type.Object(
    {
      podSelector: Type.Optional(labelSelectorSchema()),
      policyTypes: Type.Optional(Type.Array(Type.Enum(['Ingress', 'Egress']), { maxItems: 2 })),
      ingress: Type.Optional(Type.Array(anyObject(), { maxItems: 10_000 })),
      egress: Type.Optional(
        Type.Array(
          Type.Object(
            {
              to: Type.Optional(Type.Array(peer, { maxItems: 10_000 })),
              ports: Type.Optional(Type.Array(port, { maxItems: 10_000 })),
            },
            strict,
          ),
          { maxItems: 10_000 },
        ),
      ),
    },
    strict,
  ),
});
type Policy = Type.Static<typeof networkPolicy> & { key: string; at: string };
type EgressRule = NonNullable<Policy['spec']['egress']>[number];

export function importNetworkPolicies(inputs: readonly Input[]): Imported {
  const report = new Reporter('networkpolicy');
  const { policies, passedOver, errors } = readPolicies(inputs);
  if (errors.length > 0) return refusal(errors);
  report.passedOver(passedOver);
  const taken = new Set(policies.map(({ key }) => key.replace(/^[^/]*/, 'NamespaceEgressRule')));
  let isolating = 0;
  let ingress = 0;
  for (const policy of policies) {
    const { spec, key } = policy;
    report.read(key, policy.at);
    // An empty list is filled in by the API server: of egress only if the policy says something of it.
    const { policyTypes: types = [], egress = [] } = spec;
    if (types.length === 0 || types.includes('Ingress')) ingress++;
    if (types.length === 0 ? egress.length > 0 : types.includes('Egress')) {
      isolating++;
      convert(policy, taken, report);
    } else report.changed({ object: key, reason: 'NoEgress', message: 'says nothing of egress; not written' });
  }
  notes(report, isolating, ingress);
  return report.done();
}

function readPolicies(inputs: readonly Input[]): { policies: Policy[]; passedOver: number; errors: string[] } {
  const policies: Policy[] = [];
  const errors: string[] = [];
  const seen = new Map<string, string>();
  let passedOver = 0;
  let addresses = 0;
  for (const { value, at } of inputs) {
    if (!isRecord(value)) {
      errors.push(`${at}: expected an object with apiVersion, kind and metadata, got ${describe(value)}`);
      continue;
    }
    if (value.apiVersion !== 'networking.k8s.io/v1' || value.kind !== 'NetworkPolicy') {
      passedOver++;
      continue;
    }
    const walked = walk(networkPolicy as object as Keywords, value, { maxErrors: 20, absent: () => null });
    if (!walked.ok) {
      errors.push(
        ...walked.errors.map(({ path, expected, got }) => `${at}: ${path}: expected ${expected}, got ${got}`),
      );
      continue;
    }
    const policy = walked.value as { metadata: ObjectMeta; spec: Policy['spec'] };
    const { name, namespace } = policy.metadata;
    const key = `NetworkPolicy/${namespace}/${name}`;
    const wrong = wrongPeer(policy.spec.egress ?? []);
    const first = seen.get(key);
    if (namespace === undefined) errors.push(`${at}: metadata.namespace: expected a namespace, got nothing`);
    else if (wrong !== undefined) {
      errors.push(
        `${at}: ${wrong}: expected ipBlock alone, or podSelector, namespaceSelector or both, got another peer`,
      );
    } else if (first !== undefined) {
      errors.push(`${at}: expected each object once, got ${show(key)}, which is in ${first} too`);
    }
    seen.set(key, at);
    for (const { to = [] } of policy.spec.egress ?? []) {
      for (const { ipBlock } of to) addresses += 1 + (ipBlock?.except?.length ?? 0);
    }
    if (seen.size > MAX_OBJECTS || addresses > MAX_ALL_ADDRESSES) {
      errors.push(`${at}: expected at most ${MAX_OBJECTS} objects and ${MAX_ALL_ADDRESSES} peers in all, got more`);
      break;
    }
    policies.push({ ...policy, key, at });
  }
  return { policies, passedOver, errors };
}

function wrongPeer(egress: readonly EgressRule[]): string | undefined {
  for (const [i, { to = [] }] of egress.entries()) {
    for (const [j, { ipBlock, podSelector, namespaceSelector }] of to.entries()) {
      const pods = podSelector !== undefined || namespaceSelector !== undefined;
      if (pods === (ipBlock !== undefined)) return `spec.egress[${i}].to[${j}]`;
    }
  }
  return undefined;
}

function convert(policy: Policy, taken: Set<string>, report: Reporter): void {
  const { spec, metadata, key } = policy;
  const namespace = metadata.namespace ?? '';
  const take = (kind: string) => (name: string) => {
    const other = `${kind}/${namespace}/${name}`;
    if (taken.has(other)) return false;
    taken.add(other);
    return true;
  };
  const named = (name: string): Manifest['metadata'] => metadataOf({ ...metadata, name, namespace }, [], key, report);
  const egress = spec.egress ?? [];
  const everything = egress.some(({ to = [], ports = [] }) => to.length === 0 && ports.length === 0);
  const names: string[] = everything ? ['*'] : [];
  for (const [i, rule] of (everything ? [] : egress).entries()) {
    const path = `spec.egress[${i}]`;
    const addresses = addressesOf(rule, path, key, report);
    const ports = convertPorts(rule, path, key, report);
    if (addresses.length === 0 || ports === 'nothing') continue;
    for (const list of chunks(addresses, MAX_ADDRESSES)) {
      const name = nameBeside(withSuffix(metadata.name, `-egress-${i}`), false, take('ExternalService'));
      const service = { addresses: list, ...(ports === undefined ? {} : { ports }) };
      const manifest: Manifest = {
        apiVersion: API_VERSION,
        kind: 'ExternalService',
        metadata: named(name),
        spec: service,
      };
      if (report.write(key, manifest, 'permits less')) names.push(name);
    }
  }
  const selector = podSelectorOf(spec.podSelector);
  const write = (name: string, rule: object, effect: 'permits less' | 'permits more'): void => {
    const kind = 'NamespaceEgressRule';
    report.write(key, { apiVersion: API_VERSION, kind, metadata: named(name), spec: { ...rule, ...selector } }, effect);
  };
  for (const [part, list] of chunks(names, MAX_NAMES).entries()) {
    const name = nameBeside(metadata.name, part === 0, take('NamespaceEgressRule'));
    write(name, { action: 'accept-decisively', externalServices: list }, 'permits less');
  }
  // What goes everywhere is not isolated.
  if (everything) return;
  const name = nameBeside(withSuffix(metadata.name, '-isolate'), false, take('NamespaceEgressRule'));
  write(name, { action: 'drop', externalServices: ['*'], priority: ISOLATE_PRIORITY }, 'permits more');
}

const withSuffix = (name: string, suffix: string): string =>
  `${name.slice(0, 253 - suffix.length).replace(/[-.]+$/, '')}${suffix}`;

function podSelectorOf(selector: LabelSelector | undefined): { podSelector?: LabelSelector } {
  const { matchLabels = {}, matchExpressions = [] } = selector ?? {};
  if (Object.keys(matchLabels).length === 0 && matchExpressions.length === 0) return {};
  return {
    podSelector: {
      ...(Object.keys(matchLabels).length === 0 ? {} : { matchLabels: { ...matchLabels } }),
      ...(matchExpressions.length === 0 ? {} : { matchExpressions }),
    },
  };
}

/** What of a rule's peers lies outside the cluster; no peer at all is every address. */
function addressesOf({ to = [] }: EgressRule, at: string, object: string, report: Reporter): string[] {
  if (to.length === 0) return ['0.0.0.0/0', '::/0'];
  const addresses = new Set<string>();
  for (const [i, { ipBlock }] of to.entries()) {
    const path = `${at}.to[${i}]`;
    if (ipBlock === undefined) {
      const message = 'pods are in the cluster, and traffic to them is not steered: the NetworkPolicy still does it';
      report.notCarried({ object, path, reason: 'InCluster', message, effect: 'none' });
      continue;
    }
    const read = (text: string, field: string): Range | undefined => {
      const prefix = text.includes('/') ? (parseRange(text).ok ? text : withoutHostBits(text)) : undefined;
      const range = prefix === undefined ? undefined : parseRange(prefix);
      if (range?.ok === true && !(range.value.family === 6 && range.value.first >> 32n === 0xffffn)) return range.value;
      const message = `${show(text)}: no CIDR that we read; the whole block is left out`;
      report.notCarried({
        object,
        path: `${path}.ipBlock.${field}`,
        reason: 'AddressUnreadable',
        message,
        effect: 'permits less',
      });
      return undefined;
    };
    const whole = read(ipBlock.cidr, 'cidr');
    const except = (ipBlock.except ?? []).map((text, j) => read(text, `except[${j}]`));
    if (whole === undefined || except.includes(undefined)) continue;
    const rest = PrefixSet.of([whole]).exclude(PrefixSet.of(except as Range[]));
    for (const range of rest.ranges(whole.family)) addresses.add(formatRange(range));
  }
  return [...addresses];
}

/** undefined: every port of every protocol. 'nothing': ports were meant, and none can be said. */
function convertPorts(
  { ports = [] }: EgressRule,
  at: string,
  object: string,
  report: Reporter,
): Port[] | undefined | 'nothing' {
  if (ports.length === 0) return undefined;
  const entries: Entry[] = [];
  for (const [i, { protocol = 'TCP', port: first, endPort }] of ports.entries()) {
    if (typeof first === 'string') {
      const message = `${show(first)}: a named port is a port of a pod; outside the cluster there is none`;
      report.notCarried({ object, path: `${at}.ports[${i}].port`, reason: 'NamedPort', message, effect: 'none' });
      continue;
    }
    const ranges: Entry['ranges'] = first === undefined ? null : [[first, endPort ?? first]];
    entries.push({ protocol: protocol as PortProtocol, ranges });
  }
  return entries.length === 0 ? 'nothing' : portsOf(entries).ports;
}

function notes(report: Reporter, isolating: number, ingress: number): void {
  if (isolating > 0) {
    report.note(
      'Isolation',
      `${isolating} policies isolate the pods that they select: each is a rule that permits (accept-decisively, since no other context need agree; a rule of the cluster context may still object), and a rule NAME-isolate that drops the rest at priority ${ISOLATE_PRIORITY}. Policies of one pod add up.`,
    );
    report.note(
      'DefaultAction',
      'Pods that no policy isolates may go anywhere in Kubernetes. Here defaultAction of the GatewayPool decides for them: Accept keeps that meaning, Drop (the default) needs rules that permit.',
    );
    report.note(
      'EgressIP',
      'Rules apply to pods that an EgressIP selects. Other pods are not steered, and so meet no rule (GatewayPool, unassigned: Bypass), or are dropped (unassigned: Drop).',
    );
    report.note(
      'InCluster',
      'Traffic inside the cluster (clusterCIDRs of the GatewayPool) is not steered: keep the NetworkPolicies for it. They hold for traffic that leaves, too; both must permit.',
    );
  }
  if (ingress > 0) report.note('Ingress', `${ingress} policies speak of ingress: that stays with the CNI.`);
}
