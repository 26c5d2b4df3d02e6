/**
 * The table of kinds: what each is called, where it lives, its schema, and the fields of the design that are refused
 * by name until they are carried out. Parsing (validate.ts), CRDs (crd.ts) and `sluice get` all read this one table.
 */

import { Type } from 'typebox';
import { API_VERSION } from '../names.ts';
import { objectMetaSchema, type Scope, strictMetaSchema } from './common.ts';
import { EGRESS_ADDRESS_PLURAL, egressAddressSpec } from './egress-address.ts';
import { egressIPPoolSpec, egressIPSpec, IMMUTABLE } from './egress-ip.ts';
import { clusterEgressRuleSpec, namespaceEgressRuleSpec, serviceEgressRuleSpec } from './egress-rule.ts';
import { externalServiceSpec } from './external-service.ts';
import { gatewayPoolAbsent, gatewayPoolSpec } from './gateway-pool.ts';
import {
  configMapFields,
  endpointSliceFields,
  namespaceFields,
  nodeFields,
  podFields,
  serviceFields,
} from './kubernetes.ts';
import type { Keywords } from './walk.ts';

const sluiceObject = <Kind extends string, Spec extends Type.TSchema>(kind: Kind, spec: Spec) =>
  Type.Object(
    {
      apiVersion: Type.Enum([API_VERSION]),
      kind: Type.Enum([kind]),
      metadata: strictMetaSchema,
      spec,
    },
    { additionalProperties: false, ignored: ['status'] },
  );
const kubeObject = <Kind extends string, Version extends string, Fields extends Type.TProperties>(
  apiVersion: Version,
  kind: Kind,
  fields: Fields,
) =>
  Type.Object({ apiVersion: Type.Enum([apiVersion]), kind: Type.Enum([kind]), metadata: objectMetaSchema, ...fields });

export const schemas = {
  GatewayPool: sluiceObject('GatewayPool', gatewayPoolSpec),
  EgressIPPool: sluiceObject('EgressIPPool', egressIPPoolSpec),
  EgressIP: sluiceObject('EgressIP', egressIPSpec),
  ExternalService: sluiceObject('ExternalService', externalServiceSpec),
  ClusterEgressRule: sluiceObject('ClusterEgressRule', clusterEgressRuleSpec),
  NamespaceEgressRule: sluiceObject('NamespaceEgressRule', namespaceEgressRuleSpec),
  ServiceEgressRule: sluiceObject('ServiceEgressRule', serviceEgressRuleSpec),
  Namespace: kubeObject('v1', 'Namespace', namespaceFields),
  Pod: kubeObject('v1', 'Pod', podFields),
  Service: kubeObject('v1', 'Service', serviceFields),
  EndpointSlice: kubeObject('discovery.k8s.io/v1', 'EndpointSlice', endpointSliceFields),
  Node: kubeObject('v1', 'Node', nodeFields),
  ConfigMap: kubeObject('v1', 'ConfigMap', configMapFields),
} as const;

export type KindName = keyof typeof schemas;
export type ObjectOf<Kind extends KindName> = Type.Static<(typeof schemas)[Kind]>;

export interface PrinterColumn {
  name: string;
  type: 'string' | 'integer' | 'date';
  jsonPath: string;
  priority?: number;
}
export interface KindInfo {
  kind: SluiceKindName;
  plural: string;
  singular: string;
  shortNames: string[];
  scope: Scope;
  description: string;
  /** Schema of `spec`. */
  schema: Type.TSchema;
  columns: PrinterColumn[];
}

export type KubeKindName = 'Namespace' | 'Pod' | 'Service' | 'EndpointSlice' | 'Node' | 'ConfigMap';
export type SluiceKindName = Exclude<KindName, KubeKindName>;

