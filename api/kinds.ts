/**
 * The kinds as TypeScript types (`sluice.dev/v1alpha1` and the Kubernetes kinds that are read), derived from the
 * schemas in `schema/`, and the way in: parseObject. Other rooms import kinds from here only.
 */

import type { KubeKindName, ObjectOf, SluiceKindName } from './schema/registry.ts';
import type { AnyObject } from './validate.ts';

export type { LabelSelector, ObjectMeta, Scope } from './schema/common.ts';
export { DEFAULT_REFRESH_SECONDS, type ListSource } from './schema/external-service.ts';
export {
  immutableFields,
  type KindInfo,
  type KindName,
  kindScopes,
  type PrinterColumn,
  sluiceKinds,
} from './schema/registry.ts';
export { type ScheduleWindow, weekdays } from './schema/schedule.ts';
export type { ServicePort } from './schema/service-port.ts';
export type { FieldError } from './schema/walk.ts';
export { type AnyObject, type ParsedObject, parseObject } from './validate.ts';

export type GatewayPool = ObjectOf<'GatewayPool'>;
export type EgressIPPool = ObjectOf<'EgressIPPool'>;
export type EgressIP = ObjectOf<'EgressIP'>;
export type ExternalService = ObjectOf<'ExternalService'>;
export type ClusterEgressRule = ObjectOf<'ClusterEgressRule'>;
export type NamespaceEgressRule = ObjectOf<'NamespaceEgressRule'>;
export type ServiceEgressRule = ObjectOf<'ServiceEgressRule'>;
export type EgressRule = ClusterEgressRule | NamespaceEgressRule | ServiceEgressRule;

export type Namespace = ObjectOf<'Namespace'>;
export type Pod = ObjectOf<'Pod'>;
export type Service = ObjectOf<'Service'>;
export type EndpointSlice = ObjectOf<'EndpointSlice'>;
export type Node = ObjectOf<'Node'>;
export type ConfigMap = ObjectOf<'ConfigMap'>;

export type SluiceObject = ObjectOf<SluiceKindName>;
export type KubeObject = ObjectOf<KubeKindName>;

/** `EgressIP/billing`, `Pod/billing/pay-1`: kind, namespace if it has one, name. */
export function objectKey(o: Pick<AnyObject, 'kind'> & { metadata: { name: string; namespace?: string } }): string {
  const { name, namespace } = o.metadata;
  return namespace === undefined ? `${o.kind}/${name}` : `${o.kind}/${namespace}/${name}`;
}
