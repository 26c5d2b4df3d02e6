/**
 * Every call of the controller to an API server, and what for: its rights in deploy/chart are exactly these (unit/deploy.test.ts).
 * Whoever adds a call adds it here and there.
 */
import { API_GROUP } from '../api/names.ts';

export interface ApiCall {
  group: string;
  resources: readonly string[];
  verbs: readonly string[];
  /** `namespace`: the controller's own; with `names`, of these objects alone. */
  scope: 'cluster' | 'namespace';
  names?: readonly string[];
  why: string;
}

/** The kinds that people write. */
export const writtenKinds: readonly string[] = [
  'gatewaypools',
  'egressippools',
  'egressips',
  'externalservices',
  'clusteregressrules',
  'namespaceegressrules',
  'serviceegressrules',
];

export const apiCalls: readonly ApiCall[] = [
  {
    group: '',
    resources: ['namespaces', 'pods', 'services', 'nodes', 'configmaps'],
    verbs: ['list', 'watch'],
    scope: 'cluster',
    why: 'what the cluster is; of ConfigMaps those that an ExternalService refers to',
  },
  {
    group: 'discovery.k8s.io',
    resources: ['endpointslices'],
    verbs: ['list', 'watch'],
    scope: 'cluster',
    why: 'the pods of a Service',
  },
  { group: API_GROUP, resources: writtenKinds, verbs: ['list', 'watch'], scope: 'cluster', why: 'what people want' },
  {
    group: API_GROUP,
    resources: writtenKinds.map((kind) => `${kind}/status`),
    verbs: ['patch'],
    scope: 'cluster',
    why: 'what became of it: server-side apply on the status alone',
  },
  {
    group: API_GROUP,
    resources: ['externalservices'],
    verbs: ['get', 'patch'],
    scope: 'cluster',
    why: 'the finalizer of those that a drop or reject rule names',
  },
  {
    group: API_GROUP,
    resources: ['egressaddresses'],
    verbs: ['list', 'create', 'update', 'delete'],
    scope: 'cluster',
    why: 'addresses given out, one object each',
  },
  { group: '', resources: ['events'], verbs: ['create', 'patch'], scope: 'cluster', why: 'a condition changed' },
  {
    group: 'coordination.k8s.io',
    resources: ['leases'],
    verbs: ['create'],
    scope: 'namespace',
    why: 'the first leader',
  },
  {
    group: 'coordination.k8s.io',
    resources: ['leases'],
    verbs: ['get', 'update'],
    scope: 'namespace',
    names: ['sluice-controller'],
    why: 'who leads',
  },
  {
    group: '',
    resources: ['configmaps'],
    verbs: ['create'],
    scope: 'namespace',
    why: 'numbers of shards, generation',
  },
  {
    group: '',
    resources: ['configmaps'],
    verbs: ['get', 'update'],
    scope: 'namespace',
    names: ['sluice-controller'],
    why: 'numbers of shards, generation',
  },
];