const spec = (name: string, field: string, type: PrinterColumn['type'] = 'string'): PrinterColumn => ({
  name,
  type,
  jsonPath: `.spec.${field}`,
});
const fact = (name: string, field: string, type: PrinterColumn['type'] = 'string'): PrinterColumn => ({
  name,
  type,
  jsonPath: `.status.${field}`,
});
const condition = (type: string): PrinterColumn => ({
  name: type,
  type: 'string',
  jsonPath: `.status.conditions[?(@.type=="${type}")].status`,
});
const ageColumn: PrinterColumn = { name: 'Age', type: 'date', jsonPath: '.metadata.creationTimestamp' };
/** Summed over gateways, rounded (api/hits.ts). */
const counted: PrinterColumn[] = [
  { name: 'Hits', type: 'integer', jsonPath: '.status.counters.hits' },
  { name: 'Last-Hit', type: 'date', jsonPath: '.status.counters.lastHit' },
];
/** Of rules with a schedule: not a date column, which kubectl would print as an age. */
const scheduled: PrinterColumn[] = [
  { name: 'Schedule', type: 'string', jsonPath: '.status.schedule' },
  { name: 'NextChange', type: 'string', jsonPath: '.status.nextChange', priority: 1 },
];
/** With -o wide: why it is not, where it is not. */
const why = (type: string): PrinterColumn => ({
  name: `${type}-Message`,
  type: 'string',
  jsonPath: `.status.conditions[?(@.type=="${type}")].message`,
  priority: 1,
});
/** Of kinds that no gateway has in force by themselves. */
const accepted = [condition('Accepted'), ageColumn, why('Accepted')];
const states = [condition('Accepted'), condition('Programmed'), ageColumn, why('Accepted'), why('Programmed')];

export const sluiceKinds: readonly KindInfo[] = [
  {
    kind: 'GatewayPool',
    plural: 'gatewaypools',
    singular: 'gatewaypool',
    shortNames: ['gwp'],
    scope: 'cluster',
    description: 'The gateways that carry the off-cluster traffic of one cluster, with one configuration.',
    schema: gatewayPoolSpec,
    columns: [
      spec('Steering', 'steering.mode'),
      spec('Default', 'defaultAction'),
      spec('Unassigned', 'unassigned'),
      spec('Mode', 'mode'),
      fact('Connected', 'connected'),
      { ...fact('Shards', 'shards', 'integer'), priority: 1 },
      { ...fact('Namespaces', 'namespaces', 'integer'), priority: 1 },
      { ...fact('Workloads', 'workloads', 'integer'), priority: 1 },
      ...states,
    ],
  },
  {
    kind: 'EgressIPPool',
    plural: 'egressippools',
    singular: 'egressippool',
    shortNames: ['eipp'],
    scope: 'cluster',
    description: 'Ranges from which egress IPs are given out, and who may draw from them.',
    schema: egressIPPoolSpec,
    columns: [
      spec('GatewayPool', 'gatewayPool'),
      spec('Ranges', 'ranges'),
      fact('In-Use', 'inUse', 'integer'),
      ...accepted,
    ],
  },
  {
    kind: 'EgressIP',
    plural: 'egressips',
    singular: 'egressip',
    shortNames: ['eip'],
    scope: 'cluster',
    description: 'Source addresses with which namespaces leave the cluster.',
    schema: egressIPSpec,
    columns: [
      spec('Pool', 'pool'),
      fact('Addresses', 'addresses'),
      fact('Given', 'given'),
      fact('Gateways', 'gateways'),
      fact('Namespaces', 'namespaces', 'integer'),
      { ...spec('Allocation', 'allocation'), priority: 1 },
      { name: 'Destinations', type: 'string', jsonPath: '.spec.destinations', priority: 1 },
      condition('Conflicted'),
      ...states,
    ],
  },
  {
    kind: 'ExternalService',
    plural: 'externalservices',
    singular: 'externalservice',
    shortNames: ['exsvc'],
    scope: 'namespaced',
    description: 'A named set of destinations outside the cluster.',
    schema: externalServiceSpec,
    columns: [spec('Addresses', 'addresses'), ...accepted],
  },
  {
    kind: 'ClusterEgressRule',
    plural: 'clusteregressrules',
    singular: 'clusteregressrule',
    shortNames: ['cgr'],
    scope: 'cluster',
    description: 'A rule of the cluster context, the first that is walked.',
    schema: clusterEgressRuleSpec,
    columns: [
      spec('Action', 'action'),
      spec('Mode', 'mode'),
      spec('Priority', 'priority', 'integer'),
      spec('To', 'externalServices'),
      ...scheduled,
      ...counted,
      ...states,
    ],
  },
  {
    kind: 'NamespaceEgressRule',
    plural: 'namespaceegressrules',
    singular: 'namespaceegressrule',
    shortNames: ['nsgr'],
    scope: 'namespaced',
    description: 'A rule of the namespace context, walked after the cluster context.',
    schema: namespaceEgressRuleSpec,
    columns: [
      spec('Action', 'action'),
      spec('Mode', 'mode'),
      spec('Priority', 'priority', 'integer'),
      spec('To', 'externalServices'),
      ...scheduled,
      ...counted,
      ...states,
    ],
  },
  {
    kind: 'ServiceEgressRule',
    plural: 'serviceegressrules',
    singular: 'serviceegressrule',
    shortNames: ['svcgr'],
    scope: 'namespaced',
    description: 'A rule of the service context, the last that is walked, and the only one whose accept permits.',
    schema: serviceEgressRuleSpec,
    columns: [
      spec('Service', 'service'),
      spec('Action', 'action'),
      spec('Mode', 'mode'),
      spec('Priority', 'priority', 'integer'),
      spec('To', 'externalServices'),
      ...scheduled,
      ...counted,
      ...states,
    ],
  },
];

