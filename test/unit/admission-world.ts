/**
 * A small cluster for the tests of admission: what is in force, what the planner remembers of it, and a way to write
 * the requests of an API server. Names and addresses are of the lab's kind.
 */
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import type { AdmissionRequest, AdmissionWorld } from '../../controller/admission/review.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { ObjectIndex } from '../../controller/plan/objects.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';

export type Json = Record<string, unknown>;
export type Manifest = Json & { kind: string; metadata: Json & { name: string; namespace?: string } };

export const NOW = Date.parse('2026-11-27T12:00:00Z');
const CREATED = '2026-11-01T00:00:00Z';

export function manifest(kind: string, qualified: string, spec: Json, meta: Json = {}): Manifest {
  const [name = '', namespace] = qualified.split('/').reverse();
  const metadata = { name, ...(namespace && { namespace }), creationTimestamp: CREATED, ...meta };
  return { apiVersion: API_VERSION, kind, metadata, spec };
}
const core = (kind: string, qualified: string, rest: Json = {}, meta: Json = {}): Manifest => {
  const { spec, ...object } = manifest(kind, qualified, {}, meta);
  return { ...object, apiVersion: 'v1', ...rest } as Manifest;
};

export const gatewayPool = (name: string, spec: Json = {}): Manifest =>
  manifest('GatewayPool', name, {
    namespaceSelector: {},
    gateways: [{ name: 'gw-a', internalAddress: '10.0.0.31' }],
    interfaces: { internal: 'in0', external: { name: 'out0' } },
    nextHops: { v4: ['10.0.0.64-10.0.0.66'] },
    clusterCIDRs: ['10.244.0.0/16'],
    fetch: { allowedHosts: ['hooks.example.test'] },
    unassigned: 'Drop',
    ...spec,
  });
/** Has nothing in common with `main`. */
export const otherPool = (spec: Json = {}): Manifest =>
  gatewayPool('other', {
    namespaceSelector: { matchLabels: { zone: 'b' } },
    gateways: [{ name: 'gw-z', internalAddress: '10.9.0.31' }],
    nextHops: { v4: ['10.9.0.64'] },
    ...spec,
  });
export const drawPool = (name: string, spec: Json = {}): Manifest =>
  manifest('EgressIPPool', name, { gatewayPool: 'main', ranges: ['192.0.2.0/28'], namespaceSelector: {}, ...spec });
export const publicPool = (spec: Json = {}): Manifest =>
  drawPool('public', {
    ranges: ['203.0.113.96/28'],
    exclude: ['203.0.113.97'],
    namespaceSelector: { matchExpressions: [{ key: 'guest', operator: 'DoesNotExist' }] },
    ...spec,
  });
export const egressIP = (name: string, spec: Json = {}): Manifest =>
  manifest('EgressIP', name, { pool: 'public', addresses: ['203.0.113.105'], namespaces: ['batch'], ...spec });
export const billing = (spec: Json = {}): Manifest =>
  egressIP('billing', { addresses: ['203.0.113.101'], namespaces: ['billing'], ...spec });
export const service = (qualified: string, spec: Json = { addresses: ['198.51.100.80'] }): Manifest =>
  manifest('ExternalService', qualified, spec);
export const rule = (kind: string, qualified: string, spec: Json = {}): Manifest =>
  manifest(kind, qualified, { action: 'accept', externalServices: ['web'], ...spec });

export const inForce = (): Manifest[] => [
  core('Namespace', 'billing', {}, { labels: { team: 'pay' } }),
  core('Namespace', 'reviews'),
  core('Namespace', 'batch'),
  core('Namespace', 'empty'),
  core('Namespace', 'guests', {}, { labels: { guest: 'yes' } }),
  core('Namespace', 'sluice-system'),
  core('Namespace', 'security', {}, { labels: { 'sluice.dev/trusted-services': 'true' } }),
  core('Node', 'n', { spec: {}, status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] } }),
  ...['billing/pay-1', 'billing/pay-2', 'reviews/rev-1'].map((name, at) =>
    core(
      'Pod',
      name,
      { spec: { nodeName: 'n' }, status: { phase: 'Running', podIPs: [{ ip: `10.244.1.${at + 2}` }] } },
      { uid: name.replace('/', '-') },
    ),
  ),
  gatewayPool('main'),
  otherPool(),
  publicPool(),
  drawPool('second', { ranges: ['192.0.2.128/28'] }),
  billing(),
  egressIP('reviews', { addresses: undefined, count: 1, namespaces: ['reviews'] }),
  egressIP('idle', { addresses: ['203.0.113.110'], namespaces: ['empty'] }),
  service('billing/web'),
  service('billing/named', { addresses: ['api.example.test'] }),
  service('billing/listed', { addressesFrom: [{ url: 'https://lists.example.test/a.txt' }] }),
  service('sluice-system/partner'),
  service('security/list'),
  service('reviews/own'),
  rule('NamespaceEgressRule', 'billing/veto', { action: 'drop' }),
  rule('NamespaceEgressRule', 'billing/sent', {
    action: 'accept-decisively',
    externalServices: ['web'],
    redirect: { address: '198.51.100.90' },
  }),
  rule('ClusterEgressRule', 'block', { action: 'reject', externalServices: ['security/list'] }),
];

export function parsed(input: Json): AnyObject {
  const result = parseObject(JSON.parse(JSON.stringify(input)));
  if (!result.ok) throw new Error(JSON.stringify(result.errors));
  return result.value;
}

/** Planned until the planner changes nothing more. */
export function worldOf(
  manifests: readonly Json[],
  memory = emptyMemory(),
): AdmissionWorld & { snapshot: Map<string, AnyObject> } {
  const snapshot = new Map(manifests.map(parsed).map((object) => [objectKey(object), object]));
  const lists = new Map();
  const first = plan(snapshot, memory, noPeers(), NOW, lists);
  const { memory: kept, pools } = plan(snapshot, first.memory, noPeers(), NOW, lists);
  return { snapshot, objects: new ObjectIndex().look(snapshot), memory: kept, lists, plans: pools, now: NOW };
}

/** As the API server has a new object: dated, defaults filled in. */
function stored(input: Manifest, creationTimestamp: string | undefined): Json {
  const copy = JSON.parse(JSON.stringify({ ...input, metadata: { ...input.metadata, creationTimestamp } })) as Json;
  return copy;
}
export const create = (object: Manifest): AdmissionRequest => ({
  operation: 'CREATE',
  object: stored(object, '2026-11-27T12:00:00Z'),
});
export const update = (object: Manifest, oldObject: Manifest): AdmissionRequest => ({
  operation: 'UPDATE',
  object: stored(object, CREATED),
  oldObject: stored(oldObject, CREATED),
});
export const remove = (oldObject: Manifest): AdmissionRequest => ({
  operation: 'DELETE',
  oldObject: stored(oldObject, CREATED),
});