/** Written by the controller alone, and read by it: no manifest has it. */
export const egressAddressKind: Omit<KindInfo, 'kind'> & { kind: 'EgressAddress' } = {
  kind: 'EgressAddress',
  plural: EGRESS_ADDRESS_PLURAL,
  singular: 'egressaddress',
  shortNames: ['egad'],
  scope: 'cluster',
  description: 'A source address that is given out, or rests after that. Written by the controller: do not edit.',
  schema: egressAddressSpec,
  columns: [
    spec('Address', 'address'),
    spec('EgressIP', 'egressIP'),
    spec('Owner', 'owner'),
    spec('Pool', 'pool'),
    spec('Released', 'releasedAt'),
    ageColumn,
  ],
};

/** Fields of `spec` that no update may change, as the CRD's transition rule says. */
export const immutableFields = ({ schema }: KindInfo): string[] =>
  Object.entries((schema as Keywords).properties ?? {}).flatMap(([field, { cel }]) =>
    cel?.some(({ rule }) => rule === IMMUTABLE) === true ? [field] : [],
  );

export const kindScopes: Readonly<Record<KindName, Scope>> = {
  GatewayPool: 'cluster',
  EgressIPPool: 'cluster',
  EgressIP: 'cluster',
  ExternalService: 'namespaced',
  ClusterEgressRule: 'cluster',
  NamespaceEgressRule: 'namespaced',
  ServiceEgressRule: 'namespaced',
  Namespace: 'cluster',
  Pod: 'namespaced',
  Service: 'namespaced',
  EndpointSlice: 'namespaced',
  Node: 'cluster',
  ConfigMap: 'namespaced',
};

/**
 * Fields of design §3 that are not carried out yet: kind, then path of the object that would hold the field (`[]` for
 * any item of a list). Refused by name, never accepted in silence. Empty this table as they come to life.
 */
export const absentFields: Readonly<Partial<Record<KindName, Readonly<Record<string, readonly string[]>>>>> = {
  GatewayPool: { spec: gatewayPoolAbsent },
};
/** The same for single values of an enum: kind, path of the field, values. */
export const absentValues: Readonly<Partial<Record<KindName, Readonly<Record<string, readonly string[]>>>>> = {};
